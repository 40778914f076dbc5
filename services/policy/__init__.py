"""The policy: the model that is trained, and the one that writes responses."""
