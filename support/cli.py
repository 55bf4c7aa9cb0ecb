"""cli.py - errors and flags for people: one line that names the file or flag and the way out, exit code 2.

Also here: what a signal means (finish the step, save, end), and an unknown flag's nearest known one."""

import argparse
import contextlib
import difflib
import errno
import math
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

# OpenMP's threads spin while they wait for one another. If another process keeps the machine busy, the one
# they wait for may be asleep: "a cat" took 47 s, a step of the toy's training 27. Told to give up sooner, 5
# and 1.5 (on an idle machine they are 6 % slower for it). OpenMP reads this once, when torch is loaded: after
# this file, which every script imports first.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


# ---------------------------------------------------------------------------------------------- errors

# A stack trace is for the person who mends the code. The person who mistyped a flag or has a broken video
# needs one line: what is wrong, where, and what to do. So everything that a person can mend is a UserError,
# and everything else stays what it was: a bug, with its trace.

class UserError(Exception):
    """One line for the person: what is wrong, in which file or flag, and the way out. Ends in exit code 2."""


def polite(main):
    """Run a script's main(). What a person can mend, or did, becomes one line on stderr and an exit code: 2,
    Ctrl-C 130, an output that nobody reads 141. Only a bug ends in a stack trace."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:                      # `>&-`, `2>&-`: the shell has closed it
            setattr(sys, name, open(os.devnull, "w"))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")       # a terminal that knows ASCII alone
    try:
        main()
        sys.stdout.flush()                                  # a full disk is found here, not while Python ends
    except UserError as error:
        end(str(error), 2)
    except KeyboardInterrupt:
        end("stopped by Ctrl-C; what is finished stays", 128 + signal.SIGINT)
    except BrokenPipeError:                                 # `python sample.py ... | head -1`
        discard_output()
        end("stopped: nobody reads the output any more", 141)
    except OSError as error:
        if error.filename is not None:                      # a name of 300 letters, a folder of another user
            end(f"{error.filename}: {error.strerror}; give another path, or the rights to this one", 2)
        if error.errno != errno.ENOSPC:
            raise
        discard_output()
        end("cannot write the output: no space left", 2)
    except (RuntimeError, MemoryError) as error:            # by torch's words: it is not imported for a name
        if not re.search("out of memory|can't allocate memory", str(error)):
            raise
        end(f"{first_line(error)}; make less at once: a smaller --batch or --size, fewer --frames", 2)


# Most of a command's first second is torch's import, before polite() can catch anything. So every script
# imports this file first, and Ctrl-C is a line from then on. (Python then ends with exit code 130 itself.)
def say_stopped(kind, error, trace):
    if kind is KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = say_stopped


def end(message, code):
    line = printable(message).replace("\n", "\\n")          # a file's name may hold one
    with contextlib.suppress(OSError):                      # where not even this can be written
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    sys.exit(code)


def discard_output():
    """What is still waiting to be printed goes nowhere: else Python tries once more, and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text):
    """text without what a terminal obeys instead of showing it: escape codes become \\x1b, as in Python."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def check_writable(flag, folder):
    """A folder that is to be written into, or the nearest one above it that is there, takes a file: asked
    before hours of work, not after them. Nothing is left behind."""
    try:
        above = next(place for place in (Path(folder), *Path(folder).parents)
                     if place.exists() or place.is_symlink())   # a link to nothing is no folder
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written ({error.strerror}); give another folder")


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
            hint = f"did you mean {near[0]}?" if near else "see --help"
            raise UserError(f"unknown flag {unknown[0]}; {hint}")
        return known

    def error(self, message):
        raise UserError(message)


def finite(text):
    """A flag's type: a number. Python's float also reads nan and inf, which no flag means."""
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return number


def at_least(values, **bounds):
    """UserError for the first flag of {flag: number or None} that is below its bound, or beyond reason."""
    for name, least in bounds.items():
        value = values.get(name)
        most = 2 ** 63 if name == "seed" else 10 ** 7
        if value is not None and not least <= value <= most:            # nan is not, either
            raise UserError(f"{'-' if len(name) == 1 else '--'}{name} {value}: must be at least {least} and at "
                            f"most {most}")


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


# Messages of other libraries run over pages; what a person needs of them is mostly their first sentence.

def first_line(error):
    """The first line of an exception's text, without colours, short enough for one line on a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0][:160]
