"""Signing of model bundles with the public OpenSSF Model Signing library, on the packager's side.

Owns `model.sig`. Uses key mode only: the library's certificate mode accepts expired certificates.
Refuses bundles with hidden or empty files, which other tools would leave unsigned.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.bundle.files import MANIFEST_NAME, SIGNATURE_NAME
from appliance.bundle.verify import VerifiedBundle, verify_metadata
from appliance.errors import ApplianceError, LayoutError, NotFoundError, SignatureError
from appliance.fsops import walk_files, write_durable
from installer.keyring import MODEL_SIGNER, Keyring
from installer.packager_hints import bundle_hints
from installer.rotation.keys import listed


class BundleSigner:
    """Signs bundle directories with one model signer's key."""

    def __init__(self, key_file: Path, passphrase: bytes, *, name: str = MODEL_SIGNER) -> None:
        """`key_file` is an encrypted PKCS #8 P-256 key. Raises NotFoundError, SignatureError."""
        try:
            private = load_pem_private_key(key_file.read_bytes(), passphrase)
        except FileNotFoundError:
            raise NotFoundError(
                f"there is no key {key_file}", hint="make the keys with `appliance trust init`"
            ) from None
        except (ValueError, TypeError) as error:
            raise _unusable(key_file, "the passphrase is wrong or the file is damaged") from error
        if not isinstance(private, EllipticCurvePrivateKey) or not isinstance(
            private.curve, SECP256R1
        ):
            raise _unusable(key_file, "it is not an ECDSA P-256 key")
        self.signer = listed(name, private)
        self._key_file = key_file
        self._passphrase = passphrase

    @classmethod
    def load(cls, trust_directory: Path, passphrase: bytes) -> BundleSigner:
        """The model signer of a trust directory. Raises NotFoundError, SignatureError."""
        keyring = Keyring(trust_directory)
        path = keyring.key_file(MODEL_SIGNER)
        signer = cls(path, passphrase)
        known = [each for each in keyring.model_signers() if each.hint == signer.signer.hint]
        if not known:
            raise _unusable(path, "signers.json does not list it")
        (signer.signer,) = known
        return signer

    def sign(self, directory: Path) -> VerifiedBundle:
        """Write `directory`/model.sig over every file in it, and verify it as a node would.

        Reads every file once. Raises LayoutError, SignatureError.
        """
        from model_signing import hashing, signing

        _check_signable(directory)
        files = hashing.Config().use_file_serialization(hashing_algorithm="sha256")
        files.set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)
        key_signer = signing.Config().use_elliptic_key_signer(
            private_key=self._key_file,
            password=self._passphrase,  # type: ignore[arg-type]  # handed to load_pem_private_key
        )
        key_signer.set_hashing_config(files).sign(directory, directory / SIGNATURE_NAME)
        with bundle_hints():
            return verify_metadata(directory, [self.signer])


def sign_again(directory: Path, signer: BundleSigner) -> VerifiedBundle:
    """Replace the signature of a finished bundle, whose digest stays: after a new model signer.

    The files must be those that its manifest names; a refusal leaves the signature as it was.
    Reads every file once. Raises LayoutError, SignatureError, DigestError.
    """
    path = directory / SIGNATURE_NAME
    former = path.read_bytes() if path.exists() else None
    try:
        return signer.sign(directory)
    except ApplianceError:
        path.unlink(missing_ok=True)
        if former is not None:
            write_durable(path, former, mode=0o644)
        raise


def _check_signable(directory: Path) -> None:
    files = walk_files(directory)
    if MANIFEST_NAME not in files:
        raise LayoutError(
            f"{directory} has no {MANIFEST_NAME}",
            path=MANIFEST_NAME,
            hint="name the directory that `appliance bundle build` made",
        )
    for name, size in files.items():
        if any(part.startswith(".") for part in name.split("/")):
            raise LayoutError(f"{name} is hidden, and tools skip hidden files", path=name)
        if size == 0:
            raise LayoutError(f"{name} is empty", path=name, hint="leave empty files out")


def _unusable(path: Path, reason: str) -> SignatureError:
    return SignatureError(
        f"the key {path} cannot be used: {reason}",
        path=path.name,
        hint="check the passphrase, and that this is the model signer's key",
    )
