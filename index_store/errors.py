"""What an index store can refuse or fail at, as one tree.

    IndexStoreError
    ├── StoreUnavailable      the store cannot be reached, read or written
    │   ├── StoreMissing          its folder is not there
    │   └── CacheUnavailable      nor can the folder of this host that versions are copied to
    ├── StoreMisconfigured    it answers, but must not be used as it is set up: password, policy, foreign keys
    ├── StoreFull             there is no room for the version
    ├── InvalidName           not a version name or not a store URL
    ├── VersionNotFound       the store has no such version
    ├── VersionDamaged        its bytes are not the ones that were published
    ├── VersionIncompatible   written in a format this release does not read
    ├── VersionInUse          the version is current or held, so it cannot be deleted
    └── PointerMoved          `current` is not what the caller expected

A message names the thing, what was expected, what was found, and what to do.
"""


class IndexStoreError(Exception):
    """Base of everything an index store raises."""


class StoreUnavailable(IndexStoreError):
    """The store cannot be reached, read or written."""


class StoreMissing(StoreUnavailable):
    """The folder that the URL names is not there; publishing would make it."""


class CacheUnavailable(StoreUnavailable):
    """The folder of this host that versions are copied to cannot be read or written, or has no room."""


class StoreMisconfigured(IndexStoreError):
    """The store answers, but must not or cannot be used as it is set up; the message says what to change."""


class StoreFull(IndexStoreError):
    """There is no room for the version; nothing of it was kept."""


class InvalidName(IndexStoreError):
    """A version name or a store URL that has not the right form."""


class VersionNotFound(IndexStoreError):
    """The store has no version of that name."""


class VersionDamaged(IndexStoreError):
    """The bytes, digests or shapes of a version do not fit each other."""


class VersionIncompatible(IndexStoreError):
    """The version was written in a format that this release does not read."""


class VersionInUse(IndexStoreError):
    """The version is current, or somebody holds it; it cannot be deleted now."""


class PointerMoved(IndexStoreError):
    """Compare-and-set lost: `current` was not the version the caller expected."""
