"""The store in a folder, and a host's copies of a remote store's versions."""
