"""Several processes: what two do together is what one does alone, and what goes wrong in one ends both."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn

import joint_training as joint
from pollard.errors import InvalidInput, StoreError
from pollard.training import processes
from ranks import two_ranks

WRAPPED = [
    ("static", {}),
    ("rigl", {}),
    ("set", {}),
    ("gse", {}),
    ("gse", {"guide": "graest"}),
    ("snfs", {}),
    ("snfs", {"dense_memory": True}),
    ("mest", {}),
]
AVERAGED = [
    ("gmp", {}),
    ("sparse-momentum", {}),
    ("granet", {}),
    ("srigl", {}),
    ("top-kast", {}),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with two_ranks(tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks


def same_way(ours, alone):
    (losses, topologies, parameters), (expected, held, weights) = ours, alone
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    assert topologies == held
    for one, other in zip(parameters, weights, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other))


@pytest.mark.parametrize("name, options", WRAPPED, ids=str)
def test_two_ranks_within_ddp_go_the_way_of_one(pair, name, options):
    how = "inner" if name == "set" else "wrapper"
    first, second = pair.ask(joint.trajectory, name, options, how)
    assert first == second
    same_way(first, joint.trajectory(name, options, how))


@pytest.mark.parametrize("name, options", AVERAGED, ids=str)
def test_two_ranks_that_average_gradients_go_the_way_of_one(pair, name, options):
    first, second = pair.ask(joint.trajectory, name, options, "average")
    assert first == second
    same_way(first, joint.trajectory(name, options, "average"))


def test_a_masked_twin_keeps_its_size_within_ddp(pair):
    first, second = pair.ask(joint.trajectory, "gmp", {}, "wrapper", "masked")
    assert first == second
    same_way(first, joint.trajectory("gmp", {}, "wrapper", "masked"))


def test_within_ddp_parameters_stay_where_they_are(pair):
    assert pair.ask(joint.places) == [(True, True)] * 2


def test_tampered_weights_stop_every_rank(pair):
    for error in pair.ask(joint.tampered):
        assert isinstance(error, processes.Disagreement)
        assert all(part in str(error) for part in ("layer '2'", "rank 1", "step 10"))


def test_ranks_that_seeded_torch_apart_draw_what_the_first_one_would(pair):
    first, second = pair.ask(joint.seeded_apart)
    assert first == second == joint.seeded_apart()
    assert first[0] != first[1]


def test_other_topologies_at_the_start_stop_every_rank(pair):
    for error in pair.ask(joint.other_beginnings):
        assert isinstance(error, processes.Disagreement)
        assert "after step 0" in str(error)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_not_finite_on_one_rank_stops_all(pair, rank):
    for error in pair.ask(joint.not_finite, rank):
        assert isinstance(error, InvalidInput)
        assert f"on rank {rank}: inputs or gradients of layer '0' that are not finite" in str(error)


def test_a_pass_that_one_rank_lacks_stops_all(pair):
    for error in pair.ask(joint.no_pass, 1):
        assert isinstance(error, InvalidInput)
        assert "on rank 1: an update at step 10 without a forward and backward pass through layer '0'" in str(error)


@pytest.mark.parametrize("how", ["wrapper", "inner"])
@pytest.mark.parametrize("name", ["gmp", "granet", "sparse-momentum", "srigl", "top-kast"])
def test_ddp_refuses_methods_that_change_sizes(pair, name, how):
    for error in pair.ask(joint.resizing, name, how):
        assert isinstance(error, InvalidInput)
        assert "average_gradients(model)" in str(error)


def test_ddp_that_came_later_is_refused_before_anything_moves(pair):
    for message, unmoved in pair.ask(joint.wrapped_later):
        assert "average_gradients(model)" in message
        assert unmoved


@pytest.mark.parametrize("how", ["wrapper", "inner"])
def test_a_dense_model_is_made_sparse_before_it_is_wrapped(pair, how):
    for message, unmoved in pair.ask(joint.wrapped_too_early, how):
        assert "made sparse first" in message
        assert unmoved
    assert pair.ask(joint.right_order) == [(pytest.approx(0.5, abs=0.02), ["0", "2"])] * 2


@pytest.mark.parametrize("how", ["wrapper", "average"])
def test_what_travels_is_what_is_kept(pair, how):
    for density in (0.1, 0.4):
        for sent, trained, parameters in pair.ask(joint.travelling, density, how):
            assert sent == trained + (parameters if how == "average" else 0)
            assert trained <= density * (20 * 32 + 32 * 16 + 16 * 5) + 53 + 1


def test_a_gradient_that_no_rank_has_stays_away(pair):
    assert pair.ask(joint.some_gradients) == [[[0.5, 0.5], [0.5, 0.5], None]] * 2


@pytest.mark.parametrize("name, options", [("rigl", {}), ("snfs", {}), ("snfs", {"dense_memory": True}), ("gmp", {})])
def test_training_goes_on_with_another_number_of_ranks(pair, tmp_path, name, options):
    record, weights = joint.trained(None, name, options, 3)
    first, second = pair.ask(joint.trained, None, name, options, 3)
    assert first == second
    joint.trained(tmp_path, name, options, 1)
    pair.ask(joint.trained, tmp_path, name, options, 2)
    for ours in (first, joint.trained(tmp_path, name, options, 3)):
        assert ours[0] == pytest.approx(record, rel=1e-9)
        for key, expected in weights.items():
            torch.testing.assert_close(torch.tensor(ours[1][key]), torch.tensor(expected))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("layers", ["dropout", "norm"])
def test_two_ranks_go_on_bit_for_bit(pair, tmp_path, layers):
    whole = pair.ask(joint.trained, tmp_path / "whole", "rigl", {}, 3, layers)
    for stop in (1, 3):
        parts = pair.ask(joint.trained, tmp_path / "parts", "rigl", {}, stop, layers)
    assert parts == whole
    assert whole[0] == whole[1]


def test_noise_is_another_on_each_rank(pair):
    first, second = pair.ask(joint.noise)
    assert first != second
    assert first == joint.noise()


def test_every_rank_is_told_of_a_folder_that_one_does_not_see(pair, tmp_path):
    joint.trained(tmp_path / "rank-0", "static", {}, 1)
    for error in pair.ask(joint.apart, tmp_path):
        assert isinstance(error, StoreError)
        assert "checkpoints of steps [7, 0] on ranks 0 to 1" in str(error)


def test_every_rank_is_told_of_a_folder_that_the_first_cannot_write(pair, tmp_path):
    for error in pair.ask(joint.unwritable, tmp_path):
        assert isinstance(error, StoreError)
        assert "on rank 0" in str(error)


def test_the_loop_averages_gradients_itself(pair):
    for error in pair.ask(joint.train_wrapped):
        assert isinstance(error, InvalidInput)
        assert "model.module" in str(error)


def test_one_process_has_nobody_to_wait_for():
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    with processes.joined():
        processes.average_gradients(model)
        processes.start_alike(model)
        assert processes.count() == 1
    assert not distributed.is_initialized()
    assert all(torch.equal(one, each.grad) for one, each in zip(before, model.parameters(), strict=True))
    with pytest.raises(StoreError), processes.failing_together():
        raise StoreError("a", "b", "c")
