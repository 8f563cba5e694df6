"""`tfrz compress`: a trained model made smaller, measured, fine-tuned, exported."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrz.cli.main import main
from tfrz.config import read_yaml
from tfrz.data.records import open_source
from tfrz.export.saved_model import weight_names
from tfrz.models.dcn_v2 import DCNv2
from tfrz.training import fit as loop
from tfrz.training.warm_start import warm_start
from tfrz.zoo import registry
from tfrz.zoo.building import build_for_training
from tfrz.zoo.run_config import run_config_from_mapping
from tfrz.zoo.train import train

M3 = ("data.options={users: 200}", "trainer.batch_size=32", "trainer.max_steps=20")


@pytest.fixture(scope="module")
def m3(tmp_path_factory) -> Path:
    """A run of a model that has no ranks in its configuration."""
    out = tmp_path_factory.mktemp("m3") / "run"
    train("m3", out=out, overrides=M3, progress=False)
    return out


@pytest.fixture(scope="module")
def compressed(trained, tmp_path_factory) -> Path:
    """The DCN-V2 of the other tests, its ReLU layer at rank 6, not fine-tuned."""
    out = tmp_path_factory.mktemp("compressed") / "small"
    assert main(["compress", str(trained), "--rank", "6", "--out", str(out), "--quiet"]) == 0
    return out


def read(path: Path):
    return json.loads(path.read_text())


def weights_of(version: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    keys = [key for key in reader.get_variable_to_shape_map() if key.startswith("weights/")]
    return {key.split("/")[1]: reader.get_tensor(key) for key in keys}


def rebuilt(version: Path):
    """The model that the exported configuration describes, started from the exported weights."""
    config = run_config_from_mapping(read_yaml(version / "assets" / "run_config.yaml"))
    entry = registry.get(config.name)
    task = entry.new_task(config)
    prepared = task.prepare(
        open_source("simulated", None, entry.record_type, **config.data.options)
    )
    model, _ = build_for_training(task, prepared.inputs, config, prepared.train)
    report = warm_start(model, task, prepared.vocabularies, version)
    assert not report.fresh
    return config, task, prepared, model


def test_it_says_what_became_of_layers_and_quality(trained, compressed, capsys):
    result = read(compressed / "compression.json")
    before, after = result["quality"]
    assert (before["stage"], after["stage"], result["kept"]) == ("before", "compressed") + (
        "compressed",
    )
    # To the digit what the run had measured: every weight is the trained one.
    run = read(trained / "metrics.json")
    assert before["metrics"] == run["metrics"]
    assert before["parameters"] == run["parameters"]
    by_name = {layer["name"]: layer for layer in result["layers"]}
    hidden = by_name["hidden_0"]
    assert (hidden["rank"], hidden["shape"]) == (6, [48, 64])
    assert (hidden["parameters_before"], hidden["parameters_after"]) == (48 * 64 + 64, 6 * 112 + 64)
    assert 0 < hidden["output_error"] < 1
    assert by_name["cross_0"]["skipped"] == "is of low rank already"
    saved = 48 * 64 - 6 * 112
    assert after["parameters"] == before["parameters"] - saved
    assert after["dense_parameters"] == before["dense_parameters"] - saved
    tables = before["parameters"] - before["dense_parameters"]
    weights = weights_of(trained / "model" / "1")
    assert tables == sum(w.size for n, w in weights.items() if n.startswith("embedding_"))
    metrics = read(compressed / "metrics.json")
    assert metrics["metrics"]["validation"] == after["metrics"]["validation"]
    assert metrics["metrics"]["before, test"] == before["metrics"]["test"]
    assert metrics["dense_parameters"] == after["dense_parameters"]
    names = {p.name for p in compressed.iterdir()}
    assert names >= {"config.yaml", "metrics.json", "compression.json", "card.md", "model"}
    assert "| hidden_0 | 48 x 64 | 6 | 736 | 3,136 |" in (compressed / "card.md").read_text()


@pytest.mark.slow
def test_the_tables_of_a_run_with_fine_tuning(trained, tmp_path, capsys):
    out = tmp_path / "small"
    arguments = ["--rank", "1", "--init", "spectral", "--fine-tune-steps", "30"]
    assert main(["compress", str(trained), *arguments, "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split()[:4] == ["layer", "kind", "shape", "rank"]
    assert "hidden_0  dense  48 x 64     1   3,136    176" in said
    for stage in ("before", "compressed", "fine-tuned"):
        assert f"\n{stage}" in said
    # A layer of rank one that was not measured: training on helps, and is what is kept.
    _, plain, tuned = read(out / "compression.json")["quality"]
    losses = [q["metrics"]["validation"]["log_loss"] for q in (plain, tuned)]
    assert losses[1] < losses[0]
    assert f"{losses[0]:.4f}" in said
    assert f"{losses[1]:.4f}" in said
    assert "\nkept: fine-tuned\n" in said
    assert read(out / "metrics.json")["metrics"]["validation"] == tuned["metrics"]["validation"]
    assert (out / "curves.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dcn_v2", "m3"])
def test_the_exported_configuration_builds_the_compressed_model_again(
    name, compressed, m3, tmp_path, capsys
):
    out = compressed
    if name == "m3":
        out = tmp_path / "small"
        assert main(["compress", str(m3), "--rank", "5", "--out", str(out), "--quiet"]) == 0
    version = out / "model" / "1"
    config, task, prepared, model = rebuilt(version)
    if name == "dcn_v2":
        assert isinstance(model, DCNv2)
        assert (config.model.hidden_rank, config.low_rank.enabled) == ((6,), False)
    else:
        assert config.low_rank.layers == {"input_0": 5, "output_0": 5}
    found = weight_names(model)
    stored = weights_of(version)
    assert set(found) == set(stored)
    for weight, value in stored.items():
        np.testing.assert_array_equal(found[weight].numpy(), value)
    again = loop.evaluate(model, task, prepared.validation)
    assert again == pytest.approx(read(out / "metrics.json")["metrics"]["validation"], rel=1e-6)
    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    own = task.signatures(model, prepared.transform, prepared.spec, prepared.vocabularies)
    examples = tf.constant(prepared.examples[:8])
    expected = own["serving_default"](examples)["scores"]
    np.testing.assert_allclose(served(examples=examples)["scores"], expected, atol=1e-6)
    # It is read like any other model: what is full still, can be compressed; here nothing is.
    capsys.readouterr()
    assert main(["compress", str(out), "--rank", "3", "--out", str(tmp_path / "less")]) == 2
    assert "0: is of low rank already)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_better_weights_are_kept(trained, compressed, tmp_path):
    out = tmp_path / "worse"
    arguments = ["--rank", "6", "--fine-tune-steps", "4", "--learning-rate", "3"]
    assert main(["compress", str(trained), *arguments, "--out", str(out), "--quiet"]) == 0
    result = read(out / "compression.json")
    plain, tuned = (q["metrics"]["validation"]["log_loss"] for q in result["quality"][1:])
    assert tuned > plain
    assert result["kept"] == "compressed"
    kept, expected = (weights_of(path / "model" / "1") for path in (out, compressed))
    for name, value in expected.items():
        np.testing.assert_array_equal(kept[name], value)


@pytest.mark.slow
def test_an_interrupted_fine_tuning_goes_on_to_the_same_bits(trained, tmp_path, monkeypatch):
    version = tmp_path / "model" / "1"
    shutil.copytree(trained / "model" / "1", version)
    path = version / "assets" / "run_config.yaml"
    path.write_text(re.sub(r"steps_per_call: \d+", "steps_per_call: 1", path.read_text()))
    command = ["compress", str(version), "--data", "simulated", "--rank", "6", "--quiet"]
    command += ["--fine-tune-steps", "5", "--out"]
    run, done = loop._Loop.run, []

    def interrupted(self, iterator, count):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(count)
        return run(self, iterator, count)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "run", interrupted)
        assert main([*command, str(tmp_path / "a")]) == 130
    assert not (tmp_path / "a" / "metrics.json").exists()
    assert not (tmp_path / "a" / "model").exists()
    assert main([*command, str(tmp_path / "a")]) == main([*command, str(tmp_path / "b")]) == 0
    first, second = (read(tmp_path / name / "compression.json")["quality"] for name in "ab")
    assert first == second


def test_a_target_instead_of_a_rank_and_json(trained, tmp_path, capsys):
    out = tmp_path / "small"
    arguments = ["--target-parameters", "900", "--json", "--quiet", "--out", str(out)]
    assert main(["compress", str(trained / "model"), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == read(out / "compression.json")
    hidden = next(layer for layer in result["layers"] if layer["name"] == "hidden_0")
    assert hidden["rank"] == 900 // (48 + 64)


def other_vocabulary(version: Path) -> None:
    path = version / "assets" / "vocabularies.json"
    terms = json.loads(path.read_text())
    terms["item_xf"].remove("item_3")
    path.write_text(json.dumps(terms))


BAD = {
    "rank 0": (["--rank", "0"], "--rank: must be at least 1, not 0"),
    "rank above full": (["--rank", "49"], "rank: 49 is not 1 to 48, the full rank"),
    "nothing gets smaller": (
        ["--rank", "40"],
        "--rank: no layer of this DCNv2 becomes smaller (cross_0: is of low rank already; "
        "cross_1: is of low rank already; hidden_0: rank 40 is not below break-even, 27.43)",
    ),
    "no rank": ([], "--rank: give a rank, or --target-parameters"),
    "both": (["--rank", "4", "--target-parameters", "9"], "--rank: give a rank, or --target"),
    "target too small": (["--target-parameters", "9"], "9 parameters are fewer than the 112"),
    "steps": (["--rank", "4", "--fine-tune-steps", "-1"], "--fine-tune-steps: must not be neg"),
    "rate": (["--rank", "4", "--learning-rate", "0"], "learning_rate: must be above 0"),
    "other records": (["--rank", "4", "--data", "letor:x"], "letor:x has list records"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, trained, tmp_path, capsys):
    arguments, message = BAD[case]
    out = tmp_path / "out"
    assert main(["compress", str(trained), *arguments, "--out", str(out), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1, said
    assert not [p for p in out.rglob("*") if p.is_file()]


def test_models_that_do_not_fit_are_one_line(trained, tmp_path, capsys):
    copy = tmp_path / "1"
    shutil.copytree(trained / "model" / "1", copy)
    (tmp_path / "empty").mkdir()
    rank = ["--rank", "4", "--quiet", "--out"]

    def said(*arguments):
        assert main(["compress", *arguments]) == 2
        lines = capsys.readouterr().err
        assert lines.count("\n") == 1, lines
        return lines

    out = str(tmp_path / "out")
    assert "compress: no SavedModel in" in said(str(tmp_path / "empty"), *rank, out)
    assert f"no run of tfrz train is around {copy}" in said(str(copy), *rank, out)
    assert f"{trained} holds a finished run" in said(str(trained), *rank, str(trained))
    data = ("--data", "simulated", *rank, out)
    other_vocabulary(copy)
    assert (
        f"compress: the vocabulary of item_xf in {copy} is another, 49 terms against 50; only the "
        "data has 'item_3': name the data that it was trained on"
    ) in said(str(copy), *data)
    (copy / "assets" / "run_config.yaml").unlink()
    assert f"compress: {copy} is no model that tfrz exported" in said(str(copy), *data)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dcn_v2", "m3"])
def test_the_model_as_it_was_teaches_in_fine_tuning(model, trained, m3, tmp_path):
    source = trained if model == "dcn_v2" else m3
    common = ["compress", str(source), "--rank", "2", "--fine-tune-steps", "6", "--quiet"]
    found = {}
    for weight in ("0", "0.9"):
        out = tmp_path / weight
        assert main([*common, "--distill", weight, "--out", str(out)]) == 0
        stages = read(out / "compression.json")["quality"]
        found[weight] = {stage["stage"]: stage["metrics"]["validation"] for stage in stages}
    assert found["0"]["compressed"] == found["0.9"]["compressed"]
    assert found["0"]["fine-tuned"] != found["0.9"]["fine-tuned"]
    config = read_yaml(tmp_path / "0.9" / "model" / "1" / "assets" / "run_config.yaml")
    assert config["distill"]["teacher"] == str(source / "model" / "1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--distill", "2", "--fine-tune-steps", "5"], "--distill: must be 0 to 1"),
        (["--distill", "0.5"], "give --fine-tune-steps too"),
    ],
)
def test_a_wrong_weight_is_one_line(options, words, trained, tmp_path, capsys):
    command = ["compress", str(trained), "--rank", "2", "--out", str(tmp_path / "x"), *options]
    assert main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "x").exists()
