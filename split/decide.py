"""Round by round: cut, server clock and codec from the solver, and the seconds and joules that the profiles predict for that round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from solver.assumptions import Assumption
from solver.problem import SolveOptions
from split.stages import Predicted


@dataclass(frozen=True)
class TrainedWorkload:
    """What is trained, as far as a profile must have been taken of the same. ``optimizer`` is sgd or adamw, ``optimizer_state`` travel
    or reset; ``overlap`` as in the run's settings."""

    model: str
    layers: int
    batch_size: int
    seq_len: int
    dtype: str
    lora_rank: int
    lora_targets: tuple[str, ...]
    optimizer: str = "sgd"
    optimizer_state: str = "travel"
    overlap: bool = False


@dataclass(frozen=True)
class Fixed:
    """What the user decided instead of the solver; None: the solver decides."""

    cut: int | None = None
    frequency_hz: float | None = None
    codec: str | None = None


@dataclass(frozen=True)
class Decision:
    """One round of one device. ``frequency_hz`` is the clock to request, None: leave it alone. ``predicted`` None: no profiles."""

    round: int
    device: str
    cut: int
    frequency_hz: float | None
    codec_up: str
    codec_down: str
    predicted: Predicted | None
    assumptions: tuple[Assumption, ...]
    uplink_bps: float | None
    downlink_bps: float | None


class Decider:
    """Made once; `decide` is cheap. ``options.local_epochs`` is T and ``options.rounds`` the rounds of the run.

    ``profiles`` None: nothing is predicted, and ``fixed`` must hold a cut. Raises BadInput where a device has no profile, where a profile
    is of another workload, or where a trace of rates has fewer rounds.
    """

    def __init__(
        self,
        profiles: Path | None,
        options: SolveOptions,
        devices: Sequence[str],
        workload: TrainedWorkload,
        fixed: Fixed | None = None,
    ) -> None:
        raise NotImplementedError

    def decide(
        self,
        round: int,
        device: str,
        *,
        uplink_bps: float | None = None,
        downlink_bps: float | None = None,
        round_trip_s: float | None = None,
    ) -> Decision:
        """Decide round ``round`` (counted from 1) of ``device``; rates and round trip that were measured lately replace the posed ones."""
        raise NotImplementedError
