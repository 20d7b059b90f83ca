"""From shots to figures: one row for each group of cases and setting, beside its two baselines."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mflux_teacache_plugin.measure import machine
from mflux_teacache_plugin.measure.metrics import Similarity, Summary, summarize
from mflux_teacache_plugin.measure.series import Case, Shot
from mflux_teacache_plugin.methods import OFF

#: From which worst SSIM on a picture counts as good enough to keep, and as good enough for a draft.
FINAL, DRAFT = 0.95, 0.85


@dataclass(frozen=True)
class Cost:
    """What the pictures of one way took: means over the cases, of medians over the repetitions.

    Attributes:
        computed: steps computed.
        seconds: of the denoising loop.
        step_seconds: the same by the loop's steps.
        wall: seconds of the process.
        memory: the process's highest peak, in bytes.
        mlx_memory: MLX's highest peak, in bytes.
    """

    computed: float
    seconds: float
    step_seconds: float
    wall: float
    memory: int
    mlx_memory: int | None


@dataclass(frozen=True)
class Row:
    """One setting on one group of cases, against plain mflux at the same steps and at as many as it computed.

    Attributes:
        setting: off for plain mflux, which all others of the group are measured against.
        skipped: share of the loop's steps that were not computed.
        speedup: of the denoising loop, achieved; `ideal` is what the computed steps alone would give.
        quality: None for plain mflux, which is the reference.
        fewer, fewer_quality: plain mflux with as many steps as were computed.
        whole: the group of the whole model, if this one is quantized and the suite has both.
        whole_quality: against plain pictures of the whole model; None where there are none.
        advice: in words.
    """

    group: str
    setting: str
    steps: int
    cost: Cost
    skipped: float
    speedup: float
    ideal: float
    quality: Summary | None
    fewer: Cost | None
    fewer_quality: Summary | None
    whole: str | None
    whole_quality: Summary | None
    advice: str

    @property
    def efficiency(self) -> float:
        """How much of the ideal speed-up was achieved."""
        return self.speedup / self.ideal


def rows(
    cases: Sequence[Case],
    shots: Sequence[Shot],
    near: Mapping[str, Similarity],
    near_whole: Mapping[str, Similarity] | None = None,
) -> list[Row]:
    """A row for each group and setting, in the order in which they were made.

    Args:
        near: of each picture, by file name, against its own plain one (`series.similarities`).
        near_whole: of each picture of a quantized model, against the whole model's (`series.near_whole`).
    """
    made: dict[tuple[str, str, int], list[Shot]] = {}
    for shot in shots:
        made.setdefault((shot.case, shot.setting, shot.steps), []).append(shot)
    group_of = {case.name: case.group for case in cases}
    found = []
    for group in dict.fromkeys(group_of.values()):
        of_group = [case for case in cases if case.group == group]
        plain = [made[case.name, OFF, case.steps] for case in of_group]
        whole = group_of.get(of_group[0].whole)
        for setting in (OFF, *of_group[0].settings):
            cached = [made[case.name, setting, case.steps] for case in of_group]
            fewer = [made[case.name, OFF, each[0].run.fewer] for case, each in zip(of_group, cached, strict=True)]
            found.append(_row(group, setting, plain, cached, fewer, near, whole, near_whole or {}))
    return found


def _row(
    group: str,
    setting: str,
    plain: list[list[Shot]],
    cached: list[list[Shot]],
    fewer: list[list[Shot]],
    near: Mapping[str, Similarity],
    whole: str | None,
    near_whole: Mapping[str, Similarity],
) -> Row:
    """Of each way, the repetitions of every case."""
    cost, full = _cost(cached), _cost(plain)
    skipped = 1 - cost.computed / full.computed
    speedup, ideal = full.seconds / max(cost.seconds, 1e-9), full.computed / cost.computed
    quality, other = (summarize([near[each[0].file] for each in way]) for way in (cached, fewer))
    against = summarize([near_whole[each[0].file] for each in cached]) if whole else None
    is_plain = setting == OFF
    return Row(
        group,
        setting,
        cached[0][0].steps,
        cost,
        skipped,
        speedup,
        ideal,
        quality=None if is_plain else quality,
        fewer=None if is_plain else _cost(fewer),
        fewer_quality=None if is_plain else other,
        whole=whole,
        whole_quality=against,
        advice="the reference" if is_plain else _advice(skipped, speedup, quality, other),
    )


def _cost(way: list[list[Shot]]) -> Cost:
    def mean(of: str) -> float:
        return statistics.mean(statistics.median(getattr(shot.run, of) for shot in shots) for shots in way)

    every = [shot.run for shots in way for shot in shots]
    mlx = [run.mlx_memory for run in every if run.mlx_memory is not None]
    seconds, total = mean("seconds"), statistics.mean(shots[0].run.total for shots in way)
    memory = max(run.memory for run in every)
    return Cost(mean("computed"), seconds, seconds / total, mean("wall"), memory, max(mlx, default=None))


def _advice(skipped: float, speedup: float, quality: Summary, fewer: Summary) -> str:
    if skipped <= 0:
        return "skips nothing here"
    if fewer.psnr >= quality.psnr:
        return "plain with as many steps is nearer"
    if speedup < 1:
        return "nearer than fewer steps, but slower than all of them here"
    if quality.ssim_worst >= FINAL:
        return "for final pictures"
    if quality.ssim_worst >= DRAFT:
        return "for drafts"
    return "changes the picture"


def as_table(
    cases: Sequence[Case], shots: Sequence[Shot], near: Mapping[str, Similarity], found: Sequence[Row]
) -> dict[str, Any]:
    """Everything that was found, for a JSON file: the machine, the rows, and each run with its picture's nearness."""
    made = []
    for shot in shots:
        of_run = asdict(shot.run) | (asdict(near[shot.file]) if shot.repetition == 0 else {})
        made.append({name: value for name, value in vars(shot).items() if name != "run"} | of_run)
    return {
        "machine": machine.describe(),
        "rows": [flat(row) for row in found],
        "cases": [{"name": case.name, "group": case.group, "prompt": case.prompt, "seed": case.seed} for case in cases],
        "runs": made,
    }


def verdicts(found: Sequence[Row]) -> list[str]:
    """What a reader takes home: of each group the fastest setting that keeps its pictures and beats plain mflux with as many
    steps, if one does.
    """
    lines = [""]
    for group in dict.fromkeys(row.group for row in found):
        best, gain = None, 0.0
        for row in found:
            if row.group != group or row.quality is None or row.fewer_quality is None or row.skipped <= 0:
                continue
            nearer = row.quality.psnr - row.fewer_quality.psnr
            kept = row.quality.ssim_worst >= FINAL and nearer > 0 and row.speedup > 1
            if kept and (best is None or row.speedup > best.speedup):
                best, gain = row, nearer
        if best is None:
            lines.append(f"{group}: no setting keeps its pictures and beats plain mflux with as many steps")
        else:
            lines.append(
                f"{group}: {best.setting} is the fastest that keeps the worst picture at SSIM {FINAL:g} or above and beats "
                f"plain mflux with as many steps: {best.speedup:.2f}x, {gain:.1f} dB nearer"
            )
    return lines


#: Columns of the terminal's and the report's table: head, and the cell of a row's way (its cost and quality).
HEAD = (
    "SETTING",
    "COMPUTED",
    "SKIPPED",
    "SECONDS",
    "S/STEP",
    "SPEED-UP",
    "IDEAL",
    "OF IDEAL",
    "MEMORY GB",
    "SSIM",
    "WORST",
    "PSNR dB",
    "WORST",
    "ADVICE",
)


def cells(row: Row) -> list[list[Any]]:
    """A row as lines of a table: the setting, and below it plain mflux with as many steps."""
    lines = [_line(row.setting, row.cost, row.skipped, row.speedup, row.ideal, row.quality, row.advice)]
    if row.fewer is not None and row.skipped > 0:
        speedup = row.speedup * row.cost.seconds / max(row.fewer.seconds, 1e-9)
        lines.append(_line("  plain, as many", row.fewer, None, speedup, None, row.fewer_quality, ""))
    return lines


def _line(
    name: str,
    cost: Cost,
    skipped: float | None,
    speedup: float,
    ideal: float | None,
    quality: Summary | None,
    advice: str,
) -> list[Any]:
    def digits(value: float | None, count: int) -> str:
        return "" if value is None else f"{value:.{count}f}"

    share = "" if skipped is None else f"{skipped:.0%}"
    of_ideal = "" if ideal is None else f"{speedup / ideal:.0%}"
    figures = (
        ["", "", "", ""]
        if quality is None
        else [
            digits(quality.ssim, 4),
            digits(quality.ssim_worst, 4),
            digits(quality.psnr, 1),
            digits(quality.psnr_worst, 1),
        ]
    )
    return [
        name,
        f"{cost.computed:.4g}",
        share,
        digits(cost.seconds, 2),
        digits(cost.step_seconds, 3),
        f"{speedup:.2f}x",
        "" if ideal is None else f"{ideal:.2f}x",
        of_ideal,
        digits(cost.memory / 1e9, 2),
        *figures,
        advice,
    ]


def as_csv(found: Iterable[Row]) -> str:
    """Every figure of every row, a column each."""
    table = [flat(row) for row in found]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else [])
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def flat(row: Row) -> dict[str, Any]:
    """A row without nesting: `cost.seconds` becomes `seconds`, `fewer.seconds` becomes `fewer_seconds`."""
    parts: dict[str, Any] = {"group": row.group, "setting": row.setting, "steps": row.steps}
    parts |= _figures("", Cost, row.cost)
    parts |= {"skipped": row.skipped, "speedup": row.speedup, "ideal": row.ideal, "of_ideal": row.efficiency}
    parts |= _figures("", Summary, row.quality)
    parts |= _figures("fewer_", Cost, row.fewer) | _figures("fewer_", Summary, row.fewer_quality)
    parts |= {"whole": row.whole} | _figures("whole_", Summary, row.whole_quality)
    return {**parts, "advice": row.advice}


def _figures(prefix: str, kind: type[Cost] | type[Summary], part: Cost | Summary | None) -> dict[str, Any]:
    """The fields of a part, None where it is not there."""
    values = dict.fromkeys(field.name for field in fields(kind)) if part is None else asdict(part)
    return {f"{prefix}{name}": value for name, value in values.items()}
