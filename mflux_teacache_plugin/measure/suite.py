"""A suite: which pictures a bench makes, as a TOML file.

title = "What it is for"
source = "where its prompts come from"         # may be left out, as all that has a default
prompts = ["a red apple", "a mountain"]
seeds = [42, 43]
paired_seeds = true                            # the first seed for the first prompt …; otherwise each for each
settings = ["0.2", "2x"]                       # what --teacache takes; plain mflux is always made
repetitions = 3
warm_up = 1

[[recipes]]                                    # every combination of its lists
command = "mflux-generate"
models = ["dev"]
steps = [25]
guidance = [3.5]
quantizations = ["none", 4]
size = [1024, 1024]
"""

import itertools
import re
import shlex
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import checks
from mflux_teacache_plugin.checks import Problems, check_table, key_field, show
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError
from mflux_teacache_plugin.measure import runs
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.measure.series import Case
from mflux_teacache_plugin.methods import OFF

#: mflux's `--quantize`.
BITS = (3, 4, 5, 6, 8)


class SuiteError(TeaCacheError):
    """A suite cannot be used."""


def _many(one: checks.Check, empty: bool = False) -> checks.Check:
    """The check of a list: of each of its entries."""

    def check(problems: Problems, key: str, value: object) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not (value or empty):
            problems.add(key, f"expected a list, got {show(value)}", "write it in brackets, with at least one entry")
            return ()
        return tuple(one(problems, f"{key}[{index}]", entry) for index, entry in enumerate(value))

    return check


def _whole(least: int) -> checks.Check:
    def check(problems: Problems, key: str, value: object) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        problems.add(key, f"expected a whole number, at least {least}, got {show(value)}", "write it without quotes")
        return None

    return check


def _text_of(parse: Callable[[str], Any]) -> checks.Check:
    """Text that `parse` understands; what it raises is the problem."""

    def check(problems: Problems, key: str, value: object) -> Any:
        text = checks.text(problems, key, value)
        if text is None:
            return None
        try:
            return parse(text)
        except (ArgumentTypeError, ValueError) as error:
            problems.add(key, str(error), "`mflux-teacache bench --help` says what a suite takes")
        except TeaCacheError as error:
            problems.add(key, error.error, error.hint or "correct it")
        return None

    return check


def _bits(problems: Problems, key: str, value: object) -> int | None:
    if value == "none" or value in BITS:
        return None if value == "none" else int(str(value))
    problems.add(key, f"not a quantization: {show(value)}", f'write "none" or one of {", ".join(map(str, BITS))}')
    return None


def _size(problems: Problems, key: str, value: object) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return tuple(value)
    problems.add(key, f"expected width and height, got {show(value)}", f"write {key} = [1024, 1024]")
    return ()


def _command(text: str) -> Command:
    return Command.of(shlex.split(text))


@dataclass(frozen=True)
class Recipe:
    """Pictures of one image command: every combination of models, quantizations, steps and guidance."""

    command: Command = key_field(_text_of(_command), 'command = "mflux-generate"')  # noqa: RUF009 - a field, as all
    models: tuple[str, ...] = key_field(_many(checks.text), 'models = ["dev"]')
    steps: tuple[int, ...] = key_field(_many(_whole(1)), "steps = [25]")
    guidance: tuple[float | None, ...] = key_field(_many(checks.number), "guidance = [3.5]", default=(None,))
    quantizations: tuple[int | None, ...] = key_field(_many(_bits), 'quantizations = ["none", 4]', default=(None,))
    size: tuple[int, int] | None = key_field(_size, "size = [1024, 1024]", default=None)
    settings: tuple[str, ...] | None = key_field(_many(_text_of(runs.setting)), 'settings = ["0.2"]', default=None)


def _recipes(problems: Problems, key: str, value: object) -> tuple[Any, ...]:
    """An array of tables."""
    if not isinstance(value, (list, tuple)) or not value:
        problems.add(key, f"expected an array of tables, got {show(value)}", f"write each in a section [[{key}]]")
        return ()
    one = checks.table(Recipe)
    return tuple(one(problems, f"{key}[{index}]", entry) for index, entry in enumerate(value))


@dataclass(frozen=True)
class Suite:
    """What a bench makes; the module's docstring shows the file."""

    title: str = key_field(checks.text, 'title = "What it is for"')
    prompts: tuple[str, ...] = key_field(_many(checks.text), 'prompts = ["a red apple"]')
    seeds: tuple[int, ...] = key_field(_many(_whole(0)), "seeds = [42]")
    settings: tuple[str, ...] = key_field(_many(_text_of(runs.setting)), 'settings = ["0.2", "2x"]')
    recipes: tuple[Recipe, ...] = key_field(_recipes, '[[recipes]] with command = "mflux-generate"')
    source: str = key_field(checks.text, 'source = "where its prompts come from"', default="")
    paired_seeds: bool = key_field(checks.flag, "paired_seeds = true", default=False)
    repetitions: int = key_field(_whole(1), "repetitions = 3", default=3)
    warm_up: int = key_field(_whole(0), "warm_up = 1", default=1)

    def cases(self) -> list[Case]:
        """Every picture, in the order of the file."""
        if self.paired_seeds:
            pictures = list(enumerate(zip(self.prompts, self.seeds, strict=True), start=1))
        else:
            prompts = enumerate(self.prompts, start=1)
            pictures = [(place, (prompt, seed)) for place, prompt in prompts for seed in self.seeds]
        found = []
        for recipe in self.recipes:
            settings = tuple(each for each in dict.fromkeys(recipe.settings or self.settings) if each != OFF)
            lists = (recipe.models, recipe.quantizations, recipe.steps, recipe.guidance)
            for model, bits, steps, guidance in itertools.product(*lists):
                width, height = recipe.size or (None, None)
                given = {"model": model, "quantize": bits, "guidance": guidance, "width": width, "height": height}
                facts = {**given, "steps": steps, "options": " ".join(recipe.command.options)}
                largest = recipe.quantizations[0]
                group = runs.described(facts)
                whole = runs.described({**facts, "quantize": largest}) if bits != largest else None
                for place, (prompt, seed) in pictures:
                    command = recipe.command.with_options(**given, prompt=prompt, seed=seed)
                    name = _name(group, place, seed)
                    other = _name(whole, place, seed) if whole else ""
                    found.append(Case(name, group, prompt, seed, steps, settings, command, other))
        return found


def _name(group: str, place: int, seed: int) -> str:
    """A case's name, which begins its files'."""
    return re.sub(r"[^\w.=+-]+", "-", f"{group.replace(', ', '-')}-p{place}-s{seed}")


def read(path: Path) -> Suite:
    """The suite in a file.

    Raises:
        SuiteError: it cannot be read or used; the causes name the keys and the mends.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SuiteError(
            f"{path} cannot be read", cause=why, hint="name a suite in TOML; benchmarks/suites has some"
        ) from None
    problems = Problems()
    values = check_table(Suite, data, problems)
    if not problems and values.get("paired_seeds") and len(values["seeds"]) != len(values["prompts"]):
        problems.add(
            "seeds", f"{len(values['seeds'])} for {len(values['prompts'])} prompts", "give as many, or do not pair them"
        )
    if problems:
        raise SuiteError(f"{path} is not a usable suite", cause="\n".join(problems), hint="correct these keys")
    suite = Suite(**values)
    names = [case.name for case in suite.cases()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(
            f"{path} asks for the same picture twice",
            cause="\n".join(twice[:5]),
            hint="name each model, prompt and seed once",
        )
    return suite
