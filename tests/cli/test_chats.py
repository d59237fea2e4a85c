"""`chatfs chat …`."""

from __future__ import annotations

import pytest
import trio

from store import events as ev
from store.library import open_store
from store.model import NewEntry, uuid7
from tests.cli.conftest import Cli


def names(cli: Cli, *words: str) -> list[str]:
    return [each["name"] for each in cli.json("chat", "ls", "demo", *words)]


def test_a_chat_goes_through_all_places(demo: Cli) -> None:
    assert demo.run("chat", "new", "demo/other") == "made chat demo/other\n"
    assert names(demo) == ["other", "trip"]
    demo.run("chat", "archive", "demo/trip")
    assert (names(demo), names(demo, "--archived")) == (["other", "trip"], ["trip"])
    demo.run("chat", "rm", "demo/trip")
    assert (names(demo), names(demo, "--trash"), names(demo, "--all")) == (["other"], ["trip"], ["other", "trip"])
    said = demo.fails("cat", "demo/nothing")
    assert said == "there is no chat demo/nothing: see chatfs chat ls demo"
    assert demo.fails("append", "demo/trip", given=b"1\n") == (
        "demo/trip is in the trash: bring it back with chatfs chat restore demo/trip"
    )
    assert demo.run("chat", "restore", "demo/trip") == "restored chat demo/trip\n"
    demo.run("chat", "archive", "demo/trip")
    demo.run("chat", "unarchive", "demo/trip")
    assert demo.json("chat", "show", "demo/trip")["lifecycle"] == "active"
    demo.run("chat", "rename", "demo/trip", "journey")
    assert names(demo) == ["journey", "other"]
    assert "hi there" in demo.run("cat", "demo/journey")


def test_a_chat_is_found_by_its_id_whatever_it_is_called(demo: Cli) -> None:
    identity = demo.json("chat", "show", "demo/trip")["id"]
    demo.run("chat", "rename", f"demo/{identity}", "journey")
    assert "hi there" in demo.run("cat", f"demo/{identity}")
    demo.run("chat", "rm", f"demo/{identity}")
    assert demo.json("chat", "show", f"demo/{identity}")["lifecycle"] == "trashed"
    assert "is in the trash" in demo.fails("append", f"demo/{identity}", given=b"1\n")


def test_a_chat_comes_back_under_another_name_where_its_own_is_taken(demo: Cli) -> None:
    demo.run("chat", "rm", "demo/trip")
    demo.run("chat", "new", "demo/trip")
    assert "'trip' is taken in workspace 'demo' (in chats/)" in demo.fails("chat", "restore", "demo/trip")
    demo.run("chat", "rm", "demo/trip")
    assert names(demo, "--trash") == ["trip", "trip~2"]
    demo.run("chat", "restore", "demo/trip~2")
    demo.run("chat", "restore", "demo/trip", "--name", "old")
    assert names(demo) == ["old", "trip"]
    assert "hi there" in demo.run("cat", "demo/old")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new", "demo/trip"], "'trip' is taken in workspace 'demo' (in chats/): choose another name"),
        (["new", "nowhere/x"], "no workspace 'nowhere': see chatfs workspace ls, or create it"),
        (["new", "demo/.x"], "name '.x' begins with a dot: choose another"),
        (["rename", "demo/trip", "a/b"], "name 'a/b' has a slash: choose another"),
        (["restore", "demo/trip"], "the trash has no demo/trip: see chatfs chat ls --trash demo"),
        (["archive", "demo/x"], "there is no chat demo/x: see chatfs chat ls demo"),
    ],
)
def test_what_is_refused_says_why(demo: Cli, words: list[str], said: str) -> None:
    assert demo.fails("chat", *words) == said


def test_the_long_list_opens_the_chats(demo: Cli) -> None:
    demo.run("append", "demo/trip", given=b'{"type":"chat.changed","title":"A trip"}')
    (found,) = demo.json("chat", "ls", "-l", "demo")
    assert (found["title"], found["messages"], found["last_seq"]) == ("A trip", 2, 3)
    heading, row = demo.run("chat", "ls", "-l", "demo").splitlines()
    assert heading.split() == ["NAME", "LIFECYCLE", "TITLE", "MESSAGES", "UPDATED"]
    assert row.split()[:5] == ["trip", "active", "A", "trip", "2"]


def test_the_plain_list_opens_no_chat(demo: Cli) -> None:
    async def fill() -> None:
        async with open_store(str(demo.store)) as store:
            workspace = await store.workspace("demo")
            made = [ev.ChatCreated(uuid7(), f"chat-{number:05}").encode() for number in range(10_000)]
            await workspace.append_lines([NewEntry(event, "test") for event in made])

    trio.run(fill)
    assert len(demo.run("chat", "ls", "demo").splitlines()) == 10_002
    assert len(list(demo.store.glob("workspace/*/chats/*"))) == 1, "a chat that is opened gets its directory"
