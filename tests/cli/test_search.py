"""`chatfs search`."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.mounts import mounting
from tests.support.terminal import terminal
from tests.support.waiting import wait_for

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_a_hit_is_two_lines(demo: Cli) -> None:
    out = demo.run("search", "hello")
    assert re.fullmatch(rf"demo/chats/trip/history\.md:3: message 1, user, {TIME}\n    hello\n", out)
    line = int(out.split(":")[1])
    assert demo.run("cat", "demo/trip").splitlines()[line - 1] == "hello"


def test_every_kind_says_where_it_is(demo: Cli, tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(b"bytes")
    demo.run("attach", "demo/trip", tmp_path / "report.pdf")
    demo.run("append", "demo/trip", "-", given=b'{"type":"chat.changed","title":"Summer","labels":["urgent"]}\n')
    assert demo.run("search", "report") == "demo/chats/trip/attachments/report.pdf: attachment\n    report.pdf\n"
    assert demo.run("search", "summer") == "demo/chats/trip: title\n    Summer trip\n"
    assert demo.run("search", "urgent") == "demo/chats/trip/chat.json: label\n    urgent\n"
    demo.run("chat", "archive", "demo/trip")
    assert demo.run("search", "trip", "--in", "titles").startswith("demo/archive/trip: title\n")
    assert demo.run("search", "trip", "--in", "titles", "--in", "labels").startswith("demo/archive/trip: title\n")


def test_json(demo: Cli) -> None:
    (found,) = demo.json("search", "there", "--role", "assistant")
    assert re.fullmatch(TIME, found.pop("time"))
    assert found.pop("chat_id") == demo.json("chat", "show", "demo/trip")["id"]
    assert found.pop("message")
    assert found.pop("score") > 0
    assert found == {
        "kind": "message",
        "workspace": "demo",
        "chat": "trip",
        "lifecycle": "active",
        "path": "demo/chats/trip/history.md",
        "line": 7,
        "number": 2,
        "role": "assistant",
        "snippet": "hi there",
        "marks": [[3, 8]],
    }


def test_nothing_found_is_exit_code_1(demo: Cli) -> None:
    demo.run("search", "hello")
    assert demo.fails("search", "nowhere") == "nothing is found: --trash looks in the trash, too"
    assert demo.fails("search", "nowhere", "--trash") == "nothing is found"
    code, out, err = demo.attempt("search", "nowhere", "--json")
    assert (code, out) == (1, "[]\n")
    assert err == "chatfs: nothing is found: --trash looks in the trash, too\n"


def test_words_that_begin_with_a_minus(demo: Cli) -> None:
    demo.run("append", "demo/other", "-", "--create", given=b'{"role":"user","content":"hello hotel"}\n')
    for words in (["hello", "-hotel"], ["-hotel", "hello"], ["hello -hotel"], ["--", "-hotel", "hello"]):
        assert "demo/chats/trip/" in demo.run("search", *words)
        assert "other" not in demo.run("search", *words)
    assert "-word must not occur" in " ".join(demo.run("search", "hello", "-h").split())
    assert "unrecognized arguments: --hotel" in demo.fails("search", "hello", "--hotel", code=2)
    assert "at least one word" in demo.fails("search", "-hotel")


def test_the_trash_is_found_if_asked(demo: Cli) -> None:
    demo.run("chat", "rm", "demo/trip")
    demo.fails("search", "hello")
    assert demo.run("search", "hello", "--trash").startswith("demo/trash/trip/history.md:3: ")
    demo.run("chat", "restore", "demo/trip")
    assert demo.run("search", "hello").startswith("demo/chats/trip/history.md:3: ")


def test_what_is_wrong_is_said(demo: Cli) -> None:
    assert "no workspace 'other'" in demo.fails("search", "hello", "--workspace", "other")
    assert "--limit 0" in demo.fails("search", "hello", "--limit", "0")
    assert "invalid choice" in demo.fails("search", "hello", "--in", "chats", code=2)
    assert "WORDS" in demo.fails("search", code=2)


def test_a_bad_index_costs_one_line(demo: Cli) -> None:
    first = demo.run("search", "hello")
    (demo.store / "index.db").write_bytes(b"garbage" * 1000)
    code, out, err = demo.attempt("search", "hello")
    assert (code, out) == (0, first)
    assert err.count("\n") == 1
    assert "index.db is kept as index.db.bad and built anew" in err
    assert demo.run("search", "hello", "--rebuild") == first
    (demo.store / "index.db").unlink()
    assert demo.run("search", "hello") == first


def test_a_terminal_obeys_nothing_that_was_found(demo: Cli) -> None:
    demo.run("append", "demo/trip", "-", given=b'{"role":"user","content":"needle \\u001b[31mred\\u202e\\u0007"}\n')
    assert demo.run("search", "needle").endswith("    needle \\x1b[31mred\\u202e\\x07\n")


def test_on_a_terminal_the_words_are_bold(demo: Cli) -> None:
    main, terminal = os.openpty()
    try:
        searching = demo.begin("search", "there", stdout=terminal)
        assert searching.wait(30) == 0
        assert os.read(main, 10_000).decode().endswith("    hi \x1b[1mthere\x1b[22m\r\n")
    finally:
        os.close(main)
        os.close(terminal)


@pytest.mark.mount
def test_a_mount_keeps_the_index_up(tmp_path: Path) -> None:
    with mounting(tmp_path) as mounted:
        chat = mounted.workspace("demo").chat("trip")
        chat.say("needle")

        def indexed() -> bool:
            try:
                with sqlite3.connect(mounted.store / "index.db") as connection:
                    return connection.execute("SELECT count(*) FROM words WHERE words MATCH 'needle'").fetchone()[0] > 0
            except sqlite3.Error:
                return False

        wait_for(indexed, what="the message in the index")


def test_a_terminal_shows_how_far_the_index_is(demo: Cli, tmp_path: Path) -> None:
    typed = tmp_path / "typescript"
    chatfs = " ".join(demo.command("--store", demo.store, "search", "hello", "--rebuild"))
    with terminal(tmp_path, "script", "--quiet", "--return", "--command", chatfs, typed) as shown:
        shown.ended()
    assert re.search(rb"\rindexing: [0-9]+ of [0-9]+ chats", typed.read_bytes())
    assert b"history.md:3" in typed.read_bytes()
