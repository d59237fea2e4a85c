"""The bench at work, on tiny sizes: real mounts of chatfs and of the peers that are installed."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import orjson
import pytest

from tests.bench import example
from tests.bench.client import run
from tests.bench.comparison import PREFERRED
from tests.bench.corpus import WORKSPACE, build_many
from tests.bench.loops import LINE, LOOPS
from tests.bench.measure import BenchError
from tests.bench.target import ROOT, Chatfs, Native
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

INSTALLED = [name for name in ("bindfs", "gocryptfs") if shutil.which(name)]


def bench(*arguments, directory):
    """The program, started."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench", "--smoke", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_compares_chatfs_with_the_native_file_system_and_peers(tmp_path):
    (tmp_path / "run").mkdir()
    files = {name: tmp_path / name for name in ("found.json", "found.svg", "found.md")}
    asked = ["--json", files["found.json"], "--plot", files["found.svg"], "--markdown", files["found.md"]]
    asked += ["--only", "warm-stat", "cold-listing", "--peers", *INSTALLED]
    with bench(*asked, directory=tmp_path / "run") as running:
        stdout, stderr = running.communicate(timeout=90)
    assert running.returncode == 0, stderr
    assert files["found.md"].read_text() == stdout
    assert "<svg" in files["found.svg"].read_text()
    found = orjson.loads(files["found.json"].read_bytes())
    assert found["failures"] == {}
    comparisons = {one["key"]: one for one in found["comparisons"]}
    assert set(comparisons) == {"warm stat", "warm stat: requests", "cold ls -l"}
    for one in comparisons.values():
        everybody = {"chatfs", *INSTALLED} | ({"native"} if one["unit"] else set())
        assert set(one["targets"]) == everybody, one["failures"]
        if one["unit"]:
            assert all(target["median"] > 0 for target in one["targets"].values())
            assert one["ratios"]["native"]["median"] > 0
    assert list((tmp_path / "run").iterdir()) == []


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_mount_and_no_daemon_outlives_it(tmp_path, number):
    with bench("--only", "warm-stat", "--peers", directory=tmp_path) as running:
        daemons: list[int] = []

        def mounted():
            mounts = Path(f"/proc/{running.pid}/mountinfo").read_text()
            daemons[:] = children(running.pid)
            return daemons and str(tmp_path) in mounts

        wait_for(mounted, 60, what="a mount")
        running.send_signal(number)
        running.communicate(timeout=60)
    assert running.returncode == (128 + number if number == signal.SIGTERM else -number)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in daemons), what="the daemons' end")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    if number == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []


def test_a_daemon_that_doesnt_answer_costs_its_turn_only(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    build_many(tmp_path / "store", 1, 0)
    target = Chatfs(tmp_path / "store", WORKSPACE, "relaxed")

    def stopped():
        with target:
            os.kill(target.daemon, signal.SIGSTOP)
            with pytest.raises(BenchError, match=r"ls took more than 0\.3 s"):
                run(target, "ls", target.chats, 1, patience=0.3)
            stat = Path(f"/proc/{target.daemon}/stat")
            wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", what="the daemon's end")

    with pytest.raises(BenchError, match="chatfs ended badly, with status -9"):
        stopped()
    assert str(target.mountpoint) not in Path("/proc/self/mountinfo").read_text()
    with target:
        assert run(target, "ls", target.chats, 1) > 0


def test_every_loop_runs(tmp_path):
    native = Native(tmp_path)
    chat = native.new_chat("one")
    log, files = chat / "history.jsonl", chat / "attachments"
    large = tmp_path / "large.bin"
    arguments = {
        "write": (large, 2 << 20),
        "read": (large, 2 << 20),
        "dd": (large, 2),
        "pread": (large, 100, "warm"),
        "create": (files, 30, 100),
        "stat": (files, 300),
        "lookup": (files, 29),
        "ls": (files, 30),
        "getattr": (large, 100),
        "append": (log, 20),
        "append-each": (log, 10),
    }
    assert set(arguments) == set(LOOPS)
    for name, given in arguments.items():
        assert run(native, name, *given) > 0
    assert large.stat().st_size == 2 << 20
    assert log.read_bytes() == LINE * 30
    assert len(LINE) == 200


def test_a_loop_that_finds_something_else_fails(tmp_path):
    native = Native(tmp_path)
    native.new_chat("one")
    with pytest.raises(BenchError, match="lists 1 names instead of 2"):
        run(native, "ls", native.chats, 2)
    with pytest.raises(BenchError, match="No such file or directory"):
        run(native, "append", native.chats / "none" / "history.jsonl", 2)


@pytest.mark.skipif(not shutil.which("bindfs"), reason="bindfs isn't installed")
def test_a_program_that_isnt_a_pass_through_is_refused(tmp_path):
    with bench("--passthrough-ll", "/nonexistent", directory=tmp_path) as running:
        _, stderr = running.communicate(timeout=30)
    assert running.returncode == 2
    assert f"{PREFERRED}.c" in stderr


def test_the_example_is_believed_only_if_it_is_the_known_one(tmp_path, monkeypatch):
    kept = tmp_path / f"passthroughfs-{example.VERSION}.py"
    kept.write_text("import os; os.abort()\n")
    with tarfile.open(tmp_path / f"pyfuse3-{example.VERSION}.tar.gz", "w:gz") as forged:
        forged.add(kept, f"pyfuse3-{example.VERSION}/examples/passthroughfs.py")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(example.Unavailable, match="pip could not download"):
        example.example(tmp_path)
