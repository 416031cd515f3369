"""Everything that the fit of a power curve believes before it has seen a point, in one place.

Nothing here is fitted to measured sweeps: `benchmarks/power_choice.py` chooses these figures on curves made for the purpose, by a rule that
is written down there, and prints what it tried. docs/power-priors.md says what came out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class KrigedPriors:
    """What the kriged law averages over.

    ``lengths``: correlation lengths of the rest over the width of the domain. ``noise``: variances of the noise over that of the rest.
    ``rougher``: what is left over at the highest clock, over what is left over below the ridge clock. ``ceiling``: probability that the voltage
    stops rising within the top tenth of the clocks. ``plain``: probability of a law without a voltage floor, a plain power of the clock.
    ``bends``: powers of the way from ridge to ceiling with which the voltage rises. ``scatter``: sizes, one as likely as the other, of what a mean
    scatters by, over the watts, and how many measurements that belief is worth. ``positive``: P0 and the factor are not negative.
    ``jumping``: probability that the rest has jumps. ``voltage_ratio``: the highest voltage over that below the ridge clock, at most. ``voltage_power``: the power of
    the clock with which the voltage rises from ridge to ceiling, at most.
    """

    lengths: tuple[float, ...] = (0.2, 0.4, 0.8)
    noise: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    rougher: tuple[float, ...] = (1.0, 3.0)
    ceiling: float = 0.5
    plain: float = 0.5
    bends: tuple[float, ...] = (1.0, 1.6)
    scatter: tuple[tuple[float, ...], float] = ((0.001, 0.003, 0.01, 0.03), 3.0)
    positive: bool = True
    jumping: float = 0.2
    voltage_ratio: float = 2.0
    voltage_power: float = 3.0


@dataclass(frozen=True)
class AveragePriors:
    """Weights of the members of ``auto`` before their errors are seen (the ridge law's is 1, ``plain`` is that of the affine cubic and the power
    law each). A member's weight falls as its mean squared error to the power ``sharpness``."""

    kriged: float = 4.0
    monotone: float = 1.0
    plain: float = 0.03
    sharpness: float = 2.0


@dataclass(frozen=True)
class IntervalPriors:
    """How far an interval follows the errors found at clocks left out: the kriged law's claim counts for ``claim`` clocks (infinity:
    it is taken as it is), or for as much as all errors found together (None). ``shared``: for how many clocks it counts against the errors of other
    workloads of the chip at clocks nearby, which may make it wider. ``reach``: how near, over the width of the domain: there a clock counts for 1/e.
    """

    claim: float | None = math.inf
    shared: float = 4.0
    reach: float = 0.2


@dataclass(frozen=True)
class Priors:
    kriged: KrigedPriors = KrigedPriors()
    average: AveragePriors = AveragePriors()
    interval: IntervalPriors = IntervalPriors()


PRIORS = Priors()
