"""Check one space: its log, what the log refers to, its lease, and what else stands in its directory.

A log may grow while it is read, and be replaced; what doesn't look right is looked at again under the log's lock before
it is called damaged.

Concurrency: for any thread, one space at a time.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from store import durability
from store.beginning import COMPACTOR
from store.drivers.file import fence, repair, salvage, survey, takeover
from store.drivers.file.tail import ORIGIN, Mark, locate, seq_of
from store.drivers.file.text import BASE_NAME, LOG_NAME, encode_base, read_base
from store.drivers.file.torn import is_torn
from store.errors import FormatError
from store.events import ChatCreated
from store.fsck import logs
from store.fsck.context import RESTORE, Context, is_old, keep_copies, locked_log, reason
from store.fsck.findings import counted
from store.fsck.objects import References
from store.model import ChatId, Head, Millis, NewEntry, Seq, SpaceId, WorkspaceId, workspace_space

_TRIES: Final = 5
_SPANS: Final = 8
"""How many a finding names."""
_FAR_MS: Final = 366 * 86_400_000
"""No lease is granted for longer."""


class _Verdict(Enum):
    """Of a log that didn't look right."""

    WHOLE = 0
    DAMAGED = 1
    REPAIRED = 2


@dataclass(slots=True)
class Facts:
    """What a space's log says; `whole`: all of it could be read."""

    space: SpaceId
    where: str
    checked: logs.Checked | None = None
    deleted: set[str] = field(default_factory=set)
    """Chats whose deletion a workspace's log names."""
    lost: int = 0
    """Entries that an earlier repair had to give up."""

    @property
    def whole(self) -> bool:
        """Whether every line is as it was written."""
        return self.checked is not None and self.checked.complete


@dataclass(slots=True)
class Told:
    """What the telling events of a log come to."""

    references: list[logs.Telling] = field(default_factory=list)
    compactions: list[logs.Telling] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    lost: int = 0


class SpaceCheck:
    """Checks spaces of one store."""

    def __init__(self, context: Context, references: References) -> None:
        self._context = context
        self._references = references

    def check_log(
        self, space: SpaceId, where: str, made_at: Collection[int], known: tuple[logs.Checked, Told] | None = None
    ) -> Facts:
        """Read the log and check what it refers to. `made_at`: seqs whose crcs are to be told; `known`: it was read."""
        facts = Facts(space, where)
        path = self._context.root / space / LOG_NAME
        if takeover.is_interrupted(path.parent):
            known = None
            what = f"a crash came while the log was copied: its last entries may only be in {takeover.TAKEN_NAME}"
            advice = "whoever opens the log next finishes it"
            self._context.warning("takeover", what, path, where, advice=advice, fix=lambda: _finish_takeover(path))
        if known is not None:
            facts.checked, told = known
        else:
            found = self._look_until_settled(facts, path, made_at)
            if found is None:
                return facts
            told = found
        if facts.checked is not None:
            self._context.findings.looked(logs=1, entries=facts.checked.seq - facts.checked.first_seq + 1)
        facts.deleted, facts.lost = told.deleted, told.lost
        if told.lost:
            what = f"{counted(told.lost, 'entry')} couldn't be read when the log was repaired"
            self._context.info("entries-lost", what, path, where)
        self._refer(facts, path, told)
        return facts

    def _look_until_settled(self, facts: Facts, path: Path, made_at: Collection[int]) -> Told | None:
        """Look, and judge and repair what isn't right, until that is done; None where the log can't be read at all."""
        context, where = self._context, facts.where
        for _ in range(_TRIES):
            try:
                found, told = self.look(facts.space, made_at)
            except FileNotFoundError:
                context.error("log-missing", "the log is missing", path, where, advice=RESTORE)
                return None
            except OSError as error:
                context.error("log-unreadable", f"the log can't be read: {reason(error)}", path, where, advice=RESTORE)
                return None
            if self._is_settled(found, facts.space, where, path):
                facts.checked = found
                return told if facts.whole else self._readable(path)
        context.warning("log-busy", "the log was replaced again and again", path, where, advice="try again")
        return None

    def look(self, space: SpaceId, made_at: Collection[int]) -> tuple[logs.Checked | None, Told]:
        """What the log says, as far as it can be read, and what it tells. Raises OSError."""
        while True:
            told = Told()
            path = self._context.root / space / LOG_NAME
            fd = self._context.open(path)
            try:
                found = self._read(fd, path.parent, made_at, told)
                if os.fstat(fd).st_nlink:  # else it was replaced meanwhile
                    return found, told
            finally:
                os.close(fd)

    def _is_settled(self, found: logs.Checked | None, space: SpaceId, where: str, path: Path) -> bool:
        """Whether what was found is how it is; False: it was repaired, and has to be read again."""
        if found is not None and found.complete:
            return True
        verdict = self._judge(space, where, path, found)
        if found is not None:
            found.complete = verdict is _Verdict.WHOLE
        return verdict is not _Verdict.REPAIRED

    def _readable(self, path: Path) -> Told:
        """What the lines of a damaged log tell that look as if they could be believed."""
        told = Told()
        with contextlib.suppress(OSError):
            fd = self._context.open(path)
            try:
                for line in logs.lines_between(fd, 0, os.fstat(fd).st_size):
                    telling = logs.telling_of(line)
                    if telling is not None:
                        self._tell(telling, told)
            finally:
                os.close(fd)
        return told

    def _read(self, fd: int, directory: Path, made_at: Collection[int], told: Told) -> logs.Checked | None:
        try:
            base = read_base(directory)
        except (FormatError, OSError):
            return None
        size = os.fstat(fd).st_size
        first = seq_of(os.pread(fd, 40, 0))
        if first is not None and first <= base.seq:
            # A truncation was interrupted, or is about to end.
            found = locate(fd, size, Seq(base.seq))
            if found is None or found.crc != base.crc:
                return None
            base = found
        return logs.check(
            fd, size, base, lambda telling: self._tell(telling, told), wanted=made_at, read=self._context.read
        )

    def _tell(self, telling: logs.Telling, told: Told) -> None:
        match telling.value["type"]:
            case "attachment.put":
                if not self._references.is_known(telling.value.get("digest"), telling.value.get("size")):
                    told.references.append(telling)
            case "log.compacted":
                if telling.actor == COMPACTOR:
                    told.compactions.append(telling)
            case "log.lost":
                told.lost += telling.actor == salvage.ACTOR
            case "chat.deleted":
                told.deleted.add(str(telling.value.get("chat")))

    def _refer(self, facts: Facts, path: Path, told: Told) -> None:
        for telling in told.references:
            self._references.check_attachment(facts.where, path, telling)
        if facts.checked is None or not facts.checked.truncated_at:
            return
        through = facts.checked.truncated_at
        bases = [telling for telling in told.compactions if telling.value.get("through") == through]
        if bases:
            self._references.check_base(facts.where, path, bases[0])
        elif told.compactions or told.lost or not facts.whole:
            self._references.find_base(facts.where, path, through, facts.checked)
        else:
            self._context.info(
                "truncated", f"entries up to {through} were dropped: history.md begins behind them", path, facts.where
            )

    # ---- damage

    def _judge(self, space: SpaceId, where: str, path: Path, found: logs.Checked | None) -> _Verdict:
        """Look again under the lock at what isn't as it must be, report and repair."""
        context = self._context
        try:
            with locked_log(path, repair=context.repair) as fd:
                return self._judge_locked(fd, space, where, path, found)
        except OSError as error:
            context.error("log-unreadable", f"the log can't be read: {reason(error)}", path, where, advice=RESTORE)
            return _Verdict.DAMAGED

    def _judge_locked(self, fd: int, space: SpaceId, where: str, path: Path, found: logs.Checked | None) -> _Verdict:
        context = self._context
        size = os.fstat(fd).st_size
        base, rebase = self._base(fd, size, where, path.parent)
        if base is None:
            return _Verdict.DAMAGED
        start = None
        if found is not None and not rebase and found.end > base.end:
            start = locate(fd, found.end, Seq(found.seq))
            if start is None or (start.crc, start.end) != (found.crc, found.end):
                start = None  # another file by now
        plan, torn = _plan(fd, size, base, start)
        if torn:
            left = size - plan.end.end
            mark = plan.end
            tail = f"an interrupted write left {counted(left, 'byte')} behind entry {mark.seq}"
            advice = "whoever opens the log next moves them to quarantine/"
            fix = (
                (lambda: self._keep_torn(fd, space, left, mark))
                if plan.damaged
                else lambda: self._cut(fd, space, left, mark)
            )
            context.info("torn-tail", tail, path, where, advice=advice, fix=fix)
        if plan.damaged:
            context.error("log-damaged", _damage(plan), path, where, fix=lambda: self._salvage(fd, space, plan, rebase))
        elif rebase:
            what = f"{BASE_NAME} is damaged; the log's first line shows what it said"
            context.error(
                "base-damaged", what, path.parent / BASE_NAME, where, fix=lambda: _write_base(path.parent, base)
            )
        if context.repair and (plan.damaged or rebase or torn):
            return _Verdict.REPAIRED
        return _Verdict.DAMAGED if plan.damaged or rebase else _Verdict.WHOLE

    def _salvage(self, fd: int, space: SpaceId, plan: survey.Plan, rebase: bool) -> str:  # noqa: FBT001
        context = self._context
        if plan.lost:
            # What was made from the log before may have what the log has lost.
            directory = context.root / space
            keep_copies(context, [directory / "history.md", *sorted((directory / "snapshots").glob("[0-9]*"))])
        done = salvage.salvage(context.root, space, fd, plan, context.now(), rebase=rebase)
        lost = sum(last - first + 1 for first, last in done.lost)
        parts = [f"the log is whole again; the damaged bytes are kept as quarantine/{done.quarantine}"]
        if done.restored:
            parts.append(f"{counted(len(done.restored), 'entry')} restored")
        if lost:
            parts.append(f"{counted(lost, 'entry')} given up")
        return "; ".join(parts)

    def _cut(self, fd: int, space: SpaceId, size: int, mark: Mark) -> str:
        done = self._keep_torn(fd, space, size, mark)
        target = os.open(self._context.root / space / LOG_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            durability.system.ftruncate("log.repair", target, mark.end)
            durability.system.fdatasync("log.repair", target)
        finally:
            os.close(target)
        return done

    def _keep_torn(self, fd: int, space: SpaceId, size: int, mark: Mark) -> str:
        head = Head(Seq(mark.seq), Millis(mark.ts), mark.crc, Seq(1), mark.end)
        kept = repair.quarantine(self._context.root, space, fd, head, size, self._context.now())
        return f"moved to quarantine/{kept.name}"

    def _base(self, fd: int, size: int, where: str, directory: Path) -> tuple[Mark | None, bool]:
        """What the log begins behind, and whether `history.base` has to be written to say so. None: nobody knows."""
        path = directory / BASE_NAME
        try:
            base: Mark | None = read_base(directory)
        except (FormatError, OSError):
            base = None
        first = seq_of(os.pread(fd, 40, 0))
        if base is not None:
            if first is None or first == base.seq + 1 or (first > base.seq + 1 and base != ORIGIN):
                rebuilt = survey.rebuilt_base(fd, size)
                if base != ORIGIN and rebuilt is not None and _is_slip(base, rebuilt):
                    return rebuilt, True
                return base, False
            if first <= base.seq:
                found = locate(fd, size, Seq(base.seq))
                if found is not None and found.crc == base.crc:
                    return found, False
        rebuilt = survey.rebuilt_base(fd, size)
        if rebuilt is None and base is None:
            self._context.error(
                "base-damaged",
                f"{BASE_NAME} can't be read, and the log's first line doesn't show what it said",
                path,
                where,
                advice=RESTORE,
            )
            return None, False
        if rebuilt is None:
            return ORIGIN, False
        return rebuilt, rebuilt != base

    def list_chat(self, workspace: WorkspaceId, chat: ChatId) -> str:
        """Append to a workspace's log that it has a chat, under a name made of the chat's id."""
        name = f"found-{chat}"
        with locked_log(self._context.root / workspace_space(workspace) / LOG_NAME) as fd:
            event = NewEntry(ChatCreated(chat, name).encode(), salvage.ACTOR)
            salvage.append(self._context.root / workspace_space(workspace), fd, event, self._context.now())
        return f"listed as {name}"

    # ---- the rest of the directory

    def check_lease(self, space: SpaceId, where: str) -> None:
        """Whether the present grant can be read and makes sense."""
        context = self._context
        directory = context.root / space
        try:
            names = fence.names(directory)
        except OSError:
            return  # reported by `check_directory`
        if not names:
            return
        path = directory / names[max(names)]
        try:
            expires = fence.decode(space, path.name, context.content(path, 65536)).expires
        except FileNotFoundError:
            return  # surpassed meanwhile
        except (OSError, FormatError):
            context.error(
                "lease-damaged",
                "the lease can't be read: nobody may get the append authority until it can, since an old holder "
                "couldn't be told from the new one",
                path,
                where,
                advice=f"{RESTORE}, or remove it when no other chatfs runs",
            )
            return
        if expires > context.now() + _FAR_MS:
            context.warning(
                "lease-odd", "the lease expires in more than a year", path, where, advice="set the clock, or remove it"
            )


def check_directory(context: Context, directory: Path, known: Collection[str], where: str) -> None:
    """Modes, symbolic links and files that don't belong here."""
    try:
        with os.scandir(directory) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        context.error("unreadable", f"can't be listed: {reason(error)}", directory, where, advice="see who may read it")
        return
    for entry in found:
        path = Path(entry.path)
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(status.st_mode):
            context.warning(
                "stranger", "is a symbolic link, which chatfs never follows", path, where, advice="remove it"
            )
        elif entry.name in known or fence.NAME.fullmatch(entry.name):
            context.check_mode(path, status, where)
        elif entry.name.startswith("."):
            if is_old(status):
                context.info("leftover", "was left by a crash", path, where, advice="chatfs gc removes it")
        else:
            context.warning("stranger", "isn't chatfs's", path, where, advice="move it elsewhere")


def _is_slip(base: Mark, rebuilt: Mark) -> bool:
    """Whether one is the other with a wrong digit, or no crc at all."""
    if base.crc >> 32:
        return True
    if (base.seq, base.crc) == (rebuilt.seq, rebuilt.crc):
        return False
    if base.seq == rebuilt.seq:
        digits, others = str(base.crc), str(rebuilt.crc)
        return (base.crc ^ rebuilt.crc).bit_count() == 1 or (
            len(digits) == len(others) and sum(a != b for a, b in zip(digits, others, strict=True)) == 1
        )
    return base.crc == rebuilt.crc


def _plan(fd: int, size: int, base: Mark, start: Mark | None) -> tuple[survey.Plan, bool]:
    """What is to become of the log up to its last whole batch, and whether a torn tail follows that."""
    if start is not None and size > start.end and is_torn(fd, start, size):
        return survey.examine(fd, start.end, base, start), True
    plan = survey.examine(fd, size, base, start)
    if size > plan.end.end and is_torn(fd, plan.end, size):
        return survey.examine(fd, plan.end.end, base, start), True
    return plan, False


def _finish_takeover(path: Path) -> str:
    with locked_log(path):
        return "finished"


def _write_base(directory: Path, base: Mark) -> str:
    durability.atomic_replace("log.base", directory / BASE_NAME, encode_base(base))
    return "written anew"


def _spans(spans: list[list[int]]) -> str:
    """`entry 6`, `entries 6 and 9-11`."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    if len(texts) > _SPANS:
        texts[_SPANS:] = ["more"]
    noun = "entry" if texts == [str(spans[0][0])] else "entries"
    return f"{noun} {' and '.join(filter(None, [', '.join(texts[:-1]), texts[-1]]))}"


def _damage(plan: survey.Plan) -> str:
    parts = []
    if plan.lost:
        parts.append(f"{_spans(plan.lost)} can't be read")
        if plan.hidden_tail:
            parts.append("the damage reaches the log's end, so how many it had there is only known at least")
    if plan.restored:
        parts.append(f"{counted(len(plan.restored), 'entry')} can be restored whole")
    offset = next(piece.begin for piece in plan.pieces if not isinstance(piece, survey.Kept))
    return f"the log is damaged at byte {offset}: {'; '.join(parts) or 'bytes that are no entries'}"
