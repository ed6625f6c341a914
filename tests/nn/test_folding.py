"""Batch norms in the layers before them, ReLUs in kernels: the same outputs, or the same model."""

import copy
import pickle

import pytest
import torch
from torch import nn

import pollard
from folded import IMAGES, convolutional, folds, norms_of, seeded, settled, stays, wired
from pollard import networks
from pollard.errors import InvalidInput
from pollard.nn.folding import FoldedNorm


@pytest.mark.parametrize(
    ("name", "relus"), [("resnet-20", 0), ("resnet-18-x0.25", 0), ("vgg-16-x0.25", 13), ("mobilenet-v1-x0.25", 14)]
)
def test_named_networks_compute_what_they_did(name, relus):
    model = settled(seeded(lambda: networks.build(name, networks.Ends(input_shape=(3, 16, 16), classes=10))))
    norms = norms_of(model)
    folding = folds(model, IMAGES, rtol=1e-4, atol=1e-5)
    assert list(folding.norms) == norms
    assert not norms_of(model)
    assert not folding.left
    assert len(folding.activations) == relus


@pytest.mark.parametrize("pattern", ["unstructured", "v4", "k3x3"])
@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_a_chain_of_all_kinds_of_layers(storage, pattern):
    model = settled(seeded(convolutional), storage=storage, pattern={"*": "unstructured", "0": pattern, "3": pattern})
    topologies = {name: layer.topology for name, layer in pollard.nn.surgery.sparse_layers(model).items()}
    folding = folds(model, IMAGES)
    assert folding.norms == {"1": "0", "4": "3", "9": "8"}
    compressed = storage == "compressed"
    assert folding.activations == {"2": "0", "5": "3"} | ({"10": "8"} if compressed else {})
    assert [type(model[index]) for index in (1, 2, 9)] == [nn.Identity, nn.Identity, FoldedNorm]
    assert type(model[10]) is (nn.Identity if compressed else nn.ReLU)
    assert not any(module.training for module in model.modules())
    for name, topology in topologies.items():
        assert model.get_submodule(name).topology.same_as(topology)
    again = pollard.fold_norms_(model)
    assert not {**again.norms, **again.activations, **again.left}


@pytest.mark.parametrize("way", ["hook", "float64", "compile", "export"])
def test_what_is_folded_is_computed_alike_on_every_way(way):
    model = settled(seeded(convolutional))
    with torch.no_grad():
        expected = model(IMAGES)
    pollard.fold_norms_(model)
    if way == "hook":
        model[0].linear.register_forward_hook(lambda *_: None)
        y = model(IMAGES)
    elif way == "float64":
        y = model.double()(IMAGES.double()).float()
    elif way == "compile":
        y = torch.compile(model, fullgraph=True, backend="eager")(IMAGES)
    else:
        y = torch.export.export(model, (IMAGES,)).module()(IMAGES)
    torch.testing.assert_close(y, expected)


def test_dense_layers_take_norms_and_no_relus():
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3, groups=2, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    )
    folding = folds(settled(model, layers=["4"]), torch.randn(2, 4, 6))
    assert folding.norms == {"1": "0"}
    assert not folding.activations
    assert model[0].bias is not None


def test_a_row_that_keeps_nothing_becomes_its_bias():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[2] = False
    pollard.sparsify_(model, {"0": pollard.Topology.from_mask(mask)})
    model = settled(nn.Sequential(model, nn.Linear(4, 2)), layers=["1"])
    norm, bias = copy.deepcopy(model[0][1]), model[0][0].bias[2].item()
    folds(model, torch.randn(5, 6))
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[2]
    expected = (bias - norm.running_mean[2]) * scale + norm.bias[2]
    torch.testing.assert_close(model[0][0].bias[2], expected)
    torch.testing.assert_close(model[0](torch.randn(5, 6))[:, 2], expected.expand(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_folded_in_float32_and_rounded_once(dtype):
    model = settled(seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)))).to(dtype)
    wide = copy.deepcopy(model).float()
    pollard.fold_norms_(model)
    pollard.fold_norms_(wide)
    assert model[0].values.dtype == model[0].bias.dtype == dtype
    assert torch.equal(model[0].values, wide[0].values.to(dtype))
    assert torch.equal(model[0].bias, wide[0].bias.to(dtype))


def test_what_would_overflow_stays():
    model = settled(seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))).half()
    model[1].running_var.fill_(1e-7)
    model[1].eps = 1e-12
    model[1].weight.data.fill_(100)
    stays(model, torch.zeros(2, 6, dtype=torch.float16), "would overflow")


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda m, x: m.norm(m.fc1(x)) + m.norm(m.fc2(x)), "it is called in several places"),
        (lambda m, x: m.fc2(m.norm(m.norm(m.fc1(x)))), "it is called in several places"),
        (lambda m, x: m.norm(y := m.fc1(x)) + y, "'fc1' is read in several places"),
        (lambda m, x: m.norm(m.fc1(x)) + m.fc1(x), "'fc1' is called in several places"),
        (lambda m, x: m.norm(m.fc1(x) + m.fc2(x)), "no layer alone feeds it"),
        (lambda m, x: m.norm(x) + m.fc1(x), "no layer alone feeds it"),
        (lambda m, x: m.norm(m.fc1(x)) * m.norm.weight, "what it holds is read past it"),
        (lambda m, x: m.norm(m.fc1(x)) * m.norm.running_mean, "what it holds is read past it"),
        (lambda m, x: m.norm(m.fc1(x)) * m.fc1.bias, "what 'fc1' holds is read past it"),
        (lambda m, x: m.fc1(x), "nothing calls it"),
    ],
)
def test_a_norm_that_is_not_fed_by_one_layer_alone_stays(forward, why):
    stays(wired(forward), torch.randn(4, 6), why)


def test_two_norms_in_a_row_are_one():
    model = settled(seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8))))
    assert folds(model, IMAGES).norms == {"1": "0", "2": "0"}


def test_a_norm_of_other_axes_is_refused_and_not_computed_otherwise():
    # Of three axes, this norm would take the second, which is not the one that the layer made.
    model = settled(seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())))
    folds(model, torch.randn(4, 6))
    with pytest.raises(InvalidInput, match="3 axes"):
        model(torch.randn(4, 6, 6))
    stays(settled(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(6))), torch.randn(4, 6, 6), "norms another axis")


@pytest.mark.parametrize("of", ["norm", "fc1"])
def test_who_is_hooked_sees_what_it_saw(of):
    model, seen = wired(lambda m, x: m.relu(m.norm(m.fc1(x)))), []
    model.get_submodule(of).register_forward_hook(lambda _, given, made: seen.append(made))
    stays(model, torch.randn(4, 6), "hooks")
    assert torch.equal(*seen)


def test_who_watches_a_part_sees_what_it_saw_and_within_it_is_folded():
    model, seen = settled(seeded(lambda: nn.Sequential(convolutional()[:5], nn.ReLU()))), []
    model[0].register_forward_hook(lambda _, given, made: seen.append(made))
    folding = folds(model, IMAGES)
    assert folding.norms == {"0.1": "0.0", "0.4": "0.3"}
    assert folding.activations == {"0.2": "0.0"}
    assert (seen[1] < 0).any()
    torch.testing.assert_close(seen[0], seen[1])
    assert len(seen) == 2


def test_no_running_statistics_and_tied_or_masked_parameters_stay():
    blind = settled(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)))
    stays(blind, torch.randn(3, 6), "no running statistics")
    tied = settled(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4)), layers=["3"])
    tied[2].weight = tied[0].weight
    stays(tied, torch.randn(3, 4), "shares a parameter")
    normed = settled(
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4), nn.Linear(4, 4)),
        layers=["2"],
    )
    stays(normed, torch.randn(3, 4), "nothing folds into '0', a ParametrizedLinear")


def test_transposed_convolutions_keep_their_norms():
    model = settled(seeded(lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())))
    stays(model, IMAGES, "nothing folds into '0', a ComposedConvTranspose")


@pytest.mark.parametrize("part", ["", "1"])
def test_training_mode_is_refused(part):
    model = settled(seeded(convolutional))
    model.get_submodule(part).train()
    before = str(model)
    with pytest.raises(InvalidInput, match=r"training mode.*'1'.*eval"):
        pollard.fold_norms_(model)
    assert str(model) == before


def test_a_failure_leaves_no_trace():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.relu = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()

        def forward(self, x):
            return self.relu(self.norm(self.fc(x)))

        def __setattr__(self, name, value):
            if name == "relu" and isinstance(value, nn.Identity):
                raise RuntimeError("no identities here")
            super().__setattr__(name, value)

    model = settled(
        seeded(lambda: nn.Sequential(*convolutional(), Stubborn())), pattern={"*": "unstructured", "0": "v4"}
    )
    modules, names = dict(model.named_modules()), str(model)
    tensors = {name: (each, each.detach().clone()) for name, each in model.named_parameters()}
    state, expected = copy.deepcopy(model.state_dict()), model(IMAGES)
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    with pytest.raises(RuntimeError, match="no identities here"):
        pollard.fold_norms_(model)
    assert dict(model.named_modules()) == modules
    assert str(model) == names
    assert list(model.state_dict()) == list(state)
    assert dict(model.named_parameters()) == {name: each for name, (each, _) in tensors.items()}
    assert all(torch.equal(each, before) and each.grad is not None for each, before in tensors.values())
    assert torch.equal(model(IMAGES), expected)


def test_a_norm_that_is_held_in_a_list_too_is_replaced_there():
    model = wired(lambda m, x: m.order[1](m.order[0](x)))
    model.order = [model.fc1, model.norm]
    assert folds(model, torch.randn(3, 6)).norms == {"norm": "fc1"}
    assert model.order[1] is model.norm


def test_copies_states_and_files(tmp_path):
    model = settled(seeded(convolutional))
    state = copy.deepcopy(model.state_dict())
    folding = folds(model, IMAGES)
    expected = model(IMAGES)
    torch.testing.assert_close(copy.deepcopy(model)(IMAGES), expected, rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(IMAGES), expected, rtol=0, atol=0)
    torch.save(model.state_dict(), tmp_path / "folded.pt")
    # Another model than its class builds: it fits one that was folded too, dense as it is.
    with pytest.raises(InvalidInput, match="a state that does not fit"):
        pollard.load_sparse(convolutional().eval(), tmp_path / "folded.pt")
    dense = convolutional().eval()
    assert pollard.fold_norms_(dense).norms == folding.norms
    pollard.load_sparse(dense, tmp_path / "folded.pt")
    torch.testing.assert_close(dense(IMAGES), expected)
    assert pollard.fold_norms_(dense).activations == folding.activations
    torch.testing.assert_close(dense(IMAGES), expected, rtol=0, atol=0)
    # Or the state of before, folded when it is loaded.
    loaded = pollard.load_sparse(convolutional().eval(), state)
    assert pollard.fold_norms_(loaded) == folding
    torch.testing.assert_close(loaded(IMAGES), expected, rtol=0, atol=0)


def test_a_model_built_without_memory_is_folded_and_filled_by_a_file(tmp_path):
    model = settled(seeded(convolutional))
    folds(model, IMAGES)
    with torch.device("meta"):
        bare = convolutional().eval()
    pollard.fold_norms_(bare)
    torch.testing.assert_close(pollard.load_sparse(bare, model.state_dict())(IMAGES), model(IMAGES))


def test_in_inference_mode_and_afterwards_it_can_be_trained():
    model = settled(seeded(convolutional))
    with torch.inference_mode():
        pollard.fold_norms_(model)
    model(IMAGES).sum().backward()
    assert all(each.grad is not None for each in model.parameters())
