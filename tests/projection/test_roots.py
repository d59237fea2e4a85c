"""Archive, unarchive, trash and restore act on both roots; a kill between them is made good by the next start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from store.workspace_state import Place
from tests.projection.project import ME, Person, texts
from tests.projection.test_kill import run
from tests.support import torture

Act = Callable[[Person], Any]


async def _to(me: Person, place: Place) -> None:
    record = me.workspace.state.find_in(place, "a") or next(iter(me.workspace.state.chats.values()))
    await me.workspace.move_chat(record.id, place, record.name, ME)
    await me.workspace.space.sync()


async def archive(me: Person) -> None:
    await _to(me, Place.ARCHIVE)


async def unarchive(me: Person) -> None:
    await _to(me, Place.CHATS)


async def trash(me: Person) -> None:
    await _to(me, Place.TRASH)


restore = unarchive


@pytest.mark.parametrize("anew", [False, True], ids=["written out", "started anew"])
@pytest.mark.parametrize(
    ("before", "act"),
    [([], archive), ([archive], unarchive), ([], trash), ([archive], trash), ([trash], restore)],
    ids=["archive", "unarchive", "trash", "trash archived", "restore"],
)
def test_a_kill_between_the_two_roots(  # noqa: PLR0915 - one story
    tmp_path: Path, before: list[Act], act: Act, *, anew: bool
) -> None:
    work, kept = tmp_path / "work", tmp_path / "kept"
    store, project = work / "store", work / "project"
    project.mkdir(parents=True)

    async def begin(me: Person) -> None:
        chat = await me.new("a", "one")
        await chat.attach("x", b"bytes", ME)
        await me.reconcile()
        for each in before:
            await each(me)
        await me.reconcile()

    async def do(me: Person) -> None:
        await me.workspace.load()
        await act(me)
        if anew:
            await me.project.reconcile()
        else:
            await me.project.look()
            await me.project.write_out(list(me.workspace.state.chats))

    async def look(me: Person) -> None:
        await me.reconcile()
        (record,) = me.workspace.state.chats.values()
        copies = [orjson.loads(path.read_bytes())["place"] for path in me.chats.glob("*/chat.json")]
        assert copies == ([] if record.place is Place.TRASH else [record.place.value])
        assert len(list(me.chats.iterdir())) == len(copies)
        chat = me.workspace.chat_by_id(record.id)
        assert await texts(chat) == ["one"]
        assert list((await chat.load()).attachments) == ["x"]
        # What the command was about happened, or it didn't: what it was before is the only other way.
        assert record.place in allowed

    async def note(me: Person) -> None:
        (record,) = (await me.workspace.load()).chats.values()
        (tmp_path / "place").write_text(record.place.value)

    def place() -> Place:
        assert not run(store, project, note)
        return Place((tmp_path / "place").read_text())

    assert not run(store, project, begin)
    allowed = {place()}
    shutil.copytree(work, kept)
    assert not run(store, project, do)
    allowed.add(place())
    assert len(allowed) == 2
    assert not run(store, project, look)
    every = torture.either(4, 1)
    at = 1 + torture.seeded(f"roots {act.__name__}").randrange(every)
    kills = 0
    while True:
        shutil.rmtree(work)
        shutil.copytree(kept, work)
        if not run(store, project, do, at, after=kills % 2 == 1):
            break
        kills += 1
        assert not run(store, project, look), f"killed at call {at}"
        at += every
    assert kills > 0
