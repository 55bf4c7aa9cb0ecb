"""Tests of metrics.py: other people's answers to the same question, closed forms, longhand formulas."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from support.metrics import frechet, gaussian, inception_score, psnr, ssim, standard_error

GOLDEN = Path(os.environ.get("GOLDEN_DIR", "tests/golden"))


# ---------------------------------------------------------------------------------------------- parity

def test_golden_psnr_and_ssim_equal_scikit_image():
    """Gaussian window 11x11, sigma 1.5, valid region, float64: to 1e-6, flat images included."""
    with safe_open(GOLDEN / "psnr_ssim.safetensors", "pt") as file:
        config, stored = (json.loads(file.metadata()["config"]),
                          {key: file.get_tensor(key) for key in file.keys()})
    shape = {"sigma": config["sigma"], "window": config["win_size"], "k1": config["K1"], "k2": config["K2"]}
    for case in {key.split(".")[1] for key in stored if key.startswith("in.")}:
        a, b = stored[f"in.{case}.a"][None], stored[f"in.{case}.b"][None]
        got = {"psnr": psnr(a, b, config["data_range"]), "ssim": ssim(a, b, config["data_range"], **shape)}
        for name, value in got.items():
            torch.testing.assert_close(value[0], stored[f"out.{case}.{name}"].double(), rtol=0, atol=1e-6)


def test_golden_frechet_equals_pytorch_fid():
    """Relative 1e-6; where covariances are singular the references differ among themselves,
    by 1e-3 of the trace."""
    for case in json.loads((GOLDEN / "frechet.json").read_text())["cases"]:
        a, b = (gaussian(torch.tensor(case[side], dtype=torch.float64), ddof=1) for side in "AB")
        wanted = [value for key, value in case.items() if key.startswith("frechet_")]
        trace = float(a[1].trace() + b[1].trace())
        agree = max(wanted) - min(wanted) <= 1e-6 * max(wanted) + 1e-9 * trace
        within = 1e-6 * max(wanted) + 1e-9 * trace if agree else 1e-3 * (1 + trace)
        assert min(wanted) - within <= frechet(*a, *b) <= max(wanted) + within, case["name"]


def test_golden_inception_score_equals_its_definition():
    """Parts of the clips as they come (seed None), population deviation."""
    for case in json.loads((GOLDEN / "frechet.json").read_text())["inception_score"]:
        logits = torch.tensor(case["logits"], dtype=torch.float64)
        mean, deviation = inception_score(logits, case["splits"], seed=None)
        assert mean == pytest.approx(case["mean"], abs=1e-6)
        assert deviation == pytest.approx(case["std"], abs=1e-6)


# ---------------------------------------------------------------------------------------------- known answers

@pytest.mark.parametrize("rank", [6, 3, 1])
def test_frechet_of_two_gaussians_is_the_closed_form(rank):
    """In a common eigenbasis: |mu_a - mu_b|^2 + sum (sqrt a - sqrt b)^2; rank < 6 is singular."""
    generator = torch.Generator().manual_seed(rank)
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator))[0]
    a, b = torch.rand(2, 6, dtype=torch.float64, generator=generator)
    a[rank:], shift = 0, torch.arange(6, dtype=torch.float64)
    want = float((shift ** 2).sum() + (a.sqrt() - b.sqrt()).square().sum())
    got = frechet(shift, basis * a @ basis.T, 0 * shift, basis * b @ basis.T)
    assert got == pytest.approx(want, abs=1e-6)


def test_inception_score_of_a_perfect_classifier():
    """Salimans et al. 2016: sure of every clip, and every class equally often: the number of classes. As
    published for UCF101 (2,048 clips of random classes, shuffled, ten parts) chance leaves 76 of 101."""
    dealt = 1000 * torch.eye(101)[torch.arange(2020) % 101]                                 # (2020,101)
    assert inception_score(dealt, 10, seed=None) == (pytest.approx(101), pytest.approx(0, abs=1e-9))
    assert inception_score(torch.zeros(40, 7), 4)[0] == pytest.approx(1)
    drawn = torch.randint(101, (2048,), generator=torch.Generator().manual_seed(0))
    assert inception_score(1000 * torch.eye(101)[drawn])[0] == pytest.approx(75.7, abs=1)


def test_inception_score_shuffles_as_published():
    """RandomState(42).shuffle of the probabilities, part i from i n // 10 on: no clip is left out."""
    logits = torch.randn(47, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(1).numpy()
    np.random.RandomState(42).shuffle(probabilities)
    scores = []
    for i in range(10):
        part = probabilities[i * 47 // 10:(i + 1) * 47 // 10]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()))
    assert inception_score(logits) == (pytest.approx(np.mean(scores)), pytest.approx(np.std(scores)))


def test_standard_error_of_a_mean_is_the_textbook_one():
    """sigma / sqrt(n), from random halves."""
    sample = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    error = standard_error(lambda half: half.mean().item(), sample, draws=200)
    assert error == pytest.approx(1 / 400 ** 0.5, rel=0.2)


def test_equal_images_have_100_db_and_ssim_1():
    """A finite number, so that a mean over frames stays one."""
    image = torch.rand(1, 3, 16, 16)
    assert psnr(image, image).item() == pytest.approx(100)
    assert ssim(image, image).item() == pytest.approx(1)
