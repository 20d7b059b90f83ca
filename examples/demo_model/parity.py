"""Do diffusers and mflux compute the same with the shipped weights? Same noise, same prompt, every step compared.

python parity.py noise --out DIR        mflux and this plugin: writes DIR/noise.npy, as mflux draws it
python parity.py diffusers --out DIR    torch: writes DIR/parity.npz and DIR/demo-diffusers.png from DIR/diffusers
python parity.py mflux --out DIR        mflux again, in float32 and in bfloat16: prints the differences
"""

import argparse
import tomllib
from pathlib import Path

import numpy as np
from data import PROMPTS, SQUARE
from PIL import Image

STEPS, GUIDANCE = 25, 4.0
PRECISIONS = ("float32", "bfloat16")


def entry() -> dict:
    return tomllib.loads(PROMPTS.read_text())["benchmark"][2]


def noise(folder: Path) -> None:
    """Write the noise of the prompt's seed, (1, 64, 128)."""
    import mlx.core as mx
    from mflux.models.common.config.model_config import ModelConfig
    from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator

    ModelConfig.precision = mx.float32
    tokens, *_ = Flux2LatentCreator.prepare_packed_latents(entry()["seed"], *SQUARE, 1)
    np.save(folder / "noise.npy", np.array(tokens))


def reference(folder: Path) -> None:
    """Write text (2, 12, 192), tokens before and after every step (steps + 1, 64, 128) and the picture."""
    import sampling
    import text
    import torch
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

    def part(cls, name):  # the weights that ship, in float32
        module = cls.from_pretrained(folder / "diffusers" / name).eval()
        for weight in module.parameters():
            weight.data = weight.data.bfloat16().float()
        return module

    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "diffusers" / "tokenizer")
    encoder = part(Qwen3ForCausalLM, "text_encoder").model
    texts = text.embed(tokenizer, encoder, [text.NO_CAPTION, entry()["prompt"]])
    states = [torch.from_numpy(np.load(folder / "noise.npy"))]
    transformer = part(Flux2Transformer2DModel, "transformer")
    tokens = sampling.sample(transformer, states[0], texts[1:], texts[:1], STEPS, GUIDANCE, states.append)
    picture = sampling.to_pixels(sampling.unpack(tokens), part(AutoencoderKLFlux2, "vae"), {})[0]
    np.savez(folder / "parity.npz", texts=texts, states=torch.cat(states), picture=picture)
    Image.fromarray(picture).save(folder / "demo-diffusers.png")


def compare(folder: Path, precision: str) -> None:
    """Print the largest differences from the reference, and of the pictures in grey levels."""
    import mflux_demo_model as demo_model
    import mlx.core as mx
    from mflux.models.common.config.config import Config
    from mflux.models.common.config.model_config import ModelConfig
    from mflux.utils.image_util import ImageUtil
    from mlx.utils import tree_map

    saved, dtype = np.load(folder / "parity.npz"), getattr(mx, precision)
    model = demo_model.load()
    ModelConfig.precision = dtype
    for module in (model.transformer, model.vae, model.text_encoder):
        module.update(tree_map(lambda array: array.astype(dtype), module.parameters()))
    config = Config(
        model_config=model.model_config,
        num_inference_steps=STEPS,
        height=SQUARE[0],
        width=SQUARE[1],
        guidance=GUIDANCE,
        scheduler="flow_match_euler_discrete",
    )
    positive, text_ids, negative, negative_ids = model._encode_prompt_pair(
        prompt=entry()["prompt"], negative_prompt=" ", guidance=GUIDANCE
    )
    _, latent_ids, height, width = model._prepare_generation_latents(seed=0, config=config)
    latents = mx.array(saved["states"][:1]).astype(dtype)
    predict, errors = model._predict(model.transformer), []
    for step in range(STEPS):
        velocity = predict(
            latents=latents,
            latent_ids=latent_ids,
            prompt_embeds=positive,
            text_ids=text_ids,
            negative_prompt_embeds=negative,
            negative_text_ids=negative_ids,
            guidance=GUIDANCE,
            timestep=config.scheduler.timesteps[step],
        )
        latents = config.scheduler.step(velocity, step, latents, sigmas=config.scheduler.sigmas)
        mx.eval(latents)
        errors.append(np.abs(np.array(latents.astype(mx.float32))[0] - saved["states"][step + 1]).max())
    packed = latents.reshape(1, height, width, -1).transpose(0, 3, 1, 2)
    pixels = np.asarray(ImageUtil.to_pil(model.vae.decode_packed_latents(packed)).convert("RGB")).astype(int)
    texts = np.concatenate([np.array(t.astype(mx.float32)) for t in (negative, positive)])
    difference = np.abs(pixels - saved["picture"].astype(int))
    print(
        f"{precision}: text {np.abs(texts - saved['texts']).max():.1e}, state after the first step {errors[0]:.1e}, "
        f"largest of all steps {max(errors):.1e}, last {errors[-1]:.1e} (spread {saved['states'][-1].std():.2f}), "
        f"picture at most {difference.max()} and {difference.mean():.3f} on average of 255"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=("noise", "diffusers", "mflux"))
    parser.add_argument("--out", type=Path, required=True, help="the training's directory")
    options = parser.parse_args()
    if options.side == "noise":
        noise(options.out)
    elif options.side == "diffusers":
        reference(options.out)
    else:
        for precision in PRECISIONS:
            compare(options.out, precision)


if __name__ == "__main__":
    main()
