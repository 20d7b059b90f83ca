"""What a skipped step costs where the blocks are as many as in a real model: FLUX.2 Klein base 4B's 5 + 20, but narrower.

mflux's own transformer with random weights; a full and a skipped step take turns, on the same inputs.

    python benchmarks/skipped_step.py --tokens 1024
"""

import argparse
import statistics
import time

import mlx.core as mx
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer

from mflux_teacache_plugin.adapters.families import KLEIN_BASE
from mflux_teacache_plugin.caching.taps import TappedForward, Taps
from mflux_teacache_plugin.cli.output import print_table
from mflux_teacache_plugin.measure import machine

HEADS, HEAD_DIM, TEXT_TOKENS = 4, 128, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024, help="image tokens; 1024 are 512x512 pixels")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    geometry = {"num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM, "joint_attention_dim": 1024}
    transformer = Flux2Transformer(num_layers=5, num_single_layers=20, **geometry)
    inputs = {
        "hidden_states": mx.random.normal((1, args.tokens, 128)),
        "encoder_hidden_states": mx.random.normal((1, TEXT_TOKENS, 1024)),
        "timestep": mx.array([500.0]),
        "img_ids": mx.zeros((1, args.tokens, 4)),
        "txt_ids": mx.zeros((1, TEXT_TOKENS, 4)),
    }
    mx.eval(transformer.parameters(), inputs)
    rows = []
    for mode in ("eager", "compiled"):
        taps = Taps(transformer, KLEIN_BASE.taps)
        forward = TappedForward(taps, lambda **given: transformer(**given), compiled=mode == "compiled")
        seconds: dict[str, list[float]] = {"plain": [], "skipped": []}
        _, _, finals = forward.full(**inputs)
        _, _, without = forward.without_blocks(None, **inputs)
        residuals = [finals[0] - without[0]]
        mx.eval(residuals)
        for repetition in range(args.repetitions + 1):
            for name, times in seconds.items():
                start = time.perf_counter()
                if name == "plain":
                    mx.eval(forward.plain(**inputs))
                else:  # as the step cache does: describe the full step, read its signal, then run without blocks
                    _, signals, _ = forward.full(**inputs)
                    mx.eval(mx.abs(signals[0] - 1).mean())
                    mx.eval(forward.without_blocks(residuals, **inputs)[0])
                if repetition:  # the first one compiles
                    times.append(time.perf_counter() - start)
        taps.remove()
        plain, skipped = (statistics.median(times) for times in seconds.values())
        rows.append((mode, plain, skipped, f"{100 * skipped / plain:.2f} %"))
    print(f"{machine.line()}; 5 + 20 blocks of width {HEADS * HEAD_DIM}, {args.tokens} image tokens, one branch")
    print_table(("MODE", "PLAIN STEP s", "SKIPPED STEP s", "OF A PLAIN ONE"), rows)


if __name__ == "__main__":
    main()
