"""The `git:` driver: a repository. The format is described in README.md beside this.

Of the two kept libraries pygit2 was chosen by measurement (the same commits through each library's own calls, medians
of five interleaved runs on a busy machine, per second of processor time): 670 commits of one entry against dulwich's
340, 110,000 entries against 95,000 in batches of 500; reading 21 MB took 0.09 s with either. Here it only opens
repositories and reads objects. Objects are written by `objects` and `packing`, and refs moved by `turn`, through
`store.durability`: a library doesn't say when what it wrote is on the disk, and its update of a ref isn't safe beside
a process that stands still in one.
"""

from store.drivers.git.driver import open_git

__all__ = ["open_git"]
