"""Pictures from the transformer in training, with diffusers' own scheduler as its FLUX.2 Klein pipeline sets it."""

import math
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import text
import torch
from data import CELL, PROMPTS, SQUARE, side_by_side
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image
from torch import Tensor, nn
from vae import CHANNELS, VARIANCE, invert, load

STEPS, GUIDANCE = 25, 4.0


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the image tokens of a picture (height, width)."""
    return size[0] // CELL, size[1] // CELL


def token_ids(size: tuple[int, int] = SQUARE) -> tuple[Tensor, Tensor]:
    """Positions (time, row, column, word) of the image tokens (tokens, 4) and of the text tokens (12, 4)."""
    rows, columns = grid_of(size)
    image = torch.zeros(rows * columns, 4)
    image[:, 1] = torch.arange(rows * columns) // columns
    image[:, 2] = torch.arange(rows * columns) % columns
    words = torch.zeros(text.TEXT_TOKENS, 4)
    words[:, 3] = torch.arange(text.TEXT_TOKENS)
    return image, words


def unpack(tokens: Tensor, size: tuple[int, int] = SQUARE) -> Tensor:
    """The transformer's tokens (n, tokens, 128) as latents (n, 32, 2 * rows, 2 * columns)."""
    rows, columns = grid_of(size)
    blocks = tokens.transpose(1, 2) * math.sqrt(VARIANCE + 1e-4)
    blocks = blocks.reshape(-1, CHANNELS, 2, 2, rows, columns).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(-1, CHANNELS, 2 * rows, 2 * columns)


@torch.no_grad()
def sample(
    model: nn.Module,
    noise: Tensor,
    texts: Tensor,
    nothing: Tensor,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    watch: Callable[[Tensor], None] = lambda tokens: None,
    size: tuple[int, int] = SQUARE,
) -> Tensor:
    """Denoise tokens (n, tokens, 128) under texts (n, 12, 192), guided away from nothing (1, 12, 192).

    Every step's tokens are shown to watch.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = compute_empirical_mu(image_seq_len=noise.shape[1], num_steps=steps)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    image_ids, text_ids = token_ids(size)
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
    """Pictures (n, height, width, 3) uint8; without a VAE through the linear inverse of the latents' basis."""
    pixels = vae.decode(latents).sample.permute(0, 2, 3, 1) if vae else invert(basis, latents)
    return pixels.clamp(-1, 1).add(1).mul(127.5).round().byte().numpy()


def grid_of_pictures(
    model: nn.Module, folder: Path, size: tuple[int, int] = SQUARE, group: str = "benchmark"
) -> Image.Image:
    """A picture for each prompt of the group."""
    prompts = [entry["prompt"] for entry in tomllib.loads(PROMPTS.read_text())[group]]
    tokenizer = text.build_tokenizer()
    texts = text.embed(tokenizer, text.build_encoder(tokenizer), [text.NO_CAPTION, *prompts])
    noise = torch.randn(
        len(prompts), math.prod(grid_of(size)), 4 * CHANNELS, generator=torch.Generator().manual_seed(3)
    )
    tokens = sample(model, noise, texts[1:], texts[:1], size=size)
    vae = load(folder) if (folder / "vae.pt").exists() else None
    pictures = to_pixels(unpack(tokens, size), vae, torch.load(folder / "prepared.pt")["basis"])
    return side_by_side(list(pictures))
