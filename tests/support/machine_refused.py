"""Rules for what a mount refuses or takes without effect: names, tails, owners, and files that are only hidden.

Each leaves the log as it was, and the chat as its model says.
"""

from __future__ import annotations

import errno
import os

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.support import ops
from tests.support.machine import NAMES, RARELY, WORDS, MountMachine
from tests.support.model import PROJECTED, ChatModel
from tests.support.mounts import message
from tests.support.ops import append

BAD_NAMES = st.sampled_from(
    [
        ("a\nb", errno.EINVAL),
        ("\x7f", errno.EINVAL),
        ("x" * 256, errno.ENAMETOOLONG),
        ("ü" * 128, errno.ENAMETOOLONG),
    ]
)
"""Neither a chat nor an attachment can have them."""
SHOWN = st.sampled_from(sorted(PROJECTED))


class RefusedMachine(MountMachine):
    """The rules."""

    chats = MountMachine.chats

    @rule(chat=chats, content=WORDS, at=st.integers(1, 60))
    def leave_a_line_unfinished(self, chat: ChatModel, content: str, at: int) -> None:
        line = message(content).rstrip()
        tail = line[: min(at, len(line) - 1)]
        with ops.refused(errno.EINVAL), ops.opened(self._file(chat, "history.jsonl"), os.O_WRONLY | os.O_APPEND) as log:
            assert os.write(log, tail) == len(tail)
        [rejected] = self.there.directory(chat).glob("history.jsonl.rejected-*")
        assert rejected.read_bytes() == tail
        rejected.unlink()
        self.there.compare(chat)

    @rule(chat=chats, bad=BAD_NAMES | st.just((".hidden", errno.EINVAL)))
    def name_a_chat_badly(self, chat: ChatModel, bad: tuple[str, int]) -> None:
        name, code = bad
        with ops.refused(code):
            self.there.path("chats", name).mkdir()
        with ops.refused(code):
            self.there.directory(chat).rename(self.there.path("chats", name))
        self.there.compare_names()
        self.there.compare(chat)

    @rule(chat=chats, bad=BAD_NAMES | st.sampled_from([(name, errno.EPERM) for name in ("history.md", "chat.json")]))
    def name_an_attachment_badly(self, chat: ChatModel, bad: tuple[str, int]) -> None:
        name, code = bad
        with ops.refused(code):
            self._attachment(chat, name).write_bytes(b"x")
        for attached in list(chat.attachments)[:1]:
            with ops.refused(code):
                self._attachment(chat, attached).rename(self._attachment(chat, name))
        self.there.compare(chat)

    @rule(chat=chats)
    def make_a_subdirectory(self, chat: ChatModel) -> None:
        for path in (self._attachment(chat, "sub"), self._file(chat, "sub")):
            with ops.refused(errno.EPERM):
                path.mkdir()
        self.there.compare(chat)

    @rule(chat=chats, name=SHOWN, mode=st.sampled_from([0o600, 0o700, 0o755]), seconds=st.integers(0, 2**33))
    def change_what_is_projected(self, chat: ChatModel, name: str, mode: int, seconds: int) -> None:
        log = self.there.log(chat).read_bytes()
        self._file(chat, name).chmod(mode)
        os.utime(self._file(chat, name), (seconds, seconds))
        assert self.there.log(chat).read_bytes() == log
        self.there.compare(chat)

    @rule(chat=chats, name=SHOWN, attached=NAMES)
    def give_away(self, chat: ChatModel, name: str, attached: str) -> None:
        paths = [self._file(chat, name)] + [self._attachment(chat, attached)] * (attached in chat.attachments)
        for path in paths:
            os.chown(path, os.getuid(), os.getgid())
            with ops.refused(errno.EPERM):
                os.chown(path, os.getuid() + 1, -1)
        self.there.compare(chat)

    @rule(chat=chats, name=SHOWN, again=st.sampled_from(["made", "moved"]), remount=RARELY)
    def hide(self, chat: ChatModel, name: str, again: str, remount: bool) -> None:  # noqa: FBT001 - a rule's draw
        """Gone from this mount, until it is made again, the log moves or a remount; the log isn't touched."""
        path = self._file(chat, name)
        if name == "attachments" and chat.attachments:
            with ops.refused(errno.ENOTEMPTY):
                path.rmdir()
            return
        log = self.there.log(chat).read_bytes()
        shown = b"" if name == "attachments" else path.read_bytes()
        if name == "attachments":
            path.rmdir()
        else:
            path.unlink()
        assert not path.exists()
        assert set(os.listdir(path.parent)) == (PROJECTED | set(chat.scratch)) - {name}
        assert self.there.log(chat).read_bytes() == log
        if remount:
            self.mounted.remount()
        elif again == "made":
            self._make_again(chat, name, shown)
        elif name == "history.jsonl":
            chat.text += b"\n## user\n\nmoved\n"
            append(self._file(chat, "history.md"), b"\n## user\n\nmoved\n")
        else:
            append(self._file(chat, "history.jsonl"), message("moved"))
            chat.text = self._file(chat, "history.md").read_bytes()
        self.there.compare(chat)

    def _make_again(self, chat: ChatModel, name: str, shown: bytes) -> None:
        path = self._file(chat, name)
        log = self.there.log(chat).read_bytes()
        match name:
            case "attachments":
                path.mkdir()
            case "history.jsonl":
                with ops.opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT):
                    pass
            case _:
                path.write_bytes(shown)
        assert self.there.log(chat).read_bytes() == log
