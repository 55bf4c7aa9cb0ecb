"""Tests of ablate.py: every table of both papers is there, its commands exist, it goes on where it was."""

import json
import re
import shlex
from pathlib import Path

import pytest

import ablate
import presets
from checkpoint import UserError

VIDEODIT = ["videodit-1", "videodit-2", "videodit-3", "videodit-4", "videodit-5", "videodit-6"]
LATTE = ["latte-3", *(f"latte-5{part}" for part in "abcdef"), "latte-7", "latte-mask"]


def dry(capsys, *words):
    """The commands of a dry run, each a list of words."""
    ablate.main([*words, "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line[line.index("python "):])[1:] for line in lines if "python " in line]


@pytest.fixture
def ran(monkeypatch):
    """Commands are written down instead of run; training leaves a file, judging a number."""
    commands = []

    def run(args, command):
        commands.append(command)
        if command[0] == "train.py":
            stage, folder = (command[command.index(flag) + 1] for flag in ("--stage", "--out"))
            if not Path(folder, stage).exists():        # a finished stage writes no weights again
                Path(folder, stage).mkdir(parents=True)
                Path(folder, f"{stage}.safetensors").write_text(" ".join(command))
        return {"metric": "toy fvd", "fvd": 3.0} if command[1] == "fvd" else {}
    monkeypatch.setattr(ablate, "run", run)
    return commands


def test_the_tables_of_both_papers_are_there():
    """VideoDiT Tables 1-6; Latte Tables 3 and 5 and Figs. 5 and 7, whose rows hold Tables 1 and 2."""
    assert sorted(ablate.TABLES) == sorted(VIDEODIT + LATTE)
    assert ablate.demo() == {key: len(table.rows) for key, table in ablate.TABLES.items()}


@pytest.mark.parametrize("config", ["tiny", "toy", "videodit-256", "latte-ffs", "latte-t2v"])
def test_a_dry_run_prints_commands_that_exist(config, capsys):
    """Every flag of every row is one of train.py's, and every judgement one of eval.py's commands."""
    commands = dry(capsys, "all", "--config", config, "--train", "--init FILE" * (config == "videodit-256"))
    for script, *words in commands:
        if script == "train.py":
            assert len(presets.parse(words)) == 1
        else:
            assert words[0] in ("toy", "fvd", "is", "recon", "sample")
    assert commands


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
        ablate.run_table(ablate.parse([key, "--config", "tiny", "--out", str(tmp_path)]), key)
    trained = [shlex.join(command) for command in ran if "train.py" in command and "videodit" in command]
    assert len(trained) == len(set(trained)) == 4           # the default, 2d+3d, no patchify, p = 0.8
    weights = (tmp_path / "tiny" / "videodit-p_video-1" / "dpvae.safetensors").read_text()
    assert weights == (tmp_path / "tiny" / "base" / "dpvae.safetensors").read_text()


def test_a_row_keeps_the_dpvae_that_it_trained(ran, tmp_path):
    """Table 3's rows have a DP-VAE of their own: the shared one must not take its place on a restart."""
    args = ablate.parse(["videodit-3", "--config", "tiny", "--out", str(tmp_path)])
    ablate.run_table(args, "videodit-3")
    own = tmp_path / "tiny" / "videodit-p_video-1-reg_weight-0"
    (own / "result.json").unlink()
    ablate.run_table(args, "videodit-3")
    assert "--reg_weight 0" in (own / "dpvae.safetensors").read_text()


def test_finished_rows_are_kept(ran, tmp_path):
    """Restart: nothing is run again, and only the row without a result is."""
    args = ablate.parse(["latte-5f", "--config", "tiny", "--out", str(tmp_path)])
    first = ablate.run_table(args, "latte-5f")
    ran.clear()
    assert ablate.run_table(args, "latte-5f") == first == [{"fvd": {"metric": "toy fvd", "fvd": 3.0}}] * 4
    assert ran == []
    (tmp_path / "tiny" / "latte-joint_images-0-latte.variant-3" / "result.json").unlink()
    ablate.run_table(args, "latte-5f")
    again = [command for command in ran if "--latte.variant" in command]
    assert len(again) == 1 and again[0][again[0].index("--latte.variant") + 1] == "3"


def test_a_result_of_other_commands_is_refused(ran, tmp_path):
    """A row that was trained for 5 steps is not the row that was asked for."""
    words = ["videodit-5", "--config", "tiny", "--out", str(tmp_path)]
    ablate.run_table(ablate.parse([*words, "--train", "--steps 5"]), "videodit-5")
    with pytest.raises(UserError, match="another --out"):
        ablate.run_table(ablate.parse(words), "videodit-5")


def test_the_table_shows_the_papers_numbers_beside_ours(capsys):
    """Ours on the toy world say so."""
    ours = {"toy": {"video_seen": {"subject": 1.0, "motion": 0.5}}, "fvd": {"metric": "toy fvd", "fvd": 12.5},
            "recon": {"psnr": 30.0}}
    ablate.show("videodit-5", [ours, {}])
    out = capsys.readouterr().out
    assert re.search(r"2D patchify +756.25 +27.85 +30 +12.5 +75 +50", out)
    assert "our toy FVD" in out and "paper's FVD" in out and "556.42" in out


@pytest.mark.parametrize("words, hint", [
    (["videodit-7"], "videodit-6"), (["videodit-3", "--config", "latte-ffs"], "videodit-256"),
    (["latte-7", "--dry"], "--dry-run"), (["latte-7", "--config", "tyni"], "tiny"),
    (["latte-7", "-n", "1"], "at least 2")])
def test_a_wrong_flag_is_named(words, hint):
    """One line with the flag and the way out."""
    with pytest.raises(UserError, match=hint):
        ablate.parse(words)


@pytest.mark.parametrize("words, hint", [
    (["latte-5e"], "toy world"), (["latte-5d", "--train", "--data CLIPS"], "DiT-XL-2-256x256.pt"),
    (["videodit-5", "--train", "--stepps 5"], "--steps")])
def test_what_cannot_work_is_said_before_anything_runs(ran, words, hint):
    """Not after the first row has trained for a day."""
    with pytest.raises(UserError, match=hint):
        ablate.run_table(ablate.parse(words), words[0])
    assert ran == []


def test_a_command_that_fails_ends_the_table(tmp_path, capsys):
    """The command is named; what it said is on the screen."""
    with pytest.raises(UserError, match="eval.py nothing"):
        ablate.run(ablate.parse(["videodit-5"]), ["eval.py", "nothing"])


@pytest.mark.slow
def test_a_table_runs_end_to_end(tmp_path, capsys):
    """Table 5 at tiny size: every stage, every judgement, a table; and again, when nothing is left to do."""
    words = ["videodit-5", "--config", "tiny", "--out", str(tmp_path), "-n", "4",
             "--train", "--steps 2 --items 16"]
    ablate.main(words)
    out = capsys.readouterr().out
    assert "our toy FVD" in out and "our toy LPIPS" in out and "our toy motion %" in out and "756.25" in out
    results = [json.loads(path.read_text())["ours"] for path in tmp_path.glob("tiny/*/result.json")]
    assert len(results) == 2 and all(result["fvd"]["fvd"] > 0 for result in results)
    ablate.main(words)
    assert capsys.readouterr().out.strip() == out[out.rindex("videodit-5:"):].strip()
