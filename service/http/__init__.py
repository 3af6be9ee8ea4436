"""The HTTP interface: routes, bodies, errors, and the limits of a connection."""
