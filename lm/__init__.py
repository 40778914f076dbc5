"""Model maths shared by the servers and the trainer: torch and transformers, never gRPC."""
