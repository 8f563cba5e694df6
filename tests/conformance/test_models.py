"""What every model of the zoo must do, from construction to a served answer."""

from __future__ import annotations

import base64
import json
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.case import MODEL_CASES, ModelCase, each, first_of
from tests.tfrz.serving.harness import Client, ServerProcess
from tfrz.data.records import open_source
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.train import train

# Some cases read users' embeddings.
pytestmark = pytest.mark.usefixtures("embeddings")

FIRST = first_of(MODEL_CASES, "model")
cases, first_cases_fast = each(MODEL_CASES), each(MODEL_CASES, FIRST)
SIZES = {
    "impression": "data.options={rows: 2000}",
    "history": "data.options={users: 400}",
    "list": "data.options={queries: 400}",
    "logged_action": "data.options={users: 400}",
    "timeline": "data.options={users: 80}",
}


def _size(case: ModelCase) -> str:
    return SIZES[registry.get(case.model).record_type]


class Built:
    """A model of a case with the data it was built for.

    Cases that differ in nothing that the data are prepared by share them.
    """

    _prepared: ClassVar[dict[tuple[str, ...], Any]] = {}

    def __init__(self, case: ModelCase, dtype: str = "float32") -> None:
        entry = registry.get(case.model)
        overrides = (_size(case), "trainer.batch_size=64", *case.overrides)
        config = load_run_config(case.model, "simulated", (*overrides, f"trainer.dtype={dtype}"))
        self.task = entry.new_task(config)
        reads = ("data.", "features.", "trainer.batch_size", *self.task.prepare_reads)
        key = (case.model, *(one for one in overrides if one.startswith(reads)))
        if key not in self._prepared:
            reader = open_source("simulated", None, entry.record_type, **config.data.options)
            self._prepared[key] = self.task.prepare(reader)
        self.prepared = self._prepared[key]
        keras.utils.set_random_seed(7)
        self.model = self.task.build(self.prepared.inputs)
        whole = next(iter(self.prepared.validation.once()))
        self.batch = {name: whole[name][:16] for name in self.prepared.inputs.names}

    def rows(self, selection: slice) -> dict[str, tf.Tensor]:
        """Some rows of the batch."""
        return {name: value[selection] for name, value in self.batch.items()}


@pytest.fixture(scope="module")
def built():
    """The models of this module, made once each."""
    cache: dict[tuple[str, str, str], Built] = {}

    def get(case: ModelCase, dtype: str = "float32") -> Built:
        key = (case.model, case.name, dtype)
        if key not in cache:
            cache[key] = Built(case, dtype)
        return cache[key]

    yield get
    Built._prepared.clear()


@first_cases_fast
def test_a_batch_of_one_equals_the_row_of_a_larger_batch(case, built):
    one = built(case)
    together = one.model(one.batch).numpy()
    for row in range(3):
        alone = one.model(one.rows(slice(row, row + 1))).numpy()
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-6)


@cases
def test_it_computes_what_the_oracle_computes(case, built):
    _computes_the_oracle(case, "float32", 1e-5, built)


@first_cases_fast
def test_it_computes_what_the_oracle_computes_in_bfloat16(case, built):
    _computes_the_oracle(case, "mixed_bfloat16", 2e-2, built)


def _computes_the_oracle(case, dtype, tolerance, built):
    if case.oracle is None:
        return
    one = built(case, dtype)
    output = one.model(one.batch)
    assert output.dtype == tf.float32
    expected = case.oracle(one.model, {k: v.numpy() for k, v in one.batch.items()})
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=tolerance * scale)


@first_cases_fast
def test_a_model_made_from_its_config_computes_the_same(case, built):
    one = built(case)
    copy = type(one.model).from_config(one.model.get_config())
    copy(one.batch)
    copy.set_weights(one.model.get_weights())
    np.testing.assert_array_equal(copy(one.batch).numpy(), one.model(one.batch).numpy())


@first_cases_fast
def test_a_saved_model_is_equal_to_the_bit(case, built, tmp_path):
    one = built(case)
    path = str(tmp_path / "model.keras")
    one.model.save(path)
    copy = keras.models.load_model(path)
    np.testing.assert_array_equal(copy(one.batch).numpy(), one.model(one.batch).numpy())


@first_cases_fast
def test_xla_of_the_dense_part_changes_nothing(case, built):
    one = built(case)
    embedded = one.model.embed(one.batch)
    compiled = tf.function(one.model.interact, jit_compile=True)(embedded)
    np.testing.assert_allclose(compiled.numpy(), one.model(one.batch).numpy(), atol=1e-5)


@cases
def test_every_weight_gets_a_finite_gradient(case, built):
    one = built(case)
    with tf.GradientTape() as tape:
        rows = next(iter(one.prepared.train.epoch(0)))
        losses, penalty = one.task.dense_loss(one.model, one.task.lookup(one.model, rows))
        loss = tf.reduce_sum(losses) + penalty
    variables = one.model.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        assert gradient is not None, variable.name
        assert np.isfinite(tf.convert_to_tensor(gradient).numpy()).all(), variable.name


# Answers from the reloaded SavedModel, then serves it: one process, one start of TensorFlow.
_FRESH = """
import json, pathlib, sys
import tensorflow as tf
from tfrz.serving.__main__ import main
loaded = tf.saved_model.load(sys.argv[1])
examples = [bytes.fromhex(e) for e in json.load(open(sys.argv[2]))]
raw = json.load(open(sys.argv[3]))
def plain(outputs):
    return {
        n: v.numpy().astype(str).tolist() if v.dtype == tf.string else v.numpy().tolist()
        for n, v in outputs.items()
    }
default = loaded.signatures["serving_default"](examples=tf.constant(examples))
inputs = loaded.signatures["serving_raw"].structured_input_signature[1]
tensors = {n: tf.constant(raw[n], spec.dtype) for n, spec in inputs.items()}
answers = {
    "default": plain(default),
    "raw": plain(loaded.signatures["serving_raw"](**tensors)),
    "empty": plain(loaded.signatures["serving_default"](examples=tf.constant([b"", b""]))),
    "signatures": sorted(loaded.signatures),
}
pathlib.Path(sys.argv[4]).write_text(json.dumps(answers))
main(sys.argv[5:])
"""


def _same(answer: dict, expected: dict) -> None:
    """Outputs as plain lists against the trainer's."""
    assert set(answer) == set(expected)
    for name, value in expected.items():
        if value.dtype == tf.string:
            assert answer[name] == value.numpy().astype(str).tolist()
        else:
            np.testing.assert_allclose(answer[name], value.numpy(), rtol=1e-6, atol=1e-6)


def _raw_columns(serialized: list[bytes], spec) -> dict[str, list]:
    """The same rows as named raw values, lists padded, missing as the contract writes it."""
    from tfrz.data.spec import MISSING_INT

    missing = {"string": "", "int64": int(MISSING_INT), "float32": float("nan")}
    columns: dict[str, list] = {}
    for feature in spec.features:
        values = []
        for one in serialized:
            stored = tf.train.Example.FromString(one).features.feature[feature.name]
            kind = stored.WhichOneof("kind")
            row = list(getattr(stored, kind).value) if kind else []
            values.append([v.decode() if isinstance(v, bytes) else v for v in row])
        width = max([1, *map(len, values)], default=1)
        padded = [row + [missing[feature.dtype]] * (width - len(row)) for row in values]
        columns[feature.name] = padded if feature.multivalent else [row[0] for row in padded]
    return columns


@pytest.mark.parametrize("case", FIRST, ids=lambda c: c.model)
def test_the_exported_model_answers_in_a_fresh_process_as_the_trainer_did(case, tmp_path):
    out = tmp_path / "run"
    overrides = (_size(case), "trainer.epochs=1", "trainer.batch_size=64", *case.overrides)
    result = train(case.model, out=out, overrides=overrides, progress=False)
    version = out / "model" / "1"
    assert result["model"] == str(version)

    # The trainer's own output, from its checkpoint's data: the same rows through the same model.
    entry = registry.get(case.model)
    config = load_run_config(case.model, "simulated", overrides)
    task = entry.new_task(config)
    reader = open_source("simulated", None, entry.record_type, **config.data.options)
    prepared = task.prepare(reader)
    from tfrz.training.warm_start import warm_start

    model = task.build(prepared.inputs)
    report = warm_start(model, task, prepared.vocabularies, version)
    assert not report.fresh
    examples = prepared.examples[:20]
    functions = task.signatures(model, prepared.transform, prepared.spec, prepared.vocabularies)
    answers = functions["serving_default"](tf.constant(examples))
    rows = next(iter(prepared.validation.once()))
    direct = task.outputs(model, {name: value[:20] for name, value in rows.items()})
    alike = [name for name, value in answers.items() if name in direct and value.dtype.is_floating]
    assert alike
    for name in alike:
        np.testing.assert_allclose(answers[name], direct[name], rtol=1e-6, atol=1e-6)

    unknown = tf.train.Example()
    for feature in prepared.spec.features:
        values = unknown.features.feature[feature.name]
        if feature.dtype == "string":
            values.bytes_list.value.append(b"never seen before")
        elif feature.dtype == "int64":
            values.int64_list.value.append(987654321)
        else:
            values.float_list.value.append(0.0)
    sent = [*examples, unknown.SerializeToString()]
    (tmp_path / "e.json").write_text(json.dumps([e.hex() for e in sent]))
    (tmp_path / "r.json").write_text(json.dumps(_raw_columns(sent, prepared.spec)))
    files = [tmp_path / name for name in ("e.json", "r.json", "answers.json")]
    program = ("-c", _FRESH, str(version), *map(str, files))
    flags = (f"--model_base_path={out / 'model'}", f"--model_name={case.model}")
    with ServerProcess(*flags, log=tmp_path / "server.log", program=program) as server:
        served = _served(server.client(), case.model, sent)
    answers = json.loads(files[-1].read_text())
    expected = functions["serving_default"](tf.constant(sent))
    _same(answers["default"], expected)
    _same(answers["raw"], expected)
    _same(answers["empty"], functions["serving_default"](tf.constant([b"", b""])))
    assert set(entry.signatures) <= set(answers["signatures"])
    for name in ("run_config.yaml", "card.md", "vocabularies.json"):
        assert (version / "assets" / name).exists()
    assert (version / "assets.extra" / "tf_serving_warmup_requests").exists()
    over_grpc, over_rest = served
    _same(
        {n: v.astype(str).tolist() if v.dtype == object else v for n, v in over_grpc.items()},
        expected,
    )
    for output, value in over_grpc.items():
        if value.dtype == object:
            assert over_rest[output] == value.astype(str).tolist()
        else:
            np.testing.assert_array_equal(np.array(over_rest[output], value.dtype), value)


def _served(client: Client, name: str, sent: list[bytes]) -> tuple[dict, dict]:
    """Answers to the same rows over gRPC and REST."""
    outputs = client.predict(name, {"examples": np.array(sent, object)}).outputs
    over_grpc = {n: tf.make_ndarray(value) for n, value in outputs.items()}
    rows = [{"b64": base64.b64encode(one).decode()} for one in sent]
    status, document = client.rest(name, {"inputs": {"examples": rows}})
    assert status == 200, document
    answer = document["outputs"]
    # One output comes without its name.
    over_rest = answer if isinstance(answer, dict) else {next(iter(over_grpc)): answer}
    return over_grpc, over_rest
