"""The loop: one run however cut and spread, what is saved and taken up, steps left out, what is shown."""

import copy
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from support import checkpoints, cli, trainer
import train
from support.checkpoints import load_network, read_state, save_state
from support.cli import UserError
from support.ops import has_bf16
from conftest import clips_in, script
from dit import MMDiT
from support.trainer import Player, Run, Stage, Trainer
from train import learning_rate
from presets import Config, apply, parse

STAGES = ("classifier", "dit", "dpvae", "videodit", "latte")
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def signals():
    """train.main() takes the signals of its process; here it gives them back. A shell starts what goes
    to its background deaf to SIGINT, and nohup to SIGHUP, which train.main() respects: both are heard."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP,
                                                                 signal.SIGUSR1)}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    cli.STOP.clear()


def run(out, stage, *flags):
    """Train a stage of the tiny preset, with a small preview at its end and no held-out loss, and return what
    it left for resuming."""
    small = ["--config", "tiny", "--previews", "1", "--valid_every", "0"]
    train.main([*small, "--stage", stage, "--out", str(out), *map(str, flags)])
    return read_state(Path(out) / stage / "state.pt")


def same(a, b):
    """Bit for bit, through dicts and lists."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def felt(players):
    """Weights without the key biases of softmax attention: it does not feel them, so their gradient is
    rounding errors and nothing else, and Adam makes steps of its own size of those."""
    return {player: {name: tensor for name, tensor in state.items() if not name.endswith(".k.bias")}
            for player, state in players.items()}


def differs(state, other):
    """The parts of two states that are not the same; the flags do not count."""
    return [name for name in state if name != "config" and not same(state[name], other[name])]


# ------------------------------------------------------------ one run, however cut


@pytest.mark.parametrize("stage", [
    "classifier", *(pytest.param(stage, marks=slow) for stage in ("dpvae", "dit", "videodit", "latte"))])
def test_two_halves_are_one_run(tiny, tmp_path, stage):
    """Bit for bit: weights, EMA, optimizers, and with them the order of the data. (The classifier alone draws
    from torch's own generator. A VideoDiT with a held-out loss between its halves: test_train.py.)"""
    whole, halves = tiny.fork(tmp_path / "whole"), tiny.fork(tmp_path / "halves")
    once = run(whole, stage, "--steps", 10)
    assert run(halves, stage, "--steps", 5)["step"] == 5
    assert differs(once, run(halves, stage, "--steps", 10)) == []
    name = f"{stage}.safetensors"
    assert same(read_state(whole / name), read_state(halves / name))
    assert len(once["players"]) == 1 + (stage == "dpvae")


RANKS = """
import sys
import presets
import train
from support import trainer
from support.cli import polite
def main():
    run = trainer.setup()
    with trainer.told_once(run):
        for stage, flags in (("videodit", []), ("dpvae", []), ("dit", []), ("dit", ["--shard"])):
            out = sys.argv[1] + ("-shard" if flags else "")
            words = ["--config", "tiny", "--stage", stage, "--out", out, *sys.argv[2:], *flags]
            for config in presets.parse(words):
                train.train(config, run)
polite(main)
"""


def torchrun(*words, ranks=2, nodes=()):
    """A command on two processes, as README prints it."""
    where = nodes or ("--standalone",)
    return ["-m", "torch.distributed.run", *where, "--nproc-per-node", ranks, *words]


THREAD = {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}


@slow
def test_two_processes_reach_the_weights_of_one(tiny, tmp_path):
    """Gloo, the same global batch: a game of two players, images mixed with clips, whole networks and
    sharded ones. Weights, EMA and the logged loss; to 1e-4, sharded to 1e-5."""
    one, two, cut = (tiny.fork(tmp_path / name) for name in ("one", "two", "two-shard"))
    flags = "--steps", "4", "--warmup", "0", "--disc_start", "2", "--disc_warmup", "0", "--log_every", "1", \
        "--valid_every", "2"
    (tmp_path / "ranks.py").write_text(RANKS)
    done = script(*torchrun(tmp_path / "ranks.py", two, *flags), extra=THREAD)
    assert done.code == 0, done.err[-4000:]
    for stage in ("videodit", "dpvae", "dit"):              # in this order both read the same cached latents
        alone, together = run(one, stage, *flags), read_state(two / stage / "state.pt")
        assert_close(felt(together["players"]), felt(alone["players"]), atol=1e-4, rtol=0)
        logs = [[line[stage] for line in checkpoints.read_log(out / stage / "log.jsonl")]
                for out in (one, two)]
        assert logs[0] == pytest.approx(logs[1], abs=1e-4) and len(logs[0]) == 4
        by_time = [{key: value for line in checkpoints.read_log(out / stage / "log.jsonl")
                    for key, value in line.items() if key.startswith(("train_t", "valid_t"))}
                   for out in (one, two)]
        assert by_time[0] == pytest.approx(by_time[1], abs=1e-4) and (stage == "dpvae" or len(by_time[0]) > 8)
    sharded = read_state(cut / "dit" / "state.pt")
    assert_close(felt(sharded["players"]), felt(together["players"]), atol=1e-5, rtol=0)
    assert_close(sharded["ema"], together["ema"], atol=1e-5, rtol=0)


HALF = """
import sys
import train
from support import trainer
from support.cli import polite
trainer.has_bf16 = lambda device: True
polite(lambda: train.main(sys.argv[1:]))
"""


@slow
def test_a_shard_in_bf16_learns_as_autocast_does(tiny, tmp_path):
    """Blocks are gathered in bf16, as autocast would round their weights: to its rounding the same four steps
    (in float32 they are further away). The ranks' parts stay in float32."""
    (tmp_path / "half.py").write_text(HALF)
    outs = [tiny.fork(tmp_path / name) for name in ("whole", "cut", "exact")]
    flags = "--config", "tiny", "--stage", "dit", "--steps", 4, "--warmup", 0, "--valid_every", 2, "--out"
    for out, more in zip(outs, (["--bf16"], ["--bf16", "--shard"], ["--shard"])):
        done = script(*torchrun(tmp_path / "half.py", *flags, out, *more), extra=THREAD)
        assert done.code == 0, done.err[-4000:]
    whole, cut, exact = (read_state(out / "dit" / "state.pt")["players"]["dit"] for out in outs)
    far = lambda a, b: sum((a[name] - b[name]).square().sum() for name in a).sqrt()
    assert all(tensor.dtype == torch.float32 for tensor in cut.values())
    assert far(whole, cut) < 0.5 * far(whole, exact)


@pytest.mark.slow
def test_one_rank_then_two_then_one_is_one_run(tiny, tmp_path):
    """A run moves between machines: 2 + 2 + 2 steps on 1, 2 (sharded, in micro-batches) and 1 processes,
    against 6 on one."""
    whole, moved = tiny.fork(tmp_path / "whole"), tiny.fork(tmp_path / "moved")
    flags = "--warmup", "0", "--save_every", "1"
    once = run(whole, "videodit", "--steps", 6, *flags)
    run(moved, "videodit", "--steps", 2, *flags)
    words = "--config", "tiny", "--stage", "videodit", "--out", moved, "--steps", 4, "--shard", \
        "--accumulate", 2, *flags
    done = script(*torchrun("train.py", *words), extra=THREAD)
    assert done.code == 0, done.err[-4000:]
    assert_close(felt(run(moved, "videodit", "--steps", 6, *flags)["players"]), felt(once["players"]),
                 atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_launchers_on_two_nodes_are_one_run(tmp_path):
    """Two machines are two launchers that meet at one address; here both are this machine's loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", meet, "--rdzv-id", "test")
    command = [sys.executable, *map(str, torchrun("train.py", "--config", "tiny", "--stage", "classifier",
                                                  "--out", tmp_path / "two", "--steps", 4,
                                                  ranks=1, nodes=nodes))]
    launchers = [subprocess.Popen(command, env={**os.environ, **THREAD}, stderr=subprocess.PIPE, text=True)
                 for _ in range(2)]
    for launcher in launchers:
        assert launcher.wait(timeout=250) == 0, launcher.stderr.read()[-4000:]
    alone = run(tmp_path / "one", "classifier", "--steps", 4)
    assert_close(read_state(tmp_path / "two" / "classifier" / "state.pt")["players"], alone["players"],
                 atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(2))
def test_all_stages_on_two_processes_end_where_one_ends(tmp_path, repeat):
    """No rank reads what another still writes, between six stages and their caches: weights to 1e-4 (1e-5 was
    measured). Each process has one thread: with AVX2 alone, two sum in another order than one, and after 20
    steps that is 1e-3. Without LPIPS: where an untrained network's channels are all nearly 0, its slope is as
    steep as they are small, and 4e-7 in the classifier became 1e-3 in the VAE (AVX-512)."""
    words = "train.py", "--config", "tiny", "--stage", "all", "--lpips_weight", "0", "--out"
    for command in ([*words, tmp_path / "one"], torchrun(*words, tmp_path / "two")):
        done = script(*command, extra=THREAD)
        assert done.code == 0, done.err[-4000:]
    for stage in STAGES:
        one, two = (read_state(tmp_path / out / stage / "state.pt") for out in ("one", "two"))
        assert_close(felt(two["players"]), felt(one["players"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stage", [pytest.param("dpvae", marks=slow), "videodit"])
def test_two_micro_batches_are_one_batch(tiny, tmp_path, stage):
    """Accumulated gradients: same clips, same noise, same mean; the weights agree to 1e-5 after 2 steps."""
    flags = "--steps", 2, "--warmup", 0, "--disc_start", 0, "--disc_warmup", 0
    whole = run(tiny.fork(tmp_path / "whole"), stage, *flags)
    parts = run(tiny.fork(tmp_path / "parts"), stage, *flags, "--accumulate", 2)
    assert_close(felt(parts["players"]), felt(whole["players"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGHUP, marks=slow),
                                    pytest.param(signal.SIGUSR1, marks=slow)])
def test_a_signal_saves_and_the_same_command_goes_on(tiny, tmp_path, monkeypatch, number):
    """In step 3 of 6: that step is finished and kept, and the end is that of a run left alone."""
    whole = run(tiny.fork(tmp_path / "whole"), "dit", "--steps", 6) if number == signal.SIGTERM else None
    out, honest = tiny.fork(tmp_path / "cut"), train.transformer_loss

    def loss(cfg, run, net, text, vae, batch, *more):
        if batch["step"] == 2:
            os.kill(os.getpid(), number)
        return honest(cfg, run, net, text, vae, batch, *more)
    monkeypatch.setattr(train, "transformer_loss", loss)
    with pytest.raises(UserError, match="step 3, saved; the same command goes on"):
        run(out, "dit", "--steps", 6)
    cli.STOP.clear()
    if whole:
        assert differs(whole, run(out, "dit", "--steps", 6)) == []
        steps = [line["step"] for line in checkpoints.read_log(out / "dit" / "log.jsonl")]
        assert steps == sorted(set(steps)) and steps[-1] == 6
    else:
        assert read_state(out / "dit" / "state.pt")["step"] == 3


# ------------------------------------------------------------ states

def test_resume_can_be_refused_or_sent_elsewhere(tmp_path, capsys):
    """none starts again; a folder OUT/STAGE is taken up in another --out; a finished run says so."""
    here, there = tmp_path / "here", tmp_path / "there"
    first = fit(here, 2)
    fit(here, 2)
    assert "already at step 2 of 2; --resume none starts again" in capsys.readouterr().out
    assert differs(first, fit(here, 2, resume="none")) == []
    moved = fit(there, 4, resume=str(here / "line"))
    assert differs(fit(here, 4), moved) == []


def test_a_state_that_cannot_be_resumed_is_explained(tiny, tmp_path):
    """Absent, of another stage, or cut short: one line, and the weights that are there stay."""
    out = tiny.fork(tmp_path / "run")
    before = read_state(out / "dit.safetensors")
    with pytest.raises(UserError, match="no state.pt there; give auto, none, or a folder"):
        run(out, "dit", "--resume", tmp_path)
    with pytest.raises(UserError, match="is not of stage dit .*it holds classifier"):
        run(out, "dit", "--resume", tiny.folder / "classifier")
    whole = (tiny.folder / "dit" / "state.pt").read_bytes()
    (out / "dit" / "state.pt").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match=r"state\.pt .*is truncated") as error:
        run(out, "dit")
    assert "\n" not in str(error.value) and same(before, read_state(out / "dit.safetensors"))


def test_another_run_is_not_gone_on_from_without_a_word(tmp_path, capsys):
    """Seed, batch, size, frames, data: what differs is named. Rates and lengths may change."""
    fit(tmp_path, 2)
    for flags, said in (({"seed": 7}, "--seed 0, now 7"), ({"data": "mp4s"}, "--data toy, now mp4s"),
                        ({"batch": 8, "size": 32}, "--size 64, now 32; --batch 16, now 8"),
                        ({"frames": 32}, "--frames 16, now 32")):
        with pytest.raises(UserError, match=f"is of another run: {said}.* --resume anyway goes on"):
            fit(tmp_path, 3, **flags)
    assert fit(tmp_path, 3, lr=0.01, save_every=7)["step"] == 3
    assert fit(tmp_path, 4, seed=7, resume="anyway")["step"] == 4
    assert "goes on from another run: --seed 0, now 7" in capsys.readouterr().out


def test_the_networks_it_learns_with_belong_to_a_run(tmp_path, capsys):
    """A finished VAE was trained on: whoever had learned with it went on with the new one without a word."""
    frozen = {"vae": torch.nn.Linear(2, 2)}
    fit(tmp_path, 2, frozen=frozen)
    torch.nn.init.zeros_(frozen["vae"].bias)
    with pytest.raises(UserError, match="it learned from vae [0-9a-f]{16}; now vae [0-9a-f]{16}. --resume any"):
        fit(tmp_path, 4, frozen=frozen)
    assert fit(tmp_path, 4, frozen=frozen, resume="anyway")["step"] == 4


def test_an_init_that_is_not_read_is_said(tmp_path, capsys):
    """The state in --out is what the run goes on from."""
    fit(tmp_path, 1)
    fit(tmp_path, 2, init="other.safetensors")
    assert re.search(r"goes on from \S+state.pt; --init other.safetensors is not read", capsys.readouterr().out)


def lose_state(out):
    (out / "line" / "state.pt").unlink()


def lose_all_states(out):
    shutil.rmtree(out / "line")


def link_to_nothing(out):
    lose_state(out)
    (out / "line" / "state.pt").symlink_to(out / "gone.pt")


@pytest.mark.parametrize("lose, back", [(lose_state, "--resume .*line/0000002 goes on"),
                                        (lose_all_states, "--resume FOLDER goes on from a copy"),
                                        (link_to_nothing, "--resume .*line/0000002 goes on")])
def test_work_without_its_state_is_not_written_over(tmp_path, lose, back):
    """Findings: the run began at step 0, its first save replaced the weights and deleted kept states."""
    fit(tmp_path, 2)
    lose(tmp_path)
    weights = (tmp_path / "line.safetensors").read_bytes()
    cfg = apply(Config(), {"out": str(tmp_path), "stage": "line"})
    with pytest.raises(UserError, match=f"no .*state.pt, .*{back}.*; --init .*; --resume none starts again"):
        trainer.refuse_to_overwrite(cfg)
    assert (tmp_path / "line.safetensors").read_bytes() == weights
    trainer.refuse_to_overwrite(dataclasses.replace(cfg, resume="none"))


def test_a_kill_inside_the_first_save_is_no_loss(tmp_path, monkeypatch):
    """After the weights, before the state: the same command goes on. After that save it would be a loss."""
    honest = trainer.write_atomic

    def killed(path, write):
        if path.name == "state.pt":
            raise KeyboardInterrupt
        honest(path, write)
    cfg = apply(Config(), {"out": str(tmp_path), "stage": "line"})
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, 2)
    assert (tmp_path / "line.safetensors").is_file()
    trainer.refuse_to_overwrite(cfg)
    fit(tmp_path, 2)
    lose_state(tmp_path)
    with pytest.raises(UserError, match="would write over"):
        trainer.refuse_to_overwrite(cfg)


@pytest.mark.parametrize("older, there", [(2, [3, 4, 5]), (0, []), (9, [1, 2, 3, 4, 5])])
def test_older_states_stay_the_newest_two_whole(tmp_path, older, there):
    """--keep K: each is a folder of its own to sample from, and the newest two to resume from."""
    states = [fit(tmp_path, step, save_every=1, keep=older) for step in range(1, 6)]
    assert [step for step, _ in trainer.kept(tmp_path / "line")] == there
    for step, folder in trainer.kept(tmp_path / "line"):
        assert load_network(Line, folder / "line.safetensors").layer.weight.shape == (1, 2)
        assert (folder / "state.pt").is_file() == (step > 3)
        if step > 3:
            assert differs(states[step - 1], read_state(folder / "state.pt")) == []


def test_a_run_goes_back_to_an_older_state(tmp_path):
    """It is the uninterrupted run; those after it were of a run that was given up, and go when one is saved."""
    straight = fit(tmp_path / "straight", 4)
    fit(tmp_path, 6, save_every=3, keep=9)
    again = fit(tmp_path, 4, save_every=1, keep=9, resume=str(tmp_path / "line" / "0000003"))
    assert differs(again, straight) == []
    assert [step for step, _ in trainer.kept(tmp_path / "line")] == [3, 4]
    assert [line["step"] for line in checkpoints.read_log(tmp_path / "line" / "log.jsonl")] == [1, 2, 3, 4]


def test_a_longer_schedule_is_said(tmp_path, capsys):
    """With --decay the learning rate had fallen to nearly nothing: more steps raise it."""
    fit(tmp_path, 2, decay=0.5)
    fit(tmp_path, 3, decay=0.5)
    assert "line: --steps 2, now 3: the learning rate goes on by the new numbers" in capsys.readouterr().out
    fit(tmp_path / "constant", 2)
    fit(tmp_path / "constant", 3)
    assert "learning rate" not in capsys.readouterr().out
    fit(tmp_path / "constant", 4, lr=1e-4)
    assert "now 0.0001: the learning rate goes on by the new numbers" in capsys.readouterr().out


def test_data_that_changed_are_another_run(mp4s, tmp_path):
    """Findings: of three videos two were deleted, and the resume went on without a word."""
    mine = Path(shutil.copytree(mp4s, tmp_path / "mine"))
    fit(tmp_path, 1, data_sets=(clips_in(mine, 8, 32),))
    for path in [*mine.glob("1.*"), *mine.glob("2.*")]:
        path.unlink()
    fewer = (clips_in(mine, 8, 32),)
    with pytest.raises(UserError, match="it learned from clips mine, 6 files, .*; now clips mine, 2 files"):
        fit(tmp_path, 2, data_sets=fewer)
    assert fit(tmp_path, 2, data_sets=fewer, resume="anyway")["step"] == 2


def test_what_the_data_are_is_rank_0s_word(monkeypatch):
    """Findings: two machines with a copy each, written at different times, could not resume."""
    def broadcast(found):
        assert found == [None]
        found[0] = ["clips, as rank 0 sees them"]
    monkeypatch.setattr(trainer.dist, "broadcast_object_list", broadcast)
    assert trainer.by_rank_0(Run(1, 2), lambda: ["clips, as rank 1 sees them"]) == ["clips, as rank 0 sees them"]


def swap_names(state):
    """As after a fork that defines two layers in another order: what torch keeps by place lies elsewhere."""
    state["names"]["line"]["optimizers"].reverse()
    moments = state["optimizers"]["line"]["state"]
    moments[0], moments[1] = moments[1], moments[0]
    state["names"]["line"]["ema"].reverse()
    state["ema"]["line"].reverse()


def test_moments_and_ema_follow_their_names(tmp_path):
    """Whatever their places."""
    expected = fit(tmp_path / "whole", 4)
    state = fit(tmp_path / "swapped", 2)
    swap_names(state)
    torch.save(state, tmp_path / "swapped" / "line" / "state.pt")
    assert differs(expected, fit(tmp_path / "swapped", 4)) == []


def moments_of(state):
    return state["optimizers"]["line"]["state"][0]


@pytest.mark.parametrize("spoil, said", [
    (lambda state: moments_of(state).update(exp_avg=torch.zeros(9, 9)), "another network"),
    (lambda state: moments_of(state).update(exp_avg=torch.zeros(())), "here .1, 2., is another network"),
    (lambda state: moments_of(state).pop("exp_avg"), "another optimizer"),
    (lambda state: state["ema"]["line"].reverse(), "another network"),
    (lambda state: state["names"]["line"]["ema"].reverse(), "another network"),
    (lambda state: state["names"]["line"].update(ema=["a", "b"]), "other parameters")])
def test_a_state_that_does_not_fit_is_never_written_into(tmp_path, spoil, said):
    """Findings: moments of another shape made the fused AdamW write into memory that was not its own."""
    state = fit(tmp_path, 2)
    spoil(state)
    torch.save(state, tmp_path / "line" / "state.pt")
    with pytest.raises(UserError, match=f"state.pt.*{said}.*; --resume none starts again"):
        fit(tmp_path, 3)


@pytest.mark.parametrize("flags, said", [("--seed 3", "--seed is 0 on rank 0 and 3 on"),
                                         ("--dit.depth 3", "--dit.depth is 2 "), ("--stage vae", "and vae on")])
def test_flags_that_differ_between_ranks_are_named(monkeypatch, flags, said):
    """Findings: another --seed on one rank trained to the end, another --save_every waited for ever."""
    command = lambda *words: parse(["--config", "tiny", *words])

    def gather(told, mine):
        told[:] = mine, [trainer.flat(config.settings()) for config in command(*flags.split())]
    monkeypatch.setattr(trainer.dist, "all_gather_object", gather)
    with pytest.raises(UserError, match=f"{said}.*same command"):
        trainer.refuse_different_flags(Run(0, 2), command())


@pytest.mark.parametrize("spoil", [lambda state: [1, 2], lambda state: {"step": 3},
                                   lambda state: {**state, "ema": {}}, lambda state: {**state, "config": "{"},
                                   lambda state: {**state, "step": None},
                                   lambda state: {**state, "optimizers": {"line": 3}}])
def test_a_malformed_state_is_one_line(tmp_path, spoil):
    """A list, a file of somebody else, one that lacks a part: never a stack trace."""
    torch.save(spoil(fit(tmp_path, 1)), tmp_path / "line" / "state.pt")
    with pytest.raises(UserError, match=r"state.pt is no whole state.*--resume none starts") as error:
        fit(tmp_path, 2)
    assert "\n" not in str(error.value)


def test_a_damaged_state_names_those_that_are_kept(tmp_path):
    """As a full disk or a broken copy leaves it; the run then goes on from the one that is named."""
    fit(tmp_path, 4, save_every=1)
    (tmp_path / "line" / "state.pt").write_bytes(b"half a state")
    with pytest.raises(UserError, match="state.pt.*2 states are kept: --resume .*0000003 goes back"):
        fit(tmp_path, 6)
    assert fit(tmp_path, 6, resume=str(tmp_path / "line/0000003"))["step"] == 6


# ------------------------------------------------------------ numbers


def test_the_rate_rises_holds_and_falls():
    """Linear warm-up over 10 steps, then constant, then linearly to zero over the last half of 100."""
    config = apply(Config(), {"lr": 1.0, "warmup": 10, "steps": 100, "decay": 0.5})
    for step, rate in ((0, 0.1), (4, 0.5), (9, 1.0), (49, 1.0), (50, 1.0), (75, 0.5), (99, 0.02)):
        assert learning_rate(config, step) == pytest.approx(rate)
    assert learning_rate(apply(config, {"decay": 0.0}), 99) == 1.0


def test_the_ema_warms_up():
    """decay = min(0.999, (1 + step) / (10 + step)): the first weights, which are noise, are forgotten."""
    net = torch.nn.Linear(1, 1, bias=False)
    trainer = Trainer(Config(), Run(), Stage({"net": Player({"net": net}, None)}, None, None))
    learner = trainer.learners["net"]
    for step, decay in ((0, 0.1), (5, 0.4), (90, 0.91), (100_000, 0.999)):
        learner.ema["nets.net.weight"][:], net.weight.data[:] = 2.0, 3.0
        learner.update_ema(step, torch.tensor(True))
        assert learner.ema["nets.net.weight"].item() == pytest.approx(2 * decay + 3 * (1 - decay), abs=1e-6)
    with trainer.averaged() as nets:
        assert nets["net"].weight.item() == pytest.approx(2.001, abs=1e-6)
    assert net.weight.item() == 3.0


# ------------------------------------------------------------ Muon

def test_muon_makes_all_directions_of_a_matrix_equally_long():
    """Singular values from 1 down to 0.01 all come out between 0.65 and 1.25, however the matrix lies."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 64), (32, 96), (96, 32)):
        u, s, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
        made = torch.linalg.svdvals(trainer.newton_schulz(u * torch.logspace(0, -2, len(s)) @ v))
        assert 0.65 < made.min() and made.max() < 1.25


def test_muon_is_the_published_one():
    """torch's own, momentum 0.95 with Nesterov, to the rounding of bf16; what is no matrix moves by AdamW."""
    matrix, vector = torch.randn(48, 16, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    mine, theirs = ([torch.nn.Parameter(p.clone()) for p in (matrix, vector)] for _ in range(2))
    muon = trainer.Muon([{"params": mine[1:]}, {"params": mine[:1]}], 0.02, weight_decay=0.1, fused=True)
    others = [torch.optim.Muon(theirs[:1], 0.02, weight_decay=0.1),
              torch.optim.AdamW(theirs[1:], 0.02, weight_decay=0.1, fused=True)]
    for step in range(5):
        for p, q in zip(mine, theirs):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.clone()
        for optimizer in (muon, *others):
            optimizer.step()
    assert (mine[0] - matrix).abs().max() > 0.02
    assert_close(mine[0], theirs[0], atol=3e-3, rtol=0)
    assert_close(mine[1], theirs[1], atol=0, rtol=0)

    before, momentum = mine[0].detach().clone(), muon.state[mine[0]]["momentum"].clone()
    muon.found_inf, mine[0].grad, mine[1].grad = torch.ones(()), torch.full((48, 16), math.nan), torch.ones(3)
    muon.step()                                             # as Learner.update tells it: leave this step out
    assert same([before, momentum], [mine[0].detach(), muon.state[mine[0]]["momentum"]])


@slow
def test_muon_takes_the_matrices_of_the_blocks_and_is_resumed(tiny, tmp_path):
    """Four steps in one go, or two and two, are the same four."""
    flags = ("--muon", 20)
    once, twice = tiny.fork(tmp_path / "once"), tiny.fork(tmp_path / "twice")
    whole = run(once, "dit", "--steps", 4, *flags)
    run(twice, "dit", "--steps", 2, *flags)
    halves = run(twice, "dit", "--steps", 4, *flags)
    assert differs(whole, halves) == []
    net = MMDiT(parse(["--config", "tiny", "--stage", "dit"])[0].dit)
    blocks = [p for name, p in net.joint_blocks.named_parameters() if p.ndim == 2 and "adaLN" not in name]
    moments = whole["optimizers"]["dit"]["state"].values()
    muon = [values for values in moments if "momentum" in values]
    assert len(muon) >= len(blocks) and all(values["momentum"].ndim == 2 for values in muon)


def test_muon_wants_whole_matrices():
    with pytest.raises(UserError, match="--muon with --shard"):
        parse(["--config", "tiny", "--muon", "20", "--shard"])


# ------------------------------------------------------------ losses that are no number


class Line(torch.nn.Module):
    """The smallest network that a stage can train."""
    Config = dataclasses.make_dataclass("LineConfig", [])

    def __init__(self, config=Config()):
        super().__init__()
        self.config, self.layer = config, torch.nn.Linear(2, 1)


def line_stage(bad=()):
    """3x - y, nan in the steps `bad`."""
    def loss(nets, batch):
        wanted = batch["x"] @ torch.tensor([[3.0], [-1.0]])
        return ((nets["line"].layer(batch["x"]) - wanted) ** 2).mean() * batch["sick"], {}

    def endless(start):
        for step in itertools.count(start):
            rng = torch.Generator().manual_seed(step)
            yield {"x": torch.randn(8, 2, generator=rng), "sick": math.nan if step in bad else 1.0}
    torch.manual_seed(0)
    return Stage({"line": Player({"line": Line()}, loss)}, endless, None)


def fit(out, steps, bad=(), data_sets=(), frozen={}, **flags):
    """The loop alone, on the line: what it leaves for resuming."""
    cfg = apply(Config(), {"out": str(out), "stage": "line", "steps": steps, "bf16": False, "warmup": 0,
                           "log_every": 1, "lr": 0.1, **flags})
    train.fit(cfg, Run(), dataclasses.replace(line_stage(bad), data=data_sets, frozen=frozen))
    return read_state(out / "line" / "state.pt")


def test_bf16_is_left_to_those_who_multiply_in_it(monkeypatch):
    """A CPU without the instructions takes 80 times as long for a product: it stays with float32. So does a
    GPU that would only emulate them."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not has_bf16("cuda:3")
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": able})
        able &= torch.backends.mkldnn.is_available()
        assert has_bf16("cpu") == able
        cfg = apply(Config(), {"bf16": True})
        with trainer.autocast(cfg, Run()):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if able else torch.float32)
    with trainer.autocast(apply(Config(), {"bf16": False}), Run()):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_step_that_is_not_finite_moves_nothing(tmp_path, capsys):
    """Weights, EMA and moments stay as they were, to the bit; the step is counted and told; the log says null,
    for NaN is not JSON; the next step trains again."""
    stage = line_stage(bad={1})
    cfg = apply(Config(), {"bf16": False, "lr": 0.1})
    trainer, source = Trainer(cfg, Run(), stage), stage.batches(0)
    train.step(trainer, [next(source)])
    before = copy.deepcopy(trainer.state())
    shown = train.step(trainer, [next(source)])
    after = copy.deepcopy(trainer.state())
    assert differs(before, after) == ["optimizers", "step", "skipped"] and after["skipped"] == 1
    assert same(before["optimizers"]["line"]["state"], after["optimizers"]["line"]["state"])
    assert math.isnan(shown["line"]) and trainer.failed == 1
    train.step(trainer, [next(source)])
    assert "players" in differs(after, trainer.state()) and trainer.failed == 0

    fit(tmp_path, 4, bad={1})
    assert "up to step 2, left out: 1 more; loss or gradient" in capsys.readouterr().err
    lines = [json.loads(text, parse_constant=pytest.fail)
             for text in (tmp_path / "line" / "log.jsonl").read_text().splitlines()]
    assert [line["line"] is None for line in lines] == [False, True, False, False]
    assert [line["skipped"] for line in lines] == [0, 1, 1, 1]


def test_nothing_is_saved_while_steps_are_left_out(tmp_path):
    """Steps 4 to 6 of 6 are sick: the save of step 3 stays, the end is no end, and the message says where to
    go back to: of step 1 the EMA alone is kept."""
    with pytest.raises(UserError, match="last 3 steps were left out.* 2 states are kept: --resume .*02 goes"):
        fit(tmp_path, 6, bad=range(3, 6), save_every=1)
    assert read_state(tmp_path / "line" / "state.pt")["step"] == 3


def test_ten_in_a_row_stop_the_run(tmp_path):
    """And say so, with the states that are kept; or that there is none."""
    with pytest.raises(UserError, match="not finite 10 times in a row at step 12; 2 states are kept: "):
        fit(tmp_path / "a", 50, bad=range(2, 100), save_every=1)
    with pytest.raises(UserError, match="10 times in a row at step 10; no earlier state is kept"):
        fit(tmp_path / "b", 50, bad=range(100))


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    """A diverged network is no checkpoint, and a file that holds one is refused."""
    fit(tmp_path, 2)
    good = (tmp_path / "line.safetensors").read_bytes()
    trainer = Trainer(apply(Config(), {"out": str(tmp_path), "stage": "line"}), Run(), line_stage())
    trainer.learners["line"].ema["nets.line.layer.weight"].fill_(math.inf)
    with pytest.raises(UserError, match="line has diverged: weights that are not finite at step 0; not"):
        trainer.save()
    assert (tmp_path / "line.safetensors").read_bytes() == good
    save_state(tmp_path / "bad.safetensors", {"layer.weight": torch.tensor([[math.nan, 1]]),
                                              "layer.bias": torch.zeros(1)}, "Line", {})
    with pytest.raises(UserError, match="bad.safetensors: layer.weight holds numbers that are not finite"):
        load_network(Line, tmp_path / "bad.safetensors")


def test_in_a_game_a_step_counts_once(tmp_path):
    """A player that is well does not hide that the other is not; two sick ones are one bad step."""
    def sick(nets, batch):
        return nets["other"].layer(batch["x"]).sum() * math.nan, {}

    for name, bad in (("one", ()), ("both", range(100))):
        stage = line_stage(bad)
        stage.players["other"] = Player({"other": Line()}, sick)
        cfg = apply(Config(), {"out": str(tmp_path / name), "stage": "line", "steps": 30, "bf16": False})
        with pytest.raises(UserError, match="not finite 10 times in a row at step 10"):
            train.fit(cfg, Run(), stage)


# ------------------------------------------------------------ what is shown

def test_a_log_that_was_cut_is_still_read(tmp_path):
    """A full disk or a kill can leave half a line; a resumed run drops it, and what it will write again. A pipe
    in its place would hold the run for ever: refused."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "loss": ' + "9" * 400 + '}\n[3]\n{"step": 3, "lo')
    assert checkpoints.read_log(path) == [{"step": 1}, {"step": 2, "loss": math.inf}]
    checkpoints.cut_log(path, 1)
    assert path.read_text() == '{"step": 1}\n'
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="log.jsonl is not a file; move it away"):
        checkpoints.cut_log(path, 1)
