"""What a mount can be told."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Durability(StrEnum):
    """When what was written is on stable storage: before close(2) returns, or at most a second after."""

    STRICT = "strict"
    RELAXED = "relaxed"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """One mount's settings. Timeouts are seconds; the owner is who mounts."""

    mountpoint: Path
    url: str
    allow_other: bool = False
    read_only: bool = False
    durability: Durability = Durability.STRICT
    debug: bool = False
    fast_loop: bool = True
    """Whether requests may take the session loop's fast path, past trio's scheduler."""
    inotify: bool = True
    """Whether inotify watchers hear of changes that came from elsewhere."""
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    entry_timeout: float = 3600.0
    attr_timeout: float = 3600.0
    scratch_timeout: float = 1.0
    """Scratch files can be changed by another mount of the store without notice."""
