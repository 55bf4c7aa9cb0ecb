"""toy_world.py - the toy world: captioned clips of a cat (or a car, or a rocket), drawn from a seed.
Paper    none; a stand-in for WebVid, Pexels and JourneyDB that needs no download and has right answers
Shapes   a clip is uint8 (T,H,W,3); an image is a clip with T=1     T frames, H W pixels
Time     one frame is 1/25 s, slowly: but for a bird's wings nothing moves much more than two pixels (of 64)
         a frame, as in real videos; a key frame held for 4 frames is then a fair start for the DP-VAE (vae.py)
Differs  from real data in that every clip's subject, colour, motion and scene are known, so that composition
         (held-out combinations) and transfer (subjects seen only as images) can be counted, not argued

A video model needs videos with words. Real ones are terabytes, and nobody knows what a generated clip should
have looked like. So here is a small world in which a subject in a colour does a motion in a scene, "a red cat
jumping in snow", and a clip is its words and a handful of numbers, its Spec, and nothing else:

    seed, index --sample--> Spec(cat, red, jumping, in snow, x, y, scale, flip, phase, drift)
                             |    |    ^
       "a red cat jumping <--+    |    +---------------+
        in snow"   caption        |render              |nearest: which Spec comes closest to this clip,
                                  v                    |         and how close?
                           uint8 (T,H,W,3) ----> train a model ----> a generated clip

* sample_spec() is a function of two integers: there is nothing to download or store, and no two sets overlap.
* render() draws with Pillow's polygons. Everything is big and plain, subjects half a frame wide, nothing
  thinner than two pixels. That is not taste: with small subjects and one-pixel stars a 1.6 M-parameter VAE
  stuck at 26 dB.
* is_heldout() keeps a tenth of the combinations of words from training. A model that can draw those has
  learned words, not clips by heart.
* nearest() (nearest.py) goes the other way. A network that names the words (detectors.py's attribute
  classifier) is content with a two-headed cat; the distance to the nearest clip that the world could have
  drawn is not.

Other toy worlds: Moving MNIST (Srivastava et al. 2015) has digits that bounce, CLEVR (Johnson et al. 2017)
solids with questions, dSprites shapes with all their numbers. None has words for both look and motion."""

import functools
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw
import numpy as np

from support.cli import UserError
from support.folders import class_prompt, list_classes, list_files, read_prompts, sort_media, stem_of


# ---------------------------------------------------------------------------------------------- words

# A caption's four attributes, each with its words in fixed order: the classifier's logits follow it,
# so a new word goes to the end, and makes old classifiers useless. Colours are RGB, chosen to be told apart.
# 12 x 10 x 6 x 6 words make 4,320 different captions of clips: each word is seen often, each combination
# seldom, as in the world outside. Two subjects are shown in images only. VideoDiT trains on images and
# videos together (its 3.2), so that videos gain from what only images show: here that can be counted.
SUBJECTS = ("cat", "dog", "fish", "bird", "car", "rocket",
            "ball", "star", "tree", "house", "boat", "mushroom")
IMAGE_ONLY = ("boat", "mushroom")         # in the image set, never in the video set: can the model move them?
COLOURS = {"red": (222, 40, 40), "orange": (248, 140, 24), "yellow": (248, 222, 48), "green": (40, 170, 70),
           "blue": (45, 90, 230), "purple": (150, 60, 195), "pink": (252, 140, 195), "white": (248, 248, 248),
           "black": (36, 36, 40), "brown": (132, 80, 40)}
MOTIONS = ("moving left", "moving right", "jumping", "growing", "spinning", "staying still")
SCENES = ("on grass", "at night", "at sunset", "in snow", "in the desert", "underwater")

# What a scene looks like: sky at the top, sky at the horizon, ground, height of the horizon (of 1), and what
# drifts there. What drifts moves although no caption says so, as things do in videos.
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


# A narrower world learns in minutes. Its motions come in pairs that are each other's reverse, so no single
# frame tells which it is: whoever names them right has looked at the order of frames. That is also why its
# movers face either way: a cat that always looks where it goes gives its motion away in a still.
@dataclass(frozen=True)
class Vocabulary:
    """The words of a world. heldout: combinations that training never sees; None: a tenth, by hash."""
    subjects: tuple = SUBJECTS
    image_only: tuple = IMAGE_ONLY
    colours: tuple = tuple(COLOURS)
    motions: tuple = MOTIONS
    scenes: tuple = SCENES
    faces_its_way: bool = True
    heldout: tuple | None = None

    @property
    def words(self):
        """All of them, as a tokenizer wants them."""
        phrases = ("a", "an", *self.subjects, *self.colours, *self.motions, *self.scenes)
        return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


VOCABULARIES = {"full": Vocabulary(), "small": Vocabulary(
    subjects=("cat", "car", "fish", "boat"), image_only=("boat",), colours=("red", "yellow", "blue"),
    motions=("moving left", "moving right", "growing", "shrinking"), scenes=("on grass", "at night"),
    faces_its_way=False,
    # of 72: each subject and colour four times, each motion three times, each scene six times; and of images
    heldout=(("cat", "red", "moving left", "on grass"), ("cat", "yellow", "moving right", "at night"),
             ("cat", "blue", "growing", "on grass"), ("cat", "red", "shrinking", "at night"),
             ("car", "yellow", "moving left", "at night"), ("car", "blue", "moving right", "on grass"),
             ("car", "red", "growing", "at night"), ("car", "yellow", "shrinking", "on grass"),
             ("fish", "blue", "moving left", "at night"), ("fish", "red", "moving right", "on grass"),
             ("fish", "yellow", "growing", "on grass"), ("fish", "blue", "shrinking", "at night"),
             ("cat", "blue", "", "at night"), ("car", "red", "", "on grass"),
             ("fish", "yellow", "", "at night")))}
WORLDS = {"toy": "full", "toy-small": "small"}      # what --data calls them
WORDS = VOCABULARIES["full"].words
VERSION = 2        # of what sample_spec() draws; counted up with it, lest older latents be taken for it
KINDS = ("video", "image", "video_heldout", "image_heldout", "video_image_only", "image_image_only", "any")


# ---------------------------------------------------------------------------------------------- one clip

# Everything that a clip is, in twelve fields. Frozen, so that it can be a key of a dict; plain strings and
# floats, so that it can be written as JSON.
@dataclass(frozen=True)
class Spec:
    """One clip, whole: the words that a caption may say, and the numbers that it does not."""
    subject: str
    colour: str
    motion: str                    # "" for an image
    scene: str
    x: float = 0.0                 # centre of the path, in frame widths from the middle
    y: float = 0.0
    scale: float = 1.0             # of the standard size, 0.29 frame widths from centre to edge
    flip: bool = False             # faces left
    phase: float = 0.0             # of legs, tails and wings, in turns
    drift: tuple = ()              # where the clouds, stars, flakes or bubbles start: (x, y, size) each
    caught: str = ""               # of an image: the motion that it was taken in the middle of, if any,
    moment: float = 0.0            # and when: frames from the middle of that motion


def is_heldout(spec, vocabulary="full"):
    """A fixed tenth of subject x colour x motion x scene is kept out of training, chosen by a hash; of the
    small vocabulary those that are named. Images have no motion: a tenth of subject x colour x scene.

    A hash and not a list: it holds for words that are added later, and no file has to be kept in step. Not
    Python's own hash(), though, which is salted: every process would keep out another tenth."""
    words = spec.subject, spec.colour, spec.motion, spec.scene
    if VOCABULARIES[vocabulary].heldout is not None:
        return words in VOCABULARIES[vocabulary].heldout
    return zlib.crc32("|".join(words).encode()) % 10 == 0


def sample_spec(seed, index, kind="video", vocabulary="full"):
    """The index-th Spec of an endless list. kind: one of KINDS;
    "any" is for the classifier and knows no bounds."""
    # A generator of its own for each clip: clip 1,000 costs what clip 0 does, in any order, on any machine.
    rng = np.random.default_rng([seed, index, KINDS.index(kind)])
    world = VOCABULARIES[vocabulary]
    is_image = kind.startswith("image")
    subjects = world.subjects
    if kind.endswith("image_only"):
        subjects = world.image_only
    elif kind.startswith("video"):
        subjects = [subject for subject in world.subjects if subject not in world.image_only]
    takes_all = kind == "any" or kind.endswith("image_only")
    while True:                    # until one falls on the right side of is_heldout: 1.1 tries, or ten
        words = [rng.choice(options) for options in (subjects, world.colours, world.motions, world.scenes)]
        subject, colour, motion, scene = map(str, words)         # numpy's own strings would not go into JSON
        # The order of these draws is the world: another one, and every seed's every clip is a different one.
        flip = bool(rng.integers(2))
        if world.faces_its_way and not is_image and motion.startswith("moving"):
            flip = motion == "moving left"                       # movers face where they go
        drift = tuple((float(x), float(y), float(size)) for x, y, size in rng.random((5, 3)))
        x, y, scale = (float(rng.uniform(*RANGES[name])) for name in ("x", "y", "scale"))
        phase = float(rng.random())
        spec = Spec(subject, colour, "" if is_image else motion, scene, x, y, scale, flip, phase, drift)
        if takes_all or is_heldout(spec, vocabulary) == kind.endswith("heldout"):
            break
    if kind != "image":
        return spec

    # Every second image is one of a motion's moments: any motion, but whoever moves faces where he goes. None
    # that would be of a combination that is kept out of training.
    rng = np.random.default_rng([seed, index, 1])
    motion, moment = str(rng.choice(world.motions)), float(rng.uniform(-7.5, 7.5))
    if world.faces_its_way and motion.startswith("moving"):
        motion = "moving left" if flip else "moving right"
    if rng.random() < 0.5 or is_heldout(replace(spec, motion=motion), vocabulary):
        return spec
    return replace(spec, caught=motion, moment=moment)


# Why captions that say less? A model that only ever read whole ones has never met "a cat", and what it makes
# of it is anything. With each attribute left out by a toss of its own, at 15 %, one caption in 300 said the
# subject alone, and "a cat" came out with two heads. So first a toss whether to say less, then one of what.
#     drop = 0.4:   60 % say all,   of the other 40 % an eighth "a cat", an eighth "a red cat", ...
#
# And why do images' captions speak of motion? Because people's do: "a dog running" is what they write under
# a photograph. As long as ours did not, no caption had held "boat" and "moving", and together they were new
# words. Of 64 images of boats and mushrooms that were asked for with a motion, 38 showed one; without, all
# 64, and all of 64 clips. It had looked as if what is known from images could not be made to move.
#
# And a photograph shows what its caption says: a dog in mid-air. While our images stayed upright whatever
# was said of them, they taught that a spinning boat is an upright one: 73 % of boats and mushrooms moved as
# asked, 98 % were what was asked for. 2,800 steps more with images as they are now: 87 % and 94 %
# (docs/toy.md has the price).
def caption(spec, seed=0, drop=0.0):
    """"a red cat jumping in snow". A share `drop` of the captions says less, each attribute then left out by
    the toss of a coin, so that "a cat" works too: it is an eighth of these."""
    toss = np.random.default_rng([seed, 7]).random(4)
    keep = (toss[:3] >= 0.5) | (toss[3] >= drop)
    colour, motion, scene = (word if kept else "" for word, kept in
                             zip((spec.colour, spec.motion or spec.caught, spec.scene), keep))
    words = " ".join(word for word in (colour, spec.subject, motion, scene) if word)
    return ("an " if words[0] in "aeiou" else "a ") + words


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
# it a walking cat would be an image pushed along, and a VAE could do with the key frame and an offset.
# For a thirteenth subject: a function here, its name in SHAPES and at the end of SUBJECTS, and train anew.

# Ovals are polygons of 24 sides: Pillow's own ellipses cannot be turned. They are remembered (cache), as the
# search of nearest.py asks for the same ones again and again.
@functools.lru_cache
def _oval(x, y, rx, ry=None, start=0.0, end=360.0):
    angles = np.radians(np.linspace(start, end, 25))
    return [(x + rx * math.cos(a), y + (ry or rx) * math.sin(a)) for a in angles]


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
# All of it is slow on purpose. At 25 frames a second neighbours are nearly alike, which is what the
# DP-VAE lives on: it keeps one frame of four and codes the others as what differs.
def pose(spec, frame, frames):
    """Where the subject is at a frame: (x, y, scale, turns). x, y in frame widths from the middle.

    Time is counted from the middle of the clip, so that longer clips extend the same motion both ways. An
    image has one moment, whatever frame is asked for."""
    motion, steps = spec.motion, frame - (frames - 1) / 2
    if spec.caught:
        motion, steps = spec.caught, spec.moment
    x, y, scale, turns = spec.x, spec.y, spec.scale, 0.0
    if motion in ("moving left", "shrinking"):  # moving right, and growing, with time turned round
        steps = -steps
    if motion.startswith("moving"):
        x += steps * 1.1 / 64
    elif motion == "jumping":                   # one hop in 16 frames, in the air at the middle of the clip
        y += 0.06 - 0.17 * abs(math.cos(math.pi * steps / 16))
    elif motion in ("growing", "shrinking"):
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


# Things drift so that a still subject is no still image: "staying still" must be learned as the subject's,
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


DARKER = {"dark": 0.62, "outline": 0.42}        # shades that are a share of the subject's colour
FIXED = {"light": (226, 236, 244), "eye": (24, 24, 30), "accent": (255, 190, 40), "tyre": (40, 40, 46),
         "trunk": (110, 70, 40)}
# Black cannot get darker: its dark parts are grey.
EXCEPTIONS = {("dark", "black"): (92, 92, 100), ("outline", "black"): (140, 140, 150),
              ("eye", "black"): (250, 250, 250), ("light", "white"): (150, 170, 190)}


def _paint(shade, colour):
    """The RGB of a part: the subject's colour, a darker one, or a fixed one."""
    if (shade, colour) in EXCEPTIONS:
        return EXCEPTIONS[shade, colour]
    if shade in DARKER:
        return tuple(int(v * DARKER[shade]) for v in COLOURS[colour])
    return FIXED.get(shade, COLOURS[colour])


# A point (px, py) of a part, in the subject's box, goes to the canvas mirrored (m = -1 faces left), turned by
# an angle a, and scaled to `unit` pixels:
#     x = centre_x + unit (cos a  m px - sin a  py)          y = centre_y + unit (sin a  m px + cos a  py)
def _draw_subject(pen, spec, pose, swing, size, corners=True):
    """Outline first, then fill, so that the parts of one animal have one contour, two pixels (of 64) wide.
    corners=False leaves the outline's corners open: half the time, nearly the same image."""
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
    for points, shade in parts:
        pen.line(points + points[:2], fill=_paint("outline", spec.colour), width=max(round(size / 20), 2),
                 joint="curve" if corners else None)
    for points, shade in parts:
        pen.polygon(points, fill=_paint(shade, spec.colour))
UNSEEN = 20_250_101    # the seed of every toy clip that is measured: no training draws its clips from it


# Its kinds are the instrument: of the same world, what is never trained on (held-out combinations), and what
# is seen in images only. "toy:video_heldout:1" names a kind and a seed, wherever a folder may stand, too.
def parse_toy(name, seed=0):
    """index -> Spec, of "toy", "toy:video_heldout", "toy-small:video:1"; None for a path. seed: is added."""
    word, _, rest = name.partition(":")
    if word not in WORLDS:
        return None
    kind, _, number = rest.partition(":")
    if (kind or "video") not in KINDS or not (number or "0").isdecimal():
        raise UserError(f"{name}: write toy:KIND or toy:KIND:SEED, "
                        f"where KIND is one of {', '.join(KINDS)}")
    seed += UNSEEN + int(number or 0)
    return functools.partial(sample_spec, seed, kind=kind or "video", vocabulary=WORLDS[word])


# Prompts for a test set come from the same three places as data. UCF101's folders are VideoDiT's benchmark
# (4.2): a model that never saw them is given the names of the classes, and its clips are compared with
# theirs.
def prompt_at(source):
    """index -> prompt, from "toy:KIND", a text file (a prompt a line), or a folder of classes such as
    UCF101's, whose names become prompts: VideoDiT 4.2, zero-shot. They are dealt round and round."""
    if toy := parse_toy(source):
        return lambda index: caption(toy(index))
    path = Path(source).expanduser()
    if path.is_dir():
        videos, folders, images = sort_media(list_files(path))
        places = [stem_of(name) for name in [*videos, *folders] or images]
        lines = [class_prompt(name) for name in list_classes(places)]
    elif path.is_file():
        lines = read_prompts(source)
    else:
        raise UserError(f"--prompts {source}: neither toy:KIND, nor a text file, nor a folder of classes")
    if not lines:
        raise UserError(f"--prompts {source}: no prompt in it")
    return lambda index: lines[index % len(lines)]
