"""train.py - every stage: judge, vae, dit, dpvae, videodit, latte; loop.py walks them.
Paper    VideoDiT 3.1 (stage dpvae), 3.2 and A.2 (stage videodit); Latte 3 (stage latte)
Shapes   batches of clips (B,3,T,H,W) or of cached latents (B,C,T',h,w)
Time     t=0 noise, t=1 data; noise and times depend on (seed, step, clip), not on ranks, and so a resumed run
         is the same run and two processes are one
Differs  grep DEVIATES; the papers' stages start from Stable Diffusion 3, the toy's from nothing
Reads    after presets.py, whose fields (cfg) its stages read, and loop.py, which steps them; before eval.py
Run me   python train.py --config tiny --stage all          # CPU, under 90 s: every stage, then a sample
         python train.py --config toy --stage all           # CPU, hours: the shipped checkpoint
         torchrun --nproc-per-node 8 train.py --config videodit-256 --stage videodit --init sd3.safetensors"""

import contextlib
import dataclasses
import itertools
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist

import published
import world
from checkpoint import (STOP, UserError, catch_signals, class_of, hold, load_network, polite,
                        save_network)
from data import LatentCache, ToyClips, batches, fingerprint, open_source, write_cache
from dit import DiT, MMDiT, PixArt
from features import Judge, judge_loss, judge_right, judge_targets, perceptual_distance
from flow import (DDPM, DROP, NOISE, TIME, ddpm_loss, drop_labels, drop_prompt, flow_loss, keyed_generator,
                  keyed_noise, sample_times, velocity_of)
from folder import class_at
from latte import Latte, init_from_image
from loop import Player, Stage, all_ranks, autocast, fit, report, setup, told_once
from presets import PRESETS, parse
from sample import Models, advice, generate
from text import ToyText
from tokenizer import WordTokenizer
from vae import (DPVAE, GOP, KLVAE, PatchGAN3D, discriminator_loss, dp_vae_loss, kl_vae_loss,
                 measure_latents)
from video import contact_sheet, save_video
from videodit import VideoDiT

KIND = 9    # stream of keyed_generator: is this step for videos or for images?


# ---------------------------------------------------------------------------------------------- stages

def toy_or_folder(cfg, kind):
    """The data set behind --data (kind "video") or --images (kind "image")."""
    name = cfg.data if kind == "video" else cfg.images
    if not name:
        raise UserError(f"--{'data' if kind == 'video' else 'images'}: give a folder, or toy")
    frames = cfg.frames if kind == "video" else 1
    return open_source(name, frames, cfg.size, cfg.seed, cfg.items or None, cfg.stride, cfg.fps or None,
                       cfg.flip, tuple(cfg.part), cfg.crop, cfg.short or None, cfg.long or None, kind)


def loader(cfg, run, dataset):
    """start_step -> this rank's micro-batches, each with its step and its first clip's place in the batch."""
    rows = cfg.batch // (run.world * cfg.accumulate)

    def from_step(start):
        endless = batches(dataset, rows, cfg.seed, start * cfg.accumulate, run.rank, run.world, cfg.workers)
        for count, batch in enumerate(endless, start * cfg.accumulate):
            step, micro = divmod(count, cfg.accumulate)
            yield {**batch, "step": step, "first": (micro * run.world + run.rank) * rows}
    return from_step


def mixed(cfg, videos, images, p):
    """VideoDiT A.2: each step is for videos with probability p, else images; the same draw on all ranks."""
    is_video = lambda step: torch.rand((), generator=keyed_generator(cfg.seed, step, 0, KIND)).item() < p

    def from_step(start):
        before = sum(is_video(step) for step in range(start))
        sources = {True: videos(before) if p > 0 else None, False: images(start - before) if p < 1 else None}
        for step in itertools.count(start):
            for _ in range(cfg.accumulate):
                yield {**next(sources[is_video(step)]), "step": step}
    return from_step


def stage_judge(cfg, run):                            # the instrument: names what it sees (design: toy world)
    def loss(nets, batch):
        targets = judge_targets(nets["judge"], batch["spec"], run.device)
        right = judge_right(nets["judge"], batch["video"], targets)
        return (judge_loss(nets["judge"], batch["video"], targets),
                {k: v.float().mean() for k, v in right.items()})

    player = Player(loss, judge=Judge(cfg.judge))
    return Stage({"judge": player},
                 loader(cfg, run, ToyClips("any", cfg.frames, cfg.size, None, cfg.seed, 0.0)), None)


def stage_vae(cfg, run):                                    # pixels <-> latents, one frame at a time
    vae = image_vae(cfg, run) if cfg.init else KLVAE(dataclasses.replace(cfg.vae))
    vae = vae.to(memory_format=torch.channels_last)
    perceptual = perceptual_for(cfg, run)
    videos, images = (loader(cfg, run, singles(cfg, kind)) for kind in ("video", "image"))

    def loss(nets, batch):
        x = batch["video"]
        side = x.shape[-1] // vae.downsampling
        noise = draw(cfg, batch, (len(x), vae.config.z_channels, 1, side, side), run.device)
        return kl_vae_loss(nets["vae"], x, noise, cfg.kl_weight, perceptual, cfg.lpips_weight)

    def finish(nets):                                       # from now on the transformer sees unit variance
        source = mixed(cfg, videos, images, 0.5)(0)
        clips = [next(source)["video"].to(run.device) for _ in range(8)]
        nets["vae"].config.shift, nets["vae"].config.scale = measure_latents(nets["vae"], clips)

    held = next(mixed(cfg, videos, images, 0.5)(0))["video"][:8]
    return Stage({"vae": Player(loss, vae=vae)}, mixed(cfg, videos, images, 0.5),
                 show_reconstruction(held, run), finish)


def singles(cfg, kind):
    """Single frames of the clips, or the pictures."""
    if kind == "video" and cfg.data == "toy":
        return ToyFrames(cfg.frames, cfg.size, cfg.seed)
    return toy_or_folder(dataclasses.replace(cfg, frames=1) if kind == "video" else cfg, kind)


class ToyFrames(ToyClips):
    """One frame, at random, of each toy clip."""

    def __init__(self, frames, size, seed):
        super().__init__("video", frames, size, None, seed)

    def item(self, index, epoch=0):
        spec = world.draw(self.seed, index, "video")
        frame = torch.from_numpy(world.render(spec, self.frames, self.size, only=[index % self.frames]))
        return {"video": frame.permute(3, 0, 1, 2).float() / 127.5 - 1,                     # (3,1,H,W)
                "caption": world.caption(spec)}


def stage_dpvae(cfg, run):                                  # VideoDiT 3.1, Eq. 1-4
    windows = {"window": cfg.frames, "overlap": cfg.frames // 16 * GOP}    # longer clips go through in pieces
    if class_of(cfg.init) == "DPVAE":                       # train an earlier one further
        dp = load_network(DPVAE, cfg.init)
    else:
        dp = DPVAE.from_image(image_vae(cfg, run), key_encoder=cfg.key_encoder, **windows)
    dp = dp.to(memory_format=torch.channels_last)
    dp.residual.requires_grad_(not cfg.decoder_only)
    dp.residual.checkpointing = dp.decoder.checkpointing = cfg.checkpointing
    perceptual, disc = perceptual_for(cfg, run), PatchGAN3D(cfg.disc).to(run.device)

    def loss(nets, batch):
        warm = min(max(batch["step"] - cfg.disc_start, 0) / max(cfg.disc_warmup, 1), 1.0)
        disc.requires_grad_(False)                      # the generator's gradient passes through, not into it
        total, batch["x_hat"], log = dp_vae_loss(
            nets["dpvae"], batch["video"], perceptual, disc if warm else None, 1.0,
            cfg.reg_weight, cfg.disc_weight * warm, cfg.lpips_weight)
        disc.requires_grad_(True)
        return total, log

    def adversary(nets, batch):
        if batch["step"] < cfg.disc_start // 2:             # nothing to learn from a decoder that is all blur
            return 0.0 * sum(p.sum() for p in nets["disc"].parameters()), {}
        total = discriminator_loss(nets["disc"], batch["video"], batch["x_hat"])
        return total, {"disc": total.detach()}

    source = loader(cfg, run, toy_or_folder(cfg, "video"))
    players = {"dpvae": Player(loss, dpvae=dp)}
    if cfg.disc_weight:
        players["disc"] = Player(adversary, disc=disc)
    return Stage(players, source, show_reconstruction(next(source(0))["video"][:4], run))


def stage_dit(cfg, run):                                  # the text-to-image model that the papers start from
    vae = load_network(KLVAE, Path(cfg.out) / "vae.safetensors").to(run.device)
    if cfg.init:                                          # train an earlier one, or a VideoDiT's image half
        dit = (load_network(VideoDiT, cfg.init).image if class_of(cfg.init) == "VideoDiT"
               else load_network(MMDiT, cfg.init)).train()
        text = load_network(ToyText, Path(cfg.init).with_name("text.safetensors")).train()
    else:
        dit, text = MMDiT(cfg.dit), ToyText(dataclasses.replace(cfg.text, words=vocabulary(cfg)))
    prepare_blocks(cfg, dit, dit.joint_blocks)
    images = loader(cfg, run, cached(cfg, run, vae, "image"))
    read = toy_or_folder(cfg, "video").captions if cfg.data else ()     # words of the videos to come

    def loss(nets, batch):
        total = transformer_loss(cfg, run, nets["dit"], nets["text"], vae, batch)
        if not read:
            return total, {}
        first, rows = batch["step"] * cfg.batch + batch["first"], len(batch["latent"])
        words = nets["text"].reading_loss([read[i % len(read)] for i in range(first, first + rows)])
        return total + 0.1 * words, {"words": words.detach()}

    return Stage({"dit": Player(loss, dit=dit, text=text)}, images, show_samples(cfg, run, vae, 1))


def stage_videodit(cfg, run):                              # VideoDiT 3.2: the image transformer, made to move
    out = Path(cfg.out)
    dp = load_network(DPVAE, out / "dpvae.safetensors").to(run.device)
    text = frozen_text(out, run)                            # with published weights, prompts are in the cache
    if class_of(cfg.init) == "VideoDiT":                    # 4.1: the 512 phase goes on from the 320 phase
        net = load_network(VideoDiT, cfg.init).train()
    else:
        image = (published.network_at(cfg.init, MMDiT) if cfg.init
                 else load_network(MMDiT, out / "dit.safetensors"))
        net = VideoDiT.from_image(image, attention=cfg.attention, patchify_3d=cfg.patchify_3d)
    prepare_blocks(cfg, net, net.image.joint_blocks)
    videos = loader(cfg, run, cached(cfg, run, dp, "video", must_exist=text is None))
    images = None
    if cfg.p_video < 1:
        images = loader(cfg, run, cached(cfg, run, dp, "image", must_exist=text is None))

    def loss(nets, batch):
        return transformer_loss(cfg, run, nets["videodit"], text, dp, batch), {}

    preview = show_samples(cfg, run, dp, cfg.frames, text) if text else None
    return Stage({"videodit": Player(loss, videodit=net)}, mixed(cfg, videos, images, cfg.p_video), preview,
                 about={"sampling": advice("flow", "text")})


def stage_latte(cfg, run):                                  # Latte 3: blocks over space, blocks over time
    out, pictures = Path(cfg.out), cfg.joint_images
    vae, net = latte_vae(cfg, run), Latte(cfg.latte)
    if class_of(cfg.init) == "Latte":                       # train an earlier one further
        net = load_network(Latte, cfg.init).train()
    elif cfg.init:
        start = published.network_at(cfg.init, DiT, PixArt, Latte)
        net = start.train() if isinstance(start, Latte) else init_from_image(net, start, cfg.image_start)
    prepare_blocks(cfg, net, net.blocks)
    asks = cfg.latte.condition
    text = frozen_text(out, run) if asks == "text" else None
    spoken = asks == "text" and text is None                # by published encoders, in stage cache
    clips = cached(cfg, run, vae, "video", must_exist=spoken)
    images = cached(cfg, run, vae, "image", must_exist=spoken) if pictures else None
    classes = class_names(cfg, clips, images) if asks == "class" else ()
    diffusion = DDPM(variance="learned_range" if cfg.latte.learn_sigma else "fixed_large")

    def loss(nets, batch):
        z, rows = vae.scaled(batch["latent"]), len(batch["latent"])                      # (B,C,T'+images,h,w)
        cond = {"images": pictures, **conditions(batch, text, classes, run.device)}
        drop = draw(cfg, batch, (rows,), run.device, DROP, torch.rand) < cfg.text_drop
        if "labels" in cond:                                # each label by its own toss
            toss = draw(cfg, batch, cond["labels"].shape, run.device, DROP, torch.rand)  # (B,) or (B,1+M)
            cond["labels"] = drop_labels(cond["labels"], toss < cfg.latte.class_dropout, cfg.latte.classes)
        if "context" in cond:
            cond["context"], pooled = drop_prompt(cond["context"], cond.get("pooled"), drop)
            cond.update({} if pooled is None else {"pooled": pooled})
        noise = draw(cfg, batch, z.shape, run.device)
        if cfg.objective == "flow":
            t = sample_times(rows, cfg.shift, u=draw(cfg, batch, (rows,), run.device, TIME))
            return flow_loss(velocity_of(nets["latte"]), z, cond, t=t, noise=noise), {}
        t = diffusion.sample_times(draw(cfg, batch, (rows,), run.device, TIME, torch.rand))
        return ddpm_loss(diffusion, nets["latte"], z, cond, t=t, noise=noise), {}

    source = loader(cfg, run, clips)
    if pictures:
        source = beside(source, loader(dataclasses.replace(cfg, batch=cfg.batch * pictures), run, images),
                        pictures)
    preview = show_samples(cfg, run, vae, cfg.frames, text) if text else None
    about = {"objective": cfg.objective, "classes": list(classes), "latents": cfg.latents,
             "sampling": advice(cfg.objective, asks)}
    return Stage({"latte": Player(loss, latte=net)}, source, preview, about=about)


def latte_vae(cfg, run):
    """Stable Diffusion's VAE from --vae_weights, which --out then carries, or one of the stages before."""
    out = Path(cfg.out)
    if cfg.vae_weights and run.rank == 0 and not (out / "vae.safetensors").is_file():
        save_network(out / "vae.safetensors", published.vae_at(cfg.vae_weights))
    if run.world > 1:
        dist.barrier()
    kind = {"vae": KLVAE, "dpvae": DPVAE}[cfg.latents]
    return load_network(kind, out / f"{cfg.latents}.safetensors").to(run.device)


def class_names(cfg, clips, images):
    """What a label is: the toy's subjects, or the folders' names in alphabetical order. Pictures beside the
    clips have to lie in folders of the same names: found out now, not after a day."""
    names = world.SUBJECTS if cfg.data == "toy" else clips.classes
    for place in {place.rpartition("/")[0]: place for place in images.places}.values() if images else ():
        class_at(place, names)
    if len(names) > cfg.latte.classes:
        raise UserError(f"{len(names)} classes in --data, --latte.classes {cfg.latte.classes}: "
                        "give at least as many")
    return names


def conditions(batch, text, classes, device):
    """What a Latte is told of a batch: (B,...), or (B,1+M,...) where M pictures stand beside each clip."""
    captions = batch["caption"]
    groups = len(captions) // len(batch["latent"])   # captions: those of the clips, then M a clip of pictures
    grouped = lambda told: told if groups == 1 else torch.cat(
        [told[:len(batch["latent"]), None], told[len(batch["latent"]):].unflatten(0, (-1, groups - 1))], 1)
    if classes:
        labels = [class_at(place, classes) for place in batch["place"]]
        return {"labels": grouped(torch.tensor(labels, device=device))}                     # (B,1+M)
    if text is not None:
        context, pooled = text(captions)
        return {"context": grouped(context), "pooled": grouped(pooled)}               # (B,1+M,L,D), (B,1+M,D)
    return {key: grouped(batch[key]).bool() if key == "mask" else grouped(batch[key])
            for key in ("context", "mask") if key in batch}


def beside(clips, images, pictures):
    """Latte 3.3.4: the latents of M pictures appended to each clip's, along time."""
    def from_step(start):
        for clip, others in zip(clips(start), images(start)):
            latent = others["latent"].squeeze(2).unflatten(0, (-1, pictures)).transpose(1, 2)    # (B,C,M,h,w)
            joined = {"latent": torch.cat([clip["latent"], latent], 2),
                      "caption": clip["caption"] + others["caption"],
                      "place": clip["place"] + others["place"]}
            told = {key: torch.cat([clip[key], others[key]]) for key in ("context", "mask") if key in clip}
            yield {**clip, **joined, **told}                                                # (B,C,T'+M,h,w)
    return from_step


def stage_cache(cfg, run):                                  # latents and text of all clips and pictures, once
    """Afterwards neither the VAE's nor the text encoders' work is in the training's steps. --init: the SD3
    file whose text encoders speak. Interrupted, the same command goes on; ranks share the work."""
    if not cfg.init:
        raise UserError("--stage cache: give --init, the Stable Diffusion 3 file (or, for latte-t2v, the "
                        "Diffusers folder) with the text encoders")
    out, device = Path(cfg.out), run.device
    if "latte" in PRESETS[cfg.config]["stages"]:            # Latte 4.5: T5 alone, with its mask
        vae, t5 = latte_vae(cfg, run), published.load_t5_text(cfg.init).to(device, keep=device != "cpu")
        encode = lambda captions: dict(zip(t5.gives, t5(captions)))
    else:
        vae = load_network(DPVAE, out / "dpvae.safetensors").to(device)
        sd3 = published.load_sd3_text(cfg.init).to(device, keep=device != "cpu")
        encode = lambda captions: dict(zip(("context", "pooled"), sd3.encode(captions)))
    for kind, wanted in (("video", True), ("image", cfg.p_video < 1 or cfg.joint_images)):
        if wanted:
            cached(cfg, run, vae, kind, encode)


STAGES = {"judge": stage_judge, "vae": stage_vae, "dit": stage_dit, "dpvae": stage_dpvae,
          "videodit": stage_videodit, "latte": stage_latte, "cache": stage_cache}


# ------------------------------------------------------------------------------------------ what stages share

def vocabulary(cfg):
    """The toy's words; with folders for --data or --images, the 4,096 commonest words of their captions."""
    folders = [kind for kind, name in (("video", cfg.data), ("image", cfg.images)) if name not in ("toy", "")]
    captions = [caption for kind in folders for caption in toy_or_folder(cfg, kind).captions]
    counts = Counter(word for caption in captions for word in WordTokenizer.split(caption))
    known = cfg.text.words if len(folders) < 2 else ()
    return tuple(dict.fromkeys((*known, *(word for word, _ in counts.most_common(4096)))))


def draw(cfg, batch, shape, device, stream=NOISE, how=torch.randn):
    return keyed_noise(shape, cfg.seed, batch["step"], batch["first"], device, stream=stream, draw=how)


# VideoDiT Eq. 5 on a cached latent, prompts dropped for guidance.
def transformer_loss(cfg, run, net, text, vae, batch):
    z, rows = vae.scaled(batch["latent"]), len(batch["latent"])                             # (B,C,T',h,w)
    t = sample_times(rows, cfg.shift, u=draw(cfg, batch, (rows,), run.device, TIME))        # (B,)
    context, pooled = (batch["context"], batch["pooled"]) if text is None else text(batch["caption"])
    drop = draw(cfg, batch, (rows,), run.device, DROP, torch.rand) < cfg.text_drop          # (B,)
    context, pooled = drop_prompt(context, pooled, drop)
    return flow_loss(net, z, {"context": context, "pooled": pooled}, t=t,
                     noise=draw(cfg, batch, z.shape, run.device))


def frozen_text(out, run):
    """The toy's text encoder that stage dit left in --out; None where published ones speak (stage cache)."""
    if not (out / "text.safetensors").is_file():
        return None
    return load_network(ToyText, out / "text.safetensors").to(run.device).requires_grad_(False)


def cached(cfg, run, vae, kind, text=None, must_exist=False):
    """Latents of --data or --images, encoded once by this very VAE (or found encoded) and read from then on;
    with `text`, captions -> {name: tensor}, what the text encoders say as well (stage cache)."""
    mark = fingerprint(vae)
    folder = Path(cfg.cache or Path(cfg.out) / "cache") / f"{kind}-{cfg.size}-{mark}"
    dataset = toy_or_folder(cfg, kind)
    if must_exist:                                          # with the text in it: stage cache comes first
        return LatentCache(folder, mark, want=dataset.identity())

    @torch.no_grad()
    def encode(batch):
        with autocast(cfg, run):
            return {"latent": vae.encode(batch["video"].to(run.device)).float()}

    write_cache(folder, dataset, encode, cfg.encode_batch, mark, vae.config.shift, vae.config.scale,
                epochs=1 if cfg.data == "toy" or kind == "image" else cfg.windows,
                dtype=torch.bfloat16 if text else torch.float16,
                workers=cfg.workers, rank=run.rank, world_size=run.world,
                text=text and torch.no_grad()(text), speaker=Path(cfg.init).name if text else "")
    if run.world > 1:
        dist.barrier()
    # the toy says other words of a clip in each epoch; those stored hold "a cat" but 30 times
    return LatentCache(folder, mark, dataset.words if isinstance(dataset, ToyClips) and not text else None)


def image_vae(cfg, run):
    """The 2D VAE: from --init, Stable Diffusion's or an earlier run's, else what stage vae left in --out."""
    if class_of(cfg.init) == "KLVAE":
        return load_network(KLVAE, cfg.init).to(run.device)
    if cfg.init:
        return published.vae_at(cfg.init).to(run.device)
    return load_network(KLVAE, Path(cfg.out) / "vae.safetensors").to(run.device)


def perceptual_for(cfg, run):
    """LPIPS's distance: VGG's from --lpips. The toy world's judge stands in for VGG, whose weights are not
    shipped. Without either the term is left out, and that is said: it is a part of Eq. 4."""
    path = Path(cfg.out) / "judge.safetensors"
    if not cfg.lpips_weight:
        return None
    if cfg.lpips:
        vgg = published.load_detector(cfg.lpips, "lpips_vgg").to(run.device).requires_grad_(False)
        return lambda a, b: vgg(a, b).mean()
    if not path.is_file():
        if run.rank == 0:
            print(f"{cfg.stage}: no LPIPS term: --lpips FILE gives VGG16's weights, --lpips_weight 0 agrees")
        return None
    judge = load_network(Judge, path).to(run.device).requires_grad_(False)
    return lambda a, b: perceptual_distance(judge.pyramid, a, b).mean()


def prepare_blocks(cfg, net, blocks):
    net.checkpointing = cfg.checkpointing
    if cfg.compile:
        for block in blocks:                              # block by block: one compilation serves all of them
            block.compile()


def show_reconstruction(clips, run):
    """Each clip above its reconstruction."""
    @torch.no_grad()
    def preview(nets, name):
        vae = nets.get("vae", nets.get("dpvae"))
        redone = vae.decode(vae.encode(clips.to(run.device))).clamp(-1, 1).cpu()
        rows = [clip for pair in zip(clips, redone) for clip in pair]
        if clips.shape[2] == 1:                         # pictures: all side by side, as if they were one clip
            rows = [torch.cat(list(clips), 1), torch.cat(list(redone), 1)]
        contact_sheet(f"{name}.png", rows)
    return preview


PROMPTS = ("a cat", "a red fish moving left underwater", "a blue car in snow",
           "a yellow star spinning at night")


def show_samples(cfg, run, vae, frames, text=None):
    """The same four prompts each time, from the same noise."""
    def preview(nets, name):
        net = nets.get("videodit", nets.get("dit", nets.get("latte")))
        models = Models(vae, text or nets["text"], net, cfg.size, frames, cfg.shift,
                        cfg.objective if "latte" in nets else "flow")
        with autocast(cfg, run):
            clips = generate(models, list(PROMPTS), frames, steps=20).cpu()
        contact_sheet(f"{name}.png", clips, PROMPTS)
        if frames > 1:
            save_video(f"{name}.mp4", torch.cat(list(clips), 3))
    return preview


def train(cfg, run=None):
    """One stage from its start, or from where it stopped, to its last step."""
    run = run or setup()
    if cfg.batch % (run.world * cfg.accumulate):
        raise UserError(f"--batch {cfg.batch}: must divide by {run.world} processes x "
                        f"{cfg.accumulate} micro-batches")
    if all_ranks(run, STOP):
        raise UserError(f"stopped by a signal before stage {cfg.stage}; the same command goes on from there")
    with hold(cfg.out) if run.rank == 0 else contextlib.nullcontext():
        torch.manual_seed(cfg.seed)
        stage = STAGES[cfg.stage](cfg, run)
        if stage is not None:                               # stage cache only writes files
            fit(cfg, run, stage)
        run.wait()                                          # the next stage reads what this one wrote


def main(argv):
    if argv[:1] == ["report"]:
        if len(argv) != 2:
            raise UserError("report: give one folder, the --out of a training")
        return report(argv[1])
    catch_signals()
    with told_once():                                       # a wrong flag is wrong on every rank
        configs = parse(argv)
    run = setup()
    with told_once(run):
        for config in configs:
            train(config, run)


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
