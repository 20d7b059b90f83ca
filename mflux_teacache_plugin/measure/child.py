"""In a process of its own: one run of an image command, or only what the command's parser makes of its options.

    python -m mflux_teacache_plugin.measure.child run FILE COMMAND OPTIONS…
    python -m mflux_teacache_plugin.measure.child check COMMAND OPTIONS…     < JSON list of lists of further options

`run` leaves the process's peak memory in FILE: what the system reports of a child that ended counts its parent's too. `check`
runs the command once with each of the further options, as far as the loading of the model, and prints a JSON list of answers.
"""

import contextlib
import io
import json
import re
import resource
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import _startup
from mflux_teacache_plugin.host import command
from mflux_teacache_plugin.host.specs import hookimpl

#: Of the parsed options, those that tell pictures apart.
FACTS = ("model", "prompt", "prompt_file", "seed", "steps", "guidance", "width", "height", "quantize", "image_strength")


def run(file: str, name: str, *options: str) -> None:
    """Run a command of mflux, and leave what it took in a file."""
    try:
        sys.exit(command.run(_found(name), options))
    finally:
        Path(file).write_text(json.dumps(_memory()))


def check(name: str, *options: str) -> None:
    """What a command makes of its options, with each of the further ones that stdin lists; JSON on stdout."""
    further: list[list[str]] = json.loads(sys.stdin.read())
    with contextlib.redirect_stdout(sys.stderr):
        found = _found(name)
        names = vars(sys.modules[found.load().__module__])
        if any(isinstance(each, type) and hasattr(each, "generate_image") for each in names.values()):
            answers = [_ask(found, [*options, *each]) for each in further]
        else:
            answers = [{"error": f"{name} makes no pictures"}] * len(further)
    print(json.dumps(answers, default=str))


def _found(name: str) -> EntryPoint:
    _startup.activate("mflux-teacache measures")
    found = command.find(name)
    assert found is not None, "`runs.Command.of` knows it"
    return found


class _Reached(command.Leave):
    """The model would load now."""

    facts: dict[str, Any]

    @hookimpl(trylast=True)  # after those that refuse a model
    def mflux_model_loading(self, args: Any) -> None:
        self.facts = {name: getattr(args, name, None) for name in FACTS}
        raise self


def _ask(found: EntryPoint, options: list[str]) -> dict[str, Any]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command.run(found, options, _Reached())
    except _Reached as reached:
        return reached.facts
    except SystemExit as ended:
        told = said.getvalue() or str(ended.code)
        return {"error": told[max(told.find("error: "), 0) :].removeprefix("error: ").strip()}  # without the usage
    except Exception as error:  # noqa: BLE001 - whatever a command trips over is the answer
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": f"{found.name} ended before it loaded a model. {said.getvalue()}".strip()}


def _memory() -> dict[str, int | None]:
    """The highest resident set size of this process, and the most memory that MLX had in use at a time, in bytes."""
    if sys.platform == "darwin":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        peak = int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
    mlx = sys.modules.get("mlx.core")
    return {"memory": peak, "mlx_memory": None if mlx is None else mlx.get_peak_memory()}


if __name__ == "__main__":
    (run if sys.argv[1] == "run" else check)(*sys.argv[2:])
