"""Measure the Triton kernels on a GPU: time, bytes per second, and the share of the roofline.

    python benchmarks/gpu.py                # every kernel, forward and backward
    python benchmarks/gpu.py --dtype float32

Each kernel is compared with its float64 reference on this GPU first; one that differs is not timed.
Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import sys

import torch

from atlas_kernels import explain, multiscale_window_attention, selective_scan

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def scan_inputs(batch, channels, states, length, dtype):
    normal = lambda *shape: torch.randn(*shape, device="cuda")  # noqa: E731
    return {
        "u": normal(batch, length, channels).to(dtype).mT,
        "delta": (normal(batch, length, channels) * 0.5 - 2).to(dtype).mT,
        "A": -normal(channels, states).exp(),
        "B": normal(batch, states, length).to(dtype),
        "C": normal(batch, states, length).to(dtype),
        "D": normal(channels),
        "delta_bias": normal(channels),
        "delta_softplus": True,
    }


def attention_inputs(windows, tokens, keys, dim, heads, dtype):
    normal = lambda *shape: torch.randn(*shape, device="cuda").to(dtype)  # noqa: E731
    coarse = -(-windows // 16)
    return {
        "q": normal(windows, tokens, dim * heads),
        "kv": normal(windows, keys, 2 * dim * heads),
        "coarse_kv": [normal(coarse, keys, 2 * dim * heads)],
        "index": [torch.arange(windows, device="cuda") // 16],
        "heads": heads,
        "valid": torch.rand(windows, keys, device="cuda") > 0.1,
    }


def leaves_of(inputs):
    found = []
    for value in inputs.values():
        found += [t for t in (value if isinstance(value, list) else [value]) if is_leaf(t)]
    return found


def is_leaf(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def convert(inputs, dtype=None):
    def one(value):
        if isinstance(value, list):
            return [one(v) for v in value]
        if not is_leaf(value):
            return value
        return value.detach().to(dtype or value.dtype).requires_grad_()

    return {name: one(value) for name, value in inputs.items()}


def run(function, inputs, **options):
    out = function(**inputs, **options)
    generator = torch.Generator(device="cuda").manual_seed(0)
    weight = torch.randn(out.shape, generator=generator, device="cuda")
    out.backward(weight.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves_of(inputs))]


def is_right(function, inputs, dtype):
    found = run(function, convert(inputs), implementation="triton")
    exact = run(function, convert(inputs, torch.float64), implementation="reference")
    errors = [
        ((a.double() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(found, exact, strict=True)
    ]
    print(f"  largest error of outputs and gradients against float64: {max(errors):.1e}")
    return max(errors) <= TOLERANCE[dtype]


def milliseconds(call):
    for _ in range(5):
        call()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 20


def measure(function, inputs, n_bytes, others):
    for name in others:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            forward = milliseconds(lambda: function(**inputs, implementation=name))  # noqa: B023
        leaves = convert(inputs)

        def both():
            function(**leaves, implementation=name).sum().backward()  # noqa: B023

        total = milliseconds(both)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        rate = n_bytes / forward / 1e6
        print(
            f"  {name:9s} forward {forward:8.3f} ms ({rate:6.0f} GB/s of needed bytes), "
            f"with backward {total:8.3f} ms, peak {peak:6.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    dtype = getattr(torch, parser.parse_args().dtype)
    if not torch.cuda.is_available():
        sys.exit("No GPU found.")
    print(torch.cuda.get_device_name(), dtype, explain("cuda", dtype=dtype))
    right = True
    for name, shape in {
        "MambaVision-T, 512 windows, stride 16": (512, 160, 8, 196),
        "MambaVision-S, 2048 windows, stride 32": (2048, 384, 8, 49),
    }.items():
        print(f"selective_scan, {name}")
        if not is_right(selective_scan, scan_inputs(3, *shape[1:], dtype), dtype):
            right = False
            continue
        batch, channels, states, length = shape
        entries = batch * length * (3 * channels + 2 * states)
        others = ["triton", "torch"]
        if "mamba_ssm" in explain("cuda", dtype=dtype)["selective_scan"]:
            others.insert(1, "mamba_ssm")
        measure(selective_scan, scan_inputs(*shape, dtype), entries * dtype.itemsize, others)
    for name, shape in {
        "Atlas-B down, 4096 windows": (4096, 256, 256, 64, 12),
        "Atlas-B up, 4096 windows": (4096, 16, 256, 64, 12),
    }.items():
        print(f"multiscale_window_attention, {name}")
        few = attention_inputs(20, *shape[1:], dtype)
        if not is_right(multiscale_window_attention, few, dtype):
            right = False
            continue
        inputs = attention_inputs(*shape, dtype)
        windows, tokens, keys, dim, heads = shape
        entries = windows * (2 * tokens + 2 * keys) * dim * heads
        measure(multiscale_window_attention, inputs, entries * dtype.itemsize, ["triton", "torch"])
    sys.exit(0 if right else "A kernel is wrong on this GPU; it was not timed.")


if __name__ == "__main__":
    main()
