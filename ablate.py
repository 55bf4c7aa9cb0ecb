"""ablate.py - every ablation of both papers, as runs of train.py and eval.py that differ in one flag.
Paper    VideoDiT Tables 3-6 (4.3), Figs. 3, 5, 6, 7; Tables 1 and 2 (our row); Latte Figs. 5, 6, 7 (4.2),
         Tables 3 and 5, the mask of 3.3.4
Shapes   none: this file only composes commands; --dry-run prints them, to be run by hand as well
Numbers  the paper's, as printed, beside ours. The toy world's come from its attribute classifier and say so:
         the order of the rows may be compared with the paper's, the numbers may not
Differs  the papers run each row once and compare by eye; here --seeds 3 runs it three times, and each claim
         has a measure, a margin and a verdict (CLAIMS). What rows have in common is trained once, and so is
         a run that several tables show, as most show the default
Reads    after eval.py and presets.py, before bench.py
Run me   python ablate.py                        # the tables
         python ablate.py videodit-5 --config tiny --seeds 2       # CPU, minutes: without 3D patchify, with
         python ablate.py videodit-5 --seeds 3                     # CPU, an hour: in an order that can be seen
         python ablate.py videodit-3 --config videodit-256 --real UCF101 \\
             --train "--init SD3 --data VIDEOS --lpips VGG16"      # as the paper; --dry-run prints it all
Stopped, the same command goes on: a row with a result.json is kept, a stage goes on where it was."""

from support.cli import FlagParser, UserError, at_least, polite    # first: see there

import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors import safe_open

import presets
from latte import SIZES
from presets import PRESETS
from pretrained import FILES, load_detector
from support.checkpoints import read_log, write_atomic
from support.drawing import page, plot
from support.metrics import paired_interval
from support.toy_world import WORLDS


HERE = Path(__file__).parent
SMALL = ("tiny", "small", "toy")                        # presets of the toy world; the others are the papers'
DETECTORS = HERE / "checkpoints" / "detectors"          # where eval.py looks
PROMPTS = HERE / "assets" / "prompts.txt"               # those that VideoDiT's figures print


# ------------------------------------------------------------------------------------------------ tables

# Both papers are arguments, and this is where they are made: "with X, without X, the rest alike". An ablation
# is worth as much as its "the rest alike", so a row here is nothing but the flags that it is about, and all
# else comes from one preset. Each default is the paper's best row; so the default run, trained once, stands
# in most tables. The flags reach the code that they are named after: grep patchify_3d, or reg_weight.
#
# Read a row aloud: "Table 5, 2D patchify: FVD 756.25; without it, as proposed, 556.42".

# A row is also a warning: nothing in it may depend on another row. If the second needed other steps or
# another rate to work, the table would compare two recipes, and whoever tuned longer would win.
class Row(NamedTuple):
    name: str
    flags: str             # of train.py: what this row is about
    paper: dict            # as printed; in words where it is a curve
    small: str = ""        # instead of `flags` in --config tiny, small and toy
    note: str = ""         # what it needs at the paper's size


class Table(NamedTuple):
    title: str
    model: str             # the stage that each row trains for itself; the stages before it are trained once
    rows: tuple
    at: str                # the preset whose setting the paper's numbers are of
    needs: str = ""        # "data": shows nothing on the toy world; "images": reads images beside its videos
    steps: int = 0         # at the paper's size: where its curves end; 0: the preset's own


def scores(fvd, inception):
    return {"FVD": fvd, "IS": inception}


def quality(psnr, ssim, lpips):
    return {"PSNR": psnr, "SSIM": ssim, "LPIPS": lpips}


# Latte's Tables 3 and 5 are of four sets, each a preset: of a set its own numbers are shown.
def latte_scores(faces, sky, ucf101, taichi, fid, inception):
    return {"ffs": {"FVD": faces, "FID": fid}, "sky": {"FVD": sky}, "taichi": {"FVD": taichi},
            "ucf101": {"FVD": ucf101, "IS": inception}}


def size_flags(depth, width, heads):
    return f"--latte.depth {depth} --latte.width {width} --latte.heads {heads} --joint_images 0"


# Latte's Figs. 5 and 7 are curves, of faces, that end at 150 K steps.
def figure(title, rows, needs=""):
    return Table(title, "latte", rows, "latte-ffs", needs, steps=150_000)


TABLES = {
    # The VAE alone, no transformer: a video, and what is left of it. Only our row: the others are other
    # people's models.
    "videodit-1": Table("Table 1: reconstruction", "dpvae", (
        Row("DP-VAE (ours)", "", {"params (M)": 195} | quality(37.53, 0.980, 0.0444)),), "videodit-256"),
    # The whole model, at its full size, on prompts it was never trained for. One row again, of the 512 x 512
    # phase.
    "videodit-2": Table("Table 2: zero-shot UCF101", "videodit", (
        Row("VideoDiT (ours)", "--p_video 0.8", scores(428.52, 33.04)),), "videodit-512", "images"),
    # DP-VAE is two ideas, so its table has four corners. The 2D VAE encodes the key frames (else a residual
    # encoder has to hold all); regularization keeps the clips' latents distributed as the images' (else the
    # image transformer has to learn its own alphabet anew). Look for a cross: the 2D VAE gives PSNR,
    # regularization costs some and gives FVD. That the best VAE by PSNR is not the best to generate with is
    # the paper's finest point. Fig. 5 is the same before any training: what each row's D makes of the image
    # model's own latents.
    # VideoDiT 4.3: "p", the share of steps on videos and not images, "was set to 100%, except for the
    # ablation of joint image-video training"
    "videodit-3": Table("Table 3, Fig. 5: DP-VAE", "videodit", (
        Row("neither", "--p_video 1 --no-key_encoder --reg_weight 0",
            quality(35.57, 0.9706, 0.0963) | scores(683.76, 23.18)),
        Row("regularization", "--p_video 1 --no-key_encoder",
            quality(33.85, 0.9643, 0.1183) | scores(654.73, 22.37)),
        Row("2D VAE", "--p_video 1 --reg_weight 0", quality(38.18, 0.9849, 0.0380) | scores(645.28, 27.56)),
        Row("both", "--p_video 1", quality(37.53, 0.9806, 0.0444) | scores(556.42, 29.61))), "videodit-256"),
    # How does an image model get to see time? Make its attention global (2D to 3D), no new weights; or keep
    # it and add a trainable copy that is global beside it, which doubles the parameters. The paper finds them
    # alike, and keeps the cheap one: rows that are equal within a margin are what would agree.
    "videodit-4": Table("Table 4: what is made global", "videodit", (
        Row("2D and 3D, 4.15B", "--p_video 1 --attention 2d+3d", scores(563.24, 29.00),
            note='80 GB a card by bench.py fits; on 8 of 80 GB give --train "... --accumulate 2", 76 GB'),
        Row("2D to 3D, 2.03B", "--p_video 1", scores(556.42, 29.61))), "videodit-256"),
    # Global attention over tokens that do not know when they are cannot tell before from after. 3D patchify
    # embeds each frame's patches once more, adds (t, h, w) positions, and adds the result through a
    # zero-initialised Linear: from it the tokens learn their time.
    "videodit-5": Table("Table 5, Fig. 6: 3D patchify", "videodit", (
        Row("2D patchify", "--p_video 1 --no-patchify_3d", scores(756.25, 27.85)),
        Row("3D patchify", "--p_video 1", scores(556.42, 29.61))), "videodit-256"),
    # A model that trained on videos alone forgets what only images show. "images" is the column to look at:
    # Fig. 7 shows eight, the toy counts (the classifier's names, and an FID of images).
    "videodit-6": Table("Table 6, Fig. 7: joint image-video training", "videodit", (
        Row("without", "--p_video 1", scores(556.42, 29.61) | {"images": "entirely compromised"}),
        Row("with", "--p_video 0.8", scores(543.18, 32.47) | {"images": "preserved"})), "videodit-256",
        "images"),
    # A token is a patch of one frame, or a tube through two: half the tokens, and the decoder has to undo it.
    # DEVIATES Latte 4.2, in every table: the paper's clips are unconditional faces, the toy's obey prompts.
    "latte-5a": figure("Fig. 5a: patch embedding", (
        Row("uniform", "--joint_images 0", {"FVD": "better"}),
        Row("compression", "--joint_images 0 --latte.patch_embed compression", {"FVD": "notably behind"}))),
    # The time step and the class, as scale and shift of every norm (S-AdaLN), or as two more tokens to attend
    # to.
    "latte-5b": figure("Fig. 5b: timestep and class", (
        Row("S-AdaLN", "--joint_images 0", {"FVD": "significantly better"}),
        Row("all tokens", "--joint_images 0 --latte.conditioning all_tokens", {"FVD": "worse"}))),
    # Where in time a token is: added to it once, or turned into each query and key. The paper finds little
    # between them.
    "latte-5c": figure("Fig. 5c: temporal position", (
        Row("absolute", "--joint_images 0", {"FVD": "slightly better"}),
        Row("RoPE", "--joint_images 0 --latte.temporal rope", {"FVD": "slightly worse"}))),
    # The image model's released file lies where one starts this.
    # DEVIATES Latte Fig. 5d: the toy has no DiT to start from, so it does not show it
    "latte-5d": figure("Fig. 5d: start from DiT", (
        Row("random", "--joint_images 0", {"FVD": "better in the end"}),
        Row("ImageNet", "--joint_images 0 --init DiT-XL-2-256x256.pt", {"FVD": "better at first"})), "data"),
    # ASSUMED: the intervals are in the figure alone; the paper goes on with 3.
    # DEVIATES: each row is compared with real clips of its own interval; the published tool takes every 3rd
    # frame of them, whatever the model was trained on, and so would call a faster row worse.
    "latte-5e": figure("Fig. 5e: video sampling interval", tuple(
        Row(f"{stride}", f"--joint_images 0 --stride {stride}", {"FVD": "alike in the end"})
        for stride in (1, 3, 6)), "data"),
    # The paper's central figure: blocks over space and time in turn (1), first all of space (2), both in one
    # block (3), both at once with half the heads each (4). All of nearly the same number of parameters, so
    # the order is the point. The paper's Variant 4 has 3.2's words and Table 1's numbers, which are two
    # networks (latte.blocks_of): "counted" has the quarter of the operations. Figs. 6 and 8, how alike frames
    # are inside, are drawn of each row.
    "latte-5f": figure("Fig. 5f, Table 1: model variants", tuple(
        Row(f"Variant {name}", f"--joint_images 0 --latte.variant {flags}", paper)
        for name, flags, paper in (
            ("1", "1", {"params (M)": 673.68, "FLOPs (G)": 5572.69, "FVD": "best"}),
            ("2", "2", {"params (M)": 673.68, "FLOPs (G)": 5572.69, "FVD": "behind 1 and 3"}),
            ("3", "3", {"params (M)": 676.33, "FLOPs (G)": 6153.15, "FVD": "second"}),
            ("4", "4", {"FVD": "worst"}),
            ("4, counted", "4 --latte.v4 paper_count --latte.patch 4",
             {"params (M)": 676.44, "FLOPs (G)": 1545.15, "FVD": "worst"})))),
    # at toy size: an eighth of the width and about a sixth of the depth (where every size moves every clip,
    # nothing falls with size)
    "latte-7": figure("Fig. 7, Table 2: model size", tuple(
        Row(f"Latte-{name}", size_flags(**SIZES[name]), {"params (M)": params, "FVD": "falls with size"},
            size_flags(*small))
        for name, params, small in (("S", 32.48, (2, 48, 3)), ("B", 129.54, (2, 96, 6)),
                                    ("L", 456.81, (4, 128, 8)), ("XL", 673.68, (4, 144, 9))))),
    # Images beside each clip, from the same videos: more scenes in a batch for less than a clip's price.
    "latte-3": Table("Tables 3, 5: joint image-video training", "latte", (
        Row("Latte", "--batch 40 --joint_images 0", latte_scores(34.00, 59.82, 477.97, 159.60, 5.02, 68.53),
            "--joint_images 0"),
        Row("Latte+IMG", "--batch 32 --joint_images 8",
            latte_scores(27.08, 42.67, 202.23, 97.09, 3.87, 73.31), "--joint_images 1")), "latte-ffs"),
    # Those images stand as further frames. In the blocks over time they may be left out, or attend to
    # themselves alone.
    "latte-mask": Table("3.3.4: what images do in time (--config latte-t2v)", "latte", (
        Row("Only Video", "--latte.joint only_video", {"FVD": 705.72, "FID": 75.98}),
        Row("Temporal Mask", "--latte.joint temporal_mask", {"FVD": 589.86, "FID": 63.36})), "latte-t2v"),
}


# ------------------------------------------------------------------------------------------------ claims

# What each table claims, and by what it is decided in the toy world: written down before its runs, the first
# of a table is its primary one. A measure that is chosen after the numbers are there is one that agrees. The
# papers have FVD for everything; where the truth is known, a question can be asked that is the table's own
# (does a token know its time? then motions are named right). `margin` is the difference below which two rows
# are called equal, in the measure's unit; `alike` claims that they are.
class Claim(NamedTuple):
    better: str            # the row that the paper has ahead; of two alike ones, the one that it keeps
    worse: str
    measure: str           # a column of measures()
    margin: float
    alike: bool = False


CLAIMS = {
    # regularization keeps clips' latents where the image model's are: they stay predictable. The 2D VAE
    # keeps the key frames
    "videodit-3": (Claim("both", "2D VAE", "loss share", 0.01), Claim("both", "regularization", "PSNR", 0.5),
                   Claim("both", "neither", "D_k(z) dB", 0.5), Claim("both", "neither", "toy motion %", 5)),
    # at the same steps; what the trainable copy costs in parameters and time is printed beside it
    "videodit-4": (Claim("2D to 3D, 2.03B", "2D and 3D, 4.15B", "toy motion %", 5, alike=True),),
    "videodit-5": (Claim("3D patchify", "2D patchify", "toy motion %", 5),),
    "videodit-6": (Claim("with", "without", "toy images %", 5),
                   Claim("with", "without", "toy image-only moving %", 5)),
    "latte-5a": (Claim("uniform", "compression", "toy frames %", 5),
                 Claim("uniform", "compression", "nearest dB", 0.5)),
    "latte-5b": (Claim("S-AdaLN", "all tokens", "toy words %", 5),),
    "latte-5c": (Claim("absolute", "RoPE", "toy words %", 5, alike=True),),
    "latte-5f": tuple(Claim("Variant 1", f"Variant {other}", "toy motion %", 5)
                      for other in ("4", "4, counted", "2", "3")),
    "latte-7": (Claim("Latte-XL", "Latte-S", "toy motion %", 5),
                Claim("Latte-XL", "Latte-S", "nearest dB", 0.5)),
    "latte-3": (Claim("Latte+IMG", "Latte", "toy words %", 5),),
    "latte-mask": (Claim("Temporal Mask", "Only Video", "toy motion %", 5),),
}

# Measured clip by clip: of which of eval.py toy's prompts, and which answers have to be yes in each. Half of
# the motions' prompts are combinations that training has seen, half are held out.
CLIPS = ("video_seen", "video_heldout")
IMAGES = ("image_seen", "image_heldout", "image_image_only")
PER_CLIP = {"toy motion %": (CLIPS, ("motion",)), "toy still %": (CLIPS, ("still",)),
            "toy reversed %": (CLIPS, ("reversed",)), "toy frames %": (CLIPS, ("subject", "colour", "scene")),
            "toy words %": (CLIPS, ("subject", "colour", "motion", "scene")),
            "toy images %": (IMAGES, ("subject", "colour", "scene")),
            "toy image-only moving %": (("video_image_only",), ("subject", "motion"))}
LOWER = ("loss share",)                                                                     # is better


# ------------------------------------------------------------------------------------------------ commands

# A table becomes folders and commands, nothing else; what is printed by --dry-run is what is run:
#
#     OUT/CONFIG/base/             classifier, vae, dit, dpvae: trained once, with seed 0, by commands.json
#     OUT/CONFIG/RUN/SEED/         a row: base's networks, its own transformer, samples/, result.json
#     OUT/CONFIG/TABLE.json .md .png                         what came out, for people and programs
#
# A RUN is named by those of its flags that change anything, so that two tables that ask for the same run
# share it: "Variant 1", "absolute", "Latte-XL" and "every 3rd frame" are one training. A seed changes all
# that is drawn after base: weights, noise, the order of the clips and, in the toy world, the clips too.

class Job(NamedTuple):
    """A row's folder and the commands that fill it, each a list of words that begins with its script."""
    folder: Path
    training: list
    measuring: dict        # {name: command}
    drawing: dict          # {what it leaves in the folder: command}: of this table alone, and no result
    config: object         # of the model's training


def base(args):
    return Path(args.out) / args.config / "base"


def shared_training(args):
    """The stages before the rows' own, in the preset's order."""
    return [train_command(args, stage, base(args), []) for stage in PRESETS[args.config]["stages"]
            if stage not in ("videodit", "latte")]


# At toy size a few rows need other flags to mean the same thing: Latte-XL is 28 blocks of width 1,152 as
# published and 4 of width 144 in the toy; "eight images beside a clip of 16 frames" is one beside four frames
# of latents.
def flags_of(args, row):
    """A row's flags in this preset; without those that say what the preset says anyway."""
    table = TABLES[args.table]
    flags = row.flags
    if args.config in SMALL:
        flags = row.small or flags
    elif table.steps:
        flags += f" --steps {table.steps}"                      # --train's own --steps wins
    usual = presets.flatten(config_of(args, table.model, []))
    asked = presets.flatten(config_of(args, table.model, flags.split()))
    kept = []
    for flag in flags.split("--")[1:]:                          # "p_video 1 ", "no-patchify_3d"
        name, *_ = flag.removeprefix("no-").split()
        if asked[name] != usual[name]:
            kept += f"--{flag}".split()
    return kept


def config_of(args, stage, flags):
    return presets.parse(["--config", args.config, "--stage", stage, *flags, *args.train])[0]


def row_job(args, row, seed=0):
    """Train what is the row's own, then measure what came out."""
    model, flags = TABLES[args.table].model, flags_of(args, row)
    own = [model]
    if model == "dpvae" and seed == 0:
        own = []                                                # base has it
    if {"--no-key_encoder", "--reg_weight"} & {*flags}:         # a DP-VAE of its own, and so its own latents
        own = ["dpvae", model]
    folder = base(args)
    if own:
        name = re.sub(r"[^\w.]+", "-", " ".join([model, *flags])).strip("-")
        folder = base(args).with_name(name) / str(seed)
    training = [train_command(args, stage, folder, flags, seed) for stage in own]
    config = presets.parse(train_command(args, model, folder, flags, seed)[1:])[0]
    between = max(config.steps // max(args.curve, 1), 1)        # steps; the curve's last point is the end
    if args.curve and own:
        training[-1] += ["--save_every", str(between), "--keep", str(args.curve)]
    return Job(folder, training, measure_commands(args, config, between), drawings(args, config), config)


# A cache of latents is the other reason why rows are cheap in the toy world: clips go through the VAE once,
# a minute a seed instead of most of a row's time. It is named by the VAE's weights, so rows share it, and a
# row that trains its own DP-VAE has its own latents in the same folder. At the papers' size clips are encoded
# in the step, as the papers do: cached, a video would be 8 windows for ever, each visited dozens of times.
# --train "--cached" takes that for two thirds of the hours (python bench.py fits PRESET counts them).
def train_command(args, stage, folder, flags, seed=0):
    words = ["--config", args.config, "--stage", stage, *flags, "--out", str(folder), "--seed", str(seed),
             *args.train]
    if presets.parse(words)[0].cached:
        cache = base(args) / (f"cache-{seed}" if seed else "cache")
        if "--stride" in flags:                                 # its clips are other ones
            cache = folder / "cache"
        words += ["--cache", str(cache)]
    return ["train.py", *words]


# A row is measured by what its table has: PSNR, SSIM and LPIPS where a VAE differs, FVD and IS or FID where
# clips do. The toy world adds what it alone can count: does the clip obey its prompt, and how near is it to
# one that can exist (eval.py toy). All rows are measured with the same real clips, the same prompts in the
# same order, and noise that is keyed by seed and clip, so two rows of one seed differ in their weights and in
# nothing else.
def measure_commands(args, config, between):
    """eval.py: reconstruction where there is a DP-VAE, and clips where there is a transformer. between: the
    steps from one point of a curve to the next; all of them: no curve."""
    folder, model = config.out, config.stage
    toy = config.data in WORLDS
    commands = {}
    if model != "latte":                                        # VideoDiT 4.1: 50 videos of 64 frames
        videos = [config.data, "-n", str(args.n), *by_classifier(config)]
        if not toy:
            videos = [args.videos or config.data, "--frames", "64", "--size", "512"]
        commands["recon"] = ["eval.py", "recon", folder, *videos, "--sheet", f"{folder}/recon.png"]
    if model == "dpvae":
        return commands
    if toy:
        words = ["--ckpt", folder, "--model", model, "--seed", str(config.seed), "-n", str(args.n),
                 "--nearest", str(args.n // 8), "--no-ceiling", "--given", "0", "--bf16"]
        commands["toy"] = ["eval.py", "toy", *words]
    commands |= clip_commands(args, config, folder)
    if model == "videodit":
        commands |= image_commands(args, config)
    for step in range(between, config.steps, between):          # of states that train.py kept
        commands |= clip_commands(args, config, f"{folder}/{model}/{step:07d}", f"@{step}")
    return commands


def by_classifier(config):
    return ["--features", "toy", "--classifier", f"{config.out}/classifier.safetensors"]


# Some figures are drawn of a table's rows and measure nothing. VideoDiT Fig. 5: before anything is trained,
# the image model attends over all frames at once, and each row's D decodes what it makes. Where D's latents
# are distributed as an image's, something can be seen. Latte Figs. 6 and 8: how alike frames are inside.
def drawings(args, config):
    if args.table == "videodit-3":
        return {DRAWN["untrained"]: untrained_command(config)}
    if args.table == "latte-5f":
        words = [config.out, "--data", config.data, "--out", f"{config.out}/{DRAWN['similarity']}"]
        if config.data not in WORLDS:
            words += ["--stride", str(config.stride)]
        return {DRAWN["similarity"]: ["eval.py", "similarity", *words]}
    return {}


def untrained_command(config):
    words = ["sample.py", "a cat jumping", "--ckpt", config.out, "--model", "dit"]
    if config.data not in WORLDS:
        words = ["sample.py", "A cat sleeping on a windowsill.", "--weights", config.init,
                 "--size", str(config.size)]
    return [*words, "--zero-shot-video", "--vae", f"{config.out}/dpvae.safetensors", "--frames",
            str(config.frames), "--out", f"{config.out}/untrained"]


# Latte's figures are curves, FVD over iterations, because orders change on the way: a model that starts from
# ImageNet's weights leads first and loses later (Fig. 5d). A curve needs the weights of earlier steps:
# train.py keeps them (--keep), each a folder to sample from. All points have as many clips, since FVD depends
# on how many there are.
def clip_commands(args, config, source, when=""):
    """Clips by the weights in `source`, and how far they are from real ones. when: "", or "@STEP", where the
    distance of a curve's point is enough."""
    clips = f"{config.out}/samples{when}"
    sample = sample_command(source, config, clips, args.n)
    if not when:
        sample += ["--sheet", f"{clips}.png"]
    if config.data in WORLDS:
        sample += ["--prompts", f"{config.data}:video", "--png", "--bf16"]
        look = [f"{config.data}:video", clips, "--clips", str(args.n), *by_classifier(config), "--frames",
                str(config.frames), "--size", str(config.size), *real_cache(args)]
        distances = {"fvd": look, "fid": look}      # its classifier stands for the networks that look
    else:
        if asks_text(config):
            sample += ["--prompts", args.real]
        distances = published_distances(args, config, clips)
    commands = {f"sample{when}": sample}
    for kind, words in distances.items():
        if kind == "fvd" or not when:
            commands[f"{kind}{when}"] = ["eval.py", kind, *words]
    return commands


def sample_command(source, config, out, n):
    return ["eval.py", "sample", source, "-n", str(n), "-o", out, "--model", config.stage, "--seed",
            str(config.seed)]


def asks_text(config):
    return config.stage == "videodit" or config.latte.condition == "text"


def real_cache(args):
    return ["--cache", f"{base(args)}/features"]                # of the real clips, which all rows share


def published_distances(args, config, clips):
    """{eval.py's command: its words}, as the papers have them: IS where clips have UCF101's classes, FID in
    Latte's tables of faces and of text-to-video."""
    real = args.real or config.data
    look = ["--clips", str(args.n), "--protocol", config.stage]
    if config.size < 256:                                       # smaller than published: at its own size
        look += ["--size", str(config.size)]
    if config.frames < 16:
        look += ["--frames", str(config.frames)]
    fvd = [real, clips, *look]
    if config.stage == "latte":                                 # real clips move as those of the training did
        # every 6th frame of Taichi is an author's word, for the published numbers (support/eval_clips.py)
        stride = 6 if "taichi" in args.config else config.stride
        fvd += ["--real_stride", str(stride)]
    if "ucf101" in args.config:                                 # Latte trains on both splits of it
        fvd += ["--split", "all"]
    trust = ["--trust-torchscript"] if args.trust_torchscript else []
    fvd += [*real_cache(args), *trust]
    if config.stage == "videodit" or config.latte.condition == "class":
        return {"fvd": fvd, "is": [clips, *look, *trust]}
    return {"fvd": fvd, "fid": fvd}


# A video model asked for one frame is an image model again: the key frames' decoder makes it. Fig. 7 asks
# whether it still can, and shows eight images of each row; sixteen are made as published, of the prompts that
# the paper's figures print, and laid side by side by show().
def image_commands(args, config):
    """VideoDiT Fig. 7: what the model still knows of images. The paper shows eight, the toy can count."""
    out, real = f"{config.out}/images", f"{config.data}:image"
    how = ["--frames", "1", "--sheet", f"{out}.png", "--prompts"]
    if config.data not in WORLDS:
        return {"sample images": [*sample_command(config.out, config, out, 16), *how, str(PROMPTS)]}
    sample = [*sample_command(config.out, config, out, args.n), *how, real, "--bf16"]
    look = ["eval.py", "fid", real, out, *by_classifier(config), "--clips", str(args.n), "--frames", "1",
            "--size", str(config.size), *real_cache(args)]
    return {"sample images": sample, "fid images": look}


# The networks of the published metrics are other people's files (eval.py says whose; they are looked for in
# checkpoints/detectors). A TorchScript is a program, so it runs only where --trust-torchscript says that its
# maker is trusted.
NETWORKS = {"recon": "lpips_alex", "fvd": "i3d", "fid": "inception", "is": "c3d"}


# As one would type it.
def shown(command):
    return shlex.join(["python", *command])


# --------------------------------------------------------------------------------------------------- the cost

# Hours on 8 H100 in which a preset's stage trains as it stands, computed (python bench.py fits
# PRESET [--cached]): encoding in the step, and with --cached.
HOURS = {"videodit-256": {"dpvae": (57, 57), "videodit": (10, 5)},
         "videodit-320": {"dpvae": (57, 57), "videodit": (177, 99)}, "videodit-512": {"videodit": (647, 447)},
         "latte": {"latte": (64, 39)}, "latte-img": {"latte": (69, 39)}, "latte-t2v": {"latte": (729, 580)}}


def cost(args, shared, jobs):
    """What is still to be trained, in words: hours, and what a curve's EMAs take on disk."""
    if args.config in SMALL:
        return ""
    hours = 0.0
    of = args.config
    if of not in HOURS:                                         # the four sets are alike
        of = "latte-img" if of.endswith("-img") else "latte"
    commands = all_training(shared, jobs)
    for command in commands:
        config = presets.parse(command[1:])[0]
        encoding, cached = HOURS[of][config.stage]
        whole = PRESETS[args.config]["stages"][config.stage]["steps"]
        hours += (cached if config.cached else encoding) * config.steps / whole
    text = (f"{args.table}: about {hours:.0f} h of 8 H100 for {len(commands)} trainings (computed, as if "
            "each network were the preset's own)")
    if args.curve:
        text += f"; {args.curve} EMAs of each stay on disk, each 2.7 GB of a Latte-XL (--curve)"
    notes = [f"{row.name}: {row.note}" for row in TABLES[args.table].rows if row.note]
    return "\n".join([text, *notes])


def all_training(shared, jobs):
    return [*shared, *(command for job in jobs for command in job.training)]


# --------------------------------------------------------------------------------- looked for before anything

# A table at paper size is weeks of a machine's work, of which the last minute opens I3D's file. So everything
# that the last command will need is opened before the first one starts.

# In the order of what people forget. What the first command opens (--data, --lpips) is left to it, it stops
# at once. The networks that look are not only found but loaded, since a download that broke off is found as
# well.
def look_for(args, shared, jobs):
    """Raise for the first thing that is missing."""
    table = TABLES[args.table]
    configs = [presets.parse(command[1:])[0] for command in all_training(shared, jobs)]
    data = configs[-1].data
    toy = data in WORLDS
    if not data or (toy and table.needs == "data"):
        raise UserError(f'{args.table} at --config {args.config} needs videos; give --train "--data FOLDER"')
    if toy and (args.real or args.videos):
        raise UserError("--real and --videos are for real clips; the toy world is compared with its own")
    if toy:
        return
    if table.needs == "images" and not any(config.images for config in configs):
        raise UserError(f"{args.table} trains on images beside videos, the paper's are JourneyDB's; give "
                        '--train "--images FOLDER"')
    if not args.real and table.model != "dpvae" and asks_text(configs[-1]):
        raise UserError(f"{args.table} is compared with clips that no training saw; give --real UCF101")
    for given in (args, *configs):
        for name in ("real", "videos", "init", "images", "vae_weights", "text_weights"):
            place = getattr(given, name, "")
            if place and not Path(place).expanduser().exists():
                raise UserError(f"{args.table} needs --{name} {place}, and there is none; give another")
    for command, kind in NETWORKS.items():
        if command in jobs[0].measuring:
            load_detector(DETECTORS / FILES[kind], kind, args.trust_torchscript)


# "--train" is for what all rows have in common. A flag in it that a row is about would win over the row's,
# and the table would show four times the same run under four names; nothing would fail, and the numbers would
# even differ a little.
def refuse_rows_flags(args):
    """A flag of --train's that the rows set would make them one."""
    rows_flags = " ".join(row.flags for row in TABLES[args.table].rows)
    reserved = {"out", "cache", "seed", "config", "stage", "resume"} | names_of(rows_flags.split())
    if args.curve:
        reserved |= {"save_every", "keep"}                      # --curve 0 leaves them to you
    if twice := sorted(names_of(args.train) & reserved):
        raise UserError(f"--train: --{twice[0]} would be the same in every row; {args.table}'s rows set it, "
                        "or ablate.py by its own --out, --config, --seeds, --curve: leave it out of --train")


def names_of(words):
    """The flags among these words, however they are written: x of --no-x, --x=1."""
    return {word[2:].removeprefix("no-").partition("=")[0] for word in words if word.startswith("--")}


# ------------------------------------------------------------------------------------------------- running

# A table is days at paper size, hours in the toy world, and will be interrupted. Nothing here remembers how
# far it was: each command is one that can be given again (train.py resumes, eval.py sample makes what is
# missing), and a row that is done has a result.json, with all commands that led to it, the shared ones among
# them. If those are no longer the commands that would be run now, the result is of another question, and is
# refused instead of reused. Seeds are the outer loop: stopped after one seed, the table has all its rows.

# A command is run as a person would run it, in a process of its own: its memory is given back, a crash is its
# own, and what was printed can be pasted. With --launch, its words stand in python's place for training and
# sampling, on all GPUs; distances are computed on one.
def run(args, command):
    """Run one command; its last line if that is JSON, else {}. Progress, on stderr, is seen as it comes."""
    print(f"\n{shown(command)}", flush=True)
    launcher = [sys.executable]
    if args.launch and (command[0] == "train.py" or command[1] == "sample"):        # ranks divide the clips
        launcher = args.launch
    words = [*launcher, str(HERE / command[0]), *command[1:]]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        printed, _ = process.communicate()
    except KeyboardInterrupt:
        # Ctrl-C is for both. A training saves first, which takes longer than the quarter of a second after
        # which subprocess.run kills it.
        process.wait()
        raise
    print(printed, end="", flush=True)
    if process.returncode:
        raise UserError(f"stopped: this command failed: {shown(command)}")
    last = (printed.strip().splitlines() or [""])[-1]
    return json.loads(last) if last.startswith("{") else {}


# What was trained and what was measured are remembered apart: a row that is to be measured otherwise is not
# trained again.
def run_row(args, job, shared):
    """{"ours": {name: what eval.py says of the row}, "params", "cpu_s" of training}; and its drawings."""
    path = job.folder / "result.json"
    training = [shown(command) for command in (*shared, *job.training)]
    measuring = [shown(command) for command in job.measuring.values()]
    found = {"training": training, "cpu_s": 0.0}
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
    if found.get("training") != training:
        raise UserError(f"{path} is of other commands; delete {job.folder}, or give another --out")
    if "ours" not in found:
        train_row(args, job, found)
    if found.get("measuring") != measuring:
        found["ours"] = {}
        for name, command in job.measuring.items():
            if measured := run(args, command):
                found["ours"][name] = measured
        found["measuring"] = measuring
        write(path, json.dumps(found, indent=1))
    for pattern, command in job.drawing.items():
        if not any(job.folder.glob(pattern)):
            run(args, command)
    return found


# The row's folder gets copies of what base trained, so that it is whole: eval.py and sample.py take it like
# any --out, and it can be kept when base is deleted. What the row trains itself (Table 3's DP-VAE) is not
# among them: train.py would not write over it. The time is added up over all attempts, interrupted ones too.
def train_row(args, job, found):
    own = {presets.parse(command[1:])[0].stage for command in job.training}
    for theirs in base(args).glob("*.safetensors"):
        ours = job.folder / theirs.name
        if theirs.stem not in own and not ours.exists():
            write_atomic(ours, lambda temporary: shutil.copy(theirs, temporary))
    before = children_seconds()
    try:
        for command in job.training:
            run(args, command)
    finally:
        found["cpu_s"] = round(found["cpu_s"] + children_seconds() - before, 1)
        write(job.folder / "result.json", json.dumps(found, indent=1))
    found["steps"] = job.config.steps
    found["params"] = count_parameters(job.folder / f"{job.config.stage}.safetensors")


def write(path, text):
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))


# Hours on a machine that does other things say little. CPU time is what the work itself took, and it is what
# results/ states; on a GPU it is nothing of the kind, there the log's steps per second are.
def children_seconds():
    """CPU time of all commands so far: it does not depend on what else the machine does, as hours do."""
    times = os.times()
    return times.children_user + times.children_system


def refuse_other_base(args, shared):
    """Rows of all tables stand on base's networks. Trained further by other commands, those of the next seed
    would stand on others."""
    path = base(args) / "commands.json"
    now = {command[command.index("--stage") + 1]: shown(command) for command in shared}
    if not path.is_file():
        write(path, json.dumps(now, indent=1))
    for stage, before in json.loads(path.read_text("utf-8")).items():
        if before != now.get(stage):
            raise UserError(f"{path}: another command trained stage {stage}, which all tables share; give "
                            f"the same --train, delete {base(args)}, or give another --out")


# Latte's sizes and variants are told apart by it (Table 1 of the paper), and "2D+3D" pays with it. Tables of
# positions are stored beside the weights and are not counted, as in both papers.
def count_parameters(path):
    """Of a .safetensors, from its table of contents."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()
                   if not name.endswith(("pos_embed", "temp_embed")))


def run_table(args):
    """For each row its runs, one a seed, after everything that can be wrong has been looked at."""
    rows = [[row_job(args, row, seed) for seed in range(args.seeds)] for row in TABLES[args.table].rows]
    jobs, shared = sum(rows, []), shared_training(args)
    look_for(args, shared, jobs)
    missing = [job for job in jobs if not (job.folder / "result.json").is_file()]
    if missing:
        print(cost(args, shared, missing), flush=True)
        refuse_other_base(args, shared)
        for command in shared:
            run(args, command)
    results = []
    for jobs_of_seed in zip(*rows):                             # stopped early, whole tables are there
        results.append([run_row(args, job, shared) for job in jobs_of_seed])
    return [*zip(*results)]


# ------------------------------------------------------------------------------------------- what came out

# Two rows, three seeds each. When may one be called better? Rows of one seed were asked for the same prompts
# and began from the same noise, so they are compared clip by clip: most of what makes one clip harder than
# another cancels. What is left is an interval of the differences (metrics.paired_interval), for clips that
# were not asked for. It knows nothing of trainings that were not done: so the seeds have to agree as well.
#
#     shown                     the interval lies beyond 0 on the paper's side, and so does every seed's mean
#     refuted                   the same on the other side
#     equal within the margin   the interval lies within +- margin
#     not told apart            none of these: too few clips, or too small an effect
#
# The first that holds. Of rows that the paper calls alike "equal" agrees with the paper, and "refuted" is an
# interval beyond the margin, on either side. One seed shows nothing. Where neither row has learned the thing
# at all, or both have learned it whole, "equal" says little: look at the two means. Several measures are
# several chances to be deceived: that is why each table has one primary claim (CLAIMS), written before its
# runs.
def verdict(claim, differences):
    """(one of the four words, mean, (low, high)). differences: of each seed an array, above 0 on the paper's
    side: a number for each clip, or one for what is measured once a run."""
    means = [float(np.mean(seed)) for seed in differences]
    low, high = paired_interval(differences)
    beyond = claim.margin if claim.alike else 0
    if len(means) == 1:
        word = "not told apart"
    elif low > beyond and min(means) > 0:
        word = "refuted" if claim.alike else "shown"
    elif high < -beyond and max(means) < 0:
        word = "refuted"
    elif -claim.margin <= low and high <= claim.margin:
        word = "equal within the margin"
    else:
        word = "not told apart"
    return word, mean(means), (low, high)


# The training loss compares rows that learn from the same clips under the same noise, and nothing else. The
# held-out loss (train.py --valid_every: clips that no step sees, the EMA, fixed noise, eight times) compares
# more; but with another VAE it is a loss of something else. So beside it stands its share of what the best
# constant would lose: the variance of a velocity, which is 1 for the noise and the latents' own, in units of
# images' latents. That says how predictable latents are, whatever their variance.
def measures(config, ours):
    """{eval.py's command: its JSON}, and the training's log -> {column: (scores, standard error or None)}:
    (N,) scores of clips where PER_CLIP asks them, else one number."""
    found = {}
    recon, toy = ours.get("recon", {}), ours.get("toy", {})
    for name, column in (("psnr", "PSNR"), ("ssim", "SSIM"), ("lpips", "LPIPS"), ("toy_lpips", "toy LPIPS"),
                         ("key_psnr", "D_k(z) dB")):
        if name in recon:
            found[column] = once(recon[name])
    for name, told in ours.items():                     # metric: "fvd", or of the classifier "toy fvd"
        kind, _, what = name.partition(" ")
        if kind in ("fvd", "fid", "is"):
            column = f'{told["metric"].replace(kind, kind.upper())} {what}'.strip()
            found[column] = once(told[kind], told["standard_error"])
    if "each" in toy:
        for column, (rows, questions) in PER_CLIP.items():
            found[column] = by_clip(percent(toy["each"], rows, questions))
    if "nearest" in toy:
        found["nearest dB"] = by_clip(np.array(toy["nearest"]["generated"]["each"]))

    lines = read_log(Path(config.out) / config.stage / "log.jsonl")
    if not lines:
        return found
    late = [line[config.stage] for line in lines if line["step"] > 0.8 * lines[-1]["step"]]
    found["training loss"] = once(mean(loss for loss in late if loss is not None))      # None: a step left out
    held_out = []
    for line in lines:                                  # the last one, where it is not every line's
        told = [value for name, value in line.items() if name.startswith("valid_")]
        held_out = told or held_out
    if held_out:
        found["held-out loss"] = once(mean(held_out))
    if held_out and "z_std" in recon:
        variance = (recon["z_std"] / recon["z_k_std"]) ** 2
        found["loss share"] = once(mean(held_out) / (1 + variance))
    return found


# "+-" is the standard error: how far another set of clips of the SAME weights would have scored. The range in
# brackets is the seeds': how far the same flags' OTHER weights did. Papers print neither.
def once(number, standard_error=None):
    return np.array([number]), standard_error


def by_clip(scores):
    return scores, float(scores.std() / len(scores) ** 0.5)


def percent(each, rows, questions):
    """(N,) 100 for a clip whose answers are all yes, else 0."""
    answers = ["".join(each[row][question] for row in rows) for question in questions]
    return 100.0 * np.min([[*map(int, digits)] for digits in answers], 0)                   # of (Q,N)


def paper_of(args, row):
    """The paper's numbers of a row; of Latte's Tables 3 and 5 those of the preset's set, else the faces'."""
    name = args.config.removeprefix("latte-").removesuffix("-img")
    return row.paper.get(name, row.paper.get("ffs", row.paper))


# The JSON has every seed, not only means: who doubts the rule above can apply his own. The command in it is
# the one that makes it; machine and CPU time stand beside, because a result without them cannot be repeated
# or planned.
def collect(args, results):
    """A table as JSON: the paper's numbers, ours of every seed, what made them, and what they decide."""
    table = TABLES[args.table]
    rows, scores = {}, {}
    for row, runs in zip(table.rows, results):
        seeds = [measures(row_job(args, row, seed).config, found["ours"])
                 for seed, found in enumerate(runs)]
        curve, ours = {}, {}
        for name in runs[0]["ours"]:
            if name.startswith("fvd@"):
                curve[name.removeprefix("fvd@")] = [found["ours"][name]["fvd"] for found in runs]
        for name in seeds[0]:
            numbers, errors = zip(*(found[name] for found in seeds))                        # of each seed
            scores[row.name, name] = numbers
            ours[name] = {"seeds": [float(np.mean(each)) for each in numbers], "standard_error": errors}
        rows[row.name] = {"name": row.name, "paper": paper_of(args, row), "params": runs[0]["params"],
                          "steps": runs[0]["steps"], "cpu_s": [found["cpu_s"] for found in runs],
                          "curve": curve, "ours": ours}
    command = ["ablate.py", args.table, "--config", args.config]
    command += ["--seeds", str(args.seeds), "-n", str(args.n)]
    if args.train:
        command += ["--train", shlex.join(args.train)]
    at = table.at
    if args.table == "latte-3" and args.config not in (*SMALL, "latte-t2v"):
        at = args.config                                # each set has its own numbers
    return {"table": args.table, "title": table.title, "config": args.config, "paper_at": at,
            "command": shown(command), "seeds": args.seeds, "clips": args.n,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}",
            "rows": [*rows.values()], "claims": decided(args.table, rows, scores)}


def decided(key, rows, scores):
    """What became of the table's claims, as far as they were measured."""
    claims = []
    for claim in CLAIMS.get(key, ()):
        ours = scores.get((claim.better, claim.measure))        # (N,) a seed
        theirs = scores.get((claim.worse, claim.measure))
        if not ours or not theirs or len(ours) == len(ours[0]) == 1:    # one number: no interval
            continue
        sign = -1 if claim.measure in LOWER else 1
        word, difference, between = verdict(claim, [sign * (a - b) for a, b in zip(ours, theirs)])
        better, worse = rows[claim.better], rows[claim.worse]
        claims.append(claim._asdict() | {
            "verdict": word, "difference": difference, "interval": between,
            "means": [float(np.mean(ours)), float(np.mean(theirs))],
            "params": better["params"] / worse["params"],
            "cpu": mean(better["cpu_s"]) / mean(worse["cpu_s"])})
    return claims


# A difference is printed as the paper's side has it: above 0 is better, of a loss, too.
def claim_line(claim):
    low, high = claim["interval"]
    alike = " (alike in the paper)" if claim["alike"] else ""
    return (f"{claim['verdict']}: {claim['measure']}, {claim['better']} {claim['means'][0]:.4g} against "
            f"{claim['worse']} {claim['means'][1]:.4g}{alike}: {claim['difference']:+.3g} "
            f"(95 %: {low:+.3g} to {high:+.3g}; margin {claim['margin']}); {claim['params']:.0%} of the "
            f"parameters, {claim['cpu']:.0%} of the time")


# Four digits: more would be noise, as the brackets beside them show.
def cell(numbers):
    """"12.5 (11.8 to 13.4) +- 0.6": the mean of the seeds, the least and the most, the standard error."""
    seeds = numbers["seeds"]
    errors = [error for error in numbers["standard_error"] if error is not None]
    text = f"{mean(seeds):.4g}"
    if len(seeds) > 1:
        text += f" ({min(seeds):.4g} to {max(seeds):.4g})"
    if errors:
        text += f" +- {mean(errors):.2g}"
    return text


def markdown(found):
    """The verdicts and the table as Markdown: it is read as it is, too."""
    columns = []
    for row in found["rows"]:
        column = {"row": row["name"]}
        column |= {f"paper's {name}": str(value) for name, value in row["paper"].items()}
        column["our params (M)"] = f"{row['params'] / 1e6:.2f}"
        column["our CPU s"] = f"{mean(row['cpu_s']):.0f}"
        column |= {f"our {name}": cell(numbers) for name, numbers in row["ours"].items()}
        columns.append(column)
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = [names, ["---"] * len(names)]
    lines += [[column.get(name, "-") for name in names] for column in columns]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    text = [f"- {claim_line(claim)}" for claim in found["claims"]]
    text += ["", *("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines), ""]
    if found["config"] != found["paper_at"]:
        text += [f"The paper's numbers are of {found['paper_at']}, ours of {found['config']}: only the order "
                 "of the rows compares.", ""]
    if found["seeds"] == 1:
        text.append("One seed: no evidence.")
    else:
        text.append(f"{found['seeds']} seeds: mean (least to most) +- standard error over clips.")
    return "\n".join(text)


def show(args, results):
    """Print the table; write TABLE.json, .md and .png; lay the rows' drawings one above another."""
    found = collect(args, results)
    folder = Path(args.results or Path(args.out) / args.config)
    key = args.table
    text = f"{key}: {found['title']}\n\n{markdown(found)}\n"
    print(f"\n{text}")
    write(folder / f"{key}.json", json.dumps(found, indent=1))
    write(folder / f"{key}.md", text)
    draw_table(folder / f"{key}.png", found, strips(args, found["claims"]))
    draw_rows(args)


def strips(args, claims):
    """{row: four clips of seed 0} of the two rows of the first claim, to be seen beside its interval."""
    found = {}
    for row in TABLES[args.table].rows:
        sheet = row_job(args, row).folder / "samples.png"
        if claims and row.name in (claims[0]["better"], claims[0]["worse"]) and sheet.is_file():
            image = Image.open(sheet)
            found[row.name] = image.crop((0, 0, image.width, image.height // 2))            # of eight clips
    return found


def draw_claim(claim, rows):
    """The difference of two rows: its 95 % interval, each seed's, and the margin within which they are equal."""
    ahead, behind = (rows[claim[side]]["ours"][claim["measure"]]["seeds"] for side in ("better", "worse"))
    sign = -1 if claim["measure"] in LOWER else 1                  # above 0 is better, of a loss, too
    seeds = [sign * (one - other) for one, other in zip(ahead, behind)]
    low, high = -claim["margin"], claim["margin"]
    curves = {"95 %": (claim["interval"], [1, 1]), "seeds": (seeds, [1] * len(seeds), "."),
              "margin": ([low, low], [0, 2], "~"), "_high": ([high, high], [0, 2], "~")}
    title = f"{claim['better']} less {claim['worse']}: {claim['verdict']}"
    return plot(None, curves, title, claim["measure"], size=(520, 260))


# A dot a seed and no bars: a bar's length asks to be compared from 0, which no FVD means, and hides how few
# runs it is. A curve's last point is the row's own result; those before it are of weights that training has
# long overwritten.
def draw_table(path, found, strips):
    """Clips of the rows that are compared; a chart a claim; FVD over iterations, as Latte's Figs. 5, 7: a
    line through the means, a dot a seed; where that leaves room, a chart a distance."""
    rows, charts = found["rows"], []
    by_name = {row["name"]: row for row in rows}
    if found["seeds"] > 1:
        charts = [draw_claim(claim, by_name) for claim in found["claims"]]
    if rows[0]["curve"]:
        last = next(name for name in rows[0]["ours"] if "FVD" in name)
        curves = {}
        for row in rows:
            steps = [*map(int, row["curve"]), row["steps"]]
            values = [*row["curve"].values(), row["ours"][last]["seeds"]]                   # (points,seeds)
            curves[row["name"]] = steps, [mean(seeds) for seeds in values]
            curves[f"_{row['name']}"] = np.repeat(steps, found["seeds"]), np.concatenate(values), "."
        charts.append(plot(None, curves, found["title"], "steps", last, size=(520, 340)))
    for name in ("toy FVD", "FVD", "IS", "FID", "PSNR"):
        if name in rows[0]["ours"] and len(charts) < 2:
            dots = {row["name"]: ([number] * found["seeds"], row["ours"][name]["seeds"], ".")
                    for number, row in enumerate(rows)}
            title = f"{found['title']}: {name}"
            charts.append(plot(None, dots, title, "row", "a dot is a seed", size=(520, 340)))
    page(path, [*strips.values(), *charts], [*strips, *("" for _ in charts)])


# Numbers rank, images explain. The rows' reconstructions (with their errors), clips and images, of the same
# videos and the same prompts, stand one above another; the paper's Figs. 3, 5, 6 and 7 are such pages.
DRAWN = {"recon": "recon.png", "samples": "samples.png", "images": "images.png",
         "similarity": "similarity.png", "untrained": "untrained/*.png"}


def draw_rows(args):
    """VideoDiT Figs. 3, 5, 6, 7, Latte Fig. 6: what seed 0 drew of each row, a row above another."""
    for kind, pattern in DRAWN.items():
        there = {}
        for row in TABLES[args.table].rows:
            if files := sorted(row_job(args, row).folder.glob(pattern)):
                there[row.name] = Image.open(files[0])
        if there:
            path = Path(args.out) / args.config / f"{args.table}-{kind}.png"
            page(path, list(there.values()), list(there), columns=1)
            print(f"{path}: {kind} of each row, by seed 0")


# The commands alone, for a cluster whose jobs one starts by hand, and to see what a table would do before it
# does it.
def dry_run(args):
    shared, jobs = shared_training(args), []
    for command in shared:
        print(f"  {'once':20}{shown(command)}")
    print(f"\n{args.table}: {TABLES[args.table].title}")
    for row in TABLES[args.table].rows:
        for seed in range(args.seeds):
            job = row_job(args, row, seed)
            jobs.append(job)
            for command in (*job.training, *job.measuring.values(), *job.drawing.values()):
                print(f"  {row.name:20}{shown(command)}")
    print(cost(args, shared, jobs))


# -------------------------------------------------------------------------------------------- command line

# The same tables at four sizes: `tiny` shows in minutes that every command runs, and nothing else; `small` is
# meant for seeds; `toy` is the shipped checkpoint's size; the published presets are the papers'. A default
# that is -1 depends on another flag.

def parse(argv):
    flags = FlagParser(prog="ablate.py", description="a table of a paper, row by row; without one: a list")
    add = flags.add_argument
    add("table", choices=TABLES)
    add("--config", default="small", choices=PRESETS, metavar="PRESET",
        help="of train.py: tiny, small, toy, or videodit-256, latte-ffs ...")
    add("--out", default="runs/ablate", help="folder; it holds CONFIG/RUN/SEED/result.json")
    add("--results", default="", help="folder for TABLE.json, .md and .png; default: OUT/CONFIG")
    add("--seeds", type=int, default=1, help="runs of each row; 3 or more tell rows apart")
    add("--curve", type=int, default=-1,
        help="points of FVD over iterations; default: for Latte's 4 in the toy world, 15 in its figures")
    add("--train", default="", type=shlex.split, help="further flags of train.py for every row, in quotes")
    add("--launch", default="", type=shlex.split,
        help='instead of python for train.py and eval.py sample: "torchrun --nproc-per-node 8"')
    add("--real", default="", help="folder of the real clips of FVD, such as UCF101; default: --data")
    add("--videos", default="", help="folder of the videos to be reconstructed (VideoDiT's: 50 of Pexels); "
        "default: --data")
    add("--trust-torchscript", action="store_true", help="run the program that a TorchScript file is")
    add("-n", type=int, default=0, help="clips to look at; 0: tiny 16, small 128, toy 256, else 2048")
    add("--dry-run", action="store_true", help="print the commands of every row, run none")
    if "--train" in argv[:-1]:                                  # else its value, --x, would be a flag of ours
        at = argv.index("--train")
        argv = [*argv[:at], f"--train={argv[at + 1]}", *argv[at + 2:]]
    return check(flags.parse_args(argv))


def check(args):
    """Defaults that depend on others; one line for what cannot be."""
    table = TABLES[args.table]
    trained = PRESETS[table.at]["stages"]
    if not PRESETS[args.config]["stages"].keys() >= trained.keys():     # videodit-512 trains no DP-VAE
        raise UserError(f"--config {args.config} trains no {' and '.join(trained)} for {args.table}; give "
                        f"small, or {table.at} as the paper")
    if args.n == 0:
        args.n = {"tiny": 16, "small": 128, "toy": 256}.get(args.config, 2048)
    if args.curve < 0 and args.config in SMALL:                 # Latte's figures are curves, tables are not
        args.curve = 4 if table.model == "latte" else 0
    elif args.curve < 0:
        args.curve = 15 if table.steps else 0
    at_least(vars(args), n=2, seeds=1)
    refuse_rows_flags(args)
    return args


def main(argv):
    if not argv:
        for key, table in TABLES.items():
            print(f"{key:12}{len(table.rows)} row{'s' if len(table.rows) > 1 else ' '}   {table.title}")
        return
    args = parse(argv)
    if args.dry_run:
        dry_run(args)
    else:
        show(args, run_table(args))


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
