"""Figures of what users did, against counts by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tfrz.data import usage
from tfrz.data.records import open_source
from tfrz.data.summary import summarize


def _source(tmp_path, text: str, spec: str, records: str):
    path, features = tmp_path / "rows.csv", tmp_path / "spec.yaml"
    path.write_text(text)
    features.write_text(spec)
    return open_source(str(path), str(features), records)


DAY = 86_400
START = 1_577_836_800  # 2020-01-01


def test_histories(tmp_path):
    rows = ["user,item,time,device"]
    # Ten users with 12 events of 4 items, each of them three times; one user with a single event.
    for user in range(10):
        for event in range(12):
            rows.append(f"u{user},i{event % 4},{START + (12 * user + event) * DAY},")
    rows.append(f"alone,rare,{START},")
    reader = _source(tmp_path, "\n".join(rows), "context: [{name: device}]\n", "history")
    summary = summarize(reader)
    found = summary.usage
    assert (found.events, found.users, found.items) == (121, 11, 5)
    assert (found.length_p50, found.length_p90, found.length_max) == (12, 12, 12)
    assert found.repeated == pytest.approx(80 / 121)
    assert found.few_users == pytest.approx(1 / 11)
    assert found.few_items == pytest.approx(1 / 5)
    assert (found.begin, found.end) == ("2020-01-01 00:00:00", "2020-04-29 00:00:00")
    assert found.missing == pytest.approx(1 / 3)
    settings = {one.setting.partition("=")[0]: one for one in summary.advice}
    assert "66% of the events repeat" in settings["export.drop_seen"].reason
    assert settings["data.history.min_item_count"].setting == "data.history.min_item_count=5"
    assert settings["data.history.length"].setting == "data.history.length=12"
    assert "context: leave device out" in settings
    split = dict(word.split("=") for word in settings["data.history.split"].setting.split())
    times = np.array([int(row.split(",")[2]) for row in rows[1:]])
    after = [
        (times >= int(split[f"data.history.{n}_start"])).mean() for n in ("validation", "test")
    ]
    assert after == pytest.approx([0.2, 0.1], abs=0.01)


def test_timelines_of_events_alone_need_negatives(tmp_path):
    rows = "user,time,item\n" + "".join(f"u{i % 3},{START + i * DAY},i{i}\n" for i in range(30))
    summary = summarize(_source(tmp_path, rows, "{}\n", "timeline"))
    assert summary.usage.repeated == 0.0
    settings = [one.setting for one in summary.advice]
    assert "data.timeline.negatives=4" in settings
    assert "ids: [{name: item, min_count: 5}] in the feature spec" in settings
    assert not any("drop_seen" in setting for setting in settings)


def test_lists(tmp_path):
    rows = "query,item,relevance,price\na,1,0,1\na,2,1,1\nb,1,0,1\nb,2,0,1\nb,3,0,1\n"
    spec = "candidate: [{name: price, kind: numeric, dtype: float32}]\n"
    found = summarize(_source(tmp_path, rows, spec, "list")).usage
    assert (found.users, found.items, found.length_max) == (2, 3, 3)
    assert (found.label_rate, found.without) == (0.2, 0.5)


def test_impressions(tmp_path):
    generator = np.random.default_rng(0)
    prices = generator.lognormal(0, 3, 500)
    rows = "label,price\n" + "".join(f"{i % 4 == 0:d},{p}\n" for i, p in enumerate(prices))
    spec = "features: [{name: price, kind: numeric, dtype: float32}]\n"
    summary = summarize(_source(tmp_path, rows, spec, "impression"))
    assert summary.usage.label_rate == 0.25
    (one,) = summary.advice
    assert one.setting == "features: [{name: price, log_offset: 1.0}] in the feature spec"
    rows = "label,price\n1,2\n1,3\n"
    (one,) = summarize(_source(tmp_path, rows, spec, "impression")).advice
    assert one.reason == "every label is 1"


def test_counts_of_many_batches_are_merged(monkeypatch):
    monkeypatch.setattr(usage, "_PENDING", 10)
    counts, seen = usage.Counts(), []
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = generator.integers(0, 9, 50)
        seen.append(values)
        counts.add(pa.array([b"%d" % v for v in values]))
    expected = np.bincount(np.concatenate(seen))
    assert sorted(counts.counts) == sorted(expected)
    ranked = sorted(range(9), key=lambda v: (-expected[v], v))[:3]
    assert counts.top(3) == [(b"%d" % v, expected[v]) for v in ranked]


def test_repeats_of_many_pairs_are_estimated_from_a_sample_of_users(monkeypatch):
    monkeypatch.setattr(usage._Pairs, "_MOST", 2000)
    pairs = usage._Pairs()
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 2000, 40_000), generator.integers(0, 20, 40_000)
    for part in range(0, 40_000, 5000):
        some = slice(part, part + 5000)
        pairs.add(
            pa.array([b"%d" % u for u in users[some]]), pa.array([b"%d" % i for i in items[some]])
        )
    assert pairs.bound < 0.2
    assert len(pairs._pairs) <= 2000
    exact = 1 - len(set(zip(users.tolist(), items.tolist(), strict=True))) / 40_000
    assert pairs.share() == pytest.approx(exact, abs=0.03)
