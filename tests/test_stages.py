"""The stages: what each starts from, what it reads, what it leaves; the papers' recipes on tiny files."""

import dataclasses
import itertools
import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import pretrained
import sample
import train
from support import checkpoints
from support import toy_world
from support.checkpoints import load_network, read_config, read_state
from support.cli import UserError
from conftest import script
from data import ClipFolder
from support.latent_cache import LatentCache, fingerprint
from dit import DiT, DiTConfig, PixArt, PixArtConfig
from support.detectors import LPIPS
from latte import Latte
from support.trainer import Run
from presets import parse
from test_trainer import run, signals  # noqa: F401  signals works by being here
from stand_ins import random_state, t5_files
from vae import DPVAE, KLVAE, DPVAEConfig, KLVAEConfig
from support.video_io import save_video
from videodit import VideoDiT


def config(*flags):
    return parse(["--config", "tiny", *map(str, flags)])[0]


# ------------------------------------------------------------ frozen networks, inside the step or before it

TINY_VAE = dict(ch=8, ch_mult=(1, 1), num_res_blocks=1, groups=4, z_channels=4)


class Watched:
    """What a VAE is given at once."""

    def __init__(self, vae):
        self.shapes, honest = [], vae.encode

        def encode(x):
            self.shapes.append(tuple(x.shape))
            return honest(x)
        vae.encode = encode


def test_a_latent_does_not_depend_on_what_is_beside_it_nor_the_peak_on_the_batch():
    """An image VAE gets 8 frames at once, a DP-VAE one clip, which it cuts itself; however many come."""
    x = torch.rand(3, 3, 12, 16, 16)
    for vae, most in ((KLVAE(KLVAEConfig(**TINY_VAE)), 8), (DPVAE(DPVAEConfig(**TINY_VAE)), 12)):
        told = Watched(vae)
        z = train.encoded(vae, x)
        assert max(shape[0] * shape[2] for shape in told.shapes) == most and not z.requires_grad
        assert_close(z[1:2], train.encoded(vae, x[1:2]), atol=1e-5, rtol=0)
        assert train.encoded(vae, x[:, :, :1]).shape[2] == 1


class Encoder:
    """A text encoder that notes what it is asked: context (B,2,3) and mask (B,2) of a caption's length."""
    gives = ("context", "mask")

    def __init__(self):
        self.asked = []

    def __call__(self, captions):
        self.asked.append(captions)
        sizes = torch.tensor([float(len(caption)) for caption in captions])
        return sizes[:, None, None].expand(-1, 2, 3), torch.ones(len(captions), 2, dtype=torch.long)


def test_each_caption_is_read_by_itself_and_the_last_are_remembered():
    """What is said of a caption must not depend on its batch; memory is bounded."""
    reader = train.Reader(Encoder(), "t5", "cpu", most=2)
    context, mask = reader(["a", "bb", "a", "ccc"])
    assert context[:, 0, 0].tolist() == [1, 2, 1, 3] and mask.shape == (4, 2)
    assert reader.encoder.asked == [["a"], ["bb"], ["ccc"]]
    reader(["ccc", "bb"])
    assert reader.encoder.asked[3:] == [["bb"]]
    reader(["ccc"])
    assert len(reader.encoder.asked) == 4


def test_each_visit_to_a_video_is_another_window(mp4s):
    """VideoDiT 4.1, Latte 4.1: nothing is frozen for a million steps, neither clips nor the images of joint
    training."""
    flags = ["--data", mp4s, "--frames", "8", "--no-cached"]
    clips = train.feed(config(*flags), Run(), "video", None)
    assert isinstance(clips, ClipFolder)
    visits = [clips.item(0, epoch)["video"] for epoch in range(6)]
    assert len({visit.numpy().tobytes() for visit in visits}) > 3
    frames = train.feed(config(*flags), Run(), "image", None)           # without --images: the videos' frames
    assert frames.item(0)["video"].shape == (3, 1, 32, 32) and len(frames) == 3
    assert len({frames.item(0, epoch)["video"].numpy().tobytes() for epoch in range(6)}) > 3


def test_a_cache_holds_what_the_step_would_have_made(mp4s, tmp_path):
    """The same clip, the same VAE: the same latent, as far as float16 goes; of videos and of frames."""
    cfg = config("--stage", "latte", "--data", mp4s, "--windows", 2, "--out", tmp_path)
    vae = KLVAE(KLVAEConfig(**TINY_VAE))
    for kind in ("video", "image"):
        cache, fresh = train.feed(cfg, Run(), kind, vae), train.toy_or_folder(cfg, kind)
        assert isinstance(cache, LatentCache) and len(cache) == 2 * 3
        expected = train.encoded(vae, fresh.item(1, 1)["video"][None])[0]
        assert_close(cache.item(3 + 1)["latent"], expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("flags, differs", [("--frames 4", "frames 8 instead of 4"), ("--flip", "flip"),
                                            ("--windows 3", "items"), ("--part 0 0.9", "part")])
def test_a_cache_made_differently_is_refused(mp4s, tmp_path, flags, differs):
    """Findings: a checkpoint said 96 frames and had seen 8."""
    vae, shared = KLVAE(KLVAEConfig(**TINY_VAE)), ["--data", mp4s, "--out", tmp_path, "--windows", 2]
    train.feed(config(*shared), Run(), "video", vae)
    with pytest.raises(UserError, match=f"was made differently: .*{differs}"):
        train.feed(config(*shared, *flags.split()), Run(), "video", vae)


# ------------------------------------------------------------ what DDP relies on

@pytest.mark.slow
@pytest.mark.parametrize("stage, start, options", [
    ("classifier", "", ["", "--accumulate 2"]), ("vae", "", ["", "--lpips_weight 0"]),
    ("dpvae", "", ["", "--z_noise 0.5", "--disc_weight 0 --lpips_weight 0", "--no-key_encoder"]),
    ("dpvae", "dpvae", ["--decoder_only"]), ("dit", "", ["", "--checkpointing"]),
    ("videodit", "", ["", "--no-patchify_3d", "--attention 2d+3d", "--checkpointing"]),
    ("videodit", "videodit", ["", "--dit.depth 4"]),
    ("latte", "", ["", "--joint_images 0", "--latte.condition class", "--latte.condition none",
                   "--latte.conditioning all_tokens", "--latte.conditioning adaln_single",
                   "--latte.variant 2", "--latte.variant 3", "--latte.variant 4",
                   "--latte.patch_embed compression",
                   "--latte.joint temporal_mask", "--latte.context_dim 0", "--objective flow"])])
def test_every_trained_parameter_gets_a_gradient(tiny, tmp_path, stage, start, options):
    """In steps of clips and of images, of an adversary that waits and one that counts: DDP would otherwise
    have to look for unused ones in each step."""
    out, init = tiny.fork(tmp_path / "run"), []
    if start:
        init = ["--init", tiny.folder / f"{start}.safetensors"]
    for words in options:
        cfg = config("--stage", stage, "--out", out, "--no-cached", "--previews", 1, *init, *words.split())
        made = train.RECIPES[stage](cfg, Run())
        kinds = set()
        for batch in itertools.islice(made.batches(0), 8):
            kind = (batch["video"].shape, batch["step"] < cfg.disc_start // 2, batch["step"] > cfg.disc_start)
            if kind in kinds:
                continue
            kinds.add(kind)
            for player in made.players.values():
                player.zero_grad()
                player(batch)[0].backward()
                unused = [name for name, p in player.named_parameters() if p.requires_grad and p.grad is None]
                assert unused == [], words


# ------------------------------------------------------------ what is dropped for guidance

@pytest.mark.parametrize("cond", [{"labels": torch.zeros(8, 3, dtype=torch.long)},
                                  {"context": torch.ones(8, 2, 4), "pooled": torch.ones(8, 4)},
                                  {"context": torch.ones(8, 3, 2, 4), "mask": torch.ones(8, 3, 2)}])
def test_two_processes_drop_what_one_drops(cond):
    """The draw is the clip's and the step's: two halves of a batch are the whole."""
    cfg = config("--text_drop", 0.5, "--latte.class_dropout", 0.5)
    rows = lambda first, last, step=3: train.drop_conditions(
        cfg, Run(), {"step": step, "first": first}, {key: value[first:last] for key, value in cond.items()},
        cfg.latte.classes)
    whole, halves = rows(0, 8), [rows(0, 4), rows(4, 8)]
    for key in cond:
        assert torch.equal(whole[key], torch.cat([half[key] for half in halves]))
    name = next(iter(cond))
    assert not torch.equal(whole[name], cond[name])
    assert not torch.equal(whole[name], rows(0, 8, step=4)[name])


def test_a_tenth_of_the_labels_become_no_class():
    """The extra row; every clip and every image by its own toss; nothing where nothing is asked."""
    cfg = config()
    labels = torch.zeros(4000, 2, dtype=torch.long)
    dropped = train.drop_conditions(cfg, Run(), {"step": 0, "first": 0}, {"labels": labels},
                                    cfg.latte.classes)["labels"]
    assert set(dropped.unique().tolist()) == {0, cfg.latte.classes}
    share = (dropped > 0).float()
    assert abs(share.mean() - 0.1) < 0.02 and abs((share[:, 0] * share[:, 1]).mean() - 0.01) < 0.01
    assert train.drop_conditions(cfg, Run(), {"step": 0, "first": 0}, {}) == {}


@pytest.mark.parametrize("classes", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_no_class_is_the_networks_own_row_whatever_the_preset_has(tiny, tmp_path, classes):
    """Weights bring their classes. Findings: the preset's 101 was an IndexError for 12, and for 150 the 102nd
    class learned to be none, in silence."""
    words = "--latte.condition class --no-cached --no-bf16 --latte.class_dropout 1 --steps".split()
    first = tiny.fork(tmp_path / "first")
    run(first, "latte", *words, 1, "--latte.classes", classes)
    saved = lambda out: load_network(Latte, out / "latte.safetensors").state_dict()
    before = saved(first)
    name = next(name for name in before if name.startswith("y_embedder"))
    then = run(tiny.fork(tmp_path / "then"), "latte", *words, 2, "--init", first, "--ema", 0)
    moved = (then["players"]["latte"]["nets.latte." + name] - before[name]).abs().sum(1) > 0
    assert len(moved) == classes + 1 and moved.nonzero().flatten().tolist() == [classes]


# ------------------------------------------------------------ VideoDiT, from Stable Diffusion 3's files

def small(mp4s, out, *flags):
    """The flags that make the papers' presets fit into a test."""
    sizes = ("--size 32 --frames 8 --batch 2 --accumulate 1 --steps 2 --no-compile --disc.width 8 "
             "--lpips_weight 0 --workers 0")
    return ["--data", str(mp4s), "--out", str(out), *sizes.split(), *map(str, flags)]


@pytest.fixture(scope="module")
def from_sd3(sd3, mp4s, tmp_path_factory):
    """`--stage all` of videodit-256: the whole road, in one command."""
    out = tmp_path_factory.mktemp("videodit")
    train.main(["--config", "videodit-256", "--stage", "all", "--init", str(sd3[0]), *small(mp4s, out)])
    return out


def test_stage_dpvae_starts_from_the_files_vae(sd3, from_sd3):
    """VideoDiT 3.1: E_k and D_k are Stable Diffusion's, frozen, with its shift and scale."""
    dp, vae = load_network(DPVAE, from_sd3 / "dpvae.safetensors"), pretrained.kl_vae(read_state(sd3[0]))
    assert_close(dp.image.state_dict(), vae.float().state_dict(), atol=0, rtol=0)
    assert (dp.config.scale, dp.config.shift) == (1.5305, 0.0609)
    assert dp.residual.conv_out.weight.abs().max() > 0


def test_stage_videodit_starts_from_the_files_transformer(sd3, from_sd3):
    """VideoDiT 3.2; in 2 steps of warm-up it has hardly moved. Nothing was cached, and a preview was made of
    the run's own captions."""
    net = load_network(VideoDiT, from_sd3 / "videodit.safetensors")
    image = pretrained.mmdit(read_state(sd3[0]))
    assert_close(net.image.state_dict(), image.float().state_dict(), atol=1e-5, rtol=0)
    assert net.patchify_3d.zero.weight.abs().max() > 0
    assert not (from_sd3 / "text.safetensors").exists() and not (from_sd3 / "cache").exists()
    assert (from_sd3 / "videodit/0000002.png").is_file() and (from_sd3 / "videodit/0000002.mp4").is_file()


def test_a_checkpoint_says_how_it_wants_to_be_sampled(sd3, from_sd3, tiny):
    """Sampler, steps, guidance, rate, and what reads its prompts, with its place."""
    made = read_config(from_sd3 / "videodit.safetensors")
    assert made["sampling"] == {"sampler": "euler", "steps": 28, "guidance": 4.0, "fps": 25.0}
    assert (made["text"], made["text_weights"]) == ("sd3", str(sd3[0]))
    made = read_config(tiny.folder / "latte.safetensors")
    assert made["sampling"] == {"sampler": "ddpm", "steps": 250, "guidance": 7.5, "fps": 8.0}
    toy = parse(["--stage", "videodit"])[0]         # --guidance, which the preset sets and a flag beats
    assert train.about(toy, "flow")["sampling"]["guidance"] == 2.5
    assert read_config(sample.TOY / "videodit.safetensors")["sampling"] == {
        "sampler": "euler", "steps": 14, "guidance": 1.8, "temperature": 0.8, "fps": 12.0}
    assert train.about(parse(["--guidance", "3"])[0], "flow")["sampling"]["guidance"] == 3.0
    assert made["text"] == "toy" and "text_weights" not in made
    assert read_config(tiny.folder / "dit.safetensors")["sampling"]["sampler"] == "euler"


def test_previews_speak_the_runs_own_captions(mp4s):
    """A model of your videos is not asked for the toy's cats."""
    mine = config("--data", mp4s, "--frames", 8, "--previews", 5)
    clips = train.toy_or_folder(mine, "video")
    prompts = train.prompts_for(mine, clips)
    assert len(prompts) == 5 and set(prompts) == set(clips.captions)
    toy = train.toy_or_folder(config(), "video")
    assert train.prompts_for(config(), toy) == list(train.PROMPTS["toy"])
    asked = train.prompts_for(config("--previews", 3), toy, "class", ("jump", "run"))
    assert asked == ["jump", "run", "jump"]
    assert train.prompts_for(config("--previews", 2), toy, "none") == ["", ""]


@pytest.mark.slow
def test_the_512_phase_is_one_init_from_the_320_phase(from_sd3, mp4s, tmp_path):
    """VideoDiT 4.1. A folder of ours brings its DP-VAE along, and knows where its text encoders are."""
    train.main(["--config", "videodit-512", "--init", str(from_sd3), *small(mp4s, tmp_path, "--steps", 1)])
    for name in ("dpvae.safetensors", "videodit.safetensors"):
        assert_close(read_state(tmp_path / name), read_state(from_sd3 / name), atol=1e-5, rtol=0)
    assert read_config(tmp_path / "videodit.safetensors")["text"] == "sd3"


@pytest.mark.slow
def test_the_320_phase_takes_a_dpvae_that_is_there_already(sd3, from_sd3, mp4s, tmp_path):
    """--vae_weights, with Stable Diffusion 3 as a Diffusers folder; images are frames of the videos."""
    train.main(["--config", "videodit-320", "--stage", "videodit", "--init", str(sd3[1]), "--vae_weights",
                str(from_sd3 / "dpvae.safetensors"), *small(mp4s, tmp_path, "--steps", 1, "--p_video", 0)])
    there, here = (load_network(DPVAE, folder / "dpvae.safetensors") for folder in (from_sd3, tmp_path))
    assert fingerprint(there) == fingerprint(here)


@pytest.mark.slow
def test_cached_stores_latents_and_prompts(sd3, from_sd3, mp4s, tmp_path):
    """Windows of each video with SD3's context (154 tokens) and pooled vector, a caption once; a second run
    reads them, encoding nothing."""
    shutil.copy(from_sd3 / "dpvae.safetensors", tmp_path)
    words = ["--config", "videodit-256", "--init", str(sd3[0]), *small(mp4s, tmp_path, "--windows", 2),
             "--stage", "videodit", "--cached", "--steps"]
    train.main([*words, "1"])
    folder, = (tmp_path / "cache").iterdir()
    cache = LatentCache(folder)
    rows = [cache.item(index) for index in range(len(cache))]
    assert len(rows) == 3 * 2 and rows[0]["latent"].shape == (16, 2, 4, 4)
    assert rows[0]["context"].shape == (154, 4096) and rows[0]["pooled"].shape == (24,)
    assert rows[0]["caption"] == rows[3]["caption"] and torch.equal(rows[0]["context"], rows[3]["context"])
    assert len(list(folder.glob("text/*/*"))) == 3
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    train.main([*words, "2"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == written


@pytest.mark.slow
def test_a_training_ends_with_the_commands_that_look_at_it(tiny, tmp_path):
    """They are printed, and the one that samples makes a clip."""
    *_, word, report, example = tiny.said.strip().splitlines()
    assert word == "next:" and report == f"  python train.py report {tiny.folder}"
    made = script(*shlex.split(example)[1:], "--steps", "2", "--out", tmp_path)
    assert made.code == 0 and list(tmp_path.glob("*.mp4"))


@pytest.mark.slow
def test_a_clip_from_the_published_road(sd3, from_sd3, tmp_path):
    """The text encoders stay Stable Diffusion's: --weights names them, or the checkpoint remembers where."""
    words = ["a cat", "--ckpt", str(from_sd3), "--steps", "2", "--out", str(tmp_path)]
    sample.main([*words, "--weights", str(sd3[0])])
    about = json.loads((tmp_path / "0000-a-cat.json").read_text())
    assert about["frames"] == 8 and about["pixels"] == 32 and (tmp_path / "0000-a-cat.mp4").is_file()
    sample.main(words)
    assert (tmp_path / "0001-a-cat.mp4").is_file()


def test_text_encoders_that_are_nowhere_are_asked_for(from_sd3, mp4s, tmp_path):
    """One line: which, and by which flag."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("dpvae", "videodit"):
        shutil.copy(from_sd3 / f"{name}.safetensors", moved)
    net = load_network(VideoDiT, moved / "videodit.safetensors")
    checkpoints.save_network(moved / "videodit.safetensors", net,
                             extra={"text_weights": "/gone/sd3.safetensors"})
    with pytest.raises(UserError, match="/gone/sd3.safetensors is there; give --text_weights Stable"):
        train.main(["--config", "videodit-512", "--init", str(moved), *small(mp4s, tmp_path / "out")])


def test_stage_vae_can_start_from_the_files_vae(sd3, tmp_path):
    """--init decides the number of channels, whatever the preset says."""
    run(tmp_path, "vae", "--init", sd3[0], "--steps", 1, "--batch", 2, "--lpips_weight", 0)
    assert load_network(KLVAE, tmp_path / "vae.safetensors").config.z_channels == 16


# ------------------------------------------------------------ flags beside weights

@pytest.mark.parametrize("stage, flags, answer", [
    ("videodit", "--attention 2d+3d", "--attention 2d.3d: .*videodit.safetensors has 2d->3d"),
    ("videodit", "--no-patchify_3d", "--no-patchify_3d: .*videodit.safetensors has True"),
    ("videodit", "--dit.depth 1", "--dit.depth 1: .*videodit.safetensors has 2"),
    ("latte", "--latte.depth 4", "--latte.depth 4: .*latte.safetensors has 2"),
    ("dpvae", "--vae.ch 16", "--vae.ch 16: .*dpvae.safetensors has 8"),
    ("vae", "--vae.ch 16", "--vae.ch 16: .*vae.safetensors has 8"),
    ("dit", "--text.width 16", "--text.width 16: .*text.safetensors has 32")])
def test_a_flag_that_the_weights_contradict_is_refused(tiny, tmp_path, stage, flags, answer):
    """It was ignored, and the run's name then said what the network was not."""
    with pytest.raises(UserError, match=answer):
        run(tmp_path / "out", stage, "--init", tiny.folder, *flags.split())


@pytest.mark.slow
def test_more_depth_than_the_weights_have_is_added_zero_initialised(tiny, tmp_path):
    """--init and a larger --dit.depth: the same function, deeper, which then learns."""
    run(tmp_path, "videodit", "--init", tiny.folder, "--dit.depth", 4, "--steps", 3)
    grown = load_network(VideoDiT, tmp_path / "videodit.safetensors")
    assert grown.config.depth == grown.image.config.depth == len(grown.image.joint_blocks) == 4
    gates = grown.image.joint_blocks[1].x_block.adaLN_modulation[1].weight.unflatten(0, (6, -1))[2::3]
    assert gates.abs().max() > 0
    deep, shallow = (train.start_videodit(config("--init", str(tiny.folder), "--dit.depth", depth))
                     for depth in (4, 2))
    z, cond = torch.randn(1, 4, 2, 4, 4), {"context": torch.randn(1, 12, 32), "pooled": torch.randn(1, 32)}
    assert_close(deep(z, torch.tensor([0.5]), **cond), shallow(z, torch.tensor([0.5]), **cond))


def test_a_flag_that_agrees_with_the_weights_is_no_offence(tiny):
    """And one that is another network's, or no size at all, is not compared."""
    made = load_network(VideoDiT, tiny.folder / "videodit.safetensors").config
    agrees = config("--dit.depth", 2, "--attention", "2d->3d", "--frames", 4, "--latte.depth", 8)
    pretrained.refuse_other_sizes(agrees, "dit", made, "weights")
    pretrained.refuse_other_sizes(config("--latte.class_dropout", 0.3), "latte", load_network(
        Latte, tiny.folder / "latte.safetensors").config, "weights")


def test_a_folder_without_the_network_says_what_it_holds(tiny, tmp_path):
    """--init FOLDER, of a stage that the folder has never seen."""
    shutil.copy(tiny.folder / "vae.safetensors", tmp_path)
    with pytest.raises(UserError, match="holds vae.safetensors, but no latte.safetensors"):
        run(tmp_path / "out", "latte", "--init", tmp_path)


def test_every_block_is_compiled_and_its_matrices_are_muons(tmp_path, monkeypatch, tiny):
    """--compile: block by block; --muon: all Linears of the blocks but adaLN's. 2D+3D's copies are blocks. With
    --checkpoint_every 2 each second block keeps what it computed, and its input alone is kept of the others."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    out = tiny.fork(tmp_path / "run")
    cfg = config("--stage", "videodit", "--out", out, "--attention", "2d+3d", "--compile", "--checkpointing",
                 "--checkpoint_every", 2)
    stage = train.RECIPES["videodit"](cfg, Run())
    player = stage.players["videodit"]
    net = player.nets["videodit"]
    blocks = [*net.image.joint_blocks, *net.copies]
    assert compiled == blocks == player.blocks
    muons = {id(p) for p in player.matrices}
    inside = [(name, p) for block in blocks for name, p in block.named_parameters() if p.ndim == 2]
    assert len(inside) > 20 and all((id(p) in muons) == ("adaLN" not in name) for name, p in inside)
    again = []
    honest = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint",
                        lambda block, *inputs, **how: again.append(block) or honest(block, *inputs, **how))
    player(next(stage.batches(0)))[0].backward()
    assert again == [block for block in blocks[::2] if block in again] and again


# ------------------------------------------------------------ Latte's recipes

@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    """Stable Diffusion 1.4's file, small: {"state_dict": U-Net, VAE, CLIP}."""
    torch.manual_seed(0)
    vae = KLVAE(KLVAEConfig(4, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, quant_conv=True))
    state = {f"first_stage_model.{name}": tensor for name, tensor in vae.state_dict().items()}
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, 4, 3, 3)
    path = tmp_path_factory.mktemp("sd1") / "sd-v1-4.ckpt"
    torch.save({"state_dict": state, "global_step": 1}, path)
    return path


SMALL_LATTE = ("--latte.depth 2 --latte.width 48 --latte.heads 2 --latte.input_size 4 --latte.frames 4 "
               "--size 32 --frames 4 --batch 2 --steps 1 --no-compile --stride 1 --previews 1 "
               "--workers 0").split()


@pytest.fixture
def ucf(tmp_path):
    """Two videos in each of two classes."""
    for number, name in enumerate(("Archery", "JumpRope", "Archery", "JumpRope")):
        folder = tmp_path / "ucf" / name
        folder.mkdir(parents=True, exist_ok=True)
        save_video(folder / f"v_{name}_g0{number}_c01.avi.mp4",
                   toy_world.render(toy_world.sample_spec(0, number, "video"), 12, 48))
    return tmp_path / "ucf"


def test_latte_on_ucf101_with_images_beside_each_clip(ucf, sd1, tmp_path):
    """Latte 3.3.4: the images are frames of the same videos; labels from the folders; Stable Diffusion's own
    file for the VAE, with scale 0.18215; `--stage all` is the whole road."""
    out = tmp_path / "out"
    words = ["--config", "latte-ucf101-img", "--data", str(ucf), "--vae_weights", str(sd1), "--out", str(out),
             *SMALL_LATTE]
    train.main([*words, "--joint_images", "2"])
    assert load_network(KLVAE, out / "vae.safetensors").config.scale == 0.18215
    made = read_config(out / "latte.safetensors")
    assert made["classes"] == ["Archery", "JumpRope"] and made["text"] == "class"
    assert made["sampling"]["guidance"] == 7.0 and made["sampling"]["fps"] == 25.0
    assert (out / "latte/0000001.mp4").is_file() and not (out / "cache").exists()


def test_the_vae_is_not_changed_under_a_runs_feet(sd1, sd3, tmp_path):
    """The same file again is nothing; another one would make noise of what was learned."""
    cfg = config("--stage", "latte", "--vae_weights", sd1, "--out", tmp_path)
    first = pretrained.frozen_vae(cfg, Run(), "vae")
    assert fingerprint(pretrained.frozen_vae(cfg, Run(), "vae")) == fingerprint(first)
    with pytest.raises(UserError, match="is another VAE, whose latents this run has learned; leave"):
        pretrained.frozen_vae(dataclasses.replace(cfg, vae_weights=str(sd3[0])), Run(), "vae")
    with pytest.raises(UserError, match="train --stage vae first, or give --vae_weights Stable"):
        pretrained.frozen_vae(config("--out", tmp_path / "empty"), Run(), "vae")


def test_images_beside_a_clip_are_frames_of_others(mp4s):
    """Latte 3.3.4, "randomly selected": in the clips' order each was a frame of the very clip beside it."""
    cfg = config("--stage", "latte", "--data", mp4s, "--workers", 0, "--batch", 4)
    clips, images = (train.toy_or_folder(cfg, kind) for kind in ("video", "image"))
    pairs = zip(train.loader(cfg, Run(), clips)(0), train.loader(cfg, Run(), images, "image")(0))
    own = [place == other for clip, image in itertools.islice(pairs, 6)
           for place, other in zip(clip["place"], image["place"])]
    assert 0 < sum(own) < 16                                    # of 24; of three videos a third


def test_a_vae_is_measured_at_every_save(tiny, tmp_path, monkeypatch, capsys):
    """Stopped, or called done early, it had shift 0 and scale 1, and transformers learned with it. Those that
    have learned with the one before are named; so is the command that goes on."""
    folder = tiny.fork(tmp_path / "run")
    honest = train.kl_vae_loss

    def loss(*words):
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(*words)
    monkeypatch.setattr(train, "kl_vae_loss", loss)
    with pytest.raises(UserError, match="at step 1, saved; the same command without --resume goes on"):
        run(folder, "vae", "--init", tiny.folder / "vae.safetensors", "--resume", "none")
    assert "dit, dpvae, videodit, latte in" in capsys.readouterr().out
    vae = load_network(KLVAE, folder / "vae.safetensors")
    cfg = config("--stage", "vae")
    frames = next(train.loader(cfg, Run(), train.singles(cfg, "video"))(0))["video"]
    z = vae.scaled(vae.encode(frames))
    assert abs(z.mean()) < 0.3 and 0.7 < z.std() < 1.3


def test_latte_t2v_starts_from_pixarts_folder(sd1, mp4s, tmp_path):
    """Latte 4.5: transformer, T5 with its tokenizer, and VAE, all from the one folder that --init names."""
    pixart = tmp_path / "pixart"
    net = PixArt(PixArtConfig(width=72, depth=1, heads=1, caption_channels=24, sample_size=4))
    (pixart / "transformer").mkdir(parents=True)
    (pixart / "vae").mkdir()
    save_file(random_state(net), pixart / "transformer/diffusion_pytorch_model.safetensors")
    save_file({name.removeprefix("first_stage_model."): tensor
               for name, tensor in read_state(sd1)["state_dict"].items() if name.startswith("first_stage")},
              pixart / "vae/diffusion_pytorch_model.safetensors")
    t5_files(pixart)
    out = tmp_path / "out"
    train.main(["--config", "latte-t2v", "--init", str(pixart), "--data", str(mp4s), "--out", str(out),
                *SMALL_LATTE, "--latte.width", "72", "--latte.heads", "1", "--latte.context_dim", "24",
                "--joint_images", "1"])
    latte, made = load_network(Latte, out / "latte.safetensors"), read_config(out / "latte.safetensors")
    assert_close(latte.blocks[0].attn.qkv.weight, net.blocks[0].attn.qkv.weight, atol=1e-3, rtol=0)
    assert (made["text"], made["text_weights"]) == ("t5", str(pixart)) and made["sampling"]["guidance"] == 7.5
    assert (out / "latte/0000001.png").is_file()


def test_latte_starts_from_a_dit(tmp_path):
    """Latte 3.3.4: DiT-XL-2-256x256.pt, without its label embedding."""
    net = DiT(DiTConfig(input_size=4, width=72, depth=2, heads=1, classes=10))
    torch.save(random_state(net), tmp_path / "DiT.pt")
    words = ["--config", "latte-ffs", "--init", str(tmp_path / "DiT.pt"), *SMALL_LATTE]
    start = train.start_latte(parse([*words, "--latte.width", "72", "--latte.heads", "1"])[0])
    assert_close(start.blocks[0].mlp.fc1.weight, net.blocks[0].mlp.fc1.weight)
    with pytest.raises(UserError, match="holds DiT; here it has to be MMDiT"):
        train.start_videodit(config("--stage", "videodit", "--init", tmp_path / "DiT.pt"))


# ------------------------------------------------------------ the toy, and your own videos


def test_the_vocabulary_is_the_folders_own_where_there_are_folders(mp4s):
    """A prompt about your own clips must reach the text encoder: its words come from their captions."""
    toy, mine = (config("--stage", "dit", *flags) for flags in
                 ([], ["--data", str(mp4s), "--images", str(mp4s), "--frames", "4"]))
    assert train.vocabulary(toy) == toy_world.WORDS
    captions = train.toy_or_folder(mine, "video").captions
    words = {word for caption in captions for word in caption.lower().split()}
    assert words and words <= set(train.vocabulary(mine))
    assert "mushroom" not in train.vocabulary(mine)
    frames_of_mine = config("--stage", "dit", "--data", mp4s, "--frames", 4)           # no --images: theirs
    assert set(train.vocabulary(frames_of_mine)) == set(train.vocabulary(mine))


def test_lpips_is_vggs_where_its_file_is_given(tmp_path):
    """Eq. 4 has an LPIPS term: a run without a network for it stops (test_presets.py)."""
    vgg = LPIPS("vgg")
    torch.save({name: tensor for name, tensor in vgg.state_dict().items() if name.startswith("features.")},
               tmp_path / "vgg.pth")
    cfg = config("--stage", "dpvae", "--out", tmp_path)
    distance = pretrained.perceptual_for(dataclasses.replace(cfg, lpips=str(tmp_path / "vgg.pth")), Run())
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert distance(a, a) == 0 and distance(a, b) > 0


@pytest.mark.parametrize("stage", ["dit", *(pytest.param(name, marks=pytest.mark.slow)
                                            for name in ("vae", "dpvae", "videodit", "latte"))])
def test_every_stage_goes_on_from_weights_of_its_own_kind(tiny, tmp_path, stage):
    """--init with our own file: one step at a rate of nothing leaves the network what it was."""
    start_from = tiny.folder / f"{stage}.safetensors"
    run(tiny.fork(tmp_path / "run"), stage, "--init", start_from, "--steps", 1, "--lr", 1e-12)
    was = load_file(start_from)
    now = load_file(tmp_path / "run" / f"{stage}.safetensors")
    assert now.keys() == was.keys()
    for name, value in now.items():
        assert_close(value, was[name], msg=name)


@pytest.mark.slow
def test_decoder_only_leaves_every_latent_as_it_was(tiny, tmp_path):
    """Better frames for a transformer that is already trained: its latents must not move."""
    folder = tiny.fork(tmp_path / "run")
    run(folder, "dpvae", "--init", tiny.folder / "dpvae.safetensors", "--decoder_only", "--steps", 1,
        "--ema", 0)
    was, now = (load_network(DPVAE, where / "dpvae.safetensors") for where in (tiny.folder, folder))
    x = torch.rand(1, 3, 8, 32, 32) * 2 - 1
    assert torch.equal(was.encode(x), now.encode(x))
    assert not torch.equal(was.decode(was.encode(x)), now.decode(now.encode(x)))


def test_noise_for_the_decoder_is_a_rows_own(tiny):
    """--z_noise 0.5: up to 0.5 of z's deviation, mostly less; a row's draw hangs on no other row."""
    dp = load_network(DPVAE, tiny.folder / "dpvae.safetensors")
    cfg = config("--stage", "dpvae", "--z_noise", 0.5)
    batch = lambda rows, first: {"video": torch.zeros(rows, 3, 16, 32, 32), "step": 3, "first": first}
    noise = train.misread(cfg, batch(64, 0), dp)                                # (B,C,T/4,h,w)
    level = noise.flatten(1).std(1) * dp.image.config.scale                     # (B,)
    assert 0.4 < level.max() < 0.55 and level.min() < 0.02 and 0.12 < level.mean() < 0.21       # 0.5 / 3
    assert torch.equal(train.misread(cfg, batch(2, 31), dp), noise[31:33])
    assert train.misread(dataclasses.replace(cfg, z_noise=0.0), batch(2, 0), dp) is None


def test_a_folder_of_ours_brings_what_a_stage_needs(tiny, tmp_path):
    """Into an empty --out: the VAEs, the text encoder and the classifier of the folder that --init names."""
    run(tmp_path / "more", "videodit", "--init", tiny.folder, "--steps", 1, "--no-cached", "--p_video", 1)
    for name in ("vae", "dpvae", "text", "classifier"):
        assert (tmp_path / "more" / f"{name}.safetensors").read_bytes() == (
            tiny.folder / f"{name}.safetensors").read_bytes()


def test_what_out_has_already_stays_and_is_named(tiny, tmp_path, capsys):
    """An --out with a VAE of its own is not written over by --init's."""
    shutil.copy(tiny.folder / "dpvae.safetensors", tmp_path / "vae.safetensors")
    words = ["--config", "tiny", "--stage", "videodit", "--init", str(tiny.folder), "--out", str(tmp_path)]
    cfg, = parse(words)
    pretrained.bring_companions(cfg, Run())
    assert f"{tmp_path / 'vae.safetensors'} stays: --init's" in capsys.readouterr().out
    assert (tmp_path / "vae.safetensors").read_bytes() == (tiny.folder / "dpvae.safetensors").read_bytes()


@pytest.mark.slow
def test_python_train_alone_trains_nothing(tmp_path, monkeypatch):
    """It says what can be trained, and how long that takes."""
    here = Path(train.__file__).resolve()
    monkeypatch.chdir(tmp_path)
    done = script(here)
    assert done.code == 0 and "--config latte-ucf101-img --vae_weights SD1" in done.out and not done.err
    assert list(tmp_path.iterdir()) == []
