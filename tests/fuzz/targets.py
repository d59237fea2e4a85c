"""What is fuzzed: for each target a function that takes any bytes and raises where the code breaks a promise.

The same functions are driven by Hypothesis in every test run (`test_fuzz`) and by a coverage-guided fuzzer in the long
form (`scripts/fuzz`). They decide by themselves what the bytes stand for, so that any file is a valid input; `seeds`
gives each target realistic ones.

No function here depends on anything but its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.fuzz import imports, lines, texts


@dataclass(frozen=True)
class Target:
    check: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


TARGETS: dict[str, Target] = {
    "codec": Target(lines.lines_of_a_log, lines.log_seeds),
    "damage": Target(
        lines.damaged_log, lambda: [bytes([0, at, kind, 0xFF]) for at in (0, 90) for kind in (0, 0x70, 0xC0)]
    ),
    "lens": Target(texts.lens, texts.lens_seeds),
    "merge": Target(texts.merging, texts.merge_seeds),
    "escaping": Target(texts.escaping, texts.lens_seeds),
    "names": Target(texts.names, texts.name_seeds),
    "messages": Target(imports.imported_messages, lambda: imports.import_seeds("messages")),
    "claude-code": Target(imports.imported_sessions, lambda: imports.import_seeds("claude_code")),
    "metadata": Target(lines.saved_metadata, lines.metadata_seeds),
    "lines": Target(lines.accepted_lines, lines.line_seeds),
    "snapshot": Target(lines.loaded_snapshots, lines.snapshot_seeds),
    "store-json": Target(lines.described_stores, lambda: [b'{"format":1,"id":"x"}', b'{"format":true}', b"[" * 2000]),
}
