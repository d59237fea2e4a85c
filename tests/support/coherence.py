"""Writers and readers of one chat, as processes, and the board on which they tell each other what they know.

`python coherence.py ROLE ARGUMENTS` (JSON) works until the board says stop. Every writer numbers what it does and says
on the board what was acknowledged; every reader says what it has seen, and checks, of each `look`:

* it is no older than the reader's last one, and than what any reader had seen when it began;
* what was acknowledged to a writer of the same mount when it began is in it;
* what was acknowledged to anybody is in it within BOUND seconds.

Streams: `mount`, `other`, `library` and `command` append messages; `same` replaces an attachment by one of the same
size; `names` renames an attachment, `chats` a chat (through chats/ and archive/); `size` is that of history.jsonl.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

STREAMS: Final = ("mount", "other", "library", "command", "same", "names", "chats", "size")
MESSAGES: Final = STREAMS[:4]
READERS: Final = ("fresh", "held", "text", "names", "follow")
BOUND: Final = 10.0
"""Seconds: far more than it takes, for a machine that does much else."""

_WORD: Final = re.compile(rb"(mount|other|library|command)-(\d+)-")

Seen = dict[str, int]


class Board:
    """Numbers in a file that all share: what was acknowledged of each stream, and what each reader has seen of it."""

    def __init__(self, path: Path) -> None:
        size = 8 * (1 + len(STREAMS) * (1 + len(READERS)))
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), size)).cast("q")

    def stop(self) -> None:
        """Have everybody end."""
        self._numbers[0] = 1

    @property
    def stopped(self) -> bool:
        """Whether somebody said so."""
        return self._numbers[0] != 0

    def acknowledge(self, stream: str, number: int) -> None:
        """That one was acknowledged, with all before it."""
        self._numbers[1 + STREAMS.index(stream)] = number

    def acknowledged(self) -> Seen:
        """The last one of each stream."""
        return {stream: self._numbers[1 + place] for place, stream in enumerate(STREAMS)}

    def saw(self, reader: str, seen: Seen) -> None:
        """What `reader` has seen."""
        first = 1 + len(STREAMS) * (1 + READERS.index(reader))
        for stream, number in seen.items():
            self._numbers[first + STREAMS.index(stream)] = number

    def seen(self) -> Seen:
        """What any reader has seen."""
        places = range(len(STREAMS), len(self._numbers) - 1, len(STREAMS))
        return {stream: max(self._numbers[1 + first + n] for first in places) for n, stream in enumerate(STREAMS)}


def line(stream: str, number: int) -> bytes:
    """A message of a stream."""
    return json.dumps({"role": "user", "content": f"{stream}-{number}-"}).encode() + b"\n"


def numbers_in(text: bytes) -> Seen:
    """The last message of each stream that a text has."""
    return {match[1].decode(): int(match[2]) for match in _WORD.finditer(text)}


# ---- readers


class Reader:
    """Looks again and again. `late`: what it sees comes by way of another program, so other readers may be ahead."""

    def __init__(self, role: str, board: Board, *, late: bool = False) -> None:
        self.role = role
        self.board = board
        self.late = late
        self.last: Seen = {}
        self._owed: dict[str, tuple[int, float]] = {}

    def check(self, look: Callable[[], Seen]) -> None:
        """Look, and check what is seen."""
        told, acknowledged = self.board.seen(), self.board.acknowledged()
        began = time.monotonic()
        seen = look()
        for stream, number in seen.items():
            assert number >= self.last.get(stream, 0), f"{stream} went back from {self.last[stream]} to {number}"
            if not self.late:
                assert number >= told[stream], (
                    f"another reader had seen {stream} {told[stream]}, then this one {number}"
                )
                here = stream in {"mount", "size"}
                assert not here or number >= acknowledged[stream], (
                    f"{stream} {acknowledged[stream]} was written, {number} is seen"
                )
            owed, until = self._owed.get(stream, (0, 0.0))
            if number >= owed:
                self._owed.pop(stream, None)
                if number < acknowledged[stream]:
                    self._owed[stream] = acknowledged[stream], began + BOUND
            else:
                assert began < until, f"{stream} {owed} was acknowledged {BOUND} s ago, {number} is seen"
        self.last |= seen
        self.board.saw(self.role, seen)

    def run(self, look: Callable[[], Seen]) -> None:
        """Until the board says stop, and all that was acknowledged is seen."""
        looks = 0
        while not self.board.stopped:
            self.check(look)
            looks += 1
        until = time.monotonic() + BOUND
        while any(self.board.acknowledged()[stream] > number for stream, number in self.last.items()):
            assert time.monotonic() < until, f"{self.last} is seen, {self.board.acknowledged()} was acknowledged"
            self.check(look)
        print(f"{self.role}: {looks} looks")  # noqa: T201 - for the test


class LogReader:
    """What is common to looks at history.jsonl: the text only grows, and so do size and mtime."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = b""
        self.seen: Seen = dict.fromkeys(MESSAGES, 0)
        self._stat = (0, 0)

    def took(self, text: bytes) -> Seen:
        """The whole text, as just read."""
        assert text.startswith(self.text), "the text that was there has changed"
        assert text[-1:] in {b"", b"\n"}, f"it ends within a line: {text[-50:]!r}"
        self.seen |= numbers_in(text[len(self.text) :])
        self.text = text
        return self.seen | {"size": len(text)}

    def stat(self, found: os.stat_result) -> int:
        """The size that stat(2) says."""
        size, mtime = self._stat
        assert found.st_size >= size, f"the size went back from {size} to {found.st_size}"
        assert (found.st_mtime_ns > mtime) == (found.st_size > size), "the mtime doesn't go with the size"
        self._stat = found.st_size, found.st_mtime_ns
        return found.st_size


def fresh(chat: Path) -> Callable[[], Seen]:
    """Opens anew each time, and looks at the size before and after."""
    log = LogReader(chat / "history.jsonl")

    def look() -> Seen:
        before = log.stat(log.path.stat())
        text = log.path.read_bytes()
        after = log.stat(log.path.stat())
        assert before <= len(text) <= after, f"{len(text)} bytes, of {before} before and {after} after"
        return log.took(text)

    return look


def held(chat: Path) -> Callable[[], Seen]:
    """One descriptor: fstat, pread at the end and over all."""
    log = LogReader(chat / "history.jsonl")
    descriptor = os.open(log.path, os.O_RDONLY)

    def look() -> Seen:
        size = log.stat(os.fstat(descriptor))
        end = os.pread(descriptor, 1 << 20, len(log.text))
        assert len(log.text) + len(end) >= size
        text = os.pread(descriptor, len(log.text) + len(end), 0)
        assert text[len(log.text) :] == end
        return log.took(text)

    return look


def text(chat: Path) -> Callable[[], Seen]:
    """history.md, opened anew and through a descriptor that stays open, in turn."""
    path = chat / "history.md"
    descriptor = -1
    turn = 0

    def look() -> Seen:
        nonlocal descriptor, turn
        turn += 1
        before = path.stat().st_size
        found = path.read_bytes() if descriptor < 0 or turn % 2 else os.pread(descriptor, 1 << 24, 0)
        if descriptor < 0 and found:
            descriptor = os.open(path, os.O_RDONLY)
        after = path.stat().st_size
        assert before <= len(found) <= after, f"{len(found)} bytes, of {before} before and {after} after"
        return dict.fromkeys(MESSAGES, 0) | numbers_in(found)

    return look


def names(chat: Path) -> Callable[[], Seen]:
    """Attachments and chats: what is listed, what isn't there any more, what is in them."""
    attachments, chats, archive = chat / "attachments", chat.parent, chat.parent.parent / "archive"
    last = {"v": 0, "c": 0}

    def gone(path: Path) -> None:
        # A listing that crosses with the first change after a rest brings the old name for a moment.
        until = time.monotonic() + 1
        while path.exists():
            assert time.monotonic() < until, f"{path.name} is still in {path.parent.name}/"

    def newest(prefix: str, *directories: Path) -> int:
        # A listing of two directories isn't one moment: what goes to and fro may be missed in both.
        found = [int(name[2:]) for where in directories for name in os.listdir(where) if name.startswith(f"{prefix}-")]
        number = max(found, default=last[prefix])
        for old in {last[prefix] - 1, number - 1}:
            for where in directories if old >= 0 else ():
                gone(where / f"{prefix}-{old}")
        last[prefix] = number
        return number

    def look() -> Seen:
        same = attachments / "same"
        size = same.stat().st_size
        content = same.read_bytes()
        assert len(content) == size == 8
        with same.open("rb") as file, mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ) as mapped:
            assert int(mapped[:]) >= int(content), f"{mapped[:]!r} is mapped, {content!r} was read"
        return {"same": int(content), "names": newest("v", attachments), "chats": newest("c", chats, archive)}

    return look


@contextmanager
def follow(chat: Path) -> Iterator[Callable[[], Seen]]:
    """tail -f."""
    command = ["tail", "-c", "+1", "-f", "-s", "0.01", chat / "history.jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
        assert tail.stdout is not None
        log = LogReader(chat / "history.jsonl")
        rest = b""

        def look() -> Seen:
            nonlocal rest
            if select.select([tail.stdout], [], [], 0.01)[0]:
                rest += os.read(tail.stdout.fileno(), 1 << 20)  # type: ignore[union-attr]
            whole, rest = rest[: rest.rfind(b"\n") + 1], rest[rest.rfind(b"\n") + 1 :]
            return log.took(log.text + whole)

        try:
            yield look
        finally:
            tail.terminate()


# ---- writers


def append(board: Board, stream: str, chat: Path) -> None:
    """Through a mount: held open, and opened anew, in turn; what write(2) or close(2) has returned is acknowledged."""
    path = chat / "history.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    number = 0
    while not board.stopped:
        number += 1
        if number % 3:
            os.write(descriptor, line(stream, number))
        else:
            with path.open("ab", buffering=0) as file:
                file.write(line(stream, number))
        board.acknowledge(stream, number)
        if stream == "mount":
            board.acknowledge("size", path.stat().st_size)
        time.sleep(0.002)  # so that readers come to it, too: a pace, no synchronisation


def change(board: Board, url: str, seed: int) -> None:
    """With the library: messages, attachments, chats."""
    import trio  # noqa: PLC0415 - the other roles start faster without

    from store.library import open_store  # noqa: PLC0415
    from store.workspace_state import Place  # noqa: PLC0415

    async def run() -> None:
        choose = random.Random(seed)
        done = dict.fromkeys(STREAMS, 0)
        async with open_store(url) as store:
            workspace = await store.workspace("demo")
            trip = await workspace.chat("trip")
            other = (await workspace.record("c-0")).id
            while not board.stopped:
                stream = choose.choice(["library", "same", "names", "chats"])
                number = done[stream] + 1
                if stream == "library":
                    await trip.append_events([json.loads(line(stream, number))], "library")
                elif stream == "same":
                    await trip.attach("same", b"%08d" % number, "library")
                elif stream == "names":
                    await trip.rename_attachment(f"v-{number - 1}", f"v-{number}", "library")
                else:
                    place = choose.choice([Place.CHATS, Place.ARCHIVE])
                    await workspace.move_chat(other, place, f"c-{number}", "library")
                done[stream] = number
                board.acknowledge(stream, number)
                await trio.sleep(0.002)

    trio.run(run)


def main() -> None:
    """One role."""
    role, arguments = sys.argv[1], json.loads(sys.argv[2])
    board, chat = Board(Path(arguments["board"])), Path(arguments["chat"])
    if role == "library":
        change(board, arguments["url"], arguments["seed"])
    elif role in {"mount", "other"}:
        append(board, role, chat)
    elif role == "follow":
        with follow(chat) as look:
            Reader(role, board, late=True).run(look)
    else:
        looks: dict[str, Any] = {"fresh": fresh, "held": held, "text": text, "names": names}
        Reader(role, board).run(looks[role](chat))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
