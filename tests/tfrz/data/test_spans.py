"""Paths with spans name the files that TFX's ExampleGen reads for them."""

from __future__ import annotations

import pytest

from tests.lazy import lazy
from tfrz.cli.main import main
from tfrz.config import read_yaml
from tfrz.data.records import open_source
from tfrz.data.sources.locations import find
from tfrz.data.sources.spans import SpansConfig, chosen_spans, located
from tfrz.errors import ConfigError, InputError
from tfrz.zoo.run import open_run
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.run_folder import pinned_spans
from tfrz.zoo.train import train

tfx_utils = lazy("tfx.components.example_gen.utils")
example_gen_pb2 = lazy("tfx.proto.example_gen_pb2")

SPEC = "features:\n  - {name: user}\n"
SMALL = (
    "model.num_cross_layers=1",
    "model.hidden_units=[4]",
    "trainer.batch_size=16",
    "trainer.epochs=1",
    "trainer.tensorboard=false",
)


def _write(path, user: str = "u", rows: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("user,label\n" + "".join(f"{user}{i % 20},{i % 3 % 2}\n" for i in range(rows)))


def _numbers(pattern, **config) -> list[int]:
    return [s.number for s in chosen_spans(str(pattern), SpansConfig(**config))]


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("span-{SPAN}/*.csv", ["span-1/a.csv", "span-9/a.csv", "span-10/a.csv", "span-10/b.csv"]),
        ("span-{SPAN:3}/a.csv", ["span-001/a.csv", "span-020/a.csv", "span-003/a.csv"]),
        (
            "{SPAN}/v{VERSION}/*.csv",
            ["1/v9/a.csv", "2/v2/a.csv", "2/v10/a.csv", "2/v3/b.csv"],
        ),
        ("{SPAN:2}{VERSION:2}.csv", ["0102.csv", "0201.csv", "0203.csv", "0109.csv"]),
        ("{YYYY}-{MM}-{DD}/*.csv", ["2026-02-28/a.csv", "2026-11-30/a.csv", "2025-12-31/a.csv"]),
        ("d{YYYY}{MM}{DD}.v{VERSION}.csv", ["d20261130.v1.csv", "d20261130.v2.csv"]),
        ("day={DD}/of/{MM}-{YYYY}/*", ["day=03/of/01-1999/a.csv", "day=01/of/02-1999/a.csv"]),
        ("[ab]{SPAN}/?.csv", ["a1/x.csv", "b2/y.csv"]),
    ],
)
@pytest.mark.needs("tfx")
def test_the_newest_span_and_version_are_those_that_tfx_takes(tmp_path, pattern, files):
    for name in files:
        _write(tmp_path / name)
    (found,) = chosen_spans(f"{tmp_path}/{pattern}")
    split = example_gen_pb2.Input.Split(name="all", pattern=pattern)
    _, span, version = tfx_utils.calculate_splits_fingerprint_span_and_version(
        str(tmp_path), [split]
    )
    assert (found.number, found.version) == (span, version)
    # Globs of TFX and ours list the same files.
    read = [file.path for file in find(located(f"{tmp_path}/{pattern}"))]
    assert read == sorted(map(str, tmp_path.glob(split.pattern)))


@pytest.mark.needs("tfx")
@pytest.mark.parametrize(
    "pattern",
    [
        "{SPAN}/{SPAN}.csv",
        "{SPAN}/{YYYY}-{MM}-{DD}.csv",
        "{YYYY}-{MM}.csv",
        "v{VERSION}.csv",
        "{SPAN:x}.csv",
        "{SPAN:0}.csv",
        "{SPAN}.{VERSION}.{VERSION}.csv",
        "span-{SPAN}.csv",
        "nothing-{SPAN}.csv",
    ],
)
def test_what_tfx_refuses_is_refused_in_one_line(tmp_path, pattern):
    _write(tmp_path / "span-old.csv")
    _write(tmp_path / "7.csv")
    split = example_gen_pb2.Input.Split(name="all", pattern=pattern)
    with pytest.raises(ValueError):
        tfx_utils.calculate_splits_fingerprint_span_and_version(str(tmp_path), [split])
    with pytest.raises(InputError) as told:
        chosen_spans(f"{tmp_path}/{pattern}")
    assert "\n" not in str(told.value)


def test_ranges_count_by_number(tmp_path):
    for span in (3, 7, 8):
        _write(tmp_path / f"span-{span}" / "part.csv")
    (tmp_path / "span-9").mkdir()  # Nothing is in it yet.
    for pattern in (f"{tmp_path}/span-{{SPAN}}/*.csv", f"{tmp_path}/span-{{SPAN}}"):
        assert _numbers(pattern) == [8]
        assert _numbers(pattern, latest=2) == [7, 8]
        assert _numbers(pattern, latest=4) == [7, 8]
        assert _numbers(pattern, latest=6) == [3, 7, 8]
        assert _numbers(pattern, start=0, end=7) == [3, 7]
        with pytest.raises(InputError, match="no span from 4 to 6; it has 3 to 8"):
            _numbers(pattern, start=4, end=6)
    read = [file.path for file in find(located(pattern, SpansConfig(latest=2)))]
    assert read == [str(tmp_path / f"span-{span}" / "part.csv") for span in (7, 8)]


def test_dates_are_days_since_1970(tmp_path):
    for day in ("2026-10-31", "2026-11-01", "2026-11-02"):
        _write(tmp_path / f"day={day}" / "part.csv")
    pattern = f"{tmp_path}/day={{YYYY}}-{{MM}}-{{DD}}"
    assert _numbers(pattern, latest=2) == [20758, 20759]
    assert _numbers(pattern, start="2026-10-31", end="2026-11-01") == [20757, 20758]
    set_by_hand = ("data.spans.start=2026-10-31", "data.spans.end=2026-11-01")
    config = load_run_config("dcn_v2", "x", set_by_hand)
    assert [s.number for s in chosen_spans(pattern, config.data.spans)] == [20757, 20758]
    (file,) = find(located(pattern))
    # As without spans, the day is a column.
    assert dict(file.partitions) == {"day": "2026-11-02"}
    (file,) = find(located(f"{pattern}/*.csv"))
    assert dict(file.partitions) == {"day": "2026-11-02"}
    _write(tmp_path / "day=2026-02-30" / "part.csv")
    with pytest.raises(InputError, match="there is no such day"):
        chosen_spans(pattern)


def test_several_paths_have_the_same_spans(tmp_path):
    for name in ("a-1.csv", "a-2.csv", "b-2.csv", "other.csv"):
        _write(tmp_path / name)
    both = f"{tmp_path}/a-{{SPAN}}.csv,{tmp_path}/b-{{SPAN}}.csv,{tmp_path}/other.csv"
    read = [file.path.rpartition("/")[2] for file in find(located(both))]
    assert sorted(read) == ["a-2.csv", "b-2.csv", "other.csv"]
    _write(tmp_path / "b-3.csv")
    with pytest.raises(InputError, match=r"different spans \(2; 3\)"):
        located(both)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("data.spans.latest=0",), "data.spans.latest: must be at least 1"),
        (("data.spans={latest: 1, start: 2, end: 3}",), "data.spans: takes latest, or start"),
        (("data.spans={start: 3, end: 2}",), "need both, the first not above the second"),
        (("data.spans={start: 3}",), "need both"),
        (("data.spans={start: soon, end: 9}",), "'soon' is neither a number nor YYYY-MM-DD"),
    ],
)
def test_bad_ranges_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_run_config("dcn_v2", "x", settings)


def test_a_range_without_spans_in_the_path_is_refused(tmp_path):
    config = load_run_config("dcn_v2", "x", ["data.spans.latest=2"])
    with pytest.raises(ConfigError, match=r"data.spans: --data has neither \{SPAN\} nor"):
        pinned_spans(config, str(tmp_path / "x.csv"))


def _opened(data, spec, *settings):
    config = pinned_spans(load_run_config("dcn_v2", "x", settings), data)
    return open_run(config, data, spec)


def test_a_run_reads_and_fingerprints_its_spans_only(tmp_path):
    for span in (1, 2, 3):
        _write(tmp_path / f"span-{span}" / "part.csv", f"s{span}-")
    (tmp_path / "spec.yaml").write_text(SPEC)
    data, spec = f"{tmp_path}/span-{{SPAN}}/*.csv", str(tmp_path / "spec.yaml")
    run = _opened(data, spec, "data.spans.latest=2")
    assert [span.number for span in run.spans] == [2, 3]
    assert len(run.source.reader.files()) == 2
    before = run.fingerprint
    _write(tmp_path / "span-1" / "part.csv", "other")
    assert _opened(data, spec, "data.spans.latest=2").fingerprint == before
    _write(tmp_path / "span-2" / "part.csv", "other")
    assert _opened(data, spec, "data.spans.latest=2").fingerprint != before
    assert open_source(data, spec).files() == [str(tmp_path / "span-3" / "part.csv")]


def test_a_run_records_its_spans_and_is_resumed_on_them(tmp_path, capsys):
    for span in (4, 5):
        _write(tmp_path / f"span-{span:02}" / "part.csv", f"s{span}-")
    (tmp_path / "spec.yaml").write_text(SPEC)
    data, spec = f"{tmp_path}/span-{{SPAN:2}}", str(tmp_path / "spec.yaml")
    out = tmp_path / "out"
    train("dcn_v2", data, out, spec, SMALL, progress=False)
    stored = read_yaml(out / "config.yaml")
    assert stored["data"]["spans"] == {"latest": None, "start": 5, "end": 5}
    assert stored["data_source"] == data
    _write(tmp_path / "span-06" / "part.csv", "s6-")
    # The same command goes on with span 5; another folder takes the newest.
    (out / "metrics.json").unlink()
    resumed = train("dcn_v2", data, out, spec, SMALL, progress=False)
    assert resumed["resumed_from"] == resumed["steps"]
    (out / "metrics.json").unlink()
    with pytest.raises(InputError, match="another"):
        train("dcn_v2", data, out, spec, (*SMALL, "data.spans.latest=2"), progress=False)
    train("dcn_v2", data, out, spec, SMALL, progress=False)
    warm = f"trainer.warm_start={out}/model/1"
    train("dcn_v2", data, tmp_path / "next", spec, (*SMALL, warm), progress=False)
    assert read_yaml(tmp_path / "next" / "config.yaml")["data"]["spans"]["end"] == 6
    assert main(["data", "infer", data]) == 0
    assert f"from 200 rows of {tmp_path}/span-06" in capsys.readouterr().out
    assert main(["evaluate", str(out), "--data", data, "--json"]) == 0
    assert '"examples": 200' in capsys.readouterr().out
