"""Examples joined with the embeddings of their users, in memory and under Beam."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from tests.fake_embeddings import VERSION, FakeEmbeddings, packed, stores
from tests.lazy import lazy
from tests.tfrz.data.histories.test_examples import SCHEMA, SPEC, _config, _events, _prepared
from tfrz.data.columns import raw_sparse, to_examples
from tfrz.data.histories.examples import build_examples
from tfrz.data.histories.transform import HistoryPreprocessor
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.impressions.transform import ImpressionPreprocessor
from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table
from tfrz.data.spec import Feature, UserEmbedding
from tfrz.data.splits import SPLITS
from tfrz.data.transform import transform_table
from tfrz.data.user_embeddings import EmbeddingJoin, Found, joined
from tfrz.errors import ConfigError, InputError
from tfrz.zoo.run_config import FeaturesConfig
from tfrz.zoo.user_embeddings import with_user_embeddings

beam = lazy("apache_beam")
data_beam = lazy("tfrz.data.beam")
histories_beam = lazy("tfrz.data.histories.beam")
user_embeddings_beam = lazy("tfrz.data.user_embeddings_beam")


def _vectors(user: int) -> np.ndarray:
    return np.random.default_rng(user).normal(size=(2, 5)).astype(np.float32)


def _store(users, prefix: str = "u", **more) -> FakeEmbeddings:
    return FakeEmbeddings({f"{prefix}{user}".encode(): _vectors(user) for user in users}, **more)


def _impressions(users: list[list], dtype=pa.binary()) -> pa.Table:
    return pa.table({"user": pa.array(users, pa.list_(dtype)), "label": [[1.0]] * len(users)})


class Counting(FakeEmbeddings):
    """Remembers what it was asked for."""

    def packed(self, users):
        self.asked = [*getattr(self, "asked", []), list(users)]
        return super().packed(users)


def test_each_example_gets_what_is_stored_of_its_user_and_the_version():
    table = _impressions([[b"u1"], [b"u2"], [], [b"u1"], [b"nobody"]])
    wider, found = EmbeddingJoin(_store([1, 2, 3]), "s", "user")(table)
    one, two = packed(_vectors(1)), packed(_vectors(2))
    assert wider["long_history"].to_pylist() == [[one], [two], [], [one], []]
    known = [VERSION.encode()]
    assert wider["long_history_version"].to_pylist() == [known, known, [], known, []]
    assert found == Found(5, 3, 3, b"u1")
    assert wider.drop(["long_history", "long_history_version"]).equals(table)


def test_users_are_looked_up_together_and_each_once():
    store = Counting({b"u1": _vectors(1)})
    table = _impressions([[b"u%d" % (i % 3)] for i in range(20_000)])
    _, found = EmbeddingJoin(store, "s", "user")(table)
    assert [sorted(users) for users in store.asked] == [[b"u0", b"u1", b"u2"]] * 2
    assert found.examples == 20_000 and found.known == 6667


def test_a_slice_of_a_table_is_joined_by_its_own_users():
    table = _impressions([[], [b"u1"], [b"u2"], [], [b"u3"]])
    join = EmbeddingJoin(_store([1, 2, 3]), "s", "user")
    whole = join(table)[0]["long_history"].to_pylist()
    assert join(table.slice(2, 2))[0]["long_history"].to_pylist() == whole[2:4]
    empty, found = join(table.slice(0, 0))
    assert empty.num_rows == 0 and found == Found()


def test_users_that_are_whole_numbers_are_looked_up_as_their_digits():
    table = _impressions([[7], [], [12]], pa.int64())
    wider, found = EmbeddingJoin(_store([7, 12], prefix=""), "s", "user")(table)
    assert wider["long_history"].to_pylist() == [[packed(_vectors(7))], [], [packed(_vectors(12))]]
    assert found == Found(3, 2, 2, b"7")


def test_an_embedding_from_after_the_request_is_not_used():
    table = _impressions([[b"u1"]] * 4).append_column("at", pa.array([[99], [100], [101], []]))
    join = EmbeddingJoin(_store([1], generated_at=100), "s", "user", "at")
    wider, found = join(table)
    assert [len(row) for row in wider["long_history"].to_pylist()] == [0, 1, 1, 0]
    assert [len(row) for row in wider["long_history_version"].to_pylist()] == [0, 1, 1, 0]
    assert found == Found(4, 4, 2, b"u1")


def test_the_share_that_was_found_is_told(caplog):
    parts = [_impressions([[b"u1"], [b"u9"]]), _impressions([[b"u8"], [b"u1"]])]
    with caplog.at_level("INFO"):
        joined(EmbeddingJoin(_store([1]), "folder", "user"), parts)
    assert "2 of 4 examples (50.0 %) found an embedding of version 1-9c3e12ab in folder" in (
        caplog.text
    )
    assert joined(None, parts) == parts


def test_if_nothing_was_found_a_user_that_was_looked_for_is_named():
    join = EmbeddingJoin(_store([1], prefix="user_"), "folder", "user")
    with pytest.raises(
        InputError, match=r"folder has no embedding for any user of the 2 examples.*'1'"
    ):
        joined(join, [_impressions([[b"1"], [b"2"]])])
    late = EmbeddingJoin(_store([1], generated_at=1_600_000_000), "folder", "user", "at")
    table = _impressions([[b"u1"]]).append_column("at", pa.array([[5]]))
    with pytest.raises(InputError, match=r"older than the embeddings in folder.*2020-09-13 12:26"):
        joined(late, [table])


def test_the_source_must_have_the_user_and_no_feature_of_that_name():
    users = FeatureSpec((Feature("usr"), Feature("tags", multivalent=True)))
    with stores(s=_store([1])):
        with pytest.raises(ConfigError, match=r"features\.user: the data has no feature 'user' .*"):
            with_user_embeddings(FeaturesConfig("s"), users)
        with pytest.raises(ConfigError, match="'tags'"):
            with_user_embeddings(FeaturesConfig("s", user="tags"), users)
        taken = FeatureSpec((Feature("user"), Feature("long_history")))
        with pytest.raises(ConfigError, match=r"feature long_history: is what features\.long_his"):
            with_user_embeddings(FeaturesConfig("s"), taken)
        assert with_user_embeddings(FeaturesConfig(), users) == (users, None)


def test_a_file_cannot_say_that_it_has_embeddings(tmp_path):
    (tmp_path / "d.csv").write_text("user,label\nu1,1\n")
    spec = tmp_path / "s.yaml"
    spec.write_text(
        "features: [{name: user}]\nlong_history: {version: a, num_vectors: 1, dim: 1}\n"
    )
    with pytest.raises(ConfigError, match=r"s\.yaml: long_history: cannot be part of a file"):
        open_source(str(tmp_path / "d.csv"), str(spec), "impression")
    with pytest.raises(ConfigError, match="feature a: a file cannot have features of kind opaque"):
        Feature("a", "opaque")


def test_bytes_go_through_the_transform_as_they_are():
    raw = bytes(range(256)) + b"\0\0"
    described = UserEmbedding("v", 1, 1)
    spec = FeatureSpec((Feature("user"), *described.features), long_history=described)
    table = pa.table(
        {
            "user": pa.array([[b"a"], [b"b"]], pa.list_(pa.binary())),
            "long_history": pa.array([[raw], []], pa.list_(pa.binary())),
            "long_history_version": pa.array([[b"v"], []], pa.list_(pa.binary())),
            "label": [[1.0], [0.0]],
        }
    )
    columns = transform_table(ImpressionPreprocessor.fit(table, spec), table)
    assert columns["long_history_xf"].tolist() == [raw, b""]
    assert columns["long_history_version_xf"].tolist() == [b"v", b""]
    example = tf.train.Example.FromString(to_examples(table, spec, 1)[0])
    assert example.features.feature["long_history"].bytes_list.value[0] == raw


@pytest.mark.parametrize("padding", ["left", "right"])
def test_events_older_than_the_embeddings_are_marked(padding):
    config = _config(padding=padding, length=4)
    events = _prepared(_events(), config)
    table = build_examples(events, SPEC, config)["validation"]
    with stores(s=_store(range(40), generated_at=50)):
        spec, join = with_user_embeddings(FeaturesConfig("s"), SPEC)
    assert join is not None and join.time == "request_time"
    (table,) = joined(join, [table])
    transform = HistoryPreprocessor.fit_examples(table, spec, config)
    features = transform(raw_sparse(table, spec, label=False))
    usable, mask = features["long_history_usable_xf"].numpy(), features["mask_xf"].numpy()
    for row, times in enumerate(table["history_time"].to_pylist()):
        expected = [int(t >= 50) for t in times[-4:]]
        assert usable[row][mask[row] == 1].tolist() == expected
        assert not usable[row][mask[row] == 0].any()
    assert 0 < usable.sum() < mask.sum()


def _records(path) -> list[bytes]:
    found = []
    for file in sorted(path.parent.glob(path.name + "*")):
        for record in tf.data.TFRecordDataset(str(file)):
            found.append(record.numpy())
    return found


@pytest.mark.needs("apache_beam")
def test_impressions_are_joined_under_beam_as_in_memory(tmp_path):
    reader = open_source("simulated", None, "impression", rows=4_000)
    table, _ = read_table(reader)
    join = EmbeddingJoin(_store(range(0, 100, 2), prefix="user_"), "s", "user")
    (expected,) = joined(join, [table])
    spec = FeatureSpec((*reader.feature_spec().features, *UserEmbedding("v", 2, 5).features))
    batches = [b for shard in reader.shards() for b in reader.read(shard)]
    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | beam.Create(batches)
            | user_embeddings_beam.JoinEmbeddings(join)
            | data_beam.RecordsToExamples()
            | beam.io.WriteToTFRecord(str(tmp_path / "joined"))
        )
    found = [_content(example, spec) for example in _records(tmp_path / "joined")]
    wanted = [_content(example, spec) for example in to_examples(expected, spec, 4_000)]
    assert sorted(found) == sorted(wanted)


def _content(example: bytes, spec: FeatureSpec) -> str:
    features = tf.train.Example.FromString(example).features.feature
    return str([list(features[f.name].bytes_list.value) for f in spec.features])


@pytest.mark.needs("apache_beam")
def test_histories_are_joined_under_beam_as_in_memory(tmp_path):
    config = _config()
    events = _events()
    join = EmbeddingJoin(_store(range(0, 40, 3), generated_at=60), "s", "user", "request_time")
    examples = build_examples(_prepared(events, config), SPEC, config, with_test=False)
    wanted = dict(zip(SPLITS, joined(join, [examples[n] for n in SPLITS]), strict=True))
    with beam.Pipeline() as pipeline:
        parts = (
            pipeline
            | beam.Create(events.to_batches(max_chunksize=50))
            | histories_beam.InteractionsToExamples(
                SPEC, config, SCHEMA, with_test=False, join=join
            )
        )
        for split in SPLITS:
            _ = (
                parts[split]
                | f"Rows{split}" >> beam.FlatMap(lambda batch: batch.to_pylist())
                | f"Text{split}" >> beam.Map(_row)
                | f"Write{split}" >> beam.io.WriteToText(str(tmp_path / split))
            )
    used = 0
    for split in SPLITS:
        rows = wanted[split].drop(["user"]).to_pylist()
        used += sum(bool(row["long_history"]) for row in rows)
        files = sorted(tmp_path.glob(f"{split}*"))
        found = [line for file in files for line in file.read_text().splitlines()]
        assert sorted(found) == sorted(map(_row, rows))
    assert 0 < used < sum(len(wanted[split]) for split in SPLITS)


def _row(row: dict) -> str:
    return json.dumps({name: str(values) for name, values in row.items()}, sort_keys=True)


@pytest.mark.needs("apache_beam")
@pytest.mark.parametrize("kind", ["impressions", "histories"])
def test_a_pipeline_that_finds_nobody_fails_and_names_a_user(kind):
    join = EmbeddingJoin(_store([1], prefix="stranger"), "folder", "user")
    with pytest.raises(Exception, match=r"folder has no embedding for any user of .* was looked"):
        with beam.Pipeline() as pipeline:
            if kind == "impressions":
                batches = _impressions([[b"u1"], [b"u2"]]).to_batches()
                _ = pipeline | beam.Create(batches) | user_embeddings_beam.JoinEmbeddings(join)
            else:
                transform = histories_beam.InteractionsToExamples(
                    SPEC, _config(), SCHEMA, join=join
                )
                _ = pipeline | beam.Create(_events().to_batches()) | transform
