"""Tests of ablate.py: every table of both papers is there, its commands exist, it goes on where it was."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import ablate
import eval
import pretrained
import presets
import sample
from conftest import read_video
from support import toy_world
from support.cli import UserError
from support.checkpoints import save_network
from support.detectors import LPIPS
from support.metrics import paired_interval
from support.video_io import save_video
from vae import DPVAE, KLVAE, KLVAEConfig

VIDEODIT = ["videodit-1", "videodit-2", "videodit-3", "videodit-4", "videodit-5", "videodit-6"]
LATTE = ["latte-3", *(f"latte-5{part}" for part in "abcdef"), "latte-7", "latte-mask"]


def dry(capsys, *words):
    """The commands of a dry run, each a list of words."""
    ablate.main([*words, "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line[line.index("python "):])[1:] for line in lines if "python " in line]


# what a person has to give for a table at the paper's size
FLAGS = {"videodit": "--init sd3.safetensors --data VIDEOS --lpips vgg16.pth",
         "images": "--init sd3.safetensors --data VIDEOS --lpips vgg16.pth --images JOURNEYDB",
         "latte": "--data FFS --vae_weights sd-v1-4.ckpt"}
PAPER = [("videodit-1", "videodit-256", "videodit"), ("videodit-2", "videodit-512", "images"),
         ("videodit-3", "videodit-256", "videodit"), ("videodit-4", "videodit-256", "videodit"),
         ("videodit-5", "videodit-256", "videodit"), ("videodit-6", "videodit-256", "images"),
         *((f"latte-5{part}", "latte-ffs", "latte") for part in "abcdef"), ("latte-7", "latte-ffs", "latte"),
         *(("latte-3", f"latte-{name}", "latte") for name in ("ffs", "sky", "taichi", "ucf101")),
         ("latte-mask", "latte-t2v", "latte")]


def understood(command):
    """An evaluation command's flags, as its own parser reads them; nothing is opened."""
    name, words = command[1], command[2:]
    with pytest.MonkeyPatch.context() as patch:
        class Read(Exception):
            pass

        def stop(parser, argv=None):
            raise Read(original(parser, argv))
        original = eval.FlagParser.parse_args
        patch.setattr(eval.FlagParser, "parse_args", stop)
        with pytest.raises(Read) as read:
            eval.COMMANDS[name](words)
    return read.value.args[0]


def trained(command):
    """What train.py leaves, as far as ablate.py looks: the stage's weights, made by this command."""
    stage, folder = (command[command.index(flag) + 1] for flag in ("--stage", "--out"))
    if not Path(folder, stage).exists():                # a finished stage writes no weights again
        Path(folder, stage).mkdir(parents=True)
        assert not Path(folder, f"{stage}.safetensors").exists()        # train.py does not write over others'
        save_file({"weight": torch.zeros(3, 4)}, Path(folder, f"{stage}.safetensors"),
                  {"by": shlex.join(command)})


@pytest.fixture
def ran(monkeypatch):
    """Commands are written down instead of run; training leaves a file, measuring a number: the seed's."""
    commands = []

    def run(args, command):
        commands.append(command)
        if command[0] == "train.py":
            trained(command)
        if "similarity" in command or command[0] == "sample.py":
            drawn = Path(command[command.index("--out") + 1])
            drawn = drawn / "0000-a-cat.png" if command[0] == "sample.py" else drawn
            drawn.parent.mkdir(exist_ok=True)
            drawn.touch()
        if command[1] in ("fvd", "fid"):
            seed = int(re.search(r"/(\d)/(?:samples|images)", " ".join(command))[1])
            return {"metric": f"toy {command[1]}", command[1]: 3.0 + seed, "standard_error": 0.5}
        return {}
    monkeypatch.setattr(ablate, "run", run)
    return commands


def made_by(path):
    """The command that left these weights."""
    with safe_open(path, "pt") as file:
        return file.metadata()["by"]


def test_the_tables_of_both_papers_are_there():
    """VideoDiT Tables 1-6; Latte Tables 3 and 5 and Figs. 5 and 7, whose rows hold Tables 1 and 2."""
    assert sorted(ablate.TABLES) == sorted(VIDEODIT + LATTE)


@pytest.mark.parametrize("config", ["tiny", *(pytest.param(name, marks=pytest.mark.slow)
                                              for name in ("small", "toy"))])
def test_a_dry_run_prints_commands_that_exist(config, capsys):
    """Every flag of every row is one of train.py's, every measurement one of eval.py's commands with its
    flags; in the toy world latents are cached once, for all rows of a seed."""
    tables = [key for key, table in ablate.TABLES.items() if table.needs != "data"]
    commands = [command for key in tables for command in dry(capsys, key, "--config", config)]
    for script, *words in commands:
        if script == "train.py":
            stage = presets.parse(words)[0]
            assert stage.cached and words[words.index("--cache") + 1].endswith("base/cache")
        elif script == "eval.py":
            understood([script, *words])
    assert {command[0] for command in commands} == {"train.py", "eval.py", "sample.py"}


@pytest.mark.parametrize("key, config, needs", PAPER)
def test_a_table_at_the_papers_size_trains_what_the_paper_trained(key, config, needs, capsys):
    """With the flags that a person has: all four terms of Eq. 4, images where the paper has them, nothing
    cached that nobody asked for, the papers' steps; and every printed command is understood."""
    commands = dry(capsys, key, "--config", config, "--real", "UCF101", "--train", FLAGS[needs])
    assert commands
    for command in commands:
        if command[0] == "eval.py":
            understood(command)
        elif command[0] == "sample.py":
            sample.parse(command[1:])
        else:
            cfg = presets.parse(command[1:])[0]
            assert cfg.stage != "cache" and not cfg.cached and "--cache" not in command
            if cfg.stage == "dpvae":
                assert cfg.lpips == "vgg16.pth" and cfg.steps == 600_000
                assert (cfg.recon_weight, cfg.disc_weight, cfg.lpips_weight) == (1, 0.01, 0.1)
            if cfg.stage == "videodit":
                assert cfg.steps == (200_000 if config == "videodit-512" else 60_000)
                assert cfg.p_video == 1 or cfg.images == "JOURNEYDB"
            if cfg.stage == "latte":
                assert cfg.steps == (150_000 if ablate.TABLES[key].steps else 1_000_000)
                assert cfg.batch == (32 if cfg.joint_images else 40)
                assert not ablate.TABLES[key].steps or (cfg.save_every, cfg.keep) == (10_000, 15)


def test_asking_for_a_cache_or_for_none_is_obeyed(capsys):
    """--cached at the paper's size is one folder for all rows; --no-cached in the toy world is none."""
    words = ["videodit-5", "--config", "videodit-256", "--real", "U", "--train"]
    folders = {command[command.index("--cache") + 1] for command in dry(capsys, *words, "--cached")
               if command[0] == "train.py"}
    assert folders == {"runs/ablate/videodit-256/base/cache"}
    assert not any("--cache" in command for command in dry(capsys, "videodit-5", "--train", "--no-cached")
                   if command[0] == "train.py")


def test_the_default_latte_is_trained_once_for_all_figures(capsys):
    """Figs. 5 and 7 show one configuration under seven names: uniform, S-AdaLN, absolute, random, every 3rd
    frame, Variant 1, XL."""
    default = set()
    for key, name in (("latte-5a", "uniform"), ("latte-5b", "S-AdaLN"), ("latte-5c", "absolute"),
                      ("latte-5d", "random"), ("latte-5e", "3"), ("latte-5f", "Variant 1"),
                      ("latte-7", "Latte-XL")):
        args = ablate.parse([key, "--config", "latte-ffs", "--train", FLAGS["latte"]])
        row = next(row for row in ablate.TABLES[key].rows if row.name == name)
        job = ablate.row_job(args, row)
        default.add((job.folder, shlex.join(job.training[-1])))
    assert len(default) == 1


def test_the_cost_is_said_before_anything_starts(capsys):
    """Hours are those of bench.py fits, by steps: 60 K of videodit-256 are 10 h, its DP-VAE 57; 2D+3D says
    what it needs on cards of 80 GB; a curve says its disk."""
    ablate.main(["videodit-4", "--config", "videodit-256", "--real", "U", "--dry-run", "--train",
                 FLAGS["videodit"]])
    out = capsys.readouterr().out
    assert "videodit-4: about 77 h of 8 H100 for 3 trainings" in out and "--accumulate 2" in out
    ablate.main(["latte-5a", "--config", "latte-ffs", "--dry-run", "--train", FLAGS["latte"]])
    assert "15 EMAs of each stay on disk" in capsys.readouterr().out


def test_latte_3_prints_the_numbers_of_its_set(capsys):
    """Table 3 is four sets; at latte-ucf101 the paper's FVD is UCF101's, and its IS."""
    row = ablate.TABLES["latte-3"].rows[1]
    of = lambda config: ablate.paper_of(ablate.parse(["latte-3", "--config", config]), row)
    assert of("latte-ucf101") == {"FVD": 202.23, "IS": 73.31} and of("latte-taichi-img") == {"FVD": 97.09}
    assert of("latte-ffs") == {"FVD": 27.08, "FID": 3.87} and of("small")["FVD"] == 27.08


def test_real_clips_have_the_stride_of_the_training(capsys):
    """Latte Fig. 5e compares intervals of sampling: each row beside real clips that move as fast as its own."""
    words = "--config latte-ffs --curve 4 --train".split() + ["--data /tmp --vae_weights /tmp"]
    trained, real = [], []
    for script, *command in dry(capsys, "latte-5e", *words):
        if script == "train.py":
            trained.append(presets.parse(command)[0].stride)
        elif command[0] in ("fvd", "fid"):
            real.append((trained[-1], int(command[command.index("--real_stride") + 1])))
    assert set(real) == {(1, 1), (3, 3), (6, 6)} and real == sorted(real)


@pytest.mark.parametrize("key", VIDEODIT + LATTE)
def test_rows_of_a_table_differ_in_what_it_is_about(key):
    """No two rows share a folder, unless they are the same run; their configurations differ."""
    args = ablate.parse([key])
    jobs = [ablate.row_job(args, row) for row in ablate.TABLES[key].rows]
    configs = [[presets.parse(command[1:])[0] for command in job.training] for job in jobs]
    assert len({job.folder for job in jobs}) == len({str(stages).replace(str(job.folder), "")
                                                     for job, stages in zip(jobs, configs)}) == len(jobs)


def test_the_rows_of_table_3_are_the_four_corners():
    """VideoDiT Table 3: with and without the 2D VAE, with and without regularization."""
    args, rows = ablate.parse(["videodit-3"]), ablate.TABLES["videodit-3"].rows
    corners = []
    for row in rows:
        job = ablate.row_job(args, row)
        stages = [presets.parse(command[1:])[0] for command in job.training]
        corners.append((stages[0].key_encoder, stages[0].reg_weight > 0, stages[-1].p_video))
    assert corners == [(False, False, 1.0), (False, True, 1.0), (True, False, 1.0), (True, True, 1.0)]


def test_the_papers_best_rows_are_the_defaults():
    """The flags' defaults are the papers' best: VideoDiT's rows in bold, Latte 4.3."""
    ours = presets.flatten(presets.Config())
    best = {"attention": "2d->3d", "patchify_3d": True, "key_encoder": True, "reg_weight": 1.0,
            "p_video": 0.8, "latte.variant": 1, "latte.patch_embed": "uniform", "latte.temporal": "sincos",
            "latte.conditioning": "s_adaln"}
    assert {name: ours[name] for name in best} == best


def test_what_rows_share_is_trained_once(ran, tmp_path):
    """Tables 4, 5 and 6 show the same default run; its stages before are those of all rows."""
    for key in ("videodit-4", "videodit-5", "videodit-6"):
        words = [key, "--config", "tiny", "--out", str(tmp_path), "--seeds", "2"]
        ablate.run_table(ablate.parse(words))
    videodits = [shlex.join(command) for command in ran if "train.py" in command and "videodit" in command]
    assert len(videodits) == len(set(videodits)) == 8       # 4 runs, one of them in each table, 2 seeds
    dpvaes = [command for command in ran if "train.py" in command and "dpvae" in command]
    assert len(dpvaes) == 3                                 # asked for by each table; train.py does it once
    for seed in "01":
        weights = tmp_path / "tiny" / "videodit-p_video-1" / seed / "dpvae.safetensors"
        assert made_by(weights) == made_by(tmp_path / "tiny" / "base" / "dpvae.safetensors")


def test_a_table_draws_its_figure_of_a_row_that_another_table_trained(ran, tmp_path):
    """Table 5's 3D patchify is Table 3's "both", Fig. 5a's uniform is Variant 1: the result is kept, and only
    the drawing that the second table has beside it is made."""
    for first, second, folder, drawn in (
            ("videodit-5", "videodit-3", "videodit-p_video-1", "sample.py"),
            ("latte-5a", "latte-5f", "latte-joint_images-0", "similarity")):
        ablate.run_table(ablate.parse([first, "--config", "tiny", "--out", str(tmp_path)]))
        ran.clear()
        ablate.run_table(ablate.parse([second, "--config", "tiny", "--out", str(tmp_path)]))
        own = [command for command in ran if f"{tmp_path}/tiny/{folder}/0" in command]
        assert len(own) == 1 and drawn in own[0]


def test_a_row_keeps_the_dpvae_that_it_trained(ran, tmp_path):
    """Table 3's rows have a DP-VAE of their own: the shared one must not take its place, ever."""
    args = ablate.parse(["videodit-3", "--config", "tiny", "--out", str(tmp_path)])
    own = tmp_path / "tiny" / "videodit-p_video-1-reg_weight-0" / "0"
    for _ in range(2):
        ablate.run_table(args)
        assert "--reg_weight 0" in made_by(own / "dpvae.safetensors")
        (own / "result.json").unlink()


def test_finished_rows_are_kept(ran, tmp_path):
    """Restart: nothing is run again, and only the row without a result is."""
    args = ablate.parse(["latte-5f", "--config", "tiny", "--out", str(tmp_path)])
    first = ablate.run_table(args)
    ran.clear()
    assert ablate.run_table(args) == first and len(first) == 5
    assert first[0][0]["ours"]["fvd"] == {"metric": "toy fvd", "fvd": 3.0, "standard_error": 0.5}
    assert first[0][0]["params"] == 12 and ran == []
    again = ablate.parse(["latte-5f", "--config", "tiny", "--out", str(tmp_path), "-n", "4"])
    ablate.run_table(again)                         # measured otherwise, not trained again
    assert ran and not any(command[0] == "train.py" for command in ran)
    ran.clear()
    (tmp_path / "tiny" / "latte-joint_images-0-latte.variant-3" / "0" / "result.json").unlink()
    ablate.run_table(args)
    again = [command for command in ran if "--latte.variant" in command]
    assert len(again) == 1 and again[0][again[0].index("--latte.variant") + 1] == "3"


def test_a_result_of_other_commands_is_refused(ran, tmp_path):
    """A row that stands on another VAE is not the row that was asked for."""
    words = ["videodit-5", "--config", "tiny", "--out", str(tmp_path), "--train"]
    ablate.run_table(ablate.parse([*words, "--vae.ch 8"]))
    with pytest.raises(UserError, match="of other commands; delete .*another --out"):
        ablate.run_table(ablate.parse([*words, "--vae.ch 16"]))


def test_rows_of_all_seeds_and_tables_stand_on_one_base(ran, tmp_path):
    """base was trained further for another table: its second seed would have stood on other networks."""
    words = ["--config", "tiny", "--out", str(tmp_path), "--train"]
    ablate.run_table(ablate.parse(["videodit-5", *words, "--vae.ch 8"]))
    with pytest.raises(UserError, match="another command trained stage .*, which all tables share; give the same"):
        ablate.run_table(ablate.parse(["latte-5b", *words, "--vae.ch 16"]))


@pytest.mark.parametrize("key, train, says", [
    ("latte-3", "--joint_images 2", "--joint_images would be the same in every row; latte-3's rows set it"),
    ("videodit-5", "--patchify_3d", "--patchify_3d"), ("videodit-6", "--p_video=0.5", "--p_video"),
    ("videodit-4", "--seed 1", "--seed would .*own --out, --config, --seeds"),
    ("latte-5a", "--resume none", "--resume would"), ("latte-5a", "--save_every 7", "--save_every would")])
def test_what_a_row_is_about_cannot_be_overridden(key, train, says):
    """However the flag is written, and in a dry run, too: its rows would print one command twice."""
    with pytest.raises(UserError, match=says):
        ablate.main([key, "--config", "tiny", "--dry-run", "--train", train])


# ------------------------------------------------------------ seeds and spread

def test_a_seed_has_its_folder_and_its_clips(ran, tmp_path):
    """Base by seed 0; the rest by the row's: training, its cache of latents, samples, and their scores."""
    args = ablate.parse(["videodit-5", "--config", "tiny", "--out", str(tmp_path), "--seeds", "3"])
    results = ablate.run_table(args)
    assert [[found["ours"]["fvd"]["fvd"] for found in row] for row in results] == [[3, 4, 5]] * 2
    for command in map(shlex.join, ran):
        if found := re.search(r"(?:--out|-o) \S+?/(base|\d)(?:/samples|/images)? .*--seed (\d)", command):
            assert found[1].replace("base", "0") == found[2]
        if "train.py" in command:
            cache = "cache" if found[2] == "0" else f"cache-{found[2]}"
            assert f"/base/{cache} " in f"{command} "


def clips(share, n=200):
    """100 for this share of n clips, 0 for the others, in an order of no meaning."""
    return 100.0 * (np.random.default_rng(5).permutation(n) < share * n)


@pytest.mark.parametrize("better, worse, alike, word", [
    ((0.95, 0.90, 0.92), (0.1, 0.2, 0.3), False, "shown"), ((0.1, 0.2), (0.9, 0.9), False, "refuted"),
    ((0.9, 0.91, 0.92), (0.91, 0.90, 0.92), False, "equal within the margin"),
    ((0.9, 0.91, 0.92), (0.9, 0.91, 0.92), True, "equal within the margin"),
    ((0.9, 0.9, 0.9), (0.1, 0.2, 0.3), True, "refuted"),
    ((0.9, 0.4), (0.6, 0.65), False, "not told apart"),                 # the seeds contradict each other
    ((0.95,), (0.1,), False, "not told apart")])                        # one seed is no evidence
def test_a_claim_is_shown_refuted_equal_or_not_told_apart(better, worse, alike, word):
    """By an interval of paired differences; two rows that the paper calls alike are refuted by a gap."""
    claim = ablate.Claim("a", "b", "toy motion %", 5, alike)
    differences = [clips(a) - clips(b) for a, b in zip(better, worse)]
    found, difference, (low, high) = ablate.verdict(claim, differences)
    assert found == word and low <= difference <= high
    assert difference == pytest.approx(100 * (np.mean(better) - np.mean(worse)))


def test_pairing_tells_apart_what_shares_do_not():
    """The same shares, 60 % and 65 %: where the prompts that fail are the same ones, the gap is seen; where
    they are others, it is not."""
    rng, claim = np.random.default_rng(0), ablate.Claim("a", "b", "toy motion %", 1)
    one, other = [clips(0.65) - clips(0.60)] * 3, [clips(0.65) - rng.permutation(clips(0.60))] * 3
    assert ablate.verdict(claim, one)[0] == "shown" and ablate.verdict(claim, other)[0] == "not told apart"


def test_what_is_measured_once_a_run_has_students_interval():
    """Three seeds, mean 2, deviation 1: 2 +- 4.303 / sqrt(3)."""
    low, high = paired_interval([np.array([value]) for value in (1.0, 2.0, 3.0)])
    assert (low, high) == pytest.approx((2 - 4.303 / 3 ** 0.5, 2 + 4.303 / 3 ** 0.5))


def test_the_loss_share_is_of_what_a_constant_would_lose(tmp_path):
    """A model that says nothing loses a velocity's variance: 1 for noise and 4 for latents of twice images'
    deviation; one that loses half of that has a share of a half. The training loss is its last fifth's."""
    (tmp_path / "videodit").mkdir()
    lines = [{"step": step, "videodit": 9.0 - step} for step in range(1, 9)]
    lines[5] |= {"valid_t0.06": 2.0, "valid_t0.94": 3.0}
    (tmp_path / "videodit" / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = presets.Config(stage="videodit", out=str(tmp_path))
    found = ablate.measures(config, {"recon": {"z_std": 3.0, "z_k_std": 1.5}})
    assert found == {"training loss": (1.5, None), "held-out loss": (2.5, None), "loss share": (0.5, None)}


def test_every_claim_is_of_rows_and_measures_that_exist():
    measures = {*ablate.PER_CLIP, "nearest dB", "PSNR", "D_k(z) dB", "loss share"}
    for key, claims in ablate.CLAIMS.items():
        names = {row.name for row in ablate.TABLES[key].rows}
        for claim in claims:
            assert {claim.better, claim.worse} <= names and claim.margin > 0 and claim.measure in measures


def results(motion, *seeds):
    """What run_table would return for one row with these toy FVDs, and this share of motions."""
    answers = "".join("1" if right else "0" for right in clips(motion, 20))
    each = {row: dict.fromkeys(("subject", "colour", "scene", "motion", "still", "reversed"), answers)
            for row in (*ablate.CLIPS, *ablate.IMAGES, "video_image_only")}
    return [{"params": 1_500_000, "steps": 8, "cpu_s": 1.0, "ours": {
        "toy": {"each": each}, "recon": {"psnr": 30.0},
        "fvd": {"metric": "toy fvd", "fvd": value, "standard_error": 0.25},
        "fvd@4": {"metric": "toy fvd", "fvd": 2 * value, "standard_error": 0.25}}} for value in seeds]


def test_the_table_shows_the_papers_numbers_beside_ours(tmp_path, capsys):
    """Mean, spread, standard error, parameters; the verdict; a file for programs, one for people, and the
    chart, all small."""
    args = ablate.parse(["videodit-5", "--config", "tiny", "--out", str(tmp_path / "o"), "--seeds", "3",
                         "--results", str(tmp_path)])
    ablate.show(args, [results(0.1, 11.0, 12.5, 14.0), results(0.9, 1.0, 2.0, 3.0)])
    out = capsys.readouterr().out
    assert re.search(r"2D patchify +\| 756.25 +\| 27.85 +\| 1.50 .*12.5 \(11 to 14\) \+- 0.25", out)
    assert "our toy FVD" in out and "paper's FVD" in out and "556.42" in out
    assert "of videodit-256, ours of tiny: only the order" in out
    assert "- shown: toy motion %, 3D patchify 90 against 2D patchify 10: +80 (95 %:" in out
    found = json.loads((tmp_path / "videodit-5.json").read_text())
    assert found["rows"][0]["ours"]["toy FVD"] == {"seeds": [11.0, 12.5, 14.0], "standard_error": [0.25] * 3}
    assert found["seeds"] == 3 and "torch" in found["machine"] and found["rows"][1]["cpu_s"] == [1.0] * 3
    assert found["rows"][0]["curve"] == {"4": [22.0, 25.0, 28.0]}
    assert found["claims"][0]["verdict"] == "shown" and found["claims"][0]["margin"] == 5
    assert (tmp_path / "videodit-5.md").read_text() in out
    assert 0 < (tmp_path / "videodit-5.png").stat().st_size < 60_000


def test_lattes_figures_are_curves(ran, tmp_path):
    """FVD of states that train.py keeps: 20 steps in 4 points are 5, 10, 15 and the end; so many are kept."""
    args = ablate.parse(["latte-5a", "--config", "tiny", "--out", str(tmp_path)])
    found = ablate.run_table(args)
    assert [name for name in found[0][0]["ours"] if "fvd" in name] == ["fvd", "fvd@5", "fvd@10", "fvd@15"]
    command = next(command for command in ran if command[0] == "train.py" and "latte" in command)
    assert command[-4:] == ["--save_every", "5", "--keep", "4"]
    early = [command[2] for command in ran if command[1] == "sample"]
    assert early[1].endswith("/0/latte/0000005")


def test_what_the_rows_drew_is_laid_out(tmp_path, capsys):
    """VideoDiT Figs. 3, 5, 7: one above the other, by their names."""
    args = ablate.parse(["videodit-3", "--config", "tiny", "--out", str(tmp_path)])
    for row in ablate.TABLES["videodit-3"].rows:
        for name in ("images.png", "untrained/0000-a-cat.png"):
            path = ablate.row_job(args, row).folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30)).save(path)
    ablate.draw_rows(args)
    for kind in ("images", "untrained"):
        assert Image.open(tmp_path / "tiny" / f"videodit-3-{kind}.png").size[1] > 120
    assert "recon" not in capsys.readouterr().out


def test_rows_that_are_equal_are_drawn_and_not_told_apart(tmp_path):
    """No drawing fails for it; one seed is no evidence."""
    args = ablate.parse(["videodit-5", "--config", "tiny", "--out", str(tmp_path)])
    ablate.show(args, [results(0.5, 1.0), results(0.5, 1.0)])
    text = (tmp_path / "tiny" / "videodit-5.md").read_text()
    assert "One seed: no evidence" in text and "- not told apart: toy motion %" in text
    assert (tmp_path / "tiny" / "videodit-5.png").is_file()


def test_positions_are_no_parameters(tmp_path):
    """Table 4's 2.03 B and 4.15 B, Latte's 673.68 M: fixed tables lie in the files, and are not counted."""
    save_file({"image.pos_embed": torch.zeros(1, 9, 4), "temp_embed": torch.zeros(1, 3, 4),
               "image.weight": torch.zeros(4, 4)}, tmp_path / "net.safetensors")
    assert ablate.count_parameters(tmp_path / "net.safetensors") == 16


# ------------------------------------------------------------ what cannot work

@pytest.mark.parametrize("words, hint", [
    (["videodit-7"], "videodit-6"), (["latte-7", "--dry"], "--dry-run"),
    (["videodit-3", "--config", "videodit-512"], "no dpvae and videodit .* give small, or videodit-256"),
    (["latte-7", "--train", "--steps '5"], "--train.*--steps '5"),
    (["latte-7", "-n", "1"], "at least 2"), (["latte-7", "--seeds", "0"], "--seeds 0: must be at least")])
def test_a_wrong_flag_is_named(words, hint):
    """One line with the flag and the way out."""
    with pytest.raises(UserError, match=hint):
        ablate.parse(words)


VIDEOS = "--data . --lpips_weight 0"


@pytest.mark.parametrize("words, hint", [
    (["latte-5e"], "latte-5e at --config small needs videos; .*--data FOLDER"),
    (["latte-7", "--real", "UCF101"], "the toy world is compared with its own"),
    (["videodit-5", "--train", "--stepps 5"], "--steps"),
    (["latte-mask", "--config", "latte-ffs", "--train", "--data ."], "give --joint_images 8"),
    (["latte-5d", "--config", "latte-ffs", "--train", "--data ."], "--init DiT-XL-2-256x256.pt"),
    (["latte-5a", "--config", "latte-ffs", "--train", "--data ."], "i3d_torchscript.pt"),
    (["videodit-6", "--config", "videodit-256", "--train", "--data ."], "JourneyDB.*--images FOLDER"),
    (["videodit-4", "--config", "videodit-256", "--train", VIDEOS], "--real UCF101"),
    (["videodit-1", "--config", "videodit-256", "--train", VIDEOS, "--videos", "gone"], "--videos gone"),
    (["videodit-1", "--config", "videodit-256", "--train", VIDEOS], "alexnet")])
def test_what_cannot_work_is_said_before_anything_runs(ran, words, hint, monkeypatch, tmp_path):
    """Not after the first row has trained for a day: flags, data, weights, the networks that look."""
    monkeypatch.setattr(ablate, "DETECTORS", tmp_path)
    with pytest.raises(UserError, match=hint):
        ablate.run_table(ablate.parse(words))
    assert ran == []


def test_a_torchscript_is_trusted_before_training_or_not_at_all(ran, tmp_path, monkeypatch):
    """Its file is there, and running it is not allowed: said now, with the flag; with it, eval.py is told."""
    monkeypatch.setattr(ablate, "DETECTORS", tmp_path)
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / pretrained.FILES["i3d"]))
    words = ["latte-5a", "--config", "latte-ffs", "--train", "--data ."]
    with pytest.raises(UserError, match="--trust-torchscript"):
        ablate.run_table(ablate.parse(words))
    args = ablate.parse([*words, "--trust-torchscript"])
    job = ablate.row_job(args, ablate.TABLES["latte-5a"].rows[0])
    assert ran == [] and dict(job.measuring)["fvd"][-1] == "--trust-torchscript"


def test_fig_5_the_image_models_latents_are_decoded_by_a_row_of_table_3(sd3, tmp_path):
    """Before any training of VideoDiT: the released image model attends over all frames, our D decodes."""
    vae = pretrained.vae_at(sd3[0])
    save_network(tmp_path / "dpvae.safetensors", DPVAE.from_image(vae))
    args = ablate.parse(["videodit-3", "--config", "videodit-256", "--train", f"--init {sd3[0]}"])
    flags = ["--size", "32", "--frames", "8", "--data", "X", "--out", str(tmp_path)]
    command = ablate.untrained_command(ablate.config_of(args, "videodit", flags))
    sample.main(["", *command[2:], "--steps", "1"])
    clip, = (tmp_path / "untrained").glob("*.mp4")
    assert len(read_video(clip)) == 8


def test_a_command_that_fails_ends_the_table(tmp_path, monkeypatch):
    """The command is named; what it said is on the screen."""
    (tmp_path / "eval.py").write_text("raise SystemExit(2)")
    monkeypatch.setattr(ablate, "HERE", tmp_path)
    with pytest.raises(UserError, match="eval.py nothing"):
        ablate.run(ablate.parse(["videodit-5"]), ["eval.py", "nothing"])


@pytest.mark.slow
@pytest.mark.parametrize("key, seeds", [("videodit-5", 2), ("latte-5a", 1)])
def test_a_table_runs_end_to_end(key, seeds, tmp_path, capsys):
    """At tiny size: every stage, every measurement, a table; again, nothing is left to do."""
    words = [key, "--config", "tiny", "--out", str(tmp_path), "-n", "4", "--seeds", str(seeds),
             "--curve", "2" if key == "latte-5a" else "0", "--train", "--steps 2 --items 16"]
    ablate.main(words)
    out = capsys.readouterr().out
    assert "our toy FVD" in out and "our toy FID" in out and "our toy motion %" in out
    assert key == "latte-5a" or ("our toy LPIPS" in out and "our toy FID images" in out and "756.25" in out)
    results = [json.loads(path.read_text())["ours"] for path in tmp_path.glob("tiny/*/*/result.json")]
    assert len(results) == 2 * seeds and all(result["fvd"]["fvd"] > 0 for result in results)
    assert key == "videodit-5" or all(result["fvd@1"]["fvd"] > 0 for result in results)
    assert (tmp_path / "tiny" / f"{key}-samples.png").is_file()
    ablate.main(words)
    assert capsys.readouterr().out.strip() == out[out.rindex(f"{key}: "):].strip()


class Looker(torch.nn.Module):
    """Stands for every published network: six numbers of a clip or image, a distance of two images."""

    def forward(self, images, other=None, bias=True):
        if other is not None:
            return (images - other).square().mean((1, 2, 3))                                # (N,)
        halves = torch.stack([half.flatten(2).mean(2) for half in images.chunk(2, -1)], 2)  # (N,3,2)
        return halves.flatten(1)                                                            # (N,6)

    features = forward


@pytest.fixture
def published(tmp_path, monkeypatch, capsys):
    """(root, words that all tables need): videos, UCF101's tree, and commands that run inside this process,
    where stand-ins take the place of the networks that look."""
    import train
    for number in range(4):
        for folder in ("clips", "UCF101/Archery", "UCF101/YoYo"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            clip = toy_world.render(toy_world.sample_spec(7, number), 26, 48)
            save_video(tmp_path / folder / f"v_{number}.mp4", clip)
    (tmp_path / "one").mkdir()
    save_video(tmp_path / "one" / "a.mp4", toy_world.render(toy_world.sample_spec(1, 0), 8, 48))
    looker = lambda *args: Looker()
    monkeypatch.setattr(eval, "load_detector", looker)
    monkeypatch.setattr(ablate, "load_detector", looker)
    monkeypatch.setattr(eval, "DETECTORS", tmp_path)
    for name in eval.FILES.values():
        (tmp_path / name).write_bytes(b"a network")

    def run(args, command):
        scripts = {"train.py": train, "eval.py": eval, "sample.py": sample}
        scripts[command[0]].main(command[1:])
        last = (capsys.readouterr().out.strip().splitlines() or [""])[-1]
        return json.loads(last) if last.startswith("{") else {}
    monkeypatch.setattr(ablate, "run", run)
    return tmp_path, ["-n", "10", "--out", str(tmp_path / "out"), "--videos", str(tmp_path / "one")]


SMALL = ("--size 32 --frames 8 --steps 2 --batch 2 --warmup 1 --workers 0 --no-compile --no-checkpointing "
         "--no-bf16 --log_every 1 --preview_every 9 --windows 2 ")


@pytest.mark.slow
def test_a_table_of_videodit_runs_in_the_published_layout(published, sd3, capsys):
    """From Stable Diffusion 3's file and videos to FVD and IS by UCF101, images, and the printed table."""
    root, words = published
    vgg = {name: tensor for name, tensor in LPIPS("vgg").state_dict().items() if name.startswith("features.")}
    torch.save(vgg, root / "vgg16.pth")
    flags = (f"{SMALL} --init {sd3[0]} --data {root / 'clips'} --disc.width 8 --disc.layers 1 --long 0 "
             f"--lpips {root / 'vgg16.pth'}")
    ablate.main(["videodit-5", "--config", "videodit-256", *words, "--real", str(root / "UCF101"),
                 "--train", flags])
    out = capsys.readouterr().out
    assert re.search(r"2D patchify +\| 756.25 +\| 27.85 +\| [0-9.]+ +\| [0-9.]+", out)
    assert all(f"our {name}" in out for name in ("FVD", "IS", "PSNR", "LPIPS"))
    for kind in ("recon", "samples", "images"):
        assert (root / "out" / "videodit-256" / f"videodit-5-{kind}.png").is_file()


@pytest.mark.slow
def test_a_table_of_latte_runs_in_the_published_layout(published, capsys):
    """From Stable Diffusion 1's VAE and videos to FVD over iterations, FID, and the printed table."""
    root, words = published
    vae = KLVAE(KLVAEConfig(4, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, quant_conv=True))
    (root / "vae").mkdir()
    save_file(vae.state_dict(), root / "vae" / "diffusion_pytorch_model.safetensors")
    flags = (f"{SMALL} --data {root / 'clips'} --vae_weights {root / 'vae'} --stride 1 --latte.depth 2 "
             "--latte.width 32 --latte.heads 2 --latte.frames 8 --latte.input_size 4")
    ablate.main(["latte-5a", "--config", "latte-ffs", *words, "--curve", "2", "--train", flags])
    out = capsys.readouterr().out
    assert re.search(r"compression +\| notably behind", out) and "our FVD" in out and "our FID" in out
    found = json.loads((root / "out" / "latte-ffs" / "latte-5a.json").read_text())
    assert all(len(row["curve"]["1"]) == 1 and row["params"] > 0 for row in found["rows"])
