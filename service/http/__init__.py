"""What a client sees: routes, models, errors, limits of a connection."""
