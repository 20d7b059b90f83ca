"""Pictures with each setting, beside plain mflux with as many steps: `measure`'s shots, made with the model that is loaded.

What counts as fast is how many steps are computed, since seconds of many runs in one process mislead: a shot's are those that
the steps computed take at the pace of the plain run with all steps.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mflux_teacache_plugin import apply, methods
from mflux_teacache_plugin.calibration.climb import climb
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.checks import parse_steps
from mflux_teacache_plugin.measure import metrics, series, shards
from mflux_teacache_plugin.measure.ledger import Ledger
from mflux_teacache_plugin.measure.metrics import Similarity
from mflux_teacache_plugin.measure.runs import Run
from mflux_teacache_plugin.measure.series import Case, Maker, Shot
from mflux_teacache_plugin.methods import OFF
from mflux_teacache_plugin.methods.steps import as_text
from mflux_teacache_plugin.variants import Variant


def pictures(model: Model, variant: Variant, active: float, folder: Path, cases: Sequence[Case]) -> list[Shot]:
    """This rank's share of the cases, as far as it is not in the folder; rank 0 gets the shots of all ranks, others none."""
    ledger, mine = keeper(model, variant, active, folder), shards.mine(cases)
    with series.progress(sum(case.most_shots for case in mine), show=shards.leads() and bool(mine)) as counted:
        for case in mine:
            series.one_round(case, 0, counted(ledger.make))
    shards.gather_files(sorted(ledger.files), folder)
    found: list[Shot] = []
    for case in cases if shards.leads() else ():
        shots = series.one_round(case, 0, ledger.make)
        pace = shots[0].run.seconds / shots[0].run.computed  # of the plain run with all steps
        found += [replace(shot, run=replace(shot.run, seconds=pace * shot.run.computed)) for shot in shots]
    return found


def keeper(model: Model, variant: Variant, active: float, folder: Path) -> Ledger:
    """Keeps what is made with the model that is loaded."""
    numbers = variant.replace(threshold=variant.threshold and 1.0, step_lists=())  # settings bring their own
    ledger = Ledger(folder, numbers=[numbers.digest])
    ledger.maker = maker(model, variant, active, ledger.pictures)
    return ledger


def climbed(ledger: Ledger, cases: Sequence[Case], start: str, work: float, tick: Callable[[int], object]) -> str:
    """A setting of the form `steps:…+linear`, made better by `climb` on these cases; `tick` is told of steps as they are computed."""
    listed, _, forecast = start.removeprefix("steps:").partition("+")

    def text(computed: Sequence[int]) -> str:
        return str(methods.parse(f"steps:{as_text(computed)}+{forecast or 'linear'}"))

    def near(computed: Sequence[int], picture: int) -> Similarity:
        case = cases[picture]
        plain, made = (ledger.make(case, setting, case.steps, 0).file for setting in (OFF, text(computed)))
        tick(len(computed))
        return metrics.similarity(ledger.pictures / made, ledger.pictures / plain)

    return text(climb(parse_steps(listed), cases[0].steps, len(cases), near, work))


def maker(model: Model, variant: Variant | None, active: float, folder: Path) -> Maker:
    """Makes shots with the model that is loaded. A case's prompt may be "" for the command's own; `active` is the share of the
    steps asked for that the loop takes, below 1 where it starts from a picture.
    """
    logging.getLogger("mflux.utils.image_util").setLevel(logging.WARNING)  # two lines for each picture, across the bar

    def make(case: Case, setting: str, steps: int, repetition: int) -> Shot:
        file, begun = f"{series.slug(case.name, series.way(setting, steps))}.png", time.perf_counter()
        mx.reset_peak_memory()
        total = max(1, round(steps * active))
        computed: float = total
        method = None
        asked: dict[str, Any] = {"num_inference_steps": steps}
        asked |= {} if case.guidance is None else {"guidance": case.guidance}
        if setting == OFF and model.cfg_end is None:
            image = model.generate(case.prompt, case.seed, **asked)
        else:
            wanted = case.text(setting)
            with apply.apply_teacache(model.pipeline, wanted, variant=variant, cfg_end=model.cfg_end) as handle:
                image = model.generate(case.prompt, case.seed, **asked)
            last, method = handle.stats.last, str(handle.method)
            computed, total = last.computed, last.taken
            if last.fault is not None:  # from there on all was computed
                print(f"{setting}: {last.fault}", file=sys.stderr)
        image.save(folder / file, overwrite=True)
        wall, peak = time.perf_counter() - begun, mx.get_peak_memory()  # of MLX alone: the process made others too
        run = Run(steps, computed, total - computed, float(image.generation_time), wall, peak, peak, method)
        return Shot(case.name, setting, steps, repetition, file, run)

    return make
