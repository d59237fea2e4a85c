"""chatfs's store: append-only logs, and the folds and projections over them.

Nothing in this package knows FUSE. `store.library.open_store` is the door for programs.
"""
