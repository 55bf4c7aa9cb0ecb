"""dit.py - the image transformers that denoise: their parts, SD3's MMDiT, DiT, PixArt.
Paper    MMDiT: Esser et al. 2024 (SD3); DiT: Peebles & Xie 2023; PixArt-alpha: Chen et al. 2024
Shapes   z (B,C,T,H,W) scaled latents, an image has T=1; x (B,T*N,D) tokens, N = h*w patches in a frame;
         context (B,L,D) text tokens, pooled (B,P), c (B,D) what modulates every block: time and pooled text
Time     MMDiT: t in [0,1], 0 noise, 1 data (Eq. 5); DiT, PixArt: DDPM's integer steps, 999 noise
Differs  module names are the released checkpoints', so that their weights load (pretrained.py)
Reads    after text.py, before videodit.py and latte.py
Run me   python dit.py      # CPU, 3 s: untrained they answer 0

THE PROBLEM. flow.py left one thing open: the network. It gets a noisy latent z, the time t, and a prompt, and
answers with an array of z's shape (which way the clip lies, or what the noise was). It has to look FAR (if
the left ear is a cat's, so is the right one); to follow the PROMPT, and t (at t=0 all is fog and only the
prompt says what will be, at t=1 only hairs are missing); and to be TRAINED deep and long without falling
apart. Attention is for the first, adaLN for the second, its zeros for the third.

THE IDEA is to make of an image what transformers are good at, a set of tokens:

    z (B,C,T,H,W)                                                                          v (B,C,T,H,W)
        | cut into p x p patches, one Linear                          Linear, put the patches back |
        v                                                                                          |
    tokens (B,N,D)  +  position embedding (N,D) --> [ block ] --> [ block ] --> ... --> norm ------+
                                                       ^            ^                    ^
    t      (B,)   --> waves --> MLP --+                |            |                    |
                                      +--> c (B,D) ----+------------+--------------------+  adaLN
    pooled (B,P)  ------------> MLP --+                |            |
    context (B,L,text's width) --> Linear --> text tokens (B,L,D) --+   attention (SD3, PixArt; not DiT)

A block is attention and an MLP, and each ADDS to its input what it found: 28 blocks are 56 corrections of one
stream, and a gradient reaches the first as directly as the last ("residual").

HOW DOES A BLOCK LEARN OF t AND THE PROMPT? Peebles & Xie tried four ways (DiT 3.2, Fig. 5): t and the label
as two more tokens; cross-attention, with queries from the image and keys and values from these two; adaLN,
where they set scale and shift of each norm; and adaLN-Zero, the same with a gate on what each step adds, zero
at the start. The last one won by far (its FID, a distance from real images, was about half of the first's),
and takes hardly any work beside attention. Everybody uses it for t. A prompt is too rich for one vector:
PixArt adds cross-attention to its tokens, SD3 lets them join the image's.

Before this, the network was a U-Net of convolutions (Stable Diffusion 1): it sees near things first, has
shortcuts between sizes, and needs layers of another kind for time. DiT showed that none of this is needed,
and that quality follows compute, whether spent on depth, width or smaller patches (DiT 5)."""

from support.cli import UserError, polite    # first: see there

import copy
import math
from collections import Counter
from dataclasses import dataclass, replace

from einops import rearrange
import torch
from torch import nn

from support.ops import attend, gated, gelu, modulated_norm, run_block, without_autocast


# ---------------------------------------------------------------------------------------------------- a block
# ADALN. A LayerNorm brings each token to mean 0 and standard deviation 1 and then stretches and moves its D
# channels by a weight and a bias, the same for every input. adaLN ("adaptive", after FiLM, Perez et al. 2018)
# lets the condition choose them:
#
#     modulated_norm(x, shift, scale) = LN(x) (1 + scale(c)) + shift(c)                         (DiT 3.2)
#     gated(x, gate, found)           = x + gate(c) found          found: what attention or MLP made of it
#     x (B,N,D) tokens; c (B,D) time and prompt; shift, scale, gate (B,1,D): the same for all tokens of a clip
#
# Why is that enough to tell a network the time? A scale near -1 mutes a channel, a large one makes it loud,
# a shift decides which of its values pass the next nonlinearity: c picks, out of one network, a somewhat
# different one for each t. "1 +", so that a Linear that says 0 leaves an ordinary LayerNorm.
class AdaLN(nn.Sequential):
    """c (B,D) -> (B,parts*D): `parts` of shift, scale and gate, for the caller to cut."""

    def __init__(self, width, parts):
        super().__init__(nn.SiLU(), nn.Linear(width, parts * width))

    def forward(self, c):
        return without_autocast(super().forward, c, self[1].weight.dtype)


# ATTENTION is the only place where tokens meet. Each token makes a query q, a key k and a value v; it gets
# the mean of all tokens' values, weighted by how well their keys fit its query:
#
#     softmax(q k^T / sqrt(d)) v          (ops.attend)
#
# Its cost grows with N^2, but its weights fit any N: videodit.py is built on that. The D
# channels are cut into `heads` groups of d, each with its own queries, so a token can attend to its
# neighbours, to its mirror image and to the word "red" at the same time. 1/sqrt(d) keeps the softmax soft,
# since q k is a sum of d products.
class Attention(nn.Module):
    """Self-attention. A joint block takes it in two steps, and joins two streams between them."""

    def __init__(self, width, heads, qk_norm="", proj=True):
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.qkv = nn.Linear(width, 3 * width)              # one product for the three is faster than three
        if proj:                        # the last joint block's text has none: nobody reads what it found
            self.proj = nn.Linear(width, width)
        if qk_norm:                     # SD3.5: keeps q k bounded, where SD3 may diverge if trained further
            self.ln_q = nn.RMSNorm(width // heads, eps=1e-6)
            self.ln_k = nn.RMSNorm(width // heads, eps=1e-6)

    def queries_keys_values(self, x):
        """x (B,N,D) -> q, k, v, each (B,heads,N,d)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B,N,heads,d) each
        if self.qk_norm:
            q = self.ln_q(q.to(self.ln_q.weight.dtype)).to(v.dtype)
            k = self.ln_k(k.to(self.ln_k.weight.dtype)).to(v.dtype)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x):
        q, k, v = self.queries_keys_values(x)                               # (B,heads,N,d) each
        return self.proj(rearrange(attend(q, k, v), "b h n d -> b n (h d)"))            # (B,N,D)


class MLP(nn.Module):
    """Each token by itself, four times as wide inside, then back: most of a block's parameters."""

    def __init__(self, in_width, hidden, width):
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(gelu(self.fc1(x)))                                  # (B,N,D)


# TWO STREAMS. A class is one vector; a prompt is a sentence, and its words concern different places. SD3
# (Esser et al. 2024, 4) puts text tokens and image tokens into ONE attention, so that all attend to all: a
# patch to the word that names its colour, and the word "ball" to what has become of it. But words and patches
# are different things, so each kind has weights of its own for all else. That is a joint block:
#
#     text     (B,L,D) --> adaLN --> q k v --+                   +--> proj, gate, + --> MLP --> (B,L,D)
#                           ^ own weights    |  one attention    |    own weights
#                           c                +--> over L + N ----+
#                           v own weights    |  tokens           |    own weights
#     image    (B,N,D) --> adaLN --> q k v --+                   +--> proj, gate, + --> MLP --> (B,N,D)
#
# "MM" is multi-modal. Tried by SD3 beside it (5.2.3): one set of weights for both kinds, cross-attention, a
# U-ViT (blocks with a U-Net's shortcuts), three sets (CLIP's apart from T5's), which gain little for their
# size. Cross-attention, PixArt's choice below, is a one-way street: patches read words that never change. The
# text has no positions here (its encoder has written them in), and no mask: padding is read like words.
class JointBlock(nn.Module):
    """Text and image keep their own weights and meet in one attention over both."""

    def __init__(self, config, dual=False, last=False):
        super().__init__()
        self.last = last
        self.context_block = StreamBlock(config, pre_only=last)     # nothing reads the last block's text
        self.x_block = StreamBlock(config, dual=dual)

    def forward(self, context, x, c):
        """context (B,L,D), x (B,N,D), c (B,D) -> context (None after the last block), x."""
        text, text_modulation = self.context_block.pre_attention(context, c)
        image, image_modulation = self.x_block.pre_attention(x, c)
        q, k, v = [torch.cat(pair, dim=2) for pair in zip(text, image)]     # (B,heads,L+N,d) each
        found = rearrange(attend(q, k, v), "b h n d -> b n (h d)")          # (B,L+N,D)
        for_text, for_image = found.split([context.shape[1], x.shape[1]], dim=1)        # (B,L,D) (B,N,D)
        x = self.x_block.post_attention(x, for_image, image_modulation)
        if self.last:
            return None, x
        return self.context_block.post_attention(context, for_text, text_modulation), x


class StreamBlock(nn.Module):
    """One stream of a joint block: what it does before the attention and, if not pre_only, after it."""

    def __init__(self, config, dual=False, pre_only=False):
        super().__init__()
        width = config.heads * config.head_dim
        self.dual = dual
        self.chunks = 6                             # shift, scale, gate of the attention, then of the MLP
        if dual:
            self.chunks = 9                         # and of the second attention
        if pre_only:
            self.chunks = 2                         # shift and scale
        self.adaLN_modulation = AdaLN(width, self.chunks)
        self.attn = Attention(width, config.heads, config.qk_norm, proj=not pre_only)
        if dual:
            self.attn2 = Attention(width, config.heads, config.qk_norm)
        if not pre_only:
            self.mlp = MLP(width, int(width * config.mlp_ratio), width)

    def pre_attention(self, x, c):
        """-> q, k and v, (B,heads,N,d) each, and the modulations that post_attention needs."""
        modulation = self.adaLN_modulation(c).unsqueeze(1)                  # (B,1,chunks*D)
        shift, scale, *others = modulation.chunk(self.chunks, dim=-1)       # (B,1,D) each
        return self.attn.queries_keys_values(modulated_norm(x, shift, scale)), others

    def post_attention(self, x, found, modulation):
        """What attention found joins the stream, then what the MLP finds, each through its gate."""
        gate, shift2, scale2, gate2 = modulation[:4]
        joined = gated(x, gate, self.attn.proj(found))                      # (B,N,D)
        if self.dual:                   # SD3.5: reads the same stream as the joint attention, not its result
            shift3, scale3, gate3 = modulation[4:]
            joined = gated(joined, gate3, self.attn2(modulated_norm(x, shift3, scale3)))
        return gated(joined, gate2, self.mlp(modulated_norm(joined, shift2, scale2)))


# ------------------------------------------------------------------------------------- tokens in, tokens out
# PATCHIFY. One token for each latent pixel would be best and costs most: attention grows with the square of
# their number, so p=2 is 16 times cheaper than p=1 (N = HW / p^2). A convolution whose stride is its kernel
# cuts into patches and applies one Linear to each. On the way back the Linear is the model's last layer.
# TRAP: the convolution reads a patch as (channel, row, column), the last Linear writes (row, column,
# channel): the released weights do, so one helper for both directions would scramble every patch
# (test_golden_mmdit_equals_the_published_network).
class PatchEmbed(nn.Module):
    """2D patchify: each p x p patch of each frame becomes one token."""

    def __init__(self, channels, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, z):
        p = self.proj.stride[0]
        H, W = z.shape[-2:]
        if H % p or W % p:
            raise UserError(f"a latent of {H} x {W} does not divide into patches of {p}; choose a height and "
                            f"width that are multiples of {p} latent pixels ({8 * p} pixels with an 8x VAE)")
        x = self.proj(rearrange(z, "b c t h w -> (b t) c h w"))             # (B*T,D,h,w)
        # contiguous: else the channels stay far apart in memory, and every norm of every block copies x first
        return rearrange(x, "(b t) d h w -> b t h w d", b=len(z)).contiguous()          # (B,T,h,w,D)


def unpatchify(x, z, patch):
    """x (B,T*N,p*p*C) -> (B,C,T,H,W) like z. Channels vary fastest here, but slowest in the convolution."""
    T, h, w = z.shape[2], z.shape[3] // patch, z.shape[4] // patch
    return rearrange(x, "b (t h w) (p q c) -> b c t (h p) (w q)", t=T, h=h, w=w, p=patch, q=patch)


class FinalLayer(nn.Module):
    """The head: adaLN once more (no gate: nothing is added to), then each token becomes its patch."""

    def __init__(self, width, outputs):
        super().__init__()
        self.adaLN_modulation = AdaLN(width, 2)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x, c):
        """x (B*k,N,D), c (B,D) -> (B*k,N,outputs); each row of c serves k consecutive rows of x."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)           # (B,1,D)
        h = modulated_norm(x.reshape(len(c), -1, x.shape[-1]), shift, scale)            # (B,k*N,D)
        return self.linear(h).view(*x.shape[:2], -1)                                    # (B*k,N,outputs)


class VectorEmbedder(nn.Module):
    """The pooled text as a vector of the model's width."""

    def __init__(self, in_width, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, vector):
        return self.mlp(vector)                                             # (B,D)


class TimestepEmbedder(nn.Module):
    """t (B,) -> (B,D): 256 waves of t, then an MLP. A bare number would be one weak input among thousands; of
    waves of every length, some change quickly and tell 998 from 999, some slowly and tell early from late."""

    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        return self.mlp(timestep_embedding(t).to(self.mlp[0].weight.dtype))     # (B,D)


class LabelEmbedder(nn.Module):
    """A class label as a vector. One row more than classes: the last is "no class", for guidance.

    DiT's code drops labels in here, by the process's own random numbers, so two processes drop other labels
    than one does. Here the training step drops them, by keyed draws (flow.drop_labels)."""

    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels):
        return self.embedding_table(labels)                                 # (B,D)


# ADALN-ZERO (DiT 3.2): the Linear that makes shift, scale AND gate starts at zero. So each block starts as
# the identity (PixArt's does not: below), however deep the network: nothing explodes, and each block joins in
# as soon as its gate has learned that this helps. The head starts at zero, too: the first answer is 0, the
# best guess of somebody who knows nothing
# (test_a_new_network_predicts_zero_and_its_blocks_change_nothing).
#
# Is a network of zeros not stuck? A weight of 0 that multiplies something has that something for a gradient.
# So the first step of training moves the head alone; the second also the gates, which multiply what attention
# and MLP found, the head's modulation and the patch embedding; and from the third on everything learns (of
# SD3's text, attention's output and MLP a step later: its gates are behind those of the image)
# (test_zeros_open_one_after_the_other).
def initialise(net):
    """How every transformer here starts when it is not loaded; the last line of its constructor."""
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))          # a convolution counts as a Linear
            nn.init.zeros_(module.bias)
            if name.startswith(("t_embedder", "y_embedder")):               # as DiT does: small at first
                nn.init.normal_(module.weight, std=0.02)
            if "adaLN_modulation" in name or name.startswith("final_layer"):
                nn.init.zeros_(module.weight)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


# ---------------------------------------------------------------------------------------- position embeddings
# Attention treats its tokens as a set: shuffle them, and each gets the same result as before. So a position
# embedding is added to each token once, before the first block. A number is written as waves, as the hands of
# a clock write the time: the fast hand tells neighbours apart, the slow ones say which hour it is, and "three
# patches further" turns each hand by a fixed angle, wherever one starts.
#
#     PE(p) = [sin(p w_0) .. sin(p w_K-1), cos(p w_0) .. cos(p w_K-1)],   w_k = 10000^(-k/K),   K = width / 2
#     (Vaswani et al. 2017, 3.5, there with sin and cos in turn)
#
# A patch of an image has two coordinates, so half of the channels write the column, half the row. Tried by
# others: a learned table (Vision Transformer) knows no other size; rotary embeddings turn q and k in every
# block instead (latte.rotate; most video models since) and would change these trained models.
# TRAPS, both as released: the COLUMN comes first; positions are [sin|cos], times are [cos|sin]
# (test_golden_sincos_table_of_mmdit, test_golden_mmdit_equals_the_published_network).

def sincos(positions, width):
    """(P,) coordinates -> (P,width) = [sin(p w_k) | cos(p w_k)], w_k = 10000^(-k / (width/2))."""
    k = torch.arange(width // 2, device=positions.device)
    angles = positions[:, None].float() * 10000 ** (-k / (width / 2))       # (P,width/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)                  # (P,width)


def sincos_2d(width, rows, columns):
    """rows (h,), columns (w,) -> (h,w,width). The column takes the first half of the channels as released."""
    first = 2 * (width // 4)
    across = sincos(columns, first).expand(len(rows), -1, -1)               # (h,w,D/2)
    down = sincos(rows, width - first)[:, None].expand(-1, len(columns), -1)    # (h,w,D/2)
    return torch.cat([across, down], dim=-1)                                # (h,w,D)


def centred(count, grid, base, device=None):
    """(count,) coordinates of the `count` central ones of `grid` patches, `base` of which span 0..16.

    SD3: (p - 64) / 4 in its grid of 192. A larger image shows more of the plane and no token of it moves,
    which is why a model trained at 320 x 320 can go on at 512 x 512."""
    p = torch.arange(count, device=device) + (grid - count) // 2
    return (p - (grid - base) / 2) * 16 / base


def timestep_embedding(t, width=256):
    """t (B,) -> (B,width) = [cos | sin]: cosines first, unlike the positions. float32: t goes up to 1000."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies                               # (B,width/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)                  # (B,width)


# --------------------------------------------------------------------------------- MMDiT (Esser et al. 2024)

@dataclass
class MMDiTConfig:                  # the defaults are SD3-medium
    in_channels: int = 16           # of the latent
    patch: int = 2                  # latent pixels on a side of a token
    depth: int = 24                 # joint blocks; SD3 scales by depth alone (heads = depth), toys need not
                                    # (stage videodit, --init a shallower one: deepen adds zero-gated copies)
    heads: int = 24                 # of attention
    head_dim: int = 64              # width = heads * head_dim
    mlp_ratio: float = 4.0          # hidden width of the MLPs, in widths
    context_dim: int = 4096         # width of the text tokens (T5)
    pooled_dim: int = 2048          # width of the pooled text (CLIP-L and CLIP-G)
    pos_grid: int = 192             # patches on a side of the largest image
    base_size: int = 64             # patches on a side that span the coordinates 0..16
    qk_norm: str = ""               # "rms" in SD3.5
    dual_attention: int = 0         # SD3.5-medium: the first 13 blocks attend a second time, the image alone


class MMDiT(nn.Module):
    """SD3's transformer. It attends over all T*h*w tokens. T=1 is the image model as it was trained; T>1 is
    an image model asked for a video (VideoDiT Fig. 2): the subject holds still, the details break up.

    Nothing here tells one frame from another: each gets the same position embedding, and attention is blind
    to order. A clip fed backwards comes out backwards and is otherwise the same (the demo measures it);
    videodit.py cures that."""

    Config = MMDiTConfig

    def __init__(self, config):
        super().__init__()
        width = config.heads * config.head_dim
        self.config = config
        self.checkpointing = False                  # gradient checkpointing: see run_block
        grid = centred(config.pos_grid, config.pos_grid, config.base_size)
        self.register_buffer("pos_embed", sincos_2d(width, grid, grid).view(1, -1, width))
        self.x_embedder = PatchEmbed(config.in_channels, width, config.patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = VectorEmbedder(config.pooled_dim, width)
        self.context_embedder = nn.Linear(config.context_dim, width)
        self.joint_blocks = nn.ModuleList(
            JointBlock(config, dual=i < config.dual_attention, last=i == config.depth - 1)
            for i in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch ** 2 * config.in_channels)
        initialise(self)

    def forward(self, z, t, context, pooled):
        """v (B,C,T,H,W) at time t (B,), 0 noise, 1 data."""
        return in_our_time(self.forward_sd3, z, t, context, pooled)

    def forward_sd3(self, z, timestep, context, pooled):
        """The network as released: timestep (B,) 0 data, 1000 noise; output noise - data."""
        x, c = self.embed(z), self.condition(timestep, pooled)
        context = self.context_embedder(context)                            # (B,L,D)
        for block in self.joint_blocks:
            context, x = run_block(block, self.checkpointing, context, x, c)
        return unpatchify(self.final_layer(x, c), z, self.config.patch)     # (B,C,T,H,W)

    def embed(self, z):
        """z (B,C,T,H,W) -> (B,T*N,D): every frame gets the position embedding of an image."""
        x = self.x_embedder(z)                                              # (B,T,h,w,D)
        return (x + self.positions(*x.shape[2:4])).flatten(1, 3)            # (B,T*N,D)

    def positions(self, h, w):
        """(h,w,D), the centre of the table. TRAP: a checkpoint brings the table it was trained with. It looks
        like a formula's, but Diffusers' own formula gives another, and nothing fails but the images."""
        grid = self.config.pos_grid
        if max(h, w) > grid:
            raise UserError(f"{h} x {w} patches do not fit this model's table of {grid} x {grid} positions; "
                            "choose a smaller height and width")
        top, left = (grid - h) // 2, (grid - w) // 2
        return self.pos_embed.view(grid, grid, -1)[top:top + h, left:left + w]          # (h,w,D)

    def condition(self, timestep, pooled):
        """c: how noisy it is, and what it should become, in one vector."""
        return self.t_embedder(timestep) + self.y_embedder(pooled)          # (B,D)


# VideoDiT Eq. 5: X_t = (1-t) X_0 + t X_1, v = X_1 - X_0, with X_0 noise, X_1 data. SD3 counts the other way:
# sigma = 1 - t, the network is fed 1000 sigma and predicts noise - data = -v. Here, and in
# flow.velocity_of, the two meet (test_golden_time_runs_the_other_way_in_sd3).
def in_our_time(sd3_network, z, t, context, pooled):
    return -sd3_network(z, 1000 * (1 - t.float().expand(len(z))), context, pooled)


# A DEEPER NETWORK FROM A TRAINED ONE. adaLN-Zero's gates let a network grow, too: a copy of a block, its
# gates set to zero, changes nothing. So a trained network of 6 blocks becomes one of 10 that answers the same
# to the last bit, and training goes on from there (test_a_deepened_network_answers_as_before). A copy rather
# than new weights: as soon as its gate opens a crack, what it adds is sensible. Neither paper does this;
# `train.py --stage videodit --init FOLDER --dit.depth 10` does. TRAP: the last block is of another kind,
# nobody reads its text; it stays the last.
def deepen(image, depth):
    """An MMDiT, in place: zero-gated copies behind its blocks, spread evenly, until it has `depth`."""
    old = len(image.joint_blocks)
    copies = Counter(i * (old - 1) // (depth - old) for i in range(depth - old))        # behind which block
    blocks = []
    for i, block in enumerate(image.joint_blocks):
        blocks.append(block)
        blocks += [zero_gated(copy.deepcopy(block)) for _ in range(copies[i])]
    image.joint_blocks = nn.ModuleList(blocks)
    image.config = replace(image.config, depth=depth)


@torch.no_grad()
def zero_gated(block):
    for stream in (block.context_block, block.x_block):
        for part in stream.adaLN_modulation[1].parameters():                # (chunks*D,D), (chunks*D,)
            part.unflatten(0, (stream.chunks, -1))[2::3] = 0                # each third is a gate
    return block


# ----------------------------------------------------------------------------------- DiT (Peebles & Xie 2023)
# The plain one, made for 1000 classes of ImageNet: c is the time plus the class, and there is no text. Its
# block is one stream (DiT Fig. 3); Latte's blocks are these, along other axes:
#
#     c --> SiLU, Linear --> shift_1 scale_1 gate_1  shift_2 scale_2 gate_2    (B,6D), which starts at 0
#
#     x --+--> LN --> (1 + scale_1), + shift_1 --> attention --> gate_1 --> + --> the same with the MLP --> x
#         +-----------------------------------------------------------------^
#
# It predicts noise, and with learn_sigma how far to trust the step as well: twice the channels (flow.py).

@dataclass
class DiTConfig:                    # the defaults are DiT-XL/2 (size XL, patch 2) at 256 x 256
    in_channels: int = 4            # of the latent
    input_size: int = 32            # latent pixels on a side; the table of positions has no other size
    patch: int = 2                  # latent pixels on a side of a token
    depth: int = 28                 # blocks
    width: int = 1152               # of a token, D
    heads: int = 16                 # of attention
    mlp_ratio: float = 4.0          # hidden width of the MLPs, in widths
    classes: int = 1000             # of labels; label 1000 is then "no class"
    learn_sigma: bool = True        # twice the channels out: noise, then the variance's interpolation


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by c (adaLN-Zero)."""

    def __init__(self, width, heads, mlp_ratio=4.0):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = MLP(width, int(width * mlp_ratio), width)
        self.adaLN_modulation = AdaLN(width, 6)

    def forward(self, x, c):
        """x (B,N,D), c (B,D) -> (B,N,D)."""
        six = self.adaLN_modulation(c).unsqueeze(1)                                     # (B,1,6D)
        shift, scale, gate, shift2, scale2, gate2 = six.chunk(6, dim=-1)                # (B,1,D) each
        x = gated(x, gate, self.attn(modulated_norm(x, shift, scale)))
        return gated(x, gate2, self.mlp(modulated_norm(x, shift2, scale2)))


class DiT(nn.Module):
    """Images of one size, of a class. Its table of positions has an entry for each token and no more."""

    Config = DiTConfig

    def __init__(self, config):
        super().__init__()
        width = config.width
        self.config = config
        self.checkpointing = False
        grid = torch.arange(config.input_size // config.patch)
        self.register_buffer("pos_embed", sincos_2d(width, grid, grid).view(1, -1, width))
        self.x_embedder = PatchEmbed(config.in_channels, width, config.patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.classes, width)
        self.blocks = nn.ModuleList(DiTBlock(width, config.heads, config.mlp_ratio)
                                    for _ in range(config.depth))
        outputs = config.in_channels * (2 if config.learn_sigma else 1)
        self.final_layer = FinalLayer(width, config.patch ** 2 * outputs)
        initialise(self)

    def forward(self, z, t, labels):
        """z (B,C,1,H,W), t (B,) integer steps, labels (B,), last = "no class" -> (B,2C,1,H,W), or C."""
        size = self.config.input_size
        if z.shape[2:] != (1, size, size):
            raise UserError(f"this DiT makes one image of {size} x {size} latent pixels, "
                            f"not (frames, height, width) {tuple(z.shape[2:])}; choose that size")
        x = self.x_embedder(z).flatten(1, 3) + self.pos_embed               # (B,N,D)
        c = self.t_embedder(t) + self.y_embedder(labels)                    # (B,D)
        for block in self.blocks:
            x = run_block(block, self.checkpointing, x, c)
        return unpatchify(self.final_layer(x, c), z, self.config.patch)     # (B,2C,1,H,W)


# ---------------------------------------------------------------------------- PixArt-alpha (Chen et al. 2024)
# DiT that reads. Two changes, and Latte's text-to-video model inherits both:
#   * cross-attention between self-attention and MLP: queries from patches, keys and values from words. In
#     training its last Linear starts at zero (latte.py does so; a PixArt here is always loaded), so a trained
#     DiT goes on as if it were not there. No norm and no gate, as released.
#   * adaLN-single. Of the 22 D^2 weights of a block (attention 4, MLP 8, cross-attention 4) 6 D^2 would be
#     the Linear that turns c into shifts, scales and gates; but c is now the time alone, and all blocks need
#     much the same of it. So one Linear serves the network, and each block adds a small table of its own:
#         S_i = S(t) + E_i         S (B,6D) one for all; E_i (6,D) learned, block i's     (PixArt-alpha 2.3)

@dataclass
class PixArtConfig:                 # the defaults are PixArt-XL/2 at 512 x 512
    in_channels: int = 4            # of the latent
    out_channels: int = 8           # noise, then the variance's interpolation
    patch: int = 2                  # latent pixels on a side of a token
    depth: int = 28                 # blocks
    width: int = 1152               # of a token, D
    heads: int = 16                 # of attention
    mlp_ratio: float = 4.0          # hidden width of the MLPs, in widths
    caption_channels: int = 4096    # T5's width
    sample_size: int = 64           # latent pixels on a side in training
    interpolation: float = 1.0      # positions span 0..sample_size / patch / interpolation; 2 at 1024 x 1024
    micro_conditions: bool = False  # resolution and aspect ratio as conditions; at 1024 x 1024


class CrossAttention(nn.Module):
    """Tokens attend to the text."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, context, mask=None):
        """x (B,N,D), context (B,L,D), mask (B,L) True or 1 for text, False or 0 for padding."""
        q = rearrange(self.q_linear(x), "b n (h d) -> b h n d", h=self.heads)           # (B,heads,N,d)
        kv = rearrange(self.kv_linear(context), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        k, v = kv                                                                       # (B,heads,L,d) each
        if mask is not None:
            mask = mask.bool()[:, None, None]                                           # (B,1,1,L)
        return self.proj(rearrange(attend(q, k, v, mask), "b h n d -> b n (h d)"))      # (B,N,D)


class PixArtBlock(nn.Module):
    """A DiT block by adaLN-single: its table, added to the network's one modulation; and an ungated
    cross-attention to the text."""

    def __init__(self, width, heads, mlp_ratio=4.0):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width ** 0.5)
        self.attn = Attention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = MLP(width, int(width * mlp_ratio), width)

    def forward(self, x, c6, context, mask=None):
        """x (B,N,D), c6 (B,6D), context (B,L,D), mask (B,L) -> (B,N,D)."""
        six = c6.unflatten(-1, (6, -1)) + self.scale_shift_table                        # (B,6,D)
        shift, scale, gate, shift2, scale2, gate2 = six.chunk(6, dim=1)                 # (B,1,D) each
        x = gated(x, gate, self.attn(modulated_norm(x, shift, scale)))
        x = x + self.cross_attn(x, context, mask)
        return gated(x, gate2, self.mlp(modulated_norm(x, shift2, scale2)))


class SingleFinalLayer(nn.Module):
    """FinalLayer with a table in place of the Linear: it adds c itself, before any SiLU."""

    def __init__(self, width, outputs):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width ** 0.5)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x, c):
        """x (B*k,N,D), c (B,D) -> (B*k,N,outputs)."""
        shift, scale = (self.scale_shift_table + c[:, None]).chunk(2, dim=1)            # (B,1,D)
        h = modulated_norm(x.reshape(len(c), -1, x.shape[-1]), shift, scale)            # (B,k*N,D)
        return self.linear(h).view(*x.shape[:2], -1)                                    # (B*k,N,outputs)


class PixArt(nn.Module):
    """Images of any shape, of a prompt that T5 has read. It pads to one length: mask hides the padding."""

    Config = PixArtConfig

    def __init__(self, config):
        super().__init__()
        width = config.width
        self.config = config
        self.checkpointing = False
        self.x_embedder = PatchEmbed(config.in_channels, width, config.patch)
        self.t_embedder = TimestepEmbedder(width)
        self.t_block = AdaLN(width, 6)          # modulates all the blocks
        if config.micro_conditions:
            self.csize_embedder = TimestepEmbedder(width // 3)
            self.ar_embedder = TimestepEmbedder(width // 3)
        self.y_embedder = nn.ModuleDict({"y_proj": MLP(config.caption_channels, width, width)})
        self.blocks = nn.ModuleList(PixArtBlock(width, config.heads, config.mlp_ratio)
                                    for _ in range(config.depth))
        self.final_layer = SingleFinalLayer(width, config.patch ** 2 * config.out_channels)
        initialise(self)

    def forward(self, z, t, context, mask=None, resolution=None, aspect_ratio=None):
        """z (B,C,1,H,W), t (B,) integer steps, context (B,L,caption_channels), mask (B,L) -> (B,2C,1,H,W).
        micro_conditions: resolution (B,2), height and width in pixels, and aspect_ratio (B,1)."""
        x = self.x_embedder(z)                                              # (B,1,h,w,D)
        x = (x + self.positions(*x.shape[2:4], z.device).to(x.dtype)).flatten(1, 3)     # (B,N,D)
        c = self.condition(t, resolution, aspect_ratio)                     # (B,D)
        c6 = self.t_block(c)                                                # (B,6D)
        context = self.y_embedder["y_proj"](context)                        # (B,L,D)
        for block in self.blocks:
            x = run_block(block, self.checkpointing, x, c6, context, mask)
        return unpatchify(self.final_layer(x, c), z, self.config.patch)     # (B,2C,1,H,W)

    def positions(self, h, w, device=None):
        """(h,w,D): every image, of whatever shape, spans the same coordinates: the opposite of SD3's choice
        (`centred`), so at another size each token lies elsewhere. Not in the checkpoint."""
        span = self.config.sample_size / self.config.patch / self.config.interpolation
        rows, columns = (torch.arange(n, device=device) * span / n for n in (h, w))
        return sincos_2d(self.config.width, rows, columns)

    def condition(self, t, resolution, aspect_ratio):
        """c is the time; the 1024 model is also told an image's size, so that small ones did not have to be
        thrown out of its training data (Stable Diffusion XL's idea)."""
        c = self.t_embedder(t)                                              # (B,D)
        if not self.config.micro_conditions:
            return c
        if resolution is None or aspect_ratio is None:
            raise UserError("this PixArt was trained with micro-conditions: give resolution and aspect_ratio")
        size = self.csize_embedder(resolution.flatten()).view(len(t), -1)   # (B,2D/3)
        return c + torch.cat([size, self.ar_embedder(aspect_ratio.flatten())], dim=1)   # (B,D)


if __name__ == "__main__":
    from demos.show_dit import main

    polite(main)
