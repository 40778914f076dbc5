"""Supervised fine-tuning: demonstrations in, a policy out."""
