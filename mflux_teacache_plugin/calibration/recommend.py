"""Which of the settings that were tried becomes what `--teacache` means for the model."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mflux_teacache_plugin.calibration.propose import UNSEEN
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.measure.metrics import Summary
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.methods.method import to_float
from mflux_teacache_plugin.variants import Provenance, Variant


@dataclass(frozen=True)
class Recommendation:
    """The setting that is recommended, None if none is good enough; why, in words; and the one that came nearest."""

    setting: str | None
    why: str
    nearest: str | None


def choose(rows: Sequence[Row], target: float) -> Recommendation:
    """The fastest setting whose mean SSIM reaches the target; one that beats plain mflux with fewer steps goes first."""
    tried = sorted((row for row in rows if row.quality), key=lambda row: row.cost.computed)
    good = [row for row in tried if _near(row).ssim >= target]
    better = [row for row in good if row.fewer_quality and _near(row).psnr > row.fewer_quality.psnr]
    best = max(tried, key=lambda row: _near(row).ssim, default=None)
    nearest = None if best is None else best.setting
    if not good:
        told = f"; {best.setting} came nearest with {_near(best).ssim:.3f}" if best else ""
        return Recommendation(None, f"No setting reached a mean SSIM of {target:g}{told}.", nearest)
    chosen = (better or good)[0]
    why = (
        f"{chosen.setting} is the fastest setting tried with a mean SSIM of {target:g} or more: {chosen.cost.computed:.3g} "
        f"steps computed, {_told(chosen.quality)}; plain mflux with as many steps: {_told(chosen.fewer_quality)}"
    )
    if not better:
        why += ". Nothing that was tried comes nearer than plain mflux with as many steps"
    elif good[0] is not chosen:
        why += f"; {good[0].setting} is faster, but plain mflux with as many steps comes nearer"
    return Recommendation(chosen.setting, f"{why}.", nearest)


def recommending(
    variant: Variant, rows: Sequence[Row], choice: Recommendation, target: float, more: Sequence[str]
) -> Variant:
    """The variant with the recommended setting as its default, and the reasons, with `more`, in its provenance."""
    changes: dict[str, Any] = {}
    notes = (variant.provenance.notes or "").splitlines()
    thresholds = [row for row in rows if row.quality and _is_number(row.setting) and row.quality.ssim >= target]
    if thresholds:
        changes["threshold"] = float(min(thresholds, key=lambda row: row.cost.computed).setting)
        notes = [line for line in notes if line != UNSEEN]
    if choice.setting is not None and not _is_number(choice.setting):
        changes["recommended"] = choice.setting
    provenance = Provenance(**{**as_table(variant.provenance), "notes": "\n".join([*notes, *more])})
    return variant.replace(**changes, provenance=provenance)


def _near(row: Row) -> Summary:
    assert row.quality is not None  # plain mflux alone has none
    return row.quality


def _told(quality: Summary | None) -> str:
    return f"SSIM {quality.ssim:.3f} (worst {quality.ssim_worst:.3f}), PSNR {quality.psnr:.1f} dB" if quality else "–"


def _is_number(setting: str) -> bool:
    try:
        return bool(to_float(setting))
    except ArgumentTypeError:
        return False
