"""One mount: what its nodes share, its life from init to unmount.

Concurrency: `serve` runs on trio's loop, with the store and pyfuse3's session; signals end it as an unmount does.
Blocking work goes through `in_thread`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import pyfuse3
import trio

from fusefs.announce import Announcer
from fusefs.callers import Caller, caller_of
from fusefs.inodes import InodeTable
from fusefs.moves import Moves
from fusefs.nodes.base import Directory, Node
from fusefs.nodes.chat_dir import ChatDirectory
from fusefs.nodes.root_dir import RootDirectory
from fusefs.notify import Notifier
from fusefs.operations import ChatOperations
from fusefs.options import Durability, MountOptions
from fusefs.projection import Projections
from fusefs.recovery import pieces, recover_drafts
from fusefs.rooted import Part, directory_of, find
from fusefs.scratch import ScratchArea
from fusefs.session_loop import fast_session_loop
from fusefs.unmount import lazy_unmount, mounts
from fusefs.views import ChatView, WorkspaceView
from store.document import Effect
from store.driver import Access
from store.errors import StoreError
from store.library import Store, open_store
from store.model import ChatId, SpaceId, chat_space
from store.workspace_state import Names

if TYPE_CHECKING:
    from store.driver import Driver, Staging
    from store.folded import Change
    from store.workspace import Workspace

P = ParamSpec("P")
T = TypeVar("T")

RECENT_VIEWS: Final = 256
"""How many chats' views outlive what the kernel holds of them: they know what editors have read."""
SEEN_STATES: Final = 8
"""How many editors' own states, after merged saves, are kept in memory."""
READ_AHEAD_KB: Final = 1024
ROOM_SECONDS: Final = 1.0
"""How old may be what df(1) shows of a quota, as long as nothing is written."""
SWITCH_SECONDS: Final = 0.0005
"""How long a thread that computes (the index's) may keep the interpreter from requests. Each of a request's system
calls gives it up; with Python's 5 ms, half as many requests were served beside such a thread as with 1 ms."""
RELAXED_SECONDS: Final = 1.0
"""How long a relaxed mount may put off a sync."""


class Mount:
    """What the nodes of one mount share."""

    def __init__(self, store: Store, options: MountOptions, part: Part | None = None) -> None:
        self.store = store
        self.options = options
        self.part = part
        self.log = logging.getLogger("chatfs")
        self.notifier = Notifier()
        self.announcer = Announcer(self, enabled=options.inotify and not options.read_only)
        self.moves = Moves(self)
        self.projections = Projections(self)
        self.held_chats: dict[SpaceId, ChatView] = {}
        """Views of chats of which the kernel holds something."""
        self._views: WeakValueDictionary[SpaceId, ChatView | WorkspaceView] = WeakValueDictionary()
        self._recent: OrderedDict[ChatView, None] = OrderedDict()
        self.root = directory_of(self, part)
        self.top = self.root if isinstance(self.root, RootDirectory) else None
        """The directory of all workspaces, where the mount shows them."""
        self.inodes = InodeTable(self.root)
        self.strict = options.durability is Durability.STRICT
        self.unkept: list[Staging] = []
        """Drafts that could neither be committed nor kept as scratch files: the next mount finds them."""
        self._seen: OrderedDict[tuple[ChatView, int], None] = OrderedDict()
        self.unfinished = 0
        """Bytes that were written to logs, as lines whose rest hasn't come yet."""
        self._limiter = trio.CapacityLimiter(8)
        self._unsynced: dict[Callable[[], Awaitable[None]], None] = {}
        self._sync_wanted = trio.Event()
        self._sync_failure = ""
        """What the last deferred sync failed with: said once."""
        self.agreed = trio.Event()
        """Set once the kernel and libfuse have agreed on what they can (INIT)."""
        store.on_moved = self.moved

    def begin(self) -> None:
        """The kernel is about to hold the root, and may ask for anything."""
        if self.top is not None:
            self.driver.watch_spaces()
            return
        assert self.part is not None
        # The chats' names and places are in the workspace's log, whatever part of it is shown.
        self.workspace_view(self.part.workspace).begin()
        self.root.appeared()
        if isinstance(self.root, ChatDirectory):
            self.root.look()

    @property
    def driver(self) -> Driver:
        """The store's driver."""
        return self.store.driver

    def caller(self, ctx: pyfuse3.RequestContext) -> Caller:
        """Who made the request."""
        return caller_of(ctx)

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run blocking work beside the loop."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)

    async def synced(self, sync: Callable[[], Awaitable[None]]) -> None:
        """What close(2) promises: synced now, or (relaxed) within a second."""
        if self.strict:
            await sync()
        else:
            self._unsynced[sync] = None
            self._sync_wanted.set()

    async def fsynced(self, sync: Callable[[], Awaitable[None]]) -> None:
        """What fsync(2) promises: synced now, with the blobs that a relaxed mount hasn't synced yet."""
        if not self.strict:
            await self.driver.sync()
        await sync()

    async def sync_later(self) -> None:
        """Do what `synced` put off, for ever."""
        while True:
            await self._sync_wanted.wait()
            await trio.sleep(RELAXED_SECONDS / 2)
            await self.sync_now()

    async def sync_now(self) -> None:
        """Do what `synced` put off."""
        self._sync_wanted = trio.Event()
        wanted, self._unsynced = list(self._unsynced), {}
        for sync in [self.driver.sync, *wanted] if wanted else []:
            try:
                await sync()
            except StoreError as error:
                # What isn't durable yet is tried again: the driver knows what has to be written once more.
                self._unsynced[sync] = None
                if str(error) != self._sync_failure:
                    self.log.error("a deferred sync failed: %s", error)  # noqa: TRY400 - one line, the error says it all
                self._sync_failure = str(error)
            except Exception:
                self.log.exception("a deferred sync failed")
        if self._unsynced:
            self._sync_wanted.set()
        else:
            self._sync_failure = ""

    # ---- views

    def chat_view(self, workspace: Workspace, chat: ChatId) -> ChatView:
        """The view of a chat."""
        space = chat_space(workspace.id, chat)
        found = self._views.get(space)
        if not isinstance(found, ChatView):
            external = self.projections.chat_of(workspace, chat) if self.projections.externals else None
            found = self._views[space] = ChatView(self, external or workspace.chat_by_id(chat))
        self._recent[found] = None
        self._recent.move_to_end(found)
        if len(self._recent) > RECENT_VIEWS:
            self._recent.popitem(last=False)
        return found

    def workspace_view(self, workspace: Workspace) -> WorkspaceView:
        """The view of a workspace."""
        found = self._views.get(workspace.space.id)
        if not isinstance(found, WorkspaceView):
            found = self._views[workspace.space.id] = WorkspaceView(self, workspace)
        return found

    def saw(self, view: ChatView, process: int) -> None:
        """`process` saved over somebody else's changes: what it sees is a whole state, of which few are kept."""
        self._seen[view, process] = None
        self._seen.move_to_end((view, process))
        if len(self._seen) > SEEN_STATES:
            (old, other), _ = self._seen.popitem(last=False)
            if not isinstance(old.reads.get(other), int):
                old.reads.pop(other, None)

    async def present(self, directory: Directory, name: bytes) -> Node | None:
        """What `name` means in `directory`, None where there is nothing."""
        try:
            return await directory.lookup(name)
        except pyfuse3.FUSEError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    async def keep_staging(self, area: ScratchArea, stem: str, staging: Staging) -> None:
        """Keep a draft that couldn't be committed, as a scratch file."""
        kept = area.keep_pieces(stem, pieces(staging))
        self.log.error("its bytes are kept as %s", kept)

    def chats_renamed(self, workspace: Workspace) -> None:
        """Chats of the workspace may have other names or places."""
        for view in self.held_chats.values():
            if view.chat.workspace is workspace:
                view.renamed()

    def known_view(self, space: SpaceId) -> ChatView | None:
        """The view of a chat, if there is one."""
        found = self._views.get(space)
        return found if isinstance(found, ChatView) else None

    def moved(self, space: SpaceId, change: Change | None) -> None:
        """A log has moved, and what that did to its fold, where it is known."""
        top = self.top
        if "/" not in space:
            if top is not None:
                top.log_moved()
            return
        found = self._views.get(space)
        if found is None and top is not None and space.count("/") == 1:
            top.log_moved()
        if isinstance(found, ChatView):
            found.moved(change if isinstance(change, Effect) else None)
        elif isinstance(found, WorkspaceView):
            found.moved(change if isinstance(change, Names) else None)
            self.projections.moved(found.workspace.id)
            state = found.workspace.state
            if top is not None and (state.name.encode() not in top.children or state.trashed):
                top.log_moved()

    async def room(self) -> tuple[int, int, int, int]:
        """(block size, blocks, free blocks, blocks available): the store's disk, or what a quota leaves of it."""
        block, blocks, free, available = self.driver.usage()
        quota = 0 if self.part is None else (await self.part.workspace.load()).quota_bytes
        if self.part is None or not quota:
            return block, blocks, free, available
        left = max(0, quota - await self.part.workspace.quota.usage(patience=ROOM_SECONDS)) // block
        return block, quota // block, min(free, left), min(available, left)

    async def settle(self) -> None:
        """Commit every draft and sync: what an unmount owes."""
        nodes: list[Node] = []
        for view in list(self._views.values()):
            nodes += view.nodes
            if isinstance(view, ChatView):
                nodes += [*view.files, *view.pending.values()]
        for node in nodes:
            try:
                await node.settle()
            except StoreError as error:
                self.log.error("%s couldn't be saved: %s", node.name.decode(), error)  # noqa: TRY400 - as above
            except Exception:
                self.log.exception("%s couldn't be saved", node.name.decode())
        await self.sync_now()


def fuse_options(options: MountOptions) -> set[str]:
    """What libfuse is told."""
    found = set(pyfuse3.default_options) | {"fsname=chatfs", "subtype=chatfs", "default_permissions"}
    if options.allow_other:
        found.add("allow_other")
    if options.read_only:
        found.add("ro")
    if options.debug:
        found.add("debug")
    return found


async def serve(options: MountOptions, ready: Callable[[], None], alive: int | None = None) -> None:
    """Mount, say `ready`, serve until unmounted or told to end by SIGTERM, SIGINT or SIGHUP, and clean up.

    Also when the other end of the pipe `alive` is closed: whoever needed the mount is gone.

    Raises StoreError where the store can't be opened, RuntimeError where the kernel refuses the mount.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    async with open_store(options.url, access=Access.READ if options.read_only else Access.MAKE) as store:
        mount = Mount(store, options, await find(store, options.root))
        if store.authorities is not None:
            store.authorities.durable = options.durability is Durability.STRICT
        if not options.read_only:
            await recover_drafts(store)
        mount.begin()
        operations = ChatOperations(mount)
        take_over(options)
        pyfuse3.init(operations, str(options.mountpoint), fuse_options(options))
        unmounted = False
        try:
            async with mount.projections.running():
                try:
                    await _serve(mount, ready, alive)
                finally:
                    mount.notifier.live = False
                    with trio.CancelScope(shield=True):
                        await mount.settle()
            unmounted = True
        finally:
            # After a failure the mount point stays dead instead of looking empty: rsync would empty its mirror.
            pyfuse3.close(unmount=unmounted)
            mount.announcer.reap()


async def _serve(mount: Mount, ready: Callable[[], None], alive: int | None) -> None:
    options, store = mount.options, mount.store
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.notifier.run)
        nursery.start_soon(mount.announcer.run)
        nursery.start_soon(mount.sync_later)
        nursery.start_soon(_end_on_signal)
        if alive is not None:
            nursery.start_soon(_end_with, alive)
        nursery.start_soon(read_ahead, mount)
        if not options.read_only:
            nursery.start_soon(store.index.follow)
        mount.notifier.live = True
        ready()
        with fast_session_loop(wanted=options.fast_loop):
            await pyfuse3.main()
        store.index.hurry()
        nursery.cancel_scope.cancel()


async def _end_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for _ in signals:
            pyfuse3.terminate()
            return


async def _end_with(alive: int) -> None:
    await trio.lowlevel.wait_readable(alive)
    pyfuse3.terminate()


async def read_ahead(mount: Mount) -> None:
    """Let the kernel ask for 1 MiB at a time of what is read in order, instead of 128 KiB. Only root can set that.

    The kernel lowers it to what was agreed at INIT, so this comes after.
    """
    await mount.agreed.wait()
    await trio.lowlevel.checkpoint()
    for mounted in mounts():
        if mounted.mountpoint == mount.options.mountpoint:
            with contextlib.suppress(OSError):
                setting = Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb")
                setting.write_text(f"{READ_AHEAD_KB}\n")  # noqa: ASYNC240 - sysfs doesn't wait


def take_over(options: MountOptions) -> None:
    """Free a mount point that a crash left dead ("Transport endpoint is not connected").

    statvfs(2), because the kernel may answer a stat(2) from its cache.
    """
    try:
        os.statvfs(options.mountpoint)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        lazy_unmount(options.mountpoint)
