"""From a Hugging Face checkpoint to a signed bundle: read, build the graph, quantize, describe.

Runs on the packager's connected machine, and reads no network. Never imports the reference
implementations: it knows checkpoints by their files.
"""

from installer.checkpoint.build import build_bundle

__all__ = ["build_bundle"]
