"""What the service promises under faults, overload and hostile input, and how far each promise was tested."""
