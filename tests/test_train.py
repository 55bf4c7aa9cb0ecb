"""train.py: which step is for what, flags, what the stages leave. What each starts from: test_stages.py."""

import itertools
import json
import math

import pytest
import torch

import presets
import train
from support.checkpoints import load_network, read_config, read_log, read_state
from support.cli import polite
from support.toy_world import is_heldout
from support.trainer import Run
from conftest import script
from support.order import batches
from support.video_io import from_bytes
from presets import Config, apply, parse
from test_stages import config
from test_trainer import differs, run, signals  # noqa: F401  signals works by being here
from train import TIMES, by_time, encoded, held_out, mixed, singles, toy_or_folder, unseen
from vae import KLVAE


# ------------------------------------------------------------ which step is for what

def kinds(seed, start, count, p=0.8, random_state=0):
    """What mixed() draws, and at which of their own steps the two sources were entered."""
    entered = {}

    def source(name):
        def from_step(step):
            entered[name] = step
            return ({"kind": name} for _ in itertools.count())
        return from_step
    torch.manual_seed(random_state)
    steps = mixed(apply(Config(), {"seed": seed}), source("video"), source("image"), p)(start)
    return [next(steps)["kind"] for _ in range(count)], entered


def test_videos_come_with_probability_p():
    """VideoDiT 4.1, p = 0.8: within three standard deviations over 2000 steps; p = 1 and p = 0 are pure."""
    drawn, _ = kinds(0, 0, 2000)
    assert abs(drawn.count("video") - 1600) < 3 * math.sqrt(2000 * 0.8 * 0.2)
    assert set(kinds(0, 0, 50, p=1.0)[0]) == {"video"} and set(kinds(0, 0, 50, p=0.0)[0]) == {"image"}


def test_the_draw_is_that_of_the_step_on_every_rank_and_after_every_resume():
    """Not from the process's random state, which may differ; a resumed run goes on in both sources."""
    drawn, _ = kinds(3, 0, 200)
    assert kinds(3, 0, 200, random_state=1)[0] == drawn and kinds(4, 0, 200)[0] != drawn
    later, entered = kinds(3, 60, 140)
    assert later == drawn[60:]
    assert entered == {"video": drawn[:60].count("video"), "image": drawn[:60].count("image")}


# ------------------------------------------------------------ flags

@pytest.mark.parametrize("flags, answer", [
    ("--lr nan", "--lr nan: must"),
    ("--batch 7 --accumulate 2", "must divide by 1 processes x 2 micro-batches"),
    ("--stage videodit", "dpvae.safetensors: train --stage dpvae first"),
    ("--stage dit", "vae.safetensors: train --stage vae first"),
    ("--stage videodit --init nowhere", "--init nowhere is not there"),
    ("--stage classifier --classifier.subjects cat dog", "--classifier.subjects: lacks ball, "),
    ("--stage vae --data nowhere", "nowhere is ")])
def test_a_wrong_flag_gets_one_line_and_exit_code_2(tmp_path, capsys, flags, answer):
    """Found out before anything is trained or written."""
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        polite(lambda: train.main([*flags.split(), "--out", str(out)]))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and not out.exists()
    assert answer in error and error.count("\n") == 1


def test_every_stage_has_its_function():
    """presets.py names the stages, without importing what they do."""
    assert train.RECIPES.keys() == presets.STAGES.keys()


# ------------------------------------------------------------ what the stages leave

def test_from_nothing_to_a_clip_in_90_seconds(tiny, tmp_path):
    """`train.py --config tiny --stage all`, then a sample; CPU seconds, for the machine may be busy. (The
    training's are without the start of a process, which is among the sample's.)"""
    sampled = script("sample.py", "a cat", "--ckpt", tiny.folder, "--out", tmp_path)
    assert sampled.code == 0, sampled.err
    assert tiny.seconds + sampled.seconds < 90
    assert (tmp_path / "0000-a-cat.mp4").is_file()
    assert json.loads((tmp_path / "0000-a-cat.json").read_text())["frames"] == 8


def test_each_stage_leaves_a_log_and_something_to_look_at(tiny):
    """log.jsonl with the step, the rate and finite losses, what a step cost and waited; a contact sheet of the
    last step."""
    for stage in ("vae", "dit", "dpvae", "videodit", "latte"):
        last = json.loads((tiny.folder / stage / "log.jsonl").read_text().splitlines()[-1])
        assert last["skipped"] == 0 and all(math.isfinite(value) for value in last.values())
        assert (tiny.folder / stage / f"{last['step']:07d}.png").is_file()
        assert {"norm", "lr", "memory_gb"} <= last.keys() and 0 <= last["wait"] <= 1 and last["eta_s"] == 0


def test_the_transformer_sees_latents_of_unit_variance(tiny):
    """Stage vae ends by measuring shift and scale over its data: scaled latents have mean 0, deviation 1."""
    config, = parse(["--config", "tiny", "--stage", "vae"])
    vae = load_network(KLVAE, tiny.folder / "vae.safetensors")
    clips = [next(batches(singles(config, kind), 64, seed=1))["video"] for kind in ("video", "image")]
    with torch.no_grad():
        z = vae.scaled(vae.encode(torch.cat(clips)))
    assert vae.config.scale != 1 and abs(z.mean()) < 0.1 and abs(z.std() - 1) < 0.1


def test_latents_are_encoded_once(tiny, tmp_path):
    """A second run finds the shards and reads them; another VAE would look elsewhere."""
    out = tiny.fork(tmp_path / "run")
    shards = {path: path.stat().st_mtime_ns for path in out.glob("cache/*/*.safetensors")}
    run(out, "videodit", "--steps", 1)
    assert {path: path.stat().st_mtime_ns for path in out.glob("cache/*/*.safetensors")} == shards
    assert {path.parent.name.split("-")[0] for path in shards} == {"video", "image"}


def test_2d_plus_3d_keeps_the_image_model(tiny, tmp_path):
    """VideoDiT Table 4: originals are frozen, their copies are trained; the checkpoint says which kind it is."""
    out = tiny.fork(tmp_path / "run")
    run(out, "videodit", "--steps", 2, "--attention", "2d+3d", "--no-patchify_3d")
    image, video = read_state(out / "dit.safetensors"), read_state(out / "videodit.safetensors")
    assert all(torch.equal(video[f"image.{name}"], tensor) for name, tensor in image.items())
    assert any(video[name].abs().max() > 0 for name in video if "zero_x.weight" in name)
    made = read_config(out / "videodit.safetensors")["config"]
    assert made["attention"] == "2d+3d" and not made["patchify_3d"]


def test_a_clip_that_goes_as_bytes_is_the_same_clip(mp4s):
    """To the bit: what a loader hands to a GPU is a quarter of the size. So are its latents."""
    folder = toy_or_folder(config("--stage", "videodit", "--data", mp4s), "video")
    for clips in (folder, singles(config("--stage", "vae"), "video")):
        floats, small = (next(batches(clips, 2, as_bytes=how))["video"] for how in (False, True))
        assert small.dtype == torch.uint8 and torch.equal(from_bytes(small), floats)
        vae = KLVAE(config().vae)
        assert torch.equal(encoded(vae, small), encoded(vae, floats))


# ------------------------------------------------------------ the held-out loss

def held_out_losses(out, stage):
    lines = read_log(out / stage / "log.jsonl")
    return [{key: value for key, value in line.items() if key.startswith("valid_t")} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dit", "videodit", "latte"])
def test_a_held_out_loss_changes_nothing_and_no_resume_changes_it(tiny, tmp_path, stage):
    """Weights with and without it, in one run and in two, bit for bit; its own values after every step."""
    without, whole, halves = (tiny.fork(tmp_path / name) for name in ("without", "whole", "halves"))
    state = run(without, stage, "--steps", 4, "--valid_every", 0)
    once = run(whole, stage, "--steps", 4, "--valid_every", 1, "--log_every", 3)
    run(halves, stage, "--steps", 2, "--valid_every", 1)
    resumed = run(halves, stage, "--steps", 4, "--valid_every", 1)
    assert differs(state, once) == differs(state, resumed) == [] and held_out_losses(without, stage)[-1] == {}
    values = held_out_losses(whole, stage)
    assert values == held_out_losses(halves, stage) and [len(line) for line in values] == [8] * 4
    assert values[0] != values[3] and all(math.isfinite(value) for value in values[3].values())


@pytest.mark.parametrize("times", [TIMES, (1000 * TIMES).long()])
def test_the_held_out_loss_is_told_by_the_time(times):
    """A network whose error is its time: each of eight is named by it. Clips are the world's held-out ones,
    the same for every seed."""
    cfg = config("--stage", "latte")
    vae = KLVAE(cfg.vae)
    def errors(net, z, cond, t, noise):
        assert z.shape == noise.shape == (8, 4, 8, 4, 4)
        return t.float().view(8, 1, 1, 1, 1).expand(z.shape)
    values = held_out(cfg, Run(), "video", vae, errors, times=times)({"latte": None})
    assert len(values) == 8 and all(float(name.removeprefix("valid_t")) == pytest.approx(value, abs=0.01)
                                    for name, value in values.items())
    clips = unseen(cfg, "video")
    assert len(clips) == 16 and all(is_heldout(clips.describe(place)[0]) for place in range(16))
    other = unseen(config("--stage", "latte", "--seed", 5), "video")
    assert torch.equal(clips.item(3)["video"], other.item(3)["video"])


def test_the_training_loss_is_told_by_the_time():
    """Sums and counts of the clips in each eighth of the path; t = 1, too."""
    told = by_time(torch.tensor([[1.0, 3.0], [5.0, 5.0], [7.0, 9.0]]), torch.tensor([0.0, 0.12, 1.0]))
    pairs = {name: pair.tolist() for name, pair in told.items() if pair[1] > 0}
    assert pairs == {"train_t0.06": [7, 2], "train_t0.94": [8, 1]} and len(told) == 8
    told = by_time(torch.tensor([2.0, 4.0]), torch.tensor([124, 999]), (1000 * TIMES).long())
    assert told["train_t62"].tolist() == [2, 1] and told["train_t937"].tolist() == [4, 1]


def test_of_videos_the_held_out_part_is_what_part_leaves(mp4s, capsys):
    """Where nothing is left, a line says so and names --part."""
    def clips(*flags):
        return unseen(config("--stage", "videodit", "--data", mp4s, *flags), "video")
    assert clips("--part", "0", "0.6").config.part == (0.6, 1.0)
    cfg = config("--stage", "videodit", "--data", mp4s)
    assert held_out(cfg, Run(), "video", None, None) is None
    assert "videodit: no held-out loss: " in (told := capsys.readouterr().out) and "--part 0 0.9" in told
    cfg = config("--stage", "videodit", "--data", mp4s, "--part", "0", "0.9")          # of 24 frames, 2
    assert held_out(cfg, Run(), "video", None, None) is None
    assert "no held-out loss: nothing usable in" in capsys.readouterr().out
