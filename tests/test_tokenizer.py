"""Prompts to numbers: the toy's words, CLIP's byte pairs, T5's unigram."""

import hashlib
import itertools
import json

import pytest
import torch
from torch.testing import assert_close

import tokenizer as tokenizer_file
from checkpoint import UserError
from conftest import GOLDEN
from tokenizer import CLIPTokenizer, T5Tokenizer, WordTokenizer

WORDS = ("a", "red", "cat", "dog", "moving left", "in", "snow")


def letters_tokenizer(extra=()):
    """A T5 tokenizer of a few pieces: \u2581, a, b, ab, aba."""
    scores = {"\u2581": -1.0, "a": -2.0, "b": -2.5, "ab": -3.0, "aba": -6.0}
    scores.update({piece: -9.0 for piece in extra})
    pieces = {piece: (index + 3, score) for index, (piece, score) in enumerate(scores.items())}
    return T5Tokenizer(pieces, {"<pad>": 0, "</s>": 1, "<unk>": 2})


# -------------------------------------------------------------------------------------------- the toy's words

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


# ------------------------------------------------------------------------------------------- CLIP's tokenizer

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
    return CLIPTokenizer.load(path if path.is_file() else tokenizer_file.MERGES)


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


def test_sd3_pads_clip_g_with_zeros_and_clip_l_with_eos():
    """Both read the same words; only what follows EOS differs."""
    tokenizer = CLIPTokenizer.load()
    clip_l, clip_g = tokenizer(["a cat"])[0], tokenizer(["a cat"], pad_id=0)[0]
    assert_close(clip_l[:4], clip_g[:4])
    assert clip_l[4:].unique().tolist() == [49407] and clip_g[4:].unique().tolist() == [0]


# --------------------------------------------------------------------------------------------- T5's tokenizer

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


def test_the_demo_gives_its_known_answers():
    """python tokenizer.py prints them."""
    assert tokenizer_file.demo() == ("anti dise stab lish ment arianism",
                                     [49406, 320, 1125, 539, 320, 2368, 49407])
