"""The self-contained page a person opens after a run: curves, intervals, samples."""
