"""Pictures with each setting, beside plain mflux with as many steps: `measure`'s shots, made with the model that is loaded.

What counts as fast is how many steps are computed, since seconds of many runs in one process mislead: a shot's are those that
the steps computed take at the pace of the plain run with all steps.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.measure import files, series, shards
from mflux_teacache_plugin.measure.runs import Run
from mflux_teacache_plugin.measure.series import Case, Maker, Shot
from mflux_teacache_plugin.methods import OFF
from mflux_teacache_plugin.variants import Variant


def make_pictures(
    model: Model, variant: Variant, cases: Sequence[Case], active: float, folder: Path
) -> list[Shot] | None:
    """This rank's share of the cases, as far as it is not in the folder; rank 0 gets the shots of all ranks, others None.

    `active` is the share of the steps asked for that the loop takes: below 1 where it starts from a picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = shards.mine(cases)
    missing = [case for case in mine if _kept(case, variant, folder) is None]
    with series.progress(sum(case.most_shots for case in missing), show=shards.leads() and bool(missing)) as counted:
        make = counted(maker(model, variant, active, folder))
        for case in missing:
            shots = series.one_round(case, 0, make)
            pace = shots[0].run.seconds / shots[0].run.computed  # of the plain run with all steps
            runs = [replace(shot.run, seconds=pace * shot.run.computed) for shot in shots]
            told = [asdict(replace(shot, run=run)) for shot, run in zip(shots, runs, strict=True)]
            files.write(folder / f"{case.name}.json", json.dumps({"key": _key(case, variant), "shots": told}) + "\n")
    shards.gather_files([file for case in mine for file in sorted(folder.glob(f"{case.name}*"))], folder)
    gathered = shards.gather([_kept(case, variant, folder) for case in mine])
    return None if gathered is None else [Shot.of(values) for shots in gathered for values in shots]


def maker(model: Model, variant: Variant | None, active: float, folder: Path) -> Maker:
    """Makes shots of a case's prompt, or of the command's own where that is "", whose pictures go to `folder`."""
    logging.getLogger("mflux.utils.image_util").setLevel(logging.WARNING)  # two lines for each picture, across the bar

    def make(case: Case, setting: str, steps: int, repetition: int) -> Shot:
        file, begun = f"{series.slug(case.name, series.way(setting, steps))}.png", time.perf_counter()
        mx.reset_peak_memory()
        total = max(1, round(steps * active))
        computed: float = total
        if setting == OFF and model.cfg_end is None:
            image = model.generate(case.prompt, case.seed, num_inference_steps=steps)
        else:
            with apply.apply_teacache(model.pipeline, setting, variant=variant, cfg_end=model.cfg_end) as handle:
                image = model.generate(case.prompt, case.seed, num_inference_steps=steps)
            last = handle.stats.last
            computed, total = last.computed, last.taken
            if last.fault is not None:  # from there on all was computed
                print(f"{setting}: {last.fault}", file=sys.stderr)
        image.save(folder / file, overwrite=True)
        wall, peak = time.perf_counter() - begun, mx.get_peak_memory()  # of MLX alone: the process made others too
        run = Run(steps, computed, total - computed, float(image.generation_time), wall, peak, peak, None)
        return Shot(case.name, setting, steps, repetition, file, run)

    return make


def _key(case: Case, variant: Variant) -> list[Any]:
    numbers = variant.replace(threshold=variant.threshold and 1.0).digest  # each setting brings its own
    return [case.steps, list(case.settings), numbers, str(case.command)]


def _kept(case: Case, variant: Variant, folder: Path) -> list[dict[str, Any]] | None:
    """What was made of this case, by this call or an earlier one; None if that was something else."""
    try:
        found = json.loads((folder / f"{case.name}.json").read_text(encoding="utf-8"))
        return found["shots"] if found["key"] == _key(case, variant) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
