"""`appliance projects …`: groups of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import ApplianceError
from installer.cli import limits, reserves
from installer.cli.keys import open_store
from installer.cli.output import (
    JsonOption,
    RootOption,
    node_config,
    node_layout,
    out,
    print_fields,
    print_json,
    print_table,
)
from installer.cli.spans import shown

if TYPE_CHECKING:
    from appliance.access import Project

app = typer.Typer(name="projects", help="Group API keys.", no_args_is_help=True)

ProjectArgument = Annotated[
    str, typer.Argument(metavar="PROJECT", help="Name or ID from `appliance projects list`.")
]


@app.callback()
def group() -> None:
    """Group API keys: for limits, reports, and a prefix cache that they may share."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the project is called.")],
    share_cache: Annotated[
        bool,
        typer.Option("--share-cache", help="Its keys find each other's prompts in the cache."),
    ] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a project."""
    from appliance.access import new_project
    from appliance.audit import admin_event

    config = node_config(root)
    project = new_project(name, shares_cache=share_cache)
    with open_store(config.layout) as store:
        store.projects.check_free(name)
        admin_event(config.layout, config.audit, "projects.create", target=project.id)
        store.projects.add(project)
    if as_json:
        print_json(document(project))
    else:
        print_fields({"id": project.id, "name": project.name})


@app.command("list")
def list_projects(root: RootOption = None, as_json: JsonOption = False) -> None:
    """List every project there ever was."""
    with open_store(node_layout(root)) as store:
        projects = store.projects.list()
        counts: dict[str, int] = {}
        for key in store.list():
            counts[key.project] = counts.get(key.project, 0) + 1
    if as_json:
        print_json({"projects": [document(project) for project in projects]})
        return
    print_table(
        ["ID", "name", "state", "created", "keys", "cache", "capacity"],
        [
            (
                project.id,
                project.name,
                "active" if project.archived is None else "archived",
                shown(project.created),
                counts.get(project.id, 0),
                "shared" if project.shares_cache else "apart",
                reserves.summary(project.reserves),
            )
            for project in projects
        ],
        empty="",
    )


@app.command()
def archive(name: ProjectArgument, root: RootOption = None, as_json: JsonOption = False) -> None:
    """End a project: its keys stop for good, before the command returns."""
    from appliance.audit import admin_event

    config = node_config(root)
    with open_store(config.layout) as store:
        project = store.projects.archive(name)
    try:
        admin_event(config.layout, config.audit, "projects.archive", target=project.id)
    except ApplianceError as error:
        error.message = f"the project is archived, but not recorded: {error.message}"
        raise
    if as_json:
        print_json(document(project))
    else:
        out.print(f"{project.id} ({project.name}) is archived", markup=False)


@app.command()
def cache(
    name: ProjectArgument,
    shared: Annotated[
        bool,
        typer.Option("--shared/--apart", help="Whether its keys find each other's prompts."),
    ],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the keys of a project share the prefix cache, or keep them apart."""
    from appliance.audit import admin_event

    config = node_config(root)
    with open_store(config.layout) as store:
        project = store.projects.get(name)
        detail = "shared" if shared else "apart"
        admin_event(config.layout, config.audit, "projects.cache", target=project.id, reason=detail)
        project = store.projects.share_cache(project.id, shared)
    if as_json:
        print_json(document(project))
    else:
        out.print(f"the prefix cache of {project.name} is {detail}", markup=False)


@app.command("limit")
def set_limits(
    name: ProjectArgument,
    requests_per_minute: limits.RequestsPerMinute = None,
    tokens_per_minute: limits.TokensPerMinute = None,
    parallel_requests: limits.ParallelRequests = None,
    tokens_per_day: limits.TokensPerDay = None,
    tokens_per_month: limits.TokensPerMonth = None,
    money_per_day: limits.MoneyPerDay = None,
    money_per_month: limits.MoneyPerMonth = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set or lift limits of a project, over all its keys; without options, show them."""
    from appliance.audit import admin_event

    wanted = limits.changes(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        parallel_requests=parallel_requests,
        tokens_per_day=tokens_per_day,
        tokens_per_month=tokens_per_month,
        money_per_day=money_per_day,
        money_per_month=money_per_month,
    )
    config = node_config(root)
    with open_store(config.layout) as store:
        project = store.projects.get(name)
        project.limits.changed(wanted)
        if wanted:
            detail = limits.recorded(wanted)
            admin_event(
                config.layout, config.audit, "projects.limit", target=project.id, reason=detail
            )
            project = store.projects.limit(project.id, wanted)
    if as_json:
        print_json(limits.document(project.limits))
    else:
        limits.print_limits(project.limits)


@app.command()
def reserve(
    name: ProjectArgument,
    share: reserves.ShareOption = None,
    model: reserves.ModelOption = "",
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reserve a share of the capacity for a project's keys together; else show it."""
    from appliance.audit import admin_event

    config = node_config(root)
    with open_store(config.layout) as store:
        project = store.projects.get(name)
        if share is not None:
            percent = reserves.percent(share)
            store.projects.check_reserve(project.id, model, percent)
            detail = reserves.recorded(percent, model)
            admin_event(
                config.layout, config.audit, "projects.reserve", target=project.id, reason=detail
            )
            project = store.projects.reserve(project.id, model, percent)
    if as_json:
        print_json(reserves.document(project.reserves))
    else:
        reserves.print_reserves(project.reserves)


def document(project: Project) -> dict[str, object]:
    """A project for JSON."""
    return {
        "id": project.id,
        "name": project.name,
        "created": project.created,
        "archived": project.archived,
        "shares_cache": project.shares_cache,
        "limits": limits.document(project.limits),
        "reserves": reserves.document(project.reserves),
    }
