"""The shell every server wears: gRPC, health, errors, metrics, drain. No torch."""
