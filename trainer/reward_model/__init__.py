"""The reward model: rankings in, a scalar for every completion out."""
