"""A copy of what the toolkit reads of a board's kernel files, to replay it elsewhere: names and readings, nothing private.

    board     card-profile snapshot          sys/, proc/, etc/, var/ of the files named below, links kept, as .tar.gz
    desk      tar xf snapshot.tar.gz -C tree; CARD_SYSFS_ROOT=tree card-profile devices

Only files on the list below are taken. None of them holds a serial number, a network address, a host's or user's name or the
boot's identity; a line or a path that looks like one is left out all the same. Batteries of keyboards and the like call themselves
by such names, so nothing of a power supply is taken, and of hwmon's devices only those that the toolkit reads.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import select
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from profiler.hardware.host import read_text, sysfs_root
from profiler.profile import MissingHardware
from profiler.store import write_atomically

FORMAT = "card-snapshot/1"
MANIFEST = "card-snapshot.json"
MAX_FILE_BYTES = 64 * 1024
MAX_FILES = 5000
MAX_TOTAL_BYTES = 8 * 1024 * 1024
MAX_SECONDS_S = 30.0

_FILES = (
    # clocks
    "sys/class/devfreq/*/{available_frequencies,available_governors,cur_freq,governor,max_freq,min_freq,polling_interval,target_freq}",
    "sys/class/devfreq/*/device/of_node/name",
    "sys/class/devfreq/*/device/{load,railgate_enable,enable_3d_scaling,tpc_pg_mask}",
    "sys/kernel/debug/bpmp/debug/clk/emc/{rate,max_rate,min_rate}",
    "sys/kernel/debug/clk/emc/clk_rate",
    "sys/kernel/debug/clk/override.emc/clk_rate",
    "sys/kernel/nvpmodel_emc_cap/emc_iso_cap",
    "sys/kernel/nvpmodel_clk_cap/*",
    "sys/devices/system/cpu/{online,present,possible,cpufreq/boost,smt/active,intel_pstate/no_turbo}",
    "sys/devices/system/cpu/cpu*/online",
    "sys/devices/system/cpu/cpu*/topology/{core_id,physical_package_id}",
    "sys/devices/system/cpu/cpufreq/policy*/{affected_cpus,related_cpus,cpuinfo_*_freq,scaling_*_freq,scaling_governor}",
    "sys/devices/system/cpu/cpufreq/policy*/{scaling_available_frequencies,scaling_boost_frequencies,scaling_available_governors,scaling_driver}",
    "sys/devices/system/cpu/cpu*/cpufreq/{scaling_*_freq,cpuinfo_*_freq,scaling_governor,scaling_available_frequencies}",
    "sys/devices/system/cpu/cpu*/cpufreq/scaling_boost_frequencies",
    # watts
    "sys/bus/i2c/drivers/ina*/*/{name,hwmon/hwmon*/*,iio:device*/*}",
    "sys/class/hwmon/hwmon*/{name,in*_label,in*_input,in*_enable,curr*_input,curr*_label,curr*_max,curr*_crit}",
    "sys/class/hwmon/hwmon*/{power*_input,power*_label,energy*_input,energy*_label,shunt*_resistor,update_interval,samples}",
    "sys/class/powercap/*/{name,energy_uj,max_energy_range_uj}",
    "sys/class/powercap/*/*/{name,energy_uj,max_energy_range_uj}",
    # heat
    "sys/class/hwmon/hwmon*/{oc*_event_cnt,oc*_throt_en,pwm[0-9],pwm[0-9]_enable,rpm,fan*_input,temp*_input,temp*_label}",
    "sys/class/thermal/thermal_zone*/{type,temp,mode,trip_point_*_temp,trip_point_*_type}",
    "sys/class/thermal/cooling_device*/{type,cur_state,max_state}",
    "sys/devices/pwm-fan/{target_pwm,cur_pwm,rpm_measured,temp_control}",
    "sys/kernel/debug/tegra_fan/{target_pwm,cur_pwm,rpm_measured}",
    # what it is
    "sys/firmware/devicetree/base/{model,compatible}",
    "proc/device-tree/{model,compatible}",
    "proc/{meminfo,cpuinfo,loadavg}",
    "proc/sys/kernel/osrelease",
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "var/lib/nvpmodel/status",
)

_PRIVATE = re.compile(
    r"^\s*serial\b|(?<![0-9a-f])(?:[0-9a-f]{2}[:_-]){4,}[0-9a-f]{2}(?![0-9a-f])"
    r"|(?<![0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f])|\b[\w.+-]+@[\w-]+\.\w+",
    re.IGNORECASE,
)
"""Serial numbers (old kernels' cpuinfo), network addresses (the kernel cuts long names, so five pairs are enough), UUIDs, mail
addresses."""
_NOT_HWMON = re.compile(r"uevent|modalias|.*(alarm|_beep|subsystem)")
_HWMON = re.compile(r"ina\d.*|amd_energy|soctherm.*|.*fan.*|.*tach.*|emc230\d|f7530\d.*", re.IGNORECASE)
"""Names of hwmon's devices that the toolkit reads: power monitors, energy counters, over-current events, fans and their controllers."""
_THERMAL_NAME = 19
"""So much of a device's name is a thermal zone's or a cooling device's type (the kernel's THERMAL_NAME_LENGTH less its NUL)."""
_COMMENTED = "etc/nvpmodel.conf"
"""People sign their changes in its comments."""
_PLACES = ("sys/", "proc/", "etc/", "var/")
"""Where taken files may really lie; a link that leads elsewhere leads into somebody's own folder."""


@dataclass
class _Taken:
    """What has been collected: contents by real path below the root, links as they were met. ``roots``: the names of the root
    that absolute links may go by, its real one last."""

    roots: tuple[Path, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    total_bytes: int = 0


def snapshot(output: Path, root: Path | None = None) -> Path:
    """Write the files that the toolkit reads below ``root`` (default: this machine, or CARD_SYSFS_ROOT) into ``output``, a .tar.gz.

    The archive unpacks into a tree for CARD_SYSFS_ROOT; ``card-snapshot.json`` in it lists what was taken, what could not be
    read and why (an empty folder stands in its place), and what was left out. The same readings give the same bytes. Takes at most about 30 s.

    Raises BadInput when ``output`` cannot be written, MissingHardware when there is nothing to take.
    """
    root = (sysfs_root() if root is None else root).absolute()
    taken = _collect(_Taken((root, root.resolve())))
    if not taken.files:
        raise MissingHardware(
            f"{root}: no kernel files to take here; expected sys/ and proc/ of a Linux machine below it"
        )
    write_atomically(output, _archive(taken))
    return output


def _collect(taken: _Taken) -> _Taken:
    until = time.monotonic() + MAX_SECONDS_S
    for pattern in _FILES:
        for name in _names(taken.roots[-1], pattern):
            if len(taken.files) >= MAX_FILES or taken.total_bytes >= MAX_TOTAL_BYTES:
                taken.left_out[name] = "the snapshot is full"
            elif time.monotonic() > until:
                taken.left_out[name] = f"more than {MAX_SECONDS_S:g} s had passed"
            else:
                _take(name, taken)
    return taken


def _names(root: Path, pattern: str) -> Iterator[str]:
    """Paths below the root that match; ``{a,b}`` stands for either, and a last part may reach into folders."""
    choices = re.search(r"\{([^}]*)\}", pattern)
    if choices is not None:
        for choice in choices.group(1).split(","):
            yield from _names(root, pattern[: choices.start()] + choice + pattern[choices.end() :])
        return
    if not any(mark in pattern for mark in "*?["):
        if os.path.lexists(root / pattern):
            yield pattern
        return
    for path in sorted(root.glob(pattern)):
        # Under a name that is wanted, a folder is a file that a snapshot could not read.
        if (
            not (pattern.endswith("/*") and path.is_dir())
            and not _NOT_HWMON.fullmatch(path.name)
            and _is_read_by_us(root, path.parent)
        ):
            yield path.relative_to(root).as_posix()


def _is_read_by_us(root: Path, device: Path) -> bool:
    """Of hwmon's devices those whose name is on the list; of thermal zones and the like none that is a power supply's."""
    if device.parent == root / "sys/class/hwmon":
        return _HWMON.fullmatch(read_text(device / "name") or "") is not None
    if device.parent == root / "sys/class/thermal":
        kind = read_text(device / "type")
        supplies = (root / "sys/class/power_supply").glob("*")
        return all(supply.name[:_THERMAL_NAME] != kind for supply in supplies)
    return True


def _take(name: str, taken: _Taken) -> None:
    """Walk down ``name`` keeping links (relative, inside the tree), and take the file where it really lies."""
    found = _real(name, taken.roots)
    if found is None:
        taken.left_out[_PRIVATE.sub("...", name)] = "a link leads out of the tree"
        return
    real, links = found
    if any(_PRIVATE.search(word) for word in (name, real, *links, *links.values())) or "/power_supply/" in real:
        taken.left_out[_PRIVATE.sub("...", name)] = "its path might be private"
        return
    taken.links.update(links)
    if real in taken.files or real in taken.unreadable:
        return
    try:
        content = _read(taken.roots[-1] / real)
    except OSError as error:
        taken.unreadable[real] = error.strerror or str(error)
        return
    lines = content.split(b"\n")
    if name == _COMMENTED:
        lines = [line.partition(b"#")[0] for line in lines]
    kept = b"\n".join(line for line in lines if not _PRIVATE.search(line.decode(errors="replace")))
    if kept != content:
        taken.left_out[real] = "comments and lines that might be private"
    taken.files[real] = kept
    taken.total_bytes += len(kept)


def _real(name: str, roots: tuple[Path, ...]) -> tuple[str, dict[str, str]] | None:
    """Where ``name`` really lies below the root, and the links on the way. None where one leads outside."""
    todo, done = list(PurePosixPath(name).parts), ""
    links: dict[str, str] = {}
    for _ in range(200):
        if not todo:
            return (done, links) if done.startswith(_PLACES) else None
        here = f"{done}/{todo.pop(0)}".lstrip("/")
        try:
            target = os.readlink(roots[-1] / here)
        except OSError:
            done = here
            continue
        absolute = os.path.isabs(target)
        within = [root for root in roots if root != Path("/") and Path(target).is_relative_to(root)]
        if within:
            target = "/" + os.path.relpath(target, within[0])
        joined = os.path.normpath("/" + (target.lstrip("/") if absolute else f"{done}/{target}"))
        if not absolute and os.path.normpath(f"{done}/{target}").startswith(".."):
            return None
        links[here] = os.path.relpath(joined, "/" + os.path.dirname(here))
        todo, done = [*PurePosixPath(joined.lstrip("/")).parts, *todo], ""
    return None


def _read(path: Path) -> bytes:
    """The start of a file; never waits for a pipe or a device. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not select.select([handle], [], [], 1.0)[0]:
            raise TimeoutError(0, "it did not answer within a second")
        parts, left = [], MAX_FILE_BYTES
        while left > 0 and (part := os.read(handle, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def _archive(taken: _Taken) -> bytes:
    """A .tar.gz with nothing of this machine's users or time in it. Folders come first, so that it unpacks everywhere."""
    manifest = {
        "format": FORMAT,
        "about": "names and readings of a board's kernel files, taken with card-profile snapshot; replay with CARD_SYSFS_ROOT",
        "files": {name: len(content) for name, content in sorted(taken.files.items())},
        "links": dict(sorted(taken.links.items())),
        "unreadable": dict(sorted(taken.unreadable.items())),
        "left_out": dict(sorted(taken.left_out.items())),
    }
    files = {**taken.files, MANIFEST: json.dumps(manifest, indent=1).encode() + b"\n"}
    # A folder stands for a file that did not answer: it is there, and reading it fails for everybody, root too.
    silent = set(taken.unreadable)
    folders = silent | {str(p) for name in [*files, *silent, *taken.links] for p in PurePosixPath(name).parents} - {"."}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(folders - set(taken.links)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
        for name, target in sorted(taken.links.items()):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            archive.addfile(entry)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as stream:
        stream.write(raw.getvalue())
    return packed.getvalue()
