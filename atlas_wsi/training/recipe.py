"""What decides a training besides the data: the recipe, the model's description, the options."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atlas_wsi.errors import ArgumentError, OutputNotWritableError, ResultExistsError
from atlas_wsi.files import require_extra

if TYPE_CHECKING:
    import os

    from atlas_wsi.models.atlas import Backbone, Readout
    from atlas_wsi.models.model import Model
    from atlas_wsi.models.start import Start

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENCODER = "timm:"
_DIM_STEP = 32
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSpec:
    """What a model's card states besides what training measures."""

    name: str
    """Name of the model: letters, digits, ``.``, ``_`` and ``-``, at most 64."""
    domain: Literal["slide", "scene"] = "slide"
    """Stained tissue, or land."""
    mpp: float | None = None
    """Micrometers per pixel that the model sees; None for that of the tiles."""
    license: str = "unknown"
    """License of the weights."""
    data: str = ""
    """Training data and their license."""
    limits: str = ""
    """What the model must not be used for."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ArgumentError(
                f"'{self.name}' is not a valid model name: letters, digits, '.', '_' and '-', "
                "at most 64."
            )
        if self.mpp is not None and not 0 < self.mpp < float("inf"):
            raise ArgumentError(f"The resolution is {self.mpp:g}, expected a number above 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is trained; with the data it decides the weights."""

    backbone: Backbone | None = None
    """``"atlas"``, ``"mambavision"`` or ``"mambavision+msa"``; None for that of the initial
    weights, else ``"atlas"``."""
    encoder: str | None = None
    """A timm model under Multi-Scale Attention, such as ``"timm:resnet18"``."""
    freeze: bool = False
    """Whether the stem (the encoder, or that of the initial weights) stays as it is, its batch
    norms too."""
    dim: int | None = None
    """Channels of the tokens, a multiple of 32; None for those of the initial weights, else 128;
    with an encoder its own, but at most 256: principal components of its tokens."""
    depths: tuple[int, ...] | None = None
    """Blocks per stage; None for those of the initial weights, else (1, 2)."""
    n_scales: int | None = None
    """Scales with their own parameters; None for those of the initial weights, else 3."""
    readout: Readout | None = None
    """The score of a slide: ``"mean"`` of all tokens, or the heatmap's logits weighted by
    ``"attention"``; None for attention where slides are labeled, else the mean."""
    context: bool = True
    """Whether windows see the whole image through the coarser scales, or only themselves."""
    epochs: float = 30.0
    """Passes over the training data."""
    megapixels: float = 0.8
    """Megapixels per step, summed over all processes."""
    learning_rate: float = 1.5e-3
    """Highest learning rate; it warms up over 5% of the steps and falls as a cosine."""
    encoder_learning_rate: float | None = None
    """The same of the stem; None for that of the rest."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    precision: str = "auto"
    """``"auto"``, ``"float32"`` or ``"bfloat16"`` of the forward pass."""
    mosaics: float | None = None
    """Fraction of the steps that show mosaics of tiles, the others show single tiles, or annotated
    slides; None for 2/3 from random weights, 1/2 from pretrained ones, and 0 for annotated slides."""
    color_jitter: float | None = None
    """How strongly colors change; strong jitter keeps a model from relying on color. None for 1
    from random weights; from pretrained ones 0.6 for slides and 0.3 for scenes."""
    n_validations: int = 12
    """Validations of the averaged weights in all; a checkpoint is stored at each."""
    patience: int = 0
    """Validations without a lower loss after which training stops; 0 disables."""
    seed: int = 0
    """Decides split, weights, order, mosaics and augmentation."""

    def __post_init__(self) -> None:
        if self.dim is not None and (self.dim < _DIM_STEP or self.dim % _DIM_STEP):
            raise ArgumentError(f"dim is {self.dim}, expected a multiple of {_DIM_STEP}.")
        if self.encoder is not None and not self.encoder.startswith(_ENCODER):
            raise ArgumentError(f"The encoder is '{self.encoder}', expected {_ENCODER}NAME.")

    def suited(
        self,
        domain: Literal["slide", "scene"],
        *,
        is_pretrained: bool,
        in_place: bool = False,
        unit: str = "tiles",
    ) -> Recipe:
        """Choose what is left to choose, by the kind of images and of initial weights.

        Parameters
        ----------
        domain
            Stained tissue, or land.
        is_pretrained
            Whether the stem starts with weights of an earlier training.
        in_place
            Whether annotated slides are shown whole.
        unit
            What is labeled: ``"tiles"`` or ``"slides"``.

        Returns
        -------
        Recipe
            Without None for `mosaics`, `color_jitter` and `readout`.
        """
        mosaics = 0.0 if in_place else 1 / 2 if is_pretrained else 2 / 3
        jitter = {"slide": 0.6, "scene": 0.3}[domain] if is_pretrained else 1.0
        return replace(
            self,
            mosaics=mosaics if self.mosaics is None else self.mosaics,
            color_jitter=jitter if self.color_jitter is None else self.color_jitter,
            readout=self.readout or ("attention" if unit == "slides" else "mean"),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types.

        Returns
        -------
        dict
            By the names of the fields.
        """
        return asdict(self) | {"depths": None if self.depths is None else list(self.depths)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What is measured and written, and where the weights start."""

    test_fraction: float = 0.2
    """Fraction of the groups that the model is tested on."""
    validation_fraction: float = 0.0
    """Fraction of the other groups used to select weights and fit the temperature; 0 for none."""
    init: str | os.PathLike[str] | Model | Start | None = None
    """Initial weights: a model, its name or file, a published Atlas checkpoint or
    ``hf://owner/name@revision``; taken where they fit."""
    encoder_weights: str | os.PathLike[str] | None = None
    """Weights of the recipe's encoder: a file, or ``"none"`` for random ones; by default timm's
    pretrained ones."""
    features: str | os.PathLike[str] | None = None
    """Folder that keeps the tokens of a frozen stem on annotated slides for other trainings; None
    for a temporary one."""
    baselines: bool = True
    """Whether the linear reading of a pretrained stem and, if it is frozen, windows without context
    are fitted, too; the best on the validation part becomes the model."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored weights."""
    out: str | os.PathLike[str] | None = None
    """Model file to write (.safetensors), with its card and learning curve; a training that was
    stopped resumes from a checkpoint beside it. None writes nothing."""
    tensorboard: str | os.PathLike[str] | None = None
    """Folder for the event files of TensorBoard."""
    overwrite: bool = False
    """Whether an existing model file is replaced."""

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1 or not 0 <= self.validation_fraction < 1:
            raise ArgumentError("The fractions of the split must be between 0 and 1.")
        if self.out is not None and self.path.suffix != SUFFIX:
            raise ArgumentError(f"{self.out} must end in {SUFFIX}.")

    @property
    def path(self) -> Path:
        """The model file."""
        assert self.out is not None
        return Path(self.out)

    @property
    def checkpoint(self) -> Path | None:
        """The file that a training resumes from."""
        return None if self.out is None else self.path.with_suffix(".resume.pt")

    def check(self, recipe: Recipe, *, is_validated: bool | None = None) -> None:
        """Refuse what would fail after hours of training.

        Parameters
        ----------
        recipe
            How the model is to be trained.
        is_validated
            Whether there is a validation part; by default as `validation_fraction` says.

        Raises
        ------
        ValueError
            If the options contradict each other or the recipe.
        ResultExistsError
            If the model file exists and `overwrite` is false.
        OutputNotWritableError
            If the model file cannot be written, or tensorboard is not installed.
        """
        if is_validated is None:
            is_validated = self.validation_fraction > 0
        if recipe.patience and not is_validated:
            raise ArgumentError(
                "The patience needs a validation part: a validation fraction above 0."
            )
        if self.encoder_weights is not None and recipe.encoder is None:
            raise ArgumentError("The weights of an encoder need an encoder.")
        if self.features is not None and not recipe.freeze:
            raise ArgumentError("Tokens are stored of a frozen stem alone: freeze it.")
        if self.init is not None and recipe.encoder is not None:
            raise ArgumentError("Give an encoder or initial weights, not both.")
        if self.tensorboard is not None:
            require_extra("tensorboard", "train", to="Logging for TensorBoard")
        if self.out is not None:
            _check_output(self.path, overwrite=self.overwrite)


def _check_output(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ResultExistsError(f"{path} exists.", hint="Replace it with --overwrite.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.partial")
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the same training may do this
    except OSError as error:
        raise OutputNotWritableError(f"{path} cannot be written: {error.strerror}.") from error
