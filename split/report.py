"""Predicted beside measured, for every turn and stage: JSON and CSV on disk, a table for the terminal, a plot, and what it comes to.

Errors are predicted over measured, less one, in percent: +5 says that the prediction was 5 % too long. A stage counts in the judgement where it is
more than `MINOR` of the round, by the measured medians; a round's delay always counts.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from profiler.profile import BadInput
from profiler.store import read_bytes, write_atomically
from profiler.units import data_size, quantity
from solver.figures import COLOURS
from split.stages import STAGES, Measured

if TYPE_CHECKING:
    from profiler.tables import Table
    from split.decide import Decision

FORMAT = "card-train-report/1"
MAX_BYTES = 512 * 1024 * 1024
MINOR = 0.05
"""A stage with less than this share of the round is told, but not judged."""

ROUND = "round"
"""Stands in place of a stage for the whole turn."""

COLUMNS = (
    "round",
    "device",
    "cut",
    "frequency_hz",
    "codec_up",
    "codec_down",
    "stage",
    "predicted_s",
    "measured_s",
    "error_pct",
    "predicted_server_j",
    "measured_server_j",
    "predicted_device_j",
    "measured_device_j",
    "bytes_up",
    "bytes_down",
)

_WORDS = {
    "device_forward": "device forward",
    "codec": "encode and decode",
    "uplink": "uplink",
    "server": "server",
    "downlink": "downlink",
    "device_backward": "device backward",
    "adapters": "adapters",
    "other": "between the parts",
    ROUND: "round",
}


def _colours() -> dict[str, str]:
    return {
        "device_forward": COLOURS["device"],
        "codec": COLOURS["energy"],
        "uplink": COLOURS["link"],
        "server": COLOURS["server"],
        "downlink": COLOURS["other"],
        "device_backward": "#66ccee",
        "adapters": COLOURS["adapters"],
        ROUND: "#000000",
    }


def error_pct(predicted_s: float | None, measured_s: float) -> float | None:
    """How far a prediction was off, in percent of what was measured; None where there is none, or nothing was measured."""
    if predicted_s is None or not measured_s > 0:
        return None
    return 100 * (predicted_s / measured_s - 1)


@dataclass(frozen=True)
class StageSummary:
    """One stage, or the round, over all turns with a prediction: medians, and the largest error by size. ``share`` of the measured rounds."""

    stage: str
    predicted_s: float
    measured_s: float
    share: float
    median_error_pct: float | None
    """Of the errors' sizes, without sign."""
    bias_pct: float | None
    """Of the errors, with sign."""
    worst_error_pct: float | None
    median_off_s: float
    """Of the differences' sizes."""

    @property
    def judged(self) -> bool:
        """Whether it is large enough to be judged by."""
        return self.share > MINOR


@dataclass(frozen=True)
class Summary:
    """What a report comes to. ``most_off`` is the stage that was off by the most seconds, None without predictions."""

    turns: int
    round: StageSummary | None
    stages: tuple[StageSummary, ...]
    most_off: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "turns": self.turns,
            "round": None if self.round is None else vars(self.round),
            "stages": [{**vars(stage), "judged": stage.judged} for stage in self.stages],
            "most_off": self.most_off,
        }

    def sentence(self) -> str:
        """In one line for a person."""
        if self.round is None or self.round.median_error_pct is None:
            return f"{self.turns} turns, nothing was predicted"
        text = (
            f"{self.turns} turns: the predicted delay was off by {self.round.median_error_pct:.1f} % (median), "
            f"at most {abs(self.round.worst_error_pct or 0):.1f} %"
        )
        off = next((stage for stage in self.stages if stage.stage == self.most_off), None)
        if off is not None:
            text += f"; most off was {_WORDS[off.stage]}, by {quantity(off.median_off_s, 's')} a turn"
        return text


class Report:
    """The turns of a run. ``path`` without a suffix: PATH.json and PATH.csv are written whole after every turn, and gone on with after a
    restart. A turn that is added again replaces the one before.

    Raises BadInput where what stands there is no report.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turns: dict[tuple[int, str], dict[str, Any]] = {}
        self._assumptions: dict[str, dict[str, Any]] = {}
        self._written: dict[
            tuple[int, str], tuple[str, str]
        ] = {}  # each turn as JSON and CSV: only new ones are made again
        self._read()

    @property
    def turns(self) -> list[dict[str, Any]]:
        """All turns in the order in which they were added, as they stand in the JSON file."""
        return list(self._turns.values())

    def add(
        self, round: int, device: str, decision: Decision, measured: Measured, losses: Sequence[float] = ()
    ) -> dict[str, Any]:
        """Note one turn and write both files; the turn as it stands there. Raises BadInput where the folder cannot be written."""
        turn = _turn(round, device, decision, measured, losses)
        key = (round, device)
        self._turns[key] = turn
        self._written[key] = _as_text(turn)
        for item in decision.assumptions:
            self._assumptions.setdefault(item.quantity, item.as_json())
        self._save()
        return turn

    def write(self) -> dict[str, Any] | None:
        """What it comes to, as plain values, once the plot is drawn beside the files where matplotlib is there; None without turns."""
        from profiler.profile import MissingHardware

        if not self._turns:
            return None
        summary = self.summary()
        if summary.round is not None:
            with contextlib.suppress(MissingHardware):  # the figures are on disk: a picture is not worth a run
                self.plot(self._file(".png"))
        return summary.as_json()

    def summary(self, keep: Callable[[dict[str, Any]], bool] = lambda turn: True) -> Summary:
        """Medians over the turns that ``keep`` wants, those with a prediction."""
        kept = [turn for turn in self._turns.values() if keep(turn)]
        return summarise(kept)

    def table(self) -> Table:
        """A table for the terminal: a row for each stage, medians over all turns."""
        from rich import box

        from profiler.tables import Table

        summary = self.summary()
        measured = _medians(list(self._turns.values()))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=summary.sentence(), title_justify="left")
        table.add_column("stage")
        for name in ("predicted", "measured", "share", "error", "worst"):
            table.add_column(name, justify="right", no_wrap=True)
        rows = {row.stage: row for row in (*summary.stages, *([] if summary.round is None else [summary.round]))}
        whole = measured.get(ROUND, 0.0)
        for stage in (*STAGES, ROUND):
            row = rows.get(stage)
            seconds = row.measured_s if row is not None else measured.get(stage, 0.0)
            foretold = row is not None and row.predicted_s > 0  # of nothing predicted no error tells anything
            share = f"{100 * seconds / whole:.0f} %" if whole > 0 else "?"
            table.add_row(
                _WORDS[stage],
                "?" if row is None else quantity(row.predicted_s, "s"),
                quantity(seconds, "s"),
                share,
                _percent(row.bias_pct if row is not None and foretold else None),
                _percent(row.worst_error_pct if row is not None and foretold else None),
                style="bold" if stage == ROUND else None,
            )
        up, down = (median([turn[f"bytes_{way}"] for turn in self._turns.values()] or [0]) for way in ("up", "down"))
        table.caption = (
            f"medians of {len(self._turns)} turns; a turn sends {data_size(up)} up and {data_size(down)} down"
        )
        return table

    def plot(self, path: Path) -> Path:
        """Predicted against measured, a point for each turn and stage; on the line they are equal. Raises MissingHardware without
        matplotlib, BadInput where the folder cannot be written."""
        from solver.figures import new_figure, save

        figure = new_figure(9.5, 4.8)
        points, bars = figure.subplots(1, 2, width_ratios=[1.0, 1.25])
        told = [turn for turn in self._turns.values() if turn["predicted_s"] is not None]
        self._draw_points(points, told)
        summary = self.summary()
        self._draw_bars(bars, summary)
        whole = summary.round
        if whole is not None and whole.median_error_pct is not None and whole.worst_error_pct is not None:
            figure.suptitle(
                f"{summary.turns} turns: the predicted delay was off by {whole.median_error_pct:.1f} % (median), at most "
                f"{abs(whole.worst_error_pct):.1f} %",
                fontsize=10,
            )
        figure.supxlabel(self._rests_on(told), fontsize=7, color="#444444")
        return save(figure, path)

    def _draw_points(self, axes: Any, told: Sequence[dict[str, Any]]) -> None:
        low, high = 1e9, 0.0
        for stage, colour in _colours().items():
            pairs = [(_measured(turn, stage), _predicted(turn, stage)) for turn in told]
            pairs = [(x, y) for x, y in pairs if x > 0 and y is not None and y > 0]
            if not pairs:
                continue
            xs, ys = zip(*pairs, strict=True)
            low, high = min(low, *xs, *ys), max(high, *xs, *ys)
            marker = "D" if stage == ROUND else "o"
            axes.plot(xs, ys, marker, color=colour, markersize=4, alpha=0.7, linewidth=0, label=_WORDS[stage])
        if high > 0:
            axes.plot([low, high], [low, high], color="#888888", linewidth=0.8, zorder=0, label="as predicted")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.legend(fontsize=7, frameon=False)
        axes.set_xlabel("measured (s)")
        axes.set_ylabel("predicted (s)")
        axes.set_title("every turn and stage", fontsize=9)

    @staticmethod
    def _draw_bars(axes: Any, summary: Summary) -> None:
        shown = [row for row in summary.stages if row.measured_s or row.predicted_s]
        # From the top: the order in which they happen; of each stage first what was predicted, then what was measured.
        for k, row in enumerate(shown):
            first = k == 0
            axes.barh(k - 0.2, row.predicted_s, 0.38, color="#bbbbbb", label="predicted" if first else None)
            axes.barh(k + 0.2, row.measured_s, 0.38, color=COLOURS["device"], label="measured" if first else None)
            off = f"  {row.bias_pct:+.0f} %" if row.bias_pct is not None and row.predicted_s > 0 else ""
            text = f"{quantity(row.predicted_s, 's')}, {quantity(row.measured_s, 's')}{off}"
            axes.annotate(
                text,
                (max(row.predicted_s, row.measured_s, 0.0), k),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axes.set_yticks(range(len(shown)), [_WORDS[row.stage] for row in shown], fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.45)  # room for the figures beside the bars
        axes.set_xlim(left=min([0.0, *(min(row.predicted_s, row.measured_s) for row in shown)]))
        axes.set_xlabel("seconds a turn, medians; predicted, measured, median error")
        axes.legend(fontsize=7, frameon=False, loc="lower right")

    @staticmethod
    def _rests_on(told: Sequence[dict[str, Any]]) -> str:
        """Where the figures come from, in a line under the picture."""

        def each(values: Iterable[Any]) -> str:
            found = list(dict.fromkeys(str(value) for value in values))
            return ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")

        def rate(turn: dict[str, Any]) -> str:
            up, down = turn["uplink_bps"], turn["downlink_bps"]
            return "?" if up is None or down is None else f"{up / 1e6:.3g}/{down / 1e6:.3g}"

        emulated = {bool(turn.get("link_emulated")) for turn in told}
        kind = {True: "EMULATED link", False: "link as it is"}
        link = " and ".join(kind[each] for each in sorted(emulated))
        return (
            f"devices {each(turn['device'] for turn in told)}; cuts {each(turn['cut'] for turn in told)}; codecs "
            f"{each(turn['codec_up'] for turn in told)}; {link}, {each(rate(turn) for turn in told)} Mbit/s up/down\n"
            "predicted: from the profiles, before each turn; measured: wall clocks of both machines"
        )

    # --- on disk -------------------------------------------------------------------------------------------------------

    def _file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _save(self) -> None:
        document = ",\n  ".join(text for text, _ in self._written.values())
        listed = json.dumps(list(self._assumptions.values()), allow_nan=False)
        text = f'{{"format": "{FORMAT}",\n "assumptions": {listed},\n "turns": [\n  {document}\n]}}\n'
        write_atomically(self._file(".json"), text.encode())
        rows = "".join(text for _, text in self._written.values())
        write_atomically(self._file(".csv"), (",".join(COLUMNS) + "\n" + rows).encode())

    def _read(self) -> None:
        path = self._file(".json")
        if not path.exists():
            return
        try:
            found = json.loads(read_bytes(path, MAX_BYTES, "a report"))
            if found["format"] != FORMAT:
                raise BadInput(f"{path}: field format is {str(found['format'])[:40]!r}, expected {FORMAT}")
            self._assumptions = {str(item["quantity"]): item for item in found["assumptions"]}
            for turn in found["turns"]:
                self._turns[int(turn["round"]), str(turn["device"])] = turn
                self._written[int(turn["round"]), str(turn["device"])] = _as_text(turn)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = error if isinstance(error, OSError) else "it is cut off or was edited"
            raise BadInput(
                f"{path}: expected a report of card-train ({why}); move it away to begin a new one"
            ) from None


def summarise(turns: Sequence[dict[str, Any]]) -> Summary:
    """Medians and errors over turns as they stand in the JSON file, those with a prediction."""
    told = [turn for turn in turns if turn["predicted_s"] is not None]
    if not told:
        return Summary(len(turns), None, (), None)
    whole = _stage_summary(ROUND, told, 1.0)
    stages = tuple(
        _stage_summary(stage, told, median(abs(_measured(turn, stage)) / turn["measured_s"] for turn in told))
        for stage in STAGES
    )
    return Summary(len(turns), whole, stages, max(stages, key=lambda row: row.median_off_s).stage)


def _stage_summary(stage: str, turns: Sequence[dict[str, Any]], share: float) -> StageSummary:
    pairs = [(_predicted(turn, stage) or 0.0, _measured(turn, stage)) for turn in turns]
    errors = [error for pair in pairs if (error := error_pct(*pair)) is not None] if stage != "other" else []
    return StageSummary(
        stage=stage,
        predicted_s=median(predicted for predicted, _ in pairs),
        measured_s=median(measured for _, measured in pairs),
        share=share,
        median_error_pct=median(abs(error) for error in errors) if errors else None,
        bias_pct=median(errors) if errors else None,
        worst_error_pct=max(errors, key=abs) if errors else None,
        median_off_s=median(abs(predicted - measured) for predicted, measured in pairs),
    )


def _medians(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {stage: median(_measured(turn, stage) for turn in turns) for stage in (*STAGES, ROUND) if turns}


def _measured(turn: dict[str, Any], stage: str) -> float:
    return float(turn["measured_s"] if stage == ROUND else turn["stages"][stage]["measured_s"])


def _predicted(turn: dict[str, Any], stage: str) -> float | None:
    found = turn["predicted_s"] if stage == ROUND else turn["stages"][stage]["predicted_s"]
    return None if found is None else float(found)


def _turn(round: int, device: str, decision: Decision, measured: Measured, losses: Sequence[float]) -> dict[str, Any]:
    """One turn as it stands in the JSON file."""
    predicted = decision.predicted
    told = None if predicted is None else predicted.stages()
    parts = None if predicted is None else predicted.parts
    return {
        "round": round,
        "device": device,
        "cut": decision.cut,
        "frequency_hz": decision.frequency_hz,
        "codec_up": decision.codec_up,
        "codec_down": decision.codec_down,
        "uplink_bps": decision.uplink_bps,
        "downlink_bps": decision.downlink_bps,
        "link_emulated": decision.emulated,
        "mini_batches": len(measured.steps),
        "losses": list(losses),
        "predicted_s": None if predicted is None else predicted.delay_s,
        "measured_s": measured.delay_s,
        "error_pct": None if predicted is None else error_pct(predicted.delay_s, measured.delay_s),
        "stages": {
            stage: {"predicted_s": None if told is None else told[stage], "measured_s": seconds}
            for stage, seconds in measured.stages().items()
        },
        "parts": {
            part: {"predicted_s": None if parts is None else parts[part], "measured_s": seconds}
            for part, seconds in measured.parts().items()
        },
        "link_known_within_s": measured.clock_bound_s,
        "predicted_server_j": None if predicted is None else predicted.server_energy_j,
        "measured_server_j": measured.server_energy_j,
        "predicted_device_j": None if predicted is None else predicted.device_energy_j,
        "measured_device_j": measured.device_energy_j,
        "bytes_up": measured.uplink_bytes + measured.adapters_up_bytes,
        "bytes_down": measured.downlink_bytes + measured.adapters_down_bytes,
        "adapters_bytes_up": measured.adapters_up_bytes,
        "adapters_bytes_down": measured.adapters_down_bytes,
        "predicted_bytes_up": None if predicted is None else predicted.uplink_bytes + predicted.adapters_up_bytes,
        "predicted_bytes_down": None if predicted is None else predicted.downlink_bytes + predicted.adapters_down_bytes,
        "warnings": list(decision.warnings),
    }


def _as_text(turn: dict[str, Any]) -> tuple[str, str]:
    """One turn as JSON on a line, and its rows as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = [turn[name] for name in COLUMNS[:6]]
    crossing = {
        "uplink": (turn["bytes_up"] - turn["adapters_bytes_up"], 0),
        "downlink": (0, turn["bytes_down"] - turn["adapters_bytes_down"]),
        "adapters": (turn["adapters_bytes_up"], turn["adapters_bytes_down"]),
        ROUND: (turn["bytes_up"], turn["bytes_down"]),
    }
    for stage in (*STAGES, ROUND):
        predicted, measured = _predicted(turn, stage), _measured(turn, stage)
        joules = [turn[name] if stage == ROUND else None for name in COLUMNS[10:14]]
        error = None if stage == "other" else error_pct(predicted, measured)
        writer.writerow([*head, stage, predicted, measured, error, *joules, *crossing.get(stage, (0, 0))])
    return json.dumps(turn, allow_nan=False), out.getvalue()


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"
