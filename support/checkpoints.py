"""checkpoints.py - weights on disk, written whole or not at all, read strictly; locks; the log.
Paper    none; this is the engineering that every stage stands on
Shapes   a network is one .safetensors file: {name: tensor}, its config as JSON in the file's metadata
Safety   pickles are read with weights_only=True and never otherwise; nothing in a checkpoint is executed
Differs  DCP, Lightning and friends solve sharded states; one file a network is enough for 2 B parameters"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import platform
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from support.cli import UserError, first_line


try:
    import fcntl
except ImportError:         # Windows
    fcntl = None

# What is below is what a notebook does without and a week of training does not. Three questions run through
# it. What does a reader find if the power goes now? (write_atomic.) What does a person read if the file is
# not what it should be? (read_state, load_strict.) And who else is at it? (hold, sweep.) None
# of the answers needs a service, a data base or a library: a file system that renames in one stroke and an
# operating system that forgets a dead process's locks are enough.

SHIPPED = Path(__file__).parents[1] / "checkpoints"      # what a clone holds: toy/, clip/, lpips/
TOY = SHIPPED / "toy"


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
        if error.errno in (errno.EAGAIN, errno.EACCES):                 # else: a file system without locks
            file.close()
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

    A disk that is full, gone or read-only is said in one line, whichever library found out. Tests: a training
    is shot at random moments, and files may not grow beyond a size (test_faults.py)."""
    path = Path(path)
    folder = path.with_name(f".{path.stem[:40]}.{HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        write(folder / path.name)
        with open(folder / path.name, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(folder / path.name, path)
    except (OSError, RuntimeError) as error:
        if type(error) is RuntimeError and "inline_container" not in str(error):          # torch.save says so
            raise
        raise UserError(f"cannot write {path}: {first_line(error)}; free some space or choose another folder")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder):
    """Delete what killed processes of this machine left unfinished in a folder that is a run's own.

    Only the names that write_atomic makes up, and only where a command says so, for a folder that is all its
    own: a person's HOME is no place for a clever broom. Another machine's process may be alive: on a shared
    disk it cannot be asked, and what it writes stays."""
    for path in Path(folder).glob(".*.tmp"):
        found = UNFINISHED.fullmatch(path.name)
        if found and path.is_dir() and not alive(int(found.group(1))):
            shutil.rmtree(path, ignore_errors=True)         # which follows no link


def alive(process):
    """Whether there is such a process here. Signal 0 is sent to nobody: the system only says whether it could
    be. A number may be given to another process later; then the folder stays a little longer."""
    try:
        if os.name != "nt":                                 # signal 0 would end it there
            os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH                   # else: there is one, of somebody else
    return True


# A log grows by a line at a time and is read while it grows, so renaming a whole new file each time would be
# the wrong tool: appending in one write is whole enough, and the reader skips a line that a full disk cut.

def append_line(path, record):
    """One more line of a .jsonl: strict JSON, so nan and infinity are written as null; and in one write, so
    that a kill leaves whole lines."""
    record = dict(record)
    for key, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            record[key] = None
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

def save_network(path, net, extra=None):
    """Write net's weights and its config to one .safetensors file; extra is a dict of JSON-able values."""
    save_state(path, net.state_dict(), type(net).__name__, dataclasses.asdict(net.config), extra)


def save_state(path, state, name, config, extra=None):
    """The same for a bare {name: tensor} dict."""
    metadata = {key: json.dumps(value) for key, value in {"config": config, **(extra or {})}.items()}
    save_tensors(path, state, {"class": name, **metadata})


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
    names = sorted(state, key=lambda name: (-state[name].element_size(), name))     # wide first: all aligned
    header = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        start, end = end, end + state[name].nbytes
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
# rest at random: such a network runs, and its images are a little worse for reasons that nobody finds.
#
# A pickle is a program: torch.load without weights_only runs whatever its author wrote into it. With it, a
# file is refused that names any class but tensors'. But the authors' training scripts save more than weights:
# Stable Diffusion 1.4's file holds a callback of its framework and numpy's scalars, DiT's and Latte's the
# flags of the run (argparse.Namespace). So that these load, each class that a file names is stood in for by
# one that takes what it is given and runs nothing; torch still refuses what calls the system.

class Stub:
    """In the place of a class that a pickle names: takes whatever it is given, and runs nothing."""
    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_state(path):
    """{name: tensor} of a .safetensors (memory-mapped: nothing is read before it is used) or a pickled file.
    What else a pickle holds is read as numbers, text and Stubs.

    Raises UserError for a missing or truncated file, and for a pickle that would run something."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; check the path, or train one with train.py")
    size = path.stat().st_size
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)                           # torch before 1.6 wrote other files
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else ()
        with torch.serialization.safe_globals([(Stub, name) for name in named]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and size > 1 << 20)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} ({size:,} bytes) is truncated or not a checkpoint ({first_line(error)}); "
                        "download or copy it again")
    except Exception as error:                 # weights_only refuses by raising UnpicklingError, among others
        raise UserError(f"{path} holds more than tensors and was not loaded ({first_line(error)}); "
                        "ask for a .safetensors file")


RENAMED = {"Judge": "AttributeClassifier"}      # classes of earlier versions, as their files name them


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
        kind = metadata.pop("class")
        header = {"class": RENAMED.get(kind, kind), "config": json.loads(metadata.pop("config")),
                  **{key: json.loads(value) for key, value in metadata.items()}}
    except (KeyError, ValueError, RecursionError):
        raise UserError(f"{path} carries no config: it was not written by this project's train.py")
    check_header(header, path)
    return header


# A header is text that anybody may have written, and it is believed: one number in it says how many blocks
# are built, another by what each latent is divided. JSON knows no bounds, and Python's reads Infinity.

NUMBER = (int, float)
KINDS = {"config": dict, "sampling": dict, "classes": list, "size": int, "frames": int, "step": int,
         "shift": NUMBER, "objective": str, "latents": str, "text": str, "text_weights": str,
         "sampler": str, "steps": int, "guidance": NUMBER, "cfg": NUMBER, "temperature": NUMBER,
         "fps": NUMBER}
WORDS = {"latents": ("vae", "dpvae"), "objective": ("flow", "ddpm")}
LEAST = {"size": 1, "frames": 1, "steps": 1, "shift": 1e-3, "fps": 0.1, "temperature": 0}
MOST = 10 ** 7              # of any number: steps are the largest there are


def must(truth, path, told):
    if not truth:
        raise UserError(f"{path}: {told}; the file is damaged, copy it again")


def check_header(header, path):
    """What a header says is of its kind, finite and not beyond all bounds."""
    for part in (header, header.get("sampling", {})):
        for name, value in part.items():
            shown = f"its {name} is {str(value)[:40]!r}, which cannot be"
            must(isinstance(value, KINDS.get(name, object)), path, shown)
            must(value in WORDS.get(name, [value]), path, shown)
            must(name not in LEAST or value >= LEAST[name], path, shown)
    for name in header.get("classes", ()):
        must(isinstance(name, str), path, "its classes are not all names")
    for name, value in {**header, **header["config"], **header.get("sampling", {})}.items():
        numbers = value if isinstance(value, list) else [value]
        most = 10 ** 5 if name in header["config"] else MOST            # a table of 10 ** 7 rows takes 12 GB
        for number in numbers:
            if isinstance(number, NUMBER):
                must(abs(number) <= most, path, f"its {name} is {number}, which cannot be")     # nor nan


def build(cls, config, state, path):
    """cls(config), but never much larger than its file: a damaged number would ask for all memory there is.

    Counted as each parameter comes, which torch fills only then: its memory is asked for, not yet touched.
    Twice the file is the bound, since what is merely missing load_strict says by name. (A network on the meta
    device is the usual way. Its first layer costs a second, and sampling the toy takes three.)"""
    room = 2 * sum(tensor.numel() for tensor in state.values())

    def count(module, name, parameter):
        nonlocal room
        room -= parameter.numel()
        if room < 0:
            raise ValueError("it asks for more than the file holds")

    try:
        with register_module_parameter_registration_hook(count):
            return cls(cls.Config(**config))
    except Exception as error:                              # what a number that cannot be leads to
        raise UserError(f"{path}: no {cls.__name__} of this version has its config ({first_line(error)}); "
                        "copy it again, or train it anew")


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
    state = read_state(path)
    net = build(cls, described["config"], state, path)
    load_strict(net, state, path)
    return net.eval()


FINITE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)     # those that can be nan


def load_strict(net, state, source, assign=False):
    """net.load_state_dict(state), if all fits. assign=True takes the tensors over as they are (no copy, their
    dtype): the way to fill a network built on the meta device.

    Every difference between a network and a file is named at once: names, shapes, whole numbers for fractions.
    A nan is a difference, too: one of them in a layer of attention makes every pixel nan, which is shown as
    black, with exit code 0. To look costs a pass over the memory that is read anyway."""
    want = net.state_dict()
    have = {name: value for name, value in state.items() if torch.is_tensor(value)}
    differences = {"missing": sorted(want.keys() - have.keys()),
                   "unexpected": sorted(map(str, state.keys() - want.keys())),
                   "wrongly shaped": [], "of another kind": []}
    for name in sorted(want.keys() & have.keys()):
        there, here = have[name], want[name]
        if there.shape != here.shape:
            differences["wrongly shaped"].append(f"{name} {(*there.shape,)} instead of {(*here.shape,)}")
        if there.is_floating_point() != here.is_floating_point():
            differences["of another kind"].append(f"{name} {there.dtype} instead of {here.dtype}")
    parts = [f"{len(names)} {kind}: {', '.join(names[:8])}"
             for kind, names in differences.items() if names]
    if parts:
        raise UserError(f"{source} does not fit {type(net).__name__}; " + "; ".join(parts))
    for name, tensor in state.items():
        if tensor.dtype in FINITE and not tensor.is_meta and not tensor.isfinite().all():
            raise UserError(f"{source}: {name} holds numbers that are not finite; if a training diverged, "
                            "take one of its older states (OUT/STAGE/STEP), else copy the file again")
    net.load_state_dict(state, assign=assign)


# A log is written for weeks by processes that are killed, and so its reader believes nothing: half a line, a
# line that is a list, a step that is text are passed over.

def read_log(path):
    """The lines of a log.jsonl, without one that a kill or a full disk cut."""
    lines = []
    if not path.is_file():
        return lines
    for text in path.read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(text, parse_int=whole_number))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def whole_number(digits):
    """JSON bounds no number, and no curve can hold one of 400 digits: it is infinite here, as 1e400 is."""
    return int(digits) if len(digits) < 19 else float(digits)


def cut_log(path, step):
    """Forget the lines after `step`: the run that is taken up there writes them again. The log is then that
    of one run, without the stretch that a kill cost."""
    if path.is_file():
        text = "".join(json.dumps(line) + "\n" for line in read_log(path) if line["step"] <= step)
        write_atomic(path, lambda to: to.write_text(text, "utf-8"))
    elif path.exists():                                     # a pipe would wait for ever for a reader
        raise UserError(f"{path} is not a file; move it away, and the same command goes on")
