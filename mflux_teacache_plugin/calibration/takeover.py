"""Take over one of mflux's image commands at its first picture.

The command parses its options, chooses and loads its model and works out what it calls `generate_image` with: all of that
is mflux's own, and whatever the command can do, quantization, LoRA, input pictures, counts for what is done here too.
"""

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from mflux_teacache_plugin import _startup, choose, settings
from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.choose import Choice
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError, UnsupportedModelError
from mflux_teacache_plugin.host import command
from mflux_teacache_plugin.host.specs import hookimpl
from mflux_teacache_plugin.host.watch import Watch
from mflux_teacache_plugin.measure.runs import Command

#: Called before weights load, with what serves the model, and where its weights come from; raises what stands in the way.
Check = Callable[[Choice, str], None]

#: Options of ours that would make a generation skip steps, as mflux's parser keeps them.
_CACHES = ("teacache", "dualcache", "seacache", "teacache_coefficients", "teacache_forecast")


class Model:
    """The command's model, once the command asks for a picture: mflux's `pipeline`, and the `adapter` that reaches its calls.

    `asked` are the arguments of the command's call of `generate`, the pipeline's own generate_image.
    """

    def __init__(
        self,
        pipeline: Any,
        adapter: Adapter,
        cfg_end: float | None,
        generate: Callable[..., Any],
        asked: dict[str, Any],
    ) -> None:
        self.pipeline, self.adapter = pipeline, adapter
        self.cfg_end = cfg_end  #: that the command gives as this plugin's option; whoever makes a picture applies it
        self.steps: int | None = asked.get("num_inference_steps")  #: that the command asks for, if it says so
        self.has_guidance = "guidance" in asked  #: whether the command passes one on
        self._generate, self._asked = generate, asked
        self._prompt: str | None = None
        # the command's own callbacks free the text encoder after the first prompt, save intermediate steps, and so on
        for name in ("before_loop", "in_loop", "after_loop", "interrupt"):
            callbacks = getattr(pipeline.callbacks, name)
            callbacks[:] = [callback for callback in callbacks if isinstance(callback, Watch)]

    def generate(self, prompt: str, seed: int, **changes: Any) -> Any:
        """A picture as the command would make it, of another prompt ("": its own) and seed; `changes` such as num_inference_steps.

        mflux's progress bar is not shown. Raises KeyboardInterrupt for mflux's own answer to Ctrl-C.
        """
        from mflux.utils.exceptions import StopImageGenerationException

        prompt = prompt or self._asked["prompt"]
        if prompt != self._prompt and isinstance(kept := getattr(self.pipeline, "prompt_cache", None), dict):
            kept.clear()  # or it would grow with every prompt
        self._prompt = prompt
        try:
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
                return self._generate(**{**self._asked, "prompt": prompt, "seed": seed, **changes})
        except StopImageGenerationException:
            raise KeyboardInterrupt from None
        finally:
            mx.clear_cache()  # as mflux does between seeds


class _Listener:
    """The plugin that catches the command's model. What it raises goes past the host, which would only report it."""

    def __init__(self, check: Check, job: Callable[[Model], None]) -> None:
        self._check, self._job = check, job
        self._adapter: Adapter | None = None
        self._cfg_end: float | None = None

    @hookimpl(optionalhook=True)
    def mflux_options_parsed(self, args: Namespace, pipelines: list[type]) -> None:
        asked = [f"--{name.replace('_', '-')}" for name in _CACHES if getattr(args, name, None) not in (None, "off")]
        with _leaving():
            if asked:
                raise SettingsError(f"{asked[0]} skips steps", hint="leave it out of the command")
            if getattr(args, "teacache_cfg_end", None) is not None:  # a cache of its own, and there is room for one
                self._cfg_end, args.teacache_cfg_end = args.teacache_cfg_end, None
            for pipeline in pipelines:
                choose.serving_adapters(pipeline)

    @hookimpl(optionalhook=True)
    def mflux_model_loading(
        self, pipeline: type, model_config: Any | None, source: str | None, args: Namespace | None
    ) -> None:
        with _leaving():
            if model_config is None:
                raise UnsupportedModelError(f"{pipeline.__name__} was built without a model of mflux's registry")
            usual = settings.Settings(choose.recommended(None), "here", True)
            found = choose.choose(pipeline, model_config, source, choose.catalog(), usual, args)
            if found.problem is not None:
                print(found.problem, file=sys.stderr)
            self._check(found, source or model_config.model_name)
            self._adapter = found.adapter

    @hookimpl(optionalhook=True)
    def mflux_model_loaded(self, model: Any) -> None:
        if self._adapter is None:
            return
        adapter, generate = self._adapter, model.generate_image

        def generate_image(**asked: Any) -> Any:
            object.__setattr__(model, "generate_image", generate)
            with _leaving():
                self._job(Model(model, adapter, self._cfg_end, generate, asked))
            raise command.Leave

        object.__setattr__(model, "generate_image", generate_image)


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    try:
        yield
    except TeaCacheError as error:
        raise command.Leave from error


def run(wanted: Command, check: Check, job: Callable[[Model], None]) -> None:
    """Run a command, whose prompt may be missing, up to its first picture, do `job` with its model, and leave it.

    SettingsError if it ends without asking for a picture, UnsupportedModelError if its pipeline has no adapter, SystemExit if
    mflux's parser refuses the options.
    """
    found = command.find(wanted.name)
    assert found is not None  # `Command.of` looked
    prompts = ("--prompt", "--prompt-file", "--instruction", "-C", "--config-from-conf", "--config-from-metadata")
    prompted = any(word.split("=")[0] in prompts for word in wanted.options)
    options = wanted.options if prompted else (*wanted.options, "--prompt", "calibration")
    _startup.activate(f"mflux-teacache calibrate {wanted.name}")
    if not (state := _startup.state())["activated"]:
        raise SettingsError("the plugin is switched off", cause=state["why"], hint="see mflux-teacache doctor")
    os.environ.pop(settings.ENVIRONMENT, None)  # in this process steps are skipped where a setting is tried
    try:
        with contextlib.redirect_stdout(sys.stderr):
            command.run(found, options, _Listener(check, job))
    except command.Leave as left:
        if left.__cause__ is not None:
            raise left.__cause__ from left.__cause__.__cause__
        return
    raise SettingsError(f"{wanted.name} ended without asking for a picture", hint="run it once by itself")
