"""The network interface by which this machine reaches another one.

gloo listens where this machine's own name resolves to, which is 127.0.0.1 on many: then ranks of other
machines wait in vain. So it is told the interface that leads to rank 0.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

OUTSIDE = "192.0.2.1"  # RFC 5737: nobody's address; nothing is sent


def interface_towards(address: str) -> str | None:
    """Return the name of the interface that leads to a host; None where there is none, or it is unknown.

    To a host that its own machine knows as 127.0.0.1, the one that leads to other machines.
    """
    try:
        resolved = socket.gethostbyname(address)
    except OSError:
        return None
    own = own_address(OUTSIDE if ipaddress.ip_address(resolved).is_loopback else resolved)
    return next((name for name, addresses in _addresses().items() if own in addresses), None)


def own_address(towards: str) -> str | None:
    """Return this machine's address on the way to another one; None without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))  # of a datagram socket: looks up the route, sends nothing
        except OSError:
            return None
        return str(probe.getsockname()[0])


def is_own(address: str) -> bool:
    """Whether an address is one of this machine's."""
    return any(address in addresses for addresses in _addresses().values())


def _addresses() -> dict[str, set[str]]:
    """Return every interface's IPv4 addresses."""
    return {
        name: {one.address for one in found if one.family == socket.AF_INET}
        for name, found in psutil.net_if_addrs().items()
    }
