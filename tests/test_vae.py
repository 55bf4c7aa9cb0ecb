"""Tests of vae.py: Stable Diffusion's image VAE to the last digit, and what VideoDiT 3.1 says of DP-VAE."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import pretrained
import vae
from support.checkpoints import load_network, save_network
from support.cli import UserError
from conftest import GOLDEN, close, golden
from vae import (GOP, SD3, SD14, DPVAE, DPVAEConfig, KLVAE, KLVAEConfig, PatchGAN3D, PatchGAN3DConfig,
                 FrameNorm, TimeAttention, TimeConv, TimeDown, TimeResBlock, TimeUp, Up, plan_windows,
                 discriminator_loss, dp_vae_loss, fold, kl_vae_loss, measure_latents, statistics_loss, unfold)
from support.toy_world import render, sample_spec

TOY = Path(vae.__file__).with_name("checkpoints") / "toy/dpvae.safetensors"
FILES = ["sd3_vae_16ch", "sd3_vae_16ch_diffusers", "sd_vae_kl_4ch", "sd_vae_kl_4ch_diffusers"]
SMALL = KLVAEConfig(z_channels=4, ch=8, ch_mult=(1, 2, 2, 2), num_res_blocks=1, groups=4)
BARE = replace(SMALL, ch=4, ch_mult=(1, 1, 1), groups=2)                   # for long clips


@functools.cache
def golden_vae(name):
    """The VAE of a fixture, its inputs, its expected outputs, its config."""
    weights, given, expected, config = golden(name)
    vae = pretrained.kl_vae(weights, config["norm_num_groups"], config["scaling_factor"],
                                config["shift_factor"])
    return vae, given, expected, config


def image(x):
    return x[:, :, None]                                                     # (B,C,H,W) -> (B,C,1,H,W)


def count(net):
    return sum(p.numel() for p in net.parameters())


def small_vae(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return KLVAE(config).eval()


def small_dp(config=SMALL, seed=0, **settings):
    return DPVAE.from_image(small_vae(config, seed), **settings).eval()


def stirred(dp, size=0.05, seed=1):
    """The same DP-VAE with its temporal layers and E_r's output moved off their zeros."""
    torch.manual_seed(seed)
    with torch.no_grad():
        moved = [module for module in dp.modules()
                 if isinstance(module, (TimeResBlock, TimeAttention, TimeUp, TimeDown))]
        for module in [*moved, dp.residual.conv_out]:
            for p in module.parameters():
                p.add_(torch.randn_like(p) * size)
    return dp


def clip(frames=8, size=32, batch=1, seed=0):
    torch.manual_seed(seed)
    return torch.rand(batch, 3, frames, size, size) * 2 - 1


def toy_clips(number, frames=16, size=32):
    clips = torch.stack([torch.from_numpy(render(sample_spec(0, i), frames, size)) for i in range(number)])
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1                 # (B,3,T,H,W)


def psnr(a, b):
    return (10 * torch.log10(4 / F.mse_loss(a, b))).item()


def held(dp, x):
    """The key frames' 2D round trip, each shown for 4 frames."""
    return dp.image.decode(dp.image.encode(x[:, :, ::4])).repeat_interleave(4, dim=2)


# -------------------------------------------------------------------------------------------- golden: KL-VAE

@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_golden_posterior(name):
    """Mean, clamped log-variance, both as one tensor, and a sample drawn with the fixture's noise."""
    vae, given, expected, _ = golden_vae(name)
    mean, logvar = (part[:, :, 0] for part in vae.moments(image(given["x"])))
    close(mean, expected["mean"])
    close(logvar, expected["logvar"])
    close(vae.encode(image(given["x"]))[:, :, 0], expected["mean"])
    sample = mean + (0.5 * logvar).exp() * given["noise"]
    close(sample, expected["sample"])


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_golden_decode_and_scale(name):
    """Raw latents, latents at the transformer's border, and the way there and back."""
    vae, given, expected, _ = golden_vae(name)
    close(vae.decode(image(given["z"]))[:, :, 0], expected["decoded_z"])
    close(vae.decode(image(expected["mean"]))[:, :, 0], expected["recon_from_mean"])
    close(vae.scaled(expected["mean"]), expected["latent_scaled"])
    close(vae.unscaled(expected["latent_scaled"]), expected["mean"])
    close(vae.decode(image(vae.unscaled(given["z"])))[:, :, 0], expected["decoded_from_scaled_z"])


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_golden_inner_layers(name):
    """After the first downsampling (zeros right and below only) and after the middle attention."""
    vae, given, expected, _ = golden_vae(name)
    seen = {}
    modules = {"enc_down0": vae.encoder.down[0].downsample, "enc_mid_attn_out": vae.encoder.mid.attn_1}
    for key, module in modules.items():
        module.register_forward_hook(lambda module, args, out, key=key: seen.update({key: out}))
    vae.encode(image(given["x"]))
    for key, out in seen.items():
        if key in expected:                                     # the Diffusers fixtures have none
            close(out, expected[key])
    assert len(seen) == 2 and (set(seen) <= set(expected) or "diffusers" in name)


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_golden_kl(name):
    """KL(q(z|x) || N(0,1)): the fixtures sum it over a sample, our loss logs its mean over everything."""
    vae, given, expected, _ = golden_vae(name)
    kl = kl_vae_loss(vae, image(given["x"]), image(torch.zeros_like(given["z"])))[1]["kl"]
    assert_close(kl * expected["mean"][0].numel(), expected["kl"].mean(), rtol=1e-5, atol=0)


def test_golden_latent_format_of_sd3():
    """flow_sd3.json: (z - 0.0609) * 1.5305 and back, to float32's precision."""
    table = json.loads((GOLDEN / "flow_sd3.json").read_text())["latent_format"]
    vae = small_vae(replace(BARE, scale=table["scale"], shift=table["shift"]))
    z = torch.tensor(table["in"])
    assert_close(vae.scaled(z), torch.tensor(table["process_in"]), atol=1e-6, rtol=0)
    assert_close(vae.unscaled(z), torch.tensor(table["process_out"]), atol=1e-6, rtol=0)
    assert (SD3.scale, SD3.shift) == (table["scale"], table["shift"])


# ----------------------------------------------------------------------------------------------------- sizes

@pytest.mark.parametrize("cls, config, parameters", [
    (KLVAE, SD3, 83_819_683), (KLVAE, SD14, 83_653_863), (DPVAE, DPVAEConfig(), 195_096_006)])
def test_parameter_counts(cls, config, parameters):
    """SD3's and SD 1.4's VAE exactly; VideoDiT Table 1 gives DP-VAE 195 M, E_k and D_k included."""
    with torch.device("meta"):
        assert count(cls(config)) == parameters


def test_shapes_of_latents():
    """16 channels, an eighth of the size, a quarter of the frames; a KL-VAE keeps the frames."""
    dp, x = small_dp(replace(SMALL, z_channels=16)), clip(8, 32, batch=2)
    with torch.no_grad():
        assert dp.encode(x).shape == (2, 16, 2, 4, 4) and dp.image.encode(x).shape == (2, 16, 8, 4, 4)
        assert dp.decode(dp.encode(x)).shape == x.shape
        assert dp.decode_keys(dp.encode(x)).shape == (2, 3, 2, 32, 32)


def normed(x, grad):
    """A FrameNorm of x (two channels a group, as at SD3's half width), and x's gradient."""
    x = x.clone().requires_grad_()
    y = FrameNorm(x.shape[1], x.shape[1] // 2)(x)
    y.backward(grad)
    return y.detach(), x.grad


def test_a_norm_in_bfloat16_learns_in_float32():
    """Its float32 backward is the faster one on a CPU, and the more exact; the layout stays channels last."""
    torch.manual_seed(0)
    x, grad = (part.to(torch.bfloat16, memory_format=torch.channels_last)
               for part in torch.randn(2, 3, 16, 8, 8))                                 # (F,C,H,W) each
    (y, slope), (exact, exact_slope) = normed(x, grad), normed(x.float(), grad.float())
    assert_close(y, exact.bfloat16(), atol=0, rtol=0)
    assert_close(slope, exact_slope.bfloat16(), atol=0, rtol=0)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert slope.is_contiguous(memory_format=torch.channels_last)


def test_up_is_a_convolution_of_each_pixel_four_times():
    """Computed as one transposed convolution: the same answer and the same gradients as the two steps."""
    torch.manual_seed(0)
    up, x, grad = Up(6), torch.randn(2, 6, 5, 3, requires_grad=True), torch.randn(2, 6, 10, 6)
    two_steps = up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    wanted = torch.autograd.grad(two_steps, (x, *up.parameters()), grad)
    assert_close(up(x), two_steps, atol=1e-5, rtol=0)
    assert_close(torch.autograd.grad(up(x), (x, *up.parameters()), grad), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames, near", [(13, 16), (2, 4)])
def test_frame_counts_are_one_or_multiples_of_four(frames, near):
    """Unlike causal video VAEs DP-VAE does not take 4k+1 frames; the message has a count that it takes."""
    with pytest.raises(UserError, match=f"--frames {frames}: must be .* such as {near}"):
        small_dp(BARE).encode(clip(frames, 16))


@pytest.mark.parametrize("width, height", [(36, 32), (32, 20)])
def test_sizes_are_multiples_of_eight(width, height):
    """Three halvings; an odd size would lose its last column without a word."""
    for net, frames in ((small_vae(), 1), (small_dp(), 1), (small_dp(), 8)):
        with pytest.raises(UserError, match=f"{width}x{height} .*--size must be a multiple of 8"):
            net.encode(torch.zeros(1, 3, frames, height, width))


@pytest.mark.parametrize("window, overlap", [(30, 8), (0, 0), (32, 32), (32, 30), (32, -4), (16, 20)])
def test_windows_that_cannot_be_stitched_are_refused(window, overlap):
    """A window is whole groups of four frames, and each starts at least one group after the one before."""
    with pytest.raises(UserError, match=f"windows of {window} frames that share {overlap} cannot"):
        DPVAEConfig(window=window, overlap=overlap)


# ------------------------------------------------------------------------------------------ DP-VAE at step 0

@pytest.mark.parametrize("config", [replace(SMALL, z_channels=16), replace(SMALL, quant_conv=True)])
@torch.no_grad()
def test_at_step_0_a_clip_is_its_key_frames_held(config):
    """VideoDiT A.1: E_r and D start as the 2D VAE; with zeroed branches D(z) holds D_k of each key frame."""
    dp, x = small_dp(config), clip(12)
    z, z_k = dp.encode_window(x)
    assert_close(z, z_k, atol=1e-6, rtol=0)
    assert_close(z_k, dp.image.encode(x[:, :, ::GOP]), atol=0, rtol=0)
    assert_close(dp.decode(dp.encode(x)), held(dp, x), atol=1e-5, rtol=0)
    assert_close(dp.decode_keys(z), dp.image.decode(z_k), atol=1e-5, rtol=0)


@torch.no_grad()
def test_temporal_layers_start_as_the_identity():
    """A 1D ResBlock and temporal attention add nothing; time-down is a mean, time-up a copy."""
    dp = small_dp()
    x = torch.randn(2 * 8, 16, 3, 3)
    for module in dp.modules():
        if isinstance(module, (TimeResBlock, TimeAttention)):
            x = torch.randn(8, module.norm1.num_channels if isinstance(module, TimeResBlock) else 16, 3, 3)
            assert_close(module(x, 4), x, atol=0, rtol=0)
        elif isinstance(module, TimeDown):
            x = torch.randn(8, module.conv.out_channels, 3, 3)
            assert_close(module(x, 4), (x[0::2] + x[1::2]) / 2)
        elif isinstance(module, TimeUp):
            x = torch.randn(8, module.conv.in_channels, 3, 3)
            assert_close(module(x, 4), x.repeat_interleave(2, 0))


def test_each_2d_block_is_followed_by_a_1d_one():
    """VideoDiT A.1: "after each 2D ResBlock and Attention Block"; two temporal halvings, two doublings."""
    with torch.device("meta"):
        dp = DPVAE(DPVAEConfig())
    for net, blocks, resample in ((dp.residual, 10, TimeDown), (dp.decoder, 14, TimeUp)):
        found = [type(module) for module in net.modules()]
        assert found.count(vae.ResBlock) == found.count(TimeResBlock) == blocks
        assert found.count(vae.AttnBlock) == found.count(TimeAttention) == 1
        assert found.count(resample) == 2


@torch.no_grad()
def test_an_image_meets_the_2d_vae_alone():
    """VideoDiT 3.1: T=1 goes through E_k and comes back through D_k, whatever E_r and D have learned."""
    dp, x = stirred(small_dp(), size=0.5), clip(1)
    assert_close(dp.encode(x), dp.image.encode(x), atol=0, rtol=0)
    assert_close(dp.decode_keys(dp.encode(x)), dp.image.decode(dp.image.encode(x)), atol=0, rtol=0)


@torch.no_grad()
def test_without_the_key_encoder_e_r_makes_all_of_z():
    """VideoDiT Table 3, "2D VAE" column: z = E_r(x), and E_r keeps the 2D encoder's output layer."""
    dp, x = small_dp(key_encoder=False), clip(8)
    z, z_k = dp.encode_window(x)
    assert_close(z, unfold(dp.residual(fold(x), 8).chunk(2, 1)[0], 1), atol=0, rtol=0)
    assert_close(dp.encode(x), z, atol=0, rtol=0)
    assert z.std() > 0.1 * z_k.std()
    dp.image.encoder.conv_out.weight.mul_(2)
    assert_close(dp.encode_window(x)[0], z, atol=0, rtol=0)


@torch.no_grad()
def test_eq_1_the_residual_is_added():
    """VideoDiT Eq. 1: z = E_k(x_k) + E_r(x), where E_r sees every frame and E_k only the first of four."""
    dp, x = stirred(small_dp()), clip(8)
    z, z_k = dp.encode_window(x)
    assert_close(z - z_k, unfold(dp.residual(fold(x), 8).chunk(2, 1)[0], 1), atol=1e-6, rtol=0)
    moved = x.clone()
    moved[:, :, 1] += 0.5                                                    # not a key frame
    z_moved, z_k_moved = dp.encode_window(moved)
    assert_close(z_k_moved, z_k, atol=0, rtol=0)
    assert (z_moved - z).abs().max() > 1e-4


@torch.no_grad()
def test_time_is_padded_by_repeating_the_first_and_last_frame():
    """As CV-VAE does: with zeros a scene that stands still would fade at both ends of a window."""
    torch.manual_seed(0)
    layer, x = TimeConv(3), torch.randn(2, 3, 5, 2, 2)
    rows = F.pad(x.permute(0, 3, 4, 1, 2).reshape(8, 3, 5), (1, 1), mode="replicate")
    expected = F.conv1d(rows, layer.conv.weight.reshape(3, 3, 3), layer.conv.bias).reshape(2, 2, 2, 3, 5)
    assert_close(unfold(layer(fold(x), 5), 2), expected.permute(0, 3, 4, 1, 2))


@torch.no_grad()
def test_clips_of_a_batch_do_not_touch():
    """Frames are folded into the batch; no temporal layer may look over the border of a clip."""
    dp, x = stirred(small_dp()), clip(8, batch=2)
    both, one = dp.encode_window(x)[0], dp.encode_window(x[1:])[0]
    assert_close(both[1:], one, atol=1e-5, rtol=0)
    assert_close(dp.decode_window(both)[1:], dp.decode_window(one), atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------- windows

@pytest.mark.parametrize("size, shared", [(8, 2), (8, 0), (4, 1), (8, 7), (1, 0)])
@pytest.mark.parametrize("groups", [1, 7, 8, 9, 23, 24, 100])
def test_windows_are_full_and_keep_each_group_once(groups, size, shared):
    """Every window is what training saw, but for a shorter clip; nothing is left out or kept twice."""
    pieces = plan_windows(groups, size, shared)
    assert [kept for _, _, first, last in pieces for kept in range(first, last)] == list(range(groups))
    assert {end - start for start, end, _, _ in pieces} == {min(size, groups)}
    for start, end, first, last in pieces:                     # half of what is shared lies beyond each cut
        assert start == first == 0 or first - start >= shared // 2
        assert end == last == groups or end - last >= (shared + 1) // 2


@torch.no_grad()
def test_a_long_clip_goes_through_in_windows_that_share_their_borders():
    """20 frames, windows of 12 that share 8: each gives up a group at each cut, encoder and decoder alike."""
    dp, x = stirred(small_dp(BARE, window=12, overlap=8)), clip(20, 16)
    parts = [dp.encode_window(x[:, :, start:start + 12])[0] for start in (0, 4, 8)]
    z = torch.cat([parts[0][:, :, :2], parts[1][:, :, 1:2], parts[2][:, :, 1:]], 2)
    assert_close(dp.encode(x), z, atol=0, rtol=0)
    parts = [dp.decode_window(z[:, :, start:start + 3]) for start in (0, 1, 2)]
    expected = torch.cat([parts[0][:, :, :8], parts[1][:, :, 4:8], parts[2][:, :, 4:]], 2)
    assert_close(dp.decode(z), expected, atol=0, rtol=0)


def seams_and_costs(clips, frames):
    """Of the shipped DP-VAE, windows of 16: dB that a long clip loses against its windows coded one by one;
    by how many of 255 levels pixels change more across a seam than beside it, beyond what the video
    does there: of our windows, and of those put end to end. (No ratios: some stand still at a seam.)"""
    dp = load_network(DPVAE, TOY)
    windows = plan_windows(frames // 4, dp.config.window // 4, dp.config.overlap // 4)
    ours = [4 * last for _, _, _, last in windows[:-1]]
    lost, more, ends = [], [], []
    for x in toy_clips(clips, frames, 64).split(1):
        alone = torch.cat([dp.decode_window(dp.encode_window(part)[0]) for part in x.split(16, 2)], 2)
        redone = dp.decode(dp.encode(x))
        lost.append(psnr(x, alone) - psnr(x, redone))
        video, one, two = (127.5 * (v[:, :, 1:] - v[:, :, :-1]).abs().mean((0, 1, 3, 4))
                          for v in (x, redone, alone))                                      # (T-1,)
        for found, made, seams in ((more, one, ours), (ends, two, range(16, frames, 16))):
            beyond = made - video
            found += [beyond[at - 1] - (beyond[at - 2] + beyond[at]) / 2 for at in seams]
    return torch.tensor(lost), torch.tensor(more).mean().item(), torch.tensor(ends).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("frames, clips", [(48, 24), (96, 12)])
@torch.no_grad()
def test_a_long_clip_is_worth_its_windows_and_shows_no_seams(frames, clips):
    """Windows one by one fail here (seams of 2 levels), cross-faded ones too (they lose 0.55 dB)."""
    lost, seam, ends = seams_and_costs(clips, frames)
    assert lost.mean() < 0.1 and seam < 1 and seam < ends / 2


def test_long_clips_are_coded_without_keeping_activations():
    """encode and decode are for use, not for training: with a graph their memory would grow with T."""
    dp = small_dp(BARE, window=8, overlap=4)
    x = clip(16, 16).requires_grad_()
    z = dp.encode(x)
    assert not z.requires_grad and not dp.decode(dp.encode_window(x)[0]).requires_grad
    assert dp.encode_window(x)[0].requires_grad


PEAK = """
import sys, torch
from support.trainer import peak_memory       # not getrusage: its peak begins with that of the process that started us
from vae import DPVAE, DPVAEConfig
torch.set_num_threads(1)
dp = DPVAE(DPVAEConfig(z_channels=4, ch=16, ch_mult=(1, 2, 2, 2), num_res_blocks=1, groups=4)).eval()
z = torch.randn(1, 4, int(sys.argv[1]) // 4, 16, 16)
dp.image.decode(z[:, :, :1, :2, :2])                             # whatever is loaded at first use
before = peak_memory("cpu")
dp.decode(z)
print(peak_memory("cpu") - before)
"""


@pytest.mark.slow
def test_memory_of_decoding_does_not_grow_with_the_length():
    """96 frames are decoded in the memory of 32, but for the clip itself: at most 1.3 times the peak."""
    peak = {}
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}     # freed memory goes back at once
    for frames in (32, 96):
        done = subprocess.run([sys.executable, "-c", PEAK, str(frames)], capture_output=True, text=True,
                              check=True, cwd=Path(vae.__file__).parent, env=exact)
        peak[frames] = int(done.stdout)
    ratio = peak[96] / peak[32]
    print(f"decode at 128x128: 32 frames {peak[32] / 1e6:.0f} MB, 96 frames {ratio:.2f} times that")
    assert peak[32] > 50e6 and ratio < 1.3


# ---------------------------------------------------------------------------------------------------- losses

def test_statistics_loss_longhand():
    """VideoDiT Eq. 3, last two terms: mean and standard deviation per sample and channel, over t, h and w."""
    torch.manual_seed(0)
    z, z_k = torch.randn(2, 3, 2, 4, 4) * 2 + 1, torch.randn(2, 3, 2, 4, 4)
    total = 0.0
    for b in range(2):
        for c in range(3):
            a, k = z[b, c].flatten(), z_k[b, c].flatten()
            std_a, std_k = ((((v - v.sum() / 32) ** 2).sum() / 31) ** 0.5 for v in (a, k))
            total += (a.sum() / 32 - k.sum() / 32) ** 2 + (std_a - std_k) ** 2
    assert_close(statistics_loss(z, z_k), total / 6)
    assert_close(statistics_loss(z[:, :, :, ::2].repeat(1, 1, 1, 2, 1), z[:, :, :, ::2]), torch.tensor(0.0),
                 atol=1e-3, rtol=0)


@pytest.mark.parametrize("weights", [{}, {"recon_weight": 0.5, "reg_weight": 3.0, "disc_weight": 0.2,
                                          "lpips_weight": 0.7}])
@torch.no_grad()
def test_eq_4_longhand(weights):
    """VideoDiT Eq. 2-4: recon + reg + 0.01 disc + 0.1 LPIPS, reg = D_k(z) against key frames + statistics."""
    dp, x = stirred(small_dp()), clip(8, batch=2)
    w = {"recon_weight": 1.0, "reg_weight": 1.0, "disc_weight": 0.01, "lpips_weight": 0.1, **weights}
    def distance(a, b):                                                      # LPIPS gets frames
        assert a.shape == b.shape == (16, 3, 32, 32)
        return (a - b).abs().mean()
    def realness(a): return a.mean((1, 2, 3, 4)) * 3
    z, z_k = dp.encode_window(x)
    x_hat, keys = dp.decode_window(z), dp.decode_keys(z)
    reg = ((x[:, :, [0, 4]] - keys) ** 2).mean() + statistics_loss(z, z_k)
    expected = (w["recon_weight"] * ((x - x_hat) ** 2).mean() + w["reg_weight"] * reg
                + w["disc_weight"] * -realness(x_hat).mean() + w["lpips_weight"] * (x - x_hat).abs().mean())
    loss, redone, log = dp_vae_loss(dp, x, distance, realness, **weights)
    assert_close(loss, expected)
    assert_close(redone, x_hat, atol=0, rtol=0)
    assert set(log) == {"mse", "key", "stat", "lpips", "gan"}


def test_noise_is_what_the_decoder_reads_and_nothing_else():
    """--z_noise: x_hat = D(z + noise); Eq. 3 still sees z itself, and gradients reach it through both."""
    dp, x = stirred(small_dp()), clip(8, batch=2)
    noise = torch.randn(dp.encode_window(x)[0].shape, generator=torch.Generator().manual_seed(0))
    plain, noisy = dp_vae_loss(dp, x)[2], dp_vae_loss(dp, x, noise=noise)
    assert_close(noisy[1], dp.decode_window(dp.encode_window(x)[0] + noise), atol=0, rtol=0)
    assert noisy[2]["key"] == plain["key"] and noisy[2]["stat"] == plain["stat"]
    assert noisy[2]["mse"] > plain["mse"]
    noisy[0].backward()
    assert dp.residual.conv_out.weight.grad.any() and dp.decoder.conv_in.weight.grad.any()


def test_the_frozen_vae_passes_gradients_on_and_keeps_none():
    """VideoDiT Eq. 3: D_k is frozen, but ||x_k - D_k(z)||^2 reaches E_r through it; at step 0 that alone."""
    dp = small_dp().train()
    loss, _, log = dp_vae_loss(dp, clip(8), recon_weight=0.0)
    assert_close(loss.detach(), log["key"])                                  # the statistics agree at step 0
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in dp.image.parameters())
    assert all(p.grad is None or not p.grad.any() for p in dp.decoder.parameters())
    assert dp.residual.conv_out.weight.grad.abs().max() > 0


def test_every_trained_parameter_learns():
    """Once off the zeros, each tensor of E_r and D has a gradient: none is left out of the graph."""
    dp = stirred(small_dp()).train()
    dp_vae_loss(dp, clip(8))[0].backward()
    for part in (dp.residual, dp.decoder):
        assert [name for name, p in part.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradient_checkpointing_changes_no_gradient():
    """The recomputed levels give the same loss and gradients."""
    grads = []
    for checkpointing in (False, True):
        dp = stirred(small_dp()).train()
        dp.residual.checkpointing = dp.decoder.checkpointing = dp.image.decoder.checkpointing = checkpointing
        dp_vae_loss(dp, clip(8))[0].backward()
        grads.append({name: p.grad for name, p in dp.named_parameters() if p.grad is not None})
    assert_close(grads[1], grads[0], atol=1e-6, rtol=1e-5)


def test_bfloat16_autocast_runs_and_is_close():
    """Losses are formed in float32 whatever the networks computed in."""
    dp, x = stirred(small_dp()), clip(8)
    plain = dp_vae_loss(dp, x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, x_hat, log = dp_vae_loss(dp, x, discriminator=PatchGAN3D(PatchGAN3DConfig(width=8)))
    loss.backward()
    assert loss.dtype == torch.float32 and log["mse"].dtype == torch.float32
    assert_close(log["mse"] + log["key"] + log["stat"], plain.detach(), rtol=0.03, atol=0)


def test_hinge_loss_worked_values():
    """Real 2, 0.5, -1 cost 0, 0.5, 2; reconstructed -2, 0, 1 cost 0, 1, 2; half the sum of the means."""
    loss = discriminator_loss(lambda v: v, torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0]))
    assert_close(loss, torch.tensor((2.5 / 3 + 1.0) / 2))


def test_the_discriminator_does_not_train_the_vae():
    """x_hat is detached in its loss; in the VAE's loss the gradient flows."""
    net, x_hat = PatchGAN3D(PatchGAN3DConfig(width=8)), clip(8, seed=1).requires_grad_()
    discriminator_loss(net, clip(8), x_hat).backward()
    assert x_hat.grad is None
    assert all(p.grad.any() for name, p in net.named_parameters() if name.endswith("weight"))
    net(x_hat).mean().backward()
    assert x_hat.grad.abs().max() > 0


@pytest.mark.parametrize("frames, size, patches", [(8, 32, (4, 2, 2)), (32, 64, (16, 4, 4)),
                                                   (4, 16, (2, 1, 1))])
@torch.no_grad()
def test_the_discriminator_judges_patches(frames, size, patches):
    """Time is halved once, space four times."""
    judged = PatchGAN3D(PatchGAN3DConfig(width=4))(torch.zeros(1, 3, frames, size, size))
    assert judged.shape == (1, 1, *patches)


def test_a_clip_too_small_for_the_discriminator_is_explained():
    """Below 16 pixels nothing is left after four halvings."""
    with pytest.raises(UserError, match="--size"):
        PatchGAN3D(PatchGAN3DConfig(width=4))(torch.zeros(1, 3, 8, 8, 16))


def test_kl_vae_loss_longhand():
    """Rombach et al. 2022: L1 + L2 + 1e-6 KL, per pixel value; z is drawn with the noise that is given."""
    vae, x = small_vae(), clip(2)
    noise = torch.randn(1, 4, 2, 4, 4)
    mean, logvar = vae.moments(x)
    x_hat = vae.decode(mean + logvar.exp().sqrt() * noise)
    kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).sum()
    expected = ((x - x_hat) ** 2).mean() + (x - x_hat).abs().mean() + 0.3 * kl / x.numel()
    assert_close(kl_vae_loss(vae, x, noise, kl_weight=0.3)[0], expected)


@torch.no_grad()
def test_measured_latents_are_normal():
    """shift and scale of a VAE trained here: its scaled latents have mean 0 and deviation 1."""
    vae, x = small_vae(), toy_clips(2, frames=2)
    shift, scale = measure_latents(vae, [x[:1], x[1:]])
    vae.config.shift, vae.config.scale = shift, scale
    z = vae.scaled(vae.encode(x))
    assert abs(z.mean()) < 1e-4 and abs(z.std() - 1) < 1e-4


# ------------------------------------------------------------------------------------------- training, files

@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_keep_the_statistics():
    """DP-VAE learns what held key frames miss, and its latents stay where the transformer expects them."""
    dp, x = small_dp(BARE, seed=3).train(), toy_clips(2, frames=8)
    optimizer = torch.optim.AdamW([p for p in dp.parameters() if p.requires_grad], lr=4e-3)
    losses = []
    for _ in range(12):
        loss, _, log = dp_vae_loss(dp, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    z, z_k = dp.encode_window(x)
    assert losses[-1] < 0.8 * losses[0]
    assert abs(z.std() / z_k.std() - 1) < 0.2 and (z - z_k).abs().max() > 1e-3


@torch.no_grad()
def test_a_saved_dp_vae_scales_as_its_image_vae_did(tmp_path):
    """VideoDiT 3.1: one shift and scale for images and video, carried through from_image and the file."""
    dp = DPVAE.from_image(small_vae(replace(SMALL, scale=0.7, shift=-0.2)), window=16)
    save_network(tmp_path / "net.safetensors", dp)
    back, z = load_network(DPVAE, tmp_path / "net.safetensors"), torch.randn(1, 4, 2, 4, 4)
    assert_close(back.scaled(z), (z + 0.2) * 0.7)
    assert_close(back.unscaled(back.scaled(z)), z)
    assert back.config.window == 16 and back.downsampling == 8 and isinstance(back.config.ch_mult, tuple)
    assert not any(p.requires_grad for p in back.image.parameters())
