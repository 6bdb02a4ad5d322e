"""What runs on the node: trust, model store, compiler, engine, audit, metering, HTTP shim."""

__version__ = "0.1.0"
