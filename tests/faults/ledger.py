"""What a session did to a store, and what may be seen of it afterwards.

For each thing that can be seen (a key) the ledger has the values that it was to have, in order. Some of them were
acknowledged (the call returned), some of those are durable (a sync returned, or the call itself promises it). After a
fault, what was acknowledged last must be there, or something that was tried since; after a power cut, the same from the
last durable one on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from store.errors import BlobNotFound, CorruptBlob, NotFound
from store.library import Store
from store.workspace_state import Place

ABSENT = None
Key = tuple[Hashable, ...]


@dataclass
class _History:
    values: list[tuple[int, Any]] = field(default_factory=lambda: [(-1, ABSENT)])
    """With the moment when each was tried."""
    acknowledged: int = 0
    durable: list[tuple[int, int]] = field(default_factory=lambda: [(-1, 0)])
    """(Moment, index): since when the value at that index is durable."""


class Ledger:
    """`moment` tells where in a recording the session is; 0 where nothing is recorded."""

    def __init__(self, moment: Callable[[], int] = lambda: 0) -> None:
        self._moment = moment
        self._histories: dict[Key, _History] = {}

    def history(self, key: Key) -> _History:
        return self._histories.setdefault(key, _History())

    def trying(self, key: Key, value: Any) -> None:
        """A call begins that is to give `key` this value."""
        self.history(key).values.append((self._moment(), value))

    def shown(self, space: str) -> dict[Key, Any]:
        """What was acknowledged last of the keys in a log."""
        found = {key: history.values[history.acknowledged][1] for key, history in self._histories.items()}
        return {key: value for key, value in found.items() if key[0] == space and value is not ABSENT}

    def done(self, *keys: Key, durable: bool = False) -> None:
        """It returned."""
        for key in keys:
            history = self.history(key)
            history.acknowledged = len(history.values) - 1
        if durable:
            self.durable(keys)

    def undone(self, key: Key) -> None:
        """It raised, and promised that nothing is changed then."""
        history = self.history(key)
        assert history.acknowledged < len(history.values) - 1
        history.values.pop()

    def durable(self, keys: Iterable[Key]) -> None:
        """What was acknowledged of these keys survives a power cut from now on."""
        for key in keys:
            history = self.history(key)
            history.durable.append((self._moment(), history.acknowledged))

    def synced(self, *spaces: str) -> None:
        """The same for all keys that live in these logs: a key's first part says where it lives."""
        self.durable([key for key in self._histories if key[0] in spaces])

    def legal(self, key: Key, cut: int | None = None) -> list[Any]:
        """The values that may be seen: now, or (with `cut`) after a power cut at that moment."""
        history = self._histories[key]
        if cut is None:
            return [value for _, value in history.values[history.acknowledged :]]
        since = max(index for moment, index in history.durable if moment <= cut)
        return [value for moment, value in history.values[since:] if moment <= cut]

    def check(self, seen: dict[Key, Any], cut: int | None = None) -> None:
        """Raises AssertionError, saying what isn't as it must be."""
        for key in self._histories:
            legal = self.legal(key, cut)
            found = seen.get(key, ABSENT)
            assert found in legal, f"{key} is {found!r}, must be one of {legal!r}"
        known = set(self._histories)
        strangers = {key for key in seen if key not in known and key[0] != "log"}
        assert not strangers, f"nobody made {strangers}"


def digest(data: bytes) -> str:
    """How the ledger notes bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


async def look(store: Store) -> dict[Key, Any]:
    """All that can be seen of a store, and that each log is whole: seqs without gap, no entry twice, no damage."""
    seen: dict[Key, Any] = {}
    for workspace in await store.workspaces():
        name = workspace.state.name
        seen["workspace", "name"] = name
        if workspace.state.title:
            seen["workspace", "title"] = workspace.state.title
        await _read_log(seen, workspace.space)
        for record in workspace.state.chats.values():
            seen["workspace", "chat", record.id] = (record.name, record.place)
            chat = workspace.chat_by_id(record.id)
            await chat.load()
            assert chat.space.damage is None, chat.space.damage
            await _read_log(seen, chat.space, markers="second" if record.name == "second" else "chat")
            if record.place is not Place.TRASH:
                await _read_chat(seen, chat)
    for key in await store.driver.kv.list():
        if not key.startswith("names/"):
            document = await store.driver.kv.get(key)
            assert document is not None
            seen["kv", key] = document.value
    return seen


async def _read_chat(seen: dict[Key, Any], chat: Any) -> None:
    state = await chat.load()
    if state.title:
        seen["chat", "title"] = state.title
    for attachment in state.attachments.values():
        seen["chat", "attachment", attachment.name] = await _read_attachment(chat, attachment)
    text = await chat.text()
    assert b"".join([await chat.read_text(at, 1000) for at in range(0, len(text), 1000)]) == text
    for line in text.decode().splitlines():
        if line.startswith("saved "):
            seen["chat", "saved"] = line


async def _read_attachment(chat: Any, attachment: Any) -> str:
    try:
        data = b"".join([piece async for piece in chat.read_attachment(attachment.name)])
    except (BlobNotFound, CorruptBlob):
        return "gone"
    assert len(data) == attachment.size
    return digest(data)


async def _read_log(seen: dict[Key, Any], space: Any, *, markers: str = "") -> None:
    expected: int | None = None
    async for entry in space.read():
        assert expected in {None, entry.seq}, f"{space.id}: entry {entry.seq} where {expected} was expected"
        expected = entry.seq + 1
        if markers and b'"marker"' in entry.data:
            key = (markers, "marker", entry.data.decode())
            assert key not in seen, f"{key} is there twice"
            seen[key] = True
    assert expected in {None, space.head.seq + 1}


async def goes_on(store: Store, word: str) -> None:
    """The store takes a new workspace, and every chat another event, durably."""
    for workspace in await store.workspaces():
        await workspace.change("check", title=word)
        await workspace.space.sync()
        for record in workspace.state.chats.values():
            chat = workspace.chat_by_id(record.id)
            before = (await chat.head()).seq
            assert await chat.append_events([{"type": "went.on", "word": word}], "check") == before + 1
            await chat.sync()
            entries = [entry async for entry in chat.log(before)]
            assert [entry.seq for entry in entries] == [before + 1]
    try:
        other = await store.workspace(f"other-{word}")
    except NotFound:
        other = await store.create_workspace(f"other-{word}", "check")
    chat = await other.create_chat("new", "check")
    await chat.attach("file", word.encode(), "check")
    await chat.sync()
    assert b"".join([piece async for piece in chat.read_attachment("file")]) == word.encode()
