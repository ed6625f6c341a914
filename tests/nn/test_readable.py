"""`weight` of a sparse layer: right wherever it is read, refused wherever it would be written to."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import pollard
from pollard.errors import InvalidInput
from pollard.nn import SparseLinear
from pollard.nn.readable import LazyWeight

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
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_to_it_is_refused_with_what_to_do(write):
    sparse = layer()
    before = sparse.values.detach().clone()
    with pytest.raises(InvalidInput, match=r"Write to layer\.values"), torch.no_grad():
        write(sparse)
    assert sparse.values.equal(before)


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
