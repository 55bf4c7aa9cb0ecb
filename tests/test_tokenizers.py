"""Prompts to numbers: the toy's words, CLIP's byte pairs, T5's unigram."""

import hashlib
import itertools
import json

import pytest
import torch
from torch.testing import assert_close

from support import tokenizers
from support import toy_world
from support.cli import UserError
from conftest import GOLDEN
from support.tokenizers import CLIPTokenizer, T5Tokenizer, WordTokenizer


def letters_tokenizer():
    """A T5 tokenizer of a few pieces: \u2581, a, b, ab, aba."""
    scores = {"\u2581": -1.0, "a": -2.0, "b": -2.5, "ab": -3.0, "aba": -6.0}
    pieces = {piece: (index + 3, score) for index, (piece, score) in enumerate(scores.items())}
    return T5Tokenizer(pieces, {"<pad>": 0, "</s>": 1, "<unk>": 2})


# -------------------------------------------------------------------------------------------- the toy's words

def test_capitals_and_commas_are_understood():
    tokenizer = WordTokenizer(toy_world.WORDS, 12)
    assert tokenizer.read("A  BIRD, red!") == ["a", "bird", "red"] and tokenizer.notes("A BIRD") == []


def test_an_unknown_word_is_left_out_and_said():
    """With the words that are spelled like it; where nothing has a letter in common, none."""
    tokenizer = WordTokenizer(toy_world.WORDS, 12)
    assert_close(tokenizer(["a red tiger in snow"]), tokenizer(["a red in snow"]))
    note, = tokenizer.notes("a catt")
    assert note.startswith('"catt" is no word of this model, left out; spelled alike: cat, ')
    assert tokenizer.notes("\u732b") == ['"\u732b" is no word of this model, left out; spelled alike: ']


def test_a_prompt_that_is_cut_is_said_to_be():
    """The toy's 12 tokens hold 10 words, CLIP's 77 hold 75 tokens, T5's 77 hold 76."""
    typed = "a red cat jumping in snow at night on grass at sunset"
    assert WordTokenizer(toy_world.WORDS, 12).notes(typed) == ["too long: the model reads 10 of 12 tokens"]
    clip, long = CLIPTokenizer.load(), "a cat and " * 25 + "a dog " * 10
    assert clip.notes(long) == ["too long: CLIP reads 75 of 95 tokens"] and clip.notes("a cat " * 37) == []
    note, = T5Tokenizer.load(GOLDEN / "t5_tokenizer/spiece.model").notes(long)
    assert note.startswith("too long: T5 reads 76 of ")
    assert letters_tokenizer().notes("ab " * 38) == []


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
    return CLIPTokenizer.load(path if path.is_file() else tokenizers.MERGES)


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


# --------------------------------------------------------------------------------------------- T5's tokenizer

def test_golden_t5_ids():
    """transformers' T5Tokenizer, from the file of the pieces."""
    tokenizer = T5Tokenizer.load(GOLDEN / "t5_tokenizer/spiece.model")
    for prompt in json.loads((GOLDEN / "t5_tokenizer.json").read_text())["prompts"]:
        assert tokenizer.encode(prompt["text"]) == prompt["ids"], prompt["text"]
        ids, mask = tokenizer([prompt["text"]], len(prompt["ids_77"]))
        assert ids[0].tolist() == prompt["ids_77"] and mask.sum() == prompt["mask_77_sum"]


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


def test_an_unknown_character_is_the_last_resort():
    """SentencePiece: a run of unknowns is one token, and costs 10 more than the rarest piece, so a piece that
    covers the text wins."""
    assert letters_tokenizer().encode("axyzb") == [3, 4, 2, 5, 1]
    specials = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    tokenizer = T5Tokenizer({"\u2581": (3, -1.0), "b": (4, -1.0), "ab": (5, -12.0)}, specials)
    assert tokenizer.encode("ab") == [3, 5, 1]


def test_t5_keeps_its_end_when_cut_and_masks_its_pads():
    """</s> stays last; a typed <pad> is a token and not padding."""
    ids, mask = letters_tokenizer()(["a b " * 50, "", "<pad>"], length=6)
    assert ids[0, -1] == 1 and ids[1].tolist() == [1, 0, 0, 0, 0, 0]
    assert mask.sum(dim=1).tolist() == [6, 1, 2]


@pytest.mark.parametrize("content", [b"\x0a\xff\x01oops", b""])
def test_a_damaged_tokenizer_is_a_clear_error(tmp_path, content):
    """Bad input names the file and the way out."""
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match="spiece.model.*download"):
        T5Tokenizer.load(tmp_path / "spiece.model")


def test_like_letters_become_one():
    """SentencePiece's rules: full-width letters, ligatures, spaces of all kinds, no control characters."""
    tokenizer = letters_tokenizer()
    assert tokenizer.normalise("\uff41\ufb01\u3000b\x07c\u200bd\uff5e") == "\u2581afi\u2581bc\u2581d\uff5e"
