"""history.md: the conversation as Markdown, readable and editable."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from fusefs.nodes.base import Directory
from fusefs.nodes.projected import Base, ProjectedFile
from store.errors import QuotaExceeded
from store.metadata import Wanted
from store.model import clock_ms

if TYPE_CHECKING:
    from fusefs.drafts import Draft
    from fusefs.mount import Mount
    from fusefs.views import ChatView
    from store.driver import Staging
    from store.fold import Effect

log = logging.getLogger(__name__)

NAME = b"history.md"
REST_NS: Final = 2_000_000_000
"""Since when a text mustn't have changed to be read through the kernel's cache, in nanoseconds."""


class HistoryText(ProjectedFile):
    """The chat's text. Each process's last read is remembered: its next save is compared with that."""

    __slots__ = ("chat_view",)

    def __init__(self, mount: Mount, view: ChatView, parent: Directory) -> None:
        super().__init__(mount, view, parent, NAME)
        self.chat_view = view

    async def shown_size(self) -> tuple[int, int]:
        state = await self.chat_view.chat.load()
        return state.size, state.text_changed_ns or self.chat_view.created_ns

    async def shown(self, offset: int, size: int) -> bytes:
        return await self.chat_view.chat.read_text(offset, size)

    def stage(self, *, counted: bool = True) -> Staging:
        return self.chat_view.chat.stage(NAME.decode(), counted=counted)

    async def present(self) -> Base:
        return (await self.chat_view.chat.load()).seq

    async def last_read(self, process: int) -> Base:
        read = self.chat_view.reads.get(process)
        return await self.present() if read is None else read

    async def is_lively(self) -> bool:
        state = await self.chat_view.chat.load()
        return clock_ms() * 1_000_000 - state.text_changed_ns < REST_NS

    async def text_of(self, base: Base) -> bytes | None:
        assert not isinstance(base, Wanted)
        return await self.chat_view.chat.text_at(base)

    def was_read(self, process: int, base: Base) -> None:
        assert base is not None
        assert not isinstance(base, Wanted)
        self.chat_view.read_by(process, base)

    async def save(self, saved: bytes, draft: Draft) -> None:
        chat = self.chat_view.chat
        if draft.partial:
            draft.base = await chat.append_text(saved, draft.actor)
            return
        assert not isinstance(draft.base, Wanted)
        outcome = await chat.save_text(saved, draft.actor, base=draft.base)
        if outcome.conflict is not None:
            conflict = outcome.conflict
            try:
                async with self.view.quota.taking(lambda: len(conflict)):
                    self.view.scratch.keep("history.md.conflict", conflict)
            except (OSError, QuotaExceeded) as error:
                log.warning("what a save overrode is only in the log: %s", error)
        draft.base = outcome.seq if outcome.seen is None else outcome.seen
        self.was_read(draft.process, draft.base)

    def log_moved(self, effect: Effect | None) -> None:
        """The chat's log moved."""
        if effect is None or effect.rewritten or effect.appended:
            self.mount.notifier.attributes(self)
            self.announce()
