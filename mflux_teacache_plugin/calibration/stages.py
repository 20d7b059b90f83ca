"""A whole calibration, stage by stage: record plain generations, propose numbers, schedules and settings, make pictures with them on
prompts that were held out, choose, write the coefficient file, report. Of the schedules many are tried on the first of these
prompts, and the best of them on the others.

Everything is kept as it is made: a generation that was recorded, and a prompt on which all settings were tried, is a file of
its own, so that the same command goes on where it was interrupted. Under `mlx.launch` each rank takes its share of both.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.calibration import coefficient_file, propose, sweep, takeover, traces
from mflux_teacache_plugin.calibration.record import Recorder, recording
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.calibration.traces import Trace, TraceError
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.choose import Choice
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError
from mflux_teacache_plugin.measure import results, series, shards
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.measure.series import Case, Shot
from mflux_teacache_plugin.variants import Variant
from mflux_teacache_plugin.variants.variant import BESIDE_MODEL, StepList

#: Of every picture; the prompts differ.
SEED = 42

#: So few steps have nothing between the first and the last, which always compute.
FEWEST_STEPS = 4

COMMENT = "Made by `mflux-teacache calibrate`. Every key: docs/coefficient-files.md."

SECONDS = "Seconds are counted: the steps computed, at the pace of all steps. `mflux-teacache bench` measures them."

UNKNOWN_LICENCE = "unknown; see the model's own page"


@dataclass(eq=False)
class Calibration:
    """One calibration: what was asked for; after `run` also what was found, on rank 0."""

    command: Command
    prompts: Sequence[str]  #: to record and fit
    held_out: Sequence[str]  #: to try settings on; none for no trial
    settings: Sequence[str]  #: to try; none for thresholds and schedules that follow from what is recorded
    guidances: Sequence[float]  #: at which pictures are made; none for the command's own
    minutes: float  #: that making pictures may take, about
    id: str | None  #: of the variant; None to take the model's
    output: Path | None  #: folder of the coefficient file; None for the model's own
    folder: Path | None  #: of everything else; None for `calibration-<id>` here
    force: bool  #: overwrite an existing coefficient file
    file: Path = field(init=False)  #: the coefficient file
    variant: Variant | None = field(init=False, default=None)  #: what it holds
    rows: Sequence[Row] = field(init=False, default=())  #: what the pictures showed
    _facts: dict[str, Any] = field(init=False)  # the coefficient file's keys besides numbers and provenance
    _existing: Variant | None = field(init=False)

    def run(self) -> None:
        """All of it. Every rank takes its share of recording and trying; rank 0 alone fits, chooses and writes."""
        with shards.stoppable():
            takeover.run(self.command, self._check, self._stages)

    @property
    def place(self) -> Path:
        """The folder of everything but the coefficient file."""
        return self.folder or Path(f"calibration-{self._facts['id']}")

    def _check(self, choice: Choice, source: str) -> None:
        """Before any weights load: whose numbers these will be, and whether they can be written."""
        path, existing = Path(source).expanduser(), choice.variant
        name = path.absolute().name if path.exists() else source
        exact = existing if choice.match is not None and choice.match.exact else None
        id = self.id or (exact.id if exact is not None else id_of(name))
        models = exact.models if exact is not None else (name,)
        self._facts = {"id": id, "adapter": choice.adapter.id, "models": models, "weights_licence": UNKNOWN_LICENCE}
        self._existing = existing
        if existing is not None:
            self._facts.update(distilled=existing.distilled, weights_licence=existing.weights_licence)
            if existing.id == id:
                self._facts.update(related=existing.related, guard=existing.guard)
        if self.output is None and not path.is_dir():
            cause = f"the command loads {source}, which is no folder of this machine"
            raise SettingsError("--into-model has no folder to write to", cause=cause, hint="leave it out")
        self.file = path / BESIDE_MODEL if self.output is None else self.output / f"{id}.toml"
        if shards.leads():
            coefficient_file.check_free(self.file, self.force)
            check_writable(self.file.parent)
        check_writable(self.place)
        for prompt in self.prompts:
            self._is_recorded(prompt)

    def _stages(self, model: Model) -> None:
        if self.guidances and not model.has_guidance:
            raise SettingsError(f"{self.command.name} knows no guidance", hint="leave out --guidances")
        self._record(model)
        proposal = shards.share(self._proposal() if shards.leads() else None)
        variant, settings, notes = Variant(**proposal["variant"]), [], []
        for setting in proposal["settings"]:
            try:
                apply.apply_teacache(model.pipeline, setting, variant=variant).restore()
                settings.append(setting)
            except TeaCacheError as error:
                notes.append(f"{setting} could not be tried: {error.error}.")
        groups: list[dict[str, Any]] = proposal["groups"]
        cases: list[Case] = []
        shots: list[Shot] = []
        groups[0]["settings"] = settings
        first = propose.first_round(len(self.held_out))
        for prompts, most in zip((self.held_out[:first], self.held_out[first:]), proposal["depth"], strict=True):
            cases += (
                new := [self._case(prompt, group, most, proposal["steps"]) for prompt in prompts for group in groups]
            )
            shots += sweep.pictures(model, variant, proposal["active"], self.place, new)
            if shards.leads():
                self._rank(groups, cases, shots)
            groups = shards.share(groups)
        if shards.leads():
            self._conclude(variant, cases, shots, notes, groups)

    def _case(self, prompt: str, group: dict[str, Any], most: int, steps: int) -> Case:
        """One picture of a group, with its settings and the first so many ways to each speed-up."""
        guidance = group["guidance"]
        named = {name: way for names in group["tried"].values() for name, way in list(names.items())[:most]}
        name = slug(prompt) if guidance is None else f"{slug(prompt)}-guidance-{guidance:g}"
        command = self.command.with_options(prompt=prompt, seed=SEED, guidance=guidance)
        settings = (*group["settings"], *named)
        return Case(name, group["name"], prompt, SEED, steps, settings, command, "", guidance, named)

    def _rank(self, groups: Sequence[dict[str, Any]], cases: Sequence[Case], shots: Sequence[Shot]) -> None:
        """Put the ways with the nearest pictures first in each group, but for what the profile gives, which stays first."""
        near = series.similarities(shots, cases, self.place / "pictures", {case.name: case.name for case in cases})
        rows = results.by_group(results.rows(cases, shots, near, {}))
        for group in groups:
            for speedup, names in group["tried"].items():
                usual, *_ = names
                ranked = [row.setting for row in propose.nearest(rows.get(group["name"], ()), names)]
                order = [usual, *(name for name in ranked if name != usual)]
                group["tried"][speedup] = {name: names[name] for name in order}

    def _record(self, model: Model) -> None:
        """This rank's share of the generations, as far as they are not on disk; rank 0 gets those of all ranks."""
        mine = shards.mine(self.prompts)
        missing = [prompt for prompt in mine if not self._is_recorded(prompt)]
        total = len(missing) * model.steps if model.steps else None
        with (
            tqdm(total=total, desc="recording", unit="step", disable=not (missing and shards.leads())) as bar,
            recording(model.pipeline, model.adapter, bar.update) as recorder,
        ):
            for prompt in missing:
                image = model.generate(prompt, SEED)
                traces.write(self._trace(prompt), self._seen(model, recorder, prompt, image.generation_time))
        recorded = [self._trace(prompt) for prompt in mine]
        shards.gather_files(
            [each for path in recorded for each in (traces.gram_file(path), path) if each.exists()], self.place
        )

    def _proposal(self) -> dict[str, Any]:
        """What to try, as JSON holds it: the variant; for each guidance (`at`; `guidance` is None for the command's own) its
        settings and `propose.ways`; and how many of these.
        """
        recorded = [traces.read(self._trace(prompt)) for prompt in self.prompts]
        variant, first = propose.variant_of(self._facts, recorded, self._existing), recorded[0]
        active = len(first.sigma) / first.steps
        groups: list[dict[str, Any]] = []
        for guidance in self.guidances or (None,):
            at = guidance or first.guidance or 1.0  # a model without guidance makes one call a step, as at 1
            tried = {} if self.settings or active < 1 else propose.ways(variant, self._existing, recorded, at)
            name = variant.id if guidance is None else f"{variant.id}, guidance {guidance:g}"
            groups.append({"name": name, "guidance": guidance, "at": at, "settings": [], "tried": tried})
        pace = float(np.mean([trace.seconds or 0.0 for trace in recorded])) / len(first.sigma)
        return {
            "variant": json.loads(json.dumps(as_table(variant), default=as_table)),
            "settings": list(self.settings or propose.settings(variant, recorded, schedules=active == 1)),
            "groups": groups,
            "depth": propose.depth(first.sigma, len(self.held_out), pace * len(groups), self.minutes),
            "steps": first.steps,
            "active": active,
        }

    def _conclude(
        self,
        variant: Variant,
        cases: Sequence[Case],
        shots: Sequence[Shot],
        notes: list[str],
        groups: Sequence[dict[str, Any]],
    ) -> None:
        """Choose, and write the report and the coefficient file."""
        from mflux_teacache_plugin.measure import report  # matplotlib takes its time

        about = f"{variant.provenance.recipe}. {variant.provenance.notes}\n{SECONDS if cases else ''}"
        title, pictures = f"Calibration of {variant.id}", self.place / "pictures"
        facts = {"variant": asdict(variant)}
        self.rows, _ = report.conclude(title, about.strip(), facts, cases, shots, pictures, self.place)
        rows, any_needed = results.by_group(self.rows), False
        lists: list[StepList] = []
        for group in groups if cases else ():
            of_group = rows[group["name"]]
            found, needed = propose.step_lists(of_group, group["tried"], cases[0].steps, group["at"])
            nearer = ", ".join(str(len(each.computed)) for each in found if each.plain_is_nearer)
            told = f"At {cases[0].steps} steps, guidance {group['at']:g}: {len(self.held_out)} held-out prompts."
            lost = f" Plain mflux comes nearer where {nearer} of the steps are computed." * bool(nearer)
            notes.append(f"{told} {results.verdict(of_group)}{lost}")
            lists, any_needed = [*lists, *found], any_needed or needed
        chosen = lists if any_needed else ()
        self.variant = propose.recommending(variant, rows.get(groups[0]["name"], ()), notes, chosen)
        coefficient_file.write(self.variant, self.file, COMMENT, self.force)

    def _trace(self, prompt: str) -> Path:
        return self.place / "traces" / f"{slug(prompt)}.toml"

    def _is_recorded(self, prompt: str) -> bool:
        """Whether this generation is on disk. Raises TraceError if a file of another run is."""
        path = self._trace(prompt)
        if not path.exists():
            return False
        found = traces.read(path)
        told, ours = (f"{found.command} with mflux {found.mflux}", f"{self.command} with mflux {version('mflux')}")
        if told != ours:
            hint = "name another --folder, or delete this one"
            raise TraceError(f"{path} is of another run", cause=f"of {told}, now {ours}", hint=hint)
        return True

    def _seen(self, model: Model, recorder: Recorder, prompt: str, seconds: float) -> Trace:
        """The generation that was recorded just now."""
        config, steps = recorder.config, len(recorder.sigma)
        if steps < FEWEST_STEPS:
            raise TraceError(f"{steps} steps tell nothing", hint=f"take --steps {FEWEST_STEPS} or more")
        rows = recorder.changes
        usable = {kind: tuple(row) for kind, row in rows.items() if len(row) == steps - 1 and np.isfinite(row).all()}
        if not {"output", "prediction"} & usable.keys():
            cause = f"{steps} steps gave {sorted({len(row) for row in rows.values()})} changes"
            hint = "its adapter does not fit, or it takes its steps in another way"
            raise TraceError(f"{type(model.pipeline).__name__} cannot be recorded", cause=cause, hint=hint)
        usable.setdefault("output", usable.get("prediction", ()))
        bits, loras = getattr(model.pipeline, "bits", None), getattr(model.pipeline, "lora_paths", None)
        recipe = [f"{config.num_inference_steps} steps", f"{config.width}x{config.height}"]
        recipe += [] if config.guidance is None else [f"guidance {config.guidance:g}"]
        recipe += [f"q{bits}"] if bits else []
        recipe += [f"LoRA {', '.join(map(str, loras))}"] if loras else []
        return Trace(
            command=str(self.command),
            mflux=version("mflux"),
            prompt=prompt,
            recipe=", ".join([*recipe, f"seed {SEED}"]),
            steps=config.num_inference_steps,
            guidance=None if config.guidance is None else float(config.guidance),
            sigma=tuple(recorder.sigma),
            seconds=round(seconds, 3),
            gram=recorder.gram(),
            **usable,
        )


def check_writable(folder: Path) -> None:
    """Raise SettingsError if no file can be written into a folder, or no such folder be made."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise SettingsError(f"{folder} cannot be written", cause=f"{nearest} cannot", hint="name another folder")


def id_of(name: str) -> str:
    """A variant id that follows from a model's name."""
    return re.sub(r"[^a-z0-9.-]", "-", name.rsplit("/", 1)[-1].casefold()).strip(".-") or "model"


def slug(prompt: str) -> str:
    """A file name for one prompt: readable, and different for different prompts."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.casefold())[:40].strip("-")
    return f"{words or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
