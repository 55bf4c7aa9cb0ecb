"""dit.py - the image transformers that denoise: their parts, DiT, PixArt, and SD3's MMDiT.
Paper    MMDiT: Esser et al. 2024 (SD3); DiT: Peebles & Xie 2023; PixArt-alpha: Chen et al. 2024
Shapes   z (B,C,T,H,W) scaled latents, an image has T=1; x (B,T*N,D) tokens, N = h*w patches in a frame;
         context (B,L,D) text tokens, pooled (B,P), c (B,D) what modulates every block: time and pooled text
Time     MMDiT: t in [0,1], 0 noise, 1 data (Eq. 5); DiT, PixArt: DDPM's integer steps, 999 noise
Differs  module names are the released checkpoints', so that their weights load (published.py)
Reads    after text.py, before videodit.py and latte.py
Run me   python dit.py      # CPU, 2 s: untrained they answer 0; MMDiT is blind to the order of frames"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from checkpoint import UserError, attend, run_block

# ----------------------------------------------------------------------------------------- the smallest parts

def norm(x):
    """LayerNorm without weights of its own: scale and shift come from the modulation. eps as released."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x, shift, scale):
    """x (1 + scale) + shift in one kernel: about 1.5 times faster than the two operations."""
    return torch.addcmul(shift, x, 1 + scale)


class Attention(nn.Module):
    """Self-attention in three steps, split, attend, merge: a joint block attends across two of them."""

    def __init__(self, width, heads, qk_norm="", proj=True):
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.qkv = nn.Linear(width, 3 * width)
        if proj:
            self.proj = nn.Linear(width, width)
        if qk_norm:                     # SD3.5: keeps the logits bounded, where SD3 fine-tuning may diverge
            self.ln_q = nn.RMSNorm(width // heads, eps=1e-6)
            self.ln_k = nn.RMSNorm(width // heads, eps=1e-6)

    def split(self, x):
        """x (B,N,D) -> q, k, v, each (B,heads,N,d)."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        if self.qk_norm:
            q, k = [ln(s.to(ln.weight.dtype)).to(v.dtype) for ln, s in ((self.ln_q, q), (self.ln_k, k))]
        return q, k, v

    def merge(self, attended):
        return self.proj(rearrange(attended, "b h n d -> b n (h d)"))       # (B,N,D)

    def forward(self, x, mask=None):
        return self.merge(attend(*self.split(x), mask))


class MLP(nn.Module):
    def __init__(self, inside, hidden, width):
        super().__init__()
        self.fc1 = nn.Linear(inside, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VectorEmbedder(nn.Module):
    """The pooled text, or a sinusoid of the time, as a vector of the model's width."""

    def __init__(self, inside, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inside, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, vector):
        return self.mlp(vector)                                             # (B,D)


class TimestepEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        return self.mlp(timestep_embedding(t).to(self.mlp[0].weight.dtype))     # (B,D)


class LabelEmbedder(nn.Module):
    """A class label as a vector. One row more than classes: the last is "no class", for guidance.

    DiT's code drops labels in here, by the process's random state; so two processes drop other ones than one
    does. Here whoever trains drops them, by draws of his own (flow.drop_labels, train.py)."""

    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels):
        return self.embedding_table(labels)                                 # (B,D)


class PatchEmbed(nn.Module):
    """2D patchify: each p x p square of each frame becomes one token."""

    def __init__(self, channels, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, z):
        p, (H, W) = self.proj.stride[0], z.shape[-2:]
        if H % p or W % p:
            raise UserError(f"a latent of {H} x {W} does not divide into patches of {p}; choose a height and "
                            f"width that are multiples of {p} latent pixels ({8 * p} pixels with an 8x VAE)")
        x = self.proj(rearrange(z, "b c t h w -> (b t) c h w"))             # (B*T,D,h,w)
        return rearrange(x, "(b t) d h w -> b t h w d", b=len(z))           # (B,T,h,w,D)


def unpatchify(x, z, patch):
    """x (B,T*N,p*p*C) -> (B,C,T,H,W) like z. Channels vary fastest here, but slowest in the convolution."""
    T, h, w = z.shape[2], z.shape[3] // patch, z.shape[4] // patch
    return rearrange(x, "b (t h w) (p q c) -> b c t (h p) (w q)", t=T, h=h, w=w, p=patch, q=patch)


class FinalLayer(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, outputs)

    def forward(self, x, c):
        """x (B*k,N,D), c (B,D) -> (B*k,N,outputs); each row of c serves k consecutive rows of x."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)           # (B,1,D)
        h = modulate(norm(x).view(len(c), -1, x.shape[-1]), shift, scale)               # (B,k*N,D)
        return self.linear(h).view(*x.shape[:2], -1)                                    # (B*k,N,outputs)


# DiT 3.2, adaLN-Zero: gates and head start at zero, so a block starts as the identity and the output as 0.
def initialise(net):
    """How every transformer here starts when it is not loaded; the last line of its constructor."""
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))          # a convolution counts as a Linear
            nn.init.zeros_(module.bias)
            if name.startswith(("t_embedder", "y_embedder")):
                nn.init.normal_(module.weight, std=0.02)
            if "adaLN_modulation" in name or name.startswith("final_layer"):
                nn.init.zeros_(module.weight)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


# --------------------------------------------------------------------------------- where a token is, and when

def sincos(positions, width):
    """(P,) coordinates -> (P,width) = [sin(p w_k) | cos(p w_k)], w_k = 10000^(-k / (width/2))."""
    k = torch.arange(width // 2, device=positions.device)
    angles = positions[:, None].float() * 10000 ** (-k / (width / 2))       # (P,width/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_2d(width, rows, columns):
    """rows (h,), columns (w,) -> (h,w,width). The column takes the first half of the channels as released."""
    first = 2 * (width // 4)
    across = sincos(columns, first).expand(len(rows), -1, -1)               # (h,w,D/2)
    down = sincos(rows, width - first)[:, None].expand(-1, len(columns), -1)
    return torch.cat([across, down], dim=-1)


def centred(count, grid, base, device=None):
    """(count,) coordinates of the `count` central ones of `grid` patches, `base` of which span 0..16.

    SD3: (p - 64) / 4 in its grid of 192. A larger picture shows more of the plane and no token of it moves,
    which is why a model trained at 320 x 320 can go on at 512 x 512."""
    p = torch.arange(count, device=device) + (grid - count) // 2
    return (p - (grid - base) / 2) * 16 / base


def timestep_embedding(t, width=256):
    """t (B,) -> (B,width) = [cos | sin]: cosines first, unlike the positions. float32: t goes up to 1000."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies                               # (B,width/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


# ------------------------------------------------------------------------------------------------ MMDiT (SD3)

@dataclass
class MMDiTConfig:                  # the defaults are SD3-medium
    in_channels: int = 16           # of the latent
    patch: int = 2                  # latent pixels on a side of a token
    depth: int = 24                 # joint blocks; SD3 scales by depth alone (heads = depth), toys need not
    heads: int = 24                 # of attention
    head_dim: int = 64              # width = heads * head_dim
    mlp_ratio: float = 4.0          # hidden width of the MLPs, in widths
    context_dim: int = 4096         # width of the text tokens (T5)
    pooled_dim: int = 2048          # width of the pooled text (CLIP-L and CLIP-G)
    pos_grid: int = 192             # patches on a side of the largest picture
    base_size: int = 64             # patches on a side that span the coordinates 0..16
    qk_norm: str = ""               # "rms" in SD3.5
    dual_attention: int = 0         # SD3.5-medium: the first 13 blocks attend a second time, the image alone


class StreamBlock(nn.Module):
    """One of the two streams of a joint block: its weights, and what it does before and after they attend."""

    def __init__(self, config, dual=False, pre_only=False):
        super().__init__()
        width, self.dual, self.pre_only = config.heads * config.head_dim, dual, pre_only
        self.chunks = 2 if pre_only else 9 if dual else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.chunks * width))
        self.attn = Attention(width, config.heads, config.qk_norm, proj=not pre_only)
        if dual:
            self.attn2 = Attention(width, config.heads, config.qk_norm)
        if not pre_only:
            self.mlp = MLP(width, int(width * config.mlp_ratio), width)

    def before(self, x, c):
        """-> (q, k, v), and what `after` needs: the normed stream and the modulations."""
        # m: shift, scale, gate of the attention, of the MLP, and, if dual, of the second attention
        m = self.adaLN_modulation(c).unsqueeze(1).chunk(self.chunks, dim=-1)            # each (B,1,D)
        h = norm(x)
        return self.attn.split(modulate(h, m[0], m[1])), (h, m)

    def after(self, x, attended, h, m):
        x = torch.addcmul(x, m[2], self.attn.merge(attended))
        if self.dual:                   # reads the same normed stream as the joint attention, not its result
            x = torch.addcmul(x, m[8], self.attn2(modulate(h, m[6], m[7])))
        return torch.addcmul(x, m[5], self.mlp(modulate(norm(x), m[3], m[4])))


class JointBlock(nn.Module):
    """Text and picture keep their own weights and meet in one attention over both."""

    def __init__(self, config, dual=False, last=False):
        super().__init__()
        self.context_block = StreamBlock(config, pre_only=last)     # nothing reads the last block's text
        self.x_block = StreamBlock(config, dual=dual)

    def forward(self, context, x, c):
        """context (B,L,D), x (B,N,D), c (B,D) -> context (None after the last block), x."""
        text, text_state = self.context_block.before(context, c)
        image, image_state = self.x_block.before(x, c)
        q, k, v = [torch.cat(pair, dim=2) for pair in zip(text, image)]     # (B,heads,L+N,d)
        from_text, from_image = attend(q, k, v).split([context.shape[1], x.shape[1]], dim=2)
        x = self.x_block.after(x, from_image, *image_state)
        if self.context_block.pre_only:
            return None, x
        return self.context_block.after(context, from_text, *text_state), x


# VideoDiT Eq. 5: X_t = (1-t) X_0 + t X_1, v = X_1 - X_0, with X_0 noise, X_1 data. SD3 counts the other way:
# sigma = 1 - t, the network is fed 1000 sigma and predicts noise - data = -v. This is where the two meet.
def in_our_time(sd3_network, z, t, context, pooled):
    return -sd3_network(z, 1000 * (1 - t.float().expand(len(z))), context, pooled)


class MMDiT(nn.Module):
    """SD3's transformer. It attends over all T*h*w tokens: T=1 is the image model, and a longer clip is the
    paper's Fig. 2, an image model asked for a video: the subject holds still, the details break up."""

    Config = MMDiTConfig

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.heads * config.head_dim
        self.checkpointing = False                  # see run_block
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
        """The network as released: timestep (B,) 0 data, 1000 noise; output noise - data; z may be 4-D."""
        if z.dim() == 4:
            return self.forward_sd3(z.unsqueeze(2), timestep, context, pooled).squeeze(2)
        x, c = self.embed(z), self.condition(timestep, pooled)
        context = self.context_embedder(context)                            # (B,L,D)
        for block in self.joint_blocks:
            context, x = run_block(block, self.checkpointing, context, x, c)
        return unpatchify(self.final_layer(x, c), z, self.config.patch)     # (B,C,T,H,W)

    def embed(self, z):
        """z (B,C,T,H,W) -> (B,T*N,D): every frame gets the same positions, those of a picture."""
        x = self.x_embedder(z)                                              # (B,T,h,w,D)
        return (x + self.positions(*x.shape[2:4])).flatten(1, 3)            # (B,T*N,D)

    def positions(self, h, w):
        """(h,w,D), the centre of the table. The checkpoint's table: recomputing it is not the same."""
        grid = self.config.pos_grid
        if max(h, w) > grid:
            raise UserError(f"{h} x {w} patches do not fit this model's table of {grid} x {grid} positions; "
                            "choose a smaller height and width")
        top, left = (grid - h) // 2, (grid - w) // 2
        return self.pos_embed.view(grid, grid, -1)[top:top + h, left:left + w]

    def condition(self, timestep, pooled):
        return self.t_embedder(timestep) + self.y_embedder(pooled)          # (B,D)


# ----------------------------------------------------------------------------------- DiT (Peebles & Xie 2023)

@dataclass
class DiTConfig:                    # the defaults are DiT-XL/2 at 256 x 256
    in_channels: int = 4            # of the latent
    input_size: int = 32            # latent pixels on a side; the table of positions has no other size
    patch: int = 2
    depth: int = 28
    width: int = 1152
    heads: int = 16
    mlp_ratio: float = 4.0
    classes: int = 1000
    learn_sigma: bool = True        # twice the channels out: noise, then the variance's interpolation


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by c (adaLN-Zero)."""

    def __init__(self, width, heads, mlp_ratio=4.0):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = MLP(width, int(width * mlp_ratio), width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c, mask=None):
        """x (B*k,N,D), c (B,D): each row of c serves k consecutive rows of x. A video transformer attends in
        many short rows per clip; modulating per clip, not per row, makes this Linear 50 times cheaper."""
        rows, N, D = x.shape
        m = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)                      # each (B,1,D)
        x = x.reshape(len(c), -1, D)                                                    # (B,k*N,D)
        h = modulate(norm(x), m[0], m[1]).view(rows, N, D)                              # (B*k,N,D)
        x = torch.addcmul(x, m[2], self.attn(h, mask).view(x.shape))                    # (B,k*N,D)
        x = torch.addcmul(x, m[5], self.mlp(modulate(norm(x), m[3], m[4])))
        return x.view(rows, N, D)                                                       # (B*k,N,D)


class DiT(nn.Module):
    Config = DiTConfig

    def __init__(self, config):
        super().__init__()
        self.config, width, side = config, config.width, config.input_size // config.patch
        self.checkpointing = False
        grid = torch.arange(side)
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
        """z (B,C,H,W) or (B,C,1,H,W), t (B,) integer steps, labels (B,), last = "no class" -> like z,
        2C channels if learn_sigma."""
        if z.dim() == 4:
            return self.forward(z.unsqueeze(2), t, labels).squeeze(2)
        size = self.config.input_size
        if z.shape[2:] != (1, size, size):
            raise UserError(f"this DiT makes one picture of {size} x {size} latent pixels, "
                            f"not (frames, height, width) {tuple(z.shape[2:])}; choose that size")
        x = self.x_embedder(z).flatten(1, 3) + self.pos_embed               # (B,N,D)
        c = self.t_embedder(t) + self.y_embedder(labels)                    # (B,D)
        for block in self.blocks:
            x = run_block(block, self.checkpointing, x, c)
        return unpatchify(self.final_layer(x, c), z, self.config.patch)     # (B,2C,1,H,W)

    def forward_with_cfg(self, z, t, labels, scale, channels=3):
        """Guidance as released: the batch is [with label; without], the first half's z serves both, and only
        3 of 4 channels are guided: kept by its authors because their published numbers depend on it."""
        half = len(z) // 2
        out = self(torch.cat([z[:half], z[:half]]), t, labels)              # (2B,2C,H,W)
        labelled, free = out[:, :channels].chunk(2)
        guided = free + scale * (labelled - free)
        return torch.cat([torch.cat([guided, guided]), out[:, channels:]], dim=1)


# ---------------------------------------------------------------------------- PixArt-alpha (Chen et al. 2024)

@dataclass
class PixArtConfig:                 # the defaults are PixArt-XL/2 at 512 x 512
    in_channels: int = 4
    out_channels: int = 8           # noise, then the variance's interpolation
    patch: int = 2
    depth: int = 28
    width: int = 1152
    heads: int = 16
    mlp_ratio: float = 4.0
    caption_channels: int = 4096    # T5's width
    sample_size: int = 64           # latent pixels on a side in training
    interpolation: float = 1.0      # positions span 0..sample_size / patch / interpolation; 2 at 1024 x 1024
    micro_conditions: bool = False  # resolution and aspect ratio as conditions; at 1024 x 1024


class CrossAttention(nn.Module):
    """Tokens ask, the text answers."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, context, mask=None):
        """x (B,N,D), context (B,L,D), mask (B,L) True or 1 for text, False or 0 for padding."""
        q = rearrange(self.q_linear(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.kv_linear(context), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        mask = None if mask is None else mask.bool()[:, None, None]                     # (B,1,1,L)
        return self.proj(rearrange(attend(q, k, v, mask), "b h n d -> b n (h d)"))      # (B,N,D)


class PixArtBlock(nn.Module):
    """A DiT block whose modulation is one Linear for the whole network and a small table for each block
    (adaLN-single: a quarter fewer parameters), and, with cross, an ungated cross-attention to the text."""

    def __init__(self, width, heads, mlp_ratio=4.0, cross=True):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width ** 0.5)
        self.attn = Attention(width, heads)
        self.cross_attn = CrossAttention(width, heads) if cross else None
        self.mlp = MLP(width, int(width * mlp_ratio), width)

    def forward(self, x, c6, context=None, mask=None):
        """x (B*k,N,D), c6 (B,6D), context (B,L,D), mask (B,L): as in DiTBlock, B clips of k rows. Only
        self-attention cares for rows; each token asks the text for itself, so the text is never repeated."""
        rows, N, D = x.shape
        m = (c6.view(len(c6), 6, D) + self.scale_shift_table).chunk(6, dim=1)           # each (B,1,D)
        x = x.reshape(len(c6), -1, D)                                                   # (B,k*N,D)
        h = modulate(norm(x), m[0], m[1]).view(rows, N, D)                              # (B*k,N,D)
        x = torch.addcmul(x, m[2], self.attn(h).view(x.shape))                          # (B,k*N,D)
        if self.cross_attn is not None:
            x = x + self.cross_attn(x, context, mask)
        x = torch.addcmul(x, m[5], self.mlp(modulate(norm(x), m[3], m[4])))
        return x.view(rows, N, D)                                                       # (B*k,N,D)


class SingleFinalLayer(nn.Module):
    """FinalLayer with a table in place of the Linear: it adds c itself, before any SiLU."""

    def __init__(self, width, outputs):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width ** 0.5)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x, c):
        """x (B*k,N,D), c (B,D) -> (B*k,N,outputs)."""
        shift, scale = (self.scale_shift_table + c[:, None]).chunk(2, dim=1)            # (B,1,D)
        h = modulate(norm(x).view(len(c), -1, x.shape[-1]), shift, scale)               # (B,k*N,D)
        return self.linear(h).view(*x.shape[:2], -1)                                    # (B*k,N,outputs)


class PixArt(nn.Module):
    Config = PixArtConfig

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.width
        self.checkpointing = False
        self.x_embedder = PatchEmbed(config.in_channels, width, config.patch)
        self.t_embedder = TimestepEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))    # modulates all the blocks
        if config.micro_conditions:
            self.csize_embedder = TimestepEmbedder(width // 3)
            self.ar_embedder = TimestepEmbedder(width // 3)
        self.y_embedder = nn.ModuleDict({"y_proj": MLP(config.caption_channels, width, width)})
        self.blocks = nn.ModuleList(PixArtBlock(width, config.heads, config.mlp_ratio)
                                    for _ in range(config.depth))
        self.final_layer = SingleFinalLayer(width, config.patch ** 2 * config.out_channels)
        initialise(self)

    def forward(self, z, t, context, mask=None, resolution=None, aspect_ratio=None):
        """z (B,C,H,W) or (B,C,1,H,W), t (B,) integer steps, context (B,L,caption_channels), mask (B,L) ->
        like z. micro_conditions: resolution (B,2), height and width in pixels, and aspect_ratio (B,1)."""
        if z.dim() == 4:
            return self.forward(z.unsqueeze(2), t, context, mask, resolution, aspect_ratio).squeeze(2)
        x = self.x_embedder(z)                                              # (B,1,h,w,D)
        x = (x + self.positions(*x.shape[2:4], z.device).to(x.dtype)).flatten(1, 3)     # (B,N,D)
        c = self.condition(t, resolution, aspect_ratio)                     # (B,D)
        c6, context = self.t_block(c), self.y_embedder["y_proj"](context)   # (B,6D) (B,L,D)
        for block in self.blocks:
            x = run_block(block, self.checkpointing, x, c6, context, mask)
        return unpatchify(self.final_layer(x, c), z, self.config.patch)     # (B,2C,1,H,W)

    def positions(self, h, w, device=None):
        """(h,w,D): every picture, of whatever shape, spans the same coordinates. Not in the checkpoint."""
        span = self.config.sample_size / self.config.patch / self.config.interpolation
        rows, columns = (torch.arange(n, device=device) * span / n for n in (h, w))
        return sincos_2d(self.config.width, rows, columns)

    def condition(self, t, resolution, aspect_ratio):
        c = self.t_embedder(t)                                              # (B,D)
        if not self.config.micro_conditions:
            return c
        if resolution is None or aspect_ratio is None:
            raise UserError("this PixArt was trained with micro-conditions: give resolution and aspect_ratio")
        size = self.csize_embedder(resolution.flatten()).view(len(t), -1)   # (B,2D/3)
        return c + torch.cat([size, self.ar_embedder(aspect_ratio.flatten())], dim=1)


# ------------------------------------------------------------------------------------------------------- demo

def scrambled(net, std=0.05, seed=0):
    """net with random weights everywhere: a stand-in for a trained network, nothing zero by design."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data.normal_(std=std, generator=generator)
    return net


def demo():
    """{claim: largest difference} of what holds for these networks before and after any training."""
    torch.manual_seed(0)
    mmdit = MMDiT(MMDiTConfig(in_channels=4, depth=3, heads=4, head_dim=16, context_dim=24, pooled_dim=12,
                              pos_grid=16, base_size=8))
    dit, pixart = DiT(DiTConfig(input_size=8, depth=2, width=32, heads=2)), PixArt(
        PixArtConfig(depth=2, width=32, heads=2, caption_channels=24, sample_size=8))
    z, context, pooled = torch.randn(2, 4, 5, 8, 8), torch.randn(2, 7, 24), torch.randn(2, 12)
    t, steps, labels, found = torch.tensor([0.2, 0.7]), torch.tensor([3, 900]), torch.tensor([7, 1000]), {}
    with torch.no_grad():
        for name, out in (("DiT", dit(z[:, :, 0], steps, labels)), ("MMDiT", mmdit(z, t, context, pooled)),
                          ("PixArt", pixart(z[:, :, 0], steps, context))):
            found[f"untrained {name}: answer"] = out.abs().max().item()
        scrambled(mmdit)
        backwards = mmdit(z.flip(2), t, context, pooled).flip(2)
        found["MMDiT: five frames backwards"] = (backwards - mmdit(z, t, context, pooled)).abs().max().item()
    return found


if __name__ == "__main__":
    for claim, difference in demo().items():
        print(f"{claim:40s} {difference:.1e}")
    print("(right ones answer 0, and differ by rounding below 1e-5)")
