"""The health report of a generation of embeddings, and the checks before it is published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tfrz.data.columns import whole
from tfrz.data.timelines.slicing import SliceSpecification
from tfrz.embeddings.store import Manifest, bucket_file, read_manifest
from tfrz.errors import InputError
from tfrz.layers.quantize import unpack4

_DAYS = (1, 3, 7, 30, 90, 365)
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    if not values.size:
        return {}
    return {f"p{round(100 * q)}": float(np.quantile(values, q)) for q in _QUANTILES}


def _rows(folder: Path, buckets: int, columns: list[str]) -> Iterator[Any]:
    for bucket in range(buckets):
        path = bucket_file(folder, "embeddings", bucket)
        if path.exists():
            yield pq.read_table(path, columns=columns)


def vectors_of(table: Any, num_vectors: int, dim: int) -> NDArray[Any]:
    """Unpacks the vectors of a table's rows, float32 `[rows, vectors, dim]`."""
    if not table.num_rows:
        return np.zeros((0, num_vectors, dim), np.float32)
    data = b"".join(table["packed"].to_pylist())
    words = np.frombuffer(data, "<u8").reshape(table.num_rows, num_vectors, -1)
    return unpack4(words, dim)


def health_report(
    folder: Path, manifest: Manifest, slices: SliceSpecification, before: Path | None
) -> dict[str, Any]:
    """Reports coverage, norms, ages, slices, and drift against another generation.

    Args:
      folder: Folder of the generation.
      manifest: Manifest of the generation.
      slices: Slices of the model.
      before: Folder of the generation to compare with; None for no comparison.

    Returns:
      `users`, `present`, `coverage`; `not_finite` (number of users whose vectors are not finite);
      `norm` (quantiles of the norms, after quantisation, of users with vectors);
      `days_since_newest_event` (users by the age of their newest event that counts); `slices`
      (users and sum of weights of each slice); and `drift`: `version` of the other generation,
      users in both, quantiles of the cosine between a user's embeddings then and now, and the
      median norm then.
    """
    shape = (manifest.num_vectors, manifest.dim)
    present, not_finite, ages, norms = 0, 0, [], []
    having = np.zeros(len(slices.slices), np.int64)
    weights = np.zeros(len(slices.slices))
    for table in _rows(folder, manifest.buckets, ["present", "packed", "newest_event", "totals"]):
        here = table.filter(table["present"])
        present += here.num_rows
        norms.append(np.linalg.norm(vectors_of(here, *shape), axis=-1).ravel())
        newest = whole(here["newest_event"]).to_numpy(zero_copy_only=False).astype(float)
        ages.append((manifest.as_of - newest) / 86_400)
        totals = whole(table["totals"]).flatten().to_numpy().reshape(-1, len(slices.slices))
        having += (totals > 0).sum(axis=0)
        absent = ~whole(table["present"]).to_numpy(zero_copy_only=False)
        # A user with events has vectors, unless they are not finite.
        not_finite += int((absent & (totals > 0).any(axis=1)).sum())
        weights += totals.sum(axis=0, dtype=np.float64)
    age = np.concatenate(ages) if ages else np.zeros(0)
    places = np.searchsorted(_DAYS, age, side="left")
    counts = np.bincount(places, minlength=len(_DAYS) + 1).tolist()
    words = [f"up to {d}" for d in _DAYS] + [f"over {_DAYS[-1]}"]
    report: dict[str, Any] = {
        "version": manifest.version,
        "as_of": manifest.as_of,
        "users": manifest.users,
        "present": present,
        "coverage": present / manifest.users if manifest.users else 0.0,
        "not_finite": not_finite,
        "norm": _quantiles(np.concatenate(norms) if norms else np.zeros(0)),
        "days_since_newest_event": dict(zip(words, counts, strict=True)),
        "slices": {
            one.name: {"users": int(having[i]), "weight": float(weights[i])}
            for i, one in enumerate(slices.slices)
        },
    }
    if before is not None:
        report["drift"] = _drift(folder, manifest, before)
    return report


def _drift(folder: Path, manifest: Manifest, before: Path) -> dict[str, Any]:
    other = read_manifest(before)
    drift: dict[str, Any] = {"version": other.version, "as_of": other.as_of, "users": 0}
    if (other.num_vectors, other.dim, other.buckets) != (
        manifest.num_vectors,
        manifest.dim,
        manifest.buckets,
    ):
        return drift | {"comparable": False}
    cosines, norms = [], []
    columns = ["user", "present", "packed"]
    for bucket in range(manifest.buckets):
        tables = [
            pq.read_table(bucket_file(place, "embeddings", bucket), columns=columns)
            for place in (before, folder)
        ]
        old, new = (table.filter(table["present"]) for table in tables)
        places = {user: i for i, user in enumerate(old["user"].to_pylist())}
        pairs = [
            (places[user], i) for i, user in enumerate(new["user"].to_pylist()) if user in places
        ]
        if not pairs:
            continue
        shape = (manifest.num_vectors, manifest.dim)
        first, second = (np.array(rows) for rows in zip(*pairs, strict=True))
        a = vectors_of(old, *shape)[first].reshape(len(pairs), -1)
        b = vectors_of(new, *shape)[second].reshape(len(pairs), -1)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines.append(np.sum(a * b, axis=1) / np.maximum(lengths, 1e-12))
        norms.append(np.linalg.norm(vectors_of(old, *shape)[first], axis=-1).ravel())
    found = np.concatenate(cosines) if cosines else np.zeros(0)
    drift |= {
        "comparable": True,
        "users": len(found),
        "cosine": _quantiles(found),
        "norm": _quantiles(np.concatenate(norms) if norms else np.zeros(0)),
    }
    return drift


class Bounds(Protocol):
    """Bounds for embeddings; the evaluator's configuration has these fields."""

    @property
    def min_coverage(self) -> float:
        """Minimum share of users with a vector."""

    @property
    def min_cosine(self) -> float | None:
        """Minimum median cosine to the vectors of the previous version."""

    @property
    def max_norm_change(self) -> float | None:
        """Maximum change of the logarithm of the median norm."""


def refusal(report: dict[str, Any], wanted: Bounds) -> str | None:
    """Returns why embeddings must not be published; None if they may be.

    Args:
      report: Result of `health_report`.
      wanted: The bounds.
    """
    if report["not_finite"]:
        return f"{report['not_finite']} users' vectors are not finite"
    if report["coverage"] < wanted.min_coverage:
        return (
            f"{report['coverage']:.4f} of the users have vectors, evaluator.min_coverage is "
            f"{wanted.min_coverage:g}"
        )
    drift = report.get("drift")
    if drift is not None and wanted.min_cosine is not None and not drift.get("comparable", True):
        return f"the vectors have another shape than those of version {drift['version']}"
    if drift is None or not drift["users"]:
        return None
    cosine = drift["cosine"]["p50"]
    if wanted.min_cosine is not None and cosine < wanted.min_cosine:
        return (
            f"the median cosine to version {drift['version']} is {cosine:.4f}, "
            f"evaluator.min_cosine is {wanted.min_cosine:g}: a new system of coordinates"
        )
    if wanted.max_norm_change is not None:
        change = abs(float(np.log(report["norm"]["p50"] / max(drift["norm"]["p50"], 1e-12))))
        if change > wanted.max_norm_change:
            return (
                f"the median norm changed from {drift['norm']['p50']:.4f} to "
                f"{report['norm']['p50']:.4f}, evaluator.max_norm_change is "
                f"{wanted.max_norm_change:g} in the logarithm"
            )
    return None


def refuse_empty_slices(report: dict[str, Any]) -> None:
    """Checks that every slice of a generation has events.

    Raises:
      InputError: A slice has none.
    """
    empty = [name for name, one in report["slices"].items() if not one["users"]]
    if empty:
        raise InputError(
            f"no user has an event in slice {', '.join(empty)} as of {report['as_of']}: check "
            "--as-of and the source, or pass --allow-empty"
        )
