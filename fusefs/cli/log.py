"""`chatfs append`, `log`, `cat` and `attach`: what is in one chat.

Concurrency: input is read in threads that an interrupt abandons; output blocks.
"""

from __future__ import annotations

import os
import stat
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, Final

import trio

from fusefs.cli.errors import CommandFailed, UsageError
from fusefs.cli.output import Progress, RawOutput, size_text, write_json, write_line
from fusefs.cli.parser import Run
from fusefs.cli.targets import (
    actor,
    find_chat,
    in_store,
    readable,
    readable_chat,
    standard_input,
)
from store import codec, history, intake
from store.chat import Chat
from store.driver import CHUNK
from store.errors import ChatNotFound, InvalidInput, StoreError
from store.library import Store
from store.model import LINE_MAX, Attachment, Entry, NewEntry, Seq, attachment_name, uuid7
from store.space import Space

BATCH_LINES: Final = 10_000
BATCH_BYTES: Final = 8 * 1024 * 1024
_LONG: Final = 8 * 1024 * 1024
"""From this size on, an attachment is long work."""


# ---- append


async def _append(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.chat.workspace)
    chat = await _found(store, args)
    lines, seq = 0, Seq(0)
    with _opened(args.file) as stream:
        try:
            while True:
                read, batch = await trio.to_thread.run_sync(_batch, stream, lines, abandon_on_cancel=True)
                if chat is None:
                    # Only now: bad lines make no chat.
                    chat = await workspace.create_chat(args.chat.chat, actor())
                if not read:
                    break
                seq = await chat.append(batch)
                lines += read
        except StoreError as error:
            done = f"lines 1 to {lines} were appended (last seq {seq})" if lines else "nothing was appended"
            raise CommandFailed(f"{error}; {done}") from error
        finally:
            if chat is not None:
                await chat.sync()
                await workspace.space.sync()
    last = seq if lines else (await chat.head()).seq
    if args.json:
        write_json({"last_seq": last, "lines": lines})
    else:
        write_line(str(last))


async def _found(store: Store, args: Namespace) -> Chat | None:
    """The chat; None where it is to be made."""
    try:
        workspace, record = await find_chat(store, args.chat)
    except ChatNotFound:
        if args.create:
            return None
        raise
    chat = workspace.chat_by_id(record.id)
    await chat.load()  # whether it is damaged shows only by reading it
    chat.space.check_sound()
    return chat


def _opened(name: str) -> AbstractContextManager[IO[bytes]]:
    if name == "-":
        return nullcontext(standard_input())  # never closed, as it says there
    return readable(Path(name)).open("rb")


def _batch(stream: IO[bytes], before: int) -> tuple[int, list[NewEntry]]:
    """How many lines were read, and their entries. `before` is how many lines came before."""
    read = size = 0
    found: list[NewEntry] = []
    who = actor()
    while read < BATCH_LINES and size < BATCH_BYTES:
        line = stream.readline(LINE_MAX + 2)
        if not line:
            break
        read += 1
        size += len(line)
        if line.strip():
            found.append(intake.accept(line, who, uuid7, number=before + read))
    return read, found


# ---- log, cat


async def _log(store: Store, args: Namespace) -> None:
    if args.follow and args.reverse:
        raise UsageError("--follow and --reverse exclude each other: see chatfs log -h")
    if args.space.chat:
        async with readable_chat(store, args.space) as (_workspace, _record, chat):
            await _print(chat.space, args)
    else:
        await _print((await store.workspace(args.space.workspace)).space, args)


async def _print(space: Space[Any], args: Namespace) -> None:
    with RawOutput(as_json=True) as output:
        if args.follow:
            await _follow(space, args, output)
            return
        async for entry in space.read(Seq(args.since), args.limit, reverse=args.reverse):
            output.write(line(entry))


async def _follow(space: Space[Any], args: Namespace, output: RawOutput) -> None:
    head = await space.refresh()
    left = args.limit
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_closed, nursery.cancel_scope)
        async with space.subscribe(Seq(args.since)) as entries:
            if left != 0:
                async for entry in entries:
                    output.write(line(entry))
                    if entry.seq >= head.seq:
                        output.flush()
                    if left is not None:
                        left -= 1
                        if left == 0:
                            break
        nursery.cancel_scope.cancel()


async def _until_closed(scope: trio.CancelScope) -> None:
    """End the scope when nobody reads the pipe on stdout any more: no write might ever come that would tell."""
    if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        await trio.lowlevel.wait_readable(sys.stdout.fileno())
        scope.cancel()


def line(entry: Entry) -> bytes:
    """The entry's line, as the log has it."""
    new = NewEntry(entry.data, entry.actor, entry.origin)
    text, _crc = codec.encode(new, entry.seq, entry.ts, 0, entry.more)
    return b'%b,"crc":"%08x"}\n' % (text[: -codec.CRC_FIELD - 1], entry.crc)


async def _cat(store: Store, args: Namespace) -> None:
    async with readable_chat(store, args.chat) as (_workspace, _record, chat):
        with chat.hold(), RawOutput() as output:
            for piece in history.render_pieces(await chat.whole()):
                output.write(piece)
        chat.space.check_sound()


# ---- attach


async def _attach(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat)
    chat = workspace.chat_by_id(record.id)
    names = [attachment_name(path.name) for path in args.files]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"two of the files are called {name!r}: attach them one by one, or rename one")
    sizes = [readable(path).stat().st_size for path in args.files]
    await workspace.quota.require(sum(sizes))
    done: list[Attachment] = []
    try:
        for path, size in zip(args.files, sizes, strict=True):
            with path.open("rb", buffering=0) as file, Progress() as progress:
                found = await chat.attach(path.name, _pieces(file, path.name, size, progress), actor())
            done.append(found)
    finally:
        await chat.sync()
    if args.json:
        write_json([{"name": each.name, "size": each.size, "digest": each.digest} for each in done])
    else:
        for each in done:
            write_line(f"attached {each.name} ({size_text(each.size)})")


async def _pieces(file: IO[bytes], name: str, size: int, progress: Progress) -> AsyncIterator[bytes]:
    """The file, in constant memory."""
    done = 0
    while piece := await trio.to_thread.run_sync(file.read, CHUNK):
        done += len(piece)
        if size >= _LONG:
            progress.say(f"{name}: {size_text(done)} of {size_text(size)}")
        yield piece


COMMANDS: Final[Mapping[str, Run]] = {
    "append": in_store(_append),
    "log": in_store(_log, looks=True),
    "cat": in_store(_cat, looks=True),
    "attach": in_store(_attach),
}
