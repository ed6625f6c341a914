"""Large results lie in memory of their own that is used again, and never while anybody holds what lies there."""

from __future__ import annotations

import copy
import multiprocessing
import os
import threading

import pytest
import torch

from pollard.kernels.products import results
from pollard.kernels.products.workspace import workspace
from pollard.nn import SparseLinear

MAPPED = pytest.mark.skipif(not results._can_map(), reason="is about glibc's heap")
COUNT = results.LEAST // 4


@pytest.fixture(autouse=True)
def _own_spans(monkeypatch):
    monkeypatch.delenv("POLLARD_RESULTS", raising=False)
    results.release()
    yield
    results.release()


def large(count: int = COUNT) -> torch.Tensor:
    return results.room((count,), (1,))(torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [10, COUNT, 3 * COUNT // 2, 4 * COUNT])
def test_a_result_is_a_tensor_of_its_own(count, dtype):
    made = results.room((2, count // 2), (1, 2), dtype)(torch.ones(1))
    assert (made.shape, made.stride(), made.dtype, made.device.type) == ((2, count // 2), (1, 2), dtype, "cpu")
    assert made._base is None
    assert made.untyped_storage().nbytes() == made.nbytes


@MAPPED
def test_what_nobody_holds_is_used_again():
    first = large()
    place = first.data_ptr()
    second = large()
    assert second.data_ptr() != place
    del first
    assert large().data_ptr() == place
    assert results.held_bytes() == 8 * COUNT


def _with_gradient(gradient):
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient
    return parameter


HOLDERS = {
    "a view": lambda t: t[3:5],
    "detached": lambda t: t.detach(),
    "numpy": lambda t: t.numpy(),
    "dlpack": torch.from_dlpack,
    "the storage": lambda t: t.untyped_storage(),
    "data": lambda t: t.data,
    "a graph": lambda t: torch.ones_like(t).requires_grad_() * t,
    "a parameter's grad": _with_gradient,
}  # fmt: skip


@MAPPED
@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_what_anybody_holds_is_not(hold):
    first = large()
    place, held = first.data_ptr(), hold(first)
    del first
    assert large().data_ptr() != place
    del held
    assert large().data_ptr() == place


@MAPPED
def test_memory_that_torch_has_moved_the_tensor_out_of_is_free():
    first = large().fill_(7.0)
    place = first.data_ptr()
    first.share_memory_()
    assert large().fill_(0.0).data_ptr() == place
    assert bool((first == 7.0).all())


def test_a_copy_has_memory_of_its_own():
    first = large().fill_(1.0)
    second = copy.deepcopy(first)
    first.fill_(2.0)
    assert bool((second == 1.0).all())


@MAPPED
def test_small_and_very_large_results_are_torchs():
    small, huge = large(COUNT - 1), large(results.MOST // 4 + 1)
    assert results.held_bytes() == 0
    assert small.untyped_storage().resizable()
    assert huge.untyped_storage().resizable()


@MAPPED
def test_the_setting_leaves_all_to_the_heap(monkeypatch):
    monkeypatch.setenv("POLLARD_RESULTS", "heap")
    assert large().untyped_storage().resizable()
    assert results.held_bytes() == 0


@MAPPED
def test_sizes_that_vary_do_not_add_up():
    for count in range(COUNT, 8 * COUNT, COUNT // 16):
        large(count)
    for count in range(8 * COUNT, COUNT, -COUNT // 16):
        large(count)
    # At most one of each power of two, when one at a time is held.
    assert results.held_bytes() <= 2 * 4 * 8 * COUNT


@MAPPED
def test_a_thread_keeps_a_bounded_number():
    held = [large() for _ in range(results.SPANS + 3)]
    assert len({each.data_ptr() for each in held}) == len(held)
    assert results.held_bytes() == results.SPANS * 4 * COUNT


@MAPPED
def test_what_has_not_served_for_long_is_given_back(monkeypatch):
    monkeypatch.setattr(results, "STALE", 8)
    large(4 * COUNT)
    for _ in range(17):
        large()
    assert results.held_bytes() == 4 * COUNT


@MAPPED
def test_threads_have_spans_of_their_own():
    first = large()
    place, others = first.data_ptr(), []
    del first
    thread = threading.Thread(target=lambda: others.append(large().fill_(3.0)))
    thread.start()
    thread.join()
    assert others[0].data_ptr() != place
    assert bool((others[0] == 3.0).all())


def _overwrite(connection, tensor):
    tensor.fill_(9.0)
    connection.send(float(large().fill_(9.0)[0]))


@MAPPED
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="is about forks")
def test_a_fork_writes_into_pages_of_its_own():
    tensor, (here, there) = large().fill_(1.0), multiprocessing.Pipe()
    child = os.fork()
    if child == 0:
        try:
            _overwrite(there, tensor)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert here.recv() == 9.0
    assert bool((tensor == 1.0).all())


@MAPPED
def test_a_step_of_a_large_layer_takes_its_results_from_there():
    layer = SparseLinear.random(1024, 1024, 0.3)
    x = torch.randn(256, 1024, requires_grad=True)
    for _ in range(2):
        y = layer(x)
        assert not y.untyped_storage().resizable()
        y.square().sum().backward()
        assert not layer.values.grad.untyped_storage().resizable()
        layer.values.grad = None
    held = results.held_bytes()
    for _ in range(5):
        layer(x).square().sum().backward()
        layer.values.grad = None
    assert results.held_bytes() == held


@MAPPED
def test_what_a_call_works_in_is_kept_where_spans_are_switched_off(monkeypatch):
    monkeypatch.setenv("POLLARD_RESULTS", "heap")
    first = workspace("a test", COUNT)
    assert workspace("a test", COUNT) is first
