"""Latents that are known from the start (PCA of 8x8 patches), and a VAE trained to produce and to invert them.

The latents do not depend on the VAE's training, so the transformer could be trained without it.
"""

import math
import time
from pathlib import Path

import data
import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from muon import Muon
from torch import Tensor, nn
from tqdm import tqdm

GEOMETRY = {"block_out_channels": [16, 32, 64, 64], "layers_per_block": 1, "norm_num_groups": 4}
CHANNELS, PATCH = 32, 8  # latent channels, pixels per latent position and side
VARIANCE = 0.25  # of the latents, over all channels; the batch norm statistics say the same
LOG_VARIANCE = -12.0  # of the encoder's posterior: practically its mean
BATCH, PEAK_RATE, SEED = 8, 2e-3, 2
NOISE = 0.08  # at most so much is added to the latents that are decoded: generated ones are not exact either
STEP = 1  # pixels between the places of things: the VAE is to show them anywhere
CHECKED, CHECK_EVERY = 32, 300  # pictures held out, steps


def pixels_of(pictures: np.ndarray) -> Tensor:
    """Pictures (n, height, width, 3) uint8 as the VAE takes them: (n, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(pictures).float().div(127.5).sub(1).permute(0, 3, 1, 2)


def patches(pictures: np.ndarray) -> Tensor:
    """Pictures (n, height, width, 3) uint8 as rows of pixels in [-1, 1]: (n, rows, columns, 3 * PATCH**2)."""
    count, height, width, _ = pictures.shape
    rows, columns = height // PATCH, width // PATCH
    grid = pixels_of(pictures).permute(0, 2, 3, 1).reshape(count, rows, PATCH, columns, PATCH, 3)
    return grid.transpose(2, 3).reshape(count, rows, columns, 3 * PATCH**2)


def from_patches(rows: Tensor) -> Tensor:
    """The inverse of patches(): pixels (n, height, width, 3) in [-1, 1]."""
    count, height, width, _ = rows.shape
    grid = rows.reshape(count, height, width, PATCH, PATCH, 3).transpose(2, 3)
    return grid.reshape(count, height * PATCH, width * PATCH, 3)


def fit_basis(pictures: np.ndarray) -> dict[str, Tensor]:
    """Principal components of the patches, scaled to a flattened spectrum with mean variance VARIANCE.

    Strong components keep a larger share of the variance than white latents would give them: these carry the
    layout and the colours, and are so decided first.
    """
    rows = patches(pictures).reshape(-1, 3 * PATCH**2)
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    power, directions = torch.linalg.eigh(covariance)
    power, directions = power.flip(0)[:CHANNELS], directions.flip(1)[:, :CHANNELS]
    spread = (power / power[2]).pow(0.25).clamp(0.2, 1.0)
    spread = spread * (VARIANCE / spread.square().mean()).sqrt()
    return {"mean": mean, "directions": directions, "power": power, "spread": spread}


def project(basis: dict[str, Tensor], pictures: np.ndarray) -> Tensor:
    """Latents (n, CHANNELS, rows, columns)."""
    weights = basis["directions"] / basis["power"].sqrt() * basis["spread"]
    return ((patches(pictures) - basis["mean"]) @ weights).permute(0, 3, 1, 2)


def invert(basis: dict[str, Tensor], latents: Tensor) -> Tensor:
    """Pixels (n, height, width, 3) in [-1, 1] from latents, by the basis alone."""
    weights = latents.permute(0, 2, 3, 1) / basis["spread"] * basis["power"].sqrt()
    return from_patches(weights @ basis["directions"].T + basis["mean"])


def build() -> AutoencoderKLFlux2:
    """An untrained VAE whose batch norm and posterior already are what the latents need."""
    vae = AutoencoderKLFlux2(**GEOMETRY, latent_channels=CHANNELS, sample_size=data.SQUARE[0])
    vae.bn.running_mean.zero_()
    vae.bn.running_var.fill_(VARIANCE)
    with torch.no_grad():
        vae.quant_conv.weight[CHANNELS:] = 0
        vae.quant_conv.bias[CHANNELS:] = LOG_VARIANCE
    return vae


def load(folder: Path) -> AutoencoderKLFlux2:
    """The trained VAE (moving average), in evaluation mode."""
    vae = build()
    vae.load_state_dict(torch.load(folder / "vae.pt")["average"])
    return vae.eval().requires_grad_(False)


def psnr(error: Tensor) -> float:
    """Of a mean squared error between values in [-1, 1], in dB."""
    return -10 * math.log10(float(error) / 4)


class Training:
    """Decoder and encoder, trained in turn; both only ever see the fixed latents and the pictures."""

    def __init__(self, folder: Path, minutes: float, bfloat16: bool):
        torch.manual_seed(1)
        self.file, self.seconds, self.bfloat16 = folder / "vae.pt", 60 * minutes, bfloat16
        self.basis = torch.load(folder / "prepared.pt")["basis"]
        self.spread = self.basis["spread"].view(1, -1, 1, 1)
        self.world = data.World(data.fetch(folder), data.held_out(), STEP)
        self.checked, _ = data.World(data.fetch(folder), step=STEP).render(CHECKED, data.UNSEEN_SEED)
        self.vae = build().to(memory_format=torch.channels_last)
        self.weights = {"decoder": [], "encoder": []}
        for name, weight in self.vae.named_parameters():
            self.weights["decoder" if name.startswith(("decoder.", "post_quant_conv.")) else "encoder"].append(weight)
        self.optimizers = {side: self.optimizers_of(weights) for side, weights in self.weights.items()}
        self.compiled = {
            "decoder": torch.compile(
                lambda latents: self.vae.decoder(self.vae.post_quant_conv(latents)), dynamic=False
            ),
            "encoder": torch.compile(lambda pixels: self.vae.quant_conv(self.vae.encoder(pixels)), dynamic=False),
        }
        self.state = {"elapsed": 0.0, "step": 0, "history": []}
        self.average = {name: value.clone() for name, value in self.vae.state_dict().items()}
        if self.file.exists():
            saved = torch.load(self.file)
            self.vae.load_state_dict(saved["weights"])
            for side, optimizers in self.optimizers.items():
                for optimizer, content in zip(optimizers, saved["optimizers"][side], strict=True):
                    optimizer.load_state_dict(content)
            self.average, self.state = saved["average"], saved["state"]

    def optimizers_of(self, weights: list[Tensor]) -> list[torch.optim.Optimizer]:
        """Muon for the inner matrices and convolutions, AdamW for the rest (pixels and latents at either end too)."""
        inner = [w for w in weights if w.ndim > 1 and w.shape[0] >= 16 and w.flatten(1).shape[1] >= 64]
        rest = [w for w in weights if all(w is not i for i in inner)]
        precision = torch.bfloat16 if self.bfloat16 else torch.float32
        return [Muon(inner, precision=precision), torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=1e-4)]

    def save(self) -> None:
        content = {
            "weights": self.vae.state_dict(),
            "average": self.average,
            "state": self.state,
            "optimizers": {side: [o.state_dict() for o in both] for side, both in self.optimizers.items()},
        }
        torch.save(content, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)

    def loss(self, side: str) -> Tensor:
        """Of a batch: mean absolute and squared error of the pixels, or of the latents in units of their spread."""
        pictures, _ = self.world.render(BATCH, (SEED, self.state["step"]))
        pixels, latents = pixels_of(pictures), project(self.basis, pictures)
        if side == "encoder":
            given, wanted = pixels, latents
        else:
            given = latents + NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(latents)
            wanted = pixels
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            made = self.compiled[side](given.contiguous(memory_format=torch.channels_last))
        if side == "encoder":
            error = (made[:, :CHANNELS].float() - wanted) / self.spread
            return error.abs().mean() + error.square().mean()
        error = made.float() - wanted
        return error.abs().mean() + 2 * error.square().mean()

    def step(self) -> None:
        side = "encoder" if self.state["step"] % 4 == 3 else "decoder"
        progress = min(self.state["elapsed"] / self.seconds, 1.0)
        rate = PEAK_RATE * min(1, (self.state["step"] + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * progress))
        self.loss(side).backward()
        nn.utils.clip_grad_norm_(self.weights[side], 1.0)
        if side == "encoder":  # the posterior's variance stays where build() put it
            self.vae.quant_conv.weight.grad[CHANNELS:] = 0
            self.vae.quant_conv.bias.grad[CHANNELS:] = 0
        for optimizer in self.optimizers[side]:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.state["step"] += 1
        keep = min(0.996, self.state["step"] / (self.state["step"] + 30))
        for name, value in self.vae.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Held-out figures of the average: decoding and round trip in dB, and the encoder's relative error."""
        vae = build().eval()
        vae.load_state_dict(self.average)
        pixels, latents = pixels_of(self.checked), project(self.basis, self.checked)
        encoded = vae.encode(pixels).latent_dist.mean
        return {
            "minute": round(self.state["elapsed"] / 60, 1),
            "step": self.state["step"],
            "decode_db": psnr((vae.decode(latents).sample.clamp(-1, 1) - pixels).square().mean()),
            "round_trip_db": psnr((vae.decode(encoded).sample.clamp(-1, 1) - pixels).square().mean()),
            "encoder_error": float(((encoded - latents) / self.spread).square().mean()),
        }

    def run(self) -> None:
        bar = tqdm(total=round(self.seconds), desc="VAE", unit="s", mininterval=10)
        bar.update(round(self.state["elapsed"]))
        begin = time.monotonic() - self.state["elapsed"]
        while self.state["elapsed"] < self.seconds:
            self.step()
            self.state["elapsed"] = time.monotonic() - begin
            bar.update(round(self.state["elapsed"]) - bar.n)
            if self.state["step"] % CHECK_EVERY == 0 or self.state["elapsed"] >= self.seconds:
                self.state["history"].append(self.check())
                bar.set_postfix(self.state["history"][-1])
                self.save()
