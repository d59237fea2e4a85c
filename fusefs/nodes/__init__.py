"""One file per kind of node: what it shows and what may be done to it."""
