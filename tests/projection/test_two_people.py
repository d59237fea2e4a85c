"""Two people share chats through a bare repository: at the end both have every message, in one order."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from store.chat import Chat
from store.projection import binding as bindings
from store.workspace_state import Place
from tests.projection.project import ME, Person, git, person, say, texts
from tests.support import torture


@asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[Person, Person]]:
    """Ann has begun the project, and Ben has cloned it."""
    bare, ann, ben = tmp_path / "bare", tmp_path / "ann", tmp_path / "ben"
    for directory in (bare, ann):
        directory.mkdir()
    git(bare, "init", "-q", "--bare", "-b", "main")
    git(ann, "init", "-q", "-b", "main")
    git(ann, "remote", "add", "origin", str(bare))
    async with person(f"file://{tmp_path}/store-ann", ann) as first:
        await first.reconcile()
        first.commit("bound")
        git(ann, "push", "-q", "-u", "origin", "main")
        git(tmp_path, "clone", "-q", str(bare), str(ben))
        async with person(f"file://{tmp_path}/store-ben", ben) as second:
            assert second.workspace.id == first.workspace.id
            yield first, second


async def share(who: Person, *, rebase: bool = False, push: bool = True) -> None:
    """Commit, pull and push as people do; what git can't merge by itself, they add as it stands."""
    await who.reconcile()
    who.commit()
    git(who.directory, "fetch", "-q")
    if rebase:
        git(who.directory, "rebase", "-q", "origin/main", check=False)
        for _ in range(20):
            if not (who.directory / ".git" / "rebase-merge").exists():
                break
            resolve(who)
            git(who.directory, "rebase", "--continue", check=False)
    else:
        git(who.directory, "merge", "-q", "origin/main", "-m", "merged", check=False)
        if (who.directory / ".git" / "MERGE_HEAD").exists():
            resolve(who)
            git(who.directory, "commit", "-q", "-m", "merged")
    assert git(who.directory, "merge-base", "origin/main", "HEAD") == git(who.directory, "rev-parse", "origin/main")
    if push:
        git(who.directory, "push", "-q", "origin", "HEAD:main")
    await who.reconcile()
    for chat in list(who.project.externals):
        await who.project.import_external(chat)


def resolve(who: Person) -> None:
    """What people do with a conflict that they don't want to look at: all that is there is meant."""
    git(who.directory, "add", "-A")


async def settle(ann: Person, ben: Person) -> None:
    """Share until nobody has anything to say: merges of renames that both made take some rounds."""
    for number in range(10):
        await share(ann)
        await share(ben)
        if number > 2 and not any(git(who.directory, "status", "--porcelain") for who in (ann, ben)):
            break
    await share(ann)


async def test_messages_of_both_come_in_one_order(tmp_path: Path) -> None:
    async with two(tmp_path) as (ann, ben):
        mine = await ann.new("trip", "hello")
        await mine.attach("a.txt", b"ann's", ME)
        await share(ann)
        await share(ben)
        theirs = await ben.chat("trip")
        assert theirs.id == mine.id
        assert await texts(theirs) == ["hello"]
        for number in range(5):
            await say(mine, f"ann {number}")
            await say(theirs, f"ben {number}")
        await theirs.attach("b.txt", b"ben's", ME)
        await share(ann)
        await share(ben)
        await share(ann)
        both = await texts(mine)
        assert sorted(both) == sorted(["hello", *(f"{who} {number}" for who in ("ann", "ben") for number in range(5))])
        assert await texts(theirs) == both
        assert [text for text in both if text.startswith("ann")] == [f"ann {number}" for number in range(5)]
        assert (await mine.text()) == (await theirs.text())
        assert b"".join([piece async for piece in mine.read_attachment("b.txt")]) == b"ben's"
        assert b"".join([piece async for piece in theirs.read_attachment("a.txt")]) == b"ann's"
        # A merge of both texts isn't the text of both: who merged writes that, and commits it with the next change.
        await settle(ann, ben)
        assert git(ann.directory, "status", "--porcelain") == git(ben.directory, "status", "--porcelain") == ""


async def test_a_rebase_puts_ones_own_lines_behind(tmp_path: Path) -> None:
    async with two(tmp_path) as (ann, ben):
        mine = await ann.new("trip", "hello")
        await share(ann)
        await share(ben)
        theirs = await ben.chat("trip")
        await say(theirs, "ben 0")
        await share(ben)
        for number in range(3):
            await say(mine, f"ann {number}")
            await ann.reconcile()
            ann.commit(str(number))
        await share(ann, rebase=True)
        await share(ben)
        assert await texts(mine) == await texts(theirs)
        assert sorted(await texts(mine)) == ["ann 0", "ann 1", "ann 2", "ben 0", "hello"]


async def test_what_is_deleted_by_one_stays_with_the_other(tmp_path: Path) -> None:
    async with two(tmp_path) as (ann, ben):
        mine = await ann.new("trip", "hello")
        await share(ann)
        await share(ben)
        theirs = await ben.chat("trip")
        await ann.workspace.trash_chat(mine.id, ME)
        await share(ann)
        await share(ben)
        assert await texts(theirs) == ["hello"]
        assert ben.project.presence(theirs.id) == "local"


class Story:
    """What two people do, by chance; `said` is every message that must be there at the end."""

    def __init__(self, dice: random.Random, ann: Person, ben: Person) -> None:
        self.dice = dice
        self.people = {"ann": ann, "ben": ben}
        self.said: dict[str, set[str]] = {}
        self.count = 0

    async def step(self) -> str:
        name = self.dice.choice(["ann", "ben"])
        who = self.people[name]
        self.count += 1
        chats = [who.workspace.chat_by_id(chat) for chat in sorted(who.workspace.state.chats)]
        what = self.dice.choice(
            ["new", "say", "say", "say", "edit", "correct", "archive", "rename", "attach", "title", "commit", "share"]
        )
        if what == "new" or not chats:
            chat = await who.new(f"{name} {self.count}", f"{name} {self.count}")
            self.said[chat.id] = {f"{name} {self.count}"}
        elif what == "commit":
            await who.reconcile()
            who.commit()
        elif what == "share":
            await share(who, rebase=self.dice.random() < 0.4, push=self.dice.random() < 0.8)
        else:
            await self.change(who, self.dice.choice(chats), what, f"{name} {self.count}")
        if self.dice.random() < 0.4:
            await who.reconcile()
        return f"{name} {what}"

    async def change(self, who: Person, chat: Chat, what: str, text: str) -> None:
        record = who.workspace.state.chats[chat.id]
        if what == "say":
            await say(chat, text)
            self.said[chat.id].add(text)
        elif what == "edit":
            saved = await chat.text() + f"\n## assistant\n{text}\n".encode()
            await chat.save_text(saved, ME)
            self.said[chat.id].add(text)
        elif what == "correct":
            messages = await texts(chat)
            if messages:
                old = self.dice.choice(messages)
                saved = (await chat.text()).replace(f"\n{old}\n".encode(), f"\n{old}, {text}\n".encode())
                await chat.save_text(saved, ME)
        elif what == "archive":
            place = Place.CHATS if record.place is Place.ARCHIVE else Place.ARCHIVE
            await who.workspace.move_chat(chat.id, place, record.name, ME)
        elif what == "rename":
            await who.workspace.move_chat(chat.id, record.place, text, ME)
        elif what == "attach":
            await chat.attach(f"{text}.txt", text.encode(), ME)
        else:
            await chat.change(ME, title=text, labels=[text])


@pytest.mark.parametrize("number", range(torture.rounds(3, 60)))
async def test_whatever_two_people_do(tmp_path: Path, number: int) -> None:
    dice = torture.seeded(f"two people {number}")
    async with two(tmp_path) as (ann, ben):
        story = Story(dice, ann, ben)
        done = [await story.step() for _ in range(torture.either(14, 60))]
        await settle(ann, ben)
        print(done)  # noqa: T201 - pytest shows it with a failure
        for who in (ann, ben):
            names = {record.name: chat for chat, record in who.workspace.state.chats.items()}
            assert set(names.values()) == set(story.said), sorted(names)
        for chat, said in story.said.items():
            found = []
            for who in (ann, ben):
                mine = who.workspace.chat_by_id(chat)  # type: ignore[arg-type]
                # Who corrected a message put that behind it.
                assert {text.partition(",")[0] for text in await texts(mine)} == said
                assert len(await texts(mine)) == len(said)
                state, record = await mine.load(), who.workspace.state.chats[mine.id]
                for name in state.attachments:
                    bytes_ = b"".join([piece async for piece in mine.read_attachment(name)])
                    assert bytes_ == name.removesuffix(".txt").encode()
                found.append(
                    (await mine.text(), state.title, state.labels, record.name, record.place, sorted(state.attachments))
                )
                shown = orjson.loads((who.where(mine) / "chat.json").read_bytes())
                assert (shown["name"], shown["title"]) == (record.name, state.title)
            assert found[0] == found[1]
        assert git(ann.directory, "status", "--porcelain") == git(ben.directory, "status", "--porcelain") == ""


def test_a_clone_finds_its_workspace(tmp_path: Path) -> None:
    bindings.write(tmp_path, "0199b2c3-d4e5-7000-8000-0000000000ff")  # type: ignore[arg-type]
    (tmp_path / "src").mkdir()
    found = bindings.find(tmp_path / "src")
    assert found is not None
    assert found.workspace == "0199b2c3-d4e5-7000-8000-0000000000ff"
