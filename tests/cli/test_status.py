"""`chatfs status`: who may append to what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, Cli
from tests.contract.git import git
from tests.support.waiting import wait_for

WRITER = textwrap.dedent("""
    import sys, trio
    from store.library import open_store

    async def main():
        async with open_store(sys.argv[1], lease_ms=int(sys.argv[2])) as store:
            chat = await (await store.workspace("demo")).chat("trip")
            await chat.append_lines([b'{"role":"user","content":"hi"}'], "test")
            print("ready", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)

    trio.run(main)
""")


@pytest.fixture
def demo(cli: Cli) -> Cli:
    cli.run("workspace", "create", "demo")
    cli.run("chat", "new", "demo/trip")
    return cli


def begin(cli: Cli, lease_ms: int = 600_000) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, f"file://{cli.store}", str(lease_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture
def writer(demo: Cli) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds demo/trip."""
    process = begin(demo)
    yield process
    process.kill()
    process.communicate()


def rows(cli: Cli) -> list[str]:
    return cli.run("status").partition("IN USE")[2].splitlines()[1:]


def files(store: Path) -> set[Path]:
    return {path.relative_to(store) for path in store.rglob("*") if "instances" in path.parts}


def test_nothing_is_in_use(demo: Cli) -> None:
    assert demo.json("status")["in_use"] == []
    assert rows(demo) == []
    assert len(files(demo.store)) <= 1
    before = files(demo.store)
    demo.run("log", "demo/trip")
    assert files(demo.store) == before


def test_a_space_in_use(demo: Cli, writer: subprocess.Popen[bytes]) -> None:
    (found,) = demo.json("status")["in_use"]
    assert found.pop("holder")
    assert found.pop("space").startswith("workspace/")
    assert 500_000 < found.pop("expires_ms") <= 600_000
    program = Path(f"/proc/{writer.pid}/comm").read_text().rstrip("\n")
    assert found == {
        "name": "demo/trip",
        "program": program,
        "pid": writer.pid,
        "uid": os.getuid(),
        "alive": True,
        "answers": True,
        "epoch": 1,
        "seq": 1,
        "lag": 0,
    }
    (row,) = rows(demo)
    assert row.startswith(f"demo/trip  {program} (pid {writer.pid}, uid {os.getuid()})  1      in ")
    assert row.endswith(" s  0")


def test_a_command_that_appends_to_it_meanwhile_forwards(demo: Cli, writer: subprocess.Popen[bytes]) -> None:
    assert demo.run("append", "demo/trip", given=b'{"role":"user","content":"from elsewhere"}\n') == "2\n"
    (found,) = demo.json("status")["in_use"]
    assert (found["pid"], found["epoch"], found["seq"], found["lag"]) == (writer.pid, 1, 2, 0)


def test_a_holder_that_is_stopped_doesnt_answer(demo: Cli, writer: subprocess.Popen[bytes]) -> None:
    os.kill(writer.pid, signal.SIGSTOP)
    try:
        (found,) = demo.json("status")["in_use"]
        assert (found["pid"], found["alive"], found["answers"], found["lag"]) == (writer.pid, True, False, None)
        assert ", doesn't answer  " in rows(demo)[0]
    finally:
        os.kill(writer.pid, signal.SIGCONT)


def test_a_holder_that_was_killed_is_dead_and_replaced_at_once(demo: Cli, writer: subprocess.Popen[bytes]) -> None:
    writer.kill()
    writer.wait()
    (found,) = demo.json("status")["in_use"]
    assert (found["pid"], found["alive"], found["epoch"]) == (None, False, 1)
    assert "  dead  " in rows(demo)[0]
    assert demo.run("append", "demo/trip", given=b'{"role":"user","content":"after"}\n') == "2\n"
    assert demo.json("status")["in_use"] == []
    assert [path.suffix for path in files(demo.store) if path.suffix] == []


def test_a_lease_that_lapsed(demo: Cli) -> None:
    process = begin(demo, 1)
    try:
        wait_for(lambda: " lapsed " in rows(demo)[0])
    finally:
        process.communicate(b"")
    assert process.returncode == 0


def test_names_are_escaped(demo: Cli, writer: subprocess.Popen[bytes]) -> None:
    demo.run("chat", "rename", "demo/trip", "right\u202eleft")
    (row,) = [row for row in rows(demo) if "left" in row]
    assert row.startswith("demo/right\\u202eleft  ")


def test_the_format_of_a_store_in_git(cli: Cli):
    repository = cli.root / "repository"
    url = f"git://{repository}"
    assert cli.attempt("--store", url, "workspace", "create", "demo")[0] == 0
    assert cli.json("--store", url, "status")["format"] == 1
    git(cli.root, "init", "-q", "--bare", "backup")
    git(repository, "push", "-q", "../backup", "refs/chatfs/*:refs/chatfs/*")
    found = cli.json("--store", f"git://{cli.root}/backup", "status")
    assert (found["format"], found["workspaces"]) == (None, 1)
