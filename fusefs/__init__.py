"""chatfs as a mounted file system, and its command line.

Store logic lives in `store`; here is only what the kernel needs.
"""
