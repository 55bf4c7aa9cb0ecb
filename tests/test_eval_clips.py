"""Tests of eval_clips.py: the published tools' rules, and which frames of which videos they leave."""

import numpy as np
from PIL import Image

from conftest import read_video
from support import eval_clips
from support.eval_clips import PROTOCOLS, Protocol, Side, prepare


# ---------------------------------------------------------------------------------------------- the rules

def test_presets_are_the_published_rules():
    """facts: real stride 3 and crop first in Latte,
    stride 1 and resize first in StyleGAN-V, JPEG 75 in both."""
    latte, styleganv = PROTOCOLS["latte"], PROTOCOLS["stylegan-v"]
    assert (latte.clips, latte.frames, latte.real_stride, latte.ddof) == (2048, 16, 3, 0)
    assert (latte.order, styleganv.order, styleganv.real_stride) == ("crop-resize", "resize-crop", 1)
    assert latte.jpeg == styleganv.jpeg == 75


def numbered(folder, count):
    """A folder of frames whose grey level is 10 x their number, named 1.png ... without leading zeros."""
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("RGB", (8, 8), (10 * number,) * 3).save(folder / f"{number}.png")


def test_windows_follow_the_protocol(tmp_path):
    """One clip a video, every third frame in order, a random start that the seed fixes;
    fakes from the start."""
    for name in "ab":
        numbered(tmp_path / name, 20)
    protocol = Protocol(clips=2, frames=4, size=8, jpeg=0)
    levels = lambda side: (side.read(0)[:, 0, 0, 0] // 10).tolist()
    real = levels(Side(tmp_path, protocol))
    assert [b - a for a, b in zip(real, real[1:])] == [3, 3, 3] and real == levels(Side(tmp_path, protocol))
    assert levels(Side(tmp_path, protocol, fake=True)) == [1, 2, 3, 4]
    starts = {levels(Side(tmp_path, Protocol(2, 4, size=8, jpeg=0, seed=seed)))[0] for seed in range(60)}
    assert (min(starts), max(starts)) == (1, 11)           # the last frame of a clip is start + 9, of 20


def test_of_samples_the_first_are_compared_whatever_else_lies_there(tmp_path):
    """Clip i is the i-th prompt's: four of eight at random would be of other prompts than the first four."""
    for number in range(5):
        numbered(tmp_path / f"{number:06d}", 4)
    numbered(tmp_path / "sheet", 4)
    protocol = Protocol(clips=3, frames=4, size=8, jpeg=0)
    assert len(Side(tmp_path, protocol, fake=True).clips) == 6
    (tmp_path / "sample.json").write_text("{}")
    names = [clip[0][:6] for clip in Side(tmp_path, protocol, fake=True).clips]
    assert names == ["000000", "000001", "000002"]


def test_short_videos_are_dropped_as_latte_drops_them(tmp_path):
    """16 * stride frames are needed, not 15 * stride + 1; the reason is told."""
    numbered(tmp_path / "short", 11)
    numbered(tmp_path / "long", 12)
    side = Side(tmp_path, Protocol(clips=2, frames=4, size=8, jpeg=0))
    assert len(list(side.stream(1))) == 1
    assert side.skipped == ["short/1.png: 11 frames, 12 needed"]


def test_crop_and_resize_come_in_the_asked_order():
    """On a 40 x 20 image both give the middle;
    only one of them resizes 20 to 10 before it cuts."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), np.uint8))
    first = prepare(image, Protocol(size=10, jpeg=0, filter="bilinear"))
    want = image.crop((10, 0, 30, 20)).resize((10, 10), Image.BILINEAR)
    np.testing.assert_array_equal(first, np.asarray(want))
    second = prepare(image, Protocol(size=10, jpeg=0, filter="bilinear", order="resize-crop"))
    want = image.resize((20, 10), Image.BILINEAR).crop((5, 0, 15, 10))
    np.testing.assert_array_equal(second, np.asarray(want))


def test_jpeg_damages_once():
    """Quality 75 changes a lossless frame; a frame that already is a .jpg of the right size is left alone."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    assert (prepare(image, Protocol(size=16)) != np.asarray(image)).any()
    np.testing.assert_array_equal(prepare(image, Protocol(size=16), is_jpeg=True), np.asarray(image))


# ---------------------------------------------------------------------------------------------- videos

def test_a_broken_real_video_is_skipped_and_named(shots, tmp_path, capsys):
    """A folder of real videos may have holes: a warning, with the file's name."""
    for path in shots.glob("*.mp4"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:200 if path.name == "0.mp4" else None])
    side = Side(tmp_path, Protocol(clips=4, frames=8, real_stride=1, size=32, jpeg=0))
    eval_clips.check_count(side, len(list(side.stream(2))))
    assert "3 usable clips, 4 wanted (1 of 4 skipped: 0.mp4" in capsys.readouterr().err


def test_a_clip_of_a_video_is_the_video(shots):
    """Windows of an .mp4 are its own frames, entered in the middle."""
    side, whole = Side(shots, Protocol(clips=4, frames=5, size=32, jpeg=0)), read_video(shots / "2.mp4")
    clip = side.read(2)
    assert any((clip == whole[start:start + 13:3]).all() for start in range(16 - 12))


def test_a_root_of_train_and_test_is_cut_by_the_protocol(tmp_path):
    """FaceForensics' layout: the real side is the training split, as published, or the one that is asked for;
    what was generated has none."""
    for name in ("sky_train/a", "sky_train/b", "sky_test/c"):
        numbered(tmp_path / name, 4)
    clips = {split: len(Side(tmp_path, Protocol(2, 4, split, size=8, jpeg=0)).clips)
             for split in ("train", "test", "all")}
    assert clips == {"train": 2, "test": 1, "all": 3}
    assert len(Side(tmp_path, Protocol(clips=2, frames=4, size=8), fake=True).clips) == 3
