"""A whole calibration: record plain generations, propose numbers, schedules and settings, make pictures with them on prompts
that were held out (with many schedules on the first of these, with the best on the others), choose, write and report.

Generations and pictures are kept as they are made, so that the same command goes on where it was interrupted. Under
`mlx.launch` each rank takes its share of both.
"""

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.calibration import coefficient_file, propose, sweep, takeover, traces
from mflux_teacache_plugin.calibration.record import recording
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.calibration.traces import TraceError
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.choose import Choice
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError, VariantFileError
from mflux_teacache_plugin.measure import files, report, results, shards
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.measure.series import Case, Series
from mflux_teacache_plugin.variants import Variant, read_variant
from mflux_teacache_plugin.variants.variant import BESIDE_MODEL, StepList

#: Of every picture; the prompts differ.
SEED = 42

COMMENT = "Made by `mflux-teacache calibrate`. Every key: docs/coefficient-files.md."

SECONDS = "Seconds are counted: the steps computed, at the pace of all steps. `mflux-teacache bench` measures them."

UNKNOWN_LICENCE = "unknown; see the model's own page"


@dataclass
class Group:
    """The pictures at one guidance."""

    name: str
    guidance: float | None  #: None for the command's own
    at: float  #: its value
    tried: dict[str, dict[str, str]]  #: `propose.ways`: of each speed-up the profile's, then what is most worth trying
    settings: list[str] = field(default_factory=list)  #: tried beside these
    nearest: dict[str, str] = field(default_factory=dict)  #: of each speed-up, of those with all pictures

    def case(self, prompt: str, command: Command, steps: int, most: int) -> Case:
        """One of the pictures, with the settings and the first so many ways to each speed-up."""
        name = slug(prompt) if self.guidance is None else f"{slug(prompt)}-guidance-{self.guidance:g}"
        command = command.with_options(prompt=prompt, seed=SEED, guidance=self.guidance)
        named: dict[str, str] = {}
        for ways in self.tried.values():
            named.update(list(ways.items())[: most + sum(propose.EARLIER in way for way in ways)])
        settings = (*self.settings, *named)
        return Case(name, self.name, prompt, SEED, steps, settings, command, guidance=self.guidance, texts=named)

    def rank(self, rows: Sequence[Row]) -> None:
        """Sort the ways by their pictures, the nearest first, behind the profile's and earlier ones. `rows` are of this group."""
        most = max((row.pictures for row in rows), default=0)
        for speedup, ways in self.tried.items():
            kept = [way for place, way in enumerate(ways) if place == 0 or propose.EARLIER in way]
            order = (*kept, *(row.setting for row in propose.nearest(rows, ways)))
            self.tried[speedup] = {name: ways[name] for name in order}
            for row in propose.nearest([row for row in rows if row.pictures == most], ways)[:1]:
                self.nearest[speedup] = ways[row.setting]


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
    judged: list[Row] = field(
        init=False, default_factory=list
    )  #: of these, without the ways to a speed-up that were not chosen
    _facts: dict[str, Any] = field(init=False)  # the coefficient file's keys besides numbers and provenance
    _existing: Variant | None = field(init=False)

    def run(self) -> None:
        """All of it. Every rank takes its share of recording and trying; rank 0 alone fits, chooses and writes."""
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
        self.file = path / BESIDE_MODEL if self.output is None else self.output / f"{id}.toml"
        with suppress(VariantFileError):  # not there, or of no use, so it can be overwritten
            existing = read_variant(self.file)
        self._facts = {"id": id, "adapter": choice.adapter.id, "models": models, "weights_licence": UNKNOWN_LICENCE}
        self._existing = existing
        if existing is not None:
            self._facts.update(distilled=existing.distilled, weights_licence=existing.weights_licence)
            if existing.id == id:
                self._facts.update(related=existing.related, guard=existing.guard)
        if self.output is None and not path.is_dir():
            cause = f"the command loads {source}, which is no folder of this machine"
            raise SettingsError("--into-model has no folder to write to", cause=cause, hint="leave it out")
        if shards.leads():
            coefficient_file.check_free(self.file, self.force)
            files.check_writable(self.file.parent)
        files.check_writable(self.place)
        for prompt in self.prompts:
            self._is_recorded(prompt)

    def _stages(self, model: Model) -> None:
        if self.guidances and not model.has_guidance:
            raise SettingsError(f"{self.command.name} knows no guidance", hint="leave out --guidances")
        self._record(model)
        plan = shards.share(self._plan(model) if shards.leads() else None)
        variant, groups = Variant(**plan["variant"]), [Group(**each) for each in plan["groups"]]
        made, first = Series([], [], self.place / "pictures"), propose.first_round(len(self.held_out))
        for prompts, most in zip((self.held_out[:first], self.held_out[first:]), plan["depth"], strict=True):
            cases = [group.case(prompt, self.command, plan["steps"], most) for prompt in prompts for group in groups]
            made.cases.extend(cases)
            made.shots.extend(sweep.pictures(model, variant, plan["active"], self.place, cases))
            if shards.leads():
                rows = results.by_group(results.rows(made, made.against_plain()))
                for group in groups:
                    group.rank(rows.get(group.name, ()))
            groups = [Group(**each) for each in shards.share([vars(group) for group in groups])]
        if plan["work"] > 0 and any(group.nearest for group in groups):
            made = self._climb(model, variant, groups, made, plan)
        if shards.leads():
            self._conclude(variant, groups, made, plan["notes"])

    def _climb(
        self, model: Model, variant: Variant, groups: Sequence[Group], made: Series, plan: dict[str, Any]
    ) -> Series:
        """With what is left of the time: the nearest schedule of each speed-up made better, and its pictures among those `made`."""
        ledger, cases = sweep.keeper(model, variant, plan["active"], self.place), made.cases
        targets = [(group, speedup) for group in groups for speedup in group.nearest]
        mine = shards.mine(targets)

        def seek(targets: Sequence[tuple[Group, str]], show: bool) -> dict[str, dict[str, str]]:
            new: dict[str, dict[str, str]] = {group.name: {} for group in groups}
            with tqdm(total=round(plan["work"] * len(targets)), desc="schedules", unit="step", disable=not show) as bar:
                for group, speedup in targets:
                    of_group = [case for case in cases if case.group == group.name]
                    found = sweep.climbed(ledger, of_group, group.nearest[speedup], plan["work"], bar.update)
                    if found != group.nearest[speedup]:
                        name = f"{speedup} {propose.CLIMBED}"
                        group.tried[speedup][name] = new[group.name][name] = found
            return new

        new = seek(mine, shards.leads())
        shards.gather_files(sorted(ledger.files), self.place)
        if len(mine) < len(targets) and shards.leads():  # what the others made is here now, so this takes no time
            new = seek(targets, False)
        new = shards.share(new)
        cases = [
            replace(case, settings=(*case.settings, *new[case.group]), texts={**case.texts, **new[case.group]})
            for case in cases
        ]
        return Series(cases, sweep.pictures(model, variant, plan["active"], self.place, cases), made.folder)

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
                recorded = recorder.trace(str(self.command), prompt, SEED, image.generation_time)
                traces.write(self._trace(prompt), recorded)
        paths = [self._trace(prompt) for prompt in mine]
        there = [each for path in paths for each in (traces.gram_file(path), path) if each.exists()]
        shards.gather_files(there, self.place)

    def _plan(self, model: Model) -> dict[str, Any]:
        """What to try, as JSON holds it."""
        recorded = [traces.read(self._trace(prompt)) for prompt in self.prompts]
        variant, first = propose.variant_of(self._facts, recorded, self._existing), recorded[0]
        active, groups, notes = len(first.sigma) / first.steps, list[Group](), list[str]()
        for guidance in self.guidances or (None,):
            at = guidance or first.guidance or 1.0  # a model without guidance makes one call a step, as at 1
            tried = {} if self.settings or active < 1 else propose.ways(variant, self._existing, recorded, at)
            name = variant.id if guidance is None else f"{variant.id}, guidance {guidance:g}"
            groups.append(Group(name, guidance, at, tried))
        for setting in self.settings or propose.settings(variant, recorded, schedules=active == 1):
            try:
                apply.apply_teacache(model.pipeline, setting, variant=variant).restore()
                for group in groups:
                    group.settings.append(setting)
            except TeaCacheError as error:
                notes.append(f"{setting} could not be tried: {error.error}.")
        pace = float(np.mean([trace.seconds or 0.0 for trace in recorded])) / len(first.sigma)
        depth, work = propose.depth(first.sigma, len(self.held_out), pace * len(groups), self.minutes)
        plan = {"depth": depth, "work": work, "steps": first.steps, "active": active, "notes": notes}
        return {"variant": as_table(variant), "groups": [vars(group) for group in groups], **plan}

    def _conclude(self, variant: Variant, groups: Sequence[Group], made: Series, notes: list[str]) -> None:
        """Choose, and write the report and the coefficient file."""
        about = f"{variant.provenance.recipe}. {variant.provenance.notes}\n{SECONDS if made.cases else ''}"
        facts = {"variant": asdict(variant)}
        self.rows, _ = report.conclude(f"Calibration of {variant.id}", about.strip(), facts, made, self.place)
        rows, lists = results.by_group(self.rows), list[StepList]()
        # beside others' lists the profile would not be asked
        any_needed = any(each.guidance is not None for each in variant.step_lists)
        tried = {(made.cases[0].steps, group.at) for group in groups if group.tried and made.cases}
        for group in groups if made.cases else ():
            of_group, steps = rows[group.name], made.cases[0].steps
            found, chosen, needed = propose.step_lists(of_group, group.tried, steps, group.at)
            ways = {name for each in group.tried.values() for name in each}
            of_group = [row for row in of_group if row.setting not in ways or row in chosen]
            self.judged += of_group
            nearer = ", ".join(str(len(each.computed)) for each in found if each.plain_is_nearer)
            count = len(self.held_out)
            told = f"At {steps} steps, guidance {group.at:g}: {count} held-out prompt{'s' * (count > 1)}."
            lost = f" Plain mflux comes nearer where {nearer} of the steps are computed." * bool(nearer)
            notes.append(f"{told} {results.verdict(of_group)}{lost}")
            lists, any_needed = [*lists, *found], any_needed or needed
        self.variant = propose.recommending(variant, self.judged, notes, lists if any_needed else (), tried)
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


def id_of(name: str) -> str:
    """A variant id that follows from a model's name."""
    return re.sub(r"[^a-z0-9.-]", "-", name.rsplit("/", 1)[-1].casefold()).strip(".-") or "model"


def slug(prompt: str) -> str:
    """A file name for one prompt: readable, and different for different prompts."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.casefold())[:40].strip("-")
    return f"{words or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
