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
import pretrained
import presets
from support import toy_world
from support.cli import UserError
from vae import KLVAE, KLVAEConfig
from support.video_io import save_video

VIDEODIT = ["videodit-1", "videodit-2", "videodit-3", "videodit-4", "videodit-5", "videodit-6"]
LATTE = ["latte-3", *(f"latte-5{part}" for part in "abcdef"), "latte-7", "latte-mask"]


def dry(capsys, *words):
    """The commands of a dry run, each a list of words."""
    ablate.main([*words, "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line[line.index("python "):])[1:] for line in lines if "python " in line]


def trained(command):
    """What train.py leaves, as far as ablate.py looks: the stage's weights, made by this command."""
    stage, folder = (command[command.index(flag) + 1] for flag in ("--stage", "--out"))
    if not Path(folder, stage).exists():                # a finished stage writes no weights again
        Path(folder, stage).mkdir(parents=True)
        save_file({"weight": torch.zeros(3, 4)}, Path(folder, f"{stage}.safetensors"),
                  {"by": shlex.join(command)})


@pytest.fixture
def ran(monkeypatch):
    """Commands are written down instead of run; training leaves a file, judging a number: the seed's."""
    commands = []

    def run(args, command):
        commands.append(command)
        if command[0] == "train.py":
            trained(command)
        if command[1] in ("fvd", "fid"):
            seed = int(re.search(r"/(\d)/(?:samples|pictures)", " ".join(command))[1])
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
    assert ablate.listed() == {key: len(table.rows) for key, table in ablate.TABLES.items()}


@pytest.mark.parametrize("config", ["tiny", "small", "toy", "videodit-256", "videodit-512", "latte-ffs",
                                    "latte-ucf101", "latte-t2v"])
def test_a_dry_run_prints_commands_that_exist(config, capsys):
    """Every flag of every row is one of train.py's, and every judgement one of eval.py's commands."""
    init = "--init FILE" * config.startswith("videodit")
    commands = dry(capsys, "all", "--config", config, "--train", init)
    for script, *words in commands:
        if script == "train.py":
            assert len(presets.parse(words)) == 1
        else:
            assert words[0] in ("toy", "fvd", "fid", "is", "recon", "sample")
    assert commands


def test_real_clips_have_the_stride_of_the_training(capsys):
    """Latte Fig. 5e compares intervals of sampling: each row beside real clips that move as fast as its own.
    FID looks at every real frame, as its published form does."""
    words = "--config latte-ffs --dry-run --train".split() + ["--data /tmp --vae_weights /tmp"]
    trained, real = [], []
    for script, *command in dry(capsys, "latte-5e", *words):
        if script == "train.py":
            trained.append(presets.parse(command)[0].stride)
        elif command[0] == "fvd":
            real.append((trained[-1], int(command[command.index("--real_stride") + 1])))
        elif command[0] == "fid":
            assert "--full" in command and "--real_stride" not in command
    assert set(real) == {(1, 1), (3, 3), (6, 6)} and real == sorted(real)


def test_all_is_what_the_preset_and_its_data_can_show():
    """Findings: `all` died at Fig. 5d, hours in, since the toy has no DiT to start from."""
    asked = lambda *words: ablate.tables(ablate.parse(["all", *words]))
    toy, films = asked(), asked("--config", "latte-ffs", "--train", "--data /tmp")
    assert not {"latte-5d", "latte-5e"} & {*toy} and {"latte-5f", "latte-mask", "videodit-2"} <= {*toy}
    assert {"latte-5d", "latte-5e"} <= {*films} and "latte-mask" not in films
    assert "videodit-2" not in asked("--config", "videodit-256")
    with pytest.raises(UserError, match="latte-mask, or no pictures beside its clips; give tiny or small"):
        ablate.parse(["latte-mask", "--config", "latte-ffs"])


@pytest.mark.parametrize("key", VIDEODIT + LATTE)
def test_rows_of_a_table_differ_in_what_it_is_about(key):
    """No two rows share a folder, unless they are the same run; their configurations differ."""
    args = ablate.parse([key])
    jobs = [ablate.row_job(args, key, row) for row in ablate.TABLES[key].rows]
    configs = [[presets.parse(command[1:])[0] for command in job.training] for job in jobs]
    assert len({job.folder for job in jobs}) == len({str(stages).replace(str(job.folder), "")
                                                     for job, stages in zip(jobs, configs)}) == len(jobs)


def test_the_rows_of_table_3_are_the_four_corners():
    """VideoDiT Table 3: with and without the 2D VAE, with and without regularization."""
    args, rows = ablate.parse(["videodit-3"]), ablate.TABLES["videodit-3"].rows
    corners = []
    for row in rows:
        job = ablate.row_job(args, "videodit-3", row)
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
        ablate.run_table(ablate.parse(words), key)
    videodits = [shlex.join(command) for command in ran if "train.py" in command and "videodit" in command]
    assert len(videodits) == len(set(videodits)) == 8       # 4 runs, one of them in each table, 2 seeds
    dpvaes = [command for command in ran if "train.py" in command and "dpvae" in command]
    assert len(dpvaes) == 3                                 # asked for by each table; train.py does it once
    for seed in "01":
        weights = tmp_path / "tiny" / "videodit-p_video-1" / seed / "dpvae.safetensors"
        assert made_by(weights) == made_by(tmp_path / "tiny" / "base" / "dpvae.safetensors")


def test_a_row_keeps_the_dpvae_that_it_trained(ran, tmp_path):
    """Table 3's rows have a DP-VAE of their own: the shared one must not take its place on a restart."""
    args = ablate.parse(["videodit-3", "--config", "tiny", "--out", str(tmp_path)])
    ablate.run_table(args, "videodit-3")
    own = tmp_path / "tiny" / "videodit-p_video-1-reg_weight-0" / "0"
    (own / "result.json").unlink()
    ablate.run_table(args, "videodit-3")
    assert "--reg_weight 0" in made_by(own / "dpvae.safetensors")


def test_finished_rows_are_kept(ran, tmp_path):
    """Restart: nothing is run again, and only the row without a result is."""
    args = ablate.parse(["latte-5f", "--config", "tiny", "--out", str(tmp_path)])
    first = ablate.run_table(args, "latte-5f")
    ran.clear()
    assert ablate.run_table(args, "latte-5f") == first and len(first) == 5
    assert first[0][0]["ours"]["fvd"] == {"metric": "toy fvd", "fvd": 3.0, "standard_error": 0.5}
    assert first[0][0]["params"] == 12 and ran == []
    (tmp_path / "tiny" / "latte-joint_images-0-latte.variant-3" / "0" / "result.json").unlink()
    ablate.run_table(args, "latte-5f")
    again = [command for command in ran if "--latte.variant" in command]
    assert len(again) == 1 and again[0][again[0].index("--latte.variant") + 1] == "3"


def test_a_result_of_other_commands_is_refused(ran, tmp_path):
    """A row that was trained for 5 steps is not the row that was asked for."""
    words = ["videodit-5", "--config", "tiny", "--out", str(tmp_path)]
    ablate.run_table(ablate.parse([*words, "--train", "--steps 5"]), "videodit-5")
    with pytest.raises(UserError, match="another --out"):
        ablate.run_table(ablate.parse(words), "videodit-5")


def test_a_base_of_other_commands_is_refused(ran, tmp_path):
    """What rows share is a part of what they are: other steps of the VAE, another result."""
    words = ["videodit-5", "--config", "tiny", "--out", str(tmp_path), "--train"]
    ablate.run_table(ablate.parse([*words, "--vae.ch 8"]), "videodit-5")
    with pytest.raises(UserError, match="of other commands"):
        ablate.run_table(ablate.parse([*words, "--vae.ch 16"]), "videodit-5")


@pytest.mark.parametrize("key, train, says", [
    ("latte-3", "--joint_images 2", "--joint_images would be the same in every row; latte-3 sets it"),
    ("videodit-5", "--patchify_3d", "--patchify_3d"), ("videodit-6", "--p_video=0.5", "--p_video"),
    ("videodit-4", "--seed 1", "give --seeds"), ("videodit-4", "--out x", "give --out"),
    ("videodit-4", "--config toy", "give --config"), ("latte-5a", "--save_every 7", "ablate.py sets it")])
def test_what_a_row_is_about_cannot_be_overridden(ran, key, train, says, tmp_path):
    """However the flag is written; in other tables the same flag is allowed."""
    with pytest.raises(UserError, match=says):
        words = [key, "--config", "tiny", "--out", str(tmp_path), "--train", train]
        ablate.run_table(ablate.parse(words), key)
    assert ran == []
    ablate.run_table(ablate.parse(["latte-5a", "--config", "tiny", "--out", str(tmp_path), "--train",
                                   "--p_video 0.5"]), "latte-5a")


# ------------------------------------------------------------ seeds and spread

def test_a_seed_has_its_folder_and_its_clips(ran, tmp_path):
    """Base by seed 0; the rest by the row's: training, its cache of latents, samples, and their scores."""
    args = ablate.parse(["videodit-5", "--config", "tiny", "--out", str(tmp_path), "--seeds", "3"])
    results = ablate.run_table(args, "videodit-5")
    assert [[found["ours"]["fvd"]["fvd"] for found in row] for row in results] == [[3, 4, 5]] * 2
    value = lambda command, flag: command[command.index(flag) + 1]
    for command in ran:
        trains = command[0] == "train.py"
        folder = Path(value(command, "--out") if trains else value(command, "-o") if "-o" in command else "")
        seed = next((part for part in folder.parts[::-1] if part in ("0", "1", "2")), "0")
        if trains or "-o" in command:
            assert value(command, "--seed") == seed
        if trains:
            assert value(command, "--cache").endswith(f"cache-{seed}" if seed != "0" else "cache")


def test_told_apart_is_beyond_the_spread():
    """All of one row below all of the other; one number tells nothing."""
    assert ablate.told_apart([1, 2, 3], [4, 5, 6]) and ablate.told_apart([4, 5, 6], [1, 2, 3])
    assert not ablate.told_apart([1, 2, 4.5], [4, 5, 6]) and not ablate.told_apart([1], [9])


@pytest.mark.parametrize("seeds, share", [(1, 0), (2, 1 / 3), (3, 0.1), (4, 2 / 70)])
def test_how_often_alike_rows_are_told_apart(seeds, share):
    """2 of the ways to deal 2n numbers to two rows: counted, one by one, for n of them."""
    import itertools
    deals = list(itertools.combinations(range(2 * seeds), seeds))
    apart = [set(deal) in ({*range(seeds)}, {*range(seeds, 2 * seeds)}) for deal in deals]
    assert ablate.deceived(seeds) == pytest.approx(share)
    assert seeds == 1 or np.mean(apart) == pytest.approx(share)


def test_made_up_tables_deceive_as_often_as_counted(tmp_path):
    """The demo's known answer; and a larger difference is seen more often."""
    found = ablate.draw_demo(tmp_path / "ablate.png")
    for measured, exact, shares in found.values():
        assert measured == pytest.approx(exact, abs=0.015) and shares[-1] > 0.8 > shares[0]
    assert Image.open(tmp_path / "ablate.png").size[0] > 900


def results(*seeds):
    """What run_table would return for one row with these toy FVDs."""
    return [{"params": 1_500_000, "steps": 8, "cpu_s": 1.0, "commands": [], "ours": {
        "toy": {"video_seen": {"subject": 1.0, "motion": 0.5}},
        "fvd": {"metric": "toy fvd", "fvd": value, "standard_error": 0.25}, "recon": {"psnr": 30.0},
        "fvd@4": {"metric": "toy fvd", "fvd": 2 * value, "standard_error": 0.25}}} for value in seeds]


def test_the_table_shows_the_papers_numbers_beside_ours(tmp_path, capsys):
    """Mean, spread, eval.py's own error, parameters; rows in order, < beyond the spread; a file for programs,
    one for people, and the chart, all small."""
    args = ablate.parse(["videodit-5", "--config", "tiny", "--out", str(tmp_path / "o"), "--seeds", "3",
                         "--results", str(tmp_path)])
    ablate.show(args, "videodit-5", [results(11.0, 12.5, 14.0), results(1.0, 2.0, 3.0)])
    out = capsys.readouterr().out
    assert re.search(r"2D patchify +\| 756.25 +\| 27.85 +\| 1.50 .*12.5 \(11 to 14\) \+- 0.25", out)
    assert "our toy FVD" in out and "paper's FVD" in out and "556.42" in out
    assert "- toy FVD: 3D patchify < 2D patchify" in out and "- PSNR: 2D patchify = 3D patchify" in out
    assert "10% of tables" in out and "of videodit-256, ours of tiny: only the order" in out
    found = json.loads((tmp_path / "videodit-5.json").read_text())
    assert found["rows"][0]["ours"]["toy FVD"] == {"seeds": [11.0, 12.5, 14.0], "standard_error": [0.25] * 3}
    assert found["seeds"] == 3 and "torch" in found["machine"] and found["rows"][1]["cpu_s"] == [1.0] * 3
    assert found["rows"][0]["curve"] == {"4": [22.0, 25.0, 28.0]}
    assert (tmp_path / "videodit-5.md").read_text() in out
    assert 0 < (tmp_path / "videodit-5.png").stat().st_size < 60_000


def test_one_seed_is_no_evidence(tmp_path, capsys):
    args = ablate.parse(["videodit-5", "--config", "tiny", "--out", str(tmp_path)])
    ablate.show(args, "videodit-5", [results(11.0), results(1.0)])
    out = capsys.readouterr().out
    assert "One seed: an order, no evidence" in out and "3D patchify ~ 2D patchify" in out


def test_lattes_figures_are_curves(ran, tmp_path):
    """FVD of states that train.py keeps: 20 steps in 4 points are 5, 10, 15 and the end; so many are kept."""
    args = ablate.parse(["latte-5a", "--config", "tiny", "--out", str(tmp_path)])
    found = ablate.run_table(args, "latte-5a")
    assert [name for name in found[0][0]["ours"] if "fvd" in name] == ["fvd", "fvd@5", "fvd@10", "fvd@15"]
    command = next(command for command in ran if command[0] == "train.py" and "latte" in command)
    assert command[-4:] == ["--save_every", "5", "--keep", "4"]
    early = [command[2] for command in ran if command[1] == "sample"]
    assert early[1].endswith("/0/latte/0000005")


def test_the_rows_pictures_are_laid_out(tmp_path, capsys):
    """VideoDiT Figs. 3, 5, 7: one above the other, by their names."""
    args = ablate.parse(["videodit-6", "--config", "tiny", "--out", str(tmp_path)])
    for row in ablate.TABLES["videodit-6"].rows:
        folder = ablate.row_job(args, "videodit-6", row).folder
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(folder / "pictures.png")
    ablate.draw_pictures(args, "videodit-6")
    assert Image.open(tmp_path / "tiny" / "videodit-6-pictures.png").size[1] > 60
    assert "recon" not in capsys.readouterr().out


# ------------------------------------------------------------ what cannot work

@pytest.mark.parametrize("words, hint", [
    (["videodit-7"], "videodit-6"), (["videodit-3", "--config", "latte-ffs"], "videodit-256"),
    (["videodit-3", "--config", "videodit-512"], "videodit-320"),
    (["latte-7", "--dry"], "--dry-run"), (["latte-7", "--config", "tyni"], "tiny"),
    (["latte-7", "-n", "1"], "at least 2"), (["latte-7", "--seeds", "0"], "--seeds 0: must be at least 1"),
    (["videodit-2", "--config", "videodit-256"], "--config videodit-512.*videodit-6")])
def test_a_wrong_flag_is_named(words, hint):
    """One line with the flag and the way out."""
    with pytest.raises(UserError, match=hint):
        ablate.parse(words)


@pytest.mark.parametrize("words, hint", [
    (["latte-5e"], "toy world"), (["videodit-5", "--train", "--stepps 5"], "--steps"),
    (["latte-5d", "--config", "latte-ffs", "--train", "--data ."], "--image_model DiT-XL-2-256x256.pt"),
    (["latte-5a", "--config", "latte-ffs"], "--data FOLDER"),
    (["latte-5a", "--config", "latte-ffs", "--train", "--data gone"], "--data gone.*in --train"),
    (["latte-5a", "--config", "latte-ffs", "--train", "--data . --vae_weights gone"], "--vae_weights gone"),
    (["latte-5a", "--config", "latte-ffs", "--train", "--data . --accumulate 3"], "multiple of --accumul"),
    (["latte-5a", "--config", "latte-ffs", "--train", "--data ."], "i3d_torchscript.pt"),
    (["videodit-4", "--config", "videodit-256", "--train", "--data ."], "--real UCF101"),
    (["videodit-4", "--config", "videodit-256", "--train", "--data .", "--real", "gone"], "--real gone"),
    (["videodit-1", "--config", "videodit-256", "--train", "--data .", "--films", "gone"], "--films gone"),
    (["videodit-1", "--config", "videodit-256", "--train", "--data ."], "alexnet")])
def test_what_cannot_work_is_said_before_anything_runs(ran, words, hint, monkeypatch, tmp_path):
    """Not after the first row has trained for a day: flags, data, weights, the networks that judge."""
    monkeypatch.setattr(ablate, "DETECTORS", tmp_path)
    with pytest.raises(UserError, match=hint):
        ablate.run_table(ablate.parse(words), words[0])
    assert ran == []


def test_a_torchscript_is_trusted_before_training_or_not_at_all(ran, tmp_path):
    """Its file is there, and running it is not allowed: said now, with the flag; with it, eval.py is told."""
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            return x
    for kind in ("i3d", "inception"):
        torch.jit.script(Net()).save(str(tmp_path / pretrained.FILES[kind]))
    words = ["latte-5a", "--config", "latte-ffs", "--train", "--data .", "--detectors", str(tmp_path)]
    with pytest.raises(UserError, match="--trust-torchscript"):
        ablate.run_table(ablate.parse(words), "latte-5a")
    assert ran == []
    args = ablate.parse([*words, "--trust-torchscript"])
    job = ablate.row_job(args, "latte-5a", ablate.TABLES["latte-5a"].rows[0])
    fvd = dict(job.judging)["fvd"]
    assert fvd[-3:] == ["--weights", str(tmp_path / "i3d_torchscript.pt"), "--trust-torchscript"]


def test_a_command_that_fails_ends_the_table(tmp_path, capsys):
    """The command is named; what it said is on the screen."""
    with pytest.raises(UserError, match="eval.py nothing"):
        ablate.run(ablate.parse(["videodit-5"]), ["eval.py", "nothing"])


@pytest.mark.slow
@pytest.mark.parametrize("key", ["videodit-5", "latte-5a"])
def test_a_table_runs_end_to_end(key, tmp_path, capsys):
    """At tiny size with two seeds: every stage, every judgement, a table; again, nothing is left to do."""
    words = [key, "--config", "tiny", "--out", str(tmp_path), "-n", "4", "--seeds", "2", "--nearest", "0",
             "--curve", "2" if key == "latte-5a" else "0", "--train", "--steps 2 --items 16"]
    ablate.main(words)
    out = capsys.readouterr().out
    assert "our toy FVD" in out and "our toy FID" in out and "our toy motion %" in out
    assert key == "latte-5a" or ("our toy LPIPS" in out and "our toy FID pictures" in out and "756.25" in out)
    results = [json.loads(path.read_text())["ours"] for path in tmp_path.glob("tiny/*/*/result.json")]
    assert len(results) == 4 and all(result["fvd"]["fvd"] > 0 for result in results)
    assert key == "videodit-5" or all(result["fvd@1"]["fvd"] > 0 for result in results)
    assert (tmp_path / "tiny" / f"{key}-samples.png").is_file()
    ablate.main(words)
    assert capsys.readouterr().out.strip() == out[out.rindex(f"{key}: "):].strip()


class Looker(torch.nn.Module):
    """Stands for every published network: six numbers of a clip or picture, a distance of two pictures."""

    def forward(self, images, other=None, bias=True):
        if other is not None:
            return (images - other).square().mean((1, 2, 3))                                # (N,)
        halves = torch.stack([half.flatten(2).mean(2) for half in images.chunk(2, -1)], 2)  # (N,3,2)
        return halves.flatten(1)                                                            # (N,6)

    features = forward


@pytest.fixture
def published(tmp_path, monkeypatch, capsys):
    """(root, words that all tables need): films, UCF101's tree, and commands that run inside this process,
    where stand-ins take the place of the networks that judge."""
    import eval
    import train
    for number in range(4):
        for folder in ("films", "UCF101/Archery", "UCF101/YoYo"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            save_video(tmp_path / folder / f"v_{number}.mp4", toy_world.render(toy_world.sample_spec(7, number), 26, 48))
    (tmp_path / "one").mkdir()
    save_video(tmp_path / "one" / "a.mp4", toy_world.render(toy_world.sample_spec(1, 0), 8, 48))
    looker = lambda *args: Looker()
    monkeypatch.setattr(eval, "load_detector", looker)
    monkeypatch.setattr(ablate, "load_detector", looker)
    (tmp_path / "detectors").mkdir()
    for name in pretrained.FILES.values():
        (tmp_path / "detectors" / name).write_bytes(b"a network")

    def run(args, command):
        (train if command[0] == "train.py" else eval).main(command[1:])
        last = (capsys.readouterr().out.strip().splitlines() or [""])[-1]
        return json.loads(last) if last.startswith("{") else {}
    monkeypatch.setattr(ablate, "run", run)
    return tmp_path, ["-n", "4", "--out", str(tmp_path / "out"), "--films", str(tmp_path / "one"),
                      "--batch", "2", "--detectors", str(tmp_path / "detectors"), "--trust-torchscript"]


SMALL = ("--size 32 --frames 8 --steps 2 --batch 2 --warmup 1 --no-compile --no-checkpointing --no-bf16 "
         "--log_every 1 --preview_every 9 --windows 2 ")


@pytest.mark.slow
def test_a_table_of_videodit_runs_in_the_published_layout(published, sd3, capsys):
    """From Stable Diffusion 3's file and films to FVD and IS by UCF101, pictures, and the printed table."""
    root, words = published
    flags = f"{SMALL} --init {sd3[0]} --data {root / 'films'} --disc.width 8 --disc.layers 1 --long 0"
    ablate.main(["videodit-5", "--config", "videodit-256", *words, "--real", str(root / "UCF101"),
                 "--train", flags])
    out = capsys.readouterr().out
    assert re.search(r"2D patchify +\| 756.25 +\| 27.85 +\| [0-9.]+ +\| [0-9.]+", out)
    assert all(f"our {name}" in out for name in ("FVD", "IS", "PSNR", "LPIPS"))
    for kind in ("recon", "samples", "pictures"):
        assert (root / "out" / "videodit-256" / f"videodit-5-{kind}.png").is_file()


@pytest.mark.slow
def test_a_table_of_latte_runs_in_the_published_layout(published, capsys):
    """From Stable Diffusion 1's VAE and films to FVD over iterations, FID, and the printed table."""
    root, words = published
    vae = KLVAE(KLVAEConfig(4, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, quant_conv=True))
    (root / "vae").mkdir()
    save_file(vae.state_dict(), root / "vae" / "diffusion_pytorch_model.safetensors")
    flags = (f"{SMALL} --data {root / 'films'} --vae_weights {root / 'vae'} --stride 1 --latte.depth 2 "
             "--latte.width 32 --latte.heads 2 --latte.frames 8 --latte.input_size 4")
    ablate.main(["latte-5a", "--config", "latte-ffs", *words, "--curve", "2", "--train", flags])
    out = capsys.readouterr().out
    assert re.search(r"compression +\| notably behind", out) and "our FVD" in out and "our FID" in out
    found = json.loads((root / "out" / "latte-ffs" / "latte-5a.json").read_text())
    assert all(len(row["curve"]["1"]) == 1 and row["params"] > 0 for row in found["rows"])
