"""The online half: one loaded version, beam search, fetch and rerank behind HTTP. Never imports torch."""

import os

# ONNX Runtime from 1.29 on tells Microsoft what it runs, unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
