"""Find what looks like a blob's digest in text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from store.model import Digest

DIGEST: Final = re.compile(rb"sha256(-chunks)?:([0-9a-f]{64})")
_LETTER: Final = re.compile(rb"\\u00([2-7][0-9a-fA-F])")


def unescaped(text: bytes) -> bytes:
    r"""`text`, in which no letter of a digest is written as `\u00xx` any more, as JSON allows."""
    if b"\\u00" not in text:
        return text
    return _LETTER.sub(lambda match: bytes([int(match[1], 16)]), text)


def digests_in(text: bytes) -> Iterator[Digest]:
    """Whatever looks like a digest."""
    for match in DIGEST.finditer(unescaped(text)):
        yield Digest(match[0].decode())
