"""Tests of world.py: the toy world has right answers, and they are the same on every run."""

from dataclasses import fields, replace

import numpy as np
import pytest

import world
from world import (BACKDROPS, COLOURS, IMAGE_ONLY, KINDS, MOTIONS, SCENES, SHAPES, SUBJECTS, WORDS, Spec,
                   caption, draw, is_heldout, pose, render)


def specs(kind, count=300, seed=0):
    return [draw(seed, i, kind) for i in range(count)]


def subject_masks(spec, frames=16, size=48):
    """Where the subject is, (T,H,W): the pixels that change when only its colour does."""
    red, blue = (render(replace(spec, colour=colour), frames, size).astype(int) for colour in ("red", "blue"))
    return np.abs(red - blue).sum(-1) > 40


def centres(masks):
    """Centre of each mask, in frame widths, (T,2) as x, y."""
    rows, columns = np.indices(masks.shape[1:])
    return np.array([[columns[mask].mean(), rows[mask].mean()] for mask in masks]) / masks.shape[-1]


# -------------------------------------------------------------------------------------------------- sameness

def test_a_clip_is_the_same_on_every_call():
    """Tests, previews and caches rely on it: no clock, no global random state."""
    for kind in ("video", "image"):
        np.random.seed(1)
        first = render(draw(0, 5, kind))
        np.random.seed(2)
        assert draw(0, 5, kind) == draw(0, 5, kind) and np.array_equal(render(draw(0, 5, kind)), first)


def test_seed_index_and_kind_each_change_the_draw():
    """The video set, the image set and two seeds do not repeat each other."""
    numbers = {(spec.x, spec.y, spec.scale, spec.phase) for kind in KINDS for seed in (0, 1)
               for spec in specs(kind, 20, seed)}
    assert len(numbers) == len(KINDS) * 2 * 20


def test_the_first_clips_are_the_ones_that_were_published():
    """Stored words and mean colours: a change of the world would make every toy number in README a lie."""
    stored = [("a pink tree growing at night", (57.7, 50.4, 86.5)),
              ("a black rocket staying still in snow", (188.3, 197.9, 209.9)),
              ("a red house moving right at sunset", (174.4, 79.6, 83.8)),
              ("a black rocket staying still underwater", (51.4, 119.5, 156.6))]
    for index, (words, colour) in enumerate(stored):
        spec = draw(0, index, "video")
        assert caption(spec) == words
        np.testing.assert_allclose(render(spec, 4, 32).mean((0, 1, 2)), colour, atol=2.0)


@pytest.mark.parametrize("frames, size", [(1, 32), (1, 64), (7, 40), (16, 64)])
def test_a_clip_has_the_shape_that_was_asked_for(frames, size):
    """uint8 (T,H,W,3); an image is T=1."""
    clip = render(draw(0, 0, "image" if frames == 1 else "video"), frames, size)
    assert clip.shape == (frames, size, size, 3) and clip.dtype == np.uint8 and clip.std() > 10


def test_only_draws_the_named_frames_of_the_same_clip():
    """`only` equals slicing, in the order and number asked for."""
    for spec in specs("video", 6):
        whole = render(spec, 12, 32)
        assert np.array_equal(render(spec, 12, 32, only=[0, 7, 3, 3]), whole[[0, 7, 3, 3]])


def test_sizes_show_the_same_picture():
    """64 pixels halved is 32 pixels, but for the rounding of an outline's width."""
    for spec in specs("video", 4):
        large, small = render(spec, 1, 64)[0].astype(float), render(spec, 1, 32)[0].astype(float)
        halved = large.reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(halved - small).mean() < 8


# ------------------------------------------------------------------------------------------ what is kept out

def test_a_tenth_of_the_combinations_is_held_out():
    """A fixed tenth of subject x colour x motion x scene, and of subject x colour x scene for images."""
    videos = [is_heldout(Spec(s, c, m, b))
              for s in SUBJECTS for c in COLOURS for m in MOTIONS for b in SCENES]
    images = [is_heldout(Spec(s, c, "", b)) for s in SUBJECTS for c in COLOURS for b in SCENES]
    assert len(videos) == 4320 and len(images) == 720
    assert 0.09 < np.mean(videos) < 0.11 and 0.08 < np.mean(images) < 0.12


def test_no_word_is_held_out_altogether():
    """Composition, not vocabulary: each subject, colour, motion and scene is trained in some combination."""
    drawn = specs("video", 600)
    for name, words in (("subject", set(SUBJECTS) - set(IMAGE_ONLY)), ("colour", set(COLOURS)),
                        ("motion", set(MOTIONS)), ("scene", set(SCENES))):
        assert {getattr(spec, name) for spec in drawn} == words


@pytest.mark.parametrize("kind, heldout", [("video", False), ("image", False), ("video_heldout", True),
                                           ("image_heldout", True)])
def test_training_never_draws_what_is_held_out(kind, heldout):
    """And the held-out kinds draw nothing else; position, size and pose do not matter."""
    assert all(is_heldout(spec) == heldout for spec in specs(kind))
    spec = draw(3, 1, kind)
    assert is_heldout(replace(spec, x=0.5, scale=2.0, flip=not spec.flip, phase=0.1, drift=())) == heldout


@pytest.mark.parametrize("kind", KINDS)
def test_image_only_subjects_never_move_in_training(kind):
    """The boat and the mushroom: only in the image set, and in the two kinds that ask about them."""
    subjects = {spec.subject for spec in specs(kind)}
    if kind.endswith("image_only"):
        assert subjects == set(IMAGE_ONLY)
    elif kind.startswith("video"):
        assert subjects == set(SUBJECTS) - set(IMAGE_ONLY)
    else:
        assert subjects == set(SUBJECTS)


def test_images_have_no_motion_and_videos_have_one():
    """Spec.motion is "" for every image kind."""
    for kind in KINDS:
        assert {spec.motion == "" for spec in specs(kind, 60)} == {kind.startswith("image")}


# -------------------------------------------------------------------------------------------------- captions

def test_captions_are_english():
    """Article, colour, subject, motion, scene."""
    assert caption(Spec("cat", "orange", "jumping", "in snow")) == "an orange cat jumping in snow"
    assert caption(Spec("cat", "red", "moving left", "at night")) == "a red cat moving left at night"
    assert caption(Spec("boat", "blue", "", "underwater")) == "a blue boat underwater"


def test_a_short_caption_keeps_the_subject_and_the_article_agrees():
    """Whatever is left out: the article follows the word that comes after it."""
    orange = Spec("cat", "orange", "jumping", "in snow")
    assert {caption(orange, seed, drop=1.0) for seed in range(100)} == {
        " ".join(word for word in (a, "cat", m, s) if word)
        for a in ("an orange", "a") for m in ("jumping", "") for s in ("in snow", "")}


def test_captions_are_short_as_often_as_asked():
    """Of 40 % each attribute is missing by a coin: 20 % lack it, 5 % say "a cat" (a coin each of three), and
    65 % say all; the same seed says the same."""
    spec = Spec("cat", "red", "jumping", "in snow")
    said = [caption(spec, seed, drop=0.4) for seed in range(4000)]
    assert said == [caption(spec, seed, drop=0.4) for seed in range(4000)]
    for word in ("red", "jumping", "snow"):
        assert 0.78 < np.mean([word in words.split() for words in said]) < 0.82
    assert 0.04 < said.count("a cat") / 4000 < 0.06
    assert 0.62 < said.count("a red cat jumping in snow") / 4000 < 0.68


def test_every_word_of_a_caption_is_in_the_vocabulary():
    """The toy text encoder knows WORDS and nothing else, and each of them is said."""
    said = {word for kind in KINDS for i, spec in enumerate(specs(kind))
            for word in caption(spec, i, 0.4).split()}
    assert said == set(WORDS) and list(WORDS) == sorted(set(WORDS))


# ------------------------------------------------------------------------------------------ motion, measured

STILL = Spec("ball", "red", "staying still", "in the desert", drift=((0.5, 0.5, 0.5),) * 5)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_movers_move_the_way_the_caption_says(subject):
    """Measured in the pictures: the subject's centre shifts by 1.1 pixels (of 64) a frame, left or right."""
    for motion, sign in (("moving left", -1), ("moving right", 1)):
        path = centres(subject_masks(replace(STILL, subject=subject, motion=motion, flip=sign < 0), 9))
        assert 0.7 < sign * (path[-1] - path[0])[0] / (8 * 1.1 / 64) < 1.3
        assert abs(path[-1] - path[0])[1] < 0.05


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_others_stay_in_their_place(subject):
    """Staying still and growing keep the centre; what swings (legs, tails, wings) shifts it a little."""
    for motion in ("staying still", "growing"):
        path = centres(subject_masks(replace(STILL, subject=subject, motion=motion)))
        assert np.abs(path - path.mean(0)).max() < 0.07


def test_a_jump_is_highest_in_the_middle():
    """One hop in 16 frames, up (y points down) and back."""
    height = -centres(subject_masks(replace(STILL, motion="jumping")))[:, 1]
    assert height.argmax() in (7, 8) and height.max() - height[0] > 0.12
    assert abs(height[0] - height[-1]) < 0.02


def test_growing_grows():
    """Every frame is larger than the one before."""
    area = subject_masks(replace(STILL, motion="growing")).sum((1, 2))
    assert (np.diff(area) > 0).all() and area[-1] > 1.8 * area[0]


def test_spinning_turns_clockwise_without_moving():
    """A rocket upright in the middle of the clip leans right later and left before."""
    spec = replace(STILL, subject="rocket", motion="spinning")
    assert pose(spec, 8, 17)[3] == 0 and pose(spec, 16, 17)[3] > 0
    masks = subject_masks(spec, 17)
    top = [np.flatnonzero(mask[mask.any(1).argmax()]).mean() for mask in masks]        # column of the nose
    assert top[0] < top[8] - 3 < top[16] - 6


def test_movers_face_where_they_go():
    """flip means facing left."""
    for spec in specs("video"):
        if spec.motion in ("moving left", "moving right"):
            assert spec.flip == (spec.motion == "moving left")


def test_subjects_stay_in_the_picture():
    """At every moment of a 16-frame clip most of the subject can be seen."""
    for spec in specs("video", 40):
        shown = subject_masks(spec, 16, 32).sum((1, 2))
        assert shown.min() > 0.05 * 32 * 32


def test_nothing_jumps_between_two_frames():
    """Real film is nearly still over 1/25 s; a key frame held for 4 frames must be a fair start."""
    for spec in specs("video", 20):
        clip = render(spec, 16, 32).astype(float) / 127.5
        assert np.square(np.diff(clip, axis=0)).mean((1, 2, 3)).max() < 0.12


def test_longer_clips_extend_the_same_motion_both_ways():
    """Time counts from the middle of the clip, so the middle of 32 frames is the path of 16."""
    for spec in specs("video", 10):
        short, long = [pose(spec, i, 16) for i in range(16)], [pose(spec, i + 8, 32) for i in range(16)]
        np.testing.assert_allclose(short, long)


# -------------------------------------------------------------------------------------------------- pictures

def test_every_word_has_its_picture():
    """No subject, colour or scene looks like another one."""
    for name, words in (("subject", SUBJECTS), ("colour", COLOURS), ("scene", SCENES)):
        pictures = [render(replace(STILL, **{name: word}), 1, 32)[0].astype(float) for word in words]
        gaps = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
        assert min(gaps) > 2.0
    assert set(SHAPES) == set(SUBJECTS) and set(BACKDROPS) == set(SCENES)


def test_captions_say_all_that_names_do():
    """A Spec's four words are strings, not numpy's, so that they can be hashed, stored and compared."""
    spec = draw(0, 0, "any")
    assert all(type(getattr(spec, field.name)) is str for field in fields(Spec)[:4])
    assert all(type(value) is float for value in (spec.x, spec.y, spec.scale, spec.phase))
    assert type(spec.flip) is bool


def test_the_demo_draws_every_subject(tmp_path):
    """`python world.py`: a contact sheet and the milliseconds a clip takes."""
    assert world.demo(str(tmp_path / "sheet.png"), rows=3) > 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000
