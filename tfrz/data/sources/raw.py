"""Rows of files as Arrow columns of whatever type they were written in.

`RawFiles` reads CSV, JSON lines, Parquet and TFRecords of `tf.Example`s, plain or compressed, in
batches. Rows that cannot be parsed come out as `CorruptLine`s; whether the values have the right
types is decided later, by `tfrz.data.sources.values`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.json as pjson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tfrz.config import from_mapping, require
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

_ROWS_A_BATCH = 1 << 18
# A plain CSV file without quotes is read in parts of this size.
_PART_BYTES = 32 << 20
# No row may be longer.
_BLOCK_BYTES = 8 << 20
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
            require(value is None or len(value) == 1, name, "must be one character")
        require(len(self.quote) <= 1, "quote", "must be one character, or empty for none")
        require(bool(self.separator), "separator", "must not be empty")
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except LookupError:
                require(False, "encoding", f"{self.encoding!r} is not known to Python")


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


class RawFiles:
    """The files of a source.

    Args:
      given: As `find` takes it.
      names: Columns to read.
      dialect: How text files are written.
      named: How messages call `given`.
      exact: Columns whose whole numbers must not lose digits.
    """

    def __init__(
        self,
        given: str,
        names: Sequence[str],
        dialect: Dialect | None = None,
        named: str = "the path given to --data",
        exact: Collection[str] = (),
    ) -> None:
        self.given, self.names = given, tuple(names)
        self.dialect = dialect or Dialect()
        self.exact = tuple(exact)
        self.files = find(given, named)

    @property
    def format(self) -> str:
        """The format of the files."""
        return self.files[0].format

    def shards(self) -> list[Shard]:
        """Returns parts that cover the files once.

        Raises:
          InputError: A file cannot be read, is of another format, or lacks a column.
        """
        shards: list[Shard] = []
        for number, file in enumerate(self.files):
            if self.format == "json":
                self._check(file, self._json_columns(file))
            parts = [Shard(file.path)]
            if self.format == "csv":
                parts = self._csv_shards(file)
            elif self.format == "parquet":
                parts = self._parquet_shards(file)
            shards += [dataclasses.replace(part, number=number) for part in parts]
        return shards

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
        try:
            for item in read[self.format](file, shard):
                if isinstance(item, RawBatch):
                    rows = len(item.numbers)
                    columns = with_partitions(item.columns, file, self.names, rows)
                    item = item._replace(columns=columns)
                yield item
        except (pa.ArrowException, OSError, EOFError) as error:
            raise unreadable(file.path, error) from error

    def columns_of(self, file: DataFile) -> list[str]:
        """Returns the names of all columns of a file, those in its path included.

        Raises:
          InputError: It cannot be read, or has no columns.
        """
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
        present = [*present, *(name for name, _ in file.partitions)]
        for name in self.names:
            if name not in present:
                raise InputError(
                    f"{file.path} has no column {name!r} (it has {', '.join(present[:12])}): "
                    "correct the file or the feature spec"
                )
            if present.count(name) > 1 and file.format == "csv":
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

    def _delimited(self, file: DataFile) -> tuple[str, list[str]]:
        """Returns the delimiter and the header."""
        head = self._head(file)
        text = head.decode(self.dialect.encoding or "utf-8-sig", "replace").lstrip("\r\n")
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
        best = min(read, key=lambda d: (missing[d], -len(read[d]), _DELIMITERS.index(d)))
        if fixed is not None:
            best = fixed
        return best, read[best]

    def _csv_shards(self, file: DataFile) -> list[Shard]:
        self._check(file, self._header(file))
        whole = [Shard(file.path)]
        if file.compression or not (self.dialect.encoding or "utf-8").lower().startswith("utf-8"):
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
                if (quote and quote in block) or b"\n\n" in block or b"\n\r" in block:
                    return whole
                shards.append(Shard(file.path, "", start, start + len(block), line))
                start += len(block)
                line += block.count(b"\n")
        return shards

    def _csv(self, file: DataFile, shard: Shard) -> Iterator[Raw]:
        delimiter, header = self._delimited(file)
        wanted = [name for name in self.names if name in header]
        first = shard.start == 0
        last = header[-1]
        bad: list[tuple[int, str, str]] = []

        def refuse(row: pcsv.InvalidRow) -> str:
            what = f"{row.actual_columns} fields instead of {row.expected_columns}"
            bad.append((row.number, what, row.text[:80]))
            return "skip"

        dialect = self.dialect
        # The last column shows whether a quote was left open.
        read = list(dict.fromkeys((*wanted, last)))
        options = {
            "read_options": pcsv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                column_names=None if first else header,
                encoding=dialect.encoding or "utf8",
            ),
            "parse_options": pcsv.ParseOptions(
                delimiter=delimiter,
                quote_char=dialect.quote or False,
                newlines_in_values=bool(dialect.quote),
                invalid_row_handler=refuse,
            ),
            "convert_options": pcsv.ConvertOptions(
                column_types={name: pa.string() for name in read},
                include_columns=read,
                strings_can_be_null=False,
                check_utf8=False,
            ),
        }
        if shard.end:
            with open_random(file) as whole:
                whole.seek(shard.start)
                stream = pa.BufferReader(whole.read_buffer(shard.end - shard.start))
        else:
            stream = open_stream(file)
        number = shard.first_line + (1 if first else 0)
        tail = b""
        try:
            batches = pcsv.open_csv(stream, **options)
            while True:
                try:
                    batch = batches.read_next_batch()
                except StopIteration:
                    break
                known = [n + shard.first_line - 1 for n, _, _ in bad]
                numbers = _numbered(number, batch.num_rows, known)
                refused = [
                    CorruptLine(file.path, row, what, text)
                    for (_, what, text), row in zip(bad, known, strict=True)
                ]
                bad.clear()
                if batch.num_rows:
                    number = int(numbers[-1]) + 1
                    tail = batch.column(last)[-1].as_buffer().to_pybytes()
                    columns = {n: self._with_nulls(batch.column(n)) for n in wanted}
                    yield RawBatch(columns, numbers)
                yield from refused
        except pa.ArrowInvalid as error:
            raise self._unparsed(file, str(error)) from error
        except UnicodeError as error:
            raise InputError(
                f"{file.path} is not {dialect.encoding or 'UTF-8'}: correct 'encoding' in the "
                "feature spec"
            ) from error
        for number, what, text in bad:
            yield CorruptLine(file.path, number + shard.first_line - 1, what, text)
        if b"\n" in tail and dialect.quote and not self._ends_quoted(file, shard):
            raise InputError(
                f"{file.path}: a quote is opened in the last row and not closed: correct the "
                "file, or write 'quote: \"\"' in the feature spec if quotes have no meaning in it"
            )

    def _ends_quoted(self, file: DataFile, shard: Shard) -> bool:
        """Whether the text ends with a quote, line ends aside."""
        if shard.end:
            return False
        last = b""
        with open_stream(file) as stream:
            while block := stream.read(_BLOCK_BYTES):
                last = (last + block)[-4096:]
        text = bytes(last).decode(self.dialect.encoding or "utf-8", "replace")
        return text.rstrip("\r\n").endswith(self.dialect.quote)

    def _with_nulls(self, column: pa.Array) -> pa.Array:
        if not self.dialect.null:
            return column
        absent = pc.is_in(column, value_set=pa.array(self.dialect.null, pa.string()))
        return pc.if_else(absent, pa.scalar(None, pa.string()), column)

    def _unparsed(self, file: DataFile, reason: str) -> InputError:
        if "straddling" in reason:
            return InputError(
                f"{file.path} has a row of more than {_BLOCK_BYTES >> 20} MiB: is a quote not "
                "closed, or is it another format?"
            )
        if "Empty CSV" in reason:
            return InputError(f"{file.path} is empty: nothing to read")
        return InputError(f"{file.path} is not a CSV file: {' '.join(reason.split())}")

    # Parquet.

    def _open_parquet(self, file: DataFile) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(open_random(file))
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
        groups = list(range(shard.start, shard.end))
        number = 1 + sum(opened.metadata.row_group(g).num_rows for g in range(shard.start))
        for batch in opened.iter_batches(_ROWS_A_BATCH, row_groups=groups, columns=wanted):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield RawBatch(columns, np.arange(number, number + batch.num_rows))
            number += batch.num_rows

    # JSON lines.

    def _json_columns(self, file: DataFile) -> list[str]:
        head = self._head(file)
        text = head.decode("utf-8-sig", "replace").lstrip()
        if text.startswith("["):
            raise InputError(
                f"{file.path} is one JSON document: write an object a line (JSON lines)"
            )
        lines = head.rsplit(b"\n", 1)[0] if head.count(b"\n") else head
        names: list[str] = []
        for item in _parsed(file.path, lines, 1, ()):
            if isinstance(item, RawBatch):
                names += [name for name in item.columns if name not in names]
        if not names:
            raise InputError(f"{file.path} has no JSON objects, one a line")
        return names

    def _json(self, file: DataFile, shard: Shard) -> Iterator[Raw]:
        number, rest = 1, b""
        encoding = self.dialect.encoding
        with open_stream(file) as stream:
            while True:
                block = stream.read(_BLOCK_BYTES)
                text = rest + block
                if block:
                    end = text.rfind(b"\n") + 1
                    if not end:
                        if len(text) > 8 * _BLOCK_BYTES:
                            raise InputError(f"{file.path}:{number}: a line is too long")
                        rest = text
                        continue
                    text, rest = text[:end], text[end:]
                if text.strip():
                    if encoding is not None and encoding.lower() not in ("utf8", "utf-8"):
                        text = text.decode(encoding, "replace").encode()
                    for item in _parsed(file.path, text, number, self.exact):
                        if isinstance(item, RawBatch):
                            rows = len(item.numbers)
                            columns = {
                                name: self._json_nulls(item.columns[name])
                                if name in item.columns
                                else pa.nulls(rows)
                                for name in self.names
                                if name in item.columns
                                or name not in (n for n, _ in file.partitions)
                            }
                            item = item._replace(columns=columns)
                        yield item
                number += text.count(b"\n")
                if not block:
                    break

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
        for serialized in self._record_batches(file):
            yield from _of_examples(file, serialized, number, self.names)
            number += len(serialized)


def _numbered(start: int, rows: int, without: list[int]) -> NDArray[np.int64]:
    """The next `rows` numbers from `start` that are not among `without`."""
    if not without:
        return np.arange(start, start + rows)
    numbers = np.arange(start, start + rows + len(without))
    return np.setdiff1d(numbers, np.asarray(without), assume_unique=True)[:rows]


def _parsed(path: str, lines: bytes, number: int, exact: Collection[str]) -> Iterator[Raw]:
    """Parses JSON lines; where some do not fit together, halves of them on their own."""
    if not lines.strip():
        return
    table = _read_json(lines)
    if table is not None and not _inexact(table, exact):
        numbers = np.arange(number, number + table.num_rows)
        if table.num_rows != lines.count(b"\n") + (not lines.endswith(b"\n")):
            some = [i for i, line in enumerate(lines.split(b"\n")) if line.strip()]
            # A line with two objects, or an object on two lines.
            if len(some) != table.num_rows:
                table = None
            else:
                numbers = number + np.asarray(some)
        if table is not None:
            columns = {name: _whole(table[name]) for name in table.column_names}
            yield RawBatch(columns, numbers)
            return
    parts = lines.removesuffix(b"\n").split(b"\n")
    if len(parts) == 1:
        if table is not None:
            yield RawBatch({n: _whole(table[n]) for n in table.column_names}, np.array([number]))
            return
        text = lines[:80].decode("utf-8", "replace").strip()
        yield CorruptLine(path, number, "is not one JSON object", text)
        return
    half = len(parts) // 2
    yield from _parsed(path, b"\n".join(parts[:half]), number, exact)
    yield from _parsed(path, b"\n".join(parts[half:]), number + half, exact)


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
    # Texts that look like times stay texts.
    times = [f.name for f in table.schema if pa.types.is_timestamp(f.type)]
    return _read_json(lines, [*texts, *times]) if times else table


def _inexact(table: pa.Table, exact: Collection[str]) -> bool:
    """Whether whole numbers may have lost digits, because others in the column are no integers."""
    for name in exact:
        if name in table.column_names and pa.types.is_floating(table[name].type):
            largest = pc.max(pc.abs(table[name])).as_py()
            if largest is not None and largest > 2**53:
                return bool(table.num_rows > 1)
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
