"""Tests of checkpoints.py: a file on disk is whole or refused, and nothing in it is ever executed."""

import argparse
import multiprocessing
import os
import pickle
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from support import checkpoints
from support.checkpoints import (class_of, load_network, load_strict, read_config, read_state, save_network,
                                 save_state, write_atomic)
from support.cli import FlagParser, UserError
from conftest import together


@dataclass
class TinyConfig:
    width: int = 3                    # of the first layer
    depth: int = 1                    # how many layers there are
    sizes: tuple = (1, 2)             # a tuple, which JSON does not know

    def __post_init__(self):
        self.sizes = tuple(self.sizes)


class Tiny(nn.Module):
    Config = TinyConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, 2)
        self.more = nn.ModuleList(nn.Linear(1, 1) for _ in range(config.depth - 1))
        self.register_buffer("counts", torch.arange(config.width))


class Other(Tiny):
    """The same tensors under another class name."""


class Bomb:
    """A pickle that runs a shell command when it is read."""
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


# --------------------------------------------------------------------------------------------------- writing

def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    """write_atomic: `path` is the old file or the new one, whatever happens in between."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"old")

    def broken(temporary):
        Path(temporary).write_bytes(b"half of the new")
        raise RuntimeError("torn")                          # a bug keeps its type: not every error is the disk's
    with pytest.raises(RuntimeError, match="torn"):
        write_atomic(path, broken)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["net.safetensors"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """An OSError becomes a UserError that names the path."""
    path = tmp_path / "net.safetensors"
    path.mkdir()
    with pytest.raises(UserError, match="cannot write .*net.safetensors"):
        write_atomic(path, lambda temporary: Path(temporary).write_bytes(b"new"))
    assert os.listdir(tmp_path) == ["net.safetensors"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/net.safetensors"):
        write_atomic(tmp_path / "file" / "net.safetensors", lambda temporary: temporary.write_bytes(b"new"))


# --------------------------------------------------------------------------------------------------- reading

def test_a_network_comes_back_with_its_config_and_its_tuples(tmp_path):
    """One .safetensors holds weights, config and extras: nothing else has to be kept beside it."""
    net = Tiny(TinyConfig(width=5, sizes=(4, 7)))
    save_network(tmp_path / "net.safetensors", net, extra={"step": 12, "note": "a", "list": [1.5, None]})
    back = load_network(Tiny, tmp_path / "net.safetensors")
    assert back.config == net.config and back.config.sizes == (4, 7) and not back.training
    assert_close(back.state_dict(), net.state_dict(), atol=0, rtol=0)
    assert read_config(tmp_path / "net.safetensors") == {
        "class": "Tiny", "config": {"width": 5, "depth": 1, "sizes": [4, 7]}, "step": 12, "note": "a",
        "list": [1.5, None]}


def test_a_half_precision_file_loads_in_float32(tmp_path):
    """checkpoints/toy ships it."""
    net, path = Tiny(TinyConfig()), tmp_path / "net.safetensors"
    save_network(path, net.half())
    assert read_state(path)["layer.weight"].dtype == torch.float16
    back = load_network(Tiny, path)
    assert back.layer.weight.dtype == torch.float32 and back.counts.dtype == torch.int64
    assert_close(back.layer.weight, net.layer.weight.float(), atol=0, rtol=0)


def test_tied_tensors_can_be_saved(tmp_path):
    """safetensors refuses two names of one storage; T5's embedding has two names."""
    net = Tiny(TinyConfig(width=2))
    net.again = net.layer
    save_network(tmp_path / "net.safetensors", net)
    assert {"layer.weight", "again.weight"} <= read_state(tmp_path / "net.safetensors").keys()


def test_a_missing_file_is_named(tmp_path):
    """All three readers, and for a folder too."""
    for read in (read_state, read_config, lambda path: load_network(Tiny, path)):
        with pytest.raises(UserError, match="no checkpoint at .*gone"):
            read(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match="no checkpoint at"):
        read_state(tmp_path)


@pytest.mark.parametrize("name, width", [("net.safetensors", 100), ("net.pt", 100), ("large.pt", 900)])
@pytest.mark.parametrize("keep", [0, 5, 300, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path, name, width, keep):
    """A download that broke off after `keep` bytes (or that part) is called truncated, with its size. Above
    1 MB a .pt is memory-mapped, which is another path through torch.load."""
    path = tmp_path / name
    state = {"w": torch.randn(400, width)}
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    whole = path.read_bytes()
    part = whole[:int(keep * len(whole)) if isinstance(keep, float) else keep]
    path.write_bytes(part)
    with pytest.raises(UserError, match=f"{name} .*{len(part):,} bytes. is truncated or not a checkpoint"):
        read_state(path)


@pytest.mark.parametrize("width", [10, 600])
def test_a_pickle_from_before_torch_1_6_is_read(tmp_path, width):
    """The published I3D and C3D weights are in torch's first format, which cannot be memory-mapped."""
    state = {"w": torch.randn(width, width)}
    torch.save(state, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    assert_close(read_state(tmp_path / "net.pt"), state, atol=0, rtol=0)


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb, 2))])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, write):
    """weights_only=True: the shell command inside never makes its file."""
    marker = tmp_path / "marker"
    write({"w": Bomb(f"touch {marker}")}, tmp_path / "net.ckpt")
    with pytest.raises(UserError, match="net.ckpt .*(more than tensors|not a checkpoint)") as caught:
        read_state(tmp_path / "net.ckpt")
    assert not marker.exists()
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)       # torch says it in bold


def test_what_else_a_training_saved_is_stood_in_for_and_nothing_runs(tmp_path, monkeypatch):
    """DiT's and Latte's train.py save their argparse.Namespace, Stable Diffusion 1.4's framework a callback
    and numpy's scalars: tensors are read, what has no meaning here is a Stub, no class's code runs."""
    monkeypatch.setattr(Tiny, "__setstate__", lambda *_: pytest.fail("the file's code ran"), raising=False)
    weights = torch.randn(3, 2)
    torch.save({"ema": {"w": weights}, "args": argparse.Namespace(lr=1e-4), "loss": np.float64(0.5),
                "callbacks": {Tiny: Tiny(TinyConfig())}}, tmp_path / "net.pt")
    state = read_state(tmp_path / "net.pt")
    assert_close(state["ema"]["w"], weights, atol=0, rtol=0)
    assert isinstance(state["args"], checkpoints.Stub) and not hasattr(state["args"], "lr")


@pytest.mark.parametrize("config, extra, message", [
    ({"width": 10 ** 6}, {}, "width is 1000000, which cannot be"),
    ({"width": float("inf")}, {}, "width is inf, which cannot be"),
    ({"width": "3"}, {}, "no Tiny of this version has its config"), ([3], {}, "config is .*, which cannot be"),
    ({"width": 3, "colour": "red"}, {}, "no Tiny of this version has .*colour"),
    ({"width": 3, "depth": 10 ** 5}, {}, "no Tiny of this .*asks for more than the file holds"),
    ({"width": 10 ** 5}, {}, "no Tiny of this .*asks for more than the file holds"),
    ({"width": 4}, {}, "2 wrongly shaped: counts .*, layer.weight"),
    ({}, {"shift": float("nan")}, "shift is 'nan', which cannot be"),
    ({}, {"frames": 2.5}, "frames is '2.5', which"), ({}, {"sampling": 3}, "sampling is '3', which cannot be"),
    ({}, {"sampling": {"cfg": float("inf")}}, "cfg is inf, which cannot be"),
    ({}, {"sampling": {"fps": "8"}}, "fps is '8', which cannot be"),
    ({}, {"size": 0}, "size is '0', which cannot be"),
    ({}, {"latents": "sd"}, "latents is 'sd', which cannot be")])
def test_a_header_is_not_believed(tmp_path, config, extra, message):
    """Types, bounds and what is finite are asked before anything is built, and building ends where it outgrows
    the file: depth 10**9 took 7 GB."""
    save_state(tmp_path / "net.safetensors", Tiny(TinyConfig()).state_dict(), "Tiny", config, extra)
    with pytest.raises(UserError, match=f"net.safetensors:? .*{message}"):
        load_network(Tiny, tmp_path / "net.safetensors")


def test_a_wrong_class_is_named(tmp_path):
    """A DP-VAE given where a transformer is wanted."""
    save_network(tmp_path / "net.safetensors", Tiny(TinyConfig()))
    assert class_of(tmp_path / "net.safetensors") == "Tiny"
    with pytest.raises(UserError, match="holds a Tiny, not a Other"):
        load_network(Other, tmp_path / "net.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"config": "{}"},
                                      {"class": "Tiny", "config": "{"},
                                      {"class": "Tiny", "config": "{}", "notes": "not JSON"}])
def test_a_file_of_somebody_else_has_no_config_of_ours(tmp_path, metadata):
    """Published files carry metadata of their own, or none."""
    save_file({"w": torch.zeros(2)}, tmp_path / "net.safetensors", metadata=metadata)
    assert class_of(tmp_path / "net.safetensors") == ""
    with pytest.raises(UserError, match="carries no config"):
        load_network(Tiny, tmp_path / "net.safetensors")


def test_every_difference_is_listed_at_once():
    """load_strict: missing, unexpected and wrongly shaped tensors in one message; nothing is loaded."""
    net = Tiny(TinyConfig())
    before = net.layer.weight.clone()
    with pytest.raises(UserError) as caught:
        load_strict(net, {"layer.weight": torch.zeros(2, 4), "counts": torch.rand(3),
                          "extra": torch.ones(1)}, "it")
    message = str(caught.value)
    assert "1 missing: layer.bias" in message and "1 unexpected: extra" in message
    assert "1 of another kind: counts torch.float32" in message         # numbers where truths or counts should be
    assert "1 wrongly shaped: layer.weight (2, 4) instead of (2, 3)" in message and "\n" not in message
    assert_close(net.layer.weight, before, atol=0, rtol=0)


def test_a_network_on_the_meta_device_takes_the_tensors_over():
    """assign=True: a 2 B network is never held twice, and keeps the file's dtype."""
    state = {name: tensor.half() if tensor.is_floating_point() else tensor
             for name, tensor in Tiny(TinyConfig()).state_dict().items()}
    with torch.device("meta"):
        net = Tiny(TinyConfig())
    load_strict(net, state, "it", assign=True)
    assert net.layer.weight.data_ptr() == state["layer.weight"].data_ptr()
    assert net.layer.weight.dtype == torch.float16


# --------------------------------------------------------------------------------------------------- scripts

@pytest.mark.parametrize("words, answer", [
    (["--step", "5"], "unknown flag --step; did you mean --steps?"),
    (["--zzz"], "unknown flag --zzz; see --help"),
    (["--steps", "ten"], "invalid int value: 'ten'"), (["--st", "5"], "unknown flag --st")])
def test_a_flag_that_is_not_there_names_the_nearest(words, answer):
    """And nothing is guessed: argparse alone would take --st for --steps."""
    flags = FlagParser(prog="x")
    flags.add_argument("--steps", type=int, default=3)
    with pytest.raises(UserError) as caught:
        flags.parse_args(words)
    assert answer in str(caught.value) and "\n" not in str(caught.value)


def test_words_may_stand_between_the_flags():
    """sample.py "a cat" --steps 5 "a dog": prompts are prompts wherever they stand."""
    flags = FlagParser(prog="x")
    flags.add_argument("prompt", nargs="*")
    flags.add_argument("--steps", type=int, default=3)
    given = flags.parse_args(["a cat", "--steps", "5", "a dog"])
    assert given.prompt == ["a cat", "a dog"] and given.steps == 5


# -------------------------------------------------------------------------------- kills, signals, equal files

def test_what_a_killed_process_left_is_nobodys_data_and_goes(tmp_path):
    """An unfinished file lies in a hidden folder, which no reader's pattern finds; sweep() deletes those of
    processes that are gone, and leaves those of the living, of other machines, and what is not ours by name
    (findings: `--sheet ~/x.png` swept HOME of other programs' .tmpAb12Cd)."""
    def write(to):
        to.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    shard = tmp_path / "00000-of-00002.safetensors"
    child = multiprocessing.get_context("fork").Process(target=write_atomic, args=(shard, write))
    child.start()
    child.join()
    left, = tmp_path.iterdir()
    assert left.is_dir() and (left / "00000-of-00002.safetensors").read_bytes() == b"half"
    assert list(tmp_path.glob("*.safetensors")) == []
    living = tmp_path / f".a.{checkpoints.HOST}.{os.getppid()}.tmp"
    elsewhere = tmp_path / ".a.another-machine.1.tmp"
    old = tmp_path / ".tmpAb12Cd"
    for folder in (living, elsewhere):
        folder.mkdir()
    old.touch()
    os.utime(old, (0, 0))
    stays = {living.name, elsewhere.name, old.name, "b.txt"}
    write_atomic(tmp_path / "b.txt", lambda to: to.write_text("b"))             # in anybody's folder: no broom
    assert {path.name for path in tmp_path.iterdir()} == stays | {left.name}
    checkpoints.sweep(tmp_path)                                                 # in a run's own
    assert {path.name for path in tmp_path.iterdir()} == stays


@pytest.mark.slow
def test_equal_weights_are_equal_files(tmp_path):
    """In any process, from any order of names: cmp and a checksum tell two networks apart."""
    script = ("import sys, torch; from support.checkpoints import save_state\n"
              "torch.manual_seed(0); state = {name: torch.randn(3, 4) for name in 'abc'}\n"
              "state = {**state, 'n': torch.tensor(7), 'half': torch.ones(3).half()}\n"
              "names = sorted(state, reverse=sys.argv[2] == 'back')\n"
              "save_state(sys.argv[1], {name: state[name] for name in names}, 'Tiny', {'width': 3},"
              " {'step': 1, 'size': 2, 'é': 3})")
    for done in together(*(["-c", script, tmp_path / f"{name}.safetensors", name] for name in ("on", "back")),
                         extra={"PYTHONPATH": "."}):
        assert done.code == 0, done.err
    assert (tmp_path / "on.safetensors").read_bytes() == (tmp_path / "back.safetensors").read_bytes()


def test_our_files_are_read_by_the_library_and_aligned(tmp_path):
    """Every dtype, scalars and empty tensors; the library's strict reader accepts the header."""
    state = {"a": torch.randn(3, 5), "b": torch.tensor(3), "c": torch.ones(5, dtype=torch.bfloat16).half(),
             "d": torch.zeros(0, 4), "e": torch.tensor([True, False, True]), "f": torch.randn(4, 4).t(),
             "g": torch.ones(3, dtype=torch.bfloat16), "h": torch.arange(3, dtype=torch.uint8)}
    checkpoints.save_tensors(tmp_path / "x.safetensors", state, {"note": "a \"quoted\" one\n"})
    back = read_state(tmp_path / "x.safetensors")
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


def test_the_second_signal_ends_the_process_but_not_an_echo():
    """A scheduler's SIGTERM and the launcher's copy of it arrive within milliseconds: that is one request."""
    script = ("import os, signal, sys, time; from support import cli; cli.catch_signals()\n"
              "os.kill(os.getpid(), 15); time.sleep({}); os.kill(os.getpid(), 15); sys.exit(7)")
    echo, second = together(*(["-c", script.format(gap)] for gap in (0.1, 2.5)), extra={"PYTHONPATH": "."})
    assert (echo.code, second.code) == (7, 128 + 15)
    assert echo.err == second.err == "\nSIGTERM: stopping at the next good place\n"


def test_a_log_is_believed_in_nothing(tmp_path):
    """Bytes that are no UTF-8, brackets without end: passed over."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"step": 2}\n')
    assert checkpoints.read_log(path) == [{"step": 1}, {"step": 2}]


def test_a_line_of_a_log_is_strict_json_or_an_error(tmp_path):
    """NaN and Infinity are no JSON; /dev/full is a disk without a byte."""
    checkpoints.append_line(tmp_path / "log.jsonl", {"a": float("nan"), "b": float("inf"), "c": 1.5, "d": "x"})
    assert (tmp_path / "log.jsonl").read_text() == '{"a": null, "b": null, "c": 1.5, "d": "x"}\n'
    with pytest.raises(UserError, match="cannot write /dev/full: .*No space left"):
        checkpoints.append_line(Path("/dev/full"), {"a": 1})
