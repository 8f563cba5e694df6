"""The health report against plain loops over rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tfrz.embeddings.hand_made import (
    D0,
    DAY,
    HOUR,
    HandMade,
    by_user,
    export,
    like,
    manifest,
    packed,
    rows_of,
    slices,
    view,
    write_generation,
)
from tfrz.embeddings.health import health_report, refuse_empty_slices
from tfrz.embeddings.store import Store
from tfrz.errors import InputError

SHAPE = (3, 20)
WORDS = ["up to 1", "up to 3", "up to 7", "up to 30", "up to 90", "up to 365", "over 365"]


def _unpacked(data: bytes, num_vectors: int, dim: int) -> np.ndarray:
    """By the specification, 3.7: nibbles, the low one first; then scale and minimum."""
    words = -(-dim // 16) + 1
    vectors = []
    for v in range(num_vectors):
        mine = data[8 * words * v : 8 * words * (v + 1)]
        codes = [code for byte in mine[:-8] for code in (byte & 15, byte >> 4)][:dim]
        scale, least = np.frombuffer(mine[-8:], "<f4").astype(float)
        vectors.append([least + scale * code for code in codes])
    return np.array(vectors)


def _quantiles(values: Any) -> dict[str, float]:
    names = {1: 0.01, 10: 0.1, 50: 0.5, 90: 0.9, 99: 0.99}
    return {
        f"p{n}": pytest.approx(float(np.quantile(values, q)), rel=1e-5) for n, q in names.items()
    }


def _naive(rows: dict[bytes, dict[str, Any]], as_of: int, shape=SHAPE) -> dict[str, Any]:
    here = [row for row in rows.values() if row["present"]]
    norms = [np.linalg.norm(v) for row in here for v in _unpacked(row["packed"], *shape)]
    ages = dict.fromkeys(WORDS, 0)
    for row in here:
        days = (as_of - row["newest_event"]) / DAY
        first = next((d for d in (1, 3, 7, 30, 90, 365) if days <= d), None)
        ages["over 365" if first is None else f"up to {first}"] += 1
    report = {
        "as_of": as_of,
        "users": len(rows),
        "present": len(here),
        "coverage": pytest.approx(len(here) / len(rows)),
        "norm": _quantiles(norms),
        "days_since_newest_event": ages,
        "slices": {},
    }
    for place, one in enumerate(slices().slices):
        totals = [row["totals"][place] for row in rows.values()]
        report["slices"][one.name] = {
            "users": sum(total > 0 for total in totals),
            "weight": pytest.approx(float(np.sum(totals, dtype=float)), rel=1e-6),
        }
    return report


def _some(seed: int, count: int = 60) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        present = bool(rng.random() < 0.8)
        newest = D0 - int(10 ** rng.uniform(4.95, 7.8))
        rows.append(
            {
                "user": b"user_%d" % (i + seed * count // 2),
                "present": present,
                "packed": packed(int(rng.integers(1 << 30))),
                "newest_event": newest if present else None,
                "totals": (rng.integers(0, 3, 8) * rng.random(8) * present).tolist(),
            }
        )
    for row in rows[:3]:
        # Events, but no vectors: they were no numbers.
        row |= {"present": False, "newest_event": None, "totals": [1.0] * 8}
    return rows


@pytest.fixture
def store(tmp_path, model) -> Store:
    made = Store(tmp_path)
    write_generation(made, manifest(1, users=60), _some(0))
    write_generation(made, manifest(2, users=60, version="2-fedcba98", as_of=D0 + DAY), _some(1))
    return made


def _report(store: Store, number: int, before: int | None = None) -> dict[str, Any]:
    folder = None if before is None else store.generation(before)
    return health_report(store.generation(number), store.manifest(number), slices(), folder)


def test_a_generation(store):
    report = _report(store, 1)
    naive = _naive(rows_of(store.directory, 1), D0)
    assert {name: report[name] for name in naive} == naive
    assert report["version"] == "1-abcdef01"
    assert report["not_finite"] == 3
    assert "drift" not in report
    assert sum(report["days_since_newest_event"].values()) == report["present"] > 30
    assert json.loads(json.dumps(report)) == report


def test_drift(store):
    drift = _report(store, 2, 1)["drift"]
    old, new = (rows_of(store.directory, number) for number in (1, 2))
    both = [u for u in old if u in new and old[u]["present"] and new[u]["present"]]
    assert 10 < len(both) < 30
    cosines, norms = [], []
    for user in both:
        a, b = (_unpacked(rows[user]["packed"], *SHAPE) for rows in (old, new))
        norms += [np.linalg.norm(vector) for vector in a]
        a, b = a.ravel(), b.ravel()
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    wanted = _quantiles(cosines)
    assert drift["cosine"].keys() == wanted.keys()
    for name, value in wanted.items():
        assert drift["cosine"][name] == pytest.approx(value.expected, abs=1e-6)
    assert drift["norm"] == _quantiles(norms)
    assert drift["users"] == len(both)
    assert (drift["version"], drift["as_of"], drift["comparable"]) == ("1-abcdef01", D0, True)


def test_drift_against_itself_is_none(store):
    drift = _report(store, 1, 1)["drift"]
    assert drift["cosine"] == {name: pytest.approx(1.0, abs=1e-6) for name in drift["cosine"]}


def test_other_shapes_are_not_compared(store):
    write_generation(store, manifest(3, dim=40), [{"user": b"user_1"}, {"user": b"user_2"}])
    assert _report(store, 3, 1)["drift"] == {
        "version": "1-abcdef01",
        "as_of": D0,
        "users": 0,
        "comparable": False,
    }


def test_nobody_in_both(store):
    write_generation(store, manifest(3), [{"user": b"stranger"}])
    drift = _report(store, 3, 1)["drift"]
    assert (drift["users"], drift["cosine"], drift["norm"]) == (0, {}, {})


def test_nobody_at_all(tmp_path, model):
    store = Store(tmp_path)
    row = {"user": b"u", "present": False, "newest_event": None, "totals": [0.0] * 8}
    write_generation(store, manifest(1, users=1), [row])
    report = _report(store, 1)
    assert (report["users"], report["present"], report["coverage"]) == (1, 0, 0.0)
    assert report["norm"] == {}
    assert not any(report["days_since_newest_event"].values())


def test_zero_vectors_have_a_cosine(tmp_path, model):
    from tfrz.layers.quantize import pack4

    store = Store(tmp_path)
    zero = pack4(np.zeros(SHAPE)).astype("<u8").tobytes()
    for number in (1, 2):
        write_generation(store, manifest(number), [{"user": b"u", "packed": zero}])
    assert _report(store, 2, 1)["drift"]["cosine"]["p50"] == 0.0


def test_the_age_on_the_edge(tmp_path, model):
    """`up to 3` days holds what is exactly 3 days old, as the time bucket of 3 days does."""
    store = Store(tmp_path)
    rows = [{"user": b"u%d" % d, "newest_event": D0 - d * DAY} for d in (3, 7, 30)]
    write_generation(store, manifest(1, users=3), rows)
    ages = _report(store, 1)["days_since_newest_event"]
    assert {word for word, count in ages.items() if count} == {"up to 3", "up to 7", "up to 30"}


def test_empty_slices_are_named(store):
    report = _report(store, 1)
    refuse_empty_slices(report)
    for name in ("watched", "liked_items"):
        report["slices"][name]["users"] = 0
    with pytest.raises(InputError, match=f"slice liked_items, watched as of {D0}: "):
        refuse_empty_slices(report)


# By the job.


def _events(days: int) -> HandMade:
    rows = [view(f"u{i}", D0 - n * DAY - HOUR, i + n, dwell=n) for i in range(9) for n in range(9)]
    rows += [like(f"u{i}", D0 + n * DAY, i + n) for i in range(5) for n in range(days)]
    rows += [like(f"late_{i}", D0 - 2 * HOUR) for i in range(2)]
    return HandMade(by_user(rows))


def _stored(store: Path, number: int) -> dict[str, Any]:
    return json.loads((Store(store).generation(number) / "health.json").read_text())


@pytest.mark.needs("apache_beam")
def test_the_job_writes_it(tmp_path, model):
    one = export(_events(3), tmp_path, D0)
    two = export(_events(3), tmp_path, D0 + 3 * DAY)
    for made in (one, two):
        report = _stored(tmp_path, made.number)
        naive = _naive(rows_of(tmp_path, made.number), made.as_of, (made.num_vectors, made.dim))
        assert {name: report[name] for name in naive} == naive
        assert report["users"] == made.users
    assert _stored(tmp_path, 1)["present"] == 9
    assert _stored(tmp_path, 2)["present"] == 11
    assert "drift" not in _stored(tmp_path, 1)
    drift = _stored(tmp_path, 2)["drift"]
    assert (drift["version"], drift["as_of"], drift["users"]) == (one.version, D0, 9)
    assert drift["cosine"]["p1"] < 0.999


@pytest.mark.slow
def test_an_incremental_report_is_that_of_a_full_run(tmp_path, model):
    for as_of in (D0, D0 + 4 * DAY):
        export(_events(4), tmp_path / "grown", as_of)
    export(_events(4), tmp_path / "full", D0 + 4 * DAY)
    grown, full = _stored(tmp_path / "grown", 2), _stored(tmp_path / "full", 1)
    del grown["drift"]
    assert grown == full


@pytest.mark.slow
def test_drift_is_against_what_readers_read(tmp_path, model, other_model):
    """Not against a newer generation that was not published."""
    first = export(_events(3), tmp_path, D0)
    export(_events(3), tmp_path, D0, other_model, publish=False)
    third = export(_events(3), tmp_path, D0 + DAY, other_model, publish=False)
    drift = _stored(tmp_path, third.number)["drift"]
    assert (drift["version"], drift["as_of"]) == (first.version, D0)
    assert third.version != first.version
    assert drift["comparable"]
    assert drift["cosine"]["p50"] < 0.999
