"""Who may sign models: the list that targets pin, changed.

Owns the names of model signers. Refuses a list without any: no bundle could be added.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from appliance.errors import ConflictError, NotFoundError
from appliance.trust.model_signer import TARGET, ModelSigner, encode_signers
from installer.keyring import MODEL_SIGNER
from installer.rotation.changing import changing
from installer.rotation.publish import publish
from installer.rotation.targets import TargetsRevision, targets_signer


def retire(directory: Path, name: str, passphrase: bytes, now: datetime) -> tuple[str, ...]:
    """Accept the model signer `name` no more; the names of those that are left.

    Raises NotFoundError, ConflictError for the last one, SignatureError.
    """
    with changing(directory) as keyring:
        signers = keyring.model_signers()
        left = [signer for signer in signers if signer.name != name]
        if len(left) == len(signers):
            raise NotFoundError(
                f"there is no model signer {name}",
                hint=f"those accepted are {', '.join(signer.name for signer in signers)}",
            )
        if not left:
            raise ConflictError(
                f"{name} is the only model signer",
                hint=f"replace it: `appliance trust rotate DIR {MODEL_SIGNER}`",
            )
        signer = targets_signer(keyring, passphrase)
        revision = TargetsRevision(keyring, now)
        publish(keyring.directory, pinned_signers(revision, left) | revision.file(signer))
        return tuple(signer.name for signer in left)


def pinned_signers(revision: TargetsRevision, signers: Sequence[ModelSigner]) -> dict[str, bytes]:
    """Let `revision` name `signers`; the file of the list in the trust directory.

    The last of them is the one whose private key is kept.
    """
    data = encode_signers(signers)
    revision.pin({TARGET: data})
    return {f"targets/{TARGET}": data}


def next_name(signers: Sequence[ModelSigner]) -> str:
    """`model-signer-N`, with a number after the highest of `signers`."""
    endings = [signer.name.removeprefix(f"{MODEL_SIGNER}-") for signer in signers]
    return f"{MODEL_SIGNER}-{max([1, *(int(one) for one in endings if one.isdecimal())]) + 1}"
