"""metrics.py - what two images, or two sets of clips, differ by: formulas alone.

VideoDiT 4.1: PSNR, SSIM, LPIPS of reconstructions, FVD and IS of samples; Latte 4.1: FVD, FID, IS. Each
formula comes from another paper, named above it with its equation's number. Images are (N,C,H,W), features
(N,F), logits (N,K). All is computed in float64: a distance is a small difference of large sums. Nothing here
is learned: LPIPS, and the networks that turn clips into features, are in detectors.py; which clips, how many
and how cropped, on which every published number hangs, is in eval_clips.py.

How good is a video model? There are two questions, and they need two kinds of answer.

    a VAE: was this clip given back?           a generator: do these clips look real?
    clip ----> VAE ----> clip'                  real clips            generated clips
      |                    |                        |   a network that looks  |
      +------ PSNR --------+                    (N,F) points              (M,F) points
              SSIM   a number a pair                +------- Frechet ---------+   a number for the sets

A reconstruction has an original, so the two are compared pixel by pixel. A sample has none: no real clip is
the one that "a cat jumping" should have become. So a network trained for something else (naming what people
do in a video) turns each clip into a point, and the question becomes whether two clouds of points, the real
ones and ours, lie in the same place and have the same shape. Too small a cloud is a model that repeats
itself, one that lies elsewhere a model whose clips look wrong. One number sees both and cannot say which."""

import numpy as np
import torch
import torch.nn.functional as F

from support.cli import UserError


# ------------------------------------------------------------------------------------------ images in pairs

# PSNR, "peak signal to noise", asks how large the mean squared error is beside the largest value a pixel can
# have, in decibels: + 10 dB is a tenth of the squared error.
#     MSE = 1/(CHW) sum (a - b)^2          PSNR = 10 log10(peak^2 / MSE)
# Ours runs from -1 to 1, so peak = 2. It is blunt: an image moved by one pixel scores terribly, a blurred
# one well, since blur is the mean of all that could be there and the mean is what squared error likes best.
# So PSNR alone would choose the VAE that blurs; SSIM and LPIPS stand beside it in VideoDiT's Table 1.
def psnr(a, b, peak=2.0):
    """(N,C,H,W) twice -> (N,) decibels; peak is the range of values.
    Equal images get 100 dB, not infinity: one perfect frame must not make the mean of a clip infinite."""
    error = ((a.double() - b.double()) ** 2).flatten(1).mean(1)                             # (N,)
    return 10 * torch.log10(peak ** 2 / error.clamp(min=peak ** 2 * 1e-10))                 # (N,)


# SSIM compares what an eye compares: not pixels but small neighbourhoods, and of those three things, each a
# ratio that is 1 when both images agree:
#     brightness   mu_x against mu_y,  contrast   sigma_x against sigma_y,  structure   their correlation
# Wang et al. 2004, Eq. 13, is the product of the three:
#                         (2 mu_x mu_y + C1) (2 sigma_xy + C2)
#     SSIM(x, y) = -----------------------------------------------------
#                  (mu_x^2 + mu_y^2 + C1) (sigma_x^2 + sigma_y^2 + C2)
# mu, sigma^2, sigma_xy: mean, variance, covariance under a Gaussian window around each pixel. The constants
# C1 = (k1 peak)^2, C2 = (k2 peak)^2 calm the ratios where an image is black or flat. An image's score is
# the mean over all places of the window that lie inside it, each colour by itself, as scikit-image has it
# (its answers are in tests/golden); libraries that pad the border differ.
def ssim(a, b, peak=2.0, sigma=1.5, window=11, k1=0.01, k2=0.03):
    """(N,C,H,W) twice -> (N,). In float64: a variance is mean(x^2) - mean(x)^2, and where an image is flat
    the two are nearly equal, so that float32 loses 1e-4."""
    if min(a.shape[-2:]) < window:
        raise UserError(f"SSIM needs images of {window} pixels, these are {a.shape[-1]} x {a.shape[-2]}; give "
                        "a larger --size")
    offsets = torch.arange(window, dtype=torch.float64, device=a.device) - window // 2
    weights = torch.exp(-offsets ** 2 / (2 * sigma ** 2))
    weights = (weights / weights.sum()).view(1, 1, -1, 1)                                   # (1,1,11,1)

    def blur(x):           # a Gaussian of two dimensions is one down the columns, then one along the rows
        x = F.conv2d(x.flatten(0, 1)[:, None], weights)                                     # (N*C,1,H-10,W)
        return F.conv2d(x, weights.mT).unflatten(0, a.shape[:2])[:, :, 0]                   # (N,C,H-10,W-10)

    x, y, c1, c2 = a.double(), b.double(), (k1 * peak) ** 2, (k2 * peak) ** 2
    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mu_x ** 2, blur(y * y) - mu_y ** 2, blur(x * y) - mu_x * mu_y
    values = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x ** 2 + mu_y ** 2 + c1) * (var_x + var_y + c2))
    return values.flatten(1).mean(1)                                                        # (N,)


# ------------------------------------------------------------------------------------------ sets of features

# Two clouds of points are hard to compare as they are, so Frechet's distance keeps of each only its mean and
# its covariance: it takes both for Gaussians. Between two Gaussians there is a formula for the least work
# that turns one heap of sand into the other (the squared Wasserstein distance). In one dimension it is
#     (mu_a - mu_b)^2 + (sigma_a - sigma_b)^2
# and in F dimensions Heusel et al. 2017, Eq. 6 (FID, Frechet Inception Distance: features of Inception, a
# network that names what a photograph shows):
#     d^2 = |mu_a - mu_b|^2 + Tr(A + B - 2 (A B)^(1/2))
# A, B: the covariances. FVD (Unterthiner et al. 2018) is the same with features of I3D, a network that names
# what people do in 16 frames: its features see motion. Smaller is better; 0 means equal up to the covariance.
#
# A distance means nothing beside one of another network, or of clips cut in another way. And it is biased
# upwards: an estimated mean is a little off in all F directions, and these errors add up. Two sets from one
# source look apart, the more so the fewer they are. Compare sets of equal size.

def gaussian(features, ddof=0):
    """(N,F) -> mean (F,), covariance (F,F), divided by N - ddof: published tools disagree on it, so it is a
    field of eval.py's protocols."""
    x = features.double()                                                                   # (N,F)
    mean = x.mean(0)                                                                        # (F,)
    return mean, (x - mean).T @ (x - mean) / (len(x) - ddof)                                # (F,), (F,F)


# The root of A B is the trap. A B is not symmetric, and with fewer samples than features (Inception has
# 2,048) it is singular as well; a general matrix root is then inaccurate, or complex. But only its trace is
# wanted, the sum of its eigenvalues, and these are the roots of the eigenvalues of sqrt(A) B sqrt(A), which
# is symmetric: no complex numbers, and singular matrices are no trouble.
def frechet(mean_a, cov_a, mean_b, cov_b):
    """Two of gaussian()'s answers -> the squared Frechet distance, a float."""
    values, vectors = torch.linalg.eigh(cov_a)                                              # (F,), (F,F)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T                                 # (F,F)  sqrt(A)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)                    # of equal sets rounding can make it - 1e-9


# The Inception Score needs no real clips. A classifier looks at each generated one: p(y|x) should be sharp
# (one can see what it is) and p(y), the mean over all clips, flat (there is some of everything). The
# divergence between the two is large if both hold. Salimans et al. 2016, section 4:
#     IS = exp( E_x KL( p(y|x) || p(y) ) ),   KL(p || q) = sum_y p(y) log(p(y) / q(y))
# From 1 (each clip gets the same answer) to K, the number of classes. It never looks at a real clip: a model
# that makes one perfect clip of each class, again and again, gets the highest score there is.
#
# The mean is taken over parts, as published for UCF101: the clips are shuffled with a fixed seed, so that no
# part's classes depend on the order in which they were made, and cut into ten. A part of 205 clips holds each
# of 101 classes 2 times, but by chance: a perfect classifier gets about 76, not 101.
def inception_score(logits, splits=10, seed=42):
    """(N,K) -> mean and deviation over `splits` parts of the shuffled clips; seed None: as they come."""
    p, scores = logits.double().softmax(1), []                                              # (N,K)
    if seed is not None:
        p = p[np.random.RandomState(seed).permutation(len(p))]
    for i in range(splits):
        part = p[i * len(p) // splits:(i + 1) * len(p) // splits]                           # (N/splits,K)
        divergence = (torch.special.xlogy(part, part) - torch.special.xlogy(part, part.mean(0))).sum(1)
        scores.append(divergence.mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


# ------------------------------------------------------------------------------------------ how sure is it

# How far from the first would a second set of clips have scored? No paper says, so nobody can tell whether an
# FVD of 428 is better than one of 440. Making another set costs a day. Drawing the same clips again with
# replacement shows a covariance some of them twice, which moves a Frechet distance. Halves drawn without
# replacement do not, and their deviation is the right one: the mean of half of n numbers, drawn so, has the
# variance sigma^2/(n/2) (1 - 1/2) = sigma^2/n, which is that of the mean of all n.
def standard_error(measure, *sets, draws=10, seed=0):
    """Standard deviation of `measure` over random halves of each set (N,...); NaN where there is nothing to halve."""
    rng, results = np.random.default_rng(seed), []
    if min(map(len, sets)) < 4:
        return float("nan")
    for _ in range(draws):
        results.append(measure(*(s[rng.choice(len(s), len(s) // 2, replace=False)] for s in sets)))
    return float(np.std(results, ddof=1))


# Two models that were given the same prompts and the same noise differ clip by clip, and most of what makes
# one prompt harder than another cancels in the difference. The bootstrap draws the differences again with
# replacement, seed by seed, thousands of times; the middle 95 % of the means are the interval. Of what is
# measured once a run there are as many differences as seeds, three or five, and Student's t is all one has.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)     # 95 %, by degrees of freedom


def paired_interval(differences, draws=4000):
    """95 % interval of the mean over seeds. differences: of each seed an array: a number a clip, or just one,
    which takes two seeds."""
    seeds = len(differences)
    if len(differences[0]) > 1:
        rng = np.random.default_rng(0)
        means = [rng.choice(seed, (draws, len(seed))).mean(1) for seed in differences]      # (draws,) each
        low, high = np.percentile(np.mean(means, 0), [2.5, 97.5])
        return float(low), float(high)
    values = np.concatenate(differences)                                                    # (seeds,)
    half = STUDENT[min(seeds, 10) - 2] * values.std(ddof=1) / seeds ** 0.5
    return float(values.mean() - half), float(values.mean() + half)
