"""From a prompt to a file: repeatable, and clear about what it cannot do."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

import pretrained
import flow
import sample
import stand_ins
from support import order
from support.checkpoints import read_state, save_network
from support.cli import UserError, polite
from conftest import golden, read_video
from demos import scrambled
from dit import PixArt, PixArtConfig
from latte import Latte, LatteConfig
from sample import (Models, file_name, generate, given_frames, go_on, how_of, load_models,
                    released_models, sample_latents, windows_of)
from stand_ins import t5_files
from vae import KLVAE, KLVAEConfig
from support.video_io import read_image, save_video, to_frames


@pytest.fixture(scope="session")
def models(tiny):
    """The tiny VideoDiT with its DP-VAE and text encoder."""
    return load_models(tiny.folder)


@pytest.fixture
def make(tiny, tmp_path):
    """make("a cat", "--seed", 1) runs sample.py on the tiny model in two steps; returns where it wrote to."""
    def make(*words, out="out", ckpt=None):
        folder = tmp_path / out
        model = [] if "--weights" in words and not ckpt else ["--ckpt", str(ckpt or tiny.folder)]
        sample.main([*map(str, words), *model, "--steps", "2", "--out", str(folder)])
        return folder
    return make


def refused(capsys, *words):
    """The one line on stderr of a command that must end with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        polite(lambda: sample.main([*map(str, words)]))
    lines = capsys.readouterr().err.splitlines()
    error = [line for line in lines                                         # no progress bar, no note
             if line and "%|" not in line and "was trained at" not in line]
    assert stopped.value.code == 2 and len(error) == 1, error
    return error[0]


# ------------------------------------------------------------ same seed, same clip

def test_same_seed_same_clip(make):
    """To the last byte of the file; another seed, another clip."""
    wanted = ("a", 1), ("b", 1), ("c", 2)
    first, again, other = (make("a cat", "--seed", seed, out=name) for name, seed in wanted)
    clips = [(folder / "0000-a-cat.mp4").read_bytes() for folder in (first, again, other)]
    assert clips[0] == clips[1] != clips[2]


def test_a_clip_of_a_batch_can_be_made_alone(models):
    """Clip i depends on the seed and on first_index + i, not on its neighbours."""
    prompts = ["a cat", "a red dog", "a fish in snow"]
    together = generate(models, prompts, steps=3, seed=5)
    alone = generate(models, prompts[2:], steps=3, seed=5, first_index=2)
    assert together.shape == (3, 3, 8, 32, 32) and together.abs().max() <= 1
    assert_close(together[2:], alone, atol=1e-4, rtol=0)
    assert (together[0] - together[2]).abs().max() > 0.01


def test_the_settings_beside_a_clip_make_it_again(make):
    """Its .json names prompt, index, seed, guidance, steps, frames and size; as flags they make it again."""
    about = json.loads((make("a cat", "a dog", "--seed", 7, "--guidance", 2) / "0001-a-dog.json").read_text())
    flags = {"first": "index", "seed": "seed", "guidance": "guidance", "frames": "frames", "size": "pixels"}
    words = [word for flag, key in flags.items() for word in (f"--{flag}", about[key])]
    again = make(about["prompt"], *words, out="again")
    assert about["steps"] == 2 and about["torch"] == torch.__version__
    folders = again.parent / "out", again
    one, other = (read_video(folder / "0001-a-dog.mp4").astype(int) for folder in folders)
    assert abs(one - other).max() <= 2                      # one clip alone may round otherwise than two


# ------------------------------------------------------------ images, lengths, files

def test_an_image_is_one_frame_decoded_by_the_image_decoder(models, monkeypatch):
    """VideoDiT A.2, "decoding using the corresponding decoder": D_k for T = 1, D for clips."""
    def never(z):
        raise AssertionError("D was asked for an image")
    monkeypatch.setattr(models.vae, "decode", never)
    assert generate(models, ["a cat"], frames=1, steps=2).shape == (1, 3, 1, 32, 32)
    with pytest.raises(AssertionError):
        generate(models, ["a cat"], frames=4, steps=2)


def test_an_image_model_alone_makes_images(tiny, make, tmp_path):
    """--image, of a folder where stage dit was the last: .png and .json, and no clip."""
    folder = make("a cat", "--image", ckpt=broken(tiny, tmp_path / "ckpt", "image model"))
    made = sorted(path.name for path in folder.iterdir())
    assert made == ["0000-a-cat.json", "0000-a-cat.png", "index.html"]


def test_an_image_is_saved_as_its_own_pixels(tmp_path):
    """No margin, not enlarged: what --image writes --start takes back unchanged. It once had a white frame,
    and clips that began with it had one, too."""
    clip = torch.rand(3, 1, 32, 32) * 2 - 1
    path = sample.store(tmp_path, 0, clip, {"prompt": "a cat"})
    assert np.array_equal(np.asarray(Image.open(path)), to_frames(clip)[0])
    assert np.array_equal(read_image(path, 32), to_frames(clip)[0])


def test_a_clip_comes_with_a_contact_sheet_and_if_asked_a_gif(make):
    """--gif and --fps; --frames other than those of training."""
    folder = make("a cat", "--gif", "--fps", 8, "--frames", 12)
    assert sorted(path.suffix for path in folder.glob("0*")) == [".gif", ".json", ".mp4", ".png"]
    assert len(read_video(folder / "0000-a-cat.mp4")) == 12


@pytest.mark.slow
def test_prompts_come_from_a_file_and_from_anywhere_on_the_line(make, tmp_path):
    """--prompts: one a line, without empty lines and Windows' mark; -n clips of each; flags in between."""
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\n\na red dog\n".encode())
    folder = make("a fish", "--seed", 1, "a bird", "--prompts", tmp_path / "prompts.txt", "-n", 2)
    assert sorted(path.name for path in folder.glob("*.mp4")) == [
        f"{number:04d}-{name}.mp4" for number, name in enumerate(
            ("a-fish", "a-fish", "a-bird", "a-bird", "a-cat", "a-cat", "a-red-dog", "a-red-dog"))]


def test_an_unknown_word_is_warned_of_and_the_clip_still_made(make, capsys):
    """Before the sampling begins."""
    folder = make("a catt")
    warned = capsys.readouterr().err.splitlines()[0]
    assert '"catt" is no word' in warned and "cat," in warned
    assert (folder / "0000-a-catt.mp4").is_file()


def test_any_script_is_welcome(make, tmp_path, capsys):
    """A prompt and a folder that are not ASCII; where no letter may stand in a file name, "clip" does. What
    is no UTF-8 on the command line (Python hands on surrogates) can stand in no file: a question mark."""
    ckpt = latte_folder(tmp_path / "ckpt", LatteConfig(**SMALL))                # where a prompt is but a name
    folder = make("ein Kätzchen", "\u732b", "a \udcff cat", out="bücher \u732b", ckpt=ckpt)
    names = sorted(path.name for path in folder.glob("*.mp4"))
    assert names == ["0000-ein-k-tzchen.mp4", "0001-clip.mp4", "0002-a-cat.mp4"]
    assert json.loads((folder / names[1].replace("mp4", "json")).read_text())["prompt"] == "\u732b"
    page = (folder / "index.html").read_text("utf-8")
    assert "\u732b" in page and "a ? cat" in page
    assert "bücher" in capsys.readouterr().out


def test_file_names_hold_nothing_but_letters_and_digits():
    """A prompt cannot leave the folder, nor be longer than a file system likes."""
    assert file_name(3, "../../etc/passwd") == "0003-etc-passwd"
    assert len(file_name(0, "a cat " * 100)) < 80 and file_name(0, "!?") == "0000-clip"


def test_latte_has_samplers_of_its_own(make):
    """Latte 3.1: DDPM, or DDIM; a flow's sampler is refused."""
    assert len(list(make("a cat", "--model", "latte").glob("*.mp4"))) == 1
    make("a cat", "--model", "latte", "--sampler", "ddim")
    with pytest.raises(UserError, match="--sampler euler: this model was trained as a ddpm"):
        make("a cat", "--model", "latte", "--sampler", "euler")


# ------------------------------------------------------------ bad input

@pytest.mark.parametrize("words, answer", [
    (["a cat", "--step", "5"], "unknown flag --step; did you mean --steps?"),
    (["a cat", "--frames", "13"], "--frames 13: must be 1 (an image) or a multiple of 4, such as 16"),
    (["a cat", "--frames", "800000"], "tokens in one clip"),
    (["a cat", "--frames", "-4"], "--frames -4: must"), (["a cat", "--steps", "0"], "--steps 0: must be at"),
    (["a cat", "--steps", "many"], "invalid int value: 'many'"), (["a cat", "-n", "0"], "-n 0: must be at"),
    (["a cat", "--guidance", "nan"], "--guidance nan: must"), (["a cat", "--fps", "inf"], "--fps inf: must"),
    (["a cat", "--size", "40"], "--size 40: must be a multiple of 16"),
    (["a cat", "--ckpt", "nowhere"], "no file or folder nowhere"),
    (["a cat", "--size", "4096"], "256 x 256 patches do not"), ([], "give a prompt, such as"),
    (["--prompts", "nowhere.txt"], "--prompts nowhere.txt: cannot be read"),
    (["a cat", "--weights", "nowhere.safetensors"], "no file or folder nowhere.safetensors"),
    (["a cat", "--zero-shot-video"], "shows an untrained image model"),
    (["a cat", "--vae", "x"], "carries its own; only --zero-shot-video takes another DP-VAE"),
    (["a cat", "--end", "a.png", "--frames", "4"], "--frames 4: a clip with --end has more than 4"),
    (["a cat", "--start", "nowhere.png"], "--start nowhere.png: no such file"),
    (["a cat", "--start", "a.png", "--video", "b.mp4"], "--video and --start/--end are different wishes"),
    (["a cat", "--video", "b.mp4", "--strength", "0"], "--strength 0.0: must"),
    (["a cat", "--strength", "1"], "--strength says how much of --video CLIP is forgotten"),
    (["a cat", "--image", "--gif"], "--image makes single images"),
    (["a cat", "--sampler", "ddim"], "--sampler ddim: this model was trained as a flow"),
    (["a cat", "--size", "64", "96"], '"96": this model knows no word of it'),
    (["a cat", "--out", "x" * 300], "cannot be written (File name too long)")])
def test_a_wrong_flag_gets_one_line_and_exit_code_2(tiny, tmp_path, capsys, words, answer):
    """The flag and the way out are named, and nothing is written."""
    if words and not {"--ckpt", "--weights", "--zero-shot-video"} & {*words}:
        words = [*words, "--ckpt", tiny.folder]
    if "--out" not in words:
        words = [*words, "--out", tmp_path / "out"]
    assert answer in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_ours_says_what_does_not_go_with_it(tiny, capsys):
    """A stage's folder holds a state and no model; a second text encoder beside the trained one is none."""
    assert "is a stage's folder; give" in refused(capsys, "a cat", "--ckpt", tiny.folder / "videodit")
    assert "was trained with the text encoder in it" in refused(capsys, "a cat", "--ckpt", tiny.folder,
                                                                "--weights", "t5")


def test_torchrun_is_told_to_divide_clips_with_eval_py(capsys, monkeypatch):
    """Each rank would make all of them, on the first GPU."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert "torchrun eval.py sample divides them" in refused(capsys, "a cat")


def broken(tiny, folder, how):
    """A copy of the tiny model with something wrong."""
    tiny.fork(folder)
    network = folder / "videodit.safetensors"
    if how == "truncated":
        network.write_bytes(network.read_bytes()[:5000])
    elif how == "another class":
        shutil.copy(folder / "dit.safetensors", network)
    elif how == "image model":
        network.unlink()
    elif how == "a link to nothing":
        network.unlink()
        network.symlink_to(folder / "gone.safetensors")
    else:
        (folder / how).unlink()
    return folder


@pytest.mark.parametrize("how, answer", [
    ("truncated", "videodit.safetensors is truncated"), ("another class", "holds a MMDiT, not a VideoDiT"),
    ("dpvae.safetensors", "no checkpoint at"), ("a link to nothing", "videodit.safetensors"),
    ("text.safetensors", "holds no text encoder; give with --weights"),
    ("image model", "this is an image model; add --image, train stage videodit")])
def test_a_damaged_folder_is_explained(tiny, tmp_path, capsys, how, answer):
    """One line that names the file, exit code 2, and nothing is written."""
    ckpt = broken(tiny, tmp_path / "ckpt", how)
    assert answer in refused(capsys, "a cat", "--ckpt", ckpt, "--frames", 8, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------ the model's own settings

def test_a_model_says_how_it_wants_to_be_sampled(tiny, models):
    """Latte by DDPM: 250 ancestral steps, 7.5 for text; a flow: 28 steps, 4. A flag beats them."""
    latte = load_models(tiny.folder, model="latte")
    own = how_of(latte)
    assert (own.sampler, own.steps, own.guidance) == ("ddpm", 250, 7.5)
    own = how_of(models)
    assert (own.sampler, own.steps, own.guidance) == ("euler", 28, 4.0)
    assert how_of(latte, sampler="ddim", steps=50, guidance=1.0).steps == 50
    latte.sampling |= {"steps": 40}                                    # as if its checkpoint said so
    assert how_of(latte).steps == 40


@pytest.mark.slow
def test_temperature_scales_all_noise(tiny, make):
    """At 0 every seed makes one clip, by Euler and by DDPM, whose every step draws noise; a checkpoint may ask
    for its own."""
    for model in ("videodit", "latte"):
        how = "--model", model, "--steps", 3, "--temperature", 0
        still = [make("a cat", *how, "--seed", seed, out=f"{model}{seed}") for seed in (1, 2)]
        clips = [(folder / "0000-a-cat.mp4").read_bytes() for folder in still]
        assert clips[0] == clips[1]
    latte = load_models(tiny.folder, model="latte")
    latte.sampling |= {"temperature": 0.6}
    assert how_of(latte).temperature == 0.6 and how_of(latte, temperature=1.0).temperature == 1


def test_guidance_of_older_checkpoints_is_read(tmp_path):
    """Their JSON calls it cfg."""
    about = {"sampling": {"cfg": 3.0, "steps": 9}, "classes": ["a", "b", "c"]}
    ckpt = latte_folder(tmp_path, LatteConfig(**SMALL, condition="class", classes=3), about)
    how = how_of(load_models(ckpt))
    assert (how.guidance, how.steps) == (3.0, 9)


def latte_folder(folder, config, about=None):
    """A folder as train.py leaves it: a small Latte by DDPM and an image VAE."""
    save_network(folder / "latte.safetensors", scrambled(Latte(config)), extra={
        "size": 32, "frames": 6, "shift": 1.0, "objective": "ddpm", "latents": "vae", **(about or {})})
    vae = KLVAEConfig(4, ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, groups=4, scale=1.0, shift=0.0)
    save_network(folder / "vae.safetensors", KLVAE(vae))
    return folder


SMALL = dict(depth=2, width=48, heads=4, frames=6, input_size=4)


def test_an_unconditional_model_wants_no_prompt(tmp_path, make, capsys):
    """-n 2 and no word; any number of frames, for its VAE takes them one by one; a prompt is but a name."""
    ckpt = latte_folder(tmp_path / "ckpt", LatteConfig(**SMALL))
    clips = sorted(make("-n", 2, "--frames", 3, ckpt=ckpt).glob("*.mp4"))
    assert [clip.name for clip in clips] == ["0000-clip.mp4", "0001-clip.mp4"]
    assert len(read_video(clips[0])) == 3
    make("a cat", ckpt=ckpt, out="named")
    assert "reads no prompts" in capsys.readouterr().err
    assert "nothing to be guided by" in refused(capsys, "--guidance", "3", "--ckpt", ckpt)


def test_a_model_of_classes_takes_a_name_or_a_number(tmp_path, make):
    """In other letters, or by its place among the names."""
    ckpt = latte_folder(tmp_path / "ckpt", LatteConfig(**SMALL, condition="class", classes=3),
                        {"classes": ["ApplyEyeMakeup", "jump", "jump rope"]})
    with pytest.raises(UserError, match="give a class, such as ApplyEyeMakeup"):
        make(ckpt=ckpt)
    name, number, other = (next(make(prompt, ckpt=ckpt, out=prompt).glob("*.mp4")).read_bytes()
                           for prompt in ("apply eye makeup", "0", "2"))
    assert name == number != other


def test_negative_prompts_are_what_guidance_leaves(models):
    """Another negative is another clip; with guidance 1 there is nothing to leave."""
    plain, away = (generate(models, ["a cat"], steps=2, negative=word) for word in ("", "a red dog"))
    assert (plain - away).abs().max() > 1e-4
    one, other = (generate(models, ["a cat"], steps=2, guidance=1.0, negative=word)
                  for word in ("", "a red dog"))
    assert torch.equal(one, other)


# ------------------------------------------------------------ many, kept and seen

def test_a_save_that_is_stopped_leaves_no_settings_behind(tmp_path, monkeypatch):
    """Ctrl-C while the clip is written: a .json without a clip would be a riddle."""
    def stop(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(sample, "save_video", stop)
    with pytest.raises(KeyboardInterrupt):
        sample.store(tmp_path, 0, torch.zeros(3, 4, 16, 16), {"prompt": "a cat", "fps": 8.0})
    assert list(tmp_path.glob("*.json")) == []


def test_nothing_is_written_over(make):
    """A second run into the same folder takes the next numbers; the first clip is still what it was."""
    folder = make("a cat", "--seed", 1)
    before = (folder / "0000-a-cat.mp4").read_bytes()
    make("a cat", "a dog", "--seed", 2)
    assert sorted(path.name for path in folder.glob("*.mp4")) == [
        "0000-a-cat.mp4", "0001-a-cat.mp4", "0002-a-dog.mp4"]
    assert (folder / "0000-a-cat.mp4").read_bytes() == before
    (folder / "0003-a-cat.json").write_text("{}")               # another run, at the same time, was quicker
    assert sample.reserve(folder, 3, {"prompt": "a cat"}).name == "0004-a-cat"


def test_a_full_disk_leaves_no_number_without_a_clip(make, monkeypatch, tmp_path):
    """The .json is taken back when the clip cannot be written."""
    def full(*args, **settings):
        raise UserError("cannot write: no space")
    monkeypatch.setattr(sample, "save_video", full)
    with pytest.raises(UserError, match="no space"):
        make("a cat")
    assert not list((tmp_path / "out").glob("*.json"))


# ------------------------------------------------------------ from an image, from a clip

def image_file(path, size=32, seed=0):
    """A file with smooth colours."""
    colours = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((size, size), Image.BICUBIC).save(path)
    return path


def test_a_given_frame_stays_and_the_others_start_from_it(models):
    """Its latent is in the result to the bit; sampling starts part way, under noise HELD times its size."""
    how = how_of(models, steps=10, seed=1)
    shape, key = models.shape(2, 16, 32), torch.randn(1, 4, 1, 4, 4)
    given = given_frames(models, shape, {0: key}, how)
    z = sample_latents(models, ["a cat", "a dog"], shape, how, given=given)
    assert torch.equal(z[:, :, :1], key.expand(2, -1, -1, -1, -1))
    assert not torch.equal(z[:, :, 1:2], z[:, :, :1])
    levels = flow.sigmas(10, models.shift)
    started = levels[given.skipped(10)].item()
    assert started / (1 - started) <= sample.HELD
    both = given_frames(models, shape, {0: key, 3: -key}, how)
    assert torch.equal(both.known.latent, torch.cat([key, key, -key, -key], 2))


@pytest.mark.parametrize("model, group", [("videodit", 4), ("latte", 1)])
def test_start_and_end_are_where_they_were_asked(make, tmp_path, model, group):
    """A clip that ends with an image ends there: the frames after the last key frame are cut off."""
    start, end = image_file(tmp_path / "a.png"), image_file(tmp_path / "b.png", 50, seed=1)
    folder = make("a cat", "--start", start, "--end", end, "--model", model, "--guidance", 1)
    clip = read_video(folder / "0000-a-cat.mp4")
    assert len(clip) == 8 - group + 1
    about = json.loads((folder / "0000-a-cat.json").read_text())
    assert about["start"] == str(start) and about["end"] == str(end)


def test_a_clip_goes_on_window_by_window(models, make, tmp_path):
    """What was there stays, to the frame; any length, one window of the training's length at a time."""
    z = torch.randn(1, 4, 2, 4, 4)
    how, seen = how_of(models, steps=2), []
    honest = models.transformer.forward
    models.transformer.forward = lambda z, t, **cond: seen.append(z.shape[2]) or honest(z, t, **cond)
    try:
        longer = go_on(models, ["a cat"], z, 24, how)
    finally:
        del models.transformer.forward
    assert longer.shape[2] == 6 and torch.equal(longer[:, :, :2], z) and {*seen} == {2}
    assert len(windows_of(models, 2, 24)) == 4
    save_video(tmp_path / "given.mp4", np.full((9, 40, 32, 3), 200, np.uint8), crf=0)
    clip = read_video(make("a cat", "--extend", tmp_path / "given.mp4", "--frames", 20) / "0000-a-cat.mp4")
    assert len(clip) == 20 and abs(clip[:8].astype(int) - 200).max() < 8


@pytest.mark.parametrize("flag", ["--video", "--extend"])
def test_a_given_clip_is_read_at_the_models_rate(make, monkeypatch, tmp_path, flag):
    """60 frames a second for a model of 12: every fifth frame, as the data loader takes them, no slow motion.
    A clip that is then too short is refused by its count."""
    frames = np.zeros((60, 32, 32, 3), np.uint8) + np.arange(60, dtype=np.uint8)[:, None, None, None] * 4
    save_video(tmp_path / "fast.mp4", frames, fps=60, crf=0, side=32)
    seen, honest = [], sample.encode
    monkeypatch.setattr(sample, "encode", lambda models, x: seen.append(x) or honest(models, x))
    with pytest.raises(UserError, match="12"):
        make("a cat", flag, tmp_path / "fast.mp4", "--frames", 16 if flag == "--video" else 4)
    make("a cat", flag, tmp_path / "fast.mp4", "--frames", 8 if flag == "--video" else 16)
    grey = ((seen[-1][0, 0, :, 16, 16] + 1) * 127.5).tolist()                   # 0, 20, 40, ...
    assert all(abs(level - 20 * n) < 3 for n, level in enumerate(grey)) and len(grey) in (8, 12)


def test_another_size_than_the_trainings_is_said(make, capsys):
    """It makes a pattern of small subjects; the person is told why."""
    make("a cat", "--size", 64)
    assert "--size 64: this model was trained at 32 x 32" in capsys.readouterr().err


def test_strength_is_how_much_of_the_clip_is_forgotten(make, tmp_path):
    """All of the steps forget it; half of them do not."""
    save_video(tmp_path / "given.mp4", np.full((8, 32, 32, 3), 200, np.uint8))
    clips = [read_video(make("a cat", "--video", tmp_path / "given.mp4", "--strength", strength, out=strength)
                        / "0000-a-cat.mp4").astype(int) for strength in ("0.5", "1.0")]
    plain = read_video(make("a cat", out="plain") / "0000-a-cat.mp4").astype(int)
    assert abs(clips[1] - plain).max() <= 2 and abs(clips[0] - plain).mean() > 1


# ------------------------------------------------------------ released models, by their layouts

@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """What README's commands name, small: the layouts of the released files with random weights."""
    folder = tmp_path_factory.mktemp("released") / "weights"
    stand_ins.weights(folder)
    return folder


SD_VAE = "sd-v1-4/vae"
LAYOUTS = {
    "DiT": (["207", "--weights", "DiT-XL-2-256x256.pt", "--vae", SD_VAE], (1, 32)),
    "Latte, no condition": (["--weights", "ffs.pt", "--vae", SD_VAE], (4, 32)),
    "Latte, classes": (["2", "--weights", "ucf101.pt", "--vae", SD_VAE], (4, 32)),
    "PixArt": (["a cat", "--weights", "PixArt-XL-2-512x512", "--size", "32"], (1, 32)),
    "Latte-T2V": (["a cat", "--weights", "Latte-1"], (5, 64)),
    "Latte-T2V, an image": (["a cat", "--weights", "Latte-1", "--image"], (1, 64))}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_released_layout_becomes_a_clip(name, released, make):
    """Random weights in the very layout of the release, through the command, to the file that it makes."""
    words, (frames, size) = LAYOUTS[name]
    folder = make(*[released / word if (released / word).exists() else word for word in words])
    about, = (json.loads(path.read_text()) for path in folder.glob("*.json"))
    assert (about["frames"], about["pixels"]) == (frames, size)
    assert len(list(folder.glob("*.mp4"))) == (frames > 1) and len(list(folder.glob("*.png"))) == 1


def test_pixart_at_1024_is_told_the_size_of_its_image():
    """Micro-conditions: height and width in pixels, and their ratio."""
    net = PixArt(PixArtConfig(depth=1, width=24, heads=2, caption_channels=8, micro_conditions=True))
    models = Models(SimpleNamespace(downsampling=8), None, net)
    z, context = torch.randn(2, net.config.in_channels, 1, 4, 8), torch.randn(2, 3, 8)
    cond = sample.add_resolution(models, {"context": context}, z.shape, "cpu")
    assert cond["resolution"].tolist() == [[32, 64]] * 2 and cond["aspect_ratio"].tolist() == [[0.5]] * 2
    assert net(z, torch.tensor([3.0, 4.0]), **cond).shape[2:] == z.shape[2:]


@pytest.mark.parametrize("missing, answer", [
    ("text_encoder", "no clip_l"), ("vae", "no vae"), ("transformer", "no transformer")])
def test_what_is_missing_is_said_first_and_with_its_publisher(sd3, tmp_path, capsys, missing, answer):
    """File and publisher, before anything is computed."""
    folder = tmp_path / "bare"
    shutil.copytree(sd3[1], folder, ignore=lambda at, names: [missing] if at == str(sd3[1]) else [])
    error = refused(capsys, "a cat", "--weights", folder, "--size", 64, "--out", tmp_path / "out")
    assert answer in error and "stabilityai" in error and not (tmp_path / "out").exists()


def test_other_things_that_people_have_are_explained(sd3, released, tmp_path, capsys):
    """A shard that is not there; a VAE of other channels; two models in a folder; a U-Net."""
    shutil.copytree(released / "Latte-1", tmp_path / "latte")
    (tmp_path / "latte/text_encoder/model-00002-of-00002.safetensors").unlink()
    assert "text_encoder has 1 of 2 shards" in refused(capsys, "a", "--weights", tmp_path / "latte")
    two = [shutil.copy(released / name, tmp_path) for name in ("ffs.pt", "DiT-XL-2-256x256.pt")]
    assert "16 channels" in refused(capsys, "3", "--weights", two[1], "--vae", sd3[1])
    assert "several transformers" in refused(capsys, "3", "--weights", tmp_path)
    torch.save({"input_blocks.0.0.weight": torch.zeros(2)}, tmp_path / "unet.pt")
    assert "no network that is known here" in refused(capsys, "a", "--weights", tmp_path / "unet.pt")


def test_our_own_text_to_video_latte_samples(make, tmp_path, capsys):
    """Latte 4.5 trained here: T5 is given, as a Diffusers folder or as a folder of shards; without it, an
    error says what is missing."""
    ckpt = latte_folder(tmp_path / "ckpt", LatteConfig(**SMALL, condition="text", context_dim=24,
                                                       conditioning="adaln_single", joint="temporal_mask"))
    assert "T5 v1.1 XXL" in refused(capsys, "a cat", "--ckpt", ckpt, "--out", tmp_path / "out")
    t5_files(tmp_path / "t5", shards=2)
    one = make("a cat", "--weights", tmp_path / "t5", ckpt=ckpt)
    assert len(read_video(one / "0000-a-cat.mp4")) == 6
    for path in (tmp_path / "t5/text_encoder").iterdir():
        shutil.copy(path, tmp_path / "t5/tokenizer")
    other = make("a cat", "--weights", tmp_path / "t5/tokenizer", ckpt=ckpt, out="other")
    assert (one / "0000-a-cat.mp4").read_bytes() == (other / "0000-a-cat.mp4").read_bytes()


def spoil(path, name, value):
    """One weight of a released file becomes another number."""
    state = {key: tensor.clone() for key, tensor in read_state(path).items()}
    state[name].view(-1)[0] = value
    save_file(state, path)


TRANSFORMER, DECODER = ("transformer/diffusion_pytorch_model.safetensors", "proj_out.bias"), (
    "vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias")


@pytest.mark.parametrize("file, value, answer", [
    (TRANSFORMER, math.nan, "not finite"), (TRANSFORMER, 3e38, "the latents are not finite numbers"),
    (DECODER, 3e38, "the decoded frames are not finite numbers")])
def test_what_is_no_number_is_no_black_clip(released, tmp_path, capsys, file, value, answer):
    """A weight that is none, or one that makes the sums overflow: an error says where; nothing is written."""
    weights = shutil.copytree(released / "Latte-1", tmp_path / "latte")
    spoil(weights / file[0], file[1], value)
    assert answer in refused(capsys, "a cat", "--weights", weights, "--steps", 2, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------ SD3

def sd3_image(source, prompts, size, **settings):
    models = released_models(pretrained.open_released(source))
    models.size = size
    return generate(models, prompts, **settings)


def test_one_file_and_a_diffusers_folder_make_the_same_image(sd3):
    """fp16 on disk or fp32, both run alike; SD3's names or, in the folder's parts, the same ones."""
    one, folder = (sd3_image(path, ["a cat"], 64, steps=2, seed=3) for path in sd3)
    assert one.shape == (1, 3, 1, 64, 64) and one.std() > 0
    assert_close(one, folder, atol=0.1, rtol=0)


def test_zero_shot_video_has_t_frames(sd3, make):
    """VideoDiT Fig. 2: the image model attends over any number of frames; each is decoded by itself."""
    folder = make("", "--weights", sd3[0], "--zero-shot-video", "--frames", 3, "--size", 32)
    clip, = folder.glob("*.mp4")
    assert len(read_video(clip)) == 3
    with pytest.raises(UserError, match="--zero-shot-video shows an untrained image model.*no --extend"):
        make("", "--weights", sd3[0], "--zero-shot-video", "--extend", "a.mp4", "--size", 32)
    with pytest.raises(UserError, match="this is an image model; .*--zero-shot-video"):
        make("a cat", "--weights", sd3[0], "--frames", 8)


# ------------------------------------------------------------ all steps, against formulas written out

class Words:
    """A text encoder that answers with the fixture's tensors; what it says of "" is the half of them."""
    def __init__(self, gives, *values):
        self.gives, self.values = gives, values

    def __call__(self, prompts):
        return tuple(value[:len(prompts)] if any(prompts) else value[:len(prompts)] * 0.5 if
                     value.is_floating_point() else value[:len(prompts)] for value in self.values)


def sampled(network, text, shape, sampler, guidance, **more):
    """The latents that sample.py makes in three steps, and the noises that it drew, noisiest first."""
    vae = KLVAE(KLVAEConfig(shape[1], ch=8, ch_mult=(1, 1), num_res_blocks=1, groups=4))
    models = Models(vae, text, network, objective="flow" if sampler == "euler" else "ddpm", **more)
    how = how_of(models, sampler, 3, guidance, seed=5)
    prompts = ["1", "2"] if models.classes else ["x", "x"]
    with torch.no_grad():
        z = sample_latents(models, prompts, shape, how)
    return z, [order.keyed_noise(shape, 5, n, 0, stream=order.SAMPLING) for n in range(4)]


def by_hand(answer, noises, channels, ancestral):
    """Ho Algorithm 2 or DDIM Eq. 12 at the timesteps 999, 500, 0, as the papers print them."""
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    steps, x = [999, 500, 0], noises[0]
    a = {t: alpha_bar[t].item() for t in steps}
    before = {999: a[500], 500: a[0], 0: 1.0}
    small = {t: (1 - a[t] / before[t]) * (1 - before[t]) / (1 - a[t]) for t in steps}
    small[0] = small[500]                                       # there is no logarithm of 0
    for k, t in enumerate(steps):
        with torch.no_grad():
            out = answer(x, torch.full((len(x),), t))
        eps, v = out[:, :channels], out[:, channels:]
        x0 = (x - (1 - a[t]) ** 0.5 * eps) / a[t] ** 0.5
        if not ancestral:
            x = before[t] ** 0.5 * x0 + (1 - before[t]) ** 0.5 * eps
            continue
        beta = 1 - a[t] / before[t]
        mean = (before[t] ** 0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before[t]) * x) / (1 - a[t])
        log_variance = (v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(small[t])
        x = mean + (t > 0) * (0.5 * log_variance).exp() * noises[k + 1]
    return x


def test_golden_dit_loop():
    """Guidance on three of four channels, 999 first, no noise in the last step."""
    weights, _, _, config = golden("dit")
    net = pretrained.dit(weights, head_dim=config["hidden_size"] // config["num_heads"])
    shape, names = (2, 4, 1, config["input_size"], config["input_size"]), ("zero", "one", "two")
    z, noises = sampled(net, None, shape, "ddpm", 4.0, classes=names)

    def answer(x, t):
        labelled, free = net(x, t, torch.tensor([1, 2])), net(x, t, torch.full((2,), config["num_classes"]))
        return torch.cat([free[:, :3] + 4 * (labelled[:, :3] - free[:, :3]), labelled[:, 3:]], 1)
    assert_close(z, by_hand(answer, noises, 4, ancestral=True), atol=1e-3, rtol=1e-3)


def test_golden_latte_class_loop():
    """All four channels are guided; the variance is the labelled answer's."""
    weights, _, _, config = golden("latte_class")
    net = pretrained.latte(weights, config["hidden_size"] // config["num_heads"])
    shape = (2, 4, config["num_frames"], config["input_size"], config["input_size"])
    z, noises = sampled(net, None, shape, "ddpm", 7.0, classes=("zero", "one", "two"))

    def answer(x, t):
        labelled = net(x, t, labels=torch.tensor([1, 2]))
        free = net(x, t, labels=torch.full((2,), config["num_classes"]))
        return torch.cat([free[:, :4] + 7 * (labelled[:, :4] - free[:, :4]), labelled[:, 4:]], 1)
    assert_close(z, by_hand(answer, noises, 4, ancestral=True), atol=1e-3, rtol=1e-3)


def test_golden_pixart_loop():
    """The empty prompt, with its own mask, is what guidance leaves."""
    weights, inputs, _, config = golden("pixart_diffusers")
    config = config["diffusers"]
    net = pretrained.pixart(weights, config["attention_head_dim"], config["sample_size"])
    context, mask = inputs["text"], inputs["text_mask"]
    shape = (2, 4, 1, 8, 8)
    z, noises = sampled(net, Words(("context", "mask"), context, mask), shape, "ddpm", 4.5, null="empty")

    def answer(x, t):
        told = net(x, t, context, mask)
        free = net(x, t, context[:1].expand_as(context) * 0.5, mask[:1].expand_as(mask))
        return torch.cat([free[:, :4] + 4.5 * (told[:, :4] - free[:, :4]), told[:, 4:]], 1)
    assert_close(z, by_hand(answer, noises, 4, ancestral=True), atol=1e-3, rtol=1e-3)


def test_golden_latte_t2v_loop():
    """DDIM; the empty prompt is cut to the prompt's length, as its pipeline does."""
    weights, inputs, _, config = golden("latte_t2v_diffusers")
    config = config["diffusers"]
    net = pretrained.latte_t2v(weights, config["attention_head_dim"], config["sample_size"],
                              config["video_length"])
    context = inputs["text"]
    mask = torch.ones(context.shape[:2], dtype=torch.long)
    mask[1, -2:] = 0
    shape = (2, 4, config["video_length"], 8, 8)
    z, noises = sampled(net, Words(("context", "mask"), context, mask), shape, "ddim", 7.5, null="empty")

    def answer(x, t):
        told = net(x, t, context=context, mask=mask)
        free = net(x, t, context=context[:1].expand_as(context) * 0.5, mask=mask)
        return free[:, :4] + 7.5 * (told[:, :4] - free[:, :4])
    assert_close(z, by_hand(answer, noises, 4, ancestral=False), atol=1e-3, rtol=1e-3)


def test_golden_sd3_loop():
    """Three steps of Euler on SD3's levels for shift 3, its network fed 1000 sigma, zeros as null prompt."""
    weights, inputs, _, config = golden("sd3_mmdit")
    net = pretrained.mmdit(weights, head_dim=config["head_dim"])
    context, pooled = inputs["context"], inputs["y"]
    shape = (2, 16, 1, 10, 14)
    z, noises = sampled(net, Words(("context", "pooled"), context, pooled), shape, "euler", 7.0, shift=3.0)
    shifted = lambda sigma: 3 * sigma / (1 + 2 * sigma)
    levels = [shifted(sigma) for sigma in (1.0, (1 + shifted(0.001)) / 2, shifted(0.001))] + [0.0]
    x = noises[0]
    for now, then in zip(levels, levels[1:]):
        t = torch.full((2,), 1000 * now)
        with torch.no_grad():
            told, free = (net.forward_sd3(x, t, k * context, k * pooled) for k in (1, 0))
        x = x + (then - now) * (free + 7 * (told - free))
    assert_close(z, x, atol=1e-4, rtol=1e-4)
