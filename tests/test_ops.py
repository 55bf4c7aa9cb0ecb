"""Tests of support/ops.py: whichever way device, dtype or grad mode choose, the formula's answer."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from support import ops
from support.ops import attend, group_norm


def on_gpu(*shape, dtype=torch.float32):
    """A tensor without numbers; like a GPU's it is not on the CPU, and ops.py asks no more."""
    return torch.empty(*shape, dtype=dtype, device="meta")


# ---------------------------------------------------------------------------------------------- attention

@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_by_hand_and_fused_agree_with_the_formula(dtype, atol, heads):
    """softmax(q k^T / sqrt(d)) v, with and without a mask, whichever kernel is chosen."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 8).to(dtype) for n in (5, 7, 7))
    mask = torch.rand(2, 1, 1, 7) > 0.3
    mask[..., 0] = True
    for hide in (None, mask):
        scores = q.double() @ k.double().transpose(-2, -1) / 8 ** 0.5
        scores = scores if hide is None else scores.masked_fill(~hide, -1e9)
        assert_close(attend(q, k, v, hide).double(), scores.softmax(-1) @ v.double(), atol=atol, rtol=0)


@pytest.mark.slow
def test_attention_by_hand_goes_through_large_scores_in_pieces():
    """Five heads of 1100 x 1100 are 24 MB, above 16: same answer and gradient as one softmax over all."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 5, 1100, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    sent = torch.randn(1, 5, 1100, 16)
    pieces = mock.Mock(side_effect=ops.attend_by_hand)
    with mock.patch("support.ops.attend_by_hand", pieces):
        got = attend(q, k, v)
    assert pieces.call_count == 2
    got.backward(sent.bfloat16())
    q2, k2, v2 = (part.detach().double().requires_grad_() for part in (q, k, v))
    want = (q2 @ k2.transpose(-2, -1) / 4).softmax(-1) @ v2
    want.backward(sent.double())
    for a, b in ((got, want), (q.grad, q2.grad), (k.grad, k2.grad), (v.grad, v2.grad)):
        assert (a.double() - b).norm() < 0.02 * b.norm()


def test_a_gpu_gets_queries_keys_and_values_it_can_fuse():
    """Fused kernels want a token's numbers side by side; a VAE's, (F,C,H,W) seen as (F,1,H*W,C), are copied,
    and nothing is where they lie so already."""
    frames = on_gpu(2, 8, 4, 4).flatten(2).transpose(1, 2)[:, None]                         # (F,1,H*W,C)
    heads = on_gpu(2, 16, 3, 8).transpose(1, 2)                                             # (B,heads,N,d)
    fused = mock.Mock(side_effect=F.scaled_dot_product_attention)
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", fused):
        attend(frames, frames, frames)
        attend(heads, heads, heads)
    first, second = (call.args for call in fused.call_args_list)
    assert frames.stride(-1) == 16 and all(part.stride(-1) == 1 for part in first)
    assert all(part is heads for part in second)


# -------------------------------------------------------------------------------------------- a VAE's layers

def test_on_a_gpu_a_norm_of_bfloat16_stays_in_it_where_no_gradient_is_asked():
    """Weights are float32, as under autocast: neither x nor the answer gets a float32 copy."""
    x, weight, bias = on_gpu(2, 8, 4, 4, dtype=torch.bfloat16), on_gpu(8), on_gpu(8)
    norm = mock.Mock(side_effect=F.group_norm)
    with torch.no_grad(), mock.patch("torch.nn.functional.group_norm", norm):
        assert group_norm(x, 2, weight, bias, 1e-6).dtype == torch.bfloat16
    given = [value.dtype for value in norm.call_args.args if torch.is_tensor(value)]
    assert given == [torch.bfloat16] * 3


# ------------------------------------------------------------------------------------ a transformer's layers

def test_in_bf16_the_exact_gelu_is_as_near_as_the_tanh_form():
    """A CPU computes GELU without tanh in bf16: against the tanh form in float64, rounding errs as much."""
    x = 2 * torch.randn(100_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    right = F.gelu(x.double(), approximate="tanh")
    exact = (ops.gelu(x).double() - right).abs().mean()
    tanh = (F.gelu(x, approximate="tanh").double() - right).abs().mean()
    assert exact < 1.15 * tanh < 0.002
    assert torch.equal(ops.gelu(x.float()), F.gelu(x.float(), approximate="tanh"))         # float32: as released


@pytest.mark.parametrize("rows", [1, 3])
def test_modulation_and_gate_are_the_formulas_however_they_are_computed(rows):
    """DiT 3.2: LN(x) (1 + scale) + shift, by one row or by several; x + gate f, with and without gradient."""
    torch.manual_seed(0)
    x, found = torch.randn(2, rows, 5, 8)
    shift, scale, gate = torch.randn(3, rows, 1, 8)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    assert_close(ops.modulated_norm(x, shift, scale), normal * (1 + scale) + shift)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert_close(ops.gated(x, gate, found), x + gate * found)
