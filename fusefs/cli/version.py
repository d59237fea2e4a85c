"""Which chatfs this is."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The installed version; "unknown" where chatfs runs without having been installed."""
    try:
        return metadata.version("chatfs")
    except metadata.PackageNotFoundError:
        return "unknown"
