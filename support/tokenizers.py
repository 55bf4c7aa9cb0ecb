"""tokenizers.py - text -> numbers: the toy's words, CLIP's byte pairs, T5's unigram and its file format.
Paper    CLIP's byte pairs: Sennrich et al. 2016 over GPT-2's bytes; T5's unigram: Kudo 2018 (SentencePiece)
Shapes   list of B strings -> ids (B,L), cut to L with the end kept last, filled up with pads
Sizes    the toy L=12..16, CLIP L=77 and 49,408 ids, T5 L=77 (SD3) or 120 (PixArt, Latte) and 32,100 ids
Differs  no ftfy, which mends garbled letters: they and HTML entities stay as typed (grep DEVIATES)

THE PROBLEM. A network reads numbers. A prompt has to become a list of them, each one a row of a table of
vectors (text.py), so the question is what to number:

    whole words     few tokens, each with a meaning of its own; but what was never counted cannot be said
    letters         nothing is unsayable; but "cat" is three tokens that mean nothing, and prompts are long
    pieces          frequent words whole, rare ones put together: both at once

                           "A catnip mushrooming!"
    the toy's words        [BOS]  a   [EOS]                             the others: unknown, left out and said
    CLIP, byte pairs       [BOS]  a   cat nip   mush room ing   !  [EOS]          glued from below
    T5, unigram            _a   _cat nip   _mushroom ing   !  [EOS]               cut from above
                           [BOS], [EOS]: the prompt begins, ends; _ a space before the word

Pieces won: BPE (byte pairs) builds them from below, by replaying the merges it learned; unigram has a
probability for each piece and looks for the likeliest cut. Tried by others: WordPiece (BERT), nearly BPE;
bytes alone (ByT5), which spell well and cost four times the tokens. SD3 carries both CLIP's and T5's, because
it carries both networks (why: text.py). All three below are written out here, for a tokenizer that differs in
one id feeds the network another prompt, and nothing fails (test_golden_clip_ids, test_golden_t5_ids)."""

import difflib
import gzip
import math
import re
import struct
import unicodedata

import numpy as np
import torch

from support.checkpoints import SHIPPED
from support.cli import UserError


# ---------------------------------------------------------------------------------- the toy's words
# The toy world has 42 words, and a person who tries it has 40,000. An unknown word has no row in the table,
# and a row that no caption ever trained would be noise in the middle of a good prompt. So it is left out: of
# a caption without a word, since there are a million of them; of what a person types, and that is said:
#
#     typed          read as        why
#     Cat            cat            capitals
#     cats           -              unknown: left out, the words that are spelled alike are named (difflib)
#     13 words       10 of them     the table of positions ends there
#
# Tried here for a while: a table of what people say instead ("tiger" read as "cat"). It was 260 words for a
# vocabulary of 42, and what was made was another animal than the one that was asked for.
#
# The numbers themselves could not be simpler. Two are kept for the prompt's begin and end, one for nothing:
#
#     id       0     1    2   ...   42       43     44
#     means   pad    a    an  ...   yellow   BOS    EOS     EOS is the largest, as in CLIP: text.py finds
#                                                           the end of a prompt by asking for the maximum

class WordTokenizer:
    """One id per known word."""

    def __init__(self, words, length):
        self.words = list(dict.fromkeys(word for phrase in words for word in self.split(phrase)))
        self.ids = {word: index + 1 for index, word in enumerate(self.words)}
        self.bos, self.eos, self.length = len(self.words) + 1, len(self.words) + 2, length
        self.size = len(self.words) + 3

    @staticmethod
    def split(prompt):
        """'A red Cat, jumping!' -> ['a', 'red', 'cat', 'jumping']"""
        return re.findall(r"[^\W_]+", prompt.lower())

    def read(self, prompt):
        """'two Cat jumping' -> ['cat', 'jumping']: the words that it knows; the others are left out."""
        return [word for word in self.split(prompt) if word in self.ids]

    def __call__(self, prompts):
        """list of B strings -> ids (B,L)."""
        rows = [[self.bos, *(self.ids[word] for word in self.read(prompt)), self.eos] for prompt in prompts]
        return pad_rows(rows, self.length, self.eos, 0)                                            # (B,L)

    def notes(self, prompt):
        """What a person should be told about this prompt, a line each; [] where all of it is read."""
        notes = []
        for word in self.split(prompt):
            if word not in self.ids:
                near = ", ".join(difflib.get_close_matches(word, self.words, 3, 0.01))
                notes.append(f'"{word}" is no word of this model, left out; spelled alike: {near}')
        return notes + cut_note("the model", len(self.read(prompt)), self.length - 2)


def cut_note(who, have, length):
    """[the note that a prompt of `have` tokens is cut after `length` of them, if it is]"""
    if have <= length:
        return []
    return [f"too long: {who} reads {length} of {have} tokens"]


# A batch is a rectangle and prompts are not, so short rows are filled with a pad and long ones are cut. The
# end token is put back when it was cut off: the networks read the whole prompt's meaning there (text.py,
# pooled), and a prompt without an end is one that no network ever saw.

def pad_rows(rows, length, eos, pad):
    """Lists of ids -> (B,L): cut to `length` with EOS kept last, filled up with the pad."""
    rows = [row if len(row) <= length else row[:length - 1] + [eos] for row in rows]
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])                  # (B,L)


# ---------------------------------------------------------------------------------- CLIP's tokenizer
# Byte-pair encoding (Sennrich et al. 2016). TRAINING, done once by CLIP's authors: start from single letters,
# look for the pair of neighbours that occurs most often in a mountain of text, make it one piece, again,
# 48,894 times. What is published is the list of pairs in that order, checkpoints/clip/merges.txt.gz; the
# vocabulary follows from it. USE is a replay: join in a word whatever pair stands earliest in the list, until
# none does. "mushrooming", with the place in the list of each pair that is joined (</w> marks a word's end:
# "ing" there is another piece than in "ingot"):
#
#     m  u  s  h  r  o  o  m  i  n  g</w>
#                             \in/           0
#                             \  ing</w>/    7       the commonest ending of English
#                 \ro/                      20       not "oo": that pair comes later
#                       \om/               35
#           \sh/                           40
#     \mu/                                158
#     \  mush /                          7123
#                 \ room /               8333
#     mush        room        ing</w>                "mush room" is not in the list: three tokens
#
# Below the letters are BYTES, GPT-2's trick: a text in any script is bytes in UTF-8, there are 256 of them,
# and so nothing is ever unknown. TRAPS: everything is made lower case; digits are cut one by one ("42" is 4,
# 2); a text is cut at 77 with its end kept; CLIP-L pads with the end token, CLIP-G with id 0, which is "!".

MERGES = SHIPPED / "clip/merges.txt.gz"
CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)")       # it's, don't, we're: the ending is a word of its own
RUN = re.compile("L+|N|P+| ")                            # letters, ONE digit, anything else, a space
# Chinese has no spaces between words, so each of its characters is one: these ranges of Unicode
CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF),
           (0x2F800, 0x2FA1F))


class CLIPTokenizer:
    """"a photo of a cat" -> [49406, 320, 1125, 539, 320, 2368, 49407]: one id a word between BOS and EOS."""
    # DEVIATES CLIP's code: it first repairs the text with ftfy (curly quotes, mojibake, HTML entities). That
    # is one more package for few prompts; we clean as Hugging Face's transformers does where ftfy is absent.

    def __init__(self, merges):
        """merges: lines "i n", "th e</w>", the most frequent pair first. The vocabulary follows from them."""
        pairs = [tuple(line.split()) for line in merges if line.strip() and not line.startswith("#version")]
        self.byte_letter = letters_for_bytes()
        letters = list(self.byte_letter.values())
        self.names = [*letters, *(letter + "</w>" for letter in letters), *map("".join, pairs),
                      "<|startoftext|>", "<|endoftext|>"]
        self.vocab = {name: index for index, name in enumerate(self.names)}
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.bos, self.eos, self.cache = len(self.names) - 2, len(self.names) - 1, {}

    @classmethod
    def load(cls, path=MERGES):
        """From a merges.txt.gz; without a path the vocabulary of all released CLIP models."""
        return cls(gzip.decompress(path.read_bytes()).decode("utf-8").split("\n"))

    def __call__(self, prompts, pad_id=None, length=77):
        """ids (B,L), cut to `length` with EOS kept last. Pads: EOS for CLIP-L (the default), 0 for CLIP-G."""
        pad_id = self.eos if pad_id is None else pad_id
        return pad_rows([self.encode(prompt, pad_id) for prompt in prompts], length, self.eos, pad_id)

    def encode(self, prompt, pad_id=None):
        """One prompt -> [BOS, ..., EOS], not cut. A special token typed in the prompt keeps its meaning, and
        the pad is one too: CLIP-G pads with id 0, which is "!", so there a typed "!" is 0 and not a word."""
        specials = {self.bos, self.eos, self.eos if pad_id is None else pad_id}
        pattern = "|".join(re.escape(self.names[index]) for index in specials)
        ids = [self.bos]
        for n, part in enumerate(re.split(f"({pattern})", clean_for_clip(prompt))):
            if n % 2:                                    # re.split leaves the specials at the odd places
                ids.append(self.vocab[part])
            else:
                ids += [index for word in words_for_clip(part) for index in self.bpe(word)]
        return ids + [self.eos]

    def notes(self, prompt, length=77):
        """[a note on where CLIP stops reading, if it does]; BOS and EOS take two of its places."""
        return cut_note("CLIP", len(self.encode(prompt)) - 2, length - 2)

    def bpe(self, word):
        """The ids of one word. Merging is slow in Python and a million captions have few different words, so
        what was merged once is kept."""
        if word not in self.cache:
            letters = "".join(self.byte_letter[byte] for byte in word.encode("utf-8", "replace"))
            self.cache[word] = [self.vocab[piece] for piece in self.merge(letters)]
        return self.cache[word]

    def merge(self, word):
        """Join the earliest pair of the list, everywhere in the word, until none is known."""
        pieces = [*word[:-1], word[-1] + "</w>"]
        while True:
            pair = min(zip(pieces, pieces[1:]), key=lambda pair: self.ranks.get(pair, math.inf), default=None)
            if pair not in self.ranks:
                return pieces
            joined = []
            for piece in pieces:
                if joined and (joined[-1], piece) == pair:
                    joined[-1] += piece
                else:
                    joined.append(piece)
            pieces = joined


# From text to words, before any merging. `clean_for_clip` decides what may be said at all, `words_for_clip`
# where a merge must not reach across: "cat." is "cat" and ".", so that a full stop does not make another cat.
# Each rule is one of transformers' (test_golden_clip_ids holds sixty strange prompts to them).

def letters_for_bytes():
    """GPT-2's trick: each of the 256 bytes is written as one visible letter, itself if it is visible, so that
    the list of merges is a text file that can be looked at."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def clean_for_clip(text):
    """No invisible characters, spaces round Chinese ones, composed accents, single spaces, lower case."""
    kept = []
    for char in text:
        kind = unicodedata.category(char)
        if char in "\t\n\r" or kind == "Zs":
            kept.append(" ")
        elif kind[0] != "C" and char != "\ufffd":
            kept.append(f" {char} " if any(low <= ord(char) <= high for low, high in CHINESE) else char)
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split()).lower()


def words_for_clip(text):
    """"it's 42!" -> it, 's, 4, 2, !   `re` cannot tell Unicode's letters from its numbers: we match a second
    string of the same length that holds each character's kind."""
    kinds = "".join(char if char == " " else unicodedata.category(char)[0] for char in text)
    kinds = re.sub("[^LN ]", "P", kinds)
    words, at = [], 0
    while at < len(text):
        end = (CONTRACTION.match(text, at) or RUN.match(kinds, at)).end()
        words.append(text[at:end])
        at = end
    return [word for word in words if word != " "]


# ---------------------------------------------------------------------------------- T5's tokenizer
# Unigram (Kudo 2018, "SentencePiece"). BPE is greedy: a pair joined early may spoil a better cut later.
# Unigram has a probability for each piece, calls the product of a cut's pieces its probability, and takes the
# likeliest of all cuts. There are 2^(n-1) cuts of n letters, but not that many to compare: the best cut of
# "abab" ends in some piece, and what is before it must be cut at its best, too. So go from left to right and
# keep, for each place, only the best cut that ends there (Viterbi). With log probabilities _ -1, a -2, b
# -2.5, ab -3, aba -6:
#
#     text         _      a      b      a      b
#     best to here -1     -3     -4     -6     -7        -4: "_ ab" -1-3, not "_ a b" -1-2-2.5
#     last piece   _      a      ab     a      ab        -7: "_ ab ab" -4-3, not "_ aba b" -7-2.5
#     back         from the end: ab, then ab, then _  ->  "_ ab ab"
#                  (test_unigram_finds_the_most_probable_of_all_cuts tries all)
#
# A space is the letter \u2581 (here _) at the head of a word, so that a text can be put together again, and
# case is kept. What has no piece is <unk>, at a cost of 10 more than the rarest piece: the last resort.
# Before that like letters become one, full-width ones plain, for example (`normalise`).

# What SentencePiece's rules do before NFKC: spaces of all kinds and directions of writing become a space,
# control characters nothing.
# DEVIATES from SentencePiece's code: it reads these rules, NFKC's too, from a table in T5's file. They stand
# here instead, which spares a reader of that table. Held against one for all 1,112,064 characters they
# differ in 100, 99 of them younger than Python 3.11's Unicode; and where accents are stacked in another
# order than Unicode's, NFKC still makes one letter of them, SentencePiece does not.
SPACES = "\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"
RULES = dict.fromkeys([*range(1, 32), 0x7F, 0x8F, 0x9F]) | dict.fromkeys(map(ord, SPACES), " ")
WIDE_TILDE = "\uff5e"                                    # the one that NFKC would change and they do not

class T5Tokenizer:
    """"a cat" -> "\u2581a\u2581cat" -> the likeliest pieces' ids, then </s>."""

    def __init__(self, pieces, specials):
        """pieces {"\u2581cat": (id, log probability)}, specials {"</s>": 1, ...}"""
        self.pieces = {piece: (index, np.float32(score)) for piece, (index, score) in pieces.items()}
        self.specials = specials
        self.pad, self.eos, self.unk = specials["<pad>"], specials["</s>"], specials["<unk>"]
        self.special = re.compile(f"({'|'.join(map(re.escape, specials))})")
        self.longest = max(map(len, self.pieces))
        # an unknown character costs 10 more than the rarest piece, as in SentencePiece
        self.unk_score = min(score for _, score in self.pieces.values()) - np.float32(10)

    @classmethod
    def load(cls, path):
        """From spiece.model."""
        try:
            return cls(*read_spiece(path.read_bytes()))
        except (AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
            raise UserError(f"{path} is not a T5 tokenizer or is damaged ({error!r}); download it again")

    def __call__(self, prompts, length=77):
        """ids (B,L) and mask (B,L), 1 for text, cut to `length` with </s> kept last. SD3 ignores the mask,
        PixArt and Latte need it; it is not ids != 0, for a <pad> typed in the prompt is a token, too."""
        rows = [self.encode(prompt) for prompt in prompts]
        mask = torch.arange(length) < torch.tensor([[len(row)] for row in rows])              # (B,L)
        return pad_rows(rows, length, self.eos, self.pad), mask.long()

    def encode(self, prompt):
        """One prompt -> [..., </s>], not cut. A special token typed in the prompt is that token."""
        ids = []
        for part in self.special.split(prompt):
            if part in self.specials:
                ids.append(self.specials[part])
            else:
                ids += self.unigram(self.normalise(part))
        return ids + [self.eos]

    def notes(self, prompt, length=77):
        """[a note on where T5 stops reading, if it does]; </s> takes one of its places."""
        return cut_note("T5", len(self.encode(prompt)) - 1, length - 1)

    def normalise(self, text):
        """Like letters as one, and \u2581 at the head of each word."""
        parts = text.encode("utf-8", "replace").decode().translate(RULES).split(WIDE_TILDE)
        text = WIDE_TILDE.join(unicodedata.normalize("NFKC", part) for part in parts)
        return "".join("\u2581" + word for word in text.split(" ") if word)

    def unigram(self, text):
        """Viterbi, the worked example's rows: best[end] = (log probability, start, id of the last piece) of
        the best cut of text[:end].

        float32 and a strict >, because with equal pieces ("aaaa") rounding decides and must decide alike."""
        best = [(np.float32(0), 0, None)] + [None] * len(text)
        for start in range(len(text)):
            so_far = best[start][0]
            for end in range(start + 1, min(len(text), start + self.longest) + 1):
                otherwise = (self.unk, self.unk_score) if end == start + 1 else (None, None)
                index, score = self.pieces.get(text[start:end], otherwise)
                if index is not None and (best[end] is None or so_far + score > best[end][0]):
                    best[end] = (so_far + score, start, index)
        ids, end = [], len(text)
        while end > 0:
            _, end, index = best[end]
            if index != self.unk or ids[-1:] != [self.unk]:      # unknown characters in a row are one <unk>
                ids.append(index)
        return ids[::-1]


# ---------------------------------------------------------------------------------- T5's file format
# The pieces come as spiece.model, which is protobuf: a list of fields, each a number that tells which field
# and of what kind, then the value. Thirty lines read what is needed here, and a dependency less is carried.

def read_spiece(data):
    """A spiece.model -> the arguments of T5Tokenizer. sentencepiece_model.proto: 1 = pieces (1 text, 2 score,
    3 type: 1 normal, 2 unknown, 3 control, 4 user defined, 6 byte)."""
    pieces, specials, count = {}, {}, 0
    for field, value in protobuf(data):
        if field == 1:
            piece = {1: b"", 2: b"\0\0\0\0", 3: 1} | dict(protobuf(value))
            text, score, kind = piece[1].decode("utf-8"), struct.unpack("<f", piece[2])[0], piece[3]
            if kind in (2, 3):
                specials[text] = count
            elif kind in (1, 4, 6):
                pieces[text] = (count, score)
            count += 1
    # T5's 100 sentinels (marks for gaps in its pretraining) are not in the file: they count down from the end
    specials.update({f"<extra_id_{n}>": count + 99 - n for n in range(100)})
    return pieces, specials


# Protobuf's wire, on the piece "_a" with score -2.0, 11 bytes inside the file's field 1:
#
#     0a        0b        0a        04        e2 96 81 61     15        00 00 00 c0
#     field 1,  11 bytes  field 1,  4 bytes   "\u2581a"            field 2,  -2.0, little end first
#     bytes     follow    bytes     follow                    4 bytes
#     (a tag is 8 times the field's number, plus its kind: 0 a number, 2 bytes, 5 four bytes, 1 eight)

def protobuf(data):
    """Protobuf's wire format: (field number, value) pairs; a number for varints, bytes for all else."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value, at = varint(data, at)
        else:
            if tag & 7 == 2:
                size, at = varint(data, at)
            else:
                size = {1: 8, 5: 4}[tag & 7]
            value = data[at:at + size]
            at += size
        if at > len(data):
            raise ValueError("the file ends in the middle of a field")
        yield tag >> 3, value


def varint(data, at):
    """A number in as few bytes as it needs: 7 bits a byte, the lowest first; a set top bit says that more
    follow. 300 is ac 02: 0x2c + 128 * 2."""
    value, shift = 0, 0
    while data[at] & 0x80:
        value, shift, at = value | (data[at] & 0x7F) << shift, shift + 7, at + 1
    return value | data[at] << shift, at + 1
