"""The released sizes, on random weights: gigabytes and a minute, so only `pytest -m slow` runs this file."""
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from support.ops import has_bf16
from dit import MMDiT, MMDiTConfig
from vae import SD3, KLVAE

MEASURE = """
import sys
import torch
import pretrained
import sample
from support.trainer import peak_memory

found = pretrained.open_released(sys.argv[1])
found.text = lambda: None                       # its encoders are 11 GB more; the null prompt is zeros
models = sample.released_models(found)
models.text = lambda prompts: (torch.zeros(len(prompts), 154, 4096), torch.zeros(len(prompts), 2048))
models.size = 256
clip = sample.generate(models, [""], 1, steps=1, guidance=1.0)
assert clip.shape == (1, 3, 1, 256, 256) and torch.isfinite(clip).all()
print("peak", peak_memory("cpu") / 1e9, "GB")
"""


@pytest.fixture(scope="module")
def sd3_file(tmp_path_factory):
    """sd3_medium.safetensors as published, but for the numbers in it: 4.3 GB of fp16."""
    with torch.device("meta"):
        parts = {"model.diffusion_model.": MMDiT(MMDiTConfig()), "first_stage_model.": KLVAE(SD3)}
    noise = torch.randn(1 << 26).mul_(0.02).half()
    state = {}
    for prefix, net in parts.items():
        for name, tensor in net.state_dict().items():
            repeats = -(-tensor.numel() // len(noise))
            state[prefix + name] = noise.repeat(repeats)[:tensor.numel()].view(tensor.shape).clone()
    path = tmp_path_factory.mktemp("sd3") / "sd3_medium.safetensors"
    save_file(state, path)
    yield path
    path.unlink()


@pytest.mark.slow
def test_a_full_size_sd3_file_makes_an_image_in_12_gb_or_16(sd3_file):
    """4.3 GB on disk, memory-mapped, computed in bf16: one 256 x 256 image, one step, null prompt. Where a
    CPU does not multiply in bf16, float32: 13.4 GB."""
    assert 4.2e9 < sd3_file.stat().st_size < 4.4e9
    done = subprocess.run([sys.executable, "-c", MEASURE, str(sd3_file)], capture_output=True, text=True,
                          env=os.environ)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert float(re.search(r"peak ([\d.]+) GB", done.stdout)[1]) < (12 if has_bf16("cpu") else 16)
