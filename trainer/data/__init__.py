"""From files to data sets: tables, columns, user sequences, splits, batches and requests.

This package imports no other subpackage of the trainer.
"""
