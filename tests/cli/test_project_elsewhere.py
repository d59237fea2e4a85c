"""A chat that is only in the project, when another process takes it in just now. Git and processes are real."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
import trio

from store.library import open_store
from store.projection import binding as bindings
from store.projection.manifest import LOCK
from store.projection.project import open_project
from tests.cli.test_project import HELLO, Work, ann, ben
from tests.support.waiting import wait_for

__all__ = ["ann", "ben"]


@pytest.mark.parametrize("which", ["name", "id"])
def test_a_command_that_waited_for_it_finds_it_in_the_store(ben: Work, tmp_path: Path, which: str) -> None:
    (there,) = ben.cli.json("chat", "ls", "demo")
    assert there["presence"] == "external"
    (space,) = ben.cli.store.glob("workspace/*")
    with (space / LOCK).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (tmp_path / "lines").write_bytes(HELLO)
        waiting = ben.cli.begin("append", f"demo/{there[which]}", tmp_path / "lines")
        wait_for(lambda: _has_open(waiting.pid, space / LOCK), what="the command")
        trio.run(_import_all, ben)
        fcntl.flock(file, fcntl.LOCK_UN)
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, err) == (0, b"")
    assert int(out) == 3
    assert ben.presence() == {"trip": "projected"}


def test_an_export_of_all_says_what_it_leaves_out(ben: Work, tmp_path: Path) -> None:
    said = "1 chat is only in demo's project, and left out: chatfs project sync --import brings them into the store"
    for words in (("export", "demo", "--jsonl", "-o", tmp_path / "stream"), ("export", "jp", "demo", tmp_path / "jp")):
        assert ben.cli.attempt(*words) == (0, "", f"chatfs: {said}\n")
    ben.cli.run("project", "sync", "--import", ben.directory)
    ben.cli.run("export", "demo", "--jsonl", "-o", tmp_path / "stream")


async def _import_all(person: Work) -> None:
    async with open_store(str(person.cli.store)) as store:
        workspace = await store.workspace("demo")
        binding = await bindings.remembered(store, workspace.id)
        assert binding is not None
        async with open_project(workspace, binding, looks=True) as project:
            await project.look()
            for chat in list(project.externals):
                await project.import_external(chat)


def _has_open(process: int, path: Path) -> bool:
    """Whether the process has opened the file: it tries to lock it from then on."""
    try:
        found = [link.readlink() for link in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return False
    return path in found
