"""Load and random faults for minutes, and what is left of the services after them; `make soak` runs it."""
