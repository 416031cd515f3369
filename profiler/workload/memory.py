"""Peak memory of either half at every cut, predicted from one pass, and really measured for a few cuts as a check.

**Prediction.** One mini-batch runs forward and backward on the meta device or on a real one, and the life of every tensor's storage
is recorded (see ``allocations``). The half at cut c holds what was born in its own segments, so the same record gives every cut:

    device half   F0 ... Fc | smashed data kept | gradient arrives | Bc ... B0 | optimizer
    server half   smashed data kept | Fc+1 ... head | head's B ... Bc+1 | its gradient kept | optimizer

    peak(c) = weights + adapters + 2 x adapters (AdamW's moments) + batch + context
              + max over time of (saved tensors + transients + adapters' gradients)  + library workspace

A storage counts once however many tensors share it, so a saved parameter or a saved view costs nothing twice. The output
projection and the loss are in the record like everything else: about 3 to 4 x batch x tokens x vocabulary x 4 bytes.

**What a dispatch mode cannot see** is memory that kernels take for themselves: packed copies of matrices, casts inside an operator,
code paged in on first use. ``library_workspace`` runs every distinct operator of the step by itself in a fresh process and measures that.

**Measurement.** ``measure_half`` really trains one half for two steps in a process of its own and reads the operating system's
high-water mark (VmHWM) over the resident size from before the model was built; on CUDA torch's own peak of allocated bytes. The
mark is made exact by two settings of glibc's malloc that give freed memory back at once; a usual process may hold more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.profile import BadInput, CutMemory, MemoryBlock, MemoryCheck, MissingHardware, Provenance, Role
from profiler.workload.allocations import AllocationRecord, record_step

if TYPE_CHECKING:
    import torch

    from profiler.workload.cuts import Batch, SplitModel
    from profiler.workload.model import WorkloadSpec

MOMENTS = 2
"""Tensors of an adapter's own size and dtype that AdamW keeps: exp_avg and exp_avg_sq."""

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


# --- prediction -------------------------------------------------------------------------------------------------------


def predict(
    split: SplitModel,
    batch: Batch,
    *,
    provenance: Provenance,
    note: str | None = None,
) -> MemoryBlock:
    """Peak bytes of the device half and the server half at every cut 1..I-1, and of the unsplit step, from one pass.

    The figures are those of tensors alone (``with_workspace`` adds what libraries hold). ``split`` may be on the meta device.
    Raises BadInput where no adapter can be trained.
    """
    record = record_step(split, batch)
    cuts = [
        CutMemory(
            cut=cut,
            device_peak_bytes=_half_peak(split, batch, record, cut, "device"),
            server_peak_bytes=_half_peak(split, batch, record, cut, "server"),
        )
        for cut in split.cuts
    ]
    whole = _half_peak(split, batch, record, None, "device")
    return MemoryBlock(provenance=provenance, cuts=cuts, whole_peak_bytes=whole, note=note)


def with_workspace(block: MemoryBlock, workspace: Workspace) -> MemoryBlock:
    """Peaks of a process, from those of its tensors alone: the libraries' share (``library_workspace``) is added to each half.

    The device half never holds the head; the server half and the unsplit step do.
    """
    cuts = [
        CutMemory(
            cut=row.cut,
            device_peak_bytes=row.device_peak_bytes + workspace.layers_bytes,
            server_peak_bytes=row.server_peak_bytes + workspace.head_bytes,
        )
        for row in block.cuts
    ]
    return block.model_copy(update={"cuts": cuts, "whole_peak_bytes": block.whole_peak_bytes + workspace.head_bytes})


def _half_peak(split: SplitModel, batch: Batch, record: AllocationRecord, cut: int | None, side: Role) -> int:
    """Peak bytes of tensors in one half (``cut`` None: of the whole model), in the steady state from the second step on."""
    if cut is None:
        indices, names = list(range(len(split.segments))), None
    else:
        indices = split.device_segments(cut) if side == "device" else split.server_segments(cut)
        names = split.half_parameters(side, cut)
    resident, adapters = _resident_bytes(split, names)
    resident += sum(t.untyped_storage().nbytes() for t in (batch.inputs, batch.labels))
    alive = record.timeline(indices)
    if cut is not None and side == "device":
        alive[record.event_of("backward", indices[-1]) :] += split.gradient_bytes(cut)
    elif cut is not None:
        alive += split.smashed_bytes(cut)
        own = {0} if cut < (split.encoder_layers or split.layers) else {1}
        alive += sum(record.context_bytes.get(stack, 0) for stack in own)
    # AdamW steps through the adapters one by one on a CPU, and all at once on a GPU, with two tensors of scratch for each.
    scratch = 2 * (sum(adapters) if str(split.device).startswith("cuda") else max(adapters, default=0))
    peak = max(int(alive.max()), int(alive[-1]) + scratch)
    return resident + MOMENTS * sum(adapters) + peak


def _resident_bytes(split: SplitModel, names: set[str] | None) -> tuple[int, list[int]]:
    """(bytes of parameters and buffers, bytes of each adapter) of those ``names`` (None: all); a shared storage once."""
    parameters = {n: p for n, p in split.model.named_parameters(remove_duplicate=False) if names is None or n in names}
    tensors = [*parameters.values(), *split.model.buffers()]
    total = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
    unique = {id(p): p for p in parameters.values()}.values()
    return total, [p.untyped_storage().nbytes() for p in unique if p.requires_grad]


# --- what the libraries take for themselves ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Workspace:
    """Bytes that a CPU process holds beside its tensors: in a half with layers only, and in one with the head.

    Buffers into which matrices are packed (kept by the library for the next product, one for each thread) and kernels' code.
    They do not depend on the cut. ``skipped``: operators that could not be run by themselves.
    """

    layers_bytes: int
    head_bytes: int
    skipped: tuple[str, ...] = ()


def library_workspace(split: SplitModel, batch: Batch, *, threads: int | None = None) -> Workspace:
    """Measure what the CPU libraries hold for this workload: every distinct operator of a step, run once in a fresh process.

    Operators, shapes, strides and dtypes come from one recorded step (``split`` may be on the meta device); their values are
    made up. The result is the growth of the resident size when all tensors are gone again. Takes a few seconds and as much
    memory as the largest operator. Scratch that a kernel gives back at its end is not in it (a few MB in bfloat16).
    For CPUs; on CUDA cuBLAS takes 8 to 32 MiB, which no prediction here contains. Raises MissingHardware off Linux.
    """
    layers: dict[str, None] = {}
    head: dict[str, None] = {}
    skipped: dict[str, None] = {}
    record: list[AllocationRecord] = []
    last = len(split.segments) - 1

    def seen(func: Any, args: Any, kwargs: Any, _output: Any) -> None:
        if func.is_view or func.namespace != "aten":
            return
        try:
            operator = json.dumps([str(func), _encode(args), {k: _encode(v) for k, v in kwargs.items()}])
        except TypeError:
            skipped[str(func)] = None
            return
        phases = record[0].phases
        (head if phases and phases[-1][1] == last else layers)[operator] = None

    record_step(split, batch, seen, record.append)
    task = {
        "layers": [json.loads(operator) for operator in layers],
        "head": [json.loads(operator) for operator in head if operator not in layers],
        "threads": threads,
    }
    answer = _in_fresh_process("workspace", task, 300.0)
    return Workspace(
        int(answer["layers_bytes"]), int(answer["head_bytes"]), tuple(sorted({*skipped, *answer["skipped"]}))
    )


def _encode(value: Any) -> Any:
    """An operator's argument as JSON; a tensor by shape, strides and dtype. Raises TypeError for what has no such form."""
    import torch

    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, torch.Tensor):
        return {"tensor": [list(value.shape), list(value.stride()), str(value.dtype).partition(".")[2]]}
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return {"constant": str(value).partition(".")[2]}
    raise TypeError(type(value).__name__)


def _decode(value: Any) -> Any:
    """The reverse of ``_encode``, on the CPU; integers are zeros (valid as an index), all else is small and positive."""
    import torch

    if isinstance(value, list):
        return [_decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "device" in value:
        return torch.device("cpu")
    if "constant" in value:
        return getattr(torch, value["constant"])
    shape, strides, name = value["tensor"]
    dtype = getattr(torch, name)
    elements = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if all(shape) else 0
    # Filled: pages that were never written are not resident.
    return torch.empty(elements, dtype=dtype).fill_(1e-3 if dtype.is_floating_point else 0).as_strided(shape, strides)


def _workspace_here(task: dict[str, Any]) -> dict[str, Any]:
    """The child's part of ``library_workspace``."""
    import torch

    if task["threads"]:
        torch.set_num_threads(task["threads"])
    # Two rows of one number, so that threads and allocator are up before the count begins.
    torch.ones(2, 1).add(1)
    before = _status_bytes("VmRSS")
    skipped: set[str] = set()

    def run(operators: list[Any]) -> int:
        for name, args, kwargs in operators:
            try:
                _, packet, overload = name.split(".")
                function = getattr(getattr(torch.ops.aten, packet), overload)
                with torch.no_grad():
                    function(*_decode(args), **{k: _decode(v) for k, v in kwargs.items()})
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, NotImplementedError):
                skipped.add(name)
        return max(_status_bytes("VmRSS") - before, 0)

    layers = run(task["layers"])
    return {"layers_bytes": layers, "head_bytes": run(task["head"]), "skipped": sorted(skipped)}


# --- measurement ------------------------------------------------------------------------------------------------------


def measure_half(
    spec: WorkloadSpec,
    cut: int | None,
    side: Role,
    *,
    device: str = "cpu",
    threads: int | None = None,
) -> int:
    """Train one half (``cut`` None: the whole model) for two mini-batches in a fresh process; its peak bytes.

    The peak is over the resident size before the model is built, everything imported. ``threads`` None: torch's default.
    Raises BadInput for a workload that cannot be built, MissingHardware where the system does not tell, RuntimeError with the
    child's last line if it fails.
    """
    task = {"spec": asdict(spec), "cut": cut, "side": side, "device": device, "threads": threads}
    answer = _in_fresh_process("half", task, 900.0)
    return int(answer["peak_bytes"])


def check(
    spec: WorkloadSpec,
    block: MemoryBlock,
    cuts: Iterable[int],
    *,
    sides: Sequence[Role] = ("device", "server"),
    device: str = "cpu",
    threads: int | None = None,
) -> list[MemoryCheck]:
    """Really run the halves at ``cuts`` and hold each against ``block``. Raises as ``measure_half``."""
    rows = {row.cut: row for row in block.cuts}
    done = []
    for cut in cuts:
        if cut not in rows:
            raise BadInput(f"memory check at cut {cut}: expected 1..{len(rows)}")
        for side in sides:
            measured = measure_half(spec, cut, side, device=device, threads=threads)
            predicted = rows[cut].device_peak_bytes if side == "device" else rows[cut].server_peak_bytes
            done.append(MemoryCheck(cut=cut, side=side, predicted_bytes=predicted, measured_bytes=measured))
    return done


def _in_fresh_process(what: str, task: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run this module as a program: JSON in on standard input, JSON out on the last line of standard output."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **_MALLOC, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        child = subprocess.run(
            [sys.executable, "-m", "profiler.workload.memory", what],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"measuring memory: no result within {timeout_s:.0f} s") from None
    last = (child.stderr.strip().splitlines() or ["no message"])[-1]
    if child.returncode == 2:
        raise BadInput(last)
    if child.returncode == 3:
        raise MissingHardware(last)
    if child.returncode != 0:
        raise RuntimeError(f"measuring memory: the process ended with {child.returncode}: {last}")
    answer: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    return answer


class _Peak:
    """The process's own memory: resident bytes now, and the highest since the last reset."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def reset(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError as error:
            raise MissingHardware(
                f"measuring memory needs Linux and a writable /proc/self/clear_refs ({error.strerror}); "
                "leave the memory checks out, the prediction needs neither"
            ) from None

    def now(self) -> int:
        if self.cuda:
            import torch

            return int(torch.cuda.memory_allocated())
        return _status_bytes("VmRSS")

    def highest(self) -> int:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated())
        return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        raise MissingHardware("measuring memory needs Linux: there is no /proc/self/status here") from None
    for line in text.splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise MissingHardware(f"measuring memory: this kernel's /proc/self/status has no {key}")


def _measure_here(task: dict[str, Any]) -> dict[str, Any]:
    """The child's part of ``measure_half``."""
    import gc

    import torch

    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec, build

    if task["threads"]:
        torch.set_num_threads(task["threads"])
    fields = dict(task["spec"])
    fields["lora_targets"] = tuple(fields["lora_targets"]) if fields["lora_targets"] is not None else None
    spec, cut, side, device = WorkloadSpec(**fields), task["cut"], task["side"], task["device"]
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingHardware(
            f"{device}: torch finds no CUDA device; install NVIDIA's driver and a CUDA build of torch"
        )

    # Shapes alone: which parameters the half needs, and what crosses. This imports all there is to import.
    outline = SplitModel(build(spec, "meta"))
    structure, kept, crossing = outline.structure, None, {}
    if cut is not None:
        kept = outline.half_parameters(side, cut)
        carried = outline.device_half(outline.batch(), cut).carried
        crossing = {name: (tuple(t.shape), t.dtype, t.requires_grad) for name, t in carried.items()}
        del carried
    del outline
    gc.collect()

    peak = _Peak(device)
    before = peak.now()
    split = SplitModel(build(spec, device, only=kept), structure)
    batch = split.batch(spec.seed)
    adapters = [p for p in split.adapters() if not p.is_meta]
    optimizer = torch.optim.AdamW(adapters, lr=1e-4)

    def made(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, device=device, dtype=dtype).normal_(0.0, 0.02)

    def step() -> None:
        if cut is None:
            split.whole(batch).backward()
        elif side == "device":
            state = split.device_half(batch, cut)
            gradients = {name: made(shape, dtype) for name, (shape, dtype, needed) in crossing.items() if needed}
            split.backward(state, gradients)
        else:
            leaves = {n: made(shape, dtype).requires_grad_(needed) for n, (shape, dtype, needed) in crossing.items()}
            split.backward(split.server_half(batch, cut, leaves))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    gc.collect()
    built = peak.now()
    peak.reset()
    for _ in range(2):  # the moments are there from the second on
        step()
    highest = peak.highest()
    return {"peak_bytes": highest - before, "built_bytes": built - before, "before_bytes": before}


def _main(what: str) -> int:
    """The program behind ``_in_fresh_process``; exit codes as in the rest of the toolkit."""
    tasks = {"half": _measure_here, "workspace": _workspace_here}
    try:
        answer = tasks[what](json.load(sys.stdin))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except MissingHardware as error:
        print(error, file=sys.stderr)
        return 3
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
