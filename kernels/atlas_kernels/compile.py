"""Compile the Triton kernels ahead of time, without a GPU, and read what they need of one.

`python -m atlas_kernels.compile` prints one JSON record a kernel, shape and target. It must run in
a process of its own, without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
"""A100, H100 and MI300."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A kernel with the arguments of one launch."""

    kernel: Any
    """A function under ``@triton.jit``."""
    shape: str
    """What the launch is for, for people."""
    types: Mapping[str, str]
    """Type of each tensor, such as ``*bf16``, and of each float."""
    integers: Mapping[str, int]
    """Value of each integer argument; what is 1 or divisible by 16 is compiled in, as at run time."""
    constants: Mapping[str, Any]
    """Value of each ``tl.constexpr``."""
    num_warps: int


def compile_launch(launch: Launch, target: str) -> dict[str, Any]:
    """Compile a kernel for a target, and return what it needs: registers and spills per thread."""
    names = list(launch.kernel.arg_names)
    ones = {name: 1 for name, value in launch.integers.items() if value == 1}
    constants = {**launch.constants, **ones}
    signature = {
        **launch.types,
        **dict.fromkeys(launch.integers, "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    aligned = [
        *(name for name, kind in launch.types.items() if kind.startswith("*")),
        *(name for name, value in launch.integers.items() if value % 16 == 0),
    ]
    source = ASTSource(
        fn=launch.kernel,
        signature={name: signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": launch.num_warps, "num_stages": 2}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    is_cuda = TARGETS[target].backend == "cuda"
    binary = compiled.asm["cubin" if is_cuda else "hsaco"]
    registers, spilled = _read_cubin(binary) if is_cuda else _read_amdgcn(compiled.asm["amdgcn"])
    sizes = [launch.constants.get(n) for n in ("BLOCK_Q", "BLOCK_K", "CHANNELS")]
    return {
        "kernel": launch.kernel.__name__,
        "shape": launch.shape,
        "target": target,
        "sizes": " x ".join(str(size) for size in sizes if size is not None),
        "warps": launch.num_warps,
        "registers": registers,
        "shared_bytes": compiled.metadata.shared,
        "spilled_bytes": spilled,
        "code_bytes": len(binary),
    }


def _read_cubin(binary: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        said = subprocess.run(
            [tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True
        ).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _read_amdgcn(text: str) -> tuple[int, int]:
    found = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)", text)}
    return found["vgpr_count"], found["private_segment_fixed_size"]


def launches() -> Iterator[Launch]:
    """Yield every kernel at the shapes of published and shipped models."""
    from atlas_kernels.selective_scan.launches import scan_launches
    from atlas_kernels.window_attention.launches import attention_launches

    yield from scan_launches()
    yield from attention_launches()


def main() -> None:
    """Print one JSON record a kernel, shape and target; arguments pick shapes by their names."""
    triton.knobs.compilation.disable_line_info = True
    for launch in launches():
        if sys.argv[1:] and launch.shape not in sys.argv[1:]:
            continue
        for target in TARGETS:
            sys.stdout.write(json.dumps(compile_launch(launch, target)) + "\n")


if __name__ == "__main__":
    main()
