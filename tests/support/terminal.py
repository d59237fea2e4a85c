"""A program on a real terminal, by way of tmux: for editors and pagers as people use them."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import clean_environment
from tests.support.waiting import wait_for


@dataclass(frozen=True)
class Terminal:
    """One tmux server with one window of 100 by 30 characters."""

    socket: Path
    status: Path

    def _tmux(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["tmux", "-S", str(self.socket), "-f", "/dev/null", *words], check=False, capture_output=True, text=True
        )

    @property
    def screen(self) -> str:
        """What is shown now."""
        return self._tmux("capture-pane", "-p").stdout

    def type(self, *keys: str) -> None:
        """Press keys: text, or tmux's names for the special ones (`Escape`, `Enter`, `C-x`)."""
        assert self._tmux("send-keys", *keys).returncode == 0, "the program has ended"

    def shows(self, text: str) -> None:
        """Wait until `text` is on the screen."""
        wait_for(lambda: text in self.screen, what=f"{text!r} on the screen; it shows:\n{self.screen}")

    def ended(self) -> None:
        """Wait until the program has ended, with status 0."""
        wait_for(self._has_ended, what=f"the program's end; the screen shows:\n{self.screen}")
        assert self.status.read_text() == "0\n", self.screen

    def _has_ended(self) -> bool:
        return self.status.exists() and self.status.read_text().endswith("\n")


@contextlib.contextmanager
def terminal(directory: Path, *command: str | Path) -> Iterator[Terminal]:
    """Run `command` on a terminal; `directory` is for tmux's socket and the program's home."""
    found = Terminal(directory / "tmux", directory / "status")
    # tmux can miss how its program ended, so a shell around it, which outlives a C-c, writes that down.
    line = f"trap : INT; {shlex.join(map(str, command))}; echo $? > {shlex.quote(str(found.status))}"
    environment = clean_environment(directory) | {"TERM": "screen", "SHELL": "/bin/sh"}
    start = ["tmux", "-S", str(found.socket), "-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", line]
    subprocess.run(start, check=True, env=environment, capture_output=True)
    try:
        yield found
    finally:
        subprocess.run(["tmux", "-S", str(found.socket), "kill-server"], check=False, capture_output=True)
