"""Tests of what runs on a GPU, without one. FakeTensorMode knows device, shape and dtype of each CUDA tensor
and no number: two devices in one operation, or a question for a value (.item(), an `if` on a tensor), are
errors, and each copy between processor and GPU is seen. Not seen: whether a kernel exists, how long it takes.
The backward pass is left out: torch's engine asks the driver for its streams, and there is none.
All of it is slow: `pytest -m slow tests/test_gpu_dry_run.py`."""

import contextlib
import ctypes
import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import sample
import train
from dit import MMDiT
from flow import flow_loss
from latte import Latte
from presets import parse
from sample import Models, generate
from support.detectors import I3D
from support.ops import attend_by_hand, best_device, has_bf16
from support.trainer import Learner, Player, Run, local, setup
from test_tokenizers import letters_tokenizer
from text import CLIPText, CLIPTextConfig, SD3Text, T5Config, T5Encoder, T5Text
from train import Reader
from vae import DPVAE, DPVAEConfig, KLVAE, SD14
from videodit import VideoDiT

pytestmark = pytest.mark.slow
REPOSITORY = Path(train.__file__).parent
GPU = "cuda:0"

# FakeTensorMode asks torch for a device's "guard", which a build for CPUs lacks; this one does nothing.
GUARD = """#include <c10/core/impl/FakeGuardImpl.h>
using Cuda = c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>;
using Apple = c10::impl::FakeGuardImpl<c10::DeviceType::MPS>;
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, Cuda) C10_REGISTER_GUARD_IMPL(MPS, Apple) }
"""


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    if torch.cuda.is_available() or not shutil.which("g++"):
        pytest.skip("needs g++, to build a guard for a GPU that is not there")
    folder, torch_at = tmp_path_factory.mktemp("guard"), Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(GUARD)
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", folder / "guard.cpp", f"-I{torch_at}/include",
                    f"-L{torch_at}/lib", "-lc10", "-o", folder / "guard.so"], check=True)
    ctypes.CDLL(str(folder / "guard.so"))


class Copies(TorchDispatchMode):
    """found    where tensors go from one device to another: {function of this repository: [(from, to), ...]}
    kinds    which dtypes there are: {device: {dtype, ...}}
    sent     what comes to this rank from others: [(operation, dtype, numbers), ...]"""

    def __init__(self):
        super().__init__()
        self.found, self.kinds, self.sent = {}, {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "c10d" in func.namespace:
            arrives = out if torch.is_tensor(out) else torch.utils._pytree.tree_leaves(args)[0]
            self.sent.append((func._schema.name, arrives.dtype, arrives.numel()))
        if torch.is_tensor(out):
            self.kinds.setdefault(out.device.type, set()).add(out.dtype)
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
        if file.parent in (REPOSITORY, REPOSITORY / "support"):         # not .venv, which may lie inside
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
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)      # fakes know no pinned memory
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
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


CLIP_L = CLIPTextConfig(width=16, layers=2, heads=2, mlp_width=32)      # 16 + 16 numbers: `tiny`'s context
CLIP_G = CLIPTextConfig(width=16, layers=2, heads=2, mlp_width=32, act="gelu", projection=16)
CLIPS = {"clip_l": lambda: CLIPText(CLIP_L), "clip_g": lambda: CLIPText(CLIP_G)}
T5 = {"t5xxl": lambda: T5Encoder(T5Config(64, 32, 2, 2, 16, 48))}


def sd3_text():
    return SD3Text(CLIPS | T5, letters_tokenizer(), width=32)


@pytest.mark.parametrize("frames", [2, 12])
def test_vaes_and_i3d_stay_on_the_gpu(gpu, frames):
    """Stable Diffusion 1.4's, with its attention, in the step's bf16; a DP-VAE, two windows, there and back;
    what FVD looks through."""
    cfg, = parse(["--config", "tiny", "--stage", "dpvae"])
    vae = KLVAE(SD14).to(GPU) if frames == 2 else video_vae(cfg)
    i3d = I3D().to(GPU)
    with Copies() as copies, torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=frames == 2):
        x = vae.decode(vae.encode(empty(1, 3, frames, 32, 32)))
        features = i3d(empty(1, 3, 16, 224, 224)) if frames > 2 else x
    assert x.is_cuda and x.shape == (1, 3, frames, 32, 32) and features.is_cuda and not copies.found


STAGES = [("vae", ()), ("dit", ()), ("dpvae", ("--z_noise", "0.4")), ("videodit", ()),
          ("videodit", ("--attention", "2d+3d")), ("latte", ()), ("latte", ("--latte.pooled_dim", "0")),
          ("latte", ("--objective", "flow")),
          ("latte", ("--latte.condition", "class", "--latte.classes", "3"))]
# What goes to the GPU in a step: its draws, classes, captions' ids, eight times. Nothing comes back.
TO_GPU = {"keyed_noise", "conditions", "run_frozen.<locals>.<genexpr>", "T5Text.__call__", "ToyText.forward",
          "ToyText.reading_loss", "by_time"}


@pytest.mark.parametrize("name, flags", STAGES)
def test_a_training_step_asks_the_gpu_nothing(gpu, monkeypatch, tmp_path, name, flags):
    """train.step of each stage, its frozen networks in the step: forward, clipping, AdamW, EMA. Losses are
    float32. (The gradients are made up.)"""
    cfg, = parse(["--config", "tiny", "--stage", name, "--no-cached", "--bf16", "--batch", "2", "--out",
                  str(tmp_path), *flags])
    run, batch, text = Run(device=GPU), batch_of(cfg), Reader(sd3_text().to(GPU, keep=True), "sd3", GPU)
    if name == "latte" and not cfg.latte.pooled_dim:
        text = Reader(T5Text(T5, letters_tokenizer()).to(GPU, keep=True), "t5", GPU)
    for place, stand_in in {
            "loader": lambda cfg, run, dataset, kind="video", **how: lambda start: itertools.repeat(batch),
            "frozen_vae": lambda cfg, run, kind: {"vae": image_vae, "dpvae": video_vae}[kind](cfg),
            "image_vae": lambda cfg, run: KLVAE(cfg.vae), "reader": lambda cfg, run, alone=False: text,
            "perceptual_for": lambda *_: None,
            "class_names": lambda *_: ("cat", "dog", "fish"),
            "start_videodit": lambda cfg: VideoDiT.from_image(MMDiT(cfg.dit), cfg.attention)}.items():
        monkeypatch.setattr(train, place, stand_in)
    stage = train.RECIPES[name](cfg, run)
    learners = {player: Learner(cfg, run, player, made) for player, made in stage.players.items()}

    def made_up(loss):
        assert loss.is_cuda and loss.dtype == torch.float32
        for learner in learners.values():
            for parameter in learner.trained.values():
                assert parameter.is_cuda
                parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", made_up)
    trainer = SimpleNamespace(cfg=cfg, run=run, step=0, learners=learners, count_step=lambda *_: None)
    text(batch["caption"])                                  # the first builds encoders
    with Copies() as copies:
        shown = train.step(trainer, [batch])
    assert all(value.is_cuda for value in shown.values() if torch.is_tensor(value))
    assert copies.found.keys() <= TO_GPU, copies.found
    assert {way for ways in copies.found.values() for way in ways} <= {("cpu", "cuda")}


def batch_of(cfg):
    """Two clips, or images, on the GPU; with --joint_images two images beside each."""
    frames = 1 if cfg.stage in ("vae", "dit") else cfg.frames
    kind = {"videodit": torch.uint8, "latte": torch.uint8}.get(cfg.stage, torch.float32)
    batch = {"video": empty(2, 3, frames, cfg.size, cfg.size).to(kind), "caption": ["a cat", "a dog"],
             "place": ["cat/1", "dog/2"], "step": 10, "first": 0, "still": False}
    if cfg.stage == "latte":
        images = {"video": empty(4, 3, 1, cfg.size, cfg.size), "caption": ["a"] * 4, "place": ["cat/1"] * 4}
        batch |= {train.BESIDE + key: value for key, value in images.items()}
    return batch


def models(kind):
    """What sample.generate is given, with networks of the preset `tiny`."""
    (cfg,), text = parse(["--config", "tiny", "--stage", "latte"]), sd3_text().to(GPU, keep=True)
    if kind == "videodit":
        return Models(video_vae(cfg), text, VideoDiT.from_image(MMDiT(cfg.dit)).to(GPU), 32, 8, bf16=True)
    return Models(image_vae(cfg), text, Latte(cfg.latte).to(GPU), 32, 8, objective="ddpm")


@pytest.mark.parametrize("kind, sampler", [("videodit", "euler"), ("latte", "ddpm"), ("latte", "ddim")])
def test_sampling_comes_back_once_at_the_end(gpu, monkeypatch, kind, sampler):
    """Noise, ids, DDPM's tables and first time go to the GPU; each clip comes back when it is decoded. The
    only question beside is sample.finite's: of what is read, of latents, of clips."""
    monkeypatch.setattr(sample, "finite", lambda x, what, hint: x)
    with contextlib.redirect_stderr(None):
        models_of_kind = models(kind)
        models_of_kind.text(["cat", "dog"])                 # the first builds encoders
        seen = []
        models_of_kind.vae.decoder.conv_out.register_forward_hook(lambda *_: seen.append(_[-1].dtype))
        with Copies() as copies:
            x = generate(models_of_kind, ["cat", "dog"], steps=2, sampler=sampler)
    assert x.device.type == "cpu" and x.shape == (2, 3, models_of_kind.frames, 32, 32)
    assert set(seen) == {torch.bfloat16 if kind == "videodit" else torch.float32}
    back = {name: ways for name, ways in copies.found.items() if ("cuda", "cpu") in ways}
    assert back == {"decode": [("cuda", "cpu")] * 2}
    assert copies.found.keys() - back.keys() <= TO_GPU | {"DDPM.to", "sample_ddpm"}, copies.found


def test_apples_gpu_is_chosen_and_gets_what_it_has(gpu, monkeypatch):
    """As far as that can be known without one: nothing of float64 comes to it, nothing is cast to bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention",
                        lambda q, k, v, attn_mask: attend_by_hand(q, k, v, attn_mask))
    assert setup().device == "mps" == best_device() and not has_bf16("mps")
    cfg, = parse(["--config", "tiny", "--stage", "latte"])
    net = Latte(replace(cfg.latte, condition="none", context_dim=0, pooled_dim=0)).to("mps")
    models = Models(image_vae(cfg).to("mps"), None, net, size=32, frames=8, objective="ddpm", device="mps")
    monkeypatch.setattr(sample, "finite", lambda x, what, hint: x)
    with Copies() as copies:
        x = generate(models, [""], steps=2)
    assert x.shape == (1, 3, 8, 32, 32) and not copies.kinds["mps"] & {torch.float64, torch.bfloat16}


@pytest.mark.parametrize("flag, half", [("--no-bf16", torch.float32), ("--bf16", torch.bfloat16)])
def test_a_shard_holds_its_part_and_gathers_a_block_at_a_time(monkeypatch, flag, half):
    """--shard on 4 ranks (three are not there, and send anything): a quarter of all states; blocks come one by
    one, with --bf16 in bf16, their gradients are summed in float32; a save gathers a tensor at a time."""
    monkeypatch.setattr("support.trainer.has_bf16", lambda device: True)
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    cfg, = parse(["--config", "tiny", "--stage", "videodit", "--shard", flag])
    net = VideoDiT.from_image(MMDiT(cfg.dit))
    blocks = [sum(p.numel() for p in block.parameters()) for block in net.image.joint_blocks]
    whole, largest = sum(p.numel() for p in net.parameters()), max(p.numel() for p in net.parameters())
    def loss(nets, batch):
        z, cond = torch.ones(2, 4, 2, 4, 4), {"context": torch.ones(2, 12, 32), "pooled": torch.ones(2, 32)}
        return flow_loss(nets["videodit"], z, cond, t=torch.rand(2), noise=z), {}
    player = Player({"videodit": net}, loss, blocks=net.image.joint_blocks)
    learner = Learner(cfg, Run(0, 4), "videodit", player)
    with Copies() as step, torch.autocast("cpu", torch.bfloat16, enabled=cfg.bf16):
        learner.wrapped({})[0].backward()
    learner.update(1e-4, torch.tensor(True))
    held = [*learner.trained.values(), *(p.grad for p in learner.trained.values()), *learner.ema.values()]
    for state in learner.optimizer.state.values():
        held += [state["exp_avg"], state["exp_avg_sq"]]
    assert sum(local(tensor).numel() for tensor in held) == 5 * whole / 4
    gathers = [(dtype, n) for kind, dtype, n in step.sent if "allgather" in kind]
    assert gathers == [(torch.float32, whole - sum(blocks)), *((half, n) for n in blocks + blocks[::-1])]
    sums = [(dtype, n) for kind, dtype, n in step.sent if "reduce_scatter" in kind]
    assert {dtype for dtype, _ in sums} == {torch.float32} and sum(n for _, n in sums) == whole / 4
    with Copies() as save:
        learner.state()
    dist.destroy_process_group()
    assert max(n for _, _, n in save.sent) == largest
