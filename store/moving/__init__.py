"""Move spaces from one store to another, with their logs as they are: directly, or as one stream of JSON lines.

Imports point from the use cases (`migrating`, `exporting`, `taking`) to what they share (`spaces`, `blobs`, `names`,
`local`), and to `stream`, the form of the lines.
"""
