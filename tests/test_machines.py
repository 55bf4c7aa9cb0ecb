"""What may differ between two machines, and by how much: the one place that says so.

Float32 sums depend on the order of their terms, and a CPU's order depends on its vector width (AVX2, AVX-512,
AMX), on the number of threads, and on how many rows a batch has. So:

    the same command, machine and threads        the same bits (test_train.py: a resumed run is the same run)
    a clip by itself, or in a batch              1e-4 of the largest value
    1 thread or 2; another CPU                   1e-4 of the largest value; a clip's pixels by 3 levels of 255
    a fixture of another implementation          conftest.close
    after training                               weights drift apart, as any two orders of a sum do

Machines other than this one are stood in for by torch's own switch, ATEN_CPU_CAPABILITY, which makes this CPU
behave like an older one; .ci/run repeats the golden tests under each."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import pretrained
from conftest import golden
from support.detectors import I3D, Inception
from latte import Latte, LatteConfig
from vae import DPVAE

CAPABILITIES = ["default", "avx2"]       # what torch can be told to be; the tests themselves run on the best
NORMS = {F.layer_norm: 1e-5, F.group_norm: 1e-5, F.rms_norm: None, F.batch_norm: 1e-5}   # PyTorch's defaults


class Eps(TorchFunctionMode):
    """Collects the eps of every normalisation that is called inside."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in NORMS:
            names = {F.layer_norm: 4, F.group_norm: 4, F.rms_norm: 3, F.batch_norm: 7}
            place = names[func]
            self.seen.add((kwargs or {}).get("eps", args[place] if len(args) > place else NORMS[func]))
        return func(*args, **(kwargs or {}))


def eps_of(run):
    with torch.no_grad(), Eps() as mode:
        run()
    return mode.seen


def test_the_eps_collector_sees_a_wrong_one():
    """Were it blind, the tests below could not fail."""
    x = torch.randn(2, 4, 3, 3)
    assert eps_of(lambda: torch.nn.LayerNorm(3)(x)) == {1e-5}
    assert eps_of(lambda: torch.nn.LayerNorm(3, eps=1e-6)(x)) == {1e-6}
    assert eps_of(lambda: torch.nn.GroupNorm(2, 4, eps=1e-4)(x)) == {1e-4}
    assert eps_of(lambda: torch.nn.RMSNorm(3, eps=1e-6)(x)) == {1e-6}
    assert eps_of(lambda: F.batch_norm(x, torch.zeros(4), torch.ones(4), eps=1e-3)) == {1e-3}


@pytest.mark.parametrize("name", ["sd3_mmdit", "sd35m_mmditx"])
def test_mmdits_norms_have_the_released_eps(name):
    """1e-6 in every LayerNorm and in SD3.5's RMSNorm: with 1e-5 an output moves by 1.9e-5, less than two CPUs
    may differ by, so parity alone would not notice."""
    weights, given, _, config = golden(name)
    net = pretrained.mmdit(weights, config["head_dim"])
    assert eps_of(lambda: net(given["x"][:, :, None], given["t"], given["context"], given["y"])) == {1e-6}


@pytest.mark.parametrize("conditioning", ["s_adaln", "all_tokens"])
def test_lattes_norms_have_the_released_eps(conditioning):
    net = Latte(LatteConfig(depth=2, width=24, heads=2, frames=4, input_size=8, conditioning=conditioning))
    assert eps_of(lambda: net(torch.randn(1, 4, 4, 8, 8), torch.tensor([3]))) == {1e-6}


def test_pixarts_and_dits_norms_have_the_released_eps():
    weights, given, _, config = golden("pixart_diffusers")
    config = config["diffusers"]
    net = pretrained.pixart(weights, config["attention_head_dim"], config["sample_size"])
    assert eps_of(lambda: net(given["x"][:, :, None], given["t"], given["text"], given["text_mask"])) == {1e-6}
    weights, given, _, config = golden("dit")
    net = pretrained.dit(weights, config["hidden_size"] // config["num_heads"])
    assert eps_of(lambda: net(given["x"][:, :, None], given["t"], given["y"])) == {1e-6}


def test_the_vaes_norms_have_the_released_eps():
    weights, given, _, config = golden("sd3_vae_16ch")
    net = pretrained.kl_vae(weights, config["norm_num_groups"])
    assert eps_of(lambda: net.decode(net.encode(given["x"][:, :, None]))) == {1e-6}
    dp = DPVAE.from_image(net)                      # what was added to it normalises alike
    assert eps_of(lambda: dp.decode(dp.encode(given["x"][:, :, None].repeat(1, 1, 4, 1, 1)))) == {1e-6}


def test_the_text_encoders_norms_have_the_released_eps():
    """CLIP 1e-5, T5 1e-6."""
    weights, given, _, config = golden("clip_text_l")
    clip = pretrained.clip(weights, config["num_attention_heads"], config["hidden_act"])
    assert eps_of(lambda: clip(given["input_ids"])) == {1e-5}
    weights, given, _, config = golden("t5_encoder")
    assert eps_of(lambda: pretrained.t5(weights)(given["input_ids"])) == {1e-6}


@pytest.mark.slow
def test_the_detectors_norms_have_tensorflows_eps():
    assert eps_of(lambda: I3D().eval()(torch.zeros(1, 3, 9, 224, 224))) == {1e-3}
    assert eps_of(lambda: Inception().eval().features(torch.zeros(1, 3, 75, 75))) == {1e-3}


# ------------------------------------------------------------------------------------------ other machines

CLIP = """
import sys, torch
torch.set_num_threads(int(sys.argv[2]))
from sample import TOY, generate, load_models
models = load_models(TOY)
clip = generate(models, ["a red cat jumping in snow", "a dog"], steps=6, seed=3)
alone = generate(models, ["a dog"], steps=6, seed=3, first_index=1)
torch.save({"clip": clip, "alone": alone, "as": torch.backends.cpu.get_cpu_capability()}, sys.argv[1])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(capability, threads) -> what that machine made of the same two prompts."""
    folder, running = tmp_path_factory.mktemp("machines"), {}
    for capability, threads in (("", 1), ("", 2), *((name, 1) for name in CAPABILITIES)):
        env = {**os.environ, "PYTHONPATH": "."}
        env.pop("ATEN_CPU_CAPABILITY", None)
        env |= {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        path = folder / f"{capability}{threads}.pt"
        words = [sys.executable, "-c", CLIP, str(path), str(threads)]
        running[capability, threads] = path, subprocess.Popen(words, env=env)
    assert all(process.wait() == 0 for _, process in running.values())
    return {machine: torch.load(path, weights_only=True) for machine, (path, _) in running.items()}


@pytest.mark.slow
def test_a_clip_is_the_same_to_three_levels_whatever_the_cpu_and_the_threads(made):
    here = made["", 1]
    for machine, there in made.items():
        difference = (there["clip"] - here["clip"]).abs().max().item() * 127.5
        assert difference <= 3, f"{machine} ({there['as']}): {difference:.2f} levels of 255"
        if machine[0] == "default":
            assert there["as"] == "DEFAULT"                 # the switch did something


@pytest.mark.slow
def test_a_clip_made_alone_is_the_clip_of_its_batch(made):
    for made_there in made.values():
        difference = (made_there["clip"][1] - made_there["alone"][0]).abs().max().item() * 127.5
        assert difference <= 3


# Windows has neither of these modules, nor these signals, nor /proc.
WINDOWS = """
import pathlib, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del signal.SIGUSR1, signal.SIGHUP
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path: not str(path).startswith("/proc") and exists(path)
import train
train.main("--config tiny --stage classifier --steps 2 --out out".split())
"""


@pytest.mark.slow
def test_one_process_trains_without_what_windows_lacks(tmp_path):
    """As far as Linux can play it: a stage is trained, logged and saved."""
    env = os.environ | {"PYTHONPATH": os.path.dirname(pretrained.__file__)}
    subprocess.run([sys.executable, "-c", WINDOWS], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "out/classifier.safetensors").is_file()
