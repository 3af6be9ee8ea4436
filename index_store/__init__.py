"""Versions of a retrieval index. A version is written once, checked as a whole, and made current by one atomic pointer.

This package is the contract between trainer and service. It needs only numpy, and `index_store.redis` also needs the
Redis client library.
"""
