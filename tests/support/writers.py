"""Writers that are killed, or whose mount is: programs of their own, which keep a ledger of what was acknowledged.

`python writers.py KIND NAME CHAT_DIRECTORY LEDGER [STORE WORKSPACE CHAT]`. At a `g` on stdin it
works, until an operation fails or an `s` comes; that is answered by `stopped`. It ends with stdin.

Kinds: `lines` appends to history.jsonl; `texts` saves history.md as a whole, `additions` appends to it with O_APPEND;
`files` attaches, replaces, renames and removes; `library` and `command` append past the mount. Every operation leaves a
word of its own (`NAME-7`), so that nothing can be mistaken for another.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.ledger import Ledger, operations

Step = Callable[[int], None]


def content_of(word: str) -> bytes:
    """The bytes of an attachment, by its word: from nothing to some chunks."""
    choose = random.Random(word)
    size = choose.choice([0, 10, 5_000, 300_000, 1 << 20, (1 << 20) + 1, 2_500_000])
    return (word.encode() + b"\n" + choose.randbytes(997)) * (size // 997 + 1)


def _write(path: Path, flags: int, data: bytes) -> None:
    """write(2) and close(2), either of which may fail."""
    descriptor = os.open(path, flags, 0o600)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)


class Mount:
    """Writers that go through the mount."""

    def __init__(self, name: str, directory: Path, ledger: Ledger) -> None:
        self.name = name
        self.directory = directory
        self.ledger = ledger

    def lines(self, number: int) -> None:
        words = [f"{self.name}-{number}{part}" for part in "abc"[: 1 + number % 3]]
        batch = b"".join(json.dumps({"role": "user", "content": word}).encode() + b"\n" for word in words)
        descriptor = os.open(self.directory / "history.jsonl", os.O_WRONLY | os.O_APPEND)
        try:
            with self.ledger.operation(kind="lines", words=words):
                assert os.write(descriptor, batch) == len(batch)
            if number % 4 == 0:
                os.fsync(descriptor)
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def texts(self, number: int) -> None:
        """A message of this writer's own says how often it saved: the save edits it, and what others add stays."""
        path = self.directory / "history.md"
        text = path.read_bytes()
        before = re.search(rb"%b saved [0-9]+ times" % self.name.encode(), text)
        now = b"%b saved %d times" % (self.name.encode(), number)
        if before is not None:
            text = text[: before.start()] + now + text[before.end() :]
        else:
            text = b"## user\n\n" + now + b"\n\n" + text
        with self.ledger.operation(kind="texts", number=number):
            if number % 3 == 0:
                beside = path.with_name(f".{self.name}.tmp")
                _write(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, text)
                beside.replace(path)
            else:
                _write(path, os.O_WRONLY | os.O_TRUNC, text)

    def additions(self, number: int) -> None:
        word = f"{self.name}-{number}a"
        with self.ledger.operation(kind="additions", words=[word]):
            text = f"\n## assistant\n\n{word}\n".encode()
            _write(self.directory / "history.md", os.O_WRONLY | os.O_APPEND, text)

    def files(self, number: int) -> None:
        name = f"{self.name}.{number % 5}"
        path = self.directory / "attachments" / name
        word = f"{self.name}-{number}"
        match number % 7:
            case 5 if path.exists():
                with self.ledger.operation(kind="remove", name=name):
                    path.unlink()
            case 6:
                beside = path.with_name(f".{name}.tmp")
                _write(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, content_of(word))
                with self.ledger.operation(kind="put", name=name, word=word):
                    beside.replace(path)
            case _:
                with self.ledger.operation(kind="put", name=name, word=word):
                    _write(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, content_of(word))


class Command:
    """`chatfs append`, again and again."""

    def __init__(self, name: str, store: str, chat: str, ledger: Ledger) -> None:
        self.name = name
        self.store = store
        self.chat = chat
        self.ledger = ledger

    def command(self, number: int) -> None:
        words = [f"{self.name}-{number}{part}" for part in "abc"[: 1 + number % 3]]
        batch = b"".join(json.dumps({"role": "user", "content": word}).encode() + b"\n" for word in words)
        with self.ledger.operation(kind="lines", words=words):
            done = subprocess.run(
                [sys.executable, "-m", "fusefs", "--store", self.store, "append", self.chat],
                input=batch,
                capture_output=True,
                check=False,
                cwd=Path(__file__).parents[2],
            )
            if done.returncode:
                raise OSError(done.stderr.decode())


GO, STOP = b"g", b"s"


def told_to_stop() -> bool:
    """Whether the next command has come, or stdin has ended."""
    return bool(select.select([0], [], [], 0)[0])


def work(step: Step, first: int) -> Iterator[None]:
    """Work until told to stop or until something fails; then yield."""
    number = first
    while True:
        try:
            while not told_to_stop():
                number += 1
                step(number)
        except OSError as error:
            print(f"{step.__name__}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201
        yield


def stopped() -> None:
    """Say so once the command to stop has come."""
    os.read(0, 1)
    print("stopped", flush=True)  # noqa: T201


def library(name: str, store: str, workspace: str, chat: str, ledger: Ledger, first: int) -> None:
    """Messages and attachments through the library, in one store that stays open between the rounds."""
    import trio  # noqa: PLC0415 - the others start faster

    from store.library import open_store  # noqa: PLC0415 - as above

    async def run() -> None:
        number = first
        async with open_store(store) as opened:
            found = await (await opened.workspace(workspace)).chat(chat)
            while os.read(0, 1) == GO:
                while not told_to_stop():
                    number += 1
                    words = [f"{name}-{number}{part}" for part in "abc"[: 1 + number % 3]]
                    with ledger.operation(kind="lines", words=words):
                        await found.append_events([{"role": "user", "content": word} for word in words], name)
                    if number % 3 == 0:
                        with ledger.operation(kind="put", name=f"{name}.{number % 4}", word=f"{name}-{number}"):
                            content = content_of(f"{name}-{number}")
                            await found.attach(f"{name}.{number % 4}", content, name)
                    if number % 5 == 0:
                        await found.sync()
                stopped()

    trio.run(run)


def main() -> None:
    kind, name, directory, ledger_path, *more = sys.argv[1:]
    first = len(operations(Path(ledger_path)))
    ledger = Ledger(Path(ledger_path))
    if kind == "library":
        store, workspace, chat = more
        library(name, store, workspace, chat, ledger, first)
        return
    if kind == "command":
        store, workspace, chat = more
        step: Step = Command(name, store, f"{workspace}/{chat}", ledger).command
    else:
        step = getattr(Mount(name, Path(directory), ledger), kind)
    working = work(step, first)
    while os.read(0, 1) == GO:
        next(working)
        stopped()


if __name__ == "__main__":
    main()
