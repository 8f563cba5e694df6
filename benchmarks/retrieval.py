"""Suite `retrieval`: density of items, indexes, steps and answers of two towers.

python -m benchmarks.retrieval --json FILE
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import histories
from benchmarks.measure import (
    PairedTimings,
    forget_peak_resident_bytes,
    in_fresh_process,
    peak_resident_bytes,
    resident_bytes,
    time_paired,
)
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options, Part

TITLE = "two-tower retrieval: density of items, index, steps, recommendations"

SCIPY, BRUTE_FORCE, NOTHING = "scipy's gaussian_kde", "brute force", "a call that does nothing"
INTERESTS = 4
MIN_RECALL, MAX_TIME = 0.95, 0.25
MIB, GIB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Unit vectors in clusters, more or less as trained towers have them.

    The spread is an assumption: a real catalogue may be more or less clustered, and
    ScaNN finds more or less of it accordingly.

    Attributes:
      items: of the catalogue.
      dim: of a vector.
      clusters: their centres are anywhere; the c-th has items, and users' interests, in proportion
        to `c ** -0.5`. None: items and users are anywhere.
      spread: of items around their centre, as a multiple of the centre's norm.
      user_spread: of users' vectors alike.
    """

    items: int = 100_000
    dim: int = 64
    clusters: int | None = 1000
    spread: float = 1.25
    user_spread: float = 0.5

    def _vectors(self, shape: tuple[int, ...], spread: float, seed: Sequence[int]) -> np.ndarray:
        rng = np.random.default_rng(seed)
        drawn = rng.standard_normal((*shape, self.dim), dtype=np.float32)
        if self.clusters is not None:
            centres = np.random.default_rng(seed[0]).standard_normal((self.clusters, self.dim))
            sizes = np.arange(1, self.clusters + 1) ** -0.5
            which = rng.choice(self.clusters, shape, p=sizes / sizes.sum())
            drawn *= spread
            drawn += centres.astype(np.float32)[which]
        drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
        return drawn

    def item_vectors(self, seed: int) -> np.ndarray:
        """Float32 `[items, dim]`."""
        return self._vectors((self.items,), self.spread, (seed, 0))

    def users(self, count: int, seed: int, draw: int = 0) -> np.ndarray:
        """Float32 `[count, INTERESTS, dim]`; other users for another `draw`."""
        return self._vectors((count, INTERESTS), self.user_spread, (seed, 1, draw))

    @property
    def ids(self) -> list[bytes]:
        """Raw ids of the items."""
        return [b"item-%d" % i for i in range(self.items)]


# The density of items.


def child_density(
    mixture: dict[str, Any], samples: int, block_size: int, seed: int
) -> dict[str, float]:
    """In a separate process: seconds and memory of the density of all items."""
    from tfrz.training.density_weighting import WeightingConfig, item_densities

    vectors = Mixture(**mixture).item_vectors(seed)
    weights = np.full(len(vectors), 1 / len(vectors))
    config = WeightingConfig(
        kind="density", samples=samples, block_size=block_size, relative_noise=True, seed=seed
    )
    forget_peak_resident_bytes()
    start, begin = resident_bytes(), time.perf_counter()
    densities = item_densities(vectors, weights, config)
    seconds = time.perf_counter() - begin
    assert np.isfinite(densities).all()
    return {"seconds": seconds, "start": float(start), "peak": float(peak_resident_bytes())}


def measure_density(options: Options) -> Section:
    """All items at two block sizes; and scipy on some of them."""
    from scipy.stats import gaussian_kde

    from tfrz.training.density_weighting import scott_covariance, weighted_kernel_density

    mixture, samples, blocks, queries, rounds = (
        (Mixture(2000, 8, 20), 200, (16, 64), 100, 2)
        if options.quick
        else (Mixture(), 10_000, (512, 4096), 4096, 7)
    )
    runs = {
        block: in_fresh_process(
            "benchmarks.retrieval:child_density",
            mixture=dataclasses.asdict(mixture),
            samples=samples,
            block_size=block,
            seed=options.seed,
        )
        for block in blocks
    }
    vectors = mixture.item_vectors(options.seed).astype(np.float64)
    rng = np.random.default_rng(options.seed)
    points, some = (vectors[rng.choice(len(vectors), n)] for n in (samples, queries))
    points = points + 0.1 * vectors.std() * rng.standard_normal(points.shape)
    candidates: dict[str, Callable[[], np.ndarray]] = {
        f"block {block}": lambda block=block: weighted_kernel_density(
            points, some, scott_covariance(points), None, block
        )
        for block in blocks
    }
    candidates[SCIPY] = lambda: gaussian_kde(points.T)(some.T)
    expected = candidates[SCIPY]()
    for name, run in candidates.items():
        np.testing.assert_allclose(run(), expected, rtol=1e-8, err_msg=name)
    times = time_paired(candidates, rounds, warm_up=1)
    small, large = blocks
    # What the docstring of `weighted_kernel_density` says.
    promised = 8 * samples * (large - small)
    return Section(
        title=f"density of {mixture.items:,} items of {mixture.dim} dimensions, "
        f"{samples:,} samples",
        baseline=SCIPY,
        setup={
            **dataclasses.asdict(mixture),
            "samples": samples,
            "blocks": list(blocks),
            "queries": queries,
            "rounds": rounds,
        },
        timings=times.summary(SCIPY),
        figures=(
            *(
                figure
                for block, run in runs.items()
                for figure in (
                    Figure(f"all items, block {block}", run["seconds"], "s"),
                    Figure(f"all items, block {block}, peak memory", run["peak"] / MIB, "MiB"),
                    Figure(
                        f"all items, block {block}, peak memory less what was there before",
                        (run["peak"] - run["start"]) / MIB,
                        "MiB",
                    ),
                )
            ),
            Figure(
                f"memory that block {large} takes above block {small} / 8 bytes a pair",
                (runs[large]["peak"] - runs[small]["peak"]) / promised,
                bound=Bound(1.1, "at most"),
                judged=not options.quick,
            ),
            *(
                Figure(
                    f"time per query, block {block} / {SCIPY}",
                    times.ratio(f"block {block}", SCIPY).of_medians,
                )
                for block in blocks
            ),
        ),
        notes=(
            f"All items: one run in a separate process. Time per query: {queries} queries, the "
            "estimate's covariance included; all agree to 8 digits; scipy has one thread",
            "A pair is a query of a block and a sample; so much the documentation promises",
        ),
    )


# The index.


@dataclasses.dataclass(frozen=True)
class Setting:
    """How ScaNN searches.

    Attributes:
      leaves_to_search: as in `IndexConfig`.
      reorder: as in `IndexConfig`.
    """

    leaves_to_search: int | None = None
    reorder: int = 4

    def __str__(self) -> str:
        if self == Setting():
            return "default setting"
        return f"{self.leaves_to_search} leaves, reorder {self.reorder}"


@dataclasses.dataclass(frozen=True)
class Trade:
    """What a setting gives.

    Attributes:
      setting: which.
      recall: share of the exact answers that it finds.
      time: as a multiple of brute force.
    """

    setting: Setting
    recall: float
    time: float


def overlap(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of the exact rows that were found, the mean over users."""
    shares = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, exact, strict=True)]
    return float(np.mean(shares))


def frontier(trades: Sequence[Trade]) -> list[Trade]:
    """Those that no other beats in both recall and time, the fastest first."""
    best: list[Trade] = []
    for trade in sorted(trades, key=lambda t: (t.time, -t.recall)):
        if not best or trade.recall > best[-1].recall:
            best.append(trade)
    return best


def choose(trades: Sequence[Trade]) -> Trade:
    """The fastest that finds enough; if none does, the best that is fast enough."""
    enough = [trade for trade in trades if trade.recall >= MIN_RECALL]
    if enough:
        return min(enough, key=lambda trade: trade.time)
    fast = [trade for trade in trades if trade.time <= MAX_TIME]
    return max(fast or trades, key=lambda trade: trade.recall)


class Searches:
    """Searches of one catalogue by several settings, and by brute force.

    Args:
      mixture: gives the catalogue.
      seed: its seed.
      settings: of ScaNN.
      k: items of an answer.
    """

    def __init__(self, mixture: Mixture, seed: int, settings: Sequence[Setting], k: int) -> None:
        import tensorflow as tf

        from tfrz.export.index import IndexConfig, RecommendationIndex

        vectors, ids = mixture.item_vectors(seed), mixture.ids
        configs = {BRUTE_FORCE: IndexConfig()}
        for setting in settings:
            configs[str(setting)] = IndexConfig(kind="scann", **dataclasses.asdict(setting))
        self.calls = {}
        for name, config in configs.items():
            index = RecommendationIndex(ids, vectors, config, k)
            self.calls[name] = tf.function(index.search)
        self.calls[NOTHING] = tf.function(lambda users: (users,))

    def rows(self, name: str, users: np.ndarray, batch: int) -> np.ndarray:
        """The rows that are found for users, a batch at a time."""
        parts = [users[i : i + batch] for i in range(0, len(users), batch)]
        return np.concatenate([self.calls[name](part)[0].numpy() for part in parts])

    @property
    def names(self) -> list[str]:
        """Of all searches."""
        return [name for name in self.calls if name != NOTHING]

    def recalls(self, users: np.ndarray, batch: int, only: Sequence[str] = ()) -> dict[str, float]:
        """`overlap` of all, or of those named, with brute force."""
        exact = self.rows(BRUTE_FORCE, users, batch)
        return {name: overlap(self.rows(name, users, batch), exact) for name in only or self.names}

    def times(self, users: np.ndarray, rounds: int, only: Sequence[str] = ()) -> PairedTimings:
        """The times of all, or of those named, for one batch."""
        import tensorflow as tf

        given = tf.constant(users)
        return time_paired(
            {
                name: lambda call=self.calls[name]: call(given)[0].numpy()
                for name in only or self.names
            },
            rounds,
        )


def measure_scann(options: Options) -> Section:
    """A curve over settings; then the chosen one and the default again, on other users."""
    from tfrz.operations import load_scann

    load_scann()
    mixture, k, batch, count, rounds, leaves, reorders = (
        (Mixture(2000, 8, 20), 10, 4, 16, 2, (2, 22), (4,))
        if options.quick
        else (Mixture(), 100, 64, 1024, 21, (4, 8, 16, 32, 64, 128), (1, 2, 4, 8))
    )
    settings = [Setting(n, r) for n in leaves for r in reorders]
    searches = Searches(mixture, options.seed, [Setting(), *settings], k)
    users = mixture.users(count, options.seed)
    recalls = searches.recalls(users, batch)
    # What is asked at a time: its users and its rounds.
    asked = {f"batches of {batch}": (batch, rounds), "single queries": (1, 3 * rounds)}
    curves = {}
    for what, (rows, turns) in asked.items():
        times = searches.times(users[:rows], turns)
        curves[what] = [
            Trade(s, recalls[str(s)], times.ratio(str(s), BRUTE_FORCE).of_medians) for s in settings
        ]
    chosen = {what: choose(curve).setting for what, curve in curves.items()}
    # Chosen for recall and time, which are then better than they will be: measured again.
    other = mixture.users(count, options.seed, draw=1)
    again = list(dict.fromkeys(map(str, [BRUTE_FORCE, *chosen.values(), Setting()])))
    recalls = searches.recalls(other, batch, again)
    seen = {
        what: searches.times(other[:rows], 2 * turns, again)
        for what, (rows, turns) in asked.items()
    }
    anywhere = dataclasses.replace(mixture, clusters=None)
    first = next(iter(chosen.values()))
    hard = Searches(anywhere, options.seed, [first], k)
    hard_recall = hard.recalls(anywhere.users(count, options.seed), batch)[str(first)]

    def ratio(what: str, setting: Setting) -> float:
        return seen[what].ratio(str(setting), BRUTE_FORCE).of_medians

    judged = not options.quick
    figures = []
    for what, setting in chosen.items():
        name, recall, taken = f"{what}, {setting}", recalls[str(setting)], ratio(what, setting)
        least, most = Bound(MIN_RECALL, "at least"), Bound(MAX_TIME, "at most")
        figures += [
            Figure(f"{name}: recall", recall, "", least, judged),
            Figure(f"{name}: time / {BRUTE_FORCE}", taken, "x", most, judged),
        ]
    figures.append(Figure(f"{Setting()}: recall", recalls[str(Setting())], ""))
    for what in asked:
        figures.append(Figure(f"{what}, {Setting()}: time / {BRUTE_FORCE}", ratio(what, Setting())))
    figures.append(Figure(f"{first}: recall where nothing is in clusters", hard_recall, ""))
    for what, (rows, _) in asked.items():
        per_query = 1e3 * seen[what][BRUTE_FORCE].median / rows
        figures.append(Figure(f"{what}, {BRUTE_FORCE}: time per query", per_query, "ms"))
    idle = searches.times(other[:1], 3 * rounds, [NOTHING])[NOTHING].median
    figures.append(Figure(f"single queries, {NOTHING}: time", 1e3 * idle, "ms"))
    for what, curve in curves.items():
        for trade in frontier(curve):
            name = f"curve, {what}: recall {trade.recall:.3f} by {trade.setting}"
            figures.append(Figure(f"{name}, time / {BRUTE_FORCE}", trade.time))
    return Section(
        title=f"ScaNN against brute force, {mixture.items:,} items of {mixture.dim} dimensions, "
        f"H = {INTERESTS}, K = {k}",
        baseline=BRUTE_FORCE,
        setup={
            **dataclasses.asdict(mixture),
            "k": k,
            "users": count,
            "rounds": rounds,
            "leaves": round(mixture.items**0.5),
            "chosen": {what: str(setting) for what, setting in chosen.items()},
        },
        timings=next(iter(seen.values())).summary(BRUTE_FORCE),
        figures=tuple(figures),
        notes=(
            f"A query is a user of {INTERESTS} vectors. A setting is chosen as the fastest of the "
            f"curve that finds {MIN_RECALL:g}; its recall and time are of users on whom it was not "
            "chosen",
            "Brute force takes all cores and the memory's bandwidth: beside other work its time "
            "grows more than ScaNN's, and the ratios fall. Read them from an idle machine",
            "The table has the times of a batch. The curves list the settings that no other beats; "
            "all are in the stored result",
        ),
        details={
            "curves": {
                what: [
                    {**dataclasses.asdict(t.setting), "recall": t.recall, "time": t.time}
                    for t in curve
                ]
                for what, curve in curves.items()
            },
            "timings": {what: times.summary(BRUTE_FORCE) for what, times in seen.items()},
        },
    )


def child_build(kind: str, mixture: dict[str, Any], k: int, seed: int) -> dict[str, float]:
    """In a separate process: builds an index and saves it as a signature."""
    import tensorflow as tf

    from tfrz.export.index import RecommendationIndex
    from tfrz.export.saved_model import save_options
    from tfrz.zoo.run_config import load_run_config

    config = load_run_config("multi_interest", "default", [f"export.index.kind={kind}"])
    world = Mixture(**mixture)
    vectors, ids = world.item_vectors(seed), world.ids
    forget_peak_resident_bytes()
    start, begin = resident_bytes(), time.perf_counter()
    index = RecommendationIndex(ids, vectors, config.export.index, k)
    built, peak_of_build = time.perf_counter(), peak_resident_bytes()
    module = tf.Module()
    module.index = index
    users = tf.TensorSpec([None, INTERESTS, world.dim], tf.float32, name="users")
    seen = tf.TensorSpec([None, None], tf.string, name="seen")
    module.recommend = tf.function(index.recommend, input_signature=[users, seen])
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        saving = time.perf_counter()
        tf.saved_model.save(
            module,
            folder,
            signatures={"serving_default": module.recommend},
            options=save_options(config),
        )
        saved = time.perf_counter()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "build": built - begin,
        "save": saved - saving,
        "start": float(start),
        "peak_of_build": float(peak_of_build),
        "peak": float(peak_resident_bytes()),
        "disk": float(size),
    }


def measure_build(options: Options) -> Section:
    """An index of a million items, built and saved."""
    mixture = Mixture(2000, 8, 20) if options.quick else Mixture(1_000_000, 64, 10_000)
    kinds = ["brute_force"]
    if importlib.util.find_spec("scann") is not None:
        kinds.append("scann")
    runs = {
        kind: in_fresh_process(
            "benchmarks.retrieval:child_build",
            kind=kind,
            mixture=dataclasses.asdict(mixture),
            k=10 if options.quick else 100,
            seed=options.seed,
        )
        for kind in kinds
    }
    figures = []
    for kind, run in runs.items():
        figures += [
            Figure(f"{kind}, build", run["build"], "s"),
            Figure(f"{kind}, save", run["save"], "s"),
            Figure(f"{kind}, on disk", run["disk"] / MIB, "MiB"),
            Figure(f"{kind}, memory before, vectors included", run["start"] / GIB, "GiB"),
            Figure(f"{kind}, peak memory of the build", run["peak_of_build"] / GIB, "GiB"),
            Figure(
                f"{kind}, peak memory of build and save",
                run["peak"] / GIB,
                "GiB",
                Bound(4, "at most"),
                not options.quick,
            ),
        ]
    return Section(
        title=f"an index of {mixture.items:,} items of {mixture.dim} dimensions, built and saved",
        setup=dataclasses.asdict(mixture),
        figures=tuple(figures),
        notes=(
            "One run each, in a separate process; memory is that of the whole process",
            *(() if "scann" in runs else ("scann is not installed: left out",)),
        ),
    )


# The models.


def make_step(
    interests: int, negatives: int, batch: int, length: int, dim: int, items: int, seed: int
) -> Callable[[], float]:
    """A training step of two towers on random histories."""
    from tfrz.zoo.tasks.history import HistoryInputs

    settings = {
        "model.user_tower": "deep",
        "model.num_interests": interests,
        "model.num_negatives": negatives,
        "model.dim": dim,
        "data.history.length": length,
    }
    rng = np.random.default_rng(seed)
    columns = {
        "history_xf": rng.integers(1, items + 1, (batch, length)),
        "target_xf": rng.integers(1, items + 1, batch),
    }
    return histories.make_step(
        "multi_interest",
        [f"{key}={value}" for key, value in settings.items()],
        HistoryInputs(items, items + 2, length, {}, (), "left"),
        columns,
    )


def measure_step(options: Options) -> Section:
    """Four interests against one, with uniform negatives and without."""
    batch, length, dim, items, negatives, rounds = (
        (8, 5, 8, 50, 8, 3) if options.quick else (512, 50, 32, 4000, 512, 31)
    )
    one, several = "two-tower, 1 interest", f"MUR, {INTERESTS} interests"
    more = f", {negatives} uniform negatives"
    steps = {
        name + word: make_step(interests, n, batch, length, dim, items, options.seed)
        for word, n in (("", 0), (more, negatives))
        for name, interests in ((one, 1), (several, INTERESTS))
    }
    times = time_paired(steps, rounds)
    pairs = ((several, one), (several + more, one + more), (one + more, one))
    pairs += ((several + more, several),)
    return Section(
        title=f"training step, deep tower, batch {batch}, {length} events, dim {dim}, "
        f"{items:,} items",
        baseline=one,
        setup={
            "batch": batch,
            "length": length,
            "dim": dim,
            "items": items,
            "negatives": negatives,
            "rounds": rounds,
        },
        timings=times.summary(one),
        figures=(
            *(Figure(name, 1e3 * times[name].median, "ms") for name in steps),
            *(Figure(f"{a} / {b}", times.ratio(a, b).of_medians) for a, b in pairs),
        ),
        notes=("Without uniform negatives the candidates are the targets of the batch",),
    )


PARTS: Mapping[str, Part] = {
    "density": Part(measure_density, "density of 100,000 items, against scipy", needs=("scipy",)),
    "scann": Part(
        measure_scann,
        "ScaNN against brute force: recall and time",
        needs=("scann", "tensorflow_recommenders"),
    ),
    "build": Part(
        measure_build,
        "an index of 1,000,000 items: time and memory",
        needs=("tensorflow_recommenders",),
    ),
    "step": Part(measure_step, "a training step with 4 interests against 1"),
    "recommend": Part(
        # One target of a user is enough for a model that is hardly trained.
        functools.partial(
            histories.measure_recommendation,
            "multi_interest",
            overrides=("data.history.train_targets=1",),
        ),
        "p50 of one user's recommendations through the server",
        layer=False,
        needs=("grpc", "tensorflow_serving", "tensorflow_recommenders"),
    ),
}

if __name__ == "__main__":
    from benchmarks.runner import main

    raise SystemExit(main("retrieval"))
