"""Write the tables of docs/kernels.md: what compiled kernels need, and a roofline on paper.

python scripts/kernel_table.py                    # compiles everything: minutes
python scripts/kernel_table.py --records FILE     # output of `python -m atlas_kernels.compile`
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"

H100_BYTES_S = 3.35e12
H100_BF16_FLOP_S = 989e12
H100_FP32_FLOP_S = 67e12
H100_EXP_S = 132 * 16 * 1.755e9
"""Exponentials a second: 16 a clock on each of 132 multiprocessors at boost clock."""


def compile_all() -> str:
    """Return one JSON record a line, from a process that does not interpret kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "atlas_kernels.compile"],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def resource_table(records: str) -> str:
    """Return the table of registers, shared memory and spills."""
    lines = [
        "| kernel | shape | target | sizes | warps | registers | shared, bytes | spilled, bytes |",
        "|---|---|---|---|--:|--:|--:|--:|",
    ]
    columns = (
        "kernel", "shape", "target", "sizes", "warps", "registers", "shared_bytes", "spilled_bytes",
    )  # fmt: skip
    for record in map(json.loads, records.splitlines()):
        cells = " | ".join(str(record[c]) for c in columns)
        lines.append(f"| {cells} |".replace("_kernel ", " "))
    return "\n".join(lines)


def _row(name: str, n_bytes: float, flop: float, flop_s: float, exps: float) -> str:
    times = {
        "memory": n_bytes / H100_BYTES_S,
        "arithmetic": flop / flop_s,
        "exponentials": exps / H100_EXP_S,
    }
    limit = max(times, key=lambda k: times[k])
    micro = " | ".join(f"{1e6 * t:.0f}" for t in times.values())
    return f"| {name} | {n_bytes / 1e6:.0f} | {flop / 1e9:.1f} | {exps / 1e6:.0f} | {micro} | {limit} |"


def roofline_table() -> str:
    """Return bytes, operations and the least time on an H100, computed."""
    lines = [
        "| kernel and shape (bf16) | MB | GFLOP | Mexp | memory, us | arithmetic, us | exp, us | limit |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    scans = {
        "MambaVision-T, 512 windows of 196": (512, 160, 8, 196),
        "MambaVision-S, 2048 windows of 49": (2048, 384, 8, 49),
    }
    for name, (batch, channels, states, length) in scans.items():
        steps = batch * length * channels
        n_bytes = 2 * batch * length * (3 * channels + 2 * states)
        lines.append(_row(f"scan forward, {name}", n_bytes, 7 * steps * states, H100_FP32_FLOP_S,
                          steps * (states + 2)))  # fmt: skip
        saved = 4 * batch * -(-length // 7) * channels * states
        shares = 4 * 2 * batch * length * states * -(-channels // 32)
        n_bytes = 2 * batch * length * (2 * 2 * channels + 3 * channels + 3 * states)
        lines.append(_row(f"scan backward, {name}", n_bytes + saved + shares,
                          24 * steps * states, H100_FP32_FLOP_S,
                          steps * (2 * states + 5)))  # fmt: skip
    attentions = {
        "Atlas-B down, 4096 windows": (4096, 256, 256, 256, 256),
        "Atlas-B up, 4096 windows": (4096, 16, 256, 0, 0),
    }
    for name, (windows, tokens, keys, coarse_windows, coarse_keys) in attentions.items():
        heads, dim = 12, 64
        pairs = windows * heads * tokens * (keys + coarse_keys)
        entries = windows * (2 * tokens + 2 * keys) + coarse_windows * 2 * coarse_keys
        n_bytes = 2 * entries * heads * dim
        lines.append(
            _row(f"attention forward, {name}", n_bytes, 4 * pairs * dim, H100_BF16_FLOP_S, pairs)
        )
        # q, dout, kv read by both kernels; dq, dkv written
        entries = windows * (5 * tokens + 6 * keys) + coarse_windows * 6 * coarse_keys
        lines.append(_row(f"attention backward, {name}", 2 * entries * heads * dim,
                          14 * pairs * dim, H100_BF16_FLOP_S, 2 * pairs))  # fmt: skip
    return "\n".join(lines)


def replace_between(text: str, name: str, table: str) -> str:
    """Return the page with the table between its two marks."""
    start, stop = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, rest = text.split(start)
    return before + start + table + stop + rest.split(stop)[1]


def main() -> None:
    """Rewrite both tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path)
    given = parser.parse_args().records
    records = given.read_text() if given else compile_all()
    page = replace_between(PAGE.read_text(), "resources", resource_table(records))
    PAGE.write_text(replace_between(page, "roofline", roofline_table()))


if __name__ == "__main__":
    main()
