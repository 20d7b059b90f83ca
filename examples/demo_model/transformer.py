"""The FLUX.2 Klein-base transformer, small, and its training by flow matching.

All widths are multiples of 64, so that mflux can quantize it.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import data
import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import Flux2Transformer2DModel
from muon import Muon
from sampling import grid_of_pictures, token_ids
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from vae import VARIANCE, project

GEOMETRY = {
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 192,
    "timestep_guidance_channels": 64,
    "mlp_ratio": 2.0,
    "axes_dims_rope": [8, 24, 24, 8],
}
FIXED = {"patch_size": 1, "in_channels": 128, "rope_theta": 2000, "guidance_embeds": False}  # as in every FLUX.2

BATCHES = {data.SQUARE: 64, data.WIDE: 44}  # pictures of a step, by their size
WIDE_SHARE = 0.2  # of the steps
MUON_RATE, ADAMW_RATE, WARM_UP = 2.1e-3, 1.05e-3, 100
SEED = 3  # of the pictures, with the step
DROPPED = 0.1  # share of pictures trained without their caption
SIGMA_MEAN, SIGMA_SPREAD, SIGMA_UNIFORM = 1.2, 1.3, 0.1  # logit-normal, and the share drawn uniformly instead
CHECKED, CHECK_EVERY, DRAW_EVERY = 96, 250, 1000  # pictures held out of each size; steps


def build() -> Flux2Transformer2DModel:
    """Starts by predicting zero, with modulation near zero."""
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(**GEOMETRY, **FIXED)
    for name, weight in model.named_parameters():
        if "modulation" in name or name.startswith("norm_out"):
            nn.init.normal_(weight, std=0.02)
        elif name.startswith("proj_out"):
            nn.init.zeros_(weight)
    return model


def load(folder: Path) -> Flux2Transformer2DModel:
    """The trained transformer (moving average), in evaluation mode."""
    model = build()
    model.load_state_dict(torch.load(folder / "transformer.pt")["average"])
    return model.eval().requires_grad_(False)


def pack(latents: Tensor) -> Tensor:
    """Latents (n, 32, 2 * rows, 2 * columns) as normalized tokens (n, rows * columns, 128), one for 2x2 positions."""
    n, channels, height, width = latents.shape
    blocks = latents.float().reshape(n, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(n, 4 * channels, -1).transpose(1, 2) / math.sqrt(VARIANCE + 1e-4)


class Training:
    """Resumable from its checkpoint; the learning rate follows the minutes spent."""

    def __init__(self, folder: Path, minutes: float, bfloat16: bool):
        self.folder, self.file, self.seconds = folder, folder / "transformer.pt", 60 * minutes
        self.bfloat16 = bfloat16
        prepared = torch.load(folder / "prepared.pt")
        self.basis, self.row, self.embeddings = prepared["basis"], prepared["row"], prepared["embeddings"]
        self.world = data.World(data.fetch(folder), data.held_out())
        everything = data.World(data.fetch(folder))
        self.checked = {size: everything.render(CHECKED, data.UNSEEN_SEED, size) for size in BATCHES}
        self.model = build()
        self.compiled = torch.compile(self.model, dynamic=False)
        hidden = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "transformer_blocks" in n]
        others = [p for p in self.model.parameters() if all(p is not h for h in hidden)]
        precision = torch.bfloat16 if bfloat16 else torch.float32
        self.optimizers = {
            MUON_RATE: Muon(hidden, weight_decay=0.02, precision=precision),
            ADAMW_RATE: torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01),
        }
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.state = {"elapsed": 0.0, "step": 0, "history": []}
        if self.file.exists():
            saved = torch.load(self.file)
            self.model.load_state_dict(saved["weights"])
            for optimizer, content in zip(self.optimizers.values(), saved["optimizers"], strict=True):
                optimizer.load_state_dict(content)
            self.average, self.state = saved["average"], saved["state"]

    @property
    def progress(self) -> float:
        return min(self.state["elapsed"] / self.seconds, 1.0)

    def save(self) -> None:
        content = {
            "weights": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers.values()],
            "state": self.state,
        }
        torch.save(content, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)

    def drawn(self, step: int) -> tuple[tuple[int, int], Tensor, list[str]]:
        """A step's size, tokens (n, tokens, 128) and captions."""
        wide = np.random.default_rng((SEED, 0, step)).random() < WIDE_SHARE
        size = data.WIDE if wide else data.SQUARE
        pictures, captions = self.world.render(BATCHES[size], (SEED, step), size)
        return size, pack(project(self.basis, pictures)), captions

    def loss(
        self, model: nn.Module, tokens: Tensor, texts: Tensor, sigmas: Tensor, noise: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Squared error of the predicted velocity, noise - tokens, for each picture."""
        at = sigmas[:, None, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            noisy = (1 - at) * tokens + at * noise
            velocity = model(noisy, texts, sigmas, *token_ids(size), return_dict=False)[0]
        return (velocity.float() - (noise - tokens)).square().mean((1, 2))

    def step(self, size: tuple[int, int], tokens: Tensor, captions: list[str]) -> float:
        generator, count = torch.Generator().manual_seed(self.state["step"]), len(tokens)
        draws = torch.rand(3, count, generator=generator)
        rows = torch.where(draws[0] < DROPPED, 0, torch.tensor([self.row[caption] for caption in captions]))
        quantiles = ((torch.arange(count) + draws[1]) / count).clamp(1e-4, 1 - 1e-4)  # stratified
        sigmas = torch.sigmoid(SIGMA_MEAN + SIGMA_SPREAD * torch.special.ndtri(quantiles))
        sigmas = torch.where(draws[2] < SIGMA_UNIFORM, draws[1], sigmas)
        noise = torch.randn(tokens.shape, generator=generator)
        loss = self.loss(self.compiled, tokens, self.embeddings[rows], sigmas, noise, size).mean()
        loss.backward()
        now = time.monotonic()
        self.state["elapsed"] += now - self.last
        self.last = now
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        decay = min(1.0, (1 - self.progress) / 0.8)  # constant for the first 20 %, then down to zero
        for rate, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * decay * min(1, (self.state["step"] + 1) / WARM_UP)
            optimizer.step()
            optimizer.zero_grad()
        self.state["step"] += 1
        keep = min(0.997, self.state["step"] / (self.state["step"] + 15))
        torch._foreach_lerp_(list(self.average.values()), list(self.model.state_dict().values()), 1 - keep)
        return float(loss.detach())

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Held-out loss of the average, on fixed noise and evenly spread sigmas, also by quarter of sigma."""
        model, found = self.averaged(), {}
        for size, name in {data.SQUARE: "held_out", data.WIDE: "wide"}.items():
            generator = torch.Generator().manual_seed(1)
            pictures, captions = self.checked[size]
            tokens = pack(project(self.basis, pictures))
            texts = self.embeddings[[self.row[caption] for caption in captions]]
            noise = torch.randn(tokens.shape, generator=generator)
            sigmas = torch.linspace(0.03, 0.97, CHECKED)[torch.randperm(CHECKED, generator=generator)]
            parts = zip(*(content.split(48) for content in (tokens, texts, sigmas, noise)), strict=True)
            losses = torch.cat([self.loss(model, *part, size) for part in parts])
            found[name] = float(losses.mean())
            if size == data.SQUARE:
                found |= {f"q{q + 1}": float(losses[(4 * sigmas).long() == q].mean()) for q in range(4)}
        return found

    def averaged(self) -> Flux2Transformer2DModel:
        model = build()
        model.load_state_dict(self.average)
        return model.eval()

    def plot(self) -> None:
        history = self.state["history"]
        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        minutes = [entry["minute"] for entry in history]
        for key, label in {
            "train": "training",
            "held_out": "held out",
            "wide": "held out, 128x192",
            "q2": "held out, σ .25 to .5",
            "q4": "σ .75 to 1",
        }.items():
            axes.plot(minutes, [entry[key] for entry in history], label=label)
        axes.set(xlabel="minutes", ylabel="squared error of the velocity", yscale="log")
        axes.legend()
        figure.savefig(self.folder / "loss.png", dpi=100)
        plt.close(figure)

    def run(self) -> None:
        """Train until the minutes are spent; the next step's pictures are drawn meanwhile."""
        bar = tqdm(total=round(self.seconds), desc="transformer", unit="s", mininterval=10)
        recent, self.last = [], time.monotonic()
        # on a CPU attention in plain matrix products is several times faster backwards than the fused one
        with sdpa_kernel(SDPBackend.MATH), ThreadPoolExecutor(1) as pool:
            following = pool.submit(self.drawn, self.state["step"])
            while self.progress < 1:
                drawn, following = following.result(), pool.submit(self.drawn, self.state["step"] + 1)
                recent.append(self.step(*drawn))
                bar.update(round(self.state["elapsed"]) - bar.n)
                if self.state["step"] % CHECK_EVERY == 0 or self.progress == 1:
                    spent = {"minute": self.state["elapsed"] / 60, "step": self.state["step"]}
                    entry = {**spent, "train": sum(recent) / len(recent), **self.check()}
                    self.state["history"].append({key: round(value, 4) for key, value in entry.items()})
                    bar.set_postfix(self.state["history"][-1])
                    recent.clear()
                    self.save()
                    self.plot()
                if self.state["step"] % DRAW_EVERY == 0 or self.progress == 1:
                    for size in BATCHES:
                        picture = grid_of_pictures(self.averaged(), self.folder, size)
                        picture.save(self.folder / f"samples-{self.state['step']:05}-{size[1]}.png")
