"""Stores that are none, can't be read, can't be written, or are another version's: one clear line, and exit code 1."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from fusefs.cli.entry import main
from fusefs.unmount import mounts
from tests.cli.conftest import REPOSITORY, Cli
from tests.support.terminal import terminal

GOLDEN = REPOSITORY / "tests/golden/v1/store"
CAN_MOUNT = Path("/dev/fuse").exists() and shutil.which("fusermount3") is not None

LOOKING = [
    ["workspace", "ls"],
    ["workspace", "show", "demo"],
    ["workspace", "quota", "demo"],
    ["chat", "ls", "demo", "--long"],
    ["chat", "show", "demo/trip"],
    ["log", "demo/trip"],
    ["log", "demo"],
    ["cat", "demo/trip"],
    ["search", "hello"],
    ["status"],
]
WRITING = [
    ["workspace", "create", "new"],
    ["workspace", "quota", "demo", "1G"],
    ["workspace", "rename", "demo", "new"],
    ["workspace", "rm", "demo"],
    ["chat", "new", "demo/new"],
    ["chat", "rename", "demo/trip", "new"],
    ["chat", "archive", "demo/trip"],
    ["chat", "rm", "demo/trip"],
    ["chat", "restore", "demo/trip"],
    ["append", "demo/trip", "MESSAGES"],
    ["attach", "demo/trip", "MESSAGES"],
    ["import", "messages", "MESSAGES", "--workspace", "demo"],
]


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    path = tmp_path / "messages.jsonl"
    path.write_text('{"role":"user","content":"hello"}\n')
    return path


def words_of(command: list[str], store: str | Path, messages: Path) -> list[str]:
    return ["--store", str(store), *(str(messages) if word == "MESSAGES" else word for word in command)]


class OneLine:
    """What a command that must fail says, run in this process: for many commands."""

    def __init__(self, messages: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._messages = messages
        self._capsys = capsys

    def __call__(self, command: list[str], store: str | Path) -> str:
        assert main(words_of(command, store, self._messages)) == 1, command
        out, err = self._capsys.readouterr()
        assert out == ""
        assert err.startswith("chatfs: ")
        assert err.count("\n") == 1
        return err.removeprefix("chatfs: ").rstrip("\n")


@pytest.fixture
def says(messages: Path, capsys: pytest.CaptureFixture[str]) -> OneLine:
    return OneLine(messages, capsys)


def tree(path: Path) -> dict[str, bytes | None]:
    return {
        each.relative_to(path).as_posix(): each.read_bytes() if each.is_file() else None for each in path.rglob("*")
    }


# ---- no store


def a_file(at: Path) -> None:
    at.write_text("text")


def a_full_directory(at: Path) -> None:
    at.mkdir()
    (at / "letter.txt").write_text("Dear")


def below_a_file(at: Path) -> None:
    at.parent.joinpath("file").write_text("")
    at.symlink_to("file/deeper")


def a_dangling_link(at: Path) -> None:
    at.symlink_to("nowhere")


def a_looping_link(at: Path) -> None:
    at.symlink_to(at.name)


def no_description(at: Path) -> None:
    (at / "workspace").mkdir(parents=True)


def described(data: bytes) -> Callable[[Path], None]:
    def make(at: Path) -> None:
        at.mkdir()
        (at / "store.json").write_bytes(data)

    return make


def a_linked_description(at: Path) -> None:
    at.mkdir()
    at.with_name("elsewhere").write_text('{"format":2,"id":"x"}')
    (at / "store.json").symlink_to("../elsewhere")


def a_description_that_is_a_directory(at: Path) -> None:
    (at / "store.json").mkdir(parents=True)


def a_description_that_never_ends(at: Path) -> None:
    at.mkdir()
    os.mkfifo(at / "store.json")


DAMAGED = r"{at}/store\.json doesn't describe a chatfs store: restore it from a backup, or see FORMAT\.md, Versions"
ODD = r"{at}/store\.json is not an ordinary file: put the store's own back"
NO_STORES: list[tuple[Callable[[Path], None], str]] = [
    (a_file, r"{at} is no directory, so no chatfs store is there: name a directory"),
    (a_full_directory, r"{at} isn't empty and isn't a chatfs store: choose another directory"),
    (below_a_file, r"{at} is no directory, so no chatfs store is there: name a directory"),
    (a_dangling_link, r"{at} is a symbolic link to nowhere, which isn't there: make that directory, or name another"),
    (a_looping_link, r"the store at {at} can't be read: Too many levels of symbolic links: .*"),
    (no_description, r"{at}/store\.json is missing, but chats are there: restore it from a backup, .*"),
    (described(b'{"format":3,"id":"x"}'), r"the store at {at} has format 3, this chatfs knows 2: use a newer chatfs"),
    (described(b""), DAMAGED),
    (described(b"\0" * 64), DAMAGED),
    (described(b"[]"), DAMAGED),
    (described(b'{"format":true}'), DAMAGED),
    (described(b'{"format":0}'), DAMAGED),
    (described(b'{"format":"2"}'), DAMAGED),
    (described(b"[" * 200_000), DAMAGED),
    (a_linked_description, ODD),
    (a_description_that_is_a_directory, ODD),
    (a_description_that_never_ends, ODD),
]


@pytest.mark.parametrize(
    ("make", "line"), NO_STORES, ids=[f"{i}-{each[0].__name__}" for i, each in enumerate(NO_STORES)]
)
def test_what_is_no_store_is_said_by_every_command_and_left_alone(
    tmp_path: Path, says: OneLine, make: Callable[[Path], None], line: str
) -> None:
    at = tmp_path / "at"
    make(at)
    before = tree(tmp_path)
    mountpoint = tmp_path / "mountpoint"
    for command in [*LOOKING, *WRITING]:
        assert re.fullmatch(line.format(at=re.escape(str(at))), says(command, at)), command
    assert tree(tmp_path) == before
    mountpoint.mkdir()
    for options in ([], ["--read-only"]) if CAN_MOUNT else ():
        assert re.fullmatch(line.format(at=re.escape(str(at))), says(["mount", *options, str(mountpoint)], at))


@pytest.mark.parametrize("url", ["nats://host/x", "ftp:x", "file://host/x", "file:", "file://[", "~no-such-user/x"])
def test_urls_that_name_no_store(says: OneLine, tmp_path: Path, url: str) -> None:
    for command in [*LOOKING, *WRITING, ["mount", str(tmp_path)]]:
        assert re.search("use file:///path|no home directory", says(command, url)), command


def test_a_link_in_the_middle_that_leads_nowhere(says: OneLine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    said = f"{tmp_path}/link is a symbolic link to {tmp_path}/gone, which isn't there: "
    said += "make that directory, or name another"
    for command in [*LOOKING, *WRITING]:
        assert says(command, tmp_path / "link" / "deep" / "store") == said
    assert not (tmp_path / "gone").exists()


def test_where_nothing_is_only_what_makes_things_makes_a_store(
    says: OneLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = tmp_path / "none"
    for command in [*LOOKING, *WRITING]:
        if command[:2] != ["workspace", "create"] and command[0] not in {"status", "import"}:
            assert says(command, at) == f"there is no store at {at}: chatfs workspace create NAME makes it"
    if CAN_MOUNT:
        (tmp_path / "mountpoint").mkdir()
        assert says(["mount", "--read-only", str(tmp_path / "mountpoint")], at).startswith(f"there is no store at {at}")
    assert main(["--store", str(at), "status", "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["exists"] is False
    assert not at.exists()


def test_an_older_format_is_only_migrated_by_what_writes(cli: Cli) -> None:
    shutil.copytree(GOLDEN, cli.store)
    before = tree(cli.store)
    for command in LOOKING:
        cli.run(*command)
    assert tree(cli.store) == before
    assert cli.json("status")["format"] == 1
    cli.run("append", "demo/trip", given=b'{"role":"user","content":"new"}\n')  # silent in a pipe
    assert cli.json("status")["format"] == 2


def test_a_migration_shows_its_progress_on_a_terminal(cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, cli.store)
    typed = tmp_path / "typescript"
    chatfs = " ".join(cli.command("--store", cli.store, "chat", "new", "demo/new"))
    with terminal(tmp_path, "script", "--quiet", "--return", "--command", chatfs, typed) as shown:
        shown.ended()
    assert re.search(rb"\rmigrating the store \[[#-]{30}\] [0-9]+ of 16", typed.read_bytes())
    assert b"made chat demo/new" in typed.read_bytes()


# ---- who may not read or write it


@contextlib.contextmanager
def mounted_at(path: Path, *words: str | Path) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    made = subprocess.run(["mount", *words, path], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture(params=["read-only disk", "bind mount", "no right to write"])
def unwritable(request: pytest.FixtureRequest, demo: Cli) -> Iterator[Cli]:
    """The store `demo` (with a chat whose end a crash tore) where this user can't write it."""
    demo.run("append", "demo/torn", "--create", given=b'{"role":"user","content":"whole"}\n')
    with demo.log_file("demo/torn").open("ab") as log:
        log.write(b'{"seq":2,"ts"')
    original = demo.store.rename(demo.root / "original")
    with contextlib.ExitStack() as stack:
        if request.param == "read-only disk":
            stack.enter_context(mounted_at(demo.store, "-t", "tmpfs", "chatfs-test"))
            shutil.copytree(original, demo.store, dirs_exist_ok=True)
            subprocess.run(["mount", "-o", "remount,ro", demo.store], check=True)
        elif request.param == "bind mount":
            stack.enter_context(mounted_at(demo.store, "--bind", original))
            subprocess.run(["mount", "-o", "remount,bind,ro", demo.store], check=True)
        else:
            original.rename(demo.store)
            subprocess.run(["chmod", "-R", "a+rX", demo.store], check=True)
            give_away(demo.store)
            demo.before = powerless()
        yield demo
        for mounted in mounts():
            if mounted.mountpoint.is_relative_to(demo.root):
                subprocess.run(["fusermount3", "-u", "-z", mounted.mountpoint], check=True)


def give_away(path: Path) -> None:
    """To nobody."""
    if os.getuid() != 0:
        pytest.skip("needs root, to give a store to somebody else")
    subprocess.run(["chown", "-R", "65534:65534", path], check=True)


def powerless() -> list[str]:
    """What runs a program as root without root's right to pass over the modes of files."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux)")
    powers = "-dac_override,-dac_read_search,-fowner,-chown"
    return ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]


def reason_of(cli: Cli) -> str:
    return os.strerror(errno.EACCES if cli.before else errno.EROFS)


def test_a_store_that_cant_be_written_can_be_read(unwritable: Cli) -> None:
    before = tree(unwritable.store)
    for command in LOOKING:
        unwritable.run(*command)
    assert "hi there" in unwritable.run("cat", "demo/trip")
    assert "whole" in unwritable.run("cat", "demo/torn")
    assert unwritable.run("log", "demo/torn").count("\n") == 1
    assert tree(unwritable.store) == before


def test_what_would_write_a_store_that_cant_be_written_says_so(unwritable: Cli, messages: Path) -> None:
    said = f"the store at {unwritable.store} can't be written ({reason_of(unwritable)}): it can only be read"
    for command in WRITING:
        assert unwritable.fails(*words_of(command, unwritable.store, messages)[2:]) == said, command


@pytest.mark.mount
def test_a_store_that_cant_be_written_is_mounted_read_only(unwritable: Cli, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    before = tree(unwritable.store)
    code, out, err = unwritable.attempt("mount", mountpoint)
    said = f"the store at {unwritable.store} can't be written ({reason_of(unwritable)}): it can only be read"
    assert (code, out, err) == (0, "", f"chatfs: {said}: it is mounted read-only\n")
    (found,) = [each for each in unwritable.json("status")["mounts"] if each["mountpoint"] == str(mountpoint)]
    assert found["read_only"]
    chat = mountpoint / "demo" / "chats" / "trip"
    assert "hi there" in (chat / "history.md").read_text()
    assert (mountpoint / "demo/chats/torn/history.jsonl").read_bytes().count(b"\n") == 1
    for path in (chat / "history.jsonl", chat / "history.md", chat / "attachments" / "a.txt"):
        with pytest.raises(OSError, match="Read-only"):
            path.open("ab")
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "demo" / "chats" / "new").mkdir()
    with pytest.raises(OSError, match="Read-only"):
        chat.rename(mountpoint / "demo" / "archive" / "trip")
    with pytest.raises(OSError, match="Read-only"):
        os.rmdir(chat)
    unwritable.run("umount", mountpoint)
    assert tree(unwritable.store) == before


def test_a_store_that_cant_be_read(demo: Cli, messages: Path, tmp_path: Path) -> None:
    for path in (demo.store, demo.store / "store.json"):
        give_away(path)
        path.chmod(0o600 if path.is_file() else 0o700)
    demo.before = powerless()
    said = f"the store at {demo.store} can't be read: Permission denied: see who may, or name another with --store"
    (tmp_path / "mountpoint").mkdir()
    for command in [
        LOOKING[0],
        LOOKING[5],
        LOOKING[-1],
        WRITING[0],
        WRITING[4],
        ["mount", str(tmp_path / "mountpoint")],
    ]:
        assert demo.fails(*words_of(command, demo.store, messages)[2:]) == said, command
    demo.store.chmod(0o755)
    for command in (LOOKING[0], WRITING[0]):
        assert demo.fails(*command) == said


def test_no_store_can_be_made_where_nothing_can_be_written(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted_at(disk, "-t", "tmpfs", "-o", "ro", "chatfs-test"):
        said = cli.fails("--store", disk / "store", "workspace", "create", "demo")
        assert said == f"making a store at {disk}/store: Read-only file system: the store can't be written"
        (tmp_path / "mountpoint").mkdir()
        assert cli.fails("--store", disk / "store", "mount", tmp_path / "mountpoint") == said
