"""Who made a request: what is remembered of a thread is never another's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusefs import callers
from fusefs.callers import PROCESSES, THREADS, Caller, caller_of, process_of, still_open
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def nobody_known() -> Iterator[None]:
    _forget()
    yield
    _forget()


def _forget() -> None:
    while callers._threads:
        os.close(callers._threads.popitem()[1].descriptor)
    while callers._processes:
        callers._processes.popitem()[1].close()


def test_the_process_and_program_of_a_request() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        wait_for(lambda: Caller(0, 0, child.pid).program == "sleep")
        caller = caller_of(SimpleNamespace(uid=1000, gid=100, pid=child.pid))
        assert (caller.process, caller.program, caller.actor) == (child.pid, "sleep", "uid:1000/sleep")
        assert (caller.uid, caller.gid) == (1000, 100)
    finally:
        child.kill()
        child.wait()
    # As of when it was looked at.
    assert caller.actor == "uid:1000/sleep"
    assert Caller(1000, 100, child.pid).actor == "uid:1000"
    assert process_of(child.pid) == 0
    assert process_of(0) == 0


def test_a_thread_is_its_process() -> None:
    asked, over, told = threading.Event(), threading.Event(), []

    def tell() -> None:
        told.append(threading.get_native_id())
        asked.set()
        over.wait(30)

    thread = threading.Thread(target=tell)
    thread.start()
    assert asked.wait(30)
    assert told[0] != os.getpid()
    assert process_of(told[0]) == os.getpid()
    assert process_of(told[0]) == os.getpid()
    over.set()
    thread.join()
    wait_for(lambda: process_of(told[0]) == 0)


def test_a_process_that_becomes_another_program() -> None:
    script = "import os, sys; sys.stdin.readline(); os.execvp('sleep', ['sleep', '60'])"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    try:
        wait_for(lambda: Caller(0, 0, child.pid).program.startswith("python"))
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        wait_for(lambda: Caller(0, 0, child.pid).program == "sleep")
    finally:
        child.kill()
        child.communicate()


def test_a_number_that_is_used_again_is_another_process() -> None:
    """As the kernel does when its numbers have gone round; here it is told which one comes next (only root may)."""
    first = subprocess.Popen(["sleep", "60"])
    number = first.pid
    wait_for(lambda: Caller(0, 0, number).program == "sleep")
    first.kill()
    first.wait()
    try:
        found = _with_number(number)
    except OSError:
        pytest.skip("only root can choose a process's number")
    try:
        assert process_of(number) == number
        assert Caller(0, 0, number).program not in {"", "sleep"}
    finally:
        os.kill(found, signal.SIGKILL)
        os.waitpid(found, 0)


def _with_number(number: int) -> int:
    """A child with that number, which does nothing. Others may take it first: tried again."""
    for _ in range(200):
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(number - 1))
        child = os.fork()
        if child == 0:
            while True:
                signal.pause()
        if child == number:
            return child
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    pytest.skip("another process took the number")


def test_whether_a_file_is_still_open_for_writing(tmp_path: Path) -> None:
    # In a process of its own: this one may have more files open than are looked through.
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.closerange(3, 1 << 16)
            _open_and_close(tmp_path / "f")
            code = 0
        except BaseException:  # noqa: BLE001 - nothing may come out of the copy of the test run
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def _open_and_close(path: Path) -> None:
    path.write_bytes(b"")
    ino, me = path.stat().st_ino, os.getpid()
    assert still_open(me, ino) is False
    first = os.open(path, os.O_WRONLY)
    second = os.open("/dev/null", os.O_WRONLY)
    assert (still_open(me, ino), still_open(me, ino + 1)) == (True, False)
    os.dup2(second, first)
    assert still_open(me, ino) is False
    # As many as before, under the same numbers.
    third = os.open(path, os.O_WRONLY)
    os.dup2(third, second)
    os.close(third)
    assert still_open(me, ino) is True
    os.close(second)
    # As many as before, under another number.
    third = os.open(path, os.O_RDONLY)
    fourth = os.open("/dev/null", os.O_WRONLY)
    assert still_open(me, ino) is False
    os.dup2(os.open(path, os.O_WRONLY), fourth)
    os.close(third)
    assert still_open(me, ino) is True
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == ino:
                os.close(descriptor)
    os.close(first)
    assert still_open(me, ino) is False


def test_the_files_of_a_process_that_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        ino = os.fstat(file.fileno()).st_ino
        child = subprocess.Popen(["sleep", "60"], stdout=file)
    try:
        assert still_open(child.pid, ino) is True
    finally:
        child.kill()
        child.wait()
    assert still_open(child.pid, ino) is None
    assert child.pid not in callers._processes


def test_few_processes_files_are_kept_open() -> None:
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(PROCESSES + 5)]
    try:
        before = len(os.listdir("/proc/self/fd"))
        for child in children:
            assert still_open(child.pid, 1) is False
        assert len(os.listdir("/proc/self/fd")) <= before + PROCESSES
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_few_descriptors_are_kept() -> None:
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(THREADS + 10)]
    try:
        before = len(os.listdir("/proc/self/fd"))
        for child in children:
            assert process_of(child.pid) == child.pid
        assert len(os.listdir("/proc/self/fd")) <= before + THREADS
        assert process_of(children[0].pid) == children[0].pid
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.parametrize(("name", "shown"), [("a b.c", "a b.c"), ("x/y|z", "x_y_z"), ("ö\n", "ö")])
def test_odd_names(name: str, shown: str) -> None:
    script = f"import sys; open('/proc/self/comm', 'w').write({name!r}); print(flush=True); sys.stdin.readline()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert Caller(0, 0, child.pid).program == shown
    child.communicate(b"\n")
