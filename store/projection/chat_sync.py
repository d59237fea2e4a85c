"""One chat and its copies in the project: made the same, whichever has more to say.

In this order, so that the log's line is the commit point and the next start finishes what a crash has left:

1. bytes of new attachments into the store, 2. a losing stream into a chat of its own, 3. the lines into the log,
4. name, place, title and labels, 5. attachments that somebody changed by hand, 6. everything out to the project,
7. the manifest.

After each step that changed the durable copy both are read again. Concurrency: trio; one task per project.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Final

import trio

from store import events as ev
from store.chat import Chat
from store.errors import NameTaken, SeqConflict, StoreFailed
from store.model import ChatId, Seq, numbered
from store.projection import attached, compare, conflicts, copies, durable, form, leaving, portable, take_in
from store.projection.copies import Copy
from store.projection.durable import Durable
from store.projection.manifest import Row
from store.projection.repository import Busy, Mark, Repository
from store.projection.tree import Directory, Moved, Stamp
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

_ACTOR: Final = ev.PROJECTOR
_ATTEMPTS: Final = 20


@dataclass
class Report:
    """What was done, as lines for people, and what couldn't be, which stays so until somebody does something."""

    done: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    written: int = 0
    taken: int = 0
    unchanged: int = 0


class ChatSync:
    """Brings chats of one workspace and the project's copies together. `chats` is `.chatfs/chats`, open.

    `mark` is git's when the directories' names were read.
    """

    def __init__(self, workspace: Workspace, chats: Directory, git: Repository, mark: Mark, report: Report) -> None:
        self._workspace = workspace
        self._chats = chats
        self._git = git
        self._mark = mark
        self._report = report
        self._taken: tuple[Durable, list[bytes]] | None = None
        """What the present chat was before lines were taken into it, and the lines that it has since."""

    async def run(self, record: ChatRecord, names: list[str], row: Row | None) -> Row | None:
        """Make them the same; what is to be remembered. `names` are the directories that have the chat's id."""
        chat = self._workspace.chat_by_id(record.id)
        # Its directory may have been renamed: what was written there is known all the same.
        known = row if row is not None and row.directory else None
        self._taken = None
        with chat.hold():
            if not names:
                return await self._absent(chat, record, row)
            name, *others = self._primary(names)
            if others:
                # All that they have comes first, so that a crash in between leaves nothing that looks deleted.
                for each in (name, *others):  # a log may name what stands in another
                    await self._keep_bytes(each)
                whole = [each for each in (name, *others) if await self._absorb(chat, each)]
                if len(whole) <= len(others):
                    return row
                for other in others:
                    await leaving.leave(chat, self._chats, other, [], self._report.problems.append)
                    self._report.done.append(f"{chat.called} was in two directories: {other} was merged into the other")
            return await self._present(chat, name, known)

    def _record(self, chat: Chat) -> ChatRecord:
        return self._workspace.state.chats[chat.id]

    # ---- no copy is there

    async def _absent(self, chat: Chat, record: ChatRecord, row: Row | None) -> Row | None:
        if record.place is Place.TRASH:
            return None
        state = await chat.load()
        if row is not None and row.directory and state.projection not in {ev.LOCAL, ev.GONE}:
            if self._git.moved(self._mark):
                raise Busy(f"{self._chats.shown}: git is at work: it is tried again")
            await chat.append_events([ev.ChatChanged(projection=ev.GONE)], _ACTOR, tidying=True)
            await chat.sync()
            self._report.done.append(
                f"{chat.called} was deleted in the project: it stays in the store, and is local now "
                f"(chatfs chat project {chat.called} puts it back)"
            )
        if (await chat.load()).projection in {ev.LOCAL, ev.GONE}:
            return await local_row(chat)
        return await self._write_new(chat)

    async def _write_new(self, chat: Chat) -> Row:
        found = await self._durable(chat, None, None)
        name = await trio.to_thread.run_sync(copies.free_name, self._chats, chat.id, found.fields["name"])
        temporary = f".{name[:100]}.{chat.id}.tmp"
        chats = self._chats
        if await trio.to_thread.run_sync(chats.exists, temporary):
            await trio.to_thread.run_sync(chats.remove_tree, temporary)
        with chats.make(temporary) as directory:
            content = copies.Content(chat.id, found.lines, found.text, found.fields)
            files = await trio.to_thread.run_sync(copies.write_files, directory, content, {}, b"")
            attachments = await self._write_attachments(chat, directory, found, {}, {})
            _, attached_ns = await trio.to_thread.run_sync(copies.list_attachments, directory)
        chats.rename(temporary, name)
        self._report.written += 1
        return make_row(name, found, files, attachments, attached_ns)

    # ---- several directories of one chat

    def _primary(self, names: list[str]) -> list[str]:
        """The names, the one that stays first: where chat.json is the newest."""
        if len(names) == 1:
            return names

        def when(name: str) -> tuple[int, str]:
            with self._chats.sub(name) as directory:
                stamp = directory.stamp(form.METADATA)
                return (0 if stamp is None else stamp.mtime_ns), name

        return sorted(names, key=when, reverse=True)

    async def _keep_bytes(self, name: str) -> None:
        with self._chats.sub(name) as directory:
            attachments, _ = await trio.to_thread.run_sync(copies.list_attachments, directory)
            for file in attachments:
                await take_in.put_file(self._workspace, directory, file)

    async def _absorb(self, chat: Chat, name: str) -> bool:
        """Take in all that one of several directories has; whether that could be done."""
        for _ in range(_ATTEMPTS):
            found = await durable.read(chat, self._record(chat))
            copy = await self._copy(name, found)
            if copy.problem:
                self._report.problems.append(copy.problem)
                return False
            with self._chats.sub(name) as directory:
                mine = self._behind(found, copy, None)
                # A merge of renames has parted them: what each has more belongs to the one chat.
                wanted = compare.combine(mine, copy.lines, 0)
                assert wanted is not None, "nothing was written there"
                if wanted != mine:
                    await take_in.bring_bytes(self._workspace, wanted, directory, self._report.problems.append)
                    if not await self._take(chat, mine, wanted, found.seq):
                        continue
                await leaving.keep_unknown(chat, directory, copy.others)
                found = await durable.read(chat, self._record(chat))
                await attached.take(self._workspace.driver, chat, directory, copy, found, None)
            return True
        raise _busy(chat)

    # ---- a copy is there

    async def _present(self, chat: Chat, name: str, row: Row | None) -> Row | None:
        with self._chats.sub(name) as directory:
            await trio.to_thread.run_sync(directory.sweep)
        for _ in range(_ATTEMPTS):
            mark = await self._git.rest()
            await self._workspace.load()
            found = await durable.read(chat, self._record(chat))
            copy = await self._copy(name, found)
            if self._git.moved(mark):
                continue  # what was read may be half of what git is about
            if copy.problem:
                self._report.problems.append(copy.problem)
                return row
            found = await self._with_beginning(chat, found, copy, row)
            with self._chats.sub(name) as directory:
                try:
                    if await self._take_all(chat, directory, found, copy, row):
                        continue
                    if self._record(chat).place is Place.TRASH or found.intent == ev.LOCAL:
                        return await self._leave(chat, copy)
                    written = await self._write(chat, directory, found, copy, row)
                except (Moved, FileNotFoundError):
                    continue
            if self._git.moved(mark):
                return written.unsure(row)
            kept = copies.free_name(self._chats, chat.id, found.fields["name"], name)
            if kept != name:
                self._chats.rename(name, kept)
            return written.moved(directory=kept)
        raise _busy(chat)

    async def _leave(self, chat: Chat, copy: Copy) -> Row | None:
        await leaving.leave(chat, self._chats, copy.name, copy.others, self._report.problems.append)
        self._report.written += 1
        return None if self._record(chat).place is Place.TRASH else await local_row(chat)

    async def _take_all(self, chat: Chat, directory: Directory, found: Durable, copy: Copy, row: Row | None) -> bool:
        """Take in what the copy has; whether the durable copy changed, or may have."""
        trashed = self._record(chat).place is Place.TRASH
        wanted = compare.combine(found.lines, copy.lines, None if row is None else row.lines)
        if wanted is None:
            return await self._diverged(chat, directory, found, copy)
        if wanted != found.lines:
            await take_in.bring_bytes(self._workspace, wanted, directory, self._report.problems.append)
            if await self._take(chat, found.lines, wanted, found.seq):
                self._taken = found if self._taken is None else self._taken[0], wanted
                self._report.taken += 1
                if trashed:
                    await self._restore(chat)
            return True
        if trashed:
            return await attached.take(self._workspace.driver, chat, directory, copy, found, row)
        if found.intent == ev.GONE:
            # It was deleted there, not here; now it is back.
            await chat.append_events([ev.ChatChanged(projection=ev.PROJECTED)], _ACTOR, tidying=True)
            return True
        return await self._take_metadata(chat, found, copy, row) or await attached.take(
            self._workspace.driver, chat, directory, copy, found, row
        )

    async def _take(self, chat: Chat, before: list[bytes], wanted: list[bytes], seq: Seq) -> bool:
        try:
            await take_in.take_lines(chat, before, wanted, seq)
        except SeqConflict:
            await trio.lowlevel.checkpoint()
            return False
        return True

    async def _restore(self, chat: Chat) -> None:
        """Somebody else still writes to a chat that was put into the trash here."""
        record = self._record(chat)
        name = await self._free(record.name, chat.id)
        await self._workspace.move_chat(chat.id, Place.CHATS, name, _ACTOR)
        self._report.done.append(f"{chat.called} was in the trash, and has new messages: it was restored")

    async def _diverged(self, chat: Chat, directory: Directory, found: Durable, copy: Copy) -> bool:
        """The newer one is the chat; the other becomes a chat of its own before anything else changes."""
        trashed = self._record(chat).place is Place.TRASH
        theirs = compare.project_wins(found.changed, copy.files[form.HISTORY].mtime_ns)
        if theirs:
            await self._keep_loser(chat, found.lines, directory, found.intent)
            await take_in.bring_bytes(self._workspace, copy.lines, directory, self._report.problems.append)
            if await self._take(chat, found.lines, copy.lines, found.seq) and trashed:
                await self._restore(chat)
        else:
            await self._keep_loser(chat, copy.lines, directory, found.intent)
            write = functools.partial(copies.write_history, directory, found.lines, copy.files[form.HISTORY], copy.text)
            await trio.to_thread.run_sync(write)
        return True

    async def _keep_loser(self, chat: Chat, lines: list[bytes], directory: Directory, intent: str) -> None:
        await take_in.bring_bytes(self._workspace, lines, directory, self._report.problems.append)
        made = await conflicts.keep(self._workspace, chat, lines, ev.LOCAL if intent == ev.LOCAL else "")
        if made is not None:
            self._report.done.append(f"{chat.called} went two ways: the older one is {made.called} now")

    async def _take_metadata(self, chat: Chat, found: Durable, copy: Copy, row: Row | None) -> bool:
        if copy.metadata is None:
            return False
        theirs, ours, changed_ms = dict(copy.metadata.fields), found.fields, found.metadata_changed
        own = ours
        if self._taken is not None and self._taken[1] == found.lines:
            # What the lines say that were taken in isn't said here: chat.json came with them, and has the last word.
            # So all who pulled the same two files end with the same.
            before = self._taken[0]
            own = ours | {"title": before.fields["title"], "labels": before.fields["labels"]}
            changed_ms = before.metadata_changed
        newer = compare.project_wins(changed_ms, copy.files[form.METADATA].mtime_ns)
        settled = compare.settle(own, theirs, None if row is None else row.metadata, newer=newer)
        if settled == ours:
            return False
        changed = False
        if settled["title"] != ours["title"] or settled["labels"] != ours["labels"]:
            await chat.change(_ACTOR, title=settled["title"], labels=settled["labels"])
            changed = True
        if settled["name"] != ours["name"] or settled["place"] != ours["place"]:
            name = await self._free(settled["name"], chat.id)
            if name == ours["name"] and settled["place"] == ours["place"]:
                return changed
            try:
                await self._workspace.move_chat(chat.id, Place(settled["place"]), name, _ACTOR)
            except NameTaken:
                await trio.lowlevel.checkpoint()
            changed = True
        return changed

    async def _free(self, name: str, chat: ChatId) -> str:
        return await free_name(self._workspace, name, chat)

    # ---- out

    async def _write_attachments(
        self,
        chat: Chat,
        directory: Directory,
        found: Durable,
        there: dict[str, Stamp],
        known: dict[str, tuple[str, Stamp]],
    ) -> dict[str, tuple[str, Stamp]]:
        tell = self._report.problems.append
        return await attached.write(self._workspace.driver, chat, directory, found, there, known, tell)

    async def _write(self, chat: Chat, directory: Directory, found: Durable, copy: Copy, row: Row | None) -> Row:
        content = copies.Content(chat.id, found.lines, found.text, found.fields)
        files = await trio.to_thread.run_sync(copies.write_files, directory, content, copy.files, copy.text)
        known = {} if row is None else row.attachments
        attachments = await self._write_attachments(chat, directory, found, copy.attachments, known)
        _, attached_ns = await trio.to_thread.run_sync(copies.list_attachments, directory)
        if files != copy.files:
            self._report.written += 1
        return make_row(copy.name, found, files, attachments, attached_ns)

    # ---- reading both

    async def _copy(self, name: str, found: Durable) -> Copy:
        expected = portable.join(found.lines)
        read = functools.partial(copies.read, self._chats, name, frozenset(found.lines), expected)
        return await trio.to_thread.run_sync(read)

    def _behind(self, found: Durable, copy: Copy, row: Row | None) -> list[bytes]:
        if not found.compacted:
            return found.lines
        return durable.behind_base(found.lines, copy.lines, None if row is None else row.lines)

    async def _with_beginning(self, chat: Chat, found: Durable, copy: Copy | None, row: Row | None) -> Durable:
        """The same with lines for what was compacted away."""
        if not found.compacted:
            return found
        if copy is not None and copy.lines:
            return durable.replaced(found, self._behind(found, copy, row))
        return durable.replaced(found, [*await durable.beginning(chat), *found.lines])

    async def _durable(self, chat: Chat, copy: Copy | None, row: Row | None) -> Durable:
        await self._workspace.load()
        return await self._with_beginning(chat, await durable.read(chat, self._record(chat)), copy, row)


def _busy(chat: Chat) -> StoreFailed:
    return StoreFailed(f"{chat.called} changes faster than it can be compared with the project: it is tried again")


async def free_name(workspace: Workspace, name: str, chat: ChatId) -> str:
    """The name that a chat is to have which wants that one.

    Of two chats of one name the older one has it, by their ids, so that every copy decides alike.
    """
    state = await workspace.load()
    taken = state.find(name)
    if taken is None or taken.id == chat:
        return name
    if taken.id > chat:
        await workspace.move_chat(taken.id, taken.place, _next_free(workspace, name), _ACTOR)
        return name
    return _next_free(workspace, name, chat)


def _next_free(workspace: Workspace, name: str, chat: ChatId | None = None) -> str:
    number = 2
    while (taken := workspace.state.find(found := numbered(name, f" ({number})"))) is not None:
        if taken.id == chat:
            break
        number += 1
    return found


async def local_row(chat: Chat) -> Row:
    """What is remembered of a chat that isn't projected."""
    stamp = durable.log_stamp(chat)
    head, state = await chat.head(), await chat.load()
    return Row(head.seq, head.crc, stamp, intent=state.projection)


def make_row(
    name: str, found: Durable, files: dict[str, Stamp], attachments: dict[str, tuple[str, Stamp]], attached_ns: int
) -> Row:
    """What is remembered of one that is."""
    return Row(
        found.seq,
        found.crc,
        found.log,
        name,
        len(found.lines),
        files,
        found.fields,
        attachments,
        attached_ns,
        found.intent,
    )
