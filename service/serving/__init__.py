"""Answers the requests of the routes: the loaded version, batching, deadlines, swaps."""
