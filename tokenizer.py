"""tokenizer.py - text -> numbers: the toy's words, CLIP's byte pairs, T5's unigram and its two file formats.
Paper    CLIP's byte pairs: Sennrich et al. 2016 over GPT-2's bytes; T5's unigram: Kudo 2018 (SentencePiece)
Shapes   list of B strings -> ids (B,L), cut to L with the end kept last, filled up with pads
Sizes    the toy L=12..16, CLIP L=77 and 49,408 ids, T5 L=77 (SD3) or 120 (PixArt, Latte) and 32,100 ids
Differs  no ftfy: mojibake and HTML entities in a prompt stay as typed (grep DEVIATES)
Reads    after vae.py, before text.py, which makes vectors of the numbers
Run me   python tokenizer.py      # CPU, 3 s: cuts words with CLIP's merges, prints known answers"""

import base64
import difflib
import gzip
import json
import math
import re
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np
import torch

from checkpoint import UserError


# ---------------------------------------------------------------------------------- the toy's words

class WordTokenizer:
    """One id per known word: pad 0, the words, BOS, and EOS last: EOS is the largest id, as in CLIP."""

    def __init__(self, words, length):
        self.words = list(dict.fromkeys(word for phrase in words for word in self.split(phrase)))
        self.ids = {word: index + 1 for index, word in enumerate(self.words)}
        self.bos, self.eos, self.length = len(self.words) + 1, len(self.words) + 2, length
        self.size = len(self.words) + 3
        self.warned = set()

    @staticmethod
    def split(prompt):
        """'A red Cat, jumping!' -> ['a', 'red', 'cat', 'jumping']"""
        return re.findall(r"[^\W_]+", prompt.lower())

    def unknown(self, prompt):
        """The words of the prompt that are not in the vocabulary, in order, each once."""
        return [word for word in dict.fromkeys(self.split(prompt)) if word not in self.ids]

    def __call__(self, prompts):
        """list of B strings -> ids (B,L). An unknown word is left out: an embedding that no caption ever
        trained would be noise in the middle of an otherwise good prompt."""
        rows = [[self.ids[word] for word in self.split(prompt) if word in self.ids] for prompt in prompts]
        return pad_rows([[self.bos, *row, self.eos] for row in rows], self.length, self.eos, 0)

    def warn(self, prompts):
        """Say once a prompt which of its words are left out, and list all known words, nearest first."""
        for prompt in prompts:
            unknown = self.unknown(prompt)
            if unknown and prompt not in self.warned:
                self.warned.add(prompt)
                nearest = sorted(self.words, key=lambda word: -max(
                    difflib.SequenceMatcher(None, word, other).ratio() for other in unknown))
                print(f"{prompt!r}: left out {', '.join(unknown)}; the words it knows: {', '.join(nearest)}",
                      file=sys.stderr)


def pad_rows(rows, length, eos, pad):
    """Lists of ids -> (B,L): cut to `length` with EOS kept last, filled up with the pad."""
    rows = [row if len(row) <= length else row[:length - 1] + [eos] for row in rows]
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])                  # (B,L)


# ---------------------------------------------------------------------------------- CLIP's tokenizer

MERGES = Path(__file__).parent / "checkpoints/clip/merges.txt.gz"
CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)")
RUN = re.compile("L+|N|P+")                              # letters, ONE digit, anything else but space
CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF),
           (0x2F800, 0x2FA1F))


class CLIPTokenizer:
    """Byte-pair encoding over bytes: every string has ids, and a frequent word has one.

    "a photo of a cat" -> [49406, 320, 1125, 539, 320, 2368, 49407], one id a word between BOS and EOS; a rare
    word is put together: antidisestablishmentarianism = anti dise stab lish ment arianism."""
    # DEVIATES CLIP's code: it first repairs the text with ftfy (curly quotes, mojibake, HTML entities). That
    # is one more package for few prompts; we clean as the transformers tokenizer does where ftfy is absent.

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
        """From a merges.txt, gzipped or not; without a path the vocabulary of all released CLIP models."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no CLIP merges at {path}; a clone has them in checkpoints/clip/merges.txt.gz")
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return cls(data.decode("utf-8").split("\n"))

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

    def bpe(self, word):
        """The ids of one word; words repeat, so they are kept."""
        if word not in self.cache:
            letters = "".join(self.byte_letter[byte] for byte in word.encode("utf-8", "replace"))
            self.cache[word] = [self.vocab[piece] for piece in self.merge(letters)]
        return self.cache[word]

    def merge(self, word):
        """Join the pair that was most frequent in training, everywhere in the word, until none is known."""
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = min(zip(pieces, pieces[1:]), key=lambda pair: self.ranks.get(pair, math.inf))
            if pair not in self.ranks:
                break
            joined, at = [], 0
            while at < len(pieces):
                hit = tuple(pieces[at:at + 2]) == pair
                joined.append("".join(pair) if hit else pieces[at])
                at += 2 if hit else 1
            pieces = joined
        return pieces


def letters_for_bytes():
    """GPT-2's trick: each of the 256 bytes is written as one visible letter, itself if it is visible."""
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
        match = CONTRACTION.match(text, at) or RUN.match(kinds, at)
        words += [text[at:match.end()]] if match else []
        at = match.end() if match else at + 1
    return words


# ---------------------------------------------------------------------------------- T5's tokenizer

class T5Tokenizer:
    """SentencePiece unigram: of all ways to cut the text into known pieces take the most probable one.

    BPE replays the merges of its training; unigram has a probability for each piece and searches. A space is
    the letter \u2581 at the head of a word, so "a cat" is "\u2581a\u2581cat" and the text can be restored."""

    def __init__(self, pieces, specials, charsmap=b""):
        """pieces {"\u2581cat": (id, log probability)}, specials {"</s>": 1, ...}, charsmap: SentencePiece's
        precompiled normaliser. Pieces <0x00> .. <0xFF>, if there are any, stand for bytes."""
        self.byte_ids = [pieces[f"<0x{byte:02X}>"][0] for byte in range(256)] if "<0x00>" in pieces else []
        self.pieces = {piece: (index, np.float32(score)) for piece, (index, score) in pieces.items()
                       if index not in self.byte_ids}
        self.specials = specials
        self.pad, self.eos, self.unk = specials["<pad>"], specials["</s>"], specials["<unk>"]
        self.special = re.compile(f"({'|'.join(map(re.escape, specials))})")
        self.longest = max(map(len, self.pieces))
        # an unknown character costs 10 more than the rarest piece, as in SentencePiece
        self.unk_score = min(score for _, score in self.pieces.values()) - np.float32(10)
        # charsmap: the size of a trie in bytes, the trie as 32-bit units, NUL-terminated replacements
        size = struct.unpack_from("<I", charsmap)[0] if charsmap else 0
        self.trie = struct.unpack_from(f"<{size // 4}I", charsmap, 4) if size else ()
        self.texts = charsmap[4 + size:]

    @classmethod
    def load(cls, path):
        """From spiece.model or tokenizer.json, or the folder that holds either."""
        path = Path(path)
        if path.is_dir():
            path = path / ("tokenizer.json" if (path / "tokenizer.json").is_file() else "spiece.model")
        if not path.is_file():
            raise UserError(f"no T5 tokenizer at {path}; give a spiece.model or a tokenizer.json")
        try:
            return cls(*(read_tokenizer_json if path.suffix == ".json" else read_spiece)(path.read_bytes()))
        except (KeyError, IndexError, TypeError, ValueError, struct.error) as error:
            raise UserError(f"{path} is not a T5 tokenizer or is damaged ({error!r}); download it again")

    def __call__(self, prompts, length=77):
        """ids (B,L) and mask (B,L), cut to `length` with </s> kept last. SD3 ignores the mask, PixArt and
        Latte need it; it is not ids != 0, for a <pad> typed in the prompt is a token like any other."""
        rows = [self.encode(prompt) for prompt in prompts]
        mask = torch.arange(length) < torch.tensor([[len(row)] for row in rows])              # (B,L)
        return pad_rows(rows, length, self.eos, self.pad), mask.long()

    def encode(self, prompt):
        """One prompt -> [..., </s>], not cut."""
        ids = []
        for part in self.special.split(prompt):
            ids += [self.specials[part]] if part in self.specials else self.unigram(self.normalise(part))
        return ids + [self.eos]

    def normalise(self, text):
        """NFKC and more by the model's own table, longest rule first; a mark at the head of each word."""
        data, out, at = text.encode("utf-8", "replace"), [], 0
        while at < len(data):
            size, replacement = longest_rule(self.trie, data, at)
            if not size:                                 # no rule: copy one character of 1 to 4 bytes
                size = 1 + sum(data[at] >= first for first in (0xC0, 0xE0, 0xF0))
                out.append(data[at:at + size])
            else:
                out.append(self.texts[replacement:self.texts.index(b"\0", replacement)])
            at += size
        words = b"".join(out).decode("utf-8", "replace").split(" ")
        return "".join("\u2581" + word for word in words if word)

    def unigram(self, text):
        """Viterbi: best[end] = (log probability, start, id) of the best cut of text[:end].

        float32 and a strict >, because with equal pieces ("aaaa") rounding decides and must decide alike."""
        best = [(np.float32(0), 0, None)] + [None] * len(text)
        for start in range(len(text)):
            so_far = best[start][0]
            for end in range(start + 1, min(len(text), start + self.longest) + 1):
                index, score = self.pieces.get(text[start:end], (None, None))
                if index is None and end == start + 1:
                    index, score = self.unk, self.unk_score
                if index is not None and (best[end] is None or so_far + score > best[end][0]):
                    best[end] = (so_far + score, start, index)
        cuts, end = [], len(text)
        while end > 0:
            _, start, index = best[end]
            cuts.append((index, text[start:end]))
            end = start
        return self.join_unknown(cuts[::-1])

    def join_unknown(self, cuts):
        """Unknown characters in a row are one <unk>, or their bytes where the model has pieces for those."""
        ids = []
        for index, piece in cuts:
            if index == self.unk and self.byte_ids:
                ids += [self.byte_ids[byte] for byte in piece.encode("utf-8")]
            elif index != self.unk or ids[-1:] != [self.unk]:
                ids.append(index)
        return ids


def read_tokenizer_json(data):
    """A Hugging Face tokenizer.json -> the arguments of T5Tokenizer."""
    file = json.loads(data)
    specials = {token["content"]: token["id"] for token in file["added_tokens"]}
    pieces = {piece: (index, score) for index, (piece, score) in enumerate(file["model"]["vocab"])
              if piece not in specials}
    normalisers = file["normalizer"] or {}
    rules = [rule for rule in normalisers.get("normalizers", [normalisers]) if "precompiled_charsmap" in rule]
    charsmap = base64.b64decode(rules[0]["precompiled_charsmap"]) if rules else b""
    return pieces, specials, charsmap


def read_spiece(data):
    """A spiece.model -> the arguments of T5Tokenizer. sentencepiece_model.proto: 1 = pieces (1 text, 2 score,
    3 type: 1 normal, 2 unknown, 3 control, 4 user defined, 6 byte), 3 = normaliser (2 charsmap)."""
    pieces, specials, charsmap, count = {}, {}, b"", 0
    for field, value in protobuf(data):
        if field == 1:
            piece = {1: b"", 2: b"\0\0\0\0", 3: 1} | dict(protobuf(value))
            text, score, kind = piece[1].decode("utf-8"), struct.unpack("<f", piece[2])[0], piece[3]
            if kind in (2, 3):
                specials[text] = count
            elif kind in (1, 4, 6):
                pieces[text] = (count, score)
            count += 1
        elif field == 3:
            charsmap = dict(protobuf(value)).get(2, b"")
    # T5's 100 sentinels (marks for gaps in its pretraining) are not in the file: they count down from the end
    specials.update({f"<extra_id_{n}>": count + 99 - n for n in range(100)})
    return pieces, specials, charsmap


def protobuf(data):
    """Protobuf's wire format: (field number, value) pairs; a number for varints, bytes for all else."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value, at = varint(data, at)
        else:
            size, at = {1: (8, at), 5: (4, at)}[tag & 7] if tag & 7 != 2 else varint(data, at)
            value, at = data[at:at + size], at + size
        if at > len(data):
            raise ValueError("the file ends in the middle of a field")
        yield tag >> 3, value


def varint(data, at):
    """7 bits a byte, the lowest first; a set top bit says that more follow."""
    value, shift = 0, 0
    while data[at] & 0x80:
        value, shift, at = value | (data[at] & 0x7F) << shift, shift + 7, at + 1
    return value | data[at] << shift, at + 1


def longest_rule(trie, data, at):
    """(bytes matched, place of the replacement), or (0, 0). A darts-clone double array: a unit holds its
    label (low byte), whether a value hangs below it (bit 8), the xor distance to its children (the rest)."""
    found, node = (0, 0), trie[0] >> 10 << ((trie[0] & 0x200) >> 6) if trie else 0
    for end in range(at, len(data) if trie else at):
        unit = trie[node ^ data[end]]
        if unit & 0x800000FF != data[end]:
            break
        node ^= data[end] ^ (unit >> 10 << ((unit & 0x200) >> 6))
        if unit & 0x100:
            found = (end + 1 - at, trie[node] & 0x7FFFFFFF)
    return found


# ---------------------------------------------------------------------------------- demo

def demo():
    """Cut a long word with CLIP's merges; returns the pieces, and the ids of a short prompt."""
    tokenizer = CLIPTokenizer.load()
    pieces = tokenizer.merge("antidisestablishmentarianism")
    return " ".join(pieces).removesuffix("</w>"), tokenizer.encode("a photo of a cat")


if __name__ == "__main__":
    pieces, ids = demo()
    print(f"antidisestablishmentarianism: {pieces}   (right: anti dise stab lish ment arianism)")
    print(f"a photo of a cat: {ids}   (right: [49406, 320, 1125, 539, 320, 2368, 49407])")
