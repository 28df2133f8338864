"""The blocks of a MambaVision, written from the equations of arXiv 2407.08083."""

# B images, C channels, Y rows, X columns, N windows of all images, T tokens per window
# H heads, D channels per head (attention) or channels of the scan (mixer), S states of the scan

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from atlas_kernels import selective_scan
from atlas_wsi.models.linear import Linear

_STATES = 8


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with a residual."""

    def __init__(self, dim: int, layer_scale: float | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm1: nn.Module = nn.BatchNorm2d(dim, eps=1e-5)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2: nn.Module = nn.BatchNorm2d(dim, eps=1e-5)
        self.gamma = _layer_scale(dim, layer_scale)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return a map of the same shape."""
        y = functional.gelu(self.norm1(self.conv1(x_BCYX)), approximate="tanh")
        y = self.norm2(self.conv2(y))
        return x_BCYX + (y if self.gamma is None else self.gamma[:, None, None] * y)


class Attention(nn.Module):
    """Self-attention among the tokens of a window."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        n, t, c = x_NTC.shape
        q, k, v = self.qkv(x_NTC).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if x_NTC.device.type == "cpu" and x_NTC.dtype == torch.bfloat16:
            # torch's fused form takes twice as long where there is no AMX
            a_NHTD = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v
        else:
            a_NHTD = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(a_NHTD.transpose(1, 2).reshape(n, t, c))


class MambaMixer(nn.Module):
    """A selective scan over half of the channels beside a convolution of the others."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner, rank = dim // 2, math.ceil(dim / 16)
        self.in_proj = Linear(dim, dim, bias=False)
        self.x_proj = Linear(inner, rank + 2 * _STATES, bias=False)
        self.dt_proj = Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, _STATES + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(dim, dim, bias=False)
        self.conv1d_x = nn.Conv1d(inner, inner, 3, groups=inner, bias=False)
        self.conv1d_z = nn.Conv1d(inner, inner, 3, groups=inner, bias=False)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        a_NTD, z_NTD = self.in_proj(x_NTC).chunk(2, dim=-1)
        a_NTD = functional.silu(_along_tokens(a_NTD, self.conv1d_x.weight))
        z_NTD = functional.silu(_along_tokens(z_NTD, self.conv1d_z.weight))
        sizes = [self.dt_proj.in_features, _STATES, _STATES]
        dt, B_NTS, C_NTS = self.x_proj(a_NTD).split(sizes, dim=-1)
        delta_NTD = self.dt_proj(dt)
        y_NDT = selective_scan(
            a_NTD.mT,
            delta_NTD.mT,
            -self.A_log.float().exp(),
            B_NTS.mT,
            C_NTS.mT,
            self.D.float(),
            delta_bias=self.dt_proj.bias.float(),  # a second time: so it was published
            delta_softplus=True,
        )
        return self.out_proj(torch.cat([y_NDT.mT, z_NTD], dim=-1))


class Mlp(nn.Module):
    """Two linear layers with an erf GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        return self.fc2(self.fc1.gelu(x_NTC))


class WindowBlock(nn.Module):
    """A mixer (scan or attention) and an MLP, each with norm and residual."""

    def __init__(
        self, dim: int, mixer: nn.Module, *, mlp_ratio: float, layer_scale: float | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.gamma_1 = _layer_scale(dim, layer_scale)
        self.gamma_2 = _layer_scale(dim, layer_scale)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        y = self.mixer(self.norm1(x_NTC))
        x_NTC = x_NTC + (y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x_NTC))
        return x_NTC + (y if self.gamma_2 is None else self.gamma_2 * y)


def initialize(module: nn.Module) -> None:
    """Draw the weights of a linear layer or of a mixer's step sizes."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, MambaMixer):
        # steps between 0.001 and 0.1, as in arXiv 2312.00752, section 3.6
        reach = module.dt_proj.in_features**-0.5
        nn.init.uniform_(module.dt_proj.weight, -reach, reach)
        low, high = math.log(0.001), math.log(0.1)
        dt = torch.empty_like(module.dt_proj.bias).uniform_(low, high).exp().clamp(min=1e-4)
        with torch.no_grad():
            module.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))


def _along_tokens(x_NTD: torch.Tensor, weight_D13: torch.Tensor) -> torch.Tensor:
    """Convolve each channel along the tokens; three products, with channels last."""
    before, at, after = weight_D13[:, 0].to(x_NTD.dtype).unbind(dim=1)
    x = functional.pad(x_NTD, (0, 0, 1, 1))
    y = x[:, 1:-1] * at
    return torch.addcmul(torch.addcmul(y, x[:, :-2], before), x[:, 2:], after)


def _layer_scale(dim: int, start: float | None) -> nn.Parameter | None:
    return None if start is None else nn.Parameter(torch.full((dim,), float(start)))
