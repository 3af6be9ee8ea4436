"""The store on Redis, Valkey or a Redis Cluster. Only this room imports the client library."""
