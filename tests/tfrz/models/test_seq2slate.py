"""Seq2slate as a model: its inputs, its three scorers, its slates and its configuration."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrz.config import from_mapping
from tfrz.errors import ConfigError
from tfrz.layers.pointer import (
    SlateConstraints,
    availability,
    rank,
    step_log_probabilities,
)
from tfrz.models.seq2slate import Seq2Slate, Seq2SlateConfig

N, FEATURES, BATCH = 5, 3, 6
SCORERS = pytest.mark.parametrize("scorer", ["sequential", "one_step", "mlp"])
SEED = tf.constant([2, 3])


def _model(scorer: str = "sequential", **values) -> Seq2Slate:
    keras.utils.set_random_seed(7)
    sizes = {"units": 5, "hidden_units": [6], "initial_scale": 1.0, "embedding_dim": 2}
    config = from_mapping(Seq2SlateConfig, {**sizes, "scorer": scorer, **values}, "model")
    return Seq2Slate(
        config,
        N,
        FEATURES,
        categorical={"brand": 4, "kind": 3},
        context={"page": 3},
        num_context=2,
    )


def _lists(seed: int = 0, batch: int = BATCH) -> dict[str, np.ndarray]:
    """Lists of which each is shorter than the one before, down to an empty one."""
    rng = np.random.default_rng(seed)
    real = np.arange(N) < (N - np.arange(batch) % (N + 1))[:, None]
    return {
        "features_xf": rng.normal(size=(batch, N, FEATURES)).astype("float32"),
        "mask_xf": real.astype("int64"),
        "brand_xf": rng.integers(0, 4, (batch, N)),
        "kind_xf": rng.integers(0, 3, (batch, N)),
        "page_xf": rng.integers(0, 3, batch),
        "context_xf": rng.normal(size=(batch, 2)).astype("float32"),
        "something_else": np.zeros(batch),
    }


def _tensors(lists: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in lists.items()}


def _valid(lists: dict[str, np.ndarray]) -> np.ndarray:
    return lists["mask_xf"] != 0


def _equal(one, other) -> None:
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)


def _is_slate(positions, valid) -> None:
    for row, mask in zip(np.asarray(positions), valid):
        n = min(int(mask.sum()), len(row))
        assert (row[n:] == -1).all()
        assert len(set(row[:n])) == n
        assert set(row[:n]) <= set(np.flatnonzero(mask))


def _total(slate) -> np.ndarray:
    return slate.log_probabilities.numpy().sum(1)


# Shapes and padding


@SCORERS
def test_shapes(scorer):
    model, lists = _model(scorer), _lists()
    inputs, valid = _tensors(lists), _valid(lists)
    scores = model(inputs)
    assert scores.shape == (BATCH, N)
    assert scores.dtype == tf.float32
    np.testing.assert_array_equal(scores.numpy()[~valid], 0)
    assert (scores.numpy()[valid] != 0).all()
    assert tuple(model.compute_output_shape({"features_xf": (None, N, FEATURES)})) == (None, N)
    embedded = model.embed(inputs)
    np.testing.assert_array_equal(embedded["valid"], valid)
    np.testing.assert_array_equal(model.interact(embedded), scores)
    for method in ("greedy", "sample"):
        slate = model.rerank(inputs, method=method, seed=SEED)
        assert slate.positions.dtype == tf.int32
        assert slate.positions.shape == slate.log_probabilities.shape == (BATCH, N)
        assert slate.available.shape == (BATCH, N, N)
        _is_slate(slate.positions, valid)
        _equal(slate, model.slate(embedded, method=method, seed=SEED))
    beams = model.beams(inputs, width=3)
    assert beams.positions.shape == (BATCH, 3, N)
    assert beams.log_probability.shape == (BATCH, 3)
    _is_slate(beams.positions[:, 0], valid)


@SCORERS
@pytest.mark.parametrize("filling", [1e30, np.nan], ids=str)
def test_5_1_1_what_padding_holds_changes_nothing(scorer, filling):
    model = _model(scorer, input_units=[4], position=True)
    lists, other = _lists(), _lists()
    padding = ~_valid(lists)
    lists["features_xf"][padding] = 0
    other["features_xf"][padding] = filling
    other["brand_xf"][padding] = 0
    other["kind_xf"][padding] = (other["kind_xf"][padding] + 1) % 3
    one, two = _tensors(lists), _tensors(other)
    np.testing.assert_array_equal(model(one), model(two))
    for arguments in ({}, {"method": "sample", "seed": SEED}):
        before, after = model.rerank(one, **arguments), model.rerank(two, **arguments)
        np.testing.assert_array_equal(before.positions, after.positions)
        np.testing.assert_array_equal(before.log_probabilities, after.log_probabilities)
    _equal(model.beams(one, width=2), model.beams(two, width=2))


@SCORERS
def test_a_mask_of_any_type_with_holes(scorer):
    model, lists = _model(scorer), _lists()
    lists["mask_xf"][:] = [1, 0, 1, 1, 0]
    expected = model.rerank(_tensors(lists)).positions
    _is_slate(expected, _valid(lists))
    for kind in ("float32", "int32"):
        lists["mask_xf"] = lists["mask_xf"].astype(kind)
        np.testing.assert_array_equal(model.rerank(_tensors(lists)).positions, expected)


# Which inputs reach the scores


@SCORERS
@pytest.mark.parametrize("name", ["features_xf", "brand_xf", "kind_xf", "page_xf", "context_xf"])
def test_every_input_reaches_the_scores(scorer, name):
    model, lists = _model(scorer), _lists(batch=1)
    before = model(_tensors(lists)).numpy()
    if name.endswith(("features_xf", "context_xf")):
        lists[name] += 0.5
    else:
        lists[name] = (lists[name] + 1) % 3
    after = model(_tensors(lists)).numpy()
    assert (before != after).all()


@SCORERS
def test_what_is_not_an_input_is_ignored(scorer):
    model, lists = _model(scorer), _lists()
    before = model(_tensors(lists))
    del lists["something_else"]
    np.testing.assert_array_equal(model(_tensors(lists)), before)


@pytest.mark.parametrize("position", [False, True])
def test_an_mlp_knows_the_place_of_a_candidate_with_position_only(position):
    model, lists = _model("mlp", position=position), _lists(batch=1)
    for name in ("features_xf", "brand_xf", "kind_xf"):
        lists[name][:] = lists[name][:, :1]
    scores = model(_tensors(lists)).numpy()[0]
    if position:
        assert len(set(scores)) == N
    else:
        np.testing.assert_allclose(scores, scores[0], rtol=1e-6)


def test_an_mlp_scores_each_candidate_by_itself_and_an_encoder_does_not():
    lists = _lists(batch=1)
    other = _lists(batch=1)
    other["features_xf"][:, 1] += 1
    for scorer, alone in (("mlp", True), ("one_step", False), ("sequential", False)):
        model = _model(scorer)
        before, after = model(_tensors(lists)).numpy()[0], model(_tensors(other)).numpy()[0]
        assert before[1] != after[1]
        same = np.delete(before, 1) == np.delete(after, 1)
        assert same.all() if alone else not same.any()


# The three scorers


def test_the_scores_are_those_of_the_first_step():
    lists = _lists()
    valid = _valid(lists)
    for scorer in ("sequential", "one_step", "mlp"):
        model = _model(scorer)
        scores, slate = model(_tensors(lists)).numpy(), model.rerank(_tensors(lists))
        np.testing.assert_array_equal(scores[valid], slate.scores.numpy()[:, 0][valid])


@pytest.mark.parametrize("scorer", ["one_step", "mlp"])
def test_3_4_one_step_ranks_by_its_scores_and_samples_plackett_luce(scorer):
    model, lists = _model(scorer), _lists()
    inputs, valid = _tensors(lists), tf.constant(_valid(lists))
    scores = model(inputs)
    greedy = model.rerank(inputs)
    np.testing.assert_array_equal(greedy.positions, rank(scores, valid))
    for slate in (greedy, model.rerank(inputs, method="sample", seed=SEED)):
        free = availability(slate.positions, valid)
        np.testing.assert_array_equal(slate.available, free)
        np.testing.assert_allclose(
            slate.log_probabilities,
            step_log_probabilities(scores[:, None], free, slate.positions),
            atol=1e-6,
        )
        np.testing.assert_allclose(
            slate.log_probabilities,
            step_log_probabilities(slate.scores, free, slate.positions),
            atol=1e-6,
        )


@pytest.mark.parametrize("scorer", ["one_step", "mlp"])
def test_3_4_samples_have_the_frequencies_of_plackett_luce(scorer):
    draws = 10_000
    model, lists = _model(scorer), _lists(batch=1)
    lists["mask_xf"][:] = [1, 0, 1, 1, 0]
    many = {name: np.repeat(value, draws, 0) for name, value in lists.items()}
    found = model.rerank(_tensors(many), method="sample", seed=SEED).positions.numpy()[:, :3]
    s = model(_tensors(lists)).numpy()[0].astype("float64")
    for order in itertools.permutations([0, 2, 3]):
        p = np.exp(
            sum(s[i] - np.log(np.exp(s[list(order[j:])]).sum()) for j, i in enumerate(order))
        )
        count = (found == order).all(1).sum()
        assert abs(count - draws * p) < 5 * np.sqrt(draws * p * (1 - p)) + 1


def test_the_sequential_decoder_depends_on_what_it_chose():
    model, lists = _model(), _lists()
    slate = model.rerank(_tensors(lists))
    scores = slate.scores.numpy()[0]
    assert (np.abs(np.diff(scores, axis=0)).max(1) > 1e-4).all()


@SCORERS
def test_5_1_2_scoring_a_slate_again_gives_the_same_number(scorer):
    model, inputs = _model(scorer), _tensors(_lists())
    sampled = model.rerank(inputs, method="sample", seed=SEED)
    again = model.rerank(inputs, method="forced", positions=sampled.positions)
    _equal(sampled, again)
    _equal(sampled, model.rerank(inputs, method="sample", seed=SEED))


@SCORERS
def test_5_1_3_probabilities_of_all_permutations_sum_to_one(scorer):
    model, lists = _model(scorer), _lists(batch=1)
    lists["mask_xf"][:] = [1, 1, 0, 1, 1]
    orders = np.full([24, N], -1, "int32")
    orders[:, :4] = list(itertools.permutations([0, 1, 3, 4]))
    many = {name: np.repeat(value, 24, 0) for name, value in lists.items()}
    logs = _total(model.rerank(_tensors(many), method="forced", positions=tf.constant(orders)))
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-5)
    beams = model.beams(_tensors(lists), width=24)
    np.testing.assert_allclose(beams.log_probability[0], np.sort(logs)[::-1], atol=1e-5)
    np.testing.assert_array_equal(beams.positions[0, 0], orders[logs.argmax()])


# Greedy, beams and best


@SCORERS
def test_5_1_5_a_beam_of_one_is_greedy(scorer):
    model, inputs = _model(scorer), _tensors(_lists())
    greedy, beams = model.rerank(inputs), model.beams(inputs, width=1)
    np.testing.assert_array_equal(beams.positions[:, 0], greedy.positions)
    np.testing.assert_allclose(beams.log_probability[:, 0], _total(greedy), atol=1e-5)


def test_best_is_never_less_probable_than_greedy():
    lists = _lists(batch=60)
    inputs, valid = _tensors(lists), _valid(lists)
    better = 0
    for width in (2, 3):
        model = _model(beam_width=width)
        greedy, best = model.rerank(inputs), model.best(inputs)
        beams = model.beams(inputs, width=width)
        _is_slate(best.positions, valid)
        expected = np.maximum(_total(greedy), beams.log_probability.numpy()[:, 0])
        np.testing.assert_allclose(_total(best), expected, atol=1e-5)
        again = model.rerank(inputs, method="forced", positions=best.positions)
        np.testing.assert_allclose(_total(best), _total(again), atol=1e-5)
        better += (_total(best) > _total(greedy) + 1e-4).sum()
    assert better > 0


@SCORERS
def test_best_without_beams_is_greedy(scorer):
    model, inputs = _model(scorer), _tensors(_lists())
    _equal(model.best(inputs), model.rerank(inputs))


@SCORERS
@pytest.mark.parametrize("size", [1, 3])
def test_2_5_a_short_slate_is_the_start_of_the_whole_one(scorer, size):
    model, inputs = _model(scorer), _tensors(_lists())
    whole, short = model.rerank(inputs), model.rerank(inputs, size=size)
    assert short.positions.shape == (BATCH, size)
    np.testing.assert_array_equal(short.positions, whole.positions[:, :size])
    expected = whole.log_probabilities[:, :size]
    np.testing.assert_allclose(short.log_probabilities, expected, rtol=1e-6, atol=1e-6)
    assert model.beams(inputs, width=2, size=size).positions.shape == (BATCH, 2, size)


# Constraints


@SCORERS
def test_constraints(scorer):
    model, lists = _model(scorer, **({"beam_width": 3} if scorer == "sequential" else {})), _lists()
    inputs, valid = _tensors(lists), _valid(lists)
    free = model.rerank(inputs).positions.numpy()
    fixed = np.full([BATCH, N], -1, "int32")
    fixed[:, 0] = np.where(valid.sum(1) > 1, free[:, 1], -1)
    held = SlateConstraints(fixed=tf.constant(fixed))
    greedy, best = model.rerank(inputs, constraints=held), model.best(inputs, constraints=held)
    beams = model.beams(inputs, width=2, constraints=held)
    at = fixed >= 0
    assert at.sum() >= 3
    for positions in (greedy.positions, best.positions, beams.positions[:, 0]):
        _is_slate(positions, valid)
        np.testing.assert_array_equal(positions.numpy()[at], fixed[at])
    assert (_total(best) >= _total(greedy) - 1e-5).all()
    np.testing.assert_array_equal(greedy.log_probabilities.numpy()[at], 0)

    limited = SlateConstraints(categories=inputs["brand_xf"], max_per_category=1)
    limited = limited._replace(categories=tf.cast(limited.categories, tf.int32))
    for slate in (
        model.rerank(inputs, constraints=limited, size=3),
        model.rerank(inputs, constraints=limited, size=3, method="sample", seed=SEED),
    ):
        _is_slate(slate.positions, valid)
        for b, row in enumerate(slate.positions.numpy()):
            brands = lists["brand_xf"][b][row[row >= 0]]
            there = len(set(lists["brand_xf"][b][valid[b]]))
            # As many brands as there are before one comes twice.
            assert len(set(brands[: min(there, 3)])) == min(there, 3)


# Configuration


@pytest.mark.parametrize(
    "values",
    [
        {"scorer": "both"},
        {"units": 0},
        {"input_units": [4, 0]},
        {"scorer": "mlp", "hidden_units": [0]},
        {"embedding_dim": 0},
        {"initial_scale": 0.0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"loss": "squared"},
        {"loss": "softmax"},  # for one_step and mlp
        {"loss": "sigmoid"},
        {"loss": "approx_ndcg"},
        {"loss": "lambda_rank"},
        {"trajectory": "teacher"},
        {"score_term": True},  # needs sampled slates
        {"normalizer": "some"},
        {"step_weights": "linear"},
        {"reward": "auc"},
        {"reward_at": 0},
        {"baseline": "moving"},
        {"beam_width": 0},
        {"scorer": "one_step", "beam_width": 2},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_an_error(values):
    with pytest.raises(ConfigError):
        from_mapping(Seq2SlateConfig, values, "model")


@pytest.mark.parametrize("loss", ["sigmoid", "softmax", "approx_ndcg", "lambda_rank"])
@pytest.mark.parametrize("scorer", ["one_step", "mlp"])
def test_losses_of_rankers_are_for_scorers_of_one_step(scorer, loss):
    assert Seq2SlateConfig(scorer=scorer, loss=loss).loss == loss


@pytest.mark.parametrize(
    "values",
    [
        {"length": 0},
        {"num_features": -1},
        {"num_context": -1},
        {"categorical": {"brand": 0}},
        {"context": {"page": 0}},
        {"num_features": 0},  # nothing at all to know a candidate by
    ],
    ids=str,
)
def test_a_wrong_model_is_an_error(values):
    with pytest.raises(ConfigError):
        Seq2Slate(Seq2SlateConfig(units=4), **{"length": 3, "num_features": 2, **values})


@SCORERS
def test_a_configuration_round_trips(scorer):
    model = _model(scorer, input_units=[4], position=True)
    again = Seq2Slate.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert [tuple(w.shape) for w in again.weights] == [tuple(w.shape) for w in model.weights]
    again.set_weights(model.get_weights())
    inputs = _tensors(_lists())
    _equal(model.rerank(inputs), again.rerank(inputs))


def test_3_7_weights_start_uniform():
    model = _model(initial_scale=0.1, units=32)
    drawn = [
        weight
        for weight in (*model.encoder.weights, *model.decoder.weights)
        if "recurrent" not in getattr(weight, "path", weight.name) and len(weight.shape) == 2
    ]
    kernels = np.concatenate([np.ravel(weight.numpy()) for weight in drawn])
    assert np.abs(kernels).max() <= 0.1
    assert kernels.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.05)
    assert kernels.mean() == pytest.approx(0, abs=0.01)


@SCORERS
def test_dropout_is_on_in_training_only(scorer):
    model, inputs = _model(scorer, dropout=0.5), _tensors(_lists())
    plain = model(inputs).numpy()
    np.testing.assert_array_equal(model(inputs, training=False), plain)
    assert (model(inputs, training=True).numpy() != plain).any()
    assert (_model(scorer)(inputs, training=True).numpy() == _model(scorer)(inputs).numpy()).all()


def test_numeric_features_alone_are_enough():
    model = Seq2Slate(Seq2SlateConfig(units=4), length=3, num_features=2)
    lists = {"features_xf": tf.zeros([1, 3, 2]), "mask_xf": tf.constant([[1, 1, 0]])}
    assert model.rerank(lists).positions.numpy().tolist() == [[0, 1, -1]]


@SCORERS
def test_gradients_reach_every_weight(scorer):
    model, inputs = _model(scorer, input_units=[8], position=True), _tensors(_lists())
    weights = model.trainable_weights
    with tf.GradientTape() as tape:
        slate = model.rerank(inputs, method="sample", seed=SEED)
        loss = tf.reduce_sum(slate.log_probabilities)
    for weight, gradient in zip(weights, tape.gradient(loss, weights)):
        assert gradient is not None, weight.name
        value = tf.convert_to_tensor(gradient).numpy()
        assert np.isfinite(value).all(), weight.name
        # The last bias of an mlp moves all scores alike.
        assert np.abs(value).max() > 0 or (scorer == "mlp" and value.size == 1), weight.name
