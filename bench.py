"""bench.py - what a step costs: time, FLOPs, MFU, memory of every network; clips a second of data and I3D.
Paper    Latte Tables 1, 2 and VideoDiT 4.1 say how large the networks are, neither what they cost to run
Shapes   clips (B,3,T,H,W), latents (B,C,T',h,w) of random numbers: what they cost does not depend on them
Counts   2 FLOPs a multiply-add, counted on the meta device, the same on any machine; what --checkpointing
         computes twice counts once: MFU, not HFU. Milliseconds are the median of --steps runs
Differs  bf16 is train.py's autocast over float32 weights; with --no-backward, as in sample.py, bf16 weights
Reads    last, after ablate.py; presets.py sizes its networks
Run me   python bench.py                                        # CPU, 5 s: FLOPs with a known answer
         python bench.py latte-S/2 --frames 16 --size 256 --dtype bf16      # a training step; or fp32
         python bench.py dpvae --preset toy --frames 96 --no-backward       # does length cost memory?
         python bench.py videodit --frames 96 --size 512 --dtype bf16 --no-backward     # SD3's size: a GPU"""

import argparse
import contextlib
import json
import re
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from checkpoint import FlagParser, UserError, polite
from data import batches, open_source
from dit import MMDiT, MMDiTConfig
from features import I3D
from flow import DDPM, ddpm_loss, flow_loss
from latte import SIZES, Latte, LatteConfig
from loop import setup
from presets import PRESETS
from vae import DPVAE, GOP, KLVAE, SD3, DPVAEConfig, dp_vae_loss, kl_vae_loss
from videodit import VideoDiT, VideoDiTConfig

PEAKS = {"A100": 312, "H100": 989, "H200": 989}         # TFLOP/s, dense bf16; TF32, for fp32, is half of it
MODELS = [*(f"latte-{size}/2" for size in SIZES), "mmdit", "videodit", "vae", "dpvae", "data", "i3d"]


# ---------------------------------------------------------------------------------------- what is measured
# A bench is the networks and {name: function that does it once}. It is built twice: on the meta device, where
# nothing is computed and FLOPs are counted, and on the real one.

def bench_latte(args, device):
    """Unconditional, as the published code was measured; the loss is Latte 3.1's L_simple + L_vlb."""
    size, patch = re.fullmatch(r"latte-(\w+)/(\d)", args.model).groups()
    side = args.size // 8
    config = LatteConfig(args.variant, **SIZES[size], patch=int(patch), frames=args.frames, input_size=side)
    net, ddpm = Latte(config), DDPM()
    z, noise = torch.randn(2, args.batch, config.in_channels, args.frames, side, side)      # (B,C,T,h,w) each
    t = torch.randint(1000, (args.batch,))
    return prepared(args, net, net.blocks), trained(
        args, net, lambda: net(z, t), lambda: ddpm_loss(ddpm, net, z, {}, t=t, noise=noise))


def bench_mmdit(args, device):
    """SD3's transformer on a picture, or on --frames of them at once (VideoDiT Fig. 2)."""
    config = MMDiTConfig() if args.preset == "sd3" else PRESETS[args.preset]["dit"]
    net = MMDiT(config)
    return prepared(args, net, net.joint_blocks), rectified_flow(args, net, config, args.frames)


def bench_videodit(args, device):
    config = VideoDiTConfig(**vars(MMDiTConfig() if args.preset == "sd3" else PRESETS[args.preset]["dit"]),
                            attention=args.attention)
    net = VideoDiT(config)
    latent_frames = args.frames if args.frames == 1 else args.frames // GOP
    return prepared(args, net, net.image.joint_blocks), rectified_flow(args, net, config, latent_frames)


def rectified_flow(args, net, config, frames):
    """VideoDiT Eq. 5, with as many text tokens as SD3's 77 + 77, or the toy's 12."""
    tokens, side = 154 if args.preset == "sd3" else PRESETS[args.preset]["text"].length, args.size // 8
    z, noise = torch.randn(2, args.batch, config.in_channels, frames, side, side)       # (B,C,T',h,w) each
    cond = {"context": torch.randn(args.batch, tokens, config.context_dim),
            "pooled": torch.randn(args.batch, config.pooled_dim)}
    t = torch.rand(args.batch)
    return trained(args, net, lambda: net(z, t, **cond), lambda: flow_loss(net, z, cond, t=t, noise=noise))


def bench_vae(args, device):
    net = KLVAE(vae_config(args)).to(memory_format=torch.channels_last)
    x, side = torch.rand(args.batch, 3, args.frames, args.size, args.size), args.size // 8
    z = torch.randn(args.batch, net.config.z_channels, args.frames, side, side)
    rows = {"encode": lambda: net.encode(x), "decode": lambda: net.decode(z)}
    return net, rows | trained(args, net, None, lambda: kl_vae_loss(net, x, z)[0])


def bench_dpvae(args, device):
    """A long clip is decoded window by window: its peak is to stay near that of one window. The training step
    is that of Eq. 2 and 3, without LPIPS and adversary."""
    net = DPVAE(DPVAEConfig(**vars(vae_config(args)))).to(memory_format=torch.channels_last)
    net.residual.checkpointing = net.decoder.checkpointing = args.checkpointing
    x = torch.rand(args.batch, 3, args.frames, args.size, args.size)
    side, window = args.size // 8, net.config.window
    z, rows = torch.randn(args.batch, net.config.z_channels, args.frames // GOP, side, side), {}
    if args.frames > window:
        rows[f"decode {window} frames"] = lambda: net.decode(z[:, :, :window // GOP])
    rows |= {f"decode {args.frames} frames": lambda: net.decode(z), "encode": lambda: net.encode(x)}
    clip = x[:, :, :window]                                     # a training step is never longer
    return net, rows | trained(args, net, None, lambda: dp_vae_loss(net, clip)[0])


def bench_i3d(args, device):
    """The network alone: what `eval.py fvd` cannot be faster than."""
    net, x = I3D(), torch.rand(args.batch, 3, args.frames, args.size, args.size)
    return net, {"logits": lambda: net(x)}


def bench_data(args, device):
    """Clips as training gets them: rendered or decoded, cut, collated."""
    source = batches(open_source(args.data, args.frames, args.size), args.batch, workers=args.workers)
    return nn.Module(), {"batch": lambda: next(source)}


BENCHES = {"latte": bench_latte, "mmdit": bench_mmdit, "videodit": bench_videodit, "vae": bench_vae,
           "dpvae": bench_dpvae, "i3d": bench_i3d, "data": bench_data}


def vae_config(args):
    return SD3 if args.preset == "sd3" else PRESETS[args.preset]["vae"]


def prepared(args, net, blocks):
    net.checkpointing = args.checkpointing
    if args.compile:
        for block in blocks:                                    # block by block, as train.py does
            block.compile()
    return net


def trained(args, net, forward, loss):
    """The rows of a network: forward alone, then a step without and with its optimizer."""
    rows = {} if forward is None else {"forward": forward}
    if not args.backward:
        return rows
    learning = []                                               # made at the first step: its state is memory

    def backward():
        loss().backward()

    def step():
        if not learning:
            trainable = [p for p in net.parameters() if p.requires_grad]
            learning.append(torch.optim.AdamW(trainable, 1e-4, fused=True))
        backward()
        learning[0].step()

    return rows | {"forward + backward": backward, "and AdamW": step}


# -------------------------------------------------------------------------------------- how it is measured

def build(args, device):
    """A bench on `device`; everything in it, weights and inputs, is made there."""
    name = "latte" if args.model.startswith("latte") else args.model
    place = contextlib.nullcontext() if name == "data" else torch.device(device)
    with place:
        net, rows = BENCHES[name](args, device)
    return (net.bfloat16() if args.dtype == "bf16" and not args.backward else net), rows


def once(args, device, net, function, training):
    """One run, under train.py's autocast or sample.py's no_grad."""
    fast = torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bf16")
    with torch.set_grad_enabled(training), fast:
        function()
    net.zero_grad(set_to_none=True)


def flops(args):
    """{row: FLOPs of one run}. On the meta device attention is products that can be counted; a CPU's fused
    kernel is not in torch's list, and would count as nothing."""
    if args.model == "data":
        return {"batch": 0}
    plain = argparse.Namespace(**{**vars(args), "compile": False, "checkpointing": False, "dtype": "fp32"})
    net, rows = build(plain, "meta")
    counts = {}
    for name, function in rows.items():
        if name == "and AdamW":                                 # a few for each weight: nothing
            counts[name] = counts["forward + backward"]
            continue
        with FlopCounterMode(display=False) as counter:
            once(plain, "cpu", net, function, "backward" in name)
        counts[name] = counter.get_total_flops()
    return counts


def measure(args, device):
    """Parameters, and for each row of the bench {name, ms, clips_per_s, gflop, tflops, peak_gb, new_gb}."""
    counted, (net, rows), results = flops(args), build(args, device), []
    for name, function in rows.items():
        reset_peak(device)
        held, times = peak_memory(device), []           # what was there before: weights, inputs, Python
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
    return time.perf_counter()


# /proc: getrusage's peak is that of the whole process so far, and cannot be set back.
def reset_peak(device):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device):
    """Bytes since reset_peak: allocated on the GPU, or resident in memory, Python and torch included."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if Path("/proc/self/status").exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_tflops(args, device):
    """What MFU is measured against: --peak, or what this GPU's maker states; None where nobody says."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    known = args.peak.upper() or next((known for known in PEAKS if known in name), "")
    if known in PEAKS:
        return PEAKS[known] / (1 if args.dtype == "bf16" else 2)
    try:
        return float(known) if known else None
    except ValueError:
        raise UserError(f"--peak {known}: give TFLOP/s, or one of {', '.join(PEAKS)}")


# -------------------------------------------------------------------------------------------- command line

def parse(argv):
    flags = FlagParser(prog="bench.py", description="what a step costs; without a model: checks FLOPs")
    add = flags.add_argument
    add("model", choices=MODELS)
    add("--preset", default="sd3", choices=["tiny", "toy", "sd3"], help="of everything but Latte")
    add("--frames", type=int, default=0, help="0: 1 (mmdit, vae), 16 (Latte, i3d, data), or the preset's")
    add("--size", type=int, default=0, help="pixels, 8 to one of a latent; 0: 64 (data), 256, or preset's")
    add("--batch", type=int, default=1, help="clips")
    add("--dtype", default="fp32", choices=["fp32", "bf16"], help="bf16: see the top of this file")
    add("--variant", type=int, default=1, choices=[1, 2, 3, 4], help="of Latte (Fig. 2)")
    add("--attention", default="2d->3d", choices=["2d->3d", "2d+3d"], help="of VideoDiT (Table 4)")
    add("--backward", action=argparse.BooleanOptionalAction, default=True, help="training steps too")
    add("--checkpointing", action="store_true", help="recompute blocks in the backward pass")
    add("--compile", action="store_true", help="torch.compile of each block of a transformer")
    add("--data", default="toy", help="for `data`: toy, or a folder of films")
    add("--workers", type=int, default=0, help="for `data`: processes")
    add("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    add("--steps", type=int, default=5, help="timed runs, of which the median is printed")
    add("--warmup", type=int, default=2, help="runs before those")
    add("--peak", default="", help="TFLOP/s for MFU, or " + ", ".join(PEAKS))
    args = flags.parse_args(argv)
    preset = PRESETS.get(args.preset, {"frames": 32, "size": 256})
    frames = {"mmdit": 1, "vae": 1, "dpvae": preset["frames"], "videodit": preset["frames"]}
    sizes = {"data": 64, "mmdit": preset["size"], "vae": preset["size"], "dpvae": preset["size"],
             "videodit": preset["size"]}
    args.frames = args.frames or frames.get(args.model, 16)
    args.size = args.size or sizes.get(args.model, 256)
    for name, least in {"batch": 1, "steps": 1, "warmup": 0, "workers": 0, "threads": 0, "frames": 1}.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {least}")
    if args.size < 16 or args.size % 16:
        raise UserError(f"--size {args.size}: must be a multiple of 16")
    if args.frames % GOP and (args.model == "dpvae" or args.model == "videodit" and args.frames > 1):
        raise UserError(f"--frames {args.frames}: must be a multiple of {GOP}")
    return args


def report(args):
    """Measure, print a table, and last a line of JSON; returns what is in that line."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = setup().device.split(":")[0]                       # with TF32 on, as in training
    peak = peak_tflops(args, device)
    params, rows = measure(args, device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.model}: {params:,} parameters; {args.batch} x {args.frames} x {args.size} x {args.size}, "
          f"{args.dtype}; {name}")
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


def demo():
    """{what: (FLOPs counted, FLOPs by hand)}: a Linear's step, and SD3-medium's forward on a picture."""
    linear, x = nn.Linear(64, 32, device="meta"), torch.randn(8, 64, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        linear(x).sum().backward()                      # y = x W, dx = dy W', dW = x' dy: three products
    picture = flops(parse(["mmdit", "--frames", "1", "--size", "512", "--no-backward"]))["forward"]
    return {"a Linear's step": (counter.get_total_flops(), 3 * 2 * 8 * 64 * 32),
            "SD3-medium, 512 x 512": (picture, 2 * sd3_products(1024, 154, 1536, 24))}


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
    else:
        report(parse(argv))


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
