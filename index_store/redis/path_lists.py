"""Read path lists from the server for each request, instead of from a copy on this host."""

from __future__ import annotations

import logging
import time

import numpy as np
from numpy.typing import NDArray

from index_store.errors import StoreUnavailable
from index_store.redis.client import Server
from index_store.redis.keys import Keys

log = logging.getLogger(__name__)

PAUSE = 0.25  # seconds without a read after the server failed to answer


class RemotePaths:
    """Reads path lists in one round trip. Safe to use from several threads.

    After the server failed to answer, every read fails at once for PAUSE seconds.
    """

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server, self._keys = server, keys
        self._paused_until = 0.0
        self._logged: set[str] = set()  # versions whose damage has been logged

    def read(self, version: str, path_ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        """The first lengths[i] items of each path, concatenated; see PathReader.

        Raises StoreUnavailable if the server does not answer in time, or if a list is missing.
        """
        if time.monotonic() < self._paused_until:
            raise StoreUnavailable(f"{self._server.address} did not answer; the next try is within a second")
        try:
            keys = [self._keys.path(version, path_id) for path_id in path_ids.tolist()]
            lists = self._server.heads(keys, (4 * lengths).tolist())
        except StoreUnavailable as error:
            self._paused_until = time.monotonic() + PAUSE
            log.error("requests are refused for now: %s", error)
            raise
        if np.any(np.fromiter(map(len, lists), np.int64, len(lists)) != 4 * lengths):
            if version not in self._logged:  # log once per version, not per request
                self._logged.add(version)
                log.error(
                    "%s: path lists are missing or cut short in %s; publish it again", version, self._server.address
                )
            raise StoreUnavailable(f"{version}: a path list is missing or cut short; publish it again")
        return np.frombuffer(b"".join(lists), "<i4")
