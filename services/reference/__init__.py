"""The reference service: log-probabilities under a frozen model."""
