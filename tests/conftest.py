"""What several test files need: golden fixtures, a tiny trained model, tiny files in SD3's layouts, clips."""

import contextlib
import gzip
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

# Before torch is loaded, for the tests and all that they start. Their networks are so small that a second
# thread makes them slower (62 s for 52), and more so beside other work, where the two wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")        # where somebody asks for more: see cli.py

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import train
from data import ClipConfig, ClipFolder, ImageFolder
from support import toy_world
from dit import MMDiT, MMDiTConfig
from text import CLIPText, CLIPTextConfig
from vae import KLVAE, KLVAEConfig
from support.trainer import BEGUN
from support.video_io import read_all, save_video

GOLDEN = Path(os.environ.get("GOLDEN_DIR", "tests/golden"))


def read_video(path):
    """Every frame of a clip as uint8 (T,H,W,3)."""
    return read_all(path)[1]


def golden(name):
    """weights, inputs, expected outputs and config of a fixture."""
    groups = {"weights": {}, "in": {}, "out": {}}
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        for key in file.keys():
            group, rest = key.split(".", 1)
            groups[group][rest] = file.get_tensor(key)
        return *groups.values(), json.loads(file.metadata()["config"])


def close(actual, expected, atol=1.5e-5):
    """Equal to a reference as far as float32 goes on any CPU. A fixture's outputs carry the rounding of the
    reference itself, and ours round otherwise on another CPU, each by up to 5e-6 (Latte: 1e-5); so the bar is
    1e-5 and twice that rounding, of the largest value where that is above 1. What a bar this wide lets
    through, a norm's eps of 1e-5 for 1e-6 (it moves an output by 1.9e-5), is looked at by name:
    test_machines.py."""
    torch.testing.assert_close(actual, expected, atol=atol * max(1.0, expected.abs().max().item()), rtol=0)


def released(name):
    """{name: meta tensor} with the keys and shapes of a released checkpoint, and its config."""
    with gzip.open(GOLDEN / "checkpoint_keys.json.gz") as file:
        entry = json.load(file)["models"][name]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in entry["tensors"].items()}
    return tensors, entry["config"]


@dataclass
class Done:
    """What a command printed, its exit code, and the CPU seconds it took, of all its processes."""
    code: int
    out: str
    err: str
    seconds: float


def script(*words, extra=None):
    """Run one of the repository's scripts as a person would: script("sample.py", "a cat", "--seed", 1).
    extra: more variables for its environment."""
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = spent()
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True,
                          env={**os.environ, **(extra or {})})
    return Done(done.returncode, done.stdout, done.stderr, spent() - before)


def together(*commands, extra=None):
    """Several at once: a short command spends most of its time loading torch, on one core."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda words: script(*words, extra=extra), commands))


@dataclass
class Tiny:
    folder: Path
    said: str
    seconds: float

    def fork(self, to):
        """A copy of the weights and of the cached latents, without the states of its stages."""
        unwanted = shutil.ignore_patterns("state.pt", "log.jsonl", "*.png", "*.mp4", "[0-9]" * 7)
        shutil.copytree(self.folder, to, ignore=unwanted)
        for settings in Path(to).glob("*/settings.json"):       # stages that have begun and saved no state yet
            (settings.parent / BEGUN).touch()
        return Path(to)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Every stage of the tiny preset, from nothing."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    began = time.process_time()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(train, "catch_signals", lambda: None)             # they stay pytest's
        train.main(["--config", "tiny", "--stage", "all", "--out", str(folder)])
    return Tiny(folder, said.getvalue(), time.process_time() - began)


@pytest.fixture(scope="session")
def sd3(tmp_path_factory):
    return write_sd3(tmp_path_factory.mktemp("sd3"))


def write_sd3(folder):
    """(single file, Diffusers folder) with random weights: small networks under the published names."""
    torch.manual_seed(0)
    clip_l = CLIPText(CLIPTextConfig(width=8, layers=2, heads=1, mlp_width=16))
    clip_g = CLIPText(CLIPTextConfig(width=16, layers=2, heads=1, mlp_width=16, act="gelu", projection=16))
    mmdit = MMDiT(MMDiTConfig(16, 2, 2, 1, 64, context_dim=4096, pooled_dim=24, pos_grid=8, base_size=8))
    for parameter in mmdit.parameters():                    # a fresh transformer answers 0 to everything
        torch.nn.init.normal_(parameter, std=0.05)
    vae = KLVAE(KLVAEConfig(16, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1))
    parts = {"model.diffusion_model.": mmdit, "first_stage_model.": vae,
             "text_encoders.clip_l.transformer.": clip_l, "text_encoders.clip_g.transformer.": clip_g}
    state = {prefix + name: tensor.half() for prefix, net in parts.items()
             for name, tensor in net.state_dict().items()}
    save_file(state, folder / "sd3.safetensors")
    for part, prefix in (("transformer", "model.diffusion_model."), ("vae", "first_stage_model."),
                         ("text_encoder", "text_encoders.clip_l.transformer."),
                         ("text_encoder_2", "text_encoders.clip_g.transformer.")):
        (folder / "diffusers" / part).mkdir(parents=True)
        save_file(parts[prefix].state_dict(), folder / "diffusers" / part / "model.safetensors")
    return folder / "sd3.safetensors", folder / "diffusers"


@pytest.fixture(scope="session")
def mp4s(tmp_path_factory):
    """A folder of three clips of 24 frames, each with its caption beside it."""
    folder = tmp_path_factory.mktemp("mp4s")
    for index in range(3):
        spec = toy_world.sample_spec(0, index, "video")
        save_video(folder / f"{index}.mp4", toy_world.render(spec, 24, 48))
        (folder / f"{index}.txt").write_text(toy_world.caption(spec, 0))
    return folder


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    """Four rendered clips of 16 frames as .mp4."""
    folder = tmp_path_factory.mktemp("shots")
    for index in range(4):
        save_video(folder / f"{index}.mp4", toy_world.render(toy_world.sample_spec(0, index), 16, 32))
    return folder


# ------------------------------------------------------------------------------------ videos and images

RED = (200, 40, 90)


def make_clip(path, frames=40, codec="libx264", pix="yuv420p", size=(64, 64), rate=25, times=None, **options):
    """A video whose frame n is flat grey 8 + 5n, so that a frame tells its number."""
    with av.open(str(path), "w") as container:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=rate, options={**options, **quiet})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, pix, 2_000_000
        stream.codec_context.time_base = Fraction(1, 1000) if times else 1 / Fraction(rate)
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), (8 + 5 * number) % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(item):
    """The frame numbers that an item of make_clip's shows."""
    levels = (item["video"].mean((0, 2, 3)) + 1) * 127.5                                 # (T,)
    return [round((level.item() - 8) / 5) for level in levels]


def clips_in(root, frames, size, **how):
    return ClipFolder(root, ClipConfig(frames, size, **how))


def images_in(root, size, **how):
    return ImageFolder(root, ClipConfig(1, size, **how))


def make_image(path, colour=RED, size=(20, 14), mode="RGB"):
    Image.new(mode, size, colour).save(path)
    return path


def pixel(item):
    return ((item["video"][:, 0, 4, 4] + 1) * 127.5).round().int().tolist()


def same(a, b):
    """Two items with the same pixels and the same words."""
    torch.testing.assert_close(a["video"], b["video"], rtol=0, atol=0)
    assert a["caption"] == b["caption"]
