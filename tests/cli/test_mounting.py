"""`chatfs mount`, `umount`, `status`, and what mount(8) calls."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fusefs.cli import mount_helper, mount_records
from fusefs.cli.errors import UsageError
from fusefs.options import Durability
from fusefs.unmount import mounts
from tests.cli.conftest import REPOSITORY, Cli
from tests.support.waiting import wait_for


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    found = tmp_path / "a mount point"
    found.mkdir()
    return found


def mounted(mountpoint: Path) -> bool:
    return any(each.mountpoint == mountpoint for each in mounts())


def status_of(cli: Cli, mountpoint: Path) -> dict[str, Any]:
    (found,) = [each for each in cli.json("status")["mounts"] if each["mountpoint"] == str(mountpoint)]
    return found


def alive(pid: int) -> bool:
    return mount_records._started(pid) is not None


# ---- mounting


@pytest.mark.mount
def test_a_mount_is_usable_at_once_and_gone_with_its_process_after_umount(demo: Cli, mountpoint: Path) -> None:
    assert demo.run("mount", mountpoint) == ""
    assert (mountpoint / "demo/chats/trip/history.md").read_text() == demo.run("cat", "demo/trip")
    found = status_of(demo, mountpoint)
    assert (found["store"], found["read_only"]) == (f"file://{demo.store}", False)
    assert f"mount       {mountpoint}  (file://{demo.store})" in demo.run("status").splitlines()
    with (mountpoint / "demo/chats/trip/history.jsonl").open("ab") as log:
        log.write(b'{"role":"user","content":"through the mount"}\n')
    assert demo.run("umount", mountpoint) == ""
    assert not mounted(mountpoint)
    assert not alive(found["pid"])
    assert b"through the mount" in demo.entries("demo/trip")[-1].data
    state = demo.root / "state" / "chatfs"
    (log_file,) = state.iterdir()
    assert log_file.read_text() == f"mounted file://{demo.store} on {mountpoint}\n"


@pytest.mark.mount
def test_the_daemon_belongs_to_nobody_and_keeps_nothing_busy(demo: Cli, mountpoint: Path) -> None:
    demo.run("mount", mountpoint)
    process = Path(f"/proc/{status_of(demo, mountpoint)['pid']}")
    assert (process / "cwd").readlink() == Path("/")
    assert os.getsid(int(process.name)) == int(process.name)
    pipes = [fd for fd in (process / "fd").iterdir() if fd.readlink().name.startswith("pipe:")]
    assert not {0, 1, 2} & {int(fd.name) for fd in pipes}, "a shell that waits for its pipes must not wait for a mount"
    demo.run("umount", mountpoint)


@pytest.mark.mount
def test_a_read_only_mount(demo: Cli, mountpoint: Path) -> None:
    demo.run("mount", "--read-only", mountpoint)
    assert status_of(demo, mountpoint)["read_only"]
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "demo/chats/new").mkdir()
    demo.run("umount", mountpoint)


@pytest.mark.mount
def test_a_busy_mount_stays_and_says_so(demo: Cli, mountpoint: Path) -> None:
    demo.run("mount", mountpoint)
    with (mountpoint / "demo/workspace.json").open():
        said = demo.fails("umount", mountpoint)
        assert "busy" in said.lower()
        assert mounted(mountpoint)
    demo.run("umount", mountpoint)


@pytest.mark.mount
def test_a_mount_point_is_known_by_any_of_its_names(demo: Cli, mountpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(mountpoint)
    demo.run("mount", os.path.relpath(tmp_path / "link", REPOSITORY))
    assert mounted(mountpoint)
    assert demo.fails("mount", mountpoint) == f"{mountpoint} is a chatfs mount already: see chatfs status"
    demo.run("umount", tmp_path / "link")
    assert not mounted(mountpoint)


@pytest.mark.mount
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, None])
def test_a_foreground_mount_says_when_it_is_ready_and_ends_well(
    demo: Cli, mountpoint: Path, ending: signal.Signals | None
) -> None:
    process = demo.begin("mount", "--foreground", mountpoint)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().decode() == f"mounted file://{demo.store} on {mountpoint}\n"
    assert (mountpoint / "demo").is_dir()
    assert status_of(demo, mountpoint)["pid"] == process.pid
    if ending is None:
        demo.run("umount", mountpoint)
    else:
        process.send_signal(ending)
    assert process.wait(30) == 0
    assert process.stderr.read() == b""
    assert not mounted(mountpoint)


@pytest.mark.mount
def test_what_a_crash_left_dead_is_mounted_anew_or_unmounted(demo: Cli, mountpoint: Path) -> None:
    for command in ("mount", "umount"):
        if not mounted(mountpoint):
            demo.run("mount", mountpoint)
        pid = status_of(demo, mountpoint)["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not alive(pid), what="the daemon's end")
        assert status_of(demo, mountpoint)["pid"] is None
        demo.run(command, mountpoint)
        assert mounted(mountpoint) is (command == "mount")
    assert list(mountpoint.iterdir()) == []


@pytest.mark.mount
def test_a_mount_that_fails_to_start_says_why_and_leaves_nothing(demo: Cli, mountpoint: Path) -> None:
    (demo.store / "store.json").write_text('{"format": 99, "id": "x"}')
    said = f"the store at {demo.store} has format 99, this chatfs knows 2: use a newer chatfs"
    assert demo.fails("mount", mountpoint) == said
    assert demo.fails("mount", "--foreground", mountpoint) == said
    assert not mounted(mountpoint)
    assert not (demo.root / "state" / "chatfs").exists()


def test_what_cant_be_mounted_is_said_beforehand(cli: Cli, tmp_path: Path) -> None:
    if not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None:
        pytest.skip("that is said first")
    assert (
        cli.fails("mount", tmp_path / "none")
        == f"{tmp_path}/none doesn't exist: make it first: mkdir -p {tmp_path}/none"
    )
    (tmp_path / "file").write_text("")
    assert cli.fails("mount", tmp_path / "file") == f"{tmp_path}/file is not a directory: mount on a directory"
    cli.run("workspace", "create", "demo")
    said = f"the store {cli.store} is inside the mount point: mount somewhere else"
    assert cli.fails("mount", tmp_path) == said
    assert cli.fails("mount", "--foreground", tmp_path) == said
    assert cli.fails("umount", tmp_path) == f"{tmp_path} is not a chatfs mount: see chatfs status"


def test_a_missing_fusermount3_is_said(cli: Cli, tmp_path: Path) -> None:
    environment = cli.environment | {"PATH": str(tmp_path)}
    done = subprocess.run(
        cli.command("mount", tmp_path), check=False, capture_output=True, env=environment, cwd=REPOSITORY
    )
    assert done.returncode == 1
    assert done.stderr in {
        b"chatfs: fusermount3 isn't installed: install the fuse3 package\n",
        b"chatfs: /dev/fuse is missing: load the kernel's module (modprobe fuse), or give the container that device\n",
    }


# ---- status


def test_the_status_of_a_store(demo: Cli) -> None:
    demo.run("chat", "new", "demo/old")
    demo.run("chat", "archive", "demo/old")
    found = demo.json("status")
    assert (found["store"], found["exists"], found["format"]) == (f"file://{demo.store}", True, 2)
    assert (found["workspaces"], found["chats"]) == (1, {"chats": 1, "archive": 1, "trash": 0})
    assert 0 < found["free_bytes"] <= found["size_bytes"]
    assert "chats       1, 1 archived, 0 in the trash" in demo.run("status").splitlines()


# ---- records of mounts


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "chatfs"


def test_a_record_is_of_a_process_that_runs(state: Path) -> None:
    here = Path("/some/where")
    with mount_records.recorded(here, "file:///s"):
        found = mount_records.find(here)
        assert found is not None
        assert (found.pid, found.store) == (os.getpid(), "file:///s")
        assert mount_records.find(Path("/some-where")) is None
        assert not found.wait(0)
        (path,) = state.iterdir()
        note = path.read_bytes()
    assert mount_records.find(here) is None
    path.write_bytes(note.replace(b'"started":', b'"started":1'))
    assert mount_records.find(here) is None, "another process has the number now"
    path.write_bytes(b"{")
    assert mount_records.find(here) is None


def test_waiting_for_a_process_ends_with_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    started = mount_records._started(process.pid)
    assert started is not None
    record = mount_records.MountRecord(process.pid, started, "/m", "s")
    assert not record.wait(0)
    waiting = threading.Timer(0, process.stdin.close)
    waiting.start()
    assert record.wait(30)
    waiting.join()
    process.wait(30)
    assert record.wait(0)


def test_a_long_log_is_emptied_by_the_next_mount(state: Path) -> None:
    here = Path("/some/where")
    for size, left in ((mount_records.LOG_MAX, mount_records.LOG_MAX), (mount_records.LOG_MAX + 1, 0)):
        state.mkdir(parents=True, exist_ok=True)
        mount_records.log_path(here).write_bytes(b"x" * size)
        log = mount_records.open_log(here)
        assert os.fstat(log).st_size == left
        os.close(log)


# ---- mount(8)


def test_the_words_of_mount_become_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATFS_STORE", "file:///default")
    options, pretended = mount_helper.parse(
        [
            "/srv/chats",
            "/mnt/x",
            "-v",
            "-o",
            "ro,nosuid,nofail,x-systemd.automount,allow_other",
            "-o",
            "durability=relaxed,no_fast_loop",
        ]
    )
    assert (options.url, options.mountpoint) == ("file:///srv/chats", Path("/mnt/x"))
    assert (options.read_only, options.allow_other, options.durability) == (True, True, Durability.RELAXED)
    assert not options.fast_loop
    assert not pretended
    options, pretended = mount_helper.parse(["chatfs", "/mnt/x", "-fn"])
    assert (options.url, options.read_only, pretended) == ("file:///default", False, True)
    assert options.fast_loop


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chatfs", "/mnt/x", "-o", "rw,colour"], "unknown option 'colour'"),
        (["chatfs", "/mnt/x", "-o", "durability=some"], "durability is strict or relaxed, not 'some'"),
        (["chatfs"], "usage: mount.fuse.chatfs SOURCE MOUNTPOINT"),
        (["chatfs", "/mnt/x", "-q"], "option -q not recognized"),
    ],
)
def test_what_mount_may_not_ask_for(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mount_helper.parse(words)


def test_a_sloppy_mount_takes_any_option() -> None:
    mount_helper.parse(["chatfs", "/mnt/x", "-s", "-o", "colour"])


def test_the_exit_codes_are_those_of_mount(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATFS_STORE", str(tmp_path / "store"))
    assert mount_helper.main(["chatfs"]) == 1
    assert mount_helper.main(["chatfs", str(tmp_path / "none")]) == 32
    assert mount_helper.main(["chatfs", str(tmp_path / "none"), "-f"]) == 0
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.mount
def test_the_helper_mounts(demo: Cli, mountpoint: Path) -> None:
    code = "import sys; from fusefs.cli.mount_helper import main; sys.exit(main())"
    words = [sys.executable, "-c", code, str(demo.store), str(mountpoint), "-o", "rw,noatime"]
    subprocess.run(words, check=True, env=demo.environment, cwd=REPOSITORY, timeout=60)
    assert (mountpoint / "demo/chats/trip").is_dir()
    demo.run("umount", mountpoint)
