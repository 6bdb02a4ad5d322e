"""What the tests of a booted node ask of it and of its systemd, and what they change on it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

from installer import units
from tests.fakes.node_media import ADAPTER, CHAT, EMBEDDING, GUESSED, RANKS, SEES
from tests.node.conftest import MEDIA, InstalledNode
from tests.node.lan import Lan
from tests.vision.pictures import data_uri, png

SERVICES = {units.ENGINE_UNIT: units.ENGINE_USER, units.SHIM_UNIT: units.API_USER}
UNITS = "/etc/systemd/system"
CHAT_REQUEST: dict[str, object] = {
    "model": CHAT, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8,
}  # fmt: skip
JSON_FORM: dict[str, object] = {"type": "json_object"}
FUNCTION = {
    "name": "look_up",
    "parameters": {"type": "object", "properties": {"word": {"type": "string", "maxLength": 4}}},
}
EVERYTHING: list[tuple[str, dict[str, object]]] = [
    ("/v1/chat/completions", {**CHAT_REQUEST, "response_format": JSON_FORM}),
    (
        "/v1/chat/completions",
        {
            **CHAT_REQUEST,
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": "required",
        },
    ),
    (
        "/v1/chat/completions",
        {
            **CHAT_REQUEST,
            "model": SEES,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is this?"},
                        {"type": "image_url", "image_url": {"url": data_uri(png())}},
                    ],
                }
            ],
        },
    ),
    ("/v1/rerank", {"model": RANKS, "query": "a b", "documents": ["b", "a b"]}),
    ("/v1/chat/completions", {**CHAT_REQUEST, "model": GUESSED, "max_tokens": 64}),
    ("/v1/chat/completions", {**CHAT_REQUEST, "model": ADAPTER}),
    ("/v1/responses", {"model": CHAT, "input": "hello", "max_output_tokens": 16}),
    ("/v1/completions", {"model": CHAT, "prompt": "hello", "max_tokens": 8}),
]
BOOT_SECONDS = 240


def exposed(node: InstalledNode, unit: str) -> float:
    """What systemd thinks of the unit: 0 is best, 10 is worst."""
    report = node.machine.run("systemd-analyze", "security", "--no-pager", unit).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", report)
    assert found is not None, report
    return float(found[1])


def use_units(node: InstalledNode, files: Mapping[str, str]) -> None:
    """Let the node run its engine by these units."""
    for name, text in files.items():
        node.machine.run("tee", f"{UNITS}/{name}", stdin=text)
    node.machine.run("systemctl", "daemon-reload")
    node.machine.run("systemctl", "restart", units.ENGINE_UNIT)
    wait_until_serving(node)


def updated_from(node: InstalledNode, old: str) -> None:
    """Let the node run a release of this name, then update it from the stick."""
    script = f"""
    set -e
    cd /opt/appliance/releases
    new=$(basename $(readlink ../current))
    cp -a $new {old}
    grep -rlI $new {old}/venv/bin | xargs sed -i s,$new,{old},
    ln -sfn releases/{old} ../current
    echo '{{"proved":"{old}"}}' > /var/lib/appliance/install/releases.json
    """
    node.machine.run("sh", "-c", script)
    node.machine.run("appliance", "install", MEDIA)


def releases(node: InstalledNode, command: str) -> dict[str, Any]:
    """The document of `appliance releases`."""
    done = node.machine.run("appliance", "releases", command, "--json")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def serves(node: InstalledNode) -> None:
    """One chat, one answer in a form and one embedding, from inside."""
    answer = node.ask("/v1/chat/completions", CHAT_REQUEST)
    assert answer["usage"]["completion_tokens"] > 0
    formed = node.ask("/v1/chat/completions", {**CHAT_REQUEST, "response_format": JSON_FORM})
    assert formed["usage"]["completion_tokens"] > 0
    vectors = node.ask("/v1/embeddings", {"model": EMBEDDING, "input": ["one", "two"]})["data"]
    assert len(vectors) == 2


def wait_until_serving(node: InstalledNode) -> None:
    """Until `appliance status` says so."""
    deadline = time.monotonic() + BOOT_SECONDS
    while node.machine.run("appliance", "status", "--json", check=False).returncode:
        assert time.monotonic() < deadline, node.machine.run("journalctl", "-b", "-n", "50").stdout
        time.sleep(0.5)


def states(node: InstalledNode) -> set[str]:
    """What systemd says of the services."""
    return set(node.machine.run("systemctl", "is-active", *SERVICES, check=False).stdout.split())


def processes(node: InstalledNode) -> dict[str, str]:
    """The process number of each service."""
    return {
        unit: node.machine.run("systemctl", "show", unit, "-p", "MainPID", "--value").stdout
        for unit in SERVICES
    }


def chat_from(lan: Lan, **how: Any) -> dict[str, Any]:
    """One chat from the other machine."""
    return lan.call("/v1/chat/completions", CHAT_REQUEST, **how)
