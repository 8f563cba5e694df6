"""Examples of timelines: ids against plain loops, under TFT and not; built by Beam and not."""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tfrz.config import from_mapping
from tfrz.data.columns import raw_sparse
from tfrz.data.spec import Feature, raw_feature_spec
from tfrz.data.splits import SPLITS
from tfrz.data.timelines.examples import buckets_of, build_examples, clean
from tfrz.data.timelines.slicing import Slice, SliceSpecification
from tfrz.data.timelines.spec import TimelineConfig, TimelineSpec, example_spec
from tfrz.data.timelines.transform import TimelinePreprocessor, preprocess_timeline
from tfrz.data.transform import densify
from tfrz.export.raw_inputs import to_sparse
from tfrz.zoo.tasks.timeline import transform_timelines

beam = lazy("apache_beam")
metrics = lazy("apache_beam.metrics")
tft = lazy("tensorflow_transform")
tft_analyzers = lazy("tfrz.data.tft_analyzers")
tft_beam = lazy("tensorflow_transform.beam")
timelines_beam = lazy("tfrz.data.timelines.beam")

HOUR, DAY = 3600, 86_400
NOW = 1_700_000_000
HELD_OUT = (0.2, 0.2)
SOURCE = TimelineSpec(
    ids=(
        Feature("item", vocabulary_size=12, oov_buckets=2),
        Feature("topics", multivalent=True, min_count=40),
        Feature("shop"),
    ),
    actions=("like", "share", "view"),
    implicit=("view",),
    duration="duration",
    dwell="dwell",
    value="value",
    binary=("liked", "shared"),
    regression=("watched",),
    candidate=("item", "topics"),
)
SLICES = SliceSpecification(
    3,
    (
        Slice("all", "explicit", "item", "items"),
        Slice("topics seen", "implicit", "topics", "topics", weight="watch_score"),
        Slice("lately", "explicit", "item", "items", days=3),
        Slice("amounts", "explicit", "topics", "topics", weight="value"),
        Slice("watched", "implicit", "item", "watched", dwell=(5.0, None)),
    ),
    gamma=0.7,
)
SCHEMA = pa.schema(
    [
        ("user", pa.binary()),
        ("time", pa.int64()),
        ("position", pa.int64()),
        ("explicit", pa.bool_()),
        ("action", pa.binary()),
        ("item", pa.binary()),
        ("topics", pa.list_(pa.binary())),
        ("shop", pa.binary()),
        ("duration", pa.float32()),
        ("dwell", pa.float32()),
        ("value", pa.float32()),
        ("label_liked", pa.float32()),
        ("label_shared", pa.float32()),
        ("label_watched", pa.float32()),
    ]
)


def _config(**values) -> TimelineConfig:
    return from_mapping(TimelineConfig, {"slices": SLICES, "targets": 6, **values}, "data.timeline")


def _events(users: int = 25, most: int = 40, seed: int = 0) -> pa.Table:
    """In no order; some at the same second, some twice, some of unknown actions."""
    rng, rows = np.random.default_rng(seed), []
    # Bytes that are no UTF-8, and those that a file of terms cannot hold.
    names = [b"i0", b"i1", b"i2", b"\xff\xfe", b"a\nb", b"", None]
    names += [b"i%d" % i for i in range(3, 20)]
    topics = ["größe".encode(), None] + [b"t%d" % i for i in range(6)]
    often = 0.5 ** np.arange(8) / np.sum(0.5 ** np.arange(8))
    for user in range(users):
        for _ in range(int(rng.integers(1, most))):
            view = bool(rng.random() < 0.5)
            chosen = rng.choice(8, int(rng.integers(0, 4)), replace=False, p=often)
            rows.append(
                {
                    "user": b"u%d" % user,
                    "time": NOW + int(rng.integers(0, 12 * 24)) * HOUR,
                    "explicit": not view,
                    "action": b"view" if view else [b"like", b"share", b"nod"][rng.integers(3)],
                    "item": names[min(int(rng.exponential(5)), 23)],
                    "topics": [topics[i] for i in chosen],
                    "shop": b"s%d" % rng.integers(3),
                    "duration": [None, 0.0, 30.0][rng.integers(3)] if view else None,
                    "dwell": float(rng.integers(0, 20)) if view else None,
                    "value": None if view else float(rng.integers(0, 5)) / 3,
                    "label_liked": [None, 0.0, 1.0][rng.integers(3)],
                    "label_shared": [None, math.nan, 1.0][rng.integers(3)],
                    "label_watched": [None, 2.5][rng.integers(2)],
                }
            )
            if rng.random() < 0.1:
                rows.append(rows[-1])
    order = rng.permutation(len(rows)).tolist()
    return pa.Table.from_pylist(
        [{**rows[i], "position": place} for place, i in enumerate(order)], SCHEMA
    )


def _examples(config: TimelineConfig, events: pa.Table | None = None) -> dict[str, pa.Table]:
    events, _ = clean(_events() if events is None else events, SOURCE)
    return build_examples(events, example_spec(SOURCE, config), config, HELD_OUT)


CONFIG = _config(negatives=2, recent=3)
SPEC = example_spec(SOURCE, CONFIG)
LISTS = {one.name: one for one in SPEC.lists}


@pytest.fixture(scope="module")
def examples():
    found = _examples(CONFIG)
    assert all(found[split].num_rows > 10 for split in SPLITS)
    return found


@pytest.fixture(scope="module")
def fitted(examples):
    return TimelinePreprocessor.fit_examples(examples["train"], SPEC)


# Against plain loops.


def _terms(train: list[dict]) -> dict[str, list[bytes]]:
    """Each type's terms in the order of their ids, counted entry by entry."""
    counts: dict[str, collections.Counter] = {f.name: collections.Counter() for f in SOURCE.ids}
    for row in train:
        for one in SPEC.lists:
            counts[one.id].update(row[f"{one.name}_ids"])
    terms = {}
    for feature in SOURCE.ids:
        found = [
            (count, term)
            for term, count in counts[feature.name].items()
            if count >= feature.min_count and term and b"\n" not in term
        ]
        terms[feature.name] = [term for _, term in sorted(found, reverse=True)]
        terms[feature.name] = terms[feature.name][: feature.vocabulary_size]
    return terms


def test_lists_of_an_example_are_those_of_the_tables_and_of_what_describes_candidates():
    assert {name: (one.id, one.places) for name, one in LISTS.items()} == {
        "slices_items": ("item", 2),
        "slices_topics": ("topics", 2),
        "slices_watched": ("item", 1),
        "candidate_item": ("item", 3),
        "candidate_topics": ("topics", 3),
        "recent_item": ("item", 1),
        "recent_topics": ("topics", 1),
    }


def test_vocabularies_are_those_of_plain_loops(examples, fitted):
    terms = _terms(examples["train"].to_pylist())
    assert set(fitted.vocabularies) == {"item", "topics"}
    for name, known in fitted.vocabularies.items():
        assert known == [term.decode("utf-8", "backslashreplace") for term in terms[name]]
    # Both limits have left something out, and something is in it.
    assert len(terms["item"]) == 12
    assert 2 < len(terms["topics"]) < 7
    assert b"\xff\xfe" in terms["item"]
    assert b"a\nb" not in terms["item"]
    assert fitted.vocabulary_sizes == {
        "item_xf": 1 + 12 + 2,
        "topics_xf": 1 + len(terms["topics"]) + 1,
    }


@pytest.mark.parametrize("split", SPLITS)
def test_transformed_examples_are_those_of_plain_loops(examples, fitted, split):
    rows = examples[split].to_pylist()
    terms = _terms(examples["train"].to_pylist())
    found = transform_timelines(fitted, examples[split], SPEC)
    unseen: dict[bytes, set[int]] = collections.defaultdict(set)
    for place, row in enumerate(rows):
        for name, one in LISTS.items():
            got = {p: found[f"{name}_{p}_xf"][place].numpy() for p in ("ids", "places", "weights")}
            assert got["places"].tolist() == row[f"{name}_places"]
            np.testing.assert_array_equal(got["weights"], np.float32(row[f"{name}_weights"]))
            assert all(0 <= p < one.places for p in row[f"{name}_places"])
            assert len(got["ids"]) == len(row[f"{name}_ids"])
            for term, number in zip(row[f"{name}_ids"], got["ids"].tolist(), strict=True):
                if term in terms[one.id]:
                    assert number == 1 + terms[one.id].index(term)
                else:
                    known, size = len(terms[one.id]), fitted.vocabulary_sizes[f"{one.id}_xf"]
                    assert known < number < size
                    unseen[term].add(number)
        for task in SOURCE.tasks:
            np.testing.assert_array_equal(
                found[f"label_{task}_xf"][place].numpy(), np.float32(row[f"label_{task}"])
            )
    assert unseen
    assert all(len(numbers) == 1 for numbers in unseen.values())
    assert b"" not in unseen


def test_transformed_lists_are_ragged_and_outcomes_are_not(examples, fitted):
    found = transform_timelines(fitted, examples["test"], SPEC)
    names = {f"{name}_{part}_xf" for name in LISTS for part in ("ids", "places", "weights")}
    assert set(found) == names | {f"label_{task}_xf" for task in SOURCE.tasks}
    for name in names:
        assert isinstance(found[name], tf.RaggedTensor)
        assert found[name].dtype == (tf.float32 if name.endswith("weights_xf") else tf.int64)
    for task in SOURCE.tasks:
        assert found[f"label_{task}_xf"].shape == (examples["test"].num_rows, 3)
        assert found[f"label_{task}_xf"].dtype == tf.float32
    liked, watched = (found[f"label_{task}_xf"].numpy() for task in ("liked", "watched"))
    # Of the candidates that were drawn only the binary outcomes are known, and they are 0.
    assert (liked[:, 1:] == 0).all()
    assert np.isnan(watched[:, 1:]).all()
    assert np.isnan(liked[:, 0]).any()


def test_no_examples_are_transformed_to_none(examples, fitted):
    found = transform_timelines(fitted, examples["test"].slice(0, 0), SPEC)
    assert all(value.shape[0] == 0 for value in found.values())


def test_many_examples_are_transformed_as_few_are(examples, fitted):
    """More rows than are transformed at once."""
    count = examples["train"].num_rows
    many = pa.concat_tables([examples["train"]] * (1 + 1100 // count))
    found = transform_timelines(fitted, many, SPEC)
    few = transform_timelines(fitted, examples["train"], SPEC)
    for name, value in few.items():
        last = found[name][many.num_rows - count :]
        assert found[name].shape[0] == many.num_rows
        if isinstance(value, tf.RaggedTensor):
            assert last.to_list() == value.to_list()
        else:
            np.testing.assert_array_equal(last, value)


def test_without_the_outcomes_the_rest_is_the_same(examples, fitted):
    table = examples["test"]
    whole = densify(fitted(raw_sparse(table, SPEC), with_label=True))
    parts = densify(fitted(raw_sparse(table, SPEC, label=False)))
    assert set(whole) - set(parts) == {f"label_{task}_xf" for task in SOURCE.tasks}
    for name, value in parts.items():
        np.testing.assert_array_equal(value, whole[name])


# Requests that are not what a request should be.


def _sparse(values: list[list], dtype) -> tf.SparseTensor:
    return tf.RaggedTensor.from_row_lengths(
        tf.constant([v for row in values for v in row], dtype), [len(row) for row in values]
    ).to_sparse()


def _request(**lists: tuple[list, list, list]) -> dict[str, tf.SparseTensor]:
    """Raw features of one row each."""
    raw = {}
    for name, parts in lists.items():
        kinds = (("ids", tf.string), ("places", tf.int64), ("weights", tf.float32))
        for (part, dtype), values in zip(kinds, parts, strict=True):
            raw[f"{name}_{part}"] = _sparse([values], dtype)
    return raw


def test_lists_that_are_not_there_are_left_out(fitted):
    raw = _request(slices_items=(["i0", "i1"], [0, 1], [1.0, 0.5]))
    found = densify(fitted(raw))
    assert set(found) == {f"slices_items_{part}_xf" for part in ("ids", "places", "weights")}
    known = fitted.vocabularies["item"]
    assert found["slices_items_ids_xf"].numpy().tolist() == [
        [1 + known.index("i0"), 1 + known.index("i1")]
    ]
    assert fitted({}) == {}


def test_empty_lists_and_empty_ids(fitted):
    found = densify(fitted(_request(slices_items=([], [], []))))
    assert all(value.shape == (1, 0) for value in found.values())
    # An empty id is none; the place of the next is still its own.
    raw = _request(slices_items=(["", "i0"], [1, 0], [3.0, 0.5]))
    found = densify(fitted(raw))
    assert found["slices_items_ids_xf"].numpy().tolist() == [
        [0, 1 + fitted.vocabularies["item"].index("i0")]
    ]
    assert found["slices_items_weights_xf"].numpy().tolist() == [[3.0, 0.5]]


def test_unknown_ids_have_the_buckets_behind_the_vocabulary(fitted):
    terms = [f"unheard of {i}" for i in range(50)]
    found = densify(fitted(_request(slices_items=(terms, [0] * 50, [1.0] * 50))))
    assert set(found["slices_items_ids_xf"].numpy()[0]) == {13, 14}
    found = densify(fitted(_request(recent_topics=(terms, [0] * 50, [1.0] * 50))))
    assert set(found["recent_topics_ids_xf"].numpy()[0]) == {1 + len(fitted.vocabularies["topics"])}


@pytest.mark.parametrize("lengths", [(3, 1, 2), (1, 3, 2), (2, 1, 3), (0, 2, 1), (2, 0, 0)])
def test_lists_of_different_lengths_are_read_as_far_as_all_go(fitted, lengths):
    ids, places, weights = lengths
    raw = _request(slices_items=(["i0"] * ids, [1] * places, [2.0] * weights))
    found = {name: value.numpy()[0] for name, value in densify(fitted(raw)).items()}
    one = 1 + fitted.vocabularies["item"].index("i0")
    shortest = min(lengths)
    assert found["slices_items_ids_xf"].tolist() == [one] * shortest
    assert found["slices_items_weights_xf"].tolist() == [2.0] * shortest
    assert found["slices_items_places_xf"].tolist() == [1] * shortest


def test_places_out_of_range_are_for_the_model_to_ignore(fitted):
    raw = _request(slices_items=(["i0"] * 3, [-1, 7, 2**40], [1.0] * 3))
    assert densify(fitted(raw))["slices_items_places_xf"].numpy().tolist() == [[-1, 7, 2**40]]


@pytest.mark.parametrize("known", [0, 1, 3, 5])
def test_outcomes_are_of_so_many_candidates(fitted, examples, known):
    raw = dict(raw_sparse(examples["test"].slice(0, 1), SPEC))
    for task in SOURCE.tasks:
        raw[f"label_{task}"] = _sparse([[1.0] * known], tf.float32)
    found = fitted(raw, with_label=True)
    for task in SOURCE.tasks:
        expected = [1.0] * min(known, 3) + [math.nan] * max(3 - known, 0)
        np.testing.assert_equal(found[f"label_{task}_xf"].numpy(), [expected])


def test_raw_tensors_with_padding_are_the_same_request(fitted):
    given = {
        "slices_items_ids": tf.constant([["i0", "i1", "", ""], ["", "", "i2", ""]]),
        "slices_items_places": tf.constant([[0, 1, 0, 0], [0, 0, 1, 0]], tf.int64),
        "slices_items_weights": tf.constant([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]),
    }
    found = densify(fitted(to_sparse(given, list(given))))
    ids = [1 + fitted.vocabularies["item"].index(f"i{i}") for i in range(3)]
    for row, entries in enumerate([[(ids[0], 0, 1.0), (ids[1], 1, 2.0)], [(ids[2], 1, 3.0)]]):
        parts = [found[f"slices_items_{p}_xf"].numpy()[row] for p in ("ids", "places", "weights")]
        assert [entry for entry in zip(*parts, strict=True) if entry[0]] == entries


# Under TensorFlow Transform.


def _raw_rows(table: pa.Table) -> list[dict]:
    return table.drop(["user", "request_time"]).to_pylist()


@pytest.fixture(scope="module")
def by_transform(examples, tmp_path_factory):
    """Rows as TensorFlow Transform writes them, and its output."""
    folder = tmp_path_factory.mktemp("transform")
    metadata = tft.DatasetMetadata.from_feature_spec(raw_feature_spec(SPEC))
    with beam.Pipeline(runner="DirectRunner") as pipeline, tft_beam.Context(str(folder / "tmp")):
        rows = pipeline | beam.Create(_raw_rows(examples["train"]))
        (data, _), function = (rows, metadata) | tft_beam.AnalyzeAndTransformDataset(
            lambda inputs: preprocess_timeline(inputs, SPEC, tft_analyzers.TransformAnalyzers())
        )
        _ = function | tft_beam.WriteTransformFn(str(folder / "output"))
        _ = data | beam.Map(_line) | beam.io.WriteToText(str(folder / "rows"), num_shards=1)
    (path,) = folder.glob("rows*")
    return path.read_text().splitlines(), tft.TFTransformOutput(str(folder / "output"))


def _line(row: dict) -> str:
    return json.dumps({name: np.asarray(row[name]).tolist() for name in sorted(row)})


@pytest.mark.needs("tensorflow_transform")
def test_both_transforms_give_the_same_vocabularies(fitted, by_transform):
    _, output = by_transform
    found = tft_analyzers.vocabularies_from_transform(output, SPEC)
    assert found == {f"{name}_xf": terms for name, terms in fitted.vocabularies.items()}
    assert tft_analyzers.vocabulary_sizes_from_transform(output, SPEC) == fitted.vocabulary_sizes


@pytest.mark.needs("tensorflow_transform")
def test_both_transforms_give_the_same_examples(fitted, by_transform, examples):
    rows, _ = by_transform
    ours = transform_timelines(fitted, examples["train"], SPEC)
    own = [
        _line({name: value[i].numpy() for name, value in ours.items()})
        for i in range(examples["train"].num_rows)
    ]
    assert sorted(rows) == sorted(own)


@pytest.mark.needs("tensorflow_transform")
def test_the_transforms_graph_answers_requests(fitted, by_transform, examples):
    _, output = by_transform
    layer = output.transform_features_layer()
    raw = raw_sparse(examples["test"], SPEC, label=False)
    found, own = densify(layer(dict(raw))), densify(fitted(raw))
    assert set(found) == set(own)
    for name, value in own.items():
        np.testing.assert_array_equal(found[name], value)
    # Requests for an embedding have the slices alone.
    slices = {name: value for name, value in raw.items() if name.startswith("slices_")}
    found = densify(layer(slices))
    assert {name for name in own if name.startswith("slices_")} <= set(found)
    for name in slices:
        np.testing.assert_array_equal(found[f"{name}_xf"], own[f"{name}_xf"])
    # So have those without anything.
    spec = raw_feature_spec(SPEC, label=False)
    found = densify(layer(dict(tf.io.parse_example([b"", b""], spec))))
    assert all(value.shape == (2, 0) for value in found.values())


# Under Beam.


def _lines(table: pa.Table | pa.RecordBatch) -> list[str]:
    def plain(value):
        return value.decode("latin-1") if isinstance(value, bytes) else value

    names = [name for name in table.schema.names if name not in ("user", "request_time")]
    return sorted(
        json.dumps({name: [plain(v) for v in row[name]] for name in sorted(names)})
        for row in table.to_pylist()
    )


def _by_beam(events: pa.Table, config: TimelineConfig, folder: Path, chunk: int):
    batches = beam.Create(events.to_batches(max_chunksize=chunk), reshuffle=False)
    pipeline = beam.Pipeline(runner="DirectRunner")
    outputs = pipeline | batches | timelines_beam.EventsToExamples(SOURCE, config, HELD_OUT)
    for split in SPLITS:
        _ = (
            outputs[split]
            | f"Lines{split}" >> beam.FlatMap(_lines)
            | f"Write{split}" >> beam.io.WriteToText(str(folder / split), num_shards=1)
        )
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(metrics.MetricsFilter().with_namespace("tfrz"))["counters"]
    written = {}
    for split in SPLITS:
        (path,) = folder.glob(f"{split}*")
        written[split] = sorted(path.read_text().splitlines())
    return written, {c.key.metric.name: c.committed for c in counters}


BY_TIME = {"split": "time", "validation_start": NOW + 7 * DAY, "test_start": NOW + 9 * DAY}


@pytest.mark.needs("apache_beam")
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"negatives": 3, "recent": 2},
        {"negatives": 2, "pool": 40, "staleness_days": 0.5, **BY_TIME},
    ],
    ids=["plain", "negatives", "small pool, by time"],
)
def test_beam_makes_the_same_examples_as_memory(values, tmp_path):
    config, events = _config(**values), _events(users=90, most=25, seed=1)
    expected = _examples(config, events)
    found, counters = _by_beam(events, config, tmp_path, 61)
    for split in SPLITS:
        assert len(found[split]) > 30
        assert found[split] == _lines(expected[split])
    _, left_out = clean(events, SOURCE)
    assert left_out == {"unknown action nod": left_out["unknown action nod"]}
    assert counters == left_out


@pytest.mark.needs("apache_beam")
def test_beam_takes_batches_of_which_nothing_is_left(tmp_path):
    events = _events(users=20)
    nod = pa.array([b"nod"] * events.num_rows, pa.binary())
    place = events.schema.get_field_index("action")
    unknown = events.set_column(place, "action", nod)
    unknown = unknown.set_column(0, "user", pa.array([b"nobody"] * events.num_rows, pa.binary()))
    config = _config(negatives=1)
    found, _ = _by_beam(pa.concat_tables([unknown, events, unknown]), config, tmp_path, 50)
    for split, table in _examples(config, events).items():
        assert found[split] == _lines(table)
        assert found[split]


@pytest.mark.needs("apache_beam")
def test_what_a_run_before_has_read_is_left_out_uncounted():
    events = _events(users=5)
    (batch,) = events.to_batches()
    since, as_of = NOW + 4 * DAY, NOW + 8 * DAY
    found = list(timelines_beam.Clean(SOURCE, as_of, since).process(batch))
    counts = dict(one.value for one in found if isinstance(one, beam.pvalue.TaggedOutput))
    kept = [one for one in found if not isinstance(one, beam.pvalue.TaggedOutput)]
    rows = [row for row in events.to_pylist() if row["time"] >= since]
    unknown = [row for row in rows if row["action"] == b"nod"]
    future = [row for row in rows if row["action"] != b"nod" and row["time"] >= as_of]
    assert counts == {"unknown action nod": len(unknown), "in the future": len(future)}
    assert sum(one.num_rows for one in kept) == len(rows) - len(unknown) - len(future)
    for one in kept:
        assert all(since <= time < as_of for time in one.column("time").to_pylist())


@pytest.mark.needs("apache_beam")
def test_users_are_kept_together():
    events = _events(users=60, seed=2)
    found: dict[int, set[bytes]] = collections.defaultdict(set)
    rows = 0
    for batch in events.to_batches(max_chunksize=13):
        for bucket, part in timelines_beam.by_bucket(batch, 7):
            found[bucket] |= set(part.column("user").to_pylist())
            rows += part.num_rows
    assert rows == events.num_rows
    assert set(found) == set(range(7))
    assert sum(map(len, found.values())) == len(set(events["user"].to_pylist()))
    # The number is that of the bytes, in every process.
    assert buckets_of(pa.array([b"u1", b"u2", b"u1"], pa.binary()), 64).tolist() == [54, 12, 54]
