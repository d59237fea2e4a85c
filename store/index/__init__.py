"""The index of a store: SQLite, over all spaces, for searching, listing and usage. Never the truth.

`schema` says what is in it, `database` opens it (or something in its place), `document` and `update` take events in,
`workspaces` and `follow` find out what is behind and bring it up to date, `words` and `query` answer.
"""

from store.index.index import Index
from store.index.query import Hit, Kind, Search

__all__ = ["Hit", "Index", "Kind", "Search"]
