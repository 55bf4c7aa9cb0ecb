"""ops.py - one name for an operation, where device, dtype or grad mode chooses how it is computed.

Each choice stands beside the figure that made it. The lessons call these names and show the arithmetic."""

import torch
import torch.nn.functional as F
import torch.utils.checkpoint


# ------------------------------------------------------------------------------------------ which device

def best_device():
    """The kind of device to compute on: CUDA's, Apple's (mps), or the CPU.

    Apple's is untried: nobody has run this code on one. It has no float64, so the tables of DDPM stay on the
    CPU (DDPM.to), and computes in float32 here; eval.py, whose distances are float64, stays on the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


# ---------------------------------------------------------------- mixed precision, attention, checkpointing

# bf16 is float32 cut to 16 bits: the range stays, and of 24 bits of mantissa 8 are left. A GPU multiplies it
# many times as fast (from Ampere on: not a T4, not a V100), and so does a CPU that has instructions for it
# (AMX: six times). One that has none converts number by number: with AVX2 alone a product of 1024 x 1024
# takes 80 times as long as in float32, and an hour of training ten. Nobody sees why, so it is asked here,
# before anything is cast.

def has_bf16(device):
    """Whether this device multiplies in bfloat16; where not, float32 is faster."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return kind != "mps"                                # untried there
    able = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(
        able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))     # x86, x86, ARM, ARM


# A fused kernel never writes the N x N scores to memory: it walks over k and v in tiles and keeps a running
# maximum and sum of the softmax. That is a question of memory traffic, which a GPU lacks and a cache has.

def attend(q, k, v, mask=None):
    """softmax(q k^T / sqrt(d)) v for q, k, v (B,heads,N,d); mask (B,heads,N,N) is True where q may attend.

    A GPU always wants the fused kernel. So does a CPU, but in two cases, as long as the N x N scores fit the
    cache: where a gradient is asked in half precision, products by hand take half the time (for 16 frames a
    seventh); and of a single head, which is a VAE's, the shipped weights were made by hand, and the two ways
    differ in the last digit."""
    if q.device.type != "cpu":
        # A GPU's fused kernels want each token's d numbers side by side. A VAE's lie H*W apart: torch would
        # fall back to the formula for them, and keep N x N scores.
        q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    learns_in_half = v.element_size() == 2 and torch.is_grad_enabled()
    heads = q.shape[1]
    if k.shape[2] >= 2048 or not (learns_in_half or heads == 1):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # In pieces of at most 16 MB of scores in float32. The C library asks the system anew for each array above
    # 32 MB, and gets it page by page, filled with zeros: 12 heads of 1,178 tokens took half as long again.
    rows = 2 ** 24 // (4 * q.shape[2] * k.shape[2])                         # of scores, in a piece
    if rows < len(q) * heads and mask is None:
        parts = zip(*(part.flatten(0, 1).split(max(1, rows)) for part in (q, k, v)))
        return torch.cat([attend_by_hand(*part) for part in parts]).unflatten(0, (-1, heads))
    return attend_by_hand(q, k, v, mask)


def attend_by_hand(q, k, v, mask=None):
    """The formula as it stands. In half precision q is scaled, where there are N x d numbers, not N x N."""
    scale = q.shape[-1] ** -0.5
    if v.element_size() == 2:
        scores = (q * scale) @ k.transpose(-2, -1)                          # (..,N,N)
    else:
        scores = q @ k.transpose(-2, -1) * scale                            # (..,N,N)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v                                       # (..,N,d)


# Gradient checkpointing. Backward needs what forward computed: for every layer its input. In a clip of 24,576
# tokens that is most of a GPU's memory, and the weights are the least of it. Arithmetic is cheaper than
# memory here, so the inputs of whole blocks are kept, and what is inside of a block is computed a second time
# when its turn comes.

def run_block(block, save_memory, *inputs):
    """block(*inputs). save_memory keeps the inputs only and runs the block again in the backward pass:
    a third more compute, and a clip of 96 x 512 x 512 needs 1.8 GB for 24 blocks instead of 38 GB. A block
    marked keeps_all (train.py's --checkpoint_every) is left out of it."""
    if save_memory and torch.is_grad_enabled() and not getattr(block, "keeps_all", False):
        return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


# ------------------------------------------------------------------------------------- a VAE's layers

# A layout in memory is a choice, too. Convolutions on a CPU want "channels last" (a pixel's channels side by
# side), so there a VAE keeps its frames that way from the first layer to the last. On a GPU it does not: its
# GroupNorm copies such frames to the plain layout first. (Nobody has measured what convolutions gain there.)

def conv_layout(device):
    """The memory format of images and of networks of convolutions, for tensor.to or network.to."""
    if torch.device(device).type == "cpu":
        return torch.channels_last
    return torch.contiguous_format


def group_norm(x, groups, weight, bias, eps):
    """GroupNorm of x (F,C,H,W).

    On a CPU its backward in bf16 takes 2 to 4 times as long as in float32, which is more than two casts cost:
    where a gradient is asked it is computed in float32. Copies to the plain layout and back, the other way
    out, take 4 to 10 times as long as the norm itself.

    On a GPU autocast would compute it on a float32 copy of x and hand float32 on. The kernel sums in float32
    by itself, so where no gradient is asked it gets x in bf16: decoding 32 frames of 512 x 512 takes 14.2 GB
    instead of 20.5 (bench.py's count; no GPU has run it). What it costs, tried on a CPU with the toy's DP-VAE:
    clips decoded in bf16 are 59.0 dB from those decoded in float32, where it was 60.6."""
    half = x.dtype == torch.bfloat16
    on_cpu = x.device.type == "cpu"
    if half and on_cpu and torch.is_grad_enabled():
        return F.group_norm(x.float(), groups, weight, bias, eps).to(x.dtype)
    if half and not on_cpu and not torch.is_grad_enabled():
        with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):
            return F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    return F.group_norm(x, groups, weight, bias, eps)


def silu(x):
    """x * sigmoid(x). TRAP: of a norm's fresh output only, since it is written over x where no gradient will
    ask for x again. At 512 x 512 a window's largest activation is 4 GB, and one copy less may decide which
    card will do."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def conv_of_doubled(x, weight, bias):
    """conv(x at twice the size, each pixel four times) for a convolution of 3 x 3.

    Of the pixels that it sees several are copies of one, so their weights may be added first: each pixel is
    then spread by a 4 x 4 kernel (a "transposed convolution" of stride 2), which is the same sum with 4/9 of
    the products. On a CPU this takes half the time; a GPU keeps the two steps, since nobody has measured it
    there. (A 4 x 4 kernel that is learned freely can draw a checkerboard; this one is tied to the 3 x 3.)"""
    if x.is_cuda:
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    w = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))                              # (C,C,5,5)
    w = w[:, :, 1:] + w[:, :, :-1]                                                          # (C,C,4,5)
    w = w[..., 1:] + w[..., :-1]                                                            # (C,C,4,4)
    return F.conv_transpose2d(x, w, bias, stride=2, padding=1)                              # (F,C,2H,2W)


def unfold_with_ends(x, frames):
    """Folded frames x (F,C,H,W) as clips whose first and last frame stand there twice, (B,C,T+2,H,W).

    Joined on channels-last memory, where it is one block a frame. Joined as (B,T,C,H,W) it came out plain,
    and in bf16 the convolution over time that reads it took twice as long."""
    x = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames))                                    # (B,T,H,W,C)
    x = torch.cat([x[:, :1], x, x[:, -1:]], dim=1)                                          # (B,T+2,H,W,C)
    return x.permute(0, 4, 1, 2, 3)                                                         # (B,C,T+2,H,W)


# ------------------------------------------------------------------------------------ a transformer's layers

def modulated_norm(x, shift, scale):
    """LayerNorm(x) (1 + scale) + shift for x (B,N,D); shift, scale (B,1,D), or (D,). eps as released.

    One row for all tokens is LayerNorm's own weight and bias: one pass in place of two, nearly twice as fast
    for a batch of one, forward and backward. addcmul: multiplied and added at once."""
    if scale.numel() == x.shape[-1]:
        weight = (1 + scale).flatten().to(x.dtype)                          # (D,)
        bias = shift.flatten().to(x.dtype)                                  # (D,)
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-6)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)         # (B,N,D)


def gated(x, gate, found):
    """x + gate * found: what a branch found joins the stream. addcmul is one pass, but with its backward pass
    it takes a tenth longer, under autocast a third."""
    if torch.is_grad_enabled():
        return x + gate * found
    return torch.addcmul(x, gate, found)


# DEVIATES: the released networks have GELU's tanh form. In bf16 a CPU takes three times as long for it as for
# the exact one, which is then about as right: either is off by 0.001 on average, which is bf16's rounding
# (test_in_bf16_the_exact_gelu_is_as_near_as_the_tanh_form).
def gelu(x):
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return F.gelu(x)
    return F.gelu(x, approximate="tanh")


def without_autocast(layers, c, dtype):
    """layers(c) in dtype, that of their weights, also in mixed precision; the result has c's dtype.

    For adaLN: a row of c or two meet a third of the network's weights there. To copy those to bf16, and their
    gradients back, takes longer than to use them."""
    with torch.autocast("cuda" if c.is_cuda else "cpu", enabled=False):
        return layers(c.to(dtype)).to(c.dtype)
