"""What was recorded of generations in which no step was skipped, and its form as JSON.

A trace file is one JSON object: the recipe in flat keys (`variant`, `steps`, `guidance`, `width`, `height`, ...), and for each
of its generations a row of `signal_change`, `output_change` and so on. Row `p`, entry `t` is the relative L1 change
mean|now - before| / mean|before| between steps `t` and `t + 1` of generation `p`, so a row is one shorter than `steps`.
`calibrate` writes one generation per file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.measure import files

#: What the changes of one guidance branch are called in a file.
CHANGES = ("signal_change", "output_change", "residual_change")

#: So few steps have nothing between the first and the last, which always compute.
FEWEST_STEPS = 4

#: The signal that this package's gates read. A polynomial that was fitted to another one says nothing to them.
SIGNAL = "modulated image input of block 0"

#: Where the meaning of every key stands.
FORMAT = "docs/calibration.md, The trace format"

_MEASURED = (*CHANGES, "prediction_change", "sigma", "branches", "meaning")


class TraceError(TeaCacheError):
    """A generation cannot be recorded, or a trace file cannot be used."""


@dataclass(frozen=True, eq=False)
class Trace:
    """One generation.

    Attributes:
        prompt: the prompt, or what tells it apart from the others where it was not recorded.
        sigma: (steps,), strictly falling noise levels.
        signal: (steps - 1,), relative L1 change of the gate's signal; None where there is no such signal.
        output: (steps - 1,), relative L1 change of the transformer's output.
        prediction: (steps - 1,), that of the guided prediction; None where it was not recorded.
        branches: all changes, per guidance branch, by the names in `CHANGES`.
        recipe: every key of the file that holds no measurement.
    """

    prompt: str
    sigma: np.ndarray
    signal: np.ndarray | None
    output: np.ndarray
    prediction: np.ndarray | None = None
    branches: tuple[Mapping[str, np.ndarray], ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def moved(self) -> np.ndarray:
        """The change of what moves the picture: of the guided prediction, or else of the transformer's output."""
        return self.output if self.prediction is None else self.prediction


def read(path: Path, sigma: Sequence[float] | None = None) -> tuple[Trace, ...]:
    """The generations of one trace file; `sigma`, (steps,), is that of a file that holds none.

    Raises:
        TraceError: naming the file, the key and the fix.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("expected one JSON object")
        return _traces(path.name, {"sigma": sigma} | {key: each for key, each in data.items() if each is not None})
    except (OSError, ValueError, RecursionError) as error:  # not JSON, or what `_traces` says
        cause, hint = getattr(error, "strerror", None) or str(error), "record it again with mflux-teacache calibrate"
        raise TraceError(f"{path} is not a usable trace file", cause=cause, hint=hint) from error


def write_generation(
    path: Path,
    recipe: Mapping[str, Any],
    sigma: Sequence[float],
    branches: Sequence[Mapping[str, Sequence[float]]],
    prediction: Sequence[float] | None = None,
) -> None:
    """Write one generation as a trace file of its own; `branches`, the first one first, have the keys of `CHANGES`."""
    measured: dict[str, Any] = {key: [list(branches[0][key])] for key in CHANGES if key in branches[0]}
    measured |= {} if prediction is None else {"prediction_change": [list(prediction)]}
    measured["branches"] = [[dict(branch) for branch in branches]]
    told = {**recipe, "prompts": 1, "meaning": FORMAT, "sigma": list(sigma), **measured}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _traces(name: str, data: Mapping[str, Any]) -> tuple[Trace, ...]:
    """The generations of a file of this name. Raises ValueError, with the key."""
    if not isinstance(data.get("variant"), str) or not data["variant"]:
        raise ValueError("variant: expected the id of a variant")
    outputs = _numbers("output_change", data.get("output_change"))
    if outputs.ndim != 2 or outputs.shape[1] + 1 < FEWEST_STEPS:
        raise ValueError(f"output_change: expected a row for each generation, of {FEWEST_STEPS} steps or more")
    count, changes = outputs.shape
    sigma = _numbers("sigma", data.get("sigma"), (changes + 1,))
    if not ((np.diff(sigma) < 0).all() and sigma[0] <= 1):
        raise ValueError("sigma: expected falling numbers within [0, 1]")
    optional = {
        key: _numbers(key, data[key], (count, changes)) if key in data else [None] * count
        for key in ("signal_change", "prediction_change")
    }
    listed = data.get("branches", [[]] * count)
    usual = isinstance(listed, list) and len(listed) == count and all(isinstance(row, list) for row in listed)
    if not usual or not all(isinstance(branch, dict) for row in listed for branch in row):
        raise ValueError(f"branches: expected {count} lists of objects, one for each generation")
    branches = [
        tuple(
            {kind: _numbers(f"branches.{kind}", branch[kind], (changes,)) for kind in CHANGES if kind in branch}
            for branch in row
        )
        for row in listed
    ]
    recipe = {key: value for key, value in data.items() if key not in _MEASURED}
    named = isinstance(data.get("prompt"), str) and count == 1
    columns = zip(optional["signal_change"], outputs, optional["prediction_change"], branches, strict=True)
    return tuple(
        Trace(data["prompt"] if named else f"{name}, row {number}", sigma, *changed, recipe)
        for number, changed in enumerate(columns, start=1)
    )


def _numbers(key: str, value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An array of finite numbers of at least 0."""
    try:
        found = np.array(value, dtype=float)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{key}: expected numbers, in rows of one length") from None
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise ValueError(f"{key}: expected finite numbers, none below 0")
    if shape is not None and found.shape != shape:
        raise ValueError(f"{key}: expected {shape} numbers, got {found.shape}")
    return found
