"""bfloat16 and float16: every result is the product in float32, rounded once."""

import pytest
import torch

from parity import HALVES, assert_parity
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.kernels.code.target import TARGETS
from pollard.kernels.products import dispatch
from pollard.kernels.products.explanation import explain
from pollard.kernels.products.generated import WORTH


@pytest.mark.pairwise
@pytest.mark.parametrize(
    ("batch", "layout"),
    [
        (1, "strided"),
        (2, "column-major"),
        (7, "row-major"),
        (33, "column-major"),
        (64, "column-major"),
        (301, "row-major"),
    ],
)
@pytest.mark.parametrize("pattern", ["unstructured", "v2", "v16", "b4x2", "2:4"])
@pytest.mark.parametrize("dtypes", HALVES, ids=str)
def test_half_precision_is_rounded_once(isa, dtypes, pattern, batch, layout):
    for shape, density in (((48, 100), 0.5), ((16, 8), 0.5), ((16, 2100), 0.5 if pattern == "2:4" else 0.02)):
        topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(5))
        assert_parity(topology, batch, layout, *dtypes)


@pytest.mark.pairwise
@pytest.mark.parametrize("batch", [1, 2, 7, 8, 16])
@pytest.mark.parametrize("layout", ["column-major", "row-major", "strided"])
@pytest.mark.parametrize("pattern", ["unstructured", "v4", "b4x2", "2:4"])
@pytest.mark.parametrize("dtypes", HALVES, ids=str)
def test_few_samples_of_many_weights_are_rounded_once(isa, dtypes, pattern, layout, batch):
    topology = Topology.random((160, 512), 0.5, pattern, torch.Generator().manual_seed(5))
    assert topology.nnz > WORTH
    assert_parity(topology, batch, layout, *dtypes)


@pytest.mark.parametrize("operation", ["forward", "input_grad", "value_grad"])
def test_few_samples_of_many_weights_are_read_as_float32(isa, operation):
    def numbers(shape, dtype):
        spec = explain(operation, shape, 0.5, "v4", dtype=dtype).spec
        return spec.numbers, spec.values

    lanes = TARGETS[isa].lanes
    for dtype in ("bfloat16", "float16"):
        assert numbers((160, 512, lanes), dtype) == ("float32", dtype)
        assert numbers((160, 512, lanes + 1), dtype) == numbers((16, 512, lanes), dtype) == (dtype, dtype)


@pytest.mark.parametrize("pattern", ["unstructured", "v4", "v16"])
def test_one_topology_serves_batches_of_one_step_and_of_several(isa, pattern):
    topology = Topology.random((48, 100), 0.3, pattern, torch.Generator().manual_seed(5))
    for batch in (200, 300, 256, 257, 512):
        assert_parity(topology, batch, "row-major", torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_as_torch_does(isa, dtype):
    # Every number in half precision, and all that lies half way between two of them.
    bits = torch.arange(1 << 16).to(torch.int32)
    halves = bits.to(torch.uint16).view(dtype).float()
    tiny = torch.finfo(torch.float32).smallest_normal  # smaller ones kernels flush to zero
    numbers = torch.cat((halves, (halves + halves.roll(-1)) / 2))
    numbers = numbers[~numbers.isnan() & ((numbers == 0) | (numbers.abs() >= tiny))]
    # Each one is a bias, a value of float32 beside nothing that is kept but a weight of 0.
    topology = Topology.full((len(numbers), 1))
    for batch in (1, 3, 40):
        y = dispatch.forward(torch.zeros(batch, 1, dtype=dtype), torch.zeros(len(numbers)), topology, numbers)
        assert torch.equal(y, numbers.to(dtype).expand(batch, -1))


@pytest.mark.parametrize("wrong", [torch.float16, torch.float64])
def test_values_are_of_the_inputs_dtype_or_float32(isa, wrong):
    topology, x = Topology.full((3, 2)), torch.ones(4, 2, dtype=torch.bfloat16)
    with pytest.raises(InvalidInput, match="or float32"):
        dispatch.forward(x, torch.ones(6, dtype=wrong), topology)
    with pytest.raises(InvalidInput, match="bias"):
        dispatch.forward(x, torch.ones(6), topology, torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(InvalidInput, match="gradient of values"):
        dispatch.value_grad(torch.ones(4, 3, dtype=torch.bfloat16), x, topology, wrong)
