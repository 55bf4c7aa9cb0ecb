"""sample.py - `python sample.py "a cat"`: a prompt becomes a clip, or with --image a picture.
Paper    VideoDiT A.2: "denoising sampled noise from a standard Gaussian, then decoding using the
         corresponding decoder"
Shapes   noise (B,C,T/4,h,w) -> scaled latent, same shape -> clip (B,3,T,H,W); an image is T=1, decoded by D_k
Time     t=0 noise, t=1 data; SD3's schedule of noise levels (flow.sigmas)
Differs  grep ASSUMED: steps, guidance and null prompt are not in the paper
Reads    after metrics.py, before presets.py; train.py previews and eval.py scores call generate() from here
Run me   python sample.py "a cat"      # CPU, a few seconds: writes out/0000-a-cat.mp4 and a contact sheet"""

import hashlib
import json
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import published
from checkpoint import FlagParser, UserError, load_network, polite, read_config
from dit import MMDiT
from flow import DDPM, SAMPLING, ddim_sample, ddpm_sample, euler, guided, keyed_noise, sigmas, velocity_of
from latte import Latte
from text import ToyText
from vae import DPVAE, GOP, KLVAE
from video import contact_sheet, save_video
from videodit import VideoDiT

TOY = Path(__file__).parent / "checkpoints" / "toy"


@dataclass
class Models:
    """What a clip is made with. shift, objective and classes are the transformer's: those of its training."""
    vae: torch.nn.Module           # DPVAE, or KLVAE: an image model's, or Latte's, frame by frame
    text: object                   # prompts -> context, pooled: ToyText or SD3Text; None if there is no text
    transformer: torch.nn.Module   # VideoDiT or Latte, or MMDiT for images
    size: int = 64
    frames: int = 16
    shift: float = 1.0
    objective: str = "flow"        # "ddpm": Latte's
    classes: tuple = ()            # names of a class-conditional Latte's labels


def load_models(folder, device="cpu", weights="", model=""):
    """The networks of a folder that train.py wrote: model videodit (with dpvae), dit (with vae) or latte
    (with either); "" takes the first of these that is there.

    weights: Stable Diffusion 3's file; a transformer that started from it goes on using its text encoders."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give --ckpt a folder that train.py wrote")
    kinds = {"videodit": VideoDiT, "dit": MMDiT, "latte": Latte}
    model = model or next((name for name in kinds if (folder / f"{name}.safetensors").is_file()), "videodit")
    transformer = load_network(kinds[model], folder / f"{model}.safetensors").to(device)
    made = read_config(folder / f"{model}.safetensors")
    latents = made.get("latents", "vae" if model == "dit" else "dpvae")
    vae = load_network({"vae": KLVAE, "dpvae": DPVAE}[latents], folder / f"{latents}.safetensors").to(device)
    text = None
    if weights:
        text = published.load_sd3_text(weights).to(device)
    elif getattr(transformer.config, "condition", "text") == "text":
        if not (folder / "text.safetensors").is_file():
            raise UserError(f"{folder} holds no text encoder; "
                            "give with --weights the file that it was trained with")
        text = load_network(ToyText, folder / "text.safetensors").to(device)
    return Models(vae, text, transformer, made["size"], 1 if model == "dit" else made["frames"],
                  made["shift"], made.get("objective", "flow"), tuple(made.get("classes", ())))


def check_frames(frames):
    if frames < 1 or (frames > 1 and frames % GOP):
        raise UserError(f"--frames {frames}: must be 1 (an image) or a multiple of {GOP}, such as "
                        f"{max(frames // GOP, 1) * GOP} or {(max(frames, 0) // GOP + 1) * GOP}")


@torch.no_grad()
def generate(models, prompts, frames=None, size=None, steps=28, cfg=4.0, seed=0, first_index=0,
             progress=False, sampler=""):
    """prompts (B strings) -> clips (B,3,T,H,W) in [-1,1]. Clip i depends on seed and first_index + i alone,
    so a clip of a batch can be made again by itself. frames=1 makes images. sampler: euler, ddpm or ddim."""
    frames, size = frames or models.frames, size or models.size
    groups = GOP if isinstance(models.vae, DPVAE) else 1
    if groups > 1:
        check_frames(frames)
    cond, null_cond = conditions(models, prompts)
    side = size // models.vae.downsampling
    shape = (len(prompts), models.vae.config.z_channels, max(frames // groups, 1), side, side)
    device = next(models.transformer.parameters()).device
    if models.objective == "ddpm":
        z = undo_ddpm(models.transformer, cond, null_cond, shape, steps, cfg, seed, first_index, progress,
                      sampler, device)
    elif sampler in ("", "euler"):
        network = (velocity_of(models.transformer) if isinstance(models.transformer, Latte)
                   else models.transformer)
        z = denoise(network, cond, null_cond, shape, models.shift, steps, cfg, seed, first_index, progress,
                    device)
    else:
        raise UserError(f"--sampler {sampler}: this model was trained as a flow; its sampler is euler")
    return decode(models.vae, z, frames)


def conditions(models, prompts):
    """What the transformer is told, and what it is told for guidance: {name: tensor} both."""
    if models.classes:
        device = next(models.transformer.parameters()).device
        labels = torch.tensor([label_of(prompt, models.classes) for prompt in prompts], device=device)  # (B,)
        return {"labels": labels}, {"labels": torch.full_like(labels, models.transformer.config.classes)}
    if models.text is None:
        return {}, {}
    context, pooled = models.text(prompts)                                                  # (B,L,D), (B,P)
    return {"context": context, "pooled": pooled}, None


def label_of(prompt, classes):
    """A class by number, by name, or by a word of the prompt."""
    named = [i for i, name in enumerate(classes) if name in (prompt, *prompt.lower().split())]
    if prompt.isdigit() and int(prompt) < len(classes):
        named = [int(prompt)]
    if not named:
        raise UserError(f'"{prompt}" is no class of this model; it knows {", ".join(classes[:20])}')
    return named[0]


def denoise(velocity, cond, null_cond, shape, shift, steps, cfg, seed, first_index=0, progress=False,
            device="cpu"):
    """Noise of shape (B,C,T',h,w) -> scaled latents of the same shape, along the flow."""
    noise = keyed_noise(shape, seed, 0, first_index, device, stream=SAMPLING)
    # ASSUMED: the paper gives neither steps nor guidance; 28 steps and SD3's schedule, guidance by preset.
    return euler(guided(velocity, cond, cfg if cond else 1, null_cond), noise, sigmas(steps, shift),
                 progress=progress)


# Latte 3.1: ancestral sampling with learned variances (250 steps in the published configurations), or DDIM.
def undo_ddpm(network, cond, null_cond, shape, steps, cfg, seed, first_index, progress, sampler, device):
    if sampler not in ("", "ddpm", "ddim"):
        raise UserError(f"--sampler {sampler}: this model was trained by DDPM; "
                        "its samplers are ddpm and ddim")
    diffusion = DDPM(variance="learned_range" if network.config.learn_sigma
                     else "fixed_large").respace(str(steps))
    draw = lambda n: keyed_noise(shape, seed, n, first_index, device, stream=SAMPLING)      # (B,C,T',h,w)
    predict = guided(network, cond, cfg if cond else 1, null_cond, channels=shape[1])
    walk = ddim_sample if sampler == "ddim" else ddpm_sample
    return walk(diffusion, predict, draw(0), draw=lambda n: draw(n + 1), progress=progress)


# VideoDiT A.2: "decoding using the corresponding decoder": D for clips, D_k for images.
def decode(vae, z, frames):
    """Scaled latents -> clips in [-1,1]."""
    z = vae.unscaled(z)
    if frames > 1 or isinstance(vae, KLVAE):
        return vae.decode(z).float().clamp(-1, 1)                                           # (B,3,T,H,W)
    return vae.decode_keys(z).float().clamp(-1, 1)


# ------------------------------------------------------------------------------------------ published weights

@torch.no_grad()
def generate_from_weights(source, prompts, frames=1, size=1024, steps=28, cfg=7.0, seed=0, first_index=0,
                          device="cpu", progress=False):
    """Stable Diffusion 3 itself, from one file or a Diffusers folder: prompts -> (B,3,T,H,W).

    One part is in memory at a time: text encoders, then the transformer in bf16, then the VAE. An empty
    prompt is the null prompt and needs no encoder. frames > 1 is VideoDiT Fig. 2: nothing is trained,
    attention sees all frames, each is decoded as a picture."""
    found, told = published.open_released(source), None
    found.need("transformer", "vae")
    if any(prompts):
        told = found.text().to(device).encode(prompts)                          # (B,154,4096), (B,2048)
    transformer = found.transformer().to(device, torch.bfloat16)
    context, pooled = told or (torch.zeros(len(prompts), 154, transformer.config.context_dim, device=device),
                               torch.zeros(len(prompts), transformer.config.pooled_dim, device=device))
    shape = (len(prompts), transformer.config.in_channels, frames, size // 8, size // 8)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        z = denoise(transformer, {"context": context, "pooled": pooled}, None, shape, 3.0, steps,
                    cfg if any(prompts) else 1.0, seed, first_index, progress, device)
    del transformer
    vae = found.vae()
    return decode(vae.to(device), z, frames)


def file_name(index, prompt):
    """0003-a-red-cat, or a hash where nothing of the prompt may stand in a file name."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
    return f"{index:04d}-{slug or hashlib.sha1(prompt.encode(errors='replace')).hexdigest()[:10]}"


def parse(argv):
    flags = FlagParser(prog="sample.py", description="make clips, or with --image pictures, from prompts")
    flags.add_argument("prompt", nargs="*", help="one clip for each")
    flags.add_argument("--prompts", metavar="FILE", help="a text file, one prompt a line")
    flags.add_argument("--ckpt", default="", help="a folder that train.py wrote; by default checkpoints/toy")
    flags.add_argument("--model", default="", choices=["", "videodit", "dit", "latte"],
                       help="which of the folder's models")
    flags.add_argument("--sampler", default="", choices=["", "euler", "ddpm", "ddim"],
                       help="by default euler, or ddpm for a Latte trained by DDPM (try --steps 250)")
    flags.add_argument("--weights", default="",
                       help="Stable Diffusion 3: one file, or a Diffusers folder. Alone: makes pictures with "
                       "it (needs 5 GB for the transformer in bf16 and, if the file has T5, 10 GB for that, "
                       "one after the other). With --ckpt: its text encoders serve that checkpoint")
    flags.add_argument("--zero-shot-video", action="store_true",
                       help="with --weights alone: VideoDiT Fig. 2, the untrained image model attending over "
                       "--frames pictures at once (activations grow with --frames)")
    flags.add_argument("--image", action="store_true", help="pictures (.png) instead of clips")
    flags.add_argument("--frames", type=int, default=0,
                       help="a multiple of 4; 0: what the model was trained on")
    flags.add_argument("--size", type=int, default=0, help="pixels; 0: what the model was trained on")
    flags.add_argument("--steps", type=int, default=28, help="calls of the transformer")
    flags.add_argument("--cfg", type=float,
                       help="guidance; 1 is none; by default 4, or 7 with --weights alone")
    flags.add_argument("--seed", type=int, default=0, help="same seed, same clip")
    flags.add_argument("-n", type=int, default=1, help="clips for each prompt")
    flags.add_argument("--first", type=int, default=0,
                       help="number of the first clip: clip 3 of -n 4 is made alone by --first 3")
    flags.add_argument("--out", default="out", help="folder")
    flags.add_argument("--fps", type=float, default=12.0)
    flags.add_argument("--gif", action="store_true", help="write .gif beside the .mp4")
    args = flags.parse_args(argv)
    if args.prompts:
        if not Path(args.prompts).is_file():
            raise UserError(f"no file {args.prompts}; --prompts wants a text file, one prompt a line")
        lines = Path(args.prompts).read_text("utf-8-sig", "replace").splitlines()
        args.prompt += [line.strip() for line in lines if line.strip()]
    if not args.prompt:
        raise UserError('give a prompt, such as "a cat", or a file of them with --prompts')
    if args.cfg is None:
        args.cfg = 7.0 if args.weights and not args.ckpt else 4.0
    for name, least in (("steps", 1), ("n", 1), ("fps", 0.1), ("size", 0), ("cfg", 0), ("first", 0)):
        if not least <= getattr(args, name) < math.inf:            # nan is not, either
            raise UserError(f"{'-' if name == 'n' else '--'}{name} {getattr(args, name)}: "
                            f"must be at least {least}")
    if args.zero_shot_video and (args.ckpt or not args.weights):
        raise UserError("--zero-shot-video shows an untrained Stable Diffusion 3: "
                        "give --weights, and no --ckpt")
    if args.frames and not args.zero_shot_video:
        check_frames(args.frames)
    if args.frames > 1 and args.weights and not args.ckpt and not args.zero_shot_video:
        raise UserError(f"--frames {args.frames}: Stable Diffusion 3 makes pictures; "
                        "add --zero-shot-video, or --ckpt")
    if Path(args.out).is_file():
        raise UserError(f"--out {args.out}: is a file; give a folder")
    return args


def make(args, prompts, device):
    """The clips of the parsed flags, (B,3,T,H,W)."""
    common = dict(steps=args.steps, cfg=args.cfg, seed=args.seed, first_index=args.first, progress=True)
    if args.weights and not args.ckpt:
        if args.size % 16:
            raise UserError(f"--size {args.size}: must be a multiple of 16")
        frames = (args.frames or 8) if args.zero_shot_video else 1
        return generate_from_weights(args.weights, prompts, frames, args.size or 1024, device=device,
                                     **common)
    models = load_models(args.ckpt or TOY, device, args.weights, args.model)
    unit = models.vae.downsampling * models.transformer.config.patch
    if args.size % unit:
        raise UserError(f"--size {args.size}: must be a multiple of {unit}")
    frames = 1 if args.image else args.frames or models.frames
    if frames > 1 and isinstance(models.transformer, MMDiT):
        raise UserError(f"--frames {frames}: {args.ckpt} holds an image model only; "
                        "add --image, or train stage videodit")
    return generate(models, prompts, frames, args.size, sampler=args.sampler, **common)


def main(argv=None):
    args = parse(argv)
    prompts, start = [prompt for prompt in args.prompt for _ in range(args.n)], time.perf_counter()
    clips = make(args, prompts, "cuda" if torch.cuda.is_available() else "cpu")
    out = Path(args.out)
    for index, (prompt, clip) in enumerate(zip(prompts, clips), args.first):
        base, is_clip = out / file_name(index, prompt), clip.shape[1] > 1
        contact_sheet(f"{base}.png", [clip])
        if is_clip:
            save_video(f"{base}.mp4", clip, args.fps, side=256)
        if args.gif and is_clip:
            save_video(f"{base}.gif", clip, args.fps, side=128)
        about = {"prompt": prompt, "index": index, "frames": clip.shape[1], "pixels": clip.shape[-1],
                 **{key: getattr(args, key) for key in ("seed", "cfg", "steps", "ckpt", "weights")},
                 "torch": torch.__version__}
        Path(f"{base}.json").write_text(json.dumps(about) + "\n", "utf-8")
        print(f'"{prompt}" -> {base}.{"mp4" if is_clip else "png"}')
    print(f"{len(clips)} in {time.perf_counter() - start:.1f} s; "
          "contact sheets (.png) and settings (.json) beside them")


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
