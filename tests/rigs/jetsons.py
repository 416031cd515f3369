"""What the kernels of Jetson boards show, as data: names, folders and labels as on L4T of each release.

Sources are public logs, device trees and drivers; the fit constants of the physics are made up, and of no law that we fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Channel:
    """One channel of a monitor: ``share`` of the chip's parts that hang on it (see ``sysfs.Physics``). No label: not wired."""

    label: str
    volts: float = 0.0
    shunt_ohm: float = 0.005
    share: tuple[str, ...] = ()


@dataclass(frozen=True)
class Monitor:
    """A power monitor: ``kind`` hwmon, iio or ina238; ``device`` below sys/devices; ``number`` of its hwmon or iio folder."""

    kind: str
    device: str
    number: int
    channels: tuple[Channel, ...]


@dataclass(frozen=True)
class Jetson:
    """One board under one release."""

    name: str
    model: str
    compatible: tuple[str, ...]
    release: str
    kernel: str
    gpu_device: str
    of_name: str | None
    clocks_hz: tuple[float, ...]
    monitors: tuple[Monitor, ...]
    zones: tuple[str, ...]
    gpu_zone: str
    cooling: tuple[str, ...]
    modes: tuple[tuple[str, float | None], ...]
    mode: int
    cores: int
    memory_kb: int
    gpu_w: float
    emc: str = "debugfs"
    governor: str = "nvhost_podgov"
    soctherm_oc: bool = False
    fan: str = "pwmfan"
    engines: tuple[str, ...] = ()
    extra: dict[str, str] = field(default_factory=dict)


def mhz(*values: float) -> tuple[float, ...]:
    return tuple(value * 1e6 for value in values)


NANO_HZ = tuple(76.8e6 * i for i in range(1, 13))
TX2_HZ = mhz(114.75, 216.75, 318.75, 420.75, 522.75, 624.75, 726.75, 854.25, 930.75, 1032.75, 1122, 1236.75, 1300.5)
XAVIER_HZ = mhz(
    114.75, 216.75, 318.75, 420.75, 522.75, 624.75, 675.75, 828.75, 905.25, 1032.75, 1198.5, 1236.75, 1338.75, 1377
)
NX_HZ = mhz(
    114.75, 204, 306, 408, 510, 599.25, 701.25, 752.25, 803.25, 854.25, 905.25, 956.25, 1007.25, 1058.25, 1109.25
)
ORIN_HZ = mhz(306, 408, 510, 612, 714, 816, 918, 1020, 1122, 1224, 1300.5)
ORIN_NX_HZ = ORIN_HZ[:7]
ORIN_NANO_HZ = mhz(306, 408, 510, 612, 624.75)
ORIN_SUPER_HZ = ORIN_HZ[:8]
THOR_HZ = tuple(315e6 + 105e6 * i for i in range(13))

_OLD_ZONES = ("AO-therm", "CPU-therm", "GPU-therm", "PLL-therm", "PMIC-Die", "thermal-fan-est")
_ORIN_ZONES = ("cpu-thermal", "gpu-thermal", "cv0-thermal", "cv1-thermal", "cv2-thermal", "soc0-thermal", "tj-thermal")
_ORIN_ZONES_5 = ("CPU-therm", "GPU-therm", "CV0-therm", "CV1-therm", "CV2-therm", "SOC0-therm", "tj-therm")
_ORIN_COOLING = ("cpufreq-cpu0", "devfreq-17000000.gpu", "cpu-throttle-alert", "gpu-throttle-alert", "pwm-fan")
_MODULE_3 = (
    Channel("VDD_IN", 5.04, 0.005, ("gpu", "cpu", "soc", "memory", "rest")),
    Channel("VDD_CPU_GPU_CV", 5.04, 0.005, ("gpu", "cpu")),
    Channel("VDD_SOC", 5.04, 0.005, ("soc",)),
)
_AGX_ORIN = (
    Monitor(
        "hwmon",
        "platform/bus@0/c240000.i2c/i2c-1/1-0040",
        3,
        (
            Channel("VDD_GPU_SOC", 19.0, 0.002, ("gpu", "soc")),
            Channel("VDD_CPU_CV", 19.0, 0.002, ("cpu",)),
            Channel("VIN_SYS_5V0", 4.97, 0.002, ("memory", "rest")),
        ),
    ),
    Monitor(
        "hwmon",
        "platform/bus@0/c240000.i2c/i2c-1/1-0041",
        4,
        (Channel("NC"), Channel("VDDQ_VDD2_1V8AO", 4.97, 0.002, ("memory",)), Channel("NC")),
    ),
)


def _xavier_rails(kind: str, first: int) -> tuple[Monitor, ...]:
    bus = "c240000.i2c/i2c-1"
    return (
        Monitor(
            kind,
            f"{bus}/1-0040",
            first,
            (
                Channel("GPU", 19.0, 0.005, ("gpu",)),
                Channel("CPU", 19.0, 0.005, ("cpu",)),
                Channel("SOC", 19.0, 0.005, ("soc",)),
            ),
        ),
        Monitor(
            kind,
            f"{bus}/1-0041",
            first + 1,
            (
                Channel("CV", 19.0, 0.005, ()),
                Channel("VDDRQ", 19.0, 0.005, ("memory",)),
                Channel("SYS5V", 5.0, 0.005, ("rest",)),
            ),
        ),
    )


def _orin(name: str, module: str, model: str, clocks: tuple[float, ...], jetpack: int, **more: object) -> Jetson:
    releases = {5: ("# R35 (release), REVISION: 4.1", "5.10.120-tegra"), 6: ("# R36 (release), REVISION: 4.3", "5.15.148-tegra"),
                7: ("# R39 (release), REVISION: 2.0", "6.8.12-1021-tegra")}  # fmt: skip
    gpu = {5: "17000000.ga10b", 6: "17000000.gpu", 7: "17000000.gpu"}[jetpack]
    folder = "platform" if jetpack == 5 else "platform/bus@0"
    bus = "c240000.i2c/i2c-1" if jetpack == 5 else "bus@0/c240000.i2c/i2c-1"
    values: dict[str, object] = {
        "name": name,
        "model": model,
        "compatible": (f"nvidia,p3768-0000+{module}", f"nvidia,{module}", "nvidia,tegra234"),
        "release": releases[jetpack][0],
        "kernel": releases[jetpack][1],
        "gpu_device": f"{folder}/{gpu}",
        "of_name": gpu.split(".")[1],
        "clocks_hz": clocks,
        "monitors": (Monitor("hwmon", f"platform/{bus}/1-0040", 1, _MODULE_3),),
        "zones": _ORIN_ZONES_5 if jetpack == 5 else _ORIN_ZONES,
        "gpu_zone": "GPU-therm" if jetpack == 5 else "gpu-thermal",
        "cooling": tuple(c.replace("17000000.gpu", gpu) for c in _ORIN_COOLING),
        "modes": (("MAXN", None), ("15W", 612e6), ("10W", 408e6)),
        "mode": 0,
        "cores": 6,
        "memory_kb": 7_800_000,
        "gpu_w": 8.0,
        "emc": "debugfs" if jetpack < 7 else "bwmgr",
        "soctherm_oc": True,
    }
    return Jetson(**{**values, **more})  # type: ignore[arg-type]


_AGX = {
    "compatible": ("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
    "monitors": _AGX_ORIN,
    "modes": (("MAXN", None), ("MODE_15W", 420e6), ("MODE_30W", 624.75e6), ("MODE_50W", 828.75e6)),
    "cores": 12,
    "memory_kb": 62_000_000,
    "gpu_w": 34.0,
}

BOARDS: dict[str, Jetson] = {
    board.name: board
    for board in (
        Jetson(
            name="nano-jp4",
            model="NVIDIA Jetson Nano Developer Kit",
            compatible=("nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano", "nvidia,tegra210"),
            release="# R32 (release), REVISION: 7.4",
            kernel="4.9.337-tegra",
            gpu_device="57000000.gpu",
            of_name="gpu",
            clocks_hz=NANO_HZ,
            monitors=(
                Monitor(
                    "iio",
                    "50000000.host1x/546c0000.i2c/i2c-6/6-0040",
                    0,
                    (
                        Channel("POM_5V_IN", 5.0, 0.005, ("gpu", "cpu", "soc", "memory", "rest")),
                        Channel("POM_5V_GPU", 5.0, 0.005, ("gpu",)),
                        Channel("POM_5V_CPU", 5.0, 0.005, ("cpu",)),
                    ),
                ),
            ),
            zones=_OLD_ZONES,
            gpu_zone="GPU-therm",
            cooling=("gpu-balanced", "cpu-balanced", "gpu-throttle-alert", "pwm-fan"),
            modes=(("MAXN", None), ("5W", 640e6)),
            mode=0,
            cores=4,
            memory_kb=4_059_000,
            gpu_w=3.6,
            emc="clk",
            fan="legacy",
        ),
        Jetson(
            name="tx2-jp4",
            model="quill",
            compatible=("nvidia,quill", "nvidia,p2597-0000+p3310-1000", "nvidia,tegra186"),
            release="# R32 (release), REVISION: 7.4",
            kernel="4.9.337-tegra",
            gpu_device="17000000.gp10b",
            of_name="gp10b",
            clocks_hz=TX2_HZ,
            monitors=(
                Monitor(
                    "iio",
                    "3160000.i2c/i2c-0/0-0040",
                    0,
                    (
                        Channel("VDD_SYS_GPU", 19.0, 0.01, ("gpu",)),
                        Channel("VDD_SYS_SOC", 19.0, 0.01, ("soc",)),
                        Channel("VDD_4V0_WIFI", 4.0, 0.01, ()),
                    ),
                ),
                Monitor(
                    "iio",
                    "3160000.i2c/i2c-0/0-0041",
                    1,
                    (
                        Channel("VDD_IN", 19.0, 0.005, ("gpu", "cpu", "soc", "memory", "rest")),
                        Channel("VDD_SYS_CPU", 19.0, 0.01, ("cpu",)),
                        Channel("VDD_SYS_DDR", 19.0, 0.01, ("memory",)),
                    ),
                ),
                Monitor(
                    "iio",
                    "3160000.i2c/i2c-0/0-0042",
                    2,
                    (
                        Channel("VDD_MUX", 19.0, 0.02, ("carrier",)),
                        Channel("VDD_5V0_IO_SYS", 5.0, 0.005, ("carrier",)),
                        Channel("VDD_3V3_SYS", 3.3, 0.01, ()),
                    ),
                ),
            ),
            zones=("BCPU-therm", "MCPU-therm", "GPU-therm", "PLL-therm", "Tboard_tegra", "Tdiode_tegra", "PMIC-Die"),
            gpu_zone="GPU-therm",
            cooling=("gpu-balanced", "pwm-fan"),
            modes=(("MAXN", None), ("MAXQ", 854.25e6)),
            mode=0,
            cores=6,
            memory_kb=8_043_000,
            gpu_w=9.0,
        ),
        *(
            Jetson(
                name=f"xavier-agx-jp{jetpack}",
                model="Jetson-AGX",
                compatible=("nvidia,galen", "nvidia,jetson-xavier", "nvidia,p2822-0000+p2888-0001", "nvidia,tegra194"),
                release=release,
                kernel=kernel,
                gpu_device="17000000.gv11b" if jetpack == 4 else "platform/17000000.gv11b",
                of_name="gv11b",
                clocks_hz=XAVIER_HZ,
                monitors=_xavier_rails("iio" if jetpack == 4 else "hwmon", 0 if jetpack == 4 else 3),
                zones=("CPU-therm", "GPU-therm", "AUX-therm", "AO-therm", "PMIC-Die", "Tboard_tegra"),
                gpu_zone="GPU-therm",
                cooling=("gpu-balanced", "pwm-fan"),
                modes=(("MAXN", None), ("MODE_10W", 520e6), ("MODE_15W", 670e6), ("MODE_30W_ALL", 900e6)),
                mode=0,
                cores=8,
                memory_kb=32_000_000,
                gpu_w=19.0,
            )
            for jetpack, release, kernel in (
                (4, "# R32 (release), REVISION: 6.1", "4.9.253-tegra"),
                (5, "# R35 (release), REVISION: 4.1", "5.10.120-tegra"),
            )
        ),
        *(
            Jetson(
                name=f"xavier-nx-jp{jetpack}",
                model="NVIDIA Jetson Xavier NX Developer Kit",
                compatible=("nvidia,p3449-0000+p3668-0000", "nvidia,p3668-0000", "nvidia,tegra194"),
                release=release,
                kernel=kernel,
                gpu_device="17000000.gv11b" if jetpack == 4 else "platform/17000000.gv11b",
                of_name="gv11b",
                clocks_hz=NX_HZ,
                monitors=(
                    Monitor("iio" if jetpack == 4 else "hwmon", "c250000.i2c/i2c-7/7-0040", 0 if jetpack == 4 else 4, _MODULE_3),
                ),
                zones=("CPU-therm", "GPU-therm", "AUX-therm", "AO-therm", "PMIC-Die"),
                gpu_zone="GPU-therm",
                cooling=("gpu-balanced", "pwm-fan"),
                modes=(("MODE_15W_2CORE", None), ("MODE_10W_2CORE", 803.25e6)),
                mode=0,
                cores=6,
                memory_kb=7_760_000,
                gpu_w=8.0,
            )
            for jetpack, release, kernel in (
                (4, "# R32 (release), REVISION: 7.1", "4.9.253-tegra"),
                (5, "# R35 (release), REVISION: 3.1", "5.10.104-tegra"),
            )
        ),
        _orin("orin-nano-jp5", "p3767-0005", "NVIDIA Orin Nano Developer Kit", ORIN_NANO_HZ, 5),
        _orin("orin-nano-jp6", "p3767-0005-super", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
              ORIN_SUPER_HZ, 6, modes=(("15W", 612e6), ("25W", 918e6), ("MAXN_SUPER", None)), mode=2),
        _orin("orin-nano-4gb-jp6", "p3767-0004", "NVIDIA Jetson Orin Nano 4GB", ORIN_NANO_HZ, 6, memory_kb=3_600_000),
        _orin("orin-nx-jp5", "p3767-0000", "NVIDIA Orin NX Developer Kit", ORIN_NX_HZ, 5, memory_kb=15_400_000, cores=8),
        _orin("orin-nx-jp6", "p3767-0000", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", ORIN_NX_HZ, 6,
              memory_kb=15_400_000, cores=8, gpu_w=13.0),
        _orin("orin-agx-jp5", "p3701-0005", "NVIDIA Jetson AGX Orin Developer Kit", ORIN_HZ, 5, **_AGX),
        _orin("orin-agx-jp6", "p3701-0005", "NVIDIA Jetson AGX Orin Developer Kit", ORIN_HZ, 6, **_AGX),
        _orin("orin-agx-jp7", "p3701-0005", "NVIDIA Jetson AGX Orin Developer Kit", ORIN_HZ, 7, **_AGX),
        _orin("orin-agx-32gb-jp6", "p3701-0004", "NVIDIA Jetson AGX Orin Developer Kit", (*ORIN_HZ[:7], 930.75e6), 6,
              **{**_AGX, "compatible": ("nvidia,p3737-0000+p3701-0004", "nvidia,p3701-0004", "nvidia,tegra234"), "memory_kb": 30_000_000}),
        Jetson(
            name="thor-jp7",
            model="NVIDIA Jetson AGX Thor Developer Kit",
            compatible=("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"),
            release="# R38 (release), REVISION: 4.0",
            kernel="6.8.12-tegra",
            gpu_device="platform/bus@0/d0b0000000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0/gpu-gpc-0",
            of_name=None,
            clocks_hz=THOR_HZ,
            monitors=(
                Monitor(
                    "hwmon",
                    "platform/bus@0/810c600000.i2c/i2c-2/2-0040",
                    2,
                    (
                        Channel("VDD_GPU", 19.6, 0.002, ("gpu",)),
                        Channel("VDD_CPU_SOC_MSS", 19.6, 0.002, ("cpu", "soc")),
                        Channel("VIN_SYS_5V0", 4.97, 0.002, ("memory", "rest")),
                    ),
                ),
                Monitor(
                    "ina238",
                    "platform/bus@0/810c600000.i2c/i2c-2/2-0044",
                    4,
                    (Channel("VIN", 19.6, 0.002, ("gpu", "cpu", "soc", "memory", "rest", "carrier")),),
                ),
            ),
            zones=("tj-thermal", "soc012-thermal", "cpu-thermal", "soc345-thermal", "gpu-thermal"),
            gpu_zone="gpu-thermal",
            cooling=("devfreq-gpu-gpc-0", "gpu-throttle-alert", "cpu-throttle-alert", "pwm-fan"),
            modes=(("MAXN", None), ("120W", 1386e6)),
            mode=0,
            cores=14,
            memory_kb=128_790_092,
            gpu_w=70.0,
            emc="bwmgr",
            soctherm_oc=True,
            engines=("gpu-nvd-0",),
        ),
    )
}  # fmt: skip
