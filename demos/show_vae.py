"""show_vae.py - what `python vae.py` shows: a known answer, and out/vae.png."""

from einops import rearrange
import torch

from vae import DPVAE, GOP, KLVAE, KLVAEConfig, mse
from support import toy_world
from support.checkpoints import TOY, load_network
from support.drawing import page
from support.video_io import to_frames, to_video


def demo():
    """Largest difference, at step 0, between DP-VAE's clip and its key frames' 2D decodes,
    each held for 4 frames."""
    torch.manual_seed(0)
    vae = KLVAE(KLVAEConfig(z_channels=4, ch=8, ch_mult=(1, 2, 4, 4), num_res_blocks=1, groups=4)).eval()
    dp = DPVAE.from_image(vae).eval()
    x = torch.rand(1, 3, 16, 32, 32) * 2 - 1                                                # (B,3,T,H,W)
    with torch.no_grad():
        held = vae.decode(vae.encode(x[:, :, ::GOP])).repeat_interleave(GOP, dim=2)         # (B,3,T,H,W)
        return (dp.decode(dp.encode(x)) - held).abs().max().item()


def draw(path, dp, clip=45):
    """Two groups of a toy clip: the frames, its key frames held, D(z), and D_k's key frames of z.
    Returns PSNR in dB, {"held": of the key frames, "D(z)": of the whole}."""
    x = to_video(toy_world.render(toy_world.sample_spec(0, clip), 16, 64))[None]            # (1,3,16,64,64)
    with torch.no_grad():
        z, z_k = dp.encode_window(x)                                                        # (1,C,4,8,8)
        held = dp.decode_keys(z_k).repeat_interleave(GOP, dim=2)                            # (1,3,16,64,64)
        made = dp.decode_window(z)                                                          # (1,3,16,64,64)
        keys = dp.decode_keys(z).repeat_interleave(GOP, dim=2)                              # (1,3,16,64,64)
    psnr = {name: -10 * torch.log10(mse(x, video) / 4).item()
            for name, video in (("held", held), ("D(z)", made))}
    rows = {"x: 8 frames of a clip, two groups; the first and the fifth are key frames": x,
            f"E_k and D_k alone: each key frame held, {psnr['held']:.1f} dB": held,
            f"D(z), z = z_k + z_r: {psnr['D(z)']:.1f} dB": made,
            "D_k(z): the frozen image decoder still finds the key frames in z": keys}
    strips = []
    for video in rows.values():                                  # 8 frames from the middle, side by side
        frames = to_frames(video[0, :, 4:12].clamp(-1, 1))                                  # (8,64,64,3)
        strips.append(rearrange(frames, "t h w c -> h (t w) c").repeat(2, 0).repeat(2, 1))  # (128,1024,3)
    page(path, strips, list(rows), columns=1)
    return psnr


def main():
    print(f"DP-VAE at step 0 differs from held key frames by {demo():.1e} (right: < 1e-5)")
    dp = load_network(DPVAE, TOY / "dpvae.safetensors")
    psnr = draw("out/vae.png", dp)
    print(f"a clip of the toy world: key frames held {psnr['held']:.1f} dB, with the residual "
          f"{psnr['D(z)']:.1f} dB (right: at least 4 more)\ndrawn in out/vae.png")
