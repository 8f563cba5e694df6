"""What the columns of files contain: types, separators, null words, times and heavy tails.

`profile_files` reads the first rows of files of any format and describes each column;
`tfrz.data.inference` turns that into a feature spec.
"""

from __future__ import annotations

import codecs
import dataclasses
import logging
import re
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tfrz.data.sources import values
from tfrz.data.sources.locations import DataFile, find, open_stream
from tfrz.data.sources.raw import Dialect, RawBatch, RawFiles
from tfrz.errors import InputError

# Words that stand for nothing in every column, and those that do so only among numbers.
_NULLS = ("\\N", "NULL", "null", "NaN", "nan", "None", "<NA>", "NaT")
_NULLS_AMONG_NUMBERS = ("NA", "N/A", "n/a", "na", "none", "-", "--", "?", ".", "#N/A")
_SEPARATORS = ("|", ";", ",", " ")
# A column of numbers may have this share of other texts: their rows are corrupt.
_STRAY = 0.01
_HEAD_BYTES = 8 << 20
# 1995 to 2040, in Unix seconds.
_FIRST, _LAST = 788_918_400, 2_208_988_800
_DATE = r"^\d{4}-\d{2}-\d{2}([T ].*)?$"
_DECIMAL_COMMA = r"^[+-]?\d+,\d+$"
_PYTHON_LIST = r"^\[.*\]$"

Kind = Literal["integer", "real", "text", "truth", "time", "list", "other"]


@dataclasses.dataclass
class Profile:
    """What is known about a column.

    Attributes:
      name: Name of the column.
      kind: What its values are: whole numbers, numbers, texts, truth values, times, lists, or
        values that no feature can hold.
      typed: The type in the file, in words.
      rows: Number of rows.
      missing: Number of rows without a value.
      distinct: Number of different values; of lists, of their members.
      codes: A number for each row that is equal where values are; -1 for a missing one. None for
        lists.
      numbers: The numbers, missing ones left out; None for other kinds.
      members: Kind of the members of a list.
      separator: Between the values of a text that is a list; None for none.
      share: Share of the texts that have the separator.
      unit: How times are written: seconds, milliseconds, dates and so on; for numbers, the unit
        in which all of them would lie between 1995 and 2040.
      top: The most frequent values, cut after 30 characters.
      words: All values of a column of at most 20 texts, the most frequent first.
      padded: Whether the texts of whole numbers must be kept: they begin with zeros, or have a
        decimal comma.
      stray: Number of texts among numbers.
      length: Mean length of texts.
      note: What else a reader of the spec should know; empty for nothing.
    """

    name: str
    kind: Kind
    typed: str
    rows: int
    missing: int = 0
    distinct: int = 0
    codes: NDArray[Any] | None = None
    numbers: NDArray[Any] | None = None
    members: Kind | None = None
    separator: str | None = None
    share: float = 0.0
    unit: str | None = None
    top: list[str] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)
    padded: bool = False
    stray: int = 0
    length: float = 0.0
    note: str = ""

    @property
    def present(self) -> int:
        """Number of rows with a value."""
        return self.rows - self.missing

    @property
    def unique(self) -> bool:
        """Whether each of many rows has a value of its own."""
        return self.present >= 20 and self.distinct == self.present and self.kind != "list"

    @property
    def binary(self) -> bool:
        """Whether all values are 0 or 1, or truth values, and both occur."""
        if self.kind == "truth":
            return self.distinct == 2
        found = self.numbers
        return found is not None and self.distinct == 2 and bool(np.isin(found, (0.0, 1.0)).all())

    @property
    def heavy_tail(self) -> float | None:
        """How many times its 99th percentile is its median, if more than ten; else None."""
        found = self.numbers
        if found is None or len(found) < 20 or found.min() < 0:
            return None
        positive = found[found > 0]
        if len(positive) < 20:
            return None
        ratio = float(np.quantile(positive, 0.99) / np.median(positive))
        return ratio if ratio > 10 else None


@dataclasses.dataclass
class Table:
    """The first rows of files.

    Attributes:
      files: The files.
      rows: Number of rows that were read.
      whole: Whether there are no more.
      dialect: How text files are written.
      dialect_reasons: Maps the fields of `dialect` that were found in the data to why.
      columns: Maps names to what is known about the columns, in their order.
      corrupt: Number of rows that could not be parsed.
    """

    files: tuple[DataFile, ...]
    rows: int
    whole: bool
    dialect: Dialect
    dialect_reasons: dict[str, str]
    columns: dict[str, Profile]
    corrupt: int = 0

    @property
    def format(self) -> str:
        """The format of the files."""
        return self.files[0].format

    def terms(self, column: str) -> list[str]:
        """All values of a column of few texts, the most frequent first."""
        return self.columns[column].words


def profile_files(path: str, limit: int = 100_000) -> Table:
    """Describes the columns of files by their first rows.

    Args:
      path: A file, a folder, a glob or a list of them, as `--data` takes it.
      limit: Number of rows to read.

    Raises:
      InputError: A file is missing, empty or damaged.
    """
    files = find(path)
    dialect, reasons = Dialect(), {}
    if files[0].format in ("csv", "json"):
        encoding, why = _encoding(files[0])
        if encoding is not None:
            dialect = dataclasses.replace(dialect, encoding=encoding)
            reasons["encoding"] = why
    if files[0].format == "csv":
        delimiter = RawFiles(path, (), dialect)._delimited(files[0])[0]
        if delimiter != ",":
            reasons["delimiter"] = "gives the header the most columns"
        dialect = dataclasses.replace(dialect, delimiter=delimiter)
    columns, whole, corrupt = _read(path, dialect, limit)
    if dialect.encoding is None and any(_not_utf8(column) for column in columns.values()):
        encoding = _one_byte(b"".join(_bytes_of(column) for column in columns.values()))
        dialect = dataclasses.replace(dialect, encoding=encoding)
        reasons["encoding"] = "the text is not UTF-8"
        columns, whole, corrupt = _read(path, dialect, limit)
    rows = len(next(iter(columns.values()))) if columns else 0
    if not rows:
        raise InputError(f"{path} has no rows: nothing to infer from")
    textual = files[0].format in ("csv", "json")
    dialect, columns = _without_nulls(columns, dialect, reasons, textual)
    if textual and dialect.delimiter != "," and _decimal_comma(columns):
        dialect = dataclasses.replace(dialect, decimal=",")
        reasons["decimal"] = "numbers are written like 3,5"
    with _silent():
        found = {n: _profile(n, column, dialect, textual) for n, column in columns.items()}
    separators = [p.separator for p in found.values() if p.separator is not None]
    if separators:
        separator = max(_SEPARATORS, key=separators.count)
        dialect = dataclasses.replace(dialect, separator=separator)
        if separator != Dialect().separator:
            reasons["separator"] = "between the values of multivalent columns"
        for name, profile in found.items():
            if profile.separator not in (None, separator):
                words = f"texts with {profile.separator!r} are not split: a spec has one separator"
                found[name] = dataclasses.replace(
                    _profile(name, columns[name], dialect, False), note=words
                )
    return Table(files, rows, whole, dialect, reasons, found, corrupt)


class _silent:
    """Leaves out what converters say about units."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger(values.__name__)
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)


# Encodings.


def _encoding(file: DataFile) -> tuple[str | None, str]:
    with open_stream(file) as stream:
        head = bytes(stream.read(_HEAD_BYTES))
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16", "the file begins with the mark of UTF-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return _one_byte(head), "the text is not UTF-8"
    return None, ""


def _one_byte(text: bytes) -> str:
    """Windows' encoding if there are bytes that are control characters in Latin-1."""
    found = np.frombuffer(text, np.uint8)
    return "cp1252" if ((found >= 0x80) & (found <= 0x9F)).any() else "latin-1"


def _bytes_of(column: pa.Array) -> bytes:
    if not values.is_text(column.type):
        return b""
    buffer = column.buffers()[2]
    return bytes(buffer.to_pybytes()) if buffer is not None else b""


def _not_utf8(column: pa.Array) -> bool:
    if not pa.types.is_string(column.type):
        return False
    try:
        column.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        return True
    return False


# Rows.


def _read(path: str, dialect: Dialect, limit: int) -> tuple[dict[str, pa.Array], bool, int]:
    """Returns the columns of the first rows, whether these are all, and how many were corrupt."""
    opened = RawFiles(path, (), dialect)
    names = opened.columns_of(opened.files[0])
    if not names:
        raise InputError(f"{opened.files[0].path} has no columns: nothing to infer from")
    files = RawFiles(path, names, dialect)
    parts: dict[str, list[pa.Array]] = {name: [] for name in names}
    rows, corrupt, whole = 0, 0, True
    for shard in files.shards():
        for item in files.read(shard):
            if not isinstance(item, RawBatch):
                corrupt += 1
                continue
            count = len(item.numbers)
            for name in names:
                parts[name].append(item.columns.get(name, pa.nulls(count))[: limit - rows])
            rows += count
            if rows >= limit:
                whole = False
                break
        if rows >= limit:
            break
    return {name: _joined(chunks) for name, chunks in parts.items()}, whole, corrupt


def _joined(chunks: list[pa.Array]) -> pa.Array:
    chunks = [_plain(chunk) for chunk in chunks]
    kinds = {chunk.type for chunk in chunks if not pa.types.is_null(chunk.type)}
    if not kinds:
        return pa.nulls(sum(map(len, chunks)))
    wanted = next(iter(kinds))
    if len(kinds) > 1:
        numbers = all(pa.types.is_integer(k) or pa.types.is_floating(k) for k in kinds)
        nested = any(pa.types.is_nested(k) for k in kinds)
        if nested:
            # Blocks of JSON lines that differ: what is in the first of them counts.
            chunks = [c if c.type == wanted else pa.nulls(len(c), wanted) for c in chunks]
        else:
            wanted = pa.float64() if numbers else pa.string()
    return pa.concat_arrays([chunk.cast(wanted) for chunk in chunks])


def _plain(column: pa.Array) -> pa.Array:
    """Without dictionaries, and lists of at most one value as that value."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return column.cast(pa.list_(kind.value_type))
    if pa.types.is_large_string(kind):
        return column.cast(pa.string())
    if values.is_bytes(kind):
        try:
            return column.cast(pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            return column
    return column


def _single(column: pa.Array) -> pa.Array:
    """Lists none of which has two values, as TFRecords have them, as a plain column."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not len(column):
        return column
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    if lengths.max() > 1:
        return column
    places = np.cumsum(lengths) - 1
    flat = _plain(pc.list_flatten(column))
    return flat.take(pa.array(places, mask=lengths == 0))


def _without_nulls(
    columns: dict[str, pa.Array], dialect: Dialect, reasons: dict[str, str], textual: bool
) -> tuple[Dialect, dict[str, pa.Array]]:
    """Finds the words for missing values in text files, and replaces them."""
    columns = {name: _single(column) for name, column in columns.items()}
    if not textual:
        return dialect, columns
    words: dict[str, str] = {}
    for name, column in columns.items():
        if not pa.types.is_string(column.type):
            continue
        coded = column.dictionary_encode()
        terms = coded.dictionary.cast(pa.binary()).to_pylist()
        texts = {term.decode("utf-8", "replace") for term in terms}
        for word in _NULLS:
            if word in texts:
                words.setdefault(word, name)
        among = [word for word in _NULLS_AMONG_NUMBERS if word in texts]
        if among:
            rest = pc.invert(pc.is_in(column, value_set=pa.array([*among, *_NULLS, ""])))
            left = column.filter(rest.fill_null(False)).drop_null()
            if len(left) and (_stray(left) <= _STRAY or _dated(left)):
                for word in among:
                    words.setdefault(word, name)
    if not words:
        return dialect, columns
    dialect = dataclasses.replace(dialect, null=tuple(words))
    reasons["null"] = "; ".join(f"{word} in {name}" for word, name in words.items())
    for name, column in columns.items():
        if pa.types.is_string(column.type):
            absent = pc.is_in(column, value_set=pa.array(list(words), pa.string()))
            columns[name] = pc.if_else(absent, pa.scalar(None, pa.string()), column)
    return dialect, columns


def _share(found: pa.Array) -> float:
    return (pc.sum(found).as_py() or 0) / max(len(found), 1)


def _stray(texts: pa.Array, decimal: str = ".") -> float:
    """The share of texts that are no numbers."""
    return float(values.numbers(texts, decimal)[1].mean()) if len(texts) else 1.0


def _dated(texts: pa.Array) -> bool:
    return len(texts) > 0 and _share(pc.match_substring_regex(texts, _DATE)) >= 1 - _STRAY


def _decimal_comma(columns: dict[str, pa.Array]) -> bool:
    for column in columns.values():
        if pa.types.is_string(column.type):
            left = column.drop_null()
            left = left.filter(pc.greater(pc.binary_length(left), 0))
            commas = left.filter(pc.match_substring_regex(left, _DECIMAL_COMMA))
            if len(commas) and _stray(left, ",") <= _STRAY < _stray(left):
                return True
    return False


# Columns.


def _profile(name: str, column: pa.Array, dialect: Dialect, split: bool) -> Profile:
    """Describes a column.

    Args:
      name: Its name.
      column: Its values.
      dialect: How text files are written.
      split: Whether texts may be lists.
    """
    kind, rows = column.type, len(column)
    profile = Profile(name, "other", str(kind), rows)
    if pa.types.is_null(kind):
        profile.missing = rows
        profile.typed = "empty"
        return profile
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        inner = _profile(name, _plain(pc.list_flatten(column)), dialect, False)
        profile.kind, profile.missing = "list", int((lengths == 0).sum())
        profile.members, profile.distinct, profile.top = inner.kind, inner.distinct, inner.top
        profile.typed = f"lists of {inner.typed}"
        return profile
    if pa.types.is_nested(kind):
        profile.note = "values with fields of their own: give each field a column"
        return profile
    if pa.types.is_string(kind):
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        profile.typed = "text"
    elif pa.types.is_floating(kind):
        missing = np.isnan(column.to_numpy(zero_copy_only=False).astype(np.float64))
        column = pc.if_else(pa.array(missing), pa.scalar(None, kind), column)
    coded = column.dictionary_encode()
    present = column.drop_null()
    profile.codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    profile.missing, profile.distinct = rows - len(present), len(coded.dictionary)
    profile.top = _top(coded.dictionary, profile.codes)
    if profile.distinct <= 20 and pa.types.is_string(kind):
        profile.words = _top(coded.dictionary, profile.codes, 20, None)
    if len(present):
        _classify(profile, present, dialect, split)
    return profile


def _top(terms: pa.Array, codes: NDArray[Any], count: int = 3, width: int | None = 30) -> list[str]:
    counts = np.bincount(codes[codes >= 0], minlength=len(terms))
    order = np.argsort(-counts, kind="stable")[:count]
    shown = []
    for place in order.tolist():
        try:
            shown.append(str(terms[place].as_py())[:width])
        except (UnicodeDecodeError, ValueError, OverflowError):
            shown.append("?")
    return shown


def _classify(profile: Profile, present: pa.Array, dialect: Dialect, split: bool) -> None:
    kind = present.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        profile.kind, profile.unit = "time", "Arrow times"
        profile.numbers = _numbers_of(values.times(present)[0])
    elif pa.types.is_boolean(kind):
        profile.kind = "truth"
    elif pa.types.is_integer(kind):
        profile.kind, profile.numbers = "integer", _numbers_of(present)
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        whole, bad = values.whole_numbers(present)
        if bad.any():
            profile.kind, profile.numbers = "real", _numbers_of(values.numbers(present)[0])
        else:
            profile.kind, profile.numbers = "integer", _numbers_of(whole)
    elif pa.types.is_string(kind):
        _classify_text(profile, present, dialect, split)
    elif values.is_bytes(kind):
        profile.kind = "text"
    else:
        profile.note = f"values of type {kind} cannot be read as a feature"
    if profile.kind in ("integer", "real") and profile.unit is None:
        profile.unit = _unit(profile.numbers)


def _numbers_of(found: pa.Array) -> NDArray[Any]:
    numbers: NDArray[Any] = found.to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers[np.isfinite(numbers)]


def _unit(numbers: NDArray[Any] | None) -> str | None:
    """The unit in which all numbers are times between 1995 and 2040."""
    if numbers is None or not len(numbers):
        return None
    low, high = float(numbers.min()), float(numbers.max())
    for unit, by in (("seconds", 1), ("milliseconds", 1e3), ("microseconds", 1e6)):
        if _FIRST * by <= low and high <= _LAST * by:
            return f"Unix {unit}"
    return "Unix nanoseconds" if low >= _FIRST * 1e9 and high <= _LAST * 1e9 else None


def _classify_text(profile: Profile, present: pa.Array, dialect: Dialect, split: bool) -> None:
    profile.kind = "text"
    profile.length = float(pc.mean(pc.binary_length(present)).as_py())
    lowered = pc.utf8_lower(present) if not _not_utf8(present) else present
    if profile.distinct <= 6 and _share(pc.is_in(lowered, pa.array(["true", "false"]))) == 1.0:
        profile.kind = "truth"
        return
    if _dated(present):
        seconds, bad = values.times(present)
        if bad.mean() <= _STRAY:
            profile.kind, profile.unit = "time", "dates in ISO 8601"
            profile.numbers = _numbers_of(seconds)[~bad]
            return
    found, bad = values.numbers(present, dialect.decimal)
    if bad.mean() <= _STRAY and not bad.all():
        profile.stray = int(bad.sum())
        profile.numbers = _numbers_of(found.filter(pa.array(~bad)))
        _, broken = values.whole_numbers(present)
        profile.kind = "real" if (broken & ~bad).any() else "integer"
        long = present.filter(pa.array(broken & ~bad))
        if len(long) and _share(pc.match_substring_regex(long, r"^\s*[+-]?\d+\s*$")) == 1.0:
            # Whole numbers of more than 64 bits.
            profile.kind, profile.numbers, profile.stray = "text", None, 0
            return
        if profile.kind == "real" and not bad.any() and dialect.decimal != ".":
            if bool((profile.numbers == np.floor(profile.numbers)).all()):
                # 17850,0: ids that were once floats. As ids they stay what is written.
                profile.kind = "integer"
                profile.padded = True
                return
        if profile.kind == "integer":
            profile.padded = bool(_share(pc.match_substring_regex(present, r"^\s*0\d")) > 0)
        return
    if _share(pc.match_substring_regex(present, _PYTHON_LIST)) > 0.5:
        profile.note = "lists as one text: write their values with a separator between them"
        return
    if split:
        _find_separator(profile, present)
        return
    probe = dataclasses.replace(profile)
    _find_separator(probe, present)
    if probe.separator is not None:
        profile.note = (
            f"texts with {probe.separator!r} between values are one value here: use lists"
        )


def _find_separator(profile: Profile, texts: pa.Array) -> None:
    unique = texts.dictionary_encode().dictionary
    for separator in _SEPARATORS:
        has = pc.match_substring(texts, separator)
        share = _share(has)
        if share < (0.5 if separator == " " else 0.05):
            continue
        members = pc.list_flatten(pc.split_pattern(unique, separator))
        members = members.filter(pc.greater(pc.binary_length(members), 0))
        different = len(members.dictionary_encode().dictionary)
        clean = _share(pc.match_substring_regex(members, r"^\S.*\S$|^\S$")) == 1.0
        ids = _share(pc.match_substring_regex(members, r"^\S*\d\S*$")) == 1.0
        repeated = different <= 0.8 * len(members)
        fewer = different <= (0.5 if separator in " ," else 1.5) * len(unique)
        if separator == " " and ids and repeated:
            fewer = True
        if clean and repeated and (fewer or separator == "|"):
            profile.kind, profile.members = "list", "text"
            profile.separator, profile.share, profile.distinct = separator, share, different
            coded = members.dictionary_encode()
            profile.top = _top(coded.dictionary, coded.indices.to_numpy(zero_copy_only=False))
            return


def depends(inner: Profile, outer: Profile) -> bool:
    """Whether each value of `outer` that occurs often has one value of `inner`."""
    if inner.codes is None or outer.codes is None:
        return False
    both = (inner.codes >= 0) & (outer.codes >= 0)
    left, right = outer.codes[both].astype(np.int64), inner.codes[both].astype(np.int64)
    if not len(left):
        return False
    pairs = np.unique(left * (int(right.max()) + 1) + right)
    owners = np.unique(left)
    repeats = len(left) >= 1.3 * len(owners)
    return bool(repeats and len(pairs) <= 1.01 * len(owners))


def shown(numbers: NDArray[Any]) -> str:
    """The range of numbers, in words."""
    return f"{re.sub(r'e[+]0*', 'e', f'{numbers.min():.6g}')} to {numbers.max():.6g}"
