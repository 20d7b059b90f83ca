"""What mflux makes of an image command, found out without loading weights: in a process of its own, for `runs.check`.

    python -m mflux_teacache_plugin.measure.probe COMMAND OPTIONS…   < JSON list of lists of further options

runs the command once with each of them, as far as the loading of the model, and prints a JSON list: of each what the
parser understood, or why it was refused.
"""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from mflux_teacache_plugin import _startup
from mflux_teacache_plugin.host.specs import hookimpl

#: Of the parsed options, those that tell pictures apart.
FACTS = ("model", "prompt", "prompt_file", "seed", "steps", "guidance", "width", "height", "quantize", "image_strength")


class _Reached(BaseException):
    """The model would load now. No Exception, so that nobody on the way takes it for a failure."""

    def __init__(self, args: Any) -> None:
        self.facts = {name: getattr(args, name, None) for name in FACTS}


class _StopBeforeLoading:
    @hookimpl(trylast=True)  # after those that refuse a model
    def mflux_model_loading(self, args: Any) -> None:
        raise _Reached(args)


def main() -> None:
    name, *options = sys.argv[1:]
    further: list[list[str]] = json.loads(sys.stdin.read())
    answers: list[dict[str, Any]]
    with contextlib.redirect_stdout(sys.stderr):
        _startup.activate("mflux-teacache looks at a command")
        command = next(iter(entry_points(group="console_scripts", name=name))).load()
        names = vars(sys.modules[command.__module__])
        if not any(isinstance(each, type) and hasattr(each, "generate_image") for each in names.values()):
            answers = [{"error": f"{name} makes no pictures"}] * len(further)
        else:
            from mflux_teacache_plugin.host.manager import load_plugins

            load_plugins().manager.register(_StopBeforeLoading())
            answers = [_ask(command, [name, *options, *each]) for each in further]
    print(json.dumps(answers, default=str))


def _ask(command: Callable[[], Any], argv: list[str]) -> dict[str, Any]:
    sys.argv = argv
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command()
    except _Reached as reached:
        return reached.facts
    except SystemExit as ended:
        told = said.getvalue() or str(ended.code)
        return {"error": told[max(told.find("error: "), 0) :].removeprefix("error: ").strip()}  # without the usage
    except Exception as error:  # noqa: BLE001 - whatever a command trips over is the answer
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": f"{argv[0]} ended before it loaded a model. {said.getvalue()}".strip()}


if __name__ == "__main__":
    main()
