"""One profiling run, from a request to a saved profile. The only room that knows both the workload and the hardware.

    plan     open the device, settle role, clocks and output; refuse what cannot work before anything long begins
    layers   shapes on the meta device: FLOPs, sizes; on the device itself: memory (one pass, every cut) and times
    power    at each clock in turn: hold it, steady watts under the training step, layer times there, release
    memory   a few halves really run in processes of their own, against the prediction
    save     one atomic write; then the record of the interrupted run goes

Everything measured is kept at once beside the profile (``profiler.partial``), so that the same command resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from profiler import __version__
from profiler.hardware import open_device
from profiler.hardware.device import Device, Reading
from profiler.partial import Partial
from profiler.power.sweep import ClockChoice, choose_clocks, estimate_sweep_s, run_sweep, visit_clocks
from profiler.profile import (
    BadInput,
    CutSizes,
    Document,
    FlopsBlock,
    MemoryBlock,
    MemoryCheck,
    MissingHardware,
    PowerBlock,
    PowerPoint,
    Profile,
    Role,
    Segment,
    SegmentSizes,
    SizesBlock,
    Timing,
    Workload,
)
from profiler.store import save, write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec

MEASURES = ("layers", "power", "memory")
SINGLE_CLOCK_BUDGET_S = 45.0
"""Wall time for timing the layers where there is one clock; with several, each gets ``CLOCK_BUDGET_S``."""
CLOCK_BUDGET_S = 15.0

AnyDocument = TypeVar("AnyDocument", bound=Document)


@dataclass(frozen=True)
class RunRequest:
    """What ``card-profile run`` was asked for; the names are its options. None: the default."""

    device: str
    workload: WorkloadSpec
    role: str | None = None
    measure: tuple[str, ...] | None = None
    clocks: str = "auto"
    load_command: str | None = None
    output: Path | None = None
    fresh: bool = False


@dataclass
class _Samples:
    """Raw readings, one row each, in long form: what was read, at which clock, its value and unit."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, quantity: str, requested_hz: float | None, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += [{"quantity": quantity, "requested_hz": requested_hz, **row} for row in rows]

    def parquet(self) -> bytes:
        """All rows as Parquet."""
        import pandas

        buffer = io.BytesIO()
        pandas.DataFrame(self.rows).to_parquet(buffer, index=False)
        return buffer.getvalue()


def run(request: RunRequest) -> Path:
    """Carry out ``request``; print progress to standard error and a summary to standard output; return the profile's path.

    Raises BadInput, MissingHardware, or KeyboardInterrupt when stopped (what was measured is then kept).
    """
    from rich.console import Console

    said = Console(stderr=True, highlight=False, soft_wrap=True)
    # Other packages' deprecation notes are for us, not for whoever measures; CARD_TRACEBACK=1 shows everything.
    if not os.environ.get("CARD_TRACEBACK"):
        warnings.simplefilter("ignore")
    device = open_device(request.device)
    role = _role(request.role, device)
    measures = _measures(request, device)
    output = _output(request.output, device)
    choice = _clocks(request, device, measures)
    spec = request.workload
    plan = _plan(request, spec, device, role, measures, choice)
    partial = Partial(output, plan, fresh=request.fresh)
    for note in choice.notes:
        said.print(f"note: {note}", markup=False)
    if partial.ignored:
        said.print(f"note: {partial.ignored}", markup=False)
    elif len(partial):
        said.print(f"resuming: {len(partial)} results of an interrupted run are kept ({partial.path})", markup=False)
    try:
        with _Reporter(said) as reporter:
            session = _Session(request, device, role, measures, choice, spec, partial, reporter)
            with _too_large(spec):
                profile, samples = session.profile(output)
            _write(profile, samples, output)
        partial.discard()
    except KeyboardInterrupt:
        if len(partial):
            said.print(
                f"stopped: {len(partial)} results are kept in {partial.path}; the same command goes on from there",
                markup=False,
            )
        raise
    from profiler.show import show

    show(profile)
    print(f"wrote {output}")
    return output


# ------------------------------------------------------------------------------------------------------------ plan


def _role(asked: str | None, device: Device) -> Role:
    if asked is None:
        return device.default_role
    if asked == "device":
        return "device"
    if asked == "server":
        return "server"
    raise BadInput(f"--role {asked}: expected device or server")


def _measures(request: RunRequest, device: Device) -> tuple[str, ...]:
    """What to measure; what was asked for by name must be possible here."""
    if request.load_command is not None and device.torch_device == "meta":
        raise BadInput("--load-command: an emulated device cannot run a command")
    without = device.absent.reasons.get("power", "no watts can be read here")
    if request.measure is None:
        if request.load_command is not None and device.power is None:
            raise MissingHardware(f"--load-command: {device.name}: {without}")
        return ("layers", "power") if device.power is not None else ("layers",)
    unknown = [m for m in request.measure if m not in MEASURES]
    if unknown or not request.measure:
        raise BadInput(f"--measure {','.join(request.measure)}: expected some of {', '.join(MEASURES)}")
    if "power" in request.measure and device.power is None:
        raise MissingHardware(f"--measure power: {device.name}: {without}")
    if "memory" in request.measure and device.torch_device == "meta":
        raise BadInput(
            "--measure memory: an emulated device has no memory to read; its predicted peaks come with layers"
        )
    if request.load_command is not None and "power" not in request.measure:
        raise BadInput("--load-command: expected with power among --measure")
    return tuple(m for m in MEASURES if m in request.measure)


def _output(asked: Path | None, device: Device) -> Path:
    path = asked if asked is not None else Path("profiles") / f"{device.name}.json"
    if len(os.fsencode(path.name)) > 200:  # the files beside it have longer names, and most systems stop at 255
        raise BadInput(f"--output {path}: expected a name of at most 200 bytes")
    try:
        if path.is_dir():
            raise BadInput(f"--output {path}: a folder; expected the profile's file")
        if path.suffix != ".json":
            raise BadInput(f"--output {path}: expected a name that ends in .json")
        folder = path.parent
        while not folder.exists():  # what is missing of it is made when there is something to write
            folder = folder.parent
        if not folder.is_dir():
            raise BadInput(f"--output {path}: {folder} is not a folder")
    except OSError as error:
        raise BadInput(f"--output {path}: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"--output {path}: the folder {folder.resolve()} cannot be written; name another with --output")
    return path


def _clocks(request: RunRequest, device: Device, measures: Sequence[str]) -> ClockChoice:
    supported = device.clocks.supported_hz() if device.clocks is not None else ()
    choice = choose_clocks(request.clocks, supported)
    if request.clocks.strip().lower() == "auto" and "power" not in measures and choice.locks:
        # Times alone: both ends and the middle show how each layer follows the clock.
        choice = choose_clocks("3", supported)
    return choice


@contextlib.contextmanager
def _too_large(spec: WorkloadSpec) -> Iterator[None]:
    """Memory that runs out and figures beyond what a profile holds are the request's fault: say which options to lower."""
    less = f"--batch-size {spec.batch}, --seq-len {spec.tokens}, --model {spec.model}: expected a smaller one"
    try:
        yield
    except ValidationError as error:
        if any(found["type"] != "less_than_equal" for found in error.errors()):
            raise
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadInput(f"{less}; {where} is beyond what a profile holds") from None
    except (MemoryError, RuntimeError) as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if not isinstance(error, MemoryError) and "allocate memory" not in text and "out of memory" not in text:
            raise
        raise BadInput(f"{less}; the memory ran out ({text[:200] or 'MemoryError'})") from None


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "transformers", "peft", "fvcore"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _plan(
    request: RunRequest, spec: WorkloadSpec, device: Device, role: Role, measures: Sequence[str], choice: ClockChoice
) -> dict[str, Any]:
    """Everything that must be the same for an interrupted run to be resumed."""
    hardware = device.describe()
    return {
        "device": device.name,
        "hardware": hashlib.sha256(
            json.dumps([hardware.description, hardware.cores, sorted(hardware.conditions.items())]).encode()
        ).hexdigest()[:16],
        "role": role,
        "workload": {key: list(v) if isinstance(v, tuple) else v for key, v in vars(spec).items()},
        "measure": list(measures),
        "clocks_hz": list(choice.frequencies_hz) if choice.locks else None,
        "load_command": request.load_command,
        "versions": {"card-profile": __version__, **_versions()},
    }


# ---------------------------------------------------------------------------------------------------------- measure


class _Session:
    """The measuring part of one run. Every step first looks into the record of an interrupted one."""

    def __init__(
        self,
        request: RunRequest,
        device: Device,
        role: Role,
        measures: Sequence[str],
        choice: ClockChoice,
        spec: WorkloadSpec,
        partial: Partial,
        reporter: _Reporter,
    ) -> None:
        self.request, self.device, self.role, self.measures = request, device, role, measures
        self.choice, self.spec, self.partial, self.say = choice, spec, partial, reporter
        self._split: SplitModel | None = None
        self._shapes: SplitModel | None = None
        self._fits = False
        self.warnings: list[str] = []

    def profile(self, output: Path) -> tuple[Profile, _Samples]:
        """Measure whatever is missing and put the profile together."""
        workload, segments, flops, sizes = self._structure()
        memory = self._memory() if "layers" in self.measures else None
        timings, power = self._timings_and_power()
        if "memory" in self.measures:
            memory = self._memory_checks(memory or self._memory())
        samples = _Samples()
        for stage in [key for key in ("timing", "power") if key in self.partial]:
            for entry in self.partial.get(stage):
                samples.add(stage, entry["requested_hz"], entry["samples"])
        for relative in [d.relative for d in flops.disagreements][:1]:
            self.warnings.append(
                f"{len(flops.disagreements)} FLOP counts differ from the formula by more than 1 % "
                f"(the first by {100 * relative:+.1f} %): see flops.disagreements"
            )
        hardware = self.device.describe()
        conditions = dict(hardware.conditions)
        if timings and self.device.torch_device == "cpu":
            conditions["memory while timing"] = "kept by the process, not given back to the system between steps"
        return (
            Profile(
                name=self.device.name,
                role=self.role,
                created_utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                toolkit_version=__version__,
                hardware=hardware.model_copy(
                    update={"software": {**hardware.software, **_versions()}, "conditions": conditions}
                ),
                workload=workload,
                segments=segments,
                flops=flops,
                sizes=sizes,
                timings=timings,
                memory=memory,
                power=power,
                samples_file=f"{output.stem}.samples.parquet" if samples.rows else None,
                warnings=self.warnings,
            ),
            samples,
        )

    def split(self) -> SplitModel:
        """The model on the device, built when first needed."""
        if self._split is None:
            from profiler.workload.cuts import SplitModel
            from profiler.workload.model import build

            if self.device.torch_device != "meta":
                self._refuse_what_cannot_fit()
            with self.say.stage(f"building {self.spec.model} on {self.device.torch_device}"):
                self._split = SplitModel(build(self.spec, self.device.torch_device))
        return self._split

    def shapes(self) -> SplitModel:
        """The model without weights, on the meta device: all that follows from shapes."""
        if self.device.torch_device == "meta":
            return self.split()
        if self._shapes is None:
            from profiler.workload.cuts import SplitModel
            from profiler.workload.model import build

            with self.say.stage(f"reading the structure of {self.spec.model}"):
                self._shapes = SplitModel(build(self.spec, "meta"))
        return self._shapes

    def _kept(self, stage: str, kind: type[AnyDocument], make: Callable[[], AnyDocument]) -> AnyDocument:
        if stage in self.partial:
            try:
                return kind.model_validate_json(json.dumps(self.partial.get(stage)))
            except ValidationError:
                raise BadInput(f"{self.partial.path}: damaged; start again with --fresh") from None
        made = make()
        self.partial.put(stage, made.model_dump(mode="json"))
        return made

    def _structure(self) -> tuple[Workload, list[Segment], FlopsBlock, SizesBlock]:
        """What follows from shapes: on the meta device, whatever the device is."""
        from profiler.workload.flops import count_flops

        shapes = self.shapes()
        built = shapes.built
        provenance = self.device.provenance
        workload = Workload(
            model=built.name,
            architecture=built.architecture,
            layers=shapes.layers,
            encoder_layers=shapes.encoder_layers,
            hidden_size=built.hidden_size,
            vocab_size=built.vocab_size,
            batch_size=self.spec.batch,
            seq_len=self.spec.tokens,
            dtype=self.spec.dtype,
            lora_rank=self.spec.lora_rank,
            lora_alpha=self.spec.lora_alpha,
            lora_targets=list(built.lora_targets),
            gradient_checkpointing=self.spec.gradient_checkpointing,
            parameters=built.parameters,
            trainable_parameters=built.trainable_parameters,
        )
        segments = [Segment(name=s.name, kind=s.kind, layer=s.layer) for s in shapes.segments]

        def count() -> FlopsBlock:
            with self.say.stage("counting FLOPs"):
                return count_flops(
                    shapes,
                    shapes.batch(self.spec.seed),
                    provenance=provenance,
                    note="counted from the operators that the model runs on these shapes",
                )

        sizes = SizesBlock(
            provenance=provenance,
            segments=[
                SegmentSizes(
                    weight_bytes=s.weight_bytes, adapter_bytes=s.adapter_bytes, adapter_parameters=s.adapter_parameters
                )
                for s in shapes.segments
            ],
            cuts=[
                CutSizes(cut=c, smashed_bytes=shapes.smashed_bytes(c), gradient_bytes=shapes.gradient_bytes(c))
                for c in shapes.cuts
            ],
        )
        return workload, segments, self._kept("flops", FlopsBlock, count), sizes

    def _refuse_what_cannot_fit(self) -> None:
        """Better said now than by a system that kills us, or others. From shapes alone: nothing is allocated. Raises BadInput."""
        from profiler.workload import memory

        limit = self.device.describe().memory_bytes
        if self._fits or limit is None:
            return
        shapes = self.shapes()
        with self.say.stage("memory: does the whole step fit"):
            block = memory.predict(shapes, shapes.batch(self.spec.seed), provenance=self.device.provenance)
        need = block.whole_peak_bytes
        if need > limit:
            raise BadInput(
                f"--batch-size {self.spec.batch}, --seq-len {self.spec.tokens}, --model {self.spec.model}: a training step "
                f"needs {need / 2**30:,.1f} GiB, {self.device.name} has {limit / 2**30:,.1f} GiB; "
                "expected a smaller one"
            )
        self._fits = True

    def _memory(self) -> MemoryBlock:
        from profiler.workload import memory

        def predict() -> MemoryBlock:
            if self.device.torch_device == "cpu":  # the libraries' share is measured with operators of full size
                self._refuse_what_cannot_fit()
            # A CUDA allocator rounds, so there the pass runs on the real device; elsewhere shapes say all.
            split = self.split() if self.device.torch_device.startswith("cuda") else self.shapes()
            batch, library = split.batch(self.spec.seed), None
            with self.say.stage("memory: one pass for every cut"):
                if self.device.torch_device == "cpu":
                    try:
                        library = memory.library_workspace(split, batch)
                    except MissingHardware as error:
                        self.warnings.append(f"memory is that of tensors alone: {error}")
                return memory.predict(
                    split,
                    batch,
                    provenance=self.device.provenance,
                    workspace=library,
                    note="peaks composed from the lives of all tensors in one recorded step; see checks",
                )

        return self._kept("memory", MemoryBlock, predict)

    def _memory_checks(self, block: MemoryBlock) -> MemoryBlock:
        from profiler.workload import memory

        layers = len(block.cuts) + 1
        done = (
            [MemoryCheck.model_validate(row) for row in self.partial.get("checks")] if "checks" in self.partial else []
        )
        for cut in sorted({1, layers // 2, layers - 1}):
            if any(row.cut == cut for row in done):
                continue
            with self.say.stage(f"memory: really running both halves at cut {cut}"):
                done += memory.check(self.spec, block, [cut], device=self.device.torch_device)
            self.partial.put("checks", [row.model_dump(mode="json") for row in done])
        return block.model_copy(update={"checks": done})

    def _timings_and_power(self) -> tuple[list[Timing], PowerBlock | None]:
        """Visit the clocks: watts under the load and layer times at each."""
        entries: list[dict[str, Any]] = list(self.partial.get("timing")) if "timing" in self.partial else []
        timed = {entry["requested_hz"] for entry in entries}
        layers = "layers" in self.measures

        def time_layers(requested_hz: float | None) -> None:
            if layers and requested_hz not in timed:
                entries.append(self._time(requested_hz))
                timed.add(requested_hz)
                self.partial.put("timing", entries)

        power = None
        if "power" in self.measures:
            power = self._sweep(time_layers)
        elif layers and self.choice.locks:
            left = [hz for hz in self.choice.frequencies_hz if hz not in timed]
            if left:
                visit_clocks(self.device, left, time_layers)
        elif layers:
            time_layers(None)
        timings = [Timing.model_validate(entry["timing"]) for entry in entries]
        return sorted(timings, key=lambda t: t.frequency_hz or 0.0), power

    def _time(self, requested_hz: float | None) -> dict[str, Any]:
        """Layer times at the clock that is held now."""
        from dataclasses import replace

        from profiler.workload.timing import TimingOptions, measure

        split = self.split()
        several = self.choice.locks and len(self.choice.frequencies_hz) > 1
        options = TimingOptions(budget_s=SINGLE_CLOCK_BUDGET_S)
        if several:  # the fit over the clocks averages what the rounds at one clock do not
            options = replace(options, budget_s=CLOCK_BUDGET_S, min_rounds=4, warmup_rounds=1, min_s=0.05)
        at = f" at {requested_hz / 1e6:g} MHz" if requested_hz else ""
        total = options.warmup_rounds + options.max_rounds
        with self.say.stage(f"timing the layers{at}", total=total) as tell, self.device.executing():
            result = measure(split, self.device, options, progress=tell)
            current_hz = self.device.current_hz()
        if result.stopped_by != "steady":
            self.warnings.append(
                f"times{at} are not steady within {100 * options.target_relative:g} % "
                f"after {result.rounds} rounds ({result.stopped_by})"
            )
        timing = Timing(
            provenance=self.device.provenance,
            frequency_hz=current_hz,
            requested_hz=requested_hz,
            segments=result.segments,
            step=result.step,
        )
        return {
            "requested_hz": requested_hz,
            "timing": timing.model_dump(mode="json"),
            "samples": result.samples,
        }

    def _sweep(self, time_layers: Callable[[float | None], None]) -> PowerBlock:
        points: list[dict[str, Any]] = list(self.partial.get("power")) if "power" in self.partial else []
        done = [PowerPoint.model_validate(entry["point"]) for entry in points if entry["point"] is not None]
        least_s, most_s = estimate_sweep_s(self.choice)
        self.say.note(
            f"power: {max(1, len(self.choice.frequencies_hz))} clocks, {least_s / 60:.0f} to {most_s / 60:.0f} minutes "
            "on the device's clock"
        )

        def keep(point: PowerPoint, readings: Sequence[Reading]) -> None:
            rows = [vars(reading) for reading in readings]
            points.append({"requested_hz": point.requested_hz, "point": point.model_dump(mode="json"), "samples": rows})
            self.partial.put("power", points)

        with self._load() as (name, load), self.say.stage("power", total=None) as tell:
            result = run_sweep(
                self.device,
                load,
                self.choice,
                load_name=name,
                at_clock=time_layers,
                on_point=keep,
                done=done,
                on_progress=lambda what, seconds, watts: tell.text(f"power: {what}, {seconds:.0f} s, {watts:.1f} W"),
            )
        self.warnings += result.notes
        rows = [vars(reading) for reading in result.at_rest]
        points.append({"requested_hz": None, "point": None, "samples": rows})
        self.partial.put("power", points)
        return result.block

    @contextlib.contextmanager
    def _load(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """The load of the sweep: the training step, or the user's own program."""
        if self.request.load_command is None:
            from profiler.workload.timing import Steps

            split = self.split()
            steps = Steps(split, split.batch(self.spec.seed))
            name = f"training step of {self.spec.model}, batch {self.spec.batch} x {self.spec.tokens} tokens"
            yield name, self.device.load(lambda: _discard(steps.plain(self.device)))
            return
        with running(self.request.load_command) as alive:

            def wait() -> None:
                alive()
                self.device.wait(0.1)

            yield f"command: {self.request.load_command}", wait


def _discard(_: object) -> None:
    """Only the work counts."""


@contextlib.contextmanager
def running(command: str) -> Iterator[Callable[[], None]]:
    """Run ``command`` (no shell) as long as the body lasts; the value checks that it still runs, and raises BadInput if not."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadInput(f"--load-command {command!r}: {error}") from None
    if not words:
        raise BadInput("--load-command: expected a command")
    try:
        # A session of its own, so that whatever the command starts ends with it.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise BadInput(f"--load-command {command!r}: cannot be started: {error.strerror or error}") from None

    def alive() -> None:
        code = process.poll()
        if code is not None:
            raise BadInput(
                f"--load-command {command!r}: ended with {code} before the measurement did; expected a load that lasts"
            )

    try:
        yield alive
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    import signal

    for sign, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_s)
            return


# ------------------------------------------------------------------------------------------------------ write, tell


def _write(profile: Profile, samples: _Samples, output: Path) -> None:
    if profile.samples_file is not None:
        write_atomically(output.with_name(profile.samples_file), samples.parquet())
    save(profile, output)


class _Stage:
    """Handed to the body of a stage: call it with (done, total), or change its text."""

    def __init__(self, progress: Progress | None, task: Any) -> None:
        self._progress, self._task = progress, task

    def __call__(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total)

    def text(self, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=text)


class _Reporter:
    """Progress on standard error: a moving bar on a terminal, one line for each stage elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def __enter__(self) -> _Reporter:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    @contextlib.contextmanager
    def stage(self, text: str, total: int | None = None) -> Iterator[_Stage]:
        """One stage of the run while the body lasts."""
        if self._progress is None:
            print(text, file=sys.stderr, flush=True)
            yield _Stage(None, None)
            return
        task = self._progress.add_task(text, total=total)
        yield _Stage(self._progress, task)
        self._progress.update(task, total=1, completed=1)
