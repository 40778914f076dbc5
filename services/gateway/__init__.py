"""HTTP and JSON in front of the reward service: a process that is only a client of it. No torch."""
