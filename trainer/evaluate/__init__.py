"""Compares two policies on a prompt file: win rates, KL, lengths, diversity, best-of-n."""
