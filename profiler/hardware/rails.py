"""Power monitors on the supply rails of a board: INA3221 (through hwmon or iio) and INA238, found by their drivers.

A rail is one supply line with a shunt in it. Bus and hwmon numbers differ between boards and boots, so nothing here knows one:
a rail is known by the label that the board's device tree gives it.

    hwmon  in{n}_label   in{n}_input [mV]  curr{n}_input [mA]      JetPack 5 and newer (INA3221)
    iio    rail_name_{n}                   in_power{n}_input [mW]  JetPack 4 (INA3221)
    hwmon  in1_label                       power1_input [uW]       Thor's carrier (INA238), and what others put on theirs
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from profiler.hardware.device import TOTAL_SHOWS
from profiler.hardware.host import listed, read_number, read_text
from profiler.profile import BadInput, MissingHardware

ASSUMED_PERIOD_S = 0.1
"""How often a monitor renews where it does not say so."""
SHUNT_STEP_V = 40e-6
"""One step of an INA3221 over its shunt (data sheet): the current's step is this over the shunt's resistance."""

WHOLE = {"VDD_IN": "whole module", "POM_5V_IN": "whole module", "VIN": "whole board, carrier included"}
"""Rails that everything else hangs on, the first that a board has is its total. Sources: NVIDIA's Jetson Linux developer
guide (VDD_IN, POM_5V_IN: the module's input); VIN of Thor is measured on the carrier."""

_ON_MODULE = ("VDD_IN", "POM_5V_IN")
"""Totals that a module measures itself, beside other rails on the same monitor; VIN has a monitor of its own on the carrier."""

PARTS = {
    "VDD_CPU_GPU_CV": "CPU+GPU+CV rail",
    "VDD_CPU_GPU": "CPU+GPU rail",
    "VDD_GPU_SOC": "GPU+SOC rail",
    "VDD_CPU_CV": "CPU+CV rail",
    "VDD_CPU_SOC_MSS": "CPU+SOC+memory subsystem rail",
    "VDD_GPU": "GPU rail",
    "VDD_SYS_GPU": "GPU rail",
    "POM_5V_GPU": "GPU rail",
    "GPU": "GPU rail",
    "VDD_CPU": "CPU rail",
    "VDD_SYS_CPU": "CPU rail",
    "POM_5V_CPU": "CPU rail",
    "CPU": "CPU rail",
    "VDD_SOC": "SOC rail",
    "VDD_SYS_SOC": "SOC rail",
    "SOC": "SOC rail",
    "CV": "CV (vision engines) rail",
    "VDD_SYS_DDR": "memory rail",
    "VDDRQ": "memory rail",
    "VDDQ_VDD2_1V8AO": "memory rail, fed from VIN_SYS_5V0",
    "VIN_SYS_5V0": "5 V system rail",
    "SYS5V": "5 V system rail",
    "VDD_4V0_WIFI": "radio rail",
}
"""What hangs on a rail of a module, by label (the developer guide's and the device trees'). A rail that is not here is the carrier's, or
one that nobody has told us of: it is named as it is, recorded, and in no sum."""

FED_BY = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rails behind another measured rail, which a sum must not count twice. AGX Orin's memory converter stands on the 5 V
system rail: both monitors read the same bus voltage, and the device tree keeps the 5 V channel out of the chip's own sum."""

_LOOKS, _BETWEEN_S = 5, 0.2
"""Further looks at opening, a second in all, while a rail of the module has not answered: a bus that is busy answers soon."""
_ON_BUS = re.compile(r"\d+-[0-9a-f]{4}")


@dataclass(frozen=True)
class Rail:
    """One supply rail: ``chip`` that measures it, at which ``address``, and the files that it is read from."""

    label: str
    chip: str
    address: str
    power: Path | None
    power_unit_w: float
    voltage: Path
    current: Path
    switch: Path | None
    shunt_ohm: float | None
    update_s: float | None

    @property
    def scope(self) -> str:
        """What hangs on this rail, in words."""
        return WHOLE.get(self.label) or PARTS.get(self.label) or "rail"

    @property
    def named(self) -> bool:
        """Whether the device tree has a label for it; else it bears its monitor's name."""
        return self.label != f"{self.chip.lower()}@{self.address}"

    @property
    def enabled(self) -> bool:
        """Whether its channel of the monitor is on, or nothing says that it is off."""
        return self.switch is None or read_number(self.switch) != 0

    def read_w(self) -> float | None:
        """Watts at this moment; None where the monitor did not answer. A few milliwatts below zero are its offset."""
        if self.power is not None:
            value = read_number(self.power)
            watts = None if value is None else value * self.power_unit_w
        else:
            millivolt, milliampere = read_number(self.voltage), read_number(self.current)
            watts = None if millivolt is None or milliampere is None else millivolt * milliampere * 1e-6
        return watts if watts is not None and -5.0 < watts < 2000.0 else None

    def mute(self) -> str:
        """What its channel does not show now, in words; empty where every file of it answers."""
        files = {"power": self.power} if self.power is not None else {"voltage": self.voltage, "current": self.current}
        lacks = " and no ".join(name for name, file in files.items() if read_number(file) is None)
        return f"channel {self.label} of the monitor shows no {lacks}" if lacks else ""

    def step_w(self) -> float | None:
        """The least step of ``read_w`` at the present voltage; None where the shunt or the voltage is not told."""
        millivolt = read_number(self.voltage)
        if self.shunt_ohm is None or millivolt is None:
            return None
        return SHUNT_STEP_V / self.shunt_ohm * millivolt * 1e-3


def find_rails(root: Path, compatible: str) -> list[Rail]:
    """Every rail that has a label or a monitor of its own, also those that show nothing, in the order of the monitors' addresses, no two of one label.

    A monitor without a label is called by its chip and address, for anybody may have put it anywhere; but the one INA238 of a
    Thor (``compatible``, as the device tree has it, tells) stands at the board's input.
    """
    drivers = root / "sys/bus/i2c/drivers"
    devices = _listed(drivers, "ina3221*/*") + _listed(drivers, "ina2[23][0-9]*/*")
    folders = [(f, d.parent.name) for d in devices for f in _listed(d, "hwmon/hwmon*") + _listed(d, "iio:device*")]
    folders += [(f, "") for f in _listed(root / "sys/class/hwmon", "hwmon*")]  # drivers without a folder of their own
    monitors: dict[str, list[Rail]] = {}
    for folder, driver in folders:
        chip = (read_text(folder / "name") or driver).upper()
        if chip.startswith("INA") and folder.name not in monitors:  # hwmon3 is hwmon3, by whichever way one came to it
            monitors[folder.name] = [*_hwmon_rails(folder, chip), *_iio_rails(folder, chip)]
    rails = [rail for every in monitors.values() for rail in every]
    bare = [rail for rail in rails if rail.chip == "INA238" and not rail.named]
    if "tegra264" in compatible and len(bare) == 1 and all(rail.label != "VIN" for rail in rails):
        rails = [replace(rail, label="VIN") if rail is bare[0] else rail for rail in rails]
    return _told_apart([replace(rail, label=_as_known(rail.label)) for rail in rails])


def _as_known(label: str) -> str:
    return next((known for known in (*WHOLE, *PARTS) if known.lower() == label.lower()), label)


def _told_apart(rails: Sequence[Rail]) -> list[Rail]:
    """Rails of one label bear their monitor's address too (``VDD_IN@0-0041``), but for that of the module's own monitor.

    That is the one with the most other labels of a module. Where two have as many, nothing tells, and both bear the address. So does
    a module's total that stands alone on its monitor while the module's rails are on others: it is the carrier's input.
    """
    company = {
        rail: len({r.label for r in rails if r.address == rail.address and r.label in (*WHOLE, *PARTS)} - {rail.label})
        for rail in rails
    }
    found = []
    for rail in rails:
        alike = [company[r] for r in rails if r.label == rail.label and r is not rail]
        alone = not alike or company[rail] > max(alike)
        carriers = rail.label in _ON_MODULE and not company[rail] and any(r.label in PARTS for r in rails)
        found.append(rail if alone and not carriers else replace(rail, label=f"{rail.label}@{rail.address}"))
    return found


def found_again(rails: Sequence[Rail], now: Sequence[Rail]) -> list[Rail]:
    """These rails, under their labels, where the same monitors lie ``now``; one that is not there stays as it was."""
    places = {(rail.address, _base(rail.label)): rail for rail in now}
    return [
        replace(places.get((rail.address, _base(rail.label)), rail), label=rail.label)  # the others may be gone by now
        for rail in rails
    ]


def _address(folder: Path) -> str:
    """Bus and address of a monitor (``1-0040``), which stay where folders are numbered anew; else its folder's name."""
    return next((part for part in reversed(folder.resolve().parts) if _ON_BUS.fullmatch(part)), folder.name)


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Matches, sorted, each real folder once (classes and drivers are links to the same devices)."""
    found: dict[Path, Path] = {}
    with suppress(OSError):  # one of them went away while we looked
        for path in listed(folder, pattern):
            if path.is_dir():
                found.setdefault(path.resolve(), path)
    return list(found.values())


def _useful(label: str) -> bool:
    return label not in ("NC", "nc") and "sum of shunt" not in label.lower()


def _seconds(path: Path) -> float | None:
    """``update_interval`` of hwmon, milliseconds in the file."""
    value = read_number(path)
    return value / 1e3 if value is not None and 1 <= value <= 10_000 else None


def _hwmon_rails(folder: Path, chip: str) -> list[Rail]:
    """Channels 1 to 3 that bear a label, also those that show nothing (4 to 7 are shunt voltages and sums of them). A monitor that
    multiplies itself and has no label (INA238) is one rail."""
    rails = []
    for n in (1, 2, 3):
        power = folder / f"power{n}_input"
        label = read_text(folder / f"in{n}_label") or read_text(folder / f"power{n}_label")
        if not label and n == 1 and power.exists():
            label = f"{chip.lower()}@{_address(folder)}"
        if not label or not _useful(label):
            continue
        micro_ohm = read_number(folder / f"shunt{n}_resistor")
        rails.append(
            Rail(
                label=label,
                chip=chip,
                address=_address(folder),
                power=power if power.exists() else None,
                power_unit_w=1e-6,
                voltage=folder / f"in{n}_input",
                current=folder / f"curr{n}_input",
                switch=folder / f"in{n}_enable",
                shunt_ohm=micro_ohm * 1e-6 if micro_ohm is not None and micro_ohm > 0 else None,
                update_s=_seconds(folder / "update_interval"),
            )
        )
    return rails


def _iio_rails(folder: Path, chip: str) -> list[Rail]:
    rails = []
    for named in listed(folder, "rail_name_*"):
        match = re.fullmatch(r"rail_name_(\d+)", named.name)
        label = read_text(named)
        if match is None or not label or not _useful(label):
            continue
        n = match.group(1)
        power = folder / f"in_power{n}_input"
        rails.append(
            Rail(
                label=label,
                chip=chip.removesuffix("X"),
                address=_address(folder),
                power=power if power.exists() else None,
                power_unit_w=1e-3,
                voltage=folder / f"in_voltage{n}_input",
                current=folder / f"in_current{n}_input",
                switch=None,
                shunt_ohm=None,
                update_s=None,
            )
        )
    return rails


@dataclass(frozen=True)
class Figure:
    """The rail, or sum of rails, whose watts a profile holds. Idle is never subtracted; the scope says what they cover."""

    rails: tuple[Rail, ...]
    scope: str

    @property
    def period_s(self) -> float:
        """How often the slowest of the monitors renews."""
        return max(rail.update_s or ASSUMED_PERIOD_S for rail in self.rails)

    @property
    def averaging_s(self) -> float:
        """Over how long the slowest monitor averages: a conversion cycle, which is what ``update_interval`` tells."""
        return max(rail.update_s or 0.0 for rail in self.rails)

    @property
    def sensor(self) -> str:
        """Which monitors."""
        return "+".join(sorted({rail.chip for rail in self.rails}))

    def step_w(self) -> float | None:
        """The coarsest step of its rails at the present voltages; None where a monitor does not tell its shunt."""
        steps = [rail.step_w() for rail in self.rails]
        known = [step for step in steps if step is not None]
        return max(known) if len(known) == len(steps) else None

    def watts(self, rails_w: Mapping[str, float]) -> float | None:
        """The figure, from one look at all rails; None where one of its rails did not answer."""
        parts = [rails_w.get(rail.label) for rail in self.rails]
        found = [part for part in parts if part is not None]
        return max(0.0, sum(found)) if len(found) == len(parts) else None


def choose(rails: Sequence[Rail], asked: str | None, wait: Callable[[float], None]) -> Figure:
    """Which watts stand for the board: the rail asked for by label, else its total, else the sum of its module's rails.

    Rails that do not answer for a second (``wait`` lets it pass), and a total that shows zero or less than the rails behind it, are
    left out, and the scope says so; but no figure goes without an input or the GPU's rail whose channel is on. Where no label is known, the only rail is the figure, and of several nobody knows which may be added. Raises BadInput for a
    label that the board has not, MissingHardware, which says why, where no watts stand for the board.
    """
    by_label = {rail.label: rail for rail in rails}
    if asked:
        wanted = {label.lower(): label for label in by_label}.get(asked.strip().lower())
        if wanted is None:
            raise BadInput(
                f"CARD_POWER_RAIL: no rail {asked!r} on this board; expected one of {', '.join(by_label) or 'none'}"
            )
        return _single(by_label[wanted])
    if not rails:
        raise MissingHardware(
            "no power monitor (INA3221, INA238) under sys/bus/i2c/drivers: this carrier may have none, or its driver is not loaded"
        )
    bases = [_base(label) for label in by_label]
    known = [label for label in by_label if _base(label) in (*WHOLE, *PARTS) and bases.count(_base(label)) > 1]
    doubled = [label for label in known if _base(label) not in by_label]
    if doubled:
        raise MissingHardware(
            f"{' and '.join(doubled)}: nothing tells which of these monitors is the module's own; choose the rail whose watts you "
            f"want: CARD_POWER_RAIL={doubled[0]}"
        )
    looks = _looks(rails, wait)
    seen_w = {label: max((look[label] for look in looks if label in look), default=None) for label in by_label}
    # Nothing runs on nothing: a total of zero is no measurement, and neither is a board of rails that all show zero.
    if all(watts is None or watts <= 0 for watts in seen_w.values()):
        raise MissingHardware(f"none of the board's power monitors shows any watts: {', '.join(by_label)}")
    silent = [label for label, watts in seen_w.items() if watts is None or (watts <= 0 and label in WHOLE)]
    mute = [label for label in silent if seen_w[label] is None and by_label[label].enabled]
    short = [label for label in WHOLE if label in by_label and label not in silent and _short(label, looks)]
    for label in WHOLE:
        if label in mute:
            raise _no_answer(by_label[label])
        if label in by_label and label not in silent and label not in short:
            return _single(by_label[label])
    whole = [label for label in WHOLE if label in by_label]
    inside = [label for label in by_label if FED_BY.get(label) in by_label]
    parts = [label for label in by_label if label in PARTS and label not in inside]
    others = [rail for rail in rails if rail.label not in PARTS and rail.label not in WHOLE]
    named = [rail for rail in others if rail.named]
    if len(named) == 1 and not parts and not whole:
        return _single(named[0])
    for label in parts:
        if label in mute and ("GPU" in label or label.startswith("VIN")):
            raise _no_answer(by_label[label])
    summed = [by_label[label] for label in parts if label not in silent]
    if not any("GPU" in rail.label for rail in summed):
        raise MissingHardware(
            f"which watts stand for this board is not known: among its rails ({', '.join(by_label)}) is no total and none of the GPU "
            f"that we know and that answers; choose one: CARD_POWER_RAIL={next(iter(by_label))}"
        )
    notes = [f"{label} is inside {FED_BY[label]}" for label in inside]
    missed = [label for label in silent if label in parts or label in whole]
    for label in missed:
        told = "did not answer" if label in mute else "shows 0 W" if seen_w[label] is not None else "is switched off"
        notes.append((by_label[label].mute() if label in mute else "") or f"{label} {told}")
    notes += [f"{label} shows less than these, so it is not the total" for label in short]
    if others:
        notes.append(f"recorded, not in the sum: {', '.join(rail.label for rail in others)}")
    if len(summed) == 1:
        only = _single(summed[0])
        return Figure(only.rails, "; ".join([only.scope, *notes]))
    names = [rail.label for rail in summed]
    lacks = "not the whole module" if whole else "this board has no rail of the whole module"
    return Figure(tuple(summed), f"sum of {', '.join(names[:-1])} and {names[-1]} ({'; '.join([lacks, *notes])})")


def _single(rail: Rail) -> Figure:
    if rail.label in WHOLE:
        return Figure((rail,), f"{rail.scope} ({rail.label})")
    return Figure((rail,), f"{rail.scope} ({rail.label}), idle not subtracted")


def behind(figure: Figure, rails: Sequence[Rail]) -> tuple[str, ...]:
    """Labels of the rails that hang on the figure where it is a total, none of them inside another."""
    if figure.rails[0].label not in WHOLE:
        return ()
    return _hang_together([rail.label for rail in rails])


def _hang_together(labels: Collection[str]) -> tuple[str, ...]:
    """Those of a module's rails that count once: none of them is fed by another of these labels."""
    return tuple(label for label in labels if label in PARTS and FED_BY.get(label) not in labels)


def _base(label: str) -> str:
    """The label as the device tree has it, without the monitor's address."""
    return label.partition("@")[0]


def _no_answer(rail: Rail) -> MissingHardware:
    return MissingHardware(
        f"{rail.label} does not answer, though its monitor ({rail.chip}, {rail.address}) is there"
        f"{f' ({told})' if (told := rail.mute()) else ''}: without it the watts would be those of something else; try again, or name "
        "another rail with CARD_POWER_RAIL"
    )


def _looks(rails: Sequence[Rail], wait: Callable[[float], None]) -> list[dict[str, float]]:
    """Three looks at all rails, and more of them where one of the module's has not answered or a total cannot be one."""
    looks = [_look(rails) for _ in range(3)]
    modules = [rail for rail in rails if rail.label in WHOLE or rail.label in PARTS]
    for _ in range(_LOOKS):
        silent = [rail for rail in modules if rail.enabled and all(rail.label not in look for look in looks)]
        if not silent and not any(rail.label in WHOLE and _short(rail.label, looks) for rail in modules):
            break
        wait(_BETWEEN_S)
        looks.append(_look(rails))
    return looks


def _look(rails: Sequence[Rail]) -> dict[str, float]:
    """Watts of the rails that answer, at one moment, by label."""
    return {rail.label: watts for rail in rails if (watts := rail.read_w()) is not None}


def _short(label: str, looks: Sequence[Mapping[str, float]]) -> bool:
    """Whether this rail showed less than the module's rails together at every look: then they do not hang on it."""
    together_w = [sum(look[name] for name in _hang_together(look)) for look in looks]
    return all(
        look[label] < TOTAL_SHOWS * sum_w for look, sum_w in zip(looks, together_w, strict=True) if label in look
    )
