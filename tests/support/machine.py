"""The rules by which a mount is driven against its model (`tests.support.model`): every operation that a mount has.

After every step the touched chat is compared as a whole, and everything at the end of an example.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
)

from store.chat import Chat as StoreChat
from store.workspace import Workspace as StoreWorkspace
from store.workspace_state import Place
from tests.support import ops
from tests.support.model import ChatModel, WorkspaceModel, markdown
from tests.support.mounts import Mounted, data, message, read_log
from tests.support.ops import append
from tests.support.waiting import wait_for

NUMBERS = itertools.count(1)

NAMES = st.sampled_from(["a.txt", "b c", "ü", "-x", "#d#"])
SCRATCH = st.sampled_from([".swp", "x~"])
BYTES = st.binary(max_size=200) | st.integers(1, 40).map(lambda size: b"0123456789abcdef" * 4096 * size)
WORDS = st.text("ab #`*\n\t·ü\\", max_size=30)
MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), WORDS), max_size=4)
RARELY = st.integers(0, 5).map(lambda number: number == 0)


class MountMachine(RuleBasedStateMachine):
    """The rules. Each example has a workspace of its own in one mount."""

    mounted: Mounted

    chats = Bundle("chats")

    def __init__(self) -> None:
        super().__init__()
        self.model: WorkspaceModel | None = None

    @property
    def there(self) -> WorkspaceModel:
        assert self.model is not None
        return self.model

    @initialize(target=chats)
    def begin(self) -> ChatModel:
        self.model = WorkspaceModel(self.mounted, self.mounted.workspace(f"w{next(NUMBERS)}"))
        return self._made("first")

    def _made(self, name: str) -> ChatModel:
        self.there.path("chats", name).mkdir()
        chat = ChatModel(name)
        self.there.chats.append(chat)
        return chat

    def _file(self, chat: ChatModel, name: str) -> Path:
        return self.there.directory(chat) / name

    def _attachment(self, chat: ChatModel, name: str) -> Path:
        return self.there.directory(chat) / "attachments" / name

    def teardown(self) -> None:
        if self.model is not None:
            self.model.compare_all()

    # ---- the log

    @rule(chat=chats, content=WORDS, count=st.integers(1, 3))
    def append_to_the_log(self, chat: ChatModel, content: str, count: int) -> None:
        log = self.there.log(chat)
        before = len(read_log(log))
        append(self._file(chat, "history.jsonl"), message(content) * count)
        assert [event["content"] for event in data(read_log(log))[before:]] == [content] * count
        self._grown(chat)

    def _grown(self, chat: ChatModel) -> None:
        """Something was added to the text, in a form that the log's renderer chooses."""
        text = self._file(chat, "history.md").read_bytes()
        assert text.startswith(chat.text)
        chat.text = text
        self.there.compare(chat)

    @rule(chat=chats, content=WORDS, at=st.integers(1, 30))
    def append_a_line_in_two_writes(self, chat: ChatModel, content: str, at: int) -> None:
        line = message(content)
        at = min(at, len(line) - 1)
        with ops.opened(self._file(chat, "history.jsonl"), os.O_WRONLY | os.O_APPEND) as descriptor:
            os.write(descriptor, line[:at])
            self.there.compare(chat)
            os.write(descriptor, line[at:])
        self._grown(chat)

    @rule(chat=chats, content=WORDS)
    def append_a_bad_line(self, chat: ChatModel, content: str) -> None:
        with ops.refused(errno.EINVAL):
            append(self._file(chat, "history.jsonl"), content.replace("\n", "").encode() + b"{\n")
        self.there.compare(chat)

    @rule(chat=chats, how=st.sampled_from(["write", "truncate", "pwrite"]), at=st.floats(0, 0.9))
    def overwrite_the_log(self, chat: ChatModel, how: str, at: float) -> None:
        path = self._file(chat, "history.jsonl")
        if len(read_log(self.there.log(chat))) > 2:  # one that is shorter may still be replaced by a copy
            start = int(at * path.stat().st_size)
            with ops.refused(errno.EPERM):
                match how:
                    case "write":
                        path.write_bytes(b"{}\n")
                    case "truncate":
                        os.truncate(path, start)
                    case _:
                        with ops.opened(path, os.O_WRONLY) as descriptor:
                            os.pwrite(descriptor, b"{}\n", start)
            self.there.compare(chat)

    # ---- the text

    @rule(chat=chats, title=st.sampled_from(["", "T"]), messages=MESSAGES, how=st.sampled_from(["in place", "rename"]))
    def save_a_text(self, chat: ChatModel, title: str, messages: list[tuple[str, str]], how: str) -> None:
        chat.text = markdown(title, messages)
        self._save(chat, how)

    @rule(
        chat=chats,
        at=st.floats(0, 1),
        cut=st.integers(0, 20),
        new=WORDS,
        how=st.sampled_from(["in place", "pwrite", "backup"]),
    )
    def edit_the_text(self, chat: ChatModel, at: float, cut: int, new: str, how: str) -> None:
        text = chat.text.decode()
        start = int(at * len(text))
        before = self.there.log(chat).read_bytes()
        chat.text = (text[:start] + new + text[start + cut :]).encode()
        self._save(chat, how)
        if chat.text == text.encode():
            assert self.there.log(chat).read_bytes() == before

    def _save(self, chat: ChatModel, how: str) -> None:
        path = self._file(chat, "history.md")
        match how:
            case "in place":
                path.write_bytes(chat.text)
            case "rename":
                path.with_name(".tmp").write_bytes(chat.text)
                path.with_name(".tmp").replace(path)
            case "backup":
                # As vim does with 'backupcopy=no'.
                chat.scratch["history.md~"] = path.read_bytes()
                path.rename(path.with_name("history.md~"))
                assert not path.exists()
                path.write_bytes(chat.text)
            case _:
                with path.open("r+b", buffering=0) as file:
                    file.write(chat.text)
                    file.truncate()
        self.there.compare(chat)

    @rule(chat=chats, messages=MESSAGES, tail=WORDS)
    def append_to_the_text(self, chat: ChatModel, messages: list[tuple[str, str]], tail: str) -> None:
        added = tail.encode() + b"\n" + markdown("", messages)
        append(self._file(chat, "history.md"), added)
        chat.text += added
        self.there.compare(chat)

    @rule(chat=chats, at=st.floats(0, 1))
    def cut_the_text(self, chat: ChatModel, at: float) -> None:
        text = chat.text.decode()
        chat.text = text[: int(at * len(text))].encode()
        os.truncate(self._file(chat, "history.md"), len(chat.text))
        self.there.compare(chat)

    @rule(chat=chats)
    def empty_the_text(self, chat: ChatModel) -> None:
        os.close(os.open(self._file(chat, "history.md"), os.O_WRONLY | os.O_TRUNC))
        chat.text = b""
        self.there.compare(chat)

    @rule(chat=chats, words=WORDS)
    def save_what_is_not_text(self, chat: ChatModel, words: str) -> None:
        path = self._file(chat, "history.md")
        with ops.refused(errno.EILSEQ), ops.opened(path, os.O_WRONLY | os.O_TRUNC) as descriptor:
            os.write(descriptor, words.encode() + b"\xff")
        rejected = next(self.there.directory(chat).glob("history.md.rejected-*"))
        assert rejected.read_bytes() == words.encode() + b"\xff"
        rejected.unlink()
        self.there.compare(chat)

    @rule(chat=chats)
    def remove_and_write_again(self, chat: ChatModel) -> None:
        path = self._file(chat, "history.md")
        path.unlink()
        assert not path.exists()
        path.write_bytes(chat.text)
        self.there.compare(chat)

    @rule(chat=chats, new=st.text("abü ", min_size=1, max_size=10))
    def save_while_the_log_moves(self, chat: ChatModel, new: str) -> None:
        """An editor that has read the text saves it after somebody else has appended: both stay."""
        path = self._file(chat, "history.md")
        marks = f"mine {next(NUMBERS)}", f"theirs {next(NUMBERS)}"
        text = path.read_bytes()
        before = len(read_log(self.there.log(chat)))
        ops.say_elsewhere(self.mounted, self.there.workspace.directory.name, chat.name, f"{marks[1]} {new}")
        path.write_bytes(f"## user\n\n{marks[0]}\n\n".encode() + text)
        events = data(read_log(self.there.log(chat)))[before:]
        assert not any(event["type"] == "message.removed" for event in events)
        chat.text = path.read_bytes()
        assert [chat.text.count(mark.encode()) for mark in marks] == [1, 1]
        self.there.compare(chat)

    # ---- metadata

    @rule(chat=chats, title=st.sampled_from(["", "T", "Über"]), labels=st.lists(st.sampled_from(["x", "y z"])))
    def edit_chat_json(self, chat: ChatModel, title: str, labels: list[str]) -> None:
        path = self._file(chat, "chat.json")
        value = json.loads(path.read_bytes())
        path.write_text(json.dumps(value | {"title": title, "labels": labels, "messages": 1000}))
        chat.labels = json.loads(path.read_bytes())["labels"]
        assert json.loads(path.read_bytes())["title"] == title
        assert list(dict.fromkeys(labels)) == list(dict.fromkeys(chat.labels))
        chat.text = self._file(chat, "history.md").read_bytes()
        self.there.compare(chat)

    @rule(chat=chats)
    def break_chat_json(self, chat: ChatModel) -> None:
        path = self._file(chat, "chat.json")
        before = path.read_bytes()
        with ops.refused(errno.EINVAL), ops.opened(path, os.O_WRONLY | os.O_TRUNC) as descriptor:
            os.write(descriptor, b'{"title": ')
        next(self.there.directory(chat).glob("chat.json.rejected-*")).unlink()
        assert path.read_bytes() == before
        self.there.compare(chat)

    # ---- attachments

    @rule(chat=chats, name=NAMES, content=BYTES, how=st.sampled_from(["in place", "rename"]))
    def attach(self, chat: ChatModel, name: str, content: bytes, how: str) -> None:
        path = self._attachment(chat, name)
        if how == "in place":
            path.write_bytes(content)
            chat.put(name, content)
        else:
            # As rsync does.
            path.with_name(f".{name}.tmp").write_bytes(content)
            path.with_name(f".{name}.tmp").replace(path)
            chat.put(name, content)
            chat.modes.pop(name, None)
            chat.mtimes.pop(name, None)
        self.there.compare(chat)

    @rule(chat=chats, name=NAMES, content=BYTES, at=st.integers(0, 100_000))
    def patch(self, chat: ChatModel, name: str, content: bytes, at: int) -> None:
        if name in chat.attachments and content:
            with self._attachment(chat, name).open("r+b", buffering=0) as file:
                file.seek(at)
                file.write(content)
            old = chat.attachments[name].ljust(at, b"\0")
            chat.mtimes.pop(name, None)
            chat.put(name, old[:at] + content + old[at + len(content) :])
            self.there.compare(chat)

    @rule(chat=chats, name=NAMES, first=st.binary(min_size=1, max_size=9), second=st.binary(min_size=1, max_size=9))
    def write_through_two_handles(self, chat: ChatModel, name: str, first: bytes, second: bytes) -> None:
        path = self._attachment(chat, name)
        with ops.opened(path, os.O_RDWR | os.O_CREAT) as one, ops.opened(path, os.O_RDWR) as other:
            os.ftruncate(one, 0)
            os.pwrite(one, first, 0)
            assert os.pread(other, 100, 0) == first
            os.pwrite(other, second, len(first))
            assert os.pread(one, 100, 0) == first + second
        chat.mtimes.pop(name, None)
        chat.put(name, first + second)
        self.there.compare(chat)

    @rule(chat=chats, name=NAMES, size=st.integers(0, 100_000))
    def cut(self, chat: ChatModel, name: str, size: int) -> None:
        if name in chat.attachments:
            os.truncate(self._attachment(chat, name), size)
            chat.mtimes.pop(name, None)
            chat.put(name, chat.attachments[name][:size].ljust(size, b"\0"))
            self.there.compare(chat)

    @rule(chat=chats, name=NAMES, mode=st.sampled_from([0o600, 0o644, 0o755]), seconds=st.integers(0, 2**33))
    def change_attachment(self, chat: ChatModel, name: str, mode: int, seconds: int) -> None:
        if name in chat.attachments:
            path = self._attachment(chat, name)
            path.chmod(mode)
            os.utime(path, ns=(seconds * 10**9, seconds * 10**9 + 7))
            chat.modes[name], chat.mtimes[name] = mode, seconds * 10**9 + 7
            self.there.compare(chat)

    @rule(chat=chats, to=chats, name=NAMES, new=NAMES)
    def move_attachment(self, chat: ChatModel, to: ChatModel, name: str, new: str) -> None:
        if name in chat.attachments:
            os.replace(self._attachment(chat, name), self._attachment(to, new))
            mode, mtime = chat.modes.get(name), chat.mtimes.get(name)
            content = chat.drop(name)
            to.modes.pop(new, None)
            to.mtimes.pop(new, None)
            to.attachments[new] = content
            to.modes |= {} if mode is None else {new: mode}
            to.mtimes |= {} if mtime is None else {new: mtime}
            self.there.compare(chat)
            self.there.compare(to)

    @rule(chat=chats, name=NAMES)
    def remove_attachment(self, chat: ChatModel, name: str) -> None:
        if name in chat.attachments:
            self._attachment(chat, name).unlink()
            chat.drop(name)
            self.there.compare(chat)

    # ---- scratch

    @rule(chat=chats, name=SCRATCH, content=BYTES)
    def scratch(self, chat: ChatModel, name: str, content: bytes) -> None:
        self._file(chat, name).write_bytes(content)
        chat.scratch[name] = content
        self.there.compare(chat)

    @rule(chat=chats, name=SCRATCH, new=NAMES)
    def attach_scratch(self, chat: ChatModel, name: str, new: str) -> None:
        if name in chat.scratch:
            self._file(chat, name).rename(self._attachment(chat, new))
            chat.modes.pop(new, None)
            chat.mtimes.pop(new, None)
            chat.attachments[new] = chat.scratch.pop(name)
            self.there.compare(chat)

    @rule(chat=chats, name=SCRATCH)
    def remove_scratch(self, chat: ChatModel, name: str) -> None:
        if name in chat.scratch:
            self._file(chat, name).unlink()
            del chat.scratch[name]
            self.there.compare(chat)

    # ---- chats

    @rule(target=chats, name=st.sampled_from(["first", "second", "third chat"]))
    def make(self, name: str) -> object:
        if self.there.taken(name):
            with pytest.raises(FileExistsError):
                self.there.path("chats", name).mkdir()
            return multiple()
        return self._made(name)

    @rule(target=chats, chat=chats, name=st.sampled_from(["copy", "second"]), how=st.sampled_from(["cp -r", "tar"]))
    def copy_chat(self, chat: ChatModel, name: str, how: str) -> object:
        if self.there.taken(name):
            return multiple()
        source, target = self.there.directory(chat), self.there.path("chats", name)
        if how == "tar":
            made = subprocess.run(["tar", "-cC", source.parent, "--", source.name], check=True, capture_output=True)
            extract = ["tar", "-xC", target.parent, f"--transform=s,^[^/]*,{name},"]
            subprocess.run(extract, check=True, input=made.stdout)
        else:
            subprocess.run(["cp", "-r", source, target], check=True)
        copied = chat.copy()
        copied.name, copied.place = name, "chats"
        copied.modes, copied.mtimes = {}, {}
        self.there.chats.append(copied)
        self.there.compare(copied)
        return copied

    @rule(chat=chats, place=st.sampled_from(["chats", "archive"]), name=st.sampled_from(["first", "second", "moved"]))
    def move_chat(self, chat: ChatModel, place: str, name: str) -> None:
        if self.there.taken(name, but=chat):
            with pytest.raises(OSError, match=r"exists|not empty"):
                self.there.directory(chat).rename(self.there.path(place, name))
        else:
            self.there.directory(chat).rename(self.there.path(place, name))
            chat.place, chat.name = place, name
        self.there.compare(chat)

    @rule(chat=consumes(chats), how=st.sampled_from(["rmdir", "rm -r"]))
    def trash(self, chat: ChatModel, how: str) -> None:
        if how == "rmdir":
            self.there.directory(chat).rmdir()
        else:
            subprocess.run(["rm", "-r", self.there.directory(chat)], check=True)
            chat.removed, chat.attachments, chat.scratch = chat.attachments, {}, {}
        shown = [chat.name, *(f"{chat.name}~{number}" for number in range(2, 50))]
        taken = {other.name for other in self.there.chats if other.place == "trash"}
        chat.place, chat.name = "trash", next(name for name in shown if name not in taken)
        self.there.compare(chat)

    @rule(target=chats, name=st.sampled_from(["first", "back"]), index=st.integers(0, 5))
    def restore(self, name: str, index: int) -> object:
        trashed = [chat for chat in self.there.chats if chat.place == "trash"]
        if not trashed or self.there.taken(name):
            return multiple()
        chat = trashed[index % len(trashed)]
        self.there.directory(chat).rename(self.there.path("chats", name))
        chat.place, chat.name = "chats", name
        chat.attachments, chat.removed = chat.attachments | chat.removed, {}
        self.there.compare(chat)
        return chat

    @rule()
    def rename_workspace(self) -> None:
        old = self.there.workspace.directory
        new = old.with_name(f"w{next(NUMBERS)}")
        old.rename(new)
        self.there.workspace.directory = new
        self.there.compare_names()

    # ---- others on the same store

    @rule(chat=chats, words=WORDS, name=NAMES, content=st.binary(max_size=50))
    def others_append_and_attach(self, chat: ChatModel, words: str, name: str, content: bytes) -> None:
        async def work(_: StoreWorkspace, found: StoreChat) -> None:
            await found.append_events([{"role": "tool", "content": words}], "another")
            await found.attach(name, content, "another")

        ops.with_chat(self.mounted, self.there.workspace.directory.name, chat.name, work)
        chat.put(name, content)
        self._grown(chat)

    @rule(chat=chats, place=st.sampled_from([Place.CHATS, Place.ARCHIVE]), name=st.sampled_from(["first", "theirs"]))
    def others_move_a_chat(self, chat: ChatModel, place: Place, name: str) -> None:
        async def work(workspace: StoreWorkspace, found: StoreChat) -> None:
            await workspace.move_chat(found.id, place, name, "another")

        if not self.there.taken(name, but=chat):
            ops.with_chat(self.mounted, self.there.workspace.directory.name, chat.name, work)
            chat.place, chat.name = place.value, name
            wait_for(lambda: self.there.directory(chat).exists(), what="the other's rename")
            self.there.compare(chat)
