"""Files that are mapped, and names that last."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

PIECE = 2**20  # bytes read of a map at once
#: Linux 5.14: read a map's pages now and say so if one cannot be read; later that is a signal, which ends a process.
MADV_POPULATE_READ = 22


def map_file(path: Path) -> bytes | memoryview:
    """The file as a read-only memory map, all of it read. Deleting the file later does not take it away."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        for start in range(0, len(mapped), PIECE):  # a piece at a time, because it keeps the interpreter's lock
            mapped.madvise(MADV_POPULATE_READ, start, PIECE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the kernel is older
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path)) from None
    return memoryview(mapped)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, not just the bytes of its files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing, read-only ones above a store's
            raise
    finally:
        os.close(descriptor)
