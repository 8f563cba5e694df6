"""Files, archives and folders, and the shards they are read in."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import itertools
import lzma
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tfrz.errors import InputError

_PART_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a source that one worker reads.

    Attributes:
      path: Path of the file.
      member: Member of the archive, if it is one.
      start: First byte, or first row group.
      end: The byte, or row group, after the last.
      first_line: Number of the first line, from 1.
      number: Which file of several it is, from 0.
    """

    path: str
    member: str = ""
    start: int = 0
    end: int = 0
    first_line: int = 1
    number: int = 0

    @property
    def place(self) -> str:
        """The file, as shown in messages."""
        return f"{self.path}!{self.member}" if self.member else self.path


def _archive_member(names: list[str], wanted: str, path: str) -> str:
    for name in names:
        if name == wanted or name.endswith("/" + wanted):
            return name
    raise InputError(f"{path} has no {wanted}: is it the right archive?")


@dataclasses.dataclass(frozen=True)
class TextSource:
    """A text file: plain, `.gz` or `.xz`, in a `.zip` or `.tar.*` archive, or in a folder.

    Attributes:
      path: Path of the file, archive or folder.
      member: Name of the file within the archive or folder.
    """

    path: str
    member: str = ""

    def _located(self) -> tuple[str, str]:
        """Returns the file to open and the member in it."""
        path = Path(self.path)
        if not path.exists():
            raise InputError(f"{path} does not exist: check the path given to --data")
        if path.is_dir():
            found = sorted(path.rglob(self.member)) if self.member else []
            if not found:
                raise InputError(f"{path} has no {self.member or 'file'}: check the path")
            return str(found[0]), ""
        if self.member and not self._is_archive(path):
            raise InputError(f"{path} is neither a folder nor an archive with {self.member} in it")
        return str(path), self.member

    @staticmethod
    def _is_archive(path: Path) -> bool:
        return path.suffix == ".zip" or ".tar" in path.suffixes or path.suffix == ".tgz"

    @property
    def file(self) -> str:
        """Path of the file to open."""
        return self._located()[0]

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Opens the decompressed bytes.

        Raises:
          InputError: The file is missing, damaged, or has the wrong format.
        """
        path, member = self._located()
        try:
            if path.endswith(".zip"):
                with zipfile.ZipFile(path) as archive:
                    with archive.open(_archive_member(archive.namelist(), member, path)) as file:
                        yield file
            elif member:
                with tarfile.open(path) as archive:
                    name = _archive_member(archive.getnames(), member, path)
                    yield archive.extractfile(name) or io.BytesIO()
            elif path.endswith(".gz"):
                with gzip.open(path) as unzipped:
                    yield cast(IO[bytes], unzipped)
            elif path.endswith(".xz"):
                with lzma.open(path) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                with open(path, "rb") as plain:
                    yield plain
        except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, EOFError):
            raise InputError(f"{path} is damaged, or its format does not match its name") from None
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error

    @property
    def _is_plain(self) -> bool:
        path, member = self._located()
        return not member and not path.endswith((".gz", ".xz", ".zip"))

    def shards(self, part_bytes: int = _PART_BYTES) -> list[Shard]:
        """Cuts the file into parts of about `part_bytes`, between lines.

        A compressed file is one part, because it can only be read from its start.

        Raises:
          InputError: The file is missing or empty.
        """
        shards: list[Shard] = []
        start, line, plain = 0, 1, self._is_plain
        with self.open() as file:
            if not plain:
                shards = [Shard(self.path, self.member)] if file.read(1) else []
            while plain and (block := file.read(part_bytes)):
                block += file.readline()
                shards.append(Shard(self.path, self.member, start, start + len(block), line))
                start += len(block)
                line += block.count(b"\n")
        if not shards:
            raise InputError(f"{self.path} {self.member}".strip() + " is empty: nothing to read")
        return shards

    def lines(self, shard: Shard) -> Iterator[bytes]:
        """Yields the lines of a shard, without line ends and byte order mark."""
        mark = b"\xef\xbb\xbf"
        with self.open() as file:
            if shard.start:
                file.seek(shard.start)
            left = shard.end - shard.start if shard.end else None
            first = shard.start == 0
            for line in file:
                if left is not None:
                    if left <= 0:
                        break
                    left -= len(line)
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                yield line.removeprefix(mark) if first else line
                first = False

    def chunks(self, shard: Shard, lines: int = 1 << 16) -> Iterator[tuple[Shard, list[bytes]]]:
        """Yields the lines of a shard in groups, each with a shard that has its first line."""
        number, rest = shard.first_line, self.lines(shard)
        while chunk := list(itertools.islice(rest, lines)):
            yield dataclasses.replace(shard, first_line=number), chunk
            number += len(chunk)


def corrupt(shard: Shard, index: int, reason: str, line: bytes) -> CorruptLine:
    """Returns the corrupt line at `index` of a shard."""
    text = line[:80].decode("utf-8", "replace")
    return CorruptLine(shard.place, shard.first_line + index, reason, text)


@dataclasses.dataclass(frozen=True)
class CorruptLine:
    """A line that could not be read.

    Attributes:
      file: Name of the file.
      line: Number of the line, from 1.
      reason: Why it could not be read.
      text: First characters of the line.
    """

    file: str
    line: int
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def check_corrupt(
    count: int, total: int, examples: Sequence[CorruptLine], max_fraction: float
) -> None:
    """Raises an error if more than `max_fraction` of all lines are corrupt.

    Args:
      count: Number of corrupt lines.
      total: Number of all lines, including corrupt ones.
      examples: Some corrupt lines; the message shows the first.
      max_fraction: Tolerated share of corrupt lines.

    Raises:
      InputError: Too many lines are corrupt.
    """
    if count > max_fraction * total:
        first = min(examples, key=lambda line: (line.file, line.line))
        raise InputError(
            f"{first} (one of {count} corrupt lines among {total}, more than the tolerated share "
            f"of {max_fraction:g}): fix the file or raise data.max_corrupt_fraction"
        )


@dataclasses.dataclass
class CorruptLines:
    """The corrupt lines of a source: how many, and the first of them.

    Attributes:
      rows: Number of rows that could be read.
      count: Number of corrupt lines.
      first: The first thousand of them.
    """

    rows: int = 0
    count: int = 0
    first: list[CorruptLine] = dataclasses.field(default_factory=list)

    def append(self, line: CorruptLine) -> None:
        """Counts a line."""
        self.count += 1
        if len(self.first) < 1000:
            self.first.append(line)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[CorruptLine]:
        return iter(self.first)

    def __getitem__(self, index: int) -> CorruptLine:
        return self.first[index]

    def check(self, source: str, max_fraction: float) -> None:
        """Checks that enough lines could be read.

        Raises:
          InputError: Too many lines are corrupt, or there are no records.
        """
        if self.count:
            check_corrupt(self.count, self.rows + self.count, self.first, max_fraction)
        if not self.rows:
            raise InputError(f"{source} has no records: nothing to read")


def parquet_shards(path: str, columns: tuple[str, ...]) -> list[Shard]:
    """Returns a shard for each row group of a Parquet file.

    Raises:
      InputError: The file is missing, has the wrong format, or lacks a column.
    """
    if not Path(path).exists():
        raise InputError(f"{path} does not exist: check the path given to --data")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    present = file.schema_arrow.names
    for name in columns:
        if name not in present:
            raise InputError(f"{path} has no column {name!r} (it has {', '.join(present[:12])})")
    return [Shard(path, "", g, g + 1) for g in range(file.num_row_groups)]


def row_group(shard: Shard, columns: Sequence[str]) -> tuple[pa.Table, int]:
    """Reads a shard of `parquet_shards`; also returns the number of rows before it."""
    file = pq.ParquetFile(shard.path)
    before = sum(file.metadata.row_group(g).num_rows for g in range(shard.start))
    return file.read_row_group(shard.start, columns=list(columns)).combine_chunks(), before
