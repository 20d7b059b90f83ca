"""Pictures from the transformer in training, with diffusers' own scheduler as its FLUX.2 Klein pipeline sets it."""

import math
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import text
import torch
from data import PROMPTS
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image
from torch import Tensor, nn
from vae import CHANNELS, LATENT, PATCH, VARIANCE, load

SIDE = LATENT // 2  # image tokens per side
STEPS, GUIDANCE = 25, 4.0
SEEDS_PER_PROMPT = 1


def token_ids() -> tuple[Tensor, Tensor]:
    """Positions (time, row, column, word) of the image tokens (64, 4) and of the text tokens (12, 4)."""
    image = torch.zeros(SIDE * SIDE, 4)
    image[:, 1] = torch.arange(SIDE * SIDE) // SIDE
    image[:, 2] = torch.arange(SIDE * SIDE) % SIDE
    words = torch.zeros(text.TEXT_TOKENS, 4)
    words[:, 3] = torch.arange(text.TEXT_TOKENS)
    return image, words


def unpack(tokens: Tensor) -> Tensor:
    """The transformer's tokens (n, 64, 128) as latents (n, 32, 16, 16)."""
    blocks = tokens.transpose(1, 2) * math.sqrt(VARIANCE + 1e-4)
    blocks = blocks.reshape(-1, CHANNELS, 2, 2, SIDE, SIDE).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(-1, CHANNELS, LATENT, LATENT)


@torch.no_grad()
def sample(
    model: nn.Module,
    noise: Tensor,
    texts: Tensor,
    nothing: Tensor,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    watch: Callable[[Tensor], None] = lambda tokens: None,
) -> Tensor:
    """Denoise tokens (n, 64, 128) under texts (n, 12, 96), guided away from nothing (1, 12, 96).

    Every step's tokens are shown to watch.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = compute_empirical_mu(image_seq_len=noise.shape[1], num_steps=steps)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    image_ids, text_ids = token_ids()
    tokens, negative = noise, nothing.expand_as(texts)
    for timestep in scheduler.timesteps:
        at = (timestep / 1000).expand(len(tokens))
        velocity = model(tokens, texts, at, image_ids, text_ids, return_dict=False)[0]
        if guidance > 1:
            free = model(tokens, negative, at, image_ids, text_ids, return_dict=False)[0]
            velocity = free + guidance * (velocity - free)
        tokens = scheduler.step(velocity, timestep, tokens, return_dict=False)[0]
        watch(tokens)
    return tokens


@torch.no_grad()
def to_pixels(latents: Tensor, vae: AutoencoderKLFlux2 | None, basis: dict[str, Tensor]) -> np.ndarray:
    """Pictures (n, SIZE, SIZE, 3) uint8; without a VAE through the linear inverse of the latents' basis."""
    if vae:
        pixels = vae.decode(latents).sample.permute(0, 2, 3, 1)
    else:
        weights = latents.permute(0, 2, 3, 1) / basis["spread"] * basis["power"].sqrt()
        rows = (weights @ basis["directions"].T + basis["mean"]).reshape(-1, LATENT, LATENT, 3, PATCH, PATCH)
        pixels = rows.permute(0, 1, 4, 2, 5, 3).reshape(-1, LATENT * PATCH, LATENT * PATCH, 3)
    return pixels.clamp(-1, 1).add(1).mul(127.5).round().byte().numpy()


def grid_of_pictures(model: nn.Module, folder: Path, group: str = "benchmark") -> Image.Image:
    """A row for each seed, a column for each prompt of the group."""
    prompts = [entry["prompt"] for entry in tomllib.loads(PROMPTS.read_text())[group]]
    tokenizer = text.build_tokenizer()
    texts = text.embed(tokenizer, text.build_encoder(tokenizer), [text.NO_CAPTION, *prompts])
    noise = torch.randn(
        SEEDS_PER_PROMPT * len(prompts), SIDE**2, 4 * CHANNELS, generator=torch.Generator().manual_seed(3)
    )
    tokens = sample(model, noise, texts[1:].repeat(SEEDS_PER_PROMPT, 1, 1), texts[:1])
    vae = load(folder) if (folder / "vae.pt").exists() else None
    pictures = to_pixels(unpack(tokens), vae, torch.load(folder / "prepared.pt")["basis"])
    rows = pictures.reshape(SEEDS_PER_PROMPT, len(prompts), *pictures.shape[1:])
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))
