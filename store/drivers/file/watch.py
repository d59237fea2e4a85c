"""Learn of changes that other processes make to files: one inotify instance for a whole driver.

It says that something moved, and never reads what. Where the kernel grants no watch (too many, a missing file), that
path alone is looked at every POLL_SECONDS.

Concurrency: all on the trio loop. Two system tasks, alive only while there is something to watch; what is told runs in
them and must neither block nor raise.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from inotify_simple import INotify, flags

Told = Callable[[int, str], None]
"""Called with the event's mask and the name in the directory ("": unknown, look at everything)."""

FILE: Final = int(flags.MODIFY | flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF)
NAMES: Final = int(flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE_SELF | flags.ONLYDIR)
COALESCE_SECONDS: Final = 0.002
BURST_SECONDS: Final = 0.016
"""How long events that follow another are gathered: at first, and at most while they keep coming."""
TURN_SECONDS: Final = 0.003
"""How long the other tasks' turns may keep a program that is busy from seeing the next event."""
POLL_SECONDS: Final = 0.05

_REPLACED: Final = int(flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED)

log = logging.getLogger(__name__)


class _Watched:
    __slots__ = ("mask", "path", "seen", "told", "wd")

    def __init__(self, path: Path, mask: int) -> None:
        self.path = path
        self.mask = mask
        self.wd: int | None = None
        self.seen: tuple[int, int, int] | None = None
        self.told: list[Told] = []

    def look(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def tell(self, mask: int, name: str) -> None:
        for told in list(self.told):
            told(mask, name)


class Watches:
    """Watched paths, counted."""

    def __init__(self) -> None:
        self._inotify: INotify | None = None
        self._by_path: dict[Path, _Watched] = {}
        self._by_wd: dict[int, _Watched] = {}
        self._polled: set[Path] = set()
        self._scopes: set[trio.CancelScope] = set()
        self._idle = trio.Event()
        self._idle.set()
        self._closed = False
        self._warned = False

    def __len__(self) -> int:
        return len(self._by_path)

    def add(self, path: Path, mask: int, told: Told) -> Callable[[], None]:
        """Call `told` at every change, until what is returned is called. A file that gets replaced stays watched."""
        watched = self._by_path.get(path)
        if watched is None:
            watched = self._by_path[path] = _Watched(path, mask)
            self._arm(watched)
        watched.told.append(told)
        removed = False

        def remove() -> None:
            nonlocal removed
            if removed:
                return
            removed = True
            watched.told.remove(told)
            if not watched.told and self._by_path.get(path) is watched:
                self._disarm(watched)
                del self._by_path[path]

        return remove

    async def aclose(self) -> None:
        """Stop, and give everything back."""
        self._closed = True
        for scope in list(self._scopes):
            scope.cancel()
        with trio.CancelScope(shield=True):
            await self._idle.wait()
        self._by_path.clear()
        self._by_wd.clear()
        self._polled.clear()
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def _arm(self, watched: _Watched) -> None:
        watched.seen = watched.look()
        if watched.seen is not None and self._instance() is not None:
            assert self._inotify is not None
            try:
                watched.wd = self._inotify.add_watch(watched.path, watched.mask)
            except FileNotFoundError:
                pass
            except OSError as error:
                self._warn(error)
            else:
                self._by_wd[watched.wd] = watched
                return
        self._polled.add(watched.path)
        if len(self._polled) == 1:
            self._start(self._poll)

    def _disarm(self, watched: _Watched) -> None:
        self._polled.discard(watched.path)
        if watched.wd is None:
            return
        wd, watched.wd = watched.wd, None
        if self._by_wd.pop(wd, None) is not None and self._inotify is not None:
            # Together with a deleted file the kernel has dropped it already.
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(wd)

    def _instance(self) -> INotify | None:
        if self._inotify is None and not self._closed:
            try:
                self._inotify = INotify(nonblocking=True)
            except OSError as error:
                self._warn(error)
            else:
                self._start(self._pump)
        return self._inotify

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("no more inotify watches (%s): raise fs.inotify.max_user_watches; polling instead", error)

    def _start(self, run: Callable[[], object]) -> None:
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        scope = trio.CancelScope()
        self._scopes.add(scope)

        async def task() -> None:
            try:
                with scope:
                    await run()  # type: ignore[misc]
            except Exception:
                log.exception("watching for changes stopped")
            finally:
                self._scopes.discard(scope)
                if not self._scopes:
                    self._idle.set()

        trio.lowlevel.spawn_system_task(task, name="chatfs watch")

    async def _pump(self) -> None:
        pause, ended = COALESCE_SECONDS, -math.inf
        while self._inotify is not None:
            await trio.lowlevel.wait_readable(self._inotify.fileno())
            # The first is told at once. A burst becomes few wake-ups; the longer it lasts, the fewer.
            gap = trio.current_time() - ended
            if gap < pause + TURN_SECONDS:
                await trio.sleep(max(0, pause - gap))
                pause = min(pause * 2, BURST_SECONDS)
            else:
                pause = COALESCE_SECONDS
            ended = trio.current_time()
            told: set[tuple[int, int, str]] = set()
            for event in self._inotify.read(timeout=0):
                key = (event.wd, event.mask, event.name)
                if key not in told:
                    told.add(key)
                    self._event(event.wd, event.mask, event.name)

    def _event(self, wd: int, mask: int, name: str) -> None:
        if mask & flags.Q_OVERFLOW:
            for watched in list(self._by_path.values()):
                watched.tell(int(flags.Q_OVERFLOW), "")
            return
        found = self._by_wd.get(wd)
        if found is None:
            return
        if mask & flags.IGNORED:
            del self._by_wd[wd]
            found.wd = None
        if mask & _REPLACED:
            now = found.look()
            if found.wd is None or now is None or found.seen is None or now[0] != found.seen[0]:
                self._disarm(found)
                self._arm(found)
        found.tell(mask, name)

    async def _poll(self) -> None:
        while self._polled:
            await trio.sleep(POLL_SECONDS)
            for path in list(self._polled):
                watched = self._by_path[path]
                now = watched.look()
                if now == watched.seen:
                    continue
                appeared = watched.seen is None
                watched.seen = now
                if appeared:
                    self._polled.discard(path)
                    self._arm(watched)
                watched.tell(int(flags.Q_OVERFLOW), "")
