"""The letter's two benchmarks and the static split: a cut that never changes."""

from __future__ import annotations

import re

from profiler.profile import BadInput

SERVER_ONLY = "server-only"
DEVICE_ONLY = "device-only"
ALWAYS_REPORTED = (SERVER_ONLY, DEVICE_ONLY)


def fixed_cut(method: str, layers: int) -> int | None:
    """The cut of a method that does not choose: 1 (server-only), I-1 (device-only), C (static:C); None for any other method.

    Raises BadInput for a C outside 1..I-1.
    """
    if method == SERVER_ONLY:
        return 1
    if method == DEVICE_ONLY:
        return layers - 1
    if not method.startswith("static:"):
        return None
    text = method.removeprefix("static:")
    cut = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
    if not 1 <= cut <= layers - 1:
        raise BadInput(f"--method {method}: expected static:C with a cut C from 1 to {layers - 1}")
    return cut
