"""From files to data sets: tables, columns, user sequences, splits, batches and requests.

Imports no other subpackage of the trainer.
"""
