"""Nothing half-written is ever seen."""

from __future__ import annotations

import errno

import pytest

from tfrz.errors import InputError
from tfrz.files import atomic_directory, atomic_write, require_writable_directory


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model" / "1"
    with pytest.raises(RuntimeError), atomic_directory(target) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert list((tmp_path / "model").iterdir()) == []
    with atomic_directory(target) as folder:
        (folder / "a").write_text("whole")
        assert not target.exists()
    assert (target / "a").read_text() == "whole"
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["1"]


def test_an_existing_directory_is_kept_unless_told(tmp_path):
    target = tmp_path / "out"
    with atomic_directory(target) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(InputError, match="exists already"), atomic_directory(target):
        pass
    with atomic_directory(target, replace=True) as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in target.iterdir()] == ["new"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "f.txt"
    atomic_write(target, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="no space left on the disk"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]


@pytest.mark.parametrize("depth", [".", "below/it"])
def test_a_file_in_the_way_is_named(tmp_path, depth):
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError) as error:
        require_writable_directory(tmp_path / "f" / depth)
    assert str(tmp_path / "f") in str(error.value)
    assert "\n" not in str(error.value)
