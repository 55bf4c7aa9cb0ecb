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
Reads    after toy_world.py, video_io.py and folders.py, before vae.py
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
import itertools
import logging
import os
import sys
import textwrap
from collections import Counter, OrderedDict

import numpy as np
import torch
from tqdm import tqdm

from support import toy_world
from support.cli import UserError, polite
from support.drawing import contact_sheet
from support.folders import (Captions, class_name, describe, is_hidden, is_text, list_classes, list_files,
                             nothing_of, open_image, series, sort_media, stem_of, warn_left_out)
from support.order import deal, log, mix
from support.video_io import IMAGES, VIDEOS, Unusable, VideoFile, crop_clip, read_all, read_some, scan_times, to_video


# --------------------------------------------------------------------------------------------- the toy world

# The toy world (toy_world.py) has no files: a clip is drawn when it is asked for, from its number. So it shows
# in its simplest form what every data set here has to offer: a length, item(index, epoch), words(index,
# epoch) for the caption alone, captions for all of them, and identity(), which says what the data are.

class ToyClips:
    """Clips drawn on the fly (toy_world.py). count=None: a million, more than a run ever sees."""

    classes = toy_world.SUBJECTS

    def __init__(self, kind="video", frames=16, size=64, count=None, seed=0, drop=0.4):
        self.kind, self.frames, self.size, self.seed, self.drop = kind, frames, size, seed, drop
        self.count = count or 1 << 20

    def __len__(self):
        return self.count

    def identity(self):
        """What these clips are: equal for two data sets that give equal clips."""
        return {"data": f"toy {self.kind}", "clips": self.count, "frames": self.frames, "size": self.size,
                "seed": self.seed, "drop": self.drop, "world": toy_world.VERSION}

    def item(self, index, epoch=0):
        """The index-th clip of the world. Another epoch says other words of the same clip."""
        spec, caption = self.told(index, epoch)
        return {"video": to_video(toy_world.render(spec, self.frames, self.size)),          # (3,T,H,W)
                "caption": caption, "place": f"{spec.subject}/{index}", "spec": spec}

    def told(self, index, epoch=0):
        """Spec and caption of the index-th clip, nothing drawn yet."""
        spec = toy_world.sample_spec(self.seed, index, self.kind)
        if self.frames == 1:
            spec = dataclasses.replace(spec, motion="")           # nobody sees motion in a still
        toss = int(np.random.default_rng([self.seed, epoch, index]).integers(1 << 31))
        return spec, toy_world.caption(spec, toss, self.drop)

    def words(self, index, epoch=0):
        """Its caption alone: what LatentCache asks for."""
        return self.told(index, epoch)[1]

    @functools.cached_property
    def captions(self):
        return [self.words(index) for index in range(self.count)]


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
        """Where each film lies: folders.py reads its class from that."""
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
        return {"video": to_video(crop_clip(clip, self.size, self.crop, self.flip, rng))}      # (3,T,H,W)

    def path(self, index):
        """Where on this machine."""
        return os.path.join(self.root, self.names[index])

    def decode(self, index, frames, numbers):
        """These frames, of a file (`frames`: its time stamps) or of a folder (its names)."""
        if self.names[index] not in self.folders:
            return read_some(self.path(index), frames, numbers, self.short, self.long)   # (T,h,w,3)
        pictures = [open_image(self.path(index), frames[number], self.short, self.long)
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
            first = open_image(path, frames[0], self.short, self.long)
            fits = first.nbytes * len(frames) <= share
            return frames, times, self.decode(index, frames, range(len(frames))) if fits else None
        pts, times = scan_times(path)
        with VideoFile(path, self.short, self.long) as film:
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
        picture = open_image(self.root, self.names[index], self.short, self.long)      # (h,w,3)
        return {"video": to_video(crop_clip(picture[None], self.size, self.crop, self.flip, rng))}     # (3,1,H,W)


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


# ---------------------------------------------------------------------------------------- a folder's report

# Before a week on eight GPUs one wants to know what is in the folder: how many hours, which sizes and rates,
# whence the captions, and which files are broken. So each file is tried, as training will try it.

# Hours come from time stamps and not from headers, whose lengths and rates are often guesses; a folder of
# frames has none, so it counts in frames alone.
def measure(dataset, index):
    """(frames, seconds or None, width, height) of a film, or of a picture with frames 1."""
    name = dataset.names[index]
    if isinstance(dataset, ImageFolder):
        height, width = open_image(dataset.root, name).shape[:2]
        return 1, None, width, height
    frames, times, _ = dataset.film(index)
    if name in dataset.folders:
        height, width = open_image(dataset.path(index), frames[0]).shape[:2] if frames else (0, 0)
        return len(times), None, width, height
    with VideoFile(dataset.path(index)) as film:
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


def main():
    parser = argparse.ArgumentParser(description="what of a folder can be trained on", allow_abbrev=False)
    parser.add_argument("folder", help="videos, folders of frames and pictures at any depth, or a "
                        ".zip of pictures")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--fps", type=float, default=None)
    flags = parser.parse_args()
    scan(flags.folder, flags.frames, flags.size, stride=flags.stride, fps=flags.fps)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        polite(main)
    else:
        from demos.show_data import main as show

        show()
