"""Benchmarks that compare our speed with alternatives in the same run. `make bench` tests their short forms first."""
