"""The offline part: it learns the path model and the items' paths by EM, and publishes both as one version."""
