"""Training by processes of torchrun: they share every batch, and the result is that of one."""

# B images, C channels, Y rows, X columns

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)  # the first process measures while the others wait


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
        distributed.barrier()
    finally:
        # A model in DDP refers to itself, and holds threads that must not outlive the group.
        gc.collect()
        distributed.destroy_process_group()


def n_ranks() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def device() -> torch.device:
    """Return where this process trains."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def broadcast(value: T) -> T:
    """Give all processes what the first one has."""
    if n_ranks() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def total(value: torch.Tensor) -> torch.Tensor:
    """Add up what the processes have."""
    if n_ranks() == 1:
        return value
    value = value.detach().clone()
    distributed.all_reduce(value)
    return value


def shard(model: nn.Module) -> nn.Module:
    """Let the backward pass of a model average its gradients over the processes."""
    if n_ranks() == 1:
        return model
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm2d:
                setattr(parent, name, _SharedNorm.of(norm))
    return DistributedDataParallel(model, find_unused_parameters=True)  # scales change by step


def add_gradients(model: nn.Module) -> None:
    """Add up the gradients of the processes where the backward pass did not."""
    if n_ranks() == 1:
        return
    for weight in model.parameters():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        weight.grad = total(gradient)


def set_idle(model: nn.Module, *, idle: bool) -> None:
    """Set whether the images of the next step count."""
    for norm in model.modules():
        if isinstance(norm, _SharedNorm):
            norm.idle = idle


class _SharedNorm(nn.BatchNorm2d):
    """Batch norm with statistics over all processes; torch's own one needs GPUs."""

    idle = False

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> _SharedNorm:
        new = cls(norm.num_features, norm.eps, norm.momentum)
        new.weight, new.bias = norm.weight, norm.bias
        new.running_mean, new.running_var = norm.running_mean, norm.running_var
        new.num_batches_tracked = norm.num_batches_tracked
        return new.train(norm.training)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        if not self.training or self.momentum is None:  # None: measured alike by every process
            return super().forward(x_BCYX)
        with torch.autocast(x_BCYX.device.type, enabled=False):
            x = x_BCYX.to(torch.promote_types(x_BCYX.dtype, torch.float32))
            counts = 0.0 if self.idle else 1.0
            n = total(torch.tensor(counts * x.numel() / x.shape[1], device=x.device))
            mean = _Sum.apply(counts * _over_pixels(x)).div(n).to(x.dtype)
            centered = x - mean[:, None, None]
            var = _Sum.apply(counts * _over_pixels(centered.square())).div(n).to(x.dtype)
            with torch.no_grad():
                assert self.running_mean is not None
                assert self.running_var is not None
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / (n - 1), self.momentum)
            scale = self.weight * torch.rsqrt(var + self.eps)
            return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x_BCYX.dtype)


def _over_pixels(x_BCYX: torch.Tensor) -> torch.Tensor:
    return x_BCYX.sum(dim=(0, 2, 3), dtype=torch.float64)  # a million float32 lose 1e-3


class _Sum(torch.autograd.Function):
    """The sum over the processes, with a gradient."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return total(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return total(gradient)
