"""From a trained network to a version: ONNX, beam, reranker, index health, golden queries."""
