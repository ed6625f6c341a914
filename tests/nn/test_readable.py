"""`weight` of a sparse layer: right wherever it is read, refused wherever it would be written to."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import pollard
from pollard.errors import InvalidInput, WriteLost
from pollard.lazy import LazyWeight
from pollard.nn import SparseLinear

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def layer(pattern: str = "unstructured", **options) -> SparseLinear:
    return SparseLinear.random(6, 8, 0.4, pattern, generator=torch.Generator().manual_seed(1), **options)


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
def test_what_computes_with_it_computes_as_the_layer_does(pattern):
    sparse = layer(pattern)
    functional.linear(X, sparse.weight, sparse.bias).square().sum().backward()
    found, sparse.values.grad = sparse.values.grad, None
    sparse(X).square().sum().backward()
    torch.testing.assert_close(found, sparse.values.grad)
    assert (sparse.weight + 0).equal(sparse.to_dense().weight)
    assert torch.stack([sparse.weight, sparse.weight]).shape == (2, 8, 6)
    assert (X @ sparse.weight.T).equal(X @ sparse.to_dense().weight.T)
    assert sparse.weight.grad.equal(pollard.SparseMatrix(sparse.values.grad, sparse.topology).to_dense())


def test_what_it_says_of_itself_costs_no_dense_memory():
    huge = SparseLinear.random(1 << 20, 1 << 20, 1e-9)  # dense: 4 TB
    weight = huge.weight
    assert (weight.shape, weight.dtype, weight.device.type) == ((1 << 20, 1 << 20), torch.float32, "cpu")
    assert weight.dim() == weight.ndim == 2
    assert weight.size(0) == len(weight) == 1 << 20
    assert weight.numel() == 1 << 40
    assert weight.requires_grad
    assert not huge.requires_grad_(False).weight.requires_grad
    assert weight.is_floating_point()
    assert "kept" in repr(weight)


WRITES = {
    "in place": lambda sparse: sparse.weight.zero_(),
    "an initialiser": lambda sparse: nn.init.xavier_uniform_(sparse.weight),
    "uniform_": lambda sparse: nn.init.uniform_(sparse.weight),
    "normal_": lambda sparse: nn.init.normal_(sparse.weight),
    "constant_": lambda sparse: nn.init.constant_(sparse.weight, 3.0),
    "kaiming_uniform_": lambda sparse: nn.init.kaiming_uniform_(sparse.weight),
    "several at once": lambda sparse: torch._foreach_mul_([sparse.weight], 2.0),
    "a mask of torch": lambda sparse: nn.utils.prune.l1_unstructured(sparse, "weight", 0.5),
    "data": lambda sparse: sparse.weight.data.normal_(),
    "an entry": lambda sparse: sparse.weight.__setitem__(0, 1.0),
    "an operator": lambda sparse: sparse.weight.__imul__(2),
    "out": lambda sparse: torch.add(torch.ones(8, 6), 1.0, out=sparse.weight),
    "its gradient": lambda sparse: setattr(sparse.weight, "grad", None),
    "its flag": lambda sparse: sparse.weight.requires_grad_(False),
    "a hook": lambda sparse: sparse.weight.register_hook(print),
    "its memory": lambda sparse: sparse.weight.data_ptr(),
    "an assignment": lambda sparse: setattr(sparse, "weight", nn.Parameter(torch.zeros(8, 6))),
    "a tensor assigned": lambda sparse: setattr(sparse, "weight", torch.zeros(8, 6)),
    "None assigned": lambda sparse: setattr(sparse, "weight", None),
    "functional_call": lambda sparse: torch.func.functional_call(sparse, {"weight": torch.zeros(8, 6)}, X),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_to_it_is_refused_with_what_to_do(write):
    sparse = layer()
    before = sparse.values.detach().clone()
    with pytest.raises(InvalidInput, match=r"Write to layer\.values"), torch.no_grad():
        write(sparse)
    assert sparse.values.equal(before)


VIEWS = {
    "a row": lambda weight: weight[0].detach().fill_(0),
    "a view of a view": lambda weight: weight.view(-1).detach()[:3].zero_(),
    "the transpose": lambda weight: weight.T.detach().zero_(),
    "detached": lambda weight: weight.detach().mul_(2),
    "a piece": lambda weight: weight.chunk(2)[1].detach().zero_(),
    "itself, as what it is already": lambda weight: weight.float().detach().zero_(),
    "a parameter of its memory": lambda weight: nn.Parameter(weight.detach()).detach().add_(1),
}


@pytest.mark.parametrize("write", VIEWS.values(), ids=VIEWS)
def test_writing_to_a_view_of_it_is_told(write):
    with pytest.warns(WriteLost, match=r"is lost.*Write to layer\.values.*clone\(\)"):
        write(layer().weight)


def test_where_a_write_to_a_view_is_told_is_where_it_was_made():
    with pytest.warns(WriteLost) as told:
        layer().weight.detach().zero_()
    assert told[0].filename == __file__


READS = {
    "a clone": lambda weight: weight.detach().clone().zero_(),
    "a copy of one's own": lambda weight: weight.to_dense().detach().zero_(),
    "another dtype": lambda weight: weight.detach().double().zero_(),
    "a gradient": lambda weight: weight.square().sum().backward(),
    "a row": lambda weight: weight[0] * 2,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_it_is_not(read, recwarn):
    read(layer().weight)
    assert not recwarn.list


COMPOSED = {
    "a convolution": (nn.Conv2d(4, 8, 3), "weight"),
    "a recurrent layer": (nn.LSTM(4, 5), "weight_ih_l0"),
    "attention, of three": (nn.MultiheadAttention(16, 2), "in_proj_weight"),
}


@pytest.mark.parametrize(("whole", "name"), COMPOSED.values(), ids=COMPOSED)
def test_the_weight_of_a_composite_is_read_and_refused_alike(whole, name):
    model = nn.Sequential(copy.deepcopy(whole))
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3))
    made = model[0]
    weight = getattr(made, name)
    assert isinstance(weight, LazyWeight)
    assert weight.shape == getattr(whole, name).shape
    assert weight.requires_grad
    assert weight.grad is None
    assert 0 < weight.kept < weight.numel()
    dense = getattr(pollard.densify_(copy.deepcopy(model))[0], name)
    assert (weight + 0).equal(dense)
    weight.square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * dense)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for write in (
        lambda: weight.data.fill_(1),
        lambda: nn.init.kaiming_normal_(weight),
        lambda: setattr(made, name, nn.Parameter(dense.detach())),
        lambda: setattr(made, name, torch.zeros_like(dense)),
        lambda: setattr(made, name, None),
        lambda: torch.func.functional_call(made, {name: torch.zeros_like(dense)}, X),
        lambda: nn.utils.prune.l1_unstructured(made, name, 0.5),
    ):
        with pytest.raises(InvalidInput, match=r"Write to layer\.values"):
            write()
    assert all(map(torch.equal, before, model.parameters()))


def test_writing_to_what_dense_parts_make_is_told():
    model = nn.Sequential(nn.MultiheadAttention(16, 2))
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3, layers=["0.out_proj"]))
    with pytest.warns(WriteLost):
        model[0].in_proj_weight.detach().zero_()


def test_a_composite_made_whole_is_trained_without_a_word(recwarn):
    model = nn.Sequential(nn.Conv2d(4, 8, 3))
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3))
    whole = pollard.densify_(model)
    optimizer = torch.optim.SGD(whole.parameters(), 0.1)
    whole(torch.ones(1, 4, 5, 5)).sum().backward()
    optimizer.step()
    del model, whole, optimizer
    gc.collect()
    assert not recwarn.list


def test_it_is_no_parameter_and_no_part_of_the_state():
    sparse = layer(bias=False)
    assert [name for name, _ in sparse.named_parameters()] == ["values"]
    assert "weight" not in sparse.state_dict()
    assert not isinstance(sparse.weight, nn.Parameter)
    for copied in (copy.deepcopy(sparse.weight), pickle.loads(pickle.dumps(sparse.weight))):
        assert copied.equal(sparse.to_dense().weight)
        assert not isinstance(copied, LazyWeight)


@pytest.mark.parametrize("stacked", [0, 2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("no_grad", [False, True])
def test_torchs_fused_encoder_stands_back(stacked, padded, no_grad):
    torch.manual_seed(0)
    one = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(one, stacked) if stacked else one
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3))
    x = torch.randn(3, 5, 16)
    padding = {"src_key_padding_mask": torch.arange(5).expand(3, 5) >= torch.tensor([[5], [3], [2]])} if padded else {}
    seen = ~padding["src_key_padding_mask"] if padded else torch.ones(3, 5, dtype=torch.bool)
    expected = model.train()(x, **padding)[seen]
    with torch.set_grad_enabled(not no_grad):
        torch.testing.assert_close(model.eval()(x, **padding)[seen], expected)


def test_what_is_read_is_what_is_active():
    sparse = layer()
    sparse.active = torch.arange(len(sparse.values)) % 2 == 0
    torch.testing.assert_close(functional.linear(X, sparse.weight, sparse.bias), sparse(X))


def test_a_function_that_reads_it_compiles():
    sparse = layer()

    def product(x):
        return functional.linear(x, sparse.weight, sparse.bias)

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(product, backend="eager")(X), sparse(X))
