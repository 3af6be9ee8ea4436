"""The settings of a process, and the handling of its signals."""
