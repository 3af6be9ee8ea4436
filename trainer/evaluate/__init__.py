"""How good a version is: measures, brute force, and the simple baselines beside it."""
