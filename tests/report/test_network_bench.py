"""Whole networks: verified, timed in turns, and their costs told layer by layer."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput, KernelError
from pollard.report import network_contest
from pollard.report.dense_ways import NN_LINEAR, PREPARED, PreparedLinear, inference_ways
from pollard.report.network_bench import measure_network
from pollard.report.network_contest import DTYPES, dense_ways, pruned
from pollard.report.network_costs import SPARSE, LayerCost, Matrix, NetworkCosts, network_costs
from pollard.report.network_tables import costs_tables, network_tables
from pollard.report.networks import Workload, outputs


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head, self.unused = nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 10), nn.Linear(16, 16)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def blocks(count: int = 2) -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(16) for _ in range(count)), nn.Linear(16, 10))
    return Workload("blocks", model, (torch.randn(2, 4, 16),))


def measured(workload: Workload, **options):
    return [record.as_json() for record in measure_network(workload, rounds=2, **options)]


@pytest.mark.parametrize("way", PREPARED)
@pytest.mark.parametrize("bias", [True, False])
def test_a_prepared_layer_computes_what_the_linear_layer_does(way, bias):
    if way != "linear" and way not in inference_ways(torch.float32):
        pytest.skip("this torch, on this CPU, has no such way")
    layer = nn.Linear(16, 10, bias)
    prepared = PreparedLinear(layer, way)
    with torch.inference_mode():
        for x in (torch.randn(2, 4, 16), torch.randn(3, 16), torch.randn(5, 3, 16)[:, 0]):
            torch.testing.assert_close(prepared(x), layer(x))


def test_records_say_how_sparse_stands_beside_dense_in_each_precision():
    before = copy.deepcopy(blocks().model.state_dict())
    workload, stages = blocks(), []
    records = measured(
        workload, patterns=["v4", "unstructured"], densities=[0.25], dtypes=list(DTYPES), tell=stages.append
    )
    assert [(one["pattern"], one["dtype"]) for one in records] == [
        (pattern, dtype) for pattern in ("v4", "unstructured") for dtype in DTYPES
    ]
    for one in records:
        assert (one["network"], one["inputs"], one["density"], one["threads"]) == ("blocks", [[2, 4, 16]], 0.25, 1)
        assert one["best_dense_ms"] <= one["dense_ms"]
        assert one["speedup"] == pytest.approx(one["best_dense_ms"] / one["ms"])
        assert one["nn_linear_speedup"] == pytest.approx(one["dense_ms"] / one["ms"])
        assert one["dense_wins"] == (one["speedup"] < 1)
        own = "fp32" if one["dtype"] == "float32" else "bf16"
        assert one["best_dense_ms"] == one[f"{own}_dense_ms"]
        for precision in ("fp32", "bf16"):
            assert one[f"{precision}_speedup"] == pytest.approx(one[f"{precision}_dense_ms"] / one["ms"])
        fastest, slowest = one["spread_ms"][f"pollard {one['pattern']} 0.25 {one['dtype']}"]
        assert fastest <= one["ms"] <= slowest
        assert {"float32 nn.Linear", "bfloat16 nn.Linear"} <= set(one["spread_ms"])
        assert one["machine"]["torch"] == torch.__version__
    assert "timing" in stages[-1]
    after = workload.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_a_pattern_does_not_fit_keeps_single_weights():
    _, [kept] = pruned(blocks(), ["v8"], [0.25])
    layers = dict(kept.sparse.model.named_modules())
    assert str(layers["0.up"].pattern) == "v8"
    assert str(layers["2"].pattern) == "unstructured"
    assert all(abs(layers[name].density - 0.25) < 0.01 for name in ("0.up", "1.down", "2"))


def test_a_tied_layer_stays_dense():
    workload = blocks()
    workload.model[1].up = workload.model[0].up
    workload.model[1].down.weight = workload.model[0].down.weight
    _, [kept] = pruned(workload, ["unstructured"], [0.25])
    kinds = {
        name: type(layer).__name__ for name, layer in kept.sparse.model.named_modules() if "." in name or name == "2"
    }
    assert (kinds["0.down"], kinds["1.down"]) == ("Linear", "Linear")
    assert (kinds["0.up"], kinds["2"]) == ("SparseLinear", "SparseLinear")


def test_a_network_that_is_sparse_is_timed_as_it_is():
    workload = blocks()
    pollard.sparsify_(workload.model, pollard.prune(workload.model, "magnitude", 0.5, pattern="v2", layers=["0", "1"]))
    want = outputs(workload())
    [record] = measured(workload, patterns=["v4"], densities=[0.1])
    assert (record["pattern"], record["density"]) == ("v2", 0.5)
    dense, [kept] = pruned(workload, ["v4"], [0.1])
    for run in (dense, kept.sparse):
        torch.testing.assert_close(outputs(run()), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_sparse_network_is_not_timed(dtype):
    _, [kept] = pruned(blocks(), ["v4"], [0.25])
    kept.contender(dtype).verify()
    with torch.no_grad():
        kept.sparse.model[0].up.values.mul_(-1)
    with pytest.raises(KernelError, match=f"pollard v4 0.25 {dtype}: output 0"):
        kept.contender(dtype).verify()


def test_a_wrong_dense_way_is_not_timed(monkeypatch):
    monkeypatch.setitem(PREPARED, "mm", lambda weight, *_: lambda x: x @ (2 * weight.T))
    monkeypatch.setattr(network_contest, "inference_ways", lambda _: ("mm",))
    with pytest.raises(KernelError, match="float32 mm"):
        measured(blocks())


def test_outputs_that_differ_from_call_to_call_are_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return self.layer(x) + torch.randn(16)

    with pytest.raises(InvalidInput, match="differ from call to call"):
        measured(Workload("noisy", Noisy(), (torch.ones(2, 16),)))


@pytest.mark.parametrize(
    "wrong", [{"dtypes": ["float16"]}, {"patterns": ["v3"]}, {"densities": [0.0]}, {"densities": [2.0]}], ids=str
)
def test_what_cannot_be_measured_is_refused(wrong):
    with pytest.raises(InvalidInput):
        measured(blocks(), **wrong)


def test_torch_compile_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InvalidInput, match="--compile"):
        measured(blocks(), compiled=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, as it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_channels_last_is_one_of_the_ways_of_convolutions(monkeypatch):
    monkeypatch.setattr(network_contest, "SLOWER", 1e9)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4)).eval()
    ways, runs = dense_ways(Workload("convolutions", model, (torch.randn(4, 3, 8, 8),)), "float32")
    assert "channels last" in ways.whole
    assert runs["channels last"].args[0].is_contiguous(memory_format=torch.channels_last)
    assert "channels last" not in dense_ways(blocks().to(torch.float32), "float32")[0].whole


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own import
def test_torch_compile_is_one_of_the_ways(monkeypatch):
    monkeypatch.setattr(network_contest, "SLOWER", 1e9)
    torch.compiler.reset()
    ways, _ = dense_ways(blocks().to(torch.float32), "float32", compiled=True)
    assert {NN_LINEAR, "torch.compile"} <= set(ways.whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_costs_add_up(dtype):
    costs = network_costs(blocks(), pattern="v4", density=0.25, dtype=dtype, rounds=2)
    assert [layer.name for layer in costs.layers] == ["0.up", "0.down", "1.up", "1.down", "2"]
    assert set(costs.total) == {SPARSE, *DTYPES}
    for key, total in costs.total.items():
        assert sum(layer.ms[key] for layer in costs.layers) + costs.rest[key] == pytest.approx(total)
        assert all(layer.ms[key] > 0 for layer in costs.layers)
    [matrix] = costs.layers[0].matrices
    assert (matrix.name, matrix.shape, matrix.rows) == ("0.up", [32, 16], 8)
    assert matrix.density == pytest.approx(0.25)
    assert matrix.kernel.startswith(("gather", "skinny"))
    assert matrix.reason
    assert costs.as_json()["layers"][0]["matrices"][0]["kernel"] == matrix.kernel


def test_convolutions_are_timed_and_told_as_they_are_computed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(4))
    images = torch.randn(4, 3, 12, 12)
    model(images)
    costs = network_costs(Workload("convolutions", model, (images,)), density=0.25, rounds=1)
    [first], [second], [last] = (layer.matrices for layer in costs.layers)
    assert (first.name, first.shape, first.rows) == ("0.linear", [8, 27], 4 * 12 * 12)
    assert (second.shape, second.rows) == ([8, 72], 4 * 10 * 10)
    assert first.kernel.startswith("convolve")
    assert last.kernel.startswith(("gather", "skinny"))


@pytest.mark.parametrize("sparse", [False, True])
def test_norms_are_folded_and_activations_fused_as_for_inference(sparse):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 16)).eval()
    if sparse:
        pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.25))
    dense, [kept] = pruned(Workload("own", model, (torch.randn(4, 16),)), ["unstructured"], [0.25])
    assert not any(isinstance(each, nn.BatchNorm1d) for each in (*dense.model, *kept.sparse.model))
    assert type(dense.model[2]) is nn.GELU
    assert kept.sparse.model[0].activation == "gelu"
    assert type(model[1]) is nn.BatchNorm1d
    kept.contender("float32").verify()
    costs = network_costs(Workload("own", model, (torch.randn(4, 16),)), density=0.25, rounds=1)
    assert ".gelu" in costs.layers[0].matrices[0].kernel


def test_a_layer_that_is_rebuilt_of_several_matrices_is_one_row():
    torch.manual_seed(0)
    costs = network_costs(Workload("recurrent", Recurrent(), (torch.randn(2, 3, 16),)), density=0.25, rounds=1)
    layers = {layer.name: layer for layer in costs.layers}
    assert [matrix.name for matrix in layers["lstm"].matrices] == ["lstm.ih_l0", "lstm.hh_l0"]
    assert layers["unused"].matrices == []
    assert layers["unused"].ms == {SPARSE: 0.0, "float32": 0.0, "bfloat16": 0.0}
    shown = str(costs_tables(costs)[0])
    assert "not called" in shown
    assert "64x16x6" in shown


def test_layers_that_are_alike_share_a_row():
    def layer(index: int) -> LayerCost:
        matrix = Matrix(f"blocks.{index}.up", [8, 4], 2, 0.25, "gather", "fastest of 2")
        return LayerCost(f"blocks.{index}.up", [matrix], {SPARSE: 1.0, "float32": 2.0, "bfloat16": 3.0})

    def shown(count: int) -> str:
        layers = [layer(index) for index in range(count)]
        total = {SPARSE: count + 1.0, "float32": 2.0 * count + 1, "bfloat16": 3.0 * count + 1}
        rest = dict.fromkeys(total, 1.0)
        ways = dict.fromkeys(DTYPES, NN_LINEAR)
        about = ("net", [[2, 4]], "v4", "float32", 0.25, 0.9, 1)
        tables = costs_tables(NetworkCosts(*about, ways, layers, rest, total))
        return "\n".join(map(str, tables))

    few, many = shown(2), shown(20)
    assert "blocks.1.up" in few
    assert "blocks.*.up (20) 8x4x2 0.25 20 40 60 2.00x" in " ".join(many.split())
    assert many.count("blocks") == 1
    assert "rest of the network" in many
    assert many.count("fastest of 2") == 1


def test_a_row_that_dense_wins_says_so():
    [record] = measured(blocks())
    won, lost = (str(network_tables([record | {"dense_wins": wins, "speedup": 2.0}])[0]) for wins in (True, False))
    assert ("dense wins" in won, "dense wins" in lost) == (True, False)
    assert "blocks on 2x4x16, 1 thread" in lost
