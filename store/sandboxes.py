"""Sandbox sessions: which chats are given to a sandbox now, one at a time each.

A session is a document of the store's JsonKv, `sandboxes/<chat id>`: {"id", "workspace", "chat", "runtime", "pid",
"pid_started", "where", "started", "heartbeat", "expires"} (times in milliseconds; for the process see `store.alive`).
Whoever runs the sandbox moves `heartbeat` and `expires` on. On the same machine the session is over when that process
is, at once and not before; for others it lapses. While one is active, its chat isn't archived or removed: who begins
one moves the workspace's log on afterwards, and who takes a chat away looks for one between reading that log and
appending to it by its seq, so of two at once one fails (`Workspace.give_to_sandbox`).

Concurrency: every change is a compare-and-set, so two that begin at once get one session and one ChatBusy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import trio

from store.alive import Runner, runs, this
from store.driver import ABSENT, Clock, Document, Driver, Etag
from store.errors import ChatBusy, NotHolder, StoreError
from store.model import TS_MAX, ChatId, Millis, WorkspaceId, clock_ms, is_uuid, uuid7

BEAT_MS: Final = 5_000
LAPSE_MS: Final = 3 * BEAT_MS
"""After how long without a heartbeat a session has lapsed."""
_PID_END: Final = 1 << 22
"""PID_MAX_LIMIT of the kernel."""
_PREFIX: Final = "sandboxes/"


@dataclass(frozen=True, slots=True)
class SandboxSession:
    """One session. `pid`, `pid_started` and `where` are the process that runs the sandbox: see `runner`."""

    id: str
    workspace: WorkspaceId
    chat: ChatId
    runtime: str
    pid: int
    pid_started: int
    where: str
    started: Millis
    heartbeat: Millis
    expires: Millis

    @property
    def runner(self) -> Runner:
        """The process that runs the sandbox."""
        return Runner(self.pid, self.pid_started, self.where)

    def active(self, now: int) -> bool:
        """Whether its process runs, however long it was stopped; where nobody can tell, whether it hasn't lapsed."""
        known = runs(self.runner)
        return self.expires > now if known is None else known


def decode(value: Any) -> SandboxSession | None:
    """The session that a document says; None where it says none."""
    try:
        found = SandboxSession(**value)
    except TypeError:
        return None
    numbers = (found.pid, found.pid_started, found.started, found.heartbeat, found.expires)
    words = (found.id, found.workspace, found.chat, found.runtime, found.where)
    if not all(type(each) is int and 0 <= each <= TS_MAX for each in numbers) or not 0 < found.pid < _PID_END:
        return None
    if not all(type(each) is str for each in words) or not all(map(is_uuid, (found.id, found.workspace, found.chat))):
        return None
    return found


async def active_on(driver: Driver, chat: ChatId, *, clock: Clock = clock_ms) -> SandboxSession | None:
    """The active session on a chat."""
    document = await driver.kv.get(_PREFIX + chat)
    found = None if document is None else decode(document.value)
    return found if found is not None and found.active(clock()) else None


async def sessions(driver: Driver) -> list[SandboxSession]:
    """All that haven't ended, lapsed ones too; the oldest first."""
    found = []
    for key in await driver.kv.list(_PREFIX):
        document = await driver.kv.get(key)
        session = None if document is None else decode(document.value)
        if session is not None:
            found.append(session)
    return sorted(found, key=lambda session: session.started)


async def forget(driver: Driver, session: SandboxSession) -> None:
    """End a session that lapsed, unless another has taken its place."""
    document = await driver.kv.get(_PREFIX + session.chat)
    if document is not None and (found := decode(document.value)) is not None and found.id == session.id:
        await driver.kv.delete(_PREFIX + session.chat, if_match=document.etag)


def busy(called: str, session: SandboxSession) -> ChatBusy:
    """What refuses a change of a chat that a sandbox has."""
    return ChatBusy(
        f"{called} is in use by sandbox session {session.id} ({session.runtime}, process {session.pid}): "
        f"end it with chatfs sandbox stop {session.id}"
    )


class Held:
    """A session of this process."""

    def __init__(self, driver: Driver, session: SandboxSession, etag: Etag, clock: Clock) -> None:
        self.session = session
        self._driver = driver
        self._etag = etag
        self._clock = clock

    async def beat(self) -> None:
        """Say once more that it is alive. Raises NotHolder where another session has taken its place."""
        now = self._clock()
        session = replace(self.session, heartbeat=now, expires=Millis(now + LAPSE_MS))
        answer = await self._driver.kv.put(_PREFIX + session.chat, asdict(session), if_match=self._etag)
        if not isinstance(answer, Document):
            raise NotHolder(f"sandbox session {session.id} has ended or lapsed: another may have the chat")
        self.session, self._etag = session, answer.etag

    async def beat_for_ever(self) -> None:
        """`beat` in time. A store that fails for a moment ends nothing; raises NotHolder."""
        while True:
            await trio.sleep(BEAT_MS / 1000)
            try:
                await self.beat()
            except NotHolder:
                raise
            except StoreError:
                if self.session.expires <= self._clock():
                    raise

    async def end(self) -> None:
        """The chat is free again."""
        await self._driver.kv.delete(_PREFIX + self.session.chat, if_match=self._etag)


@asynccontextmanager
async def begun(
    driver: Driver,
    workspace: WorkspaceId,
    chat: ChatId,
    runtime: str,
    *,
    called: str,
    clock: Clock = clock_ms,
) -> AsyncIterator[Held]:
    """Hold a session on a chat. Raises ChatBusy."""
    key = _PREFIX + chat
    now = clock()
    session = SandboxSession(uuid7(), workspace, chat, runtime, *this(), now, now, Millis(now + LAPSE_MS))
    expected = ABSENT
    while True:
        answer = await driver.kv.put(key, asdict(session), if_match=expected)
        if isinstance(answer, Document):
            break
        if answer.current is None:
            expected = ABSENT
            continue
        other = decode(answer.current.value)
        if other is not None and other.active(clock()):
            raise busy(called, other)
        expected = answer.current.etag
    held = Held(driver, session, answer.etag, clock)
    try:
        yield held
    finally:
        with trio.CancelScope(shield=True):
            await held.end()
