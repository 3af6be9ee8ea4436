"""All errors that an index store raises, as one tree.

    IndexStoreError
    ├── StoreUnavailable      the store cannot be reached, read or written
    │   ├── StoreMissing          the folder of the store does not exist
    │   └── CacheUnavailable      this host's folder for copies of versions cannot be used
    ├── StoreMisconfigured    the store answers, but its set-up is wrong: password, eviction policy, foreign keys
    ├── StoreFull             there is no room for the version
    ├── InvalidName           not a version name or not a store URL
    ├── VersionNotFound       the store has no such version
    ├── VersionDamaged        the version's bytes differ from the published bytes, or do not fit each other
    ├── VersionIncompatible   the version has a format or a kind that this release does not read
    ├── VersionInUse          the version is current or held, so it cannot be deleted
    ├── PointerMoved          `current` is not the version that the caller expected
    ├── FoldRunning           another process folds the current version and the log
    ├── FoldFailed            the process that folds died
    ├── LogBroken             the log does not continue the records that were read before
    ├── LogMoved              the log does not end where the writer expected
    ├── LogDamaged            the bytes of the log are not those that were written
    └── LogIncompatible       a newer release has written the log

A message names the store or version and what was expected, and the remedy if there is one. It repeats the value that
was found unless that may be a secret.
"""


class IndexStoreError(Exception):
    """The base class of all errors that an index store raises."""


class StoreUnavailable(IndexStoreError):
    """The store cannot be reached, read or written."""


class StoreMissing(StoreUnavailable):
    """The folder that the URL names does not exist. A publish creates the folder."""


class CacheUnavailable(StoreUnavailable):
    """The folder on this host for copies of versions cannot be read or written, or has no room."""


class StoreMisconfigured(IndexStoreError):
    """The store answers, but its set-up is wrong. The message contains the setting to change."""


class StoreFull(IndexStoreError):
    """There is no room for the version, and no part of the version was kept."""


class InvalidName(IndexStoreError):
    """A version name or a store URL does not have the right form."""


class VersionNotFound(IndexStoreError):
    """The store has no version with this name."""


class VersionDamaged(IndexStoreError):
    """The bytes, digests or shapes of a version do not fit each other."""


class VersionIncompatible(IndexStoreError):
    """The version was written in a format that this release does not read."""


class VersionInUse(IndexStoreError):
    """The version is current, or a process holds it, so it cannot be deleted now."""


class PointerMoved(IndexStoreError):
    """Compare-and-set failed: `current` was not the version the caller expected."""


class FoldRunning(IndexStoreError):
    """Another process folds the current version with the log at the moment."""


class FoldFailed(IndexStoreError):
    """The process that folds died, for example because there was not enough memory."""


class LogBroken(IndexStoreError):
    """The log does not continue what the reader has: records were removed or lost, or it is another catalogue's."""


class LogMoved(IndexStoreError):
    """The log does not end where the writer expected, because another one has appended records."""


class LogDamaged(IndexStoreError):
    """The bytes of the log are not those that were written."""


class LogIncompatible(IndexStoreError):
    """A newer release has written the log."""
