"""From a prompt to a file: repeatable, and clear about what it cannot do."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

import sample
from checkpoint import UserError, polite
from conftest import script
from sample import file_name, generate, generate_from_weights, load_models
from video import read_video


@pytest.fixture(scope="session")
def models(tiny):
    """The tiny VideoDiT with its DP-VAE and text encoder."""
    return load_models(tiny.folder)


@pytest.fixture
def make(tiny, tmp_path):
    """make("a cat", "--seed", 1) runs sample.py on the tiny model in two steps; returns where it wrote to."""
    def make(*words, out="out", ckpt=None):
        folder = tmp_path / out
        model = [] if "--weights" in words else ["--ckpt", str(ckpt or tiny.folder)]
        sample.main([*map(str, words), *model, "--steps", "2", "--out", str(folder)])
        return folder
    return make


def refused(capsys, *words):
    """The one line on stderr of a command that must end with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        polite(lambda: sample.main([*map(str, words)]))
    lines = capsys.readouterr().err.splitlines()
    error = [line for line in lines if line and "it/s]" not in line]       # that would be a progress bar
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
    about = json.loads((make("a cat", "a dog", "--seed", 7, "--cfg", 2) / "0001-a-dog.json").read_text())
    flags = {"first": "index", "seed": "seed", "cfg": "cfg", "frames": "frames", "size": "pixels"}
    words = [word for flag, key in flags.items() for word in (f"--{flag}", about[key])]
    again = make(about["prompt"], *words, out="again")
    assert about["steps"] == 2 and about["torch"] == torch.__version__
    folders = again.parent / "out", again
    one, other = (read_video(folder / "0001-a-dog.mp4").astype(int) for folder in folders)
    assert abs(one - other).max() <= 2                      # one clip alone may round otherwise than two


def test_guidance_of_one_asks_once(models, monkeypatch):
    """cfg = 1 is the conditional model alone: half the work."""
    asked, honest = [], models.transformer.forward
    spy = lambda z, t, **cond: asked.append(len(z)) or honest(z, t, **cond)
    monkeypatch.setattr(models.transformer, "forward", spy)
    generate(models, ["a cat"], steps=3, cfg=1.0)
    generate(models, ["a cat"], steps=2, cfg=4.0)
    assert asked == [1, 1, 1, 2, 2]


# ------------------------------------------------------------ pictures, lengths, files

def test_a_picture_is_one_frame_decoded_by_the_image_decoder(models, monkeypatch):
    """VideoDiT A.2, "decoding using the corresponding decoder": D_k for T = 1, D for clips."""
    def never(z):
        raise AssertionError("D was asked for a picture")
    monkeypatch.setattr(models.vae, "decode", never)
    assert generate(models, ["a cat"], frames=1, steps=2).shape == (1, 3, 1, 32, 32)
    with pytest.raises(AssertionError):
        generate(models, ["a cat"], frames=4, steps=2)


def test_image_writes_a_picture_and_no_clip(make):
    """--image: .png and .json."""
    written = sorted(path.name for path in make("a cat", "--image").iterdir())
    assert written == ["0000-a-cat.json", "0000-a-cat.png"]


def test_a_clip_comes_with_a_contact_sheet_and_if_asked_a_gif(make):
    """--gif and --fps; --frames other than those of training."""
    folder = make("a cat", "--gif", "--fps", 8, "--frames", 12)
    assert sorted(path.suffix for path in folder.iterdir()) == [".gif", ".json", ".mp4", ".png"]
    assert len(read_video(folder / "0000-a-cat.mp4")) == 12


def test_prompts_come_from_a_file_and_from_anywhere_on_the_line(make, tmp_path):
    """--prompts: one a line, without empty lines and Windows' mark; -n clips of each; flags in between."""
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\n\na red dog\n".encode())
    folder = make("a fish", "--seed", 1, "a bird", "--prompts", tmp_path / "prompts.txt", "-n", 2)
    assert sorted(path.name for path in folder.glob("*.mp4")) == [
        f"{number:04d}-{name}.mp4" for number, name in enumerate(
            ("a-fish", "a-fish", "a-bird", "a-bird", "a-cat", "a-cat", "a-red-dog", "a-red-dog"))]


def test_an_unknown_word_is_warned_of_and_the_clip_still_made(make, capsys):
    """The warning lists the words it knows, nearest first."""
    folder = make("a catt")
    warned = capsys.readouterr().err
    assert "catt" in warned and "the words it knows: cat" in warned
    assert (folder / "0000-a-catt.mp4").is_file()


def test_any_script_is_welcome(make, capsys):
    """A prompt and a folder that are not ASCII; where no letter may stand in a file name, a hash does."""
    folder = make("ein Kätzchen", "\u732b", out="bücher \u732b")
    names = sorted(path.name for path in folder.glob("*.mp4"))
    assert names == ["0000-ein-k-tzchen.mp4", file_name(1, "\u732b") + ".mp4"]
    assert json.loads((folder / names[1].replace("mp4", "json")).read_text())["prompt"] == "\u732b"
    assert "bücher" in capsys.readouterr().out


def test_file_names_hold_nothing_but_letters_and_digits():
    """A prompt cannot leave the folder, nor be longer than a file system likes."""
    assert file_name(3, "../../etc/passwd") == "0003-etc-passwd"
    assert len(file_name(0, "a cat " * 100)) < 80 and file_name(0, "!?") != file_name(0, "?!")


def test_latte_samples_by_its_own_walk(make, tmp_path, capsys):
    """Latte 3.1: DDPM, or DDIM; a flow's sampler is refused."""
    assert len(list(make("a cat", "--model", "latte").glob("*.mp4"))) == 1
    make("a cat", "--model", "latte", "--sampler", "ddim")
    with pytest.raises(UserError, match="--sampler euler: this model was trained by DDPM"):
        make("a cat", "--model", "latte", "--sampler", "euler")


# ------------------------------------------------------------ bad input

@pytest.mark.parametrize("words, answer", [
    (["a cat", "--step", "5"], "unknown flag --step; did you mean --steps?"),
    (["a cat", "--frames", "13"], "--frames 13: must be 1 (an image) or a multiple of 4, such as 12 or 16"),
    (["a cat", "--frames", "-4"], "--frames -4: must"), (["a cat", "--steps", "0"], "--steps 0: must be at"),
    (["a cat", "--steps", "many"], "invalid int value: 'many'"), (["a cat", "-n", "0"], "-n 0: must be at"),
    (["a cat", "--cfg", "nan"], "--cfg nan: must"), (["a cat", "--fps", "inf"], "--fps inf: must"),
    (["a cat", "--size", "40"], "--size 40: must be a multiple of 16"),
    (["a cat", "--ckpt", "nowhere"], "no folder nowhere"),
    (["a cat", "--size", "4096"], "256 x 256 patches do not"), ([], "give a prompt, such as"),
    (["--prompts", "nowhere.txt"], "no file nowhere.txt"),
    (["a cat", "--weights", "nowhere.safetensors"], "no file or folder"),
    (["a cat", "--zero-shot-video"], "shows an untrained Stable Diffusion 3: give --weights"),
    (["a cat", "--weights", "x", "--frames", "8"], "--frames 8: Stable Diffusion 3 makes pictures"),
    (["a cat", "--sampler", "ddim"], "--sampler ddim: this model was trained as a flow")])
def test_a_wrong_flag_gets_one_line_and_exit_code_2(tiny, tmp_path, capsys, words, answer):
    """The flag and the way out are named, and nothing is written."""
    if words and not {"--ckpt", "--weights", "--zero-shot-video"} & {*words}:
        words = [*words, "--ckpt", tiny.folder]
    assert answer in refused(capsys, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_itself_exits_with_2(tmp_path):
    """From the shell, once: no stack trace."""
    done = script("sample.py", "a cat", "--frames", 13, "--out", tmp_path / "out")
    assert done.code == 2 and done.err.startswith("sample.py: --frames 13") and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


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
    else:
        (folder / how).unlink()
    return folder


@pytest.mark.parametrize("how, answer", [
    ("truncated", "videodit.safetensors is truncated"), ("another class", "holds a MMDiT, not a VideoDiT"),
    ("dpvae.safetensors", "no checkpoint at"),
    ("text.safetensors", "holds no text encoder; give with --weights"),
    ("image model", "holds an image model only; add --image, or train stage videodit")])
def test_a_damaged_folder_is_explained(tiny, tmp_path, capsys, how, answer):
    """One line that names the file, exit code 2, and nothing is written."""
    ckpt = broken(tiny, tmp_path / "ckpt", how)
    assert answer in refused(capsys, "a cat", "--ckpt", ckpt, "--frames", 8, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_may_not_be_a_file(tiny, tmp_path, capsys):
    """Found out before the clip is made, not after."""
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file; give a folder" in refused(capsys, "a cat", "--ckpt", tiny.folder, "--out", file)
    assert file.read_text() == "mine"


def test_an_image_model_alone_makes_pictures(tiny, make, tmp_path):
    """A folder where stage dit was the last."""
    folder = make("a cat", "--image", ckpt=broken(tiny, tmp_path / "ckpt", "image model"))
    assert (folder / "0000-a-cat.png").is_file()


# ------------------------------------------------------------ published weights

def test_one_file_and_a_diffusers_folder_make_the_same_picture(sd3):
    """fp16 on disk or fp32, both run in bf16; SD3's names or, in the folder's parts, the same ones."""
    one, folder = (generate_from_weights(path, ["a cat"], size=64, steps=2, seed=3) for path in sd3)
    assert one.shape == (1, 3, 1, 64, 64) and one.std() > 0
    assert_close(one, folder, atol=0.1, rtol=0)


def test_the_empty_prompt_needs_no_encoder(sd3, make):
    """sd3_medium.safetensors has none: "" is the null prompt, of the width that the transformer wants."""
    folder = make("", "--weights", sd3[1], "--size", 64)
    assert len(list(folder.glob("*.png"))) == 1
    for encoder in ("text_encoder", "text_encoder_2"):
        assert (sd3[1] / encoder).is_dir()
    assert generate_from_weights(sd3[0], [""], size=64, steps=1).isfinite().all()


def test_prompts_and_guidance_reach_the_published_model(sd3):
    """Another prompt or another guidance is another picture; clip i can be made alone here, too."""
    cat, dog, more = (generate_from_weights(sd3[0], [prompt], size=32, steps=2, cfg=cfg, first_index=1)
                      for prompt, cfg in (("a cat", 4.0), ("a dog", 4.0), ("a cat", 9.0)))
    assert not torch.equal(cat, dog) and not torch.equal(cat, more)
    both = generate_from_weights(sd3[0], ["a dog", "a cat"], size=32, steps=2, cfg=4.0)
    assert_close(both[1:], cat, atol=0.1, rtol=0)


def test_zero_shot_video_has_t_frames(sd3, make):
    """VideoDiT Fig. 2: the image model attends over any number of frames; each is decoded by itself."""
    folder = make("", "--weights", sd3[0], "--zero-shot-video", "--frames", 3, "--size", 32)
    clip, = folder.glob("*.mp4")
    assert len(read_video(clip)) == 3


def test_a_file_without_encoders_says_so(sd3, tmp_path, capsys):
    """A prompt needs both CLIPs."""
    folder = tmp_path / "bare"
    shutil.copytree(sd3[1], folder, ignore=shutil.ignore_patterns("text_encoder*"))
    error = refused(capsys, "a cat", "--weights", folder, "--size", 64, "--out", tmp_path / "out")
    assert "no clip_l" in error and "stabilityai" in error and not (tmp_path / "out").exists()
