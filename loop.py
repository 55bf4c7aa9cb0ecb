"""loop.py - one loop for every stage: ranks, steps, what is on disk, and what happens when something breaks.
Paper    none; both papers train "with AdamW" and say no more of it
Shapes   a batch is what its stage made of it; the loop looks at its losses alone
Differs  Lightning, Accelerate and Trainer hide this loop behind hooks; here it is one page
Reads    after presets.py, whose fields (cfg) it follows, before train.py, whose stages it trains
Run me   python loop.py"""

import contextlib
import dataclasses
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from checkpoint import UserError, load_strict, read_state, save_network, write_atomic


# ---------------------------------------------------------------------------------------------- distributed

@dataclass
class Run:
    """Who we are among the processes; one process takes the same path."""
    rank: int = 0
    world: int = 1
    device: str = "cpu"


def setup():
    """torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; without it this is rank 0 of 1."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if device != "cpu":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device != "cpu" else "gloo")
    return Run(rank, world_size, device)


def all_ranks(run, flag):
    """True where it is true on any rank, so that all skip, save or stop together."""
    if run.world == 1:
        return bool(flag)
    told = torch.tensor(float(bool(flag)), device=run.device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return told.item() > 0


# ---------------------------------------------------------------------------------------------- what a stage is

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
    return torch.autocast(run.device.split(":")[0], torch.bfloat16, enabled=cfg.bf16)


# ---------------------------------------------------------------------------------------------- state on disk

class Trainer:
    """The networks of a stage with their optimizers and averages: what a checkpoint has to hold."""

    def __init__(self, cfg, run, stage):
        self.cfg, self.run, self.stage, self.step, self.skipped = cfg, run, stage, 0, 0
        self.players = {name: player.to(run.device) for name, player in stage.players.items()}
        self.nets = {name: net for player in self.players.values() for name, net in player.nets.items()}
        self.trained = {name: [p for p in player.parameters() if p.requires_grad]
                        for name, player in self.players.items()}
        self.ema = {name: [p.detach().clone() for p in values] for name, values in self.trained.items()}
        self.optimizers = {name: torch.optim.AdamW(values, cfg.lr, tuple(cfg.betas),
                                                   weight_decay=cfg.weight_decay, fused=True)
                           for name, values in self.trained.items()}
        self.wrapped = {name: self.parallel(player) for name, player in self.players.items()}

    def parallel(self, player):
        if self.run.world == 1:
            return player
        # no device_ids: with them DDP hands each player a copy of the batch; a game's players share theirs
        return nn.parallel.DistributedDataParallel(player, gradient_as_bucket_view=True,
                                                   broadcast_buffers=False, find_unused_parameters=True)

    def update_ema(self, name):
        decay = min(self.cfg.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema[name], [p.detach() for p in self.trained[name]], 1 - decay)

    @contextlib.contextmanager
    def averaged(self):
        """Inside, the networks hold their averages; outside, the weights that are being trained."""
        pairs = [pair for name in self.trained for pair in zip(self.trained[name], self.ema[name])]
        for parameter, average in pairs:
            parameter.data, average.data = average.data, parameter.data
        modes = {net: net.training for net in self.nets.values()}
        try:
            yield {name: net.eval() for name, net in self.nets.items()}
        finally:
            for parameter, average in pairs:
                parameter.data, average.data = average.data, parameter.data
            for net, mode in modes.items():
                net.train(mode)

    def save(self, finish=None):
        """Averages as NAME.safetensors, what sampling loads; the rest as state.pt, what resuming loads."""
        out = Path(self.cfg.out)
        state = {"step": self.step, "skipped": self.skipped, "rng": torch.get_rng_state(), "ema": self.ema,
                 "players": {name: player.state_dict() for name, player in self.players.items()},
                 "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
                 "config": json.dumps(dataclasses.asdict(self.cfg))}
        with self.averaged() as nets:
            if finish:
                finish(nets)
            if self.run.rank == 0:
                about = {"size": self.cfg.size, "frames": self.cfg.frames, "shift": self.cfg.shift,
                         "step": self.step, **self.stage.about}
                for name, net in nets.items():
                    save_network(out / f"{name}.safetensors", net, extra=about)
        if self.run.rank == 0:
            write_atomic(out / self.cfg.stage / "state.pt", lambda temporary: torch.save(state, temporary))

    def resume(self):
        """Take up the run in --out (auto) or in the folder that --resume names."""
        where = Path(self.cfg.out) / self.cfg.stage if self.cfg.resume == "auto" else Path(self.cfg.resume)
        if self.cfg.resume == "none" or (self.cfg.resume == "auto" and not (where / "state.pt").is_file()):
            return
        if not (where / "state.pt").is_file():
            raise UserError(f"--resume {self.cfg.resume}: no state.pt there; "
                            "give auto, none, or a folder OUT/STAGE")
        state = read_state(where / "state.pt")
        if state.get("players", {}).keys() != self.players.keys():
            raise UserError(f"{where / 'state.pt'} is not of stage {self.cfg.stage} with these flags "
                            f"(it holds {', '.join(state.get('players', {})) or 'no networks'}); "
                            "--resume none starts again")
        for name, player in self.players.items():
            load_strict(player, state["players"][name], where / "state.pt")
            self.optimizers[name].load_state_dict(state["optimizers"][name])
            for mine, saved in zip(self.ema[name], state["ema"][name]):
                mine.copy_(saved)
        self.step, self.skipped = state["step"], state["skipped"]
        torch.set_rng_state(state["rng"])


# ---------------------------------------------------------------------------------------------- the loop

def learning_rate(cfg, step):
    """Linear warm-up, constant, linear decay to zero over the last `decay` of the steps."""
    warm = min(1.0, (step + 1) / max(cfg.warmup, 1))
    return cfg.lr * min(warm, (cfg.steps - step) / (cfg.decay * cfg.steps) if cfg.decay else 1.0)


STOP = []    # signals received: the loop ends after its step, saved


def take_turn(trainer, name, micros, lr):
    """One player's step: gradients over the micro-batches, clipped, then applied, unless loss or gradient is
    not finite on any rank. Returns (whether it was not, {name: number for the log})."""
    cfg, run, player, optimizer = trainer.cfg, trainer.run, trainer.wrapped[name], trainer.optimizers[name]
    for i, micro in enumerate(micros):
        last = i + 1 == cfg.accumulate or run.world == 1
        with contextlib.nullcontext() if last else player.no_sync():
            with autocast(cfg, run):
                loss, log = player(micro)
            (loss / cfg.accumulate).backward()
    norm = nn.utils.clip_grad_norm_(trainer.trained[name], cfg.clip)
    bad = all_ranks(run, not (torch.isfinite(loss) & torch.isfinite(norm)))
    for group in optimizer.param_groups:
        group["lr"] = lr
    if not bad:
        optimizer.step()
        trainer.update_ema(name)
    optimizer.zero_grad(set_to_none=True)
    return bad, {name: loss.detach(), "norm": norm, **log} if name != "disc" else log


def write_log(folder, bar, run, line, shown):
    """The numbers of a step on the bar, and as a line of log.jsonl: what a curve is drawn from later."""
    numbers = {key: float(value) for key, value in shown.items()}
    bar.set_postfix({key: f"{value:.4g}" for key, value in numbers.items()})
    if run.rank == 0:
        with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, **numbers}) + "\n")


def fit(cfg, run, stage):
    """One stage from its start, or from where it stopped, to its last step."""
    trainer = Trainer(cfg, run, stage)
    trainer.resume()
    folder = Path(cfg.out) / cfg.stage
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.step >= cfg.steps:
        print(f"{cfg.stage}: already at step {trainer.step} of {cfg.steps}; --resume none starts again")
        return
    source, shown, failed = stage.batches(trainer.step), {}, 0
    bar = tqdm(total=cfg.steps, initial=trainer.step, desc=cfg.stage, disable=run.rank > 0, mininterval=1)
    started, first = time.perf_counter(), trainer.step

    while trainer.step < cfg.steps:
        lr, micros = learning_rate(cfg, trainer.step), [next(source) for _ in range(cfg.accumulate)]
        micros = [{k: v.to(run.device) if torch.is_tensor(v) else v for k, v in micro.items()}
                  for micro in micros]

        bad = False
        for name in trainer.players:                        # in a game each on what the one before left
            skipped, log = take_turn(trainer, name, micros, lr)
            bad |= skipped
            shown.update(log)
        failed = failed + 1 if bad else 0
        trainer.skipped += bad
        if failed >= 10:
            raise UserError(f"{cfg.stage}: the loss was not finite 10 times in a row at step {trainer.step}; "
                            f"the last good checkpoint is in {cfg.out}. Lower --lr, or try --no-bf16")
        trainer.step += 1
        bar.update()

        end = trainer.step == cfg.steps
        if end or trainer.step % cfg.log_every == 0:
            speed = (trainer.step - first) / (time.perf_counter() - started)
            write_log(folder, bar, run, {"step": trainer.step, "lr": lr, "steps_per_s": speed,
                                         "skipped": trainer.skipped}, shown)
        stopped = all_ranks(run, STOP)
        if end or stopped or trainer.step % cfg.save_every == 0:
            trainer.save(stage.finish if end else None)
        if stage.preview and run.rank == 0 and (end or trainer.step % cfg.preview_every == 0):
            with trainer.averaged() as nets:
                stage.preview(nets, folder / f"{trainer.step:07d}")
        if stopped:
            raise UserError(f"stopped by a signal at step {trainer.step}, saved; "
                            "the same command goes on from there")
    bar.close()
    if run.rank == 0:
        print(f"{cfg.stage}: weights in {cfg.out}/, log and previews in {folder}/")
