"""What a check finds, and how it sums up.

Concurrency: `Findings` takes them from any thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    """How bad it is: error, data is lost or damaged; warning, something that can be rebuilt is wrong, or odd; info."""

    ERROR = 0
    WARNING = 1
    INFO = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    `kind` is a word for programs; `where` is WORKSPACE/CHAT ("" for the store itself) and `path` is relative to the
    store's directory. `advice` is what to do about it, `done` what a repair did: then nothing is left to do.
    """

    severity: Severity
    kind: str
    what: str
    where: str = ""
    path: str = ""
    advice: str = ""
    done: str = ""
    stays: bool = False
    """Whether what was done doesn't make it good."""

    @property
    def left(self) -> bool:
        """Whether it is still so."""
        return self.stays or not self.done

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "severity": self.severity.name.lower(),
            "kind": self.kind,
            "where": self.where,
            "path": self.path,
            "what": self.what,
            "advice": self.advice,
            "done": self.done,
            "left": self.left,
        }


@dataclass(slots=True)
class Counts:
    """What was looked at."""

    logs: int = 0
    entries: int = 0
    blobs: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Report:
    """All findings, the worst first, and what was looked at."""

    findings: list[Finding] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def count(self, severity: Severity, *, left: bool = True) -> int:
        """How many of a severity are left (or were repaired)."""
        return sum(found.severity is severity and found.left is left for found in self.findings)

    @property
    def repaired(self) -> int:
        """How many were repaired."""
        return sum(not found.left for found in self.findings)

    @property
    def exit_code(self) -> int:
        """As fsck(8): 0 no errors, 1 errors corrected, 4 errors left."""
        if self.count(Severity.ERROR):
            return 4
        return 1 if self.repaired else 0


def counted(count: int, what: str) -> str:
    """How many of a thing: `1 file`, `2 files`, `2 entries`."""
    if count == 1:
        return f"1 {what}"
    return f"{count} {what.removesuffix('y') + 'ies' if what.endswith('ry') else what + 's'}"


class Findings:
    """A report in the making."""

    def __init__(self) -> None:
        self.report = Report()
        self._guard = threading.Lock()

    def add(self, finding: Finding) -> None:
        """One more."""
        with self._guard:
            self.report.findings.append(finding)

    def looked(self, *, logs: int = 0, entries: int = 0, blobs: int = 0, size: int = 0) -> None:
        """Count what was read."""
        with self._guard:
            counts = self.report.counts
            counts.logs += logs
            counts.entries += entries
            counts.blobs += blobs
            counts.bytes += size

    def finish(self) -> Report:
        """The report, in order."""
        self.report.findings.sort(key=lambda found: (found.severity, found.where, found.path))
        return self.report
