"""A small reference model of a mount: names and bytes, and how to compare a chat with it.

What a log must hold besides (checksums, seqs, that the text is what it renders to) is verified from the store's file.
"""

from __future__ import annotations

import json
import os
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from store import history
from store.fold import fold
from tests.support.mounts import Mounted, Workspace, read_log

PROJECTED = frozenset({"history.md", "history.jsonl", "chat.json", "attachments"})


@dataclass(eq=False)
class ChatModel:
    """What a chat must show."""

    name: str
    place: str = "chats"
    text: bytes = b""
    attachments: dict[str, bytes] = field(default_factory=dict)
    removed: dict[str, bytes] = field(default_factory=dict)
    """What the `rm -r` that trashed it removed: comes back with it."""
    modes: dict[str, int] = field(default_factory=dict)
    mtimes: dict[str, int] = field(default_factory=dict)
    """Of attachments, in nanoseconds, where they were set."""
    scratch: dict[str, bytes] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)

    def copy(self) -> ChatModel:
        return deepcopy(self)

    def become(self, other: ChatModel) -> None:
        """Be as `other` is."""
        vars(self).update(vars(other.copy()))

    def drop(self, name: str) -> bytes:
        """An attachment goes."""
        self.modes.pop(name, None)
        self.mtimes.pop(name, None)
        return self.attachments.pop(name)

    def put(self, name: str, content: bytes) -> None:
        """An attachment gets other bytes, its mode stays."""
        if self.attachments.get(name) != content or name not in self.attachments:
            self.mtimes.pop(name, None)
        self.attachments[name] = content


def markdown(title: str, messages: list[tuple[str, str]]) -> bytes:
    """A text as a person types it."""
    parts = [f"# {title}\n\n"] if title else []
    parts += [f"## {role}\n\n{text}\n\n" for role, text in messages]
    return "".join(parts).encode()


@dataclass
class WorkspaceModel:
    """A workspace, its chats' models, and where the chats' logs are."""

    mounted: Mounted
    workspace: Workspace
    chats: list[ChatModel] = field(default_factory=list)
    title: str = ""
    labels: list[str] = field(default_factory=list)
    quota: int = 0

    def path(self, place: str, name: str) -> Path:
        return self.workspace.directory / place / name

    def directory(self, chat: ChatModel) -> Path:
        return self.path(chat.place, chat.name)

    def log(self, chat: ChatModel) -> Path:
        """The log's file in the store, found through by-id/."""
        links = self.path("by-id", "")
        link = next(name for name in os.listdir(links) if os.readlink(links / name) == f"../{chat.place}/{chat.name}")
        return self.mounted.store / "workspace" / self.workspace.id / "chats" / link / "history.jsonl"

    def taken(self, name: str, but: ChatModel | None = None) -> bool:
        """Whether a chat that isn't in the trash has the name."""
        return any(chat.name == name and chat is not but and chat.place != "trash" for chat in self.chats)

    def compare(self, chat: ChatModel) -> None:
        """Everything that the chat shows."""
        directory = self.directory(chat)
        assert set(os.listdir(directory)) == PROJECTED | set(chat.scratch)
        text = directory / "history.md"
        _same("history.md", text.read_bytes(), chat.text)
        assert text.stat().st_size == len(chat.text)
        assert set(os.listdir(directory / "attachments")) == set(chat.attachments)
        for name, content in chat.attachments.items():
            path = directory / "attachments" / name
            stat = path.stat()
            _same(name, path.read_bytes(), content)
            assert stat.st_size == len(content)
            assert stat.st_mode & 0o7777 == chat.modes.get(name, stat.st_mode & 0o7777)
            assert stat.st_mtime_ns == chat.mtimes.get(name, stat.st_mtime_ns)
        for name, content in chat.scratch.items():
            _same(name, (directory / name).read_bytes(), content)
        log = self.log(chat)
        stored = log.read_bytes()
        _same("history.jsonl", (directory / "history.jsonl").read_bytes(), stored)
        assert (directory / "history.jsonl").stat().st_size == len(stored)
        state = fold(read_log(log))
        assert history.render(state) == chat.text
        metadata = json.loads((directory / "chat.json").read_bytes())
        assert metadata["labels"] == chat.labels
        assert metadata["messages"] == state.message_count
        assert metadata["attachments"] == len(chat.attachments)

    def compare_names(self) -> None:
        """Which chats there are, and where."""
        for place in ("chats", "archive", "trash"):
            assert set(os.listdir(self.path(place, ""))) == {chat.name for chat in self.chats if chat.place == place}

    def compare_metadata(self) -> None:
        """What workspace.json shows."""
        path = self.workspace.directory / "workspace.json"
        text = path.read_bytes()
        assert path.stat().st_size == len(text)
        shown = json.loads(text)
        assert (shown["id"], shown["name"]) == (self.workspace.id, self.workspace.directory.name)
        assert (shown["title"], shown["labels"], shown["quota_bytes"]) == (self.title, self.labels, self.quota)
        places = [chat.place for chat in self.chats]
        assert shown["chats"] == {place: places.count(place) for place in ("chats", "archive", "trash")}

    def compare_all(self) -> None:
        """Everything."""
        self.compare_names()
        self.compare_metadata()
        for chat in self.chats:
            self.compare(chat)


def _same(what: str, found: bytes, expected: bytes) -> None:
    """Raises AssertionError, with where they begin to differ: a whole comparison of long texts takes minutes."""
    if found != expected:
        at = next(
            (at for at, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), len(found)
        )
        near = slice(max(0, at - 40), at + 80)
        raise AssertionError(f"{what} differs at byte {at}: {found[near]!r} instead of {expected[near]!r}")
