"""Which graphs a bundle has, as its manifest lists them."""

from __future__ import annotations

from typing import Literal

import msgspec

from appliance.bundle.specs import Adapted, Graph
from installer.checkpoint.bundle_layout import (
    ADAPTED_GRAPH,
    ADAPTED_PREFILL_GRAPH,
    COMPACT_GRAPH,
    CUDA_GRAPH,
    DRAFT,
    GRAPH,
    NATIVE_ADAPTED_GRAPH,
    NATIVE_GRAPH,
    PREFILL_GRAPH,
    TRT_GRAPH,
    WEIGHTS,
)
from installer.checkpoint.graph import adapted
from installer.checkpoint.plan import Plan


def graphs_of(plan: Plan) -> tuple[Graph, ...]:
    """The graphs that the plan's bundle has; of a draft model, those in its own folder."""
    folder = f"{DRAFT}/" if plan.drafts else ""
    cpu = Graph(
        variant="cpu",
        path=folder + GRAPH,
        precision=plan.precision,
        prefill=folder + PREFILL_GRAPH if plan.joined else msgspec.UNSET,
        adapted=_adapted(plan),
    )
    graphs = [cpu]
    if plan.native:
        graphs.append(_native(plan, folder))
    if not plan.on_gpus:
        return tuple(graphs)
    graphs.append(_cuda(plan, CUDA_GRAPH, "fp16"))
    if plan.compact is not None:
        graphs.append(_cuda(plan, COMPACT_GRAPH, plan.compact))
    if plan.standard:
        graphs.append(Graph(variant="trt", path=TRT_GRAPH, precision="fp16", weights=WEIGHTS))
    return tuple(graphs)


def _cuda(plan: Plan, path: str, precision: Literal["fp16", "int8", "fp8"]) -> Graph:
    """One for CUDA, which has room for adapters itself or has none."""
    room = Adapted(path=path, targets=adapted.targets(plan.shape)) if plan.adapters else None
    return Graph(
        variant="cuda",
        path=path,
        precision=precision,
        weights=WEIGHTS,
        adapted=msgspec.UNSET if room is None else room,
    )


def _native(plan: Plan, folder: str) -> Graph:
    return Graph(
        variant="native",
        path=folder + NATIVE_GRAPH,
        precision=plan.precision,
        weights=folder + WEIGHTS,
        adapted=(
            Adapted(path=NATIVE_ADAPTED_GRAPH, targets=adapted.targets(plan.shape))
            if plan.adapters
            else msgspec.UNSET
        ),
    )


def _adapted(plan: Plan) -> Adapted | msgspec.UnsetType:
    """The graphs for adapters, if the plan's bundle has them."""
    if not plan.adapters:
        return msgspec.UNSET
    return Adapted(
        path=ADAPTED_GRAPH,
        targets=adapted.targets(plan.shape),
        prefill=ADAPTED_PREFILL_GRAPH if plan.joined else msgspec.UNSET,
    )
