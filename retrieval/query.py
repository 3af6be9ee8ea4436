"""What is asked and what is answered, and every bound on a request."""

from __future__ import annotations

from typing import Final


class Limits:
    """The most that one request may ask for. HTTP models, OpenAPI and the trainer's settings read these numbers.

    A version may allow less: its network searches at most the beam that it was exported for.
    """

    HISTORY: Final = 1000  # item ids of a history
    EXCLUDE: Final = 10_000  # item ids not to return
    K: Final = 1000  # candidates
    BEAM: Final = 256  # W, paths searched
    PER_PATH: Final = 10_000  # n, items read of a path
    READS: Final = 50_000  # beam times per_path: items read
    TIMEOUT_MS: Final = 60_000  # milliseconds until the answer
    REQUESTS: Final = 64  # of one batch
    ITEM_ID: Final = 256  # characters of an item id that is a string
    FEATURES: Final = 64  # context features
    FEATURE_NAME: Final = 128  # characters of a feature's name
    FEATURE_VALUE: Final = 256  # characters of a feature's value
