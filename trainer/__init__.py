"""The three stages of training, and what they share; `python -m trainer` runs them."""
