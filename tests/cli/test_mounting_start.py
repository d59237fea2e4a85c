"""A mount in the background, until it is usable: what its process tells who started it, and who ends it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.unmount import mounts
from tests.cli.conftest import REPOSITORY, Cli
from tests.support.terminal import terminal
from tests.support.waiting import wait_for

GOLDEN = REPOSITORY / "tests/golden/v1/store"

pytestmark = pytest.mark.mount


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    found = tmp_path / "mountpoint"
    found.mkdir()
    return found


@pytest.fixture
def migrating(cli: Cli) -> Iterator[int]:
    """A store of an older format that somebody else is migrating: close the descriptor, and they have ended."""
    shutil.copytree(GOLDEN, cli.store)
    held = os.open(cli.store / "store.json", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    yield held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(held)  # each test has


def waiting_child(starter: int, store: Path) -> int:
    """The mount's process, once it waits for the store."""

    def found() -> int:
        for child in Path(f"/proc/{starter}/task/{starter}/children").read_text().split():
            try:
                links = [os.readlink(each) for each in Path(f"/proc/{child}/fd").iterdir()]
            except FileNotFoundError:
                continue
            if str(store / "store.json") in links:
                return int(child)
        return 0

    return wait_for(found, what="a process that waits for the store")


def ended(pid: int) -> bool:
    """Whether it is gone; who adopts it may not reap it."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_that_the_store_was_made_is_said_to_who_mounts(cli: Cli, mountpoint: Path) -> None:
    said = f"chatfs: made a new store at {cli.store}\n"
    assert cli.attempt("mount", mountpoint) == (0, "", said)
    cli.run("umount", mountpoint)
    (log,) = (cli.root / "state" / "chatfs").iterdir()
    assert log.read_text() == f"mounted file://{cli.store} on {mountpoint}\n"


def test_a_migration_shows_its_progress_to_who_mounts(cli: Cli, mountpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, cli.store)
    typed, state = tmp_path / "typescript", tmp_path / "state"
    command = " ".join(["env", f"XDG_STATE_HOME={state}", *cli.command("--store", cli.store, "mount", mountpoint)])
    with terminal(tmp_path, "script", "--quiet", "--return", "--command", command, typed) as shown:
        shown.ended()
    cli.run("umount", mountpoint)
    assert re.search(rb"\rmigrating the store \[[#-]{30}\] [0-9]+ of 16", typed.read_bytes())
    (log,) = (state / "chatfs").iterdir()
    assert log.read_text() == f"mounted file://{cli.store} on {mountpoint}\n"


def test_an_interrupt_ends_the_mount_that_was_waited_for(cli: Cli, migrating: int, mountpoint: Path) -> None:
    starter = cli.begin("mount", mountpoint)
    child = waiting_child(starter.pid, cli.store)
    starter.send_signal(signal.SIGINT)
    assert starter.wait(30) == 130
    assert ended(child)
    assert starter.stderr is not None
    assert starter.stderr.read() == b""
    os.close(migrating)
    assert not [each for each in mounts() if each.mountpoint == mountpoint]


def test_a_mount_that_nobody_waits_for_any_more_is_not_made(cli: Cli, migrating: int, mountpoint: Path) -> None:
    starter = cli.begin("mount", mountpoint)
    child = waiting_child(starter.pid, cli.store)
    starter.kill()
    starter.wait(15)
    os.close(migrating)
    wait_for(lambda: ended(child), what="the child's end")
    assert not [each for each in mounts() if each.mountpoint == mountpoint]


def test_a_store_that_cant_be_opened_is_said_once(cli: Cli, mountpoint: Path) -> None:
    cli.run("workspace", "create", "demo")
    (cli.store / "store.json").write_text("{")
    said = cli.fails("mount", mountpoint)
    assert "store.json" in said
    assert said == cli.fails("mount", "--foreground", mountpoint)
    code, _, err = cli.attempt("--debug", "mount", mountpoint)
    assert code == 1
    assert "Traceback" in err
    assert err.endswith(f"chatfs: {said}\n")
