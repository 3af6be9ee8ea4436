"""The offline half: learns the path model and the items' paths by EM and publishes them as one version."""
