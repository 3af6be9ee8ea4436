"""The online half: one loaded version, beam search, fetch and rerank behind HTTP. Never imports torch."""
