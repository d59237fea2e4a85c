"""A process that reads and saves a text as editors do, step by step. For one thread."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

BASE = "## user\n\none\n\n## assistant\n\ntwo\n\n## user\n\nthree\n"
"""A text of three messages."""


class Editor:
    """A process of its own that reads the text and, when told, saves it changed: as an editor does it."""

    PROGRAM = textwrap.dedent("""
        import json, os, sys
        for line in sys.stdin:
            do = json.loads(line)
            match do["do"]:
                case "read":
                    text = open(do["path"]).read()
                case "save":
                    with open(do["path"], "w") as file:
                        file.write(do["text"])
                    text = do["text"]
                case "rename":
                    with open(do["path"] + ".tmp", "w") as file:
                        file.write(do["text"])
                    os.rename(do["path"] + ".tmp", do["path"])
                    text = do["text"]
                case "open":
                    file = open(do["path"], do["mode"])
                    text = file.read() if "+" in do["mode"] or "r" in do["mode"] else ""
                case "write":
                    if "at" in do:
                        file.seek(do["at"])
                    file.write(do["text"])
                    file.flush()
                    text = ""
                case "close":
                    file.close()
                    text = ""
            print(json.dumps(text), flush=True)
    """)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = ""
        command = [sys.executable, "-c", self.PROGRAM]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _do(self, do: str, **more: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": do, "path": str(self.path), **more}), file=self._process.stdin, flush=True)
        found = json.loads(self._process.stdout.readline())
        assert isinstance(found, str)
        return found

    def read(self) -> str:
        self.text = self._do("read")
        return self.text

    def replace(self, old: str, new: str, how: str = "save") -> None:
        """Save what this editor has in its buffer, with `old` replaced."""
        assert old in self.text
        self.text = self.text.replace(old, new)
        self._do(how, text=self.text)

    def open(self, mode: str) -> str:
        return self._do("open", mode=mode)

    def write(self, text: str, **at: int) -> None:
        self._do("write", text=text, **at)

    def close(self) -> None:
        self._do("close")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(10) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()
