"""The doctor finds a kernel that is wrong, one that fell back, and one that raised."""

from __future__ import annotations

import warnings

import pytest
import torch

from pollard.errors import KernelError, KernelFallback
from pollard.kernels.convolutions import dispatch
from pollard.kernels.products.backend import CUDA, TORCH_SPARSE
from pollard.ops import matmul
from pollard.report import doctor
from pollard.report.dense_ways import PACKED, WITH_WEIGHT
from pollard.report.doctor import (
    KINDS,
    SIDES,
    Check,
    Diagnosis,
    convolution_checks,
    dense_compared,
    dense_float32,
    examine,
    kernel_checks,
)


def failing(monkeypatch, broken) -> dict[str, str]:
    monkeypatch.setattr(matmul, "input_grad", broken)
    return {check.name: check.detail for check in kernel_checks() if not check.ok}


def test_every_operation_on_every_pattern_is_right_here():
    checks = kernel_checks()
    assert len({check.name for check in checks}) == len(checks) == 3 * len(KINDS)
    assert [check for check in checks if not check.ok] == []


def test_a_wrong_kernel_is_found(monkeypatch):
    right = matmul.input_grad
    found = failing(monkeypatch, lambda *operands: right(*operands) * 1.1)
    assert len(found) == len(KINDS)
    assert "input_grad v4" in found


def test_a_kernel_that_computes_nothing_is_found(monkeypatch):
    right = matmul.input_grad
    assert len(failing(monkeypatch, lambda *operands: right(*operands) * float("nan"))) == len(KINDS)


def test_convolutions_are_checked_on_images_of_each_layout(monkeypatch):
    assert all(check.ok for check in convolution_checks())
    right = dispatch.input_grad
    monkeypatch.setattr(dispatch, "input_grad", lambda *operands: right(*operands) * 1.1)
    wrong = [check.name for check in convolution_checks() if not check.ok]
    assert wrong == [
        f"convolution input_grad {kind}, {side} x {side}" for kind in ("unstructured", "v4") for side in SIDES
    ]


def test_a_convolution_that_is_unfolded_is_a_failure(monkeypatch):
    def fell_back(*_, **__):
        warnings.warn("could not be compiled", KernelFallback, stacklevel=1)

    monkeypatch.setattr(dispatch, "forward", fell_back)
    failed = {check.name: check.detail for check in convolution_checks() if not check.ok}
    assert failed["convolution forward v4, 20 x 20"] == "could not be compiled"
    assert len(failed) == 2 * len(SIDES)


def test_a_fallback_is_a_failure_though_the_result_is_right(monkeypatch):
    right = matmul.input_grad

    def fell_back(*operands):
        warnings.warn("could not be compiled", KernelFallback, stacklevel=1)
        return right(*operands)

    assert failing(monkeypatch, fell_back)["input_grad v2"] == "could not be compiled"


def test_a_kernel_error_is_a_failure_not_a_crash(monkeypatch):
    def refused(*_):
        raise KernelError("an LLVM error", "IR that compiles", "Report it.")

    assert "LLVM" in failing(monkeypatch, refused)["input_grad v8"]


def test_a_read_only_folder_is_told(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("POLLARD_CACHE", str(blocked))
    assert "NOT writable" in examine().facts["cache folder"]
    monkeypatch.setenv("POLLARD_CACHE", str(tmp_path / "later"))
    assert "can be" in examine().facts["cache folder"]
    monkeypatch.setenv("POLLARD_CACHE", str(tmp_path))
    assert examine().facts["cache folder"].endswith("(writable)")


@pytest.mark.parametrize("oks", [(), (True,), (True, False)])
def test_healthy_means_every_check(oks):
    assert Diagnosis({}, [Check("c", ok=ok, detail="") for ok in oks]).healthy == all(oks)


def test_dense_torch_is_measured_on_one_thread_and_threads_are_put_back(monkeypatch):
    before, used = torch.get_num_threads(), []

    def timed(calls, rounds):
        used.append(torch.get_num_threads())
        return {way: [1.0] * rounds for way in calls}

    monkeypatch.setattr(doctor, "interleaved", timed)
    assert "nn.Linear" in dense_float32()
    assert used in ([1], [])
    assert torch.get_num_threads() == before


def test_a_slow_nn_linear_is_told_with_what_to_do():
    assert "freezing" not in dense_compared(100.0, 124.0)
    told = dense_compared(100.0, 220.0)
    assert "2.20 times as long" in told
    assert "torch._inductor.config.freezing" in told


def test_a_torch_without_onednn_is_told(monkeypatch):
    def missing(*_):
        raise AttributeError

    monkeypatch.setitem(WITH_WEIGHT, PACKED, missing)
    assert "no oneDNN" in dense_float32()


def test_it_says_whether_there_is_an_instruction_for_pairs_of_bfloat16_numbers(monkeypatch):
    told = {}
    for found in (False, True):
        monkeypatch.setattr(doctor.target, "adds_pairs", lambda found=found: found)
        told[found] = doctor._machine(None)["bfloat16"]
    assert told[True].startswith("multiplied in pairs")
    assert "no instruction" in told[False]


@pytest.mark.parametrize("refused", ["", "no leave"])
def test_it_says_why_there_are_no_tiles(monkeypatch, refused):
    monkeypatch.setattr(doctor.target, "without_tiles", lambda: refused)
    told = doctor._machine(None)["tiles"]
    assert told == refused or (not refused and "16 rows" in told)


def test_a_gpu_is_named_and_its_kernels_are_checked(monkeypatch):
    assert doctor._gpu() == "none that torch finds"
    assert doctor.gpu_checks() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU of a test")
    monkeypatch.setattr(doctor, "choose", lambda *_: (TORCH_SPARSE, "Triton kernels: too old"))
    assert doctor._gpu() == "GPU of a test: torch.sparse (Triton kernels: too old)"
    assert doctor.gpu_checks() == []
    monkeypatch.setattr(doctor, "choose", lambda *_: (CUDA, "serves"))
    places = []
    monkeypatch.setattr(doctor._Operands, "to", lambda own, device: places.append(device) or own)
    assert doctor._gpu() == "GPU of a test: Triton kernels"
    found = doctor.gpu_checks()
    assert places == ["cuda"] * len(found)
    assert len(found) == len(doctor.kernel_checks())
    assert all(each.ok and each.name.endswith(" on CUDA") for each in found)
