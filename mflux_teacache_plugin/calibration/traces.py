"""What was recorded of generations in which no step was skipped, and its form as JSON.

A trace file is one JSON object: the recipe in flat keys (`variant`, `steps`, `guidance`, `width`, `height`, ...), and for each
of its generations a row of `signal_change` and `output_change`. Row `p`, entry `t` is the relative L1 change
mean|now - before| / mean|before| between steps `t` and `t + 1` of generation `p`, so that a row is one shorter than `steps`.
`calibrate` writes one generation per file and adds `sigma`, `residual_change`, `prediction_change` and the first three per
guidance branch.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.measure import files as measure_files

#: What the changes of one guidance branch are called in a file.
CHANGES = ("signal_change", "output_change", "residual_change")

#: So few steps have nothing between the first and the last, which always compute.
FEWEST_STEPS = 4

#: The signal that this package's gates read. A polynomial that was fitted on another one says nothing to them.
SIGNAL = "modulated image input of block 0"

MEANING = (
    "signal_change[p][t], output_change[p][t], residual_change[p][t]: mean|now - before| / mean|before| between steps t and "
    "t+1 of generation p, of the first block's modulated input, of the transformer's output and of what its blocks add; "
    "the first guidance branch, the others under branches[p]; prediction_change[p][t]: of the guided prediction, which the "
    "scheduler takes; sigma[t]: noise level at which step t was computed; no step was skipped"
)


class TraceError(TeaCacheError):
    """A trace file cannot be used."""


@dataclass(frozen=True, eq=False)
class Trace:
    """One generation.

    Attributes:
        prompt: the prompt, or what tells it apart from the others where it was not recorded.
        sigma: (steps,), strictly falling noise levels; None where they were not recorded.
        signal: (steps - 1,), relative L1 change of the gate's signal; None where there is no such signal.
        output: (steps - 1,), relative L1 change of the transformer's output.
        prediction: (steps - 1,), that of the guided prediction; None where it was not recorded.
        seed: of the noise; None where it was not recorded.
        branches: all changes, per guidance branch, by the names in `CHANGES`.
    """

    prompt: str
    sigma: np.ndarray | None
    signal: np.ndarray | None
    output: np.ndarray
    seed: int | None = None
    prediction: np.ndarray | None = None
    branches: tuple[Mapping[str, np.ndarray], ...] = ()

    @property
    def moved(self) -> np.ndarray:
        """The change of what moves the picture: of the guided prediction, or else of the transformer's output."""
        return self.output if self.prediction is None else self.prediction


@dataclass(frozen=True, eq=False)
class TraceFile:
    """One file: its recipe, which is every key that holds no measurement, and its generations."""

    path: Path
    recipe: Mapping[str, Any]
    traces: tuple[Trace, ...]

    @property
    def variant(self) -> str:
        return self.recipe["variant"]

    @property
    def foreign(self) -> str:
        """What the file's signal is, if it is not `SIGNAL`; empty otherwise, and where the file does not say."""
        signal = self.recipe.get("signal", SIGNAL)
        return "" if signal == SIGNAL else str(signal)


@dataclass
class _Judge:
    """Reads values of one file, and names the file and the key of what cannot be used."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)

    def fault(self, what: str, hint: str = "record it again with mflux-teacache calibrate") -> TraceError:
        return TraceError(f"{self.path} is not a usable trace file", cause=what, hint=hint)

    def rows(self, key: str, value: Any, length: int | None = None) -> list[np.ndarray] | None:
        """`value` as rows of finite numbers of at least 0, each of `length`; None for None."""
        if value is None:
            return None
        if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
            raise self.fault(f"{key}: expected a list of lists of numbers")
        return [self.numbers(f"{key}[{index}]", row, length) for index, row in enumerate(value)]

    def numbers(self, key: str, value: Any, length: int | None) -> np.ndarray:
        usual = isinstance(value, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        if not usual or not all(math.isfinite(v) and v >= 0 for v in value):
            raise self.fault(f"{key}: expected a list of finite numbers, none below 0")
        if length is not None and len(value) != length:
            raise self.fault(f"{key}: expected {length} numbers, got {len(value)}")
        return np.array(value, dtype=float)


def read(path: Path) -> TraceFile:
    """Read one trace file.

    Raises:
        TraceError: naming the file, the key and the mend.
    """
    judge = _Judge(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise judge.fault(error.strerror or str(error), "check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise judge.fault(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise judge.fault("expected one JSON object")
    judge.data = data
    for key in ("variant", "output_change"):
        if key not in data:
            raise judge.fault(f"{key}: missing")
    if not isinstance(data["variant"], str) or not data["variant"]:
        raise judge.fault("variant: expected the id of a variant")
    outputs = judge.rows("output_change", data["output_change"]) or []
    changes = len(outputs[0]) if outputs else 0
    if changes + 1 < FEWEST_STEPS:
        raise judge.fault(f"output_change: {changes + 1} steps tell nothing", f"record {FEWEST_STEPS} steps or more")
    outputs = [judge.numbers(f"output_change[{row}]", each.tolist(), changes) for row, each in enumerate(outputs)]
    signals, predictions = (
        _optional(judge, key, len(outputs), changes) for key in ("signal_change", "prediction_change")
    )
    sigma = None if data.get("sigma") is None else judge.numbers("sigma", data["sigma"], changes + 1)
    if sigma is not None and not ((np.diff(sigma) < 0).all() and sigma[0] <= 1):
        raise judge.fault("sigma: expected falling numbers within [0, 1]")
    branches = _branches(judge, data.get("branches"), len(outputs), changes)
    prompts = data.get("prompt")
    names = [prompts] if isinstance(prompts, str) and len(outputs) == 1 else None
    traces = (
        Trace(
            names[0] if names else f"{path.name}, row {index + 1}",
            sigma,
            signals[index],
            output,
            data.get("seed") if isinstance(data.get("seed"), int) else None,
            predictions[index],
            branches[index],
        )
        for index, output in enumerate(outputs)
    )
    measured = {*CHANGES, "prediction_change", "sigma", "branches", "meaning"}
    return TraceFile(path, {key: value for key, value in data.items() if key not in measured}, tuple(traces))


def _optional(judge: _Judge, key: str, count: int, changes: int) -> Sequence[np.ndarray | None]:
    rows = judge.rows(key, judge.data.get(key), changes)
    if rows is None:
        return [None] * count
    if len(rows) != count:
        raise judge.fault(f"{key}: {len(rows)} rows, where output_change has {count}")
    return rows


def _branches(judge: _Judge, value: Any, rows: int, changes: int) -> list[tuple[Mapping[str, np.ndarray], ...]]:
    if value is None:
        return [()] * rows
    usual = isinstance(value, list) and len(value) == rows and all(isinstance(row, list) for row in value)
    if not usual or not all(isinstance(branch, dict) for row in value for branch in row):
        raise judge.fault(f"branches: expected {rows} lists of objects, one for each generation")
    return [
        tuple(
            {
                key: judge.numbers(f"branches[{index}][{number}].{key}", changed, changes)
                for key, changed in branch.items()
                if key in CHANGES
            }
            for number, branch in enumerate(row)
        )
        for index, row in enumerate(value)
    ]


def by_variant(paths: Iterable[Path]) -> dict[str, list[TraceFile]]:
    """All files, grouped by the variant that they name, in the order they came."""
    groups: dict[str, list[TraceFile]] = {}
    for path in paths:
        file = read(path)
        groups.setdefault(file.variant, []).append(file)
    return groups


def write_generation(
    path: Path,
    recipe: Mapping[str, Any],
    sigma: Sequence[float],
    branches: Sequence[Mapping[str, Sequence[float]]],
    **more: Any,
) -> None:
    """Write one generation as a trace file of its own; `branches`, the first one first, have the keys of `CHANGES`."""
    first = branches[0]
    measured = {key: [list(first[key])] for key in CHANGES if key in first}
    told = {**recipe, **more, "prompts": 1, "meaning": MEANING, "sigma": list(sigma), **measured}
    write_json(path, {**told, "branches": [[dict(branch) for branch in branches]]})


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file aside and rename it, so that it is there whole or not at all.

    Raises:
        TraceError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        measure_files.write(path, data)
    except OSError as error:
        hint = "free some space, or name another folder"
        raise TraceError(f"{path} cannot be written", cause=error.strerror or str(error), hint=hint) from error


def check_writable(folder: Path) -> None:
    """Raise TraceError if no file can be written into a folder, or no such folder be made. Leaves nothing behind."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        hint = "name another folder"
        raise TraceError(f"{folder} cannot be written", cause=error.strerror or str(error), hint=hint) from error
