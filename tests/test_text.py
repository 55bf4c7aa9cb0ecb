"""Prompts to vectors: words, byte pairs, unigrams, CLIP, T5, and SD3's conditioning."""

import gc
import gzip
import hashlib
import itertools
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.testing import assert_close

import text
import world
from checkpoint import UserError, load_network, save_network
from text import (CLIPText, CLIPTextConfig, CLIPTokenizer, SD3Text, T5Config, T5Encoder, T5Tokenizer, ToyText,
                  ToyTextConfig, WordTokenizer, t5_bucket)

GOLDEN = Path(os.environ.get("GOLDEN_DIR", "tests/golden"))
WORDS = ("a", "red", "cat", "dog", "moving left", "in", "snow")


def fixture(name):
    """(config, weights, inputs, outputs) of one golden file."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    groups = [{key[len(group):]: value for key, value in tensors.items() if key.startswith(group)}
              for group in ("weights.", "in.", "out.")]
    return config, *groups


def tiny_sd3(with_t5=True):
    """Random encoders small enough to build at once, with CLIP's real vocabulary."""
    torch.manual_seed(0)
    clip_l = CLIPTextConfig(width=64, layers=2, heads=1, mlp_width=32)
    clip_g = CLIPTextConfig(width=64, layers=2, heads=1, mlp_width=32, act="gelu", projection=24)
    states = {"clip_l": CLIPText(clip_l).state_dict(), "clip_g": CLIPText(clip_g).state_dict()}
    if with_t5:
        states["t5xxl"] = T5Encoder(T5Config(60, 160, 1, 2, 8, 16)).state_dict()
    return states


def letters_tokenizer(extra=()):
    """A T5 tokenizer of a few pieces: \u2581, a, b, ab, aba."""
    scores = {"\u2581": -1.0, "a": -2.0, "b": -2.5, "ab": -3.0, "aba": -6.0}
    scores.update({piece: -9.0 for piece in extra})
    pieces = {piece: (index + 3, score) for index, (piece, score) in enumerate(scores.items())}
    return T5Tokenizer(pieces, {"<pad>": 0, "</s>": 1, "<unk>": 2})


# ---------------------------------------------------------------------------------- the toy's words

def test_case_and_punctuation_do_not_matter_to_the_toy():
    """A prompt is typed by a person: 'A red Cat!' is 'a red cat'."""
    tokenizer = WordTokenizer(WORDS, 8)
    assert_close(tokenizer(["A  red, Cat!"]), tokenizer(["a red cat"]))


def test_an_unknown_word_is_named_once_with_the_nearest_known_words_first(capsys):
    """The sample is still made; the warning tells what the model can draw."""
    tokenizer = WordTokenizer(WORDS, 8)
    assert tokenizer.unknown("a red catt in snow") == ["catt"]
    tokenizer.warn(["a red catt in snow", "a cat"])
    tokenizer.warn(["a red catt in snow"])
    warned = capsys.readouterr().err
    assert warned.count("catt in snow") == 1 and warned.count("\n") == 1
    listed = warned.strip().split("the words it knows: ")[1].split(", ")
    assert listed[0] == "cat" and sorted(listed) == sorted(tokenizer.words)
    assert_close(tokenizer(["a red catt in snow"]), tokenizer(["a red in snow"]))


def test_the_toy_accepts_empty_and_long_prompts():
    """Nothing said is BOS EOS; too much is cut, and EOS stays the last token."""
    torch.manual_seed(0)
    toy = ToyText(ToyTextConfig(words=WORDS, width=32, length=6))
    context, pooled = toy(["", "cat " * 50, "!?"])
    assert context.shape == (3, 6, 32) and pooled.shape == (3, 32) and context.isfinite().all()
    ids = toy.tokenizer(["", "cat " * 50])
    assert ids[0].tolist() == [toy.tokenizer.bos, toy.tokenizer.eos, 0, 0, 0, 0]
    assert ids[1, -1] == toy.tokenizer.eos and ids[1, -2] == toy.tokenizer.ids["cat"]
    assert_close(pooled[0], pooled[2])


def test_the_toys_vectors_follow_the_words():
    """Another word, or another order, is another prompt."""
    torch.manual_seed(0)
    toy = ToyText(ToyTextConfig(words=WORDS, width=32))
    _, pooled = toy(["a red cat", "a red dog", "red a cat"])
    assert (pooled[0] - pooled[1]).abs().max() > 0.01 and (pooled[0] - pooled[2]).abs().max() > 0.01


def test_every_weight_of_the_toys_encoder_is_trained():
    """DDP stops when a parameter gets no gradient."""
    toy = ToyText(ToyTextConfig(words=WORDS, width=32))
    context, pooled = toy(["a red cat in snow"])
    (context.square().sum() + pooled.sum()).backward()
    assert [name for name, weight in toy.named_parameters() if weight.grad is None] == []


def test_reading_sets_apart_words_that_no_picture_shows():
    """Pictures do not move: from them alone "jumping" and "spinning" would stay what chance made them."""
    torch.manual_seed(0)
    toy = ToyText(ToyTextConfig(words=world.WORDS, width=32))
    captions = [f"a {subject} {motion}" for subject in ("cat", "dog", "car") for motion in world.MOTIONS]
    apart = lambda: F.cosine_similarity(*toy(["a cat jumping", "a cat spinning"])[1], dim=0)
    before, optimizer = apart(), torch.optim.Adam(toy.parameters(), 3e-3)
    for _ in range(150):
        loss = toy.reading_loss(captions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert apart() < before - 0.1
    assert loss < 0.03 < toy.reading_loss(["a green star in snow"])     # never read: not guessed


def test_the_toys_encoder_survives_save_and_load(tmp_path):
    """The vocabulary travels in the checkpoint's config, so a sampler needs nothing else."""
    toy = ToyText(ToyTextConfig(words=WORDS, width=32)).eval()
    save_network(tmp_path / "text.safetensors", toy)
    again = load_network(ToyText, tmp_path / "text.safetensors")
    assert again.config == toy.config
    for was, now in zip(toy(["a red cat", ""]), again(["a red cat", ""])):
        assert_close(now, was)


# ---------------------------------------------------------------------------------- CLIP's tokenizer

def test_bpe_joins_the_most_frequent_pair_first():
    """With merges (b c), (a b): 'abc' is a + bc and not ab + c."""
    tokenizer = CLIPTokenizer(["#version: 0.2", "b c</w>", "a b"])
    assert tokenizer.merge("abc") == ["a", "bc</w>"]
    assert tokenizer.merge("abab") == ["ab", "a", "b</w>"]


def test_the_shipped_merges_give_clips_vocabulary():
    """All 49408 names in their places, by the digest of CLIP's own vocab.json."""
    vocab = CLIPTokenizer.load().vocab
    assert len(vocab) == 49408 and vocab["<|endoftext|>"] == 49407 and vocab["cat</w>"] == 2368
    digest = hashlib.sha256("\n".join(sorted(vocab, key=vocab.get)).encode()).hexdigest()
    assert digest == "7cccc44d334555d1ff3c0ac5f0246b428fab2918383e77ee745cf30d41010b78"


def golden_clip_tokenizer():
    """The fixture's own merges where they lie beside it, else the shipped ones."""
    path = GOLDEN / "clip_merges.txt.gz"
    return CLIPTokenizer.load(path if path.is_file() else text.MERGES)


def test_golden_clip_ids():
    """transformers' CLIPTokenizer as it is without ftfy."""
    tokenizer = golden_clip_tokenizer()
    for prompt in json.loads((GOLDEN / "clip_tokenizer.json").read_text())["prompts"]:
        assert tokenizer.encode(prompt["text"]) == prompt.get("ids_no_ftfy", prompt["ids"]), prompt["text"]


@pytest.mark.parametrize("key, pad_id", [("ids_77_pad_eos", None), ("ids_77_pad_zero", 0)])
def test_golden_clip_padding(key, pad_id):
    """CLIP-L pads with EOS, CLIP-G with 0, which is "!"; both cut to 77 and keep EOS."""
    tokenizer = golden_clip_tokenizer()
    prompts = [prompt for prompt in json.loads((GOLDEN / "clip_tokenizer.json").read_text())["prompts"]
               if "ids_no_ftfy" not in prompt]                   # those were padded as ftfy left them
    ids = tokenizer([prompt["text"] for prompt in prompts], pad_id, len(prompts[0][key]))
    assert_close(ids, torch.tensor([prompt[key] for prompt in prompts]))


def test_a_special_token_in_a_prompt_is_one_token():
    """Typed or not, <|endoftext|> is EOS."""
    tokenizer = CLIPTokenizer.load()
    assert tokenizer.encode("a<|endoftext|>b")[2] == tokenizer.eos


# ---------------------------------------------------------------------------------- T5's tokenizer

@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_golden_t5_ids(file):
    """transformers' T5Tokenizer, from the protobuf and from the JSON."""
    tokenizer = T5Tokenizer.load(GOLDEN / "t5_tokenizer" / file)
    for prompt in json.loads((GOLDEN / "t5_tokenizer.json").read_text())["prompts"]:
        assert tokenizer.encode(prompt["text"]) == prompt["ids"], prompt["text"]
        ids, mask = tokenizer([prompt["text"]], len(prompt["ids_77"]))
        assert ids[0].tolist() == prompt["ids_77"] and mask.sum() == prompt["mask_77_sum"]


def test_golden_sentinels_count_down_from_the_end():
    """<extra_id_N> is the N-th id from the end, though spiece.model does not hold it."""
    fixture = json.loads((GOLDEN / "t5_tokenizer.json").read_text())
    for file in ("spiece.model", "tokenizer.json"):
        specials = T5Tokenizer.load(GOLDEN / "t5_tokenizer" / file).specials
        assert specials["<extra_id_0>"] == fixture["extra_id_0"] == fixture["total_with_extra_ids"] - 1
        assert specials["<extra_id_99>"] == fixture["extra_id_99"]


def test_unigram_finds_the_most_probable_of_all_cuts():
    """Viterbi against trying every way to cut the word."""
    tokenizer = letters_tokenizer()
    word, best = "\u2581abaab", (-1e9, None)
    for bits in itertools.product([0, 1], repeat=len(word) - 1):
        ends = [0] + [place + 1 for place, bit in enumerate(bits) if bit] + [len(word)]
        cut = [word[start:end] for start, end in zip(ends, ends[1:])]
        if all(piece in tokenizer.pieces for piece in cut):
            best = max(best, (sum(float(tokenizer.pieces[piece][1]) for piece in cut), cut))
    assert tokenizer.unigram(word) == [tokenizer.pieces[piece][0] for piece in best[1]]


def test_unknown_characters_are_one_token_or_their_bytes():
    """SentencePiece merges a run of unknowns; a model with byte pieces spells it instead."""
    assert letters_tokenizer().encode("axyzb") == [3, 4, 2, 5, 1]
    spelling = letters_tokenizer([f"<0x{byte:02X}>" for byte in range(256)])
    first = spelling.byte_ids[0]
    assert spelling.encode("a\u00e9") == [3, 4, first + 0xC3, first + 0xA9, 1]


def test_an_unknown_character_is_the_last_resort():
    """SentencePiece: it costs 10 more than the rarest piece, so a piece that covers the text wins."""
    specials = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    tokenizer = T5Tokenizer({"\u2581": (3, -1.0), "b": (4, -1.0), "ab": (5, -12.0)}, specials)
    assert tokenizer.encode("ab") == [3, 5, 1]


def test_t5_keeps_its_end_when_cut_and_masks_its_pads():
    """</s> stays last; a typed <pad> is a token and not padding."""
    ids, mask = letters_tokenizer()(["a b " * 50, "", "<pad>"], length=6)
    assert ids[0, -1] == 1 and ids[1].tolist() == [1, 0, 0, 0, 0, 0]
    assert mask.sum(dim=1).tolist() == [6, 1, 2]


@pytest.mark.parametrize("name, content", [("spiece.model", b"\x0a\xff\x01oops"), ("tokenizer.json", b"{}"),
                                           ("spiece.model", b""), ("tokenizer.json", b"\x80")])
def test_a_damaged_tokenizer_is_a_clear_error(tmp_path, name, content):
    """Bad input names the file and the way out."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*download"):
        T5Tokenizer.load(tmp_path)


# ---------------------------------------------------------------------------------- the encoders

@pytest.mark.parametrize("name", ["clip_text_l", "clip_text_g"])
def test_golden_clip(name):
    """transformers' CLIPTextModelWithProjection, every output that SD3 or the toy uses."""
    config, weights, inputs, outputs = fixture(name)
    net = CLIPText.from_state_dict(weights, config["num_attention_heads"], config["hidden_act"])
    with torch.no_grad():
        out = net(inputs["input_ids"])
    assert_close(out.penultimate, outputs["hidden_states_m2"], atol=1e-5, rtol=0)
    assert_close(out.last, outputs["last_hidden_state"], atol=1e-5, rtol=0)
    assert_close(out.pooled, outputs["pooled_unprojected"], atol=1e-5, rtol=0)
    assert_close(out.projected, outputs["text_embeds"], atol=1e-5, rtol=0)


def test_golden_t5():
    """transformers' T5EncoderModel with and without mask, and a text longer than the buckets reach."""
    config, weights, inputs, outputs = fixture("t5_encoder")
    net = T5Encoder.from_state_dict(weights, config["relative_attention_max_distance"])
    with torch.no_grad():
        bias = outputs["position_bias_long"]
        assert_close(net.position_bias(bias.shape[-1]), bias, atol=1e-6, rtol=0)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        assert_close(net(ids), outputs["last_hidden_state_nomask"], atol=2e-5, rtol=0)
        assert_close(net(ids, mask), outputs["last_hidden_state_masked"], atol=2e-5, rtol=0)
        assert_close(net(inputs["input_ids_long"]), outputs["last_hidden_state_long"], atol=2e-5, rtol=0)


def test_golden_t5_embedding_under_either_name():
    """shared.weight and encoder.embed_tokens.weight are one tensor: one, the other or both may be stored."""
    weights = fixture("t5_encoder")[1]
    table = weights.get("shared.weight", weights.get("encoder.embed_tokens.weight"))
    rest = {name: weight for name, weight in weights.items() if not re.search("shared|embed_tokens", name)}
    one, other = "shared.weight", "encoder.embed_tokens.weight"
    for names in ([one], [other], [one, other]):
        net = T5Encoder.from_state_dict({**rest, **{name: table for name in names}})
        assert torch.equal(net.shared.weight, table)


def test_golden_key_tables_of_the_released_encoders():
    """Names and shapes of CLIP-L, CLIP-G and T5-XXL, stored alone or in SD3's single file, fit strictly."""
    models = json.loads(gzip.open(GOLDEN / "checkpoint_keys.json.gz").read())["models"]
    for model in [models[name] for name in models if "clip" in name or "t5" in name]:
        want = model["config"]
        state = {key.split(".transformer.")[-1]: torch.empty(shape, device="meta")
                 for key, shape in model["tensors"].items()}
        if "d_model" in want:
            got = T5Encoder.from_state_dict(state).config
            assert (got.width, got.heads, got.head_dim) == (want["d_model"], want["num_heads"], want["d_kv"])
        else:
            got = CLIPText.from_state_dict(state, act=want["hidden_act"]).config
            assert (got.width, got.heads, got.layers) == (
                want["hidden_size"], want["num_attention_heads"], want["num_hidden_layers"])


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


def test_a_missing_weight_is_named():
    """A checkpoint is loaded whole or not at all."""
    state = tiny_sd3()["clip_l"]
    del state["text_model.encoder.layers.1.mlp.fc2.bias"]
    with pytest.raises(UserError, match="layers.1.mlp.fc2.bias"):
        CLIPText.from_state_dict(state)
    with pytest.raises(UserError, match="shared.weight"):
        T5Encoder.from_state_dict(state)


# ---------------------------------------------------------------------------------- SD3's conditioning

def test_golden_sd3_conditioning():
    """sd3-ref's get_cond on a single-file checkpoint."""
    config, weights, inputs, outputs = fixture("sd3_conditioning")
    heads = {name: config[name]["num_attention_heads"] for name in ("clip_l", "clip_g")}
    sd3 = SD3Text.from_state_dict(weights, heads=heads)
    context, pooled = sd3.assemble(inputs["ids_l"], inputs["ids_g"], inputs["ids_t5"])
    assert_close(context, outputs["context"], atol=1e-5, rtol=0)
    assert_close(pooled, outputs["pooled"], atol=1e-5, rtol=0)


def test_golden_sd3_without_t5_has_zeros_in_its_place():
    """T5's 77 tokens are zeros, and nothing else changes."""
    config, weights, inputs, outputs = fixture("sd3_conditioning")
    heads = {name: config[name]["num_attention_heads"] for name in ("clip_l", "clip_g")}
    weights = {name: value for name, value in weights.items() if "t5xxl" not in name}
    context, _ = SD3Text.from_state_dict(weights, heads=heads, width=config["t5"]["d_model"]).assemble(
        inputs["ids_l"], inputs["ids_g"])
    length = inputs["ids_l"].shape[1]
    assert_close(context[:, :length], outputs["context"][:, :length], atol=1e-5, rtol=0)
    assert context.shape[1] == 2 * length and context[:, length:].abs().max() == 0


def test_sd3_pads_clip_g_with_zeros_and_clip_l_with_eos():
    """Both read the same words; only what follows EOS differs."""
    tokenizer = CLIPTokenizer.load()
    clip_l, clip_g = tokenizer(["a cat"])[0], tokenizer(["a cat"], pad_id=0)[0]
    assert_close(clip_l[:4], clip_g[:4])
    assert clip_l[4:].unique().tolist() == [49407] and clip_g[4:].unique().tolist() == [0]


def save_in_shards(state, folder):
    """As Diffusers stores a large network: two files and an index that says which tensor is where."""
    folder.mkdir(parents=True)
    files = {key: f"model-{1 + number % 2}-of-2.safetensors" for number, key in enumerate(sorted(state))}
    for file in set(files.values()):
        save_file({key: state[key] for key in state if files[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_all_layouts_on_disk_give_the_same_vectors(tmp_path):
    """One file, three files, and a Diffusers folder with shards."""
    states, ids = tiny_sd3(), torch.tensor([[49406, 5, 49407]])
    save_file({f"text_encoders.{name}.transformer.{key}": value for name, state in states.items()
               for key, value in state.items()}, tmp_path / "one.safetensors")
    (tmp_path / "three").mkdir()
    for name, folder in text.SD3_FOLDERS.items():
        save_file(states[name], tmp_path / "three" / f"{name}.safetensors")
        save_in_shards(states[name], tmp_path / "diffusers" / folder)
    results = [SD3Text.load(tmp_path / source).assemble(ids, ids, ids % 60)
               for source in ("one.safetensors", "three", "diffusers")]
    for context, pooled in results[1:]:
        assert_close(context, results[0][0])
        assert_close(pooled, results[0][1])


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
    context, pooled = SD3Text(tiny_sd3(), letters_tokenizer()).encode(["a cat", ""])
    assert alive == [before]
    assert context.shape == (2, 154, 160) and pooled.shape == (2, 64 + 24)


def test_t5_in_half_precision_runs_in_bfloat16():
    """fp16 overflows inside wo, and fp8 is for storage only. What is stored stays as it was."""
    states = tiny_sd3()
    for stored in (torch.float16, torch.float8_e4m3fn):
        half = {name: value.to(stored) for name, value in states["t5xxl"].items()}
        net = T5Encoder.from_state_dict(half)
        out = text.run_frozen(net, "cpu", None, torch.tensor([[5, 7, 1]]))
        assert out.dtype == torch.bfloat16 and out.isfinite().all()
        assert half["shared.weight"].dtype == stored


def test_sd3_says_what_is_missing():
    """A file without CLIPs, and T5 weights without T5's tokenizer."""
    with pytest.raises(UserError, match="clip_g"):
        SD3Text.from_state_dict({"model.diffusion_model.pos_embed": torch.zeros(1)})
    with pytest.raises(UserError, match="spiece.model"):
        SD3Text(tiny_sd3()).encode(["a cat"])


def test_golden_latte_reads_t5_from_a_diffusers_folder(tmp_path):
    """encode_t5 finds weights and tokenizer by themselves and hands out the mask."""
    vocab = json.loads((GOLDEN / "t5_tokenizer.json").read_text())["total_with_extra_ids"]
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "tokenizer").symlink_to((GOLDEN / "t5_tokenizer").resolve())
    state = T5Encoder(T5Config(vocab, 24, 1, 2, 8, 16)).state_dict()
    save_file(state, tmp_path / "text_encoder/model.safetensors")
    context, mask = text.encode_t5(["a cat", ""], tmp_path, length=12)
    assert context.shape == (2, 12, 24) and mask[1].tolist() == [1] + [0] * 11


def test_the_demo_gives_its_known_answers(capsys):
    """python text.py prints them."""
    ids, buckets = text.demo()
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407] and buckets == [15, 10, 8, 1, 0, 17, 24, 31]
