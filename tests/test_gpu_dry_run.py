"""Tests of what runs on a GPU, without one. FakeTensorMode knows device, shape and dtype of each CUDA tensor
and no number: two devices in one operation, or a question for a value (.item(), an `if` on a tensor), are
errors, and each copy between processor and GPU is seen. Not seen: whether a kernel exists, how long it takes.
The backward pass is left out: torch's engine asks the driver for its streams, and there is none."""

import contextlib
import ctypes
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import sample
import train
from dit import DiT, DiTConfig, MMDiT, PixArt, PixArtConfig
from latte import Latte
from presets import parse
from sample import Models, generate
from support.detectors import I3D
from support.trainer import Learner, Run
from text import CLIPText, CLIPTextConfig, SD3Text, T5Config, T5Encoder, T5Text
from train import Reader
from vae import DPVAE, DPVAEConfig, KLVAE, SD14
from videodit import VideoDiT

REPOSITORY = Path(train.__file__).parent
GPU = "cuda:0"

# torch keeps for each device a "guard", which knows how to switch to it; a build for CPUs has none for CUDA,
# and FakeTensorMode asks for one. Torch's headers hold a guard that does nothing.
GUARD = """#include <c10/core/impl/FakeGuardImpl.h>
using Guard = c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>;
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, Guard) }
"""


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: nothing has to be imagined")
    if not shutil.which("g++"):
        pytest.skip("needs g++, to build a guard for a GPU that is not there")
    folder, torch_at = tmp_path_factory.mktemp("guard"), Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(GUARD)
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", folder / "guard.cpp", f"-I{torch_at}/include",
                    f"-L{torch_at}/lib", "-lc10", "-o", folder / "guard.so"], check=True)
    ctypes.CDLL(str(folder / "guard.so"))


class Copies(TorchDispatchMode):
    """Where tensors go from one device to another: {function of this repository: [(from, to), ...]}."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::_to_copy", "aten::copy_"):
            source = args[-1] if func._schema.name == "aten::copy_" else args[0]
            way = source.device.type, out.device.type
            if way[0] != way[1]:
                self.found.setdefault(asker(), []).append(way)
        return out


def asker():
    """The innermost function of this repository, tests left out, that is running."""
    frame = sys._getframe(2)
    while frame:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(REPOSITORY) and file.parent.name != "tests":
            return frame.f_code.co_qualname
        frame = frame.f_back
    return "?"


@pytest.fixture
def gpu(guard, monkeypatch):
    """A GPU that multiplies in bf16; numbers of a tensor on the CPU may be asked for, and are 0.5."""
    def numbers(tensor):
        assert tensor.device.type == "cpu"
        return [0.5] * len(tensor)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)               # else autocast is off
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(FakeTensor, "tolist", numbers)
    monkeypatch.setattr(FakeTensorMode, "avoid_device_init", True, raising=False)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    monkeypatch.setattr(torch.nn.Module, "_apply", applied)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def applied(net, function, recurse=True):
    """What Module.to calls. Torch swaps the memory of a tensor for another's, which fakes do not allow."""
    for module in net.modules():
        for name, weight in module.named_parameters(recurse=False):
            module._parameters[name] = torch.nn.Parameter(function(weight.detach()), weight.requires_grad)
        for name, table in module.named_buffers(recurse=False):
            module._buffers[name] = function(table)
    return net


def empty(*shape):
    return torch.empty(*shape, device=GPU)


def image_vae(cfg):
    return KLVAE(cfg.vae).to(GPU).requires_grad_(False)


def video_vae(cfg):
    return DPVAE(DPVAEConfig(**vars(cfg.vae), window=8, overlap=4)).to(GPU).requires_grad_(False)


def clips():
    """Small CLIPs, whose 16 + 16 numbers are the context of the preset `tiny`."""
    small = CLIPTextConfig(width=16, layers=2, heads=2, mlp_width=32)
    large = CLIPTextConfig(width=16, layers=2, heads=2, mlp_width=32, act="gelu", projection=16)
    return {"clip_l": lambda: CLIPText(small), "clip_g": lambda: CLIPText(large)}


def t5():
    return {"t5xxl": lambda: T5Encoder(T5Config(64, 32, 2, 2, 16, 48))}


class Pieces:
    """T5's tokenizer, whose file is not shipped: ids and mask (B,L)."""

    def __call__(self, prompts, length=77):
        return torch.ones(len(prompts), length, dtype=torch.long), torch.ones(len(prompts), length)

    def notes(self, prompt, length=77):
        return []


def sd3_text():
    return SD3Text(clips() | t5(), Pieces(), width=32)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_text_encoders_answer_where_they_are(gpu, dtype):
    """Token ids go to the GPU (T5's mask, too); what is read of them stays there, float32."""
    for encoder in (SD3Text(clips(), width=32), sd3_text(), T5Text(t5(), Pieces())):
        encoder.to(GPU, dtype, keep=True)
        encoder(["a cat"])                                  # builds the encoders, and moves them there
        with Copies() as copies:
            answers = encoder(["a cat", "a dog"])
        assert all(answer.is_cuda and answer.dtype == torch.float32 for answer in answers)
        assert copies.found.keys() <= {"run_frozen.<locals>.<genexpr>", "T5Text.__call__"}


def test_an_image_vae_stays_on_the_gpu(gpu):
    """Stable Diffusion 1.4's, with its attention, in the step's bf16."""
    vae = KLVAE(SD14).to(GPU)
    with Copies() as copies, torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        x = vae.decode(vae.encode(empty(1, 3, 2, 32, 32)))
    assert x.is_cuda and x.shape == (1, 3, 2, 32, 32) and not copies.found


@pytest.mark.slow
def test_a_dp_vae_and_i3d_stay_on_the_gpu(gpu):
    """A clip of two windows, there and back; what FVD looks through."""
    cfg, = parse(["--config", "tiny", "--stage", "dpvae"])
    vae, net = video_vae(cfg), I3D().to(GPU)
    with Copies() as copies, torch.no_grad():
        x = vae.decode(vae.encode(empty(1, 3, 12, 32, 32)))
        features = net(empty(1, 3, 16, 224, 224))
    assert x.is_cuda and x.shape == (1, 3, 12, 32, 32) and features.is_cuda and not copies.found


STAGES = [("vae", ()), ("videodit", ()), ("latte", ()),
          *(pytest.param(*stage, marks=pytest.mark.slow) for stage in (
              ("dit", ()), ("dpvae", ("--z_noise", "0.4")), ("videodit", ("--attention", "2d+3d")),
              ("latte", ("--objective", "flow")), ("latte", ("--latte.pooled_dim", "0")),
              ("latte", ("--latte.condition", "class", "--latte.classes", "3"))))]
# What goes to the GPU in a step: its draws, its classes, its captions' ids. Nothing comes back.
TO_GPU = {"keyed_noise", "conditions", "run_frozen.<locals>.<genexpr>", "T5Text.__call__", "ToyText.forward",
          "ToyText.reading_loss"}


@pytest.mark.parametrize("name, flags", STAGES)
def test_a_training_step_asks_the_gpu_nothing(gpu, monkeypatch, tmp_path, name, flags):
    """train.step of each stage, its frozen networks in the step: forward, clipping, AdamW, EMA. Losses are
    float32. (The gradients are made up.)"""
    cfg, = parse(["--config", "tiny", "--stage", name, "--no-cached", "--bf16", "--batch", "2", "--out",
                  str(tmp_path), *flags])
    run = Run(device=GPU)
    batch = batch_of(cfg)
    text = Reader(sd3_text().to(GPU, keep=True), "sd3", GPU)
    if name == "latte" and not cfg.latte.pooled_dim:
        text = Reader(T5Text(t5(), Pieces()).to(GPU, keep=True), "t5", GPU)
    monkeypatch.setattr(train, "loader", lambda cfg, run, dataset: lambda start: itertools.repeat(batch))
    monkeypatch.setattr(train, "frozen_vae",
                        lambda cfg, run, kind: video_vae(cfg) if kind == "dpvae" else image_vae(cfg))
    monkeypatch.setattr(train, "image_vae", lambda cfg, run: KLVAE(cfg.vae))
    monkeypatch.setattr(train, "reader", lambda cfg, run, alone=False: text)
    monkeypatch.setattr(train, "perceptual_for", lambda cfg, run: None)
    monkeypatch.setattr(train, "class_names", lambda cfg, net, clips, images: ("cat", "dog", "fish"))
    monkeypatch.setattr(train, "start_videodit",
                        lambda cfg: VideoDiT.from_image(MMDiT(cfg.dit), attention=cfg.attention))
    stage = train.RECIPES[name](cfg, run)
    learners = {player: Learner(cfg, run, player, made) for player, made in stage.players.items()}

    def made_up(loss):
        assert loss.is_cuda and loss.dtype == torch.float32
        for learner in learners.values():
            for parameter in learner.trained.values():
                assert parameter.is_cuda
                parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", made_up)
    trainer = SimpleNamespace(cfg=cfg, run=run, step=0, learners=learners,
                              count_step=lambda micros, finite: None)
    train.step(trainer, [batch])                            # the first builds encoders and optimizer states
    with Copies() as copies:
        shown = train.step(trainer, [batch])
    assert all(value.is_cuda for value in shown.values() if torch.is_tensor(value))
    assert copies.found.keys() <= TO_GPU, copies.found
    assert {way for ways in copies.found.values() for way in ways} <= {("cpu", "cuda")}


def batch_of(cfg):
    """Two clips, or images, on the GPU; with --joint_images two images beside each."""
    frames = 1 if cfg.stage in ("vae", "dit") else cfg.frames
    batch = {"video": empty(2, 3, frames, cfg.size, cfg.size), "caption": ["a cat", "a dog"],
             "place": ["cat/1", "dog/2"], "step": 10, "first": 0}
    if cfg.stage == "latte":
        images = {"video": empty(4, 3, 1, cfg.size, cfg.size), "caption": ["a cat"] * 4,
                  "place": ["cat/1"] * 4}
        batch |= {train.BESIDE + key: value for key, value in images.items()}
    return batch


# A graph is a minute of compiling, and after eight for one function dynamo leaves it as it was.
@pytest.mark.slow
@pytest.mark.parametrize("attention, graphs", [("2d->3d", 4), ("2d+3d", 10)])
def test_blocks_are_compiled_once_for_each_kind_of_step(attention, graphs):
    """--compile, VideoDiT A.2: clips and images, times the kinds of block (the last one has less text). No
    graph breaks; a preview (Trainer.preview) adds none."""
    torch._dynamo.reset()
    counters.clear()
    cfg, = parse(["--config", "tiny", "--stage", "videodit", "--dit.depth", "4"])
    net = VideoDiT.from_image(MMDiT(cfg.dit), attention=attention)
    for block in (*net.image.joint_blocks, *(net.twins or ())):
        block.compile(backend="eager")
    context, pooled = torch.randn(2, 12, 32), torch.randn(2, 32)
    for frames in (6, 1, 6):
        net(torch.randn(2, 4, frames, 4, 4), torch.rand(2), context, pooled).sum().backward()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        net(torch.randn(1, 4, 6, 4, 4), torch.rand(1), context[:1], pooled[:1])
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]


def models(kind):
    """What sample.generate is given, with networks of the preset `tiny`."""
    cfg, = parse(["--config", "tiny", "--stage", "latte"])
    text = sd3_text().to(GPU, keep=True)
    about = dict(size=32, frames=8)
    if kind == "videodit":
        return Models(video_vae(cfg), text, VideoDiT.from_image(MMDiT(cfg.dit)).to(GPU), bf16=True, **about)
    if kind == "mmdit":
        return Models(image_vae(cfg), text, MMDiT(cfg.dit).to(GPU), size=32, frames=1, bf16=True)
    if kind == "dit":
        net = DiT(DiTConfig(input_size=4, width=32, depth=2, heads=2, classes=3)).to(GPU)
        return Models(image_vae(cfg), None, net, 32, 1, objective="ddpm", classes=("cat", "dog", "fish"))
    if kind == "pixart":
        net = PixArt(PixArtConfig(width=32, depth=2, heads=2, caption_channels=32, sample_size=4)).to(GPU)
        return Models(image_vae(cfg), T5Text(t5(), Pieces()).to(GPU, keep=True), net, 32, 1, objective="ddpm",
                      null="empty")
    return Models(image_vae(cfg), text, Latte(cfg.latte).to(GPU), objective="ddpm", **about)


@pytest.mark.parametrize("kind, sampler", [
    ("videodit", "euler"), ("latte", "ddpm"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (
        ("mmdit", "euler"), ("latte", "ddim"), ("dit", "ddpm"), ("pixart", "ddpm")))])
def test_sampling_comes_back_once_at_the_end(gpu, monkeypatch, kind, sampler):
    """Noise, ids, DDPM's tables and first time go to the GPU; each clip comes back when it is decoded. The
    only question beside is sample.finite's: of what is read, of latents, of clips."""
    monkeypatch.setattr(sample, "finite", lambda x, what, hint: x)
    prompts = ["cat", "dog"]
    with contextlib.redirect_stderr(None):
        models_of_kind = models(kind)
        generate(models_of_kind, prompts, steps=2, sampler=sampler)
        vae, seen = models_of_kind.vae, set()
        for conv in (layer for layer in vae.modules() if isinstance(layer, torch.nn.Conv2d)):
            conv.register_forward_hook(lambda layer, given, out: seen.add(out.dtype))
        with Copies() as copies:
            x = generate(models_of_kind, prompts, steps=2, sampler=sampler)
    assert x.device.type == "cpu" and x.shape == (2, 3, models_of_kind.frames, 32, 32)
    assert seen == {torch.bfloat16 if models_of_kind.bf16 else torch.float32}
    back = {name: ways for name, ways in copies.found.items() if ("cuda", "cpu") in ways}
    assert back == {"decode": [("cuda", "cpu")] * len(prompts)}
    assert copies.found.keys() - back.keys() <= TO_GPU | {"DDPM.to", "sample_ddpm"}, copies.found
