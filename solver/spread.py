"""The same choice spread over other machines by Dask, for fleets beyond what one machine decides in seconds.

Dask's wire format is pickle: whoever can speak to a scheduler can run code on it, and what it answers is unpickled here. So only an
address on this machine's loopback is taken, or one under Dask's own mutual TLS.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import numpy as np

from profiler.profile import BadInput, MissingHardware
from solver.costs import Places
from solver.methods import Chosen, Task, choose

CHUNK = 250_000
"""Decisions in one task: a few megabytes on the wire, a good part of a second of work."""

_TIMEOUT_S = 15


def spread(task: Task, places: Places, address: str) -> Chosen:
    """`solver.methods.choose` by the workers of the Dask scheduler at ``address``; equal to the local answer.

    Raises BadInput for an address that is neither loopback nor TLS or that does not answer, MissingHardware without Dask.
    """
    _check_address(address)
    try:
        from distributed import Client
        from distributed.security import Security
    except ImportError:
        raise MissingHardware(
            "--scheduler: Dask is not installed, expected it there: pip install 'card-profile[dask]'"
        ) from None
    security = Security(require_encryption=True) if address.startswith("tls://") else None
    if security is not None and security.get_connection_args("client")["ssl_context"] is None:
        raise BadInput(
            f"--scheduler {address}: no certificates for TLS, expected ca-file, client.cert and client.key below "
            "distributed.comm.tls in Dask's configuration"
        )
    try:
        client = Client(address, security=security, timeout=_TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise BadInput(f"--scheduler {address}: no Dask scheduler answers there: {why}") from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise BadInput(
                f"--scheduler {address}: the scheduler has no workers, expected at least one ('dask worker {address}')"
            )
        shared = client.scatter(task, broadcast=True)
        parts = [
            client.submit(choose, shared, _part(places, slice(start, start + CHUNK)), pure=False)
            for start in range(0, len(places), CHUNK)
        ]
        return Chosen.joined(client.gather(parts))


def _part(places: Places, rows: slice) -> Places:
    return Places(
        places.device[rows],
        np.ascontiguousarray(places.uplink_bps[rows]),
        np.ascontiguousarray(places.downlink_bps[rows]),
        places.feasible,
    )


def _check_address(address: str) -> None:
    wanted = "expected tcp://127.0.0.1:PORT (loopback) or tls://HOST:PORT"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("tcp", "tls") or not host or not port:
        raise BadInput(f"--scheduler {address}: {wanted}")
    if parts.scheme == "tls":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise BadInput(
            f"--scheduler {address}: Dask speaks pickle, and plain TCP to another machine would let anyone on the way run code here; {wanted}"
        )
