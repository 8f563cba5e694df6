"""The pipeline on rolling data: each run reads its spans alone, and starts from the model before."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from tests.lazy import lazy
from tests.tfx_pipelines.test_pipeline import SETTINGS, SPEC, _write
from tfrz.errors import InputError
from tfrz.zoo.run import open_run
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.run_folder import pinned_spans
from tfx_pipelines.configs import Places
from tfx_pipelines.local_runner import run_pipeline

pytestmark = pytest.mark.needs("tfx")
sqlite = lazy("tfx.orchestration.metadata")

WARM = "trainer.warm_start=latest_blessed"


class Rolling:
    """A folder that gets a new span now and then."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        self.features = folder / "features.yaml"
        self.features.write_text(SPEC)
        self.data = f"{folder}/clicks/span-{{SPAN:2}}/v{{VERSION}}/*.csv"

    def add(self, span: int, rows: int, version: int = 1) -> Path:
        path = self.folder / "clicks" / f"span-{span:02}" / f"v{version}" / "part.csv"
        path.parent.mkdir(parents=True)
        _write(path, rows, 30, seed=span)
        return path

    def config(self, *overrides: str):
        return load_run_config("dcn_v2", "file", [*SETTINGS, *overrides])

    def run(self, *overrides: str):
        config = self.config(*overrides)
        return run_pipeline(config, self.data, self.root, str(self.features), progress=False)

    def examples(self) -> list[Path]:
        """The folders of the examples, the newest last."""
        made = (self.root / "artifacts" / "ReaderExampleGen" / "examples").iterdir()
        return sorted(made, key=lambda path: int(path.name))

    def count(self, folder: Path) -> int:
        files = [str(path) for path in folder.glob("Split-*/*.gz")]
        return sum(1 for _ in tf.data.TFRecordDataset(files, compression_type="GZIP"))

    def properties(self, folder: Path) -> dict[str, int | str]:
        """What the metadata say of the examples in a folder."""
        places = Places(str(self.root.resolve()))
        settings = sqlite.sqlite_metadata_connection_config(places.metadata)
        with sqlite.Metadata(settings) as handle:
            (artifact,) = (
                one
                for one in handle.store.get_artifacts_by_type("Examples")
                if Path(one.uri) == folder.resolve()
            )
        found = artifact.custom_properties
        values = {name: found[name] for name in ("span", "spans", "version") if name in found}
        return {n: v.string_value or v.int_value for n, v in values.items()}


@pytest.mark.slow
def test_a_pipeline_is_run_again_on_the_newest_span_with_a_warm_start(tmp_path):
    place = Rolling(tmp_path)
    old = [place.add(1, 1500), place.add(2, 3000)]
    first = place.run(WARM)
    assert first.blessed, first.refusals
    (examples,) = place.examples()
    assert place.count(examples) == 3000
    assert place.properties(examples) == {"span": 2, "spans": "2", "version": 1}

    # Nothing new: nothing is read.
    outcomes = {c.name: c.outcome for c in place.run(WARM).components}
    assert outcomes["ReaderExampleGen"] == outcomes["Transform"] == "cached"

    # Whoever reads an old span now fails: no line of it is a row.
    for path in old:
        path.write_text("user,item,group,tags,price,clicked\n" + "x,x,x,x,x,x\n" * 500)
    place.add(3, 900)
    place.add(3, 2400, version=2)
    second = place.run(WARM)
    assert {c.name: c.outcome for c in second.components}["ReaderExampleGen"] == "ran"
    assert len(place.examples()) == 2
    newest = place.examples()[-1]
    assert place.count(newest) == 2400
    assert place.properties(newest) == {"span": 3, "spans": "3", "version": 2}
    runs = (place.root / "artifacts" / "Trainer" / "model_run").iterdir()
    runs = sorted(runs, key=lambda path: int(path.name))
    assert not (runs[0] / "warm_start.txt").exists()
    assert (runs[-1] / "warm_start.txt").read_text().strip()
    with pytest.raises(InputError, match=r"corrupt|unreadable"):
        place.run("data.spans.latest=2")


def test_the_spans_of_a_pipeline_are_part_of_its_cache_key(tmp_path):
    from tfx_pipelines.components.example_gen import ExampleGen

    place = Rolling(tmp_path)
    for span in (4, 5, 6):
        place.add(span, 50)

    def made(*overrides: str):
        config = pinned_spans(place.config(*overrides), place.data)
        run = open_run(config, place.data, str(place.features))
        return ExampleGen(run, str(tmp_path / "corrupt")).exec_properties

    one, two = made(), made("data.spans.latest=2")
    assert "span-06/v1/*.csv" in one["input_config"]
    assert "span-05" not in one["input_config"]
    assert "span-05/v1/*.csv" in two["input_config"]
    assert "span-04" not in two["input_config"]
    for properties in (one, two):
        assert '"start_span_number": 6' in properties["range_config"]
    (tmp_path / "clicks" / "span-04" / "v1" / "part.csv").write_text("changed\n")
    assert made() == one
    place.add(7, 50)
    assert made()["input_config"] != one["input_config"]
    assert made("data.spans={start: 6, end: 6}")["range_config"] == one["range_config"]
