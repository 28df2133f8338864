"""The linear layer of the models is torch's, however it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from atlas_wsi.models.linear import Linear, _has_onednn

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float64: 1e-12}


def make(dtype, *, bias=True):
    torch.manual_seed(0)
    layer = Linear(24, 40, bias=bias).to(dtype)
    plain = nn.Linear(24, 40, bias=bias).double()
    plain.load_state_dict(layer.state_dict())
    return layer, plain


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(24,), (5, 24), (3, 7, 24), (0, 24), (3, 0, 24)])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_every_type_and_shape_gives_what_torch_gives(bias, dtype, shape, needs_grad):
    layer, plain = make(dtype, bias=bias)
    x = torch.randn(shape).to(dtype)
    with torch.set_grad_enabled(needs_grad):
        found, bent = layer(x), layer.gelu(x)
    expected = plain(x.double())
    assert found.dtype == bent.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=0)
    expected = functional.gelu(expected)
    torch.testing.assert_close(bent.double(), expected, atol=TOLERANCE[dtype], rtol=0)


@torch.no_grad()
def test_strided_inputs_and_autocast_are_taken():
    layer, plain = make(torch.float32)
    x = torch.randn(6, 24, 9)
    expected = plain(x.mT.double())
    torch.testing.assert_close(layer(x.mT).double(), expected, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.mT)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=4e-2, rtol=0)


def test_gradients_flow():
    layer, _ = make(torch.float64)
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.gelu, (x,))


def test_onednn_is_asked_once_and_never_for_float64():
    assert not _has_onednn(torch.float64)
    assert _has_onednn(torch.float32) == torch.backends.mkldnn.is_available()
