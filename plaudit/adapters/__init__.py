"""Reward functions for other people's RL trainers: one module each for trl, openrlhf and verl.

They import nothing of those packages, and no torch. What they hold is plain values, so a trainer may pickle
them into its workers; every process opens its own connections when it first asks for a reward.
"""
