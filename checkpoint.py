"""checkpoint.py - the ground: weights on disk, written whole or not at all, read strictly; errors for people.
Paper    none; this is the engineering that every stage stands on
Shapes   a network is one .safetensors file: {name: tensor}, its config as JSON in the file's metadata
Safety   pickles are read with weights_only=True and never otherwise; nothing in a checkpoint is executed
Differs  DCP, Lightning and friends solve sharded states; one file a network is enough for 2 B parameters
Reads    first, or when another file calls it: all stand on it, and it imports none of them
Run me   python checkpoint.py      # CPU, 2 s: writes, tears and re-reads a file, prints what it says
         python checkpoint.py halve runs/toy checkpoints/toy     # float16 copies of a folder's networks"""

import argparse
import dataclasses
import difflib
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file


UMASK = os.umask(0o022)      # the only way to read it is to set it
os.umask(UMASK)


class UserError(Exception):
    """One line for the person: what is wrong, in which file or flag, and the way out. Ends in exit code 2."""


def polite(main):
    """Run a script's main(); a UserError becomes one line on stderr and exit code 2, not a stack trace."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


class FlagParser(argparse.ArgumentParser):
    """argparse that names the nearest known flag: `--step 10` is answered with --steps, and exit code 2."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                         **settings)

    def parse_args(self, argv=None):
        known, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1, 0.4)
            raise UserError(f"unknown flag {unknown[0]}"
                            + (f"; did you mean {near[0]}?" if near else "; see --help"))
        return known

    def error(self, message):
        raise UserError(message)


# ---------------------------------------------------------------------------------------------- writing

def write_atomic(path, write):
    """Call write(temporary path), flush it to the disk, then rename: `path` is the old file or the new one.

    The rename comes after fsync: a power cut may otherwise keep the rename and lose the data."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)       # safetensors makes its files readable for the owner only
        os.replace(temporary, path)
    except (OSError, SafetensorError, RuntimeError) as error:
        if type(error) is RuntimeError and "inline_container" not in str(error):          # torch.save says so
            raise
        raise UserError(f"cannot write {path}: {first_line(error)}; free some space or choose another folder")
    finally:
        if temporary.exists():
            temporary.unlink()


def save_network(path, net, dtype=None, extra=None):
    """Write net's weights and its config to one .safetensors file.

    dtype casts floating tensors (checkpoints/toy ships float16); extra is a dict of JSON-able values."""
    state = {}
    for name, tensor in net.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        state[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor.clone()
    save_state(path, state, type(net).__name__, dataclasses.asdict(net.config), extra)


def save_state(path, state, name, config, extra=None):
    """The same for a bare {name: tensor} dict, for example an EMA's copy."""
    metadata = {"class": name, "config": json.dumps(config)}
    metadata.update({key: json.dumps(value) for key, value in (extra or {}).items()})
    write_atomic(path, lambda temporary: save_file(state, temporary, metadata=metadata))


# ---------------------------------------------------------------------------------------------- reading

def read_state(path):
    """{name: tensor} of a .safetensors (memory-mapped: nothing is read before it is used) or a pickled file.

    Raises UserError for a missing or truncated file, and for a pickle that holds more than tensors."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; check the path, or train one with train.py")
    size = path.stat().st_size
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mapped = size > 1 << 20 and zipfile.is_zipfile(path)       # torch before 1.6 wrote other files
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} ({size:,} bytes) is truncated or not a checkpoint ({first_line(error)}); "
                        "download or copy it again")
    except Exception as error:                 # weights_only refuses by raising UnpicklingError, among others
        raise UserError(f"{path} holds more than tensors and was not loaded ({first_line(error)}); "
                        "ask for a .safetensors file")


def read_config(path):
    """What save_network wrote beside the weights: {"class": str, "config": dict, **extra}."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; check the path, or train one with train.py")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a .safetensors file ({first_line(error)}); "
                        "copy it again")
    try:
        return {"class": metadata.pop("class"), "config": json.loads(metadata.pop("config")),
                **{key: json.loads(value) for key, value in metadata.items()}}
    except (KeyError, ValueError):
        raise UserError(f"{path} carries no config: it was not written by this project's train.py")


def class_of(path):
    """The class of one of our own .safetensors files, "" for anything else (a published checkpoint, say)."""
    try:
        return read_config(path)["class"]
    except UserError:
        return ""


def load_network(cls, path):
    """The network that save_network wrote, in float32, eval mode."""
    described = read_config(path)
    if described["class"] != cls.__name__:
        raise UserError(f"{path} holds a {described['class']}, not a {cls.__name__}; give the right file")
    try:
        net = cls(cls.Config(**described["config"]))
    except TypeError as error:
        raise UserError(f"{path} was written by another version of {cls.__name__} ({first_line(error)}); "
                        "train it again")
    load_strict(net, read_state(path), path)
    return net.eval()


def load_strict(net, state, source, assign=False):
    """net.load_state_dict(state), but every difference is named at once. assign=True takes the tensors over
    as they are (no copy, their dtype): the way to fill a network built on the meta device."""
    want = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    have = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = sorted(want.keys() - have.keys())
    extra = sorted(have.keys() - want.keys())
    wrong = [f"{name} {have[name]} instead of {want[name]}"
             for name in sorted(want.keys() & have.keys()) if want[name] != have[name]]
    if missing or extra or wrong:
        parts = [f"{len(names)} {kind}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
                 for kind, names in (("missing", missing), ("unexpected", extra), ("wrongly shaped", wrong))
                 if names]
        raise UserError(f"{source} does not fit {type(net).__name__}; " + "; ".join(parts))
    net.load_state_dict(state, assign=assign)


def first_line(error):
    """The first line of an exception's text, short enough for one line on a terminal."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def halve(source, target):
    """Our own .safetensors files of one folder, in float16, into another: how checkpoints/toy is made."""
    found = sorted(Path(source).glob("*.safetensors"))
    if not found:
        raise UserError(f"{source}: no .safetensors in it; give a folder that train.py wrote")
    for path in found:
        about = read_config(path)
        state = {name: t.half() if t.is_floating_point() else t for name, t in read_state(path).items()}
        save_state(Path(target) / path.name, state, about.pop("class"), about.pop("config"), about)


# ------------------------------------------------------------------------- what vae.py and dit.py share

# Two decisions about memory and speed that every network here has to make alike. They stand in this file
# because it is the one that both of the others build on.

def attend(q, k, v, mask=None):
    """softmax(q k^T / sqrt(d)) v for q, k, v (B,heads,N,d); mask (B,heads,N,N) is True where q may look.

    A GPU always wants the fused kernel. A CPU in half precision is up to 8 times faster without it when the
    sequences are short, and needs it when they are long, because the N x N scores no longer fit the cache.
    A single head, which is a VAE's, is computed by hand in float32 too: the shipped weights were made so,
    and the two ways differ in the last digit."""
    by_hand = v.element_size() == 2 or q.shape[1] == 1
    if q.device.type != "cpu" or k.shape[2] >= 2048 or not by_hand:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5                  # (B,heads,N,N)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v                                       # (B,heads,N,d)


def run_block(block, save_memory, *inputs):
    """block(*inputs). save_memory keeps the inputs only and runs the block again in the backward pass:
    a third more compute, and a clip of 96 x 512 x 512 needs 1.8 GB for 24 blocks instead of 38 GB."""
    if save_memory and torch.is_grad_enabled():
        return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


# ---------------------------------------------------------------------------------------------- demo

def demo():
    """Write a checkpoint, cut its tail off, and return what the reader says of it."""
    net = torch.nn.Linear(3, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "linear.safetensors"
        save_state(path, net.state_dict(), "Linear", {"in": 3})
        load_strict(net, read_state(path), path)
        path.write_bytes(path.read_bytes()[:-4])
        try:
            read_state(path)
        except UserError as error:
            return str(error).replace(str(folder), "")
    return "a truncated file was read without complaint: this is a bug"


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "halve":
        polite(lambda: halve(*sys.argv[2:]))
    else:
        print(demo(), "  (a right reader says that the file is truncated)")
