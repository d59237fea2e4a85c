"""SIGKILL at every call that changes a file, while copies are brought together: the next start finishes it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from store import durability
from store.workspace_state import Place
from tests.projection.project import ME, Person, person, say, snapshot, texts
from tests.support import torture

LINE = b'{"ts":%d,"actor":"x","data":{"type":"message.appended","id":"m%d","role":"user","content":"%b"}}\n'


class Killing:
    """Stands in for `durability.system`: this process ends just before, or just after, its call number `at`."""

    def __init__(self, real: durability.System, at: int, *, after: bool) -> None:
        self._real = real
        self._at = at
        self._after = after
        self._numbers = itertools.count(1)  # counts for several threads at once

    def __getattr__(self, call: str) -> Any:
        real: Callable[..., Any] = getattr(self._real, call)

        def made(label: str, *arguments: Any) -> Any:
            if next(self._numbers) == self._at:
                if call in {"write", "pwrite"} and not self._after:
                    fd, data, *offset = arguments
                    real(label, fd, data[: len(data) // 2], *offset)
                elif self._after:
                    with contextlib.suppress(OSError):  # else the work would go on, and no later call be tried
                        real(label, *arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(label, *arguments)

        return made


async def prepare(me: Person) -> None:
    """Both copies are the same, and then every kind of change is made to one of them or the other."""
    names = ["grown", "renamed", "trashed", "longer", "merged", "forked", "deleted", "attached", "local", "archived"]
    chats = {name: await me.new(name, "one", "two") for name in names}
    outside = await me.new("outside", "one")
    await outside.attach("x", b"bytes", ME)
    await me.reconcile()
    kept = me.directory.with_name("kept")
    shutil.copytree(me.where(outside), kept)
    await say(chats["grown"], "three")
    await me.workspace.move_chat(chats["renamed"].id, Place.CHATS, "called otherwise", ME)
    await me.workspace.trash_chat(chats["trashed"].id, ME)
    await me.workspace.move_chat(chats["archived"].id, Place.ARCHIVE, "archived", ME)
    await chats["attached"].attach("a", b"bytes", ME)
    await chats["local"].change(ME, projection="local")
    await (await me.new("new", "one")).attach("a", b"bytes", ME)
    for name in ("longer", "merged", "forked"):
        path = me.where(chats[name]) / "history.jsonl"
        first, second = path.read_bytes().splitlines(keepends=True)
        added = LINE % (7, 1, b"three")
        path.write_bytes(
            {"longer": first + second, "merged": first, "forked": b""}[name]
            + added
            + (second if name == "merged" else b"")
        )
        os.utime(path, ns=(1 << 61, 1 << 61))
    shutil.rmtree(me.where(chats["deleted"]))
    (me.where(chats["longer"]) / "attachments").mkdir()
    (me.where(chats["longer"]) / "attachments" / "b").write_bytes(b"by hand")


async def finish(me: Person) -> None:
    """Both are brought together, and the chat that is only in the project is imported."""
    await me.project.reconcile()
    for chat in list(me.project.externals):
        await me.project.import_external(chat)


async def outcome(me: Person) -> dict[str, Any]:
    """What everything is about in the end, whatever happened on the way."""
    state = await me.workspace.load()
    found = {}
    for record in state.chats.values():
        chat = me.workspace.chat_by_id(record.id)
        attachments = sorted((await chat.load()).attachments)
        projected = me.project.presence(record.id)
        found[record.name.partition(" (conflict")[0] + record.id[-4:]] = (
            record.place,
            await texts(chat),
            attachments,
            projected,
        )
        if projected == "projected":
            where = me.where(chat)
            assert (where / "history.md").read_bytes() == await chat.text()
            for name in attachments:
                data = b"".join([piece async for piece in chat.read_attachment(name)])
                assert (where / "attachments" / name).read_bytes() == data
    return found


def prepared(tmp_path: Path) -> tuple[Path, Path]:
    """A store and a project as `prepare` leaves them, and a second store for which one chat is external."""
    store, project = tmp_path / "store", tmp_path / "project"
    project.mkdir(parents=True)

    async def make() -> None:
        async with person(f"file://{store}", project) as me:
            await prepare(me)

    trio.run(make)
    foreign = tmp_path / "kept"
    name = "20200101T000000Z-foreign"
    shutil.copytree(foreign, project / ".chatfs" / "chats" / name)
    path = project / ".chatfs" / "chats" / name / "chat.json"
    text = path.read_text()
    (line,) = [line for line in text.splitlines() if '"id"' in line]
    other = "e" if line[-3] != "e" else "f"
    path.write_text(text.replace(line, f'{line[:-3]}{other}",').replace('"outside"', '"foreign"'))
    return store, project


def run(store: Path, project: Path, work: Callable[[Person], Any], kill_at: int = 0, *, after: bool = False) -> bool:
    """Do `work` in a child; whether it was killed."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return True
        assert status == 0
        return False
    code = 1
    try:

        async def main() -> None:
            async with person(f"file://{store}", project) as me:
                if kill_at:
                    durability.system = Killing(durability.system, kill_at, after=after)  # type: ignore[assignment]
                await work(me)

        trio.run(main)
        code = 0
    except BaseException:  # noqa: BLE001 - the child says what it died of
        traceback.print_exc()
    finally:
        os._exit(code)
    raise AssertionError


def test_the_next_start_finishes_what_a_kill_has_left(tmp_path: Path) -> None:
    work = prepared(tmp_path / "work")
    shutil.copytree(tmp_path / "work", tmp_path / "kept")

    def fresh() -> None:
        """As it was prepared: the same times, in the same place."""
        shutil.rmtree(tmp_path / "work")
        shutil.copytree(tmp_path / "kept", tmp_path / "work")

    def final(at_store: Path, at_project: Path) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        async def look() -> None:
            async with person(f"file://{at_store}", at_project) as me:
                await finish(me)
                report = await me.reconcile()
                before = snapshot(at_project)
                assert (await me.reconcile()).written == 0
                assert snapshot(at_project) == before
                assert not [path for path in before if ".tmp" in path], report
                found.append(await outcome(me))

        trio.run(look)
        return found[0]

    expected = final(*work)
    assert len(expected) == 14
    assert sum(projected == "projected" for *_, projected in expected.values()) == 11
    every = torture.either(11, 1)
    at = 1 + torture.seeded("projection kill").randrange(every)
    kills = 0
    while True:
        after = kills % 2 == 1
        fresh()
        if not run(*work, finish, at, after=after):
            break
        kills += 1
        assert final(*work) == expected, f"killed at call {at}"
        at += every
    assert kills > 10


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_a_tail_is_written_out(tmp_path: Path, *, after: bool) -> None:
    store, project = tmp_path / "store", tmp_path / "project"
    project.mkdir()

    async def begin(me: Person) -> None:
        await me.new("a", "one")
        await me.reconcile()

    async def follow(me: Person) -> None:
        chat = await me.chat("a")
        await say(chat, "next")
        await me.project.write_out([chat.id])

    async def look(me: Person) -> None:
        chat = await me.chat("a")
        await me.reconcile()
        assert (me.where(chat) / "history.md").read_bytes() == await chat.text()
        assert len(me.lines(chat)) == len(await texts(chat))

    run(store, project, begin)
    at = 1
    while run(store, project, follow, at, after=after):
        assert not run(store, project, look)
        at += 1
    assert at > 5
