"""`chatfs sandbox run`: a session on a chat, a mount of it alone, and a command that has nothing else of the store.

The mount is a process of its own that ends when this one does, however that ends: it holds the other end of a pipe.
What a killed one leaves behind (a dead mount, its empty directory) the next one takes away.

Concurrency: one trio loop. The command is waited for, its output copied, the session kept alive, signals passed on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from fusefs.cli import background, mount_records
from fusefs.cli.errors import CommandFailed
from fusefs.cli.output import complain
from fusefs.cli.targets import actor
from fusefs.sandbox import terminal
from fusefs.sandbox.mountpoints import mount_point, sweep
from fusefs.sandbox.record import Recorder
from fusefs.sandbox.runtimes import Runtime, Wanted, container, environment, podman, words
from fusefs.unmount import lazy_unmount, mounts
from store import alive, sandboxes
from store.chat import Chat
from store.errors import NotHolder, StoreError
from store.library import Store

PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS: Final = 5
"""How long a container may take to end when it is asked to."""
END_SECONDS: Final = 10
"""How long a command that lost its chat may take to end."""
_PR_SET_PDEATHSIG: Final = 1
_KEYCTL: Final = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
"""The number of the system call keyctl(2)."""
_NEW_SESSION_KEYRING: Final = 1
_PIECE: Final = 65536

_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Asked:
    """The words of the command line."""

    runtime: Runtime
    command: tuple[str, ...]
    image: str = ""
    network: bool = False
    read_only: bool = False
    append_only: bool = False
    record: bool = False
    settings: tuple[str, ...] = ()


async def run(store: Store, url: str, chat: Chat, asked: Asked) -> int:
    """Run the command; its exit status, 128 + N where signal N ended it. Raises ChatBusy, CommandFailed, UsageError."""
    # What can't be started at all is said before anything is made.
    words(Wanted(asked.runtime, Path("/"), asked.command, asked.image))
    workspace = chat.workspace
    await remove_containers(store)
    async with sandboxes.begun(store.driver, workspace.id, chat.id, asked.runtime.value, called=chat.called) as held:
        await workspace.load()
        if chat.id not in workspace.state.chats:
            raise CommandFailed(f"{chat.called} was deleted just now")
        recorder = Recorder(chat, held.session.id, actor())
        with _mounted(url, f"{workspace.id}/{chat.id}", asked) as mountpoint:
            wanted = Wanted(
                asked.runtime,
                mountpoint,
                asked.command,
                asked.image,
                network=asked.network,
                terminal=terminal.is_there(),
                settings=asked.settings,
                session=held.session.id,
            )
            await recorder.note(
                "started",
                runtime=asked.runtime.value,
                command=list(asked.command),
                **({"image": asked.image} if asked.image else {}),
                **({"read_only": True} if asked.read_only else {}),
            )
            began = time.monotonic()
            status = await _supervise(wanted, held, recorder if asked.record else None)
            await recorder.note("exited", **_outcome(status, time.monotonic() - began, asked.runtime))
    return status if status >= 0 else 128 - status


def _outcome(status: int, seconds: float, runtime: Runtime) -> dict[str, object]:
    found: dict[str, object] = {"code": status} if status >= 0 else {"signal": signal.Signals(-status).name}
    found["seconds"] = round(seconds, 3)
    if runtime is not Runtime.PODMAN:  # whose containers aren't this process's children
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found |= {
            "user_seconds": round(used.ru_utime, 3),
            "system_seconds": round(used.ru_stime, 3),
            "max_rss_bytes": used.ru_maxrss * 1024,
        }
    return found


# ---- the mount


@contextlib.contextmanager
def _mounted(url: str, root: str, asked: Asked) -> Iterator[Path]:
    """A mount of the chat alone, as long as this process lives."""
    sweep()
    with mount_point() as mountpoint:
        theirs, ours = os.pipe()
        try:
            options = ["--read-only"] * asked.read_only + ["--append-only"] * asked.append_only
            words = ["mount", str(mountpoint), "--store", url, "--root", root, *options]
            try:
                background.start(mountpoint, words, theirs)
            finally:
                os.close(theirs)
            yield mountpoint
        finally:
            os.close(ours)  # it unmounts now
            record = mount_records.find(mountpoint)
            if record is not None and not record.wait(END_SECONDS):
                complain(f"process {record.pid} is still writing: see {mount_records.log_path(mountpoint)}")
            if any(each.mountpoint == mountpoint for each in mounts()):
                with contextlib.suppress(StoreError):
                    lazy_unmount(mountpoint)


# ---- the command


async def remove_containers(store: Store) -> None:
    """Podman's containers outlive the process that ran them where that was killed. They go, and their sessions, too."""
    for session in await sandboxes.sessions(store.driver):
        if session.runtime == Runtime.PODMAN and alive.is_dead(session.runner):
            await _podman("rm", "--force", "--time", "0", session.id)
            await sandboxes.forget(store.driver, session)


async def _podman(*words: str) -> None:
    """Tell podman to do it to a container, which may be gone already."""
    *what, session = words
    with contextlib.suppress(OSError, CommandFailed):
        await trio.run_process(
            [*podman(), *what, container(session)], check=False, capture_stdout=True, capture_stderr=True
        )


async def _supervise(wanted: Wanted, held: sandboxes.Held, recorder: Recorder | None) -> int:
    """Run it to its end."""
    pty = terminal.Terminal() if wanted.terminal else None
    with (
        terminal.raw() if pty is not None else contextlib.nullcontext(),
        # Before the start: the command may be signalled as soon as it runs.
        trio.open_signal_receiver(*PASSED_ON, signal.SIGWINCH) as signals,
    ):
        async with _started(wanted, pty, recorded=recorder is not None) as process:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, signals, process, pty, wanted)
                nursery.start_soon(_keep_alive, held, process)
                if recorder is not None:
                    nursery.start_soon(recorder.gather)
                async with trio.open_nursery() as copies:
                    if pty is not None:
                        nursery.start_soon(pty.type)
                        copies.start_soon(_show, pty, recorder)
                    for stream, name, fd in ((process.stdout, "stdout", 1), (process.stderr, "stderr", 2)):
                        if stream is not None and recorder is not None:
                            copies.start_soon(_copy, stream, name, fd, recorder)
                    await process.wait()
                nursery.cancel_scope.cancel()
            if recorder is not None:
                await recorder.flush()
    assert process.returncode is not None
    return process.returncode


def _preparing(wanted: Wanted, pty: terminal.Terminal | None) -> Callable[[], None]:
    """What the child does before it is the command: it doesn't outlive this process, and has the terminal.

    In bubblewrap, which leaves them, it has none of the caller's keys (keyrings(7)).
    """
    parent = os.getpid()
    keyctl = _KEYCTL.get(os.uname().machine) if wanted.runtime is Runtime.BWRAP else None

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        if keyctl is not None:
            _libc.syscall(keyctl, _NEW_SESSION_KEYRING, None)
        if pty is not None:
            pty.enter()

    return prepare


@asynccontextmanager
async def _started(wanted: Wanted, pty: terminal.Terminal | None, *, recorded: bool) -> AsyncIterator[trio.Process]:
    pipe = subprocess.PIPE if recorded and pty is None else None
    command = words(wanted)
    sys.stdout.flush()
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdout=pipe,
            stderr=pipe,
            env=environment(wanted),
            cwd=wanted.chat if wanted.runtime is Runtime.NONE else None,
            preexec_fn=_preparing(wanted, pty),
        )
    except OSError as error:
        raise CommandFailed(f"{command[0]} can't be started: {error.strerror}") from error
    if pty is not None:
        pty.started()
    try:
        yield process
    finally:
        if process.returncode is None:
            await _kill(process, wanted)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()
        if pty is not None:
            pty.close()


async def _kill(process: trio.Process, wanted: Wanted) -> None:
    with trio.CancelScope(shield=True):
        if wanted.runtime is Runtime.PODMAN:
            await _podman("rm", "--force", "--time", "0", wanted.session)
        process.kill()
        await process.wait()


async def _pass_on(
    signals: AsyncIterator[int], process: trio.Process, pty: terminal.Terminal | None, wanted: Wanted
) -> None:
    async for number in signals:
        if number == signal.SIGWINCH:
            if pty is not None:
                pty.resize()
        elif number == signal.SIGTERM and wanted.runtime is Runtime.PODMAN:
            # The first process of a container ignores what it doesn't expect.
            await _podman("stop", "--time", str(GRACE_SECONDS), wanted.session)
        else:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


async def _keep_alive(held: sandboxes.Held, process: trio.Process) -> None:
    """Renew the session; a command whose session is another's now is ended."""
    try:
        await held.beat_for_ever()
    except NotHolder as error:
        complain(f"{error}: the command is ended")
        process.terminate()
        await trio.sleep(END_SECONDS)
        process.kill()


async def _show(pty: terminal.Terminal, recorder: Recorder | None) -> None:
    async def heard(piece: bytes) -> None:
        if recorder is not None:
            await recorder.output("terminal", piece)

    await pty.show(heard)


async def _copy(stream: trio.abc.ReceiveStream, name: str, fd: int, recorder: Recorder) -> None:
    """What the command writes goes on to this process's own, and into the log."""
    while piece := await stream.receive_some(_PIECE):
        await recorder.output(name, bytes(piece))
        try:
            await terminal.write_all(fd, bytes(piece))
        except BrokenPipeError:
            fd = os.open(os.devnull, os.O_WRONLY)  # nobody reads it any more; the log does


async def stop(session: sandboxes.SandboxSession, *, kill: bool = False) -> bool:
    """End the process that runs a session, and with it the command; False where this machine doesn't know it."""
    if not alive.is_here(session.runner):
        return False
    try:
        process = os.pidfd_open(session.pid)
    except ProcessLookupError:
        return True
    try:
        if alive.is_dead(session.runner):  # the number has been given to another since
            return True
        signal.pidfd_send_signal(process, signal.SIGKILL if kill else signal.SIGTERM)
        with trio.move_on_after(END_SECONDS):
            await trio.lowlevel.wait_readable(process)
            return True
        raise CommandFailed(f"process {session.pid} hasn't ended after {END_SECONDS} s: chatfs sandbox stop --kill")
    except ProcessLookupError:
        return True
    finally:
        os.close(process)
