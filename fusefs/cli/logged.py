"""What is logged while a command runs, or a mount: as lines on stderr."""

from __future__ import annotations

import logging

from fusefs.cli.output import complain, escape_lines


class LogFormatter(logging.Formatter):
    """For what a mount logs: to its log file, or to a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See Formatter."""
        return escape_lines(super().format(record))


class Complaints(logging.Handler):
    """What the store logs while a command runs, each record as one line on stderr."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._errors: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """See Handler."""
        cause = record.exc_info[1] if record.exc_info else None
        complain(record.getMessage() + (f": {type(cause).__name__}: {cause}" if cause is not None else ""))
        if error := getattr(record, "error", ""):
            self._errors.add(error)

    def has(self, error: BaseException) -> bool:
        """Whether a record said the same as this error does."""
        return str(error) in self._errors
