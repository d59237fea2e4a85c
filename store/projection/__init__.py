"""Chats beside the code: copies of a workspace's chats in a project's directory, in a form made for git.

`PROJECTION.md` says what is written there, and how two copies become one.
"""
