"""The program that folding.py starts in a separate process: it folds the current version with the log and publishes it.
The service has the lease.

    python -I fold_program.py FOLDER...

FOLDER...: the import path. The environment has DR_STORE and DR_STORE_PASSWORD. It prints one JSON object: `Folded`, or
the name of an error class of index_store.errors and its message.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def main() -> int:
    """Fold once. Returns the exit status."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    os.nice(10)  # requests have priority over the fold
    gc.disable()  # it makes millions of objects and ends soon; looking for cycles among them takes as long as the rest
    from index_store.errors import IndexStoreError
    from index_store.store import open_store
    from retrieval.fold import publish_folded

    try:
        store = open_store(os.environ["DR_STORE"], password=os.environ.get("DR_STORE_PASSWORD"))
        print(json.dumps(publish_folded(store)._asdict()))
    except IndexStoreError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    return 0


if __name__ == "__main__":
    sys.path[:] = sys.argv[1:]
    sys.exit(main())
