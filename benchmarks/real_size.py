"""What a cache costs and saves at a model's real size, without its weights: none of that depends on what they are.

mflux's own initializer builds the pipeline, quantized as mflux does it; its loaders find nothing, and the transformer gets random
weights, made on the device. MLX is lazy, so text encoders and VAE, which nobody evaluates, take no memory. mflux's own loop runs
on random embeddings, and is left where decoding would begin: there is no picture, and one would mean nothing.
"""

import argparse
import contextlib
import io
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from tqdm import tqdm

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.apply import apply_teacache
from mflux_teacache_plugin.caching.taps import module_at
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.demo_model import float32
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.measure import machine, runs
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.methods.speedup import Speedup


class AllSteps(Speedup):
    """A schedule that skips nothing."""

    def schedule(self, variant: Any, facts: Any) -> tuple[int, ...]:
        return tuple(range(facts.steps))


#: What skips nothing, by name.
NOTHING: dict[str, Method | str] = {
    "all steps scheduled": AllSteps(1.01),
    **{text: text for text in ("1e-9", "seacache:1e-9", "dualcache:F=1,B=0,rdt=1e-9")},
}

_PROMPT = "nothing"
Clock = Callable[[], float]


class Family(NamedTuple):
    """A pipeline of mflux, "module:Class" below `mflux.models`; the transformer's linear layer that takes a prompt; how many
    tokens that has, None where mflux pads it to the model's most.
    """

    pipeline: str
    text: str
    tokens: int | None = None


_FLUX1 = Family("flux.variants.txt2img.flux:Flux1", "context_embedder")
_KLEIN = Family("flux2.variants.txt2img.flux2_klein:Flux2Klein", "context_embedder")
_Z_IMAGE = Family("z_image.variants.z_image:ZImage", "cap_embedder.1", tokens=64)
MODELS = {
    **dict.fromkeys(("dev", "schnell", "krea-dev"), _FLUX1),
    **dict.fromkeys([f"flux2-klein-{size}" for size in ("4b", "9b", "base-4b", "base-9b")], _KLEIN),
    "qwen-image": Family("qwen.variants.txt2img.qwen_image:QwenImage", "txt_in", tokens=64),
    **dict.fromkeys(("z-image", "z-image-turbo"), _Z_IMAGE),
}


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

    return mx.random.uniform(-0.03, 0.03, shape, dtype=ModelConfig.precision)


def build(name: str, quantize: int | None = None, layers: tuple[int, ...] = (), tokens: int | None = None) -> Subject:
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
    # FLUX.1's blocks are counted in its files
    counted: dict[str, Any] = dict(transformer_blocks=[{}] * 19, single_transformer_blocks=[{}] * 38)

    def random(array: mx.array) -> mx.array:
        return _random(*array.shape) if array.ndim > 1 else array.astype(ModelConfig.precision)

    def apply(inner: Callable[..., Any], *, models: dict[str, Any], weights: Any, **options: Any) -> Any:
        transformer, taps = models["transformer"], subject.adapter.taps
        lists = [] if taps is None else [(name, getattr(transformer, name)) for name in taps.blocks]
        for (name, blocks), left in zip(lists, [*layers, *(layers[-1:] * len(lists))], strict=False):
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
        made = (prompt[0], None), (prompt[0], negative[0])
        stand_before(model, "_encode_prompts", lambda inner, *, guidance, **_: made[guidance > 1])
    elif hasattr(model, "_encode_prompt_pair"):  # Klein
        pairs = (prompt, ids, None, None), (prompt, ids, negative, ids)
        stand_before(model, "_encode_prompt_pair", lambda inner, *, guidance, **_: pairs[guidance > 1])
    elif model.model_config.supports_guidance is None:  # Qwen-Image
        model.prompt_cache[f"{_PROMPT}|NEG| "] = (prompt, mask, negative, mask)
    else:
        model.prompt_cache[_PROMPT] = (prompt, _random(1, inputs("time_text_embed.text_embedder.linear_1")))


def require_memory(subject: Subject, pixels: int) -> None:
    """SettingsError where less is there than is needed: the weights, exactly, and 64 hidden states on their way, roughly."""
    facts = mx.device_info()
    keys = ("max_recommended_working_set_size", "free_memory", "total_memory")  # Metal, CUDA
    there = next((int(facts[key]) for key in keys if key in facts), 0)
    if not there:
        there = 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[0])
    weights, tokens = sum(array.nbytes for array in subject.weights), pixels // 256 + 512
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
    """One loop of mflux's, `most` steps of it or all: seconds of each step, MLX's peak of memory, what the cache held at most."""

    def __init__(
        self, subject: Subject, method: Method | str | None, clock: Clock, most: int = 0, **options: Any
    ) -> None:
        callbacks = subject.model.callbacks
        self._clock, self._most = clock, most
        self._ends: list[float] = []
        self.kept: tuple[int, str] = (0, "")  # bytes, arrays in words
        self.peak = 0
        self._handle = None if method is None else apply_teacache(subject.model, method)
        callbacks.register(self)  # behind the cache's
        try:
            with contextlib.suppress(_Left), contextlib.redirect_stderr(io.StringIO()):  # mflux has a bar of its own
                subject.model.generate_image(seed=1, prompt=_PROMPT, **options)
        finally:
            for each in (callbacks.before_loop, callbacks.in_loop, callbacks.after_loop):
                each.remove(self)
            if self._handle is not None:
                self._handle.restore()
        self.seconds = [after - before for before, after in itertools.pairwise(self._ends)]
        self.computed, computing = float(len(self.seconds)), set(range(len(self.seconds)))
        if self._handle is not None:
            record = self._handle.stats.last
            if record.fault is not None:
                raise SettingsError(f"{method} stopped: {record.fault}", hint="leave it out, and report it")
            self.computed, computing = record.computed, {each.step for each in record.decisions if not each.skipped}
        self.of_skipped = [each for step, each in enumerate(self.seconds) if step not in computing]

    def call_before_loop(self, **_: Any) -> None:
        mx.reset_peak_memory()
        self._ends.append(self._clock())

    def call_in_loop(self, latents: mx.array, **_: Any) -> None:
        kept = [] if self._handle is None else self._handle.kept()
        mx.eval(latents, kept)
        self._ends.append(self._clock())
        shapes = Counter(f"{tuple(array.shape)} {str(array.dtype).rpartition('.')[2]}" for array in kept)
        words = ", ".join(f"{count} of {shape}" for shape, count in shapes.items())
        self.kept = max(self.kept, (sum(array.nbytes for array in kept), words))
        if len(self._ends) - 1 == self._most:
            raise _Left

    def call_after_loop(self, **_: Any) -> None:
        self.peak = mx.get_peak_memory()
        raise _Left


def candidates(model: Any, settings: Sequence[str], steps: int) -> dict[str, Method | str | None]:
    """Plain, the settings, and what skips nothing as far as the model can. TeaCacheError where a setting makes no sense."""
    wanted: dict[str, Method | str | None] = {"plain": None}
    for name in (*settings, *NOTHING):
        method = NOTHING.get(name, name)
        try:
            with apply_teacache(model, method) as handle:
                handle.method.check_steps(steps)
            wanted[name] = method
        except TeaCacheError:
            if name not in NOTHING:  # else there are no coefficients, or no taps
                raise
    return wanted


def measure(
    subject: Subject, wanted: dict[str, Any], repetitions: int, clock: Clock, tick: Callable[[], Any], **options: Any
) -> list[dict[str, Any]]:
    """A row for each of `wanted`. They take turns, so that the machine is as busy for each; a ratio is the rounds' median.

    Args:
        clock: in seconds.
        tick: called after each of (1 + repetitions) times len(wanted) loops.
        options: of mflux's `generate_image`.
    """
    for array in subject.weights:  # one by one: only one is there unquantized at a time
        mx.eval(array)
    rounds: list[dict[str, Loop]] = []
    for most in (2, *[0] * repetitions):  # first MLX compiles its kernels
        rounds.append({})
        for name, method in wanted.items():
            rounds[-1][name] = Loop(subject, method, clock, most, **options)
            tick()
    return [_row(name, [(each[name], each["plain"]) for each in rounds[1:]]) for name in wanted]


def _row(name: str, pairs: list[tuple[Loop, Loop]]) -> dict[str, Any]:
    """Of loops, each with the plain one of its round."""
    last = pairs[-1][0]
    ratio = median(sum(loop.seconds) / sum(plain.seconds) for loop, plain in pairs)
    skipped = [median(loop.of_skipped) / median(plain.seconds) for loop, plain in pairs if loop.of_skipped]
    return {
        "setting": name,
        "seconds": median(sum(loop.seconds) for loop, _ in pairs),
        "of_plain": ratio,
        "speedup": 1 / ratio,
        "computed": last.computed,
        "of_steps_computed": last.computed / len(last.seconds) / ratio,
        "skipped_step": median(skipped) if skipped else None,
        "peak_gb": last.peak / 1e9,
        "kept_mb": last.kept[0] / 1e6,
        "kept": last.kept[1],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option."""
    add = parser.add_argument
    add("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    add("settings", nargs="*", type=runs.setting, metavar="SETTING", help="what --teacache takes; default: 2x")
    add("-q", "--quantize", type=int, choices=(3, 4, 5, 6, 8), help="to so many bits, as mflux does it")
    add("--size", type=pair, default=(1024, 1024), metavar="WxH", help="default: 1024x1024")
    add("--steps", type=number, default=20, help="default: 20")
    add("--guidance", type=float, default=4.0, help="default: 4; 1 for none")
    add("--repetitions", type=number, default=3, help="rounds, in which all take turns; default: 3")
    add("--layers", type=numbers, default=(), metavar="N[,N]", help="leave so many blocks of each list; default: all")
    add("--tokens", type=number, metavar="N", help="of the prompt; default: as many as mflux pads it to, or 64")
    add("--float32", action="store_true", help="in place of mflux's bfloat16; faster on a CPU")
    add("--cpu-seconds", action="store_true", help="count this process's own, on a CPU that others use too")
    output.add_format(parser)


def numbers(text: str) -> tuple[int, ...]:
    """`256x256`, or `1,2`: whole numbers from 1 on. ValueError for anything else."""
    found = tuple(int(each) for each in re.split("[x,]", text))
    if min(found) < 1:
        raise ValueError(text)
    return found


def pair(text: str) -> tuple[int, ...]:
    """Two of them."""
    width, height = numbers(text)
    return width, height


def number(text: str) -> int:
    """One of them."""
    (found,) = numbers(text)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print; 2 for what cannot be."""
    parser = argparse.ArgumentParser(prog="real_size.py", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except TeaCacheError as error:
        print(error, file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Measure, and print."""
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    settings = tuple(dict.fromkeys(args.settings)) or ("2x",)
    width, height = args.size
    options = {"width": width, "height": height, "num_inference_steps": args.steps, "guidance": args.guidance}
    with float32() if args.float32 else contextlib.nullcontext():
        subject = build(args.model, args.quantize, args.layers, args.tokens)
        wanted = candidates(subject.model, settings, args.steps)
        require_memory(subject, width * height)
        with tqdm(total=len(wanted) * (1 + args.repetitions), unit="loop") as bar:
            rows = measure(subject, wanted, args.repetitions, clock, bar.update, **options)
    bits = f"{args.quantize} bits" if args.quantize else "float32" if args.float32 else "bfloat16"
    model = ", ".join((args.model, bits, *(f"{left} {name}" for name, left in subject.blocks.items())))
    how = f"{width}x{height}, {args.steps} steps, guidance {args.guidance:g}"
    gigabytes, plain = f"{rows[0]['peak_gb']:.1f} GB", f"{rows[0]['seconds']:.1f} s"
    gains = ", ".join(f"{row['setting']} {row['speedup']:.2f}×" for row in rows if row["setting"] in settings)
    facts = machine.describe()
    line = (machine.line(), gigabytes, facts["mflux"], model, how, plain, gains)
    markdown = f"| {' | '.join(line)} |"
    if args.format == "json":
        output.print_json({"machine": facts, "model": model, "run": how, "rows": rows, "markdown": markdown})
        return 0
    print(f"{machine.line()}\n{model}: at most {gigabytes} in use; {how}, {args.repetitions} rounds in turn")
    print("The weights are random: no picture is made, and how often a threshold skips means nothing.\n")
    output.print_table([key.upper() for key in rows[0]], [list(row.values()) for row in rows])
    print(f"\nfor docs/speeds.md:\n{markdown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
