"""Numbers to vectors: the toy's encoder, CLIP, T5, and SD3's conditioning."""

import gc

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import pretrained
import text
from support import toy_world
from conftest import close, golden
from test_tokenizers import letters_tokenizer
from text import CLIPText, CLIPTextConfig, T5Config, T5Encoder, ToyText, ToyTextConfig, t5_bucket

def tiny_sd3(with_t5=True):
    """Random encoders small enough to build at once, with CLIP's real vocabulary."""
    torch.manual_seed(0)
    clip_l = CLIPTextConfig(width=64, layers=2, heads=1, mlp_width=32)
    clip_g = CLIPTextConfig(width=64, layers=2, heads=1, mlp_width=32, act="gelu", projection=24)
    states = {"clip_l": CLIPText(clip_l).state_dict(), "clip_g": CLIPText(clip_g).state_dict()}
    if with_t5:
        states["t5xxl"] = T5Encoder(T5Config(60, 160, 1, 2, 8, 16)).state_dict()
    return states


# ---------------------------------------------------------------------------------- the toy's encoder

def test_the_toy_accepts_empty_and_long_prompts():
    """Nothing said is BOS EOS; too much is cut, and EOS stays the last token."""
    torch.manual_seed(0)
    toy = ToyText(ToyTextConfig(words=("a", "cat"), width=32, length=6))
    context, pooled = toy(["", "cat " * 50, "!?"])
    assert context.shape == (3, 6, 32) and pooled.shape == (3, 32) and context.isfinite().all()
    ids = toy.tokenizer(["", "cat " * 50])
    assert ids[0].tolist() == [toy.tokenizer.bos, toy.tokenizer.eos, 0, 0, 0, 0]
    assert ids[1, -1] == toy.tokenizer.eos and ids[1, -2] == toy.tokenizer.ids["cat"]
    assert_close(pooled[0], pooled[2])


def test_reading_sets_apart_words_that_no_image_shows():
    """Images do not move: from them alone "jumping" and "spinning" would stay what chance made them."""
    torch.manual_seed(0)
    toy = ToyText(ToyTextConfig(words=toy_world.WORDS, width=32))
    captions = [f"a {subject} {motion}" for subject in ("cat", "dog", "car") for motion in toy_world.MOTIONS]
    apart = lambda: F.cosine_similarity(*toy(["a cat jumping", "a cat spinning"])[1], dim=0)
    before, optimizer = apart(), torch.optim.Adam(toy.parameters(), 3e-3)
    for _ in range(150):
        loss = toy.reading_loss(captions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert apart() < before - 0.1
    assert loss < 0.03 < toy.reading_loss(["a green star in snow"])     # never read: not guessed


# ---------------------------------------------------------------------------------- the encoders

@pytest.mark.parametrize("name", ["clip_text_l", "clip_text_g"])
def test_golden_clip(name):
    """transformers' CLIPTextModelWithProjection, every output that SD3 or the toy uses."""
    weights, inputs, outputs, config = golden(name)
    net = pretrained.clip(weights, config["num_attention_heads"], config["hidden_act"])
    with torch.no_grad():
        out = net(inputs["input_ids"])
    close(out.penultimate, outputs["hidden_states_m2"])
    close(out.last, outputs["last_hidden_state"])
    close(out.pooled, outputs["pooled_unprojected"])
    close(out.projected, outputs["text_embeds"])


def test_golden_t5():
    """transformers' T5EncoderModel with and without mask, and a text longer than the buckets reach."""
    weights, inputs, outputs, config = golden("t5_encoder")
    net = pretrained.t5(weights, config["relative_attention_max_distance"])
    with torch.no_grad():
        bias = outputs["position_bias_long"]
        assert_close(net.position_bias(bias.shape[-1]), bias, atol=1e-6, rtol=0)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        close(net(ids), outputs["last_hidden_state_nomask"], atol=2.5e-5)
        close(net(ids, mask), outputs["last_hidden_state_masked"], atol=2.5e-5)
        close(net(inputs["input_ids_long"]), outputs["last_hidden_state_long"], atol=2.5e-5)


def test_the_default_configs_are_clip_l_and_t5_xxl():
    """SD3's text encoders: 123.06 M and 4,762.3 M parameters."""
    with torch.device("meta"):
        nets = CLIPText(CLIPTextConfig()), T5Encoder(T5Config())
    sizes = [sum(weight.numel() for weight in net.parameters()) for net in nets]
    assert sizes == [123_060_480, 4_762_310_656]


def test_a_prompt_never_sees_its_pads():
    """CLIP is causal: what stands after EOS cannot change the prompt's vectors or its pooled one."""
    torch.manual_seed(0)
    net = CLIPText(CLIPTextConfig(vocab_size=20, width=32, layers=2, heads=2, mlp_width=32, length=8))
    ids = torch.tensor([[18, 3, 4, 19, 19, 19], [18, 3, 4, 19, 0, 0]])
    out = net(ids)
    assert_close(out.last[0, :4], out.last[1, :4])
    assert_close(out.pooled[0], out.last[0, 3])


def test_t5_distances_share_buckets_logarithmically():
    """T5 2.1: 0..7 alone, then 8-11, 12-15, 16-22, ... up to 128 and beyond; keys to the right from 16 on."""
    far = torch.tensor([0, 1, 7, 8, 11, 12, 15, 16, 22, 32, 64, 127, 128, 5000])
    assert t5_bucket(-far).tolist() == [0, 1, 7, 8, 8, 9, 9, 10, 10, 12, 14, 15, 15, 15]
    assert t5_bucket(far[1:]).tolist() == [bucket + 16 for bucket in t5_bucket(-far[1:]).tolist()]


# ---------------------------------------------------------------------------------- SD3's conditioning

def test_golden_sd3_conditioning():
    """sd3-ref's get_cond on a single-file checkpoint; without T5 its tokens are zeros, all else is the same."""
    weights, inputs, outputs, config = golden("sd3_conditioning")
    heads = {name: config[name]["num_attention_heads"] for name in ("clip_l", "clip_g")}
    sd3 = pretrained.sd3_text(pretrained.sort_out(weights, "sd3"), heads=heads)
    context, pooled = sd3.assemble(inputs["ids_l"], inputs["ids_g"], inputs["ids_t5"])
    close(context, outputs["context"])
    close(pooled, outputs["pooled"])
    clips = {name: value for name, value in weights.items() if "t5xxl" not in name}
    sd3 = pretrained.sd3_text(pretrained.sort_out(clips, "sd3"), heads=heads, width=config["t5"]["d_model"])
    alone, length = sd3.assemble(inputs["ids_l"], inputs["ids_g"])[0], inputs["ids_l"].shape[1]
    close(alone[:, :length], context[:, :length])
    assert alone.shape == context.shape and alone[:, length:].abs().max() == 0


@pytest.mark.slow
def test_only_one_encoder_is_in_memory_at_a_time(monkeypatch):
    """The peak is the largest encoder: when T5 runs, both CLIPs are gone."""
    alive, forward = [], T5Encoder.forward

    def counting(self, *args):
        gc.collect()
        alive.append(sum(type(thing) is CLIPText for thing in gc.get_objects()))
        return forward(self, *args)
    gc.collect()
    before = sum(type(thing) is CLIPText for thing in gc.get_objects())
    monkeypatch.setattr(T5Encoder, "forward", counting)
    context, pooled = pretrained.sd3_text(tiny_sd3(), letters_tokenizer())(["a cat", ""])
    assert alive == [before]
    assert context.shape == (2, 154, 160) and pooled.shape == (2, 64 + 24)


def test_t5_in_half_precision_runs_in_bfloat16():
    """fp16 overflows inside wo, and fp8 is for storage only. What is stored stays as it was."""
    states = tiny_sd3()
    for stored in (torch.float16, torch.float8_e4m3fn):
        half = {name: value.to(stored) for name, value in states["t5xxl"].items()}
        net = pretrained.t5(half)
        out = text.run_frozen(net, "cpu", None, torch.tensor([[5, 7, 1]]))
        assert out.dtype == torch.bfloat16 and out.isfinite().all()
        assert half["shared.weight"].dtype == stored


def test_sd3_says_where_it_stops_reading():
    """CLIP's 77 tokens, and T5's where there is one."""
    long = "a cat and " * 30
    clips = pretrained.sd3_text(tiny_sd3(with_t5=False))
    assert clips.notes(long) == ["too long: CLIP reads 75 of 90 tokens"]
    both = pretrained.sd3_text(tiny_sd3(), letters_tokenizer())
    assert [note.split()[2] for note in both.notes(long)] == ["CLIP", "T5"]
