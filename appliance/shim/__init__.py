"""The HTTP endpoint: the OpenAI-compatible API in front of the engine's protocol.

Owns HTTP: the wire shapes, status codes, keys, limits, the audit of each request and the settling
of its usage. Refuses to know how tokens are made: it speaks to an engine only through
`appliance.pb`.
"""
