"""Writers that publish embeddings to key-value stores, where servers read them."""

from __future__ import annotations

import importlib
import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq

from tfrz.embeddings.store import Manifest, Store, bucket_file
from tfrz.errors import InputError
from tfrz.files import require_writable_directory

_ROWS_AT_ONCE = 1024


class KeyValueWriter(Protocol):
    """Writes a generation to a key-value store, e.g. SQLite; subclass it for Bigtable or Redis.

    Your own writer is a class with these methods whose constructor takes the destination; use it
    with `tfrz embeddings export --to module:Class=DESTINATION`.
    """

    def begin(self, manifest: Manifest) -> None:
        """Starts a generation; readers still see the previous one."""

    def put(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Writes users and their packed vectors; each user at most once."""

    def commit(self) -> None:
        """Makes the whole generation visible at once."""


class SqliteWriter:
    """An SQLite file that is replaced at once.

    Table `embeddings`: `user` BLOB PRIMARY KEY, `packed` BLOB. Table `about`: `name` and `value` of
    `version`, `generated_at`, `num_vectors` and `dim`.

    Args:
      destination: Path of the file.
    """

    def __init__(self, destination: str | Path) -> None:
        self._path = Path(destination)
        self._part = self._path.with_name(f".{self._path.name}.part")

    def begin(self, manifest: Manifest) -> None:
        """See `KeyValueWriter`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._part.unlink(missing_ok=True)
        self._database = sqlite3.connect(self._part)
        self._database.execute("CREATE TABLE embeddings (user BLOB PRIMARY KEY, packed BLOB)")
        self._database.execute("CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT)")
        about = {
            "version": manifest.version,
            "generated_at": manifest.as_of,
            "num_vectors": manifest.num_vectors,
            "dim": manifest.dim,
        }
        self._database.executemany(
            "INSERT INTO about VALUES (?, ?)", [(n, str(v)) for n, v in about.items()]
        )

    def put(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """See `KeyValueWriter`."""
        self._database.executemany("INSERT INTO embeddings VALUES (?, ?)", rows)

    def commit(self) -> None:
        """See `KeyValueWriter`."""
        self._database.commit()
        self._database.close()
        os.replace(self._part, self._path)


class TFRecordWriter:
    """A gzipped TFRecord file of `tf.Example`s, for joins in Beam pipelines.

    Features: `user`, `long_history` (the packed vectors), `long_history_version` (bytes) and
    `generated_at` (int64).

    Args:
      destination: Path of the file.
    """

    def __init__(self, destination: str | Path) -> None:
        self._path = Path(destination)
        self._part = self._path.with_name(f".{self._path.name}.part")

    def begin(self, manifest: Manifest) -> None:
        """See `KeyValueWriter`."""
        import tensorflow as tf

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._manifest = manifest
        self._writer = tf.io.TFRecordWriter(str(self._part), "GZIP")

    def put(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """See `KeyValueWriter`."""
        import tensorflow as tf

        for user, packed in rows:
            example = tf.train.Example()
            features = example.features.feature
            features["user"].bytes_list.value.append(user)
            features["long_history"].bytes_list.value.append(packed)
            version = self._manifest.version.encode()
            features["long_history_version"].bytes_list.value.append(version)
            features["generated_at"].int64_list.value.append(self._manifest.as_of)
            self._writer.write(example.SerializeToString(deterministic=True))

    def commit(self) -> None:
        """See `KeyValueWriter`."""
        self._writer.close()
        os.replace(self._part, self._path)


def open_writer(text: str) -> KeyValueWriter:
    """Returns the writer for `sqlite=FILE`, `tfrecord=FILE` or `module:Class=DESTINATION`.

    Raises:
      InputError: There is no such writer.
    """
    name, equals, destination = text.partition("=")
    if not equals or not destination:
        raise InputError(f"--to {text}: write it as sqlite=FILE, tfrecord=FILE or module:Class=...")
    kinds: dict[str, Callable[[str], KeyValueWriter]] = {
        "sqlite": SqliteWriter,
        "tfrecord": TFRecordWriter,
    }
    if name in kinds:
        require_writable_directory(Path(destination).parent)
        return kinds[name](destination)
    try:
        module, _, attribute = name.partition(":")
        writer: KeyValueWriter = getattr(importlib.import_module(module), attribute)(destination)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"--to {text}: {name} is not sqlite, tfrecord, or an importable class ({error})"
        ) from error
    return writer


def write_key_values(store: Store, number: int, writer: KeyValueWriter) -> int:
    """Writes the users of a generation that have vectors; returns their number."""
    manifest = store.manifest(number)
    writer.begin(manifest)
    written = 0
    for bucket in range(manifest.buckets):
        path = bucket_file(store.generation(number), "embeddings", bucket)
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["user", "packed", "present"]):
                here = batch.filter(batch.column("present"))
                users, packed = (here.column(n).to_pylist() for n in ("user", "packed"))
                writer.put(zip(users, packed, strict=True))
                written += here.num_rows
    writer.commit()
    return written
