"""`appliance media …`: write and check install media."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from installer.cli.output import JsonOption, err, out, print_fields, print_json
from installer.cli.trust import PassphraseFileOption

KeysOption = Annotated[
    Path, typer.Option("--keys", help="Trust directory that `appliance trust init` made.")
]
WheelsOption = Annotated[
    Path | None,
    typer.Option("--wheels", help="Cache of wheels; .build/wheels of the checkout by default."),
]

TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target", help="Kind of nodes to carry further programs for: cuda13. Repeat for more."
    ),
]

app = typer.Typer(name="media", help="Write and check install media.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Write and check install media."""


@app.command()
def build(
    target: Annotated[Path, typer.Option("--out", help="New directory for the media.")],
    keys: KeysOption,
    bundles: Annotated[
        list[Path] | None, typer.Option("--bundle", help="A signed bundle; repeat for more.")
    ] = None,
    targets: TargetOption = None,
    wheels: WheelsOption = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write media and their fingerprint sheet: programs, bundles, documents, signatures."""
    from installer.media.build import build_media
    from installer.passphrase import read_passphrase
    from installer.progress import TerminalProgress

    built = build_media(
        target,
        bundles or [],
        keys,
        read_passphrase(passphrase_file),
        wheel_cache=_wheel_cache(wheels),
        progress=TerminalProgress(err),
        targets=targets or [],
    )
    document = {
        **asdict(built),
        "path": str(built.path),
        "fingerprint_sheet": str(built.fingerprint_sheet),
        "expires": built.expires.strftime("%Y-%m-%d"),
    }
    if as_json:
        print_json(document)
        return
    print_fields(
        {
            "media": built.path,
            "size": f"{built.size / 1e6:.1f} MB",
            "import by": document["expires"],
            "targets": _targets(built.targets, tensorrt=built.tensorrt),
            "appliance.pyz": built.pyz_sha256,
            "fingerprint sheet": built.fingerprint_sheet,
        }
    )


@app.command()
def verify(
    media: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the media.")],
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="Trust directory to verify against; else the media's own."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of the media again, past the page cache, and check it as a node would.

    Without --keys the media are checked against the root inside their own appliance.pyz, which
    proves them whole, and genuine only if the fingerprint printed is the one on the sheet.
    """
    from installer.media.verify import verify_written
    from installer.progress import progress_for

    verified = verify_written(media, keys, progress_for(err, sys.stderr, as_json=False))
    bundles = [f"{b.manifest.name} {b.manifest.version}" for b in verified.media.bundles]
    cuda13 = verified.media.cuda13
    targets = [] if cuda13 is None else [cuda13.name]
    tensorrt = cuda13 is not None and cuda13.has_tensorrt
    document = {
        "media": str(media),
        "version": verified.media.release.version,
        "issued_at": verified.media.targets.issued_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expires": verified.media.targets.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "bundles": bundles,
        "targets": targets,
        "tensorrt": tensorrt,
        "files": verified.files,
        "size": verified.media.size,
        "pyz_sha256": verified.pyz_sha256,
        "anchor": verified.anchor,
    }
    if as_json:
        print_json(document)
        return
    print_fields(
        {
            "verified": f"{verified.files} files, {verified.media.size / 1e6:.1f} MB",
            "signed": document["issued_at"],
            "import by": document["expires"],
            "bundles": ", ".join(bundles) or "none",
            "targets": _targets(targets, tensorrt=tensorrt),
            "appliance.pyz": verified.pyz_sha256,
            "anchor": verified.anchor,
        }
    )


@app.command()
def wheels(
    cache: WheelsOption = None,
    targets: TargetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch the wheels that media carry, so that `media build` needs no package index."""
    from installer.media.build import check_targets
    from installer.media.gpu_wheels import gather
    from installer.media.lockfile import PYTHONS
    from installer.media.wheelhouse import Locks, Wheelhouse

    check_targets(targets or [])
    locks = Locks.of_checkout()
    directory = _wheel_cache(cache)
    found = Wheelhouse(directory).wheels(locks.node + locks.bootstrap, status=err.print)
    if targets:
        found += gather(directory, locks, pythons=PYTHONS, status=err.print).wheels
    size = sum(wheel.size for wheel in found)
    if as_json:
        print_json({"directory": str(directory), "wheels": len(found), "size": size})
        return
    out.print(f"{len(found)} wheels, {size / 1e6:.1f} MB, in {directory}", markup=False)


def _targets(names: Sequence[str], *, tensorrt: bool) -> str:
    with_or_without = "with" if tensorrt else "without"
    return ", ".join(f"{name}, {with_or_without} TensorRT" for name in names) or "none"


def _wheel_cache(named: Path | None) -> Path:
    from installer.media.wheelhouse import checkout

    return (named or checkout() / ".build/wheels").absolute()
