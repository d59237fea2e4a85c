"""A scripted session on a store: every kind of change once, each noted in a ledger when it is acknowledged.

A step that fails is done again, as a program would; with a disk that stays dead, the session ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from store.chat import Chat
from store.compaction import compact
from store.driver import ABSENT, CHUNK, Document, Etag, EtagConflict
from store.errors import LeaseHeld, NameTaken, NotFound, StoreError
from store.library import Store, open_store
from store.model import SpaceId
from store.workspace import Workspace
from store.workspace_state import Place
from tests.faults.ledger import Key, Ledger, digest

ACTOR = "uid:1000/session"
TRIES = 3
LONG = bytes(range(256)) * (CHUNK // 256) + b"and more"


class GaveUp(Exception):
    """A step failed again and again."""


async def run(url: str, ledger: Ledger) -> None:
    """The whole session. Raises GaveUp; every other exception is a defect."""
    async with _opened(url) as store:
        await Session(store, ledger, url).run()


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Store]:
    failed: StoreError | None = None
    for _ in range(TRIES):
        entered = False
        try:
            async with open_store(url) as store:
                entered = True
                yield store
                return
        except StoreError as error:
            # Closing may fail, too: the program ends then.
            if entered:
                return
            failed = error
    raise GaveUp from failed


class Session:
    """One run of the script."""

    def __init__(self, store: Store, ledger: Ledger, url: str) -> None:
        self.store = store
        self.url = url
        self.ledger = ledger
        self._chat: Chat | None = None
        self._workspace: Workspace | None = None
        self._etag: Etag | None = None
        self._markers = 0
        self._hidden: dict[Key, object] = {}

    @property
    def chat(self) -> Chat:
        assert self._chat is not None
        return self._chat

    @property
    def workspace(self) -> Workspace:
        assert self._workspace is not None
        return self._workspace

    async def run(self) -> None:
        for step in (
            self.make_workspace,
            self.make_chat,
            self.append_one,
            self.append_batch,
            self.sync,
            self.save,
            self.append_text,
            self.attach_small,
            self.attach_long,
            self.patch_attachment,
            self.sync,
            self.documents,
            self.snapshot,
            self.titles,
            self.rename,
            self.archive,
            self.trash,
            self.restore,
            self.attach_relaxed,
            self.rename_attachment,
            self.lease,
            self.append_unsynced,
            self.compact,
            self.append_batch,
            self.remove_attachment,
            self.close_and_open,
            self.append_one,
            self.use_anothers_chat,
            self.rename_workspace,
            self.sync,
        ):
            await self._persist(step)

    async def _persist(self, step: Callable[[], Awaitable[None]]) -> None:
        failed: StoreError | None = None
        for _ in range(TRIES):
            try:
                with trio.fail_after(60):
                    await step()
                return
            except StoreError as error:
                failed = error
        raise GaveUp(step.__name__) from failed

    @contextmanager
    def _noted(self, *changes: tuple[Key, object], durable: bool = False) -> Iterator[None]:
        for key, value in changes:
            self.ledger.trying(key, value)
        yield
        self.ledger.done(*(key for key, _ in changes), durable=durable)

    # ---- steps

    async def make_workspace(self) -> None:
        with self._noted((("workspace", "name"), "demo"), durable=True):
            try:
                self._workspace = await self.store.create_workspace("demo", ACTOR)
            except NameTaken:
                self._workspace = await self.store.workspace("demo")
                await self.workspace.space.sync()

    async def make_chat(self) -> None:
        try:
            self._chat = await self.workspace.chat("trip")
        except NotFound:
            self._chat = await self.workspace.create_chat("trip", ACTOR)
        key = ("workspace", "chat", self.chat.id)
        with self._noted((key, ("trip", Place.CHATS))):
            pass
        await self.sync()

    def _marker(self) -> bytes:
        self._markers += 1
        return b'{"type":"test","marker":%d,"pad":"%s"}' % (self._markers, b"x" * 300)

    async def _append(self, count: int) -> None:
        lines = [self._marker() for _ in range(count)]
        keys: list[Key] = [("chat", "marker", line.decode()) for line in lines]
        for key in keys:
            self.ledger.trying(key, value=True)
        try:
            await self.chat.append_lines(lines, ACTOR)
        except StoreError:
            # It promises that the log is as it was.
            for key in keys:
                self.ledger.undone(key)
            raise
        self.ledger.done(*keys)

    async def append_one(self) -> None:
        await self._append(1)
        await self.sync()

    async def append_batch(self) -> None:
        await self._append(3)
        await self._append(2)
        await self.sync()

    async def append_unsynced(self) -> None:
        """Much that a power cut may take in pieces."""
        for number in range(12):
            await self._append(1 + number % 2)

    async def sync(self) -> None:
        await self.chat.sync()
        self.ledger.synced("chat", "workspace")

    async def save(self) -> None:
        line = f"saved {len(await self.chat.text())}"
        text = (await self.chat.text()).decode()
        kept = [found for found in text.splitlines() if not found.startswith("saved ")]
        saved = "\n".join([*kept, *([] if "## user" in kept else ["", "## user"]), "", line, ""])
        with self._noted((("chat", "saved"), line)):
            await self.chat.save_text(saved.encode(), ACTOR)
        await self.sync()

    async def append_text(self) -> None:
        line = f"saved {len(await self.chat.text())} more"
        with self._noted((("chat", "saved"), line)):
            await self.chat.append_text(f"\n{line}\n".encode(), ACTOR)

    async def attach_small(self) -> None:
        with self._noted((("chat", "attachment", "small"), digest(b"small"))):
            await self.chat.attach("small", b"small", ACTOR)
        await self.sync()

    async def attach_long(self) -> None:
        with self._noted((("chat", "attachment", "long"), digest(LONG))):
            await self.chat.attach("long", LONG, ACTOR)

    async def patch_attachment(self) -> None:
        patched = LONG[:100] + b"patched" + LONG[107:]
        staging = self.chat.stage("long", (await self.chat.attachment("long")).digest)
        try:
            staging.write(100, b"patched")
            await staging.sync()
            ref = await staging.commit()
            with self._noted((("chat", "attachment", "long"), digest(patched))):
                await self.chat.put_attachment("long", ref, ACTOR)
        finally:
            with contextlib.suppress(StoreError):
                await staging.discard()

    async def documents(self) -> None:
        kv = self.store.driver.kv
        for key, value in (("settings/a", 1), ("settings/b", 2), ("settings/a", 3)):
            with self._noted((("kv", key), value), durable=True):
                answer = await kv.put(key, value)
                assert isinstance(answer, Document)
        with self._noted((("kv", "settings/c"), 1), durable=True):
            while isinstance(answer := await kv.put("settings/c", 1, if_match=self._etag or ABSENT), EtagConflict):
                assert answer.current is not None
                assert answer.current.value == 1
                self._etag = answer.current.etag
            self._etag = answer.etag
        with self._noted((("kv", "settings/b"), None), durable=True):
            await kv.delete("settings/b")

    async def snapshot(self) -> None:
        await self.chat.load()
        await self.chat.space.keep_snapshot()

    async def titles(self) -> None:
        with self._noted((("chat", "title"), "A trip")):
            await self.chat.change(ACTOR, title="A trip")
        with self._noted((("workspace", "title"), "Demo")):
            await self.workspace.change(ACTOR, title="Demo")

    async def _move(self, name: str, place: Place) -> None:
        with self._noted((("workspace", "chat", self.chat.id), (name, place))):
            await self.workspace.move_chat(self.chat.id, place, name, ACTOR)

    async def rename(self) -> None:
        await self._move("tour", Place.CHATS)

    async def archive(self) -> None:
        await self._move("tour", Place.ARCHIVE)
        await self.sync()

    async def trash(self) -> None:
        # Nobody looks into a trashed chat.
        self._hidden = {**self._hidden, **self.ledger.shown("chat")}
        hidden = [(key, None) for key in self._hidden if key[1] != "marker"]
        trashed = (("workspace", "chat", self.chat.id), ("tour", Place.TRASH))
        with self._noted(trashed, *hidden), contextlib.suppress(NotFound):
            await self.workspace.trash_chat(self.chat.id, ACTOR)

    async def restore(self) -> None:
        shown = [(key, value) for key, value in self._hidden.items() if key[1] != "marker"]
        with self._noted((("workspace", "chat", self.chat.id), ("tour", Place.CHATS)), *shown):
            await self.workspace.move_chat(self.chat.id, Place.CHATS, "tour", ACTOR)

    async def attach_relaxed(self) -> None:
        """As a relaxed mount does: nothing is synced before both are there."""
        key = ("chat", "attachment", "relaxed")
        self.ledger.trying(key, "gone")
        ref = await self.store.driver.blobs.put(b"relaxed", durable=False)
        with self._noted((key, digest(b"relaxed"))):
            await self.chat.put_attachment("relaxed", ref, ACTOR)
        await self.store.driver.sync()
        await self.sync()

    async def rename_attachment(self) -> None:
        renamed = (("chat", "attachment", "small"), None), (("chat", "attachment", "tiny"), digest(b"small"))
        with self._noted(*renamed), contextlib.suppress(NotFound):
            await self.chat.rename_attachment("small", "tiny", ACTOR)

    async def lease(self) -> None:
        leases = self.store.driver.leases
        space = SpaceId(self.chat.space.id)
        try:
            grant = await leases.acquire(space, "session", 10_000)
        except LeaseHeld:
            return  # the store itself has appended to it lately
        grant = await leases.renew(grant, 20_000)
        await leases.release(grant)

    async def compact(self) -> None:
        # What is dropped isn't in the log any more.
        for key in self.ledger.shown("chat"):
            if key[1] == "marker":
                self.ledger.trying(key, None)
        await compact(self.chat, keep=6)

    async def remove_attachment(self) -> None:
        with self._noted((("chat", "attachment", "tiny"), None)), contextlib.suppress(NotFound):
            await self.chat.remove_attachment("tiny", ACTOR)

    async def close_and_open(self) -> None:
        await self.chat.release()
        await self.workspace.space.release()
        self.ledger.synced("chat", "workspace")
        await self.workspace.load()
        await self.chat.load()

    async def use_anothers_chat(self) -> None:
        """A chat that another process made and didn't sync: what is synced in it mustn't be lost with its name."""
        try:
            async with open_store(self.url) as other:
                workspace = await other.workspace("demo")
                with contextlib.suppress(NameTaken):
                    await workspace.create_chat("second", ACTOR)
                await self._append_to_second()
        except ExceptionGroup as group:
            raise next(iter(group.exceptions)) from None

    async def _append_to_second(self) -> None:
        await self.workspace.load()
        second = await self.workspace.chat("second")
        keys: list[Key] = [("workspace", "chat", second.id), ("second", "marker", line := self._marker().decode())]
        with self._noted((keys[0], ("second", Place.CHATS)), (keys[1], True)):
            await second.append_lines([line.encode()], ACTOR)
        await second.sync()
        self.ledger.durable(keys)

    async def rename_workspace(self) -> None:
        with self._noted((("workspace", "name"), "example")):
            await self.store.rename_workspace(self.workspace, "example", ACTOR)
