"""latent_cache.py - latents encoded once, in shards that are each written whole, and read back as a data set.

Shapes: latents (n,C,T',h,w) raw, before (z - shift) * scale; the text encoders' vectors once a caption."""

import functools
import hashlib
import json
import math
import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
import torch
from tqdm import tqdm

from support.checkpoints import save_tensors, sweep
from support.cli import UserError, stop_if_asked
from support.order import load


# -------------------------------------------------------------------------------------------- cached latents

# Encoding costs a quarter of a step of VideoDiT and nine tenths of one of Latte-S, and a frozen VAE gives the
# same answer every time. So latents may be encoded once, into shards that are each written whole. Stored are
# raw posterior means, before (z - shift) * scale; the constants stand beside them. The price: of each video
# only the windows that were encoded are ever seen, and a caption's vectors (154 x 4096 for SD3, 1.3 MB) weigh
# more than its clip; so they are stored once for each different caption, under a hash of it.
#
#     FOLDER/00000-of-00012.safetensors    latents (n,C,T',h,w); as metadata captions, places and `made`
#     FOLDER/text/3f/9c0a...safetensors    what the text encoders say of one caption
#
# A cache is a promise that may be broken behind its back: another VAE, another crop, a video replaced under
# its old name. So `made` holds all that the latents depend on. Before anything is read, write_cache compares
# it with what the run would make (identity() of the data set, fingerprint() of the VAE), and names what
# differs.

SHARD = re.compile(r"(\d{5})-of-(\d{5})\.safetensors")


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


# Is a cached latent as good as a fresh one? Nearly: the mean of the posterior instead of a draw from it
# (their difference is far below the noise that training adds), in 16 bits. What is lost is variety: `epochs`
# windows of each video are kept; the papers see a new one on each of a million steps.
def write_cache(folder, dataset, encode, batch, vae, *, shift=0.0, scale=1.0, epochs=1, shard=512,
                dtype=torch.float16, workers=0, rank=0, world_size=1, text=None, identity=None):
    """Encode every item (`epochs` windows of each video) into NNNNN-of-MMMMM.safetensors under `folder`.

    encode    batch -> {"latent": (B,C,T',h,w) raw, ...}; it is given `batch` items at a time
    vae       fingerprint() of the encoder: a cache of another one's latents is refused
    text      [captions] -> {"context": (B,L,D), ...}, asked once for each different caption, `batch` at once
    identity  of the data, if another rank's holds for all; with "text", which names the text's encoders
    Shards that are there are kept, so an interrupted run goes on; ranks take every world_size-th shard.
    Returns how they were made."""
    total, folder = epochs * len(dataset), Path(folder)
    sweep(folder)
    made = {"vae": vae, "text": "", "shift": shift, "scale": scale, **(identity or dataset.identity()),
            "items": total, "shard": shard}
    for path in shards_of(folder)[:1]:
        check_made(path, made)
    shards = math.ceil(total / shard)
    with tqdm(total=total // world_size, unit="clip", desc=f"encode to {folder}", disable=rank > 0) as bar:
        for number in range(rank, shards, world_size):
            path = folder / f"{number:05d}-of-{shards:05d}.safetensors"
            positions = range(number * shard, min((number + 1) * shard, total))
            if path.exists():
                check_made(path, made)                      # another run may be writing beside this one
                bar.update(len(positions))
            else:
                rows = [divmod(position, len(dataset))[::-1] for position in positions]     # (index, epoch)
                batches = load(dataset, in_batches(rows, batch), workers)
                write_shard(path, batches, encode, dtype, made, bar)
            if text:
                captions = cache_made(path)[1]
                write_texts(folder, captions, lambda asked: floats_as(text(asked), dtype), batch)
    return made


def in_batches(items, batch):
    return [items[start:start + batch] for start in range(0, len(items), batch)]


def floats_as(tensors, dtype):
    """On the CPU, floats in this dtype; token numbers stay whole."""
    return {key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
            for key, tensor in tensors.items()}


# Only whole shards exist. If a process dies inside one, the next run makes it again, from its positions
# alone; nobody has to ask what is done, so ranks need no lock: each has the shards of its own number.
def write_shard(path, batches, encode, dtype, made, bar):
    """One file: tensors, and as metadata the captions and how it was made. Whole or not at all."""
    parts, captions, places = [], [], []
    for batch in batches:
        parts.append(floats_as(encode(batch), dtype))
        captions += batch["caption"]
        places += batch["place"]
        bar.update(len(batch["caption"]))
        stop_if_asked(f"the encoding to {path.parent}")
    state = {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]}
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise UserError(f"latents for {path} are not finite in {dtype}; try bfloat16, or look at the VAE")
    metadata = {"made": json.dumps(made), "captions": json.dumps(captions), "places": json.dumps(places)}
    save_tensors(path, state, metadata)                                                  # (n,C,T',h,w), ...


# Prompts repeat far more than clips do (a class has a hundred videos), and an encoder of 5 billion weights is
# the dearest part of a cache. So first it is seen which captions are new, and only these are read.
def write_texts(folder, captions, read, batch):
    """What the text encoders say of these captions, as far as it is not there yet."""
    missing = [caption for caption in dict.fromkeys(captions) if not text_path(folder, caption).exists()]
    for asked in in_batches(missing, batch):
        vectors = read(asked)                                                            # (n,L,D), ...
        for row, caption in enumerate(asked):
            state = {key: tensor[row].contiguous() for key, tensor in vectors.items()}   # (L,D), ...
            save_tensors(text_path(folder, caption), state, {})
        stop_if_asked(f"the encoding to {folder}")


# Text is found by its hash: the file of a caption is where 128 bits of its SHA-256 say. No list has to be
# kept or locked, equal captions meet in one file whoever writes it, and a million files are spread over 256
# folders. (Two captions with one hash are less likely than a meteorite in the disk.)
def text_path(folder, caption):
    """Where a cache keeps it."""
    mark = hashlib.sha256(caption.encode(errors="replace")).hexdigest()[:32]
    return Path(folder) / "text" / mark[:2] / f"{mark[2:]}.safetensors"


def cache_made(path):
    """(how it was made, captions, places) of a shard."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            made, captions, places = (json.loads(about[key]) for key in ("made", "captions", "places"))
        return dict(made), captions, places
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is truncated or no latent cache ({error}); delete it and encode again")


# A refusal names what differs, "stride 1 instead of 3", because the way out depends on it: a forgotten flag
# is added, a new data set gets a folder of its own, and a cache is only deleted by a person.
def check_made(path, want):
    """Latents of another VAE look like noise to this one's decoder: refuse, naming what differs."""
    made, *_ = cache_made(path)
    differs = [f"{key} {made.get(key)} instead of {want[key]}" for key in want if made.get(key) != want[key]]
    if differs:
        raise UserError(f"the latent cache in {path.parent} was made differently: {'; '.join(differs)}; "
                        "delete it, or give another folder with --cache")


@functools.lru_cache(maxsize=4096)
def open_shard(path, process):
    """Memory-mapped, one handle a process."""
    return safe_open(path, "pt")


# Safetensors files are mapped, not read: a row of a shard is a few pages of the disk, and the kernel keeps
# those that are asked for often. So a cache of a terabyte trains in a few gigabytes of memory, and opening it
# reads the headers alone, in which the captions stand.
class LatentCache:
    """What write_cache wrote, as a dataset of {"latent": (C,T',h,w) raw, "caption": str, "place": str, ...}.

    words     (index, epoch) -> caption, for captions that change with the epoch; None: those stored"""

    def __init__(self, folder, words=None):
        self.folder = Path(folder)
        self.paths = shards_of(folder)
        self.words = words or self.stored_words
        shards = int(SHARD.fullmatch(self.paths[0].name)[2])
        if len(self.paths) != shards:
            raise UserError(f"the latent cache in {folder} has {len(self.paths)} of {shards} shards: it was "
                            "interrupted; run the encoding again to go on")
        self.captions, self.places = [], []
        for path in self.paths:
            self.made, captions, places = cache_made(path)
            self.captions += captions
            self.places += places

    def __len__(self):
        return len(self.captions)

    def stored_words(self, index, epoch=0):
        return self.captions[index]

    def identity(self):
        """Of the data that were encoded, and of their encoders."""
        return self.made

    def item(self, index, epoch=0):
        shard, row = divmod(index, self.made["shard"])
        file = open_shard(str(self.paths[shard]), os.getpid())
        tensors = {key: file.get_slice(key)[row] for key in file.keys()}                 # (C,T',h,w)
        caption = self.words(index, epoch)
        if self.made["text"]:
            tensors |= self.text(caption)                                                # (L,D), (P)
        return {"caption": caption, "place": self.places[index], **floats_as(tensors, torch.float32)}

    def text(self, caption):
        """What the text encoders said of it, when the cache was written."""
        try:
            return load_file(text_path(self.folder, caption))
        except (OSError, SafetensorError) as error:
            raise UserError(f'{text_path(self.folder, caption)}, the text of "{caption[:60]}", is missing or '
                            f"broken ({error}); run the encoding again")
