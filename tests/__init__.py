import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in service/__init__.py: some tests import the runtime first
