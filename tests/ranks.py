"""Processes that work together, for tests: started once, asked many times, each answer as plain numbers and text."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed

# A test that makes one process wait for another in vain ends, and says so.
PATIENCE = 20


class Ranks:
    """Two processes of one gloo group; `ask` has both call the same function."""

    def __init__(self, folder: Path) -> None:
        # Forked off the test's own process they would share its locks and its kernels' memory.
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, f"file://{folder / 'group'}", theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function` returns, or the exception that it raises, on each rank."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        assert all(pipe.poll(2 * PATIENCE) for pipe in self.pipes), "a rank that does not answer"
        return [pipe.recv() for pipe in self.pipes]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(PATIENCE)


@contextmanager
def two_ranks(folder: Path) -> Iterator[Ranks]:
    ranks = Ranks(folder)
    try:
        yield ranks
    finally:
        ranks.close()


def serve(rank: int, meeting: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE)
    )
    while (asked := pipe.recv()) is not None:
        function, arguments = asked
        try:
            answer = function(*arguments)
        except Exception as error:  # noqa: BLE001  it is the answer
            answer = error
        pipe.send(answer)
    distributed.destroy_process_group()
