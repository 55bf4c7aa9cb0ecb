"""show_videodit.py - what `python videodit.py` shows: a known answer, and out/videodit.png."""

import copy

from einops import rearrange
import torch

from demos import scrambled
from dit import MMDiT, MMDiTConfig
from text import ToyText
from vae import DPVAE
from videodit import VideoDiT
from support import toy_world
from support.checkpoints import TOY, load_network
from support.drawing import heat, page
from support.video_io import to_video


# ------------------------------------------------------------------------------------------------------- demo
# out/videodit.png, with the shipped toy: clips of 16 frames are 4 latent frames of 4 x 4 tokens. Who
# (row) attends to whom (column) among the 64, mean over blocks:
#   2D        each frame for itself: four squares
#   no times  the same weights over the whole clip, without 3D patchify: four times the same square in a row,
#             and each frame gets its quarter, because nothing tells one frame from another
#   trained   stripes: a patch attends to the patches beside, above and below it, most in its own frame, and
#             less, the further a frame lies from its own

def demo():
    """{claim: largest difference} for a small image model turned into both video models, before training."""
    config = MMDiTConfig(in_channels=4, depth=3, heads=4, head_dim=16, context_dim=24, pooled_dim=12,
                         pos_grid=16, base_size=8)
    generator = torch.Generator().manual_seed(0)
    clip, context, pooled = (torch.randn(2, *shape, generator=generator)
                             for shape in ((4, 5, 8, 12), (7, 24), (12,)))
    t, cond = torch.tensor([0.2, 0.7]), {"context": context, "pooled": pooled}
    found = {}
    with torch.no_grad():
        for attention in ("2d->3d", "2d+3d"):
            image = scrambled(MMDiT(config))
            images = [image(clip[:, :, i:i + 1], t, **cond) for i in range(5)]          # each (B,C,1,H,W)
            video = VideoDiT.from_image(image, attention)
            differs = video(clip[:, :, :1], t, **cond) - images[0]
            found[f"{attention}: one frame, against the image model"] = differs.abs().max().item()
            before, what = torch.cat(images, dim=2), "five images"
            if attention == "2d->3d":
                before, what = image(clip, t, **cond), "the image model on all tokens"
            differs = video(clip, t, **cond) - before
            found[f"{attention}: five frames, against {what}"] = differs.abs().max().item()
    return found


def watch_attention(net, run):
    """The weights softmax(q k^T / sqrt(d)) of each joint block while run() runs, mean over heads:
    (depth,L+N,L+N), row i is what token i attends to. The text's tokens come first."""
    weights = []

    def look(block, inputs):
        context, x, c = inputs
        text, _ = block.context_block.pre_attention(context, c)             # q, k, v (B,heads,L,d) each
        image, _ = block.x_block.pre_attention(x, c)                        # (B,heads,N,d) each
        q, k, _ = [torch.cat(pair, dim=2)[0] for pair in zip(text, image)]  # (heads,L+N,d) each
        weights.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(0)) # (L+N,L+N)

    hooks = [block.register_forward_pre_hook(look) for block in net.joint_blocks]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(weights)                                             # (depth,L+N,L+N)


def who_attends_to_whom(video, z, t, cond):
    """Attention among image tokens in 2D, 3D without times, 3D: three (T*N,T*N), mean over blocks."""
    T, L = z.shape[2], cond["context"].shape[1]

    def watch(net, clip):
        return watch_attention(net.image, lambda: net(clip, t, **cond)).mean(0)[L:, L:]

    no_times = copy.deepcopy(video)
    no_times.patchify_3d = None
    alone = torch.block_diag(*(watch(no_times, z[:, :, i:i + 1]) for i in range(T)))    # (T*N,T*N)
    return alone, watch(no_times, z), watch(video, z)


def between_frames(weights, frames):
    """(T*N,T*N) -> the share of an image token's attention to images that goes to other frames."""
    blocks = rearrange(weights, "(t n) (s m) -> t s (n m)", t=frames, s=frames).sum(-1)         # (T,T)
    return (1 - blocks.trace() / blocks.sum()).item()


@torch.no_grad()
def draw_toy(path, t=0.5):
    """out/videodit.png; path None: it is not saved. Returns the shares of attention to other frames: 2D, 3D
    without times, 3D."""
    video = load_network(VideoDiT, TOY / "videodit.safetensors")
    vae = load_network(DPVAE, TOY / "dpvae.safetensors")
    text = load_network(ToyText, TOY / "text.safetensors")
    spec = toy_world.sample_spec(0, 0, "video")
    z = vae.scaled(vae.encode(to_video(toy_world.render(spec))[None]))                  # (1,C,4,8,8)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))            # (1,C,4,8,8)
    context, pooled = text([toy_world.caption(spec)])                                   # (1,L,D) (1,P)
    mixed, times = (1 - t) * noise + t * z, torch.tensor([t])                           # Eq. 5
    maps = who_attends_to_whom(video, mixed, times, {"context": context, "pooled": pooled})
    others = [between_frames(weights, z.shape[2]) for weights in maps]
    names = ("2D: each frame alone", "2D->3D, no times", "2D->3D, trained")
    labels = [f"{name}: {other:.0%} goes to other frames" for name, other in zip(names, others)]
    top = maps[1].max().item() * 1.5                    # one scale for the three
    page(path, [heat(weights.numpy(), 384 // len(weights), top) for weights in maps], labels, 3)
    return others


def main():
    for claim, difference in demo().items():
        print(f"{claim:60s} {difference:.1e}")
    print("(a right conversion changes nothing at step 0: zero, or rounding below 1e-5)")
    others = draw_toy("out/videodit.png")
    print("of a patch's attention, other frames get {:.2f} in 2D, {:.2f} in 3D without times (right: 0, "
          "and near 3 of 4 frames), {:.2f} trained. Drawn in out/videodit.png".format(*others))
