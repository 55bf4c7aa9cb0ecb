"""Tests of eval.py: the published tools' rules, and every command on networks of no talent."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import eval
import presets
from support import toy_world
from support.checkpoints import save_network
from support.cli import UserError
from dit import MMDiT
from latte import Latte, LatteConfig
from support.detectors import ATTRIBUTES, AttributeClassifier, classifier_targets
from support.metrics import frechet, gaussian
from test_latte import trained
from text import ToyText
from vae import DPVAE, KLVAE, KLVAEConfig
from videodit import VideoDiT

TOY_FLAGS = ["--features", "toy", "--size", "32", "--frames", "8"]


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory):
    """A folder as train.py leaves it: every network of the tiny preset, untrained."""
    torch.manual_seed(0)
    folder, tiny = tmp_path_factory.mktemp("ckpt"), presets.PRESETS["tiny"]
    vae, dit = KLVAE(tiny["vae"]), MMDiT(tiny["dit"])
    nets = {"classifier": AttributeClassifier(tiny["classifier"]), "vae": vae,
            "dpvae": DPVAE.from_image(vae), "dit": dit,
            "videodit": VideoDiT.from_image(dit), "text": ToyText(tiny["text"])}
    for name, net in nets.items():
        save_network(folder / f"{name}.safetensors", net, extra={"size": 32, "frames": 8, "shift": 1.0})
    return folder


def latte_folder(folder, option, condition="", classes=()):
    """A folder as train.py leaves it, with a Latte of two frames of latents and its image VAE."""
    net = trained(1 if condition else 2, condition or option)
    config = presets.PRESETS["tiny"]["vae"]
    vae = KLVAE(replace(config, z_channels=net.config.in_channels))
    save_network(folder / "vae.safetensors", vae)
    extra = {"size": net.config.input_size * vae.downsampling, "frames": net.config.frames, "shift": 1.0,
             "objective": "ddpm", "latents": "vae"}
    if net.config.condition == "class":
        extra["classes"] = classes or [f"class {number}" for number in range(net.config.classes)]
    save_network(folder / "latte.safetensors", net, extra=extra)
    save_network(folder / "text.safetensors", ToyText(presets.PRESETS["tiny"]["text"]))
    return folder


@torch.no_grad()
def test_toy_fvd_grows_with_disorder():
    """FVD on an untrained classifier's features: the first 4, the first 8, all 16 frames in random order,
    another one for each clip."""
    torch.manual_seed(1)
    classifier = AttributeClassifier(replace(presets.PRESETS["tiny"]["classifier"], width=8, size=32)).eval()
    specs = [toy_world.sample_spec(7, index) for index in range(24)]
    clips = eval.render_all(specs, 16, 32)                                                  # (24,3,16,32,32)
    real, values = gaussian(classifier.clip_features(clips)), []
    for size in (4, 8, 16):
        generator = torch.Generator().manual_seed(0)
        orders = [[*torch.randperm(size, generator=generator), *range(size, 16)] for _ in clips]
        shuffled = torch.stack([clip[:, torch.tensor(order)] for clip, order in zip(clips, orders)])
        values.append(frechet(*real, *gaussian(classifier.clip_features(shuffled))))
    assert 0 < values[0] < values[1] < values[2]


# ---------------------------------------------------------------------------------------------- commands

@pytest.mark.parametrize("name", ["fvd", "fid"])
def test_distances_of_toy_features_say_so(name, ckpt, shots, tmp_path, capsys, monkeypatch):
    """A set is at no distance from itself. The second call looks at the fakes only, and finds the same."""
    argv = [str(shots), str(shots), *TOY_FLAGS, "--clips", "4", "--real_stride", "1", "--window", "first",
            "--cache", str(tmp_path), "--classifier", str(ckpt / "classifier.safetensors")]
    found = eval.distance(name, argv)
    assert found["metric"] == f"toy {name}" and found[name] < 1e-3
    assert f"toy {name.upper()}" in capsys.readouterr().out
    looked, extract = [], eval.extract
    monkeypatch.setattr(eval, "extract", lambda side, *more: looked.append(side.fake) or extract(side, *more))
    assert eval.distance(name, argv)[name] == found[name] and looked == [True]


class Looker(torch.nn.Module):
    """Stands for I3D and C3D: a few numbers of a clip."""

    def forward(self, video):
        return video.unflatten(-1, (2, -1)).mean((2, 3, 5)).flatten(1)                      # (B,6)


def test_the_inception_score_lies_between_one_and_the_number_of_classes(shots, tmp_path, monkeypatch):
    monkeypatch.setattr(eval, "load_detector", lambda *args: Looker())
    (tmp_path / "c3d.pickle").write_bytes(b"a network")
    found = eval.score([str(shots), "--weights", str(tmp_path / "c3d.pickle"), "--clips", "4", "--size", "32",
                        "--frames", "8"])
    assert 1 <= found["is"] <= 6


def pixels(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.mark.slow
def test_two_ranks_sample_what_one_samples_and_restart_does_nothing_twice(ckpt, tmp_path, monkeypatch):
    """Clip i is a function of i alone: no duplicates over ranks, and what is there stays."""
    flags = ["-n", "4", "--batch", "2", "--steps", "1", "--png", "-o"]
    assert eval.sample_set([str(ckpt), *flags, str(tmp_path / "one")]) == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        eval.sample_set([str(ckpt), *flags, str(tmp_path / "two")])
    assert pixels(tmp_path / "one") == pixels(tmp_path / "two") and len(pixels(tmp_path / "one")) == 4 * 8
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    shutil.rmtree(tmp_path / "two" / "000003")
    assert eval.sample_set([str(ckpt), *flags, str(tmp_path / "two")]) == 1
    assert pixels(tmp_path / "one") == pixels(tmp_path / "two")
    assert eval.sample_set([str(ckpt), *flags, str(tmp_path / "one"), "--sheet", str(tmp_path / "s.png")]) == 0
    assert (tmp_path / "s.png").is_file()
    with pytest.raises(UserError, match="seed 0, now 1.*another -o"):
        eval.sample_set([str(ckpt), *flags, str(tmp_path / "two"), "--seed", "1"])


def test_bf16_on_a_device_without_it_is_float32(ckpt, tmp_path, monkeypatch):
    """Else a CPU with AVX2 alone takes 80 times as long."""
    monkeypatch.setattr(eval, "has_bf16", lambda device: False)
    flags = "-n 1 --batch 1 --steps 1 --png -o".split()
    for name, more in (("asked", ["--bf16"]), ("silent", [])):
        eval.sample_set([str(ckpt), *flags, str(tmp_path / name), *more])
    assert pixels(tmp_path / "asked") == pixels(tmp_path / "silent")


def test_recon_finds_no_gain_in_an_untrained_dp_vae(ckpt, shots, capsys):
    """At step 0 D(z) is the held key frame, so both have the same PSNR; of 64 frames a video of 16 has 16."""
    result = eval.recon([str(ckpt), str(shots), "--frames", "64", "--features", "toy",
                             "--classifier", str(ckpt / "classifier.safetensors")])
    assert result["clips"] == 4 and result["frames"] == 16
    assert result["gain"] == pytest.approx(0, abs=1e-3) and "toy_lpips" in result
    assert result["key_psnr"] == pytest.approx(result["key_psnr_2d"])          # Eq. 3: at step 0 z = z_k
    assert result["z_mean"] == pytest.approx(result["z_k_mean"]) and result["z_std"] > 0
    out = capsys.readouterr().out
    assert "0.00 dB on the mean of 4 clips" in out and "latents: z " in out


def test_toy_command_prints_every_score(ckpt, capsys, tmp_path):
    """The last line is JSON with all rows; images are not asked for motion."""
    eval.main(["toy", "--ckpt", str(ckpt), "-n", "3", "--batch", "2", "--steps", "1", "--nearest", "0",
                   "--sheet", str(tmp_path / "given.png")])
    assert (tmp_path / "given.png").is_file()
    out = capsys.readouterr().out
    page = Path("docs/toy.md").read_text("utf-8").replace("`", "")
    for title in eval.TITLES.values():                          # the rows that docs/toy.md explains
        assert f"\n{title}" in out and title in page, title
    result = json.loads(out.splitlines()[-1])
    assert set(result["classifier"]) == {"subject", "colour", "motion", "scene"}
    for row in ("video_seen", "video_heldout", "video_image_only"):
        assert set(result[row]) == {"subject", "colour", "motion", "scene", "still", "reversed"}
    for row in ("image_seen", "image_heldout", "image_image_only"):
        assert set(result[row]) == {"subject", "colour", "scene"}
    for row, scores in result["each"].items():                  # a digit a clip, and the share is their mean
        for question, answers in scores.items():
            assert len(answers) == 3 and answers.count("1") / 3 == result[row][question]
    for row, frames in (("image", {"first"}), ("image_alone", {"first"}), ("onwards", set()),
                        ("in_between", {"first", "last"})):     # dB of the given frames, decoded
        assert set(result[row]) == {"subject", "colour", "motion", "scene"} | frames


@pytest.mark.slow
def test_nearest_rows_rank_what_a_model_makes_below_its_ceiling(capsys):
    """A VAE that gives back what it gets has the true clips' figures; a model that blurs has lower ones."""
    nothing = SimpleNamespace(encode=torch.nn.Identity(), decode=torch.nn.Identity())
    clips = eval.render_all(eval.unseen("video", 2), 4, 32)
    blurred = torch.nn.functional.avg_pool3d(clips, (1, 3, 3), 1, (0, 1, 1))
    rows = eval.nearest_rows(nothing, blurred)
    assert rows["generated"]["db"] + 5 < 30 < rows["reconstructed"]["db"]
    assert rows["reconstructed"]["share_20"] == 1 and "\nreconstructed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("model, share, db", [("videodit", 0.9, 16.5), ("latte", 0.8, 13)])
def test_the_shipped_weights_do_what_the_readme_says(model, share, db):
    """Of 16 clips nobody trained on, and as many prompts, few enough fail that the table can be true."""
    result = eval.toy(["-n", "16", "--batch", "16", "--model", model, "--bf16", "--nearest", "16"])
    for row in ("classifier", "video_seen", "video_heldout", "image_seen", "image_heldout"):
        named = [result[row][word] for word in ATTRIBUTES if word in result[row]]       # an image has no motion
        assert min(named) >= share, (row, result[row])
    if model == "videodit":                     # known from images alone, and asked for with a motion
        assert result["video_image_only"]["subject"] >= share, result["video_image_only"]
    quality = eval.recon([str(eval.TOY), "toy", "-n", "16", "--features", "toy"])
    assert quality["psnr"] > 29.5 and quality["key_psnr"] > quality["key_psnr_2d"] - 2
    assert result["nearest"]["generated"]["db"] > db and result["nearest"]["reconstructed"]["db"] > 22


class Oracle:
    """A classifier that is told the answers: those of these Specs, whatever the clips show."""
    config = SimpleNamespace(subjects=toy_world.SUBJECTS, colours=list(toy_world.COLOURS),
                             motions=toy_world.MOTIONS, scenes=toy_world.SCENES)

    def __init__(self, specs):
        self.answers = classifier_targets(self, specs, "cpu")

    def __call__(self, video):
        return {key: F.one_hot(numbers, 12) for key, numbers in self.answers.items()}


def test_every_clip_is_scored_by_itself():
    """Words named right, one by one; a clip that stands still or is shown backwards is found, the right
    one is neither."""
    spec = toy_world.Spec("cat", "red", "moving left", "at night")
    said = [spec, replace(spec, colour="blue"), replace(spec, motion="moving right"), spec]
    clips = eval.render_all([spec] * 4, 16, 32)                                             # (4,3,16,32,32)
    clips[3] = clips[3, :, :1]
    scores = eval.clip_scores(Oracle(said), [spec] * 4, clips, 4, motion=True)
    assert scores == {"subject": [1, 1, 1, 1], "colour": [1, 0, 1, 1], "motion": [1, 1, 0, 1],
                      "scene": [1, 1, 1, 1], "still": [0, 0, 0, 1], "reversed": [0, 0, 1, 0]}
    assert eval.shares(scores)["colour"] == 0.75


@pytest.mark.parametrize("vocabulary, motion", [("small", motion) for motion in eval.REVERSE] + [
    ("full", "jumping"), ("full", "spinning")])
def test_a_clip_is_still_where_only_legs_and_clouds_move(vocabulary, motion):
    """The held subject of 20 true clips of each motion is called still, the moving one never is."""
    specs = [replace(toy_world.sample_spec(5, index, "any", vocabulary), motion=motion)
             for index in range(20)]
    held = eval.render_all([replace(spec, motion="") for spec in specs], 16, 32)
    found = eval.motion_scores(specs, held, [motion] * 20)
    assert found["still"].float().mean() >= 0.95 and not found["reversed"].any()
    assert not eval.motion_scores(specs, eval.render_all(specs, 16, 32), [motion] * 20)["still"].any()


# ---------------------------------------------------------------------------------------------- what is drawn

def test_help_is_help(capsys):
    """Every command with what it does."""
    eval.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {name}" in out or f"; {name}:" in out for name in eval.COMMANDS)


def test_recon_draws_videos_by_seed_not_by_name(ckpt, shots, tmp_path, capsys):
    """Two of four: another seed, other videos; the same seed, the same. --sheet: three rows a video."""
    def names(seed):
        eval.recon([str(ckpt), str(shots), "-n", "2", "--seed", str(seed), "--features", "toy",
                        "--classifier", str(ckpt / "classifier.safetensors"),
                        "--sheet", str(tmp_path / "sheet.png")])
        return {line.split()[0] for line in capsys.readouterr().out.splitlines() if ".mp4 " in line}
    first, again, other = names(0), names(0), names(3)
    assert first == again != other and len(first) == 2
    assert Image.open(tmp_path / "sheet.png").size[1] > 6 * 96


@pytest.mark.parametrize("layout", ["{name}/v_{name}_g01_c01.avi", "v_{name}_g01_c01.mp4",
                                    "{name}/v_{name}_g01_c01/0001.jpg"])
def test_class_names_are_prompts_from_any_of_ucf101s_layouts(layout, tmp_path):
    """`eval.py sample CKPT --prompts UCF-101` of a model of classes: by class folders, flat, or as frames."""
    for name in ("ApplyEyeMakeup", "Archery"):
        path = tmp_path / "UCF-101" / layout.format(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    folder = latte_folder(tmp_path / "run", "", "class", ["ApplyEyeMakeup", "Archery"])
    eval.main(["sample", str(folder), "-n", "2", "--steps", "1", "--prompts", str(tmp_path / "UCF-101"),
               "-o", str(tmp_path / "clips"), "--png"])
    made = sorted(path.name for path in (tmp_path / "clips").iterdir() if path.is_dir())
    assert made == ["000000", "000001"]


# ---------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("argv, says", [
    (["fvb"], "unknown command fvb; give one of toy, fvd"),
    (["fvd", "nowhere", "toy", *TOY_FLAGS], "nowhere is not there"),
    (["fvd", "toy", "toy:cat", *TOY_FLAGS], "toy:cat: write toy:KIND"),
    (["fvd", "toy", "toy", "--features", "vgg"], "--features: invalid choice: 'vgg'.*i3d"),
    (["fvd", "toy", "toy", "--clips", "1"], "--clips 1: must be at least 2"),
    (["fvd", "toy", "toy", "--weights", "gone.pt"], "gone.pt.*i3d needs .*put it there"),
    (["fvd", "toy", "toy", "--real-stride", "2"], "unknown flag --real-stride; did you mean --real_stride"),
    (["is", "toy", "--features", "toy"], "unknown flag --features"),
    (["is", "toy", "--ddof", "1"], "unknown flag --ddof"),
    (["recon", "checkpoints/toy", "toy", "--frames", "10"], "--frames 10: must be a multiple of 4"),
    (["is", "toy", "--real_stride", "2"], "unknown flag --real_stride"),
    (["recon", "nowhere", "toy"], "no checkpoint at nowhere"),
    (["toy", "--ckpt", "nowhere"], "no file or folder nowhere"),
    (["toy", "--sheet", "README.md/x.png"], "a drawing in README.md: .*give"),
    (["toy", "--sheet", "x.pgn"], "x.pgn: a drawing is a .png"),
    (["sample", "x", "-o", "y", "--guidance", "nan"], "--guidance: nan is no finite number"),
    (["similarity", "x", "--times", "1000"], "--times: must lie between 0 and 999"),
    (["fvd", "toy", "toy", "--features", "toy", "--jpeg", "300"], "--jpeg 300: must be 0"),
    (["reproduce", "mine.pt", "--data", "x", "--vae", "y"], "mine.pt: give a file that is called.*ffs, sky")])
def test_bad_flags_are_answered_in_one_line(argv, says):
    """design: the file or flag, and the way out."""
    with pytest.raises(UserError, match=says) as error:
        eval.main(argv)
    assert "\n" not in str(error.value)


def test_images_too_small_for_ssim_are_answered_in_one_line(ckpt):
    """A window of 11 pixels does not fit into 8: which flag to turn."""
    with pytest.raises(UserError, match="images of 11 pixels, these are 8 x 8; give a larger --size"):
        eval.main(["recon", str(ckpt), "toy", "-n", "1", "--size", "8", "--features", "toy", "--classifier",
                   str(ckpt / "classifier.safetensors")])


def test_bad_folders_are_answered_in_one_line(ckpt, shots, tmp_path):
    """Empty folder, unreadable video, too few clips, too small clips:
    the fakes must be what was asked for."""
    classifier = ["--classifier", str(ckpt / "classifier.safetensors"), *TOY_FLAGS]
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    for name in ("x.mp4", "y.mp4"):
        (tmp_path / "broken" / name).write_bytes(b"no video at all")
    for fake, flags, says in ((tmp_path / "empty", [], "no videos or images in .*found no file at all"),
                              (tmp_path / "broken", [], "0 usable clips.*[xy].mp4: cannot be opened"),
                              (shots, ["--clips", "9"],
                               "4 usable clips, 9 wanted; sample more, or give --clips 4"),
                              (shots, ["--size", "64"], "clips of 32 pixels.*give --size 32")):
        with pytest.raises(UserError, match=says):
            eval.distance("fvd", ["toy", str(fake), *classifier, "--clips", "2", *flags])


# ------------------------------------------------------------------------------------------ inside a Latte

@pytest.mark.parametrize("option", ["plain", "class", "text"])
def test_similarity_prints_every_block_and_draws_them(option, tmp_path, shots, capsys):
    """Latte Fig. 6 on clips, at the noise that was asked for: encoded, scaled, with noise on them."""
    folder = latte_folder(tmp_path / "run", option)
    eval.main(["similarity", str(folder), "--data", str(shots), "--times", "0", "500", "-n", "2",
               "--out", str(tmp_path / "s.png")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ["space", "space", "time", "time"]
    assert lines[0].startswith("time 0 ") and lines[5].startswith("time 500 ") and lines[1:5] != lines[6:10]
    assert Image.open(tmp_path / "s.png").size[0] > 300


def test_a_latte_in_half_precision_is_looked_at_in_float32(tmp_path, capsys):
    """A released file may be in float16, which no processor's convolution takes."""
    latte = {name: tensor.half() for name, tensor in trained(1, "plain").state_dict().items()}
    torch.save({"ema": latte}, tmp_path / "ffs.pt")
    vae = KLVAE(KLVAEConfig(ch=8, ch_mult=(1, 2, 2, 2), groups=4, z_channels=4))
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    eval.main(["similarity", str(tmp_path / "ffs.pt"), "--vae", str(tmp_path / "vae.pt"), "-n", "1",
               "--out", str(tmp_path / "s.png")])
    assert "0 space" in capsys.readouterr().out


def test_similarity_refuses_what_is_no_clip(tmp_path, capsys):
    """A shard of cached latents is raw and has no noise on it: clips are asked for instead."""
    save_file({"z": torch.zeros(1)}, tmp_path / "shard.safetensors")
    folder = latte_folder(tmp_path / "run", "plain")
    with pytest.raises(UserError, match="shard.safetensors"):
        eval.main(["similarity", str(folder), "--data", str(tmp_path / "shard.safetensors")])
    with pytest.raises(UserError, match="no vae .*add --vae PATH"):
        torch.save({"ema": trained(1, "plain").state_dict()}, tmp_path / "ffs.pt")
        eval.main(["similarity", str(tmp_path / "ffs.pt")])


# ------------------------------------------------------------------------------------------ as published

def test_a_latte_of_classes_is_asked_for_random_ones(tmp_path):
    """As its published sampler: drawn, keyed by seed and number, so two calls agree and two seeds do not."""
    classes = eval.random_class(tuple("abcdefgh"), 0)
    drawn = [classes(index) for index in range(200)]
    assert drawn == [classes(index) for index in range(200)] and len(set(drawn[:8])) < 8    # not dealt in turn
    assert drawn != [eval.random_class(tuple("abcdefgh"), 1)(index) for index in range(200)]
    folder = latte_folder(tmp_path / "run", "", "class")
    eval.main(["sample", str(folder), "-n", "2", "--steps", "1", "--png", "-o", str(tmp_path / "clips")])
    assert json.loads((tmp_path / "clips" / "sample.json").read_text())["classes"] == "random"


def test_a_released_latte_is_reproduced_by_one_command(monkeypatch, capsys):
    """Sample, FVD, and of UCF101 IS, by the published protocol; each command parses, and what the paper
    has is printed beside the result."""
    ran = []
    for name in ("sample", "fvd", "is"):
        monkeypatch.setitem(eval.COMMANDS, name,
                            lambda argv, name=name: ran.append([name, *argv]) or {name: 100.0})
    asked = ["reproduce", "ucf101.pt", "--data", "UCF101", "--vae", "sd"]
    monkeypatch.setattr(eval, "DETECTORS", Path("nowhere"))
    with pytest.raises(UserError, match="i3d"):
        eval.main(asked)
    assert not ran                                                      # the network is missed before sampling
    monkeypatch.setattr(eval, "load_detector", lambda path, kind, trusted=False: ran.append([path.name]))
    result = eval.reproduce([*asked[1:], "--trust-torchscript"])
    assert [*map(len, ran[:2])] == [1, 1] and [words[0] for words in ran[2:]] == ["sample", "fvd", "is"]
    assert result["fvd"] == 100
    ran = ran[2:]
    args, protocol = eval.parse_metric("fvd", ran[1][1:])
    assert protocol == replace(eval.PROTOCOLS["latte"], split="all")
    assert args.real == "UCF101"
    eval.parse_metric("is", ran[2][1:])
    assert "168 to 190" in capsys.readouterr().out
    eval.reproduce(["taichi-hd.pt", "--data", "T", "--vae", "sd"])
    assert ran[-1][0] == "fvd" and eval.parse_metric("fvd", ran[-1][1:])[1].real_stride == 6


@pytest.mark.slow
def test_a_released_file_goes_to_fvd_and_is(tmp_path, shots, monkeypatch, capsys):
    """From a .pt in the released layout and Stable Diffusion 1's VAE to the numbers, 250 steps a clip; given
    again, nothing is sampled."""
    monkeypatch.setattr(eval, "load_detector", lambda *args: Looker())
    monkeypatch.setitem(eval.PROTOCOLS, "latte", eval.Protocol(frames=4, size=32, real_stride=3))
    monkeypatch.setattr(eval, "DETECTORS", tmp_path)
    for kind in ("i3d", "c3d"):
        (tmp_path / eval.FILES[kind]).write_bytes(b"a network")
    net = Latte(LatteConfig(depth=2, width=64, heads=1, frames=4, input_size=4, condition="class",
                            classes=101))
    torch.save({"ema": net.state_dict()}, tmp_path / "ucf101.pt")
    vae = KLVAE(KLVAEConfig(4, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, quant_conv=True))
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    argv = ["reproduce", str(tmp_path / "ucf101.pt"), "--data", str(shots), "--vae",
            str(tmp_path / "vae.safetensors"), "-n", "12", "-o", str(tmp_path / "clips")]
    for made in (12, 0):
        eval.main(argv)
        out = capsys.readouterr().out
        assert f"{made} clips made" in out and "477.97 without joint images" in out
    found = json.loads(out.splitlines()[-1])
    assert found["set"] == "ucf101" and found["fvd"] >= 0 and found["is"] >= 1
    assert "of 12 clips; the paper has, of 2048," in out


def test_a_model_of_the_narrow_world_is_asked_for_what_it_knows():
    """By default the prompts are of its own world: of the whole one it would know half of the words."""
    for name, vocabulary in toy_world.WORLDS.items():
        words = toy_world.VOCABULARIES[vocabulary].words
        text = SimpleNamespace(config=SimpleNamespace(words=words))
        own = eval.own_world(SimpleNamespace(text=text))
        assert own == name and set(eval.prompt_at(f"{own}:video")(3).split()) <= {*words}
    assert eval.own_world(SimpleNamespace(text=None)) == "toy"


def test_prompts_and_their_encoder_belong_to_a_set_of_samples(ckpt, tmp_path):
    """Two lists of prompts under one name, or a text encoder trained further, made one set."""
    prompts = tmp_path / "prompts.txt"
    folder = shutil.copytree(ckpt, tmp_path / "ckpt")
    words = ["-n", "1", "--steps", "1", "--png", "--prompts", str(prompts), "-o", str(tmp_path / "s")]
    prompts.write_text("a cat\n")
    assert eval.sample_set([str(folder), *words]) == 1
    prompts.write_text("a dog\n")
    with pytest.raises(UserError, match="words [0-9a-f]+, now [0-9a-f]+.*another -o"):
        eval.sample_set([str(folder), *words])
    prompts.write_text("a cat\n")
    save_network(folder / "text.safetensors", ToyText(presets.PRESETS["tiny"]["text"]))
    with pytest.raises(UserError, match="text [0-9a-f]+, now [0-9a-f]+.*another -o"):
        eval.sample_set([str(folder), *words])
    with pytest.raises(UserError, match="--frames 8: this is an image model"):
        eval.sample_set([str(folder), "--model", "dit", "--frames", "8", "-o", str(tmp_path / "d")])


def test_a_sheet_of_samples_is_drawn(ckpt, tmp_path):
    """`sample --sheet`: what a distance is of can be seen."""
    eval.main(["sample", str(ckpt), "-n", "2", "--steps", "1", "-o", str(tmp_path / "s"), "--png",
                   "--sheet", str(tmp_path / "s.png")])
    assert Image.open(tmp_path / "s.png").size[0] > 300
