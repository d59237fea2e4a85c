"""Commands in a sandbox that has one chat: `chatfs sandbox run`."""
