"""A real mount against a small model of it: whatever is done in whatever order, both show the same.

The model knows names and bytes; what a log must hold besides (checksums, seqs) `read_log` verifies. After every step
the touched chat is compared as a whole, and everything after a remount and at the end.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.support.mounts import Mounted, data, message, read_log
from tests.support.ops import append

pytestmark = pytest.mark.mount

_numbers = itertools.count(1)

NAMES = st.sampled_from(["a.txt", "b c", "ü", "-x", "#d#"])
BYTES = st.binary(max_size=200) | st.integers(1, 40).map(lambda size: b"0123456789abcdef" * 4096 * size)
WORDS = st.text("ab #`*\n\t·ü\\", max_size=30)
MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), WORDS), max_size=4)


@dataclass
class ChatModel:
    """What a chat must show."""

    name: str
    place: str = "chats"
    text: bytes = b""
    attachments: dict[str, bytes] = field(default_factory=dict)
    scratch: dict[str, bytes] = field(default_factory=dict)
    entries: int = 0


def markdown(title: str, messages: list[tuple[str, str]]) -> bytes:
    parts = [f"# {title}\n\n"] if title else []
    parts += [f"## {role}\n\n{text}\n\n" for role, text in messages]
    return "".join(parts).encode()


class MountMachine(RuleBasedStateMachine):
    """The rules. Each example has a workspace of its own in one mount."""

    mounted: Mounted

    chats = Bundle("chats")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[ChatModel] = []

    @initialize(target=chats)
    def begin(self) -> ChatModel:
        self.workspace = self.mounted.workspace(f"w{next(_numbers)}")
        return self._made("first")

    # ---- helpers

    def _made(self, name: str) -> ChatModel:
        self._path("chats", name).mkdir()
        chat = ChatModel(name)
        self.all.append(chat)
        return chat

    def _path(self, place: str, name: str) -> Path:
        return self.workspace.directory / place / name

    def _directory(self, chat: ChatModel) -> Path:
        return self._path(chat.place, chat.name)

    def _log(self, chat: ChatModel) -> Path:
        link = next(link for link in self._links() if os.readlink(link) == f"../{chat.place}/{chat.name}")
        return self.mounted.store / "workspace" / self.workspace.id / "chats" / link.name / "history.jsonl"

    def _links(self) -> list[Path]:
        return [self._path("by-id", name) for name in os.listdir(self._path("by-id", ""))]

    def _compare(self, chat: ChatModel) -> None:
        directory = self._directory(chat)
        projected = {"history.md", "history.jsonl", "chat.json", "attachments"}
        assert set(os.listdir(directory)) == projected | set(chat.scratch)
        text = directory / "history.md"
        assert text.read_bytes() == chat.text
        assert text.stat().st_size == len(chat.text)
        assert set(os.listdir(directory / "attachments")) == set(chat.attachments)
        for name, content in chat.attachments.items():
            path = directory / "attachments" / name
            assert path.read_bytes() == content
            assert path.stat().st_size == len(content)
        for name, content in chat.scratch.items():
            assert (directory / name).read_bytes() == content
        stored = self._log(chat).read_bytes()
        assert (directory / "history.jsonl").read_bytes() == stored
        assert (directory / "history.jsonl").stat().st_size == len(stored)

    def _compare_all(self) -> None:
        for place in ("chats", "archive", "trash"):
            assert set(os.listdir(self._path(place, ""))) == {chat.name for chat in self.all if chat.place == place}
        for chat in self.all:
            self._compare(chat)

    def teardown(self) -> None:
        if hasattr(self, "workspace"):
            self._compare_all()

    # ---- the log

    @rule(chat=chats, content=WORDS, count=st.integers(1, 3))
    def append_to_the_log(self, chat: ChatModel, content: str, count: int) -> None:
        log = self._log(chat)
        before = len(read_log(log))
        append(self._directory(chat) / "history.jsonl", message(content) * count)
        assert [event["content"] for event in data(read_log(log))[before:]] == [content] * count
        text = (self._directory(chat) / "history.md").read_bytes()
        assert text.startswith(chat.text)
        chat.text = text
        self._compare(chat)

    # ---- the text

    @rule(chat=chats, title=st.sampled_from(["", "T"]), messages=MESSAGES, how=st.sampled_from(["in place", "rename"]))
    def save_a_text(self, chat: ChatModel, title: str, messages: list[tuple[str, str]], how: str) -> None:
        chat.text = markdown(title, messages)
        self._save(chat, how)

    @rule(
        chat=chats, at=st.floats(0, 1), cut=st.integers(0, 20), new=WORDS, how=st.sampled_from(["in place", "pwrite"])
    )
    def edit_the_text(self, chat: ChatModel, at: float, cut: int, new: str, how: str) -> None:
        text = chat.text.decode()
        start = int(at * len(text))
        chat.text = (text[:start] + new + text[start + cut :]).encode()
        before = self._log(chat).read_bytes()
        self._save(chat, how)
        if chat.text == text.encode():
            assert self._log(chat).read_bytes() == before

    def _save(self, chat: ChatModel, how: str) -> None:
        path = self._directory(chat) / "history.md"
        match how:
            case "in place":
                path.write_bytes(chat.text)
            case "rename":
                path.with_name(".tmp").write_bytes(chat.text)
                path.with_name(".tmp").replace(path)
            case _:
                with path.open("r+b", buffering=0) as file:
                    file.write(chat.text)
                    file.truncate()
        self._compare(chat)

    @rule(chat=chats, messages=MESSAGES, tail=WORDS)
    def append_to_the_text(self, chat: ChatModel, messages: list[tuple[str, str]], tail: str) -> None:
        added = tail.encode() + b"\n" + markdown("", messages)
        append(self._directory(chat) / "history.md", added)
        chat.text += added
        self._compare(chat)

    @rule(chat=chats)
    def remove_and_write_again(self, chat: ChatModel) -> None:
        path = self._directory(chat) / "history.md"
        path.unlink()
        assert not path.exists()
        path.write_bytes(chat.text)
        self._compare(chat)

    # ---- attachments

    @rule(chat=chats, name=NAMES, content=BYTES)
    def attach(self, chat: ChatModel, name: str, content: bytes) -> None:
        (self._directory(chat) / "attachments" / name).write_bytes(content)
        chat.attachments[name] = content
        self._compare(chat)

    @rule(chat=chats, name=NAMES, content=BYTES, at=st.integers(0, 100_000))
    def patch(self, chat: ChatModel, name: str, content: bytes, at: int) -> None:
        if name in chat.attachments:
            with (self._directory(chat) / "attachments" / name).open("r+b", buffering=0) as file:
                file.seek(at)
                if content:
                    file.write(content)
            old = chat.attachments[name]
            if content:
                old = old.ljust(at, b"\0")
                chat.attachments[name] = old[:at] + content + old[at + len(content) :]
            self._compare(chat)

    @rule(chat=chats, name=NAMES, size=st.integers(0, 100_000))
    def cut(self, chat: ChatModel, name: str, size: int) -> None:
        if name in chat.attachments:
            os.truncate(self._directory(chat) / "attachments" / name, size)
            chat.attachments[name] = chat.attachments[name][:size].ljust(size, b"\0")
            self._compare(chat)

    @rule(chat=chats, to=chats, name=NAMES, new=NAMES)
    def move_attachment(self, chat: ChatModel, to: ChatModel, name: str, new: str) -> None:
        if name in chat.attachments:
            os.replace(self._directory(chat) / "attachments" / name, self._directory(to) / "attachments" / new)
            to.attachments[new] = chat.attachments.pop(name)
            self._compare(chat)
            self._compare(to)

    @rule(chat=chats, name=NAMES)
    def remove_attachment(self, chat: ChatModel, name: str) -> None:
        if name in chat.attachments:
            (self._directory(chat) / "attachments" / name).unlink()
            del chat.attachments[name]
            self._compare(chat)

    # ---- scratch

    @rule(chat=chats, name=st.sampled_from([".swp", "x~"]), content=BYTES)
    def scratch(self, chat: ChatModel, name: str, content: bytes) -> None:
        (self._directory(chat) / name).write_bytes(content)
        chat.scratch[name] = content
        self._compare(chat)

    @rule(chat=chats, name=st.sampled_from([".swp", "x~"]), new=NAMES)
    def attach_scratch(self, chat: ChatModel, name: str, new: str) -> None:
        if name in chat.scratch:
            (self._directory(chat) / name).rename(self._directory(chat) / "attachments" / new)
            chat.attachments[new] = chat.scratch.pop(name)
            self._compare(chat)

    # ---- chats

    @rule(target=chats, name=st.sampled_from(["first", "second", "third chat"]))
    def make(self, name: str) -> object:
        if any(chat.name == name and chat.place != "trash" for chat in self.all):
            with pytest.raises(FileExistsError):
                self._path("chats", name).mkdir()
            return multiple()
        return self._made(name)

    @rule(chat=chats, place=st.sampled_from(["chats", "archive"]), name=st.sampled_from(["first", "second", "moved"]))
    def move_chat(self, chat: ChatModel, place: str, name: str) -> None:
        taken = any(other.name == name and other is not chat and other.place != "trash" for other in self.all)
        if taken:
            with pytest.raises(OSError, match=r"exists|not empty"):
                self._directory(chat).rename(self._path(place, name))
        else:
            self._directory(chat).rename(self._path(place, name))
            chat.place, chat.name = place, name
        self._compare(chat)

    @rule(chat=consumes(chats))
    def trash(self, chat: ChatModel) -> None:
        self._directory(chat).rmdir()
        shown = [chat.name, *(f"{chat.name}~{number}" for number in range(2, 50))]
        taken = {other.name for other in self.all if other.place == "trash"}
        chat.place, chat.name = "trash", next(name for name in shown if name not in taken)
        self._compare(chat)

    @rule(target=chats, name=st.sampled_from(["first", "back"]), index=st.integers(0, 5))
    def restore(self, name: str, index: int) -> object:
        trashed = [chat for chat in self.all if chat.place == "trash"]
        if not trashed or any(chat.name == name and chat.place != "trash" for chat in self.all):
            return multiple()
        chat = trashed[index % len(trashed)]
        self._directory(chat).rename(self._path("chats", name))
        chat.place, chat.name = "chats", name
        self._compare(chat)
        return chat

    @rule(really=st.integers(0, 5))
    def remount(self, really: int) -> None:
        if really == 0:
            self.mounted.remount()
            self._compare_all()


@pytest.mark.slow
def test_the_mount_does_what_the_model_does(mounted: Mounted) -> None:
    machine = type("Machine", (MountMachine,), {"mounted": mounted})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
