"""The projection in the background: told which chats moved, it lets their copies follow, and hears of git's changes.

Many moves of one chat within a moment cost one writing. Nothing here ever fails what moved the log: what can't be
written (a read-only project, a full disk) is tried again, later and later, and said once.

Concurrency: trio; `run` for ever in one task, `flush` from any. The project's files are written by one task at a time.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from store.document import Effect
from store.errors import StoreError
from store.folded import Change
from store.model import ChatId, SpaceId, workspace_space
from store.projection.chat_sync import Report
from store.projection.project import Busy, Project, open_project

if TYPE_CHECKING:
    from store.library import Store
    from store.projection.binding import Binding
    from store.workspace import Workspace

log = logging.getLogger("chatfs")

DELAY: Final = 0.7
"""Seconds after a move before the copies follow: others may come."""
EVERY: Final = 1.0
"""Seconds between looks at whether git has moved the files."""
_SHARE: Final = 20.0
"""A look at all files takes at most one part of this of the time."""
_RETRY_FIRST: Final = 1.0
_RETRY_LAST: Final = 60.0
_PATIENCE: Final = 30.0
"""Seconds that git may be in the middle of something before it is said."""


class Projector:
    """Keeps one project up to date. Make it with `projecting`."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._space = workspace_space(project.workspace.id)
        self._chats = f"{self._space}/chats/"
        self._moved: dict[ChatId, int | None] = {}
        """What moved since it was written out: by how many bytes its text has grown at the end; None: otherwise."""
        self._taken: dict[ChatId, int | None] = {}
        """The same of those that are being written out."""
        self._all = True
        self._woken = trio.Event()
        self._said: set[str] = set()
        self._later = float("inf")
        """When all is looked at again, since there were problems."""
        self._held = 0.0
        """Until when nothing is tried by itself, since nothing could be done."""
        self._busy_since = 0.0
        self._pause = _RETRY_FIRST
        self._mark: tuple[int, ...] = ()
        self._turn = trio.Lock()

    def moved(self, space: SpaceId, effect: Change | None) -> None:
        """A log has moved. Costs next to nothing."""
        if space.startswith(self._chats):
            chat = ChatId(space[len(self._chats) :])
            before = self._moved.get(chat, 0)
            if isinstance(effect, Effect) and not effect.rewritten and before is not None:
                self._moved[chat] = before + len(effect.appended)
            else:
                self._moved[chat] = None
        elif space == self._space:
            self._all = True
        else:
            return
        self._woken.set()

    def _grown(self, chat: ChatId) -> int | None:
        """See `tail.Grown`."""
        before, since = self._taken.pop(chat, None), self._moved.pop(chat, 0)
        return None if before is None or since is None else before + since

    async def flush(self) -> Report | None:
        """Let the copies follow now; None where there was nothing to do, or nothing could be done.

        Raises no error of the project's: it is said once, and what wasn't done is done later.
        """
        if not self.project.active:
            return None
        async with self._turn:  # what is being written out is there when this returns
            return await self._flush()

    async def _flush(self) -> Report | None:
        if not (self._moved or self._all):
            return None
        everything, moved = self._all, self._moved
        self._all, self._moved = False, {}
        try:
            self._taken = dict(moved)
            if everything:
                report = await self.project.reconcile(grown=self._grown)
            else:
                report = await self.project.write_out(moved, self._grown)
        except (StoreError, OSError) as error:
            self._moved = dict.fromkeys(moved) | self._moved
            self._all = self._all or everything
            self._hold(error)
            return None
        self._busy_since = 0.0
        for line in report.done:
            log.warning("%s", line)
        for line in report.problems:
            self._say(line)
        if report.problems:
            self._later = min(self._later, trio.current_time() + self._next_pause())
        elif everything:
            self._said.clear()
            self._later, self._pause = float("inf"), _RETRY_FIRST
        return report

    def _hold(self, error: Exception) -> None:
        now = trio.current_time()
        if isinstance(error, Busy):
            self._held = now + EVERY
            self._busy_since = self._busy_since or now
            if now - self._busy_since > _PATIENCE:
                self._say(str(error))
        else:
            self._held = now + self._next_pause()
            self._say(str(error))

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(_RETRY_LAST, self._pause * 2)
        return pause

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            log.error("%s", line)

    async def look(self) -> Report | None:
        """See whether git has moved the files, then flush. At the start all is compared."""
        mark = self.project.git.mark()
        if mark != self._mark:
            self._mark = mark
            self._all = True
        return await self.flush()

    async def run(self) -> None:
        """Follow, for ever."""
        looked = trio.current_time()
        rest = EVERY
        while True:
            now = trio.current_time()
            if self._held > now:
                await trio.sleep_until(self._held)
            elif not (self._moved or self._all):
                self._woken = trio.Event()
                with trio.move_on_after(EVERY):
                    await self._woken.wait()
            await trio.sleep(DELAY)
            now = trio.current_time()
            self._all = self._all or now >= min(self._later, looked + rest)
            if now >= self._later:
                self._later = float("inf")
            everything = self._all
            try:
                await self.look()
            except Exception:
                log.exception("projecting %s failed", self.project.workspace.called)
                self._held = trio.current_time() + _RETRY_LAST
            if everything:
                looked = trio.current_time()
                rest = max(EVERY, (looked - now) * _SHARE)


@asynccontextmanager
async def projecting(store: Store, workspace: Workspace, binding: Binding) -> AsyncIterator[Projector]:
    """Keep the project at `binding` up to date while entered: at the start all, and at the end what is left."""
    async with open_project(workspace, binding, follows=True) as project:
        projector = Projector(project)
        store.also_moved.append(projector.moved)
        try:
            async with trio.open_nursery() as nursery:
                if project.active:
                    await projector.look()
                    nursery.start_soon(projector.run)
                yield projector
                nursery.cancel_scope.cancel()
        finally:
            store.also_moved.remove(projector.moved)
            with trio.CancelScope(shield=True):
                await projector.flush()
