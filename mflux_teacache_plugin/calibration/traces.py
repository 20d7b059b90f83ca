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

#: No change is as large as this.
MOST = 1e300

#: So few steps have nothing between the first and the last, which always compute.
FEWEST_STEPS = 4

#: The signal that this package's gates read. A polynomial that was fitted to another one says nothing to them.
SIGNAL = "modulated image input of block 0"

MEANING = (
    "signal_change[p][t], output_change[p][t], residual_change[p][t]: mean|now - before| / mean|before| between steps t and "
    "t+1 of generation p, of the first block's modulated input, of the transformer's output and of what its blocks add; "
    "the first guidance branch, the others under branches[p]; prediction_change[p][t]: of the guided prediction, which the "
    "scheduler takes; sigma[t]: noise level at which step t was computed; no step was skipped"
)


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
    except OSError as error:
        raise _fault(path, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _fault(path, f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise _fault(path, "expected one JSON object")
    if not isinstance(data.get("variant"), str) or not data["variant"]:
        raise _fault(path, "variant: expected the id of a variant")
    outputs = _rows(path, "output_change", data.get("output_change"))
    steps = len(outputs[0]) + 1
    if steps < FEWEST_STEPS:
        raise _fault(path, f"output_change: {steps} steps tell nothing", f"record {FEWEST_STEPS} steps or more")
    outputs = _rows(path, "output_change", data["output_change"], steps - 1)
    optional: dict[str, Sequence[np.ndarray | None]] = {}
    for key in ("signal_change", "prediction_change"):
        missing = data.get(key) is None
        rows = [None] * len(outputs) if missing else _rows(path, key, data[key], steps - 1)
        if len(rows) != len(outputs):
            raise _fault(path, f"{key}: {len(rows)} rows, where output_change has {len(outputs)}")
        optional[key] = rows
    levels = _numbers(path, "sigma", sigma if data.get("sigma") is None else data["sigma"], steps)
    if not ((np.diff(levels) < 0).all() and levels[0] <= 1):
        raise _fault(path, "sigma: expected falling numbers within [0, 1]")
    branches = _branches(path, data.get("branches"), len(outputs), steps - 1)
    named = isinstance(data.get("prompt"), str) and len(outputs) == 1
    measured = {*CHANGES, "prediction_change", "sigma", "branches", "meaning"}
    recipe = {key: value for key, value in data.items() if key not in measured}
    return tuple(
        Trace(
            data["prompt"] if named else f"{path.name}, row {index + 1}", levels, signal, output, prediction, of, recipe
        )
        for index, (signal, output, prediction, of) in enumerate(
            zip(optional["signal_change"], outputs, optional["prediction_change"], branches, strict=True)
        )
    )


def write_generation(
    path: Path,
    recipe: Mapping[str, Any],
    sigma: Sequence[float],
    branches: Sequence[Mapping[str, Sequence[float]]],
    prediction: Sequence[float] | None = None,
) -> None:
    """Write one generation as a trace file of its own; `branches`, the first one first, have the keys of `CHANGES`."""
    measured = {key: [list(branches[0][key])] for key in CHANGES if key in branches[0]}
    measured |= {} if prediction is None else {"prediction_change": [list(prediction)]}
    told = {**recipe, "prompts": 1, "meaning": MEANING, "sigma": list(sigma), **measured}
    path.parent.mkdir(parents=True, exist_ok=True)
    told["branches"] = [[dict(branch) for branch in branches]]
    files.write(path, json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _fault(path: Path, what: str, hint: str = "record it again with mflux-teacache calibrate") -> TraceError:
    return TraceError(f"{path} is not a usable trace file", cause=what, hint=hint)


def _rows(path: Path, key: str, value: Any, length: int | None = None) -> list[np.ndarray]:
    """`value` as one or more rows of numbers, each of `length`."""
    if not isinstance(value, list) or not value:
        raise _fault(path, f"{key}: expected a list of lists of numbers")
    return [_numbers(path, f"{key}[{index}]", row, length) for index, row in enumerate(value)]


def _numbers(path: Path, key: str, value: Any, length: int | None) -> np.ndarray:
    """`value` as finite numbers, none below 0."""
    usual = isinstance(value, (list, tuple)) and all(type(each) in (int, float) for each in value)
    if not usual or not all(0 <= each < MOST for each in value):
        raise _fault(path, f"{key}: expected a list of finite numbers, none below 0")
    if length is not None and len(value) != length:
        raise _fault(path, f"{key}: expected {length} numbers, got {len(value)}")
    return np.array(value, dtype=float)


def _branches(path: Path, value: Any, rows: int, changes: int) -> list[tuple[Mapping[str, np.ndarray], ...]]:
    if value is None:
        return [()] * rows
    usual = isinstance(value, list) and len(value) == rows and all(isinstance(row, list) for row in value)
    if not usual or not all(isinstance(branch, dict) for row in value for branch in row):
        raise _fault(path, f"branches: expected {rows} lists of objects, one for each generation")

    def read_branch(key: str, branch: dict[str, Any]) -> Mapping[str, np.ndarray]:
        return {name: _numbers(path, f"{key}.{name}", branch[name], changes) for name in CHANGES if name in branch}

    return [
        tuple(read_branch(f"branches[{index}][{number}]", branch) for number, branch in enumerate(row))
        for index, row in enumerate(value)
    ]
