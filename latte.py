"""latte.py - Latte: a DiT whose blocks look across a frame or along time; four variants and every option.
Paper    Latte 3.2 (variants, Fig. 2), 3.3 (options), Tables 1, 2, Fig. 6, 8; its text-to-video model: 4.5
Shapes   z (B,C,T,H,W) scaled latents, pictures after the clip if `images`; x (B,T,N,D) tokens, N = h*w
         patches in a frame; c (B,G,D) conditions, G = 1 or 1 + images; context (B,L,D) text tokens
Time     DDPM's integer steps, 999 noise. As a rectified flow: flow.velocity_of(net), t in [0,1], 1 data
Differs  x is never reordered, adaLN runs once a clip; a text vector, a silent start in time: grep DEVIATES
Reads    after videodit.py, before detectors.py; `eval.py similarity` draws Fig. 6 and 8
Run me   python latte.py      # CPU, 15 s: Tables 1 and 2 to the digit, an untrained Latte answers exactly 0;
                              # who hears whom in the four variants, and Fig. 6 of the toy, in out/latte.png

THE PROBLEM. videodit.py lets every patch of a clip ask every other: (T*N)^2 questions, and the work grows
with the square of the clip's length. 16 frames of 16 x 16 tokens are 4,096 tokens, 16.8 million pairs in each
head of each block. Must a patch at the upper left of frame 3 ask the lower right of frame 11 directly?

THE IDEA (Latte 3.2). Let it ask by two hops: along its row of the table below, and along its column.

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
    4 side by side   x -> [space + time, MLP] -> ...      half of the heads look each way     28

WHAT THE PAPER FOUND (4.2, Fig. 5f): 1 is best, then 3, then 2, then 4. Its reasons: too many spatial blocks
in a row pull frames apart (2; Fig. 6); what looks along space and what looks along time say things of
different kinds, which do not go well into one sum (4; Fig. 8) and want an MLP between them, not only a norm
(3). Of the options, the plain ones won (4.3): a token a patch, not a tube of frames; adaLN, not tokens; added
sines, not RoPE's turns; and pictures beside the clips, which is the one that is not plain.

TRIED ELSEWHERE. The split comes from recognizing videos: ViViT (Arnab et al. 2021), and TimeSformer, whose
"divided attention" is Variant 3. VDT and W.A.L.T generate with something like 3. Its price everywhere: a
thing that moves to another place is found by two hops through patches that had nothing to do with it. Since
attention need not store the square ("fused" kernels), most large video models pay for it (CogVideoX,
Hunyuan, VideoDiT); where clips are long or machines small, the split is still the way."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageDraw
from einops import rearrange
import torch
import torch.nn.functional as F
from torch import nn

from dit import (MLP, AdaLN, CrossAttention, FinalLayer, LabelEmbedder, PatchEmbed, SingleFinalLayer,
                 TimestepEmbedder, gated, initialise, modulated_norm, sincos, sincos_2d, unpatchify)
from support.checkpoints import write_atomic
from support.cli import UserError
from support.ops import attend, run_block


@dataclass
class LatteConfig:                  # the defaults are the paper's best practice (4.3) at Latte-XL/2
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
    joint: str = "only_video"       # 3.3.4: pictures beside a clip, in time: only_video | temporal_mask
    v4: str = "half_heads"          # Variant 4 as the text has it, or as Table 1 counts it: paper_count


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


# The variants are to be compared, so they should cost the same: "we strive to equate the parameter counts"
# (4.2). A block with one attention has 18 D^2 weights (adaLN 6, attention 4, MLP 8), one with two has 22 D^2;
# so Variant 3 gets 23 blocks where 1 and 2 have 28 (test_table_1_variants_to_the_digit). Variant 4 "with each
# component utilizing half of the attention heads" has 18 D^2 again, and 28 blocks.
def blocks_of(config):
    """Along which axes each block attends: this list is all that tells Variants 1, 2 and 3 apart."""
    space, time, both, half = ("space",), ("time",), ("space", "time"), config.depth // 2
    # ASSUMED: Table 1 fits 23 blocks of 22 D^2 for 28 of 18 D^2; the paper does not print the number.
    fewer = round(config.depth * 18 / 22)
    return {1: [space, time] * half, 2: [space] * half + [time] * half, 3: [both] * fewer,
            4: [both] * (config.depth if config.v4 == "half_heads" else fewer)}[config.variant]


# ---------------------------------------------------------------------------------------------------- a block
# A block is DiT's (dit.DiTBlock) with two changes. Its attention reads the table x (B,T,N,D) along one axis,
# or one after the other; and what else it must know, who may see whom, the time, the text, comes along in one
# bag, `Clip`, that all blocks share. x itself is never reshaped: the published code turns it over before and
# after every block, a copy of everything each time.

class Clip(NamedTuple):
    """What a block must know beside its tokens and c."""
    video: int                      # so many frames are the clip, the rest are pictures
    mask: torch.Tensor = None       # (T,T) True where one may look: Temporal Mask (below); None: Only Video
    angles: torch.Tensor = None     # (T,d/2) of RoPE; None: positions were added to x
    context: torch.Tensor = None    # (B,L,D), or (B*T,L,D) where pictures have texts of their own
    hidden: torch.Tensor = None     # (B,L) or (B*T,L), 0 where the text is padding


def per_frame(values, video):
    """(B,G,...) -> (B,T,...): the clip's row for each of its frames, then a row a picture. G=1 broadcasts."""
    if values.shape[1] == 1:
        return values
    clip = values[:, :1].expand(-1, video, *values.shape[2:])                   # (B,video,...)
    return torch.cat([clip, values[:, 1:]], dim=1)                              # (B,T,...)


# RELATIVE TIME, RoPE (Latte 3.3.3; Su et al. 2024). Adding sines says WHEN a frame is; what matters to motion
# is how far apart two frames are. So take the d channels of q and k as d/2 arrows in the plane and turn each
# by an angle that grows with the frame's number. A product of two arrows knows only the angle between them:
#
#     (R_m q) . (R_n k) = q . (R_(n-m) k)          R_m turns the k-th arrow by m w_k, w_k = 10000^(-k/(d/2))
#     (test_rotary_positions_are_relative)
#
# The paper finds the sines slightly better (Fig. 5c): its clips all have 16 frames, so the strength of RoPE,
# other lengths, is not asked for.
# ASSUMED: base 10000, whole frames, every temporal attention; the paper names the method only.
def rotate(q, angles):
    """q (..,T,d), angles (T,d/2)."""
    a, b = q.chunk(2, dim=-1)                                                   # (..,T,d/2) each
    cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)               # (T,d/2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)            # (..,T,d)


# AXIAL ATTENTION is dit.Attention with a choice of what is the sequence and what is only a batch:
#
#     x (B,T,N,D) --> q, k, v    "space": (B*T, heads, N, d)    N tokens of a frame; frames are like clips
#                                "time":  (B*N, heads, T, d)    T moments of a place; places are like clips
#
# Everything else in a block sees tokens one by one and need not know. The one copy is what an axis costs.
class AxialAttention(nn.Module):
    """Within a frame ("space"), or each patch with its own past and future ("time").

    x keeps its order: attention transposes q, k and v anyway, so the other axis costs no further copy."""

    def __init__(self, axis, width, heads, head_dim):
        super().__init__()
        self.axis, self.heads = axis, heads
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x, clip):
        rows, seq = ("b t", "n") if self.axis == "space" else ("b n", "t")
        split = rearrange(self.qkv(x), f"b t n (z h d) -> z ({rows}) h {seq} d", z=3, h=self.heads)
        # one copy here spares one in each product
        (q, k, v), mask = split.contiguous(), None              # (B*T,heads,N,d) or (B*N,heads,T,d) each
        if self.axis == "time":
            mask = clip.mask
            if clip.angles is not None:
                q, k = rotate(q, clip.angles[:x.shape[1]]), rotate(k, clip.angles[:x.shape[1]])
        sizes = {"b": x.shape[0], "t": x.shape[1], "n": x.shape[2]}
        kept = {letter: sizes[letter] for letter in rows.split()}
        return self.proj(rearrange(attend(q, k, v, mask), f"({rows}) h {seq} d -> b t n (h d)", **kept))


# WHERE IS THE TEXT? Class and time enter by adaLN. A prompt's tokens enter by cross-attention, in the blocks
# that look along space: what a word names, it names in every frame. Patches of all frames ask the same L
# tokens, so to cross-attention the whole clip is one long row, and the text is never copied for each frame.
class LatteBlock(nn.Module):
    """Attention along one axis or both, text in between if there is any, MLP: a DiT or a PixArt block."""

    def __init__(self, config, axes):
        super().__init__()
        width, self.axes, self.parallel = config.width, axes, config.variant == 4
        halves = 2 if self.parallel and config.v4 == "half_heads" else 1
        heads, head_dim = config.heads // halves, width // config.heads
        self.attn = AxialAttention(axes[0], width, heads, head_dim)
        self.attn_time = AxialAttention("time", width, heads, head_dim) if len(axes) == 2 else None
        reads = config.condition == "text" and config.context_dim > 0 and "space" in axes
        self.cross_attn = CrossAttention(width, config.heads) if reads else None
        self.mlp = MLP(width, int(width * config.mlp_ratio), width)
        self.conditioning = config.conditioning
        if config.conditioning == "s_adaln":
            self.adaLN_modulation = AdaLN(width, 6)
        elif config.conditioning == "adaln_single":
            self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width ** 0.5)
        else:
            self.norm_table = nn.Parameter(torch.zeros(4, width))

    # Latte 3.3.2, Fig. 10 ("scalable", S-AdaLN), as printed:
    #     AdaLN(h, c) = gamma_c LayerNorm(h) + beta_c          RCs(h, c) = alpha_c h + AdaLN(h, c)
    #     h tokens, c time and class; alpha, gamma, beta: a Linear of c, a number a channel; RC: the residual
    # DEVIATES: printed, alpha scales the residual itself; the published code, and so we, scale what a branch
    # adds to it, h + alpha F(gamma LN(h) + beta): adaLN-Zero, which makes a block start as the identity.
    #
    # Tried beside it: "all tokens", where the time and the class are tokens like others and blocks have plain
    # norms. A third fewer parameters and much worse (Fig. 5b): what enters once, below, has to survive 28
    # blocks, while adaLN speaks to each.
    def modulation(self, c, clip):
        """Shift, scale, gate of the attention, then of the MLP: (B,1,1,D), with own labels (B,T,1,D)."""
        # ASSUMED: in "all tokens" no gates, an ordinary LayerNorm (weight 1 + scale); the depth stays.
        if self.conditioning == "all_tokens":
            shift, scale, shift2, scale2 = self.norm_table
            return shift, scale, torch.ones_like(shift), shift2, scale2, torch.ones_like(shift)
        if self.conditioning == "s_adaln":
            six = self.adaLN_modulation(c)                                      # (B,G,6D)
        else:
            six = c + self.scale_shift_table.flatten()      # (B,G,6D)  one Linear for all blocks made c
        return per_frame(six, clip.video).unsqueeze(2).chunk(6, dim=-1)         # (B,1 or T,1,D) each

    def forward(self, x, c, clip):
        """x (B,T,N,D) -> (B,T,N,D)."""
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(c, clip)
        h = modulated_norm(x, shift, scale)
        attended = self.attn(h, clip)
        if self.parallel:                           # Variant 4: both axes read the same h, and are added
            attended = attended + self.over_time(h, clip)
        x = gated(x, gate, attended)                                            # (B,T,N,D)
        # ASSUMED: Variant 3 has one shift, scale and gate for both attentions; the paper draws a plain norm
        if self.attn_time is not None and not self.parallel:    # Variant 3: only a LayerNorm in between
            x = gated(x, gate, self.over_time(modulated_norm(x, shift, scale), clip))
        if self.cross_attn is not None:             # no norm, no gate; text is not repeated for each frame
            asked = self.cross_attn(x.reshape(len(clip.context), -1, x.shape[-1]), clip.context, clip.hidden)
            x = x + asked.view(x.shape)                                         # (B,T,N,D)
        return gated(x, gate2, self.mlp(modulated_norm(x, shift2, scale2)))

    def over_time(self, h, clip):
        """Temporal attention of a block that has both; with Only Video the pictures get nothing from it."""
        pictures = h.shape[1] - clip.video
        if clip.mask is not None or pictures == 0:
            return self.attn_time(h, clip)
        if clip.video == 0:
            return torch.zeros_like(h)
        return F.pad(self.attn_time(h[:, :clip.video], clip), (0, 0, 0, 0, 0, pictures))


# -------------------------------------------------------------------------------------------------- the model
#     z (B,C,T,H,W) --> patches (B,T,N,D), + where --> blocks; + when, before the first along time
#       --> norm, Linear --> patches put back (B,2C,T,H,W): the noise, and how far to trust the step (flow.py)
#
# Everything that starts silent in DiT does here, and what is temporal besides, so that a Latte made of an
# image model is, at first, that model on each frame (test_an_untrained_latte_answers_zero,
# test_time_starts_silent, test_a_silent_latte_from_dit_answers_as_dit_on_each_frame).
#
# TUBES (3.3.1, "compression"). ViViT makes one token of s frames, and recognizes videos better and s times
# faster for it. Latte tries it (Conv3d in, a transposed Conv3d out) and finds it clearly worse (Fig. 5a): a
# recognizer may forget what it does not need; a generator must give every frame back, from fewer tokens.

class TubeEmbed(nn.Module):
    """Compression patch embedding (3.3.1): s frames of p x p latent pixels become one token."""

    def __init__(self, channels, width, patch, tube):
        super().__init__()
        self.proj = nn.Conv3d(channels, width, (tube, patch, patch), (tube, patch, patch))

    def forward(self, z):
        (s, p, _), (T, H, W) = self.proj.stride, z.shape[2:]
        if T % s or H % p or W % p:
            raise UserError(f"a clip of {T} x {H} x {W} does not divide into tubes of {s} x {p} x {p}; "
                            f"choose multiples of {s} frames and of {p} latent pixels")
        return rearrange(self.proj(z), "b d t h w -> b t h w d")                # (B,T/s,h,w,D)


class PlainFinalLayer(nn.Module):
    """LayerNorm and Linear: with all_tokens the condition has come in by the tokens. c is not read."""

    def __init__(self, width, outputs):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x, c):
        return self.linear(self.norm_final(x))                                  # (B*T,N,outputs)


class Latte(nn.Module):
    """Noise of a noisy clip, and the pictures after it. Weights of the released Latte load by name."""

    Config = LatteConfig

    def __init__(self, config):
        super().__init__()
        check(config)
        self.config, width = config, config.width
        self.checkpointing = False                  # see run_block
        self.tube = config.tube if config.patch_embed == "compression" else 1
        self.register_buffer("pos_embed", self.space(config.input_size // config.patch).view(1, -1, width))
        if config.temporal == "sincos":             # a table as released; RoPE needs none
            self.register_buffer("temp_embed", sincos(torch.arange(config.frames // self.tube), width)[None])
        self.t_embedder = TimestepEmbedder(width)
        self.build_conditions(config, width)
        self.blocks = nn.ModuleList(LatteBlock(config, axes) for axes in blocks_of(config))
        channels = config.in_channels * (2 if config.learn_sigma else 1)
        head = {"s_adaln": FinalLayer, "adaln_single": SingleFinalLayer, "all_tokens": PlainFinalLayer}
        self.final_layer = head[config.conditioning](width, config.patch ** 2 * channels)
        self.x_embedder = PatchEmbed(config.in_channels, width, config.patch)
        if self.tube > 1:
            self.x_embedder = TubeEmbed(config.in_channels, width, config.patch, self.tube)
            self.upsample = nn.ConvTranspose3d(channels, channels, (self.tube, 1, 1), (self.tube, 1, 1))
        self.initialise()

    def build_conditions(self, config, width):
        if config.conditioning == "adaln_single":   # modulates all blocks, which keep a small table each
            self.t_block = AdaLN(width, 6)
        if config.condition == "class":
            self.y_embedder = LabelEmbedder(config.classes, width)
        if config.condition == "text" and config.context_dim:
            self.y_embedder = nn.ModuleDict({"y_proj": MLP(config.context_dim, width, width)})
        if config.condition == "text" and config.pooled_dim:
            self.text_embedding_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.pooled_dim, width))

    def initialise(self):
        """dit.initialise, and so that nothing temporal speaks before it has learned: the output is 0, and a
        frame is not touched by the others."""
        initialise(self)
        if self.tube > 1:
            nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
            eye = torch.eye(len(self.upsample.bias))[:, :, None, None, None]
            self.upsample.weight.data.copy_(eye.expand_as(self.upsample.weight))        # each frame s times
            nn.init.zeros_(self.upsample.bias)
        for block in self.blocks:
            if block.cross_attn is not None:
                nn.init.zeros_(block.cross_attn.proj.weight)
            if self.config.conditioning != "s_adaln":
                silence_time(block)

    def forward(self, z, t, labels=None, context=None, pooled=None, mask=None, images=0):
        """z (B,C,T,H,W), t (B,) -> noise and, if learn_sigma, variance (B,2C,T,H,W).

        The last `images` frames are pictures, each on its own; a clip of one frame is one too. labels (B,),
        context (B,L,D) with mask (B,L), pooled (B,P) hold for all frames, or have 1 + images rows a clip,
        (B,1+images,...): one for the clip and one for each picture."""
        images = 1 if z.shape[2] == 1 else images
        video = z.shape[2] - images
        tubes = self.as_tubes(z, video)
        x = self.x_embedder(tubes)                                              # (B,T/s,h,w,D)
        x = (x + self.space(*x.shape[2:4]).to(self.pos_embed.dtype)).flatten(2, 3)      # (B,T/s,N,D)
        parts, final = self.condition(t, labels, pooled)
        clip = self.describe(x, video // self.tube, context, mask)
        extra = len(parts) if self.config.conditioning == "all_tokens" else 0
        # ASSUMED: in "all tokens" they stand before every frame's patches, so space and time both see them,
        # and are cut off before the head; the paper says "at the input layer" and no more
        if extra:
            tokens = [per_frame(part, clip.video).expand(-1, x.shape[1], -1) for part in parts]
            x = torch.cat([torch.stack(tokens, dim=2).to(x.dtype), x], dim=2)   # (B,T/s,N + 1 or 2,D)
        x = self.backbone(x, self.modulator(parts), clip)[:, :, extra:]         # (B,T/s,N,D)
        out = self.head(x, final, clip.video)                                   # (B,T/s*N,p*p*2C)
        return self.as_frames(unpatchify(out, tubes[:, :, ::self.tube], self.config.patch), clip.video)

    # TRAP: when the time is added. The released model adds it after its first spatial block, not at the input
    # as 3.2 says, and its weights expect it there (test_temporal_positions_are_added_once_...).
    # ASSUMED: in Variants 2 to 4, which nobody released, likewise before the first block that looks along
    # time: in the middle of 2, at the input of 3 and 4.
    def backbone(self, x, c, clip):
        dated = self.config.temporal == "rope"
        for block in self.blocks:
            if "time" in block.axes and not dated:  # once: as released, before the first block that needs it
                x, dated = self.add_time(x, clip.video), True
            if block.axes == ("time",) and clip.mask is None and clip.video < x.shape[1]:
                if clip.video:                      # Only Video: this block does not exist for the pictures
                    moved = run_block(block, self.checkpointing, x[:, :clip.video], c[:, :1], clip)
                    x = torch.cat([moved, x[:, clip.video:]], dim=1)            # (B,T,N,D)
            else:
                x = run_block(block, self.checkpointing, x, c, clip)
        return x

    def head(self, x, final, video):
        """x (B,T,N,D) -> (B,T*N,outputs); final (B,G,D), one row a frame if pictures have their own."""
        final = per_frame(final, video).flatten(0, 1)                           # (B,D) or (B*T,D)
        out = self.final_layer(x.flatten(0, 1), final)                          # (B*T,N,outputs)
        return out.view(len(x), -1, out.shape[-1])                              # (B,T*N,outputs)

    # Latte 3.3.1. ASSUMED: a picture is a tube that stands still and its answer the tube's first frame; the
    # paper tries compression and joint training apart only.
    def as_tubes(self, z, video):
        if self.tube == 1:
            return z
        pictures = z[:, :, video:].repeat_interleave(self.tube, dim=2)          # (B,C,images*s,H,W)
        return torch.cat([z[:, :, :video], pictures], dim=2)                    # (B,C,video+images*s,H,W)

    def as_frames(self, out, video):
        if self.tube == 1:
            return out
        out, video = self.upsample(out), video * self.tube
        return torch.cat([out[:, :, :video], out[:, :, video::self.tube]], dim=2)       # (B,2C,T,H,W)

    # ---------------------------------------------------------------------------------- conditions, positions
    # What a clip is to become is one vector c, the time plus a class, or plus a text vector; and, for text,
    # the tokens that cross-attention reads. Only spatial blocks read them, as in the released text-to-video
    # model. A clip with pictures beside it (joint training) has a c for itself and one for each picture:
    # G = 1 + images rows. Positions are sines that are computed again for another size or length, so neither
    # is frozen in the weights, though the released model has tables in its file and only 16 frames.

    def condition(self, t, labels, pooled):
        """-> what the blocks hear, parts (B,G,D) to be summed or to be tokens, and what the head hears."""
        parts, kind = [self.t_embedder(t)[:, None]], self.config.condition      # (B,1,D)
        if kind == "class":
            if labels is None:
                raise UserError("this Latte was trained on classes: give labels (B,), "
                                f"{self.config.classes} for none")
            labels = labels if labels.dim() == 2 else labels[:, None]           # (B,G)
            # DEVIATES from the code: it drops the labels of a clip's pictures all together or not at all
            parts.append(self.y_embedder(labels))
        final = sum(parts)
        # As released (its setting extras=78), a text vector reaches the blocks and not the head.
        # DEVIATES Latte 4.5: its text-to-video model has no text vector, so its temporal blocks never hear of
        # the text; with pooled_dim a small model learns which word means which motion.
        if kind == "text" and self.config.pooled_dim:
            if pooled is None:
                raise UserError("this Latte was trained with a text vector: give pooled (B,P)")
            pooled = pooled if pooled.dim() == 3 else pooled[:, None]           # (B,G,P)
            parts.append(self.text_embedding_projection(pooled))
        return parts, final

    def modulator(self, parts):
        """What LatteBlock.modulation reads."""
        c = sum(parts)                                                          # (B,G,D)
        return self.t_block(c) if self.config.conditioning == "adaln_single" else c

    def describe(self, x, video, context, mask):
        """Everything else the blocks share."""
        frames, angles, hidden, see = x.shape[1], None, None, None
        if self.config.temporal == "rope":
            half = self.config.width // self.config.heads // 2
            w = 10000 ** (-torch.arange(half, device=x.device) / half)
            angles = torch.arange(frames, device=x.device)[:, None] * w         # (T,d/2)
        if self.config.joint == "temporal_mask" and video < frames:
            see = temporal_mask(video, frames - video, x.device)
        if self.config.condition == "text" and self.config.context_dim:
            if context is None:
                raise UserError("this Latte was trained on text: give context (B,L,D)")
            context = self.y_embedder["y_proj"](context)                        # (B,L,D) or (B,G,L,D)
            if context.dim() == 4:
                mask = None if mask is None else per_frame(mask, video).flatten(0, 1)
                context = per_frame(context, video).flatten(0, 1)               # (B*T,L,D)
        return Clip(video, see, angles, context, mask)

    # ASSUMED: a picture of another size spans the coordinates of training, as in PixArt; a longer clip counts
    # on, because stretched times would be slow motion. At the size of training: the checkpoint's own table.
    def space(self, rows, columns=None):
        """(h,w,D)."""
        columns, side = rows if columns is None else columns, self.config.input_size // self.config.patch
        table = getattr(self, "pos_embed", None)
        if table is not None and (rows, columns) == (side, side):
            return table.view(side, side, -1)                                   # (h,w,D)
        device = None if table is None else table.device
        across = [torch.arange(n, device=device) * (side / n) for n in (rows, columns)]
        return sincos_2d(self.config.width, *across)

    def add_time(self, x, video):
        """Date the clip's frames; a picture has no time."""
        table = self.temp_embed[0]                                              # (T,D)
        if video > len(table):
            table = sincos(torch.arange(video, device=x.device), self.config.width).to(table.dtype)
        if video == x.shape[1]:
            return x + table[:video, None]
        return torch.cat([x[:, :video] + table[:video, None], x[:, video:]], dim=1)     # (B,T,N,D)


# ---------------------------------------------------------------------------------- pictures beside a clip
# JOINT TRAINING (Latte 3.3.4, Fig. 4). Frames of 16 films are much alike; to see more of the world in a
# batch, put some single frames of other films behind each clip, along T. FVD falls from 34.00 to 27.08 on
# faces, from 477.97 to 202.23 on UCF101's 101 actions (Table 3). They must not pass for a 17th frame, so:
#
#     Only Video       pictures pass by the temporal blocks, which learn nothing from them
#     Temporal Mask    they pass through, but see only themselves, so the blocks learn from them, too
#
#                      clip   picture         UCF101, never trained on: FVD 589.86 against 705.72,
#              clip    1 1 1    0 0           FID 63.36 against 75.98
#                      1 1 1    0 0
#                      1 1 1    0 0           test_no_frame_sees_a_picture_and_no_picture_sees_a_frame
#              picture 0 0 0    1 0           test_temporal_mask_lets_pictures_train_the_temporal_blocks
#                      0 0 0    0 1
#
# ASSUMED: a picture sees itself alone, has no time added, and RoPE turns it like the frame in its place (seen
# alone, that changes nothing); the paper shows the mask as a drawing, and no other word on either.
def temporal_mask(video, images, device=None):
    """(T,T), T = video + images: the clip sees the whole clip, a picture sees itself."""
    see = torch.eye(video + images, dtype=torch.bool, device=device)
    see[:video, :video] = True
    return see


def silence_time(block):
    """What a block does along time starts at 0, and from there gets a gradient at once.

    DEVIATES Latte 4.5: the released text-to-video model starts its temporal blocks from noise."""
    layers = [block.attn.proj, block.mlp.fc2] if block.axes == ("time",) else []
    if block.attn_time is not None:
        layers = [block.attn_time.proj]
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


# FROM AN IMAGE MODEL (3.3.4). A DiT of ImageNet knows what things look like, and its blocks have the shape
# of ours. At first this helps much; then it stalls, "far worse" than a start from random weights, where faces
# are the only subject (Fig. 5d). With the variety of text-to-video data it is what everybody does (4.5).
# Latte 3.3.4: "temporally replicate the positional embedding", "discard the label embedding ... zero".
# ASSUMED: it does not say what temporal blocks start from. "all": every block takes a DiT block, as loading
# by name does. "silent": spatial blocks only, and the others add nothing yet: a video is its frames.
# "silent" is VideoDiT's zero projection (videodit.zero_linear), made of the block's own last Linear.
def init_from_image(net, image, temporal="all"):
    """Weights of a DiT, or of a PixArt for a text-to-video Latte (4.5: "silent"), into a fresh Latte."""
    theirs, ours = image.state_dict(), net.state_dict()
    carried = {name: tensor for name, tensor in theirs.items()
               if not name.startswith(("blocks.", "y_embedder.embedding_table", "pos_embed"))}
    hosts = [i for i, block in enumerate(net.blocks) if temporal == "all" or "space" in block.axes]
    for k, i in enumerate(hosts):
        source = f"blocks.{k * len(image.blocks) // len(hosts)}."       # in order, evenly, if it has more
        carried |= {f"blocks.{i}." + name.removeprefix(source): tensor
                    for name, tensor in theirs.items() if name.startswith(source)}
    if temporal == "all":               # a temporal block has no cross-attention to fill
        carried = {name: carried[name] for name in carried if name in ours or ".cross_attn." not in name}
    wrong = [name for name in carried if name not in ours or ours[name].shape != carried[name].shape]
    if wrong:
        raise UserError(f"this {type(image).__name__} does not fit this Latte: {', '.join(wrong[:3])}; "
                        "choose the same width, patch and channels, and conditioning s_adaln for a DiT, "
                        "adaln_single with condition text for a PixArt")
    if ours["pos_embed"].shape == theirs.get("pos_embed", torch.empty(0)).shape:
        carried["pos_embed"] = theirs["pos_embed"]      # added to every frame, which is to replicate it
    net.load_state_dict(carried, strict=False)
    if net.config.condition == "class":
        nn.init.zeros_(net.y_embedder.embedding_table.weight)
    if temporal == "silent":
        for block in net.blocks:
            if net.config.conditioning != "s_adaln" or block.attn_time is not None:
                silence_time(block)
    return net


# --------------------------------------------------------------------------------------------- what it costs
# Can one trust that the four variants here are the paper's four? Its tables print parameters and operations
# to five digits, and only one construction of each gives them all. This function counts as the authors did,
# mistakes included, and arrives at every printed digit.
#
# Latte Tables 1 and 2. Both were counted with the tool thop, whose rule is: a Linear costs in x out for each
# row, a convolution its kernel for each output, a LayerNorm 2 for each element; attention's own products cost
# nothing; a parameter is one of a Linear or convolution, so neither tables of positions nor of labels. It was
# given THREE clips, rows of c repeated for each frame or patch, and in Variants 3 and 4 it missed the patch
# embedding. Variant 4's 1545 G, "a quarter", is its cost at patch 4: at 2 it is Variant 3's.
def paper_count(config):
    """{params, ops: as the tables count; clip: multiply-adds of one clip, attention and patches included}."""
    with torch.device("meta"):
        net = Latte(config)
    width, patches = config.width, (config.input_size // config.patch) ** 2
    per_axis = {"space": config.frames // net.tube, "time": patches}    # rows of c, of sequences
    tokens = per_axis["space"] * patches
    norms = 1 + sum(2 + (config.variant == 3) for _ in net.blocks)
    counted, missed, linear = 0, 0, 2 * tokens * width * norms
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):
            counted += layer.weight.numel() + layer.bias.numel()
            linear += layer.weight.numel() * rows_of(name, net, per_axis, tokens)
    patch = net.x_embedder.proj
    if config.variant <= 2:
        counted += patch.weight.numel() + patch.bias.numel()
    else:
        missed = patch.weight.numel() * tokens
    linear += patch.weight.numel() * tokens
    products = 0
    for block in net.blocks:
        for axis in block.axes:
            inner = block.attn.proj.in_features
            products += 2 * tokens * inner * (patches if axis == "space" else per_axis["space"])
    return {"params": counted, "ops": 3 * (linear - missed), "clip": linear + products}


def rows_of(name, net, per_axis, tokens):
    """How many rows the published code sends through this Linear for one clip."""
    if name.startswith(("t_", "y_", "text_")) or "kv_linear" in name:   # t, labels, and one token of text
        return 1
    if "adaLN_modulation" not in name:
        return tokens
    if name.startswith("final_layer"):
        return per_axis["space"]
    return sum(per_axis[axis] for axis in net.blocks[int(name.split(".")[1])].axes)


# ---------------------------------------------------------------------------------- how alike the frames are

def cosines(one, other):
    """(B,T,N,D) twice -> (T,T): how alike frame i of one and frame j of the other are, over all patches."""
    one, other = (F.normalize(x.float().flatten(2), dim=-1) for x in (one, other))      # (B,T,N*D)
    return (one @ other.transpose(1, 2)).mean(0)                                        # (T,T)


# A clip's frames are nearly the same, so their features should be, too, and frame 1 more like 2 than like 5.
# The paper looks into each block with this measure (4.2):
#     S_ij = cos(features of frame i, features of frame j)            (T,T), 1: the same
# Fig. 6: in Variant 2 each further spatial block makes the frames less alike, and unevenly so, until nearer
# frames are less alike than far ones ("inverted"). Fig. 8: in Variant 4 what the two attentions add to each
# other is not alike at all.
@torch.no_grad()
def frame_similarity(net, z, t, cond):
    """{name: (T,T)} for each block's output, and for both attentions and between them if a block has both."""
    seen = {}
    keep = lambda name: lambda module, given, out: seen.__setitem__(name, out)
    hooks = []
    for i, block in enumerate(net.blocks):
        hooks.append(block.register_forward_hook(keep(f"{i} {'+'.join(block.axes)}")))
        if block.attn_time is not None:
            hooks += [block.attn.register_forward_hook(keep(f"{i} space alone")),
                      block.attn_time.register_forward_hook(keep(f"{i} time alone"))]
    net(z, t, **cond)
    for hook in hooks:
        hook.remove()
    found = {name: cosines(out, out) for name, out in seen.items()}
    for name in [name for name in seen if name.endswith("space alone")]:
        other = name.replace("space", "time")
        found[name.replace("space alone", "space with time")] = cosines(seen[name], seen[other])
    return dict(sorted(found.items(), key=lambda item: int(item[0].split()[0])))


# Off the diagonal of S: its mean, its variance, and of all triples i < j < k the share of those in which j,
# the nearer frame, is less like i than k is. A random order has half of them inverted, steady motion none.
def summary(matrix):
    """Mean and variance over pairs of frames; how often a frame is more like a later than a nearer one."""
    i, j = torch.triu_indices(len(matrix), len(matrix), 1)
    i3, j3, k3 = torch.combinations(torch.arange(len(matrix)), 3).T
    inverted = (matrix[i3, j3] < matrix[i3, k3]).float().mean().item() if len(matrix) > 2 else 0.0
    return matrix[i, j].mean().item(), matrix[i, j].var(correction=0).item(), inverted


def draw_similarity(path, found, columns=7, side=96):
    """One square a block, white where two frames are alike (1), black at 0 or below."""
    rows = math.ceil(len(found) / columns)
    sheet = Image.new("L", (min(columns, len(found)) * (side + 8) + 8, rows * (side + 20) + 8), 60)
    for k, (name, matrix) in enumerate(found.items()):
        left, top = 8 + k % columns * (side + 8), 8 + k // columns * (side + 20)
        grey = (matrix.clamp(0, 1) * 255).byte().numpy()
        sheet.paste(Image.fromarray(grey).resize((side, side), Image.NEAREST), (left, top + 12))
        ImageDraw.Draw(sheet).text((left, top), name, fill=255)
    write_atomic(path, sheet.save)


def nothing_asked(net, batch):
    """The conditions of an unguided clip: no class, or text that is all zeros."""
    # ASSUMED: the null prompt is zeros, as flow.drop_prompt has it in training; the released text-to-video
    # model, whose training nobody has seen, is sampled with an encoded "" instead (sample.py)
    config, zeros = net.config, torch.zeros
    if config.condition == "class":
        return {"labels": torch.full((batch,), config.classes)}
    if config.condition == "text":
        return {"context": zeros(batch, 1, config.context_dim), "pooled": zeros(batch, config.pooled_dim)}
    return {}

if __name__ == "__main__":
    from demos.show_latte import main

    main()
