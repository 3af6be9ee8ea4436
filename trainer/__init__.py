"""The offline half: learns the path model and the items' paths by EM and publishes them as one version."""

import os

# ONNX Runtime from 1.29 on tells Microsoft what it runs, unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
