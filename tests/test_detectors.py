"""The networks that look: parity with their references; the attribute classifier takes clips of any shape."""

import dataclasses
import json
import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open

import pretrained
from conftest import GOLDEN
from support.checkpoints import load_network, save_network, save_state
from support.cli import UserError
from support.detectors import (C3D, I3D, AttributeClassifier, AttributeClassifierConfig, Inception,
                               classifier_file, classifier_loss, perceptual_distance)

COUNTS = {"subjects": 12, "colours": 10, "motions": 6, "scenes": 6}


def uniform(name, salt, start, stop):
    """The fixtures' numbers in [-1,1): a hash of the name and the index, in wrapping 32-bit arithmetic."""
    h = np.arange(start, stop, dtype=np.uint32)
    h *= np.uint32(0x9E3779B1)
    h += np.uint32((zlib.crc32(name.encode()) + salt) % 2 ** 32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)
    h ^= h >> np.uint32(16)
    return h * (2 / 2 ** 32) - 1


def refill(name, shape, salt):
    """One weight of a *_fill fixture, in blocks that fit the cache: C3D has 78 M numbers."""
    count = int(np.prod(shape))
    if len(shape) > 1:
        scale, offset = np.sqrt(3 * 2 / (count / shape[0])), 0
    else:
        scale, offset = {"running_var": (0.3, 1), "running_mean": (0.2 * np.sqrt(3), 0),
                         "weight": (0.2 * np.sqrt(3), 1), "bias": (0.1 * np.sqrt(3), 0)}[name.split(".")[-1]]
    weight = np.empty(count, np.float32)
    for start in range(0, count, 1 << 15):
        stop = min(start + (1 << 15), count)
        weight[start:stop] = uniform(name, salt, start, stop) * scale + offset
    return torch.from_numpy(weight.reshape(shape))


def golden(name):
    """(config, refilled state, stored tensors) of a fixture; the refill is checked against its probes."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        stored = {key: file.get_tensor(key) for key in file.keys()}
    state = {key: refill(key, shape, config["salt"]) for key, shape in config["tensors"]}
    for key, first in config.get("probe", {}).items():
        torch.testing.assert_close(state[key].flatten()[:len(first)], torch.tensor(first))
    return config, state, stored


def golden_input(shape, salt):
    """in.x by formula: a wave plus the hash's noise, float64 then float32. Images have no frame axis."""
    n, c, *t, y, x = np.ogrid[tuple(slice(size) for size in shape)]
    wave = 0.5 * np.sin(0.11 * y + 0.07 * (c + 1) * x + 0.5 * (t[0] if t else 0) + n)
    noise = 0.25 * uniform("input", salt, 0, int(np.prod(shape))).reshape(shape)
    return torch.from_numpy((wave + noise).astype(np.float32))


def watch(net, names):
    """{name: the module's last output}, filled by hooks when the net runs."""
    seen = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
    return seen


def output(stored, prefix):
    """The one stored output of that name; its width may be part of the name."""
    return next(tensor for key, tensor in stored.items() if key.startswith(f"out.{prefix}"))


def assert_near(got, want):
    """README of the fixtures: within 1e-4 of the largest value."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))


def toy_classifier(**options):
    torch.manual_seed(0)
    names = {key: tuple(f"{key}{i}" for i in range(count)) for key, count in COUNTS.items()}
    return AttributeClassifier(AttributeClassifierConfig(**names, **options)).eval()


# ---------------------------------------------------------------------------------------------- parity

@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_golden_lpips_equals_the_lpips_package(net):
    """LPIPS Eq. 1, version 0.1, with its real linear heads: each layer's share and the sum."""
    _, trunk, stored = golden(f"lpips_{net}_fill")
    lpips = pretrained.lpips(trunk)
    a, b = stored["in.a"], stored["in.b"]
    for i, head in enumerate(lpips.heads):
        layer = perceptual_distance(lambda images: lpips.pyramid(images)[i:i + 1], a, b, [head])
        torch.testing.assert_close(layer, stored[f"out.layer{i}"], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(lpips(a, b), stored["out.lpips"], rtol=1e-4, atol=1e-7)


def test_golden_i3d_equals_pytorch_i3d():
    """FVD's network, with TensorFlow's padding, at its own size and in its intermediates."""
    config, state, stored = golden("i3d_fill")
    net = pretrained.detector(I3D, state)
    names = [key.removeprefix("out.mean_") for key in stored if key.startswith("out.mean_")]
    seen, video = watch(net, names), golden_input(config["input_shape"], config["salt"])
    vector = net.features(video)
    for name in names:
        assert_near(seen[name].mean((2, 3, 4)), stored[f"out.mean_{name}"])
    assert_near(vector, output(stored, "features"))
    net.features = lambda video: vector
    assert_near(net(video), output(stored, "logits"))


def test_golden_inception_equals_pytorch_fid():
    """FID's network: its resize, its average pools, its one max pool, and the weights behind them."""
    config, state, stored = golden("fid_inception_fill")
    net = pretrained.detector(Inception, state)
    blocks = {"MaxPool_1": "block0", "MaxPool_2": "block1", "Mixed_6e": "block2"}
    seen, images = watch(net, blocks), golden_input(config["input_shape"], config["salt"])
    vector = net.features((images + 0.75) / 1.5 * 2 - 1)
    for name, block in blocks.items():
        assert_near(seen[name].mean((2, 3)), stored[f"out.{block}_mean"])
    assert_near(vector, output(stored, "features"))
    assert_near(vector @ net.fc.weight.T, stored["out.logits_1008_nobias"])


def test_golden_c3d_equals_its_port():
    """The video Inception Score's network on raw pixels, before its softmax."""
    config, state, stored = golden("c3d_fill")
    net = pretrained.detector(C3D, state)
    seen, pixels = watch(net, ["conv1", "fc6"]), golden_input(config["input_shape"], config["salt"])
    fc7 = net.from_pixels(pixels)
    assert_near(seen["conv1"].mean((2, 3, 4)), stored["out.conv1_mean"])         # before its ReLU
    assert_near(seen["fc6"].relu(), stored["out.fc6_relu"])
    assert_near(fc7, stored["out.fc7_relu"])
    assert_near(net.fc8(fc7), output(stored, "logits"))


# ---------------------------------------------------------------------------------------------- distances


def test_distance_has_a_finite_gradient_where_all_features_are_zero():
    """sqrt has an infinite slope at 0: a VAE trained on it would meet NaN at the first flat corner."""
    x = torch.zeros(1, 3, 8, 8, requires_grad=True)
    perceptual_distance(lambda images: [images.relu()], x, torch.ones(1, 3, 8, 8)).sum().backward()
    assert x.grad.isfinite().all()


def test_distance_ignores_how_strong_features_are():
    """LPIPS Eq. 1 compares directions: twice the features, same distance."""
    a, b = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    want = perceptual_distance(lambda x: [x], a, b)
    torch.testing.assert_close(perceptual_distance(lambda x: [2 * x], a, b), want)


# ---------------------------------------------------------------------------------- the attribute classifier

@pytest.mark.parametrize("frames, size", [(1, 64), (2, 64), (16, 64), (17, 32), (8, 48)])
def test_the_classifier_takes_any_clip(frames, size):
    """Any number of frames, an image too, and any size."""
    classifier, video = toy_classifier(width=8, features=16), torch.rand(2, 3, frames, size, size) * 2 - 1
    shapes = {name: tuple(logits.shape) for name, logits in classifier(video).items()}
    assert shapes == {"subject": (2, 12), "colour": (2, 10), "motion": (2, 6), "scene": (2, 6)}
    assert classifier.frame_features(video).shape == (2, frames, 16)
    assert classifier.clip_features(video).shape == (2, 32)


def test_the_classifier_names_what_stands_still_from_any_frame():
    """Only the motion looks at change: one frame and a frozen clip of it get the same other three answers."""
    classifier, image = toy_classifier(width=8), torch.rand(2, 3, 1, 64, 64) * 2 - 1
    frozen = classifier(image.repeat(1, 1, 9, 1, 1))
    for name, logits in classifier(image).items():
        if name != "motion":
            torch.testing.assert_close(frozen[name], logits)


def test_the_classifier_loss_takes_images_whose_motion_is_not_asked():
    """-1 in a whole batch is a mean over nothing: it must be 0, not NaN, wherever the loss starts."""
    classifier, images = toy_classifier(width=8, size=32), torch.rand(2, 3, 1, 32, 32)
    asked = {name: torch.full((2,), -1 if name == "motion" else 0) for name in classifier.heads}
    for _ in range(8):
        loss = classifier_loss(classifier, images, asked)
        logits = classifier(images)
        want = sum(-logits[name].log_softmax(1)[:, 0].mean() for name in logits if name != "motion")
        torch.testing.assert_close(loss, want)


def test_a_classifier_of_before_is_found_and_read(tmp_path):
    """Its file was judge.safetensors and its class Judge; what was written then is read today."""
    classifier = toy_classifier(width=8)
    save_state(tmp_path / "judge.safetensors", classifier.state_dict(), "Judge",
               dataclasses.asdict(classifier.config))
    again = load_network(AttributeClassifier, classifier_file(tmp_path))
    assert again.config == classifier.config
    save_network(tmp_path / "classifier.safetensors", classifier)
    assert classifier_file(tmp_path).name == "classifier.safetensors"


# ---------------------------------------------------------------------------------------------- clips

def test_too_short_clips_are_refused_by_name():
    """I3D needs 9 frames, C3D 16: a UserError before any work, not a shape error from inside."""
    with torch.device("meta"):
        for net in (I3D(), C3D()):
            with pytest.raises(UserError, match="longer clips"):
                net(torch.zeros(1, 3, 8, 64, 64))
