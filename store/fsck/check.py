"""One check of a store: what is looked at, in which order.

Logs are read by one thread and objects hashed by two others, all at once; memory is bounded by one line and the store's
workspaces. Nothing is changed without `repair`; with it, what is read is repaired as it is met, so that a snapshot is
compared with the repaired log.

Concurrency: `check_store` blocks; other processes may use the store meanwhile.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from store.drivers.file import format as store_format
from store.drivers.file.fence import OLD_NAME
from store.drivers.file.objects import Objects
from store.drivers.file.takeover import TAKEN_NAME
from store.drivers.file.text import BASE_NAME, LOG_NAME
from store.errors import ChatNotFound, WorkspaceNotFound
from store.fsck.ahead import Ahead
from store.fsck.context import RESTORE, Context, reason
from store.fsck.derived import NOTE, TEXT, DerivedCheck, check_index, entries, wanted
from store.fsck.findings import Findings, Report
from store.fsck.layout import LayoutCheck, claimed_twice
from store.fsck.objects import ATTACH, Bad, ObjectCheck, References
from store.fsck.spaces import Facts, SpaceCheck, check_directory
from store.fsck.users import User, record_quarantine, users_of
from store.model import ChatId, Digest, SpaceId, WorkspaceId, chat_space, is_uuid, workspace_space
from store.projection.manifest import LOCK as MANIFEST_LOCK
from store.projection.manifest import NAME as MANIFEST
from store.quota.ledger import LEDGER, LOCK
from store.snapshots import DIRECTORY
from store.unlinked import UNLINKED
from store.workspace_state import Place, WorkspaceState

_LOG_FILES: Final = frozenset({LOG_NAME, BASE_NAME, OLD_NAME, TAKEN_NAME, DIRECTORY, "scratch", UNLINKED})
CHAT_FILES: Final = _LOG_FILES | {TEXT, NOTE, "scratch-attachments"}
WORKSPACE_FILES: Final = _LOG_FILES | {"chats", MANIFEST, MANIFEST_LOCK, LEDGER, LOCK}


@dataclass(slots=True)
class Scope:
    """What is asked for: all, one workspace, or one chat; by name or id."""

    workspace: str = ""
    chat: str = ""


@dataclass(slots=True)
class _Workspace:
    id: WorkspaceId
    state: WorkspaceState
    facts: Facts
    chats: list[ChatId] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As findings have it."""
        return self.state.name or self.id


def check_store(
    root: Path,
    scope: Scope | None = None,
    *,
    repair: bool = False,
    full: bool = False,
    read: Callable[[int], None] = lambda _size: None,
) -> Report:
    """Check the store at `root`; `read` is told of bytes as they are read, from several threads.

    Raises StoreNotFound, FormatError, StoreFailed, WorkspaceNotFound, ChatNotFound.
    """
    store_format.require(root)
    findings = Findings()

    def count(size: int) -> None:
        findings.looked(size=size)
        read(size)

    context = Context(root, findings, repair, count, full)
    check = _Check(context)
    try:
        if scope is None or not scope.workspace:
            check.everything()
        else:
            check.some(scope)
    finally:
        check.close()
    return findings.finish()


def size_of(root: Path) -> int:
    """About how many bytes a check of everything reads."""
    total = 0
    for directory, _names, files in os.walk(root):
        for name in files:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size  # noqa: PTH118 - many, and fast
            except OSError:
                continue
    return total


class _Check:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._objects = Objects(context.root)
        self._references = References(context, self._objects)
        self._spaces = SpaceCheck(context, self._references)
        self._object_check = ObjectCheck(context, self._objects)
        self._ahead = Ahead(context.root)

    def close(self) -> None:
        """End and let go of what was opened."""
        self._ahead.close()
        self._objects.close()

    def everything(self) -> None:
        """The whole store."""
        with ThreadPoolExecutor(1, "fsck") as pool:
            hashing = pool.submit(self._object_check.check_all)
            LayoutCheck(self._context, self._objects).check()
            heads: list[tuple[SpaceId, int, int]] = []
            names: list[tuple[str, str]] = []
            for workspace in self._workspaces():
                self._count(heads, workspace.facts)
                chats = self._chats(workspace)
                self._ahead.begin(chat_space(workspace.id, chat) for chat in chats)
                if not workspace.state.trashed and workspace.state.id:
                    names.append((workspace.state.name, workspace.id))
                for chat in chats:
                    self._count(heads, self._check_chat(workspace, chat))
            bad = hashing.result()
        self._report_bad(bad)
        self._report_names(names)
        check_index(self._context, heads)

    @staticmethod
    def _count(heads: list[tuple[SpaceId, int, int]], facts: Facts) -> None:
        if facts.checked is not None and facts.whole:
            heads.append((facts.space, facts.checked.seq, facts.checked.crc))

    def some(self, scope: Scope) -> None:
        """A workspace, or a chat in it, with what it refers to."""
        self._references.collect()
        for workspace in self._workspaces(scope):
            if not scope.chat:
                chats: Collection[ChatId] = self._chats(workspace)
            else:
                chats = self._named(workspace, scope.chat)
                if not chats:
                    path = f"{workspace.name}/{scope.chat}"
                    raise ChatNotFound(f"there is no chat {path}: see chatfs chat ls --all {workspace.name}")
            for chat in chats:
                self._check_chat(workspace, chat)
            self._report_bad(self._object_check.check_some(self._references.collected))
            return
        raise WorkspaceNotFound(f"no workspace {scope.workspace!r}: see chatfs workspace ls")

    # ---- workspaces

    def _workspaces(self, scope: Scope | None = None) -> Iterator[_Workspace]:
        """Each, its own log checked; of those in `scope`."""
        directory = self._context.root / "workspace"
        if not directory.is_dir() or directory.is_symlink():
            if os.path.lexists(directory):
                self._context.error("layout", "is no directory", directory, advice=RESTORE)
            return
        found = [(name, self._state(WorkspaceId(name))) for name in self._names_in(directory)]
        check_directory(self._context, directory, {name for name, _ in found}, "")
        for name, state in found:
            if scope is not None and scope.workspace not in {name, state.name if not state.trashed else name}:
                continue
            space = workspace_space(WorkspaceId(name))
            where = state.name or name
            made_at = wanted(self._context.root, space)
            facts = self._spaces.check_log(space, where, made_at)
            self._rest(space, where, facts, made_at, WORKSPACE_FILES)
            # What a repair brought back counts.
            present = self._state(WorkspaceId(name)) if self._context.repair else state
            yield _Workspace(WorkspaceId(name), present, facts)

    def _names_in(self, directory: Path) -> list[str]:
        try:
            with os.scandir(directory) as entries_:
                return sorted(
                    each.name for each in entries_ if is_uuid(each.name) and each.is_dir(follow_symlinks=False)
                )
        except FileNotFoundError:
            return []
        except OSError as error:
            self._context.error(
                "unreadable", f"can't be listed: {reason(error)}", directory, advice="see who may read it"
            )
            return []

    def _state(self, workspace: WorkspaceId) -> WorkspaceState:
        """What can be read of its log, folded."""
        state = WorkspaceState()
        path = self._context.root / workspace_space(workspace) / LOG_NAME
        try:
            fd = self._context.open(path)
        except OSError:
            return state
        try:
            for entry in entries(fd, os.fstat(fd).st_size):
                state.apply(entry)
        finally:
            os.close(fd)
        return state

    # ---- chats

    def _chats(self, workspace: _Workspace) -> list[ChatId]:
        """Those that have a directory; those that should have one, and those that nobody lists, are reported."""
        context = self._context
        directory = context.root / workspace_space(workspace.id) / "chats"
        there = self._names_in(directory)
        if os.path.lexists(directory):
            check_directory(context, directory, set(there), workspace.name)
        if set(there) != workspace.state.chats.keys():
            # Look after the listing: a chat's directory is made before the log lists it.
            workspace.state = self._state(workspace.id)
        for chat, record in workspace.state.chats.items():
            if chat not in there and not (directory / chat).exists():
                where = _where(workspace, record.name, record.place)
                context.error(
                    "chat-missing", "the chat's directory is missing", directory / chat, where, advice=RESTORE
                )
        return [ChatId(name) for name in there]

    def _named(self, workspace: _Workspace, name: str) -> list[ChatId]:
        state = workspace.state
        record = state.find(name) or state.find_in(Place.TRASH, name) or state.chats.get(ChatId(name))
        return [] if record is None else [record.id]

    def _check_chat(self, workspace: _Workspace, chat: ChatId) -> Facts:
        context = self._context
        record = workspace.state.chats.get(chat)
        where = f"{workspace.name}/{chat}" if record is None else _where(workspace, record.name, record.place)
        space = chat_space(workspace.id, chat)
        if record is None and not os.path.lexists(context.root / space / LOG_NAME):
            what = "has no log, and the workspace doesn't list it"
            context.warning("stranger", what, context.root / space, where, advice="move it elsewhere")
            return Facts(space, where)
        scanned = self._ahead.take(space)
        if scanned is not None:
            context.read(scanned.size)
            made_at = scanned.made_at
            facts = self._spaces.check_log(space, where, made_at, (scanned.checked, scanned.told))
        else:
            made_at = wanted(context.root, space)
            facts = self._spaces.check_log(space, where, made_at)
        if record is None and facts.checked is not None and chat not in workspace.facts.deleted:
            self._report_unlisted(workspace, chat, facts)
        self._rest(space, where, facts, made_at, CHAT_FILES)
        return facts

    def _report_unlisted(self, workspace: _Workspace, chat: ChatId, facts: Facts) -> None:
        """A chat is made before it is listed; one with entries in it was listed once."""
        context, path = self._context, self._context.root / facts.space
        if workspace.facts.checked is None or facts.checked is None or workspace.state.trashed:
            return
        if facts.checked.seq:
            what = "the workspace doesn't list this chat, which has entries"
            context.error(
                "chat-unlisted", what, path, facts.where, fix=lambda: self._spaces.list_chat(workspace.id, chat)
            )
        else:
            context.info(
                "leftover", "was being made when a crash came", path, facts.where, advice="chatfs gc removes it"
            )

    def _rest(self, space: SpaceId, where: str, facts: Facts, made_at: Collection[int], known: Collection[str]) -> None:
        context = self._context
        self._spaces.check_lease(space, where)
        if facts.checked is not None and facts.whole:
            DerivedCheck(context, space, where, facts.checked, made_at).check()
        directory = context.root / space
        try:
            status = directory.lstat()
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            context.check_mode(directory, status, where)
            check_directory(context, directory, known, where)

    # ---- across spaces

    def _report_names(self, names: list[tuple[str, str]]) -> None:
        for name, ids in claimed_twice(names):
            for each in ids[1:]:
                path = self._context.root / workspace_space(WorkspaceId(each))
                advice = "rename one of them"
                self._context.warning("name-twice", f"workspace {ids[0]} has the same name", path, name, advice=advice)

    def _report_bad(self, found: list[Bad]) -> None:
        """Say of damaged objects what they are to whom."""
        digests = {digest for bad in found for digest in bad.digests}
        users = users_of(self._context, digests, self._named_chats(), self._references.attachments) if found else {}
        for bad in found:
            path = Path(self._objects.path(bad.name))
            needing = [(digest, user) for digest in bad.digests for user in users.get(digest, ())]
            needed = [place for _, user in needing for place in user.places]
            places = ", ".join(needed[:5]) + (", …" if len(needed) > 5 else "")
            what = f"{bad.what}; {f'it is needed for {places}' if needed else 'nothing refers to it'}"
            fix = functools.partial(self._put_aside, bad.name, needing) if bad.movable else None
            self._context.error(
                "blob-damaged", what, path, advice=ATTACH if needed else "", fix=fix, stays=bool(needed)
            )

    def _put_aside(self, name: str, needing: list[tuple[Digest, User]]) -> str:
        def tell(quarantine: str) -> None:
            for digest, user in needing:
                record_quarantine(self._context, digest, user, quarantine)

        return self._object_check.put_aside(name, tell)

    def _named_chats(self) -> Iterator[tuple[SpaceId, str]]:
        """Every chat there is, and how findings name it."""
        for name in self._names_in(self._context.root / "workspace"):
            workspace = _Workspace(WorkspaceId(name), self._state(WorkspaceId(name)), Facts(SpaceId(""), ""))
            for chat in self._names_in(self._context.root / workspace_space(workspace.id) / "chats"):
                listed = workspace.state.chats.get(ChatId(chat))
                where = f"{workspace.name}/{chat}" if listed is None else _where(workspace, listed.name, listed.place)
                yield chat_space(workspace.id, ChatId(chat)), where


def _where(workspace: _Workspace, name: str, place: Place) -> str:
    """How findings name a chat."""
    middle = "" if place is Place.CHATS else f"{place}/"
    return f"{workspace.name}/{middle}{name}"
