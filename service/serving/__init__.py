"""What answers behind the routes: the loaded version, batching, deadlines, swaps."""
