"""Rates R^D (up) and R^S (down) of Eq. 9, for every device and round: given, measured, traced, or from a named channel state.

A named state is the letter's (Section V-B): a noise density. The letter gives neither bandwidth nor power nor path loss; what
stands in their place is in `SETTING`, with its source, and is listed among the assumptions. Rate = bandwidth x spectral
efficiency, and the efficiency is log2(1 + SNR / gap), held between the lowest and highest that TS 38.214 Table 5.2.2.1-2
offers. One round uses the mean channel; several rounds fade (Rayleigh, one gain for each round and device, both directions
alike). The place for the 5G NR tables is `spectral_efficiency`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profiler.profile import BadInput, Profile, Provenance
from profiler.store import read_bytes
from solver.assumptions import Assumption, assumed, unmeasured
from solver.costs import Floats

NOISE_DBM_PER_HZ = {"good": -166.0, "normal": -163.0, "poor": -160.0}
"""The letter's three states, Section V-B."""

_WEI_CHEN = "Wei and Chen, Efficient Resource Optimization for Split Federated Learning, Table II"

SETTING: dict[str, tuple[float, Provenance, str]] = {
    "uplink bandwidth in Hz": (100e6, "assumed", f"not given by the letter; {_WEI_CHEN}"),
    "downlink bandwidth in Hz": (200e6, "assumed", f"not given by the letter; {_WEI_CHEN}"),
    "device transmit power in dBm": (20.0, "assumed", f"not given by the letter; low end of {_WEI_CHEN}"),
    "access point transmit power in dBm": (33.0, "assumed", f"not given by the letter; high end of {_WEI_CHEN}"),
    # Published gains of 1e-7 to 1e-6 put all three states at the highest code rate, where they would not differ.
    "mean channel gain in dB": (
        -85.3,
        "assumed",
        "TR 38.901 Table 7.4.1-1, UMi street canyon, line of sight, 100 m, 3.5 GHz",
    ),
    "SNR gap in dB": (3.0, "assumed", "ours"),
    "lowest spectral efficiency in bit/s/Hz": (
        0.1523,
        "assumed",
        "TS 38.214 Table 5.2.2.1-2, CQI 1; a deeper fade is served at it",
    ),
    "highest spectral efficiency in bit/s/Hz": (5.5547, "assumed", "TS 38.214 Table 5.2.2.1-2, CQI 15"),
}

TRACE_COLUMNS = ("round", "device", "uplink_mbps", "downlink_mbps")
MAX_TRACE_BYTES = 256 * 1024 * 1024
MIN_MBPS, MAX_MBPS = 1e-6, 1e7


@dataclass(frozen=True)
class Rates:
    """Rates in bit/s, (R, M) for R rounds and M devices, and the round-trip time of each device's link, (M,)."""

    rounds: list[int]
    uplink_bps: Floats
    downlink_bps: Floats
    round_trip_s: Floats
    assumptions: list[Assumption]


def spectral_efficiency(snr: Any) -> Floats:
    """bit/s/Hz at a signal-to-noise ratio (linear): log2(1 + SNR / gap) within what the modulation and coding table offers."""
    gap = 10 ** (SETTING["SNR gap in dB"][0] / 10)
    low, high = (
        SETTING["lowest spectral efficiency in bit/s/Hz"][0],
        SETTING["highest spectral efficiency in bit/s/Hz"][0],
    )
    efficiency: Floats = np.clip(np.log2(1 + np.asarray(snr, dtype=float) / gap), low, high)
    return efficiency


def state_rates(state: str, fading: Floats) -> tuple[Floats, Floats]:
    """Up and down rates in bit/s of a named state, for power gains ``fading`` relative to the mean (1: the mean channel)."""
    rates = []
    for direction, sender in (("uplink", "device"), ("downlink", "access point")):
        bandwidth = SETTING[f"{direction} bandwidth in Hz"][0]
        received_dbm = SETTING[f"{sender} transmit power in dBm"][0] + SETTING["mean channel gain in dB"][0]
        snr_db = received_dbm - (NOISE_DBM_PER_HZ[state] + 10 * math.log10(bandwidth))
        rates.append(bandwidth * spectral_efficiency(10 ** (snr_db / 10) * fading))
    return rates[0], rates[1]


def rates(
    devices: Sequence[Profile],
    *,
    rounds: int | None = None,
    seed: int = 0,
    uplink_mbps: float | None = None,
    downlink_mbps: float | None = None,
    channel: str | None = None,
) -> Rates:
    """Rates for every round and device. Given rates come first, then each profile's own link, then the state ``normal``.

    ``channel`` is good, normal, poor or the path of a trace. ``rounds`` None: as many as a trace has, else 1.
    Raises BadInput naming the option, or file, line and column.
    """
    if (uplink_mbps is None) != (downlink_mbps is None):
        given, other = ("uplink", "downlink") if downlink_mbps is None else ("downlink", "uplink")
        raise BadInput(f"--{given}-mbps: expected --{other}-mbps with it")
    for option, value in (("--uplink-mbps", uplink_mbps), ("--downlink-mbps", downlink_mbps)):
        if value is not None and not MIN_MBPS <= value <= MAX_MBPS:
            raise BadInput(f"{option} {value:g}: expected a rate in Mbit/s from {MIN_MBPS:g} to {MAX_MBPS:g}")
    if uplink_mbps is not None and channel is not None:
        raise BadInput("--channel: expected either it or --uplink-mbps and --downlink-mbps, not both")
    count = len(devices)
    if uplink_mbps is not None and downlink_mbps is not None:
        labels = list(range(1, (rounds or 1) + 1))
        shape = (len(labels), count)
        return Rates(
            labels, np.full(shape, uplink_mbps * 1e6), np.full(shape, downlink_mbps * 1e6), np.zeros(count), []
        )
    if channel is not None and channel not in NOISE_DBM_PER_HZ:
        return _trace(Path(channel), [d.name for d in devices], rounds)
    labels = list(range(1, (rounds or 1) + 1))
    shape = (len(labels), count)
    fading = np.ones(shape) if len(labels) == 1 else np.random.default_rng(seed).exponential(size=shape)
    up, down = state_rates(channel or "normal", fading)
    trips, listed, faded = np.zeros(count), [], channel is not None
    for m, device in enumerate(devices):
        if channel is None and device.link is not None:
            link = device.link
            up[:, m], down[:, m] = link.uplink_mbps * 1e6, link.downlink_mbps * 1e6
            trips[m] = link.round_trip_s or 0.0
            what = {
                f"{device.name}: uplink in Mbit/s": link.uplink_mbps,
                f"{device.name}: downlink in Mbit/s": link.downlink_mbps,
            }
            listed += unmeasured(link, **what)
        elif channel is None:
            faded = True
            listed.append(assumed(f"{device.name}: channel state", "normal"))
    if faded:
        state = channel or "normal"
        listed.append(Assumption("channel: noise density in dBm/Hz", NOISE_DBM_PER_HZ[state], "literature"))
        listed += [Assumption(f"channel: {name}", value, source) for name, (value, source, _) in SETTING.items()]
        if len(labels) > 1:
            listed.append(assumed("channel: fading", f"Rayleigh, constant within a round, seed {seed}"))
        else:  # what follows from the figures above, so that a decision can be recomputed from this list
            for direction, bps in zip(("uplink", "downlink"), state_rates(state, np.ones(1)), strict=True):
                listed.append(assumed(f"channel: {direction} in Mbit/s", float(bps[0]) / 1e6))
    return Rates(labels, up, down, trips, listed)


def _trace(path: Path, names: list[str], rounds: int | None) -> Rates:
    """Read a trace. Its rounds count from 1 (or from 0) without a gap; every round names every device once."""
    seen: dict[tuple[int, str], tuple[int, float, float]] = {}
    try:
        raw = io.BytesIO(read_bytes(path, MAX_TRACE_BYTES, "a trace of rates"))
        with io.TextIOWrapper(raw, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            missing = [column for column in TRACE_COLUMNS if column not in header]
            if missing:
                raise BadInput(f"{path}: line 1: column {missing[0]} is missing, expected {','.join(TRACE_COLUMNS)}")
            for column in TRACE_COLUMNS:
                if header.count(column) > 1:
                    raise BadInput(
                        f"{path}: line 1: column {column} stands {header.count(column)} times, expected once"
                    )
            places = [header.index(column) for column in TRACE_COLUMNS]
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                where = f"{path}: line {reader.line_num}"
                if len(row) != len(header):
                    raise BadInput(f"{where}: {len(row)} columns, expected {len(header)}")
                number, device, up, down = (row[place].strip() for place in places)
                if not (number.isascii() and number.isdigit() and len(number) <= 9):
                    raise BadInput(f"{where}: column round is {number[:40]!r}, expected a whole number")
                if device not in names:
                    raise BadInput(f"{where}: column device is {device[:100]!r}, expected one of {', '.join(names)}")
                key = (int(number), device)
                if key in seen:
                    raise BadInput(
                        f"{where}: column device: round {key[0]} of {device} stands already on line {seen[key][0]}"
                    )
                pair = [_rate(where, column, text) for column, text in zip(TRACE_COLUMNS[2:], (up, down), strict=True)]
                seen[key] = (reader.line_num, pair[0], pair[1])
    except OSError as error:
        raise BadInput(
            f"--channel {path}: expected good, normal, poor or a readable CSV file ({error.strerror or error})"
        ) from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: expected a CSV file in UTF-8") from None
    except csv.Error as error:
        raise BadInput(f"{path}: line {reader.line_num}: expected CSV: {error}") from None
    if not seen:
        raise BadInput(f"{path}: line 2: expected at least one row under the header")
    numbers = {number for number, _ in seen}
    first = min(numbers)
    if first not in (0, 1):
        raise BadInput(f"{path}: column round begins at {first}, expected 1")
    labels = range(first, first + (rounds if rounds is not None else max(numbers) - first + 1))
    for label in labels:
        for name in names:
            if (label, name) not in seen:
                raise BadInput(
                    f"{path}: round {label} of device {name} is missing, expected every device in every round"
                )
    up_down = np.array([[seen[label, name][1:] for name in names] for label in labels]) * 1e6
    return Rates(list(labels), up_down[:, :, 0], up_down[:, :, 1], np.zeros(len(names)), [])


def _rate(where: str, column: str, text: str) -> float:
    try:
        value = math.nan if "_" in text else float(text)  # 1_000 is Python's grouping, which no table means
    except ValueError:
        value = math.nan
    if not MIN_MBPS <= value <= MAX_MBPS:
        raise BadInput(
            f"{where}: column {column} is {text[:40]!r}, expected a rate in Mbit/s from {MIN_MBPS:g} to {MAX_MBPS:g}"
        )
    return value
