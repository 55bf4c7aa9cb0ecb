"""data.py - what we train on: the toy world, folders of real clips and pictures, cached latents.
Paper    VideoDiT 4.1: clips at the film's own rate, about 25 a second, cropped square; Latte 4.1: 16 frames,
         every 3rd, mirrored at random
Shapes   an item is {"video": (3,T,H,W) in [-1,1], "caption": str}; a batch stacks them to (B,3,T,H,W)
         B clips, T frames, C channels, H W pixels or latent size
Time     item(index, epoch) is a pure function of (seed, epoch, index) and of the files: there is no loader
         state to save, so any step can be resumed, on any number of ranks
Differs  Latte reads whole files, dies on a short one and calls 0,3,..,21,25,28 a stride of 3; here a broken
         or short file is skipped, counted and named, and a stride is a stride
Reads    after world.py and video.py, before vae.py
Run me   python data.py              # CPU, 3 s: two ranks share an epoch
         python data.py FOLDER       # what of a folder can be trained on, what cannot, and why"""

import argparse
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm import tqdm

import world
from checkpoint import UserError, polite, write_atomic
from video import (IMAGES, VIDEOS, Film, Unusable, contact_sheet, cut, read_all, read_picture, read_some,
                   scan_times, to_video)

log = logging.getLogger("data")
UNSEEN = 20_250_101    # the seed of every toy clip that is judged: no training draws its clips from it


# --------------------------------------------------------------------------------------------- the toy world

class ToyClips:
    """Clips drawn on the fly (world.py). count=None: a million, more than a run ever sees."""

    def __init__(self, kind="video", frames=16, size=64, count=None, seed=0, drop=0.4):
        self.kind, self.frames, self.size, self.seed, self.drop = kind, frames, size, seed, drop
        self.count = count or 1 << 20
        self.source = f"toy {kind}: {self.count} clips, {frames} x {size} x {size}, seed {seed}, drop {drop}"

    def __len__(self):
        return self.count

    def item(self, index, epoch=0):
        """The index-th clip of the world. Another epoch says other words of the same clip."""
        spec, caption = self.told(index, epoch)
        return {"video": to_video(world.render(spec, self.frames, self.size)),          # (3,T,H,W)
                "caption": caption, "spec": spec}

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


def prompt_at(source):
    """index -> prompt, from "toy:KIND", a text file (a prompt a line), or a folder of classes such as
    UCF101's, whose names become prompts: VideoDiT 4.2, zero-shot. They are dealt round and round."""
    if toy := parse_toy(source):
        return lambda index: world.caption(world.draw(UNSEEN + toy[1], index, toy[0]))
    path = Path(source)
    if path.is_dir():
        lines = [class_prompt(folder.name) for folder in sorted(path.iterdir()) if folder.is_dir()]
    elif path.is_file():
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    else:
        raise UserError(f"--prompts {source}: neither toy:KIND, nor a text file, nor a folder of classes")
    if not lines:
        raise UserError(f"--prompts {source}: no prompt in it")
    return lambda index: lines[index % len(lines)]


def class_prompt(name):
    """ApplyEyeMakeup -> apply eye makeup. ASSUMED: the paper only says that it is zero-shot."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Za-z][a-z]*|\d+", name)).lower()


# ------------------------------------------------------------------------------------------- names, captions

def list_files(root):
    """Every file under a folder, in "photos.zip" or in "photos.zip!/train": sorted, relative to the root.
    Hidden files and folders (.DS_Store, ._clip.mp4, __MACOSX) are nobody's data."""
    archive, _, inside = str(root).partition("!/")
    if zipfile.is_zipfile(archive):
        prefix = inside.rstrip("/") + "/" if inside else ""
        names = [name[len(prefix):] for name in open_zip(archive, os.getpid()).namelist()
                 if name.startswith(prefix) and not name.endswith("/")]
    elif os.path.isdir(root):
        names = [os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
                 for folder, _, found in os.walk(root, followlinks=True) for name in found]
    else:
        raise UserError(f"{root} is neither a folder nor a .zip of pictures; give 'toy' or the path of one")
    return sorted(name for name in names
                  if not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")))


@functools.lru_cache(maxsize=8)
def open_zip(path, process):
    """One handle a process: forked workers that share a handle would share, and move, its file position."""
    return zipfile.ZipFile(path)


def read_bytes(root, name):
    """The content of one of list_files' names."""
    archive, _, inside = str(root).partition("!/")
    if os.path.isdir(root):
        return Path(root, name).read_bytes()
    return open_zip(archive, os.getpid()).read(f"{inside.rstrip('/')}/{name}" if inside else name)


def find(root, names, extensions, what):
    """The names that end in one of the extensions; if none does, an error that says what is there instead."""
    found = [name for name in names if name.lower().endswith(extensions)]
    if not found:
        kinds = sorted({os.path.splitext(name)[1].lower() or name for name in names})
        there = f"{len(names)} other files ({', '.join(kinds[:6])})" if names else "no file at all"
        raise UserError(f"no {what} in {root} or below: looked for {' '.join(extensions)}, found {there}")
    return found


def group_frames(names, frames):
    """Pictures -> clips: those of one folder, in the order of their numbers (2.jpg comes before 10.jpg)."""
    folders = {}
    for name in names:
        folders.setdefault(name if frames == 1 else name.rpartition("/")[0], []).append(name)
    by_number = lambda name: [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
    return [sorted(group, key=by_number) for group in folders.values()]


def find_captions(root, names, of):
    """A caption for each name in `of`: the .txt beside it, else its row of metadata.csv or metadata.jsonl at
    the root, else the name of its folder, else, at the root, its own name."""
    present, table, captions = set(names), {}, []
    for name in ("metadata.jsonl", "metadata.csv"):                       # .csv is read last, and wins
        if name in present:
            table |= read_table(root, name)
    for name in of:
        stem = name.rsplit(".", 1)[0]
        text = " ".join(decode(read_bytes(root, stem + ".txt")).split()) if stem + ".txt" in present else ""
        place = stem.split("/")
        captions.append(text or table.get(plain(name)) or (place[-2] if len(place) > 1 else place[-1])
                        .replace("_", " ").replace("-", " ").strip())
    return captions


def read_table(root, name):
    """{file: caption} of a metadata file. The columns go by any of the names that people use."""
    text, table = decode(read_bytes(root, name)), {}
    try:
        rows = (list(csv.DictReader(io.StringIO(text))) if name.endswith(".csv")
                else [json.loads(line) for line in text.splitlines() if line.strip()])
        for row in rows:
            file, = [row[key] for key in ("file_name", "path", "video", "image") if row.get(key)][:1]
            table[plain(file)] = next((row[key] for key in ("text", "caption", "prompt") if row.get(key)), "")
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{root}/{name}, row {len(table) + 1}: {error}; each row needs a file_name (or path, "
                        "video, image) and a text (or caption, prompt)")
    return table


def plain(name):
    """One spelling of a path: macOS writes é as e + accent, Linux as one letter."""
    return unicodedata.normalize("NFC", os.path.normpath(name).replace(os.sep, "/"))


def decode(data):
    """utf-8, with or without the mark that Windows puts in front."""
    return data.decode("utf-8-sig", errors="replace")


# ------------------------------------------------------------------------------------------------ real clips

class ClipFolder:
    """Real clips at any depth under a folder: of each, a random window of `frames` frames an epoch.

    stride    every stride-th frame as it comes; or fps: frames nearest to that many a second, by time stamp
    part      the portion of each film that may be seen: (0, 0.75) to train on, (0.75, 1) to test on
    short     the short side before the crop; None: size, so that the crop sees as much as it can
    memory    bytes of decoded frames kept, in each process. A film's share is memory / number of films: if it
              fits, it is decoded once and stays; if not, each window is read by seeking"""

    def __init__(self, root, frames, size, stride=1, fps=None, flip=False, seed=0, part=(0.0, 1.0),
                 crop="random", short=None, memory=1 << 30):
        if ".zip" in str(root) and not os.path.isdir(root):
            raise UserError(f"{root}: clips are read from a folder; unpack it first")
        self.root, self.frames, self.size, self.stride, self.fps = str(root), frames, size, stride, fps
        self.flip, self.seed, self.part, self.crop, self.short = flip, seed, part, crop, max(short or 0, size)
        names = list_files(root)
        self.names = find(root, names, VIDEOS, "videos")
        self.captions = find_captions(root, names, self.names)
        self.share, self.films, self.skipped = memory // len(self.names), {}, {}
        self.source = (f"clips {describe(root, self.names)}, {frames} x {size} x {size}, stride {stride}, "
                       f"fps {fps}, flip {flip}, part {part}, {crop} crop of {self.short}, seed {seed}")
        self.item(0)                                             # nothing usable: say so now, not in a worker

    def __len__(self):
        return len(self.names)

    def item(self, index, epoch=0):
        return first_usable(self, index, epoch)

    def read(self, index, rng):
        """One clip of one film, as rng has it, or Unusable."""
        pts, times, decoded = self.film(index)
        wanted = self.window(times, rng)                                                 # (T,)
        if decoded is None:
            numbers, places = np.unique(wanted, return_inverse=True)
            clip = read_some(self.path(index), pts, numbers, self.short)[places]         # (T,h,w,3)
        else:
            clip = decoded[wanted]
        clip = cut(clip, self.size, self.crop, self.flip, rng)                           # (T,H,W,3)
        return {"video": to_video(clip), "caption": self.captions[index]}

    def path(self, index):
        return os.path.join(self.root, self.names[index])

    def film(self, index):
        """(pts, seconds, frames or None) of a film; looked at once. A film that cannot be used stays so."""
        if index not in self.films:
            try:
                self.films[index] = self.look(self.path(index))
            except Unusable as reason:
                self.films[index] = str(reason)
        if isinstance(self.films[index], str):
            raise Unusable(self.films[index])
        return self.films[index]

    def look(self, path):
        """Decoded whole if it fits its share of memory: which of the two never depends on luck."""
        pts, times = scan_times(path)
        with Film(path, self.short) as film:
            fits = len(times) * film.width * film.height * 3 <= self.share
        if fits:
            times, decoded = read_all(path, self.short)
            self.window(times, np.random.default_rng(0))           # too short: found out before it is kept
            return None, times, decoded
        return pts, times, None

    def window(self, times, rng):
        """Numbers of the frames of one clip, drawn from our part of the film."""
        first, last = (round(share * len(times)) for share in self.part)
        if self.fps is None:
            starts = last - first - (self.frames - 1) * self.stride
            if starts < 1:
                raise Unusable(f"{last - first} frames, {(self.frames - 1) * self.stride + 1} needed")
            return first + rng.integers(starts) + self.stride * np.arange(self.frames)   # (T,)
        seconds = (self.frames - 1) / self.fps
        ours = times[first:last]
        starts = np.flatnonzero(ours + seconds <= ours[-1:] + 0.002)                     # mkv rounds to 1 ms
        if not len(starts):
            raise Unusable(f"{np.ptp(ours) if len(ours) else 0:.2f} seconds, {seconds:.2f} needed")
        moments = ours[rng.choice(starts)] + np.arange(self.frames) / self.fps           # (T,)
        return first + np.searchsorted((ours[1:] + ours[:-1]) / 2, moments)              # the nearest in time


def first_usable(dataset, index, epoch):
    """The item, or, when its file cannot be used, another one: which is drawn from (seed, epoch, index), so
    that every rank, worker and resumed run puts the same clip in its place."""
    def order():
        yield index
        yield from np.random.default_rng([dataset.seed, epoch, index]).permutation(len(dataset)).tolist()
    for candidate in order():
        try:
            return dataset.read(candidate, np.random.default_rng([dataset.seed, epoch, index, candidate]))
        except Unusable as reason:
            name, skipped = dataset.names[candidate], dataset.skipped
            if name not in skipped:
                skipped[name] = str(reason)
                log.warning("skipped %s in %s: %s (%d of %d files skipped so far)",
                            name, dataset.root, reason, len(skipped), len(dataset))
    reasons = [f"{name}: {reason}" for name, reason in dataset.skipped.items()]
    raise UserError(f"nothing usable in {dataset.root}: all {len(dataset)} files were skipped; "
                    f"{'; '.join(reasons[:3])}{' ...' if len(reasons) > 3 else ''}")


def describe(root, names):
    """A folder in a line, the same wherever it lies: its name and a checksum of what is in it."""
    return f"{Path(root).name}: {len(names)} files {zlib.crc32(chr(10).join(names).encode()):08x}"


# -------------------------------------------------------------------------------------------------- pictures

class ImageFolder:
    """Pictures at any depth under a folder or in a .zip, as clips of one frame.

    root may be "photos.zip" or, for a part of it, "photos.zip!/train"."""

    def __init__(self, root, size, flip=False, seed=0, crop="random"):
        self.root, self.size, self.flip, self.seed, self.crop = str(root), size, flip, seed, crop
        names = list_files(root)
        self.names = find(root, names, IMAGES, "pictures")
        self.captions, self.skipped = find_captions(root, names, self.names), {}
        self.source = (f"pictures {describe(root, self.names)}, {size} x {size}, flip {flip}, {crop} crop, "
                       f"seed {seed}")
        self.item(0)

    def __len__(self):
        return len(self.names)

    def item(self, index, epoch=0):
        return first_usable(self, index, epoch)

    def read(self, index, rng):
        """One picture, cut as rng has it, or Unusable."""
        picture = open_picture(self.root, self.names[index], self.size)                  # (h,w,3)
        clip = cut(picture[None], self.size, self.crop, self.flip, rng)                  # (1,H,W,3)
        return {"video": to_video(clip), "caption": self.captions[index]}


def open_picture(root, name, short=None):
    """read_picture() of one of list_files' names, or Unusable."""
    try:
        return read_picture(io.BytesIO(read_bytes(root, name)), short)
    except Exception as error:          # a broken file makes a decoder raise almost anything
        raise Unusable(f"{name} is not a readable picture ({error})")


def open_source(name, frames, size, seed=0, count=None, stride=1, fps=None, flip=False, part=(0.0, 1.0),
                crop="random", short=None):
    """What --data and --images mean: "toy", a folder, or, for pictures, a .zip.

    One frame asked of a folder of films gives single frames of them."""
    if str(name) == "toy":
        return ToyClips("video" if frames > 1 else "image", frames, size, count, seed)
    if frames == 1 and any(file.lower().endswith(IMAGES) for file in list_files(name)):
        return ImageFolder(name, size, flip, seed, crop)
    return ClipFolder(name, frames, size, stride, fps, flip, seed, part, crop, short)


# --------------------------------------------------------------------------------------------------- batches

def schedule(count, batch, seed, start_step=0, rank=0, world_size=1):
    """For every step, this rank's rows [(index, epoch), ...], for ever.

    Position p of the run is card p mod count of deck p // count, and each epoch's deck is shuffled from
    (seed, epoch). A step deals batch * world_size cards: two ranks with half the batch see what one sees."""
    # ASSUMED: both papers are silent on the order; a new permutation each epoch, straight on into the next.
    deck, dealt = None, -1
    for step in itertools.count(start_step):
        start = (step * world_size + rank) * batch
        rows = []
        for epoch, card in (divmod(position, count) for position in range(start, start + batch)):
            if epoch != dealt:
                deck, dealt = np.random.default_rng([seed, epoch]).permutation(count), epoch
            rows.append((int(deck[card]), epoch))
        yield rows


class Rows:
    """What torch's DataLoader asks of a map: the item at (index, epoch)."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, row):
        return {**self.dataset.item(*row), "index": torch.tensor(row[0])}


def collate(items):
    """Tensors are stacked, everything else is listed: {"video": (B,3,T,H,W), "caption": [B strings], ...}."""
    return {key: torch.stack([item[key] for item in items]) if torch.is_tensor(items[0][key])
            else [item[key] for item in items] for key in items[0]}


def load(dataset, rows, workers=0):
    """Batches in the order of `rows`, fetched ahead by `workers` processes. The loader gets a generator of
    its own: it draws a number at the start, and that must not be one of the training's."""
    return iter(DataLoader(Rows(dataset), batch_sampler=rows, num_workers=workers, collate_fn=collate,
                           generator=torch.Generator()))


def batches(dataset, batch, seed=0, start_step=0, rank=0, world_size=1, workers=0):
    """Endless batches from start_step on: the very batches an uninterrupted run would see there."""
    count = len(dataset)
    if count < batch * world_size and rank == 0:
        log.warning("%d items, a batch of %d: every batch repeats some", count, batch * world_size)
    return load(dataset, schedule(count, batch, seed, start_step, rank, world_size), workers)


# -------------------------------------------------------------------------------------------- cached latents
# Encoding costs a quarter of a step of VideoDiT and nine tenths of one of Latte-S, and a frozen VAE gives the
# same answer every time. So latents are encoded once, into shards that are each written whole.
# Stored are raw posterior means, before (z - shift) * scale; the constants stand beside them.

def fingerprint(net):
    """Sixteen hex digits that two networks share only if every weight is the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_cache(folder, dataset, encode, batch, vae, shift=0.0, scale=1.0, epochs=1, shard=512,
                dtype=torch.float16, workers=0, rank=0, world_size=1):
    """Encode every item (`epochs` windows of each film) into NNNNN-of-MMMMM.safetensors under `folder`.

    encode    batch -> {"latent": (B,C,T',h,w) raw, ...}; what else it returns ("context") is stored beside it
    vae       fingerprint() of the encoder: LatentCache refuses latents of another one
    Shards that are there are kept, so an interrupted run goes on; ranks take every world_size-th shard."""
    total, folder = epochs * len(dataset), Path(folder)
    made = {"vae": vae, "shift": shift, "scale": scale, "source": dataset.source, "items": total,
            "shard": shard}
    for path in sorted(folder.glob("*-of-*.safetensors"))[:1]:
        check_made(folder, cache_made(path)[0], made)
    shards = math.ceil(total / shard)
    with tqdm(total=total // world_size, unit="clip", desc=f"encode to {folder}", disable=rank > 0) as bar:
        for number in range(rank, shards, world_size):
            path = folder / f"{number:05d}-of-{shards:05d}.safetensors"
            positions = range(number * shard, min((number + 1) * shard, total))
            if not path.exists():
                write_shard(path, dataset, encode, batch, positions, made, dtype, workers)
            bar.update(len(positions))


def write_shard(path, dataset, encode, batch, positions, made, dtype, workers):
    """One file: tensors, and as metadata the captions and how it was made. It appears whole or not at all."""
    rows = [divmod(position, len(dataset))[::-1] for position in positions]              # (index, epoch)
    chunks = [rows[start:start + batch] for start in range(0, len(rows), batch)]
    parts, captions = [], []
    for loaded in load(dataset, chunks, workers):
        parts.append({key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
                      for key, tensor in encode(loaded).items()})
        captions += loaded["caption"]
    state = {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]} # (B,C,T',h,w)
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise UserError(f"latents for {path} are not finite in {dtype}; try bfloat16, or look at the VAE")
    metadata = {"made": json.dumps(made), "captions": json.dumps(captions)}
    write_atomic(path, lambda temporary: save_file(state, temporary, metadata=metadata))


def cache_made(path):
    """(how it was made, captions) of a shard."""
    try:
        with safe_open(path, "pt") as file:
            return tuple(json.loads(file.metadata()[key]) for key in ("made", "captions"))
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} is truncated or no latent cache ({error}); delete it and encode again")


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


class LatentCache:
    """What write_cache wrote, as a dataset of {"latent": (C,T',h,w) raw, "caption": str, ...}.

    vae       the fingerprint that the latents must have been made with; None trusts them
    words     (index, epoch) -> caption, for captions that change with the epoch; None: those stored"""

    def __init__(self, folder, vae=None, words=None):
        self.paths = sorted(Path(folder).glob("*-of-*.safetensors"))
        if not self.paths:
            raise UserError(f"no latent cache in {folder}; encode one first, or check --cache")
        shards = int(self.paths[0].stem.split("-of-")[1])
        if len(self.paths) != shards:
            raise UserError(f"the latent cache in {folder} has {len(self.paths)} of {shards} shards: it was "
                            "interrupted; run the encoding again to go on")
        self.made = cache_made(self.paths[0])[0]
        if vae is not None:
            check_made(folder, self.made, {"vae": vae})
        self.words = words
        self.written = [path.stat().st_mtime_ns for path in self.paths]
        self.captions = [caption for path in self.paths for caption in cache_made(path)[1]]
        self.shift, self.scale, self.shard = (self.made[key] for key in ("shift", "scale", "shard"))
        self.source = self.made["source"]

    def __len__(self):
        return len(self.captions)

    def item(self, index, epoch=0):
        shard, row = divmod(index, self.shard)
        file = open_shard(str(self.paths[shard]), self.written[shard], os.getpid())
        tensors = {key: file.get_slice(key)[row] for key in file.keys()}                 # (C,T',h,w)
        caption = self.words(index, epoch) if self.words else self.captions[index]
        return {"caption": caption, **{
            key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}}


# ------------------------------------------------------------------------------------------------------ demo

def scan(root, frames=16, size=64, stride=1, fps=None, sheet="out/data.png"):
    """Try every file of a folder; print what is usable, what is skipped and why; save a contact sheet."""
    names, shown, labels = list_files(root), [], []
    if not any(name.lower().endswith(VIDEOS + IMAGES) for name in names):
        find(root, names, VIDEOS + IMAGES, "videos or pictures")
    for extensions, what in ((VIDEOS, "videos"), (IMAGES, "pictures")):
        if not any(name.lower().endswith(extensions) for name in names):
            continue
        dataset = ClipFolder(root, frames, size, stride, fps) if what == "videos" else ImageFolder(root, size)
        for index in tqdm(range(len(dataset)), desc=what):
            item = dataset.item(index)
            if len(labels) < 16 and dataset.names[index] not in dataset.skipped:
                shown.append(item["video"])
                labels.append(f"{dataset.names[index]}: {item['caption']}")
        print(f"{len(dataset) - len(dataset.skipped)} of {len(dataset)} {what} in {root} are usable")
    contact_sheet(sheet, shown, labels)
    print(f"the first of them are in {sheet}")


def demo():
    """Deal one epoch to two ranks. Returns the times that the rarest and the commonest clip were seen."""
    decks = [schedule(60, batch=6, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    seen = [index for _ in range(5) for deck in decks for index, _ in next(deck)]
    counts = np.bincount(seen, minlength=60)
    return int(counts.min()), int(counts.max())


def main():
    parser = argparse.ArgumentParser(description="what of a folder can be trained on", allow_abbrev=False)
    parser.add_argument("folder", nargs="?", help="videos and pictures at any depth, or a .zip of pictures")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--fps", type=float, default=None)
    flags = parser.parse_args()
    if flags.folder:
        return scan(flags.folder, flags.frames, flags.size, flags.stride, flags.fps)
    low, high = demo()
    print(f"two ranks saw each of 60 clips between {low} and {high} times (right: 1 and 1)")


if __name__ == "__main__":
    polite(main)
