"""Rules for the workspace that the chats are in: its metadata, its quota, and workspaces that come and go."""

from __future__ import annotations

import errno
import json

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.support import ops
from tests.support.machine import NAMES, NUMBERS, MountMachine
from tests.support.model import ChatModel
from tests.support.mounts import message
from tests.support.ops import append


class WorkspaceMachine(MountMachine):
    """The rules."""

    chats = MountMachine.chats

    def _edit(self, **fields: object) -> None:
        path = self.there.workspace.directory / "workspace.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))

    @rule(
        title=st.sampled_from(["", "W", "Über"]),
        labels=st.lists(st.sampled_from(["x", "y z"]), unique=True),
        quota=st.sampled_from([0, 1 << 40]),
    )
    def edit_workspace_json(self, title: str, labels: list[str], quota: int) -> None:
        there = self.there
        there.title, there.labels, there.quota = title, labels, quota
        self._edit(title=title, labels=labels, quota_bytes=quota, name="ignored", usage_bytes=1)
        there.compare_metadata()

    @rule(chat=chats, name=NAMES)
    def have_no_room(self, chat: ChatModel, name: str) -> None:
        """Over the quota nothing is added; reading, removing and renaming work."""
        quota, self.there.quota = self.there.quota, 10
        self._edit(quota_bytes=10)
        log = self.there.log(chat).read_bytes()
        with ops.refused(errno.EDQUOT):
            append(self._file(chat, "history.jsonl"), message("more"))
        with ops.refused(errno.EDQUOT):
            append(self._file(chat, "history.md"), b"\n## user\n\nmore\n")
        # It was write(2) that refused: nothing was taken that would have to be kept.
        assert not any(self.there.directory(chat).glob("history.md.*"))
        with ops.refused(errno.EDQUOT):
            self._attachment(chat, "more").write_bytes(b"more")
        assert self.there.log(chat).read_bytes() == log
        self.there.compare(chat)
        if name in chat.attachments:
            self._attachment(chat, name).unlink()
            chat.drop(name)
        old = self.there.directory(chat)
        chat.name = f"tidied {next(NUMBERS)}"
        old.rename(self.there.directory(chat))
        self.there.compare(chat)
        self.there.compare_metadata()
        self.there.quota = quota
        self._edit(quota_bytes=quota)
        self.there.compare_metadata()

    @rule()
    def make_and_remove_a_workspace(self) -> None:
        beside = self.there.workspace.directory.with_name(f"w{next(NUMBERS)}")
        beside.mkdir()
        (beside / "chats" / "only").mkdir()
        with ops.refused(errno.ENOTEMPTY):
            beside.rmdir()
        (beside / "chats" / "only").rmdir()
        beside.rmdir()
        assert not beside.exists()
        if any(chat.place != "trash" for chat in self.there.chats):
            with ops.refused(errno.ENOTEMPTY):
                self.there.workspace.directory.rmdir()
        self.there.compare_names()
