"""Suite `cross`: its baselines compute what the layer computes, and it runs from the shell."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import cross
from benchmarks.measure import in_fresh_process
from benchmarks.runner import Options, Skip

ROOT = Path(__file__).resolve().parents[2]
SIZES = cross.Sizes(batch=5, dim=12, num_experts=3, rank=4, num_layers=2, square=8, rounds=1)
BASELINES = (cross.LOOP, cross.BROADCAST, cross.FACTORED_LOOP, cross.EXPERT_MAJOR)


@pytest.fixture(scope="module")
def stacks() -> dict[str, list]:
    made = cross.make_stacks(SIZES, seed=1)
    rng = np.random.default_rng(0)
    for mixture in zip(*(made[name] for name in (cross.MIXTURE, *BASELINES)), strict=True):
        # Biases start at zero, where a forgotten one would not be seen.
        bias = rng.normal(size=SIZES.dim).astype("float32")
        for layer in mixture:
            layer(tf.zeros([1, SIZES.dim]))
            (layer.b if hasattr(layer, "b") else layer.bias).assign(bias)
    return made


def inputs() -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(7)
    shape = (SIZES.batch, SIZES.dim)
    return tf.constant(rng.normal(size=shape), tf.float32), tf.constant(
        rng.normal(size=shape), tf.float32
    )


def oracle(layer, x0: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Equation 4 in float64, expert by expert, from the paper's matrices."""
    U, V, C, A, b = (np.array(w, np.float64) for w in (layer.U, layer.V, layer.C, layer.A, layer.b))
    scores = np.exp(x @ A.T)
    gates = scores / scores.sum(axis=1, keepdims=True)
    output = x.copy()
    for i in range(SIZES.num_experts):
        columns = slice(i * SIZES.rank, (i + 1) * SIZES.rank)
        hidden = np.tanh(np.tanh(x @ V[:, columns]) @ C[i].T)
        output += gates[:, i : i + 1] * (x0 * (hidden @ U[:, columns].T + b))
    return output


@pytest.mark.parametrize("name", [cross.MIXTURE, *BASELINES])
def test_every_form_of_the_mixture_gives_equation_4(stacks: dict[str, list], name: str) -> None:
    x0, x = inputs()
    expected = oracle(stacks[cross.MIXTURE][0], x0.numpy().astype(float), x.numpy().astype(float))
    np.testing.assert_allclose(stacks[name][0](x0, x), expected, atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_a_stack_of_each_form_gives_the_same_outputs_and_gradients(
    stacks: dict[str, list], name: str
) -> None:
    def outputs(layers: list) -> tuple[tf.Tensor, tf.Tensor]:
        x0, _ = inputs()
        with tf.GradientTape() as tape:
            tape.watch(x0)
            y = cross.apply_stack(layers, x0)
            total = tf.reduce_sum(tf.sin(y))
        return y, tape.gradient(total, x0)

    for ours, theirs in zip(outputs(stacks[cross.MIXTURE]), outputs(stacks[name]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_every_form_has_as_many_parameters(stacks: dict[str, list]) -> None:
    def count(name: str) -> int:
        return sum(int(np.prod(w.shape)) for layer in stacks[name] for w in layer.trainable_weights)

    assert {count(name) for name in BASELINES} == {count(cross.MIXTURE)}


def test_forward_flops_are_those_of_the_matrix_products() -> None:
    sizes = cross.Sizes(batch=10, dim=7, num_experts=2, rank=3, num_layers=2)
    down, up, inner, gate = 7 * 6, 6 * 7, 2 * 3 * 3, 7 * 2
    assert sizes.forward_flops == 2 * 10 * 2 * (down + up + inner + gate)


def test_a_step_learns_and_updates_every_weight(stacks: dict[str, list]) -> None:
    x0, _ = inputs()
    target = tf.reduce_mean(x0, axis=1)
    for name in (cross.MIXTURE, cross.LOOP):
        layers = cross.make_stacks(SIZES, 3, (name,))[name]
        step = cross.make_step(layers, x0, target, learning_rate=1e-2)
        before = [w.numpy() for layer in layers for w in layer.trainable_weights]
        losses = [step() for _ in range(40)]
        assert losses[-1] < 0.5 * losses[0]
        after = [w.numpy() for layer in layers for w in layer.trainable_weights]
        assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_loss_curves_start_alike_and_agree_between_dtypes() -> None:
    curves = [cross.loss_curve(SIZES, d, 5, 0) for d in ("float32", "float32", "mixed_bfloat16")]
    assert curves[0] == curves[1]
    assert curves[2] != curves[0]
    assert cross.curve_gap(curves[0], curves[2]) < 0.1
    assert cross.curve_gap([1.0, 2.0], [1.0, 1.5]) == 0.25


def test_peak_memory_of_a_step_holds_its_activations() -> None:
    sizes = {**vars(SIZES), "batch": 65_536, "dim": 256, "num_layers": 1}
    used = in_fresh_process(
        "benchmarks.cross:child_peak_memory", name=cross.LOOP, sizes=sizes, seed=0
    )["bytes"]
    # One activation [batch, dim] takes 64 MiB; a step of one layer holds some tens at most.
    assert 64 << 20 < used < 64 * 40 << 20


def test_absent_data_skips_the_training_part() -> None:
    from benchmarks.cross_pipeline import measure_train

    with pytest.raises(Skip, match=r"no-such-file\.zip is not there"):
        measure_train(Options(data="movielens-1m:no-such-file.zip"))


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def check(report: dict) -> None:
    """A report that the documentation can be rendered from."""
    assert report["suite"] == "cross"
    assert set(report["machine"]) == {"cpu", "cores", "cpu_features", "gpus"}
    assert report["versions"]["tensorflow"] == tf.__version__
    for part in report["parts"].values():
        assert part["title"]
        if "skipped" in part:
            continue
        assert part["baseline"] in part["timings"] or not part["timings"]
        for timing in part["timings"].values():
            assert all(math.isfinite(v) and v >= 0 for v in timing.values())
        for figure in part["figures"]:
            assert math.isfinite(figure["value"])
            assert (figure["bound"] is None) == (figure["verdict"] is None)


@pytest.mark.slow
def test_quick_run_through_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    parts = ("step", "forward", "bfloat16")
    chosen = [word for part in parts for word in ("--part", part)]
    done = shell("-m", "tfrz", "bench", "cross", "--quick", *chosen, "--json", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    check(report)
    assert tuple(report["parts"]) == parts
    verdicts = [f["verdict"] for p in report["parts"].values() for f in p["figures"]]
    assert {v for v in verdicts if v} == {"not judged"}
    assert set(report["parts"]["step"]["timings"]) >= {cross.MIXTURE, *BASELINES, cross.FULL}
    assert "mixture / loop over experts" in done.stdout


@pytest.mark.slow
def test_the_runner_needs_neither_tfx_nor_beam_nor_tfrs(tmp_path: Path) -> None:
    """As on a machine that has only what training needs."""
    out = tmp_path / "report.json"
    program = """
import sys
absent = ("tfx", "tfx_bsl", "apache_beam", "tensorflow_transform", "tensorflow_recommenders")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from benchmarks.runner import main
parts = ("step", "xla", "transform")
sys.exit(main("cross", ["--quick", "--json", sys.argv[1], *(f"--part={p}" for p in parts)]))
"""
    done = shell("-c", program, str(out))
    assert done.returncode == 0, done.stderr
    assert "TFRS is not installed" in done.stderr
    assert "transform: skipped: apache_beam" in done.stdout
    report = json.loads(out.read_text())
    check(report)
    assert cross.TFRS not in report["parts"]["step"]["timings"]


def test_bench_lists_the_suites_and_refuses_unknown_ones() -> None:
    listed = shell("-m", "tfrz", "bench")
    assert listed.returncode == 0
    assert "cross: " in listed.stdout and "dcn_v2" in listed.stdout
    unknown = shell("-m", "tfrz", "bench", "crss")
    assert unknown.returncode == 2
    assert "did you mean 'cross'" in unknown.stderr
    assert len(unknown.stderr.strip().splitlines()) == 1


def test_layer_only_leaves_out_the_end_to_end_parts() -> None:
    assert {name for name, part in cross.PARTS.items() if not part.layer} == {"train", "transform"}


@pytest.mark.needs("tensorflow_transform")
@pytest.mark.slow
def test_a_simulated_source_goes_through_beam_and_tft() -> None:
    result = in_fresh_process("benchmarks.cross_pipeline:child_transform", rows=300, seed=0)
    assert result["rows"] == 300
    assert result["seconds"] > 0
    assert result["bytes"] > 0
