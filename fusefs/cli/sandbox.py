"""`chatfs sandbox run|ls|stop`.

Concurrency: `run` blocks until its command has ended.
"""

from __future__ import annotations

import re
import sys
import time
from argparse import ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

import trio

from fusefs.cli.errors import CommandFailed
from fusefs.cli.output import write_json, write_line, write_table
from fusefs.cli.parser import add_command, add_group, add_json
from fusefs.cli.targets import chat_path, find_chat, in_store, store_url
from fusefs.sandbox.runtimes import Runtime
from store import sandboxes
from store.driver import Access
from store.errors import StoreError
from store.library import Store, open_store
from store.metadata import timestamp
from store.model import clock_ms, is_uuid

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands
    from store.sandboxes import SandboxSession

_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_WAIT_SECONDS = 5.0


def _setting(text: str) -> str:
    """An argument that sets a variable."""
    if _SETTING.fullmatch(text) is None:
        raise ArgumentTypeError(f"{text!r} sets nothing: write NAME=VALUE")
    return text


def add(commands: Commands) -> None:
    """Declare the commands."""
    group = add_group(commands, "sandbox", "run commands that have one chat, as /chat, and nothing else of the store")
    parser = add_command(
        group,
        "run",
        _run,
        "run a command with a chat as its /chat",
        details="Exits as the command does (128 + N where signal N ended it). Meanwhile the chat can't be removed or "
        "archived.",
    )
    parser.add_argument("chat", metavar="WORKSPACE/CHAT", type=chat_path)
    parser.add_argument(
        "--runtime",
        choices=[each.value for each in Runtime],
        default=Runtime.BWRAP.value,
        help="bwrap (the default): this machine's /usr, or --image, and no network; podman: a container of --image; "
        "none: no isolation, the chat is the working directory",
    )
    parser.add_argument("--image", metavar="ROOTFS", default="", help="a root directory; with podman also an image")
    parser.add_argument("--network", action="store_true", help="let it use the network")
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--read-only", action="store_true", help="it can't change the chat")
    access.add_argument("--append-only", action="store_true", help="it can only append messages to history.jsonl")
    parser.add_argument(
        "--record", action="store_true", help="keep what it prints in the chat's log, as sandbox.output"
    )
    parser.add_argument(
        "--env",
        metavar="NAME=VALUE",
        dest="settings",
        type=_setting,
        action="append",
        default=[],
        help="set a variable",
    )
    parser.add_argument("command", metavar="-- COMMAND", nargs="+")

    parser = add_command(group, "ls", in_store(_ls, looks=True), "list the sandboxes that run")
    add_json(parser)

    parser = add_command(group, "stop", in_store(_stop), "end a sandbox's command, and its session")
    parser.add_argument("session", metavar="WORKSPACE/CHAT|SESSION")
    parser.add_argument("--kill", action="store_true", help="at once, without letting it end well")


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
