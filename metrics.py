"""metrics.py - what two pictures, or two sets of features, differ by: formulas alone.
Paper    Wang et al. 2004 (SSIM), Heusel et al. 2017 (FID), Binkowski et al. 2018 (KID), Salimans et al. 2016 (IS)
Shapes   pictures (N,C,H,W); features (N,F): N samples, F features
Numbers  everything is computed in float64
Reads    after features.py, before eval.py
Run me   python metrics.py         # CPU, 1 s: Frechet's distance of two Gaussians, known exactly"""

import numpy as np
import torch
import torch.nn.functional as F


# ------------------------------------------------------------------------------------------ pictures in pairs

def psnr(a, b, peak=2.0):
    """(N,C,H,W) twice -> (N,) decibels; peak is the range of values.
    Equal pictures get 100 dB, not infinity."""
    error = ((a.double() - b.double()) ** 2).flatten(1).mean(1)                             # (N,)
    return 10 * torch.log10(peak ** 2 / error.clamp(min=peak ** 2 * 1e-10))


# Wang et al. 2004, Eq. 13, with their Gaussian window; only where the window lies inside the picture.
def ssim(a, b, peak=2.0, sigma=1.5, window=11, k1=0.01, k2=0.03):
    """(N,C,H,W) twice -> (N,). In float64: float32 loses 1e-4 where pictures are flat."""
    if min(a.shape[-2:]) < window:
        raise ValueError(f"SSIM needs pictures of {window} pixels; these are {a.shape[-1]}x{a.shape[-2]}")
    offsets = torch.arange(window, dtype=torch.float64, device=a.device) - window // 2
    weights = torch.exp(-offsets ** 2 / (2 * sigma ** 2))
    weights = (weights / weights.sum()).view(1, 1, -1, 1)

    def blur(x):                                                                            # (N,C,H-10,W-10)
        x = F.conv2d(x.flatten(0, 1)[:, None], weights)
        return F.conv2d(x, weights.mT).unflatten(0, a.shape[:2])[:, :, 0]

    x, y, c1, c2 = a.double(), b.double(), (k1 * peak) ** 2, (k2 * peak) ** 2
    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mu_x ** 2, blur(y * y) - mu_y ** 2, blur(x * y) - mu_x * mu_y
    values = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x ** 2 + mu_y ** 2 + c1) * (var_x + var_y + c2))
    return values.flatten(1).mean(1)                                                        # (N,)


# ------------------------------------------------------------------------------------------ sets of features

def gaussian(features, ddof=0):
    """(N,F) -> mean (F,), covariance (F,F), divided by N - ddof."""
    x = features.double()
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / (len(x) - ddof)


# Frechet distance of two Gaussians (FID: Heusel et al. 2017, Eq. 6): |mu_a-mu_b|^2 + Tr(A + B - 2 sqrt(A B)).
# sqrt(A B) has the eigenvalues of sqrt(A) B sqrt(A), which is symmetric: no complex numbers, no trouble with
# fewer clips than features, where the usual sqrtm(A B) is inaccurate or fails.
def frechet(mean_a, cov_a, mean_b, cov_b):
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T                                 # (F,F)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)


# Kernel distance (KID: Binkowski et al. 2018, Eq. 4): unbiased squared MMD with kernel
# (x.y/F + 1)^3, as KVD with I3D's features. Unlike Frechet's it does not fall with the number of clips,
# so small sets can be compared.
def kernel_distance(a, b, subset=1000, subsets=100, seed=0):
    """(N,F), (M,F) -> mean over random subsets; everything at once where one subset holds all."""
    size = min(len(a), len(b), subset)
    picks, results = np.random.default_rng(seed), []
    for _ in range(1 if size == max(len(a), len(b)) else subsets):
        x, y = (s[picks.choice(len(s), size, replace=False)].double() for s in (a, b))      # (size,F)
        xx, yy, xy = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))  # (size,size)
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        results.append((within - 2 * xy.mean()).item())
    return float(np.mean(results))


# Inception Score (Salimans et al. 2016): exp(E KL(p(y|x) || p(y))).
def inception_score(logits, splits=10):
    """(N,K) -> mean and deviation over `splits` consecutive parts of N // splits;
    what is left over is left out."""
    p, scores = logits.double().softmax(1), []
    for part in p[:len(p) // splits * splits].chunk(splits):
        divergence = (torch.special.xlogy(part, part) - torch.special.xlogy(part, part.mean(0))).sum(1)
        scores.append(divergence.mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def standard_error(measure, *sets, draws=10, seed=0):
    """Spread of `measure` over random halves of each set (N,...). A half drawn without
    replacement strays from the whole as far as the whole strays from the truth, so this is the
    error of the whole, not of the half."""
    rng, results = np.random.default_rng(seed), []
    if min(map(len, sets)) < 4:
        return float("nan")
    for _ in range(draws):
        results.append(measure(*(s[rng.choice(len(s), len(s) // 2, replace=False)] for s in sets)))
    return float(np.std(results, ddof=1))


# ------------------------------------------------------------------------------------------ demo

def demo():
    """(measured, exact) Frechet distance of two Gaussians with diagonal covariances, one of them singular."""
    mean, a, b = (torch.zeros(3, dtype=torch.float64), torch.tensor([4.0, 1.0, 0.0]),
                  torch.tensor([1.0, 9.0, 4.0]))
    exact = 3 * 2.0 ** 2 + (a.sqrt() - b.sqrt()).square().sum().item()                      # 12 + 1 + 4 + 4
    return frechet(mean, a.double().diag(), mean + 2, b.double().diag()), exact


if __name__ == "__main__":
    print("Frechet distance {:.6f}   (exactly: {:.6f})".format(*demo()))
