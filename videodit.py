"""videodit.py - SD3's MMDiT, an image model, turned into VideoDiT: what changes, and how little it is.
Paper    VideoDiT 3.2, A.2, Fig. 2, 8, 9, Tables 4, 5
Shapes   z (B,C,T,H,W) scaled latents (vae.py calls their sizes T', h, w), an image has T=1;
         x (B,T*N,D) tokens, N = h*w patches in a frame;
         context (B,L,D) text tokens, pooled (B,P), c (B,D) what modulates every block: time and pooled text
Time     t in [0,1], 0 noise, 1 data (Eq. 5); SD3's own direction inside: dit.in_our_time
Differs  grep ASSUMED: 3D positions, the branch's own patchify, the text streams of "2D+3D"
Reads    after dit.py, before latte.py
Run me   python videodit.py      # CPU, 15 s: an image model becomes a video model and nothing changes yet;
                                 # who attends to whom, 2D and 3D, in out/videodit.png

THE PROBLEM. An image model has learned from billions of images what a cat looks like. There are far fewer
videos, and they show the same cats. So a video model should start from an image model; but asked for T
frames, that one makes T images of T different cats. Frames must attend to each other. How, without spoiling
what the model knows?

* Put layers for time between its layers. (AnimateDiff, Video LDM, Lavie; Latte's text-to-video model.) They
  start from random weights, are up to three quarters as many parameters again, and let a patch see only its
  own place in the other frames: when the cat walks out of a patch, that patch has lost it.
* Train a video model from random weights. (W.A.L.T, Sora.) It costs the billions of images once more.

THE IDEA of VideoDiT (3.2, Fig. 2): change nothing. Attention's weights do not know over how many tokens it
goes, and the MLP sees one token at a time. So take the patches of ALL frames as one set of tokens:

    2D   patches (B,T,h,w,D) --> (B*T, h*w, D)    T sets of N = h*w    a patch attends to its own frame's
    3D   patches (B,T,h,w,D) --> (B, T*h*w, D)    one set of T*N       a patch attends to all frames'

    frame      0     1     2             0     1     2
             +-----+-----+-----+       +-----+-----+-----+
         0   |#####|     |     |       |#####|#####|#####|       queries in rows, keys in columns;
             +-----+-----+-----+       +-----+-----+-----+       the text's L tokens are in every set
         1   |     |#####|     |  -->  |#####|#####|#####|
             +-----+-----+-----+       +-----+-----+-----+       the weights are the same left and right:
         2   |     |     |#####|       |#####|#####|#####|       SD3's 2.028 B numbers, and no new one
             +-----+-----+-----+       +-----+-----+-----+"""

from support.cli import UserError, polite    # first: see there

import copy
from dataclasses import asdict, dataclass, fields

from einops import rearrange, reduce
import torch
import torch.nn.functional as F
from torch import nn

from dit import MLP, MMDiT, Attention, MMDiTConfig, centred, in_our_time, sincos, unpatchify
from support.ops import run_block


@dataclass
class VideoDiTConfig(MMDiTConfig):
    attention: str = "2d->3d"       # Table 4: attention becomes global; "2d+3d" keeps the old and adds new
    patchify_3d: bool = True        # Table 5: False, and tokens do not know their frame: FVD 756, not 556


# ------------------------------------------------------------------------------------------- global attention
# Why does it work at once? The image model's queries already look for the rest of the cat, and the keys that
# fit in the next frame are the same cat's. So a "video" of the untrained model has one subject, which stands
# still, and only details break up into blocks: a far better start than noise. Its price is compute: attention
# grows with (T*N)^2, and 96 frames of 512 x 512 are 24,576 tokens even after DP-VAE has made 24 latent frames
# of them (vae.py). Latte pays T*N^2 + N*T^2 instead, and gives the straight line of sight up (latte.py).
#
# What is left to write is short, and that is the paper's point: embed all frames, say when each is, the image
# model's own blocks over all tokens, its own head. At step 0 and for one frame it IS the image model, to the
# last bit (test_one_frame_video_is_an_image); for a clip it is the image model over all tokens.

class VideoDiT(nn.Module):
    """An image model and what makes it a video model. Before training, with T=1, it is the image model."""

    Config = VideoDiTConfig

    def __init__(self, config, image=None):
        """image: a trained MMDiT; it becomes a part of this network, not copied, and with "2d+3d" is frozen.
        None: random weights."""
        super().__init__()
        if config.attention not in ("2d->3d", "2d+3d"):
            raise UserError(f'attention="{config.attention}" is not known; choose "2d->3d" or "2d+3d"')
        self.config = config
        self.checkpointing = False
        if image is None:
            sizes = {field.name: getattr(config, field.name) for field in fields(MMDiTConfig)}
            image = MMDiT(MMDiTConfig(**sizes))
        self.image = image              # kept whole under its own names: it can be taken out again
        self.patchify_3d = None
        if config.patchify_3d:
            self.patchify_3d = Patchify3D(image.x_embedder, config)
        self.copies = None              # trainable ones
        if config.attention == "2d+3d":
            width = config.heads * config.head_dim
            self.copies = nn.ModuleList(TrainableCopy(block, width) for block in image.joint_blocks)
            # TRAP: patchify's copy, above, is made before this line: a copy of what is frozen would be frozen.
            # Frozen, embedders and head too: "only the newly added global attention weights are updated"
            # (4.3). ASSUMED: 3D patchify, new as well, is trained beside them; the paper does not name it.
            image.requires_grad_(False)
        self.to(image.x_embedder.proj.weight)           # new layers take the image model's device and dtype

    @classmethod
    def from_image(cls, image, attention="2d->3d", patchify_3d=True):
        config = VideoDiTConfig(**asdict(image.config), attention=attention, patchify_3d=patchify_3d)
        return cls(config, image)

    def export(self, state):
        """Its state_dict as it is saved: without the adapters of --lora, should it have any."""
        return merged(state)

    def forward(self, z, t, context, pooled):
        """v (B,C,T,H,W) at time t (B,), 0 noise, 1 data."""
        return in_our_time(self.forward_sd3, z, t, context, pooled)

    def forward_sd3(self, z, timestep, context, pooled):
        """The same in SD3's time and sign."""
        x = self.image.embed(z)                                             # (B,T*N,D)  all frames, one set
        if self.patchify_3d is not None:
            x = x + self.patchify_3d(z)                                     # now a token knows its time
        c = self.image.condition(timestep, pooled)                          # (B,D)
        context = self.image.context_embedder(context)                      # (B,L,D)
        if self.copies is None:
            for block in self.image.joint_blocks:                           # over T*N tokens, no new weight
                context, x = run_block(block, self.checkpointing, context, x, c)
        else:
            x = self.frames_then_clip(context, x, c, frames=z.shape[2])     # Table 4's other way, below
        return unpatchify(self.image.final_layer(x, c), z, self.config.patch)       # (B,C,T,H,W)

    # ASSUMED: paper silent on how text passes between a block that sees one frame and one that sees the clip.
    # Each frame keeps a text stream of its own, as if it were alone, so at step 0 a clip is T images of the
    # image model; a copy reads the mean over the frames, and what it adds is added to every frame's stream.
    # ASSUMED: the last block has no text output, so its copy reads the text that the block itself read.
    def frames_then_clip(self, context, x, c, frames):
        context = context.repeat_interleave(frames, dim=0)                  # (B*T,L,D)
        c_frames = c.repeat_interleave(frames, dim=0)                       # (B*T,D)
        for block, trainable in zip(self.image.joint_blocks, self.copies):
            x = rearrange(x, "b (t n) d -> (b t) n d", t=frames)            # (B*T,N,D)  one frame
            new_context, x = run_block(block, self.checkpointing, context, x, c_frames)
            if new_context is not None:
                context = new_context
            x = rearrange(x, "(b t) n d -> b (t n) d", t=frames)            # (B,T*N,D)  the clip
            shared = reduce(context, "(b t) l d -> b l d", "mean", t=frames)            # (B,L,D)
            to_context, to_x = run_block(trainable, self.checkpointing, shared, x, c)
            x = x + to_x                                                    # (B,T*N,D)
            if to_context is not None:
                context = context + to_context.repeat_interleave(frames, dim=0)         # (B*T,L,D)
        return x


# ----------------------------------------------------------------------------------------------- 3D patchify
# VideoDiT 3.2 and Fig. 8. Global attention lets frames attend to each other but not know which came first:
# the image model gives each frame the same position embedding, and attention is blind to order. Played
# backwards, the clip gets the same answer backwards, and noise is as likely backwards: "moving left" and
# "moving right" are one prompt. So a branch tells each token its time:
#
#     z (B,C,T,H,W) --+--> 2D patchify, + 2D positions ----------------------------------> + --> tokens
#                     +--> its copy,    + 3D positions (t, h, w) --> zero Linear (B,T*N,D) +     (B,T*N,D)
#
# Why not add the 3D positions themselves? The blocks have never met them and would be disturbed. Why patchify
# again? So that what is added holds the patch beside its time, since time matters where something moves. The
# branch is 2.5 M numbers, all that VideoDiT adds to SD3's 2.028 B. Without it FVD is 756.25 and clips show
# blocks (Fig. 6), with it 556.42 (Table 5).
# (test_the_3d_patchify_branch_adds_nothing_at_step_0,
#  test_the_image_model_cannot_tell_the_order_of_frames_and_the_3d_patchify_can)
#
# JOINT TRAINING (3.2, A.2): each step is on clips with probability p = 0.8, else on images (train.py), and no
# input says which: an image is a clip of one frame, at time 0. It keeps the image model alive (Fig. 7) and
# makes clips better, too: FVD 543.18, without it 556.42 (Table 6).
class Patchify3D(nn.Module):
    """What 2D patchify does not say: the patch once more, with its time, through a projection of zeros."""

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


# ASSUMED: VideoDiT A.2 says "3D positional embeddings" and no more. We take fixed sin-cos: a learned table
# would not stretch to another length, and rotary positions would change the image model at step 0.
# ASSUMED: paper silent on the split. A third of the channels each to t, h, w; spare pairs go to t, then h.
def sincos_3d(width, times, rows, columns):
    """times (T,), rows (h,), columns (w,) -> (T,h,w,width), for any even width."""
    T, h, w = len(times), len(rows), len(columns)
    for_t, for_h, for_w = [2 * ((width // 2 + 2 - axis) // 3) for axis in range(3)]     # they add to width
    return torch.cat([sincos(times, for_t)[:, None, None].expand(T, h, w, -1),
                      sincos(rows, for_h)[None, :, None].expand(T, h, w, -1),
                      sincos(columns, for_w)[None, None].expand(T, h, w, -1)], dim=-1)          # (T,h,w,D)


# Whatever is added to a trained network must not disturb it on the first day: a wrong signal would be
# unlearned by spoiling the old weights. So new parts end in a Linear of zeros ("zero convolution",
# ControlNet, Zhang et al. 2023). That is no dead end:
#
#     y = x + W f(x),  W = 0        dL/dW = (dL/dy) f(x)^T, not 0: W moves in the first step;
#                                   f gets W^T dL/dy = 0 in the first step, and learns from the second on
#     (test_in_2d_to_3d_every_old_weight_learns_and_the_branch_after_its_projection)
def zero_linear(width):
    """A zero-initialised projection: what lies behind it joins in as far as training finds it useful."""
    layer = nn.Linear(width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# --------------------------------------------------------------------------------- 2D+3D: the road not taken
# VideoDiT 4.3, A.2 and Fig. 9: is it wise to train the image model's own weights on videos? The careful way
# freezes them, keeps attention within each frame, and puts after each block its trainable copy, which attends
# over the whole clip, behind zeros (VideoDiT.frames_then_clip):
#
#     (B*T,N,D) --> block, frozen, a frame at a time --> x (B,T*N,D) --+--------------------------> + --> x
#                                                                      +--> copy, the clip --> zero +
#
# Twice the parameters (4.15 B for 2.03 B) and nothing gained: FVD 563.24 against 556.42 (Table 4). It is here
# because the paper measures it, and shows how frames are folded into the batch and out again. On cards of
# 80 GB it needs --accumulate 2 where 2D -> 3D needs nothing: it takes 16 GB more (8 clips a card, 256 x 256;
# computed by `python bench.py fits videodit-256 --stage videodit --attention 2d+3d`).
# (test_2d_and_3d_attention_starts_as_separate_images,
#  test_in_2d_and_3d_only_zero_projections_learn_at_step_0_then_the_copies)
# ASSUMED: "attention block" is a whole joint block, MLP and both streams, with a zero projection on each
# stream: 4.15B parameters as in Table 4, where attention alone gives 2.5B and one projection a block 4.09B.
class TrainableCopy(nn.Module):
    """A trainable copy of a joint block, over all tokens of the clip, behind zero projections."""

    def __init__(self, block, width):
        super().__init__()
        self.block = copy.deepcopy(block).requires_grad_(True)
        self.zero_x = zero_linear(width)
        self.zero_context = None if block.last else zero_linear(width)

    def forward(self, context, x, c):
        """-> what to add to the context (None after the last block) and to x."""
        context, x = self.block(context, x, c)
        if context is not None:
            context = self.zero_context(context)
        return context, self.zero_x(x)


# ----------------------------------------------------------------------------------------- LoRA: a small card
# All of SD3's 2.03 B weights trained take 20 bytes each (weight, gradient, two moments of AdamW, EMA): 41 GB
# before the first activation. LoRA (low-rank adaptation, Hu et al. 2021; --lora RANK) freezes a Linear's
# W (out,in), so that 2 bytes are enough for each number, and learns a correction beside it:
#
#     y = W x + U D x          D (rank,in) random, U (out,rank) zero at first: so it starts as the image model
#
# In the file that is saved W + U D stands in W's place, so it is a VideoDiT like any other
# (test_lora_changes_nothing_at_first_and_merged_answers_as_it_did). Rank 16 is 18.6 M numbers, and one clip
# of 32 frames of 256 x 256 then trains on a card of 24 GB where it takes one of 80 (computed by `python
# bench.py fits videodit-256 --stage videodit --gpus 1 --batch 1 --lora 16`).
#
# ASSUMED: VideoDiT trains everything; LoRA is in neither paper. Adapters go to attention and MLP, 3D patchify
# is trained whole, Hu's alpha is the rank. What it gives up: each matrix moves in `rank` directions of
# hundreds; adaLN, embedders and head stay an image model's; frozen blocks are rounded to bf16. And little
# time is won: gradients still go through every W, only those of W itself need not be computed. What it keeps:
# the image model. In the narrow world (docs/scale.md; videos alone, 2,000 steps) rank 16 moves 97 % of clips
# as asked and whole training 100 %, but a boat, known from images alone, is still drawn in 95 % and 27 %.
class LoRA(nn.Module):
    """A frozen Linear with a trained correction of low rank. The Linear keeps its names."""

    def __init__(self, linear, rank):
        super().__init__()
        outputs, inputs = linear.weight.shape
        device = linear.weight.device
        self.weight, self.bias = linear.weight, linear.bias
        self.down = nn.Parameter(torch.randn(rank, inputs, device=device) / inputs ** 0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=device))

    def forward(self, x):
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return y + F.linear(F.linear(x, self.down), self.up)


def add_lora(video, rank, dtype):
    """Freeze a VideoDiT's image model, its blocks in dtype, and add an adapter to each Linear of attention
    and MLP."""
    if video.copies is not None:
        raise UserError("--lora: is for attention 2d->3d; 2d+3d has the image model frozen already")
    video.image.requires_grad_(False)
    video.image.joint_blocks.to(dtype)
    parts = [part for part in video.image.joint_blocks.modules() if isinstance(part, (Attention, MLP))]
    for part in parts:
        for name, layer in part.named_children():
            if isinstance(layer, nn.Linear):
                setattr(part, name, LoRA(layer, rank))


def merged(state):
    """A state_dict with W + U D in place of W, in float32 as trained weights are; one without adapters as it
    is."""
    adapted = {name.removesuffix(".up") for name in state if name.endswith(".up")}
    if not adapted:
        return state
    found = {name: tensor.cpu().float() for name, tensor in state.items()}
    for layer in adapted:
        change = found.pop(f"{layer}.up") @ found.pop(f"{layer}.down")      # (out,in)
        found[f"{layer}.weight"] = found[f"{layer}.weight"] + change
    return found


if __name__ == "__main__":
    from demos.show_videodit import main

    polite(main)
