"""An append whose log is taken over while it is written, since its process stood: it is in the new log all the same."""

from __future__ import annotations

from pathlib import Path

from store import durability
from store.codec import decode_lines, encode
from store.library import open_store
from store.model import NewEntry, Seq
from tests.authority.harness import make, the_chat
from tests.authority.worker import word_of
from tests.contract.backends import faulty


class Overtaking(durability.System):
    """Behind the next line of a log comes another's, in a file that takes the log's place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = False

    def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
        count = super().write(label, fd, data)
        if label == "log.append" and not self._done:
            self._done = True
            text = self._path.read_bytes()
            *_, (last, _end) = decode_lines(text, after=Seq(0), previous_crc=0)
            new = NewEntry(b'{"type":"message.appended","id":"m","role":"user","content":"behind"}', "other")
            line, _crc = encode(new, last.seq + 1, last.ts, last.crc)
            beside = self._path.with_name(".beside")
            beside.write_bytes(text + line)
            beside.replace(self._path)
        return count


async def test_an_overtaken_append_returns_its_own_seq(tmp_path: Path) -> None:
    async with open_store(f"file://{tmp_path / 'store'}") as store:
        await make(store)
        chat = await the_chat(store)
        await chat.load()
        event = {"role": "user", "content": "first"}
        assert await chat.append_events([event], "test") == 1
        with faulty(Overtaking(chat.directory / "history.jsonl")):
            assert await chat.append_events([event | {"content": "overtaken"}], "test") == 2
        assert chat.space.head.seq == 3
        state = chat.space.state
        assert state is not None
        assert [message.content for message in state.messages()] == ["first", "overtaken", "behind"]
        assert [word_of(entry) async for entry in chat.log()] == ["first", "overtaken", "behind"]
        assert await chat.append_events([event | {"content": "last"}], "test") == 4
        assert (await chat.text()).count(b"overtaken") == 1
