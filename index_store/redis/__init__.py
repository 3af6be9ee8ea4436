"""The store on Redis, Valkey or a Redis Cluster. Only this package imports the client library."""
