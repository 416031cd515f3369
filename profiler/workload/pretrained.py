"""Where a model comes from: a preset, a Hugging Face id, a local directory, or a GGUF file.

Weights are read from safetensors and GGUF alone: nothing received is ever unpickled, and no code that comes with a model is run.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from profiler.profile import BadInput, MissingHardware
from profiler.workload.holding import Weights, gguf_weights, safetensors_weights

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HUB_TIMEOUT_S = 5.0
_GGUF_CONFIGS: dict[tuple[str, int, int], Any] = {}


@lru_cache(maxsize=1)
def presets() -> dict[str, dict[str, Any]]:
    """The architectures that ship: name -> ``source``, ``parameters``, ``model_type``, ``config`` (and batch, sequence)."""
    path = Path(__file__).with_name("presets.json")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Source:
    """One place a model comes from: ``config`` reads its architecture, ``load`` its weights (unless they are random).

    ``single`` gives a reader of single parameters for a model without adapters, or the reason why there is none.
    """

    name: str
    config: Callable[[Any], Any]
    load: Callable[[Any, Any, str], Any]
    random: bool = False
    single: Callable[[Any], Weights | str] = lambda _model: "it has no files"


def resolve(model: str) -> Source:
    """Find out what ``--model`` names: a preset, a path, or a Hugging Face id, in this order."""
    if model in presets():
        preset = presets()[model]

        def preset_config(transformers: Any) -> Any:
            # A copy, for transformers completes nested dictionaries in place.
            return transformers.AutoConfig.for_model(preset["model_type"], **json.loads(json.dumps(preset["config"])))

        return Source(model, preset_config, _no_weights, random=True)
    path = Path(os.path.expanduser(model))  # Path's own raises where there is no such user
    if path.exists():
        return _local(path)
    looks_local = model.startswith((".", "/", "~")) or model.endswith(".gguf") or "\\" in model
    if looks_local or not _MODEL_ID.fullmatch(model):
        raise BadInput(f"--model {model}: no such file or directory; {_known()}")
    return _pretrained(model, model.rsplit("/", 1)[-1] if model.count("/") > 1 else model, {})


def _known() -> str:
    return f"expected a Hugging Face id, a local directory or GGUF file, or a preset: {', '.join(presets())}"


def _no_weights(transformers: Any, config: Any, dtype: str) -> Any:
    raise AssertionError("a preset has no weights to load")


def _local(path: Path) -> Source:
    name = path.resolve().stem if path.is_file() else path.resolve().name
    if path.is_file():
        if path.suffix != ".gguf":
            raise BadInput(f"--model {path}: expected a directory with config.json and safetensors, or a .gguf file")
        return _gguf(path, name)
    has = {
        suffix: sorted(path.glob(f"*{suffix}")) for suffix in (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
    }
    if not (path / "config.json").is_file() or not has[".safetensors"]:
        if len(has[".gguf"]) == 1:
            return _gguf(has[".gguf"][0], name)
        if has[".gguf"]:
            found = ", ".join(p.name for p in has[".gguf"])
            raise BadInput(f"--model {path}: several GGUF files ({found}); name the one to use")
    if not (path / "config.json").is_file():
        raise BadInput(f"--model {path}: no config.json and no .gguf file in this directory")
    if not has[".safetensors"]:
        pickled = [p.name for s in (".bin", ".pt", ".pth", ".ckpt") for p in has[s]]
        if pickled:
            raise BadInput(
                f"--model {path}: its weights are pickled ({pickled[0]}), which could run code when read; "
                "expected .safetensors (convert them where you trust them)"
            )
        raise BadInput(f"--model {path}: no weights, expected .safetensors or .gguf in this directory")
    return _pretrained(str(path), name, {"local_files_only": True})


def _gguf(path: Path, name: str) -> Source:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise MissingHardware(
            f"--model {path}: reading GGUF needs the package gguf: pip install 'card-profile[gguf]'"
        ) from None
    return _pretrained(str(path.parent), name, {"gguf_file": path.name, "local_files_only": True})


def _pretrained(where: str, name: str, options: dict[str, Any]) -> Source:
    def call(what: Callable[..., Any], **more: Any) -> Any:
        local = {"local_files_only": True} if not _hub_reachable() else {}
        try:
            with quiet():
                return what(where, trust_remote_code=False, **{**local, **options, **more})
        except BadInput:
            raise
        except Exception as error:  # a damaged file makes the readers raise whatever they met first
            raise BadInput(f"--model {where}: {reason_of(error, bool(local) and not options)}") from None

    def config(transformers: Any) -> Any:
        if "gguf_file" not in options:
            return call(transformers.AutoConfig.from_pretrained)
        # Reading one out of a GGUF file takes seconds (the vocabulary is parsed with it), and every build asks for it.
        path = Path(where) / options["gguf_file"]
        at = path.stat()
        key = (str(path.resolve()), at.st_mtime_ns, at.st_size)
        if key not in _GGUF_CONFIGS:
            _GGUF_CONFIGS[key] = call(transformers.AutoConfig.from_pretrained)
        return copy.deepcopy(_GGUF_CONFIGS[key])

    def load(transformers: Any, config: Any, dtype: str) -> Any:
        weights = {} if "gguf_file" in options else {"use_safetensors": True}
        model, found = call(
            auto_class(transformers, config, where).from_pretrained,
            config=config,
            output_loading_info=True,
            **weights,
            **dtype_argument(transformers, dtype),
        )
        missing = sorted(found["missing_keys"])
        if missing:
            raise BadInput(
                f"--model {where}: its files hold no weights for {missing[0]}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
                + "; expected all that its configuration asks for"
            )
        return model

    def single(model: Any) -> Weights | str:
        if "gguf_file" in options:
            return gguf_weights(model, Path(where) / options["gguf_file"])
        found = _stored_names(where)
        return found if isinstance(found, str) else safetensors_weights(model, *found)

    return Source(name, config, load, single=single)


def _stored_names(where: str) -> tuple[dict[str, str], Callable[[str], Path]] | str:
    """(file of every tensor in a safetensors checkpoint, how to get at a file), or why that cannot be told."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    @cache
    def locate(file: str) -> Path:
        local = Path(where).expanduser() / file
        if local.is_file():
            return local
        only = {} if _hub_reachable() else {"local_files_only": True}
        with quiet():
            return Path(str(cached_file(where, file, **only)))

    try:
        try:
            file = locate("model.safetensors")
        except Exception:  # the library's own kinds of "not there"
            index = json.loads(locate("model.safetensors.index.json").read_text(encoding="utf-8"))
            return {str(name): Path(str(file)).name for name, file in index["weight_map"].items()}, locate
        with safe_open(file, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), "model.safetensors"), locate
    except Exception as error:  # whatever a damaged file makes the readers raise; reading the whole will say it better
        return f"no index of its safetensors files could be read ({type(error).__name__})"


def reason_of(error: Exception, offline: bool) -> str:
    """One clear line for whatever the library raised."""
    text = " ".join(str(error).split())
    if offline:
        return f"not in the local cache, and the Hugging Face hub cannot be reached from here; {_known()}"
    if "trust_remote_code" in text or "custom code" in text:
        return "this model brings code of its own, which is never run; expected an architecture that transformers knows"
    if "safetensors" in text:
        return "no safetensors weights there; pickled weights are never read (they could run code)"
    return text[:300] or type(error).__name__


@lru_cache(maxsize=1)
def _hub_reachable() -> bool:
    """One quick try, so that a machine without a network answers at once instead of retrying for minutes."""
    import socket
    from urllib.parse import urlsplit

    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy resolves the name, we cannot
    from huggingface_hub.constants import ENDPOINT

    end = urlsplit(ENDPOINT)
    try:
        port = end.port or (80 if end.scheme == "http" else 443)
        with socket.create_connection((end.hostname or "", port), timeout=_HUB_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def libraries() -> tuple[Any, Any]:
    """torch and transformers, imported late: they take seconds."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(int(_HUB_TIMEOUT_S)))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else a thread asks the hub to convert weights
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader's own bar ignores the library's settings
    try:
        import peft  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        raise MissingHardware(
            f"profiling layers needs the package {error.name}: pip install 'card-profile[profile]' "
            "(on a Jetson keep NVIDIA's torch: use a virtual environment with --system-site-packages)"
        ) from None
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.utils.logging.set_verbosity_error()
    return torch, transformers


@contextmanager
def quiet() -> Iterator[None]:
    """The library's progress bars are not part of our output."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    # The GGUF reader's own bar minds no setting, but one that is made before anything has imported tqdm, as torch does.
    reader: Any = sys.modules.get("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(reader, "tqdm", None)
    if bar is not None:
        reader.tqdm = lambda iterable, **_: iterable
    try:
        yield
    finally:
        if bar is not None:
            reader.tqdm = bar
        if shown:
            logging.enable_progress_bar()


def auto_class(transformers: Any, config: Any, name: str) -> Any:
    """The class with a language-model head and loss. Raises BadInput where transformers has none for this architecture."""
    if getattr(config, "is_encoder_decoder", False):
        auto, mapping = transformers.AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    else:
        auto, mapping = transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise BadInput(
            f"--model {name}: {type(config).__name__} cannot be cut: looked for a class with a language-model head in "
            f"transformers ({auto.__name__}), found none; expected a decoder-only or encoder-decoder language model"
        )
    return auto


def dtype_argument(transformers: Any, dtype: str) -> dict[str, Any]:
    """The argument that sets a new model's dtype, as this release of transformers calls it."""
    import torch

    version = tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2])
    return {"dtype" if version >= (4, 56) else "torch_dtype": getattr(torch, dtype)}
