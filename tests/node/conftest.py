"""One booted node for the whole module: installed once, looked at by many tests."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import BUILD_CACHE, BuildOnce
from tests.fakes.node_media import NodeMedia, node_media
from tests.node.debian import base_tree, require_tools
from tests.node.machine import Machine, machine
from tests.node.stick import stick

MEDIA = "/media/usb"


@dataclass(frozen=True, slots=True)
class InstalledNode:
    """A node, and what its installation printed."""

    machine: Machine
    result: dict[str, Any]
    seconds: float

    def ask(self, path: str, document: dict[str, object]) -> dict[str, Any]:
        """One API request from inside the node, with the key that the installation showed."""
        asked = self.machine.run(
            "python3", "-c", _REQUEST, path, self.result["api_key"], stdin=json.dumps(document)
        )
        answer: dict[str, Any] = json.loads(asked.stdout)
        return answer


_REQUEST = """
import http.client, sys
path, key = sys.argv[1:]
c = http.client.HTTPConnection("127.0.0.1", 8400, timeout=180)
headers = {"authorization": "Bearer " + key, "content-type": "application/json"}
c.request("POST", path, sys.stdin.read(), headers)
r = c.getresponse()
body = r.read().decode()
assert r.status == 200, body
print(body)
"""


@pytest.fixture(scope="module")
def media(build_once: BuildOnce) -> NodeMedia:
    """What the packager made."""
    return node_media(build_once)


@pytest.fixture(scope="module")
def bare(media: NodeMedia, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A booted bare node with the stick plugged in."""
    require_tools()
    base = base_tree(BUILD_CACHE)
    work = tmp_path_factory.mktemp("node")
    with stick(media.media, work) as mounted, machine(base, work, mounted) as node:
        yield node


@pytest.fixture(scope="module")
def node(bare: Machine) -> InstalledNode:
    """The same node after `python3 /media/usb/appliance.pyz install /media/usb`.

    Its /tmp is mounted as hardening guides want it: nothing can be run or loaded from there.
    """
    assert no_network(bare), "the node has loopback and nothing else"
    bare.run("mount", "-o", "remount,noexec,nosuid,nodev", "/tmp")
    begin = time.monotonic()
    done = bare.run("python3", f"{MEDIA}/appliance.pyz", "install", MEDIA, "--json", timeout=900)
    seconds = time.monotonic() - begin
    return InstalledNode(bare, json.loads(done.stdout.splitlines()[-1]), seconds)


def no_network(node: Machine) -> bool:
    """Whether the only interface is loopback."""
    links = json.loads(node.run("ip", "-json", "link").stdout)
    return [link["ifname"] for link in links] == ["lo"]
