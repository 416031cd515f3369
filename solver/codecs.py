"""What codecs of smashed data and gradients cost: their measured phi at every cut and in each direction, and the seconds of both ends.

A codec changes three things in the delay of a round (Eq. 9): T phi_up S(c) bits go up, T phi_down S~(c) bits come down, and
T (encode + decode) seconds are spent on each of the two ways. None of the three depends on the server's clock.

Why the codec with the least waiting time is the best one, whatever is minimised
--------------------------------------------------------------------------------
Write a point as (c, f, k): cut, clock, codec. Its delay is D = W(c, k) + t(c, f), where W is all that the server waits for and t its own
busy time. Its energy is E = P(f) t(c, f) + P_idle W(c, k) + e(c) with P_idle >= 0 (0 unless idle power is counted) and e(c) the devices' own.
So k acts through W alone, and both D and E do not fall as W grows. Let k* be the codec of least W(c, k) at a cut. For every f and every
k then D(c, f, k*) <= D(c, f, k) and E(c, f, k*) <= E(c, f, k). Any cost that does not fall as D or E grows is therefore least at k*: U of
Eq. 12 for every w, a price in J/s, the least energy within a deadline and the least delay within an energy. Hence the minimum over codecs
can be taken first, alone, and without knowing w or f; cut and clock are then chosen as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from profiler.profile import BadInput, CodecCut, Compression, Profile
from solver.assumptions import Assumption, assumed, unmeasured

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

NONE = "none"
AUTO = "auto"
MAX_LOSS_INCREASE = 0.002
"""Nats a token that a codec chosen by ``auto`` may cost where nobody says more or less."""


@dataclass(frozen=True)
class CodecTables:
    """K codecs over a whole round; all arrays (M, K, C).

    ``uplink_s`` and ``downlink_s`` are the seconds of encoding and decoding on the way up and on the way down, ``ends_s`` (4, M, K, C) those of
    each of the four: encoding up (device) and decoding (server), encoding down (server) and decoding (device). Where a codec may not be used
    at a cut ``uplink_s`` is infinite; at every cut at least one may.
    """

    names: tuple[str, ...]
    uplink_bits: Floats
    downlink_bits: Floats
    uplink_s: Floats
    downlink_s: Floats
    ends_s: Floats

    def ways(self, k: int, device: Any, cut_index: Any, uplink_bps: Any, downlink_bps: Any) -> tuple[Floats, Floats]:
        """Seconds up and down with codec ``k``, both ends counted, without the link's latency; arguments broadcast."""
        return (
            self.uplink_s[device, k, cut_index] + self.uplink_bits[device, k, cut_index] / uplink_bps,
            self.downlink_s[device, k, cut_index] + self.downlink_bits[device, k, cut_index] / downlink_bps,
        )


def check_options(codec: str | None, max_loss_increase: float | None, phi: float | None, method: str) -> None:
    """Raise BadInput where the options about codecs do not go together."""
    if codec is None:
        if max_loss_increase is not None:
            raise BadInput(f"--max-loss-increase {max_loss_increase:g}: expected --codec auto with it")
        return
    if phi is not None:
        raise BadInput("--codec, --compression: expected one of them: a codec has a phi of its own at every cut")
    if method == "min-cut":
        raise BadInput(
            "--codec: --method min-cut knows one phi for all tensors, expected --compression or another method"
        )
    if max_loss_increase is None:
        return
    if codec != AUTO:
        raise BadInput(
            f"--max-loss-increase {max_loss_increase:g}: expected --codec auto with it, {codec} is asked for"
        )
    if not 0 <= max_loss_increase <= 100:
        raise BadInput(f"--max-loss-increase {max_loss_increase:g}: expected nats a token from 0 to 100")


def codec_tables(
    server: Profile, devices: Sequence[Profile], *, epochs: int, codec: str, max_loss_increase: float | None
) -> tuple[CodecTables, list[Assumption]]:
    """The codec ``codec`` for every device and cut, or with ``auto`` all those whose loss is known to stay within the limit.

    A device's ends are timed in its own profile, the server's in the server's; where one of them did not time a codec the other one's
    figures stand in, and are listed. Raises BadInput where a codec that is asked for was not measured at some cut.
    """
    limit = MAX_LOSS_INCREASE if max_loss_increase is None else max_loss_increase
    names = _all_names(server, devices) if codec == AUTO else (codec,)
    shape = (len(devices), len(names), server.workload.layers - 1)
    tables = CodecTables(
        names, np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros((4, *shape))
    )
    listed: list[Assumption] = []
    for m, device in enumerate(devices):
        rests_on = _RestsOn(server, device)
        for k, name in enumerate(names):
            sources = _figures(device, name), _figures(server, name)
            for c, sizes in enumerate(device.sizes.cuts):
                own, servers = (rows.get(c + 1) for rows in sources)
                phi = own or servers
                if phi is None and name != NONE:
                    if codec != AUTO:
                        raise BadInput(_not_measured(device, name, c + 1))
                    tables.uplink_s[m, k, c] = np.inf
                    continue
                loss = None if phi is None else phi.loss_increase
                if codec == AUTO and name != NONE and (loss is None or loss > limit):
                    tables.uplink_s[m, k, c] = np.inf
                    continue
                up, down = (1.0, 1.0) if phi is None or name == NONE else (phi.smashed_phi, phi.gradient_phi)
                tables.uplink_bits[m, k, c] = epochs * up * 8.0 * sizes.smashed_bytes
                tables.downlink_bits[m, k, c] = epochs * down * 8.0 * sizes.gradient_bytes
                if phi is not None:
                    here, there = own or phi, servers or phi
                    ends = (
                        here.smashed_encode_s,
                        there.smashed_decode_s,
                        there.gradient_encode_s,
                        here.gradient_decode_s,
                    )
                    tables.ends_s[:, m, k, c] = [epochs * end.median_s for end in ends]
                    tables.uplink_s[m, k, c] = tables.ends_s[:2, m, k, c].sum()
                    tables.downlink_s[m, k, c] = tables.ends_s[2:, m, k, c].sum()
                    rests_on.note(name, own is not None, servers is not None)
        listed += rests_on.assumptions()
    return tables, listed


def nothing_to_choose(server: Profile, devices: Sequence[Profile]) -> str | None:
    """One line for people where ``auto`` has but ``none`` to take, for no codec was measured with its loss; None where it has more everywhere."""

    def offers(profile: Profile) -> bool:
        codecs = [] if profile.compression is None else profile.compression.codecs
        return any(row.loss_increase is not None for each in codecs if each.codec != NONE for row in each.cuts)

    without = [] if offers(server) else [device.name for device in devices if not offers(device)]
    if not without:
        return None
    return (
        f"--codec auto: no codec's figures and loss in {', '.join((*without, server.name))}, so {', '.join(without)} can only take none; "
        "measure them with 'card-profile run --measure compression'"
    )


class _RestsOn:
    """Which codecs of one device were not measured where they are used."""

    def __init__(self, server: Profile, device: Profile) -> None:
        self.server, self.device = server, device
        self.own: dict[str, bool] = {}
        self.servers: dict[str, bool] = {}

    def note(self, name: str, own: bool, servers: bool) -> None:
        self.own[name] = self.own.get(name, True) and own
        self.servers[name] = self.servers.get(name, True) and servers

    def assumptions(self) -> list[Assumption]:
        listed: list[Assumption] = []
        for profile, timed in ((self.device, self.own), (self.server, self.servers)):
            used = [name for name, there in timed.items() if there]
            if profile.compression is not None and used:
                listed += unmeasured(profile.compression, **{f"{profile.name}: codecs": ", ".join(used)})
        borrowed = [name for name, there in self.servers.items() if not there]
        if borrowed:
            what = f"{self.server.name}: times of codecs for {self.device.name}"
            listed.append(assumed(what, f"as on {self.device.name}: {', '.join(borrowed)}"))
        borrowed = [name for name, there in self.own.items() if not there]
        if borrowed:
            what = f"{self.device.name}: times of codecs"
            listed.append(assumed(what, f"as on {self.server.name}: {', '.join(borrowed)}"))
        return listed


def _figures(profile: Profile, name: str) -> dict[int, CodecCut]:
    """By cut what a profile measured of a codec."""
    codecs = [] if profile.compression is None else profile.compression.codecs
    return {row.cut: row for figures in codecs if figures.codec == name for row in figures.cuts}


def _all_names(server: Profile, devices: Sequence[Profile]) -> tuple[str, ...]:
    """``none``, then every codec that some profile measured, in the order of the profiles: of equals the first is taken."""
    blocks: list[Compression | None] = [profile.compression for profile in (*devices, server)]
    found = dict.fromkeys([NONE, *(figures.codec for block in blocks if block is not None for figures in block.codecs)])
    return tuple(found)


def _not_measured(device: Profile, name: str, cut: int) -> str:
    known = sorted({figures.codec for figures in device.compression.codecs} if device.compression is not None else ())
    what = f"measured there: {', '.join(known)}" if known else "none was measured"
    return (
        f"--codec {name}: profile {device.name}: field compression.codecs has no figures of it at cut {cut} ({what}); "
        "measure them with 'card-profile run --measure compression'"
    )
