"""One coefficient file → one `Variant`: the numbers a gate needs, and where they come from.

A coefficient file is data: nothing in it is executed, and a bad one gets one error that names the file and, for every
problem in it, the key and the fix. The dataclasses below are the schema: a field made by `key_field` is a key of the
file, and one without a default is required. `docs/coefficient-files.md` explains the keys to users.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import checks
from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.checks import Problems, as_table, check_table, key_field, read_toml, show
from mflux_teacache_plugin.errors import VariantFileError

#: The name of a coefficient file that lies in its model's folder; there the id need not be the file's name.
BESIDE_MODEL = "teacache.toml"

#: The schema this version reads. It grows when an old reader would misread a new file.
SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """How many steps are always computed at the start and at the end of the active steps."""

    first: int = key_field(checks.count, default=1)
    last: int = key_field(checks.count, default=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a variant's numbers come from. `fitted`: on this very checkpoint, not borrowed from another."""

    source: str = key_field(checks.text, 'source = "who published the numbers, or your own run"')
    recipe: str | None = key_field(checks.text, default=None)
    date: str | None = key_field(checks.date, default=None)
    r2: float | None = key_field(checks.number, default=None)
    fitted: bool = key_field(checks.flag, default=False)
    notes: str | None = key_field(checks.text, default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """The output's relative L1 change along a run at this guidance, accumulated since the first σ, the mean over prompts."""

    sigma: tuple[float, ...] = key_field(checks.falling, "sigma = [1.0, 0.9, 0.5, 0.02]")
    change: tuple[float, ...] = key_field(checks.rising, "change = [0.0, 0.4, 0.9, 1.8]")
    guidance: float | None = key_field(checks.number, default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepList:
    """A list of the steps to compute, from 0, in a run of so many `steps`: published, or found by pictures.

    A calibration's has the `guidance` that its pictures were made at, and says what they chose: the `forecast`, and whether
    plain mflux with as many steps came nearer all the same.
    """

    steps: int = key_field(checks.count, "steps = 50")
    computed: tuple[int, ...] = key_field(checks.step_list, 'computed = "0-10,12,15,49"')
    guidance: float | None = key_field(checks.number, default=None)
    forecast: str | None = key_field(checks.text, default=None)
    plain_is_nearer: bool = key_field(checks.flag, default=False)
    source: str | None = key_field(checks.text, default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """The numbers that decide which steps a model may skip.

    `polynomial` (five coefficients, highest power first) maps the relative L1 change of the signal between two steps to
    the estimated relative change of the output; both are dimensionless. `range` is the span of signal changes that the
    fit saw, `threshold` the accumulated estimate from which a step is computed. `profile` and `step_lists` place steps
    without a signal, and so do `mag_ratios`, MagCache's growth of the residual from step to step. `recommended` is the method
    that `auto` means; without it, it is the threshold, or a speed-up of 1.5x where there is none. `models` names what the
    numbers are for (repo ids or mflux names), `related` what they may serve uncalibrated. `path` is the file, None for a
    variant made in Python. A VariantFileError names all that breaks the schema.
    """

    id: str = key_field(checks.identifier, 'id = "my-finetune"')
    adapter: str = key_field(checks.text, 'adapter = "flux1"')
    models: tuple[str, ...] = key_field(checks.names(1), 'models = ["me/my-finetune"]')
    related: tuple[str, ...] = key_field(checks.names(0), default=())
    polynomial: tuple[float, ...] | None = key_field(checks.polynomial, default=None)
    range: tuple[float, float] | None = key_field(checks.span, default=None)
    threshold: float | None = key_field(checks.threshold, default=None)
    profile: Profile | None = key_field(checks.table(Profile), default=None)  # noqa: RUF009
    step_lists: tuple[StepList, ...] = key_field(checks.tables(StepList), default=())
    mag_ratios: tuple[float, ...] | None = key_field(checks.ratios, default=None)
    recommended: str | None = key_field(checks.text, default=None)
    guard: Guard = key_field(checks.table(Guard), default=Guard())  # noqa: RUF009
    distilled: bool = key_field(checks.flag, default=False)
    weights_licence: str = key_field(checks.text, 'weights_licence = "Apache-2.0"')
    provenance: Provenance = key_field(checks.table(Provenance), 'a section [provenance] with source = "..."')  # noqa: RUF009
    path: Path | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        problems = Problems()
        values = _judged(as_table(self), problems)
        if problems:
            raise VariantFileError(f"the variant {show(self.id)} is not usable", cause="\n".join(problems))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def digest(self) -> str:
        """Twelve hex digits over the numbers that decide, so that a replay can tell whether they changed."""
        numbers = (self.polynomial, self.range, self.threshold, self.guard.first, self.guard.last)
        profile = self.profile and {"sigma": self.profile.sigma, "change": self.profile.change}
        told = ("steps", "computed", "guidance", "forecast")
        lists = [{key: value for key in told if (value := getattr(each, key)) is not None} for each in self.step_lists]
        further = () if self.mag_ratios is None else (self.mag_ratios,)
        return hashlib.sha256(json.dumps((numbers, (profile, lists), *further)).encode()).hexdigest()[:12]

    def replace(self, **changes: Any) -> "Variant":
        """A copy with some fields changed, checked like any other variant."""
        return dataclasses.replace(self, **changes)


def _judged(data: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """The values of a variant's table; to `problems` goes what is wrong with a key, or else with all of them together."""
    values = check_table(Variant, data, problems)
    if problems:
        return values
    there, missing = sorted(("polynomial", "threshold"), key=lambda key: values.get(key) is None)
    if (values.get(there) is None) != (values.get(missing) is None):
        problems.add(missing, f"missing, though there is a {there}", "give both or neither")
    profile = values.get("profile")
    if profile is not None and len(profile.sigma) != len(profile.change):
        what = f"{len(profile.change)} values for {len(profile.sigma)} of sigma"
        problems.add("profile.change", what, "give as many of one as of the other")
    for index, published in enumerate(values.get("step_lists") or ()):
        first, last = published.computed[0], published.computed[-1]
        if last != published.steps - 1 or first != 0:
            fix = f"compute the first and the last of {published.steps} steps, 0 and {published.steps - 1}"
            problems.add(f"step_lists[{index}].computed", f"goes from {first} to {last}", fix)
        if published.forecast not in (None, *ORDERS):
            fix = f"there are {', '.join(ORDERS)}"
            problems.add(f"step_lists[{index}].forecast", f"no forecast is called {published.forecast}", fix)
    return values


def read_variant(path: Path) -> Variant:
    """Read one coefficient file. VariantFileError, with all its problems, if it is no TOML or breaks the schema."""
    data = read_toml(path)
    problems = Problems()
    schema = data.pop("schema", None)
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        what = "missing" if schema is None else f"expected {SCHEMA}, got {show(schema)}"
        problems.add("schema", what, f"write schema = {SCHEMA}")
    elif schema > SCHEMA:
        # The rest is not looked at: complaints about keys of a schema this version does not know would mislead.
        newer = f"{path} was made for a newer version of mflux-teacache-plugin"
        cause = f"it says schema = {show(schema)}; this version reads schema {SCHEMA}"
        raise VariantFileError(newer, cause=cause, hint="upgrade: pip install --upgrade mflux-teacache-plugin")
    values = _judged(data, problems)
    if values.get("id") and values["id"] != path.stem and path.name != BESIDE_MODEL:
        problems.add("id", f'"{values["id"]}" is not the name of the file', "rename the file or change the id")
    if problems:
        cause, hint = "\n".join(problems), "docs/coefficient-files.md lists every key"
        raise VariantFileError(f"{path} is not a usable coefficient file", cause=cause, hint=hint)
    return Variant(**values, path=path)
