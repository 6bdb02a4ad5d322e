"""The OpenAPI 3.1 document, derived from what the code obeys.

Bodies, queries and answers are the wire's own structs, paths come from the table of operations, the
treatment of each parameter from the table of parameters: nothing is described twice, so nothing
can drift.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

from appliance import __version__
from appliance.shim.api.health import Readiness
from appliance.shim.operation import Operation
from appliance.shim.operations import OPERATIONS
from appliance.shim.refusals import AnthropicError, ErrorDocument
from appliance.shim.wire.anthropic_version import VERSIONS
from appliance.shim.wire.files import FileForm
from appliance.shim.wire.parameters import Parameter
from appliance.shim.wire.response_items import GivenMessage

Json = dict[str, Any]
_REFERENCE = "#/components/schemas/{name}"
_STATUSES = {
    400: "A parameter is wrong, unknown or not possible here; the error names it",
    401: "The key is missing, mistyped, expired or revoked",
    403: "The key is not for this API, model or service tier, or a page of another site asks",
    404: "There is no such model, response, file, batch, key or project",
    408: "The body did not arrive in time",
    409: "Not possible now",
    413: "The body is larger than the operator allows",
    415: "The body is not JSON, or not a form",
    421: "The `Host` header names another host",
    429: "More requests wait, or more is kept, than the operator allows",
    500: "A fault of the appliance",
    503: "Not served now; try again",
    504: "It took longer than the operator allows",
}


@cache
def document() -> Json:
    """The whole document. Not to be changed by its readers."""
    schemas, components = _schemas()
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        described = _operation(operation, schemas, components)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Appliance",
            "version": __version__,
            "summary": "Open-weight models behind an OpenAI-compatible endpoint, offline",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "admin": {"type": "http", "scheme": "bearer", "description": "An admin key"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _schemas() -> tuple[dict[object, Json], Json]:
    """The schema of each type that an operation names, and what they refer to."""
    kinds: list[object] = [ErrorDocument, AnthropicError, Readiness]
    for operation in OPERATIONS:
        kinds += [operation.body, operation.form, operation.query, operation.stream]
        if not isinstance(operation.answer, str):
            kinds.append(operation.answer)
        kinds.append(operation.anthropic_answer)
    named = [kind for kind in kinds if kind is not None]
    found, components = msgspec.json.schema_components(
        named, ref_template=_REFERENCE, schema_hook=_anything
    )
    # A form has texts and files, not JSON: the file's bytes stand in it as they are.
    components[FileForm.__name__]["properties"]["file"] = {"type": "string", "format": "binary"}
    schemas = {kind: copy.deepcopy(schema) for kind, schema in zip(named, found, strict=True)}
    _let_messages_be_nameless(components)
    return schemas, components


def _anything(kind: type) -> Json:
    if kind is object:
        return {"description": "Any JSON value."}
    raise NotImplementedError


def _let_messages_be_nameless(components: Json) -> None:
    """The `type` of a message in /v1/responses may be left out, so it discriminates nothing."""
    name = GivenMessage.__name__
    components[name]["required"].remove("type")
    for reference in list(_containers(components)):
        mapping = reference.get("discriminator", {}).get("mapping", {})
        if _REFERENCE.format(name=name) in mapping.values():
            del reference["discriminator"]


def _containers(value: object) -> Iterable[Json]:
    """`value` and every object inside it."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _containers(inner)


def _operation(operation: Operation, schemas: dict[object, Json], components: Json) -> Json:
    described: Json = {
        "operationId": _identifier(operation),
        "summary": operation.summary,
        "responses": _responses(operation, schemas),
        "security": _security(operation),
    }
    parameters = _path_parameters(operation)
    if operation.query is not None:
        parameters += _query_parameters(_referred(schemas[operation.query], components))
    if operation.dialect == "anthropic" or operation.anthropic_answer is not None:
        parameters.append(_version_parameter())
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        _explain(_referred(schemas[operation.body], components), operation.parameters)
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[operation.body]}},
        }
    if operation.form is not None:
        _explain(_referred(schemas[operation.form], components), operation.parameters)
        described["requestBody"] = {
            "required": True,
            "content": {"multipart/form-data": {"schema": schemas[operation.form]}},
        }
    return described


def _explain(schema: Json, parameters: Iterable[Parameter]) -> None:
    """What becomes of each parameter; a limited one takes the values named, and null."""
    for parameter in parameters:
        if parameter.treatment == "refused":
            continue
        field = schema["properties"][parameter.name]
        if parameter.treatment == "limited":
            field.pop("description", None)
            field["enum"] = [*parameter.accepts, None]
        note = f": {parameter.note}" if parameter.note else ""
        field["description"] = f"{parameter.treatment}{note}"


def _responses(operation: Operation, schemas: dict[object, Json]) -> Json:
    kind = AnthropicError if operation.dialect == "anthropic" else ErrorDocument
    error = schemas[kind]
    if operation.anthropic_answer is not None:
        error = {"anyOf": [schemas[ErrorDocument], schemas[AnthropicError]]}
    answers: Json = {"200": {"description": "The answer", "content": _content(operation, schemas)}}
    for status in _statuses(operation):
        schema = error
        if operation.path == "/ready" and status == 503:
            schema = {"anyOf": [schemas[Readiness], error]}
        answers[str(status)] = {
            "description": _STATUSES[status],
            "content": {"application/json": {"schema": schema}},
        }
    return answers


def _statuses(operation: Operation) -> list[int]:
    found = {403, 421, 500, 503, *operation.statuses}
    if not operation.public:
        found.add(401)
    if operation.query is not None:
        found.add(400)
    if operation.names or operation.anthropic_answer is not None:
        found |= {400, 404}
    if operation.method == "POST":
        found |= {400, 408, 413}
    if operation.body is not None:
        found |= {415} if operation.admin else {404, 415, 429, 504}
    if operation.form is not None:
        found.add(415)
    return sorted(found)


def _content(operation: Operation, schemas: dict[object, Json]) -> Json:
    if isinstance(operation.answer, str):
        return {kind: {"schema": {"type": "string"}} for kind in operation.answer.split("|")}
    schema = schemas[operation.answer]
    if operation.anthropic_answer is not None:
        schema = {"anyOf": [schema, schemas[operation.anthropic_answer]]}
    content: Json = {"application/json": {"schema": schema}}
    if operation.stream is not None:
        # OpenAPI 3.1 has no word for a sequence of events; this is the data of each.
        content["text/event-stream"] = {"x-event-schema": schemas[operation.stream]}
    return content


def _security(operation: Operation) -> list[Json]:
    if operation.public:
        return []
    keys: list[Json] = [{"admin": []}] if operation.admin else [{"bearer": []}]
    either = operation.dialect == "anthropic" or operation.anthropic_answer is not None
    return [*keys, {"x-api-key": []}] if either else keys


def _path_parameters(operation: Operation) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in operation.names
    ]


def _query_parameters(query: Json) -> list[Json]:
    """Lists are repeated, which is what OpenAPI takes for granted."""
    return [
        {
            "name": name,
            "in": "query",
            "required": name in query["required"],
            "schema": _without_null(schema),
        }
        for name, schema in query["properties"].items()
    ]


def _without_null(schema: Json) -> Json:
    """A query has texts only: an absent parameter is absent, not null."""
    kept = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if kept:
        return dict(kept[0])
    values = [value for value in schema.get("enum", ()) if value is not None]
    return {"enum": values} if values else schema


def _version_parameter() -> Json:
    versions = [version.decode() for version in VERSIONS]
    return {"name": "anthropic-version", "in": "header", "schema": {"enum": versions}}


def _referred(schema: Json, components: Json) -> Json:
    """The component that `schema` refers to."""
    component: Json = components[schema["$ref"].rpartition("/")[2]]
    return component


def _identifier(operation: Operation) -> str:
    words = operation.path.replace("{", "").replace("}", "").replace(".", "_").strip("/")
    return "_".join([operation.method.lower(), *words.split("/")])
