"""Where the hooks are called from: a few patches of mflux, installed as its modules are imported, all of them undone.

| hook                                      | called from                                                        |
|-------------------------------------------|--------------------------------------------------------------------|
| `mflux_models`                            | after mflux's list of models is imported                           |
| `mflux_add_options`                       | `CommandLineParser.add_general_arguments`: every image command     |
| `mflux_options_parsed`                    | `CommandLineParser.parse_args`, after mflux's own                  |
| `mflux_model_loading`, `_loaded`          | around the pipelines' `__init__`                                   |
| `mflux_generation_*`, `_step_`, `_loop_`  | mflux's callbacks and `generate_image` of the model (`watch`)      |
"""

import importlib.util
import inspect
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from mflux_teacache_plugin.host import faults, imports
from mflux_teacache_plugin.host.imports import when_imported
from mflux_teacache_plugin.host.manager import load_plugins, tell
from mflux_teacache_plugin.host.watch import Observer, watch

#: Module and attribute of every point that is patched; `doctor` looks at them.
PATCH_POINTS = (
    ("mflux.cli.parser.parsers", "CommandLineParser.add_general_arguments"),
    ("mflux.cli.parser.parsers", "CommandLineParser.parse_args"),
    ("mflux.models.common.config.model_config", "AVAILABLE_MODELS"),
    ("mflux.callbacks.callback_registry", "CallbackRegistry.register"),
)


class Bridge:
    """The patches of one process."""

    def __init__(self, hook: Any) -> None:
        self._hook = hook
        self._args: Namespace | None = None  # of the image command that runs in this process, once parsed
        self._undo: list[Callable[[], None]] = []
        self._thread = threading.local()  # .loading: a pipeline that derives from another runs both their __init__

    def install(self) -> None:
        when_imported("mflux.models.common.config.model_config", self._add_models)
        when_imported("mflux.cli.parser.parsers", self._patch_parser)
        for pipelines in tell(self._hook.mflux_pipelines, list):
            for pipeline in pipelines:
                module, _, name = pipeline.partition(":")
                when_imported(module, partial(self._patch_named, name))

    def uninstall(self) -> None:
        imports.forget_all()
        while self._undo:
            self._undo.pop()()

    def _patch(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        own = owner.__dict__.get(name)  # some pipelines inherit their __init__
        setattr(owner, name, wraps(getattr(owner, name))(wrapper))
        self._undo.append(lambda: delattr(owner, name) if own is None else setattr(owner, name, own))

    def _set_name(self, names: dict[str, Any], name: str, value: Any) -> None:
        stock = names.get(name)
        names[name] = value
        self._undo.append(lambda: names.pop(name) if stock is None else names.update({name: stock}))

    def _add_models(self, module: ModuleType) -> None:
        for models in tell(self._hook.mflux_models, dict):
            for name, config in models.items():
                self._set_name(module.AVAILABLE_MODELS, name, config)

    def _patch_parser(self, module: ModuleType) -> None:
        parser_class = module.CommandLineParser
        add_general_arguments, parse_args = parser_class.add_general_arguments, parser_class.parse_args

        def add_options(parser: Any) -> None:
            add_general_arguments(parser)
            names, pipelines = _command_module()
            if not pipelines:  # mflux-train has these arguments too
                return
            parser.mflux_pipelines = pipelines
            rejected: dict[str, str] = {}
            tell(self._hook.mflux_add_options, parser=parser, pipelines=pipelines, rejected=rejected)
            if rejected:  # the command's own dictionary of what it refuses, which mflux-capabilities reads
                self._set_name(names, "REJECTED_OPTIONS", {**names.get("REJECTED_OPTIONS", {}), **rejected})

        def parse(parser: Any, *args: Any, **kwargs: Any) -> Namespace:
            parsed = parse_args(parser, *args, **kwargs)
            if pipelines := getattr(parser, "mflux_pipelines", []):  # mflux-save, -train and -info make no pictures
                self._args = parsed
                told = {"parser": parser, "args": parsed, "command": Path(sys.argv[0]).name, "pipelines": pipelines}
                tell(self._hook.mflux_options_parsed, **told)
                for pipeline in pipelines:
                    self._patch_pipeline(pipeline)
            return parsed

        self._patch(parser_class, "add_general_arguments", add_options)
        self._patch(parser_class, "parse_args", parse)

    def _patch_named(self, name: str, module: ModuleType) -> None:
        self._patch_pipeline(getattr(module, name))

    def _patch_pipeline(self, pipeline: type) -> None:
        stock = pipeline.__init__  # type: ignore[misc]
        if getattr(stock, "_mflux_bridge", None) is self:
            return

        def __init__(model: Any, *args: Any, **kwargs: Any) -> None:
            if getattr(self._thread, "loading", False):
                return stock(model, *args, **kwargs)
            passed = inspect.signature(stock).bind(model, *args, **kwargs)
            passed.apply_defaults()
            path, config = passed.arguments.get("model_path"), passed.arguments.get("model_config")
            told: dict[str, Any] = {"source": None if path is None else str(path), "args": self._args}
            self._thread.loading = True
            try:
                tell(self._hook.mflux_model_loading, pipeline=type(model), model_config=config, **told)
                stock(model, *args, **kwargs)
            finally:
                self._thread.loading = False
            try:
                watch(model, _HookObserver(self._hook))
            except Exception as fault:  # noqa: BLE001 - a pipeline that is not like mflux's own
                return faults.report(f"{type(model).__name__} cannot be watched, it runs without plugins", fault)
            tell(self._hook.mflux_model_loaded, model=model, **told)

        self._patch(pipeline, "__init__", __init__)
        pipeline.__init__._mflux_bridge = self  # type: ignore[misc]


class _HookObserver(Observer):
    """Tells the hooks what `watch` sees: each event has a hook with the same arguments, in the same order."""

    def __init__(self, hook: Any) -> None:
        for event in ("generation_begin", "step_end", "loop_end", "generation_interrupted", "generation_end"):
            setattr(self, event, partial(_tell_in_order, getattr(hook, f"mflux_{event}")))


def _tell_in_order(hook: Any, *args: Any) -> None:
    tell(hook, **dict(zip(hook.spec.argnames, args, strict=True)))


def _command_module() -> tuple[dict[str, Any], list[type]]:
    """The names of the mflux command's module up the stack, and the pipelines that it imports: it builds one of them."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        names = frame.f_globals
        if str(names.get("__package__")).startswith("mflux."):
            pipelines = [v for v in names.values() if isinstance(v, type) and hasattr(v, "generate_image")]
            if pipelines:
                return names, pipelines
        frame = frame.f_back
    return {}, []


_bridge: Bridge | None = None


def install() -> None:
    """Connect the plugins to mflux, once per process; not if mflux has a plugin host of its own."""
    global _bridge
    if _bridge is None and not mflux_has_a_host():
        _bridge = Bridge(load_plugins().manager.hook)
        _bridge.install()


def uninstall() -> None:
    """Leave mflux as it was. Models that are loaded keep what was applied to them."""
    global _bridge
    if _bridge is not None:
        _bridge.uninstall()
        _bridge = None


def mflux_has_a_host() -> bool:
    """Whether this mflux brings a plugin host: a module `mflux.plugins` or `mflux.hookspecs`."""
    return any(importlib.util.find_spec(name) is not None for name in ("mflux.plugins", "mflux.hookspecs"))
