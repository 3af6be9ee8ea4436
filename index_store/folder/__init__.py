"""The store in a folder, and a host's copies of the versions of a remote store."""
