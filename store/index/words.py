"""What somebody types to search, as a query for FTS5. Pure.

Words separated by blanks: all must occur, in one message (or title …). `"in quotes"`: these words in this order.
`word*`: words that begin so. `-word`: must not occur. Anything else is taken as it is: no text is a syntax error.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from store.errors import InvalidInput

_TERM: Final = re.compile(r'(-?)(?:"([^"]*)"?(\*?)|([^\s"]+))')


def match_expression(words: str) -> str:
    """The FTS5 expression. Raises InvalidInput where nothing is said that must occur."""
    wanted: list[str] = []
    unwanted: list[str] = []
    for minus, quoted, star, plain in _TERM.findall(words.replace("\0", " ")):
        text = plain or quoted
        prefix = bool(star)
        if plain.endswith("*"):
            text, prefix = plain.rstrip("*"), True
        if _has_token(text):
            (unwanted if minus else wanted).append(f'"{text}"{" *" if prefix else ""}')
    if not wanted:
        raise InvalidInput("name at least one word of letters or digits that is to be found")
    found = " AND ".join(wanted)
    return f"({found}) NOT ({' OR '.join(unwanted)})" if unwanted else found


def _has_token(text: str) -> bool:
    """Whether something is left that the index has: letters, digits, and what Unicode leaves to private use."""
    return any(char.isalnum() or unicodedata.category(char) == "Co" for char in text)
