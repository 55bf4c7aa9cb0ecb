"""eval.py - what a model is worth: PSNR, SSIM, LPIPS, FVD, FID, KVD, IS, and the toy world's prompt score.
Paper    VideoDiT 4.1-4.2 (reconstruction; UCF101, on which it never trained, "zero-shot"), Latte 4.1 (FVD
         over 2,048 clips of 16 frames)
Shapes   video (B,3,T,H,W) in [-1,1]; features (N,R,F): N clips, R rows a clip
         (1 for FVD, T for FID), F features
Numbers  distances are computed in float64; each is printed with its whole protocol and a standard error
Differs  papers print a distance and nothing else; and no clip counts twice on several GPUs, as it does in
         published samplers. grep DEVIATES, ASSUMED
Reads    after eval_clips.py and train.py, before ablate.py
Run me   python eval.py                         # CPU, 3 s: a reconstruction whose error is known
         python eval.py toy                     # prompt score of checkpoints/toy, and its VAE's PSNR
         python eval.py fvd REAL FAKE     # also: fid, is FAKE, recon CKPT DATA, sample CKPT -n 2048 -o DIR
         python eval.py similarity --ckpt FILE      # how alike a Latte's frames are, block by block

    a model --sample--> clips --+
                                +--> features --> FVD, FID, IS       is the set like the real set?
    films, cut by a protocol ---+
    films --VAE--> films again ------> PSNR, SSIM, LPIPS             is each film still itself?
    prompts --model--> clips ------> the classifier, nearest rendering  is it what was asked for? (the toy)"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")        # before torch is loaded: see sample.py

import numpy as np
from safetensors.torch import save_file
import torch
from tqdm import tqdm

from data import ClipConfig, ClipFolder
from latte import frame_similarity, summary, unconditional
from pretrained import FILES, load_detector, load_latte
from sample import (TOKENS, TOY, decode, encode, generate, given_ends, go_on, how_of, load_models,
                    sample_latents, tokens_of)
from vae import DPVAE, GOP, KLVAE, fold
from support import nearest, toy_world
from support.checkpoints import class_of, load_network, read_config, read_state, sweep, write_atomic
from support.cli import FlagParser, UserError, polite
from support.detectors import (ATTRIBUTES, C3D, I3D, AttributeClassifier, Inception, classifier_file,
                               classifier_right, classifier_targets,
                               perceptual_distance)
from support.drawing import contact_sheet, heat, page
from support.eval_clips import PROTOCOLS, Protocol, Side, at_least, check_count, one_of, read_protocol, warn
from support.latent_cache import fingerprint
from support.metrics import frechet, gaussian, inception_score, kernel_distance, psnr, ssim, standard_error
from support.ops import has_bf16
from support.toy_world import UNSEEN, parse_toy, prompt_at
from support.video_io import Unusable, save_clip, to_video


# ------------------------------------------------------------------------------------------ looking at sets

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
# with other weights; two FVDs compare only if every choice behind them is the same (eval_clips.py).
#
# Inception Score needs no real clips. It asks whether the network is sure what each clip shows, and whether
# the clips show everything (metrics.py has the formula); so it means something only for a model of the
# network's own classes: C3D's on UCF101.

# Where the networks are that look: the toy's classifier is shipped, published ones are downloaded by whoever
# needs them.
CLASSIFIER, UNTRAINED = TOY / "classifier.safetensors", {"i3d": I3D, "inception": Inception, "c3d": C3D}
DETECTORS = TOY.parent / "detectors"          # where the networks' files are looked for without --weights


# A network that looks is somebody's file, and which one decides the number: the I3D of StyleGAN-V's FVD and
# the one of pytorch-i3d have the same plan and other weights. So the file's hash is a part of what remembered
# features are known by, and a toy number says "toy" in its name wherever it is printed.
def open_detector(kind, args, purpose):
    """(look, mark): look(video (B,3,T,H,W)) -> (B,R,F); mark tells two networks apart in the cache.
    kind: i3d, inception, c3d, or toy, the classifier. purpose: fvd, fid or is."""
    if kind == "toy":
        classifier = load_network(AttributeClassifier, args.classifier).to(device())
        look = {"fvd": lambda video: classifier.clip_features(video)[:, None],              # (B,1,F)
                "fid": classifier.frame_features,                                           # (B,T,F)
                "is": lambda video: classifier(video)["subject"][:, None]}[purpose]         # (B,1,12)
        return look, f"{purpose} {fingerprint(classifier)}"
    path = Path(args.weights or DETECTORS / FILES[kind])
    if args.time and not path.is_file():                # how fast it is does not depend on what it knows
        warn(f"no weights at {path}: random ones, to measure the time; the distance means nothing")
        net, path = UNTRAINED[kind]().eval().to(device()), Path(__file__)
        args.cache = ""                                     # what they see is nobody's features
    else:
        net = load_detector(path, kind, args.trust_torchscript).to(device())
    look = lambda video: net(video)[:, None]                                                # (B,1,F)
    if kind == "inception":                                # TensorFlow's Inception Score leaves the bias out
        see = net.features if purpose == "fid" else lambda images: net(images, bias=False)
        look = lambda video: see(fold(video)).unflatten(0, (len(video), -1))                # (B,T,F)
    with open(path, "rb") as file:
        return look, f"{purpose} {hashlib.file_digest(file, 'sha256').hexdigest()}"


# Distances are computed on one GPU; only sampling is shared among ranks (torchrun's processes, one a GPU),
# since that is where the time goes.
def device():
    """The GPU that torchrun gave us, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


# The network is the slow part, so nothing else may be: threads decode the next clips while it works, and
# --time tells whether they keep up (a share far below 100 % asks for more --workers). Features leave the GPU
# at once, a clip's 400 numbers in float32; clips of 2,048 films would not fit anywhere, their features fit
# into 3 MB.
@torch.no_grad()
def extract(side, look, args):
    """Features (N,R,F) of every usable clip of a side. --time: at what share of the network's own speed."""
    clips, found, started = side.stream(args.workers), [], time.perf_counter()
    with tqdm(total=min(side.protocol.clips, len(side.clips)), desc=Path(side.root).name, unit="clip") as bar:
        while pack := list(itertools.islice(clips, args.batch)):
            for frames in sorted({len(clip) for clip in pack}):     # of one length, but for the ends of films
                video = torch.stack([to_video(clip) for clip in pack                        # (B,3,T,H,W)
                                     if len(clip) == frames]).to(device())
                found.append(look(video).float().cpu())                                     # (B,R,F)
            bar.update(len(pack))
    speed = sum(map(len, found)) / (time.perf_counter() - started)
    check_count(side, sum(map(len, found)))
    if args.time:
        started = time.perf_counter()
        for _ in range(3):
            look(video).cpu()
        alone = 3 * len(video) / (time.perf_counter() - started)
        print(f"{side.root}: {speed:.2f} clips/s, "
              f"{speed / alone:.0%} of the {alone:.2f} of the network alone")
    if side.spans:
        found = [part.flatten(0, 1)[:, None] for part in found]                             # (B*R,1,F)
    return torch.cat(found)                                                                 # (N,R,F)


# The real side is the same for every model that one trains. It is remembered by everything that its features
# depend on: the files as they are on disk, the protocol's every field, the network. What is not in that list
# must not change them; a field that is added to Protocol is in it by itself.
def extract_real(side, look, mark, args):
    """The same, remembered under --cache by the files' names, sizes and times, protocol and network."""
    if not args.cache:
        return extract(side, look, args)
    about = json.dumps([side.contents(), dataclasses.asdict(side.protocol), mark])
    path = Path(args.cache) / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.safetensors"
    if not path.is_file():
        features = extract(side, look, args)
        write_atomic(path, lambda temporary: save_file({"features": features}, temporary))
    print(f"features of {side.root} are in {path}")
    return read_state(path)["features"]


# Every field of the protocol is a flag, and the flags are made from the fields: a choice that could not be
# asked for would be a choice made in silence. What a preset says holds where no flag is given, and all of it
# is printed.
def parse_metric(name, argv, kinds, sides):
    """The flags that fvd, fid and is share -> (args, protocol)."""
    flags = FlagParser(prog=f"eval.py {name}")
    for side in sides:
        flags.add_argument(side, help="a folder of videos or of folders of frames, or toy:KIND:SEED")
    flags.add_argument("--features", default=kinds[0], help=", ".join(kinds))
    flags.add_argument("--weights", default="", help="file of the network; default: in checkpoints/detectors")
    flags.add_argument("--trust-torchscript", action="store_true", help="run a TorchScript file's program")
    flags.add_argument("--classifier", default=str(CLASSIFIER), help="the network of --features toy")
    flags.add_argument("--cache", default="cache/features", help='keeps features of real sets; "": nowhere')
    flags.add_argument("--batch", type=int, default=8, help="clips that the network sees at once")
    flags.add_argument("--workers", type=int, default=2, help="threads that decode")
    if name == "is":
        flags.add_argument("--splits", type=int, default=10, help="the mean over this many parts")
    flags.add_argument("--time", action="store_true", help="also time the network alone, weights or not")
    if "real" in sides:
        flags.add_argument("--full", action="store_true", help="all frames of REAL, as fid50k_full, for fid")
        flags.add_argument("--sheet", default="", help="a .png to be drawn: four clips of each side")
    flags.add_argument("--protocol", default="", help=f"{', '.join(PROTOCOLS)}; default latte; toy's is toy")
    for item in dataclasses.fields(Protocol):
        if "real" in sides or item.name not in ("real_stride", "window"):       # how a real film is cut
            flags.add_argument(f"--{item.name}", type=type(item.default), default=None)
    args = flags.parse_args(argv)
    one_of(vars(args), features=kinds)
    at_least(vars(args), batch=1, workers=1, splits=1)
    return args, read_protocol(args)


# A Frechet distance is biased: of two sets from one source it is above 0, the more so the fewer clips and the
# more features (python metrics.py draws it). With fewer rows than features the covariance has directions in
# which the set does not vary at all ("rank-deficient"), and what they contribute is an accident; then a
# warning says so. Its +- is the spread over halves of the sets (metrics.standard_error). Kernel
# distance (KVD, KID) is printed beside it because it has no such bias: where the two disagree about which
# model is better, believe neither.
#
# The generated side is looked at first: if it is broken or too small, the hour on the real one is saved.
def distance(name, argv):
    """`fvd REAL FAKE` and `fid REAL FAKE`: prints the number and returns it as a dict."""
    args, protocol = parse_metric(name, argv, ("i3d" if name == "fvd" else "inception", "toy"),
                                   ("real", "fake"))
    if args.full and name != "fid":
        raise UserError("--full: FVD compares clips of one length; leave it out, or ask for fid")
    if args.full and parse_toy(args.real):
        raise UserError(f"--full: clips of {args.real} are whole already; leave it out")
    sides = Side(args.real, protocol, whole=args.full), Side(args.fake, protocol, fake=True)
    look, mark = open_detector(args.features, args, name)
    if args.sheet:
        draw_sides(args.sheet, sides)
    fake = extract(sides[1], look, args)                                            # (N,R,F)  the strict side
    real = extract_real(sides[0], look, mark + " whole" * args.full, args)                  # (M,R,F)
    rows = min(real.shape[:2].numel(), fake.shape[:2].numel())
    if rows < real.shape[2]:
        warn(f"{rows} samples for {real.shape[2]} features: the covariance is rank-deficient and the "
             "distance biased upwards; compare with nothing but sets of this very size")

    def measure(a, b):
        return frechet(*gaussian(a.flatten(0, 1), protocol.ddof),                           # of (N*R,F)
                       *gaussian(b.flatten(0, 1), protocol.ddof))

    value, error = measure(real, fake), standard_error(measure, real, fake, seed=protocol.seed)
    kernel, label = "kvd" if name == "fvd" else "kid", "toy " if args.features == "toy" else ""
    mmd = kernel_distance(real.flatten(0, 1), fake.flatten(0, 1), seed=protocol.seed)       # of (N*R,F)
    print(f"{label}{name.upper()} {value:.4g} +- {error:.3g} (standard error over random halves), "
          f"{label}{kernel.upper()} {mmd:.4g}; {len(real)} real {'frames' if args.full else 'clips'}, "
          f"{len(fake)} fake clips, "
          f"{real.shape[2]} features of {args.features}")
    return finish({"metric": f"{label}{name}", name: value, "standard_error": error, kernel: mmd,
                   "real": len(real), "fake": len(fake)})


# Most wrong FVDs are wrong before any network: a folder of covers beside the films, a stride that makes
# people run, black bars on one side. Eight clips on a sheet show it in a second, so look before you believe.
def draw_sides(path, sides, count=4):
    """Clips as the network sees them, after crop, size and JPEG: a wrong stride or crop shows at a glance."""
    shown = {}
    for name, side in zip(("real", "fake"), sides):
        clips = (side.read(index) for index in range(len(side.clips)))
        usable = itertools.islice((clip for clip in clips if not isinstance(clip, str)), count)
        shown |= {f"{name} {index}": clip for index, clip in enumerate(usable)}
    contact_sheet(path, [*shown.values()], [*shown])


# IS = exp(mean KL(p(y | clip) || p(y))), in ten parts whose mean is printed, as the original did: with few
# clips p(y) is taken from the very clips that it judges, so the score of a part is too low, and the parts
# have to be of one size to be compared. With 2,048 clips a part has 205; a paper that takes 10,000 will print
# a higher one for the same model.
def score(argv):
    """`is FAKE`: C3D on the clips (UCF101), or Inception on their frames."""
    args, protocol = parse_metric("is", argv, ("c3d", "inception", "toy"), ("fake",))
    look, _ = open_detector(args.features, args, "is")
    logits = extract(Side(args.fake, protocol, fake=True), look, args)                      # (N,R,K)
    if args.splits > len(logits):
        raise UserError(f"--splits {args.splits}: must be at most the number of clips, {len(logits)}")
    mean, deviation = inception_score(logits.flatten(0, 1), args.splits)                    # of (N*R,K)
    error = standard_error(lambda part: inception_score(part.flatten(0, 1), min(args.splits, len(part)))[0],
                           logits)                                                          # (N,R,K)
    label = "toy " if args.features == "toy" else ""
    print(f"{label}IS {mean:.4g} +- {error:.3g} (standard error over random halves; "
          f"deviation over {args.splits} splits {deviation:.2g}); {len(logits)} clips, "
          f"{logits.shape[2]} classes of {args.features}")
    return finish({"metric": f"{label}is", "is": mean, "standard_error": error, "deviation": deviation})


# The last line of every command is JSON: ablate.py and your own scripts read that, people read the lines
# above it.
def finish(result):
    """The result again as the last line, for programs; JSON has no NaN."""
    print(json.dumps({key: None if value != value else value for key, value in result.items()}))
    return result


# ------------------------------------------------------------------------------------------ reconstruction

# VideoDiT's first claim is about its VAE: whatever DP-VAE loses, no transformer can bring back.
# Reconstruction has a pair, film and film again, so it is subtracted: PSNR, the mean squared error as
# decibels (+ 6 dB is half the error); SSIM, which compares means, contrasts and patterns of small windows;
# LPIPS, for which see detectors.py. Two traps. Averages over a film hide which frames fail: in a video VAE
# those between the key frames, which is where the moving things are. And a still film flatters everybody: so
# each film is also scored with its key frames held for four frames, which needs no video VAE at all. "gain"
# is what DP-VAE adds to that; if it is not above 0, there was nothing to be gained, or nothing was learned.

# An image VAE can be measured, too: a film then goes through it frame by frame. Its latents are four times as
# many as a DP-VAE's, so its PSNR is no rival's; it says what the compression of space alone has cost.
def open_vae(path):
    """(network, how it was trained) of a .safetensors of ours or of the folder it lies in."""
    path = Path(path)
    if path.is_dir():
        names = [name for name in ("dpvae", "vae") if (path / f"{name}.safetensors").is_file()] or ["dpvae"]
        path = path / f"{names[0]}.safetensors"
    cls = KLVAE if class_of(path) == "KLVAE" else DPVAE
    return load_network(cls, path).to(device()), read_config(path)


# The baseline is the honest rival of any 4x temporal compression: keep one frame of four, show it four times.
# In a film where little moves it is hard to beat, and a paper that does not print it leaves open whether its
# video VAE encodes motion or has merely learned to hold still.
@torch.no_grad()
def reconstruct(vae, x):
    """x (B,3,T,H,W) -> reconstruction, and the baseline that a video VAE must beat: every key frame through
    the image VAE, held for 4 frames."""
    image = vae.image if isinstance(vae, DPVAE) else vae
    held = image.decode(image.encode(x[:, :, ::GOP])).repeat_interleave(GOP, dim=2)         # (B,3,T,H,W)
    return vae.decode(vae.encode(x)).float().clamp(-1, 1), held.float().clamp(-1, 1)


# A clip's PSNR is taken as the mean of its frames' PSNRs. The PSNR of the mean error would be lower: a
# logarithm of a mean is above the mean of logarithms, so one bad frame weighs less here. The papers do not
# say which they took.
@torch.no_grad()
def per_frame(measure, x, y):
    """Mean over frames of measure((N,C,H,W) twice), 8 at a time: 64 of 512x512 in float64 are 400 MB."""
    try:
        return torch.cat([measure(a, b) for a, b in zip(fold(x).split(8),                   # (8,3,H,W)
                                                        fold(y).split(8))]).mean().item()
    except ValueError as error:                                                     # SSIM of tiny pictures
        raise UserError(f"{error}: give --size")


# Which frames are reconstructed matters as much as how: VideoDiT 4.1 takes 50 videos "randomly sampled", 64
# frames of each, and which ones stays unknown. Here the films are drawn by --seed, the windows in them too,
# and --part 0.75 1 leaves the first three quarters, on which a model of one's own may have been trained, out
# of the test.
def film_windows(args, made):
    """(name, clip (3,T,H,W)) for each window of each film. A film, or --part of it, that is too short for
    --frames gives as many as it has, in fours."""
    frames, size = args.frames or made.get("frames", 64), args.size or made.get("size", 512)
    if frames % GOP or frames < 1:
        raise UserError(f"--frames {frames}: must be a multiple of {GOP}")
    if toy := parse_toy(args.data):
        for index in range(args.n):
            clip = toy_world.render(toy_world.sample_spec(UNSEEN + toy[1], index, toy[0]), frames, size)
            yield f"{args.data} {index}", to_video(clip)
        return
    how = ClipConfig(GOP, size, stride=args.stride, part=tuple(args.part), crop="center", seed=args.seed)
    videos = ClipFolder(args.data, how)
    # ASSUMED: 4.1's films were "randomly sampled", nobody knows which: drawn by --seed, not the first 50 by
    # name, which would be one uploader's, or one class's
    drawn = np.random.default_rng(args.seed).permutation(len(videos))[:args.n].tolist()
    for index, name in ((index, videos.names[index]) for index in sorted(drawn)):
        try:
            times = videos.video(index).times
            first, last = (round(share * len(times)) for share in how.part)
            videos.config.frames = min(frames, ((last - first - 1) // args.stride + 1) // GOP * GOP)
            if videos.config.frames < GOP:
                raise Unusable(f"{last - first} frames in --part, {(GOP - 1) * args.stride + 1} needed")
            for window in range(args.windows):
                yield name, videos.read(index, np.random.default_rng([args.seed, index, window]))["video"]
        except Unusable as reason:
            warn(f"{name}: {reason}; skipped")


# LPIPS measures with AlexNet where a metric is asked for, with VGG where it is a training loss: a model that
# was trained to please VGG would otherwise be judged by whom it pleases. In the toy world a classifier stands
# in, and says "toy".
def distance_of_pictures(args):
    """(label, (N,3,H,W) twice -> (N,)): LPIPS, or the classifier for it; None where there are no weights."""
    if args.features == "toy":
        classifier = load_network(AttributeClassifier, args.classifier).to(device())
        return "toy_lpips", lambda a, b: perceptual_distance(classifier.pyramid, a, b)
    if args.features not in ("alex", "vgg"):
        raise UserError(f"--features {args.features}: must be one of alex, vgg, toy")
    kind = f"lpips_{args.features}"
    try:
        net = load_detector(args.weights or DETECTORS / FILES[kind], kind)
        return "lpips", net.to(device())
    except UserError as error:
        if args.weights:
            raise
        warn(f"no LPIPS: {error}")
        return "lpips", None


# VideoDiT Table 1 is this command with -n 50 --frames 64 --size 512; Table 3's first columns, too. --sheet
# draws what the numbers average: the film, what became of it, and twice the error around grey, where one sees
# whether edges, texture or motion were lost.
def recon(argv):
    """`recon CKPT DATA`. ASSUMED: a clip's PSNR and SSIM are its frames' means; the paper does not say."""
    flags = FlagParser(prog="eval.py recon")
    flags.add_argument("ckpt", help="a folder of train.py, or a dpvae.safetensors or vae.safetensors")
    flags.add_argument("data", help="a folder of videos, toy or toy:KIND")
    flags.add_argument("-n", type=int, default=50, help="videos; VideoDiT 4.1 takes 50")
    flags.add_argument("--frames", type=int, default=0, help="0: as in training; unknown: VideoDiT 4.1's 64")
    flags.add_argument("--size", type=int, default=0, help="0: as in training; unknown: VideoDiT 4.1's 512")
    flags.add_argument("--stride", type=int, default=1)
    flags.add_argument("--part", type=float, nargs=2, default=(0.0, 1.0), help="of each film, such as 0.75 1")
    flags.add_argument("--windows", type=int, default=1, help="random windows of each film")
    flags.add_argument("--features", default="alex", help="network of LPIPS: alex, vgg, or toy")
    flags.add_argument("--weights", default="", help="its file; default: in checkpoints/detectors")
    flags.add_argument("--classifier", default=str(CLASSIFIER), help="the network of --features toy")
    flags.add_argument("--seed", type=int, default=0, help="of which films, and of their windows")
    flags.add_argument("--sheet", default="", help="a .png to be drawn: film, reconstruction, error")
    args = flags.parse_args(argv)
    at_least(vars(args), n=1, stride=1, windows=1, frames=0, size=0, seed=0)
    if parse_toy(args.data) and (args.stride, args.windows, *args.part, args.seed) != (1, 1, 0, 1, 0):
        raise UserError("--stride, --windows, --part, --seed: for films; other clips of the toy: toy:video:1")
    if not 0 <= args.part[0] < args.part[1] <= 1:
        raise UserError(f"--part {args.part[0]} {args.part[1]}: must rise, between 0 and 1")
    vae, made = open_vae(args.ckpt)
    label, lpips = distance_of_pictures(args)
    rows, shown = measure_films(vae, film_windows(args, made), label, lpips)
    if args.sheet and shown:
        contact_sheet(args.sheet, shown.values(), [*shown])
    return report_recon(rows)


# A film at a time: 64 frames of 512 x 512 with their reconstruction are 400 MB in float32.
def measure_films(vae, films, label="", lpips=None, most=12):
    """{film: a row a window}, and clips to look at: the first four films, what became of them, the error."""
    rows, shown = {}, {}
    for name, clip in films:
        x = clip[None].to(device())                                                         # (1,3,T,H,W)
        x_hat, held = reconstruct(vae, x)
        if len(shown) < most:
            error = (2 * (x_hat - x)).clamp(-1, 1)                          # twice as large, and grey is none
            shown |= {f"{name[-30:]}: {what}": film[0].cpu() for what, film in
                      (("film", x), ("reconstruction", x_hat), ("error x 2", error))}
        row = {"frames": x.shape[2], "psnr": per_frame(psnr, x, x_hat), "ssim": per_frame(ssim, x, x_hat),
               **({label: per_frame(lpips, x, x_hat)} if lpips else {}),
               "held_psnr": per_frame(psnr, x, held)}
        rows.setdefault(name, []).append(row)
    return rows, shown


# A film counts once however many windows it gave: the mean is over films. Wins and losses stand beside the
# mean gain, because a mean can be one film's.
def report_recon(rows):
    """A line a film (its windows averaged), the mean of the films, the comparison with held key frames."""
    if not rows:
        raise UserError("no film could be reconstructed; see the warnings above")
    average = lambda found: {key: float(np.mean([row[key] for row in found])) for key in found[0]}
    films = {name: average(found) for name, found in rows.items()}
    films["mean"] = average(list(films.values()))
    print(f"{'':40}" + "".join(f"{key:>11}" for key in (*films["mean"], "gain")))
    for name, row in films.items():
        row["gain"] = row["psnr"] - row["held_psnr"]
        print(f"{name[-40:]:40}" + "".join(f"{value:11.4g}" for value in row.values()))
    mean, gains = films.pop("mean"), [row["gain"] for row in films.values()]
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    print(f"against each key frame decoded and held for {GOP} frames: {mean['gain']:+.2f} dB on the mean of "
          f"{len(films)} clips, better on {wins}, worse on {losses}")
    return finish({**mean, "clips": len(films), "wins": wins, "losses": losses})


# ------------------------------------------------------------------------------------------ samples

# 2,048 clips at 250 steps are a day of a GPU, so the set is made once, kept, and looked at by several
# commands (fvd, fid, is). Two things go wrong with such sets. Ranks that draw their own noise without regard
# to each other make some clips twice, which counts as less variety (published samplers do). And a job that
# was killed starts again. Both have one answer: clip i is a function of i, so it is known which are missing.

# How a clip is sampled moves its score as much as training does: guidance trades variety for obedience, and
# FVD punishes both too little and too much of it. So the model's own settings hold unless a flag says
# otherwise, and are written beside the clips.
def generation_flags(flags):
    flags.add_argument("--model", default="", help="videodit, dit or latte; default: what the folder has")
    flags.add_argument("--steps", type=int, help="calls of the transformer; default: the model's own")
    flags.add_argument("--guidance", type=float, help="guidance scale; 1 is none; default: the model's own")
    flags.add_argument("--sampler", default="", help="euler, ddpm or ddim; default: the model's own")
    flags.add_argument("--seed", type=int, default=0, help="of the noise")
    flags.add_argument("--batch", type=int, default=32, help="clips made at once, at most")
    flags.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
                       help="autocast; a device that does not multiply in bf16 stays with float32")


# Attention's time grows with the square of a clip's tokens, and the decoder's memory with its pixels: 32
# clips of 96 frames of 512 x 512 at once would ask for 700 GB, by the shapes of what is kept. So --batch is
# an upper bound, and long clips are made one at a time.
def settle(models, args):
    """The model's own settings where the flags are silent: into args, and so into what is written down."""
    how = how_of(models, steps=args.steps, guidance=args.guidance, seed=args.seed, sampler=args.sampler)
    args.steps, args.guidance, args.sampler = how.steps, how.guidance, how.sampler
    if args.bf16 and not has_bf16(next(models.vae.parameters()).device):
        print("--bf16: this device does not multiply in bf16: in float32, which is faster", file=sys.stderr)
        args.bf16 = False
    models.bf16 |= args.bf16                                # SD3's weights are in bf16 and stay so
    tokens = tokens_of(models, getattr(args, "frames", 0) or models.frames, models.size)
    args.batch = min(args.batch, max(TOKENS // tokens, 1))  # 96 frames of 512 pixels: one at a time
    return how


# Noise is drawn from (seed, number of the clip), never from a generator's state: clip 1,700 is the same
# whether it is made first or last, in a batch of 4 or of 32 (to rounding), on one rank or on eight.
def make(models, prompts, frames, args, first_index):
    """Clips (B,3,T,H,W) by the parsed flags, on the CPU."""
    return generate(models, prompts, frames, steps=args.steps, guidance=args.guidance, seed=args.seed,
                    first_index=first_index, sampler=args.sampler)


# Prompts are a part of the protocol, too. VideoDiT 4.2 is zero-shot on UCF101: the names of its classes are
# the prompts, dealt round and round, "ApplyEyeMakeup" as "apply eye makeup". A Latte of classes gets its
# classes in turn, so that each is asked for equally often, as in the real set.
def sample_set(argv):
    """`sample CKPT -n 2048 -o DIR`: clip i is a function of i and the flags alone, so any number of ranks
    (torchrun) share the work without talking, and a second call only makes what is missing."""
    flags = FlagParser(prog="eval.py sample")
    flags.add_argument("ckpt", help="a folder of train.py, or a released model (see sample.py --weights)")
    flags.add_argument("-n", type=int, default=2048)
    flags.add_argument("-o", "--out", required=True, help="folder for the clips")
    flags.add_argument("--prompts", default="",
                       help="toy:KIND, a text file, a folder of classes; default: the model's, or toy:video")
    flags.add_argument("--frames", type=int, default=0, help="0: what the model was trained on; 1: pictures")
    flags.add_argument("--fps", type=float, default=8.0, help="of the .mp4; Latte's tool writes 8")
    flags.add_argument("--png", action="store_true", help="folders of frames without loss, instead of .mp4")
    flags.add_argument("--sheet", default="", help="a .png to be drawn: the first eight clips")
    flags.add_argument("--weights", default=[], action="append", help="as in sample.py: text encoders")
    flags.add_argument("--vae", default="", help="as in sample.py: the VAE of a released model")
    generation_flags(flags)
    args = flags.parse_args(argv)
    at_least(vars(args), n=1, steps=1, batch=1)
    rank, world_size, out = (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)),
                             Path(args.out))
    prompt = prompt_at(args.prompts) if args.prompts else None
    models = load_models(args.ckpt, device(), args.weights, args.model, args.vae)
    settle(models, args)
    if hasattr(models.text, "kept"):                        # published encoders stay: a next block asks
        models.text.kept = {} if device() != "cpu" else None
    if prompt is None:
        names = models.classes or ("",)
        prompt = prompt_at("toy:video") if models.asks == "text" else lambda index: names[index % len(names)]
    frames = args.frames or models.frames
    suffix = ".png" if frames == 1 else "" if args.png else ".mp4"
    check_made(out, args, {"frames": frames, "net": fingerprint(models.transformer),
                           "vae": fingerprint(models.vae)})
    blocks = [range(start, min(start + args.batch, args.n)) for start in range(0, args.n, args.batch)]
    made = 0
    for block in tqdm(blocks[rank::world_size], desc=str(out), unit="batch", disable=rank > 0):
        missing = [index for index in block if not (out / f"{index:06d}{suffix}").exists()]
        if missing:                                     # a block is made whole: rounding depends on the batch
            prompts = [prompt(index) for index in block]
            clips = make(models, prompts, frames, args, block[0])                           # (B,3,T,H,W)
            if args.sheet and block[0] == 0:
                contact_sheet(args.sheet, clips[:8], prompts[:8])
        for index in missing:
            save_clip(out / f"{index:06d}{suffix}", clips[index - block[0]], args.fps)
            made += 1
    print(f"rank {rank}: {made} clips made, "
          f"{sum(map(len, blocks[rank::world_size])) - made} were there; in {out}")
    return made


# A folder that is half one model's clips and half another's has an FVD, and it means nothing. So the folder
# remembers the weights (by their hash) and every setting; whoever adds to it with others is refused.
def check_made(out, args, about):
    """DIR/sample.json says how its clips were made: to go on, the flags have to be the same."""
    about |= {key: getattr(args, key) for key in ("prompts", "seed", "steps", "guidance", "sampler", "png")}
    path = out / "sample.json"
    sweep(out)
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        before.setdefault("guidance", before.get("cfg"))    # what it was called once
        differs = [f"{key} {before.get(key)}, now {about[key]}"
                   for key in about if before.get(key) != about[key]]
        if differs:
            raise UserError(f"{out} holds clips made otherwise ({'; '.join(differs)}); give another -o")
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(about, indent=1), "utf-8"))


# ------------------------------------------------------------------------------------------ the toy world

# In the toy world the truth is known: which words a clip was asked for, which clips can exist. So three
# things can be measured that no real set allows. Does it obey? A classifier (detectors.py) reads subject,
# colour, motion and scene off the clip, also of combinations that were never trained on, and of subjects
# that were never seen moving. How good is its VAE, on clips that nobody trained on? And how near does a clip
# come to any that the world could have drawn? Each with its check: classifier on rendered clips, VAE's bound,
# true clips.

# The rows of the prompt score, and of which kind of the world's clips their prompts are.
ROWS = {"video_seen": "video", "image_seen": "image", **{kind: kind for kind in (
    "video_heldout", "image_heldout", "video_image_only", "image_image_only")}}


# Clips that nobody trained on: their seed is one that train.py never draws from. Specs are numbers, so "the
# same clip, true and generated" is a pair that exists here and nowhere else.
def unseen(kind, n, batch):
    """(index of the first, Specs) of n clips that no training drew, a batch at a time."""
    for start in range(0, n, batch):
        yield start, [toy_world.sample_spec(UNSEEN, index, kind) for index in range(start, min(start + batch, n))]


# True clips, for the classifier's own check, the VAE's, and the frames that are given away.
def render_all(specs, frames, size):
    return torch.stack([to_video(toy_world.render(spec, frames, size)) for spec in specs])      # (B,3,T,H,W)


# Accuracy, attribute by attribute: a model that draws the right animal in the wrong colour is told apart from
# one that does the opposite. The kinds of prompt are what generalisation means here: "video_heldout" are
# pairs that no training clip had (a red cat was seen, a jumping cat was seen, a red jumping one was not),
# "image_only" are subjects that were seen in pictures and have to be moved by what was learned from others:
# VideoDiT's case for training on both.
def prompt_score(classifier, n, batch, kind, clips_of):
    """Share of n clips whose names the classifier gets right. clips_of(specs, first index) -> (B,3,T,H,W)."""
    right = {key: 0 for key in ATTRIBUTES}
    for start, specs in unseen(kind, n, batch):
        targets = classifier_targets(classifier, specs, device())
        answers = classifier_right(classifier, clips_of(specs, start).to(device()), targets)
        right = {key: count + int(answers[key].sum()) for key, count in right.items()}
    return {key: count / n for key, count in right.items()
            if not (key == "motion" and kind.startswith("image"))}


# Eq. 3 asks that z, of film, is distributed as z_k, of pictures: the image transformer has to find itself at
# home. That is a claim about means and deviations, which are printed. And a key frame decoded from the film's
# latent can at best be as good as from the picture's own: the difference is what sharing the latent with
# motion costs.
@torch.no_grad()
def score_dpvae(dp, n, batch, frames, size, bar):
    """PSNR and SSIM on clips that no training saw; PSNR of key frames as D_k(z) and, its bound, D_k(z_k).
    Returns them and, for Eq. 3, mean and deviation of z and of z_k."""
    sums, latents, latents_k = {"psnr": 0.0, "ssim": 0.0, "key_psnr": 0.0, "key_psnr_2d": 0.0}, [], []
    for _, specs in unseen("video", n, batch):
        x = render_all(specs, frames, size).to(device())                                    # (B,3,T,H,W)
        z, z_k = dp.encode(x), dp.image.encode(x[:, :, ::GOP])                              # (B,C,T/4,h,w)
        x_hat, keys, keys_2d = (y.clamp(-1, 1)
                                for y in (dp.decode(z), dp.decode_keys(z), dp.decode_keys(z_k)))
        values = {"psnr": per_frame(psnr, x, x_hat), "ssim": per_frame(ssim, x, x_hat),
                  "key_psnr": per_frame(psnr, x[:, :, ::GOP], keys),
                  "key_psnr_2d": per_frame(psnr, x[:, :, ::GOP], keys_2d)}
        sums = {key: total + values[key] * len(x) for key, total in sums.items()}
        latents.append(z.cpu())
        latents_k.append(z_k.cpu())
        bar.update(len(x))
    stats = [float(f(torch.cat(parts))) for parts in (latents, latents_k)                   # (n,C,T/4,h,w)
             for f in (torch.mean, torch.std)]
    return {key: total / n for key, total in sums.items()}, stats


# What nobody trained it for: a clip from a picture, on from a clip, between two pictures (see sample.py).
# Each row makes clips of scenes that no training saw, and says what was given and which frames the classifier
# looks at: only those that were not.

# Each of the four renders its scenes and gives part of them away: a first frame, a first half, both ends.
# What has to be invented in between must fit to what was given, and to the prompt. Each returns the clips,
# the given frames {name: (its place in the clips, what it was)}, and the first frame the classifier sees.
def from_picture(models, how, specs, first, said=lambda spec: spec):
    """The whole prompt, and the first frame. said(spec): what of a spec the prompt says."""
    x = render_all(specs, models.frames, models.size)                                       # (B,3,T,H,W)
    given = given_ends(models, models.size, how, models.frames, x[:, :, :1])
    prompts = [toy_world.caption(said(spec)) for spec in specs]
    z = sample_latents(models, prompts, given.base.shape, how, first, given)                # (B,C,T',h,w)
    return decode(models.vae, z, models.frames), {"first": (0, x[:, :, :1])}, models.group


# What the prompt does not say must be taken from the picture: were it ignored, the colour would be right in
# one clip of ten, the scene in one of six.
def from_picture_alone(models, how, specs, first):
    """A prompt of subject and motion: colour and scene have to come from the picture."""
    return from_picture(models, how, specs, first,
                        lambda spec: dataclasses.replace(spec, colour="", scene=""))


# A clip twice as long as any in training, made in windows: each goes on from what the one before left. Given
# is half a film of that length. TRAP: a whole clip of the training's length will not do, for in it the
# motion is over: what has moved left is at the left edge, and no film exists that goes on and still does so.
def onwards(models, how, specs, first):
    """Half a film goes on to its end; the classifier sees the second half."""
    prompts, frames = [toy_world.caption(spec) for spec in specs], 2 * models.frames
    x = render_all(specs, frames, models.size)[:, :, :models.frames]                        # (B,3,T,H,W)
    z = go_on(models, prompts, encode(models, x), frames, how, first)
    return decode(models.vae, z, frames), {}, models.frames


# The hardest of the four: both ends are fixed, and a motion has to arrive where it must.
def in_between(models, how, specs, first):
    """From the first frame to the first one of the last group, which D_k makes a picture."""
    last = models.frames - models.group
    x = render_all(specs, models.frames, models.size)                                       # (B,3,T,H,W)
    start, end = x[:, :, :1], x[:, :, last:last + 1]                                        # (B,3,1,H,W)
    given = given_ends(models, models.size, how, models.frames, start, end)
    prompts = [toy_world.caption(spec) for spec in specs]
    z = sample_latents(models, prompts, given.base.shape, how, first, given)                # (B,C,T',h,w)
    return decode(models.vae, z, models.frames), {"first": (0, start), "last": (last, end)}, 0


# Their names in the table, and in --sheet's picture.
GIVEN = {"picture": from_picture, "picture_alone": from_picture_alone, "onwards": onwards,
         "in_between": in_between}


# Frames that were given are not evidence, so the classifier never sees them; whether they are still there is
# (their PSNR): a model may obey the prompt and ignore the picture.
def given_score(classifier, args, clips_of, models, bar, shown):
    """Shares as prompt_score's, and the PSNR of given frames: clips_of(specs, first) -> clips,
    {name: (frame of the clip, the given)}, first frame the classifier sees. shown: takes some to look at."""
    right, squares = {key: 0 for key in ATTRIBUTES}, {}
    for first, specs in unseen("video_heldout", args.given, args.batch):
        clips, same, begin = clips_of(specs, first)                                         # (B,3,T,H,W)
        shown += [(clip, toy_world.caption(spec)) for clip, spec in zip(clips[:3], specs) if first == 0]
        targets = classifier_targets(classifier, specs, device())
        answers = classifier_right(classifier, clips[:, :, begin:].to(device()), targets)
        right = {key: count + int(answers[key].sum()) for key, count in right.items()}
        for name, (place, frame) in same.items():
            found = per_frame(psnr, clips[:, :, place:place + 1], frame)
            squares[name] = squares.get(name, 0.0) + found * len(specs)
        bar.update(len(specs))
    return {key: count / args.given for key, count in right.items()} | {
        key: value / args.given for key, value in squares.items()}


# A classifier is content once it can name a clip. How near it comes to one that the world could have drawn
# (world.nearest) goes on counting: two heads, a tail that melts, legs out of step all cost. No model can be
# nearer than its VAE's reconstructions of true clips, so they are fitted in the same way: the ceiling. And so
# are true clips, where only the search errs. Of both the true Spec is known, and what it would score.
def nearest_rows(models, clips, ceiling=True):
    """{"generated": world.summary(...), and, for the ceiling, "reconstructed" and "rendered"}. clips: parts
    of the first row."""
    clips = torch.cat(clips)                                                                # (B,3,T,H,W)
    kind = "video" if clips.shape[2] > 1 else "image"
    specs = next(unseen(kind, len(clips), len(clips)))[1]
    sets, rows = {"generated": clips}, {}
    if ceiling:
        x = render_all(specs, clips.shape[2], clips.shape[-1])                              # (B,3,T,H,W)
        again = torch.cat([reconstruct(models.vae, part.to(device()))[0].cpu()              # (B,3,T,H,W)
                           for part in x.split(8)])
        sets |= {"reconstructed": again, "rendered": x}
    for row, films in sets.items():
        films = films.float().cpu().numpy()
        rows[row] = nearest.summary(nearest.nearest(films, [toy_world.caption(spec) for spec in specs], alone=True,
                                                workers=os.cpu_count()))
        if row != "generated":
            rows[row]["truth"] = float(np.mean([nearest.beside(*pair).db for pair in zip(films, specs)]))
    print(f"nearest rendering of {len(clips)} clips: dB over the subject; how its colour and shape drift\n"
          f"{'':18}    mean            first    last  >= 20  frame by frame  colour   shape  true Spec")
    for row, found in rows.items():
        print("{:18}{db:8.2f} +- {error:.2f} {first:8.2f}{last:8.2f}{share_20:7.0%}{alone:16.2f}"
              "{colour_drift:8.2f}{shape_drift:8.1%}".format(row, **found)
              + (f"{found['truth']:11.2f}" if "truth" in found else f"{'-':>11}"))
    best = rows["reconstructed"]["subjects"] if ceiling else {}
    print("by subject: " + ", ".join(f"{name} {db:.1f}" + (f" of {best[name]:.1f}" if ceiling else "")
                                     for name, db in rows["generated"]["subjects"].items()))
    return rows


# Shares of so many clips are coarse: of 128, one is 0.8 %, and two rows that differ by three clips do not
# differ. Rows that were given a picture say how well they kept it, too.
def print_shares(result):
    """A line a row of prompt_score and given_score: the shares, then the decibels of given frames."""
    print(f"share that the classifier names as asked\n{'':18}" + "".join(f"{key:>9}" for key in ATTRIBUTES))
    for row, shares in result.items():
        print(f"{row:18}" + "".join(f"{shares[key]:9.1%}" if key in shares else f"{'-':>9}"
                                    for key in ATTRIBUTES)
              + "".join(f"  {key.replace('_', ' ')} {value:.1f} dB" for key, value in shares.items()
                        if key not in ATTRIBUTES))


# One command that answers "is it any good?" for a toy checkpoint. Reading its table: the first row is the
# classifier's own errors, the bar for all others; "seen" against "heldout" is memory against composition;
# "image_only" is what pictures taught; the picture rows are whether film training kept them; then the VAE,
# whose loss nobody can win back; and last, in decibels, how near a clip is to one that could have been drawn.
def toy(argv):
    """`toy`: the classifier names what is in generated clips, and in rendered ones as a check of itself."""
    flags = FlagParser(prog="eval.py toy")
    flags.add_argument("--ckpt", default=str(TOY), help="a folder of train.py")
    flags.add_argument("--classifier", default="", help="default: the one in --ckpt, else the shipped one")
    flags.add_argument("-n", type=int, default=256, help="clips, and pictures, of each row")
    flags.add_argument("--nearest", type=int, default=64,
                       help="of the first row's, how many to fit (5 to 10 s of CPU each); 0: none")
    flags.add_argument("--ceiling", action=argparse.BooleanOptionalAction, default=True,
                       help="fit reconstructions and true clips as well, which no model can beat")
    flags.add_argument("--given", type=int, default=-1,
                       help="clips of each row that begins with a picture or a clip; 0: none; -1: as -n")
    flags.add_argument("--sheet", default="", help="a .png to be drawn: clips from a picture, on, in between")
    generation_flags(flags)
    args = flags.parse_args(argv)
    at_least(vars(args), n=1, steps=1, batch=1, nearest=0, given=-1)
    args.given = args.n if args.given < 0 else args.given
    models, own = load_models(args.ckpt, device(), "", args.model), classifier_file(args.ckpt)
    how = settle(models, args)
    file = args.classifier or (own if own.is_file() else CLASSIFIER)
    classifier = load_network(AttributeClassifier, file).to(device())
    rows = {row: kind for row, kind in ROWS.items() if models.frames > 1 or kind.startswith("image")}
    has_dpvae, frames = isinstance(models.vae, DPVAE), models.frames if models.frames > 1 else 16

    def rendered(specs, start):
        bar.update(len(specs))
        return render_all(specs, frames, models.size)

    def generated(specs, start):
        bar.update(len(specs))
        count = 1 if not specs[0].motion else models.frames
        clips = make(models, [toy_world.caption(spec) for spec in specs], count, args, start)
        if row == next(iter(rows)) and start < args.nearest:
            fitted.append(clips[:args.nearest - start])
        return clips

    fitted = []
    given, shown = {row: clips for row, clips in GIVEN.items() if models.frames > 1 and args.given}, []
    with tqdm(total=args.n * (1 + len(rows) + has_dpvae) + args.given * len(given), unit="clip",
              mininterval=1) as bar:
        result = {"classifier": prompt_score(classifier, args.n, args.batch, "any", rendered)}
        if has_dpvae:
            quality, stats = score_dpvae(models.vae, args.n, args.batch, models.frames, models.size, bar)
        for row, kind in rows.items():
            bar.set_description(row)
            result[row] = prompt_score(classifier, args.n, args.batch, kind, generated)
        for row, clips in given.items():
            bar.set_description(row)
            made = lambda *block: clips(models, how, *block)
            result[row] = given_score(classifier, args, made, models, bar, shown)
    if args.sheet and shown:
        contact_sheet(args.sheet, *zip(*shown))
    print_shares(result)
    if has_dpvae:
        result["dpvae"] = quality
        print("DP-VAE: {psnr:.2f} dB, SSIM {ssim:.4f}; key frames by D_k(z) {key_psnr:.2f} dB, by D_k(z_k) "
              "{key_psnr_2d:.2f} dB".format(**quality))
        print("latents: z {:.4f} +- {:.4f}, z_k {:.4f} +- {:.4f}; deviations differ by {:.1%}, "
              "means by {:.1%} of z_k's deviation".format(
                  *stats, abs(stats[1] / stats[3] - 1), abs(stats[0] - stats[2]) / stats[3]))
    if fitted:
        result["nearest"] = nearest_rows(models, fitted, args.ceiling)
    return finish(result)


# ------------------------------------------------------------------------------------------ inside a Latte

# Latte 4.2 explains its variants by a picture of the inside: how alike the frames' features are, block after
# block. Blocks over space, each frame looking at itself, make frames less alike; blocks over time bring them
# together again: two jobs shared. A block whose frames are as alike after it as before does nothing about
# time. (The shipped Latte: 0.73 after its first block over space, 0.86 after the next, over time.)

# A column of this table is one of the figure's panels: the mean of how alike two frames are, how much that
# varies, and how many frames are more like a distant one than like their neighbour ("inverted"), which in a
# film should be none.
def similarity(argv):
    """`similarity`: print and draw Latte's Fig. 6 and, for Variants 3 and 4, Fig. 8."""
    flags = FlagParser(prog="eval.py similarity")
    flags.add_argument("--ckpt", required=True, help="a Latte: ours (.safetensors), or as released")
    flags.add_argument("--latents", default="", help="file of clips as the network gets them: latents "
                       "(B,C,T,H,W), scaled, with the noise of --step; default: made up")
    flags.add_argument("--step", type=int, default=100, help="how noisy the network is told they are")
    flags.add_argument("--seed", type=int, default=0, help="of the clip that is made up")
    flags.add_argument("--out", default="out/similarity.png", help="the drawing")
    args = flags.parse_args(argv)
    net = load_latte(args.ckpt)
    size = net.config.input_size
    if args.latents:
        z = next(iter(read_state(args.latents).values())).float()               # (B,C,T,H,W)
    else:       # ASSUMED: the paper's clips are not named. Without any: a picture that turns into another
        first, last = torch.randn(2, 1, net.config.in_channels, 1, size, size,
                                  generator=torch.Generator().manual_seed(args.seed))
        angle = torch.linspace(0, np.pi / 2, net.config.frames).view(1, 1, -1, 1, 1)        # (1,1,T,1,1)
        z = first * angle.cos() + last * angle.sin()
    t = torch.full((len(z),), float(args.step))
    found = frame_similarity(net, z, t, unconditional(net, len(z)))
    print(f"{'block':24s} {'mean':>8s} {'variance':>10s} {'inverted':>9s}")
    for name, matrix in found.items():
        print("{:24s} {:8.4f} {:10.6f} {:8.1%}".format(name, *summary(matrix)))
    squares = [heat(matrix.numpy(), cell=max(1, 96 // len(matrix)), top=1) for matrix in found.values()]
    page(args.out, squares, list(found), columns=7)         # one a block: dark where two frames are alike
    print(f"drawn in {args.out}")


# ------------------------------------------------------------------------------------------ commands

# A table instead of subparsers: each command parses its own flags, so that a reader finds them where they are
# used, and ablate.py composes commands whose flags are checked by the same code as a person's.
COMMANDS = {"toy": toy, "fvd": lambda argv: distance("fvd", argv), "fid": lambda argv: distance("fid", argv),
            "is": score, "recon": recon, "sample": sample_set, "similarity": similarity}
HELP = """eval.py COMMAND ..., each with its own --help; without one, a picture

  toy                    the toy's checkpoint: does it obey prompts, how near is it to what can be drawn
  sample CKPT -o DIR     make the clips that the next three look at; again, it goes on
  fvd REAL FAKE          Frechet distance of two sets of clips, by I3D; fid: of their frames, by Inception
  is FAKE                Inception Score of clips, by C3D
  recon CKPT FILMS       PSNR, SSIM, LPIPS of what a VAE gives back
  similarity --ckpt      how alike a Latte's frames are, block by block"""


def main(argv):
    if argv[:1] in (["-h"], ["--help"]):
        return print(HELP)
    if not argv:
        return print(HELP)
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]}; give one of {', '.join(COMMANDS)}")
    torch.backends.cudnn.allow_tf32 = False                 # distances are compared with other people's
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
