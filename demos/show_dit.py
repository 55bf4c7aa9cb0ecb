"""show_dit.py - what `python dit.py` shows: a known answer, and out/dit.png."""

import math

from PIL import Image, ImageDraw
import torch

from demos import scrambled
from dit import DiT, DiTConfig, MMDiT, MMDiTConfig, PixArt, PixArtConfig
from text import ToyText
from vae import DPVAE
from videodit import VideoDiT
from support import toy_world
from support.checkpoints import TOY, load_network
from support.drawing import page
from support.video_io import to_video


# ------------------------------------------------------------------------------------------------------- demo
# out/dit.png is drawn with the shipped toy at one frame: 10 joint blocks of 160 channels, images of 64 x 64
# pixels, which are 4 x 4 tokens. It shows what one patch of a noisy image attends to, block by block: other
# patches, and words. The patch lies on a cat: it attends to "red", "cat" and EOS, whose vector has read the
# whole prompt, and hardly to "grass"; blocks 0 and 1 look everywhere, later ones at the rest of the cat (the
# image that is shown is the clean one; the network sees it under noise, t = 0.7).

SHOWN = 208                         # pixels on a side of an image in out/dit.png


def demo():
    """{claim: largest difference} of what holds for these networks before and after any training."""
    torch.manual_seed(0)
    mmdit = MMDiT(MMDiTConfig(in_channels=4, depth=3, heads=4, head_dim=16, context_dim=24, pooled_dim=12,
                              pos_grid=16, base_size=8))
    dit = DiT(DiTConfig(input_size=8, depth=2, width=32, heads=2))
    pixart = PixArt(PixArtConfig(depth=2, width=32, heads=2, caption_channels=24, sample_size=8))
    z, context, pooled = torch.randn(2, 4, 5, 8, 8), torch.randn(2, 7, 24), torch.randn(2, 12)
    t, steps, labels = torch.tensor([0.2, 0.7]), torch.tensor([3, 900]), torch.tensor([7, 1000])
    found = {}
    with torch.no_grad():
        outputs = {"DiT": dit(z[:, :, :1], steps, labels), "MMDiT": mmdit(z, t, context, pooled),
                   "PixArt": pixart(z[:, :, :1], steps, context)}
        for name, out in outputs.items():
            found[f"untrained {name}: answer"] = out.abs().max().item()
        scrambled(mmdit)
        backwards = mmdit(z.flip(2), t, context, pooled).flip(2)
        found["MMDiT: five frames backwards"] = (backwards - mmdit(z, t, context, pooled)).abs().max().item()
    return found


def watch_attention(net, run):
    """The weights softmax(q k^T / sqrt(d)) of each joint block while run() runs, mean over heads:
    (depth,L+N,L+N), row i is what token i attends to. The text's tokens come first."""
    seen = []

    def watch(attention):
        compute = attention.queries_keys_values

        def compute_and_keep(x):
            seen.append(compute(x))                                         # q, k, v (B,heads,L or N,d)
            return seen[-1]
        attention.queries_keys_values = compute_and_keep

    attentions = []
    for block in net.joint_blocks:
        attentions += [block.context_block.attn, block.x_block.attn]
    for attention in attentions:
        watch(attention)
    try:
        run()
    finally:
        for attention in attentions:
            del attention.queries_keys_values                               # the class's own again
    weights = []
    for text, image in zip(seen[::2], seen[1::2]):
        q, k, _ = [torch.cat(pair, dim=2)[0] for pair in zip(text, image)]  # (heads,L+N,d) each
        weights.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(0)) # (L+N,L+N)
    return torch.stack(weights)                                             # (depth,L+N,L+N)


@torch.no_grad()
def draw_toy(path, seed=3, t=0.7):
    """out/dit.png. Returns the prompt's words by how much the marked patch attends to them, most first."""
    video = load_network(VideoDiT, TOY / "videodit.safetensors")
    vae = load_network(DPVAE, TOY / "dpvae.safetensors")
    text = load_network(ToyText, TOY / "text.safetensors").eval()
    drift = ((0.2, 0.5, 0.5), (0.8, 0.2, 0.5))
    spec = toy_world.Spec("cat", "red", "", "on grass", 0.0, 0.0, 1.1, False, 0.3, drift)
    frame = toy_world.render(spec, size=64, only=(0,))                          # (1,64,64,3)
    z = vae.scaled(vae.encode(to_video(frame)[None]))                       # (1,C,1,8,8)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    mixed, times = (1 - t) * noise + t * z, torch.tensor([t])               # Eq. 5
    context, pooled = text([toy_world.caption(spec)])                           # (1,L,D) (1,P)
    weights = watch_attention(video.image, lambda: video(mixed, times, context, pooled))
    L, side = context.shape[1], z.shape[-1] // video.config.patch
    token = side // 2 * side + side // 2 - 1            # row 2, column 1 of 4 x 4: the cat's belly
    if path:
        images, labels = [marked(frame[0], token, side)], ["query: the marked patch"]
        for i, row in enumerate(weights):
            images.append(lit(frame[0], row[L + token, L:]))
            labels.append(f"block {i}")
        page(path, images, labels, 4)
    words = ["BOS", *toy_world.caption(spec).split(), "EOS"]
    words += ["pad"] * (L - len(words))
    order = weights[:, L + token, :L].sum(0).argsort(descending=True)       # (L,)
    return [words[i] for i in order]


def marked(frame, token, side):
    """The image, the patch whose query it is framed."""
    image = Image.fromarray(frame).resize((SHOWN, SHOWN), Image.NEAREST)
    p = SHOWN // side
    row, column = divmod(token, side)
    ImageDraw.Draw(image).rectangle([column * p, row * p, column * p + p, row * p + p], outline="white",
                                    width=4)
    return image


def lit(frame, weights):
    """The image, each patch as bright as it is attended to."""
    side = math.isqrt(len(weights))
    light = (weights / weights.max()).view(side, side).numpy()              # (h,w)
    light = Image.fromarray((255 * light).astype("uint8")).resize((SHOWN, SHOWN), Image.NEAREST)
    image = Image.fromarray(frame).resize((SHOWN, SHOWN), Image.NEAREST)
    return Image.composite(image, Image.new("RGB", image.size), light)


def main():
    for claim, difference in demo().items():
        print(f"{claim:40s} {difference:.1e}")
    print("(right ones answer 0, and differ by rounding below 1e-5)")
    words = draw_toy("out/dit.png")
    print(f"a patch on a red cat attends to, most first: {', '.join(words[:5])}   (right: red and cat "
          "among them). Drawn in out/dit.png")
