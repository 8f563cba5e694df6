"""Writing without ever leaving half a result: build beside the place, then rename into it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfrz.errors import InputError


def _explain(error: OSError, path: Path) -> InputError:
    if error.errno == errno.ENOSPC:
        return InputError(f"no space left on the disk of {path}: free some or choose another place")
    return InputError(
        f"cannot write {path}: {error.strerror or error}; choose a place that can be written"
    )


@contextlib.contextmanager
def _written_beside(target: Path) -> Iterator[Path]:
    """Yields a new temporary folder in the folder of `target`; removes it in every case."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A leading dot: watchers of version folders (TF Serving) ignore what is not a number.
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        os.chmod(temporary, 0o755)
    except OSError as error:
        raise _explain(error, target) from error
    try:
        yield temporary
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise _explain(error, target) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], replace: bool = False) -> Iterator[Path]:
    """Yields a folder to fill; it becomes `path` in one rename when the block ends well.

    Args:
      path: where the folder shall be. Its parents are made.
      replace: what to do if `path` exists: put the new folder in its place, or refuse.

    Raises:
      InputError: `path` exists and `replace` is off, or the disk refuses to be written.
    """
    target = Path(path)
    if target.exists() and not replace:
        raise InputError(f"{target} exists already: choose another place or remove it first")
    with _written_beside(target) as temporary:
        content = temporary / "content"
        content.mkdir()
        yield content
        if target.exists():
            os.replace(target, temporary / "replaced")
        os.replace(content, target)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a file to write; it becomes `path` in one rename when the block ends well.

    Raises:
      InputError: the disk refuses to be written.
    """
    target = Path(path)
    with _written_beside(target) as temporary:
        part = temporary / target.name
        yield part
        os.replace(part, target)


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes `content` to `path` so that a reader sees the old file or the new, nothing between.

    Raises:
      InputError: the disk refuses to be written.
    """
    with atomic_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def require_writable_directory(path: str | os.PathLike[str]) -> Path:
    """Makes the folder `path` if it is missing and proves that it can be written, before any work.

    Raises:
      InputError: it cannot be made or written, or it is a file.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: name a folder to write to")
    with _written_beside(target / "probe"):
        pass
    return target
