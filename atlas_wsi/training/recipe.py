"""What decides a training run, beside the tiles."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_wsi.models.atlas import Backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What decides a training run, beside the tiles."""

    backbone: Backbone | None = None
    """What makes the tokens, and whether coarse scales lie over them; None for what the weights
    have that training starts from, else ``"atlas"``."""
    encoder: str | None = None
    """A network of timm under Multi-Scale Attention, such as ``"timm:resnet18"``; it decides the
    channels."""
    dim: int | None = None
    """Channels at stride 16; None for those of the start, else 128."""
    depths: tuple[int, ...] | None = None
    """Blocks a stage; None for those of the start, else (1, 2)."""
    n_scales: int | None = None
    """Scales with parameters of their own; None for those of the start, else 3."""
    epochs: float = 30.0
    """How often the pixels of the training tiles are seen."""
    megapixels: float = 0.8
    """Millions of pixels a step."""
    rate: float = 1.5e-3
    """Highest learning rate; it warms up over 5% of the steps and falls as a cosine."""
    decay: float = 0.05
    """Weight decay."""
    precision: str = "auto"
    """``"auto"``, ``"float32"`` or ``"bfloat16"`` of the forward pass."""
    singles: int = 3
    """Every how many steps single tiles are shown, mosaics at the others; 1 for tiles alone."""
    jitter: float = 1.0
    """How strongly colors change; strong jitter keeps a model from living off color."""
    checks: int = 12
    """How often in all the averaged weights are measured on the validation tiles and stored."""
    patience: int = 0
    """Checks without a lower validation loss after which training ends; 0 for never."""
    seed: int = 0
    """Decides weights, order, mosaics and augmentation."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self) | {"depths": None if self.depths is None else list(self.depths)}
