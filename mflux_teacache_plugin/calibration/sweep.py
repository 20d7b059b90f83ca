"""Pictures with each setting, beside plain mflux with as many steps: `measure`'s shots, made with the model that is loaded.

What counts as fast is how many steps are computed: seconds of many runs in one process mislead, and are only told.
"""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.measure import series
from mflux_teacache_plugin.measure.runs import Run
from mflux_teacache_plugin.measure.series import Case, Shot
from mflux_teacache_plugin.methods import OFF
from mflux_teacache_plugin.variants import Variant


class Sweep:
    """Makes the pictures of one case after the other.

    Args:
        active: share of the steps asked for that the loop takes: below 1 where it starts from a picture.
        folder: each case has a folder of its own in it.
        on_picture: called after each picture.

    Attributes:
        faults: of each setting that could not be tried, why.
    """

    def __init__(
        self, model: Model, variant: Variant, active: float, folder: Path, on_picture: Callable[[], object]
    ) -> None:
        self.faults: dict[str, str] = {}
        self._model = model
        self._variant = variant
        self._active = active
        self._folder = folder
        self._on_picture = on_picture

    def shots(self, case: Case) -> list[Shot]:
        """A picture with each setting that works here, plain, and plain with as many steps as each computed."""
        for setting in case.settings:
            try:
                apply.apply_teacache(self._model.pipeline, setting, variant=self._variant).restore()
            except TeaCacheError as error:
                self.faults[setting] = error.error
        usable = tuple(setting for setting in case.settings if setting not in self.faults)
        return series.one_round(replace(case, settings=usable), 0, self._make)

    def _make(self, case: Case, setting: str, steps: int, repetition: int) -> Shot:
        """A `series.Maker`."""
        if setting == OFF:
            image, wall = self._picture(case, steps)
            total = max(1, round(steps * self._active))
            computed: float = total
        else:
            with apply.apply_teacache(self._model.pipeline, setting, variant=self._variant) as handle:
                image, wall = self._picture(case, steps)
            last = handle.stats.last
            computed, total = last.computed, last.taken
            if last.fault is not None:
                self.faults[setting] = last.fault
        way = f"plain-{steps}-steps" if setting == OFF else re.sub(r"[^\w.=+-]+", "-", setting)
        file = self._folder / case.name / f"{way}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.image.save(file)
        peak = mx.get_peak_memory()  # of MLX alone: the process has made other pictures too
        run = Run(steps, computed, total - computed, float(image.generation_time), wall, peak, peak, None, total)
        return Shot(case.name, setting, steps, repetition, f"{case.name}/{file.name}", run)

    def _picture(self, case: Case, steps: int) -> tuple[Any, float]:
        """mflux's GeneratedImage, and the seconds it took."""
        mx.reset_peak_memory()
        begun = time.perf_counter()
        image = self._model.generate(case.prompt, case.seed, num_inference_steps=steps)
        self._on_picture()
        return image, time.perf_counter() - begun
