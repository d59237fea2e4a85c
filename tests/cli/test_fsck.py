"""`chatfs fsck`."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path

import orjson

from tests.cli.conftest import Cli
from tests.support.waiting import wait_for


def spoil(cli: Cli, old: bytes = b"hello", new: bytes = b"hellO") -> None:
    log = cli.log_file("demo/trip")
    assert old in log.read_bytes()
    log.write_bytes(log.read_bytes().replace(old, new, 1))


def test_nothing_is_wrong(demo: Cli):
    out = demo.run("fsck")
    assert out.startswith("no errors, no warnings; checked 2 logs with 4 entries and 0 blobs")
    assert demo.json("fsck")["findings"] == []
    assert demo.json("fsck", "demo/trip")["summary"]["errors"] == 0


def test_errors_are_told_repaired_and_gone(demo: Cli):
    spoil(demo)
    code, out, err = demo.attempt("fsck")
    assert (code, err) == (4, "")
    first, total = out.splitlines()
    assert first.startswith("error: demo/trip: workspace/")
    assert "entry 1 can't be read" in first
    assert "(chatfs fsck --repair does what can be done)" in first
    assert total.startswith("1 error, no warnings; ")

    code, out, err = demo.attempt("fsck", "--repair")
    assert (code, err) == (1, "")
    assert out.startswith("repaired error: demo/trip: ")
    assert "quarantine/" in out
    assert demo.attempt("fsck")[0] == 0
    assert "hi there" in demo.run("cat", "demo/trip")
    assert demo.run("append", "demo/trip", "-", given=b'{"role":"user","content":"on"}\n') == "4\n"


def test_json_says_it_all(demo: Cli):
    spoil(demo)
    code, out, _ = demo.attempt("fsck", "--json", "demo")
    found = orjson.loads(out)
    assert code == 4
    assert found["summary"]["errors"] == 1
    (finding,) = found["findings"]
    assert (finding["severity"], finding["kind"], finding["where"], finding["left"]) == (
        "error",
        "log-damaged",
        "demo/trip",
        True,
    )


def test_the_worst_comes_first(demo: Cli):
    spoil(demo)
    (demo.store / "stranger").write_bytes(b"")
    (demo.store / "quarantine").mkdir(mode=0o700, exist_ok=True)
    (demo.store / "quarantine" / "x.torn").write_bytes(b"x")
    _, out, _ = demo.attempt("fsck")
    assert [line.partition(":")[0] for line in out.splitlines()][:3] == ["error", "warning", "info"]


def test_names_from_chats_cant_command_a_terminal(demo: Cli):
    demo.run("chat", "rename", "demo/trip", "a\u202eb")
    log = demo.log_file("demo/a\u202eb")
    log.write_bytes(log.read_bytes().replace(b"hello", b"hellO"))
    _, out, _ = demo.attempt("fsck")
    assert "demo/a\\u202eb" in out


def test_a_damaged_document_of_a_name_is_repaired(demo: Cli):
    (demo.store / "kv" / "names,demo.json").write_bytes(b"{")
    code, out, _ = demo.attempt("fsck")
    assert (code, out.startswith("warning: kv/names,demo.json: is no document (chatfs fsck --repair ")) == (0, True)
    assert demo.attempt("fsck", "--repair")[0] == 1
    demo.run("workspace", "rename", "demo", "other")
    assert "hi there" in demo.run("cat", "other/trip")
    assert "has 1 file of 1 byte that" in demo.run("fsck")


def test_what_cant_be_checked(cli: Cli):
    assert "no store" in cli.fails("fsck", code=8)
    cli.run("workspace", "create", "demo")
    assert "no workspace" in cli.fails("fsck", "nope", code=8)
    said = cli.fails("fsck", "demo/nope", code=8)
    assert said == "there is no chat demo/nope: see chatfs chat ls --all demo"
    assert "memory:" in cli.fails("--store", "memory:", "fsck", code=8)
    (cli.store / "store.json").write_bytes(b'{"format": 999, "id": "x"}')
    assert "newer" in cli.fails("fsck", code=8)


def test_wrong_words(cli: Cli):
    cli.fails("fsck", "--nope", code=16)
    cli.fails("fsck", "a/b/c", code=16)


def test_help_says_the_exit_codes(cli: Cli):
    out = " ".join(cli.run("fsck", "-h").split())
    for words in ("0 no errors", "1 all that was wrong", "4 errors are left", "8 it can't be checked", "16", "32"):
        assert words in out


def test_a_store_of_the_first_format_is_checked_and_stays_so(demo: Cli):
    described = demo.store / "store.json"
    described.write_bytes(orjson.dumps(orjson.loads(described.read_bytes()) | {"format": 1}))
    demo.run("fsck")
    assert orjson.loads(described.read_bytes())["format"] == 1


def test_progress_is_for_terminals(demo: Cli):
    master, slave = os.openpty()
    process = demo.begin("fsck", stderr=slave)
    os.close(slave)
    assert process.wait(30) == 0
    assert b"checked " in os.read(master, 65536)
    os.close(master)


def test_an_interrupt_ends_it(demo: Cli):
    """It waits for the lock of a log that looks damaged."""
    path = demo.log_file("demo/trip")
    spoil(demo)
    with path.open("rb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        process = demo.begin("fsck", stderr=subprocess.DEVNULL)
        descriptors = Path(f"/proc/{process.pid}/fd")
        wait_for(lambda: any(fd.exists() and fd.readlink() == path for fd in descriptors.iterdir()), 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 32
