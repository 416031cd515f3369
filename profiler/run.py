"""One profiling run, from a request to a saved profile. The only room that knows both the workload and the hardware.

    plan     open the device, settle role, clocks and output; refuse what cannot work before anything long begins
    layers   shapes on the meta device: FLOPs, sizes; on the device itself: memory (one pass, every cut) and times
    power    at each clock in turn: hold it, steady watts under the training step, layer times there, release
    memory   a few halves really run in processes of their own, against the prediction
    graph    the operators and what they hand to each other, from shapes
    compression   bytes, times and loss of codecs at every cut
    save     one atomic write; then the record of the interrupted run goes

Everything measured is kept at once beside the profile (``profiler.partial``), so that the same command resumes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from profiler import __version__
from profiler.hardware.device import Reading
from profiler.load import LoadEnded, described, running
from profiler.partial import Partial, claimed
from profiler.plan import Plan, RunRequest, make_plan, versions
from profiler.power.kriged import teach_most
from profiler.power.sweep import Load, estimate_sweep_s, run_sweep, visit_clocks
from profiler.profile import (
    BadInput,
    Compression,
    CutSizes,
    Document,
    FlopsBlock,
    Hardware,
    MemoryBlock,
    MemoryCheck,
    MissingHardware,
    OperatorsBlock,
    PowerBlock,
    PowerPoint,
    Profile,
    Segment,
    SegmentSizes,
    SizesBlock,
    Timing,
    Workload,
)
from profiler.progress import Reporter
from profiler.store import load, save, write_atomically
from profiler.times import cannot_fit, fit_times
from profiler.under_load import UnderLoad
from profiler.under_load import conditions as under_load
from profiler.units import counted

if TYPE_CHECKING:
    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec

SINGLE_CLOCK_BUDGET_S = 45.0
"""Wall time for timing the layers where there is one clock; with several, each gets ``CLOCK_BUDGET_S``."""
CLOCK_BUDGET_S = 15.0

MEMORY_NOTE = "peaks composed from the lives of all tensors in one recorded step; see checks"

AnyDocument = TypeVar("AnyDocument", bound=Document)


@dataclass
class _Samples:
    """Raw readings, one row each, in long form: what was read, at which clock, its value and unit."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, quantity: str, requested_hz: float | None, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            plain = {name: value for name, value in row.items() if name != "rails_w"}
            rails = {f"rail {label} (W)": watts for label, watts in (row.get("rails_w") or {}).items()}
            self.rows.append({"quantity": quantity, "requested_hz": requested_hz, **plain, **rails})

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

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    # Other packages' deprecation notes are for us, not for whoever measures; CARD_TRACEBACK=1 shows everything.
    if not os.environ.get("CARD_TRACEBACK"):
        warnings.simplefilter("ignore")
    plan = make_plan(request)
    with Reporter(console) as say:
        for note in plan.choice.notes:
            say.note(f"note: {note}")
        with claimed(plan.output), _clocks_held(plan, say):
            profile = _measured(plan, say)
    from profiler.show import show

    show(profile)
    print(f"wrote {plan.output}")
    return plan.output


@contextlib.contextmanager
def _clocks_held(plan: Plan, say: Reporter) -> Iterator[None]:
    """From before the first long work to the end: the right to set clocks, or that nobody else sets them; what to know is told first."""
    control = plan.device.clocks
    if control is None:
        yield
        return
    if plan.choice.locks and control.caution and plan.request.restore_hz is None:
        say.note(f"note: {control.caution}")
    with control.held(plan.request.restore_hz) if plan.choice.locks else control.undisturbed() as notes:
        for note in notes:
            say.note(f"note: {note}")
        yield


def _measured(plan: Plan, say: Reporter) -> Profile:
    """Measure, save, and drop the record of the interrupted run."""
    partial = Partial(plan.output, plan.key(), fresh=plan.request.fresh)
    if partial.ignored:
        say.note(f"note: {partial.ignored}")
    elif len(partial):
        say.note(f"resuming: {len(partial)} results of an interrupted run are kept ({partial.path})")
    try:
        with _too_large(plan.spec):
            profile, samples = _Measurement(plan, partial, say).profile()
        profile = _in_place_of_the_old(profile, plan.output, say)
        _write(profile, samples, plan.output)
        partial.discard()
    except (KeyboardInterrupt, MissingHardware, LoadEnded):
        if len(partial):
            say.note(f"stopped: {len(partial)} results are kept in {partial.path}; the same command goes on from there")
        raise
    return profile


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


# ---------------------------------------------------------------------------------------------------------- measure


class _Measurement:
    """The measuring part of one run. Every step first looks into the record of an interrupted one."""

    def __init__(self, plan: Plan, partial: Partial, say: Reporter) -> None:
        self.plan, self.partial, self.say = plan, partial, say
        self.device, self.spec, self.choice, self.measures = plan.device, plan.spec, plan.choice, plan.measures
        self._split: SplitModel | None = None
        self._shapes: SplitModel | None = None
        self._need: MemoryBlock | None = None
        self._second_opinion: dict[str, str] = {}
        self.warnings: list[str] = []

    def profile(self) -> tuple[Profile, _Samples]:
        """Measure whatever is missing and put the profile together."""
        workload, segments, flops, sizes = self._structure()
        memory = self._memory() if "layers" in self.measures else None
        timings, power = self._timings_and_power()
        if "memory" in self.measures:
            memory = self._memory_checks(memory or self._memory())
        operators = self._operators() if "graph" in self.measures else None
        compression = self._compression() if "compression" in self.measures else None
        samples = _Samples()
        seen = []
        for stage in [key for key in ("timing", "power") if key in self.partial]:
            for entry in self.partial.get(stage):
                samples.add(stage, entry["requested_hz"], entry["samples"])
                seen.append(entry.get("conditions", {}))
        if flops.disagreements:
            self.warnings.append(
                f"{len(flops.disagreements)} FLOP counts differ from the formula by more than 1 % "
                f"(the first by {100 * flops.disagreements[0].relative:+.1f} %): see flops.disagreements"
            )
        hardware = _trained_at(self.device.describe(), timings, power.points if power is not None else [])
        conditions = {**hardware.conditions, **under_load(seen), **self._second_opinion}
        if timings and self.device.torch_device == "cpu":
            conditions["memory while timing"] = "kept by the process, not given back to the system between steps"
        profile = Profile(
            name=self.plan.name,
            role=self.plan.role,
            created_utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            toolkit_version=__version__,
            hardware=hardware.model_copy(
                update={"software": {**hardware.software, **versions()}, "conditions": conditions}
            ),
            workload=workload,
            segments=segments,
            flops=flops,
            sizes=sizes,
            timings=timings,
            memory=memory,
            power=power,
            compression=compression,
            operators=operators,
            samples_file=f"{self.plan.output.stem}.samples.parquet" if samples.rows else None,
            warnings=self.warnings,
        )
        untold = cannot_fit(profile) if len(timings) > 1 else None
        if untold is not None:
            self.warnings.append(f"times cannot be followed over the clock: {untold}")
        return profile.model_copy(update={"time_fit": fit_times(profile), "warnings": self.warnings}), samples

    def split(self) -> SplitModel:
        """The model on the device, built when first needed."""
        if self._split is None:
            from profiler.workload.cuts import SplitModel
            from profiler.workload.model import build

            assert self.device.torch_device is not None
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

    def _operators(self) -> OperatorsBlock:
        from profiler.workload.operators import extract

        shapes = self.shapes()
        with self.say.stage("tracing the operators"):
            return extract(
                shapes,
                provenance=self.device.provenance,
                note="traced by torch.fx on shapes; no operator is timed alone",
            )

    def _compression(self) -> Compression:
        from profiler.workload.compression import measure
        from profiler.workload.text import read_text

        split = self.split()
        with self.device.executing():
            block = measure(
                split,
                read_text(self.plan.request.text),
                self.plan.compression(),
                provenance=self.device.provenance,
                keep=self.partial,
                stage=self.say.stage,
            )
        if block.note:
            self.warnings.append(f"compression: {block.note}")
        return block

    def _tensors_alone(self) -> MemoryBlock:
        """Predicted peaks from shapes alone, without the libraries' share: nothing is allocated."""
        if self._need is None:
            from profiler.workload import memory

            shapes = self.shapes()
            with self.say.stage("memory: one pass for every cut"):
                self._need = memory.predict(
                    shapes, shapes.batch(self.spec.seed), provenance=self.device.provenance, note=MEMORY_NOTE
                )
        return self._need

    def _refuse_what_cannot_fit(self) -> None:
        """Better said now than by a system that kills us, or others. Raises BadInput."""
        limit = self.device.describe().memory_bytes
        if limit is None:
            return
        need = self._tensors_alone().whole_peak_bytes
        if need > limit:
            raise BadInput(
                f"--batch-size {self.spec.batch}, --seq-len {self.spec.tokens}, --model {self.spec.model}: a training step "
                f"needs {need / 2**30:,.1f} GiB, {self.device.name} has {limit / 2**30:,.1f} GiB; "
                "expected a smaller one"
            )

    def _memory(self) -> MemoryBlock:
        from profiler.workload import memory

        on_cuda = (self.device.torch_device or "").startswith("cuda")

        def predict() -> MemoryBlock:
            if on_cuda:  # its allocator rounds, so the pass runs on the real device; elsewhere shapes say all
                split = self.split()
                with self.say.stage("memory: one pass for every cut"):
                    return memory.predict(
                        split, split.batch(self.spec.seed), provenance=self.device.provenance, note=MEMORY_NOTE
                    )
            block = self._tensors_alone()
            if self.device.torch_device != "cpu":
                return block
            self._refuse_what_cannot_fit()  # the libraries' share is measured with operators of full size
            shapes = self.shapes()
            with self.say.stage("memory: what the libraries take for themselves"):
                try:
                    library = memory.library_workspace(shapes, shapes.batch(self.spec.seed))
                except MissingHardware as error:
                    self.warnings.append(f"memory is that of tensors alone: {error}")
                    return block
            return memory.with_workspace(block, library)

        return self._kept("memory", MemoryBlock, predict)

    def _memory_checks(self, block: MemoryBlock) -> MemoryBlock:
        from profiler.workload import memory

        assert self.device.torch_device is not None
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
        self.warnings += [timing.note for timing in timings if timing.note]
        return sorted(timings, key=lambda t: t.frequency_hz or 0.0), power

    def _time(self, requested_hz: float | None) -> dict[str, Any]:
        """Layer times at the clock that is held now."""
        from dataclasses import replace

        from profiler.workload.timing import WAIT_S, TimingOptions, measure

        split = self.split()
        several = self.choice.locks and len(self.choice.frequencies_hz) > 1
        options = TimingOptions(budget_s=SINGLE_CLOCK_BUDGET_S, max_rounds=26, wait_s=WAIT_S)  # rests make rounds long
        if several:  # the fit over the clocks averages what the rounds at one clock do not
            options = replace(options, budget_s=CLOCK_BUDGET_S, min_rounds=4, warmup_rounds=1, min_s=0.05)
        at = f" at {requested_hz / 1e6:g} MHz" if requested_hz else ""
        total = options.warmup_rounds + options.max_rounds
        seen = UnderLoad(self.device)

        def between_rounds(done: int, most: int) -> None:
            if done > options.warmup_rounds:
                seen.look()
            tell(done, most)

        with self.say.stage(f"timing the layers{at}", total=total) as tell, self.device.executing():
            result = measure(split, self.device, options, progress=between_rounds)
            current_hz = self.device.current_hz()
        unsteady = None
        if result.stopped_by != "steady":
            unsteady = (
                f"times{at} are not steady within {100 * options.target_relative:g} % "
                f"after {result.rounds} rounds ({result.stopped_by})"
            )
        timing = Timing(
            provenance=self.device.provenance,
            frequency_hz=current_hz,
            requested_hz=requested_hz,
            note=unsteady,
            segments=result.segments,
            step=result.step,
            wait_s=options.wait_s,
        )
        return {
            "requested_hz": requested_hz,
            "timing": timing.model_dump(mode="json"),
            "samples": result.samples,
            "conditions": seen.taken(),
        }

    def _sweep(self, time_layers: Callable[[float | None], None]) -> PowerBlock:
        points: list[dict[str, Any]] = list(self.partial.get("power")) if "power" in self.partial else []
        done = [PowerPoint.model_validate(entry["point"]) for entry in points if entry["point"] is not None]
        starts_late = self.plan.request.load_command is not None
        at_clock_s = CLOCK_BUDGET_S if "layers" in self.measures else 0.0
        least_s, most_s = estimate_sweep_s(self.choice, at_clock_s=at_clock_s, starts_late=starts_late)
        clocks = len(self.choice.frequencies_hz)
        self.say.note(
            f"power: {counted(clocks, 'clock') if self.choice.locks else 'one point'}, "
            f"{least_s / 60:.0f} to {most_s / 60:.0f} minutes of the device's time"
        )

        seen = UnderLoad(self.device)

        def keep(point: PowerPoint, readings: Sequence[Reading]) -> None:
            rows = [vars(reading) for reading in readings]
            measured = {"point": point.model_dump(mode="json"), "samples": rows, "conditions": seen.taken()}
            points.append({"requested_hz": point.requested_hz, **measured})
            self.partial.put("power", points)
            self.say.note(_told(point))

        self._second_opinion = self.device.second_opinion()
        name, load = self._load()
        with self.say.stage("power", total=None) as tell:
            result = run_sweep(
                self.device,
                load,
                self.choice,
                load_name=name,
                at_clock=time_layers,
                at_clock_s=at_clock_s,
                starts_late=starts_late,
                teach=teach_most,
                on_point=keep,
                done=done,
                under_load=seen.look,
                on_progress=lambda progress: tell.text(f"power: {progress.text}"),
            )
        self.warnings += result.notes
        rows = [vars(reading) for reading in result.at_rest]
        points.append({"requested_hz": None, "point": None, "samples": rows, "conditions": seen.taken()})
        self.partial.put("power", points)
        return result.block

    def _load(self) -> tuple[str, Load]:
        """The load of the sweep, by its name: the training step, or the user's own program, started anew at each clock."""
        command = self.plan.request.load_command
        if command is not None:
            return described(command), lambda: self._commanded(command)
        from profiler.workload.timing import Steps

        split = self.split()
        steps = Steps(split, split.batch(self.spec.seed))
        name = f"training step of {self.spec.model}, batch {self.spec.batch} x {self.spec.tokens} tokens"
        step = self.device.load(lambda: steps.plain(self.device))
        return name, lambda: contextlib.nullcontext(step)

    @contextlib.contextmanager
    def _commanded(self, command: str) -> Iterator[Callable[[], None]]:
        with running(command) as alive:

            def wait() -> None:
                alive()
                self.device.wait(0.1)

            yield wait


def _trained_at(hardware: Hardware, timings: Sequence[Timing], points: Sequence[PowerPoint]) -> Hardware:
    """The clock at which a GPU trains: what a load ran at by itself, else the highest that was held. At rest it says nothing."""
    seen = [(row.frequency_hz, row.requested_hz) for row in timings] + [
        (p.frequency_hz, p.requested_hz) for p in points
    ]
    held = [hz for hz, requested_hz in seen if hz is not None and requested_hz is not None]
    by_itself = [hz for hz, requested_hz in seen if hz is not None and requested_hz is None]
    if hardware.kind != "cuda" or hardware.clocks is None or not (held or by_itself):
        return hardware
    how = "which it ran at by itself under load" if by_itself else "the highest that ran under load"
    operating_hz = max(by_itself or held)
    clocks = hardware.clocks.model_copy(update={"operating_hz": operating_hz, "note": f"operating: {how}"})
    return hardware.model_copy(update={"clocks": clocks})


def _told(point: PowerPoint) -> str:
    """One line for a point that is complete."""
    held = " at the power cap" if point.capped else " throttled" if point.throttled else ""
    error = f" ± {point.ci95_w:.2g}" if point.ci95_w is not None else ""
    asked = f" (asked {point.requested_hz / 1e6:g})" if point.requested_hz is not None else ""
    return f"  {point.frequency_hz / 1e6:.0f} MHz{asked}: {point.power_w:.2f}{error} W{held}, {point.stopped_by}"


def _in_place_of_the_old(profile: Profile, output: Path, say: Reporter) -> Profile:
    """``profile`` with the link of the one that it replaces: another command measured it, and it is the machine's, whatever the workload.
    What else that one held and this one does not is told."""
    if not output.exists():
        return profile
    try:
        before = load(output)
    except BadInput as error:
        say.note(f"note: what was there is replaced, and was no profile: {error}")
        return profile
    kept = before.link if before.name == profile.name else None
    if kept is not None:
        profile = profile.model_copy(update={"link": kept})
        say.note(
            f"note: the link of the profile that was there is kept: {kept.uplink_mbps:g} Mbit/s up, {kept.downlink_mbps:g} down"
        )
    now = profile.workload.key()
    other = [f"{name} {value}" for name, value in before.workload.key().items() if value != now[name]]
    untold = {"samples_file", "warnings"}
    lost = [name for name, block in before if block and name not in untold and not getattr(profile, name)]
    if other:
        say.note(f"note: {output} held a profile of another workload, which is replaced: {', '.join(other)}")
    if lost:
        say.note(f"note: {output} held what was not measured now, and is gone with the old profile: {', '.join(lost)}")
    return profile


def _write(profile: Profile, samples: _Samples, output: Path) -> None:
    if profile.samples_file is not None:
        write_atomically(output.with_name(profile.samples_file), samples.parquet())
    save(profile, output)
