"""Chats that other programs wrote, as records for a chat's log. Pure conversion: no store, no writes.

Importing a source again, or after it has grown, gives the same keys for what was there before: see `imported`.
"""

from __future__ import annotations

from store.importers.claude_code import read_claude_code
from store.importers.imported import ImportedAttachment, ImportedChat, ImportedRecord
from store.importers.messages import read_messages

__all__ = ["ImportedAttachment", "ImportedChat", "ImportedRecord", "read_claude_code", "read_messages"]
