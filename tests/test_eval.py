"""Tests of eval.py: the published tools' rules, and every command on networks of no talent."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import eval as evaluate
import presets
import world
from checkpoint import UserError, save_network
from dit import MMDiT
from eval import Protocol, Side, prepare
from features import I3D, FrozenNorm, Judge, judge_targets
from metrics import frechet, gaussian
from test_latte import trained
from text import ToyText
from vae import DPVAE, KLVAE
from video import read_video, save_video, to_video
from videodit import VideoDiT

TOY_FLAGS = ["--features", "toy", "--size", "32", "--frames", "8", "--cache", ""]


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory):
    """A folder as train.py leaves it: every network of the tiny preset, untrained."""
    torch.manual_seed(0)
    folder, tiny = tmp_path_factory.mktemp("ckpt"), presets.PRESETS["tiny"]
    vae, dit = KLVAE(tiny["vae"]), MMDiT(tiny["dit"])
    nets = {"judge": Judge(tiny["judge"]), "vae": vae, "dpvae": DPVAE.from_image(vae), "dit": dit,
            "videodit": VideoDiT.from_image(dit), "text": ToyText(tiny["text"])}
    for name, net in nets.items():
        save_network(folder / f"{name}.safetensors", net, extra={"size": 32, "frames": 8, "shift": 1.0})
    return folder


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """Four rendered clips of 16 frames as .mp4."""
    folder = tmp_path_factory.mktemp("films")
    for index in range(4):
        save_video(folder / f"{index}.mp4", world.render(world.draw(0, index), 16, 32))
    return folder


def rendered(count, frames=16, size=32, kind="video"):
    """(B,3,T,H,W) of the toy world."""
    return torch.stack([to_video(world.render(world.draw(7, index, kind), frames, size))
                        for index in range(count)])


def quiet_judge(width=8):
    """An untrained judge: random features are enough to tell two sets apart."""
    torch.manual_seed(1)
    return Judge(evaluate.dataclasses.replace(presets.PRESETS["tiny"]["judge"], width=width, size=32)).eval()


# ---------------------------------------------------------------------------------------------- monotony

def noisy(video, level):
    return video + 0.15 * level * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))


def blurred(video, level):
    size = (video.shape[2], video.shape[3] // 2 ** level, video.shape[4] // 2 ** level)
    return F.interpolate(F.interpolate(video, size=size, mode="area"), size=video.shape[2:], mode="trilinear")


def shuffled(video, level):
    """The first 4, the first 8, all 16 frames in random order, another one for each clip."""
    size, generator = 2 ** (level + 1), torch.Generator().manual_seed(0)
    orders = [[*torch.randperm(size, generator=generator), *range(size, video.shape[2])] for _ in video]
    return torch.stack([clip[:, torch.tensor(order)] for clip, order in zip(video, orders)])


def frozen(video, level):
    """The film stands still from its 12th, its 8th, its 4th frame on."""
    stop = video.shape[2] - 4 * level
    return video[:, :, torch.arange(video.shape[2]).clamp(max=stop - 1)]


@pytest.mark.parametrize("damage", [noisy, blurred, shuffled, frozen])
def test_toy_fvd_grows_with_damage(damage):
    """FVD on the features of an untrained judge: the more noise, blur, disorder or stillness, the farther."""
    judge, clips = quiet_judge(), rendered(24)
    with torch.no_grad():
        real = gaussian(judge.clip_features(clips))
        values = [frechet(*real, *gaussian(judge.clip_features(damage(clips, level)))) for level in (1, 2, 3)]
    assert 0 < values[0] < values[1] < values[2]


@pytest.mark.slow
def test_fvd_of_an_untrained_i3d_grows_with_damage():
    """The same through the real network's architecture, with random weights."""
    torch.manual_seed(0)
    net, clips = I3D(), rendered(4)
    for module in net.modules():
        if isinstance(module, FrozenNorm):
            module.weight.fill_(1.0)
            module.running_var.fill_(1.0)
        elif isinstance(module, torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        real = gaussian(net(clips))
        for damage in (noisy, blurred, shuffled, frozen):
            values = [frechet(*real, *gaussian(net(damage(clips, level)))) for level in (1, 2, 3)]
            assert 0 < values[0] < values[1] < values[2], (damage.__name__, values)


# ---------------------------------------------------------------------------------------------- protocols

def test_presets_are_the_published_rules():
    """facts: real stride 3 and crop first in Latte,
    stride 1 and resize first in StyleGAN-V, JPEG 75 in both."""
    latte, styleganv = evaluate.PROTOCOLS["latte"], evaluate.PROTOCOLS["stylegan-v"]
    assert ((latte.clips, latte.frames, latte.real_stride, latte.fake_stride, latte.ddof)
            == (2048, 16, 3, 1, 0))
    assert (latte.order, styleganv.order, styleganv.real_stride) == ("crop-resize", "resize-crop", 1)
    assert latte.jpeg == styleganv.jpeg == 75


def numbered(folder, count):
    """A folder of frames whose grey level is 10 x their number, named 1.png ... without leading zeros."""
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("RGB", (8, 8), (10 * number,) * 3).save(folder / f"{number}.png")


def test_windows_follow_the_protocol(tmp_path):
    """One clip a video, every third frame in order, a random start that the seed fixes;
    fakes from the start."""
    for name in "ab":
        numbered(tmp_path / name, 20)
    protocol = Protocol(clips=2, frames=4, size=8, jpeg=0)
    levels = lambda side: (side.read(0)[:, 0, 0, 0] // 10).tolist()
    real = levels(Side(tmp_path, protocol))
    assert [b - a for a, b in zip(real, real[1:])] == [3, 3, 3] and real == levels(Side(tmp_path, protocol))
    assert levels(Side(tmp_path, protocol, fake=True)) == [1, 2, 3, 4]
    starts = {levels(Side(tmp_path, Protocol(2, 4, size=8, jpeg=0, seed=seed)))[0] for seed in range(60)}
    assert (min(starts), max(starts)) == (1, 11)           # the last frame of a clip is start + 9, of 20


def test_short_videos_are_dropped_as_latte_drops_them(tmp_path):
    """16 * stride frames are needed, not 15 * stride + 1; the reason is told."""
    numbered(tmp_path / "short", 11)
    numbered(tmp_path / "long", 12)
    side = Side(tmp_path, Protocol(clips=2, frames=4, size=8, jpeg=0))
    assert len(list(side.stream(1))) == 1
    assert side.skipped == ["short/1.png: 11 frames, 12 needed"]


def test_crop_and_resize_come_in_the_asked_order():
    """On a 40 x 20 picture both give a square of the middle;
    only one of them resizes 20 to 10 before it cuts."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), np.uint8))
    first = prepare(picture, Protocol(size=10, jpeg=0, filter="bilinear"))
    want = picture.crop((10, 0, 30, 20)).resize((10, 10), Image.BILINEAR)
    np.testing.assert_array_equal(first, np.asarray(want))
    second = prepare(picture, Protocol(size=10, jpeg=0, filter="bilinear", order="resize-crop"))
    want = picture.resize((20, 10), Image.BILINEAR).crop((5, 0, 15, 10))
    np.testing.assert_array_equal(second, np.asarray(want))


def test_jpeg_damages_once():
    """Quality 75 changes a lossless frame; a frame that already is a .jpg of the right size is left alone."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    assert (prepare(picture, Protocol(size=16)) != np.asarray(picture)).any()
    np.testing.assert_array_equal(prepare(picture, Protocol(size=16), is_jpeg=True), np.asarray(picture))


# ---------------------------------------------------------------------------------------------- commands

def test_fvd_command_labels_toy_numbers_and_caches_the_real_side(ckpt, films, tmp_path, capsys, monkeypatch):
    """The second call looks at the fakes only, and finds the same number."""
    argv = [str(films), str(films), *TOY_FLAGS, "--clips", "4", "--judge", str(ckpt / "judge.safetensors"),
            "--cache", str(tmp_path)]
    first = evaluate.distance("fvd", argv)
    assert first["metric"] == "toy fvd" and first["fvd"] < 1e-3
    monkeypatch.setattr(Side, "stream",
                        lambda self, workers: streams.append(self.fake) or original(self, workers))
    streams, original = [], SIDE_STREAM
    assert evaluate.distance("fvd", argv)["fvd"] == first["fvd"] and streams == [True]
    assert "toy FVD" in capsys.readouterr().out


SIDE_STREAM = Side.stream


def test_fid_and_is_commands_run_on_frames_and_clips(ckpt, films):
    """toy FID of rendered clips against their .mp4 is small; toy IS lies between 1 and the 12 subjects."""
    judge = ["--judge", str(ckpt / "judge.safetensors"), *TOY_FLAGS, "--clips", "4"]
    assert evaluate.distance("fid", ["toy:video", str(films), *judge])["fid"] >= 0
    assert 1 <= evaluate.score([str(films), *judge, "--splits", "2"])["is"] <= 12


def pixels(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_two_ranks_sample_what_one_samples_and_restart_does_nothing_twice(ckpt, tmp_path, monkeypatch):
    """Clip i is a function of i alone: no duplicates over ranks, and what is there stays."""
    flags = ["-n", "6", "--batch", "2", "--steps", "1", "--png", "-o"]
    assert evaluate.sample_set([str(ckpt), *flags, str(tmp_path / "one")]) == 6
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        evaluate.sample_set([str(ckpt), *flags, str(tmp_path / "two")])
    assert pixels(tmp_path / "one") == pixels(tmp_path / "two") and len(pixels(tmp_path / "one")) == 6 * 8
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    shutil.rmtree(tmp_path / "two" / "000003")
    assert evaluate.sample_set([str(ckpt), *flags, str(tmp_path / "two")]) == 1
    assert pixels(tmp_path / "one") == pixels(tmp_path / "two")
    with pytest.raises(UserError, match="seed 0, now 1.*another -o"):
        evaluate.sample_set([str(ckpt), *flags, str(tmp_path / "two"), "--seed", "1"])


def test_recon_finds_no_gain_in_an_untrained_dp_vae(ckpt, films, capsys):
    """At step 0 D(z) is the held key frame, so both have the same PSNR;
    the last quarter of 16 frames is 4."""
    result = evaluate.recon([str(ckpt), str(films), "--part", "0.75", "1", "--features", "toy",
                             "--judge", str(ckpt / "judge.safetensors")])
    assert result["clips"] == 4 and result["frames"] == 4
    assert result["gain"] == pytest.approx(0, abs=1e-3) and "toy_lpips" in result
    assert "better on" in capsys.readouterr().out


def test_toy_command_prints_every_score(ckpt, capsys, tmp_path):
    """The last line is JSON with all rows; images are not asked for motion."""
    evaluate.main(["toy", "--ckpt", str(ckpt), "-n", "3", "--batch", "2", "--steps", "1", "--nearest", "1",
                   "--sheet", str(tmp_path / "given.png")])
    assert (tmp_path / "given.png").is_file()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for row in ("judge", "video_seen", "video_heldout", "video_image_only"):
        assert set(result[row]) == {"subject", "colour", "motion", "scene"}
    for row in ("image_seen", "image_heldout", "image_image_only"):
        assert set(result[row]) == {"subject", "colour", "scene"}
    for row, frames in (("picture", {"first"}), ("picture_alone", {"first"}), ("onwards", set()),
                        ("in_between", {"first", "last"})):     # dB of the given frames, decoded
        assert set(result[row]) == {"subject", "colour", "motion", "scene"} | frames
    assert set(result["dpvae"]) == {"psnr", "ssim", "key_psnr", "key_psnr_2d"}
    assert result["dpvae"]["key_psnr"] == pytest.approx(result["dpvae"]["key_psnr_2d"])    # z = z_k at step 0
    nearest = result["nearest"]
    assert nearest["generated"]["db"] < 14 and nearest["rendered"]["db"] > 30      # untrained; a true clip


def test_nearest_rows_rank_what_a_model_makes_below_its_ceiling(monkeypatch, capsys):
    """A VAE that gives back what it gets has the true clips' figures; a model that blurs has lower ones."""
    monkeypatch.setattr(evaluate, "reconstruct", lambda vae, x: (x, x))
    clips = evaluate.render_all(next(evaluate.unseen("video", 2, 2))[1], 4, 32)
    blurred = torch.nn.functional.avg_pool3d(clips, (1, 3, 3), 1, (0, 1, 1))
    rows = evaluate.nearest_rows(SimpleNamespace(vae=None), [blurred[:1], blurred[1:]])
    assert rows["rendered"] == rows["reconstructed"]
    assert rows["generated"]["db"] + 5 < 30 < rows["rendered"]["db"] and rows["rendered"]["share_20"] == 1
    assert rows["rendered"]["truth"] > 45 and set(rows["generated"]["subjects"]) == {"rocket", "car"}
    assert "by subject: car" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("model, share", [("videodit", 0.9), ("latte", 0.8)])
def test_the_shipped_weights_do_what_the_readme_says(model, share):
    """Of 16 clips nobody trained on, and as many prompts, few enough fail that the table can be true."""
    result = evaluate.toy(["-n", "16", "--batch", "16", "--model", model, "--bf16", "--nearest", "16"])
    for row in ("judge", "video_seen", "video_heldout", "image_seen", "image_heldout"):
        assert min(result[row].values()) >= share, (row, result[row])
    quality = result["dpvae"]
    assert quality["psnr"] > 29.5 and quality["key_psnr"] > quality["key_psnr_2d"] - 2
    near, again, true = (result["nearest"][row] for row in ("generated", "reconstructed", "rendered"))
    assert near["db"] > 13 and again["db"] > 22 and true["db"] > 35
    assert again["db"] > again["truth"] - 1                      # the search's own error on what no Spec is


def test_the_prompt_score_of_rendered_clips_is_what_the_judge_sees():
    """A judge that reads the answer off the clip is right about all;
    asked about the first clip only, about 1/n."""
    specs = [world.draw(evaluate.UNSEEN, index) for index in range(3)]
    config = SimpleNamespace(subjects=world.SUBJECTS, colours=list(world.COLOURS), motions=world.MOTIONS,
                             scenes=world.SCENES)
    class Oracle:                                          # the "clip" is its index
        def __call__(self, video):
            answers = judge_targets(self, [specs[int(i)] for i in video], "cpu")
            return {key: F.one_hot(index, 12) for key, index in answers.items()}
    oracle = Oracle()
    oracle.config = config
    right = evaluate.prompt_score(oracle, 3, 2, "video", lambda s, start: torch.arange(start, start + len(s)))
    assert right == {"subject": 1, "colour": 1, "motion": 1, "scene": 1}


# ---------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("argv, says", [
    (["fvb"], "unknown command fvb; give one of toy, fvd"),
    (["fvd", "nowhere", "toy", *TOY_FLAGS], "nowhere is neither a folder"),
    (["fvd", "toy", "toy:cat", *TOY_FLAGS], "toy:cat: write toy:KIND"),
    (["fvd", "toy", "toy", "--features", "vgg"], "--features vgg: must be one of i3d, toy"),
    (["fvd", "toy", "toy", "--protocol", "mine"], "--protocol mine: must be one of latte"),
    (["fvd", "toy", "toy", "--jpeg", "200"], "--jpeg 200: must be one of 0 to 100"),
    (["fvd", "toy", "toy", "--clips", "1"], "--clips 1: must be at least 2"),
    (["fvd", "toy", "toy", "--weights", "gone.pt"], "gone.pt.*i3d needs .*put it there"),
    (["fvd", "toy", "toy", "--real-stride", "2"], "unknown flag --real-stride; did you mean --real_stride"),
    (["is", "toy", *TOY_FLAGS, "--splits", "0"], "--splits 0: must be at least 1"),
    (["recon", "nowhere", "toy"], "no checkpoint at nowhere"),
    (["sample", "nowhere", "-o", "x", "--prompts", "gone.txt"], "gone.txt: neither toy:KIND"),
    (["toy", "--ckpt", "nowhere"], "no folder nowhere")])
def test_bad_flags_are_answered_in_one_line(argv, says):
    """design: the file or flag, and the way out."""
    with pytest.raises(UserError, match=says) as error:
        evaluate.main(argv)
    assert "\n" not in str(error.value)


def test_pictures_too_small_for_ssim_are_answered_in_one_line(ckpt):
    """A window of 11 pixels does not fit into 8: which flag to turn."""
    with pytest.raises(UserError, match="SSIM needs pictures of 11 pixels; these are 8x8: give --size"):
        evaluate.main(["recon", str(ckpt), "toy", "-n", "1", "--size", "8"])


def test_bad_folders_are_answered_in_one_line(ckpt, films, tmp_path):
    """Empty folder, unreadable video, too few clips, too small clips:
    the fakes must be what was asked for."""
    judge = ["--judge", str(ckpt / "judge.safetensors"), *TOY_FLAGS]
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    for name in ("x.mp4", "y.mp4"):
        (tmp_path / "broken" / name).write_bytes(b"no film at all")
    for fake, flags, says in ((tmp_path / "empty", [], "no videos or frames in .*found no file at all"),
                              (tmp_path / "broken", [], "0 usable clips.*[xy].mp4: cannot be opened"),
                              (films, ["--clips", "9"],
                               "4 usable clips, 9 wanted; sample more, or give --clips 4"),
                              (films, ["--size", "64"], "clips of 32 pixels.*give --size 32")):
        with pytest.raises(UserError, match=says):
            evaluate.distance("fvd", ["toy", str(fake), *judge, "--clips", "2", *flags])


def test_a_broken_real_video_is_skipped_and_named(ckpt, films, tmp_path, capsys):
    """A folder of real videos may have holes: a warning, with the file's name."""
    for path in films.glob("*.mp4"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:200 if path.name == "0.mp4" else None])
    side = Side(tmp_path, Protocol(clips=4, frames=8, real_stride=1, size=32, jpeg=0))
    evaluate.check_count(side, len(list(side.stream(2))))
    assert "3 usable clips, 4 wanted (1 of 4 skipped: 0.mp4" in capsys.readouterr().err


def test_a_clip_of_a_film_is_the_film(films):
    """Windows of an .mp4 are its own frames, entered in the middle."""
    side, whole = Side(films, Protocol(clips=4, frames=5, size=32, jpeg=0)), read_video(films / "2.mp4")
    clip = side.read(2)
    assert any((clip == whole[start:start + 13:3]).all() for start in range(16 - 12))


# ------------------------------------------------------------------------------------------ inside a Latte

@pytest.mark.parametrize("option", ["plain", "class", "text"])
def test_similarity_prints_every_block_and_draws_them(option, tmp_path, capsys):
    """`python eval.py similarity --ckpt FILE`."""
    save_network(tmp_path / "latte.safetensors", trained(2, option))
    evaluate.main(f"similarity --ckpt {tmp_path}/latte.safetensors --out {tmp_path}/s.png".split())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ["space", "space", "time", "time"]
    assert Image.open(tmp_path / "s.png").size[0] > 300
