"""`chatfs workspace …`."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli


def test_a_workspace_from_its_making_to_its_end(cli: Cli) -> None:
    assert cli.run("workspace", "create", "demo", "--quota", "10G") == "made workspace demo\n"
    shown = cli.json("workspace", "show", "demo")
    assert (shown["name"], shown["quota_bytes"]) == ("demo", 10 << 30)
    assert shown["chats"] == {"chats": 0, "archive": 0, "trash": 0}
    assert shown["usage_bytes"] > 0
    assert cli.run("workspace", "rename", "demo", "work") == "renamed workspace demo to work\n"
    assert [(each["name"], each["id"]) for each in cli.json("workspace", "ls")] == [("work", shown["id"])]
    assert cli.json("workspace", "show", shown["id"])["name"] == "work"
    assert cli.run("workspace", "rm", "work") == "removed workspace work\n"
    assert cli.json("workspace", "ls") == []
    assert cli.fails("workspace", "show", "work") == "no workspace 'work': see chatfs workspace ls, or create it"
    cli.run("workspace", "create", "work")


def test_the_list_is_a_table(demo: Cli) -> None:
    demo.run("workspace", "create", "漢字", "--quota", "1.5M")
    heading, first, second = demo.run("workspace", "ls").splitlines()
    assert heading == "NAME  TITLE  CHATS  ARCHIVED  QUOTA    UPDATED"
    assert first.startswith("demo         1      0         none     20")
    assert second.startswith("漢字         0      0         1.5 MiB  20")


def test_a_quota_is_shown_set_and_lifted(demo: Cli) -> None:
    assert demo.json("workspace", "quota", "demo")["quota_bytes"] == 0
    demo.run("workspace", "quota", "demo", "1k")
    assert demo.json("workspace", "quota", "demo")["quota_bytes"] == 1024
    said = demo.fails("append", "demo/trip", given=b'{"role":"user","content":"%s"}\n' % (b"x" * 2000))
    assert "uses" in said
    assert "more don't fit (make room, or allow more with chatfs workspace quota demo SIZE)" in said
    assert said.endswith("; nothing was appended")
    assert len(demo.entries("demo/trip")) == 2
    demo.run("workspace", "quota", "demo", "none")
    assert demo.run("append", "demo/trip", given=b'"small"') == "3\n"


@pytest.mark.parametrize("size", ["10X", "", "1e3", "-5", "99999999999G"])
def test_a_size_that_is_none_is_wrong_usage(cli: Cli, size: str) -> None:
    cli.fails("workspace", "quota", "demo", "--", size, code=2)


def test_what_is_refused_says_why(demo: Cli) -> None:
    assert demo.fails("workspace", "create", "demo") == "workspace 'demo' exists already: choose another name"
    assert demo.fails("workspace", "create", "a/b") == "name 'a/b' has a slash: choose another"
    assert demo.fails("workspace", "rm", "demo") == "workspace 'demo' still has chats: remove them first"
    demo.run("chat", "rm", "demo/trip")
    demo.run("workspace", "rm", "demo")


def test_a_quota_below_what_is_used_is_pointed_out(demo: Cli) -> None:
    code, out, said = demo.attempt("workspace", "quota", "demo", "10")
    assert (code, out.splitlines()[0]) == (0, "quota  10 bytes")
    assert said.startswith("chatfs: demo uses more than its quota: ")
    assert said.count("\n") == 1
