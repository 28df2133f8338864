"""The history of a training: learning curve, TensorBoard, and the checkpoint to resume from."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atlas_wsi.errors import CheckpointMismatchError, OutputNotWritableError
from atlas_wsi.files import require_extra, write_csv, write_whole
from atlas_wsi.models.checkpoints import read_plain
from atlas_wsi.training import distributed

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

FIELDS = ("step", "learning_rate", "loss", "validation_loss", "validation_balanced_accuracy")


@dataclass(slots=True, kw_only=True)
class History:
    """The learning curve, with one row per validation."""

    rows: list[dict[str, float]] = field(default_factory=list)
    """Step, learning rate and losses of each validation; those of validation data if there are any."""
    tensorboard: str | os.PathLike[str] | None = None
    """Folder for the event files of TensorBoard; None for none."""
    _writer: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tensorboard is not None:
            require_extra("tensorboard", "train", to="Logging for TensorBoard")

    @contextmanager
    def logging(self, first: int) -> Iterator[None]:
        """Log to TensorBoard what is added meanwhile, from the first process only."""
        if self.tensorboard is None or distributed.rank() != 0:
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        try:
            writer = SummaryWriter(Path(self.tensorboard), purge_step=first + 1)
        except OSError as error:
            raise OutputNotWritableError(
                f"{self.tensorboard} cannot be written: {error.strerror}."
            ) from error
        self._writer = writer
        try:
            yield
        finally:
            self._writer = None
            writer.close()

    def log(self, step: int, **values: float) -> None:
        """Log figures of a step to TensorBoard; they are not in the table."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def add(self, row: dict[str, float]) -> None:
        """Add the row of a validation."""
        self.rows.append(row)
        step = int(row["step"])
        self.log(step, **{k: row[k] for k in FIELDS if k in row and k.startswith("validation")})
        if self._writer is not None:
            self._writer.flush()  # a kill must not lose what a checkpoint counts as done

    @property
    def best(self) -> dict[str, float]:
        """The row whose weights are selected: that of the lowest validation loss, else the last."""
        return self.rows[len(self.rows) - 1 - self.validations_since_best]

    def below(self, name: str) -> History:
        """Return an empty history for a part of the work."""
        return History(tensorboard=self.tensorboard and Path(self.tensorboard) / name)

    @property
    def validations_since_best(self) -> int:
        """Validations since the loss was lowest."""
        losses = [row["validation_loss"] for row in self.rows if "validation_loss" in row]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def write(self, path: Path) -> None:
        """Write the curve beside a model's file."""
        rows = ([row.get(key, "") for key in FIELDS] for row in self.rows)
        write_csv(path.with_suffix(".training.csv"), FIELDS, rows)
        self._draw(path.with_suffix(".training.png"))

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        checked = any("validation_loss" in row for row in self.rows)
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        left, *others = figure.subplots(1, 1 + checked, squeeze=False)[0]
        for key, color in (("loss", "#3c5488"), ("validation_loss", "#e64b35")):
            rows = [row for row in self.rows if key in row]
            steps = [row["step"] for row in rows]
            if rows:
                left.plot(
                    steps, [row[key] for row in rows], color=color, label=key.replace("_", " ")
                )
        key = "validation_balanced_accuracy"
        rows = [row for row in self.rows if key in row]
        for right in others:
            left.axvline(self.best["step"], color="#999999", linewidth=0.8, label="selected")
            right.plot([row["step"] for row in rows], [row[key] for row in rows], color="#e64b35")
            title = "balanced accuracy, validation"
            right.set(xlabel="step", title=title, ylim=(0, 1.02))
        left.set(xlabel="step", title="loss")
        left.legend(frameon=False)
        figure.savefig(path, dpi=110)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state that a training resumes from."""
    with write_whole(path) as partial:
        torch.save(state, partial)


def read_checkpoint(path: Path, *, recipe: dict[str, Any], tiles: int) -> dict[str, Any] | None:
    """Read what `write_checkpoint` wrote for the same training."""
    if not path.is_file():
        return None
    state = read_plain(path)
    if state.get("recipe") != recipe or state.get("tiles") != tiles:
        raise CheckpointMismatchError(
            f"{path} is of a training with other arguments or other data.",
            hint="Remove it to restart, or repeat the earlier arguments.",
        )
    return state
