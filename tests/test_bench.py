"""Tests of bench.py: FLOPs and bytes are counted right, what is printed adds up, each stage is measured."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

import bench
import latte
from support.cli import UserError
from dit import AdaLN
from presets import STAGES, parse

def test_flops_are_those_counted_by_hand():
    """A Linear's three products, and SD3-medium's forward on an image, 1.8 TFLOP."""
    for counted, by_hand in bench.demo().values():
        assert counted == by_hand > 0


def measured(capsys, *words):
    """{moment: its columns} of `time` on the preset tiny."""
    bench.main(["time", "tiny", "--no-cached", "--batch", "2", "--gpus", "1", "--runs", "1", *words])
    lines = capsys.readouterr().out.splitlines()
    return {line[:18].strip(): line[18:].split() for line in lines if line.startswith(("a ", "enc"))}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_measured(stage, capsys):
    """Time, FLOPs and what they come to, positive. No MFU is made up where nobody states a peak."""
    rows = measured(capsys, "--stage", stage)
    assert "a step" in rows
    for ms, gflop, tflops, mfu, _ in rows.values():
        assert float(ms) > 0 and float(gflop) >= 0 and float(tflops) > 0 and mfu == "-"
    if stage in ("videodit", "latte"):
        assert rows.keys() >= {"a step", "encoding", "a preview", "encoding images"}


@pytest.mark.slow
def test_mfu_is_the_share_of_the_peak(monkeypatch, capsys):
    """MFU = FLOPs / time / peak, and not HFU: what --checkpointing computes again is not credited."""
    monkeypatch.setattr(bench, "peak_flops", lambda cfg, card: 1e12)
    plain, twice = (measured(capsys, "--stage", "latte", "--latte.width", "64", flag)["a step"]
                    for flag in ("--no-checkpointing", "--checkpointing"))
    assert plain[1] == twice[1] != "0.0"
    assert float(twice[3].rstrip("%")) == pytest.approx(100 * float(twice[2]), abs=0.06)


@pytest.mark.parametrize("words, hint", [
    (["videodit", "--frames", "96"], "choose from"), (["fits", "toy", "--gpus", "0"], "--gpus 0"),
    (["fits", "latte-ffs", "--gpus", "7"], "divide by 7 GPUs"), (["time", "toy", "--runs", "0"], "--runs 0"),
    (["fits", "videodit-256", "--stage", "dpvae", "--shard"], "for transformers")])
def test_a_wrong_flag_is_named(words, hint):
    """One line with the flag and the way out."""
    with pytest.raises(UserError, match=hint):
        bench.main(words)


# ------------------------------------------------------------------------------------------ does it fit?

def test_the_memory_counter_counts_what_lives():
    """Two tensors of 4 MB, one freed before the third comes: the peak is 8 MB, and views cost nothing."""
    def run():
        a = torch.empty(1000, 1000, device="meta")
        b = a + 1
        view = b[:10]
        del a
        c = view.sum() + b
        return c
    assert bench.peak_of(run) == pytest.approx(8e6, rel=0.01)


def test_a_layers_step_is_what_it_is_by_hand():
    """Autocast's bf16 copies of input and weights stay for the backward pass, at half of float32's bytes."""
    net = torch.nn.Linear(1000, 1000, bias=False, device="meta")
    x = torch.empty(500, 1000, device="meta")
    forward = bench.peak_of(lambda: net(x))
    assert forward == 2 * (1000 * 1000 + 500 * 1000 + 500 * 1000)          # weight, input, output


def test_gradients_that_lie_ready_are_counted_once():
    """DDP's buckets are there before the step: a backward pass adds into them, and they are no new memory."""
    net = torch.nn.Linear(1000, 1000, bias=False, device="meta")
    net.weight.grad = torch.zeros_like(net.weight)
    x = torch.empty(1, 1000, device="meta")
    peak = bench.peak_of(lambda: net(x).sum().backward())
    # bf16's copy of the weight, its gradient, and the same in float32 on its way into the bucket
    assert 8e6 <= peak < 8.1e6


def test_where_a_network_turns_autocast_off_no_copy_is_counted():
    """dit.AdaLN multiplies in float32: under autocast its weight has no copy, a Linear's has."""
    with torch.device("meta"):
        plain, adaln, c = torch.nn.Linear(1000, 6000), AdaLN(1000, 6), torch.empty(2, 1000)
    assert bench.peak_of(lambda: plain(c)) > 12e6 > 0.2e6 > bench.peak_of(lambda: adaln(c))


def work(*words, gpus=8):
    return bench.Work(parse(["--config", *words])[0], gpus)


@functools.cache
def memory(*words):
    parts, moments = bench.memory(work("videodit-256", "--stage", "videodit", "--dit.depth", "4", *words))
    return parts | moments


def row(name, *words):
    """GB of a row, or of a moment, of the 256 phase with four blocks and a clip or two for each GPU."""
    return memory("--batch", "16", *words).get(name, 0) / bench.GB


@pytest.mark.slow
def test_checkpointing_and_micro_batches_save_memory():
    whole = row("a step", "--cached", "--no-checkpointing")
    assert row("a step", "--cached") < 0.6 * whole
    assert row("a step", "--cached") < row("a step", "--cached", "--checkpoint_every", "2") < 0.9 * whole
    assert row("a step", "--cached", "--no-checkpointing", "--accumulate", "2") < 0.7 * whole


@pytest.mark.slow
def test_shard_divides_what_is_at_rest_and_cached_takes_encoding_away():
    """FSDP2 on 8 ranks: an eighth of weights, gradients and optimizer state. With cached latents the text
    encoders come for a preview alone."""
    whole = row("AdamW's moments")
    assert row("AdamW's moments", "--shard") == whole / 8 and row("gathered blocks", "--shard") > 0
    assert row("encoding") > 0 == row("encoding", "--cached")
    assert row("text encoders") > 10 and row("text encoders", "--cached") == 0
    assert row("a preview's prompts", "--cached") == pytest.approx(8.9, abs=0.1)        # T5-XXL in bf16


@pytest.mark.slow
def test_hours_are_flops_over_a_share_of_the_peak():
    """Latte Table 2's FLOPs of XL/2, three times for a step, its batch and steps, on 8 H100 at 40 %."""
    faces = work("latte-ffs")
    spent = bench.hours(faces, bench.step_flops(faces))
    forward = 2 * latte.count_as_printed(latte.LatteConfig(**latte.SIZES["XL"]))["clip"]
    by_hand = 1_000_000 * 3 * forward * 5 / (0.4 * 989e12) / 3600
    assert 0.97 * by_hand < spent["network"] < by_hand
    assert spent.keys() == {"network", "encoding"}
    assert bench.step_flops(work("latte-ffs", "--cached")).keys() == {"network"}


@pytest.mark.slow
def test_what_is_computed_twice_costs_time():
    """Gradient checkpointing runs forward once more, 4 for 3; of every second block half of that."""
    words = ("videodit-256", "--stage", "videodit", "--dit.depth", "4", "--cached")
    every, second, none = (bench.step_flops(work(*words, *flags))["network"] for flags in (
        (), ("--checkpoint_every", "2"), ("--no-checkpointing",)))
    assert every / none == pytest.approx(4 / 3, abs=0.01)
    assert 2 * second == pytest.approx(every + none, rel=0.01)


def test_the_floor_of_a_step_by_hand():
    """673 M trained numbers are moved 12 times by AdamW and EMA, 10 bytes a micro-batch; 5 clips of 16 frames
    of 256 x 256 are loaded by 8 workers meanwhile, or by the training process itself."""
    faces = work("latte-ffs", "--cached")
    parts = bench.floor(faces, {"network": 989e12})
    moved = 48 * faces.trained + 10 * faces.numbers
    assert parts == {"products at the peak": 1.0, "weights and states moved": moved / 3.35e12,
                     "waiting for data": 0}
    loading = 40e-9 * 5 * 16 * 256 ** 2
    assert bench.floor(work("latte-ffs", "--workers", "0"), {})["waiting for data"] == pytest.approx(loading)
    few = bench.floor(work("latte-ffs", "--workers", "1"), {})
    assert sum(few.values()) == pytest.approx(loading)


@pytest.mark.slow
def test_a_page_adds_up_and_says_what_a_save_writes(capsys):
    """The rows of memory are the total's, those of hours and of a step's floor too; 16 bytes a trained
    parameter and the EMA."""
    words = ["latte-ffs", "--latte.depth", "4", "--batch", "8", "--no-compile"]
    found = bench.main(["fits", *words])["latte"]
    lines = capsys.readouterr().out.splitlines()
    rows = [(float(line[28:36]), line[37:]) for line in lines[:-2] if line[28:36].strip()[:1].isdigit()]
    for unit, total in (("GB", found["GB"]), ("h", found["hours"]), ("s", found["floor"])):
        sizes = [size for size, text in rows if text.split(":")[0].split()[0] == unit]
        assert sum(sizes[:-1]) == pytest.approx(sizes[-1], abs=0.06)
        assert sizes[-1] == pytest.approx(total, abs=0.006)
    save, ema = (size * work(*words).trained / 1e9 for size in (16 + 4, 4))
    assert f"a save writes {save:.3g} GB; --keep 2 has {2 * save + ema:.3g} GB on disk" in lines[-2]


@pytest.mark.slow
def test_every_stage_of_the_toys_presets_has_a_page(capsys):
    """Their own VAE and text encoder, not Stable Diffusion 3's; one GPU has no NCCL."""
    found = bench.main(["fits", "tiny", "--gpus", "1"])
    assert list(found) == list(STAGES)
    assert all(page["GB"] < 2 for page in found.values()) and "NCCL" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("preset, stage, hours", [
    ("videodit-256", "dpvae", 57), ("videodit-256", "videodit", 10), ("videodit-320", "videodit", 177),
    ("videodit-512", "videodit", 647), ("latte-ffs", "latte", 64), ("latte-ucf101-img", "latte", 69),
    ("latte-t2v", "latte", 729)])
def test_the_printed_recipes_fit_a_card_of_80_gb(preset, stage, hours, capsys):
    """README's commands, 8 GPUs, text encoders and VAE in the step; the hours are docs/scale.md's."""
    found = bench.main(["fits", preset, "--stage", stage])[stage]
    assert found["GB"] < 78 and "fits a card of 80 GB" in capsys.readouterr().out
    assert round(found["hours"]) == hours


# A graph is a minute of compiling, and after eight for one function dynamo leaves it as it was.
@pytest.mark.slow
@pytest.mark.parametrize("words, graphs", [
    ("tiny --stage videodit --dit.depth 4 --p_video 0.8", 4),
    ("tiny --stage videodit --dit.depth 4 --p_video 0.8 --attention 2d+3d", 10),
    ("latte-ffs --latte.depth 4 --batch 1", 2)])
def test_blocks_are_compiled_once_for_each_kind_of_step(words, graphs):
    """--compile, VideoDiT A.2: clips and images, times the kinds of block (the last one has less text); of
    Latte, one in space and one in time. No graph breaks."""
    assert bench.graphs(work(*words.split(), gpus=1)) == graphs and not counters["graph_break"]
