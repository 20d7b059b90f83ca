"""What an adapter declares, and the registry that finds one for a pipeline."""

from collections.abc import Iterable
from dataclasses import dataclass

from mflux_teacache_plugin.caching.taps import TapPoints


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One family of transformers.

    Attributes:
        id: what a coefficient file names as its `adapter`.
        pipelines: the classes it serves, as "module:Class".
        taps: where the transformer is tapped.
        branches: how often the transformer runs within a step at most (see `adapters/cfg.py`).
        transformer: the pipeline's attribute that holds the transformer.
        predict: the pipeline's method that makes one step's function and compiles it on most machines; None where mflux
            calls the transformer directly.
    """

    id: str
    pipelines: tuple[str, ...]
    taps: TapPoints
    branches: int
    transformer: str = "transformer"
    predict: str | None = None


def pipeline_name(pipeline: type) -> str:
    """ "module:Class", as adapters name pipelines."""
    return f"{pipeline.__module__}:{pipeline.__qualname__}"


class Registry:
    """All adapters in use, and the pipelines that are refused with a reason.

    Args:
        adapters: later ones replace earlier ones of the same id, so that a plugin can mend a built-in one.
        refused: pipeline name to the reason why it cannot be cached.
    """

    def __init__(self, adapters: Iterable[Adapter], refused: dict[str, str]) -> None:
        self.adapters = {adapter.id: adapter for adapter in adapters}
        self.refused = refused

    def serving(self, pipeline: type) -> dict[str, Adapter]:
        """The adapters, by id, that serve a pipeline class or one it derives from."""
        names = {pipeline_name(cls) for cls in pipeline.__mro__}
        return {id: adapter for id, adapter in self.adapters.items() if names & set(adapter.pipelines)}

    def refusal(self, pipeline: type) -> str | None:
        """Why this pipeline is refused, or None."""
        return next(
            (self.refused[name] for cls in pipeline.__mro__ if (name := pipeline_name(cls)) in self.refused), None
        )

    def pipelines(self) -> set[str]:
        """Every pipeline that some adapter serves."""
        return {name for adapter in self.adapters.values() for name in adapter.pipelines}
