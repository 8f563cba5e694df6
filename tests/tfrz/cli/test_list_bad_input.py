"""Bad input to a model that re-ranks: one clear line, exit status 2, nothing half-written."""

from __future__ import annotations

import pytest

from tests.tfrz.cli.cases import cases
from tfrz.cli.main import main

TRAIN = ["train", "seq2slate", "--out", "{tmp}/out"]
PIPELINE = ["pipeline", "run", "seq2slate", "--root", "{tmp}/out"]

CASES = {
    "missing path": ([*TRAIN, "--data", "letor:{tmp}/none"], "none does not exist"),
    "missing path, pipeline": ([*PIPELINE, "--data", "letor:{tmp}/none"], "none does not exist"),
    "missing path, described": (["data", "describe", "letor:{tmp}/none"], "does not exist"),
    "no path": ([*TRAIN, "--data", "letor"], "--data letor needs a path: write letor:PATH"),
    "an empty path": ([*TRAIN, "--data", "letor:"], "needs a path: write letor:PATH"),
    "a folder without a training set": (
        [*TRAIN, "--data", "letor:{tmp}/untrained"],
        "has no file whose name begins with train",
    ),
    "an empty file": ([*TRAIN, "--data", "letor:{tmp}/empty.txt"], "empty.txt"),
    "no features": ([*TRAIN, "--data", "letor:{tmp}/prose.txt"], "prose.txt has no features"),
    "corrupt lines": (
        [*TRAIN, "--data", "letor:{tmp}/corrupt.txt", "--set", "data.options.order_by=1"],
        "corrupt.txt:2: query 1: feature 2 is not finite: nan (one of 1 corrupt lines among 3",
    ),
    "corrupt lines, pipeline": (
        [*PIPELINE, "--data", "letor:{tmp}/corrupt.txt", "--set", "data.options.order_by=1"],
        "corrupt.txt:2: query 1: feature 2 is not finite: nan (one of 1 corrupt lines among 3",
    ),
    "unknown option": (
        [*TRAIN, "--data", "letor:{tmp}/corrupt.txt", "--set", "data.options.fold=1"],
        "data.options: letor has no option 'fold'",
    ),
    "unknown option of the simulator": (
        [*TRAIN, "--set", "data.options={rows: 3}"],
        "simulated has no option 'rows'",
    ),
    "the base ranker is no feature": (
        [*TRAIN, "--data", "letor:{tmp}/corrupt.txt", "--set", "data.options.order_by=9"],
        "data.options.order_by: must be the number of a feature, 1 to 2",
    ),
    "the base ranker is a word": (
        [*TRAIN, "--data", "letor:{tmp}/corrupt.txt", "--set", "data.options.order_by=bm25"],
        "order_by: ",
    ),
    "no number of features": (
        [*TRAIN, "--data", "letor:{tmp}/corrupt.txt", "--set", "data.options.num_features=-1"],
        "data.options.num_features: must be at least 1",
    ),
    "histories": (
        [*TRAIN, "--set", "data.history={length: 5}"],
        "data.history: seq2slate does not learn from histories",
    ),
    "lists for a model of impressions": (
        ["train", "dcn_v2", "--out", "{tmp}/out", "--set", "data.lists={length: 5}"],
        "data.lists: dcn_v2 does not learn from lists",
    ),
    "impressions for a model of lists": (
        [*TRAIN, "--data", "criteo:x"],
        "criteo:x has impression records, not list records",
    ),
    "lists for a model of histories": (
        ["train", "m3", "--out", "{tmp}/out", "--data", "letor:x"],
        "letor:x has list records, not history records",
    ),
    "a length of none": ([*TRAIN, "--set", "data.lists.length=0"], "data.lists.length"),
    "a normalisation that is none": (
        [*TRAIN, "--set", "data.lists.normalize=ranks"],
        "data.lists.normalize: 'ranks' is none of standardize, min_max, none",
    ),
    "clicks that are none": (
        [*TRAIN, "--set", "data.lists.clicks={kind: random}"],
        "data.lists.clicks.kind",
    ),
    "clicks out of range": ([*TRAIN, "--set", "data.lists.clicks.eta=-1"], "clicks.eta"),
    "a loss of one step": (
        [*TRAIN, "--set", "model.loss=softmax"],
        "model.loss: softmax takes one score a candidate",
    ),
    "a metric that is none": (
        [*TRAIN, "--set", "evaluator.min_metrics={auc: 0.5}"],
        "evaluator.min_metrics.auc: is none of ndcg_at_5",
    ),
    "a slice that is none": (
        [*PIPELINE, "--set", "evaluator.slices=[[country]]"],
        "evaluator.slices: the data has no feature 'country'",
    ),
    "a file without a spec": ([*TRAIN, "--data", "{tmp}/rows.csv"], "needs --features SPEC.yaml"),
    "a missing column": (
        [*TRAIN, "--data", "{tmp}/rows.csv", "--features", "{tmp}/spec.yaml"],
        "has no column 'price'",
    ),
    "a spec of impressions": (
        [*TRAIN, "--data", "{tmp}/rows.csv", "--features", "{tmp}/impressions.yaml"],
        "impressions.yaml",
    ),
    "the pipeline fits no base ranker": (
        [*PIPELINE, "--set", "data.lists.base_ranker=lambda_mart"],
        "data.lists.base_ranker: lambda_mart is fitted by tfrz train alone",
    ),
}


@pytest.fixture
def place(tmp_path):
    """Files that are wrong in one way each."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "prose.txt").write_text("Nothing to rank here.\n")
    (tmp_path / "corrupt.txt").write_text("1 qid:1 1:1 2:2\n0 qid:1 1:1 2:nan\n0 qid:2 1:1\n")
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "test.txt").write_text("1 qid:1 1:1\n")
    (tmp_path / "rows.csv").write_text("query,item,relevance\nq,a,1\n")
    numeric = "kind: numeric, dtype: float32"
    (tmp_path / "spec.yaml").write_text(f"candidate: [{{name: price, {numeric}}}]\n")
    (tmp_path / "impressions.yaml").write_text("label: label\nfeatures: [{name: user}]\n")
    return tmp_path


@pytest.mark.parametrize("case", cases(CASES))
def test_one_line_and_status_2(case, place, capsys):
    arguments, message = CASES[case]
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    try:
        status = main([*(a.replace("{tmp}", str(place)) for a in arguments), *_quiet(arguments)])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2, error
    assert message in error
    assert error.startswith("tfrz"), error
    assert error.count("\n") == 1, error
    after = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    assert {p: after.get(p) for p in before} == before
    new = {p.relative_to(place / "out").as_posix() for p in after if p not in before}
    assert not [name for name in new if name.startswith(("model/", "serving/", "metrics"))], new
    if arguments[0] == "train":
        # At most the run's own configuration, from which it can be repeated.
        assert new <= {"config.yaml", "features.yaml", "data_fingerprint"}, new


def _quiet(arguments: list[str]) -> list[str]:
    return ["--quiet"] if arguments[0] in ("train", "pipeline") else []
