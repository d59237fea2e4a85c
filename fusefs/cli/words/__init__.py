"""What each command is called and takes; `fusefs.cli` has what does it, in modules of the same names.

Nothing here imports the store, trio or anything else that help and mistyped words can do without.
"""
