"""Rates R^D (up) and R^S (down) of Eq. 9, for every device and round: given, measured, traced, or from a radio channel.

A radio channel is a chain: power sent, path loss, noise -> SNR -> CQI -> modulation and code rate -> bit/s (`solver.nr`). The letter
(Section V-B) names three states of it, which are noise densities, and gives nothing else. What stands in the place of the rest is
`Channel`'s defaults, whose descriptions say where they are from; each that a user did not give is listed among the assumptions.

One round uses the mean channel; several rounds fade (Rayleigh, one power gain for each round and device, both directions alike).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from profiler.profile import BadInput, Document, Hertz, Link, Name
from profiler.store import document_schema, read_document
from solver import nr
from solver.assumptions import Assumption, assumed, distinct, unmeasured
from solver.costs import Floats
from solver.traces import MAX_MBPS, MIN_MBPS, read_trace

CHANNEL_FORMAT = "card-channel/1"
WITHIN_A_ROUND = "channel: within a round"
"""The assumption that `solver.adaptive` does without."""
State = Literal["good", "normal", "poor"]
NOISE_DBM_PER_HZ: dict[str, float] = {"good": -166.0, "normal": -163.0, "poor": -160.0}
"""The letter's three states, Section V-B."""

_WEI_CHEN = "Wei and Chen, Efficient Resource Optimization for Split Federated Learning, Table II"

Decibel = Annotated[float, Field(ge=-300, le=100)]


class Station(Document):
    """What may differ from device to device. Fields of a device stand in place of the channel's own."""

    state: State = Field(
        default="normal", description="The letter's noise density: good -166, normal -163, poor -160 dBm/Hz"
    )
    noise_dbm_per_hz: Decibel | None = Field(default=None, description="Noise density in dBm/Hz, in place of state")
    path_loss: nr.PathLoss = Field(default="umi-los", description="Model of 3GPP TR 38.901 Table 7.4.1-1")
    distance_m: float = Field(default=100.0, ge=10, le=5000, description="To the access point, along the ground")
    gain_db: Annotated[float, Field(ge=-250, le=0)] | None = Field(
        default=None, description="Mean channel gain in dB, in place of path_loss and distance_m"
    )
    device_power_dbm: Annotated[float, Field(ge=-50, le=60)] = Field(
        default=20.0, description=f"Transmit power of the device; default: low end of {_WEI_CHEN}"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Station:
        given = self.model_fields_set
        for one, others in (("noise_dbm_per_hz", ("state",)), ("gain_db", ("path_loss", "distance_m"))):
            if one in given and getattr(self, one) is None:
                raise ValueError(f"{one}: expected a number, or no such field")
            both = [name for name in others if name in given]
            if one in given and both:
                raise ValueError(f"{one} and {both[0]}: expected one of them")
        return self


class Channel(Station):
    """A radio channel between the devices and the server's access point: the JSON file that ``--channel FILE.json`` reads."""

    format: Literal["card-channel/1"] = "card-channel/1"
    uplink_bandwidth_hz: Hertz = Field(default=100e6, description=f"Default: {_WEI_CHEN}")
    downlink_bandwidth_hz: Hertz = Field(default=200e6, description=f"Default: {_WEI_CHEN}")
    access_point_power_dbm: Annotated[float, Field(ge=-50, le=80)] = Field(
        default=33.0, description=f"Transmit power of the access point; default: high end of {_WEI_CHEN}"
    )
    carrier_hz: Hertz = Field(default=3.5e9, description="Carrier, for the path loss; default: ours")
    snr_gap_db: Annotated[float, Field(ge=0, le=40)] = Field(
        default=3.0, description="Gamma: how far below Shannon's limit the link works; default: ours"
    )
    table: Literal[1, 2, 3] = Field(default=1, description="CQI table: TS 38.214 Table 5.2.2.1-2 (1), -3 (2) or -4 (3)")
    uplink_overhead: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of the uplink without data; 3GPP TS 38.306 4.1.2 has 0.08 in FR1"
    )
    downlink_overhead: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of the downlink without data; 3GPP TS 38.306 4.1.2 has 0.14 in FR1"
    )
    fading: Literal["rayleigh", "none"] = Field(
        default="rayleigh", description="rayleigh: a new power gain for each round, where there are several"
    )
    correlation: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Of the complex amplitude from one draw to the next (Gauss-Markov); 0: each draw is its own",
    )
    devices: dict[Name, Station] = Field(default={}, description="By a device's name: what differs there")

    def station(self, name: str) -> Channel:
        """The channel as the device ``name`` has it."""
        own = self.devices.get(name)
        given = {field: getattr(self, field) for field in self.model_fields_set - {"devices"}}
        if own is None:
            return Channel(**given)
        # A device's own figure takes the place of the channel's alternative to it.
        for one, others in (("noise_dbm_per_hz", ("state",)), ("gain_db", ("path_loss", "distance_m"))):
            if own.model_fields_set & {one}:
                given = {field: value for field, value in given.items() if field not in others}
            if own.model_fields_set & set(others):
                given.pop(one, None)
        return Channel(**given | {field: getattr(own, field) for field in own.model_fields_set})

    @property
    def noise_density_dbm_per_hz(self) -> float:
        """The noise density that counts: its own, else its state's."""
        return NOISE_DBM_PER_HZ[self.state] if self.noise_dbm_per_hz is None else self.noise_dbm_per_hz

    @property
    def mean_gain_db(self) -> float:
        """The mean gain that counts: its own, else less the path loss."""
        if self.gain_db is not None:
            return self.gain_db
        return -nr.path_loss_db(self.path_loss, self.distance_m, self.carrier_hz)

    def snr_db(self) -> tuple[float, float]:
        """Mean signal to noise, up and down, in dB. Power is spread over the whole bandwidth."""
        sides = (
            (self.device_power_dbm, self.uplink_bandwidth_hz),
            (self.access_point_power_dbm, self.downlink_bandwidth_hz),
        )
        up, down = (
            power + self.mean_gain_db - self.noise_density_dbm_per_hz - 10 * math.log10(width) for power, width in sides
        )
        return up, down

    def rates_bps(self, gain: Any) -> tuple[Floats, Floats]:
        """Rates up and down in bit/s for power gains relative to the mean (1: the mean channel), any shape.

        A fade below CQI 1 is served at CQI 1's rate: Eq. 9 knows no outage, and the contract no rate of zero.
        """
        widths = (
            self.uplink_bandwidth_hz * (1 - self.uplink_overhead),
            self.downlink_bandwidth_hz * (1 - self.downlink_overhead),
        )
        up, down = (
            width * nr.efficiency_of(cqi, self.table) for width, cqi in zip(widths, self.cqi(gain), strict=True)
        )
        return up, down

    def cqi(self, gain: Any) -> tuple[Any, Any]:
        """CQI indices up and down for power gains relative to the mean; 0: out of range."""
        gap = 10 ** (self.snr_gap_db / 10)
        power = np.asarray(gain, dtype=float)
        up, down = (nr.cqi_of(10 ** (mean_db / 10) * power, gap, self.table) for mean_db in self.snr_db())
        return up, down

    def chain(self) -> list[dict[str, Any]]:
        """From power to rate at the mean gain, a row for each direction; with fading also the mean rate and the share below CQI 1."""
        rows = []
        sides = (
            ("uplink", self.device_power_dbm, self.uplink_bandwidth_hz),
            ("downlink", self.access_point_power_dbm, self.downlink_bandwidth_hz),
        )
        gap, coded = 10 ** (self.snr_gap_db / 10), nr.cqi_table(self.table)
        for (direction, power, width), snr_db, cqi, bps in zip(
            sides, self.snr_db(), self.cqi(1.0), self.rates_bps(1.0), strict=True
        ):
            reached = np.exp(-nr.least_snr(gap, self.table) / 10 ** (snr_db / 10))  # P(gain >= what CQI k needs)
            steps = np.diff(nr.efficiency_of(np.arange(1, 16), self.table))
            share = float(bps) / float(nr.efficiency_of(cqi, self.table))
            mean = share * (float(nr.efficiency_of(1, self.table)) + float((steps * reached[1:]).sum()))
            served = max(int(cqi), 1) - 1
            rows.append(
                {
                    "direction": direction,
                    "power_dbm": power,
                    "mean_gain_db": self.mean_gain_db,
                    "noise_dbm": self.noise_density_dbm_per_hz + 10 * math.log10(width),
                    "bandwidth_hz": width,
                    "snr_db": snr_db,
                    "cqi": int(cqi),
                    "mcs": int(nr.mcs_of(cqi, self.table)),
                    "modulation": nr.MODULATIONS[int(coded.modulation_order[served])],
                    "code_rate": float(coded.code_rate_x1024[served]) / 1024,
                    "rate_bps": float(bps),
                    "mean_rate_bps": mean if self.fading == "rayleigh" else float(bps),
                    "share_below_cqi_1": float(1 - reached[0]) if self.fading == "rayleigh" else float(cqi == 0),
                }
            )
        return rows

    def gains(self, steps: int, count: int, seed: int) -> Floats:
        """(steps, count) power gains of mean 1 for ``count`` devices: one step is the mean channel, several fade."""
        if steps == 1 or self.fading == "none":
            return np.ones((steps, count))
        random = np.random.default_rng(seed)
        if self.correlation == 0:
            return random.exponential(size=(steps, count))
        from scipy.signal import lfilter

        rho = self.correlation
        noise = random.normal(scale=math.sqrt(0.5), size=(2, steps, count))
        noise[:, 1:] *= math.sqrt(1 - rho * rho)  # the first draw is already one of the stationary channel
        amplitude = lfilter([1.0], [1.0, -rho], noise, axis=1)
        power: Floats = (amplitude * amplitude).sum(axis=0)
        return power


def load_channel(path: Path) -> Channel:
    """Read a channel file. Raises BadInput naming the file, the field and what was expected."""
    channel = read_document(path, Channel, CHANNEL_FORMAT)
    try:
        for name in ("", *channel.devices):  # a device may complete what is out of range only together
            _ = channel.station(name).mean_gain_db
    except BadInput as error:
        raise BadInput(f"{path}: field {error}") from None
    return channel


def channel_schema() -> dict[str, Any]:
    """The JSON schema of a channel file."""
    return document_schema(Channel)


def channel_of(name: str) -> Channel | None:
    """The channel that ``--channel`` names: a state, or a JSON file. None for a trace (any other file)."""
    if name in NOISE_DBM_PER_HZ:
        return Channel(state=name)
    return load_channel(Path(name)) if name.lower().endswith(".json") else None


# --------------------------------------------------------------------------------------------------------------- rates


class Linked(Protocol):
    """A device as far as rates are concerned: a profile, or only its name."""

    @property
    def name(self) -> str: ...

    @property
    def link(self) -> Link | None: ...


@dataclass(frozen=True)
class Rates:
    """Rates in bit/s, (R, M) for R rounds and M devices, and the round-trip time of each device's link, (M,)."""

    rounds: list[int]
    uplink_bps: Floats
    downlink_bps: Floats
    round_trip_s: Floats
    assumptions: list[Assumption]


def rates(
    devices: Sequence[Linked],
    *,
    rounds: int | None = None,
    seed: int = 0,
    uplink_mbps: float | None = None,
    downlink_mbps: float | None = None,
    channel: str | Channel | None = None,
) -> Rates:
    """Rates for every round and device. Given rates come first, then each profile's own link, then the state ``normal``.

    ``channel`` is good, normal, poor, a `Channel`, or the path of a channel file or a trace. ``rounds`` None: as many as a
    trace has, else 1. Raises BadInput naming the option, or file, line and column.
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
    labels = list(range(1, (rounds or 1) + 1))
    shape = (len(labels), count)
    if uplink_mbps is not None and downlink_mbps is not None:
        up, down = np.full(shape, uplink_mbps * 1e6), np.full(shape, downlink_mbps * 1e6)
        return Rates(labels, up, down, np.zeros(count), [])
    found = channel_of(channel) if isinstance(channel, str) else channel
    if isinstance(channel, str) and found is None:
        trace = read_trace(Path(channel), [d.name for d in devices], rounds)
        return Rates(trace.rounds, trace.uplink_bps, trace.downlink_bps, np.zeros(count), [])
    radio = Channel(state="normal") if found is None else found
    strangers = set(radio.devices) - {d.name for d in devices}
    if strangers:
        names = ", ".join(d.name for d in devices)
        raise BadInput(f"--channel: field devices.{min(strangers)}: no such device, expected names out of {names}")
    up, down, trips, listed = np.empty(shape), np.empty(shape), np.zeros(count), list[Assumption]()
    over_radio = [m for m, device in enumerate(devices) if channel is not None or device.link is None]
    # Draws go by name: in which files the profiles lie changes nothing.
    by_name = np.argsort(np.argsort([device.name for device in devices]))
    gains = radio.gains(len(labels), count, seed)[:, by_name] if over_radio else np.ones(shape)
    stations = {devices[m].name: radio.station(devices[m].name) for m in over_radio}
    for m, device in enumerate(devices):
        if m in over_radio:
            up[:, m], down[:, m] = stations[device.name].rates_bps(gains[:, m])
            if channel is None:
                listed.append(assumed(f"{device.name}: channel state", "normal"))
        elif (link := device.link) is not None:
            up[:, m], down[:, m] = link.uplink_mbps * 1e6, link.downlink_mbps * 1e6
            trips[m] = link.round_trip_s or 0.0
            what = {
                f"{device.name}: uplink in Mbit/s": link.uplink_mbps,
                f"{device.name}: downlink in Mbit/s": link.downlink_mbps,
            }
            listed += unmeasured(link, **what)
    if over_radio:
        listed += _rests_on(radio, stations)
        if len(labels) == 1:  # what follows from the figures, so that a decision can be recomputed from this list
            for name, at in stations.items():
                owner = name if name in radio.devices else "channel"
                for direction, bps in zip(("uplink", "downlink"), at.rates_bps(np.ones(1)), strict=True):
                    listed.append(assumed(f"{owner}: {direction} in Mbit/s", float(bps[0]) / 1e6))
        else:
            listed += _fades(radio, stations, gains[:, over_radio], seed)
    return Rates(labels, up, down, trips, distinct(listed))


def _rests_on(radio: Channel, stations: dict[str, Channel]) -> list[Assumption]:
    """What devices use of a channel that its user did not give."""
    given = [at.model_fields_set for at in stations.values()]
    whole = radio.station("")
    listed = []
    if any(fields & {"state"} or not fields & {"noise_dbm_per_hz"} for fields in given):
        # One state's noise is the letter's; that it is this state is assumed where nobody said so.
        named = all(fields & {"state", "noise_dbm_per_hz"} for fields in given)
        listed.append(
            Assumption(
                "channel: noise density in dBm/Hz",
                whole.noise_density_dbm_per_hz,
                "literature" if named else "assumed",
            )
        )
    quantities: dict[str, Any] = {
        "uplink_bandwidth_hz": ("uplink bandwidth in Hz", whole.uplink_bandwidth_hz),
        "downlink_bandwidth_hz": ("downlink bandwidth in Hz", whole.downlink_bandwidth_hz),
        "device_power_dbm": ("device transmit power in dBm", whole.device_power_dbm),
        "access_point_power_dbm": ("access point transmit power in dBm", whole.access_point_power_dbm),
        "path_loss": ("path loss (TR 38.901)", whole.path_loss),
        "distance_m": ("distance in m", whole.distance_m),
        "carrier_hz": ("carrier in Hz", whole.carrier_hz),
        "snr_gap_db": ("SNR gap in dB", whole.snr_gap_db),
        "table": ("modulation and coding", nr.cqi_table(whole.table).name),
        "uplink_overhead": ("share of the uplink without data", whole.uplink_overhead),
        "downlink_overhead": ("share of the downlink without data", whole.downlink_overhead),
    }
    by_loss = {"path_loss", "distance_m", "carrier_hz"}
    for field, (what, value) in quantities.items():
        if any(field not in fields and not (field in by_loss and "gain_db" in fields) for fields in given):
            listed.append(assumed(f"channel: {what}", value))
    listed.append(assumed("channel: CQI from SNR", "the largest efficiency <= log2(1 + SNR / gap)"))
    return listed


def _fades(radio: Channel, stations: dict[str, Channel], gains: Floats, seed: int) -> list[Assumption]:
    """How the channel moves from round to round, and how often it lies below the table."""
    if radio.fading == "none":
        return []
    along = f"correlation {radio.correlation:g} from draw to draw" if radio.correlation else "each draw its own"
    listed = [assumed("channel: fading", f"Rayleigh, {along}, seed {seed}"), assumed(WITHIN_A_ROUND, "constant")]
    below = np.zeros(2)
    for k, at in enumerate(stations.values()):
        least = nr.least_snr(10 ** (at.snr_gap_db / 10), at.table)[0]
        below += [np.mean(gains[:, k] * 10 ** (mean_db / 10) < least) / len(stations) for mean_db in at.snr_db()]
    for direction, share in zip(("uplink", "downlink"), below, strict=True):
        if share > 0:
            listed.append(assumed(f"channel: share of {direction} draws below CQI 1, served at it", float(share)))
    return listed
