"""A spec inferred from files of many styles can be read with, and says what it saw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml

from tfrz.cli.main import main
from tfrz.config import read_yaml
from tfrz.data.inference import infer, records_of, words_of
from tfrz.data.records import RECORD_TYPES, open_source
from tfrz.data.sources.files import CorruptLine
from tfrz.errors import ConfigError, InputError

ROWS = 1200
_RNG = np.random.default_rng(0)


def _days(count: int = ROWS) -> pd.DatetimeIndex:
    return pd.to_datetime(_RNG.integers(1_400_000_000, 1_500_000_000, count), unit="s")


def _ratings() -> pd.DataFrame:
    movie = _RNG.zipf(1.3, ROWS) % 100
    return pd.DataFrame(
        {
            "userId": _RNG.integers(1, 80, ROWS),
            "movieId": movie,
            "rating": _RNG.choice([0.5, 3.5, 4, 5], ROWS),
            "timestamp": _RNG.integers(1_400_000_000, 1_500_000_000, ROWS),
            "genres": np.array(["Drama", "Comedy|Drama", "Action|Sci-Fi"])[movie % 3],
        }
    )


def _clicks() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": np.arange(ROWS),
            "click": (_RNG.random(ROWS) < 0.2).astype(int),
            "ad_id": _RNG.integers(0, 60, ROWS),
            "user": [f"u{i}" for i in _RNG.integers(0, 200, ROWS)],
            "bid": _RNG.lognormal(3, 2, ROWS),
            "age": _RNG.choice([20.5, 30.0, np.nan], ROWS),
            "zip": [f"{z:05d}" for z in _RNG.integers(0, 300, ROWS)],
            "country": "DE",
            "conversion": _RNG.integers(0, 2, ROWS),
        }
    )


def _purchases() -> pd.DataFrame:
    product = _RNG.integers(0, 90, ROWS)
    return pd.DataFrame(
        {
            "CustomerID": _RNG.integers(10_000, 10_100, ROWS),
            "StockCode": [f"P{p}" for p in product],
            "InvoiceDate": _days().strftime("%Y-%m-%d %H:%M:%S"),
            "UnitPrice": np.round(_RNG.lognormal(1, 1, ROWS), 2),
            "Shop": _RNG.choice(["Köln", "Mainz"], ROWS),
        }
    )


def _searches() -> pd.DataFrame:
    query = np.repeat(np.arange(ROWS // 10), 10)
    return pd.DataFrame(
        {
            "srch_id": query,
            "prop_id": _RNG.integers(0, 200, ROWS),
            "price": _RNG.lognormal(4, 1, ROWS),
            "device": np.array(["mobile", "desktop"])[query % 2],
            "click_bool": _RNG.integers(0, 2, ROWS),
        }
    )


def _bandit() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": _RNG.integers(0, 100, ROWS),
            "item_id": _RNG.integers(0, 40, ROWS),
            "timestamp": _days().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "page": _RNG.choice(["home", "cart"], ROWS),
            "reward": _RNG.integers(0, 2, ROWS),
            "propensity_score": _RNG.random(ROWS) * 0.9 + 0.05,
        }
    )


def _events() -> pd.DataFrame:
    product = _RNG.integers(0, 90, ROWS)
    return pd.DataFrame(
        {
            "event_time": _days().strftime("%Y-%m-%d %H:%M:%S UTC"),
            "event_type": _RNG.choice(["view", "cart", "purchase"], ROWS, p=[0.8, 0.1, 0.1]),
            "product_id": product,
            "brand": np.array(["x", "y", "z"])[product % 3],
            "user_id": _RNG.integers(0, 80, ROWS),
        }
    )


STYLES = {
    "ratings": (_ratings, "history", {"history", "logged_action", "timeline"}),
    "clicks": (_clicks, "impression", {"impression", "history", "logged_action"}),
    "purchases": (_purchases, "history", {"history", "timeline"}),
    "searches": (_searches, "list", {"list", "impression", "history", "logged_action"}),
    "bandit": (
        _bandit,
        "logged_action",
        {"impression", "history", "logged_action", "timeline"},
    ),
    "events": (_events, "timeline", {"history", "timeline"}),
}
FORMATS = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "de.csv": lambda frame, path: frame.to_csv(
        path, index=False, sep=";", decimal=",", na_rep="NULL", encoding="cp1252"
    ),
    "utf16.csv": lambda frame, path: frame.to_csv(path, index=False, sep="\t", encoding="utf-16"),
    "parquet": lambda frame, path: frame.to_parquet(path),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
}


def _read(path, spec: str, records: str, folder) -> tuple[int, list[str], object]:
    """Rows, corrupt rows and the spec of what an inferred spec reads."""
    place = folder / f"{records}.yaml"
    place.write_text(spec)
    reader = open_source(str(path), str(place), records)
    rows, corrupt = 0, []
    for shard in reader.shards():
        for item in reader.read(shard):
            if isinstance(item, CorruptLine):
                corrupt.append(str(item))
            else:
                rows += item.num_rows
    return rows, corrupt, reader.feature_spec()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("style", STYLES)
def test_every_type_that_is_offered_can_be_read(style, form, tmp_path):
    make, likeliest, types = STYLES[style]
    path = tmp_path / f"data.{form}"
    FORMATS[form](make(), path)
    found = infer(str(path))
    assert next(iter(found.drafts)) == likeliest
    assert set(found.drafts) == types
    assert set(found.impossible) == set(RECORD_TYPES) - types
    for records in found.drafts:
        text = found.yaml(records)
        rows, corrupt, spec = _read(path, text, records, tmp_path)
        assert (rows, corrupt) == (ROWS, [])
        assert isinstance(spec, RECORD_TYPES[records].spec)
        mapping = yaml.safe_load(text)
        assert records_of(mapping, "spec") == records


def _spec(frame: pd.DataFrame, tmp_path, records: str | None = None, **options) -> dict:
    path = tmp_path / "data.csv"
    frame.to_csv(path, index=False, **options)
    return yaml.safe_load(infer(str(path)).yaml(records))


def test_clicks_have_the_right_kinds_and_leave_out_what_is_no_feature(tmp_path):
    path = tmp_path / "clicks.csv"
    _clicks().to_csv(path, index=False, na_rep="NA")
    text = infer(str(path)).yaml()
    spec = yaml.safe_load(text)
    assert spec["label"] == "click"
    features = {feature.pop("name"): feature for feature in spec["features"]}
    assert features == {
        "ad_id": {"dtype": "int64"},
        "user": {},
        "bid": {
            "kind": "numeric",
            "dtype": "float32",
            "log_offset": 1.0,
            "standardize": True,
        },
        "age": {"kind": "numeric", "dtype": "float32", "standardize": True},
        "zip": {},
    }
    assert spec["null"] == ["NA"]
    assert "#   id: every row has a value of its own: a row id" in text
    assert "#   country: has one value only: DE" in text
    assert "#   conversion: by its name another outcome" in text
    assert "log, because its 99th percentile is" in text


def test_ratings_become_timelines_with_genres_as_lists(tmp_path):
    spec = _spec(_ratings(), tmp_path, "timeline")
    assert spec["ids"] == [{"name": "movieId"}, {"name": "genres", "multivalent": True}]
    assert (spec["action"], spec["value"], spec["time"]) == (None, "rating", "timestamp")
    assert spec["binary"] == spec["happened"] == ["event"]


def test_actions_are_listed_and_views_are_implicit(tmp_path):
    spec = _spec(_events(), tmp_path)
    assert spec["action"] == "event_type"
    assert spec["actions"][0] == "view"
    assert sorted(spec["actions"]) == ["cart", "purchase", "view"]
    assert spec["implicit"] == ["view"]


def test_a_list_has_contexts_that_are_the_same_for_a_query(tmp_path):
    spec = _spec(_searches(), tmp_path)
    assert (spec["query"], spec["item"], spec["relevance"]) == ("srch_id", "prop_id", "click_bool")
    assert [f["name"] for f in spec["candidate"]] == ["price"]
    assert [f["name"] for f in spec["context"]] == ["device"]


@pytest.mark.parametrize("separator", ["|", ";", ",", " "])
def test_separators(separator, tmp_path):
    frame = _clicks()
    frame["tags"] = [separator.join(f"t{i}" for i in _RNG.integers(0, 9, 3)) for _ in range(ROWS)]
    frame["title"] = [f"The {i}th of a Series, Part {i % 7}" for i in _RNG.integers(0, 90, ROWS)]
    spec = _spec(frame, tmp_path)
    features = {feature["name"]: feature for feature in spec["features"]}
    assert features["tags"] == {"name": "tags", "multivalent": True}
    assert "multivalent" not in features["title"]
    assert spec.get("separator", "|") == separator


def test_dialect_of_a_german_file(tmp_path):
    spec = _spec(_purchases(), tmp_path, sep=";", decimal=",", encoding="latin-1")
    assert (spec["delimiter"], spec["decimal"], spec["encoding"]) == (";", ",", "latin-1")
    assert spec["user"] == "CustomerID"


def test_columns_without_telling_names_are_found_by_their_values(tmp_path):
    frame = _ratings()[["userId", "movieId", "timestamp"]]
    frame.columns = ["a", "b", "c"]
    frame["a"] = "x" + frame["a"].astype(str)
    frame["b"] = "z" + frame["b"].astype(str)
    spec = _spec(frame, tmp_path)
    assert (spec["user"], spec["item"], spec["time"]) == ("a", "b", "c")


def test_ids_beyond_64_bits_are_text(tmp_path):
    frame = _clicks()
    frame["ad_id"] = "99999999999999999" + frame["ad_id"].astype(str).str.zfill(5)
    features = {feature["name"]: feature for feature in _spec(frame, tmp_path)["features"]}
    assert features["ad_id"] == {"name": "ad_id"}


def test_rows_without_a_user_are_announced(tmp_path):
    frame = _purchases()
    frame["CustomerID"] = frame["CustomerID"].astype(float)
    frame.loc[: ROWS // 4 - 1, "CustomerID"] = np.nan
    path = tmp_path / "data.parquet"
    frame.to_parquet(path)
    assert "25.0% of the rows have no CustomerID and are corrupt" in infer(str(path)).yaml()


def test_names_that_yaml_would_misread_are_quoted(tmp_path):
    frame = _clicks().rename(columns={"click": "y", "zip": "no", "bid": "the bid: gross"})
    spec = _spec(frame, tmp_path)
    assert spec["label"] == "y"
    assert {"no", "the bid: gross"} <= {feature["name"] for feature in spec["features"]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("userId", ["user", "id"]),
        ("USER_ID", ["user", "id"]),
        ("StockCode", ["stock", "code"]),
        ("userid", ["user", "id"]),
        ("unixReviewTime", ["unix", "review", "time"]),
        ("paid", ["paid"]),
    ],
)
def test_words_of_names(name, words):
    assert words_of(name) == words


@pytest.mark.parametrize(
    ("spec", "records"),
    [
        ({"label": "y", "features": [{"name": "a"}]}, "impression"),
        ({"user": "u", "item": "i"}, "history"),
        ({"user": "u", "time": "t"}, "history"),
        ({"user": "u", "item": "i", "reward": "r"}, "logged_action"),
        ({"query": "q", "candidate": [{"name": "a"}], "delimiter": ";"}, "list"),
        ({"user": "u", "ids": [{"name": "i"}]}, "timeline"),
    ],
)
def test_the_record_type_of_a_spec(spec, records):
    assert records_of(spec, "spec.yaml") == records


def test_a_spec_of_no_type():
    with pytest.raises(ConfigError, match=r"spec.yaml: unknown key labl; did you mean 'label'"):
        records_of({"labl": "x", "features": []}, "spec.yaml")
    with pytest.raises(ConfigError, match="no type of records has the keys features, user"):
        records_of({"user": "x", "features": []}, "spec.yaml")


def test_a_type_that_files_cannot_be(tmp_path):
    path = tmp_path / "data.csv"
    _ratings().to_csv(path, index=False)
    with pytest.raises(InputError, match=r"cannot be list records: no column of queries"):
        infer(str(path)).yaml("list")


# The command.


def test_infer_prints_a_spec_and_says_how_many_rows_fit(tmp_path, capsys):
    path = tmp_path / "data.csv"
    _bandit().to_csv(path, index=False)
    assert main(["data", "infer", str(path)]) == 0
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out)["propensity"] == "propensity_score"
    assert f"logged_action records: {ROWS:,} rows fit this spec, 0 are corrupt" in shown.err
    spec = tmp_path / "spec.yaml"
    spec.write_text(shown.out)
    assert records_of(read_yaml(spec), "spec") == "logged_action"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("", "is empty: nothing to read"),
        ("a,b\n", "has no rows: nothing to infer from"),
        ("a,b\n1,1\n1,1\n", "can be no type of records"),
    ],
)
def test_bad_input_is_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "data.csv"
    if text is not None:
        path.write_text(text)
    assert main(["data", "infer", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_describe_without_a_spec(tmp_path, capsys):
    path = tmp_path / "data.parquet"
    _purchases().to_parquet(path)
    assert main(["data", "describe", str(path)]) == 0
    shown = capsys.readouterr()
    assert "no --features: read as history records" in shown.err
    assert "--records timeline is possible too" in shown.err
    assert "events that repeat an item of their user" in shown.out
    assert "data.history.split=time" in shown.out


def test_describe_takes_the_type_from_the_spec(tmp_path, capsys):
    path, spec = tmp_path / "data.csv", tmp_path / "spec.yaml"
    _searches().to_csv(path, index=False)
    spec.write_text(infer(str(path)).yaml("list"))
    assert main(["data", "describe", str(path), "--features", str(spec)]) == 0
    shown = capsys.readouterr()
    assert "list records, by the keys of" in shown.err
    assert "candidates per query: p50 / p90 / max" in shown.out
