"""Runs that overlap on one GPU: each on a stream of its own, on which whole steps are replayed as CUDA graphs.

Processes would take turns on it. Where there is no GPU, runs take their steps one after the other.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIRST = 3  # steps of a batch size before a graph is made of one: what they allocate, compile and try is no part of it
AGAIN = 1  # such steps once what a graph holds has moved
AHEAD = 2  # lots of steps that may be queued
SECONDS = 60  # between states that are written
TOLD = 20  # between lines that say how far runs are

Work = Callable[..., Any]


class Graph:
    """What `work` does with tensors such as those of `batch`, as a CUDA graph, which starts its hundreds of kernels at once.

    It has been done by itself before, on the same stream. draws: generators that it draws from, which go on at each replay.
    before: the graph that this one takes the place of, and takes its memory over from.
    """

    def __init__(
        self,
        work: Work,
        batch: tuple[Tensor, ...] = (),
        *,
        stream: torch.cuda.Stream | None,
        draws: Iterable[torch.Generator] = (),
        before: Graph | None = None,
    ) -> None:
        self.held = tuple(each.clone() for each in batch) if before is None else before.held
        self.graph = torch.cuda.CUDAGraph()
        for each in draws:
            self.graph.register_generator_state(each)
        pool = {} if before is None else {"pool": before.graph.pool()}
        # torch.cuda.graph would wait for all that the device has to do, and give free memory back: other runs go on meanwhile.
        with torch.cuda.stream(stream):
            self.graph.capture_begin(capture_error_mode="thread_local", **pool)
            try:
                self.result = work(*self.held)
            finally:
                self.graph.capture_end()

    def __call__(self, *batch: Tensor) -> Any:
        """Do it with this batch; the result is there until the next."""
        for own, each in zip(self.held, batch, strict=True):
            own.copy_(each)
        self.graph.replay()
        return self.result


class Replayed:
    """A step, which takes a batch: on a GPU by a graph once it has been taken `FIRST` times by itself, one graph for each size of batch.

    captured: what graphs are made of, where it is not quite the step itself.
    """

    def __init__(
        self,
        step: Work,
        captured: Work | None = None,
        *,
        stream: torch.cuda.Stream | None,
        draws: Iterable[torch.Generator] = (),
    ) -> None:
        self.step, self.captured, self.stream, self.draws = step, captured or step, stream, tuple(draws)
        self.captures = stream is not None
        self.taken, self.graphs, self.stale = Counter[int](), dict[int, Graph](), dict[int, Graph]()

    def __call__(self, *batch: Tensor) -> Any:
        """What the step returns, until the next."""
        size = len(batch[0])
        if self.captures and size not in self.graphs and self.taken[size] >= FIRST:
            options: dict[str, Any] = {"stream": self.stream, "draws": self.draws, "before": self.stale.get(size)}
            self.graphs[size] = Graph(self.captured, batch, **options)
            self.stale.pop(size, None)
        if size in self.graphs:
            return self.graphs[size](*batch)
        self.taken[size] += 1
        return self.step(*batch)

    def anew(self) -> None:
        """What graphs hold has moved: they are made anew."""
        self.stale |= self.graphs
        self.graphs.clear()
        for size in self.taken:
            self.taken[size] = min(self.taken[size], FIRST - AGAIN)

    def end(self) -> None:
        """Let go of all graphs: not whenever Python comes to it, which may be while another is captured."""
        self.graphs.clear()
        self.stale.clear()


class Run(ABC):
    """The training of one network, on a stream of its own where there are any."""

    take: Replayed

    def __init__(self, device: torch.device, *, priority: int = 0) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device, priority=priority) if device.type == "cuda" else None
        self.steps = 0
        self._queued = deque[torch.cuda.Event]()

    @property
    @abstractmethod
    def left(self) -> int:
        """Steps that are not queued yet."""

    @abstractmethod
    def follow(self) -> None:
        """Queue the next step, count it, and queue what comes at the end of an epoch."""

    def together(self, count: int) -> int:
        """Of so many steps, how many may be queued at once."""
        return min(count, self.left)

    @property
    def alone(self) -> bool:
        """Whether the host has to wait in the next step for all those before: it had better not come to it too soon."""
        return not self.left

    def advance(self, count: int) -> int:
        """Queue so many steps, or fewer, and say how many."""
        count = self.together(count)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.default_stream(self.device))
        with torch.cuda.stream(self.stream):
            for _ in range(count):
                self.follow()
            if self.stream is not None:
                event = torch.cuda.Event()
                event.record()
                self._queued.append(event)
        return count

    def waits(self) -> bool:
        """Whether as much is queued as may be."""
        while self._queued and self._queued[0].query():
            self._queued.popleft()
        return len(self._queued) >= (1 if self.alone else AHEAD)


class Contest(ABC):
    """All runs: those that are over, those under way, those that wait."""

    lot: int  # steps that are queued at once

    def __init__(self, device: torch.device, out: Path) -> None:
        self.device, self.out = device, out
        self.seconds, self.steps = 0.0, 0
        self.live: list[Any] = []
        self.written = self.told = time.monotonic()

    @abstractmethod
    def next(self) -> Run | None:
        """The first that waits and may begin."""

    @abstractmethod
    def over(self, run: Any) -> None:
        """What is to be done when all steps of a run are."""

    @abstractmethod
    def save(self) -> None:
        """Write states, from which a call after this one goes on, and what there is to read."""

    def go(self, together: int, seconds: float) -> None:
        """So many at a time, each as fast as the device lets it, until all are over or the time is."""
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            while len(self.live) < together and (run := self.next()):
                self.live.append(run)
            if not self.live:
                break
            ready = [run for run in self.live if not run.waits()]
            for run in ready:
                if run.left:
                    self.steps += run.advance(self.lot)
                else:
                    self.over(run)
                    run.take.end()
                    self.live.remove(run)
            if not ready:
                time.sleep(0.0002)
            if time.monotonic() - self.written > SECONDS:
                self.write()
            if time.monotonic() - self.told > TOLD:
                self.told = time.monotonic()
                print(f"[{self.seconds + self.told - self.written:.0f} s] {'; '.join(map(str, self.live))}", flush=True)
        self.write()

    def write(self) -> None:
        """`save` once the device is at rest."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        self.seconds, self.written = self.seconds + now - self.written, now
        self.out.mkdir(parents=True, exist_ok=True)
        self.save()
