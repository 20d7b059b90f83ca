"""From shots to figures: one row for each group of cases and setting, beside its two baselines."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mflux_teacache_plugin.measure import machine
from mflux_teacache_plugin.measure.metrics import Similarity, Summary, summarize
from mflux_teacache_plugin.measure.series import Case, Series, Shot
from mflux_teacache_plugin.methods import OFF

#: From which worst SSIM on a picture counts as good enough to keep, and as good enough for a draft.
FINAL, DRAFT = 0.95, 0.85


@dataclass(frozen=True)
class Cost:
    """What the pictures of one way took, as a `Run` has it: means over the cases, of medians over the repetitions; of memory
    the highest peak.
    """

    computed: float
    seconds: float
    wall: float
    memory: int
    mlx_memory: int | None


@dataclass(frozen=True)
class Row:
    """One setting on one group of cases, against plain mflux at the same steps and at as many as it computed.

    Attributes:
        pictures: so many cases of the group were made with the setting; not all are, where the first ones say enough.
        skipped: share of the loop's steps that were not computed.
        speedup: of the denoising loop, achieved; `ideal` is what the computed steps alone would give.
        whole: the group of the whole model, if this one is quantized and the suite has both; `whole_quality`: against it.
        quality: None for plain mflux (`setting` is off), which is the reference.
        fewer, fewer_quality, fewer_speedup: plain mflux with as many steps as were computed.
    """

    group: str
    setting: str
    steps: int
    pictures: int
    cost: Cost
    skipped: float
    speedup: float
    ideal: float
    whole: str | None
    whole_quality: Summary | None
    advice: str = "the reference"
    quality: Summary | None = None
    fewer: Cost | None = None
    fewer_quality: Summary | None = None
    fewer_speedup: float | None = None

    @property
    def gain(self) -> float:
        """By how many dB it comes nearer than plain mflux with as many steps."""
        rival = self.fewer_quality
        return 0.0 if self.quality is None or rival is None else self.quality.psnr - rival.psnr


def rows(series: Series, near: Mapping[str, Similarity]) -> list[Row]:
    """A row for each group and setting, in the order in which they were made; `near` is the series' `against_plain`."""
    cases, made = series.cases, dict[tuple[str, str, int], list[Shot]]()
    near_whole = series.similarities({case.name: case.whole for case in cases if case.whole})
    for shot in series.shots:
        made.setdefault((shot.case, shot.setting, shot.steps), []).append(shot)
    group_of = {case.name: case.group for case in cases}

    def row(setting: str, of_group: list[Case]) -> Row:
        plain = [made[case.name, OFF, case.steps] for case in of_group]
        cached = [made[case.name, setting, case.steps] for case in of_group]
        together = zip(of_group, plain, cached, strict=True)
        fewer = [made[case.name, OFF, each[0].run.fewer(off[0].run)] for case, off, each in together]
        full, cost, other = map(_cost, (plain, cached, fewer))
        skipped, speedup = 1 - cost.computed / full.computed, full.seconds / max(cost.seconds, 1e-9)
        ideal, whole = full.computed / cost.computed, group_of.get(of_group[0].whole)
        against = summarize([near_whole[each[0].file] for each in cached]) if whole else None
        which, took = (of_group[0].group, setting, cached[0][0].steps, len(cached)), (cost, skipped, speedup, ideal)
        if setting == OFF:
            return Row(*which, *took, whole, against)
        quality, other_quality = (summarize([near[each[0].file] for each in way]) for way in (cached, fewer))
        rival = (quality, other, other_quality, full.seconds / max(other.seconds, 1e-9))
        return Row(*which, *took, whole, against, _advice(skipped, speedup, quality, other_quality), *rival)

    found = []
    for group in dict.fromkeys(group_of.values()):
        of_group = [case for case in cases if case.group == group]
        tried = dict.fromkeys((OFF, *(setting for case in of_group for setting in case.settings)))
        found += [row(each, [case for case in of_group if each in (OFF, *case.settings)]) for each in tried]
    return found


def _cost(way: list[list[Shot]]) -> Cost:
    def mean(of: str) -> float:
        return statistics.mean(statistics.median(getattr(shot.run, of) for shot in shots) for shots in way)

    every = [shot.run for shots in way for shot in shots]
    mlx = max((run.mlx_memory for run in every if run.mlx_memory is not None), default=None)
    return Cost(mean("computed"), mean("seconds"), mean("wall"), max(run.memory for run in every), mlx)


def _advice(skipped: float, speedup: float, quality: Summary, fewer: Summary) -> str:
    if skipped <= 0:
        return "skips nothing here"
    if fewer.psnr >= quality.psnr:
        return "plain with as many steps is nearer"
    if speedup < 1:
        return "nearer than fewer steps, but slower than all of them here"
    if quality.ssim_worst >= FINAL:
        return "for final pictures"
    return "for drafts" if quality.ssim_worst >= DRAFT else "changes the picture"


def good(of_group: Sequence[Row]) -> list[Row]:
    """The settings that keep their pictures and beat plain mflux with as many steps.

    Settings that fewer pictures were made with than with others do not count.
    """
    most = max((row.pictures for row in of_group if row.quality is not None), default=0)
    judged = [row for row in of_group if row.pictures == most]
    kept = [row for row in judged if row.quality is not None and row.quality.ssim_worst >= FINAL]
    return [row for row in kept if row.skipped > 0 and row.gain > 0 and row.speedup > 1]


def best(of_group: Sequence[Row]) -> Row | None:
    """The fastest of the `good` settings, if there is one."""
    return max(good(of_group), key=lambda row: row.speedup, default=None)


def by_group(found: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each group, in order."""
    return {group: [row for row in found if row.group == group] for group in dict.fromkeys(row.group for row in found)}


def verdict(of_group: Sequence[Row]) -> str:
    """What a reader takes home of one group."""
    if all(each.skipped <= 0 for each in of_group):
        return "No setting skips a step here."
    row = best(of_group)
    if row is None:
        return "No setting keeps its pictures and beats plain mflux with as many steps."
    return (
        f"The fastest setting that keeps the worst picture at SSIM {FINAL:g} or above and beats plain mflux with as many steps "
        f"is {row.setting}: {row.speedup:.2f}x as fast, {row.gain:.1f} dB nearer."
    )


#: Columns of the terminal's and the report's table. `results.json` has more.
HEAD = ("SETTING", "ADVICE", "SPEED-UP", "COMPUTED", "SECONDS", "SSIM", "WORST SSIM", "PSNR dB", "MEMORY GB")


def cells(row: Row) -> list[list[str]]:
    """A row as lines of a table: the setting, and below it plain mflux with as many steps."""
    lines = [_line(row.setting, row.advice, row.speedup, row.cost, row.quality)]
    if row.fewer and row.fewer_speedup and row.skipped > 0:
        lines.append(_line("  plain, as many", "", row.fewer_speedup, row.fewer, row.fewer_quality))
    return lines


def _line(name: str, advice: str, speedup: float, cost: Cost, near: Summary | None) -> list[str]:
    figures = [f"{near.ssim:.4f}", f"{near.ssim_worst:.4f}", f"{near.psnr:.1f}"] if near else [""] * 3
    took = [f"{speedup:.2f}x", f"{cost.computed:.4g}", f"{cost.seconds:.2f}"]
    return [name, advice, *took, *figures, f"{cost.memory / 1e9:.2f}"]


def as_table(series: Series, near: Mapping[str, Similarity], found: Sequence[Row]) -> dict[str, Any]:
    """Everything that was found, for a JSON file: the machine, the rows, and each run with its picture's nearness."""
    made = [(shot, vars(near[shot.file]) if shot.repetition == 0 else {}) for shot in series.shots]
    shown = ("name", "group", "prompt", "seed")
    return {
        "machine": machine.describe(),
        "rows": [flat(row) for row in found],
        "cases": [{key: getattr(case, key) for key in shown} for case in series.cases],
        "runs": [{**(parts := asdict(shot)).pop("run"), **parts, **figures} for shot, figures in made],
    }


def flat(row: Row) -> dict[str, Any]:
    """A row without nesting: `cost.seconds` becomes `seconds`, `fewer.seconds` becomes `fewer_seconds`."""
    parts = {**vars(row), "of_ideal": row.speedup / row.ideal}
    for name in ("cost", "quality", "fewer", "fewer_quality", "whole_quality"):
        kind = Summary if name.endswith("quality") else Cost
        prefix = "" if name in ("cost", "quality") else f"{name.partition('_')[0]}_"
        value = parts.pop(name)
        parts |= {f"{prefix}{field.name}": getattr(value, field.name, None) for field in fields(kind)}
    return parts
