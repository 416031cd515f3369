"""A run's state is whole or absent, whenever its writer dies; the adapters are a PEFT checkpoint."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("safetensors", reason="the [train] extra is not installed")
pytest.importorskip("torch", reason="the [train] extra is not installed")

import torch

from profiler.profile import BadInput
from profiler.workload.model import WorkloadSpec, build
from split import checkpoint
from split.checkpoint import RunFolder, RunState
from split.half import Half, Training
from tests.workload.families import FAMILIES, available, preset

CONFIG = {"peft_type": "LORA", "r": 4}


def tensors(number: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((300, 7), float(number)), "b": torch.full((5,), float(-number))}


def save(folder: RunFolder, number: int) -> None:
    state = RunState(run="r", round=number, steps={"one": 5 * number}, settings={"seed": 1, "rate": 0.1})
    folder.save(state, tensors(number), {"m.a": torch.full((3,), float(number))}, [{"round": number}])


def check(folder: RunFolder, at_least: int = 0) -> int:
    """The state is of one round in all its parts; which."""
    latest = folder.latest()
    if latest is None:
        assert at_least == 0
        assert list(folder.history()) == []
        return 0
    state, adapters, moments = latest
    assert state.round >= at_least
    assert all(torch.equal(adapters[n], t) for n, t in tensors(state.round).items())
    assert torch.equal(moments["m.a"], torch.full((3,), float(state.round)))
    assert [row["round"] for row in folder.history()] == list(range(1, state.round + 1))
    return state.round


def test_what_was_saved_comes_back_and_only_two_states_are_kept(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        assert folder.latest() is None
        for number in (1, 2, 3, 4):
            save(folder, number)
            assert check(folder) == number
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        assert check(folder) == 4
        state, _, _ = folder.latest() or pytest.fail("nothing there")
        assert state.settings == {"seed": 1, "rate": 0.1}
    assert sorted(p.name for p in (tmp_path / "run").glob("*-*")) == ["state-00000003", "state-00000004"]


def test_what_a_killed_process_left_half_written_is_taken_away(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG) as folder:
        save(folder, 1)
    whole = sorted(tmp_path.rglob("*"))
    (tmp_path / ".new-00000002").mkdir()
    for half in (
        ".new-00000002/adapters.safetensors",
        ".report.json.abc123_x.tmp",
        "adapter/.adapter_config.json.q0.tmp",
    ):
        (tmp_path / half).write_bytes(b"half")
    RunFolder(tmp_path, CONFIG).close()
    assert sorted(tmp_path.rglob("*")) == whole


def test_a_second_process_is_refused_and_told_who_has_the_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path), pytest.raises(BadInput, match=rf"in use by another run \(process {os.getpid()}\)"):
        RunFolder(tmp_path)
    RunFolder(tmp_path).close()


@pytest.mark.parametrize("name", ["adapters.safetensors", "moments.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "short", "gone", "empty"])
def test_a_damaged_state_is_told_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    with RunFolder(tmp_path, CONFIG) as folder:
        for number in (1, 2, 3):
            save(folder, number)
    path = tmp_path / "state-00000003" / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2 if damage == "short" else 0])
    said: list[str] = []
    with RunFolder(tmp_path, CONFIG, said.append) as folder:
        assert check(folder) == 2
        assert len(said) == 1
        assert "state-00000003" in said[0]
        save(folder, 3)
        save(folder, 4)
        assert check(folder) == 4
        stored = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
        assert stored == (tmp_path / "state-00000005" / "adapters.safetensors").read_bytes()
    assert (tmp_path / "damaged-00000003").is_dir()


def test_a_state_of_another_round_number_is_noticed(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        save(folder, 1)
        save(folder, 2)
    path = tmp_path / "state-00000002" / "state.json"
    document = json.loads(path.read_text())
    document["state"]["round"] = 7
    path.write_text(json.dumps(document))
    with RunFolder(tmp_path) as folder:
        assert check(folder) == 1


def test_no_whole_state_among_those_that_are_there_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        save(folder, 1)
    (tmp_path / "state-00000001" / "state.json").write_text("{}")
    with RunFolder(tmp_path) as folder, pytest.raises(BadInput, match="no whole state of the run"):
        folder.latest()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run")


class _PowerCut(BaseException):
    pass


def test_at_whatever_call_to_the_disk_the_writer_dies_a_whole_state_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is stopped before its k-th call that changes the disk, for every k of a save."""
    calls = left = 0

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls, left
            calls += 1
            left -= 1
            if left == 0:
                raise _PowerCut
            return real(*args, **kwargs)

        return call

    def cut_at(k: int, folder: Path) -> int:
        """Save rounds 1, 2 and 3, and die in the third; the round that is found then."""
        nonlocal calls, left
        with RunFolder(folder, CONFIG) as run:
            save(run, 1)
            save(run, 2)
            with monkeypatch.context() as patch:
                for name in ("fsync", "replace", "mkdir", "rename", "unlink", "rmdir"):
                    patch.setattr(os, name, counted(getattr(os, name)))
                patch.setattr(checkpoint, "_write", counted(checkpoint._write))
                calls, left = 0, k
                try:
                    save(run, 3)
                except _PowerCut:
                    run._lock, lock = -1, run._lock  # as in a process that is gone
                    os.close(lock)
        left = 0
        with RunFolder(folder, CONFIG) as run:
            found = check(run)
            if (folder / "adapter").exists():
                newest = sorted(folder.glob("state-*"))[-1]
                stored = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
                assert stored == (newest / "adapters.safetensors").read_bytes()
            save(run, found + 1)
            assert check(run) == found + 1
            assert not list(folder.glob(".new-*"))
        return found

    assert cut_at(0, tmp_path / "never") == 3
    total = calls
    assert total > 10
    found = [cut_at(k, tmp_path / str(k)) for k in range(1, total + 1)]
    assert set(found) == {2, 3}
    assert found == sorted(found)


def test_a_writer_that_is_killed_at_any_moment_loses_no_round_that_it_has_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(1)
    reached = 0
    for _ in range(20):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # only the folder is used here, and the child ends without any of pytest's clean-up
            try:
                os.close(reader)
                with RunFolder(tmp_path, CONFIG) as folder:
                    number = check(folder)
                    while True:
                        number += 1
                        save(folder, number)
                        os.write(writer, number.to_bytes(8, "big"))
            finally:
                os._exit(1)
        os.close(writer)
        time.sleep(chance.uniform(0.005, 0.12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself: it could not read what was there"
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        acknowledged = int.from_bytes(told[-8:], "big") if told else reached
        with RunFolder(tmp_path, CONFIG) as folder:
            reached = check(folder, acknowledged)
    assert reached > 5


# --- the adapters as a PEFT checkpoint --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_peft_loads_and_merges_the_adapters(family: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    with available():
        half = Half(WorkloadSpec(preset(family), batch_size=2, seq_len=8), "whole", training=Training("adamw", 0.05))
    ids = torch.randint(0, 97, (2, 8), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        half.unsplit(ids, ids)
        half.backward()
        half.step()
    with RunFolder(tmp_path / "run", half.peft_config()) as folder:
        folder.save(RunState(run="r", round=1), half.adapters("whole"), {})

    # The same base as a program that knows nothing of this toolkit would have it.
    base_weights = {
        n.replace(".base_layer.", "."): p.detach()
        for n, p in half._split.model.named_parameters()
        if not p.requires_grad
    }
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    base = auto.from_config(half._split.built.config)
    assert not base.load_state_dict(base_weights, strict=False).unexpected_keys
    base.tie_weights()
    wrapped = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    wrapped.eval()
    with torch.no_grad():
        trained = half._split.model(input_ids=ids, labels=ids)
        loaded = wrapped(input_ids=ids, labels=ids)
        assert torch.equal(loaded.logits, trained.logits)
        merged = wrapped.merge_and_unload()(input_ids=ids, labels=ids)
        assert torch.allclose(merged.logits, trained.logits, atol=1e-4)
    with available():
        plain = build(WorkloadSpec(preset(family), batch_size=2, seq_len=8)).model
    with torch.no_grad():
        assert not torch.allclose(plain(input_ids=ids, labels=ids).logits, trained.logits, atol=1e-2)


def test_its_names_are_those_that_peft_writes_itself(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, config = FAMILIES["llama"]
    model = get_peft_model(
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path)
    with available():
        half = Half(WorkloadSpec(preset("llama"), batch_size=2, seq_len=8), "server")
    ours, theirs = half.adapters("whole"), load_file(tmp_path / "adapter_model.safetensors")
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    for key, value in half.peft_config().items():
        if key not in ("base_model_name_or_path", "lora_alpha"):
            found = sorted(written[key]) if key == "target_modules" else written[key]
            assert found == value, key
