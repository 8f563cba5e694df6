"""Small synthetic files in the formats of the public data sets."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

USERS_1M = "1::F::1::10::48067\n2::M::56::16::70072-1234\n"
MOVIES_1M = "1::Amélie (2001)::Comedy|Romance\n3::Heat (1995)::Crime\n"
RATINGS_1M = "1::1::5::978300760\n1::3::3::978302109\n2::1::2::978301968\n2::3::4::978300275\n"


def movielens_1m(folder: Path, ratings: str = RATINGS_1M) -> Path:
    """A folder as the archive of MovieLens-1M unpacks."""
    inner = folder / "ml-1m"
    inner.mkdir(parents=True, exist_ok=True)
    (inner / "users.dat").write_bytes(USERS_1M.encode("latin-1"))
    (inner / "movies.dat").write_bytes(MOVIES_1M.encode("latin-1"))
    (inner / "ratings.dat").write_bytes(ratings.encode("latin-1"))
    return folder


def movielens_1m_zip(folder: Path, ratings: str = RATINGS_1M) -> Path:
    """The archive itself."""
    source = movielens_1m(folder, ratings)
    target = folder / "ml-1m.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted((source / "ml-1m").iterdir()):
            archive.write(file, f"ml-1m/{file.name}")
    return target


def many_ratings_1m_zip(folder: Path, users: int, movies: int) -> Path:
    """The archive with every user's rating of every movie, none of them a 3."""
    rng = np.random.default_rng(0)
    taste = rng.normal(size=users)[:, None] + rng.normal(size=movies)
    stars = np.select([taste < -1, taste < 0, taste < 1], [1, 2, 4], 5)
    lines = {
        "users": [f"{u}::{'FM'[u % 2]}::25::{u % 21}::{48000 + u}" for u in range(1, users + 1)],
        "movies": [f"{m}::Film {m} (1995)::Drama" for m in range(1, movies + 1)],
        "ratings": [
            f"{u + 1}::{m + 1}::{stars[u, m]}::{978300000 + m}"
            for u in range(users)
            for m in range(movies)
        ],
    }
    target = folder / "ml-1m.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for name, rows in lines.items():
            archive.writestr(f"ml-1m/{name}.dat", "\n".join(rows) + "\n")
    return target


def movielens_100k(folder: Path) -> Path:
    """A folder as the archive of MovieLens-100k unpacks."""
    inner = folder / "ml-100k"
    inner.mkdir(parents=True)
    (inner / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n")
    flags = ["0"] * 19
    comedy = "|".join("1" if i in (4, 5) else f for i, f in enumerate(flags))
    (inner / "u.item").write_text(f"7|A film (1995)|01-Jan-1995||http://x|{comedy}\n")
    (inner / "u.data").write_text("1\t7\t5\t881250949\n2\t7\t1\t891717742\n")
    return folder


def criteo_line(label: int, numbers: list[str], terms: list[str]) -> str:
    """One line; short lists are filled with missing values."""
    numbers = numbers + [""] * (13 - len(numbers))
    terms = terms + [""] * (26 - len(terms))
    return "\t".join([str(label), *numbers, *terms]) + "\n"


def avazu_line(click: int, hour: str) -> str:
    """One line of an Avazu log."""
    return ",".join(["1000", str(click), hour, *(f"v{i}" for i in range(21))]) + "\n"
