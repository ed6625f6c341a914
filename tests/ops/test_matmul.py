"""The operators as torch sees them: checks, derivatives of any order, compilers, export, autocast."""

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from pollard.errors import InvalidInput, PollardError
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.nn import SparseLinear
from pollard.ops import matmul, operators, transforms
from strategies import topologies

OPS = torch.ops.pollard


def topology(pattern="v2"):
    return Topology.random((8, 6), 0.5, pattern, torch.Generator().manual_seed(0))


def arguments(operation, dtype=torch.float32):
    kept = topology()
    arrays = kept.indices
    made = torch.Generator().manual_seed(1)

    def leaf(*shape):
        return torch.randn(*shape, generator=made, dtype=dtype, requires_grad=True)

    return {
        "linear": (leaf(5, 6), leaf(kept.nnz), *arrays, leaf(8), 6, "v2", False),
        "linear with relu": (leaf(5, 6), leaf(kept.nnz), *arrays, leaf(8), 6, "v2", True),
        "linear without bias": (leaf(5, 6), leaf(kept.nnz), *arrays, None, 6, "v2", False),
        "input_grad": (leaf(5, 8), leaf(kept.nnz), *arrays, 6, "v2"),
        "value_grad": (leaf(5, 8), leaf(5, 6), *arrays, 6, "v2"),
    }[operation]


CASES = ("linear", "linear with relu", "linear without bias", "input_grad", "value_grad")


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # torch's own tracing tools warn about themselves
@pytest.mark.parametrize("case", CASES)
def test_operators_pass_torchs_own_checks(case):
    torch.library.opcheck(getattr(OPS, case.split()[0]), arguments(case))


@pytest.mark.parametrize("case", CASES)
def test_derivatives_of_first_and_second_order_are_exact(case):
    operator, values = getattr(OPS, case.split()[0]), arguments(case, torch.float64)
    leaves = [value for value in values if isinstance(value, torch.Tensor) and value.requires_grad]

    def product(*given):
        rest = iter(given)
        return operator(*(next(rest) if isinstance(v, torch.Tensor) and v.requires_grad else v for v in values))

    assert torch.autograd.gradcheck(product, leaves)
    assert torch.autograd.gradgradcheck(product, leaves)


def test_the_short_way_of_eager_code_gives_the_same_bits_and_derivatives():
    torch.manual_seed(0)
    kept = topology()

    def small_integers(*shape):  # all sums are exact, in whatever order a kernel of this CPU adds
        return torch.randint(-2, 3, shape).float()

    x, values, bias = small_integers(5, 6), small_integers(kept.nnz), small_integers(8)
    outcomes = []

    def at_once(x, values, bias):
        return matmul.linear(x, values, kept, bias, activation="relu")

    def dispatched(x, values, bias):
        return OPS.linear(x, values, *kept.indices, bias, 6, "v2", True)

    def transformed(x, values, bias):
        return transforms.linear(x, values, bias, kept, relu=True)

    for through in (dispatched, at_once, transformed):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, values, bias)]
        y = through(*leaves)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), leaves)
        plain = torch.autograd.grad(through(*leaves).sum(), leaves)
        outcomes.append([y, *first, *second, *plain])
    for ours, theirs, others in zip(*outcomes, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, others)


@given(topologies(smallest=1), st.integers(1, 5))
@settings(max_examples=50)
def test_gradients_equal_those_of_the_dense_product(kept, batch):
    made = torch.Generator().manual_seed(0)
    values = torch.randn(kept.nnz, generator=made, requires_grad=True)
    x = torch.randn(batch, kept.shape[1], generator=made, requires_grad=True)
    dense = torch.zeros(kept.shape[0] * kept.shape[1]).index_put((kept.weight_positions(),), values).view(kept.shape)
    upstream = torch.randn(batch, kept.shape[0], generator=made)
    ours = torch.autograd.grad(matmul.linear(x, values, kept), (x, values), upstream)
    theirs = torch.autograd.grad(x @ dense.t(), (x, values), upstream)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        SparseLinear.random(6, 8, 0.5, "v2"), torch.nn.ReLU(), SparseLinear.random(8, 4, 0.5), torch.nn.Tanh()
    )


@pytest.mark.filterwarnings("ignore")  # the compilers of torch warn about their own internals
@pytest.mark.slow
def test_one_graph_for_the_compiler_and_the_same_numbers():
    model, x = network(), torch.randn(5, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(x)
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for ours, theirs in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad)
    assert compiled(torch.randn(9, 6)).shape == (9, 4)


@pytest.mark.filterwarnings("ignore")  # the compilers of torch warn about their own internals
@pytest.mark.slow
def test_export_and_back_from_a_file():
    model, x = network(), torch.randn(5, 6)
    batch = torch.export.Dim("batch", min=2, max=64)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: batch},)), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    other = torch.randn(11, 6)
    torch.testing.assert_close(loaded(other), model(other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("watched", [False, True])
def test_under_autocast_products_are_rounded_once_and_values_stay_float32(dtype, watched):
    model, x = network(), torch.randn(5, 6, requires_grad=True)
    with torch.autocast("cpu", dtype), FlopCounterMode(display=False) if watched else nullcontext():
        y = model[0](x)
    assert y.dtype == dtype
    y.sum().backward()
    layer = model[0]
    assert layer.values.grad.dtype == layer.bias.grad.dtype == torch.float32 == x.grad.dtype
    weight = SparseMatrix(layer.values.detach(), layer.topology).to_dense()
    rounded = x.detach().to(dtype)
    exact = rounded.double() @ weight.double().t() + layer.bias.double()
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    exact = torch.ones(5, 8).t() @ rounded.float()
    torch.testing.assert_close(layer.values.grad, exact.flatten()[layer.topology.weight_positions()])


def test_autocast_leaves_double_precision_alone():
    with torch.autocast("cpu", torch.bfloat16):
        assert network().double()(torch.randn(5, 6).double()).dtype == torch.float64


BAD = {
    "features": lambda kept, a: OPS.linear(torch.ones(5, 7), torch.ones(kept.nnz), *a, None, 6, "v2", False),
    "dimensions": lambda kept, a: OPS.linear(torch.ones(6), torch.ones(kept.nnz), *a, None, 6, "v2", False),
    "integers": lambda kept, a: OPS.linear(torch.ones(5, 6).int(), torch.ones(kept.nnz), *a, None, 6, "v2", False),
    "values": lambda kept, a: OPS.linear(torch.ones(5, 6), torch.ones(kept.nnz + 1), *a, None, 6, "v2", False),
    "dtypes": lambda kept, a: OPS.linear(torch.ones(5, 6), torch.ones(kept.nnz).double(), *a, None, 6, "v2", False),
    "bias": lambda kept, a: OPS.linear(torch.ones(5, 6), torch.ones(kept.nnz), *a, torch.ones(9), 6, "v2", False),
    "rows": lambda kept, a: OPS.linear(torch.ones(5, 6), torch.ones(kept.nnz), *a, None, 6, "v3", False),
    "grad": lambda kept, a: OPS.input_grad(torch.ones(5, 9), torch.ones(kept.nnz), *a, 6, "v2"),
    "width": lambda kept, a: OPS.input_grad(torch.ones(5, 8), torch.ones(kept.nnz), *a, 1, "v2"),
    "batches": lambda kept, a: OPS.value_grad(torch.ones(5, 8), torch.ones(4, 6), *a, 6, "v2"),
    "pointers": lambda kept, a: OPS.linear(
        torch.ones(5, 6), torch.ones(kept.nnz), a[0] + 1, a[1], None, 6, "v2", False
    ),
    "columns": lambda kept, a: OPS.linear(
        torch.ones(5, 6), torch.ones(kept.nnz), a[0], a[1].int() + 99, None, 6, "v2", False
    ),
    "no rows": lambda kept, a: OPS.linear(torch.ones(5, 6), torch.ones(kept.nnz), a[0][:0], a[1], None, 6, "v2", False),
    "floats": lambda kept, a: OPS.linear(
        torch.ones(5, 6), torch.ones(kept.nnz), a[0], a[1].float(), None, 6, "v2", False
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_operands_are_refused_before_any_kernel_runs(case):
    kept = topology()
    with pytest.raises(PollardError):
        BAD[case](kept, kept.indices)


def test_arrays_of_ones_own_that_were_written_to_are_validated_again():
    kept = topology("unstructured")
    pointers, columns = kept.row_pointers, kept.columns
    call = (torch.ones(5, 6), torch.ones(kept.nnz), pointers, columns, None, 6, "unstructured", False)
    OPS.linear(*call)
    columns[0] = 6
    with pytest.raises(InvalidInput, match="column"):
        OPS.linear(*call)


def test_inference_arrays_are_compared_since_their_writes_are_not_counted():
    with torch.inference_mode():
        kept = topology("unstructured")
        pointers, columns = kept.row_pointers.clone(), kept.columns.clone()
        call = (torch.ones(5, 6), torch.ones(kept.nnz), pointers, columns, None, 6, "unstructured", False)
        OPS.linear(*call)
        columns[:] = 10**9
        with pytest.raises(InvalidInput, match="columns"):
            OPS.linear(*call)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("inference", [True, False])
def test_columns_are_taken_as_any_integers_that_hold_them(dtype, inference):
    kept = Topology.from_positions((2, 65_536), "unstructured", torch.tensor([1, 40_000, 65_535, 131_071]))
    x, values = torch.randn(3, 65_536), torch.randn(4)
    expected = x @ SparseMatrix(values, kept).to_dense().t()
    with torch.inference_mode(inference):
        # Of int16 the bits count.
        columns = kept.columns.to(torch.uint16).view(dtype) if dtype is torch.int16 else kept.columns.to(dtype)
        for _ in range(2):
            y = OPS.linear(x, values, kept.row_pointers, columns, None, 65_536, "unstructured", False)
            torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, lambda model: make_fx(model)(torch.ones(5, 6))])
def test_what_is_traced_can_be_pickled(trace):
    model = torch.nn.Sequential(SparseLinear(6, 8, topology()))
    expected = model(torch.ones(5, 6))
    read = pickle.loads(pickle.dumps(trace(model)))
    torch.testing.assert_close(read(torch.ones(5, 6)), expected)


@pytest.fixture
def never_validated(monkeypatch):
    def refuse(*_):
        pytest.fail("validated again")

    return lambda: monkeypatch.setattr(operators, "Topology", refuse)


def test_a_validated_topology_is_not_validated_again(never_validated):
    kept = topology()
    never_validated()
    OPS.linear(torch.ones(5, 6), torch.ones(kept.nnz), *operators.arrays(kept)[:2], None, 6, "v2", False)


def test_arrays_of_ones_own_are_validated_once(never_validated):
    kept = topology()
    call = (torch.ones(5, 6), torch.ones(kept.nnz), kept.row_pointers, kept.columns, None, 6, "v2", False)
    first = OPS.linear(*call)
    never_validated()
    assert torch.equal(OPS.linear(*call), first)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda array: pickle.loads(pickle.dumps(array))])
def test_copies_of_known_arrays_are_validated_for_themselves(copied):
    kept = topology("unstructured")
    pointers, columns = operators.arrays(kept)[:2]
    other = copied(columns)
    other[0] = 99
    with pytest.raises(InvalidInput, match="column"):
        OPS.linear(torch.ones(5, 6), torch.ones(kept.nnz), pointers, other, None, 6, "unstructured", False)


@given(st.data())
@settings(max_examples=150)
def test_no_index_arrays_crash_the_process(data):
    pointers = torch.tensor(data.draw(st.lists(st.integers(-3, 9), max_size=6)), dtype=torch.int32)
    columns = torch.tensor(data.draw(st.lists(st.integers(-3, 9), max_size=9)), dtype=torch.int32)
    pattern = data.draw(st.sampled_from(["unstructured", "v2", "v3", "b2x2", "2:4", "", "v-1"]))
    values = torch.ones(data.draw(st.integers(0, 12)))
    x = torch.ones(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 8)))
    try:
        y = OPS.linear(x, values, pointers, columns, None, data.draw(st.integers(0, 8)), pattern, False)
    except PollardError:
        return
    assert y.shape == ((len(pointers) - 1) * Pattern.parse(pattern).rows, x.shape[0])[::-1]
