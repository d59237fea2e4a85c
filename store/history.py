"""history.md is a lens on a chat's state: `render` shows it, `diff` takes an edited text back to events. Pure.

For every state and every saved text `b`, where `e = diff(state, b)`:

1. PutGet: applying `e` makes the state render exactly `b`.
2. GetPut: `diff(state, render(state))` is empty.
3. Locality: a change within one message is one event, which names that message.
4. Determinism: equal logs render to equal bytes.
5. Content that looks like the format survives: it is escaped.

::

    # title                               the preamble: all text before the first heading
                                          a lead: what separates two texts
    ## user · 2026-11-21T06:13:02Z        a heading; a person may type just `## user`
                                          a blank line, then the body
    What is the capital of France?

Where a person writes a message otherwise than it would be rendered, its event keeps the text verbatim in `md`, what
stands before it in `lead` and, for the last one, what stands behind it in `tail`. `store.document` has the rules of
leads and tails, `store.markdown` those of headings, fences and escapes, `store.alignment` says which message is which.
"""

from __future__ import annotations

from collections.abc import Iterator

from store.fold import ChatState
from store.history_diff import NewId, diff, diff_append
from store.history_merge import Merge, merge

__all__ = ["Merge", "NewId", "diff", "diff_append", "merge", "render", "render_pieces"]


def render(state: ChatState) -> bytes:
    """The text of history.md."""
    return b"".join(state.document.pieces())


def render_pieces(state: ChatState, offset: int = 0) -> Iterator[bytes]:
    """The same in pieces, from that byte on. A change of the state while it runs spoils it."""
    return state.document.pieces(offset)
