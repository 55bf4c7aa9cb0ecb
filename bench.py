"""bench.py - what a step costs: time, FLOPs, MFU, memory of every network; what card a recipe needs.
Paper    Latte Tables 1, 2 and VideoDiT 4.1 say how large the networks are, neither what they cost to run
Shapes   clips (B,3,T,H,W), latents (B,C,T',h,w) of random numbers: what they cost does not depend on them
Counts   2 FLOPs a multiply-add, counted on the meta device, the same on any machine; what --checkpointing
         computes twice counts once: MFU, not HFU. Milliseconds are the median of --steps runs
Differs  bf16 is train.py's autocast over float32 weights; with --no-backward, as in sample.py, bf16 weights
Reads    after ablate.py; presets.py sizes its networks
Run me   python bench.py        # CPU, 5 s: FLOPs with a known answer, and attention's share of them
         python bench.py latte-S/2 --frames 16 --size 256 --dtype bf16      # a training step; or fp32
         python bench.py dpvae --preset toy --frames 96 --no-backward       # does length cost memory?
         python bench.py videodit --frames 96 --size 512 --dtype bf16 --no-backward    # SD3's: a GPU
         python bench.py step --config toy --stage videodit --init checkpoints/toy --items 64    # whose time?
         python bench.py fits videodit-512 --gpus 8             # what card, for how many hours; no GPU

THE PROBLEM. A video model is a budget before it is anything else. The first question to a recipe is not how
good its videos are but whether one can afford it: what card, how many days. And the first question to a slow
run is which part of it is slow. Both are commonly answered by feeling, and the feeling is commonly wrong: one
rewrites attention, and the step was waiting for the disk.

THE IDEA is to hold two numbers against each other, one that is the network's and one that is the machine's:

    FLOPs      how much arithmetic the network IS. Counted, exact, the same on any machine
    seconds    how long this machine took for it. Measured, and never twice the same
    FLOPs / seconds / what the machine can do at best  =  MFU, "model FLOPs utilization"

MFU says how much of the machine was used for what one wanted. It makes runs comparable that share nothing
else: another card, batch, size. Public trainings of diffusion transformers say, or let one compute, 5 to
25 %, those of large language models 33 to 48 %: what is low has mostly a cause that can be found.
Where it is low, there are three suspects, and the tables here tell them apart: memory is moved instead of
numbers multiplied (norms, copies: small MFU at full load), Python is too slow to send work (a larger --batch
gets more clips a second for nothing), or the step waits for its data (`step`, first row).

Memory is the other half of the budget, and harder: a run that is slow still ends, one that does not fit does
not begin. So every row has its peak, and `fits` finds it without the card."""

from support.cli import FlagParser, UserError, finite, polite    # first: see say_stopped

import argparse
import contextlib
import json
import re
import statistics
import sys
import tempfile
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.autograd.graph import _engine_run_backward as run_backward
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import train
from dit import MMDiT, MMDiTConfig
from flow import DDPM, ddpm_loss, flow_loss
from latte import SIZES, Latte, LatteConfig
from presets import PRESETS, parse as parse_recipe
from text import CLIPText, CLIPTextConfig, T5Config, T5Encoder, ToyText
from train import encoded
from vae import (DPVAE, GOP, KLVAE, SD14, SD3, DPVAEConfig, PatchGAN3D, discriminator_loss, dp_vae_loss,
                 kl_vae_loss)
from videodit import VideoDiT, VideoDiTConfig, add_lora
from support.detectors import LPIPS, AttributeClassifier
from support.ops import conv_layout, has_bf16
from support.trainer import PEAKS, Trainer, peak_memory, setup


MODELS = [*(f"latte-{size}/2" for size in SIZES), "mmdit", "videodit", "vae", "dpvae"]


# ---------------------------------------------------------------------------------------- what is measured
# A bench is the networks and {name: function that does it once}. It is built twice: on the meta device, where
# nothing is computed and FLOPs are counted, and on the real one. The two cannot come apart, since they are
# the same lines; a formula for FLOPs on paper, beside the code, goes wrong with the first change of the code.
#
# Inputs are random numbers, and that is honest for time: a product takes as long for noise as for a video.
# (It is not for power: a GPU at its limit clocks higher on zeros. So nothing here is measured on zeros.)
#
# What the table teaches, before any of it is run. Let N be a clip's tokens and D the width:
#     Linears      12 N D^2 multiply-adds a block    grow with the clip
#     attention     2 N^2 D                          grows with its square: half of all from N = 6 D on
#     a step       3 forward passes: backward makes two products for each of forward's, one for the gradient
#                  of the input and one for that of the weight
# SD3-medium has D = 1536, and an image of 512 x 512 has 1,024 tokens: attention is a tenth. A clip of 96
# such frames has 24,576, and attention is three quarters: which is why Latte attends along one axis at a time
# and why VideoDiT compresses time fourfold before its transformer sees anything.

# Each gives the network, {row: function} of what it does besides learning, and its training step's loss.

def bench_latte(args):
    """Unconditional, as the published code was measured; the loss is Latte 3.1's L_simple + L_vlb."""
    size, patch = re.fullmatch(r"latte-(\w+)/(\d)", args.model).groups()
    side = args.size // 8
    config = LatteConfig(args.variant, **SIZES[size], patch=int(patch), frames=args.frames, input_size=side)
    net, ddpm = Latte(config), DDPM()
    z, noise = torch.randn(2, args.batch, config.in_channels, args.frames, side, side)      # (B,C,T,h,w) each
    t = torch.randint(1000, (args.batch,))
    return net, {"forward": lambda: net(z, t)}, lambda: ddpm_loss(ddpm, net, z, {}, t=t, noise=noise)


def bench_mmdit(args):
    """SD3's transformer on an image, or on --frames of them at once (VideoDiT Fig. 2): the square of their
    number in attention."""
    return rectified_flow(args, MMDiT(SIZED[args.preset]["dit"]), args.frames)


def bench_videodit(args):
    """On the DP-VAE's latents, so a fourth of the frames: compare with mmdit. Attention over all of them at
    once, "2d->3d", or in trainable copies beside the image's own, "2d+3d", the costly way of Table 4."""
    net = VideoDiT(VideoDiTConfig(**vars(SIZED[args.preset]["dit"]), attention=args.attention))
    return rectified_flow(args, net, args.frames if args.frames == 1 else args.frames // GOP)


def rectified_flow(args, net, frames):
    """VideoDiT Eq. 5, with as many text tokens as SD3's 77 + 77, or the toy's 12."""
    config, side = SIZED[args.preset]["dit"], args.size // 8
    tokens = 154 if args.preset == "sd3" else PRESETS[args.preset]["text"].length
    z = torch.randn(args.batch, config.in_channels, frames, side, side)                     # (B,C,T',h,w)
    t, cond = torch.rand(args.batch), random_text(config, args.batch, tokens)
    return net, {"forward": lambda: net(z, t, **cond)}, flow_of(net, z, cond)


def random_text(config, rows, tokens):
    return {"context": torch.randn(rows, tokens, config.context_dim),
            "pooled": torch.randn(rows, config.pooled_dim)}


def flow_of(net, z, cond):
    """VideoDiT Eq. 5's loss, as a function; it draws times and noise, as a step does."""
    return lambda: flow_loss(net, z, cond, t=torch.rand(len(z), device=z.device), noise=torch.randn_like(z))


def bench_vae(args):
    """Both ways of the image VAE, and its training step without LPIPS. Convolutions at full resolution: the
    FLOPs lie in the outermost levels, the fewest parameters, and a decoder costs twice its encoder."""
    net = KLVAE(SIZED[args.preset]["vae"])
    x, side = torch.rand(args.batch, 3, args.frames, args.size, args.size), args.size // 8
    z = torch.randn(args.batch, net.config.z_channels, args.frames, side, side)
    rows = {"encode": lambda: net.encode(x), "decode": lambda: net.decode(z)}
    return net, rows, lambda: kl_vae_loss(net, x, z)[0]


def bench_dpvae(args):
    """A long clip is decoded window by window: its peak is to stay near that of one window. The training step
    is that of Eq. 2 and 3, without LPIPS and adversary."""
    net = DPVAE(DPVAEConfig(**vars(SIZED[args.preset]["vae"])))
    x = torch.rand(args.batch, 3, args.frames, args.size, args.size)
    side, window = args.size // 8, net.config.window
    z = torch.randn(args.batch, net.config.z_channels, args.frames // GOP, side, side)
    rows = {}
    if args.frames > window:
        rows[f"decode {window} frames"] = lambda: net.decode(z[:, :, :window // GOP])
    rows |= {f"decode {args.frames} frames": lambda: net.decode(z), "encode": lambda: net.encode(x)}
    clip = x[:, :, :window]                                     # a training step is never longer
    return net, rows, lambda: dp_vae_loss(net, clip)[0]


BENCHES = {"latte": bench_latte, "mmdit": bench_mmdit, "videodit": bench_videodit, "vae": bench_vae,
           "dpvae": bench_dpvae}


# Which sizes? The published ones, "sd3", unless one asks for the presets that this machine can train. The
# weights are random: a network that knows nothing computes as long as one that does.
SIZED = {"sd3": {"dit": MMDiTConfig(), "vae": SD3, "frames": 32, "size": 256},
         "toy": PRESETS["toy"], "tiny": PRESETS["tiny"]}


def training_rows(net, loss):
    """A step without and with its optimizer.

    Each row contains the one before it, so that differences can be read: backward is the second less the
    first, AdamW the third less the second. The optimizer is made at its first step, because its two moments
    are twice the weights' memory, and the rows before must not be charged with them."""
    learning = []                                               # made at the first step: its state is memory

    def backward():
        loss().backward()

    def step():
        if not learning:
            trainable = [p for p in net.parameters() if p.requires_grad]
            learning.append(torch.optim.AdamW(trainable, 1e-4, fused=True))
        backward()
        learning[0].step()

    return {"forward + backward": backward, "and AdamW": step}


# -------------------------------------------------------------------------------------- how it is measured

# Four ways to measure a step wrongly, all of them easy:
#   * the first run: memory is allocated, kernels are chosen and compiled. So --warmup runs are not counted
#   * the mean: one interruption by another program, and it is off. The median does not see it
#   * not waiting for the GPU: a kernel is sent, not run, when the call returns; one then measures Python.
#     So clock() waits, before and after
#   * counting what --checkpointing computes a second time as work done. It is the price of memory, and the
#     model has not become larger by it. With it one would report HFU, which rises when a run gets slower
# The fifth has no cure here: a processor that others use as well. Compare two things in one run, in turn.

def build(args, device):
    """The network on `device`, its inputs made there, and its rows. --compile and --checkpointing are
    train.py's. A block at a time, because all blocks are alike: one is compiled, the others find it done."""
    with torch.device(device):
        net, rows, loss = BENCHES[args.model.split("-")[0]](args)
    if isinstance(net, (KLVAE, DPVAE)):
        net = net.to(memory_format=conv_layout(device))
    elif args.compile:
        for block in blocks_of(net):
            block.compile()
    checkpoint(net, args.checkpointing)
    if args.backward:
        rows |= training_rows(net, loss)
    elif args.dtype == "bf16":
        net = net.bfloat16()
    return net, rows


def once(args, device, net, function, training):
    """One run, under train.py's autocast or sample.py's no_grad. Gradients are thrown away inside the time,
    as in training: a step that finds the last one's would add to them, and be slower for it."""
    fast = torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bf16")
    with torch.set_grad_enabled(training), fast:
        function()
    net.zero_grad(set_to_none=True)


def flops(args):
    """{row: FLOPs of one run}. On the meta device attention is products that can be counted; a CPU's fused
    kernel is not in torch's list, and would count as nothing. What is not a product (norms, GELU, softmax)
    counts as nothing anyway: it is below a hundredth of the arithmetic, though not of the time."""
    plain = argparse.Namespace(**{**vars(args), "compile": False, "checkpointing": False, "dtype": "fp32"})
    net, rows = build(plain, "meta")
    counts = {}
    for name, function in rows.items():
        if name == "and AdamW":                                 # a few for each weight: nothing
            counts[name] = counts["forward + backward"]
            continue
        counts[name] = flops_of(lambda: once(plain, "cpu", net, function, "backward" in name))
    return counts


def flops_of(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def measure(args, device):
    """Parameters, and for each row of the bench {name, ms, clips_per_s, gflop, tflops, peak_gb, new_gb}."""
    counted = flops(args)
    net, rows = build(args, device)
    results = []
    for name, function in rows.items():
        reset_peak(device)
        held = peak_memory(device)                      # what was there before: weights, inputs, Python
        times = []
        for _ in range(args.warmup + args.steps):
            start = clock(device)
            once(args, device, net, function, "backward" in name or "AdamW" in name)
            times.append(clock(device) - start)
        seconds = statistics.median(times[args.warmup:])
        results.append({"name": name, "ms": 1e3 * seconds, "clips_per_s": args.batch / seconds,
                        "gflop": counted[name] / 1e9, "tflops": counted[name] / seconds / 1e12,
                        "peak_gb": peak_memory(device) / 1e9, "new_gb": (peak_memory(device) - held) / 1e9})
    return sum(p.numel() for p in net.parameters()), results


def clock(device):
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


# A processor's peak holds Python, torch and every library, so "of it new" is the column to compare.
def reset_peak(device):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_tflops(args, device):
    """What MFU is measured against: --peak, or what this GPU's maker states; 0 where nobody says."""
    if args.peak or device != "cuda":
        return args.peak
    name = torch.cuda.get_device_name()
    peak = next((peak for known, peak in PEAKS.items() if known in name), 0.0)
    return peak if args.dtype == "bf16" else peak / 2


# ------------------------------------------------------------------------------------------- does it fit?
# Whether a recipe fits a card should be known before the card is rented. Nothing has to be computed for it:
# on torch's meta device a tensor is a shape and a dtype without numbers, a whole training step runs in
# seconds, and what a GPU would have to hold at its fullest moment can be added up as tensors come and go.
#
#     at rest        weights 4 bytes, gradients 4 (DDP's buckets stay), AdamW's two moments 8, EMA 4
#                    = 20 bytes a trained parameter; frozen networks beside them
#     in the step    autocast's bf16 copies of the weights (2 bytes a parameter, until the step ends), and
#                    activations: what the forward pass keeps for the backward pass. They are freed as the
#                    backward pass consumes them, so the peak is early in it
#
# Why is the early backward pass the peak, and not the end of the forward one? There everything is kept, too;
# but the last layer's gradient comes on top before the first activation is let go. With --checkpointing only
# each block's input is kept, a small part of it, and the peak is one block that is being computed again.
# Adam's moments are the largest item at rest and gradients the one most easily forgotten: at 2 B parameters
# 40 GB are gone before the first clip arrives. This is the half that --shard divides by the number of cards;
# activations are the other half, and only smaller clips, fewer of them, or checkpointing help with those.
#
# The meta device has no autocast, so CUDA's rules are applied to it by hand: products in bf16, norms,
# softmax and losses in float32, and attention as the fused kernel that never holds its N x N scores.

GB = 2 ** 30                # what a card's maker calls a GB
CARDS = {"24 GB (RTX 4090)": 23.5, "40 GB (A100)": 39.0, "48 GB (L40S, A6000)": 44.0,
         "80 GB (H100, A100)": 78.0, "141 GB (H200)": 139.0}    # and what of it is there for programs
IN_BF16 = {F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, torch.matmul, torch.bmm, torch.addmm,
           torch.Tensor.__matmul__, torch.Tensor.matmul, torch.conv2d, torch.conv3d, torch.conv1d}
IN_FP32 = {F.layer_norm, F.group_norm, F.rms_norm, F.softmax, torch.softmax, torch.Tensor.softmax, F.mse_loss,
           F.l1_loss, torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.pow, torch.pow}


class Autocast(TorchFunctionMode):
    """CUDA's autocast to bf16, on the meta device. A parameter's copy is made once and kept.

    It stands one floor above Memory: a function mode sees F.linear before torch takes it apart, and may hand
    it other arguments. The casts that it makes are operations like others, so Memory counts them, too."""

    def __init__(self):
        super().__init__()
        self.copies = {}

    def cast(self, value, dtype):
        if not torch.is_tensor(value) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if isinstance(value, nn.Parameter):
            if id(value) not in self.copies:
                self.copies[id(value)] = value.to(dtype)
            return self.copies[id(value)]
        return value.to(dtype)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # A place that turns autocast off: dit.AdaLN, whose weights then have no copy. The meta device has no
        # switch of its own; nothing here runs on the CPU, so its switch tells this mode what meta cannot.
        dtype = None
        if torch.is_autocast_enabled("cpu"):
            if func in IN_BF16:
                dtype = torch.bfloat16
            elif func in IN_FP32:
                dtype = torch.float32
        kwargs = kwargs or {}
        if func is torch.Tensor.backward:               # checkpointed blocks run again inside: under us, too
            with self:                                  # (backward() itself would come back to us, for ever)
                return run_backward(args[:1], (torch.ones_like(args[0]),), False, False, (),
                                    allow_unreachable=True, accumulate_grad=True)
        if dtype:
            args = tuple(self.cast(value, dtype) for value in args)
            kwargs = {key: self.cast(value, dtype) for key, value in kwargs.items()}
        return func(*args, **kwargs)


class Memory(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made inside and still alive, and remembers the most.

    Torch shows each operation to a dispatch mode before and after it runs. A result is counted when its
    storage is first seen, so that views are free, as they are in truth, and uncounted when Python or autograd
    lets go of it: weakref.finalize calls back at that moment. What an operation was given is not new, either:
    a gradient is added into a bucket that was there before. Counted once more, the gradients of a model of
    2 B parameters made a step look 8 GB larger than it is. No list of layers, no formula for each of them:
    whatever the network does is counted, because torch does it."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = storages(out) - storages((args, kwargs))     # no views, no gradients added into their buckets
        for storage in made:
            if storage not in self.seen:
                size = storage.nbytes()
                self.seen.add(storage)
                weakref.finalize(storage, self.free, size)
                self.now += size
                self.peak = max(self.peak, self.now)
        return out

    def free(self, size):
        self.now -= size


def storages(tree):
    """Of all tensors in nested tuples, lists and dicts."""
    return {leaf.untyped_storage() for leaf in torch.utils._pytree.tree_leaves(tree) if torch.is_tensor(leaf)}


# Attention would be the whole of it if its scores were kept: 24,576 tokens squared, in 24 heads, are 29 GB
# for one block. The fused kernels ("flash") go through them in tiles and forget each tile. Only so is 3D
# attention over a clip possible; so the meta device must run their shapes, not the plain formula's.

def flash(q, k, v, attn_mask=None):
    """The fused kernels a GPU takes: softmax's sums are kept for the backward pass, the scores are not."""
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (part.bfloat16() for part in (q, k, v))
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    bias = torch.zeros(attn_mask.shape, dtype=q.dtype, device=q.device)
    bias = bias.expand(*q.shape[:2], q.shape[2], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)[0]


def peak_of(function, bf16=True):
    """Bytes that function() needs at its fullest, beside what stood there before."""
    with (mock.patch.object(F, "scaled_dot_product_attention", flash), Memory() as memory, Autocast(),
          torch.autocast("cpu", torch.bfloat16, enabled=bf16)):     # the switch that Autocast looks at
        function()
    return memory.peak


# A stage's step as train.py has it, on tensors without numbers: which networks learn (20 bytes a parameter),
# which are frozen beside them (4), and the moments of a run. Each moment is asked two things: what it needs
# at its fullest, and how many FLOPs it is. Encoding is a moment of its own: under no_grad it keeps nothing,
# but one clip at full resolution in a VAE is large, and a recipe whose step fits may fail there; so is the
# clip that a preview decodes. The fullest of them is what a card must have.

def weight_bytes(nets):
    return sum(p.numel() * p.element_size() for net in nets for p in net.parameters())


def pixels(cfg, clips, frames=None):
    """Clips as a network of pixels is given them: one of 96 x 512 x 512 is 0.3 GB."""
    return torch.empty(clips, 3, frames or cfg.frames, cfg.size, cfg.size)                  # (B,3,T,H,W)


def latents(cfg, clips, frames):
    vae = vae_of(cfg)
    side = cfg.size // 2 ** (len(vae.ch_mult) - 1)
    return torch.empty(clips, vae.z_channels, frames, side, side)                           # (B,C,T',h,w)


def trains(cfg, stage):
    """Whether the preset trains this network itself, or begins with a published one."""
    return stage in PRESETS[cfg.config]["stages"]


def vae_of(cfg):
    if trains(cfg, "vae"):
        return cfg.vae
    return SD14 if cfg.stage == "latte" and cfg.latents == "vae" else SD3


def video_vae(cfg):
    return DPVAE(DPVAEConfig(**vars(vae_of(cfg)))).requires_grad_(False)


def text_encoders(cfg):
    """What reads the captions: the toy's own; or CLIP-L, CLIP-G and T5-XXL, in half precision; Latte: T5."""
    reads = cfg.stage == "videodit" or cfg.stage == "latte" and cfg.latte.condition == "text"
    if not reads:
        return []
    if trains(cfg, "dit"):
        return [ToyText(cfg.text).clip]
    encoders = [T5Encoder(T5Config())]
    if cfg.stage == "videodit":
        clip_g = CLIPTextConfig(width=1280, layers=32, heads=20, mlp_width=5120, act="gelu", projection=1280)
        encoders += [CLIPText(CLIPTextConfig()), CLIPText(clip_g)]
    return [encoder.bfloat16() for encoder in encoders]


def caption_tokens(cfg):
    """SD3's 77 + 77; 120 of T5; the toy's."""
    if trains(cfg, "dit"):
        return cfg.text.length
    return 154 if cfg.stage == "videodit" else 120


# Each function below gives the trained networks, the frozen ones, and {moment: function}, of one micro-batch
# of `rows` clips. What a moment is given lies outside of it and is a row of its own, "clips of a step".

def moments_of_classifier(cfg, rows):
    net, x = AttributeClassifier(cfg.classifier), pixels(cfg, rows)

    def step():
        sum(logits.float().mean() for logits in net(x).values()).backward()
    return [net], [], {"a step": step}


def moments_of_vae(cfg, rows):
    net, x = KLVAE(cfg.vae), pixels(cfg, rows, 1)
    noise = torch.empty_like(net.encode(x).detach())            # (B,C,1,h,w)
    return [net], [], {"a step": lambda: kl_vae_loss(net, x, noise)[0].backward()}


def moments_of_dit(cfg, rows):
    net, text, vae = MMDiT(cfg.dit), ToyText(cfg.text), KLVAE(vae_of(cfg)).requires_grad_(False)
    checkpoint(net, cfg.checkpointing, cfg.checkpoint_every)
    steps = {"a step": flow_step(cfg, net, rows, 1), "encoding": encoding(cfg, vae, rows, 1)}
    return [net, text], [vae], steps


def moments_of_dpvae(cfg, rows):
    """A game of two, in one moment. (The preview keeps no gradient: it is far below that.)"""
    dp = DPVAE(DPVAEConfig(**vars(vae_of(cfg))))
    checkpoint(dp, cfg.checkpointing)
    disc, vgg = PatchGAN3D(cfg.disc), LPIPS("vgg").requires_grad_(False)
    lpips_weight = cfg.lpips_weight
    if trains(cfg, "classifier"):                               # which then is in VGG's place, and small
        lpips_weight = 0.0
    x = pixels(cfg, rows)

    def step():
        disc.requires_grad_(False)
        loss, x_hat, _ = dp_vae_loss(dp, x, lambda a, b: vgg(a, b).mean(), disc, disc_weight=cfg.disc_weight,
                                     lpips_weight=lpips_weight)
        loss.backward()
        del loss
        disc.requires_grad_(True)
        if cfg.disc_weight:
            discriminator_loss(disc, x, x_hat).backward()
    nets = [dp, disc] if cfg.disc_weight else [dp]
    frozen = [vgg] if lpips_weight else []
    return nets, frozen, {"a step": step}


def moments_of_videodit(cfg, rows):
    """Steps of images stand beside those of clips (VideoDiT A.2)."""
    net = VideoDiT(VideoDiTConfig(**vars(cfg.dit), attention=cfg.attention, patchify_3d=cfg.patchify_3d))
    checkpoint(net, cfg.checkpointing, cfg.checkpoint_every)
    if cfg.lora:
        add_lora(net, cfg.lora, torch.bfloat16)
    dp = video_vae(cfg)
    moments = {"a step": flow_step(cfg, net, rows, cfg.frames // GOP),
               "encoding": encoding(cfg, dp, rows), "a preview": preview(cfg, dp, cfg.frames // GOP)}
    if cfg.p_video < 1:
        moments |= {"a step of images": flow_step(cfg, net, rows, 1),
                    "encoding images": encoding(cfg, dp, rows, 1)}
    return [net], [dp], moments


def moments_of_latte(cfg, rows):
    """With the images of joint training as further frames. The loss is a stand-in of the same shape: what
    L_vlb keeps is a few latents, little beside what the blocks keep."""
    net = Latte(cfg.latte)
    checkpoint(net, cfg.checkpointing, cfg.checkpoint_every)
    vae, frames = KLVAE(vae_of(cfg)).requires_grad_(False), cfg.frames
    if cfg.latents == "dpvae":
        vae, frames = video_vae(cfg), cfg.frames // GOP
    images = cfg.joint_images
    z = latents(cfg, rows, frames + images)                                                 # (B,C,T'+M,h,w)
    shape = (rows, 1 + images) if images else (rows,)           # what is told of a clip, and of its images
    cond = {}
    if cfg.latte.condition == "class":
        cond["labels"] = torch.zeros(shape, dtype=torch.long)
    elif cfg.latte.condition == "text":
        cond["context"] = torch.empty(*shape, caption_tokens(cfg), cfg.latte.context_dim)
        if cfg.latte.pooled_dim:
            cond["pooled"] = torch.empty(*shape, cfg.latte.pooled_dim)
    t = torch.zeros(rows, dtype=torch.long)

    def step():
        net(z, t, images=images, **cond).float().square().mean().backward()
    moments = {"a step": step, "encoding": encoding(cfg, vae, rows),
               "a preview": preview(cfg, vae, frames)}
    if images:
        moments["encoding images"] = encoding(cfg, vae, rows * images, 1)
    return [net], [vae], moments


def blocks_of(net):
    """What repeats in a transformer, as train.py hands it to --compile, --shard and --checkpoint_every."""
    if isinstance(net, VideoDiT):
        return [*net.image.joint_blocks, *(net.twins or ())]
    if isinstance(net, MMDiT):
        return net.joint_blocks
    return net.blocks


def checkpoint(net, on, every=1):
    """As train.py does: a VAE has two halves, and of a transformer's blocks one in `every` is recomputed."""
    if isinstance(net, DPVAE):
        net.residual.checkpointing = net.decoder.checkpointing = on
    elif not isinstance(net, KLVAE):
        net.checkpointing = on
        for number, block in enumerate(blocks_of(net)):
            block.keeps_all = number % every > 0


def flow_step(cfg, net, rows, frames):
    """The text encoders answer before it, and keep nothing."""
    loss = flow_of(net, latents(cfg, rows, frames), random_text(cfg.dit, rows, caption_tokens(cfg)))
    return lambda: loss().backward()


def encoding(cfg, vae, clips, frames=None):
    x = pixels(cfg, clips, frames).to(torch.uint8)                                          # (B,3,T,H,W)
    return lambda: encoded(vae, x)


def preview(cfg, vae, frames):
    """sample.decode has one clip at a time."""
    z = latents(cfg, 1, frames)                                                             # (1,C,T',h,w)
    return torch.no_grad()(lambda: vae.decode(z).float())


MOMENTS = {"classifier": moments_of_classifier, "vae": moments_of_vae, "dit": moments_of_dit,
           "dpvae": moments_of_dpvae, "videodit": moments_of_videodit, "latte": moments_of_latte}


READ_LATENTS = ("dit", "videodit", "latte")                    # of the cache, with --cached


class Work:
    """What a stage is made of, on one of so many GPUs.

    rows        clips of a micro-batch
    nets        what is trained; frozen: what is not; readers: what reads the captions in the step
    moments     {name: function}
    trained     numbers that learn"""

    def __init__(self, cfg, gpus):
        parts = gpus * cfg.accumulate
        if cfg.batch % parts:
            raise UserError(f"--batch {cfg.batch}: must divide by {gpus} GPUs x {cfg.accumulate} "
                            "micro-batches")
        self.cfg, self.gpus, self.rows = cfg, gpus, cfg.batch // parts
        with torch.device("meta"):
            self.nets, self.frozen, self.moments = MOMENTS[cfg.stage](cfg, self.rows)
            self.readers = text_encoders(cfg)
        if cfg.cached:
            self.moments = {name: moment for name, moment in self.moments.items() if "encoding" not in name}
        self.trained = sum(p.numel() for net in self.nets for p in net.parameters() if p.requires_grad)


# Memory. ASSUMED: 1 GB for the CUDA context and its kernels, 1 GB for NCCL's buffers, and a tenth of
# everything for holes between allocations and the workspace of convolutions. Nobody has measured them here.

def memory(work):
    """{row: bytes of one GPU}, which add up to what it must have, and {moment: bytes}, of which the fullest
    is one of the rows."""
    cfg, gpus, trained, readers = work.cfg, work.gpus, work.trained, work.readers
    with torch.device("meta"):
        for net in work.nets:
            for parameter in net.parameters():              # DDP's buckets: there before, and after
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        peaks = {name: peak_of(moment, cfg.bf16) for name, moment in work.moments.items()}
    if cfg.cached and readers:                              # they come for a preview, one by one
        peaks["a preview's prompts"] = max(weight_bytes([reader]) for reader in readers)
        readers = []
    # All micro-batches of a step lie on the GPU: as bytes, where a frozen VAE makes floats of one at a time.
    pixel_bytes = 3 if cfg.stage in READ_LATENTS else 12
    ranks = gpus if cfg.shard else 1
    parts = {"weights": weight_bytes(work.nets) / ranks, "gradients": 4 * trained / ranks,
             "AdamW's moments": 8 * trained / ranks, "EMA": 4 * trained / ranks,
             "frozen VAE, LPIPS": weight_bytes(work.frozen), "text encoders": weight_bytes(readers),
             "clips of a step": pixel_bytes * loaded_pixels(work)}
    if ranks > 1:
        parts["gathered blocks"] = gathered_bytes(work.nets)
    fullest = max(peaks, key=peaks.get)
    parts[f"{fullest} needs"] = peaks[fullest]
    parts["holes, a tenth"] = 0.1 * sum(parts.values())
    parts["CUDA and kernels"] = GB
    if gpus > 1:
        parts["NCCL's buffers"] = GB
    return {name: size for name, size in parts.items() if size}, peaks


def loaded_pixels(work):
    """Of a step's clips and the images beside them; of latents that are cached: a thousandth, so none."""
    cfg = work.cfg
    if cfg.cached and cfg.stage in READ_LATENTS:
        return 0
    frames = 1 if cfg.stage in ("vae", "dit") else cfg.frames
    return cfg.accumulate * work.rows * (frames + cfg.joint_images) * cfg.size ** 2


def gathered_bytes(nets):
    """--shard, in a step: two blocks and all that is outside of blocks are whole, in float32, and so may be
    their gradients. (At most: with --bf16 a block's products are gathered in half of that.)"""
    blocks = blocks_of(nets[0])
    inside = weight_bytes(blocks)
    return 2 * (weight_bytes(nets) - inside + 2 * inside / len(blocks))


# Hours. FLOPs of a step over what a GPU does of them in a second. ASSUMED: 40 % of the card's peak in
# transformers, which is very good, and 25 % in the convolutions of a VAE; public trainings have less rather
# than more. What --checkpointing computes twice counts twice here: it takes its time. (So 40 % is the
# hardware's share, "HFU"; MFU is then 30 %.)
SHARE = {"network": 0.40, "VAE": 0.25, "encoding": 0.25, "captions": 0.40}


def step_flops(work):
    """{part: FLOPs of one GPU in a step}, the mean of those of clips and of images (VideoDiT A.2)."""
    cfg = work.cfg
    with torch.device("meta"):
        counts = {name: flops_of(moment) for name, moment in work.moments.items()}
        length = 77 if cfg.stage == "videodit" else caption_tokens(cfg)
        ids = torch.zeros(1, length, dtype=torch.long)                                      # (1,L)
        caption = sum(flops_of(lambda: reader(ids)) for reader in work.readers if not trains(cfg, "dit"))
    clips, images = 1.0, 1.0                                # Latte's images are in each step
    if cfg.stage == "videodit":
        clips, images = cfg.p_video, 1 - cfg.p_video
    parts = {"network": clips * counts["a step"] + images * counts.get("a step of images", 0)}
    if cfg.stage in ("vae", "dpvae"):
        parts = {"VAE": counts["a step"]}
    if not cfg.cached:
        parts["encoding"] = clips * counts.get("encoding", 0) + images * counts.get("encoding images", 0)
        parts["captions"] = caption * work.rows * (1 + cfg.joint_images)
    return {name: cfg.accumulate * count for name, count in parts.items() if count}


def hours(work, flops):
    """{part: hours of the whole stage}, of the FLOPs of its steps."""
    steps, peak = work.cfg.steps, peak_of_card(work.cfg)
    return {part: steps * count / (SHARE[part] * peak) / 3600 for part, count in flops.items()}


def peak_of_card(cfg):
    """FLOP/s of an H100, in bf16 or TF32."""
    return 1e12 * PEAKS["H100"] / (1 if cfg.bf16 else 2)


# The floor of a step: what stays if nothing is lost. Products at the card's peak. Then what has to pass
# through its memory once: AdamW, the EMA and the clipping of gradients read and write 12 numbers a trained
# parameter; each micro-batch reads a weight in float32, writes its bf16 copy and reads that twice, and reads
# what is frozen. Data is loaded meanwhile, by --workers (without any, by the process that trains).
# ASSUMED: a core takes 40 ns a pixel to decode, resize and crop, 1 s for 96 frames of 512 x 512; videos that
# are easy to decode take half (22 ns: 1280 x 720 at 25 a second, soft, one core of a Xeon).
BANDWIDTH = 3.35e12         # bytes a second, of an H100's memory
PER_PIXEL = 40e-9           # seconds of a core


def floor(work, flops):
    """{part: seconds}, whose sum no step is shorter than on an H100."""
    cfg, nets = work.cfg, work.nets
    ranks = work.gpus if cfg.shard else 1
    weights = sum(p.numel() for net in nets for p in net.parameters())
    frozen = 0 if cfg.cached else weight_bytes([*work.frozen, *work.readers])
    moved = 4 * 12 * work.trained / ranks + cfg.accumulate * (10 * weights + frozen)
    parts = {"products at the peak": sum(flops.values()) / peak_of_card(cfg),
             "weights and states moved": moved / BANDWIDTH}
    loading = PER_PIXEL * loaded_pixels(work)
    if cfg.stage == "videodit":
        loading *= cfg.p_video                              # a step of images loads next to nothing
    if cfg.workers:
        loading = max(0.0, loading / cfg.workers - sum(parts.values()))
    return parts | {"waiting for data": loading}


# A recipe is printed with the number of cards its authors had. With fewer, --accumulate keeps the batch, and
# with it the learning rate, at the price of time: the same step in more pieces. So the answer names the
# smallest card for a number of them, and where there is none, the two flags that make the step smaller.

def fits(argv):
    """What each stage of a recipe needs of a GPU, the smallest card that has it, and its hours."""
    flags = FlagParser(prog="bench.py fits", description="which card a recipe needs, and for how long; "
                       "computed, no GPU asked")
    flags.add_argument("preset", help="of train.py, such as videodit-512; further flags are train.py's")
    flags.add_argument("--gpus", type=int, default=8)
    args, more = flags.parse_known_args(argv)
    if args.gpus < 1:
        raise UserError(f"--gpus {args.gpus}: must be at least 1")
    cfgs = [cfg for cfg in parse_recipe(["--config", args.preset, *more]) if cfg.stage in MOMENTS]
    if not cfgs:
        raise UserError(f"--stage: give one that trains: {', '.join(MOMENTS)}")
    for cfg in cfgs:
        if cfg.shard and cfg.stage not in READ_LATENTS:
            raise UserError("--shard: is for transformers; give --stage videodit, or --stage latte")
    return {cfg.stage: told(Work(cfg, args.gpus)) for cfg in cfgs}


def told(work):
    """Print a page about a stage; returns {"GB": in all, "hours": in all, "floor": seconds a step}."""
    cfg, gpus = work.cfg, work.gpus
    how = [name for name in ("shard", "checkpointing", "cached", "lora") if getattr(cfg, name)]
    if cfg.checkpointing and cfg.checkpoint_every > 1:
        how.append(f"checkpoint_every {cfg.checkpoint_every}")
    print(f"{cfg.config}, stage {cfg.stage}: {gpus} GPUs x {work.rows} clips x {cfg.accumulate} "
          f"micro-batches, {cfg.frames} frames of {cfg.size} x {cfg.size}", *(f"--{name}" for name in how))
    print("  counting what its steps keep, a minute or more", file=sys.stderr)

    parts, peaks = memory(work)
    for name, size in parts.items():
        print(f"  {name:26s}{size / GB:8.2f} GB")
    total = sum(parts.values()) / GB
    cards = [card for card, usable in CARDS.items() if total <= usable]
    advice = f"fits a card of {cards[0]}" if cards else "fits no card: --accumulate, --checkpointing"
    print(f"  {'in all':26s}{total:8.2f} GB: {advice}")
    print("  the moments: " + ", ".join(f"{name} {size / GB:.2f} GB" for name, size in peaks.items()))

    flops = step_flops(work)
    spent = hours(work, flops)
    for name, time_of in spent.items():
        print(f"  {name:26s}{time_of:8.2f} h: {flops[name] / 1e12:.4g} TFLOP a step, at {SHARE[name]:.0%} "
              "of an H100's peak (assumed)")
    whole = sum(spent.values())
    seconds = 3600 * whole / cfg.steps
    print(f"  {'in all':26s}{whole:8.2f} h: {cfg.steps:,} steps of {seconds:.2g} s, in each of which a GPU "
          f"is given {cfg.batch // gpus} clips")
    if seconds < 0.01:
        print("  so short a step waits for Python, not for products: the hours are too few")

    least = floor(work, flops)
    for name, time_of in least.items():
        print(f"  {name:26s}{time_of:8.3f} s")
    print(f"  {'a step, at least':26s}{sum(least.values()):8.3f} s")

    state = weight_bytes(work.nets) + 12 * work.trained                 # weights, moments, EMA: state.pt
    saved = state + 4 * sum(p.numel() for net in work.nets for p in net.parameters())       # NAME.safetensors
    kept = (1 + cfg.keep) * saved
    print(f"  a save writes {saved / 1e9:.3g} GB; --keep {cfg.keep} has {kept / 1e9:.3g} GB on disk\n")
    return {"GB": total, "hours": whole, "floor": sum(least.values())}


# --------------------------------------------------------------------------------- where a step's time goes
# The rows above time a network. A training step is more: clips are read, frozen networks make latents and
# text of them, the loss is computed, then its gradient, AdamW moves the weights and the EMA follows. What to
# make faster depends on which of these is long, and guesses are mostly wrong. So a stage of train.py runs
# here with a stopwatch around each part, in train.py's own step().
#
#     next(batch) --> [ encode ] [ text ] network, loss --> backward --> clip --> AdamW --> EMA
#        data           inside the forward pass                          rest
#
# Parts lie in one another (encoding is called by the loss), and what an inner one took must not be counted
# twice: each call hands its time up to whoever called it, who leaves it out of his own. What then remains of
# the whole step is "the rest": the gradient's norm, and Python.
# TRAP: a GPU is waited for at each boundary, or the time of a kernel would fall to whoever asks first. So
# the parts are right there, and their sum is more than a step of train.py, which waits for nothing. On a GPU
# data is read while the last step runs, so its share here is an upper bound.

# How to read it. By FLOPs forward to backward is 1 : 2, as above, and so it is in time where products are all
# (Latte-S/2 on a CPU in float32, 1 : 2.0; in bf16, where weights are cast, 1 : 1.8; the toy's step, with its
# small matrices, 1 : 1.2). AdamW and the EMA touch each weight once, whatever the batch: 7 % of the
# toy's step at a batch of 8, 2 % at 48; where they are much, --accumulate. Data over a twentieth of the step:
# --workers, or --cached, which also takes "encode" away: for a Latte-S nine tenths of the step's FLOPs.

PARTS = ["data", "encode", "text", "forward", "backward", "optimizer", "EMA", "the rest"]


class Stopwatch:
    """Seconds by part, each without the parts that were called inside it."""

    def __init__(self, device):
        self.device, self.spent, self.inside = device, Counter(), []

    def around(self, part, function):
        """function, timed."""
        def timed(*args, **kwargs):
            start = clock(self.device)
            self.inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = clock(self.device) - start
                self.spent[part] += took - self.inside.pop()
                if self.inside:
                    self.inside[-1] += took
        return timed


def watched(watch, trainer):
    """Puts the stopwatch around the parts of a step; what it patches outside of `trainer` ends with it.

    From outside, so that train.py and trainer.py stay free of clocks: nothing is measured there that a reader
    of the recipe would have to read past. With --checkpointing, blocks run again inside of "backward"."""
    for learner in trainer.learners.values():
        learner.player.forward = watch.around("forward", learner.player.forward)
        learner.optimizer.step = watch.around("optimizer", learner.optimizer.step)
        learner.update_ema = watch.around("EMA", learner.update_ema)
    patches = contextlib.ExitStack()
    for place, name, part in ((train, "encoded", "encode"), (train, "conditions", "text"),
                              (torch.Tensor, "backward", "backward")):
        patches.enter_context(mock.patch.object(place, name, watch.around(part, getattr(place, name))))
    return patches


def whose_time(cfg, run, steps, warmup=2):
    """{part: ms a step, the mean of `steps`} of a stage. The mean and not the median, because parts are
    to add up to the whole, and because steps differ: one is of clips, the next of images (A.2)."""
    stage = train.RECIPES[cfg.stage](cfg, run)      # encodes what is to be cached: not in the step
    trainer = Trainer(cfg, run, stage)
    watch = Stopwatch(run.device.split(":")[0])
    source = stage.batches(0)
    fetch = watch.around("data", lambda: [next(source) for _ in range(cfg.accumulate)])
    step = watch.around("the rest", lambda: train.step(trainer, fetch()))
    with watched(watch, trainer):
        for count in range(warmup + steps):
            if count == warmup:
                watch.spent.clear()
            step()
    return {part: 1e3 * watch.spent[part] / steps for part in PARTS}


# Nothing of such a run is worth keeping, so it runs in a folder that ends with it. What a stage needs of an
# earlier one comes by --init, as in train.py; the cache of --cached is made before the clock starts, and
# --items keeps that short.

def step_of(argv):
    """Run a few steps of a stage in a folder that is thrown away; print and return {part: ms}."""
    flags = FlagParser(prog="bench.py step", description="where a training step's time goes")
    flags.add_argument("--steps", type=int, default=10, help="of which the mean is printed")
    args, more = flags.parse_known_args(argv)
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    cfgs = parse_recipe(more)
    if len(cfgs) != 1:
        raise UserError(f"--stage: give one that trains: {', '.join(MOMENTS)}")
    cfg, run = cfgs[0], setup()
    with tempfile.TemporaryDirectory() as out:
        spent = whose_time(replace(cfg, out=out), run, args.steps)
    whole = sum(spent.values())
    dtype = "bf16" if cfg.bf16 and has_bf16(run.device) else "fp32"
    source = "cached latents" if cfg.cached else "clips as they come"
    print(f"stage {cfg.stage}, {cfg.batch} x {cfg.frames} x {cfg.size} x {cfg.size}, {dtype}, {source}; "
          f"{run.device}: {whole:.0f} ms a step")
    for part, took in spent.items():
        print(f"  {part:10s}{took:10.1f} ms{took / whole:8.1%}")
    print(json.dumps({"stage": cfg.stage, "ms": spent, "wait": spent["data"] / whole}))
    return spent


# -------------------------------------------------------------------------------------------- command line

def parse(argv):
    flags = FlagParser(prog="bench.py", description="what a step costs; without a model: checks FLOPs",
                       epilog="further: bench.py fits PRESET, memory, card and hours of a recipe; bench.py "
                       "step --config PRESET --stage STAGE, where a step's time goes; --help of each")
    add = flags.add_argument
    add("model", choices=MODELS)
    add("--preset", default="sd3", choices=list(SIZED), help="of everything but Latte")
    add("--frames", type=int, default=0, help="0: 1 (mmdit, vae), 16 (Latte), or the preset's")
    add("--size", type=int, default=0, help="pixels, 8 to one of a latent; 0: 256 (Latte), or the preset's")
    add("--batch", type=int, default=1, help="clips")
    add("--dtype", default="fp32", choices=["fp32", "bf16"], help="bf16: see the top of this file")
    add("--variant", type=int, default=1, help="of Latte (Fig. 2)")
    add("--attention", default="2d->3d", choices=["2d->3d", "2d+3d"], help="of VideoDiT (Table 4)")
    add("--backward", action=argparse.BooleanOptionalAction, default=True, help="training steps too")
    add("--checkpointing", action="store_true", help="recompute blocks in the backward pass")
    add("--compile", action="store_true", help="torch.compile of each block of a transformer")
    add("--steps", type=int, default=5, help="timed runs, of which the median is printed")
    add("--warmup", type=int, default=2, help="runs before those")
    add("--peak", type=finite, default=0.0, help="TFLOP/s for MFU; 0: what the GPU's maker states")
    args = flags.parse_args(argv)
    size, frames = SIZED[args.preset]["size"], SIZED[args.preset]["frames"]
    if args.model.startswith("latte"):
        size, frames = 256, 16
    elif args.model in ("mmdit", "vae"):
        frames = 1
    args.size, args.frames = args.size or size, args.frames or frames
    for name, least in {"batch": 1, "steps": 1, "warmup": 0, "frames": 1}.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {least}")
    if args.size < 16 or args.size % 16:
        raise UserError(f"--size {args.size}: must be a multiple of 16")
    if args.frames % GOP and (args.model == "dpvae" or args.model == "videodit" and args.frames > 1):
        raise UserError(f"--frames {args.frames}: must be a multiple of {GOP}")
    return args


# The table is for people, the line of JSON under it for a script that compares two runs: every flag is in it,
# so that a figure without its settings cannot come about.

def report(args):
    """Measure, print a table, and last a line of JSON; returns what is in that line."""
    device = setup().device.split(":")[0]                       # with TF32 on, as in training
    peak = peak_tflops(args, device)
    params, rows = measure(args, device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.model}: {params:,} parameters; {args.batch} x {args.frames} x {args.size} x {args.size}, "
          f"{args.dtype}; {name}")
    if args.dtype == "bf16" and not has_bf16(device):
        print("this device does not multiply in bf16: train.py and sample.py would stay with fp32")
    print(f"MFU against {peak:g} TFLOP/s" if peak else "no MFU: this device's peak is not known; give --peak")
    print(f"{'':22s}{'ms':>10s}{'clips/s':>10s}{'GFLOP':>12s}{'TFLOP/s':>10s}{'MFU':>8s}{'peak GB':>9s}"
          f"{'of it new':>10s}")
    for row in rows:
        row["mfu"] = row["tflops"] / peak if peak else None
        mfu = f"{row['mfu']:.1%}" if peak else "-"
        print(f"{row['name']:22s}{row['ms']:10.1f}{row['clips_per_s']:10.3g}{row['gflop']:12.1f}"
              f"{row['tflops']:10.3g}{mfu:>8s}{row['peak_gb']:9.2f}{row['new_gb']:10.2f}")
    result = {**vars(args), "device": name, "parameters": params, "peak_tflops": peak, "rows": rows}
    print(json.dumps(result))
    return result


# Who counts the counter? Two things are simple enough to be done by hand: one Linear's training step, which
# is three products, and all of SD3-medium on one image, which is long but only multiplication. If both
# agree to the last digit, then so does whatever is made of the same layers.

# Meta tensors again: SD3-medium is 8 GB of weights, and here it is counted in seconds, without them.
def demo():
    """{what: (FLOPs counted, FLOPs by hand)}: a Linear's step, and SD3-medium's forward on an image."""
    linear = nn.Linear(64, 32, device="meta")
    x = torch.randn(8, 64, device="meta", requires_grad=True)
    step = flops_of(lambda: linear(x).sum().backward())     # y = x W, dx = dy W', dW = x' dy: three products
    image = flops(parse(["mmdit", "--frames", "1", "--size", "512", "--no-backward"]))["forward"]
    return {"a Linear's step": (step, 3 * 2 * 8 * 64 * 32),
            "SD3-medium, 512 x 512": (image, 2 * sd3_products(1024, 154, 1536, 24))}


# The Linears' FLOPs grow with a clip's tokens, attention's with their square. They meet near 6 D = 9,216
# tokens: from there on, who wants longer clips pays for pairs of tokens, not for tokens.
def attention_share(frames):
    """Of the FLOPs of SD3-medium's forward pass over this many latent frames of 512 x 512."""
    args = parse(["mmdit", "--frames", str(frames), "--size", "512", "--no-backward"])
    net, rows = build(args, "meta")
    with FlopCounterMode(display=False) as counter:
        once(args, "cpu", net, rows["forward"], False)
    by_kind = counter.get_flop_counts()["Global"]
    pairs = sum(flop for kind, flop in by_kind.items() if re.search("bmm|attention", str(kind)))
    return pairs / sum(by_kind.values())


# 4 D^2 of attention are q, k, v and the Linear after it; 8 D^2 of the MLP are D to 4D and back; 6 D^2 are
# made once a clip, not once a token, and so are nearly free (published Latte makes them for every frame).

def sd3_products(N, L, D, depth):
    """Multiply-adds of SD3-medium's forward, by hand; only the last block's text stops after q, k and v."""
    attention, mlp, modulation = 4 * D ** 2, 8 * D ** 2, 6 * D ** 2
    tokens = (N * depth + L * (depth - 1)) * (attention + mlp) + L * 3 * D ** 2
    last_text = head = 2 * D ** 2                               # shift and scale alone
    vectors = (2 * depth - 1) * modulation + last_text + head + (256 + D + 2048 + D) * D    # and time, pooled
    ends = N * 64 * D + L * 4096 * D + N * D * 64               # patches in, text in, patches out
    return tokens + vectors + ends + depth * 2 * (N + L) ** 2 * D


def main(argv):
    if not argv:
        for name, (counted, by_hand) in demo().items():
            print(f"{name}: {counted:,} FLOPs counted   (by hand: {by_hand:,})")
        share = attention_share(24)
        print(f"attention at 24 frames of 512 x 512: {share:.0%}   (right: about three quarters)")
    elif argv[0] == "fits":
        fits(argv[1:])
    elif argv[0] == "step":
        step_of(argv[1:])
    else:
        report(parse(argv))


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
