"""chatfs as a mounted file system, and its command line.

Store logic lives in `store`; here is only what the kernel needs.
"""

__version__ = "0.1.0"
"""Of chatfs; pyproject.toml takes it from here."""
