"""Artifacts for all models of a node, on one runtime.

Owns the order in which that is found out: every model climbs the ladder, and then one engine must
be able to load all of them. The compiling itself is `work`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.compiler.ladder import LADDER, Rung
from appliance.compiler.record import Record, Refusal
from appliance.compiler.runtime import Runtime, choose_runtime, release_python
from appliance.compiler.work import ArtifactWork, Tell
from appliance.config import EngineSettings, Layout
from appliance.errors import UnsupportedError
from appliance.fsops import exclusive_lock, make_dirs
from appliance.model_store import StoredBundle
from appliance.trust.node_key import NodeKey

_LOCK = ".lock"
Reasons = tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What `ensure_artifacts` made.

    Attributes:
        runtime: what the engine must run with to load it.
        directories: of each artifact, by the bundle's digest.
    """

    runtime: Runtime
    directories: Mapping[str, Path]


def ensure_artifact(
    layout: Layout,
    bundle: StoredBundle,
    node_key: NodeKey,
    *,
    user: str | None = None,
    python: Path | None = None,
    runtime: Runtime | None = None,
    settings: EngineSettings | None = None,
    progress: Tell | None = None,
    made: Callable[[Record], None] | None = None,
) -> Path:
    """The directory of the verified artifact of `bundle`, as `ensure_artifacts` makes it."""
    done = ensure_artifacts(
        *(layout, [bundle], node_key),
        user=user,
        python=python,
        runtime=runtime,
        settings=settings,
        progress=progress,
        made=None if made is None else lambda _bundle, record: made(record),
    )
    return done.directories[bundle.digest]


def ensure_artifacts(
    layout: Layout,
    bundles: Sequence[StoredBundle],
    node_key: NodeKey,
    *,
    beside: Sequence[StoredBundle] = (),
    user: str | None = None,
    python: Path | None = None,
    runtime: Runtime | None = None,
    settings: EngineSettings | None = None,
    progress: Tell | None = None,
    made: Callable[[StoredBundle, Record], None] | None = None,
) -> Compiled:
    """Verified artifacts of all `bundles`, for one runtime that can load them all.

    And of those `beside` them, which are served already: their artifacts that are there are not
    read whole, since the engine does that when it loads them.

    Each model climbs the ladder. If one of them takes the GPU, the others are compiled for the
    processor by the GPU's runtime; if that cannot be done for one, the processor computes them
    all, and the records say because of which.

    `python` is the release's interpreter with the processor's runtime, the current one if not
    given; `runtime` is the runtime to try, if it was chosen already; `settings` are the engine's.
    `made` is called with each new record, before it is in its place. What is there already is
    kept if it verifies, and replaced if not. Safe to repeat and to kill at any moment. Raises what
    the bottom of the ladder raises; nothing is left behind then.
    """
    chosen = runtime or choose_runtime(python or release_python(layout))
    make_dirs(layout.artifacts, mode=0o755)
    with exclusive_lock(layout.artifacts / _LOCK, wait=True):
        works = [
            ArtifactWork(
                *(layout, bundle, node_key, user, settings or EngineSettings()),
                hashed=bundle in bundles,
                tell=progress or _silent,
                made=made or _silent,
            )
            for bundle in (*bundles, *beside)
        ]
        return _all_on_one_runtime(works, chosen)


def _all_on_one_runtime(works: Sequence[ArtifactWork], runtime: Runtime) -> Compiled:
    rungs = [work.climb(runtime) for work in works]
    if all(rung.made is None for rung in rungs):
        return _all_on_the_processor(works, [rung.reasons for rung in rungs], runtime)
    try:
        made = [
            rung.made or work.for_processor(runtime, rung.reasons)
            for work, rung in zip(works, rungs, strict=True)
        ]
        return _compiled(works, made, runtime)
    except UnsupportedError as error:
        reasons = [_beside(rung, error) for rung in rungs]
        return _all_on_the_processor(works, reasons, runtime)


def _all_on_the_processor(
    works: Sequence[ArtifactWork], reasons: Sequence[Reasons], runtime: Runtime
) -> Compiled:
    below = runtime.below()
    made = [work.for_processor(below, why) for work, why in zip(works, reasons, strict=True)]
    return _compiled(works, made, below)


def _beside(rung: Rung[Path], error: UnsupportedError) -> Reasons:
    """The rung's reasons, and for those above it that could have been taken: another model."""
    message = f"a model beside it needs the processor's runtime: {error.message}"
    given = {refusal.provider: refusal for refusal in rung.reasons}
    return tuple(
        given.get(provider) or Refusal(provider=provider, code="beside", message=message)
        for provider in LADDER[:-1]
    )


def _compiled(works: Sequence[ArtifactWork], made: Sequence[Path], runtime: Runtime) -> Compiled:
    digests = (work.bundle.digest for work in works)
    return Compiled(runtime, dict(zip(digests, made, strict=True)))


def _silent(*_said: object) -> None: ...
