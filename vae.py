"""vae.py - pixels <-> latents: DP-VAE, a video VAE made of an image VAE; and that one, Stable Diffusion's.
Paper    VideoDiT 3.1, Eq. 1-4, 4.1, A.1; the KL-VAE is Rombach et al. 2022 as in Stable Diffusion (SD) 1.4
         (4 channels) and SD3 (16)
Shapes   video x (B,3,T,H,W) in [-1,1]; an image is T=1; latent z (B,C,T',h,w) with h=H/8, w=W/8 and T'=T/4
         (DP-VAE) or T'=T (KL-VAE, frame by frame)          B clips, T frames, C channels, H W sizes, F = B*T
Time     frame 4i is the key frame of group i; frame counts are 1 (an image) or multiples of 4
Scale    latents are raw in this file; at the transformer's border they are scaled(): (z - shift) * scale
Differs  grep ASSUMED: the paper leaves open most of what lies between its four equations
Reads    after flow.py, before text.py; pretrained.py fills it with released weights. In here: Eq. 1-4, the
         KL-VAE, layers in space, layers in time, how training starts, long clips, the discriminator
Run me   python vae.py      # CPU, 5 s: untrained ("at step 0") DP-VAE is "decode the key frame and hold it";
                            # draws what the shipped one makes of a clip, out/vae.png

THE PROBLEM. flow.py turns noise into any kind of data, at a price for each number: 96 frames of 512 x 512 are
75 million, and in a transformer each attends to all others. But video is nearly all repetition: next to a
blue pixel is a blue pixel, and after it comes the same one. A VAE (variational autoencoder) is two networks
trained together, an encoder that squeezes the repetition out and a decoder that puts it back. What lies
between them is the latent z, and that is what the transformer learns to make: 16 numbers for every 8 x 8
pixels of 3 colours are 12 times fewer than there were, and for 4 frames of them at once 48 times fewer.

Images have such a VAE, SD3's, and a transformer (dit.py) that has spent a fortune on learning its latents.
Video wants one, too. What can be done?

* Nothing: encode each frame as an image. (Latte does, and AnimateDiff.) Four times as much to read for the
  transformer, sixteen times the attention; and each frame's errors are its own, so that still things flicker.
* Train a 3D VAE that is free to choose its latents. (Open-Sora-Plan, CogVideoX.) They are a new language
  then: the image transformer does not speak it and has to be trained anew, at a fortune.
* Stack a VAE over time upon the latents of the image VAE. (Open-Sora 1.2.) A new language again.
* Train a 3D VAE whose latents the image decoder must still be able to read. (CV-VAE.) It speaks the language,
  but all of every frame has to be learned again by the new encoder.

THE IDEA of VideoDiT's DP-VAE, "distribution preserving", comes from video codecs, which store a key frame and
then only what changed (Lu et al. 2019; Hu et al. 2021). Let the image encoder encode each key frame, as it
always did, and let a new encoder add to that latent what it has to say about the other three:

    frames     0  1  2  3 | 4  5  6  7 | ...       groups of 4; the first of each is its key frame, x_k

                +-- x_k (B,3,T/4,H,W) --> E_k  frozen, 2D --> z_k (B,C,T/4,h,w) --+
    x           |                                                                 +--> z (B,C,T/4,h,w)
    (B,3,T,H,W) +-- x   (B,3,T,H,W) ----> E_r  trained, 3D -> z_r (B,C,T/4,h,w) --+    |         Eq. 1
                                                                                       |
                x_hat (B,3,T,H,W)          like x: Eq. 2    <-- D    trained, 3D  <----+
                x_hat_k (B,3,T/4,H,W)    like x_k: Eq. 3    <-- D_k  frozen, 2D   <----+
                mean and standard deviation of z like z_k's: Eq. 3  <------------------+

WHY IT WORKS. The residual z_r starts at zero, so at first z is an image's latent, exactly, and training can
only move it away as far as it helps. Not too far: the frozen D_k must still find the key frame in z, and the
mean and the standard deviation of z must stay. So the image transformer reads video latents as if nothing had
happened, and images (E_k alone) and clips live in one space, where one network can learn from both (3.2).

What that is worth, VideoDiT Table 3. Reconstruction is counted in decibels (PSNR: 10 more are a tenth of the
squared error), the clips of the transformer trained on the latents by FVD (how far they are from real videos,
lower is better; both in support/metrics.py). With neither key frames nor preservation 35.6 dB and 684; key
frames alone 38.2 dB and 645; both 37.5 dB and 556. The regularization costs 0.7 dB and buys a better
generator: the best VAE is not the one that reconstructs best."""

from support.cli import UserError, polite    # first: see there

import math
from dataclasses import asdict, dataclass

from einops import rearrange
import torch
import torch.nn.functional as F
from torch import nn

from support.ops import (attend, conv_layout, conv_of_doubled, group_norm, run_block, silu,
                         unfold_with_ends)

# t_g of VideoDiT 3.1: "one key frame and several non-key frames sampled every t_g frames"; two temporal
# halvings make it 4. ASSUMED: the first of a group is its key. The middle one would be nearer to the
# others, but then a clip would not begin with a key frame, and an image could not be a clip's beginning.
GOP = 4                               # "group of pictures", the codecs' word


@dataclass
class KLVAEConfig:
    z_channels: int = 16              # 16 in SD3, 4 in SD 1.4
    ch: int = 128                     # width of the full-resolution level
    ch_mult: tuple = (1, 2, 4, 4)     # widths of the levels, in ch; every level but the last halves H and W
    num_res_blocks: int = 2           # per encoder level; the decoder has one more
    groups: int = 32                  # of every GroupNorm
    quant_conv: bool = False          # SD 1.4 has 1x1 convolutions around the latent, SD3 has none
    scale: float = 1.5305             # the transformer sees (z - shift) * scale
    shift: float = 0.0609             # so that what it sees has about mean 0 and standard deviation 1

    def __post_init__(self):
        self.ch_mult = tuple(self.ch_mult)                # a checkpoint's JSON brings a list


@dataclass
class DPVAEConfig(KLVAEConfig):
    window: int = 32                  # frames encoded or decoded at once; what training saw (VideoDiT 4.1)
    overlap: int = 8                  # frames that two windows share; each gives up its half of them
    key_encoder: bool = True          # --no-key_encoder: z = E_r(x) alone (Table 3, "2D VAE" column)

    def __post_init__(self):
        super().__post_init__()
        if self.window < GOP or self.window % GOP or not 0 <= self.overlap <= self.window - GOP:
            raise UserError(f"DP-VAE windows of {self.window} frames that share {self.overlap} cannot be "
                            f"stitched: a window must be a multiple of {GOP} and at least {GOP} longer than "
                            "the overlap")


# ------------------------------------------------------------------------------------------ DP-VAE

class DPVAE(nn.Module):
    """z = E_k(x_k) + E_r(x), x_hat = D(z). E_k, D_k: `image`, frozen. E_r: `residual`. D: `decoder`."""
    Config = DPVAEConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.image = KLVAE(KLVAEConfig(**{name: getattr(config, name) for name in asdict(KLVAEConfig())}))
        self.residual = Encoder(config, video=True)
        self.decoder = Decoder(config, video=True)
        self.image.requires_grad_(False)
        start_from_image(self)

    # VideoDiT Eq. 1:        z = E_k(x_k) + E_r(x)
    #     x_k   the key frames, each by itself          z_k = E_k(x_k)   what the image transformer knows
    #     x     all frames, the key frames again too    z_r = E_r(x)     what z_k does not say, "residual"
    # One latent frame a group. E_r sees the key frame as well, or it would not know what z_k left out.
    # ASSUMED: z is no draw from a Gaussian (Eq. 4 has no KL term) but E_k's mean plus E_r's output. E_r, a
    # copy of the image encoder, keeps its 2C outputs (mean and log variance); the second C are unused.
    # (Table 1's 195 M comes out with and without them.)
    def encode_window(self, x):
        """x (B,3,T,H,W), T a multiple of 4 -> z and z_k, both (B,C,T/4,h,w). Gradients reach E_r."""
        z_r, _ = self.residual(fold(x), x.shape[2]).chunk(2, dim=1)                         # (F/4,C,h,w)
        z_r = unfold(z_r, len(x))                                                           # (B,C,T/4,h,w)
        with torch.no_grad():
            z_k = self.image.encode(x[:, :, ::GOP])                                         # (B,C,T/4,h,w)
        z = z_k + z_r if self.config.key_encoder else z_r
        return z, z_k

    def decode_window(self, z):
        """D: z (B,C,T',h,w) -> x_hat (B,3,4T',H,W)."""
        h = self.image.before_decoder(fold(z))                                              # (F',C,h,w)
        return unfold(self.decoder(h, z.shape[2]), len(z))                                  # (B,3,4T',H,W)

    def decode_keys(self, z):
        """D_k: each latent frame as an image, also that of an image: (B,C,T',h,w) -> (B,3,T',H,W)."""
        return self.image.decode(z)                                                         # (B,3,T',H,W)

    # Training sees windows of 32 frames; longer clips go through window by window (by_windows, below).
    @torch.no_grad()
    def encode(self, x):
        """Raw latent of an image (T=1: E_k alone) or of a clip of any length divisible by 4."""
        check_size(x, self.downsampling)
        check_frames(x.shape[2])
        if x.shape[2] == 1:
            return self.image.encode(x)                                                     # (B,C,1,h,w)
        return by_windows(lambda part: self.encode_window(part)[0], x, GOP, 1, self.config)

    @torch.no_grad()
    def decode(self, z):
        """Clip of a latent of any length: (B,C,T',h,w) -> (B,3,4T',H,W)."""
        return by_windows(self.decode_window, z, 1, GOP, self.config)

    def scaled(self, z):
        return self.image.scaled(z)             # the image's constants: that is what the preservation buys

    def unscaled(self, z):
        return self.image.unscaled(z)

    @property
    def downsampling(self):
        return self.image.downsampling

    @classmethod
    def from_image(cls, vae, **settings):
        """DP-VAE around a trained KLVAE; settings are DPVAEConfig's own fields."""
        dp = cls(DPVAEConfig(**asdict(vae.config), **settings))
        dp.image.load_state_dict(vae.state_dict())
        start_from_image(dp)
        return dp


# VideoDiT Eq. 2:     L_recon = ||x - x_hat||^2                                            x_hat = D(z)
# VideoDiT Eq. 3:     L_reg = ||x_k - x_hat_k||^2 + ||mu_z - mu_zk||^2 + ||sigma_z - sigma_zk||^2
#     x_k, x_hat_k                        the key frames, and D_k(z), what the frozen image decoder finds in z
#     mu_z, sigma_z; mu_zk, sigma_zk      mean and standard deviation of z; those of z_k
# VideoDiT Eq. 4:     L = lambda_recon L_recon + lambda_reg L_reg + lambda_disc L_disc + lambda_LPIPS L_LPIPS
#     L_disc       3D adversarial loss (Isola et al. 2017)                 the lambdas are 1, 1, 0.01 and 0.1
#     L_LPIPS      perceptual distance (Zhang et al. 2018), frame by frame
# ASSUMED: the weights kept are their exponential moving average (EMA), which 4.1 says of the transformer
# only; and clips are flipped left to right at random.
def dp_vae_loss(dp, x, perceptual=None, discriminator=None, *, recon_weight=1.0, reg_weight=1.0,
                disc_weight=0.01, lpips_weight=0.1, noise=None):
    """x (B,3,T,H,W) -> loss, x_hat, numbers for the log. perceptual(a, b) takes frames (F,3,H,W);
    disc_weight is what the caller's warm-up has raised it to; noise (B,C,T/4,h,w) is added to what D reads"""
    z, z_k = dp.encode_window(x)                                                            # (B,C,T/4,h,w)
    # DEVIATES: with --z_noise (by default 0, the paper's) D learns to read z with noise on it: what it will
    # decode are a transformer's latents, a little wrong everywhere. The other terms see z itself. Trained on
    # so, the toy's D drew generated clips 0.5 dB nearer to what can be drawn (their last frames 0.8), and
    # reconstructions lost 0.7 dB. Shipped is a mean of both sets of weights, 0.4 of those before and 0.6 of
    # those after: clips 0.4 dB nearer (last frames 0.6), reconstructions 0.3 dB worse.
    x_hat = dp.decode_window(z if noise is None else z + noise)                             # (B,3,T,H,W)
    log = {"mse": mse(x, x_hat)}                                                            # Eq. 2
    # D_k is frozen but not out of the way: Eq. 3's first gradient reaches z, and so E_r, through it. Under
    # no_grad the term would be a number in the log (test_the_frozen_vae_passes_gradients_on_and_keeps_none).
    log["key"] = mse(x[:, :, ::GOP], dp.decode_keys(z))                                     # Eq. 3
    log["stat"] = statistics_loss(z, z_k)
    loss = recon_weight * log["mse"] + reg_weight * (log["key"] + log["stat"])              # Eq. 4
    # ASSUMED: LPIPS looks through VGG16 (--lpips; without its weights through the toy's classifier).
    if perceptual is not None and lpips_weight:
        log["lpips"] = perceptual(fold(x), fold(x_hat))
        loss = loss + lpips_weight * log["lpips"]
    if discriminator is not None and disc_weight:
        log["gan"] = -discriminator(x_hat).float().mean()
        loss = loss + disc_weight * log["gan"]
    return loss, x_hat, {name: value.detach() for name, value in log.items()}


def mse(a, b):
    """||a - b||^2. ASSUMED: a mean over all elements, since a sum would change its weight with the size. In
    float32: bf16 has three digits, and the squares of small errors need more."""
    return F.mse_loss(a.float(), b.float())


# Eq. 3's first term is the strong one: whatever E_r adds, it must hide from D_k. The other two hold what the
# transformer notices first, how large the numbers are.
#
# ASSUMED: mu and sigma are measured, for each sample and channel, over (t,h,w). They could also be meant as
# the parameters of z's Gaussian. But then ||mu_z - mu_zk||^2 would be ||z_r||^2, which at the paper's weight
# of 1 presses the residual to zero, and without a residual nobody reaches 37.5 dB
# (test_statistics_loss_longhand).
def statistics_loss(z, z_k):
    """||mu_z - mu_zk||^2 + ||sigma_z - sigma_zk||^2 of latents, (B,C,T',h,w) each."""
    mean = mse(z.float().mean((2, 3, 4)), z_k.float().mean((2, 3, 4)))                      # of (B,C)
    std = mse(z.float().std((2, 3, 4)), z_k.float().std((2, 3, 4)))                         # of (B,C)
    return mean + std


# ------------------------------------------------------------------------------------------ KL-VAE

# Why "variational"? An autoencoder trained on reconstruction alone may scatter its latents anywhere, each
# image a needle in a haystack, and a generator that is off by a little then decodes to rubbish. So the
# encoder names not a point but a Gaussian for each image, with a mean and a variance,
#
#     q(z|x) = N(mu(x), sigma(x)^2)        z = mu + sigma * noise
#
# the decoder is trained on draws from it, so that all of it must decode to the image, and a penalty (KL,
# below in kl_vae_loss) keeps the Gaussians from shrinking to points or drifting apart. Stable Diffusion's
# weight of that penalty is a millionth: just enough to keep the latents round.

SD3 = KLVAEConfig()
SD14 = KLVAEConfig(z_channels=4, quant_conv=True, scale=0.18215, shift=0.0)


class KLVAE(nn.Module):
    """Stable Diffusion's image autoencoder. Videos go through frame by frame: (B,3,T,H,W) <-> (B,C,T,h,w)."""
    Config = KLVAEConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.quant_conv:
            c = config.z_channels
            self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1)
            self.post_quant_conv = nn.Conv2d(c, c, 1)

    @property
    def downsampling(self):
        return 2 ** (len(self.config.ch_mult) - 1)

    def moments(self, x):
        """Mean and log variance of q(z|x), each (B,C,T,h,w)."""
        h = self.encoder(fold(x))                                                           # (F,2C,h,w)
        if self.config.quant_conv:
            h = self.quant_conv(h)
        mean, logvar = unfold(h, len(x)).chunk(2, dim=1)                                    # (B,C,T,h,w)
        return mean, logvar.clamp(-30, 20)                # SD's bounds: exp() of either is still a number

    # DEVIATES from SD's and Latte's published code: a transformer, too, is trained on the Gaussian's mean,
    # not on a draw from it. sigma is tiny in the released VAEs, and a mean is the same at every visit, so
    # it can be cached.
    def encode(self, x):
        """Raw latent: the mean of q(z|x), "the posterior". Raises UserError for sizes not /8."""
        check_size(x, self.downsampling)
        return self.moments(x)[0]                                                           # (B,C,T,h,w)

    def decode(self, z):
        return unfold(self.decoder(self.before_decoder(fold(z))), len(z))                   # (B,3,T,H,W)

    def before_decoder(self, h):
        return self.post_quant_conv(h) if self.config.quant_conv else h                     # (F,C,h,w)

    # The transformer's noise has mean 0 and standard deviation 1; so should what it is mixed with, or the
    # data would be drowned too early or too late. Two numbers for all channels, measured once on many clips.
    def scaled(self, z):
        return (z - self.config.shift) * self.config.scale

    def unscaled(self, z):
        return z / self.config.scale + self.config.shift


def measure_latents(vae, clips):
    """shift and scale of a VAE trained here: 0 mean and unit variance over the latents of `clips`."""
    with torch.no_grad():
        z = torch.cat([vae.encode(clip).float().flatten() for clip in clips])               # (all numbers,)
    return z.mean().item(), 1 / z.std().item()


# Rombach et al. 2022, the image VAE: reconstruction (L1 keeps edges sharper than L2 alone), and the KL
# divergence of each Gaussian from a standard one, which has a closed form, a sum over z's numbers of
#     KL(N(mu, sigma^2) || N(0, 1)) = (mu^2 + sigma^2 - 1 - log sigma^2) / 2
# It pulls mu to 0 and sigma to 1; reconstruction pulls sigma to 0, to know which point was drawn.
# DEVIATES Rombach et al. 2022: L2 beside L1, LPIPS at VideoDiT's 0.1 where theirs is at 1, and no
# discriminator: the toy's shapes have no texture that it could bring out.
def kl_vae_loss(vae, x, noise, kl_weight=1e-6, perceptual=None, lpips_weight=0.1):
    """Stage `vae`: L1 + L2 + KL (+ LPIPS). noise (B,C,T,h,w) draws z from q(z|x).

    Returns the loss and a dict of numbers for the log."""
    mean, logvar = vae.moments(x)                                                           # (B,C,T,h,w)
    # The reparameterisation trick: written as mu + sigma * noise, a draw lets gradients pass to mu and sigma.
    z = mean + (0.5 * logvar).exp() * noise                                                 # (B,C,T,h,w)
    x_hat = vae.decode(z)                                                                   # (B,3,T,H,W)
    recon = mse(x, x_hat) + F.l1_loss(x.float(), x_hat.float())
    kl = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).mean()
    loss = recon + kl_weight * kl * mean[0].numel() / x[0].numel()      # per pixel value, as recon is
    log = {"mse": mse(x, x_hat), "kl": kl}
    if perceptual is not None and lpips_weight:
        log["lpips"] = perceptual(fold(x), fold(x_hat))
        loss = loss + lpips_weight * log["lpips"]
    return loss, {name: value.detach() for name, value in log.items()}


# Everything below runs on (F,C,H,W) with the frames of all clips folded into F, so that a 2D layer needs not
# know that there is a video.
def fold(x):
    """Frames into the batch, for the 2D layers."""
    x = rearrange(x, "b c t h w -> (b t) c h w")                                            # (F,C,H,W)
    return x.contiguous(memory_format=conv_layout(x.device))


def unfold(x, clips):
    return rearrange(x, "(b t) c h w -> b c t h w", b=clips)                                # (B,C,T,H,W)


def check_size(x, factor):
    height, width = x.shape[-2:]
    if width % factor or height % factor:
        raise UserError(f"{width}x{height} pixels cannot be encoded: --size must be a multiple of {factor}")


def check_frames(frames, group=GOP):
    if frames < 1 or (frames > 1 and frames % group):
        above = (max(frames, 0) // group + 1) * group
        raise UserError(f"--frames {frames}: must be 1 (an image) or a multiple of {group}, such as {above}")


# ------------------------------------------------------------------------------------------ encoder, decoder

# Both are stairs. Down the stairs a frame gets smaller and its pixels richer; up again they are unpacked.
# At SD3's size (ch=128, ch_mult 1 2 4 4), for one clip:
#
#     E_r   level 0      level 1          level 2          level 3       middle       out
#           (T,128,H,W)  (T/2,256,H/2..)  (T/4,512,H/4..)  (T/4,512,H/8..)            (T/4,2C,H/8,W/8)
#                \_ Down, TimeDown _/ \_ Down, TimeDown _/ \_ Down _/
#     D     the same stairs, climbed: Up, then Up and TimeUp twice
#
# E_k and D_k (video=False) are the same without a step in time. Time is halved and doubled where A.1 says:
# "following the first two spatial downsampling layers and the last two upsampling layers, respectively".
# Names and order of the layers are those of the published weights (test_golden_*: they answer as the
# published code does, to float32's rounding).

class Encoder(nn.Module):
    """E_k (video=False), E_r (True). (F,3,H,W) -> z's mean and log variance (F',2C,h,w), F' = F/4 in E_r."""
    def __init__(self, config, video=False):
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i, c in enumerate(widths):
            before = widths[max(i - 1, 0)]
            level = Level([before] + [c] * config.num_res_blocks, config.groups, video)
            if i + 1 < len(widths):
                level.downsample = Down(c)
            if video and i < 2:                          # 3.1: after each of the first two spatial halvings
                level.time_down = TimeDown(c)
            self.down.append(level)
        self.mid = Middle(widths[-1], config.groups, video)
        self.norm_out = FrameNorm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)
        self.checkpointing = False                  # gradient checkpointing of each level: 3x less memory

    def forward(self, x, frames=1):
        h = self.conv_in(x)                                                                 # (F,ch,H,W)
        for level in self.down:
            h = run_block(level, self.checkpointing, h, frames)                             # (F,c,H,W)
            if hasattr(level, "downsample"):
                h = level.downsample(h)                                                     # (F,c,H/2,W/2)
            if hasattr(level, "time_down"):
                h = level.time_down(h, frames)                                              # (F/2,c,..)
                frames = frames // 2
        h = self.mid(h, frames)
        return self.conv_out(silu(self.norm_out(h)))                                        # (F',2C,h,w)


class Decoder(nn.Module):
    """D_k (video=False) and D (video=True). (F',C,h,w) -> (F,3,H,W)."""
    def __init__(self, config, video=False):
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[last], 3, padding=1)
        self.mid = Middle(widths[last], config.groups, video)
        self.up = nn.ModuleList()                              # index = level of the encoder; used in reverse
        for i, c in enumerate(widths):
            before = widths[min(i + 1, last)]
            level = Level([before] + [c] * (config.num_res_blocks + 1), config.groups, video)
            if i > 0:
                level.upsample = Up(c)
            if video and 0 < i < 3:                          # A.1: following the last two upsampling layers
                level.time_up = TimeUp(c)
            self.up.append(level)
        self.norm_out = FrameNorm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)
        self.checkpointing = False

    def forward(self, z, frames=1):
        h = self.mid(self.conv_in(z), frames)                                               # (F',c,h,w)
        for level in reversed(self.up):
            h = run_block(level, self.checkpointing, h, frames)                             # (F,c,h,w)
            if hasattr(level, "upsample"):
                h = level.upsample(h)                                                       # (F,c,2h,2w)
            if hasattr(level, "time_up"):
                h = level.time_up(h, frames)                                                # (2F,c,..)
                frames = frames * 2
        return self.conv_out(silu(self.norm_out(h)))                                        # (F,3,H,W)


class Level(nn.Module):
    """ResBlocks at one resolution, each followed by a temporal one in the video parts. The resampling after
    them hangs here, too, because the published weights name it so, but is called from outside."""
    def __init__(self, widths, groups, video):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(a, b, groups) for a, b in zip(widths, widths[1:]))
        self.time_block = nn.ModuleList(TimeResBlock(b, groups) for b in widths[1:] if video)

    def forward(self, x, frames):
        for i, block in enumerate(self.block):
            x = block(x)                                                                    # (F,c,H,W)
            if self.time_block:
                x = self.time_block[i](x, frames)
        return x


class Middle(nn.Module):
    def __init__(self, c, groups, video):
        super().__init__()
        self.block_1 = ResBlock(c, c, groups)
        self.attn_1 = AttnBlock(c, groups)
        self.block_2 = ResBlock(c, c, groups)
        if video:
            self.time_1 = TimeResBlock(c, groups)
            self.time_2 = TimeResBlock(c, groups)
            self.time_attn = TimeAttention(c, groups)
        self.video = video

    def forward(self, x, frames):
        if not self.video:
            return self.block_2(self.attn_1(self.block_1(x)))
        x = self.time_1(self.block_1(x), frames)
        x = self.time_attn(self.attn_1(x), frames)
        return self.time_2(self.block_2(x), frames)


# ------------------------------------------------------------------------------------------ layers in space

# The layers of Stable Diffusion's VAE. A convolution looks at 3 x 3 pixels, a norm brings each group of
# channels to mean 0 and standard deviation 1 so that signals neither die out nor explode in forty layers,
# SiLU (x * sigmoid(x)) bends. A block adds its findings to its input ("residual"): it only has to learn
# what to change, and gradients find a straight way through the sum.

# ASSUMED: norms see one frame also in the video parts. Over time they would mix the whole clip into every
# frame, by an amount that depends on the clip's length, and a clip could not be coded in windows.
class FrameNorm(nn.GroupNorm):
    """GroupNorm of each frame."""
    def __init__(self, c, groups):
        super().__init__(groups, c, eps=1e-6)

    def forward(self, x):
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ResBlock(nn.Module):
    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1 = FrameNorm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = FrameNorm(c_out, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:                                         # a sum needs equal widths
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv1(silu(self.norm1(x)))                                                 # (F,c_out,H,W)
        h = self.conv2(silu(self.norm2(h)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)                                                        # (F,c_out,H,W)
        return h + x


class AttnBlock(nn.Module):
    """All pixels of a frame attend to each other, so that the sky's left end knows the right one's blue. In
    the middle of encoder and decoder only: N pixels cost N x N, and the middle has 64 times fewer."""
    def __init__(self, c, groups):
        super().__init__()
        self.norm = FrameNorm(c, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (rearrange(conv(h), "f c h w -> f 1 (h w) c")
                   for conv in (self.q, self.k, self.v))                                    # (F,1,H*W,C)
        h = rearrange(attend(q, k, v), "f 1 (h w) c -> f c h w", h=x.shape[-2])             # (F,C,H,W)
        return x + self.proj_out(h)


class Down(nn.Module):
    """Halve H and W. The zeros go on the right and at the bottom only: Stable Diffusion's way, and its
    weights'. With one on each side everything would move by a pixel (test_golden_inner_layers)."""
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))                                            # (F,C,H/2,W/2)


class Up(nn.Module):
    """Double H and W: each pixel four times, then a convolution to smooth the steps."""
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return conv_of_doubled(x, self.conv.weight, self.conv.bias)                         # (F,C,2H,2W)


# ------------------------------------------------------------------------------------------ layers in time

# VideoDiT A.1: "incorporate corresponding 1D components working on temporal dimension after each 2D ResBlock
# and Attention Block", the "factorized pseudo-3D mechanism". Space first, then time: a 3 x 3 x 3
# convolution would have three times the weights and could not start as the trained 2D one. So each 2D block
# is followed by one that looks along time, each pixel by itself:
#
#     (F,C,H,W) --> ResBlock --> TimeResBlock --> ...        F = B*T: the latter unfolds, looks, folds back
#
# ASSUMED: the 1D component of a ResBlock is a 1D ResBlock (two GroupNorm-SiLU-conv), one temporal attention
# follows the middle attention. With E_k and D_k counted that is the only reading that gives the 195 M
# parameters of Table 1 (test_parameter_counts: 195,096,006); one convolution each gives 183 M, four 220 M.

class TimeConv(nn.Module):
    """A convolution over 3 frames, each pixel by itself. ASSUMED: before the first and after the last frame
    come copies of them. With zeros a scene that stands still would darken towards both ends.

    Computed as a 3x1x1 convolution of the folded frames, seen through a view: no pixel has to move, as it
    would for conv1d."""
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv1d(c, c, 3)

    def forward(self, x, frames):
        x = unfold_with_ends(x, frames)                                                     # (B,C,T+2,H,W)
        x = F.conv3d(x, self.conv.weight[..., None, None], self.conv.bias)                  # (B,C,T,H,W)
        return rearrange(x, "b c t h w -> (b t) c h w")                                     # (F,C,H,W)


class TimeResBlock(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.norm1 = FrameNorm(c, groups)
        self.conv1 = TimeConv(c)
        self.norm2 = FrameNorm(c, groups)
        self.conv2 = TimeConv(c)

    def forward(self, x, frames):
        h = self.conv1(silu(self.norm1(x)), frames)
        return x + self.conv2(silu(self.norm2(h)), frames)      # conv2 is zero-initialised: x at step 0


class TimeAttention(nn.Module):
    """Each pixel attends over the frames: a place that a cat walks past can look up how it was before.

    ASSUMED: no position embedding. Attention alone cannot tell the first frame from the last; the
    convolutions around it can, and without a table of positions no length is foreign."""
    def __init__(self, c, groups):
        super().__init__()
        self.norm = FrameNorm(c, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x, frames):
        height, width = x.shape[-2:]
        h = rearrange(self.norm(x), "(b t) c h w -> (b h w) 1 t c", t=frames)               # (B*H*W,1,T,C)
        h = self.proj_out(attend(self.q(h), self.k(h), self.v(h)))
        h = rearrange(h, "(b h w) 1 t c -> (b t) c h w", h=height, w=width)                 # (F,C,H,W)
        return x + h                                            # proj_out is zero-initialised


# "Temporal downsampling and upsampling operations" (A.1) have to be of some kind. ASSUMED: sub-pixels of
# time. Two frames' channels, side by side, become one frame's by a 1x1 convolution, and back. It starts
# as their mean, and as a copy. In a prototype nearest frames and a convolution over 3, which others use,
# learned 1.7 dB less in the same time; they would count 195.5 M parameters.

class TimeDown(nn.Module):
    """Two frames become one: a 1x1 convolution of both, which starts as their mean."""
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(2 * c, c, 1)

    def forward(self, x, frames):
        pairs = rearrange(x, "(b t two) c h w -> (b t) (two c) h w", two=2, t=frames // 2)  # (F/2,2C,H,W)
        return self.conv(pairs)                                                             # (F/2,C,H,W)


class TimeUp(nn.Module):
    """One frame becomes two: a 1x1 convolution to twice the channels, which starts as a copy."""
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, 2 * c, 1)

    def forward(self, x, frames):
        pairs = self.conv(x)                                                                # (F,2C,H,W)
        return rearrange(pairs, "(b t) (two c) h w -> (b t two) c h w", two=2, t=frames)    # (2F,C,H,W)


# ------------------------------------------------------------------------------------------ the start

# "We initialize a trainable copy of the pre-trained 2D VAE" (A.1): E_r from the encoder, D from the
# decoder. What A.1 adds over time starts as the identity, so that the trained 2D network is not disturbed:
# learning to see time begins from a network that already sees.
#
# DEVIATES from A.1: E_r's output layer is no copy, it is zero-initialised. A copy of the encoder says z_k
# once more, and z = z_k + z_k would be twice as large as anything D_k has ever read. With zeros z = z_k,
# and D(z) is each key frame's 2D decode, held for 4 frames: not good, but nowhere wrong, and exactly what
# the image model knew (test_at_step_0_a_clip_is_its_key_frames_held).
@torch.no_grad()
def start_from_image(dp):
    """E_r and D of a DP-VAE as copies of its image VAE, its layers in time as the identity."""
    dp.residual.load_state_dict(dp.image.encoder.state_dict(), strict=False)     # not strict: layers in time
    dp.decoder.load_state_dict(dp.image.decoder.state_dict(), strict=False)      # are in no image VAE
    if dp.config.key_encoder:                                # without E_k, E_r has to make all of z by itself
        set_layer(dp.residual.conv_out, 0.0)
    for module in dp.modules():
        if isinstance(module, TimeResBlock):
            set_layer(module.conv2.conv, 0.0)
        elif isinstance(module, TimeAttention):
            set_layer(module.proj_out, 0.0)
        elif isinstance(module, TimeDown):
            mean = torch.eye(module.conv.out_channels).repeat(1, 2) / 2                     # (C,2C)
            set_layer(module.conv, mean[:, :, None, None])
        elif isinstance(module, TimeUp):
            copies = torch.eye(module.conv.in_channels).repeat(2, 1)                        # (2C,C)
            set_layer(module.conv, copies[:, :, None, None])


def set_layer(layer, weight):
    layer.weight[:] = weight
    nn.init.zeros_(layer.bias)


# ------------------------------------------------------------------------------------------ long clips

# Training sees 32 frames, videos are longer. E_r and D attend over all frames they are given (their
# convolutions alone reach some 60), so a length that training never saw is asking for luck; and memory would
# grow with it: 30 GB for 96 frames of 512 x 512. So a long clip goes through in windows of what training
# saw. How should two windows meet?
#
#   end to end        [--------][--------]    The last frames of a window are its worst: no key frame
#                                             follows, so D has to guess where things go. At the seam the
#                                             worst frame meets a key frame, and the video jumps.
#   cross-faded       [--------]              The mean of what both windows show. A thing that the two draw
#                         [--------]          at two places is there twice, faintly.
#   shared and cut    [------..]              Both see past the cut, each gives up what is beyond it: no
#                        [..------]           mixture, and next to the cut both know what comes.
#
# Measured on the toy world, windows of 16 of which 4 are shared: PSNR, and the change across a seam divided
# by the changes before and after it (in the clips themselves 0.96):
#                               end to end      cross-faded     shared and cut
#     24 clips of 48 frames     29.36 dB, 1.5   28.81 dB, 0.9   29.44 dB, 1.1
#     21 clips of 96 frames     29.29 dB, 1.6   28.89 dB        29.53 dB, 1.1
# So the third, in the encoder and in the decoder alike
# (test_a_long_clip_is_worth_its_windows_and_shows_no_seams).
# ASSUMED: the paper does not say how 96 frames go through, or how many of them are shared. Sharing costs
# time: 1.33 times, when windows of 32 share 8.
def by_windows(code, x, taken, given, config):
    """code() on each window of x; memory does not grow with T. A group of frames is `taken` frames of x and
    `given` of the result."""
    groups = x.shape[2] // taken
    windows = plan_windows(groups, config.window // GOP, config.overlap // GOP)
    if len(windows) == 1:
        return code(x)
    whole = None
    for start, end, first, last in windows:
        part = code(x[:, :, start * taken:end * taken])                      # (B,.,(end-start)*given,.,.)
        if whole is None:                                # made once: joining a list would hold the clip twice
            whole = part.new_empty(*part.shape[:2], groups * given, *part.shape[3:])        # (B,.,T or T',..)
        kept = part[:, :, (first - start) * given:(last - start) * given]
        whole[:, :, first * given:last * given] = kept
    return whole


def plan_windows(groups, size, shared):
    """Windows of `size` groups over a clip: [(start, end, first kept, last kept + 1)].

    Neighbours share `shared` groups and are cut in the middle of them; an odd one goes to the later window.
    The last window is full, too, and so shares more.
    plan_windows(10, 4, 2) = [(0, 4, 0, 3), (2, 6, 3, 5), (4, 8, 5, 7), (6, 10, 7, 10)]"""
    step = size - shared
    size = min(size, groups)
    starts = [*range(0, groups - size, step), groups - size]
    middles = [(start + size + following) // 2 for start, following in zip(starts, starts[1:])]
    firsts, lasts = [0, *middles], [*middles, groups]
    return [(start, start + size, first, last) for start, first, last in zip(starts, firsts, lasts)]


# ------------------------------------------------------------------------------------------ the discriminator

# What is a good reconstruction? Squared error loves blur: where a blade of grass may stand here or a pixel
# further, the mean of both has the least. So Eq. 4 has two more terms, which do not compare pixel by pixel:
# LPIPS (support/detectors.py) compares what a trained network sees in both frames. L_disc is a game of two: a
# discriminator learns to give videos a high score and reconstructions a low one, in turns with the VAE, which
# learns to be given a high one (dp_vae_loss).
#
# ASSUMED: the loss is the hinge, the network the one below. It counts after disc_start steps, rising over
# disc_warmup (presets.py): a decoder that is all blur loses at once, and learns nothing from it.
# ASSUMED: AdamW with the rate, betas and weight decay of the DP-VAE's; the paper names no optimizer for it.
#
# The hinge: a video needs to score above 1 and a reconstruction below -1; who is past the mark is left in
# peace, so the effort goes to the doubtful.
def discriminator_loss(discriminator, x, x_hat):
    """Hinge loss: real above 1, reconstructed below -1. x_hat is detached: the discriminator learns here."""
    real = discriminator(x).float()                                                         # (B,1,..)
    fake = discriminator(x_hat.detach()).float()                                            # (B,1,..)
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


@dataclass
class PatchGAN3DConfig:
    width: int = 64                   # channels after the first layer; doubled by each further one, up to 8x
    layers: int = 3                   # convolutions of stride 2 after the first one


# A "PatchGAN" (Isola et al. 2017) asks "is this real?" not of a clip but of every patch: a texture is right
# or wrong wherever it is, one clip is thousands of examples, and a plain stack of convolutions does. In 3D a
# patch is also a moment, so flicker is seen. ASSUMED: the stack; the paper gives none.
# DEVIATES: GroupNorm for Isola's BatchNorm, whose running means drift apart when several GPUs train.
class PatchGAN3D(nn.Module):
    """(B,3,T,H,W) -> realness of overlapping patches (B,1,T'',H'',W'')."""
    Config = PatchGAN3DConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        widths = [config.width * min(2 ** i, 8) for i in range(config.layers + 1)]
        layers = [nn.Conv3d(3, widths[0], (3, 4, 4), (1, 2, 2), 1), nn.LeakyReLU(0.2)]
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            stride = (2, 2, 2) if i == 0 else (1, 2, 2)           # time is halved once, space at every layer
            layers.append(nn.Conv3d(a, b, (3, 4, 4), stride, 1))
            layers.append(nn.GroupNorm(math.gcd(b // 4, 32), b))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Conv3d(widths[-1], 1, 3, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, 0.0, 0.02)         # Isola's: scores start near 0, undecided
                nn.init.zeros_(module.bias)

    def forward(self, x):
        height, width = x.shape[-2:]
        least = 2 ** (self.config.layers + 1)
        if min(height, width) < least:
            raise UserError(f"the discriminator cannot judge {width}x{height} pixels: --size and --crop must "
                            f"be at least {least}; or train without: --disc_weight 0")
        return self.layers(x)                                                        # (B,1,T/2,H/16,W/16)


if __name__ == "__main__":
    from demos.show_vae import main

    polite(main)
