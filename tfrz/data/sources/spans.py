"""Rolling data: paths with spans and versions in them, as TFX's ExampleGen knows them.

A path has `{SPAN}` (or `{SPAN:3}`, three digits wide) or all of `{YYYY}`, `{MM}` and `{DD}`, whose
span is the number of days since 1970-01-01, and may have `{VERSION}` (or `{VERSION:2}`). Of each
span the newest version is read.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from tfrz.config import require
from tfrz.data.sources.locations import is_uri, matches, unreadable
from tfrz.errors import InputError

_TOKEN = re.compile(r"\{(SPAN|VERSION|YYYY|MM|DD)(?::([^{}]*))?\}")
_DATE = ("YYYY", "MM", "DD")
_DATE_WIDTHS = {"YYYY": 4, "MM": 2, "DD": 2}
_EPOCH = datetime.date(1970, 1, 1)


@dataclasses.dataclass(frozen=True)
class SpansConfig:
    """Which spans of rolling data are read; without any value the newest.

    Attributes:
      latest: how many spans up to the newest, counted by their numbers: of the spans 3, 7 and 8 the
        latest two are 7 and 8, and so are the latest four. A run records `start` and `end` instead.
      start: the first span; for dates YYYY-MM-DD, or the days since 1970-01-01.
      end: the last span, itself included.
    """

    latest: int | None = None
    start: int | str | None = None
    end: int | str | None = None

    def __post_init__(self) -> None:
        given = self.start is not None or self.end is not None
        require(self.latest is None or self.latest >= 1, "data.spans.latest", "must be at least 1")
        require(self.latest is None or not given, "data.spans", "takes latest, or start and end")
        first, last = self.bounds
        require(
            not given or (first is not None and last is not None and 0 <= first <= last),
            "data.spans.start and end",
            "need both, the first not above the second",
        )

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """The numbers of the first and the last span; None where they are not fixed.

        Raises:
          ConfigError: a text is no date.
        """
        first, last = (_number(name, getattr(self, name)) for name in ("start", "end"))
        return first, last


def _number(name: str, value: int | str | None) -> int | None:
    if not isinstance(value, str):
        return value
    try:
        return (datetime.date.fromisoformat(value) - _EPOCH).days
    except ValueError:
        require(False, f"data.spans.{name}", f"{value!r} is neither a number nor YYYY-MM-DD")
        raise


@dataclasses.dataclass(frozen=True)
class Span:
    """A span that is there.

    Attributes:
      number: of the span.
      version: the newest one; None if the path has none.
      path: with both filled in.
    """

    number: int
    version: int | None
    path: str


def has_spans(data: str) -> bool:
    """Whether a path has a span in it."""
    return _TOKEN.search(data) is not None


def _check(pattern: str) -> None:
    """Refuses what TFX refuses.

    Raises:
      InputError: says why.
    """
    names = [found[1] for found in _TOKEN.finditer(pattern)]
    dates = [name for name in names if name in _DATE]
    reason = None
    if "SPAN" in names and dates:
        reason = "has {SPAN} and a date: write one of them"
    elif dates and sorted(dates) != sorted(_DATE):
        reason = "needs each of {YYYY}, {MM} and {DD} once"
    elif names.count("SPAN") > 1 or names.count("VERSION") > 1:
        reason = "has {SPAN} or {VERSION} more than once"
    elif "VERSION" in names and len(names) == 1:
        reason = "has {VERSION} without {SPAN} or a date"
    for found in _TOKEN.finditer(pattern):
        width = found[2]
        if width is not None and (found[1] in _DATE or not width.isdecimal() or not int(width)):
            reason = f"{found[0]}: write a width as {{SPAN:3}}"
    if reason is not None:
        raise InputError(f"{pattern}: {reason}")


def _character_class(found: re.Match[str]) -> str:
    return f"[{'^' if found[1] else ''}{found[2]}]".replace("\\", "")


def _expression(pattern: str) -> re.Pattern[str]:
    """What matches a path of the pattern or below it, with a group for each part of a span."""
    text, place = "", 0

    def plain(part: str) -> str:
        shape = re.escape(part)
        shape = shape.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
        return re.sub(r"\\\[(!?)(.*?)\\\]", _character_class, shape)

    for found in _TOKEN.finditer(pattern):
        width = found[2] or _DATE_WIDTHS.get(found[1])
        text += plain(pattern[place : found.start()])
        text += f"(?P<{found[1]}>[^/]{f'{{{width}}}' if width else '*'})"
        place = found.end()
    return re.compile(f"{text}{plain(pattern[place:])}(?:/.*)?")


def _comparable(path: str) -> str:
    """A path or URI without what may be written in several ways."""
    return urllib.parse.unquote(path.partition("?")[0]) if is_uri(path) else path


def _integer(found: re.Match[str], name: str) -> int:
    if not found[name].isdecimal():
        raise InputError(f"{found.string}: {found[name]!r} is no number for {{{name}}}")
    return int(found[name])


def _with(pattern: str, tokens: dict[str, str]) -> str:
    """The pattern with its tokens filled in."""
    text, place = "", 0
    for found in _TOKEN.finditer(pattern):
        text += pattern[place : found.start()]
        value = tokens[found[1]]
        if "=" in text.rpartition("/")[2] and "[" not in text:
            # A path is read as it is, without columns; below the first sign of a glob, parts that
            # are named like day=2026-11-01 are columns.
            value = f"[{value[0]}]{value[1:]}"
        text, place = text + value, found.end()
    return text + pattern[place:]


def _spans(pattern: str, named: str) -> dict[int, Span]:
    """All spans of one path, by number, each with its newest version.

    Raises:
      InputError: there are none, or a path has something else where a span should be.
    """
    _check(pattern)
    try:
        paths = matches(_TOKEN.sub("*", pattern))
    except (pa.ArrowException, OSError) as error:
        raise unreadable(pattern, error) from error
    expression = _expression(_comparable(pattern))
    spans: dict[int, Span] = {}
    for path in paths:
        if not is_uri(path) and Path(path).is_dir() and not any(Path(path).iterdir()):
            continue  # Somebody is about to write it.
        found = expression.fullmatch(_comparable(path))
        if found is None:
            raise InputError(f"{path} does not have the digits that {pattern} asks for")
        tokens = found.groupdict()
        if "SPAN" in tokens:
            number = _integer(found, "SPAN")
        else:
            try:
                number = (datetime.date(*(_integer(found, n) for n in _DATE)) - _EPOCH).days
            except ValueError:
                raise InputError(f"{path}: there is no such day") from None
        version = _integer(found, "VERSION") if "VERSION" in tokens else None
        known = spans.get(number)
        if known is None or (version is not None and version >= (known.version or 0)):
            spans[number] = Span(number, version, _with(pattern, tokens))
    if not spans:
        raise InputError(f"{pattern} matches no file: check {named}")
    return dict(sorted(spans.items()))


def _patterns(data: str) -> list[str]:
    return [part.strip() for part in data.split(",") if part.strip()]


def chosen_spans(
    data: str, spans: SpansConfig | None = None, named: str = "the path given to --data"
) -> list[Span]:
    """The spans of rolling data that are to be read, by number.

    Args:
      data: As `--data`; of several paths with commas between, all that have a span must have the
        same ones. Paths without one are left alone.
      spans: Which ones; the newest by default.
      named: How messages call the path.

    Raises:
      InputError: None of them is there, or the paths have different ones.
    """
    chosen: list[list[Span]] = []
    for pattern in _patterns(data) if has_spans(data) else ():
        if not has_spans(pattern):
            continue
        found = _spans(pattern, named)
        newest = max(found)
        first, last = (None, None) if spans is None else spans.bounds
        if first is None or last is None:
            latest = 1 if spans is None or spans.latest is None else spans.latest
            first, last = newest - latest + 1, newest
        some = [span for number, span in found.items() if first <= number <= last]
        if not some:
            raise InputError(
                f"{pattern} has no span from {first} to {last}; it has {min(found)} to {newest}"
            )
        chosen.append(some)
    if not chosen:
        return []
    keys = [[(span.number, span.version) for span in some] for some in chosen]
    if any(key != keys[0] for key in keys):
        numbers = [", ".join(str(span.number) for span in some) for some in chosen]
        raise InputError(f"{data}: the paths have different spans ({'; '.join(numbers)})")
    return [
        Span(same[0].number, same[0].version, ",".join(span.path for span in same))
        for same in zip(*chosen, strict=True)
    ]


def located(
    data: str, spans: SpansConfig | None = None, named: str = "the path given to --data"
) -> str:
    """The data with the chosen spans in the place of its patterns, as `--data` takes it.

    Args:
      data: As `--data`; without a span it is returned as it is.
      spans: Which ones; the newest by default.
      named: How messages call the path.

    Raises:
      InputError: As of `chosen_spans`.
    """
    return filled(data, chosen_spans(data, spans, named))


def filled(data: str, chosen: Sequence[Span]) -> str:
    """The data with some spans in the place of its patterns; see `located`."""
    if not chosen:
        return data
    fixed = [pattern for pattern in _patterns(data) if not has_spans(pattern)]
    return ",".join([*fixed, *(span.path for span in chosen)])
