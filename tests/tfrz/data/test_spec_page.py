"""docs/data.md has every key of every spec, with its default and an example that is accepted."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from tfrz.config import from_mapping, to_mapping
from tfrz.data.histories.spec import CandidateSpec, HistorySpec
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.lists.spec import ListSpec
from tfrz.data.records import RECORD_TYPES, open_source
from tfrz.data.sources.raw import Dialect
from tfrz.data.spec import Feature
from tfrz.data.timelines.spec import TimelineSpec

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "data.md"
# Set by a run, not by a file.
_INTERNAL = {"long_history", "lists"}
# What an example needs besides itself.
_WITH = {
    FeatureSpec: {"features": [{"name": "ad"}]},
    ListSpec: {"candidate": [{"name": "brand"}]},
    Feature: {"name": "price"},
}
_ALSO = {
    (HistorySpec, "outcomes"): {
        "context": [{"name": "reward", "kind": "numeric", "dtype": "float32"}]
    },
    (TimelineSpec, "implicit"): {"actions": ["view", "like"]},
    (TimelineSpec, "candidate"): {"ids": [{"name": "video"}]},
    (Feature, "kind"): {"dtype": "float32"},
    (Feature, "dtype"): {"kind": "numeric"},
}
SECTIONS = {
    "Dialect": [Dialect],
    "Features": [Feature],
    "Impressions": [FeatureSpec],
    "Histories": [HistorySpec, CandidateSpec],
    "Lists": [ListSpec],
    "Timelines": [TimelineSpec],
}


def _tables(section: str) -> list[list[tuple[str, str, str]]]:
    """Key, default and example of each row of each table of a section."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    tables, rows = [], None
    for line in text.splitlines():
        if line.startswith("| key |"):
            tables.append(rows := [])
        elif line.startswith("| `"):
            cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
            rows.append(tuple(cell.strip("`") for cell in cells[:3]))
    return tables


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.name == "ids":
        return json.dumps([{"name": feature.name} for feature in field.default])
    return json.dumps(to_mapping(field.default))


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_every_key_with_its_default_and_a_valid_example(section):
    tables = _tables(section)
    assert len(tables) == len(SECTIONS[section])
    for spec, rows in zip(SECTIONS[section], tables, strict=True):
        fields = [f for f in dataclasses.fields(spec) if f.name not in _INTERNAL]
        assert [(key, default) for key, default, _ in rows] == [
            (f.name, _default(f)) for f in fields
        ]
        for (key, _, example), field in zip(rows, fields, strict=True):
            value = yaml.safe_load(example)
            mapping = {**_WITH.get(spec, {}), **_ALSO.get((spec, key), {}), key: value}
            made = from_mapping(spec, mapping)
            assert getattr(made, key) != field.default, f"{key}: the example is the default"


ROWS = {
    "impression": "user,item,label\nu,i,1\nu,j,0\n",
    "history": "user,item,time\nu,i,1600000000\nu,j,1600000001\n",
    "list": "query,item,price,relevance\nq,i,1.5,1\nq,j,2,0\n",
    "logged_action": "user,item,time,reward\nu,i,1600000000,1\nu,j,1600000001,0\n",
    "timeline": "user,time,item\nu,1600000000,i\nu,1600000001,j\n",
}
MINIMAL = {
    "impression": "features: [{name: user}, {name: item}]\n",
    "history": "{}\n",
    "list": "candidate: [{name: price, kind: numeric, dtype: float32}]\n",
    "logged_action": "{}\n",
    "timeline": "{}\n",
}


@pytest.mark.parametrize("records", RECORD_TYPES)
def test_the_least_that_a_spec_needs(records, tmp_path):
    text = MINIMAL[records]
    title = {"history": "Histories"}.get(records, f"{records.replace('_', ' ').capitalize()}s")
    section = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    shown = text.strip() if text != "{}\n" else "is nothing, `{}`"
    assert shown in " ".join(section.split())
    path, spec = tmp_path / "rows.csv", tmp_path / "spec.yaml"
    path.write_text(ROWS[records])
    spec.write_text(text)
    reader = open_source(str(path), str(spec), records)
    batches = [batch for shard in reader.shards() for batch in reader.read(shard)]
    assert [batch.num_rows for batch in batches] == [2]


def test_purchases_are_timelines_of_positive_events(tmp_path):
    path, spec = tmp_path / "rows.csv", tmp_path / "spec.yaml"
    path.write_text("who,at,sku\nu,1600000000,i\nu,1600000001,j\n")
    spec.write_text("user: who\ntime: at\nids: [{name: sku}]\n")
    reader = open_source(str(path), str(spec), "timeline")
    (batch,) = [batch for shard in reader.shards() for batch in reader.read(shard)]
    assert batch.column("action").to_pylist() == [b"event", b"event"]
    assert batch.column("label_event").to_pylist() == [1.0, 1.0]
    assert batch.column("explicit").to_pylist() == [True, True]
