"""The selective scan: everyone who computes it against the plain loop in float64."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from atlas_kernels import selective_scan
from atlas_kernels.selective_scan import choose

GOLDEN = Path(__file__).parents[1] / "golden" / "mambavision"

# largest error allowed, as a share of the largest entry of what is compared
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

FLOAT32 = ["torch", "numba", "triton"]


def make_inputs(batch, channels, states, length, *, dtype=torch.float32, seed=0, strided=False):
    make = torch.Generator().manual_seed(seed)

    def normal(*shape):
        if strided:  # every second element of a transposed tensor
            wide = torch.randn(*shape[::-1], 2, generator=make)
            return wide.permute(*range(len(shape) - 1, -1, -1), len(shape))[..., 1]
        return torch.randn(*shape, generator=make)

    inputs = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length) * 0.5 - 1,
        "A": -normal(channels, states).exp(),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }
    return {
        name: t.to(dtype if name in ("u", "delta", "B", "C", "z") else max_float32(dtype))
        for name, t in inputs.items()
    }


def max_float32(dtype):
    return dtype if dtype == torch.float64 else torch.float32


def run(inputs, implementation, *, softplus=True, names=None):
    names = names or list(inputs)
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items() if k in names}
    y = selective_scan(**leaves, delta_softplus=softplus, implementation=implementation)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    y.backward(weight)
    return {"y": y.detach(), **{f"d{k}": v.grad for k, v in leaves.items()}}


def check(inputs, implementation, dtype, **options):
    found = run(inputs, implementation, **options)
    expected = run({k: v.double() for k, v in inputs.items()}, "reference", **options)
    for name, value in found.items():
        assert value.shape == expected[name].shape
        assert value.dtype == (inputs | {"y": inputs["u"]})[name.removeprefix("d") if name not in inputs else name].dtype  # fmt: skip
        scale = expected[name].abs().max().clamp(min=1e-30)
        error = ((value.double() - expected[name]).abs().max() / scale).item()
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scan_op_b2_d24_n8_L196", "scan_op_b3_d20_n8_L49"])
@pytest.mark.parametrize("implementation", [*FLOAT32, "reference", None])
def test_published_vectors_are_reproduced(name, implementation):
    s = load_file(GOLDEN / f"{name}.safetensors")
    y = selective_scan(
        s["u"], s["delta"], s["A"], s["B"], s["C"], s["D"], delta_bias=s["delta_bias"],
        delta_softplus=True, implementation=implementation,
    )  # fmt: skip
    torch.testing.assert_close(y, s["y"], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", FLOAT32)
@pytest.mark.parametrize("length", [1, 17, 63])
@pytest.mark.parametrize("states", [8, 16])
def test_odd_lengths_agree_with_float64(implementation, length, states):
    check(make_inputs(2, 20, states, length), implementation, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", FLOAT32)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_agree_with_float64(implementation, dtype):
    check(make_inputs(2, 33, 8, 29, dtype=dtype), implementation, dtype)


@pytest.mark.parametrize("implementation", FLOAT32)
def test_strided_inputs_agree_with_float64(implementation):
    inputs = make_inputs(3, 19, 8, 21, strided=True)
    assert not inputs["u"].is_contiguous()
    assert not inputs["B"].is_contiguous()
    check(inputs, implementation, torch.float32)


@pytest.mark.parametrize("implementation", FLOAT32)
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_optional_inputs_may_be_left_out(implementation, softplus, absent):
    inputs = make_inputs(1, 6, 8, 9)
    inputs["delta"] = inputs["delta"].abs() + 1.5 if not softplus else inputs["delta"]
    names = [k for k in inputs if k not in absent]
    check(inputs, implementation, torch.float32, softplus=softplus, names=names)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", FLOAT32)
@settings(max_examples=12)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 40),
    states=st.integers(1, 17),
    length=st.integers(1, 31),
    seed=st.integers(0, 2**16),
)
def test_any_shape_agrees_with_float64(implementation, batch, channels, states, length, seed):
    check(make_inputs(batch, channels, states, length, seed=seed), implementation, torch.float32)


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_gradients_are_those_of_finite_differences(implementation):
    inputs = make_inputs(2, 3, 2, 11, dtype=torch.float64)
    leaves = [inputs[k].requires_grad_() for k in ("u", "delta", "A", "B", "C", "D", "z")]
    bias = inputs["delta_bias"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *t: selective_scan(*t, delta_softplus=True, implementation=implementation),
        (*leaves, bias),
    )


@pytest.mark.parametrize("implementation", [*FLOAT32, "reference"])
@pytest.mark.parametrize("shape", [(0, 4, 8, 5), (2, 4, 8, 0)])
def test_nothing_in_gives_nothing_out(implementation, shape):
    found = run(make_inputs(*shape), implementation)
    assert found["y"].numel() == 0
    assert found["dA"] is None or not found["dA"].any()


@pytest.mark.parametrize("implementation", FLOAT32)
def test_extreme_steps_stay_finite(implementation):
    inputs = make_inputs(1, 4, 8, 12)
    inputs["delta"] = inputs["delta"] * 200
    inputs["A"] = inputs["A"] * 100
    found = run(inputs, implementation)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_threads_do_not_change_the_result(implementation):
    inputs = make_inputs(7, 40, 8, 30)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(inputs, implementation)
        torch.set_num_threads(3)
        three = run(inputs, implementation)
    finally:
        torch.set_num_threads(threads)
    for name, value in one.items():
        torch.testing.assert_close(value, three[name], atol=0, rtol=1e-5)


def test_the_choice_says_why():
    assert choose(torch.device("cpu"), torch.float32)[0] == "numba"
    assert choose(torch.device("cpu"), torch.float64)[0] == "torch"
    installed = importlib.util.find_spec("mamba_ssm") is not None
    name, why = choose(torch.device("cuda"), torch.bfloat16)
    assert name == ("mamba_ssm" if installed else "triton")
    assert why


if importlib.util.find_spec("mamba_ssm") is not None and torch.cuda.is_available():

    @pytest.mark.gpu
    @pytest.mark.parametrize("states", [8, 16])
    def test_mamba_ssm_agrees_with_float64(states):
        inputs = {k: v.cuda() for k, v in make_inputs(2, 32, states, 49).items()}
        check(inputs, "mamba_ssm", torch.float32)


def test_shapes_that_do_not_fit_are_named():
    inputs = make_inputs(2, 4, 8, 5)
    with pytest.raises(ValueError, match=r"B has the shape \(2, 7, 5\), expected \(2, 8, 5\)"):
        selective_scan(**{**inputs, "B": inputs["B"][:, 1:]})
    with pytest.raises(ValueError, match="no selective scan 'cuda'"):
        selective_scan(**inputs, implementation="cuda")
    with pytest.raises(ValueError, match="u must be"):
        selective_scan(**{**inputs, "u": inputs["u"][0]})
