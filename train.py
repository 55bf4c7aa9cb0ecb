"""train.py - the training loop, then every stage: classifier, vae, dit, dpvae, videodit, latte.
Paper    VideoDiT 3.1 (stage dpvae), 3.2 and A.2 (stage videodit); Latte 3 (stage latte)
Shapes   batches of clips (B,3,T,H,W) or of cached latents (B,C,T',h,w)
Time     t=0 noise, t=1 data; noise and times depend on (seed, step, clip), not on ranks, and so a resumed run
         is the same run and two processes are one
Differs  grep DEVIATES; the papers' stages start from Stable Diffusion 3, the toy's from nothing
Reads    after data.py, beside presets.py, whose fields (cfg) its stages read; before sample.py
Run me   python train.py --config tiny --stage all          # CPU, under 90 s: every stage, then a sample
         python train.py --config toy --stage all           # CPU, hours: most of the shipped one's road
         torchrun --nproc-per-node 8 train.py --config videodit-256 --init SD3 --data CLIPS --lpips VGG16

THE PROBLEM. A text-to-video model is a VAE, a text encoder and a transformer, and they cannot simply be
trained together. What the transformer has to predict are the VAE's latents: while the VAE still learns, the
target moves; and let the transformer's loss reach the VAE, and it finds latents that are easy to predict,
such as all zeros. And an untrained text encoder's words mean nothing, so nobody could learn to obey them.

THE IDEA. One thing after another, each frozen before the next begins. So training is a chain of stages, each
with its own networks, loss and data, and each leaves a file that the next one takes up. The loop is the same
for all of them and stands first; ranks, files and resuming are behind it, in support/trainer.py.

Tried by others: a script for each stage with the loop copied into it (six loops then, with six ways to
resume); a Trainer class with forty hooks (then the recipe is spread over the hooks); a joint training of VAE
and transformer (REPA-E, 2025, needs a third network that tells what latents should mean)."""

from support.cli import STOP, UserError, catch_signals, polite    # first: see there

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import sys
from collections import Counter
from pathlib import Path

# Steps of clips and of images ask for memory in other pieces: pieces that can grow leave fewer holes on a GPU
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

from einops import rearrange
import torch
from torch import nn

from data import ClipConfig, ClipFolder, Mixture, ToyClips, check_source, open_source
from dit import AdaLN, DiT, MMDiT, PixArt, deepen
from flow import DDPM, along, ddpm_terms, drop_labels, drop_prompt, flow_errors, sample_times, velocity_of
from latte import Latte, init_from_image
from presets import overview, parse
from pretrained import (WITH_COMPANIONS, bring_companions, check_widths, frozen_vae, image_vae, load_text,
                        network_at, own_file, perceptual_for, refuse_other_sizes)
from sample import Models, advice, generate
from text import ToyText
from vae import DPVAE, GOP, KLVAE, PatchGAN3D, discriminator_loss, dp_vae_loss, kl_vae_loss, measure_latents
from videodit import VideoDiT, add_lora
from support import toy_world
from support.checkpoints import class_of, hold, load_network, read_config
from support.detectors import (ATTRIBUTES, AttributeClassifier, classifier_loss, classifier_right,
                               classifier_targets)
from support.drawing import contact_sheet
from support.folders import class_at, stamp
from support.latent_cache import LatentCache, check_made, fingerprint, shards_of, write_cache
from support.ops import conv_layout, has_bf16
from support.order import DROP, NOISE, TIME, batches, collate, keyed_noise, toss
from support.pages import report
from support.tokenizers import WordTokenizer
from support.trainer import (Player, Run, Stage, Trainer, again, all_ranks, autocast, by_rank_0,
                             refuse_different_flags, refuse_to_overwrite, setup, stops_after, told_once, whole)
from support.video_io import from_bytes, save_video, to_video


# ---------------------------------------------------------------------------------------------- the loop

# Whatever is trained, it is trained by this loop. A stage (further below) says which networks learn, by which
# loss, from which batches; what is done with them is the same for all:
#
#     every step          batch -> loss -> backward -> clip -> optimizer -> EMA                  step()
#     now and then        -> log -> save -> preview                                              fit()
#
# What is called by name here (ranks, files, and all that breaks in a week) stands in support/trainer.py. Two
# of its rules can be seen. A step depends on the seed and on its own number, and on nothing else, so that a
# resumed run is the same run, and two processes are one. And step() never asks a tensor for its value (to
# print a loss, for an `if`): Python would wait for the GPU, and the GPU then for Python. That is done where
# something is shown anyway, in check().

def step(trainer, micros):
    """A step of every player: of one as a rule; in a game (GAN) each goes on from the one before it."""
    cfg = trainer.cfg
    lr = learning_rate(cfg, trainer.step)
    shown = {"lr": lr}
    finite = []
    for learner in trainer.learners.values():
        answers = []
        for micro in micros:                                # gradient accumulation: the batch in parts
            with learner.accumulating(last=micro is micros[-1]):
                with autocast(cfg, trainer.run):            # mixed precision
                    loss, log = learner.wrapped(micro)      # the stage's own: loss(nets, batch)
                (loss / len(micros)).backward()
            answers.append((loss.detach(), log))

        norm = whole(nn.utils.clip_grad_norm_(learner.trained.values(), cfg.clip))      # equal on all ranks
        finite.append(torch.isfinite(norm))                 # if it is not, this step moves nothing
        learner.update(lr, finite[-1])                      # AdamW, or with --muon Muon
        learner.update_ema(trainer.step, finite[-1])
        learner.optimizer.zero_grad(set_to_none=True)
        shown |= learner.numbers(answers, norm)
    trainer.count_step(finite)
    return shown


def learning_rate(cfg, step):
    """Linear warm-up, constant, linear decay to zero over the last `decay` of the steps.

    Latte's published code trains at a constant rate, and both papers sample from the EMA. A toy that has ten
    thousand steps gains by the decay what the papers gain by ten times as many: the last steps' noise goes.
    (Stage vae of the toy: 3 dB.) Warm-up lets Adam's second moment fill before whole steps are made."""
    rising = (step + 1) / max(cfg.warmup, 1)
    falling = 1.0
    if cfg.decay:
        falling = (cfg.steps - step) / (cfg.decay * cfg.steps)
    return cfg.lr * min(1.0, rising, falling)


# The order of what follows a step matters: check before log, so that a person reads of a step that was left
# out before the `null` that stands in the log for its loss; check before save, so that nothing is saved
# while steps are being left out (the weights may be sick already, though still finite: that is how a run
# diverges, and why --keep keeps older states); save before preview, so that a preview that fails costs an
# image.
#
# Exercise: take `and not trainer.failed` out of fit() and run test_trainer.py. Which tests fail, and what
# would a person have lost?

def fit(cfg, run, stage):
    """A stage from its start, or from where it stopped, to its last step. Ctrl-C costs no step, kill -9 and a
    full disk cost those since the last save, and the same command goes on (test_faults.py)."""
    trainer = Trainer(cfg, run, stage)
    if not trainer.begin():                                 # nothing is left to do
        return
    source = stage.batches(trainer.step)                    # the very batches that an uncut run would meet
    stopped = False
    with trainer.watch.bar:
        while trainer.step < cfg.steps and not stopped:
            micros = trainer.watch.fetch(source)
            shown = step(trainer, micros)
            trainer.watch.count(shown)
            stopped = stops_after(run, trainer.step)        # a signal, to any rank
            saving = stopped or trainer.due(cfg.save_every)
            validating = stage.valid and trainer.due(cfg.valid_every)
            logging = validating or trainer.due(cfg.log_every)
            if saving or logging or run.device == "cpu":
                trainer.check()                             # ten steps left out in a row end the run
            if validating:
                shown |= trainer.validate()                 # held-out loss
            if logging:
                trainer.watch.log(shown)
            if saving and not trainer.failed:               # never over a good one
                trainer.save()
            if stage.preview and trainer.due(cfg.preview_every):
                trainer.preview()
    trainer.end(stopped)


# ------------------------------------------------------------------------------------------- the stages

# A video model is not trained in one go. Each stage below takes what an earlier one left in --out (or
# somebody else's weights, --init), trains one network with it, and leaves that:
#
#     classifier (for LPIPS) . .  vae ----> dit -----> videodit       VideoDiT: an image model, made to move
#                            | '-> dpvae ---------'              (the paper begins at dpvae: vae and dit are
#                            |                                   Stable Diffusion 3's)
#                            '-----------------> latte           Latte: blocks over space, blocks over time
#
# A stage is a function of the flags. It returns networks with their loss, and where its batches come from.
# So the papers stand here with nothing between the lines: read a stage as a recipe. Each has the same five
# parts:
#
#     what stands still       a frozen VAE, a text encoder: read from --out, or given
#     what learns             a network, made anew, or an earlier stage's, or a published one
#     what is fed             batches, from any step on (so that a run can be resumed)
#     loss(nets, batch)       pure: the same step of the same batch gives the same number
#     what is looked at       a preview, and what the checkpoint should say of itself (about)


# ---------------------------------------------------------------------------------------------- what is fed

# A batch is a dict: {"video": (B,3,T,H,W), "caption": [B strings], ...} of clips as they come, or with
# "latent" (B,C,T',h,w) for the video if it was encoded before. "step" and "first" say which step this is and
# which rows of the whole batch these are: from them every random number of the step is drawn (draw, below).
# A batch of 8 on two ranks with --accumulate 2, that is in micro-batches of 2 rows:
#
#     row of the whole batch    0  1  |  2  3  |  4  5  |  6  7
#     rank, micro-batch         0, 0  |  1, 0  |  0, 1  |  1, 1        first = 0, 2, 4, 6
#
# Row 5 has the same clip, noise and time if there is one rank, or eight: what a run learns does not hang on
# the number of machines it was given (test_trainer.py trains with one and two and compares).

def toy_or_folder(cfg, kind):
    """The data set behind --data (kind "video") or --images (kind "image"). Latte 3.3.4 takes its images from
    the videos themselves, and so does a run without --images (VideoDiT 4.1 has JourneyDB for them)."""
    name, frames, holds = source_of(cfg, kind)
    if not name:
        raise UserError("--data: give a folder of videos, or toy")
    how = ClipConfig(frames=frames, size=cfg.size, stride=cfg.stride, fps=cfg.fps or None,
                     part=tuple(cfg.part), crop=cfg.crop, long=cfg.long or None, flip=cfg.flip, seed=cfg.seed)
    return open_source(name, how, cfg.items or None, holds)


def source_of(cfg, kind):
    """(name, frames of an item, what the source holds)."""
    if kind == "video":
        return cfg.data, cfg.frames, "video"
    if cfg.images:
        return cfg.images, 1, "image"
    return cfg.data, 1, "video"


def loader(cfg, run, dataset, kind="video", as_bytes=False):
    """start_step -> this rank's micro-batches, each with its step and its first clip's place in the batch.
    as_bytes: to a GPU videos go as the bytes that they are, which `encoded` makes floats of."""
    rows = cfg.batch // (run.world * cfg.accumulate)
    seed = cfg.seed
    # TRAP: images that are frames of the videos come in an order of their own. In the clips' order each would
    # be a frame of the very clip beside it: the same video, crop and moment.
    if kind == "image" and not cfg.images and cfg.data not in toy_world.WORLDS:
        seed += 1

    def from_step(start):
        endless = batches(dataset, rows, seed, start * cfg.accumulate, run.rank, run.world, cfg.workers,
                          pin=run.on_cuda, as_bytes=as_bytes and run.on_cuda)
        for count, batch in enumerate(endless, start * cfg.accumulate):
            step, micro = divmod(count, cfg.accumulate)
            yield {**batch, "step": step, "first": (micro * run.world + run.rank) * rows}
    return from_step


# VideoDiT A.2: "we employ a probability parameter, p, to determine whether the current iteration is
# dedicated to video generation or image generation". A step is all of one kind, because clips and images
# differ in shape. Why images at all: they are more, sharper and better described than videos, and without
# them the image model forgets what only images show (Fig. 7, Table 6).
def mixed(cfg, videos, images, p):
    """Each step is for videos with probability p, else for images; the same draw on all ranks."""
    # TRAP: ranks with coins of their own would have images and clips in one step, and those with images would
    # wait, idle, for those with clips. And step 1000 is not the videos' thousandth batch: after a resume each
    # source goes on where IT was, so the earlier tosses are counted again.
    def from_step(start):
        before = int((toss(cfg.seed, range(start)) < p).sum())              # steps that were for videos
        clips = videos(before)
        stills = images(start - before)
        for step in itertools.count(start):
            source = clips if toss(cfg.seed, [step])[0] < p else stills
            for _ in range(cfg.accumulate):
                yield {**next(source), "step": step, "still": source is stills}
    return from_step


# ---------------------------------------------------------------------------------------- what is trained

# No paper's. Whether a clip obeys its prompt is a number only if somebody can name what is in the clip, so
# the toy world gets a small network that can; its layers also stand in for VGG's in LPIPS, whose weights are
# not shipped. It comes first, since all that come after are measured by it. The world draws a clip from a
# specification, so the right answer to "what is it, of what colour, where, moving how?" comes with each clip
# (batch["spec"]): plain classification, the one stage here that any textbook has.
def stage_classifier(cfg, run):                       # the instrument: names what it sees
    def loss(nets, batch):
        targets = classifier_targets(nets["classifier"], batch["spec"], run.device)
        right = classifier_right(nets["classifier"], batch["video"], targets)               # {word: (B,)}
        total = classifier_loss(nets["classifier"], batch["video"], targets)
        return total, {word: answers.float().mean() for word, answers in right.items()}

    world = toy_world.WORLDS.get(cfg.data, "full")
    for words in ATTRIBUTES.values():
        missing = set(getattr(toy_world.VOCABULARIES[world], words)) - set(getattr(cfg.classifier, words))
        if missing:
            raise UserError(f"--classifier.{words}: lacks {', '.join(sorted(missing))}, which clips show")
    clips = ToyClips("any", cfg.frames, cfg.size, None, cfg.seed, 0.0, vocabulary=world)
    player = Player({"classifier": AttributeClassifier(cfg.classifier)}, loss)
    return Stage({"classifier": player}, loader(cfg, run, clips), None)


# Both papers download this stage's result, VideoDiT that of dit below, too. A VAE learns by having to give
# back what it was shown through a latent that is too narrow to hold it as it came: the pixels' error, plus
# LPIPS, plus a weak pull of the latents towards a normal distribution (vae.py). It has no video in it. Half
# of the batches are single frames of the clips, half images: the VAE has to know both, and what is in images
# alone (a boat, in the toy world) must not look to the transformer like noise. Measured at each save are two
# numbers that no gradient reaches: shift and scale, so that the transformers' data have mean 0 and standard
# deviation 1 as their noise does. TRAP: everything later depends on them. Latents by another scale are, to a
# transformer, latents at another noise level, so a stage that has learned with this VAE goes on with no
# other (Stage.frozen).
def stage_vae(cfg, run):                                    # pixels <-> latents, one frame at a time
    if cfg.init:
        vae = image_vae(cfg, run)
    else:
        vae = KLVAE(dataclasses.replace(cfg.vae))
    vae = vae.to(memory_format=conv_layout(run.device))
    perceptual = perceptual_for(cfg, run)
    frames, images = singles(cfg, "video"), singles(cfg, "image")

    def loss(nets, batch):
        return kl_vae_loss(nets["vae"], batch["video"], latent_noise(cfg, batch, vae), cfg.kl_weight,
                           perceptual, cfg.lpips_weight)

    # whole batches on every rank: what is measured, and shown, must not depend on how many there are
    alone = Run(device=run.device)
    whole_batches = mixed(cfg, loader(cfg, alone, frames), loader(cfg, alone, images, "image"), 0.5)
    shown = next(whole_batches(0))["video"][:8]

    def measure(nets):                          # so that the transformer sees unit variance, of any save
        clips = [batch["video"].to(run.device) for batch in itertools.islice(whole_batches(0), 1, 9)]
        nets["vae"].config.shift, nets["vae"].config.scale = measure_latents(nets["vae"], clips)

    both = mixed(cfg, loader(cfg, run, frames), loader(cfg, run, images, "image"), 0.5)
    return Stage({"vae": Player({"vae": vae}, loss)}, both, show_reconstruction(shown, run), measure,
                 data=(frames, images))


def singles(cfg, kind):
    """Single frames of the clips, or the images."""
    if kind == "video" and cfg.data in toy_world.WORLDS:
        return ToyFrames("video", cfg.frames, cfg.size, seed=cfg.seed, vocabulary=toy_world.WORLDS[cfg.data])
    return toy_or_folder(dataclasses.replace(cfg, frames=1), kind)


class ToyFrames(ToyClips):
    """One frame, at random, of each toy clip."""

    def item(self, index, epoch=0):
        spec = toy_world.sample_spec(self.seed, index, "video", self.vocabulary)
        frame = toy_world.render(spec, self.frames, self.size, only=[index % self.frames])  # (1,H,W,3)
        return {"video": to_video(frame)}                                                   # (3,1,H,W)


# D will decode a transformer's latents, which are a little wrong everywhere. --z_noise makes it learn from
# latents that are so: z with noise on it (vae.py, Eq. 4), the flag times u^2 for each clip, u uniform. That
# is less than half of the flag for seven clips in ten: clean latents should stay what D reads best.
def misread(cfg, batch, dp):
    """Noise (B,C,T/4,h,w) for what D reads, a level for each clip, small ones more often; or None."""
    if not cfg.z_noise:
        return None
    noise = latent_noise(cfg, batch, dp, GOP) / dp.image.config.scale                       # (B,C,T/4,h,w)
    level = cfg.z_noise * draw(cfg, batch, (len(noise),), noise.device, TIME, torch.rand) ** 2      # (B,)
    return along(level, noise) * noise                                                      # (B,C,T/4,h,w)


# Two players. The DP-VAE lowers Eq. 4: its clip must look like the clip, its key frames like the key frames
# through the frozen decoder, its statistics like the image latents', and the discriminator must be fooled.
# The discriminator scores clips and reconstructions, and learns in the same step to tell them apart. A
# decoder that is all blur teaches it nothing, and its first answers are noise: so it begins at half of
# disc_start, counts from disc_start on, and has its full weight disc_warmup steps later.
#
#     step        0 ...... disc_start/2 ........ disc_start ............ disc_start + disc_warmup ......
#     discriminator waits           learns                 learns, and counts
#     weight          0                    0                rises evenly to          0.01
#
# Why a discriminator at all: a squared error is least for the mean of all textures that would fit, which is
# blur. What is left over when blur is punished is texture, right or invented; so its weight is 0.01.
# E_k and D_k do not learn: they are what "distribution preserving" is measured by.
def stage_dpvae(cfg, run):                                  # VideoDiT 3.1, Eq. 1-4
    windows = {"window": cfg.frames, "overlap": cfg.frames // 16 * GOP}    # longer clips go through in pieces
    file = own_file(cfg, "dpvae", "vae")
    if class_of(file or "") == "DPVAE":                     # train an earlier one further
        dp = load_network(DPVAE, file)
        refuse_other_sizes(cfg, "vae", dp.config, file)
    else:
        dp = DPVAE.from_image(image_vae(cfg, run), key_encoder=cfg.key_encoder, **windows)
    dp = dp.to(memory_format=conv_layout(run.device))
    dp.residual.requires_grad_(not cfg.decoder_only)
    dp.residual.checkpointing = dp.decoder.checkpointing = cfg.checkpointing
    perceptual = perceptual_for(cfg, run)
    disc = PatchGAN3D(cfg.disc).to(run.device)

    def loss(nets, batch):
        warm = (batch["step"] - cfg.disc_start) / max(cfg.disc_warmup, 1)
        disc.requires_grad_(False)                      # the generator's gradient passes through, not into it
        total, x_hat, log = dp_vae_loss(
            nets["dpvae"], batch["video"], perceptual, disc, recon_weight=cfg.recon_weight,
            reg_weight=cfg.reg_weight, disc_weight=cfg.disc_weight * min(max(warm, 0.0), 1.0),
            lpips_weight=cfg.lpips_weight, noise=misread(cfg, batch, dp))
        disc.requires_grad_(True)
        batch["x_hat"] = x_hat                          # for the discriminator, whose turn is next
        return total, log

    def discriminator_step(nets, batch):
        # ASSUMED: it learns from half of disc_start on, so that it can tell some apart when it first counts.
        # Until then its loss is zero times its weights: a gradient for each, which DDP waits for, of zero.
        if batch["step"] < cfg.disc_start // 2:
            return 0.0 * sum(p.sum() for p in nets["disc"].parameters()), {}
        total = discriminator_loss(nets["disc"], batch["video"], batch["x_hat"])
        return total, {"disc": total.detach()}

    clips = toy_or_folder(cfg, "video")
    source = loader(cfg, run, clips)
    players = {"dpvae": Player({"dpvae": dp}, loss)}
    if cfg.disc_weight:
        players["disc"] = Player({"disc": disc}, discriminator_step, aside=True)
    return Stage(players, source, show_reconstruction(next(source(0))["video"][:4], run), data=(clips,))


# VideoDiT downloads this stage's result: Stable Diffusion 3. The toy has to learn it, with its own text
# encoder, from captioned images. Both learn from one loss here, the transformer's; a published text encoder
# stays frozen, for it has read more text than any data set of clips has captions. Images never show motion,
# so the words for it would stay empty until a video model needs them; reading_loss asks the encoder what
# words it has read, those of the videos to come among them. (After this stage the toy's encoder is frozen as
# well: what words mean must not drift while another network learns to obey them.)
def stage_dit(cfg, run):                                  # the text-to-image model that VideoDiT starts from
    file = own_file(cfg, "dit")
    if cfg.init and not file:
        raise UserError(f"--init {cfg.init}: stage dit trains the toy's image model; published weights are "
                        "one already, so go on with --stage dpvae and --stage videodit")
    bring_companions(cfg, run)
    vae = frozen_vae(cfg, run, "vae")
    if file:                                              # train an earlier one further
        dit = load_network(MMDiT, file).train()
        text = load_network(ToyText, file.with_name("text.safetensors")).train()
        refuse_other_sizes(cfg, "dit", dit.config, file)
        refuse_other_sizes(cfg, "text", text.config, file.with_name("text.safetensors"))
    else:
        dit = MMDiT(cfg.dit)
        text = ToyText(dataclasses.replace(cfg.text, words=vocabulary(cfg)))
    check_widths(cfg, dit.config, vae, text)
    images = feed(cfg, run, "image", vae)
    read = ()                                               # words of the videos to come
    if cfg.data:
        read = toy_or_folder(cfg, "video").captions

    def loss(nets, batch):
        total, log = transformer_loss(cfg, run, nets["dit"], nets["text"], vae, batch)
        if not read:
            return total, log
        first = batch["step"] * cfg.batch + batch["first"]
        captions = [read[(first + row) % len(read)] for row in range(len(batch["caption"]))]
        words = nets["text"].reading_loss(captions)
        return total + 0.1 * words, {"words": words.detach(), **log}

    player = transformer_player(cfg, {"dit": dit, "text": text}, loss, dit.joint_blocks, ["reading_loss"])
    return Stage({"dit": player}, loader(cfg, run, images, "image", as_bytes=True),
                 show_samples(cfg, run, vae, None, 1, prompts_for(cfg, images)),
                 valid=held_out(cfg, run, "image", vae, flow_errors), about=about(cfg, "flow"),
                 data=(images,), frozen=networks(vae=vae))


# The image transformer's attention becomes global: its tokens, until now those of one image, are those of a
# whole clip. That needs no new weight; a zero-initialised branch tells tokens their time (3D patchify). The
# loss is the image model's own, Eq. 5, on the DP-VAE's latents, which by construction look like images'. So
# at step 0 this network already makes the image model's images, and clips whose frames agree on what is
# shown (VideoDiT Fig. 2): training has to add motion and nothing else. Compare stage latte, which starts from
# an image model's blocks but uses every second one along time, where it has never been.
# ASSUMED: all of the transformer learns, and the text encoders stay frozen: 3.2 says neither, but speaks of
# frozen weights only for the variant it compares with ("2D+3D").
def stage_videodit(cfg, run):                              # VideoDiT 3.2: the image transformer, made to move
    bring_companions(cfg, run)
    dp = frozen_vae(cfg, run, "dpvae")
    text = reader(cfg, run)
    net = start_videodit(cfg)
    check_widths(cfg, net.config, dp, text)
    if cfg.lora:
        frozen_in = torch.float32
        if cfg.bf16 and has_bf16(run.device):
            frozen_in = torch.bfloat16
        add_lora(net, cfg.lora, frozen_in)
    clips, images = feed(cfg, run, "video", dp, text), None
    if cfg.p_video < 1:
        images = feed(cfg, run, "image", dp, text)

    def loss(nets, batch):
        total, log = transformer_loss(cfg, run, nets["videodit"], text, dp, batch)
        if batch["still"]:
            log = {}                                        # by time: of clips alone, as the held-out loss
        return total, log

    source = mixed(cfg, loader(cfg, run, clips, as_bytes=True),
                   loader(cfg, run, images, "image", as_bytes=True), cfg.p_video)
    blocks = [*net.image.joint_blocks, *(net.copies or ())]
    player = transformer_player(cfg, {"videodit": net}, loss, blocks)
    return Stage({"videodit": player}, source,
                 show_samples(cfg, run, dp, text, cfg.frames, prompts_for(cfg, clips)),
                 valid=held_out(cfg, run, "video", dp, flow_errors, text),
                 about=about(cfg, "flow", "text", text), data=(clips, images),
                 frozen=networks(vae=dp, text=text))


def start_videodit(cfg):
    """An earlier VideoDiT (4.1: the 512 phase goes on from the 320 phase), or an image model made into one:
    ours, or Stable Diffusion 3's."""
    file = own_file(cfg, "videodit", "dit")
    if class_of(file or "") == "VideoDiT":
        net = load_network(VideoDiT, file).train()
        deeper = "dit.depth" in cfg.given and cfg.dit.depth > net.config.depth
        if deeper and net.copies is None and not cfg.lora:   # frozen, the new blocks' gates would stay zero
            deepen(net.image, cfg.dit.depth)                # the same function, with room to learn
            net.config = dataclasses.replace(net.config, depth=cfg.dit.depth)
        refuse_other_sizes(cfg, "dit", net.config, file)
        return net
    if cfg.init and not file:
        image = network_at(cfg.init, MMDiT)
    else:
        file = file or Path(cfg.out) / "dit.safetensors"
        image = load_network(MMDiT, file)
    refuse_other_sizes(cfg, "dit", image.config, file or cfg.init)
    return VideoDiT.from_image(image, attention=cfg.attention, patchify_3d=cfg.patchify_3d)


# Latte learns noise instead of a velocity, and a variance with it (DDPM, 3.1), on latents of Stable
# Diffusion's image VAE, frame by frame. 3.3.4: images may stand beside each clip, as further frames that
# attend to nothing in time (or to themselves alone): "randomly selected video frames from the same dataset".
#
#     a clip's row       [ f1 f2 ... f16 | p1 ... p8 ]    24 frames of latents, in one forward
#     spatial blocks       every frame by itself          learn from 24
#     temporal blocks      the first 16 only              learn from 16 (Temporal Mask: 24)
#
# VideoDiT mixes by whole steps, Latte inside each row. This way every step has both, and the spatial blocks
# see half as many frames again; the price is that an image costs what a frame costs.
# ASSUMED: a clip's images are mixed with noise at the clip's time t; 3.3.4 does not say, the published code
# does. (Labels and captions are each image's own.)
def stage_latte(cfg, run):                                  # Latte 3: blocks over space, blocks over time
    bring_companions(cfg, run)
    vae = frozen_vae(cfg, run, cfg.latents)
    net = start_latte(cfg)
    asks = net.config.condition                             # "none", "class" or "text"
    text, classes, images = None, (), None
    if asks == "text":
        text = reader(cfg, run, alone=not net.config.pooled_dim)
    check_widths(cfg, net.config, vae, text)
    if asks == "class":                                     # before a day of encoding
        classes = class_names(cfg, net)
    clips = feed(cfg, run, "video", vae, text)
    source = loader(cfg, run, clips, as_bytes=True)
    if cfg.joint_images:
        images = feed(cfg, run, "image", vae, text)
        many = dataclasses.replace(cfg, batch=cfg.batch * cfg.joint_images)
        source = beside(source, loader(many, run, images, "image", as_bytes=True))
    variance = "learned_range" if net.config.learn_sigma else "fixed_large"
    diffusion = DDPM(variance=variance).to(run.device)
    times = TIMES if cfg.objective == "flow" else (1000 * TIMES).long()         # DDPM's are whole steps

    def errors(net, z, cond, t, noise):
        if cfg.objective == "flow":
            return flow_errors(velocity_of(net), z, cond, t=t, noise=noise)             # (B,C,T'+M,h,w)
        return ddpm_terms(diffusion, net, z.float(), cond, t=t, noise=noise)["loss"]    # (B,)

    def loss(nets, batch):
        z, cond = latents_and_conditions(batch, vae, text, classes, run.device)         # (B,C,T'+M,h,w)
        cond = drop_conditions(cfg, run, batch, cond, net.config.classes)
        noise = draw(cfg, batch, z.shape, run.device)
        if cfg.objective == "flow":
            t = sample_times(draw(cfg, batch, (len(z),), run.device, TIME), cfg.shift)
        else:
            t = diffusion.sample_times(draw(cfg, batch, (len(z),), run.device, TIME, torch.rand))
        found = errors(nets["latte"], z, {"images": cfg.joint_images, **cond}, t, noise)
        return found.mean(), by_time(found, t, times)

    prompts = prompts_for(cfg, clips, asks, classes)
    told = {"objective": cfg.objective, "classes": list(classes), "latents": cfg.latents}
    player = transformer_player(cfg, {"latte": net}, loss, net.blocks)
    return Stage({"latte": player}, source,
                 show_samples(cfg, run, vae, text, cfg.frames, prompts, classes),
                 valid=held_out(cfg, run, "video", vae, errors, text, classes, times),
                 about={**told, **about(cfg, cfg.objective, asks, text)}, data=(clips, images),
                 frozen=networks(vae=vae, text=text))


def start_latte(cfg):
    """An earlier Latte, ours or as its authors released it; an image model made into one (3.3.4: DiT; 4.5:
    PixArt-alpha); or nothing."""
    file = own_file(cfg, "latte")
    if file:
        net = load_network(Latte, file)
    elif cfg.init:
        net = network_at(cfg.init, DiT, PixArt, Latte)
    else:
        return Latte(cfg.latte)
    if isinstance(net, Latte):
        refuse_other_sizes(cfg, "latte", net.config, file or cfg.init)
        return net.train()
    return init_from_image(Latte(cfg.latte), net, cfg.image_start)


def class_names(cfg, net):
    """What a label is: the toy's subjects, or the folders' names in alphabetical order. Images beside the
    clips have to lie in folders of the same names: found out now, not after a day."""
    names = toy_or_folder(cfg, "video").classes
    if cfg.joint_images:
        images = toy_or_folder(cfg, "image")
        for source in getattr(images, "sources", [images]):
            for place in getattr(source, "places", ()):     # of the toy's own, none is wrong
                class_at(place, names)
    if len(names) > net.config.classes:
        raise UserError(f"{len(names)} classes in --data, --latte.classes {net.config.classes}: "
                        "give at least as many")
    return names


BESIDE = "beside."                  # before the name of what is the images' in a batch


def beside(clips, images):
    """Latte 3.3.4: M images beside each clip: a batch of B clips carries a batch of B*M images."""
    def from_step(start):
        for clip, others in zip(clips(start), images(start)):
            yield {**clip, **{BESIDE + key: value for key, value in others.items()}}
    return from_step


def latents_and_conditions(batch, vae, text, classes, device):
    """Scaled latents of a batch, (B,C,T'+M,h,w), and what the network is told of it: a row a clip, (B,...),
    or where M images stand beside each clip (B,1+M,...)."""
    z = latents(batch, vae)                                                                 # (B,C,T',h,w)
    cond = conditions(batch, text, classes, device)                                         # (B,...) each
    others = {key.removeprefix(BESIDE): value for key, value in batch.items() if key.startswith(BESIDE)}
    if not others:
        return z, cond
    images = latents(others, vae)[:, :, 0].unflatten(0, (len(z), -1))                       # (B,M,C,h,w)
    z = torch.cat([z, images.transpose(1, 2)], 2)                                           # (B,C,T'+M,h,w)
    more = conditions(others, text, classes, device)                                        # (B*M,...) each
    for key, told in cond.items():
        theirs = more[key].unflatten(0, (len(z), -1))                                       # (B,M,...)
        cond[key] = torch.cat([told[:, None], theirs], 1)                                   # (B,1+M,...)
    return z, cond


def conditions(batch, text, classes, device):
    """What is said of these clips, or images: a class, or what the text encoder (or the cache) makes of the
    caption; nothing where the Latte asks for nothing."""
    if classes:
        labels = [class_at(place, classes) for place in batch["place"]]
        return {"labels": torch.tensor(labels, device=device)}                              # (B,)
    if text is None:
        return {}
    cond = {name: batch[name] for name in ("context", "pooled", "mask") if name in batch}
    if not cond:                                            # nothing of it was cached
        cond = dict(zip(getattr(text, "gives", ("context", "pooled")), text(batch["caption"])))
    if "mask" in cond:
        cond["mask"] = cond["mask"].bool()
    return cond                                                                             # (B,L,D), (B,P)


def drop_conditions(cfg, run, batch, cond, null=0):
    """For guidance: a clip's text goes together with that of its images; of labels each has its own chance.
    null: the network's label for no class, which its weights may have brought, whatever cfg says.
    The draws are the clip's and the step's, so that two processes drop what one would."""
    if "labels" in cond:
        drop = draw(cfg, batch, cond["labels"].shape, run.device, DROP, torch.rand) < cfg.latte.class_dropout
        return {"labels": drop_labels(cond["labels"], drop, null)}                          # (B,) or (B,1+M)
    if "context" not in cond:
        return cond
    drop = draw(cfg, batch, (len(cond["context"]),), run.device, DROP, torch.rand) < cfg.text_drop      # (B,)
    context, pooled = drop_prompt(cond["context"], cond.get("pooled"), drop)
    return {**cond, "context": context, "pooled": pooled}                               # a T5's pooled: None


RECIPES = {"classifier": stage_classifier, "vae": stage_vae, "dit": stage_dit, "dpvae": stage_dpvae,
           "videodit": stage_videodit, "latte": stage_latte}


# ------------------------------------------------------------------------------------------ what stages share

def vocabulary(cfg):
    """The toy's words; with folders for --data or --images, the 4,096 commonest words of their captions."""
    counts = Counter()
    for kind, name in (("video", cfg.data), ("image", cfg.images)):
        if name and name not in toy_world.WORLDS:
            for caption in toy_or_folder(cfg, kind).captions:
                counts.update(WordTokenizer.split(caption))
    words = [word for word, _ in counts.most_common(4096)]
    if toy_world.WORLDS.keys() & {cfg.data, cfg.images}:
        words = [*cfg.text.words, *words]
    return tuple(dict.fromkeys(words))                      # each once, in this order


# What two transformers' stages do alike: turn a batch into latents and conditions, drop some of those, draw
# noise and times. VideoDiT and Latte differ in the loss and in what a row holds, and that stands above.
#
# Noise, times and what is dropped are drawn for each row from (seed, step, the row's place in the batch):
# neither the number of processes nor a resume can change what a clip meets. A generator that runs along
# would.
def draw(cfg, batch, shape, device, stream=NOISE, how=torch.randn):
    return keyed_noise(shape, cfg.seed, batch["step"], batch["first"], device, stream=stream, draw=how)


def latent_noise(cfg, batch, vae, group=1):
    """Noise in the shape of a batch's latents (B,C,T/group,h,w), before anything is encoded."""
    x = batch["video"]                                                                      # (B,3,T,H,W)
    side = x.shape[-1] // vae.downsampling
    return draw(cfg, batch, (len(x), vae.config.z_channels, x.shape[2] // group, side, side), x.device)


# VideoDiT Eq. 5, prompts dropped for guidance. Four draws make a step: which clip (data.py's draw), how much
# noise (t), which noise, and whether the prompt is told; the network's error on them is the whole of
# training. Images and clips go through the same lines: an image is a clip of one latent frame.
def transformer_loss(cfg, run, net, text, vae, batch):
    z = latents(batch, vae)                                                                 # (B,C,T',h,w)
    t = sample_times(draw(cfg, batch, (len(z),), run.device, TIME), cfg.shift)              # (B,)
    cond = drop_conditions(cfg, run, batch, conditions(batch, text, (), run.device))
    errors = flow_errors(net, z, cond, t=t, noise=draw(cfg, batch, z.shape, run.device))   # (B,C,T',h,w)
    return errors.mean(), by_time(errors, t)


# ---------------------------------------------------------------------------------------------- by the time

# A diffusion loss is a mean over noise levels that have little in common: near t=0 it asks what clips look
# like at all, near t=1 for the last of the noise, and a gain in one hides a loss in the other. So the log has
# eight times apart, twice: of the training loss the clips that fell into each eighth of the path ("train_t"),
# and on clips that no step sees the middle of each eighth ("valid_t"). Where the first falls and the second
# rises, clips are learned by heart. The second is comparable, between steps, runs and machines: 16 clips,
# noise that is fixed for ever, no prompt dropped, the EMA. (DDPM's names are timesteps and run the other way:
# t62 is nearly clean, t937 nearly noise.)

TIMES = (torch.arange(8) + 0.5) / 8                         # the middles of the eighths (8,)


def by_time(errors, t, times=TIMES):
    """{"train_t0.06": (sum of the clips' losses, how many), ...} of errors (B,...) at times t (B,)."""
    losses = errors.detach().reshape(len(t), -1).mean(1)                                    # (B,)
    nearest = (t[:, None] - times.to(t.device)).abs().argmin(1)                             # (B,)
    told = {}
    for number, time in enumerate(times.tolist()):
        here = nearest == number                                                            # (B,)
        told[f"train_t{round(time, 2)}"] = torch.stack([losses.where(here, 0).sum(), here.sum()])
    return told


def unseen(cfg, kind):
    """Clips, or images, that no step sees: of a toy world the combinations that are held out, of videos what
    comes after --part."""
    name, frames, _ = source_of(cfg, kind)
    if name in toy_world.WORLDS:
        return ToyClips(f"{kind}_heldout", frames, cfg.size, 16, toy_world.UNSEEN, drop=0.0,
                        vocabulary=toy_world.WORLDS[name])
    last = cfg.part[1]
    if last < 1:
        clips = toy_or_folder(dataclasses.replace(cfg, part=(last, 1.0), seed=0, flip=False), kind)
        if all(isinstance(source, ClipFolder) for source in getattr(clips, "sources", [clips])):
            return clips                                    # of images nothing is left out
    raise UserError(f"{name} is trained on whole; of videos, --part 0 0.9 leaves out the last tenth of each")


def held_out(cfg, run, kind, vae, errors, text=None, classes=(), times=TIMES):
    """nets -> {"valid_t0.06": loss, ...}, or None. errors: the stage's, net, z, cond, t, noise -> (B,...)"""
    if not cfg.valid_every:
        return None
    try:
        clips = unseen(cfg, kind)
        clips.item(0)                                       # parts that are too short are found now
    except UserError as error:
        if run.rank == 0:
            print(f"{cfg.stage}: no held-out loss: {error}")
        return None
    places = range(0, len(clips), math.ceil(len(clips) / 16))           # 16 at most

    @functools.cache                                        # encoded once, its pixels forgotten
    def at(place):
        batch = collate([clips.item(place)])
        return latents({"video": batch.pop("video").to(run.device)}, vae), batch            # (1,C,T',h,w)

    def valid(nets):
        total = torch.zeros(8, device=run.device)
        for place in places:
            z, batch = at(place)
            noise = keyed_noise(z.shape, 0, 0, place, run.device)                           # (1,C,T',h,w)
            cond = conditions(batch, nets.get("text", text), classes, run.device)           # (1,...) each
            cond = {name: value.repeat_interleave(8, 0) for name, value in cond.items()}    # (8,...) each
            found = errors(nets[cfg.stage], z.repeat_interleave(8, 0), cond, t=times.to(run.device),
                           noise=noise.repeat_interleave(8, 0))                             # (8,...)
            total += found.reshape(8, -1).mean(1)                                           # (8,)
        means = (total / len(places)).tolist()
        return {f"valid_t{round(time, 2)}": mean for time, mean in zip(times.tolist(), means)}
    return valid


# ---------------------------------------------------------------------------------------- frozen, in the step

# Between a video and the transformer stand networks that learn nothing: the VAE, and the text encoders. Both
# papers run them inside the training step, so that every visit to a video shows another window, another
# crop, another of its captions: nothing is ever seen twice. That costs: for a clip of 16 frames Stable
# Diffusion's encoder does 4.4 TFLOP, Latte-XL's forward 3.7; and T5 holds 9.5 GB. --cached pays once, and
# gives up the variety. So that no peak depends on the batch, clips go through one by one, and their windows
# one after another, under no_grad, in the step's bf16; what is said of a caption is kept while there is room.
#
#     video --window, crop --> pixels (B,3,T,H,W) --E_k, E_r--> latents (B,16,T/4,h,w) --+
#                                                                          scaled        +--> transformer
#     caption ---------------> CLIP-L, CLIP-G, T5 (or the toy's) --> context, pooled ----+
#                              '---- frozen: here in the step, or once into the cache ---'
#
# TRAP: a cache is a promise that these latents are this VAE's. Trained one step further, a VAE has another
# language, and a transformer on the old cache learns what its decoder cannot read. So the cache's folder
# carries the VAE's fingerprint, a hash of its weights, and another VAE gets a folder of its own.

def latents(batch, vae):
    """Scaled latents of a batch: the cache's, or made here and now. (B,C,T',h,w)"""
    if "latent" in batch:
        return vae.scaled(batch["latent"])
    return vae.scaled(encoded(vae, batch["video"]))


@torch.no_grad()
def encoded(vae, x, most=8):
    """Raw latents of x (B,3,T,H,W), floats or bytes: a clip at a time, which a DP-VAE cuts into windows; or,
    where frames know nothing of each other, `most` frames at a time. Then a latent does not depend on what is
    beside it, nor the memory on how many come."""
    if isinstance(vae, DPVAE) and x.shape[2] > 1:
        return torch.cat([vae.encode(from_bytes(clip)).float() for clip in x.split(1)])     # (B,C,T/4,h,w)
    frames = rearrange(x, "b c t h w -> (b t) c 1 h w").split(most)                         # (8,3,1,H,W) each
    z = torch.cat([vae.encode(from_bytes(part)).float() for part in frames])                # (B*T,C,1,h,w)
    return rearrange(z, "(b t) c 1 h w -> b c t h w", b=len(x))                             # (B,C,T,h,w)


def networks(**frozen):
    """Those that a resumed run must find as they were. Published encoders are known by their file's place."""
    return {name: net for name, net in frozen.items() if isinstance(net, nn.Module)}


class Reader:
    """Published text encoders inside the step. Each caption is read by itself, so that what is said of it is
    the same in every batch, on any rank; the last few are remembered where they are (SD3: 2.5 MB each)."""

    def __init__(self, encoder, path, device, most=64):
        self.encoder, self.path, self.device = encoder, str(path), device
        self.gives = getattr(encoder, "gives", ("context", "pooled"))
        self.read_one = functools.lru_cache(most)(self.read_one)

    def __call__(self, captions):
        """-> (B,L,D) and (B,P), or the mask (B,L)."""
        answers = [self.read_one(caption) for caption in captions]
        return tuple(torch.stack(parts) for parts in zip(*answers))                         # (B,L,D), (B,P)

    def read_one(self, caption):
        return [part[0] for part in self.store([caption]).values()]                         # (L,D), (P)

    def store(self, captions):
        """{name: (B,...)} of these, nothing remembered: for the cache. In the encoders' own precision."""
        with torch.autocast(torch.device(self.device).type, enabled=False):
            return dict(zip(self.gives, self.encoder(captions)))


def reader(cfg, run, alone=False):
    """What reads the captions: the toy's encoder that stage dit left in --out, or published ones: T5 `alone`,
    or Stable Diffusion 3's. A checkpoint of ours remembers where those were."""
    own, path = Path(cfg.out) / "text.safetensors", cfg.text_weights
    if own.is_file() and not path:
        return load_network(ToyText, own).to(run.device).requires_grad_(False)
    if not path:
        path = cfg.init
        if file := own_file(cfg, cfg.stage, *WITH_COMPANIONS):
            path = read_config(file).get("text_weights", "")
    if not path or not Path(path).expanduser().exists():
        raise UserError(f"no text encoder: neither {own} nor {path or '--init'} is there; "
                        "give --text_weights Stable Diffusion 3's, or T5's folder, or train stage dit first")
    return Reader(load_text(path, alone=alone).to(run.device, keep=True), path, run.device)


def feed(cfg, run, kind, vae, text=None):
    """What the transformers train on: --data or --images as they come, or with --cached what the frozen
    networks made of them, encoded once by these very ones (or found encoded): latents, and what published
    encoders say of the captions."""
    dataset = toy_or_folder(cfg, kind)
    if not cfg.cached:
        return dataset
    mark = fingerprint(vae)
    folder = Path(cfg.cache or Path(cfg.out) / "cache") / f"{kind}-{cfg.size}-{mark}"
    store, dtype = None, torch.float16
    encoders = {}
    if isinstance(text, Reader):
        store, dtype = text.store, torch.bfloat16
        encoders = {"text": stamp(text.path)}
        text.encoder.to(text.device, keep=True)             # millions of captions follow one another

    def encode(batch):
        with torch.no_grad(), autocast(cfg, run):
            return {"latent": encoded(vae, batch["video"].to(run.device))}

    windows = 1
    if isinstance(dataset, (ClipFolder, Mixture)):
        windows = cfg.windows
    if run.rank == 0 and not folder.exists():
        size = encode(collate([dataset.item(0)]))["latent"].numel()
        print(f"{cfg.stage}: {windows * len(dataset):,} latents of {kind}s, "
              f"{2e-9 * size * windows * len(dataset):.2g} GB, will be cached in {folder}")
    identity = by_rank_0(run, lambda: dataset.identity() | encoders)
    made = write_cache(folder, dataset, encode, batch=4, vae=mark, shift=vae.config.shift,
                       scale=vae.config.scale, epochs=windows, dtype=dtype, workers=cfg.workers,
                       rank=run.rank, world_size=run.world, text=store, identity=identity)
    run.wait()
    for path in shards_of(folder):
        check_made(path, made)
    if store:
        text.encoder.to(text.device)            # T5's 9.5 GB leave; the prompts of previews call it back
    if isinstance(dataset, ToyClips) and not store:         # the toy says other words of a clip in each epoch
        return LatentCache(folder, dataset.words)
    return LatentCache(folder)


# Of the flags about a transformer's blocks, --checkpointing (gradient checkpointing) keeps of each block
# only its input and computes the rest again in backward: a third more work, and memory for one block instead
# of all (`python bench.py fits PRESET` counts it); --checkpoint_every 3 does so with each third block, where
# memory is left for the others. --compile takes minutes at the start, and fuses the small
# operations between matrix products (norms, gates, activations) into one pass over memory each. --muon moves
# the blocks' matrices, but not adaLN's: those are six in one, for shift, scale and gate.

def transformer_player(cfg, nets, loss, blocks, methods=()):
    """The stage's transformer, and what learns beside it, with its loss."""
    nets[cfg.stage].checkpointing = cfg.checkpointing
    for number, block in enumerate(blocks):
        block.keeps_all = number % cfg.checkpoint_every > 0
        if cfg.compile:
            block.compile()                                 # one compilation serves them all
    parts = [part for block in blocks for part in block.modules()]
    adaln = [part for part in parts if isinstance(part, AdaLN)]
    inside = {layer for part in adaln for layer in part}
    matrices = [part.weight for part in parts if isinstance(part, nn.Linear) and part not in inside]
    return Player(nets, loss, blocks=blocks, precise=adaln, matrices=matrices, methods=methods)


def show_reconstruction(clips, run):
    """Each clip above its reconstruction."""
    @torch.no_grad()
    def preview(nets, name):
        vae = nets.get("vae", nets.get("dpvae"))
        redone = vae.decode(vae.encode(clips.to(run.device))).clamp(-1, 1).cpu()
        rows = [clip for pair in zip(clips, redone) for clip in pair]
        if clips.shape[2] == 1:                         # images: all side by side, as if they were one clip
            rows = [torch.cat(list(clips), 1), torch.cat(list(redone), 1)]                  # (3,F,H,W) each
        contact_sheet(f"{name}.png", rows)
    return preview


# ------------------------------------------------------------------------------------------ what is looked at

# A loss of a diffusion model says next to nothing about its samples: most of it is noise that nobody could
# have predicted, so it moves little between a model that makes fog and one that makes cats. That is why
# every preview_every steps the EMA's weights make the same few clips from the same noise, which side by
# side show what a thousand steps changed. `python train.py report OUT` lays curves and previews of all stages
# on one page (OUT/report.html). What is worth a look there:
#
#     loss falls, previews are fog       normal in the beginning; if it stays: scale and shift, or the clock
#     loss flat from the first step      lr too small by far, or weights frozen by mistake
#     loss jumps, norm jumps with it     lr too large, a broken video; steps left out are in the log
#     clips good, all alike              the prompt is ignored: is the text encoder the one of training?

PROMPTS = {"toy": ("a cat", "a red fish moving left underwater", "a blue car in snow",
                   "a yellow star spinning at night"),
           "toy-small": ("a cat", "a red fish moving left at night", "a blue car growing on grass",
                         "a yellow boat shrinking at night")}


def prompts_for(cfg, dataset, asks="text", classes=()):
    """What previews show: for the toy always the same, else the first different captions, or the classes."""
    found = [""]
    if asks == "class":
        found = classes
    elif asks == "text" and cfg.data in toy_world.WORLDS:
        found = PROMPTS[cfg.data]
    elif asks == "text":
        found = list(dict.fromkeys(dataset.words(index, 0) for index in range(min(len(dataset), 64))))
    return [found[index % len(found)] for index in range(cfg.previews)]


def show_samples(cfg, run, vae, text, frames, prompts, classes=()):
    """The same few prompts each time, from the same noise, one after another: a long clip fills a GPU."""
    def preview(nets, name):
        objective = cfg.objective if cfg.stage == "latte" else "flow"
        models = Models(vae, nets.get("text", text), nets[cfg.stage], cfg.size, frames, cfg.shift, objective,
                        tuple(classes))
        clips = []
        with autocast(cfg, run):
            for index, prompt in enumerate(prompts):
                clips.append(generate(models, [prompt], frames, steps=20, guidance=cfg.guidance or None,
                                      first_index=index))
        clips = torch.cat(clips)                                                            # (n,3,T,H,W)
        contact_sheet(f"{name}.png", clips, prompts)
        if frames > 1:
            save_video(f"{name}.mp4", torch.cat(list(clips), 3))
    return preview


def about(cfg, objective, asks="text", text=None):
    """How the checkpoint wants to be sampled, and what reads its prompts: no tensor says at which guidance,
    with how many steps, or in which language a model was meant to be asked."""
    # ASSUMED: videos run at 25 frames a second, which is VideoDiT 4.1's rate
    rate = cfg.fps
    if not rate and cfg.data not in toy_world.WORLDS:
        rate = 25 / cfg.stride
    sampling = advice(objective, asks, rate)
    if cfg.guidance:
        sampling["guidance"] = cfg.guidance
    if asks != "text":
        return {"sampling": sampling, "text": asks}
    if not isinstance(text, Reader):
        return {"sampling": sampling, "text": "toy"}
    speaks = "t5" if "mask" in text.gives else "sd3"
    return {"sampling": sampling, "text": speaks,
            "text_weights": str(Path(text.path).expanduser().resolve())}


# ------------------------------------------------------------------------------------------ a stage, and all

# The order of what follows is that of the errors people make: flags are read first, on every rank alike; then
# the batch is divided; then the folder is held, so that two runs cannot write into one; only then are weights
# loaded. Resuming is no case of its own: fit() looks into --out and begins where the last save ended, and a
# stage that is done is seen to be done. So one command is start, continuation and repair.

def train(cfg, run=None):
    """One stage from its start, or from where it stopped, to its last step."""
    run = run or setup()
    if cfg.batch % (run.world * cfg.accumulate):
        raise UserError(f"--batch {cfg.batch}: must divide by {run.world} processes x "
                        f"{cfg.accumulate} micro-batches")
    if any(all_ranks(run, bool(STOP))):                    # so that all stop together
        raise UserError(f"stopped by a signal before stage {cfg.stage}; {again(cfg)} goes on from there")
    with contextlib.ExitStack() as one_run:
        if run.rank == 0:
            one_run.enter_context(hold(cfg.out))
        refuse_to_overwrite(cfg)
        torch.manual_seed(cfg.seed)
        fit(cfg, run, RECIPES[cfg.stage](cfg, run))
        run.wait()                                          # the next stage reads what this one wrote


def main(argv):
    if argv[:1] == ["report"]:
        if len(argv) != 2:
            raise UserError("report: give one folder, the --out of a training")
        return report(argv[1])
    if not argv:
        return print(overview())
    catch_signals()
    with told_once():                                       # a wrong flag is wrong on every rank
        configs = parse(argv)
    run = setup()
    with told_once(run):
        refuse_different_flags(run, configs)
        for flag, name in (("--data", configs[0].data), ("--images", configs[0].images)):
            if name:                                        # a wrong path is told before anything is trained
                check_source(flag, name)
        for config in configs:
            train(config, run)
        if run.rank == 0:
            print("\n".join(["next:", *commands_after(configs[-1])]))


def commands_after(cfg):
    """How to look at what a stage has left."""
    commands = [f"  python train.py report {cfg.out}"]
    if cfg.stage in ("dit", "videodit", "latte"):
        prompt = ' "A PROMPT"'
        if cfg.data in toy_world.WORLDS:
            prompt = f' "{PROMPTS[cfg.data][1]}"'
        if cfg.stage == "latte":
            prompt = {"class": " CLASS", "none": ""}.get(cfg.latte.condition, prompt)
        commands.append(f"  python sample.py{prompt} --ckpt {cfg.out} --model {cfg.stage}")
    return commands


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
