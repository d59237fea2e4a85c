"""The `file:` driver: one directory, readable with `cat`; see `driver` for the layout."""

from __future__ import annotations

from store.drivers.file.driver import FileDriver, open_file

__all__ = ["FileDriver", "open_file"]
