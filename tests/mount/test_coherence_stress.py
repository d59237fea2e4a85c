"""No reader of the mount ever sees an older state after a newer one, whoever writes.

Writers: the library, the command line, a second mount of the store, and the mount itself. What is checked, says
tests/support/coherence.py. Long form: `scripts/torture coherence`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from store.chat import Chat as StoreChat
from store.workspace import Workspace as StoreWorkspace
from tests.support import coherence
from tests.support.mounts import mounting
from tests.support.ops import with_chat
from tests.support.torture import rounds, seeded

pytestmark = pytest.mark.mount

SECONDS = 3
LEAST = 4
"""How much of everything must have been written."""
PATIENCE = 60
"""Seconds more that a busy machine gets for that."""


@pytest.mark.timeout(120 + rounds(0, 60) * SECONDS)
def test_readers_never_go_back(tmp_path: Path) -> None:
    seed = seeded("coherence").randrange(1 << 30)
    with mounting(tmp_path / "a") as here:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "store").symlink_to(here.store)
        workspace = here.workspace()
        workspace.chat()
        workspace.chat("c-0")

        async def begin(_: StoreWorkspace, found: StoreChat) -> None:
            await found.attach("same", b"00000000", "test")
            await found.attach("v-0", b"", "test")

        with_chat(here, "demo", "trip", begin)
        with mounting(tmp_path / "b") as there:
            board = coherence.Board(tmp_path / "board")
            running = {}
            for role in (*coherence.READERS, "library", "mount", "other"):
                chat = (there if role == "other" else here).mountpoint / "demo" / "chats" / "trip"
                given = {"board": str(tmp_path / "board"), "chat": str(chat), "url": here.url, "seed": seed}
                command = [sys.executable, coherence.__file__, role, json.dumps(given)]
                running[role] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            until = time.monotonic() + rounds(1, 60) * SECONDS
            number = 0
            while all(process.poll() is None for process in running.values()):
                done = min(value for stream, value in board.acknowledged().items() if stream != "command")
                if time.monotonic() > until and (done >= LEAST or time.monotonic() > until + PATIENCE):
                    break
                number += 1
                here.cli("append", "demo/trip", given=coherence.line("command", number))
                board.acknowledge("command", number)
            board.stop()
            said = {role: process.communicate(timeout=60)[0].decode() for role, process in running.items()}
            failed = {role: text for role, text in said.items() if running[role].returncode}
            assert not failed, "\n".join(f"{role}: {text}" for role, text in failed.items())
            acknowledged = board.acknowledged()
            print(acknowledged, *said.values())  # noqa: T201 - pytest shows it with a failure
            assert all(acknowledged[stream] >= LEAST for stream in coherence.STREAMS if stream != "command")
            assert acknowledged["command"]
