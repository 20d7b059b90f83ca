# /// script
# requires-python = ">=3.11"
# dependencies = ["mflux-teacache-plugin"]
#
# [tool.uv.sources]
# mflux-teacache-plugin = { path = "..", editable = true }
# ///
"""What settings cost and save on a built-in model of mflux at its real size: its pipeline with random weights, so that nothing is
downloaded. There is no picture: none would mean anything, nor does it mean anything how often a threshold skips.

    uv run benchmarks/real_size.py flux2-klein-base-9b 2x -q 8 --size 1024x1024 --steps 25

mflux's own initializer builds the pipeline, quantized as mflux does it; its loaders find nothing, and the transformer gets random
weights, made on the device. MLX is lazy, so text encoders and VAE, which nobody evaluates, take no memory. mflux's own loop runs
on random embeddings, and is left where decoding would begin.
"""

import argparse
import contextlib
import io
import itertools
import os
import re
import sys
import time
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from tqdm import tqdm

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.apply import apply_teacache
from mflux_teacache_plugin.caching.taps import module_at
from mflux_teacache_plugin.cli import calibrate, exit_code, output
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.measure import machine
from mflux_teacache_plugin.measure.suite import BITS
from mflux_teacache_plugin.settings import ENVIRONMENT

#: Thresholds that skip nothing.
IDLE = ("1e-9", "seacache:1e-9", "dualcache:F=1,B=0,rdt=1e-9")

#: Built-in models, each with its pipeline.
MODELS = {
    **dict.fromkeys(("dev", "schnell", "krea-dev"), "flux.variants.txt2img.flux:Flux1"),
    **{
        f"flux2-klein-{each}": "flux2.variants.txt2img.flux2_klein:Flux2Klein"
        for each in ("4b", "9b", "base-4b", "base-9b")
    },
    "qwen-image": "qwen.variants.txt2img.qwen_image:QwenImage",
    **dict.fromkeys(("z-image", "z-image-turbo"), "z_image.variants.z_image:ZImage"),
}

#: The linear layer that takes the prompt, of whichever transformer has it; its tokens, 0 where mflux pads to the model's most.
_EMBEDDERS = {"context_embedder": 0, "txt_in": 64, "cap_embedder.1": 64}

_PROMPT = "nothing"


def weights(model: Any) -> list[mx.array]:
    """The transformer's, which nobody has evaluated after `build`."""
    return [array for _, array in tree_flatten(model.transformer.parameters())]


def _random(*shape: int) -> mx.array:
    from mflux.models.common.config.model_config import ModelConfig

    return mx.random.uniform(-0.03, 0.03, shape, dtype=ModelConfig.precision)


def build(
    name: str, quantize: int | None = None, layers: tuple[int, ...] = (), tokens: int | None = None
) -> tuple[Any, dict[str, str]]:
    """mflux's pipeline for one of MODELS; and of each list of blocks that was cut, how many of how many are left.

    `layers` are left of each list, the same of every list if it is one number; `tokens` are the prompt's.
    """
    from mflux.models.common.config.model_config import AVAILABLE_MODELS, ModelConfig
    from mflux.models.common.tokenizer import TokenizerLoader
    from mflux.models.common.weights.loading.loaded_weights import LoadedWeights, MetaData
    from mflux.models.common.weights.loading.weight_applier import WeightApplier
    from mflux.models.common.weights.loading.weight_loader import WeightLoader

    config, blocks = AVAILABLE_MODELS[name], dict[str, str]()
    module, _, cls = MODELS[name].partition(":")
    pipeline = getattr(import_module(f"mflux.models.{module}"), cls)
    taps = next(iter(choose.serving_adapters(pipeline).values())).taps
    # FLUX.1's blocks are counted in its files
    counted: dict[str, Any] = dict(transformer_blocks=[{}] * 19, single_transformer_blocks=[{}] * 38)

    def random(array: mx.array) -> mx.array:
        return _random(*array.shape) if array.ndim > 1 else array.astype(ModelConfig.precision)

    def apply(inner: Callable[..., Any], *, models: dict[str, Any], weights: Any, **options: Any) -> Any:
        transformer = models["transformer"]
        for path, left in zip(taps.blocks if taps else (), layers * 3 if len(layers) == 1 else layers, strict=False):
            there = getattr(transformer, path)
            setattr(transformer, path, there[:left])
            blocks[path] = f"{min(left, len(there))} of {len(there)}"
        transformer.update(tree_map(random, transformer.parameters()))
        return inner(models={"transformer": transformer}, weights=LoadedWeights({}, MetaData()), **options)

    with contextlib.ExitStack() as stack:
        found = LoadedWeights({"transformer": counted}, MetaData())
        stack.callback(stand_before(WeightLoader, "load", lambda inner, **_: found))
        stack.callback(stand_before(TokenizerLoader, "load_all", lambda inner, **_: {}))
        stack.callback(stand_before(WeightApplier, "apply_and_quantize", apply))
        model = pipeline(quantize=quantize, model_config=config)
    for part in [part for part in model if part == "vae" or "encoder" in part]:
        setattr(model, part, None)
    model.tokenizers = dict.fromkeys(("t5", "clip", "qwen3", "qwen", "z_image"))
    _embed(model, tokens or _EMBEDDERS[_embedder(model)] or config.max_sequence_length)
    return model, blocks


def _embedder(model: Any) -> str:
    return next(path for path in _EMBEDDERS if hasattr(model.transformer, path.partition(".")[0]))


def _embed(model: Any, tokens: int) -> None:
    """Have the pipeline find embeddings of `_PROMPT`: where it keeps them, or in place of what its encoder would return."""

    def inputs(path: str) -> int:
        linear = module_at(model.transformer, path)
        return linear.weight.shape[-1] * 32 // linear.bits if hasattr(linear, "bits") else linear.weight.shape[-1]

    prompt = _random(1, tokens, inputs(_embedder(model)))
    mask, ids = mx.ones((1, tokens), dtype=mx.int32), mx.zeros((1, tokens, 4), dtype=mx.int32)
    if hasattr(model, "_encode_prompts"):  # Z-Image
        made = (prompt[0], None), (prompt[0], prompt[0])
        stand_before(model, "_encode_prompts", lambda inner, *, guidance, **_: made[guidance > 1])
    elif hasattr(model, "_encode_prompt_pair"):  # Klein
        pairs = (prompt, ids, None, None), (prompt, ids, prompt, ids)
        stand_before(model, "_encode_prompt_pair", lambda inner, *, guidance, **_: pairs[guidance > 1])
    elif model.model_config.supports_guidance is None:  # Qwen-Image
        model.prompt_cache[f"{_PROMPT}|NEG| "] = (prompt, mask, prompt, mask)
    else:
        model.prompt_cache[_PROMPT] = (prompt, _random(1, inputs("time_text_embed.text_embedder.linear_1")))


def require_memory(model: Any, pixels: int) -> None:
    """SettingsError where less is there than is needed: the weights, exactly, and 64 hidden states on their way, roughly."""
    facts = mx.device_info()
    keys = ("max_recommended_working_set_size", "free_memory", "total_memory")  # Metal, CUDA
    there = next((int(facts[key]) for key in keys if key in facts), 0)
    if not there:
        there = 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[0])
    loaded, tokens = sum(array.nbytes for array in weights(model)), pixels // 256 + 512
    width = module_at(model.transformer, _embedder(model)).weight.shape[0]
    working = 64 * tokens * width * _random(1).itemsize
    if loaded + working > there:
        raise SettingsError(
            f"{(loaded + working) / 1e9:.1f} GB are needed, and {there / 1e9:.1f} GB are there",
            cause=f"{loaded / 1e9:.1f} GB of weights, and about {working / 1e9:.1f} GB for {tokens} tokens on their way",
            hint="quantize it (-q 4), or take a smaller size or fewer --layers",
        )


class _Left(Exception):
    """The loop is over, as far as it is measured."""


class _Loop:
    """One loop of mflux's, `most` steps of it, with a setting or plain: seconds of each step, bytes."""

    def __init__(self, model: Any, setting: str | None, most: int, **options: Any) -> None:
        self._most, self._ends = most, list[float]()
        self.kept, self.peak = (0, ""), 0  # at most, the former also in words
        self._handle, callbacks = setting and apply_teacache(model, setting), model.callbacks
        callbacks.register(self)  # behind the cache's
        try:
            with contextlib.suppress(_Left), contextlib.redirect_stderr(io.StringIO()):  # mflux has a bar of its own
                model.generate_image(seed=1, prompt=_PROMPT, **options)
        finally:
            callbacks.before_loop.remove(self)
            callbacks.in_loop.remove(self)
            if self._handle:
                self._handle.restore()
        self.seconds = [after - before for before, after in itertools.pairwise(self._ends)]
        self.computed, computing = float(most), set(range(most))
        if self._handle:
            record = self._handle.stats.last
            if record.fault is not None:
                raise SettingsError(f"{setting} stopped: {record.fault}", hint="leave it out, and report it")
            self.computed, computing = record.computed, {each.step for each in record.decisions if not each.skipped}
        self.of_skipped = [each for step, each in enumerate(self.seconds) if step not in computing]

    def call_before_loop(self, **_: Any) -> None:
        mx.reset_peak_memory()
        self._ends.append(time.perf_counter())

    def call_in_loop(self, latents: mx.array, **_: Any) -> None:
        kept = self._handle.kept() if self._handle else []
        mx.eval(latents, kept)
        self._ends.append(time.perf_counter())
        shapes = Counter(f"{tuple(array.shape)} {str(array.dtype).rpartition('.')[2]}" for array in kept)
        words = ", ".join(f"{count} of {shape}" for shape, count in shapes.items())
        self.kept = max(self.kept, (sum(array.nbytes for array in kept), words))
        self.peak = mx.get_peak_memory()
        if len(self._ends) > self._most:
            raise _Left


def candidates(model: Any, settings: Sequence[str], steps: int) -> dict[str, str | None]:
    """Plain, the settings, and what skips nothing as far as the model can, by name. TeaCacheError where a setting makes no sense."""
    wanted: dict[str, str | None] = {"plain": None}
    idle = (f"steps:0-{steps - 1}", *IDLE)
    for setting in (*settings, *idle):
        try:
            with apply_teacache(model, setting) as handle:
                handle.method.check_steps(steps)
            wanted[setting] = setting
        except TeaCacheError:
            if setting not in idle:  # else there are no coefficients, or no taps
                raise
    return wanted


def measure(
    model: Any, wanted: Mapping[str, str | None], rounds: int, steps: int, **options: Any
) -> list[dict[str, Any]]:
    """A row for each of `wanted`. They take turns, so that the machine is as busy for each; a ratio is the rounds' median.

    `options` are further ones of mflux's `generate_image`. A bar on stderr shows how far it is.
    """
    for array in weights(model):  # one by one: only one is there unquantized at a time
        mx.eval(array)
    loops: dict[str, list[_Loop]] = {name: [] for name in wanted}
    warm_up = [(2, name) for name in wanted]  # MLX compiles its kernels
    for most, name in tqdm(warm_up + [(steps, name) for name in wanted] * rounds, unit="loop"):
        loops[name].append(_Loop(model, wanted[name], most, num_inference_steps=steps, **options))
    return [_row(name, list(zip(found, loops["plain"], strict=True))[1:]) for name, found in loops.items()]


def _row(name: str, pairs: list[tuple[_Loop, _Loop]]) -> dict[str, Any]:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print; exit codes and errors are those of `mflux-teacache`."""
    what = __doc__.split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="real_size.py", description=what)
    add = parser.add_argument
    add("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    add(
        "settings",
        nargs="*",
        type=calibrate.setting,
        default=(),
        metavar="SETTING",
        help="what --teacache takes; default: 2x",
    )
    add("-q", "--quantize", type=int, choices=BITS, help="to so many bits, as mflux does it")
    add("--size", type=size, default=(1024, 1024), metavar="WxH", help="default: 1024x1024")
    add("--steps", type=whole, default=20, metavar="N", help="default: 20")
    add("--guidance", type=float, default=4.0, help="default: 4; 1 for none")
    add("--rounds", type=whole, default=3, metavar="N", help="in each of which all take turns; default: 3")
    add("--layers", type=layers, default=(), metavar="N[,N]", help="leave so many blocks of each list; default: all")
    add("--tokens", type=whole, metavar="N", help="of the prompt; default: as many as mflux pads it to, or 64")
    add("--float32", action="store_true", help="in place of mflux's bfloat16; faster on a CPU")
    output.add_format(parser)
    return exit_code(run, parser.parse_intermixed_args(argv))


def whole(text: str) -> int:
    """A whole number from 1 on. ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """`1024x768`: width and height in pixels."""
    width, height = map(whole, text.split("x"))
    return width, height


def layers(text: str) -> tuple[int, ...]:
    """`2`, or `1,2`: one number for each list of blocks, or one for all."""
    return tuple(map(whole, text.split(",")))


def run(args: argparse.Namespace) -> int:
    """What the command does."""
    from mflux.models.common.config.model_config import ModelConfig

    os.environ.pop(ENVIRONMENT, None)  # plain is plain, whatever it asks for
    settings = tuple(dict.fromkeys(args.settings)) or ("2x",)
    width, height = args.size
    with patch.object(ModelConfig, "precision", mx.float32) if args.float32 else contextlib.nullcontext():
        model, blocks = build(args.model, args.quantize, args.layers, args.tokens)
        wanted = candidates(model, settings, args.steps)
        require_memory(model, width * height)
        options = {"width": width, "height": height, "guidance": args.guidance}
        rows = measure(model, wanted, args.rounds, args.steps, **options)
    bits = f"{args.quantize} bits" if args.quantize else "float32" if args.float32 else "bfloat16"
    what = ", ".join((args.model, bits, *(f"{left} {name}" for name, left in blocks.items())))
    how = f"{width}x{height}, {args.steps} steps, guidance {args.guidance:g}"
    gigabytes, plain = f"{rows[0]['peak_gb']:.1f} GB", f"{rows[0]['seconds']:.1f} s"
    gains = ", ".join(f"{row['setting']} {row['speedup']:.2f}×" for row in rows if row["setting"] in settings)
    facts = machine.describe()
    line = (machine.line(), gigabytes, facts["mflux"], what, how, plain, gains)
    markdown = f"| {' | '.join(line)} |"
    if args.format == "json":
        output.print_json({"machine": facts, "model": what, "run": how, "rows": rows, "markdown": markdown})
        return 0
    print(f"{machine.line()}\n{what}: at most {gigabytes} in use; {how}, {args.rounds} rounds in turn")
    print("The weights are random: no picture is made, and how often a threshold skips means nothing.\n")
    output.print_table([key.upper() for key in rows[0]], [list(row.values()) for row in rows])
    print(f"\nfor docs/speeds.md:\n{markdown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
