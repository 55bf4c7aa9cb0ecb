"""Every file is a lesson that runs: `python FILE.py` shows an answer that is known beforehand, and most draw
an image of it into out/."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NUMBER = r"(-?[\d.,]+(?:e[-+]?\d+)?)"


def is_small(*errors):
    return all(error < 1e-4 for error in errors)


# file -> what its output says, with its numbers; which numbers are right; the image, "" if it draws none
DEMOS = {
    "data": (f"between {NUMBER} and {NUMBER} times", lambda low, high: low == high == 1, ""),
    "flow": (f"oracle {NUMBER} .* trained {NUMBER} ", lambda exact, net: exact < 1e-3 and net < 0.1, "flow"),
    "vae": (f"from held key frames by {NUMBER} ", is_small, "vae"),
    "text": (r"buckets: \[15, 10, 8, 1, 0, 17, 24, 31\]", None, ""),
    "dit": (f"answer +{NUMBER}\nMMDiT: five frames backwards +{NUMBER}\n", is_small, ""),
    "videodit": (f"other frames get {NUMBER} in 2D, {NUMBER} in 3D", lambda two, three: two < 0.01 < three,
                 "videodit"),
    "latte": (f"largest output of an untrained Latte: {NUMBER} ", is_small, "latte"),
    "presets": ("videodit-320 +videodit +200,000 steps x 64", None, ""),   # VideoDiT 4.1
    "ablate": ("videodit-3 +4 rows", None, ""),
    "bench": (f"512: {NUMBER} FLOPs counted +.by hand: {NUMBER}(?s:.*) 512: {NUMBER}%",
              lambda a, b, share: a == b and share == 73, ""),
}
# these two make nothing by themselves: their shortest real commands stand for them
COMMANDS = {
    "sample": (["a cat", "--steps", "2"], "out/0000-a-cat.png"),
    "train": (["--config", "tiny", "--stage", "vae", "--lpips_weight", "0", "--preview_every", "10"],
              "runs/tiny/vae"),
}


def run(folder, name, *words):
    done = subprocess.run([sys.executable, Path(f"{name}.py").resolve(), *words], cwd=folder, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def looks_drawn(path):
    """More than one colour: a page that stayed white shows nothing."""
    return np.asarray(Image.open(path).convert("L"), np.float32).std() > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMOS)
def test_a_file_shows_its_known_answer_and_its_image(name, tmp_path):
    wanted, right, image = DEMOS[name]
    said = run(tmp_path, name)
    found = re.search(wanted, said)
    assert found, said
    if right:
        assert right(*(float(text.strip(",").replace(",", "")) for text in found.groups())), found.group()
    if image:
        assert looks_drawn(tmp_path / f"out/{image}.png")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_leaves_an_image(name, tmp_path):
    words, where = COMMANDS[name]
    run(tmp_path, name, *words)
    images = [tmp_path / where] if where.endswith(".png") else sorted((tmp_path / where).glob("*.png"))
    assert images and all(map(looks_drawn, images))
