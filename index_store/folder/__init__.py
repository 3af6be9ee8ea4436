"""The store in a folder, and the copies that a host keeps of a remote store's versions."""
