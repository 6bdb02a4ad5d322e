"""Input files of batches, and what comes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.fakes.engine import CHAT
from tests.shim.node import Node, eventually

CHAT_PATH = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


def line(name: str, text: str = "", *, url: str = CHAT_PATH, **changes: Any) -> dict[str, Any]:
    """A line that asks the chat model to say `text`, by default its own name."""
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": text or name}],
        "temperature": 0,
    }
    return {"custom_id": name, "method": "POST", "url": url, "body": body, **changes}


def jsonl(lines: Iterable[object]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in lines)


def form(data: bytes, **fields: str) -> tuple[bytes, dict[str, str]]:
    """A body with a file, and the header that goes with it."""
    parts = [
        f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    body = b"".join(parts) + head + data + b"\r\n--xyz--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=xyz"}


def upload(node: Node, lines: Iterable[object]) -> Any:
    """The file object of an input file with `lines`."""
    body, headers = form(jsonl(lines), purpose="batch")
    answer = node.request("POST", "/v1/files", body, headers=headers)
    assert answer.status == 200, answer.body
    return answer.json


def begin(node: Node, lines: Iterable[object], *, url: str = CHAT_PATH, **more: Any) -> Any:
    """A batch of `lines` that has just been made."""
    body = {
        "input_file_id": upload(node, lines)["id"],
        "endpoint": url,
        "completion_window": "24h",
        **more,
    }
    answer = node.request("POST", "/v1/batches", body)
    assert answer.status == 200, answer.body
    return answer.json


def look(node: Node, batch_id: str) -> Any:
    answer = node.request("GET", f"/v1/batches/{batch_id}")
    assert answer.status == 200, answer.body
    return answer.json


def ended(node: Node, batch_id: str) -> Any:
    """The batch, when it has ended."""

    def find() -> Any:
        batch = look(node, batch_id)
        return batch if batch["status"] in ENDED else None

    return eventually(find)


def content(node: Node, file_id: str | None) -> dict[str, Any]:
    """The lines of a result file by their custom ids; none if there is no file."""
    if file_id is None:
        return {}
    answer = node.request("GET", f"/v1/files/{file_id}/content")
    assert answer.status == 200
    lines = [json.loads(text) for text in answer.body.splitlines()]
    assert len({item["custom_id"] for item in lines}) == len(lines)
    return {item["custom_id"]: item for item in lines}


def said(item: dict[str, Any]) -> str:
    """What the model answered in a line of an output file."""
    text: str = item["response"]["body"]["choices"][0]["message"]["content"]
    return text
