"""trainer.py - one loop for every stage: ranks, steps, what is on disk, and what happens when something breaks.
Paper    none: "trained with AdamW" is all that both papers say of it
Shapes   a batch is what its stage made of it; the loop looks at nothing but losses and gradients
Differs  Lightning, Accelerate and Trainer hide this loop behind hooks; here it is a page to read
Run me   python trainer.py      # CPU, 2 s: a line is fitted, cut, resumed; draws what was lost, out/loop.png"""

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from support.checkpoints import (HOST, append_line, cut_log, load_strict, read_state, save_state, sweep,
                                 write_atomic)
from support.cli import STOP, UserError, first_line
from support.ops import has_bf16


# A network learns by one small correction after another, and a run is ten thousand to a million of them. The
# correction itself is four lines (turn, below). All the rest of this file is there because a run outlives
# its machine: it is cut and goes on, it is spread over 1 or 64 processes, its disk fills, a batch is broken.
# One rule holds it together: what a step does depends on the seed and on the step's number, and on nothing
# else - not on the number of processes, not on what happened before, not on a generator's state. Then a
# resumed run is the same run, and two processes are one, and both can be tested bit by bit.
#
#     stage.batches -> fetch -> turn: loss, backward, clip, AdamW, average      a rank, on its share
#                                 |         ^
#                                 |         '-- mean gradient of all ranks     (DDP, or FSDP2 with --shard)
#                                 v
#     every step          count those left out; has anybody been asked to stop?
#     every log_every     look(): is all well?   log(): a line of log.jsonl
#     every save_every    save(): OUT/NAME.safetensors, OUT/STAGE/state.pt, OUT/STAGE/STEP/
#     every preview_every show(): OUT/STAGE/STEP.png
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
    stop: int = None                   # the step after which all stop, once that is agreed

    # What a rank may do alone: draw, print, write a file. What all must do together, in the same order:
    # forward and backward, all_ranks, wait, and with --shard what needs a whole tensor (save, show).

    def wait(self):
        """Nobody goes on before all have come: after rank 0 wrote what the others are about to read."""
        if self.world > 1:
            dist.barrier()


# The store is a table of a few words at the launcher's address, over plain TCP, beside the gradients'
# traffic: slow and small, and just right for "who failed first?" and "after which step do we stop?".

def setup():
    """torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; without it this is rank 0 of 1.

    TF32 is switched on here and nowhere else: on a GPU, float32 matrices are then multiplied with 10 bits of
    mantissa, eight times as fast. --bf16 (autocast) decides about everything else, in autocast() below."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if device != "cpu":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    store = None
    if world_size > 1 and not dist.is_initialized():
        store, _, _ = next(dist.rendezvous("env://"))
        # two hours: a rank may wait while another encodes its last shard. A dead one is noticed at once
        dist.init_process_group("nccl" if device != "cpu" else "gloo", store=store, rank=rank,
                                world_size=world_size, timeout=datetime.timedelta(hours=2))
    return Run(rank, world_size, device, store)


def all_ranks(run, flag):
    """True where it is true on any rank, so that all skip, save or stop together."""
    if run.world == 1:
        return bool(flag)
    told = torch.tensor(float(bool(flag)), device=run.device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return told.item() > 0


def stops_after(run, step):
    """Whether all ranks stop after this step. A signal may reach one of them, at any moment; but a rank that
    stops alone leaves the others waiting for its gradients.

    An all-reduce a step would make the processor wait for the GPU. So the first rank that has a signal writes
    into the store a step to stop after, and each looks there as it goes along. That step lies four ahead:
    nobody can be more than two steps ahead of anybody, since a step needs everybody's gradients and fit()
    lets no rank launch a third step before the first is computed. So all read it before they get there."""
    if run.world == 1:
        return bool(STOP)
    if STOP and run.stop is None and run.store.add("stop/asked", 1) == 1:
        run.store.set("stop/after", str(step + 4))
    if run.stop is None and run.store.check(["stop/after"]):
        run.stop = int(run.store.get("stop/after"))
    return run.stop is not None and step >= run.stop


@contextlib.contextmanager
def told_once(run=None):
    """However many ranks fail, the person reads one reason: that of the first to fail. The others fail of it,
    by a broken connection or by the same mistake in the flags, and end in silence.

    torchrun adds a page of its own below (it prints its own stack for any exit code but 0, and no flag turns
    that off); the file it reads its "root cause" from is written here, so that the line stands there, too."""
    try:
        yield
    except Exception as error:
        rank = run.rank if run else int(os.environ.get("RANK", 0))
        try:
            first = run.store.add("failed", 1) == 1 if run and run.store else rank == 0
        except Exception:                                   # the store is gone, and with it who was first
            first = True
        if run and run.world > 1 and isinstance(error, RuntimeError) and "onnection" in str(error):
            error = UserError("another rank is gone (killed, or its machine): the same command goes on from "
                              "the last save")
        reason = f"rank {rank}: {error}" if isinstance(error, UserError) else traceback.format_exc()
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if file:
            said = reason if first else f"rank {rank}: ended because another rank failed"
            told = {"message": said, "extraInfo": {"py_callstack": said,
                                                   "timestamp": str(int(time.time()) + 60 * (not first))}}
            Path(file).write_text(json.dumps({"message": told}), "utf-8")
        if not first:
            sys.exit(2 if isinstance(error, UserError) else 1)
        raise error
    else:                                                   # not after an error: a dead peer would be awaited
        if run and dist.is_initialized():
            dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------- a stage

# A stage is what differs between training a VAE and a transformer: the networks, their loss, the batches, and
# what a person wants to see. It is given to the loop as plain functions, with no base class to inherit from:
# train.py's stages read from top to bottom, and so does the loop. Most stages have one player. The DP-VAE's
# has two: VAE and discriminator each have a loss of their own, an optimizer of their own, and turns.

class Player(nn.Module):
    """Networks that one optimizer trains, with their loss as forward(): that is what DDP can wrap.

    loss(nets, batch) -> (loss, {name: number for the log})."""

    def __init__(self, loss, **nets):
        super().__init__()
        self.nets, self.loss = nn.ModuleDict(nets), loss

    def forward(self, batch):
        return self.loss(self.nets, batch)


@dataclass
class Stage:
    """What a stage gives the loop."""
    players: dict                      # name -> Player, stepped in this order; more than one is a game (GAN)
    batches: object                    # start_step -> endless iterator of batches
    preview: object                    # (nets, folder/name) -> files a person can open
    finish: object = None              # nets -> None, before the last save
    about: dict = field(default_factory=dict)       # more for the checkpoint to say


def autocast(cfg, run):
    """bfloat16 where it is safe (matrix products, convolutions), float32 where it is not (norms, softmax, the
    weights themselves and the optimizer). It needs no loss scaling: its exponent is float32's. A device
    that does not multiply in bfloat16 stays with float32."""
    return torch.autocast(run.device.split(":")[0], torch.bfloat16, enabled=cfg.bf16 and has_bf16(run.device))


# ---------------------------------------------------------------------------------------------- sharding

# With plain data parallelism every GPU holds everything: 20 bytes a parameter (weight, gradient, two moments
# of Adam, average), 41 GB for VideoDiT's 2 B. --shard keeps on each rank only its part of every tensor (a
# DTensor). A block's weights are gathered just before it runs and forgotten after; its gradients arrive
# already summed and cut. The arithmetic is the same, the traffic half again as much, and the memory of the
# states falls with the number of ranks. Outside of forward and backward the code below must say when it wants
# the whole of a tensor: all ranks then take part.

def whole(tensor):
    """The full tensor behind a rank's part; anything else as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor):
    """A rank's own part of a tensor, for arithmetic that needs no other."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def part_of(tensor, like):
    """A rank's part of a full tensor, cut as `like` is."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def shard(net):
    """FSDP2: each block is gathered by itself, the rest of the network at its root.

    A block at a time, so that at most two blocks are whole at any moment: the one that runs, and the next,
    which is gathered meanwhile. The root holds what is outside of blocks: embedders and the last layer."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    for name, blocks in net.named_modules():
        if name.split(".")[-1] in ("blocks", "joint_blocks", "twins"):
            for block in blocks:
                fully_shard(block)
    fully_shard(net)
    if hasattr(net, "reading_loss"):                        # forward by another name
        register_fsdp_forward_method(net, "reading_loss")


# ---------------------------------------------------------------------------------------------- the optimizer

def optimizer_of(cfg, player):
    """AdamW for everything; with --muon, Muon for the matrices inside a transformer's blocks."""
    trained = [(name, p) for name, p in player.named_parameters() if p.requires_grad]
    inside = [p for name, p in trained
              if cfg.muon and p.ndim == 2 and "blocks." in name and "adaLN" not in name]
    chosen = {id(p) for p in inside}
    groups = [{"params": [p for _, p in trained if id(p) not in chosen]}]
    groups += [{"params": inside, "times": cfg.muon}] if inside else []
    return (Muon if inside else torch.optim.AdamW)(groups, cfg.lr, tuple(cfg.betas),
                                                   weight_decay=cfg.weight_decay, fused=True)


# Adam scales each number of a weight by itself and does not see that they make a matrix. The gradient of a
# matrix is, nearly, of low rank: a few directions are long, and a step along it moves those and hardly the
# rest, which are rare but not useless. Muon (Jordan et al. 2024) keeps the directions and makes all of them
# equally long: U S V^T becomes U V^T. Neither paper has it. On the toy's pictures, 120 seconds each of one
# core from the same start, it took the flow loss on unseen pictures to 0.338 and AdamW to 0.371.
class Muon(torch.optim.AdamW):
    """AdamW whose second group of parameters are matrices, and move by Muon, `times` as fast."""

    @torch.no_grad()
    def step(self, closure=None):
        """Muon's part first; then it takes the matrices' gradients away, and AdamW passes over them."""
        group = self.param_groups[1]
        keep = 1 - getattr(self, "found_inf", torch.zeros(()))      # Trainer.turn: 0 where a step is left out
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:           # "step" because AdamW, when it loads a state, looks for it in every one
                state.update(momentum=torch.zeros_like(p), step=torch.zeros((), device=p.device))
            grad, rate = torch.where(keep > 0, p.grad, 0), keep * group["lr"]
            state["momentum"].lerp_(grad, 0.05 * keep)
            rows, columns = p.shape
            move = even(torch.lerp(grad, state["momentum"], 0.95)) * max(1, rows / columns) ** 0.5
            p.sub_(rate * (move + group["weight_decay"] * p))
            p.grad = None
        super().step(closure)


def even(matrix, rounds=5):
    """U S V^T -> nearly U V^T: all of its directions, each about as long as the other.

    No singular values are computed: an odd polynomial of the matrix, a X + b (X X^T) X + c (X X^T)^2 X, acts
    on each of them as on a number, a s + b s^3 + c s^5. This one lifts small numbers steeply and leaves those
    near 1 between 0.7 and 1.2; five rounds bring all above 0.01 there. bf16 is exact enough."""
    x = matrix.bfloat16() if has_bf16(matrix.device) else matrix
    x = x if matrix.shape[0] <= matrix.shape[1] else x.T
    x = x / (x.norm() + 1e-7)                               # no singular value is above 1
    for _ in range(rounds):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x if matrix.shape[0] <= matrix.shape[1] else x.T).to(matrix.dtype)


# ---------------------------------------------------------------------------------------------- one step

# AdamW moves each weight by lr * m / sqrt(v): m and v are running means of its gradient and of its square, so
# that a step is about lr long whatever the gradient's scale. That is robust, and it is why one bad gradient
# does harm for a long time: it stays in m for 10 steps and in v for 100. Hence the guards of turn(): the norm
# of the whole gradient is clipped to cfg.clip, and a gradient with a nan or an infinity in it is left out.
# What is worth sampling from is not the last weights but their slow average (EMA), which both papers use.

# What was tried elsewhere and is not here. Loss scaling (GradScaler) is for float16, whose gradients
# underflow; bfloat16 has float32's range. Skipping by `if loss.isnan(): continue` waits for the GPU, and
# with many ranks it hangs: the one with the nan skips, the others wait for its gradient. A moving average
# kept on the processor saves GPU memory and costs a copy a step; --shard saves more. Fused AdamW is one
# kernel for all tensors instead of a dozen for each: 4 times as fast for a network of 130 tensors.

class Trainer:
    """The networks of a stage with their optimizers and averages: what a checkpoint has to hold.

    players, nets   the same modules, by player and by network: a player is trained, a network is saved
    wrapped         a player as its ranks run it; equal to it where there is one rank
    trained         its parameters that are not frozen, in the order of ema and of the optimizer's state
    failed          steps left out in a row, a tensor on the device; skipped: in all"""

    def __init__(self, cfg, run, stage):
        self.cfg, self.run, self.stage, self.step, self.saved = cfg, run, stage, 0, None
        self.players = {name: player.to(run.device) for name, player in stage.players.items()}
        self.nets = {name: net for player in self.players.values() for name, net in player.nets.items()}
        self.classes = {name: type(net).__name__ for name, net in self.nets.items()}    # FSDP renames them
        self.wrapped = {name: self.parallel(player) for name, player in self.players.items()}
        self.trained = {name: [p for p in player.parameters() if p.requires_grad]
                        for name, player in self.players.items()}
        self.ema = {name: [p.detach().clone() for p in values] for name, values in self.trained.items()}
        self.optimizers = {name: optimizer_of(cfg, player) for name, player in self.players.items()}
        self.failed = self.skipped = torch.zeros((), device=run.device)     # steps: in a row, in all
        self.recent = deque(maxlen=max(cfg.log_every, 10))                  # (step, clips, was it skipped)

    # DDP starts sending a gradient as soon as its bucket of layers is done, while backward still works on
    # the earlier layers: that hides most of the traffic. It has to know which weights take part. A step on
    # pictures leaves the 3D patchify branch out, so it looks for unused ones each time, which costs a walk
    # of the graph. Buffers (tables of positions) are equal everywhere from the start and are never sent.

    def parallel(self, player):
        if self.run.world == 1:
            return player
        if self.cfg.shard:
            for net in player.nets.values():
                shard(net)
            return player
        with warnings.catch_warnings():                     # its new name is not in every torch that we allow
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            # no device_ids: with them DDP hands each player a copy of the batch; a game's share theirs
            return nn.parallel.DistributedDataParallel(player, gradient_as_bucket_view=True,
                                                       broadcast_buffers=False, find_unused_parameters=True)

    @contextlib.contextmanager
    def collecting(self, player, last):
        """Micro-batches before the last add to the gradient, and tell no other rank of it: the sum is sent
        once. --accumulate 4 so computes a batch of 64 in the memory of 16, at the traffic of one."""
        if self.run.world == 1 or last and not self.cfg.shard:
            yield
        elif self.cfg.shard:
            for net in player.nets.values():
                net.set_requires_gradient_sync(last)
            yield
        else:
            with player.no_sync():
                yield

    def turn(self, name, micros, lr):
        """One player's step: the mean gradient of the micro-batches, clipped, then applied. Returns (0-dim
        tensor: whether it was left out, {name: number for the log, the mean over the micro-batches}).

        A gradient that is not finite must not reach the weights: it would be in all of them for ever, and in
        Adam's moments. To ask "is it finite?" in Python would make the processor wait for the GPU in each
        step; so the answer stays a tensor, and the fused optimizer, told found_inf, writes nothing where it
        is 1. The norm is that of the mean over all ranks, so that every rank gives the same answer."""
        cfg, player, optimizer, told = self.cfg, self.wrapped[name], self.optimizers[name], []
        for micro in micros:
            with self.collecting(player, micro is micros[-1]):
                with autocast(cfg, self.run):
                    loss, log = player(micro)
                (loss / len(micros)).backward()
            told.append({name: loss.detach(), **log} if name != "disc" else log)
        norm = whole(nn.utils.clip_grad_norm_(self.trained[name], cfg.clip))
        optimizer.found_inf = bad = (~torch.isfinite(norm)).float()
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("times", 1)
        optimizer.step()
        self.update_ema(name, 1 - bad)
        optimizer.zero_grad(set_to_none=True)
        mean = {key: sum(torch.as_tensor(log[key], dtype=torch.float32, device=self.run.device)
                         for log in told) / len(told) for key in told[-1]}
        return bad, mean if name == "disc" else {**mean, "norm": norm}

    @torch.no_grad()
    def update_ema(self, name, moves=1.0):
        """Samples are drawn from a slow average of the weights: it lacks the last steps' noise. Its warm-up
        forgets the first weights, which are noise altogether. moves: 0 where the step was left out."""
        weight = (1 - min(self.cfg.ema, (1 + self.step) / (10 + self.step))) * moves
        for average, parameter in zip(self.ema[name], self.trained[name]):
            local(average).lerp_(local(parameter), weight)

    @contextlib.contextmanager
    def averaged(self):
        """Inside, the networks hold their averages; outside, the weights that are being trained. By value:
        a sharded network keeps references of its own to its parts."""
        pairs = [pair for name in self.trained for pair in zip(self.trained[name], self.ema[name])]

        @torch.no_grad()
        def swap():
            for parameter, average in pairs:
                before = average.clone()
                average.copy_(parameter)
                parameter.copy_(before)
        swap()
        modes = {net: net.training for net in self.nets.values()}
        try:
            yield {name: net.eval() for name, net in self.nets.items()}
        finally:
            swap()
            for net, mode in modes.items():
                net.train(mode)

    def take_step(self, micros):
        """Every player's turn, in a game each on what the one before left. Returns what the log shows."""
        lr, bad, shown = learning_rate(self.cfg, self.step), torch.zeros((), device=self.run.device), {}
        for name in self.players:
            left_out, log = self.turn(name, micros, lr)
            bad = torch.maximum(bad, left_out)
            shown.update(log)
        self.failed, self.skipped = (self.failed + bad) * bad, self.skipped + bad
        self.step += 1
        self.recent.append((self.step, [clip for micro in micros for clip in clips_of(micro)], bad))
        return {"lr": lr, **shown}

    def look(self):
        """Is all well? The one place where the processor waits for the answer. Names the clips of steps that
        were left out, and ends the run after ten in a row.

        One such step in a week is a broken film or a rare overflow, and costs nothing. Ten in a row are a run
        that is over: the weights do not move any more, so the loss will not heal by itself."""
        skipped = [(step, clips) for step, clips, bad in self.recent if bad]
        self.recent.clear()
        for step, clips in skipped:
            if self.run.world > 1:
                shares = [None] * self.run.world
                dist.all_gather_object(shares, clips)
                clips = [clip for share in shares for clip in share]
            if self.run.rank == 0:
                tqdm.write(f"step {step} was left out: loss or gradient not finite; its clips: "
                           f"{', '.join(clips[:8])}{' ...' if len(clips) > 8 else ''}", file=sys.stderr)
        if self.failed >= 10:
            raise UserError(f"{self.cfg.stage}: the loss was not finite {int(self.failed)} times in a row at "
                            f"step {self.step}; {self.whereabouts()}. Lower --lr, or try --no-bf16")

    def whereabouts(self):
        """Which states there are to go back to, newest last. The newest may be the sick one: its losses, in
        the log, tell."""
        # the oldest is named in the command: the later ones may be the sick ones
        there = [step for step, _ in kept(Path(self.cfg.out) / self.cfg.stage)]
        if not there:
            return "nothing was saved yet"
        return (f"states of {'steps' if len(there) > 1 else 'step'} {', '.join(map(str, there))} are kept: "
                f"--resume {Path(self.cfg.out) / self.cfg.stage}/{there[0]:07d} goes back")

    # ------------------------------------------------------------------------------------------ on disk

    # One file a network, whole, whatever the number of ranks. Formats that save every rank's part (DCP) are
    # faster for 100 B parameters and tie a checkpoint to a layout; for 2 B one rank writes 8 GB in seconds,
    # and the file is the one that sample.py reads and that people send to each other.
    #
    # Two things are written: NAME.safetensors, the averages, which sampling loads and people share; and
    # STAGE/state.pt with everything else that the next step depends on: weights, averages, moments, the step.
    # No position in the data and no generator's state belongs to it, for both are functions of the step. (The
    # generators are saved all the same, for what a reader may add.) Between the two files a kill may fall:
    # then resuming redoes the steps since the older state, to the same weights, and writes both again.
    # test_faults.py shoots runs at random moments and compares the ends byte by byte.

    def save(self, finish=None):
        """Averages as NAME.safetensors, the rest as state.pt; and both, by a second name, in STAGE/STEP/."""
        out, rank = Path(self.cfg.out), self.run.rank
        state = self.state()
        with self.averaged() as nets:
            if finish:
                finish(nets)
            about = {"size": self.cfg.size, "frames": self.cfg.frames, "shift": self.cfg.shift,
                     "step": self.step, **self.stage.about}
            for name, net in nets.items():
                weights = {key: whole(tensor) for key, tensor in net.state_dict().items()}
                if rank == 0:
                    if not all(tensor.isfinite().all() for tensor in weights.values()):
                        raise UserError(f"{name} has diverged: weights that are not finite at step "
                                        f"{self.step}; not saved. {self.whereabouts()}; lower --lr")
                    save_state(out / f"{name}.safetensors", weights, self.classes[name],
                               dataclasses.asdict(net.config), about)
        if rank == 0:
            write_atomic(out / self.cfg.stage / "state.pt", lambda temporary: torch.save(state, temporary))
            keep(out, self.cfg.stage, self.step, self.cfg.keep)
        self.saved = self.step
        self.run.wait()

    def state(self):
        """All that the next step depends on, in whole tensors: any number of ranks can take it up.

        test_trainer.py moves a run from 1 process to 2 sharded ones and back; the weights agree to 1e-5."""
        state = {"step": self.step, "skipped": int(self.skipped), "rng": torch.get_rng_state(),
                 "ema": {name: [whole(average) for average in values] for name, values in self.ema.items()},
                 "players": {name: {key: whole(tensor) for key, tensor in player.state_dict().items()}
                             for name, player in self.players.items()},
                 "optimizers": {}, "config": json.dumps(self.cfg.settings())}
        if self.run.device != "cpu":
            state["rng_cuda"] = torch.cuda.get_rng_state()
        for name, optimizer in self.optimizers.items():
            moments = optimizer.state_dict()
            moments["state"] = {index: {key: whole(value) for key, value in values.items()}
                                for index, values in moments["state"].items()}
            state["optimizers"][name] = moments
        return state

    def resume(self):
        """Take up the run in --out (auto) or in the folder that --resume names.

        The check has three parts, from cheap to dear: is it a state of this stage, is it of this run, does
        each tensor fit. A file that fails the first may be anything (a list, another project's checkpoint),
        so what it lacks is found by trying, and said in a line."""
        cfg, chosen = self.cfg, self.cfg.resume not in ("auto", "anyway", "none")
        file = (Path(cfg.resume) if chosen else Path(cfg.out) / cfg.stage) / "state.pt"
        if cfg.resume == "none" or not chosen and not file.is_file():
            return
        if not file.is_file():
            raise UserError(f"--resume {cfg.resume}: no state.pt there; "
                            "give auto, none, or a folder OUT/STAGE or OUT/STAGE/STEP")
        state = read_state(file)
        if not isinstance(state, dict) or not isinstance(state.get("players"), dict):
            raise UserError(f"{file} is no state of a run; --resume none starts again")
        if state["players"].keys() != self.players.keys():
            raise UserError(f"{file} is not of stage {cfg.stage} with these flags "
                            f"(it holds {', '.join(state['players']) or 'no networks'}); "
                            "--resume none starts again")
        self.compare(file, state.get("config"), "a folder was named" if chosen else "")
        try:
            self.load(state, file)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise UserError(f"{file} is no whole state of this stage ({type(error).__name__}: "
                            f"{first_line(error)}); --resume none starts again")

    def tidy(self):
        """What a kill left undone or half done: an unfinished file, or a state without its second name."""
        folder = Path(self.cfg.out) / self.cfg.stage
        if self.run.rank or not folder.is_dir():
            return
        sweep(folder.parent)
        sweep(folder)
        ours = self.saved and self.cfg.resume in ("auto", "anyway")
        if ours and not (folder / f"{self.step:07d}").is_dir():
            keep(folder.parent, self.cfg.stage, self.step, self.cfg.keep)

    def compare(self, file, config, consent):
        """A run is its seed, its data and its shapes: with others, steps 1 to 500 and 501 to 1000 belong to
        different runs, and no number at the end is what it seems. It is said, and wants --resume anyway."""
        try:
            before = flat(json.loads(config))
        except (TypeError, ValueError):
            raise UserError(f"{file} does not say how it was made; --resume none starts again")
        now = flat(json.loads(json.dumps(self.cfg.settings())))
        ours = [name for name in now if name in before and name not in MAY_CHANGE
                and ("." not in name or name.split(".")[0] in self.nets)]
        differs = [f"--{name} {before[name]}, now {now[name]}" for name in ours if before[name] != now[name]]
        if differs and (consent or self.cfg.resume == "anyway"):
            if self.run.rank == 0:
                print(f"{self.cfg.stage}: goes on from another run: {'; '.join(differs)}")
        elif differs:
            raise UserError(f"{file} is of another run: {'; '.join(differs)}. --resume anyway goes on from "
                            "it, --resume none starts again, or give another --out")

    # Everything is loaded by name and checked, but Adam's moments and the averages, which torch keeps by
    # their place in the list of parameters: strict=True notices a list of another length, load_strict a
    # network of another shape. Moments are cut after torch's own loading, for that knows nothing of parts.

    @torch.no_grad()
    def load(self, state, file):
        for name, player in self.players.items():
            mine = player.state_dict()
            cut = {key: part_of(tensor, mine[key]) if key in mine else tensor
                   for key, tensor in state["players"][name].items()}
            load_strict(player, cut, file)
            optimizer = self.optimizers[name]
            optimizer.load_state_dict(state["optimizers"][name])
            for parameter, values in optimizer.state.items():
                for key, value in values.items():
                    if torch.is_tensor(value) and value.shape == parameter.shape:
                        values[key] = part_of(value, parameter)
            for average, saved in zip(self.ema[name], state["ema"][name], strict=True):
                average.copy_(part_of(saved, average))
        self.step = self.saved = int(state["step"])
        self.skipped = self.skipped + int(state["skipped"])
        torch.set_rng_state(state["rng"])
        if self.run.device != "cpu" and "rng_cuda" in state:
            torch.cuda.set_rng_state(state["rng_cuda"])


# Flags that may change in the middle of a run: how far it goes, how fast, what is seen of it, and how the
# machine is used. A flag that is not in this list is taken for a part of the run, new ones included: to ask
# once too often is the cheaper mistake. A network's fields are compared where the stage trains it.
MAY_CHANGE = {"config", "stage", "out", "resume", "steps", "lr", "warmup", "decay", "clip", "ema", "workers",
              "accumulate", "bf16", "compile", "checkpointing", "shard", "cache", "cached", "encode_batch",
              "save_every", "preview_every", "previews", "log_every", "keep", "init", "vae_weights",
              "text_weights", "lpips"}


def flat(config, prefix=""):
    """{"dit": {"depth": 6}} -> {"dit.depth": 6}"""
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def clips_of(batch):
    """How a person finds the clips of a batch again: their numbers and their captions."""
    indices, captions = batch.get("index", ()), batch.get("caption", ())
    captions = [*captions, *[""] * (len(indices) - len(captions))]
    return [f"{int(index)} {caption[:40]!r}" if caption else f"{int(index)}"
            for index, caption in zip(indices, captions)]


def kept(folder):
    """[(step, its folder)] of a stage, oldest first. Pictures have such names, too, but are no folders."""
    found = [path for path in folder.glob("[0-9]" * 7 + "*") if path.is_dir() and path.name.isdigit()]
    return sorted((int(path.name), path) for path in found)


# Why older states? A run that diverges does so over some hundred steps: the loss creeps up, then there are
# nans. Every save in between is finite, sick, and written over the last good one. And a curve over training
# (FVD at 10, 20, 30 thousand steps) needs the weights of those steps: --keep 100. A
# name is not a file but an entry that points at one; two names may point at the same bytes, and the bytes
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
            try:
                os.link(path, temporary / path.name)
            except OSError:                                 # exFAT has no second names
                shutil.copy(path, temporary / path.name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {first_line(error)}; free some space, or --keep 0")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    there = [path for at, path in kept(out / stage) if at <= step]
    # those after it are of a run that was given up, when an older state was resumed
    unwanted = there[:max(len(there) - 1 - older, 0)] + [path for at, path in kept(out / stage) if at > step]
    for path in unwanted:
        shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------------------------------------- the loop

# With all the above in place the loop is short. Its order is what matters: look before log, so that a person
# reads of a step that was left out before its null loss; look before save, so that nothing is saved while
# steps are being left out (the weights may be sick already, though still finite: that is how a run diverges,
# and why --keep keeps older states); save before show, so that a preview that fails costs a picture.

# Exercise: take `and not trainer.failed` out of fit() and run test_trainer.py. Which test falls, and what would
# a person have lost?

def learning_rate(cfg, step):
    """Linear warm-up, constant, linear decay to zero over the last `decay` of the steps.

    The papers train at a constant rate and sample from the average. A toy that has ten thousand steps gains
    by the decay what the papers gain by ten times as many: the last steps' noise goes. (Stage vae of the toy:
    3 dB.) Warm-up lets Adam's v fill before whole steps are made."""
    warm = min(1.0, (step + 1) / max(cfg.warmup, 1))
    return cfg.lr * min(warm, (cfg.steps - step) / (cfg.decay * cfg.steps) if cfg.decay else 1.0)


def fit(cfg, run, stage):
    """One stage from its start, or from where it stopped, to its last step.

    What a person may rely on: Ctrl-C costs no step, kill -9 costs those since the last save, a full disk
    costs the same, and the same command always goes on. Each is a test in test_faults.py.

    "end" is the last step, "stopped" a signal that all ranks agreed on: both save. After a save nothing of
    the run is in this process that is not on the disk, and the process may end by an error as by success."""
    if cfg.shard and not {"dit", "videodit", "latte"} & stage.players.keys():
        raise UserError(f"--shard: is for transformers; stage {cfg.stage}'s networks fit every card whole")
    trainer, folder = Trainer(cfg, run, stage), Path(cfg.out) / cfg.stage
    trainer.resume()
    trainer.tidy()
    if trainer.step >= cfg.steps:
        if run.rank == 0:
            print(f"{cfg.stage}: already at step {trainer.step} of {cfg.steps}; --resume none starts again")
        return
    if cfg.bf16 and not has_bf16(run.device) and run.rank == 0:
        print(f"{cfg.stage}: this device does not multiply in bf16: in float32, which is faster")
    watch = Watch(cfg, run, trainer, folder)
    # A resumed run asks for the batches from its step on, and gets the very ones that it would have seen: the
    # order is computed, not remembered, so nothing has to be read past.
    source, ends = stage.batches(trainer.step), deque()
    while trainer.step < cfg.steps:
        # On a GPU the next four lines only send work: they return long before it is done.
        micros = watch.fetch(source)
        shown = trainer.take_step(micros)
        if run.device != "cpu":                             # at most two steps are under way; see stops_after
            ends.append(torch.cuda.Event())
            ends[-1].record()
            if len(ends) > 1:
                ends.popleft().synchronize()
        # From here on all is decided by numbers that are the same on every rank: the step, and what was
        # agreed.
        end, step = trainer.step == cfg.steps, trainer.step
        stopped = stops_after(run, step)
        saving = end or stopped or step % cfg.save_every == 0
        if saving or step % cfg.log_every == 0 or run.device == "cpu":
            trainer.look()
        if end or step % cfg.log_every == 0:
            watch.log(shown, micros)
        if saving and not trainer.failed:                   # never over a good one while steps are left out
            trainer.save(stage.finish if end else None)
        if stage.preview and (end or step % cfg.preview_every == 0):
            show(trainer, folder / f"{step:07d}")
        watch.bar.update()
        if stopped and not end:
            watch.bar.close()
            raise UserError(f"stopped by a signal at step {step}, saved; the same command goes on from there")
    watch.bar.close()
    if trainer.failed:
        raise UserError(f"{cfg.stage}: the last {int(trainer.failed)} steps were left out, so the end was "
                        f"not saved; {trainer.whereabouts()}")
    if run.rank == 0:
        print(f"{cfg.stage}: weights in {cfg.out}/, log and previews in {folder}/")


# The previews of a stage start from the same noise and ask for the same prompts each time: what changes from
# one to the next is then the network alone, and a row of them in the report is a film of its learning.

def show(trainer, name):
    """A preview by the averages. A sharded network needs all ranks to run: all but one draw for nobody."""
    if trainer.run.rank and not trainer.cfg.shard:
        return
    with trainer.averaged() as nets, tempfile.TemporaryDirectory() as nowhere:
        trainer.stage.preview(nets, name if trainer.run.rank == 0 else Path(nowhere) / name.name)


# ---------------------------------------------------------------------------------------------- looking

# Is it learning, how fast, and what does it wait for? A line of the log answers with a loss, a gradient norm
# (its jumps come before the loss's), samples and tokens a second, the share of time spent waiting for data
# (above 0.05: more --workers, or cached latents), peak memory, and on a GPU with MFU: 0.4 is very good for a
# transformer of this kind, below 0.1 something waits. log.jsonl is strict JSON, a line a time, so that any
# tool reads it; a number that is none (a left-out step's loss) is null there.

PEAKS = {"A100": 312, "H100": 989, "H200": 989}         # TFLOP/s, dense bf16; TF32, for fp32, is half of it


class Watch:
    """The bar, log.jsonl, and what a step's time went to.

    Rates are means since this process began; a resumed run begins to count anew. Tokens are counted where
    they are counted best: at the door of the last layer, by a hook, whatever the stage feeds in."""

    def __init__(self, cfg, run, trainer, folder):
        self.cfg, self.run, self.trainer, self.folder = cfg, run, trainer, folder
        self.bar = tqdm(total=cfg.steps, initial=trainer.step, desc=cfg.stage, disable=run.rank > 0,
                        mininterval=1)
        self.started, self.first, self.waited = time.perf_counter(), trainer.step, 0.0
        self.tokens, self.flops = 0, 0.0
        for name, module in (pair for player in trainer.players.values() for pair in player.named_modules()):
            if name.endswith("final_layer"):
                module.register_forward_pre_hook(self.count_tokens)
        if run.rank == 0:
            text = json.dumps(cfg.settings(), indent=1)
            write_atomic(folder / "settings.json", lambda to: to.write_text(text, "utf-8"))
            cut_log(folder / "log.jsonl", trainer.step)

    def count_tokens(self, module, given):
        if torch.is_grad_enabled():
            self.tokens += given[0].shape[:-1].numel()

    def fetch(self, source):
        """The step's micro-batches, on their way to the device. Pinned memory lets the copy run beside the
        last step, which the GPU is still computing; that, and workers that read ahead, is all the prefetching
        there is. The clips' numbers stay behind: they are for people."""
        # What is measured is how long Python waited. On a GPU that may be while the last step still runs, so
        # a share of 0.3 can cost nothing; one near 1 means that the GPU has nothing to do.
        before, micros = time.perf_counter(), []
        for micro in (next(source) for _ in range(self.cfg.accumulate)):
            if self.run.device != "cpu":
                micro = {key: value.pin_memory().to(self.run.device, non_blocking=True)
                         if torch.is_tensor(value) and key != "index" else value
                         for key, value in micro.items()}
            micros.append(micro)
        self.waited += time.perf_counter() - before
        return micros

    def log(self, shown, micros):
        """The numbers of a step on the bar, and as a line of log.jsonl: what a curve is drawn from later.

        Losses are the whole batch's: the mean over micro-batches (in turn) and over ranks (here)."""
        means = {key: value for key, value in shown.items() if torch.is_tensor(value)}
        values = torch.stack([value.float().reshape(()) for value in means.values()])
        if self.run.world > 1:
            dist.all_reduce(values)
            values /= self.run.world
        numbers = dict(zip(means, values.tolist()))
        if self.run.rank:
            return
        step, took = self.trainer.step, time.perf_counter() - self.started
        done = step - self.first
        line = {"step": step, "lr": shown["lr"], **numbers, "skipped": int(self.trainer.skipped),
                "steps_per_s": done / took, "samples_per_s": done * self.cfg.batch / took,
                "wait": self.waited / took, "eta_s": (self.cfg.steps - step) * took / done,
                "memory_gb": peak_memory(self.run)}
        if self.tokens:
            line["tokens_per_s"] = self.tokens * self.run.world / took
        if self.mfu(took / done, micros):
            line["mfu"] = self.mfu(took / done, micros)
        self.bar.set_postfix({key: f"{value:.4g}" for key, value in line.items()
                              if key in numbers or key in ("samples_per_s", "wait", "mfu")})
        append_line(self.folder / "log.jsonl", line)

    @torch.no_grad()
    def mfu(self, seconds, micros):
        """Model FLOPs utilisation: the arithmetic that the trained networks need (forward, and twice that
        backward; what is computed again to save memory is not counted) over what the card could do."""
        name = torch.cuda.get_device_name() if self.run.device != "cpu" else ""
        peak = next((peak for known, peak in PEAKS.items() if known in name), 0) / (1 if self.cfg.bf16 else 2)
        if not peak or not self.tokens or self.cfg.shard:   # to count, rank 0 runs a forward by itself
            return 0.0
        if not self.flops:
            with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"), \
                    autocast(self.cfg, self.run):
                for player in self.trainer.players.values():
                    player(dict(micros[0]))
            counts = counter.get_flop_counts()
            # by module, so that a frozen VAE or text encoder in the step, which has no backward, is not
            # tripled
            wanted = {f"Player.nets.{name}" for name in self.trainer.nets}
            self.flops = 3 * len(micros) * sum(sum(counts[key].values()) for key in counts if key in wanted)
        return self.flops / seconds / peak / 1e12


def peak_memory(run):
    """GB: of the GPU, else of this process."""
    if run.device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource                                     # Windows has none
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
