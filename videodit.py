"""videodit.py - SD3's MMDiT, an image model, turned into VideoDiT: what changes, and how little it is.
Paper    VideoDiT 3.2, A.2, Fig. 2, 8, 9, Tables 4, 5
Shapes   z (B,C,T,H,W) scaled latents, an image has T=1; x (B,T*N,D) tokens, N = h*w patches in a frame;
         context (B,L,D) text tokens, pooled (B,P), c (B,D) what modulates every block: time and pooled text
Time     t in [0,1], 0 noise, 1 data (Eq. 5); SD3's own direction inside: dit.in_our_time
Differs  grep ASSUMED: 3D positions, the branch's own patchify, the text streams of "2D+3D"
Reads    after dit.py, before latte.py
Run me   python videodit.py      # CPU, 2 s: an image model becomes a video model; nothing changes yet"""

import copy
from dataclasses import asdict, dataclass, fields

import torch
from einops import rearrange, reduce
from torch import nn

from checkpoint import UserError, run_block
from dit import MMDiT, MMDiTConfig, centred, in_our_time, scrambled, sincos, unpatchify


@dataclass
class VideoDiTConfig(MMDiTConfig):
    attention: str = "2d->3d"       # Table 4: attention becomes global; "2d+3d" keeps the old and adds new
    patchify_3d: bool = True        # Table 5: False leaves tokens without a time: FVD 756 instead of 556


def zero_linear(width):
    """A projection that starts silent: what lies behind it joins in as far as training finds it useful."""
    layer = nn.Linear(width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# ASSUMED: VideoDiT A.2 says "3D positional embeddings" and no more. We take fixed sin-cos: a learned table
# would not stretch to another length, and rotary positions would change the image model at step 0.
# ASSUMED: paper silent on the split. A third of the channels each to t, h, w; spare pairs go to t, then h.
def sincos_3d(width, times, rows, columns):
    """times (T,), rows (h,), columns (w,) -> (T,h,w,width), for any even width."""
    T, h, w = len(times), len(rows), len(columns)
    for_t, for_h, for_w = [2 * ((width // 2 + 2 - axis) // 3) for axis in range(3)]
    return torch.cat([sincos(times, for_t)[:, None, None].expand(T, h, w, -1),
                      sincos(rows, for_h)[None, :, None].expand(T, h, w, -1),
                      sincos(columns, for_w)[None, None].expand(T, h, w, -1)], dim=-1)


# VideoDiT 3.2 and Fig. 8. Global attention lets frames look at each other but not know which came first: to a
# permutation of the frames the image model is blind. This branch tells each token its time.
class Patchify3D(nn.Module):
    def __init__(self, patch_embed, config):
        super().__init__()
        self.config = config
        # ASSUMED: paper silent on the branch's own patchify; a copy of the 2D one. 2.03B (Table 4) allows it.
        self.conv = copy.deepcopy(patch_embed)
        # ASSUMED: the "zero-initialized convolutional projection" is 1x1x1: a Linear on tokens, one in all.
        self.zero = zero_linear(config.heads * config.head_dim)

    def forward(self, z):
        """z (B,C,T,H,W) -> (B,T*N,D), to be added to the 2D tokens."""
        x = self.conv(z)                                                    # (B,T,h,w,D)
        T, h, w, width = x.shape[1:]
        # ASSUMED: time counts latent frames, 0 first; rows and columns are those of the 2D table.
        times, grid, base = torch.arange(T, device=z.device), self.config.pos_grid, self.config.base_size
        rows, columns = centred(h, grid, base, z.device), centred(w, grid, base, z.device)
        x = x + sincos_3d(width, times, rows, columns).to(self.zero.weight.dtype)
        return self.zero(x.flatten(1, 3))                                   # (B,T*N,D)


# VideoDiT A.2 and Fig. 9 ("2D+3D").
# ASSUMED: "attention block" is a whole joint block, MLP and both streams, with a zero projection on each
# stream: 4.15B parameters as in Table 4, where attention alone gives 2.5B and one projection a block 4.09B.
class GlobalTwin(nn.Module):
    """A trainable copy of a joint block, over all tokens of the clip, behind zero projections."""

    def __init__(self, block, width):
        super().__init__()
        self.block = copy.deepcopy(block).requires_grad_(True)
        self.zero_x = zero_linear(width)
        self.zero_context = None if block.context_block.pre_only else zero_linear(width)

    def forward(self, context, x, c):
        """-> what to add to the context (None after the last block) and to x."""
        context, x = self.block(context, x, c)
        return None if context is None else self.zero_context(context), self.zero_x(x)


class VideoDiT(nn.Module):
    """An image model and what makes it a video model. Before training, with T=1, it is the image model."""

    Config = VideoDiTConfig

    def __init__(self, config, image=None):
        """image: a trained MMDiT; it becomes a part of this network, not copied. None starts from noise."""
        super().__init__()
        if config.attention not in ("2d->3d", "2d+3d"):
            raise UserError(f'attention="{config.attention}" is not known; choose "2d->3d" or "2d+3d"')
        self.config, width = config, config.heads * config.head_dim
        self.checkpointing = False
        if image is None:
            image = MMDiT(MMDiTConfig(*(getattr(config, field.name) for field in fields(MMDiTConfig))))
        self.image = image
        self.patchify_3d = Patchify3D(self.image.x_embedder, config) if config.patchify_3d else None
        self.twins = None
        if config.attention == "2d+3d":
            self.twins = nn.ModuleList(GlobalTwin(block, width) for block in self.image.joint_blocks)
            # ASSUMED: "original spatial attention weights remain frozen" covers embedders and head too.
            self.image.requires_grad_(False)
        self.to(self.image.x_embedder.proj.weight)      # new layers take the image model's device and dtype

    @classmethod
    def from_image(cls, image, attention="2d->3d", patchify_3d=True):
        config = VideoDiTConfig(**asdict(image.config), attention=attention, patchify_3d=patchify_3d)
        return cls(config, image)

    def forward(self, z, t, context, pooled):
        """v (B,C,T,H,W) at time t (B,), 0 noise, 1 data."""
        return in_our_time(self.forward_sd3, z, t, context, pooled)

    def forward_sd3(self, z, timestep, context, pooled):
        """The same in SD3's time and sign."""
        x, c = self.image.embed(z), self.image.condition(timestep, pooled)
        context = self.image.context_embedder(context)                      # (B,L,D)
        if self.patchify_3d is not None:                                    # now a token knows its time
            x = x + self.patchify_3d(z)                                     # (B,T*N,D)
        if self.twins is not None:
            x = self.frames_then_clip(context, x, c, frames=z.shape[2])
        else:
            for block in self.image.joint_blocks:                           # over T*h*w, no new weight
                context, x = run_block(block, self.checkpointing, context, x, c)
        return unpatchify(self.image.final_layer(x, c), z, self.config.patch)       # (B,C,T,H,W)

    # ASSUMED: paper silent on how text passes between a block that sees one frame and one that sees the clip.
    # Each frame keeps a text stream of its own, as if it were alone, so at step 0 a clip is T pictures of the
    # image model; a twin reads the mean over the frames, and what it says is added to every frame's stream.
    # ASSUMED: the last block has no text output, so its twin reads the text that the block itself read.
    def frames_then_clip(self, context, x, c, frames):
        context = context.repeat_interleave(frames, dim=0)                  # (B*T,L,D)
        c_frames = c.repeat_interleave(frames, dim=0)                       # (B*T,D)
        for block, twin in zip(self.image.joint_blocks, self.twins):
            x = rearrange(x, "b (t n) d -> (b t) n d", t=frames)            # (B*T,N,D)  one frame
            after, x = run_block(block, self.checkpointing, context, x, c_frames)
            x = rearrange(x, "(b t) n d -> b (t n) d", t=frames)            # (B,T*N,D)  the clip
            context = context if after is None else after
            shared = reduce(context, "(b t) l d -> b l d", "mean", t=frames)            # (B,L,D)
            to_context, to_x = run_block(twin, self.checkpointing, shared, x, c)
            x = x + to_x
            if to_context is not None:
                context = context + to_context.repeat_interleave(frames, dim=0)
        return x


# ------------------------------------------------------------------------------------------------------- demo

def demo():
    """{claim: largest difference} for a small image model turned into both video models, before training."""
    config = MMDiTConfig(in_channels=4, depth=3, heads=4, head_dim=16, context_dim=24, pooled_dim=12,
                         pos_grid=16, base_size=8)
    generator = torch.Generator().manual_seed(0)
    clip, context, pooled = (torch.randn(2, *shape, generator=generator)
                             for shape in ((4, 5, 8, 12), (7, 24), (12,)))
    t, cond, found = torch.tensor([0.2, 0.7]), {"context": context, "pooled": pooled}, {}
    with torch.no_grad():
        for attention in ("2d->3d", "2d+3d"):
            image = scrambled(MMDiT(config))
            pictures = [image(clip[:, :, i:i + 1], t, **cond) for i in range(5)]        # each (B,C,1,H,W)
            video = VideoDiT.from_image(image, attention)
            differs = video(clip[:, :, :1], t, **cond) - pictures[0]
            found[f"{attention}: one frame, against the image model"] = differs.abs().max().item()
            before, what = torch.cat(pictures, dim=2), "five pictures"
            if attention == "2d->3d":
                before, what = image(clip, t, **cond), "the image model on all tokens"
            differs = video(clip, t, **cond) - before
            found[f"{attention}: five frames, against {what}"] = differs.abs().max().item()
    return found


if __name__ == "__main__":
    for claim, difference in demo().items():
        print(f"{claim:60s} {difference:.1e}")
    print("(a right conversion changes nothing at step 0: zero, or rounding below 1e-5)")
