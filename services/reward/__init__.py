"""The reward service: scores responses with a decoder reward model."""
