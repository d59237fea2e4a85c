"""`chatfs sandbox run|ls|stop`.

Concurrency: `run` blocks until its command has ended.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio

from fusefs.cli.arguments import chat_path
from fusefs.cli.errors import CommandFailed
from fusefs.cli.output import write_json, write_line, write_table
from fusefs.cli.parser import Run
from fusefs.cli.stores import store_url
from fusefs.cli.targets import find_chat, in_store
from fusefs.sandbox.runtimes import Runtime
from store import sandboxes
from store.driver import Access
from store.errors import StoreError
from store.library import Store, open_store
from store.metadata import timestamp
from store.model import clock_ms, is_uuid

if TYPE_CHECKING:
    from store.sandboxes import SandboxSession

_WAIT_SECONDS = 5.0


def _run(args: Namespace) -> None:
    from fusefs.sandbox.run import Asked, run  # noqa: PLC0415 - only what is used is loaded

    asked = Asked(
        Runtime(args.runtime),
        tuple(args.command),
        image=args.image,
        network=args.network,
        read_only=args.read_only,
        append_only=args.append_only,
        record=args.record,
        settings=tuple(args.settings),
    )

    async def opened() -> int:
        url = store_url(args)
        async with open_store(url, access=Access.WRITE) as store:
            workspace, record = await find_chat(store, args.chat)
            return await run(store, url, workspace.chat_by_id(record.id), asked)

    status = trio.run(opened)
    if status:
        sys.exit(status)


async def _ls(store: Store, args: Namespace) -> None:
    now = clock_ms()
    rows = [
        {
            "id": session.id,
            "chat": await _called(store, session),
            "runtime": session.runtime,
            "pid": session.pid,
            "started": timestamp(session.started),
            "state": "active" if session.active(now) else "ended",
        }
        for session in await sandboxes.sessions(store.driver)
    ]
    if args.json:
        write_json(rows)
    else:
        columns = ("chat", "state", "runtime", "pid", "started", "id")
        write_table([column.upper() for column in columns], ([str(row[column]) for column in columns] for row in rows))


async def _called(store: Store, session: SandboxSession) -> str:
    try:
        workspace = await store.workspace(session.workspace)
        return workspace.chat_by_id(session.chat).called
    except StoreError:
        return f"{session.workspace}/{session.chat}"


async def _stop(store: Store, args: Namespace) -> None:
    from fusefs.sandbox.containers import remove_dead  # noqa: PLC0415 - as above
    from fusefs.sandbox.run import stop  # noqa: PLC0415 - as above

    session = await _find(store, args.session)
    called = await _called(store, session)
    ended = await stop(session, kill=args.kill)
    deadline = time.monotonic() + _WAIT_SECONDS
    while (found := await _still(store, session)) is not None and found.active(clock_ms()):
        if not ended:
            raise CommandFailed(
                f"session {session.id} is run by process {session.pid}, which isn't one of this machine's: end it "
                f"there; it lapses {sandboxes.LAPSE_MS // 1000} s after it was last heard of"
            )
        if args.kill or time.monotonic() > deadline:
            break
        await trio.sleep(0.02)
    # One that was killed can't say so itself.
    await remove_dead(store)
    await sandboxes.forget(store.driver, session)
    write_line(f"stopped the sandbox of {called}")


async def _still(store: Store, session: SandboxSession) -> SandboxSession | None:
    return next((each for each in await sandboxes.sessions(store.driver) if each.id == session.id), None)


async def _find(store: Store, word: str) -> SandboxSession:
    found = await sandboxes.sessions(store.driver)
    if is_uuid(word):
        for session in found:
            if word in {session.id, session.chat}:
                return session
        raise CommandFailed(f"there is no sandbox session {word}: see chatfs sandbox ls")
    path = chat_path(word)
    _, record = await find_chat(store, path)
    for session in found:
        if session.chat == record.id:
            return session
    raise CommandFailed(f"no sandbox has {path}: see chatfs sandbox ls")


COMMANDS: Final[Mapping[str, Run]] = {
    "run": _run,
    "ls": in_store(_ls, looks=True),
    "stop": in_store(_stop),
}
