"""A mount of one workspace, or of one chat: all that is in it works, and nothing else has a name."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from store.driver import Access
from store.library import open_store
from tests.support.mounts import Chat, Mounted, data, message, mounting, read_log
from tests.support.ops import refused
from tests.support.waiting import wait_for
from tests.support.watching import Watcher

pytestmark = pytest.mark.mount


@pytest.fixture
def made(tmp_path: Path) -> Mounted:
    """A store with two chats in one workspace and one in another; not mounted."""

    async def make() -> None:
        async with open_store(found.url) as store:
            for path in ("demo/trip", "demo/secret", "other/deep-secret"):
                name, _, chat = path.partition("/")
                known = {each.state.name: each for each in await store.workspaces()}
                workspace = known.get(name) or await store.create_workspace(name, "tests")
                await (await workspace.create_chat(chat, "tests")).append_lines([message("in " + path)], "tests")

    found = Mounted(tmp_path)
    trio.run(make)
    return found


def _log_of(made: Mounted, chat: str) -> Path:
    async def find() -> str:
        async with open_store(made.url, access=Access.READ) as store:
            workspace, _, name = chat.partition("/")
            return (await (await store.workspace(workspace)).chat(name)).id

    (found,) = made.store.glob(f"workspace/*/chats/{trio.run(find)}/history.jsonl")
    return found


@pytest.fixture
def trip(made: Mounted) -> Iterator[Chat]:
    """demo/trip, mounted alone."""
    log = _log_of(made, "demo/trip")
    with mounting(made.root, "--root", "demo/trip") as mounted:
        yield Chat(mounted.mountpoint, log.parent.name, log)


def test_a_chat_is_the_top_of_the_mount(trip: Chat) -> None:
    assert sorted(os.listdir(trip.directory)) == ["attachments", "chat.json", "history.jsonl", "history.md"]
    assert trip.directory.stat().st_ino == 1
    trip.events()
    with trip.jsonl.open("ab", buffering=0) as log:
        log.write(message("appended"))
    trip.md.write_text(trip.md.read_text().replace("in demo/trip", "edited"))
    (trip.attachments / "a.txt").write_bytes(b"attached")
    (trip.directory / ".history.md.swp").write_bytes(b"scratch")
    assert trip.types() == ["message.appended", "message.edited", "attachment.put"]
    text = trip.md.read_text()
    assert "edited" in text
    assert "appended" in text


def test_nothing_else_has_a_name(trip: Chat) -> None:
    for path in ("../secret", "../../workspace.json", "by-id", "trash", "chats", "..", "demo"):
        found = Path(os.path.normpath(trip.directory / path))
        assert not found.is_relative_to(trip.directory) or path == ".." or not found.exists()
    done = subprocess.run(["grep", "-r", "secret", trip.directory], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert (trip.directory / "..").stat().st_ino == trip.directory.parent.stat().st_ino


def test_it_stays_that_chat_when_it_is_renamed_and_archived(made: Mounted, trip: Chat) -> None:
    made.cli("chat", "rename", "demo/trip", "journey")
    made.cli("chat", "new", "demo/trip")
    wait_for(lambda: b'"name": "journey"' in (trip.directory / "chat.json").read_bytes())
    made.cli("chat", "archive", "demo/journey")
    trip.events()
    with trip.jsonl.open("ab", buffering=0) as log:
        log.write(message("still here"))
    assert [event["content"] for event in trip.events()] == ["still here"]


def test_what_others_append_is_seen_and_announced(made: Mounted, trip: Chat) -> None:
    trip.md.read_bytes()
    with Watcher(trip.directory) as watcher:
        made.cli("append", "demo/trip", "-", given=message("from elsewhere"))
        wait_for(lambda: "from elsewhere" in trip.md.read_text())
        watcher.expect("MODIFY history.jsonl", "MODIFY history.md")


def test_a_workspace_is_the_top_of_the_mount(made: Mounted) -> None:
    with mounting(made.root, "--root", "demo") as mounted:
        top = mounted.mountpoint
        assert sorted(os.listdir(top)) == ["archive", "chats", "history.jsonl", "workspace.json"]
        assert sorted(os.listdir(top / "chats")) == ["secret", "trip"]
        (top / "chats/new").mkdir()
        (top / "chats/trip").rename(top / "archive/trip")
        (top / "chats/secret").rename(top / "chats/known")
        identity = data(read_log(_log_of(made, "demo/known")))
        assert identity[0]["content"] == "in demo/secret"
        made.cli("chat", "new", "demo/elsewhere")
        assert (top / "chats/elsewhere/history.md").read_bytes() == b""
        assert {name.is_symlink() for name in (top / "by-id").iterdir()} == {True}
        with refused(errno.EPERM):
            (top / "more").mkdir()
        made.cli("workspace", "create", "third")
        assert sorted(os.listdir(top)) == ["archive", "chats", "history.jsonl", "workspace.json"]


def test_df_shows_the_quota(made: Mounted) -> None:
    made.cli("workspace", "quota", "demo", "1M")
    with mounting(made.root, "--root", "demo") as mounted:
        before = os.statvfs(mounted.mountpoint)
        assert before.f_blocks * before.f_frsize == 1 << 20
        assert 0 < before.f_bavail < before.f_blocks
        (mounted.mountpoint / "chats/trip/attachments/half").write_bytes(os.urandom(1 << 19))
        after = os.statvfs(mounted.mountpoint)
        assert before.f_bavail - after.f_bavail in range((1 << 19) // after.f_frsize, (1 << 19) // after.f_frsize + 3)
    with mounting(made.root) as mounted:
        assert os.statvfs(mounted.mountpoint).f_blocks == os.statvfs(made.store).f_blocks


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("demo/none", "there is no chat demo/none"),
        ("none", "no workspace 'none'"),
        ("demo/trip/history.md", "names nothing that can be mounted"),
        ("../demo", "no workspace '..'"),
    ],
)
def test_what_is_not_there_is_not_mounted(made: Mounted, root: str, said: str) -> None:
    made.mountpoint.mkdir()
    done = made.cli("mount", made.mountpoint, "--root", root, check=False)
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not os.path.ismount(made.mountpoint)


@pytest.mark.parametrize("option", ["--uid", "--gid"])
@pytest.mark.parametrize("number", [2**32 - 1, 2**32, 10**15, -1])
def test_an_owner_that_there_cant_be_is_refused(made: Mounted, option: str, number: int) -> None:
    """The kernel answers every look at a file of such an owner with EIO."""
    made.mountpoint.mkdir()
    done = made.cli("mount", made.mountpoint, f"{option}={number}", check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
    assert not os.path.ismount(made.mountpoint)


def test_the_owner_and_the_mask_can_be_chosen(made: Mounted) -> None:
    with mounting(made.root, "--root", "demo/trip", "--uid", "1234", "--gid", "4321", "--umask", "027") as mounted:
        top = mounted.mountpoint.stat()
        file = (mounted.mountpoint / "history.md").stat()
        assert (top.st_uid, top.st_gid, top.st_mode & 0o7777) == (1234, 4321, 0o750)
        assert (file.st_uid, file.st_gid, file.st_mode & 0o7777) == (1234, 4321, 0o640)
        with refused(errno.EPERM):
            os.chown(mounted.mountpoint / "history.md", 0, 0)
        os.chown(mounted.mountpoint / "history.md", 1234, 4321)


# ---- append-only


@pytest.fixture
def append_only(made: Mounted) -> Iterator[Chat]:
    log = _log_of(made, "demo/trip")

    source = Path(__file__).read_bytes()

    async def attach() -> None:
        async with open_store(made.url) as store:
            chat = await (await store.workspace("demo")).chat("trip")
            await chat.attach(Path(__file__).name, source, "tests")

    trio.run(attach)
    with mounting(made.root, "--root", "demo/trip", "--append-only") as mounted:
        found = Chat(mounted.mountpoint, log.parent.name, log)
        found.events()
        yield found


def test_only_the_log_may_grow(append_only: Chat) -> None:
    top = append_only.directory
    before = append_only.md.read_bytes()
    attached = top / "attachments" / Path(__file__).name
    for change in (
        lambda: append_only.md.write_bytes(b"forged"),
        lambda: append_only.md.open("ab"),
        append_only.md.unlink,
        append_only.jsonl.unlink,
        lambda: append_only.jsonl.open("wb"),
        lambda: append_only.jsonl.open("r+b"),
        lambda: os.truncate(append_only.jsonl, 0),
        attached.unlink,
        lambda: attached.write_bytes(b""),
        lambda: attached.chmod(0o777),
        lambda: attached.rename(top / "attachments/b"),
        lambda: (top / "attachments/new").write_bytes(b"x"),
        lambda: (top / "scratch").write_bytes(b"x"),
        lambda: (top / "link").symlink_to("/etc/passwd"),
        lambda: (top / "sub").mkdir(),
        lambda: (top / "chat.json").write_bytes(b'{"title":"x"}'),
    ):
        with refused(errno.EPERM):
            change()
    assert append_only.events() == []
    with append_only.jsonl.open("ab", buffering=0) as log:
        assert log.write(message("one") + message("two")) > 0
    assert [event["content"] for event in append_only.events()] == ["one", "two"]
    assert append_only.md.read_bytes().startswith(before)
    assert attached.read_bytes() == Path(__file__).read_bytes()


CHANGING = [
    b'{"type":"message.removed","id":"%s"}',
    b'{"type":"message.edited","id":"%s","content":"forged"}',
    b'{"type":"message.appended","role":"user","content":"x","after":""}',
    b'{"role":"user","content":"x","md":"## assistant\\n\\nforged\\n"}',
    b'{"type":"chat.changed","title":"forged"}',
    b'{"type":"attachment.removed","name":"x"}',
    b'{"type":"log.compacted","through":1}',
    b'{"type":"blob.new-kind"}',
    b'{"seq":1,"ts":1,"actor":"uid:0/root","data":{"type":"preamble.edited","content":"x"}}',
]


def test_lines_that_change_what_is_there_are_refused(append_only: Chat) -> None:
    identity = data(append_only.log())[0]["id"].encode()
    before = append_only.md.read_bytes()
    for line in (each.replace(b"%s", identity) for each in CHANGING):
        with append_only.jsonl.open("ab", buffering=0) as log:
            with refused(errno.EPERM):
                log.write(line + b"\n")
            # What stands before such a line is taken: a short write, as with any bad line.
            assert log.write(message("good") + line + b"\n") == len(message("good"))
            log.write(b'{"type":"my.own","x":1}\n[1,2]\n')
        assert [event["type"] for event in append_only.events() if type(event) is dict] == [
            "message.appended",
            "my.own",
        ]
    assert append_only.md.read_bytes().startswith(before)
    assert b"forged" not in append_only.md.read_bytes()


def test_others_go_on_editing_beside_an_append_only_mount(made: Mounted, append_only: Chat) -> None:
    with Watcher(append_only.directory) as watcher:
        made.cli("append", "demo/trip", "-", given=message("from elsewhere"))
        wait_for(lambda: "from elsewhere" in append_only.md.read_text())
        watcher.expect("MODIFY history.jsonl", "MODIFY history.md")
