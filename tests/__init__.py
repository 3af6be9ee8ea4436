import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in retrieval/__init__.py: some tests import the runtime first
os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small learn ten times faster in one thread than in two
