"""A whole calibration: record plain generations, fit, try settings on prompts that were held out, write what was found.

Everything is streamed: a generation that was recorded, and a prompt on which all settings were tried, is a file of its own, so
that the same command goes on where it was interrupted. Under `mlx.launch` each rank takes its share of both.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.calibration import command, files, sweep, traces
from mflux_teacache_plugin.calibration.command import Model
from mflux_teacache_plugin.calibration.record import OUTPUT, Recording, recording
from mflux_teacache_plugin.calibration.result import Result, conclude
from mflux_teacache_plugin.calibration.traces import TraceError
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.measure import shards
from mflux_teacache_plugin.variants import Provenance, Variant
from mflux_teacache_plugin.variants.catalog import Catalog, Match

#: The first seed; further ones of a prompt count up.
SEED = 42

Item = tuple[str, int]  # a prompt and a seed


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        command: the mflux command, program first.
        prompts: to record and fit; `held_out`: to try settings on, none for no trial.
        seeds: generations of each prompt.
        settings: methods to try; None for a choice that follows from the fit.
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
    settings: tuple[str, ...] | None = None
    target: float = 0.97
    id: str | None = None
    output: Path | None = None
    folder: Path | None = None
    force: bool = False

    def items(self, prompts: Sequence[str]) -> list[Item]:
        return [(prompt, SEED + number) for prompt in prompts for number in range(self.seeds)]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a calibration found and wrote."""

    result: Result
    summaries: list[sweep.Summary]
    choice: sweep.Choice | None
    coefficients: Path
    folder: Path
    report: Path


class Calibration:
    """One calibration; `run` does it all and gives the outcome on rank 0, None on the others."""

    def __init__(self, plan: Plan, files_: Catalog) -> None:
        self._plan = plan
        self._files = files_
        self._output = plan.output or files_.user_folder
        self._id = ""
        self._folder = Path()
        self._facts: dict[str, Any] = {}
        self._existing: Variant | None = None
        self._outcome: Outcome | None = None

    def run(self) -> Outcome | None:
        with shards.stoppable():
            command.run(self._plan.command, self._files, self._check, self._job)
        return self._outcome

    def _check(self, adapter: Adapter, match: Match | None, model_config: Any, source: str | None) -> None:
        """Before any weights load: whose numbers these will be, and whether they can be written."""
        exact = match.variant if match is not None and match.exact else None
        self._id = self._plan.id or (exact.id if exact is not None else id_of(source or model_config.model_name))
        self._existing = None if match is None else match.variant
        same = exact is not None and exact.id == self._id
        models = exact.models if exact is not None else (name_of(source or model_config.model_name),)
        self._facts = {"id": self._id, "adapter": adapter.id, "models": models}
        if same and exact is not None:
            self._facts.update(related=exact.related, guard=exact.guard)
        if self._existing is not None:
            self._facts.update(distilled=self._existing.distilled, weights_licence=self._existing.weights_licence)
        self._folder = self._plan.folder or Path(f"calibration-{self._id}")
        if shards.leads():
            files.check_free(self._output, self._id, self._plan.force)
            traces.check_writable(self._output)
        traces.check_writable(self._folder)
        for prompt, seed in self._plan.items(self._plan.prompts):
            self._recorded(prompt, seed)

    # The parts, in the order in which they are done

    def _job(self, model: Model) -> None:
        items = self._plan.items(self._plan.prompts)
        self._record(model, shards.mine(items))
        shards.gather_files([self._trace(*item) for item in shards.mine(items)], self._folder)
        result = self._fit(items) if shards.leads() else None
        variant = _variant(shards.share(None if result is None else _plain(result.variant)))
        tried = self._sweep(model, variant, shards.share(result and self._settings(result)))
        if result is not None:
            self._finish(result, tried)

    def _record(self, model: Model, items: Sequence[Item]) -> None:
        missing = [item for item in items if not self._recorded(*item)]
        steps = model.steps or 1
        with (
            self._bar("recording", len(missing) * steps, "step" if model.steps else "picture") as bar,
            recording(model.pipeline, model.adapter, bar.update if model.steps else lambda: None) as recorder,
        ):
            for prompt, seed in missing:
                model.generate(prompt, seed)
                self._write_trace(model, recorder.last, prompt, seed)
                if not model.steps:
                    bar.update()

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
        pipeline = model.pipeline
        recipe = {
            "variant": self._id,
            "source": f"mflux-teacache-plugin {version('mflux-teacache-plugin')}, mflux-teacache calibrate",
            "command": shlex.join(_comparable(self._plan.command)),
            "mflux": version("mflux"),
            **{key: _json(value) for key, value in self._facts.items() if key in ("adapter", "models")},
            "signal": traces.SIGNAL,
            **last.facts,
            "quantize": getattr(pipeline, "bits", None),
            "lora_paths": [str(path) for path in getattr(pipeline, "lora_paths", None) or ()],
            "prompt": prompt,
            "seed": seed,
        }
        more = {"prediction_change": [last.prediction]} if len(last.prediction) == steps - 1 else {}
        traces.write_generation(self._trace(prompt, seed), recipe, last.sigma, branches, **more)

    def _fit(self, items: Sequence[Item]) -> Result:
        group = [traces.read(self._trace(*item)) for item in items]
        return conclude(group, self._existing, self._facts)

    def _settings(self, result: Result) -> list[str]:
        """Settings to try: those asked for, else thresholds around the fit and speed-ups."""
        if self._plan.settings is not None:
            return list(self._plan.settings)
        variant = result.variant
        thresholds = [] if variant.threshold is None else [variant.threshold]
        if variant.polynomial is not None and variant.range is not None and result.traces[0].signal is not None:
            for share in sweep.SKIPPED_SHARES:
                threshold = files.threshold_for(variant.polynomial, variant.range, result.traces, share)
                if all(abs(threshold / other - 1) > sweep.APART for other in thresholds):
                    thresholds.append(threshold)
        return [*(f"{threshold:g}" for threshold in sorted(thresholds)), *sweep.SPEED_UPS]

    def _sweep(self, model: Model, variant: Variant, settings: list[str]) -> list[sweep.Tried] | None:
        """Every setting on this rank's held-out prompts; rank 0 gets those of all ranks."""
        items = shards.mine(self._plan.items(self._plan.held_out))
        missing = [item for item in items if self._tried(*item, settings, variant) is None]
        with self._bar("trying settings", len(missing) * (1 + 2 * len(settings)), "picture") as bar:
            for prompt, seed in missing:
                folder = self._pictures(prompt, seed)
                tried = sweep.try_all(model, variant, prompt, seed, settings, folder, bar.update)
                key = {"settings": settings, "variant": variant.digest, "command": self._plan.command}
                traces.write_json(folder / "tried.json", {**_json(key), "tried": sweep.as_json(tried)})
        rows = [self._tried(*item, settings, variant) or [] for item in items]
        shards.gather_files([file for item in items for file in sorted(self._pictures(*item).iterdir())], self._folder)
        gathered = shards.gather(rows)
        return None if gathered is None else [sweep.Tried(**one) for row in gathered for one in row]

    def _tried(self, prompt: str, seed: int, settings: list[str], variant: Variant) -> list[dict[str, Any]] | None:
        """What was tried earlier, if it was the same."""
        file = self._pictures(prompt, seed) / "tried.json"
        key = _json({"settings": settings, "variant": variant.digest, "command": self._plan.command})
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            return kept["tried"] if {name: kept[name] for name in key} == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _finish(self, result: Result, tried: list[sweep.Tried] | None) -> None:
        """Choose, and write the coefficient file, the plot and the report."""
        from mflux_teacache_plugin.calibration import report

        summaries = sweep.summarize(tried or ())
        choice = sweep.choose(summaries, self._plan.target) if tried else None
        faults = sorted({f"{one.setting} could not be tried: {one.fault}." for one in tried or () if one.fault})
        variant = self._recommending(result.variant, choice, summaries, faults)
        comment = "Made by `mflux-teacache calibrate`. Every key: docs/coefficient-files.md."
        text = files.render(variant, comment)
        contents = report.Contents(
            variant,
            result.analysis,
            result.traces,
            result.existing,
            text,
            shlex.join(self._plan.command),
            summaries,
            choice,
            self._plan.target,
            self._shown(summaries, choice),
        )
        chart = report.plot(contents)
        traces.write_bytes(self._folder / "profile.png", chart)
        traces.write_text(self._folder / "report.html", report.html(contents, chart))
        path = files.write(variant, self._output, comment, self._plan.force)
        result = dataclasses.replace(result, variant=variant)
        self._outcome = Outcome(result, summaries, choice, path, self._folder, self._folder / "report.html")

    def _recommending(
        self, variant: Variant, choice: sweep.Choice | None, summaries: list[sweep.Summary], faults: list[str]
    ) -> Variant:
        """The variant with the chosen setting as its default, and the reasons in its provenance."""
        changes: dict[str, Any] = {}
        notes = [variant.provenance.notes or ""]
        if choice is not None:
            thresholds = [s for s in summaries if _is_number(s.setting) and s.ssim >= self._plan.target]
            if thresholds:
                fastest = min(thresholds, key=lambda summary: summary.computed)
                changes["threshold"] = float(fastest.setting)
                notes[0] = notes[0].replace(f"{files.UNSEEN}\n", "").replace(f"\n{files.UNSEEN}", "")
            if choice.summary is not None and not _is_number(choice.summary.setting):
                changes["recommended"] = choice.summary.setting
            pictures = len(self._plan.items(self._plan.held_out))
            notes.append(f"Settings were tried on {pictures} held-out pictures. {choice.why}")
        provenance = Provenance(**{**as_table(variant.provenance), "notes": "\n".join(filter(None, [*notes, *faults]))})
        return variant.replace(**changes, provenance=provenance)

    # Where things lie

    def _trace(self, prompt: str, seed: int) -> Path:
        return self._folder / "traces" / f"{slug(prompt, seed)}.json"

    def _pictures(self, prompt: str, seed: int) -> Path:
        return self._folder / "pictures" / slug(prompt, seed)

    def _recorded(self, prompt: str, seed: int) -> bool:
        """Whether this generation is on disk. Raises TraceError if a file of another run is."""
        path = self._trace(prompt, seed)
        if not path.exists():
            return False
        recipe = traces.read(path).recipe
        ours = {"command": shlex.join(_comparable(self._plan.command)), "mflux": version("mflux"), "variant": self._id}
        differing = [
            f"{key}: {recipe.get(key)}, now {value}" for key, value in ours.items() if recipe.get(key) != value
        ]
        if differing:
            raise TraceError(
                f"{path} is of another run",
                cause="\n".join(differing),
                hint="name another --folder, or delete this one",
            )
        return True

    def _shown(
        self, summaries: list[sweep.Summary], choice: sweep.Choice | None
    ) -> list[tuple[str, list[tuple[str, Path]]]]:
        """The pictures of the report: per held-out prompt plain, the chosen setting (or the nearest), plain with as many."""
        if not summaries:
            return []
        chosen = choice.summary if choice is not None else None
        one = chosen or max(summaries, key=lambda summary: summary.ssim)
        lines = []
        for prompt, seed in self._plan.items(self._plan.held_out):
            folder = self._pictures(prompt, seed)
            kept = json.loads((folder / "tried.json").read_text(encoding="utf-8"))["tried"]
            tried = next(sweep.Tried(**each) for each in kept if each["setting"] == one.setting)
            figures = (
                (f"{one.setting}: {tried.computed:.3g} steps computed, SSIM {tried.ssim:.3f}, {tried.psnr:.1f} dB"),
                (f"plain, {tried.fewer} steps: SSIM {tried.fewer_ssim:.3f}, {tried.fewer_psnr:.1f} dB"),
            )
            names = (sweep.file_name(one.setting), f"plain-{tried.fewer}")
            shown = [("plain", folder / "plain.png")]
            shown += [(told, folder / f"{name}.png") for told, name in zip(figures, names, strict=True)]
            lines.append((f"{prompt} (seed {seed})", shown))
        return lines

    def _bar(self, what: str, total: int, unit: str) -> tqdm:
        return tqdm(total=total, desc=what, unit=unit, disable=not shards.leads() or total == 0)


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


def _is_number(setting: str) -> bool:
    try:
        float(setting)
    except ValueError:
        return False
    return True


def _json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def _plain(variant: Variant) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(variant).items() if key != "path" and value is not None}


def _variant(table: dict[str, Any]) -> Variant:
    provenance = {key: value for key, value in table["provenance"].items() if value is not None}
    return Variant(**{**table, "provenance": provenance})
