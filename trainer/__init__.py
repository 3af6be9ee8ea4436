"""The offline part: it learns the path model and the items' paths, and publishes both as one version."""
