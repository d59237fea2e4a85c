"""`chatfs fsck`: read all of a `file:` store, say what is wrong, repair what can be repaired without a loss."""

from __future__ import annotations

from store.fsck.check import Scope, check_store, size_of
from store.fsck.findings import Counts, Finding, Report, Severity, counted

__all__ = ["Counts", "Finding", "Report", "Scope", "Severity", "check_store", "counted", "size_of"]
