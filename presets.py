"""presets.py - every hyper-parameter of both papers, with its section; and the flags that change it.
Paper    VideoDiT 3.1 (the DP-VAE's losses), 4.1 and 4.3 (everything else); Latte 4.1-4.5
Shapes   none: a preset is a table of numbers, its last column a table of the stages that it trains
Flags    one for each field of Config, a network's among them (--dit.depth): a flag beats the stage's row,
         the row beats its preset, the preset beats Config
Differs  grep ASSUMED and DEVIATES: both papers name fewer numbers than a run needs
Reads    beside train.py, whose stages read these fields; before ablate.py
Run me   python presets.py                   # CPU, 3 s: each preset's stages, steps, batch, size
         python presets.py videodit-512      # every field of its stages

THE PROBLEM. A paper's section on training is half a page; a run is a hundred numbers. Whoever repeats the
paper has to choose the rest, mostly without noticing: a warm-up because the last project had one, Adam's
second beta because it is the library's. A year later nobody can tell which number was the paper's, which a
considered choice, and which an accident, and a result that differs cannot be traced to any of them.

THE IDEA. All numbers stand in one file, each with where it comes from: the paper's section beside it; ASSUMED
where the paper is silent and we chose; DEVIATES where the paper, or the code that its authors published, says
something else and we know it. What a test can hold to the paper it does (tests/test_presets.py: steps, batch,
size, rate, EMA, lambdas). And a checkpoint carries all of them, so that a run can be asked what it was.

Tried by others: YAML files that include each other (which of five files set this?), one script for each
experiment (ninety-nine equal lines hide the one that differs), command lines in a README (the defaults behind
them move). A dict in Python needs no language of its own, and a difference of two presets is a diff."""

from support.cli import FlagParser, UserError, polite    # first: see there

import argparse
import dataclasses
import functools
import inspect
import math
import os
import re
import sys
from dataclasses import dataclass, field

from dit import MMDiTConfig
from latte import SIZES, LatteConfig
from text import ToyTextConfig
from vae import GOP, KLVAEConfig, PatchGAN3DConfig
from support import toy_world
from support.detectors import AttributeClassifierConfig
from support.trainer import RESUME, flat


# train.py has a function for each; a preset names those that it trains, in order.
STAGES = {
    "classifier": "the instrument: names what it sees in the toy world",
    "vae": "pixels <-> latents, one frame at a time",
    "dit": "the text-to-image model that VideoDiT starts from",
    "dpvae": "VideoDiT 3.1: the VAE that also sees between the key frames",
    "videodit": "VideoDiT 3.2: the image transformer, made to move",
    "latte": "Latte 3: blocks over space, blocks over time",
}


# ---------------------------------------------------------------------------------------------- the fields

# A number is looked up in four places, and the first that has it wins:
#
#     python train.py --lr 1e-4  >  the stage's row  >  its preset  >  Config
#
# So a table has to say only what makes it different. A field's comment is its help: what --help prints is
# read from this very text (notes, below). A field cannot be had without an explanation, nor an explanation
# that is not the one beside the number.

@dataclass
class Config:
    """Every field is a flag; a preset's table and the stage's row in it are the defaults."""
    config: str = "toy"            # the preset: tiny, small, toy, or one of the papers'
    stage: str = "all"             # one of STAGES, or all of a preset's
    out: str = ""                  # folder of the weights; "": runs/PRESET
    data: str = "toy"              # clips: "toy", "toy-small", a folder of videos, or several: A:0.5 B:0.5
    images: str = ""               # images: "toy", "toy-small", a folder; "": frames of --data
    init: str = ""                 # weights to start from: a folder or file of ours, or published ones
                                   # (Stable Diffusion 3, DiT, PixArt, Latte; one file or a Diffusers folder)
    resume: str = "auto"           # auto: where --out stopped; none: start again; anyway: go on though flags
                                   # differ; or a folder with a state.pt
    seed: int = 0                  # of the weights, the data's order, and every step's noise
    # WHAT A CLIP IS. A window of a video: `frames` of its frames, `stride` apart, a crop of `size` x `size`
    # pixels out of each. The price of attention grows with the square of their product, so the window is the
    # first thing to choose. A stride is the cheapest way to longer motion: 16 frames at stride 3 span 46 of
    # the video's, and have to be played at a third of its rate (Latte 4.2 takes every third; Fig. 5e: late in
    # training the interval hardly matters). TRAP: flip mirrors what is written on a sign, too, and makes a
    # lie of a caption that says "left"; where captions speak of sides, leave it off.
    size: int = 64                 # pixels, height and width
    frames: int = 16               # 1 or a multiple of 4
    stride: int = 1                # of the frames of real videos
    fps: float = 0.0               # resample real videos to this rate instead; 0: their own
    flip: bool = False             # mirror half of the real clips
    crop: str = "random"           # where in a real video's frame the crop lies: "random" or "center"
    long: int = 0                  # resize real videos to a long side of at most this before the crop
                                   # (VideoDiT 4.1: 1080); 0: to a short side of --size
    part: tuple = (0.0, 1.0)       # of each real video: (0, 0.75) leaves its last quarter for a test
    workers: int = 0               # processes that load data
    # THE OPTIMIZER. AdamW moves each weight by about lr a step, along its first moment (the running mean of
    # its gradients) over the root of its second (of their squares); betas say how far back the two reach,
    # 1/(1-beta) steps. The warm-up lets the second moment fill first, or the earliest steps are long and
    # random. `clip` bounds the harm of one bad batch (gradient clipping). `ema` is the decay of the weights'
    # exponential moving average, which reaches back about 1/(1-ema) steps; it is what is sampled: a single
    # step's weights jitter about a mean that is better than any of them.
    # ASSUMED: an EMA warms up. At 0.9999 the untrained weights would still weigh 37 % after 10,000 steps, so
    # the EMA is short while the run is (both papers print the decay and no more).
    # ASSUMED: AdamW for the transformer, too, and weight decay 0 everywhere: VideoDiT 4.1 names AdamW for its
    # DP-VAE, Latte 4.1 for its models, nobody a decay. Latte's published code has 0.
    steps: int = 0                 # how many in all, those before a resume among them
    batch: int = 16                # clips or images in a step, over all ranks
    accumulate: int = 1            # gradient accumulation: batch must divide by accumulate * ranks
    lr: float = 1e-3               # learning rate of AdamW, after the warm-up
    warmup: int = 100              # steps of linear warm-up
    decay: float = 0.0             # share of the steps, at the end, over which lr falls linearly to 0
    betas: tuple = (0.9, 0.99)     # decay of AdamW's first and second moment
    weight_decay: float = 0.0      # AdamW's
    muon: float = 0.0              # Muon for the matrices of transformer blocks, at so many times lr; 0: no
    clip: float = 1.0              # gradients longer than this are shortened to it
    ema: float = 0.999             # decay of the EMA; with warm-up: min(ema, (1 + step) / (10 + step))
    bf16: bool = True              # mixed precision: autocast; weights and optimizer stay in float32
    shard: bool = False            # ranks share weights, gradients, moments and EMA instead of copying
    compile: bool = False          # torch.compile of each transformer block
    checkpointing: bool = False    # gradient checkpointing: less memory, a third more time
    checkpoint_every: int = 1      # with --checkpointing: one block of so many computes twice
    # LOSSES. Weights between terms of one stage's loss; only their ratios matter to AdamW, which divides
    # every gradient by its own size. The terms pull against each other: a stronger discriminator buys texture
    # with decibels, a stronger lambda_reg a latent that the image transformer reads with a worse image
    # (VideoDiT Table 3). vae.py says what each term is.
    kl_weight: float = 1e-6        # stage vae: of the term that keeps latents near a normal distribution
    lpips_weight: float = 0.1      # VideoDiT 3.1: lambda_LPIPS; 0 leaves the term out
    lpips: str = ""                # VGG16's weights for it; "": the toy's classifier, if --out has one
    recon_weight: float = 1.0      # VideoDiT 3.1: lambda_recon, of the error of each pixel
    reg_weight: float = 1.0        # VideoDiT 3.1: lambda_reg; 0: Table 3's ablation, column "Regularization"
    key_encoder: bool = True       # --no-key_encoder: z = E_r(x) alone; Table 3's ablation, column "2D VAE"
    decoder_only: bool = False     # stage dpvae: E_r stays, and with it what a transformer has learned
    z_noise: float = 0.0           # stage dpvae: D reads z with noise, up to so many of z's deviations
    disc_weight: float = 0.01      # VideoDiT 3.1: lambda_disc; 0 trains no discriminator
    disc_start: int = 1000         # steps before its loss counts; it learns from half of that on
    disc_warmup: int = 1000        # steps over which disc_weight then rises linearly
    # TRANSFORMERS. Which noise levels they meet (flow.py), how often they get no prompt or no video, and
    # the papers' ablations: each of those is one field, whose default is the paper's choice.
    # TRAP: shift is used in training and in sampling, and belongs to the weights: sampled with another one, a
    # model spends its steps at noise levels that it hardly knows. So it is saved with them.
    shift: float = 1.0             # of a flow's noise levels, in training and sampling: above 1 more of them
                                   # are noisy, which large frames need; SD3: 3. DDPM does not read it
    guidance: float = 0.0          # in sampling, as the checkpoint will ask for it; 0: sample.py's own
    text_drop: float = 0.1         # VideoDiT 4.1: prompts dropped for guidance
    p_video: float = 0.8           # VideoDiT 4.1: probability that a step trains on videos
    attention: str = "2d->3d"      # "2d->3d": it becomes global; "2d+3d": trainable copies, VideoDiT Table 4
    patchify_3d: bool = True       # --no-patchify_3d: tokens do not know their time, VideoDiT Table 5
    lora: int = 0                  # stage videodit: rank of adapters that learn instead of the image model
    objective: str = "ddpm"        # stage latte: ddpm (Latte 3.1), or flow, which the paper does not have
    latents: str = "vae"           # stage latte: of the image VAE, frame by frame, or of the dpvae, 4x fewer
    joint_images: int = 0          # stage latte: images beside each clip (Latte 3.3.4; as published: 8)
    image_start: str = "all"       # stage latte with --init: "all" blocks copy the image model,
                                   # or "zero": temporal ones start at 0
    # WHAT THE TRANSFORMERS READ. The frozen VAE and text encoders run inside each step, as in both papers, or
    # once before (--cached). For Latte-S that takes 9/10 of a step's operations away, for Latte-XL a quarter.
    # But a video then is `windows` windows for ever instead of a new one at each visit, and a small
    # collection is learned by heart the sooner.
    vae_weights: str = ""          # a published VAE (Stable Diffusion 1.4's, for Latte), or a
                                   # dpvae.safetensors of ours, if it is neither in --out nor in --init
    text_weights: str = ""         # published text encoders, if --init does not hold them: Stable
                                   # Diffusion 3's, or for latte-t2v T5's folder
    cached: bool = False           # encode once, before training; each video is then a few windows for ever
    cache: str = ""                # --cached: folder of the latents; "": OUT/cache
    items: int = 0                 # toy: this many clips, and as many images; 0: a million, as they come
    windows: int = 8               # --cached: random windows of each real video
    # LOOKING. How often a run leaves something behind. A save costs seconds and is what a crash sends one
    # back to; a preview costs a clip's sampling and is the only thing that shows what a loss does not.
    save_every: int = 500          # steps between two states on disk
    preview_every: int = 500       # steps between two previews: clips or reconstructions to look at
    valid_every: int = 500         # steps between two held-out losses: on 16 clips that no step sees; 0: none
    previews: int = 4              # how many clips are made for a preview
    log_every: int = 20            # steps between two lines of OUT/STAGE/log.jsonl
    keep: int = 2                  # older states that stay, in OUT/STAGE/STEP/, beside the newest: the last
                                   # one whole, those before as EMA; 0: none
    # NETWORKS. Their sizes; each is a dataclass in the network's own file, and its fields are flags, too.
    classifier: AttributeClassifierConfig = field(
        default_factory=lambda: AttributeClassifierConfig(*CLASSIFIER))
    vae: KLVAEConfig = field(default_factory=KLVAEConfig)
    disc: PatchGAN3DConfig = field(default_factory=PatchGAN3DConfig)
    text: ToyTextConfig = field(default_factory=lambda: ToyTextConfig(words=toy_world.WORDS))
    dit: MMDiTConfig = field(default_factory=MMDiTConfig)
    latte: LatteConfig = field(default_factory=LatteConfig)
    given: tuple = field(default=(), compare=False)     # no flag: those a person typed (--dit.depth 12)

    def settings(self):
        """What a run is, as a dict for its files. Who set it is no part of it."""
        settings = dataclasses.asdict(self)
        del settings["given"]
        return settings


# ---------------------------------------------------------------------------------------------- the table

# Two families. The toy's presets begin with nothing and train every network, on a CPU, with latents cached:
# there encoding a clip takes longer than a transformer's step on it (tiny: 18 clips a second are encoded, 130
# trained on). The papers' begin with published weights, train what the paper trains, and encode inside the
# step, as the papers do. Where a paper prints a number, its section stands beside it, and
# tests/test_presets.py holds the one to the other.

CLASSIFIER = (toy_world.SUBJECTS, tuple(toy_world.COLOURS), toy_world.MOTIONS, toy_world.SCENES)
NARROW = toy_world.VOCABULARIES["small"]
PRESETS = {
    # every stage and a sample in under 90 s on two cores; nothing good comes out. It is here so that every
    # line of every stage is run by the tests, and by whoever changes one, before a day is spent on it.
    "tiny": dict(
        size=32, frames=8, cached=True, items=64, save_every=20, preview_every=1000, warmup=5, log_every=5,
        bf16=False, lr=3e-4,           # so low that rounding does not grow: two processes end where one does
        classifier=AttributeClassifierConfig(*CLASSIFIER, width=8, features=32, size=32),
        vae=KLVAEConfig(4, ch=8, ch_mult=(1, 2, 2, 2), num_res_blocks=1, groups=4, scale=1.0, shift=0.0),
        disc=PatchGAN3DConfig(8, 1), text=ToyTextConfig(toy_world.WORDS, 12, 32, 1, 2),
        dit=MMDiTConfig(4, 2, 2, 2, 16, context_dim=32, pooled_dim=32, pos_grid=4, base_size=4),
        latte=LatteConfig(1, 2, 32, 2, in_channels=4, frames=8, input_size=8, condition="text",
                          context_dim=32, pooled_dim=32),
        stages={"classifier": dict(steps=20, batch=8, lr=2e-3), "vae": dict(steps=30, batch=8),
                # rounding grows, most under a discriminator: at 3e-4 one process and two end 1e-3 apart on AMX
                "dit": dict(steps=20, batch=8),
                "dpvae": dict(steps=12, batch=2, lr=2e-5, disc_start=4, disc_warmup=4),
                "videodit": dict(steps=20, batch=8, lr=1e-4),
                "latte": dict(steps=20, batch=4, joint_images=2)}),
    # the narrow world (toy_world.VOCABULARIES): README's first training, and what ablate.py's rows are runs
    # of. 32 x 32, a VAE of 4 channels that halves twice, three subjects that move in one of four ways.
    # DEVIATES Latte 4.1: Muon for the blocks' matrices, where the paper has AdamW (VideoDiT names none). With
    # AdamW, motion was a guess after 800 steps; with Muon every clip moved as asked after 1,000 (seed 0).
    "small": dict(
        data="toy-small", size=32, frames=16, cached=True, items=2048, decay=0.4, shift=1.5, muon=20.0,
        preview_every=1000,
        classifier=AttributeClassifierConfig(NARROW.subjects, NARROW.colours, NARROW.motions, NARROW.scenes,
                                             size=32),
        vae=KLVAEConfig(4, ch=16, ch_mult=(1, 2, 2), num_res_blocks=1, groups=4, scale=1.0, shift=0.0),
        text=ToyTextConfig(NARROW.words, 12, 64, 1, 2),
        dit=MMDiTConfig(4, 2, 4, 4, 24, context_dim=64, pooled_dim=64, pos_grid=4, base_size=4),
        latte=LatteConfig(1, 4, 96, 4, in_channels=4, frames=4, input_size=8, condition="text",
                          context_dim=64, pooled_dim=64, learn_sigma=False, joint="temporal_mask"),
        stages={"classifier": dict(steps=300, batch=32, lr=2e-3),
                "vae": dict(steps=1000, batch=16, lr=2e-3, kl_weight=1e-3, lpips_weight=0.0),
                "dit": dict(steps=600, batch=64, lr=1e-3),
                "dpvae": dict(steps=500, batch=4, lr=1e-3, reg_weight=0.1, disc_weight=0.0,
                              lpips_weight=0.0),
                "videodit": dict(steps=800, batch=32, lr=1e-3),
                "latte": dict(steps=800, batch=32, lr=1e-3, objective="flow", latents="dpvae",
                              joint_images=1)}),
    # the shipped checkpoint: see README for what it reaches. decay 0.4: the papers hold the rate and average
    # over many steps; ten thousand are too few for that, so the rate falls over the last 40 %
    # (train.learning_rate).
    # kl_weight 1e-3, where Stable Diffusion has 1e-6: it has a hundred times the data to fill its latents'
    # space with, and a transformer of 2 B to find its way in it. Here they are held closer together.
    "toy": dict(
        size=64, frames=16, cached=True, items=6144, decay=0.4, shift=2.0,
        vae=KLVAEConfig(16, ch=24, ch_mult=(1, 2, 3, 3), num_res_blocks=1, groups=8, scale=1.0, shift=0.0),
        text=ToyTextConfig(toy_world.WORDS, 12, 128, 2, 4),
        dit=MMDiTConfig(16, 2, 6, 5, 32, context_dim=128, pooled_dim=128, pos_grid=8, base_size=8),
        latte=LatteConfig(1, 8, 120, 4, in_channels=16, frames=4, input_size=8, condition="text",
                          context_dim=128, pooled_dim=128, learn_sigma=False, joint="temporal_mask"),
        stages={"classifier": dict(steps=1000, batch=32, lr=2e-3),
                "vae": dict(steps=4800, batch=16, lr=2e-3, kl_weight=1e-3, lpips_weight=0.0,
                            weight_decay=1e-4),
                "dit": dict(steps=4000, batch=96, lr=1e-3),
                # DEVIATES VideoDiT Eq. 4: no discriminator, no LPIPS in the toy. Flat shapes have no texture to
                # fake, and the discriminator costs a third of the step, the perceptual term a fifth. `tiny` and
                # the paper's presets train both. (Training on crops of half the size would be cheaper, but
                # this small VAE has seen whole frames only, and its norms are lost on a piece of sky.)
                # DEVIATES VideoDiT 3.1: lambda_reg 0.1 for 1, here and in `small`. With 1, D_k(z) was 0.3 dB
                # below D_k(z_k), the clip at 28 dB; with 0.1 0.6 dB below, and the clip at 30.3 (after more
                # steps, too).
                "dpvae": dict(steps=10_000, batch=2, lr=4e-4, reg_weight=0.1, disc_weight=0.0,
                              lpips_weight=0.0),
                # guidance 2.5 for SD3's 4: clips are nearer to what can be drawn, and those that go on from
                # others keep their motion more often. The shipped one was then made deeper, and trained for
                # 28,000 steps more (docs/toy.md has the commands)
                "videodit": dict(steps=16_000, batch=48, lr=1e-3, guidance=2.5),
                # DEVIATES Latte 3.1: a flow, which needs 28 calls where DDPM takes 250, on a CPU a minute a
                # clip; and DP-VAE's latents, a quarter of the tokens and already cached.
                "latte": dict(steps=6000, batch=48, lr=1e-3, objective="flow", latents="dpvae",
                              joint_images=1)}),
    # VideoDiT 4.3, the ablations' setting: size, frames, steps, batch, p_video; 4.1: dpvae's row, EMA, and
    # the lr of both stages, 5e-5. The data, --data and --images, are yours to bring. The paper's:
    #     dpvae           "a self-collected, high-quality video dataset" (4.1), which nobody else has
    #     videodit-256    1 million videos drawn at random from WebVid-10M, no images (4.3)
    #     videodit-320    the same 1 million; images from JourneyDB in a fifth of the steps (4.1)
    #     videodit-512    300 thousand videos from Pexels, self-collected; images from JourneyDB (4.1)
    # DEVIATES VideoDiT 4.1: without --images, a step of images takes single frames of the videos; ablate.py
    # asks for --images where a row trains on them.

    # --lpips is VGG16's file, for Eq. 4; a dpvae stage without it stops (pretrained.perceptual_for).
    # What 4.1 leaves open:
    # ASSUMED: shift 3, with which Stable Diffusion 3 is released: its weights know that density of levels.
    # ASSUMED: a constant rate after the warm-up; 4.1 prints one number.
    # ASSUMED: warmup 1000, betas 0.9 and 0.95 (a second mean of 20 steps follows sudden gradients sooner than
    # 0.999's thousand), clip 1.0: what large transformers are commonly trained with.
    # ASSUMED: flip. Latte says that it flips; VideoDiT names no augmentation but the crop. --no-flip where
    # captions speak of left and right.
    # ASSUMED: disc_start, disc_warmup: the discriminator has no weight in the first sixth of dpvae's steps.
    # Eq. 4 holds from the first, but then it judges a decoder that has just begun to see time (train.py).
    "videodit-256": dict(
        size=256, frames=32, data="", flip=True, shift=3.0,
        lr=5e-5, warmup=1000, betas=(0.9, 0.95), ema=0.9999, checkpointing=True, compile=True,
        save_every=5000, preview_every=5000, valid_every=5000, previews=1, p_video=1.0, workers=8,
        # VideoDiT 4.1: "longer edge does not exceed 1080 pixels", then cropped to 256: its own texture
        stages={"dpvae": dict(steps=600_000, batch=8, long=1080, disc_start=100_000, disc_warmup=10_000),
                "videodit": dict(steps=60_000, batch=64)}),                                     # VideoDiT 4.3
}
# VideoDiT 4.1, "Video Diffusion Transformer": 320 first, on a DP-VAE that learned at 256, then from its
# result (--init runs/videodit-320, which holds the DP-VAE, too) at 512. Small first, because a step at
# 512 costs 4.5 times as much (its attention 6.4 times), and how things move is learned as well at 320. The
# DP-VAE needs no second training: its convolutions do not know how large a frame is.
# 64 clips on 8 cards of 80 GB go through in micro-batches (python bench.py fits videodit-512).
PRESETS["videodit-320"] = {
    **PRESETS["videodit-256"], "size": 320, "frames": 96, "p_video": 0.8,
    "stages": {"dpvae": {**PRESETS["videodit-256"]["stages"]["dpvae"], "size": 256, "frames": 32},
               "videodit": dict(steps=200_000, batch=64, accumulate=2)}}
PRESETS["videodit-512"] = {
    **PRESETS["videodit-320"], "size": 512,
    "stages": {"videodit": dict(steps=200_000, batch=64, accumulate=4)}}

# Latte 4.1 and the published configurations: XL/2, 16 frames three apart, 8 GPUs x 5 clips, or x 4 clips with
# 8 images each. The paper says "AdamW optimizer with a constant learning rate" and prints no rate, batch or
# steps; those here, betas, and 1 M steps, an upper bound, are the published configurations'.
# DEVIATES: gradients are clipped to 0.1 from the start, the published code starts after 20-500 K steps. A
# bound that comes late comes after the spikes it is for.
# DEVIATES: bf16 (autocast), where the published code computes in float32 with TF32's ten bits of mantissa.
# bf16 has seven, and half the memory and traffic; weights, moments and loss stay in float32. --no-bf16 is
# the published way.
# Latte 4.1: flips are the only augmentation, so the crop is the middle one.
# DEVIATES Latte 4.1: SkyTimelapse is not flipped, as in the published configuration; --flip as in the paper.
# DEVIATES from the published code: the EMA warms up (Config.ema), where its first copy counts from step 0.
# DEVIATES from the published loaders: a video of fewer than 46 frames is left out, where theirs of faces and
# UCF101 takes it at a smaller interval; every interval is 3, where theirs of 48 frames has two of 4.
# DEVIATES from the published loaders: bicubic with care for the pixels in between (support/video_io.py),
# where theirs is bilinear without; and images beside clips are resized and flipped as clips are, where those
# of faces and UCF101 have to be 256 x 256 and stay as they are.
_latte = dict(size=256, frames=16, stride=3, crop="center", data="", lr=1e-4, warmup=1, betas=(0.9, 0.999),
              clip=0.1, ema=0.9999, compile=True, save_every=10_000, preview_every=10_000,
              valid_every=10_000, previews=2, workers=8)
for _name, _flip, _condition in (("ffs", True, "none"), ("sky", False, "none"), ("taichi", True, "none"),
                                 ("ucf101", True, "class")):
    for _suffix, _batch, _images in (("", 40, 0), ("-img", 32, 8)):
        PRESETS[f"latte-{_name}{_suffix}"] = {
            **_latte, "flip": _flip, "latte": LatteConfig(**SIZES["XL"], condition=_condition),
            "stages": {"latte": dict(steps=1_000_000, batch=_batch, joint_images=_images)}}
# Latte 4.5: on Vimeo25M, 512 x 512; 28 + 28 blocks from PixArt-alpha, whose folder (--init) holds T5 and the
# VAE, too.
# ASSUMED: all but that. 4.5 prints no rate, batch, images, steps or stride, and its training is not
# published: those of -img; no flip, since captions may say "left"; stride 1, each frame of the video.
PRESETS["latte-t2v"] = {
    **_latte, "size": 512, "stride": 1, "checkpointing": True, "image_start": "zero",
    "latte": LatteConfig(depth=56, input_size=64, condition="text", conditioning="adaln_single",
                         joint="temporal_mask"),
    "stages": {"latte": dict(steps=1_000_000, batch=32, joint_images=8)}}


# ---------------------------------------------------------------------------------------------- flags

# No YAML, no registry: a flag is a dataclass field, and a network's fields are flags with its name before
# them (--dit.depth). So nobody can add a field and forget its flag, and a flag that is misspelled is an error
# that names the nearest one, not a run with the default. All is checked before anything is allocated or
# written, because the alternative to a line now is a stack trace after an hour of loading.
#
#     argv --parser--> {field: value}, only those typed   (default=SUPPRESS: an absent flag leaves no trace)
#          --parse---> Config + preset + row + typed      one for each stage, in order
#          --check---> the same, or one line and exit 2
#
# That only typed flags are in the first dict is what makes the order of precedence work: argparse's usual
# defaults would beat every preset. And it is remembered (config.given): who types --dit.depth 12 beside
# weights of depth 6 has to be told, who says nothing means their own (pretrained.refuse_other_sizes).

def parse(argv):
    """argv -> one Config per stage, in order. Flags beat the stage's row, which beats the preset."""
    given = vars(parser().parse_args(argv))
    preset = given.pop("config", "toy")
    asked = given.pop("stage", "all")
    if asked == "all" and given.get("resume", "none") not in RESUME:
        raise UserError(f"--resume {given['resume']} is of one stage; name it with --stage")
    table = dict(PRESETS[preset])
    rows = table.pop("stages")
    configs = []
    for stage in rows if asked == "all" else [asked]:
        config = Config(config=preset, stage=stage, out=f"runs/{preset}", given=tuple(sorted(given)))
        configs.append(check(apply(config, table | rows.get(stage, {}) | given)))
    return configs


CHOICES = {"config": PRESETS, "stage": ("all", *STAGES), "crop": ("random", "center"),
           "attention": ("2d->3d", "2d+3d"), "objective": ("ddpm", "flow"), "latents": ("vae", "dpvae"),
           "image_start": ("all", "zero")}


# Built once in a process: a flag for each of some hundred fields takes argparse longer than all the rest of
# parse, and ablate.py parses a command for each row.
@functools.cache
def parser():
    """A flag for each field, its help the comment beside it: what a reader of this file reads, no more."""
    flags = FlagParser(prog="train.py", usage="train.py [--config PRESET] [--stage STAGE] [other flags]",
                       description="Train a stage, or all stages, of a preset. In brackets what holds unless "
                       "the preset says otherwise; python presets.py PRESET prints what it says.",
                       epilog="stages: " + "; ".join(f"{name}: {what}" for name, what in STAGES.items()))
    told = notes(Config)
    for network in dataclasses.fields(Config):
        if dataclasses.is_dataclass(network.type):
            told |= notes(network.type, f"{network.name}.")
    for name, default in flatten(Config()).items():
        kind, shown = type(default), default
        how = dict(type=kind, metavar=kind.__name__.upper(), choices=CHOICES.get(name))
        if kind is bool:
            how = dict(action=argparse.BooleanOptionalAction)
        elif name == "data":
            how["nargs"] = "+"                              # several, parted by blanks (data.py)
        elif kind is tuple:
            how = dict(type=type(default[0]) if default else str, metavar="X", nargs="+")
            shown = " ".join(map(str, default[:4]))
            if len(default) > 4:
                shown += " ..."
        help = f"{told[name]} [{shown}]".replace("%", "%%")
        flags.add_argument(f"--{name}", default=argparse.SUPPRESS, help=help, **how)
    return flags


def notes(kind, prefix=""):
    """{flag: the comment beside its field}, read from the source of a config. A comment far to the right goes
    on with the one above."""
    source = re.sub(r"\n {20,}# ", " ", inspect.getsource(kind))
    return {prefix + name: text for name, text in re.findall(r"^    (\w+): .*?  # (.*)$", source, re.M)}


def flatten(config):
    """{"lr": 0.001, "dit.depth": 6, ...}: a network's fields are flags with its name in front."""
    return flat(config.settings())


def apply(config, flags):
    """The config with these flags, {"dit.depth": 12}, set."""
    for name, value in flags.items():
        if name == "data" and isinstance(value, list):
            value = " ".join(value)
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(value, str) and value.startswith("~"):            # --out=~/x: the shell leaves it to us
            value = os.path.expanduser(value)
        owner, _, leaf = name.rpartition(".")
        if owner:
            value = dataclasses.replace(getattr(config, owner), **{leaf: value})
            leaf = owner
        config = dataclasses.replace(config, **{leaf: value})
    return config


# What can be wrong with a number: it lies out of its range (two tables say which), it does not go with
# another (heads that do not divide a width, a size that no whole number of patches fills), or it is a wish
# that cannot be had (Muon on halves of a matrix). `check` goes through them in this order.

LEAST = dict.fromkeys(("steps", "batch", "checkpoint_every", "accumulate", "frames", "stride", "windows",
                       "save_every", "preview_every", "previews", "log_every"), 1)
LEAST |= {"size": 8, "classifier.size": 16, "lr": 1e-12, "clip": 1e-12, "shift": 1e-12}
MOST = dict.fromkeys(("decay", "text_drop", "p_video", "ema", "latte.class_dropout"), 1)
MAY_BE_0 = ("context_dim", "pooled_dim", "dual_attention")     # whole numbers of networks; all others: from 1
# a width is divided by its heads or groups, by four where positions take sine and cosine of two axes
MULTIPLES = (("vae.ch", "vae.groups"), ("text.width", "text.heads"), ("latte.width", "latte.heads"),
             ("classifier.width", 2), ("disc.width", 8), ("dit.head_dim", 4), ("latte.width", 4))


def check(config):
    """What would fail later, as far as is known, fails now, before anything is allocated or written."""
    values = flatten(config)
    # TRAP: nan is smaller than nothing and larger than nothing, so `value < bound` lets it pass; the
    # comparison has to be one that must hold, `bound <= value`
    for name, value in values.items():
        if type(value) not in (int, float) or name == "vae.shift":
            continue
        network, _, leaf = name.rpartition(".")
        least, most = LEAST.get(name, 0), MOST.get(name, 1e18)
        if network and type(value) is int and leaf not in MAY_BE_0:
            least = max(least, 1)
        if not least <= value <= most:
            bound = f" and at most {most}" if name in MOST or value > most else ""
            raise UserError(f"--{name} {value}: must be at least {least}{bound}")
    if len(config.vae.ch_mult) < 3 or min(config.vae.ch_mult) < 1:          # DP-VAE halves time at two levels
        raise UserError(f"--vae.ch_mult {' '.join(map(str, config.vae.ch_mult))}: must be at least 1 each, of "
                        "three levels or more")
    for name, top in (("betas", 1 - 1e-9), ("part", 1)):
        if len(values[name]) != 2 or not all(0 <= value <= top for value in values[name]):
            raise UserError(f"--{name} {' '.join(map(str, values[name]))}: must be two numbers between 0 and 1")
    if config.part[0] >= config.part[1]:
        raise UserError(f"--part {config.part[0]} {config.part[1]}: must begin before it ends")

    for name, by in MULTIPLES:
        if values[name] % values.get(by, by):
            of = f"--{by} {values[by]}" if by in values else by
            raise UserError(f"--{name} {values[name]}: must be a multiple of {of}")
    unit = 2 ** (len(config.vae.ch_mult) - 1) * math.lcm(config.dit.patch, config.latte.patch)
    if config.size % unit:                                  # pixels fill whole patches of the transformer
        raise UserError(f"--size {config.size}: must be a multiple of {unit}")
    if config.frames % GOP and (config.frames > 1 or config.stage in ("dpvae", "videodit")):
        raise UserError(f"--frames {config.frames}: must be a multiple of {GOP}, or 1 where no DP-VAE is")

    if config.cached and toy_world.WORLDS.keys() & {config.data, config.images} and not config.items:
        raise UserError("--items 0: give the number of toy clips whose latents are to be cached")
    if config.lpips and not config.lpips_weight:
        raise UserError("--lpips FILE is not read at --lpips_weight 0; give a weight, the paper's is 0.1")
    if config.muon and (config.shard or config.lora):
        raise UserError("--muon with --shard or --lora: Muon needs whole matrices; give one of the two")
    if config.stage == "latte" and "latte.joint" in config.given and not config.joint_images:
        raise UserError("--latte.joint says what images do beside clips, and there are none; give "
                        "--joint_images 8, or leave it out")
    return config


# ---------------------------------------------------------------------------------------------- what there is

# How large is a run? Three numbers tell: tokens in a clip, clips seen, parameters. A transformer does about
# 6 operations a parameter and token, forward and backward together, and attention adds to that with the
# square of the tokens: 2 % for Latte's 4,096 in groups, most of the work for VideoDiT's 24,576 in one.
#
# {preset: (what its command needs beside --config, how long it takes)}; the hours of the papers' presets
# are not written here: python bench.py fits PRESET computes them.
GUIDE = {
    "tiny": ("", "seconds on a CPU; only to see that everything runs"),
    "small": ("", "eleven minutes on two CPU cores; what ablate.py's rows are runs of"),
    "toy": ("", "5 hours on two cores with AMX, about 15 with AVX2; the shipped one had 7 more (docs/toy.md)"),
    "videodit-256": ("--init SD3 --data VIDEOS --lpips VGG16", ""),
    "videodit-320": ("--init SD3 --data VIDEOS --images IMAGES --lpips VGG16", ""),
    "videodit-512": ("--init runs/videodit-320 --data VIDEOS --images IMAGES", ""),
    **{f"latte-{name}{suffix}": (f"--vae_weights SD1 --data {name.upper()}", "")
       for name in ("ffs", "sky", "taichi", "ucf101") for suffix in ("", "-img")},
    "latte-t2v": ("--init PIXART --data VIDEOS", "")}


def overview():
    """What `python train.py` prints."""
    lines = ["What can be trained, and how long it takes; of the papers' recipes the command named computes",
             "hours and card. Several GPUs: torchrun --nproc-per-node 8 train.py ... A command that was",
             "stopped goes on if given again. One stage: --stage NAME. All flags: --help", ""]
    for name, (flags, time) in GUIDE.items():
        stages = ", ".join(PRESETS[name]["stages"])
        lines += [f"  python train.py --config {name} {flags}".rstrip(),
                  f"        {stages}: {time or 'python bench.py fits ' + name}"]
    return "\n".join([
        *lines, "", "The stages:", *(f"  {name:12}{what}" for name, what in STAGES.items()), "",
        "SD3: Stable Diffusion 3's file or Diffusers folder. SD1: Stable Diffusion 1.4's VAE. PIXART: the",
        "folder of PixArt-alpha 512 with its T5. VGG16: torchvision's vgg16-397923af.pth, for LPIPS. VIDEOS,",
        "IMAGES: any folders; python data.py FOLDER says what of one can be used. First steps: python",
        "train.py --stage vae; its curves and previews, then or later: python train.py report runs/toy"])


def main(argv):
    if argv:
        for config in parse(["--config", *argv]):
            print("\n".join(f"{name:24}{value}" for name, value in flatten(config).items()), "\n")
        return
    for name in PRESETS:
        for config in parse(["--config", name]):
            print(f"{name:17}{config.stage:12}{config.steps:>9,} steps x {config.batch:<4}"
                  f"{config.frames:>4} frames of {config.size} x {config.size}")


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
