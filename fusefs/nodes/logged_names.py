"""Directories whose names come from a log.

Whoever adds a name, the mount hears of it. So the kernel may keep, too, that a name isn't there: which ones it may have
kept is remembered here, and it is told when one of them comes. It never says that it has let go of such a name;
counting up the epoch makes it ask for all of them again.

Concurrency: no awaits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from fusefs.nodes.announced import AnnouncedNames
from fusefs.nodes.base import NOTHING, Directory

if TYPE_CHECKING:
    from types import TracebackType

    from fusefs.mount import Mount

ABSENT_MAX: Final = 4096
"""Of how many names of one directory the kernel may keep that they aren't there."""


class LoggedNames(AnnouncedNames):
    """`absent`: the names that the kernel may have kept as missing since the entries' epoch was `_epoch`."""

    __slots__ = ("_epoch", "absent")

    def __init__(self, mount: Mount, identity: str, parent: Directory | None = None, name: bytes = b"") -> None:
        super().__init__(mount, identity, parent, name)
        self.absent: set[bytes] = set()
        self._epoch = 0

    def keeps_absent(self, name: bytes) -> bool:
        epoch = self.mount.notifier.epoch
        if epoch != self._epoch:
            self.absent.clear()
            self._epoch = epoch
        if len(self.absent) >= ABSENT_MAX:
            return False
        self.absent.add(name)
        return True

    def came(self, name: bytes) -> None:
        """`name` is there now."""
        if name in self.absent:
            self.absent.discard(name)
            if self._epoch == self.mount.notifier.epoch:
                self.mount.notifier.entry(self, name)

    def making(self, name: bytes) -> AbstractContextManager[None]:
        return _Making(self, name) if name in self.absent else NOTHING


class _Making(AbstractContextManager[None]):
    """The kernel itself replaces what it has kept of the name, unless the request fails."""

    __slots__ = ("_directory", "_name")

    def __init__(self, directory: LoggedNames, name: bytes) -> None:
        self._directory = directory
        self._name = name

    def __enter__(self) -> None:
        self._directory.absent.discard(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._directory.mount.notifier.entry(self._directory, self._name)
