"""A host's copies of the versions of a remote store, kept in a folder store."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from index_store.errors import CacheUnavailable, VersionDamaged
from index_store.folder.store import FolderStore
from index_store.manifest import Manifest
from index_store.version import Buffer, PathReader, Version, parts_here


class Copies(FolderStore):
    """A folder store for copies. Errors of this folder are CacheUnavailable, because the remote store may be intact."""

    def copy(
        self,
        manifest: Manifest,
        chunks: Callable[[str], Iterable[Buffer]],
        read_paths: PathReader | None = None,
    ) -> Version:
        """If there is no intact copy, first copy the version and hold it.

        chunks(part) yields the part piece by piece. If several processes of a host need a version at once, one process
        copies it and the others only check the copy. Raises the same errors as `load`.
        """
        copied = False
        while True:
            inode = self._inode(manifest.version)
            try:
                return self.open(manifest, read_paths)
            except VersionDamaged:
                if copied:
                    raise
            with self._errors("copy"):
                self._versions.mkdir(0o700, parents=True, exist_ok=True)
                with self._lock("PUBLISH.lock"):
                    self._remove_leftovers()
                    if self._inode(manifest.version) == inode:  # no other process has copied it meanwhile
                        parts = {part: chunks(part) for part in parts_here(manifest, read_paths)}
                        self._write(manifest, parts, None, hold=True)
                        copied = True

    def _full_error(self, reason: str) -> CacheUnavailable:
        return self._disk_error(reason)

    def _disk_error(self, reason: str) -> CacheUnavailable:
        return CacheUnavailable(f"the cache folder (DR_CACHE) cannot be used: {reason}")
