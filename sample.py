"""sample.py - `python sample.py "a cat"`: a prompt becomes a clip; an image or a clip may say how it begins.
Paper    VideoDiT A.2: "denoising sampled noise from a standard Gaussian distribution and then decoding
         using the corresponding decoder"; Latte 3.1 and its published configurations: ancestral sampling,
         250 steps
Shapes   noise (B,C,T',h,w) -> scaled latents, same shape -> clips (B,3,T,H,W); T' = T/4 with DP-VAE, else T;
         an image is T=1, decoded by D_k
Time     flow: t=0 noise, t=1 data, SD3's schedule of noise levels (flow.sigmas); or DDPM's steps
Differs  --start, --end, --extend are in neither paper; steps, guidance and null prompt: grep ASSUMED
Reads    after train.py, whose previews call generate() from here, as do eval.py's scores; before eval.py
Run me   python sample.py "a cat"      # CPU, a few seconds: writes out/0000-a-cat.mp4, look at out/index.html
         python sample.py "a cat jumping" --start cat.png
         python sample.py 207 --weights DiT-XL-2-256x256.pt --vae stable-diffusion-v1-4/vae

THE PROBLEM. A trained transformer answers one small question: given latents with noise on them, and how much
noise it is, which way lies the data? A person asks a large one: a cat. Between the two lie an encoder that
turns words into tokens, a sampler that asks many small questions, each where the last one ended, and a
decoder; each has settings that training fixed and no tensor tells.

THE IDEA. Keep all of it in one place (Models), sample every model in the same few lines (sample_latents), and
treat everything else a person may have, a first frame, a last one, a clip, as something GIVEN to the sampler.
What happens to "a cat", with the toy's sizes and with those of VideoDiT at 512 x 512 (VideoDiT A.2):

    words      "a cat" -> context and pooled        (1,12,128) (1,128)    (1,154,4096) (1,2048)
    noise      keyed by seed, step, index           (1,16,4,8,8)          (1,16,24,64,64)
    steps      a batch of 2, as guidance needs      14 of 64 tokens each  28 of 24,576 tokens each
    unscaled   z / scale + shift: Eq. 3 made one pair of numbers serve images and clips
    D          4 frames of each latent frame        (1,3,16,64,64)        (1,3,96,512,512)

When a clip comes out wrong, what it looks like tells where to look:

    coloured noise that never clears    another VAE's latents, or time running the wrong way
    grey and washed out, or burnt       scale and shift left out; or guidance far too low, or too high
    the right thing, blurred            too few steps for this sampler (DDPM with 28)
    the prompt is ignored               guidance 1; or a null prompt that training has never seen
    good frames that do not belong      --frames far from those of training; image models (VideoDiT Fig. 2)
    black                               not-a-number; here an error (finite)

Tried by others: a pipeline class for each model, with the sampling in each of them once more. Then --start
for one is not --start for the next, and a fix to the one is not a fix to the others."""

from support.cli import FlagParser, UserError, at_least, check_writable, polite, printable

import json
import math
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from PIL import Image
import torch
from tqdm import tqdm

import pretrained
from dit import DiT, MMDiT, PixArt
from flow import (DDPM, Known, ddpm_sample, euler, guided, held, interpolate, pulled, sigmas, velocity_of)
from latte import Latte
from text import ToyText
from vae import DPVAE, GOP, KLVAE, check_frames
from videodit import VideoDiT
from support.checkpoints import TOY, class_of, load_network, read_config, sweep
from support.drawing import contact_sheet
from support.folders import label_of, read_prompts
from support.ops import best_device, has_bf16
from support.order import SAMPLING, keyed_noise
from support.pages import write_page
from support.video_io import (IMAGES, Unusable, read_at_rate, read_image, save_image, save_video, to_frames,
                              to_video)


KINDS = {"videodit": VideoDiT, "dit": MMDiT, "latte": Latte}


# ------------------------------------------------------------------------------ from a prompt to a clip

# The same three steps for every model of both papers and for all released ones: read the prompt (conditions),
# go from noise to latents (sample_latents), decode (decode). What differs is one choice in each: labels,
# context with a pooled vector, or context with a mask; euler, ddpm or ddim; D or D_k.
#
#     prompts -----conditions---> cond -------+
#     "" or zeros --------------> null_cond --+--> guided: null + s (cond - null)   s: the guidance scale
#                                             |          |
#     noise(seed, step, index) --> z ---------+--> one step of euler, ddpm or ddim --> z, n times --> latents
#                                             |
#     given (an image, a clip) ---------------+    put in place, with noise on it, before each step
#
# Randomness: all noise is drawn from keys of (seed, step, index of the clip), never from a generator that
# goes on from call to call. So clip 7 is the same clip whether it was made alone, in a batch, on another GPU
# or after a restart, up to the last bits of rounding: a batch of another size multiplies in another order.

def generate(models, prompts, frames=0, *, steps=None, guidance=None, seed=0, sampler="", negative="",
             first_index=0):
    """prompts (B strings) -> clips (B,3,T,H,W) in [-1,1], on the CPU. Clip i depends on seed and
    first_index + i alone, so a clip of a batch can be made again by itself. frames=1 makes images.

    steps, guidance and sampler are by default the model's own."""
    frames = frames or models.frames
    check_frames(frames, models.group)
    how = how_of(models, sampler, steps, guidance, seed, negative)
    shape = models.shape(len(prompts), frames, models.size)                     # (B,C,T',h,w)
    z = sample_latents(models, prompts, shape, how, first_index)                # (B,C,T',h,w)
    return decode(models.vae, z, frames, models.bf16)                           # (B,3,T,H,W)


# Nearly all the time that a clip takes is in the n steps. Each calls the transformer once: on a batch of B,
# or with guidance on one of 2B. The decoder is called once, at the end. The transformer runs under autocast,
# but z stays in float32 between the steps: 250 small changes added in bf16 would be lost in its 8 bits.
@torch.no_grad()
def sample_latents(models, prompts, shape, how, first_index=0, given=None, window=0):
    """Noise of shape (B,C,T',h,w) -> scaled latents of the same shape. given: see Given.

    The prompts are read first, then the transformer takes its place on the device: the order keeps the peak
    of memory at the larger of the two, and T5 is larger than any transformer here.
    window: number of a window in a long clip; each has noise of its own."""
    cond, null_cond = conditions(models, prompts, how.negative)
    if not cond:
        how = replace(how, guidance=1.0)                    # nothing to be guided by
    if models.device:
        models.transformer.to(models.device, models.dtype)
    device = next(models.transformer.parameters()).device
    cond = add_resolution(models, cond, shape, device)
    null_cond = add_resolution(models, null_cond, shape, device)

    def new_noise(n):
        number = n + 1_000_000 * window
        noise = keyed_noise(shape, how.seed, number, first_index, device, stream=SAMPLING)      # (B,C,T',h,w)
        return how.temperature * noise

    kind = torch.device(device).type
    sample = {"flow": sample_flow, "ddpm": sample_ddpm}[models.objective]
    with torch.autocast(kind, torch.bfloat16, enabled=models.bf16 or torch.is_autocast_enabled(kind)):
        z = sample(models, how, cond, null_cond, new_noise, given or Given())
    return finite(z, "the latents", "try another dtype, or look for a damaged file of weights")


# Which sampler follows from what was trained. Euler follows a velocity, so it needs a flow; DDPM's ancestral
# sampler takes noise away and puts a little new noise on, which forgives errors of early steps; DDIM is the
# same model sampled without new noise, in fewer and larger steps: the first noise alone decides what comes.
def sample_flow(models, how, cond, null_cond, new_noise, given):
    """Rectified flow (VideoDiT Eq. 5): Euler along the guided velocity."""
    network = models.transformer
    noise = new_noise(0)                                                        # (B,C,T',h,w)
    velocity = network
    if isinstance(network, Latte):
        velocity = velocity_of(network)
    velocity = guided(velocity, cond, how.guidance, null_cond)
    if given.pull:
        network.checkpointing = True                        # a backward pass a step
        velocity = pulled(velocity, given.known)

    levels = sigmas(how.steps, models.shift)[given.skipped(how.steps):]
    if given.known is None:
        return euler(velocity, noise, levels)                                   # (B,C,T',h,w)

    def noisy(t):                                           # what is known, as noisy as the rest is at t
        return interpolate(noise, given.known.latent, t)                        # (B,C,T',h,w)

    start = noisy(1 - levels[:1].to(noise.device))
    z = euler(held(velocity, given.known, noisy), start, levels)                # (B,C,T',h,w)
    return given.known.hold(z, given.known.latent)


def sample_ddpm(models, how, cond, null_cond, new_noise, given):
    """Latte 3.1: ancestral sampling, or DDIM. Here t are timesteps of training, 0 to 999."""
    network = models.transformer
    noise = new_noise(0)                                                        # (B,C,T',h,w)
    channels = None                                         # all of the latent's
    if isinstance(network, DiT):
        channels = 3            # TRAP: DiT's released code guides three of four, and its published numbers do
    model = guided(network, cond, how.guidance, null_cond, channels)
    ddpm = diffusion_of(network, how).to(noise.device)
    step = {"ddpm": ddpm.ancestral_step, "ddim": ddpm.ddim_step}[how.sampler]
    times = ddpm.times()[given.skipped(how.steps):]

    def step_noise(n):
        return new_noise(n + 1)                             # 0 is what the clip begins as

    if given.known is None:
        return ddpm_sample(step, ddpm, model, noise, times, step_noise)         # (B,C,T',h,w)

    def noisy(t):
        return ddpm.q_sample(given.known.latent, ddpm.index(t), noise)          # (B,C,T',h,w)

    start = noisy(ddpm.timesteps[times[:1]].to(noise.device))
    model = held(model, given.known, noisy)
    z = ddpm_sample(step, ddpm, model, start, times, step_noise)                # (B,C,T',h,w)
    return given.known.hold(z, given.known.latent)


# VideoDiT A.2: "decoding using the corresponding decoder": D for clips, D_k for images. D would decode an
# image, too, but as a group of four frames, at nearly three times the work, and it was trained on clips; D_k
# is the image VAE's own decoder, and has never seen anything but images' latents.
@torch.no_grad()
def decode(vae, z, frames, bf16=False):
    """Scaled latents -> clips in [-1,1] on the CPU.

    One at a time: the decoder's last feature maps have the pixels' size and 128 channels, so that it is the
    decoder, not the transformer, that runs out of memory: 134 MB a frame of 512 pixels, in float32. On a GPU
    that multiplies in bf16 (models.bf16) it is half of that."""
    decoder = vae.decode
    if frames == 1 and not isinstance(vae, KLVAE):
        decoder = vae.decode_keys
    clips = []
    # a preview during training comes with autocast switched on
    fast = torch.is_autocast_enabled("cuda") or (bf16 and z.is_cuda)
    with torch.autocast("cuda", torch.bfloat16, enabled=fast):
        for row in vae.unscaled(z).split(1):                                    # (1,C,T',h,w)
            clips.append(decoder(row).float().clamp(-1, 1).cpu())               # (1,3,T,H,W)
    return finite(torch.cat(clips), "the decoded frames", "the VAE's weights are damaged")      # (B,3,T,H,W)


# TRAP: not-a-number spreads. One weight of 0/0 is in every token after one attention, in every latent after
# one step, and at the end uint8 turns it into black without a word. Latents and frames are asked once each.
def finite(x, what, hint):
    """x, if it holds numbers. One bad weight or one overflow makes all of a clip not-a-number, which is saved
    as black frames without a complaint; here it is an error that says where it was seen first."""
    if not x.isfinite().all():
        raise UserError(f"{what} are not finite numbers; {hint}")
    return x


# Guidance compares two answers, with the prompt and without, and goes further in the direction in which they
# differ (flow.guided). "Without" must be something the model has been trained on: for our models and SD3
# zeros, for classes the label after the last one, for the released PixArt and Latte the encoded empty prompt,
# as in their pipelines. With --negative, the negative prompt takes its place.
def conditions(models, prompts, negative=""):
    """(what the transformer is told, what guidance leads away from): {name: tensor} both."""
    network = models.transformer
    if models.classes:
        device = models.device or next(network.parameters()).device
        labels = torch.tensor([label_of(prompt, models.classes) for prompt in prompts], device=device)  # (B,)
        null = network.config.classes                       # the label after the last class
        if negative:
            null = label_of(negative, models.classes)
        return {"labels": labels}, {"labels": torch.full_like(labels, null)}
    if models.text is None:
        return {}, {}
    names = getattr(models.text, "gives", ("context", "pooled"))
    cond = dict(zip(names, models.text(prompts)))                               # (B,L,D), (B,P) or (B,L)
    if negative or models.null == "empty":
        null_cond = {name: value.expand(len(prompts), *value.shape[1:])         # (B,L,D), (B,P) or (B,L)
                     for name, value in zip(names, models.text([negative]))}
    else:
        null_cond = {name: torch.zeros_like(value) for name, value in cond.items()}
    # TRAP: a mask of zeros would leave attention nothing to attend to, which is not-a-number. Latte's
    # pipeline shortens both texts to the prompt's length, so the prompt's mask serves both.
    if "mask" in cond and isinstance(network, Latte):
        null_cond["mask"] = cond["mask"]
    return cond, null_cond


def add_resolution(models, cond, shape, device):
    """PixArt at 1024 pixels is also told how large an image it makes ("micro-conditions")."""
    network = models.transformer
    if not (isinstance(network, PixArt) and network.config.micro_conditions):
        return cond
    batch, _, _, height, width = shape
    pixels = models.vae.downsampling * torch.tensor([[height, width]], device=device).float()   # (1,2)
    ratio = pixels[:, :1] / pixels[:, 1:]                                       # (1,1)
    return {**cond, "resolution": pixels.expand(batch, 2), "aspect_ratio": ratio.expand(batch, 1)}


def diffusion_of(network, how):
    """Latte 3.1: learned variances; DiT's and PixArt's too. A network without has the larger fixed ones.

    TRAP: DDIM is published with a whole stride, timesteps 0, 20, 40 ... for 50 steps, the ancestral sampler
    with a rounded one that reaches 999. Each is evaluated here as it is published."""
    variance = "learned_range"
    if not getattr(network.config, "learn_sigma", True):
        variance = "fixed_large"
    spacing = str(how.steps)
    if how.sampler == "ddim" and how.steps > 1 and 1000 % how.steps == 0:
        spacing = f"ddim{how.steps}"
    return DDPM(variance=variance).respace(spacing)


# -------------------------------------------------------------------------------------------- what samples

# A transformer alone makes nothing. It needs the VAE whose latents it learned: another one's, even with the
# same shapes, is a foreign alphabet. It needs the encoder that spoke to it in training, and that training's
# habits: which way its time runs (objective), at which noise levels it spent its time (shift), how many
# frames it knows. And it has habits of its maker's: a guidance scale at which its images were chosen, a
# number of steps below which they fall apart. Whoever samples Latte with SD3's 28 steps and guidance 4 sees a
# bad model that is not bad. So all of this travels with the weights, and stands here together.

@dataclass
class Models:
    """What a clip is made with. shift, objective and classes are the transformer's: those of its training."""
    vae: torch.nn.Module           # DPVAE, or KLVAE: an image model's, or Latte's, frame by frame
    text: object                   # prompts -> context, pooled (or mask); None if there is no text
    transformer: torch.nn.Module   # VideoDiT or Latte; MMDiT, DiT or PixArt for images
    size: int = 64
    frames: int = 16               # 1: makes images
    shift: float = 1.0
    objective: str = "flow"        # "ddpm": Latte's
    classes: tuple = ()            # names of a class-conditional model's labels
    sampling: dict = field(default_factory=dict)    # sampler, steps, guidance, fps: see advice()
    null: str = "zeros"            # guidance leads away from zeros, or from what the text encoder makes of ""
    dtype: torch.dtype = None      # of the transformer's weights when its turn comes; None: as they are
    device: str = ""               # where it then goes; "": where it is
    bf16: bool = False             # autocast; pays on a GPU

    @property
    def group(self):
        """Frames of a clip in one frame of latents."""
        return GOP if isinstance(self.vae, DPVAE) else 1

    @property
    def condition(self):
        """What it is told: "text", "class" or "none"."""
        if self.classes:
            return "class"
        return getattr(self.transformer.config, "condition", "text")

    def shape(self, batch, frames, size):
        """Of the latents: (B,C,T',h,w)."""
        side = size // self.vae.downsampling
        return batch, self.vae.config.z_channels, max(frames // self.group, 1), side, side


# A flow's paths are nearly straight, so 28 large steps follow them; DDPM's are not, and its ancestral sampler
# adds noise at each step that the next ones must have time to take away: 250. Guidance doubles the work, for
# each step asks twice, and where there is no condition there is nothing to be guided by.
# ASSUMED: VideoDiT prints neither steps nor guidance: 28 steps with Stable Diffusion 3's levels, guidance 4.
# Latte: 250 ancestral steps; 7.0 for classes and none without a condition in the published configurations,
# 7.5 for text (its pipeline).
def advice(objective, condition, fps=0.0):
    """How a model is sampled if nothing else is said; train.py writes it into the checkpoint."""
    if objective == "flow":
        guidance = {"none": 1.0, "class": 4.0, "text": 4.0}[condition]
        return {"sampler": "euler", "steps": 28, "guidance": guidance, "fps": fps or 12.0}
    guidance = {"none": 1.0, "class": 7.0, "text": 7.5}[condition]
    return {"sampler": "ddpm", "steps": 250, "guidance": guidance, "fps": fps or 8.0}


@dataclass
class How:
    """The settings of the sampler; with seed and a clip's index they make the clip again."""
    sampler: str = "euler"
    steps: int = 28
    guidance: float = 4.0
    seed: int = 0
    negative: str = ""
    temperature: float = 1.0


# Temperature scales all noise that is drawn. Below 1, a model keeps to what is likely: clips are surer, and
# more alike. Neither paper does it (models of sound often do), so it is 1 where a checkpoint asks for nothing
# else; the shipped toy asks for 0.8.
def how_of(models, sampler="", steps=None, guidance=None, seed=0, negative="", temperature=None):
    """The model's own settings, and those that were asked for in their place."""
    own = {"temperature": 1.0} | advice(models.objective, models.condition) | models.sampling
    asked = {"sampler": sampler or None, "steps": steps, "guidance": guidance, "temperature": temperature}
    own |= {name: value for name, value in asked.items() if value is not None}
    how = How(own["sampler"], own["steps"], own["guidance"], seed, negative, own["temperature"])
    samplers = {"flow": ("euler",), "ddpm": ("ddpm", "ddim")}[models.objective]
    if how.sampler not in samplers:
        raise UserError(f"--sampler {how.sampler}: this model was trained as a {models.objective}; "
                        f"its samplers are {', '.join(samplers)}")
    if how.negative and models.condition == "none":
        raise UserError("--negative: this model reads no prompts, so there is nothing to lead it away from")
    return how


# ------------------------------------------------------------------------------------- what may be given

# In neither paper, but VideoDiT's autoencoder makes it possible. A causal video VAE knows an image only as
# the beginning of a clip. DP-VAE's latent frame is a KEY FRAME'S LATENT plus a residual, and Eq. 3 holds it
# to the statistics of the key frame's: to the transformer, E_k(image) is a latent frame like any other (on
# the toy z and z_k are 0.17 of a standard deviation apart). So an image can stand in a clip as one of its
# latent frames, and D decodes it with the frames around it. Latte's latents are images' anyway.
#
# What is known is put in its place at each step, with as much noise as the rest has there (Eq. 5 says how
# much). That gives a right first frame, and later frames that may be of another colour: the network sees the
# known frame only through the noise on it, and colour and scene are decided first, when there is little but
# noise. Two cures, both at sampling time:
#   start part way   not from noise but from the known frame held still, under noise of `HELD` times its size:
#                    so colour and scene are there before the first step
#   pull             at each step, the error of the network's guess at the KNOWN frame has a gradient with
#                    respect to the whole clip; a step down it moves the unknown frames to where the known one
#                    is better explained (flow.pulled)
# Measured on the toy (earlier weights, guidance 4, prompts of subject and motion only, 16 to 24 unseen clips
# each; `python eval.py toy` measures more of them; docs/toy.md has the shipped weights'):
#                             later frames have the image's colour and scene     motion as asked
#   only put in place         12 %                                               88 %
#   started part way          75 %                                               90 %
#   pulled, from pure noise   50 %                                               45 %
#   both                      95 %                                               90 %
HELD = 4.0                          # noise over signal: the flow's level 0.8
# ASSUMED: all of this section; no paper says it.


# The pull costs a backward pass: such a step takes three times as long; starting part way saves a third of
# the steps. And it needs a guess that shows something: pulled from noise level 0.9 on, where the guess at the
# known frame is a blur and its gradient points nowhere, 95 % became 60.
#
# What stays hard: a motion that must go on where no clip of training went. At the end of a clip, a subject
# that moves right stands at the frame's edge. The model has never seen one leave, so with --extend it spins
# or grows instead: motion as asked in 69 % of 48 clips (of the same weights). Going on from the middle of a
# clip it is 84 % of 128 with guidance 4, and 90 % with 2.5, as many as the classifier names rightly in the
# true second halves. More guidance is worse, since the pull acts in the same way (6: 77 %), and so is a start
# under more noise (9 times the signal: 58 %).

@dataclass
class Given:
    """What sampling must keep, and starts from, beside the prompt. Nothing, by default."""
    known: Known = None             # latent frames that stay as they are; the others start as it has them
    strength: float = 1.0           # share of the steps that are taken; 1 starts from noise
    pull: bool = False              # not for DDPM, which has no velocity to turn

    def skipped(self, steps):
        """How many of the steps are left out; one at least is taken."""
        return min(int(steps * (1 - self.strength)), steps - 1)


def given_frames(models, shape, keys, how):
    """keys {latent frame: (1 or B,C,1,h,w)} -> Given: these stay, the others start as the nearest of them.

    The nearest, not a mixture: half of one image over half of another is no image, and under little noise the
    network would believe it."""
    nearest = [min(keys, key=lambda key: abs(key - place)) for place in range(shape[2])]
    latent = torch.cat([keys[place] for place in nearest], dim=2)               # (1 or B,C,T',h,w)
    mask = torch.tensor([place in keys for place in range(shape[2])], device=latent.device)
    known = Known(latent, mask.view(1, 1, -1, 1, 1))                            # mask (1,1,T',1,1)
    return Given(known, part_way(models, how), pull=models.objective == "flow")


def part_way(models, how):
    """The share of the steps whose noise is at most HELD times the signal.

    The ratio is what flow and DDPM have in common: sigma : 1 - sigma here, sqrt(1 - alpha_bar) :
    sqrt(alpha_bar) there. So HELD means the same for both, and for any shift and number of steps."""
    if models.objective == "flow":
        levels = sigmas(how.steps, models.shift)[:-1].double()                  # (steps,)
        noise = levels / (1 - levels)
    else:
        noise = (1 / diffusion_of(models.transformer, how).alpha_bar - 1).sqrt()        # (steps,)
    return (noise <= HELD).double().mean().item() - 1e-6        # Given.skipped rounds down, and not up


# An image is E_k's and a clip E_k's plus E_r's (Eq. 1), but both are scaled by the same two numbers: to the
# transformer they are one language. The mean of q(z|x), not a draw from it: what is given should stay.
@torch.no_grad()
def encode(models, x):
    """Clips (B,3,T,H,W) -> scaled latents (B,C,T',h,w); one frame is an image, and E_k's."""
    device = models.device or next(models.vae.parameters()).device
    return models.vae.scaled(models.vae.encode(x.to(device)))


def given_ends(models, size, how, frames, start=None, end=None):
    """Given for clips that begin with the images `start` (B,3,1,H,W), end with `end`, or both."""
    shape, keys = models.shape(1, frames, size), {}
    if start is not None:
        keys[0] = encode(models, start)                                         # (B,C,1,h,w)
    if end is not None:
        keys[shape[2] - 1] = encode(models, end)                                # (B,C,1,h,w)
    return given_frames(models, shape, keys, how)


# Longer than training. A transformer that has seen 4 latent frames and is asked for 16 at once meets
# positions it has never learned, and attention whose cost grows with the square. So a long clip is made in
# windows, each of which knows the end of the last:
#
#     z          [ 0  1  2  3 ]                     what is there
#     window 0         [ 2  3 | 4  5 ]              known | new
#     window 1               [ 4  5 | 6  7 ]        each with noise of its own
#
# Tried by others: a model trained to predict from given frames (a mask channel as a further input, as in
# image-to-video models); a noise level of its own for each frame, so that the window slides a frame at a time
# ("diffusion forcing"). Both need training for it; this needs none.
def go_on(models, prompts, z, frames, how, first_index=0):
    """Latents z (1 or B,C,T',h,w) of a clip -> (B,C,frames/group,h,w), which begin with them.

    A window at a time: half of it is the end of what is there, and known, half is new. One key frame would
    hand on the scene; several hand on the motion too, for a velocity needs two places. The window is as long
    as the clips of training, so the network meets no position it has not learned, and a clip of any length
    takes the memory of one window. What is lost: a thing that left the frame for a window is forgotten."""
    z = z.expand(len(prompts), *z.shape[1:])                                    # (B,C,T',h,w)
    length = models.shape(1, models.frames, models.size)[2]                     # of a window, in latents
    shape = (*z.shape[:2], length, *z.shape[3:])
    for number, have in enumerate(windows_of(models, z.shape[2], frames)):
        keys = dict(enumerate(z[:, :, -have:].split(1, dim=2)))                 # {place: (B,C,1,h,w)}
        given = given_frames(models, shape, keys, how)
        new = sample_latents(models, prompts, shape, how, first_index, given, number)
        z = torch.cat([z, new[:, :, have:]], dim=2)                             # (B,C,T'+new,h,w)
    return z[:, :, :frames // models.group]


def windows_of(models, have, frames):
    """For each window that go_on makes after `have` latent frames: how many of its own are known."""
    length = models.shape(1, models.frames, models.size)[2]
    windows = []
    while have < frames // models.group:
        known = min(max(length // 2, 1), have)
        windows.append(known)
        have += length - known
    return windows


# A model makes squares. Of what a person brings the middle is taken, and neither stretched nor padded: a
# stretched cat is an input that no training has shown, and padding would be drawn into the clip. And it knows
# motion at the rate of its training's videos: all 60 frames of a phone's second would be slow motion to it.
def read_cropped(args, models, flag):
    """(1,3,T,size,size) of --start, --end, --video or --extend: the middle of an image (T=1), or of a
    clip's frames, as many a second as the model's."""
    path, size = Path(os.path.expanduser(getattr(args, flag))), args.size
    if not path.is_file():
        raise UserError(f"--{flag} {path}: no such file")
    try:
        if path.suffix.lower() in IMAGES:
            frames = read_image(path, size)[None]                               # (1,H,W,3)
        else:
            frames = read_at_rate(path, models.sampling.get("fps", 12.0), size)             # (T,H,W,3)
    except (Unusable, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as reason:
        raise UserError(f"--{flag} {path} cannot be read ({str(reason)[:100]}); give another file")
    top, left = ((side - size) // 2 for side in frames.shape[1:3])
    return to_video(frames[:, top:top + size, left:left + size])[None]          # (1,3,T,size,size)


# ------------------------------------------------------------------------------------------ whose weights

# A folder that train.py wrote says of itself all that is needed: which networks, at which size, with which
# VAE's latents, how to be sampled. So the door is one path. A folder of somebody else's says nothing, and
# goes through the other door, pretrained.open_released, which knows models by their tensors.
def load_models(path, device="cpu", weights=(), model="", vae=""):
    """The networks of a folder that train.py wrote: model videodit (with dpvae), dit (with vae) or latte
    (with either); "" takes the first of these that is there.

    Anything else is a released model, and weights and vae are further paths to its parts. For one of ours
    weights are the published text encoders that it was trained with."""
    folder = Path(os.path.expanduser(path))
    # a link to nothing counts as there: to be told of it is better than to get another model
    parts = [part for part in (*KINDS, "vae", "dpvae", "text")
             if os.path.lexists(folder / f"{part}.safetensors")]
    if not parts and (folder / "state.pt").is_file():
        raise UserError(f"{folder} is a stage's folder; give {folder.parent}, or a save's: {folder}/STEP")
    if not parts:
        found = pretrained.open_released(folder, *weights, vae=vae)
        if not found.states:
            raise UserError(f"{folder} holds no model, neither one of train.py's nor a released one")
        return released_models(found, device)
    if vae:
        raise UserError(f"--vae {vae}: {folder} carries its own; only --zero-shot-video takes another DP-VAE")
    if model and model not in KINDS:
        raise UserError(f"--model {model}: give one of {', '.join(KINDS)}")
    if not model:
        model = parts[0] if parts[0] in KINDS else "videodit"
    return own_models(folder, model, device, weights)


def own_models(folder, model, device, weights):
    """One of train.py's."""
    path = folder / f"{model}.safetensors"
    transformer = load_network(KINDS[model], path).to(device).requires_grad_(False)
    made = read_config(path)
    latents, frames = made.get("latents", "dpvae"), made["frames"]
    if model == "dit":                                      # an image model
        latents, frames = "vae", 1
    vae = load_network({"vae": KLVAE, "dpvae": DPVAE}[latents], folder / f"{latents}.safetensors").to(device)
    models = Models(vae, None, transformer, made["size"], frames, made["shift"],
                    made.get("objective", "flow"), tuple(made.get("classes", ())))
    models.sampling = advice(models.objective, models.condition) | made.get("sampling", {})
    if "cfg" in models.sampling:                            # what checkpoints called guidance once
        models.sampling["guidance"] = models.sampling["cfg"]
    if models.condition == "text":
        if weights and made.get("text") == "toy":
            raise UserError(f"--weights: {folder} was trained with the text encoder in it; leave the flag out")
        trained_with = made.get("text_weights", "")         # where its published encoders lay in training
        if not weights and trained_with and Path(trained_with).exists():
            weights = [trained_with]
        models.text = encoder_of(folder, transformer, weights).to(device)
    return models


def encoder_of(folder, transformer, weights):
    """The text encoder of one of our checkpoints: the toy's lies beside it, a published one is given."""
    if not weights and (folder / "text.safetensors").is_file():
        return load_network(ToyText, folder / "text.safetensors")
    if not weights:
        raise UserError(f"{folder} holds no text encoder; give with --weights the one that it was trained "
                        "with, Stable Diffusion 3's (file or folder), or a folder of T5 v1.1 XXL")
    alone = isinstance(transformer, Latte) and not transformer.config.pooled_dim    # Latte 4.5: T5 alone
    return pretrained.load_text(*weights, alone=alone)


# Other people's models come to the same table. What they are is told by their tensors (pretrained.py); how
# they want to be sampled is told by nothing in the file: it stands in their authors' scripts, and here.
# TRAP: none of them gives an error when it is wrong.
# DEVIATES: PixArt's script takes DPM-Solver by default; these are the numbers of its other choice, ancestral.
RELEASED = {"mmdit": {"sampler": "euler", "steps": 28, "guidance": 7.0, "fps": 12.0},
            "dit": {"sampler": "ddpm", "steps": 250, "guidance": 4.0, "fps": 8.0},
            "pixart": {"sampler": "ddpm", "steps": 100, "guidance": 4.5, "fps": 8.0},
            "latte_t2v": {"sampler": "ddim", "steps": 50, "guidance": 7.5, "fps": 8.0}}


def released_models(found, device="cpu"):
    """Other people's weights as Models. SD3's 2 B parameters run in bf16 where the device multiplies in it;
    the others stay in float32."""
    found.need("transformer", "vae")
    kind = found.kind
    text = found.text()
    network = found.transformer()
    vae = found.vae()
    config = network.config
    if vae.config.z_channels != config.in_channels:
        raise UserError(f"the VAE in {found.paths['vae']} has {vae.config.z_channels} channels, the "
                        f"transformer in {found.paths['transformer']} reads {config.in_channels}; add --vae "
                        f"PATH with its own: {pretrained.WHERE['vae']}")
    models = Models(vae.to(device), None, network.requires_grad_(False), frames=1, objective="ddpm")
    models.device, models.dtype = device, torch.float32
    side = getattr(config, "sample_size", 0) or getattr(config, "input_size", 0)        # of the latents
    if isinstance(network, Latte):
        models.frames = config.frames
    if kind == "dit" or getattr(config, "condition", "") == "class":
        models.classes = tuple(map(str, range(config.classes)))     # UCF101's are numbered as they sort
    # DEVIATES from SD3's scripts: zeros are its null prompt, too, where they let all three encoders read "".
    # In training SD3 dropped each encoder's output on its own, in 46.4 % of the steps, which is all three in
    # 10 % (its appendix); zeros are what stands for an absent T5 in those scripts, and one null prompt then
    # serves training (flow.drop_prompt) and sampling. PixArt's and Latte's pipelines encode "", and so do we.
    if kind in ("pixart", "latte_t2v"):
        models.null = "empty"
    if kind == "mmdit":                                     # SD3
        side = found.config("transformer").get("sample_size", 128)
        models.objective, models.shift = "flow", 3.0
        if has_bf16(device):
            models.dtype, models.bf16 = torch.bfloat16, True
    models.size = side * vae.downsampling
    models.sampling = RELEASED.get(kind, advice("ddpm", models.condition))
    if text:                                                # a model of classes has none
        models.text = text.to(device)
    return models


# Text encoders and transformer are never needed at once, and together are 15 GB (SD3: 4 GB in bf16, T5 with
# the CLIPs 11). So all prompts are read first, and then the encoders leave.
class ReadOnce:
    """A text encoder, asked for all prompts now: T5's 10 GB are read once, and gone before the transformer
    comes."""

    def __init__(self, text, prompts):
        self.gives = getattr(text, "gives", ("context", "pooled"))
        self.found = dict(zip(prompts, zip(*text(prompts))))

    def __call__(self, prompts):
        rows = [self.found[prompt] for prompt in prompts]
        return tuple(torch.stack(parts) for parts in zip(*rows))


# ------------------------------------------------------------------------------------- results that are kept

# A clip that was liked yesterday must be there today: nothing is ever written over, the next free number is
# taken, and of two runs at once into one folder each gets numbers of its own. And a clip that cannot be made
# again is an anecdote: beside each lies a .json with all that decided it. out/index.html shows both, and
# grows with every run: the quickest way to see what guidance or a seed does is to make some and look.

def file_name(number, prompt):
    """0003-a-red-cat; 0003-clip where no letter of the prompt may stand in a file's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
    return f"{number:04d}-{slug or 'clip'}"


# Why the .json is written first: to create a file "if it is not there" is the one thing that a file system
# does for exactly one of two runs. Who made the .json owns the number; clip and sheet follow under its name.
def reserve(out, number, about):
    """Write the .json under the first free number from `number` on; returns the path without extension.

    It is opened for creation only, so that of two runs at once one gets the next number."""
    out.mkdir(parents=True, exist_ok=True)
    while True:
        base = out / file_name(number, about["prompt"])
        try:
            with open(f"{base}.json", "x", encoding="utf-8") as file:
                file.write(json.dumps(about) + "\n")
            return base
        except FileExistsError:
            number += 1


def free_number(out, first):
    """The number after the largest in the folder, and at least `first`."""
    named = [re.match(r"(\d{4,})-", path.name) for path in out.glob("*-*")]
    return max([first, *(int(name[1]) + 1 for name in named if name)])


def store(out, number, clip, about, gif=False):
    """One clip (3,T,H,W) with its contact sheet and settings, or one image; returns where it is."""
    base = reserve(out, number, about)
    try:
        if clip.shape[1] == 1:      # its own pixels, no margin and not enlarged: --start takes it as it is
            save_image(f"{base}.png", Image.fromarray(to_frames(clip)[0]))
            return f"{base}.png"
        contact_sheet(f"{base}.png", [clip])
        save_video(f"{base}.mp4", clip, about["fps"], side=256)
        if gif:
            save_video(f"{base}.gif", clip, about["fps"], side=128)
        return f"{base}.mp4"
    except BaseException:
        Path(f"{base}.json").unlink()                       # a number without a clip would be a riddle
        raise


# ---------------------------------------------------------------------------------------- the command line

# Everything that can be refused is refused before the first step, and most of it before any weights are read:
# after an hour of sampling, a misspelled --end is an insult. Hence three places where flags are looked at:
#
#     parse, check_flags   what the words alone tell: unknown flags, a negative number, two wishes at once
#     settle               what needs the model: a size it cannot make, a class it does not know, its defaults
#     recipe               what needs the files: a clip shorter than --frames, an image that is none
#
# A flag left out means the model's own value, which settle prints with the rest in one line: what is not
# shown cannot be questioned.

TOKENS = 1 << 15    # in one batch: eight images of SD3 at 1024, one clip of 96 frames at 512, 512 toy clips
MOST = 1 << 17      # in one clip: 5 times VideoDiT's largest; attention over more would take hours, or fail


# A batch is bounded by tokens and not by the memory that is free: then the same command makes the same
# batches on every machine, and a clip differs by no more than its processor's rounding.
def parse(argv):
    flags = FlagParser(prog="sample.py", description="make clips, or with --image images, from prompts")
    add = flags.add_argument
    add("prompt", nargs="*", help="one clip for each; a name or number for a model of classes")
    add("--prompts", metavar="FILE", help="a text file, one prompt a line")
    add("--negative", default="", help="what guidance leads away from")
    add("--ckpt", default="", help="a folder that train.py wrote; by default checkpoints/toy")
    add("--model", default="", choices=["", *KINDS], help="which of the folder's models")
    add("--weights", metavar="PATH", default=[], action="append",
        help="a released model, file or folder: SD3, SD3.5, DiT, PixArt-alpha, Latte; may be repeated, for "
             "parts that lie elsewhere. With --ckpt: its text encoders serve that checkpoint")
    add("--vae", metavar="PATH", default="", help="the VAE of --weights, where it is not in them")
    add("--zero-shot-video", action="store_true",
        help="with SD3's --weights: VideoDiT Fig. 2, the untrained image model attending over --frames "
             "images at once (activations grow with --frames); --vae may be a DP-VAE of ours: Fig. 5")
    add("--image", action="store_true", help="images (.png) instead of clips")
    add("--start", metavar="IMAGE", default="", help="the clip begins with it")
    add("--end", metavar="IMAGE", default="", help="the clip ends with it; with --start: in between")
    add("--extend", metavar="CLIP", default="", help="go on from its end, to --frames in all")
    add("--video", metavar="CLIP", default="", help="make this clip anew by the prompt: see --strength")
    add("--strength", type=float, help="of --video: share of the steps, by default 0.6; 1 forgets the clip")
    add("--frames", type=int, default=0, help="with DP-VAE a multiple of 4; 0: the model's own")
    add("--size", type=int, default=0, help="pixels; 0: the model's own")
    add("--sampler", default="", choices=["", "euler", "ddpm", "ddim"], help="by default the model's own")
    add("--steps", type=int, help="calls of the transformer; by default the model's own")
    add("--guidance", type=float, help="guidance scale; 1 is none; by default the model's own")
    add("--temperature", type=float, help="scale of all noise; below 1 clips are surer, and more alike; by "
        "default the model's own")
    add("--seed", type=int, default=0, help="same seed, same clip")
    add("-n", type=int, default=1, help="clips for each prompt")
    add("--first", type=int, default=0, help="index of the first: clip 3 of -n 4 is made alone by --first 3")
    add("--batch", type=int, default=0, help="clips made at once; 0: what fits")
    add("--out", default="out", help="folder; nothing in it is written over")
    add("--fps", type=float, help="of the files; by default the model's own")
    add("--gif", action="store_true", help="write .gif beside the .mp4")
    args = flags.parse_args(argv)
    if args.prompts:
        args.prompt += read_prompts(args.prompts)
    # what is no UTF-8 on the command line comes as lone surrogates, which no file can hold
    args.prompt = [prompt.encode(errors="replace").decode() for prompt in args.prompt]
    args.out = Path(os.path.expanduser(args.out))
    check_flags(args)
    return args


def check_flags(args):
    """What can be said before any weights are read."""
    at_least(vars(args), steps=1, n=1, fps=0.1, size=0, guidance=0, temperature=0, first=0, batch=0, frames=0)
    if args.strength is None:
        args.strength = 0.6
    elif not args.video:
        raise UserError("--strength says how much of --video CLIP is forgotten, and there is none")
    if not 0 < args.strength <= 1:
        raise UserError(f"--strength {args.strength}: must be above 0 and at most 1")
    if args.image and (args.frames or args.fps or args.gif):
        raise UserError("--image makes single images; leave out --frames, --fps and --gif")
    given = [f"--{name}" for name in ("extend", "video", "image") if getattr(args, name)]
    if args.start or args.end:
        given.append("--start/--end")
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are different wishes; give one of them")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("sample.py runs on one GPU, every rank would make the same clips; torchrun eval.py "
                        "sample divides them")
    check_writable("--out", args.out)


def models_of(args, device):
    """The models that --ckpt, --model, --weights and --vae name."""
    path, weights = args.ckpt or TOY, args.weights
    if weights and not args.ckpt:
        path, *weights = weights
    own_vae = args.zero_shot_video and args.vae and class_of(args.vae) == "DPVAE"     # VideoDiT Fig. 5
    models = load_models(path, device, weights, args.model, "" if own_vae else args.vae)
    if own_vae:
        models.vae = load_network(DPVAE, args.vae).to(device)
    if device == "cuda" and has_bf16(device):
        models.bf16 = True
    return models


def tokens_of(models, frames, size):
    """Of one clip, as the transformer sees it."""
    return math.prod(models.shape(1, frames, size)[2:]) // models.transformer.config.patch ** 2


# Defaults are the model's, not the program's: SD3 wants 28 steps and guidance 7, a Latte of faces 250 and
# none. A program whose default is 50 steps for all decides, for somebody, that his model is bad.
def settle(args, models):
    """Fill in what the model knows better, and refuse what it cannot do, before anything is computed."""
    settle_prompts(args, models)
    args.size = args.size or models.size
    unit = models.vae.downsampling * models.transformer.config.patch
    if args.size % unit:
        raise UserError(f"--size {args.size}: must be a multiple of {unit}")
    if args.size != models.size:
        print(f"--size {args.size}: this model was trained at {models.size} x {models.size}", file=sys.stderr)
    args.fps = args.fps or models.sampling.get("fps", 12.0)
    own = 8 if args.zero_shot_video else models.frames
    if args.image:
        args.frames = 1
    elif not args.frames:
        args.frames = 2 * own if args.extend else own
    check_frames(args.frames, models.group)
    if args.end and args.frames <= models.group:
        raise UserError(f"--frames {args.frames}: a clip with --end has more than {models.group}")
    moves = args.frames > 1 or args.start or args.end
    if moves and models.frames == 1 and not args.zero_shot_video:
        raise UserError("this is an image model; add --image, train stage videodit, or let it attend over "
                        "several images as it is: --zero-shot-video")
    if args.zero_shot_video and (models.frames > 1 or args.extend):
        raise UserError("--zero-shot-video shows an untrained image model: give Stable Diffusion 3's "
                        "--weights, or one of ours with --model dit, and no --extend")
    tokens = tokens_of(models, models.frames if args.extend else args.frames, args.size)
    if tokens > MOST:
        raise UserError(f"--frames {args.frames} --size {args.size}: {tokens:,} tokens in one clip, "
                        f"{MOST:,} at most; take fewer, and go on from the clip with --extend")
    args.batch = args.batch or max(TOKENS // tokens, 1)
    return how_of(models, args.sampler, args.steps, args.guidance, args.seed, args.negative, args.temperature)


def settle_prompts(args, models):
    """The prompts are such as the model reads: texts, classes, or none."""
    if not args.prompt:
        if models.condition == "text":
            raise UserError('give a prompt, such as "a cat", or a file of them with --prompts')
        if models.condition == "class":
            raise UserError(f"give a class, such as {models.classes[0]}")
        args.prompt = [""]
    if models.condition == "class":
        for prompt in args.prompt:
            label_of(prompt, models.classes)                # refuses what is none
    if models.text:
        for prompt in dict.fromkeys([*args.prompt, args.negative]):
            tell_unread(models.text, prompt)
    if models.condition == "none" and args.guidance not in (None, 1):
        raise UserError(f"--guidance {args.guidance:g}: this model reads no prompts; leave it out, there is "
                        "nothing to be guided by")
    if models.condition == "none" and any(args.prompt):
        print("this model reads no prompts: yours is the clip's name and nothing else", file=sys.stderr)


def tell_unread(text, prompt):
    """What an encoder does not know of a prompt, or has to cut, is said on stderr."""
    if isinstance(text, ToyText) and prompt.strip() and not text.tokenizer.read(prompt):
        words = ", ".join(text.config.words[:12])
        raise UserError(f'"{prompt}": this model knows no word of it; it knows such as {words}. A prompt '
                        "with blanks in it stands in quotes")
    for note in text.notes(prompt):
        print(f"{prompt!r}: {note}", file=sys.stderr)


def recipe(args, models, how):
    """What the flags ask for: (make(prompts, first_index) -> clips, the calls of the transformer it takes).

    They differ in what is given: nothing, frames that stay (--start, --end), a clip to begin from part way
    (--video), or windows one after the other (--extend)."""
    if args.extend:
        return extension(args, models, how)
    given, images = Given(), {}
    for flag in ("start", "end"):
        if getattr(args, flag):
            images[flag] = read_cropped(args, models, flag)[:, :, :1]           # (1,3,1,H,W)
    if images:
        given = given_ends(models, args.size, how, args.frames, **images)
    elif args.video:
        clip = read_cropped(args, models, "video")                              # (1,3,T,H,W)
        if clip.shape[2] < args.frames:
            raise UserError(f"--video {args.video}: {clip.shape[2]} frames at the model's rate; --frames "
                            f"{args.frames} needs a longer clip, or give fewer")
        z = encode(models, clip[:, :, :args.frames])                            # (1,C,T',h,w)
        nothing_stays = torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool, device=z.device)
        given = Given(Known(z, nothing_stays), args.strength)

    def make(prompts, first_index):
        shape = models.shape(len(prompts), args.frames, args.size)              # (B,C,T',h,w)
        z = sample_latents(models, prompts, shape, how, first_index, given)
        clips = decode(models.vae, z, args.frames, models.bf16)                 # (B,3,T,H,W)
        if args.end:        # a key frame is the first of its group: a clip that ends with it loses the others
            clips = clips[:, :, :args.frames - models.group + 1]
        return clips
    return make, how.steps - given.skipped(how.steps)


def extension(args, models, how):
    """recipe for --extend."""
    clip = read_cropped(args, models, "extend")                                 # (1,3,T,H,W)
    have = clip.shape[2] // models.group * models.group
    if not 0 < have < args.frames:
        raise UserError(f"--extend {args.extend}: {have} frames of it, at the model's rate, can be used; "
                        f"--frames {args.frames} must be more, and the clip at least {models.group} long")
    clip = clip[:, :, :have]
    z = encode(models, clip)                                                    # (1,C,T',h,w)

    def make(prompts, first_index):
        longer = go_on(models, prompts, z, args.frames, how, first_index)
        clips = decode(models.vae, longer, args.frames, models.bf16)            # (B,3,T,H,W)
        clips[:, :, :have] = clip                           # what was there stays as it was
        return clips
    steps = how.steps - Given(strength=part_way(models, how)).skipped(how.steps)
    return make, steps * len(windows_of(models, z.shape[2], args.frames))


def main(argv=None):
    begun = time.perf_counter()
    args = parse(argv)
    device = best_device()
    models = models_of(args, device)
    how = settle(args, models)
    wanted = list(dict.fromkeys([*args.prompt, args.negative]))
    if models.text and len(wanted) <= 256:                  # more are asked for batch by batch
        models.text = ReadOnce(models.text, wanted)
    length = f"{args.frames} frames at {args.fps:g} fps, " if args.frames > 1 else ""
    print(f"{length}{args.size} pixels; {how.sampler}, {how.steps} steps, guidance {how.guidance:g}, "
          f"temperature {how.temperature:g}, seed {how.seed}")
    make, steps = recipe(args, models, how)
    sweep(args.out)
    number, count = free_number(args.out, args.first), args.n * len(args.prompt)
    blocks = [range(start, min(start + args.batch, count)) for start in range(0, count, args.batch)]
    with torch.no_grad(), tqdm(total=len(blocks) * steps, unit="step", mininterval=0.5) as bar:
        def tick(*_):                                       # returns None: else that would be the answer
            bar.update()

        models.transformer.register_forward_hook(tick)
        for block in blocks:
            prompts = [args.prompt[index // args.n] for index in block]
            clips = make(prompts, args.first + block[0])                        # (B,3,T,H,W)
            for index, prompt, clip in zip(block, prompts, clips):
                about = about_clip(args, how, prompt, args.first + index, clip)
                where = store(args.out, number + index, clip, about, args.gif)
                tqdm.write(printable(f'"{prompt}" -> {where}'))
    write_page(args.out)
    print(f"{count} in {time.perf_counter() - begun:.1f} s; all of the folder, with their settings: "
          f"{args.out / 'index.html'}")


# Seed, index and settings; with the same weights and the same kind of machine they give the same clip, to the
# last bits. torch's version stands there because a kernel that adds in another order is another rounding.
def about_clip(args, how, prompt, index, clip):
    """What is needed to make this clip again."""
    about = {"prompt": prompt, "index": index, "frames": args.frames, "pixels": clip.shape[-1],
             "fps": args.fps, **asdict(how)}
    for flag in ("ckpt", "model", "weights", "vae", "zero_shot_video", "start", "end", "extend", "video"):
        about[flag] = getattr(args, flag)
    if args.video:
        about["strength"] = args.strength
    about["made"] = time.strftime("%Y-%m-%d %H:%M:%S")
    about["torch"] = torch.__version__
    return about


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
