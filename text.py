"""text.py - numbers -> vectors: the toy's small encoder, CLIP, T5, and how SD3 joins the three.
Paper    SD3's encoders (Esser et al. 2024): CLIP-L, CLIP-G and T5-XXL; VideoDiT does not speak of its own
Shapes   ids (B,L)  context (B,L,D)  pooled (B,P)        B prompts, L text tokens, D width, P pooled width
Sizes    toy L=12 D=P=128; SD3 L=77+77 D=4096 P=768+1280; Latte's text-to-video T5 alone, L<=120
Differs  only what SD3 and Latte use: no decoder of T5, no image half of CLIP
Reads    after vae.py, before dit.py; pretrained.py fills the encoders with released weights
Run me   python text.py      # CPU, 3 s: T5's buckets

THE PROBLEM. A tokenizer made numbers of a prompt. Number 2368 says nothing: it is a row in a table. What
the diffusion transformer (dit.py) needs are vectors in which what looks alike lies close and what must be
told apart lies far: "red" near "scarlet", "jumping" far from "spinning", "a dog on a cat" not "a cat on a
dog". An encoder is a transformer over the tokens that has learned such vectors elsewhere, and stays as it is
("frozen"):

    "a red cat"  ->  ids (B,L)  ->  table (B,L,D)  ->  12 to 32 layers  ->  context (B,L,D)  a vector a token
                                                                        +->  pooled  (B,P)   one for it all

Both are used, for different things. CONTEXT is read by attention: each patch of the image attends to the
words that concern it, so the cat can be red and the ball blue. POOLED is added to the embedding of the time
and tunes every layer as a whole (adaLN, dit.py): what kind of clip this is, in one vector.

WHY THREE ENCODERS IN SD3? CLIP was trained to tell which of thousands of captions belongs to an image. It
knows what things LOOK like; but a bag of words passes that test, and order and number suffer. T5 was trained
on text alone, to fill gaps: it knows grammar, numbers and spelling, and never saw an image. Two CLIPs (L by
OpenAI, G by OpenCLIP) see different things. SD3 dropped each at random in training, so each can be left out;
without T5 images are as pretty (people prefer either equally often), follow the prompt a little less, and
letters suffer most (SD3 5.3.3). Tried by others: CLIP alone (Stable Diffusion 1), T5 alone (Imagen, PixArt,
Latte's text-to-video model), and language models of today. VideoDiT does not say which it reads:
here SD3's three, frozen (ASSUMED at train.stage_videodit)."""

from support.cli import polite    # first: see there

import math
from dataclasses import dataclass
from typing import NamedTuple

from einops import rearrange
import torch
import torch.nn.functional as F
from torch import nn

from support.tokenizers import CLIPTokenizer, WordTokenizer


# ---------------------------------------------------------------------------------- CLIP's transformer
# A plain transformer, as a language model has it, and CAUSAL like one: a token attends to those before it. So
# only the last word has read the whole prompt. Behind it stands EOS, whose vector is made for nothing else:
#
#     ids        BOS   a    red   cat   EOS   EOS   EOS ...  (77)
#     attends     1    2     3     4     5     pads attend to the prompt, the prompt never to its pads
#                                        |
#                                        pooled (B,D): the only place that knows it all
#     (test_a_prompt_never_sees_its_pads)
#
# Two ends, and SD3 takes each for what it is good at. CLIP's loss bends the very last layer towards one goal,
# one vector that matches one image; the layer before it still says what each word is. So the context is the
# PENULTIMATE layer's output, and TRAP, without the final norm that everything else passes through. The pooled
# vector is the last layer's, with it.

@dataclass
class CLIPTextConfig:
    vocab_size: int = 49408      # 256 bytes, 256 bytes at a word's end, 48894 merges, BOS, EOS
    width: int = 768             # CLIP-L; CLIP-G 1280
    layers: int = 12             # CLIP-G 32
    heads: int = 12              # CLIP-G 20: a head is 64 wide in both
    mlp_width: int = 3072        # 4 * width
    length: int = 77             # learned position embeddings, so never more tokens than this
    act: str = "quick_gelu"      # OpenAI trained CLIP-L with x*sigmoid(1.702x), OpenCLIP CLIP-G with "gelu"
    projection: int = 0          # width of text_projection; 0 = none, as in SD3's own CLIP-L file


class CLIPOutput(NamedTuple):
    penultimate: torch.Tensor    # (B,L,D) after the last layer but one, WITHOUT the final norm: SD3's context
    last: torch.Tensor           # (B,L,D) after the last layer and the final norm
    pooled: torch.Tensor         # (B,D)   `last` at the first EOS, the token that has read the whole prompt
    projected: torch.Tensor      # (B,P)   text_projection(pooled), the vector CLIP compares with images


class CLIPLayer(nn.Module):
    """Attention, then an MLP, each on the normed input and added to it ("pre-norm"). The parts have the
    names of the released files, so that these load key for key."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.width
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, config.mlp_width),
                                  "fc2": nn.Linear(config.mlp_width, width)})
        self.layer_norm1 = nn.LayerNorm(width)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x):                                                       # (B,L,D)
        attn = self.self_attn
        h = self.layer_norm1(x)
        q, k, v = (rearrange(attn[name](h), "b l (n d) -> b n l d", n=self.config.heads)
                   for name in ("q_proj", "k_proj", "v_proj"))                  # (B,heads,L,D/heads)
        # no mask beside: with is_causal the prompt cannot attend to its pads anyway
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)             # (B,heads,L,D/heads)
        x = x + attn["out_proj"](rearrange(h, "b n l d -> b l (n d)"))          # (B,L,D)

        h = self.mlp["fc1"](self.layer_norm2(x))                                # (B,L,mlp_width)
        if self.config.act == "quick_gelu":
            h = h * torch.sigmoid(1.702 * h)
        else:
            h = F.gelu(h)
        return x + self.mlp["fc2"](h)                                           # (B,L,D)


class CLIPText(nn.Module):
    """CLIP's text half, with the names of transformers' CLIPTextModel(WithProjection), as in SD3's files."""
    Config = CLIPTextConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
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
                fan_in = weight.shape[1]
                if "out_proj" in name or "fc2" in name:          # what these give is added to x, twice a layer
                    fan_in = fan_in * 2 * self.config.layers
                nn.init.normal_(weight, std=fan_in ** -0.5)
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


# ---------------------------------------------------------------------------------- the toy's encoder
# The toy has no room for 5 billion parameters. Its encoder is CLIP's architecture at 0.4 million, over 42
# words, and is trained together with the image model: whatever makes the image come out right is what a word
# means. What comes of it: red lies next to orange, blue to purple, cat to dog. (That "moving left" lies next to
# "moving right" is no wonder: they share a word.)
#
# And what does not come of it: images do not move. "jumping" and "spinning" stand in no image's caption that
# the loss could feel, keep the random vectors they started with, and come out nearly alike (to 2 %); the
# video model, for which the encoder is frozen, then cannot tell them apart. CLIP and T5 have read of jumping
# before; so this one is made to read, too. READING LOSS, ours: the prompt is squeezed into the pooled vector;
# from that, classify for each known word whether the prompt held it.
#
#     logit_w = pooled . table_w;  loss = mean over w of cross-entropy(logit_w, 1 if the prompt has w, else 0)
#     (test_reading_sets_apart_words_that_no_image_shows)

@dataclass
class ToyTextConfig:
    words: tuple[str, ...] = ()  # the vocabulary, toy_world.WORDS: it travels inside the checkpoint
    length: int = 16             # tokens, BOS and EOS included
    width: int = 128             # D = P
    layers: int = 2              # of attention and MLP
    heads: int = 4               # of attention

    def __post_init__(self):
        self.words = tuple(self.words)                   # JSON gives a list back


class ToyText(nn.Module):
    """CLIP at toy size on a vocabulary of words; trained together with the image model, then frozen."""
    # DEVIATES from SD3, whose encoders come trained: there is none of the toy's size. The reading loss is ours.
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
        ids = self.tokenizer(prompts).to(self.clip.text_model["final_layer_norm"].weight.device)
        out = self.clip(ids)
        return out.last, out.pooled                                             # (B,L,D), (B,D)

    def notes(self, prompt):
        """What a person should hear about a prompt, a line each; [] where all of it is read."""
        return self.tokenizer.notes(prompt)

    def reading_loss(self, prompts):
        """Which words were in the prompt? Asked of its pooled vector, one yes or no for each known word."""
        _, pooled = self(prompts)                                                           # (B,D)
        ids = self.tokenizer(prompts).to(pooled.device)                                     # (B,L)
        said = pooled.new_zeros(len(prompts), self.tokenizer.size).scatter(1, ids, 1.0)     # (B,V)  V ids
        words = self.clip.text_model["embeddings"]["token_embedding"].weight                # (V,D)
        return F.binary_cross_entropy_with_logits((pooled @ words.T).float(), said)         # of (B,V)


# ---------------------------------------------------------------------------------- T5's encoder
# T5 reads and writes; only its reading half, the encoder, is used. Every token attends to every other, before
# and behind it, so there is no place that sums up, and no pooled vector. What differs from CLIP are four
# things, each of which gives plausible, wrong vectors if forgotten:
#
#   positions    no position embedding is added. Instead, attention from place i to place j gets a learned
#                bias for the DISTANCE j - i, a number a head. Near ones have one each, far ones share, in 32
#                buckets:
#                    j - i    ... -16..-22  -12..-15  -8..-11  -7  ...  -1   0   1  ...   7    8..11 ...
#                    bucket   ...    10        9         8      7  ...   1   0   17 ...  23     24  ...
#                The table is in block 0 alone, and all blocks use it.
#   no 1/sqrt(d) in attention: T5's initialisation already holds it
#   norms        RMSNorm: divided by the root mean square, the mean is not taken off; no bias anywhere
#   gated MLP    gelu(wi_0 x) * wi_1 x: one half says what, the other how much of it
#
# TRAP: pads. SD3 lets T5 attend to its pads, as if they were words: it was trained so. PixArt and Latte mask
# them.

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
    """Attention and gated MLP, each on the normed input; the names are those of the released files."""

    def __init__(self, config, has_bias):
        super().__init__()
        width = config.width
        inner = config.heads * config.head_dim
        self.heads = config.heads
        attention = {name: nn.Linear(width, inner, bias=False) for name in "qkv"}
        attention["o"] = nn.Linear(inner, width, bias=False)
        if has_bias:                                     # block 0 owns the table that all blocks use
            attention["relative_attention_bias"] = nn.Embedding(config.buckets, config.heads)
        mlp = {name: nn.Linear(width, config.mlp_width, bias=False) for name in ("wi_0", "wi_1")}
        mlp["wo"] = nn.Linear(config.mlp_width, width, bias=False)
        first = {"SelfAttention": nn.ModuleDict(attention), "layer_norm": nn.RMSNorm(width, eps=1e-6)}
        second = {"DenseReluDense": nn.ModuleDict(mlp), "layer_norm": nn.RMSNorm(width, eps=1e-6)}
        self.layer = nn.ModuleList([nn.ModuleDict(first), nn.ModuleDict(second)])

    def forward(self, x, bias):                                                 # (B,L,D), (1 or B,heads,L,L)
        attn = self.layer[0]["SelfAttention"]
        h = self.layer[0]["layer_norm"](x)
        q, k, v = (rearrange(attn[name](h), "b l (n d) -> b n l d", n=self.heads)
                   for name in "qkv")                                           # (B,heads,L,head_dim)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)  # (B,heads,L,head_dim)
        x = x + attn["o"](rearrange(h, "b n l d -> b l (n d)"))                 # (B,L,D)

        mlp = self.layer[1]["DenseReluDense"]
        h = self.layer[1]["layer_norm"](x)
        h = F.gelu(mlp["wi_0"](h), approximate="tanh") * mlp["wi_1"](h)         # (B,L,mlp_width)
        return x + mlp["wo"](h)                                                 # (B,L,D)


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
        """What place i adds to q k for place j, before the softmax: a learned number per head and bucket."""
        table = self.encoder["block"][0].layer[0]["SelfAttention"]["relative_attention_bias"]
        place = torch.arange(length, device=table.weight.device)                # (L,)
        distance = place[None] - place[:, None]                                 # (L,L)
        bucket = t5_bucket(distance, self.config.buckets, self.config.max_distance)
        return rearrange(table(bucket), "i j n -> 1 n i j")                     # (1,heads,L,L)

    def forward(self, ids, mask=None):
        """ids (B,L), mask (B,L) of 0/1 or None -> (B,L,D). SD3 gives none: it was trained with pads seen."""
        x = self.shared(ids)                                                    # (B,L,D)
        bias = self.position_bias(ids.shape[1])                                 # (1,heads,L,L)
        if mask is not None:
            bias = bias.masked_fill(mask[:, None, None] == 0, torch.finfo(bias.dtype).min)    # (B,heads,L,L)
        for block in self.encoder["block"]:
            x = block(x, bias)
        return self.encoder["final_layer_norm"](x)


# T5 2.1: near places have a bucket each, far ones share, logarithmically; keys to the right: the upper half.
def t5_bucket(distance, buckets=32, max_distance=128):
    """distance = place of the key - place of the query, any shape, long -> bucket number."""
    half = buckets // 2                                  # for each direction
    exact = half // 2                                    # of these each distance has one to itself
    near = distance.abs()
    far = near.clamp(min=1).float() / exact
    far = exact + (far.log() / math.log(max_distance / exact) * (half - exact)).long()
    return half * (distance > 0) + torch.where(near < exact, near, far.clamp(max=half - 1))


# ---------------------------------------------------------------------------------- SD3: three encoders
# How three sets of vectors of three widths become one context. CLIPs side by side in the CHANNELS, for both
# read the same 77 tokens; T5 behind them in the TOKENS, for it cuts the text its own way:
#
#     ids_l (B,77) -> CLIP-L (B,77,768)  \
#                                          (B,77,2048) -> and zeros -> (B,77,4096) \
#     ids_g (B,77) -> CLIP-G (B,77,1280) /                                           context (B,154,4096)
#     ids_t (B,77) -> T5-XXL (B,77,4096) ------------------------------------------- /
#
#     CLIP-L at EOS (B,768), CLIP-G at EOS, projected (B,1280)  ->  pooled (B,2048)
#
# 77 + 77 tokens is what SD3-medium was trained on. Hugging Face's Diffusers gives T5 up to 256 at sampling:
# the transformer takes any number, for text has no position embedding there, and TRAP, the same prompt then
# gives another image. We keep 77. (test_golden_sd3_conditioning holds the assembly to its makers' code,
# sd3-ref.)

class Encoders:
    """Frozen encoders. It holds functions that build them, not the networks: each is built when its turn comes
    and let go after it, so that the peak is the largest one (T5-XXL: 9.5 GB in bf16) and not the sum."""

    def __init__(self, build):
        """build {"clip_l": function that gives the encoder, ...}, as pretrained.sd3_text does."""
        self.build = build
        self.to("cpu")

    def to(self, device, dtype=None, keep=False):
        """Where and in what to compute; by default as stored, but bf16 for fp8 and for T5 in fp16.
        keep: hold the encoders after their turn, which pays when millions of captions follow one another."""
        self.device, self.dtype = device, dtype
        self.kept = {} if keep else None                 # {name: encoder} where they stay
        return self

    def run(self, name, *inputs):
        """One encoder, alive only inside this call unless it is to be kept."""
        kept = {} if self.kept is None else self.kept
        if name not in kept:
            kept[name] = self.build[name]()
        return run_frozen(kept[name], self.device, self.dtype, *inputs)


@torch.no_grad()
def run_frozen(net, device, dtype, *inputs):
    """Move a freshly mapped encoder to where it shall run and run it once."""
    # ASSUMED: no paper names the encoders' precision; we take that of the file, where it is fit to compute in
    if dtype is None:
        dtype = next(net.parameters()).dtype
        if dtype.itemsize == 1 or (dtype == torch.float16 and isinstance(net, T5Encoder)):
            dtype = torch.bfloat16
    return net.to(device, dtype)(*(tensor.to(device) for tensor in inputs))


class SD3Text(Encoders):
    """SD3's conditioning: prompts -> context (B,77+77,4096), pooled (B,2048)."""

    def __init__(self, build, t5_tokenizer=None, width=4096):
        """build: of "clip_l", "clip_g" and, where there is one, "t5xxl"; width of the context without T5."""
        super().__init__(build)
        self.width = width
        self.clip_tokenizer = CLIPTokenizer.load()
        self.t5_tokenizer = t5_tokenizer

    def __call__(self, prompts):
        """list of B strings -> context (B,154,D), pooled (B,P), float32, on the device."""
        ids_l = self.clip_tokenizer(prompts)                                    # (B,77)
        ids_g = self.clip_tokenizer(prompts, pad_id=0)                          # (B,77)
        if "t5xxl" not in self.build:
            return self.assemble(ids_l, ids_g)
        return self.assemble(ids_l, ids_g, self.t5_tokenizer(prompts)[0])

    def notes(self, prompt):
        """Where CLIP and T5 stop reading, if they do."""
        notes = self.clip_tokenizer.notes(prompt)
        if self.t5_tokenizer:
            notes = notes + self.t5_tokenizer.notes(prompt)
        return notes

    def assemble(self, ids_l, ids_g, ids_t5=None):
        """The drawing above. TRAP: CLIP-L's pooled vector is taken before its projection, which SD3's file
        lacks, CLIP-G's after."""
        # ASSUMED: 77 + 77 tokens, as SD3-medium was trained; VideoDiT names no length. Without T5 its 77 are
        # zeros. SD3 was trained with each encoder's output dropped in nearly half of the prompts; that a
        # dropped output was zeros is how Diffusers reads it: we follow.
        clip_l = self.run("clip_l", ids_l)
        clip_g = self.run("clip_g", ids_g)
        clip = torch.cat([clip_l.penultimate, clip_g.penultimate], dim=-1)      # (B,77,768+1280)
        if ids_t5 is None:
            t5 = clip.new_zeros(*ids_l.shape, self.width)                       # (B,77,D)
        else:
            t5 = self.run("t5xxl", ids_t5)                                      # (B,77,D)
        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))                  # (B,77,D)
        context = torch.cat([clip.float(), t5.float()], dim=1)                  # (B,154,D)
        pooled = torch.cat([clip_l.pooled, clip_g.projected], dim=-1).float()   # (B,768+1280)
        return context, pooled


class T5Text(Encoders):
    """The conditioning of PixArt and of Latte's text-to-video model: T5 alone, and which tokens are text."""
    gives = ("context", "mask")                          # SD3Text and ToyText give context and pooled

    def __init__(self, build, tokenizer, length=120):
        """build: of "t5xxl"; length: tokens, of which a prompt's rest is padding."""
        super().__init__(build)
        self.tokenizer = tokenizer
        self.length = length

    def __call__(self, prompts):
        """list of B strings -> context (B,L,D), float32, and mask (B,L), 1 for text. T5 reads the mask too:
        in both models padding is nothing, where SD3 learned to live with it."""
        ids, mask = self.tokenizer(prompts, self.length)                        # (B,L), (B,L)
        return self.run("t5xxl", ids, mask).float(), mask.to(self.device)       # (B,L,D), (B,L)

    def notes(self, prompt):
        return self.tokenizer.notes(prompt, self.length)


if __name__ == "__main__":
    from demos.show_text import main

    polite(main)
