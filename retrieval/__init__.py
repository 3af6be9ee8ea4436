"""Answers requests from one opened version. Never imports torch or fastapi."""

import os

# ONNX Runtime from 1.29 on tells Microsoft what it runs, unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
