"""Sources of interactions: who took which item when. They become histories.

A batch has the columns `user` and `item` (binary), `time` (int64, 0 where there is none),
`position` (int64, the place in the source) and one per context of the spec.
"""

from __future__ import annotations

import abc
import dataclasses
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfrz.config import from_mapping, read_yaml, require
from tfrz.data.columns import ARROW, one_each, record_batch, whole
from tfrz.data.features import CandidateSpec, Feature, HistorySpec
from tfrz.data.readers.base import Reader, Shard, TextSource, corrupt
from tfrz.data.readers.movielens import MovieLens, whole_numbers
from tfrz.data.readers.tabular import Tabular, typed
from tfrz.data.records import CorruptLine
from tfrz.data.simulators.context_switch import ContextSwitchSimulator
from tfrz.data.simulators.interests import InterestSimulator
from tfrz.errors import InputError


class InteractionReader(Reader):
    """A source of interactions."""

    record_type = "history"

    @abc.abstractmethod
    def feature_spec(self) -> HistorySpec:
        """What the columns are."""

    def candidates(self) -> pa.Table | None:
        """The catalogue's rows as `feature_spec().candidates` describes them; None for none."""
        return None

    @property
    def schema(self) -> pa.Schema:
        """The columns of a batch."""
        columns = {
            "user": pa.binary(),
            "item": pa.binary(),
            "time": pa.int64(),
            "position": pa.int64(),
        }
        for feature in self.feature_spec().context:
            columns[feature.name] = ARROW[feature.dtype]
        return pa.schema(list(columns.items()))

    def batch(self, **columns: Any) -> pa.RecordBatch:
        """A batch of the schema; `time` may be left out."""
        columns.setdefault("time", np.zeros(len(columns["item"]), np.int64))
        return record_batch(self.schema, columns)


class MovieLensInteractions(InteractionReader):
    """Ratings of MovieLens as interactions: user, movie, time.

    Args:
      path: the archive as GroupLens publishes it, or a folder with its files.
      release: "1m" or "100k".
      min_rating: leave out ratings below this.
    """

    def __init__(self, path: str, release: str = "1m", min_rating: int = 1) -> None:
        require(1 <= min_rating <= 5, "data.options.min_rating", "must be 1 to 5")
        self.name = f"movielens-{release}"
        self.min_rating = min_rating
        self._ratings = MovieLens(path, release)

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        catalogue = CandidateSpec("movie_id", (Feature("genres", multivalent=True),))
        return HistorySpec("user_id", "movie_id", "timestamp", candidates=catalogue)

    def candidates(self) -> pa.Table | None:
        """See `InteractionReader`."""
        ids, genres = self._ratings.movies()
        return pa.table({"movie_id": ids.cast(pa.string()).cast(pa.binary()), "genres": genres})

    def files(self) -> list[str]:
        """See `Reader`."""
        return self._ratings.files()

    def fingerprint(self) -> str:
        """See `Reader`."""
        return f"{self._ratings.fingerprint()}-{self.min_rating}"

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        return self._ratings.shards()

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        lines, fields = self._ratings.fields(shard)
        good: list[int] = []
        numbers = whole_numbers(fields)
        if numbers is None:
            for i, row in enumerate(fields):
                if len(row) != 4:
                    yield corrupt(shard, i, f"{len(row)} fields instead of 4", lines[i])
                elif whole_numbers([row]) is None:
                    yield corrupt(shard, i, "a field is not a whole number", lines[i])
                else:
                    good.append(i)
            numbers = whole_numbers([fields[i] for i in good])
        else:
            good = list(range(len(fields)))
        if numbers is None:
            return
        rows = np.array(good, np.int64)
        sound = (numbers[:, 2] >= 1) & (numbers[:, 2] <= 5) & (numbers[:, 3] >= 0)
        for i in np.flatnonzero(~sound):
            reason = "a negative time" if numbers[i, 3] < 0 else "a rating outside 1 to 5"
            yield corrupt(shard, int(rows[i]), reason, lines[int(rows[i])])
        kept = sound & (numbers[:, 2] >= self.min_rating)
        if kept.any():
            yield self.batch(
                user=pa.array(numbers[kept, 0]).cast(pa.string()),
                item=pa.array(numbers[kept, 1]).cast(pa.string()),
                time=numbers[kept, 3],
                position=shard.first_line + rows[kept],
                **self.of_ratings(numbers[kept, 2]),
            )

    def of_ratings(self, ratings: np.ndarray) -> dict[str, Any]:
        """Columns of further contexts."""
        return {}


class ItemLines(InteractionReader):
    """A text file with one user or session a line: item ids with spaces, in order of time.

    Args:
      path: the file, plain or `.gz`, or a folder.
      name: of the source.
      member: the file within a folder.
      first_is_user: whether the first field is the user; without it each line is a user.
    """

    def __init__(self, path: str, name: str, member: str = "", first_is_user: bool = False) -> None:
        self.name, self.first_is_user = name, first_is_user
        self._source = TextSource(path, member if Path(path).is_dir() else "")

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        return HistorySpec(time=None)

    def files(self) -> list[str]:
        """See `Reader`."""
        return [self._source.file]

    def fingerprint(self) -> str:
        """See `Reader`."""
        return f"{super().fingerprint()}-{self.first_is_user}"

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        return self._source.shards()

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        least = 2 if self.first_is_user else 1
        users: list[bytes] = []
        items: list[list[bytes]] = []
        for i, line in enumerate(self._source.lines(shard)):
            fields = line.split()
            if len(fields) < least or b"\t" in line:
                wanted = "a user and items" if self.first_is_user else "items"
                yield corrupt(shard, i, f"expected {wanted} with spaces between", line)
                continue
            users.append(fields[0] if self.first_is_user else b"%d" % (shard.first_line + i))
            items.append(fields[1:] if self.first_is_user else fields)
        if not users:
            return
        lengths = np.array([len(row) for row in items])
        flat = [item for row in items for item in row]
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield self.batch(
            user=pa.array(users, pa.binary()).take(
                pa.array(np.repeat(np.arange(len(users)), lengths))
            ),
            item=pa.array(flat, pa.binary()),
            position=np.arange(len(flat)) - starts,
        )


class AmazonSequences(ItemLines):
    """Reviews in order, without times; items have their attributes (categories, brands, tags).

    Args:
      path: `NAME.txt.gz`, or the folder that has it; `NAME_item2attributes.json.gz` lies beside it.
      part: which of the data sets in a folder.
    """

    def __init__(self, path: str, part: str | None = None) -> None:
        member = _named(path, part, _AMAZON, ".txt.gz")
        super().__init__(path, "amazon-seq", member, first_is_user=True)
        file = self._source.file
        beside = Path(file.removesuffix(".gz").removesuffix(".txt") + "_item2attributes.json.gz")
        self._attributes = str(beside) if beside.exists() else None

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        if self._attributes is None:
            return super().feature_spec()
        described = CandidateSpec(features=(Feature("attributes", multivalent=True),))
        return HistorySpec(time=None, candidates=described)

    def files(self) -> list[str]:
        """See `Reader`."""
        return [*super().files(), *([self._attributes] if self._attributes else [])]

    def candidates(self) -> pa.Table | None:
        """See `InteractionReader`."""
        if self._attributes is None:
            return None
        try:
            with gzip.open(self._attributes) as file:
                known = json.load(file)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._attributes} is not gzipped JSON: {error}") from error
        try:
            lists = [[b"%d" % a for a in attributes] for attributes in known.values()]
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"{self._attributes} does not map items to lists of numbers: {error}"
            ) from error
        return pa.table(
            {
                "item": pa.array([item.encode() for item in known], pa.binary()),
                "attributes": pa.array(lists, pa.list_(pa.binary())),
            }
        )


class Gowalla(InteractionReader):
    """Check-ins in the split of LightGCN: sets without order, which a seed puts into one.

    Args:
      path: the folder with `train.txt.gz` and `test.txt.gz`.
      part: `train`, `test`, or `both` (a user's training places before those of the test).
      seed: of the order within a part.
    """

    name = "gowalla"
    _PARTS: ClassVar = {"train": ("train",), "test": ("test",), "both": ("train", "test")}

    def __init__(self, path: str, part: str = "train", seed: int = 0) -> None:
        require(part in self._PARTS, "data.options.part", "must be train, test or both")
        self.path, self.part, self.seed = path, part, seed
        self._lines = [
            ItemLines(path, self.name, f"{one}.txt.gz", first_is_user=True)
            for one in self._PARTS[part]
        ]

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        return HistorySpec(time=None)

    def files(self) -> list[str]:
        """See `Reader`."""
        return [file for lines in self._lines for file in lines.files()]

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        return [shard for lines in self._lines for shard in lines.shards()]

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        name = shard.place.rpartition("/")[2].rpartition("!")[2].partition(".")[0]
        place = self._PARTS[self.part].index(name)
        for batch in self._lines[place].read(shard):
            if isinstance(batch, CorruptLine):
                yield batch
                continue
            # A user's line is whole within a shard.
            rng = np.random.default_rng([self.seed, place, shard.start])
            order = rng.random(batch.num_rows).argsort().astype(np.int64)
            columns = {name: batch.column(name) for name in batch.schema.names}
            columns["position"] = pa.array((place << 40) + order)
            yield record_batch(self.schema, columns)


class CompleteJourney(InteractionReader):
    """Grocery purchases of The Complete Journey: household, product, time; context: the store.

    Args:
      path: `transactions.parquet`, or the folder that has it.
    """

    name = "completejourney"
    _COLUMNS = ("household_id", "product_id", "transaction_timestamp", "store_id")
    _DESCRIBED = ("department", "brand", "product_category", "product_type")

    def __init__(self, path: str) -> None:
        place = Path(path)
        self.path = str(place / "transactions.parquet" if place.is_dir() else place)

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        return HistorySpec(
            user="household_id",
            item="product_id",
            time="transaction_timestamp",
            context=(Feature("store_id"),),
            candidates=(
                CandidateSpec("product_id", tuple(Feature(name) for name in self._DESCRIBED))
                if self._products is not None
                else None
            ),
        )

    @property
    def _products(self) -> str | None:
        beside = Path(self.path).with_name("products.parquet")
        return str(beside) if beside.exists() else None

    def candidates(self) -> pa.Table | None:
        """See `InteractionReader`."""
        if self._products is None:
            return None
        wanted = ("product_id", *self._DESCRIBED)
        parquet_shards(self._products, wanted)
        table = pq.read_table(self._products, columns=list(wanted))
        text = {name: whole(table[name]).cast(pa.string()) for name in wanted}
        return pa.table(
            {
                "product_id": text["product_id"].cast(pa.binary()),
                **{name: one_each(text[name], "string") for name in self._DESCRIBED},
            }
        )

    def files(self) -> list[str]:
        """See `Reader`."""
        return [self.path, *([self._products] if self._products else [])]

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        return parquet_shards(self.path, self._COLUMNS)

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        file = pq.ParquetFile(self.path)
        before = sum(file.metadata.row_group(g).num_rows for g in range(shard.start))
        table = file.read_row_group(shard.start, columns=list(self._COLUMNS)).combine_chunks()
        seconds = table["transaction_timestamp"].cast(pa.timestamp("s"), safe=False)
        times = seconds.cast(pa.int64())
        whole = pc.and_(pc.is_valid(table["household_id"]), pc.is_valid(table["product_id"]))
        whole = pc.and_(whole, pc.fill_null(pc.greater_equal(times, 0), False))
        sound = np.asarray(whole.combine_chunks().to_numpy(zero_copy_only=False), bool)
        for i in np.flatnonzero(~sound):
            reason = "household, product or time is missing, or the time negative"
            yield CorruptLine(self.path, before + int(i) + 1, reason, "")
        rows = np.flatnonzero(sound)
        table, times = table.take(pa.array(rows)), times.take(pa.array(rows))

        def text(name: str) -> pa.Array:
            return pa.concat_arrays(table[name].chunks).cast(pa.string())

        yield self.batch(
            user=text("household_id"),
            item=text("product_id"),
            time=pa.concat_arrays(times.chunks),
            position=before + rows,
            store_id=text("store_id"),
        )


def parquet_shards(path: str, columns: tuple[str, ...]) -> list[Shard]:
    """A shard for each row group of a Parquet file that has the columns.

    Raises:
      InputError: the file is missing, of another format, or lacks a column.
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


class TabularCandidates(Tabular):
    """A user's own CSV, Parquet or TFRecord file with a row per item of the catalogue.

    Args:
      spec: names the file and its columns.
    """

    def __init__(self, spec: CandidateSpec) -> None:
        assert spec.file is not None
        self._open(spec.file, spec.separator, "candidates.file in the feature spec")
        self.spec = spec

    @property
    def _multivalent(self) -> tuple[Feature, ...]:
        return tuple(f for f in self.spec.features if f.multivalent)

    @property
    def _names(self) -> list[str]:
        return [feature.name for feature in self.spec.columns]

    def _row(self, raw: dict[str, list[Any]]) -> dict[str, Any] | str:
        row = self._features(raw, self.spec.columns)
        if isinstance(row, dict) and not row[self.spec.item]:
            return f"{self.spec.item} is missing"
        return row

    def _batch(self, rows: list[tuple[int, dict[str, Any]]]) -> pa.RecordBatch:
        columns = {
            f.name: pa.array([row[f.name] for _, row in rows], pa.list_(ARROW[f.dtype]))
            for f in self.spec.columns
        }
        columns[self.spec.item] = columns[self.spec.item].flatten()
        return pa.RecordBatch.from_pydict(columns)

    def table(self) -> pa.Table:
        """All rows.

        Raises:
          InputError: a row cannot be read.
        """
        batches = []
        for shard in self.shards():
            for batch in self.read(shard):
                if isinstance(batch, CorruptLine):
                    raise InputError(f"{batch}: correct the catalogue")
                batches.append(batch)
        if not batches:
            raise InputError(f"{self.path} has no items: the catalogue is empty")
        return pa.Table.from_batches(batches)


class TabularInteractions(Tabular, InteractionReader):
    """A user's own CSV, Parquet or TFRecord file with a row per interaction.

    Args:
      path: `*.csv[.gz]`, `*.tsv[.gz]`, `*.parquet` or `*.tfrecord[.gz]`.
      features: a YAML file as of `HistorySpec`.
    """

    record_type = "history"

    def __init__(self, path: str, features: str) -> None:
        self._open(path)
        self.spec = from_mapping(HistorySpec, read_yaml(features), features)
        described = self.spec.candidates
        if described is not None and described.file is not None:
            # As a name in the spec is meant: from where the spec is.
            beside = str(Path(features).parent / described.file)
            described = dataclasses.replace(described, file=beside)
            self.spec = dataclasses.replace(self.spec, candidates=described)

    def feature_spec(self) -> Any:
        """See `Reader`."""
        return self.spec

    def files(self) -> list[str]:
        """See `Reader`."""
        described = self.spec.candidates
        return [self.path, *([described.file] if described and described.file else [])]

    def candidates(self) -> pa.Table | None:
        """See `InteractionReader`."""
        described = self.spec.candidates
        if described is None:
            return None
        require(described.file is not None, "candidates.file", "name the file of the catalogue")
        return TabularCandidates(described).table()

    @property
    def _multivalent(self) -> tuple[Feature, ...]:
        return ()

    @property
    def _names(self) -> list[str]:
        spec = self.spec
        keys = [name for name in (spec.user, spec.item, spec.time) if name is not None]
        return keys + [feature.name for feature in spec.context]

    def _row(self, raw: dict[str, list[Any]]) -> dict[str, Any] | str:
        spec, row = self.spec, {}
        for name, column in (("user", spec.user), ("item", spec.item)):
            values = [v for v in raw[column] if v not in ("", b"")]
            if len(values) != 1:
                return f"{column} is missing" if not values else f"{column} has several values"
            row[name] = typed("string", values[0])
        if spec.time is not None:
            try:
                (row["time"],) = (int(value) for value in raw[spec.time])
            except (ValueError, TypeError):
                return f"{spec.time} is not a time in whole Unix seconds: {raw[spec.time]!r:.40}"
            if row["time"] < 0:
                return f"{spec.time} is negative: {row['time']}"
        for feature in spec.context:
            values = raw[feature.name]
            try:
                row[feature.name] = typed(feature.dtype, values[0]) if values else None
            except (ValueError, TypeError):
                return f"{feature.name} is not {feature.dtype}: {values!r:.40}"
        return row

    def _batch(self, rows: list[tuple[int, dict[str, Any]]]) -> pa.RecordBatch:
        columns: dict[str, list[Any]] = {"position": [number for number, _ in rows]}
        for name in self.schema.names:
            if name != "position" and (name != "time" or self.spec.time is not None):
                columns[name] = [row[name] for _, row in rows]
        return self.batch(**columns)


class SimulatedInteractions(InteractionReader):
    """Events of `ContextSwitchSimulator`; context: the page.

    Args:
      users: how many.
      length: events of each.
      seed: of the world and of the draws.
    """

    name = "simulated"
    _USERS_A_SHARD = 1000

    def __init__(self, users: int = 5000, length: int = 51, seed: int = 0) -> None:
        for name, value in (("users", users), ("length", length)):
            whole = isinstance(value, int) and value >= 1
            require(whole, f"data.options.{name}", "must be a whole number >= 1")
        self.users, self.length, self.seed = users, length, seed

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        return HistorySpec(context=(Feature("page"),))

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        starts = range(0, self.users, self._USERS_A_SHARD)
        return [Shard("simulated", "", s, min(s + self._USERS_A_SHARD, self.users)) for s in starts]

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        count = shard.end - shard.start
        drawn = ContextSwitchSimulator(self.seed).sample(
            count, self.length, seed=self.seed * 1_000_003 + shard.start
        )
        users = np.repeat(np.arange(shard.start, shard.end), self.length)
        steps = np.tile(np.arange(self.length), count)
        pages = pa.array(["home", "detail"]).take(pa.array(drawn["detail"].ravel().astype(int)))
        yield self.batch(
            user=pa.array([f"user_{u}" for u in users]),
            item=pa.array([f"item_{i}" for i in drawn["item"].ravel()]),
            # A minute apart, the users one after the other.
            time=1_600_000_000 + users * 7 + steps * 60,
            position=users * self.length + steps,
            page=pages,
        )


class SimulatedInterests(InteractionReader):
    """Events of `InterestSimulator`; a catalogue with the cluster of each item.

    Args:
      users: how many.
      length: events of each.
      seed: of the draws.
      interest_power: skew of interests.
      item_power: skew of items.
      clusters: of items.
      cluster_items: items of each.
    """

    name = "simulated"
    _USERS_A_SHARD = 1000

    def __init__(
        self,
        users: int = 10_000,
        length: int = 20,
        seed: int = 0,
        interest_power: float = 1.0,
        item_power: float = 0.5,
        clusters: int = 5,
        cluster_items: int = 10,
    ) -> None:
        for name, value in (("users", users), ("length", length)):
            sound = isinstance(value, int) and value >= 1
            require(sound, f"data.options.{name}", "must be a whole number >= 1")
        self.users, self.length, self.seed = users, length, seed
        self._simulator = InterestSimulator(
            clusters,
            cluster_items,
            interests=min(3, clusters - 1),
            interest_power=interest_power,
            item_power=item_power,
        )

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        return HistorySpec(time=None, candidates=CandidateSpec(features=(Feature("cluster"),)))

    def fingerprint(self) -> str:
        """See `Reader`."""
        described = sorted(vars(self._simulator).items())
        return f"{self.users}-{self.length}-{self.seed}-{described}"

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        starts = range(0, self.users, self._USERS_A_SHARD)
        return [Shard("simulated", "", s, min(s + self._USERS_A_SHARD, self.users)) for s in starts]

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        count = shard.end - shard.start
        drawn = self._simulator.sample(count, self.length, seed=self.seed * 1_000_003 + shard.start)
        yield self.batch(
            user=pa.array(
                [f"user_{u}" for u in np.repeat(np.arange(count), self.length) + shard.start]
            ),
            item=pa.array([f"item_{i}" for i in drawn["item"].ravel()]),
            position=np.tile(np.arange(self.length), count),
        )

    def candidates(self) -> pa.Table | None:
        """See `InteractionReader`."""
        items = np.arange(self._simulator.num_items)
        clusters = items // self._simulator.cluster_items
        return pa.table(
            {
                "item": pa.array([b"item_%d" % i for i in items], pa.binary()),
                "cluster": one_each(pa.array([f"cluster_{c}" for c in clusters]), "string"),
            }
        )


_SESSIONS = ("diginetica", "tmall", "nowplaying")
_AMAZON = ("Beauty", "Sports_and_Outdoors", "Toys_and_Games", "LastFM")


def _named(path: str, part: str | None, known: tuple[str, ...], ending: str) -> str:
    if not Path(path).is_dir():
        return ""
    chosen = known[0] if part is None else part
    require(chosen in known, "data.options.part", f"must be one of {', '.join(known)}")
    return f"{chosen}{ending}"


def sessions(path: str, part: str | None = None) -> Reader:
    """Click sessions without times; `part` picks one of the data sets in a folder."""
    return ItemLines(path, "sessions", _named(path, part, _SESSIONS, "_train.txt.gz"))


__all__ = [
    "AmazonSequences",
    "CompleteJourney",
    "Gowalla",
    "InteractionReader",
    "ItemLines",
    "MovieLensInteractions",
    "SimulatedInteractions",
    "SimulatedInterests",
    "TabularCandidates",
    "TabularInteractions",
    "sessions",
]
