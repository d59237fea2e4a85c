"""The tables of index.db. Another VERSION is built anew, never migrated.

One row of `spaces` for each log: up to which entry (`seq`, with its `crc`) it is in the tables, and how its file looked
when that was its end (`size`, `mtime_ns`, `inode`; -1: not at its end yet). A log is brought up to date by its entries
after `seq`, unless the entry at `seq` has another crc, or it begins with another entry than `first`: then what is here
of it goes, and it is taken in anew. `seq` -1: what is here of it is being removed.

`kind` is 'workspace', 'chat', or 'external': a chat that is only in the workspace's project, whose file counts then.

`words` is a full-text index without content of its own. Its rowid is `id * 8 + kind`: a message, or a chat's title (and
name), labels or preamble, or an attachment's name. What was put there has to be given again to remove it, which the
other tables' columns are good for.

A message's place: `position` rises along the chat, in no particular steps. `lines` is the number of line ends in its
text; `before` of those between the text before it and its own, where that isn't what usually stands there; `behind`, of
those between its own text and the next. So the line of history.md where a message begins is a sum.

`text` is a message's text as history.md has it, heading included: TEXT, or a BLOB compressed by zlib.
"""

from __future__ import annotations

import sqlite3
from typing import Final

VERSION: Final = 2
APPLICATION: Final = 0x63686673
"""The `application_id` in the file's header: "chfs"."""

TOKENIZER: Final = "unicode61 remove_diacritics 2"
CLEARING: Final = -1
"""A space's `seq` while its rows are being removed."""
UNSETTLED: Final = -1
"""A space's `size` while there may be more in its log."""

MESSAGE: Final = 0
TITLE: Final = 1
LABELS: Final = 2
ATTACHMENT: Final = 3
PREAMBLE: Final = 4
KINDS: Final = 8

_TABLES: Final = (
    """
    CREATE TABLE spaces (
        id INTEGER PRIMARY KEY,
        space TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        first INTEGER NOT NULL DEFAULT 1,
        seq INTEGER NOT NULL DEFAULT 0,
        crc INTEGER NOT NULL DEFAULT 0,
        size INTEGER NOT NULL DEFAULT -1,
        mtime_ns INTEGER NOT NULL DEFAULT -1,
        inode INTEGER NOT NULL DEFAULT -1
    )
    """,
    """
    CREATE TABLE workspaces (
        id INTEGER PRIMARY KEY REFERENCES spaces,
        uuid TEXT NOT NULL,
        name TEXT NOT NULL DEFAULT '',
        user TEXT NOT NULL DEFAULT '',
        title TEXT NOT NULL DEFAULT '',
        labels TEXT NOT NULL DEFAULT '[]',
        quota_bytes INTEGER NOT NULL DEFAULT 0,
        created INTEGER NOT NULL DEFAULT 0,
        changed INTEGER NOT NULL DEFAULT 0
    )
    """,
    """
    CREATE TABLE chats (
        id INTEGER PRIMARY KEY REFERENCES spaces,
        workspace INTEGER NOT NULL REFERENCES workspaces,
        uuid TEXT NOT NULL,
        name TEXT NOT NULL,
        shown TEXT NOT NULL,
        place TEXT NOT NULL,
        created INTEGER NOT NULL,
        moved INTEGER NOT NULL,
        title TEXT NOT NULL DEFAULT '',
        labels TEXT NOT NULL DEFAULT '[]',
        messages INTEGER NOT NULL DEFAULT 0,
        attachments INTEGER NOT NULL DEFAULT 0,
        begun INTEGER NOT NULL DEFAULT 0,
        changed INTEGER NOT NULL DEFAULT 0,
        preamble TEXT NOT NULL DEFAULT '',
        preamble_tail TEXT,
        preamble_edited INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX chats_by_workspace ON chats (workspace)",
    """
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY,
        chat INTEGER NOT NULL REFERENCES chats,
        message TEXT NOT NULL,
        seq INTEGER NOT NULL,
        position INTEGER NOT NULL,
        role TEXT NOT NULL,
        ts INTEGER NOT NULL,
        hidden INTEGER NOT NULL,
        edited INTEGER NOT NULL,
        lines INTEGER NOT NULL,
        before INTEGER,
        behind INTEGER NOT NULL,
        text
    )
    """,
    "CREATE UNIQUE INDEX messages_by_id ON messages (chat, message)",
    "CREATE INDEX messages_by_position ON messages (chat, position)",
    """
    CREATE TABLE attachments (
        id INTEGER PRIMARY KEY,
        chat INTEGER NOT NULL REFERENCES chats,
        name TEXT NOT NULL,
        removed INTEGER,
        attachment TEXT NOT NULL,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        content_type TEXT NOT NULL,
        mtime_ns INTEGER NOT NULL,
        mode INTEGER
    )
    """,
    "CREATE INDEX attachments_by_chat ON attachments (chat, name)",
    """
    CREATE TABLE blobs (
        chat INTEGER NOT NULL REFERENCES chats,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        PRIMARY KEY (chat, digest)
    ) WITHOUT ROWID
    """,
    """
    CREATE VIEW usage AS
        SELECT workspaces.id AS workspace,
            max(0, own.size) + COALESCE((
                SELECT sum(max(0, spaces.size)) FROM chats JOIN spaces USING (id)
                WHERE chats.workspace = workspaces.id AND spaces.kind = 'chat'
            ), 0) AS logs,
            COALESCE((
                SELECT sum(size) FROM (
                    SELECT DISTINCT digest, blobs.size FROM blobs JOIN chats ON chats.id = blobs.chat
                    JOIN spaces ON spaces.id = chats.id
                    WHERE chats.workspace = workspaces.id AND spaces.kind = 'chat'
                )
            ), 0) AS blobs
        FROM workspaces JOIN spaces AS own USING (id)
    """,
    f"""
    CREATE VIRTUAL TABLE words USING fts5 (
        message, title, labels, attachment, content = '', tokenize = '{TOKENIZER}'
    )
    """,
    # The name of a file or a chat says more than a word in a message.
    "INSERT INTO words (words, rank) VALUES ('rank', 'bm25(1.0, 4.0, 4.0, 2.0)')",
)


def create(connection: sqlite3.Connection) -> None:
    """Make the tables, unless another process has just done so."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
