"""MovieLens-1M and MovieLens-100k, as impressions, histories, logged actions and timelines."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from numpy.typing import NDArray
from typing_extensions import override

from tfrz.config import require
from tfrz.data.columns import one_each, whole
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.histories.spec import CandidateSpec, HistorySpec
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.sources.files import CorruptLine, Shard, TextSource, corrupt
from tfrz.data.sources.reader import Reader
from tfrz.data.spec import Feature, numeric
from tfrz.data.timelines.readers import TimelineReader
from tfrz.data.timelines.spec import TimelineSpec
from tfrz.errors import InputError


@dataclasses.dataclass(frozen=True)
class _Layout:
    """File layout of one release."""

    ratings: str
    users: str
    movies: str
    separator: bytes
    user_separator: str


_LAYOUTS = {
    "1m": _Layout("ratings.dat", "users.dat", "movies.dat", b"::", "::"),
    "100k": _Layout("u.data", "u.user", "u.item", b"\t", "|"),
}

_GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


@dataclasses.dataclass(frozen=True)
class _Catalogue:
    """Users and movies as Arrow columns; `*_rows` map ids to rows, unknown ids to -1."""

    user_rows: NDArray[Any]
    movie_rows: NDArray[Any]
    gender: pa.Array
    age: pa.Array
    occupation: pa.Array
    zip_code: pa.Array
    genres: pa.Array
    decades: pa.Array


class _Release:
    """The files of a release, whatever records they become."""

    def __init__(self, path: str, release: str = "1m") -> None:
        self.name = f"movielens-{release}"
        self.path, self.release = path, release

    @property
    def _layout(self) -> _Layout:
        return _LAYOUTS[self.release]

    def _source(self, member: str) -> TextSource:
        return TextSource(self.path, member)

    def files(self) -> list[str]:
        """See `Reader`."""
        layout = self._layout
        members = (layout.ratings, layout.users, layout.movies)
        return sorted({self._source(member).file for member in members})

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        source = self._source(self._layout.ratings)
        shards = source.shards()
        first = next(source.lines(shards[0]))
        if len(first.split(self._layout.separator)) != 4:
            separator = self._layout.separator.decode().replace("\t", "\\t")
            raise InputError(
                f"{shards[0].place}:1: expected user{separator}movie{separator}rating{separator}"
                f"timestamp, got {first[:40].decode('latin-1')!r}: is it a {self.name} file?"
            )
        _catalogue(self.path, self.release)
        return shards

    def movies(self) -> tuple[pa.Array, pa.Array]:
        """Returns the ids of all movies (int64) and their lists of genres."""
        catalogue = _catalogue(self.path, self.release)
        ids = np.flatnonzero(catalogue.movie_rows >= 0)
        return pa.array(ids), catalogue.genres.take(pa.array(catalogue.movie_rows[ids]))

    def described(self) -> pa.Table:
        """Returns all movies: `movie` (binary), `genre` (lists), `decade` ("" if unknown)."""
        ids, genres = self.movies()
        catalogue = _catalogue(self.path, self.release)
        rows = pa.array(catalogue.movie_rows[ids.to_numpy()])
        names = ids.cast(pa.string()).cast(pa.binary())
        return pa.table({"movie": names, "genre": genres, "decade": catalogue.decades.take(rows)})

    def chunks(self, shard: Shard) -> Iterator[tuple[Shard, list[bytes]]]:
        """Yields the lines of a shard, some thousand at a time."""
        return self._source(self._layout.ratings).chunks(shard)

    def ratings(
        self, shard: Shard, lines: list[bytes]
    ) -> Generator[CorruptLine, None, tuple[NDArray[Any], NDArray[Any]]]:
        """Yields the corrupt lines among some of a shard.

        Returns:
          User, movie, rating and time of each rating, int64 `[ratings, 4]`; and the index of its
          line.
        """
        numbers = _parsed(lines, self._layout.separator)
        good = list(range(len(lines)))
        if numbers is None:
            good, rows = [], [line.split(self._layout.separator) for line in lines]
            for i, row in enumerate(rows):
                if len(row) != 4:
                    yield corrupt(shard, i, f"{len(row)} fields instead of 4", lines[i])
                elif whole_numbers([row]) is None:
                    yield corrupt(shard, i, "a field is not a whole number", lines[i])
                else:
                    good.append(i)
            numbers = whole_numbers([rows[i] for i in good])
        assert numbers is not None
        return numbers, np.array(good, np.int64)

    def rated(
        self, shard: Shard, lines: list[bytes]
    ) -> Generator[CorruptLine, None, tuple[NDArray[Any], NDArray[Any]]]:
        """Yields the corrupt lines among some of a shard, ratings and times out of range too.

        Returns:
          User, movie, rating and time of each rating, int64 `[ratings, 4]`, and its position.
        """
        numbers, rows = yield from self.ratings(shard, lines)
        sound = (numbers[:, 2] >= 1) & (numbers[:, 2] <= 5) & (numbers[:, 3] >= 0)
        for i in np.flatnonzero(~sound):
            reason = "a negative time" if numbers[i, 3] < 0 else "a rating outside 1 to 5"
            yield corrupt(shard, int(rows[i]), reason, lines[int(rows[i])])
        return numbers[sound], shard.first_line + rows[sound]


class MovieLens(_Release, Reader):
    """Ratings with the attributes of user and movie.

    Features: `user_id`, `movie_id`, `gender`, `age`, `occupation`, `zip_code` (strings) and
    `genres` (a list). Label: 1 for ratings of 4 and 5, 0 for 1 and 2; ratings of 3 are left out,
    as in the DCN-V2 paper, section 7.1.1.

    Args:
      path: The archive published by GroupLens, or a folder with its files.
      release: "1m" or "100k".
      genres: Whether the list of genres is a feature.
      keep_neutral: Label ratings of 3 as 0 instead of leaving them out.
    """

    def __init__(
        self, path: str, release: str = "1m", genres: bool = True, keep_neutral: bool = False
    ) -> None:
        super().__init__(path, release)
        self.genres, self.keep_neutral = genres, keep_neutral

    @override
    def feature_spec(self) -> FeatureSpec:
        names = ("user_id", "movie_id", "gender", "age", "occupation", "zip_code")
        features = [Feature(name) for name in names]
        if self.genres:
            features.append(Feature("genres", multivalent=True))
        return FeatureSpec(tuple(features))

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        for part, lines in self.chunks(shard):
            yield from self._labelled(part, lines)

    def _labelled(self, shard: Shard, lines: list[bytes]) -> Iterator[pa.RecordBatch | CorruptLine]:
        numbers, indices = yield from self.ratings(shard, lines)
        if not len(indices):
            return
        catalogue = _catalogue(self.path, self.release)
        user, movie, rating = numbers[:, 0], numbers[:, 1], numbers[:, 2]
        user_row = _look_up(catalogue.user_rows, user)
        movie_row = _look_up(catalogue.movie_rows, movie)
        known = (user_row >= 0) & (movie_row >= 0) & (rating >= 1) & (rating <= 5)
        for i in np.flatnonzero(~known):
            reason = (
                "an unknown user"
                if user_row[i] < 0
                else "an unknown movie"
                if movie_row[i] < 0
                else "a rating outside 1 to 5"
            )
            yield corrupt(shard, int(indices[i]), reason, lines[int(indices[i])])
        kept = np.flatnonzero(known & ((rating != 3) | self.keep_neutral))
        users, movies = pa.array(user_row[kept]), pa.array(movie_row[kept])
        columns = {
            "user_id": one_each(_strings(user[kept]), "string"),
            "movie_id": one_each(_strings(movie[kept]), "string"),
            "gender": one_each(catalogue.gender.take(users), "string"),
            "age": one_each(catalogue.age.take(users), "string"),
            "occupation": one_each(catalogue.occupation.take(users), "string"),
            "zip_code": one_each(catalogue.zip_code.take(users), "string"),
            "label": one_each((rating[kept] > 3).astype(np.float32), "float32"),
        }
        if self.genres:
            columns["genres"] = catalogue.genres.take(movies)
        yield pa.RecordBatch.from_pydict(columns)


def _strings(numbers: NDArray[Any]) -> pa.Array:
    return pa.array(numbers).cast(pa.string())


def _parsed(lines: list[bytes], separator: bytes) -> NDArray[Any] | None:
    """Parses lines of four whole numbers, `[lines, 4]`; returns None if any is invalid."""
    text = b"\n".join(lines)
    if b"," in text or not all(lines):
        return None
    names = ["user", "movie", "rating", "time"]
    try:
        table = pcsv.read_csv(
            pa.BufferReader(text.replace(separator, b",")),
            pcsv.ReadOptions(column_names=names, use_threads=False),
            convert_options=pcsv.ConvertOptions(column_types={name: pa.int64() for name in names}),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != len(lines) or any(table[name].null_count for name in names):
        return None
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def whole_numbers(rows: list[list[bytes]]) -> NDArray[Any] | None:
    """Parses rows of four whole numbers, `[rows, 4]`; returns None if any row is invalid."""
    try:
        flat = np.array([row[:3] + row[3:4] for row in rows if len(row) == 4], dtype="S20")
        if len(flat) != len(rows):
            return None
        return flat.astype(np.int64).reshape(-1, 4)
    except (ValueError, OverflowError):
        return None


def _look_up(rows: NDArray[Any], ids: NDArray[Any]) -> NDArray[Any]:
    inside = (ids >= 0) & (ids < len(rows))
    return np.where(inside, rows[np.where(inside, ids, 0)], -1)


@functools.lru_cache(maxsize=4)
def _catalogue(path: str, release: str) -> _Catalogue:
    """Reads users and movies; cached, because every shard needs them."""
    layout = _LAYOUTS[release]

    def rows(member: str, at_least: int) -> list[list[str]]:
        source = TextSource(path, member)
        with source.open() as file:
            lines = file.read().decode("latin-1").splitlines()
        table = []
        for number, line in enumerate(lines, start=1):
            fields = line.split(layout.user_separator)
            if len(fields) < at_least or not fields[0].isdigit():
                raise InputError(
                    f"{path}!{member}:{number}: expected {at_least} fields that start with an id, "
                    f"got {line[:40]!r}: is it a movielens-{release} file?"
                )
            table.append(fields)
        if not table:
            raise InputError(f"{path}!{member} is empty: nothing to read")
        return table

    def index(table: list[list[str]]) -> NDArray[Any]:
        ids = np.array([int(fields[0]) for fields in table])
        positions = np.full(ids.max() + 1, -1, np.int64)
        positions[ids] = np.arange(len(ids))
        return positions

    users, movies = rows(layout.users, 5), rows(layout.movies, 3)
    # users.dat: id, gender, age, occupation, zip; u.user: id, age, gender, occupation, zip.
    gender, age = (1, 2) if release == "1m" else (2, 1)
    if release == "1m":
        genres = [fields[-1].split("|") for fields in movies]
    else:
        genres = [
            [name for name, flag in zip(_GENRES_100K, fields[5:], strict=False) if flag == "1"]
            for fields in movies
        ]

    def column(position: int) -> pa.Array:
        return pa.array([fields[position] for fields in users])

    # Titles end with the year: "Toy Story (1995)".
    years = [re.search(r"\((\d{3})\d\)\s*$", fields[1]) for fields in movies]

    return _Catalogue(
        user_rows=index(users),
        movie_rows=index(movies),
        gender=column(gender),
        age=column(age),
        occupation=column(3),
        zip_code=column(4),
        genres=pa.array([[g.encode() for g in row] for row in genres], pa.list_(pa.binary())),
        decades=pa.array([f"{y[1]}0s".encode() if y else b"" for y in years], pa.binary()),
    )


class MovieLensInteractions(_Release, InteractionReader):
    """MovieLens ratings as interactions: user, movie, time.

    Args:
      path: The archive published by GroupLens, or a folder with its files.
      release: "1m" or "100k".
      min_rating: Leave out ratings below this.
    """

    def __init__(self, path: str, release: str = "1m", min_rating: int = 1) -> None:
        require(1 <= min_rating <= 5, "data.options.min_rating", "must be 1 to 5")
        super().__init__(path, release)
        self.min_rating = min_rating

    @override
    def feature_spec(self) -> HistorySpec:
        catalogue = CandidateSpec("movie_id", (Feature("genres", multivalent=True),))
        return HistorySpec("user_id", "movie_id", "timestamp", candidates=catalogue)

    @override
    def candidates(self) -> pa.Table | None:
        ids, genres = self.movies()
        return pa.table({"movie_id": ids.cast(pa.string()).cast(pa.binary()), "genres": genres})

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        for part, lines in self.chunks(shard):
            numbers, position = yield from self.rated(part, lines)
            kept = numbers[:, 2] >= self.min_rating
            if kept.any():
                yield self.batch(
                    user=_strings(numbers[kept, 0]),
                    item=_strings(numbers[kept, 1]),
                    time=numbers[kept, 3],
                    position=position[kept],
                    **self.of_ratings(numbers[kept, 2]),
                )

    def of_ratings(self, ratings: NDArray[Any]) -> dict[str, Any]:
        """Returns the columns of further contexts."""
        return {}


class MovieLensActions(MovieLensInteractions):
    """Ratings of MovieLens as actions of an unknown logger; the reward is 1 for a good rating.

    Args:
      path: The archive published by GroupLens, or a folder with its files.
      release: "1m" or "100k".
      good: Ratings of at least this have the reward 1, others 0; 0 makes the reward rating / 5.
    """

    record_type = "logged_action"

    def __init__(self, path: str, release: str = "1m", good: int = 4) -> None:
        require(0 <= good <= 5, "data.options.good", "must be 0 to 5")
        super().__init__(path, release)
        self.good = good

    @override
    def feature_spec(self) -> HistorySpec:
        return HistorySpec(
            "user_id", "movie_id", "timestamp", (numeric("reward"),), outcomes=("reward",)
        )

    @override
    def of_ratings(self, ratings: NDArray[Any]) -> dict[str, Any]:
        reward = ratings / 5.0 if self.good == 0 else ratings >= self.good
        return {"reward": reward.astype(np.float32)}


class MovieLensTimelines(_Release, TimelineReader):
    """Ratings of MovieLens as explicit events whose value is the rating.

    Ids: `movie`, `genre` (several) and `decade`. Outcomes: `liked`, whether the rating is 4 or 5,
    and the `rating`.

    Args:
      path: The archive published by GroupLens, or a folder with its files.
      release: "1m" or "100k".
    """

    @override
    def feature_spec(self) -> TimelineSpec:
        return TimelineSpec(
            ids=(Feature("movie"), Feature("genre", multivalent=True), Feature("decade")),
            actions=("rated",),
            value="rating",
            binary=("liked",),
            regression=("rating",),
        )

    @override
    def events(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        for part, lines in self.chunks(shard):
            yield from self._rated_events(part, lines)

    def _rated_events(
        self, shard: Shard, lines: list[bytes]
    ) -> Iterator[pa.RecordBatch | CorruptLine]:
        numbers, position = yield from self.rated(shard, lines)
        if not len(numbers):
            return
        described = self.described()
        movie = _strings(numbers[:, 1]).cast(pa.binary())
        rows = pc.index_in(movie, whole(described["movie"]))
        genre = whole(described["genre"]).take(rows)
        yield self.batch(
            user=_strings(numbers[:, 0]),
            time=numbers[:, 3],
            position=position,
            movie=movie,
            genre=pc.if_else(pc.is_null(genre), pa.scalar([], genre.type), genre),
            decade=whole(described["decade"]).take(rows),
            value=numbers[:, 2].astype(np.float32),
            label_liked=(numbers[:, 2] >= 4).astype(np.float32),
            label_rating=numbers[:, 2].astype(np.float32),
        )
