"""show_dit.py - what `python dit.py` shows: a known answer, and out/dit.png."""

import math
from dataclasses import fields

from PIL import Image, ImageDraw
import torch

from demos import scrambled
from dit import DiT, DiTConfig, MMDiT, MMDiTConfig, PixArt, PixArtConfig, centred, sincos
from text import ToyText
from vae import DPVAE
from support import toy_world
from support.checkpoints import TOY, load_network, load_strict, read_config, read_state
from support.drawing import heat, page, plot
from support.video_io import to_video


# ------------------------------------------------------------------------------------------------------- demo
# out/dit.png is drawn with the shipped toy: 10 joint blocks of 160 channels, images of 64 x 64 pixels, which
# are 4 x 4 tokens. Above, what one patch of a noisy image attends to, block by block: other patches, and
# words. The patch lies on a cat: it attends to "red", "cat" and EOS, whose vector has read the whole prompt,
# and hardly to "grass"; blocks 0 and 1 look everywhere, later ones at the rest of the cat (the image that is
# shown is the clean one; the network sees it under noise, t = 0.7).
#
# Below, what adaLN made of the time. Left: the gates of attention stand wider open in the fog, where patches
# have to agree on what will be there, than near the end, where each has its own hairs to clean. Right: what
# each channel is multiplied by, for those that care most. Nobody told the network to do either.
#
# The model that is shipped is VideoDiT, whose branch for time adds to single frames, too; toy_image puts that
# into the image model
# (test_the_toys_image_model_is_its_video_model_at_one_frame).

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


def toy_image(path=TOY / "videodit.safetensors"):
    """The shipped video model as an MMDiT that answers the same for single frames.

    Its branch adds zero(conv(z) + PE_3d) to the tokens (videodit.Patchify3D). Both are Linears and a single
    frame's time is 0, so the branch melts into the patch embedding and the table of positions."""
    state, config = read_state(path), read_config(path)["config"]
    net = MMDiT(MMDiTConfig(**{field.name: config[field.name] for field in fields(MMDiTConfig)}))
    load_strict(net, {name.removeprefix("image."): tensor.float() for name, tensor in state.items()
                      if name.startswith("image.")}, path)
    conv, bias, zero, more = (state[f"patchify_3d.{name}"].float() for name in (
        "conv.proj.weight", "conv.proj.bias", "zero.weight", "zero.bias"))
    net.x_embedder.proj.weight.data += torch.einsum("de,ecpq->dcpq", zero, conv)
    net.x_embedder.proj.bias.data += zero @ bias + more
    half, grid = len(zero) // 2, net.config.pos_grid
    for_t, for_h, for_w = [2 * ((half + 2 - axis) // 3) for axis in range(3)]
    places = centred(grid, grid, net.config.base_size)                      # (grid,)
    table = torch.cat([sincos(torch.zeros(1), for_t)[None].expand(grid, grid, -1),
                       sincos(places, for_h)[:, None].expand(-1, grid, -1),
                       sincos(places, for_w)[None].expand(grid, -1, -1)], dim=-1)       # (grid,grid,D)
    net.pos_embed += (table @ zero.T).view(1, -1, len(zero))                # (1,grid*grid,D)
    return net.requires_grad_(False).eval()


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


def modulation(net, pooled, steps=41):
    """times (n,), and the six parts of adaLN of each block's image stream over time: (depth,6,n,D)."""
    times = torch.linspace(0, 1, steps)
    c = net.condition(1000 * (1 - times), pooled.expand(steps, -1))         # (n,D)
    parts = [block.x_block.adaLN_modulation(c).unflatten(1, (6, -1)).transpose(0, 1)    # (6,n,D)
             for block in net.joint_blocks]
    return times, torch.stack(parts)                                        # (depth,6,n,D)


@torch.no_grad()
def draw_toy(path, seed=3, t=0.7):
    """out/dit.png. Returns the prompt's words by how much the marked patch attends to them, most first, and
    how much wider attention's gates are at t = 0.1 than at t = 0.9."""
    net = toy_image()
    vae = load_network(DPVAE, TOY / "dpvae.safetensors")
    text = load_network(ToyText, TOY / "text.safetensors").eval()
    drift = ((0.2, 0.5, 0.5), (0.8, 0.2, 0.5))
    spec = toy_world.Spec("cat", "red", "", "on grass", 0.0, 0.0, 1.1, False, 0.3, drift)
    frame = toy_world.render(spec, size=64, only=(0,))                          # (1,64,64,3)
    z = vae.scaled(vae.encode(to_video(frame)[None]))                       # (1,C,1,8,8)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    context, pooled = text([toy_world.caption(spec)])                           # (1,L,D) (1,P)
    weights = watch_attention(net, lambda: net((1 - t) * noise + t * z, torch.tensor([t]), context, pooled))
    L, side = context.shape[1], z.shape[-1] // net.config.patch
    token = side // 2 * side + side // 2 - 1            # row 2, column 1 of 4 x 4: the cat's belly
    words = ["BOS", *toy_world.caption(spec).split(), "EOS"]
    words += ["pad"] * (L - len(words))
    images, labels = [marked(frame[0], token, side)], ["query: the marked patch"]
    for i, row in enumerate(weights):
        images.append(lit(frame[0], row[L + token, L:]))
        labels.append(f"block {i}")
    images.append(listing(words, weights[:, L + token, :L]))
    sheet = page(None, images, labels + ["words it attends to"], 4)
    if path:
        page(path, [sheet, page(None, curves_of_time(net, pooled), None, 2)], None, 1)
    order = weights[:, L + token, :L].sum(0).argsort(descending=True)       # (L,)
    gates = modulation(net, pooled, steps=11)[1][:, 2].square().mean((0, 2)).sqrt()     # (11,)
    return [words[i] for i in order], (gates[1] / gates[9]).item()


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


def listing(words, weights):
    """A row a word, a column a block: the darker, the more of the patch's attention that word gets."""
    height = SHOWN // len(words)
    table = Image.new("RGB", (SHOWN, SHOWN), "white")
    shades = Image.fromarray(heat(weights.T.numpy(), cell=height))
    table.paste(shades, (SHOWN - shades.width, 0))
    for i, word in enumerate(words):
        ImageDraw.Draw(table).text((2, i * height + 2), word, fill="#222222")
    return table


def curves_of_time(net, pooled):
    """The gates of each block's attention by t, and a few channels of one block's scale."""
    times, parts = modulation(net, pooled)
    gates = {f"block {i}": (times, parts[i, 2].square().mean(-1).sqrt()) for i in range(0, len(parts), 2)}
    scale = parts[2, 1]                                                     # (n,D)
    most = (scale.amax(0) - scale.amin(0)).topk(12).indices
    names = ["channels of block 2", *(f"_{k}" for k in range(1, len(most)))]
    channels = {name: (times, 1 + scale[:, i], "~") for name, i in zip(names, most)}
    return [plot(None, gates, "gate of attention: its size by time", "t: 0 noise, 1 data", size=(440, 320)),
            plot(None, channels, "1 + scale(c), the 12 liveliest channels", "t: 0 noise, 1 data",
                 size=(440, 320))]


def main():
    for claim, difference in demo().items():
        print(f"{claim:40s} {difference:.1e}")
    print("(right ones answer 0, and differ by rounding below 1e-5)")
    words, wider = draw_toy("out/dit.png")
    print(f"a patch on a red cat attends to, most first: {', '.join(words[:5])}   (right: red and cat "
          "among them)")
    print(f"attention's gates are {wider:.2f} times as wide open in noise as near data (above 1). "
          "Drawn in out/dit.png")
