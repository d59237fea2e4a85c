"""What a project's copy brings, while another process brings the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.chat import Chat
from store.library import open_store
from store.model import ChatId, Seq, uuid7
from store.projection import portable, take_in

ME = "test"


@pytest.mark.parametrize("known", [3, 2], ids=["the same", "an earlier copy"])
async def test_who_comes_second_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: int) -> None:
    """The other has brought the chat and listed it, and somebody has written to it, between a look and an append."""
    usual = take_in.take_lines
    async with open_store(f"file://{tmp_path}/store") as first, open_store(f"file://{tmp_path}/store") as second:
        workspace = await first.create_workspace("demo", ME)
        model = await workspace.create_chat("model", ME)
        await model.append_events([{"role": "user", "content": f"number {number}"} for number in range(3)], ME)
        lines = portable.stream([entry async for entry in model.log()])
        new = ChatId(uuid7())

        async def after_the_other(chat: Chat, there: list[bytes], wanted: list[bytes], seq: Seq) -> None:
            monkeypatch.setattr(take_in, "take_lines", usual)
            made = await take_in.new_chat(workspace, new, "trip", lines[:known])
            await made.append_events([{"role": "user", "content": "written meanwhile"}], ME)
            await usual(chat, there, wanted, seq)

        monkeypatch.setattr(take_in, "take_lines", after_the_other)
        made = await take_in.new_chat(await second.workspace("demo"), new, "trip", lines)
        text = await made.text()
        assert text.count(b"number 0") == 1
        assert text.count(b"written meanwhile") == 1
        assert len((await second.workspace("demo")).state.chats) == 2
