"""What was recorded of one generation in which no step was skipped, and its file."""

import dataclasses
import io
from pathlib import Path

import numpy as np

from mflux_teacache_plugin import checks
from mflux_teacache_plugin.calibration import coefficient_file
from mflux_teacache_plugin.checks import Problems, as_table, check_table, key_field, read_toml
from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.measure import files


class TraceError(TeaCacheError):
    """A generation cannot be recorded, or a trace file cannot be used."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """One generation: what made it, the noise level of each step, and how much changed from each step to the next.

    A change is mean|now - before| / mean|before|, of the transformer's `output` and the gate's `signal` on the first guidance
    branch, and of the `prediction` after guidance; `growth` is by which factor the first branch's residual grew, as MagCache
    has it. Each has one entry fewer than `sigma`. `seconds` are the loop's. `gram` lies in a file of its own: the inner
    products, over their mean square, of the guided predictions of all steps and, where each step called two, of the first
    branch's and of the second's: (steps, steps) or (3 * steps, 3 * steps).
    """

    command: str = key_field(checks.text, 'command = "mflux-generate --model dev"')
    mflux: str = key_field(checks.text, 'mflux = "0.24.0"')
    prompt: str = key_field(checks.text, 'prompt = "a red fox"')
    recipe: str = key_field(checks.text, 'recipe = "25 steps, 512x512"')
    steps: int = key_field(checks.count, "steps = 25")
    sigma: tuple[float, ...] = key_field(checks.falling, "sigma = [1.0, 0.9, 0.5, 0.02]")
    output: tuple[float, ...] = key_field(checks.many(checks.number), "output = [0.3, 0.1, 0.2]")
    signal: tuple[float, ...] | None = key_field(checks.many(checks.number), "signal = [0.3, 0.1, 0.2]", default=None)
    guidance: float | None = key_field(checks.number, "guidance = 3.5", default=None)
    prediction: tuple[float, ...] | None = key_field(checks.many(checks.number), "prediction = [0.1]", default=None)
    growth: tuple[float, ...] | None = key_field(checks.many(checks.number), "growth = [1.1]", default=None)
    seconds: float | None = key_field(checks.number, "seconds = 12.5", default=None)
    gram: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)


def read(path: Path) -> Trace:
    """The generation in a file. Raises TraceError, naming the file and the key."""
    problems = Problems()
    values = check_table(Trace, read_toml(path, TraceError), problems)
    for key in ("output", "signal", "prediction", "growth"):
        if not problems and values.get(key) and len(values[key]) + 1 != len(values["sigma"]):
            problems.add(key, f"{len(values[key])} changes for {len(values['sigma'])} of sigma", "give one fewer")
    if problems:
        hint = "delete the file, and it is recorded again"
        raise TraceError(f"{path} is not a usable trace file", cause="\n".join(problems), hint=hint)
    return Trace(**values, gram=_read_gram(path, len(values["sigma"])))


def gram_file(path: Path) -> Path:
    """Where the Gram matrix lies that belongs to a trace file."""
    return path.with_suffix(".npy")


def _read_gram(path: Path, steps: int) -> np.ndarray | None:
    if not gram_file(path).exists():
        return None
    try:
        found = np.load(gram_file(path), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        found = np.zeros(0)
    if found.shape not in ((steps, steps), (3 * steps, 3 * steps)) or not np.isfinite(found).all():
        hint = f"delete it and {path.name}, and they are recorded again"
        raise TraceError(f"{gram_file(path)} is no Gram matrix of {steps} steps", hint=hint)
    return found


def write(path: Path, trace: Trace) -> None:
    """Write one generation's file, after that of its Gram matrix; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if trace.gram is not None:
        data = io.BytesIO()
        np.save(data, trace.gram)
        files.write(gram_file(path), data.getvalue())
    files.write(path, "\n".join(coefficient_file.lines(as_table(trace))) + "\n")
