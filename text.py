"""text.py - prompts -> vectors: the toy's small encoder, CLIP, T5, and how SD3 joins the three.
Paper    VideoDiT 3.2 keeps SD3's frozen encoders: CLIP-L, CLIP-G and T5-XXL give context and pooled
Shapes   ids (B,L)  context (B,L,D)  pooled (B,P)        B prompts, L text tokens, D width, P pooled width
Sizes    toy L=16 D=P=128; SD3 L=77+77 D=4096 P=768+1280; Latte's text-to-video T5 alone, L<=120
Differs  own tokenizers, no ftfy: mojibake and HTML entities in a prompt stay as typed (grep DEVIATES)
Reads    after checkpoint.py, before dit.py
Run me   python text.py      # CPU, 5 s: encodes toy prompts, splits words with BPE, prints known answers"""

import base64
import difflib
import gzip
import json
import math
import re
import struct
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from checkpoint import UserError, load_strict, read_state


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


# ---------------------------------------------------------------------------------- CLIP's transformer

@dataclass
class CLIPTextConfig:
    vocab_size: int = 49408      # 256 bytes, 256 bytes at a word's end, 48894 merges, BOS, EOS
    width: int = 768             # CLIP-L; CLIP-G 1280
    layers: int = 12             # CLIP-G 32
    heads: int = 12              # CLIP-G 20: a head is 64 wide in both
    mlp_width: int = 3072        # 4 * width
    length: int = 77             # learned positions, so never more tokens than this
    act: str = "quick_gelu"      # OpenAI trained CLIP-L with x*sigmoid(1.702x), OpenCLIP CLIP-G with "gelu"
    projection: int = 0          # width of text_projection; 0 = none, as in SD3's own CLIP-L file


class CLIPOutput(NamedTuple):
    penultimate: torch.Tensor    # (B,L,D) after the last layer but one, WITHOUT the final norm: SD3's context
    last: torch.Tensor           # (B,L,D) after the last layer and the final norm
    pooled: torch.Tensor         # (B,D)   `last` at the first EOS, the token that has read the whole prompt
    projected: torch.Tensor      # (B,P)   text_projection(pooled), the vector CLIP compares with images


class CLIPLayer(nn.Module):
    """Pre-norm transformer layer; the names are those of the released files."""

    def __init__(self, config):
        super().__init__()
        width, self.heads, self.act = config.width, config.heads, config.act
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        fc1, fc2 = nn.Linear(width, config.mlp_width), nn.Linear(config.mlp_width, width)
        self.mlp = nn.ModuleDict({"fc1": fc1, "fc2": fc2})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):                                                       # (B,L,D)
        attn, h = self.self_attn, self.layer_norm1(x)
        q, k, v = (rearrange(attn[name](h), "b l (n d) -> b n l d", n=self.heads)
                   for name in ("q_proj", "k_proj", "v_proj"))                  # (B,heads,L,D/heads)
        # causal and nothing else: pads see the prompt, the prompt never sees pads
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attn["out_proj"](rearrange(h, "b n l d -> b l (n d)"))          # (B,L,D)
        h = self.mlp["fc1"](self.layer_norm2(x))                                # (B,L,mlp_width)
        h = h * torch.sigmoid(1.702 * h) if self.act == "quick_gelu" else F.gelu(h)
        return x + self.mlp["fc2"](h)                                           # (B,L,D)


class CLIPText(nn.Module):
    """CLIP's text half, with the names of transformers' CLIPTextModel(WithProjection), as in SD3's files."""
    Config = CLIPTextConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        if config.act not in ("quick_gelu", "gelu"):
            raise UserError(f"act={config.act!r} is not a CLIP activation; use quick_gelu or gelu")
        embeddings = {"token_embedding": nn.Embedding(config.vocab_size, config.width),
                      "position_embedding": nn.Embedding(config.length, config.width)}
        layers = nn.ModuleList([CLIPLayer(config) for _ in range(config.layers)])
        self.text_model = nn.ModuleDict({"embeddings": nn.ModuleDict(embeddings),
                                         "encoder": nn.ModuleDict({"layers": layers}),
                                         "final_layer_norm": nn.LayerNorm(config.width)})
        if config.projection:
            self.text_projection = nn.Linear(config.width, config.projection, bias=False)
        self.initialise()

    def initialise(self):
        """As CLIP's code does: small embeddings, and what a layer adds shrinks with depth. Released weights
        replace all of it; the toy starts from it."""
        for name, weight in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(weight, std=0.01 if "position" in name else 0.02)
            elif weight.ndim == 2:
                adds = 2 * self.config.layers if "out_proj" in name or "fc2" in name else 1
                nn.init.normal_(weight, std=(weight.shape[1] * adds) ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids):                                                     # (B,L)
        model = self.text_model
        positions = model["embeddings"]["position_embedding"].weight[:ids.shape[1]]
        x = model["embeddings"]["token_embedding"](ids) + positions             # (B,L,D)
        for layer in model["encoder"]["layers"]:
            penultimate, x = x, layer(x)                                        # (B,L,D)
        last = model["final_layer_norm"](x)
        end = ids.argmax(dim=1)             # (B,)  EOS has the largest id, and argmax gives its first place
        pooled = last[torch.arange(len(ids), device=ids.device), end]           # (B,D)
        projected = self.text_projection(pooled) if self.config.projection else pooled
        return CLIPOutput(penultimate, last, pooled, projected)

    @classmethod
    def from_state_dict(cls, state, heads=None, act="quick_gelu", source="the CLIP weights"):
        """Sizes from shapes; heads defaults to width/64 as in both released models; act cannot be seen in the
        weights: "quick_gelu" for CLIP-L, "gelu" for CLIP-G."""
        unused = ("position_ids", "logit_scale")         # in older files: the numbers 0..76, CLIP's loss
        state = {name: value for name, value in state.items() if not name.endswith(unused)}
        token, position, fc1 = (shape_of(state, "text_model." + name, source) for name in (
            "embeddings.token_embedding.weight", "embeddings.position_embedding.weight",
            "encoder.layers.0.mlp.fc1.weight"))
        layers, width = count_blocks(state, "text_model.encoder.layers."), token[1]
        projection = len(state["text_projection.weight"]) if "text_projection.weight" in state else 0
        heads = heads or max(1, width // 64)
        config = CLIPTextConfig(token[0], width, layers, heads, fc1[0], position[0], act, projection)
        with torch.device("meta"):                       # no memory yet: the weights are taken over
            net = cls(config)
        load_strict(net, state, source, assign=True)
        return net.eval()


def shape_of(state, name, source):
    """The shape of one tensor that every checkpoint of this kind must have."""
    if name not in state:
        raise UserError(f"{source} has no {name}; is this the right file?")
    return tuple(state[name].shape)


def count_blocks(state, prefix):
    """How many numbered blocks stand under the prefix: 1 + the largest number."""
    return 1 + max(int(name[len(prefix):].split(".")[0]) for name in state if name.startswith(prefix))


# ---------------------------------------------------------------------------------- the toy's encoder

@dataclass
class ToyTextConfig:
    words: tuple[str, ...] = ()  # the vocabulary, world.WORDS: it travels inside the checkpoint
    length: int = 16             # tokens, BOS and EOS included
    width: int = 128             # D = P
    layers: int = 2
    heads: int = 4

    def __post_init__(self):
        self.words = tuple(self.words)                   # JSON gives a list back


class ToyText(nn.Module):
    """CLIP at toy size on a vocabulary of words; trained together with the image model, then frozen."""
    Config = ToyTextConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokenizer = WordTokenizer(config.words, config.length)
        self.clip = CLIPText(CLIPTextConfig(self.tokenizer.size, config.width, config.layers, config.heads,
                                            4 * config.width, config.length, "gelu"))

    def forward(self, prompts):
        """list of B strings ("" is one) -> context (B,L,D), pooled (B,D).

        SD3 takes the penultimate layer because CLIP's last one was bent towards image matching. Here the last
        layer was trained for this very use, so there is nothing to skip."""
        self.tokenizer.warn(prompts)
        ids = self.tokenizer(prompts).to(self.clip.text_model["final_layer_norm"].weight.device)
        out = self.clip(ids)
        return out.last, out.pooled                                             # (B,L,D), (B,D)

    def reading_loss(self, prompts):
        """Which words were in the prompt? Asked of its pooled vector, one yes or no for each known word.

        CLIP and T5 have read of jumping before they meet an image model. This encoder meets pictures alone,
        whose captions name no motion: without this loss "jumping" and "spinning" keep their random starts,
        come out nearly the same, and the toy's video model hardly learned to move by them."""
        _, pooled = self(prompts)                                                           # (B,D)
        ids = self.tokenizer(prompts).to(pooled.device)                                     # (B,L)
        said = pooled.new_zeros(len(prompts), self.tokenizer.size).scatter(1, ids, 1.0)     # (B,V)
        words = self.clip.text_model["embeddings"]["token_embedding"].weight                # (V,D)
        return F.binary_cross_entropy_with_logits((pooled @ words.T).float(), said)


# ---------------------------------------------------------------------------------- T5's encoder

@dataclass
class T5Config:
    vocab_size: int = 32128      # 32000 pieces, 100 sentinels, the rest unused
    width: int = 4096            # T5 v1.1 XXL
    layers: int = 24
    heads: int = 64
    head_dim: int = 64           # heads * head_dim need not be the width
    mlp_width: int = 10240
    buckets: int = 32            # of relative positions, half for each direction
    max_distance: int = 128      # from here on all distances share one bucket


class T5Block(nn.Module):
    """Pre-norm attention and gated MLP, no biases anywhere; the names are those of the released files."""

    def __init__(self, config, has_bias):
        super().__init__()
        width, inner, self.heads = config.width, config.heads * config.head_dim, config.heads
        attention = {name: nn.Linear(width, inner, bias=False) for name in "qkv"}
        attention["o"] = nn.Linear(inner, width, bias=False)
        if has_bias:                                     # block 0 owns the table that all blocks use
            attention["relative_attention_bias"] = nn.Embedding(config.buckets, config.heads)
        mlp = {name: nn.Linear(width, config.mlp_width, bias=False) for name in ("wi_0", "wi_1")}
        mlp["wo"] = nn.Linear(config.mlp_width, width, bias=False)
        norms = [nn.RMSNorm(width, eps=1e-6) for _ in range(2)]
        self.layer = nn.ModuleList([
            nn.ModuleDict({"SelfAttention": nn.ModuleDict(attention), "layer_norm": norms[0]}),
            nn.ModuleDict({"DenseReluDense": nn.ModuleDict(mlp), "layer_norm": norms[1]})])

    def forward(self, x, bias):                                                 # (B,L,D), (1 or B,heads,L,L)
        attn, h = self.layer[0]["SelfAttention"], self.layer[0]["layer_norm"](x)
        q, k, v = (rearrange(attn[name](h), "b l (n d) -> b n l d", n=self.heads) for name in "qkv")
        # scale 1: T5's initialisation already holds the usual 1/sqrt(d)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        x = x + attn["o"](rearrange(h, "b n l d -> b l (n d)"))                 # (B,L,D)
        mlp, h = self.layer[1]["DenseReluDense"], self.layer[1]["layer_norm"](x)
        return x + mlp["wo"](F.gelu(mlp["wi_0"](h), approximate="tanh") * mlp["wi_1"](h))


class T5Encoder(nn.Module):
    """The encoder half of T5 v1.1. Run it in bf16 or fp32: in fp16 the sums inside `wo` overflow to inf."""
    Config = T5Config

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.width)
        blocks = nn.ModuleList([T5Block(config, has_bias=index == 0) for index in range(config.layers)])
        norm = nn.RMSNorm(config.width, eps=1e-6)
        self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": norm})

    def position_bias(self, length):
        """What place i adds to its attention logit for place j: a learned number per head and bucket."""
        table = self.encoder["block"][0].layer[0]["SelfAttention"]["relative_attention_bias"]
        place = torch.arange(length, device=table.weight.device)
        bucket = t5_bucket(place[None] - place[:, None], self.config.buckets, self.config.max_distance)
        return rearrange(table(bucket), "i j n -> 1 n i j")                     # (1,heads,L,L)

    def forward(self, ids, mask=None):
        """ids (B,L), mask (B,L) of 0/1 or None -> (B,L,D). SD3 gives none: it was trained with pads seen."""
        x, bias = self.shared(ids), self.position_bias(ids.shape[1])            # (B,L,D), (1,heads,L,L)
        if mask is not None:
            bias = bias.masked_fill(mask[:, None, None] == 0, torch.finfo(bias.dtype).min)    # (B,heads,L,L)
        for block in self.encoder["block"]:
            x = block(x, bias)
        return self.encoder["final_layer_norm"](x)

    @classmethod
    def from_state_dict(cls, state, max_distance=128, source="the T5 weights"):
        """Sizes from shapes. shared.weight and encoder.embed_tokens.weight are one tensor; either will do."""
        state = dict(state)
        tied = state.pop("encoder.embed_tokens.weight", None)
        if tied is not None:
            state.setdefault("shared.weight", tied)
        block = "encoder.block.0.layer."
        shared, q, table, wo = (shape_of(state, name, source) for name in (
            "shared.weight", block + "0.SelfAttention.q.weight",
            block + "0.SelfAttention.relative_attention_bias.weight", block + "1.DenseReluDense.wo.weight"))
        layers, (buckets, heads) = count_blocks(state, "encoder.block."), table
        config = T5Config(*shared, layers, heads, q[0] // heads, wo[1], buckets, max_distance)
        with torch.device("meta"):
            net = cls(config)
        load_strict(net, state, source, assign=True)
        return net.eval()


# T5 2.1: near places have a bucket each, far ones share, logarithmically; keys to the right: the upper half.
def t5_bucket(distance, buckets=32, max_distance=128):
    """distance = place of the key - place of the query, any shape, long -> bucket number."""
    half, exact = buckets // 2, buckets // 4
    far = distance.abs().clamp(min=1).float() / exact
    far = exact + (far.log() / math.log(max_distance / exact) * (half - exact)).long()
    near = distance.abs() < exact
    return half * (distance > 0) + torch.where(near, distance.abs(), far.clamp(max=half - 1))


# ---------------------------------------------------------------------------------- SD3: three encoders

SD3_FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}


class SD3Text:
    """SD3's conditioning: prompts -> context (B,77+77,4096), pooled (B,2048).

    Holds memory-mapped weights; an encoder is built when its turn comes and let go after it, so that the peak
    is the largest one (T5-XXL: 9.5 GB in bf16) and not the sum."""

    def __init__(self, states, t5_tokenizer=None, heads=None, width=4096):
        """states {"clip_l": {name: tensor}, "clip_g": .., "t5xxl": .. or absent}; heads {"clip_l": number}
        where a head is not 64 wide; width of the context where there is no T5 to tell it."""
        missing = [name for name in ("clip_l", "clip_g") if not states.get(name)]
        if missing:
            raise UserError(f"no weights of {' and '.join(missing)}; SD3 needs both CLIPs: give the file "
                            "sd3_medium_incl_clips.safetensors, or a folder with clip_l and clip_g")
        self.states, self.heads, self.width = states, heads or {}, width
        self.clip_tokenizer, self.t5_tokenizer = CLIPTokenizer.load(), t5_tokenizer
        self.device, self.dtype, self.kept = "cpu", None, None

    @classmethod
    def from_state_dict(cls, state, t5_tokenizer=None, heads=None, width=4096):
        """From a single-file checkpoint; its transformer and VAE are ignored."""
        prefixes = {name: f"text_encoders.{name}.transformer." for name in SD3_FOLDERS}
        parts = {name: {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
                 for name, prefix in prefixes.items()}
        return cls({name: part for name, part in parts.items() if part}, t5_tokenizer, heads, width)

    @classmethod
    def load(cls, source, t5_tokenizer=None):
        """source: a single-file checkpoint, a Diffusers folder, or a folder with clip_l, clip_g, t5xxl files.
        t5_tokenizer: a path; by default tokenizer_3/, tokenizer.json or spiece.model beside the weights."""
        source = Path(source)
        beside = source if source.is_dir() else source.parent
        places = [beside / name for name in ("tokenizer_3", "tokenizer.json", "spiece.model")]
        place = t5_tokenizer or next((place for place in places if place.exists()), None)
        tokenizer = T5Tokenizer.load(place) if place else None
        if not source.is_dir():
            return cls.from_state_dict(read_state(source), tokenizer)
        states = {name: read_folder(source / folder) or read_folder(source, name)
                  for name, folder in SD3_FOLDERS.items()}
        return cls(states, tokenizer)

    def to(self, device, dtype=None, keep=False):
        """Where and in what to compute; by default as stored, but bf16 for fp8 and for T5 in fp16.
        keep: hold the encoders after their turn, which pays when millions of captions follow one another."""
        self.device, self.dtype, self.kept = device, dtype, {} if keep else None
        return self

    def encode(self, prompts):
        """list of B strings -> context (B,154,D), pooled (B,P), float32, on the device."""
        has_t5 = bool(self.states.get("t5xxl"))
        if has_t5 and not self.t5_tokenizer:
            raise UserError("T5 weights without T5's tokenizer; put its spiece.model beside them")
        ids_t5 = self.t5_tokenizer(prompts)[0] if has_t5 else None
        return self.assemble(self.clip_tokenizer(prompts), self.clip_tokenizer(prompts, pad_id=0), ids_t5)

    __call__ = encode                                    # so that it is used as ToyText is

    def assemble(self, ids_l, ids_g, ids_t5=None):
        """Both CLIPs side by side in the channels, padded to T5's width, then T5's tokens:

            [ CLIP-L 768 | CLIP-G 1280 | zeros 2048 ]   77 tokens
            [ T5-XXL 4096                           ]   77 tokens

        CLIP-L's pooled vector is taken before its projection, which SD3's file lacks, CLIP-G's after."""
        # ASSUMED: without T5 its 77 tokens are zeros. SD3 was trained with each encoder's output dropped in
        # nearly half of the prompts; that a dropped output was zeros is how Diffusers reads it: we follow.
        clip_l, clip_g = self.run("clip_l", ids_l), self.run("clip_g", ids_g)
        clip = torch.cat([clip_l.penultimate, clip_g.penultimate], dim=-1)      # (B,77,768+1280)
        t5 = clip.new_zeros(*ids_l.shape, self.width) if ids_t5 is None else self.run("t5xxl", ids_t5)
        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))                  # (B,77,D)
        context = torch.cat([clip.float(), t5.float()], dim=1)                  # (B,154,D)
        return context, torch.cat([clip_l.pooled, clip_g.projected], dim=-1).float()          # (B,768+1280)

    def run(self, name, ids):
        """One encoder, alive only inside this call unless it is to be kept."""
        if self.kept and name in self.kept:
            net = self.kept[name]
        elif name == "t5xxl":
            net = T5Encoder.from_state_dict(self.states[name], source=name)
        else:
            act = {"clip_l": "quick_gelu", "clip_g": "gelu"}[name]
            net = CLIPText.from_state_dict(self.states[name], self.heads.get(name), act, source=name)
        if self.kept is not None:
            self.kept[name] = net
        return run_frozen(net, self.device, self.dtype, ids)


def encode_sd3(prompts, source, device="cpu", dtype=None, t5_tokenizer=None):
    """prompts -> context (B,154,4096), pooled (B,2048): SD3's encoders, one of them in memory at a time."""
    return SD3Text.load(source, t5_tokenizer).to(device, dtype).encode(prompts)


def encode_t5(prompts, source, device="cpu", dtype=None, length=120):
    """prompts -> context (B,L,D), mask (B,L) with the T5 of a Diffusers folder (text_encoder/, tokenizer/).

    The mask is used inside T5 too, as PixArt and Latte's text-to-video model do."""
    ids, mask = T5Tokenizer.load(Path(source) / "tokenizer")(prompts, length)
    net = T5Encoder.from_state_dict(read_folder(Path(source) / "text_encoder"), source=source)
    return run_frozen(net, device, dtype, ids, mask.to(device)).float(), mask.to(device)


@torch.no_grad()
def run_frozen(net, device, dtype, ids, *mask):
    """Move a freshly mapped encoder to where it shall run and run it once."""
    stored = next(net.parameters()).dtype
    unfit = stored.itemsize == 1 or (stored == torch.float16 and isinstance(net, T5Encoder))
    return net.to(device, dtype or (torch.bfloat16 if unfit else stored))(ids.to(device), *mask)


def read_folder(folder, name=""):
    """All weights of one network: the shards that an index names, else the file with the shortest name
    (model.safetensors before model.fp16.safetensors). {} if there is none."""
    folder = Path(folder)
    files = sorted((path for path in folder.glob(f"{name}*") if path.suffix in (".safetensors", ".bin")),
                   key=lambda path: len(path.name))
    shards = [path for path in files if "-of-" in path.name]
    index = sorted(folder.glob(f"{name}*.index*.json"), key=lambda path: len(path.name))
    if index:
        try:
            shards = [folder / file for file in set(json.loads(index[0].read_text())["weight_map"].values())]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index[0]} is not an index of shards; download it again")
    state = {}
    for path in shards or files[:1]:
        state.update(read_state(path))
    return state


# ---------------------------------------------------------------------------------- demo

def demo():
    """Encode toy prompts, cut words with CLIP's merges, look up T5's buckets; returns the last two."""
    torch.manual_seed(0)
    toy = ToyText(ToyTextConfig(words=("a", "red", "cat", "jumping", "in", "snow")))
    context, pooled = toy(["a red cat jumping in snow", "a cat", ""])
    print(f"toy: 3 prompts -> context {tuple(context.shape)}, pooled {tuple(pooled.shape)}")
    tokenizer = CLIPTokenizer.load()
    print("BPE: antidisestablishmentarianism =", " ".join(tokenizer.merge("antidisestablishmentarianism")))
    ids = tokenizer.encode("a photo of a cat")
    buckets = t5_bucket(torch.tensor([-200, -16, -8, -1, 0, 1, 8, 200])).tolist()
    return ids, buckets


if __name__ == "__main__":
    print(*demo(), "  (right: [49406, 320, 1125, 539, 320, 2368, 49407] [15, 10, 8, 1, 0, 17, 24, 31])")
