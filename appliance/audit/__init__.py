"""The tamper-evident audit log: events in, signed checkpoints out, and an independent checker.

The way of a record: event -> journal (durable, acknowledged) -> tree (tiles) -> checkpoint.
"""
