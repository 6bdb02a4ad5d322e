"""OpenAI's administration API, for admin keys: usage, costs, keys, projects and the audit log.

What it answers comes from this node's own databases and log. Parameters that it does not have are
refused by name.
"""
