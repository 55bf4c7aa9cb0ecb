"""flow.py - noise becomes data, twice: rectified flow (VideoDiT) and DDPM (Latte).
Paper    VideoDiT A.2, Eq. 5:  X_t = (1-t) X_0 + t X_1,  v = X_1 - X_0;   Latte 3.1: L_simple + L_vlb
Shapes   x (B,C,...): any trailing dimensions, so (B,C,T,H,W), (B,C,H,W) and (B,C) all work;  t (B,)
         B clips, T frames, C channels, H W latent size, L text tokens, D width
Time     flow: t in [0,1], t=0 noise, t=1 data in the whole repo; sigma = 1-t is SD3's measure of noise
         DDPM: an integer that counts the other way, 0 nearly clean, 999 noise; networks see that integer
Differs  first-order samplers only; VideoDiT prints neither training times nor steps (grep ASSUMED, DEVIATES)
Reads    after vae.py, before dit.py; knows neither: everything here is tensors in, tensors out
Run me   python flow.py      # CPU, 5 s: eight points on a circle; prints how far samples land from them"""

import hashlib
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from checkpoint import UserError

NOISE, TIME, DROP, SAMPLING = range(4)    # streams of keyed_noise: same step and clip, four unrelated draws


def along(values, x):
    """(B,) -> (B,1,1,...): one number a clip, ready to multiply x."""
    return values.view(-1, *[1] * (x.ndim - 1))


# ---------------------------------------------------------------------------- randomness that can be replayed
# torch's global generator depends on everything drawn before. These draws depend only on their key, so a
# resumed run, one GPU and two GPUs all see the same noise for clip number `index` of step `step`.

def keyed_generator(seed, step, index, stream=NOISE):
    """A CPU generator for one clip of one step; the hash makes one well-mixed seed of four small numbers."""
    key = hashlib.sha256(f"{seed},{step},{index},{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))


def keyed_noise(shape, seed, step, first_index=0, device="cpu", dtype=torch.float32, stream=NOISE,
                draw=torch.randn):
    """Row i is clip first_index + i of the global batch; draw=torch.rand gives uniform numbers.

    Drawn in float32 on the CPU, because a GPU's generator gives other numbers for the same seed."""
    keys = [keyed_generator(seed, step, first_index + i, stream) for i in range(shape[0])]
    return torch.stack([draw(shape[1:], generator=key) for key in keys]).to(device, dtype)


# ============================================================================================ rectified flow

# VideoDiT Eq. 5: a straight line from noise X_0 to data X_1; the network learns its velocity X_1 - X_0.
def interpolate(x0, x1, t):
    t = along(t, x1)
    return (1 - t) * x0 + t * x1


# SD3 5.3.2: more pixels hide the same noise better, so a larger picture needs more of it at every step.
def shift_sigma(sigma, shift):
    return shift * sigma / (1 + (shift - 1) * sigma)


# SD3 3.1: mode sampling prefers the middle of the path, as logit-normal does, but never starves the ends.
def mode_sigma(u, scale=1.29):
    return 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


def sample_times(batch, shift=1.0, mean=0.0, std=1.0, u=None, generator=None, density="logit_normal"):
    """Training times, t=0 noise. u (B,): standard-normal numbers, e.g. from keyed_noise, or drawn here.

    The ends are easy (t=0: the answer is the mean of the data minus x; t=1: x minus the mean of the noise),
    so the middle of the path is drawn more often."""
    # ASSUMED: VideoDiT is silent on times; we take SD3's logit-normal density and its constant shift.
    u = torch.randn(batch, generator=generator) if u is None else u
    if density == "logit_normal":
        sigma = torch.sigmoid(mean + std * u)
    else:
        uniform = torch.special.ndtr(u)                    # a normal number through its own CDF is uniform
        sigma = {"uniform": uniform, "mode": mode_sigma(uniform)}[density]
    return 1 - shift_sigma(sigma, shift)                                       # (B,)


def loss_weight(t, kind="none"):
    """SD3 3.1. Use a density OR a weight: both say which times matter, together they say it twice."""
    sigma = 1 - t
    return {"none": lambda: torch.ones_like(sigma), "sigma_sqrt": lambda: sigma ** -2.0,
            "cosmap": lambda: 2 / (math.pi * (1 - 2 * sigma + 2 * sigma ** 2))}[kind]()


def flow_loss(model, x1, cond, *, t, noise, weighting="none"):
    """Mean squared velocity error, in float32. t (B,) and noise are arguments, so it can be replayed."""
    x0, x1 = noise.float(), x1.float()
    v = model(interpolate(x0, x1, t), t, **cond).float()
    error = (v - (x1 - x0)).flatten(1).square().mean(1)                        # (B,)
    return (error * loss_weight(t, weighting)).mean()


def drop_prompt(context, pooled, drop):
    """Guidance needs a model that has also seen no prompt: clips with drop=True get the null prompt.

    context (B,L,D), pooled (B,P) or None, drop (B,) bool."""
    # ASSUMED: null prompt = zeros at full length; the paper names none. guided() uses the same zeros: another
    # null in sampling would be an input the model has never seen.
    context = context.masked_fill(along(drop, context), 0)
    return context, None if pooled is None else pooled.masked_fill(along(drop, pooled), 0)


def velocity_of(network):
    """A network on SD3's clock (input 1000 sigma, output noise - data) as a velocity field on ours.

    Eq. 5 walks from noise to data and SD3 from data to noise: time is mirrored and the velocity changes sign.
    A Latte trained as a flow uses this too: its timestep embedding expects 0..1000, and the second half of
    its 2C outputs (DDPM's variance) stays unused."""
    def velocity(x, t, **cond):
        return -network(x, 1000 * (1 - t), **cond)[:, : x.shape[1]]
    return velocity


def guided(model, cond, scale=1.0, null_cond=None, channels=None):
    """f(x, t) with classifier-free guidance: walk past the conditional answer, away from the null one.

    Serves both samplers: a velocity for euler, a prediction for ddpm_sample. Both answers come from one batch
    of 2B; scale 1 is the plain conditional model, one forward. null_cond: zeros by default; pass it where
    zeros mean something else (class labels, attention masks). channels: how many are guided (all C; DiT's
    released code: 3); any others, DDPM's variance among them, are the conditional model's own."""
    null_cond = {name: torch.zeros_like(c) for name, c in cond.items()} if null_cond is None else null_cond
    both = {name: torch.cat([null_cond[name], c]) for name, c in cond.items()}

    def predict(x, t):
        if scale == 1:
            return model(x, t, **cond)
        n = x.shape[1] if channels is None else channels
        v_u, v_c = model(torch.cat([x, x]), torch.cat([t, t]), **both).float().chunk(2)
        return torch.cat([v_u[:, :n] + scale * (v_c[:, :n] - v_u[:, :n]), v_c[:, n:]], 1)
    return predict


def sigmas(steps, shift=3.0, denoise=1.0):
    """SD3's noise levels from 1 down to 0; steps + 1 numbers, so steps calls of the model.

    denoise < 1 starts part of the way down, from an image with noise on it (see euler's `data`).
    The reference shifts twice: once to get the smallest level, then the whole list again. It looks like an
    accident, but it is what the released weights are sampled with: the last level is 0.0089, not 0.003."""
    smallest = shift_sigma(0.001, shift)
    levels = shift_sigma(torch.linspace(1, smallest, steps, dtype=torch.float64), shift)
    return F.pad(levels, (0, 1)).float()[int(steps * (1 - denoise)):]          # (steps+1,)


@torch.no_grad()
def euler(velocity, noise, sigmas, data=None, callback=None, progress=False):
    """Walk along velocity(x, t) in straight pieces; exact where paths are straight (one data point).

    data: start between this clip and the noise, at sigmas[0] (image to image). callback(i, x) after a step.
    x stays in float32 between steps, whatever precision the model computes in."""
    levels, x = sigmas.tolist(), noise.float()
    time = lambda sigma: torch.full((len(x),), 1 - sigma, device=x.device)    # (B,)
    if data is not None:
        x = interpolate(x, data.float(), time(levels[0]))
    for i in tqdm(range(len(levels) - 1), disable=not progress):
        x = x + (levels[i] - levels[i + 1]) * velocity(x, time(levels[i])).float()
        if callback:
            callback(i, x)
    return x


# ====================================================================================================== DDPM
# Ho et al. 2020 ("Ho"), Nichol and Dhariwal 2021 ("Nichol"), Song et al. 2021 ("DDIM"): Latte's training.
# Here x_0 is DATA, as those papers print it, and a larger t is noisier.

def linear_betas(steps=1000):
    return torch.linspace(1e-4 * 1000 / steps, 0.02 * 1000 / steps, steps, dtype=torch.float64)


# Nichol Eq. 17: the linear schedule destroys an image too early; here alpha_bar falls like a cosine.
def cosine_betas(steps=1000):
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def spaced_steps(steps, spacing):
    """Which of the `steps` original timesteps a shorter sampler visits: "250", "10,15,20" (one count for each
    equal section, both ends of a section included) or "ddim50" (a whole-number stride from 0)."""
    if spacing.startswith("ddim"):
        strides = [k for k in range(1, steps) if len(range(0, steps, k)) == int(spacing[4:])]
        if not strides:
            raise UserError(f'no stride makes {spacing[4:]} of {steps} steps; ask for "{spacing[4:]}"')
        return list(range(0, steps, strides[0]))
    counts, taken, start = [int(count) for count in spacing.split(",")], [], 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if not 0 < count <= size:
            raise UserError(f"{count} sampling steps asked of {size} training steps; ask for 1 to {size}")
        stride, position = (size - 1) / max(count - 1, 1), 0.0
        for _ in range(count):
            taken.append(start + round(position))
            position += stride                         # added up, not multiplied: rounds as the released code
        start += size
    return taken


class DDPM:
    """The tables of one noise schedule and the formulas that read them.

    variance: "learned_range" (Latte: the network's second C channels), "fixed_small" or "fixed_large".
    predict: "eps" (Latte) or "x0". Tables are float64: 1 - alpha_bar loses half its digits in float32.
    The methods take the network's output, not the network: each is one line of a paper."""

    def __init__(self, betas=None, *, variance="learned_range", predict="eps", timesteps=None):
        beta = linear_betas() if betas is None else betas
        self.variance, self.predict, self.beta = variance, predict, beta
        self.timesteps = torch.arange(len(beta)) if timesteps is None else torch.as_tensor(timesteps)
        self.alpha_bar = (1 - beta).cumprod(0)
        self.alpha_bar_prev = F.pad(self.alpha_bar[:-1], (1, 0), value=1.0)
        # Ho Eq. 7: q(x_{t-1} | x_t, x_0) is a Gaussian; two coefficients for its mean, one variance.
        self.posterior_x0 = beta * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)
        self.posterior_xt = (1 - self.alpha_bar_prev) * (1 - beta).sqrt() / (1 - self.alpha_bar)
        self.posterior_variance = beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        # at t=0 the posterior is a point, variance 0: t=1 lends its variance, so that there is a logarithm
        self.first_variance = self.posterior_variance[:2][-1:].clamp(min=1e-20)
        self.posterior_log_variance = torch.cat([self.first_variance, self.posterior_variance[1:]]).log()

    def respace(self, spacing):
        """The same diffusion with fewer, larger steps: "250", "ddim50", ... The model still receives ORIGINAL
        timesteps, the ones it was trained on."""
        kept = torch.tensor(spaced_steps(len(self.beta), spacing))
        alpha_bar = self.alpha_bar[kept]
        betas = 1 - alpha_bar / F.pad(alpha_bar[:-1], (1, 0), value=1.0)
        return DDPM(betas, variance=self.variance, predict=self.predict, timesteps=self.timesteps[kept])

    def at(self, table, t, x):
        """table[t] in float32, shaped to multiply x."""
        return along(table.float().to(x.device)[t], x)                         # (B,1,1,...)

    def original(self, t):
        """The timesteps the network was trained on, whatever the spacing."""
        return self.timesteps.to(t.device)[t]

    def sample_times(self, u):
        """u (B,) uniform in [0,1), e.g. keyed_noise(..., draw=torch.rand) -> integer times."""
        return (u * len(self.beta)).long()                                     # (B,)

    # Ho Eq. 4: jump to any noise level at once.
    def q_sample(self, x0, t, noise):
        signal, noisy = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        return self.at(signal, t, x0) * x0 + self.at(noisy, t, x0) * noise

    # Ho Eq. 6-7: where x_{t-1} lies when both ends are known.
    def posterior(self, x0, xt, t):
        mean = self.at(self.posterior_x0, t, xt) * x0 + self.at(self.posterior_xt, t, xt) * xt
        return mean, self.at(self.posterior_log_variance, t, xt).expand_as(xt)

    # Ho Eq. 4 solved for one or the other.
    def x0_from_eps(self, eps, xt, t):
        grow, noisy = self.alpha_bar.rsqrt(), (1 / self.alpha_bar - 1).sqrt()
        return self.at(grow, t, xt) * xt - self.at(noisy, t, xt) * eps

    def eps_from_x0(self, x0, xt, t):
        grow, noisy = self.alpha_bar.rsqrt(), (1 / self.alpha_bar - 1).sqrt()
        return (self.at(grow, t, xt) * xt - x0) / self.at(noisy, t, xt)

    # Nichol Eq. 15: the best variance lies between beta and the posterior's; the network says where.
    def log_variance(self, output, xt, t):
        small, large = self.at(self.posterior_log_variance, t, xt), self.at(self.beta.log(), t, xt)
        if self.variance == "learned_range":
            v = (output[:, xt.shape[1]:] + 1) / 2             # [-1,1] -> [0,1]; L_vlb keeps it there
            return v * large + (1 - v) * small
        fixed = {"fixed_small": self.posterior_log_variance,
                 "fixed_large": torch.cat([self.first_variance, self.beta[1:]]).log()}[self.variance]
        return self.at(fixed, t, xt).expand_as(xt)

    def p_mean_variance(self, output, xt, t, clip=False):
        """The model's Gaussian for x_{t-1}: (mean, log variance, its guess of x_0).

        clip bounds that guess by [-1,1]: right for pixels, wrong for latents."""
        first = output[:, : xt.shape[1]]                                       # (B,C,...)  eps or x0
        x0 = first if self.predict == "x0" else self.x0_from_eps(first, xt, t)
        x0 = x0.clamp(-1, 1) if clip else x0
        return self.posterior(x0, xt, t)[0], self.log_variance(output, xt, t), x0

    # Ho Eq. 5, L_{t-1}: how far the model's Gaussian is from the posterior; at t=0 the data's likelihood.
    def vlb_bits(self, output, x0, xt, t, clip=False):
        mean, log_variance, _ = self.p_mean_variance(output, xt, t, clip)
        kl = gaussian_kl(*self.posterior(x0, xt, t), mean, log_variance)
        likelihood = decoder_nll(x0, mean, 0.5 * log_variance)
        bits = torch.where(along(t == 0, x0), likelihood, kl) / math.log(2)
        return bits.flatten(1).mean(1)                                         # (B,)  bits per dimension

    # Ho Eq. 5, L_T: what is left of the data at the last step. No weights in it: a check of the schedule.
    def prior_bits(self, x0):
        last = torch.full((len(x0),), len(self.beta) - 1, device=x0.device)
        mean = self.at(self.alpha_bar.sqrt(), last, x0) * x0
        log_variance = self.at((1 - self.alpha_bar).log(), last, x0)
        zero = torch.zeros_like(x0)
        return gaussian_kl(mean, log_variance, zero, zero).flatten(1).mean(1) / math.log(2)      # (B,)

    # Ho Algorithm 2, one line of it. No noise into the last step (t=0): its mean is the answer.
    def ancestral_step(self, output, xt, t, noise, clip=False):
        mean, log_variance, _ = self.p_mean_variance(output, xt, t, clip)
        return mean + along(t > 0, xt) * (0.5 * log_variance).exp() * noise

    # DDIM Eq. 12 and 16: eta=0 uses no noise at all, eta=1 is as noisy as DDPM.
    def ddim_step(self, output, xt, t, noise, eta=0.0, clip=False):
        x0 = self.p_mean_variance(output, xt, t, clip)[2]
        eps = self.eps_from_x0(x0, xt, t)                     # again, for x0 may have been clipped
        now, prev = self.at(self.alpha_bar, t, xt), self.at(self.alpha_bar_prev, t, xt)
        sigma = eta * ((1 - prev) / (1 - now)).sqrt() * (1 - now / prev).sqrt()
        mean = prev.sqrt() * x0 + (1 - prev - sigma ** 2).sqrt() * eps
        return mean + sigma * noise                           # sigma is 0 at t=0, where prev is 1


def gaussian_kl(mean1, log_variance1, mean2, log_variance2):
    """KL(first || second) of two diagonal Gaussians, in nats, element by element."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2) ** 2 * (-log_variance2).exp())


# Ho Eq. 13: probability of the right one of 256 grey values; the outermost two own the tails.
def decoder_nll(x, mean, log_std):
    # DEVIATES from Ho Eq. 13, which is about pixels: Latte reads latents as pixels here, so we do too. The
    # tanh stands in for erf, as in the code Latte was trained with.
    def cdf(z):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))
    below, above = cdf((x - mean - 1 / 255) / log_std.exp()), cdf((x - mean + 1 / 255) / log_std.exp())
    inside = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return -inside.clamp(min=1e-12).log()


def ddpm_terms(ddpm, model, x0, cond, *, t, noise, objective="hybrid"):
    """Per-clip losses (B,): "loss", and "mse" and "vb" where the objective has them.

    hybrid (Nichol Eq. 16, Latte): L_simple (Ho Eq. 14) trains eps. L_vlb sees eps detached and trains only
    the variance, for its gradient on eps is too noisy. kl: T * vb alone, gradients everywhere."""
    # No weight on vb: it is one term of the 1000 in L_vlb, so it already is Nichol's 0.001 * L_vlb (in bits).
    xt = ddpm.q_sample(x0, t, noise)
    output = model(xt, ddpm.original(t), **cond).float()
    first, rest = output[:, : x0.shape[1]], output[:, x0.shape[1]:]
    if objective == "kl":
        return {"loss": len(ddpm.beta) * ddpm.vlb_bits(output, x0, xt, t)}
    target = x0 if ddpm.predict == "x0" else noise
    terms = {"mse": (target - first).square().flatten(1).mean(1)}              # (B,)
    if ddpm.variance == "learned_range":
        terms["vb"] = ddpm.vlb_bits(torch.cat([first.detach(), rest], 1), x0, xt, t)
    return {"loss": sum(terms.values()), **terms}


def ddpm_loss(ddpm, model, x0, cond, *, t, noise, objective="hybrid"):
    """The scalar to train on; t (B,) integer. Calls the model as flow_loss does, so one flag swaps them."""
    x0, noise = x0.float(), noise.float()
    return ddpm_terms(ddpm, model, x0, cond, t=t, noise=noise, objective=objective)["loss"].mean()


@torch.no_grad()
def denoise_loop(ddpm, predict, x, step, generator=None, noises=None, callback=None, progress=False):
    """From the noisiest time down to 0: predict(x, original t), then step(output, x, t, noise).

    noises: the k-th is added in the k-th step, instead of a draw from `generator`. x stays in float32."""
    x, where = x.float(), x.device if generator is None else generator.device
    for k in tqdm(range(len(ddpm.beta)), disable=not progress):
        t = torch.full((len(x),), len(ddpm.beta) - 1 - k, device=x.device)     # (B,)
        noise = torch.randn(x.shape, generator=generator, device=where) if noises is None else noises[k]
        output = predict(x, ddpm.original(t)).float()
        x = step(output, x, t, noise.to(x))
        if callback:
            callback(k, x)
    return x


def ddpm_sample(ddpm, predict, x, *, clip=False, generator=None, noises=None, callback=None, progress=False):
    """Ho Algorithm 2 from noise x. Latte's numbers: DDPM().respace("250"), learned variance, no clipping."""
    step = lambda output, x, t, noise: ddpm.ancestral_step(output, x, t, noise, clip)
    return denoise_loop(ddpm, predict, x, step, generator, noises, callback, progress)


def ddim_sample(ddpm, predict, x, *, eta=0.0, clip=False, generator=None, noises=None, callback=None,
                progress=False):
    """The same walk with DDIM's steps; with eta=0 the start x decides everything and 50 steps are enough."""
    step = lambda output, x, t, noise: ddpm.ddim_step(output, x, t, noise, eta, clip)
    return denoise_loop(ddpm, predict, x, step, generator, noises, callback, progress)


@torch.no_grad()
def bits_per_dim(ddpm, predict, x0, noises, clip=True):
    """The whole bound, Ho Eq. 5: vb of every step (B,steps), noisiest first, the prior's and the sum (B,)."""
    rows = []
    for k, noise in enumerate(noises):
        t = torch.full((len(x0),), len(ddpm.beta) - 1 - k, device=x0.device)
        xt = ddpm.q_sample(x0, t, noise)
        output = predict(xt, ddpm.original(t)).float()
        guess = ddpm.p_mean_variance(output, xt, t, clip)[2]
        errors = guess - x0, ddpm.eps_from_x0(guess, xt, t) - noise
        mses = [error.square().flatten(1).mean(1) for error in errors]
        rows.append([ddpm.vlb_bits(output, x0, xt, t, clip), *mses])
    vb, xstart_mse, mse = (torch.stack(column, 1) for column in zip(*rows))    # (B,steps) each
    prior = ddpm.prior_bits(x0)
    total = vb.sum(1) + prior                                                  # (B,)
    return {"vb": vb, "xstart_mse": xstart_mse, "mse": mse, "prior_bpd": prior, "total_bpd": total}


# ====================================================================================================== demo

def circle(points=8):
    """The toy data set: `points` points on the unit circle, nothing between them."""
    angle = torch.arange(points) * 2 * math.pi / points
    return torch.stack([angle.cos(), angle.sin()], 1)                          # (points,2)


def oracle(data):
    """The exact velocity for a finite data set: a network with no training error would answer this.

    Many lines pass through x; each data point pulls as strongly as it is likely to be at the end of one."""
    def velocity(x, t):
        t = t[:, None]
        distance = (x[:, None] - t[..., None] * data).square().sum(-1)         # (B,points)
        weight = (-0.5 * distance / (1 - t) ** 2).softmax(1)
        return (weight @ data - x) / (1 - t)
    return velocity


class Toy(nn.Module):
    """A network for points of the plane: Fourier features of t, three hidden layers."""

    def __init__(self, width=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 + 1 + 12, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                 nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t):
        t = t[:, None]
        waves = t * math.pi * 2 ** torch.arange(6)                             # (B,6)
        return self.net(torch.cat([x, t, waves.sin(), waves.cos()], 1))        # (B,2)


def miss(samples, data):
    """Mean distance to the nearest data point, and the share of samples at the least visited point."""
    distance, nearest = torch.cdist(samples, data).min(1)
    return distance.mean().item(), (nearest.bincount(minlength=len(data)).min() / len(samples)).item()


def demo(steps=1500, batch=256, seed=0):
    """Train a flow on the circle: (the oracle's miss, its own miss, share at its least visited point)."""
    torch.manual_seed(seed)
    data, net = circle(), Toy()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x1 = data[torch.randint(len(data), (batch,))]                          # (B,2)
        t = sample_times(batch, mean=-0.5)                                     # (B,) where lines part
        loss = flow_loss(net, x1, {}, t=t, noise=torch.randn_like(x1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    noise = torch.randn(1000, 2)
    exact = miss(euler(oracle(data), noise, sigmas(50, shift=1.0)), data)[0]
    return exact, *miss(euler(net, noise, sigmas(50, shift=1.0)), data)


if __name__ == "__main__":
    print("mean distance to the eight points: oracle {:.6f} (0), trained {:.3f} (< 0.1); "
          "least visited point has {:.3f} of the samples (0.125)".format(*demo()))
