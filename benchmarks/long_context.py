"""A task that no single window can solve: a beacon more than 2,000 px away determines the class.

    python benchmarks/long_context.py                 # three backbones, three seeds: minutes
    python benchmarks/long_context.py --seeds 1 --backbones atlas

A field is 256 x 4096 working pixels, 16 windows of which 4 are not empty. At one end is a beacon
with upright or lying stripes; at least 2,048 px away are windows of blotches. Blotches have the
class of the beacon's stripes, "upright" or "lying", and look the same in both. Positions, colors,
sizes and phases are random. Three metrics on test fields:

- accuracy of the blotch cells;
- the same with every blotch window as an image of its own (chance, if nothing local leaks);
- how many cells change class if only the beacon is turned (all, if the beacon decides).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional

from atlas_wsi.models import AtlasConfig, Model, ModelCard, ModelClass
from atlas_wsi.models.mambavision import MambaVisionConfig

WINDOW_PX = 256
N_WINDOWS = 16
AWAY = 9
"""Windows from the beacon to the nearest blotches: 8 whole windows, 2,048 px, are between them."""
N_BLOTCHES = 3
CELLS = WINDOW_PX // 64
BACKBONES = ("atlas", "mambavision", "mambavision+msa")

CARD = ModelCard(
    name="long-context",
    domain="slide",
    mpp=1.0,
    classes=(
        ModelClass(name="upright", color="#d55e00"),
        ModelClass(name="lying", color="#0072b2"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Field:
    """An image, its windows that are not empty, and the class of its blotches."""

    image: np.ndarray
    """uint8 (256, 4096, 3)."""
    beacon: int
    """Window of the beacon."""
    blotches: np.ndarray
    """Windows of the blotches, ascending."""
    label: int
    """0 if the stripes are upright, 1 if they are lying."""

    def active(self) -> np.ndarray:
        """Return bool (1, 16): windows that are not empty."""
        active = np.zeros((1, N_WINDOWS), bool)
        active[0, [self.beacon, *self.blotches]] = True
        return active


def make_field(rng: np.random.Generator, label: int | None = None) -> Field:
    """Draw a field; `label` only turns the beacon."""
    drawn = int(rng.integers(2))
    label = drawn if label is None else label
    shape = (WINDOW_PX, WINDOW_PX * N_WINDOWS, 3)
    image = rng.integers(228, 244, shape, np.uint8)
    beacon = int(rng.choice([0, N_WINDOWS - 1]))
    far = np.array([w for w in range(N_WINDOWS) if abs(w - beacon) >= AWAY])
    blotches = np.sort(rng.choice(far, N_BLOTCHES, replace=False))
    _put(image, beacon, _stripes(rng, lying=bool(label)), rng)
    for window in blotches:
        _put(image, window, _blotches(rng), rng)
    return Field(image=image, beacon=beacon, blotches=blotches, label=label)


def _put(image: np.ndarray, window: int, dark: np.ndarray, rng: np.random.Generator) -> None:
    """Mix two colors in a window; `dark` is 0-1."""
    light, deep = rng.uniform(150, 220, 3), rng.uniform(40, 120, 3)
    there = slice(window * WINDOW_PX, (window + 1) * WINDOW_PX)
    mixed = light + dark[..., None] * (deep - light)
    image[:, there] = np.clip(mixed + rng.normal(0, 6, mixed.shape), 0, 255)


def _stripes(rng: np.random.Generator, *, lying: bool) -> np.ndarray:
    at = np.arange(WINDOW_PX) / rng.uniform(16, 32) + rng.uniform()
    wave = np.broadcast_to(0.5 + 0.5 * np.sin(2 * np.pi * at), (WINDOW_PX, WINDOW_PX))
    return wave.T if lying else wave


def _blotches(rng: np.random.Generator) -> np.ndarray:
    noise = gaussian_filter(rng.normal(size=(WINDOW_PX, WINDOW_PX)), rng.uniform(4, 8), mode="wrap")
    return 1 / (1 + np.exp(-4 * noise / noise.std()))


def make_model(backbone: str, seed: int) -> Model:
    """Make a tiny model with random weights."""
    torch.manual_seed(seed)
    trunk = MambaVisionConfig(dim=16, in_dim=16, depths=(1, 1, 2, 2), num_heads=(1, 1, 2, 4))
    stem = {"stem": "mambavision", "stem_options": asdict(trunk)}
    sizes = {
        "atlas": {"dim": 64, "heads": 2, "depths": (1, 1), "n_scales": 3},
        "mambavision": {"dim": 128, "heads": 4, "depths": (), "n_scales": 1, **stem},
        "mambavision+msa": {
            "dim": 64, "heads": 2, "depths": (1, 1), "n_scales": 3, **stem,
        },
    }  # fmt: skip
    model = Model(AtlasConfig(n_classes=2, **sizes[backbone]), CARD)
    model.encoder.stem.to(memory_format=torch.channels_last)
    assert model.config.backbone == backbone
    return model


def encode_fields(model: Model, fields: list[Field]) -> torch.Tensor:
    """Return the tokens of whole fields before any attention, (fields, dim, 16, 256)."""
    images = torch.from_numpy(np.stack([f.image for f in fields]))
    return model.encoder.stem(model.normalize(images).contiguous(memory_format=torch.channels_last))


def cell_logits(model: Model, maps: torch.Tensor, fields: list[Field]) -> torch.Tensor:
    """Return logits (fields, classes, 4, 16, 4): rows of cells, windows, columns of cells."""
    active = torch.from_numpy(np.stack([f.active() for f in fields]))
    encoder = model.encoder
    layout = encoder.plan(fields[0].image.shape[:2], n_images=len(fields), active_windows=active)
    stem, encoder.stem = encoder.stem, nn.Identity()  # the maps are what it gave
    try:
        encoding = encoder.encode(maps, layout)
    finally:
        encoder.stem = stem
    cells = model.head(encoding.last(), encoding.layout).float()
    return cells.unflatten(3, (N_WINDOWS, CELLS))


def of_blotches(logits: torch.Tensor, fields: list[Field]) -> torch.Tensor:
    """Return the `cell_logits` of blotch cells, (fields, classes, 48)."""
    picked = [logits[i, :, :, torch.from_numpy(f.blotches)] for i, f in enumerate(fields)]
    return torch.stack(picked).flatten(2)


def learn_stripes(model: Model, *, steps: int, seed: int, report=print) -> None:
    """Train the whole model on single windows of stripes, whose class is visible."""
    rng = np.random.default_rng((seed, 1))

    def losses():
        labels = torch.from_numpy(rng.integers(0, 2, 16))
        images = np.zeros((len(labels), WINDOW_PX, WINDOW_PX, 3))
        for image, label in zip(images, labels.tolist(), strict=True):
            _put(image, 0, _stripes(rng, lying=bool(label)), rng)
        x = model.normalize(torch.from_numpy(images))
        logits = model(x.contiguous(memory_format=torch.channels_last)).cells.flatten(2)
        return logits, labels[:, None].expand(-1, logits.shape[2])

    _descend(list(model.parameters()), losses, steps=steps, rate=2e-3, report=report)


def learn_fields(model: Model, *, pairs: int, steps: int, seed: int, report=print) -> None:
    """Train the layers above the stem on fields, each with the beacon in both orientations.

    The same blotches come with both labels, so they cannot be memorized.
    """
    rng = np.random.default_rng((seed, 2))
    fields: list[Field] = []
    for i in range(pairs):
        fields += [make_field(np.random.default_rng((seed, 3, i)), label) for label in (0, 1)]
    with torch.no_grad():
        maps = torch.cat([encode_fields(model, fields[i : i + 2]) for i in range(0, 2 * pairs, 2)])

    def losses():
        chosen = rng.choice(len(fields), 12, replace=False)
        some = [fields[i] for i in chosen]
        logits = cell_logits(model, maps[chosen], some)
        both = torch.cat(
            [of_blotches(logits, some), torch.stack([
                logits[i, :, :, f.beacon].flatten(1) for i, f in enumerate(some)
            ])], dim=2,
        )  # fmt: skip
        return both, torch.tensor([f.label for f in some])[:, None].expand(-1, both.shape[2])

    over = [p for name, p in model.named_parameters() if not name.startswith("encoder.stem.")]
    _descend(over, losses, steps=steps, rate=1.5e-3, report=report)


def _descend(weights: list[nn.Parameter], losses, *, steps: int, rate: float, report) -> None:
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    recent: list[tuple[float, float]] = []
    for step in range(1, steps + 1):
        logits, labels = losses()
        loss = functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        plan.step()
        right = (logits.detach().argmax(1) == labels).float().mean()
        recent.append((loss.item(), right.item()))
        if step % 50 == 0 or step == steps:
            mean_loss, mean_right = np.mean(recent[-25:], axis=0)
            report(f"step {step:4d}  loss {mean_loss:.3f}  right {mean_right:.1%}")


def train(
    backbone: str, *, seed: int, pairs: int = 32, steps: tuple[int, int] = (50, 100), report=print
) -> Model:
    """Make a model and train it: stripes first, then fields; batch norm is fixed in between."""
    model = make_model(backbone, seed).train()
    learn_stripes(model, steps=steps[0], seed=seed, report=report)
    model.eval()
    learn_fields(model, pairs=pairs, steps=steps[1], seed=seed, report=report)
    return model


@torch.inference_mode()
def predict_fields(model: Model, fields: list[Field]) -> torch.Tensor:
    """Return the class of every blotch cell, (fields, 48), by the model's forward pass."""
    images = torch.from_numpy(np.stack([f.image for f in fields]))
    active = torch.from_numpy(np.stack([f.active() for f in fields]))
    x = model.normalize(images).contiguous(memory_format=torch.channels_last)
    logits = model(x, active).cells.unflatten(3, (N_WINDOWS, CELLS))
    return of_blotches(logits, fields).argmax(1)


@torch.inference_mode()
def predict_windows(model: Model, field: Field) -> torch.Tensor:
    """Return the class of every blotch cell, each window an image of its own."""
    parts = [field.image[:, w * WINDOW_PX : (w + 1) * WINDOW_PX] for w in field.blotches]
    return model(model.normalize(torch.from_numpy(np.stack(parts)))).cells.argmax(1)


def evaluate(model: Model, *, pairs: int = 32, seed: int = 10**6) -> dict[str, float]:
    """Evaluate on test fields; see the top of the file."""
    right, alone, turned = [], [], []
    for i in range(pairs):
        fields = [make_field(np.random.default_rng((seed, i)), label) for label in (0, 1)]
        found = predict_fields(model, fields)
        right += [(found[k] == k).float().mean().item() for k in (0, 1)]
        turned.append((found[0] != found[1]).float().mean().item())
        one = predict_windows(model, fields[i % 2])
        alone.append((one == i % 2).float().mean().item())
    return {
        "accuracy": float(np.mean(right)),
        "windows alone": float(np.mean(alone)),
        "turned with the beacon": float(np.mean(turned)),
    }


def main() -> None:
    """Train and measure; print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=32, help="fields to train on, each twice")
    parser.add_argument("--steps", type=int, nargs=2, default=(50, 100))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for backbone in args.backbones:
        for seed in range(args.seeds):
            start = time.perf_counter()
            print(f"{backbone}, seed {seed}", flush=True)
            model = train(
                backbone,
                seed=seed,
                pairs=args.pairs,
                steps=tuple(args.steps),
                report=lambda text: print(" ", text, flush=True),
            )
            took = time.perf_counter() - start
            rows.append({"backbone": backbone, "seed": seed, "seconds": took} | evaluate(model))
            print("  ", rows[-1], flush=True)
    print("\n| backbone | seed | accuracy | windows alone | turned with the beacon | training, s |")
    print("|---|--:|--:|--:|--:|--:|")
    for row in rows:
        shares = [row[k] for k in ("accuracy", "windows alone", "turned with the beacon")]
        cells = " | ".join(f"{share:.1%}" for share in shares)
        print(f"| {row['backbone']} | {row['seed']} | {cells} | {row['seconds']:.0f} |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
