"""Where data lies: folders, globs, lists, partitions, names of all kinds, object stores."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from tests.tfrz.data.sources.tables import (
    COLUMNS,
    arrow_table,
    csv_text,
    each_record,
    expected,
    json_text,
    read,
)
from tfrz.data.sources.locations import find
from tfrz.data.sources.spans import located
from tfrz.errors import InputError


def _csv(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(csv_text(rows or [{"user": path.stem}]))
    return path


def _names(given):
    return [os.path.basename(file.path) for file in find(str(given))]


def test_folders_are_read_whole_but_for_hidden_files(tmp_path, caplog):
    folder = tmp_path / "data"
    for name in ("b.csv", "a.csv", "deep/er/c.csv", ".hidden.csv", "_temporary/d.csv", "_s.csv"):
        _csv(folder / name)
    for name in ("_SUCCESS", ".part.csv.crc", "deep/_SUCCESS", "notes.txt"):
        (folder / name).write_text("nothing")
    with caplog.at_level(logging.INFO):
        assert _names(folder) == ["a.csv", "b.csv", "c.csv"]
    assert "1 files of other formats are not read" in caplog.text
    assert _names(f"{folder}/") == ["a.csv", "b.csv", "c.csv"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.csv", ["a.csv", "b.csv"]),
        ("**/*.csv", ["a.csv", "b.csv", "c.csv", "d.csv"]),
        ("[ac].csv", ["a.csv"]),
        ("[!a].csv", ["b.csv"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("deep/*", ["c.csv", "d.csv"]),
        ("deep/**/d.csv", ["d.csv"]),
        ("d*", ["c.csv", "d.csv"]),
        ("a.csv,deep/er", ["a.csv", "d.csv"]),
        ("a.csv, b.csv", ["a.csv", "b.csv"]),
        ("a.csv,*.csv,a.csv", ["a.csv", "b.csv"]),
    ],
)
@pytest.mark.parametrize("start", ["{}", "file://{}"])
def test_globs_and_lists(tmp_path, pattern, names, start):
    for name in ("a.csv", "b.csv", "deep/c.csv", "deep/er/d.csv"):
        _csv(tmp_path / name)
    root = start.format(tmp_path)
    given = ",".join(f"{root}/{part.strip()}" for part in pattern.split(","))
    assert sorted(_names(given)) == names


NAMES = ["a b.csv", "a,b.csv", "a#b.csv", "a%20b.csv", "a=b.csv", "süß.csv", "a?b.csv", "[a].csv"]


@pytest.mark.parametrize("name", [*NAMES, "a;b.csv", "a+b.csv", "a&b.csv", "a'b.csv", "A.CSV"])
@each_record()
def test_names_of_all_kinds(tmp_path, record, name):
    for folder in ("plain", name.removesuffix(".csv")):
        path = _csv(tmp_path / folder / name, {"user": "me"})
        _csv(tmp_path / folder / "ab.csv", {"user": "other"})
        assert read(record, path).rows == expected(record, {"user": "me"})
        uri = path.as_uri()
        assert read(record, uri, folder=tmp_path).rows == expected(record, {"user": "me"})
        (tmp_path / folder / "ab.csv").unlink()
        found = read(record, tmp_path / folder)
        assert found.rows == expected(record, {"user": "me"})


PARTITIONED = {
    "user": ["u1", "a b/c", "süß", "7"],
    "item": ["i1", "x=y", "50%", "i"],
    "count": ["3", "-4", "5", "6"],
    "price": ["0.5", "1", "2.5", "3"],
    "time": ["1600000000", "5", "2026-11-01", "7"],
    "label": ["0", "1"],
}


@pytest.mark.parametrize("column", PARTITIONED)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "tfrecord"])
@each_record()
def test_partitions_are_columns(tmp_path, record, column, kind):
    import urllib.parse

    from tests.tfrz.data.sources.test_dirt import ROW, _records, _tfrecord

    root = tmp_path / "root"
    wanted = []
    for value in PARTITIONED[column]:
        folder = root / f"{column}={urllib.parse.quote(value, safe='')}"
        folder.mkdir(parents=True)
        path = folder / f"part.{kind}"
        table = arrow_table(2).drop([column])
        if kind == "csv":
            text = ",".join(table.column_names) + "\n"
            for row in table.to_pylist():
                text += ",".join(str(v) for v in row.values()) + "\n"
            path.write_text(text)
        elif kind == "jsonl":
            import json

            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
        elif kind == "parquet":
            pq.write_table(table, path)
        else:
            rows = [{n: v for n, v in ROW.items() if n != column}] * 2
            _tfrecord(path, _records(record, rows))
        typed = {"count": int, "price": float, "label": float}.get(column, str)(value)
        if column == "time":
            typed = 1_793_491_200 if "-" in value else int(value)
        wanted += [{column: typed}] * 2
    found = read(record, root)
    assert not found.corrupt
    key = lambda row: str(sorted(map(str, row.items())))  # noqa: E731
    assert sorted(found.rows, key=key) == sorted(expected(record, *wanted), key=key)


@each_record()
def test_the_null_partition(tmp_path, record):
    root = tmp_path / "root"
    folder = root / "count=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir(parents=True)
    pq.write_table(arrow_table(1).drop(["count"]), folder / "x.parquet")
    assert read(record, root).rows == expected(record, {"count": None})
    bad = root / "count=many"
    bad.mkdir()
    pq.write_table(arrow_table(1).drop(["count"]), bad / "x.parquet")
    found = read(record, root)
    if "count" in COLUMNS[record]:
        assert [line.partition("count is not")[1] for line in found.corrupt] == ["count is not"]
    assert found.rows[0] == expected(record, {"count": None})[0]


def _refused(given, message):
    with pytest.raises(InputError, match=message) as caught:
        find(str(given))
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path):
    _refused(tmp_path / "none.csv", "does not exist: check the path given to --data")
    _refused(f"file://{tmp_path}/none.csv", "does not exist")
    _refused(tmp_path / "*.csv", "matches no file")
    _refused(f"file://{tmp_path}/none/*.csv", "matches no file|does not exist|cannot read")
    _refused(tmp_path, "has no file that ends in")
    _refused(f"{_csv(tmp_path / 'a.csv')},{tmp_path}/none.csv", "does not exist")
    _refused("nosuch://bucket/x.csv", "cannot open nosuch://bucket/x.csv")
    _refused(",", "does not exist|names no file")
    (tmp_path / "x.txt").write_text("x")
    _refused(tmp_path / "x.txt", "the name must end in")
    _refused(tmp_path / "x.*", "the name must end in")


def test_mixed_formats_are_refused(tmp_path):
    _csv(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_text(json_text([{}]))
    _refused(tmp_path, "different formats")
    _refused(f"{tmp_path}/a.csv,{tmp_path}/b.jsonl", "different formats")


# Object stores on this machine.


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def _server(*command, port):
    server = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def s3():
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto is not installed")
    port = _free_port()
    before = dict(os.environ)
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    with _server("-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), port=port):
        store = pafs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{port}",
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        yield store, "s3", f"?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def gcs():
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("gcp-storage-emulator is not installed")
    port = _free_port()
    code = (
        "from gcp_storage_emulator.server import create_server as c;"
        f"c('127.0.0.1', {port}, in_memory=True, default_bucket='bucket').run()"
    )
    with _server("-c", code, port=port):
        where = f"scheme=http&endpoint_override=127.0.0.1:{port}&retry_limit_seconds=5"
        store = pafs.GcsFileSystem(
            anonymous=True, scheme="http", endpoint_override=f"127.0.0.1:{port}"
        )
        yield store, "gs", f"?{where}"


@pytest.mark.parametrize("store", ["s3", "gcs"])
@each_record("impression", "history")
def test_object_stores(tmp_path, record, store, request):
    system, scheme, query = request.getfixturevalue(store)
    user = "anonymous@" if store == "gcs" else ""
    if store == "s3":
        system.create_dir("bucket")

    def put(name, data):
        with system.open_output_stream(f"bucket/{record}/{name}") as out:
            out.write(data)

    put("a b.csv", csv_text([{"user": "a"}]).encode())
    put("deep/ü.csv", csv_text([{"user": "b"}]).encode())
    table = pa.BufferOutputStream()
    pq.write_table(arrow_table(2).drop(["user"]), table)
    put("hive/user=c%20d/x.parquet", table.getvalue())
    root = f"{scheme}://{user}bucket/{record}"
    both = expected(record, {"user": "a"}, {"user": "b"})
    one = read(record, f"{root}/a%20b.csv{query}", folder=tmp_path)
    assert one.rows == both[:1]
    glob = f"{root}/**/*.csv{query}"
    assert read(record, glob, folder=tmp_path).rows == both
    assert read(record, f"{root}/deep{query}", folder=tmp_path).rows == both[1:]
    hive = read(record, f"{root}/hive{query}", folder=tmp_path)
    assert hive.rows == expected(record, {"user": "c d"}, {"user": "c d"})
    _refused(f"{root}/none.csv{query}", "does not exist")
    put("s p-8/v1/x.csv", csv_text([{"user": "old"}]).encode())
    put("s p-10/v2/x.csv", csv_text([{"user": "old"}]).encode())
    put("s p-10/v3/x.csv", csv_text([{"user": "b"}]).encode())
    for pattern in ("s%20p-{SPAN}/v{VERSION}/*.csv", "s%20p-{SPAN}/v{VERSION}"):
        spans = located(f"{root}/{pattern}{query}")
        assert "p-10/v3" in spans
        assert read(record, spans, folder=tmp_path).rows == both[1:]
    with pytest.raises(InputError, match="matches no file"):
        located(f"{root}/span-{{SPAN}}.csv{query}")
