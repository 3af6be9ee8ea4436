"""All errors that an index store raises, as one tree.

    IndexStoreError
    ├── StoreUnavailable      the store cannot be reached, read or written
    │   ├── StoreMissing          its folder does not exist
    │   └── CacheUnavailable      this host's folder for copies of versions cannot be used
    ├── StoreMisconfigured    it answers, but its set-up is wrong: password, policy, another application's keys
    ├── StoreFull             there is no room for the version
    ├── InvalidName           not a version name or not a store URL
    ├── VersionNotFound       the store has no such version
    ├── VersionDamaged        its bytes are not the ones that were published
    ├── VersionIncompatible   written in a format this release does not read
    ├── VersionInUse          the version is current or held, so it cannot be deleted
    └── PointerMoved          `current` is not what the caller expected

Each message says what it is about, what was expected, what was found, and what to do.
"""


class IndexStoreError(Exception):
    """Base of everything an index store raises."""


class StoreUnavailable(IndexStoreError):
    """The store cannot be reached, read or written."""


class StoreMissing(StoreUnavailable):
    """The folder that the URL names does not exist; publishing would create it."""


class CacheUnavailable(StoreUnavailable):
    """The folder on this host for copies of versions cannot be read or written, or has no room."""


class StoreMisconfigured(IndexStoreError):
    """The store answers, but its set-up is wrong; the message says what to change."""


class StoreFull(IndexStoreError):
    """There is no room for the version; no part of it was kept."""


class InvalidName(IndexStoreError):
    """A version name or a store URL does not have the right form."""


class VersionNotFound(IndexStoreError):
    """The store has no version of that name."""


class VersionDamaged(IndexStoreError):
    """The bytes, digests or shapes of a version do not fit each other."""


class VersionIncompatible(IndexStoreError):
    """The version was written in a format that this release does not read."""


class VersionInUse(IndexStoreError):
    """The version is current, or a process holds it, so it cannot be deleted now."""


class PointerMoved(IndexStoreError):
    """Compare-and-set failed: `current` was not the version the caller expected."""
