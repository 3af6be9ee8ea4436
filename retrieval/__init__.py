"""Answers requests from one opened version. This package never imports torch or fastapi."""

import os

# Since release 1.29, ONNX Runtime sends usage data to Microsoft, unless this variable is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
