"""Chats in the formats of other programs."""
