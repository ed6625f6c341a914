"""Modules rebuilt of linear layers compute what torch's do, forward and backward, and lead back to them."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from transformers.pytorch_utils import Conv1D

import pollard
from kinds import KINDS, X, network
from pollard.composites import COMPOSITES, Composite, composable, composed, composite
from pollard.composites.composite import dotted, kind_for
from pollard.composites.convolution import ComposedConv
from pollard.errors import InvalidInput

made = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(shape, generator=made)


def packed(features):
    return pack_padded_sequence(draw(7, 3, features), [3, 7, 5], enforce_sorted=False)


PLACES = [9, 8, 7]
CASES = {
    "RNN": lambda: (nn.RNN(5, 6, 2, nonlinearity="relu", batch_first=True), (draw(3, 4, 5),), {}),
    "RNN, both ways": lambda: (nn.RNN(5, 6, bidirectional=True), (draw(4, 3, 5), draw(2, 3, 6)), {}),
    "LSTM": lambda: (nn.LSTM(5, 6, 2, bidirectional=True), (draw(4, 3, 5),), {}),
    "LSTM, one sequence, a first state": lambda: (
        nn.LSTM(5, 6, bias=False),
        (draw(4, 5), (draw(1, 6), draw(1, 6))),
        {},
    ),
    "LSTM, packed": lambda: (nn.LSTM(5, 6, 2, bidirectional=True), (packed(5), (draw(4, 3, 6), draw(4, 3, 6))), {}),
    "LSTM, a batch of none": lambda: (nn.LSTM(5, 6, 2), (draw(4, 0, 5),), {}),
    "GRU": lambda: (nn.GRU(5, 6, 2, bidirectional=True, batch_first=True), (draw(3, 4, 5),), {}),
    "GRU, packed": lambda: (nn.GRU(5, 6, 2, bidirectional=True), (packed(5),), {}),
    "RNNCell": lambda: (nn.RNNCell(5, 6), (draw(3, 5),), {}),
    "LSTMCell": lambda: (nn.LSTMCell(5, 6), (draw(3, 5), (draw(3, 6), draw(3, 6))), {}),
    "GRUCell, one sample": lambda: (nn.GRUCell(5, 6), (draw(5),), {}),
    "attention": lambda: (nn.MultiheadAttention(8, 2), (draw(4, 3, 8), draw(5, 3, 8), draw(5, 3, 8)), {}),
    "attention, all options": lambda: (
        nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True),
        (draw(4, 3, 8), draw(4, 5, 8), draw(4, 5, 8)),
        {
            "attn_mask": draw(3, 5) > 1,
            "key_padding_mask": torch.eye(4, 5).bool(),
            "average_attn_weights": False,
        },
    ),
    "attention, other widths, one sequence": lambda: (
        nn.MultiheadAttention(8, 2, kdim=5, vdim=6, bias=False),
        (draw(4, 8), draw(5, 5), draw(5, 6)),
        {"key_padding_mask": torch.tensor([False, True, False, False, False])},
    ),
    "attention, a mask a head, no weights": lambda: (
        nn.MultiheadAttention(8, 2),
        (draw(4, 3, 8), draw(5, 3, 8), draw(5, 3, 8)),
        {"need_weights": False, "attn_mask": draw(6, 4, 5)},
    ),
    "Bilinear": lambda: (nn.Bilinear(3, 4, 5), (draw(2, 6, 3), draw(2, 6, 4)), {}),
    "Conv1D of transformers": lambda: (Conv1D(6, 4), (draw(2, 3, 4),), {}),
}
CASES |= {
    f"{kind.__name__} {options}": lambda kind=kind, options=options, axes=axes: (
        kind(3, 4, 3, **options),
        (draw(2, 3, *PLACES[:axes]),),
        {},
    )
    for kinds, choices in (
        (
            (nn.Conv1d, nn.Conv2d, nn.Conv3d),
            (
                {"stride": 2, "padding": 1},
                {"dilation": 2, "padding": "same"},
                {"padding": 1, "padding_mode": "circular", "bias": False},
            ),
        ),
        (
            (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
            ({"stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 2, "bias": False}),
        ),
    )
    for axes, kind in enumerate(kinds, 1)
    for options in choices
}


def flat(outputs):
    if isinstance(outputs, PackedSequence):
        return [outputs.data]
    if outputs is None:
        return []
    return [outputs] if isinstance(outputs, torch.Tensor) else [part for each in outputs for part in flat(each)]


def through(module, args, kwargs):
    """Outputs, and gradients of the floating-point inputs."""
    free = [arg.clone().requires_grad_() if isinstance(arg, torch.Tensor) else arg for arg in args]
    outputs = flat(module(*free, **kwargs))
    sum(part.square().sum() for part in outputs).backward()
    return outputs, [arg.grad for arg in free if isinstance(arg, torch.Tensor)]


def gradients(model):
    """Of all parameters, by name; those that were taken apart are put together."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, Composite):
            prefix = f"{path}." if path else ""
            apart = {part: found.pop(f"{prefix}{part}.weight") for part in module._parts}
            found |= {prefix + name: module.tensor(name, apart) for name in {*module._parts.values()}}
    return found


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_torchs_own_does(name, watched):
    whole, args, kwargs = CASES[name]()
    apart = kind_for(whole)(copy.deepcopy(whole))
    # Where somebody looks on, convolutions are products of what is unfolded.
    handles = [part.register_forward_hook(lambda *_: None) for part in apart.children() if watched]
    torch.testing.assert_close(through(apart, args, kwargs), through(whole, args, kwargs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(apart), gradients(whole), rtol=1e-4, atol=1e-4)
    for handle in handles:
        handle.remove()
    back = apart.whole()
    assert type(back) is type(whole)
    assert back.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in back.state_dict().items())
    torch.testing.assert_close(through(back, args, kwargs), through(whole, args, kwargs))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_computes_what_it_did_with_all_of_it_taken_apart(kind):
    whole = network(kind)
    apart = composed(copy.deepcopy(whole))
    assert not composable(apart)
    torch.testing.assert_close(through(apart, [X], {}), through(whole, [X], {}), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(apart), gradients(whole), rtol=1e-4, atol=1e-4)
    # In torch's own modules there is another way then, fused.
    with torch.no_grad():
        torch.testing.assert_close(apart.eval()(X), whole.eval()(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_it_shares_memory_is_copied_pickled_and_takes_the_state_of_the_whole(name):
    whole, args, kwargs = CASES[name]()
    apart = kind_for(whole)(whole)
    own = {parameter.untyped_storage().data_ptr() for parameter in whole.parameters()}
    assert {parameter.untyped_storage().data_ptr() for parameter in apart.parameters()} == own
    file = io.BytesIO()
    torch.save(apart, file)
    file.seek(0)
    for other in (copy.deepcopy(apart), torch.load(file, weights_only=False)):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other.load_state_dict(whole.state_dict())
        torch.testing.assert_close(through(other, args, kwargs)[0], through(whole, args, kwargs)[0])


def test_what_was_taken_apart_can_be_read_with_gradients():
    whole = nn.MultiheadAttention(8, 2)
    apart = kind_for(whole)(whole)
    torch.testing.assert_close(apart.in_proj_weight, whole.in_proj_weight)
    apart.in_proj_weight[8:16].sum().backward()
    assert apart.k_proj.weight.grad.eq(1).all()
    assert apart.q_proj.weight.grad.eq(0).all()
    assert (apart.embed_dim, apart.dropout, apart.batch_first) == (8, 0.0, False)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = apart.nothing
    with pytest.raises(AttributeError, match="all_weights"):
        _ = kind_for(nn.LSTM(2, 3))(nn.LSTM(2, 3)).all_weights
    with pytest.raises(AttributeError, match="_reset_parameters"):
        _ = apart._reset_parameters


def test_a_convolution_unfolds_some_samples_at_a_time_and_keeps_none_of_it(monkeypatch):
    monkeypatch.setattr("pollard.composites.convolution.BLOCK", 2 * 27 * 64)
    whole = nn.Conv2d(3, 4, 3, padding=1)
    apart = ComposedConv(copy.deepcopy(whole))
    seen = []
    handle = apart.linear.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    args = (draw(5, 3, 8, 8),)
    held = []

    def pack(tensor):
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each):
        found = through(apart, args, {})
    torch.testing.assert_close(found, through(whole, args, {}), rtol=1e-4, atol=1e-5)
    assert seen == [(128, 27), (128, 27), (64, 27)]
    assert max(held) < 64 * 27
    x = draw(2, 3, 8, 8)
    y = apart(x.requires_grad_())
    handle.remove()
    y.sum().backward()


def test_an_input_that_is_written_over_before_the_backward_pass_is_refused_as_torch_does():
    apart = ComposedConv(nn.Conv2d(3, 4, 3))
    apart.linear.register_forward_hook(lambda *_: None)
    x = draw(2, 3, 8, 8)
    y = apart(x)
    x.add_(1)
    with pytest.raises(InvalidInput, match="changed in place"):
        y.sum().backward()


def test_bad_inputs_are_told():
    lstm = kind_for(nn.LSTM(3, 4))(nn.LSTM(3, 4))
    with pytest.raises(InvalidInput, match=r"an input of 4 dimensions.*\(steps, batch, features\)"):
        lstm(draw(1, 2, 2, 3))
    with pytest.raises(InvalidInput, match=r"a first state of shapes.*\(1, 2, 4\)"):
        lstm(draw(5, 2, 3), (draw(1, 2, 3), draw(1, 2, 4)))
    attention = kind_for(nn.MultiheadAttention(4, 1))(nn.MultiheadAttention(4, 1))
    with pytest.raises(InvalidInput, match="is_causal=True without attn_mask"):
        attention(draw(2, 4), draw(2, 4), draw(2, 4), is_causal=True)


def test_subclasses_are_served_unless_they_compute_something_else():
    class Named(nn.Conv2d):
        pass

    class Standardised(nn.Conv2d):
        def forward(self, x):
            return super().forward(x - x.mean())

    assert kind_for(Named(1, 1, 1)) is ComposedConv
    assert kind_for(Standardised(1, 1, 1)) is None
    assert kind_for(nn.Linear(1, 1)) is None
    assert ComposedConv.refusal(nn.Conv2d(4, 4, 3, groups=2)) == "groups=2"


def test_a_kind_of_ones_own_joins_by_a_class():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(draw(4, 3))

        def forward(self, x):
            return 2 * x @ self.kernel.t()

    @composite(Doubled)
    class ComposedDoubled(Composite):
        @classmethod
        def parts(cls, whole):
            return {"linear": "kernel"}

        def forward(self, x):
            return 2 * self.linear(x)

    try:
        whole, x = Doubled(), draw(2, 3)
        torch.testing.assert_close(kind_for(whole)(whole)(x), whole(x))
    finally:
        del COMPOSITES[dotted(Doubled)]


def test_a_sequence_of_no_steps_is_refused():
    with pytest.raises(InvalidInput, match="a sequence of no steps"):
        kind_for(nn.GRU(3, 4))(nn.GRU(3, 4))(torch.zeros(0, 2, 3))


def set_on(module, **given):
    for name, value in given.items():
        setattr(module, name, value)


def dilated(convolution):
    """As libraries of segmentation make backbones finer: what torch works out of `padding` for other modes stays as it was."""
    set_on(convolution, stride=(1, 1), dilation=(2, 2), padding=(2, 2))


SET_LATER = {
    "stride, dilation and padding": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), draw(2, 3, 9, 8), dilated),
    "padding that goes by another axis": (
        lambda: nn.Conv2d(3, 4, 3),
        draw(2, 3, 9, 8),
        lambda module: setattr(module, "padding", (0, 2)),
    ),
    "single numbers": (
        lambda: nn.Conv2d(3, 4, 3),
        draw(2, 3, 9, 8),
        lambda module: set_on(module, stride=2, padding=1, dilation=2),
    ),
    "dilation under padding that keeps the size": (
        lambda: nn.Conv2d(3, 4, (5, 3), padding="same"),
        draw(2, 3, 9, 8),
        lambda module: setattr(module, "dilation", (3, 2)),
    ),
    "no padding": (
        lambda: nn.Conv1d(3, 4, 3, padding=1),
        draw(2, 3, 9),
        lambda module: setattr(module, "padding", "valid"),
    ),
    "a bias where there was none": (
        lambda: nn.ConvTranspose1d(3, 4, 3, bias=False),
        draw(2, 3, 9),
        lambda module: setattr(module, "bias", nn.Parameter(torch.arange(4.0))),
    ),
    "no bias any more": (
        lambda: nn.Conv2d(3, 4, 3),
        draw(2, 3, 9, 8),
        lambda module: setattr(module, "bias", None),
    ),
    "which axis samples are": (
        lambda: nn.GRU(5, 6),
        draw(4, 3, 5),
        lambda module: setattr(module, "batch_first", True),
    ),
}


@pytest.mark.parametrize("early", [True, False], ids=["before", "afterwards"])
@pytest.mark.parametrize("name", SET_LATER)
def test_what_is_set_after_construction_is_what_torchs_own_goes_by(name, early):
    make, x, change = SET_LATER[name]
    torch.manual_seed(0)
    whole = make()
    if early:
        change(whole)
    made = kind_for(whole)(copy.deepcopy(whole))
    if not early:
        change(made)
        change(whole)
    expected = flat(whole(x))
    for module in (made, copy.deepcopy(made), made.whole()):
        torch.testing.assert_close(flat(module(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_it_is_drawn_anew_with_all_that_it_holds(name):
    whole, args, kwargs = CASES[name]()
    model = nn.ModuleList([whole])
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    [made] = model
    before = {key: each.detach().clone() for key, each in made.named_parameters()}
    kept = {part: getattr(made, part).topology for part in made._parts}
    made.reset_parameters()
    assert {part: getattr(made, part).topology for part in made._parts} == kept
    for key, each in made.named_parameters():
        # Attention begins with no biases; transformers' Conv1D leaves drawing to its model.
        same = "bias" in key and isinstance(whole, nn.MultiheadAttention | Conv1D) and "bias_" not in key
        assert (
            each.equal(torch.zeros_like(each) if isinstance(whole, nn.MultiheadAttention) else before[key])
            if same
            else (not each.equal(before[key]))
        ), key
    bounded = dict(made.named_parameters()) if isinstance(whole, nn.RNNBase) else {}
    assert all(each.abs().max() <= whole.hidden_size**-0.5 for key, each in bounded.items() if "bias" in key)
    made(*args, **kwargs)
