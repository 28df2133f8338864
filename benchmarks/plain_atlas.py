"""A plain implementation of Atlas: float32, NCHW, nothing folded, coarse keys repeated.

The reference of `encode.py`. It shares the weights of `atlas_wsi.models.Atlas` but none of its code:
square images, all windows valid, spatial alignment.
"""

# B images, G windows along a side, M tokens along the side of a window, T = M * M, C channels

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


class PlainAtlas:
    """The forward pass over the state dict of an `Atlas`."""

    def __init__(self, atlas) -> None:
        self.config = atlas.config
        self.w = {k: v.float() for k, v in atlas.state_dict().items()}

    def _bn(self, x, name, eps):
        w = self.w
        return F.batch_norm(
            x,
            w[f"{name}.running_mean"],
            w[f"{name}.running_var"],
            w[f"{name}.weight"],
            w[f"{name}.bias"],
            eps=eps,
        )

    def _norm(self, x, name, eps=1e-5):
        w = self.w
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def _linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def _conv(self, x, name, stride=1):
        bias = self.w.get(f"{name}.bias")
        return F.conv2d(x, self.w[f"{name}.weight"], bias, stride=stride, padding=1)

    def stem(self, x):
        x = F.relu(self._bn(self._conv(x, "stem.conv1", 2), "stem.bn1", 1e-4))
        x = F.relu(self._bn(self._conv(x, "stem.conv2", 2), "stem.bn2", 1e-4))
        for stage in (1, 2):
            for i in range(3):
                at = f"stem.stage{stage}.{i}"
                y = F.gelu(self._bn(self._conv(x, f"{at}.conv1"), f"{at}.bn1", 1e-5))
                x = x + self._bn(self._conv(y, f"{at}.conv2"), f"{at}.bn2", 1e-5)
            at = f"stem.down{stage}"
            x = self._norm(x.permute(0, 2, 3, 1), f"{at}.norm", 1e-6).permute(0, 3, 1, 2)
            x = self._conv(x.contiguous(), f"{at}.conv", 2)
        return x

    def _windows(self, x):
        b, c, n, _ = x.shape
        m = min(self.config.window, n)
        g = n // m
        x = x.view(b, c, g, m, g, m).permute(0, 2, 4, 3, 5, 1)
        return x.reshape(b * g * g, m * m, c), g, m

    def _map(self, x, g, m):
        c = x.shape[-1]
        x = x.view(-1, g, g, m, m, c).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, c, g * m, g * m)

    def _position(self, at, m):
        half = m // 2
        place = (torch.arange(m, dtype=torch.float32) - half) / half
        rows, cols = torch.meshgrid(place, place, indexing="ij")
        where = torch.stack([rows, cols], -1).view(-1, 2)
        hidden = F.relu(self._linear(where, f"{at}.position.fc1"))
        return self._linear(hidden, f"{at}.position.fc2")

    def _attend(self, x, kv, at):
        n, t, c = x.shape
        heads = self.config.heads
        q = self._linear(self._norm(x, f"{at}.norm_q"), f"{at}.q")
        q = q.view(n, t, heads, c // heads).transpose(1, 2)
        k, v = kv.view(n, -1, 2, heads, c // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(c // heads)).softmax(-1)
        x = x + self._linear((weights @ v).transpose(1, 2).reshape(n, t, c), f"{at}.proj")
        y = F.gelu(self._linear(self._norm(x, f"{at}.norm_mlp"), f"{at}.fc1"))
        return x + self._linear(y, f"{at}.fc2")

    def _kv(self, x, at):
        return self._linear(self._norm(x, f"{at}.norm_kv"), f"{at}.kv")

    def _block(self, xs, sizes, stage, block):
        r = self.config.ratio
        n_units = max(1, self.config.n_scales - stage)
        at = [f"stages.{stage}.{block}.scales.{min(s, n_units - 1)}" for s in range(len(xs))]
        xs = [x + self._position(at[s], sizes[s][1]) for s, x in enumerate(xs)]
        for s in range(len(xs) - 1):
            pooled = F.max_pool2d(self._map(xs[s], *sizes[s]), r)
            xs[s + 1] = xs[s + 1] + self._windows(pooled)[0]
        kvs = [None] * len(xs)
        for s in reversed(range(len(xs))):
            g = sizes[s][0]
            kv = [self._kv(xs[s], at[s])]
            for t in range(s + 1, len(xs)):
                gt = sizes[t][0]
                repeated = kvs[t].view(-1, gt, gt, *kvs[t].shape[1:])
                repeated = repeated.repeat_interleave(g // gt, 1).repeat_interleave(g // gt, 2)
                kv.append(repeated.flatten(0, 2))
            xs[s] = self._attend(xs[s], torch.cat(kv, 1), at[s])
            kvs[s] = self._kv(xs[s], at[s])
        for s in range(1, len(xs)):
            g, _m = sizes[s - 1]
            fine = self._map(xs[s], *sizes[s])
            side = fine.shape[-1] // g
            b, c = fine.shape[:2]
            q = fine.view(b, c, g, side, g, side).permute(0, 2, 4, 3, 5, 1)
            q = self._attend(q.reshape(-1, side * side, c), self._kv(xs[s - 1], at[s - 1]), at[s])
            xs[s] = self._windows(self._map(q, g, side))[0]
        return xs

    def __call__(self, x):
        maps = [self.stem(x)]
        while maps[-1].shape[-1] > self.config.window:
            maps.append(F.max_pool2d(maps[-1], self.config.ratio))
        xs, sizes = [], []
        for one in maps:
            tokens, g, m = self._windows(one)
            xs.append(tokens)
            sizes.append((g, m))
        for stage, depth in enumerate(self.config.depths):
            if stage and len(xs) > 1:
                xs, sizes = xs[1:], sizes[1:]
            for block in range(depth):
                xs = self._block(xs, sizes, stage, block)
        batch = len(x)
        tokens = [t.reshape(batch, -1, t.shape[-1]) for t in xs]
        pooled = self._norm(torch.cat(tokens, 1), "readout_norm").mean(1)
        return self._linear(self._norm(pooled, "fc_norm"), "fc")
