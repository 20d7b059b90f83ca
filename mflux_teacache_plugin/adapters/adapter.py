"""What an adapter declares, and the registry that finds one for a pipeline."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mflux_teacache_plugin.caching.guidance import SecondCall
from mflux_teacache_plugin.caching.taps import TapPoints

#: Guidance distilled into the model: one call a step, whatever --guidance says.
DISTILLED_GUIDANCE = 1

#: Classifier-free guidance: a second call, on the negative prompt, whenever the guidance scale is above 1. Branches are told
#: apart by their order within the step. The first one decides for both; each keeps a residual of its own.
CLASSIFIER_FREE_GUIDANCE = 2


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One family of transformers.

    Where a step's prediction is made is enough for a schedule; a method that looks inside needs `taps` and `branches` too.

    Attributes:
        id: what a coefficient file names as its `adapter`.
        pipelines: the classes it serves, as "module:Class".
        taps: where the transformer is tapped; None where that is not known yet: only methods that look at predictions work.
        branches: how often the transformer runs within a step at most; for the taps.
        second_call: how guidance's second prediction is made, so that steps can do without; None where there is none, or
            where mflux has a `cfg_end` of its own.
        transformer: the pipeline's attribute that holds the transformer, or whatever it calls in its place.
        predict: the pipeline's methods that make one step's function, where mflux compiles it (of several a pipeline may
            have only some); none where it calls the transformer from plain Python.
        on_class: mflux looks these methods up on the class, so that no attribute of the instance can stand before them.
        condition: the position of the transformer's argument, the prompt's embeddings say, that must be the same array as
            before for an earlier prediction to be of use; None where it is the same throughout a run.
        sigmas: σ of every step that calls the transformer, from the pipeline, mflux's Config and the arguments of
            `generate_image`; None where that is the Config's scheduler's.
        steps: how many steps a command takes, from its options; None where `--steps` says it.
        takes_all_steps: pipelines whose command has --image-strength, but does not pass it on.
        refuses: why a run cannot skip steps, or None, from mflux's ModelConfig (None: not known yet) and the options of
            the command or the arguments of `generate_image` (one that is missing is not known).
    """

    id: str
    pipelines: tuple[str, ...]
    taps: TapPoints | None = None
    branches: int = DISTILLED_GUIDANCE
    second_call: SecondCall | None = None
    transformer: str = "transformer"
    predict: tuple[str, ...] = ()
    on_class: bool = False
    condition: int | None = None
    sigmas: Callable[[Any, Any, Mapping[str, Any]], Sequence[float]] | None = None
    steps: Callable[[Namespace], int] | None = None
    takes_all_steps: tuple[str, ...] = ()
    refuses: Callable[[Any | None, Mapping[str, Any]], str | None] | None = None

    @property
    def guided_at_once(self) -> bool:
        """Whether one call returns what guidance made of both predictions, or both of them."""
        return bool(self.predict) or (self.second_call is not None and bool(self.second_call.batch))


def pipeline_name(pipeline: type) -> str:
    """ "module:Class", as adapters name pipelines."""
    return f"{pipeline.__module__}:{pipeline.__qualname__}"


class Registry:
    """All adapters in use, later ones in place of earlier ones of their id; and, by name, why other pipelines are refused."""

    def __init__(self, adapters: Iterable[Adapter], refused: dict[str, str]) -> None:
        self.adapters = {adapter.id: adapter for adapter in adapters}
        self.refused = refused

    def serving(self, pipeline: type) -> dict[str, Adapter]:
        """The adapters, by id, that serve a pipeline class or one it derives from."""
        names = {pipeline_name(cls) for cls in pipeline.__mro__}
        return {id: adapter for id, adapter in self.adapters.items() if names & set(adapter.pipelines)}

    def refusal(self, pipeline: type) -> str | None:
        """Why this pipeline is refused, or None."""
        names = map(pipeline_name, pipeline.__mro__)
        return next((self.refused[name] for name in names if name in self.refused), None)

    def pipelines(self) -> set[str]:
        """Every pipeline that some adapter serves."""
        return {name for adapter in self.adapters.values() for name in adapter.pipelines}
