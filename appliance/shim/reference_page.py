"""The API reference as one HTML page: no script, nothing fetched from anywhere.

Owns the page's words and looks; what it says is the table of operations, the tables of
parameters and the OpenAPI document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from typing import Any

from appliance import __version__
from appliance.shim.openapi import document
from appliance.shim.operation import Operation
from appliance.shim.operations import OPERATIONS
from appliance.shim.wire.parameters import Parameter

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 0.9em ui-monospace, monospace; }
pre { overflow-x: auto; padding: 1rem; border: 1px solid #8886; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: 0.3rem 0.6rem; border: 1px solid #8886; }
h2 { margin-top: 3rem; }
.method { display: inline-block; min-width: 4.5rem; }
"""


@cache
def page() -> bytes:
    """The page, UTF-8."""
    sections = "".join(map(_section, OPERATIONS))
    contents = "".join(
        f'<li><a href="#{_anchor(o)}"><code class="method">{o.method}</code> '
        f"<code>{escape(o.path)}</code></a> {escape(o.summary)}</li>"
        for o in OPERATIONS
    )
    schemas = "".join(
        f'<h3 id="schema-{escape(name)}">{escape(name)}</h3>{_json(schema)}'
        for name, schema in sorted(document()["components"]["schemas"].items())
    )
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>API reference</title><style>{_STYLE}</style></head><body>"
        f"<h1>API reference</h1><p>Appliance {escape(__version__)}. The same for programs: "
        '<a href="/openapi.json"><code>/openapi.json</code></a>.</p>'
        f"<ul>{contents}</ul>{sections}<h2>Schemas</h2>{schemas}</body></html>"
    )
    return text.encode("utf-8")


def _section(operation: Operation) -> str:
    described = document()["paths"][operation.path][operation.method.lower()]
    kind = "an admin key" if operation.admin else "a key"
    key = "Needs no key." if operation.public else f"Needs {kind}."
    parts = [
        f'<h2 id="{_anchor(operation)}"><code>{operation.method} {escape(operation.path)}</code>'
        f"</h2><p>{escape(operation.summary)}. {key}</p>"
    ]
    outside = [(p["name"], f"in the {p['in']}") for p in described.get("parameters", ())]
    if outside:
        parts.append(_table(("parameter", "where"), outside))
    if operation.parameters:
        parts.append(_parameters(operation.parameters))
    answers = [(status, a["description"]) for status, a in described["responses"].items()]
    parts.append(_table(("status", "meaning"), answers))
    parts.append(f"<details><summary>As OpenAPI</summary>{_json(described)}</details>")
    return "".join(parts)


def _parameters(parameters: Sequence[Parameter]) -> str:
    return _table(
        ("parameter", "treatment", ""), [(p.name, p.treatment, p.note) for p in parameters]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><td><code>{escape(first)}</code></td>"
        + "".join(f"<td>{_prose(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _prose(text: str) -> str:
    """`text` with its `code` marked up."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))


def _json(value: Any) -> str:  # noqa: ANN401
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _anchor(operation: Operation) -> str:
    return escape(f"{operation.method}-{operation.path}".lower())
