"""Install media: what a node opens and verifies, and what the packager writes.

`opening` is the node's side and all that is imported here; the other modules are the packager's,
except the formats that both sides share (`release`, `lockfile`).
"""

from installer.media.opening import DOCS, Media, open_media, verify_media

__all__ = ["DOCS", "Media", "open_media", "verify_media"]
