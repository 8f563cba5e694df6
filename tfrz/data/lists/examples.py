"""From documents to lists: the base ranker's order, splits by query, simulated clicks.

Documents are an Arrow table with a row per candidate: `query` and `item` (binary), `split` (binary,
the source's own or empty), `position` (int64, the place of the row in the source), `score`
(float32, the base ranker's; equal if the source is in its order), `relevance` (float32) and a
column per feature. The candidates of a query are ordered by (falling score, position).

The functions work on a table in memory; `tfrz.data.lists.beam` calls them under Beam for a few
queries at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tfrz.data.columns import codes_of, filled, runs, whole
from tfrz.data.lists.spec import ListConfig, ListSpec
from tfrz.data.splits import SPLITS, share_of


def split_of(query: bytes, held_out: tuple[float, float], seed: int) -> str:
    """Returns the split of a query by a hash of its id, for sources without splits."""
    share, (validation, test) = share_of(query, seed), held_out
    if share < test:
        return "test"
    return "validation" if share < test + validation else "train"


def splits_of(
    documents: pa.Table, held_out: tuple[float, float], seed: int, with_test: bool = True
) -> NDArray[Any]:
    """Returns the name of the split of each row; for the arguments see `build_lists`."""
    if not with_test:
        held_out = (sum(held_out), 0.0)
    given = documents["split"].to_numpy().astype("S").astype(str).astype(object)
    unknown = given == ""
    if unknown.any():
        codes = codes_of(documents["query"])
        _, first = np.unique(codes, return_index=True)
        queries = documents["query"].take(pa.array(first)).to_pylist()
        chosen = np.array([split_of(query, held_out, seed) for query in queries], object)
        given[unknown] = chosen[codes[unknown]]
    if not with_test:
        given[given == "test"] = "validation"
    return given


def _chances(query: bytes, seed: int, length: int) -> NDArray[Any]:
    """Returns uniform draws that depend on the query and the seed only."""
    state = int(share_of(query, seed) * 2.0**53)
    return np.random.default_rng([state, seed]).random(length)


def _clicked(
    table: pa.Table, spec: ListSpec, config: ListConfig, starts: NDArray[Any], ends: NDArray[Any]
) -> NDArray[Any]:
    """Simulates clicks on the first `length` rows of each list; returns one value per row."""
    import tensorflow as tf

    from tfrz.data.lists.transform import normalized

    assert config.clicks is not None
    lengths = np.minimum(ends - starts, config.length)
    width = int(lengths.max(initial=1))
    valid = np.arange(width)[None, :] < lengths[:, None]
    rows = np.minimum(starts[:, None] + np.arange(width)[None, :], len(table) - 1)
    columns = [table[f.name].to_numpy()[rows] for f in spec.numeric]
    values = np.stack(columns, axis=-1).astype(np.float32)
    features = normalized(tf.constant(values), tf.constant(valid), config).numpy()
    grades = table["relevance"].to_numpy()[rows]
    queries = table["query"].take(pa.array(starts)).to_pylist()
    chances = np.stack([_chances(query, config.click_seed, width) for query in queries])
    clicks = config.clicks.click(features, grades, valid=valid, chances=chances)
    found = np.zeros(len(table), np.float32)
    found[rows[valid]] = clicks[valid]
    return found


def build_lists(
    documents: pa.Table,
    spec: ListSpec,
    config: ListConfig,
    held_out: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
    with_test: bool = True,
) -> dict[str, pa.Table]:
    """Builds examples of each split, one per query.

    Args:
      documents: Candidates in any order.
      spec: Spec of the documents.
      config: Configuration of the examples.
      held_out: Shares of the queries in validation and test, if the source has no splits.
      seed: Seed of these splits.
      with_test: If False, test examples go to validation, and test is empty.

    Returns:
      A dict from split to a table with the raw features and relevance of `spec`, as lists. A
      missing value of a candidate is "" or NaN, so that the lists stay aligned.
    """
    every = splits_of(documents, held_out, seed, with_test)
    query, split = codes_of(documents["query"]), codes_of(documents["split"])
    score = documents["score"].to_numpy()
    order = np.lexsort((documents["position"].to_numpy(), -score, query, split))
    table = documents.take(pa.array(order))
    group = np.stack([split[order], query[order]])
    changed = (group[:, 1:] != group[:, :-1]).any(0)
    starts = np.flatnonzero(np.concatenate([[True], changed])[: len(order)])
    ends = np.append(starts[1:], len(order)).astype(np.int64)
    relevance = table["relevance"].to_numpy().copy()
    if config.clicks is not None and len(table):
        relevance = _clicked(table, spec, config, starts, ends)
    names = every[order][starts]
    relevant = np.add.reduceat(relevance, starts) > 0 if len(starts) else np.zeros(0, bool)
    described = {f.name: filled(table[f.name], f.dtype) for f in spec.candidate}
    examples = {}
    for name in SPLITS:
        some = names == name
        if name == "train" and config.drop_empty:
            some = some & relevant
        at, end = starts[some], ends[some]
        row = {"candidates": runs(whole(table["item"]), at, end)}
        for feature in spec.candidate:
            row[feature.name] = runs(described[feature.name], at, end)
        row["query"] = runs(whole(table["query"]), at, at + 1)
        for feature in spec.context:
            values = whole(table[feature.name]).take(pa.array(at))
            offsets = np.concatenate([[0], np.cumsum(np.asarray(values.is_valid()))])
            row[feature.name] = pa.ListArray.from_arrays(
                pa.array(offsets.astype(np.int32)), values.drop_null()
            )
        row[spec.label] = runs(pa.array(relevance), at, end)
        examples[name] = pa.Table.from_pydict(row)
    return examples
