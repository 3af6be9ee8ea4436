"""The settings of a process, and the signals it gets."""
