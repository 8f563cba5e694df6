"""From raw columns of any type to columns of the types of a spec, whole columns at a time.

The rules are the same for all formats and all types of records:

- An empty text, a null and (for numbers) NaN are missing values.
- Text is UTF-8 without NUL bytes. A float that is a whole number is written as one, so that the
  `18.0` of a nullable column of integers is the id `18`; other floats are no ids.
- Whole numbers fit into 64 bits; a float counts as one if it is whole and below 2^53.
- Times become Unix seconds: numbers are seconds, milliseconds, microseconds or nanoseconds by
  their size; texts are ISO 8601 (UTC without a zone); timestamps and dates are what they are.

A row with a value that does not fit is corrupt: `Rows` gathers these rows and why.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tfrz.data.sources.files import CorruptLine
from tfrz.data.sources.locations import DataFile
from tfrz.data.sources.raw import Dialect, RawBatch, as_python, is_utf8
from tfrz.data.spec import Feature
from tfrz.data.splits import split_word

logger = logging.getLogger(__name__)

Converted: TypeAlias = tuple[pa.Array, NDArray[Any]]

_EXACT = 2**53
_NUMBER = re.compile(r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$", re.ASCII)
# The first second that cannot be one of these units: years 5138 for seconds, and so on.
_UNITS = ((10**11, 1, "seconds"), (10**14, 10**3, "milliseconds"), (10**17, 10**6, "microseconds"))
# Smaller numbers may be counters, of which no part is lost.
_LIKE_A_TIME = 10**8


def _none(values: pa.Array) -> NDArray[Any]:
    return np.zeros(len(values), bool)


def _numpy(values: pa.Array) -> NDArray[Any]:
    found: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return found


def is_text(kind: pa.DataType) -> bool:
    """Whether values are declared to be text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes of any meaning."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _bad_text(values: pa.Array) -> NDArray[Any]:
    """Texts that are not UTF-8, or contain a NUL byte."""
    bad = _none(values)
    data = values.buffers()[2]
    if data is None or not len(values):
        return bad
    raw = values.cast(pa.binary() if pa.types.is_string(values.type) else pa.large_binary())
    try:
        raw.cast(values.type)
    except pa.ArrowInvalid:
        coded = raw.dictionary_encode()
        wrong = np.array([not is_utf8(term) for term in coded.dictionary.to_pylist()], bool)
        bad |= wrong[_numpy(coded.indices)]
    if 0 in np.frombuffer(data, np.uint8):
        bad |= _numpy(pc.match_substring(raw, "\x00")).astype(bool)
    return bad


def texts(values: pa.Array) -> Converted:
    """Values without nulls as binary, or dictionaries of it, and which of them cannot be ids."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        terms, bad = texts(values.dictionary)
        indices = values.indices
        coded = pa.DictionaryArray.from_arrays(indices, terms)
        return coded, bad[_numpy(indices)] if bad.any() else _none(values)
    if is_text(kind):
        return values.cast(pa.binary()), _bad_text(values)
    if is_bytes(kind):
        return values.cast(pa.binary()), _none(values)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers, bad = whole_numbers(values)
        return numbers.cast(pa.string()).cast(pa.binary()), bad
    if pa.types.is_boolean(kind):
        words = pa.array([b"False", b"True"], pa.binary())
        return words.take(values.cast(pa.int8())), _none(values)
    if not (pa.types.is_nested(kind) or pa.types.is_null(kind) or pa.types.is_duration(kind)):
        with contextlib.suppress(pa.ArrowException):
            return values.cast(pa.string()).cast(pa.binary()), _none(values)
    return pa.array([b""] * len(values), pa.binary()), ~_none(values)


def _hexadecimal(values: pa.Array) -> bool:
    """Whether a text may be a hexadecimal number, which Arrow reads too."""
    data = values.buffers()[2]
    letters = np.frombuffer(data if data is not None else b"", np.uint8) | 0x20
    return bool((letters == ord("x")).any())


def _parsed_whole(values: pa.Array) -> Converted:
    """Whole numbers from texts."""
    try:
        if not _hexadecimal(values):
            return values.cast(pa.int64()), _none(values)
    except pa.ArrowInvalid:
        pass
    coded = values.dictionary_encode()
    numbers, wrong = [], []
    for text in _decoded(coded.dictionary):
        number = _whole_of(text)
        numbers.append(0 if number is None else number)
        wrong.append(number is None)
    indices = _numpy(coded.indices)
    return (
        pa.array(np.array(numbers, np.int64)[indices]),
        np.array(wrong, bool)[indices],
    )


def _decoded(values: pa.Array) -> list[str]:
    return [text.decode("utf-8", "replace") for text in values.cast(pa.binary()).to_pylist()]


def _whole_of(text: str) -> int | None:
    found = re.fullmatch(r"\s*([+-]?\d+)(?:\.0*)?\s*", text, re.ASCII)
    if found is None or len(found[1]) > 20:
        return None
    number = int(found[1])
    return number if -(2**63) <= number < 2**63 else None


def whole_numbers(values: pa.Array) -> Converted:
    """Values without nulls as int64, and which of them are no whole numbers of 64 bits."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return whole_numbers(values.cast(kind.value_type))
    if is_text(kind):
        return _parsed_whole(values)
    if is_bytes(kind):
        return _parsed_whole(_as_strings(values))
    if pa.types.is_uint64(kind):
        numbers = _numpy(values)
        bad = numbers > np.uint64(2**63 - 1)
        return pa.array(np.where(bad, np.uint64(0), numbers).astype(np.int64)), bad
    if pa.types.is_floating(kind):
        numbers = _numpy(values).astype(np.float64)
        with np.errstate(invalid="ignore"):
            bad = ~((np.floor(numbers) == numbers) & (np.abs(numbers) <= _EXACT))
        return pa.array(np.where(bad, 0.0, numbers).astype(np.int64)), bad
    if pa.types.is_decimal(kind):
        exact = values.to_pylist()
        wrong = [v != v.to_integral_value() or not -(2**63) <= v < 2**63 for v in exact]
        whole = [0 if w else int(v) for v, w in zip(exact, wrong, strict=True)]
        return pa.array(whole, pa.int64()), np.array(wrong, bool)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return values.cast(pa.int64()), _none(values)
    return pa.array(np.zeros(len(values), np.int64)), ~_none(values)


def _as_strings(values: pa.Array) -> pa.Array:
    try:
        return values.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array(_decoded(values), pa.string())


def numbers(values: pa.Array, decimal: str = ".") -> Converted:
    """Values without nulls as float64, and which of them are no numbers."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return numbers(values.cast(kind.value_type), decimal)
    if is_bytes(kind):
        values, kind = _as_strings(values), pa.string()
    if is_text(kind):
        if decimal != ".":
            # A point would be between thousands.
            values = pc.replace_substring(pc.replace_substring(values, ".", "?"), decimal, ".")
        try:
            if not _hexadecimal(values):
                return values.cast(pa.float64()), _none(values)
        except pa.ArrowInvalid:
            pass
        coded = values.dictionary_encode()
        found = [_number_of(text) for text in _decoded(coded.dictionary)]
        indices = _numpy(coded.indices)
        wrong = np.array([number is None for number in found], bool)[indices]
        plain = np.array([0.0 if number is None else number for number in found])[indices]
        return pa.array(plain), wrong
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        if pa.types.is_boolean(kind):
            values = values.cast(pa.int8())
        return pa.array(_numpy(values).astype(np.float64)), _none(values)
    if pa.types.is_decimal(kind):
        return pa.array(np.array([float(v) for v in values.to_pylist()])), _none(values)
    return pa.array(np.zeros(len(values))), ~_none(values)


def _number_of(text: str) -> float | None:
    if _NUMBER.match(text) is not None:
        return float(text)
    word = text.strip().lower().lstrip("+-")
    if word in ("nan", "inf", "infinity"):
        return float(text)
    return None


@functools.lru_cache(maxsize=256)
def _say(column: str, what: str) -> None:
    logger.info("%s: %s", column, what)


def _from_numbers(column: str, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Unix seconds of numbers of any unit."""
    magnitude = np.abs(values)
    divisor = np.full(len(values), 10**9, np.int64)
    for below, by, _ in reversed(_UNITS):
        divisor[magnitude < below] = by
    if values.dtype == np.float64:
        with np.errstate(invalid="ignore"):
            bad = ~np.isfinite(values) | (magnitude >= 2.0**63)
            parts = (np.floor(values) != values) & (magnitude < _LIKE_A_TIME)
        safe = np.where(bad, 0.0, values)
        if ((np.floor(safe) != safe) & ~parts).any():
            _say(column, "times have parts of a second, which are dropped")
        seconds = np.floor(safe / divisor).astype(np.int64)
        bad |= parts
    else:
        bad = np.zeros(len(values), bool)
        seconds = values // divisor
    for unit, by in (("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)):
        if (divisor[~bad] == by).any():
            _say(column, f"times are in {unit}, read as Unix seconds")
    return seconds, bad


def times(values: pa.Array, column: str = "time") -> Converted:
    """Values without nulls as Unix seconds, int64, and which of them are no times."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return times(values.cast(kind.value_type), column)
    if pa.types.is_timestamp(kind):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        seconds = _numpy(values.cast(pa.int64())) // per_second
        return pa.array(seconds), _none(values)
    if pa.types.is_date(kind):
        days = _numpy(values.cast(pa.date32()).cast(pa.int32())).astype(np.int64)
        return pa.array(days * 86_400), _none(values)
    if is_bytes(kind):
        return times(_as_strings(values), column)
    if is_text(kind):
        return _times_of_texts(values, column)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        plain, bad = numbers(values)
        seconds, worse = _from_numbers(column, _numpy(plain))
        return pa.array(seconds), bad | worse
    whole, bad = whole_numbers(values)
    seconds, worse = _from_numbers(column, _numpy(whole))
    return pa.array(seconds), bad | worse


def _times_of_texts(values: pa.Array, column: str) -> Converted:
    whole, bad = _parsed_whole(values)
    seconds, worse = _from_numbers(column, _numpy(whole))
    bad = bad | worse
    if bad.any():
        left = np.flatnonzero(bad)
        coded = values.take(pa.array(left)).dictionary_encode()
        found = [_time_of(text) for text in _decoded(coded.dictionary)]
        indices = _numpy(coded.indices)
        seconds = seconds.copy()
        seconds[left] = np.array([0 if s is None else s for s in found], np.int64)[indices]
        bad = bad.copy()
        bad[left] = np.array([s is None for s in found], bool)[indices]
        if not bad.all() and any(s is not None for s in found):
            _say(column, "times are dates or numbers with a fraction, read as Unix seconds")
    return pa.array(seconds), bad


_ISO = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})"
    r"(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,]\d{1,9})?)?\s?(Z|UTC|[+-]\d{2}(?::?\d{2})?)?)?",
    re.ASCII,
)


def _time_of(text: str) -> int | None:
    """Unix seconds of a date in ISO 8601, or of a number with a fraction."""
    import datetime

    text = text.strip()
    found = _ISO.fullmatch(text)
    if found is None:
        if _NUMBER.match(text) is None:
            return None
        seconds, bad = _from_numbers("time", np.array([float(text)]))
        return None if bad[0] else int(seconds[0])
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    offset = 0
    if (zone := found[7]) and zone not in ("Z", "UTC"):
        digits = zone[1:].replace(":", "").ljust(4, "0")
        offset = (int(digits[:2]) * 3600 + int(digits[2:]) * 60) * (-1 if zone[0] == "-" else 1)
    try:
        moment = datetime.datetime(
            year, month, day, hour, minute, min(second, 59), tzinfo=datetime.UTC
        )
    except ValueError:
        return None
    return int(moment.timestamp()) - offset


def _truth(values: pa.Array) -> pa.Array:
    """Replaces `true` and `false`, as programs write them, with 1 and 0."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    values = _as_strings(values)
    for word, number in (("true", "1"), ("false", "0")):
        named = pc.is_in(values, value_set=pa.array([word, word.title(), word.upper()]))
        if pc.any(named).as_py():
            values = pc.if_else(named, number, values)
    return values


class Rows:
    """The rows of a batch while their columns are converted.

    Args:
      raw: Columns as they are in the file.
      file: The file.
      dialect: How text files are written.
      file_number: Which file of the source it is, from 0.
      coded: Whether lists of texts may have dictionaries.

    Attributes:
      count: Number of rows.
      bad: Which of them are corrupt.
    """

    def __init__(
        self,
        raw: RawBatch,
        file: DataFile,
        dialect: Dialect,
        file_number: int = 0,
        coded: bool = False,
    ) -> None:
        self._coded = coded
        self.raw, self._file, self._dialect = raw, file, dialect
        self._textual, self._file_number = file.format in ("csv", "json"), file_number
        self.count = len(raw.numbers)
        self.bad: NDArray[Any] = np.zeros(self.count, bool)
        self._reasons: dict[int, str] = {}
        self._prefix: Callable[[int], str] = lambda row: ""

    def given(self, column: str, row: int) -> list[Any]:
        """The values of a row as they are in the file, empty ones left out."""
        return [v for v in as_python(self.raw.columns[column], row) if v not in ("", b"")]

    def refuse(self, rows: NDArray[Any], reason: Callable[[int], str]) -> None:
        """Marks rows as corrupt, unless they are already.

        Args:
          rows: Their numbers in the batch, or a mask over all of them.
          reason: Returns why a row is.
        """
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        for row in np.unique(rows[~self.bad[rows]]).tolist():
            self._reasons[row] = f"{self._prefix(row)}{reason(row)}"
            self.bad[row] = True

    @contextlib.contextmanager
    def explained(self, prefix: Callable[[int], str]) -> Iterator[None]:
        """Puts words before the reasons of the rows that are refused meanwhile."""
        before, self._prefix = self._prefix, prefix
        yield
        self._prefix = before

    def values(
        self, column: str, split: bool = False, nan: bool = False
    ) -> tuple[NDArray[Any], pa.Array]:
        """The values of a column that are not missing, and the row of each, in order.

        Args:
          column: Name of the column.
          split: Whether a text holds several values.
          nan: Whether NaN is a value.
        """
        raw = self.raw.columns[column]
        rows = np.arange(self.count)
        if split and self._textual and is_text(raw.type):
            raw = pc.split_pattern(raw, self._dialect.separator)
        if isinstance(raw, pa.ExtensionArray):
            raw = raw.storage
        if pa.types.is_fixed_size_list(raw.type):
            raw = _as_lists(raw)
        if pa.types.is_list(raw.type) or pa.types.is_large_list(raw.type):
            lengths = _numpy(pc.list_value_length(raw).fill_null(0))
            rows = np.repeat(rows, lengths)
            raw = pc.list_flatten(raw)
        if pa.types.is_null(raw.type):
            rows, raw = rows[:0], raw[:0].cast(pa.binary())
        if raw.null_count:
            present = _numpy(raw.is_valid())
            rows, raw = rows[present], raw.drop_null()
        raw = _as_known(raw)
        if raw.null_count:
            present = _numpy(raw.is_valid())
            rows, raw = rows[present], raw.drop_null()
        plain = raw.type.value_type if pa.types.is_dictionary(raw.type) else raw.type
        if is_text(plain) or is_bytes(plain):
            length = _lengths(raw)
            if (length == 0).any():
                kept = length > 0
                rows, raw = rows[kept], raw.filter(pa.array(kept))
        elif pa.types.is_floating(plain) and not nan:
            known = ~np.isnan(_numpy(raw))
            if not known.all():
                rows, raw = rows[known], raw.filter(pa.array(known))
        return rows, raw

    def _typed(
        self, column: str, dtype: str, split: bool, coded: bool = False
    ) -> tuple[NDArray[Any], pa.Array]:
        """Values of the type, and their rows; rows with others are refused."""
        rows, raw = self.values(column, split, nan=dtype == "float32")
        if dtype == "string":
            converted, bad = texts(raw)
            if pa.types.is_dictionary(converted.type) and not coded:
                converted = converted.dictionary.take(converted.indices)
        elif dtype == "int64":
            converted, bad = whole_numbers(raw)
        else:
            converted, bad = numbers(raw, self._dialect.decimal)
            converted = pa.array(_numpy(converted).astype(np.float32))
        if bad.any():
            self.refuse(rows[bad], lambda row: self._why(column, dtype, row))
        return rows, converted

    def _why(self, column: str, dtype: str, row: int) -> str:
        given = self.given(column, row)
        for value in given if dtype == "string" else ():
            if isinstance(value, bytes) and self._textual:
                proposed = "latin-1" if self._dialect.encoding is None else "another encoding"
                return (
                    f"{column} is not UTF-8: {value!r:.40}: name the encoding of the file in the "
                    f"feature spec, for instance 'encoding: {proposed}'"
                )
            if isinstance(value, str) and "\x00" in value:
                return f"{column} contains a NUL byte: {value!r:.40}"
            if isinstance(value, float):
                return f"{column} is a number with a fraction, not an id: {value!r:.40}"
        return f"{column} is not {dtype}: {given!r:.40}"

    def lists(self, feature: Feature) -> pa.ListArray:
        """A column of lists of a feature's values."""
        rows, values = self._typed(feature.name, feature.dtype, feature.multivalent, self._coded)
        counts = np.bincount(rows, minlength=self.count)
        if not feature.multivalent and counts.max(initial=0) > 1:
            self.refuse(
                np.flatnonzero(counts > 1),
                lambda row: f"{feature.name} has {counts[row]} values but is not multivalent",
            )
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    def first(self, feature: Feature) -> pa.Array:
        """A column of the first value of a feature; null if there is none."""
        return self._first(*self._typed(feature.name, feature.dtype, False))

    def _first(self, rows: NDArray[Any], values: pa.Array) -> pa.Array:
        if len(rows) == self.count and (not len(rows) or rows[-1] == len(rows) - 1):
            return values
        some, places = np.unique(rows, return_index=True)
        taken = np.full(self.count, -1)
        taken[some] = places
        return values.take(pa.array(taken, mask=taken < 0))

    def as_written(self, column: str) -> pa.Array:
        """A column with the values and the type that it has in the file.

        In text files, and files without a schema, values are texts: a part of the file does not
        show the type of the whole.
        """
        raw = self.raw.columns[column]
        kind = raw.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            raw = raw.cast(kind)
        if is_text(kind):
            rows, values = self.values(column)
            _, bad = texts(values)
            if bad.any():
                self.refuse(rows[bad], lambda row: self._why(column, "string", row))
                raw = pc.if_else(pa.array(self.bad), pa.scalar(None, kind), raw)
            return raw.cast(pa.string())
        if self._file.format == "parquet" or pa.types.is_nested(kind):
            return raw
        return raw.cast(pa.string()) if not is_bytes(kind) else raw.cast(pa.binary())

    def key(self, column: str) -> pa.Array:
        """A column of ids, one a row, as binary."""
        rows, values = self._typed(column, "string", False)
        self._one_each(column, rows, f"{column} is missing")
        return self._first(rows, values)

    def _one_each(self, column: str, rows: NDArray[Any], missing: str) -> None:
        counts = np.bincount(rows, minlength=self.count)
        if (counts == 0).any():
            self.refuse(np.flatnonzero(counts == 0), lambda row: missing)
        if (counts > 1).any():
            self.refuse(np.flatnonzero(counts > 1), lambda row: f"{column} has several values")

    def times(self, column: str) -> pa.Array:
        """A column of times, one a row, in Unix seconds."""
        rows, raw = self.values(column)

        def why(row: int) -> str:
            return f"{column} is not a time in whole Unix seconds: {self.given(column, row)!r:.40}"

        converted, bad = times(raw, column)
        if bad.any():
            self.refuse(rows[bad], why)
        counts = np.bincount(rows, minlength=self.count)
        if (counts != 1).any():
            self.refuse(np.flatnonzero(counts != 1), why)
        seconds = self._first(rows, converted)
        negative = _numpy(pc.less(seconds.fill_null(0), 0))
        if negative.any():
            self.refuse(
                np.flatnonzero(negative), lambda row: f"{column} is negative: {seconds[row]}"
            )
        return seconds

    def number(self, column: str) -> pa.Array:
        """A column of numbers, float32; null where there is none."""
        rows, raw = self.values(column, nan=True)
        converted, bad = numbers(raw, self._dialect.decimal)
        if bad.any():
            self.refuse(
                rows[bad], lambda row: f"{column} is not a number: {self.given(column, row)!r:.40}"
            )
        return self._first(rows, pa.array(_numpy(converted).astype(np.float32)))

    def splits(self, column: str) -> pa.Array:
        """A column of words that name a split, one a row, as the splits' own names."""
        words = self.key(column).fill_null(b"").dictionary_encode()
        named = [
            split_word(word.decode("utf-8", "replace")) for word in words.dictionary.to_pylist()
        ]
        unknown = np.array([name is None for name in named], bool)[_numpy(words.indices)]
        self.refuse(
            unknown,
            lambda row: (
                f"{column} is neither train, validation nor test: {self.given(column, row)!r:.40}"
            ),
        )
        known = pa.array([(name or "train").encode() for name in named], pa.binary())
        return known.take(words.indices)

    def labels(self, column: str) -> NDArray[np.float32]:
        """A column of numbers for a label; NaN for none, several, or what is no number."""
        rows, raw = self.values(column)
        plain = raw.type.value_type if pa.types.is_dictionary(raw.type) else raw.type
        converted, bad = numbers(raw, self._dialect.decimal)
        if bad.any() and (is_text(plain) or is_bytes(plain)):
            converted, bad = numbers(_truth(raw), self._dialect.decimal)
        found = np.where(bad, np.nan, _numpy(converted)).astype(np.float32)
        labels = np.full(self.count, np.nan, np.float32)
        labels[rows] = found
        labels[np.bincount(rows, minlength=self.count) != 1] = np.nan
        return labels

    @property
    def positions(self) -> NDArray[np.int64]:
        """The place of each row in the source."""
        if self.raw.positions is not None:
            return self.raw.positions
        return self.raw.numbers + (self._file_number << 40)

    def corrupt(self) -> list[CorruptLine]:
        """The corrupt rows."""
        lines = []
        for row in sorted(self._reasons):
            where = self.raw.where[row] if self.raw.where is not None else ""
            reason = f"{where}{self._reasons[row]}"
            number = int(self.raw.numbers[row])
            lines.append(CorruptLine(self._file.path, number, reason, self._text(row)))
        return lines

    def _text(self, row: int) -> str:
        if not self._textual:
            return ""
        cells = [as_python(column, row) for column in self.raw.columns.values()]
        return ",".join(_shown(cell[0]) if cell else "" for cell in cells)[:80]

    def kept(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch of all rows without the corrupt ones."""
        return batch.filter(pa.array(~self.bad)) if self.bad.any() else batch


def _as_lists(values: pa.Array) -> pa.Array:
    """A column of lists of one length as one of any length."""
    if values.null_count:
        return pa.array(values.to_pylist(), pa.list_(values.type.value_type))
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.type.list_size
    return pa.ListArray.from_arrays(pa.array(offsets), values.flatten())


def _as_known(values: pa.Array) -> pa.Array:
    """Dictionaries of anything but texts, and views of texts, as plain columns."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        plain = is_text(kind.value_type) or is_bytes(kind.value_type)
        if not plain or values.dictionary.null_count:
            return values.dictionary.take(values.indices)
    if str(kind) in ("string_view", "binary_view"):
        return values.cast(pa.large_string() if str(kind) == "string_view" else pa.large_binary())
    return values


def _shown(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _lengths(values: pa.Array) -> NDArray[Any]:
    """The number of bytes of each text."""
    if pa.types.is_dictionary(values.type):
        return _lengths(values.dictionary)[_numpy(values.indices)]
    if pa.types.is_fixed_size_binary(values.type):
        return np.full(len(values), values.type.byte_width)
    return _numpy(pc.binary_length(values))
