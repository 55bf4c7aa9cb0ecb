"""The loop: resuming, ranks, accumulation, flags, failures; and the road from a Stable Diffusion 3 file."""

import dataclasses
import itertools
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import loop
import presets
import published
import sample
import train
import world
from checkpoint import UserError, load_network, polite, read_config, read_state
from conftest import script
from data import LatentCache, batches
from dit import MMDiT
from features import LPIPS
from loop import Player, Run, Stage, Trainer, learning_rate
from presets import Config, apply, parse
from train import mixed, singles
from vae import DPVAE, KLVAE
from videodit import VideoDiT

STAGES = ("judge", "dit", "dpvae", "videodit", "latte")


@pytest.fixture(autouse=True)
def signals():
    """train.main() takes the signals of its process; here it has to give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    loop.STOP.clear()


def run(out, stage, *flags):
    """Train a stage of the tiny preset, and return what it left for resuming."""
    train.main(["--config", "tiny", "--stage", stage, "--out", str(out), *map(str, flags)])
    return read_state(Path(out) / stage / "state.pt")


def same(a, b):
    """Bit for bit, through dicts and lists."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def felt(players):
    """Weights without the key biases of softmax attention: it does not feel them, so their gradient is
    rounding errors and nothing else, and Adam makes steps of its own size of those."""
    return {player: {name: tensor for name, tensor in state.items() if not name.endswith(".k.bias")}
            for player, state in players.items()}


def differs(state, other):
    """The parts of two states that are not the same; the flags do not count."""
    return [name for name in state if name != "config" and not same(state[name], other[name])]


# ------------------------------------------------------------ one run, however cut

@pytest.mark.parametrize("stage", STAGES)
def test_ten_steps_are_five_and_resume_and_five(tiny, tmp_path, stage):
    """Bit for bit: weights, averages, optimizers, the random state, and with them the order of the data."""
    whole, halves = tiny.fork(tmp_path / "whole"), tiny.fork(tmp_path / "halves")
    once = run(whole, stage, "--steps", 10)
    assert run(halves, stage, "--steps", 5)["step"] == 5
    assert differs(once, run(halves, stage, "--steps", 10)) == []
    name = f"{stage}.safetensors"
    assert same(read_state(whole / name), read_state(halves / name))
    assert len(once["players"]) == 1 + (stage == "dpvae")


RANKS = """
import sys
import presets
import train
for stage in ("videodit", "dpvae"):
    for config in presets.parse(["--config", "tiny", "--stage", stage, *sys.argv[1:]]):
        train.train(config)
"""


def test_two_processes_reach_the_weights_of_one(tiny, tmp_path):
    """Gloo, the same global batch: a game of two players, and pictures mixed with clips; to 1e-4."""
    one, two = tiny.fork(tmp_path / "one"), tiny.fork(tmp_path / "two")
    flags = "--no-bf16", "--steps", "4", "--warmup", "0", "--disc_start", "2", "--disc_warmup", "0"
    (tmp_path / "ranks.py").write_text(RANKS)
    done = script("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, tmp_path / "ranks.py",
                  *flags, "--out", two, extra={"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"})
    assert done.code == 0, done.err[:4000]
    for stage in ("videodit", "dpvae"):                     # in this order both read the same cached latents
        alone, together = run(one, stage, *flags), read_state(two / stage / "state.pt")
        assert_close(felt(together["players"]), felt(alone["players"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stage", ["dpvae", "videodit"])
def test_two_micro_batches_are_one_batch(tiny, tmp_path, stage):
    """Accumulated gradients: same clips, same noise, same mean; the weights agree to 1e-5 after 2 steps."""
    flags = "--steps", 2, "--warmup", 0, "--disc_start", 0, "--disc_warmup", 0
    whole = run(tiny.fork(tmp_path / "whole"), stage, *flags)
    parts = run(tiny.fork(tmp_path / "parts"), stage, *flags, "--accumulate", 2)
    assert_close(felt(parts["players"]), felt(whole["players"]), atol=1e-5, rtol=0)


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


def test_a_signal_saves_and_the_same_command_goes_on(tiny, tmp_path, monkeypatch):
    """SIGTERM in step 3 of 6: that step is finished and kept, and the end is that of a run left alone."""
    whole = run(tiny.fork(tmp_path / "whole"), "dit", "--steps", 6)
    out, honest = tiny.fork(tmp_path / "cut"), train.transformer_loss

    def loss(cfg, run, net, text, vae, batch):
        if batch["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(cfg, run, net, text, vae, batch)
    monkeypatch.setattr(train, "transformer_loss", loss)
    with pytest.raises(UserError, match="step 3, saved; the same command goes on"):
        run(out, "dit", "--steps", 6)
    loop.STOP.clear()
    assert differs(whole, run(out, "dit", "--steps", 6)) == []


def test_resume_can_be_refused_or_sent_elsewhere(tiny, tmp_path, capsys):
    """none starts again; a folder OUT/STAGE is taken up in another --out; a finished run says so."""
    here, there = tiny.fork(tmp_path / "here"), tiny.fork(tmp_path / "there")
    first = run(here, "dit", "--steps", 2)
    run(here, "dit", "--steps", 2)
    assert "already at step 2 of 2; --resume none starts again" in capsys.readouterr().out
    assert differs(first, run(here, "dit", "--steps", 2, "--resume", "none")) == []
    moved = run(there, "dit", "--steps", 4, "--resume", here / "dit")
    assert differs(run(here, "dit", "--steps", 4), moved) == []


def test_a_state_that_cannot_be_resumed_is_explained(tiny, tmp_path):
    """Absent, of another stage, or cut short: one line, and the weights that are there stay."""
    out = tiny.fork(tmp_path / "run")
    before = read_state(out / "dit.safetensors")
    with pytest.raises(UserError, match="no state.pt there; give auto, none, or a folder"):
        run(out, "dit", "--resume", tmp_path)
    with pytest.raises(UserError, match="is not of stage dit .*it holds judge"):
        run(out, "dit", "--resume", tiny.folder / "judge")
    whole = (tiny.folder / "dit" / "state.pt").read_bytes()
    (out / "dit" / "state.pt").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match=r"state\.pt .*is truncated") as error:
        run(out, "dit")
    assert "\n" not in str(error.value) and same(before, read_state(out / "dit.safetensors"))


# ------------------------------------------------------------ flags

@pytest.mark.parametrize("flags, answer", [
    ("--lr nan", "--lr nan: must"),
    ("--batch 7 --accumulate 2", "must divide by 1 processes x 2 micro-batches"),
    ("--stage cache", "--stage cache: give --init"),
    ("--stage dit", "vae.safetensors; check the path, or train"),
    ("--stage vae --data nowhere", "nowhere is neither a folder nor a .zip")])
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
    assert train.STAGES.keys() == presets.STAGES.keys()


def test_the_command_line_itself_exits_with_2(tmp_path):
    """From the shell, once: no stack trace."""
    done = script("train.py", "--lr", "nan", "--out", tmp_path / "out")
    assert done.code == 2 and done.err.startswith("train.py: --lr nan") and done.err.count("\n") == 1


def test_the_rate_rises_holds_and_falls():
    """Linear warm-up over 10 steps, then constant, then linearly to zero over the last half of 100."""
    config = apply(Config(), {"lr": 1.0, "warmup": 10, "steps": 100, "decay": 0.5})
    for step, rate in ((0, 0.1), (4, 0.5), (9, 1.0), (49, 1.0), (50, 1.0), (75, 0.5), (99, 0.02)):
        assert learning_rate(config, step) == pytest.approx(rate)
    assert learning_rate(apply(config, {"decay": 0.0}), 99) == 1.0


def test_the_average_warms_up():
    """decay = min(0.999, (1 + step) / (10 + step)): the first weights, which are noise, are forgotten."""
    net = torch.nn.Linear(1, 1, bias=False)
    trainer = Trainer(Config(), Run(), Stage({"net": Player(None, net=net)}, None, None))
    for step, decay in ((0, 0.1), (5, 0.4), (90, 0.91), (100_000, 0.999)):
        trainer.step, trainer.ema["net"][0][:], net.weight.data[:] = step, 2.0, 3.0
        trainer.update_ema("net")
        assert trainer.ema["net"][0].item() == pytest.approx(2 * decay + 3 * (1 - decay), abs=1e-6)
    with trainer.averaged() as nets:
        assert nets["net"].weight.item() == pytest.approx(2.001, abs=1e-6)
    assert net.weight.item() == 3.0


# ------------------------------------------------------------ losses that are no number

def poison(monkeypatch, steps):
    """transformer_loss, but nan in these steps."""
    honest = train.transformer_loss

    def loss(cfg, run, net, text, vae, batch):
        return honest(cfg, run, net, text, vae, batch) * (math.nan if batch["step"] in steps else 1)
    monkeypatch.setattr(train, "transformer_loss", loss)


def test_a_loss_that_is_not_finite_skips_its_step(tiny, tmp_path, monkeypatch):
    """Weights, average and optimizer stay as they were; the step is counted; the next one trains again."""
    out = tiny.fork(tmp_path / "run")
    before = run(out, "dit", "--steps", 2)
    poison(monkeypatch, {2})
    after = run(out, "dit", "--steps", 3)
    assert differs(before, after) == ["step", "skipped", "optimizers"] and after["skipped"] == 1
    moments, kept = before["optimizers"]["dit"]["state"], after["optimizers"]["dit"]["state"]
    assert same(moments, kept)                              # what differs is the rate, that of the step
    assert json.loads((out / "dit" / "log.jsonl").read_text().splitlines()[-1])["skipped"] == 1
    healed = run(out, "dit", "--steps", 4)
    assert healed["skipped"] == 1 and "players" in differs(after, healed)
    assert all(tensor.isfinite().all() for tensor in healed["players"]["dit"].values())


def test_ten_in_a_row_stop_the_run(tiny, tmp_path, monkeypatch):
    """The checkpoint on disk is the last good one."""
    out = tiny.fork(tmp_path / "run")
    good = run(out, "dit", "--steps", 2)
    poison(monkeypatch, range(2, 100))
    with pytest.raises(UserError, match="not finite 10 times in a row at step 11; the last good"):
        run(out, "dit", "--steps", 50, "--save_every", 4)
    kept = read_state(out / "dit" / "state.pt")
    assert kept["step"] == 8 and kept["skipped"] == 6 and same(kept["players"], good["players"])
    dit = load_network(MMDiT, out / "dit.safetensors")
    assert all(weight.isfinite().all() for weight in dit.parameters())


def test_in_a_game_a_step_counts_once(tiny, tmp_path, monkeypatch):
    """A discriminator that is well does not hide that the DP-VAE is not; two sick ones are one bad step."""
    honest = train.dp_vae_loss

    def loss(*words):
        total, x_hat, log = honest(*words)
        return total * math.nan, x_hat, log
    monkeypatch.setattr(train, "dp_vae_loss", loss)
    with pytest.raises(UserError, match="not finite 10 times in a row at step 9"):
        run(tiny.fork(tmp_path / "run"), "dpvae", "--steps", 30, "--disc_start", 1000)


# ------------------------------------------------------------ what the stages leave

def test_from_nothing_to_a_clip_in_90_seconds(tiny, tmp_path):
    """`train.py --config tiny --stage all`, then a sample; CPU seconds, for the machine may be busy."""
    sampled = script("sample.py", "a cat", "--ckpt", tiny.folder, "--out", tmp_path)
    assert sampled.code == 0, sampled.err
    assert tiny.trained.seconds + sampled.seconds < 90
    assert (tmp_path / "0000-a-cat.mp4").is_file()
    assert json.loads((tmp_path / "0000-a-cat.json").read_text())["frames"] == 8


def test_each_stage_leaves_a_log_and_something_to_look_at(tiny):
    """log.jsonl with the step, the rate and finite losses; a contact sheet of the last step."""
    for stage in ("vae", "dit", "dpvae", "videodit", "latte"):
        last = json.loads((tiny.folder / stage / "log.jsonl").read_text().splitlines()[-1])
        assert last["skipped"] == 0 and all(math.isfinite(value) for value in last.values())
        assert (tiny.folder / stage / f"{last['step']:07d}.png").is_file()


def test_the_transformer_sees_latents_of_unit_variance(tiny):
    """Stage vae ends by measuring shift and scale over its data: scaled latents have mean 0, deviation 1."""
    config, = parse(["--stage", "vae"])
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
    """VideoDiT Table 4: originals are frozen, twins are trained; the checkpoint says which kind it is."""
    out = tiny.fork(tmp_path / "run")
    run(out, "videodit", "--steps", 2, "--attention", "2d+3d", "--no-patchify_3d")
    image, video = read_state(out / "dit.safetensors"), read_state(out / "videodit.safetensors")
    assert all(torch.equal(video[f"image.{name}"], tensor) for name, tensor in image.items())
    assert any(video[name].abs().max() > 0 for name in video if "zero_x.weight" in name)
    made = read_config(out / "videodit.safetensors")["config"]
    assert made["attention"] == "2d+3d" and not made["patchify_3d"]


# ------------------------------------------------------------ from published weights

@pytest.fixture(scope="module")
def from_sd3(sd3, films, tmp_path_factory):
    """The paper's road on tiny files: stages dpvae, cache and videodit of preset videodit-256."""
    out = tmp_path_factory.mktemp("videodit")
    for stage in ("dpvae", "cache", "videodit"):
        train.main(["--config", "videodit-256", "--stage", stage, "--init", str(sd3[0]), *small(films, out)])
    return out


def small(films, out):
    """The flags that make the paper's preset fit into a test."""
    sizes = "--size 32 --frames 8 --batch 2 --steps 2 --windows 2 --no-compile --disc.width 8"
    return ["--data", str(films), "--out", str(out), *sizes.split()]


def test_stage_dpvae_starts_from_the_files_vae(sd3, from_sd3):
    """VideoDiT 3.1: E_k and D_k are Stable Diffusion's, frozen, with its shift and scale."""
    dp, vae = load_network(DPVAE, from_sd3 / "dpvae.safetensors"), published.kl_vae(read_state(sd3[0]))
    assert_close(dp.image.state_dict(), vae.float().state_dict(), atol=0, rtol=0)
    assert (dp.config.scale, dp.config.shift) == (1.5305, 0.0609)
    assert dp.residual.conv_out.weight.abs().max() > 0


def test_stage_cache_stores_latents_and_prompts(from_sd3):
    """Windows of each film with SD3's context (154 tokens) and pooled vector; same prompt, same vectors."""
    folder, = (from_sd3 / "cache").iterdir()
    cache = LatentCache(folder)
    rows = [cache.item(index) for index in range(len(cache))]
    assert len(rows) == 3 * 2 and rows[0]["latent"].shape == (16, 2, 4, 4)
    assert rows[0]["context"].shape == (154, 4096) and rows[0]["pooled"].shape == (24,)
    assert rows[0]["caption"] == rows[3]["caption"] and torch.equal(rows[0]["context"], rows[3]["context"])
    assert not torch.equal(rows[0]["context"], rows[1]["context"])


def test_stage_videodit_starts_from_the_files_transformer(sd3, from_sd3):
    """VideoDiT 3.2, no VAE and no text encoder in the loop; in 2 steps of warm-up it has hardly moved."""
    net = load_network(VideoDiT, from_sd3 / "videodit.safetensors")
    image = published.mmdit(read_state(sd3[0]))
    assert_close(net.image.state_dict(), image.float().state_dict(), atol=1e-5, rtol=0)
    assert net.patchify_3d.zero.weight.abs().max() > 0
    assert not (from_sd3 / "text.safetensors").exists()


def test_a_clip_from_the_published_road(sd3, from_sd3, tmp_path, capsys):
    """--ckpt with --weights: the text encoders stay Stable Diffusion's; without them, a hint."""
    words = ["a cat", "--ckpt", str(from_sd3), "--steps", "2", "--out", str(tmp_path)]
    sample.main([*words, "--weights", str(sd3[0])])
    about = json.loads((tmp_path / "0000-a-cat.json").read_text())
    assert about["frames"] == 8 and about["pixels"] == 32 and (tmp_path / "0000-a-cat.mp4").is_file()
    with pytest.raises(UserError, match="no text encoder; give with --weights"):
        sample.main(words)


def test_videodit_goes_on_from_a_videodit(from_sd3, films, tmp_path):
    """VideoDiT 4.1: the 512 phase starts from the 320 phase's result."""
    first = from_sd3 / "videodit.safetensors"
    before = read_state(first)
    train.main(["--config", "videodit-512", "--stage", "videodit", "--init", str(first),
                *small(films, from_sd3), "--steps", "1", "--p_video", "1", "--resume", "none"])
    assert read_state(from_sd3 / "videodit" / "state.pt")["step"] == 1
    assert_close(read_state(first), before, atol=1e-5, rtol=0)


def test_published_weights_need_their_cached_prompts(sd3, from_sd3, films, tmp_path):
    """Stage videodit before stage cache: the message names what is missing."""
    with pytest.raises(UserError, match="no latent cache in .*; encode one first"):
        train.main(["--config", "videodit-256", "--stage", "videodit", "--init", str(sd3[0]),
                    *small(films, from_sd3), "--cache", str(tmp_path)])


def test_stage_vae_can_start_from_the_files_vae(sd3, tmp_path):
    """--init decides the number of channels, whatever the preset says."""
    run(tmp_path, "vae", "--init", sd3[0], "--steps", 1, "--batch", 2, "--lpips_weight", 0)
    assert load_network(KLVAE, tmp_path / "vae.safetensors").config.z_channels == 16


def test_the_vocabulary_is_the_folders_own_where_there_are_folders(films):
    """A prompt about your own clips must reach the text encoder: its words come from their captions."""
    toy, mine = (parse(["--stage", "dit", *flags])[0] for flags in
                 ([], ["--data", str(films), "--images", str(films), "--frames", "4"]))
    assert train.vocabulary(toy) == world.WORDS
    captions = train.toy_or_folder(mine, "video").captions
    words = {word for caption in captions for word in caption.lower().split()}
    assert words and words <= set(train.vocabulary(mine))
    assert "mushroom" not in train.vocabulary(mine)


def test_lpips_is_vggs_where_its_file_is_given_and_its_absence_is_said(tmp_path, capsys):
    """Eq. 4 has an LPIPS term: a run without a network for it must not look like one with it."""
    vgg = LPIPS("vgg")
    torch.save({name: tensor for name, tensor in vgg.state_dict().items() if name.startswith("features.")},
               tmp_path / "vgg.pth")
    cfg = parse(["--stage", "dpvae", "--out", str(tmp_path)])[0]
    assert train.perceptual_for(cfg, Run()) is None and "--lpips" in capsys.readouterr().out
    distance = train.perceptual_for(dataclasses.replace(cfg, lpips=str(tmp_path / "vgg.pth")), Run())
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert distance(a, a) == 0 and distance(a, b) > 0


@pytest.mark.parametrize("stage, start", [("vae", "vae"), ("dit", "dit"), ("dit", "videodit"),
                                          ("dpvae", "dpvae"), ("videodit", "videodit"), ("latte", "latte")])
def test_every_stage_goes_on_from_weights_of_its_own_kind(tiny, tmp_path, stage, start):
    """--init with our own file: one step at a rate of nothing leaves the network what it was."""
    start_from = tiny.folder / f"{start}.safetensors"
    run(tiny.fork(tmp_path / "run"), stage, "--init", start_from, "--steps", 1, "--lr", 1e-12)
    was = load_file(start_from)
    now = load_file(tmp_path / "run" / f"{stage}.safetensors")
    was = {name.removeprefix("image.") if stage != start else name: value for name, value in was.items()}
    assert now.keys() == was.keys() if stage == start else now.keys() < was.keys()
    for name, value in now.items():
        assert_close(value, was[name], msg=name)


def test_decoder_only_leaves_every_latent_as_it_was(tiny, tmp_path):
    """Better frames for a transformer that is already trained: its latents must not move."""
    folder = tiny.fork(tmp_path / "run")
    run(folder, "dpvae", "--init", tiny.folder / "dpvae.safetensors", "--decoder_only", "--steps", 3,
        "--ema", 0)
    was, now = (load_network(DPVAE, where / "dpvae.safetensors") for where in (tiny.folder, folder))
    x = torch.rand(1, 3, 8, 32, 32) * 2 - 1
    assert torch.equal(was.encode(x), now.encode(x))
    assert not torch.equal(was.decode(was.encode(x)), now.decode(now.encode(x)))
