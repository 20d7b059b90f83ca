"""Which of the settings that were tried becomes what `--teacache` means for the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mflux_teacache_plugin.calibration.propose import UNSEEN
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.measure.metrics import Summary
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.variants import Provenance, Variant


@dataclass(frozen=True)
class Recommendation:
    """The row of the setting that is recommended, None if none is good enough, and why, in words."""

    row: Row | None
    why: str


@dataclass(frozen=True)
class _Tried:
    """A row that has both sides: the setting's quality, and that of plain mflux with as many steps."""

    row: Row
    setting: str
    computed: float
    near: Summary
    plain: Summary

    def __str__(self) -> str:
        figures = f"SSIM {self.near.ssim:.3f} (worst {self.near.ssim_worst:.3f}), PSNR {self.near.psnr:.1f} dB"
        plain = f"SSIM {self.plain.ssim:.3f} (worst {self.plain.ssim_worst:.3f}), {self.plain.psnr:.1f} dB"
        return f"{self.computed:.3g} steps computed, {figures}; plain mflux with as many steps: {plain}"


def choose(rows: Sequence[Row], target: float) -> Recommendation:
    """The fastest setting whose mean SSIM reaches the target; one that beats plain mflux with fewer steps goes first."""
    tried = _tried(rows)
    good = [each for each in tried if each.near.ssim >= target]
    better = [each for each in good if each.near.psnr > each.plain.psnr]
    if not good:
        best = max(tried, key=lambda each: each.near.ssim, default=None)
        told = f"; {best.setting} came nearest with {best.near.ssim:.3f}" if best is not None else ""
        return Recommendation(None, f"No setting reached a mean SSIM of {target:g}{told}.")
    chosen = min(better or good, key=lambda each: each.computed)
    why = f"{chosen.setting} is the fastest setting tried with a mean SSIM of {target:g} or more: {chosen}"
    faster = min(good, key=lambda each: each.computed)
    if not better:
        why += ". Nothing that was tried comes nearer than plain mflux with as many steps"
    elif faster is not chosen:
        why += f"; {faster.setting} is faster, but plain mflux with as many steps comes nearer"
    return Recommendation(chosen.row, f"{why}.")


def recommending(
    variant: Variant, rows: Sequence[Row], choice: Recommendation, target: float, more: Sequence[str]
) -> Variant:
    """The variant with the recommended setting as its default, and the reasons, with `more`, in its provenance."""
    changes: dict[str, Any] = {}
    notes = (variant.provenance.notes or "").splitlines()
    thresholds = [each for each in _tried(rows) if _is_number(each.setting) and each.near.ssim >= target]
    if thresholds:
        changes["threshold"] = float(min(thresholds, key=lambda each: each.computed).setting)
        notes = [line for line in notes if line != UNSEEN]
    if choice.row is not None and not _is_number(choice.row.setting):
        changes["recommended"] = choice.row.setting
    provenance = Provenance(**{**as_table(variant.provenance), "notes": "\n".join([*notes, *more])})
    return variant.replace(**changes, provenance=provenance)


def _tried(rows: Sequence[Row]) -> list[_Tried]:
    return [
        _Tried(row, row.setting, row.cost.computed, row.quality, row.fewer_quality)
        for row in rows
        if row.quality is not None and row.fewer_quality is not None
    ]


def _is_number(setting: str) -> bool:
    try:
        float(setting)
    except ValueError:
        return False
    return True
