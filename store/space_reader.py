"""Reads of a space's log, whose errors name the space as people do."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

from store.driver import AppendLog
from store.errors import CorruptLog
from store.model import Entry, Seq


class Readable(Protocol):
    """What is read: see `store.space.Space`."""

    @property
    def name(self) -> str: ...
    def hold(self) -> AbstractContextManager[None]: ...
    async def log(self) -> AppendLog: ...


class Reader:
    """A read that opens the log when the first entry is asked for, and holds it until the last."""

    __slots__ = ("_entries", "_holding", "_limit", "_reverse", "_since", "_space")

    def __init__(self, space: Readable, since: Seq, limit: int | None, *, reverse: bool) -> None:
        self._space = space
        self._since = since
        self._limit = limit
        self._reverse = reverse
        self._entries: AsyncIterator[Entry] | None = None
        self._holding = contextlib.ExitStack()

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> Entry:
        if self._entries is None:
            self._holding.enter_context(self._space.hold())
            log = await self._space.log()
            await log.refresh()  # what other processes have appended is read, too
            self._entries = log.read(self._since, self._limit, reverse=self._reverse)
        try:
            return await anext(self._entries)
        except CorruptLog as damage:
            self._holding.close()
            raise damage.again(self._space.name) from damage
        except BaseException:
            self._holding.close()
            raise

    def __del__(self) -> None:
        self._holding.close()


class Followed:
    """The entries of a subscription."""

    __slots__ = ("_entries", "_space")

    def __init__(self, space: Readable, entries: AsyncIterator[Entry]) -> None:
        self._space = space
        self._entries = entries

    def __aiter__(self) -> Followed:
        return self

    async def __anext__(self) -> Entry:
        try:
            return await anext(self._entries)
        except CorruptLog as damage:
            raise damage.again(self._space.name) from damage
