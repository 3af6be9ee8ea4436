"""What a process is told from outside: its settings, and signals."""
