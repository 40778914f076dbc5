"""A clock in the place of the module `time`."""


class Clock:
    """Stands still unless it is set."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now
