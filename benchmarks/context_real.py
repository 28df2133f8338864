"""What context is worth on real labeled scenes, against the simplest readings of the same tokens.

    python scripts/efficientnet_lite.py lite0.safetensors
    python benchmarks/context_real.py DATA/sentinel2_india --weights lite0.safetensors --out runs
    python benchmarks/context_real.py DATA/sentinel2_india --out runs --report

A folder holds images and, beside each, ``NAME_label.png`` (0: no label). A frozen stem turns every
image into tokens once; a cell is a token, its class that of at least 75% of its labeled area. All
arms see the same tokens for the same number of steps, with the eight orientations of the image:

    linear   a linear reading of a cell's token
    window   windows of 16 x 16 tokens, trained and read one by one
    coarse   the same, with the same stem's tokens of 4 and 16 times coarser pixels at every token
    whole    Multi-Scale Attention over the whole image; coarse scales are means of tokens
    deprived `whole`, read window by window
    placebo  `whole`, with the coarse scales of another image

Images of one group stay in one fold. Smoothing and a vote of the image are added to `linear`,
`window` and `coarse` as chosen on the other folds, and so is the learning rate of every arm: 0.3
times the given one, the given one or 3 times it, by the runs of the first seed. Runs that
are in the folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from itertools import product
from pathlib import Path

import numpy as np
import rasterio
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import nn
from torch.nn import functional

from atlas_wsi.grid import Box
from atlas_wsi.models import Model, ModelCard, ModelClass
from atlas_wsi.models.atlas import make_config
from atlas_wsi.models.msa import coarse_tokens, pool, pool_up
from atlas_wsi.models.start import take_weights, timm_start

STEM = "timm:tf_efficientnet_lite0"
SETS = {
    "sentinel2_india": {
        "classes": ("built-up", "vegetation", "water"),
        "zoom": 2,  # pixels of 10 m, read at 5 m
        "groups": ({"s98", "s101"}, {"s44", "s53", "s80", "s85"}),  # scenes that overlap
    },
    "dubai_aerial": {
        "classes": ("building", "land", "road", "vegetation", "water"),
        "zoom": 1,
        "groups": (),
    },
}
DIM, DEPTH, N_SCALES = 96, 2, 3
FACTORS = (4, 16)
TRAINED = ("linear", "window", "coarse", "whole")
SIMPLE = ("linear", "window", "coarse")
STEP_PX, MIN_SHARE = 16, 0.75
COLORS = ((196, 78, 82), (85, 168, 104), (76, 114, 176), (221, 170, 51), (129, 114, 178))
WIDTHS, VOTES = (0.0, 0.5, 1.0, 2.0), (0.0, 0.5, 1.0)


def new_model(n_classes: int, n_scales: int = N_SCALES) -> Model:
    """Make the model of an arm; it starts as the linear reading of the tokens."""
    classes = tuple(ModelClass(name=f"class {k}", color="#000000") for k in range(n_classes))
    half = (0.5, 0.5, 0.5)
    card = ModelCard(name="arm", domain="scene", classes=classes, mpp=1.0, mean=half, std=half)
    config = make_config(
        "timm+msa", timm=STEM.partition(":")[2], dim=DIM, depths=(DEPTH,), n_scales=n_scales,
        n_classes=n_classes,
    )  # fmt: skip
    model = Model(config, card)
    model.encoder.start_as_identity()
    model.head.start_with_finest()
    for weight in model.head.reads[0].parameters():
        nn.init.zeros_(weight)
    return model


# images to tokens ---------------------------------------------------------------------------------


def read_images(folder: Path, facts: dict) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Read float pixels `(3, rows, cols)` and the class of every cell, -1 for none."""
    found = {}
    for label in sorted(folder.glob("*_label.png")):
        name = label.stem.removesuffix("_label")
        path = next(p for p in folder.glob(f"{name}.*") if p.suffix in {".tif", ".png", ".jpg"})
        with rasterio.open(path) as raster:
            pixels = torch.from_numpy(raster.read()[:3]).float()
        values = torch.from_numpy(np.asarray(Image.open(label)).astype(np.int64))
        zoom = facts["zoom"]
        if zoom > 1:
            pixels = functional.interpolate(pixels[None], scale_factor=zoom, mode="bilinear")[0]
            values = values.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
        after = [n for side in values.shape[::-1] for n in (0, -side % STEP_PX)]
        one_hot = functional.one_hot(functional.pad(values, after), len(facts["classes"]) + 1)
        shares = functional.avg_pool2d(one_hot.permute(2, 0, 1)[None].float(), STEP_PX)[0, 1:]
        cells = torch.where(shares.amax(dim=0) >= MIN_SHARE, shares.argmax(dim=0), -1)
        found[name] = (pixels.round(), cells)
    return found


@torch.inference_mode()
def encode(folder: Path, facts: dict, weights: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Turn images into maps of the frozen stem, at their own and at coarser pixels."""
    model = new_model(len(facts["classes"]))
    start = timm_start(STEM, weights)
    assert start is not None
    take_weights(model, start)
    stem = model.eval().encoder.stem

    def map_of(pixels: torch.Tensor) -> torch.Tensor:
        x = model.normalize(pixels.permute(1, 2, 0)[None]).contiguous()
        shape = (x.shape[-2], x.shape[-1])
        return stem.map(x, Box(row=0, col=0, rows=shape[0], cols=shape[1]), shape)[0].half()

    found = {}
    for name, (pixels, cells) in read_images(folder, facts).items():
        after = [n for side in pixels.shape[:0:-1] for n in (0, -side % FACTORS[-1])]
        padded = functional.pad(pixels[None], after, mode="replicate")
        found[name] = {"cells": cells, "1": map_of(pixels)} | {
            str(by): map_of(functional.avg_pool2d(padded, by)[0].round()) for by in FACTORS
        }
        print(f"{name}: {tuple(cells.shape)} cells, {(cells >= 0).float().mean():.0%} labeled")
    return found


def folds_of(images: dict, facts: dict, n_folds: int) -> dict[str, int]:
    """Assign groups to folds, so that every class is spread evenly over them."""
    group = {name: min(next((g for g in facts["groups"] if name in g), {name})) for name in images}
    n_classes = len(facts["classes"])
    counts = {g: np.zeros(n_classes) for g in group.values()}
    for name, image in images.items():
        cells = image["cells"]
        counts[group[name]] += np.bincount(cells[cells >= 0], minlength=n_classes)
    whole = sum(counts.values())
    load, size, fold = np.zeros((n_folds, n_classes)), np.zeros(n_folds), {}
    for g in sorted(counts, key=lambda g: -(counts[g] / whole).max()):
        share = counts[g] / whole
        cost = ((load + share) ** 2).sum(axis=1) - (load**2).sum(axis=1) + 0.002 * size
        fold[g] = int(cost.argmin())
        load[fold[g]] += share
        size[fold[g]] += 1
    return {name: fold[group[name]] for name in images}


# one run ------------------------------------------------------------------------------------------


class Arm:
    """A way to read tokens: its model, and what it sees of an image."""

    def __init__(self, arm: str, images: dict, n_classes: int, train: list[str], seed: int) -> None:
        torch.manual_seed(seed)
        self.arm, self.images, self.train = arm, images, train
        self.model = new_model(n_classes, N_SCALES if arm == "whole" else 1)
        self.added = nn.ModuleList()
        if arm == "coarse":
            self.added = nn.ModuleList(nn.Linear(DIM, DIM, bias=False) for _ in FACTORS)
            for layer in self.added:
                nn.init.zeros_(layer.weight)
        self.tokens = {name: {} for name in images}
        for scale in ("1", *(str(by) for by in FACTORS if arm == "coarse")):
            self._project(scale)
        learned = self.model.head.reads if arm == "linear" else self.model
        self.model.requires_grad_(False)
        learned.requires_grad_(True)
        self.model.encoder.stem.requires_grad_(False)
        parts = [*self.model.parameters(), *self.added.parameters()]
        self.weights = [weight for weight in parts if weight.requires_grad]

    def _project(self, scale: str) -> None:
        """Project a scale of all images to the principal components of the training images."""
        stem = self.model.encoder.stem
        stem.fit_projection_(self.images[name][scale][None].float() for name in self.train)
        with torch.no_grad():
            for name, image in self.images.items():
                x = image[scale].float().permute(1, 2, 0)
                self.tokens[name][scale] = stem.project(x).permute(2, 0, 1)

    def inputs(self, name: str, turn: int = 0) -> torch.Tensor:
        """Return the tokens `(1, C, rows, cols)` of an image in an orientation."""
        own = self.tokens[name]
        x = own["1"]
        for layer, by in zip(self.added, FACTORS, strict=False):
            wide = own[str(by)].repeat_interleave(by, 1).repeat_interleave(by, 2)
            wide = wide[:, : x.shape[1], : x.shape[2]]
            x = x + layer(wide.permute(1, 2, 0)).permute(2, 0, 1)
        return turned(x, turn)[None]

    def logits(self, name: str, turn: int = 0, n_scales: int | None = None, other: str = ""):
        """Return the logits `(K, rows, cols)`; `other`: the image whose coarse scales are seen."""
        x, encoder = self.inputs(name, turn), self.model.encoder
        if self.arm == "linear":
            return self.model.head.reads[0](x[0].permute(1, 2, 0)).permute(2, 0, 1)
        n_scales = 1 if self.arm != "whole" else n_scales
        layout = encoder.plan(tuple(n * STEP_PX for n in x.shape[-2:]), n_scales=n_scales)
        with torch.autocast("cpu", torch.bfloat16):
            x_NTC = layout.from_map(x)
            if other:
                last = self._amid(x_NTC, layout.from_map(tiled(self.inputs(other), x)), layout)
            else:
                last = encoder.encode_tokens(x_NTC, layout).last()
            return self.model.head(last, layout, cell_tokens=1)[0].float()

    def _amid(self, own: torch.Tensor, other: torch.Tensor, layout) -> list[torch.Tensor]:
        """Encode fine windows that see the coarse scales of another image."""
        scales = layout.scales
        x = [other, *coarse_tokens(pool(other, scales[0], layout.ratio), layout)]
        for block in self.model.encoder.blocks(len(scales))[0]:
            x = [t + block.unit(s).position(scales[s].side) for s, t in enumerate(x)]
            x = pool_up(x, scales, layout.ratio, batch=None)
            x[1:], kv = block.down_coarse(x[1:], scales[1:], first=1, batch=None)
            own = own + block.unit(0).position(scales[0].side)
            own = block.down(0, own, scales[0], kv, scales[1:])
            x[0] = block.down(0, x[0], scales[0], kv, scales[1:])
            x = block.up(x, scales, first=0, batch=None)
        return [own, *x[1:]]

    def learn(self, steps: int, per_step: int, rate: float, seed: int) -> float:
        """Train; return the mean loss of the last tenth of the steps."""
        rng = np.random.default_rng(seed)
        optimizer = torch.optim.AdamW(self.weights, lr=rate, weight_decay=0.05)
        order: list[str] = []
        losses = []
        for step in range(steps):
            warm = max(1, steps // 20)
            cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm)))
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / warm) * cosine
            optimizer.zero_grad()
            for _ in range(per_step):
                order = order or list(rng.permutation(self.train))
                name, turn = order.pop(), int(rng.integers(8))
                cells = turned(self.images[name]["cells"], turn)
                found = self.logits(name, turn)[None]
                loss = functional.cross_entropy(found, cells[None], ignore_index=-1) / per_step
                loss.backward()
                losses.append(float(loss.detach()) * per_step)
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            optimizer.step()
        return float(np.mean(losses[-len(losses) // 10 :]))


def turned(x: torch.Tensor, turn: int) -> torch.Tensor:
    """Turn and mirror the last two axes."""
    x = torch.rot90(x, turn % 4, (-2, -1))
    return x.flip(-1) if turn >= 4 else x


def tiled(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Repeat a map until it has the shape of another."""
    rows, cols = (torch.arange(n) % m for n, m in zip(like.shape[-2:], x.shape[-2:], strict=True))
    return x[..., rows, :][..., cols]


def run(args: argparse.Namespace, images: dict, fold_of: dict, one: tuple) -> None:
    """Train an arm on the other folds and store the logits of the images of a fold."""
    arm, fold, seed, factor = one
    path = stored_at(args, *one)
    if path.exists():
        return
    n_classes = len(SETS[args.data.name]["classes"])
    train = [name for name in images if fold_of[name] != fold]
    test = [name for name in images if fold_of[name] == fold]
    started = time.process_time()
    reader = Arm(arm, images, n_classes, train, seed)
    rate = factor * (args.linear_rate if arm == "linear" else args.rate)
    loss = reader.learn(args.steps, args.images, rate, seed)
    seconds = time.process_time() - started
    reader.model.eval()
    others = {name: test[(i + 1) % len(test)] for i, name in enumerate(test)}
    found = {}
    with torch.inference_mode():
        for name in test:
            found[name] = reader.logits(name).half().numpy()
            if arm == "whole":
                found[f"deprived/{name}"] = reader.logits(name, n_scales=1).half().numpy()
                other = others[name] if len(test) > 1 else train[0]
                found[f"placebo/{name}"] = reader.logits(name, other=other).half().numpy()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    facts = {"seconds": seconds, "loss": loss, "rate": rate, "steps": args.steps, "mib": peak}
    np.savez(path, facts=json.dumps(facts), **found)
    print(f"{arm} fold {fold} seed {seed}: rate {rate:g}, loss {loss:.3f}, {seconds:.0f} s")


def stored_at(args: argparse.Namespace, arm: str, fold: int, seed: int, factor: float) -> Path:
    """Return the file of a run."""
    return args.out / f"{arm}.{fold}.{seed}.{factor:g}.npz"


def tuned(args: argparse.Namespace, images: dict, fold_of: dict) -> dict[tuple[str, int], float]:
    """Return the factor of the learning rate of every arm and fold, chosen on the other folds."""
    folds, first = sorted(set(fold_of.values())), args.seeds[0]
    found = {}
    for arm in TRAINED:
        counts = np.array([
            [fold_counts(args, images, fold_of, (arm, fold, first, factor)) for fold in folds]
            for factor in args.factors
        ])  # fmt: skip
        for j, fold in enumerate(folds):
            others = np.delete(counts, j, axis=1).sum(axis=1)
            found[arm, fold] = args.factors[int(mean_iou(others).argmax())]
    return found


def fold_counts(args: argparse.Namespace, images: dict, fold_of: dict, one: tuple) -> np.ndarray:
    """Count the labeled cells of a fold by class and prediction of a run."""
    with np.load(stored_at(args, *one)) as logits:
        return sum(
            counts_of(logits[n].astype(np.float32), images[n]["cells"].numpy())
            for n in fold_of if fold_of[n] == one[1]
        )  # fmt: skip


# report -------------------------------------------------------------------------------------------


def counts_of(logits: np.ndarray, cells: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Count labeled cells by class (row) and prediction (column)."""
    k, known = len(logits), cells >= 0
    known = known if where is None else known & where
    pairs = cells[known] * k + logits.argmax(axis=0)[known]
    return np.bincount(pairs, minlength=k * k).reshape(k, k)


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """Return the mean IoU of counts `(..., K, K)`."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan).mean(axis=-1)


def changed(logits: np.ndarray, width: float, vote: float) -> np.ndarray:
    """Smooth probabilities, and add the image's mean to them."""
    p = np.exp(logits - logits.max(axis=0))
    p /= p.sum(axis=0)
    if width:
        p = gaussian_filter(p, (0, width, width), mode="nearest")
    return np.log(p + 1e-6) + vote * np.log(p.mean(axis=(1, 2), keepdims=True) + 1e-6)


def report(args: argparse.Namespace, images: dict, fold_of: dict) -> None:
    """Print the table of all runs that are there."""
    names = sorted(images)
    cells = {name: images[name]["cells"].numpy() for name in names}
    rates = tuned(args, images, fold_of)
    folds = sorted(set(fold_of.values()))
    seeds = [
        s for s in args.seeds
        if all(stored_at(args, a, f, s, rates[a, f]).exists() for a in TRAINED for f in folds)
    ]  # fmt: skip
    stored = {
        f"{a}.{f}.{s}": np.load(stored_at(args, a, f, s, rates[a, f]))
        for a, f, s in product(TRAINED, folds, seeds)
    }
    if not seeds:
        raise SystemExit("No seed has all arms and folds.")
    found = {}  # arm, seed -> logits by name
    for arm, seed in product(TRAINED, seeds):
        found[arm, seed] = {n: stored[f"{arm}.{fold_of[n]}.{seed}"][n] for n in names}
        found[arm, seed] = {n: x.astype(np.float32) for n, x in found[arm, seed].items()}
    for arm, seed in product(("deprived", "placebo"), seeds):
        found[arm, seed] = {
            n: stored[f"whole.{fold_of[n]}.{seed}"][f"{arm}/{n}"].astype(np.float32) for n in names
        }
    for arm, seed in product(SIMPLE, seeds):
        found[f"{arm} +", seed] = chosen(found[arm, seed], cells, fold_of)
    arms = [*SIMPLE, *(f"{arm} +" for arm in SIMPLE), "whole", "deprived", "placebo"]
    counts = {
        arm: np.array([sum(counts_of(found[arm, s][n], cells[n]) for s in seeds) for n in names])
        for arm in arms
    }
    rng = np.random.default_rng(0)
    draws = rng.integers(len(names), size=(2000, len(names)))
    best = max(arms[:-3], key=lambda arm: mean_iou(counts[arm].sum(axis=0)))
    facts = {s: json.loads(str(stored[s]["facts"])) for s in stored}
    if args.picture:
        draw(args, {arm: found[arm, seeds[0]] for arm in (best, "whole")}, cells)
    print(f"{len(names)} images, {len(set(fold_of.values()))} folds, seeds {seeds}, best: {best}\n")
    classes = SETS[args.data.name]["classes"]
    print(f"| arm | mIoU | by seed | {' | '.join(classes)} | against whole (95%) | s | GiB |")
    print("|---|--:|---|" + "--:|" * len(classes) + "---|--:|--:|")
    for arm in arms:
        total = counts[arm].sum(axis=0)
        hit = np.diag(total)
        each = hit / (total.sum(axis=0) + total.sum(axis=1) - hit)
        of_seed = [
            mean_iou(sum(counts_of(found[arm, s][n], cells[n]) for n in names)) for s in seeds
        ]
        gain = [
            mean_iou(counts["whole"][d].sum(axis=0)) - mean_iou(counts[arm][d].sum(axis=0))
            for d in draws
        ]
        low, high = np.nanpercentile(gain, [2.5, 97.5])
        own = [f for s, f in facts.items() if s.startswith(f"{arm}.")]
        cost = f"{np.mean([f['seconds'] for f in own]):.0f}" if own else ""
        peak = f"{np.mean([f['mib'] for f in own]) / 1024:.1f}" if own else ""
        gained = mean_iou(counts["whole"].sum(axis=0)) - mean_iou(total)
        print(
            f"| {arm} | {mean_iou(total):.1%} | {', '.join(f'{v:.1%}' for v in of_seed)} | "
            f"{' | '.join(f'{v:.1%}' for v in each)} | "
            f"{gained * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f}) | {cost} | {peak} |"
        )
    print("\nmIoU by distance to the border of another class, in cells:\n")
    near = {name: distance(cells[name]) for name in names}
    bins = ((1, 2), (2, 4), (4, 8), (8, np.inf))
    print(f"| arm | {' | '.join(f'{a} to {b}' for a, b in bins)} |\n|---|" + "--:|" * len(bins))
    for arm in (best, "window", "whole"):
        by = [
            mean_iou(sum(
                counts_of(found[arm, s][n], cells[n], (near[n] >= a) & (near[n] < b))
                for n in names for s in seeds
            ))
            for a, b in bins
        ]  # fmt: skip
        print(f"| {arm} | {' | '.join(f'{v:.1%}' for v in by)} |")


def draw(args: argparse.Namespace, maps: dict, cells: dict) -> None:
    """Draw the image at the median of the gain, its labels and the two maps."""
    import matplotlib.pyplot as plt

    facts = SETS[args.data.name]
    own, best = maps["whole"], next(iter(maps.values()))

    def right(logits: np.ndarray, name: str) -> float:
        known = cells[name] >= 0
        return float((logits.argmax(axis=0) == cells[name])[known].mean())

    # images with a class of at least a tenth beside the largest one
    shares = {n: np.bincount(c[c >= 0]) / (c >= 0).sum() for n, c in cells.items()}
    mixed = [n for n, share in shares.items() if (share > 0.1).sum() > 1]
    by_gain = sorted(mixed, key=lambda n: right(own[n], n) - right(best[n], n))
    name = by_gain[len(by_gain) // 2]
    pixels = read_images(args.data, facts)[name][0].permute(1, 2, 0).numpy()
    pixels = (pixels / np.percentile(pixels, 99) * 255).clip(0, 255).astype(np.uint8)
    colors = np.array(COLORS[: len(facts["classes"])], np.uint8)
    truth = np.where(cells[name][..., None] >= 0, colors[cells[name]], 225).astype(np.uint8)
    panels = {
        "image": pixels,
        "labels": truth,
        f"best without context: {right(best[name], name):.1%}": colors[best[name].argmax(axis=0)],
        f"with context: {right(own[name], name):.1%}": colors[own[name].argmax(axis=0)],
    }
    rows, cols = cells[name].shape
    figure, axes = plt.subplots(1, 4, figsize=(12, 3 * rows / cols + 0.9), layout="constrained")
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    marks = [plt.Rectangle((0, 0), 1, 1, color=color / 255) for color in colors]
    figure.legend(marks, facts["classes"], loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(args.picture, dpi=100)


def chosen(logits: dict, cells: dict, fold_of: dict) -> dict[str, np.ndarray]:
    """Smooth and vote as is best on the images of the other folds."""
    ways = list(product(WIDTHS, VOTES))
    made = {way: {n: changed(x, *way) for n, x in logits.items()} for way in ways}
    counts = {way: {n: counts_of(x, cells[n]) for n, x in made[way].items()} for way in ways}
    done = {}
    for fold in set(fold_of.values()):
        others = [n for n in logits if fold_of[n] != fold]
        way = max(ways, key=lambda way: mean_iou(sum(counts[way][n] for n in others)))
        done |= {n: made[way][n] for n in logits if fold_of[n] == fold}
    return done


def distance(cells: np.ndarray) -> np.ndarray:
    """Return how far every labeled cell is from one of another class."""
    away = np.full(cells.shape, np.inf)
    for k in np.unique(cells[cells >= 0]):
        is_other = (cells >= 0) & (cells != k)
        if is_other.any():
            away = np.where(cells == k, distance_transform_edt(~is_other), away)
    return away


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=TRAINED)
    parser.add_argument("--folds", nargs="+", type=int, default=range(5))
    parser.add_argument("--seeds", nargs="+", type=int, default=range(3))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=2, help="images of a step")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--linear-rate", type=float, default=1e-2)
    parser.add_argument("--factors", nargs="+", type=float, default=(1.0, 0.3, 3.0),
                        help="of the learning rate, to choose from")  # fmt: skip
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--picture", type=Path, help="picture to draw with the report")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    facts, tokens = SETS[args.data.name], args.out / "tokens.pt"
    if not tokens.exists():
        torch.save(encode(args.data, facts, args.weights), tokens)
    images = torch.load(tokens, weights_only=True)
    fold_of = folds_of(images, facts, 5)
    if args.report:
        report(args, images, fold_of)
        return
    for fold, arm, factor in product(args.folds, args.arms, args.factors):
        run(args, images, fold_of, (arm, fold, args.seeds[0], factor))
    rates = tuned(args, images, fold_of)
    for seed, fold, arm in product(args.seeds[1:], args.folds, args.arms):
        run(args, images, fold_of, (arm, fold, seed, rates[arm, fold]))


if __name__ == "__main__":
    main()
