"""The store of exported embeddings: a folder of generations, one of which is current.

    STORE/CURRENT                       the number of the current generation
    STORE/versions.json                 maps model fingerprints to versions
    STORE/forgotten.json                users and events to leave out forever
    STORE/generations/<number>/
      manifest.json                     its sources, time and counts
      health.json                       coverage, norms, ages, slices, drift
      embeddings/<bucket>.parquet       a row per user
      sketches/<bucket>.arrows          the sums that incremental runs add to
      tail/<bucket>.arrows              events still in the gap or in a time bucket
    STORE/.<number>.partial/            an unfinished run: resumed, never read

Users are assigned to buckets by a hash. A generation appears by a rename, and becomes current by
another.
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
    """Describes a generation.

    Attributes:
      number: Number of the generation.
      version: Version of the embeddings: a counter of the models in this store, and the first 8
        hex digits of the model's fingerprint. Vectors of different versions are not comparable.
      model: Path of the model.
      fingerprint: Fingerprint of the model's weights and vocabularies.
      slices: Fingerprint of the slice specification.
      source: Name of the source.
      as_of: Unix seconds; the vectors contain no event at or after it, or within the gap before
        it. It is the `generated_at` of the rows.
      num_vectors: Number of vectors per user.
      dim: Width of a vector.
      buckets: Number of buckets of users.
      sketches: Generations whose sketches add up to those of this one.
      forgotten: Fingerprint of the users and events that were left out.
      users: Number of rows.
      counts: Counts of events and users.
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
    """Returns a bucket's file of a generation: Parquet for embeddings, else an Arrow stream."""
    suffix = "parquet" if part == "embeddings" else "arrows"
    return folder / part / f"{bucket:05d}.{suffix}"


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of the generation in a folder.

    Raises:
      InputError: The manifest is missing or invalid.
    """
    path = folder / "manifest.json"
    try:
        return from_mapping(Manifest, json.loads(path.read_text()), str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise InputError(f"{path} is not a manifest of embeddings: {error}") from error


def fingerprint_of(forgotten: Mapping[str, Any]) -> str:
    """Returns the fingerprint of the users and events to leave out."""
    text = json.dumps(forgotten, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """A folder of generations.

    Args:
      directory: Path of the folder, which may not exist yet.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def generation(self, number: int) -> Path:
        """Returns the folder of a generation."""
        return self.directory / "generations" / f"{number:05d}"

    def partial(self, number: int) -> Path:
        """Returns the folder of an unfinished generation."""
        return self.directory / f".{number:05d}.partial"

    def numbers(self) -> list[int]:
        """Returns the numbers of the finished generations, in order."""
        found = (self.directory / "generations").glob("*/manifest.json")
        return sorted(int(path.parent.name) for path in found if path.parent.name.isdecimal())

    def manifest(self, number: int) -> Manifest:
        """Reads the manifest of a generation.

        Raises:
          InputError: The generation does not exist, or its manifest is invalid.
        """
        return read_manifest(self.generation(number))

    def current(self) -> int | None:
        """Returns the number of the current generation; None if there is none."""
        try:
            return int((self.directory / "CURRENT").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(f"{self.directory}/CURRENT is damaged: {error}") from error

    def publish(self, number: int) -> None:
        """Makes a generation the current one with a single rename."""
        self.manifest(number)
        if not bucket_file(self.generation(number), "embeddings", 0).exists():
            raise InputError(f"generation {number} of {self.directory} no longer has embeddings")
        atomic_write(self.directory / "CURRENT", f"{number}\n")

    def finish(self, manifest: Manifest) -> Path:
        """Turns a partial folder into the generation with a single rename."""
        partial, target = self.partial(manifest.number), self.generation(manifest.number)
        atomic_write(partial / "manifest.json", json.dumps(to_mapping(manifest), indent=1) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)
        return target

    def version_of(self, fingerprint: str) -> str:
        """Returns the version of a model in this store; creates one for a new model."""
        path = self.directory / "versions.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if fingerprint not in known:
            known[fingerprint] = f"{len(known) + 1}-{fingerprint[:8]}"
            atomic_write(path, json.dumps(known, indent=1) + "\n")
        return str(known[fingerprint])

    def forgotten(self) -> dict[str, list[Any]]:
        """Returns users (hex) and events (user hex, time) to leave out."""
        path = self.directory / "forgotten.json"
        known: dict[str, list[Any]] = {"users": [], "events": []}
        return dict(json.loads(path.read_text()) if path.exists() else known)

    def can_be_added_to(self, manifest: Manifest, forgotten: dict[str, list[Any]]) -> bool:
        """Returns whether an incremental run can build on a generation."""
        if manifest.forgotten != fingerprint_of(forgotten):
            return False
        tail = bucket_file(self.generation(manifest.number), "tail", 0)
        sketches = [bucket_file(self.generation(n), "sketches", 0) for n in manifest.sketches]
        return all(path.exists() for path in (tail, *sketches))

    def forget(self, users: Sequence[bytes], events: Sequence[tuple[bytes, int]] = ()) -> int:
        """Removes users and events, now and from all later runs.

        Rows of the users are removed immediately. All sketches and tails are removed, so the next
        run reads the whole source without the forgotten data; until then, users with forgotten
        events keep their rows.

        Args:
          users: Keys of the users.
          events: Pairs of user and time in Unix seconds.

        Returns:
          Number of rows removed.
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
        """Removes files that neither readers nor the next run need."""
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
    """The embeddings of one generation, for lookups. Can be pickled; reads lazily.

    Args:
      folder: Folder of the generation.
      manifest: Manifest of the generation.
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
        """Unix seconds; the embeddings contain no event at or after this time."""
        return self.manifest.as_of

    @property
    def num_vectors(self) -> int:
        """Number of vectors per user."""
        return self.manifest.num_vectors

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.manifest.dim

    def fingerprint(self) -> str:
        """Returns a string that changes when the embeddings change."""
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
        """Returns the packed vectors of users; None for users without vectors.

        Returns:
          `packed_bytes(num_vectors, dim)` bytes for each user, see `tfrz.layers.quantize`.
        """
        found: list[bytes | None] = [None] * len(users)
        if users:
            buckets = buckets_of(pa.array(users, pa.binary()), self.manifest.buckets)
            # Bucket by bucket, so that each file is read once.
            for place in buckets.argsort(kind="stable"):
                found[place] = self._bucket(int(buckets[place])).get(users[place])
        return found


def open_embeddings(directory: str | Path) -> Embeddings:
    """Opens the current embeddings of a store.

    Raises:
      InputError: The folder is not a store, or has no published generation.
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
        raise InputError(f"{first} is missing: the store is damaged; export again")
    return Embeddings(store.generation(number), manifest)


def row_bytes(manifest: Manifest) -> int:
    """Returns the size of a user's packed vectors in bytes."""
    return packed_bytes(manifest.num_vectors, manifest.dim)
