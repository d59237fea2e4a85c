"""Saving a whole history.md: what the writer changed becomes events, merged with what others did meanwhile.

Concurrency: trio; the chat is held. What was decided on a state is appended with `expected_seq`, and decided anew where
the log was faster. A long text is compared in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from store import events as ev
from store import history
from store.errors import SeqConflict, Truncated
from store.fold import ChatState
from store.model import Entry, Seq, uuid7

if TYPE_CHECKING:
    from store.chat import Chat

_LONG_TEXT: Final = 1 << 20
_TEXT_EVENTS: Final = (ev.MessageAppended, ev.MessageEdited, ev.MessageRemoved, ev.PreambleEdited, ev.ChatChanged)


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of a saved text: the log's last seq, and whether the log moved by it.

    Where somebody else's changes were merged, `seen` is the state as the writer sees it (what was saved, without those
    changes): the base of the writer's next save. `conflict` is what the save overrode.
    """

    seq: Seq
    changed: bool
    seen: ChatState | None = None
    conflict: bytes | None = None


async def save(chat: Chat, saved: bytes, actor: str, base: Seq | ChatState | None) -> Saved:
    """See `Chat.save_text`."""
    with chat.hold():
        if base is None:
            base = (await chat.load()).seq
        while True:
            try:
                return await _save(chat, saved, actor, base)
            except Truncated:
                # The log was compacted between two looks at it: what is left says what can be done.
                await trio.lowlevel.checkpoint()


async def _save(chat: Chat, saved: bytes, actor: str, base: Seq | ChatState) -> Saved:
    while True:
        state = await chat.whole()
        at = state.seq
        own: list[ev.Event] = []
        if await is_present(chat, base, at):
            old, conflict = None, None
            events = await _diff(chat, saved)
        elif await is_dropped(chat, base):
            # What the writer read was compacted away: nobody can tell both sides' changes apart.
            old = None
            events = await _diff(chat, saved)
            conflict = history.render(state) if events else None
        else:
            old = base if isinstance(base, ChatState) else await chat.state_at(base)
            reached = _reached(old, state, saved)
            if reached:
                base = reached
                if base == at:
                    continue
                old = await chat.state_at(base)
            ids = Replay()
            own = history.diff(old, saved, ids.new)
            merge = history.merge(old, state, saved, ids.again)
            events, conflict = merge.events, merge.conflict
        if state.seq != at:
            # The log moved while this was worked out: the events may be about another text.
            continue
        if not events:
            return Saved(at, False, _fold_on(old, own), conflict)
        try:
            seq = await chat.append_events(events, actor, expected_seq=at)
        except SeqConflict:
            await trio.lowlevel.checkpoint()
            continue
        return Saved(seq, True, _fold_on(old, own), conflict)


async def is_present(chat: Chat, base: Seq | ChatState, at: Seq) -> bool:
    """Whether `base` has the text that the state has at `at`."""
    if isinstance(base, ChatState):
        return False
    return base >= at or not (await is_dropped(chat, base) or await _text_moved(chat, base, at))


async def is_dropped(chat: Chat, base: Seq | ChatState) -> bool:
    """Whether the state at `base` can't be made any more, since entries behind it were compacted away."""
    return not isinstance(base, ChatState) and base < (await chat.head()).first_seq - 1


async def _text_moved(chat: Chat, since: Seq, until: Seq) -> bool:
    async for entry in chat.log(since, until - since):
        if isinstance(ev.parse(entry.data), _TEXT_EVENTS):
            return True
    return False


def _reached(old: ChatState, state: ChatState, saved: bytes) -> Seq:
    """Up to which seq `saved` has, word for word, the messages that came after `old`; 0: not the first of them.

    Not every read is seen here: the kernel answers from its cache what somebody else has read before.
    """
    fresh = [message for message in state.messages() if old.message(message.id) is None and not message.hidden]
    reached = Seq(0)
    for message in sorted(fresh, key=lambda message: message.seq):
        item = state.document.get(message.id)
        if item is None or bytes(item.text) not in saved:
            break
        reached = message.seq
    else:
        reached = state.seq if fresh else reached
    return reached


async def _diff(chat: Chat, saved: bytes) -> list[ev.Event]:
    """The difference to the present state."""
    if len(saved) < _LONG_TEXT:
        return history.diff(await chat.whole(), saved, uuid7)
    async with chat.space.frozen() as state:
        return await trio.to_thread.run_sync(history.diff, state, saved, uuid7)


class Replay:
    """Ids that can be handed out twice in the same order: the same diff, made again, then names the same messages."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._next = 0

    def new(self) -> str:
        """A new id, remembered."""
        self._ids.append(uuid7())
        return self._ids[-1]

    def again(self) -> str:
        """The remembered ids, from the first; new ones after the last."""
        self._next += 1
        return self._ids[self._next - 1] if self._next <= len(self._ids) else uuid7()


def _fold_on(state: ChatState | None, events: Sequence[ev.Event]) -> ChatState | None:
    """`state`, moved on (in place) by events that aren't in any log."""
    for event in events if state is not None else ():
        assert state is not None
        state.apply(Entry(Seq(state.seq + 1), state.ts, "", event.encode(), 0))
    return state
