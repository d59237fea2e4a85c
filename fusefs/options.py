"""What a mount can be told."""

from __future__ import annotations

import os
import stat
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
    append_only: bool = False
    """Only history.jsonl may grow, by messages and by what no fold knows: for programs that nobody trusts."""
    root: str = ""
    """WORKSPACE or WORKSPACE/CHAT: all that is shown; nothing else in the store has a name then."""
    durability: Durability = Durability.STRICT
    debug: bool = False
    fast_loop: bool = True
    """Whether requests may take the session loop's fast path, past trio's scheduler."""
    inotify: bool = True
    """Whether inotify watchers hear of changes that came from elsewhere."""
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    umask: int = 0o077
    """Permission bits that files and directories don't have, unless a file was given its own."""
    entry_timeout: float = 3600.0
    attr_timeout: float = 3600.0
    scratch_timeout: float = 1.0
    """Scratch files can be changed by another mount of the store without notice."""
    directory_mode: int = field(init=False, repr=False)
    file_mode: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory_mode", stat.S_IFDIR | (0o777 & ~self.umask))
        object.__setattr__(self, "file_mode", stat.S_IFREG | (0o666 & ~self.umask))
