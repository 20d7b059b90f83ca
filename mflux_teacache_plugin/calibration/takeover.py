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
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError, UnsupportedModelError
from mflux_teacache_plugin.host import command
from mflux_teacache_plugin.host.specs import hookimpl
from mflux_teacache_plugin.host.watch import Watch
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.variants.catalog import Catalog, Match

#: Called before weights load, with adapter, match, ModelConfig and source; raises what stands in the way.
Check = Callable[[Adapter, Match | None, Any, str | None], None]

#: Options of ours that would make a generation skip steps, as mflux's parser keeps them.
_CACHES = ("teacache", "dualcache", "seacache", "teacache_coefficients", "teacache_forecast")


class Model:
    """The command's model, once the command asks for a picture.

    Attributes:
        pipeline: mflux's object.
        adapter: how its calls are reached.
    """

    def __init__(self, pipeline: Any, adapter: Adapter, generate: Callable[..., Any], asked: dict[str, Any]) -> None:
        """`asked` are the arguments of the command's call of `generate`, the pipeline's own generate_image."""
        self.pipeline = pipeline
        self.adapter = adapter
        self._generate = generate
        self._asked = asked
        self._prompt: str | None = None
        # the command's own callbacks free the text encoder after the first prompt, save intermediate steps, and so on
        for name in ("before_loop", "in_loop", "after_loop", "interrupt"):
            callbacks = getattr(pipeline.callbacks, name)
            callbacks[:] = [callback for callback in callbacks if isinstance(callback, Watch)]

    def generate(self, prompt: str, seed: int, **changes: Any) -> Any:
        """A picture as the command would make it, of another prompt and seed; `changes` such as num_inference_steps.

        mflux's progress bar is not shown. Raises KeyboardInterrupt for mflux's own answer to Ctrl-C.
        """
        from mflux.utils.exceptions import StopImageGenerationException

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

    @property
    def steps(self) -> int | None:
        """So many steps the command asks for, if it says so."""
        return self._asked.get("num_inference_steps")


class _Listener:
    """The plugin that catches the command's model. What it raises goes past the host, which would only report it."""

    def __init__(self, files: Catalog, check: Check, job: Callable[[Model], None]) -> None:
        self._files = files
        self._check = check
        self._job = job
        self._adapter: Adapter | None = None

    @hookimpl(optionalhook=True)
    def mflux_options_parsed(self, args: Namespace, pipelines: list[type]) -> None:
        asked = [f"--{name.replace('_', '-')}" for name in _CACHES if getattr(args, name, None) not in (None, "off")]
        with _leaving():
            if asked:
                raise SettingsError(f"{asked[0]} skips steps", hint="calibration records plain runs: leave it out")
            for pipeline in pipelines:
                choose.serving_adapters(pipeline)

    @hookimpl(optionalhook=True)
    def mflux_model_loading(
        self, pipeline: type, model_config: Any | None, source: str | None, args: Namespace | None
    ) -> None:
        with _leaving():
            if model_config is None:
                raise UnsupportedModelError(f"{pipeline.__name__} was built without a model of mflux's registry")
            serving = choose.serving_adapters(pipeline)
            match = self._files.match(choose.identity(model_config, source), serving.keys())
            adapter = next(iter(serving.values())) if match is None else serving[match.variant.adapter]
            choose.check_run(adapter, pipeline, model_config, vars(args) if args is not None else {})
            self._check(adapter, match, model_config, source)
            self._adapter = adapter

    @hookimpl(optionalhook=True)
    def mflux_model_loaded(self, model: Any) -> None:
        if self._adapter is None:
            return
        adapter, generate = self._adapter, model.generate_image

        def generate_image(**asked: Any) -> Any:
            object.__setattr__(model, "generate_image", generate)
            with _leaving():
                self._job(Model(model, adapter, generate, asked))
            raise command.Leave

        object.__setattr__(model, "generate_image", generate_image)


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    try:
        yield
    except TeaCacheError as error:
        raise command.Leave from error


def run(wanted: Command, files: Catalog, check: Check, job: Callable[[Model], None]) -> None:
    """Run a command up to its first picture, do `job` with its model, and leave it.

    Args:
        wanted: the command; the prompt may be missing.
        files: the coefficient files that the model is looked up in.

    Raises:
        SettingsError: the command ended without asking for a picture.
        UnsupportedModelError: the command's pipeline has no adapter.
        SystemExit: mflux's parser refused the options.
    """
    found = command.find(wanted.name)
    assert found is not None  # `Command.of` looked
    prompted = any(word.split("=")[0] in ("--prompt", "--prompt-file", "--instruction") for word in wanted.options)
    options = wanted.options if prompted else (*wanted.options, "--prompt", "calibration")
    _startup.activate(f"mflux-teacache calibrate {wanted.name}")
    if not _startup.state()["activated"]:
        why = _startup.state()["why"]
        raise SettingsError("the plugin is switched off", cause=why, hint="see mflux-teacache doctor")
    ambient = os.environ.pop(settings.ENVIRONMENT, None)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            command.run(found, options, _Listener(files, check, job))
    except command.Leave as left:
        if left.__cause__ is not None:
            raise left.__cause__ from left.__cause__.__cause__
        return
    finally:
        if ambient is not None:
            os.environ[settings.ENVIRONMENT] = ambient
    raise SettingsError(f"{wanted.name} ended without asking for a picture", hint="run it once by itself")
