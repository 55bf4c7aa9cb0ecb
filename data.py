"""data.py - what we train on: the toy world, folders of films and pictures, their order, cached latents.
Paper    VideoDiT 4.1: clips at the film's own rate, about 25 a second, the long side at most 1080 before the
         crop; WebVid, Pexels, JourneyDB. Latte 4.1: 16 frames, mirrored at random, every 3rd (4.2);
         FaceForensics, SkyTimelapse, UCF101, Taichi-HD
Shapes   an item is {"video": (3,T,H,W) in [-1,1], "caption": str, "place": str}; a batch stacks them to
         (B,3,T,H,W)        B clips, T frames, C channels, H W pixels or latent size
Time     item(index, epoch) is a pure function of (seed, epoch, index) and of the files: there is no loader
         state to save, so any step can be resumed, on any number of ranks
Differs  Latte reads whole files, dies on a short one and calls 0,3,..,21,25,28 a stride of 3; here a broken
         or short file is skipped, counted and named, and a stride is a stride
Reads    after world.py, video.py and folder.py, before vae.py
Run me   python data.py              # CPU, 5 s: two ranks share an epoch; out/data.png shows what a crop sees
         python data.py FOLDER       # what of a folder can be trained on, what cannot, and why

Training wants one thing of this file: a batch, at any step, on any of many machines, and the same one if the
run is started again. People have another: a folder. Between the two lie four questions.

    a folder ---- list_files ----> names ---- sort_media ----> films, folders of frames, pictures
                                     |                                |
                                 Captions                   ClipFolder, ImageFolder: which frames of it, which
                                     |                                |              square of these frames?
                                     v                                v
    step, rank -- schedule --> (index, epoch) ------------> item: {"video", "caption", "place"}
                                                                      |
                                              as it is, every visit another window (what the papers do)
                                              or through the VAE once, and kept: write_cache, LatentCache

What counts as a film? What is said about it? Which part of it is shown on this visit? And in which order do
the films come? Each is answered in one place, and each answer is a function of numbers, never of luck: two
runs that disagree about what they saw cannot be compared, and a crash could not be undone."""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import re
import tempfile
import textwrap
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from tqdm import tqdm

import world
from checkpoint import UserError, polite, save_tensors
from folder import (Captions, class_name, class_prompt, decode, describe, is_hidden, is_text, list_classes,
                    list_files, nothing_of, open_picture, series, sort_media, stem_of, warn_left_out)
from video import (IMAGES, VIDEOS, Film, Unusable, contact_sheet, cut, page, plot, read_all, read_some,
                   save_video, scan_times, to_video)

log = logging.getLogger("data")
UNSEEN = 20_250_101    # the seed of every toy clip that is judged: no training draws its clips from it


# --------------------------------------------------------------------------------------------- the toy world

# The toy world (world.py) has no files: a clip is drawn when it is asked for, from its number. So it shows
# in its simplest form what every data set here has to offer: a length, item(index, epoch), words(index,
# epoch) for the caption alone, captions for all of them, and identity(), which says what the data are.

class ToyClips:
    """Clips drawn on the fly (world.py). count=None: a million, more than a run ever sees."""

    classes = world.SUBJECTS

    def __init__(self, kind="video", frames=16, size=64, count=None, seed=0, drop=0.4):
        self.kind, self.frames, self.size, self.seed, self.drop = kind, frames, size, seed, drop
        self.count = count or 1 << 20

    def __len__(self):
        return self.count

    def identity(self):
        """What these clips are: equal for two data sets that give equal clips."""
        return {"data": f"toy {self.kind}", "clips": self.count, "frames": self.frames, "size": self.size,
                "seed": self.seed, "drop": self.drop, "world": world.VERSION}

    def item(self, index, epoch=0):
        """The index-th clip of the world. Another epoch says other words of the same clip."""
        spec, caption = self.told(index, epoch)
        return {"video": to_video(world.render(spec, self.frames, self.size)),          # (3,T,H,W)
                "caption": caption, "place": f"{spec.subject}/{index}", "spec": spec}

    def told(self, index, epoch=0):
        """Spec and caption of the index-th clip, nothing drawn yet."""
        spec = world.draw(self.seed, index, self.kind)
        if self.frames == 1:
            spec = dataclasses.replace(spec, motion="")           # nobody sees motion in a still
        toss = int(np.random.default_rng([self.seed, epoch, index]).integers(1 << 31))
        return spec, world.caption(spec, toss, self.drop)

    def words(self, index, epoch=0):
        """Its caption alone: what LatentCache asks for."""
        return self.told(index, epoch)[1]

    @functools.cached_property
    def captions(self):
        return [self.words(index) for index in range(self.count)]


# Its kinds are the instrument: of the same world, what is never trained on (held-out combinations), and what
# is seen in pictures only. "toy:video_heldout:1" names a kind and a seed, wherever a folder may stand, too.
def parse_toy(name):
    """(kind, seed) of "toy", "toy:video_heldout" or "toy:video:1", None for a path."""
    word, _, rest = name.partition(":")
    if word != "toy":
        return None
    kind, _, seed = rest.partition(":")
    if (kind or "video") not in world.KINDS or not (seed or "0").isdecimal():
        raise UserError(f"{name}: write toy:KIND or toy:KIND:SEED, "
                        f"where KIND is one of {', '.join(world.KINDS)}")
    return kind or "video", int(seed or 0)


# Prompts for a test set come from the same three places as data. UCF101's folders are VideoDiT's benchmark
# (4.2): a model that never saw them is given the names of the classes, and its clips are compared with
# theirs.
def prompt_at(source):
    """index -> prompt, from "toy:KIND", a text file (a prompt a line), or a folder of classes such as
    UCF101's, whose names become prompts: VideoDiT 4.2, zero-shot. They are dealt round and round."""
    if toy := parse_toy(source):
        return lambda index: world.caption(world.draw(UNSEEN + toy[1], index, toy[0]))
    path = Path(source).expanduser()
    if path.is_dir():
        films, folders, pictures, _ = sort_media(list_files(path))
        places = [stem_of(name) for name in films + folders or pictures]
        empty = [folder.name for folder in sorted(path.iterdir()) if folder.is_dir()]
        names = list_classes(places) if places else empty                # the names alone will do
        lines = [class_prompt(name) for name in names]
    elif path.is_file():
        try:
            lines = [line.strip() for line in decode(path.read_bytes()).split("\n") if line.strip()]
        except (OSError, ValueError) as error:
            raise UserError(f"--prompts {source}: cannot be read ({error}); save it as UTF-8")
    else:
        raise UserError(f"--prompts {source}: neither toy:KIND, nor a text file, nor a folder of classes")
    if not lines:
        raise UserError(f"--prompts {source}: no prompt in it")
    return lambda index: lines[index % len(lines)]


# ------------------------------------------------------------------------------------------------ real clips

# Of a film of a minute, training sees a second. Which one, and which square of it, is drawn anew on each
# visit: that is why a thousand films are more than a thousand clips, and why the numbers (seed, epoch, index)
# are the key of the draw, so that the same visit shows the same clip for ever.
#
#     frames of a film    . . . . . . . . . . . . . . . . . . .
#     part = (0, 0.75)    \_____________________/                        what is left is for a test
#     stride 3, 4 frames        x     x     x     x                       by number: Latte 4.2
#     fps 10                    x   x    x    x                           by time stamp: any film's rate
#
# Decoding is the cost. A film whose frames fit into its share of the memory is decoded once and kept; of
# others only the list of times is kept, and each window is read by seeking. All that is kept stands in one
# queue of bounded weight: a million films pass through it, and what is oldest falls out and is looked at
# again when its turn comes. Neither changes a pixel (tests compare), only the waiting.

class ClipFolder:
    """Real clips at any depth under a folder: of each film or folder of frames, a random window of `frames`
    frames a visit.

    stride    every stride-th frame as it comes; or fps: frames nearest to that many a second, by time stamp
    part      the portion of each film that may be seen: (0, 0.75) to train on, (0.75, 1) to test on
    crop      "random" or "center": where in the frame the square lies
    short     the short side before the crop; None: size, so that the crop sees as much as it can
    long      instead: the long side, at most, before the crop (VideoDiT 4.1: 1080)
    memory    bytes that are kept, in each process, of decoded frames and lists of times"""

    def __init__(self, root, frames, size, stride=1, fps=None, flip=False, seed=0, part=(0.0, 1.0),
                 crop="random", short=None, long=None, memory=1 << 30):
        root = os.path.expanduser(str(root))
        if ".zip" in root and not os.path.isdir(root):
            raise UserError(f"{root}: clips are read from a folder; unpack it first")
        self.root, self.frames, self.size, self.stride, self.fps = root, frames, size, stride, fps
        self.flip, self.seed, self.part, self.crop, self.long = flip, seed, part, crop, long
        self.short, self.memory, self.held, self.films = max(short or 0, size), memory, 0, OrderedDict()
        self.skipped, self.left_out = {}, {}
        names = list_files(root, self.left_out)
        films, folders, _, self.covers = sort_media(names)
        self.names, self.folders = sorted(films + folders), set(folders)
        if not self.names:
            nothing_of(root, names, VIDEOS + ("folders of numbered frames",), "videos", self.left_out)
        self.said = Captions(root, names, self.names)
        warn_left_out(root, self.left_out)
        self.item(0)                                             # nothing usable: say so now, not in a worker

    def __len__(self):
        return len(self.names)

    def identity(self):
        """What these clips are: equal for two data sets that give equal clips."""
        return {"data": f"clips {describe(self.root)}", **settings(
            self, "frames", "size", "stride", "fps", "flip", "part", "crop", "short", "long", "seed")}

    def item(self, index, epoch=0):
        return first_usable(self, index, epoch)

    def words(self, index, epoch=0):
        """The caption of this visit alone, without reading the film; "" where it cannot be read."""
        return words_of(self, index, epoch)

    @functools.cached_property
    def captions(self):
        """All of them, of which a vocabulary is made."""
        return self.said.all()

    @functools.cached_property
    def places(self):
        """Where each film lies: folder.py reads its class from that."""
        return [stem_of(name) for name in self.names]

    @functools.cached_property
    def classes(self):
        """The names of all classes; a label is a place in this list."""
        return list_classes(self.places)

    # read() is the whole way of a clip, in the order in which things are drawn, which must never change: the
    # window first, then the place of the square, then whether it is mirrored. All of a clip's frames share
    # one square and one mirror: a crop that moved would be a camera that shakes.
    def read(self, index, rng):
        """One clip of one film, as rng has it, or Unusable."""
        frames, times, decoded = self.film(index)
        wanted = self.window(times, rng)                                                 # (T,)
        if decoded is None:
            numbers, places = np.unique(wanted, return_inverse=True)
            clip = self.decode(index, frames, numbers)[places]                           # (T,h,w,3)
        else:
            clip = decoded[wanted]                                                       # (T,h,w,3)
        return {"video": to_video(cut(clip, self.size, self.crop, self.flip, rng))}      # (3,T,H,W)

    def path(self, index):
        """Where on this machine."""
        return os.path.join(self.root, self.names[index])

    def decode(self, index, frames, numbers):
        """These frames, of a file (`frames`: its time stamps) or of a folder (its names)."""
        if self.names[index] not in self.folders:
            return read_some(self.path(index), frames, numbers, self.short, self.long)   # (T,h,w,3)
        pictures = [open_picture(self.path(index), frames[number], self.short, self.long)
                    for number in numbers]
        if len({picture.shape for picture in pictures}) > 1:
            raise Unusable("its frames differ in size")
        return np.stack(pictures)                                                        # (T,h,w,3)

    # A film is looked at when it is first asked for, not when the folder is opened: a million files would
    # take a day to open. So a broken one is found in the middle of an epoch, and must not end it.
    def film(self, index):
        """(time stamps or names, seconds or numbers, frames or None) of a film: looked at once, as long as it
        is remembered. A film that cannot be used is remembered by its reason."""
        if index not in self.films:
            try:
                self.films[index] = self.look(index)
            except Unusable as reason:
                self.films[index] = str(reason)
            self.held += weight(self.films[index])
            while self.held > self.memory and len(self.films) > 1:
                self.held -= weight(self.films.popitem(last=False)[1])                   # the oldest
        self.films.move_to_end(index)
        if isinstance(self.films[index], str):
            raise Unusable(self.films[index])
        return self.films[index]

    # Decoded or sought? Seeking costs all frames since the last key frame, on each visit; a decoded film
    # costs its pixels in memory, for ever (16 frames of 256 x 256 are 3 MB, a minute 295). Five films of a
    # hobby fit, and are never decoded again; a hundred thousand do not. A share for each says which, from
    # sizes alone, before anything is read: were it "as long as there is room", the first films would win, and
    # two runs would differ in speed for no reason that anybody sees.
    def look(self, index):
        """Decoded whole if it fits its share of memory: which of the two never depends on luck."""
        path, share = self.path(index), self.memory * 3 // 4 // len(self.names)
        if self.names[index] in self.folders:
            try:
                listed = series([name for name in os.listdir(path) if name.lower().endswith(IMAGES)
                                 and not is_hidden(name) and is_text(name)])
            except OSError as error:
                raise Unusable(f"cannot be read ({error.strerror})")
            if not listed:
                raise Unusable("its frames are gone")
            numbers, frames = zip(*listed)                     # a number may be a date of 20 digits
            times = np.array([min(number - numbers[0], 1 << 62) for number in numbers])
            first = open_picture(path, frames[0], self.short, self.long)
            fits = first.nbytes * len(frames) <= share
            return frames, times, self.decode(index, frames, range(len(frames))) if fits else None
        pts, times = scan_times(path)
        with Film(path, self.short, self.long) as film:
            fits = len(times) * film.width * film.height * 3 <= share
        if fits:
            times, decoded = read_all(path, self.short, self.long)
            self.window(times, np.random.default_rng(0))           # too short: found out before it is kept
            return None, times, decoded
        return pts, times, None

    # By number or by time? Latte counts frames: every third, whatever their rate, so a film of 60 a second
    # moves at half the speed of one of 30. VideoDiT keeps "the original frame rate of approximately 25". With
    # fps the clip is asked for by the clock: moments 1/fps apart, and for each the frame nearest to it, found
    # by bisection between the frames' midpoints. That holds for phones, too, whose rate wanders.
    #
    #     frames, by their time stamps     |   |  |    |     |  |  |   |
    #     moments                             ^     ^     ^     ^
    #     taken                              |      |     |     |
    def window(self, times, rng):
        """Numbers of the frames of one clip, drawn from our part of the film."""
        first, last = (round(share * len(times)) for share in self.part)
        ours, span = times[first:last], (self.frames - 1) * self.stride
        if self.fps is None:
            starts = np.arange(max(len(ours) - span, 0))
            if not len(starts):
                raise Unusable(f"{last - first} frames, {span + 1} needed")
            if times.dtype.kind == "i" and len(times) > 1:
                # ASSUMED: where numbers are missing from a folder of frames, a clip that runs over the gap
                # would jump, so those that do not are drawn from; if there are none, the film as it comes.
                even = ours[span:] - ours[:len(ours) - span] == span * max(np.diff(times).min(), 1)
                starts = np.flatnonzero(even) if even.any() else starts
            start = first + starts[rng.integers(len(starts))]
            return start + self.stride * np.arange(self.frames)                          # (T,)
        if times.dtype.kind == "i":
            raise Unusable("a folder of frames knows no seconds: give --stride instead of --fps")
        seconds = (self.frames - 1) / self.fps
        starts = np.flatnonzero(ours + seconds <= ours[-1:] + 0.002)                     # mkv rounds to 1 ms
        if not len(starts):
            raise Unusable(f"{np.ptp(ours) if len(ours) else 0:.2f} seconds, {seconds:.2f} needed")
        moments = ours[rng.choice(starts)] + np.arange(self.frames) / self.fps           # (T,)
        return first + np.searchsorted((ours[1:] + ours[:-1]) / 2, moments)              # the nearest in time


# The memory is a queue of what was used last, cut at its old end ("LRU"). A film's list of times is 16 bytes
# a frame: 7 kB for 18 seconds at 25 a second, so 7 GB for a million films, in each of the loader's processes,
# if nothing were ever forgotten. Only films that fit their share are kept decoded: else, with too many films
# for the memory, the queue would turn over on every visit, and decode a film whole to show 16 frames of it.
def weight(film):
    """Bytes that one remembered film takes, about."""
    if isinstance(film, str):
        return len(film)
    return sum(part.nbytes if isinstance(part, np.ndarray) else 80 * len(part) for part in film
               if part is not None)


# Previews and cached latents ask for words without the film. A caption that cannot be read has skipped its
# film in training, where the reason is told; here it is only nothing to say.
def words_of(dataset, index, epoch):
    """One of a file's captions, drawn for this visit."""
    try:
        return dataset.said.draw(index, [dataset.seed, epoch, index])
    except Unusable:
        return ""


def settings(dataset, *names):
    """These fields, as JSON has them: what is compared with a cache's has been through JSON."""
    values = {name: getattr(dataset, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


# What takes the place of a broken film? If the batch simply had one clip less, ranks would differ in size; if
# the next one were taken, a clip behind a broken one would be seen twice as often. So another is drawn, from
# the same key as everything else. After a thousand broken files in a row the folder is what is broken.
def first_usable(dataset, index, epoch):
    """The item, or, when its file cannot be used, another one: which is drawn from (seed, epoch, index), so
    that every rank, worker and resumed run puts the same clip in its place."""
    count = len(dataset)
    seed = int(mix(dataset.seed, epoch, index)[0])
    others = (int(deal([place], count, seed)[0][0]) for place in range(count))
    for candidate in itertools.islice(itertools.chain([index], others), 1000):
        key = [dataset.seed, epoch, index, candidate]
        try:
            caption = dataset.said.draw(candidate, [dataset.seed, epoch, candidate])
            return {**dataset.read(candidate, np.random.default_rng(key)), "caption": caption,
                    "place": stem_of(dataset.names[candidate])}
        except Unusable as reason:
            name, skipped = dataset.names[candidate], dataset.skipped
            if name not in skipped:
                skipped[name] = str(reason)
                log.warning("skipped %s in %s: %s (%d of %d files skipped so far)",
                            name, dataset.root, reason, len(skipped), count)
    reasons = [f"{name}: {reason}" for name, reason in dataset.skipped.items()]
    raise UserError(f"nothing usable in {dataset.root}: all {len(reasons)} files tried were skipped; "
                    f"{'; '.join(reasons[:3])}{' ...' if len(reasons) > 3 else ''}")


# -------------------------------------------------------------------------------------------------- pictures

# A picture is a clip of one frame. Both papers train on them beside clips (VideoDiT A.2, Latte 3.3.4): a
# picture costs a sixteenth of a clip, and there are more of them, and better described.

# Of a picture there is no window to draw, only the square and the mirror. Everything else is a clip's way:
# the same captions, the same replacement of broken files, the same keys.

class ImageFolder:
    """Pictures at any depth under a folder or in a .zip, as clips of one frame.

    root may be "photos.zip" or, for a part of it, "photos.zip!/train"."""

    def __init__(self, root, size, flip=False, seed=0, crop="random", short=None, long=None):
        root = os.path.expanduser(str(root))
        self.root, self.size, self.flip, self.seed, self.crop = root, size, flip, seed, crop
        self.short, self.long, self.skipped, self.left_out = max(short or 0, size), long, {}, {}
        names = list_files(root, self.left_out)
        _, _, pictures, covers = sort_media(names)
        self.names = pictures or covers                    # beside films, but asked for by name
        if pictures and covers:
            log.warning("%s: %d pictures beside films are left out; first: %s", root, len(covers), covers[0])
        if not self.names:
            nothing_of(root, names, IMAGES, "pictures", self.left_out)
        self.said = Captions(root, names, self.names)
        warn_left_out(root, self.left_out)
        self.item(0)

    def __len__(self):
        return len(self.names)

    def identity(self):
        """What these pictures are: equal for two data sets that give equal ones."""
        return {"data": f"pictures {describe(self.root)}",
                **settings(self, "size", "flip", "crop", "short", "long", "seed")}

    def item(self, index, epoch=0):
        return first_usable(self, index, epoch)

    def words(self, index, epoch=0):
        return words_of(self, index, epoch)

    @functools.cached_property
    def captions(self):
        return self.said.all()

    @functools.cached_property
    def places(self):
        return [stem_of(name) for name in self.names]

    def read(self, index, rng):
        """One picture, cut as rng has it, or Unusable."""
        picture = open_picture(self.root, self.names[index], self.short, self.long)      # (h,w,3)
        return {"video": to_video(cut(picture[None], self.size, self.crop, self.flip, rng))}     # (3,1,H,W)


# One question decides what a folder is: does the caller want films or pictures? Films for --data, also where
# a stage asks for single frames (the VAE's), and then a random frame of each; pictures for --images.
def open_source(name, frames, size, seed=0, count=None, stride=1, fps=None, flip=False, part=(0.0, 1.0),
                crop="random", short=None, long=None, kind=None):
    """What --data (kind "video") and --images (kind "image") mean: "toy", a folder, or, for pictures, a .zip.

    One frame of --data is a frame of a film, as long as there are films; --images are pictures, as long as
    there are more of them than films: one cover.jpg beside a thousand films is not a data set."""
    kind, name = kind or ("video" if frames > 1 else "image"), os.path.expanduser(str(name))
    if name == "toy":
        return ToyClips("video" if frames > 1 else "image", frames, size, count, seed)
    if frames == 1:
        films, folders, pictures, _ = sort_media(list_files(name))
        films_first = films + folders if kind == "video" else films and len(films) >= len(pictures)
        if not films_first or not os.path.isdir(name):
            return ImageFolder(name, size, flip, seed, crop, short, long)
        if kind == "image" and pictures:
            log.warning("%s holds %d films and %d pictures: single frames of the films are taken", name,
                        len(films), len(pictures))
    return ClipFolder(name, frames, size, stride, fps, flip, seed, part, crop, short, long)


# --------------------------------------------------------------------------------------------------- batches

# An epoch is a shuffled deck: each clip once, in an order that nobody chose. The usual way is to shuffle a
# list of all numbers, which for ten million films is 80 MB and a second, an epoch, in each of 64 processes,
# and again when a run is resumed. But nobody needs the deck. What is needed is one card: which clip is the
# 7,000,123rd of epoch 3? A cipher answers that. It maps every number below N to another number below N, no
# two to the same, and looks like chance; and it needs no list, only a key.
#
# The oldest recipe will do, a Feistel network. Write a position as (left, right), two digits to the base of
# about sqrt(N). Add to one digit a hash of the other, then swap roles; eight times. Each round can be undone
# (subtract the same hash), so the whole is a permutation, whatever the hash.
#
#     left  --+-------- + hash(right) ------+--> ...        left' = left + hash(right)   mod a
#             |             |               |
#     right --+-------------+----- + hash(left') --> ...    right' = right + hash(left') mod b
#
# a * b is a little more than N, so now and then the answer is no clip: then it is enciphered once more, and
# as that walk runs along a cycle of the permutation, it comes back below N, and no clip is met twice.

# The hash has to be good, or order shows: the finish of splitmix64 is, in which every bit of the input flips
# half of the output's. It is three multiplications, on whole arrays at once: dealing a batch of 64 takes a
# third of a millisecond. test_the_order_looks_like_chance throws dice with it.

def mix(*numbers):
    """64 bits that look like chance, of whole numbers or arrays of them (splitmix64's finish, each number
    added in turn)."""
    state = np.zeros(1, np.uint64)                       # arrays wrap around; a lone number would complain
    for number in numbers:
        number = number if isinstance(number, np.ndarray) else np.uint64(int(number) % 2 ** 64)
        state = (state ^ number) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return state


# A toss is a coin for a step: VideoDiT A.2 takes clips on a step with probability p, pictures otherwise, and
# all ranks must throw alike, or they wait for each other. As tosses are a function of the step, how many of
# the first 200,000 fell on clips is counted in 16 ms, and a resumed run knows where both sources stand.
def toss(seed, steps):
    """Numbers in [0,1), one a step, the same for ever: for a choice that all ranks have to make alike."""
    return (mix(seed, np.asarray(steps, np.uint64)) >> np.uint64(11)) / 2.0 ** 53


def deal(positions, count, seed):
    """Positions of the run -> (indices, epochs): card p mod count of deck p // count, without a deck."""
    epochs, cards = np.divmod(np.asarray(positions, np.uint64), np.uint64(count))        # (n,)
    a = math.isqrt(count - 1) + 1
    a, b = np.uint64(a), np.uint64(-(-count // a))

    def encipher(cards):
        left, right = np.divmod(cards, b)
        for turn in range(4):
            left = (left + mix(seed, epochs, 2 * turn, right) % a) % a
            right = (right + mix(seed, epochs, 2 * turn + 1, left) % b) % b
        return left * b + right

    cards = encipher(cards)
    while (cards >= count).any():
        cards = np.where(cards >= count, encipher(cards), cards)
    return cards.astype(np.int64), epochs.astype(np.int64)                               # (n,), (n,)


# Ranks share the run's positions as players are dealt cards: step s has batch * world_size of them, rank r
# the r-th pile. So the set of clips of a step does not depend on how many ranks there are, and neither does
# the run: that is what lets a training that began on one card go on upon eight (a test compares the weights).
def schedule(count, batch, seed, start_step=0, rank=0, world_size=1):
    """For every step, this rank's rows [(index, epoch), ...], for ever.

    Position p of the run is card p mod count of deck p // count. A step deals batch * world_size cards: two
    ranks with half the batch see what one sees."""
    # ASSUMED: both papers are silent on the order; a new permutation each epoch, straight on into the next.
    for step in itertools.count(start_step):
        start = (step * world_size + rank) * batch
        indices, epochs = deal(np.arange(start, start + batch), count, seed)
        yield list(zip(indices.tolist(), epochs.tolist()))


# torch's DataLoader fetches ahead: `workers` processes, each with a copy of the data set, each given whole
# batches in turn. As an item is a function of (index, epoch) alone it does not matter which worker makes it,
# or when; the loader gives the batches back in order. So there is nothing to save of it, and to resume at
# step s is to begin the schedule at s.
class Rows:
    """What torch's DataLoader asks of a map: the item at (index, epoch)."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, row):
        return {**self.dataset.item(*row), "index": torch.tensor(row[0])}


# Clips of a batch have one shape, so their tensors can be stacked; captions cannot, and stay a list.
def collate(items):
    """Tensors are stacked, everything else is listed: {"video": (B,3,T,H,W), "caption": [B strings], ...}."""
    return {key: torch.stack([item[key] for item in items]) if torch.is_tensor(items[0][key])
            else [item[key] for item in items] for key in items[0]}


def load(dataset, rows, workers=0):
    """Batches in the order of `rows`, fetched ahead by `workers` processes. The loader gets a generator of
    its own: it draws a number at the start, and that must not be one of the training's."""
    try:
        yield from DataLoader(Rows(dataset), batch_sampler=rows, num_workers=workers, collate_fn=collate,
                              generator=torch.Generator())
    except UserError as error:                   # a worker's comes with its whole stack, the reason last
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("checkpoint.UserError: "))


def batches(dataset, batch, seed=0, start_step=0, rank=0, world_size=1, workers=0):
    """Endless batches from start_step on: the very batches an uninterrupted run would see there."""
    count = len(dataset)
    if count < batch * world_size and rank == 0:
        log.warning("%d items, a batch of %d: every batch repeats some", count, batch * world_size)
    return load(dataset, schedule(count, batch, seed, start_step, rank, world_size), workers)


# -------------------------------------------------------------------------------------------- cached latents

# Encoding costs a quarter of a step of VideoDiT and nine tenths of one of Latte-S, and a frozen VAE gives the
# same answer every time. So latents may be encoded once, into shards that are each written whole. Stored are
# raw posterior means, before (z - shift) * scale; the constants stand beside them. The price: of each film
# only the windows that were encoded are ever seen, and a caption's vectors (154 x 4096 for SD3, 1.3 MB) weigh
# more than its clip; so they are stored once for each different caption, under a hash of it.
#
#     FOLDER/00000-of-00012.safetensors    latents (n,C,T',h,w); as metadata captions, places and `made`
#     FOLDER/text/3f/9c0a...safetensors    what the text encoders say of one caption
#
# A cache is a promise that may be broken behind its back: another VAE, another crop, a film replaced under
# its old name. So `made` holds all that the latents depend on, and whoever reads compares it with what the
# run would make (identity() of the data set, fingerprint() of the VAE), and names what differs.

SHARD = re.compile(r"(\d{5})-of-(\d{5})\.safetensors")


# Is a cached latent as good as a fresh one? Nearly: the mean of the posterior instead of a draw from it
# (their difference is far below the noise that training adds), in 16 bits. What is lost is variety. `windows`
# says how many windows of each film are kept; the papers see a new one on each of a million steps.
def fingerprint(net):
    """Sixteen hex digits that two networks share only if every weight is the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def shards_of(folder):
    """The shards of a cache, in order. By their whole name: a write that was killed leaves a file whose name
    only looks like one, and a folder may hold those of another count."""
    return sorted(path for path in Path(folder).glob("*.safetensors") if SHARD.fullmatch(path.name))


def write_cache(folder, dataset, encode, batch, vae, shift=0.0, scale=1.0, epochs=1, shard=512,
                dtype=torch.float16, workers=0, rank=0, world_size=1, text=None, speaker="", watch=None):
    """Encode every item (`epochs` windows of each film) into NNNNN-of-MMMMM.safetensors under `folder`.

    encode    batch -> {"latent": (B,C,T',h,w) raw, ...}; it is given `batch` items at a time
    vae       fingerprint() of the encoder: LatentCache refuses latents of another one
    text      [captions] -> {"context": (B,L,D), ...}, asked once for each different caption, `batch` at once;
              speaker names its encoders as `vae` does the VAE
    watch     called after every batch: the place to stop, by an exception, when a signal has come
    Shards that are there are kept, so an interrupted run goes on; ranks take every world_size-th shard."""
    total, folder = epochs * len(dataset), Path(folder)
    made = {"vae": vae, "text": speaker, "shift": shift, "scale": scale, **dataset.identity(),
            "items": total, "shard": shard}
    for path in shards_of(folder)[:1]:
        check_made(folder, cache_made(path)[0], made)
    shards = math.ceil(total / shard)
    with tqdm(total=total // world_size, unit="clip", desc=f"encode to {folder}", disable=rank > 0) as bar:
        def tick(items):
            bar.update(items)
            if watch:
                watch()

        for number in range(rank, shards, world_size):
            path = folder / f"{number:05d}-of-{shards:05d}.safetensors"
            positions = range(number * shard, min((number + 1) * shard, total))
            if path.exists():
                bar.update(len(positions))
            else:
                write_shard(path, dataset, encode, batch, positions, made, dtype, workers, tick)
            if text:
                write_texts(folder, cache_made(path)[1], text, batch, dtype, tick)


# Only whole shards exist. If a process dies inside one, the next run makes it again, from its positions
# alone; nobody has to ask what is done, so ranks need no lock: each has the shards of its own number.
def write_shard(path, dataset, encode, batch, positions, made, dtype, workers, tick):
    """One file: tensors, and as metadata the captions and how it was made. It appears whole or not at all."""
    rows = [divmod(position, len(dataset))[::-1] for position in positions]              # (index, epoch)
    chunks = [rows[start:start + batch] for start in range(0, len(rows), batch)]
    parts, captions, places = [], [], []
    for loaded in load(dataset, chunks, workers):
        parts.append({key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
                      for key, tensor in encode(loaded).items()})
        captions += loaded["caption"]
        places += loaded["place"]
        tick(len(loaded["caption"]))
    state = {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]} # (n,C,T',h,w)
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise UserError(f"latents for {path} are not finite in {dtype}; try bfloat16, or look at the VAE")
    metadata = {"made": json.dumps(made), "captions": json.dumps(captions), "places": json.dumps(places)}
    save_tensors(path, state, metadata)


# Text is found by its hash: the file of a caption is where 128 bits of its SHA-256 say. No list has to be
# kept or locked, equal captions meet in one file whoever writes it, and a million files are spread over 256
# folders. (Two captions with one hash are less likely than a meteorite in the disk.)
def text_path(folder, caption):
    """Where a cache keeps it."""
    mark = hashlib.sha256(caption.encode()).hexdigest()[:32]
    return Path(folder) / "text" / mark[:2] / f"{mark[2:]}.safetensors"


# Prompts repeat far more than clips do (a class has a hundred films), and an encoder of 5 billion weights is
# the dearest part of a cache. So first it is seen which captions are new, and only these are read.
def write_texts(folder, captions, text, batch, dtype, tick):
    """What the text encoders say of these captions, as far as it is not there yet."""
    missing = [caption for caption in dict.fromkeys(captions) if not text_path(folder, caption).exists()]
    for start in range(0, len(missing), batch):
        asked = missing[start:start + batch]
        told = {key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
                for key, tensor in text(asked).items()}                                  # (n,L,D), ...
        for row, caption in enumerate(asked):
            state = {key: tensor[row].contiguous() for key, tensor in told.items()}      # (L,D), ...
            save_tensors(text_path(folder, caption), state, {})
        tick(0)


def cache_made(path):
    """(how it was made, captions, places) of a shard."""
    try:
        with safe_open(path, "pt") as file:
            return tuple(json.loads(file.metadata()[key]) for key in ("made", "captions", "places"))
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} is truncated or no latent cache ({error}); delete it and encode again")


# A refusal names what differs, "stride 1 instead of 3", because the way out depends on it: a forgotten flag
# is added, a new data set gets a folder of its own, and a cache is only deleted by a person.
def check_made(folder, made, want):
    """Latents of another VAE look like noise to this one's decoder: refuse, naming what differs."""
    differs = [f"{key} {made.get(key)} instead of {want[key]}" for key in want if made.get(key) != want[key]]
    if differs:
        raise UserError(f"the latent cache in {folder} was made differently: {'; '.join(differs)}; "
                        "delete it, or give another folder with --cache")


@functools.lru_cache(maxsize=4096)
def open_shard(path, written, process):
    """Memory-mapped, one handle a process. `written`, its time, tells it from an older one of that name."""
    return safe_open(path, "pt")


# Safetensors files are mapped, not read: a row of a shard is a few pages of the disk, and the kernel keeps
# those that are asked for often. So a cache of a terabyte trains in a few gigabytes of memory, and opening it
# reads the headers alone, in which the captions stand.
class LatentCache:
    """What write_cache wrote, as a dataset of {"latent": (C,T',h,w) raw, "caption": str, "place": str, ...}.

    vae       the fingerprint that the latents must have been made with; None trusts them
    words     (index, epoch) -> caption, for captions that change with the epoch; None: those stored
    want      identity() of the data set that the run would encode, and whatever else of `made` must be so"""

    def __init__(self, folder, vae=None, words=None, want=None):
        self.folder, self.paths, self.words = Path(folder), shards_of(folder), words
        if not self.paths:
            raise UserError(f"no latent cache in {folder}; encode one first, or check --cache")
        shards = int(SHARD.fullmatch(self.paths[0].name)[2])
        if len(self.paths) != shards:
            raise UserError(f"the latent cache in {folder} has {len(self.paths)} of {shards} shards: it was "
                            "interrupted; run the encoding again to go on")
        self.made = cache_made(self.paths[0])[0]
        check_made(folder, self.made, {**({} if vae is None else {"vae": vae}), **(want or {})})
        self.written = [path.stat().st_mtime_ns for path in self.paths]
        self.captions, self.places = [], []
        for path in self.paths:
            _, captions, places = cache_made(path)
            self.captions += captions
            self.places += places
        self.shift, self.scale, self.shard = (self.made[key] for key in ("shift", "scale", "shard"))

    def __len__(self):
        return len(self.captions)

    def identity(self):
        """Of the data that were encoded, and of their encoders."""
        return self.made

    @functools.cached_property
    def classes(self):
        return list_classes(self.places)

    def item(self, index, epoch=0):
        shard, row = divmod(index, self.shard)
        file = open_shard(str(self.paths[shard]), self.written[shard], os.getpid())
        tensors = {key: file.get_slice(key)[row] for key in file.keys()}                 # (C,T',h,w)
        caption = self.words(index, epoch) if self.words else self.captions[index]
        if self.made["text"]:
            tensors |= self.text(caption)                                                # (L,D), (P)
        return {"caption": caption, "place": self.places[index], **{
            key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}}

    def text(self, caption):
        """What the text encoders said of it, when the cache was written."""
        try:
            return load_file(text_path(self.folder, caption))
        except (OSError, SafetensorError) as error:
            raise UserError(f'{text_path(self.folder, caption)}, the text of "{caption[:60]}", is missing or '
                            f"broken ({error}); run the encoding again")


# ---------------------------------------------------------------------------------------- a folder's report

# Before a week on eight GPUs one wants to know what is in the folder: how many hours, which sizes and rates,
# whence the captions, and which files are broken. So each file is tried, as training will try it.

# Hours come from time stamps and not from headers, whose lengths and rates are often guesses; a folder of
# frames has none, so it counts in frames alone.
def measure(dataset, index):
    """(frames, seconds or None, width, height) of a film, or of a picture with frames 1."""
    name = dataset.names[index]
    if isinstance(dataset, ImageFolder):
        height, width = open_picture(dataset.root, name).shape[:2]
        return 1, None, width, height
    frames, times, _ = dataset.film(index)
    if name in dataset.folders:
        height, width = open_picture(dataset.path(index), frames[0]).shape[:2] if frames else (0, 0)
        return len(times), None, width, height
    with Film(dataset.path(index)) as film:
        return len(times), float(np.ptp(times)) * len(times) / max(len(times) - 1, 1), film.width, film.height


# Each file is tried as training will try it, by the same functions: what is called usable here is usable
# there. Where a caption comes from is counted, because it cannot be seen in the loss: if 3,000 of 3,000 come
# from folders' names, a table was not found, and the model will learn to paint "videos".
def report(dataset):
    """({what: text} of all that a data set holds, each file tried, some to look at with their labels)."""
    films, sources, shown = [], Counter(), []
    picked = set(np.linspace(0, len(dataset) - 1, 8).astype(int).tolist())
    for index in tqdm(range(len(dataset)), desc=f"{len(dataset)} files"):
        try:
            key = np.random.default_rng([dataset.seed, 0, index, index])
            captions, source = dataset.said.told(index)
            films.append(measure(dataset, index))
            item = dataset.read(index, key)
        except Unusable as reason:
            dataset.skipped[dataset.names[index]] = str(reason)
            continue
        sources[source] += 1
        if index in picked:
            shown.append((item["video"], f"{dataset.names[index]}: {captions[0]}"))
    usable = sum(sources.values())
    lines = {"usable": f"{usable} of {len(dataset)}"}
    if usable:
        lines |= numbers_of(films, usable)
        lines["captions"] = ", ".join(f"{count} from {source}" for source, count in sources.most_common())
        groups = sorted(set(map(class_name, dataset.places)) - {""})
        if groups:
            said = textwrap.shorten(", ".join(groups), 60)
            lines["classes"] = f"{len(groups)}, if folders are classes: {said}"
    for name, rows, lost, first in dataset.said.tables:
        lines[name] = f"{rows} rows, {rows - lost} of them matched" + (f"; not {first}" if lost else "")
    if isinstance(dataset, ImageFolder) and shown:                   # all in a row, as if they were one clip
        said = "; ".join(label.rpartition("/")[2] for _, label in shown)
        shown = [(torch.cat([video for video, _ in shown], 1), said)]                    # (3,8,H,W)
    return lines, shown


# A median beside the ends, since one film of three hours among clips of ten seconds says nothing about them.
# The commonest rates and sizes are counted: 60 frames a second among 25 is a --stride or --fps to think of,
# and 320 x 180 among 1080p is a film that a crop of 256 will enlarge.
def numbers_of(films, usable):
    """Hours, frames, rates and sizes, in words."""
    span = lambda values, unit="": (f"{min(values):g}{unit}" if min(values) == max(values) else
                                    f"{min(values):g} to {max(values):g}{unit}, median {np.median(values):g}")
    lines, timed = {}, [(frames, seconds) for frames, seconds, *_ in films if seconds]
    if timed:
        rates = Counter(f"{frames / seconds:.4g}" for frames, seconds in timed)
        total = sum(seconds for _, seconds in timed)
        lines["hours"] = f"{total / 3600:.3g} ({total:,.0f} seconds)"
        lines["rates"] = ", ".join(f"{rate} a second ({count})" for rate, count in rates.most_common(6))
    if any(frames > 1 for frames, *_ in films):
        lines["frames"] = span([frames for frames, *_ in films])
    sizes = Counter(f"{width} x {height}" for *_, width, height in films)
    lines["sizes"] = ", ".join(f"{size} ({count})" for size, count in sizes.most_common(6)) + (
        f", {len(sizes) - 6} more" if len(sizes) > 6 else "")
    return lines


# A folder may hold films, and pictures that are none of theirs: both are tried, as --data and --images would
# take them. What is in neither, and why, is printed last: nothing of a folder goes without a word.
def sets_in(root, frames, size, how, left_out):
    """[(what, a function that opens it), ...] of a folder, and the pictures that are left out as covers."""
    names = list_files(root, left_out)
    films, folders, pictures, covers = sort_media(names)
    folders = folders if os.path.isdir(root) else []                  # an archive is read as pictures
    if not films + pictures + covers:
        nothing_of(root, names, VIDEOS + IMAGES, "videos or pictures", left_out)
    in_films = [name for name in pictures if (name.rpartition("/")[0] or ".") in folders]
    found = []
    if films + folders:
        found.append(("videos", lambda: ClipFolder(root, frames, size, **how)))
    if len(in_films) < len(pictures) or covers and not pictures:
        found.append(("pictures", lambda: ImageFolder(root, size)))
    elif in_films:
        print(f"as --images, the frames of these {len(folders)} folders are {len(in_films)} pictures")
    return found, covers if films else []


def scan(root, frames=16, size=64, sheet="out/data.png", **how):
    """Try every file of a folder; print what is usable, what is skipped and why; save a contact sheet."""
    root, left_out, shown = os.path.expanduser(str(root)), {}, []
    found, covers = sets_in(root, frames, size, how, left_out)
    log.setLevel(logging.ERROR)                                       # it is all said below
    for what, open_it in found:
        try:
            dataset = open_it()
        except UserError as error:
            print(f"{what}: {error}")
            continue
        lines, some = report(dataset)
        shown += some
        print(f"{lines.pop('usable')} {what} in {root} are usable")
        for name, text in lines.items():
            print(f"  {name:10} {text}")
        for name, reason in itertools.islice(dataset.skipped.items(), 20):
            print(f"  broken     {name}: {reason}")
        if len(dataset.skipped) > 20:
            print(f"  broken     {len(dataset.skipped) - 20} more")
    for name, reason in [*left_out.items(), *((name, "a picture beside films") for name in covers)][:20]:
        print(f"  left out   {name}: {reason}")
    if shown:
        clips, labels = zip(*shown)
        contact_sheet(sheet, clips, [textwrap.shorten(label, 90) for label in labels], side=64)
        print(f"some of them are in {sheet}")


# ------------------------------------------------------------------------------------------------------ demo
def demo():
    """Deal one epoch to two ranks. Returns the times that the rarest and the commonest clip were seen."""
    decks = [schedule(60, batch=6, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    seen = [index for _ in range(5) for deck in decks for index, _ in next(deck)]
    counts = np.bincount(seen, minlength=60)
    return int(counts.min()), int(counts.max())


# What does a crop see? The same film under three protocols, and the difference is no detail: the DP-VAE of
# VideoDiT 4.1 is shown pieces of the film at full sharpness and learns texture; a transformer that learns
# from prompts should see as much of the picture as the prompt speaks of. Below, the deck of two ranks: every
# clip once in five steps, and no pattern.
def draw(path):
    """What the protocols see of one wide film; and the order in which two ranks meet 60 clips."""
    pair = [world.render(world.draw(0, number), 16, 96) for number in (0, 5)]
    wide, rows, labels = np.concatenate(pair, 2), [], []                                 # (T,96,192,3)
    with tempfile.TemporaryDirectory() as folder:
        save_video(Path(folder, "film.mp4"), wide, fps=25)
        for label, how in (("Latte 4.1: the short side to 48, the middle", dict(crop="center")),
                           ("short 48, anywhere, on another visit elsewhere", dict(crop="random")),
                           ("VideoDiT 4.1, the DP-VAE: at its own resolution", dict(long=1080))):
            rows.append(ClipFolder(folder, 8, 48, **how).item(0, 1)["video"])
            labels.append(label)
    film = contact_sheet(None, [wide], ["a film of 192 x 96"], side=96, columns=3)
    seen = contact_sheet(None, rows, labels, side=72)
    order = {}
    for rank in (0, 1):
        steps = zip(range(20), schedule(60, 6, 0, rank=rank, world_size=2))
        dots = [(step + number / 6, index) for step, rows in steps for number, (index, _) in enumerate(rows)]
        order[f"rank {rank}"] = (*zip(*dots), ".")
    deck = plot(None, order, "Four epochs of 60 clips, dealt to two ranks", "step, 2 x 6 clips", "clip",
                size=(640, 300))
    page(path, [film, seen, deck], columns=1)


def main():
    parser = argparse.ArgumentParser(description="what of a folder can be trained on", allow_abbrev=False)
    parser.add_argument("folder", nargs="?", help="videos, folders of frames and pictures at any depth, or a "
                        ".zip of pictures")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--fps", type=float, default=None)
    flags = parser.parse_args()
    if flags.folder:
        return scan(flags.folder, flags.frames, flags.size, stride=flags.stride, fps=flags.fps)
    low, high = demo()
    print(f"two ranks saw each of 60 clips between {low} and {high} times (right: 1 and 1)")
    draw("out/data.png")
    print("what a crop sees of a film, and the order of clips, are drawn in out/data.png")


if __name__ == "__main__":
    polite(main)
