"""Which parameters a process really holds: base weights are read one by one, when they are needed.

A model is built with every parameter on the meta device (a shape without memory) and every buffer real. ``hold`` then makes exactly the
named parameters real and lets go of all others, so that a process with the first layers of a split never has the memory of the rest,
not even while it starts or when the cut moves.

    preset        each parameter is made by itself; its values do not depend on what else is held
    safetensors   each parameter is read by its name, some rows at a time, and the file is not kept mapped
    GGUF          the same, de-quantized some rows at a time, where transformers' rules for that architecture work on single tensors
    otherwise     the whole model is read, what is needed is copied, the rest is dropped; ``Weights.note`` says so and why
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from profiler.profile import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

_CHUNK_BYTES = 16 * 1024 * 1024

Read = Callable[[str, Any], None]
"""(name of a base parameter, tensor on the CPU to fill): the values, at the tensor's own dtype."""

Rows = Callable[[str, Any, "list[int]"], Any]
"""(name of a base parameter, a tensor of its shape and dtype, row numbers): those rows of its first dimension."""


class Weights(Protocol):
    """Where base weights come from. ``note``: one line for people where the whole model has to be read, else None."""

    note: str | None

    def open(self) -> Any:
        """A context manager that gives a ``Read``."""

    def rows(self) -> Any:
        """A context manager that gives a ``Rows``."""


def base_name(path: str) -> str:
    """A parameter's name in the base model, from its path in a model with adapters."""
    return path.replace(".base_layer.", ".")


@contextmanager
def hollow() -> Iterator[None]:
    """Inside, every parameter of a new module of this thread is on the meta device; buffers are real, for they are computed and not read.

    One thread at a time, as ``model.build`` sees to: the class itself is changed, and two that give it back in the wrong order would
    leave it changed.
    """
    from torch import nn

    register, here = nn.Module.register_parameter, threading.get_ident()

    def without_memory(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None and not parameter.is_meta and threading.get_ident() == here:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = without_memory  # type: ignore[method-assign, unused-ignore]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign, unused-ignore]


def hold(model: nn.Module, weights: Weights, names: Collection[str], device: str, seed: int = 0) -> None:
    """Make exactly the parameters in ``names`` real, on ``device``; all others lose their memory. Buffers are moved there too.

    What is held already stays as it is. New base parameters are read from ``weights``; new adapters begin as fresh ones (A uniform as
    peft makes it, B zero), by a seed of their own, whatever else is held. A tied parameter is one, by all its names.
    Raises BadInput where the weights cannot be read.
    """
    import torch

    wanted = set(names)
    fresh: list[tuple[list[str], Any]] = []
    for paths, parameter in _parameters(model):
        if not wanted.isdisjoint(paths):
            if parameter.is_meta:
                fresh.append((paths, parameter))
            elif parameter.device.type != torch.device(device).type:
                _put(model, paths, parameter.detach().to(device), parameter.requires_grad)
        elif not parameter.is_meta:
            _put(model, paths, torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    for paths, parameter in fresh:
        if parameter.requires_grad:
            _put(model, paths, _fresh_adapter(paths[0], parameter, seed).to(device), True)
    if all(parameter.requires_grad for _, parameter in fresh):
        return
    with weights.open() as read:
        for paths, parameter in fresh:
            if not parameter.requires_grad:
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                read(base_name(paths[0]), value)
                _put(model, paths, value.to(device), False)


def fingerprint(model: nn.Module, weights: Weights | None, count: int = 16) -> str:
    """Digest over names, shapes and some values of every base weight, from all over it, whether it is held or not.

    Two machines get the same one if they have the same base weights at the same dtype, whatever layers they hold. ``weights`` None: all
    are held.
    """
    import torch

    digest = hashlib.sha256()

    def add(name: str, parameter: Any, values: Any) -> None:
        digest.update(json.dumps([name, list(parameter.shape)]).encode())
        digest.update(values.to("cpu", parameter.dtype).contiguous().view(torch.uint8).numpy().tobytes())

    base = [(base_name(paths[0]), p) for paths, p in _parameters(model) if not p.requires_grad]
    if weights is None or not any(p.is_meta for _, p in base):
        for name, parameter in base:
            rows, columns = _places(parameter, count)
            add(name, parameter, parameter.detach().reshape(parameter.shape[0], -1)[rows, columns])
        return digest.hexdigest()
    with weights.rows() as take:
        for name, parameter in base:
            rows, columns = _places(parameter, count)
            values = take(name, parameter, rows) if parameter.is_meta else parameter.detach()[rows]
            add(name, parameter, values.reshape(len(rows), -1)[list(range(len(rows))), columns])
    return digest.hexdigest()


def _places(parameter: Any, count: int) -> tuple[list[int], list[int]]:
    """(rows, columns) of the samples, spread over a parameter seen as a matrix."""
    rows, columns = parameter.shape[0], parameter[0].numel()
    count = min(count, rows)
    return [k * rows // count for k in range(count)], [(k * columns // count + k) % columns for k in range(count)]


def _parameters(model: nn.Module) -> list[tuple[list[str], Any]]:
    """(all its names, parameter) for each parameter of a model once."""
    found: dict[int, tuple[list[str], Any]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), ([], parameter))[0].append(path)
    return list(found.values())


def persistent_buffers(model: nn.Module) -> dict[str, Any]:
    """The buffers that a checkpoint holds (most are computed anew)."""
    buffers = dict(model.named_buffers())
    return {name: buffers[name] for name in model.state_dict(keep_vars=True) if name in buffers}


def _put(model: nn.Module, paths: list[str], value: torch.Tensor, requires_grad: bool) -> None:
    from torch import nn

    parameter = nn.Parameter(value, requires_grad=requires_grad)
    for path in paths:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, parameter)


def _fresh_adapter(path: str, like: torch.Tensor, seed: int) -> torch.Tensor:
    import torch

    value = torch.zeros(like.shape, dtype=like.dtype)
    if ".lora_A." in path:
        own = int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:7], "big")
        bound = like.shape[1] ** -0.5  # kaiming_uniform_ with a = sqrt(5)
        value.uniform_(-bound, bound, generator=torch.Generator().manual_seed(own))
    return value


# --- presets ----------------------------------------------------------------------------------------------------------


class RandomWeights:
    """A preset's weights: one small normal buffer, tiled. Norms are 1 and biases 0, as in a fresh model.

    The values only need to be harmless (no denormals, no overflow): the time of a kernel does not depend on them. Those of one parameter
    depend on the seed alone.
    """

    note: str | None = None

    def __init__(self, seed: int) -> None:
        import torch

        # A prime length, so that the rows of a matrix differ.
        self._small = torch.randn(99_991, generator=torch.Generator().manual_seed(seed)) * 0.02
        self._tiles: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    @contextmanager
    def open(self) -> Iterator[Read]:
        """See ``Weights``."""
        yield self.fill

    @contextmanager
    def rows(self) -> Iterator[Rows]:
        """See ``Weights``; rows of matrices are looked up in the tile."""

        def take(name: str, like: Any, rows: list[int]) -> Any:
            import torch

            if like.dim() < 2:
                value = torch.empty(len(rows), dtype=like.dtype)
                self.fill(name, value)
                return value
            columns = like[0].numel()
            places = torch.tensor(rows)[:, None] * columns + torch.arange(columns)
            return self._small.to(like.dtype)[places % self._small.numel()]

        yield take

    def fill(self, name: str, into: Any) -> None:
        """Write the values of parameter ``name`` into a tensor on any device."""
        import torch

        with torch.no_grad():
            if into.dim() < 2:
                into.fill_(0.0 if name.endswith("bias") else 1.0)
                return
            key = (into.device, into.dtype)
            if key not in self._tiles:
                self._tiles[key] = self._small.to(*key)
            tile, flat = self._tiles[key], into.view(-1)
            whole = flat.numel() // tile.numel() * tile.numel()
            if whole:
                flat[:whole].view(-1, tile.numel()).copy_(tile)
            flat[whole:].copy_(tile[: flat.numel() - whole])


# --- files ------------------------------------------------------------------------------------------------------------


class SafetensorsWeights:
    """Parameters read one by one from safetensors files, by name.

    ``keys``: for each parameter of the base model its name in the files; ``files``: for each such name its file (``locate`` finds it on this
    machine, and may have to fetch it).
    """

    note: str | None = None

    def __init__(self, keys: Mapping[str, str], files: Mapping[str, str], locate: Callable[[str], Path]) -> None:
        self._keys, self._files, self._locate = dict(keys), dict(files), locate

    @contextmanager
    def open(self) -> Iterator[Read]:
        """See ``Weights``. A file is opened again for each piece: what is mapped counts as memory of the process as long as it is open."""

        def read(name: str, into: Any) -> None:
            rows = max(1, _CHUNK_BYTES // max(1, into[0].numel() * into.element_size())) if into.dim() else 1
            for first in range(0, into.shape[0], rows):
                with self._piece(name, into) as piece:
                    into[first : first + rows].copy_(piece[first : first + rows])

        yield read

    @contextmanager
    def rows(self) -> Iterator[Rows]:
        """See ``Weights``."""
        import torch

        def take(name: str, like: Any, rows: list[int]) -> Any:
            with self._piece(name, like) as piece:
                return torch.stack([piece[row : row + 1][0].to(like.dtype) for row in rows])

        yield take

    @contextmanager
    def _piece(self, name: str, like: Any) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        key = self._keys[name]
        path = self._locate(self._files[key])
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                piece = file.get_slice(key)
                if list(piece.get_shape()) != list(like.shape):
                    raise BadInput(
                        f"{path}: {key} is {piece.get_shape()}, its configuration asks for {list(like.shape)}"
                    )
                yield piece
        except (SafetensorError, OSError, KeyError) as error:
            raise BadInput(f"{path}: {key} cannot be read: {' '.join(str(error).split())[:200]}") from None


def safetensors_weights(
    model: nn.Module, files: Mapping[str, str], locate: Callable[[str], Path]
) -> SafetensorsWeights | str:
    """The reader for ``model`` (without adapters), or the reason why its parameters cannot be read one by one.

    ``files``: for every name in the checkpoint the file that holds it. Names are those of the model, or of the model without its head.
    """
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    forms: list[Callable[[str], str]] = [lambda n: n]
    if prefix:
        forms += [lambda n: n.removeprefix(prefix + "."), lambda n: f"{prefix}.{n}"]
    missing = ""
    for form in forms:
        keys = {}
        for paths in [*(paths for paths, _ in _parameters(model)), *([name] for name in persistent_buffers(model))]:
            found = [form(path) for path in paths if form(path) in files]
            if not found:
                missing = missing or paths[0]
                break
            keys[paths[0]] = found[0]
        else:
            return SafetensorsWeights(keys, files, locate)
    return f"its files name their tensors otherwise than the model ({missing} is not among them)"


_PLAIN_PROCESSORS = {"TensorProcessor", "LlamaTensorProcessor", "Gemma2TensorProcessor", "NemotronTensorProcessor"}
"""Rules of transformers for GGUF tensors that look at one tensor by itself."""


class GgufWeights:
    """Parameters read one by one from a GGUF file and de-quantized, with transformers' own names and rules.

    ``stored``: for each parameter of the base model (its name in the file, offset in bytes, dtype and shape there, kind of quantization).
    """

    note: str | None = None

    def __init__(
        self, path: Path, stored: Mapping[str, tuple[str, int, Any, tuple[int, ...], Any]], rules: Any
    ) -> None:
        self._path, self._stored, self._rules = path, dict(stored), rules

    @contextmanager
    def open(self) -> Iterator[Read]:
        """See ``Weights``."""

        def read(name: str, into: Any) -> None:
            if not self._by_rows(name):
                into.copy_(self._whole(name, into))
                return
            rows = max(1, _CHUNK_BYTES // max(1, 4 * into[0].numel()))
            for first in range(0, into.shape[0], rows):
                into[first : first + rows].copy_(self._part(name, slice(first, first + rows)))

        yield read

    @contextmanager
    def rows(self) -> Iterator[Rows]:
        """See ``Weights``."""

        def take(name: str, like: Any, rows: list[int]) -> Any:
            return (self._part(name, rows) if self._by_rows(name) else self._whole(name, like)[rows]).to(like.dtype)

        yield take

    def _by_rows(self, name: str) -> bool:
        """Whether no rule touches it: the large ones."""
        return self._stored[name][0] in ("token_embd.weight", "output.weight")

    def _part(self, name: str, rows: Any) -> Any:
        import torch
        from gguf import dequantize

        return torch.from_numpy(np.array(dequantize(self._mapped(name)[rows], self._stored[name][4])))

    def _whole(self, name: str, like: Any) -> Any:
        import torch
        from gguf import dequantize

        key, _, _, _, kind = self._stored[name]
        weights = dequantize(self._mapped(name), kind)
        done = self._rules.process(weights=weights, name=key, tensor_key_mapping={}, parsed_parameters={}).weights
        if tuple(done.shape) != tuple(like.shape):
            raise BadInput(f"{self._path}: {key} is {list(done.shape)}, its configuration asks for {list(like.shape)}")
        return torch.from_numpy(np.array(done))

    def _mapped(self, name: str) -> Any:
        key, offset, dtype, shape, _ = self._stored[name]
        try:
            return np.memmap(self._path, dtype=dtype, mode="r", offset=offset, shape=shape)
        except (OSError, ValueError) as error:
            raise BadInput(f"{self._path}: {key} cannot be read: {error}") from None


def gguf_weights(model: nn.Module, path: Path) -> GgufWeights | str:
    """The reader for ``model`` (without adapters), or the reason why its parameters cannot be read one by one."""
    try:
        from gguf import GGUFReader
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        reader = GGUFReader(str(path))
        stored = {
            t.name: (t.name, int(t.data_offset), t.data.dtype, tuple(t.data.shape), t.tensor_type)
            for t in reader.tensors
        }
        field = reader.fields["general.architecture"]
        architecture = bytes(field.parts[field.data[0]]).decode()
        kind = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        if kind.__name__ not in _PLAIN_PROCESSORS:
            return f"{kind.__name__} of transformers does not work on single tensors"
        processor = kind(config=model.config.to_dict())
        names = {hf: gguf for gguf, hf in get_gguf_hf_weights_map(model, processor).items() if gguf in stored}
    except (ImportError, AttributeError, TypeError, KeyError, NotImplementedError) as error:
        return f"this release of transformers or gguf has no rules for single tensors ({type(error).__name__})"
    if persistent_buffers(model):
        return "its buffers are part of its weights"
    chosen = {}
    for paths, _ in _parameters(model):
        found = [names[path] for path in paths if path in names]
        if not found:
            return f"its file names its tensors otherwise than the model ({paths[0]} is not among them)"
        chosen[paths[0]] = stored[found[0]]
    return GgufWeights(path, chosen, processor)


class WholeWeights:
    """The way of last resort: the whole model is read each time, and dropped when what is needed has been copied."""

    def __init__(self, load: Callable[[], Any], why: str) -> None:
        self._load = load
        self.note: str | None = f"the whole model is read whenever layers are needed, and the rest dropped: {why}"

    @contextmanager
    def open(self) -> Iterator[Read]:
        """See ``Weights``."""
        values = dict(self._load().named_parameters(remove_duplicate=False))
        yield lambda name, into: into.copy_(values[name].detach())
        values.clear()

    @contextmanager
    def rows(self) -> Iterator[Rows]:
        """See ``Weights``."""
        values = dict(self._load().named_parameters(remove_duplicate=False))
        yield lambda name, like, rows: values[name].detach()[rows].to(like.dtype)
        values.clear()


def keep_in_float32(model: nn.Module, dtype: str) -> None:
    """Some models ask that some of their parameters stay in float32; transformers minds it when it loads them, and so do we."""
    import torch

    asked = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == "float16":
        asked |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if not asked or dtype == "float32":
        return
    pattern = re.compile("|".join(rf"((^|\.){re.escape(name)}($|\.))" for name in sorted(asked)))
    for paths, parameter in _parameters(model):
        if any(pattern.search(path) for path in paths):
            _put(model, paths, torch.empty_like(parameter, dtype=torch.float32), parameter.requires_grad)
