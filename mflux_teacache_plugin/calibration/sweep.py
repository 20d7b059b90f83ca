"""Settings tried on prompts that no fit saw, each beside plain mflux with as many steps as the setting computed.

What counts as fast is how many steps are computed: seconds of many runs in one process mislead, and are only told.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.calibration.command import Model
from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.measure.metrics import SAME_PSNR, similarity
from mflux_teacache_plugin.variants import Variant

#: The speed-ups that are tried beside thresholds.
SPEED_UPS = ("1.5x", "2x", "3x")

#: Shares of the steps that the thresholds which are tried should skip.
SKIPPED_SHARES = (0.25, 0.5)

#: Thresholds that are nearer to each other than this share are not both tried.
APART = 0.1


@dataclass(frozen=True)
class Tried:
    """One setting on one prompt and seed.

    Attributes:
        setting: as `--teacache` takes it.
        computed: steps computed; `fewer` is that, rounded: the steps of the plain run beside it.
        seconds, fewer_seconds: of mflux's denoising loop.
        ssim, psnr: against the plain run with all steps; PSNR in dB, `SAME_PSNR` at most. `fewer_ssim`, `fewer_psnr`: of
            the plain run with fewer steps.
        fault: why the setting could not be tried; the figures mean nothing then.
    """

    setting: str
    prompt: str
    seed: int
    computed: float = 0.0
    seconds: float = 0.0
    ssim: float = 0.0
    psnr: float = 0.0
    fewer: int = 0
    fewer_seconds: float = 0.0
    fewer_ssim: float = 0.0
    fewer_psnr: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class Summary:
    """One setting over all pictures: means, and the worst SSIM and PSNR of both sides."""

    setting: str
    computed: float
    seconds: float
    ssim: float
    ssim_worst: float
    psnr: float
    psnr_worst: float
    fewer_seconds: float
    fewer_ssim: float
    fewer_ssim_worst: float
    fewer_psnr: float
    fewer_psnr_worst: float

    @property
    def beats_fewer(self) -> bool:
        """Whether it comes nearer to the full run than plain mflux with as many steps, in mean PSNR."""
        return self.psnr > self.fewer_psnr


def try_all(
    model: Model,
    variant: Variant,
    prompt: str,
    seed: int,
    settings: Sequence[str],
    folder: Path,
    on_picture: Callable[[], object] = lambda: None,
) -> list[Tried]:
    """Try every setting on one prompt and seed; the pictures go into `folder`."""

    def picture(name: str, **changes: Any) -> tuple[np.ndarray, float]:
        image = model.generate(prompt, seed, **changes)
        folder.mkdir(parents=True, exist_ok=True)
        image.image.save(folder / f"{name}.png")
        on_picture()
        return np.asarray(image.image.convert("RGB")), float(image.generation_time)

    def near(pixels: np.ndarray) -> tuple[float, float]:
        found = similarity(pixels, reference)
        return found.ssim, min(found.psnr, SAME_PSNR)

    reference, _ = picture("plain")
    plain: dict[int, tuple[float, float, float]] = {}
    tried = []
    for setting in settings:
        try:
            handle = apply.apply_teacache(model.pipeline, setting, variant=variant)
        except TeaCacheError as error:
            tried.append(Tried(setting, prompt, seed, fault=error.error))
            on_picture(), on_picture()
            continue
        try:
            pixels, seconds = picture(file_name(setting))
        finally:
            handle.restore()
        last = handle.stats.last
        if last.fault is not None:
            tried.append(Tried(setting, prompt, seed, fault=last.fault))
            on_picture()
            continue
        computed = float(last.computed)
        steps = max(1, round(computed))
        if steps in plain:
            on_picture()
        else:
            fewer, fewer_seconds = picture(f"plain-{steps}", num_inference_steps=steps)
            plain[steps] = fewer_seconds, *near(fewer)
        figures = (computed, seconds, *near(pixels), steps, *plain[steps])
        tried.append(Tried(setting, prompt, seed, *figures))
    return tried


def file_name(setting: str) -> str:
    """A setting as part of a file's name."""
    return "".join(sign if sign.isalnum() or sign in ".+-" else "_" for sign in setting)


def summarize(tried: Iterable[Tried]) -> list[Summary]:
    """A summary for each setting that could be tried everywhere, the one with the fewest steps first."""
    by_setting: dict[str, list[Tried]] = {}
    for one in tried:
        by_setting.setdefault(one.setting, []).append(one)
    return sorted(
        (_summary(setting, each) for setting, each in by_setting.items() if not any(one.fault for one in each)),
        key=lambda summary: summary.computed,
    )


def _summary(setting: str, tried: Sequence[Tried]) -> Summary:
    figures: dict[str, float] = {}
    for name in ("ssim", "psnr", "fewer_ssim", "fewer_psnr"):
        values = [getattr(one, name) for one in tried]
        figures |= {name: statistics.fmean(values), f"{name}_worst": min(values)}
    for name in ("seconds", "fewer_seconds"):
        figures[name] = statistics.median(getattr(one, name) for one in tried)
    return Summary(setting, statistics.fmean(one.computed for one in tried), **figures)


@dataclass(frozen=True)
class Choice:
    """The setting that is recommended, None if none is good enough, and why, in words."""

    summary: Summary | None
    why: str


def choose(summaries: Sequence[Summary], target: float) -> Choice:
    """The fastest setting whose mean SSIM reaches the target; one that beats plain mflux with fewer steps goes first."""
    good = [summary for summary in summaries if summary.ssim >= target]
    better = [summary for summary in good if summary.beats_fewer]
    if not good:
        best = max(summaries, key=lambda summary: summary.ssim, default=None)
        told = f"; {best.setting} came nearest with {best.ssim:.3f}" if best is not None else ""
        return Choice(None, f"No setting reached a mean SSIM of {target:g}{told}.")
    chosen = min(better or good, key=lambda summary: summary.computed)
    why = (
        f"{chosen.setting} is the fastest setting tried with a mean SSIM of {target:g} or more: {chosen.computed:.3g} steps "
        f"computed, SSIM {chosen.ssim:.3f} (worst {chosen.ssim_worst:.3f}), PSNR {chosen.psnr:.1f} dB; plain mflux with as "
        f"many steps: SSIM {chosen.fewer_ssim:.3f} (worst {chosen.fewer_ssim_worst:.3f}), {chosen.fewer_psnr:.1f} dB"
    )
    if better:
        faster = min(good, key=lambda summary: summary.computed)
        if faster is not chosen:
            why += f"; {faster.setting} is faster, but plain mflux with as many steps comes nearer"
        return Choice(chosen, f"{why}.")
    return Choice(chosen, f"{why}. Nothing that was tried comes nearer than plain mflux with as many steps.")


def as_json(tried: Iterable[Tried]) -> list[dict[str, Any]]:
    return [asdict(one) for one in tried]
