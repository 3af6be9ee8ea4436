"""The structure of Deep Retrieval: paths through D layers of K nodes, each with a list of items."""
