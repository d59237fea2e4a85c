"""How the instances of a store that live at the same time find and ask each other: what a driver offers for it.

An instance is one opened driver. What they ask of each other is `store.forwarding`'s.

Concurrency: on the trio loop; `announce` and `is_dead` only touch memory or the page cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from store.model import Millis

_COMM_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """Who is at the other end, as the kernel says. `pid` is 0 where it can't be seen from here."""

    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """An instance that lives, as it describes itself. `pid` is as its own pid namespace counts."""

    name: str
    pid: int
    uid: int
    program: str
    since: Millis


Say = Callable[[bytes], None]
"""Send the asker a message before the answer, at once: it arrives even if this process dies now.

Raises Unreachable where the asker has gone.
"""
Still = Callable[[], Awaitable[bool]]
"""Whether an answer is still wanted."""
Answer = Callable[[PeerCredentials, bytes, Say], Awaitable[bytes]]
"""What answers the requests that reach an instance."""


class Peers(Protocol):
    """The other instances that have the store open (each opened driver is one), and how to speak with them.

    An instance makes itself known when it first needs to (`announce`): one that only reads leaves no trace.
    """

    name: str
    """This instance's: the holder of its leases. Never used twice."""

    @property
    def announced(self) -> bool:
        """Whether it is known that this instance lives."""
        ...

    def announce(self) -> None:
        """Make it known that this instance lives: before it acquires its first lease. Raises ReadOnly, BackendError."""
        ...

    def is_dead(self, holder: str) -> bool:
        """Whether that instance has ended, for certain. False where that can't be known."""
        ...

    def serve(self, answer: Answer) -> AbstractAsyncContextManager[None]:
        """While this is entered, `answer` gets what other instances ask.

        At its end nobody new is answered, and who is being answered gets a moment to be.
        """
        ...

    async def ask(self, holder: str, request: bytes, *, heard: Say | None = None, still: Still | None = None) -> bytes:
        """What that instance answers. `heard` gets what it says before.

        Raises Unreachable where nobody answers, or once `still`, which is asked now and then, says no. Else it may wait
        for ever, for one that is stopped. However it ends, also by cancellation: `heard` has got all that was said, and
        nothing can be said any more.
        """
        ...

    async def everyone(self) -> list[PeerInfo]:
        """The instances that are known and live, this one among them if it is."""
        ...


REQUEST_MAX: Final = 256 * 1024 * 1024
"""Bytes of a request to another instance, at most."""


def program_of(pid: int) -> str:
    """The name of the program that a process runs; empty where that can't be seen."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes()[:_COMM_MAX].decode(errors="replace").rstrip("\n")
    except OSError:
        return ""
