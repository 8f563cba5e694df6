"""Users with histories of any length, for suite `history`.

What is drawn of a user depends on the seed and the user's number alone, so that histories of any
number of users are written as they are drawn, one user in memory at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from tfrz.data.timelines.spec import TimelineSpec

DAY = 86_400
START = 1_600_000_000 // DAY * DAY
_ACTIONS = (b"view", b"like", b"comment", b"share", b"save")

# Actions, dwell time, watch ratio, watch score and time buckets, over three types of id: the kinds
# of slices that the paper names, with the tables that it shares.
SLICES = """
version: 1
slices:
  - {name: reacted_media, timeline: explicit, id: media, table: liked_media}
  - {name: liked_media, timeline: explicit, id: media, table: liked_media, actions: [like]}
  - {name: reacted_authors, timeline: explicit, id: author, table: liked_author}
  - {name: liked_authors, timeline: explicit, id: author, table: liked_author, actions: [like]}
  - {name: liked_authors_3d, timeline: explicit, id: author, table: liked_author, days: 3}
  - {name: liked_authors_7d, timeline: explicit, id: author, table: liked_author, days: 7}
  - {name: shared_authors, timeline: explicit, id: author, table: liked_author, actions: [share]}
  - {name: reacted_topics, timeline: explicit, id: topic, table: liked_topic}
  - {name: saved_topics, timeline: explicit, id: topic, table: liked_topic, actions: [save]}
  - {name: reacted_topics_7d, timeline: explicit, id: topic, table: liked_topic, days: 7}
  - {name: watched_media, timeline: implicit, id: media, table: watched_media, dwell: [15, null]}
  - {name: finished_media, timeline: implicit, id: media, table: watched_media, ratio: [0.9, null]}
  - {name: watched_authors, timeline: implicit, id: author, table: watched_author,
     dwell: [15, null]}
  - {name: watched_authors_7d, timeline: implicit, id: author, table: watched_author,
     dwell: [15, null], days: 7}
  - {name: scored_authors, timeline: implicit, id: author, table: watched_author,
     score: [0.9, null], weight: watch_score}
  - {name: skipped_authors, timeline: implicit, id: author, table: skipped_author, dwell: [null, 3]}
  - {name: glanced_authors, timeline: implicit, id: author, table: skipped_author, dwell: [3, 15]}
  - {name: seen_topics, timeline: implicit, id: topic, table: watched_topic}
  - {name: seen_topics_3d, timeline: implicit, id: topic, table: watched_topic, days: 3}
  - {name: seen_topics_7d, timeline: implicit, id: topic, table: watched_topic, days: 7}
  - {name: scored_topics, timeline: implicit, id: topic, table: watched_topic,
     score: [0.9, null], weight: watch_score}
  - {name: skipped_topics, timeline: implicit, id: topic, table: skipped_topic, dwell: [null, 3]}
"""


def event_spec() -> TimelineSpec:
    """What the events of a world are; the outcome of a view is whether half of it was watched."""
    from tfrz.data.spec import Feature
    from tfrz.data.timelines.spec import TimelineSpec

    return TimelineSpec(
        ids=(Feature("media"), Feature("author"), Feature("topic")),
        action="action",
        actions=tuple(action.decode() for action in _ACTIONS),
        implicit=("view",),
        duration="duration",
        dwell="dwell",
        binary=("finished",),
    )


@dataclasses.dataclass(frozen=True)
class World:
    """Impressions of media by authors, and reactions to them, over a year or so.

    A user has favourite authors, of whom 70 % of the events are; the others are of any author, both
    by a power law. Media are many: the longer a history, the more different ones are in it.

    Attributes:
      users: number of users.
      events: of a user, in the mean.
      seed: of everything.
      spread: deviation of the logarithm of a user's number of events.
      days: from the first event to the last.
      active: share of users whose events go on to the end; those of the others end on any day.
      explicit: share of the events.
      authors: of all media.
      media: of an author.
      topics: authors have one each.
      favourites: authors of a user.
    """

    users: int
    events: int
    seed: int = 0
    spread: float = 0.0
    days: int = 365
    active: float = 1.0
    explicit: float = 0.25
    authors: int = 20_000
    media: int = 50
    topics: int = 400
    favourites: int = 500

    @property
    def end(self) -> int:
        """The second after the last day, Unix seconds."""
        return START + self.days * DAY

    def user(self, number: int) -> bytes:
        """The key of a user; keys are in the order of the numbers."""
        return b"user_%07d" % number

    def table(self, number: int) -> pa.Table:
        """A user's events in order of time, as a timeline's file has them."""
        rng = np.random.default_rng([self.seed, 365, number])
        spread = np.exp(self.spread * rng.standard_normal() - self.spread**2 / 2)
        count = max(1, round(self.events * spread))
        last = self.days if rng.random() < self.active else rng.integers(1, self.days)
        time = START + np.sort(rng.integers(0, last * DAY, count))
        of_all = _power_law(self.authors)
        mine = np.searchsorted(of_all, rng.random(self.favourites))
        author = np.searchsorted(of_all, rng.random(count))
        favourite = np.flatnonzero(rng.random(count) < 0.7)
        places = np.searchsorted(_power_law(self.favourites), rng.random(len(favourite)))
        author[favourite] = mine[places]
        media = author * self.media + rng.integers(0, self.media, count)
        explicit = rng.random(count) < self.explicit
        action = np.where(explicit, rng.integers(1, len(_ACTIONS), count), 0)
        length = np.exp(3.0 + 0.8 * rng.standard_normal(count))
        watch = length * np.minimum(1.5, np.exp(-1.0 + 0.9 * rng.standard_normal(count)))

        def seen(values: np.ndarray) -> pa.Array:
            return pa.array(values.astype(np.float32), mask=explicit)

        return pa.table(
            {
                "user": pa.array([self.user(number)] * count, pa.binary()),
                "time": time,
                "position": number * 10**7 + np.arange(count),
                "explicit": explicit,
                "action": pa.array(_ACTIONS).take(pa.array(action)),
                "media": _names("media", self.authors * self.media).take(pa.array(media)),
                "author": _names("author", self.authors).take(pa.array(author)),
                "topic": _names("topic", self.topics).take(pa.array(author % self.topics)),
                "duration": seen(length),
                "dwell": seen(watch),
                "value": pa.nulls(count, pa.float32()),
            }
        )

    def write(self, folder: Path, buckets: int) -> dict[str, int]:
        """Writes the files of buckets of users that the encoding half of the export reads.

        They are as the job's first half would write them, which groups by Beam.

        Args:
          folder: of the generation in the making.
          buckets: of users.

        Returns:
          Events and bytes.
        """
        from tfrz.data.timelines.examples import buckets_of
        from tfrz.embeddings.store import bucket_file
        from tfrz.embeddings.users import writing_stream

        bucket_of = buckets_of(pa.array(map(self.user, range(self.users))), buckets)
        schema, events = self.table(0).schema, 0
        with contextlib.ExitStack() as stack:
            files = []
            for bucket in range(buckets):
                path = bucket_file(folder, "events", bucket)
                path.parent.mkdir(parents=True, exist_ok=True)
                files.append(stack.enter_context(writing_stream(path, schema)))
            for number in range(self.users):
                table = self.table(number)
                files[bucket_of[number]].add(table)
                events += table.num_rows
        return {"events": events, "bytes": folder_bytes(folder / "events")}


@functools.lru_cache(maxsize=8)
def _power_law(count: int) -> np.ndarray:
    sums = (np.arange(1, count + 1) ** -0.8).cumsum()
    return sums / sums[-1]


@functools.lru_cache(maxsize=8)
def _names(kind: str, count: int) -> pa.Array:
    return pa.array([b"%s_%07d" % (kind.encode(), i) for i in range(count)], pa.binary())


def folder_bytes(folder: Path) -> int:
    """The size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
