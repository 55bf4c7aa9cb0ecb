"""checkpoint.py - the ground: weights on disk, written whole or not at all, read strictly; errors for people.
Paper    none; this is the engineering that every stage stands on
Shapes   a network is one .safetensors file: {name: tensor}, its config as JSON in the file's metadata
Safety   pickles are read with weights_only=True and never otherwise; nothing in a checkpoint is executed
Differs  DCP, Lightning and friends solve sharded states; one file a network is enough for 2 B parameters
Reads    first, or when another file calls it: all stand on it, and it imports none of them
Run me   python checkpoint.py      # CPU, 3 s: writes, tears and re-reads a file, prints what it says; draws
                                   # which bytes of the toy's files are which tensors, out/checkpoint.png
         python checkpoint.py halve runs/toy checkpoints/toy     # float16 copies of a folder's networks
         python checkpoint.py between A B 0.6 C                  # C: six tenths of the way from file A to B
         python checkpoint.py marks > docs/differs.md            # where we and the papers part"""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import functools
import json
import math
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

try:
    import fcntl
except ImportError:         # Windows
    fcntl = None

# What is below is what a notebook does without and a week of training does not. Three questions run through
# it. What does a reader find if the power goes now? (write_atomic.) What does a person read if the file is
# not what it should be? (read_state, load_strict.) And who else is at it? (hold, sweep, catch_signals.) None
# of the answers needs a service, a data base or a library: a file system that renames in one stroke and an
# operating system that forgets a dead process's locks are enough.

UMASK = os.umask(0o022)      # the only way to read it is to set it
os.umask(UMASK)


# ---------------------------------------------------------------------------------------------- errors

# A stack trace is for the person who mends the code. The person who mistyped a flag or has a broken film
# needs one line: what is wrong, where, and what to do. So everything that a person can mend is a UserError,
# and everything else stays what it was: a bug, with its trace.

class UserError(Exception):
    """One line for the person: what is wrong, in which file or flag, and the way out. Ends in exit code 2."""


def polite(main):
    """Run a script's main(); a UserError becomes one line on stderr and exit code 2, not a stack trace."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


# argparse guesses: --st is taken for --steps as long as no other flag begins so, and a flag that is added
# next year changes what a command of today means. Here nothing is guessed, and the nearest is named.

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


# ---------------------------------------------------------------------------------------------- signals

# A run of days is ended by others: a scheduler sends SIGTERM or SIGUSR1 before it takes the machine back, a
# closed terminal SIGHUP, a person Ctrl-C (SIGINT). Left alone, each of them kills at once, and the steps
# since the last save are lost. So they are noted here, in one list, and whatever works for long looks at the
# list where it can stop in good order: the loop after a step, the encoder of latents after a batch.

STOP = []      # [(number, time)] of the signals noted so far; tests clear it


def catch_signals():
    """From now on the first signal asks; a second one, two seconds later or more, ends the process at once.

    Not any second one: a scheduler and torchrun both pass the same SIGTERM on, milliseconds apart."""
    owner = os.getpid()

    def note(number, frame):
        STOP.append((number, time.monotonic()))
        if STOP[-1][1] - STOP[0][1] > 2:
            os._exit(128 + number)
        if os.getpid() == owner and len(STOP) == 1:         # not in the loader's workers, which inherit this
            os.write(2, f"\n{signal.Signals(number).name}: stopping at the next good place\n".encode())

    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        number = getattr(signal, name, None)                # Windows knows the first two alone
        if number and signal.getsignal(number) != signal.SIG_IGN:       # nohup ignores SIGHUP: so do we
            signal.signal(number, note)


def stop_if_asked(doing="this"):
    """Long work calls it where it can be taken up again: write_cache after each batch of clips, for example.
    It raises, so that whoever called does not have to pass a word up through five functions."""
    if STOP:
        raise UserError(f"stopped by a signal during {doing}; what is finished stays, "
                        "and the same command goes on from there")


# ---------------------------------------------------------------------------------------------- one at a time

# The same command typed in two terminals is the commonest accident there is. Both runs read the same state,
# both save, and what stays is one's weights beside the other's moments: it loads, it goes on, it is wrong.

# The lock is advice: whoever does not ask is not stopped, and sampling from a folder in training need not
# ask, since each file in it is whole at every moment.

@contextlib.contextmanager
def hold(folder):
    """Only one process works in a folder: two trainings that save over each other leave a mixture of both.

    The lock belongs to the process and dies with it, however it dies: no file to delete after a kill -9, and
    no worker that inherits it. (flock would be inherited; a file with a process's number outlives it.)"""
    folder, path = Path(folder), Path(folder) / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {first_line(error)}; choose another folder")
    try:
        if fcntl is not None:                               # Windows: nobody is refused
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):             # a file system without locks
            yield
            return
        raise UserError(f"{folder} is in use by another process; wait for it, or give another --out")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):                  # nothing was written into it: leave no folder
            folder.rmdir()


# ---------------------------------------------------------------------------------------------- writing

# The two usual ways both fail. open(path, "w") empties the old file first: a kill then leaves neither.
# Writing to path + ".tmp" in place leaves files that the next glob("*.safetensors.tmp*") or a careless
# pattern takes for data, and that nobody removes.
#
# Whoever reads a file must find the old one or the new one, at every moment, whatever dies meanwhile. So a
# file is written beside its place, pushed to the disk, and renamed, which a file system does in one stroke.
# It is written inside a hidden folder: there no reader's pattern (*.safetensors) finds the unfinished file,
# a library's own temporary files lie there, too, and all of it goes by one deletion.

HOST = re.sub(r"\W", "-", platform.node())[:40]
UNFINISHED = re.compile(rf"\..*\.{re.escape(HOST)}\.(\d+)\.tmp")       # .NAME.HOST.PROCESS.tmp/


def write_atomic(path, write):
    """Call write(temporary path), flush it to the disk, then rename: `path` is the old file or the new one.

    The rename comes after fsync: a power cut may otherwise keep the rename and lose the data. Then the file
    has its name, its date and no bytes, which is how most "corrupt checkpoints" come about.

    A disk that is full, gone or read-only is said in one line, whichever library found out. Tests: a writer
    is shot at random moments (test_checkpoint.py), and files may not grow beyond a size (there, too)."""
    path = Path(path)
    folder = path.with_name(f".{path.stem[:40]}.{HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        folder.mkdir(exist_ok=True)
        write(folder / path.name)
        with open(folder / path.name, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(folder / path.name, 0o666 & ~UMASK)        # what the person's umask says, not the library
        os.replace(folder / path.name, path)
    except (OSError, SafetensorError, RuntimeError) as error:
        if type(error) is RuntimeError and "inline_container" not in str(error):          # torch.save says so
            raise
        raise UserError(f"cannot write {path}: {first_line(error)}; free some space or choose another folder")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.lru_cache(maxsize=1024)
def sweep(folder):
    """Delete what killed processes of this machine left unfinished in a folder; once a process and folder.

    Another machine's may be alive, and so stay: on a shared disk its processes cannot be asked. Nothing else
    is touched, however old: a folder of weights is no place for a clever broom."""
    for entry in os.scandir(folder):
        found = UNFINISHED.fullmatch(entry.name)
        if found and not alive(int(found.group(1))):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif re.fullmatch(r"\.tmp\w{6}|\..+\.\d+\.tmp\.\w+", entry.name) and entry.is_file() \
                and time.time() - entry.stat().st_mtime > 3600:         # earlier versions', and safetensors'
            os.unlink(entry.path)


def alive(process):
    """Whether there is such a process here. Signal 0 is sent to nobody: the system only says whether it could
    be. A number may be given to another process later; then the folder stays a little longer."""
    if os.name == "nt":                                     # signal 0 would end it there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:                                         # somebody else's
        return True
    return True


# A log grows by a line at a time and is read while it grows, so renaming a whole new file each time would be
# the wrong tool: appending in one write is whole enough, and the reader skips a line that a full disk cut.

def append_line(path, record):
    """One more line of a .jsonl: strict JSON, so nan and infinity are written as null; and in one write, so
    that a kill leaves whole lines."""
    record = {key: value if not isinstance(value, float) or math.isfinite(value) else None
              for key, value in record.items()}
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        with open(path, "ab", buffering=0) as file:
            if file.write(line.encode()) < len(line):
                raise OSError(errno.ENOSPC, "no space left on the disk")
    except OSError as error:
        raise UserError(f"cannot write {path}: {first_line(error)}; free some space or choose another folder")


# A file of weights says by itself what it is: its class, the config to build it with, and how it wants to be
# sampled stand in its header. Without that, weights are numbers for which one has to find the right code,
# with the right settings, of the right day.

def save_network(path, net, dtype=None, extra=None):
    """Write net's weights and its config to one .safetensors file.

    dtype casts floating tensors (checkpoints/toy ships float16); extra is a dict of JSON-able values."""
    state = {name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
             for name, tensor in net.state_dict().items()}
    save_state(path, state, type(net).__name__, dataclasses.asdict(net.config), extra)


def save_state(path, state, name, config, extra=None):
    """The same for a bare {name: tensor} dict, for example an EMA's copy."""
    metadata = {"class": name, "config": json.dumps(config)}
    metadata.update({key: json.dumps(value) for key, value in (extra or {}).items()})
    save_tensors(path, state, metadata)


# The names that the format has for the kinds of numbers. float8 comes with published text encoders; what is
# trained here is float32, what is shipped float16.
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
          torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}


def save_tensors(path, state, metadata):
    """{name: tensor} and {name: text} as a .safetensors file, which is: eight bytes that hold the length of a
    JSON header, the header {name: dtype, shape, first and last byte}, and the tensors' bytes, end to end.
    There is nothing in it that could be executed, and a tensor is where the header says: a reader maps the
    file into memory and takes what it wants, without reading the rest.

    Written by hand because the library orders the header's metadata by a hash that differs in each process:
    here equal weights are equal files, which cmp, rsync and a checksum can tell."""
    names, header, end = sorted(state, key=lambda name: (-state[name].element_size(), name)), {}, 0
    header["__metadata__"] = dict(sorted(metadata.items()))
    for name in names:                                      # wide numbers first: each tensor lies aligned
        start, end = end, end + state[name].numel() * state[name].element_size()
        header[name] = {"dtype": DTYPES[state[name].dtype], "shape": list(state[name].shape),
                        "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(temporary):
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                flat = state[name].detach().cpu().contiguous().reshape(-1)  # (numbers,)
                file.write(flat.view(torch.uint8).numpy())
    write_atomic(path, write)


# ---------------------------------------------------------------------------------------------- reading

# A file comes from a download that broke off, from another version, from a stranger. Each reader below
# answers one question strictly (is it whole? is it of this class? has it these very tensors? are they
# numbers?) and says no in a line that names the file. What is never done is to load what fits and leave the
# rest at random: such a network runs, and its pictures are a little worse for reasons that nobody finds.
#
# A pickle is a program: torch.load without weights_only runs whatever its author wrote into it.

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


# Files are told apart by what is in them, never by their names: a name is what a person changes first.

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


FINITE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)     # those that can be nan


def load_strict(net, state, source, assign=False):
    """net.load_state_dict(state), but every difference is named at once. assign=True takes the tensors over
    as they are (no copy, their dtype): the way to fill a network built on the meta device.

    A nan is a difference, too: one of them in a layer of attention makes every pixel nan, which is shown as
    black, with exit code 0. To look costs a pass over the memory that is read anyway."""
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
    for name, tensor in state.items():
        if tensor.dtype in FINITE and not tensor.is_meta and not tensor.isfinite().all():
            raise UserError(f"{source}: {name} holds numbers that are not finite; if a training diverged, "
                            "take one of its older states (OUT/STAGE/STEP), else copy the file again")
    net.load_state_dict(state, assign=assign)


# Messages of other libraries run over pages; what a person needs of them is mostly their first sentence.

def first_line(error):
    """The first line of an exception's text, short enough for one line on a terminal."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


# Training wants float32: a step changes a weight by a ten-thousandth, which float16 would round away. A
# trained network does not: 11 bits of mantissa are more than the pictures show, and the file is half the
# size.

def halve(source, target):
    """Our own .safetensors files of one folder, in float16, into another: how checkpoints/toy is made."""
    found = sorted(path for path in Path(source).glob("*.safetensors") if path.name[0] != ".")
    if not found:
        raise UserError(f"{source}: no .safetensors in it; give a folder that train.py wrote")
    for path in found:
        about = read_config(path)
        state = {name: t.half() if t.is_floating_point() else t for name, t in read_state(path).items()}
        save_state(Path(target) / path.name, state, about.pop("class"), about.pop("config"), about)


# Two trainings that began at the same weights end in one valley, and the networks between them work, too: the
# mean of several is often better than each ("model soups", Wortsman et al. 2022), and one that was trained on
# for a new task can be moved back a little towards its old one. Of two that began apart the mean is rubbish.

def between(first, second, share, target):
    """A network on the straight line from one file's weights (share 0) to another's of its config (1)."""
    try:
        share = float(share)
    except ValueError:
        raise UserError(f"{share}: the third argument is how far to go, a number such as 0.6") from None
    known, about = read_config(first), read_config(second)
    if (known["class"], known["config"]) != (about["class"], about["config"]):
        raise UserError(f"{first} and {second} are not the same network: another class or config")
    start, end = read_state(first), read_state(second)
    state = {name: t if not t.is_floating_point() else
             torch.lerp(start[name].float(), t.float(), share).to(t.dtype) for name, t in end.items()}
    save_state(Path(target), state, about.pop("class"), about.pop("config"), about)


# ---------------------------------------------------------------------------------- what differs, as a page

# Where a paper is silent the code says ASSUMED, where we depart from it DEVIATES, each at the line that does
# it: a list of its own would be wrong after a week. The page for readers is made from these marks, names no
# line numbers, and a test compares the two.

MARK = re.compile(r"\b(ASSUMED|DEVIATES)\b([^:]{0,60}): (.*)")
OWNER = re.compile(r"\s*(?:class|def) (\w+)|(\w+)(?:, \w+)* = ")
DIFFERS = """# What differs from the papers

Made by `python checkpoint.py marks > docs/differs.md` from the marks in the code, each under the file and the
name that it belongs to. ASSUMED is where a paper is silent, DEVIATES where it or its published code says
otherwise; the reasons are longer in the code."""


def marks(folder):
    """docs/differs.md as text: every mark of the folder's files, under what it belongs to."""
    page = [DIFFERS]
    for path in sorted(Path(folder).glob("*.py")):
        lines = path.read_text("utf-8").splitlines()
        found = [(n, MARK.search(line)) for n, line in enumerate(lines) if "grep" not in line]
        rows = [f"* {owner_of(lines, n)}{mark[1]}{mark[2]}: {paragraph(lines, n, mark[3])}"
                for n, mark in found if mark]
        page += ["", f"## {path.name}", "", *rows] if rows else []
    return "\n".join(page)


def owner_of(lines, number):
    """What a mark belongs to, "`Class.method` ": what begins right below it, else what it stands in."""
    depth = lambda line: len(line) - len(line.lstrip())
    code = next((line for line in lines[number:] if line.strip() and line.lstrip()[0] not in "#@"), "")
    here = depth(lines[number])
    found = [OWNER.match(code)] if depth(code) == here and OWNER.match(code) else []
    for line in lines[number::-1]:
        if depth(line) < here and OWNER.match(line):
            found, here = [OWNER.match(line), *found], depth(line)
    return f"`{'.'.join(match[1] or match[2] for match in found)}` " if found else ""


def paragraph(lines, number, text):
    """A mark's text and the lines on which it goes on, to the end of a sentence beyond 160 letters."""
    comment = "#" in lines[number]
    for line in lines[number + 1:]:
        more = line.strip()
        ends = more in ("", "#") or MARK.search(line) or comment != more.startswith("#")
        if ends or text.endswith('"""'):
            break
        text += " " + more.removeprefix("# ")
    said = ""
    for sentence in re.split(r"(?<=[.;]) (?=[A-Z(])", text.removesuffix('"""')):
        said += " " + sentence if len(said) < 160 else ""
    return said.strip()


# ------------------------------------------------------------------------- what vae.py and dit.py share

# Three decisions about memory and speed that every network here has to make alike. They stand in this file
# because it is the one that all others build on.

# bf16 is float32 cut to 16 bits: the range stays, and of 24 bits of mantissa 8 are left. A GPU multiplies it
# many times as fast (from Ampere on: not a T4, not a V100), and so does a CPU that has instructions for it
# (AMX: six times). One that has none converts number by number: with AVX2 alone a product of 1024 x 1024
# takes 80 times as long as in float32, and an hour of training ten. Nobody sees why, so it is asked here,
# before anything is cast.

def has_bf16(device):
    """Whether this device multiplies in bfloat16; where not, float32 is faster."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu":
        return True
    able = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(
        able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))     # x86, x86, ARM, ARM


# A fused kernel never writes the N x N scores to memory: it walks over k and v in tiles and keeps a running
# maximum and sum of the softmax. That is a question of memory traffic, which a GPU lacks and a cache has.

def attend(q, k, v, mask=None):
    """softmax(q k^T / sqrt(d)) v for q, k, v (B,heads,N,d); mask (B,heads,N,N) is True where q may look.

    A GPU always wants the fused kernel, and so does a CPU, with one exception: its backward pass in half
    precision, where products by hand take half the time (for 16 frames a seventh) as long as the N x N scores
    fit the cache.
    A single head, which is a VAE's, is computed by hand in float32 too: the shipped weights were made so,
    and the two ways differ in the last digit."""
    by_hand = v.element_size() == 2 and torch.is_grad_enabled() or q.shape[1] == 1
    if q.device.type != "cpu" or k.shape[2] >= 2048 or not by_hand:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # In pieces of at most 16 MB of scores in float32. The C library asks the system anew for each array above
    # 32 MB, and gets it page by page, filled with zeros: 12 heads of 1,178 tokens took half as long again.
    rows, heads = 2 ** 24 // (4 * q.shape[2] * k.shape[2]), q.shape[1]
    if rows < len(q) * heads and mask is None:
        parts = zip(*(part.flatten(0, 1).split(max(1, rows)) for part in (q, k, v)))
        return torch.cat([attend_by_hand(*part) for part in parts]).unflatten(0, (-1, heads))
    return attend_by_hand(q, k, v, mask)


def attend_by_hand(q, k, v, mask=None):
    """The formula as it stands. In half precision q is scaled, where there are N x d numbers, not N x N."""
    scale = q.shape[-1] ** -0.5
    half = v.element_size() == 2
    scores = (q * scale) @ k.transpose(-2, -1) if half else q @ k.transpose(-2, -1) * scale   # (..,N,N)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v                                       # (..,N,d)


# Backward needs what forward computed: for every layer its input. In a clip of 24,576 tokens that is most of
# a GPU's memory, and the weights are the least of it. Arithmetic is cheaper than memory here, so the inputs
# of whole blocks are kept, and what is inside of a block is computed a second time when its turn comes.

def run_block(block, save_memory, *inputs):
    """block(*inputs). save_memory keeps the inputs only and runs the block again in the backward pass:
    a third more compute, and a clip of 96 x 512 x 512 needs 1.8 GB for 24 blocks instead of 38 GB."""
    if save_memory and torch.is_grad_enabled():
        return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


# ---------------------------------------------------------------------------------------------- demo

# What the demo shows is the smallest promise of this file: a file that lost its last four bytes, a
# ten-thousandth of a picture's worth, is not read as if nothing were.

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


# out/checkpoint.png: a bar is a file, from its first byte to its last; a piece of it is a tensor, its colour
# the kind of layer. What it shows: the header costs nearly nothing, a thousandth to a hundredth; norms and
# biases are hairlines; and of a transformer's weights (videodit, latte) the MLPs are two fifths, adaLN a
# third, and attention, of which everybody speaks, a quarter.
#
# The same header makes the format quick. Whoever wants one tensor of a file of 10 GB reads the header, a few
# kilobytes, and then that tensor's bytes, from where the header says; the operating system can do it by
# mapping the file, and then nothing is copied that is not looked at. A pickle has to be run from its first
# byte. And since the first eight bytes say how long the header is and the header how long the file must be,
# what broke off is known before anything is loaded: that is the demo's error.

KINDS = {"header": ("", "#000000"), "adaLN": ("adaLN", "#ee6677"), "MLP": (r"mlp|\bfc", "#4477aa"),
         "attention": ("attn", "#228833"), "convolution": ("conv|shortcut", "#ccbb44"),
         "other": ("", "#999999")}


def layout(path):
    """(bytes of the header, [(first byte, last byte, name)] as they lie in the file): the format by hand."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return length, sorted((start + about["data_offsets"][0], start + about["data_offsets"][1], name)
                          for name, about in header.items())


def kind_of(name):
    """What layer a tensor belongs to: the first of KINDS that its name speaks of."""
    return next((kind for kind, (words, _) in KINDS.items() if words and re.search(words, name)), "other")


def draw(path, folder, width=1000):
    """A bar for each .safetensors file of the folder; returns {file: (its bytes, {kind: share of them})}."""
    from PIL import Image, ImageDraw
    files, found = sorted(Path(folder).glob("*.safetensors"), key=lambda file: -file.stat().st_size), {}
    image = Image.new("RGB", (width + 32, 16 + 74 * len(files)), "white")
    pen = ImageDraw.Draw(image)
    for row, file in enumerate(files):
        (length, tensors), size, top = layout(file), file.stat().st_size, 12 + 74 * row
        shares, at = dict.fromkeys(KINDS, 0.0), lambda byte: 16 + byte * width / size       # pixels
        for first, last, name in [(0, 8 + length, ""), *tensors]:
            kind = kind_of(name) if name else "header"
            shares[kind] += (last - first) / size
            pen.rectangle([at(first), top + 16, at(last), top + 46], fill=KINDS[kind][1],
                          outline="white" if at(last) - at(first) > 2 else None)
            shown = name.removesuffix(".weight")
            if pen.textlength(shown) < at(last) - at(first) - 6:
                pen.text((at(first) + 4, top + 25), shown, fill="white")
        pen.text((16, top), f"{file.name}: {size / 1e6:.2f} MB, {len(tensors)} tensors", fill="#222222")
        left = 16
        for kind in [kind for kind, share in shares.items() if share > 0]:
            said = f"{kind} {shares[kind]:.1%}"
            pen.text((left, top + 50), said, fill=KINDS[kind][1])
            left += pen.textlength(said) + 18
        found[file.stem] = (size, shares)
    write_atomic(path, image.save)
    return found


def main():
    print(demo(), "  (a right reader says that the file is truncated)")
    size, shares = draw("out/checkpoint.png", Path(__file__).parent / "checkpoints" / "toy")["videodit"]
    print(f"videodit.safetensors, {size:,} bytes: "
          + ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items() if share)
          + "   (drawn in out/checkpoint.png)")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "halve":
        polite(lambda: halve(*sys.argv[2:]))
    elif len(sys.argv) == 6 and sys.argv[1] == "between":
        polite(lambda: between(*sys.argv[2:]))
    elif sys.argv[1:] == ["marks"]:
        print(marks(Path(__file__).parent))
    else:
        polite(main)
