"""Having the kernel report changes that came from elsewhere to inotify watchers of the mount.

The kernel reports what system calls on the mount do, and nothing else. So a process of the mount's own (see
`fusefs.announce_process`) makes the call that matches a change, and the handler, which knows that process and what it
was asked to do, answers without effect on any log: `utimensat` gives IN_MODIFY and IN_ATTRIB, `mkdir` and `mknod` of a
name that is there already (to that process alone it seems missing) IN_CREATE, `rmdir` and `unlink` IN_DELETE, `rename`
IN_MOVED_FROM and IN_MOVED_TO.

What the kernel doesn't hold is nobody's to watch and isn't announced. What this mount's users do, the kernel reports
by itself: their handlers say so (`own`).

Names are kept as what watchers take them for (`_names`: directory -> name -> its meaning before), and compared with
what they mean when it comes to announcing: what came and went in between is nothing, what left one name and came to
another was moved. In a burst each file is announced once in `INTERVAL`, and a directory of which more than `NAMES_MAX`
names changed is announced as modified itself. Moves and names come before the files' contents.

Concurrency: all on the event loop; `run` is the task that announces, and the only one that waits for the process. No
handler waits for it: the process may be waiting for that handler.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import secrets
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio
from pyfuse3 import EntryAttributes, FUSEError

from fusefs.announce_calls import VOUCHED
from fusefs.announce_moves import Place, moves
from fusefs.announce_paths import path_of
from fusefs.announce_process import CallingProcess
from fusefs.nodes.announced import Gone
from fusefs.nodes.base import Directory, Node, refuse
from fusefs.nodes.chat_dir import ChatDirectory
from store.errors import StoreError

if TYPE_CHECKING:
    from fusefs.mount import Mount
    from fusefs.nodes.announced import AnnouncedNames
    from store.model import SpaceId

log = logging.getLogger("chatfs")

INTERVAL: Final = 0.1
"""Seconds between two announcements of one file."""
GATHER_SECONDS: Final = 0.005
"""How long changes of names are gathered."""
REST_SECONDS: Final = 0.05
REST_MAX_SECONDS: Final = 0.5
"""How long after somebody wrote or closed a file something is announced, and at most, where they go on."""
NAMES_MAX: Final = 2048
"""How many names of one directory are announced at once."""
DEATHS_MAX: Final = 5
"""How often the process may die before announcing ends."""

Heard = Callable[[], bool | None]
"""Whether a file changed otherwise than by what the kernel has reported itself; None: it can't be said yet."""


@dataclass(slots=True)
class Act:
    """One announcement. `node` is what the name stands for, to the process alone."""

    kind: str
    directory: Directory
    name: bytes
    node: Node | None = None
    target: Directory | None = None
    new: bytes = b""
    shown: bool = False
    """Whether the process was told that `name` is `node`: otherwise the kernel took it for what it had cached."""
    secret: bytes = field(default_factory=lambda: b".chatfs-" + secrets.token_hex(16).encode())


class Announcer:
    """The one path by which watchers hear of changes that came from elsewhere."""

    __slots__ = (
        "_act",
        "_busy",
        "_deaths",
        "_doing",
        "_files",
        "_last",
        "_latest",
        "_looks",
        "_mount",
        "_names",
        "_overtaken",
        "_process",
        "_telling",
        "_wake",
        "_watched",
        "enabled",
    )

    def __init__(self, mount: Mount, *, enabled: bool) -> None:
        self._mount = mount
        self.enabled = enabled
        self._process = CallingProcess()
        self._act: Act | None = None
        self._names: dict[AnnouncedNames, dict[bytes, str | None] | None] = {}
        """What watchers take names for that mean something else now; None: too many changed."""
        self._files: dict[int, tuple[Node, str, Heard | None]] = {}
        self._last: dict[int, float] = {}
        """When files that were announced of late may be announced again."""
        self._doing: Counter[tuple[int, bytes]] = Counter()
        """Names that requests are about to change, by directory."""
        self._overtaken: set[tuple[int, bytes]] = set()
        """Names that requests have changed since `_changes`, while that is told: the kernel has told of them."""
        self._telling = False
        self._looks: dict[AnnouncedNames, None] = {}
        self._watched: set[SpaceId] = set()
        self._busy = self._latest = -math.inf
        """When somebody wrote last, and how long that may put off this round's calls."""
        self._deaths = 0
        self._wake = trio.Event()

    # ---- what changed

    def modified(self, node: Node, kind: str = "modify", *, heard: Heard | None = None) -> None:
        """The node's bytes changed (with `attributes`: its mode or times). `heard` says whether that is news."""
        if not self.enabled:
            return
        known = self._files.get(node.ino)
        if known is None or (known[1] != kind and kind == "modify"):
            self._files[node.ino] = node, kind, heard
            self._wake.set()

    def renamed(self, directory: AnnouncedNames, name: bytes, before: str | None) -> None:
        """`name` may mean something else now than `before`."""
        if not self.enabled or not directory.lookups:
            return
        names = self._names.setdefault(directory, {})
        if names is not None:
            names.setdefault(name, before)
            if len(names) > NAMES_MAX:
                self._names[directory] = None
        self._wake.set()

    def busy(self) -> None:
        """Somebody writes to a file, or has closed one."""
        self._busy = trio.current_time()

    def look(self, directory: AnnouncedNames) -> None:
        """Names of the directory may have changed: have it compare them."""
        if self.enabled:
            self._looks[directory] = None
            self._wake.set()

    def watch(self, space: SpaceId) -> None:
        """Hear of a workspace's log, of which the kernel may hold nothing."""
        if space not in self._watched:
            self._watched.add(space)
            self._mount.driver.watch(space)

    @contextlib.contextmanager
    def own(self, *places: tuple[Directory, bytes]) -> Iterator[None]:
        """A request changes these names: the kernel reports that itself, if the block ends well."""
        keys = [(directory.ino, name) for directory, name in places]
        self._doing.update(keys)
        try:
            yield
            if self._telling:
                self._overtaken.update(keys)
            for directory, name in places:
                names = self._names.get(directory)  # type: ignore[call-overload]
                if names is not None:
                    names.pop(name, None)
                if self._mount.top is not None:
                    self._mount.top.changed_here(directory, name)
        finally:
            for key in keys:
                self._doing[key] -= 1
                if not self._doing[key]:
                    del self._doing[key]
            if self._names or self._looks:
                self._wake.set()

    # ---- the process's requests

    def is_process(self, thread: int) -> bool:
        """Whether a request by that thread is the process's."""
        return thread == self._process.pid and self._act is not None

    def looked_up(self, directory: Directory, name: bytes) -> Node | None:
        """What the process sees under `name`, None: what everybody sees. Raises FUSEError."""
        act = self._act
        assert act is not None
        if name == act.secret:
            known = directory.ino == act.directory.ino or (act.target is not None and directory.ino == act.target.ino)
            raise refuse(VOUCHED if known else errno.ENOENT)
        if act.target is not None and directory.ino == act.target.ino and name == act.new:
            raise refuse(errno.ENOENT)
        if directory.ino == act.directory.ino and name == act.name:
            if act.kind in {"mkdir", "mknod"}:
                raise refuse(errno.ENOENT)
            if act.kind in {"rmdir", "unlink", "rename"}:
                act.shown = True
                return act.node
        return None

    def _is(self, kind: str, directory: Directory, name: bytes) -> bool:
        act = self._act
        return act is not None and act.kind == kind and act.directory.ino == directory.ino and act.name == name

    async def made(self, kind: str, directory: Directory, name: bytes) -> Node:
        """The process's mkdir or mknod. Raises FUSEError for one that it wasn't asked for."""
        if not self._is(kind, directory, name):
            raise refuse(errno.EPERM)
        return await directory.lookup(name)

    async def removed(self, kind: str, directory: Directory, name: bytes) -> None:
        """The process's rmdir or unlink. Raises ESTALE where the kernel would drop what has the name now."""
        act = self._act
        if act is None or not self._is(kind, directory, name):
            raise refuse(errno.EPERM)
        if not act.shown and await self._mount.present(directory, name) is not None:
            raise refuse(errno.ESTALE)
        if act.node is not None:
            directory.drop(name, act.node)
        if isinstance(act.node, ChatDirectory):
            act.node.died()

    async def moved(self, source: Directory, name: bytes, target: Directory, new: bytes) -> None:
        """The process's rename. Raises ESTALE where the kernel would move something else."""
        act = self._act
        if act is None or not self._is("rename", source, name) or act.target is None or act.node is None:
            raise refuse(errno.EPERM)
        if act.target.ino != target.ino or act.new != new:
            raise refuse(errno.EPERM)
        found = await self._mount.present(target, new)
        if found is None or found.ino != act.node.ino:
            raise refuse(errno.ESTALE)
        if not act.shown and await self._mount.present(source, name) is not None:
            raise refuse(errno.ESTALE)
        act.node.placed(target, new)

    async def touched(self, node: Node) -> EntryAttributes:
        """The answer to the process's utimensat: the true size, and a time that isn't kept.

        The kernel takes over the mtime of this answer without dropping the pages that are older: it must be one that
        the next question, which comes at once as the time-out is 0, doesn't bring.
        """
        act = self._act
        if act is None or act.kind not in {"modify", "attributes"} or act.node is None or act.node.ino != node.ino:
            raise refuse(errno.EPERM)
        found = await node.attributes_for(0)
        if stat.S_ISREG(found.st_mode):
            found.st_mtime_ns -= 1
        found.attr_timeout = 0
        return found

    # ---- announcing

    async def run(self) -> None:
        """Announce, for ever, until it is cancelled."""
        if not self.enabled:
            return
        try:
            if self._mount.top is not None:
                await self._unharmed(self._mount.top.begin_announcing)
            while self.enabled:
                soonest = min((at for ino, at in self._last.items() if ino in self._files), default=float("inf"))
                with trio.move_on_at(soonest):
                    await self._wake.wait()
                self._wake = trio.Event()
                if self._names or self._looks:
                    # Names that change places do so in several steps.
                    await trio.sleep(GATHER_SECONDS)
                self._latest = trio.current_time() + REST_MAX_SECONDS
                await self._rest()
                await self._unharmed(self._round)
        finally:
            self.enabled = False
            await self._process.end()

    async def _unharmed(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do it; what goes wrong is nobody's loss but the watchers': the mount goes on."""
        try:
            await step()
        except (FUSEError, StoreError, OSError) as error:
            log.warning("inotify watchers may have missed a change: %s", error)
        except Exception:
            log.exception("inotify watchers may have missed a change")
        else:
            return
        if self._files or self._names or self._looks:
            self._wake.set()

    def reap(self) -> None:
        """Wait for the process, when the mount is gone."""
        self._process.reap()

    async def _rest(self) -> None:
        """Wait until nobody has written or closed a file for a moment, but not for ever.

        Who is done with a mount often unmounts it next, and a call that is under way would make it busy.
        """
        while (until := min(self._busy + REST_SECONDS, self._latest)) > trio.current_time():  # noqa: ASYNC110
            await trio.sleep_until(until)

    async def _round(self) -> None:
        await self._announce_names()
        now = trio.current_time()
        for ino in list(self._files):
            if self._last.get(ino, 0) > now:
                continue
            self._last[ino] = now + INTERVAL
            # As it is by now: while others were announced, a change of its mode may have become one of its bytes.
            node, kind, heard = self._files[ino]
            news = heard() if heard is not None else True
            if news is None:
                continue
            del self._files[ino]
            if news:
                if self._names or self._looks:
                    await self._announce_names()
                await self._announce_file(node, kind)
        for ino in [ino for ino, at in self._last.items() if at <= now and ino not in self._files]:
            del self._last[ino]

    async def _announce_file(self, node: Node, kind: str) -> None:
        directory = node if isinstance(node, Directory) else node.parent
        if directory is not None and directory.lookups:
            await self._make(Act(kind, directory, b"" if directory is node else node.name, node))

    async def _announce_names(self) -> None:
        """Announce what names mean now, where that isn't what watchers take them for."""
        looks, self._looks = self._looks, {}
        for looked in looks:
            try:
                await looked.compare_names()
            except StoreError as error:
                log.debug("comparing names: %s", error)
        self._telling = True
        try:
            await self._tell(*self._changes())
        finally:
            self._telling = False
            self._overtaken.clear()

    async def _tell(self, left: dict[Place, str], came: dict[Place, str], crowded: list[AnnouncedNames]) -> None:
        for directory in crowded:
            await self._announce_file(directory, "modify")
        moved = moves(left, came)
        staying = set(came.values())
        for (directory, name), before in left.items():
            await self._announce_gone(directory, name, before, stays=before in staying)
        for (source, name), (target, new), meaning in moved:
            node = await self._mount.present(target, new)
            if node is None or not await self._make(Act("rename", source, name, node, target, new)):
                self._moved_on(target, new, meaning, {(source, name): meaning, (target, new): None})
        for (directory, name), meaning in came.items():
            if not await self._make(Act("mknod" if directory.holds_files else "mkdir", directory, name)):
                self._moved_on(directory, name, meaning, {(directory, name): None})

    def _moved_on(self, directory: AnnouncedNames, name: bytes, meaning: str, taken: dict[Place, str | None]) -> None:
        """What couldn't be announced is looked at again, if `name` means something else by now.

        `taken` is what watchers go on to take names for; `renamed` has heard what the log meant by them.
        """
        if directory.meaning(name) != meaning:
            for (where, changed), before in taken.items():
                self._put_back(where, changed, before)
            self._wake.set()

    def _put_back(self, directory: AnnouncedNames, name: bytes, before: str | None) -> None:
        names = self._names.setdefault(directory, {})
        if names is not None:
            names[name] = before

    def _changes(self) -> tuple[dict[Place, str], dict[Place, str], list[AnnouncedNames]]:
        """What left and what came, by name, and the directories in which that is too much. They are done with."""
        changed, self._names = self._names, {}
        left: dict[Place, str] = {}
        came: dict[Place, str] = {}
        for directory, names in changed.items():
            for name, before in (names or {}).items():
                if (directory.ino, name) in self._doing:
                    # It is looked at again when the request is done.
                    self._put_back(directory, name, before)
                    continue
                now = directory.meaning(name)
                if before is not None and before != now:
                    left[directory, name] = before
                if now is not None and before != now:
                    came[directory, name] = now
        return left, came, [directory for directory, names in changed.items() if names is None]

    async def _announce_gone(self, directory: AnnouncedNames, name: bytes, before: str, *, stays: bool) -> None:
        # What stays must not die: who is in it would be in a removed directory.
        node: Node | None = None if stays else directory.children.get(name)
        if node is not None:
            try:
                await node.attributes()
            except (FUSEError, StoreError, KeyError):
                node = None
        if node is None or directory.meaning_of(node) != before:
            node = Gone(self._mount, directory, name)
        made = await self._make(Act("unlink" if directory.holds_files else "rmdir", directory, name, node))
        if not made and (directory.ino, name) in self._doing:
            self._put_back(directory, name, before)

    async def _make(self, act: Act) -> bool:
        """Have the process make the call of `act`; whether it did. What it can't do is the watchers' loss alone."""
        await self._rest()
        places = {(act.directory.ino, act.name)} | (set() if act.target is None else {(act.target.ino, act.new)})
        if act.name and act.kind not in {"modify", "attributes"} and places & (self._overtaken | self._doing.keys()):
            return False
        path, target = path_of(act.directory), None if act.target is None else path_of(act.target)
        if path is None or (act.target is not None and target is None) or not self.enabled:
            return False
        fields = [act.kind.encode(), act.secret, path, act.name]
        if target is not None:
            fields += [target, act.new]
        for last in (False, True):
            try:
                code = await self._call(act, fields)
            except BrokenPipeError as error:
                self._deaths += 1
                if self._deaths >= DEATHS_MAX:
                    self.enabled = False
                    log.error("inotify watchers hear no more of changes: of the process that tells them, %s", error)  # noqa: TRY400
                    return False
                continue
            if not code:
                self._deaths = 0
                return True
            log.debug("announcing %s of %r in %r: %s", act.kind, act.name, path, os.strerror(code))
            if last or act.shown or code != errno.ENOENT or act.kind not in {"rmdir", "unlink", "rename"}:
                return False
            self._mount.notifier.entry(act.directory, act.name)  # it has kept that there is nothing
        return False

    async def _call(self, act: Act, fields: list[bytes]) -> int:
        self._act = act
        try:
            return await self._process.call(fields)
        finally:
            self._act = None
