"""Lines that never end: they wait in memory, and there is only so much of it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.support.mounts import message, mounting
from tests.support.ops import refused
from tests.support.small_memory import UNFINISHED_MAX

pytestmark = pytest.mark.mount


def test_unfinished_lines_of_many_handles_fill_no_memory(tmp_path: Path) -> None:
    with mounting(tmp_path, program="tests.support.small_memory") as mounted:
        chat = mounted.workspace().chat()
        files = [chat.jsonl.open("ab", buffering=0) for _ in range(10)]
        begun = b'"' + b"x" * (UNFINISHED_MAX // 8)
        for file in files[:7]:
            file.write(begun)
        for file in files[7:]:
            with refused(errno.ENOMEM):
                file.write(begun)
        files[7].write(message("whole lines are taken"))
        files[0].write(b'"\n')
        files[8].write(begun)
        for file in files[1:4]:
            with refused(errno.EINVAL):
                file.close()
        for file in files[4:7]:
            file.write(b'"\n')
        files[9].write(begun)
        for file in files[8:]:
            file.write(b'"\n')
        for file in files:
            file.close()
        assert len(chat.log()) == 7
        assert len(list(chat.directory.glob("history.jsonl.rejected-*"))) == 3
