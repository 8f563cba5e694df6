"""A feature spec for files of your own, inferred from their names and first rows.

`infer` says which types of records the files can be, and why; `Inference.yaml` writes the spec of
one of them, with the reason for every choice as a comment. Whatever is a guess can be corrected in
the file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfrz.config import did_you_mean, from_mapping
from tfrz.data.profiles import Profile, Table, depends, profile_files, shown
from tfrz.data.records import RECORD_TYPES
from tfrz.data.sources.raw import Dialect, pop_dialect
from tfrz.data.timelines.spec import NUMBERS
from tfrz.errors import ConfigError, InputError

_USER = (
    "user",
    "customer",
    "visitor",
    "member",
    "account",
    "client",
    "household",
    "buyer",
    "shopper",
    "viewer",
    "reader",
    "listener",
    "player",
    "reviewer",
    "person",
    "guest",
    "uid",
    "session",
    "cookie",
    "device id",
)
_ITEM = (
    "item",
    "product",
    "sku",
    "asin",
    "movie",
    "article",
    "video",
    "song",
    "track",
    "book",
    "isbn",
    "ad",
    "banner",
    "creative",
    "campaign",
    "doc",
    "document",
    "listing",
    "content",
    "news",
    "game",
    "app",
    "course",
    "recipe",
    "hotel",
    "prop",
    "property",
    "venue",
    "business",
    "offer",
    "stock code",
    "action",
    "arm",
    "artist",
)
_QUERY = ("query", "qid", "search", "srch", "request", "impression", "list", "slate", "session")
_TIME = (
    "timestamp",
    "time",
    "ts",
    "datetime",
    "date",
    "unixtime",
    "created",
    "at",
    "when",
    "day",
)
_LABEL = (
    "label",
    "click",
    "clicked",
    "target",
    "y",
    "bought",
    "buy",
    "purchase",
    "purchased",
    "converted",
    "conversion",
    "like",
    "liked",
    "response",
    "subscribed",
    "install",
    "installed",
    "churn",
    "outcome",
    "booking",
    "booked",
    "opened",
    "watched",
    "shared",
    "is click",
    "is clicked",
)
_RATING = ("rating", "stars", "overall", "score", "grade")
_RELEVANCE = ("relevance", "grade", "rel", "judgment", "judgement", "gain")
_SCORE = ("score", "base score", "model score", "rank score", "ranker score")
_PLACE = ("position", "rank", "place", "slot", "pos")
_EVENT = (
    *("event type", "event name", "action type", "behavior type", "behaviour type"),
    *("interaction type", "user action"),
    *("action", "event", "behavior", "behaviour", "interaction", "verb", "activity", "type"),
)
_REWARD = ("reward", "payoff", "return", "revenue", "click", "clicked", "label", "conversion", "y")
_PROPENSITY = ("propensity", "pscore", "propensities", "p", "prob", "probability")
_DURATION = ("duration", "length", "runtime")
_DWELL = ("dwell", "watch", "play", "spent", "watched", "listened", "view")
_VALUE = ("value", "rating", "amount", "price", "quantity", "qty", "revenue", "sales", "stars")
# What becomes known only after an event.
_AFTERWARDS = (
    *_RATING,
    *_DWELL,
    *_REWARD,
    *_PROPENSITY,
    "quantity",
    "qty",
    "amount",
    "total",
    "sales",
    "duration",
)
_QUANTITY = (
    "age",
    "count",
    "num",
    "number",
    "n",
    "price",
    "cost",
    "amount",
    "qty",
    "quantity",
    "duration",
    "seconds",
    "minutes",
    "length",
    "size",
    "width",
    "height",
    "weight",
    "rating",
    "score",
    "clicks",
    "views",
    "income",
    "balance",
    "distance",
    "percent",
    "rate",
    "total",
    "year",
    "budget",
    "bid",
    "salary",
    "stars",
)
_IDENTIFIER = ("id", "ids", "code", "zip", "zipcode", "postcode", "key", "uid", "uuid", "no", "sku")
_IMPLICIT = ("view", "views", "impression", "pv", "show", "shown", "exposure", "display", "seen")
_RESERVED = {
    "history": (
        *("user", "item", "time", "position", "target", "seen", "mask"),
        *("history", "history_time", "request_time"),
    ),
    "list": (
        *("position", "split", "score", "item", "mask", "features", "context"),
        *("query", "candidates", "relevance"),
    ),
    "timeline": (
        *("user", "time", "position", "explicit", "action", "duration", "dwell", "value"),
    ),
}
_RESERVED["logged_action"] = _RESERVED["history"]
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan"}


@dataclasses.dataclass(frozen=True)
class Guess:
    """A column for a role, and why."""

    column: str
    reason: str
    by_name: bool = True


@dataclasses.dataclass
class Draft:
    """The spec of one type of records.

    Attributes:
      records: The type.
      mapping: The spec, as YAML gives it, without the dialect.
      reasons: Maps keys of the spec, and `key/name` of features in its lists, to comments.
      left_out: Maps columns that are no part of the spec to why.
      hints: Sentences on what to do next.
    """

    records: str
    mapping: dict[str, Any] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    hints: list[str] = dataclasses.field(default_factory=list)

    def set(self, key: str, value: Any, reason: str = "") -> None:
        """Sets a key of the spec."""
        self.mapping[key] = value
        if reason:
            self.reasons[key] = reason


@dataclasses.dataclass
class Inference:
    """What files can be.

    Attributes:
      path: What was given.
      table: Their first rows.
      drafts: Maps each type of records that the files can be to its spec, the likeliest first.
      impossible: Maps the other types to why they cannot.
      likeliest: Why the first is the likeliest.
    """

    path: str
    table: Table
    drafts: dict[str, Draft]
    impossible: dict[str, str]
    likeliest: str = ""

    def draft(self, records: str | None = None) -> Draft:
        """Returns the spec of a type of records, by default the likeliest.

        Raises:
          InputError: The files cannot be records of this type.
        """
        if not self.drafts:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.impossible.items())
            raise InputError(f"{self.path} can be no type of records ({reasons})")
        if records is None:
            return next(iter(self.drafts.values()))
        if records not in self.drafts:
            raise InputError(
                f"{self.path} cannot be {records} records: {self.impossible[records]}; it can be "
                f"{' or '.join(self.drafts) or 'none'}"
            )
        return self.drafts[records]

    def yaml(self, records: str | None = None) -> str:
        """Returns the spec file of a type of records, with reasons as comments.

        Raises:
          InputError: The files cannot be records of this type.
        """
        draft = self.draft(records)
        table = self.table
        rows = "1 row" if table.rows == 1 else f"{table.rows:,} rows"
        rows = rows if table.whole else f"the first {rows}"
        many = f", {len(table.files)} files" if len(table.files) > 1 else ""
        lines = [
            f"# Inferred by 'tfrz data infer' from {rows} of {_one_line(self.path)} "
            f"({table.format}{many}). Correct what is wrong.",
            f"# Record type: {draft.records}"
            + (f" ({self.likeliest})." if draft is next(iter(self.drafts.values())) else "."),
        ]
        others = [name for name in self.drafts if name != draft.records]
        if others:
            lines.append(f"# It can also be: {', '.join(others)} (--records TYPE).")
        lines += [f"# It cannot be {name}: {why}." for name, why in self.impossible.items()]
        lines += ["", *self._dialect_lines()]
        for key, value in draft.mapping.items():
            reason = draft.reasons.get(key, "")
            if isinstance(value, list) and value and isinstance(value[0], dict):
                lines.append(f"{key}:{_comment(reason)}")
                for feature in value:
                    why = draft.reasons.get(f"{key}/{feature['name']}", "")
                    lines.append(f"  - {_flow(feature)}{_comment(why)}")
            else:
                lines.append(f"{key}: {_flow(value)}{_comment(reason)}")
        if draft.left_out:
            lines += ["", "# Left out:"]
            lines += [f"#   {_one_line(n)}: {why}" for n, why in draft.left_out.items()]
        if draft.hints:
            lines += ["", *(f"# {hint}" for hint in draft.hints)]
        return "\n".join(lines) + "\n"

    def _dialect_lines(self) -> list[str]:
        dialect, default = self.table.dialect, Dialect()
        lines = []
        for field in dataclasses.fields(Dialect):
            value, why = getattr(dialect, field.name), self.table.dialect_reasons.get(field.name)
            if why is not None and value != getattr(default, field.name):
                value = list(value) if isinstance(value, tuple) else value
                lines.append(f"{_flow(field.name)}: {_flow(value)}{_comment(why)}")
        return lines


def _one_line(text: str) -> str:
    return " ".join(str(text).split()) or "''"


def _comment(reason: str) -> str:
    return f"  # {_one_line(reason)}" if reason else ""


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=True)


# Names.


def words_of(name: str) -> list[str]:
    """The words of the name of a column, in lower case: `userId` and `user_id` are user, id."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = re.split(r"[^a-z0-9]+", spaced.lower())
    split: list[str] = []
    for word in filter(None, words):
        found = re.fullmatch(r"([a-z]{2,})(id|ids|time|date|code|key)", word)
        known = found is not None and found[1] in _STEMS
        split += [found[1], found[2]] if found is not None and known else [word]
    return split


_STEMS = frozenset((*_USER, *_ITEM, *_QUERY, "zip", "unix", "event", "review", "date", "stock"))


def _has(words: Sequence[str], names: Iterable[str]) -> str | None:
    """The first of `names` that occurs in the words of a column's name."""
    text = f" {' '.join(words)} "
    return next((name for name in names if f" {name} " in text), None)


def _rank(words: Sequence[str], names: Sequence[str]) -> float | None:
    """How well a column's name fits one of the names; less is better, None is not at all."""
    found = _has(words, names)
    if found is None:
        return None
    rest = [word for word in words if word not in found.split() and word not in _IDENTIFIER]
    return 1000 * len(rest) + names.index(found) - (0.5 if words[-1] in _IDENTIFIER else 0)


class _Columns:
    """The columns of a table, and which roles they may have."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.all = table.columns
        self.words = {name: words_of(name) for name in table.columns}
        self.useless: dict[str, str] = {}
        for name, profile in self.all.items():
            if not name.strip():
                self.useless[name] = "has no name (a row number?)"
            elif profile.present == 0:
                self.useless[name] = "is empty"
            elif profile.kind == "other":
                self.useless[name] = profile.note or f"cannot be read ({profile.typed})"
            elif profile.rows > 1 and profile.distinct <= 1 and profile.kind != "list":
                self.useless[name] = f"has one value only: {', '.join(profile.top)}"

    def best(
        self,
        names: Sequence[str],
        fits: Callable[[Profile], bool],
        taken: Iterable[str] = (),
        close: bool = False,
    ) -> Guess | None:
        """The column whose name fits best."""
        found = []
        for place, (name, profile) in enumerate(self.all.items()):
            rank = _rank(self.words[name], names)
            usable = name.strip() and profile.present and profile.kind != "other"
            if rank is None or name in taken or not usable or not fits(profile):
                continue
            if not (close and rank >= 1000):
                found.append((rank, place, name))
        if not found:
            return None
        name = min(found)[2]
        return Guess(name, f"by its name; {_shown(self.all[name])}")

    # Roles.

    def time(self) -> Guess | None:
        """The column of the time."""
        found = []
        for place, (name, profile) in enumerate(self.all.items()):
            rank = _rank(self.words[name], _TIME)
            dates = profile.kind == "time"
            if name in self.useless or profile.kind not in ("time", "integer", "real"):
                continue
            if not dates and profile.unit is None:
                continue
            identifier = self.words[name][-1:] and self.words[name][-1] in _IDENTIFIER
            if not dates and rank is None and identifier:
                continue
            reason = f"{profile.unit}, {_dates(profile)}"
            reason += "" if rank is not None else "; by its values"
            found.append((10**6 if rank is None else rank, place, Guess(name, reason)))
        return min(found, key=lambda one: one[:2])[2] if found else self._counter()

    def _counter(self) -> Guess | None:
        """A column of small numbers that is called a time."""

        def fits(profile: Profile) -> bool:
            found = profile.numbers
            if profile.kind != "integer" or found is None or not len(found):
                return False
            return profile.distinct > 24 and bool(found.min() >= 0) and not _compact(found)

        named = self.best(("timestamp", "time", "ts", "unixtime"), fits, close=True)
        if named is None or named.column in self.useless:
            return None
        return Guess(named.column, "by its name; numbers that only order the rows")

    def key(self, names: Sequence[str], taken: Iterable[str]) -> Guess | None:
        """A column of ids by its name."""

        def fits(profile: Profile) -> bool:
            return profile.kind in ("text", "integer") and not profile.unique

        return self.best(names, fits, taken)

    def by_content(self, taken: Iterable[str]) -> list[Guess]:
        """Columns that look like ids: many values, each of which occurs several times."""
        found = []
        for name, profile in self.all.items():
            ids = profile.kind == "text" and profile.length < 40
            ids = ids or (profile.kind == "integer" and profile.unit is None)
            times = profile.present / max(profile.distinct, 1)
            if ids and name not in taken and name not in self.useless and not self.number(name):
                if profile.distinct >= 20 and times >= 1.5:
                    reason = f"by its values: {_shown(profile)}, {times:.1f} rows each; check it"
                    found.append(Guess(name, reason, by_name=False))
        return found

    def number(self, name: str) -> bool:
        """Whether a column is a quantity, not a code."""
        profile, words = self.all[name], self.words[name]
        if profile.kind == "real":
            return True
        if profile.kind != "integer" or profile.numbers is None:
            return False
        if words and (words[-1] in _IDENTIFIER or words[0] in _IDENTIFIER):
            return False
        if _has(words, _QUANTITY) is not None:
            return True
        if _rank(words, _USER) is not None or _rank(words, _ITEM) is not None:
            return False
        if profile.padded:
            return False
        if profile.distinct <= 50 or _compact(profile.numbers):
            return False
        return float(np.median(np.abs(profile.numbers))) < 1e6

    def labels(self) -> list[Guess]:
        """Columns of 0 and 1, the likeliest label first."""
        found = []
        for place, (name, profile) in enumerate(self.all.items()):
            if name in self.useless or not profile.binary:
                continue
            rank = _rank(self.words[name], _LABEL)
            share = _positive(profile)
            reason = f"{share:.2%} are 1"
            reason = f"by its name and values; {reason}" if rank is not None else reason
            if rank is None:
                reason = f"by its values, 0 and 1; {reason}; check it"
            order = (10**6 + place if rank is None else rank, place)
            found.append((order, Guess(name, reason, rank is not None)))
        return [guess for _, guess in sorted(found, key=lambda one: one[0])]


def _compact(numbers: Any) -> bool:
    """Whether numbers are dates such as 20261201."""
    if not len(numbers) or numbers.min() < 19_000_101 or numbers.max() > 21_001_231:
        return False
    month, day = numbers // 100 % 100, numbers % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def _positive(profile: Profile) -> float:
    if profile.numbers is not None:
        return float(profile.numbers.mean())
    assert profile.codes is not None
    codes = profile.codes[profile.codes >= 0]
    first = float((codes == np.bincount(codes).argmax()).mean())
    return first if profile.top[0].lower() == "true" else 1 - first


def _dates(profile: Profile) -> str:
    import datetime

    found, unit = profile.numbers, profile.unit or ""
    if found is None or not len(found):
        return "no times"
    by = {"Unix milliseconds": 1e3, "Unix microseconds": 1e6, "Unix nanoseconds": 1e9}.get(unit, 1)
    days = [
        datetime.datetime.fromtimestamp(float(bound) / by, datetime.UTC).strftime("%Y-%m-%d")
        for bound in (found.min(), found.max())
    ]
    return f"{days[0]} to {days[1]}"


def _shown(profile: Profile) -> str:
    """What a column contains, in words."""
    empty = f", {profile.missing / profile.rows:.1%} missing" if profile.missing else ""
    stray = f", {profile.stray:,} are no numbers" if profile.stray else ""
    found = profile.numbers
    if profile.kind == "real" and found is not None and len(found):
        return f"{shown(found)}{empty}{stray}"
    example = f", such as {profile.top[0]}" if profile.top else ""
    plural = "value" if profile.distinct == 1 else "values"
    return f"{profile.distinct:,} {plural}{example}{empty}{stray}"


# Drafts.


class _Drafter:
    """Writes the spec of each type of records."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.columns = columns = _Columns(table)
        self.labels = columns.labels()
        names = [guess.column for guess in self.labels if guess.by_name]
        self.time = columns.time()
        timed = [self.time.column] if self.time is not None else []
        self.propensity = columns.best(_PROPENSITY, _probability, timed)
        taken = [*timed, *names]
        user = columns.key(_USER, taken)
        item = columns.key(_ITEM, [*taken, *([user.column] if user else [])])
        self.event = self._event(taken, user, item)
        if item is not None and self.event is not None and item.column == self.event.column:
            item = columns.key(_ITEM, [*taken, item.column, *([user.column] if user else [])])
        self.query = columns.key(_QUERY, [*taken, *([item.column] if item else [])])
        if self.query is not None and user is not None and self.query.column == user.column:
            # A session is a user of histories; a list is one request of many.
            user = columns.key(_USER, [*taken, user.column]) or user
        found = [g.column for g in (user, item, self.event) if g is not None]
        key = next((columns.all[g.column] for g in (user, item) if g is not None), None)
        for guess in columns.by_content([*taken, *found]):
            if key is not None and depends(columns.all[guess.column], key):
                continue
            if user is None:
                user = guess
            elif item is None:
                item = guess
        self.user, self.item = user, item

    def _event(self, taken: Sequence[str], user: Guess | None, item: Guess | None) -> Guess | None:
        """The column of what the user did: few words."""

        def fits(profile: Profile) -> bool:
            return profile.kind == "text" and 2 <= profile.distinct <= 20

        keys = [] if user is None else [user.column]
        found = self.columns.best(_EVENT, fits, [*taken, *keys], close=True)
        # In a log of a policy, the action is the item.
        if found is not None and self.propensity is not None:
            return None
        del item
        return found

    def draft(self, records: str) -> Draft | str:
        """Returns the spec, or why there is none."""
        write = {
            "impression": self.impression,
            "history": self.history,
            "list": self.list,
            "logged_action": self.logged_action,
            "timeline": self.timeline,
        }
        return write[records]()

    def feature(self, draft: Draft, key: str, name: str) -> dict[str, Any] | None:
        """A feature for a column, with its reason; None if it is left out, with the reason."""
        profile = self.columns.all[name]
        words = self.columns.words[name]
        why = self.columns.useless.get(name)
        reserved = _RESERVED.get(draft.records, ())
        if why is None and name in reserved:
            why = "the name is reserved: rename the column to use it"
        if why is None and profile.kind == "time":
            why = f"a time ({_dates(profile)}), which no feature can be"
        if why is None and profile.unit is not None and _has(words, _TIME) is not None:
            why = f"a time ({profile.unit}, {_dates(profile)}), which no feature can be"
        if why is None and profile.kind == "text" and profile.length > 60 and profile.distinct > 50:
            why = f"free text of {profile.length:.0f} characters"
        if (
            why is None
            and profile.unique
            and (
                profile.kind == "text"
                or (profile.kind == "integer" and not self.columns.number(name))
            )
        ):
            why = "every row has a value of its own: a row id"
        if why is None and profile.unique and profile.kind == "integer" and _in_order(profile):
            why = "numbers the rows"
        if why is None and profile.note:
            why = (
                profile.note if profile.kind == "text" and "lists as one" in profile.note else None
            )
        several = profile.kind == "list"
        if why is None and several and draft.records not in ("impression", "timeline"):
            why = "several values a row, which only impressions and ids of timelines can have"
        if why is None and several and profile.members not in ("text", "integer"):
            why = f"{profile.typed}: numbers with several values a row cannot be features"
        if why is not None:
            draft.left_out.setdefault(name, why)
            return None
        made: dict[str, Any] = {"name": name}
        note = f"; {profile.note}" if profile.note else ""
        if draft.records == "timeline":
            if several:
                made["multivalent"] = True
        elif several:
            if profile.members == "integer":
                made["dtype"] = "int64"
            made["multivalent"] = True
        elif self.columns.number(name):
            made |= {"kind": "numeric", "dtype": "float32"}
        elif profile.kind == "integer" and not profile.padded and not profile.stray:
            made["dtype"] = "int64"
        reason = _shown(profile)
        if several:
            between = f"{profile.separator!r} in {profile.share:.0%} of the values"
            reason += f"; {between if profile.separator is not None else profile.typed}"
        if made.get("kind") == "numeric" and draft.records != "timeline":
            reason += self._scaled(made, profile)
        elif profile.padded:
            reason += "; its numbers are written as text (leading zeros, or a decimal comma)"
        draft.reasons[f"{key}/{name}"] = reason + note
        return made

    def _scaled(self, made: dict[str, Any], profile: Profile) -> str:
        ratio, found = profile.heavy_tail, profile.numbers
        if found is None or not len(found):
            return ""
        if ratio is not None:
            small = float(np.median(found[found > 0]))
            made["log_offset"] = 1.0 if small >= 0.1 else float(f"{small:.0e}")
            made["standardize"] = True
            return f"; log, because its 99th percentile is {ratio:,.0f} times its median"
        if np.abs(found).max() > 3 and found.std() > 0:
            made["standardize"] = True
        return ""

    def features(self, draft: Draft, key: str, taken: Iterable[str]) -> list[dict[str, Any]]:
        """Features of all columns but those that are taken."""
        taken = set(taken)
        found = []
        for name in self.columns.all:
            if name not in taken and name not in draft.left_out:
                made = self.feature(draft, key, name)
                if made is not None:
                    found.append(made)
        return found

    def afterwards(self, draft: Draft, taken: Iterable[str], names: Sequence[str]) -> None:
        """Leaves out what is known only after an event: labels, and columns with these names."""
        taken = set(taken)
        labels = [guess.column for guess in self.labels if guess.by_name]
        for name in self.columns.all:
            words = self.columns.words[name]
            if name in taken or name in self.columns.useless:
                continue
            rank = _rank(words, names)
            if name in labels or (rank is not None and rank < 1000):
                draft.left_out[name] = "by its name, it is known only afterwards"

    def impression(self) -> Draft | str:
        """Rows with features and a label of 0 or 1."""
        if not self.labels:
            rating = self.columns.best(_RATING, lambda p: p.numbers is not None)
            hint = ""
            if rating is not None:
                numbers = self.columns.all[rating.column].numbers
                assert numbers is not None
                hint = (
                    f" (a label could be made of {rating.column}, {shown(numbers)}: 1 for at least "
                    f"{np.quantile(numbers, 0.6):g})"
                )
            return f"no column of 0 and 1{hint}"
        draft = Draft("impression")
        label = self.labels[0]
        draft.set("label", label.column, label.reason)
        self.holes(draft, label)
        others = [g.column for g in self.labels[1:] if g.by_name]
        for name in others:
            draft.left_out[name] = "by its name another outcome, known only afterwards"
        if self.propensity is not None and self.propensity.column != label.column:
            draft.left_out[self.propensity.column] = "the logger's propensity, not a feature"
        position = self.columns.best(_PLACE, lambda p: p.kind == "integer", close=True)
        if position is not None and position.column != label.column:
            draft.left_out[position.column] = (
                "by its name the place in a list, which is unknown before the list is made"
            )
        taken = [label.column]
        if self.time is not None:
            draft.left_out[self.time.column] = (
                f"a time ({self.time.reason}); impressions have no times"
            )
        features = self.features(draft, "features", taken)
        for made in features:
            profile = self.columns.all[made["name"]]
            if made.get("kind") != "numeric" and _mostly_once(profile):
                made["min_count"] = 2
                draft.reasons[f"features/{made['name']}"] += "; most values occur once"
        if not features:
            return "no column is left for a feature"
        draft.set("features", features)
        return draft

    def _keys(self, draft: Draft, what: str) -> str | None:
        """Sets user and item; returns why that is not possible."""
        missing = [name for name, g in (("users", self.user), ("items", self.item)) if g is None]
        if missing:
            return f"no column of {' and of '.join(missing)} with values that occur again{what}"
        assert self.user is not None
        assert self.item is not None
        draft.set("user", self.user.column, self.user.reason)
        draft.set("item", self.item.column, self.item.reason)
        self.holes(draft, self.user, self.item, self.time)
        return None

    def holes(self, draft: Draft, *guesses: Guess | None) -> None:
        """Says that rows without a value that is required are corrupt."""
        for guess in guesses:
            profile = self.columns.all[guess.column] if guess is not None else None
            if profile is not None and profile.missing:
                share = profile.missing / profile.rows
                draft.hints.append(
                    f"{share:.1%} of the rows have no {profile.name} and are corrupt: leave them "
                    "out of the files, or raise data.max_corrupt_fraction"
                )

    def _interactions(self, draft: Draft, taken: Sequence[str]) -> None:
        """Sets time and contexts."""
        if self.time is None:
            draft.set("time", None, "no column of times: the rows must be in order")
        else:
            draft.set("time", self.time.column, self.time.reason)
        assert self.user is not None
        assert self.item is not None
        taken = [*taken, self.user.column, self.item.column]
        taken += [self.time.column] if self.time is not None else []
        self.afterwards(draft, taken, _AFTERWARDS)
        if self.event is not None and self.event.column not in taken:
            draft.left_out[self.event.column] = "what the user did, known only afterwards"
        item = self.columns.all[self.item.column]
        for name, profile in self.columns.all.items():
            if name in taken or name in draft.left_out or name in self.columns.useless:
                continue
            if depends(profile, item):
                draft.left_out[name] = (
                    "depends on the item alone: belongs into a catalogue (candidates)"
                )
        context = self.features(draft, "context", taken)
        draft.set(
            "context", context, "known at the time of a request, or remove it" * bool(context)
        )

    def history(self) -> Draft | str:
        """Rows with user and item."""
        draft = Draft("history")
        why = self._keys(draft, "")
        if why is not None:
            return why
        self._interactions(draft, [])
        return draft

    def logged_action(self) -> Draft | str:
        """Rows with user, action, reward and perhaps propensity."""
        draft = Draft("logged_action")
        why = self._keys(draft, "")
        if why is not None:
            return why

        def number(profile: Profile) -> bool:
            whole = profile.numbers is not None and not profile.missing
            return (whole and profile.unit is None) or profile.binary

        keys = [self.user.column, self.item.column] if self.user and self.item else []
        keys += [self.propensity.column] if self.propensity is not None else []
        reward = self.columns.best(_REWARD, number, keys)
        reward = reward or next((g for g in self.labels if g.by_name), None)
        reward = reward or self.columns.best(_RATING, number, keys)
        if reward is None:
            return "no column of rewards (reward, click, label, revenue ...)"
        profile = self.columns.all[reward.column]
        if profile.numbers is None:
            return f"the reward {reward.column} is no number: write 0 and 1"
        draft.set("reward", reward.column, reward.reason)
        taken = [reward.column]
        if self.propensity is not None:
            draft.set("propensity", self.propensity.column, self.propensity.reason)
            taken.append(self.propensity.column)
        self._interactions(draft, taken)
        return draft

    def list(self) -> Draft | str:
        """Rows with query, candidate and relevance."""
        if self.query is None:
            return "no column of queries (query, qid, search, request ...)"
        query = self.columns.all[self.query.column]
        if query.present < 1.5 * query.distinct:
            return f"hardly a value of {self.query.column} has several rows"
        draft = Draft("list")
        draft.set("query", self.query.column, self.query.reason)

        def grade(profile: Profile) -> bool:
            found = profile.numbers
            return found is not None and len(found) > 0 and found.min() >= 0 and not profile.unique

        taken = [self.query.column]
        relevance = self.columns.best(_RELEVANCE, grade, taken)
        labels = [g for g in self.labels if self.columns.all[g.column].numbers is not None]
        relevance = relevance or next((g for g in labels if g.by_name), None)
        relevance = relevance or self.columns.best(("rating", "stars"), grade, taken)
        relevance = relevance or next(iter(labels), None)
        if relevance is None:
            return "no column of grades or clicks (relevance, grade, click ...)"
        taken.append(relevance.column)
        item = self.columns.best(
            _ITEM, lambda p: p.kind in ("text", "integer") and not p.missing, taken
        )
        if item is None:
            draft.set("item", None, "no column of items: the rows are numbered")
        else:
            draft.set("item", item.column, item.reason)
            taken.append(item.column)
        draft.set("relevance", relevance.column, relevance.reason)

        def score(profile: Profile) -> bool:
            return profile.kind == "real" and not profile.missing

        base = self.columns.best(_SCORE, score, taken, close=True)
        if base is None:
            draft.set("score", None, "no column of scores: the rows of a query are in order")
        else:
            draft.set("score", base.column, base.reason + "; the highest first")
            taken.append(base.column)
        position = self.columns.best(_PLACE, lambda p: p.kind == "integer", taken, close=True)
        if position is not None:
            draft.left_out[position.column] = "by its name the place, which the row order tells"
        self.afterwards(draft, taken, (*_DWELL, *_REWARD, *_PROPENSITY))
        if self.time is not None and self.time.column not in taken:
            draft.left_out[self.time.column] = "a time, which no feature can be"
        made = self.features(draft, "candidate", taken)
        context = [f for f in made if depends(self.columns.all[f["name"]], query)]
        candidate = [f for f in made if f not in context]
        for feature in context:
            name = feature["name"]
            reason = draft.reasons.pop(f"candidate/{name}")
            draft.reasons[f"context/{name}"] = f"{reason}; the same in all rows of a query"
        if not candidate:
            return "no column is left that describes a candidate"
        draft.set("candidate", candidate)
        draft.set("context", context)
        return draft

    def timeline(self) -> Draft | str:
        """Rows with user, time and ids."""
        draft = Draft("timeline")
        if self.user is None or self.item is None:
            return self._keys(draft, "") or ""
        if self.time is None:
            return "no column of times"
        if self.item.column in _RESERVED["timeline"]:
            return f"the column {self.item.column} has a reserved name: rename it"
        draft.set("user", self.user.column, self.user.reason)
        draft.set("time", self.time.column, self.time.reason)
        self.holes(draft, self.user, self.time)
        taken = [self.user.column, self.time.column, self.item.column]
        taken += [] if self.event is None else [self.event.column]
        labels = [g for g in self.labels if g.by_name and g.column not in taken]
        labels = [g for g in labels if self.columns.all[g.column].numbers is not None]
        taken += [g.column for g in self.labels if g.by_name]
        numbers: dict[str, Guess] = {}
        for key, names in zip(NUMBERS, (_DURATION, _DWELL, _VALUE), strict=True):
            found = self.columns.best(names, _not_negative, taken)
            if found is not None:
                numbers[key] = found
                taken.append(found.column)
        self.afterwards(draft, taken, _AFTERWARDS)
        ids: list[dict[str, Any]] = [{"name": self.item.column}]
        draft.reasons[f"ids/{self.item.column}"] = self.item.reason
        item = self.columns.all[self.item.column]
        for name, profile in self.columns.all.items():
            if name in taken or name in draft.left_out:
                continue
            if name.startswith("label_"):
                draft.left_out[name] = "names that begin with label_ are reserved"
            elif self.columns.number(name):
                draft.left_out[name] = "a number, which no id can be"
            elif profile.kind != "list" and not depends(profile, item):
                why = self.columns.useless.get(name, "does not describe the item")
                draft.left_out[name] = why
            elif (made := self.feature(draft, "ids", name)) is not None:
                ids.append(made)
        draft.set("ids", ids, "the item, and what describes it")
        self._actions(draft)
        for key, guess in numbers.items():
            draft.set(key, guess.column, guess.reason)
        if labels:
            binary = [g.column for g in labels]
            draft.set("binary", binary, "; ".join(f"{g.column} {g.reason}" for g in labels))
        else:
            task = "event"
            draft.set("binary", [task], "no column of 0 and 1: every event is a positive example")
            draft.set("happened", [task], "needs negatives: --set data.timeline.negatives=4")
        first = self.item.column
        if first != "item" or self.event is not None:
            draft.hints.append(
                "data.timeline.slices says what a model reads, e.g. {version: 1, slices: [{name: "
                f"all, timeline: explicit, id: {_flow(first)}, table: all}}]}}"
            )
        return draft

    def _actions(self, draft: Draft) -> None:
        if self.event is None:
            draft.set("action", None, "no column of actions: all events are alike")
            return
        profile = self.columns.all[self.event.column]
        column = self.event.column
        actions = self.table.terms(column)
        draft.set("action", column, self.event.reason)
        draft.set("actions", actions, "by their number, the most frequent first")
        implicit = [a for a in actions if _has(words_of(a), _IMPLICIT) is not None]
        if 0 < len(implicit) < profile.distinct:
            draft.set("implicit", implicit, "by their names, what was only seen")


def _probability(profile: Profile) -> bool:
    found = profile.numbers
    if profile.kind != "real" or found is None or not len(found):
        return False
    return bool(found.min() > 0 and found.max() <= 1)


def _not_negative(profile: Profile) -> bool:
    found = profile.numbers
    numbers = profile.kind in ("real", "integer") and profile.unit is None
    return bool(numbers and found is not None and len(found) and found.min() >= 0)


def _mostly_once(profile: Profile) -> bool:
    if profile.codes is None or profile.distinct < 1000:
        return False
    counts = np.bincount(profile.codes[profile.codes >= 0])
    return bool((counts == 1).mean() > 0.5)


def _in_order(profile: Profile) -> bool:
    found = profile.numbers
    return found is not None and len(found) > 1 and bool((np.diff(found) == 1).all())


def _order(drafter: _Drafter, possible: Mapping[str, Draft]) -> tuple[list[str], str]:
    """The possible types, the likeliest first, and why the first is."""
    label = next(iter(drafter.labels), None)
    preferred: list[tuple[str, bool, str]] = [
        ("logged_action", drafter.propensity is not None, "it has propensities"),
        ("list", _graded(drafter), "it has several rows a query, with grades or clicks"),
        ("timeline", drafter.event is not None, "it has users, times, and several actions"),
        ("impression", label is not None and label.by_name, "it has a label of 0 and 1"),
        ("history", True, "it has users and items"),
        ("impression", True, "it has a column of 0 and 1"),
    ]
    for records, holds, why in preferred:
        if records in possible and holds:
            return [records, *(name for name in possible if name != records)], why
    return list(possible), ""


def _graded(drafter: _Drafter) -> bool:
    """Whether the column of queries is more than a session."""
    query = drafter.query
    words = drafter.columns.words[query.column] if query is not None else []
    return _has(words, ("query", "qid", "search", "srch", "request", "slate", "list")) is not None


def infer(path: str, rows: int = 100_000) -> Inference:
    """Finds out which records files can be, and writes a spec for each type.

    Args:
      path: A file, a folder, a glob or a list of them, as `--data` takes it.
      rows: Number of rows to look at.

    Raises:
      InputError: A file is missing, empty or damaged.
    """
    table = profile_files(path, rows)
    drafter = _Drafter(table)
    drafts: dict[str, Draft] = {}
    impossible: dict[str, str] = {}
    for records, row in RECORD_TYPES.items():
        found = drafter.draft(records)
        if isinstance(found, str):
            impossible[records] = found
            continue
        try:
            mapping = {k: v for k, v in found.mapping.items() if k not in ("reward", "propensity")}
            from_mapping(row.spec, mapping)
        except ConfigError as error:
            impossible[records] = str(error)
            continue
        drafts[records] = found
    order, why = _order(drafter, drafts)
    return Inference(path, table, {name: drafts[name] for name in order}, impossible, why)


def records_of(mapping: Mapping[str, Any], where: str) -> str:
    """Returns the type of records that a feature spec describes, by its keys.

    Args:
      mapping: The spec, as read from YAML.
      where: Name of the spec, for messages.

    Raises:
      ConfigError: No type has these keys, or several have.
    """
    rest = dict(mapping)
    pop_dialect(rest, where)
    keys = set(rest)
    if keys & {"reward", "propensity"}:
        return "logged_action"
    fits = {
        name: {field.name for field in dataclasses.fields(row.spec)}  # type: ignore[arg-type]
        for name, row in RECORD_TYPES.items()
        if name != "logged_action"
    }
    required = {"impression": {"features"}, "list": {"candidate"}}
    found = [
        name for name, known in fits.items() if keys <= known and required.get(name, set()) <= keys
    ]
    if "list" in found and keys & {"query", "relevance", "score", "query_vocabulary"}:
        found = ["list"]
    if "timeline" in found and "history" in found:
        # Both have users and times; items are a key of histories only.
        found = ["history"]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{where}: can be {' or '.join(found)} records: give --records")
    known = {key for names in fits.values() for key in names} | {"reward", "propensity"}
    for key in sorted(keys - known):
        raise ConfigError(f"{where}: unknown key {key}{did_you_mean(key, known)}")
    raise ConfigError(
        f"{where}: no type of records has the keys {', '.join(sorted(keys))} together: give "
        "--records"
    )
