"""What a client sees: routes, bodies, errors, and the limits of a connection."""
