"""What a week of training meets: kills, signals, ranks that fail, full disks, two runs in one folder."""

import multiprocessing
import os
import random
import re
import resource
import signal
import time

import pytest

from support import checkpoints, cli
import train
from support import latent_cache
from support.checkpoints import hold, read_state
from support.cli import UserError
from conftest import script
from test_trainer import THREAD, differs, fit, run, signals, torchrun  # noqa: F401  signals is a fixture

# One rank of two does what the third word says, in step 2 of stage classifier.
SICK = """
import os
import signal
import sys
import train
from support.cli import UserError, polite
honest = train.classifier_loss
turns = []
def loss(*words):
    turns.append(0)
    if len(turns) == 2 and os.environ.get("RANK", "0") == "1":
        if sys.argv[1] == "error":
            raise UserError("the video of rank 1 is broken; mend it")
        if sys.argv[1] == "bug":
            raise ZeroDivisionError("a bug of rank 1")
        os.kill(os.getpid(), int(sys.argv[1]))
    return honest(*words)
train.classifier_loss = loss
polite(lambda: train.main(sys.argv[2:]))
"""


def sick(tmp_path, what, steps=12):
    (tmp_path / "sick.py").write_text(SICK)
    words = "--config", "tiny", "--stage", "classifier", "--steps", steps, "--out", tmp_path / "run"
    return script(*torchrun(tmp_path / "sick.py", what, *words), extra=THREAD)


def of_ours(text):
    """What our own processes said before the launcher began: a line each, or a stack."""
    told = text.replace("\r", "\n").split('Traceback (most recent call last):\n  File "<frozen')[0]
    return re.findall(r"(?:sick\.py:|Traceback).*", told)          # perhaps behind the bar of another rank


# ------------------------------------------------------------ ranks

@pytest.mark.slow
@pytest.mark.parametrize("what, reason", [
    ("error", "the video of rank 1 is broken; mend it"),
    (int(signal.SIGKILL), "another rank is gone (killed, or its machine): the same command goes on from")])
def test_a_rank_that_fails_ends_all_with_one_reason(tmp_path, what, reason):
    """A UserError on one rank, a rank that is shot: the others stop, and one line says why."""
    done = sick(tmp_path, what)
    said, = of_ours(done.err)
    assert done.code != 0 and said.startswith(f"sick.py: {reason}")


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_after_the_same_step(tmp_path):
    """SIGTERM reaches rank 1 alone, in step 2: both stop four steps later, saved, and go on from there."""
    done = sick(tmp_path, int(signal.SIGTERM))
    assert done.code != 0 and "stopped by a signal at step 6, saved" in done.err
    assert read_state(tmp_path / "run" / "classifier" / "state.pt")["step"] == 6


DIFFERENT = """
import os
import sys
import train
from support.cli import polite
polite(lambda: train.main(sys.argv[1:] + (["--seed", "3"] if os.environ["RANK"] == "1" else [])))
"""


@pytest.mark.slow
def test_ranks_with_different_flags_do_not_train(tmp_path):
    (tmp_path / "sick.py").write_text(DIFFERENT)
    words = "--config", "tiny", "--stage", "classifier", "--out", tmp_path / "run"
    done = script(*torchrun(tmp_path / "sick.py", *words), extra=THREAD)
    assert done.code != 0 and not (tmp_path / "run").exists()
    assert of_ours(done.err) == ["sick.py: --seed is 0 on rank 0 and 3 on rank 1: give the same command on "
                                 "every machine"]
    assert "exitcode  : 2" in done.err


@pytest.mark.parametrize("rank", "01")
def test_a_wrong_flag_on_many_ranks_is_one_line(monkeypatch, capsys, rank):
    """Every rank finds it; rank 0 says it."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        cli.polite(lambda: train.main(["--lr", "nan"]))
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == (rank == "0")


# ------------------------------------------------------------ kills

# A process that has computed with several threads must not fork and compute again: the child inherits locks
# whose owners are gone, and waits for ever. So a server forks, which has imported all and computed nothing.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["train"])


def quietly(words):
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    train.main(words)


def killed(words, delay):
    """A training in a process of its own that is shot after `delay` seconds. True: it had ended."""
    child = SERVER.Process(target=quietly, args=(words,))
    child.start()
    child.join(delay)
    if child.exitcode is None:
        child.kill()
        child.join()
        return False
    assert child.exitcode == 0
    return True


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "videodit"])
def test_a_run_that_is_shot_again_and_again_ends_as_if_left_alone(tiny, tmp_path, stage):
    """kill -9 at random moments, saving after every step: every resume works, and the end is the same, bit
    for bit: weights, EMA, moments, and the files themselves. KILLS=100 for more."""
    kills, draws, rounds = int(os.environ.get("KILLS", 10)), random.Random(stage), 0
    words = ["--config", "tiny", "--stage", stage, "--steps", "6", "--save_every", "1", "--out"]
    whole = tiny.fork(tmp_path / "whole")
    began = time.monotonic()
    assert killed([*words, str(whole)], 600)
    took = time.monotonic() - began
    expected = read_state(whole / stage / "state.pt")
    while kills > 0:
        out, rounds = tiny.fork(tmp_path / f"shot-{rounds}"), rounds + 1
        while not killed([*words, str(out)], draws.uniform(0.1, 1.2) * took):
            kills -= 1
            if (out / stage / "state.pt").is_file():
                read_state(out / stage / "state.pt")        # whole, at every moment
        assert differs(expected, read_state(out / stage / "state.pt")) == []
        assert (out / f"{stage}.safetensors").read_bytes() == (whole / f"{stage}.safetensors").read_bytes()
        left = [path for path in out.rglob("*") if path.name.endswith(".tmp")]
        assert left == [] and not (out / ".lock").exists()


# ------------------------------------------------------------ one folder, one run

FORK = multiprocessing.get_context("fork")


def keep(folder, held):
    with hold(folder):
        held.set()
        time.sleep(60)


def test_two_runs_in_one_folder_are_refused_and_the_lock_dies_with_its_process(tmp_path):
    """Also when that process is shot: nothing has to be deleted by hand."""
    held = FORK.Event()
    holder = FORK.Process(target=keep, args=(tmp_path / "run", held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(UserError, match="run is in use by another process; wait for it, or give another"):
        run(tmp_path / "run", "classifier", "--steps", 1)
    holder.kill()
    holder.join()
    with hold(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()                  # it was empty


# ------------------------------------------------------------ disks

@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, place):
    """A file where a folder should be, a read-only file system: before anything is trained."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*choose another folder") as error:
        run(tmp_path / place, "classifier", "--steps", 1)
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_keeps_what_was_saved(tmp_path):
    """While log.jsonl is written, and while a state is: no file may grow beyond what it has now."""
    fit(tmp_path, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = tmp_path / "line" / "log.jsonl"
    for limit in (log.stat().st_size + 20, 2000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(UserError, match="cannot write .*; free some space") as error:
                fit(tmp_path, 9)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(error.value)
        assert read_state(tmp_path / "line" / "state.pt")["step"] == 2
    assert fit(tmp_path, 3)["step"] == 3 and [line["step"] for line in checkpoints.read_log(log)] == [1, 2, 3]


# ------------------------------------------------------------ encoding

def test_a_signal_during_encoding_is_heard_before_the_next_clip(tiny, tmp_path, monkeypatch):
    """Latents of thousands of clips take hours: the first SIGTERM counts there, too."""
    out = tiny.fork(tmp_path / "run")
    for path in out.glob("cache/*/*.safetensors"):
        path.unlink()
    honest = latent_cache.fingerprint

    def fingerprint(net):
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(net)
    monkeypatch.setattr(train, "fingerprint", fingerprint)
    with pytest.raises(UserError, match="stopped by a signal during .*the same command goes on from there"):
        run(out, "dit", "--steps", 1)
    cli.STOP.clear()
    monkeypatch.setattr(train, "fingerprint", honest)
    assert run(out, "dit", "--steps", 1)["step"] == 1
