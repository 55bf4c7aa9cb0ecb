"""order.py - randomness and data order that can be replayed: functions of (seed, step, clip) alone.

A resumed run, or one on other ranks, draws the same noise and meets the same clips. Shapes: noise (B,...)."""

import hashlib
import itertools
import logging
import math

import numpy as np
import torch
from torch.utils.data import DataLoader

from support.cli import UserError
from support.video_io import to_bytes

log = logging.getLogger("data")

NOISE, TIME, DROP, SAMPLING = range(4)    # streams of keyed_noise: same step and clip, four unrelated draws


# ---------------------------------------------------------------------------- randomness that can be replayed
# Each clip of each step needs three draws: its noise, its time, and whether its prompt is dropped. torch's
# global generator hands out numbers in the order of asking, so a run that was resumed, or that two GPUs
# share, would draw others. Here a draw depends on its key alone, and 10 steps are 5 steps, a kill and 5 more,
# to the last bit (test_noise_does_not_depend_on_the_global_generator).


def keyed_generator(seed, step, index, stream=NOISE):
    """A CPU generator for one clip of one step; the hash makes one well-mixed seed of four small numbers."""
    key = hashlib.sha256(f"{seed},{step},{index},{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))


def keyed_noise(shape, seed, step, first_index=0, device="cpu", stream=NOISE, draw=torch.randn):
    """Row i is clip first_index + i of the global batch; draw=torch.rand gives uniform numbers. On the CPU,
    in float32, because a GPU's generator gives other numbers for the same seed."""
    keys = [keyed_generator(seed, step, first_index + i, stream) for i in range(shape[0])]
    noise = torch.stack([draw(shape[1:], generator=key) for key in keys])                       # (B,...)
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        noise = noise.pin_memory()      # its copy waits in the GPU's queue, and the CPU goes on to the next
    return noise.to(device, non_blocking=noise.is_pinned())


# --------------------------------------------------------------------------------------------------- batches

# An epoch is a shuffled deck: each clip once, in an order that nobody chose. The usual way is to shuffle a
# list of all numbers, which for ten million videos is 80 MB and a second, an epoch, in each of 64 processes,
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
# a * b is a little more than N, so now and then the answer is no clip: then it is enciphered once more.
# Enciphering again and again walks along a cycle of the permutation: it comes back below N, and no two
# positions end at one clip.

# The hash has to be good, or order shows: the finish of splitmix64 is, in which every bit of the input flips
# half of the output's. It is two multiplications a number, on whole arrays at once: dealing a batch of 64 takes a
# third of a millisecond. test_the_order_looks_like_chance throws dice with it.

def mix(*numbers):
    """64 bits that look like chance, of whole numbers or arrays of them (splitmix64's finish, each number
    added in turn)."""
    state = np.zeros(1, np.uint64)                       # arrays wrap around; a lone number would complain
    for number in numbers:
        if not isinstance(number, np.ndarray):
            number = np.uint64(int(number) % 2 ** 64)
        state = (state ^ number) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return state


# A toss is a coin for a step: VideoDiT A.2 takes clips on a step with probability p, images otherwise, and
# all ranks must throw alike, or they wait for each other. As tosses are a function of the step, how many of
# the first 200,000 fell on clips is counted in 16 ms, and a resumed run knows where both sources stand.
def toss(seed, steps):
    """Numbers in [0,1), one a step, the same for ever: for a choice that all ranks have to make alike."""
    return (mix(seed, np.asarray(steps, np.uint64)) >> np.uint64(11)) / 2.0 ** 53


def deal(positions, count, seed):
    """Positions of the run -> (indices, epochs): card p mod count of deck p // count, without a deck."""
    epochs, cards = np.divmod(np.asarray(positions, np.uint64), np.uint64(count))        # (n,)
    rows = math.isqrt(count - 1) + 1
    a, b = np.uint64(rows), np.uint64(-(-count // rows))

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

    def __init__(self, dataset, as_bytes):
        self.dataset, self.as_bytes = dataset, as_bytes

    def __getitem__(self, row):
        item = self.dataset.item(*row)
        if self.as_bytes and "video" in item:
            item["video"] = to_bytes(item["video"])
        return item


# Clips of a batch have one shape, so their tensors can be stacked; captions cannot, and stay a list.
def collate(items):
    """Tensors are stacked, everything else is listed: {"video": (B,3,T,H,W), "caption": [B strings], ...}."""
    batch = {}
    for key in items[0]:
        values = [item[key] for item in items]
        batch[key] = torch.stack(values) if torch.is_tensor(values[0]) else values
    return batch


def load(dataset, rows, workers=0, pin=False, as_bytes=False):
    """Batches in the order of `rows`, fetched ahead by `workers` processes. The loader gets a generator of
    its own: it draws a number at the start, and that must not be one of the training's.

    For a GPU: pin puts them where it can read them by itself while it computes; as_bytes leaves videos the
    bytes that they came from, a quarter of the traffic (video_io.from_bytes)."""
    try:
        yield from DataLoader(Rows(dataset, as_bytes), batch_sampler=rows, num_workers=workers,
                              collate_fn=collate, generator=torch.Generator(), pin_memory=pin)
    except UserError as error:                   # a worker's comes with its whole stack, the reason last
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("support.cli.UserError: "))


def batches(dataset, batch, seed=0, start_step=0, rank=0, world_size=1, workers=0, *, pin=False,
            as_bytes=False):
    """Endless batches from start_step on: the very batches an uninterrupted run would see there."""
    count = len(dataset)
    if count < batch * world_size and rank == 0:
        log.warning("%d items, a batch of %d: every batch repeats some", count, batch * world_size)
    return load(dataset, schedule(count, batch, seed, start_step, rank, world_size), workers, pin, as_bytes)
