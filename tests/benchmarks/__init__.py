"""Figures, each a ratio to an alternative in the same run. `make bench` runs them all; tests run their short form."""
