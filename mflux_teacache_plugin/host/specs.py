"""The hooks that a plugin of mflux can implement. Project name and entry-point group: `mflux`.

A plugin is a module or object named by an entry point of that group; it marks its functions with `hookimpl`, takes those of
the arguments it wants, and need not implement more than one. Every plugin is called by itself, the newest first, and one
that fails keeps no other from being called. docs/hooks.md is checked against this file.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("mflux")
hookimpl = pluggy.HookimplMarker("mflux")


@hookspec
def mflux_hookspecs() -> Any:
    """A module or class with further hook specifications, for plugins of this plugin."""


@hookspec
def mflux_pipelines() -> Iterable[str]:
    """Pipeline classes, as "module:Class", to be watched in Python too; in mflux's commands all of them are."""


@hookspec
def mflux_models() -> Mapping[str, Any]:
    """Names for `--model`, each with its mflux ModelConfig. Called when mflux's own list of models is first imported."""


@hookspec
def mflux_add_options(parser: ArgumentParser, pipelines: list[type], rejected: MutableMapping[str, str]) -> None:
    """Add options to the parser of an image command (also for --help, mflux-capabilities and completions).

    `pipelines` are the classes that the command builds one of. An option that this command refuses goes into `rejected`,
    with the reason that mflux-capabilities shows.
    """


@hookspec
def mflux_options_parsed(parser: ArgumentParser, args: Namespace, command: str, pipelines: list[type]) -> None:
    """An image command's options are parsed and no weights are loaded; `parser.error(...)` refuses.

    `command` is the program's name, `pipelines` are the classes that it builds one of.
    """


@hookspec
def mflux_model_loading(pipeline: type, model_config: Any | None, source: str | None, args: Namespace | None) -> None:
    """A pipeline is about to load its weights. `model_config` is mflux's ModelConfig, if it was passed; `source` the path
    or repository that was given instead of a built-in name; `args` the parsed options, None outside mflux's commands.
    """


@hookspec
def mflux_model_loaded(model: Any, source: str | None, args: Namespace | None) -> None:
    """A pipeline is loaded, and mflux's own callbacks are not registered yet. Arguments as in `mflux_model_loading`."""


@hookspec
def mflux_generation_begin(model: Any, seed: int, prompt: str, config: Any) -> None:
    """The denoising loop is about to begin; `config` is mflux's Config."""


@hookspec
def mflux_step_end(model: Any, t: int, time_steps: Any) -> None:
    """Denoising step `t` was taken (absolute: image-to-image starts above 0); `time_steps` is the progress bar."""


@hookspec
def mflux_loop_end(model: Any) -> None:
    """The denoising loop is over. mflux may free the transformer next, and then decodes."""


@hookspec
def mflux_generation_interrupted(model: Any) -> None:
    """Ctrl-C in the denoising loop. `mflux_generation_end` follows."""


@hookspec
def mflux_generation_end(model: Any, image: Any | None) -> None:
    """`generate_image` is over: with mflux's GeneratedImage, not saved yet, or None if it raised."""
