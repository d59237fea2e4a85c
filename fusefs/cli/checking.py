"""`chatfs fsck`: checks a store, and repairs what can be repaired without a loss."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fusefs.cli.output import Progress, complain, size_text, write_json, write_line
from fusefs.cli.parser import Run
from store import registry
from store.errors import NotFound, StoreError
from store.registry import default_url

if TYPE_CHECKING:
    from store.fsck import Finding, Report

OPERATIONAL: Final = 8
CANCELLED: Final = 32


def _fsck(args: Namespace) -> None:
    try:
        report = _check(args)
    except KeyboardInterrupt:
        raise SystemExit(CANCELLED) from None
    except (StoreError, OSError) as error:
        if args.debug:
            raise
        complain(str(error) or type(error).__name__)
        raise SystemExit(OPERATIONAL) from None
    if args.json:
        write_json({"findings": [found.to_json() for found in report.findings], "summary": _summary(report)})
    else:
        for found in report.findings:
            write_line(_line(found))
        write_line(_total(report))
    sys.stdout.flush()
    raise SystemExit(report.exit_code)


def _check(args: Namespace) -> Report:
    from store.fsck import Scope, check_store, size_of  # noqa: PLC0415 - only this command needs it

    root = _directory(args)
    scope = None if args.space is None else Scope(args.space.workspace, args.space.chat)
    with Progress() as progress:
        total = size_of(root) if progress.shown and scope is None else 0
        done = 0

        def read(size: int) -> None:
            nonlocal done
            done += size
            progress.say(f"checked {size_text(done)}" + (f" of {size_text(total)}" if total else ""))

        return check_store(root, scope, repair=args.repair, full=args.full, read=read)


def _directory(args: Namespace) -> Path:
    url = args.store or default_url()
    root = registry.directory_of(url)
    if root is None or registry.scheme_of(url) != "file":
        advice = f"run git -C {root} fsck" if root is not None else "name a file: store"
        raise NotFound(f"a {registry.scheme_of(url)}: store has nothing that could be checked: {advice}")
    return root


def _line(found: Finding) -> str:
    """One line: how bad, where, what, and what was or is to be done."""
    places = [place for place in (found.where, found.path) if place]
    what = f"{found.what}: {found.done}" if found.done else found.what
    advice = f" ({found.advice})" if found.advice and found.left else ""
    repaired = "" if found.left else "repaired "
    return ": ".join([f"{repaired}{found.severity.name.lower()}", *places, f"{what}{advice}"])


def _summary(report: Report) -> dict[str, int]:
    from store.fsck import Severity  # noqa: PLC0415 - as above

    counts = report.counts
    return {
        "errors": report.count(Severity.ERROR),
        "warnings": report.count(Severity.WARNING),
        "repaired": report.repaired,
        "logs": counts.logs,
        "entries": counts.entries,
        "blobs": counts.blobs,
        "bytes": counts.bytes,
    }


def _total(report: Report) -> str:
    from store.fsck import counted  # noqa: PLC0415 - as above

    found = _summary(report)
    problems = [
        counted(found[f"{what}s"], what) if found[f"{what}s"] else f"no {what}s" for what in ("error", "warning")
    ]
    if found["repaired"]:
        problems.append(f"{found['repaired']} repaired")
    looked = f"{counted(found['logs'], 'log')} with {counted(found['entries'], 'entry')}"
    looked += f" and {counted(found['blobs'], 'blob')}, {size_text(found['bytes'])}"
    return f"{', '.join(problems)}; checked {looked}"


COMMANDS: Final[Mapping[str, Run]] = {
    "fsck": _fsck,
}
