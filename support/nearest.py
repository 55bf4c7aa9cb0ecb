"""nearest.py - read a clip back: the numbers of the toy world whose rendering is nearest to it, and its dB.

Shapes: clips (3,T,H,W) in [-1,1]. It sees what the attribute classifier does not: a second head, a smear."""

import itertools
import math
from dataclasses import dataclass, replace
from multiprocessing import Pool

from PIL import Image, ImageDraw
import numpy as np

from support.toy_world import (BACKDROPS, DRIFTING, RANGES, SHAPES, VOCABULARIES, Spec, _backdrop,
                               _draw_subject, pose, swing_at)


# ---------------------------------------------------------------------------------------------- reading back

# How good is a generated clip of "a red cat jumping in snow"? There is no original to compare it with: place,
# size, side and stride were the model's to choose. A classifier of the words is content with two heads.
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
# To explain an image by how it would be drawn is an old idea ("analysis by synthesis", "inverse graphics"),
# and usually hopeless for want of a drawing program for the world. Where there is one it is a ruler: it needs
# no training, and says by its Spec what it saw. Where there is none, Frechet's distance remains.

@dataclass
class Fit:
    """What `nearest` says of one clip. dB are PSNR over the subject."""
    spec: Spec                     # of the nearest clip; drift is empty, since it is not fitted
    db: float                      # of all frames' errors together
    frames: np.ndarray             # dB of each frame (T,)


def nearest(clips, specs, workers=1, vocabulary="full"):
    """(B,3,T,H,W) in [-1,1], and for each a Spec with the words that it was to show -> B Fits.

    workers: processes. vocabulary: of the world that the clips are to be of."""
    jobs = [(np.asarray(clip), spec, vocabulary) for clip, spec in zip(clips, specs)]
    if min(workers, len(jobs)) < 2:
        return [_fit(*job) for job in jobs]
    with Pool(min(workers, len(jobs))) as pool:
        fits = pool.starmap(_fit, jobs, chunksize=1)
        pool.close()               # else `with` ends them by SIGTERM, which the children of a process that
        pool.join()                # notes signals (cli.py, catch_signals) only note: it waits for ever
    return fits


# What a pixel costs. The subject covers a share a of it with paint p; behind is the backdrop b, or a drifting
# thing of colour d, or their mixture. So the pixel should be
#     a p + (1 - a) (b + l (d - b))          with any l from 0 to 1
# and the best l is a least-squares fit of one number: with r = pixel - a p - (1 - a) b and
# v = (1 - a) (d - b) it is l = r.v / v.v, clipped. Where the subject covers all, v is 0: nothing is excused.
# So a flake behind a leg is neither held against the clip nor taken for a part of the cat, though nobody
# knows where the flakes are. The price: a white leg in the snow could be one, and weighs little.
class PixelCosts:
    """What a clip's pixels cost before its scene's empty backdrop, with a subject there and without."""
    SEEN = 40.0                    # levels of 255: what is further from backdrop and drift is "something"

    def __init__(self, clip, scene):
        self.clip, self.scene, self.size = clip, scene, clip.shape[1]             # float32 (T,H,W,3), 0..255
        nowhere = Spec("", "", "", scene, drift=((-9.0, 0.0, 0.0),))              # its sun is out of sight
        self.back = np.asarray(_backdrop(nowhere, 2 * self.size).reduce(2), np.float32)       # (H,W,3)
        horizon, kind = BACKDROPS[scene][3:]
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
        self.empty = np.stack([self.cost(t, ..., 0, np.float32(1)) for t in range(len(clip))])     # (T,H,W)
        self.seen = self.empty > self.SEEN ** 2                                               # (T,H,W)

    def _too_large(self):
        """(T,H,W): flakes are 7 pixels (of 64) wide at most, so nine of their colour are a white cat."""
        gap = self.clip - self.back
        like = np.abs(gap - self.toward).sum(-1) < np.abs(gap).sum(-1)                        # (T,H,W)
        reach = max(round(4.5 * self.size / 64), 1)
        side = 2 * reach + 1
        for every in (np.all, np.any):             # erosion, then dilation: what survives is wide both ways
            edged = np.pad(like, ((0, 0), (reach, reach), (reach, reach)))
            squares = np.lib.stride_tricks.sliding_window_view(edged, (side, side), (1, 2))   # (T,H,W,9,9)
            like = every(squares, (3, 4))                                                     # (T,H,W)
        return like

    def cost(self, t, box, paint, through):
        """Mean squared error of the box's pixels. paint (h,w,3) is a p above, through (h,w,1) is 1 - a."""
        r, v = self.clip[t][box] - paint - through * self.back[box], through * self.toward[box]   # (h,w,3)
        l = (r * v).sum(-1, keepdims=True) / np.maximum((v * v).sum(-1, keepdims=True), 1e-3)     # (h,w,1)
        r = r - l.clip(0, 1) * self.excused[t][box] * v
        return (r * r).mean(-1)                                                               # (h,w)

    def added(self, t, spec, corners=True):
        """What the subject adds to the frame's cost: the less, the better it explains the frame.

        A sum and not a mean over its area: a mean would be lowest for a large subject that hides."""
        box, *drawn = _layer(spec, t, len(self.clip), self.size, corners)
        return float((self.cost(t, box, *drawn) - self.empty[t][box]).sum())

    def total(self, spec, frames, corners=True):
        return sum(self.added(t, spec, corners) for t in frames)

    def compare(self, t, spec):
        """Frame t beside the subject drawn there: the pixels of the area of trap 1, the squared error summed
        over them."""
        cost = self.empty[t].copy()
        rows, columns = (np.indices(cost.shape) + 0.5) / self.size                            # (H,W) each
        x, y, scale, _ = pose(spec, t, len(self.clip))
        near = np.hypot(columns - 0.5 - x, rows - 0.54 - y) < 1.4 * 0.29 * scale              # (H,W)
        area = near & self.seen[t]
        box, paint, through = _layer(spec, t, len(self.clip), self.size)
        cost[box] = self.cost(t, box, paint, through)
        area[box] |= through[..., 0] < 1
        return area.sum(), cost[area].sum()


# Thousands of trials draw the same backdrop under a subject that fills a fifth of it. So the subject is drawn
# alone on a clear canvas, and only its own box is compared; the rest of the frame costs what it did (empty).
def _layer(spec, t, frames, size, corners=True):
    """The subject alone: the box that it fills (two slices), its paint times its cover (h,w,3), 1 - cover
    (h,w,1). Where it is out of the image the box is empty."""
    canvas = Image.new("RGBA", (2 * size, 2 * size))
    _draw_subject(ImageDraw.Draw(canvas), spec, pose(spec, t, frames), swing_at(spec, t), 2 * size, corners)
    box = canvas.getbbox() or (0, 0, 0, 0)
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
    """The numbers of lowest cost that steps from `start` lead to, until the steps have
    shrunk to `smallest` times the first ones."""
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


def _search(costs, spec, frames, step, smallest, corners=True):
    """The Spec near this one that suits these frames best. Steps are in pixels (of 64)."""
    names, bounds = ("x", "y", "scale", "phase"), [*RANGES.values(), (-9.0, 9.0)]
    steps = [step / 64, step / 64, step / 32, step / 16 if _swings(spec.subject) else 0.0]

    def cost(point):
        return costs.total(replace(spec, **dict(zip(names, point))), frames, corners)

    point = compass(cost, [getattr(spec, name) for name in names], steps, bounds, smallest / step)
    return replace(spec, **dict(zip(names, point)))


def _swings(subject):
    return SHAPES[subject](1.0) != SHAPES[subject](-1.0)


def _by_cost(costs, specs, frames, corners):
    """Specs, those that explain these frames best first."""
    return sorted(specs, key=lambda spec: costs.total(spec, frames, corners))


# A whole clip of a cat takes 20 ms to draw, so the thousands of trials that a wide search needs would take a
# minute. Nearly all of them are wrong by far, and that can be seen on a small image, in a few frames:
#
#     Specs           drawn at      frames   corners   then
#     all, x 9        half size     4        open      each side and phase keeps the best of its nine places
#     6 best          half size     4        open      searched, by whole pixels down to a quarter
#     3 best          full size     6        open      searched, from half a pixel
#     + mirrored      full size     6        true      2 best searched
#     35 near that    full size     6        true      the best searched, by other steps
#     1               full size     all      true      searched, to 1/32 of a pixel
def _fit(clip, told, vocabulary):
    """(3,T,H,W) in [-1,1], a Spec of which the words are read -> its Fit."""
    clip = _levels(clip)
    fine, coarse = PixelCosts(clip, told.scene), PixelCosts(_halved(clip), told.scene)
    four, six = (sorted({round(t) for t in np.linspace(0, len(clip) - 1, count)}) for count in (4, 6))
    starts = [_by_cost(coarse, places, four, False)[0] for places in _starts(told, VOCABULARIES[vocabulary])]
    found = [_search(coarse, spec, four, 1, 1 / 4, False)
             for spec in _by_cost(coarse, starts, four, False)[:6]]
    found = [_search(fine, spec, six, 1 / 2, 1 / 8, False)
             for spec in _by_cost(coarse, found, four, False)[:3]]
    # A tree that faces left is, but for its corners, one half a swing later: the true drawing tells which.
    mirrored = [replace(spec, flip=not spec.flip, phase=spec.phase + half) for spec in found
             for half in (0.0, 0.5) if not spec.motion.startswith("moving")]
    found = [_search(fine, spec, six, 1 / 2, 1 / 8)
             for spec in _by_cost(fine, found + mirrored, six, True)[:2]]
    # In a clip that stands still every frame has the same stairs; height and size suit each other in a few
    # places only: look at a grid of both. Steps of another width get down from where one is stuck, too.
    spec = _by_cost(fine, found, six, True)[0]
    around = [replace(spec, **{name: float(np.clip(getattr(spec, name) + by, *RANGES[name]))
                               for name, by in (("y", y / 256), ("scale", scale * 0.006))})
              for y in (0, -2, -1, 1, 2) for scale in (0, -3, -2, -1, 1, 2, 3)]
    spec = _search(fine, _by_cost(fine, around, six, True)[0], six, 1 / 3, 1 / 24)
    spec = _search(fine, spec, range(len(clip)), 1 / 8, 1 / 32)
    return _report(fine, replace(spec, phase=spec.phase % 1.0))


def _starts(told, world):
    """Lists of nine Specs, nine places each: of each side and eighth of a swing, one."""
    flips = (False, True)
    if world.faces_its_way and told.motion.startswith("moving"):
        flips = (told.motion == "moving left",)           # movers face where they go
    for flip, eighth in itertools.product(flips, range(8 if _swings(told.subject) else 1)):
        yield [Spec(told.subject, told.colour, told.motion, told.scene, x, y, 1.0, flip, eighth / 8)
               for x in (-0.04, 0.0, 0.04) for y in (-0.015, 0.01, 0.035)]


def _halved(clip):
    t, h, w, c = clip.shape
    return clip.reshape(t, h // 2, 2, w // 2, 2, c).mean((2, 4))                              # (T,H/2,W/2,C)


def _levels(clip):
    """(3,T,H,W) in [-1,1] -> (T,H,W,3) in 0..255."""
    clip = (np.asarray(clip, np.float32).clip(-1, 1) + 1) * 127.5
    return np.ascontiguousarray(clip.transpose(1, 2, 3, 0))                                   # (T,H,W,3)


# Two sums over the same area: errors and pixels. A clip's dB are those of all its pixels together, not the
# mean of its frames' dB, in which one perfect frame would outweigh three bad ones.
def _report(costs, spec):
    found = [costs.compare(t, spec) for t in range(len(costs.clip))]
    pixels, errors = map(np.array, zip(*found))                                               # (T,) each
    each = [decibels(error / count) for count, error in zip(pixels, errors)]
    return Fit(spec, decibels(errors.sum() / pixels.sum()), np.array(each))


def decibels(error):
    """PSNR of a mean squared error of levels 0..255; 54 dB at most, where an error is less than rounding."""
    return 10 * math.log10(255 ** 2 / max(float(error), 0.25))


# The share of clips at 20 dB or more says what a mean hides: a model of whose clips half are right and half
# wrecks, or one whose every clip is a little off. The last frame beside the first says whether it tires.
def summary(fits):
    """What a table says of a set of Fits: means over clips; the standard error of the first."""
    db = np.array([fit.db for fit in fits])                                                   # (B,)
    error = math.nan
    if len(db) > 1:
        error = float(db.std(ddof=1) / len(db) ** 0.5)
    return {"db": float(db.mean()), "error": error,
            "first": float(np.mean([fit.frames[0] for fit in fits])),
            "last": float(np.mean([fit.frames[-1] for fit in fits])),
            "share_20": float(np.mean(db >= 20))}
