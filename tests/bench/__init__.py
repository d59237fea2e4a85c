"""Benchmarks: how fast a mount is beside the native file system. Run them with `scripts/bench`; pytest doesn't."""
