"""The command line: words in, use cases of `store` or a mount, text or JSON out. No store logic, no FUSE."""
