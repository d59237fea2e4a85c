"""What a sandbox does, as events in its chat's log: `sandbox.started`, `sandbox.output`, `sandbox.exited`.

Output is gathered for a moment, so that a program that writes byte by byte makes no line for each. Text that isn't
UTF-8 is kept as base64. A chat that can't take an event (a full disk, a quota) ends nothing: it is said once.
"""

from __future__ import annotations

import base64
import codecs
from typing import Any, Final

import trio

from fusefs.cli.output import complain
from store.chat import Chat
from store.errors import StoreError

GATHER_SECONDS: Final = 0.5
PIECE: Final = 64 * 1024
"""Bytes of output in one event, at most."""


class Recorder:
    """Appends a session's events."""

    def __init__(self, chat: Chat, session: str, actor: str) -> None:
        self._chat = chat
        self._session = session
        self._actor = actor
        self.pending: dict[str, bytes] = {}
        """What hasn't been recorded, by its stream."""
        self._wake = trio.Event()
        self._turn = trio.Lock()
        self._failed = ""

    async def note(self, kind: str, **fields: Any) -> None:
        """One event of the session."""
        try:
            event = {"type": f"sandbox.{kind}", "session": self._session, **fields}
            await self._chat.append_events([event], self._actor)
        except StoreError as error:
            if str(error) != self._failed:
                complain(f"not recorded: {error}")
            self._failed = str(error)

    async def output(self, stream: str, data: bytes) -> None:
        """The command wrote `data` to `stream`."""
        self.pending[stream] = self.pending.get(stream, b"") + data
        self._wake.set()
        if len(self.pending[stream]) >= PIECE:
            await self.flush(whole=False)

    async def gather(self) -> None:
        """Record what has been gathered, for ever."""
        while True:
            await self._wake.wait()
            await trio.sleep(GATHER_SECONDS)
            self._wake = trio.Event()
            await self.flush(whole=False)

    async def flush(self, *, whole: bool = True) -> None:
        """Record what there is; unless `whole`, a character of which only a part has come stays for the next.

        What was taken out is recorded, also where this is cancelled: in the order in which it came.
        """
        async with self._turn:
            pending, self.pending = self.pending, {}
            kept = {} if whole else {stream: rest for stream, data in pending.items() if (rest := _unfinished(data))}
            self.pending.update(kept)
            with trio.CancelScope(shield=True):
                for stream, data in pending.items():
                    await self._output(stream, data[: len(data) - len(kept.get(stream, b""))])

    async def _output(self, stream: str, rest: bytes) -> None:
        while rest:
            piece = rest[:PIECE]
            if len(piece) < len(rest):
                piece = piece[: len(piece) - len(_unfinished(piece))]
            rest = rest[len(piece) :]
            await self.note("output", stream=stream, **_content(piece))


def _content(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _unfinished(data: bytes) -> bytes:
    """The bytes at the end that may begin a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    decoder.decode(data[-4:])
    rest, _ = decoder.getstate()
    return rest if len(rest) < len(data) else b""
