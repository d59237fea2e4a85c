"""`chatfs sandbox run`: a session on a chat, a mount of it alone, and a command that has nothing else of the store.

The mount is a process of its own that ends when this one does, however that ends: it holds the other end of a pipe.
What a killed one leaves behind (a dead mount, its empty directory) the next one takes away.

Concurrency: one trio loop. The command is waited for, its output copied, the session kept alive, signals passed on.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from fusefs.cli import background, mount_records
from fusefs.cli.errors import CommandFailed
from fusefs.cli.output import complain
from fusefs.cli.targets import actor
from fusefs.sandbox import containers, terminal
from fusefs.sandbox.files import Copies, feed, standard_files
from fusefs.sandbox.inside import Inside, adopting
from fusefs.sandbox.mountpoints import mount_point, sweep
from fusefs.sandbox.record import Recorder
from fusefs.sandbox.runtimes import Runtime, Wanted, environment, hidden, words
from fusefs.unmount import lazy_unmount, mounts
from store import alive, sandboxes
from store.chat import Chat
from store.errors import NotHolder, StoreError
from store.library import Store

TYPED: Final = (signal.SIGINT, signal.SIGQUIT)
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
    await containers.remove_dead(store)
    async with sandboxes.begun(store.driver, workspace.id, chat.id, asked.runtime.value, called=chat.called) as held:
        await workspace.give_to_sandbox(chat.id, held.session.id, actor())
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
            if asked.runtime is Runtime.PODMAN:
                await containers.require_sight(mountpoint)
            await recorder.note(
                "started",
                runtime=asked.runtime.value,
                command=list(asked.command),
                **({"image": asked.image} if asked.image else {}),
                **({"read_only": True} if asked.read_only else {}),
            )
            began = time.monotonic()
            status, used = await _supervise(wanted, held, recorder if asked.record else None)
            await recorder.note("exited", **_outcome(status, time.monotonic() - began, used))
    return status if status >= 0 else 128 - status


def _outcome(status: int, seconds: float, used: resource.struct_rusage | None) -> dict[str, object]:
    found: dict[str, object] = {"code": status} if status >= 0 else {"signal": signal.Signals(-status).name}
    found["seconds"] = round(seconds, 3)
    if used is not None:
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


async def _supervise(
    wanted: Wanted, held: sandboxes.Held, recorder: Recorder | None
) -> tuple[int, resource.struct_rusage | None]:
    """Run it to its end: its status, and what it has used, where its processes are known."""
    pty = terminal.Terminal() if wanted.terminal else None
    with (
        terminal.raw() if pty is not None else contextlib.nullcontext(),
        # Before the start: the command may be signalled as soon as it runs.
        trio.open_signal_receiver(*PASSED_ON, signal.SIGTSTP, signal.SIGWINCH) as signals,
    ):
        async with _started(wanted, pty, recorded=recorder is not None) as command:
            process = command.process
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, signals, command)
                nursery.start_soon(_keep_alive, held, command)
                if process.stdin is not None:
                    nursery.start_soon(feed, process.stdin)
                if recorder is not None:
                    nursery.start_soon(recorder.gather)
                output = Copies(recorder)
                async with trio.open_nursery() as copies:
                    if pty is not None:
                        nursery.start_soon(pty.type)
                        copies.start_soon(output.copy, pty.read, "terminal", 1)
                    for stream, name, fd in ((process.stdout, "stdout", 1), (process.stderr, "stderr", 2)):
                        if stream is not None:
                            copies.start_soon(output.copy, functools.partial(stream.receive_some, _PIECE), name, fd)
                    await process.wait()
                    output.ended()
                nursery.cancel_scope.cancel()
            if recorder is not None:
                await recorder.flush()
            used = await command.used()
    assert process.returncode is not None
    return process.returncode, used


@dataclass(frozen=True, slots=True)
class _Command:
    """What was started: `process` is the runtime's."""

    wanted: Wanted
    process: trio.Process
    pty: terminal.Terminal | None
    inside: Inside | None

    async def signal(self, number: int) -> None:
        """Send it to the command itself."""
        if self.wanted.runtime is Runtime.PODMAN and number == signal.SIGTERM:
            # The first process of a container ignores what it doesn't expect.
            await containers.tell("stop", "--time", str(GRACE_SECONDS), self.wanted.session)
        elif self.inside is not None:
            await self.inside.signal(self.process, number)
        else:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def used(self) -> resource.struct_rusage | None:
        """What it and all that it has waited for have used, when it has ended."""
        if self.inside is not None:
            return await self.inside.used()
        # Podman's aren't this process's children.
        return resource.getrusage(resource.RUSAGE_CHILDREN) if self.wanted.runtime is Runtime.NONE else None

    def has_what_is_typed(self) -> bool:
        """Whether Ctrl-C and the like at the terminal reach it anyway: it is in this process's group, in front."""
        if self.pty is not None or self.inside is not None:
            return False
        try:
            tty = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return os.tcgetpgrp(tty) == os.getpgrp()
        finally:
            os.close(tty)


def _preparing(wanted: Wanted, pty: terminal.Terminal | None) -> Callable[[], None]:
    """What the child does before it is the command: it doesn't outlive this process, and has the terminal.

    In bubblewrap, which leaves them, it has none of the caller's keys (keyrings(7)); and what is typed at the terminal
    reaches it through this process, and not bubblewrap.
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
        elif wanted.runtime is Runtime.BWRAP:
            os.setpgid(0, 0)

    return prepare


@asynccontextmanager
async def _started(wanted: Wanted, pty: terminal.Terminal | None, *, recorded: bool) -> AsyncIterator[_Command]:
    isolated = wanted.runtime is Runtime.BWRAP
    stdin, stdout, stderr = standard_files(isolated=isolated, recorded=recorded) if pty is None else (None,) * 3
    with contextlib.ExitStack() as stack:
        if wanted.runtime is Runtime.PODMAN:
            stack.enter_context(containers.removed_with_this_process(wanted.session))
        inside = stack.enter_context(Inside()) if isolated else None
        if isolated:
            stack.enter_context(adopting())
        command = words(wanted if inside is None else replace(wanted, info=inside.theirs))
        passed = []
        with contextlib.ExitStack() as starting:
            if inside is not None:
                options, command = hidden(command)
                starting.callback(os.close, options)
                passed = [inside.theirs, options]
            sys.stdout.flush()
            try:
                process = await trio.lowlevel.open_process(
                    command,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    env=environment(wanted),
                    cwd=wanted.chat if wanted.runtime is Runtime.NONE else None,
                    preexec_fn=_preparing(wanted, pty),
                    pass_fds=passed,
                )
            except OSError as error:
                raise CommandFailed(f"{command[0]} can't be started: {error.strerror}") from error
        if pty is not None:
            pty.started()
            stack.callback(pty.close)
        if inside is not None:
            inside.started()
        try:
            yield _Command(wanted, process, pty, inside)
        finally:
            if process.returncode is None:
                await _kill(process, wanted)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()


async def _kill(process: trio.Process, wanted: Wanted) -> None:
    with trio.CancelScope(shield=True):
        if wanted.runtime is Runtime.PODMAN:
            await containers.tell(*containers.REMOVE, wanted.session)
        process.kill()
        await process.wait()


async def _pass_on(signals: AsyncIterator[int], command: _Command) -> None:
    async for number in signals:
        if number == signal.SIGWINCH:
            if command.pty is not None:
                command.pty.resize()
        elif number == signal.SIGTSTP:
            await _suspended(command)
        elif number not in TYPED or not command.has_what_is_typed():
            await command.signal(number)


async def _suspended(command: _Command) -> None:
    """A command that is this process's own group's is suspended with it; a sandbox goes on."""
    if command.wanted.runtime is not Runtime.NONE or command.pty is not None:
        complain("a sandbox isn't suspended: it goes on")
        return
    await command.signal(signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    await command.signal(signal.SIGCONT)


async def _keep_alive(held: sandboxes.Held, command: _Command) -> None:
    """Renew the session; a command whose session is another's now is ended."""
    try:
        await held.beat_for_ever()
    except NotHolder as error:
        complain(f"{error}: the command is ended")
        await command.signal(signal.SIGTERM)
        await trio.sleep(END_SECONDS)
        command.process.kill()


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
        signal.pidfd_send_signal(process, signal.SIGCONT)  # it may be suspended
        with trio.move_on_after(END_SECONDS):
            await trio.lowlevel.wait_readable(process)
            return True
        raise CommandFailed(f"process {session.pid} hasn't ended after {END_SECONDS} s: chatfs sandbox stop --kill")
    except ProcessLookupError:
        return True
    finally:
        os.close(process)
