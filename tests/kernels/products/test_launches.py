"""Kernels on a GPU are started as Triton starts them, and found once: with a driver that notes what it is given."""

import gc
from types import SimpleNamespace

import pytest
import torch

from pollard.formats.topology import Topology
from pollard.kernels.products.cuda import dense, grains
from pollard.kernels.products.cuda import products as cuda
from pollard.kernels.products.cuda.launch import Launch
from pollard.kernels.products.cuda.rows import columns_on, rows_on
from pollard.kernels.products.derived import derived_bytes
from pollard.kernels.products.placed import transpose_on
from pollard.kernels.products.task import Task

triton = pytest.importorskip("triton", reason="Triton is made for Linux on x86-64 alone")


class Driver:
    """One of no device: what a launcher is given goes to `started`."""

    def __init__(self):
        self.started, self.loaded = [], 0
        self.utils = SimpleNamespace(
            load_binary=self.load,
            unload_module=lambda *_: None,
            get_device_properties=lambda _: {"max_shared_mem": 1 << 17},
        )

    def load(self, *_):
        self.loaded += 1
        return object(), self.loaded, 0, 0, 1024

    def launcher_cls(self, *_):
        return lambda *given: self.started.append(given)

    def get_current_device(self):
        return 1000  # no other test's

    def get_current_stream(self, _):
        return 7

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def driver(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    driver = Driver()
    triton.runtime.driver.set_active(driver)
    yield driver
    from pollard.kernels.products.cuda import code

    for name in ("turn", "spread"):
        getattr(code, name).device_caches.pop(1000, None)
    gc.collect()  # kernels are unloaded by the driver that loaded them
    triton.runtime.driver.set_active(None)


def plain(given):
    """All but what hooks are told, with addresses for tensors, as a launcher takes either."""
    return [each.data_ptr() if isinstance(each, torch.Tensor) else each for each in (*given[:6], *given[7:])]


def test_all_starts_hand_over_what_tritons_own_does(driver):
    batch, features = 20, 30
    launch = Launch("turn", batch, features, features, 1, SIDE=16)
    x, turned = torch.zeros(batch, features), torch.zeros(features, batch)
    for _ in range(3):
        launch((2, 2, 1), (x, turned))
    first, *others = map(plain, driver.started)
    assert others == [first, first]
    assert driver.loaded == 1


def test_only_the_first_start_asks_triton_which_kernel_fits(driver):
    launch, asked = Launch("turn", 20, 30, 30, 1, SIDE=16), []
    launch._kernel.add_pre_run_hook(lambda *_, **__: asked.append(1))
    try:
        for _ in range(3):
            launch((2, 2, 1), (torch.zeros(20, 30), torch.zeros(30, 20)))
    finally:
        launch._kernel.pre_run_hooks.pop()
    assert (len(asked), len(driver.started)) == (1, 3)


def test_operands_that_begin_anywhere_get_a_kernel_of_their_own(driver):
    launch, room = Launch("turn", 20, 30, 30, 1, SIDE=16), torch.zeros(700)
    aligned, other = room[:600].view(20, 30), room[1:601].view(20, 30)
    for x in (aligned, other, aligned, other):
        launch((2, 2, 1), (x, torch.zeros(30, 20)))
    kernels = [each[4] for each in driver.started]
    assert kernels[0] == kernels[2] != kernels[1] == kernels[3]
    assert [plain(each)[8] for each in driver.started] == [each.data_ptr() for each in (aligned, other) * 2]


def test_a_panel_that_begins_elsewhere_does_not(driver):
    width = 32
    arrays = torch.zeros(5, dtype=torch.int32), torch.zeros(4, dtype=torch.uint16), torch.zeros(4, dtype=torch.int32)
    walk = {"OUTS": 1, "INS": 1, "OUT_STEP": 1, "IN_STEP": 1, "PERMUTED": False, "WIDTH": 1, "DEPTH": 16}
    launch = Launch("spread", *arrays, width, **walk)
    for begin in (0, 1, 3, 16):
        launch((2, 1, 1), (torch.zeros(4), torch.zeros(64)), begin)
    assert driver.loaded == 1
    assert [each[11] for each in driver.started] == [0, 1, 3, 16]


def asks(monkeypatch, **answers):
    """Torch's settings of products on CUDA, as some version has them."""
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(**answers))


def test_less_precise_products_are_the_users_choice_at_any_time(monkeypatch):
    asked = []
    monkeypatch.setattr(grains, "Launch", lambda *_, **options: asked.append(options["PRECISION"]) or (lambda *_: None))
    topology = Topology.full((16, 16), "b16x16")
    tensors = torch.ones(1, 16).expand(32, 16).t().contiguous().t(), torch.ones(topology.nnz)
    asks(monkeypatch, fp32_precision="ieee")
    run = cuda.call(Task("input_grad", torch.float32), topology, tensors)
    run(*tensors)
    assert asked == ["tf32x3"]
    asks(monkeypatch, fp32_precision="tf32")
    run(*tensors)
    asks(monkeypatch, fp32_precision="ieee")
    run(*tensors)
    assert asked == ["tf32x3", "tf32"]


@pytest.mark.parametrize("allowed", [False, True])
def test_torch_is_asked_as_its_version_has_it(monkeypatch, allowed):
    asks(monkeypatch, allow_tf32=allowed)
    assert grains.tf32() is allowed
    asks(monkeypatch, fp32_precision="tf32" if allowed else "none")
    assert grains.tf32() is allowed


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 named it")
@pytest.mark.parametrize("way", ["precision", "flag", "name"])
def test_however_the_user_asked(way):
    matmul = torch.backends.cuda.matmul
    try:
        if way == "precision":
            torch.set_float32_matmul_precision("high")
        elif way == "flag":
            matmul.allow_tf32 = True
        else:
            matmul.fp32_precision = "tf32"
        assert grains.tf32()
    finally:
        matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
    assert not grains.tf32()


def test_what_a_device_holds_is_counted_once():
    topology = Topology.random((30, 70), 0.5, "v2", torch.Generator().manual_seed(0))
    topology.transpose()
    place, before = torch.device("meta"), derived_bytes(topology)
    transpose_on(topology, place)
    transposed = 4 * (71 + 2 * topology.grains)
    assert derived_bytes(topology) - before == transposed
    assert columns_on(topology, place).entries is transpose_on(topology, place).permutation
    assert derived_bytes(topology) - before == transposed + 4 * 70
    rows_on(topology, place)
    assert derived_bytes(topology) - before == transposed + 4 * 70 + 4 * 16 + topology.indices.columns.nbytes + 4 * 15


def test_what_lies_right_is_not_turned():
    x = torch.zeros(20, 30)
    for right in (x.t().contiguous().t(), x[: dense.FEW - 1]):
        assert dense.turning(dense.Dense.of(right))(right) is right
        assert cuda.ordered(Topology.random((30, 30), 0.01), right) is None
