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
    """Two groups of a toy clip: the frames, its key frames held, D(z), what each gets wrong, and the latents.
    Returns PSNR in dB, {"held": of the key frames, "D(z)": of the whole}."""
    x = to_video(toy_world.render(toy_world.sample_spec(0, clip), 16, 64))[None]            # (1,3,16,64,64)
    with torch.no_grad():
        z, z_k = dp.encode_window(x)                                                        # (1,C,4,8,8)
        shown = {"held": dp.decode_keys(z_k).repeat_interleave(GOP, dim=2), "D(z)": dp.decode_window(z)}
        keys = dp.decode_keys(z).repeat_interleave(GOP, dim=2)                              # (1,3,16,64,64)
    residual = ((z - z_k).std() / z_k.std()).item()
    psnr = {name: -10 * torch.log10(mse(x, made) / 4).item() for name, made in shown.items()}

    def row(video):                                              # 8 frames from the middle, side by side
        frames = to_frames(video[0, :, 4:12].clamp(-1, 1))                                  # (8,64,64,3)
        return rearrange(frames, "t h w c -> h (t w) c").repeat(2, 0).repeat(2, 1)          # (128,1024,3)

    def channels(latent):                                        # grey is 0; a group is as wide as its frames
        tiles = rearrange(latent[0, :, 1:3], "c t h w -> h (t c w)") / (3 * z_k.std())      # (8,2*C*8)
        grey = to_frames(tiles[None, None].expand(3, 1, -1, -1).clamp(-1, 1))[0]            # (8,2*C*8,3)
        side = 1024 // grey.shape[1]
        return grey.repeat(side, 0).repeat(side, 1)                                         # (32,1024,3)

    rows = {"x: 8 frames of a clip, two groups; frames 1 and 5 are key frames": row(x),
            f"E_k and D_k alone: each key frame held, {psnr['held']:.1f} dB": row(shown["held"]),
            "what is then missing, twice as strong": row(2 * (x - shown["held"])),
            "z_k = E_k(x_k): the channels of both groups' latents": channels(z_k),
            f"z_r = E_r(x): the residual, 3 times as strong; its deviation is {residual:.0%} of z_k's":
                channels(3 * (z - z_k)),
            f"D(z), z = z_k + z_r: {psnr['D(z)']:.1f} dB": row(shown["D(z)"]),
            "what is still wrong, twice as strong": row(2 * (x - shown["D(z)"])),
            "D_k(z): the frozen image decoder still finds the key frames in z": row(keys)}
    page(path, list(rows.values()), list(rows), columns=1)
    return psnr


def main():
    print(f"DP-VAE at step 0 differs from held key frames by {demo():.1e} (right: < 1e-5)")
    dp = load_network(DPVAE, TOY / "dpvae.safetensors")
    psnr = draw("out/vae.png", dp)
    print(f"a clip of the toy world: key frames held {psnr['held']:.1f} dB, with the residual "
          f"{psnr['D(z)']:.1f} dB (right: at least 4 more)\nwhat the residual says is drawn in out/vae.png")
