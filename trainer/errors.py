"""All errors that the trainer raises, as one tree.

TrainerError
├── ConfigError     a setting has a value that cannot work; the message names the setting
├── DataError       an input file cannot be used; the message names file, column and row
├── ResumeError     a run folder belongs to a different run, or is damaged or not writable
└── ExportRefused   the trained version failed a check and was not published
"""


class TrainerError(Exception):
    """Base of all errors that the trainer raises."""


class ConfigError(TrainerError):
    """A setting has a value that cannot work."""


class DataError(TrainerError):
    """An input file cannot be used as it is."""


class ResumeError(TrainerError):
    """A run folder cannot be continued by this command."""


class ExportRefused(TrainerError):
    """The trained version failed a check; nothing was published."""
