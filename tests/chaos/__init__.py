"""Tests of what the service promises under faults, overload and hostile input."""
