"""eval_clips.py - which pixels a network is shown before two sets of clips are compared.

A clip is uint8 (T,size,size,3). Latte 4.1: FVD over 2,048 clips of 16 frames; VideoDiT 4.1: FVD on UCF101,
zero-shot; no more is said. Published FVDs are hard to reproduce because protocols go unstated: here every
choice is a field, and a flag of eval.py, and is printed. grep DEVIATES, ASSUMED

    a folder      Side         which split, which videos, which window, every how many frames?
       |
    frames of a video          crop, then resize? or resize, then crop? by which filter?
       |        prepare
    JPEG, or not               the published tool writes .jpg files of quality 75
       |
    uint8 (T,size,size,3)      eval.py: I3D, Inception, C3D, the toy's attribute classifier"""

import dataclasses
import io
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image
import numpy as np

from support import toy_world
from support.cli import UserError, at_least
from support.folders import describe, group_frames, list_source, open_image
from support.video_io import VIDEOS, Unusable, read_some, scan_times


# ------------------------------------------------------------------------------------------ protocols

# "Our FVD is 34.00." Of what? A distance of two sets says nothing until one knows how the sets were cut: how
# many clips (fewer are farther), each video's first frames or any, every frame or every third (a video shown
# three times as fast moves otherwise), cropped before or after it is made small, by which filter, and
# whether it has been a JPEG on the way (the network sees its blocks). Latte's own issue tracker is full of
# people who get 133 for 34, and most had another answer to one of these. The fields below are the questions;
# the presets, what the published tools answer, read off their code, since no paper says.

@dataclass(frozen=True)
class Protocol:
    """How clips are cut out of videos before a network looks at them. Every field is a flag."""
    clips: int = 2048              # of each side, one a video; fewer real ones are allowed, with a warning
    frames: int = 16
    split: str = "train"           # of a real root that holds train and test; all: every video
    real_stride: int = 3           # every 3rd frame of the real videos, as in Latte's training
    window: str = "random"         # of a real video; or first. Of a generated one it is always the first
    order: str = "crop-resize"     # the middle crop, then size; or resize-crop: short side to size, then crop
    filter: str = "lanczos"        # or bicubic, bilinear
    size: int = 256
    jpeg: int = 75                 # quality of a JPEG round trip of each frame that is no .jpg yet; 0: none
    ddof: int = 0                  # covariance divided by n - ddof
    seed: int = 0                  # draws real videos and windows


# Of the three published ones no two agree: order, stride, JPEG and the divisor of the covariance all differ,
# and each of them is called FVD.
PROTOCOLS = {
    # facts of the published tools: they ask for JPEG quality 95 by a name that Pillow ignores, so it is 75.
    # The real clips are of the training split; of UCF101 both (--split all). A real_stride of 6 for Taichi is
    # an author's word, in an answer to a user; the tool itself takes 3 of every set
    # DEVIATES Latte 4.1, FID: it cites clean-fid (Parmar et al. 2022), which is about filters and JPEG, and
    # states no protocol; the tool in its code compares with every frame of the real videos (fid50k_full).
    # Here with those of one window of each, as in FVD
    "latte": Protocol(),
    "stylegan-v": Protocol(real_stride=1, order="resize-crop"),
    # ASSUMED: VideoDiT 4.1 says "zero-shot FVD on UCF101" and nothing more: all of it, since no training saw
    # any of it; its clips run at UCF101's 25 fps
    "videodit": Protocol(split="all", real_stride=1, order="resize-crop", filter="bicubic", jpeg=0, ddof=1),
    # for rendered clips, which move a pixel a frame, and the networks trained on them
    "toy": Protocol(real_stride=1, window="first", size=64, jpeg=0),
}
FILTERS = {"lanczos": Image.LANCZOS, "bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}


SPLITS = ("train", "test", "val", "all")
CHOICES = {"filter": FILTERS, "window": ("random", "first"), "order": ("crop-resize", "resize-crop"),
           "split": SPLITS, "ddof": (0, 1)}


# A preset is where one starts, a flag what one changes, and what comes out is printed with the result, whole.
# Somebody who finds another number can then look for the line in which the two protocols differ.
def read_protocol(args):
    """The preset with the flags that were given on top, checked."""
    default = "toy" if args.features == "toy" else "latte"
    name = args.protocol or default
    asked = {item.name: getattr(args, item.name, None) for item in dataclasses.fields(Protocol)}
    given = {key: value for key, value in asked.items() if value is not None}
    at_least(given, clips=2, frames=1, real_stride=1, size=8, jpeg=0, seed=0)
    changed = "".join(f" --{key} {value}" for key, value in given.items())
    protocol = dataclasses.replace(PROTOCOLS[name], **given)
    if protocol.jpeg > 100:
        raise UserError(f"--jpeg {protocol.jpeg}: must be 0, for none, or a quality up to 100")
    print(f"protocol {name}{changed}: {str(protocol)[9:-1]}")
    return protocol


# ------------------------------------------------------------------------------------------ sets of clips

# A side is a folder as a protocol sees it. The two sides are not treated alike: of a real video any window
# may be drawn, and a broken one is left out with a warning; what was generated is as long as a clip, starts
# at its first frame, and has to be complete, since a score over those clips that happened to be readable is a
# score of something else. Drawing is keyed by (seed, number of the video): the same windows in every run, on
# any number of threads.

# What people hand over as "the real clips": videos at any depth, folders of numbered frames (a folder is a
# video), or the toy world by name. Covers and thumbnails beside videos are no clips, and are not counted.
class Side:
    """REAL or FAKE: videos at any depth, folders of frames (one a clip), or "toy", "toy:KIND",
    "toy:KIND:SEED". With --frames 1 every image is a clip."""

    def __init__(self, root, protocol, fake=False):
        if fake:                        # what was generated is looked at as it is
            protocol = dataclasses.replace(protocol, split="all", real_stride=1, window="first")
        self.root = str(root)
        self.protocol = protocol
        self.fake = fake
        self.skipped = []               # why clips could not be used
        self.toy = toy_world.parse_toy(self.root)
        if self.toy:
            self.clips = range(protocol.clips)
            return
        split = "" if protocol.split == "all" else protocol.split
        source = list_source(root, split)
        source.refuse_empty()
        images = source.images
        if source.videos:                               # beside them, images are covers or videos' frames
            images = [name for name in images if (name.rpartition("/")[0] or ".") in source.folders]
        self.folder = source.root
        self.clips = [[name] for name in source.videos] + group_frames(images, protocol.frames)
        if fake and os.path.isfile(os.path.join(self.folder, "sample.json")):       # eval.py sample: its first
            numbered = [names for names in self.clips if re.match(r"\d{6}", names[0])]
            self.clips = sorted(numbered)[:protocol.clips]

    def contents(self):
        """What a cache of features knows a set by: names, sizes and times of its files."""
        if self.toy:
            return self.root
        return describe(self.folder, [name for names in self.clips for name in names])

    # What cannot be read gives its reason as a text instead of a clip: threads decode ahead of their turn,
    # and an exception in one of them would end a day's run for a video that might never have been needed.
    def read(self, index):
        """uint8 (T,size,size,3), or the reason why not."""
        try:
            rng = np.random.default_rng([self.protocol.seed, index])
            images = self.images(self.clips[index], rng)
            if len({image.size for image in images}) > 1:
                raise Unusable("frames of different sizes")
            short = min(images[0].size)
            if self.fake and short < self.protocol.size:
                raise UserError(f"{self.root} holds clips of {short} pixels, the protocol compares at "
                                f"{self.protocol.size}: give --size {short}, or sample larger clips")
            is_jpeg = not self.toy and self.clips[index][0].lower().endswith((".jpg", ".jpeg"))
            return np.stack([prepare(image, self.protocol, is_jpeg) for image in images])   # (T,H,W,3)
        except Unusable as reason:
            return f"{self.clips[index][0]}: {reason}"

    def images(self, names, rng):
        """The protocol's frames of one clip, as they lie on the disk."""
        if self.toy:
            stride, size = self.protocol.real_stride, self.protocol.size
            length = (self.protocol.frames - 1) * stride + 1
            raw = toy_world.render(self.toy(names), length, size, only=range(0, length, stride))
        elif names[0].lower().endswith(VIDEOS):
            path = os.path.join(self.folder, names[0])
            pts, times = scan_times(path)
            raw = read_some(path, pts, self.numbers(len(times), rng))
        else:
            raw = [open_image(self.folder, names[number]) for number in self.numbers(len(names), rng)]
        return [Image.fromarray(frame) for frame in raw]

    # Which frames: a stride of 3 looks at 46 frames of a video and sees it move three times as fast. The real
    # side has the stride of the training (Latte: every third frame), the generated side 1, since the model
    # makes what it has seen.
    def numbers(self, count, rng):
        """Which frames of `count`."""
        frames, stride = self.protocol.frames, self.protocol.real_stride
        # as Latte's tool: videos of less than 16 * stride frames are left out; 15 * stride + 1 would do
        if count < frames * stride:
            raise Unusable(f"{count} frames, {frames * stride} needed")
        start = 0 if self.protocol.window == "first" else rng.integers(count - (frames - 1) * stride)
        return start + stride * np.arange(frames)                                           # (T,)

    # The order is drawn, so the first 2,048 usable videos are a sample of all, not the letter A; and it is a
    # permutation, so no video counts twice.
    def stream(self, workers, ahead=32):
        """Usable clips, uint8 (T,H,W,3), in a seeded random order. Threads decode the next ones while the
        network looks: FFmpeg, Pillow and NumPy let go of Python's lock."""
        order = np.random.default_rng(self.protocol.seed).permutation(len(self.clips)).tolist()
        with ThreadPoolExecutor(workers) as pool:
            for first in range(0, len(order), ahead):
                for clip in pool.map(self.read, order[first:first + ahead]):
                    if isinstance(clip, str):
                        self.skipped.append(clip)
                    else:
                        yield clip


# Two orders, both in use. Crop first and the crop has the video's full height, whatever its shape; resize
# first and it has, too, but each pixel has been rounded at another place. The filter matters more than one
# expects: bilinear without care for the pixels in between leaves a staircase on every edge, and Inception
# sees staircases. And a .jpg that is written again loses again: the published tools store frames as JPEG of
# quality 75 (they ask for 95, by a name that Pillow does not know), so a video that was .jpg already is
# damaged once, a generated one once, and not twice.
def prepare(image, protocol, is_jpeg=False):
    """PIL image -> uint8 (size,size,3) by the protocol's order, filter and JPEG quality."""
    size, method = protocol.size, FILTERS[protocol.filter]
    if image.size != (size, size):
        if protocol.order == "resize-crop":
            scale = size / min(image.size)
            image = image.resize([max(round(side * scale), size) for side in image.size], method)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), method)
        is_jpeg = False
    if protocol.jpeg and not is_jpeg:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=protocol.jpeg)
        image = Image.open(file)
    return np.asarray(image)                                                                # (H,W,3)


# FVD of fewer clips is larger, whatever they show. So a real set with holes is used, with a warning that says
# how many, and a generated one with holes is refused.
def check_count(side, found):
    """Too few clips to go on, or reasons to doubt the number."""
    want, lost = side.protocol.clips, ""
    if side.skipped:
        lost = f" ({len(side.skipped)} of {len(side.clips)} skipped: {'; '.join(side.skipped[:3])})"
    if found < 2 or (side.fake and found < want):
        raise UserError(f"{side.root} has {found} usable clips, {want} wanted{lost}; "
                        f"sample more, or give --clips {max(found, 2)}")
    if found < want or lost:
        warn(f"{side.root}: {found} usable clips, {want} wanted{lost}")


# On stderr, so that the last line of stdout stays the result.
def warn(text):
    print(f"warning: {text}", file=sys.stderr)
