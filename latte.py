"""latte.py - Latte: a DiT whose blocks attend within a frame or along time; four variants and every option.
Paper    Latte 3.2 (variants, Fig. 2), 3.3 (options), Tables 1, 2, Fig. 6, 8; its text-to-video model: 4.5
Shapes   z (B,C,T,H,W) scaled latents, images after the clip if there are any; x (B,T,N,D) tokens, N = h*w
         patches in a frame; c (B,G,D) conditions, G = 1 or 1 + images; context (B,L,D) text tokens
Time     DDPM's integer steps, 999 noise. As a rectified flow: flow.velocity_of(net), t in [0,1], 1 data
Differs  x is never reordered, adaLN runs once a clip; the rest: grep DEVIATES
Reads    after videodit.py, before data.py; `eval.py similarity` draws Fig. 6 and 8
Run me   python latte.py      # CPU, 15 s: Table 1 to the digit, an untrained Latte predicts exactly 0;
                              # which tokens attend to which, in out/latte.png

THE PROBLEM. In videodit.py every patch of a clip attends to every other: (T*N)^2 pairs, and the work grows
with the square of the clip's length. 16 frames of 16 x 16 tokens are 4,096 tokens, 16.8 million pairs in each
head of each block. Must a patch at the upper left of frame 3 attend directly to the lower right of frame 11?

THE IDEA (Latte 3.2). Let it get there in two steps: along its row of the table below, and along its column.

           place   0   1   2 .. N-1       "space": each frame by itself   (B*T,N,D)   T * N^2 pairs
    frame    0     .   .   .   .          "time":  each place by itself   (B*N,T,D)   N * T^2 pairs
             1     .   x---.---.  space
             2     .   |   .   .          16 frames of 256 tokens: 1.05 + 0.07 million pairs, not 16.8; and
            T-1    .   .   .   .          what is in one corner of the table reaches the other in two steps,
                      time                one of each
    x (B,T,N,D) is that table. The Linears, norms and MLPs do not care which way it is read.

Where to put the two? The paper tries four answers (Fig. 2), from far apart to side by side, and the file can
make each (test_table_1_variants_to_the_digit). Brackets are blocks:

    1 in turn        x -> [space, MLP] -> [time, MLP] -> [space, MLP] -> [time, MLP] ...      28 blocks
    2 late fusion    x -> [space, MLP] -> [space, MLP] ...  then  [time, MLP] -> [time, MLP]  14 and 14
    3 both in one    x -> [space, time, MLP] -> [space, time, MLP] ...                        23
    4 side by side   x -> [space + time, MLP] -> ...    half of the heads for each            28

WHAT THE PAPER FOUND (4.2, Fig. 5f): 1 is best, then 3, then 2, then 4. Its reasons: too many spatial blocks
in a row pull frames apart (2; Fig. 6); what attention over space and attention over time find are features of
different kinds, which do not go well into one sum (4; Fig. 8) and want an MLP between them, not only a norm
(3). Of the options, the plain ones won (4.3): a token a patch, not a tube of frames; adaLN, not tokens; added
sines, not RoPE; and, the one that is not plain, images beside the clips.

TRIED ELSEWHERE. The split comes from recognizing videos: ViViT (Arnab et al. 2021), and TimeSformer, whose
"divided attention" is Variant 3. VDT and W.A.L.T generate with something like 3. Its price everywhere: a
thing that moves to another place is found in two steps, through patches that had nothing to do with it. Since
attention need not store the square ("fused" kernels), most large video models pay for it (CogVideoX,
Hunyuan, VideoDiT); where clips are long or machines small, the split is still the way."""

from support.cli import UserError, polite    # first: see there

from dataclasses import dataclass
from typing import NamedTuple

from einops import rearrange
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from dit import (MLP, AdaLN, CrossAttention, FinalLayer, LabelEmbedder, PatchEmbed, SingleFinalLayer,
                 TimestepEmbedder, initialise, sincos, sincos_2d, unpatchify)
from support.ops import attend, gated, modulated_norm, run_block


# ------------------------------------------------------------------------------------------- Variant 1, whole
# This section is a whole Latte-XL/2 for faces or skies, which have no classes; everything after it replaces a
# line or two of it.
#
# A block is DiT's: attention, then an MLP, both modulated and gated by c (dit.py). New is only which tokens
# attend to each other, and that is a question of what counts as a sequence and what as a batch:
#
#     x (B,T,N,D) --> q, k, v    "space": (B*T, heads, N, d)    N tokens of a frame; frames are like clips
#                                "time":  (B*N, heads, T, d)    T tokens of a place; places are like clips
#
# The published code reorders x before and after every block. Attention rearranges q, k and v anyway, so here
# that step does it, and x keeps its order.
AXES = {                # Linear's output -> q, k, v; and attention's output -> tokens
    "space": ("b t n (z h d) -> z (b t) h n d", "(b t) h n d -> b t n (h d)"),
    "time": ("b t n (z h d) -> z (b n) h t d", "(b n) h t d -> b t n (h d)"),
}


class AxialAttention(nn.Module):
    """Self-attention within each frame ("space") or of each place with its own past and future ("time")."""

    def __init__(self, axis, width, heads, head_dim):
        super().__init__()
        self.axis = axis
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x, mask=None, angles=None):
        """x (B,T,N,D) -> (B,T,N,D). mask (T,T) and angles belong to two options: Temporal Mask and RoPE."""
        split, join = AXES[self.axis]
        qkv = rearrange(self.qkv(x), split, z=3, h=self.heads)      # (3,B*T,heads,N,d) or (3,B*N,heads,T,d)
        q, k, v = qkv.contiguous()                                  # one copy here spares one in each product
        if angles is not None:
            q = rotate(q, angles)
            k = rotate(k, angles)
        found = attend(q, k, v, mask)                               # as q
        return self.proj(rearrange(found, join, b=x.shape[0], t=x.shape[1]))            # (B,T,N,D)


# S-ADALN (Latte 3.3.2, Fig. 10; "scalable"), as printed:
#     AdaLN(h, c) = gamma_c LayerNorm(h) + beta_c          RCs(h, c) = alpha_c h + AdaLN(h, c)
#     h tokens, c time and class; alpha, gamma, beta: a Linear of c, a number a channel; RC: the residual
# DEVIATES: printed, alpha scales the residual itself; the published code, and so we, scale what a branch
# adds to it, h + alpha F(gamma LN(h) + beta): adaLN-Zero, which makes a block start as the identity.
class BlockV1(nn.Module):
    """Attention along one axis, MLP."""

    def __init__(self, axis, width, heads):
        super().__init__()
        self.attn = AxialAttention(axis, width, heads, width // heads)
        self.mlp = MLP(width, 4 * width, width)
        self.adaLN_modulation = AdaLN(width, 6)

    def forward(self, x, c):
        """x (B,T,N,D), c (B,D) -> (B,T,N,D)."""
        six = self.adaLN_modulation(c)[:, None, None]                           # (B,1,1,6D)
        shift, scale, gate, shift2, scale2, gate2 = six.chunk(6, dim=-1)        # (B,1,1,D) each
        x = gated(x, gate, self.attn(modulated_norm(x, shift, scale)))
        return gated(x, gate2, self.mlp(modulated_norm(x, shift2, scale2)))


# DEVIATES Latte 3.2, "incorporated into z", the backbone's input: the time is added after the first spatial
# block. The released model has it so, and its weights expect it there
# (test_temporal_positions_are_added_once_where_time_first_matters).
class LatteV1(nn.Module):
    """Latte with the default config and no condition, equal to the bit (test_variant_1_in_one_piece_...)."""

    def __init__(self, config):
        super().__init__()
        self.patch = config.patch
        width = config.width
        side = torch.arange(config.input_size // config.patch)
        self.register_buffer("pos_embed", sincos_2d(width, side, side).view(1, -1, width))      # (1,N,D)
        self.register_buffer("temp_embed", sincos(torch.arange(config.frames), width)[None])    # (1,T,D)
        self.t_embedder = TimestepEmbedder(width)
        axes = ["space", "time"] * (config.depth // 2)
        self.blocks = nn.ModuleList(BlockV1(axis, width, config.heads) for axis in axes)
        self.final_layer = FinalLayer(width, config.patch ** 2 * 2 * config.in_channels)
        self.x_embedder = PatchEmbed(config.in_channels, width, config.patch)
        initialise(self)

    def forward(self, z, t):
        """z (B,C,T,H,W), t (B,) -> the noise in it, and how far to trust the step (B,2C,T,H,W)."""
        x = self.x_embedder(z).flatten(2, 3)                                    # (B,T,N,D)
        x = x + self.pos_embed                                                  # where a patch is
        c = self.t_embedder(t)                                                  # (B,D)
        for i, block in enumerate(self.blocks):
            if i == 1:
                x = x + self.temp_embed[0, :, None]                             # when its frame is
            x = block(x, c)                                                     # (B,T,N,D)
        out = self.final_layer(x.flatten(0, 1), c)                              # (B*T,N,p*p*2C)
        return unpatchify(out.view(len(z), -1, out.shape[-1]), z, self.patch)   # (B,2C,T,H,W)


# ------------------------------------------------------------------------------------------------ the choices

@dataclass
class LatteConfig:                  # the defaults are Latte-XL/2 as published, no images beside the clips
    variant: int = 1                # Fig. 2: 1 blocks in turn, 2 late fusion, 3 both in a block, 4 half heads
    depth: int = 28                 # blocks of Variant 1; 3, which has more in a block, gets fewer: blocks_of
    width: int = 1152               # of a token, D
    heads: int = 16                 # of attention
    patch: int = 2                  # latent pixels on a side of a token
    mlp_ratio: float = 4.0          # hidden width of the MLPs, in widths
    in_channels: int = 4            # of the latent
    learn_sigma: bool = True        # twice the channels out: noise, then the variance's interpolation
    frames: int = 16                # of the clips in training; others run too
    input_size: int = 32            # latent pixels on a side in training; others, and not square, run too
    condition: str = "none"         # none | class | text
    classes: int = 101              # of condition "class"; label 101 is then "no class"
    class_dropout: float = 0.1      # share of the labels that training drops, for guidance
    context_dim: int = 4096         # of "text": width of the tokens for cross-attention, 0 for none
    pooled_dim: int = 0             # of "text": width of a vector that joins the timestep, 0 for none
    conditioning: str = "s_adaln"   # 3.3.2: s_adaln | all_tokens; adaln_single is the text-to-video model's
    patch_embed: str = "uniform"    # 3.3.1: uniform | compression, in tubes of several frames
    tube: int = 2                   # frames in such a tube. ASSUMED: the paper's stride is not printed
    temporal: str = "sincos"        # 3.3.3: sincos | rope
    # DEVIATES Latte 3.3.4: there Temporal Mask is better; the published code trains with Only Video, and of
    # our presets latte-t2v, small and toy with the mask. Without images beside the
    # clips the choice changes nothing.
    joint: str = "only_video"       # 3.3.4: images beside a clip, in time: only_video | temporal_mask
    v4: str = "half_heads"          # Variant 4 as 3.2 has it, or as Table 1 counts it: paper_count


SIZES = {                           # Table 2
    "S": dict(depth=12, width=384, heads=6),        #  32.48 M
    "B": dict(depth=12, width=768, heads=12),       # 129.54 M
    "L": dict(depth=24, width=1024, heads=16),      # 456.81 M
    "XL": dict(depth=28, width=1152, heads=16),     # 673.68 M
}
CHOICES = {"variant": (1, 2, 3, 4), "condition": ("none", "class", "text"),
           "conditioning": ("s_adaln", "all_tokens", "adaln_single"), "temporal": ("sincos", "rope"),
           "patch_embed": ("uniform", "compression"), "joint": ("only_video", "temporal_mask"),
           "v4": ("half_heads", "paper_count")}


def check(config):
    """A choice nobody offers, or numbers that do not divide, in one line."""
    for name, known in CHOICES.items():
        if getattr(config, name) not in known:
            raise UserError(f"{name}={getattr(config, name)!r} is not known; "
                            f"choose {', '.join(map(str, known))}")
    if config.variant in (1, 2) and config.depth % 2:
        raise UserError(f"depth={config.depth}: half of the blocks are temporal, so choose an even number")
    if config.width % config.heads or (config.width // config.heads) % 2:
        raise UserError(f"width={config.width}, heads={config.heads}: a head must get an even, whole width")
    if config.variant == 4 and config.v4 == "half_heads" and config.heads % 2:
        raise UserError(f"heads={config.heads}: Variant 4 halves them, so choose an even number")


# THE VARIANTS (3.2) are to be compared, so they should cost the same: "we strive to equate the parameter
# counts" (4.2). A block with one attention has 18 D^2 weights (adaLN 6, attention 4, MLP 8), one with two has
# 22 D^2; so Variant 3 gets 23 blocks where 1 and 2 have 28 (test_table_1_variants_to_the_digit). Variant 4
# "with each component utilizing half of the attention heads" has 18 D^2 again, and 28 blocks.
#
# DEVIATES Latte Table 1: its Variant 4 has 676.44 M parameters and 1545 G operations, "roughly a quarter" of
# the others', by which 4.2 explains that it comes last. Only 23 blocks with two whole attentions, counted at
# patch 4, give these two numbers: --latte.v4 paper_count --latte.patch 4. With half of the heads, as 3.2 says
# and as the default here has it, it is 673.69 M and 5663 G. Which of the two Fig. 5f trained is not known.
def blocks_of(config):
    """Along which axes each block attends: this list is all that tells Variants 1, 2 and 3 apart."""
    half = config.depth // 2
    if config.variant == 1:
        return [("space",), ("time",)] * half
    if config.variant == 2:
        return [("space",)] * half + [("time",)] * half
    if config.variant == 4 and config.v4 == "half_heads":
        return [("space", "time")] * config.depth
    # ASSUMED: Table 1 fits 23 blocks of 22 D^2 for 28 of 18 D^2; the paper does not print the number.
    return [("space", "time")] * round(config.depth * 18 / 22)


# TUBES (3.3.1, "compression"). ViViT makes one token of s frames, and recognizes videos better and s times
# faster for it. Latte tries it (Conv3d in, a transposed Conv3d out) and finds it clearly worse (Fig. 5a): a
# recognizer may forget what it does not need; a generator must give every frame back, from fewer tokens.
class TubeEmbed(nn.Module):
    """In place of PatchEmbed: s frames of p x p latent pixels become one token."""

    def __init__(self, channels, width, patch, tube):
        super().__init__()
        self.proj = nn.Conv3d(channels, width, (tube, patch, patch), (tube, patch, patch))

    def forward(self, z):
        s, p, _ = self.proj.stride
        T, H, W = z.shape[2:]
        if T % s or H % p or W % p:
            raise UserError(f"a clip of {T} x {H} x {W} does not divide into tubes of {s} x {p} x {p}; "
                            f"choose multiples of {s} frames and of {p} latent pixels")
        return rearrange(self.proj(z), "b d t h w -> b t h w d")                # (B,T/s,h,w,D)


# ALL TOKENS (3.3.2) is tried beside S-AdaLN: the time and the class are tokens like others, and blocks have
# plain norms. A third fewer parameters and much worse (Fig. 5b): what enters once, at the input, has to
# survive 28 blocks, while adaLN speaks to each.
class PlainFinalLayer(nn.Module):
    """In place of FinalLayer: with all_tokens the condition has come in by the tokens. c is not read."""

    def __init__(self, width, outputs):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x, c):
        return self.linear(self.norm_final(x))                                  # (B*T,N,outputs)


# RELATIVE TIME, RoPE (3.3.3; Su et al. 2024). Adding sines says WHEN a frame is; what matters to motion is
# how far apart two frames are. So take the d channels of q and k as d/2 arrows in the plane and turn each by
# an angle that grows with the frame's number. A product of two arrows knows only the angle between them:
#
#     (R_m q) . (R_n k) = q . (R_(n-m) k)          R_m turns the k-th arrow by m w_k, w_k = 10000^(-k/(d/2))
#     (test_rotary_positions_are_relative)
#
# The paper finds the sines slightly better (Fig. 5c): its clips all have 16 frames, so the strength of RoPE,
# other lengths, does not show.
# ASSUMED: base 10000, whole frames, every temporal attention; the paper names the method only.
def rotate(q, angles):
    """q (..,T,d), angles (T,d/2)."""
    a, b = q.chunk(2, dim=-1)                                                   # (..,T,d/2) each
    cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)               # (T,d/2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)            # (..,T,d)


# IMAGES BESIDE A CLIP, "joint training" (3.3.4, Fig. 4). Frames of 16-frame clips are much alike; to see more
# of the world in a batch, put single frames of other videos behind each clip, along T. FVD of a Latte trained
# on faces falls from 34.00 without them to 27.08 with them, on UCF101's 101 actions from 477.97 to 202.23
# (Table 3). The images must not pass for a 17th frame, so:
#
#     Only Video       images bypass the temporal blocks, which learn nothing from them
#     Temporal Mask    they pass through, but attend only to themselves, so the blocks learn from them, too
#
#                      clip    image          Which of the two? Compared by text-to-video models that never
#              clip    1 1 1    0 0           trained on UCF101 (3.3.4): Temporal Mask FVD 589.86, FID 63.36;
#                      1 1 1    0 0           Only Video 705.72 and 75.98.
#                      1 1 1    0 0
#              image   0 0 0    1 0           test_no_frame_sees_an_image_and_no_image_sees_a_frame
#                      0 0 0    0 1           test_temporal_mask_lets_images_train_the_temporal_blocks
#
# ASSUMED: an image attends to itself alone, has no temporal position embedding, and RoPE turns it like the
# frame at its index (alone, that changes nothing); the paper shows the mask as a drawing, and says no more.
def temporal_mask(video, images, device=None):
    """(T,T), T = video + images, True where a frame attends: a clip's to all of it, an image to itself."""
    mask = torch.eye(video + images, dtype=torch.bool, device=device)
    mask[:video, :video] = True
    return mask


def per_frame(values, video):
    """(B,G,...) -> (B,T,...): the clip's row for each of its frames, then a row an image. G=1 broadcasts."""
    if values.shape[1] == 1:
        return values
    clip = values[:, :1].expand(-1, video, *values.shape[2:])                   # (B,video,...)
    return torch.cat([clip, values[:, 1:]], dim=1)                              # (B,T,...)


# TEXT (4.5). Class and time enter by adaLN. A prompt's tokens enter by cross-attention, in the blocks over
# space: what a word names, it names in every frame. Patches of all frames attend to the same L tokens, so to
# cross-attention the whole clip is one long row, and the text is never copied for each frame.


# --------------------------------------------------------------------------------------- a block, all choices

class Shared(NamedTuple):
    """What every block is given alike, beside the tokens x and c."""
    video: int                              # so many frames are the clip, the rest are images
    only_video: bool = False                # images bypass what is temporal
    temporal_mask: torch.Tensor = None      # (T,T) True where a frame attends; None: everywhere
    angles: torch.Tensor = None             # (T,d/2) of RoPE; None: positions were added to x
    context: torch.Tensor = None            # (B,L,D), or (B*T,L,D) where images have texts of their own
    text_mask: torch.Tensor = None          # (B,L) or (B*T,L), 0 where the text is padding


class LatteBlock(nn.Module):
    """BlockV1 with every choice: one attention or two, cross-attention to the text, three conditionings."""

    def __init__(self, config, axes):
        super().__init__()
        width = config.width
        heads = config.heads
        head_dim = width // heads
        self.axes = axes
        self.parallel = config.variant == 4
        self.conditioning = config.conditioning
        if self.parallel and config.v4 == "half_heads":
            heads = heads // 2
        self.attn = AxialAttention(axes[0], width, heads, head_dim)
        self.attn_time = None
        if len(axes) == 2:
            self.attn_time = AxialAttention("time", width, heads, head_dim)
        self.cross_attn = None
        if config.condition == "text" and config.context_dim and "space" in axes:
            self.cross_attn = CrossAttention(width, config.heads)
        self.mlp = MLP(width, int(width * config.mlp_ratio), width)
        if config.conditioning == "s_adaln":
            self.adaLN_modulation = AdaLN(width, 6)
        elif config.conditioning == "adaln_single":
            self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width ** 0.5)
        else:
            self.norm_table = nn.Parameter(torch.zeros(4, width))

    def modulation(self, c, video):
        """Shift, scale, gate of the attention, then of the MLP: (B,1,1,D), or (B,T,1,D) if images have rows
        of c of their own."""
        if self.conditioning == "all_tokens":
            # ASSUMED: in "all tokens" no gates, an ordinary LayerNorm (weight 1 + scale); the depth stays.
            shift, scale, shift2, scale2 = self.norm_table                      # (D,) each
            no_gate = torch.ones_like(shift)
            return shift, scale, no_gate, shift2, scale2, no_gate
        if self.conditioning == "s_adaln":
            six = self.adaLN_modulation(c)                                      # (B,G,6D)
        else:
            six = c + self.scale_shift_table.flatten()      # (B,G,6D)  one Linear for all blocks made c
        return per_frame(six, video).unsqueeze(2).chunk(6, dim=-1)              # (B,1 or T,1,D) each

    def forward(self, x, c, shared):
        """x (B,T,N,D) -> (B,T,N,D)."""
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(c, shared.video)
        h = modulated_norm(x, shift, scale)
        if self.axes == ("time",):
            found = self.attn(h, shared.temporal_mask, shared.angles)
        else:
            found = self.attn(h)
        if self.parallel:                           # Variant 4: both axes read the same h, and are added
            found = found + self.temporal_attention(h, shared)
        x = gated(x, gate, found)
        if self.attn_time is not None and not self.parallel:    # Variant 3: only a LayerNorm in between
            # ASSUMED: one shift, scale and gate for both attentions; the paper draws a plain norm
            h = modulated_norm(x, shift, scale)
            x = gated(x, gate, self.temporal_attention(h, shared))
        if self.cross_attn is not None:             # no norm, no gate, as in PixArt
            tokens = x.reshape(len(shared.context), -1, x.shape[-1])              # (B,T*N,D) or (B*T,N,D)
            x = x + self.cross_attn(tokens, shared.context, shared.text_mask).view(x.shape)
        return gated(x, gate2, self.mlp(modulated_norm(x, shift2, scale2)))

    def temporal_attention(self, h, shared):
        """Of a block that has both; with Only Video it adds nothing to the images."""
        if not shared.only_video:
            return self.attn_time(h, shared.temporal_mask, shared.angles)
        if shared.video == 0:
            return torch.zeros_like(h)
        found = self.attn_time(h[:, :shared.video], angles=shared.angles)           # (B,video,N,D)
        return F.pad(found, (0, 0, 0, 0, 0, h.shape[1] - shared.video))           # (B,T,N,D)


# ----------------------------------------------------------------------------------- the model, all choices
#     z (B,C,T,H,W) --> patches (B,T,N,D), + where --> blocks; + when, before the first along time
#       --> norm, Linear --> patches put back (B,2C,T,H,W): the noise, and how far to trust the step (flow.py)
#
# What is zero-initialised in DiT is so here, and what is temporal besides, so that a Latte made of an image
# model is, at first, that model on each frame (test_an_untrained_latte_predicts_zero,
# test_frames_start_independent, test_a_latte_from_dit_with_time_at_zero_is_dit_on_each_frame).

class Latte(nn.Module):
    """Noise of a noisy clip, and of the images after it. Weights of the released Latte load by name."""

    Config = LatteConfig

    def __init__(self, config):
        super().__init__()
        check(config)
        self.config = config
        self.checkpointing = False                  # gradient checkpointing: see run_block
        self.tube = config.tube if config.patch_embed == "compression" else 1
        width = config.width
        channels = 2 * config.in_channels if config.learn_sigma else config.in_channels
        side = torch.arange(config.input_size // config.patch)
        self.register_buffer("pos_embed", sincos_2d(width, side, side).view(1, -1, width))      # (1,N,D)
        if config.temporal == "sincos":             # a table as released; RoPE needs none
            times = torch.arange(config.frames // self.tube)
            self.register_buffer("temp_embed", sincos(times, width)[None])                      # (1,T/s,D)
        self.t_embedder = TimestepEmbedder(width)
        if config.conditioning == "adaln_single":   # modulates all blocks, which keep a small table each
            self.t_block = AdaLN(width, 6)
        if config.condition == "class":
            self.y_embedder = LabelEmbedder(config.classes, width)
        if config.condition == "text" and config.context_dim:
            self.y_embedder = nn.ModuleDict({"y_proj": MLP(config.context_dim, width, width)})
        if config.condition == "text" and config.pooled_dim:
            self.text_embedding_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.pooled_dim, width))
        self.blocks = nn.ModuleList(LatteBlock(config, axes) for axes in blocks_of(config))
        heads = {"s_adaln": FinalLayer, "adaln_single": SingleFinalLayer, "all_tokens": PlainFinalLayer}
        self.final_layer = heads[config.conditioning](width, config.patch ** 2 * channels)
        if self.tube == 1:
            self.x_embedder = PatchEmbed(config.in_channels, width, config.patch)
        else:
            self.x_embedder = TubeEmbed(config.in_channels, width, config.patch, self.tube)
            self.upsample = nn.ConvTranspose3d(channels, channels, (self.tube, 1, 1), (self.tube, 1, 1))
        self.initialise()

    def initialise(self):
        """dit.initialise; and whatever is temporal adds nothing yet: the output is 0, and no frame depends on
        another."""
        initialise(self)
        if self.tube > 1:
            nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
            eye = torch.eye(len(self.upsample.bias))[:, :, None, None, None]
            self.upsample.weight.data.copy_(eye.expand_as(self.upsample.weight))        # each frame s times
            nn.init.zeros_(self.upsample.bias)
        for block in self.blocks:
            if block.cross_attn is not None:
                nn.init.zeros_(block.cross_attn.proj.weight)
            if self.config.conditioning != "s_adaln":       # whose gates do it already
                zero_time(block)

    def forward(self, z, t, *, labels=None, context=None, pooled=None, mask=None, images=0):
        """z (B,C,T,H,W), t (B,) -> noise and, if learn_sigma, variance (B,2C,T,H,W).

        The last `images` frames are images, each on its own; a clip of one frame is one too. labels (B,),
        context (B,L,D) with mask (B,L), pooled (B,P) hold for all frames, or have 1 + images rows a clip,
        (B,1+images,...): one for the clip and one for each image."""
        if z.shape[2] == 1:
            images = 1
        tubes = self.as_tubes(z, z.shape[2] - images)                           # (B,C,T,H,W)
        video = (z.shape[2] - images) // self.tube
        x = self.x_embedder(tubes)                                              # (B,T/s,h,w,D)
        where = self.position_embedding(*x.shape[2:4])                          # (h,w,D)
        x = (x + where.to(self.pos_embed.dtype)).flatten(2, 3)                  # (B,T/s,N,D)
        parts, head = self.condition(t, labels, pooled)
        shared = self.describe(x, video, context, mask)
        c = sum(parts)                                                          # (B,G,D)
        if self.config.conditioning == "adaln_single":
            c = self.t_block(c)                                                 # (B,G,6D)
        extra = 0
        if self.config.conditioning == "all_tokens":
            # ASSUMED: in "all tokens" they stand before every frame's patches, so space and time both see
            # them, and are cut off before the head; the paper says "to the input layer" and no more
            extra = len(parts)
            tokens = [per_frame(part, video).expand(-1, x.shape[1], -1) for part in parts]
            x = torch.cat([torch.stack(tokens, dim=2).to(x.dtype), x], dim=2)   # (B,T/s,N + 1 or 2,D)
        x = self.backbone(x, c, shared)[:, :, extra:]                             # (B,T/s,N,D)
        head = per_frame(head, video).flatten(0, 1)     # (B,D), or (B*T/s,D) if images have their own
        out = self.final_layer(x.flatten(0, 1), head)                           # (B*T/s,N,p*p*2C)
        out = out.view(len(z), -1, out.shape[-1])                               # (B,T/s*N,p*p*2C)
        out = unpatchify(out, tubes[:, :, ::self.tube], self.config.patch)      # (B,2C,T/s,H,W)
        return self.as_frames(out, video)                                       # (B,2C,T,H,W)

    # DEVIATES Latte 3.2: in Variants 2 to 4, too, which nobody released, the temporal position embedding is
    # added before the first block along time, as in the released Variant 1: at the input of 3 and 4, as 3.2
    # has it, but in the middle of 2, whose first half sees no time.
    # DEVIATES from the published text-to-video code: with images beside the clip it trains without this
    # embedding, unless it checkpoints gradients, and then samples with it: a slip.
    def backbone(self, x, c, shared):
        needs_time = self.config.temporal == "sincos"
        for block in self.blocks:
            if needs_time and "time" in block.axes:
                x = self.add_time(x, shared.video)
                needs_time = False
            if block.axes == ("time",) and shared.only_video:
                if shared.video:                      # this block does not exist for the images
                    moved = run_block(block, self.checkpointing, x[:, :shared.video], c[:, :1], shared)
                    x = torch.cat([moved, x[:, shared.video:]], dim=1)            # (B,T,N,D)
            else:
                x = run_block(block, self.checkpointing, x, c, shared)
        return x

    # ASSUMED: an image is a tube that stands still, and its output the tube's first frame; the paper tries
    # compression and joint training apart only.
    def as_tubes(self, z, video):
        if self.tube == 1:
            return z
        still = z[:, :, video:].repeat_interleave(self.tube, dim=2)             # (B,C,images*s,H,W)
        return torch.cat([z[:, :, :video], still], dim=2)                       # (B,C,video+images*s,H,W)

    def as_frames(self, out, video):
        if self.tube == 1:
            return out
        out = self.upsample(out)                                                # (B,2C,video+images*s,H,W)
        video = video * self.tube
        return torch.cat([out[:, :, :video], out[:, :, video::self.tube]], dim=2)       # (B,2C,T,H,W)

    # ---------------------------------------------------------------------------------- conditions, positions
    # What a clip is to become is one vector c, the time plus a class, or plus a text vector; and, for text,
    # the tokens of cross-attention, in spatial blocks only, as in the released text-to-video model. A clip
    # with images beside it (joint training) has a c for itself and one for each image: G = 1 + images rows.
    # Positions are sines that are computed again for another size or length, so neither is frozen in the
    # weights, though the released model has tables in its file and only 16 frames.

    def condition(self, t, labels, pooled):
        """-> the parts (B,G,D) of c, to be summed or to be tokens; and the c of the head (B,G,D)."""
        parts = [self.t_embedder(t)[:, None]]                                   # (B,1,D)
        if self.config.condition == "class":
            if labels is None:
                raise UserError("this Latte was trained on classes: give labels (B,), "
                                f"{self.config.classes} for none")
            if labels.dim() == 1:
                labels = labels[:, None]                                        # (B,1)
            # DEVIATES from the code: it drops the labels of a clip's images all together or not at all
            parts.append(self.y_embedder(labels))                               # (B,G,D)
        head = sum(parts)
        # As released (its setting extras=78), a text vector reaches the blocks and not the head.
        # DEVIATES Latte 4.5: its text-to-video model has no text vector, so its temporal blocks are told nothing
        # of the text; with pooled_dim a small model learns which word means which motion.
        if self.config.condition == "text" and self.config.pooled_dim:
            if pooled is None:
                raise UserError("this Latte was trained with a text vector: give pooled (B,P)")
            if pooled.dim() == 2:
                pooled = pooled[:, None]                                        # (B,1,P)
            parts.append(self.text_embedding_projection(pooled))                # (B,G,D)
        return parts, head

    def describe(self, x, video, context, text_mask):
        """x (B,T,N,D) and what was given with it -> Shared."""
        images = x.shape[1] - video
        mask = None
        if images and self.config.joint == "temporal_mask":
            mask = temporal_mask(video, images, x.device)
        only_video = images > 0 and self.config.joint == "only_video"
        angles = None
        if self.config.temporal == "rope":
            half = self.config.width // self.config.heads // 2
            w = 10000 ** (-torch.arange(half, device=x.device) / half)
            frames = video if only_video else x.shape[1]
            angles = torch.arange(frames, device=x.device)[:, None] * w         # (T,d/2)
        if self.config.condition == "text" and self.config.context_dim:
            if context is None:
                raise UserError("this Latte was trained on text: give context (B,L,D)")
            context = self.y_embedder["y_proj"](context)                        # (B,L,D) or (B,G,L,D)
            if context.dim() == 4:
                context = per_frame(context, video).flatten(0, 1)               # (B*T,L,D)
                if text_mask is not None:
                    text_mask = per_frame(text_mask, video).flatten(0, 1)       # (B*T,L)
        return Shared(video, only_video, mask, angles, context, text_mask)

    # ASSUMED: an image of another size spans the coordinates of training, as in PixArt; a longer clip counts
    # on, because stretched times would be slow motion. At the size of training: the checkpoint's own table.
    def position_embedding(self, rows, columns):
        """(h,w,D), where in its frame a patch is."""
        side = self.config.input_size // self.config.patch
        if rows == columns == side:
            return self.pos_embed.view(side, side, -1)
        device = self.pos_embed.device
        down = torch.arange(rows, device=device) * (side / rows)
        across = torch.arange(columns, device=device) * (side / columns)
        return sincos_2d(self.config.width, down, across)

    def add_time(self, x, video):
        """x (B,T,N,D) with the temporal position embedding; an image has no time."""
        table = self.temp_embed[0]                                              # (T,D)
        if video > len(table):
            table = sincos(torch.arange(video, device=x.device), self.config.width).to(table.dtype)
        when = F.pad(table[:video, None], (0, 0, 0, 0, 0, x.shape[1] - video))  # (T,1,D)
        return x + when


# ------------------------------------------------------------------------------------- from an image model

def zero_time(block):
    """What a block adds along time is zero-initialised, so that it starts at 0 and gets a gradient at once.

    DEVIATES Latte 4.5: the released text-to-video model starts its temporal blocks from noise."""
    layers = []
    if block.axes == ("time",):
        layers = [block.attn.proj, block.mlp.fc2]
    elif block.attn_time is not None:
        layers = [block.attn_time.proj]
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


# FROM AN IMAGE MODEL (3.3.4). A DiT of ImageNet knows what things look like, and its blocks have the shape
# of ours. At first this helps much; then it stalls, "far worse" than a start from random weights, where faces
# are the only subject (Fig. 5d). With the variety of text-to-video data it is what everybody does (4.5).
# Latte 3.3.4: "temporally replicate the positional embedding", "discard the label embedding ... zero".
# ASSUMED: it does not say what temporal blocks start from. "all": every block takes a DiT block, as loading
# by name does. "zero": spatial blocks only; what is temporal is zero-initialised, so a video is its frames.
# That is VideoDiT's zero projection (videodit.zero_linear), made of the block's own last Linear.
def init_from_image(net, image, image_start="all"):
    """Weights of a DiT, or of a PixArt for a text-to-video Latte (4.5: "zero"), into a fresh Latte."""
    theirs = image.state_dict()
    ours = net.state_dict()
    carried = {name: tensor for name, tensor in theirs.items()
               if not name.startswith(("blocks.", "y_embedder.embedding_table", "pos_embed"))}
    takers = [i for i, block in enumerate(net.blocks) if image_start == "all" or "space" in block.axes]
    for k, i in enumerate(takers):
        source = image.blocks[k * len(image.blocks) // len(takers)]     # in order, evenly, if it has more
        for name, tensor in source.state_dict().items():
            if image_start == "all" and name.startswith("cross_attn.") and net.blocks[i].cross_attn is None:
                continue
            carried[f"blocks.{i}.{name}"] = tensor
    wrong = [name for name in carried if name not in ours or ours[name].shape != carried[name].shape]
    if wrong:
        raise UserError(f"this {type(image).__name__} does not fit this Latte: {', '.join(wrong[:3])}; "
                        "choose the same width, patch and channels, and conditioning s_adaln for a DiT, "
                        "adaln_single with condition text for a PixArt")
    if "pos_embed" in theirs and theirs["pos_embed"].shape == ours["pos_embed"].shape:
        carried["pos_embed"] = theirs["pos_embed"]      # added to every frame, which is to replicate it
    net.load_state_dict(carried, strict=False)
    if net.config.condition == "class":
        nn.init.zeros_(net.y_embedder.embedding_table.weight)
    if image_start == "zero":
        for block in net.blocks:
            if net.config.conditioning != "s_adaln" or block.attn_time is not None:
                zero_time(block)
    return net


# --------------------------------------------------------------------------------------------- what it costs
# Can one trust that the four variants here are the paper's four? Its tables print parameters and operations
# to six digits, and only one construction of each gives them all. This function counts as the authors did,
# mistakes included, and arrives at every printed digit.
#
# Latte Tables 1 and 2. Both were counted with the tool thop, whose rule is: a Linear costs in x out for each
# row, a convolution its kernel for each output, a LayerNorm 2 for each element; attention's own products cost
# nothing; a parameter is one of a Linear or convolution, so neither tables of positions nor of labels. It was
# given THREE clips, rows of c repeated for each frame or patch, and in Variants 3 and 4 it missed the patch
# embedding. Variant 4's 1545 G, "a quarter", is its cost at patch 4: at 2 it is Variant 3's.
def count_as_printed(config):
    """{params, ops: as the tables count; clip: multiply-adds of one clip, attention and patches included}."""
    with torch.device("meta"):
        net = Latte(config)
    patches = (config.input_size // config.patch) ** 2
    rows = {"space": config.frames // net.tube, "time": patches}        # of c: sequences along each axis
    tokens = rows["space"] * patches
    norms = 1                                                           # the head's
    products = 0                                                        # q k^T and softmax(..) v
    for block in net.blocks:
        norms += 3 if config.variant == 3 else 2
        for axis in block.axes:
            length = tokens // rows[axis]
            products += 2 * tokens * length * block.attn.proj.in_features
    linear = 2 * tokens * config.width * norms
    params = 0
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):
            params += layer.weight.numel() + layer.bias.numel()
            linear += layer.weight.numel() * rows_of(name, net, rows)
    patch_params = net.x_embedder.proj.weight.numel() + net.x_embedder.proj.bias.numel()
    patch_ops = net.x_embedder.proj.weight.numel() * tokens
    ops = linear
    if config.variant <= 2:
        params += patch_params
        ops += patch_ops
    return {"params": params, "ops": 3 * ops, "clip": linear + patch_ops + products}


def rows_of(name, net, rows):
    """How many rows the published code sends through this Linear for one clip."""
    if name.startswith(("t_", "y_", "text_")) or "kv_linear" in name:   # t, labels, and one token of text
        return 1
    if "adaLN_modulation" not in name:
        return rows["space"] * rows["time"]
    if name.startswith("final_layer"):
        return rows["space"]
    block = net.blocks[int(name.split(".")[1])]
    return sum(rows[axis] for axis in block.axes)


# ---------------------------------------------------------------------------------- how alike the frames are
# A clip's frames are nearly the same, so their features should be, too, and frame 1 more like 2 than like 5.
# The paper looks into each block with this measure (4.2):
#     S_ij = cos(features of frame i, features of frame j)            (T,T), 1: the same
# Fig. 6: in Variant 2 each further spatial block makes the frames less alike, and unevenly so, until nearer
# frames are less alike than far ones ("inverted"). Fig. 8: in Variant 4 what the two attentions add to each
# other is not alike at all.

def cosines(one, other):
    """(B,T,N,D) twice -> (T,T): how alike frame i of one and frame j of the other are, over all patches."""
    one = F.normalize(one.float().flatten(2), dim=-1)                           # (B,T,N*D)
    other = F.normalize(other.float().flatten(2), dim=-1)                       # (B,T,N*D)
    return (one @ other.transpose(1, 2)).mean(0)                                # (T,T)


@torch.no_grad()
def frame_similarity(net, z, t, cond):
    """{name: (T,T)} for each block's output, and for both attentions and between them if a block has both.
    Measured while the network runs, so that no more than one block's outputs are kept."""
    found = {}
    attended = []                           # what the attentions of the block that runs have found
    numbers = {block: i for i, block in enumerate(net.blocks)}

    def look(module, inputs, out):
        if isinstance(module, AxialAttention):
            attended.append(out)
        if module not in numbers:
            return
        i = numbers[module]
        if len(attended) == 2:
            space, time = attended
            found[f"{i} space alone"] = cosines(space, space)
            found[f"{i} time alone"] = cosines(time, time)
            found[f"{i} space with time"] = cosines(space, time)
        found[f"{i} {'+'.join(module.axes)}"] = cosines(out, out)
        attended.clear()

    with register_module_forward_hook(look):        # it is called after each module that runs
        net(z, t, **cond)
    return found


# Off the diagonal of S: its mean, its variance, and of all triples i < j < k the share of those in which j,
# the nearer frame, is less like i than k is. A random order has half of them inverted, steady motion none.
def summary(matrix):
    """Mean and variance over pairs of frames; how often a frame is more like a later than a nearer one."""
    frames = len(matrix)
    i, j = torch.triu_indices(frames, frames, 1)
    pairs = matrix[i, j]
    inverted = 0.0
    if frames > 2:
        i, j, k = torch.combinations(torch.arange(frames), 3).T
        inverted = (matrix[i, j] < matrix[i, k]).float().mean().item()
    return pairs.mean().item(), pairs.var(correction=0).item(), inverted


def unconditional(net, batch):
    """The conditions of an unguided clip: no class, or text that is all zeros."""
    # ASSUMED: the null prompt is zeros, as flow.drop_prompt has it in training; the released text-to-video
    # model, whose training nobody has seen, is sampled with an encoded "" instead (sample.py)
    config = net.config
    if config.condition == "class":
        return {"labels": torch.full((batch,), config.classes)}
    if config.condition == "text":
        return {"context": torch.zeros(batch, 1, config.context_dim),
                "pooled": torch.zeros(batch, config.pooled_dim)}
    return {}


if __name__ == "__main__":
    from demos.show_latte import main

    polite(main)
