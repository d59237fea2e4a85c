"""`chatfs gc`: free what nobody can get at any more, safe beside running mounts. See `store.gc.collect`."""

from __future__ import annotations

from typing import Final

RETENTION_DAYS: Final = 30
"""How long things stay in the trash if nobody says otherwise."""
