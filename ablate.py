"""ablate.py - every ablation of both papers, as runs of train.py and eval.py that differ in one flag.
Paper    VideoDiT Tables 3-6 (4.3), Figs. 3, 5, 7; Tables 1 and 2 (our row); Latte Figs. 5, 7 (4.2), Tables 3
         and 5, the mask of 3.3.4
Shapes   none: this file only composes commands; --dry-run prints them, to be run by hand as well
Numbers  the paper's, as printed, beside ours. The toy world's come from its attribute classifier and say so:
         the order of the rows may be compared with the paper's, the numbers may not
Differs  the papers run each row once; here --seeds 3 runs it three times and shows the spread. What rows
         have in common is trained once, and so is a run that several tables show, as most show the default
Reads    after eval.py, before bench.py
Run me   python ablate.py                        # CPU, 5 s: the tables; how often three seeds deceive
         python ablate.py videodit-5 --config tiny --seeds 2       # CPU, minutes: without 3D patchify, with
         python ablate.py videodit-5 --seeds 3                     # CPU, hours: in an order that can be seen
         python ablate.py videodit-3 --config videodit-256 --train "--init SD3 --data CLIPS" --real UCF101
Stopped, the same command goes on: a row with a result.json is kept, a stage goes on where it was."""

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
from safetensors import safe_open

import presets
from latte import SIZES
from presets import PRESETS
from pretrained import FILES, load_detector
from support.checkpoints import write_atomic
from support.cli import FlagParser, UserError, polite
from support.drawing import page, plot


HERE, SMALL = Path(__file__).parent, ("tiny", "small", "toy")
DETECTORS = HERE / "checkpoints" / "detectors"          # where eval.py looks if no --weights are given


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


class Table(NamedTuple):
    title: str
    model: str             # the stage that each row trains for itself; the stages before it are trained once
    rows: tuple
    at: str                # the preset whose setting the paper's numbers are of
    needs: str = ""        # "data": shows nothing on the toy world


def scores(fvd, inception):
    return {"FVD": fvd, "IS": inception}


def quality(psnr, ssim, lpips):
    return {"PSNR": psnr, "SSIM": ssim, "LPIPS": lpips}


def latte_scores(faces, sky, ucf101, taichi, fid, inception):
    return {"FVD faces": faces, "sky": sky, "UCF101": ucf101, "Taichi": taichi, "FID faces": fid,
            "IS UCF101": inception}


def size_flags(depth, width, heads):
    return f"--latte.depth {depth} --latte.width {width} --latte.heads {heads} --joint_images 0"


TABLES = {
    # The VAE alone, no transformer: film, and what is left of it. Only our row: the others are other people's
    # models.
    "videodit-1": Table("Table 1: reconstruction", "dpvae", (
        Row("DP-VAE (ours)", "", quality(37.53, 0.980, 0.0444)),), "videodit-256"),
    # The whole model, at its full size, on prompts it was never trained for. One row again, of the 512 x 512
    # phase.
    "videodit-2": Table("Table 2: zero-shot UCF101", "videodit", (
        Row("VideoDiT (ours)", "--p_video 0.8", scores(428.52, 33.04)),), "videodit-512"),
    # DP-VAE is two ideas, so its table has four corners. The 2D VAE encodes the key frames (else a residual
    # encoder has to hold all); regularization keeps the film's latents distributed as a picture's (else the
    # image transformer has to learn its own alphabet anew). Look for a cross: the 2D VAE gives PSNR,
    # regularization costs some and gives FVD. That the best VAE by PSNR is not the best to generate with is
    # the paper's finest point.
    # VideoDiT 4.3: "p", the share of steps on clips and not pictures, "was set to 100%, except for the
    # ablation of joint image-video training"
    "videodit-3": Table("Table 3: DP-VAE", "videodit", (
        Row("neither", "--p_video 1 --no-key_encoder --reg_weight 0",
            quality(35.57, 0.9706, 0.0963) | scores(683.76, 23.18)),
        Row("regularization", "--p_video 1 --no-key_encoder",
            quality(33.85, 0.9643, 0.1183) | scores(654.73, 22.37)),
        Row("2D VAE", "--p_video 1 --reg_weight 0", quality(38.18, 0.9849, 0.0380) | scores(645.28, 27.56)),
        Row("both", "--p_video 1", quality(37.53, 0.9806, 0.0444) | scores(556.42, 29.61))), "videodit-256"),
    # How does an image model get to see time? Make its attention global (2D to 3D), no new weights; or keep
    # it and add a global twin beside it, which doubles the parameters. The paper finds them alike, and keeps
    # the cheap one: a row that is NOT told apart from the other is what would agree.
    "videodit-4": Table("Table 4: what is made global", "videodit", (
        Row("2D and 3D, 4.15B", "--p_video 1 --attention 2d+3d", scores(563.24, 29.00)),
        Row("2D to 3D, 2.03B", "--p_video 1", scores(556.42, 29.61))), "videodit-256"),
    # Global attention over tokens that do not know when they are cannot tell before from after. 3D patchify
    # is a convolution over time, zero at the start, beside the image's patchify: the tokens learn their time
    # from it.
    "videodit-5": Table("Table 5: 3D patchify", "videodit", (
        Row("2D patchify", "--p_video 1 --no-patchify_3d", scores(756.25, 27.85)),
        Row("3D patchify", "--p_video 1", scores(556.42, 29.61))), "videodit-256"),
    # A film model that saw only films forgets what only pictures show. "pictures" is the column to look at:
    # Fig. 7 shows eight, the toy counts (the classifier's names, and an FID of pictures).
    "videodit-6": Table("Table 6, Fig. 7: joint image-video training", "videodit", (
        Row("without", "--p_video 1", scores(556.42, 29.61) | {"pictures": "entirely compromised"}),
        Row("with", "--p_video 0.8", scores(543.18, 32.47) | {"pictures": "preserved"})), "videodit-256"),
    # A token is a patch of one frame, or a tube through two: half the tokens, and the decoder has to undo it.
    # DEVIATES Latte 4.2, in every table: the paper's clips are unconditional faces, the toy's obey prompts.
    "latte-5a": Table("Fig. 5a: patch embedding", "latte", (
        Row("uniform", "--joint_images 0", {"FVD": "better"}),
        Row("compression", "--joint_images 0 --latte.patch_embed compression", {"FVD": "notably behind"})),
        "latte-ffs"),
    # The time step and the class, as scale and shift of every norm (S-AdaLN), or as two more tokens to attend
    # to.
    "latte-5b": Table("Fig. 5b: timestep and class", "latte", (
        Row("S-AdaLN", "--joint_images 0", {"FVD": "significantly better"}),
        Row("all tokens", "--joint_images 0 --latte.conditioning all_tokens", {"FVD": "worse"})),
        "latte-ffs"),
    # Where in time a token is: added to it once, or turned into each query and key. The paper finds little
    # between them.
    "latte-5c": Table("Fig. 5c: temporal position", "latte", (
        Row("absolute", "--joint_images 0", {"FVD": "slightly better"}),
        Row("RoPE", "--joint_images 0 --latte.temporal rope", {"FVD": "slightly worse"})), "latte-ffs"),
    # {image}: --image_model. DEVIATES Latte Fig. 5d: the toy has no DiT to start from, so only films show it.
    "latte-5d": Table("Fig. 5d: start from DiT", "latte", (
        Row("random", "--joint_images 0", {"FVD": "better in the end"}),
        Row("ImageNet", "--joint_images 0 --init {image}", {"FVD": "better at first"})),
        "latte-ffs", "data"),
    # ASSUMED: the intervals are in the figure alone; the paper goes on with 3.
    "latte-5e": Table("Fig. 5e: video sampling interval", "latte", tuple(
        Row(f"{stride}", f"--joint_images 0 --stride {stride}", {"FVD": "alike in the end"})
        for stride in (1, 3, 6)), "latte-ffs", "data"),
    # The paper's central figure: blocks over space and time in turn (1), first all of space (2), both in one
    # block (3), both at once with half the heads each (4). All of nearly the same number of parameters, so
    # the order is the point. The paper's Variant 4 has 3.2's words and Table 1's numbers, which are two
    # networks (latte.blocks_of): "counted" has the quarter of the operations.
    "latte-5f": Table("Fig. 5f, Table 1: model variants", "latte", tuple(
        Row(f"Variant {name}", f"--joint_images 0 --latte.variant {flags}", paper)
        for name, flags, paper in (
            ("1", "1", {"params (M)": 673.68, "FLOPs (G)": 5572.69, "FVD": "best"}),
            ("2", "2", {"params (M)": 673.68, "FLOPs (G)": 5572.69, "FVD": "behind 1 and 3"}),
            ("3", "3", {"params (M)": 676.33, "FLOPs (G)": 6153.15, "FVD": "second"}),
            ("4", "4", {"FVD": "worst"}),
            ("4, counted", "4 --latte.v4 paper_count --latte.patch 4",
             {"params (M)": 676.44, "FLOPs (G)": 1545.15, "FVD": "worst"}))), "latte-ffs"),
    # at toy size: a quarter of the width and about a quarter of the depth
    "latte-7": Table("Fig. 7, Table 2: model size", "latte", tuple(
        Row(f"Latte-{name}", size_flags(**SIZES[name]), {"params (M)": params, "FVD": "falls with size"},
            size_flags(*small))
        for name, params, small in (("S", 32.48, (4, 96, 3)), ("B", 129.54, (4, 192, 6)),
                                    ("L", 456.81, (6, 256, 8)), ("XL", 673.68, (8, 288, 9)))), "latte-ffs"),
    # Pictures beside each clip, from the same films: more scenes in a batch for less than a clip's price.
    "latte-3": Table("Tables 3, 5: joint image-video training", "latte", (
        Row("Latte", "--joint_images 0", latte_scores(34.00, 59.82, 477.97, 159.60, 5.02, 68.53)),
        Row("Latte+IMG", "--batch 32 --joint_images 8",
            latte_scores(27.08, 42.67, 202.23, 97.09, 3.87, 73.31), small="--joint_images 1")), "latte-ffs"),
    # Those pictures stand as further frames. In the blocks over time they may be left out, or attend to
    # themselves alone.
    "latte-mask": Table("3.3.4: what pictures do in time (--config latte-t2v)", "latte", (
        Row("Only Video", "--latte.joint only_video", {"FVD": 705.72, "FID": 75.98}),
        Row("Temporal Mask", "--latte.joint temporal_mask", {"FVD": 589.86, "FID": 63.36})), "latte-t2v"),
}


# ------------------------------------------------------------------------------------------------ commands

# A table becomes folders and commands, nothing else; what is printed by --dry-run is what is run:
#
#     OUT/CONFIG/base/             classifier, vae, dit, dpvae, the cached latents: trained once, with seed 0
#     OUT/CONFIG/RUN/SEED/         a row: base's networks, its own transformer, samples/, result.json
#     OUT/CONFIG/TABLE.json .md .png                         what came out, for people and programs
#
# A RUN is named by its flags, so that two tables that ask for the same run share it. A seed changes all that
# is drawn after base: weights, noise, the order of the clips and, in the toy world, the clips themselves; so
# each seed has a cache of its own. (Only Table 3's rows train a DP-VAE for themselves.)

class Job(NamedTuple):
    """A folder and the commands that fill it: of train.py as words, of eval.py as (name, words)."""
    folder: Path
    training: list
    judging: list
    model: str = ""


def base(args):
    return Path(args.out) / args.config / "base"


def cache_of(args, seed):
    return base(args) / (f"cache-{seed}" if seed else "cache")


def shared_job(args):
    """The stages before the rows' own, in the preset's order."""
    stages = PRESETS[args.config]["stages"]
    before = [stage for stage in ("classifier", "vae", "dit", "dpvae") if stage in stages]
    commands = [train_command(args, stage, base(args), "") for stage in before]
    if "videodit" in stages and "dit" not in stages:            # published weights: prompts and latents, once
        commands.append(train_command(args, "cache", base(args), "--p_video 0.8"))      # 0.8: pictures, too
    return Job(base(args), commands, [])


# At toy size a few rows need other flags to mean the same thing: Latte-XL is 28 blocks of width 1,152 as
# published and 8 of width 288 in the toy; "eight pictures beside a clip of 16 frames" is one beside four
# frames of latents.
def flags_of(args, row):
    flags = row.small if row.small and args.config in SMALL else row.flags
    return flags.replace("{image}", shlex.quote(args.image_model))


def row_job(args, key, row, seed=0):
    """Train what is the row's own, then judge what came out."""
    model, flags = TABLES[key].model, flags_of(args, row)
    own = [model] if model != "dpvae" or seed else []           # base has one, of seed 0
    if re.search("key_encoder|reg_weight", flags):              # a DP-VAE of its own, and so its own latents
        own = ["dpvae", model] if "dit" in PRESETS[args.config]["stages"] else ["dpvae", "cache", model]
    name = re.sub(r"[^\w.]+", "-", f"{model} {flags}").strip("-")
    folder = base(args).with_name(name) / str(seed) if own else base(args)
    training = [train_command(args, stage, folder, flags, seed, points(args, model) if stage == model else 0)
                for stage in own]
    config = presets.parse(train_command(args, model, folder, flags, seed)[1:])[0]
    return Job(folder, training, judge_commands(args, model, folder, config, seed), model)


# The cache is the other reason why rows are cheap. Films go through the VAE once, and every row that shares
# the VAE reads latents; in the toy world that is a minute a seed instead of most of a row's time. A row that
# trains its own DP-VAE has its own latents, in the same folder: they are named by the VAE's weights, so they
# cannot be mistaken for others.
# DEVIATES Latte 4.1, VideoDiT 4.3: on films, too, where the papers encode in the step. A film is 8 windows
# for ever then, so the papers' tables want a large set, or --train "--no-cached" and the hours.
def train_command(args, stage, folder, flags, seed=0, states=0):
    """Latents are cached once for all rows that share a VAE: a cache is named by the VAE's weights. But not
    where the rows cut their clips differently. states: so many stay on disk, for a curve over iterations."""
    cache = folder / "cache" if "--stride" in flags else cache_of(args, seed)
    words = ["train.py", "--config", args.config, "--stage", stage, *shlex.split(flags),
             "--out", str(folder), "--cached", "--cache", str(cache), "--seed", str(seed),
             *shlex.split(args.train)]
    if states:
        words += ["--save_every", str(every(presets.parse(words[1:])[0], states)), "--keep", str(states)]
    return words


def points(args, model):
    """Of the curve of FVD over iterations: Latte's figures are curves, VideoDiT's tables are not."""
    return args.curve if args.curve >= 0 else 4 * (model == "latte")


def every(config, points):
    """Steps between two points of a curve whose last is the end."""
    return max(config.steps // points, 1)


# A row is judged by what its table has: PSNR, SSIM and LPIPS where a VAE differs, FVD and IS or FID where
# clips do. The toy world adds what it alone can count: does the clip obey its prompt, and how near is it to
# one that can exist (eval.py toy). All rows are judged with the same real clips, the same prompts in the same
# order, and noise that is keyed by seed and clip, so two rows of one seed differ in their weights and in
# nothing else.
def judge_commands(args, model, folder, config, seed):
    """eval.py: reconstruction where there is a DP-VAE, and clips where there is a transformer."""
    toy, commands = config.data == "toy", []
    classifier = ["--features", "toy", "--classifier", str(folder / "classifier.safetensors")]
    if model != "latte":                                        # VideoDiT 4.1: 50 films of 64 frames
        films = ["toy", "-n", str(args.n), *classifier]
        if not toy:
            films = [args.films or config.data, "--frames", "64", "--size", "512",
                     *weights(args, "lpips_alex")]
        commands = [("recon", ["recon", str(folder), *films, "--sheet", str(folder / "recon.png")])]
    if model == "dpvae":
        return commands
    if toy:
        commands.append(("toy", ["toy", "--ckpt", str(folder), "-n", str(max(args.n // 2, 1)),
                                 "--model", model, "--seed", str(seed), "--nearest", str(args.nearest),
                                 "--no-ceiling", "--given", "0", "--bf16"]))   # six rows of -n clips: half do
    commands += clip_commands(args, model, folder, config, seed, classifier, folder, "")
    between = every(config, points(args, model) or 1)
    for step in range(between, config.steps, between):
        early = folder / model / f"{step:07d}"                 # a state that train.py kept, a folder like any
        commands += clip_commands(args, model, folder, config, seed, classifier, early, f"@{step}")
    return commands


# Latte's figures are curves, FVD over iterations, because orders change on the way: a model that starts from
# ImageNet's weights leads first and loses later (Fig. 5d). A curve needs the weights of earlier steps:
# train.py keeps them (--keep), each a folder to sample from. All points have as many clips, since FVD depends
# on how many there are.
def clip_commands(args, model, folder, config, seed, classifier, source, when):
    """Clips by the weights in `source`, and how far they are from real ones. when: "", or "@STEP", where the
    distance of a curve's point is enough."""
    n, clips = str(args.n), str(folder / f"samples{when}")
    features = ["--cache", str(base(args) / "features")]        # of the real clips, which all rows share
    sample = ["sample", str(source), "-n", n, "-o", clips, "--model", model, "--seed", str(seed),
              "--batch", str(args.batch), *["--sheet", f"{clips}.png"] * (not when)]
    if config.data == "toy":
        shape = ["--clips", n, "--frames", str(config.frames), "--size", str(config.size)]
        look, real, sample = [*classifier, *shape, *features], "toy:video", [*sample, "--png", "--bf16"]
    else:
        real, sample = args.real or config.data, sample + ["--prompts", args.real] * asks_text(model, config)
        look = ["--protocol", "videodit" if model == "videodit" else "latte", "--clips", n, *features]
        for flag, have, asked in (("--size", config.size, 256), ("--frames", config.frames, 16)):
            look += [flag, str(have)] * (have < asked)      # smaller than published: compared at its own size
    kinds = distances(args, model, config) if not when else [("fvd", "i3d")]
    splits = ["--splits", n] * (args.n < 10)                    # of IS, whose parts are 10
    full = ["--full"] * (config.data != "toy")                  # FID's published form: all real frames
    apart = []
    if config.data != "toy" and model == "latte":   # real clips move as those of the training did
        apart = ["--real_stride", "6" if "taichi" in args.config else str(config.stride)]  # 6: eval_clips.py
    sides = {"fvd": [real, clips, *look, *apart], "fid": [real, clips, *look, *full],
             "is": [clips, *look, *splits]}
    made = [(f"{kind}{when}", [kind, *sides[kind], *weights(args, detector, config)])
            for kind, detector in kinds]
    return [(f"sample{when}", sample), *made] + (
        picture_commands(args, folder, config, seed, classifier) if model == "videodit" and not when else [])


# A film model asked for one frame is an image model again: the key frames' decoder makes it. Fig. 7 asks
# whether it still can, and shows eight pictures of each row; sixteen are made as published, and laid side by
# side by show().
def picture_commands(args, folder, config, seed, classifier):
    """VideoDiT Fig. 7: what the model still knows of pictures. The paper shows eight, the toy can count."""
    toy, out = config.data == "toy", str(folder / "pictures")
    sample = ["sample", str(folder), "-n", str(args.n) if toy else "16", "-o", out, "--frames", "1",
              "--model", "videodit", "--seed", str(seed), "--batch", str(args.batch),
              "--sheet", f"{out}.png", *["--bf16"] * toy, "--prompts", "toy:image" if toy else args.real]
    look = ["fid", "toy:image", out, *classifier, "--clips", str(args.n), "--frames", "1",
            "--size", str(config.size), "--cache", str(base(args) / "features")]
    return [("sample pictures", sample)] + [("fid pictures", look)] * toy


def asks_text(model, config):
    return model == "videodit" or config.latte.condition == "text"


def distances(args, model, config):
    """(eval.py's command, its network), as the papers have them: IS where clips have UCF101's classes, FID in
    Latte's tables of faces and of text-to-video."""
    classes = model == "videodit" or config.latte.condition == "class"
    if config.data == "toy":
        return [("fvd", ""), ("fid", "")]
    return [("fvd", "i3d"), ("is", "c3d") if classes else ("fid", "inception")]


# The networks of the published metrics are other people's files (eval.py says whose). A TorchScript is a
# program, so it runs only where --trust-torchscript says that its maker is trusted.
def weights(args, detector, config=None):
    """The flags for a published network that looks; the toy's attribute classifier needs none."""
    if config and config.data == "toy":
        return []
    path = Path(args.detectors or DETECTORS) / FILES[detector]
    return (["--weights", str(path)] * bool(args.detectors)
            + ["--trust-torchscript"] * (args.trust_torchscript and detector != "lpips_alex"))


# As one would type it.
def shown(command):
    return shlex.join(["python", *command])


# --------------------------------------------------------------------------------- looked for before anything

# A table at paper size is weeks of a machine's work, of which the last minute opens I3D's file. So everything
# that the last command will need is opened before the first one starts.

# In the order of what people forget: a flag that fights the rows', films, real clips, weights to start from,
# networks that judge. Those are not only found but loaded, since a download that broke off is found as well.
def look_for(args, key, jobs, shared):
    """Raise for the first thing that is missing, or that would make two rows the same."""
    table = TABLES[key]
    about = set().union(*(given(args, table.model, flags_of(args, row)) for row in table.rows))
    reserved = about | {"out", "cache", "seed", "config", "stage"}
    reserved |= {"save_every", "keep"} if points(args, table.model) else set()
    for name in sorted(given(args, table.model, args.train) & reserved):
        why = {"seed": "give --seeds", "out": "give --out", "config": "give --config"}.get(
            name, f"{key} sets it" if name in about else "ablate.py sets it")
        raise UserError(f"--train: --{name} would be the same in every row; {why}: leave it out of --train")
    configs = [presets.parse(command[1:])[0] for job in (shared, *jobs) for command in job.training]
    toy = configs[-1].data == "toy"
    if not configs[-1].data:
        raise UserError(f'{key} at --config {args.config} trains on films; give --train "--data FOLDER"')
    if table.needs == "data" and toy:
        raise UserError(f'{key} shows nothing on the toy world; give --train "--data FOLDER_OF_FILMS"')
    if not toy and not args.real and asks_text(table.model, configs[-1]) and table.model != "dpvae":
        raise UserError(f"{key} is judged against clips that no training saw; give --real UCF101, its folder")
    own = {"--real": args.real, "--films": args.films, "--detectors": args.detectors}
    names = ("init", "data", "images", "vae_weights", "text_weights", "lpips")
    for config in configs:
        places = own | {f"--{name}": getattr(config, name) for name in names}
        for flag, place in places.items():
            if place not in ("", "toy") and not Path(place).expanduser().exists():
                flag = "--image_model" if place == args.image_model else flag
                where = "" if flag in own or flag == "--image_model" else " in --train"
                raise UserError(f"{key} needs {flag} {place}, and there is none; give {flag}{where}")
        if config.batch % config.accumulate:
            raise UserError(f"--batch {config.batch}: must be a multiple of --accumulate {config.accumulate}")
    for kind in () if toy else detectors_of(jobs):
        load_detector(Path(args.detectors or DETECTORS) / FILES[kind], kind, args.trust_torchscript)


# "--train" is for what all rows have in common. A flag in it that a row is about would win over the row's,
# and the table would show four times the same run under four names; nothing would fail, and the numbers would
# even differ a little.
def given(args, stage, flags):
    """The names of train.py's flags among these words, however they are written: --no-x, --x=1."""
    words = shlex.split(flags)
    own = {word[2:].partition("=")[0] for word in words} & {"config", "stage"}
    return own or set(presets.parse(["--config", args.config, "--stage", stage, *words])[0].given)


def detectors_of(jobs):
    asked = {words[0] for job in jobs for _, words in job.judging}
    return [kind for command, kind in (("recon", "lpips_alex"), ("fvd", "i3d"), ("fid", "inception"),
                                       ("is", "c3d")) if command in asked]


# ------------------------------------------------------------------------------------------------- running

# A table is days at paper size, hours in the toy world, and will be interrupted. Nothing here remembers how
# far it was: each command is one that can be given again (train.py resumes, eval.py sample makes what is
# missing), and a row that is done has a result.json, with all commands that led to it, the shared ones among
# them. If those are no longer the commands that would be run now, the result is of another question, and is
# refused instead of reused. Seeds are the outer loop: stopped after one seed, the table has all its rows.

# A command is run as a person would run it, in a process of its own: its memory is given back, a crash is its
# own, and what was printed can be pasted. With --launch, training and sampling run on all GPUs; distances on
# one.
def run(args, command):
    """Run one command; its last line if that is JSON, else {}. Progress, on stderr, is seen as it comes."""
    print(f"\n{shown(command)}", flush=True)
    shared = args.launch and (command[0] == "train.py" or command[1] == "sample")   # ranks divide the clips
    launcher = shlex.split(args.launch) if shared else [sys.executable]
    words = [*launcher, str(HERE / command[0]), *command[1:]]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise UserError(f"stopped: this command failed: {shown(command)}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return json.loads(last) if last.startswith("{") else {}


# The row's folder gets copies of what base trained, so that it is whole: eval.py and sample.py take it like
# any --out, and it can be kept when base is deleted. What the row trained itself (Table 3's DP-VAE) is never
# covered by base's.
def run_row(args, job, shared):
    """{"ours": {name: what eval.py says of the row}, "params", "cpu_s"}, made or found."""
    path = job.folder / "result.json"
    commands = [shown(words) for words in (*shared.training, *job.training)]
    commands += [shown(["eval.py", *words]) for _, words in job.judging]
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        # a result of before calls the attribute classifier a judge
        before, now = (" ".join(lines).replace("judge", "classifier") for lines in (found["commands"], commands))
        if before != now:
            raise UserError(f"{path} is of other commands; delete {job.folder}, or give another --out")
        return found
    for name in ("classifier", "vae", "dit", "text", "dpvae"):
        theirs, ours = (folder / f"{name}.safetensors" for folder in (shared.folder, job.folder))
        if theirs.exists() and not ours.exists():
            write_atomic(ours, lambda temporary: shutil.copy(theirs, temporary))
    before = children_seconds()
    for command in job.training:
        run(args, command)
    measured = {name: found for name, words in job.judging if (found := run(args, ["eval.py", *words]))}
    found = {"commands": commands, "ours": measured, "cpu_s": round(children_seconds() - before, 1),
             "params": count_parameters(job.folder / f"{job.model}.safetensors"),
             "steps": presets.parse(job.training[-1][1:])[0].steps if job.training else 0}
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(found, indent=1), "utf-8"))
    return found


# Hours on a machine that does other things say little. CPU time is what the work itself took, and it is what
# results/ states; on a GPU it is nothing of the kind, there the log's steps per second are.
def children_seconds():
    """CPU time of all commands so far: it does not depend on what else the machine does, as hours do."""
    times = os.times()
    return times.children_user + times.children_system


# Latte's sizes and variants are told apart by it (Table 1 of the paper), and "2D+3D" pays with it. Fixed
# tables of positions are counted where a network stores them.
def count_parameters(path):
    """Of a .safetensors, from its table of contents."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())


def run_table(args, key):
    """For each row its runs, one a seed, after everything that can be wrong has been looked at."""
    rows = [[row_job(args, key, row, seed) for seed in range(args.seeds)] for row in TABLES[key].rows]
    jobs, shared = [job for row in rows for job in row], shared_job(args)
    look_for(args, key, jobs, shared)
    if not all((job.folder / "result.json").is_file() for job in jobs):
        for command in shared.training:
            run(args, command)
    found = {}
    for seed in range(args.seeds):                  # seed by seed: stopped early, whole tables are there
        for number, row in enumerate(rows):
            found[number, seed] = run_row(args, row[seed], shared)
    return [[found[number, seed] for seed in range(args.seeds)] for number in range(len(rows))]


# ------------------------------------------------------------------------------------------- what came out

# Two rows, three seeds each. When may one be called better? The usual answer (a significance test) needs to
# know how numbers are spread, and three say little of that. This one does not: were the rows alike, the six
# numbers would be six draws of one kind, and each of the 20 ways to deal three of them to a row as likely as
# any other. In two of the 20 all of one row lie below all of the other. So "told apart" means: every seed of
# one beyond every seed of the other; and it deceives, where nothing differs, in 2 of 20 tables, 10 %. With
# two seeds it would be 2 of 6, with one always: a table of one seed shows an order and no evidence.
# Several measures and many pairs are so many chances to be deceived: one in ten is what is wrong.

# Ties count against: two equal numbers at the border are not beyond each other.
def told_apart(a, b):
    """Every number of one beyond every number of the other. One number each tells nothing."""
    return min(len(a), len(b)) > 1 and (max(a) < min(b) or max(b) < min(a))


# Independent of the measure and of how it is spread, which is why so crude a rule is used.
def deceived(seeds):
    """How often two rows that do not differ are told apart: 2 of the ways to deal 2n numbers to two rows."""
    return 2 / math.comb(2 * seeds, seeds) if seeds > 1 else 0.0


# Two kinds of doubt, printed apart. "+-" is eval.py's: how far another set of clips of the SAME weights would
# have scored. The range in brackets is the seeds': how far the same flags' OTHER weights did. The second
# holds the first, and is the one that a claim about a method has to beat; papers print neither.
def summary(ours):
    """{eval.py's command: its JSON} -> {column: (number, its standard error or None)}."""
    recon, line = ours.get("recon", {}), {}
    for key, name in (("psnr", "PSNR"), ("ssim", "SSIM"), ("lpips", "LPIPS"), ("toy_lpips", "toy LPIPS")):
        line |= {name: (recon[key], None)} if key in recon else {}
    for key, found in ours.items():                     # metric: "fvd", or of the classifier "toy fvd"
        kind, _, what = key.partition(" ")
        if kind in ("fvd", "fid", "is"):
            name = f'{found["metric"].replace(kind, kind.upper())} {what}'.strip()
            line[name] = found[kind], found["standard_error"]
    scored = ours.get("toy", {})
    for name, row in (("clips", "video_seen"), ("new clips", "video_heldout"), ("pictures", "image_seen")):
        line |= {f"toy {name} %": (100 * mean(scored[row].values()), None)} if row in scored else {}
    if scored:
        line["toy motion %"] = 100 * scored["video_seen"]["motion"], None
    if "nearest" in scored:
        near = scored["nearest"]["generated"]
        line["nearest dB"] = near["db"], near["error"]
    return line


# A loss compares rows that learn from the same clips under the same noise, and nothing else: with another
# VAE, or with pictures among the steps, it is a loss of something else.
def last_loss(job):
    """{"training loss": (its mean over the last fifth of the steps, None)}, {} where nothing was trained."""
    path = job.folder / job.model / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    late = [line[job.model] for line in lines if line["step"] > 0.8 * lines[-1]["step"]]
    return {"training loss": (mean(late), None)} if late else {}


# The JSON has every seed, not only means: who doubts the rule above can apply his own. The command in it is
# the one that makes it; machine and CPU time stand beside, because a result without them cannot be repeated
# or planned.
def collect(args, key, results):
    """A table as JSON: the paper's numbers, ours of every seed, what made them."""
    table, rows = TABLES[key], []
    for row, runs in zip(table.rows, results):
        lines = [summary(found["ours"]) | last_loss(row_job(args, key, row, seed))
                 for seed, found in enumerate(runs)]
        curve = {name.partition("@")[2]: [found["ours"][name]["fvd"] for found in runs]
                 for name in runs[0]["ours"] if name.startswith("fvd@")}
        rows.append({"name": row.name, "paper": row.paper, "params": runs[0]["params"],
                     "steps": runs[0]["steps"], "cpu_s": [found["cpu_s"] for found in runs], "curve": curve,
                     "ours": {name: {"seeds": [line[name][0] for line in lines],
                                     "standard_error": [line[name][1] for line in lines]}
                              for name in lines[0]}})
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}"
    flags = ["--config", args.config, "--seeds", str(args.seeds), "-n", str(args.n)]
    return {"table": key, "title": table.title, "config": args.config, "paper_at": table.at,
            "command": shown(["ablate.py", key, *flags, *["--train", args.train] * bool(args.train)]),
            "seeds": args.seeds, "clips": args.n, "machine": machine, "rows": rows}


# The claim of a table is an order. So it is printed as one, a line a measure. "~" between neighbours means
# that these runs cannot tell them apart, which is not that they are equal: with three seeds a difference of
# two deviations is seen in two tables of three, of one deviation in one of four (the demo's picture, on the
# right).
def order(found):
    """{column: "a < b ~ c"}: rows from the lowest mean up; "<" where all seeds are apart, else "~"; "=" where
    nothing of what is measured differs (rows that share a DP-VAE share its PSNR)."""
    told = {}
    for name in found["rows"][0]["ours"]:
        rows = sorted(((row["ours"][name]["seeds"], row["name"]) for row in found["rows"]
                       if name in row["ours"]), key=lambda pair: mean(pair[0]))
        text = rows[0][1]
        for (before, _), (after, label) in zip(rows, rows[1:]):
            text += f" {'=' if before == after else '<' if told_apart(before, after) else '~'} {label}"
        told[name] = text
    return told


# Four digits: more would be noise, as the brackets beside them show.
def cell(numbers):
    """"12.5 (11.8 to 13.4) +- 0.6": the mean of the seeds, the least and the most, eval.py's own error."""
    seeds, errors = numbers["seeds"], [error for error in numbers["standard_error"] if error is not None]
    text = f"{mean(seeds):.4g}"
    text += f" ({min(seeds):.4g} to {max(seeds):.4g})" if len(seeds) > 1 else ""
    return text + (f" +- {mean(errors):.2g}" if errors else "")


def markdown(found):
    """The table as Markdown: it is read as it is, too."""
    columns = [{"row": row["name"], **{f"paper's {name}": value for name, value in row["paper"].items()},
                "our params (M)": f"{row['params'] / 1e6:.2f}",
                **{f"our {name}": cell(numbers) for name, numbers in row["ours"].items()}}
               for row in found["rows"]]
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = [names, ["---"] * len(names),
             *([str(column.get(name, "-")) for name in names] for column in columns)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(names))]
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    seeds, said = found["seeds"], "One seed: an order, no evidence. Lowest first:"
    if seeds > 1:
        said = (f"{seeds} seeds: mean (least to most) +- eval.py's own standard error. Lowest first, < where "
                f"every seed is apart; alike rows would be told apart in {deceived(seeds):.0%} of tables:")
    if found["config"] != found["paper_at"]:
        text.append(f"\nThe paper's numbers are of {found['paper_at']}, ours of {found['config']}: only the "
                    "order of the rows compares.")
    return "\n".join([*text, "", said, "", *(f"- {name}: {line}" for name, line in order(found).items())])


def show(args, key, results):
    """Print the table; write TABLE.json, TABLE.md and the chart; lay the rows' pictures side by side."""
    found, folder = collect(args, key, results), Path(args.results or Path(args.out) / args.config)
    text = f"{key}: {found['title']}\n\n{markdown(found)}\n"
    print(f"\n{text}")
    write_atomic(folder / f"{key}.json", lambda to: to.write_text(json.dumps(found, indent=1), "utf-8"))
    write_atomic(folder / f"{key}.md", lambda to: to.write_text(text, "utf-8"))
    draw_table(folder / f"{key}.png", found)
    draw_pictures(args, key)


# A dot a seed and no bars: a bar's length asks to be compared from 0, which no FVD means, and hides how few
# runs it is.
def draw_table(path, found, most=4):
    """A chart a measure: the curves over iterations where there are some, else a dot a seed."""
    rows, charts = found["rows"], []
    if rows[0]["curve"]:
        charts.append(draw_curves(found))
    names = ("PSNR", "toy FVD", "FVD", "nearest dB", "toy pictures %", "IS", "toy FID", "FID")
    same = lambda name: all(row["ours"].get(name) == rows[0]["ours"][name] for row in rows)
    wanted = [name for name in names if name in rows[0]["ours"] and not same(name)]     # (one VAE, one PSNR)
    for name in wanted[:most - len(charts)]:
        dots = {row["name"]: ([number] * found["seeds"], row["ours"][name]["seeds"], ".")
                for number, row in enumerate(rows) if name in row["ours"]}
        title = f"{found['title']}: {name}"
        charts.append(plot(None, dots, title, "row", "a dot is a seed", size=(520, 340)))
    page(path, charts)


# The curve's last point is the row's own result; those before it are of weights that training has long
# overwritten.
def draw_curves(found):
    """FVD over iterations, as Latte's Figs. 5 and 7: a line through the means, a dot a seed."""
    last, curves = next(name for name in found["rows"][0]["ours"] if "FVD" in name), {}
    for row in found["rows"]:
        steps = [*map(int, row["curve"]), row["steps"]]
        values = [*row["curve"].values(), row["ours"][last]["seeds"]]                       # (points,seeds)
        curves[row["name"]] = steps, [mean(seeds) for seeds in values]
        curves |= {f"_{row['name']} {seed}": (steps, [seeds[seed] for seeds in values], ".")
                   for seed in range(found["seeds"])}
    return plot(None, curves, found["title"], "steps", last, size=(520, 340))


# Numbers rank, pictures explain. The rows' reconstructions (with their errors), clips and pictures, of the
# same films and the same prompts, stand one above another; the paper's Figs. 3, 5 and 7 are such pages.
def draw_pictures(args, key):
    """VideoDiT Figs. 3, 5, 6, 7: reconstructions, clips and pictures of seed 0, a row above another."""
    from PIL import Image
    rows = [(row.name, row_job(args, key, row).folder) for row in TABLES[key].rows]
    for kind in ("recon", "samples", "pictures"):
        there = [(name, folder / f"{kind}.png") for name, folder in rows]
        there = [(name, file) for name, file in there if file.is_file()]
        if there:
            path = Path(args.out) / args.config / f"{key}-{kind}.png"
            page(path, [Image.open(file) for _, file in there], [name for name, _ in there], columns=1)
            print(f"{path}: {kind} of each row, by seed 0")


# The commands alone, for a cluster whose jobs one starts by hand, and to see what a table would do before it
# does it.
def dry_run(args, key):
    print(f"\n{key}: {TABLES[key].title}")
    for row in TABLES[key].rows:
        for seed in range(args.seeds):
            job = row_job(args, key, row, seed)
            for command in [*job.training, *(["eval.py", *words] for _, words in job.judging)]:
                print(f"  {row.name:16}{shown(command)}")


# -------------------------------------------------------------------------------------------- command line

# The same tables at four sizes: `tiny` shows in minutes that every command runs, and nothing else; `small` is
# meant for seeds; `toy` is the shipped checkpoint's size; the published presets are the papers'. A default
# that is -1 depends on another flag, and is settled in check().

def parse(argv):
    flags = FlagParser(prog="ablate.py", description="a table of a paper, row by row; without one: a list")
    add = flags.add_argument
    add("table", choices=[*TABLES, "all"])
    add("--config", default="small", help="of train.py: tiny, small, toy, or videodit-256, latte-ffs ...")
    add("--out", default="runs/ablate", help="folder; it holds CONFIG/RUN/SEED/result.json")
    add("--results", default="", help="folder for TABLE.json, .md and .png; default: OUT/CONFIG")
    add("--seeds", type=int, default=1, help="runs of each row; 3 or more tell rows apart")
    add("--curve", type=int, default=-1, help="points of FVD over iterations; default: 4 for Latte's, else 0")
    add("--train", default="", help="further flags of train.py for every row, in quotes")
    add("--launch", default="", help='instead of python for train.py: "torchrun --nproc-per-node 8"')
    add("--real", default="", help="folder of the real clips of FVD, such as UCF101; default: --data")
    add("--films", default="", help="folder of the films to be reconstructed; default: --data")
    add("--detectors", default="", help="folder of the published networks that look; see eval.py --weights")
    add("--trust-torchscript", action="store_true", help="run the program that a TorchScript file is")
    add("--image_model", default="DiT-XL-2-256x256.pt", help="latte-5d: the image model's file")
    add("-n", type=int, default=0, help="clips to judge; 0: 16 in tiny, 128 in small, 256 in toy, else 2048")
    add("--nearest", type=int, default=-1, help="of the toy's clips, how many to fit; default: a 16th")
    add("--batch", type=int, default=32, help="clips that are sampled at once, at most")
    add("--dry-run", action="store_true", help="print the commands of every row, run none")
    argv = list(argv)
    if "--train" in argv[:-1]:                                  # else its value, --x, would be a flag of ours
        at = argv.index("--train")
        argv[at:at + 2] = [f"--train={argv[at + 1]}"]
    return check(flags.parse_args(argv))


def check(args):
    """Defaults that depend on others; one line for what cannot be."""
    if args.config not in PRESETS:
        raise UserError(f"--config {args.config}: must be one of {', '.join(PRESETS)}")
    if args.table == "videodit-2" and not fits(args.config, args.table):
        raise UserError(f"--config {args.config}: Table 2 is of 96 frames of 512 x 512; give --config "
                        'videodit-512 --train "--init runs/videodit-320"; the paper\'s number for 256 is in '
                        "videodit-6")
    if args.table in TABLES and not fits(args.config, args.table):
        fitting = [name for name in PRESETS if fits(name, args.table)]
        raise UserError(f"--config {args.config} has not the stages of {args.table}, or no pictures beside "
                        f"its clips; give {' or '.join(fitting)}")
    args.n = args.n or {"tiny": 16, "small": 128, "toy": 256}.get(args.config, 2048)
    args.nearest = args.n // 16 if args.nearest < 0 else args.nearest
    for name, least in (("n", 2), ("seeds", 1), ("batch", 1)):
        if getattr(args, name) < least:
            flag = "-n" if name == "n" else f"--{name}"
            raise UserError(f"{flag} {getattr(args, name)}: must be at least {least}")
    return args


# A preset that goes on from another's result (videodit-512 from 320) trains no DP-VAE, so it cannot fill a
# table about one.
def fits(config, key):
    """Has the preset the stages that the table's rows train? Table 3's train a DP-VAE each. And what they
    differ by: 96 x 512 x 512 in Table 2, pictures beside clips in 3.3.4."""
    if key == "videodit-2" and config not in (*SMALL, "videodit-512"):
        return False
    if key == "latte-mask" and not PRESETS[config]["stages"].get("latte", {}).get("joint_images"):
        return False
    own = {"dpvae"} if any("reg_weight" in row.flags for row in TABLES[key].rows) else set()
    return own | {TABLES[key].model} <= {*PRESETS[config]["stages"]}


def tables(args):
    """The tables that were asked for; of all, those that the preset and its data can show."""
    if args.table != "all":
        return [args.table]
    toy = presets.parse(["--config", args.config, *shlex.split(args.train)])[-1].data == "toy"
    return [key for key in TABLES if fits(args.config, key) and not (toy and TABLES[key].needs == "data")]


# Without a table to run, the tables are listed, and each row's flags are shown to train.py's parser: a flag
# that was renamed there would otherwise be found by whoever runs the table next.
def listed():
    """{table: rows whose commands train.py understands}. An unknown flag raises."""
    args = parse(["all"])
    return {key: len([row_job(args, key, row) for row in TABLES[key].rows]) for key in TABLES}


# The rule of told_apart, tried out where the truth is known: rows made of random numbers. Left, rows that do
# not differ: how often they are told apart has to be 2 / C(2n, n), by counting. Right, rows that do: what it
# takes to be seen, in deviations between the seeds of one row. Two seeds deceive in one table of three. More
# seeds make the rule stricter, not sharper, as it asks that not one of them strays: of rows two deviations
# apart three seeds see 63 %, five 38 %, and five deceive in 0.8 % where three do in 10. Three are a fair
# bargain for runs that cost hours.
def demo(seeds=(2, 3, 4, 5), tables=20_000):
    """{n: (share of made-up tables in which alike rows are told apart, 2 / C(2n, n), the shares where row b
    lies `EFFECTS` deviations of a seed above a)}."""
    rng, found = np.random.default_rng(0), {}
    for n in seeds:
        a, b = rng.standard_normal((2, tables, n))
        shares = [float(np.mean((a.max(1) < (b + effect).min(1)) | ((b + effect).max(1) < a.min(1))))
                  for effect in EFFECTS]
        found[n] = shares[0], deceived(n), shares
    return found


# How far row b lies above row a in the right picture, in deviations between seeds of one row.
EFFECTS = np.arange(0, 5.1, 0.5)


def draw_demo(path):
    """Left: deceived as often as can be counted. Right: what it takes for a difference to be seen."""
    found = demo()
    left = plot(None, {"made-up tables": (list(found), [value[0] for value in found.values()], "."),
                       "2 / C(2n, n)": (list(found), [value[1] for value in found.values()])},
                "rows that do not differ, told apart", "seeds a row", "share of tables", size=(480, 340))
    right = plot(None, {f"{n} seeds": (EFFECTS, value[2]) for n, value in found.items()},
                 "rows that differ", "difference, in deviations of a seed", "share told apart",
                 size=(480, 340))
    page(path, [left, right])
    return found


def main(argv):
    if not argv:
        for key, rows in listed().items():
            print(f"{key:12}{rows} row{'s' if rows > 1 else ' '}   {TABLES[key].title}")
        measured, exact, _ = draw_demo("out/ablate.png")[3]
        print(f"rows that do not differ are told apart by three seeds in {measured:.1%} of tables (counted: "
              f"{exact:.1%}); drawn in out/ablate.png")
        return
    args = parse(argv)
    if args.dry_run:
        print("\n".join(f"  {'once':16}{shown(command)}" for command in shared_job(args).training))
    for key in tables(args):
        if args.dry_run:
            dry_run(args, key)
        else:
            show(args, key, run_table(args, key))


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
