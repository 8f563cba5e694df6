"""The pipeline of retrieval: catalogue, index, its check, metrics of the served lists, refusals."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.tfrz.zoo.test_retrieval_task import HALF, NEVER_TAKEN, SETTINGS, _raw, _write
from tests.tfx_pipelines import stored
from tfrz.cli.main import main
from tfrz.data.histories.spec import HistorySpec
from tfrz.errors import InputError
from tfrz.metrics.ranking import ndcg_at, recall_at
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config
from tfx_pipelines.configs import config_to_json
from tfx_pipelines.local_runner import open_checked, run_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.needs("tfx")]

SPARE = 25
ITEMS = 2 * HALF + len(NEVER_TAKEN) + SPARE
PIPELINE = (
    # Everything that is held out judges.
    "data.test_fraction=0",
    *SETTINGS,
    "trainer.epochs=8",
    "export.top_k=50",
    "export.drop_seen=false",
    "evaluator.min_metrics={recall_at_10: 0.3}",
    "evaluator.slices=[[page], [history_length], [target_popularity]]",
)
SCANN = "export.index={kind: scann, num_leaves: 6, leaves_to_search: %d, min_recall: 1.0}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval-pipeline")
    return folder, *_write(folder, spare=SPARE)


@pytest.fixture(scope="module")
def first(place):
    folder, data, spec = place
    config = load_run_config("multi_interest", "file", PIPELINE)
    return run_pipeline(config, data, folder / "root", spec, progress=False)


def _examples(first, split: str) -> list[bytes]:
    folder = stored.artifact(first, "HistoryExampleGen", "examples") / f"Split-{split}"
    files = sorted(str(path) for path in folder.glob("*"))
    return [r.numpy() for r in tf.data.TFRecordDataset(files, compression_type="GZIP")]


def _value(serialized: bytes, name: str) -> str:
    (value,) = tf.train.Example.FromString(serialized).features.feature[name].bytes_list.value
    return value.decode()


@pytest.fixture(scope="module")
def served(first):
    """What the pushed model lists for each example of the eval split, and the targets."""
    signature = tf.saved_model.load(first.pushed).signatures["serving_default"]
    examples = _examples(first, "eval")
    outputs = signature(examples=tf.constant(examples))
    lists = [[item.decode() for item in row] for row in outputs["item_ids"].numpy()]
    return examples, lists, [_value(one, "target") for one in examples]


def test_a_catalogue_and_events_become_a_pushed_model_that_recommends(first):
    names = [component.name for component in first.components]
    assert {"CandidateGen", "HistoryExampleGen", "Trainer", "Evaluator", "Pusher"} <= set(names)
    order = [names.index(n) for n in ("Trainer", "IndexBuilder", "Evaluator", "IndexCheck")]
    assert order == sorted(order)
    assert first.evaluated and first.blessed, first.refusals
    signatures = tf.saved_model.load(first.pushed).signatures
    assert set(signatures) == set(registry.get("multi_interest").signatures)
    histories = [["a-0", "b-3"], [], ["gone", "?"]]
    items = {page: signatures["recommend"](**_raw(histories, page)) for page in ("home", "detail")}
    for page, brand in (("home", "a"), ("detail", "b")):
        ids = [[item.decode() for item in row] for row in items[page]["item_ids"].numpy()]
        for row in ids:
            assert len(set(row)) == 50
            assert "gone" not in row and "late" not in row
        assert np.mean([item.startswith(brand) for item in ids[0][:5] + ids[1][:5]]) > 0.5
        assert f"{brand}-new" in ids[1]
    assert not (Path(first.pushed) / "assets" / "required_ops.txt").exists()


def test_the_index_was_checked_against_an_exact_search(first):
    (check,) = first.checks.values()
    assert check["passed"] and check["recall"] == 1.0
    assert check["queries"] == 80 and check["kind"] == "brute_force"


def _gini(counts) -> float:
    counts = np.asarray(counts, "f8")
    return np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())


def test_the_evaluators_metrics_are_those_of_the_served_lists(first, served):
    _, lists, targets = served
    assert first.metrics["example_count"] == len(lists) == 80
    for n in (10, 20, 50):
        expected = np.mean([recall_at(r, {t}, n) for r, t in zip(lists, targets, strict=True)])
        assert first.metrics[f"recall_at_{n}"] == pytest.approx(expected, abs=1e-6)
    expected = np.mean([ndcg_at(r, {t}, 20) for r, t in zip(lists, targets, strict=True)])
    assert first.metrics["ndcg_at_20"] == pytest.approx(expected, abs=1e-6)
    shown = collections.Counter(item for row in lists for item in row[:20])
    counts = list(shown.values()) + [0] * (ITEMS - len(shown))
    # Of the whole catalogue, what nobody took included.
    assert first.metrics["coverage_at_20"] == pytest.approx(len(shown) / ITEMS, abs=1e-6)
    assert first.metrics["gini_at_20"] == pytest.approx(_gini(counts), abs=1e-6)


def test_metrics_are_sliced_by_page_length_and_by_head_and_tail(first, served):
    examples, lists, targets = served
    trained = collections.Counter(_value(one, "target") for one in _examples(first, "train"))
    text = (Path(first.pushed) / "assets" / "vocabularies.json").read_text()
    vocabulary = json.loads(text)["item_xf"]
    order = sorted(vocabulary, key=lambda item: (-trained[item], vocabulary.index(item)))
    head = set(order[: round(0.2 * len(vocabulary))])
    groups = collections.defaultdict(list)
    for example, row, target in zip(examples, lists, targets, strict=True):
        part = "head" if target in head else "tail" if trained[target] else "never trained"
        hit = recall_at(row, {target}, 10)
        groups[f"target_popularity={part}"].append(hit)
        groups[f"page={_value(example, 'page')}"].append(hit)
        groups["history_length=1-9"].append(hit)
    assert set(groups) == set(first.slices)
    assert {"target_popularity=head", "target_popularity=tail"} <= set(groups)
    for name, hits in groups.items():
        assert first.slices[name]["example_count"] == len(hits)
        assert first.slices[name]["recall_at_10"] == pytest.approx(np.mean(hits), abs=1e-6)


def test_a_threshold_on_more_items_than_are_listed_is_refused_or_held(place):
    """Nothing is blessed by a bound that nobody looks at."""
    _, data, spec = place
    settings = [*PIPELINE, "export.top_k=10", "evaluator.min_metrics={recall_at_50: 0.9}"]
    try:
        config = load_run_config("multi_interest", "file", settings)
        open_checked(config, data, spec)
        entry = registry.get("multi_interest")
        judged = entry.new_task(config).eval_config(HistorySpec(), False)
    except InputError as error:
        assert "a threshold on recall_at_" in str(error) and "top_k" in str(error)
        return
    held = {
        json.loads(metric.config)["name"]
        for metric in judged.metrics_specs[0].metrics
        if metric.per_slice_thresholds
    }
    assert "recall_at_50" in held


# An index that misses too much.


@pytest.fixture(scope="module")
def refused(place, first):
    """Status and output of a run whose index looks at one part of six."""
    import contextlib
    import io

    pytest.importorskip("scann")
    folder, data, spec = place
    command = ["pipeline", "run", "multi_interest", "--root", str(folder / "root")]
    command += ["--data", data, "--features", spec, "--quiet"]
    # The Evaluator sees what is served: with a poor index every metric is poor.
    lenient = (
        "evaluator.max_drops={recall_at_20: 0.99}",
        "evaluator.min_metrics={recall_at_10: 0.01}",
    )
    for setting in (*PIPELINE, *lenient, SCANN % 1):
        command += ["--set", setting]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(command)
    return status, printed.getvalue()


def test_an_index_that_misses_what_it_must_find_is_not_pushed_and_the_reason_is_told(
    first, refused
):
    status, printed = refused
    assert status == 1
    lines = printed.splitlines()
    reasons = [line for line in lines if line.startswith("not blessed: ")]
    assert len(reasons) == 1, printed
    (reason,) = reasons
    assert "the index finds 0." in reason and "export.index.min_recall is 1.0" in reason
    assert "nothing was pushed" in lines
    assert any(line.startswith("IndexCheck") and "NOT passed" in line for line in lines)
    assert any(line.startswith("Evaluator") and "NOT" not in line for line in lines)
    pushed = Path(first.pushed)
    assert [p.name for p in pushed.parent.iterdir()] == [pushed.name]


def test_a_model_that_was_refused_for_its_index_is_not_the_one_to_compare_with(
    place, first, refused
):
    """Nor the one that a warm start takes: the next run's Resolver gives what was pushed."""
    from tfx import v1 as tfx
    from tfx.dsl.compiler.compiler import Compiler
    from tfx.orchestration.metadata import Metadata
    from tfx.orchestration.portable.inputs_utils import resolve_input_artifacts
    from tfx.orchestration.portable.runtime_parameter_utils import substitute_runtime_parameter

    from tfx_pipelines.configs import Places
    from tfx_pipelines.pipeline import create_pipeline

    _, data, spec = place
    config, places = load_run_config("multi_interest", "file", PIPELINE), Places(first.root)
    pipeline = create_pipeline(open_checked(config, data, spec), places)
    compiled = Compiler().compile(pipeline)
    substitute_runtime_parameter(compiled, {"pipeline-run-id": "next"})
    nodes = [node.pipeline_node for node in compiled.nodes]
    (resolver,) = (node for node in nodes if node.node_info.id == "Resolver")
    settings = tfx.orchestration.metadata.sqlite_metadata_connection_config(places.metadata)
    with Metadata(settings) as handle:
        (found,) = resolve_input_artifacts(metadata_handle=handle, pipeline_node=resolver)
    (model,) = found["model"]
    assert Path(model.uri) == stored.artifact(first, "IndexBuilder", "model")


# The components by themselves, on what the first run made.


class _Parts:
    """Builds, checks and pushes an index without training anew."""

    def __init__(self, first, folder: Path, *settings: str) -> None:
        from tfx_pipelines.components import index

        self._first, self._folder = first, folder
        config = load_run_config("multi_interest", "file", [*PIPELINE, *settings])
        self._config = config_to_json(config)
        trained = stored.made("Model", stored.artifact(first, "Trainer", "model"))
        place = stored.artifact(first, "CandidateGen", "candidates")
        self._candidates = index.Candidates()
        self._candidates.uri = str(place)
        self._index = index
        self.model = stored.made("Model", folder / "built")
        index.IndexBuilder.test_call(
            trained=trained,
            model=self.model,
            run_config=self._config,
            candidates=self._candidates,
        )

    def check(self, examples: list[bytes] | None = None, blessed_before: bool = True):
        """The blessing, and what was measured."""
        given = stored.examples(self._first, "HistoryExampleGen")
        if examples is not None:
            given.uri = str(self._folder / "examples")
            folder = self._folder / "examples" / "Split-eval"
            folder.mkdir(parents=True)
            with tf.io.TFRecordWriter(str(folder / "data-0.gz"), "GZIP") as writer:
                for example in examples:
                    writer.write(example)
        earlier = stored.made("ModelBlessing", self._folder / "earlier")
        earlier.set_int_custom_property("blessed", int(blessed_before))
        blessing = stored.made("ModelBlessing", self._folder / "blessing")
        self._index.IndexCheck.test_call(
            model=self.model,
            examples=given,
            earlier=earlier,
            blessing=blessing,
            run_config=self._config,
            candidates=self._candidates,
        )
        return blessing, json.loads((Path(blessing.uri) / "check.json").read_text())

    def push(self, blessing) -> Path | None:
        """Where TFX' Pusher puts the model."""
        return next(iter(stored.push(Path(self.model.uri), blessing, self._folder)), None)


@pytest.mark.needs("scann")
def test_a_pushed_model_with_scann_says_what_a_server_needs(first, served, tmp_path):
    parts = _Parts(first, tmp_path, SCANN % 6)
    blessing, check = parts.check()
    assert check["passed"] and check["recall"] == 1.0 and check["kind"] == "scann"
    pushed = parts.push(blessing)
    told = (pushed / "assets" / "required_ops.txt").read_text()
    assert "Scann" in told and "google/tf-serving-scann" in told
    signature = tf.saved_model.load(str(pushed)).signatures["serving_default"]
    ids = signature(examples=tf.constant(served[0]))["item_ids"].numpy()
    assert [sorted(i.decode() for i in row) for row in ids] == [sorted(r) for r in served[1]]


def test_one_refusal_is_enough(first, tmp_path):
    parts = _Parts(first, tmp_path)
    blessing, check = parts.check(blessed_before=False)
    assert check["passed"] and check["refused_before"] and check["recall"] == 1.0
    assert [p.name for p in Path(blessing.uri).iterdir() if "BLESSED" in p.name] == ["NOT_BLESSED"]
    assert parts.push(blessing) is None


def test_requests_without_an_answer_are_not_held_against_an_exact_index(first, tmp_path):
    """Whoever saw all items is rightly shown none."""
    parts = _Parts(first, tmp_path, "export.drop_seen=true")
    everything = [line.split(",")[0] for line in _rows(first)]
    assert len(everything) == ITEMS
    example = tf.train.Example()
    for name in ("history", "history_page"):
        stored = example.features.feature[name].bytes_list.value
        stored.extend([i.encode() if name == "history" else b"home" for i in everything])
    example.features.feature["history_time"].int64_list.value.extend(range(ITEMS))
    serialized = example.SerializeToString()
    _, check = parts.check([*_examples(first, "eval")[:5], *[serialized] * 5])
    assert check["queries"] == 5
    assert check["passed"] and check["recall"] == 1.0


def _rows(first) -> list[str]:
    """The lines of the catalogue's file, without the header."""
    return (Path(first.root).parent / "items.csv").read_text().splitlines()[1:]


# What is refused.


def test_an_item_that_is_there_twice_is_refused_in_one_line(tmp_path, capsys):
    data, spec = _write(tmp_path, users=20)
    with open(tmp_path / "items.csv", "a") as file:
        file.write("b-5,a,1\n")
    command = ["pipeline", "run", "multi_interest", "--root", str(tmp_path / "root")]
    command += ["--data", data, "--features", spec, "--quiet"]
    for setting in PIPELINE:
        command += ["--set", setting]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "item 'b-5' is in the catalogue twice" in error and error.count("\n") == 1
    assert not (tmp_path / "root" / "serving").exists()


def test_it_compiles_for_kubeflow(tmp_path, capsys):
    out = tmp_path / "multi_interest.json"
    assert main(["pipeline", "compile", "multi_interest", "--out", str(out)]) == 0
    capsys.readouterr()
    text = out.read_text()
    json.loads(text)
    for name in ("HistoryExampleGen", "IndexBuilder", "IndexCheck", "Pusher"):
        assert name in text
