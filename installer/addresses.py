"""By what this machine is called: its host name and the addresses of its interfaces.

Asks the kernel alone. Refuses to ask a resolver: a node without a network would wait for it.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path

_SIOCGIFADDR = 0x8915
_IPV6 = Path("/proc/net/if_inet6")


def own_name() -> str:
    """The host name."""
    return socket.gethostname()


def own_addresses() -> list[str]:
    """One IPv4 address of each interface, and every IPv6 address but link-local ones."""
    found: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, interface in socket.if_nameindex():
            with suppress(OSError):  # it has none
                request = struct.pack("256s", interface.encode()[:15])
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)
                found.append(socket.inet_ntoa(answer[20:24]))
    with suppress(OSError):
        for line in _IPV6.read_text("ascii").splitlines():
            address = IPv6Address(bytes.fromhex(line.split()[0]))
            if not address.is_link_local:
                found.append(str(address))
    return [address for address in dict.fromkeys(found) if not ip_address(address).is_loopback]
