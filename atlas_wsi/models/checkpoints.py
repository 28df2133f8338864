"""The only reader of weights: safe, and exact about names and shapes."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from atlas_wsi.errors import CheckpointMismatchError, UnknownModelError, UntrustedWeightsError
from atlas_wsi.files import BoundedFile

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import nn

_MAX_METADATA_BYTES = 8 * 2**20
_PREFIXES = ("module.", "_orig_mod.")

# published training checkpoints carry their arguments as this mapping
_STAND_INS: list[Any] = [(OrderedDict, "easydict.EasyDict")]


# What torch.load raises for damaged files; OverflowError and TypeError from counts and types
_DAMAGED = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError),
    *(AttributeError, ArithmeticError, AssertionError, zipfile.BadZipFile),
)


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read tensors by name from safetensors or from a torch file with a state dict."""
    path = Path(path)
    if not path.is_file():
        raise UnknownModelError(f"There is no file of weights at {path}.")
    if is_safetensors(path):
        return read_safetensors(path)[0]
    return tensors_of(read_plain(path), path)


def tensors_of(found: Any, path: Path) -> dict[str, torch.Tensor]:
    """Take the state dict out of what a torch file holds."""
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    state = {
        str(name): value
        for name, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, torch.Tensor)
    }
    if not state:
        raise CheckpointMismatchError(f"{path} holds no tensors by name.")
    return state


def read_plain(path: Path) -> Any:
    """Read a torch file that holds tensors and plain containers only."""
    try:
        with torch.serialization.safe_globals(_STAND_INS), BoundedFile(path) as file:
            if not file.peek(2).startswith((b"PK", b"\x80")):  # a zip file, or a bare pickle
                raise CheckpointMismatchError(f"{path} is neither safetensors nor a torch file.")
            _refuse_packed(file, path)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UntrustedWeightsError(
            f"{path} contains more than tensors and was not loaded.",
            hint="Convert it to safetensors where you trust it.",
        ) from error
    except (*_DAMAGED, SafetensorError) as error:
        raise CheckpointMismatchError(f"{path} is not a readable checkpoint: {error}") from error


def _refuse_packed(file: BoundedFile, path: Path) -> None:
    """Refuse compressed members: torch writes none, and a small one may grow to gigabytes."""
    if file.peek(2).startswith(b"PK"):
        with zipfile.ZipFile(file) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise CheckpointMismatchError(
                    f"{path} has compressed members, which torch does not write.",
                    hint="Load it where you trust it, and save it again with torch.save.",
                )
        file.seek(0)


def is_safetensors(path: Path) -> bool:
    """Tell whether a file starts like safetensors."""
    with path.open("rb") as file:
        head = file.read(9)
    size = path.stat().st_size
    return len(head) == 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < size


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors and metadata from a safetensors file."""
    metadata = read_metadata(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointMismatchError(f"{path} is not a readable model: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read what a safetensors file says beside its tensors."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointMismatchError(f"{path} is not a readable model: {error}") from error
    if sum(len(v) for v in metadata.values()) > _MAX_METADATA_BYTES:
        raise CheckpointMismatchError(f"{path} carries more than 8 MiB of metadata.")
    return metadata


def strip_prefixes(name: str) -> str:
    """Take off what training wrappers put before a parameter's name."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of weights that lie in no file, and of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


_STEM_NAMES = (
    (r"conv0\.0\.", "conv1."),
    (r"conv0\.1\.", "bn1."),
    (r"conv0\.3\.", "conv2."),
    (r"conv0\.4\.", "bn2."),
    (r"conv([12])\.(\d+)\.conv_block([12])\.0\.", r"stage\1.\2.conv\3."),
    (r"conv([12])\.(\d+)\.conv_block([12])\.1\.", r"stage\1.\2.bn\3."),
    (r"ds([12])\.", r"down\1."),
)
_UNIT_NAMES = (
    ("attn.", ""),
    ("norm1_q.", "norm_q."),
    ("norm1_kv.", "norm_kv."),
    ("norm2.", "norm_mlp."),
    ("mlp.", ""),
)


def rename_published(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Give the weights of a published Atlas our names; return the names that it does not have."""
    out: dict[str, torch.Tensor] = {}
    unknown = []
    for published, value in state.items():
        new = _rename(strip_prefixes(published))
        if new is None:
            unknown.append(published)
        elif new:
            out[new] = value
    return out, unknown


def _rename(name: str) -> str | None:
    if name.split(".")[0] in ("readout_norm", "fc_norm", "fc"):
        return name
    if re.match(r"atlas_models\.\d+\.(norm|head)\.", name):
        return ""
    if stem := re.match(r"atlas_models\.0\.patch_embed\.(.+)", name):
        for pattern, new in _STEM_NAMES:
            if re.match(pattern, stem[1]):
                return "stem." + re.sub("^" + pattern, new, stem[1])
        return None
    unit = re.match(
        r"atlas_models\.(\d+)\.levels\.0\.blocks\.(\d+)\.(blocks|posemb)\.(\d+)\.(.+)", name
    )
    if not unit:
        return None
    stage, block, kind, scale, rest = unit.groups()
    if kind == "posemb":
        rest = rest.replace("projector.0.", "position.fc1.").replace(
            "projector.2.", "position.fc2."
        )
    for old, new in _UNIT_NAMES:
        if rest.startswith(old):
            rest = new + rest.removeprefix(old)
    return f"stages.{stage}.{block}.scales.{scale}.{rest}"


def load_exactly(model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Copy weights into a model; every name and shape must fit."""
    own = model.state_dict()
    for name, value in own.items():
        if name not in state:
            if name.endswith("num_batches_tracked"):
                continue
            raise CheckpointMismatchError(f"{source}: '{name}' {tuple(value.shape)} is missing.")
        if state[name].shape != value.shape:
            raise CheckpointMismatchError(
                f"{source}: '{name}' has the shape {tuple(state[name].shape)}, "
                f"expected {tuple(value.shape)}."
            )
    for name in state:
        if name not in own:
            raise CheckpointMismatchError(f"{source}: '{name}' is not part of the model.")
    model.load_state_dict(dict(state), strict=False)
