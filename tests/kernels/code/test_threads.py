"""Any number of threads may use a kernel first, and a process may fork while they do."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from pollard.formats.topology import Topology
from pollard.kernels.code import jit, once
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS, host_isas
from pollard.kernels.products.operand import Operand
from pollard.kernels.products.product import Product

pytestmark = pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")

# Threads meet at a barrier and then use one layer of a new shape or pattern for the first time, forward and backward;
# some of them throw away what was derived from the topology meanwhile. Errors are relative to the dense product.
STRESS = """
import sys, threading
import torch
from torch.nn.functional import linear
from pollard.kernels.products import derived, tuning
from pollard.nn import SparseLinear

tuning.SMALL, tuning.ROUNDS = 0, 2
sys.setswitchinterval(1e-5)
THREADS, wrong = 8, []
barrier = threading.Barrier(THREADS, timeout=120)
CASES = [
    (rows * 16, 16 + 48 * rows, batch, pattern)
    for rows, batch in ((1, 1), (3, 16), (6, 70))
    for pattern in ("unstructured", "v2", "v8")
]


def relative(ours, right):
    return ((ours - right).norm() / right.norm()).item()


def work(own, case, layer):
    out, width, batch, pattern = case
    made = torch.Generator().manual_seed(own)
    # Half of the threads come with a batch of their own.
    x = torch.randn(batch + own // 2, width, generator=made, requires_grad=True)
    grad = torch.randn(len(x), out, generator=made)
    ours = x.detach().requires_grad_()
    barrier.wait()
    y = layer(ours)
    dx, dw = torch.autograd.grad(y, (ours, layer.values), grad)
    if own % 4 == 3:
        derived.let_go(layer.topology)
    weight = layer.to_dense().weight.detach().requires_grad_()
    right = linear(x, weight, layer.bias)
    right_dx, right_dense = torch.autograd.grad(right, (x, weight), grad)
    right_dw = right_dense.reshape(-1)[layer.topology.weight_positions()]
    for name, error in (("y", relative(y, right)), ("dx", relative(dx, right_dx)), ("dw", relative(dw, right_dw))):
        if not error < 1e-5:
            wrong.append((case, own, name, error))


def all_cases(own):
    try:
        for case, layer in zip(CASES, LAYERS):
            work(own, case, layer)
    except BaseException as error:
        wrong.append(repr(error))
        barrier.abort()


LAYERS = [
    SparseLinear.random(width, out, density=0.2, pattern=pattern, generator=torch.Generator().manual_seed(0))
    for out, width, _, pattern in CASES
]
threads = [threading.Thread(target=all_cases, args=(own,)) for own in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(wrong[:5])
sys.exit(bool(wrong))
"""


def run(program, tmp_path, **settings):
    environment = {**os.environ, "POLLARD_CACHE": str(tmp_path / "fresh"), "PYTHONFAULTHANDLER": "1", **settings}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("torch_threads", ["1", "2"])
def test_eight_threads_that_use_new_shapes_first_compute_what_one_would(tmp_path, torch_threads):
    run(STRESS, tmp_path, OMP_NUM_THREADS=torch_threads, POLLARD_TUNING="measure")


def test_a_kernel_is_made_once_however_many_ask(monkeypatch):
    made = []

    def slowly(spec):
        made.append(spec)
        time.sleep(0.05)
        return original(spec)

    original = jit._made
    monkeypatch.setattr(jit, "_loaded", {})
    monkeypatch.setattr(jit, "_made", slowly)
    spec, found = KernelSpec("pack", host_isas()[0], vectors=7, packed=False), []
    threads = [threading.Thread(target=lambda: found.append(jit.load(spec))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [spec]
    assert len(found) == 8
    assert len({id(kernel) for kernel in found}) == 1


FORK = """
import os, sys, threading, time
import torch
torch.set_num_threads(1)
from pollard.kernels.code import jit
from pollard.nn import SparseLinear

compiling, original = threading.Event(), jit._compile


def slowly(spec):
    compiling.set()
    time.sleep(0.2)
    return original(spec)


jit._compile = slowly
layer = SparseLinear.random(64, 32, density=0.2)
first = threading.Thread(target=layer, args=(torch.ones(3, 64),))
first.start()
compiling.wait()
child = os.fork()
if not child:
    # The thread that was compiling does not exist here: what it held must be free, and what it made whole.
    same = torch.allclose(layer(torch.ones(3, 64)), layer.to_dense()(torch.ones(3, 64)), atol=1e-5)
    layer(torch.ones(5, 64))
    os._exit(0 if same else 3)
first.join()
for _ in range(400):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.05)
os.kill(child, 9)
sys.exit(4)
"""


def test_a_fork_while_another_thread_compiles_leaves_a_child_that_can(tmp_path):
    run(FORK, tmp_path)


def test_the_lock_is_free_on_both_sides_of_a_fork():
    with once.MAKING:
        child = os.fork()
        if not child:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    taken = []

    def take():
        taken.append(once.MAKING.acquire(timeout=5))
        if taken[0]:
            once.MAKING.release()  # or whoever comes next in this process waits for a thread that is no more

    other = threading.Thread(target=take)
    other.start()
    other.join()
    assert taken == [True]


def test_what_is_little_work_wakes_no_thread():
    torch.set_num_threads(2)
    little, much = (Topology.random((side, side), 0.5) for side in (8, 1024))
    threads = [
        Product.of(
            "gather", topology, Operand.of(torch.ones(128, topology.shape[1])), TARGETS["avx2"], "float32"
        ).threads
        for topology in (little, much)
    ]
    assert threads == [1, 2]
