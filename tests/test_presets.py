"""The presets against the papers' numbers; every field a flag, each flag read, each wrong value answered."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import presets
from support.cli import UserError, polite
from latte import SIZES
from presets import PRESETS, Config, flatten, parse
from text import ToyText
from pretrained import check_widths, perceptual_for
from vae import KLVAE
from support.trainer import Run


def row(preset, stage):
    """What `train.py --config PRESET --stage STAGE` would run with."""
    return parse(["--config", preset, "--stage", stage])[0]


# ------------------------------------------------------------ the papers' numbers

def test_the_ablations_setting_is_the_papers():
    """VideoDiT 4.3: 32 frames of 256 x 256, 60K steps of 64, videos only; 4.1: the rate, EMA, text drop."""
    cfg = row("videodit-256", "videodit")
    assert (cfg.frames, cfg.size, cfg.steps, cfg.batch, cfg.p_video) == (32, 256, 60_000, 64, 1.0)
    assert (cfg.lr, cfg.ema, cfg.text_drop) == (5e-5, 0.9999, 0.1)


def test_the_dp_vae_is_trained_as_printed():
    """VideoDiT 4.1: 600K steps of 8 at 5e-5; 3.1: lambdas 1, 0.01 and 0.1."""
    cfg = row("videodit-256", "dpvae")
    assert (cfg.steps, cfg.batch, cfg.lr, cfg.frames, cfg.size) == (600_000, 8, 5e-5, 32, 256)
    assert (cfg.recon_weight, cfg.reg_weight, cfg.disc_weight, cfg.lpips_weight) == (1.0, 1.0, 0.01, 0.1)


@pytest.mark.parametrize("size", [320, 512])
def test_the_two_phases_are_the_papers(size):
    """VideoDiT 4.1: 200K steps of 64 each, 96 frames at 25 a second, videos in 80 % of them."""
    cfg = row(f"videodit-{size}", "videodit")
    assert (cfg.steps, cfg.batch, cfg.frames, cfg.size, cfg.p_video) == (200_000, 64, 96, size, 0.8)
    assert (cfg.lr, cfg.ema, cfg.text_drop, cfg.stride) == (5e-5, 0.9999, 0.1, 1)


def test_the_320_phases_dp_vae_is_the_papers_too():
    """It learns at 256 with 32 frames (4.1), whatever the transformer after it does; 512 goes on from 320."""
    before, here = row("videodit-256", "dpvae"), row("videodit-320", "dpvae")
    assert (here.frames, here.size, here.steps, here.long) == (32, 256, before.steps, before.long)
    assert list(PRESETS["videodit-320"]["stages"]) == ["dpvae", "videodit"]
    assert list(PRESETS["videodit-512"]["stages"]) == ["videodit"]


@pytest.mark.parametrize("preset", ["videodit-256", "videodit-320"])
def test_a_dp_vae_without_lpips_says_so_or_stops(tmp_path, preset):
    """VideoDiT Eq. 4 has four terms: VGG16's file, or an explicit 0, before anything is trained; and the
    guide's command names it."""
    words = ["--config", preset, "--stage", "dpvae", "--out", str(tmp_path)]
    with pytest.raises(UserError, match="no --lpips FILE.*vgg16-397923af.pth.*--lpips_weight 0 leaves it out"):
        perceptual_for(parse(words)[0], Run())
    assert perceptual_for(parse([*words, "--lpips_weight", "0"])[0], Run()) is None
    assert "--lpips" in presets.GUIDE[preset][0]


def test_the_presets_for_gpus_load_in_several_processes():
    """A GPU's step is shorter than a clip's decoding; the toy's clips are cached, on a CPU that is busy."""
    workers = {name: {config.workers for config in parse(["--config", name])} for name in PRESETS}
    assert {name for name, found in workers.items() if found == {8}} == {
        name for name in PRESETS if name.startswith(("videodit", "latte"))}
    assert all(workers[name] == {0} for name in ("tiny", "small", "toy"))


@pytest.mark.parametrize("name", ["ffs", "sky", "taichi", "ucf101"])
def test_lattes_runs_are_the_papers(name):
    """Latte 4.1, 4.2: XL/2, 16 frames three apart, 256 x 256, EMA 0.9999; -img: 8 images a clip."""
    clips, joint = (row(f"latte-{name}{suffix}", "latte") for suffix in ("", "-img"))
    size = {field: getattr(clips.latte, field) for field in SIZES["XL"]}
    assert size == SIZES["XL"] and clips.latte.patch == 2 and clips.latte.variant == 1
    assert (clips.frames, clips.stride, clips.size, clips.ema) == (16, 3, 256, 0.9999)
    assert (clips.joint_images, joint.joint_images) == (0, 8)
    assert clips.latte.condition == ("class" if name == "ucf101" else "none")


# ------------------------------------------------------------ the table


def test_a_flag_beats_the_row_and_the_row_the_preset():
    """tiny: size 32 in the table, 8 clips a batch in the row of dit, 16 by Config."""
    assert row("tiny", "dit").batch == 8 and Config().batch == 16 and row("tiny", "dit").size == 32
    changed, = parse("--config tiny --stage dit --batch 4 --size 64 --dit.depth 3".split())
    assert (changed.batch, changed.size, changed.dit.depth) == (4, 64, 3)
    assert PRESETS["tiny"]["dit"].depth == 2                # a flag changes a copy


def test_a_presets_fields_are_printed(capsys):
    presets.main(["videodit-512"])
    assert re.search(r"^lr +5e-05$", capsys.readouterr().out, re.M)


# ------------------------------------------------------------ flags

def test_every_field_is_a_flag(monkeypatch):
    """A preset's table and the command line speak of the same things, the networks' sizes among them."""
    monkeypatch.setattr(presets, "check", lambda config: config)
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5, str: lambda v: v + "x"}
    for name, default in flatten(Config()).items():
        if name in ("config", "stage"):
            continue
        kind = type(default)
        value = default[:1] * 2 if kind is tuple else other[kind](default)
        value = presets.CHOICES.get(name, [value])[-1]
        argv = [f"--{'' if value else 'no-'}{name}"] if kind is bool else [f"--{name}={value}"]
        argv = [f"--{name}", *map(str, value)] if kind is tuple else argv
        if value != ():                                     # a list without default: nothing to try
            assert flatten(parse(["--stage", "vae", *argv])[0])[name] == value, name


def test_every_flag_is_explained_by_the_comment_beside_its_field(capsys):
    """One source: what --help says is what stands in the file, and nothing is left without."""
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0 and "steps of linear warm-up [100]" in shown
    assert all(f"--{name}" in shown for name in flatten(Config()))
    assert 'or "zero": temporal ones start at 0 [all]' in shown                        # a second line


def test_a_config_knows_which_flags_were_typed():
    """So that a stage can refuse what its weights contradict, and resuming compares fields alone."""
    config, = parse(["--stage", "vae", "--dit.depth", "6", "--lr", "0.1"])
    assert config.given == ("dit.depth", "lr") and "given" not in config.settings()
    assert dataclasses.replace(config, cached=True).given == config.given       # bench.py times such a copy
    assert parse(["--stage", "vae"])[0].given == ()


def test_without_words_the_toy_is_meant_and_the_guide_is_printed():
    """`python train.py --stage vae` trains; `python train.py` alone says what can be trained: each preset, by
    a command that is understood."""
    assert parse(["--stage", "vae"])[0].config == "toy"
    commands = re.findall(r"^  python train.py (.*)$", presets.overview(), re.M)
    assert [parse(command.split())[0].config for command in commands] == list(presets.GUIDE)
    assert presets.GUIDE.keys() == PRESETS.keys()


def test_the_toys_latents_are_cached_and_the_papers_are_not():
    """VideoDiT 4.1 and Latte 4.1 encode inside the step."""
    cached = {name for name in PRESETS for config in parse(["--config", name]) if config.cached}
    assert cached == {"tiny", "small", "toy"}


def test_every_flag_is_read():
    """A flag that nothing reads is a promise not kept; check() does not count as reading."""
    files = ("train.py", "pretrained.py", "support/trainer.py")
    source = "".join(Path(file).read_text() for file in files) + inspect.getsource(presets.parse)
    names = {item.name for item in dataclasses.fields(Config)} - {"config"}         # parse() reads it itself
    assert [name for name in names if not re.search(rf"\b(cfg|config)\.{name}\b", source)] == []


@pytest.mark.parametrize("flags, answer", [
    ("--step 5", "unknown flag --step; did you mean --steps"),
    ("--config tny", "--config: invalid choice: 'tny' ("), ("--previews 0", "--previews 0: must be at"),
    ("--stage vidodit", "--stage: invalid choice: 'vidodit'"), ("--steps 0", "--steps 0: must be at least 1"),
    ("--steps ten", "invalid int value: 'ten'"), ("--lr nan", "--lr nan: must"), ("--lr inf", "--lr inf:"),
    ("--lr -1", "--lr -1.0: must"), ("--frames 13", "--frames 13: must be a multiple of 4"),
    ("--stage dpvae --frames 1", "--frames 1: must be a multiple of 4"),
    ("--size 20", "--size 20: must be a multiple of 16"),
    ("--p_video 2", "--p_video 2.0: must be at least 0 and at most 1"), ("--ema nan", "--ema nan: must"),
    ("--kl_weight nan", "--kl_weight nan: must"), ("--seed -1", "--seed -1: must"),
    ("--shift 0", "--shift 0.0: must"), ("--betas 0.9", "--betas 0.9: must be two numbers"),
    ("--part 0.5 2", "--part 0.5 2.0: must be two numbers"),
    ("--classifier.width 3", "--classifier.width 3: must be a multiple of 2"),
    ("--vae.ch_mult 0 1 2", "--vae.ch_mult 0 1 2: must be at least 1 each"),
    ("--vae.ch_mult 1 2", "--vae.ch_mult 1 2: must be at least 1 each, of three levels or more"),
    ("--disc.width 7", "--disc.width 7: must be a multiple of 8"),
    ("--dit.head_dim 15", "--dit.head_dim 15: must be a multiple of 4"),
    ("--stage latte --latte.patch 3", "must be a multiple of 48"),
    ("--part 0.5 0.4", "--part 0.5 0.4: must begin before it ends"),
    ("--attention 3d", "--attention: invalid choice"), ("--items 0", "--items 0: give the number"),
    ("--latte.class_dropout 3", "--latte.class_dropout 3.0: must"),
    ("--resume runs/tiny/dit", "--resume runs/tiny/dit is of one stage; name it with --stage"),
    ("--config toy --stage dpvae --lpips vgg.pth", "--lpips FILE is not read at --lpips_weight 0"),
    ("--config tiny --muon 20 --shard", "--muon with --shard"), ("--config small --lora 8", "or --lora: Muon"),
    ("--stage vae --vae.num_res_blocks 0", "--vae.num_res_blocks 0: must be at least 1"),
    ("--latte.input_size 0", "--latte.input_size 0: must be at least 1")])
def test_a_wrong_value_gets_one_line_and_exit_code_2(capsys, flags, answer):
    """Before anything is allocated or written: parse() only reads."""
    with pytest.raises(SystemExit) as stopped:
        polite(lambda: parse(flags.split()))
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert answer in error and error.count("\n") == 1


def test_files_that_do_not_fit_the_flags_are_named():
    """An --out whose VAE is another run's: presets.check cannot know, train.py says it before a step."""
    cfg = parse(["--config", "tiny", "--stage", "dit"])[0]
    vae, text = KLVAE(dataclasses.replace(cfg.vae, z_channels=5)), ToyText(cfg.text)
    check_widths(cfg, cfg.dit, KLVAE(cfg.vae), text)
    without = dataclasses.replace(cfg.dit, context_dim=0)
    with pytest.raises(UserError, match="--dit.context_dim 0: the text encoder's vectors have 32"):
        check_widths(cfg, without, KLVAE(cfg.vae), text)
    with pytest.raises(UserError, match="--dit.in_channels 4: the VAE's latents have 5 in runs/tiny"):
        check_widths(cfg, cfg.dit, vae, text)
    with pytest.raises(UserError, match="--dit.context_dim 8: the text encoder's vectors have 32"):
        check_widths(cfg, dataclasses.replace(cfg.dit, context_dim=8), KLVAE(cfg.vae), text)


def test_what_images_do_is_refused_where_there_are_none():
    """Latte 3.3.4: --latte.joint is about images beside clips."""
    with pytest.raises(UserError, match="--latte.joint .*--joint_images 8"):
        parse(["--config", "latte-ffs", "--latte.joint", "temporal_mask"])
    assert parse(["--config", "latte-ffs-img", "--latte.joint", "temporal_mask"])[0].joint_images == 8
