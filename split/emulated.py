"""An emulated link in a running system: before each turn both ends are slowed to the rates by which that turn was decided.

The server's end is slowed here, the device's by the message `split.wire.Link`. So prediction, decision and what really happens know one link.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from profiler.profile import BadInput
from split import wire
from split.shaping import LinkTrace, Shape

if TYPE_CHECKING:
    from solver.problem import SolveOptions
    from split.decide import Decision
    from split.stream import Stream


def posed(options: SolveOptions, trace: LinkTrace | None) -> SolveOptions:
    """What ``card-solve`` is asked with a trace over time: its first rates stand for those of every round, until each is decided by what
    holds then. Raises BadInput where rates were asked for otherwise too."""
    if trace is None:
        return options
    for option in ("uplink_mbps", "downlink_mbps", "channel"):
        if getattr(options, option) is not None:
            raise BadInput(f"--trace: expected either it or --{option.replace('_', '-')}, not both")
    up, down = trace.next_rates_bps()
    return replace(options, uplink_mbps=up / 1e6, downlink_mbps=down / 1e6)


class EmulatedLink:
    """The link of a run. ``shaped`` False: it is left as it is. The trace begins when this is made."""

    def __init__(self, shaped: bool, trace: LinkTrace | None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._shaped, self._trace, self._now_s = shaped, trace, now_s
        self._began_s = now_s()

    def rates_bps(self) -> tuple[float | None, float | None]:
        """Up and down now, where there is a trace over time; in an outage those after it."""
        trace = self._rest()
        return (None, None) if trace is None else trace.next_rates_bps()

    def take(self, stream: Stream, decision: Decision, timeout_s: float) -> Decision:
        """Slow both ends of ``stream``; the decision, marked. Raises Gone, Silent, and BadInput where no rates are known."""
        if not self._shaped:
            return decision
        trace = self._rest()
        if trace is None:
            if decision.uplink_bps is None or decision.downlink_bps is None:
                raise BadInput(
                    "--shape: no rates to slow the link to, expected --uplink-mbps with --downlink-mbps, --channel, or --trace"
                )
            trace = LinkTrace([(0.0, decision.uplink_bps)], [(0.0, decision.downlink_bps)])
        stream.send(wire.Link(uplink=list(trace.uplink)), timeout_s=timeout_s)
        stream.shape = Shape(trace.downlink)
        return replace(decision, emulated=True)

    def _rest(self) -> LinkTrace | None:
        return None if self._trace is None else self._trace.rest(self._now_s() - self._began_s)
