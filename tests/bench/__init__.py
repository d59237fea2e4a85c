"""Benchmarks: how fast chatfs is beside the native file system and other FUSE file systems. `scripts/bench` runs them.

The tests here see that they work, on tiny sizes; no test depends on a time.
"""
