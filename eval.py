"""eval.py - what a model is worth: PSNR, SSIM, LPIPS, FVD, FID, IS, and the toy world's prompt score.
Paper    VideoDiT 4.1-4.2 (reconstruction; UCF101, on which it never trained, "zero-shot"), Latte 4.1 (FVD
         over 2,048 clips of 16 frames)
Shapes   video (B,3,T,H,W) in [-1,1]; features (N,R,F): N clips, R rows a clip
         (1 for FVD, T for FID), F features
Numbers  distances are computed in float64; each is printed with its whole protocol and a standard error
Differs  papers print a distance and nothing else; and no clip counts twice on several GPUs, as it does in
         published samplers. grep DEVIATES, ASSUMED
Reads    after sample.py, before presets.py; which pixels are compared: support/eval_clips.py
Run me   python eval.py COMMAND ..., each with its own --help:

  toy                    the toy's checkpoint: does it obey prompts, how near is it to what can be drawn
  sample CKPT -o DIR     make the clips that the next three look at; again, it goes on
  fvd REAL FAKE          Frechet distance of two sets of clips, by I3D; fid: of their frames, by Inception
  is FAKE                Inception Score of clips, by C3D
  recon CKPT VIDEOS      PSNR, SSIM, LPIPS of what a VAE gives back; D_k(z) beside D_k(z_k)
  similarity CKPT        how alike a Latte's frames are, block by block
  reproduce WEIGHTS      the FVD and IS of a released Latte, as published

    a model --sample--> clips --+
                                +--> features --> FVD, FID, IS       is the set like the real set?
    videos, cut by a protocol --+
    videos --VAE--> videos again ----> PSNR, SSIM, LPIPS             is each video still itself?
    prompts --model--> clips ------> the classifier, nearest rendering  is it what was asked for? (the toy)"""

from support.cli import FlagParser, UserError, at_least, check_writable, finite, polite    # first: see there

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import ClipConfig, ClipFolder
from flow import DDPM, interpolate
from latte import Latte, frame_similarity, summary, unconditional
from pretrained import FILES, load_detector
from sample import (TOKENS, TOY, decode, encode, generate, given_ends, go_on, how_of, load_models,
                    sample_latents, tokens_of)
from text import ToyText
from vae import DPVAE, GOP, fold
from support import nearest, toy_world
from support.checkpoints import load_network, read_config, read_state, save_tensors, sweep, write_atomic
from support.detectors import (ATTRIBUTES, AttributeClassifier, classifier_file, classifier_targets,
                               perceptual_distance)
from support.drawing import contact_sheet, heat, page
from support.eval_clips import (CHOICES, PROTOCOLS, SPLITS, Protocol, Side, check_count, read_protocol,
                                warn)
from support.latent_cache import fingerprint
from support.metrics import frechet, gaussian, inception_score, psnr, ssim, standard_error
from support.ops import has_bf16
from support.order import keyed_noise
from support.toy_world import UNSEEN, parse_toy, prompt_at
from support.video_io import Unusable, save_clip, to_video


# ------------------------------------------------------------------------------------------ distances of sets

# A single clip can be judged by looking. Of two thousand the question is whether they are the real ones' kin:
# as sharp, as varied, moving alike. There is no pair to subtract. So a network that was trained for something
# else (I3D to name sports, Inception to name things) turns each clip into a few hundred numbers in which what
# it learned to care about is large and pixels are not; the two clouds of points are compared as Gaussians.
#
#     REAL --Side--> clips --look--> features (N,R,F) --gaussian--> mean, covariance --+
#                                                                                      frechet -> FVD, FID
#     FAKE --Side--> clips --look--> features (N,R,F) --gaussian--> mean, covariance --+
#
# R is how many rows a clip gives: FVD looks at the whole clip (R = 1), so it can see a jerk; FID at each
# frame (R = T), so it cannot. A model of perfect stills in random order has a good FID and a bad FVD: that is
# why Latte prints both. What such a number is not: a distance of people's, or one that other code would find
# with other weights; two FVDs compare only if every choice behind them is the same (support/eval_clips.py).
#
# A Frechet distance is biased: of two sets from one source it is above 0, the more so the fewer clips and the
# more features. Its standard error is the deviation over halves of the sets (metrics.standard_error).
def compare_sets(real, fake, ddof=0, seed=0):
    """Features (M,R,F) and (N,R,F) -> Frechet distance, its standard error."""
    def distance(a, b):
        return frechet(*gaussian(a.flatten(0, 1), ddof), *gaussian(b.flatten(0, 1), ddof))      # of (N*R,F)

    return distance(real, fake), standard_error(distance, real, fake, seed=seed)


# Inception Score needs no real clips. It asks whether the network is sure what each clip shows, and whether
# the clips show everything (metrics.py has the formula); so it means something only for a model of the
# network's own classes: C3D's on UCF101. It is the mean over ten parts. With few clips p(y) is taken from the
# very clips that it judges, so the score of a part is too low: with 2,048 clips a part has 205, and even a
# classifier that is sure and right gets about 76 of 101. A paper that takes 10,000 clips will print a higher
# one for the same model.
def score_set(logits):
    """Logits (N,R,K) -> Inception Score, its deviation over ten parts, its standard error."""
    def score(some):
        return inception_score(some.flatten(0, 1), min(10, len(some)))                      # of (N*R,K)

    mean, deviation = score(logits)
    return mean, deviation, standard_error(lambda half: score(half)[0], logits)


# With fewer rows than features the covariance has directions in which the set does not vary at all
# ("rank-deficient"), and what they contribute is an accident; then a warning says so. The generated side is
# looked at first: if it is broken or too small, the hour on the real one is saved.
def distance(name, argv):
    """`fvd REAL FAKE` and `fid REAL FAKE`: prints the number and returns it as a dict."""
    args, protocol = parse_metric(name, argv)
    real_side, fake_side = Side(args.real, protocol), Side(args.fake, protocol, fake=True)
    look = open_detector(args, name)
    fake = extract(fake_side, look, args)                                           # (N,R,F)  the strict side
    real = extract_real(real_side, look, args)                                              # (M,R,F)
    rows = min(real.shape[:2].numel(), fake.shape[:2].numel())
    if rows < real.shape[2]:
        warn(f"{rows} samples for {real.shape[2]} features: the covariance is rank-deficient and the "
             "distance biased upwards; compare with nothing but sets of this very size")
    value, error = compare_sets(real, fake, protocol.ddof, protocol.seed)

    label = "toy " if args.features == "toy" else ""
    print(f"{label}{name.upper()} {value:.4g} +- {error:.3g} (standard error over random halves); "
          f"{len(real)} real clips, {len(fake)} fake clips, {real.shape[2]} features of {args.features}")
    return finish({"metric": f"{label}{name}", name: value, "standard_error": error,
                   "real_clips": len(real), "fake_clips": len(fake)})


def score(argv):
    """`is FAKE`: C3D on the clips (UCF101)."""
    args, protocol = parse_metric("is", argv)
    look = open_detector(args, "is")
    logits = extract(Side(args.fake, protocol, fake=True), look, args)                      # (N,R,K)
    mean, deviation, error = score_set(logits)
    print(f"IS {mean:.4g} +- {error:.3g} (standard error over random halves; deviation over ten parts, or as "
          f"many as clips, {deviation:.2g}); {len(logits)} clips, {logits.shape[2]} classes of c3d")
    return finish({"metric": "is", "is": mean, "standard_error": error, "deviation": deviation})


# ------------------------------------------------------------------------------------------ reconstruction

# VideoDiT's first claim is about its VAE: whatever DP-VAE loses, no transformer can bring back.
# Reconstruction has a pair, a video and the video again, so it is subtracted: PSNR, the mean squared error as
# decibels (+ 3 dB is half of it); SSIM, which compares means, contrasts and patterns of small windows;
# LPIPS, for which see detectors.py. Two traps. Averages over a video hide which frames fail: in a video VAE
# those between the key frames, which is where the moving things are. And a still video flatters everybody: so
# each is also scored with its key frames held for four frames, the honest rival of any 4x temporal
# compression, which needs no video VAE at all. "gain" is what DP-VAE adds to that; if it is not above 0,
# there was nothing to be gained, or nothing was learned.
#
# Eq. 3 asks that z, of clips, is distributed as z_k, of images: the image transformer has to find itself at
# home. That is a claim about means and standard deviations, which are printed. And a key frame decoded from
# the clip's latent can at best be as good as from the image's own: the difference in dB is what sharing the
# latent with motion costs.
@torch.no_grad()
def measure(vae, x, measures):
    """x (B,3,T,H,W) -> {measure: its mean over frames}, the reconstruction, z, and z_k of the key frames."""
    keys = x[:, :, ::GOP]                                                                   # (B,3,T/4,H,W)
    z, z_k = vae.encode(x), vae.image.encode(keys)                                          # (B,C,T/4,h,w)
    x_hat = vae.decode(z).float().clamp(-1, 1)                                              # (B,3,T,H,W)
    keys_hat = vae.image.decode(z_k).float().clamp(-1, 1)                                   # (B,3,T/4,H,W)
    held = keys_hat.repeat_interleave(GOP, dim=2)[:, :, :x.shape[2]]                        # (B,3,T,H,W)
    row = {"frames": x.shape[2]}
    row |= {name: per_frame(compare, x, x_hat) for name, compare in measures.items()}
    row["held_psnr"] = per_frame(psnr, x, held)
    row["key_psnr"] = per_frame(psnr, keys, vae.decode_keys(z).float().clamp(-1, 1))
    row["key_psnr_2d"] = per_frame(psnr, keys, keys_hat)
    return row, x_hat, z, z_k


# A clip's PSNR is taken as the mean of its frames' PSNRs. The PSNR of the mean error would be lower: a
# logarithm of a mean is above the mean of logarithms, so one bad frame weighs less here.
# ASSUMED: a clip's PSNR and SSIM are its frames' means; the papers do not say.
def per_frame(compare, x, y):
    """Mean over frames of compare((N,C,H,W) twice), 8 at a time: 64 of 512x512 in float64 are 400 MB."""
    pairs = zip(fold(x).split(8), fold(y).split(8))                                         # (8,3,H,W) twice
    return torch.cat([compare(a, b) for a, b in pairs]).mean().item()


# VideoDiT Table 1 is this command with -n 50 --frames 64 --size 512; Table 3's first columns, too. --sheet
# draws what the numbers average: the video, what became of it, and twice the error around grey, where one
# sees whether edges, texture or motion were lost.
def recon(argv):
    """`recon CKPT DATA`: PSNR, SSIM and LPIPS of what a DP-VAE gives back, and Eq. 3."""
    flags = FlagParser(prog="eval.py recon")
    flags.add_argument("ckpt", help="a folder of train.py with a dpvae.safetensors")
    flags.add_argument("data", help="a folder of videos, toy or toy:KIND")
    flags.add_argument("-n", type=int, default=50, help="videos; VideoDiT 4.1 takes 50")
    flags.add_argument("--frames", type=int, default=0, help="0: as in training; unknown: VideoDiT 4.1's 64")
    flags.add_argument("--size", type=int, default=0, help="0: as in training; unknown: VideoDiT 4.1's 512")
    flags.add_argument("--split", default="test", choices=SPLITS, help="of a root that holds train and test")
    flags.add_argument("--features", default="alex", choices=["alex", "vgg", "toy"], help="LPIPS' network")
    flags.add_argument("--weights", default="", help="its file; default: in checkpoints/detectors")
    flags.add_argument("--classifier", default=str(CLASSIFIER), help="the network of --features toy")
    flags.add_argument("--seed", type=int, default=0, help="of which videos, and where in them")
    flags.add_argument("--sheet", type=drawing, default="", help="a .png: video, reconstruction, error")
    args = flags.parse_args(argv)
    at_least(vars(args), n=1, frames=0, size=0, seed=0)
    path = Path(args.ckpt) / "dpvae.safetensors"
    vae, made = load_network(DPVAE, path).to(device()), read_config(path)
    config = ClipConfig(args.frames or made.get("frames", 64), args.size or made.get("size", 512),
                        crop="center", seed=args.seed, split=args.split)
    if config.frames % GOP:
        raise UserError(f"--frames {config.frames}: must be a multiple of {GOP}")
    measures = frame_measures(args)
    rows, shown, latents = {}, {}, []           # a video at a time: with what became of it, 400 MB in float32
    for name, clip in video_clips(args.data, args.n, config, GOP):
        x = clip[None].to(device())                                                         # (1,3,T,H,W)
        rows[name], x_hat, z, z_k = measure(vae, x, measures)
        latents.append((z.cpu(), z_k.cpu()))
        if len(rows) <= 4:
            error = (2 * (x_hat - x)).clamp(-1, 1)                          # twice as large, and grey is none
            for what, video in (("video", x), ("reconstruction", x_hat), ("error x 2", error)):
                shown[f"{name[-30:]}: {what}"] = video[0].cpu()
    if args.sheet and shown:
        contact_sheet(args.sheet, shown.values(), [*shown])
    return report_recon(rows, latents)


def report_recon(rows, latents):
    """A line a video, the mean of the videos, the comparison with held key frames; and, of latents [(z, z_k)],
    mean and standard deviation of all z and of all z_k."""
    if not rows:
        raise UserError("no video could be reconstructed; see the warnings above")
    columns = list(rows.values())[0]
    mean = {key: float(np.mean([row[key] for row in rows.values()])) for key in columns}
    print(f"{'':40}" + "".join(f"{key:>12}" for key in (*columns, "gain")))
    for name, row in (rows | {"mean": mean}).items():
        row["gain"] = row["psnr"] - row["held_psnr"]
        print(f"{name[-40:]:40}" + "".join(f"{value:12.4g}" for value in row.values()))
    print(f"against each key frame decoded and held for {GOP} frames: {mean['gain']:+.2f} dB on the mean of "
          f"{len(rows)} clips")
    print("key frames by D_k(z) {key_psnr:.2f} dB, by D_k(z_k) {key_psnr_2d:.2f} dB".format(**mean))
    result = mean | {"clips": len(rows)}
    for name, parts in zip(("z", "z_k"), zip(*latents)):
        numbers = torch.cat([part.flatten() for part in parts])
        result |= {f"{name}_mean": numbers.mean().item(), f"{name}_std": numbers.std().item()}
    print("latents: z {z_mean:.4f} +- {z_std:.4f}, z_k {z_k_mean:.4f} +- {z_k_std:.4f}".format(**result))
    return finish(result)


# Which frames are reconstructed matters as much as how: VideoDiT 4.1 takes 50 videos "randomly sampled", 64
# frames of each, and which ones stays unknown. Here the videos are drawn by --seed, the clips in them too.
def video_clips(data, n, config, group=1):
    """(name, clip (3,T,H,W)) of n videos. One that is too short for config.frames gives as many as it has, in
    whole groups."""
    if toy := parse_toy(data, config.seed):
        for index in range(n):
            yield f"{data} {index}", to_video(toy_world.render(toy(index), config.frames, config.size))
        return
    split = "" if config.split == "all" else config.split
    videos = ClipFolder(data, dataclasses.replace(config, frames=group, split=split))
    # ASSUMED: 4.1's videos were "randomly sampled", nobody knows which: drawn by --seed, not the first 50 by
    # name, which would be one uploader's, or one class's
    drawn = np.random.default_rng(config.seed).permutation(len(videos))[:n].tolist()
    for index in sorted(drawn):
        name = videos.names[index]
        try:
            there = (len(videos.times(index)[1]) - 1) // config.stride + 1
            videos.config.frames = max(min(config.frames, there) // group, 1) * group
            yield name, videos.read(index, np.random.default_rng([config.seed, index, 0]))["video"]
        except Unusable as reason:                          # not one group in it
            warn(f"{name}: {reason}; skipped")


# LPIPS measures with AlexNet where a metric is asked for, with VGG where it is a training loss: a model that
# was trained to please VGG would otherwise be judged by whom it pleases. In the toy world a classifier stands
# in, and says "toy".
def frame_measures(args):
    """{name: (N,3,H,W) twice -> (N,)}: PSNR, SSIM, and LPIPS by its network or by the toy's classifier."""
    pixels = {"psnr": psnr, "ssim": ssim}
    if args.features == "toy":
        classifier = load_network(AttributeClassifier, args.classifier).to(device())
        return pixels | {"toy_lpips": partial(perceptual_distance, classifier.pyramid)}
    kind = f"lpips_{args.features}"
    return pixels | {"lpips": load_detector(args.weights or DETECTORS / FILES[kind], kind).to(device())}


# ------------------------------------------------------------------------------------------ samples

# 2,048 clips at 250 steps are a day of a GPU, so the set is made once, kept, and looked at by several
# commands (fvd, fid, is). Two things go wrong with such sets. Ranks that draw their own noise without regard
# to each other make some clips twice, which counts as less variety (published samplers do). And a job that
# was killed starts again. Both have one answer: clip i is a function of i, so it is known which are missing.
# Its noise is drawn from (seed, i), never from a generator's state: clip 1,700 is the same whether it is made
# first or last, in a batch of 4 or of 32 (to rounding), on one rank or on eight.
def make(models, prompts, frames, args, first_index):
    """Clips (B,3,T,H,W) by the parsed flags, on the CPU."""
    return generate(models, prompts, frames, steps=args.steps, guidance=args.guidance, seed=args.seed,
                    first_index=first_index, sampler=args.sampler)


def batches(items, size):
    """(index of the first, items), `size` of them at a time."""
    for first in range(0, len(items), size):
        yield first, items[first:first + size]


# Prompts are a part of the protocol, too. VideoDiT 4.2 is zero-shot on UCF101: the names of its classes are
# the prompts, dealt round and round, "ApplyEyeMakeup" as "apply eye makeup".
# ASSUMED: VideoDiT does not say how it prompts: dealt in turn. A Latte's classes are drawn at random, as in
# its published sampler.
def random_class(names, seed):
    """index -> a class drawn at random, keyed by seed and index, as in Latte's published sampler."""
    return lambda index: names[np.random.default_rng([seed, index]).integers(len(names))]


def sample_set(argv):
    """`sample CKPT -n 2048 -o DIR`: clip i is a function of i and the flags alone, so any number of ranks
    (torchrun) share the work without talking, and a second call only makes what is missing."""
    flags = FlagParser(prog="eval.py sample")
    flags.add_argument("ckpt", help="a folder of train.py, or a released model (see sample.py --weights)")
    flags.add_argument("-n", type=int, default=2048)
    flags.add_argument("-o", "--out", required=True, help="folder for the clips")
    flags.add_argument("--prompts", default="", help="toy:KIND, a text file, or a folder of classes")
    flags.add_argument("--frames", type=int, default=0, help="0: what the model was trained on; 1: images")
    flags.add_argument("--png", action="store_true", help="folders of frames without loss, instead of .mp4")
    flags.add_argument("--sheet", type=drawing, default="", help="a .png to be drawn: the first eight clips")
    flags.add_argument("--weights", default=[], action="append", help="as in sample.py: text encoders")
    flags.add_argument("--vae", default="", help="as in sample.py: the VAE of a released model")
    generation_flags(flags)
    args = flags.parse_args(argv)
    at_least(vars(args), n=1, steps=1, batch=1, seed=0, guidance=0)
    models = load_models(args.ckpt, device(), args.weights, args.model, args.vae)
    prompt = prompt_at(args.prompts or f"{own_world(models)}:video")
    settle(models, args)
    if hasattr(models.text, "kept"):                        # published encoders stay: a next block asks
        models.text.kept = {} if device() != "cpu" else None

    if args.frames > 1 and models.frames == 1:
        raise UserError(f"--frames {args.frames}: this is an image model; leave it out, or train stage "
                        "videodit")
    about = {"frames": args.frames or models.frames, "net": fingerprint(models.transformer),
             "vae": fingerprint(models.vae)}
    if models.classes and not args.prompts:
        prompt = random_class(models.classes, args.seed)
        about["classes"] = "random"
    elif models.condition == "none":
        prompt = str                                        # unread: on --sheet a clip has its number
    about["words"] = hashlib.sha256("\n".join(map(prompt, range(1000))).encode()).hexdigest()[:16]
    if isinstance(models.text, ToyText):
        about["text"] = fingerprint(models.text)
    check_made(Path(args.out), args, about)
    return fill_folder(models, prompt, about["frames"], args)


def own_world(models):
    """Of which toy world the prompts are by default: the narrow one's model knows no other words."""
    words = getattr(getattr(models.text, "config", None), "words", ())
    if set(words) == set(toy_world.VOCABULARIES["small"].words):
        return "toy-small"
    return "toy"


def fill_folder(models, prompt, frames, args):
    """Make what is missing of this rank's share; returns how many clips that were."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    out = Path(args.out)
    suffix = ".mp4"
    if frames == 1:
        suffix = ".png"
    elif args.png:
        suffix = ""
    blocks = list(batches(range(args.n), args.batch))[rank::world_size]
    made = 0
    for first, block in tqdm(blocks, desc=str(out), unit="batch", disable=rank > 0):
        missing = [index for index in block if not (out / f"{index:06d}{suffix}").exists()]
        drawn = args.sheet and first == 0 and (missing or not Path(args.sheet).exists())
        if not missing and not drawn:
            continue
        prompts = [prompt(index) for index in block]    # a block is made whole: rounding depends on the batch
        clips = make(models, prompts, frames, args, first)                                  # (B,3,T,H,W)
        if drawn:
            contact_sheet(args.sheet, clips[:8], prompts[:8])
        for index in missing:
            save_clip(out / f"{index:06d}{suffix}", clips[index - first], fps=8)            # as Latte's tool
        made += len(missing)
    total = sum(len(block) for _, block in blocks)
    print(f"rank {rank}: {made} clips made, {total - made} were there; in {out}")
    return made


# A folder that is half one model's clips and half another's has an FVD, and it means nothing. So the folder
# remembers both networks (by their weights' hash) and the settings; whoever adds to it with others is refused.
def check_made(out, args, about):
    """DIR/sample.json says how its clips were made: to go on, the flags have to be the same."""
    for key in ("prompts", "seed", "steps", "guidance", "sampler", "temperature", "png"):
        about[key] = getattr(args, key)
    path = out / "sample.json"
    sweep(out)
    if path.is_file() and any(out.glob("[0-9]*")):          # a command that was refused leaves no clip
        before = {"temperature": 1.0} | json.loads(path.read_text("utf-8"))
        before.setdefault("guidance", before.get("cfg"))    # what it was called once
        differs = [f"{key} {before[key]}, now {value}"
                   for key, value in about.items() if key in before and before[key] != value]
        if differs:
            raise UserError(f"{out} holds clips made otherwise ({'; '.join(differs)}); give another -o")
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(about, indent=1), "utf-8"))


# How a clip is sampled moves its score as much as training does: guidance trades variety for obedience, and
# FVD punishes both too little and too much of it. So the model's own settings hold unless a flag says
# otherwise, and are written beside the clips.
def generation_flags(flags):
    flags.add_argument("--model", default="", help="videodit, dit or latte; default: what the folder has")
    flags.add_argument("--steps", type=int, help="calls of the transformer; default: the model's own")
    flags.add_argument("--guidance", type=finite, help="guidance scale; 1 is none; default: the model's own")
    flags.add_argument("--sampler", default="", help="euler, ddpm or ddim; default: the model's own")
    flags.add_argument("--seed", type=int, default=0, help="of the noise, and of random classes")
    flags.add_argument("--batch", type=int, default=32, help="clips made at once, at most")
    flags.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
                       help="mixed precision; a device that does not multiply in bf16 stays with float32")


# Attention's time grows with the square of a clip's tokens, and the decoder's memory with its pixels: 32
# clips of 96 frames of 512 x 512 at once would ask for 700 GB, by the shapes of what is kept. So --batch is
# an upper bound, and long clips are made one at a time.
def settle(models, args):
    """The model's own settings where the flags are silent: into args, and so into what is written down."""
    how = how_of(models, steps=args.steps, guidance=args.guidance, seed=args.seed, sampler=args.sampler)
    vars(args).update(dataclasses.asdict(how))
    if args.bf16 and has_bf16(device()):                    # elsewhere float32 is faster
        models.bf16 = True
    tokens = tokens_of(models, getattr(args, "frames", 0) or models.frames, models.size)
    args.batch = min(args.batch, max(TOKENS // tokens, 1))  # 96 frames of 512 pixels: one at a time
    return how


# ------------------------------------------------------------------------------------------ released Lattes

# What users of the released weights ask most: "I get 133, the paper says 34". So the published protocol as
# one command: sample, FVD, and of UCF101 IS. The real clips are what the model was trained on: the training
# split, but of UCF101 both. Nobody says which training the released files are of; what people report fits the
# one with joint images better.
# {set: FVD and, of UCF101, IS as Latte's Tables 3 and 5 have them (without joint images, with), the FVD that
# users report in the issue tracker of the published code, and what --protocol latte is changed by}
PRINTED = {
    "ffs": ({"fvd": (34.00, 27.08)}, "about 30", []),
    "skytimelapse": ({"fvd": (59.82, 42.67)}, "about 50", []),
    "taichi-hd": ({"fvd": (159.60, 97.09)}, "about 97, with every 6th frame", ["--real_stride", "6"]),
    "ucf101": ({"fvd": (477.97, 202.23), "is": (68.53, 73.31)}, "168 to 190", ["--split", "all"]),
}


def reproduce(argv):
    """`reproduce WEIGHTS --data ROOT`: a released Latte's FVD, and IS of UCF101's, by the published protocol.
    Each step is a command of this file and is printed; given again, it goes on."""
    flags = FlagParser(prog="eval.py reproduce")
    flags.add_argument("weights", help="a released file: ffs.pt, skytimelapse.pt, taichi-hd.pt, ucf101.pt")
    flags.add_argument("--data", required=True, help="the real videos: what it was trained on")
    flags.add_argument("--vae", required=True, help="Stable Diffusion 1.4's VAE, file or folder")
    flags.add_argument("-n", type=int, default=2048, help="clips; as published 2048")
    flags.add_argument("-o", "--out", default="", help="folder of the clips; default: out/reproduce/SET")
    flags.add_argument("--trust-torchscript", action="store_true", help="run I3D's and C3D's TorchScript")
    args = flags.parse_args(argv)
    name = Path(args.weights).stem
    if name not in PRINTED:
        raise UserError(f"{args.weights}: give a file that is called as released: {', '.join(PRINTED)}")
    printed, reported, changes = PRINTED[name]
    for metric in printed:                                      # before hours of sampling, not after
        load_detector(DETECTORS / FILES[PUBLISHED[metric]], PUBLISHED[metric], args.trust_torchscript)
    out = args.out or f"out/reproduce/{name}"
    common = ["--protocol", "latte", "--clips", str(args.n)]
    if args.trust_torchscript:
        common.append("--trust-torchscript")
    commands = [["sample", args.weights, "-n", str(args.n), "-o", out, "--vae", args.vae],
                ["fvd", args.data, out, *changes, *common]]
    if "is" in printed:
        commands.append(["is", out, *common])
    result = {"set": name}
    for command in commands:
        print(f"\npython eval.py {' '.join(command)}", flush=True)
        found = COMMANDS[command[0]](command[1:])
        if command[0] in printed:
            result[command[0]] = found[command[0]]
    for metric, (without, joint) in printed.items():
        print(f"\n{metric.upper()} {result[metric]:.2f} of {args.n} clips; the paper has, of 2048, {without} "
              f"without joint images, {joint} with")
    print(f"users report an FVD of {reported}; of fewer clips it is larger")
    return finish(result)


# ------------------------------------------------------------------------------------------ inside a Latte

# Latte 4.2 explains its variants by a drawing of the inside: how alike the frames' features are, block after
# block. Blocks over space, each frame attending to itself, make frames less alike; blocks over time bring
# them together again: two jobs shared. A block whose frames are as alike after it as before does nothing
# about time. (The shipped Latte at time 500: 0.71 after its first block over space, 0.82 after the next, over
# time.) The clips are real ones with noise on them, since that is what the network meets.
# ASSUMED: Figs. 6 and 8 name neither their clips nor how noisy they are: --times 100 of 1000, where a clip
# can still be seen.

# A column of this table is one of the figure's panels: the mean of how alike two frames are, how much that
# varies, and how many frames are more like a distant one than like their neighbour ("inverted"), which in a
# video should be none.
def similarity(argv):
    """`similarity CKPT --data FOLDER`: print and draw Latte's Fig. 6 and, for Variants 3 and 4, Fig. 8."""
    flags = FlagParser(prog="eval.py similarity")
    flags.add_argument("ckpt", help="a folder of train.py with a Latte, or a released one")
    flags.add_argument("--data", default="toy", help="clips: toy, toy:KIND or a folder of videos")
    flags.add_argument("-n", type=int, default=4, help="clips, over which is averaged")
    flags.add_argument("--stride", type=int, default=1, help="of the videos' frames; as in training")
    flags.add_argument("--times", type=int, nargs="+", default=[100], help="of 1000: how much noise; 0: none")
    flags.add_argument("--weights", default=[], action="append", help="as in sample.py: text encoders")
    flags.add_argument("--vae", default="", help="of a released Latte: Stable Diffusion 1.4's")
    flags.add_argument("--seed", type=int, default=0, help="of the videos and the noise")
    flags.add_argument("--out", type=drawing, default="out/similarity.png", help="the drawing")
    args = flags.parse_args(argv)
    at_least(vars(args), n=1, stride=1, seed=0)
    if not 0 <= min(args.times) <= max(args.times) < 1000:
        raise UserError("--times: must lie between 0 and 999")
    models = load_models(args.ckpt, "cpu", args.weights, "latte", args.vae)         # it is a few passes
    net = models.transformer.float()
    if not isinstance(net, Latte):
        raise UserError(f"{args.ckpt} is no Latte; give one")
    z = encode_clips(models, args)                                                          # (B,C,T,h,w)
    squares, labels = [], []
    for time_step in args.times:
        found = frame_similarity(net, noisy(z, time_step, models.objective, args.seed),
                                 torch.full((len(z),), float(time_step)), unconditional(net, len(z)))
        print(f"time {time_step:<19d} {'mean':>8s} {'variance':>10s} {'inverted':>9s}")
        for name, matrix in found.items():
            print("{:24s} {:8.4f} {:10.6f} {:8.1%}".format(name, *summary(matrix)))
            squares.append(heat(matrix.numpy(), cell=max(1, 96 // len(matrix)), top=1))
            labels.append(f"t {time_step}: {name}")
    page(args.out, squares, labels, columns=7)              # one a block: dark where two frames are alike
    print(f"drawn in {args.out}")


@torch.no_grad()
def encode_clips(models, args):
    """Scaled latents (B,C,T,h,w) of -n clips that --seed draws, as long and large as the model's."""
    config = ClipConfig(models.frames, models.size, stride=args.stride, crop="center", seed=args.seed)
    clips = [clip for _, clip in video_clips(args.data, args.n, config) if clip.shape[1] == models.frames]
    if not clips:
        raise UserError(f"--data {args.data}: no video of {models.frames} frames, {args.stride} apart")
    vae = models.vae
    return vae.scaled(torch.cat([vae.encode(clip[None]) for clip in clips]))                # (B,C,T,h,w)


def noisy(z, time_step, objective, seed):
    """z with the noise of this time of 1000, as the network's training had it."""
    noise = keyed_noise(z.shape, seed, 0)
    if objective == "flow":
        return interpolate(noise, z, torch.full((len(z),), 1 - time_step / 1000))
    return DDPM().q_sample(z, torch.full((len(z),), time_step), noise)


# ------------------------------------------------------------------------------------------ the toy world

# In the toy world the truth is known: which words a clip was asked for, which clips can exist. So three
# things can be measured that no real set allows. Does it obey? A classifier (detectors.py) reads subject,
# colour, motion and scene off the clip, also of combinations that were never trained on, and of subjects
# that were never seen moving. How does it go wrong, where it does? And how near does a clip come to any that
# the world could have drawn? Each with its check: the classifier on rendered clips, the VAE's bound.

# The rows of the prompt score: of which kind of the world's clips their prompts are, and their titles (those
# of docs/toy.md). "held out" are pairs that no training clip had (a red cat was seen, a jumping cat was seen,
# a red jumping one was not); "image_only" are subjects that were seen in images and have to be moved by what
# was learned from others: VideoDiT's case for training on both.
ROWS = {"video_seen": "video", "video_heldout": "video_heldout", "video_image_only": "video_image_only",
        "image_seen": "image", "image_heldout": "image_heldout", "image_image_only": "image_image_only"}
TITLES = {"classifier": "the classifier itself, on unseen rendered clips",
          "video_seen": "clips, combinations seen in training",
          "video_heldout": "clips, combinations held out",
          "video_image_only": "clips, subjects seen only as images", "image_seen": "images, seen",
          "image_heldout": "images, held out", "image_image_only": "images, subjects seen only as images",
          "image": "--start, the whole prompt",
          "image_alone": "--start, a prompt of subject and motion alone",
          "in_between": "--start and --end", "onwards": "--extend half a clip, the rest of it"}


# Each clip is asked each question, and the answers are kept clip by clip: two models that were given the same
# prompts and the same noise can then be compared clip by clip, which needs far fewer clips than comparing two
# shares (ablate.py does). A model that draws the right animal in the wrong colour is told apart from one that
# does the opposite.
@torch.no_grad()
def clip_scores(classifier, specs, clips, batch, motion=False):
    """{question: 1 or 0 for each clip}: words named right, with `motion` also how it goes wrong.
    clips (N,3,T,H,W), and their Specs; `batch` at once."""
    questions = [key for key in ATTRIBUTES if key != "motion" or clips.shape[2] > 1]
    scores = defaultdict(list)
    for first, part in batches(specs, batch):
        shown = clips[first:first + batch]                                                  # (B,3,T,H,W)
        targets = classifier_targets(classifier, part, device())
        named = {key: logits.argmax(1) for key, logits in classifier(shown.to(device())).items()}
        answers = {key: named[key] == targets[key] for key in questions}                    # (B,) each
        if motion:
            motions = [classifier.config.motions[number] for number in named["motion"].tolist()]
            answers |= motion_scores(part, shown, motions)
        for key, answer in answers.items():
            scores[key] += answer.int().tolist()
    return dict(scores)


# A motion that is not named right is wrong in one of three ways: nothing moves; or it runs backwards, which
# no single frame shows; or it is another, such as a subject that changes its shape on the spot, as early in
# training. How much a clip moves is how far a frame is from the next, on the mean. A clip is still if it
# moves less than half as much as the true clip of its Spec: where the subject is held, while clouds drift and
# legs swing, true clips move 0.1 to 0.5 times as much, a quarter on the mean.
REVERSE = {"moving left": "moving right", "moving right": "moving left", "growing": "shrinking",
           "shrinking": "growing"}


def motion_scores(specs, clips, motions):
    """{"still", "reversed": (B,) bool}. clips (B,3,T,H,W), and the motions that the classifier names."""
    true = render_all(specs, clips.shape[2], clips.shape[-1])                               # (B,3,T,H,W)
    moves = torch.tensor([spec.motion != "staying still" for spec in specs])                # (B,)
    backwards = [REVERSE.get(spec.motion) == motion for spec, motion in zip(specs, motions)]
    less = movement(clips.cpu()) < movement(true) / 2                                       # (B,)
    return {"still": moves & less, "reversed": torch.tensor(backwards)}


def movement(clips):
    """(B,3,T,H,W) -> (B,): how far a frame is from the next."""
    return clips.float().diff(dim=2).abs().mean((1, 2, 3, 4))                               # (B,)


def shares(scores):
    return {key: sum(answers) / len(answers) for key, answers in scores.items()}


# Clips that nobody trained on: their seed is one that train.py never draws from. Specs are numbers, so "the
# same clip, true and generated" is a pair that exists here and nowhere else.
def unseen(kind, n, vocabulary="full"):
    """Specs of n clips that no training drew."""
    return [toy_world.sample_spec(UNSEEN, index, kind, vocabulary) for index in range(n)]


def captions(specs):
    return [toy_world.caption(spec) for spec in specs]


# True clips, for the classifier's own check, the VAE's, and the frames that are given away.
def render_all(specs, frames, size):
    return torch.stack([to_video(toy_world.render(spec, frames, size)) for spec in specs])      # (B,3,T,H,W)


# What nobody trained it for: a clip from an image, on from a clip, between two images (see sample.py). Scenes
# that no training saw are rendered, and part of them is given away: a first frame, a first half, both ends.
# What has to be invented must fit to what was given, and to the prompt.
#
#     image          the first frame
#     image_alone    the same, and a prompt of subject and motion: colour and scene must be taken from the
#                    image. Were it ignored, the colour would be right in one clip of ten, the scene in one of
#                    six
#     in_between     the first frame and the first one of the last group, which D_k makes an image: the
#                    hardest, since a motion has to arrive where it must
#     onwards        half of a clip twice as long as any in training, which is made in windows: each goes on
#                    from what the one before left. TRAP: a whole clip of the training's length will not do,
#                    for in it the motion is over: what has moved left is at the left edge, and no video
#                    exists that goes on and still does so
GIVEN = ("image", "image_alone", "onwards", "in_between")


def continued(models, row, how, specs, first):
    """-> clips (B,3,T,H,W), what was given {name: (its place, the frames (B,3,1,H,W))}, and the first frame
    that the classifier sees: given ones are not evidence."""
    frames, size = models.frames, models.size
    prompts = captions(specs)
    if row == "onwards":
        x = render_all(specs, 2 * frames, size)[:, :, :frames]                              # (B,3,T/2,H,W)
        z = go_on(models, prompts, encode(models, x), 2 * frames, how, first)               # (B,C,T',h,w)
        return decode(models.vae, z, 2 * frames), {}, frames
    if row == "image_alone":
        prompts = captions([dataclasses.replace(spec, colour="", scene="") for spec in specs])
    x = render_all(specs, frames, size)                                                     # (B,3,T,H,W)
    places, begin = {"first": 0}, models.group
    if row == "in_between":
        places["last"] = frames - models.group
        begin = 0
    ends = {name: (place, x[:, :, place:place + 1]) for name, place in places.items()}
    given = given_ends(models, size, how, frames, *[frame for _, frame in ends.values()])
    z = sample_latents(models, prompts, given.known.latent.shape, how, first, given)        # (B,C,T',h,w)
    return decode(models.vae, z, frames), ends, begin


# A model may obey the prompt and ignore the image: so the PSNR of the given frames stands beside the shares.
def given_score(classifier, models, row, how, args, bar):
    """(shares and the PSNR of given frames, three clips with their captions to look at)."""
    specs = unseen("video_heldout", args.given, args.vocabulary)
    seen, shown, decibels = [], [], defaultdict(float)
    for first, part in batches(specs, args.batch):
        clips, ends, begin = continued(models, row, how, part, first)                       # (B,3,T,H,W)
        for name, (place, frame) in ends.items():
            decibels[name] += per_frame(psnr, clips[:, :, place:place + 1], frame) * len(part)
        shown += zip(clips[:3], captions(part))
        seen.append(clips[:, :, begin:])
        bar.update(len(part))
    found = shares(clip_scores(classifier, specs, torch.cat(seen), args.batch))
    return found | {name: total / len(specs) for name, total in decibels.items()}, shown[:3]


# A classifier is content once it can name a clip. How near it comes to one that the world could have drawn
# (support/nearest.py) goes on counting: two heads, a tail that melts, legs out of step all cost. No model can
# be nearer than its VAE's reconstructions of true clips, so they are fitted in the same way: the ceiling.
@torch.no_grad()
def nearest_rows(vae, clips, ceiling=True, vocabulary="full"):
    """{"generated": nearest.summary(...), and, for the ceiling, "reconstructed"}, printed as well.
    clips (N,3,T,H,W): the first of the first row."""
    specs = unseen("video" if clips.shape[2] > 1 else "image", len(clips), vocabulary)
    still = [number for number, spec in enumerate(specs) if not spec.caught]    # a moment is not searched for
    clips, specs = clips[still], [specs[number] for number in still]
    sets = {"generated": clips}
    if ceiling:
        x = render_all(specs, clips.shape[2], clips.shape[-1])                              # (B,3,T,H,W)
        again = [vae.decode(vae.encode(part.to(device()))).clamp(-1, 1).cpu() for part in x.split(8)]
        sets["reconstructed"] = torch.cat(again)
    print(f"nearest rendering of {len(clips)} clips: dB over the subject")
    rows = {}
    for row, videos in sets.items():
        videos = videos.float().cpu().numpy()
        fits = nearest.nearest(videos, specs, workers=os.cpu_count(), vocabulary=vocabulary)
        rows[row] = nearest.summary(fits) | {"each": [round(fit.db, 3) for fit in fits]}
        print(("{:14}{db:6.2f} +- {error:.2f}, first frame {first:.2f}, last {last:.2f}, "
               "{share_20:.0%} of clips at 20 dB or more").format(row, **rows[row]))
    return rows


# Shares of so many clips are coarse: of 128, one is 0.8 %. Rows that were given an image say how well they
# kept it, too.
def print_shares(result):
    """A line a row: the shares, then the decibels of given frames."""
    questions = (*ATTRIBUTES, "still", "reversed")
    print(f"share that the classifier names as asked\n{'':50}" + "".join(f"{key:>9}" for key in questions))
    for row, found in result.items():
        cells = [f"{found[key]:9.1%}" if key in found else f"{'-':>9}" for key in questions]
        kept = [f"  {key} frame {value:.1f} dB" for key, value in found.items() if key not in questions]
        print(f"{TITLES[row]:50}" + "".join(cells + kept))


# One command that answers "is it any good?" for a toy checkpoint. Reading its table: the first row is the
# classifier's own errors, the bar for all others; "seen" against "held out" is memory against composition;
# "seen only as images" is what images taught; then the given frames; and last, in decibels, how near a clip
# is to one that could have been drawn. (What the VAE loses, which nobody can win back, is `recon`'s.)
def toy(argv):
    """`toy`: the classifier names what is in generated clips, and in rendered ones as a check of itself."""
    flags = FlagParser(prog="eval.py toy")
    flags.add_argument("--ckpt", default=str(TOY), help="a folder of train.py")
    flags.add_argument("-n", type=int, default=256, help="clips, and images, of each row")
    flags.add_argument("--nearest", type=int, default=64, help="of the first row, to fit: 5 to 10 s each")
    flags.add_argument("--ceiling", action=argparse.BooleanOptionalAction, default=True,
                       help="fit the VAE's reconstructions as well, which no model can beat")
    flags.add_argument("--given", type=int, default=-1, help="clips a row with given frames; -1: as -n")
    flags.add_argument("--sheet", type=drawing, default="", help="a .png: clips from given frames")
    generation_flags(flags)
    args = flags.parse_args(argv)
    at_least(vars(args), n=1, steps=1, batch=1, nearest=0, given=-1, guidance=0)
    if args.given < 0:
        args.given = args.n

    models = load_models(args.ckpt, device(), "", args.model)
    how = settle(models, args)
    file = classifier_file(args.ckpt)
    if not file.is_file():
        file = CLASSIFIER
    classifier = load_network(AttributeClassifier, file).to(device())
    args.vocabulary = toy_world.WORLDS[own_world(models)]
    if not {*toy_world.VOCABULARIES[args.vocabulary].subjects} <= {*classifier.config.subjects}:
        raise UserError(f"{file} knows other words than the toy world; train.py --stage classifier")

    moves = models.frames > 1
    rows = {row: kind for row, kind in ROWS.items() if moves or kind.startswith("image")}
    given = GIVEN if moves and args.given else ()
    specs = unseen("any", args.n, args.vocabulary)
    true = render_all(specs, models.frames if moves else 16, models.size)                   # (N,3,T,H,W)
    result = {"classifier": shares(clip_scores(classifier, specs, true, args.batch))}
    each, shown = {}, []
    bar = tqdm(total=args.n * len(rows) + args.given * len(given), unit="clip", mininterval=1)
    for row, kind in rows.items():
        specs = unseen(kind, args.n, args.vocabulary)
        frames = 1 if kind.startswith("image") else models.frames
        made = []
        for first, part in batches(specs, args.batch):
            made.append(make(models, captions(part), frames, args, first))                  # (B,3,T,H,W)
            bar.update(len(part))
        clips = torch.cat(made)                                                             # (N,3,T,H,W)
        if not each:
            fitted = clips[:args.nearest]                               # of the first row
        scores = clip_scores(classifier, specs, clips, args.batch, motion=frames > 1)
        result[row] = shares(scores)
        each[row] = {key: "".join(map(str, answers)) for key, answers in scores.items()}
    for row in given:
        result[row], clips = given_score(classifier, models, row, how, args, bar)
        shown += clips
    bar.close()

    if args.sheet and shown:
        contact_sheet(args.sheet, *zip(*shown))
    print_shares(result)
    if args.nearest:
        result["nearest"] = nearest_rows(models.vae, fitted, args.ceiling, args.vocabulary)
    result["each"] = each                                               # a digit a clip
    return finish(result)


# ---------------------------------------------------------------------------------------- networks that look

# Where the networks are that look: the toy's classifier is shipped, published ones are downloaded by whoever
# needs them.
CLASSIFIER = TOY / "classifier.safetensors"
DETECTORS = TOY.parent / "detectors"          # where the networks' files are looked for without --weights
PUBLISHED = {"fvd": "i3d", "fid": "inception", "is": "c3d"}         # which network a metric is published with


# A network that looks is somebody's file, and which one decides the number: the I3D of StyleGAN-V's FVD and
# the one of pytorch-i3d have the same plan and other weights. So the file's bytes are a part of what
# remembered features are known by, and a toy number says "toy" in its name wherever it is printed.
def open_detector(args, purpose):
    """look(video (B,3,T,H,W)) -> (B,R,F). purpose: fvd, fid or is."""
    kind = args.features
    if kind == "toy":
        classifier = load_network(AttributeClassifier, args.classifier).to(device())
        if purpose == "fid":
            return classifier.frame_features                                                # (B,T,F)
        return lambda video: classifier.clip_features(video)[:, None]                       # (B,1,F)
    net = load_detector(args.weights or DETECTORS / FILES[kind], kind, args.trust_torchscript).to(device())
    if kind == "inception":
        return lambda video: net.features(fold(video)).unflatten(0, (len(video), -1))       # (B,T,F)
    return lambda video: net(video)[:, None]                                                # (B,1,F)


# Distances are computed on one GPU; only sampling is shared among ranks (torchrun's processes, one a GPU),
# since that is where the time goes.
def device():
    """The GPU that torchrun gave us, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


# The network is the slow part, so nothing else may be: threads decode the next clips while it works (where it
# waits for them, more --workers). Features leave the GPU at once, a clip's 400 numbers in float32: 2,048
# clips would not fit anywhere, their features fit into 3 MB.
@torch.no_grad()
def extract(side, look, args):
    """Features (N,R,F) of every usable clip of a side."""
    want = side.protocol.clips
    clips = tqdm(itertools.islice(side.stream(args.workers), want), total=min(want, len(side.clips)),
                 desc=Path(side.root).name, unit="clip")
    found = []
    while pack := list(itertools.islice(clips, args.batch)):
        video = torch.stack([to_video(clip) for clip in pack])                              # (B,3,T,H,W)
        found.append(look(video.to(device())).float().cpu())                                # (B,R,F)
    check_count(side, sum(map(len, found)))
    return torch.cat(found)                                                                 # (N,R,F)


# The real side is the same for every model that one trains. It is remembered by everything that its features
# depend on: the files as they are on disk, the protocol's every field, the network's file. What is not in
# that list must not change them; a field that is added to Protocol is in it by itself.
def extract_real(side, look, args):
    """The same, remembered under --cache."""
    if not args.cache:
        return extract(side, look, args)
    network = Path(args.classifier)
    if args.features != "toy":
        network = Path(args.weights or DETECTORS / FILES[args.features])
    about = json.dumps([side.contents(), dataclasses.asdict(side.protocol), args.metric])
    mark = hashlib.sha256(about.encode() + network.read_bytes()).hexdigest()
    path = Path(args.cache) / f"{mark[:24]}.safetensors"
    if not path.is_file():
        check_writable("--cache", args.cache)
        save_tensors(path, {"features": extract(side, look, args)}, {})
    print(f"features of {side.root} are in {path}")
    return read_state(path)["features"]


# Every field of the protocol is a flag, and the flags are made from the fields: a choice that could not be
# asked for would be a choice made in silence. What a preset says holds where no flag is given, and all of it
# is printed.
OF_DISTANCES = ("real_stride", "window", "split", "ddof")           # IS has no real clips and no covariance


def parse_metric(name, argv):
    """The flags of fvd, fid and is -> (args, protocol)."""
    published = PUBLISHED[name]
    flags = FlagParser(prog=f"eval.py {name}")
    flags.set_defaults(metric=name, features=published)
    if name != "is":
        flags.add_argument("--cache", default="cache/features", help='keeps features of REAL; "": nowhere')
        flags.add_argument("real", help="a folder of videos or of folders of frames, or toy:KIND:SEED")
        flags.add_argument("--features", default=published, choices=(published, "toy"))
        flags.add_argument("--classifier", default=str(CLASSIFIER), help="the network of --features toy")
    flags.add_argument("fake", help="a folder of clips, as eval.py sample writes it, or toy:KIND:SEED")
    flags.add_argument("--weights", default="", help="file of the network; default: in checkpoints/detectors")
    flags.add_argument("--trust-torchscript", action="store_true", help="run a TorchScript file's program")
    flags.add_argument("--batch", type=int, default=8, help="clips that the network sees at once")
    flags.add_argument("--workers", type=int, default=2, help="threads that decode")
    flags.add_argument("--protocol", choices=PROTOCOLS, help="default: latte; of --features toy: toy")
    for item in dataclasses.fields(Protocol):
        if name != "is" or item.name not in OF_DISTANCES:
            flags.add_argument(f"--{item.name}", type=type(item.default), choices=CHOICES.get(item.name))
    args = flags.parse_args(argv)
    at_least(vars(args), batch=1, workers=1)
    return args, read_protocol(args)


# ------------------------------------------------------------------------------------------ commands

# The last line of every command that measures is JSON: ablate.py and your own scripts read that, people read
# the lines above it.
def finish(result):
    """The result again as the last line, for programs; JSON has no NaN."""
    print(json.dumps({key: None if value != value else value for key, value in result.items()}))
    return result


def drawing(path):
    """A flag's type: a .png that can be written, which is asked before hours of sampling."""
    if path and not path.endswith(".png"):
        raise UserError(f"{path}: a drawing is a .png; give --sheet (or --out) NAME.png")
    if path:
        check_writable("a drawing in", Path(path).parent)
    return path


# A table instead of subparsers: each command parses its own flags, so that a reader finds them where they are
# used, and ablate.py composes commands whose flags are checked by the same code as a person's.
COMMANDS = {"toy": toy, "fvd": partial(distance, "fvd"), "fid": partial(distance, "fid"), "is": score,
            "recon": recon, "sample": sample_set, "similarity": similarity, "reproduce": reproduce}


def main(argv):
    if not argv or argv[0] in ("-h", "--help"):
        return print(__doc__)
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]}; give one of {', '.join(COMMANDS)}")
    torch.backends.cudnn.allow_tf32 = False                 # distances are compared with other people's
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
