"""vae.py - pixels <-> latents: Stable Diffusion's KL-VAE for images, and DP-VAE, a video VAE made of it.
Paper    VideoDiT 3.1, Eq. 1-4, A.1; the KL-VAE is Rombach et al. 2022 as in SD 1.4 (4 channels) and SD3 (16)
Shapes   video x (B,3,T,H,W) in [-1,1]; an image is T=1; latent z (B,C,T',h,w) with h=H/8, w=W/8 and T'=T/4
         (DP-VAE) or T'=T (KL-VAE, frame by frame)          B clips, T frames, C channels, H W sizes, F = B*T
Time     frame 4i is the key frame of group i; frame counts are 1 or multiples of 4, never 4k+1
Scale    latents are raw in this file; (z - shift) * scale happens at the transformer's border:
         scaled(), unscaled()
Differs  grep ASSUMED: the paper gives no widths for the temporal parts, no reduction for its norms
Reads    after flow.py, before tokenizer.py; published.py fills it with released weights
Run me   python vae.py      # CPU, 20 s: DP-VAE at step 0 is "decode the key frame and hold it", exactly

DP-VAE in one paragraph: encode every 4th frame with the frozen image encoder E_k; let a 3D encoder E_r
look at the whole clip and add a residual of the same shape, z = E_k(x_k) + E_r(x); a 3D decoder D turns z
into all frames. Keep z such that the frozen image decoder D_k still decodes it into key frames, and its
mean and standard deviation are those of E_k's latents: then a transformer trained on image latents can
start from z as if nothing had happened."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from checkpoint import UserError, attend, run_block


@dataclass
class KLVAEConfig:
    z_channels: int = 16              # 16 in SD3, 4 in SD 1.4
    ch: int = 128                     # width of the full-resolution level
    ch_mult: tuple = (1, 2, 4, 4)     # widths of the levels, in ch; every level but the last halves H and W
    num_res_blocks: int = 2           # per encoder level; the decoder has one more
    groups: int = 32                  # of every GroupNorm
    quant_conv: bool = False          # SD 1.4 has 1x1 convolutions around the latent, SD3 has none
    scale: float = 1.5305             # the transformer sees (z - shift) * scale
    shift: float = 0.0609

    def __post_init__(self):
        self.ch_mult = tuple(self.ch_mult)


SD3 = KLVAEConfig()
SD14 = KLVAEConfig(z_channels=4, quant_conv=True, scale=0.18215, shift=0.0)


# ------------------------------------------------------------------------------------------ 2D blocks
# Everything runs on (F,C,H,W) with the frames of all clips folded into F, so that every GroupNorm
# sees one frame. ASSUMED: norms per frame also in the video parts; over time they would forbid
# exact windowing (facts: OSP, Wan).

class FrameNorm(nn.GroupNorm):
    """GroupNorm of each frame.

    On a CPU its backward in bf16 is 2 to 20 times slower than in float32 when a group has few channels, more
    than two casts cost; so where a gradient is asked, it is computed in float32. (Copies to plain memory and
    back, the other way out, took 1.3 times as long when nobody asks for gradients.)"""

    def forward(self, x):
        if x.dtype == torch.bfloat16 and torch.is_grad_enabled() and not x.is_cuda:
            return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


def norm(channels, groups):
    return FrameNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1, self.conv1 = norm(c_in, groups), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = norm(c_out, groups), nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """All pixels of a frame attend to each other, in the middle of encoder and decoder only."""
    def __init__(self, c, groups):
        super().__init__()
        self.norm = norm(c, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (rearrange(conv(h), "f c h w -> f 1 (h w) c")
                   for conv in (self.q, self.k, self.v))                                    # (F,1,H*W,C)
        h = rearrange(attend(q, k, v), "f 1 (h w) c -> f c h w", h=x.shape[-2])             # (F,C,H,W)
        return x + self.proj_out(h)


class Down(nn.Module):
    """Halve H and W. The zeros go on the right and at the bottom only:
    Stable Diffusion's way, and its weights'."""
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))                                            # (F,C,H/2,W/2)


class Up(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))                # (F,C,2H,2W)


# ------------------------------------------------------------------------------------------ 1D (time) blocks
# VideoDiT A.1: "incorporate corresponding 1D components working on temporal dimension after each 2D
# ResBlock and Attention Block". ASSUMED: a 1D ResBlock (two GroupNorm-SiLU-conv) after each
# ResBlock, one temporal attention after the middle one; with E_k and D_k counted that is the only
# reading that gives the 195 M of Table 1.

class TimeConv(nn.Module):
    """A convolution over 3 frames, each pixel by itself.
    Time is padded by repeating the first and last frame.

    Computed as a 3x1x1 convolution of the folded frames, seen through a view: no pixel has to move, as it
    would for conv1d, and three shifted copies and a matmul took 3 times as long."""
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv1d(c, c, 3)

    def forward(self, x, frames):
        x = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames))                                # (B,T,H,W,C)
        x = torch.cat([x[:, :1], x, x[:, -1:]], 1).permute(0, 4, 1, 2, 3)                   # (B,C,T+2,H,W)
        x = F.conv3d(x, self.conv.weight[..., None, None], self.conv.bias)                  # (B,C,T,H,W)
        return x.transpose(1, 2).flatten(0, 1)                                              # (F,C,H,W)


class TimeResBlock(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.norm1, self.conv1 = norm(c, groups), TimeConv(c)
        self.norm2, self.conv2 = norm(c, groups), TimeConv(c)

    def forward(self, x, frames):
        h = self.conv1(F.silu(self.norm1(x)), frames)
        return x + self.conv2(F.silu(self.norm2(h)), frames)      # conv2 starts at 0: the identity at step 0


class TimeAttention(nn.Module):
    """Each pixel attends over the frames. ASSUMED: no positions;
    the convolutions around it give the order."""
    def __init__(self, c, groups):
        super().__init__()
        self.norm = norm(c, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x, frames):
        height = x.shape[-2]
        h = rearrange(self.norm(x), "(b t) c h w -> (b h w) 1 t c", t=frames)               # (B*H*W,1,T,C)
        h = self.proj_out(attend(self.q(h), self.k(h), self.v(h)))
        h = rearrange(h, "(b h w) 1 t c -> (b t) c h w", h=height, w=x.shape[-1])           # (F,C,H,W)
        return x + h                                              # proj_out starts at 0


class TimeDown(nn.Module):
    """Two frames become one, as sub-pixels of time: a 1x1 convolution of both, which starts as their mean."""
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(2 * c, c, 1)

    def forward(self, x, frames):
        return self.conv(rearrange(x, "(b t two) c h w -> (b t) (two c) h w",
                                   two=2, t=frames // 2))                                   # (F/2,C,H,W)


class TimeUp(nn.Module):
    """One frame becomes two: a 1x1 convolution to twice the channels, which starts as a copy."""
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, 2 * c, 1)

    def forward(self, x, frames):
        return rearrange(self.conv(x), "(b t) (two c) h w -> (b t two) c h w", two=2, t=frames)  # (2F,C,H,W)


# ------------------------------------------------------------------------------------------ encoder, decoder

class Level(nn.Module):
    """ResBlocks at one resolution, each followed by its temporal twin
    in the video parts, then a resampling."""
    def __init__(self, widths, groups, video):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(a, b, groups) for a, b in zip(widths, widths[1:]))
        self.time_block = nn.ModuleList(TimeResBlock(b, groups) for b in widths[1:] if video)

    def forward(self, x, frames):
        for i, block in enumerate(self.block):
            x = block(x)
            if self.time_block:
                x = self.time_block[i](x, frames)
        return x


class Middle(nn.Module):
    def __init__(self, c, groups, video):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (ResBlock(c, c, groups), AttnBlock(c, groups),
                                                   ResBlock(c, c, groups))
        if video:
            self.time_1, self.time_2 = TimeResBlock(c, groups), TimeResBlock(c, groups)
            self.time_attn = TimeAttention(c, groups)
        self.video = video

    def forward(self, x, frames):
        if not self.video:
            return self.block_2(self.attn_1(self.block_1(x)))
        x = self.time_1(self.block_1(x), frames)
        x = self.time_attn(self.attn_1(x), frames)
        return self.time_2(self.block_2(x), frames)


class Encoder(nn.Module):
    """E_k (video=False) and E_r (video=True). (F,3,H,W) -> moments (F',2C,h,w)."""
    def __init__(self, config, video=False):
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i, c in enumerate(widths):
            level = Level([widths[max(i - 1, 0)]] + [c] * config.num_res_blocks, config.groups, video)
            if i + 1 < len(widths):
                level.downsample = Down(c)
            if video and i < 2:                          # "after each of the first two spatial downsamplings"
                level.time_down = TimeDown(c)
            self.down.append(level)
        self.mid = Middle(c, config.groups, video)
        self.norm_out = norm(c, config.groups)
        self.conv_out = nn.Conv2d(c, 2 * config.z_channels, 3, padding=1)
        self.checkpointing = False                             # recompute a level in backward: 3x less memory

    def forward(self, x, frames=1):
        h = self.conv_in(x)                                                                 # (F,ch,H,W)
        for level in self.down:
            h = run_block(level, self.checkpointing, h, frames)
            if hasattr(level, "downsample"):
                h = level.downsample(h)                                                     # (F,c,H/2,W/2)
            if hasattr(level, "time_down"):
                h, frames = level.time_down(h, frames), frames // 2                         # (F/2,c,..)
        h = self.mid(h, frames)
        return self.conv_out(F.silu(self.norm_out(h)))                                      # (F',2C,h,w)


class Decoder(nn.Module):
    """D_k (video=False) and D (video=True). (F',C,h,w) -> (F,3,H,W)."""
    def __init__(self, config, video=False):
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        c, last = widths[-1], len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, c, 3, padding=1)
        self.mid = Middle(c, config.groups, video)
        self.up = nn.ModuleList()                              # index = level of the encoder; used in reverse
        for i, c in enumerate(widths):
            level = Level([widths[min(i + 1, last)]] + [c] * (config.num_res_blocks + 1),
                          config.groups, video)
            if i > 0:
                level.upsample = Up(c)
            if video and 0 < i < 3:                               # "following the last two upsampling layers"
                level.time_up = TimeUp(c)
            self.up.append(level)
        self.norm_out = norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)
        self.checkpointing = False

    def forward(self, z, frames=1):
        h = self.mid(self.conv_in(z), frames)                                               # (F',c,h,w)
        for level in reversed(self.up):
            h = run_block(level, self.checkpointing, h, frames)
            if hasattr(level, "upsample"):
                h = level.upsample(h)                                                       # (F,c,2h,2w)
            if hasattr(level, "time_up"):
                h, frames = level.time_up(h, frames), frames * 2                            # (2F,c,..)
        return self.conv_out(F.silu(self.norm_out(h)))                                      # (F,3,H,W)


def fold(x):
    """Frames into the batch, for the 2D layers."""
    return rearrange(x, "b c t h w -> (b t) c h w").contiguous(memory_format=torch.channels_last)  # (F,C,H,W)


def unfold(x, clips):
    return rearrange(x, "(b t) c h w -> b c t h w", b=clips)                                # (B,C,T,H,W)


# ------------------------------------------------------------------------------------------ KL-VAE

class KLVAE(nn.Module):
    """Stable Diffusion's image autoencoder. Videos go through frame by frame: (B,3,T,H,W) <-> (B,C,T,h,w)."""
    Config = KLVAEConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        c = config.z_channels
        if config.quant_conv:
            self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * c, 2 * c, 1), nn.Conv2d(c, c, 1)

    @property
    def downsampling(self):
        return 2 ** (len(self.config.ch_mult) - 1)

    def moments(self, x):
        """Mean and log variance of q(z|x), each (B,C,T,h,w)."""
        h = self.encoder(fold(x))
        h = self.quant_conv(h) if self.config.quant_conv else h
        mean, logvar = unfold(h, len(x)).chunk(2, dim=1)                                    # (B,C,T,h,w)
        return mean, logvar.clamp(-30, 20)

    def encode(self, x):
        """Raw latent: the posterior's mean (its standard deviation is tiny).
        Raises UserError for sizes not /8."""
        check_size(x, self.downsampling)
        return self.moments(x)[0]

    def decode(self, z):
        h = fold(z)
        h = self.post_quant_conv(h) if self.config.quant_conv else h
        return unfold(self.decoder(h), len(z))                                              # (B,3,T,H,W)

    def scaled(self, z):
        return (z - self.config.shift) * self.config.scale

    def unscaled(self, z):
        return z / self.config.scale + self.config.shift


def check_size(x, factor):
    if x.shape[-1] % factor or x.shape[-2] % factor:
        raise UserError(f"a {x.shape[-1]}x{x.shape[-2]} picture cannot be encoded: "
                        f"--size must be a multiple of {factor}")


# ------------------------------------------------------------------------------------------ DP-VAE

@dataclass
class DPVAEConfig(KLVAEConfig):
    window: int = 32                  # frames encoded or decoded at once; what training saw (VideoDiT 4.1)
    overlap: int = 8                  # frames that two windows share; each gives up its half of them
    key_encoder: bool = True          # --no-key_encoder: z = E_r(x) alone (Table 3, "2D VAE" column)

    def __post_init__(self):
        super().__post_init__()
        if self.window < GOP or self.window % GOP or not 0 <= self.overlap <= self.window - GOP:
            raise UserError(f"DP-VAE windows of {self.window} frames that share {self.overlap} cannot be "
                            f"stitched: a window must be a multiple of {GOP} and at least {GOP} longer "
                            "than the overlap")


# t_g of VideoDiT 3.1: one key frame and three others; two temporal halvings. ASSUMED: the first is the key
GOP = 4


class DPVAE(nn.Module):
    """z = E_k(x_k) + E_r(x), x_hat = D(z). E_k, D_k: `image`, frozen. E_r: `residual`. D: `decoder`."""
    Config = DPVAEConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.image = KLVAE(KLVAEConfig(**{name: getattr(config, name) for name in asdict(KLVAEConfig())}))
        self.residual, self.decoder = Encoder(config, video=True), Decoder(config, video=True)
        self.image.requires_grad_(False)
        self.start_from_image()

    @classmethod
    def from_image(cls, vae, **settings):
        """DP-VAE around a trained KLVAE; settings are DPVAEConfig's own fields."""
        dp = cls(DPVAEConfig(**asdict(vae.config), **settings))
        dp.image.load_state_dict(vae.state_dict())
        dp.start_from_image()
        return dp

    @torch.no_grad()
    def start_from_image(self):
        """VideoDiT A.1: E_r and D are trainable copies of the 2D VAE plus 1D parts.
        ASSUMED: E_r's output and every temporal branch start at zero, so that at step 0 D(z) is
        each key frame's 2D decode, held for 4 frames."""
        self.residual.load_state_dict(self.image.encoder.state_dict(), strict=False)
        self.decoder.load_state_dict(self.image.decoder.state_dict(), strict=False)
        if self.config.key_encoder:                          # without E_k, E_r has to make all of z by itself
            nn.init.zeros_(self.residual.conv_out.weight)
            nn.init.zeros_(self.residual.conv_out.bias)
        for module in self.modules():
            if isinstance(module, TimeResBlock):
                nn.init.zeros_(module.conv2.conv.weight)
                nn.init.zeros_(module.conv2.conv.bias)
            elif isinstance(module, TimeAttention):
                nn.init.zeros_(module.proj_out.weight)
                nn.init.zeros_(module.proj_out.bias)
            elif isinstance(module, (TimeDown, TimeUp)):
                eye = torch.eye(module.conv.weight.shape[1 if isinstance(module, TimeUp) else 0])
                copies = (torch.cat([eye, eye], 0) if isinstance(module, TimeUp)
                          else torch.cat([eye, eye], 1) / 2)
                module.conv.weight.copy_(copies[:, :, None, None])
                nn.init.zeros_(module.conv.bias)

    def scaled(self, z):
        return self.image.scaled(z)

    def unscaled(self, z):
        return self.image.unscaled(z)

    @property
    def downsampling(self):
        return self.image.downsampling

    # VideoDiT Eq. 1: one latent frame a group, the key frame's, plus what E_r has to say of the other three.
    def encode_window(self, x):
        """x (B,3,T,H,W), T a multiple of 4 -> z and z_k, both (B,C,T/4,h,w). For training:
        gradients flow to E_r."""
        # ASSUMED: no sampling (Eq. 4 has no KL); E_r keeps the copy's 2C outputs and its second half is
        # unused, as the parameter count of Table 1 wants it
        z_r = self.residual(fold(x), x.shape[2]).chunk(2, dim=1)[0]                         # (F/4,C,h,w)
        z_r = unfold(z_r, len(x))
        with torch.no_grad():
            z_k = self.image.encode(x[:, :, ::GOP])                                         # (B,C,T/4,h,w)
        return (z_k + z_r if self.config.key_encoder else z_r), z_k

    def decode_window(self, z):
        """z (B,C,T',h,w) -> x_hat (B,3,4T',H,W), all at once."""
        h = fold(z)
        h = self.image.post_quant_conv(h) if self.config.quant_conv else h
        return unfold(self.decoder(h, z.shape[2]), len(z))

    def decode_keys(self, z):
        """D_k: each latent frame as an image, (B,C,T',h,w) -> (B,3,T',H,W).
        An image's latent is decoded so."""
        return self.image.decode(z)

    @torch.no_grad()
    def encode(self, x):
        """Raw latent of an image (T=1: E_k alone) or of a clip of any length divisible by 4,
        window by window; memory does not grow with T."""
        frames = x.shape[2]
        check_size(x, self.downsampling)
        if frames == 1:
            return self.image.encode(x)
        if frames % GOP:
            raise UserError(f"{frames} frames cannot be encoded: --frames must be 1 or a multiple of {GOP} "
                            f"({frames // GOP * GOP or 1} or {(frames // GOP + 1) * GOP})")
        return self.by_windows(lambda part: self.encode_window(part)[0], x, GOP, 1)         # (B,C,T/4,h,w)

    @torch.no_grad()
    def decode(self, z):
        """Clip of a latent of any length: (B,C,T',h,w) -> (B,3,4T',H,W)."""
        return self.by_windows(self.decode_window, z, 1, GOP)                               # (B,3,4T',H,W)

    def by_windows(self, code, x, taken, given):
        """code() on each window of x. A group of frames is `taken` frames of x and `given` of the result."""
        groups, whole = x.shape[2] // taken, None
        for start, end, first, last in cuts(groups, self.config.window // GOP, self.config.overlap // GOP):
            part = code(x[:, :, start * taken:end * taken])
            if end - start == groups:
                return part
            if whole is None:
                whole = part.new_empty(*part.shape[:2], groups * given, *part.shape[3:])
            whole[:, :, first * given:last * given] = part[:, :, (first - start) * given:(last - start) * given]
        return whole


def cuts(groups, size, shared):
    """Windows of `size` groups over a clip: [(start, end, first kept, last kept + 1)].

    Neighbours share `shared` groups and are cut in the middle of them; an odd one goes to the later window,
    whose key frame it is. The last window is full, too, and so shares more.
    cuts(10, 4, 2) = [(0, 4, 0, 3), (2, 6, 3, 5), (4, 8, 5, 7), (6, 10, 7, 10)]"""
    step, size = size - shared, min(size, groups)
    starts = [*range(0, groups - size, step), groups - size]
    edges = [0, *((left + size + right) // 2 for left, right in zip(starts, starts[1:])), groups]
    return [(start, start + size, first, last) for start, first, last in zip(starts, edges, edges[1:])]


# ------------------------------------------------------------------------------------------ losses

def mse(a, b):
    """ASSUMED: the paper's ||.||^2 is a mean over all elements, in float32."""
    return F.mse_loss(a.float(), b.float())


def kl_vae_loss(vae, x, noise, kl_weight=1e-6, perceptual=None, lpips_weight=0.1):
    """Stage `vae`, Rombach et al. 2022: L1 + L2 + KL (+ LPIPS). noise (B,C,T,h,w) draws z from q(z|x).

    Returns the loss and a dict of numbers for the log."""
    mean, logvar = vae.moments(x)
    z = mean + (0.5 * logvar).exp() * noise
    x_hat = vae.decode(z)
    recon = mse(x, x_hat) + F.l1_loss(x.float(), x_hat.float())
    kl = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).mean()
    loss = recon + kl_weight * kl * mean[0].numel() / x[0].numel()      # per pixel value, as recon is
    log = {"mse": mse(x, x_hat).detach(), "kl": kl.detach()}
    if perceptual is not None and lpips_weight:
        log["lpips"] = perceptual(fold(x), fold(x_hat))
        loss = loss + lpips_weight * log["lpips"]
    return loss, {name: value.detach() for name, value in log.items()}


# VideoDiT Eq. 3's last two terms: a transformer that knows z_k must not notice that it now reads z.
def statistics_loss(z, z_k):
    """||mu_z - mu_zk||^2 + ||sigma_z - sigma_zk||^2. ASSUMED: empirical, per sample and
    channel, over (t,h,w); the posterior's own mean, the other reading, would forbid any
    residual at the paper's weight of 1."""
    mean = mse(z.float().mean((2, 3, 4)), z_k.float().mean((2, 3, 4)))
    return mean + mse(z.float().std((2, 3, 4)), z_k.float().std((2, 3, 4)))


# VideoDiT Eq. 4: L = recon + reg + 0.01 disc + 0.1 LPIPS.
def dp_vae_loss(dp, x, perceptual=None, discriminator=None, recon_weight=1.0, reg_weight=1.0,
                disc_weight=0.01, lpips_weight=0.1):
    """x (B,3,T,H,W) -> loss, x_hat, numbers for the log. perceptual(a, b) takes frames
    (F,3,H,W); disc_weight is already warmed up by the caller. The gradient of Eq. 3's first term
    reaches z through the frozen D_k."""
    z, z_k = dp.encode_window(x)
    x_hat = dp.decode_window(z)
    log = {"mse": mse(x, x_hat), "key": mse(x[:, :, ::GOP], dp.decode_keys(z)),
           "stat": statistics_loss(z, z_k)}
    loss = recon_weight * log["mse"] + reg_weight * (log["key"] + log["stat"])                  # Eq. 2, Eq. 3
    if perceptual is not None and lpips_weight:
        log["lpips"] = perceptual(fold(x), fold(x_hat))
        loss = loss + lpips_weight * log["lpips"]
    if discriminator is not None and disc_weight:
        log["gan"] = -discriminator(x_hat).float().mean()
        loss = loss + disc_weight * log["gan"]
    return loss, x_hat, {name: value.detach() for name, value in log.items()}


def discriminator_loss(discriminator, x, x_hat):
    """Hinge loss: real above 1, reconstructed below -1."""
    real, fake = discriminator(x).float(), discriminator(x_hat.detach()).float()
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


@dataclass
class PatchGAN3DConfig:
    width: int = 64                   # channels after the first layer; doubled by each further one, up to 8x
    layers: int = 3                   # convolutions of stride 2 after the first one


class PatchGAN3D(nn.Module):
    """(B,3,T,H,W) -> realness of overlapping patches (B,1,T'',H'',W''). Isola et al. 2017, in 3D.

    ASSUMED: the paper names no architecture.
    GroupNorm, because BatchNorm's buffers drift apart over ranks."""
    Config = PatchGAN3DConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        widths = [config.width * min(2 ** i, 8) for i in range(config.layers + 1)]
        layers = [nn.Conv3d(3, widths[0], (3, 4, 4), (1, 2, 2), 1), nn.LeakyReLU(0.2)]
        for i, (a, b) in enumerate(zip(widths, widths[1:])):      # time is halved once, space at every layer
            layers += [nn.Conv3d(a, b, (3, 4, 4), (2 if i == 0 else 1, 2, 2), 1),
                       nn.GroupNorm(min(b // 4, 32), b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv3d(widths[-1], 1, 3, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x):
        if min(x.shape[-2:]) < 2 ** (self.config.layers + 1):
            raise UserError(f"the discriminator cannot judge {x.shape[-1]}x{x.shape[-2]} pictures: "
                            f"--size and --crop must be at least {2 ** (self.config.layers + 1)}; "
                            "or train without: --disc_weight 0")
        return self.layers(x)


def measure_latents(vae, clips):
    """shift and scale of a VAE trained here: 0 mean and unit variance over the latents of `clips`."""
    with torch.no_grad():
        z = torch.cat([vae.encode(clip).float().flatten() for clip in clips])
    return z.mean().item(), 1 / z.std().item()


# ------------------------------------------------------------------------------------------ demo

def demo():
    """Largest difference, at step 0, between DP-VAE's clip and its key frames' 2D decodes,
    each held for 4 frames."""
    torch.manual_seed(0)
    vae = KLVAE(KLVAEConfig(z_channels=4, ch=8, ch_mult=(1, 2, 4, 4), num_res_blocks=1, groups=4)).eval()
    dp = DPVAE.from_image(vae).eval()
    x = torch.rand(1, 3, 16, 32, 32) * 2 - 1
    with torch.no_grad():
        held = vae.decode(vae.encode(x[:, :, ::GOP])).repeat_interleave(GOP, dim=2)
        return (dp.decode(dp.encode(x)) - held).abs().max().item()


if __name__ == "__main__":
    print(f"DP-VAE at step 0 differs from held key frames by {demo():.1e}   (a right one: < 1e-5)")
