"""Podman's containers, which outlive the process that runs them: they are ended where that one can't.

A process of its own watches this one, by a pipe, and removes the container when this one is gone; where that was
killed, too, the next `chatfs sandbox run` does.

Concurrency: as the caller's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio

from fusefs.cli.errors import CommandFailed
from fusefs.sandbox.runtimes import Runtime, container, podman
from store import alive, sandboxes
from store.library import Store

REMOVE: Final = ("rm", "--force", "--time", "0")
_WATCH: Final = 'read -r said || exec "$@"'


async def tell(*words: str) -> None:
    """Have podman do it to a session's container, which may be gone already: the last word is the session."""
    *what, session = words
    with contextlib.suppress(OSError, CommandFailed):
        await trio.run_process(
            [*podman(), *what, container(session)], check=False, capture_stdout=True, capture_stderr=True
        )


async def require_sight(mountpoint: Path) -> None:
    """Raises CommandFailed where podman wouldn't see what is mounted there, and the command would have nothing.

    Without root, podman keeps a mount namespace, which an older `podman` has made: only shared mounts come to it.
    """
    if os.geteuid() == 0:
        return
    look = [*podman(), "unshare", "test", "-e", str(mountpoint / "history.jsonl")]
    done = await trio.run_process(look, check=False, capture_stdout=True, capture_stderr=True)
    if done.returncode == 1:
        raise CommandFailed(
            "podman doesn't see the chat's mount, since the machine's mounts aren't shared: run podman system migrate, "
            "which ends its namespace, or as root mount --make-rshared /"
        )


async def remove_dead(store: Store) -> None:
    """The sessions whose processes were killed go, and their containers with them."""
    for session in await sandboxes.sessions(store.driver):
        if alive.is_dead(session.runner):
            if session.runtime == Runtime.PODMAN:
                await tell(*REMOVE, session.id)
            await sandboxes.forget(store.driver, session)


@contextlib.contextmanager
def removed_with_this_process(session: str) -> Iterator[None]:
    """Whatever ends this process ends the container meanwhile."""
    theirs, ours = os.pipe()
    try:
        try:
            watcher = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "sh", *podman(), *REMOVE, container(session)],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        try:
            yield
        finally:
            os.write(ours, b"ended\n")
            watcher.wait()
    finally:
        os.close(ours)
