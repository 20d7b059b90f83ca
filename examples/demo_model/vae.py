"""Latents that are known from the start (PCA of 8x8 patches), and a VAE trained to produce and to invert them.

The latents do not depend on the VAE's training, so the transformer could be trained without it.
"""

import math
import time
from pathlib import Path

import data
import numpy as np
import torch
from data import SIZE
from diffusers import AutoencoderKLFlux2
from muon import Muon
from torch import Tensor, nn
from tqdm import tqdm

GEOMETRY = {"block_out_channels": [16, 32, 64, 64], "layers_per_block": 1, "norm_num_groups": 4}
CHANNELS, PATCH = 32, 8  # latent channels, pixels per latent position and side
LATENT = SIZE // PATCH  # latent positions per side
VARIANCE = 0.25  # of the latents, over all channels; the batch norm statistics say the same
LOG_VARIANCE = -12.0  # of the encoder's posterior: practically its mean
BATCH, PEAK_RATE, SEED = 4, 1.5e-3, 2


def pixels_of(pictures: np.ndarray) -> Tensor:
    """Pictures (n, SIZE, SIZE, 3) uint8 as the VAE takes them: (n, 3, SIZE, SIZE) in [-1, 1]."""
    return torch.from_numpy(pictures).float().div(127.5).sub(1).permute(0, 3, 1, 2)


def patches(pictures: np.ndarray) -> Tensor:
    """Pictures (n, SIZE, SIZE, 3) uint8 as rows of pixels in [-1, 1]: (n, LATENT, LATENT, 3 * PATCH**2)."""
    grid = pixels_of(pictures).reshape(-1, 3, LATENT, PATCH, LATENT, PATCH).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(-1, LATENT, LATENT, 3 * PATCH**2)


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
    """Latents (n, CHANNELS, LATENT, LATENT)."""
    weights = basis["directions"] / basis["power"].sqrt() * basis["spread"]
    return ((patches(pictures) - basis["mean"]) @ weights).permute(0, 3, 1, 2)


def build() -> AutoencoderKLFlux2:
    """An untrained VAE whose batch norm and posterior already are what the latents need."""
    vae = AutoencoderKLFlux2(**GEOMETRY, latent_channels=CHANNELS, sample_size=SIZE)
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

    def __init__(self, folder: Path, minutes: float):
        torch.manual_seed(1)
        self.file, self.seconds = folder / "vae.pt", 60 * minutes
        self.basis, self.checked = torch.load(folder / "prepared.pt")["basis"], data.unseen()[0][:32]
        self.spread, self.forbidden = self.basis["spread"].view(1, -1, 1, 1), data.held_out()
        self.vae = build()
        self.weights = {"decoder": [], "encoder": []}
        for name, weight in self.vae.named_parameters():
            self.weights["decoder" if name.startswith(("decoder.", "post_quant_conv.")) else "encoder"].append(weight)
        self.optimizers = {side: self.optimizers_of(weights) for side, weights in self.weights.items()}
        self.state = {"elapsed": 0.0, "step": 0, "history": []}
        self.average = {name: value.clone() for name, value in self.vae.state_dict().items()}
        if self.file.exists():
            saved = torch.load(self.file)
            self.vae.load_state_dict(saved["weights"])
            for side, optimizers in self.optimizers.items():
                for optimizer, content in zip(optimizers, saved["optimizers"][side], strict=True):
                    optimizer.load_state_dict(content)
            self.average, self.state = saved["average"], saved["state"]

    @staticmethod
    def optimizers_of(weights: list[Tensor]) -> list[torch.optim.Optimizer]:
        """Muon for the inner matrices and convolutions, AdamW for the rest (pixels and latents at either end too)."""
        inner = [w for w in weights if w.ndim > 1 and w.shape[0] >= 16 and w.flatten(1).shape[1] >= 64]
        rest = [w for w in weights if all(w is not i for i in inner)]
        return [Muon(inner), torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=1e-4)]

    def save(self) -> None:
        content = {
            "weights": self.vae.state_dict(),
            "average": self.average,
            "state": self.state,
            "optimizers": {side: [o.state_dict() for o in both] for side, both in self.optimizers.items()},
        }
        torch.save(content, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Latents (BATCH, CHANNELS, LATENT, LATENT) and pictures (BATCH, 3, SIZE, SIZE) in [-1, 1]."""
        pictures, _ = data.render(BATCH, (SEED, self.state["step"]), self.forbidden, data.ANYWHERE)
        return project(self.basis, pictures), pixels_of(pictures)

    def loss(self, side: str) -> Tensor:
        latents, pixels = self.batch()
        if side == "encoder":
            error = (self.encode(self.vae, pixels) - latents) / self.spread
            return error.square().mean() + error.abs().mean()
        noisy = latents + 0.02 * torch.randn_like(latents)  # generated latents are not exact either
        error = self.vae.decode(noisy).sample - pixels
        return error.abs().mean() + 2 * error.square().mean()

    @staticmethod
    def encode(vae: nn.Module, pixels: Tensor) -> Tensor:
        return vae.encode(pixels).latent_dist.mean

    def step(self) -> None:
        side = "encoder" if self.state["step"] % 3 == 2 else "decoder"
        progress = min(self.state["elapsed"] / self.seconds, 1.0)
        rate = PEAK_RATE * min(1, (self.state["step"] + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * progress))
        self.loss(side).backward()
        nn.utils.clip_grad_norm_(self.weights[side], 1.0)
        self.vae.quant_conv.weight.grad = self.mean_only(self.vae.quant_conv.weight.grad)
        self.vae.quant_conv.bias.grad = self.mean_only(self.vae.quant_conv.bias.grad)
        for optimizer in self.optimizers[side]:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.state["step"] += 1
        keep = min(0.996, self.state["step"] / (self.state["step"] + 30))
        for name, value in self.vae.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)

    @staticmethod
    def mean_only(gradient: Tensor | None) -> Tensor | None:
        """The posterior's variance stays where build() put it."""
        if gradient is not None:
            gradient[CHANNELS:] = 0
        return gradient

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Held-out figures of the average: decoding and round trip in dB, and the encoder's relative error."""
        vae = build().eval()
        vae.load_state_dict(self.average)
        pixels, latents = pixels_of(self.checked), project(self.basis, self.checked)
        encoded = self.encode(vae, pixels)
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
            if self.state["step"] % 600 == 0 or self.state["elapsed"] >= self.seconds:
                self.state["history"].append(self.check())
                bar.set_postfix(self.state["history"][-1])
                self.save()
