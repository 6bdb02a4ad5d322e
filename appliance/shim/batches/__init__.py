"""Files that callers upload and batches of requests that run while there is room.

Owns what is kept of them and how a batch gets on; the HTTP side is api/files.py and
api/batches.py. Refuses to answer a line in any way of its own: each goes through the endpoint
that an application would call (lines.py).
"""
