"""Pictures with each setting, beside plain mflux with as many steps: `measure`'s shots, made with the model that is loaded.

What counts as fast is how many steps are computed, since seconds of many runs in one process mislead: a shot's are those that
the steps computed take at the pace of the plain run with all steps.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.measure import files, series, shards
from mflux_teacache_plugin.measure.runs import Run
from mflux_teacache_plugin.measure.series import Case, Shot
from mflux_teacache_plugin.methods import OFF
from mflux_teacache_plugin.variants import Variant


@dataclass(frozen=True)
class Sweep:
    """Where pictures go, and what they are made with. A case's prompt may be "" for the command's own.

    Attributes:
        active: the share of the steps asked for that the loop takes: below 1 where it starts from a picture.
        ways: what `--teacache` takes, for those settings of the cases that are names.
    """

    model: Model
    variant: Variant | None
    active: float
    folder: Path
    ways: Mapping[str, str] = field(default_factory=dict)

    def pictures(self, cases: Sequence[Case]) -> list[Shot] | None:
        """This rank's share of the cases, as far as it is not in the folder; rank 0 gets the shots of all ranks, others None."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = shards.mine(cases)
        missing = [case for case in mine if self._kept(case) is None]
        with series.progress(
            sum(case.most_shots for case in missing), show=shards.leads() and bool(missing)
        ) as counted:
            for case in missing:
                shots = series.one_round(case, 0, counted(self.make))
                pace = shots[0].run.seconds / shots[0].run.computed  # of the plain run with all steps
                runs = [replace(shot.run, seconds=pace * shot.run.computed) for shot in shots]
                told = [asdict(replace(shot, run=run)) for shot, run in zip(shots, runs, strict=True)]
                files.write(self._file(case), json.dumps({"key": self._key(case), "shots": told}) + "\n")
        shards.gather_files([file for case in mine for file in sorted(self.folder.glob(f"{case.name}*"))], self.folder)
        gathered = shards.gather([self._kept(case) for case in mine])
        return None if gathered is None else [Shot.of(values) for shots in gathered for values in shots]

    def make(self, case: Case, setting: str, steps: int, repetition: int) -> Shot:
        """One shot, made with the model that is loaded."""
        logging.getLogger("mflux.utils.image_util").setLevel(
            logging.WARNING
        )  # two lines for each picture, across the bar
        file, begun = f"{series.slug(case.name, series.way(setting, steps))}.png", time.perf_counter()
        mx.reset_peak_memory()
        total = max(1, round(steps * self.active))
        computed: float = total
        asked: dict[str, Any] = {"num_inference_steps": steps}
        asked |= {} if case.guidance is None else {"guidance": case.guidance}
        cfg_end = self.model.cfg_end
        if setting == OFF and cfg_end is None:
            image = self.model.generate(case.prompt, case.seed, **asked)
        else:
            wanted = self.ways.get(setting, setting)
            with apply.apply_teacache(self.model.pipeline, wanted, variant=self.variant, cfg_end=cfg_end) as handle:
                image = self.model.generate(case.prompt, case.seed, **asked)
            last = handle.stats.last
            computed, total = last.computed, last.taken
            if last.fault is not None:  # from there on all was computed
                print(f"{setting}: {last.fault}", file=sys.stderr)
        image.save(self.folder / file, overwrite=True)
        wall, peak = time.perf_counter() - begun, mx.get_peak_memory()  # of MLX alone: the process made others too
        run = Run(steps, computed, total - computed, float(image.generation_time), wall, peak, peak, None)
        return Shot(case.name, setting, steps, repetition, file, run)

    def _file(self, case: Case) -> Path:
        return self.folder / f"{case.name}.json"

    def _key(self, case: Case) -> list[Any]:
        assert self.variant is not None
        numbers = self.variant.replace(
            threshold=self.variant.threshold and 1.0, step_lists=()
        )  # settings bring their own
        wanted = [self.ways.get(each, each) for each in case.settings]
        return [case.steps, wanted, case.guidance, numbers.digest, str(case.command)]

    def _kept(self, case: Case) -> list[dict[str, Any]] | None:
        """What was made of this case, by this call or an earlier one; None if that was something else."""
        try:
            found = json.loads(self._file(case).read_text(encoding="utf-8"))
            return found["shots"] if found["key"] == self._key(case) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
