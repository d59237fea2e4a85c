"""What all commands have in common: where options stand, exit codes, errors in one line."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from fusefs.cli.entry import main
from tests.cli.conftest import REPOSITORY, Cli


def test_the_store_may_be_named_before_or_after_the_command_or_in_the_environment(cli: Cli, tmp_path: Path) -> None:
    other = f"file://{tmp_path}/other"
    cli.run("workspace", "create", "here")
    code, _, err = cli.attempt("--store", other, "workspace", "create", "there")
    assert (code, err) == (0, f"chatfs: made a new store at {tmp_path}/other\n")
    assert [each["name"] for each in cli.json("workspace", "ls")] == ["here"]
    for words in (
        ["--store", other, "workspace", "ls"],
        ["workspace", "--store", other, "ls"],
        ["workspace", "ls", "--store", other],
        ["--store", "/nowhere", "workspace", "ls", "--store", str(tmp_path / "other")],
    ):
        assert [each["name"] for each in cli.json(*words)] == ["there"]


def test_a_mistyped_store_is_not_made(cli: Cli, tmp_path: Path) -> None:
    for words in (["workspace", "ls"], ["chat", "ls", "demo"], ["append", "demo/x", "--create"], ["log", "demo"]):
        said = cli.fails(*words, "--store", tmp_path / "typo", given=b"{}\n")
        assert said == f"there is no store at {tmp_path}/typo: chatfs workspace create NAME makes it"
    cli.run("status", "--store", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_a_store_is_made_where_the_directory_above_it_is(cli: Cli, tmp_path: Path) -> None:
    messages = tmp_path / "messages.jsonl"
    messages.write_text('{"role":"user","content":"hello"}\n')
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    at = tmp_path / "typo" / "store"
    said = (
        f"there is no store at {at}, nor a directory {at.parent} to make one in: name another, or make that directory"
    )
    making = [["workspace", "create", "demo"], ["import", "messages", messages, "--workspace", "demo"]]
    for words in [*making, ["mount", mountpoint], ["mount", "--foreground", mountpoint]]:
        assert cli.fails("--store", at, *words) == said
        assert not at.parent.exists()
    for number, words in enumerate(making):
        at = tmp_path / f"made-{number}"
        assert cli.attempt("--store", at, *words)[::2] == (0, f"chatfs: made a new store at {at}\n")
        assert cli.attempt("--store", at, "workspace", "create", "other")[::2] == (0, "")


def test_the_users_own_store_is_made_with_all_above_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    at = cli.root / "data" / "chatfs"
    monkeypatch.setattr(Cli, "environment", {**cli.environment, "CHATFS_STORE": ""})
    code, _, err = cli.attempt("workspace", "create", "demo")
    assert (code, err) == (0, f"chatfs: made a new store at {at}\n")
    assert not at.parent.joinpath("store").exists()
    assert [each["name"] for each in cli.json("workspace", "ls")] == ["demo"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND: see chatfs -h"),
        (["workspace"], "the following arguments are required: COMMAND: see chatfs workspace -h"),
        (
            ["chat", "new", "demo"],
            "argument WORKSPACE/CHAT: 'demo' names no chat: write WORKSPACE/CHAT: see chatfs chat new -h",
        ),
        (
            ["cat", "a/b/c"],
            "argument WORKSPACE/CHAT: 'a/b/c' has too many parts: write WORKSPACE/CHAT: see chatfs cat -h",
        ),
        (
            ["workspace", "quota", "x", "1X"],
            "argument SIZE: '1X' is no size: write 10G, 500M, a number of bytes, or none: see chatfs workspace quota -h",  # noqa: E501
        ),
        (["log", "a/b", "--since", "x"], "argument --since: 'x' is no whole number: see chatfs log -h"),
        (
            ["chat", "ls", "a", "--trash", "--all"],
            "argument --all: not allowed with argument --trash: see chatfs chat ls -h",
        ),
        (["cat", "a/b", "--no\x1b[2Jpe"], "unrecognized arguments: --no\\x1b[2Jpe: see chatfs -h"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"chatfs: {said}\n")


def test_wrong_usage_has_code_2(cli: Cli) -> None:
    assert cli.fails("cat", code=2) == "the following arguments are required: WORKSPACE/CHAT: see chatfs cat -h"


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        [],
        ["mount"],
        ["umount"],
        ["status"],
        *(["workspace", each] for each in ("create", "ls", "show", "quota", "rename", "rm")),
        *(["chat", each] for each in ("new", "ls", "show", "rename", "archive", "unarchive", "rm", "restore")),
        *([each] for each in ("append", "log", "cat", "attach")),
        *(["import", each] for each in ("claude-code", "jp", "messages")),
        *([each] for each in ("migrate", "export", "search", "fsck", "gc", "compact")),
        *(["sandbox", each] for each in ("run", "ls", "stop")),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, "-h"])
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: {' '.join(['chatfs', *words])} ")
        assert "--store URL" in out


def test_the_version(cli: Cli) -> None:
    assert cli.run("--version").startswith("chatfs ")


def test_a_store_that_is_none_is_said_in_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    assert "isn't a chatfs store" in cli.fails("workspace", "create", "x", "--store", tmp_path / "full")
    assert "no driver for 'ftp://x'" in cli.fails("workspace", "ls", "--store", "ftp://x")


def test_names_that_no_terminal_should_obey_are_escaped_in_errors(cli: Cli) -> None:
    cli.run("workspace", "create", "demo")
    assert cli.fails("chat", "new", "demo/\x1b]0;owned\x07") == (
        "name '\\x1b]0;owned\\x07' has control characters: use printable ones"
    )
    assert cli.fails("cat", "demo/a\x1bb\nc") == "there is no chat demo/a\\x1bb\\x0ac: see chatfs chat ls demo"


def test_a_name_that_is_not_utf8_is_said_so(cli: Cli) -> None:
    done = subprocess.run(
        [*cli.command("workspace", "show"), b"\xff"],
        check=False,
        capture_output=True,
        env=cli.environment,
        cwd=REPOSITORY,
    )
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr


def test_closed_standard_files_are_as_if_they_were_dev_null(demo: Cli) -> None:
    command = shlex.join(demo.command("append", "demo/trip", "--create"))
    done = subprocess.run(
        ["sh", "-c", f"{command} <&- >&- 2>&-"], check=False, env=demo.environment, cwd=REPOSITORY, timeout=60
    )
    assert done.returncode == 0
    assert len(demo.entries("demo/trip")) == 2


def test_output_that_cant_be_written_is_a_failure(demo: Cli) -> None:
    for words in (["workspace", "ls"], ["log", "demo/trip"], ["cat", "demo/trip"]):
        with Path("/dev/full").open("wb") as full:
            process = demo.begin(*words, stdout=full)
            assert process.wait(30) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b"chatfs: No space left on device\n"


def test_debug_shows_the_traceback_before_the_line(cli: Cli) -> None:
    cli.run("workspace", "create", "demo")
    code, _out, err = cli.attempt("--debug", "cat", "demo/x")
    assert code == 1
    assert err.startswith("Traceback")
    assert err.endswith("chatfs: there is no chat demo/x: see chatfs chat ls demo\n")
