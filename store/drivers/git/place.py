"""All that concerns one space, for one instance of its log.

Concurrency: as what it holds together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from store.drivers.git.objects import Objects
from store.drivers.git.refs import Refs, ref_name
from store.drivers.git.stable import Stable
from store.drivers.git.text import Texts
from store.drivers.git.turn import Turn
from store.model import SpaceId


class Place:
    """`local` is the space's local directory; `moved` is called when this instance has moved the ref."""

    def __init__(
        self,
        space: SpaceId,
        refs: Refs,
        objects: Objects,
        local: Path,
        limiter: trio.CapacityLimiter,
        moved: Callable[[], None],
        *,
        read_only: bool,
    ) -> None:
        self.space: Final = space
        self.ref: Final = ref_name(space)
        self.refs: Final = refs
        self.objects: Final = objects
        self.moved: Final = moved
        self.read_only: Final = read_only
        self._local = local
        self.limiter: Final = limiter
        self.turn: Final = Turn(refs, space, local)
        self.texts: Final = Texts(objects, space)
        self.stable: Final = Stable(space, local, refs.path(space), refs.directory, objects.path, limiter)

    def again(self) -> Place:
        """The same for another instance."""
        return Place(
            self.space,
            self.refs,
            self.objects,
            self._local,
            self.limiter,
            self.moved,
            read_only=self.read_only,
        )

    def close(self) -> None:
        """Let go of files."""
        self.turn.close()
