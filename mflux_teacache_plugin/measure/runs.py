"""One image command of mflux in a fresh process: the picture, and what it took to make it."""

import difflib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import choose, methods
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError, UnsupportedModelError
from mflux_teacache_plugin.host import command as host_command

#: A process that no start-up file needs to have prepared. -P: nothing from the working folder.
_CHILD = (sys.executable, "-P", "-m", f"{__package__}.child")

#: How much of a failed command's stderr is quoted, in characters.
_QUOTED = 2000


class RunError(TeaCacheError):
    """An image command failed."""


@dataclass(frozen=True)
class Command:
    """An image command of mflux: its name, and the options that all of its runs share."""

    name: str
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: Sequence[str]) -> "Command":
        """The command that was given after `--`, as a list of words. Raises SettingsError if mflux has no such command."""
        words = words[1:] if words[:1] == ["--"] else words
        if not words:
            raise SettingsError("there is no image command", hint="give one behind --: `-- mflux-generate --prompt …`")
        found = host_command.find(words[0])
        if found is None or found.name == "mflux-teacache":
            known = {each.name for each in entry_points(group="console_scripts") if each.name.startswith("mflux-")}
            close = difflib.get_close_matches(Path(words[0]).name, known - {"mflux-teacache"}, n=1)
            hint = f"did you mean {close[0]}?" if close else "commands that make pictures begin with mflux-generate"
            raise SettingsError(f"{words[0]} is not a command of mflux", hint=hint)
        return cls(found.name, tuple(words[1:]))

    def with_options(self, **options: object) -> "Command":
        """With `--option value` for each that is not None, behind those that are there; the last one counts."""
        there = dict(itertools.pairwise(self.options))
        given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
        new = [word for option, value in given if there.get(option) != value for word in (option, value)]
        return Command(self.name, (*self.options, *new))

    def __str__(self) -> str:
        """As one pastes it into a shell."""
        return shlex.join((self.name, *self.options))


@dataclass(frozen=True)
class Run:
    """What one picture took.

    Attributes:
        steps: the denoising steps that were asked for; `computed`, `skipped`: of these; parts of a step count as such.
        seconds: of the denoising loop, as mflux counts them; `wall` of the whole process.
        memory, mlx_memory: the process's peak in bytes, and MLX's own; None if MLX is not there.
        method: how the cache calls the setting; None for plain mflux.
    """

    steps: int
    computed: float
    skipped: float
    seconds: float
    wall: float
    memory: int
    mlx_memory: int | None
    method: str | None

    def fewer(self, plain: "Run") -> int:
        """What to ask of plain mflux for as much work: the computed share of the plain run's, in steps, rounded."""
        return max(1, round(self.steps * self.computed / plain.computed))


def setting(text: str) -> str:
    """What `--teacache` takes, checked and unchanged. Raises ArgumentTypeError."""
    choose.parse(text)
    return text


def check(command: Command, wanted: Sequence[str]) -> dict[str, Any]:
    """What the command's own parser makes of it, as `child.FACTS`; takes seconds, loads no weights.

    Raises UnsupportedModelError if it cannot run with the settings `wanted`; the cause is what it says itself.
    """
    further = [["--teacache", each] for each in (methods.OFF, *wanted)]
    words = [*_CHILD, "check", command.name, *command.options]
    done = subprocess.run(words, input=json.dumps(further), capture_output=True, text=True, env=_environment())
    if done.returncode != 0:
        raise RunError(f"`{command}` failed before it began", cause=done.stderr.strip()[-_QUOTED:])
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    for options, answer in zip(further, answers, strict=True):
        if "error" in answer:
            asked = "" if options[1] == methods.OFF else f" with {options[1]}"
            said = re.sub(r"^\s*(cause: |hint: )?", "", answer["error"], flags=re.MULTILINE)  # it is a cause as a whole
            raise UnsupportedModelError(f"`{command}` cannot run{asked}", cause=said)
    return answers[0]


def described(facts: Mapping[str, Any]) -> str:
    """What a command makes, in a line: model, size, steps, guidance, and `options` that are not among these."""
    size = f"{facts['width']}x{facts['height']}" if facts["width"] and facts["height"] else None
    guidance = None if facts["guidance"] is None else f"guidance {facts['guidance']:g}"
    quantized = None if facts["quantize"] is None else f"{facts['quantize']} bits"
    parts = (facts["model"], quantized, size, f"{facts['steps']} steps", guidance, facts.get("options"))
    return ", ".join(part for part in parts if part)


def picture(command: Command, wanted: str, file: Path) -> Run:
    """Run the command with this setting of `--teacache`, and have its picture in `file`. Raises RunError if there is none."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".run-") as folder:  # on the same disk: it is renamed
        made = Path(folder) / f"picture{file.suffix}"
        full = command.with_options(teacache=wanted, output=made)
        peaks = made.with_name("peaks.json")
        words = [*_CHILD, "run", str(peaks), full.name, *full.options, "--metadata"]
        begun = time.perf_counter()
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment())
        wall = time.perf_counter() - begun
        what, said = f"`{command} --teacache {wanted}`", done.stderr.strip()[-_QUOTED:]
        if done.returncode != 0:
            raise RunError(f"{what} failed with exit code {done.returncode}", cause=said)
        sidecar = made.with_suffix(".metadata.json")
        if not made.exists() or not sidecar.exists():
            raise RunError(f"{what} left no picture", cause=said)
        recorded, peak = json.loads(sidecar.read_text()), json.loads(peaks.read_text())
        made.replace(file)
    steps = int(recorded["steps"])
    strength = recorded.get("image_strength") or 0.0  # where the loop starts, as mflux has it
    half = recorded.get("teacache_left_out", 0) / 2  # in steps, of two calls each
    total = steps - max(1, int(steps * min(strength, 1.0))) if strength > 0 else steps
    computed, skipped = recorded.get("teacache_computed", total) - half, recorded.get("teacache_skipped", 0) + half
    seconds = float(recorded["generation_time_seconds"])
    method = None if wanted == methods.OFF else recorded.get("teacache_method")
    return Run(steps, computed, skipped, seconds, wall, peak["memory"], peak["mlx_memory"], method)


def _environment() -> dict[str, str]:
    """This process's, without its place among the ranks of a distributed run."""
    return {name: value for name, value in os.environ.items() if name not in ("MLX_RANK", "MLX_HOSTFILE")}
