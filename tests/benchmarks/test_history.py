"""Suite `history`: its world, its pooling baselines, what it counts as equal, and quick runs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import history, history_pooling, runner
from benchmarks.history_world import DAY, World
from benchmarks.measure import resident_bytes
from benchmarks.report import NOT_JUDGED
from benchmarks.runner import Options
from tests.lazy import lazy
from tfrz.data.timelines.examples import in_order
from tfrz.data.timelines.slicing import CHUNK_EVENTS
from tfrz.embeddings.encoder import Encoder
from tfrz.embeddings.users import stream_batches
from tfrz.layers.quantize import pack4, unpack4
from tfrz.zoo import registry

history_export = lazy("benchmarks.history_export")

ROOT = Path(__file__).resolve().parents[2]
SIZES = history_pooling.Sizes(batch=3, entries=8, spread=0.5, ids=40, dim=4, rounds=1)
BOUNDS = {
    "memory": ["<= 1.1", "<= 1.15", "<= 1"],
    "throughput": [],
    "incremental": [">= 1", "<= 0.35"],
    "size": ["<= 7888", ">= 0", "<= 1.00009"],
    "pooling": [],
    "funnel": [],
    "serving": [],
    "xla": [],
}


@pytest.fixture(scope="module")
def model() -> Path:
    """The model of quick runs."""
    return history_export.trained(True)


def test_a_users_events_are_in_order_and_are_the_same_whoever_else_is_drawn() -> None:
    world = World(users=9, events=300, seed=4)
    table = world.table(7)
    assert table.equals(World(users=200, events=300, seed=4).table(7))
    assert not table["media"].equals(world.table(6)["media"])
    assert in_order(table).equals(table)
    time = table["time"].to_numpy()
    assert world.end - world.days * DAY <= time.min()
    assert time.max() < world.end
    assert len(table) == 300


def test_a_longer_history_has_more_different_media_and_both_timelines() -> None:
    short, long = (World(users=1, events=n).table(0) for n in (700, 7000))
    found = {n: len(table["media"].unique()) for n, table in (("short", short), ("long", long))}
    assert found["long"] > 5 * found["short"]
    assert np.mean(long["explicit"]) == pytest.approx(0.25, abs=0.02)
    # Reactions have no length and no dwell time, views have both.
    for name in ("duration", "dwell"):
        np.testing.assert_array_equal(long[name].is_null(), long["explicit"])


def test_users_that_are_not_active_stop_earlier() -> None:
    world = World(users=200, events=50, active=0.3)
    last = np.array([world.table(i)["time"][-1].as_py() for i in range(world.users)])
    assert np.mean(last > world.end - 20 * DAY) == pytest.approx(0.34, abs=0.12)


@pytest.mark.needs("apache_beam")
def test_files_of_buckets_hold_all_users_in_order_in_batches(tmp_path: Path) -> None:
    world = World(users=12, events=1500)
    assert world.write(tmp_path, 2)["events"] == 12 * 1500
    # What the job's first half writes: the reader's columns without outcomes.
    schema = history_export.WorldTimelines(world).schema
    written = pa.schema([field for field in schema if not field.name.startswith("label_")])
    users = []
    for path in sorted(tmp_path.rglob("*.arrows")):
        batches = list(stream_batches(path))
        sizes = [batch.num_rows for batch in batches]
        assert len(set(sizes[:-1])) == 1
        assert 0 < sizes[-1] <= sizes[0] <= CHUNK_EVENTS
        table = pa.concat_tables(batches)
        assert table.schema.equals(written)
        mine = table["user"].unique().to_pylist()
        assert mine == sorted(mine)
        for user in mine:
            rows = table.filter(pa.array(np.array(table["user"]) == user))
            assert rows.combine_chunks().equals(world.table(int(user[-7:])).combine_chunks())
        users += mine
    assert sorted(users) == [world.user(i) for i in range(12)]


def test_every_way_to_pool_gives_the_same_steps() -> None:
    forms = (
        history_pooling.FLAT,
        history_pooling.FLAT_OF_PADDED,
        history_pooling.PADDED,
        history_pooling.RAGGED,
    )
    losses = {}
    for form in forms:
        step = history_pooling.make_step(form, SIZES, 1)
        losses[form] = [step() for _ in range(10)]
    expected = losses[history_pooling.FLAT]
    assert expected[-1] < expected[0]
    for form in forms:
        np.testing.assert_allclose(losses[form], expected, rtol=1e-5, err_msg=form)


def test_a_batch_has_users_of_several_lengths_and_entries_in_the_order_of_slices() -> None:
    from benchmarks.history_world import event_spec
    from tfrz.data.timelines.spec import EntryList

    lists = (EntryList("slices_a", "media", 3), EntryList("candidate_media", "media", 1))
    spec = dataclasses.replace(event_spec(), lists=lists)
    sizes = history_pooling.Sizes(batch=50, entries=20, ids=9)
    batch = history_pooling.make_batch(spec, sizes, 0)
    lengths = batch["slices_a_ids_xf"].row_lengths().numpy()
    assert lengths.min() >= 1
    assert np.std(lengths) > 5
    for places in batch["slices_a_places_xf"].to_list():
        assert places == sorted(places)
    assert set(np.unique(batch["slices_a_ids_xf"].flat_values)) <= set(range(1, 9))
    assert batch["candidate_media_ids_xf"].shape[0] == 50


@pytest.mark.parametrize("kind", list(history.vectors_to_pack(1, 0)))
def test_the_worst_error_is_that_of_the_worst_value(kind: str) -> None:
    vectors = history.vectors_to_pack(2, 3)[kind]
    words = pack4(vectors)
    back = unpack4(words, history.DIM).astype(np.float64)
    worst = 0.0
    for i in np.ndindex(vectors.shape[:2]):
        scale = (vectors[i].max() - vectors[i].min()) / 15.0
        if scale:
            worst = max(worst, np.abs(back[i] - vectors[i]).max() / (scale / 2))
    assert history.worst_error(vectors) == pytest.approx(worst, rel=1e-4)
    assert 0.9 < worst < 1.001


@pytest.mark.slow
def test_chunks_that_are_pooled_apart_give_what_all_events_give(model: Path) -> None:
    world = World(users=1, events=3 * CHUNK_EVENTS)
    encoder = Encoder(model)
    value, share = history_export.chunked_difference(encoder, world.table(0), world.end)
    assert 0 < value < 1e-5
    assert 0 < share < 1e-4


@pytest.mark.slow
def test_chunks_that_are_lost_are_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(users=1, events=3 * CHUNK_EVENTS)
    monkeypatch.setattr(history_export.ChunkGrid, "rest", lambda self: iter(()))
    with pytest.raises(AssertionError):
        history_export.chunked_difference(Encoder(model), world.table(0), world.end)


@pytest.mark.slow
def test_the_watch_sees_memory_of_processes_below(tmp_path: Path) -> None:
    code = "x = bytearray(300 << 20); x[::4096] = bytes(len(x[::4096])); import time; time.sleep(9)"
    own = resident_bytes()  # Other tests may have filled this process.
    with history_export.Watched() as watched:
        below = subprocess.Popen(["sh", "-c", f"{sys.executable} -c '{code}'; true"])
        end = time.monotonic() + 30
        while watched.together < own + (300 << 20) and time.monotonic() < end:
            time.sleep(0.05)
        below.kill()
    assert watched.largest >= 300 << 20
    assert watched.together >= own + (300 << 20)


@pytest.mark.needs("apache_beam")
def test_digests_tell_names_and_bytes_apart(tmp_path: Path) -> None:
    digests = set()
    for name, content in (("a", b"x"), ("b", b"x"), ("a", b"y")):
        folder = tmp_path / f"{name}-{content.decode()}"
        folder.mkdir()
        (folder / f"{name}.parquet").write_bytes(content)
        digests.add(history_export.digest(folder))
    assert len(digests) == 3


@pytest.mark.slow
def test_a_day_that_differs_is_not_called_identical(model: Path, monkeypatch) -> None:
    timelines, world = (
        history_export.WorldTimelines,
        World(users=30, events=40, days=60, active=0.2),
    )

    def compared() -> Any:
        return history_export.compare_day(model, timelines(world), world.end, rounds=1, buckets=2)

    days = [compared()]
    shards = timelines.shards
    # Has nothing to say when it is asked for what is new.
    monkeypatch.setattr(timelines, "shards", lambda self: [] if self.since else shards(self))
    days.append(compared())
    assert [one.identical for one in days] == [True, False]
    good = days[0]
    assert good.full.users == good.day.users == 30
    assert 0.1 < good.affected < 0.6
    assert 0 < good.read < good.affected


@pytest.mark.needs("apache_beam")
def test_version_histories_are_looked_for_beside_the_data(tmp_path: Path) -> None:
    assert history_export.version_histories(Options(data="simulated")) is None
    beside = f"movielens-1m:{tmp_path}/ml-1m/ml-1m.zip"
    assert history_export.version_histories(Options(data=beside)) is None
    (tmp_path / "vcs-edits").mkdir()
    (tmp_path / "vcs-edits/events.parquet").touch()
    for data in (beside, f"vcs-edits:{tmp_path}/vcs-edits"):
        assert history_export.version_histories(Options(data=data)) == tmp_path / "vcs-edits"


@pytest.mark.needs("apache_beam")
def test_the_request_is_the_users_sketch(model: Path) -> None:
    request, body, entries = history.encode_request(model, events=150, seed=0)
    document = json.loads(body)
    assert document["signature_name"] == request.model_spec.signature_name == "encode"
    assert set(document["inputs"]) == set(request.inputs)
    found = 0
    for name, value in request.inputs.items():
        ((values),) = document["inputs"][name]
        assert [d.size for d in value.tensor_shape.dim] == [1, len(values)]
        found += name.endswith("_ids") and len(values)
    assert found == entries > 100


def check_quick(name: str, part: dict) -> None:
    assert all(math.isfinite(figure["value"]) for figure in part["figures"])
    assert {f["verdict"] for f in part["figures"]} <= {None, NOT_JUDGED}
    assert [f["bound"] for f in part["figures"] if f["bound"]] == BOUNDS[name]
    assert all(figure["value"] >= 0 for figure in part["figures"])
    if part["timings"]:
        assert part["baseline"] in part["timings"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "throughput", "incremental", "serving"])
def test_quick_parts_of_the_export_and_the_server(name: str) -> None:
    if name == "serving":
        pytest.importorskip("tensorflow_serving")
    part = runner.run_part(history.PARTS[name], Options(quick=True))
    assert "skipped" not in part, part
    check_quick(name, part)
    figures = {figure["name"]: figure["value"] for figure in part["figures"]}
    if name == "incremental":
        (same,) = (value for key, value in figures.items() if "identical" in key)
        assert same == 1
    if name == "throughput":
        assert figures["2 processes write the bytes of 1"] == 1
        assert (
            figures["2 processes, peak memory together"]
            > figures["2 processes, peak memory of the largest"]
        )


@pytest.mark.slow
def test_quick_run_through_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.history", "--quick"]
    done = subprocess.run(
        [*command, "--layer-only", "--json", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == [name for name, part in history.PARTS.items() if part.layer]
    for name, part in parts.items():
        check_quick(name, part)
    size = {figure["name"]: figure["value"] for figure in parts["size"]["figures"]}
    assert size["a user, packed"] == 7888
    assert size["pooled input of 200 x 256 float32 / packed, bytes"] == pytest.approx(25.96, 1e-3)
    assert size["greatest error / (scale / 2)"] == pytest.approx(1, abs=1e-4)


def test_the_runner_finds_the_suite_that_the_registry_names() -> None:
    (name,) = registry.get("dv365").bench
    assert runner.load_suite(name).TITLE == history.TITLE
    assert set(history.PARTS) == set(BOUNDS)


def test_listing_the_parts_loads_neither_tensorflow_nor_beam() -> None:
    code = (
        "import sys, benchmarks.history; "
        "print([m for m in ('tensorflow', 'apache_beam') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
