"""world.py - the toy world: captioned clips of a cat (or a car, or a rocket) drawn from a seed.
Paper    none; a stand-in for WebVid, Pexels and JourneyDB that needs no download and has right answers
Shapes   a clip is uint8 (T,H,W,3); an image is a clip with T=1     T frames, H W pixels
Time     one frame is 1/25 s of slow film: nothing moves much more than two pixels (of 64) a frame, as real
         film does; a key frame held for 4 frames is then a fair start for the DP-VAE (vae.py)
Differs  from real data in that every clip's subject, colour, motion and scene are known, so that composition
         (held-out combinations) and transfer (subjects seen only as images) can be counted, not argued
Reads    first; before video.py
Run me   python world.py      # CPU, 3 s: writes out/world.png, prints the cost of a clip

A subject in a colour does a motion in a scene: "a red cat jumping in snow". Everything is drawn big and
plain: subjects half a frame wide, nothing thinner than two pixels. That is not taste: with small subjects and
one-pixel stars a 1.6 M-parameter VAE stuck at 26 dB."""

import math
import time
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

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

# scene: sky at the top, sky at the horizon, ground, height of the horizon (of 1), drifting things
BACKDROPS = {"on grass": ((110, 180, 245), (190, 225, 250), (100, 185, 80), 0.66, "cloud"),
             "at night": ((14, 18, 56), (48, 52, 110), (30, 44, 58), 0.72, "star"),
             "at sunset": ((196, 70, 110), (252, 176, 90), (96, 48, 88), 0.68, "sun"),
             "in snow": ((160, 180, 205), (205, 216, 228), (240, 244, 250), 0.66, "flake"),
             "in the desert": ((248, 214, 150), (252, 236, 196), (222, 174, 104), 0.66, "sun"),
             "underwater": ((36, 150, 196), (16, 84, 150), (120, 130, 110), 0.86, "bubble")}
KINDS = ("video", "image", "video_heldout", "image_heldout", "video_image_only", "image_image_only", "any")


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


def is_heldout(spec):
    """A fixed tenth of subject x colour x motion x scene is kept out of training, chosen by a hash.
    Images have no motion: a tenth of subject x colour x scene."""
    words = f"{spec.subject}|{spec.colour}|{spec.motion}|{spec.scene}"
    return zlib.crc32(words.encode()) % 10 == 0


def draw(seed, index, kind="video"):
    """The index-th Spec of an endless list. kind: one of KINDS;
    "any" is for the judge and knows no bounds."""
    rng = np.random.default_rng([seed, index, KINDS.index(kind)])
    is_image = kind.startswith("image")
    if kind.endswith("image_only"):
        subjects = IMAGE_ONLY
    elif kind.startswith("video"):
        subjects = [subject for subject in SUBJECTS if subject not in IMAGE_ONLY]
    else:
        subjects = SUBJECTS
    while True:
        words = (rng.choice(subjects), rng.choice(list(COLOURS)), rng.choice(MOTIONS), rng.choice(SCENES))
        subject, colour, motion, scene = map(str, words)
        spec = Spec(subject, colour, "" if is_image else motion, scene, *_numbers(rng, motion, is_image))
        if kind == "any" or kind.endswith("image_only") or is_heldout(spec) == kind.endswith("heldout"):
            return spec


def _numbers(rng, motion, is_image):
    """x, y, scale, flip, phase, drift. Movers face where they go."""
    flip = bool(rng.integers(2))
    if not is_image and motion in ("moving left", "moving right"):
        flip = motion == "moving left"
    drift = tuple((float(x), float(y), float(size)) for x, y, size in rng.random((5, 3)))
    return (float(rng.uniform(-0.06, 0.06)), float(rng.uniform(-0.03, 0.05)), float(rng.uniform(0.92, 1.08)),
            flip, float(rng.random()), drift)


def caption(spec, seed=0, drop=0.0):
    """"a red cat jumping in snow". A share `drop` of the captions says less, each attribute then left out by
    the toss of a coin, so that "a cat" works too: it is an eighth of these."""
    toss = np.random.default_rng([seed, 7]).random(4)
    keep = (toss[:3] >= 0.5) | (toss[3] >= drop)
    colour, motion, scene = (word if kept else ""
                             for word, kept in zip((spec.colour, spec.motion, spec.scene), keep))
    words = " ".join(word for word in (colour, spec.subject, motion, scene) if word)
    return ("an " if words[0] in "aeiou" else "a ") + words


# ---------------------------------------------------------------------------------------------- subjects
# Each is a list of (points, shade) in a box of +-1, x to the right (where it faces), y down, back to front.
# `swing` goes from -1 to 1 and back: legs, tails, wings.

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


# ---------------------------------------------------------------------------------------------- rendering

def pose(spec, frame, frames):
    """Where the subject is at a frame: (x, y, scale, turns). x, y in frame widths from the middle.

    Time is counted from the middle of the clip, so that longer clips extend the same motion both ways."""
    steps = frame - (frames - 1) / 2
    x, y, scale, turns = spec.x, spec.y, spec.scale, 0.0
    if spec.motion == "moving left":
        x -= steps * 1.1 / 64
    elif spec.motion == "moving right":
        x += steps * 1.1 / 64
    elif spec.motion == "jumping":              # one hop in 16 frames, in the air at the middle of the clip
        y += 0.06 - 0.17 * abs(math.cos(math.pi * steps / 16))
    elif spec.motion == "growing":
        scale *= min(max(1.0 + 0.032 * steps, 0.5), 1.6)
    elif spec.motion == "spinning":
        turns = steps * 7.0 / 360
    return x, y, scale, turns


def render(spec, frames=16, size=64, only=None):
    """The clip as uint8 (T,H,W,3), drawn at twice the size and box-filtered;
    `only` names the frames to draw."""
    backdrop = _backdrop(spec, 2 * size)
    clip = []
    for frame in range(frames) if only is None else only:
        canvas = backdrop.copy()
        pen = ImageDraw.Draw(canvas)
        _draw_drift(pen, spec, frame, 2 * size)
        _draw_subject(pen, spec, frame, frames, 2 * size)
        clip.append(np.asarray(canvas.reduce(2)))
    return np.stack(clip)                                                        # (T,H,W,3)


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
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=(255, 232, 130))
        image.paste(tuple(ground), (0, len(mix), size, size))
    return image


def _draw_drift(pen, spec, frame, size):
    """Clouds and stars drift, flakes fall, bubbles rise,
    about half a pixel (of 64) a frame, round and round."""
    kind = BACKDROPS[spec.scene][4]
    step = frame * 0.6 / 64
    for x, y, r in spec.drift[:{"cloud": 2, "star": 5, "flake": 5, "bubble": 4, "sun": 0}[kind]]:
        r = (0.035 + 0.02 * r) * size
        if kind == "cloud":
            x, y = ((x + step) % 1.3 - 0.15) * size, (0.06 + 0.2 * y) * size
            pen.ellipse((x - 3.2 * r, y - r, x + 3.2 * r, y + r), fill=(245, 250, 255))
            pen.ellipse((x - 1.6 * r, y - 1.8 * r, x + 1.2 * r, y + r), fill=(245, 250, 255))
        elif kind == "star":
            x, y, r = ((x + step / 2) % 1.1 - 0.05) * size, (0.04 + 0.5 * y) * size, r * 0.8
            pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=(255, 244, 190))
        elif kind == "flake":
            x, y = x * size, ((y + step) % 1.1 - 0.05) * size
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))
        else:
            x, y = x * size, ((y - step) % 1.1 - 0.05) * size
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(150, 215, 240))


def _draw_subject(pen, spec, frame, frames, size):
    """Outline first, then fill, so that the parts of one animal have one contour, two pixels (of 64) wide."""
    x, y, scale, turns = pose(spec, frame, frames)
    unit = 0.29 * scale * size
    cos, sin = math.cos(2 * math.pi * turns) * unit, math.sin(2 * math.pi * turns) * unit
    centre_x, centre_y = (0.5 + x) * size, (0.54 + y) * size
    mirror = -1 if spec.flip else 1
    swing = math.sin(2 * math.pi * (frame / 16 + spec.phase))
    parts = []
    for points, shade in SHAPES[spec.subject](swing):
        placed = [(centre_x + cos * mirror * px - sin * py,
                   centre_y + sin * mirror * px + cos * py)
                  for px, py in points]
        parts.append((placed, shade))
    outline = ((140, 140, 150) if spec.colour == "black"
               else tuple(int(v * 0.42) for v in COLOURS[spec.colour]))
    for points, shade in parts:
        pen.line(points + points[:2], fill=outline, width=max(round(size / 20), 2), joint="curve")
    for points, shade in parts:
        pen.polygon(points, fill=_paint(shade, spec.colour))


# ---------------------------------------------------------------------------------------------- demo

def demo(path="out/world.png", rows=12):
    """One clip of every subject as a contact sheet, four frames each; returns milliseconds a clip."""
    start = time.perf_counter()
    clips = []
    for i, subject in enumerate(SUBJECTS[:rows]):
        colour, motion, scene = list(COLOURS)[i % 10], MOTIONS[i % 6], SCENES[i % 6]
        numbers = _numbers(np.random.default_rng(i), motion, is_image=False)
        clips.append(render(Spec(subject, colour, motion, scene, *numbers)))
    cost = (time.perf_counter() - start) / len(clips) * 1000
    if path:
        import os
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        Image.fromarray(np.concatenate([np.concatenate(clip[::5], 1) for clip in clips])).save(path)
    return cost


if __name__ == "__main__":
    print(f"{demo():.1f} ms a clip of 16 frames at 64x64; look at out/world.png")
