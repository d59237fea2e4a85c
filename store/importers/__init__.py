"""Chats that other programs wrote, as records for a chat's log. Pure conversion: no store, no writes.

Importing a source again, or after it has grown, gives the same keys for what was there before: see `imported`.
"""
