"""One `Case` per pipeline and mode, so that one parametrised test goes over all of them.

@pytest.mark.parametrize("case", CASES, ids=str)
def test_something(case, tiny):
    model = case.build(tiny)
    pixels = case.generate(model, tiny, num_inference_steps=6)
    saved = case.run(tiny, "--steps", "6")
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.tiny.commands import Saved, run_command
from tests.tiny.pictures import SIDE, Pictures

if TYPE_CHECKING:
    from tests.tiny.workspace import Tiny

PROMPT = "a tiny random picture"
SEED = 7
STEPS = 4

_VARIANTS = {"flux1": "mflux.models.flux.variants.", "flux2": "mflux.models.flux2.variants."}


def _no_options(_: Pictures) -> dict[str, Any]:
    return {}


def _no_flags(_: Pictures) -> list[Any]:
    return []


@dataclass(frozen=True)
class Case:
    """A pipeline in one mode: how to build it, what to generate with, and the command that does the same.

    Where both exist, `generate` in Python and `run` on the command line ask for the same picture: same prompt, seed,
    size, steps and guidance.
    """

    id: str
    family: str  #: which adapter the plugin needs: "flux1" or "flux2"
    pipeline: str  #: module (below the family's `variants`) and class, as "txt2img.flux:Flux1"
    checkpoint: str  #: kind of checkpoint, a key of `flux1.KINDS` or "flux2"
    model: str  #: key of the model's entry in mflux's registry
    command: str  #: console script
    guidance: float | None = 3.5  #: None where the model has none
    branches: int = 1  #: calls of the transformer per step
    steps: int = STEPS  #: steps really taken of `STEPS` (image to image starts later)
    cacheable: bool = True  #: False where a skipped step has no meaning (attention maps)
    named: bool = False  #: whether the command takes --base-model; the others are tied to one model
    size: tuple[int, int] = (SIDE, SIDE)  #: width and height of the picture that Python returns
    options: Callable[[Pictures], dict[str, Any]] = field(default=_no_options, repr=False)
    flags: Callable[[Pictures], list[Any]] = field(default=_no_flags, repr=False)

    def __str__(self) -> str:
        return self.id

    @property
    def pipeline_class(self) -> type:
        """The class itself, imported now."""
        module, name = self.pipeline.split(":")
        return getattr(importlib.import_module(_VARIANTS[self.family] + module), name)

    def build(self, tiny: Tiny, **options: Any) -> Any:
        """Construct the pipeline in Python, on the session's checkpoint; `options` go to its constructor."""
        from mflux.models.common.config.model_config import AVAILABLE_MODELS

        path = str(tiny.checkpoint(self.checkpoint))
        return self.pipeline_class(**{"model_path": path, "model_config": AVAILABLE_MODELS[self.model], **options})

    def generate_image(self, model: Any, tiny: Tiny, **options: Any) -> Any:
        """Call `model.generate_image` with what this pipeline needs; `options` go before. Returns mflux's object."""
        standard = {"seed": SEED, "prompt": PROMPT, "num_inference_steps": STEPS, "width": SIDE, "height": SIDE}
        if self.guidance is not None:
            standard["guidance"] = self.guidance
        return model.generate_image(**{**standard, **self.options(tiny.pictures), **options})

    def generate(self, model: Any, tiny: Tiny, **options: Any) -> np.ndarray:
        """As `generate_image`, but returns the picture as (height, width, 3) bytes."""
        return np.asarray(self.generate_image(model, tiny, **options).image.convert("RGB")).copy()

    def argv(self, tiny: Tiny, *more: Any) -> list[str]:
        """The arguments of `command`, without `--output`. An option repeated in `more` wins, as in argparse."""
        words: list[Any] = ["--model", tiny.checkpoint(self.checkpoint), "--prompt", PROMPT, "--seed", SEED]
        words += ["--width", SIDE, "--height", SIDE, "--steps", STEPS]
        words += ["--guidance", self.guidance] if self.guidance is not None else []
        words += ["--base-model", self.model] if self.named else []
        return [str(word) for word in (*words, *self.flags(tiny.pictures), *more)]

    def run(self, tiny: Tiny, *more: Any) -> Saved:
        """Run the command in this process and return what it saved."""
        return run_command(self.command, self.argv(tiny, *more), tiny.folder)


def _flux1(id: str, pipeline: str, checkpoint: str, model: str, command: str = "", **more: Any) -> Case:
    return Case(id, "flux1", pipeline, checkpoint, model, f"mflux-{command}".rstrip("-"), **more)


def _klein(id: str, model: str, edit: bool = False, guidance: float = 1.0, **more: Any) -> Case:
    pipeline = "edit.flux2_klein_edit:Flux2KleinEdit" if edit else "txt2img.flux2_klein:Flux2Klein"
    command = "mflux-generate-flux2-edit" if edit else "mflux-generate-flux2"
    if edit:
        more = {
            "options": lambda pictures: {"image_paths": [pictures.photo]},
            "flags": lambda pictures: ["--image-paths", pictures.photo],
            **more,
        }
    branches = 2 if guidance > 1 else 1
    return Case(id, "flux2", pipeline, "flux2", model, command, guidance, branches, named=True, **more)


_FLUX1 = "txt2img.flux:Flux1"
_FILL = "in_context.flux_in_context_fill:Flux1InContextFill"
_CONTROLNET = "controlnet.flux_controlnet:Flux1Controlnet"

_FROM_PHOTO = {
    "steps": 2,
    "options": lambda pictures: {"image_path": pictures.photo, "image_strength": 0.5},
    "flags": lambda pictures: ["--image-path", pictures.photo, "--image-strength", 0.5],
}
_CONTROLLED = {
    "options": lambda pictures: {"controlnet_image_path": str(pictures.photo), "controlnet_strength": 0.4},
    "flags": lambda pictures: ["--controlnet-image-path", pictures.photo, "--controlnet-strength", 0.4],
}
_CONCEPT_LAYERS = {"concept": "square", "heatmap_layer_indices": [0, 1]}
_CONCEPT_FLAGS = ["--concept", "square", "--heatmap-layer-indices", 0, 1]

CASES: list[Case] = [
    _flux1("flux1", _FLUX1, "dev", "dev", "generate", named=True),
    _flux1("flux1-schnell", _FLUX1, "schnell", "schnell", "generate", named=True, guidance=None),
    _flux1("flux1-krea", _FLUX1, "krea-dev", "krea-dev", "generate", named=True),
    _flux1("flux1-from-image", _FLUX1, "dev", "dev", "generate", named=True, **_FROM_PHOTO),
    _flux1(
        "flux1-kontext",
        "kontext.flux_kontext:Flux1Kontext",
        "kontext",
        "dev-kontext",
        "generate-kontext",
        options=lambda pictures: {"image_path": pictures.photo},
        flags=lambda pictures: ["--image-path", pictures.photo],
    ),
    _flux1(
        "flux1-fill",
        "fill.flux_fill:Flux1Fill",
        "fill",
        "dev-fill",
        "generate-fill",
        guidance=30.0,
        options=lambda pictures: {"image_path": pictures.photo, "masked_image_path": pictures.mask},
        flags=lambda pictures: ["--image-path", pictures.photo, "--masked-image-path", pictures.mask],
    ),
    _flux1(
        "flux1-depth",
        "depth.flux_depth:Flux1Depth",
        "depth",
        "dev-depth",
        "generate-depth",
        guidance=10.0,
        options=lambda pictures: {"depth_image_path": pictures.depth},
        flags=lambda pictures: ["--depth-image-path", pictures.depth],
    ),
    _flux1(
        "flux1-redux",
        "redux.flux_redux:Flux1Redux",
        "redux",
        "dev-redux",
        "generate-redux",
        options=lambda pictures: {"redux_image_paths": [pictures.photo]},
        flags=lambda pictures: ["--redux-image-paths", pictures.photo],
    ),
    _flux1("flux1-canny", _CONTROLNET, "canny", "dev-controlnet-canny", "generate-controlnet", **_CONTROLLED),
    _flux1("flux1-upscaler", _CONTROLNET, "upscaler", "dev-controlnet-upscaler", "upscale-controlnet", **_CONTROLLED),
    _flux1(
        "flux1-in-context",
        "in_context.flux_in_context_dev:Flux1InContextDev",
        "dev",
        "dev",
        "generate-in-context",
        size=(2 * SIDE, SIDE),
        options=lambda pictures: {"image_path": pictures.photo},
        flags=lambda pictures: ["--reference-image", pictures.photo],
    ),
    _flux1(
        "flux1-in-context-edit",
        _FILL,
        "fill",
        "dev-fill",
        "generate-in-context-edit",
        guidance=30.0,
        size=(2 * SIDE, SIDE),
        options=lambda pictures: {"left_image_path": str(pictures.photo)},
        flags=lambda pictures: ["--reference-image", pictures.photo],
    ),
    _flux1(
        "flux1-catvton",
        _FILL,
        "fill",
        "dev-fill-catvton",
        "generate-in-context-catvton",
        guidance=30.0,
        size=(2 * SIDE, SIDE),
        options=lambda pictures: {
            "left_image_path": str(pictures.other),
            "right_image_path": str(pictures.photo),
            "masked_image_path": str(pictures.mask),
        },
        flags=lambda pictures: [
            *("--garment-image", pictures.other),
            *("--person-image", pictures.photo, "--person-mask", pictures.mask),
        ],
    ),
    _flux1(
        "flux1-concept",
        "concept_attention.flux_concept:Flux1Concept",
        "dev",
        "dev",
        "concept",
        named=True,
        cacheable=False,
        options=lambda pictures: dict(_CONCEPT_LAYERS),
        flags=lambda pictures: list(_CONCEPT_FLAGS),
    ),
    _flux1(
        "flux1-concept-from-image",
        "concept_attention.flux_concept_from_image:Flux1ConceptFromImage",
        "dev",
        "dev",
        "concept-from-image",
        named=True,
        cacheable=False,
        options=lambda pictures: {**_CONCEPT_LAYERS, "image_path": str(pictures.photo)},
        flags=lambda pictures: [*_CONCEPT_FLAGS, "--input-image-path", pictures.photo],
    ),
    _klein("klein", "flux2-klein-tiny"),
    _klein("klein-from-image", "flux2-klein-tiny", **_FROM_PHOTO),
    _klein("klein-base", "flux2-klein-base-tiny", guidance=3.5),
    _klein("klein-base-unguided", "flux2-klein-base-tiny"),
    _klein("klein-edit", "flux2-klein-tiny", edit=True),
    _klein("klein-base-edit", "flux2-klein-base-tiny", edit=True, guidance=3.5),
    _klein("klein-kv-edit", "flux2-klein-kv-tiny", edit=True),
]


def case(id: str) -> Case:
    """The case of this id."""
    return next(case for case in CASES if case.id == id)
