"""Retrieval: raw histories in, raw items of a catalogue out; contexts, features, metrics."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrz.cli.main import main
from tfrz.data.records import open_source
from tfrz.errors import ConfigError, InputError
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config

SPEC = """
user: customer
item: sku
time: bought_at
context:
  - {name: page}
candidates:
  item: sku
  file: items.csv
  features:
    - {name: brand}
    - {name: price, kind: numeric, dtype: float32, standardize: true}
"""
SETTINGS = (
    "model={dim: 8, num_interests: 2}",
    "data.history={length: 8, train_targets: 6}",
    "trainer.batch_size=32",
    "trainer.epochs=12",
    "trainer.early_stopping_metric=cross_entropy",
    "trainer.learning_rate=0.02",
    "trainer.tensorboard=false",
    "export.top_k=10",
)
HALF = 12
PAGES = {"home": "a", "detail": "b"}
NEVER_TAKEN = ("a-new", "b-new", "schlicht-ü")
START = 1_600_000_000


def _write(folder, users: int = 80, spare: int = 0) -> tuple[str, str]:
    """On one page customers take items of one brand, on the other of the other.

    "gone" is taken and no longer in the catalogue, "late" only after everything else. Of the
    spare items nothing is known.
    """
    rng = np.random.default_rng(0)
    shares = 1.0 / np.arange(1, HALF + 1)
    lines = ["customer,sku,bought_at,page"]
    for user in range(users):
        steps = int(rng.integers(6, 14))
        for step in range(steps):
            page = ("home", "detail")[int(rng.integers(2))]
            brand = PAGES[page] if rng.random() < 0.95 else "ab"[int(rng.integers(2))]
            item = f"{brand}-{rng.choice(HALF, p=shares / shares.sum())}"
            item = "gone" if rng.random() < 0.05 else item
            item = "late" if user == 0 and step == steps - 1 else item
            lines.append(f"c{user},{item},{START + 60 * step},{page}")
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    rows = [f"{brand}-{i},{brand},{5 + i}" for brand in "ab" for i in range(HALF)]
    rows += ["a-new,a,7", "b-new,b,7", "schlicht-ü,,"]
    rows += [f"spare-{i},," for i in range(spare)]
    (folder / "items.csv").write_text("\n".join(["sku,brand,price", *rows]) + "\n")
    (folder / "spec.yaml").write_text(SPEC)
    return str(folder / "events.csv"), str(folder / "spec.yaml")


def _catalogue() -> list[str]:
    return [f"{brand}-{i}" for brand in "ab" for i in range(HALF)] + list(NEVER_TAKEN)


def _raw(histories: list[list[str]], page: str = "home", width: int | None = None) -> dict:
    """Requests as named tensors; every event was on the page of its brand."""
    width = max(1, *map(len, histories)) if width is None else width

    def padded(rows, empty):
        return [row + [empty] * (width - len(row)) for row in rows]

    pages = [["home" if item.startswith("a") else "detail" for item in h] for h in histories]
    times = [[START + 60 * i for i in range(len(h))] for h in histories]
    shape = (len(histories), width)
    return {
        "history": tf.reshape(tf.constant(padded(histories, ""), tf.string), shape),
        "history_page": tf.reshape(tf.constant(padded(pages, ""), tf.string), shape),
        "history_time": tf.reshape(tf.constant(padded(times, 0), tf.int64), shape),
        "request_time": tf.fill([len(histories)], tf.constant(START + 6000, tf.int64)),
        "page": tf.fill([len(histories)], page),
    }


def _items_of_the_file() -> dict[str, tf.Tensor]:
    names = _catalogue()
    brands = ["" if n == "schlicht-ü" else n[0] for n in names]
    prices = [5.0 + int(n[2:]) if n[2:].isdigit() else 7.0 for n in names]
    prices[-1] = float("nan")
    return {
        "sku": tf.constant(names),
        "brand": tf.constant(brands),
        "price": tf.constant(prices, tf.float32),
    }


def _random_histories(count: int, longest: int = 12) -> list[list[str]]:
    rng = np.random.default_rng(1)
    taken = [*_catalogue()[: 2 * HALF], "gone"]
    return [list(rng.choice(taken, rng.integers(1, longest + 1))) for _ in range(count)]


def _train(folder, data: str, spec: str | None, *settings: str) -> int:
    arguments = ["train", "multi_interest", "--data", data, "--out", str(folder), "--quiet"]
    arguments += [] if spec is None else ["--features", spec]
    for setting in settings:
        arguments += ["--set", setting]
    return main(arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on one's own file, and its signatures."""
    folder = tmp_path_factory.mktemp("retrieval")
    data, spec = _write(folder)
    assert _train(folder / "out", data, spec, *SETTINGS) == 0
    return folder / "out", tf.saved_model.load(str(folder / "out" / "model" / "1")).signatures


def _recommend(run, histories, page="home", **more) -> tuple[list[list[str]], np.ndarray]:
    outputs = run[1]["recommend"](**{**_raw(histories, page), **more})
    lists = [[item.decode() for item in row] for row in outputs["item_ids"].numpy()]
    return lists, outputs["scores"].numpy()


def test_files_of_a_run(run):
    names = {p.name for p in run[0].iterdir()}
    wanted = {"config.yaml", "metrics.json", "card.md", "curves.png", "interests.json", "model"}
    assert wanted <= names
    metrics = json.loads((run[0] / "metrics.json").read_text())["metrics"]
    for part in ("validation", "test"):
        for name in registry.get("multi_interest").metrics:
            assert 0 <= metrics[part][name] <= 1
            if name.startswith("recall"):
                assert {f"{name}_head", f"{name}_tail"} <= set(metrics[part])
    described = json.loads((run[0] / "interests.json").read_text())
    assert len(described["share_of_targets"]) == 2
    assert sum(described["share_of_targets"]) == pytest.approx(1)
    assert min(described["share_of_targets"]) >= 0 and described["targets"] == 80


def test_the_signatures_are_those_of_the_registry(run):
    assert set(run[1]) == set(registry.get("multi_interest").signatures)


def test_the_page_of_the_request_decides_what_is_recommended(run):
    histories = _random_histories(60)
    share = {}
    for page, brand in PAGES.items():
        lists, _ = _recommend(run, histories, page)
        share[page] = np.mean([item.startswith(brand) for row in lists for item in row[:5]])
    assert min(share.values()) > 0.7, share


def test_recommendations_are_the_best_of_the_catalogue_by_the_best_interest(run):
    """By hand from the vectors: empty, unknown, removed and repeated items, and long histories."""
    histories = [[], ["?"], ["gone", "gone"], ["a-0"] * 9, *_random_histories(20, 20)]
    raw = _raw(histories)
    users = run[1]["encode"](**raw)["embedding"].numpy()
    vectors = run[1]["encode_items"](**_items_of_the_file())["embedding"].numpy()
    assert users.shape == (24, 2, 8) and vectors.shape == (2 * HALF + 3, 8)
    scores = np.einsum("bhd,id->bhi", users.astype("f8"), vectors.astype("f8")).max(axis=1)
    lists, found = _recommend(run, histories)
    names = _catalogue()
    for row, history in enumerate(histories):
        left = [i for i, name in enumerate(names) if name not in history]
        left.sort(key=lambda i: -scores[row, i])
        assert len(left) >= 10
        np.testing.assert_allclose(found[row], scores[row, left[:10]], atol=1e-4)
        own = {name: scores[row, i] for i, name in enumerate(names)}
        np.testing.assert_allclose(found[row], [own[item] for item in lists[row]], atol=1e-4)
        assert len(set(lists[row])) == 10 and not set(lists[row]) & set(history)


def test_an_item_that_nobody_took_is_recommended_for_its_features(run):
    rows = dict(zip(_catalogue(), range(99), strict=False))
    for page, brand in PAGES.items():
        lists, _ = _recommend(run, _random_histories(40), page)
        assert any(f"{brand}-new" in row for row in lists)
    items = run[1]["encode_items"](**_items_of_the_file())
    ranks = items["rank"].numpy()
    unknown = ranks.max()
    assert [name for name, i in rows.items() if ranks[i] == unknown] == list(NEVER_TAKEN)
    assert sorted(set(ranks))[:-1] != [] and len(set(ranks)) == 2 * HALF + 1
    other = {"sku": ["x", "y", "z"], "brand": ["a", "a", "b"]}
    given = {name: tf.constant(values) for name, values in other.items()}
    vectors = run[1]["encode_items"](**given, price=tf.constant([7.0, 7.0, 7.0]))["embedding"]
    np.testing.assert_allclose(vectors[0], items["embedding"][rows["a-new"]], rtol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 0.1


def test_an_item_that_is_not_in_the_catalogue_is_never_recommended(run):
    everything = [[], ["gone"], ["late"], *_random_histories(100)]
    for page in PAGES:
        lists, _ = _recommend(run, everything, page)
        assert {item for row in lists for item in row} <= set(_catalogue())
    # What is no longer sold still says what someone likes.
    one, other = (run[1]["encode"](**_raw([h]))["embedding"] for h in (["gone"], ["?"]))
    assert np.abs(one - other).max() > 1e-3


def test_what_was_seen_long_ago_is_left_out_too(run):
    """The model sees eight events, the request may hold more."""
    history = [f"a-{i}" for i in range(HALF)]
    lists, scores = _recommend(run, [history])
    assert not set(lists[0]) & set(history)
    assert np.isfinite(scores).all() and (scores > -1e9).all()
    every = [item for item in _catalogue() if item != "b-7"]
    lists, scores = _recommend(run, [every])
    assert lists[0] == ["b-7"] + [""] * 9
    assert scores[0, 1:].tolist() == [-1e9] * 9 and scores[0, 0] > -1e9


def test_only_the_newest_events_decide(run):
    recent = [f"a-{i}" for i in range(8)]
    # Times count from the first event of each: what is newest has the same ones.
    one, other = _raw([recent]), _raw([["b-1", "b-2", "b-3", *recent]])
    other["history_time"] -= 180
    for name in ("request_time", "page"):
        np.testing.assert_array_equal(one[name], other[name])
    users = [run[1]["encode"](**raw)["embedding"].numpy() for raw in (one, other)]
    np.testing.assert_allclose(users[0], users[1], rtol=1e-5, atol=1e-6)


def test_an_empty_history_is_answered_in_every_form(run):
    wide, scores = _recommend(run, [[], ["a-1"], []])
    assert wide[0] == wide[2] and np.isfinite(scores).all()
    assert len(set(wide[0])) == 10
    for width in (0, 1, 7):
        outputs = run[1]["recommend"](**_raw([[]], width=width))
        found = [item.decode() for item in outputs["item_ids"].numpy()[0]]
        assert found == wide[0]
        np.testing.assert_allclose(outputs["scores"][0], scores[0], rtol=1e-5)


def test_padding_changes_nothing(run):
    histories = _random_histories(6, 7)
    lists, scores = _recommend(run, histories)
    outputs = run[1]["recommend"](**_raw(histories, width=30))
    assert [[i.decode() for i in row] for row in outputs["item_ids"].numpy()] == lists
    np.testing.assert_allclose(outputs["scores"], scores, rtol=1e-5)
    for row, history in enumerate(histories):
        alone, value = _recommend(run, [history])
        assert alone[0] == lists[row]
        np.testing.assert_allclose(value[0], scores[row], rtol=1e-4, atol=1e-5)


def test_unknown_items_and_pages_are_answered(run):
    lists, scores = _recommend(run, [["?", "???"], ["?"], ["gone", "?"]], "a page of its own")
    assert all(len(set(row)) == 10 and "" not in row for row in lists)
    assert np.isfinite(scores).all()
    outputs = run[1]["recommend"](**{**_raw([["a-1"]]), "page": tf.constant([""])})
    assert np.isfinite(outputs["scores"]).all()


def _examples(raw: dict[str, tf.Tensor]) -> tf.Tensor:
    serialized = []
    for row in range(len(raw["page"])):
        example = tf.train.Example()
        events = int((raw["history"][row].numpy() != b"").sum())
        for name, values in raw.items():
            chosen = values[row].numpy()
            chosen = chosen[:events].tolist() if name.startswith("history") else [chosen]
            stored = example.features.feature[name]
            kind = stored.int64_list if values.dtype == tf.int64 else stored.bytes_list
            kind.value.extend(chosen)
        serialized.append(example.SerializeToString())
    return tf.constant(serialized)


def test_examples_and_named_tensors_are_answered_alike(run):
    raw = _raw([[], ["?", "a-3"], *_random_histories(10, 20)], "detail")
    examples = _examples(raw)
    for by_name, by_example in (
        ("recommend", "serving_default"),
        ("serving_raw", "serving_default"),
        ("encode", "encode_examples"),
    ):
        one, other = run[1][by_name](**raw), run[1][by_example](examples=examples)
        assert set(one) == set(other)
        for name, value in one.items():
            if value.dtype == tf.string:
                np.testing.assert_array_equal(value, other[name])
            else:
                np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-6)
    seen = run[1]["encode"](**raw)["seen"].numpy()
    np.testing.assert_array_equal(seen, raw["history"])
    nothing = run[1]["serving_default"](examples=tf.constant([b"", b""]))
    assert np.isfinite(nothing["scores"]).all() and (nothing["item_ids"].numpy() != b"").all()


# A world of its own.


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A small run on the simulated world as it is configured."""
    out = tmp_path_factory.mktemp("simulated") / "out"
    world = "data.options={world: interests, users: 200, item_power: 1.0}"
    more = ("trainer.batch_size=64", "trainer.epochs=4", "trainer.tensorboard=false")
    assert _train(out, "simulated", None, world, *more) == 0
    return out


@pytest.mark.slow
def test_on_the_simulated_world_what_was_seen_may_come_back(simulated):
    signatures = tf.saved_model.load(str(simulated / "model" / "1")).signatures
    history = [["item_0", "item_1", "item_10", ""], ["", "", "", ""]]
    outputs = signatures["recommend"](history=tf.constant(history))
    ids = outputs["item_ids"].numpy()
    assert ids.shape == (2, 20) and all(len(set(row)) == 20 for row in ids)
    assert {b"item_0", b"item_1", b"item_10"} & set(ids[0])
    names = tf.constant([f"item_{i}" for i in range(50)])
    clusters = tf.constant([f"cluster_{i // 10}" for i in range(50)])
    items = signatures["encode_items"](item=names, cluster=clusters)["embedding"].numpy()
    users = signatures["encode"](history=tf.constant(history))["embedding"].numpy()
    scores = np.einsum("bhd,id->bhi", users, items).max(axis=1)
    np.testing.assert_allclose(outputs["scores"][0], np.sort(scores[0])[::-1][:20], atol=1e-4)


@pytest.mark.slow
def test_the_weights_that_are_kept_are_better_than_those_of_the_first_epoch(simulated):
    """A metric in which all epochs tie must not choose: fifty items are all among fifty."""
    history = json.loads((simulated / "history.json").read_text())
    kept = json.loads((simulated / "metrics.json").read_text())["metrics"]["validation"]
    assert history[-1]["cross_entropy"] < history[0]["cross_entropy"] - 0.05
    assert kept["cross_entropy"] < history[0]["cross_entropy"] - 0.05
    assert kept["ndcg_at_20"] > history[0]["ndcg_at_20"]


# Metrics.


def _prepared(folder, *more: str, data: str | None = None):
    """Task, prepared sets and an untrained model that knows its counts."""
    if data is None:
        data, spec = _write(folder)
        options: dict = {}
    else:
        spec, options = None, {"world": "interests", "users": 60}
    kind = "simulated" if data == "simulated" else "csv"
    entry = registry.get("multi_interest")
    settings = SETTINGS if kind == "csv" else ("trainer.batch_size=32",)
    config = load_run_config("multi_interest", kind, [*settings, *more])
    task = entry.new_task(config)
    prepared = task.prepare(open_source(data, spec, "history", **options))
    keras.utils.set_random_seed(3)
    model = task.build(prepared.inputs)
    task.start(model, prepared.train)
    return task, prepared, model


def _gini(counts) -> float:
    """By the mean difference of all pairs."""
    counts = np.asarray(counts, "f8")
    return np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())


@pytest.mark.parametrize("drop_seen", [True, False])
def test_the_metrics_are_those_of_a_full_ranking(tmp_path, drop_seen):
    task, prepared, model = _prepared(tmp_path, f"export.drop_seen={str(drop_seen).lower()}")
    names = prepared.vocabularies["item_xf"]
    count = len(names)
    targets = np.concatenate([b["target_xf"].numpy() for b in prepared.train.once()])
    trained = np.bincount(targets, minlength=count + 2)[1 : count + 1]
    head = sorted(range(count), key=lambda i: (-trained[i], i))[: round(0.2 * count)]
    np.testing.assert_array_equal(model.target_counts.numpy()[1 : count + 1], trained)
    (batch,) = list(prepared.test.once())
    predicted = {name: value.numpy() for name, value in task.predict(model, batch).items()}
    found = task.metrics(predicted)
    scores = model(batch).numpy().astype("f8")
    ranks, lists, groups, losses = [], [], [], []
    for row, target in enumerate(batch["target_xf"].numpy() - 1):
        seen = set(batch["seen_xf"].numpy()[row] - 1) if drop_seen else set()
        left = [i for i in range(count) if i not in seen]
        left.sort(key=lambda i: (-scores[row, i], i))
        ranks.append(left.index(target) + 1 if target in left else 0)
        lists.append(left)
        known = target < count and trained[target] > 0
        groups.append(("head" if target in head else "tail") if known else "unknown")
        if known:
            losses.append(np.log(np.exp(scores[row]).sum()) - scores[row, target])
    ranks, groups = np.array(ranks), np.array(groups)
    assert (groups == "unknown").sum() == 1  # The item that came late.
    np.testing.assert_array_equal(predicted["rank"], ranks)
    for n in (10, 20, 50):
        hits = (ranks >= 1) & (ranks <= n)
        assert found[f"recall_at_{n}"] == pytest.approx(hits.mean())
        for part in ("head", "tail"):
            assert found[f"recall_at_{n}_{part}"] == pytest.approx(hits[groups == part].mean())
    gains = [1 / np.log2(r + 1) if 1 <= r <= 20 else 0.0 for r in ranks]
    assert found["ndcg_at_20"] == pytest.approx(np.mean(gains))
    shown = np.bincount([i for row in lists for i in row[:20]], minlength=count)
    assert found["coverage_at_20"] == pytest.approx((shown > 0).mean())
    assert found["gini_at_20"] == pytest.approx(_gini(shown))
    assert found["cross_entropy"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_targets_of_a_part_that_is_not_there_have_no_metric(tmp_path):
    task, _, _ = _prepared(tmp_path)
    outputs = {
        "rank": np.array([1, 30]),
        "group": np.array([2, 2]),
        "loss": np.array([0.5, 1.5]),
        "listed": np.array([[1, 2], [3, 0]]),
        "num_items": np.array([4, 4]),
    }
    found = task.metrics(outputs)
    assert found["recall_at_10_head"] == 0.5 and np.isnan(found["recall_at_10_tail"])
    assert found["coverage_at_20"] == 0.75


# Baselines.


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """Makes the task, its sets and an untrained model of a few settings."""

    def make(*settings: str):
        return _prepared(tmp_path_factory.mktemp("baseline"), *settings, data="simulated")

    return make


def _losses(task, model, batch) -> np.ndarray:
    losses, _ = task.dense_loss(model, task.lookup(model, batch))
    return losses.numpy()


def _expected_losses(task, model, batch) -> np.ndarray:
    """Softmax over the batch's targets and the drawn negatives, by hand in float64."""
    looked_up = task.lookup(model, batch)
    targets = batch["target_xf"].numpy()
    candidates = looked_up["candidates"].numpy()
    uniform = len(candidates) - len(targets)
    users = model.encode(model.embed(batch)).numpy().astype("f8")
    items = model.item_vectors().numpy().astype("f8")[candidates - 1]
    scores = np.einsum("bhd,id->bhi", users, items).max(axis=1) / model.config.temperature
    counts = model.target_counts.numpy()[1 : model.num_items + 1].astype("f8")
    expected = len(targets) * np.clip(counts / counts.sum(), 1e-6, 1) + uniform / model.num_items
    scores -= np.log(expected)[candidates - 1]
    losses = []
    for row, target in enumerate(targets):
        others = (candidates != target) | (np.arange(len(candidates)) == row)
        losses.append(np.log(np.exp(scores[row][others]).sum()) - scores[row, row])
    return np.array(losses)


@pytest.mark.parametrize("negatives", [0, 40])
def test_the_loss_is_the_corrected_softmax_over_the_candidates(baseline, negatives):
    task, prepared, model = baseline(f"model.num_negatives={negatives}", "model.item_layers=1")
    batch = next(iter(prepared.train.epoch(0)))
    looked_up = task.lookup(model, batch)
    candidates = looked_up["candidates"].numpy()
    np.testing.assert_array_equal(candidates[:32], batch["target_xf"])
    assert len(candidates) == 32 + negatives and candidates.min() >= 1
    assert candidates.max() <= model.num_items
    if negatives:
        again = task.lookup(model, batch)["candidates"].numpy()
        assert not np.array_equal(again[32:], candidates[32:])
        model.sampler.draws.assign(0)
    expected = _expected_losses(task, model, batch)
    if negatives:
        model.sampler.draws.assign(0)
    np.testing.assert_allclose(_losses(task, model, batch), expected, rtol=1e-4, atol=1e-5)


def test_focal_losses_weigh_what_is_hard(baseline):
    task, prepared, plain = baseline()
    focal_task, _, focal = baseline("model.focal_gamma=2")
    focal.set_weights(plain.get_weights())
    batch = next(iter(prepared.train.epoch(0)))
    losses = _losses(task, plain, batch)
    expected = (1 - np.exp(-losses)) ** 2 * losses
    np.testing.assert_allclose(_losses(focal_task, focal, batch), expected, rtol=1e-4)
    assert (expected < losses).all()


def test_by_popularity_everyone_is_shown_the_same(baseline):
    task, prepared, model = baseline("model.user_tower=popularity", "model.num_interests=1")
    (batch,) = list(prepared.validation.once())
    ids = task.outputs(model, batch)["ids"].numpy()
    assert (ids == ids[0]).all() and len(set(ids[0])) == 20
    with tf.GradientTape() as tape:
        rows = next(iter(prepared.train.epoch(0)))
        losses, _ = task.dense_loss(model, task.lookup(model, rows))
        loss = tf.reduce_sum(losses)
    items, *users = tape.gradient(
        loss, [model.items.embeddings, *model.user_tower.trainable_weights]
    )
    for gradient in (items, next(g for g in users if g is not None)):
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0
    assert model.events is None


def test_one_interest_is_the_ordinary_two_tower_model(baseline):
    task, prepared, model = baseline("model.num_interests=1")
    (batch,) = list(prepared.validation.once())
    users = model.encode(model.embed(batch))
    assert users.shape[1] == 1
    dots = tf.matmul(users[:, 0], model.item_vectors(), transpose_b=True) / 0.1
    np.testing.assert_allclose(model(batch), dots, rtol=1e-5, atol=1e-5)
    loss = task.dense_loss(model, task.lookup(model, next(iter(prepared.train.epoch(0)))))[0]
    assert np.isfinite(loss).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_both_towers_are_normalised_or_neither(baseline, normalize):
    settings = f"model={{normalize: {str(normalize).lower()}, temperature: 0.2}}"
    task, prepared, model = baseline(settings)
    (batch,) = list(prepared.validation.once())
    norms = [
        np.linalg.norm(vectors, axis=-1).ravel()
        for vectors in (model.encode(model.embed(batch)), model.item_vectors())
    ]
    for found in norms:
        assert np.allclose(found, 1, atol=1e-5) is normalize
    # What is served has the temperature in the users' vectors.
    outputs, scores = task.outputs(model, batch), model(batch).numpy()
    np.testing.assert_allclose(outputs["scores"][:, 0], scores.max(axis=1), rtol=1e-4, atol=1e-5)


def test_positions_with_padding_on_the_right_are_refused_and_without_them_the_side_is_nothing(
    baseline,
):
    with pytest.raises(ConfigError, match=r"model\.positions.*data\.history\.padding"):
        baseline("data.history.padding=right")
    users = []
    for side in ("left", "right"):
        more = (f"data.history.padding={side}", "model.positions=false")
        _, prepared, model = baseline(*more)
        (batch,) = list(prepared.test.once())
        padded = batch["history_xf"].numpy() == 0
        assert padded[:, 0 if side == "left" else -1].all()
        users.append(model.encode(model.embed(batch)).numpy())
    np.testing.assert_allclose(users[0], users[1], rtol=1e-5, atol=1e-6)


# What is refused.


def test_more_items_than_the_catalogue_has_are_refused_in_one_line(tmp_path, capsys):
    data, spec = _write(tmp_path, users=20)
    more = ("export.top_k=28", "trainer.max_steps=1", "model.user_tower=popularity")
    assert _train(tmp_path / "out", data, spec, *SETTINGS, *more) == 2
    error = capsys.readouterr().err
    assert "export.top_k is 28, the catalogue has 27 items" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("model/*"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a-3,b,1", "item 'a-3' is in the catalogue twice"),
        (",b,1", "items.csv:29: sku is missing"),
        ("x,b,dear", "items.csv:29: price"),
    ],
)
def test_a_wrong_catalogue_is_told_in_one_line_before_the_training(tmp_path, capsys, row, message):
    data, spec = _write(tmp_path, users=20)
    with open(tmp_path / "items.csv", "a") as file:
        file.write(row + "\n")
    assert _train(tmp_path / "out", data, spec, *SETTINGS) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_vector_that_is_no_number_is_refused_with_its_item(tmp_path):
    task, prepared, model = _prepared(tmp_path)
    name = prepared.vocabularies["item_xf"].index("b-4") + 1
    rows = model.items.embeddings.numpy()
    rows[name] = np.nan
    model.items.embeddings.assign(rows)
    with pytest.raises(InputError, match=r"'b-4' is not finite"):
        task.signatures(model, prepared.transform, prepared.spec, prepared.vocabularies)


@pytest.mark.slow
def test_a_catalogue_that_shares_no_item_with_the_events_is_answered_by_features(tmp_path):
    """Nothing that can be recommended was ever taken: the features are all there is."""
    data, spec = _write(tmp_path, users=20)
    (tmp_path / "items.csv").write_text(
        "sku,brand,price\n" + "".join(f"n{i},a,7\n" for i in range(12))
    )
    entry = registry.get("multi_interest")
    task = entry.new_task(load_run_config("multi_interest", "csv", SETTINGS))
    # Unless it is meant, the ids are taken to be written differently.
    with pytest.raises(InputError, match=r"lists 0\.0% of the 25 items .* 'n0', 'n1', 'n2'"):
        task.prepare(open_source(data, spec, "history"))
    Path(spec).write_text(
        SPEC.replace("  item: sku\n  file", "  item: sku\n  min_match: 0\n  file")
    )
    prepared = task.prepare(open_source(data, spec, "history"))
    model = task.build(prepared.inputs)
    functions = task.signatures(model, prepared.transform, prepared.spec, prepared.vocabularies)
    ids = functions["recommend"](_raw([["a-1"]]))["item_ids"].numpy()[0]
    assert ids.tolist() == [b"n%d" % i for i in range(10)]


@pytest.mark.slow
def test_a_source_without_a_catalogue_recommends_what_was_taken(tmp_path):
    (tmp_path / "s.txt").write_text("1 2 3 4 5\n2 3 4 6\n7 8 1 2\n" * 20)
    entry = registry.get("multi_interest")
    settings = ["export.top_k=4", "trainer.batch_size=16", "model.dim=4"]
    task = entry.new_task(load_run_config("multi_interest", "sessions", settings))
    prepared = task.prepare(open_source(f"sessions:{tmp_path}/s.txt", None, "history"))
    model = task.build(prepared.inputs)
    functions = task.signatures(model, prepared.transform, prepared.spec, prepared.vocabularies)
    vocabulary = prepared.vocabularies["item_xf"]
    ids = functions["recommend"]({"history": tf.constant([["2", "?"]])})["item_ids"].numpy()[0]
    assert sorted(item.decode() for item in ids) == sorted(set(vocabulary) - {"2"})
    known = functions["encode_items"]({"item": tf.constant([*vocabulary, "?"])})
    np.testing.assert_array_equal(known["rank"], np.arange(1, len(vocabulary) + 2))
