"""`chatfs gc`."""

from __future__ import annotations

from tests.cli.conftest import Cli


def chats(cli: Cli) -> int:
    return len(list(cli.store.glob("workspace/*/chats/*")))


def test_nothing_to_free(demo: Cli):
    assert demo.run("gc") == "freed nothing\n"
    assert demo.run("gc", "--dry-run") == "would free nothing\n"


def test_the_trash_is_emptied_after_the_retention(demo: Cli):
    demo.run("chat", "rm", "demo/trip")
    assert demo.run("gc") == "freed nothing\n"
    out = demo.run("gc", "--retention", "0", "--dry-run")
    assert out.startswith("would free 1 chats from the trash (")
    assert chats(demo) == 1
    assert demo.run("gc", "--retention", "0") == out.replace("would free", "freed")
    assert chats(demo) == 0
    assert "trip" not in demo.run("chat", "ls", "--all", "demo")
    assert demo.json("fsck")["findings"] == []


def test_json(demo: Cli):
    demo.run("chat", "rm", "demo/trip")
    found = demo.json("gc", "--retention", "0")
    assert (found["chats"]["count"], found["dry_run"], found["notes"]) == (1, False, [])
    assert found["bytes"] == found["chats"]["bytes"] > 0


def test_a_removed_workspace_goes_too(demo: Cli):
    demo.run("chat", "rm", "demo/trip")
    demo.run("workspace", "rm", "demo")
    assert demo.json("gc", "--retention", "0")["workspaces"]["count"] == 1
    assert list(demo.store.glob("workspace/*")) == []
    demo.run("workspace", "create", "demo")


def test_what_is_left_alone_is_said(demo: Cli):
    log = demo.log_file("demo/trip")
    log.write_bytes(log.read_bytes().replace(b"hello", b"hellO"))
    code, out, err = demo.attempt("gc")
    assert (code, out) == (0, "freed nothing\n")
    assert "chatfs fsck --repair" in err
    assert err.count("\n") == 1


def test_wrong_words(demo: Cli):
    demo.fails("gc", "--retention", "soon", code=2)
    demo.fails("--store", "memory:", "gc")
