"""bench.py - what a step costs: time, FLOPs, MFU, memory of a recipe's networks; what card it needs.
Paper    sizes: Latte Tables 1, 2, VideoDiT Tables 1, 4; operations: Latte Table 1 alone
         (latte.count_as_printed); neither prints time or memory
Shapes   clips (B,3,T,H,W), latents (B,C,T',h,w) of random numbers: what they cost does not depend on them
Counts   2 FLOPs a multiply-add, counted on the meta device, the same on any machine; for MFU what
         --checkpointing computes twice counts once (else it were HFU)
Differs  grep ASSUMED: nobody has measured here what a GPU needs beside tensors, nor its share of the peak
Reads    after ablate.py; presets.py sizes its networks
Run me   python bench.py                       # CPU, 5 s: FLOPs with a known answer, and attention's share
         python bench.py fits videodit-512 --gpus 8         # what card, for how many hours; no GPU is needed
         python bench.py time videodit-256      # of its steps, measured here; without weights or data
         python bench.py time toy --stage videodit --batch 8 --gpus 1           # the same on a CPU

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
Where it is low, there are three suspects: memory is moved instead of numbers multiplied (norms, copies: small
MFU at full load), Python is too slow to send work (a larger --batch gets more clips a second for nothing), or
the step waits for its data (train.py's steps are much longer than `time` says: --workers, --cached).

Memory is the other half of the budget, and harder: a run that is slow still ends, one that does not fit does
not begin. So every row has its peak, and `fits` finds it without the card."""

from support.cli import FlagParser, UserError, polite    # first: see there

import statistics
import sys
import time
import weakref
from collections import Counter
from dataclasses import replace

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.autograd.graph import _engine_run_backward as run_backward
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import train
from dit import MMDiT, MMDiTConfig
from flow import flow_loss
from latte import Latte
from presets import PRESETS, parse as parse_recipe
from text import CLIPText, CLIPTextConfig, T5Config, T5Encoder, ToyText
from vae import (DPVAE, GOP, KLVAE, SD14, SD3, DPVAEConfig, PatchGAN3D, discriminator_loss, dp_vae_loss,
                 kl_vae_loss)
from videodit import VideoDiT, VideoDiTConfig, add_lora
from support.detectors import LPIPS, AttributeClassifier
from support.ops import conv_layout, has_bf16
from support.trainer import autocast, setup


# ---------------------------------------------------------------------------------------- what is measured
# A stage's step as train.py has it: which networks learn, which are frozen beside them, and the moments of a
# run. It is built on the meta device, where nothing is computed, FLOPs and bytes are counted, and `fits`
# answers; or on a real one, where `time` measures. The two cannot come apart, since they are the same lines;
# a formula for FLOPs on paper, beside the code, goes wrong with the first change of the code.
#
# Inputs and weights are random numbers, and that is honest for time: a product takes as long for noise as for
# a video. (It is not for power: a GPU at its limit clocks higher on zeros. So nothing is measured on zeros.)
#
# What the tables teach, before any of it is run. Let N be a clip's tokens and D the width:
#     Linears      12 N D^2 multiply-adds a block    grow with the clip
#     attention     2 N^2 D                          grows with its square: half of all from N = 6 D on
#     a step       3 forward passes: backward makes two products for each of forward's, one for the gradient
#                  of the input and one for that of the weight
# SD3-medium has D = 1536, and an image of 512 x 512 has 1,024 tokens: attention is a tenth. A clip of 96
# such frames has 24,576, and attention is three quarters: which is why Latte attends along one axis at a time
# and why VideoDiT compresses time fourfold before its transformer sees anything.
#
# Encoding is a moment of its own: under no_grad it keeps nothing, but one clip at full resolution in a VAE is
# large, and a recipe whose step fits may fail there; so is the clip that a preview decodes. The fullest of
# them is what a card must have.

def trains(cfg, stage):
    """Whether the preset trains this network itself, or begins with a published one."""
    return stage in PRESETS[cfg.config]["stages"]


def vae_of(cfg):
    if trains(cfg, "vae"):
        return cfg.vae
    return SD14 if cfg.stage == "latte" and cfg.latents == "vae" else SD3


def video_vae(cfg):
    return DPVAE(DPVAEConfig(**vars(vae_of(cfg))))


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


def pixels(cfg, clips, frames=None):
    """Clips as a network of pixels is given them: one of 96 x 512 x 512 is 0.3 GB."""
    return torch.rand(clips, 3, frames or cfg.frames, cfg.size, cfg.size)                   # (B,3,T,H,W)


def latents(cfg, clips, frames):
    vae = vae_of(cfg)
    side = cfg.size // 2 ** (len(vae.ch_mult) - 1)
    return torch.randn(clips, vae.z_channels, frames, side, side)                           # (B,C,T',h,w)


def random_text(config, tokens, *shape):
    cond = {"context": torch.randn(*shape, tokens, config.context_dim)}                     # (B,L,D)
    if config.pooled_dim:
        cond["pooled"] = torch.randn(*shape, config.pooled_dim)                             # (B,P)
    return cond


# Each function below gives the trained networks, the frozen ones, and {moment: function}, of one micro-batch
# of `rows` clips. What a moment is given lies outside of it and is a row of its own, "clips copied a step".

def backward(loss):
    return lambda: loss().backward()


def moments_of_classifier(cfg, rows):
    net, x = AttributeClassifier(cfg.classifier), pixels(cfg, rows)
    return [net], [], {"a step": backward(lambda: sum(logits.float().mean() for logits in net(x).values()))}


def moments_of_vae(cfg, rows):
    net, x, noise = KLVAE(vae_of(cfg)), pixels(cfg, rows, 1), latents(cfg, rows, 1)
    return [net], [], {"a step": backward(lambda: kl_vae_loss(net, x, noise)[0])}


def moments_of_dit(cfg, rows):
    net, text, vae = MMDiT(cfg.dit), ToyText(cfg.text), KLVAE(vae_of(cfg))
    player = train.transformer_player(cfg, {"dit": net, "text": text}, None, net.joint_blocks)
    return [player], [vae], {"a step": flow_step(cfg, net, rows, 1), "encoding": encoding(cfg, vae, rows, 1)}


def moments_of_dpvae(cfg, rows):
    """A game of two, in one moment. (The preview keeps no gradient: it is far below that.)"""
    dp, disc, vgg, x = video_vae(cfg), PatchGAN3D(cfg.disc), LPIPS("vgg"), pixels(cfg, rows)
    dp.residual.checkpointing = dp.decoder.checkpointing = cfg.checkpointing
    lpips_weight = 0.0 if trains(cfg, "classifier") else cfg.lpips_weight      # small, in VGG's place: not counted

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
    if cfg.lora:
        add_lora(net, cfg.lora, torch.bfloat16 if cfg.bf16 else torch.float32)
    blocks = [*net.image.joint_blocks, *(net.copies or ())]
    player = train.transformer_player(cfg, {"videodit": net}, None, blocks)
    dp = video_vae(cfg)
    moments = {"a step": flow_step(cfg, net, rows, cfg.frames // GOP),
               "encoding": encoding(cfg, dp, rows), "a preview": preview(cfg, dp, cfg.frames // GOP)}
    if cfg.p_video < 1:
        moments |= {"a step of images": flow_step(cfg, net, rows, 1),
                    "encoding images": encoding(cfg, dp, rows, 1)}
    return [player], [dp], moments


def moments_of_latte(cfg, rows):
    """With the images of joint training as further frames. The loss is a stand-in of the same shape: what
    L_vlb keeps is a few latents, little beside what the blocks keep."""
    net = Latte(cfg.latte)
    player = train.transformer_player(cfg, {"latte": net}, None, net.blocks)
    vae, frames = KLVAE(vae_of(cfg)), cfg.frames
    if cfg.latents == "dpvae":
        vae, frames = video_vae(cfg), cfg.frames // GOP
    images = cfg.joint_images
    z = latents(cfg, rows, frames + images)                                                 # (B,C,T'+M,h,w)
    shape = (rows, 1 + images) if images else (rows,)           # what is told of a clip, and of its images
    cond = {}
    if cfg.latte.condition == "class":
        cond["labels"] = torch.zeros(shape, dtype=torch.long)
    elif cfg.latte.condition == "text":
        cond = random_text(cfg.latte, caption_tokens(cfg), *shape)
    t = torch.zeros(rows, dtype=torch.long)
    moments = {"a step": backward(lambda: net(z, t, images=images, **cond).float().square().mean()),
               "encoding": encoding(cfg, vae, rows), "a preview": preview(cfg, vae, frames)}
    if images:
        moments["encoding images"] = encoding(cfg, vae, rows * images, 1)
    return [player], [vae], moments


def flow_step(cfg, net, rows, frames):
    """VideoDiT Eq. 5; it draws times and noise, as a step does. The text encoders answer before it, and keep
    nothing."""
    z, cond = latents(cfg, rows, frames), random_text(cfg.dit, caption_tokens(cfg), rows)
    return backward(lambda: flow_loss(net, z, cond, t=torch.rand(rows, device=z.device),
                                      noise=torch.randn_like(z)))


def encoding(cfg, vae, clips, frames=None):
    x = (255 * pixels(cfg, clips, frames)).to(torch.uint8)                                  # (B,3,T,H,W)
    return lambda: train.encoded(vae, x)


def preview(cfg, vae, frames):
    """sample.decode has one clip at a time."""
    z = latents(cfg, 1, frames)                                                             # (1,C,T',h,w)
    return torch.no_grad()(lambda: vae.decode(z).float())


MOMENTS = {"classifier": moments_of_classifier, "vae": moments_of_vae, "dit": moments_of_dit,
           "dpvae": moments_of_dpvae, "videodit": moments_of_videodit, "latte": moments_of_latte}


READ_LATENTS = ("dit", "videodit", "latte")                    # of the cache, with --cached


class Work:
    """What a stage is made of, on one of so many GPUs.

    rows        clips of a micro-batch; ranks: over how many GPUs --shard spreads what is at rest
    nets        what is trained; frozen: what is not; readers: what reads the captions (on meta alone)
    moments     {name: function}
    numbers     in nets; trained: those that learn"""

    def __init__(self, cfg, gpus, device="meta"):
        parts = gpus * cfg.accumulate
        if cfg.batch % parts:
            raise UserError(f"--batch {cfg.batch}: must divide by {gpus} GPUs, --accumulate {cfg.accumulate}")
        cfg = replace(cfg, compile=cfg.compile and device != "meta")
        self.cfg, self.gpus, self.rows = cfg, gpus, cfg.batch // parts
        self.ranks = gpus if cfg.shard else 1
        with torch.device(device):
            self.readers = text_encoders(cfg) if device == "meta" else []
            nets, frozen, self.moments = MOMENTS[cfg.stage](cfg, self.rows)
        self.nets, self.frozen = nn.ModuleList(nets), nn.ModuleList(frozen).requires_grad_(False)
        for net in [*nets, *frozen]:
            if isinstance(net, (KLVAE, DPVAE)):
                net.to(memory_format=conv_layout(device))
        if cfg.cached:
            self.moments = {name: moment for name, moment in self.moments.items() if "encoding" not in name}
        self.trained = sum(p.numel() for p in self.nets.parameters() if p.requires_grad)
        self.numbers = sum(p.numel() for p in self.nets.parameters())


def weight_bytes(nets):
    return sum(p.numel() * p.element_size() for net in nets for p in net.parameters())


def flops_of(function):
    """FLOPs of function() on the meta device, where attention is products that can be counted. What is not a
    product (norms, GELU, softmax) counts as nothing: it is below a hundredth of the arithmetic, though not of
    the time."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


# -------------------------------------------------------------------------------------- how it is measured

# Four ways to measure a step wrongly, all of them easy:
#   * the first run: memory is allocated, kernels are chosen and compiled. So the first two are not counted
#   * the mean: one interruption by another program, and it is off. The median does not see it
#   * not waiting for the GPU: a kernel is sent, not run, when the call returns; one then measures Python.
#     So clock() waits, before and after
#   * counting what --checkpointing computes a second time as work done. It is the price of memory, and the
#     model has not become larger by it. With it one would report HFU, which rises when a run gets slower
# The fifth has no cure here: a processor that others use as well. Compare two things in one run, in turn.

def measured(cfg, gpus, runs):
    """Print a stage's moments on this machine, with random weights: forward and backward of a micro-batch, as
    one of so many GPUs has it, and what stands beside it. "new GB" is a GPU's, beside weights and inputs."""
    run = setup()                                               # with TF32 on, as in training
    device = run.device.split(":")[0]
    cfg = replace(cfg, bf16=cfg.bf16 and has_bf16(device))
    counted, work = Work(replace(cfg, checkpointing=False), gpus), Work(cfg, gpus, device)
    machine = torch.cuda.get_device_name() if run.on_cuda else device
    peak = peak_flops(cfg, machine)                             # 0 where no maker states one: then no MFU
    print(f"{cfg.config}, stage {cfg.stage}: {work.rows} x {cfg.frames} x {cfg.size} x {cfg.size}, "
          f"{'bf16' if cfg.bf16 else 'fp32'}; {machine}")
    print(f"{'':18s}{'ms':>10s}{'GFLOP':>12s}{'TFLOP/s':>10s}{'MFU':>8s}{'new GB':>9s}")
    for name, moment in work.moments.items():
        held, times = 0, []
        if run.on_cuda:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()        # what was there before: weights, inputs
        for _ in range(2 + runs):
            start = clock()
            with autocast(cfg, run):
                moment()
            work.nets.zero_grad()                       # a step that finds the last one's would add to them
            times.append(clock() - start)
        seconds = statistics.median(times[2:])
        flops = flops_of(counted.moments[name])
        mfu = f"{flops / seconds / peak:.1%}" if peak else "-"
        new = f"{(torch.cuda.max_memory_allocated() - held) / GB:.2f}" if run.on_cuda else "-"
        print(f"{name:18s}{1e3 * seconds:10.1f}{flops / 1e9:12.1f}{flops / seconds / 1e12:10.3g}{mfu:>8s}"
              f"{new:>9s}")


def clock():
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


# The peak is what the maker prints for dense products, and nobody reaches it (FlashAttention 3's paper: 756
# of 989 on an H100). It is used all the same: everybody knows it. TRAP: the first number in an advert is
# often the one "with sparsity", twice as large, and of no use here.
PEAKS = {"A100": 312, "H100": 989, "H200": 989}         # TFLOP/s, dense bf16; TF32, for fp32, is half of it


def peak_flops(cfg, card):
    """FLOP/s of a GPU as its maker states them, in bf16 or TF32; 0 where that is not known."""
    peak = next((peak for known, peak in PEAKS.items() if known in card), 0)
    return 1e12 * peak / (1 if cfg.bf16 else 2)


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
DTYPES = dict.fromkeys((
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, torch.matmul, torch.bmm, torch.addmm,
    torch.Tensor.__matmul__, torch.Tensor.matmul, F.scaled_dot_product_attention), torch.bfloat16)
DTYPES |= dict.fromkeys((
    F.layer_norm, F.group_norm, F.rms_norm, F.softmax, torch.softmax, torch.Tensor.softmax, F.mse_loss,
    F.l1_loss, torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.pow, torch.pow), torch.float32)


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
        kwargs = kwargs or {}
        if func is torch.Tensor.backward:               # checkpointed blocks run again inside: under us, too
            with self:                                  # (backward() itself would come back to us, for ever)
                return run_backward(args[:1], (torch.ones_like(args[0]),), False, False, (),
                                    allow_unreachable=True, accumulate_grad=True)
        # A place that turns autocast off: dit.AdaLN, whose weights then have no copy. The meta device has no
        # switch of its own; nothing here runs on the CPU, so its switch tells this mode what meta cannot.
        if func in DTYPES and torch.is_autocast_enabled("cpu"):
            args = tuple(self.cast(value, DTYPES[func]) for value in args)
            kwargs = {key: self.cast(value, DTYPES[func]) for key, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            func = flash
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

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for storage in storages(out) - storages((args, kwargs)):        # no views, no gradients added
            self.add(storage.nbytes())
            weakref.finalize(storage, self.add, -storage.nbytes())
        return out

    def add(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)


def storages(tree):
    """Of all tensors in nested tuples, lists and dicts."""
    return {leaf.untyped_storage() for leaf in torch.utils._pytree.tree_leaves(tree) if torch.is_tensor(leaf)}


# Attention would be the whole of it if its scores were kept: 24,576 tokens squared, in 24 heads, are 29 GB
# for one block. The fused kernels ("flash") go through them in tiles and forget each tile. Only so is 3D
# attention over a clip possible; so the meta device must run their shapes, not the plain formula's.

def flash(q, k, v, attn_mask=None):
    """The fused kernels a GPU takes: softmax's sums are kept for the backward pass, the scores are not."""
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    bias = attn_mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)[0]


def peak_of(function, bf16=True):
    """Bytes that function() needs at its fullest, beside what stood there before."""
    with Memory() as memory, Autocast(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        function()
    return memory.peak


# Memory. ASSUMED: 1 GB for the CUDA context and its kernels, 1 GB for NCCL's buffers, and a tenth of
# everything for holes between allocations and the workspace of convolutions. Nobody has measured them here.

def memory(work):
    """{row: bytes of one GPU}, which add up to what it must have, and {moment: bytes}, of which the fullest
    is one of the rows."""
    cfg, ranks, trained, readers = work.cfg, work.ranks, work.trained, work.readers
    with torch.device("meta"):
        for parameter in work.nets.parameters():            # DDP's buckets: there before, and after
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        peaks = {name: peak_of(moment, cfg.bf16) for name, moment in work.moments.items()}
    if cfg.cached and readers:                              # they come for a preview, one by one
        peaks["a preview's prompts"] = max(weight_bytes([reader]) for reader in readers)
        readers = []
    # All micro-batches of a step lie on the GPU: as bytes, where a frozen VAE makes floats of one at a time.
    pixel_bytes = 3 if cfg.stage in READ_LATENTS else 12
    parts = {"weights": weight_bytes(work.nets) / ranks, "gradients": 4 * trained / ranks,
             "AdamW's moments": 8 * trained / ranks, "EMA": 4 * trained / ranks,
             "frozen VAE, LPIPS": weight_bytes(work.frozen), "text encoders": weight_bytes(readers),
             "clips copied a step": pixel_bytes * loaded_pixels(work)}
    if ranks > 1:
        parts["gathered blocks"] = gathered_bytes(work.nets)
    fullest = max(peaks, key=peaks.get)
    parts[f"{fullest} needs"] = peaks[fullest]
    parts["holes, a tenth"] = 0.1 * sum(parts.values())
    parts["CUDA and kernels"] = GB
    if work.gpus > 1:
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
    blocks = nets[0].blocks
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
        counts = Counter({name: flops_of(moment) for name, moment in work.moments.items()})
        ids = torch.zeros(1, 77 if cfg.stage == "videodit" else caption_tokens(cfg), dtype=torch.long)
        caption = sum(flops_of(lambda: reader(ids)) for reader in work.readers if not trains(cfg, "dit"))
    clips, images = 1.0, 1.0                                # Latte's images are in each step
    if cfg.stage == "videodit":
        clips, images = cfg.p_video, 1 - cfg.p_video
    trained = "VAE" if cfg.stage in ("vae", "dpvae") else "network"
    parts = {trained: clips * counts["a step"] + images * counts["a step of images"],
             "encoding": clips * counts["encoding"] + images * counts["encoding images"]}
    if not cfg.cached:
        parts["captions"] = caption * work.rows * (1 + cfg.joint_images)
    return {name: cfg.accumulate * count for name, count in parts.items() if count}


def hours(work, flops):
    """{part: hours of the whole stage}, of the FLOPs of its steps."""
    steps, peak = work.cfg.steps, peak_flops(work.cfg, "H100")
    return {part: steps * count / (SHARE[part] * peak) / 3600 for part, count in flops.items()}


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
    cfg = work.cfg
    frozen = 0 if cfg.cached else weight_bytes([*work.frozen, *work.readers])
    moved = 4 * 12 * work.trained / work.ranks + cfg.accumulate * (10 * work.numbers + frozen)
    parts = {"products at the peak": sum(flops.values()) / peak_flops(cfg, "H100"),
             "weights and states moved": moved / BANDWIDTH}
    loading = PER_PIXEL * loaded_pixels(work)
    if cfg.stage == "videodit":
        loading *= cfg.p_video                              # a step of images loads next to nothing
    if cfg.workers:
        loading = max(0.0, loading / cfg.workers - sum(parts.values()))
    return parts | {"waiting for data": loading}


# --compile turns Python into a graph, a minute of compiling each at the start of a run: one for each kind of
# block (the last one of SD3 has less text) and of step (clips, images), not one for each block.
def graphs(work):
    """How many of them a stage's steps need. Its blocks stay compiled, so this comes last."""
    torch._dynamo.reset()
    counters.clear()
    for block in work.nets[0].blocks:
        block.compile(backend="eager")
    for name, moment in work.moments.items():
        if name.startswith("a step"):
            moment()
    return counters["stats"]["unique_graphs"]


# A recipe is printed with the number of cards its authors had. With fewer, --accumulate keeps the batch, and
# with it the learning rate, at the price of time: the same step in more pieces. So the answer names the
# smallest card for a number of them, and where there is none, the two flags that make the step smaller.

def fits(cfg, gpus):
    """Print what a stage needs of a GPU, the smallest card that has it, and its hours; returns {"GB": in all,
    "hours": in all, "floor": seconds a step}."""
    if cfg.shard and cfg.stage not in READ_LATENTS:
        raise UserError("--shard: is for transformers; give --stage videodit, or --stage latte")
    work = Work(cfg, gpus)
    print(f"{cfg.config}, stage {cfg.stage}: {gpus} GPUs x {work.rows} clips x {cfg.accumulate} "
          f"micro-batches, {cfg.frames} frames of {cfg.size} x {cfg.size}")
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
    print(f"  {'in all':26s}{whole:8.2f} h: {cfg.steps:,} steps of {3600 * whole / cfg.steps:.2g} s, in each "
          f"of which a GPU is given {cfg.batch // gpus} clips")

    least = floor(work, flops)
    for name, time_of in least.items():
        print(f"  {name:26s}{time_of:8.3f} s")
    print(f"  {'a step, at least':26s}{sum(least.values()):8.3f} s")

    ema = 4 * work.numbers                                                      # NAME.safetensors
    saved = weight_bytes(work.nets) + 12 * work.trained + ema                   # and state.pt
    on_disk = saved if cfg.keep == 0 else 2 * saved + (cfg.keep - 1) * ema      # see trainer.keep
    print(f"  a save writes {saved / 1e9:.3g} GB; --keep {cfg.keep} has {on_disk / 1e9:.3g} GB on disk")
    if cfg.compile and cfg.stage in READ_LATENTS:
        print(f"  --compile makes {graphs(work)} graphs of its blocks")
    print()
    return {"GB": total, "hours": whole, "floor": sum(least.values())}


# -------------------------------------------------------------------------------------------- command line

# Who counts the counter? Two things are simple enough to be done by hand: one Linear's training step, which
# is three products, and all of SD3-medium on one image, which is long but only multiplication. If both
# agree to the last digit, then so does whatever is made of the same layers.

# Meta tensors again: SD3-medium is 8 GB of weights, and here it is counted in seconds, without them.
def demo():
    """{what: (FLOPs counted, FLOPs by hand)}: a Linear's step, and SD3-medium's forward on an image."""
    linear = nn.Linear(64, 32, device="meta")
    x = torch.randn(8, 64, device="meta", requires_grad=True)
    step = flops_of(lambda: linear(x).sum().backward())     # y = x W, dx = dy W', dW = x' dy: three products
    return {"a Linear's step": (step, 3 * 2 * 8 * 64 * 32),
            "SD3-medium, 512 x 512": (sum(sd3_flops(1).values()), 2 * sd3_products(1024, 154, 1536, 24))}


def sd3_flops(frames):
    """{operation: FLOPs} of SD3-medium's forward pass over this many latent frames of 512 x 512."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = MMDiT(MMDiTConfig())
        net(torch.randn(1, 16, frames, 64, 64), torch.rand(1), **random_text(net.config, 154, 1))
    return counter.get_flop_counts()["Global"]


# The Linears' FLOPs grow with a clip's tokens, attention's with their square. They meet near 6 D = 9,216
# tokens: from there on, who wants longer clips pays for pairs of tokens, not for tokens.
def attention_share(frames):
    counts = sd3_flops(frames)
    pairs = sum(flop for kind, flop in counts.items() if "bmm" in str(kind) or "attention" in str(kind))
    return pairs / sum(counts.values())


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
        return print(f"attention at 24 frames of 512 x 512: {attention_share(24):.0%}   "
                     "(right: about three quarters)")
    flags = FlagParser(prog="bench.py", usage="bench.py [fits | time] PRESET [--stage STAGE] [flags]",
                       description="fits: the card that a recipe needs, and for how long; computed, no GPU "
                       "asked. time: how long a step takes on this machine. "
                       "Nothing: checks the count of FLOPs. Further flags are train.py's.")
    flags.add_argument("command", choices=["fits", "time"])
    flags.add_argument("--gpus", type=int, default=8, help="of how many this is one")
    flags.add_argument("--runs", type=int, default=5, help="time: how many are measured")
    args, more = flags.parse_known_args(argv)
    if args.gpus < 1 or args.runs < 1:
        raise UserError(f"--gpus {args.gpus}, --runs {args.runs}: must be at least 1")
    if more and not more[0].startswith("-"):
        more = ["--config", *more]
    cfgs = parse_recipe(more)
    if args.command == "fits":
        return {cfg.stage: fits(cfg, args.gpus) for cfg in cfgs}
    return {cfg.stage: measured(cfg, args.gpus, args.runs) for cfg in cfgs}


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
