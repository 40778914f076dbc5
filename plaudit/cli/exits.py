"""Exit codes of all commands."""

EXIT_ARGUMENTS = 64
"""An argument is wrong, or a file can't be read."""
EXIT_SOME_BAD = 65
"""Done, but some rows or candidates have no score."""
EXIT_UNREACHABLE = 69
"""A service can't be reached, or isn't ready."""
EXIT_FAILED = 70
"""Anything else."""
