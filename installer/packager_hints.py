"""What the packager can do about a bundle that does not verify.

What is wrong is the same wherever a bundle is checked, and who verifies says what an operator can
do: ask for another copy. Whoever built it has nobody to ask. Owns the other hints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import LayoutError, VerificationError

_AGAIN = "copy it again from where it was built, or build it again"
_UNKNOWN = "sign it with a current key (`appliance bundle sign`), or name its --keys"


@contextmanager
def bundle_hints() -> Iterator[None]:
    """Errors of verifying a bundle inside speak to whoever builds bundles."""
    try:
        yield
    except VerificationError as error:
        error.hint = _hint(error)
        raise


def _hint(error: VerificationError) -> str:
    if error.code == "signer_unknown":
        return _UNKNOWN
    if isinstance(error, LayoutError):
        return f"{_AGAIN}, with nothing else in its directory"
    return f"{_AGAIN}; a drive that alters files is worn out"
