"""Who made a request: what is remembered of a thread is never another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from fusefs import callers
from fusefs.callers import THREADS, Caller, caller_of, process_of
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def nobody_known() -> Iterator[None]:
    _forget()
    yield
    _forget()


def _forget() -> None:
    while callers._threads:
        os.close(callers._threads.popitem()[1].descriptor)


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
