"""From signal to noise to bit/s/Hz by the tables of 5G NR, and the path loss models that give the signal.

The tables are TS 38.214's, as data in ``nr.json``. They say what a CQI or MCS index *means* (modulation and code rate). Which
index a channel deserves they do not say; that is our rule, with one assumed figure, the gap Gamma:

    CQI = the index of the largest efficiency <= log2(1 + SNR / Gamma)
    MCS = the highest index of the matching MCS table whose efficiency does not exceed the CQI's

Everything takes and gives arrays of any shape.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from profiler.profile import BadInput
from solver.costs import Floats, Ints

MODULATIONS = {1: "pi/2-BPSK", 2: "QPSK", 4: "16QAM", 6: "64QAM", 8: "256QAM"}

PathLoss = Literal["umi-los", "umi-nlos", "uma-los", "uma-nlos"]
LIGHT_M_PER_S = 3.0e8
"""As TR 38.901 has it, below Table 7.4.1-1."""


@dataclass(frozen=True)
class CodeTable:
    """One table of TS 38.214: arrays (K,) over its indices, the reserved ones and "out of range" left out."""

    name: str
    """Its number, as ``TS 38.214 Table 5.2.2.1-2``."""
    index: Ints
    modulation_order: Ints
    """Qm: bits per symbol."""
    code_rate_x1024: Floats
    printed_efficiency: Floats
    """bit/s/Hz as the table prints it, with four decimals."""

    @property
    def efficiency(self) -> Floats:
        """Qm R in bit/s/Hz, not rounded."""
        product: Floats = self.modulation_order * self.code_rate_x1024 / 1024
        return product


@cache
def _document() -> tuple[str, dict[tuple[str, int], CodeTable]]:
    data = json.loads(Path(__file__).with_name("nr.json").read_text(encoding="utf-8"))
    tables = {}
    for entry in data["tables"]:
        index, order, rate, printed = (np.array(column) for column in zip(*entry["rows"], strict=True))
        tables[entry["kind"], entry["number"]] = CodeTable(
            f"TS 38.214 Table {entry['table']}", index, order, rate.astype(float), printed
        )
    return f"{data['document']} {data['version']}", tables


def version() -> str:
    """Document and version that the tables are from."""
    return _document()[0]


def cqi_table(number: int) -> CodeTable:
    """CQI table 1, 2 or 3: TS 38.214 Tables 5.2.2.1-2 (up to 64QAM), -3 (up to 256QAM), -4 (up to 64QAM, for few errors)."""
    return _table("cqi", number)


def mcs_table(number: int) -> CodeTable:
    """MCS index table 1, 2 or 3 for PDSCH: TS 38.214 Tables 5.1.3.1-1 (64QAM), -2 (256QAM), -3 (low efficiency)."""
    return _table("mcs", number)


def _table(kind: str, number: int) -> CodeTable:
    found = _document()[1].get((kind, number))
    if found is None:
        raise BadInput(f"table {number}: expected 1, 2 or 3")
    return found


def cqi_of(snr: Any, gap: float, number: int = 1) -> Ints:
    """CQI index for each signal-to-noise ratio (linear): the largest efficiency <= log2(1 + SNR / gap). 0: out of range."""
    # Compared as SNR against the table's fifteen thresholds, which needs no logarithm of a million figures.
    return np.searchsorted(least_snr(gap, number), np.asarray(snr, dtype=float), side="right")


def least_snr(gap: float, number: int = 1) -> Floats:
    """(15,) the least signal-to-noise ratio (linear) at which each CQI is chosen: gap (2^efficiency - 1)."""
    snr: Floats = gap * np.expm1(math.log(2) * cqi_table(number).efficiency)
    return snr


def efficiency_of(cqi: Any, number: int = 1) -> Floats:
    """bit/s/Hz at CQI indices. Index 0, out of range, is served at index 1's: a rate of zero would be a round without an end."""
    efficiency: Floats = cqi_table(number).efficiency[np.maximum(np.asarray(cqi), 1) - 1]
    return efficiency


def mcs_of(cqi: Any, number: int = 1) -> Ints:
    """MCS index for CQI indices 1..15: the highest of the matching table whose efficiency does not exceed the CQI's.

    It has the CQI's own modulation and code rate in all rows but one: CQI 1 of tables 1 and 2 lies below MCS 0. There the index is 0, and the
    rate stays CQI 1's: the same block goes out more than once (`efficiency_of`).
    """
    table, wanted = mcs_table(number), cqi_table(number).efficiency
    fits = table.efficiency[None, :] <= wanted[:, None]
    highest = np.where(fits.any(1), fits.shape[1] - 1 - fits[:, ::-1].argmax(1), 0)
    index: Ints = table.index[highest][np.maximum(np.asarray(cqi), 1) - 1]
    return index


def path_loss_db(model: PathLoss, distance_m: float, carrier_hz: float) -> float:
    """Mean path loss in dB by TR 38.901 Table 7.4.1-1, without shadow fading.

    ``distance_m`` is along the ground, from 10 to 5000 m. The device is at 1.5 m, the access point at 10 m (UMi street canyon) or 25 m
    (UMa); the environment's height is 1 m. Raises BadInput outside of the model's range.
    """
    if model not in get_args(PathLoss):
        raise BadInput(f"path loss {model}: expected one of {', '.join(get_args(PathLoss))}")
    if not 10 <= distance_m <= 5000:
        raise BadInput(f"distance_m {distance_m:g}: expected 10 to 5000 m, the range of TR 38.901 Table 7.4.1-1")
    if not 0.5e9 <= carrier_hz <= 100e9:
        raise BadInput(f"carrier_hz {carrier_hz:g}: expected 5e8 to 1e11 Hz, the range of TR 38.901")
    macro = model.startswith("uma")
    top_m, low_m = (25.0 if macro else 10.0), 1.5
    ghz = carrier_hz / 1e9
    slant_m = math.hypot(distance_m, top_m - low_m)
    break_m = 4 * (top_m - 1) * (low_m - 1) * carrier_hz / LIGHT_M_PER_S
    constant, near, bend = (28.0, 22.0, 9.0) if macro else (32.4, 21.0, 9.5)
    seen = constant + 20 * math.log10(ghz)
    if distance_m <= break_m:
        seen += near * math.log10(slant_m)
    else:
        seen += 40 * math.log10(slant_m) - bend * math.log10(break_m**2 + (top_m - low_m) ** 2)
    if model.endswith("-los"):
        return seen
    # The device's height enters the next two only where it is not 1.5 m.
    if macro:
        hidden = 13.54 + 39.08 * math.log10(slant_m) + 20 * math.log10(ghz)
    else:
        hidden = 22.4 + 35.3 * math.log10(slant_m) + 21.3 * math.log10(ghz)
    return max(seen, hidden)
