"""`chatfs migrate`, `chatfs export --jsonl`, `chatfs import --jsonl`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import orjson
import pytest
import trio

from store.compaction import compact
from store.library import open_store
from store.workspace_state import Place
from tests.cli.conftest import REPOSITORY, Cli
from tests.cli.test_bad_stores import mounted_at
from tests.support.mounts import message, mounting
from tests.support.ops import append


def fill(cli: Cli) -> None:
    """Workspace `demo` with a chat `trip` that has an attachment, one that is compacted, one that is archived."""
    trio.run(_fill, cli.store)


async def _fill(path: Path) -> None:
    async with open_store(str(path)) as store:
        demo = await store.create_workspace("demo", "test")
        for name in ("trip", "packed", "old"):
            chat = await demo.create_chat(name, "test")
            said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi there"}]
            await chat.append_events(said, "test")
        await (await demo.chat("trip")).attach("long.bin", os.urandom(1 << 21), "test")
        await compact(await demo.chat("packed"), keep=1)
        await demo.move_chat((await demo.chat("old")).id, Place.ARCHIVE, "old", "test")
        await store.driver.sync()


def truth(store: Path) -> dict[str, bytes]:
    """Every log and base of a store, and the objects; what is being made isn't there."""
    files = [*store.glob("workspace/**/history.jsonl"), *store.glob("workspace/**/history.base")]
    files += store.glob("objects/??/*")
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(store).parts)
    }


def test_a_store_is_copied(cli: Cli):
    fill(cli)
    other = cli.root / "other"
    code, out, err = cli.attempt("migrate", cli.store, other)
    assert (code, err) == (0, f"chatfs: made a new store at {other}\n")
    assert out.startswith("copied 12 entries of 4 logs, 2 attachments' bytes (2.0 MiB)")
    assert truth(other) == truth(cli.store)
    assert cli.run("migrate", cli.store.as_uri(), other.as_uri()) == "nothing new in 4 logs\n"
    found = cli.json("migrate", cli.store, other, "--verify", "--workspace", "demo")
    assert (found["logs"], found["entries"], found["failed"], found["notes"]) == (4, 0, [], [])
    assert cli.run("--store", other, "cat", "demo/packed") == cli.run("cat", "demo/packed")
    assert cli.attempt("--store", other, "fsck")[0] == 0


@pytest.mark.parametrize("scheme", ["file", "git"])
def test_what_is_not_saved_yet_stays_and_is_said_to(cli: Cli, scheme: str):
    source = f"{scheme}://{cli.root}/source"
    trio.run(_leave_a_draft, source)
    code, out, err = cli.attempt("migrate", source, cli.root / "target")
    assert (code, out.partition(" of ")[0]) == (0, "copied 1 entries")
    assert f"chatfs: unsaved files (1) stay in {source}: " in err


async def _leave_a_draft(url: str) -> None:
    async with open_store(url) as store:
        await store.create_workspace("demo", "test")
        store.driver.blobs.stage(label={"kind": "test"}).write(0, b"draft")


def test_that_a_copy_is_not_projected_is_said(cli: Cli):
    fill(cli)
    project, other = cli.root / "project", cli.root / "other"
    project.mkdir()
    cli.run("project", "init", project, "--workspace", "demo")
    code, _, err = cli.attempt("migrate", cli.store, other)
    advice = f"chatfs --store {other.as_uri()} project init {project}"
    assert (code, err.splitlines()[1:]) == (
        0,
        [f"chatfs: demo is projected to {project}, its copy is not: {advice} does that"],
    )
    cli.run(*advice.split()[1:])
    assert cli.run("migrate", cli.store, other) == "nothing new in 4 logs\n"


def test_words_that_name_no_stores(cli: Cli):
    fill(cli)
    missing = cli.root / "missing"
    assert "no store" in cli.fails("migrate", missing, cli.root / "other")
    assert not (cli.root / "other").exists()
    assert "nor a directory" in cli.fails("migrate", cli.store, missing / "deep")
    assert "are the same store" in cli.fails("migrate", cli.store, cli.store.as_uri(), code=2)
    (cli.root / "link").symlink_to(cli.store)
    assert "are the same store" in cli.fails("migrate", cli.store, cli.root / "link")
    assert "no driver for 'ftp://x'" in cli.fails("migrate", "ftp://x", cli.store)
    cli.attempt("migrate", cli.store, cli.root / "other")
    assert "has no workspace 'else'" in cli.fails("migrate", cli.store, cli.root / "other", "--workspace", "else")


def test_a_damaged_chat_does_not_keep_the_others(cli: Cli):
    fill(cli)
    log = cli.log_file("demo/trip")
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b"hello", b"hellO", 1))
    other = cli.root / "other"
    code, out, err = cli.attempt("migrate", cli.store, other)
    _made, damage, end = err.splitlines()
    assert code == 1
    assert out.startswith("copied 9 entries of 3 logs")
    assert damage.startswith("chatfs: demo/trip: the log ")
    assert end.startswith("chatfs: 1 thing couldn't be moved")
    assert "hi there" in cli.run("--store", other, "cat", "demo/packed")
    said = cli.fails("--store", other, "cat", "demo/trip")
    assert said.startswith("demo/trip wasn't moved here: the log ")
    log.write_bytes(whole)
    assert cli.run("migrate", cli.store, other).startswith("copied 3 entries of 4 logs")
    assert cli.run("--store", other, "cat", "demo/trip") == cli.run("cat", "demo/trip")


def test_beside_a_mount_of_the_source(tmp_path: Path):
    with mounting(tmp_path) as mounted:
        chat = mounted.workspace().chat("trip")
        append(chat.jsonl, message("one"))
        cli = Cli(tmp_path)
        other = tmp_path / "other"
        chat.md.write_bytes(chat.md.read_bytes() + b"\nmore\n")
        assert cli.attempt("migrate", mounted.store, other)[0] == 0
        append(chat.jsonl, message("two"))
        assert cli.run("migrate", mounted.store, other).startswith("copied 1 entries")
        assert truth(other) == truth(mounted.store)


def test_beside_a_mount_of_the_target(tmp_path: Path):
    """What comes is shown at once."""
    source = Cli(tmp_path / "from")
    source.root.mkdir()
    fill(source)
    with mounting(tmp_path) as mounted:
        assert "demo" not in os.listdir(mounted.mountpoint)
        assert source.attempt("migrate", source.store, mounted.store)[0] == 0
        chat = mounted.mountpoint / "demo" / "chats" / "trip"
        assert "hi there" in (chat / "history.md").read_text()
        source.run("append", "demo/trip", "-", given=b'{"role":"user","content":"later"}\n')
        source.run("migrate", source.store, mounted.store)
        assert b"later" in (chat / "history.jsonl").read_bytes()
        assert "later" in (chat / "history.md").read_text()


# ---- as a stream


def test_a_workspace_as_a_file_and_through_a_pipe(cli: Cli):
    fill(cli)
    stream = cli.root / "demo.jsonl"
    assert cli.run("export", "demo", "--jsonl", "-o", stream) == ""
    code, out, _ = cli.attempt("--store", cli.root / "b", "import", "--jsonl", stream)
    assert code == 0
    assert out.startswith("imported 12 entries of 4 logs")
    assert truth(cli.root / "b") == truth(cli.store)
    assert cli.run("--store", cli.root / "b", "import", "--jsonl", stream) == "nothing new in 4 logs\n"
    piped = subprocess.run(
        cli.command("export", "demo", "--jsonl"), capture_output=True, check=True, env=cli.environment, cwd=REPOSITORY
    ).stdout
    assert piped == stream.read_bytes()
    found = cli.attempt("--store", cli.root / "c", "import", "--jsonl", "-", "--json", given=piped)
    assert orjson.loads(found[1])["entries"] == 12
    assert truth(cli.root / "c") == truth(cli.store)


def test_a_chat_comes_into_another_workspace(cli: Cli):
    fill(cli)
    stream, other = cli.root / "trip.jsonl", cli.root / "b"
    cli.run("export", "demo/trip", "--jsonl", "-o", stream)
    assert cli.attempt("--store", other, "import", "--jsonl", stream, "--workspace", "w", "--chat", "t")[0] == 0
    assert cli.run("--store", other, "cat", "w/t") == cli.run("cat", "demo/trip")
    assert cli.run("--store", other, "import", "--jsonl", stream, "--workspace", "w") == "nothing new in 1 logs\n"
    said = cli.fails("--store", other, "import", "--jsonl", stream, "--workspace", "elsewhere")
    assert "the store has the chat" in said
    assert [found["name"] for found in cli.json("--store", other, "workspace", "ls")] == ["w"]
    cli.run("export", "demo/old", "--jsonl", "-o", stream)
    assert "is another chat" in cli.fails(
        "--store", other, "import", "--jsonl", stream, "--workspace", "w", "--chat", "t"
    )
    cli.run("--store", other, "import", "--jsonl", stream, "--workspace", "w")
    assert cli.json("--store", other, "chat", "show", "w/old")["lifecycle"] == "archived"


def test_words_that_contradict_each_other(cli: Cli):
    fill(cli)
    stream = cli.root / "demo.jsonl"
    cli.run("export", "demo", "--jsonl", "-o", stream)
    assert "say in which form" in cli.fails("export", "demo", code=2)
    assert "takes one WORKSPACE" in cli.fails("export", "demo", "other", "--jsonl", code=2)
    assert "say what to import" in cli.fails("import", code=2)
    assert "has too many parts" in cli.fails("export", "x/y/z", "--jsonl", code=2)
    assert "can't get another name" in cli.fails("import", "--jsonl", stream, "--workspace", "else", code=2)
    assert "no chat demo/none" in cli.fails("export", "demo/none", "--jsonl")
    assert "no workspace 'none'" in cli.fails("export", "none", "--jsonl")
    cli.run("export", "demo/trip", "--jsonl", "-o", stream)
    assert "'a/b' has a slash" in cli.fails("import", "--jsonl", stream, "--workspace", "else", "--chat", "a/b")
    assert [found["name"] for found in cli.json("workspace", "ls")] == ["demo"]
    missing = cli.root / "missing"
    assert "No such file" in cli.fails("--store", cli.root / "new", "import", "--jsonl", missing)
    assert not (cli.root / "new").exists()


def test_a_file_appears_when_it_is_whole(cli: Cli):
    fill(cli)
    stream = cli.root / "out" / "demo.jsonl"
    stream.parent.mkdir()
    stream.write_bytes(b"old")
    log = cli.log_file("demo/trip")
    workspace = log.parents[2] / "history.jsonl"
    text = workspace.read_bytes()
    workspace.write_bytes(text.replace(b"trip", b"TRIP", 1))
    cli.fails("export", log.parents[2].name, "--jsonl", "-o", stream)
    assert stream.read_bytes() == b"old"
    assert os.listdir(stream.parent) == ["demo.jsonl"]
    workspace.write_bytes(text)
    cli.run("export", "demo", "--jsonl", "-o", stream)
    assert stream.read_bytes().endswith(b'{"chatfs":"end","logs":4}\n')


def test_a_stream_that_was_cut_off(cli: Cli):
    fill(cli)
    stream = cli.root / "demo.jsonl"
    cli.run("export", "demo", "--jsonl", "-o", stream)
    whole = stream.read_bytes()
    stream.write_bytes(whole[: len(whole) // 2])
    code, out, err = cli.attempt("--store", cli.root / "b", "import", "--jsonl", stream)
    assert (code, out) == (1, "")
    assert "was cut off" in err
    assert cli.json("--store", cli.root / "b", "workspace", "ls") == []
    stream.write_bytes(whole)
    cli.run("--store", cli.root / "b", "import", "--jsonl", stream)
    assert truth(cli.root / "b") == truth(cli.store)


# ---- disks and terminals


@pytest.mark.parametrize("form", ["migrate", "import"])
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_full(cli: Cli, form: str):
    fill(cli)
    stream, disk = cli.root / "demo.jsonl", cli.root / "disk"
    cli.run("export", "demo", "--jsonl", "-o", stream)
    words: tuple[str | Path, ...] = ("migrate", cli.store, disk / "b")
    if form == "import":
        words = ("--store", disk / "b", "import", "--jsonl", stream)
    with mounted_at(disk, "-t", "tmpfs", "-o", "size=4m", "chatfs-test"):
        (disk / "in the way").write_bytes(bytes(2 << 20))
        code, out, err = cli.attempt(*words)
        assert (code, out) == (1, "")
        assert "no space left" in err.splitlines()[-1]
        assert cli.json("--store", disk / "b", "workspace", "ls") == []
        (disk / "in the way").unlink()
        assert cli.attempt(*words)[0] == 0
        assert truth(disk / "b") == truth(cli.store)


def test_progress_is_shown_on_a_terminal(cli: Cli):
    fill(cli)
    said = cli.root / "said"
    words = cli.command("migrate", cli.store, cli.root / "b")
    # What it writes is kept, too: on the screen the line is gone in the end.
    done = subprocess.run(
        ["script", "--quiet", "--return", "--log-out", said, "--command", shlex.join(words)],
        check=False,
        capture_output=True,
        env=cli.environment,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == 0
    shown = said.read_bytes().decode()
    assert re.search(r"\r(reading|copying|comparing|looking at) ", shown)
    assert "\r\x1b[Kcopied 12 entries of 4 logs" in shown
