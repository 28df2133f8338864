"""Write the tables of docs/kernels.md and the CSV of what every compiled kernel needs.

python scripts/kernel_table.py                    # compiles everything: minutes
python scripts/kernel_table.py --records FILE     # output of `python -m atlas_kernels.compile`
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "kernels.md"
RESOURCES = ROOT / "benchmarks" / "kernel_resources.csv"
COLUMNS = (
    "kernel", "shape", "target", "sizes", "warps", "registers", "shared_bytes", "spilled_bytes",
)  # fmt: skip

H100_BYTES_S = 3.35e12
H100_BF16_FLOP_S = 989e12
H100_FP32_FLOP_S = 67e12
H100_EXP_S = 132 * 16 * 1.755e9
"""Exponentials per second: 16 per clock on each of 132 multiprocessors at boost clock."""


def compile_all() -> str:
    """Return one JSON record per line, from a process that does not interpret kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "atlas_kernels.compile"],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def write_resources(records: str) -> None:
    """Write registers, shared memory and spills of every entry of the tuning tables."""
    with RESOURCES.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for record in map(json.loads, records.splitlines()):
            table.writerow(
                [record["kernel"].replace("_kernel", ""), *(record[c] for c in COLUMNS[1:])]
            )


def resource_table() -> str:
    """Summarize the CSV: one row per kernel and target."""
    with RESOURCES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| kernel | target | variants | registers | shared memory, bytes, at most | spilled |",
        "|---|---|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["kernel"], row["target"]), []).append(row)
    for (kernel, target), entries in groups.items():
        registers = [int(e["registers"]) for e in entries]
        shared, spilled = (max(int(e[c]) for e in entries) for c in COLUMNS[-2:])
        lines.append(
            f"| {kernel} | {target} | {len(entries)} | {min(registers)}-{max(registers)} "
            f"| {shared} | {spilled} |"
        )
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
    """Compute bytes, operations and the lower bound of the time on an H100."""
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
    """Replace the table between its two marks."""
    start, stop = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, rest = text.split(start)
    return before + start + table + stop + rest.split(stop)[1]


def main() -> None:
    """Rewrite the CSV and both tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path)
    given = parser.parse_args().records
    write_resources(given.read_text() if given else compile_all())
    page = replace_between(PAGE.read_text(), "resources", resource_table())
    PAGE.write_text(replace_between(page, "roofline", roofline_table()))


if __name__ == "__main__":
    main()
