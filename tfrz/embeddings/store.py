"""Where exported embeddings are: a folder of generations, of which one is current.

    STORE/CURRENT                       the number of the current generation
    STORE/versions.json                 model fingerprint to version
    STORE/forgotten.json                users and events that must never come back
    STORE/generations/<number>/
      manifest.json                     what it was made of, as of when, and counts
      health.json                       coverage, norms, ages, slices, drift
      embeddings/<bucket>.parquet       a row per user
      sketches/<bucket>.arrows          what incremental runs add to
      tail/<bucket>.arrows              events not done with: in the gap or in a time bucket
    STORE/.<number>.partial/            a run that is not finished: resumed, never read

Users are in buckets by a hash. A generation appears by one rename, and becomes current by another.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfrz.config import from_mapping, to_mapping
from tfrz.data.timelines.examples import buckets_of
from tfrz.errors import ConfigError, InputError
from tfrz.files import atomic_file, atomic_write
from tfrz.layers.quantize import packed_bytes

_BUCKETS_HELD = 8

EMBEDDINGS = pa.schema(
    [
        ("user", pa.binary()),
        ("present", pa.bool_()),
        ("packed", pa.binary()),
        ("version", pa.dictionary(pa.int32(), pa.string())),
        ("generated_at", pa.int64()),
        ("newest_event", pa.int64()),
        ("changes_at", pa.int64()),
        ("explicit_events", pa.int64()),
        ("implicit_events", pa.int64()),
        ("totals", pa.list_(pa.float32())),
    ]
)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a generation is.

    Attributes:
      number: of the generation.
      version: of the embeddings: a counter of models in this store, and the first 8 hex digits of
        the model's fingerprint. Vectors of two versions must not be compared or mixed.
      model: where the model was.
      fingerprint: of the model's weights and vocabularies.
      slices: fingerprint of the slice specification.
      source: name of the source.
      as_of: Unix seconds: what happened at or after it is not in the vectors, nor what happened
        within the gap before it. It is the rows' `generated_at`.
      num_vectors: of a user.
      dim: of a vector.
      buckets: of users.
      sketches: generations whose sketches add up to this one's.
      forgotten: fingerprint of the users and events that it was made without.
      users: rows.
      counts: events and users by what became of them.
    """

    number: int
    version: str
    model: str
    fingerprint: str
    slices: str
    source: str
    as_of: int
    num_vectors: int
    dim: int
    buckets: int
    sketches: tuple[int, ...]
    forgotten: str
    users: int
    counts: dict[str, int]


def bucket_file(folder: Path, part: str, bucket: int) -> Path:
    """A bucket's file in a part of a generation: Parquet for embeddings, else an Arrow stream."""
    suffix = "parquet" if part == "embeddings" else "arrows"
    return folder / part / f"{bucket:05d}.{suffix}"


def read_manifest(folder: Path) -> Manifest:
    """What the generation in a folder is.

    Raises:
      InputError: there is none, or it is not one of this program's.
    """
    path = folder / "manifest.json"
    try:
        return from_mapping(Manifest, json.loads(path.read_text()), str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise InputError(f"{path} is no manifest of embeddings: {error}") from error


def fingerprint_of(forgotten: Mapping[str, Any]) -> str:
    """Of the users and events that must not come back."""
    text = json.dumps(forgotten, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """A folder of generations.

    Args:
      directory: may not exist yet.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def generation(self, number: int) -> Path:
        """The folder of a generation."""
        return self.directory / "generations" / f"{number:05d}"

    def partial(self, number: int) -> Path:
        """The folder of an unfinished generation."""
        return self.directory / f".{number:05d}.partial"

    def numbers(self) -> list[int]:
        """The finished generations, in order."""
        found = (self.directory / "generations").glob("*/manifest.json")
        return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())

    def manifest(self, number: int) -> Manifest:
        """What a generation is.

        Raises:
          InputError: there is no such generation, or it is not one of this program's.
        """
        return read_manifest(self.generation(number))

    def current(self) -> int | None:
        """The number of the current generation; None for none."""
        try:
            return int((self.directory / "CURRENT").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(f"{self.directory}/CURRENT is damaged: {error}") from error

    def publish(self, number: int) -> None:
        """Makes a generation the current one, in one rename."""
        self.manifest(number)
        if not bucket_file(self.generation(number), "embeddings", 0).exists():
            raise InputError(f"generation {number} of {self.directory} has no embeddings any more")
        atomic_write(self.directory / "CURRENT", f"{number}\n")

    def finish(self, manifest: Manifest) -> Path:
        """Turns the partial folder of a generation into the generation, in one rename."""
        partial, target = self.partial(manifest.number), self.generation(manifest.number)
        atomic_write(partial / "manifest.json", json.dumps(to_mapping(manifest), indent=1) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)
        return target

    def version_of(self, fingerprint: str) -> str:
        """The version of a model in this store; a new one for a model that is new to it."""
        path = self.directory / "versions.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if fingerprint not in known:
            known[fingerprint] = f"{len(known) + 1}-{fingerprint[:8]}"
            atomic_write(path, json.dumps(known, indent=1) + "\n")
        return str(known[fingerprint])

    def forgotten(self) -> dict[str, list[Any]]:
        """Users (hex) and events (user hex, time) that must not come back."""
        path = self.directory / "forgotten.json"
        known: dict[str, list[Any]] = {"users": [], "events": []}
        return dict(json.loads(path.read_text()) if path.exists() else known)

    def can_be_added_to(self, manifest: Manifest, forgotten: dict[str, list[Any]]) -> bool:
        """Whether all that an incremental run needs of a generation is there, and nothing else."""
        if manifest.forgotten != fingerprint_of(forgotten):
            return False
        tail = bucket_file(self.generation(manifest.number), "tail", 0)
        sketches = [bucket_file(self.generation(n), "sketches", 0) for n in manifest.sketches]
        return all(path.exists() for path in (tail, *sketches))

    def forget(self, users: Sequence[bytes], events: Sequence[tuple[bytes, int]] = ()) -> int:
        """Removes users and events, now and from every later run.

        Rows of the users go at once. Sketches and tails go altogether, so that the next run reads
        the source anew, without them; until then a user of whom an event is forgotten keeps its
        row.

        Args:
          users: their keys.
          events: user and time, Unix seconds.

        Returns:
          Rows removed.
        """
        known = self.forgotten()
        for user in users:
            if user.hex() not in known["users"]:
                known["users"].append(user.hex())
        for user, time in events:
            if [user.hex(), time] not in known["events"]:
                known["events"].append([user.hex(), time])
        atomic_write(self.directory / "forgotten.json", json.dumps(known) + "\n")
        for partial in self.directory.glob(".*.partial"):
            shutil.rmtree(partial)
        removed = 0
        gone = pa.array(list(users), pa.binary())
        for number in self.numbers():
            folder = self.generation(number)
            for part in ("sketches", "tail"):
                shutil.rmtree(folder / part, ignore_errors=True)
            if not users:
                continue
            for path in sorted((folder / "embeddings").glob("*.parquet")):
                table = pq.read_table(path)
                kept = table.filter(pc.invert(pc.is_in(table["user"], gone)))
                if kept.num_rows < table.num_rows:
                    removed += table.num_rows - kept.num_rows
                    with atomic_file(path) as part_path:
                        pq.write_table(kept, part_path)
        return removed

    def prune(self) -> None:
        """Removes what neither readers nor the next run need. Sketches that are added to stay."""
        numbers, current = self.numbers(), self.current()
        if not numbers:
            return
        before = [n for n in numbers if current is not None and n < current]
        whole_ones = {numbers[-1], current, before[-1] if before else None}
        sketched = self.manifest(numbers[-1]).sketches
        for number in numbers:
            if number in whole_ones:
                continue
            if number not in sketched:
                shutil.rmtree(self.generation(number))
                continue
            for part in ("embeddings", "tail"):
                shutil.rmtree(self.generation(number) / part, ignore_errors=True)


class Embeddings:
    """The embeddings of one generation, to look users up in. Can be pickled; reads lazily.

    Args:
      folder: of the generation.
      manifest: of it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._held: collections.OrderedDict[int, dict[bytes, bytes]] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def version(self) -> str:
        """See `Manifest`."""
        return self.manifest.version

    @property
    def generated_at(self) -> int:
        """The time as of which they were made, Unix seconds."""
        return self.manifest.as_of

    @property
    def num_vectors(self) -> int:
        """Vectors of a user."""
        return self.manifest.num_vectors

    @property
    def dim(self) -> int:
        """Of a vector."""
        return self.manifest.dim

    def fingerprint(self) -> str:
        """Changes when the embeddings may have."""
        return f"{self.manifest.version}-{self.manifest.as_of}-{self.manifest.number}"

    def _bucket(self, bucket: int) -> dict[bytes, bytes]:
        if bucket not in self._held:
            path = bucket_file(self.folder, "embeddings", bucket)
            table = pq.read_table(path, columns=["user", "packed", "present"])
            table = table.filter(table["present"])
            rows = zip(table["user"].to_pylist(), table["packed"].to_pylist(), strict=True)
            self._held[bucket] = dict(rows)
            if len(self._held) > _BUCKETS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(bucket)
        return self._held[bucket]

    def packed(self, users: Sequence[bytes]) -> list[bytes | None]:
        """The packed vectors of some users, None for those who have none.

        Returns:
          For each user `packed_bytes(num_vectors, dim)` bytes, see `tfrz.layers.quantize`.
        """
        found: list[bytes | None] = [None] * len(users)
        if users:
            buckets = buckets_of(pa.array(users, pa.binary()), self.manifest.buckets)
            # Bucket by bucket, so that each is read once.
            for place in buckets.argsort(kind="stable"):
                found[place] = self._bucket(int(buckets[place])).get(users[place])
        return found


def open_embeddings(directory: str | Path) -> Embeddings:
    """The current embeddings of a store.

    Raises:
      InputError: it is no store, or nothing in it is published.
    """
    store = Store(directory)
    number = store.current() if store.directory.is_dir() else None
    if number is None:
        raise InputError(
            f"{directory} has no current embeddings: name a folder that 'tfrz embeddings export' "
            "wrote"
        )
    manifest = store.manifest(number)
    first = bucket_file(store.generation(number), "embeddings", 0)
    if not first.exists():
        raise InputError(f"{first} is missing: the store is damaged, export again")
    return Embeddings(store.generation(number), manifest)


def row_bytes(manifest: Manifest) -> int:
    """Bytes of a user's packed vectors."""
    return packed_bytes(manifest.num_vectors, manifest.dim)
