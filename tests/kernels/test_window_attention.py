"""Multi-scale window attention: everyone who computes it against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_kernels import explain, multiscale_window_attention
from atlas_kernels.window_attention import batched, choose

# largest error allowed, as a share of the largest entry of what is compared
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}

WHO = ["torch", "triton"]


def make_inputs(
    windows=5, tokens=7, keys=9, dim=12, heads=2, coarse=((3, 11), (1, 6)), *,
    masks="random", dtype=torch.float32, seed=0,
):  # fmt: skip
    make = torch.Generator().manual_seed(seed)
    channels = dim * heads

    def normal(*shape):
        return torch.randn(*shape, generator=make).to(dtype)

    def mask(*shape):
        return torch.rand(*shape, generator=make) > 0.4 if masks == "random" else None

    return {
        "q": normal(windows, tokens, channels),
        "kv": normal(windows, keys, 2 * channels),
        "coarse_kv": [normal(m, k, 2 * channels) for m, k in coarse],
        "index": [torch.randint(m, (windows,), generator=make) for m, _ in coarse],
        "heads": heads,
        "valid": mask(windows, keys),
        "coarse_valid": [mask(m, k) for m, k in coarse],
    }


def run(inputs, implementation):
    q, kv = (inputs[k].detach().requires_grad_() for k in ("q", "kv"))
    coarse = [c.detach().requires_grad_() for c in inputs["coarse_kv"]]
    out = multiscale_window_attention(
        **{**inputs, "q": q, "kv": kv, "coarse_kv": coarse}, implementation=implementation
    )
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    out.backward(weight)
    grads = {f"dcoarse{s}": c.grad for s, c in enumerate(coarse)}
    return {"out": out.detach(), "dq": q.grad, "dkv": kv.grad, **grads}


def in_float64(inputs):
    def widen(value):
        if isinstance(value, list):
            return [widen(v) for v in value]
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if is_float else value

    return {name: widen(value) for name, value in inputs.items()}


def check(inputs, implementation, dtype=torch.float32):
    found = run(inputs, implementation)
    expected = run(in_float64(inputs), "reference")
    for name, value in found.items():
        assert value.dtype == dtype
        scale = expected[name].abs().max().clamp(min=1e-3)
        error = ((value.double() - expected[name]).abs().max() / scale).item()
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("implementation", WHO)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("masks", ["random", "none"])
def test_outputs_and_gradients_agree_with_float64(implementation, dtype, masks):
    check(make_inputs(dtype=dtype, masks=masks), implementation, dtype)


@pytest.mark.parametrize("implementation", WHO)
@pytest.mark.parametrize("size", [1, 17, 63, 70])
def test_sizes_that_are_no_multiple_of_a_tile_agree(implementation, size):
    check(make_inputs(3, size, size, 16, 1, coarse=((2, size),)), implementation)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", WHO)
@settings(max_examples=8)
@given(
    windows=st.integers(1, 5),
    tokens=st.integers(1, 36),
    keys=st.integers(1, 36),
    dim=st.integers(1, 20),
    heads=st.integers(1, 3),
    coarse=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40)), max_size=3),
    masks=st.sampled_from(["random", "none"]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_agrees_with_float64(
    implementation, windows, tokens, keys, dim, heads, coarse, masks, seed
):
    inputs = make_inputs(windows, tokens, keys, dim, heads, coarse, masks=masks, seed=seed)
    check(inputs, implementation)


@pytest.mark.parametrize("implementation", [*WHO, "reference"])
def test_a_window_that_sees_no_key_gives_zeros(implementation):
    inputs = make_inputs(4, coarse=((2, 6),))
    inputs["index"] = [torch.tensor([0, 1, 0, 1])]
    inputs["valid"][1] = False
    inputs["coarse_valid"][0][1] = False
    found = run(inputs, implementation)
    assert not found["out"][1].any()
    assert found["out"][0].any()
    assert not found["dq"][1].any()
    assert not found["dkv"][1].any()
    assert not found["dcoarse0"][1].any()
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("implementation", WHO)
def test_invalid_keys_are_never_read_into_the_result(implementation):
    inputs = make_inputs()
    before = run(inputs, implementation)["out"]
    inputs["kv"][~inputs["valid"]] = 1e4
    for keys, valid in zip(inputs["coarse_kv"], inputs["coarse_valid"], strict=True):
        keys[~valid] = 1e4
    torch.testing.assert_close(run(inputs, implementation)["out"], before)


@pytest.mark.parametrize("implementation", WHO)
def test_one_mask_of_several_scales_is_enough(implementation):
    inputs = make_inputs()
    inputs["valid"] = None
    inputs["coarse_valid"][1] = None
    check(inputs, implementation)


@pytest.mark.parametrize("implementation", WHO)
def test_strided_inputs_agree_with_float64(implementation):
    wide = make_inputs(6, 8, 10, 12, 2, coarse=((4, 22),))
    inputs = {
        **wide,
        "q": wide["q"][::2, 1:],
        "kv": wide["kv"][::2, ::2],
        "coarse_kv": [wide["coarse_kv"][0][::2, 1::3]],
        "index": [wide["index"][0][::2] % 2],
        "valid": wide["valid"][::2, ::2],
        "coarse_valid": [wide["coarse_valid"][0][::2, 1::3]],
    }
    assert not inputs["kv"].is_contiguous()
    check(inputs, implementation)


@pytest.mark.parametrize("implementation", WHO)
def test_many_windows_under_one_coarse_window_agree(implementation, monkeypatch):
    from atlas_kernels.window_attention import gpu

    monkeypatch.setattr(gpu, "SPLIT_WINDOWS", 2)  # the gradient of coarse keys is split
    check(make_inputs(9, 2, 2, 4, 1, coarse=((2, 3), (1, 2))), implementation)


@pytest.mark.parametrize("implementation", [*WHO, "reference"])
def test_no_windows_give_no_output(implementation):
    inputs = make_inputs(0, coarse=((2, 5),))
    out = multiscale_window_attention(**inputs, implementation=implementation)
    assert out.shape == (0, 7, 24)


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_gradients_are_those_of_finite_differences(implementation):
    inputs = in_float64(make_inputs(3, 2, 3, 2, 2, coarse=((2, 2),)))
    rest = {k: inputs[k] for k in ("index", "heads", "valid", "coarse_valid")}
    leaves = [inputs["q"], inputs["kv"], inputs["coarse_kv"][0]]
    assert torch.autograd.gradcheck(
        lambda q, kv, coarse: multiscale_window_attention(
            q, kv, [coarse], **rest, implementation=implementation
        ),
        [leaf.requires_grad_() for leaf in leaves],
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("masks", ["random", "none"])
def test_a_few_windows_at_a_time_agree_with_float64(dtype, masks, monkeypatch):
    monkeypatch.setattr(batched, "_BATCH_ENTRIES", 1)
    check(make_inputs(dtype=dtype, masks=masks), "torch", dtype)


def test_cutting_into_batches_does_not_change_the_result(monkeypatch):
    inputs = make_inputs(7)
    whole = run(inputs, "torch")
    monkeypatch.setattr(batched, "_BATCH_ENTRIES", 2 * (9 + 11 + 6) * 48)
    for name, value in run(inputs, "torch").items():
        torch.testing.assert_close(value, whole[name])


def test_the_choice_says_why():
    assert choose(torch.device("cpu"), torch.float32)[0] == "torch"
    assert choose(torch.device("cuda"), torch.bfloat16)[0] == "triton"
    assert choose(torch.device("cuda"), torch.float64)[0] == "torch"
    assert set(explain("cpu")) == {"selective_scan", "multiscale_window_attention"}


def test_shapes_that_do_not_fit_are_named():
    inputs = make_inputs()
    wrong = {
        "must be": {"kv": inputs["kv"][..., 1:]},
        "do not divide by 5 heads": {"heads": 5},
        "2 coarser scales, but 1 tables": {"index": inputs["index"][:1]},
        "validity": {"valid": inputs["valid"][:, 1:]},
        "table": {"index": [i[1:] for i in inputs["index"]]},
        "no window attention 'cuda'": {"implementation": "cuda"},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            multiscale_window_attention(**{**inputs, **change})
