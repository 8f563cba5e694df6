"""Rows of files as Arrow columns of whatever type they were written in.

`RawFiles` reads CSV, JSON lines, Parquet and TFRecords of `tf.Example`s, plain or compressed, in
batches. Rows that cannot be parsed come out as `CorruptLine`s; whether the values have the right
types is decided later, by `tfrz.data.sources.values`.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import io
import json
import logging
import lzma
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.json as pjson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tfrz.config import from_mapping, require
from tfrz.data.sources.ahead import ahead
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.sources.locations import (
    DataFile,
    find,
    open_random,
    open_stream,
    unreadable,
    with_partitions,
)
from tfrz.errors import InputError

logger = logging.getLogger(__name__)

_VALUES_A_BATCH = 1 << 22
# A plain CSV file without quotes is read in parts of this size.
_PART_BYTES = 32 << 20
# No row may be longer.
_BLOCK_BYTES = 8 << 20
# CSV is cleaned in blocks that fit into a processor's cache, and parsed in blocks of several.
_READ_BYTES = 1 << 20
_PARSED_BYTES = 16 << 20
_TEXTS = (pa.string(), pa.binary())
_CODED = pa.dictionary(pa.int32(), pa.string())
_DELIMITERS = (",", ";", "\t", "|")
_RECORDS_A_BATCH = 4096


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How text files are written; each field is a key of the spec file.

    Attributes:
      delimiter: Between the columns of CSV; null finds out which of `, ; | tab` gives the columns.
      quote: Around values that contain the delimiter, a quote (doubled) or a line break; empty for
        none.
      encoding: Of the text; null for UTF-8.
      null: Words that stand for a missing value, besides the empty one.
      separator: Between the values of a multivalent feature in CSV.
      decimal: The decimal point of numbers.
    """

    delimiter: str | None = None
    quote: str = '"'
    encoding: str | None = None
    null: tuple[str, ...] = ()
    separator: str = "|"
    decimal: str = "."

    def __post_init__(self) -> None:
        for name in ("delimiter", "decimal"):
            value = getattr(self, name)
            one = value is None or (len(value) == 1 and value.isascii() and value not in "\r\n\0")
            require(one, name, "must be one ASCII character")
        one = len(self.quote) <= 1 and self.quote.isascii() and self.quote != self.delimiter
        require(one, "quote", "must be one ASCII character, or empty for none")
        require(bool(self.separator), "separator", "must not be empty")
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except (LookupError, UnicodeError):
                require(False, "encoding", f"{self.encoding!r} is not known to Python")

    @property
    def is_utf8(self) -> bool:
        """Whether text is read as it is."""
        return codecs.lookup(self.encoding or "utf-8").name in ("utf-8", "utf-8-sig")


def pop_dialect(mapping: dict[str, Any], where: str) -> Dialect:
    """Takes the keys of a dialect out of a feature spec.

    Args:
      mapping: As read from YAML.
      where: Name of the spec, for messages.

    Raises:
      ConfigError: A value is invalid.
    """
    names = [field.name for field in dataclasses.fields(Dialect)]
    if None in mapping:
        # YAML reads the key `null` without quotes as no word at all.
        mapping["null"] = mapping.pop(None)  # type: ignore[call-overload]
    if isinstance(mapping.get("null"), list):
        mapping["null"] = ["null" if word is None else word for word in mapping["null"]]
    return from_mapping(Dialect, {n: mapping.pop(n) for n in names if n in mapping}, where)


class RawBatch(NamedTuple):
    """Some rows of a file.

    Attributes:
      columns: Arrow arrays of equal length.
      numbers: Place of each row in its file: in CSV the header is 1, in other formats the first
        row is 1. Blank lines of CSV, and line breaks within quotes, are not counted.
      where: The part of the record that a row comes from, for messages; if there are parts.
      positions: Places of the rows in the source, if the numbers do not tell them apart.
    """

    columns: dict[str, pa.Array]
    numbers: NDArray[np.int64]
    where: Sequence[str] | None = None
    positions: NDArray[np.int64] | None = None


Raw = RawBatch | CorruptLine
_BROKEN = (pa.ArrowException, OSError, EOFError, lzma.LZMAError)
# In a row with more fields than there are columns, why it has them.
_STRAY_RETURN = "\0r"
_STRAY_QUOTE = "\0q"


class RawFiles:
    """The files of a source.

    Args:
      given: As `find` takes it.
      names: Columns to read.
      dialect: How text files are written.
      named: How messages call `given`.
      exact: Columns whose whole numbers must not lose digits.
      coded: Columns of texts to read as dictionaries, where the format allows it.
    """

    def __init__(
        self,
        given: str,
        names: Sequence[str],
        dialect: Dialect | None = None,
        named: str = "the path given to --data",
        exact: Collection[str] = (),
        coded: Collection[str] = (),
    ) -> None:
        self.given, self.names = given, tuple(names)
        self.dialect = dialect or Dialect()
        self.exact, self.coded = tuple(exact), tuple(coded)
        self.files = find(given, named)

    @property
    def format(self) -> str:
        """The format of the files."""
        return self.files[0].format

    def shards(self, split: bool = True) -> list[Shard]:
        """Returns parts that cover the files once.

        Args:
          split: Whether to look for places at which a text can be split.

        Raises:
          InputError: A file cannot be read, is of another format, or lacks a column.
        """
        shards: list[Shard] = []
        for number, file in enumerate(self.files):
            parts = [Shard(file.path)]
            with self._reading(file):
                if self.format == "json":
                    self._check(file, self._json_columns(file))
                elif self.format == "csv":
                    parts = self._csv_shards(file, split)
                elif self.format == "parquet":
                    parts = self._parquet_shards(file)
            shards += [dataclasses.replace(part, number=number) for part in parts]
        return shards

    @contextlib.contextmanager
    def _reading(self, file: DataFile) -> Iterator[None]:
        """Tells in one line why a file cannot be read."""
        try:
            yield
        except UnicodeError as error:
            raise InputError(
                f"{file.path} is not {self.dialect.encoding or 'UTF-8'}: correct 'encoding' in "
                "the feature spec"
            ) from error
        except _BROKEN as error:
            raise unreadable(file.path, error) from error

    def read(self, shard: Shard) -> Iterator[Raw]:
        """Yields the rows of a shard.

        Raises:
          InputError: The file is damaged.
        """
        read: dict[str, Callable[[DataFile, Shard], Iterator[Raw]]] = {
            "csv": self._csv,
            "parquet": self._parquet,
            "json": self._json,
            "tfrecord": self._examples,
        }
        file = self.files[shard.number]
        items = read[self.format](file, shard)
        while True:
            with self._reading(file):
                item = next(items, None)
            if item is None:
                break
            if isinstance(item, RawBatch):
                rows = len(item.numbers)
                columns = with_partitions(item.columns, file, self.names, rows)
                item = item._replace(columns=columns)
            yield item

    def columns_of(self, file: DataFile) -> list[str]:
        """Returns the names of all columns of a file, those in its path included.

        Raises:
          InputError: It cannot be read, or has no columns.
        """
        with self._reading(file):
            if file.format == "csv":
                names = self._header(file)
            elif file.format == "parquet":
                names = list(self._open_parquet(file).schema_arrow.names)
            elif file.format == "json":
                names = self._json_columns(file)
            else:
                names = sorted({name for name, _ in _kinds(next(self._records(file), b""))})
        return names + [name for name, _ in file.partitions if name not in names]

    def _check(self, file: DataFile, present: Sequence[str]) -> None:
        """Checks that a file has the columns."""
        named = [name for name, _ in file.partitions if name not in present]
        present = [*present, *named]
        for name in self.names:
            if name not in present:
                raise InputError(
                    f"{file.path} has no column {name!r} (it has {', '.join(present[:12])}): "
                    "correct the file or the feature spec"
                )
            if present.count(name) > 1 and file.format in ("csv", "parquet"):
                raise InputError(f"{file.path} has two columns named {name!r}: rename one of them")

    # CSV.

    def _head(self, file: DataFile) -> bytes:
        with open_stream(file) as stream:
            head = stream.read(1 << 20)
        if not head.strip():
            raise InputError(f"{file.path} is empty: nothing to read")
        if self.dialect.encoding is None and head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{file.path} is UTF-16: write 'encoding: utf-16' in the feature spec")
        return bytes(head)

    def _header(self, file: DataFile) -> list[str]:
        return self._delimited(file)[1]

    def _delimited(self, file: DataFile) -> tuple[str, list[str], bool]:
        """Returns the delimiter, the header, and whether lines end with a carriage return."""
        head = self._head(file)
        text = head.decode(self.dialect.encoding or "utf-8", "replace")
        text = text.removeprefix("\ufeff").lstrip("\r\n")
        candidates: Sequence[str] = _DELIMITERS
        fixed = self.dialect.delimiter or file.delimiter
        if fixed is not None:
            candidates = (fixed,)
        read = {}
        quote = self.dialect.quote
        for delimiter in candidates:
            lines = io.StringIO(text.replace("\x00", ""), newline="")
            quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
            rows = csv.reader(lines, delimiter=delimiter, quotechar=quote or None, quoting=quoting)
            try:
                read[delimiter] = next(rows, [])
            except csv.Error:
                read[delimiter] = [text[:200]]
        missing = {d: sum(n not in header for n in self.names) for d, header in read.items()}
        best = min(read, key=lambda d: (missing[d], -len(read[d]), candidates.index(d)))
        mark = re.escape(quote) or "\n"
        end = re.match(rf"(?:[^{mark}\r\n]++|{mark}[^{mark}]*+{mark})*+(\r\n|\r|\n)", text)
        return best, read[best], end is not None and end[1] == "\r"

    def _csv_shards(self, file: DataFile, split: bool) -> list[Shard]:
        _, header, returns = self._delimited(file)
        self._check(file, header)
        whole = [Shard(file.path)]
        if not split or file.compression or returns or not self.dialect.is_utf8:
            return whole
        with open_random(file) as stream:
            if stream.size() <= _PART_BYTES or "://" in file.path:
                return whole
            shards: list[Shard] = []
            start, line = 0, 1
            quote = self.dialect.quote.encode()
            while block := stream.read(_PART_BYTES):
                tail = b""
                while not block.endswith(b"\n"):
                    more = stream.read(1 << 16)
                    end = more.find(b"\n")
                    if end >= 0:
                        tail += more[: end + 1]
                        stream.seek(stream.tell() - len(more) + end + 1)
                    else:
                        tail += more
                    if end >= 0 or not more or len(tail) > _BLOCK_BYTES:
                        break
                block += tail
                # A quoted line break could lie at a cut, and a blank line has no number.
                blank = b"\n\n" in block or b"\n\r" in block or block.startswith((b"\n", b"\r"))
                within = not block.endswith(b"\n") and bool(stream.read(1))
                if (quote and quote in block) or blank or within:
                    return whole
                shards.append(Shard(file.path, "", start, start + len(block), line))
                start += len(block)
                line += block.count(b"\n")
        return shards

    def _csv(self, file: DataFile, shard: Shard) -> Iterator[Raw]:
        delimiter, header, returns = self._delimited(file)
        wanted = {name: header.index(name) for name in self.names if name in header}
        first = shard.start == 0
        bad: list[tuple[int, str, str]] = []

        def refuse(row: pcsv.InvalidRow) -> str:
            what = f"{row.actual_columns} fields instead of {row.expected_columns}"
            if _STRAY_RETURN in row.text:
                what = "has a carriage return that is no line end, outside quotes"
            elif _STRAY_QUOTE in row.text:
                what = "has text after a closing quote: is a quote not closed?"
            bad.append((row.number, what, row.text[:80]))
            return "skip"

        dialect = self.dialect
        if shard.end:
            with open_random(file) as whole:
                whole.seek(shard.start)
                stream = pa.BufferReader(whole.read_buffer(shard.end - shard.start))
        else:
            stream = open_stream(file)
        rows = _CsvRows(file.path, delimiter, dialect.quote, len(header), returns)
        kinds = {
            str(place): _CODED if name in self.coded else pa.string()
            for name, place in wanted.items()
        }
        number = shard.first_line
        for block in ahead(rows.blocks(_utf8_blocks(stream, dialect))):
            try:
                table = pcsv.read_csv(
                    pa.BufferReader(block),
                    pcsv.ReadOptions(
                        use_threads=False,
                        block_size=len(block) + 1,
                        column_names=[str(place) for place in range(len(header))],
                        skip_rows_after_names=int(first),
                    ),
                    pcsv.ParseOptions(
                        delimiter=delimiter,
                        quote_char=dialect.quote or False,
                        # A block ends with a row, so Arrow need not look for its end, but for
                        # that of the header.
                        newlines_in_values=first and bool(dialect.quote),
                        invalid_row_handler=refuse,
                    ),
                    pcsv.ConvertOptions(
                        column_types=kinds or {"0": pa.string()},
                        include_columns=list(kinds) or ["0"],
                        strings_can_be_null=False,
                        check_utf8=False,
                    ),
                )
            except pa.ArrowInvalid as error:
                raise self._unparsed(file, str(error)) from error
            known = [n + number - 1 for n, _, _ in bad]
            refused = [
                CorruptLine(file.path, row, what, text)
                for (_, what, text), row in zip(bad, known, strict=True)
            ]
            number += first
            numbers = _numbered(number, table.num_rows, known)
            number += table.num_rows + len(bad)
            first = False
            bad.clear()
            if table.num_rows:
                columns = {
                    name: self._with_nulls(_whole(table.column(str(place))))
                    for name, place in wanted.items()
                }
                yield RawBatch(columns, numbers)
            yield from refused

    def _with_nulls(self, column: pa.Array) -> pa.Array:
        if not self.dialect.null:
            return column
        if pa.types.is_dictionary(column.type):
            terms = self._with_nulls(column.dictionary).fill_null("")
            return pa.DictionaryArray.from_arrays(column.indices, terms)
        absent = pc.is_in(column, value_set=pa.array(self.dialect.null, pa.string()))
        return pc.if_else(absent, pa.scalar(None, pa.string()), column)

    def _unparsed(self, file: DataFile, reason: str) -> InputError:
        if "Empty CSV" in reason:
            return InputError(f"{file.path} is empty: nothing to read")
        return InputError(f"{file.path} is not a CSV file: {' '.join(reason.split())}")

    # Parquet.

    def _open_parquet(
        self,
        file: DataFile,
        coded: Collection[str] = (),
        metadata: pq.FileMetaData | None = None,
    ) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(open_random(file), metadata=metadata, read_dictionary=list(coded))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file.path} is not a Parquet file: {error}") from error

    def metadata(self, shard: Shard) -> pq.FileMetaData:
        """The metadata of the Parquet file of a shard."""
        return self._open_parquet(self.files[shard.number]).metadata

    def _parquet_shards(self, file: DataFile) -> list[Shard]:
        opened = self._open_parquet(file)
        self._check(file, opened.schema_arrow.names)
        return [Shard(file.path, "", g, g + 1) for g in range(opened.num_row_groups)]

    def _parquet(self, file: DataFile, shard: Shard) -> Iterator[Raw]:
        opened = self._open_parquet(file)
        schema = opened.schema_arrow
        wanted = [name for name in self.names if name in schema.names]
        coded = [n for n in self.coded if n in wanted and schema.field(n).type in _TEXTS]
        if coded:
            opened = self._open_parquet(file, coded, opened.metadata)
        groups = list(range(shard.start, shard.end))
        number = 1 + sum(opened.metadata.row_group(g).num_rows for g in range(shard.start))
        rows = _VALUES_A_BATCH // max(1, len(wanted))
        for batch in opened.iter_batches(rows, row_groups=groups, columns=wanted):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield RawBatch(columns, np.arange(number, number + batch.num_rows))
            number += batch.num_rows

    # JSON lines.

    def _json_columns(self, file: DataFile) -> list[str]:
        head = self._head(file)
        cut = len(head) == 1 << 20
        if not self.dialect.is_utf8:
            head = head.decode(self.dialect.encoding or "", "replace").encode()
        head = head.removeprefix(codecs.BOM_UTF8)
        if head.lstrip().startswith(b"["):
            raise InputError(
                f"{file.path} is one JSON document: write an object a line (JSON lines)"
            )
        lines = head.rpartition(b"\n")[0] if cut and b"\n" in head else head
        names: list[str] = []
        for item in _parsed(file.path, lines, 1, None, ()):
            if isinstance(item, RawBatch):
                names += [name for name in item.columns if name not in names]
        if not names:
            raise InputError(f"{file.path} has no JSON objects, one a line")
        return names

    def _json(self, file: DataFile, shard: Shard) -> Iterator[Raw]:
        number, null = 1, self.dialect.null
        in_path = {name for name, _ in file.partitions}
        with open_stream(file) as stream:
            for lines in _whole_lines(_utf8_blocks(stream, self.dialect), file.path):
                for item in _parsed(file.path, lines, number, self.names, self.exact, null):
                    if isinstance(item, RawBatch):
                        rows = len(item.numbers)
                        columns = {
                            name: self._json_nulls(item.columns[name])
                            if name in item.columns
                            else pa.nulls(rows)
                            for name in self.names
                            if name in item.columns or name not in in_path
                        }
                        item = item._replace(columns=columns)
                    yield item
                number += lines.count(b"\n")

    def _json_nulls(self, column: pa.Array) -> pa.Array:
        return self._with_nulls(column) if pa.types.is_string(column.type) else column

    # TFRecords of tf.Examples.

    def records(self, shard: Shard) -> Iterator[bytes]:
        """Yields the serialised records of a TFRecord file.

        Raises:
          InputError: It is not such a file, or damaged.
        """
        yield from self._records(self.files[shard.number])

    def _records(self, file: DataFile) -> Iterator[bytes]:
        for batch in self._record_batches(file):
            yield from batch

    def _record_batches(self, file: DataFile) -> Iterator[list[bytes]]:
        import tensorflow as tf

        compression = {"gzip": "GZIP", "": ""}.get(file.compression)
        if compression is None:
            raise InputError(f"{file.path}: TFRecords are plain or .gz")
        records = tf.data.TFRecordDataset(file.path, compression_type=compression)
        try:
            for batch in records.batch(_RECORDS_A_BATCH):
                yield list(batch.numpy())
        except tf.errors.DataLossError as error:
            raise InputError(f"{file.path} is not a TFRecord file, or damaged") from error
        except tf.errors.OpError as error:
            raise unreadable(file.path, error) from error

    def _examples(self, file: DataFile, shard: Shard) -> Iterator[Raw]:
        number = 1
        seen = {name for name, _ in file.partitions}
        for serialized in self._record_batches(file):
            for item in _of_examples(file, serialized, number, self.names):
                if isinstance(item, RawBatch):
                    seen |= {n for n, column in item.columns.items() if len(column.values)}
                    item = item._replace(columns=self.without_path(file, item.columns))
                yield item
            number += len(serialized)
        self.check_seen(file, seen, number - 1)

    def without_path(
        self, file: DataFile, columns: Mapping[str, pa.ListArray]
    ) -> dict[str, pa.Array]:
        """Leaves out empty columns that the path of the file has."""
        in_path = {name for name, _ in file.partitions}
        return {n: c for n, c in columns.items() if len(c.values) or n not in in_path}

    def check_seen(self, file: DataFile, seen: Collection[str], records: int) -> None:
        """Checks that records have the features that are asked for.

        Args:
          file: The file that was read.
          seen: Features that a record of it has.
          records: Number of its records.

        Raises:
          InputError: No record has one of them.
        """
        for name in self.names if records else ():
            if name not in seen:
                raise InputError(
                    f"{file.path} has no record with a feature {name!r}: correct the file or the "
                    "feature spec"
                )


def _numbered(start: int, rows: int, without: list[int]) -> NDArray[np.int64]:
    """The next `rows` numbers from `start` that are not among `without`."""
    if not without:
        return np.arange(start, start + rows)
    numbers = np.arange(start, start + rows + len(without))
    return np.setdiff1d(numbers, np.asarray(without), assume_unique=True)[:rows]


def _utf8_blocks(stream: pa.NativeFile, dialect: Dialect) -> Iterator[bytes]:
    """Yields a text as UTF-8, without a byte order mark.

    Raises:
      UnicodeError: It is not in the encoding.
    """
    decoder = None
    if not dialect.is_utf8:
        decoder = codecs.getincrementaldecoder(dialect.encoding or "")()
    first = True
    while True:
        block = stream.read(_READ_BYTES)
        text = block if decoder is None else decoder.decode(block, not block).encode()
        if first and text:
            text, first = text.removeprefix(codecs.BOM_UTF8), False
        if text:
            yield text
        if not block:
            break


class _CsvRows:
    """Cuts a CSV text between rows, and cleans it so that Arrow reads the rows as they are meant.

    Arrow ends a row at every carriage return, and lets text follow a closing quote: rows that were
    swallowed by a quote left open are then one value. Such places get more delimiters than there
    are columns, with a mark that says why.

    Args:
      path: Name of the file, for messages.
      delimiter: Between columns.
      quote: Around values; empty for none.
      columns: Number of columns.
      returns: Whether lines end with a carriage return.
    """

    def __init__(self, path: str, delimiter: str, quote: str, columns: int, returns: bool) -> None:
        self._path, self._unclosed = path, False
        self._quote, self._returns = quote.encode(), returns
        self._end = b"\r" if returns else b"\n"
        self._after = delimiter.encode() + b"\r\n" + self._quote
        fill = delimiter.encode() * (columns + 1)
        self._stray_return = _STRAY_RETURN.encode() + fill
        self._stray_quote = _STRAY_QUOTE.encode() + fill
        starts = re.escape(delimiter.encode()) + b"\r\n"
        places = []
        if quote:
            places.append(b"(?<=[" + starts + b"])" + re.escape(self._quote))
        if not returns:
            places.append(b"\r(?!\n)")
        self._place = re.compile(b"|".join(places) or b"(?!)")

    def blocks(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yields whole rows.

        Args:
          blocks: The text.

        Raises:
          InputError: A quote is not closed, or a row is too long.
        """
        # What follows a quote or a return decides what it means: it is held.
        held, before, begun = b"", b"\n", False
        waiting: list[bytes] = []
        ready: list[bytes] = []
        block: bytes | None = b""
        while block is not None:
            block = next(blocks, None)
            text = held + (block or b"")
            if not begun:
                # A blank line before the header.
                text = text.lstrip(b"\r\n")
                begun = bool(text)
            if block is None:
                text, held = text + b"\n", b""
            else:
                kept = text.rstrip(self._quote + b"\r")
                text, held = kept, text[len(kept) :]
            if not text:
                continue
            clean, end = self._cleaned(text, before)
            before = text[-1:]
            if block is None and not self._unclosed:
                end = len(clean)
            if end:
                ready += [*waiting, clean[:end]]
                waiting = []
            if sum(map(len, ready)) >= (_PARSED_BYTES if block is not None else 1):
                rows = b"".join(ready)
                if rows.strip(b"\r\n"):
                    yield rows
                ready = []
            waiting.append(clean[end:])
            if sum(map(len, waiting)) > _BLOCK_BYTES:
                break
        if self._unclosed:
            raise InputError(
                f"{self._path}: a quote is opened and not closed: correct the file, or write "
                "'quote: \"\"' in the feature spec if quotes have no meaning in it"
            )
        if block is not None:
            raise InputError(
                f"{self._path} has a row of more than {_BLOCK_BYTES >> 20} MiB: is it another "
                "format?"
            )

    def _cleaned(self, text: bytes, before: bytes) -> tuple[bytes, int]:
        """Returns a text as Arrow should read it, and where the last row in it ends."""
        returns = 0 if self._returns else text.count(b"\r")
        stray = returns > 0 and returns != text.count(b"\r\n")
        if not self._quote or self._quote not in text:
            if self._unclosed:
                return text, 0
            return self._marked(text, before) if stray else (text, text.rfind(self._end) + 1)
        data = np.frombuffer(text, np.uint8)
        places = np.flatnonzero(data == self._quote[0])
        opening, closing = places[self._unclosed :: 2], places[1 - self._unclosed :: 2]
        known = np.zeros(256, bool)
        known[np.frombuffer(self._after, np.uint8)] = True
        # Quotes at the ends of a block are held, so that one follows each.
        previous = np.where(opening > 0, data[opening - 1], before[0])
        if not (known[previous].all() and known[data[closing + 1]].all()):
            return self._marked(text, before)
        if stray:
            ends = np.flatnonzero(data == 13)
            ends = ends[data[ends + 1] != 10]
            if not self._within(places, ends).all():
                return self._marked(text, before)
        end = text.rfind(self._end)
        while end >= 0 and self._within(places, np.array([end]))[0]:
            opened = np.searchsorted(places, end)
            end = text.rfind(self._end, 0, int(places[opened - 1])) if opened else -1
        self._unclosed ^= bool(len(places) % 2)
        return text, end + 1

    def _within(self, quotes: NDArray[Any], places: NDArray[Any]) -> NDArray[Any]:
        """Which places of a text are within quotes."""
        within: NDArray[Any] = (np.searchsorted(quotes, places) + self._unclosed) % 2 == 1
        return within

    def _marked(self, text: bytes, before: bytes) -> tuple[bytes, int]:
        """The same character by character, with marks at stray returns and after stray quotes."""
        given, place, parts, end = before + text, 1, [], 0
        length = 0

        def put(part: bytes, outside: bool) -> None:
            nonlocal length, end
            if outside and (found := part.rfind(self._end)) >= 0:
                end = length + found + 1
            parts.append(part)
            length += len(part)

        while True:
            if self._unclosed:
                closed = given.find(self._quote, place)
                if closed < 0:
                    break
                if given[closed + 1 : closed + 2] == self._quote:
                    put(given[place : closed + 2], False)
                    place = closed + 2
                    continue
                self._unclosed = False
                put(given[place : closed + 1], False)
                place = closed + 1
                if given[place : place + 1] not in self._after:
                    put(self._stray_quote, False)
                continue
            found = self._place.search(given, place)
            if found is None:
                break
            put(given[place : found.start()], True)
            place = found.end()
            self._unclosed = found[0] == self._quote
            put(found[0] if self._unclosed else self._stray_return, False)
        put(given[place:], not self._unclosed)
        return b"".join(parts), end


def _whole_lines(blocks: Iterable[bytes], path: str) -> Iterator[bytes]:
    """Cuts a text between lines.

    Raises:
      InputError: A line is too long.
    """
    held: list[bytes] = []
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join((*held, block[:end]))
            held = []
        held.append(block[end:])
        if sum(map(len, held)) > 8 * _BLOCK_BYTES:
            raise InputError(
                f"{path} has a line of more than {8 * _BLOCK_BYTES >> 20} MiB: is it one JSON "
                "document? write an object a line"
            )
    if rest := b"".join(held):
        yield rest


def _parsed(
    path: str,
    lines: bytes,
    number: int,
    names: Sequence[str] | None,
    exact: Collection[str],
    null: Sequence[str] = (),
) -> Iterator[Raw]:
    """Parses JSON lines: as a whole with Arrow if they fit together, else line by line.

    Args:
      path: Name of the file, for messages.
      lines: Whole lines.
      number: Number of the first.
      names: Columns that are needed; all if None.
      exact: Columns whose whole numbers must not lose digits.
      null: Texts that stand for a missing value.
    """
    parts = lines.split(b"\n")
    filled = [place for place, line in enumerate(parts) if line.strip()]
    table = None
    # Arrow's parser ends the process at a line that is no object, or nested without end.
    if all(parts[place].lstrip()[:1] == b"{" for place in filled) and b"[" * 64 not in lines:
        table = _read_json(lines)
    if filled and (table is None or len(filled) != table.num_rows or _inexact(table, exact)):
        yield from _of_objects(path, [(number + n, parts[n]) for n in filled], names, null)
    elif table is not None and filled:
        numbers = number + np.asarray(filled)
        yield RawBatch({name: _whole(table[name]) for name in table.column_names}, numbers)


def _of_objects(
    path: str, lines: Sequence[tuple[int, bytes]], names: Sequence[str] | None, null: Sequence[str]
) -> Iterator[Raw]:
    """Columns of JSON objects that Arrow does not read as one table."""
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in lines:
        text = line[:80].decode("utf-8", "replace").strip()
        try:
            row = json.loads(line.decode())
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeDecodeError:
            what = "is not UTF-8: name the encoding of the file in the feature spec, for instance "
            yield CorruptLine(path, number, f"{what}'encoding: latin-1'", text)
        except (ValueError, RecursionError):
            yield CorruptLine(path, number, "is not one JSON object", text)
        else:
            if isinstance(row, dict):
                present = {n: v for n, v in row.items() if not (isinstance(v, str) and v in null)}
                rows.append((number, present if null and names is not None else row))
            else:
                yield CorruptLine(path, number, "is not one JSON object", text)
    if names is None:
        names = list(dict.fromkeys(name for _, row in rows for name in row))
    yield from _columns_of_objects(rows, names)


def _columns_of_objects(
    rows: Sequence[tuple[int, Mapping[str, Any]]], names: Sequence[str]
) -> Iterator[RawBatch]:
    """Columns of objects; rows whose values have no type in common with others come after them."""
    if not rows:
        return
    columns, apart = {}, np.zeros(len(rows), bool)
    for name in names:
        values = [row.get(name) for _, row in rows]
        kinds = {_json_kind(value) for value in values} - {"null"}
        if len(kinds) > 1 and not kinds <= {"int", "float"}:
            texts = [_json_text(value) for value in values]
            apart |= [t is None and v is not None for t, v in zip(texts, values, strict=True)]
            values = texts
        elif kinds == {"int", "float"} and any(_is_long(value) for value in values):
            values = [v if isinstance(v, float) else _json_text(v) for v in values]
            apart |= [isinstance(value, float) for value in values]
        columns[name] = values
    if apart.all() or (apart.any() and len(rows) == 1):
        apart[:] = False
        columns = {name: [row.get(name) for _, row in rows] for name in names}
    kept = np.flatnonzero(~apart)
    numbers = np.array([number for number, _ in rows])
    yield RawBatch(
        {n: _json_array([values[row] for row in kept]) for n, values in columns.items()},
        numbers[kept],
    )
    alike: dict[tuple[str, ...], list[tuple[int, Mapping[str, Any]]]] = {}
    for row in np.flatnonzero(apart):
        kind = tuple(_json_kind(rows[row][1].get(name)) for name in names)
        alike.setdefault(kind, []).append(rows[row])
    for some in alike.values():
        yield from _columns_of_objects(some, names)


def _is_long(value: Any) -> bool:
    """Whether a whole number may lose digits as a float."""
    return isinstance(value, int) and abs(value) > 2**53


def _json_kind(value: Any) -> str:
    """The type of a value, elements of lists included."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"list of {'|'.join(sorted({_json_kind(v) for v in value} - {'null'}))}"
    if type(value) is int and not -(2**63) <= value < 2**63:
        return "too long"
    return type(value).__name__


def _json_text(value: Any) -> str | None:
    """The text of a value that stands for the same as the value; None if there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return str(int(value))
    return str(value) if _json_kind(value) == "int" else None


def _json_array(values: list[Any]) -> pa.Array:
    kinds = {_json_kind(value) for value in values} - {"null"}
    if "too long" in kinds:
        # No whole number of 64 bits, and none for which a float may stand.
        values = [None if value is None else float(str(value)) for value in values]
    elif any(kind.startswith("list of") for kind in kinds):
        texts = len(kinds) > 1 or any("|" in kind or "too long" in kind for kind in kinds)
        if texts and all(isinstance(value, list) for value in values if value is not None):
            values = [v and [e if e is None else str(e) for e in v] for v in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        # Objects of objects: nothing that a column could be.
        return pa.array([{"object": str(value)[:80]} for value in values])


def _read_json(lines: bytes, texts: Sequence[str] = ()) -> pa.Table | None:
    """Reads JSON lines as a table; None if that is not possible."""
    schema = pa.schema([(name, pa.string()) for name in texts]) if texts else None
    options = pjson.ReadOptions(use_threads=False, block_size=max(len(lines) + 1, 1024))
    try:
        table = pjson.read_json(
            pa.BufferReader(lines), options, pjson.ParseOptions(explicit_schema=schema)
        )
    except (pa.ArrowException, UnicodeError):
        return None
    if len(set(table.column_names)) < table.num_columns:
        return None
    # Texts that look like times stay texts.
    times = [f.name for f in table.schema if pa.types.is_timestamp(f.type)]
    if any(pa.types.is_nested(f.type) and "timestamp" in str(f.type) for f in table.schema):
        return None
    if times and not texts:
        return _read_json(lines, times)
    # Arrow does not check that text is UTF-8.
    return table if not times and is_utf8(lines) else None


def is_utf8(text: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _inexact(table: pa.Table, exact: Collection[str]) -> bool:
    """Whether whole numbers may have lost digits, because others in the column are no integers."""
    for name in exact:
        if name in table.column_names and pa.types.is_floating(table[name].type):
            largest = pc.max(pc.abs(table[name])).as_py()
            if largest is not None and largest > 2**53:
                return True
    return False


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        chunks = combined.chunks
        return pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    return combined


_PARSED_KINDS = {"bytes_list": "string", "int64_list": "int64", "float_list": "float32"}
_ARROW_KINDS = {"bytes_list": pa.binary(), "int64_list": pa.int64(), "float_list": pa.float32()}


def _kinds(serialized: bytes) -> list[tuple[str, str]]:
    """Names and kinds of the features of a serialised `tf.Example` that have values."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        features = tf.train.Example.FromString(serialized).features.feature
    except DecodeError:
        return []
    return [(name, kind) for name, f in features.items() if (kind := f.WhichOneof("kind"))]


def _of_examples(
    file: DataFile, serialized: list[bytes], number: int, names: Sequence[str]
) -> Iterator[Raw]:
    """Columns of lists of serialised `tf.Example`s."""
    import tensorflow as tf

    kinds: dict[str, str] = {}
    for record in serialized[:64]:
        kinds |= dict(_kinds(record))
    wanted = {name: kinds.get(name, "bytes_list") for name in names}
    spec = {n: tf.io.VarLenFeature(_PARSED_KINDS[kind]) for n, kind in wanted.items()}
    try:
        sparse = tf.io.parse_example(serialized, spec)
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        yield from _of_each_example(file, serialized, number, names)
        return
    columns = {}
    for name, kind in wanted.items():
        values = sparse[name].values.numpy()
        counts = np.bincount(sparse[name].indices.numpy()[:, 0], minlength=len(serialized))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        flat = pa.array(values, _ARROW_KINDS[kind])
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), flat)
    yield RawBatch(columns, np.arange(number, number + len(serialized)))


def _of_each_example(
    file: DataFile, serialized: list[bytes], number: int, names: Sequence[str]
) -> Iterator[Raw]:
    """The same where examples are corrupt, or store a feature now as one type, now as another."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    for place, record in enumerate(serialized, number):
        try:
            example = tf.train.Example.FromString(record)
        except DecodeError:
            yield CorruptLine(file.path, place, "is not a tf.Example", "")
            continue
        columns = {}
        for name in names:
            values = stored_values(example, name)
            columns[name] = pa.array([values], None if values else pa.list_(pa.binary()))
        yield RawBatch(columns, np.array([place]))


def stored_values(example: Any, name: str) -> list[Any]:
    """Returns the values of a feature of a `tf.train.Example`; empty if it is missing."""
    if name not in example.features.feature:
        return []
    stored = example.features.feature[name]
    kind = stored.WhichOneof("kind")
    return list(getattr(stored, kind).value) if kind else []


def as_python(values: pa.Array, row: int) -> list[Any]:
    """The values of a row as a list, for messages."""
    value = values[row]
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        if not value.is_valid:
            return []
        text = value.as_buffer().to_pybytes()
        try:
            return [text.decode()]
        except UnicodeDecodeError:
            return [text]
    try:
        found = value.as_py()
    except (UnicodeDecodeError, ValueError, OverflowError):
        return ["a value that cannot be shown"]
    if found is None:
        return []
    return found if isinstance(found, list) else [found]
