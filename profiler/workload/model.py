"""Build the model that is profiled: a transformer with LoRA adapters on frozen base weights.

A preset's architecture ships with the toolkit and its weights are random: time, memory, FLOPs and sizes do not depend on their
values. For all other places a model comes from see ``pretrained``.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from profiler.profile import BadInput
from profiler.workload.holding import (
    RandomWeights,
    Weights,
    WholeWeights,
    hold,
    hollow,
    keep_in_float32,
    persistent_buffers,
)
from profiler.workload.pretrained import (
    Source,
    auto_class,
    dtype_argument,
    libraries,
    presets,
    quiet,
    reason_of,
    resolve,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Short names of the dtypes that a base model may have."""

FUSED_ATTENTION = "card_profile_fused"
"""Name of the attention that models on the meta device use (see ``_register_fused_attention``)."""

_BATCH_SIZE, _SEQ_LEN = 8, 512

_BUILDING = threading.RLock()
"""Held while a model is built: torch's seed, its default dtype and how a module registers parameters belong to the whole process."""


@dataclass(frozen=True)
class WorkloadSpec:
    """What is trained. Raises BadInput, naming the option, for a value that makes no sense.

    ``batch_size`` and ``seq_len`` (tokens) default to the preset's own where it has any, else to 8 and 512; rank 4, alpha 32
    with them are SplitLoRA's published defaults. ``lora_targets`` None: the query and value projections, found by structure.
    """

    model: str
    batch_size: int | None = None
    seq_len: int | None = None
    dtype: str = "float32"
    lora_rank: int = 4
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] | None = None
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        preset = presets().get(self.model, {})
        if self.batch_size is None:
            put("batch_size", preset.get("batch_size", _BATCH_SIZE))
        if self.seq_len is None:
            put("seq_len", preset.get("seq_len", _SEQ_LEN))
        put("dtype", DTYPES.get(self.dtype, self.dtype))
        if self.dtype not in DTYPES.values():
            raise BadInput(f"--dtype {self.dtype}: expected float32, bfloat16 or float16 (or fp32, bf16, fp16)")
        for option, least, value in (
            ("--batch-size", 1, self.batch_size),
            ("--seq-len", 2, self.seq_len),  # the loss compares each token with the next one
            ("--lora-rank", 1, self.lora_rank),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 2**20:
                raise BadInput(f"{option} {value}: expected a whole number, {least} or more (and at most {2**20})")
        if not (isinstance(self.lora_alpha, (int, float)) and 0 < self.lora_alpha < math.inf):
            raise BadInput(f"--lora-alpha {self.lora_alpha}: expected a positive number")
        if self.lora_targets is not None:
            put("lora_targets", tuple(self.lora_targets))
            if not self.lora_targets or not all(isinstance(t, str) and t for t in self.lora_targets):
                raise BadInput("--lora-targets: expected names of linear layers, separated by commas")

    @property
    def batch(self) -> int:
        """Mini-batch size: ``batch_size`` with its default filled in."""
        assert self.batch_size is not None
        return self.batch_size

    @property
    def tokens(self) -> int:
        """Tokens in a sequence: ``seq_len`` with its default filled in."""
        assert self.seq_len is not None
        return self.seq_len


@dataclass(frozen=True)
class BuiltModel:
    """A model with LoRA, ready to train: base frozen, adapters trainable, every dropout at 0, training mode, no cache.

    ``name`` is what profiles compare: the preset, the Hugging Face id, or the name of the local directory or file.
    ``parameters`` counts the base, a tied tensor once. ``weights`` is where more of it can be read from, for a model that was built with
    a part of its parameters (see ``holding.hold``).
    """

    model: nn.Module
    spec: WorkloadSpec
    config: Any
    device: str
    name: str
    architecture: str
    parameters: int
    trainable_parameters: int
    lora_targets: tuple[str, ...]
    hidden_size: int
    vocab_size: int
    weights: Weights | None = None


def build(spec: WorkloadSpec, device: str = "cpu", only: Collection[str] | None = None) -> BuiltModel:
    """Build ``spec``'s model with its adapters on ``device`` (a torch device; ``meta`` holds shapes and no values).

    ``only``: names of the parameters to hold; all others stay on the meta device and take no memory, not for a moment where parameters
    can be read one by one (``holding``). A process that runs one half of a split passes the names that
    ``cuts.SplitModel.half_parameters`` gives, and later ``holding.hold`` others. Threads that build wait for one another.
    Raises BadInput for a model that is unknown, unreachable, quantized, pickled, or has no place for the adapters.
    """
    with _BUILDING:
        return _build(spec, device, only)


def _build(spec: WorkloadSpec, device: str, only: Collection[str] | None) -> BuiltModel:
    torch, transformers = libraries()
    if device == "meta":
        _register_fused_attention()
    torch.manual_seed(spec.seed)
    source = resolve(spec.model)
    config = source.config(transformers)
    try:
        _prepare_config(config, spec)
    except BadInput:
        raise
    except Exception as error:  # the library checks a configuration also when a field is set
        raise BadInput(f"--model {spec.model}: {reason_of(error, False)}") from None
    in_parts = only is not None and device != "meta"
    weights: Weights | None = RandomWeights(spec.seed) if source.random else None
    if device == "meta" or source.random or in_parts:
        model = _empty_model(transformers, config, spec, device, in_parts)
    else:
        model = source.load(transformers, config, spec.dtype).to(device)
    if in_parts and not source.random:
        model, weights = _with_reader(source, model, lambda: source.load(transformers, config, spec.dtype), spec)
    base_parameters = sum(p.numel() for p in model.parameters())
    targets = spec.lora_targets or _default_targets(model)
    model = _add_adapters(model, spec, targets)
    if in_parts:
        assert only is not None
        assert weights is not None
        hold(model, weights, only, device, spec.seed)
    elif device != "meta" and weights is not None:
        _fill(model, weights)
    if spec.gradient_checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise BadInput(f"--gradient-checkpointing: {type(model).__name__} does not support it")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    text = _text_config(config)
    return BuiltModel(
        model=model,
        spec=spec,
        config=config,
        device=device,
        name=source.name,
        architecture=type(model).__name__,
        parameters=base_parameters,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        lora_targets=tuple(targets),
        hidden_size=int(text.hidden_size),
        vocab_size=int(text.vocab_size),
        weights=weights if in_parts else None,
    )


# --- architecture and weights -----------------------------------------------------------------------------------------


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _prepare_config(config: Any, spec: WorkloadSpec) -> None:
    """Refuse what cannot be profiled; no dropout (halves and whole must agree bit for bit) and no key-value cache."""
    if getattr(config, "quantization_config", None) is not None:
        raise BadInput(f"--model {spec.model}: its base is quantized, which is not supported; use the original weights")
    for key, value in list(config.to_dict().items()):
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    config.use_cache = False
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        # T5's own rule, which newer releases of transformers no longer write down for it.
        config.decoder_start_token_id = getattr(config, "pad_token_id", None) or 0
    longest = getattr(_text_config(config), "max_position_embeddings", None)
    if isinstance(longest, int) and spec.tokens > longest:
        raise BadInput(f"--seq-len {spec.tokens}: {spec.model} has positions for {longest} tokens at most")


def _empty_model(transformers: Any, config: Any, spec: WorkloadSpec, device: str, without_memory: bool) -> Any:
    """The architecture with memory that nothing has been written to (so that a large model is there in a second).

    ``without_memory``: only its buffers have any, on the CPU.
    """
    import torch

    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers 4
        from transformers.modeling_utils import no_init_weights

    auto = auto_class(transformers, config, spec.model)
    try:
        where, parameters = ("cpu", hollow()) if without_memory else (device, nullcontext())
        with torch.device(where), no_init_weights(), quiet(), parameters:
            model = auto.from_config(config, **dtype_argument(transformers, spec.dtype))
    except Exception as error:
        raise BadInput(f"--model {spec.model}: its configuration makes no model: {reason_of(error, False)}") from None
    if device == "meta":
        # An encoder and a decoder have a configuration each. Attention that is not sdpa stays what it is anywhere.
        for module in model.modules():
            part = getattr(module, "config", None)
            if part is not None and getattr(part, "_attn_implementation", None) == "sdpa":
                part._attn_implementation = FUSED_ATTENTION
            if hasattr(module, "inv_freq"):
                module.forward = _without_autocast(module.forward)
    model.tie_weights()
    return model


def _with_reader(source: Source, model: Any, load: Callable[[], Any], spec: WorkloadSpec) -> tuple[Any, Weights]:
    """A model without memory, and what reads its parameters one by one; where that cannot be, the whole is read and then dropped."""
    keep_in_float32(model, spec.dtype)
    found = source.single(model)
    buffers = persistent_buffers(model)
    if not buffers:
        return model, WholeWeights(load, found) if isinstance(found, str) else found
    if isinstance(found, str):
        return load(), WholeWeights(load, found)
    with found.open() as read:
        for name, buffer in buffers.items():
            read(name, buffer)
    return model, found


def _without_autocast(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Position embeddings switch autocast off while they are computed. In transformers 4 they ask for it by the device's name,
    and torch knows no autocast for meta; where none is on, leaving it out is the same."""
    import torch

    def quietly(*args: Any, **kwargs: Any) -> Any:
        before, torch.autocast = torch.autocast, lambda *_args, **_kwargs: nullcontext()
        try:
            return forward(*args, **kwargs)
        finally:
            torch.autocast = before

    return quietly


def _fill(model: nn.Module, weights: Weights) -> None:
    """Write all base weights; tied ones once, and adapters were initialised by peft."""
    with weights.open() as fill:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                fill(name, parameter.detach())


# --- adapters ---------------------------------------------------------------------------------------------------------


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by path: ``nn.Linear``, and GPT-2's ``Conv1D``, which is one with its weight transposed."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {path: m for path, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}


def _features(linear: Any) -> tuple[int, int]:
    """(in, out) features of a linear layer or Conv1D."""
    if hasattr(linear, "in_features"):
        return int(linear.in_features), int(linear.out_features)
    return int(linear.weight.shape[0]), int(linear.weight.shape[1])


def _default_targets(model: nn.Module) -> tuple[str, ...]:
    """The query and value projections; where they are fused in one matrix with the key, that matrix.

    An attention block is a module with linear children of which at least three (q, k, v) take the hidden state, or one whose
    output is that of the three together.
    """
    blocks: dict[str, dict[str, nn.Module]] = {}
    for path, linear in _linear_layers(model).items():
        parent, _, name = path.rpartition(".")
        if re.search(r"\.\d+\.", f".{path}."):  # inside a repeated layer
            blocks.setdefault(parent, {})[name] = linear
    found: set[str] = set()
    for parent, children in blocks.items():
        if "att" not in (parent.lower() + type(model.get_submodule(parent)).__name__.lower()):
            continue
        separate = {
            n for n in children if n.lower().startswith(("q", "v")) and not n.lower().startswith(("qkv", "query_key"))
        }
        if {n[0].lower() for n in separate} == {"q", "v"}:
            found |= separate
        else:
            widths = {n: _features(m) for n, m in children.items()}
            found |= {n for n, (inside, outside) in widths.items() if outside > inside}
    if not found:
        names = sorted({p.rpartition(".")[2] for p in _linear_layers(model)})
        raise BadInput(
            "--lora-targets: no query and value projections found by structure in "
            f"{type(model).__name__}; name them among its linear layers: {', '.join(names) or 'it has none'}"
        )
    return tuple(sorted(found))


def _add_adapters(model: nn.Module, spec: WorkloadSpec, targets: Collection[str]) -> Any:
    """LoRA in place, by peft: adapters in float32 on whatever base, the base frozen."""
    import torch
    from peft import LoraConfig, get_peft_model

    matches = {
        target: [m for path, m in _linear_layers(model).items() if path == target or path.endswith("." + target)]
        for target in targets
    }
    missing = [target for target, found in matches.items() if not found]
    if missing:
        names = sorted({p.rpartition(".")[2] for p in _linear_layers(model)})
        raise BadInput(f"--lora-targets {missing[0]}: no such linear layer; this model has {', '.join(names)}")
    config = LoraConfig(
        r=spec.lora_rank,
        lora_alpha=spec.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        # Conv1D keeps its weight as (in, out).
        fan_in_fan_out=all(not hasattr(m, "in_features") for found in matches.values() for m in found),
        bias="none",
    )
    device = next(model.parameters()).device
    with torch.device(device):
        wrapped = get_peft_model(model, config)
    return wrapped.get_base_model()


# --- attention without a machine --------------------------------------------------------------------------------------


def _register_fused_attention() -> None:
    """Give models on the meta device the attention that a real machine runs: one fused kernel.

    There torch takes scaled_dot_product_attention apart into products and a softmax, which would save the
    [batch, heads, tokens, tokens] matrix for the backward pass. The CPU's fused kernel has shapes and gradients on meta, so
    the model's own sdpa path runs with that kernel in its place. No mask is registered with it: without padding the causal
    flag says all, and building a mask would ask for values.
    """
    import torch
    import torch.nn.functional as functional
    from torch.overrides import TorchFunctionMode
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def fused(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -math.inf)
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output: torch.Tensor = operator(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
        return output

    class Fused(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is functional.scaled_dot_product_attention:
                return fused(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        with Fused():
            return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register(FUSED_ATTENTION, forward)
