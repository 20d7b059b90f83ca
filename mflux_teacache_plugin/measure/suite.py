"""A suite: which pictures a bench makes, as a TOML file. docs/measuring.md shows one; the dataclasses are its schema."""

import itertools
import shlex
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import checks
from mflux_teacache_plugin.checks import Problems, check_table, key_field, read_toml, show
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError
from mflux_teacache_plugin.measure import runs, series
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.measure.series import Case
from mflux_teacache_plugin.methods import OFF

#: mflux's `--quantize`.
BITS = (3, 4, 5, 6, 8)


def _text_of(parse: Callable[[str], Any]) -> checks.Check:
    """Text that `parse` understands; what it raises is the problem."""

    def check(problems: Problems, key: str, value: object) -> Any:
        text = checks.text(problems, key, value)
        try:
            return None if text is None else parse(text)
        except (ArgumentTypeError, ValueError) as error:
            problems.add(key, str(error), "`mflux-teacache bench --help` says what a suite takes")
        except TeaCacheError as error:
            problems.add(key, error.error, error.hint or "correct it")

    return check


_SETTINGS = checks.many(_text_of(runs.setting))


def _bits(problems: Problems, key: str, value: object) -> int | None:
    if value == "none" or (type(value) is int and value in BITS):
        return None if value == "none" else value  # type: ignore[return-value]
    problems.add(key, f"not a quantization: {show(value)}", f'write "none" or one of {", ".join(map(str, BITS))}')
    return None


def _size(problems: Problems, key: str, value: object) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(s) is int and 0 < s < 2**16 for s in value):
        return tuple(value)
    problems.add(key, f"expected width and height, got {show(value)}", f"write {key} = [1024, 1024]")
    return ()


@dataclass(frozen=True)
class Recipe:
    """Pictures of one image command: every combination of models, quantizations, steps and guidance."""

    command: Command = key_field(_text_of(lambda text: Command.of(shlex.split(text))), 'command = "mflux-generate"')  # noqa: RUF009 - a field, as all
    models: tuple[str, ...] = key_field(checks.many(checks.text), 'models = ["dev"]')
    steps: tuple[int, ...] = key_field(checks.many(checks.count), "steps = [25]")
    guidance: tuple[float | None, ...] = key_field(checks.many(checks.number), "guidance = [3.5]", default=(None,))
    quantizations: tuple[int | None, ...] = key_field(checks.many(_bits), "quantizations = [4]", default=(None,))
    size: tuple[int, int] | None = key_field(_size, "size = [1024, 1024]", default=None)
    settings: tuple[str, ...] | None = key_field(_SETTINGS, 'settings = ["0.2"]', default=None)


@dataclass(frozen=True)
class Suite:
    """What a bench makes."""

    title: str = key_field(checks.text, 'title = "What it is for"')
    prompts: tuple[str, ...] = key_field(checks.many(checks.text), 'prompts = ["a red apple"]')
    seeds: tuple[int, ...] = key_field(checks.many(checks.whole(0)), "seeds = [42]")
    settings: tuple[str, ...] = key_field(_SETTINGS, 'settings = ["0.2", "2x"]')
    recipes: tuple[Recipe, ...] = key_field(checks.tables(Recipe, 1), '[[recipes]] with command = "mflux-generate"')
    source: str = key_field(checks.text, 'source = "where its prompts come from"', default="")
    paired_seeds: bool = key_field(checks.flag, "paired_seeds = true", default=False)
    repetitions: int = key_field(checks.whole(1, 1000), "repetitions = 3", default=3)
    warm_up: int = key_field(checks.whole(0, 1000), "warm_up = 1", default=1)

    def cases(self) -> list[Case]:
        """Every picture, in the order of the file."""
        pair = zip if self.paired_seeds else itertools.product
        pictures = list(pair(enumerate(self.prompts, start=1), self.seeds))
        found = []
        for recipe in self.recipes:
            settings = tuple(each for each in dict.fromkeys(recipe.settings or self.settings) if each != OFF)
            lists = (recipe.models, recipe.quantizations, recipe.steps, recipe.guidance)
            width, height = recipe.size or (None, None)
            for model, bits, steps, guidance in itertools.product(*lists):
                given = {"model": model, "quantize": bits, "guidance": guidance, "width": width, "height": height}
                facts = {**given, "steps": steps, "options": " ".join(recipe.command.options)}
                largest = None if None in recipe.quantizations else max(filter(None, recipe.quantizations))
                group, whole = (runs.described({**facts, "quantize": each}) for each in (bits, largest))
                for (place, prompt), seed in pictures:
                    command = recipe.command.with_options(**given, prompt=prompt, seed=seed)
                    name, other = (series.slug(f"{each}-p{place}-s{seed}") for each in (group, whole))
                    other = "" if bits == largest else other
                    found.append(Case(name, group, prompt, seed, steps, settings, command, other))
        return found


def read(path: Path) -> Suite:
    """The suite in a file. SettingsError, whose causes name the keys and the fixes, if it cannot be read or used."""
    problems = Problems()
    values = check_table(Suite, read_toml(path, SettingsError), problems)
    if not problems and values.get("paired_seeds") and len(values["seeds"]) != len(values["prompts"]):
        what = f"{len(values['seeds'])} for {len(values['prompts'])} prompts"
        problems.add("seeds", what, "give as many, or do not pair them")
    if problems:
        raise SettingsError(f"{path} is not a usable suite", cause="\n".join(problems), hint="correct these keys")
    suite = Suite(**values)
    if twice := [name for name, times in Counter(case.name for case in suite.cases()).items() if times > 1]:
        hint = "name each model, prompt and seed once"
        raise SettingsError(f"{path} asks for the same picture twice", cause="\n".join(twice[:5]), hint=hint)
    return suite
