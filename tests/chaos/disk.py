"""Watch each disk operation of a store, so that a test can count it, record it, make it fail, or kill the process."""

from __future__ import annotations

import fcntl
import io
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

#: The operations that need room on the disk: a full disk refuses only these, a broken disk any operation.
TAKE_ROOM = {"create", "mkdir", "write", "fsync", "rename"}


@dataclass(frozen=True)
class Operation:
    """kind: open, create, read, write, fsync, mkdir, rename, unlink, rmdir, list, stat, lock or map."""

    kind: str
    path: str
    target: str = ""  # the new path of a rename
    content: bytes = b""  # the bytes of a write


@contextmanager
def watched(folder: Path, before: Callable[[Operation], None]) -> Iterator[None]:
    """Call `before` ahead of each operation in `folder`; if `before` raises, the operation is not carried out."""
    root = str(folder.resolve())

    def report(kind: str, path: str, **more: Any) -> None:
        if path == root or path.startswith(f"{root}/"):
            before(Operation(kind, path, **more))

    def reporting(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any = ".", *args: Any, dir_fd: int | None = None, **kwargs: Any) -> Any:
            report(kind, _absolute(path, dir_fd))
            return call(path, *args, **kwargs | ({} if dir_fd is None else {"dir_fd": dir_fd}))

        return wrapped

    def renaming(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(old: Any, new: Any) -> Any:
            report("rename", _absolute(old), target=_absolute(new))
            return call(old, new)

        return wrapped

    os_open, io_open, mkdir, flock, map_file = os.open, io.open, os.mkdir, fcntl.flock, mmap.mmap

    def open_descriptor(path: Any, flags: int, *args: Any, dir_fd: int | None = None) -> int:
        report("open", _absolute(path, dir_fd))
        return os_open(path, flags, *args, dir_fd=dir_fd)

    def make_folder(path: Any, *args: Any, **kwargs: Any) -> None:
        absolute = _absolute(path)
        if os.access(Path(absolute).parent, os.F_OK) and not os.access(absolute, os.F_OK):  # else mkdir fails by itself
            report("mkdir", absolute)
        mkdir(path, *args, **kwargs)

    def open_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        absolute = _absolute(path)
        report("create" if set(mode) & set("wxa") and not os.access(absolute, os.F_OK) else "open", absolute)
        return _File(io_open(path, mode, *args, **kwargs), absolute, report)

    def lock(file: Any, flags: int) -> None:
        report("lock", _absolute(file if isinstance(file, int) else file.fileno()))
        flock(file, flags)

    def mapped(descriptor: int, *args: Any, **kwargs: Any) -> mmap.mmap:
        report("map", _absolute(descriptor))
        return map_file(descriptor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "unlink", "rmdir", "stat"):
            patch.setattr(os, name, reporting(name, getattr(os, name)))
        for name in ("listdir", "scandir"):
            patch.setattr(os, name, reporting("list", getattr(os, name)))
        for name in ("rename", "replace"):
            patch.setattr(os, name, renaming(getattr(os, name)))
        patch.setattr(os, "open", open_descriptor)
        patch.setattr(os, "mkdir", make_folder)
        patch.setattr(io, "open", open_file)
        patch.setattr(fcntl, "flock", lock)
        patch.setattr(mmap, "mmap", mapped)
        yield


def _absolute(path: Any, folder: int | None = None) -> str:
    """The absolute path of a descriptor, or of a path that may be relative to the descriptor `folder`."""
    if isinstance(path, int):
        return str(Path(f"/proc/self/fd/{path}").readlink())
    return os.path.abspath(path if folder is None else os.path.join(_absolute(folder), os.fspath(path)))  # noqa: PTH100, PTH118 -- pathlib would recurse into here


class _File:
    """An open file that reports each read and write."""

    def __init__(self, file: Any, path: str, report: Callable[..., None]) -> None:
        self._file, self._path, self._report = file, path, report

    def read(self, *args: Any) -> Any:
        self._report("read", self._path)
        return self._file.read(*args)

    def write(self, content: Any) -> int:
        self._report("write", self._path, content=content.encode() if isinstance(content, str) else bytes(content))
        size: int = self._file.write(content)
        return size

    def __enter__(self) -> _File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
