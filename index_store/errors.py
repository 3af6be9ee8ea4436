"""What an index store can refuse or fail at, as one tree.

    IndexStoreError
    ├── StoreUnavailable      the store cannot be reached, read or written
    ├── StoreFull             there is no room for the version
    ├── InvalidName           not a version name or not a store URL
    ├── VersionNotFound       the store has no such version
    ├── VersionDamaged        its bytes are not the ones that were published
    ├── VersionIncompatible   written in a format this release does not read
    ├── VersionInUse          the version is current, so it cannot be deleted
    └── PointerMoved          `current` is not what the caller expected

A message names the thing, what was expected, what was found, and what to do.
"""


class IndexStoreError(Exception):
    """Base of everything an index store raises."""


class StoreUnavailable(IndexStoreError):
    """The store cannot be reached, read or written."""


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
    """The version is current; make another one current before deleting it."""


class PointerMoved(IndexStoreError):
    """Compare-and-set lost: `current` was not the version the caller expected."""
