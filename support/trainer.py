"""trainer.py - behind train.py's loop: ranks, optimizers, EMA, states on disk, faults, the log.
Paper    none: an optimizer's name, its rate, the batch and the EMA's decay are all that the papers say of it
Shapes   a batch is what its stage made of it; nothing here looks at more than losses and gradients
Differs  Lightning, Accelerate and Trainer hide the loop behind hooks; here it is a page of train.py, and what
         it calls stands here"""

import contextlib
import datetime
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from support.checkpoints import (HOST, append_line, cut_log, load_strict, read_state, save_state, sweep,
                                 write_atomic)
from support.cli import STOP, UserError, first_line
from support.latent_cache import fingerprint
from support.ops import best_device, has_bf16


# A network learns by one small correction after another, and that is a page (train.py's step and fit). All of
# this file is there because a run outlives its machine: it is cut and goes on, it is spread over 1 or 64
# processes, its disk fills, a batch is broken. One rule holds it together: what a step does depends on the
# seed and on the step's number, and on nothing else - not on the number of processes, not on what happened
# before, not on a generator's state. Then a resumed run is the same run, and two processes are one, and both
# can be tested bit by bit.
#
#     source -> fetch -> step: loss, backward, clip, AdamW, EMA     a rank, on its share
#                          |         ^
#                          |         '-- mean gradient of all ranks     (DDP, or FSDP2 with --shard)
#                          v
#     every step          count those left out; has anybody been asked to stop?
#     every log_every     check(): is all well?   log(): a line of log.jsonl
#     every save_every    save(): OUT/NAME.safetensors, OUT/STAGE/state.pt, OUT/STAGE/STEP/
#     every preview_every preview(): OUT/STAGE/STEP.png
#
# The second rule is about waiting. A GPU computes what it was sent while Python already sends the next step;
# it idles as soon as Python asks for a number (a loss to print, an `if` on a tensor), because the answer has
# to be computed first. So inside a step nothing is asked: decisions are made by tensors, and the questions
# are collected for the steps in which something is shown anyway.


# ---------------------------------------------------------------------------------------------- ranks

# Data parallelism: every process ("rank") holds the whole network, computes the gradient of its share of the
# batch, and all take the mean of the gradients before they step. Equal weights plus equal gradients are equal
# weights: nothing else ever has to be sent. What can go wrong is that ranks disagree - one skips a step, one
# stops, one reads a file that another is still writing. So each decision here is either made of numbers that
# are equal everywhere (the mean gradient), or agreed on (the functions of this section).
#
# Two machines are no other case: each has a launcher (torchrun), the launchers meet at one address, and each
# starts its ranks with their numbers in the environment. test_trainer.py does so with two launchers on one
# machine. All ranks must see the same --out, so on many machines it lies on a disk that they share.

@dataclass
class Run:
    """Who we are among the processes; one process takes the same path."""
    rank: int = 0
    world: int = 1
    device: str = "cpu"
    store: object = None               # a small table that all ranks read and write; kept by the launcher

    @property
    def on_cuda(self):
        return self.device.startswith("cuda")

    # What a rank may do alone: draw, print, write a file. What all must do together, in the same order:
    # forward and backward, all_ranks, wait, and with --shard what needs a whole tensor (save, show).

    def wait(self):
        """Nobody goes on before all have come: after rank 0 wrote what the others are about to read."""
        if self.world > 1:
            dist.barrier()


# Ranks that were started with different flags are two runs that share their gradients: another --seed or --lr
# on one machine trains to the end, another --save_every waits for ever.

def refuse_different_flags(run, configs):
    """All ranks show each other the flags of all their stages, before anything is done."""
    everyones = all_ranks(run, [flat(config.settings()) for config in configs])
    for rank, theirs in enumerate(everyones):
        for first, other in itertools.zip_longest(everyones[0], theirs, fillvalue={}):
            for flag in first | other:
                if first.get(flag) != other.get(flag):
                    raise UserError(f"--{flag} is {first.get(flag)} on rank 0 and {other.get(flag)} on rank "
                                    f"{rank}: give the same command on every machine")


# The store is a table of a few words at the launcher's address, over plain TCP, beside the gradients'
# traffic: slow and small, and just right for "who failed first?" and "after which step do we stop?".

def setup():
    """torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; without it this is rank 0 of 1.

    TF32 is switched on here and nowhere else: on a GPU, float32 matrices are then multiplied with 10 bits of
    mantissa, eight times as fast. --bf16 (autocast) decides about everything else, in autocast() below."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = best_device()
    if device == "mps" and world_size > 1:                  # it has no way to send gradients
        device = "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    store = None
    if world_size > 1 and not dist.is_initialized():
        store, _, _ = next(dist.rendezvous("env://"))
        # two hours: a rank may wait while another encodes its last shard. A dead one is noticed at once
        dist.init_process_group("gloo" if device == "cpu" else "nccl", store=store, rank=rank,
                                world_size=world_size, timeout=datetime.timedelta(hours=2))
    return Run(rank, world_size, device, store)


def all_ranks(run, told):
    """What each rank tells, by rank: the same list on all of them, so that all decide alike."""
    if run.world == 1:
        return [told]
    found = [None] * run.world
    dist.all_gather_object(found, told)
    return found


def stops_after(run, step):
    """Whether all ranks stop after this step. A signal may reach one of them, at any moment; but a rank that
    stops alone leaves the others waiting for its gradients.

    An all-reduce a step would make the processor wait for the GPU. So the first rank that has a signal writes
    into the store a step to stop after, and each looks there as it goes along. That step lies four ahead:
    nobody can be more than two steps ahead of anybody, since a step needs everybody's gradients and
    count_step() lets no rank launch a third step before the first is computed. So all read it before they
    get there."""
    if run.world == 1:
        return bool(STOP)
    if STOP:
        run.store.compare_set("stop/after", "", str(step + 4))      # where nothing stands: the first counts
    return run.store.check(["stop/after"]) and step >= int(run.store.get("stop/after"))


@contextlib.contextmanager
def told_once(run=None):
    """However many ranks fail, the person reads one reason: that of the first to fail. The others fail of it,
    by a broken connection or by the same mistake in the flags, and end in silence. (torchrun prints a page of
    its own below, which no flag turns off.)"""
    try:
        yield
    except Exception as error:
        if run and run.world > 1 and isinstance(error, RuntimeError) and "onnection" in str(error):
            error = UserError("another rank is gone (killed, or its machine): the same command goes on from "
                              "the last save")
        first = os.environ.get("RANK", "0") == "0"          # rank 0 speaks, where there is no store yet
        if run and run.store:
            first = True                                    # also where the store is gone
            with contextlib.suppress(Exception):
                first = run.store.add("failed", 1) == 1
        if first:
            raise error
        sys.exit(2 if isinstance(error, UserError) else 1)
    if run and dist.is_initialized():                       # not after an error: a dead peer would be awaited
        dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------- a stage

# A stage is what differs between training a VAE and a transformer: the networks, their loss, the batches, and
# what a person wants to see. It is given to the loop as plain functions, with no base class to inherit from:
# train.py's stages read from top to bottom, and so does the loop. Most stages have one player. The DP-VAE's
# has two: VAE and discriminator each have a loss of their own, an optimizer of their own, and turns.
#
# The loop knows no network by its name. What it has to know of one beside its weights (where it repeats
# itself, which weights are matrices), the stage that made the network says in the player's fields.

class Player(nn.Module):
    """Networks that one optimizer trains, with their loss as forward(): that is what DDP can wrap.

    nets            {name: network}; each is saved under its name
    loss            (nets, batch) -> (loss, {name: number for the log})
    blocks          what repeats in the networks: --shard gathers one at a time; with none it is refused
    precise         parts of blocks that --shard gathers in float32, whatever --bf16 says
    matrices        the weights that --muon moves
    methods         ways into a network beside forward(), which --shard has to know
    aside           its loss and gradient norm are not the stage's, and so are not logged"""

    def __init__(self, nets, loss, *, blocks=(), precise=(), matrices=(), methods=(), aside=False):
        super().__init__()
        self.nets = nn.ModuleDict(nets)
        self.loss = loss
        self.blocks = list(blocks)                          # lists, so that torch takes none for its children
        self.precise = list(precise)
        self.matrices = list(matrices)
        self.methods = list(methods)
        self.aside = aside

    def forward(self, batch):
        return self.loss(self.nets, batch)


@dataclass
class Stage:
    """What a stage gives the loop."""
    players: dict                      # name -> Player, stepped in this order; more than one is a game (GAN)
    batches: object                    # start_step -> endless iterator of batches
    preview: object                    # (nets, folder/name) -> files a person can open
    measure: object = None             # nets -> None, before each save
    valid: object = None               # nets -> {name: loss on clips that no step sees}
    about: dict = field(default_factory=dict)       # more for the checkpoint to say
    data: tuple = ()                   # its data sets, or None: are they still the same after a resume?
    frozen: dict = field(default_factory=dict)      # name -> a network that it learns with: is it still?


def autocast(cfg, run):
    """Mixed precision: bfloat16 where it is safe (matrix products, convolutions), float32 where it is not
    (norms, softmax, the weights themselves and the optimizer). It needs no loss scaling: its exponent is
    float32's. A device that does not multiply in bfloat16 stays with float32."""
    return torch.autocast(run.device.split(":")[0], torch.bfloat16, enabled=cfg.bf16 and has_bf16(run.device))


# ---------------------------------------------------------------------------------------------- sharding

# With plain data parallelism every GPU holds everything: 20 bytes a parameter (weight, gradient, two moments
# of Adam, EMA), 41 GB for VideoDiT's 2 B. --shard keeps on each rank only its part of every tensor (a
# DTensor). A block's weights are gathered just before it runs and forgotten after; its gradients arrive
# already summed and cut. The arithmetic is the same, the traffic half again as much, and the memory of the
# states falls with the number of ranks. Outside of forward and backward the code below must say when it wants
# the whole of a tensor: all ranks then take part.

def whole(tensor):
    """The full tensor behind a rank's part; anything else as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(run, tensor):
    """The full tensor behind the ranks' parts, on rank 0's processor; None on the others, which only lend
    theirs. So a save needs room for one tensor: all of a network's states, whole on each GPU, are 32 GB."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if run.rank == 0 else None


def local(tensor):
    """A rank's own part of a tensor, for arithmetic that needs no other."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def part_of(tensor, like):
    """A rank's part of a full tensor, cut as `like` is; a lone number (AdamW's "step") is whole on all."""
    if not hasattr(like, "full_tensor") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


# With bf16 a block's weights are gathered in bf16: half the traffic, half the memory of the block that runs.
# Its matrix products round them so in any case (autocast). The ranks' parts, which the optimizer moves, stay
# float32, and gradients are summed in float32. What autocast leaves in float32, and so rounds nothing, would
# be rounded by this: adaLN is therefore gathered by itself. (Of a block's norms the few weights are rounded.)

def shard(player, half):
    """FSDP2: each block is gathered by itself, the rest of a network at its root.

    A block at a time, so that at most two blocks are whole at any moment: the one that runs, and the next,
    which is gathered meanwhile. The root holds what is outside of blocks: embedders and the last layer."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    policy = MixedPrecisionPolicy()
    if half:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for part in player.precise:
        fully_shard(part)
    for block in player.blocks:
        fully_shard(block, mp_policy=policy)
    for net in player.nets.values():
        fully_shard(net)
        for method in player.methods:
            if hasattr(net, method):
                register_fsdp_forward_method(net, method)


# DDP starts sending a gradient as soon as its bucket of layers is done, while backward still works on the
# earlier layers: that hides most of the traffic. It waits for a gradient of every trained parameter, in every
# step, and each of our stages gives it one, whatever its options
# (test_every_trained_parameter_gets_a_gradient): find_unused_parameters, a walk of the graph in each step, is
# not needed. Buffers (tables of positions) are equal everywhere from the start and are never sent.

def wrapped(cfg, run, player):
    """A player as its ranks run it; itself where there is one rank."""
    if run.world == 1:
        return player
    if cfg.shard:
        shard(player, cfg.bf16 and has_bf16(run.device))
        return player
    with warnings.catch_warnings():                         # its new name is not in every torch that we allow
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        # no device_ids: with them DDP hands each player a copy of the batch; a game's share theirs
        return nn.parallel.DistributedDataParallel(player, gradient_as_bucket_view=True,
                                                   broadcast_buffers=False)


# ---------------------------------------------------------------------------------------------- the optimizer

def optimizer_of(cfg, player, trained):
    """AdamW for everything; with --muon, Muon for the matrices inside a transformer's blocks."""
    matrices = {p for p in player.matrices if cfg.muon and p.requires_grad}
    groups = [{"params": [p for p in trained if p not in matrices]}]
    kind = torch.optim.AdamW
    if matrices:
        groups.append({"params": [p for p in trained if p in matrices], "times": cfg.muon})
        kind = Muon
    return kind(groups, cfg.lr, tuple(cfg.betas), weight_decay=cfg.weight_decay, fused=True)


# Adam scales each number of a weight by itself and does not see that they make a matrix. The gradient of a
# matrix is, nearly, of low rank: a few directions are long, and a step along it moves those and hardly the
# rest, which are rare but not useless. Muon (Jordan et al. 2024) keeps the directions and makes all of them
# equally long: U S V^T becomes U V^T. Neither paper has it. On the toy's images, 120 seconds each of one
# core from the same start, it took the flow loss on unseen images to 0.338 and AdamW to 0.371.
class Muon(torch.optim.AdamW):
    """AdamW whose second group of parameters are matrices, and move by Muon, `times` as fast."""

    @torch.no_grad()
    def step(self, closure=None):
        """Muon's part first; then it takes the matrices' gradients away, and AdamW passes over them."""
        group = self.param_groups[1]
        keep = 1 - getattr(self, "found_inf", torch.zeros(()))      # 0: Learner.update leaves this step out
        rate = keep * group["lr"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:           # "step" because AdamW, when it loads a state, looks for it in every one
                state.update(momentum=torch.zeros_like(p), step=torch.zeros((), device=p.device))
            grad = torch.where(keep > 0, p.grad, 0)
            state["momentum"].lerp_(grad, 0.05 * keep)
            ahead = torch.lerp(grad, state["momentum"], 0.95)       # Nesterov's
            rows, columns = p.shape
            move = newton_schulz(ahead) * max(1, rows / columns) ** 0.5
            p.sub_(rate * (move + group["weight_decay"] * p))
            p.grad = None
        super().step(closure)


def newton_schulz(matrix, rounds=5):
    """U S V^T -> nearly U V^T, by the Newton-Schulz iteration: all directions of the matrix, each about as
    long as the other.

    No singular values are computed: an odd polynomial of the matrix, a X + b (X X^T) X + c (X X^T)^2 X, acts
    on each of them as on a number, a s + b s^3 + c s^5. This one lifts small numbers steeply and leaves those
    near 1 between 0.7 and 1.2; five rounds bring all above 0.01 there. bf16 is exact enough."""
    rows, columns = matrix.shape
    if rows > columns:                                      # X X^T is the smaller of the two squares
        return newton_schulz(matrix.T, rounds).T
    x = matrix.bfloat16() if has_bf16(matrix.device) else matrix
    x = x / (x.norm() + 1e-7)                               # no singular value is above 1
    for _ in range(rounds):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.to(matrix.dtype)


# ---------------------------------------------------------------------------------------- learners, trainer

# AdamW moves each weight by lr * m / sqrt(v): m and v are running means of its gradient and of its square, so
# that a step is about lr long whatever the gradient's scale. That is robust, and it is why one bad gradient
# does harm for a long time: it stays in m for 10 steps and in v for 100. Hence the loop's guards: the norm of
# the whole gradient is clipped to cfg.clip, and a gradient with a nan or an infinity in it is left out. What
# is worth sampling from is not the last weights but their exponential moving average (EMA), which both papers
# use.

# What was tried elsewhere and is not here. Loss scaling (GradScaler) is for float16, whose gradients
# underflow; bfloat16 has float32's range. Skipping by `if loss.isnan(): continue` waits for the GPU, and
# with many ranks it hangs: the one with the nan skips, the others wait for its gradient. An EMA kept on the
# processor saves GPU memory and costs a copy a step; --shard saves more. Fused AdamW is one kernel for all
# tensors instead of a dozen for each: 4 times as fast for a network of 130 tensors.

PARTS = ("players", "ema", "optimizers", "names")      # of a learner, in state.pt


class Learner:
    """A player at work.

    wrapped     the player as its ranks run it
    trained     {name: parameter} of those that are not frozen; names: the other way round
    ema         {name: its exponential moving average}"""

    def __init__(self, cfg, run, name, player):
        self.cfg, self.run, self.name = cfg, run, name
        self.player = player.to(run.device)
        self.wrapped = wrapped(cfg, run, player)
        self.trained = {name: p for name, p in player.named_parameters() if p.requires_grad}
        self.names = {p: name for name, p in self.trained.items()}
        self.ema = {name: p.detach().clone() for name, p in self.trained.items()}
        self.optimizer = optimizer_of(cfg, player, self.trained.values())

    def accumulating(self, last):
        """Gradient accumulation: micro-batches before the last add to the gradient, and tell no other rank of
        it; the sum is sent once. --accumulate 4 so computes a batch of 64 in the memory of 16, at the traffic
        of one. With --shard each is sent: a sum of whole gradients would be 8 GB for 2 B parameters."""
        if last or self.run.world == 1 or self.cfg.shard:
            return contextlib.nullcontext()
        return self.wrapped.no_sync()

    def update(self, lr, finite):
        """One step of the optimizer. A gradient that is not finite must not reach the weights: it would be in
        all of them for ever, and in Adam's moments. `finite` stays a tensor, equal on all ranks; the fused
        optimizer, told found_inf, writes nothing where that is 1."""
        self.optimizer.found_inf = (~finite).float()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("times", 1)
        self.optimizer.step()

    @torch.no_grad()
    def update_ema(self, step, finite):
        """Samples are drawn from the EMA: it lacks the last steps' noise. Its warm-up forgets the first
        weights, which are noise altogether. A step that was left out moves it by nothing."""
        decay = min(self.cfg.ema, (1 + step) / (10 + step))
        weight = (1 - decay) * finite.float()
        for average, parameter in zip(self.ema.values(), self.trained.values()):
            local(average).lerp_(local(parameter), weight)

    def numbers(self, answers, norm):
        """What the log shows: [(loss, {name: number}), ...] of the micro-batches -> their means, tensors."""
        losses, logs = zip(*answers)
        means = {}
        if not self.player.aside:
            means = {self.name: sum(losses).float() / len(losses), "norm": norm}
        for key in logs[-1]:
            values = [torch.as_tensor(log[key], dtype=torch.float32, device=self.run.device) for log in logs]
            means[key] = sum(values) / len(values)
        return means

    # In state.pt the optimizer's states and the EMA are lists, as torch has them, so their names stand beside
    # them. TRAP: torch loads an optimizer by place. After a fork that swaps two layers each of them would go
    # on with the other's moments; and moments of another shape are a stranger's memory, into which the fused
    # kernel writes.

    def state(self):
        """{part: what the next step depends on}, in whole tensors, which rank 0 has."""
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {index: {key: gathered(self.run, value) for key, value in values.items()}
                              for index, values in optimizer["state"].items()}
        weights = {key: gathered(self.run, value) for key, value in self.player.state_dict().items()}
        moved = [self.names[p] for group in self.optimizer.param_groups for p in group["params"]]
        return {"players": weights, "ema": [gathered(self.run, average) for average in self.ema.values()],
                "optimizers": optimizer, "names": {"ema": list(self.ema), "optimizers": moved}}

    @torch.no_grad()
    def load(self, state, file):
        """Weights, EMA and moments, each to the parameter of its name, all of the right shape."""
        mine, weights = self.player.state_dict(), dict(state["players"])
        for key, part in mine.items():                      # TRAP: all ranks in one order, so of no set
            if key in weights:
                weights[key] = part_of(weights[key], part)
        load_strict(self.player, weights, file)
        names = state["names"]
        places = [place for group in state["optimizers"]["param_groups"] for place in group["params"]]
        moments = {name: state["optimizers"]["state"].get(place, {})
                   for name, place in zip(names["optimizers"], places, strict=True)}
        ema = dict(zip(names["ema"], state["ema"], strict=True))
        if not self.trained.keys() == ema.keys() == moments.keys():
            raise UserError(f"{file} is of a run that trained other parameters; --resume none starts again")
        muons = {p for group in self.optimizer.param_groups if "times" in group for p in group["params"]}
        for name, parameter in self.trained.items():
            kinds = {"exp_avg", "exp_avg_sq", "step"}
            if parameter in muons:
                kinds = {"momentum", "step"}
            shapes = {value.shape for key, value in moments[name].items() if key != "step"} | {ema[name].shape}
            if shapes != {parameter.shape} or moments[name].keys() not in (set(), kinds):
                raise UserError(f"{file}: {name}, here {tuple(parameter.shape)}, is another network's or "
                                "another optimizer's (--muon); --resume none starts again")
            self.ema[name].copy_(part_of(ema[name], parameter))
            for key, value in moments[name].items():
                self.optimizer.state[parameter][key] = part_of(value, parameter).to(parameter.device)


def by_rank_0(run, identify):
    """What identify() says on rank 0, for all: a copy of the data on another machine's own disk has other
    times."""
    found = [None]
    if run.rank == 0:
        found = [identify()]
    if run.world > 1:
        dist.broadcast_object_list(found)
    return found[0]


# Which stages learn with what a stage makes: vae's and dpvae's latents, the toy's text encoder of stage dit.
TAUGHT_BY = {"vae": ("dit", "dpvae", "videodit", "latte"), "dit": ("videodit", "latte"), "dpvae": ("videodit",)}


class Trainer:
    """The learners of a stage, the step they have come to, and what is on disk of them.

    learners        by player: what is trained
    nets            by network: what is saved
    failed          steps left out in a row, a tensor on the device; skipped: in all"""

    def __init__(self, cfg, run, stage):
        self.cfg, self.run, self.stage = cfg, run, stage
        self.folder = Path(cfg.out) / cfg.stage
        self.nets = {name: net for player in stage.players.values() for name, net in player.nets.items()}
        self.classes = {name: type(net).__name__ for name, net in self.nets.items()}    # FSDP renames them
        self.learners = {name: Learner(cfg, run, name, player) for name, player in stage.players.items()}
        self.step = 0
        self.data = []                                                      # what identifies the data sets
        self.failed = self.skipped = torch.zeros((), device=run.device)     # steps: in a row, in all
        self.told = 0                                       # steps left out that a person has been told of
        self.ended = None                                   # the last step's end, an event of the GPU

    def begin(self):
        """Take up where --out stopped. False if no step is left."""
        cfg = self.cfg
        if cfg.shard and not any(learner.player.blocks for learner in self.learners.values()):
            raise UserError(f"--shard: is for transformers; stage {cfg.stage}'s networks fit every card "
                            "whole")
        self.data = by_rank_0(self.run, self.identify_data)
        self.resume()
        if self.run.rank == 0:                              # what a kill left half done
            sweep(cfg.out)
            sweep(self.folder)
        if self.step >= cfg.steps:
            self.say(f"already at step {self.step} of {cfg.steps}; --resume none starts again")
            return False
        taught = [name for name in TAUGHT_BY.get(cfg.stage, ())
                  if (Path(cfg.out) / f"{name}.safetensors").is_file()]
        if taught:
            self.say(f"{', '.join(taught)} in {cfg.out} learned with what this stage now changes: train them "
                     "anew after it (--resume none), or give another --out")
        self.watch = Watch(self)
        return True

    def identify_data(self):
        """A data set in a few letters each: names, sizes and times of its files; a frozen network by its
        weights."""
        data = sorted({made.identity()["data"] for made in self.stage.data if made is not None})
        return data + [f"{name} {fingerprint(net)}" for name, net in self.stage.frozen.items()]

    def say(self, text):
        if self.run.rank == 0:
            print(f"{self.cfg.stage}: {text}")

    def due(self, every):
        """Whether what is done every so many steps (0: never), and after the last, is done now."""
        return every > 0 and (self.step % every == 0 or self.step == self.cfg.steps)

    def count_step(self, finite):
        """A step more. finite: for each player, whether its gradient was. In a game one that was not is
        enough for the step to count as left out."""
        bad = 1 - torch.stack(finite).float().amin()
        self.failed = (self.failed + bad) * bad
        self.skipped = self.skipped + bad
        self.step += 1
        if self.run.on_cuda:                                # at most two steps are under way; see stops_after
            if self.ended:
                self.ended.synchronize()
            self.ended = torch.cuda.current_stream().record_event()

    def check(self):
        """Is all well? The one place where the processor waits for the answer. Says that steps were left out,
        and ends the run after ten in a row.

        One such step in a week is a broken video or a rare overflow, and costs nothing. Ten in a row are a
        run that is over: the weights do not move any more, so the loss will not heal by itself."""
        if self.skipped > self.told and self.run.rank == 0:
            tqdm.write(f"up to step {self.step}, left out: {int(self.skipped) - self.told} more; loss or "
                       "gradient not finite", file=sys.stderr)
        self.told = int(self.skipped)
        if self.failed >= 10:
            raise UserError(f"{self.cfg.stage}: the loss was not finite {int(self.failed)} times in a row at "
                            f"step {self.step}; {self.whereabouts()}. Lower --lr, or try --no-bf16")

    def whereabouts(self):
        """Which states there are to go back to. The command names the oldest whole one: later ones may be
        sick, too, which the losses in the log tell."""
        there = [folder for _, folder in kept(self.folder) if (folder / "state.pt").is_file()]
        if not there:
            return "no earlier state is kept"
        return f"{len(there)} states are kept: --resume {there[0]} goes back"

    @contextlib.contextmanager
    def averaged(self):
        """Inside, the networks hold their EMA; outside, the weights that are being trained. By value: a
        sharded network keeps references of its own to its parts.

        Compiled blocks are left aside inside: a preview has other shapes, and compiling for them takes longer
        than it does."""
        modes = {net: net.training for net in self.nets.values()}
        self.swap()
        try:
            with torch.compiler.set_stance("force_eager"):
                yield {name: net.eval() for name, net in self.nets.items()}
        finally:
            self.swap()
            for net, mode in modes.items():
                net.train(mode)

    @torch.no_grad()
    def swap(self):
        for learner in self.learners.values():
            for parameter, average in zip(learner.trained.values(), learner.ema.values()):
                before = average.clone()
                average.copy_(parameter)
                parameter.copy_(before)
        # TRAP: without a backward, FSDP keeps what is outside the blocks gathered after a forward, and the
        # next training step would run on these: on the EMA
        for net in self.nets.values():
            if hasattr(net, "reshard"):
                net.reshard()

    # Previews of a stage start from the same noise and ask for the same prompts each time: what changes from
    # one to the next is then the network alone, and a row of them in the report shows it learn.

    def preview(self):
        """By the EMA. A sharded network needs all ranks to run: all but one draw for nobody."""
        if self.run.rank and not self.cfg.shard:
            return
        with self.averaged() as nets, tempfile.TemporaryDirectory() as nowhere:
            folder = Path(nowhere) if self.run.rank else self.folder
            self.stage.preview(nets, folder / f"{self.step:07d}")

    def validate(self):
        """{name: held-out loss} by the EMA, as a preview: by rank 0 alone, if the network is whole there."""
        if self.run.rank and not self.cfg.shard:
            return {}
        with self.averaged() as nets, torch.no_grad(), autocast(self.cfg, self.run):
            return self.stage.valid(nets)

    def end(self, stopped):
        """Say how it ended."""
        if stopped and self.step < self.cfg.steps:
            raise UserError(f"stopped by a signal at step {self.step}, saved; {again(self.cfg)} goes on from "
                            "there")
        if self.failed:
            raise UserError(f"{self.cfg.stage}: the last {int(self.failed)} steps were left out, so the end "
                            f"was not saved; {self.whereabouts()}")
        self.say(f"weights in {self.cfg.out}/, log and previews in {self.folder}/")

    # ------------------------------------------------------------------------------------------ on disk

    # One file a network, whole, whatever the number of ranks. Formats that save every rank's part (DCP) are
    # faster for 100 B parameters and tie a checkpoint to a layout; here one rank writes all, and the file is
    # the one that sample.py reads and that people send to each other. For VideoDiT's 2 B a save is 41 GB: the
    # EMA's 8, and 33 of state.pt (weights, EMA and two moments). With --keep 2 a run holds two such saves and
    # the EMA before them: 90 GB.
    #
    # Two things are written: NAME.safetensors, the EMA, which sampling loads and people share; and
    # STAGE/state.pt with all that the next step depends on: weights, EMA, optimizer states, the step.
    # No position in the data belongs to it: that is a function of the step. Torch's generators do, for what
    # draws from them (the classifier's first frame; a dropout that a reader adds). Between the two files a
    # kill may fall: then resuming redoes the steps since the older state, to the same weights, and writes
    # both again. test_faults.py shoots runs at random moments and compares the ends byte by byte.

    def save(self):
        """The EMA as NAME.safetensors, the rest as state.pt; and both, by a second name, in STAGE/STEP/."""
        cfg = self.cfg
        out, state = Path(cfg.out), self.state()
        with self.averaged() as nets:
            if self.stage.measure:
                self.stage.measure(nets)
            about = {"size": cfg.size, "frames": cfg.frames, "shift": cfg.shift, "step": self.step,
                     **self.stage.about}
            for name, net in nets.items():
                weights = {key: gathered(self.run, tensor) for key, tensor in net.state_dict().items()}
                if self.run.rank == 0:
                    if hasattr(net, "export"):              # what is saved may be less than what learns
                        weights = net.export(weights)
                    if not all(tensor.isfinite().all() for tensor in weights.values()):
                        raise UserError(f"{name} has diverged: weights that are not finite at step "
                                        f"{self.step}; not saved. {self.whereabouts()}; lower --lr")
                    save_state(out / f"{name}.safetensors", weights, self.classes[name],
                               asdict(net.config), about)
        if self.run.rank == 0:
            write_atomic(self.folder / "state.pt", lambda temporary: torch.save(state, temporary))
            (self.folder / BEGUN).unlink(missing_ok=True)
            keep(out, cfg.stage, self.step, cfg.keep)
        self.run.wait()

    def state(self):
        """All that the next step depends on, in whole tensors: any number of ranks can take it up.

        test_trainer.py moves a run from 1 process to 2 sharded ones and back; the weights agree to 1e-5."""
        learned = {name: learner.state() for name, learner in self.learners.items()}
        state = {part: {name: parts[part] for name, parts in learned.items()} for part in PARTS}
        state |= {"step": self.step, "skipped": int(self.skipped), "data": self.data,
                  "config": json.dumps(self.cfg.settings()), "rng": torch.get_rng_state()}
        if self.run.on_cuda:
            state["rng_cuda"] = torch.cuda.get_rng_state()
        return state

    def resume(self):
        """Take up the run in --out (auto) or in the folder that --resume names.

        The file may be anything (a list, another project's checkpoint), so what it lacks is found by trying,
        and said in a line."""
        asked, file = self.cfg.resume, self.folder / "state.pt"
        if asked not in RESUME:
            file = Path(asked) / "state.pt"
            if not file.is_file():
                raise UserError(f"--resume {asked}: no state.pt there; give auto, none, "
                                "or a folder OUT/STAGE or OUT/STAGE/STEP (of the newest two)")
        if asked == "none" or not file.is_file():
            return
        try:
            state = read_state(file)
        except UserError as error:
            raise UserError(f"{error}; {self.whereabouts()}")
        try:
            if state["players"].keys() != self.learners.keys():
                raise UserError(f"{file} is not of stage {self.cfg.stage} with these flags (it holds "
                                f"{', '.join(state['players'])}); --resume none starts again")
            self.compare(file, state, consent=asked != "auto")
            self.load(state, file)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise UserError(f"{file} is no whole state of this stage ({type(error).__name__}: "
                            f"{first_line(error)}); --resume none starts again")

    def compare(self, file, state, consent):
        """A run is its seed, its data and its shapes: with others, steps 1 to 500 and 501 to 1000 belong to
        different runs, and no number at the end is what it seems. It is said, and wants --resume anyway."""
        before = flat(json.loads(state["config"]))
        now = flat(json.loads(json.dumps(self.cfg.settings())))
        differs = []
        for name, value in now.items():
            network, dot, _ = name.partition(".")
            fixed = name not in MAY_CHANGE and (not dot or network in self.nets)
            if fixed and name in before and before[name] != value:
                differs.append(f"--{name} {before[name]}, now {value}")
        if state.get("data", self.data) != self.data and not differs:
            differs.append(f"it learned from {', '.join(state['data'])}; now {', '.join(self.data)}")
        if now["init"] and now["init"] != before["init"]:
            self.say(f"goes on from {file}; --init {now['init']} is not read")
        schedule = [f"--{name} {before[name]}, now {now[name]}" for name in ("steps", "decay", "lr")
                    if before[name] != now[name]]
        falls = before["decay"] or now["decay"]             # so that its length matters, too
        if before["lr"] != now["lr"] or (schedule and falls):
            self.say(f"{', '.join(schedule)}: the learning rate goes on by the new numbers, not where it was")
        if differs and not consent:
            raise UserError(f"{file} is of another run: {'; '.join(differs)}. --resume anyway goes on from "
                            "it, --resume none starts again, or give another --out")
        if differs:
            self.say(f"goes on from another run: {'; '.join(differs)}")

    def load(self, state, file):
        for name, learner in self.learners.items():
            learner.load({part: state[part][name] for part in PARTS}, file)
        self.step = int(state["step"])
        self.told = int(state["skipped"])
        self.skipped = self.skipped + self.told
        torch.set_rng_state(state["rng"])
        if self.run.on_cuda and "rng_cuda" in state:
            torch.cuda.set_rng_state(state["rng_cuda"])


# A run that finds no state begins at step 0, and its first save writes over the weights that are there. That
# is right where there are none, and the loss of a week where state.pt was deleted, or where somebody copied
# weights without it. BEGUN stands in a stage's folder until its first save: a kill may leave the weights of
# that save without the state, and there the same command has to go on.

BEGUN = ".begun"
RESUME = ("auto", "none", "anyway")         # what --resume takes; anything else is a folder with a state.pt


def again(cfg):
    """The command that goes on."""
    if cfg.resume in ("auto", "anyway"):
        return "the same command"
    return "the same command without --resume"


def refuse_to_overwrite(cfg):
    """Weights of this stage, or kept states, without a state.pt to go on from."""
    folder, weights = Path(cfg.out) / cfg.stage, Path(cfg.out) / f"{cfg.stage}.safetensors"
    state, older = folder / "state.pt", kept(folder)
    if cfg.resume not in ("auto", "anyway") or state.is_file() or (folder / BEGUN).exists():
        return
    if older:
        back = f"--resume {older[-1][1]} goes on from the last state that was kept"
    elif weights.is_file() or state.is_symlink():
        back = "--resume FOLDER goes on from a copy of it"
    else:
        return
    raise UserError(f"no {state}, beside work of stage {cfg.stage} that a run from step 0 would write over: "
                    f"{back}; --init {weights} with another --out trains its weights further; "
                    "--resume none starts again")


# Flags that may change in the middle of a run: how far it goes, how fast, what is seen of it, and how the
# machine is used. A flag that is not in this list is taken for a part of the run, new ones included: to ask
# once too often is the cheaper mistake. A network's fields are compared where the stage trains it.
MAY_CHANGE = {"config", "stage", "out", "resume", "steps", "lr", "warmup", "decay", "clip", "ema", "workers",
              "accumulate", "bf16", "compile", "checkpointing", "checkpoint_every", "shard", "cache",
              "cached", "save_every", "preview_every", "valid_every", "previews", "log_every",
              "keep", "init", "vae_weights", "text_weights", "lpips"}


def flat(config, prefix=""):
    """{"dit": {"depth": 6}} -> {"dit.depth": 6}"""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def kept(folder):
    """[(step, its folder)] of a stage, oldest first."""
    return sorted((int(path.name), path) for path in folder.glob("*") if path.name.isdigit())


# Why older states? A run that diverges does so over some hundred steps: the loss creeps up, then there are
# nans. Every save in between is finite, sick, and written over the last good one. And a curve over training
# (FVD at 10, 20, 30 thousand steps) needs the weights of those steps: --keep 100. The newest and the one
# before it are whole, to be resumed from; of those before, whose moments nobody takes up, the EMA stays, a
# fifth of the bytes: to sample from, or to begin anew from by --init.
#
# A name is not a file but an entry that points at one; two names may point at the same bytes, and the bytes
# stay until the last name goes. save() never writes into a file, it puts a new one under the old name: so
# the older name goes on pointing at what it was given.

def keep(out, stage, step, older):
    """STAGE/STEP/ with all that --out holds now, by a second name for the same bytes (a hard link): it costs
    nothing until --out is written over, and is a folder to sample from. The `older` last ones stay."""
    folder = out / stage / f"{step:07d}"
    temporary = folder.with_name(f".{folder.name}.{HOST}.{os.getpid()}.tmp")
    if not older:
        return
    try:
        temporary.mkdir(exist_ok=True)
        for path in [*out.glob("[!.]*.safetensors"), out / stage / "state.pt"]:
            os.link(path, temporary / path.name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {first_line(error)}; --keep 0, or a disk with hard links")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    there = kept(out / stage)
    newest = [at for at, _ in there if at <= step][-1 - older:]
    for at, path in there:
        if at not in newest:            # those after it are of a run that was given up, for an older state
            shutil.rmtree(path, ignore_errors=True)
    for _, path in kept(out / stage)[:-2]:
        (path / "state.pt").unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------- looking

# Is it learning, how fast, and what does it wait for? A line of the log answers with a loss, a gradient norm
# (its jumps come before the loss's), samples a second, the share of time spent waiting for data
# (above 0.05: more --workers, or cached latents) and peak memory. (MFU is bench.py's.) log.jsonl is strict
# JSON, a line a time, so that any tool reads it; a number that is none (a left-out step's loss) is null there.


class Watch:
    """The bar, log.jsonl, and what a step's time went to.

    Rates are means since this process began; a resumed run begins to count anew."""

    def __init__(self, trainer):
        cfg = trainer.cfg
        self.cfg, self.run, self.trainer = cfg, trainer.run, trainer
        self.first, self.started = trainer.step, time.perf_counter()
        self.waited = 0.0                                   # seconds, for data
        self.pairs = {}                                     # what is logged as a (sum, count) over steps
        if self.run.rank == 0:
            text = json.dumps(cfg.settings(), indent=1)
            write_atomic(trainer.folder / "settings.json", lambda to: to.write_text(text, "utf-8"))
            if trainer.step == 0:
                (trainer.folder / BEGUN).touch()
            cut_log(trainer.folder / "log.jsonl", trainer.step)
        self.bar = tqdm(total=cfg.steps, initial=trainer.step, desc=cfg.stage, disable=self.run.rank > 0,
                        mininterval=1)

    def fetch(self, source):
        """The step's micro-batches, on their way to the device. The loader pins them (order.load), so the
        copy is asked for while the GPU still computes the last step; that, and workers that read ahead, is
        all the prefetching there is."""
        # What is measured is how long Python waited. On a GPU that may be while the last step still runs, so
        # a share of 0.3 can cost nothing; one near 1 means that the GPU has nothing to do.
        before = time.perf_counter()
        micros = []
        for _ in range(self.cfg.accumulate):
            micro = next(source)
            for key, value in micro.items():
                if torch.is_tensor(value):
                    micro[key] = value.to(self.run.device, non_blocking=True)
            micros.append(micro)
        self.waited += time.perf_counter() - before
        return micros

    def count(self, shown):
        """A step more. Pairs (sum, count), such as a loss by its time, add up until a line is logged."""
        self.bar.update()
        for key, value in shown.items():
            if torch.is_tensor(value) and value.ndim == 1:
                self.pairs[key] = self.pairs.get(key, 0) + value                            # (2,)

    def log(self, shown):
        """The numbers of a step on the bar, and as a line of log.jsonl: what a curve is drawn from later.

        Losses are the whole batch's: the mean over micro-batches (Learner.numbers) and over ranks (here)."""
        means = {key: value for key, value in shown.items() if torch.is_tensor(value) and value.ndim == 0}
        values = torch.stack([*means.values(), *itertools.chain(*self.pairs.values())])
        if self.run.world > 1:
            dist.all_reduce(values)
            values /= self.run.world
        numbers = dict(zip(means, values.tolist()))
        by_time = {key: value for key, value in shown.items() if key.startswith("valid_")}
        for key, (total, count) in zip(self.pairs, values[len(means):].view(-1, 2).tolist()):
            if count:
                by_time[key] = total / count
        self.pairs = {}
        if self.run.rank:
            return
        step = self.trainer.step
        done = step - self.first
        took = time.perf_counter() - self.started
        line = {"step": step, "lr": shown["lr"], **numbers, "skipped": int(self.trainer.skipped),
                "steps_per_s": done / took, "samples_per_s": done * self.cfg.batch / took,
                "wait": self.waited / took, "eta_s": (self.cfg.steps - step) * took / done,
                "memory_gb": peak_memory(self.run.device) / 1e9}
        line |= by_time
        self.bar.set_postfix({key: f"{value:.4g}" for key, value in line.items()
                              if key in numbers or key in ("samples_per_s", "wait")})
        append_line(self.trainer.folder / "log.jsonl", line)


# A GPU's allocator knows its own peak to the byte. A processor's memory belongs to the process as a whole:
# the peak has Python, torch and every library in it (half a GB before anything happens).

def peak_memory(device):
    """Bytes: allocated on the GPU, or resident in memory, Python and torch included; 0 where no /proc is."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
