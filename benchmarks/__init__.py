"""Measurements that the documentation's tables come from; see docs/benchmarks.md."""
