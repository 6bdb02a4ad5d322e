"""`appliance bundle …`: build and check model bundles."""

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from installer.cli.output import JsonOption, RootOption, err, print_fields, print_json
from installer.cli.trust import PassphraseFileOption

if TYPE_CHECKING:
    from appliance.bundle.manifest import Manifest
    from appliance.bundle.verify import VerifiedBundle
    from appliance.trust.model_signer import ModelSigner

app = typer.Typer(name="bundle", help="Build and check model bundles.", no_args_is_help=True)


class PrecisionName(StrEnum):
    """How the weights are stored."""

    w8a8 = "w8a8"
    w4a8 = "w4a8"
    int4 = "int4"
    int8 = "int8"
    fp8 = "fp8"
    fp16 = "fp16"
    fp32 = "fp32"


class KindName(StrEnum):
    """What a model is for."""

    chat = "chat"
    embedding = "embedding"
    rerank = "rerank"


class ParityName(StrEnum):
    """Whether the first layers are compared with the reference implementation."""

    auto = "auto"
    required = "required"
    off = "off"


@app.callback()
def group() -> None:
    """Build and check model bundles."""


@app.command()
def build(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Directory of a Hugging Face checkpoint.")
    ],
    name: Annotated[str, typer.Option(help="The model's name, as requests will name it.")],
    version: Annotated[str, typer.Option(help="The bundle's version.")],
    target: Annotated[Path, typer.Option("--out", help="New directory for the bundle.")],
    keys: Annotated[
        Path, typer.Option("--keys", help="Trust directory that `appliance trust init` made.")
    ],
    precision: Annotated[
        PrecisionName | None,
        typer.Option(
            help="Of the weights; w8a8 for most chat models, int8 for all others by default."
        ),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    license_file: Annotated[
        Path | None,
        typer.Option("--license-file", help="The licence's text, if the checkpoint has none."),
    ] = None,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Also graphs with which it can serve LoRA adapters.")
    ] = False,
    draft: Annotated[
        Path | None,
        typer.Option(
            "--draft",
            help="Checkpoint of a small model with the same tokenizer, which guesses what this one "
            "says; the answers stay the same.",
        ),
    ] = None,
    draft_license_file: Annotated[
        Path | None,
        typer.Option("--draft-license-file", help="The draft model's, if it has none."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", help="Of an adapter: its base's bundle, built with --adapters."),
    ] = None,
    parity: Annotated[
        ParityName,
        typer.Option(
            help="Compare the first layers with transformers: where it is installed (auto), or "
            "refuse to build without (required). A model that differs is never built."
        ),
    ] = ParityName.auto,
    kind: Annotated[
        KindName | None,
        typer.Option(help="What the model is for, where the checkpoint's files do not say it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a published checkpoint, of a model or of a LoRA adapter, into a signed bundle.

    Reads config.json, safetensors and the tokenizer; runs no code from the checkpoint. A build that
    was stopped goes on where it was when the same command is given again. Set SOURCE_DATE_EPOCH to
    get the same bytes again.
    """
    from appliance.bundle.manifest import digest, encode
    from appliance.errors import UsageError
    from installer.checkpoint import build_bundle
    from installer.checkpoint.adapter_build import build_adapter
    from installer.checkpoint.adapter_checkpoint import is_adapter
    from installer.passphrase import read_passphrase
    from installer.progress import TerminalProgress
    from installer.signing import BundleSigner

    signer = BundleSigner.load(keys, read_passphrase(passphrase_file))
    if is_adapter(checkpoint):
        _refuse_for_adapter(precision, kind, adapters=adapters, draft=draft)
        bundle = _base(base, keys)
        manifest = build_adapter(
            checkpoint,
            target,
            name=name,
            version=version,
            base=bundle.directory,
            base_manifest=bundle.manifest,
            license_file=license_file,
            signer=signer,
        )
    elif base is not None:
        raise UsageError(f"{checkpoint} is not an adapter", hint="leave --base out")
    else:
        try:
            manifest = build_bundle(
                checkpoint,
                target,
                name=name,
                version=version,
                precision=precision.value if precision is not None else None,
                license_file=license_file,
                adapters=adapters,
                signer=signer,
                progress=TerminalProgress(err),
                parity=parity.value,
                kind=kind.value if kind is not None else None,
                draft=draft,
                draft_license_file=draft_license_file,
            )
        except (KeyboardInterrupt, SystemExit):
            err.print("stopped: what is done is kept, and the same command goes on from there")
            raise
    size = sum(entry.size for entry in manifest.files)
    document = {
        "bundle": str(target),
        "name": manifest.name,
        "version": manifest.version,
        "kind": manifest.kind,
        "family": manifest.family,
        **_made(manifest),
        "license": manifest.license,
        "parity": parity_text(manifest),
        "size": size,
        "digest": digest(encode(manifest)),
    }
    if as_json:
        print_json(document)
        return
    print_fields(document | {"size": f"{size / 1e6:.1f} MB"})


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the bundle.")],
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="Trust directory whose model signers are accepted."),
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle's signature, file list and every byte, as a node would.

    Accepts the model signers of a trust directory (--keys) or of an installed node (--root).
    """
    from appliance.bundle.verify import verify_contents, verify_metadata
    from installer.media.opening import require_bundle
    from installer.packager_hints import bundle_hints
    from installer.progress import TerminalProgress

    require_bundle(directory)
    signers = _signers(keys, root)
    with bundle_hints() if keys is not None else nullcontext():
        bundle = verify_metadata(directory, signers)
        with TerminalProgress(err).bytes("reading every byte", bundle.size) as advance:
            verify_contents(bundle, advance)
    document = {
        "bundle": str(directory),
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "files": len(bundle.files),
        "size": bundle.size,
        "digest": bundle.digest,
        "signer": bundle.signer.name,
        "parity": parity_text(bundle.manifest),
    }
    if as_json:
        print_json(document)
        return
    print_fields(
        {
            "verified": f"{bundle.manifest.name} {bundle.manifest.version}",
            "files": f"{len(bundle.files)}, {bundle.size / 1e6:.1f} MB",
            "digest": bundle.digest,
            "signer": bundle.signer.name,
            "parity": parity_text(bundle.manifest),
        }
    )


@app.command()
def sign(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the bundle.")],
    keys: Annotated[Path, typer.Option("--keys", help="Trust directory whose signer signs.")],
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a finished bundle anew, after the model signer's key was replaced; its digest stays.

    Compare the digest with the one that `bundle build` printed before you sign for it.
    """
    from installer.media.opening import require_bundle
    from installer.passphrase import read_passphrase
    from installer.signing import BundleSigner, sign_again

    require_bundle(directory)
    bundle = sign_again(directory, BundleSigner.load(keys, read_passphrase(passphrase_file)))
    document = {
        "bundle": str(directory),
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "digest": bundle.digest,
        "signer": bundle.signer.name,
    }
    if as_json:
        print_json(document)
    else:
        print_fields(document)


def _refuse_for_adapter(
    precision: PrecisionName | None, kind: KindName | None, *, adapters: bool, draft: Path | None
) -> None:
    from appliance.errors import UsageError

    if precision is not None or kind is not None or adapters or draft is not None:
        raise UsageError(
            "--precision, --kind, --adapters and --draft are a base's, and this is an adapter",
            hint="leave them out: an adapter is stored in fp32, and is computed so",
        )


def _base(directory: Path | None, keys: Path) -> "VerifiedBundle":
    """The verified bundle of an adapter's base. Raises UsageError, VerificationError."""
    from appliance.bundle.verify import verify_metadata
    from appliance.errors import UsageError
    from installer.keyring import Keyring
    from installer.media.opening import require_bundle
    from installer.packager_hints import bundle_hints

    if directory is None:
        raise UsageError(
            "this is an adapter, which belongs to one base",
            hint="name the directory of the base's bundle: --base",
        )
    require_bundle(directory)
    with bundle_hints():
        return verify_metadata(directory, Keyring(keys).model_signers())


def _made(manifest: "Manifest") -> dict[str, object]:
    """The grade of a model; of an adapter, what it adds to which base."""
    adapter = manifest.as_adapter
    if adapter is None:
        return {"precision": manifest.graph.precision} | draft_fields(manifest)
    return {
        "base": adapter.base.name,
        "rank": adapter.rank,
        "targets": " ".join(target.name for target in adapter.targets),
    }


def draft_fields(manifest: "Manifest") -> dict[str, object]:
    """What guesses for the model, if anything does."""
    from appliance.bundle.specs import DraftSpec

    draft = manifest.draft
    if manifest.has_head:
        return {"head": "one layer that predicts further tokens"}
    if not isinstance(draft, DraftSpec):
        return {}
    layers, origin = draft.decoder.layers, draft.checkpoint_sha256[:12]
    return {"draft": f"{draft.family}, {layers} layers, checkpoint {origin}, {draft.license}"}


def parity_text(manifest: "Manifest") -> str:
    """What a manifest says of the comparison with the reference."""
    from appliance.bundle.specs import Parity

    if manifest.as_adapter is not None:
        return "an adapter is not compared"
    parity = manifest.parity
    return str(parity) if isinstance(parity, Parity) else "not compared: built without the gate"


def _signers(keys: Path | None, root: Path | None) -> "tuple[ModelSigner, ...]":
    if keys is not None:
        from installer.keyring import Keyring

        return Keyring(keys).model_signers()
    from appliance.trust.store import TrustStore
    from installer.cli.output import node_layout

    return TrustStore(node_layout(root).trust).signers()
