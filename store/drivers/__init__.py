"""The backends. Only `store.registry` imports them."""
