"""world.py - the toy world: captioned clips of a cat (or a car, or a rocket), drawn from a seed, read back.
Paper    none; a stand-in for WebVid, Pexels and JourneyDB that needs no download and has right answers
Shapes   a clip is uint8 (T,H,W,3); an image is a clip with T=1     T frames, H W pixels
Time     one frame is 1/25 s of slow film: nothing moves much more than two pixels (of 64) a frame, as real
         film does; a key frame held for 4 frames is then a fair start for the DP-VAE (vae.py)
Differs  from real data in that every clip's subject, colour, motion and scene are known, so that composition
         (held-out combinations) and transfer (subjects seen only as images) can be counted, not argued
Reads    after checkpoint.py, before video.py and data.py
Run me   python world.py      # CPU, 40 s: a page of the world, and clips read back, into out/world.png

A video model needs films with words. Real ones are terabytes, and nobody knows what a generated clip should
have looked like. So here is a small world in which a subject in a colour does a motion in a scene, "a red cat
jumping in snow", and a clip is its words and a handful of numbers, its Spec, and nothing else:

    seed, index ---draw---> Spec(cat, red, jumping, in snow, x, y, scale, flip, phase, drift)
                             |    |    ^
       "a red cat jumping <--+    |    +---------------+
        in snow"   caption        |render              |nearest: which Spec comes closest to this clip,
                                  v                    |         and how close?
                           uint8 (T,H,W,3) ----> train a model ----> a generated clip

* draw() is a function of two integers: there is nothing to download or store, and no two sets overlap.
* render() draws with Pillow's polygons. Everything is big and plain, subjects half a frame wide, nothing
  thinner than two pixels. That is not taste: with small subjects and one-pixel stars a 1.6 M-parameter VAE
  stuck at 26 dB.
* is_heldout() keeps a tenth of the combinations of words from training. A model that can draw those has
  learned words, not pictures.
* nearest() goes the other way. A network that names the words (features.py's judge) is content with a
  two-headed cat; the distance to the nearest clip that the world could have drawn is not.

Other toy worlds: Moving MNIST (Srivastava et al. 2015) has digits that bounce, CLEVR (Johnson et al. 2017)
solids with questions, dSprites shapes with all their numbers. None has words for both look and motion."""

import functools
import itertools
import math
import time
import zlib
from dataclasses import dataclass, field, replace
from multiprocessing import Pool

import numpy as np
from PIL import Image, ImageDraw

# ---------------------------------------------------------------------------------------------- words

# A caption's four attributes, each with its words in fixed order: the judge's logits (features.py) follow it,
# so a new word goes to the end, and makes old judges useless. Colours are RGB, chosen to be told apart.
# 12 x 10 x 6 x 6 words make 4,320 different captions of clips: each word is seen often, each combination
# seldom, as in the world outside. Two subjects are shown in pictures only. VideoDiT trains on pictures and
# films together (its 3.2), so that films gain from what only pictures show: here that can be counted.
SUBJECTS = ("cat", "dog", "fish", "bird", "car", "rocket",
            "ball", "star", "tree", "house", "boat", "mushroom")
IMAGE_ONLY = ("boat", "mushroom")         # in the image set, never in the video set: can the model move them?
COLOURS = {"red": (222, 40, 40), "orange": (248, 140, 24), "yellow": (248, 222, 48), "green": (40, 170, 70),
           "blue": (45, 90, 230), "purple": (150, 60, 195), "pink": (252, 140, 195), "white": (248, 248, 248),
           "black": (36, 36, 40), "brown": (132, 80, 40)}
MOTIONS = ("moving left", "moving right", "jumping", "growing", "spinning", "staying still")
SCENES = ("on grass", "at night", "at sunset", "in snow", "in the desert", "underwater")
WORDS = tuple(sorted({word for phrase in ("a", "an", *SUBJECTS, *COLOURS, *MOTIONS, *SCENES)
                      for word in phrase.split()}))

# What a scene looks like: sky at the top, sky at the horizon, ground, height of the horizon (of 1), and what
# drifts there. What drifts moves although no caption says so, as things do in films.
BACKDROPS = {"on grass": ((110, 180, 245), (190, 225, 250), (100, 185, 80), 0.66, "cloud"),
             "at night": ((14, 18, 56), (48, 52, 110), (30, 44, 58), 0.72, "star"),
             "at sunset": ((196, 70, 110), (252, 176, 90), (96, 48, 88), 0.68, "sun"),
             "in snow": ((160, 180, 205), (205, 216, 228), (240, 244, 250), 0.66, "flake"),
             "in the desert": ((248, 214, 150), (252, 236, 196), (222, 174, 104), 0.66, "sun"),
             "underwater": ((36, 150, 196), (16, 84, 150), (120, 130, 110), 0.86, "bubble")}
# Drifting things: how many, their colour, and between which heights (of 1) their centres can be.
DRIFTING = {"cloud": (2, (245, 250, 255), 0.06, 0.26), "star": (5, (255, 244, 190), 0.04, 0.54),
            "flake": (5, (255, 255, 255), -0.05, 1.05), "bubble": (4, (150, 215, 240), -0.05, 1.05),
            "sun": (0, (255, 232, 130), 0.0, 1.0)}
# The numbers of a Spec that are drawn from a range: where the middle of its path is, and how large it is.
RANGES = {"x": (-0.06, 0.06), "y": (-0.03, 0.05), "scale": (0.92, 1.08)}
VERSION = 2        # of what draw() draws; counted up with it, lest older latents be taken for it
KINDS = ("video", "image", "video_heldout", "image_heldout", "video_image_only", "image_image_only", "any")


# ---------------------------------------------------------------------------------------------- one clip

# Everything that a clip is, in ten fields. Frozen, so that it can be a key of a dict; plain strings and
# floats, so that it can be written as JSON.
@dataclass(frozen=True)
class Spec:
    """One clip, whole: the four words that a caption may say, and the numbers that it does not."""
    subject: str
    colour: str
    motion: str                    # "" for an image
    scene: str
    x: float = 0.0                 # centre of the path, in frame widths from the middle
    y: float = 0.0
    scale: float = 1.0             # of the standard size, 0.29 frame widths from centre to edge
    flip: bool = False             # faces left
    phase: float = 0.0             # of legs, tails and wings, in turns
    drift: tuple = field(default=())   # where the clouds, stars, flakes or bubbles start: (x, y, size) each
    caught: str = ""               # of an image: the motion that it was taken in the middle of, if any,
    moment: float = 0.0            # and when: frames from the middle of that motion


def is_heldout(spec):
    """A fixed tenth of subject x colour x motion x scene is kept out of training, chosen by a hash.
    Images have no motion: a tenth of subject x colour x scene.

    A hash and not a list: it holds for words that are added later, and no file has to be kept in step. Not
    Python's own hash(), though, which is salted: every process would keep out another tenth."""
    words = f"{spec.subject}|{spec.colour}|{spec.motion}|{spec.scene}"
    return zlib.crc32(words.encode()) % 10 == 0


def draw(seed, index, kind="video"):
    """The index-th Spec of an endless list. kind: one of KINDS;
    "any" is for the judge and knows no bounds."""
    # A generator of its own for each clip: clip 1,000 costs what clip 0 does, in any order, on any machine.
    rng = np.random.default_rng([seed, index, KINDS.index(kind)])
    is_image = kind.startswith("image")
    if kind.endswith("image_only"):
        subjects = IMAGE_ONLY
    elif kind.startswith("video"):
        subjects = [subject for subject in SUBJECTS if subject not in IMAGE_ONLY]
    else:
        subjects = SUBJECTS
    while True:                    # until one falls on the right side of is_heldout: 1.1 tries, or ten
        words = (rng.choice(subjects), rng.choice(list(COLOURS)), rng.choice(MOTIONS), rng.choice(SCENES))
        subject, colour, motion, scene = map(str, words)         # numpy's own strings would not go into JSON
        spec = Spec(subject, colour, "" if is_image else motion, scene, *_numbers(rng, motion, is_image))
        if kind == "any" or kind.endswith("image_only") or is_heldout(spec) == kind.endswith("heldout"):
            return _caught(spec, np.random.default_rng([seed, index, 1])) if kind == "image" else spec


def _numbers(rng, motion, is_image):
    """x, y, scale, flip, phase, drift. Movers face where they go.

    The order of these calls is the world: another one, and every clip of every seed is a different clip."""
    flip = bool(rng.integers(2))
    if not is_image and motion in ("moving left", "moving right"):
        flip = motion == "moving left"
    drift = tuple((float(x), float(y), float(size)) for x, y, size in rng.random((5, 3)))
    x, y, scale = (float(rng.uniform(*RANGES[name])) for name in ("x", "y", "scale"))
    return x, y, scale, flip, float(rng.random()), drift


# Why captions that say less? A model that only ever read whole ones has never met "a cat", and what it makes
# of it is anything. With each attribute left out by a toss of its own, at 15 %, one caption in 300 said the
# subject alone, and "a cat" came out with two heads. So first a toss whether to say less, then one of what.
#     drop = 0.4:   60 % say all,   of the other 40 % an eighth "a cat", an eighth "a red cat", ...
#
# And why do pictures' captions speak of motion? Because people's do: "a dog running" is what they write under
# a photograph. As long as ours did not, no caption had held "boat" and "moving", and together they were new
# words. Of 64 pictures of boats and mushrooms that were asked for with a motion, 38 showed one; without, all
# 64, and all of 64 clips. It had looked as if what is known from pictures could not be made to move.
#
# And a photograph shows what its caption says: a dog in mid-air. While our pictures stayed upright whatever
# was said of them, they taught that a spinning boat is an upright one. The shipped weights are from that
# time: 73 % of boats and mushrooms move as asked, 98 % are what was asked for. 3,300 steps more with
# pictures as they are now: 84 % and 92 %; what begins with a picture or a clip lost up to 8 points of its
# motion, nearest rendering 0.1 dB: too few to be shipped.
def caption(spec, seed=0, drop=0.0):
    """"a red cat jumping in snow". A share `drop` of the captions says less, each attribute then left out by
    the toss of a coin, so that "a cat" works too: it is an eighth of these."""
    toss = np.random.default_rng([seed, 7]).random(4)
    keep = (toss[:3] >= 0.5) | (toss[3] >= drop)
    colour, motion, scene = (word if kept else "" for word, kept in
                             zip((spec.colour, spec.motion or spec.caught, spec.scene), keep))
    words = " ".join(word for word in (colour, spec.subject, motion, scene) if word)
    return ("an " if words[0] in "aeiou" else "a ") + words


def _caught(spec, rng):
    """Every second picture is one of a motion's moments: any motion, but whoever moves faces where he goes.
    None that would be of a combination that is kept out of training."""
    motion, moment = str(rng.choice(MOTIONS)), float(rng.uniform(-7.5, 7.5))
    if motion.startswith("moving"):
        motion = "moving left" if spec.flip else "moving right"
    if rng.random() < 0.5 or is_heldout(replace(spec, motion=motion)):
        return spec
    return replace(spec, caught=motion, moment=moment)


# ---------------------------------------------------------------------------------------------- subjects

#           -1 ..... x ..... +1          A subject is a picture book's cut-outs, glued back to front:
#       -1   .   _       /\_/\ .
#        :   .  | |     | o o |.             tail, legs, body, ears, head, eyes, nose
#        y   .  | |_____|  _  |.
#        :   .   \      \_____/ .         each a polygon in a box of +-1 around its middle, with the name of
#       +1   .    ||_||_||_||   .         a shade, not a colour
#
# A subject is a list of parts, back to front: (points of a polygon, shade) in a box of +-1, x to the right,
# where it faces, y down. Shades are names, since a red cat and a blue one have the same parts; _paint() below
# knows them. `swing` goes from -1 to 1 and back and moves what an animal moves: legs, tails, wings. Without
# it a walking cat would be a picture pushed along, and a VAE could do with the key frame and an offset.
# For a thirteenth subject: a function here, its name in SHAPES and at the end of SUBJECTS, and train anew.

# Ovals are polygons of 24 sides: Pillow's own ellipses cannot be turned. _circle and _paint are remembered
# (cache), as the search below asks for the same ones again and again.
@functools.cache
def _circle(start, end):
    angles = np.radians(np.linspace(start, end, 25))
    return [(math.cos(a), math.sin(a)) for a in angles]


def _oval(x, y, rx, ry=None, start=0.0, end=360.0):
    return [(x + rx * cos, y + (ry or rx) * sin) for cos, sin in _circle(start, end)]


def _box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _leg(x, y0, y1, lean, width=0.2):
    return [(x - width / 2, y0), (x + width / 2, y0), (x + width / 2 + lean, y1), (x - width / 2 + lean, y1)]


def _cat(swing):
    tail = [(-0.62, 0.2), (-0.9, -0.1), (-1.0 + 0.22 * swing, -0.85), (-0.76 + 0.22 * swing, -0.85),
            (-0.68, -0.15), (-0.42, 0.1)]
    legs = [(_leg(x, 0.3, 0.95, 0.16 * swing * side), "body") for x, side in
            ((-0.5, 1), (-0.22, -1), (0.12, 1), (0.4, -1))]
    ears = [([(0.22, -0.4), (0.24, -0.95), (0.56, -0.6)], "body"),
            ([(0.6, -0.6), (0.92, -0.95), (0.94, -0.4)], "body")]
    return [(tail, "body"), *legs, (_oval(-0.08, 0.22, 0.62, 0.34), "body"), *ears,
            (_oval(0.58, -0.28, 0.4, 0.36), "body"),
            (_oval(0.44, -0.34, 0.1), "eye"), (_oval(0.76, -0.34, 0.1), "eye"),
            (_oval(0.6, -0.12, 0.09, 0.07), "dark")]


def _dog(swing):
    tail = [(-0.6, 0.1), (-1.0, -0.3 + 0.2 * swing), (-0.86, -0.44 + 0.2 * swing), (-0.5, -0.08)]
    legs = [(_leg(x, 0.3, 0.95, 0.16 * swing * side, 0.22), "body") for x, side in
            ((-0.55, 1), (-0.27, -1), (0.14, 1), (0.4, -1))]
    return [(tail, "body"), *legs, (_box(-0.7, -0.12, 0.55, 0.42), "body"),
            (_box(0.28, -0.72, 0.74, 0.1), "body"), (_box(0.62, -0.4, 1.1, -0.06), "body"),
            (_oval(1.04, -0.36, 0.12), "dark"), (_oval(0.3, -0.42, 0.17, 0.4), "dark"),
            (_oval(0.64, -0.5, 0.1), "eye")]


def _fish(swing):
    tail = [(-0.45, 0.0), (-1.05, -0.6 + 0.16 * swing), (-0.82, 0.16 * swing), (-1.05, 0.6 + 0.16 * swing)]
    return [(tail, "dark"), ([(-0.3, -0.4), (0.05, -0.85), (0.35, -0.4)], "dark"),
            (_oval(0.15, 0.0, 0.82, 0.52), "body"), (_oval(0.58, -0.14, 0.14), "eye"),
            ([(-0.05, 0.05), (-0.4, 0.4 + 0.12 * swing), (0.2, 0.32)], "dark")]


def _bird(swing):
    wing = [(-0.4, 0.0), (-0.55, -0.95 * swing), (-0.1, -1.05 * swing), (0.3, 0.0)]
    return [([(-0.5, 0.05), (-1.05, -0.15), (-1.05, 0.25)], "dark"), (_oval(-0.05, 0.12, 0.6, 0.36), "body"),
            (_oval(0.55, -0.2, 0.32), "body"), ([(0.8, -0.32), (1.15, -0.16), (0.8, -0.02)], "accent"),
            (_oval(0.6, -0.26, 0.1), "eye"), (wing, "dark")]


def _car(swing):
    wheels = [(_oval(x, 0.5, 0.28), "tyre") for x in (-0.55, 0.55)]
    hubs = [(_oval(x, 0.5, 0.12), "light") for x in (-0.55, 0.55)]
    return [([(-0.6, -0.05), (-0.4, -0.6), (0.3, -0.6), (0.6, -0.05)], "body"),
            (_box(-1.0, -0.1, 1.05, 0.5), "body"),
            ([(-0.42, -0.08), (-0.3, -0.44), (-0.06, -0.44), (-0.06, -0.08)], "light"),
            ([(0.1, -0.08), (0.1, -0.44), (0.22, -0.44), (0.42, -0.08)], "light"), *wheels, *hubs,
            (_box(0.86, 0.02, 1.05, 0.2), "accent")]


def _rocket(swing):
    flame = [(-0.22, 0.6), (0.0, 1.05 + 0.12 * swing), (0.22, 0.6)]
    hull = [(0.0, -1.05), (0.24, -0.7), (0.34, -0.2), (0.34, 0.65),
            (-0.34, 0.65), (-0.34, -0.2), (-0.24, -0.7)]
    fins = [([(-0.3, 0.15), (-0.72, 0.8), (-0.3, 0.65)], "dark"),
            ([(0.3, 0.15), (0.72, 0.8), (0.3, 0.65)], "dark")]
    return [(flame, "accent"), *fins, (hull, "body"), (_oval(0.0, -0.2, 0.19), "light")]


def _ball(swing):
    return [(_oval(0, 0, 0.8), "body"), (_box(-0.77, -0.15, 0.77, 0.15), "light"), (_oval(0, 0, 0.3), "dark")]


def _star(swing):
    radii = [0.42 if i % 2 else 1.05 for i in range(10)]
    return [([(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5))
              for i, r in enumerate(radii)], "body")]


def _tree(swing):
    sway = 0.06 * swing
    return [(_box(-0.15, 0.4, 0.15, 1.0), "trunk"), ([(-0.8, 0.55), (0.8, 0.55), (sway, -0.2)], "body"),
            ([(-0.64, 0.1), (0.64, 0.1), (sway, -0.6)], "body"),
            ([(-0.46, -0.35), (0.46, -0.35), (sway * 2, -1.05)], "body")]


def _house(swing):
    return [(_box(-0.7, -0.2, 0.7, 0.85), "body"), ([(-0.95, -0.15), (0.0, -0.95), (0.95, -0.15)], "dark"),
            (_box(-0.5, 0.2, -0.12, 0.85), "dark"), (_box(0.14, 0.1, 0.5, 0.45), "light")]


def _boat(swing):
    sail = [(0.06, -0.95), (0.06, 0.1), (0.8 + 0.1 * swing, 0.1)]
    return [(_box(-0.08, -0.95, 0.08, 0.4), "trunk"), (sail, "light"),
            ([(-0.1, -0.75), (-0.1, 0.1), (-0.6, 0.1)], "light"),
            ([(-1.0, 0.3), (1.0, 0.3), (0.65, 0.85), (-0.65, 0.85)], "body")]


def _mushroom(swing):
    spots = [(_oval(x, y, 0.15, 0.12), "light") for x, y in ((-0.45, -0.3), (0.02, -0.58), (0.48, -0.28))]
    return [(_box(-0.26, 0.0, 0.26, 0.9), "light"), (_oval(0, 0.05, 0.95, 0.9, 180, 360), "body"), *spots]


SHAPES = {"cat": _cat, "dog": _dog, "fish": _fish, "bird": _bird, "car": _car, "rocket": _rocket,
          "ball": _ball, "star": _star, "tree": _tree, "house": _house, "boat": _boat, "mushroom": _mushroom}


# ---------------------------------------------------------------------------------------------- rendering

# A frame is a backdrop, what drifts before it, and the subject on top. Pillow's polygons have hard edges, and
# a hard edge jumps from pixel to pixel where it should glide: a model would have to learn the jumps. So all
# is drawn at twice the size, and each 2 x 2 pixels are averaged: an edge has five levels and half the jump.

# Motion is a place, a size and a lean for each moment; nothing else moves but the limbs (swing_at) and what
# drifts. With s = frames from the middle of the clip, before or after:
#
#     moving right   x + 1.1 s / 64                        a little over one pixel (of 64) a frame
#     jumping        y + 0.06 - 0.17 |cos(pi s / 16)|      one hop in 16 frames
#     growing        scale (1 + 0.032 s)                   from 0.76 to 1.24 of its size in 16 frames
#     spinning       turned by 7 s degrees                 from -52 to 52
#
# All of it is slow on purpose. In film at 25 frames a second neighbours are nearly alike, which is what the
# DP-VAE lives on: it keeps one frame of four and codes the others as what differs.
def pose(spec, frame, frames):
    """Where the subject is at a frame: (x, y, scale, turns). x, y in frame widths from the middle.

    Time is counted from the middle of the clip, so that longer clips extend the same motion both ways. An
    image has one moment, whatever frame is asked for."""
    motion, steps = spec.motion, frame - (frames - 1) / 2
    if spec.caught:
        motion, steps = spec.caught, spec.moment
    x, y, scale, turns = spec.x, spec.y, spec.scale, 0.0
    if motion == "moving left":
        x -= steps * 1.1 / 64
    elif motion == "moving right":
        x += steps * 1.1 / 64
    elif motion == "jumping":                   # one hop in 16 frames, in the air at the middle of the clip
        y += 0.06 - 0.17 * abs(math.cos(math.pi * steps / 16))
    elif motion == "growing":
        scale *= min(max(1.0 + 0.032 * steps, 0.5), 1.6)
    elif motion == "spinning":
        turns = steps * 7.0 / 360
    return x, y, scale, turns


def swing_at(spec, frame):
    """How far legs, tails and wings are swung, -1 to 1: there and back in 16 frames, from any phase."""
    return math.sin(2 * math.pi * (frame / 16 + spec.phase))


def render(spec, frames=16, size=64, only=None):
    """The clip as uint8 (T,H,W,3), drawn at twice the size and box-filtered;
    `only` names the frames to draw.

    The pixels are part of the world as much as the words are: weights, caches and published numbers hang on
    them. A test holds them to stored ones, so whoever makes the cat prettier knows what it costs."""
    backdrop = _backdrop(spec, 2 * size)
    clip = []
    for frame in range(frames) if only is None else only:
        canvas = backdrop.copy()
        pen = ImageDraw.Draw(canvas)
        _draw_drift(pen, spec, frame, 2 * size)
        _draw_subject(pen, spec, pose(spec, frame, frames), swing_at(spec, frame), 2 * size)
        clip.append(np.asarray(canvas.reduce(2)))
    return np.stack(clip)                                                        # (T,H,W,3)


# Things drift so that a still subject is no still picture: "staying still" must be learned as the subject's,
# not the clip's. They pass behind it, and what passes behind has to come out on the other side as it went in.
# They move slowly and come round again, so any number of frames can be drawn.
def _backdrop(spec, size):
    """Sky as a gradient, ground as one colour, the sun where there is one: an image of size x size."""
    top, bottom, ground, horizon, drift = BACKDROPS[spec.scene]
    mix = np.linspace(0, 1, int(size * horizon))[:, None]
    rows = np.empty((size, 3))
    rows[:len(mix)] = (1 - mix) * top + mix * bottom                             # (H,3)
    rows[len(mix):] = ground
    image = Image.fromarray(np.broadcast_to(rows[:, None], (size, size, 3)).astype(np.uint8))
    if drift == "sun":
        x = size * (0.2 + 0.6 * spec.drift[0][0])
        y, r = (size * horizon, size * 0.17) if spec.scene == "at sunset" else (size * 0.16, size * 0.1)
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=DRIFTING["sun"][1])
        image.paste(tuple(ground), (0, len(mix), size, size))            # ground hides the rest
    return image


def _draw_drift(pen, spec, frame, size):
    """Clouds and stars drift, flakes fall, bubbles rise,
    about half a pixel (of 64) a frame, round and round."""
    kind = BACKDROPS[spec.scene][4]
    count, colour = DRIFTING[kind][:2]
    step = frame * 0.6 / 64
    for x, y, r in spec.drift[:count]:
        r = (0.035 + 0.02 * r) * size
        if kind == "cloud":
            x, y = ((x + step) % 1.3 - 0.15) * size, (0.06 + 0.2 * y) * size
            pen.ellipse((x - 3.2 * r, y - r, x + 3.2 * r, y + r), fill=colour)
            pen.ellipse((x - 1.6 * r, y - 1.8 * r, x + 1.2 * r, y + r), fill=colour)
        elif kind == "star":
            x, y, r = ((x + step / 2) % 1.1 - 0.05) * size, (0.04 + 0.5 * y) * size, r * 0.8
            pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=colour)
        else:                                                                    # a flake, or a bubble
            way = 1 if kind == "flake" else -1
            x, y = x * size, ((y + way * step) % 1.1 - 0.05) * size
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)


@functools.cache
def _paint(shade, colour):
    """The RGB of a part: the subject's colour, a darker or lighter one, or a fixed one."""
    fixed = {"accent": (255, 190, 40), "tyre": (40, 40, 46), "trunk": (110, 70, 40)}
    body = np.array(COLOURS[colour])
    if shade == "dark":                         # black cannot get darker: its dark parts are grey
        return tuple(int(v) for v in (body * 0.62 if colour != "black" else (92, 92, 100)))
    if shade == "light":
        return (226, 236, 244) if colour != "white" else (150, 170, 190)
    if shade == "eye":
        return (250, 250, 250) if colour == "black" else (24, 24, 30)
    return fixed.get(shade, tuple(int(v) for v in body))


# A point (px, py) of a part, in the subject's box, goes to the canvas mirrored (m = -1 faces left), turned by
# an angle a, and scaled to `unit` pixels:
#     x = centre_x + unit (cos a  m px - sin a  py)          y = centre_y + unit (sin a  m px + cos a  py)
def _draw_subject(pen, spec, pose, swing, size, corners=True):
    """Outline first, then fill, so that the parts of one animal have one contour, two pixels (of 64) wide.
    corners=False leaves the outline's corners open: half the time, nearly the same picture."""
    x, y, scale, turns = pose
    unit = 0.29 * scale * size
    cos, sin = math.cos(2 * math.pi * turns) * unit, math.sin(2 * math.pi * turns) * unit
    centre_x, centre_y = (0.5 + x) * size, (0.54 + y) * size
    mirror = -1 if spec.flip else 1
    parts = []
    for points, shade in SHAPES[spec.subject](swing):
        placed = [(centre_x + cos * mirror * px - sin * py,
                   centre_y + sin * mirror * px + cos * py)
                  for px, py in points]
        parts.append((placed, shade))
    outline = ((140, 140, 150) if spec.colour == "black"
               else tuple(int(v * 0.42) for v in COLOURS[spec.colour]))
    for points, shade in parts:
        pen.line(points + points[:2], fill=outline, width=max(round(size / 20), 2),
                 joint="curve" if corners else None)
    for points, shade in parts:
        pen.polygon(points, fill=_paint(shade, spec.colour))


# ---------------------------------------------------------------------------------------------- reading back

# How good is a generated clip of "a red cat jumping in snow"? There is no original to compare it with: place,
# size, side and stride were the model's to choose. A judge that names the words is content with two heads.
# Frechet's distance (metrics.py) needs hundreds of clips, and says nothing of one.
# But this world is made of numbers. So we look for the Spec whose rendering is nearest to the clip, and say
# how far away it still is, in decibels over the subject:
#
#     Spec* = the Spec of least squared error      dB = 10 log10(255^2 / mean squared error of render(Spec*))
#
# A model that draws only what the world could have drawn is limited by its VAE's blur alone. So the ceiling
# is what the VAE makes of true clips, measured in the same way. Three traps:
#
# 1. The area. Over whole frames any model scores well, as backdrops are easy and most of the frame. Over the
#    drawn subject alone a second head costs nothing. So: where the drawn subject is, and where the clip, near
#    it, shows something that is neither backdrop nor drift.
# 2. What drifts. Five flakes are fifteen numbers more, and none of the subject's. They are not fitted: a
#    pixel of the backdrop may be any mixture of backdrop and flake, whichever suits it best.
# 3. Wrong minima. Half a stride or a flip away lies a place from which every small change is worse. So the
#    search begins at many places, coarsely, and only the best of them go on.
#
# To explain a picture by how it would be drawn is an old idea ("analysis by synthesis", "inverse graphics"),
# and usually hopeless for want of a drawing program for the world. Where there is one it is a ruler: it needs
# no training, and says by its Spec what it saw. Where there is none, Frechet's distance remains.

@dataclass
class Fit:
    """What `nearest` says of one clip. dB are PSNR over the subject."""
    spec: Spec                     # of the nearest clip; drift is empty, since it is not fitted
    clip: np.ndarray               # that clip, uint8 (T,H,W,3), with nothing drifting
    area: np.ndarray               # where it was compared, bool (T,H,W)
    db: float                      # of all frames' errors together
    frames: np.ndarray             # dB of each frame (T,)
    alone: float                   # dB with each frame fitted by itself: shape, whatever the path; or nan
    colour_drift: float            # how the subject's colour error wanders over the clip, in levels of 255
    shape_drift: float             # how its shape does, as a share of its area


def nearest(clips, told, alone=False, workers=1):
    """(B,3,T,H,W) in [-1,1], and for each what it was to show -> B Fits.

    told: captions, or Specs, of which only the words are read. Words left out, or "", are fitted as well.
    alone: also fit each frame by itself, which takes twice as long. workers: processes."""
    jobs = [(np.asarray(clip), words, alone) for clip, words in zip(clips, told)]
    if min(workers, len(jobs)) < 2:
        return [_nearest_to(*job) for job in jobs]
    with Pool(min(workers, len(jobs))) as pool:
        fits = pool.starmap(_nearest_to, jobs, chunksize=1)
        pool.close()               # else `with` ends them by SIGTERM, which the children of a process that
        pool.join()                # notes signals (checkpoint.py, catch_signals) only note: it waits for ever
    return fits


# Told "a red cat" or a Spec, only the words count; a Spec's numbers are what is looked for.
def read_words(told):
    """A caption, or a Spec -> (subject, colour, motion, scene), "" for what it does not say."""
    if isinstance(told, Spec):
        return told.subject, told.colour, told.motion, told.scene
    said = f" {' '.join(told.lower().split())} "
    return tuple(next((word for word in words if f" {word} " in said), "")
                 for words in (SUBJECTS, COLOURS, MOTIONS, SCENES))


# What a pixel costs. The subject covers a share a of it with paint p; behind is the backdrop b, or a drifting
# thing of colour d, or their mixture. So the pixel should be
#     a p + (1 - a) (b + l (d - b))          with any l from 0 to 1
# and the best l is a least-squares fit of one number: with r = pixel - a p - (1 - a) b and
# v = (1 - a) (d - b) it is l = r.v / v.v, clipped. Where the subject covers all, v is 0: nothing is excused.
# So a flake behind a leg is neither held against the clip nor taken for a part of the cat, though nobody
# knows where the flakes are. The price: a white leg in the snow could be one, and weighs little.
class Stage:
    """A clip before its scene's empty backdrop; what its pixels cost with a subject there, and without."""
    SEEN = 40.0                    # levels of 255: what is further from backdrop and drift is "something"

    def __init__(self, clip, scene):
        self.clip, self.scene, self.size = clip, scene, clip.shape[1]             # float32 (T,H,W,3), 0..255
        nowhere = Spec("", "", "", scene, drift=((-9.0, 0.0, 0.0),))              # its sun is out of sight
        self.back = np.asarray(_backdrop(nowhere, 2 * self.size).reduce(2), np.float32)       # (H,W,3)
        kind, horizon = BACKDROPS[scene][4], BACKDROPS[scene][3]
        colour, high, low = DRIFTING[kind][1:]
        if kind == "sun":
            high, low = (horizon - 0.17, horizon) if scene == "at sunset" else (0.06, 0.26)
        rows = (np.arange(self.size) + 0.5) / self.size
        reach = 0.1 if kind != "sun" else 0.02
        there = ((rows > high - reach) & (rows < low + reach))[:, None, None]                 # (H,1,1)
        self.toward = (np.array(colour, np.float32) - self.back) * there                      # (H,W,3)
        self.excused = np.ones(clip.shape[:3] + (1,), np.float32)                             # (T,H,W,1)
        if kind in ("star", "flake", "bubble"):
            self.excused[self._too_large()] = 0.0
        whole = (slice(None), slice(None))
        self.empty = np.stack([self.cost(t, whole, 0, np.float32(1)) for t in range(len(clip))])     # (T,H,W)
        self.seen = self.empty > self.SEEN ** 2                                               # (T,H,W)

    def _too_large(self):
        """(T,H,W): flakes are 7 pixels (of 64) wide at most, so nine of their colour are a white cat."""
        gap = self.clip - self.back
        like = np.abs(gap - self.toward).sum(-1) < np.abs(gap).sum(-1)                        # (T,H,W)
        reach = max(round(4.5 * self.size / 64), 1)
        for every in (np.all, np.any):             # erosion, then dilation: what survives is wide both ways
            for axis in (1, 2):
                edge = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
                window = np.lib.stride_tricks.sliding_window_view(np.pad(like, edge), 2 * reach + 1, axis)
                like = every(window, -1)                                                      # (T,H,W)
        return like

    def cost(self, t, box, paint, through):
        """Mean squared error of the box's pixels. paint (h,w,3) is a p above, through (h,w,1) is 1 - a."""
        r, v = self.clip[t][box] - paint - through * self.back[box], through * self.toward[box]   # (h,w,3)
        l = (r * v).sum(-1, keepdims=True) / np.maximum((v * v).sum(-1, keepdims=True), 1e-3)     # (h,w,1)
        r = r - l.clip(0, 1) * self.excused[t][box] * v
        return (r * r).mean(-1)                                                               # (h,w)

    def added(self, t, spec, pose, swing, corners=True):
        """What a subject there adds to the frame's cost: the less, the better it explains the frame.

        A sum and not a mean over its area: a mean would be lowest for a large subject that hides."""
        if (layer := _layer(spec, pose, swing, self.size, corners)) is None:
            return 0.0
        return float((self.cost(t, *layer) - self.empty[t][layer[0]]).sum())

    def total(self, spec, frames, corners=True):
        return sum(self.added(t, spec, pose(spec, t, len(self.clip)), swing_at(spec, t), corners)
                   for t in frames)

    def compare(self, t, spec, pose, swing):
        """Frame t beside the subject drawn there: picture (H,W,3), how much of each pixel is subject (H,W),
        the area of trap 1 (H,W), the squared error summed over it."""
        picture, cover, cost = self.back.copy(), np.zeros_like(self.empty[t]), self.empty[t].copy()
        if (layer := _layer(spec, pose, swing, self.size)) is not None:
            box, paint, through = layer
            picture[box] = paint + through * self.back[box]
            cover[box], cost[box] = 1 - through[..., 0], self.cost(t, *layer)
        rows, columns = (np.indices(cover.shape) + 0.5) / self.size                           # (H,W) each
        x, y, scale, _ = pose
        near = np.hypot(columns - 0.5 - x, rows - 0.54 - y) < 1.4 * 0.29 * scale              # (H,W)
        area = (cover > 0) | (near & self.seen[t])
        return picture, cover, area, cost[area].sum()


# Thousands of trials draw the same backdrop under a subject that fills a fifth of it. So the subject is drawn
# alone on a clear canvas, and only its own box is compared; the rest of the frame costs what it did (empty).
def _layer(spec, pose, swing, size, corners=True):
    """The subject alone: the box that it fills (two slices), its paint times its cover (h,w,3), 1 - cover
    (h,w,1). None where it is out of the picture."""
    canvas = Image.new("RGBA", (2 * size, 2 * size))
    _draw_subject(ImageDraw.Draw(canvas), spec, pose, swing, 2 * size, corners)
    if (box := canvas.getbbox()) is None:
        return None
    left, top, right, bottom = box[0] // 2, box[1] // 2, (box[2] + 1) // 2, (box[3] + 1) // 2
    drawn = np.asarray(canvas.crop((2 * left, 2 * top, 2 * right, 2 * bottom)), np.float32)   # (2h,2w,4)
    drawn = drawn[::2] + drawn[1::2]
    drawn = (drawn[:, ::2] + drawn[:, 1::2]) / 4                                              # (h,w,4)
    return (slice(top, bottom), slice(left, right)), drawn[..., :3], 1 - drawn[..., 3:] / 255


# The search. Pillow rounds corners to whole pixels, so the cost is a staircase: its slope is 0 nearly
# everywhere, and no gradient helps. (Renderers with soft edges have one: SoftRas, Liu et al. 2019. But then
# it is another world that is fitted, and wrong minima remain.) A compass search asks for none: a step each
# way along each number; take what is better; where nothing is, halve the steps. It finds the bottom of one
# valley, hence the many starts.
#
#          .
#      .   |   .              .
#    . - - x - - .          . x .         x moves to a better dot wherever there is one; where there is none,
#      .   |   .              .           the dots come nearer
#          .
def compass(cost, start, steps, bounds, smallest):
    """The numbers of lowest cost that steps from `start` lead to, until steps are `smallest` of the first."""
    point, best, share, rng = list(start), cost(start), 1.0, np.random.default_rng(0)
    axes = np.eye(len(steps))[np.flatnonzero(steps)]
    while share >= smallest:
        before = best
        # Along the axes, then aslant: a cat that is larger and lower has its head where it was, and in such a
        # narrow, slanting valley no step along an axis goes down.
        slanted = np.linalg.qr(rng.normal(size=(len(axes), len(axes))))[0] @ axes
        for way, sign in itertools.product((*axes, *slanted), (1, -1)):
            trial = [min(max(number + sign * share * step * along, low), high)
                     for number, step, along, (low, high) in zip(point, steps, way, bounds)]
            if trial != point and (value := cost(trial)) < best:
                best, point = float(value), [float(number) for number in trial]
        if best == before:
            share /= 2
    return point


def _search(stage, spec, frames, step, smallest, corners=True):
    """The Spec near this one that suits these frames best. Steps are in pixels (of 64)."""
    names, bounds = ("x", "y", "scale", "phase"), [*RANGES.values(), (-9.0, 9.0)]
    steps = [step / 64, step / 64, step / 32, step / 16 if _swings(spec.subject) else 0.0]
    cost = lambda point: stage.total(replace(spec, **dict(zip(names, point))), frames, corners)
    point = compass(cost, [getattr(spec, name) for name in names], steps, bounds, smallest / step)
    return replace(spec, **dict(zip(names, point)))


def _swings(subject):
    return SHAPES[subject](1.0) != SHAPES[subject](-1.0)


# A whole clip of a cat takes 20 ms to draw, so the thousands of trials that a wide search needs would take a
# minute. Nearly all of them are wrong by far, and that can be seen on a small picture, in a few frames:
#
#     Specs           drawn at      frames   corners   then
#     all, x 9        half size     4        open      each side and phase keeps the best of its nine places
#     6 best          half size     4        open      searched, by whole pixels down to a quarter
#     3 best          full size     6        open      searched, from half a pixel
#     + their twins   full size     6        true      2 best searched
#     35 near that    full size     6        true      the best searched, by other steps
#     1               full size     all      true      searched, to 1/32 of a pixel
def _fit(clip, told):
    """float32 (T,H,W,3) of 0..255 -> (Stage, the nearest Spec)."""
    *words, scene = read_words(told)
    scene = scene or _guess_scene(clip)
    fine, coarse = Stage(clip, scene), Stage(_halved(clip), scene)
    four, six = (sorted({round(t) for t in np.linspace(0, len(clip) - 1, count)}) for count in (4, 6))
    best = lambda stage, specs, frames, corners: sorted(
        specs, key=lambda spec: stage.total(spec, frames, corners))

    starts = [best(coarse, places, four, False)[0] for places in _starts(words, fine)]
    found = [_search(coarse, spec, four, 1, 1 / 4, False) for spec in best(coarse, starts, four, False)[:6]]
    found = [_search(fine, spec, six, 1 / 2, 1 / 8, False)
             for spec in best(coarse, found, four, False)[:3]]
    # A tree that faces left is, but for its corners, one half a swing later: the true drawing tells which.
    twins = [replace(spec, flip=not spec.flip, phase=spec.phase + half) for spec in found
             for half in (0.0, 0.5) if not spec.motion.startswith("moving")]
    found = [_search(fine, spec, six, 1 / 2, 1 / 8) for spec in best(fine, found + twins, six, True)[:2]]
    # In a clip that stands still every frame has the same stairs; height and size suit each other in a few
    # places only: look at a grid of both. Steps of another width get down from where one is stuck, too.
    spec = best(fine, found, six, True)[0]
    around = [replace(spec, **{name: float(np.clip(getattr(spec, name) + by, *RANGES[name]))
                               for name, by in (("y", y / 256), ("scale", scale * 0.006))})
              for y in (0, -2, -1, 1, 2) for scale in (0, -3, -2, -1, 1, 2, 3)]
    spec = _search(fine, best(fine, around, six, True)[0], six, 1 / 3, 1 / 24)
    spec = _search(fine, spec, range(len(clip)), 1 / 8, 1 / 32)
    return fine, replace(spec, phase=spec.phase % 1.0)


def _starts(words, stage):
    """Lists of nine Specs, nine places each: of each word left open, side, and eighth of a swing, one."""
    subject, colour, motion = words
    motions = [""] if len(stage.clip) == 1 else [motion] if motion else MOTIONS
    for subject, colour, motion, flip in itertools.product(
            [subject] if subject else SUBJECTS, [colour] if colour else _guess_colours(stage), motions,
            (False, True)):
        if motion.startswith("moving") and flip != (motion == "moving left"):
            continue                                      # movers face where they go
        for phase in (i / 8 for i in range(8 if _swings(subject) else 1)):
            yield [Spec(subject, colour, motion, stage.scene, x, y, 1.0, flip, phase)
                   for x in (-0.04, 0.0, 0.04) for y in (-0.015, 0.01, 0.035)]


# Words that nobody said are candidates like sides and phases, but 6 scenes x 10 colours x 6 motions would be
# 360 searches. The scene can be seen without one, the colour nearly so; only the motion has to be tried.
def _guess_scene(clip):
    """The scene whose empty stage explains most of the first and last frame."""
    ends = _halved(clip[::max(len(clip) - 1, 1)])                                             # (2,H/2,W/2,3)
    unlike = {scene: np.minimum(Stage(ends, scene).empty, Stage.SEEN ** 2).mean() for scene in SCENES}
    return min(unlike, key=unlike.get)


def _guess_colours(stage, count=3):
    """The colours most often seen where neither backdrop nor drift is."""
    pixels, table = stage.clip[stage.seen], np.array(list(COLOURS.values()), np.float32)     # (n,3), (10,3)
    gaps = np.stack([((pixels - colour) ** 2).sum(-1) for colour in table])                   # (10,n)
    votes = np.bincount(gaps.argmin(0)[gaps.min(0) < 60 ** 2], minlength=len(table))          # (10,)
    return [list(COLOURS)[i] for i in votes.argsort()[::-1][:count]]


def _halved(clip):
    t, h, w, c = clip.shape
    return clip.reshape(t, h // 2, 2, w // 2, 2, c).mean((2, 4))                              # (T,H/2,W/2,C)


# A clip may be wrong in two ways: good cats on a path that no cat of the world takes, or bad cats on a good
# path. With each frame free in place, size, lean, side and swing, only the second is left.
def _fit_frame(fine, coarse, t, spec, pose, swing):
    """(Spec, pose, swing) nearest to frame t alone; never worse than what it starts from."""
    x, y, scale, turns = pose
    bounds = [(x - 0.15, x + 0.15), (y - 0.15, y + 0.15), (0.7 * scale, 1.4 * scale),
              (turns - 0.15, turns + 0.15), (-1.0, 1.0)]
    added = lambda stage, spec, point, corners: stage.added(t, spec, point[:4], point[4], corners)
    starts = [(replace(spec, flip=flip), [*pose, s]) for flip in (spec.flip, not spec.flip)
              for s in (swing, -0.7, 0.7) if s == swing or _swings(spec.subject)]

    def search(stage, start, step, smallest, corners):
        steps = [step / 64, step / 64, step / 32, step / 64, step / 4 if _swings(spec.subject) else 0.0]
        cost = lambda point: added(stage, start[0], point, corners)
        return start[0], compass(cost, start[1], steps, bounds, smallest / step)

    starts = sorted(starts, key=lambda start: added(coarse, *start, False))[:3]
    found = min((search(coarse, start, 1, 1 / 2, False) for start in starts),
                key=lambda found: added(coarse, *found, False))
    found = min(search(fine, found, 1 / 2, 1 / 8, True), (spec, [*pose, swing]),
                key=lambda found: added(fine, *found, True))
    return found[0], tuple(found[1][:4]), found[1][4]


def _nearest_to(clip, told, alone):
    """(3,T,H,W) in [-1,1] -> its Fit."""
    return _report(*_fit(_levels(clip), told), alone)


def beside(clip, spec):
    """(3,T,H,W) in [-1,1] -> the Fit of this very Spec, nothing searched: what the true one would score."""
    return _report(Stage(_levels(clip), spec.scene), spec)


def _levels(clip):
    """(3,T,H,W) in [-1,1] -> (T,H,W,3) in 0..255."""
    clip = (np.asarray(clip, np.float32).clip(-1, 1) + 1) * 127.5
    return np.ascontiguousarray(clip.transpose(1, 2, 3, 0))                                   # (T,H,W,3)


# Two sums over the same area: errors and pixels. A clip's dB are those of all its pixels together, not the
# mean of its frames' dB, in which one perfect frame would outweigh three bad ones.
def _report(stage, spec, alone=False):
    frames = len(stage.clip)
    path = [(spec, pose(spec, t, frames), swing_at(spec, t)) for t in range(frames)]
    pictures, covers, areas, errors = map(np.stack, zip(*(
        stage.compare(t, *place) for t, place in enumerate(path))))
    by_itself = math.nan
    if alone:
        coarse = Stage(_halved(stage.clip), spec.scene)
        free = [stage.compare(t, *_fit_frame(stage, coarse, t, *place)) for t, place in enumerate(path)]
        by_itself = decibels(sum(error for *_, error in free) / sum(area.sum() for _, _, area, _ in free))
    return Fit(spec, np.rint(pictures).astype(np.uint8), areas, decibels(errors.sum() / areas.sum()),
               np.array([decibels(error / area.sum()) for error, area in zip(errors, areas)]), by_itself,
               *_wandering(stage, Stage(pictures, spec.scene), covers, path))


def decibels(error):
    """PSNR of a mean squared error of levels 0..255; 54 dB at most, where an error is less than rounding."""
    return 10 * math.log10(255 ** 2 / max(float(error), 0.25))


# Consistency over time. A cat that is a little too dark in every frame is wrong, but steady; one that grows
# dark drifts. So of each error only what changes counts: each frame's error less the mean of all frames'.
# Shape is compared on a grid that moves, grows and turns with the subject, or walking would count as change.
def _wandering(stage, drawn, covers, path):
    """(colour drift in levels, shape drift as a share of the subject), beside the clip drawn for it."""
    colours, shapes, sizes = [], [], []
    u, v = np.meshgrid(*[np.linspace(-1.3, 1.3, 32)] * 2)                                     # (32,32) each
    for t, (_, (x, y, scale, turns), _) in enumerate(path):
        inside = covers[t] > 0.99
        gap = (stage.clip[t] - drawn.clip[t])[inside]                                         # (n,3)
        colours.append(gap.mean(0) if len(gap) else np.zeros(3))
        cos, sin = (0.29 * scale * f(2 * math.pi * turns) for f in (math.cos, math.sin))
        columns, rows = (np.clip(((middle + offset) * stage.size).astype(int), 0, stage.size - 1)
                         for middle, offset in ((0.5 + x, cos * u - sin * v), (0.54 + y, sin * u + cos * v)))
        should = drawn.seen[t][rows, columns].astype(float)                                   # (32,32)
        shapes.append(stage.seen[t][rows, columns] - should)
        sizes.append(should.mean())
    colours, shapes = np.stack(colours), np.stack(shapes)                             # (T,3), (T,32,32)
    return (float(np.sqrt(((colours - colours.mean(0)) ** 2).mean())),
            float(np.abs(shapes - shapes.mean(0)).mean() / max(np.mean(sizes), 1e-6)))


# The share of clips at 20 dB or more says what a mean hides: a model of whose clips half are right and half
# wrecks, or one whose every clip is a little off. The last frame beside the first says whether it tires.
def summary(fits):
    """What a table says of a set of Fits: means over clips; the standard error of the first."""
    db, mean = np.array([fit.db for fit in fits]), lambda values: float(np.mean(list(values)))
    subjects = sorted({fit.spec.subject for fit in fits}, key=SUBJECTS.index)
    return {"db": mean(db), "error": float(db.std(ddof=1) / len(db) ** 0.5) if len(db) > 1 else math.nan,
            "first": mean(fit.frames[0] for fit in fits), "last": mean(fit.frames[-1] for fit in fits),
            "share_20": mean(db >= 20), "alone": mean(fit.alone for fit in fits),
            "colour_drift": mean(fit.colour_drift for fit in fits),
            "shape_drift": mean(fit.shape_drift for fit in fits),
            "subjects": {name: mean(fit.db for fit in fits if fit.spec.subject == name) for name in subjects}}


# ---------------------------------------------------------------------------------------------- demo

def as_video(clip):
    """uint8 (T,H,W,3) -> float (3,T,H,W) in [-1,1], as models have it."""
    return clip.transpose(3, 0, 1, 2).astype(np.float32) / 127.5 - 1                          # (3,T,H,W)


# A ruler is tried on lengths that are known. A rendered clip has to measure as itself, whatever is done to it
# has to cost, and the wrong words have to cost most.
def damaged(clip, seed=0):
    """Four clips (3,T,H,W): whole, under noise, blurred, and standing still from its second frame on."""
    noise = np.random.default_rng(seed).normal(0, 0.2, clip.shape).astype(np.float32)
    blurred = sum(np.roll(clip, (i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    frozen = np.repeat(clip[:, 1:2], clip.shape[1], 1)
    return [clip, (clip + noise).clip(-1, 1), blurred, frozen]


def demo():
    """A red cat moving right is read back: whole, under noise, blurred, standing still, told that it is a
    car, and told "a cat" and no more. Returns (dB of each (6,), clips, Fits)."""
    drift = ((0.2, 0.5, 0.5), (0.8, 0.2, 0.5))
    spec = Spec("cat", "red", "moving right", "on grass", 0.03, 0.02, 1.04, False, 0.3, drift)
    clips = damaged(as_video(render(spec)))
    clips += [clips[0]] * 2
    fits = nearest(clips, [spec] * 4 + ["a red car moving right on grass", "a cat"])
    return [fit.db for fit in fits], clips, fits


def draw_page(path, clips, fits):
    """Every subject in a clip of its own, four frames each; then each clip of demo over its nearest one."""
    from video import page                       # here, since only the demo needs it
    pictures, labels, shown = [], [], (0, 5, 10, 15)
    for i, subject in enumerate(SUBJECTS):
        motion = MOTIONS[i % 6]
        spec = Spec(subject, list(COLOURS)[i % 10], motion, SCENES[i % 6],
                    *_numbers(np.random.default_rng(i), motion, is_image=False))
        pictures.append(np.concatenate(list(render(spec, size=80, only=shown)), 1))           # (H,4*W,3)
        labels.append(caption(spec))
    names = ("whole, and the nearest clip", "noise", "blur", "frozen", "told that it is a car",
             'told "a cat" and no more')
    for name, clip, fit in zip(names, clips, fits):
        films = _levels(clip).round().astype(np.uint8), fit.clip                              # (T,H,W,3) each
        rows = [np.concatenate([film[t] for t in shown], 1) for film in films]
        pictures.append(Image.fromarray(np.concatenate(rows)).resize((320, 160), Image.NEAREST))
        labels.append(f"{name}: {fit.db:.1f} dB")
    page(path, pictures, labels, columns=3)


def main():
    start = time.process_time()
    for index in range(8):
        render(draw(0, index))
    cost = (time.process_time() - start) / 8 * 1000
    levels, clips, fits = demo()
    print("a rendered clip read back: {:.1f} dB (right: above 30); under noise {:.1f}, blurred {:.1f}, "
          "standing still {:.1f}, told that it is a car {:.1f} (right: below 14)".format(*levels))
    print(f'told "a cat" and no more, it is read as "{caption(fits[-1].spec)}"')
    draw_page("out/world.png", clips, fits)
    print(f"{cost:.0f} ms a clip of 16 frames at 64x64; every subject is drawn in out/world.png")


if __name__ == "__main__":
    main()
