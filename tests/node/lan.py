"""A second machine beside the node: a network namespace at the other end of a virtual cable.

Its packets come to the node from outside, as another machine's do, through the node's address and
the filter of the endpoint's unit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.node.machine import Machine

NODE, NAME = "10.20.0.1", "llm.site.example"
CALLER, STRANGER = "10.20.0.2", "10.20.0.3"
"""Addresses of the other machine; the settings let the first one call."""
FILES = "/srv/caller"
"""What the other machine keeps, on the node's disk."""
_DROPPED_SECONDS = 1.5

_CALL = """
import http.client, json, socket, ssl, sys
a = json.load(sys.stdin)
try:
    s = socket.create_connection((a["host"], 8400), a["seconds"], (a["source"], 0))
    if a["tls"]:
        context = ssl.create_default_context(cafile=a["ca"])
        if a["certificate"]:
            context.load_cert_chain(a["certificate"])
        context.maximum_version = ssl.TLSVersion[a["version"]]
        s = context.wrap_socket(s, server_hostname=a["name"])
    c = http.client.HTTPConnection(a["name"], 8400)
    c.sock = s
    headers = {"authorization": "Bearer " + a["key"], "content-type": "application/json"}
    c.request("POST", a["path"], json.dumps(a["body"]), headers)
    r = c.getresponse()
    said = {"status": r.status, "body": json.loads(r.read())}
except (OSError, http.client.HTTPException) as error:
    said = {"error": repr(error)}
print(json.dumps(said))
"""


@dataclass(frozen=True, slots=True)
class Lan:
    """The other machine, once it is connected."""

    machine: Machine
    api_key: str

    def connect(self) -> None:
        """Lay the cable; a start of the node takes it away."""
        for command in (
            "ip netns add caller",
            "ip link add lan0 type veth peer name eth0 netns caller",
            f"ip addr add {NODE}/24 dev lan0",
            "ip link set lan0 up",
            f"ip -n caller addr add {CALLER}/24 dev eth0",
            f"ip -n caller addr add {STRANGER}/24 dev eth0",
            "ip -n caller link set eth0 up",
            f"mkdir -p {FILES}",
        ):
            self.machine.run(*command.split())

    def give(self, name: str, data: bytes) -> str:
        """Put a file on the other machine; its path."""
        self.machine.run("tee", f"{FILES}/{name}", stdin=data.decode("ascii"))
        return f"{FILES}/{name}"

    def use_settings(self, *, clients: str = "", client_certificates: bool = False) -> None:
        """Write settings by which the node serves its network."""
        lines = ["[api]", f'listen_host = "{NODE}"', "tls = true"]
        lines += [f'clients = "{clients}"'] * bool(clients)
        lines += ["client_certificates = true"] * client_certificates
        text = "".join(f"{line}\n" for line in lines)
        self.machine.run("tee", "/etc/appliance/appliance.toml", stdin=text)

    def call(
        self,
        path: str,
        body: dict[str, object],
        *,
        source: str = CALLER,
        name: str = NAME,
        tls: bool = True,
        ca: str | None = f"{FILES}/ca.crt",
        certificate: str | None = None,
        version: str = "TLSv1_3",
    ) -> dict[str, Any]:
        """One request from there: `status` and `body`, or the `error` that the caller sees.

        `ca` is what it trusts besides nothing, `certificate` what it shows, `version` the newest
        that it speaks.
        """
        given = {
            "host": NODE, "key": self.api_key, "path": path, "body": body, "source": source,
            "name": name, "tls": tls, "ca": ca, "certificate": certificate, "version": version,
            "seconds": _DROPPED_SECONDS if source == STRANGER else 180,
        }  # fmt: skip
        command = ["ip", "netns", "exec", "caller", "python3", "-c", _CALL]
        said: dict[str, Any] = json.loads(
            self.machine.run(*command, stdin=json.dumps(given)).stdout
        )
        return said
