"""The engine daemon: serves the models of this node over gRPC on a Unix socket.

Owns the translation between protobuf and the engine's types, the models that are loaded, and
graceful starts and stops. Knows nothing of HTTP or of anybody's API shapes.
"""
