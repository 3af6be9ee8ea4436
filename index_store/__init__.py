"""Versions of a retrieval index: written once, verified whole, made current by one atomic pointer.

The contract between trainer and service. numpy and the standard library only; redis in its own file.
"""
