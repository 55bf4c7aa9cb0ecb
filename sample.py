"""sample.py - `python sample.py "a cat"`: a prompt becomes a clip, or with --image a picture.
Paper    VideoDiT A.2: "denoising sampled noise from a standard Gaussian, then decoding using the corresponding decoder"
Shapes   noise (B,C,T/4,h,w) -> scaled latent, same shape -> clip (B,3,T,H,W); an image is T=1, decoded by D_k
Time     t=0 noise, t=1 data; SD3's schedule of noise levels (flow.sigmas)
Differs  grep ASSUMED: steps, guidance and null prompt are not in the paper
Reads    after dit.py; train.py previews and eval.py scores call generate() from here
Run me   python sample.py "a cat"      # CPU, a few seconds: writes out/0000-a-cat.mp4 and a contact sheet"""

import argparse
import difflib
import hashlib
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoint import UserError, load_network, polite, read_config
from data import contact_sheet, save_video
from dit import MMDiT, VideoDiT
from flow import SAMPLING, euler, guided, keyed_noise, sigmas
from text import ToyText
from vae import DPVAE, GOP, KLVAE

TOY = Path(__file__).parent / "checkpoints" / "toy"


class FlagParser(argparse.ArgumentParser):
    """argparse that names the nearest known flag: `--step 10` is answered with --steps, and exit code 2."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **settings)

    def parse_args(self, argv=None):
        known, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1, 0.4)
            raise UserError(f"unknown flag {unknown[0]}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
        return known

    def error(self, message):
        raise UserError(message)


@dataclass
class Models:
    """What a clip is made with. shift belongs to the transformer: it was trained with it."""
    vae: torch.nn.Module           # DPVAE, or KLVAE where there is only an image model
    text: torch.nn.Module          # prompts -> context, pooled
    transformer: torch.nn.Module   # VideoDiT, or MMDiT for images
    size: int = 64
    frames: int = 16
    shift: float = 1.0


def load_models(folder, device="cpu"):
    """The networks of a folder that train.py wrote: dpvae + videodit, or vae + dit where there is no video yet."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give --ckpt a folder that train.py wrote")
    names = ("dpvae", DPVAE, "videodit", VideoDiT)
    if not (folder / "videodit.safetensors").is_file() and (folder / "dit.safetensors").is_file():
        names = ("vae", KLVAE, "dit", MMDiT)
    vae = load_network(names[1], folder / f"{names[0]}.safetensors").to(device)
    transformer = load_network(names[3], folder / f"{names[2]}.safetensors").to(device)
    text = load_network(ToyText, folder / "text.safetensors").to(device)
    made = read_config(folder / f"{names[2]}.safetensors")
    return Models(vae, text, transformer, made["size"], made["frames"] if names[0] == "dpvae" else 1, made["shift"])


def check_frames(frames):
    if frames < 1 or (frames > 1 and frames % GOP):
        raise UserError(f"--frames {frames}: must be 1 (an image) or a multiple of {GOP}, such as "
                        f"{max(frames // GOP, 1) * GOP} or {(max(frames, 0) // GOP + 1) * GOP}")


@torch.no_grad()
def generate(models, prompts, frames=None, size=None, steps=28, cfg=4.0, seed=0, first_index=0, progress=False):
    """prompts (B strings) -> clips (B,3,T,H,W) in [-1,1]. Clip i depends on seed and first_index + i alone, so a
    clip of a batch can be made again by itself. frames=1 makes images."""
    frames, size = frames or models.frames, size or models.size
    check_frames(frames)
    device = next(models.transformer.parameters()).device
    context, pooled = models.text(prompts)                                                  # (B,L,D), (B,P)
    side = size // models.vae.downsampling
    shape = (len(prompts), models.vae.config.z_channels, frames // GOP if frames > 1 else 1, side, side)
    noise = keyed_noise(shape, seed, 0, first_index, device=device, stream=SAMPLING)        # (B,C,T/4,h,w)
    # ASSUMED: the paper gives neither steps nor guidance; 28 steps and SD3's schedule, guidance by preset.
    velocity = guided(models.transformer, {"context": context, "pooled": pooled}, cfg)
    z = models.vae.unscaled(euler(velocity, noise, sigmas(steps, models.shift), progress=progress))
    if isinstance(models.vae, KLVAE):
        clip = models.vae.decode(z)                                                         # (B,3,T,H,W)
    else:
        clip = models.vae.decode(z) if frames > 1 else models.vae.decode_keys(z)
    return clip.float().clamp(-1, 1)


def file_name(index, prompt):
    """0003-a-red-cat, or a hash where nothing of the prompt may stand in a file name."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
    return f"{index:04d}-{slug or hashlib.sha1(prompt.encode()).hexdigest()[:10]}"


def parse(argv):
    flags = FlagParser(prog="sample.py", description="make clips, or with --image pictures, from prompts")
    flags.add_argument("prompt", nargs="*", help="one clip for each")
    flags.add_argument("--prompts", metavar="FILE", help="a text file, one prompt a line")
    flags.add_argument("--ckpt", default=str(TOY), help="a folder that train.py wrote")
    flags.add_argument("--image", action="store_true", help="pictures (.png) instead of clips")
    flags.add_argument("--frames", type=int, default=0, help="a multiple of 4; 0: what the model was trained on")
    flags.add_argument("--size", type=int, default=0, help="pixels; 0: what the model was trained on")
    flags.add_argument("--steps", type=int, default=28, help="calls of the transformer")
    flags.add_argument("--cfg", type=float, default=4.0, help="guidance; 1 is none")
    flags.add_argument("--seed", type=int, default=0, help="same seed, same clip")
    flags.add_argument("-n", type=int, default=1, help="clips for each prompt")
    flags.add_argument("--out", default="out", help="folder")
    flags.add_argument("--fps", type=float, default=12.0)
    flags.add_argument("--gif", action="store_true", help="write .gif beside the .mp4")
    args = flags.parse_args(argv)
    if args.prompts:
        if not Path(args.prompts).is_file():
            raise UserError(f"no file {args.prompts}; --prompts wants a text file, one prompt a line")
        args.prompt += [line.strip() for line in Path(args.prompts).read_text("utf-8").splitlines() if line.strip()]
    if not args.prompt:
        raise UserError('give a prompt, such as "a cat", or a file of them with --prompts')
    for name, least in (("steps", 1), ("n", 1), ("fps", 0.1), ("size", 0)):
        if not getattr(args, name) >= least:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {least}")
    if args.frames:
        check_frames(args.frames)
    return args


def main(argv=None):
    args = parse(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = load_models(args.ckpt, device)
    if args.size % (models.vae.downsampling * models.transformer.config.patch):
        raise UserError(f"--size {args.size}: must be a multiple of "
                        f"{models.vae.downsampling * models.transformer.config.patch}")
    frames = 1 if args.image else args.frames or models.frames
    prompts, start = [prompt for prompt in args.prompt for _ in range(args.n)], time.perf_counter()
    clips = generate(models, prompts, frames, args.size, args.steps, args.cfg, args.seed, progress=True)
    out = Path(args.out)
    for index, (prompt, clip) in enumerate(zip(prompts, clips)):
        base = out / file_name(index, prompt)
        contact_sheet(base.with_suffix(".png"), [clip])
        if frames > 1:
            save_video(base.with_suffix(".mp4"), clip, args.fps)
        if args.gif and frames > 1:
            save_video(base.with_suffix(".gif"), clip, args.fps)
        about = {"prompt": prompt, "seed": args.seed, "index": index, "cfg": args.cfg, "steps": args.steps,
                 "frames": frames, "size": clip.shape[-1], "ckpt": args.ckpt, "torch": torch.__version__}
        base.with_suffix(".json").write_text(json.dumps(about) + "\n", "utf-8")
        print(f'"{prompt}" -> {base.with_suffix(".png" if frames == 1 else ".mp4")}')
    print(f"{len(clips)} in {time.perf_counter() - start:.1f} s; contact sheets (.png) and settings (.json) beside them")


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
