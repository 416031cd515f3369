"""A profile is whole or absent, and nothing odd in it reaches the solver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from profiler import __version__, store
from profiler.profile import BadInput, Profile, printable
from tests.synthetic import make_profile


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "box.json"
    store.save(make_profile(), path)
    return path


def edit(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_profile_comes_back_as_it_was_written(saved: Path) -> None:
    assert store.load(saved) == make_profile()


def test_every_block_of_figures_must_name_its_provenance(saved: Path) -> None:
    edit(saved, lambda d: d["flops"].pop("provenance"))
    with pytest.raises(BadInput, match=r"box\.json: field flops\.provenance: Field required"):
        store.load(saved)


def test_a_literature_figure_without_a_source_is_refused(saved: Path) -> None:
    edit(saved, lambda d: d["hardware"].update(provenance="literature"))
    with pytest.raises(BadInput, match="needs a source"):
        store.load(saved)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_figure_that_is_not_a_number_never_reaches_the_solver(saved: Path, constant: str) -> None:
    saved.write_text(
        saved.read_text()
        .replace('"median_s": 0.011', f'"median_s": {constant}', 1)
        .replace('"median_s":0.011', f'"median_s":{constant}', 1)
    )
    with pytest.raises(BadInput, match=f"{constant} is not a figure"):
        store.load(saved)


@pytest.mark.parametrize("huge", ["1e999", "-1e999"])
def test_a_figure_that_overflows_to_infinity_is_refused(saved: Path, huge: str) -> None:
    text = saved.read_text()
    assert '"median_s": 0.011' in text
    saved.write_text(text.replace('"median_s": 0.011', f'"median_s": {huge}', 1))
    with pytest.raises(BadInput, match=r"timings\.0\.segments"):
        store.load(saved)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["timings"][0]["segments"][1]["forward"].update(median_s=-1), "timings.0.segments.1.forward.median_s"),
        (lambda d: d["hardware"]["clocks"].update(operating_hz=1300), "hardware.clocks.operating_hz"),
        (lambda d: d["timings"][0]["segments"].pop(), "timings[0].segments"),
        (lambda d: d["sizes"]["cuts"].pop(), "sizes.cuts"),
        (lambda d: d["segments"][1].update(layer=3), "layer numbers"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.update(name="../../etc/passwd"), "name"),
        (lambda d: d.update(samples_file="../x"), "samples_file"),
        (lambda d: d.update(format="card-profile/9"), "expected \"card-profile/1\""),
        (lambda d: d["flops"]["segments"][1].update(forward_flops="2e9"), "flops.segments.1.forward_flops"),
        (lambda d: d["sizes"]["cuts"][0].update(smashed_bytes=1.5), "sizes.cuts.0.smashed_bytes"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(saved: Path, change: Any, says: str) -> None:
    edit(saved, change)
    with pytest.raises(BadInput) as error:
        store.load(saved)
    assert says in str(error.value)
    assert "box.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "card-profile/2", "toolkit_version": "0.9.1"}, "made by version 0.9.1 of this toolkit, this is"),
        ({"format": "card-profile/2"}, "version 0 of this toolkit"),
        ({"format": "card-profile/2", "toolkit_version": None}, "made by another version of this toolkit; upgrade"),
        ({"surprise": 1, "toolkit_version": "0.9.1"}, "field surprise: Extra inputs are not permitted: made by version 0.9.1"),
        ({"surprise": 1, "toolkit_version": __version__}, "remove the field, or upgrade"),
    ],
)  # fmt: skip
def test_a_profile_of_another_version_is_told_from_a_wrong_one(saved: Path, change: Any, says: str) -> None:
    edit(saved, lambda d: d.update(change))
    with pytest.raises(BadInput) as error:
        store.load(saved)
    assert says in str(error.value)
    assert "upgrade" in str(error.value)
    edit(saved, lambda d: d.update(format="somebody-else/1"))
    with pytest.raises(BadInput, match=r'expected "card-profile/1"$'):
        store.load(saved)


def test_a_byte_order_mark_is_no_part_of_a_profile(saved: Path) -> None:
    saved.write_bytes(b"\xef\xbb\xbf" + saved.read_bytes())
    assert store.load(saved) == make_profile()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}', "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"])
def test_what_is_no_profile_gets_one_line(saved: Path, text: str) -> None:
    saved.write_text(text)
    with pytest.raises(BadInput) as error:
        store.load(saved)
    assert str(error.value).startswith(str(saved))
    assert len(str(error.value)) < 400


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(store.MAX_PROFILE_BYTES + 1)
    with pytest.raises(BadInput, match="expected at most"):
        store.load(path)


def test_a_file_of_any_kind_is_read_up_to_its_bound_and_the_message_says_what_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"12345")
    assert store.read_bytes(path, 5, "a table") == b"12345"
    with pytest.raises(BadInput, match=r"table\.csv: 5 bytes, expected at most 4 for a table"):
        store.read_bytes(path, 4, "a table")


def test_the_bound_holds_for_a_file_that_does_not_tell_its_size() -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("there is no /proc here, whose files say that they are empty")
    assert status.stat().st_size == 0
    with pytest.raises(BadInput, match="101 bytes, expected at most 100 for a table"):
        store.read_bytes(status, 100, "a table")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "box.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(BadInput, match=r"box\.json: cannot be read: (not a regular file|Is a directory)"):
        store.load(path)


def test_a_field_that_stands_twice_is_refused_and_not_guessed(saved: Path) -> None:
    text = saved.read_text()
    assert text.count('"cores": 1000') == 1
    saved.write_text(text.replace('"cores": 1000', '"cores": 1000, "cores": 2000'))
    with pytest.raises(BadInput, match="field 'cores' stands there twice"):
        store.load(saved)


def test_a_fleet_is_one_folder_and_not_its_subfolders(tmp_path: Path) -> None:
    store.save(make_profile("a"), tmp_path / "a.json")
    store.save(make_profile("b"), tmp_path / "b.json")
    store.save(make_profile("c"), tmp_path / "below" / "c.json")
    assert [p.name for p in store.load_fleet(tmp_path)] == ["a", "b"]


def test_other_json_in_a_fleet_is_an_error_and_not_a_guess(saved: Path) -> None:
    (saved.parent / "notes.json").write_text("{}")
    with pytest.raises(BadInput, match=r"notes\.json: field format"):
        store.load_fleet(saved.parent)


def test_two_profiles_of_one_name_are_refused(saved: Path) -> None:
    (saved.parent / "copy.json").write_bytes(saved.read_bytes())
    with pytest.raises(BadInput, match=r"copy\.json: field name: 'box' is already used by .*box\.json.*--name NAME"):
        store.load_fleet(saved.parent)


def test_an_empty_folder_says_where_fleets_are(tmp_path: Path) -> None:
    store.save(make_profile(), tmp_path / "letter" / "box.json")
    with pytest.raises(BadInput, match=r"there are fleets in .*letter"):
        store.load_fleet(tmp_path)


def test_an_interrupted_run_is_told_where_there_is_no_profile_yet(tmp_path: Path) -> None:
    (tmp_path / ".cpu.json.partial").write_text("{}")
    with pytest.raises(
        BadInput, match=r"no profiles here, but .*\.cpu\.json\.partial.*same 'card-profile run' command goes on"
    ):
        store.profile_paths(tmp_path)


def test_a_profile_that_could_not_be_read_back_is_never_written(saved: Path) -> None:
    before = saved.read_bytes()
    broken = make_profile().model_copy(update={"name": "no/name"})
    with pytest.raises(ValueError, match="name"):
        store.save(broken, saved)
    assert saved.read_bytes() == before


def test_a_folder_that_cannot_be_written_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        store.save(make_profile(), tmp_path / "file" / "box.json")


def test_what_is_written_anew_stays_the_file_that_it_was(saved: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(saved.name)
    saved.chmod(0o600)
    store.save(make_profile("another"), link)
    assert link.is_symlink()
    assert store.load(saved).name == "another"
    assert saved.stat().st_mode & 0o777 == 0o600


def test_a_pipe_gets_the_document_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        store.save(make_profile(), pipe)
        text, _ = reader.communicate(timeout=30)
    assert json.loads(text)["name"] == "box"
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.append(dict(rows[0])), "each frequency_hz once"),
        (lambda rows: rows[1].update(low_w=rows[1]["power_w"] + 1), "must ascend"),
    ],
)
def test_a_table_of_power_that_contradicts_itself_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "server.json"
    store.save(make_profile("server", "server"), path)
    edit(path, lambda data: change(data["power_fit"]["predictions"]))
    with pytest.raises(BadInput, match=says):
        store.load(path)


def test_the_schema_accepts_what_we_write_and_refuses_what_we_refuse(saved: Path) -> None:
    import jsonschema

    schema = store.schema()
    data = json.loads(saved.read_text())
    jsonschema.validate(data, schema)
    del data["flops"]["provenance"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)


WRITER = """
import sys
from pathlib import Path
from profiler import store
from tests.synthetic import make_profile
profiles = [make_profile(created_utc=c * 1000) for c in "ab"]
print("ready", flush=True)
while True:
    for profile in profiles:
        store.save(profile, Path(sys.argv[1]))
"""


def test_killed_at_any_moment_the_old_file_or_the_new_one_is_there_whole(saved: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    for k in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(saved)], cwd=root, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.002 + 0.0037 * k)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert isinstance(store.load(saved), Profile)


def test_words_out_of_files_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b[2Jb\u202ec\x9bd\te") == "a?[2Jb?c?d?e"
    assert printable("Orin 16 GB · µ [red] 模型") == "Orin 16 GB · µ [red] 模型"
