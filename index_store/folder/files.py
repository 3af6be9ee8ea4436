"""Map files into memory, and make file names durable."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

PIECE = 2**20  # bytes of a map that one call reads
#: Since Linux 5.14: reads a map's pages now and reports a read error. Without this call, a read error at the first
#: access of a page kills the process with a signal.
MADV_POPULATE_READ = 22


def map_file(path: Path) -> bytes | memoryview:
    """Map the file read-only and read all its pages. The map stays valid when the file is deleted."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        for start in range(0, len(mapped), PIECE):  # in pieces, because each call holds the interpreter's lock
            mapped.madvise(MADV_POPULATE_READ, start, PIECE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the kernel is older than 5.14
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path)) from None
    return memoryview(mapped)


def sync_folder(folder: Path) -> None:
    """Make the names of the files in `folder` survive a power failure. Syncing a file makes only its bytes survive."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the file system cannot sync folders, such as a read-only one
            raise
    finally:
        os.close(descriptor)
