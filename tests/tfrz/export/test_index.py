"""The index: merged lists of every interest against a search of all items, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from tfrz.errors import ConfigError, InputError
from tfrz.export.index import NOTHING, IndexConfig, RecommendationIndex, check_vectors, usable
from tfrz.operations import load_scann

EXACT = IndexConfig()


def _ids(count: int) -> list[bytes]:
    return [b"item-%d" % i for i in range(count)]


def _index(vectors, k: int, config: IndexConfig = EXACT) -> RecommendationIndex:
    return RecommendationIndex(_ids(len(vectors)), vectors, config, k)


def _best(users, vectors, seen, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every item is scored by the best interest, the seen ones struck out; ties by the row."""
    scores = np.einsum("bhd,id->bhi", users.astype("f8"), vectors.astype("f8")).max(axis=1)
    rows = np.full((len(users), k), -1)
    best = np.full((len(users), k), NOTHING)
    for b, row in enumerate(scores):
        left = [i for i in range(len(vectors)) if i not in set(np.ravel(seen[b]))]
        left.sort(key=lambda i: (-row[i], i))
        rows[b, : len(left)] = left[:k]
        best[b, : len(left)] = row[left[:k]]
    return rows, best


def _search(index, users, seen=None) -> tuple[np.ndarray, np.ndarray]:
    given = None if seen is None else tf.constant(seen, tf.int64)
    rows, scores = index.search(tf.constant(users, tf.float32), given)
    return rows.numpy(), scores.numpy()


def _check(index, users, vectors, seen, exactly: bool = False) -> None:
    rows, scores = _search(index, users, seen)
    expected, best = _best(
        users, vectors, np.zeros((len(users), 0)) if seen is None else seen, index.k
    )
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(
        scores, best, rtol=0 if exactly else 1e-5, atol=0 if exactly else 1e-5
    )


@pytest.mark.parametrize("seed", range(6))
def test_invariant_11_merged_lists_are_those_of_a_search_of_all_items(seed):
    rng = np.random.default_rng(seed)
    items, interests, dim = (
        int(rng.integers(5, 300)),
        int(rng.integers(1, 6)),
        int(rng.integers(1, 9)),
    )
    vectors = rng.normal(size=(items, dim)).astype("f4")
    users = rng.normal(size=(20, interests, dim)).astype("f4")
    index = _index(vectors, int(rng.integers(1, items)))
    _check(index, users, vectors, None)
    for width in (1, items // 2, items):
        seen = np.stack([rng.permutation(items)[:width] for _ in range(20)])
        _check(index, users, vectors, seen)


@pytest.mark.parametrize("seed", range(6))
def test_invariant_11_holds_to_the_bit_where_items_tie_within_an_interest_and_between_them(seed):
    """Small whole numbers: nearly all scores tie, and the lower row is first."""
    rng = np.random.default_rng(seed)
    items = int(rng.integers(2, 40))
    vectors = rng.integers(-1, 2, (items, 2)).astype("f4")
    users = rng.integers(-1, 2, (40, 3, 2)).astype("f4")
    for k in sorted({1, items // 2 or 1, items}):
        index = _index(vectors, k)
        _check(index, users, vectors, None, exactly=True)
        seen = rng.integers(-1, items, (40, 7))  # With duplicates, and -1 for none.
        _check(index, users, vectors, seen, exactly=True)


def test_invariant_11_a_list_as_long_as_the_catalogue():
    rng = np.random.default_rng(0)
    vectors, users = rng.normal(size=(23, 4)), rng.normal(size=(5, 3, 4))
    index = _index(vectors, 23)
    _check(index, users, vectors, None)
    rows, _ = _search(index, users)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(23), (5, 1)))
    _check(index, users, vectors, np.tile([[3, 5, 7]], (5, 1)))


def test_invariant_11_shorter_lists_of_an_interest_would_miss_items():
    """One interest has all of the best: a list of half of them, merged, has not."""
    vectors = np.array([[9.0, 0], [8, 0], [7, 0], [6, 0], [0, 1], [0, 2]])
    users = np.array([[[1.0, 0], [0, 1]]])
    short = [np.argsort(-(vectors @ u), kind="stable")[:2] for u in users[0]]
    assert set(np.concatenate(short)) == {0, 1, 5, 4}
    rows, scores = _search(_index(vectors, 4), users)
    assert rows.tolist() == [[0, 1, 2, 3]] and scores.tolist() == [[9, 8, 7, 6]]


def test_an_item_that_is_best_for_two_interests_is_listed_once_with_its_best_score():
    vectors = np.array([[1.0, 1], [0, 1], [1, 0], [-1, -1]])
    rows, scores = _search(_index(vectors, 4), np.array([[[1.0, 0], [3, 0], [0, 2]]]))
    assert rows.tolist() == [[0, 2, 1, 3]]
    assert scores.tolist() == [[3, 3, 2, -1]]


def test_equal_interests_and_their_order_change_nothing():
    rng = np.random.default_rng(1)
    vectors, users = rng.normal(size=(60, 5)), rng.normal(size=(8, 3, 5))
    seen = rng.integers(-1, 60, (8, 10))
    index = _index(vectors, 12)
    expected = _search(index, users, seen)
    for others in (users[:, ::-1], np.concatenate([users, users[:, :2]], axis=1)):
        rows, scores = _search(index, others, seen)
        np.testing.assert_array_equal(rows, expected[0])
        np.testing.assert_allclose(scores, expected[1], rtol=1e-6)


def test_one_interest_is_an_ordinary_search():
    rng = np.random.default_rng(2)
    vectors, users = rng.normal(size=(50, 6)).astype("f4"), rng.normal(size=(9, 1, 6)).astype("f4")
    best = tf.math.top_k(tf.matmul(users[:, 0], vectors, transpose_b=True), 7)
    rows, scores = _search(_index(vectors, 7), users)
    np.testing.assert_array_equal(rows, best.indices)
    np.testing.assert_array_equal(scores, best.values)


def test_a_batch_of_one_is_the_row_of_a_larger_batch():
    rng = np.random.default_rng(3)
    vectors, users = rng.normal(size=(80, 4)), rng.normal(size=(16, 2, 4))
    seen = rng.integers(-1, 80, (16, 5))
    index = _index(vectors, 10)
    rows, scores = _search(index, users, seen)
    for b in range(16):
        one, value = _search(index, users[b : b + 1], seen[b : b + 1])
        np.testing.assert_array_equal(one[0], rows[b])
        np.testing.assert_allclose(value[0], scores[b], rtol=1e-5)
    rows, scores = _search(index, users[:0], seen[:0])
    assert rows.shape == scores.shape == (0, 10)


def test_the_types_are_those_of_the_contract():
    index = _index(np.eye(3), 2)
    rows, scores = index.search(tf.ones([1, 1, 3]))
    assert (rows.dtype, scores.dtype) == (tf.int64, tf.float32)
    answer = index.recommend(tf.ones([1, 1, 3]))
    assert set(answer) == {"item_ids", "scores"}
    assert (answer["item_ids"].dtype, answer["scores"].dtype) == (tf.string, tf.float32)
    assert answer["item_ids"].shape == answer["scores"].shape == (1, 2)


def test_what_is_seen_may_have_no_place_at_all():
    rng = np.random.default_rng(4)
    vectors, users = rng.normal(size=(9, 3)), rng.normal(size=(4, 2, 3))
    index = _index(vectors, 5)
    expected = _search(index, users)
    for seen in (np.zeros((4, 0)), np.full((4, 3), -1)):
        for a, b in zip(_search(index, users, seen), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    answer = index.recommend(tf.constant(users, tf.float32), tf.zeros([4, 0], tf.string))
    np.testing.assert_array_equal(index.rows_of(answer["item_ids"]), expected[0])


def test_seen_items_are_left_out_by_their_raw_ids():
    names = [b"\xff\x00raw", "größe".encode(), b"0", b" ", b"x"]
    index = RecommendationIndex(names, -np.arange(5.0)[:, None], EXACT, 3)
    user = tf.ones([3, 1, 1])
    seen = tf.constant([[b"\xff\x00raw", b" ", b""], [b"", b"x", b"x"], [b"?", b"00", b"0"]])
    ids = index.recommend(user, seen)["item_ids"].numpy().tolist()
    assert ids[0] == [names[1], b"0", b"x"]
    assert ids[1] == [names[0], names[1], b"0"]
    assert ids[2] == [names[0], names[1], b" "]
    rows = index.rows_of(tf.constant([b"x", b"", b"raw", b"\xff\x00raw", b" "]))
    assert rows.dtype == tf.int64 and rows.numpy().tolist() == [4, -1, -1, 0, 3]


def test_whoever_saw_all_items_is_shown_none():
    rng = np.random.default_rng(5)
    index = _index(rng.normal(size=(6, 2)), 6)
    users = tf.constant(rng.normal(size=(3, 2, 2)), tf.float32)
    every = [b"item-%d" % i for i in range(6)]
    seen = [every, every[:4] + [b"", b"?"], every[::-1]]
    answer = index.recommend(users, tf.constant(seen))
    ids, scores = answer["item_ids"].numpy(), answer["scores"].numpy()
    for row in (0, 2):
        assert ids[row].tolist() == [b""] * 6
        assert scores[row].tolist() == [-1e9] * 6
    assert sorted(ids[1, :2]) == [b"item-4", b"item-5"]
    assert ids[1, 2:].tolist() == [b""] * 4 and scores[1, 2:].tolist() == [-1e9] * 4
    assert scores[1, 0] >= scores[1, 1] > -1e9


def test_a_user_whose_vector_is_no_number_is_shown_nothing_and_harms_nobody():
    rng = np.random.default_rng(6)
    vectors, users = rng.normal(size=(8, 3)), rng.normal(size=(3, 2, 3))
    index = _index(vectors, 4)
    expected = _search(index, users)
    users[1] = np.nan
    rows, scores = _search(index, users)
    assert rows[1].tolist() == [-1] * 4 and scores[1].tolist() == [-1e9] * 4
    for row in (0, 2):
        np.testing.assert_array_equal(rows[row], expected[0][row])
        np.testing.assert_array_equal(scores[row], expected[1][row])


def test_a_catalogue_of_one_item():
    index = _index(np.array([[2.0, -1.0]]), 1)
    answer = index.recommend(
        tf.constant([[[1.0, 1.0], [0.0, 5.0]]] * 2), tf.constant([[b""], [b"item-0"]])
    )
    assert answer["item_ids"].numpy().tolist() == [[b"item-0"], [b""]]
    assert answer["scores"].numpy().tolist() == [[1.0], [-1e9]]


def test_in_a_graph_batch_and_seen_may_have_any_size():
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(30, 4))
    index = _index(vectors, 6)
    spec = [tf.TensorSpec([None, 3, 4], tf.float32), tf.TensorSpec([None, None], tf.int64)]
    search = tf.function(index.search, input_signature=spec)
    for batch, width in ((1, 0), (5, 1), (2, 40)):
        users = rng.normal(size=(batch, 3, 4))
        seen = rng.integers(-1, 30, (batch, width))
        rows, scores = search(tf.constant(users, tf.float32), tf.constant(seen))
        expected, best = _best(users, vectors, seen, 6)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(scores, best, rtol=1e-4)


# What is refused.


@pytest.mark.parametrize("kind", ["brute_force", "scann"])
def test_a_list_longer_than_the_catalogue_is_refused(kind):
    with pytest.raises(InputError, match=r"export\.top_k is 21.*20 items") as caught:
        _index(np.eye(20), 21, IndexConfig(kind=kind))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="0 items"):
        RecommendationIndex([], np.zeros((0, 2)), EXACT, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["brute_force", "scann"])
def test_a_vector_that_is_no_number_is_refused_with_the_items_id(value, kind):
    vectors = np.ones((20, 3), "f4")
    vectors[13, 1] = value
    with pytest.raises(InputError, match=r"'item-13'.*not finite") as caught:
        _index(vectors, 2, IndexConfig(kind=kind))
    assert "\n" not in str(caught.value) and "others" not in str(caught.value)


def test_the_first_of_several_such_vectors_is_named_and_the_others_counted():
    vectors = np.zeros((5, 2))
    vectors[[1, 2, 4]] = np.nan
    with pytest.raises(InputError, match=r"'item-1'.*2 others"):
        check_vectors(_ids(5), vectors, 1)
    names = [b"a", b"\xff\xfe", b"c"]
    with pytest.raises(InputError, match=r"xff.*xfe.*not finite"):
        check_vectors(names, np.array([[0.0], [np.nan], [0.0]]), 1)


def test_a_float64_vector_too_large_for_float32_is_refused():
    with pytest.raises(InputError, match="'item-2'"):
        _index(np.array([[0.0], [1.0], [1e300]]), 1)


def test_sound_vectors_pass():
    check_vectors(_ids(3), np.ones((3, 1)), 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_leaves", 0),
        ("leaves_to_search", 0),
        ("dimensions_per_block", 0),
        ("reorder", 0),
        ("check_queries", 0),
        ("min_recall", 1.5),
        ("min_recall", -0.1),
    ],
)
def test_settings_out_of_range_name_themselves(name, value):
    with pytest.raises(ConfigError, match=rf"export\.index\.{name}"):
        IndexConfig(**{name: value})


def test_parts_of_the_space_follow_the_size_of_the_catalogue():
    assert IndexConfig().leaves(10_000) == (100, 10)
    assert IndexConfig().leaves(1) == (1, 1)
    assert IndexConfig(num_leaves=50, leaves_to_search=60).leaves(10) == (10, 10)
    assert IndexConfig(num_leaves=50, leaves_to_search=7).leaves(1000) == (50, 7)


# Written and read again.

SAVED = {"brute_force": EXACT, "scann": IndexConfig(kind="scann", num_leaves=4, leaves_to_search=4)}


@pytest.mark.parametrize("kind", SAVED)
def test_a_saved_index_answers_the_same(tmp_path, kind):
    if kind == "scann":
        pytest.importorskip("scann")
    rng = np.random.default_rng(8)
    users = tf.constant(rng.normal(size=(4, 2, 4)), tf.float32)
    seen = tf.constant([[b"item-1", b"item-2"], [b"", b""], [b"?", b"item-0"], [b"item-5", b""]])
    module = tf.Module()
    module.index = index = _index(rng.normal(size=(40, 4)), 6, SAVED[kind])
    spec = [tf.TensorSpec([None, 2, 4], tf.float32), tf.TensorSpec([None, None], tf.string)]
    recommend = tf.function(lambda users, seen: index.recommend(users, seen), input_signature=spec)
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"] if kind == "scann" else None)
    tf.saved_model.save(module, str(tmp_path / "m"), {"recommend": recommend}, options)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    answer = loaded.signatures["recommend"](users=users, seen=seen)
    expected = index.recommend(users, seen)
    assert set(answer) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(answer[name].numpy(), value.numpy())


# ScaNN.

ALL = IndexConfig(kind="scann", num_leaves=10, leaves_to_search=10)


def _clusters(items: int, dim: int = 8, seed: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    return (centres[rng.integers(20, size=items)] + 0.3 * rng.normal(size=(items, dim))).astype(
        "f4"
    )


def _found(rows, exact) -> float:
    return float(
        np.mean(
            [
                len(set(a) & (set(b) - {-1})) / len(set(b) - {-1})
                for a, b in zip(rows, exact, strict=True)
            ]
        )
    )


@pytest.fixture(scope="module")
def large():
    """Both indexes of one catalogue, and requests to it."""
    pytest.importorskip("scann")
    vectors = _clusters(2000)
    users = np.random.default_rng(10).normal(size=(50, 3, 8)).astype("f4")
    config = IndexConfig(kind="scann", num_leaves=40, leaves_to_search=30)
    return vectors, users, _index(vectors, 20), _index(vectors, 20, config)


@pytest.mark.slow
def test_scann_finds_nearly_all_with_the_same_interface(large):
    vectors, users, exact, scann = large
    rows, scores = _search(scann, users)
    expected, _ = _search(exact, users)
    assert rows.shape == (50, 20) and rows.dtype == np.int64 and scores.dtype == np.float32
    assert _found(rows, expected) >= 0.95
    assert all(len(set(row)) == 20 for row in rows)
    assert (np.diff(scores, axis=1) <= 0).all()
    own = np.einsum("bhd,bid->bhi", users, vectors[rows]).max(axis=1)
    np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_scann_leaves_out_what_was_seen(large):
    _, users, exact, scann = large
    best, _ = _search(exact, users)
    seen = best[:, :15]
    rows, _ = _search(scann, users, seen)
    expected, _ = _search(exact, users, seen)
    for row, known in zip(rows, seen, strict=True):
        assert not set(row) & set(known)
    assert _found(rows, expected) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("width", [100, 400])
def test_scann_still_finds_a_list_for_those_who_have_seen_the_best_of_it(large, width):
    """Whoever took what they like has seen the top of every list; that is who comes back."""
    vectors, users, exact, _ = large
    scann = _index(vectors, 20, ALL)
    ranked = np.argsort(
        -np.einsum("bhd,id->bhi", users, vectors).max(axis=1), axis=1, kind="stable"
    )
    seen = ranked[:, :width]
    rows, _ = _search(scann, users, seen)
    expected, _ = _search(exact, users, seen)
    assert (expected >= 0).all()
    assert (rows >= 0).mean() > 0.99
    assert _found(rows, expected) >= 0.9


@pytest.mark.needs("scann")
@pytest.mark.slow
@pytest.mark.parametrize("interests", [1, 2])
def test_scann_that_looks_at_fewer_items_than_are_asked_for_leaves_the_other_places_empty(
    interests,
):
    vectors = _clusters(60)
    config = IndexConfig(kind="scann", num_leaves=6, leaves_to_search=1)
    users = np.random.default_rng(0).normal(size=(5, interests, 8))
    rows, scores = _search(_index(vectors, 50, config), users)
    assert rows.shape == scores.shape == (5, 50)
    assert ((rows < 0) == (scores == NOTHING)).all() and (rows[:, 0] >= 0).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in rows)


@pytest.mark.needs("scann")
@pytest.mark.slow
def test_scann_lists_the_whole_catalogue_if_asked():
    vectors = _clusters(100)
    rows, _ = _search(_index(vectors, 100, ALL), np.random.default_rng(0).normal(size=(3, 2, 8)))
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(100), (3, 1)))


@pytest.mark.needs("scann")
@pytest.mark.slow
def test_a_catalogue_too_small_for_scann_is_answered_or_refused_in_words():
    """In a process of its own: ScaNN ends the process that gives it a single item."""
    code = """
import numpy as np
from tests.tfrz.export.test_index import _index, _search, IndexConfig, InputError
for items in (15, 2, 1):
    vectors = np.random.default_rng(0).normal(size=(items, 4))
    try:
        index = _index(vectors, 1, IndexConfig(kind="scann", num_leaves=1, leaves_to_search=1))
        outcome = f"answered {_search(index, vectors[:1, None])[0].tolist()}"
    except InputError as error:
        outcome = f"refused {error}"
    except Exception as error:
        outcome = f"{type(error).__name__} {str(error)[-120:]}"
    print("OUTCOME", items, outcome.replace(chr(10), " "), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("OUTCOME")]
    assert done.returncode == 0, (done.returncode, told)
    assert len(told) == 3
    for line in told:
        assert "answered" in line or "refused export.index.kind" in line, line


@pytest.mark.parametrize(
    ("why", "error"),
    [
        ("is not installed", None),
        ("does not load beside this TensorFlow", ImportError("undefined symbol: absl")),
        (
            "does not load beside this TensorFlow",
            tf.errors.NotFoundError(None, None, "undefined symbol: absl"),
        ),
    ],
)
def test_brute_force_takes_the_place_of_scann_that_does_not_load(why, error, monkeypatch, caplog):
    if error is None:
        monkeypatch.setitem(sys.modules, "scann", None)
    else:
        monkeypatch.delitem(sys.modules, "scann", raising=False)
        loader = types.ModuleType("scann_loader")

        def find_spec(name, path=None, target=None):
            if name == "scann":
                raise error

        loader.find_spec = find_spec
        monkeypatch.setattr(sys, "meta_path", [loader, *sys.meta_path])
    config = IndexConfig(kind="scann", min_recall=0.123)
    usable.cache_clear()
    index = _index(np.eye(20), 1, config)
    assert index.kind == "brute_force"
    assert _search(index, np.eye(20)[3:4, None])[0].tolist() == [[3]]
    assert [r.message for r in caplog.records if why in r.message] != []
    with pytest.raises(InputError, match=f"the model needs ScaNN's operations, but ScaNN {why}"):
        load_scann()
    usable.cache_clear()


def test_places_that_a_search_left_empty_do_not_cost_the_first_item():
    """ScaNN fills them with row 0 and NaN."""
    index = _index(np.eye(4, 2), 3)
    index._search = lambda queries, k: (
        tf.constant([[np.nan, np.nan, 2.0, 1.0]]),
        tf.constant([[0, 0, 0, 3]], tf.int64),
    )
    rows, scores = index.search(tf.ones([1, 1, 2]))
    assert rows.numpy().tolist() == [[0, 3, -1]]
    assert scores.numpy().tolist() == [[2.0, 1.0, NOTHING]]
