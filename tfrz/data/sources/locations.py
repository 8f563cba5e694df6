"""Where data lies: a file, a folder, a glob, a list of them, on this machine or in an object store.

`find` turns what was given to `--data` into the files to read. Paths are opened by Arrow's file
systems: `/data/x.csv`, `file:///data/x.csv`, `s3://bucket/x`, `gs://bucket/x`, `hdfs://host/x`.
Credentials come from where the store's own tools look for them.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import logging
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from tfrz.errors import InputError

logger = logging.getLogger(__name__)

COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4", "xz": "xz"}
FORMATS = {
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
    "jsonl": "json",
    "ndjson": "json",
    "json": "json",
    "tfrecord": "tfrecord",
}
_ENDINGS = ".csv, .tsv, .parquet, .jsonl or .tfrecord"
_GLOB = re.compile(r"[*?\[]")
_URI = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Contents of larger files are sampled for a fingerprint.
_HASHED_WHOLE = 256 << 20
_SAMPLE = 1 << 20


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One file of a source.

    Attributes:
      path: Path or URI.
      format: csv, parquet, json or tfrecord.
      compression: As Arrow names it, or `xz`; empty for none.
      partitions: Columns that are named in the path, `day=2026-11-01/`.
    """

    path: str
    format: str
    compression: str = ""
    partitions: tuple[tuple[str, str | None], ...] = ()

    @property
    def delimiter(self) -> str | None:
        """The delimiter that the name of the file promises, if it does."""
        return "\t" if ".tsv" in Path(self.path).suffixes else None


def is_uri(path: str) -> bool:
    """Whether a path names its file system."""
    return _URI.match(path) is not None


@functools.lru_cache(maxsize=64)
def _file_system_of(root: str) -> pafs.FileSystem:
    return pafs.FileSystem.from_uri(root)[0]


def _opened(path: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system of a path or URI, and the path in it.

    Raises:
      InputError: There is no such file system.
    """
    if not is_uri(path):
        return pafs.LocalFileSystem(), os.path.abspath(path)
    parsed = urllib.parse.urlsplit(path)
    root = f"{parsed.scheme.lower()}://{parsed.netloc}"
    if parsed.query:
        root += f"/?{parsed.query}"
    try:
        if parsed.scheme.lower() == "file":
            return pafs.LocalFileSystem(), urllib.parse.unquote(parsed.path)
        system = _file_system_of(root)
    except (pa.ArrowException, OSError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot open {path}: {reason}") from error
    if parsed.scheme.lower() in ("s3", "gs", "gcs", "abfs", "abfss"):
        bucket = parsed.netloc.rpartition("@")[2]
        return system, f"{bucket}{urllib.parse.unquote(parsed.path)}"
    return system, urllib.parse.unquote(parsed.path)


def _named(base: str, found: str) -> str:
    """The path or URI of a file that was found below `base`."""
    if not is_uri(base):
        return found
    parsed = urllib.parse.urlsplit(base)
    query = f"?{parsed.query}" if parsed.query else ""
    if parsed.scheme.lower() in ("s3", "gs", "gcs", "abfs", "abfss"):
        user, at, bucket = parsed.netloc.rpartition("@")
        inside = found.removeprefix(f"{bucket}/")
        return f"{parsed.scheme}://{user}{at}{bucket}/{urllib.parse.quote(inside)}{query}"
    return f"{parsed.scheme}://{parsed.netloc}{urllib.parse.quote(found)}{query}"


def open_stream(file: DataFile) -> pa.NativeFile:
    """Opens the decompressed bytes of a file, to be read once from its start.

    Raises:
      InputError: It cannot be opened.
    """
    try:
        system, path = _opened(file.path)
        if file.compression == "xz":
            import lzma

            return pa.PythonFile(lzma.open(system.open_input_file(path)), mode="r")
        return system.open_input_stream(path, compression=file.compression or None)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file.path, error) from error


def open_random(file: DataFile) -> pa.NativeFile:
    """Opens the bytes of a file as they are stored, for reading at any place.

    Raises:
      InputError: It cannot be opened.
    """
    try:
        system, path = _opened(file.path)
        return system.open_input_file(path)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file.path, error) from error


def unreadable(path: str, error: Exception) -> InputError:
    """Returns the error for a file that cannot be read, in one line."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if "zlib" in reason or "Truncated" in reason or "decompress" in reason or "Lz4" in reason:
        return InputError(f"{path} is damaged, or its format does not match its name")
    return InputError(f"cannot read {path}: {reason}")


def _partitions(relative: str) -> tuple[tuple[str, str | None], ...]:
    found = []
    for part in relative.split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and name:
            text = urllib.parse.unquote(value)
            found.append((urllib.parse.unquote(name), None if text == _HIVE_NULL else text))
    return tuple(found)


def described(path: str, relative: str = "") -> DataFile | None:
    """Returns the file with what its name says; None if the name says nothing."""
    name = path.partition("?")[0].rstrip("/") if is_uri(path) else path
    stem, _, ending = name.rpartition(".")
    compression = ""
    if ending.lower() in COMPRESSIONS:
        compression = COMPRESSIONS[ending.lower()]
        ending = stem.rpartition(".")[2]
    if ending.lower() not in FORMATS or (compression and ending.lower() == "parquet"):
        return None
    return DataFile(path, FORMATS[ending.lower()], compression, _partitions(relative))


def _hidden(relative: str) -> bool:
    """Whether a file is none of the data, as Spark, Hive and Arrow agree."""
    return any(part.startswith((".", "_")) and "=" not in part for part in relative.split("/"))


def _below(base: str) -> list[str]:
    """The files below a folder, as paths relative to it."""
    system, path = _opened(base)
    selector = pafs.FileSelector(path, recursive=True)
    found = [i.path for i in system.get_file_info(selector) if i.type == pafs.FileType.File]
    return sorted(name[len(path.rstrip("/")) :].lstrip("/") for name in found)


def _joined(base: str, relative: str) -> str:
    return f"{base.rstrip('/')}/{relative}" if not is_uri(base) else _named_below(base, relative)


def _named_below(base: str, relative: str) -> str:
    _, path = _opened(base)
    return _named(base, f"{path.rstrip('/')}/{relative}")


def _in_folder(base: str, given: str, above: str = "") -> list[DataFile]:
    names = [name for name in _below(base) if not _hidden(name)]
    files = [file for name in names if (file := described(_joined(base, name), above + name))]
    if not files:
        seen = f" (it has {', '.join(names[:3])})" if names else ""
        raise InputError(f"{given} has no file that ends in {_ENDINGS}{seen}: check --data")
    if len(files) < len(names):
        logger.info("%s: %d files of other formats are not read", given, len(names) - len(files))
    return files


def matches(pattern: str) -> list[str]:
    """Returns the paths that match a glob; in an object store, the files below them too."""
    if not is_uri(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    pattern, mark, query = pattern.partition("?")
    head = _GLOB.split(pattern, maxsplit=1)[0].rpartition("/")[0]
    shape = re.escape(urllib.parse.unquote(pattern[len(head) + 1 :]))
    shape = shape.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    shape = re.sub(r"\\\[!?(.*?)\\\]", _character_class, shape)
    base, found = f"{head}{mark}{query}", []
    for name in _below(base):
        parts = name.split("/")
        lengths = range(1, len(parts) + 1)
        matched = [n for n in lengths if re.fullmatch(shape, "/".join(parts[:n])) is not None]
        whole = len(parts) in matched
        if whole or (matched and not _hidden(name) and described(name) is not None):
            found.append(_named_below(base, name))
    return found


def _character_class(found: re.Match[str]) -> str:
    negated = "^" if found[0].startswith(r"\[!") else ""
    return f"[{negated}{found[1].replace(chr(92), '')}]"


def _one(given: str, named: str) -> list[DataFile]:
    """The files of one path, folder or glob."""
    if given.lower().startswith("file://"):
        given = urllib.parse.unquote(given[max(given.find("/", 7), 7) :])
    # A question mark begins the options of a URI.
    pattern = given.partition("?")[0] if is_uri(given) else given
    if _GLOB.search(pattern) and not (not is_uri(given) and Path(given).exists()):
        try:
            found = matches(given)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(given, error) from error
        if not found:
            raise InputError(f"{given} matches no file: check {named}")
        fixed = _GLOB.split(given, maxsplit=1)[0].rpartition("/")[0]
        files = []
        for path in found:
            relative = path[len(fixed) :].lstrip("/")
            if not is_uri(path) and Path(path).is_dir():
                files += _in_folder(path, given, f"{relative}/")
                continue
            file = described(path, relative)
            if file is None:
                raise InputError(f"{path}: the name must end in {_ENDINGS}")
            files.append(file)
        return files
    try:
        system, path = _opened(given)
        kind = system.get_file_info(path).type
    except (pa.ArrowException, OSError) as error:
        raise unreadable(given, error) from error
    if kind == pafs.FileType.NotFound:
        raise InputError(f"{given} does not exist: check {named}")
    if kind == pafs.FileType.Directory:
        return _in_folder(given, given)
    file = described(given)
    if file is None:
        raise InputError(f"{given}: the name must end in {_ENDINGS}")
    return [file]


def find(given: str, named: str = "the path given to --data") -> tuple[DataFile, ...]:
    """Returns the files of a source, in the order in which they are read.

    Args:
      given: A file, a folder, a glob, or several of them with commas between; `key=value` folders
        are columns.
      named: How messages call it.

    Raises:
      InputError: There is no such file, or the files have different formats.
    """
    parts = [given]
    if "," in given and (is_uri(given) or not Path(given).exists()):
        parts = [part.strip() for part in given.split(",") if part.strip()]
    if not parts:
        raise InputError(f"{given} names no file: check {named}")
    files = [file for part in parts for file in _one(part, named)]
    unique = tuple(dict.fromkeys(files))
    formats = sorted({file.format for file in unique})
    if len(formats) > 1:
        raise InputError(f"{given} has files of different formats ({', '.join(formats)})")
    return unique


def version_of(path: str) -> str:
    """Identifies the contents of a file: a hash of all of them, or of samples if there are many.

    Raises:
      InputError: The file cannot be read.
    """
    try:
        system, inside = _opened(path)
        info = system.get_file_info(inside)
        stamp = "" if info.mtime_ns is None else str(info.mtime_ns)
        if is_uri(path) and not path.lower().startswith("file:"):
            return f"{info.size}:{stamp}"
        found = os.stat(inside)
        # A copy may preserve the modification time, but not the change time.
        return _contents(inside, (found.st_ino, found.st_size, stamp, str(found.st_ctime_ns)))
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


@functools.lru_cache(maxsize=4096)
def _contents(path: str, version: tuple[int | str, ...]) -> str:
    """Hashes a file; cached for each version of it."""
    digest, size = hashlib.sha256(), os.path.getsize(path)
    with open(path, "rb") as file:
        if size <= _HASHED_WHOLE:
            while block := file.read(_SAMPLE):
                digest.update(block)
        else:
            digest.update(str((size, version[2])).encode())
            for place in range(0, size, size // 64):
                file.seek(place)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def with_partitions(
    columns: Mapping[str, pa.Array], file: DataFile, wanted: Sequence[str], rows: int
) -> dict[str, pa.Array]:
    """Adds the wanted columns that the path of the file names."""
    out = dict(columns)
    for name, value in file.partitions:
        if name in wanted and name not in out:
            out[name] = pa.nulls(rows, pa.string()) if value is None else pa.repeat(value, rows)
    return out
