"""What a cache costs and saves at a model's real size, without its weights: none of that depends on what they are.

mflux's own initializer builds the pipeline, quantized as mflux does it; its loaders find nothing, and the transformer gets random
weights, made on the device. MLX is lazy, so text encoders and VAE, which nobody evaluates, take no memory. mflux's own loop runs
on random embeddings, and is left where decoding would begin: there is no picture, and one would mean nothing.
"""

import contextlib
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.apply import apply_teacache, to_method
from mflux_teacache_plugin.caching.taps import module_at
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.methods.speedup import Speedup


class AllSteps(Speedup):
    """A schedule that skips nothing."""

    def schedule(self, variant: Any, facts: Any) -> tuple[int, ...]:
        return tuple(range(facts.steps))


#: What skips nothing, by name: the method, and how much of plain's seconds its loop may take.
NOTHING: dict[str, tuple[Method | str, float]] = {
    "all steps scheduled": (AllSteps(1.01), 1.01),
    **{text: (text, 1.02) for text in ("1e-9", "seacache:1e-9", "dualcache:F=1,B=0,rdt=1e-9")},
}
LEAST_SHARE = 0.97  #: of steps/computed, that a schedule's speed-up should reach

_PROMPT = "nothing"


@dataclass(frozen=True)
class Family:
    """What one pipeline of mflux makes: "module:Class", the module below `mflux.models`.

    Attributes:
        names: mflux's, of the models.
        text: the linear layer of the transformer that takes the prompt's embeddings.
        tokens: of a prompt; None where mflux pads it to the model's most.
        calls: of the transformer a step without guidance.
    """

    pipeline: str
    names: tuple[str, ...]
    text: str
    tokens: int | None = None
    calls: int = 1


_KLEIN = ("flux2-klein-4b", "flux2-klein-9b", "flux2-klein-base-4b", "flux2-klein-base-9b")
FAMILIES = (
    Family("flux.variants.txt2img.flux:Flux1", ("dev", "schnell", "krea-dev"), "context_embedder"),
    Family("flux2.variants.txt2img.flux2_klein:Flux2Klein", _KLEIN, "context_embedder"),
    Family("qwen.variants.txt2img.qwen_image:QwenImage", ("qwen-image",), "txt_in", tokens=64, calls=2),
    Family("z_image.variants.z_image:ZImage", ("z-image", "z-image-turbo"), "cap_embedder.1", tokens=64),
)
MODELS = {name: family for family in FAMILIES for name in family.names}


@dataclass
class Subject:
    """A pipeline with random weights that nobody has evaluated; of each list of blocks, how many of how many it has."""

    family: Family
    adapter: Adapter
    blocks: dict[str, str] = field(default_factory=dict)
    model: Any = None

    @property
    def weights(self) -> list[mx.array]:
        return [array for _, array in tree_flatten(self.model.transformer.parameters())]


def _random(*shape: int) -> mx.array:
    from mflux.models.common.config.model_config import ModelConfig

    return 0.02 * mx.random.normal(shape, dtype=ModelConfig.precision)


def build(name: str, quantize: int | None = None, layers: Sequence[int] = (), tokens: int | None = None) -> Subject:
    """mflux's pipeline for one of MODELS. `layers`: so many blocks of each list are left; of every list, if it is one number."""
    from mflux.models.common.config.model_config import AVAILABLE_MODELS, ModelConfig
    from mflux.models.common.tokenizer import TokenizerLoader
    from mflux.models.common.weights.loading.loaded_weights import LoadedWeights, MetaData
    from mflux.models.common.weights.loading.weight_applier import WeightApplier
    from mflux.models.common.weights.loading.weight_loader import WeightLoader

    family, config = MODELS[name], AVAILABLE_MODELS[name]
    module, _, cls = family.pipeline.partition(":")
    pipeline = getattr(import_module(f"mflux.models.{module}"), cls)
    subject = Subject(family, next(iter(choose.serving_adapters(pipeline).values())))
    counted = {"transformer_blocks": [{}] * 19, "single_transformer_blocks": [{}] * 38}  # FLUX.1's blocks, in its files

    def random(array: mx.array) -> mx.array:
        return _random(*array.shape) if array.ndim > 1 else array.astype(ModelConfig.precision)

    def apply(inner: Callable[..., Any], *, models: dict[str, Any], weights: Any, **options: Any) -> Any:
        transformer, taps = models["transformer"], subject.adapter.taps
        lists = [] if taps is None else [(name, getattr(transformer, name)) for name in taps.blocks]
        for (name, blocks), left in zip(lists, [*layers, *layers[-1:] * len(lists)], strict=False):
            setattr(transformer, name, blocks[:left])
            subject.blocks[name] = f"{min(left, len(blocks))} of {len(blocks)}"
        transformer.update(tree_map(random, transformer.parameters()))
        return inner(models={"transformer": transformer}, weights=LoadedWeights({}, MetaData()), **options)

    with contextlib.ExitStack() as stack:
        found = LoadedWeights({"transformer": counted}, MetaData())
        stack.callback(stand_before(WeightLoader, "load", lambda inner, **_: found))
        stack.callback(stand_before(TokenizerLoader, "load_all", lambda inner, **_: {}))
        stack.callback(stand_before(WeightApplier, "apply_and_quantize", apply))
        model = subject.model = pipeline(quantize=quantize, model_config=config)
    for part in [part for part in model if part == "vae" or "encoder" in part]:
        setattr(model, part, None)
    model.tokenizers = dict.fromkeys(("t5", "clip", "qwen3", "qwen", "z_image"))
    _embed(model, family.text, tokens or family.tokens or config.max_sequence_length)
    return subject


def _embed(model: Any, text: str, tokens: int) -> None:
    """Have the pipeline find embeddings of `_PROMPT`: where it keeps them, or in place of what its encoder would return."""

    def inputs(path: str) -> int:
        linear = module_at(model.transformer, path)
        return linear.weight.shape[-1] * 32 // linear.bits if hasattr(linear, "bits") else linear.weight.shape[-1]

    prompt, negative = (_random(1, tokens, inputs(text)) for _ in range(2))
    mask, ids = mx.ones((1, tokens), dtype=mx.int32), mx.zeros((1, tokens, 4), dtype=mx.int32)
    if hasattr(model, "_encode_prompts"):  # Z-Image
        layer = lambda inner, *, guidance, **_: (prompt[0], negative[0] if guidance > 1 else None)  # noqa: E731
        stand_before(model, "_encode_prompts", layer)
    elif hasattr(model, "_encode_prompt_pair"):  # Klein
        layer = lambda inner, *, guidance, **_: (prompt, ids, *((negative, ids) if guidance > 1 else (None, None)))  # noqa: E731
        stand_before(model, "_encode_prompt_pair", layer)
    elif model.model_config.supports_guidance is None:  # Qwen-Image
        model.prompt_cache[f"{_PROMPT}|NEG| "] = (prompt, mask, negative, mask)
    else:
        model.prompt_cache[_PROMPT] = (prompt, _random(1, inputs("time_text_embed.text_embedder.linear_1")))


@dataclass(frozen=True)
class Plan:
    """What is measured: width and height in pixels; `settings` as `--teacache` takes them; `clock` counts seconds."""

    size: tuple[int, int]
    steps: int
    guidance: float
    settings: tuple[str, ...]
    repetitions: int = 3
    clock: Callable[[], float] = time.perf_counter


def require_memory(subject: Subject, plan: Plan) -> None:
    """SettingsError where less is there than is needed: the weights, exactly, and 64 hidden states on their way, roughly."""
    facts = mx.device_info()
    keys = ("max_recommended_working_set_size", "free_memory", "total_memory")  # Metal, CUDA
    there = next((int(facts[key]) for key in keys if key in facts), 0)
    if not there:
        there = 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[0])
    weights, tokens = _bytes(subject.weights), plan.size[0] * plan.size[1] // 256 + 512
    width = module_at(subject.model.transformer, subject.family.text).weight.shape[0]
    working = 64 * tokens * width * _random(1).itemsize
    if weights + working > there:
        raise SettingsError(
            f"{(weights + working) / 1e9:.1f} GB are needed, and {there / 1e9:.1f} GB are there",
            cause=f"{weights / 1e9:.1f} GB of weights, and about {working / 1e9:.1f} GB for {tokens} tokens on their way",
            hint="quantize it (-q 4), or take a smaller size or fewer --layers",
        )


class _Left(Exception):
    """The loop is over, as far as it is measured."""


class Loop:
    """One loop of mflux's, of which `most` steps are run: seconds of each step, memory in bytes, what the cache held at most."""

    def __init__(self, subject: Subject, plan: Plan, method: Method | str | None, most: int = 0) -> None:
        callbacks = subject.model.callbacks
        self._ends: list[float] = []
        self._clock, self._most = plan.clock, most
        self.kept: list[mx.array] = []
        self.peak = self.prediction = 0
        self.handle = None if method is None else apply_teacache(subject.model, method)
        callbacks.register(self)  # behind the cache's
        options = {"width": plan.size[0], "height": plan.size[1], "guidance": plan.guidance}
        try:
            with contextlib.suppress(_Left), contextlib.redirect_stderr(io.StringIO()):  # mflux has a bar of its own
                subject.model.generate_image(seed=1, prompt=_PROMPT, num_inference_steps=plan.steps, **options)
        finally:
            for each in (callbacks.before_loop, callbacks.in_loop, callbacks.after_loop):
                each.remove(self)
            if self.handle is not None:
                self.handle.restore()
        record = None if self.handle is None else self.handle.stats.last
        if record is not None and record.fault is not None:
            raise SettingsError(f"{method} stood aside: {record.fault}", hint="leave it out, and report it")
        self.computed = plan.steps if record is None else record.computed
        computing = (
            range(plan.steps) if record is None else {each.step for each in record.decisions if not each.skipped}
        )
        self.seconds = [after - before for before, after in zip(self._ends, self._ends[1:], strict=False)]
        self.of_skipped = [each for step, each in enumerate(self.seconds) if step not in computing]

    def call_before_loop(self, **_: Any) -> None:
        mx.reset_peak_memory()
        self._ends.append(self._clock())

    def call_in_loop(self, latents: mx.array, **_: Any) -> None:
        kept = [] if self.handle is None else self.handle.kept()
        mx.eval(latents, kept)
        self._ends.append(self._clock())
        self.kept, self.prediction = max(self.kept, kept, key=_bytes), latents.nbytes
        if len(self._ends) == self._most + 1:
            raise _Left

    def call_after_loop(self, **_: Any) -> None:
        self.peak = mx.get_peak_memory()
        raise _Left


def _bytes(arrays: Sequence[mx.array]) -> int:
    return sum(array.nbytes for array in arrays)


def candidates(subject: Subject, plan: Plan) -> dict[str, Method | str | None]:
    """Plain, the settings, and what skips nothing as far as the model can. TeaCacheError where a setting makes no sense."""
    wanted: dict[str, Method | str | None] = {"plain": None, **{text: text for text in plan.settings}}
    for text in plan.settings:
        method = to_method(text)
        if method is not None:
            method.check_steps(plan.steps)
        apply_teacache(subject.model, text).restore()
    for name, (nothing, _) in NOTHING.items():
        with contextlib.suppress(TeaCacheError):  # there are no coefficients, or no taps
            apply_teacache(subject.model, nothing).restore()
            wanted[name] = nothing
    return wanted


def measure(subject: Subject, plan: Plan, wanted: dict[str, Any], tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """A row for each of `wanted`. They take turns, so that the machine is as busy for each; a ratio is the rounds' median.

    `tick` is called after each of (1 + repetitions) times len(wanted) loops.
    """
    for array in subject.weights:  # one by one: only one is there unquantized at a time
        mx.eval(array)
    rounds: list[dict[str, Loop]] = []
    for most in (2, *[0] * plan.repetitions):  # first MLX compiles its kernels
        rounds.append({})
        for name, method in wanted.items():
            rounds[-1][name] = Loop(subject, plan, method, most)
            tick()
    return [_row(subject, plan, name, rounds[1:]) for name in wanted]


def _row(subject: Subject, plan: Plan, name: str, rounds: list[dict[str, Loop]]) -> dict[str, Any]:
    loops = [each[name] for each in rounds]
    last, handle = loops[-1], loops[-1].handle
    ratio = median(sum(each[name].seconds) / sum(each["plain"].seconds) for each in rounds)
    skipped = [
        median(each[name].of_skipped) / median(each["plain"].seconds) for each in rounds if each[name].of_skipped
    ]
    share, missed = last.computed / plan.steps / ratio, []
    if handle is not None:
        schedule = handle.method.keeps == "prediction"
        calls = subject.adapter.branches if plan.guidance > 1 else subject.family.calls
        room = calls * (2 if schedule else handle.method.order + 1)
        if name in NOTHING and ratio > NOTHING[name][1]:
            missed.append(f"at most {NOTHING[name][1]} of plain")
        if name not in NOTHING and schedule and share < LEAST_SHARE:
            missed.append(f"{LEAST_SHARE:.0%} of steps/computed")
        if _bytes(last.kept) > room * last.prediction if schedule else len(last.kept) > room:
            missed.append(f"at most {room} {'predictions' if schedule else 'residuals'} kept")
    return {
        "setting": name,
        "seconds": median(sum(each.seconds) for each in loops),
        "of_plain": ratio,
        "computed": last.computed,
        "speedup": 1 / ratio,
        "share": share,
        "skipped_step": median(skipped) if skipped else None,
        "peak_bytes": last.peak,
        "kept_bytes": _bytes(last.kept),
        "kept": [f"{tuple(array.shape)} {str(array.dtype).rpartition('.')[2]}" for array in last.kept],
        "missed": missed,
    }
