"""Pictures with each setting, beside plain mflux with as many steps: `measure`'s shots, made with the model that is loaded.

What counts as fast is how many steps are computed: seconds of many runs in one process mislead, and are only told.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.measure import files, results, series, shards
from mflux_teacache_plugin.measure.metrics import Similarity
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.measure.runs import Run
from mflux_teacache_plugin.measure.series import Case, Maker, Shot
from mflux_teacache_plugin.methods import OFF
from mflux_teacache_plugin.variants import Variant


@dataclass(frozen=True, eq=False)
class Pictures:
    """What was made: `measure`'s cases, shots, similarities by file name, and rows; empty on ranks that do not lead.

    Attributes:
        faults: settings that could not be tried, and why; they are in none of the others.
    """

    cases: Sequence[Case] = ()
    shots: Sequence[Shot] = ()
    near: Mapping[str, Similarity] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    faults: Mapping[str, str] = field(default_factory=dict)


def make_pictures(model: Model, variant: Variant, cases: Sequence[Case], active: float, folder: Path) -> Pictures:
    """This rank's share of the cases, as far as it is not in the folder; rank 0 gets those of all ranks.

    Args:
        active: share of the steps asked for that the loop takes: below 1 where it starts from a picture.
    """
    mine = shards.mine(cases)
    missing = [case for case in mine if _kept(case, variant, folder) is None]
    with series.progress(sum(case.most_shots for case in missing), show=shards.leads() and bool(missing)) as counted:
        for case in missing:
            faults: dict[str, str] = {}
            for setting in case.settings:
                try:
                    apply.apply_teacache(model.pipeline, setting, variant=variant).restore()
                except TeaCacheError as error:
                    faults[setting] = error.error
            make = counted(_maker(model, variant, active, folder, faults))
            shots = [asdict(shot) for shot in series.one_round(_without(case, faults), 0, make)]
            kept = {"key": _key(case, variant), "shots": shots, "faults": faults}
            files.write(folder / case.name / "tried.json", json.dumps(kept, indent=1) + "\n")
    shards.gather_files([file for case in mine for file in sorted((folder / case.name).iterdir())], folder)
    gathered = shards.gather([_kept(case, variant, folder) for case in mine])
    if not gathered:
        return Pictures()
    faults = {setting: why for found in gathered for setting, why in found["faults"].items()}
    cases = [_without(case, faults) for case in cases]
    made = [Shot.of(values) for found in gathered for values in found["shots"] if values["setting"] not in faults]
    near = series.similarities(made, cases, folder)
    return Pictures(cases, made, near, results.rows(cases, made, near), faults)


def _maker(model: Model, variant: Variant, active: float, folder: Path, faults: dict[str, str]) -> Maker:
    """Makes shots with the loaded model; what stood aside midway goes to `faults`."""

    def make(case: Case, setting: str, steps: int, repetition: int) -> Shot:
        begun = time.perf_counter()
        mx.reset_peak_memory()
        total = max(1, round(steps * active))
        computed: float = total
        if setting == OFF:
            image = model.generate(case.prompt, case.seed, num_inference_steps=steps)
        else:
            with apply.apply_teacache(model.pipeline, setting, variant=variant) as handle:
                image = model.generate(case.prompt, case.seed, num_inference_steps=steps)
            computed, total = handle.stats.last.computed, handle.stats.last.taken
            if handle.stats.last.fault is not None:
                faults[setting] = handle.stats.last.fault
        way = f"plain-{steps}-steps" if setting == OFF else re.sub(r"[^\w.=+-]+", "-", setting)
        file = f"{case.name}/{way}.png"
        (folder / case.name).mkdir(parents=True, exist_ok=True)
        image.image.save(folder / file)
        wall, peak = (
            time.perf_counter() - begun,
            mx.get_peak_memory(),
        )  # of MLX alone: the process made other pictures too
        run = Run(steps, computed, total - computed, float(image.generation_time), wall, peak, peak, None, total)
        return Shot(case.name, setting, steps, repetition, file, run)

    return make


def _without(case: Case, faults: Mapping[str, str]) -> Case:
    return replace(case, settings=tuple(setting for setting in case.settings if setting not in faults))


def _key(case: Case, variant: Variant) -> list[Any]:
    return [case.prompt, case.seed, case.steps, list(case.settings), variant.digest, str(case.command)]


def _kept(case: Case, variant: Variant, folder: Path) -> dict[str, Any] | None:
    """What was made of this case, by this call or an earlier one; None if that was something else."""
    try:
        found = json.loads((folder / case.name / "tried.json").read_text(encoding="utf-8"))
        return found if found["key"] == _key(case, variant) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
