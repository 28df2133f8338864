"""Every entry of the autotuning tables computes the same, and the tuner takes the fastest."""

from __future__ import annotations

import pytest
import torch

from atlas_kernels import multiscale_window_attention, selective_scan, tuning
from atlas_kernels.selective_scan import kernel as scan
from atlas_kernels.window_attention import gpu


def attend(tokens=70, dim=24, implementation="triton"):
    make = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=make).requires_grad_()  # noqa: E731
    q, kv, coarse = normal(2, tokens, dim), normal(2, tokens, 2 * dim), normal(1, 33, 2 * dim)
    out = multiscale_window_attention(
        q, kv, [coarse], [torch.zeros(2, dtype=torch.long)], heads=1, implementation=implementation
    )
    out.square().sum().backward()
    return [out.detach(), q.grad, kv.grad, coarse.grad]


def do_scan(states, implementation="triton", channels=70):
    make = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=make)  # noqa: E731
    tensors = [
        normal(1, channels, 9),
        normal(1, channels, 9) * 0.5 - 1,
        -normal(channels, states).exp(),
        normal(1, states, 9),
        normal(1, states, 9),
    ]
    leaves = [t.requires_grad_() for t in tensors]
    y = selective_scan(*leaves, delta_softplus=True, implementation=implementation)
    y.square().sum().backward()
    return [y.detach(), *(t.grad for t in leaves)]


def assert_near(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=5e-6 * float(b.abs().max()), rtol=0)


@pytest.mark.parametrize("dim", [24, 40])
@pytest.mark.parametrize("at", [1, 2])
def test_every_tile_of_the_attention_computes_the_same(at, dim, monkeypatch):
    expected = attend(dim=dim, implementation="reference")
    # the interpreter takes the first; half types' tiles are tried in float32
    for entry_bytes in (2, 4):
        turned = {
            (name, 4): tuple((row[at:] or row[-1:]) for row in gpu.TILES[name, entry_bytes])
            for name in ("forward", "query_gradient", "key_gradient")
        }
        monkeypatch.setattr(gpu, "TILES", {**gpu.TILES, **turned})
        assert_near(attend(dim=dim), expected)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("states", "at"), [(s, i) for s in (8, 16) for i in range(len(scan.FORWARD[s]))]
)
def test_every_size_of_the_scan_computes_the_same(states, at, monkeypatch):
    monkeypatch.setitem(scan.FORWARD, states, scan.FORWARD[states][at:])
    assert_near(do_scan(states), do_scan(states, "reference"))


def test_tiles_are_no_larger_than_what_they_hold():
    for choice in gpu.tiles("forward", 2, 32, tokens=20, keys=7):
        assert dict(choice.constants)["BLOCK_Q"] <= 32
        assert dict(choice.constants)["BLOCK_K"] == 16
    assert len(gpu.tiles("forward", 2, 64, tokens=16, keys=16)) == 1  # the same twice is once


@pytest.mark.slow
def test_the_tuner_runs_every_choice_and_keeps_the_fastest(monkeypatch):
    """Through triton's own tuner, as on a GPU; only the clock is ours."""
    built = []
    original = tuning.tuned.__wrapped__

    def build(kernel, choices, key):
        tuner = original(kernel, choices, key)
        assert set(key) <= set(tuner.arg_names)
        seconds = iter(range(len(choices), 0, -1))  # each faster than the one before

        def clock(call, quantiles):
            call()
            return [float(next(seconds))] * len(quantiles)

        tuner.do_bench = clock
        built.append((tuner, choices))
        return tuner

    monkeypatch.setattr(tuning, "tuned", build)
    monkeypatch.setattr(tuning, "is_interpreted", lambda _: False)
    assert_near(attend(), attend(implementation="reference"))
    assert_near(do_scan(8), do_scan(8, "reference"))
    assert len(built) == 5  # attention and two gradients (own and coarse keys), the scan's forward
    for tuner, choices in built:
        last = choices[-1]
        assert tuner.best_config.all_kwargs()["num_warps"] == last.warps
        assert tuner.best_config.kwargs == dict(last.constants)
