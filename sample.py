"""sample.py - `python sample.py "a cat"`: a prompt becomes a clip; a picture or a clip may say how it begins.
Paper    VideoDiT A.2: "denoising sampled noise from a standard Gaussian, then decoding using the
         corresponding decoder"; Latte 3.1 and its published configurations: ancestral sampling, 250 steps
Shapes   noise (B,C,T',h,w) -> scaled latents, same shape -> clips (B,3,T,H,W); T' = T/4 with DP-VAE, else T;
         a picture is T=1, decoded by D_k
Time     flow: t=0 noise, t=1 data, SD3's schedule of noise levels (flow.sigmas); Latte: DDPM's steps
Differs  --start, --end, --extend are in neither paper; steps, guidance and null prompt: grep ASSUMED
Reads    after pretrained.py; train.py previews and eval.py scores call generate() from here
Run me   python sample.py "a cat"      # CPU, a few seconds: writes out/0000-a-cat.mp4, look at out/index.html
         python sample.py "a cat jumping" --start cat.png
         python sample.py 207 --weights DiT-XL-2-256x256.pt --vae stable-diffusion-v1-4/vae

THE PROBLEM. A trained transformer answers one small question: given latents with noise on them, and how much
noise it is, which way lies the data? A person asks a large one: a cat. Between the two lie an encoder that
turns words into tokens, a walk of many small questions each of which starts where the last one ended, and a
decoder; each has settings that training fixed and no tensor tells.

THE IDEA. Keep all of it in one place (Models), make the walk the same for every model (walk), and treat
everything else a person may have, a first frame, a last one, a clip, as something GIVEN to that walk. What
happens to "a cat", with the toy's sizes and with those of VideoDiT at 512 x 512 (VideoDiT A.2):

    words      a cat                            -> context (1,12,128)         (1,154,4096)   pooled (1,128)
    noise      keyed by seed, step, index       -> (1,16,4,8,8)               (1,16,24,64,64)
    28 steps   2 x 64 tokens (guidance: twice)  -> same shape                 2 x 24,576 tokens
    unscaled   z / scale + shift: Eq. 3 made one pair of numbers serve pictures and clips
    D          4 frames for each latent frame   -> (1,3,16,64,64)             (1,3,96,512,512)

When a clip comes out wrong, what it looks like tells where to look:

    coloured noise that never clears    another VAE's latents, or time running the wrong way
    grey and washed out, or burnt       scale and shift left out; or guidance far too low, or too high
    the right thing, blurred            too few steps for this sampler (DDPM with 28)
    the prompt is ignored               guidance 1; or a null prompt that training has never seen
    good frames that do not belong      --frames far from those of training; image models (VideoDiT Fig. 2)
    black                               not-a-number; here an error (finite)

Tried by others: a pipeline class for each model, with the walk in each of them once more. Then --start for
one is not --start for the next, and a fix to the one is not a fix to the others."""

import hashlib
import json
import math
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Threads that wait for each other spin. Beside another busy process the one that is waited for is asleep, and
# "a cat" took 47 s, a step of the toy's training 27; so they give up sooner (5 s, 1.5 s; alone 6 % slower).
# OpenMP reads this once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from PIL import Image
import torch
from tqdm import tqdm

import pretrained
from dit import DiT, MMDiT, PixArt
from flow import (DDPM, Known, ddim_sample, ddpm_sample, euler, guided, held, interpolate, pulled, sigmas,
                  velocity_of)
from latte import Latte
from text import ToyText
from vae import DPVAE, GOP, KLVAE
from videodit import VideoDiT
from support.checkpoints import TOY, class_of, load_network, read_config, sweep
from support.cli import FlagParser, UserError, polite
from support.drawing import contact_sheet
from support.folders import label_of
from support.ops import has_bf16
from support.order import SAMPLING, keyed_noise
from support.pages import write_page
from support.video_io import (IMAGES, Unusable, read_all, read_image, save_image, save_video, to_frames,
                              to_video)


KINDS = {"videodit": VideoDiT, "dit": MMDiT, "latte": Latte}


# -------------------------------------------------------------------------------------------- what samples

# A transformer alone makes nothing. It needs the VAE whose latents it learned: another one's, even with the
# same shapes, is a foreign alphabet. It needs the encoder that spoke to it in training, and that training's
# habits: which way its time runs (objective), at which noise levels it spent its time (shift), how many
# frames it knows. And it has habits of its maker's: a guidance at which its pictures were chosen, a number of
# steps below which they fall apart. Whoever samples Latte with SD3's 28 steps and guidance 4 sees a bad model
# that is not bad. So all of this travels with the weights, and stands here together.
#
#     prompts --text--> conditions --+
#                                    v
#     noise (B,C,T',h,w) --------> walk: steps x transformer --> latents --vae--> clips (B,3,T,H,W)

@dataclass
class Models:
    """What a clip is made with. shift, objective and classes are the transformer's: those of its training."""
    vae: torch.nn.Module           # DPVAE, or KLVAE: an image model's, or Latte's, frame by frame
    text: object                   # prompts -> context, pooled (or mask); None if there is no text
    transformer: torch.nn.Module   # VideoDiT or Latte; MMDiT, DiT or PixArt for pictures
    size: int = 64
    frames: int = 16               # 1: makes pictures
    shift: float = 1.0
    objective: str = "flow"        # "ddpm": Latte's
    classes: tuple = ()            # names of a class-conditional model's labels
    sampling: dict = field(default_factory=dict)    # sampler, steps, cfg (guidance), fps: see advice()
    null: str = "zeros"            # guidance walks away from zeros, or from what the text encoder makes of ""
    dtype: torch.dtype = None      # of the transformer's weights when its turn comes; None: as they are
    device: str = ""               # where it then goes; "": where it is
    bf16: bool = False             # autocast; pays on a GPU

    @property
    def group(self):
        """Frames of a clip in one frame of latents."""
        return GOP if isinstance(self.vae, DPVAE) else 1

    @property
    def asks(self):
        """What it is told: "text", "class" or "none"."""
        return "class" if self.classes else getattr(self.transformer.config, "condition", "text")

    def shape(self, batch, frames, size):
        side = size // self.vae.downsampling
        return batch, self.vae.config.z_channels, max(frames // self.group, 1), side, side

    def take_turn(self):
        """Move the transformer in, now that the text encoders have left: the peak is the larger one."""
        if self.device:
            self.transformer.to(self.device, self.dtype)
        return next(self.transformer.parameters()).device


# A flow's paths are nearly straight, so 28 large steps follow them; DDPM's are not, and its ancestral sampler
# adds noise at each step that the next ones must have time to take away: 250. Guidance doubles the work, for
# each step asks twice, and where there is no condition there is nothing to be guided by.
# ASSUMED: VideoDiT prints neither steps nor guidance: 28 steps with Stable Diffusion 3's levels, guidance 4.
# Latte: 250 ancestral steps; 7.0 for classes and none without a condition in the published configurations,
# 7.5 for text (its pipeline).
def advice(objective, asks, fps=0.0):
    """How a model is sampled if nothing else is said; train.py writes it into the checkpoint."""
    if objective == "flow":
        return {"sampler": "euler", "steps": 28, "cfg": 1.0 if asks == "none" else 4.0, "fps": fps or 12.0}
    guidance = {"none": 1.0, "class": 7.0, "text": 7.5}[asks]
    return {"sampler": "ddpm", "steps": 250, "cfg": guidance, "fps": fps or 8.0}


# A folder that train.py wrote says of itself all that is needed: which networks, at which size, with which
# VAE's latents, how to be sampled. So the door is one path. A folder of somebody else's says nothing, and
# goes through the other door, published.open_released, which knows models by their tensors.
def load_models(folder, device="cpu", weights=(), model="", vae=""):
    """The networks of a folder that train.py wrote: model videodit (with dpvae), dit (with vae) or latte
    (with either); "" takes the first of these that is there. A file in it will do, and names its folder.

    Anything else is a released model, and weights and vae are further paths to its parts. For one of ours
    weights are the published text encoders that it was trained with."""
    folder, weights = Path(folder).expanduser(), [weights] if isinstance(weights, (str, Path)) else weights
    weights = [path for path in weights if path]
    if folder.is_file() and class_of(folder):
        folder, model = folder.parent, model or (folder.stem if folder.stem in KINDS else "")
    if not folder.exists():
        raise UserError(f"no folder {folder}; give --ckpt a folder that train.py wrote")
    if folder.is_file() or not any((folder / f"{part}.safetensors").is_file()
                                   for part in (*KINDS, "vae", "dpvae", "text")):
        found = pretrained.open_released(folder, *weights, vae=vae)
        if not found.states:
            raise UserError(f"{folder} holds no model, neither one of train.py's nor a released one")
        return released_models(found, device)
    model = model or next((name for name in KINDS if (folder / f"{name}.safetensors").is_file()), "videodit")
    path = folder / f"{model}.safetensors"
    transformer = load_network(KINDS[model], path).to(device).requires_grad_(False)
    made = read_config(path)
    latents = made.get("latents", "vae" if model == "dit" else "dpvae")
    vae = load_network({"vae": KLVAE, "dpvae": DPVAE}[latents], folder / f"{latents}.safetensors").to(device)
    models = Models(vae, None, transformer, made["size"], 1 if model == "dit" else made["frames"],
                    made["shift"], made.get("objective", "flow"), tuple(made.get("classes", ())))
    models.sampling = advice(models.objective, models.asks) | made.get("sampling", {})
    if models.asks == "text":
        known = made.get("text_weights", "")                # where its published encoders lay in training
        weights = weights or [known] * (known != "" and Path(known).exists())
        models.text = encoder_of(folder, transformer, weights).to(device)
    return models


def encoder_of(folder, transformer, weights):
    """The text encoder of one of our checkpoints: the toy's lies beside it, a published one is given."""
    if not weights and (folder / "text.safetensors").is_file():
        return load_network(ToyText, folder / "text.safetensors")
    config = transformer.config
    alone = isinstance(transformer, Latte) and not config.pooled_dim        # Latte 4.5: T5 and nothing else
    if not weights:
        speaks = ("T5 v1.1 XXL: a folder that holds text_encoder/ and tokenizer/" if alone
                  else "Stable Diffusion 3's: its file or folder")
        raise UserError(f"{folder} holds no text encoder; give with --weights the one that it was trained "
                        f"with, {speaks}")
    return pretrained.load_t5_text(*weights) if alone else pretrained.load_sd3_text(*weights)


# Other people's models come to the same table. What they are is told by their tensors (pretrained.py); how
# they want to be sampled is told by nothing in the file: it stands in their authors' scripts, and here.
# sampler, steps, guidance, frames a second. TRAP: none of them gives an error when it is wrong.
# DEVIATES: PixArt's script takes DPM-Solver by default; these are the numbers of its other choice, ancestral.
RELEASED = {"mmdit": ("euler", 28, 7.0, 12.0), "dit": ("ddpm", 250, 4.0, 8.0),
            "pixart": ("ddpm", 100, 4.5, 8.0), "latte_t2v": ("ddim", 50, 7.5, 8.0)}


def released_models(found, device="cpu", silent=False):
    """Other people's weights as Models. SD3's 2 B parameters run in bf16 where the device multiplies in it;
    the others stay in float32.

    silent: all prompts are empty, which for SD3 is zeros and needs no encoder."""
    found.need("transformer", "vae")
    silent &= found.kind == "mmdit"
    told = None if silent else found.text()
    kind, network, vae = found.kind, found.transformer(), found.vae()
    # DEVIATES from SD3's scripts: zeros are its null prompt, too, where they let all three encoders read "".
    # In training SD3 dropped each encoder's output on its own, in 46.4 % of the steps, which is all three in
    # 10 % (its appendix); zeros are what stands for an absent T5 in those scripts, and one null prompt then
    # serves training (flow.drop_prompt) and sampling. PixArt's and Latte's pipelines encode "", and so do we.
    config = network.config
    if vae.config.z_channels != config.in_channels:
        raise UserError(f"the VAE in {found.paths['vae']} has {vae.config.z_channels} channels, the "
                        f"transformer in {found.paths['transformer']} reads {config.in_channels}; add --vae "
                        f"PATH with {pretrained.WHERE.get(config.in_channels, 'its own')}")
    side = {"mmdit": found.config("transformer").get("sample_size", 128),
            "pixart": getattr(config, "sample_size", 0)}.get(kind) or config.input_size
    classes = ()
    if kind == "dit" or getattr(config, "condition", "") == "class":
        classes = pretrained.UCF101 if config.classes == 101 else tuple(map(str, range(config.classes)))
    half = kind == "mmdit" and has_bf16(device)
    models = Models(vae.to(device), told.to(device) if told else None, network.requires_grad_(False),
                    side * vae.downsampling, config.frames if isinstance(network, Latte) else 1,
                    3.0 if kind == "mmdit" else 1.0, "flow" if kind == "mmdit" else "ddpm", classes,
                    null="empty" if kind in ("pixart", "latte_t2v") else "zeros", device=device,
                    dtype=torch.bfloat16 if half else torch.float32, bf16=half)
    models.sampling = advice("ddpm", models.asks)
    if kind in RELEASED:
        models.sampling = dict(zip(("sampler", "steps", "cfg", "fps"), RELEASED[kind]))
    if silent:
        models.text, models.sampling["cfg"] = silence(config, device), 1.0
    return models


# No prompt needs no encoder: `python sample.py "" --image --weights sd3_medium.safetensors` makes pictures of
# nothing in particular without the 11 GB of encoders, and is the quickest test of a download.
def silence(config, device):
    """The null prompt that SD3's transformer knows: zeros, 77 tokens of CLIP and 77 of T5."""
    return lambda prompts: (torch.zeros(len(prompts), 154, config.context_dim, device=device),
                            torch.zeros(len(prompts), config.pooled_dim, device=device))


# Text encoders and transformer are never needed at once, and together are 15 GB (SD3: 4 GB in bf16, T5 with
# the CLIPs 11). So all prompts are read first, and then the encoders leave.
def ask_once(text, prompts):
    """text, asked for all prompts now: T5's 10 GB are read once, and gone before the transformer comes."""
    known = dict(zip(prompts, zip(*getattr(text, "read", text)(prompts))))
    answer = lambda wanted: tuple(torch.stack(parts) for parts in zip(*(known[one] for one in wanted)))
    answer.gives = getattr(text, "gives", ("context", "pooled"))
    return answer


# ------------------------------------------------------------------------------------ noise becomes a clip

# The same three steps for every model of both papers and for all released ones: say what is wanted
# (conditions), walk from noise to latents (walk), decode (decode). What differs is one choice in each:
# labels, context with a pooled vector, or context with a mask; euler, ddpm or ddim; D or D_k.
#
# Randomness: all noise is drawn from keys of (seed, step, index of the clip), never from a generator that
# goes on from call to call. So clip 7 is the same clip whether it was made alone, in a batch, on another GPU
# or after a restart, up to the last bits of rounding: a batch of another size multiplies in another order.

#     prompts -----conditions---> told --+
#     "" or zeros --------------> away --+--> guided: away + s (told - away)        s: the guidance, how.cfg
#                                        |          |
#     noise(seed, step, index) --> x ----+--> one step of euler, ddpm or ddim --> x, n times --> latents
#                                        |
#     given (a picture, a clip) ---------+    put in place, with noise on it, before each step
#
# Which sampler follows from what was trained. Euler walks along a velocity, so it needs a flow; DDPM's
# ancestral sampler takes noise away and puts a little new noise on, which forgives errors of early steps;
# DDIM is the same model walked without new noise, in fewer and larger steps: the first noise alone decides
# what comes. All three are in flow.py, and here are one line each (walk, below).

@dataclass
class How:
    """The settings of a walk; with seed and a clip's index they make the clip again."""
    sampler: str = "euler"
    steps: int = 28
    cfg: float = 4.0
    seed: int = 0
    negative: str = ""


def how_of(models, **flags):
    """The model's own settings, and the flags that beat them."""
    own = advice(models.objective, models.asks) | models.sampling
    how = How(**{name: own[name] for name in ("sampler", "steps", "cfg")})
    for name, value in flags.items():
        if value not in (None, ""):
            setattr(how, name, value)
    known = ("euler",) if models.objective == "flow" else ("ddpm", "ddim")
    if how.sampler not in known:
        trained = {"flow": "as a flow; its sampler is euler",
                   "ddpm": "by DDPM; its samplers are ddpm and ddim"}[models.objective]
        raise UserError(f"--sampler {how.sampler}: this model was trained {trained}")
    if how.sampler != "euler" and how.steps > 1000:
        raise UserError(f"--steps {how.steps}: DDPM was trained on 1000 steps; ask for 1 to 1000")
    if how.negative and models.asks == "none":
        raise UserError("--negative: this model reads no prompts, so there is nothing to lead it away from")
    return how


def check_frames(frames, group=GOP):
    if frames < 1 or (frames > 1 and frames % group):
        raise UserError(f"--frames {frames}: must be 1 (an image) or a multiple of {group}, such as "
                        f"{max(frames // group, 1) * group} or {(max(frames, 0) // group + 1) * group}")


@torch.no_grad()
def generate(models, prompts, frames=None, size=None, steps=None, cfg=None, seed=0, first_index=0,
             progress=False, sampler="", negative="", given=None):
    """prompts (B strings) -> clips (B,3,T,H,W) in [-1,1], on the CPU. Clip i depends on seed and
    first_index + i alone, so a clip of a batch can be made again by itself. frames=1 makes pictures.

    steps, cfg and sampler are by default the model's own. given: see Given."""
    frames, size = frames or models.frames, size or models.size
    check_frames(frames, models.group)
    how = how_of(models, steps=steps, cfg=cfg, seed=seed, sampler=sampler, negative=negative)
    with tqdm(total=how.steps, unit="step", disable=not progress) as bar:
        shape = models.shape(len(prompts), frames, size)
        z = walk(models, prompts, shape, how, first_index, given, bar.update)
    return decode(models.vae, z, frames)


# Guidance compares two answers, with the prompt and without, and goes further in the direction in which they
# differ. "Without" must be something the model has been trained on. For our models and SD3 that is zeros, for
# classes one more label than there are classes, for T5's models the encoded empty prompt, as in their
# pipelines. A negative prompt takes that place: then guidance leads away from something, not from nothing.
def conditions(models, prompts, negative=""):
    """What the transformer is told, and what guidance walks away from: {name: tensor} both."""
    network = models.transformer
    if models.classes:
        device = models.device or next(network.parameters()).device
        labels = torch.tensor([label_of(prompt, models.classes) for prompt in prompts], device=device)  # (B,)
        away = label_of(negative, models.classes) if negative else network.config.classes
        return {"labels": labels}, {"labels": torch.full_like(labels, away)}
    if models.text is None:
        return {}, {}
    names = getattr(models.text, "gives", ("context", "pooled"))
    read = getattr(models.text, "read", models.text)        # says what it does not know, or has to cut
    told = dict(zip(names, read(prompts)))                                      # (B,L,D), (B,P) or (B,L)
    away = {name: torch.zeros_like(value) for name, value in told.items()}
    if negative or models.null == "empty":
        away = {name: value.expand(len(prompts), *value.shape[1:])              # (B,L,D), (B,P) or (B,L)
                for name, value in zip(names, read([negative]))}
    # TRAP: a mask of zeros would forbid every look, and attention over nothing is not-a-number. Latte's
    # pipeline cuts both texts to the prompt's length, so the prompt's mask serves both.
    if "mask" in told and isinstance(network, Latte):
        away["mask"] = told["mask"]
    for name, value in {**away, **told}.items():
        finite(value, f"the text encoder's {name}", "its weights are damaged, or its dtype too small: T5 "
               "overflows in float16")
    return told, away


# THE WALK. Everything above prepares it, everything below is a use of it. n calls of the transformer (2n with
# guidance) are all the time a clip takes; the decoder is a call at the end. It is walked under autocast, but
# x itself is float32 throughout.
@torch.no_grad()
def walk(models, prompts, shape, how, first=0, given=None, on_step=None, window=0):
    """Noise of shape (B,C,T',h,w) -> scaled latents of the same shape.

    The prompts are read first, then the transformer takes its place on the device: the order keeps the peak
    of memory at the larger of the two, and T5 is larger than any transformer here. x stays in float32 between
    the steps whatever the network computes in: 250 small steps added in bf16 would be lost in its 8 bits.
    window: number of a window in a long clip; each has noise of its own. on_step() is called before a step."""
    told, away = conditions(models, prompts, how.negative)
    device, given = models.take_turn(), given or Given()
    network, cfg = models.transformer, how.cfg if told else 1.0
    told, away = (micro(network, cond, shape, models.vae.downsampling, device) for cond in (told, away))
    known, skipped = given.known, int(how.steps * (1 - given.strength))

    def new_noise(n):
        return keyed_noise(shape, how.seed, n + 1_000_000 * window, first, device, stream=SAMPLING)

    noise = new_noise(0)
    with torch.autocast(torch.device(device).type, torch.bfloat16,
                        enabled=models.bf16 or torch.is_autocast_enabled(torch.device(device).type)):
        if models.objective == "flow":
            levels, z = sigmas(how.steps, models.shift)[skipped:], noise
            model = guided(velocity_of(network) if isinstance(network, Latte) else network, told, cfg, away)
            if known and given.pull:
                model, network.checkpointing = pulled(model, known, given.pull), True
            if given.base is not None:
                z = interpolate(noise, given.base, torch.full((len(noise),), 1 - levels[0].item(), device=device))
            noisy = lambda t: interpolate(noise, known.latent, t)
        else:
            # TRAP: DiT's released code guides three of four channels, and its published numbers depend on it
            model = guided(network, told, cfg, away, channels=3 if isinstance(network, DiT) else shape[1])
            ddpm = diffusion_of(network, how)
            times, z = ddpm.times()[skipped:], noise
            if given.base is not None:
                z = given.base.float()
                if times:
                    z = ddpm.q_sample(z, torch.full((len(noise),), times[0], device=device), noise)
            noisy = lambda t: ddpm.q_sample(known.latent, ddpm.index(t), noise)
        if known:
            model = held(model, known, noisy)
        if on_step:
            model = counted(model, on_step)
        if models.objective == "flow":
            z = euler(model, z, levels)
        else:
            sampler = {"ddpm": ddpm_sample, "ddim": ddim_sample}[how.sampler]
            z = sampler(ddpm, model, z, times, lambda n: new_noise(n + 1))
        z = known.hold(z, known.latent) if known else z
    return finite(z, "the latents", "try another dtype, or look for a damaged file of weights")


def counted(model, tick):
    """model(x, t), and tick() for each of its calls: a bar."""
    def looking(x, t):
        tick()
        return model(x, t)
    return looking


def diffusion_of(network, how):
    """Latte 3.1: learned variances; DiT's and PixArt's too. A network without has the larger fixed ones.

    TRAP: DDIM is published with a whole stride, timesteps 0, 20, 40 ... for 50 steps, the ancestral sampler
    with a rounded one that reaches 999. Each is evaluated here as it is published."""
    learned = getattr(network.config, "learn_sigma", True)
    strided = how.sampler == "ddim" and how.steps > 1 and 1000 % how.steps == 0
    return DDPM(variance="learned_range" if learned else "fixed_large").respace(
        f"ddim{how.steps}" if strided else str(how.steps))


def micro(network, cond, shape, downsampling, device):
    """PixArt at 1024 pixels is also told how large a picture it makes."""
    if not (isinstance(network, PixArt) and network.config.micro_conditions):
        return cond
    pixels = torch.tensor([[shape[3] * downsampling, shape[4] * downsampling]], device=device).float()
    ratio = (pixels[:, :1] / pixels[:, 1:]).expand(shape[0], 1)                 # (B,1)
    return {**cond, "resolution": pixels.expand(shape[0], 2), "aspect_ratio": ratio}    # (B,2), (B,1)


# TRAP: not-a-number spreads. One weight of 0/0 is in every token after one attention, in every latent after
# one step, and at the end uint8 turns it into black without a word. Latents and frames are asked once each.
def finite(x, what, hint):
    """x, if it holds numbers. One bad weight or one overflow makes all of a clip not-a-number, which is saved
    as black frames without a complaint; here it is an error that says where it was seen first."""
    if not x.isfinite().all():
        raise UserError(f"{what} are not finite numbers; {hint}")
    return x


# VideoDiT A.2: "decoding using the corresponding decoder": D for clips, D_k for images. D would decode a
# picture, too, but as a group of four frames, at nearly three times the work, and it was trained on clips;
# D_k is the image VAE's own decoder, and has never seen anything but pictures' latents.
@torch.no_grad()
def decode(vae, z, frames):
    """Scaled latents -> clips in [-1,1] on the CPU.

    One at a time: the decoder's last feature maps have the pixels' size and 128 channels, so that it is the
    decoder, not the transformer, that runs out of memory: 134 MB a frame of 512 pixels, in float32."""
    picture = frames == 1 and not isinstance(vae, KLVAE)
    clips = [(vae.decode_keys if picture else vae.decode)(row).float().clamp(-1, 1).cpu()
             for row in vae.unscaled(z).split(1)]                               # each (1,3,T,H,W)
    return finite(torch.cat(clips), "the decoded frames", "the VAE's weights are damaged")      # (B,3,T,H,W)


# ------------------------------------------------------------------ from a picture, from a clip, between two

# In neither paper, but VideoDiT's autoencoder has paid for it. A causal video VAE knows a picture only as the
# beginning of a clip. DP-VAE's latent frame is a KEY FRAME'S LATENT plus a residual, and its loss (Eq. 3)
# holds z to the statistics of z_k: for the transformer, E_k(picture) is a latent frame like any other (on the
# toy z and z_k are 0.17 of a standard deviation apart). So a picture can stand in a clip as one of its latent
# frames, and D decodes it with the frames around it. Latte's latents are pictures' anyway.
#
# What is known is put in its place at each step, with as much noise as the rest has there (Eq. 5 says how
# much). That gives a right first frame, and later frames that may be of another colour: the network hears of
# the known frame only through the noise on it, and what is decided first, colour and scene, is decided when
# noise is all there is. Two cures, both at sampling time:
#   start part way   not from noise but from the known frame held still, under noise of `HELD` times its size:
#                    so colour and scene are there before the first step
#   pull             at each step, the error of the network's guess at the KNOWN frame has a gradient with
#                    respect to the whole clip; a step down it moves the unknown frames to where the known one
#                    is better explained (flow.pulled)
# Measured on the toy at guidance 4, prompts of subject and motion only; later frames of the picture's colour
# AND scene, and of the motion that was asked: only put in place 12 and 88 %; started part way 75 and 90;
# pulled from pure noise 50 and 45; both 95 and 90 (16 to 24 unseen clips each; `python eval.py toy` measures
# more of them).
HELD = 4.0                          # noise over signal: the flow's level 0.8
# ASSUMED: all of this section; no paper says it.


# The pull costs a backward pass, three times a step; starting part way saves a third of the steps. Pulling is
# for the part of the walk where the guess already shows something: at noise level 0.9, where the guess at the
# known frame is a blur, its gradient is a push in no direction, and 95 % became 60.
#
# What stays hard: a motion that must go on where no clip of training went. On from the end of a clip a
# subject that moves right stands at the frame's edge; the model has never seen one leave, and lets it spin or
# grow instead: motion as asked in 69 % of 48 clips. On from half a film, for which an end exists, in 84 % of
# 128 with guidance 4, 90 % with 2.5, which is as many as the classifier names of the true ends. The pull is a
# guidance, too, and the two add up: 6 gives 77 %. Starting under more noise (9 times the signal) gives 58 %.

@dataclass
class Given:
    """What a walk starts from or must keep, beside its prompt."""
    base: torch.Tensor = None       # (1 or B,C,T',h,w): start from it, with noise on it
    strength: float = 1.0           # share of the steps that are walked; 1 forgets the base
    known: Known = None             # latent frames that stay as they are
    pull: float = 0.0               # 0: DDPM, whose walk has no velocity to turn


def given_frames(models, shape, keys, how):
    """keys {latent frame: (1 or B,C,1,h,w)} -> Given: these stay, the others start as the nearest of them.

    The nearest, not a mixture: half of one picture over half of another is no picture, and under little noise
    the network would believe it."""
    nearest = [min(keys, key=lambda key: abs(key - place)) for place in range(shape[2])]
    held = torch.cat([keys[place] for place in nearest], dim=2)                 # (1 or B,C,T',h,w)
    mask = torch.tensor([place in keys for place in range(shape[2])], device=held.device)
    return Given(held, part_way(models, how), Known(held, mask.view(1, 1, -1, 1, 1)),
                 pull=1.0 if models.objective == "flow" else 0.0)               # mask: (1,1,T',1,1)


def part_way(models, how, most=HELD):
    """The share of the steps whose noise is at most `most` times the signal.

    The ratio is what flow and DDPM have in common: sigma : 1 - sigma here, sqrt(1 - alpha_bar) :
    sqrt(alpha_bar) there. So HELD means the same for both, and for any shift and number of steps."""
    if models.objective == "flow":
        levels = sigmas(how.steps, models.shift)[:-1].double()
        noise = levels / (1 - levels)
    else:
        noise = (1 / diffusion_of(models.transformer, how).alpha_bar - 1).sqrt()
    return (noise <= most).double().mean().item() - 1e-6        # rounded down, not up, by the samplers


# A picture is E_k's and a clip E_k's plus E_r's (Eq. 1), but both are scaled by the same two numbers: to the
# transformer they are one language. The mean of q(z|x), not a draw from it: what is given should be given.
@torch.no_grad()
def encode(models, x):
    """Clips (B,3,T,H,W) -> scaled latents (B,C,T',h,w); one frame is a picture, and E_k's."""
    return models.vae.scaled(models.vae.encode(x.to(models.device or next(models.vae.parameters()).device)))


def between(models, size, how, frames, start=None, end=None):
    """Given for clips that begin with the pictures `start` (B,3,1,H,W), end with `end`, or both."""
    shape, keys = models.shape(1, frames, size), {}
    for place, pictures in ((0, start), (shape[2] - 1, end)):
        if pictures is not None:
            keys[place] = encode(models, pictures)                              # (B,C,1,h,w)
    return given_frames(models, shape, keys, how)


# Longer than training. A transformer that has seen 4 latent frames and is asked for 16 at once meets
# positions it has never learned, and attention whose cost grows with the square. So a long clip is made in
# windows, each of which knows the end of the last:
#
#     z        [ 0  1  2  3 ]                     what is there
#     walk 0         [ 2  3 | 4  5 ]              known | new
#     walk 1               [ 4  5 | 6  7 ]        each with noise of its own (window)
#
# Tried by others: a model trained to predict from given frames (a mask channel as a further input, as in
# image-to-video models); a noise level of its own for each frame, so that the window slides a frame at a time
# ("diffusion forcing"). Both need training for it; this needs none.
def go_on(models, prompts, z, frames, how, first=0, on_step=None):
    """Latents z (1 or B,C,T',h,w) of a clip -> (B,C,frames/group,h,w), which begin with them.

    A window at a time: half of it is the end of what is there, and known, half is new. One key frame would
    hand on the scene; several hand on the motion too, for a velocity needs two places. The window is as long
    as the clips of training, so the network meets no position it has not learned, and a clip of any length
    takes the memory of one window. What is lost: a thing that left the frame for a window is forgotten."""
    window = models.shape(1, models.frames, models.size)[2]
    z, keep, number = z.expand(len(prompts), *z.shape[1:]), max(window // 2, 1), 0      # (B,C,T',h,w)
    while z.shape[2] < frames // models.group:
        known = z[:, :, -keep:]
        shape = (*z.shape[:2], window, *z.shape[3:])
        keys = {place: known[:, :, place:place + 1] for place in range(known.shape[2])}
        given = given_frames(models, shape, keys, how)
        new = walk(models, prompts, shape, how, first, given, on_step, number)
        z, number = torch.cat([z, new[:, :, known.shape[2]:]], dim=2), number + 1       # (B,C,T'+new,h,w)
    return z[:, :, :frames // models.group]


def windows_of(models, have, frames):
    """How many walks go_on takes from `have` latent frames."""
    window, walks = models.shape(1, models.frames, models.size)[2], 0
    while have < frames // models.group:
        have, walks = have + window - min(max(window // 2, 1), have), walks + 1
    return walks


# A model makes squares. Of what a person brings the middle is taken, and neither stretched nor padded: a
# stretched cat is an input that no training has shown, and padding would be drawn into the clip.
def read_square(path, size, flag):
    """(1,3,T,size,size): the middle of a picture (T=1) or of all frames of a clip."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"--{flag} {path}: no such file")
    try:
        is_picture = path.suffix.lower() in IMAGES
        frames = read_image(path, size)[None] if is_picture else read_all(path, size)[1]      # (T,H,W,3)
    except (Unusable, OSError, ValueError) as reason:
        raise UserError(f"--{flag} {path} cannot be read ({str(reason)[:100]}); give another file")
    top, left = ((side - size) // 2 for side in frames.shape[1:3])
    return to_video(frames[:, top:top + size, left:left + size])[None]          # (1,3,T,size,size)


# ------------------------------------------------------------------------------------- results that are kept

# A clip that was liked yesterday must be there today: nothing is ever written over, the next free number is
# taken, and of two runs at once into one folder each gets numbers of its own. And a clip that cannot be made
# again is an anecdote: beside each lies a .json with all that decided it. out/index.html shows both, and
# grows with every run: the quickest way to see what guidance or a seed does is to make some and look.

def file_name(number, prompt):
    """0003-a-red-cat, or a hash where nothing of the prompt may stand in a file name."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] if prompt else "clip"
    return f"{number:04d}-{slug or hashlib.sha1(prompt.encode(errors='replace')).hexdigest()[:10]}"


# Why the .json is written first: to create a file "if it is not there" is the one thing that a file system
# does for exactly one of two runs. Who made the .json owns the number; film and sheet follow under its name.
def reserve(out, number, prompt, about):
    """Write the .json under the first free number from `number` on; returns the name without extension.

    It is opened for creation only, so that of two runs at once one gets the next number."""
    out.mkdir(parents=True, exist_ok=True)
    while True:
        base = out / file_name(number, prompt)
        try:
            with open(f"{base}.json", "x", encoding="utf-8") as file:
                file.write(json.dumps(about) + "\n")
            return base
        except FileExistsError:
            number += 1


def free_number(out, first):
    """The number after the largest in the folder, and at least `first`."""
    sweep(out)
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    return max([first - 1, *(int(found[1]) for name in names if (found := re.match(r"(\d{4,})-", name)))]) + 1


def keep(out, number, clip, prompt, about, fps, gif=False):
    """One clip (3,T,H,W) with its contact sheet and settings, or one picture; returns where it is."""
    try:
        base = reserve(out, number, prompt, about)
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror}; free some space or give another --out")
    try:
        if clip.shape[1] == 1:      # its own pixels, no margin and not enlarged: --start takes it as it is
            save_image(f"{base}.png", Image.fromarray(to_frames(clip)[0]))
        else:
            contact_sheet(f"{base}.png", [clip])
            save_video(f"{base}.mp4", clip, fps, side=256)
            if gif:
                save_video(f"{base}.gif", clip, fps, side=128)
    except UserError:
        Path(f"{base}.json").unlink()                       # a number without a clip would be a riddle
        raise
    return f"{base}.mp4" if clip.shape[1] > 1 else f"{base}.png"


# ---------------------------------------------------------------------------------------- the command line

# Everything that can be refused is refused before the first step, and most of it before any weights are read:
# after an hour of walking, a misspelled --end is an insult. Hence three places where flags are looked at:
#
#     parse, check_flags   what the words alone tell: unknown flags, a negative number, two wishes at once
#     settle               what needs the model: a size it cannot make, a class it does not know, its defaults
#     recipe               what needs the files: a clip shorter than --frames, a picture that is none
#
# A flag left out means the model's own value, which settle prints with the rest in one line: what is not
# shown cannot be questioned.

TOKENS = 1 << 15    # in one batch: eight pictures of SD3 at 1024, one clip of 96 frames at 512, 512 toy clips
MOST = 1 << 17      # in one clip: 5 times VideoDiT's largest; attention over more would take hours, or fail


# A batch is bounded by tokens and not by the memory that is free: then the same command makes the same
# batches on every machine, and a clip differs by no more than its processor's rounding.
def parse(argv):
    flags = FlagParser(prog="sample.py", description="make clips, or with --image pictures, from prompts")
    add = flags.add_argument
    add("prompt", nargs="*", help="one clip for each; a name or number for a model of classes")
    add("--prompts", metavar="FILE", help="a text file, one prompt a line")
    add("--negative", default="", help="what guidance leads away from")
    add("--ckpt", default="", help="a folder that train.py wrote; by default checkpoints/toy")
    add("--model", default="", choices=["", *KINDS], help="which of the folder's models")
    add("--weights", metavar="PATH", default=[], action="append",
        help="a released model, file or folder: SD3, SD3.5, DiT, PixArt-alpha, Latte; may be repeated, for "
             "parts that lie elsewhere. With --ckpt: its text encoders serve that checkpoint. SD3 needs 5 GB "
             "for its transformer in bf16 (9 on a CPU that has none) and, if there is T5, 10 GB for that, "
             "one after the other")
    add("--vae", metavar="PATH", default="", help="the VAE of --weights, where it is not in them")
    add("--zero-shot-video", action="store_true",
        help="with SD3's --weights: VideoDiT Fig. 2, the untrained image model attending over --frames "
             "pictures at once (activations grow with --frames)")
    add("--image", action="store_true", help="pictures (.png) instead of clips")
    add("--start", metavar="PICTURE", default="", help="the clip begins with it")
    add("--end", metavar="PICTURE", default="", help="the clip ends with it; with --start: in between")
    add("--extend", metavar="CLIP", default="", help="go on from its end, to --frames in all")
    add("--video", metavar="CLIP", default="", help="make this clip anew by the prompt: see --strength")
    add("--strength", type=float, default=0.6, help="of --video: share of the steps; 1 forgets the clip")
    add("--frames", type=int, default=0, help="with DP-VAE a multiple of 4; 0: the model's own")
    add("--size", type=int, default=0, help="pixels; 0: the model's own")
    add("--sampler", default="", choices=["", "euler", "ddpm", "ddim"], help="by default the model's own")
    add("--steps", type=int, help="calls of the transformer; by default the model's own")
    add("--cfg", type=float, help="guidance; 1 is none; by default the model's own")
    add("--seed", type=int, default=0, help="same seed, same clip")
    add("-n", type=int, default=1, help="clips for each prompt")
    add("--first", type=int, default=0, help="index of the first: clip 3 of -n 4 is made alone by --first 3")
    add("--batch", type=int, default=0, help="clips made at once; 0: what fits")
    add("--out", default="out", help="folder; nothing in it is written over")
    add("--fps", type=float, help="of the files; by default the model's own")
    add("--gif", action="store_true", help="write .gif beside the .mp4")
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)        # sample.py -- "-cat": not a flag
    args = flags.parse_args(words[:cut])
    args.prompt += words[cut + 1:]
    if args.prompts:
        path = Path(args.prompts).expanduser()
        if not path.is_file():
            raise UserError(f"no file {args.prompts}; --prompts wants a text file, one prompt a line")
        lines = path.read_text("utf-8-sig", "replace").splitlines()
        args.prompt += [line.strip() for line in lines if line.strip()]
    check_flags(args)
    return args


def check_flags(args):
    """What can be said before any weights are read."""
    for name, least in (("steps", 1), ("n", 1), ("fps", 0.1), ("size", 0), ("cfg", 0), ("first", 0),
                        ("batch", 0), ("frames", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:    # nan is not, either
            raise UserError(f"{'-' if name == 'n' else '--'}{name} {value}: must be at least {least}")
    if not 0 < args.strength <= 1:
        raise UserError(f"--strength {args.strength}: must be above 0 and at most 1")
    if args.zero_shot_video and (args.ckpt or not args.weights):
        raise UserError("--zero-shot-video shows an untrained Stable Diffusion 3: "
                        "give --weights, and no --ckpt")
    given = [f"--{name}" for name in ("extend", "video", "image") if getattr(args, name)]
    given += ["--start/--end"] if args.start or args.end else []
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are different wishes; give one of them")
    if args.vae and not args.weights:
        raise UserError("--vae belongs to --weights; our own checkpoints carry theirs")
    args.out = Path(args.out).expanduser()
    if args.out.is_file():
        raise UserError(f"--out {args.out}: is a file; give a folder")


def tokens_of(models, frames, size):
    """Of one clip, as the transformer sees it."""
    return math.prod(models.shape(1, frames, size)[2:]) // models.transformer.config.patch ** 2


# Defaults are the model's, not the program's: SD3 wants 28 steps and guidance 7, a Latte of faces 250 and
# none. A program whose default is 50 steps for all decides, for somebody, that his model is bad.
def settle(args, models):
    """Fill in what the model knows better, and refuse what it cannot do, before anything is computed."""
    if not args.prompt:
        if models.asks != "none":
            raise UserError('give a prompt, such as "a cat", or a file of them with --prompts'
                            if models.asks == "text" else f"give a class, such as {models.classes[0]}")
        args.prompt = [""]
    for prompt in args.prompt if models.classes else ():
        label_of(prompt, models.classes)
    if models.asks == "none" and any(args.prompt):
        print("this model reads no prompts: yours is the clip's name and nothing else", file=sys.stderr)
    unit = models.vae.downsampling * models.transformer.config.patch
    if args.size % unit:
        raise UserError(f"--size {args.size}: must be a multiple of {unit}")
    args.size, args.fps = args.size or models.size, args.fps or models.sampling.get("fps", 12.0)
    if isinstance(models.transformer, DiT) and args.size != models.size:
        raise UserError(f"--size {args.size}: this DiT makes pictures of {models.size} and no others")
    own = 8 if args.zero_shot_video else models.frames
    args.frames = 1 if args.image else args.frames or (2 * own if args.extend else own)
    check_frames(args.frames, models.group)
    moving = [name for name in ("start", "end", "extend", "video") if getattr(args, name)]
    if models.frames == 1 and (args.frames > 1 or moving) and not args.zero_shot_video:
        what = f"--{moving[0]}" if moving else f"--frames {args.frames}"
        raise UserError(f"{what}: this is an image model; "
                        + ("add --zero-shot-video, or --ckpt" if args.weights and not args.ckpt
                           else "add --image, or train stage videodit"))
    tokens = tokens_of(models, models.frames if args.extend else args.frames, args.size)
    if tokens > MOST:
        raise UserError(f"--frames {args.frames} --size {args.size}: {tokens:,} tokens in one clip, "
                        f"{MOST:,} at most; take fewer, and go on from the clip with --extend")
    args.batch = args.batch or max(TOKENS // tokens, 1)
    return how_of(models, steps=args.steps, cfg=args.cfg, seed=args.seed, sampler=args.sampler,
                  negative=args.negative)


def recipe(args, models, how):
    """(make(prompts, first, on_step) -> clips, steps it takes): what the flags ask for.

    All of them are walks; they differ in what is given: nothing, frames that stay (--start, --end), a clip to
    begin from part way (--video), or windows one after the other (--extend)."""
    shape = models.shape(1, args.frames, args.size)
    if args.extend:
        film = read_square(args.extend, args.size, "extend")
        have = film.shape[2] // models.group * models.group
        if not 0 < have < args.frames:
            raise UserError(f"--extend {args.extend}: {have} frames of it can be used; --frames "
                            f"{args.frames} must be more, and the clip at least {models.group} long")
        film = film[:, :, :have]
        z = encode(models, film)

        def make(prompts, first, on_step):
            longer = go_on(models, prompts, z, args.frames, how, first, on_step)
            clips = decode(models.vae, longer, args.frames)
            clips[:, :, :have] = film                                       # what was there stays as it was
            return clips
        steps = part_way(models, how) * how.steps
        return make, round(steps) * windows_of(models, z.shape[2], args.frames)
    given = Given()
    if args.start or args.end:
        pictures = {flag: read_square(getattr(args, flag), args.size, flag)[:, :, :1]
                    for flag in ("start", "end") if getattr(args, flag)}
        given = between(models, args.size, how, args.frames, **pictures)
    if args.video:
        film = read_square(args.video, args.size, "video")
        if film.shape[2] < args.frames:
            raise UserError(f"--video {args.video}: {film.shape[2]} frames; give --frames "
                            f"{film.shape[2] // models.group * models.group} or less")
        given = Given(encode(models, film[:, :, :args.frames]), args.strength)

    def make(prompts, first, on_step):
        z = walk(models, prompts, (len(prompts), *shape[1:]), how, first, given, on_step)
        clips = decode(models.vae, z, args.frames)
        # a key frame is the first of its group: a clip that is to end with it loses the others
        return clips[:, :, :args.frames - models.group + 1] if args.end else clips
    return make, round(given.strength * how.steps)


def main(argv=None):
    args, begun = parse(argv), time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.weights and not args.ckpt:
        models = released_models(pretrained.open_released(*args.weights, vae=args.vae), device,
                                 silent=bool(args.prompt) and not any([*args.prompt, args.negative]))
    else:
        models = load_models(args.ckpt or TOY, device, args.weights, args.model)
    models.bf16 |= device == "cuda" and has_bf16(device)
    how = settle(args, models)
    wanted = list(dict.fromkeys([*args.prompt, args.negative]))
    if models.text and len(wanted) <= 256:                  # more are asked for batch by batch
        models.text = ask_once(models.text, wanted)
    print((f"{args.frames} frames at {args.fps:g} fps, " if args.frames > 1 else "") +
          f"{args.size} pixels; {how.sampler}, {how.steps} steps, guidance {how.cfg:g}, seed {how.seed}")
    number, made = free_number(args.out, args.first), 0
    with torch.no_grad():
        make, steps = recipe(args, models, how)
        count = args.n * len(args.prompt)
        blocks = [range(start, min(start + args.batch, count)) for start in range(0, count, args.batch)]
        with tqdm(total=len(blocks) * steps, unit="step", mininterval=0.5) as bar:
            for block in blocks:
                prompts = [args.prompt[index // args.n] for index in block]
                clips = make(prompts, args.first + block[0], bar.update)
                for index, prompt, clip in zip(block, prompts, clips):
                    about = about_clip(args, how, prompt, args.first + index, clip)
                    where = keep(args.out, number + made, clip, prompt, about, args.fps, args.gif)
                    tqdm.write(f'"{prompt}" -> {where}' if prompt else where)
                    made += 1
    write_page(args.out)
    print(f"{made} in {time.perf_counter() - begun:.1f} s; all of the folder, with their settings: "
          f"{args.out / 'index.html'}")


# Seed, index and settings; with the same weights and the same kind of machine they give the same clip, to the
# last bits. torch's version stands there because a kernel that adds in another order is another rounding.
def about_clip(args, how, prompt, index, clip):
    """What is needed to make this clip again."""
    return {"prompt": prompt, "index": index, "frames": clip.shape[1], "pixels": clip.shape[-1],
            "fps": args.fps, **asdict(how),
            **{key: getattr(args, key) for key in ("ckpt", "model", "weights", "vae", "start", "end",
                                                   "extend", "video")},
            **({"strength": args.strength} if args.video else {}),
            "made": time.strftime("%Y-%m-%d %H:%M:%S"), "torch": torch.__version__}


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
