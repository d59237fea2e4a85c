"""The process that makes an announcer's calls: what its absence means."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from fusefs.announce_calls import call
from fusefs.announce_process import CallingProcess

FROM_ANOTHER_PID_NAMESPACE = 0
"""What the kernel says of a request whose process the mount can't see."""


def _missing(path: Path) -> None:
    """There is no such program: Python was replaced beneath the mount."""


def _ending(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o700)


@pytest.mark.parametrize("interpreter", [_missing, _ending])
def test_one_that_cannot_run_is_as_one_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: Callable[[Path], None]
) -> None:
    interpreter(tmp_path / "python")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    async def run() -> None:
        process = CallingProcess()
        for _ in range(3):
            with pytest.raises(BrokenPipeError):
                await process.call([b"modify", b"secret", b"/", b""])
            assert process.pid != FROM_ANOTHER_PID_NAMESPACE
        await process.end()
        process.reap()

    trio.run(run)


def test_nobody_is_taken_for_it_before_it_was_started_and_after_it_ended() -> None:
    async def run() -> None:
        process = CallingProcess()
        assert process.pid != FROM_ANOTHER_PID_NAMESPACE
        assert await process.call([b"modify", b"secret", b"/", b""]) != 0
        assert process.pid > 0
        await process.end()
        assert process.pid != FROM_ANOTHER_PID_NAMESPACE
        process.reap()

    trio.run(run)


@pytest.mark.parametrize("name", [b"../escaped", b"a/b", b"..", b"."])
@pytest.mark.parametrize("kind", [b"mkdir", b"mknod", b"rmdir", b"unlink", b"rename", b"modify"])
def test_what_is_no_name_is_never_touched(kind: bytes, name: bytes, tmp_path: Path) -> None:
    here = bytes(tmp_path)
    for fields in ([kind, b"secret", here, name], [kind, b"secret", here, b"old", here, name]):
        with pytest.raises(OSError, match="not a name"):
            call(fields)
    assert not list(tmp_path.iterdir())
