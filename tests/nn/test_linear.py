"""A sparse layer behaves as a torch module should: copies, files, dtypes, optimizers, shapes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import pollard
from pollard.activations import ACTIVATIONS
from pollard.errors import InvalidInput, PatternError
from pollard.formats.topology import Topology
from pollard.kernels.code.target import current
from pollard.nn import SparseLinear, initialise


def layer(pattern="unstructured", **options):
    return SparseLinear.random(20, 16, 0.3, pattern, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("pattern", ["unstructured", "v2", "v4", "v8", "v16"])
@pytest.mark.parametrize("bias", [True, False])
def test_there_and_back_from_dense(pattern, bias):
    dense = nn.Linear(20, 16, bias=bias)
    kept = Topology.random((16, 20), 0.4, pattern)
    sparse = SparseLinear.from_dense(dense, kept.mask(), pattern=pattern)
    again = sparse.to_dense()
    assert torch.equal(again.weight, dense.weight * kept.mask())
    assert torch.equal(again.bias, dense.bias) if bias else again.bias is None
    x = torch.randn(7, 20)
    torch.testing.assert_close(sparse(x), again(x))
    assert sparse.topology.same_as(kept)
    assert (str(sparse.pattern), sparse.density) == (pattern, kept.density)


@pytest.mark.parametrize("shape", [(20,), (5, 20), (2, 3, 20), (0, 20), (2, 0, 20)])
def test_leading_dimensions_are_any(shape):
    sparse = layer()
    x = torch.randn(shape)
    torch.testing.assert_close(sparse(x), sparse.to_dense()(x))


def test_fused_relu_is_relu():
    dense, kept = nn.Linear(20, 16), Topology.random((16, 20), 0.4)
    x = torch.randn(9, 20)
    fused, plain = (SparseLinear.from_dense(dense, kept, activation=name) for name in ("relu", None))
    assert torch.equal(fused(x), plain(x).relu())
    fused(x).square().sum().backward()
    plain(x).relu().square().sum().backward()
    torch.testing.assert_close(fused.values.grad, plain.values.grad)
    torch.testing.assert_close(fused.bias.grad, plain.bias.grad)
    with pytest.raises(InvalidInput, match="fused activation"):
        fused.to_dense()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_fused_activation_is_torchs(activation):
    fused, plain = (
        SparseLinear.random(20, 16, 0.4, generator=torch.Generator().manual_seed(0), activation=name)
        for name in (activation, None)
    )
    theirs = ACTIVATIONS[activation]
    for x in (torch.randn(9, 20), torch.randn(2, 3, 20), torch.randn(20)):
        torch.testing.assert_close(fused(x), theirs(plain(x)))
        with torch.no_grad():
            torch.testing.assert_close(fused(x), theirs(plain(x)))
        with torch.inference_mode():
            assert fused(x).stride() == plain(x).stride()
    x, again = (torch.linspace(-2, 2, 180).view(9, 20).requires_grad_() for _ in range(2))
    fused(x).square().sum().backward()
    theirs(plain(again)).square().sum().backward()
    for ours, true in ((x, again), (fused.values, plain.values), (fused.bias, plain.bias)):
        torch.testing.assert_close(ours.grad, true.grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_fused_activation_on_every_way(activation):
    layer = SparseLinear.random(
        20, 16, 0.4, generator=torch.Generator().manual_seed(0), activation=activation
    ).requires_grad_(False)
    x = torch.randn(9, 20)
    expected = layer(x)
    ways = {
        "operator": torch.compile(layer, fullgraph=True, backend="eager"),
        "exported": torch.export.export(layer, (x,)).module(),
        "transformed": torch.func.vmap(layer),
    }
    for name, way in ways.items():
        torch.testing.assert_close(way(x), expected, msg=name)
    wide = layer.double()
    torch.testing.assert_close(wide(x.double()).float(), expected)
    with torch.autocast("cpu"):
        assert layer.float()(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x).float(), expected, rtol=2e-2, atol=2e-2)


def test_an_activation_that_kernels_do_not_have_is_refused():
    with pytest.raises(InvalidInput, match=r"activation 'tanh'.*one of relu, gelu, gelu_tanh, silu"):
        SparseLinear.random(20, 16, 0.4, activation="tanh")
    late = SparseLinear.random(20, 16, 0.4)
    late.activation = "tanh"
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises(InvalidInput, match="activation 'tanh'"):
            late(torch.randn(3, 20))


def test_a_chain_of_layers_reads_features_first_without_transposing():
    first, second = layer(), SparseLinear.random(16, 12, 0.5)
    hidden = first(torch.randn(9, 20)).relu()
    assert hidden.stride() == (1, 9)
    assert second(hidden).stride() == (1, 9)


def test_the_gradient_in_an_input_lies_as_the_input_does():
    block, rows = SparseLinear.random(32, 16, 0.3), torch.randn(9, 32)
    columns = rows.t().contiguous().t()
    for x in (rows, columns):
        (gradient,) = torch.autograd.grad(block(x.requires_grad_()).square().sum(), x)
        assert gradient.stride() == x.stride()
        torch.testing.assert_close(gradient, torch.autograd.grad(block.to_dense()(x).square().sum(), x)[0])


@pytest.mark.parametrize("width", [16, 13])
def test_outputs_of_more_dimensions_can_be_viewed_as_torch_s_can(width):
    block, x = SparseLinear.random(32, width, 0.3), torch.randn(3, 5, 32)
    for way in (block, torch.compile(block, backend="eager"), torch.export.export(block, (x,)).module()):
        torch.testing.assert_close(way(x).view(3, -1), block.to_dense()(x).view(3, -1))
    with torch.profiler.profile():
        assert block(x).is_contiguous()


@pytest.mark.skipif(current() is None, reason="plain torch leaves gradients features first")
def test_outputs_of_more_dimensions_and_their_gradients_have_contiguous_rows():
    block, x = SparseLinear.random(32, 16, 0.3), torch.randn(3, 5, 32)
    inner = x.clone().requires_grad_()
    y = block(inner)
    assert y.is_contiguous()
    flat = x.reshape(15, 32).requires_grad_()
    assert torch.equal(y, block(flat).reshape(3, 5, 16))
    (given,) = torch.autograd.grad(y.square().sum(), inner)
    assert given.is_contiguous()
    assert torch.equal(given, torch.autograd.grad(block(flat).square().sum(), flat)[0].reshape(3, 5, 32))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        lambda p: torch.optim.Adam(p, fused=True),
    ],
)
def test_every_optimizer_steps_it_and_holds_state_of_what_is_kept(optimizer):
    sparse = layer("v4")
    stepper = optimizer(sparse.parameters())
    before = sparse.values.detach().clone()
    for _ in range(2):
        stepper.zero_grad()
        sparse(torch.randn(8, 20)).square().mean().backward()
        nn.utils.clip_grad_norm_(sparse.parameters(), 1.0)
        stepper.step()
    assert not torch.equal(before, sparse.values)
    held = sum(t.numel() for state in stepper.state.values() for t in state.values() if torch.is_tensor(t))
    assert held <= 2 * (sparse.values.numel() + 16) + 2
    assert sparse.values.grad.shape == sparse.values.shape


def test_copies_share_the_frozen_indices_and_nothing_else():
    sparse = layer()
    sparse(torch.randn(3, 20))
    for other in (copy.deepcopy(sparse), copy.deepcopy(nn.Sequential(sparse))[0]):
        assert other.topology is sparse.topology
        other.values.data.zero_()
        assert sparse.values.abs().sum() > 0
        other(torch.randn(3, 20)).sum().backward()
        assert sparse.values.grad is None


def test_pickled_whole_and_as_state():
    sparse, x = layer("v2"), torch.randn(3, 20)
    whole = pickle.loads(pickle.dumps(sparse))
    assert torch.equal(whole(x), sparse(x))
    buffer = io.BytesIO()
    torch.save(sparse.state_dict(), buffer)
    buffer.seek(0)
    fresh = SparseLinear.random(20, 16, 0.1)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(x), sparse(x))
    assert fresh.pattern == sparse.pattern


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_of_another_nnz_loads_in_place(assign):
    source, target = layer(), SparseLinear.random(20, 16, 0.7)
    values = target.values
    target.load_state_dict(source.state_dict(), assign=assign)
    assert torch.equal(target.values, source.values)
    assert target.topology.same_as(source.topology)
    if not assign:
        assert target.values is values
        before = source.values.detach().clone()
        target.values.data.add_(1)
        assert torch.equal(source.values, before)
    target(torch.randn(3, 20)).sum().backward()


def test_a_state_of_the_same_topology_keeps_the_validated_one():
    source, target = layer(), layer()
    kept = target.topology
    target.load_state_dict(source.state_dict())
    assert target.topology is kept


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.update(columns=state["columns"] + 20),
        lambda state: state.update(columns=state["columns"].flip(0)),
        lambda state: state.update(row_pointers=state["row_pointers"][:-1]),
        lambda state: state.update(row_pointers=state["row_pointers"][:0]),
        lambda state: state.update(values=state["values"][:-1]),
        lambda state: state.update(values=state["values"][:, None]),
        lambda state: state.pop("columns"),
        lambda state: state.pop("bias"),
        lambda state: state.update(extra=torch.ones(1)),
    ],
)
def test_a_damaged_state_is_refused_and_the_layer_still_works(damage):
    sparse, x = layer(), torch.randn(3, 20)
    expected = sparse(x).detach().clone()
    state = dict(sparse.state_dict())
    state = {name: tensor.clone() for name, tensor in state.items()}
    damage(state)
    with pytest.raises(RuntimeError):
        sparse.load_state_dict(state)
    assert torch.equal(sparse(x), expected)


def test_dtypes_convert_values_and_leave_indices_alone():
    sparse, x = layer(), torch.randn(3, 20)
    expected = sparse(x)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 5e-2)):
        other = copy.deepcopy(sparse).to(dtype)
        assert other.columns.dtype == torch.int32
        torch.testing.assert_close(other(x.to(dtype)).float(), expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(InvalidInput, match=r"\.to\(dtype\)"):
        sparse(x.double())


def test_numbers_that_are_gone_come_back_with_a_state():
    sparse, x = layer(), torch.randn(3, 20)
    expected, state = sparse(x), copy.deepcopy(sparse.state_dict())
    sparse.to("meta")
    with pytest.raises(InvalidInput, match=r"values on meta for an input on cpu.*assign=True"):
        sparse(x)
    sparse.load_state_dict(state, assign=True)
    assert torch.equal(sparse(x), expected)


def test_wrong_shapes_are_named():
    with pytest.raises(InvalidInput, match="rows are outputs"):
        SparseLinear(16, 20, Topology.full((16, 20)))
    with pytest.raises(InvalidInput, match="shape of the weight"):
        SparseLinear.from_dense(nn.Linear(3, 2), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(PatternError, match=r"Topology\.covering"):
        SparseLinear.from_dense(nn.Linear(3, 2), torch.tensor([[True] * 3, [False] * 3]), "v2")
    with pytest.raises(InvalidInput, match="in_features"):
        layer()(torch.randn(3, 21))


@pytest.mark.parametrize("name", ["uniform", "kaiming_normal", "lecun_normal"])
def test_initial_values_have_the_variance_of_the_kept_fan_in(name):
    mask = torch.zeros(4000, 50, dtype=torch.bool)
    mask[:2000, :2] = True
    mask[2000:, :] = True
    kept = Topology.from_mask(mask, "v4")
    values = getattr(initialise, name)(kept, torch.Generator().manual_seed(0))
    thin, wide = values[:4000], values[4000:]
    expected = {"uniform": 1 / 3, "kaiming_normal": 2.0, "lecun_normal": 1.0}[name]
    assert thin.var().item() == pytest.approx(expected / 2, rel=0.1)
    assert wide.var().item() == pytest.approx(expected / 50, rel=0.1)


def test_rows_that_keep_nothing_give_their_bias():
    sparse = SparseLinear(5, 3, Topology.from_mask(torch.zeros(3, 5, dtype=torch.bool)))
    assert torch.equal(sparse.bias, torch.zeros(3))
    assert torch.equal(sparse(torch.randn(2, 5)), torch.zeros(2, 3))


def test_born_sparse_where_the_dense_weight_could_not_exist():
    huge = SparseLinear.random(2_000_000, 2_000_000, 1e-9)
    assert huge.values.numel() == 4000
    assert huge(torch.ones(1, 2_000_000)).shape == (1, 2_000_000)


def test_the_same_generator_gives_the_same_layer():
    first, second = (layer("v2").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_prints_what_it_is():
    assert repr(layer("v4")) == ("SparseLinear(in_features=20, out_features=16, density=0.3, pattern=v4, bias=True)")
    assert pollard.nn.SparseLinear is SparseLinear


@pytest.mark.parametrize("strict", [True, False])
def test_a_dense_state_is_told_apart_from_a_missing_one(strict):
    with pytest.raises(RuntimeError, match="dense weight for a sparse layer"):
        nn.Sequential(layer()).load_state_dict(nn.Sequential(nn.Linear(20, 16)).state_dict(), strict=strict)
    assert "0.values" in nn.Sequential(layer()).load_state_dict({}, strict=False).missing_keys


def test_a_state_without_a_layer_s_weight_brings_the_rest():
    model, other = nn.Sequential(layer()), torch.arange(16.0)
    found = model.load_state_dict({"0.bias": other}, strict=False)
    assert set(found.missing_keys) == {"0.values", "0.row_pointers", "0.columns"}
    assert torch.equal(model[0].bias, other)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"0.bias": other})


@pytest.mark.parametrize("left_out", [["row_pointers", "columns", "pattern"], ["columns"], ["values"]])
def test_values_are_not_loaded_without_saying_where_they_stand(left_out):
    model, before = nn.Sequential(layer()), copy.deepcopy(layer().state_dict())
    state = {f"0.{name}": tensor + 1 for name, tensor in before.items() if name not in left_out}
    with pytest.raises(RuntimeError, match=r"got .* alone; expected values, row_pointers, columns"):
        model.load_state_dict(state, strict=False)
    assert torch.equal(model[0].values, before["values"])


def test_values_that_a_hook_makes_are_loaded_as_what_they_are_made_of():
    state = {}
    for seed in (0, 1):
        model = nn.Sequential(layer())
        torch.nn.utils.prune.random_unstructured(model[0], "values", amount=0.5)
        with torch.no_grad():
            model[0].values_orig.add_(seed)
        state[seed] = model.state_dict()
    model.load_state_dict(state[0])
    assert torch.equal(model[0].values_orig, state[0]["0.values_orig"])
    other = SparseLinear.random(20, 16, 0.3, generator=torch.Generator().manual_seed(9))
    with pytest.raises(RuntimeError, match="a topology for values that a hook makes"):
        model.load_state_dict(
            state[0] | {f"0.{name}": other.state_dict()[name] for name in ("row_pointers", "columns")}
        )


@pytest.mark.parametrize(
    ("given", "told"),
    [([[1.0]], "an input that is a list"), (None, "an input that is a NoneType"), (torch.tensor(1.0), "no dimensions")],
)
def test_what_is_no_tensor_of_features_is_named(given, told):
    with pytest.raises(InvalidInput, match=told):
        layer()(given)


@pytest.mark.parametrize("kind", [SparseLinear, pollard.nn.MaskedLinear])
def test_the_input_goes_by_the_name_that_torch_gives_it(kind):
    dense, x = nn.Linear(20, 16), torch.randn(3, 20)
    made = kind.from_dense(dense, Topology.full((16, 20)))
    torch.testing.assert_close(made(input=x), dense(input=x))


def test_a_layer_is_made_on_a_device_and_in_a_dtype():
    made = SparseLinear.random(20, 16, 0.3, device="meta", dtype=torch.bfloat16)
    assert {(each.device.type, each.dtype) for each in made.parameters()} == {("meta", torch.bfloat16)}
    skipped = nn.utils.skip_init(SparseLinear, 20, 16, layer().topology)
    skipped.load_state_dict(layer().state_dict())
    assert torch.equal(skipped(torch.ones(2, 20)), layer()(torch.ones(2, 20)))
