"""What tests/test_stress.py does to layers, each in a process of its own, so that a crash is a failed test.

What is done is told first: the last line before a crash names it.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import resource
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import pollard
from pollard.errors import PollardError
from pollard.nn import SparseLinear

FAR = 10**9  # an index far outside every tensor
MARGIN = 400 << 20  # bytes of address space beyond what a process has after its first calls


def tell(*what: object) -> None:
    sys.stdout.write(" ".join(map(str, what)) + "\n")
    sys.stdout.flush()


def layer(rows: int = 256, columns: int = 512) -> SparseLinear:
    return SparseLinear.random(columns, rows, density=0.1, generator=torch.Generator().manual_seed(0))


def both_ways(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output for `x`, and the gradients of its mean square."""
    model.zero_grad()
    lead = x.clone().requires_grad_()
    found = model(lead)
    found.square().mean().backward()
    gradients = [lead.grad, *(each.grad for each in model.parameters())]
    model.zero_grad()
    return [found.detach(), *gradients]


def require_right(sparse: SparseLinear, x: torch.Tensor) -> None:
    """Output and gradients are those of the dense layer of the same values."""
    kept = sparse.topology.mask()
    twin = nn.Linear(sparse.in_features, sparse.out_features)
    with torch.no_grad():
        twin.weight.copy_(torch.zeros(kept.shape).masked_scatter(kept, sparse.values))
        twin.bias.copy_(sparse.bias)
    found, expected = both_ways(sparse, x), both_ways(twin, x)
    expected[2] = expected[2][kept]
    torch.testing.assert_close(found, expected)


def litter() -> list[torch.Tensor]:
    """New tensors, in memory that others may have left: whoever still reads there goes astray."""
    return [torch.full((count,), FAR, dtype=torch.int32) for count in (257, 13107) * 50]


def indices(sparse: SparseLinear) -> list[torch.Tensor]:
    """Every index tensor that a user can lay hands on."""
    state = [each for each in sparse.state_dict().values() if each.dtype is torch.int32]
    topology = sparse.topology
    return [sparse.row_pointers, sparse.columns, topology.row_pointers, topology.columns, *state]


def _by_inference(each: torch.Tensor) -> None:
    with torch.inference_mode():
        each[:] = FAR


def _by_data(each: torch.Tensor) -> None:
    each.data[0] = FAR


def _by_numpy(each: torch.Tensor) -> None:
    each.numpy()[:] = FAR


def _by_another(each: torch.Tensor) -> None:
    each.data = each.clone()


def _by_swap(each: torch.Tensor) -> None:
    torch.utils.swap_tensors(each, torch.full_like(each, FAR))


WRITES = {
    "fill_": lambda each: each.fill_(FAR),
    "within inference_mode": _by_inference,
    ".data[0] =": _by_data,
    ".numpy()[:] =": _by_numpy,
    ".data =": _by_another,
    "swap_tensors": _by_swap,
    "set_": lambda each: each.set_(torch.full((3,), FAR, dtype=each.dtype)),
    "resize_": lambda each: each.resize_(1),
    "from_dlpack": lambda each: torch.from_dlpack(each).fill_(FAR),
    "the storage": lambda each: each.untyped_storage().fill_(127),
    "share_memory_": lambda each: each.share_memory_(),
    "apply_": lambda each: each.apply_(lambda _: -FAR),
}


def writes_to_indices() -> None:
    """Whatever is written to index tensors changes nothing, or is refused."""
    x = torch.randn(64, 512)
    expected = both_ways(layer(), x)
    for how, write in WRITES.items():
        for at in range(len(indices(layer()))):
            tell(how, "on index tensor", at)
            sparse, twin = layer(), layer()
            both_ways(sparse, x)
            twin.load_state_dict(sparse.state_dict())
            copied = copy.deepcopy(sparse)
            kept = []
            with contextlib.suppress(PollardError, RuntimeError, AttributeError):
                kept.append(indices(sparse)[at])
                write(kept[0])
            kept.append(litter())
            for each in (sparse, copied, twin):
                torch.testing.assert_close(both_ways(each, x), expected)


def writes_to_buffers() -> None:
    """A buffer that was overwritten is noticed, or does not matter; a layer made within inference_mode is like any other."""
    x = torch.randn(64, 512)
    expected = both_ways(layer(), x)
    sparse = layer()
    both_ways(sparse, x)
    tell("buffers")
    for buffer in sparse.buffers():
        buffer.fill_(1)
    with contextlib.suppress(PollardError):
        torch.testing.assert_close(both_ways(sparse, x), expected)
    tell("inference")
    with torch.inference_mode():
        born = layer()
        born(x)
        for each in indices(born):
            each.fill_(FAR)
        torch.testing.assert_close(born(x), expected[0])


def _new_values(sparse: SparseLinear) -> None:
    sparse.values.data = torch.randn(sparse.values.shape)


def _items(sparse: SparseLinear) -> None:
    sparse.values.data[0] = 7.0
    sparse.bias.data.numpy()[:] = 3.0


def _set(sparse: SparseLinear) -> None:
    with torch.no_grad():
        sparse.values.set_(torch.randn(sparse.values.shape))


def _vector(sparse: SparseLinear) -> None:
    vector_to_parameters(2 * parameters_to_vector(sparse.parameters()), sparse.parameters())


def _swap(sparse: SparseLinear) -> None:
    torch.utils.swap_tensors(sparse.values, nn.Parameter(torch.randn(sparse.values.shape)))


def _strided(sparse: SparseLinear) -> None:
    sparse.values.data = torch.randn(2 * len(sparse.values))[::2]


def _expanded(sparse: SparseLinear) -> None:
    sparse.values.data = torch.ones(1).expand(len(sparse.values))


def _within_inference(sparse: SparseLinear) -> None:
    with torch.inference_mode():
        sparse.values[:5] = 4.0


VALUE_WRITES = (_new_values, _items, _set, _vector, _swap, _strided, _expanded, _within_inference)


def writes_to_values() -> None:
    """Whatever is written to values and bias is what the next product reads, forwards and backwards."""
    x = torch.randn(64, 512)
    for write in VALUE_WRITES:
        tell(write.__name__)
        sparse = layer()
        require_right(sparse, x)
        write(sparse)
        kept = litter()
        require_right(sparse, x)
        del kept


def _into_queue(sparse: SparseLinear, start: str) -> None:
    context = torch.multiprocessing.get_context(start)
    queue = context.SimpleQueue()
    queue.put(sparse.state_dict())
    queue.put(sparse)
    received = queue.get()
    again = layer()
    again.load_state_dict(received)
    x = torch.randn(8, 512)
    torch.testing.assert_close(again(x), sparse(x))
    torch.testing.assert_close(queue.get()(x), sparse(x))


SHARING = {
    "share_memory": lambda sparse: sparse.share_memory(),
    "a state_dict and a model on a queue": lambda sparse: _into_queue(sparse, "fork"),
    "a queue of spawned processes": lambda sparse: _into_queue(sparse, "spawn"),
    "what starting a spawned process does": ForkingPickler.dumps,
    "a plan of it": lambda sparse: ForkingPickler.dumps(pollard.Plan({"": sparse.topology})),
}


def sharing() -> None:
    """Memory that moves to be shared is found where it is, at the next call."""
    x = torch.randn(64, 512)
    for how, share in SHARING.items():
        tell(how)
        sparse = layer()
        require_right(sparse, x)
        share(sparse)
        kept = litter()
        require_right(sparse, x)
        del kept


def _train(model: nn.Module, seed: int) -> None:
    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(200):
        x = torch.randn(32, 20, generator=draw)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), x[:, :4]).backward()
        optimizer.step()


def hogwild() -> None:
    """Two processes train one shared model without waiting for each other: it learns, here as well as there."""
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear.random(20, 32, 0.5), nn.Tanh(), SparseLinear.random(32, 4, 0.5))
    x = torch.randn(200, 20)
    before = nn.functional.mse_loss(model(x), x[:, :4]).item()
    model.share_memory()
    for start in ("fork", "spawn"):
        tell(start)
        context = multiprocessing.get_context(start)
        processes = [context.Process(target=_train, args=(model, seed)) for seed in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
        after = nn.functional.mse_loss(model(x), x[:, :4]).item()
        assert after < 0.8 * before
        before = after
        torch.testing.assert_close(model(x), pollard.densify_(copy.deepcopy(model))(x))


def batch_sizes() -> None:
    """Ten thousand batch sizes, forwards and backwards, fit into a bounded piece of address space, and are right."""
    sparse = layer(16, 32)
    x = torch.randn(10_000, 32)
    both_ways(sparse, x)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MARGIN, used + MARGIN))
    for size in range(1, 10_001):
        if size % 1000 == 1:
            tell(size)
            require_right(sparse, x[:size])
        else:
            sparse(x[:size]).sum().backward()
