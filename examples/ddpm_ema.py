"""A small diffusion model on real images, sampled from its averaged weights: fp32, bfloat16 and 8 bits.

Trains a denoiser on scikit-learn's digits (8 x 8 pixels) once per seed, and keeps several averages of its weights
during the same run. Prints the validation denoising loss of each, and draws samples. Takes up to two minutes on two
cores.

    pip install "halfulp[lab]" scikit-learn
    python examples/ddpm_ema.py --out ddpm_ema.png
"""

import argparse
import math

import torch
from torch import nn
from torch.nn.functional import mse_loss

from halfulp.averaging import EMA

LEVELS = 200
ARMS = {
    "fp32": {"state": "fp32"},
    "bf16, nearest": {"state": "bf16", "rounding": "nearest"},
    "8 bits, nearest": {"state": "8bit", "rounding": "nearest"},
    "bf16, stochastic": {"state": "bf16"},
    "8 bits, stochastic": {"state": "8bit"},
}
DRAWN = ("fp32", "bf16, nearest", "8 bits, stochastic")


def digits():
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:1500]], images[order[1500:]]


class Denoiser(nn.Module):
    """Predicts the noise in an image from the image and its noise level."""

    def __init__(self, width=256, blocks=3):
        super().__init__()
        self.register_buffer("rates", torch.exp(torch.linspace(0.0, math.log(1000.0), 16)), persistent=False)
        self.enter = nn.Linear(64 + 32, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64))

    def forward(self, x, level):
        phase = level[:, None] / LEVELS * self.rates
        x = self.enter(torch.cat([x, phase.sin(), phase.cos()], dim=1))
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


def signal():
    """Return the share of the signal at each level (cosine schedule)."""
    t = (torch.arange(LEVELS + 1) / LEVELS + 0.008) / 1.008 * math.pi / 2
    return (t.cos() ** 2 / t[0].cos() ** 2).clamp(1e-4, 1.0)[1:]


def noisy(images, generator):
    level = torch.randint(LEVELS, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    left = signal()[level][:, None]
    return left.sqrt() * images + (1 - left).sqrt() * noise, level, noise


@torch.no_grad()
def validation(model, images):
    generator = torch.Generator().manual_seed(99)
    losses = []
    for _ in range(8):
        x, level, noise = noisy(images, generator)
        losses.append(mse_loss(model(x, level), noise).item())
    return sum(losses) / len(losses)


@torch.no_grad()
def sample(model, count):
    generator = torch.Generator().manual_seed(7)
    left = signal()
    x = torch.randn(count, 64, generator=generator)
    for level in reversed(range(LEVELS)):
        before = left[level - 1] if level else torch.tensor(1.0)
        noise = model(x, torch.full((count,), level))
        image = ((x - (1 - left[level]).sqrt() * noise) / left[level].sqrt()).clamp(-1, 1)
        step = 1 - left[level] / before
        mean = (before.sqrt() * step * image + (left[level] / before).sqrt() * (1 - before) * x) / (1 - left[level])
        spread = (step * (1 - before) / (1 - left[level])).sqrt()
        x = mean + spread * torch.randn(x.shape, generator=generator)
    return x


def run(seed, steps, decay, count):
    """Return the validation loss of each average after one training run, and samples of those that are drawn."""
    torch.manual_seed(seed)
    images, held_out = digits()
    model = Denoiser()
    averages = {name: EMA(model, decay, seed=seed, **options) for name, options in ARMS.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = torch.randint(len(images), (128,), generator=generator)
        x, level, noise = noisy(images[pick], generator)
        loss = mse_loss(model(x, level), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for average in averages.values():
            average.update()
    losses, samples = {"live weights": validation(model, held_out)}, {}
    for name, average in averages.items():
        with average.swap():
            losses[name] = validation(model, held_out)
            if name in DRAWN and count:
                samples[name] = sample(model, count)
    return losses, samples


def draw(samples, table, decay, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(DRAWN), 1, figsize=(8.2, 4.3), layout="constrained")
    for axis, name in zip(axes, DRAWN, strict=True):
        tiles = torch.nn.functional.pad(samples[name].reshape(-1, 8, 8), (1, 1, 1, 1), value=-1.0)
        half = len(tiles) // 2
        rows = [torch.cat(list(tiles[k : k + half]), dim=1) for k in (0, half)]
        axis.imshow(torch.cat(rows), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        losses = ", ".join(f"{v:.3f}" for v in table[name])
        axis.set_title(f"{name}: validation loss {losses}", loc="left", fontsize=10)
        for side in axis.spines.values():
            side.set_visible(False)
    figure.suptitle(f"Digits sampled from averaged weights (decay {decay:g}); one loss a seed")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--decay", type=float, default=0.999)
    parser.add_argument("--out", help="picture of the samples")
    args = parser.parse_args()
    table, drawn = {}, {}
    for seed in range(args.seeds):
        losses, samples = run(seed, args.steps, args.decay, 32 if args.out and seed == 0 else 0)
        drawn = drawn or samples
        for name, loss in losses.items():
            table.setdefault(name, []).append(loss)
    print(f"validation denoising loss after {args.steps} steps, decay {args.decay:g}; one column a seed")
    for name, losses in table.items():
        print(f"{name:20}" + "".join(f"{loss:8.3f}" for loss in losses))
    if args.out:
        draw(drawn, table, args.decay, args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
