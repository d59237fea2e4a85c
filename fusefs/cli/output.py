"""What the commands write: tables, JSON, raw bytes, progress.

Text from chats may hold anything: control characters, which a terminal would obey, and marks that turn the direction of
writing are escaped in all that is made for reading. Raw output is escaped only where it goes to a terminal.

Concurrency: writes block; a command has nothing else to do meanwhile.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

_BUFFER: Final = 256 * 1024
_REDRAW_SECONDS: Final = 0.1
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_TURNING: Final = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"
"""What changes the direction of writing (Unicode Standard Annex #9)."""
_OBEYED: Final = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_TURNING}\ud800-\udfff]")
_OBEYED_IN_JSON: Final = re.compile(f"[\x7f-\x9f\u2028\u2029{_TURNING}]")
_OBEYED_IN_TEXT: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def escape(text: str) -> str:
    """`text` as one line that no terminal obeys."""
    return _OBEYED.sub(_escaped, text)


def escape_lines(text: str) -> str:
    """`text` of several lines, of which no terminal obeys one."""
    return "\n".join(map(escape, text.split("\n")))


def write_line(text: str) -> None:
    """One line on stdout."""
    print(escape(text))


def complain(text: str) -> None:
    """One line on stderr."""
    print(f"chatfs: {escape(text)}", file=sys.stderr)


def write_json(value: Any) -> None:
    """One JSON document on stdout; in its strings, what a terminal would obey is escaped as JSON has it."""
    from store.metadata import pretty  # noqa: PLC0415 - most of what is written is no JSON

    print(_OBEYED_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", pretty(value).decode()), end="")


def write_fields(fields: Iterable[tuple[str, str]]) -> None:
    """A name and a value per line."""
    rows = list(fields)
    width = max((len(name) for name, _value in rows), default=0)
    for name, value in rows:
        write_line(f"{name.ljust(width)}  {value}".rstrip())


Colours = Mapping[str, Mapping[str, int]]
"""By a column's heading and a cell's text: the parameter of SGR (ECMA-48) that it is shown with."""


def write_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], colours: Colours = MappingProxyType({})
) -> None:
    """Columns, as wide as they must be; in colours on a terminal, unless NO_COLOR is set."""
    table = [[escape(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(width(row[column]) for row in table) for column in range(len(headings))]
    shown = [colours.get(heading, {}) for heading in headings] if _has_colours() else [{}] * len(headings)
    for row in table:
        cells = (
            (f"\x1b[{column[cell]}m{cell}\x1b[39m" if cell in column else cell) + " " * (wide - width(cell))
            for cell, wide, column in zip(row, widths, shown, strict=True)
        )
        print("  ".join(cells).rstrip())


def _has_colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def width(text: str) -> int:
    """How many columns of a terminal it takes (Unicode Standard Annex #11)."""
    if text.isascii():
        return len(text)
    import unicodedata  # noqa: PLC0415 - a table of 1 MB, which most output doesn't need

    return sum(
        0 if unicodedata.category(char) in {"Mn", "Me", "Cf"} else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def size_text(size: int) -> str:
    """A number of bytes for reading, in powers of 1024."""
    amount, unit = float(size), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount /= 1024
        unit += 1
    return f"{size} bytes" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


class RawOutput:
    """Bytes to stdout, in large pieces; flushed at the end."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._terminal = sys.stdout.isatty()
        self._pieces: list[bytes] = []
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not isinstance(error, BrokenPipeError):
            self.flush()

    def write(self, piece: bytes) -> None:
        """Add a piece: whole characters."""
        self._pieces.append(self._shown(piece) if self._terminal else piece)
        self._size += len(piece)
        if self._size >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Hand everything over."""
        pieces, self._pieces, self._size = self._pieces, [], 0
        sys.stdout.buffer.write(b"".join(pieces))
        sys.stdout.buffer.flush()

    def _shown(self, piece: bytes) -> bytes:
        text = piece.decode(errors="backslashreplace")
        if self._as_json:
            return _OBEYED_IN_TEXT.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()
        return _OBEYED_IN_TEXT.sub(_escaped, text).encode()


class Progress:
    """One line on stderr that is written over and over, and gone at the end. Nothing where stderr isn't a terminal."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        """Whether anybody sees it."""
        self._next = 0.0
        self._used = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.clear()

    def say(self, text: str) -> None:
        """Show `text`, unless something was shown just now."""
        now = time.monotonic()
        if self.shown and now >= self._next:
            self._next = now + _REDRAW_SECONDS
            self._used = True
            print(f"\r{escape(text)[:100]}\x1b[K", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for other output."""
        if self._used:
            self._used = False
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
