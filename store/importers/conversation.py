"""What of a Claude Code session is conversation, and how it reads as Markdown. Pure.

Takes the session's records in order and says which messages they make; reading files, keys and the verbatim records are
`store.importers.claude_code`'s. What a record makes depends only on it and on those before it: so a session that has
grown gives the same events for its old part.

Shown are what was typed, what the assistant answered, one line for each tool call (`▸ Bash: git status`), and the
beginning of each result in a message of role `tool`, under the call's name (`◂ Bash: git status`). Not shown are what
programs put into the conversation (`isMeta`, summaries for compaction, reminders, IDE context, output of local
commands), thinking, sub-agents' records within a session, and everything that isn't a message. Where a session was
rewound, what was given up stays, in the order of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from store.events import Event, MessageAppended, MessageEdited
from store.importers.payloads import Payloads
from store.importers.source import clip, one_line
from store.markdown import escape

TEXT_MAX: Final = 1024 * 1024
"""Characters of a message that are shown; the record has all of it."""
RESULT_LINES: Final = 20
RESULT_CHARACTERS: Final = 1500
_CALL_LENGTH: Final = 120

_INJECTED: Final = frozenset(
    {
        "system-reminder",
        "ide_opened_file",
        "ide_selection",
        "ide_diagnostics",
        "local-command-caveat",
        "local-command-stdout",
        "local-command-stderr",
        "user-prompt-submit-hook",
        "user-memory-input",
        "task-notification",
    }
)
_REMINDER: Final = frozenset({"system-reminder"})
_OPENING: Final = re.compile(r"^[ \t]*<([a-z][a-z_-]*)(?: [^<>\n]*)?>", re.MULTILINE)
_COMMAND: Final = re.compile(r"\s*<command-(?:name|message)>")
_BACKTICKS: Final = re.compile(r"`{3,}")
_TELLING: Final = (
    "command",
    "file_path",
    "notebook_path",
    "pattern",
    "url",
    "query",
    "question",
    "description",
    "subject",
    "skill",
    "content",
    "prompt",
    "path",
)
"""Arguments of tools, the one that says most about a call first."""
_NO_REPLY: Final = "No response requested."


class Conversation:
    """The messages of one session. With `sidechains`, sub-agents' records are shown, too."""

    def __init__(self, payloads: Payloads, *, sidechains: bool) -> None:
        self._payloads = payloads
        self._sidechains = sidechains
        self._calls: dict[str, str] = {}
        """The line of each tool call, by its id."""
        self._parts: dict[str, set[int]] = {}
        """Of each assistant message that is shown, its blocks' hashes."""

    def events(self, record: dict[str, Any], key: str) -> list[Event]:
        """What `record` adds to the conversation; `key` names it."""
        if any(record.get(flag) for flag in ("isMeta", "isCompactSummary", "isVisibleInTranscriptOnly")):
            return []
        if record.get("isSidechain") and not self._sidechains:
            return []
        kind = _word(record.get("type"))
        if kind == "assistant":
            return self._answered(record, key)
        if kind == "user":
            message = record.get("message")
            return self._typed(message.get("content") if type(message) is dict else None, key)
        if kind == "attachment":
            return self._queued(record.get("attachment"), key)
        if kind == "system" and record.get("subtype") == "local_command":
            return self._typed(record.get("content"), key)
        return []

    def _answered(self, record: dict[str, Any], key: str) -> list[Event]:
        message = record.get("message")
        if type(message) is not dict:
            return []
        identity = message.get("id")
        if not (isinstance(identity, str) and 0 < len(identity) <= 200 and identity.isprintable()):
            identity = key
        seen = self._parts.get(identity, set())
        shown: list[str] = []
        for block in _blocks(message.get("content")):
            text = self._block(block, record.get("cwd"))
            mark = hash((_word(block.get("type")), _word(block.get("id")), text))
            if mark in seen or not text or (message.get("model") == "<synthetic>" and text == _NO_REPLY):
                continue
            seen.add(mark)
            shown.append(text)
        if not shown:
            return []
        text = shortened("\n\n".join(shown))
        if identity in self._parts:
            # What is appended goes into history.md as it is: see `store.fold`.
            return [MessageEdited(identity, append=f"\n\n{escape(text.encode()).decode()}")]
        self._parts[identity] = seen
        return [MessageAppended(identity, "assistant", text)]

    def _block(self, block: dict[str, Any], cwd: object) -> str:
        """A block of the assistant's message as Markdown; "" for what isn't shown."""
        kind = _word(block.get("type"))
        if kind in {"tool_use", "server_tool_use"}:
            call = call_line(block, cwd)
            if isinstance(block.get("id"), str):
                self._calls[block["id"]] = call
            return f"▸ {call}"
        if kind in {"text", "image", "document"}:
            return self._content(block)
        return ""

    def _typed(self, content: object, key: str) -> list[Event]:
        results: list[str] = []
        typed: list[str] = []
        for block in _blocks(content):
            if block.get("type") == "tool_result":
                results.append(self._result(block))
                continue
            text = self._content(block)
            if block.get("type") != "text":
                typed.append(text)
                continue
            output = _shell_output(text)
            if output is not None:
                results.append(output)
            else:
                typed.append(_command(text) or _without(text, _INJECTED))
        made: list[Event] = []
        if any(results):
            made.append(MessageAppended(key, "tool", shortened("\n\n".join(filter(None, results)))))
        if any(typed):
            text = shortened("\n\n".join(filter(None, typed)))
            made.append(MessageAppended(f"{key}/typed" if made else key, "user", text))
        return made

    def _queued(self, attachment: object, key: str) -> list[Event]:
        """A message that was typed while the assistant worked; other attachments are context made by the program."""
        if type(attachment) is not dict or attachment.get("type") != "queued_command":
            return []
        origin = attachment.get("origin")
        if type(origin) is dict and origin.get("kind") != "human":
            return []
        if attachment.get("isMeta") or _word(attachment.get("commandMode")) not in {"", "prompt", "bash"}:
            return []
        return self._typed(attachment.get("prompt"), key)

    def _result(self, block: dict[str, Any]) -> str:
        call = self._calls.get(_word(block.get("tool_use_id")), "a tool")
        lines: list[str] = []
        links: list[str] = []
        for item in _blocks(block.get("content")):
            text = self._content(item)
            (lines if item.get("type") == "text" else links).append(text)
        output = _without("\n".join(filter(None, lines)), _REMINDER).strip("\n\r")
        failed = " (failed)" if block.get("is_error") is True else ""
        if output.startswith("<tool_use_error>"):
            output = output.removeprefix("<tool_use_error>").removesuffix("</tool_use_error>")
        parts = [f"◂ {call}{failed}"]
        if output.strip():
            parts.append(fenced(output))
        parts.extend(filter(None, links))
        if len(parts) == 1:
            parts[0] += ": no output"
        return "\n\n".join(parts)

    def _content(self, block: dict[str, Any]) -> str:
        """A text, or a link to what was attached."""
        kind = _word(block.get("type"))
        if kind == "text":
            text = block.get("text")
            return text.strip("\n\r\f\v").rstrip() if isinstance(text, str) and text.strip() else ""
        if kind not in {"image", "document"}:
            return ""
        source = block.get("source")
        if type(source) is not dict:
            return f"[{kind}]"
        name = self._payloads.name_in(source)
        if name is not None:
            return f"{'!' if kind == 'image' else ''}[{name}](attachments/{name})"
        url = source.get("url")
        return f"[{kind}: {clip(one_line(url), 300)}]" if isinstance(url, str) and url else f"[{kind}]"


def fenced(output: str) -> str:
    """The beginning of `output` in a fenced block, with a line below it that says how much was left out."""
    shown = "\n".join(output[: RESULT_CHARACTERS + 1].split("\n")[:RESULT_LINES])[:RESULT_CHARACTERS]
    ticks = max([2, *(len(run) for run in _BACKTICKS.findall(shown))]) + 1
    fence = "`" * ticks
    block = f"{fence}\n{shown.rstrip()}\n{fence}"
    rest = output[len(shown) :]
    if not rest.strip():
        return block
    lines = rest.strip("\n").count("\n") + 1
    whole = rest.startswith("\n")
    cut = f"{lines:,} more line{'s' * (lines > 1)}" if whole or lines > 1 else f"{len(rest.strip()):,} more characters"
    return f"{block}\n… {cut}"


def _blocks(content: object) -> Iterable[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content if type(block) is dict] if type(content) is list else []


def _word(value: object) -> str:
    """A JSON value where a text is expected: anything can stand there."""
    return value if isinstance(value, str) else ""


def shortened(text: str) -> str:
    """The beginning of `text`, with a line below it that says how much was left out."""
    if len(text) <= TEXT_MAX:
        return text
    return f"{text[:TEXT_MAX]}\n\n… {len(text) - TEXT_MAX:,} more characters in history.jsonl"


def call_line(block: dict[str, Any], cwd: object = None) -> str:
    """A tool call on one line: its name and its most telling argument."""
    name = one_line(_word(block.get("name"))) or "tool"
    argument = _telling(block.get("input"))
    if isinstance(cwd, str) and len(cwd) > 1:
        argument = argument.removeprefix(cwd.rstrip("/") + "/")
    return clip(f"{name}: {argument}" if argument else name, _CALL_LENGTH)


def _telling(value: object, depth: int = 3) -> str:
    # Longer arguments are cut before they are cleaned: a file's whole text may stand here.
    if isinstance(value, str):
        return one_line(value[:1000].strip().replace("\n", " ⏎ "))
    if depth == 0 or not value:
        return ""
    if type(value) is list:
        rest = f" (+{len(value) - 1})" if len(value) > 1 else ""
        return clip(_telling(value[0], depth - 1), _CALL_LENGTH - 30) + rest
    if type(value) is not dict:
        return str(value)
    for name in _TELLING:
        if isinstance(value.get(name), str) and value[name].strip():
            return _telling(value[name])
    ranked = sorted(value.values(), key=lambda item: not isinstance(item, str))
    return _telling(ranked[0], depth - 1)


def _without(text: str, tags: frozenset[str]) -> str:
    """`text` without the elements named `tags` that begin a line."""
    kept: list[str] = []
    unclosed: set[str] = set()
    start = 0
    for opening in _OPENING.finditer(text):
        tag = opening.group(1)
        if opening.start() < start or tag not in tags or tag in unclosed:
            continue
        close = f"</{tag}>"
        end = text.find(close, opening.end())
        if end < 0:
            unclosed.add(tag)
            continue
        kept.append(text[start : opening.start()])
        start = end + len(close)
    if not kept:
        return text
    kept.append(text[start:])
    return re.sub(r"\n{3,}", "\n\n", "".join(kept)).strip("\n\r").rstrip()


def _element(text: str, tag: str) -> str | None:
    _, opened, rest = text.partition(f"<{tag}>")
    inner, closed, _ = rest.partition(f"</{tag}>")
    return inner.strip() if opened and closed else None


def _command(text: str) -> str:
    """A slash command or a shell command that was typed, as it was typed; "" where `text` is something else."""
    if _COMMAND.match(text):
        name = _element(text, "command-name") or ""
        return one_line(name) + (f" {arguments}" if (arguments := _element(text, "command-args")) else "")
    if text.startswith("<bash-input>"):
        return f"! {_element(text, 'bash-input') or ''}".rstrip()
    return ""


def _shell_output(text: str) -> str | None:
    """The output of a shell command that a person typed; None where `text` is something else."""
    if not text.startswith(("<bash-stdout>", "<bash-stderr>")):
        return None
    found = [_element(text, "bash-stdout") or "", _element(text, "bash-stderr") or ""]
    output = "\n".join(filter(None, found))
    return fenced(output) if output else ""
