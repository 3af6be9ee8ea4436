"""Learning between two trainings: from events, what users do right now."""
