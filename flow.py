"""flow.py - noise becomes data, twice: rectified flow (VideoDiT) and DDPM (Latte).
Paper    VideoDiT A.2, Eq. 5:  X_t = (1-t) X_0 + t X_1,  v = X_1 - X_0;   Latte 3.1: L_simple + L_vlb
Shapes   x (B,C,...): any trailing dimensions, so (B,C,T,H,W), (B,C,H,W) and (B,C) all work;  t (B,)
         B clips, T frames, C channels, H W latent size, L text tokens, D width
Time     flow: t in [0,1], t=0 noise, t=1 data in the whole repo; sigma = 1-t is SD3's measure of noise
         DDPM: an integer that counts the other way, 0 nearly clean, 999 noise; networks see that integer
Differs  first-order samplers only; VideoDiT prints neither training times nor steps (grep ASSUMED, DEVIATES)
Reads    after data.py, before vae.py; knows neither: everything here is tensors in, tensors out
Run me   python flow.py      # CPU, 5 s: eight points on a circle; prints how far samples land from them"""

import hashlib
import math
from dataclasses import dataclass

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


def sample_times(batch, shift=1.0, mean=0.0, std=1.0, u=None, generator=None):
    """Training times, t=0 noise. u (B,): standard-normal numbers, e.g. from keyed_noise, or drawn here.

    The ends are easy (t=0: the answer is the mean of the data minus x; t=1: x minus the mean of the noise),
    so the middle of the path is drawn more often."""
    # ASSUMED: VideoDiT is silent on times; we take SD3's logit-normal density and its constant shift.
    u = torch.randn(batch, generator=generator) if u is None else u
    return 1 - shift_sigma(torch.sigmoid(mean + std * u), shift)               # (B,)


def flow_loss(model, x1, cond, *, t, noise):
    """Mean squared velocity error, in float32. t (B,) and noise are arguments, so it can be replayed."""
    x0, x1 = noise.float(), x1.float()
    v = model(interpolate(x0, x1, t), t, **cond).float()
    return (v - (x1 - x0)).square().mean()


def drop_prompt(context, pooled, drop):
    """Guidance needs a model that has also seen no prompt: clips with drop=True get the null prompt.

    context (B,L,D), pooled (B,P) or None, drop (B,) bool."""
    # ASSUMED: null prompt = zeros at full length; the paper names none. guided() uses the same zeros: another
    # null in sampling would be an input the model has never seen.
    context = context.masked_fill(along(drop, context), 0)
    return context, None if pooled is None else pooled.masked_fill(along(drop, pooled), 0)


def drop_labels(labels, drop, null):
    """The same for class labels (B,), or (B,G) where a clip's pictures have theirs; drop has the same shape.

    null is the number after the last class (LabelEmbedder's extra row)."""
    return labels.masked_fill(drop, null)                                      # (B,) or (B,G)


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
def euler(velocity, noise, sigmas, data=None, known=None, draw=None, callback=None, progress=False):
    """Walk along velocity(x, t) in straight pieces; exact where paths are straight (one data point).

    data: start between this clip and the noise, at sigmas[0] (image to image). known: see Known.
    draw(n) is the n-th new noise, asked for only where known.again > 1. callback(i, x) after a step.
    x stays in float32 between steps, whatever precision the model computes in."""
    levels, x = sigmas.tolist(), noise.float()
    draw = draw or (lambda n: torch.randn_like(x))
    time = lambda sigma: torch.full((len(x),), 1 - sigma, device=x.device)    # (B,)
    held = lambda x, sigma: x if known is None else known.hold(
        x, interpolate(noise.float(), known.latent, time(sigma)))
    if data is not None:
        x = interpolate(x, data.float(), time(levels[0]))
    x, drawn = held(x, levels[0]), 0
    for i in tqdm(range(len(levels) - 1), disable=not progress):
        now, then = levels[i], levels[i + 1]
        for turn in range(known.turns(i, len(levels) - 1) if known and now < 1 else 1):
            if turn:
                x, drawn = held(noise_again(x, draw(drawn).to(x), then, now), now), drawn + 1
            x = held(x + (now - then) * velocity(x, time(now)).float(), then)
        if callback:
            callback(i, x)
    return x


@dataclass
class Known:
    """The part of a clip that is given: its first frame, both ends, all but a few frames.

    latent (B,C,T',h,w) holds it, mask (B,1,T',1,1) of bool says where; elsewhere latent may be anything.
    again, early: the first `early` (a share) of the steps are each walked `again` times."""
    latent: torch.Tensor
    mask: torch.Tensor
    again: int = 1
    early: float = 1.0

    def hold(self, x, noisy):
        """x, with `noisy` (the known part at x's noise level) where something is known."""
        return torch.where(self.mask, noisy, x)                                # (B,C,T',h,w)

    def turns(self, step, steps):
        return self.again if step < self.early * steps else 1


def noise_again(x, noise, sigma, higher):
    """From noise level sigma back up to a higher one: shrink the signal, fill up the variance with noise."""
    keep = (1 - higher) / (1 - sigma)
    return keep * x + math.sqrt(max(higher ** 2 - (keep * sigma) ** 2, 0.0)) * noise


def pulled(velocity, known, weight=1.0):
    """velocity, turned so that the data it heads for agrees with what is known. Twice the time of a step."""
    def turned(x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, t).float()
            error = known.hold(torch.zeros_like(x), known.latent - (x + along(1 - t, x) * v))
            gradient, = torch.autograd.grad(0.5 * error.square().sum(), x)
        t = t.clamp(0.01, 0.999)                               # both ends would divide by zero
        return v.detach() - weight * along((t ** 2 + (1 - t) ** 2) / (t * (1 - t)), x) * gradient
    return turned


# ====================================================================================================== DDPM
# Ho et al. 2020 ("Ho"), Nichol and Dhariwal 2021 ("Nichol"), Song et al. 2021 ("DDIM"): Latte's training.
# Here x_0 is DATA, as those papers print it, and a larger t is noisier.

def linear_betas(steps=1000):
    return torch.linspace(1e-4 * 1000 / steps, 0.02 * 1000 / steps, steps, dtype=torch.float64)


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

    variance: "learned_range" (Latte: the network's second C channels) or "fixed_large" (a network without).
    Tables are float64: 1 - alpha_bar loses half its digits in float32.
    The methods take the network's output, not the network: each is one line of a paper."""

    def __init__(self, betas=None, *, variance="learned_range", timesteps=None):
        beta = linear_betas() if betas is None else betas
        self.variance, self.beta = variance, beta
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
        return DDPM(betas, variance=self.variance, timesteps=self.timesteps[kept])

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
    def q_sample(self, x0, t, noise, after=False):
        """after: at the noise level that is left when the step from t has been taken."""
        alpha_bar = self.alpha_bar_prev if after else self.alpha_bar
        return self.at(alpha_bar.sqrt(), t, x0) * x0 + self.at((1 - alpha_bar).sqrt(), t, x0) * noise

    # Ho Eq. 2: one step of noise, from x_{t-1} back to x_t.
    def noise_again(self, x, t, noise):
        return self.at((1 - self.beta).sqrt(), t, x) * x + self.at(self.beta.sqrt(), t, x) * noise

    # Ho Eq. 6-7: where x_{t-1} lies when both ends are known.
    def posterior(self, x0, xt, t):
        mean = self.at(self.posterior_x0, t, xt) * x0 + self.at(self.posterior_xt, t, xt) * xt
        return mean, self.at(self.posterior_log_variance, t, xt).expand_as(xt)

    # Ho Eq. 4 solved for x_0: the data that this guess of the noise amounts to.
    def x0_from_eps(self, eps, xt, t):
        grow, noisy = self.alpha_bar.rsqrt(), (1 / self.alpha_bar - 1).sqrt()
        return self.at(grow, t, xt) * xt - self.at(noisy, t, xt) * eps

    # Nichol Eq. 15: the best variance lies between beta and the posterior's; the network says where.
    def log_variance(self, output, xt, t):
        small, large = self.at(self.posterior_log_variance, t, xt), self.at(self.beta.log(), t, xt)
        if self.variance == "learned_range":
            v = (output[:, xt.shape[1]:] + 1) / 2             # [-1,1] -> [0,1]; L_vlb keeps it there
            return v * large + (1 - v) * small
        fixed = torch.cat([self.first_variance, self.beta[1:]]).log()         # "fixed_large"
        return self.at(fixed, t, xt).expand_as(xt)

    def p_mean_variance(self, output, xt, t):
        """The model's Gaussian for x_{t-1}: (mean, log variance, its guess of x_0)."""
        x0 = self.x0_from_eps(output[:, : xt.shape[1]], xt, t)                 # (B,C,...)
        return self.posterior(x0, xt, t)[0], self.log_variance(output, xt, t), x0

    # Ho Eq. 5, L_{t-1}: how far the model's Gaussian is from the posterior; at t=0 the data's likelihood.
    def vlb_bits(self, output, x0, xt, t):
        mean, log_variance, _ = self.p_mean_variance(output, xt, t)
        kl = gaussian_kl(*self.posterior(x0, xt, t), mean, log_variance)
        likelihood = decoder_nll(x0, mean, 0.5 * log_variance)
        bits = torch.where(along(t == 0, x0), likelihood, kl) / math.log(2)
        return bits.flatten(1).mean(1)                                         # (B,)  bits per dimension

    # Ho Algorithm 2, one line of it. No noise into the last step (t=0): its mean is the answer.
    def ancestral_step(self, output, xt, t, noise):
        mean, log_variance, _ = self.p_mean_variance(output, xt, t)
        return mean + along(t > 0, xt) * (0.5 * log_variance).exp() * noise

    # DDIM Eq. 12 and 16: eta=0 uses no noise at all, eta=1 is as noisy as DDPM.
    def ddim_step(self, output, xt, t, noise, eta=0.0):
        eps = output[:, : xt.shape[1]]                                         # (B,C,...)
        x0 = self.x0_from_eps(eps, xt, t)
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


def ddpm_terms(ddpm, model, x0, cond, *, t, noise):
    """Per-clip losses (B,): "loss", "mse", and "vb" where the variance is learned.

    Nichol Eq. 16, Latte: L_simple (Ho Eq. 14) trains eps. L_vlb sees eps detached and trains only the
    variance, for its gradient on eps is too noisy."""
    # No weight on vb: it is one term of the 1000 in L_vlb, so it already is Nichol's 0.001 * L_vlb (in bits).
    xt = ddpm.q_sample(x0, t, noise)
    output = model(xt, ddpm.original(t), **cond).float()
    first, rest = output[:, : x0.shape[1]], output[:, x0.shape[1]:]
    terms = {"mse": (noise - first).square().flatten(1).mean(1)}              # (B,)
    if ddpm.variance == "learned_range":
        terms["vb"] = ddpm.vlb_bits(torch.cat([first.detach(), rest], 1), x0, xt, t)
    return {"loss": sum(terms.values()), **terms}


def ddpm_loss(ddpm, model, x0, cond, *, t, noise):
    """The scalar to train on; t (B,) integer. Calls the model as flow_loss does, so one flag swaps them."""
    x0, noise = x0.float(), noise.float()
    return ddpm_terms(ddpm, model, x0, cond, t=t, noise=noise)["loss"].mean()


@torch.no_grad()
def denoise_loop(ddpm, predict, x, step, draw=None, data=None, denoise=1.0, known=None, callback=None,
                 progress=False):
    """From the noisiest time down to 0: predict(x, original t), then step(output, x, t, noise).

    draw(n) is the n-th noise that the walk adds. data, denoise: start from this clip with noise on it, with
    the last `denoise` (a share) of the steps. known: see Known. x stays in float32."""
    noise, x, steps, drawn = x.float(), x.float(), len(ddpm.beta), 0
    draw, first = draw or (lambda n: torch.randn_like(x)), int(steps * (1 - denoise))
    at = lambda k: torch.full((len(x),), steps - 1 - k, device=x.device)       # (B,)
    held = lambda x, k, after: x if known is None else known.hold(
        x, ddpm.q_sample(known.latent, at(k), noise, after))
    if data is not None:
        if first == steps:                                     # nothing to take away
            return data.float()
        x = ddpm.q_sample(data.float(), at(first), noise)
    x = held(x, first, after=False)
    for k in tqdm(range(first, steps), disable=not progress):
        t = at(k)
        for turn in range(known.turns(k - first, steps - first) if known else 1):
            if turn:
                x, drawn = held(ddpm.noise_again(x, t, draw(drawn).to(x)), k, after=False), drawn + 1
            output, added = predict(x, ddpm.original(t)).float(), draw(drawn).to(x)
            x, drawn = held(step(output, x, t, added), k, after=True), drawn + 1
        if callback:
            callback(k, x)
    return x


def ddpm_sample(ddpm, predict, x, *, draw=None, data=None, denoise=1.0, known=None, callback=None,
                progress=False):
    """Ho Algorithm 2 from noise x. Latte's numbers: DDPM().respace("250"), learned variance, no clipping."""
    return denoise_loop(ddpm, predict, x, ddpm.ancestral_step, draw, data, denoise, known, callback, progress)


def ddim_sample(ddpm, predict, x, *, eta=0.0, draw=None, data=None, denoise=1.0, known=None, callback=None,
                progress=False):
    """The same walk with DDIM's steps; with eta=0 the start x decides everything and 50 steps are enough."""
    step = lambda output, x, t, noise: ddpm.ddim_step(output, x, t, noise, eta)
    return denoise_loop(ddpm, predict, x, step, draw, data, denoise, known, callback, progress)


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
