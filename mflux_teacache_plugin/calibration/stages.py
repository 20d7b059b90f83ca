"""A whole calibration, stage by stage: record plain generations, propose numbers and settings, make pictures with them on prompts
that were held out, choose, write the coefficient file, report.

Everything is kept as it is made: a generation that was recorded, and a prompt on which all settings were tried, is a file of
its own, so that the same command goes on where it was interrupted. Under `mlx.launch` each rank takes its share of both.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.calibration import coefficient_file, propose, takeover, traces
from mflux_teacache_plugin.calibration.analysis import Analysis, analyse
from mflux_teacache_plugin.calibration.recommend import Recommendation, choose, recommending
from mflux_teacache_plugin.calibration.record import OUTPUT, Recording, recording
from mflux_teacache_plugin.calibration.sweep import Pictures, make_pictures
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.calibration.traces import Trace, TraceError
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.measure import files, shards
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.measure.series import Case
from mflux_teacache_plugin.methods import OFF
from mflux_teacache_plugin.variants import Catalog, Match, Variant

#: The first seed; further ones of a prompt count up.
SEED = 42

COMMENT = "Made by `mflux-teacache calibrate`. Every key: docs/coefficient-files.md."

SECONDS = (
    "Seconds are those of one process, one setting after the other, and mislead: what counts are the steps computed."
)

UNKNOWN_LICENCE = "unknown; see the model's own page"

Item = tuple[str, int]  # a prompt and a seed


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        command: of mflux, with its options.
        prompts: to record and fit; `held_out`: to try settings on, none for no trial.
        seeds: generations of each prompt.
        settings: methods to try; none for a choice that follows from the fit.
        target: mean SSIM that a recommended setting must reach.
        id: of the variant; None to take the model's.
        output: folder of the coefficient file; `folder`: of everything else, None for `calibration-<id>` here.
        force: overwrite an existing coefficient file.
    """

    command: Command
    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    seeds: int
    settings: tuple[str, ...]
    target: float
    id: str | None
    output: Path
    folder: Path | None
    force: bool

    def items(self, prompts: Sequence[str]) -> list[Item]:
        return [(prompt, SEED + number) for prompt in prompts for number in range(self.seeds)]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a calibration found and wrote; without held-out prompts there are no rows and no choice."""

    variant: Variant
    analysis: Analysis
    rows: Sequence[Row]
    choice: Recommendation | None
    coefficients: Path
    folder: Path


class Calibration:
    """One calibration; `run` does it all and gives the outcome on rank 0, None on the others."""

    def __init__(self, plan: Plan, catalog: Catalog) -> None:
        self._plan = plan
        self._catalog = catalog
        self._folder = Path()
        self._facts: dict[str, Any] = {}  # the coefficient file's keys besides numbers and provenance
        self._existing: Variant | None = None
        self._outcome: Outcome | None = None

    def run(self) -> Outcome | None:
        with shards.stoppable():
            takeover.run(self._plan.command, self._catalog, self._check, self._stages)
        return self._outcome

    def _check(self, adapter: Adapter, match: Match | None, model_config: Any, source: str | None) -> None:
        """Before any weights load: whose numbers these will be, and whether they can be written."""
        name = name_of(source or model_config.model_name)
        exact = match.variant if match is not None and match.exact else None
        existing = self._existing = None if match is None else match.variant
        id = self._plan.id or (exact.id if exact is not None else id_of(name))
        models = exact.models if exact is not None else (name,)
        self._facts = {"id": id, "adapter": adapter.id, "models": models, "weights_licence": UNKNOWN_LICENCE}
        if existing is not None:
            self._facts.update(distilled=existing.distilled, weights_licence=existing.weights_licence)
            if existing.id == id:
                self._facts.update(related=existing.related, guard=existing.guard)
        self._folder = self._plan.folder or Path(f"calibration-{id}")
        if shards.leads():
            coefficient_file.check_free(self._plan.output, id, self._plan.force)
            check_writable(self._plan.output)
        check_writable(self._folder)
        for item in self._plan.items(self._plan.prompts):
            self._is_recorded(*item)

    def _stages(self, model: Model) -> None:
        """All of them, in order. Every rank comes to the first three; rank 0 alone chooses and writes."""
        self._record(model)
        recorded, analysis, proposal = self._propose()
        variant = Variant(**proposal["variant"])
        cases = self._cases(proposal["settings"], proposal["steps"])
        pictures = make_pictures(model, variant, cases, proposal["active"], self._folder / "pictures")
        if analysis is None:
            return
        choice = choose(pictures.rows, self._plan.target) if cases else None
        if choice is not None:
            reasons = [f"Settings were tried on {len(cases)} held-out pictures. {choice.why}"]
            reasons += [f"{setting} could not be tried: {why}." for setting, why in sorted(pictures.faults.items())]
            variant = recommending(variant, pictures.rows, choice, self._plan.target, reasons)
        self._report(recorded, analysis, variant, pictures, choice)
        file = coefficient_file.write(variant, self._plan.output, COMMENT, self._plan.force)
        self._outcome = Outcome(variant, analysis, pictures.rows, choice, file, self._folder)

    def _record(self, model: Model) -> None:
        """This rank's share of the generations, as far as they are not on disk; rank 0 gets those of all ranks."""
        items = shards.mine(self._plan.items(self._plan.prompts))
        missing = [item for item in items if not self._is_recorded(*item)]
        total = len(missing) * model.steps if model.steps else None
        with (
            tqdm(total=total, desc="recording", unit="step", disable=not (missing and shards.leads())) as bar,
            recording(model.pipeline, model.adapter, bar.update) as recorder,
        ):
            for prompt, seed in missing:
                model.generate(prompt, seed)
                self._write_trace(model, recorder.last, prompt, seed)
        shards.gather_files([self._trace(*item) for item in items], self._folder)

    def _propose(self) -> tuple[list[Trace], Analysis | None, dict[str, Any]]:
        """What was recorded, what it says (both on rank 0 alone), and on every rank what to try: variant and settings."""
        recorded, analysis, proposal = [], None, None
        if shards.leads():
            recorded = [
                trace for item in self._plan.items(self._plan.prompts) for trace in traces.read(self._trace(*item))
            ]
            analysis = analyse(recorded, self._existing)
            variant = propose.variant_of(self._facts, analysis, recorded, self._existing)
            steps = recorded[0].recipe["steps"]
            proposal = {
                "variant": json.loads(json.dumps(as_table(variant), default=as_table)),
                "settings": self._plan.settings or propose.settings(variant, recorded),
                "steps": steps,
                "active": len(recorded[0].sigma) / steps,
            }
        return recorded, analysis, shards.share(proposal)

    def _cases(self, settings: Sequence[str], steps: int) -> list[Case]:
        """What is tried on each held-out prompt."""
        items, ways = self._plan.items(self._plan.held_out), tuple(settings)
        return [Case(slug(*item), self._facts["id"], *item, steps, ways, self._plan.command) for item in items]

    def _report(
        self,
        recorded: Sequence[Trace],
        analysis: Analysis,
        variant: Variant,
        pictures: Pictures,
        choice: Recommendation | None,
    ) -> None:
        """The charts and the page, with the pictures of the chosen setting, or of the nearest."""
        from mflux_teacache_plugin.calibration import charts  # matplotlib takes its time
        from mflux_teacache_plugin.measure import plots, report

        drawn, shown, commands = [self._folder / "profile.png"], [], {}
        charts.draw(analysis, recorded, self._existing, drawn[0])
        if choice is not None and choice.nearest is not None:
            drawn.append(self._folder / "frontier.png")
            plots.frontier(pictures.rows, drawn[1])
            shots = [shot for shot in pictures.shots if shot.setting in (OFF, choice.setting or choice.nearest)]
            shown = report.lines(pictures.cases, shots, pictures.near, self._folder / "pictures")
            commands[variant.id] = str(pictures.cases[0].command.with_options(teacache=choice.setting))
        about = f"{variant.provenance.recipe}. {variant.provenance.notes}" + (f"\n{SECONDS}" if pictures.rows else "")
        text = report.html(f"Calibration of {variant.id}", about, pictures.rows, drawn, shown, commands)
        files.write(self._folder / "report.html", text)

    # ---- traces of this calibration ----------------------------------------------------------------------------------

    def _trace(self, prompt: str, seed: int) -> Path:
        return self._folder / "traces" / f"{slug(prompt, seed)}.json"

    def _origin(self) -> dict[str, str]:
        """What all generations of one calibration have in common."""
        return {"variant": self._facts["id"], "command": str(self._plan.command), "mflux": version("mflux")}

    def _is_recorded(self, prompt: str, seed: int) -> bool:
        """Whether this generation is on disk. Raises TraceError if a file of another run is."""
        path = self._trace(prompt, seed)
        if not path.exists():
            return False
        recipe, ours = traces.read(path)[0].recipe, self._origin()
        if differing := [f"{key}: {recipe.get(key)}, now {ours[key]}" for key in ours if recipe.get(key) != ours[key]]:
            hint = "name another --folder, or delete this one"
            raise TraceError(f"{path} is of another run", cause="\n".join(differing), hint=hint)
        return True

    def _write_trace(self, model: Model, last: Recording, prompt: str, seed: int) -> None:
        steps = len(last.sigma)
        if steps < traces.FEWEST_STEPS:
            raise TraceError(f"{steps} steps tell nothing", hint=f"take --steps {traces.FEWEST_STEPS} or more")
        branches = last.branches or [{OUTPUT: last.prediction}]
        rows = list(branches[0].values())
        if not all(len(row) == steps - 1 for row in rows) or not np.isfinite(rows).all():
            raise TraceError(
                f"{type(model.pipeline).__name__} cannot be recorded",
                cause=f"{steps} steps gave {sorted({len(row) for row in rows})} finite changes",
                hint="its adapter does not fit, or it takes its steps in another way",
            )
        # guidance may end before the run does, and its branch with it
        branches = [branch for branch in branches if all(len(row) == steps - 1 for row in branch.values())]
        recipe = {
            **self._origin(),
            "source": f"mflux-teacache-plugin {version('mflux-teacache-plugin')}, mflux-teacache calibrate",
            "adapter": self._facts["adapter"],
            "models": self._facts["models"],
            "signal": traces.SIGNAL,
            **last.facts,
            "quantize": getattr(model.pipeline, "bits", None),
            "lora_paths": [str(path) for path in getattr(model.pipeline, "lora_paths", None) or ()],
            "prompt": prompt,
            "seed": seed,
        }
        prediction = last.prediction if len(last.prediction) == steps - 1 else None
        traces.write_generation(self._trace(prompt, seed), recipe, last.sigma, branches, prediction)


def check_writable(folder: Path) -> None:
    """Raise TraceError if no file can be written into a folder, or no such folder be made. Leaves nothing behind."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        hint = "name another folder"
        raise TraceError(f"{folder} cannot be written", cause=error.strerror or str(error), hint=hint) from error


def id_of(name: str) -> str:
    """A variant id that follows from a model's name."""
    return re.sub(r"[^a-z0-9.-]", "-", name.rsplit("/", 1)[-1].casefold()).strip(".-") or "model"


def name_of(source: str) -> str:
    """What a coefficient file calls these weights: a repository as it is, a folder by its own name."""
    path = Path(source).expanduser()
    return path.absolute().name if path.exists() else source


def slug(prompt: str, seed: int) -> str:
    """A file name for one prompt and seed: readable, and different for different prompts."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.casefold()).strip("-")[:40].strip("-")
    return f"{words or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}-{seed}"
