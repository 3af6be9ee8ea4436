"""A host's copies of a remote store's versions: a folder store that is filled from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from index_store.errors import CacheUnavailable, VersionDamaged
from index_store.folder.store import FolderStore
from index_store.manifest import Manifest
from index_store.version import Buffer, PathReader, Version, parts_here


class Copies(FolderStore):
    """What goes wrong with the folder is CacheUnavailable: it says nothing of the store."""

    def copy(
        self,
        manifest: Manifest,
        chunks: Callable[[str], Iterable[Buffer]],
        read_paths: PathReader | None = None,
    ) -> Version:
        """Another store's version, copied here unless it is here whole, mapped, checked, and held if it was copied.

        chunks(part) gives a part piece by piece. Of the processes of a host that want it at once, one copies and the
        others only check what it copied. Raises as `load` does.
        """
        copied = False
        while True:
            found = self._identity(manifest.version)
            try:
                return self.open(manifest, read_paths)
            except VersionDamaged:
                if copied:
                    raise
            with self._errors("copy"):
                self._versions.mkdir(0o700, parents=True, exist_ok=True)
                with self._lock("PUBLISH.lock"):
                    self._remove_leftovers()
                    if self._identity(manifest.version) == found:  # nobody else has copied it meanwhile
                        parts = {part: chunks(part) for part in parts_here(manifest, read_paths)}
                        self._write(manifest, parts, None, hold=True)
                        copied = True

    def _full(self, reason: str) -> CacheUnavailable:
        return self._unavailable(reason)

    def _unavailable(self, reason: str) -> CacheUnavailable:
        return CacheUnavailable(f"the cache folder (DR_CACHE) cannot be used: {reason}")
