"""`chatfs append`, `log`, `cat` and `attach`."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from fusefs.cli.log import BATCH_LINES
from tests.cli.conftest import REPOSITORY, Cli
from tests.support.mounts import data


def line(content: str, **more: Any) -> bytes:
    return orjson.dumps({"role": "user", "content": content, **more}) + b"\n"


# ---- append


def test_lines_become_entries_of_one_batch(demo: Cli) -> None:
    given = line("three") + b"\n" + b' {"type":"note", "n": 1.50}\n' + b"[1, 2]\n" + b'"unended"'
    assert demo.json("append", "demo/trip", given=given) == {"last_seq": 6, "lines": 5}
    entries = demo.entries("demo/trip")[2:]
    assert [entry.data for entry in entries[1:]] == [b'{"type":"note", "n": 1.50}', b"[1, 2]", b'"unended"']
    assert data(entries[:1])[0]["content"] == "three"
    assert [entry.more for entry in entries] == [3, 2, 1, 0]
    assert {entry.actor for entry in entries} == {f"uid:{os.getuid()}/chatfs"}


def test_a_file_can_be_named(demo: Cli, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(line("a") + line("b"))
    assert demo.run("append", "demo/trip", tmp_path / "lines.jsonl") == "4\n"
    assert demo.fails("append", "demo/trip", tmp_path / "none") == f"{tmp_path}/none: No such file or directory"
    assert demo.fails("append", "demo/trip", tmp_path) == f"{tmp_path} is a directory: name files"


def test_no_lines_change_nothing(demo: Cli) -> None:
    assert demo.run("append", "demo/trip") == "2\n"
    assert demo.run("append", "demo/trip", given=b"\n\n") == "2\n"


def test_a_bad_line_is_named_and_nothing_of_its_batch_appended(demo: Cli) -> None:
    said = demo.fails("append", "demo/trip", given=line("a") + b"\n{bad\n" + line("b"))
    assert said.startswith("line 3 is not JSON (")
    assert said.endswith("): give one JSON value per line; nothing was appended")
    assert len(demo.entries("demo/trip")) == 2


def test_of_a_long_input_the_batches_before_a_bad_line_are_there_and_said(demo: Cli) -> None:
    given = b"1\n" * (BATCH_LINES + 5) + b"bad\n"
    said = demo.fails("append", "demo/trip", given=given)
    assert said.startswith(f"line {BATCH_LINES + 6} is not JSON")
    assert said.endswith(f"; lines 1 to {BATCH_LINES} were appended (last seq {BATCH_LINES + 2})")
    assert len(demo.entries("demo/trip")) == BATCH_LINES + 2


def test_a_line_that_is_too_long_is_refused_whole(demo: Cli) -> None:
    said = demo.fails("append", "demo/trip", given=line("x" * (17 << 20)) + line("after"))
    assert said.startswith("line 1 has ")
    assert said.endswith("; nothing was appended")
    assert len(demo.entries("demo/trip")) == 2


def test_bad_lines_make_no_chat(demo: Cli) -> None:
    demo.fails("append", "demo/new", "--create", given=b"bad\n")
    assert demo.fails("append", "demo/new", given=b"1\n") == "there is no chat demo/new: see chatfs chat ls demo"
    assert demo.run("append", "demo/new", "--create", given=b"1\n") == "1\n"
    assert demo.run("append", "demo/new", "--create", given=b"1\n") == "2\n"


def test_many_processes_append_at_once_and_nothing_is_lost(demo: Cli) -> None:
    writers = [demo.begin("append", "demo/trip", stdin=subprocess.PIPE) for _ in range(4)]
    for number, writer in enumerate(writers):
        assert writer.stdin is not None
        writer.stdin.write(b"".join(line(f"{number}-{index}") for index in range(100)))
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0] * 4
    said = [event["content"] for event in data(demo.entries("demo/trip"))[2:]]
    assert sorted(said) == sorted(f"{number}-{index}" for number in range(4) for index in range(100))
    for start in range(0, 400, 100):
        assert {each.split("-")[0] for each in said[start : start + 100]} == {said[start].split("-")[0]}


def test_a_copied_log_keeps_who_wrote_it_as_origin(demo: Cli) -> None:
    copy = demo.run("log", "demo/trip")
    demo.run("append", "demo/copy", "--create", given=copy.encode())
    first, second = demo.entries("demo/trip"), demo.entries("demo/copy")
    assert [entry.data for entry in second] == [entry.data for entry in first]
    assert [(entry.origin.actor, entry.origin.ts) for entry in second if entry.origin] == [
        (entry.actor, entry.ts) for entry in first
    ]
    assert demo.run("log", "demo/copy").encode() == demo.log_file("demo/copy").read_bytes()


# ---- log


def test_the_log_is_printed_byte_for_byte(demo: Cli) -> None:
    demo.run("append", "demo/trip", given=line("ünï \x7f\u0085 \U0001f600") + b"{}\n")
    lines = demo.log_file("demo/trip").read_bytes().splitlines(keepends=True)
    for words, expected in (
        ([], lines),
        (["--since", "1"], lines[1:]),
        (["--since", "1", "--limit", "2"], lines[1:3]),
        (["--reverse"], lines[::-1]),
        (["--reverse", "--limit", "2"], lines[:-3:-1]),
        (["--since", "99"], []),
        (["--limit", "0"], []),
        (["--follow", "--limit", "4"], lines),
    ):
        done = subprocess.run(
            demo.command("log", "demo/trip", *words),
            check=True,
            capture_output=True,
            env=demo.environment,
            cwd=REPOSITORY,
        )
        assert done.stdout.splitlines(keepends=True) == expected, words


def test_a_workspace_has_a_log_of_its_own(demo: Cli) -> None:
    types = [orjson.loads(each)["data"]["type"] for each in demo.run("log", "demo").splitlines()]
    assert types == ["workspace.created", "chat.created"]


def test_following_shows_what_other_processes_append_until_the_reader_goes(demo: Cli) -> None:
    follower = demo.begin("log", "-f", "--since", "1", "demo/trip")
    assert follower.stdout is not None
    assert orjson.loads(follower.stdout.readline())["seq"] == 2
    for number in (3, 4):
        demo.run("append", "demo/trip", given=line(f"number {number}"))
        assert orjson.loads(follower.stdout.readline())["seq"] == number
    follower.stdout.close()
    assert follower.wait(15) == 0, "nothing is appended any more: it must notice by itself"
    assert follower.stderr is not None
    assert follower.stderr.read() == b""


def test_an_interrupt_ends_it_quietly(demo: Cli) -> None:
    follower = demo.begin("log", "-f", "demo")
    assert follower.stdout is not None
    assert follower.stderr is not None
    follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    assert follower.wait(15) == 130
    assert follower.stderr.read() == b""


@pytest.mark.parametrize("words", ["append demo/trip", "import messages - --workspace demo"])
def test_an_interrupt_ends_waiting_for_input(demo: Cli, words: str) -> None:
    writer = demo.begin(*words.split(), stdin=subprocess.PIPE)
    assert writer.stdin is not None
    assert writer.stderr is not None
    # A pipe holds 64 KiB: when more than that is taken, the command is reading.
    writer.stdin.write(line("x" * 200_000))
    writer.stdin.flush()
    writer.send_signal(signal.SIGINT)
    assert writer.wait(15) == 130
    assert writer.stderr.read() == b""
    assert len(demo.entries("demo/trip")) == 2


def test_a_reader_that_has_enough_is_no_error(demo: Cli) -> None:
    demo.run("append", "demo/trip", given=line("x" * 1000) * 3000)
    for words in (["log", "demo/trip"], ["cat", "demo/trip"]):
        process = demo.begin(*words)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_damage_is_said_after_what_is_good(demo: Cli) -> None:
    log = demo.log_file("demo/trip")
    demo.run("append", "demo/trip", given=b'"last"\n')
    log.write_bytes(log.read_bytes().replace(b"hi there", b"ho there"))
    code, out, err = demo.attempt("log", "demo/trip")
    assert code == 1
    assert out.count("\n") == 1
    where = "is damaged after entry 1, at byte 193: run chatfs fsck --repair\n"
    assert re.sub("byte [0-9]+", "byte 193", err) == f"chatfs: the log of demo/trip {where}"


def test_damage_is_said_in_one_line_whatever_is_asked_for(demo: Cli) -> None:
    """The log's own line and the command's complaint would say the same."""
    log = demo.log_file("demo/trip")
    demo.run("append", "demo/trip", given=b'"last"\n')
    log.write_bytes(log.read_bytes().replace(b"hi there", b"ho there"))
    identity = log.parent.name
    for words, code in [
        (("cat", "demo/trip"), 1),
        (("chat", "show", "demo/trip"), 0),
        (("log", "demo/trip", "--reverse", "--limit", "9"), 1),
        (("log", "demo/trip", "--follow"), 1),
        (("attach", "demo/trip", Path(__file__)), 1),
        (("append", "demo/trip"), 1),
    ]:
        found, _, err = demo.attempt(*words, given=b'"more"\n')
        assert (found, err.count("\n")) == (code, 1), (words, err)
        assert re.search(r"demo/trip .*damaged .* at byte [0-9]+: run chatfs fsck --repair$", err), words
        assert identity not in err
    demo.attempt("fsck", "--repair")
    demo.run("cat", "demo/trip")


def test_damage_of_a_workspaces_own_log_names_it(demo: Cli) -> None:
    (log,) = demo.store.glob("workspace/*/history.jsonl")
    log.write_bytes(log.read_bytes().replace(b"trip", b"trap"))
    _, _, err = demo.attempt("chat", "new", "demo/other")
    assert err.startswith("chatfs: demo is read-only: the log is damaged after entry 1")
    log.write_bytes(log.read_bytes().replace(b"demo", b"dome"))
    code, _, err = demo.attempt("chat", "new", "demo/other")
    assert code == 1
    assert log.parent.name in err


# ---- cat


def test_cat_prints_the_conversation(demo: Cli) -> None:
    text = demo.run("cat", "demo/trip").splitlines()
    assert [each for each in text if each and not each.startswith("##")] == ["hello", "hi there"]


def on_a_terminal(cli: Cli, *words: str) -> bytes:
    ours, theirs = pty.openpty()
    process = cli.begin(*words, stdout=theirs)
    os.close(theirs)
    found = b""
    try:
        while piece := os.read(ours, 65536):
            found += piece
    except OSError:
        pass  # EIO: the other end is closed
    finally:
        os.close(ours)
    assert process.wait(15) == 0
    return found


def test_a_terminal_obeys_nothing_that_a_chat_says(demo: Cli) -> None:
    evil = "\x1b]0;owned\x07 \u009b31m \x7f tab\tend"
    demo.run("append", "demo/trip", given=line(evil))
    assert evil in demo.run("cat", "demo/trip"), "a pipe gets the text as it is"
    shown = on_a_terminal(demo, "cat", "demo/trip")
    assert b"\\x1b]0;owned\\x07 \\x9b31m \\x7f tab\tend" in shown
    assert b"\x1b" not in shown
    shown = on_a_terminal(demo, "log", "demo/trip")
    assert not {"\x1b", "\u009b", "\x7f"} & set(shown.decode())
    assert orjson.loads(shown.splitlines()[-1])["data"]["content"] == evil, "still the same JSON"


# ---- attach


def test_files_are_attached_under_their_names(demo: Cli, tmp_path: Path) -> None:
    big = os.urandom(3 << 20)
    (tmp_path / "big.bin").write_bytes(big)
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "link.txt").symlink_to("note.txt")
    files = [tmp_path / name for name in ("big.bin", "note.txt", "link.txt")]
    done = demo.json("attach", "demo/trip", *files)
    assert [(each["name"], each["size"]) for each in done] == [("big.bin", 3 << 20), ("note.txt", 5), ("link.txt", 5)]
    assert done[1]["digest"] == done[2]["digest"] == f"sha256:{hashlib.sha256(b'hello').hexdigest()}"
    events = data(demo.entries("demo/trip"))[2:]
    assert [(each["type"], each["name"]) for each in events] == [("attachment.put", path.name) for path in files]
    assert events[1]["content_type"] == "text/plain"
    assert demo.json("chat", "show", "demo/trip")["attachments"] == 3


def test_attaching_a_name_again_replaces_it(demo: Cli, tmp_path: Path) -> None:
    for text, said in (("one", "3 bytes"), ("three", "5 bytes")):
        (tmp_path / "note.txt").write_text(text)
        assert demo.run("attach", "demo/trip", tmp_path / "note.txt") == f"attached note.txt ({said})\n"
    first, second = data(demo.entries("demo/trip"))[2:]
    assert first["id"] == second["id"]
    assert demo.json("chat", "show", "demo/trip")["attachments"] == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dir", "{path} is a directory: name files"),
        ("none", "{path}: No such file or directory"),
        ("history.md", "'history.md' is the chat's own file: give the attachment another name"),
        ("other/note.txt", "two of the files are called 'note.txt': attach them one by one, or rename one"),
    ],
)
def test_nothing_is_attached_where_one_of_the_files_cant_be(demo: Cli, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "other").mkdir()
    for each in ("note.txt", "history.md", "other/note.txt"):
        (tmp_path / each).write_text("x")
    path = tmp_path / name
    assert demo.fails("attach", "demo/trip", tmp_path / "note.txt", path) == said.format(path=path)
    assert len(demo.entries("demo/trip")) == 2


def test_a_quota_refuses_a_file_before_it_is_read(demo: Cli, tmp_path: Path) -> None:
    demo.run("workspace", "quota", "demo", "1M")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    assert "more don't fit" in demo.fails("attach", "demo/trip", tmp_path / "huge")
