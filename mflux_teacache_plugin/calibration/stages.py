"""A whole calibration, stage by stage: record plain generations, propose numbers and settings, make pictures with them on prompts
that were held out, choose, write the coefficient file, report.

Everything is kept as it is made: a generation that was recorded, and a prompt on which all settings were tried, is a file of
its own, so that the same command goes on where it was interrupted. Under `mlx.launch` each rank takes its share of both.
"""

import hashlib
import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
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
from mflux_teacache_plugin.calibration.sweep import Sweep
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.calibration.traces import Trace, TraceError
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.measure import files, results, series, shards
from mflux_teacache_plugin.measure.metrics import Similarity
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.measure.series import Case, Shot
from mflux_teacache_plugin.methods import OFF
from mflux_teacache_plugin.variants import Catalog, Match, Variant

#: The first seed; further ones of a prompt count up.
SEED = 42

COMMENT = "Made by `mflux-teacache calibrate`. Every key: docs/coefficient-files.md."

UNKNOWN_LICENCE = "unknown; see the model's own page"

Item = tuple[str, int]  # a prompt and a seed


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        command: the mflux command, program first.
        prompts: to record and fit; `held_out`: to try settings on, none for no trial.
        seeds: generations of each prompt.
        settings: methods to try; none for a choice that follows from the fit.
        target: mean SSIM that a recommended setting must reach.
        id: of the variant; None to take the model's.
        output: folder of the coefficient file, None for the user's own; `folder`: of everything else, None for
            `calibration-<id>` here.
        force: overwrite an existing coefficient file.
    """

    command: tuple[str, ...]
    prompts: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    seeds: int = 1
    settings: tuple[str, ...] = ()
    target: float = 0.97
    id: str | None = None
    output: Path | None = None
    folder: Path | None = None
    force: bool = False

    def items(self, prompts: Sequence[str]) -> list[Item]:
        return [(prompt, SEED + number) for prompt in prompts for number in range(self.seeds)]


@dataclass(frozen=True, eq=False)
class Pictures:
    """What the held-out prompts gave, of all ranks: measure's cases, shots, similarities by file name, and rows."""

    cases: Sequence[Case] = ()
    shots: Sequence[Shot] = ()
    near: dict[str, Similarity] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    faults: Sequence[str] = ()  #: settings that could not be tried, and why

    @property
    def nearest(self) -> Row:
        """The row whose pictures came nearest to plain mflux's, in mean SSIM."""
        return max((row for row in self.rows if row.quality), key=lambda row: row.quality.ssim if row.quality else 0)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a calibration found and wrote."""

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
        self._output = plan.output or catalog.user_folder
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
        name = source or model_config.model_name
        exact = match.variant if match is not None and match.exact else None
        existing = self._existing = None if match is None else match.variant
        id = self._plan.id or (exact.id if exact is not None else id_of(name))
        models = exact.models if exact is not None else (name_of(name),)
        self._facts = {"id": id, "adapter": adapter.id, "models": models, "weights_licence": UNKNOWN_LICENCE}
        if existing is not None:
            self._facts.update(distilled=existing.distilled, weights_licence=existing.weights_licence)
            if existing.id == id:
                self._facts.update(related=existing.related, guard=existing.guard)
        self._folder = self._plan.folder or Path(f"calibration-{id}")
        if shards.leads():
            coefficient_file.check_free(self._output, id, self._plan.force)
            check_writable(self._output)
        check_writable(self._folder)
        for item in self._plan.items(self._plan.prompts):
            self._is_recorded(*item)

    def _stages(self, model: Model) -> None:
        """All stages, in order. Every rank comes to each of the first three; rank 0 decides and writes."""
        self._record(model)
        recorded, analysis, variant, settings = self._propose()
        pictures = self._make_pictures(model, recorded, variant, settings)
        if analysis is None:
            return
        choice = choose(pictures.rows, self._plan.target) if pictures.cases else None
        if choice is not None:
            tried = f"Settings were tried on {len(pictures.cases)} held-out pictures. {choice.why}"
            variant = recommending(variant, pictures.rows, choice, self._plan.target, [tried, *pictures.faults])
        self._report(recorded, analysis, variant, pictures, choice)
        path = coefficient_file.write(variant, self._output, COMMENT, self._plan.force)
        self._outcome = Outcome(variant, analysis, pictures.rows, choice, path, self._folder)

    # ---- record ------------------------------------------------------------------------------------------------------

    def _record(self, model: Model) -> None:
        """This rank's share of the generations, as far as they are not on disk; rank 0 gets those of all ranks."""
        items = shards.mine(self._plan.items(self._plan.prompts))
        missing = [item for item in items if not self._is_recorded(*item)]
        with (
            self._bar("recording", len(missing) * (model.steps or 1), "step" if model.steps else "picture") as bar,
            recording(model.pipeline, model.adapter, bar.update if model.steps else lambda: None) as recorder,
        ):
            for prompt, seed in missing:
                model.generate(prompt, seed)
                self._write_trace(model, recorder.last, prompt, seed)
                if not model.steps:
                    bar.update()
        shards.gather_files([self._trace(*item) for item in items], self._folder)

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

    def _origin(self) -> dict[str, str]:
        """What two generations of one calibration have in common."""
        command = shlex.join(_comparable(self._plan.command))
        return {"variant": self._facts["id"], "command": command, "mflux": version("mflux")}

    def _trace(self, prompt: str, seed: int) -> Path:
        return self._folder / "traces" / f"{slug(prompt, seed)}.json"

    # ---- propose -----------------------------------------------------------------------------------------------------

    def _propose(self) -> tuple[list[Trace], Analysis | None, Variant, list[str]]:
        """What was recorded and what it says, both on rank 0 alone; on every rank the variant and what to try with it."""
        recorded, analysis, proposed = [], None, None
        if shards.leads():
            recorded = [
                trace for item in self._plan.items(self._plan.prompts) for trace in traces.read(self._trace(*item))
            ]
            analysis = analyse(recorded, self._existing)
            variant = propose.variant_of(self._facts, analysis, recorded, self._existing)
            settings = list(self._plan.settings or propose.settings(variant, recorded))
            proposed = json.loads(json.dumps([as_table(variant), settings], default=as_table))
        table, settings = shards.share(proposed)
        return recorded, analysis, Variant(**table), settings

    # ---- make pictures -----------------------------------------------------------------------------------------------

    def _make_pictures(self, model: Model, recorded: list[Trace], variant: Variant, settings: list[str]) -> Pictures:
        """Every setting on this rank's held-out prompts; rank 0 gets those of all ranks."""
        steps, active = shards.share([recorded[0].recipe["steps"], len(recorded[0].sigma)] if shards.leads() else None)
        command = Command(self._plan.command[0], self._plan.command[1:])
        cases = [
            Case(slug(*item), self._facts["id"], *item, steps, tuple(settings), command)
            for item in self._plan.items(self._plan.held_out)
        ]
        mine, folder = shards.mine(cases), self._folder / "pictures"
        missing = [case for case in mine if self._kept(case, variant) is None]
        with self._bar("trying settings", sum(case.most_shots for case in missing), "picture") as bar:
            for case in missing:
                sweep = Sweep(model, variant, active / steps, folder, bar.update)
                made = [asdict(shot) for shot in sweep.shots(case)]
                found = {"key": self._key(case, variant), "shots": made, "faults": sweep.faults}
                files.write(folder / case.name / "tried.json", json.dumps(found, indent=1) + "\n")
            bar.total = bar.n  # settings that compute as many steps share a plain picture
        shards.gather_files([file for case in mine for file in sorted((folder / case.name).iterdir())], self._folder)
        gathered = shards.gather([self._kept(case, variant) for case in mine])
        if not gathered:
            return Pictures()
        faults = {setting: why for found in gathered for setting, why in found["faults"].items()}
        cases = [replace(case, settings=tuple(each for each in settings if each not in faults)) for case in cases]
        shots = [Shot.of(values) for found in gathered for values in found["shots"] if values["setting"] not in faults]
        near = series.similarities(shots, cases, folder)
        told = [f"{setting} could not be tried: {why}." for setting, why in sorted(faults.items())]
        return Pictures(cases, shots, near, results.rows(cases, shots, near), told)

    def _key(self, case: Case, variant: Variant) -> list[Any]:
        return [case.prompt, case.seed, case.steps, list(case.settings), variant.digest, str(case.command)]

    def _kept(self, case: Case, variant: Variant) -> dict[str, Any] | None:
        """What was made earlier, if it was the same."""
        try:
            found = json.loads((self._folder / "pictures" / case.name / "tried.json").read_text(encoding="utf-8"))
            return found if found["key"] == self._key(case, variant) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # ---- report ------------------------------------------------------------------------------------------------------

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
        from mflux_teacache_plugin.measure import gallery, plots, report

        drawn = [self._folder / "profile.png"]
        charts.draw(analysis, recorded, self._existing, drawn[0])
        shown: list[tuple[str, list[report.Shown]]] = []
        if len(pictures.rows) > 1:  # not plain mflux alone
            drawn.append(self._folder / "frontier.png")
            plots.frontier(pictures.rows, drawn[1])
            chosen = choice.row if choice is not None and choice.row is not None else pictures.nearest
            shots = [shot for shot in pictures.shots if shot.setting in (OFF, chosen.setting)]
            for heading, tiles in gallery.lines(pictures.cases, shots, pictures.near, self._folder / "pictures"):
                shown.append((heading, [report.Shown(tile.title, tile.figures, tile.file) for tile in tiles]))
        about = [shlex.join(self._plan.command), variant.provenance.recipe, variant.provenance.notes]
        text = report.html(f"Calibration of {variant.id}", "\n".join(filter(None, about)), pictures.rows, drawn, shown)
        files.write(self._folder / "report.html", text)

    def _bar(self, what: str, total: int, unit: str) -> tqdm:
        return tqdm(total=total, desc=what, unit=unit, disable=not shards.leads() or total == 0)


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
    """A variant id that follows from a model's name or path."""
    last = name_of(name).rsplit("/", 1)[-1].casefold()
    letters = "".join(sign if sign.isascii() and (sign.isalnum() or sign in ".-") else "-" for sign in last)
    return letters.strip(".-") or "model"


def name_of(source: str) -> str:
    """What a coefficient file calls these weights: a repository as it is, a folder by its own name."""
    path = Path(source).expanduser()
    return path.absolute().name if path.exists() else source


def slug(prompt: str, seed: int) -> str:
    """A file name for one prompt and seed: readable, and different for different prompts."""
    words = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in prompt.casefold())
    short = "-".join(filter(None, words.split("-")))[:40].strip("-")
    return f"{short or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}-{seed}"


def _comparable(words: Sequence[str]) -> list[str]:
    """The command without what a calibration replaces, to tell whether two runs record the same."""
    kept, skip = [], False
    for word in words:
        name = word.split("=")[0]
        if not skip and name not in _REPLACED:
            kept.append(word)
        skip = name in _REPLACED and "=" not in word
    return kept


_REPLACED = ("--prompt", "--prompt-file", "--seed", "--output")
