"""flow.py - noise becomes data, twice: rectified flow (VideoDiT) and DDPM (Latte).
Paper    VideoDiT A.2, Eq. 5:  X_t = (1-t) X_0 + t X_1,  v = X_1 - X_0;   Latte 3.1: L_simple + L_vlb
Shapes   x (B,C,...): any trailing dimensions, so (B,C,T,H,W), (B,C,H,W) and (B,C) all work;  t (B,)
         B clips, T frames, C channels, H W latent size, L text tokens (pieces of words), D width
Time     flow: t in [0,1], t=0 noise, t=1 data in the whole repo; sigma = 1-t: how SD3 (below) counts
         DDPM: an integer that counts the other way, 0 nearly clean, 999 noise; networks see that integer
Differs  first-order samplers only; VideoDiT prints neither training times nor steps (grep ASSUMED, DEVIATES)
Reads    first, before vae.py; everything here is tensors in, tensors out
Run me   python flow.py      # CPU, 10 s: noise flows to eight points on a ring, drawn in out/flow.png

THE PROBLEM. We own a million clips and want one that nobody has filmed. "Train a network that turns a prompt
into a clip" does not work: a thousand different clips fit "a cat jumping", the squared error is least for
their average, and the average of a thousand jumping cats is grey mush.

THE IDEA. Ask easier questions, one after the other. Mix a clip with noise. Of this mixture, ask which way the
clip lies. Near the clip that has one answer. Far from it there are many, and the network says their average;
but that is a fair first step, since the next one asks again from where it arrived. So:

      training:  take a clip and some noise, mix them at a random t, and regress one vector
                 noise X_0 o-----------x------------------> o X_1 clip        (Eq. 5: a straight line)
                                      X_t    v = X_1 - X_0  is the answer that the network should give

      sampling:  start at fresh noise, ask the network, go a little way, ask again
                 t=0  o~~>~~o~~>~~o~~~>~~~o~~~~>~~~~o  t=1
                      grey fog    blobs   a cat      every hair

Everything else in this file is a detail of one of four choices, and diffusion papers differ in little else:
    the path      which mixtures?      a straight line (rectified flow), or a quarter circle (DDPM)
    the answer    what to regress?     the velocity X_1 - X_0, or the noise; one can be had from the other
    the times     which t, how often?  the middle of the path more often than its ends
    the sampler   how to step?         straight pieces (Euler), or with new noise in each step (ancestral)

What was tried before: GANs answer in one step, but train by a game, forger against critic, that can be lost;
autoregressive models go piece by piece, stable and slow (Latte 1). Diffusion trains by plain regression; that
is why it scales. "Clips" here are what the VAE makes of pixels, "latents" (vae.py, next), or any data."""

from support.cli import UserError, polite    # first: see there

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


def along(values, x):
    """(B,) -> (B,1,1,...): one number a clip, ready to multiply x."""
    return values.view(-1, *[1] * (x.ndim - 1))                                # (B,1,...)


# ============================================================================================ rectified flow
# PATH AND ANSWER. VideoDiT A.2 starts from Stable Diffusion 3 ("SD3", Esser et al. 2024), an image model, and
# takes its rectified flow (Liu et al. 2023, Albergo and Vanden-Eijnden 2023):
#
#     X_t = (1 - t) X_0 + t X_1                                                             (VideoDiT Eq. 5)
#     X_0 noise from a standard Gaussian, X_1 clean data, t in [0,1]; the network predicts v = X_1 - X_0


def interpolate(x0, x1, t):
    """VideoDiT Eq. 5: the mixture of noise x0 and data x1 at time t (B,)."""
    t = along(t, x1)                                                           # (B,1,...)
    return (1 - t) * x0 + t * x1                                               # (B,C,...)


# THE LOSS, and that is all of training: mix, ask, compare (in float32: bfloat16 keeps three digits at best).

def flow_loss(model, x1, cond, *, t, noise):
    """Mean squared velocity error. t (B,) and noise are arguments, so that a step can be replayed.
    cond: {name: tensor}, what else the network is told: context and pooled, or labels; {} for nothing."""
    # ASSUMED: no weight by time, as in SD3; VideoDiT names none.
    return flow_errors(model, x1, cond, t=t, noise=noise).mean()


def flow_errors(model, x1, cond, *, t, noise):
    """Squared velocity errors (B,C,...), before the mean: train.py logs them by the time, too."""
    x0, x1 = noise.float(), x1.float()
    v = model(interpolate(x0, x1, t), t, **cond).float()                       # (B,C,...)
    return (v - (x1 - x0)).square()                                            # (B,C,...)


# Many lines, from other noise to other clips, run through the same X_t, and each wants another answer. What a
# network with squared error learns is their AVERAGE, E[X_1 - X_0 | X_t]. Why is that enough? Think of
# traffic: if at every crossing all cars drive on at the average velocity of those that arrive, single cars
# end up elsewhere, but as many are in each place at each time as before. So following the average velocity
# turns the crowd "noise" into the crowd "data", which is all we want of a sampler:
#
#      training: straight lines that cross        sampling: what the average makes of them
#        o-----\   /-----> cat                      o--------\___/----> cat     paths bend where lines crossed
#               \ /                                           ___              and never cross: from one place
#               / \                                 o--------/   \----> dog    there is one way on
#        o-----/   \-----> dog
#      (test_the_average_velocity_carries_noise_onto_data, test_paths_do_not_cross)
#
# SAMPLING follows that velocity from t = 0 to 1. Euler's method is the simplest there is: go straight on at
# the velocity of where you stand, then look again.
#
#     x <- x + (t' - t) v(x, t) = x + (sigma - sigma') v(x, t)          sigma = 1 - t, from 1 down to 0


@torch.no_grad()
def euler(velocity, x, levels):
    """Noise x (B,C,...) -> data, by a call of velocity(x, t) a step; x stays in float32.
    levels (steps+1,): sigma from 1 down to 0, as sigmas() gives them."""
    x, levels = x.float(), levels.tolist()
    for sigma, next_sigma in zip(levels, levels[1:]):
        t = torch.full((len(x),), 1 - sigma, device=x.device)                  # (B,)
        x = x + (sigma - next_sigma) * velocity(x, t).float()                  # (B,C,...)
    return x


# WHY STRAIGHT? Straight pieces are exact on a straight path: with one clip in the data set a single step
# lands on it (test_euler_lands_exactly_on_a_one_point_dataset). Tried by others: "reflow" (Liu) trains again
# on the model's own pairs of start and end, whose lines do not cross, to sample in a step or two; Heun's
# method averages the velocities of both ends of a step (an exercise here), DPM-Solver reuses earlier answers,
# "distilled" models are taught to copy many steps in 1 to 4. SD3 compared 61 paths, answers and times, and
# kept the straight line with the times below.


# ------------------------------------------------------------------------------------------------- the times
# A network learns what it is asked most. Both ends of the path are easy: at t=0 it sees pure noise and can
# only answer "the mean of all clips, minus this"; near t=1 it sees the clip, and what is left of the noise is
# all it has to subtract. What decides whether a cat or a dog appears is settled in the middle. So SD3
# squashes a normal number into (0,1), which makes the middle likely and the ends rare ("logit-normal"):
#
#     sigma = sigmoid(m + s u),  u ~ N(0,1);  t = 1 - sigma                                       (SD3 Eq. 19)
#     m: shifts the hump towards noise (> 0) or data (< 0); s: its width. We use m = 0, s = 1.
#
# Tried by others: uniform times (Liu's), a density that never starves the ends (SD3's "mode"), or uniform
# times and a weight on the loss. A density and a weight say the same thing, which times matter: take one, not
# both.

def sample_times(u, shift=1.0, mean=0.0, std=1.0):
    """Training times (B,), t=0 noise, of standard-normal numbers u (B,)."""
    # ASSUMED: VideoDiT is silent on times and shift; we take SD3's logit-normal density and a constant shift,
    # the same in training and in sampling, that stands in the checkpoint.
    return 1 - shift_sigma(torch.sigmoid(mean + std * u), shift)               # (B,)


# MORE PIXELS NEED MORE NOISE. Paint an image in one colour c and add noise eps: (1-sigma) c + sigma eps.
# Its mean over n pixels tells c with an uncertainty of sigma / (1-sigma) / sqrt(n): the more pixels, the
# better the noise is averaged away, and the earlier everything large is settled. To keep the question as hard
# for m pixels as it was for n, sigma / (1-sigma) has to grow by shift = sqrt(m/n). Solved for the new sigma:
#
#     sigma' = shift sigma / (1 + (shift - 1) sigma),    shift = sqrt(m/n)                 (SD3 5.3.2, Eq. 23)
#
# SD3 asked people: for 1024 x 1024 pixels they want more than 1.5, and 3 was taken. A clip's frames,
# being alike, average noise away as pixels do, and Open-Sora, a video model, shifts for them, too.
# (test_a_shift_keeps_the_question_as_hard_for_more_pixels)

def shift_sigma(sigma, shift):
    """SD3 Eq. 23: multiplies sigma / (1-sigma), noise to signal, by `shift`; 0 and 1 stay where they are."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigmas(steps, shift=3.0):
    """SD3's noise levels from 1 down to 0 (steps+1,): euler calls the model `steps` times."""
    # TRAP: SD3's own code shifts twice, the smallest level and then the whole list again. It looks like an
    # accident, but the released weights are sampled so: the last level before 0 is 0.0089, not 0.003
    # (test_the_schedule_is_sd3s_table)
    smallest = shift_sigma(0.001, shift)
    levels = shift_sigma(torch.linspace(1, smallest, steps, dtype=torch.float64), shift)           # (steps,)
    return F.pad(levels, (0, 1)).float()                                       # (steps+1,)


# TRAP: SD3'S CLOCK RUNS THE OTHER WAY, from data to noise: its network is told 1000 sigma, sigma = 1-t, and
# answers noise - data. With its weights and our clock unconverted, samples are noise and no error is raised.
# Here is the conversion; VideoDiT and MMDiT have theirs in dit.in_our_time
# (test_golden_euler_trajectories_with_guidance):
#
#      Eq. 5        noise  t = 0 --------------------> 1  data          v = X_1 - X_0
#      SD3          noise  1000 sigma = 1000 <-------- 0  data          v = noise - data = -(X_1 - X_0)

def velocity_of(network):
    """A network on SD3's clock as a velocity field on ours: v(x, t) of Eq. 5. A Latte trained as a flow uses
    it too: its clock runs to 1000, and the second half of its 2C outputs (DDPM's variance) stays unused."""
    def velocity(x, t, **cond):
        return -network(x, 1000 * (1 - t), **cond)[:, : x.shape[1]]            # (B,C,...)
    return velocity


# -------------------------------------------------------------------------------------------------- guidance
# A model trained on prompts makes clips that half ignore them: a caption is a weak hint beside all that the
# clip itself shows. Classifier-free guidance (Ho and Salimans 2021) asks twice in each step (as one batch),
# with the prompt and without, and goes PAST the prompt's answer, away from the other, by the guidance scale
# s:
#
#     v = v_null + s (v_cond - v_null)           s = 1: the plain model; s = 4 to 7: what everybody looks at
#
#              v_null o------>o v_cond - - - - - ->* s = 3
#
# The difference of the two is what the prompt changes; exaggerating it moves towards clips that are typical
# of the prompt. The price: twice the work in each step, less variety, and at high s colours too strong.
# Before it, "classifier guidance" needed a second network that names what is in noisy images. The model must
# have seen "no prompt" in training, or v_null answers a strange question: VideoDiT 4.1 drops 10 % of the
# prompts.


def drop_prompt(context, pooled, drop):
    """Clips with drop=True, (B,) bool, get the null prompt, "none". context (B,L,D), a vector a token, and
    pooled (B,P), one for the whole prompt, or None: text.py makes both."""
    # ASSUMED: null prompt = zeros at full length; the paper names none. guided() uses the same zeros: another
    # null in sampling (an encoded "", as SD3's own scripts do) would be an input the model has never seen.
    context = context.masked_fill(along(drop, context), 0)                     # (B,L,D)
    if pooled is not None:
        pooled = pooled.masked_fill(along(drop, pooled), 0)                    # (B,P)
    return context, pooled


def drop_labels(labels, drop, null):
    """The same for class labels (B,), or (B,G) where a clip's images have theirs; drop has the same shape.
    null is the number after the last class (dit.LabelEmbedder's extra row)."""
    return labels.masked_fill(drop, null)                                      # (B,) or (B,G)


def guided(model, cond, guidance=1.0, null_cond=None, channels=None):
    """f(x, t) with guidance: a velocity for euler, a prediction for ddpm_sample.

    Both answers come from one batch of 2B; with a guidance scale of 1 only the plain model is asked.
    null_cond: what stands for "no prompt", by the same names as cond. By default zeros; labels and masks need
    another, since a label of 0 is the first class, and a mask of zeros hides the whole text.
    channels: how many are guided, by default all C of x; the rest of the output, such as DDPM's variance, is
    the conditional model's."""
    # TRAP: DiT's released code guides 3 of its 4 channels, a slip that it keeps so that its numbers can be
    # repeated: channels=3. Latte guides all 4 (test_golden_guidance_is_on_the_noise_...).
    if guidance == 1:
        return lambda x, t: model(x, t, **cond)
    if null_cond is None:
        null_cond = {name: torch.zeros_like(value) for name, value in cond.items()}
    both = {name: torch.cat([null_cond[name], value]) for name, value in cond.items()}             # (2B,...)

    def predict(x, t):
        n = x.shape[1] if channels is None else channels
        v_null, v_cond = model(torch.cat([x, x]), torch.cat([t, t]), **both).float().chunk(2)      # (B,C,...)
        past = v_null[:, :n] + guidance * (v_cond[:, :n] - v_null[:, :n])      # (B,n,...)
        return torch.cat([past, v_cond[:, n:]], 1)                             # (B,C,...)
    return predict


# --------------------------------------------------------------------------------------- a part that is known
# A clip that begins with a given image, ends with another, goes on from an earlier clip: neither paper has
# it, and both models can do it untrained. Eq. 5 tells what the known frames z look like at any time of the
# sampling: (1-t) noise + t z. Put that in their place whenever the model looks (the replacement method, as in
# inpainting), and it sees a clip at noise level t of which some frames happen to be right:
#
#      frame     0   1   2   3           mask  1 0 0 0
#      t = 0.0   N   N   N   N           N noise        before each step, frame 0 <- (1-t) noise + t z
#      t = 0.5   Z   ~   ~   ~           Z z with noise
#      t = 1.0   z   x   x   x           z to the last bit


@dataclass
class Known:
    """latent (B,C,T',h,w), T' frames of latents, holds what is given, mask (B,1,T',1,1) of bool says where;
    elsewhere latent may be anything."""
    # ASSUMED: in neither paper. That an image's latent may stand for a clip's is what VideoDiT 3.1 trains
    # for.
    latent: torch.Tensor
    mask: torch.Tensor

    def hold(self, x, noisy):
        """x, with `noisy` (the known part at x's noise level) where something is known."""
        return torch.where(self.mask, noisy, x)                                # (B,C,T',h,w)


def held(model, known, noisy):
    """model(x, t), which finds noisy(t), the known part as noisy as x is at t, in its place.

    x itself is left alone: where it is known nobody looks at it, until known.hold(x, known.latent) after the
    last step."""
    def looking(x, t):
        return model(known.hold(x, noisy(t)), t)
    return looking


# TRAP: holding alone goes half the way (as Ho et al. 2022 found in Video Diffusion Models). The unknown
# frames learn of z only through its NOISY copy, and when that is clean enough to be read, they are settled.
# Take two frames that correlate by 0.9 and give the first, 1.5: the second should be 1.35 +- 0.44, and is
# 0.66 +- 0.70, by an exact velocity in any number of steps. The cure
# (test_holding_alone_goes_half_the_way_and_pulling_nearly_the_rest): look where x is heading, x + (1-t) v;
# where that differs from z, turn the velocity by the gradient of the difference. One backward pass through
# the network a step: 1.26 +- 0.45.
#
# Tried by others: to add noise back after each step and take it again (RePaint, Lugmayr et al. 2022), at many
# times the calls; to leave some frames clean in training (an exercise here), which needs a training of its
# own.
#
# The formula, r^2 = (1-t)^2 / (t^2 + (1-t)^2), all gradients by x_t:
#
#     grad log p(x_t | z) = grad log p(x_t) + grad log p(z | x_t)                               Bayes' rule
#     grad log p(z | x_t) = - grad error / r^2,  error = |z - (x_t + (1-t) v)|^2 / 2      where z is known
#     v = (x_t + (1-t) grad log p(x_t)) / t                                        Eq. 5, with noise N(0,1)
#     so v becomes  v - (1-t)/t grad error / r^2  =  v - (t^2 + (1-t)^2) / (t (1-t)) grad error
#
# The second line takes z for a Gaussian around where x_t is heading; r^2 is the variance that x_t leaves open
# of data of variance 1 (pseudo-inverse guidance, Song et al. 2023; for flows Pokle et al. 2023). With
# r^2 = (1-t)^2 / t^2 it would be Ho's own cure, reconstruction guidance.

def pulled(velocity, known):
    """velocity, turned so that the data it heads for agrees with what is known."""
    def turned(x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, t).float()                                         # (B,C,...)
            ahead = x + along(1 - t, x) * v                                    # (B,C,...) where it heads for
            wrong = known.hold(torch.zeros_like(x), known.latent - ahead)      # (B,C,...) 0 where unknown
            gradient, = torch.autograd.grad(0.5 * wrong.square().sum(), x)     # (B,C,...)
        t = t.clamp(0.01, 0.999)                               # both ends would divide by zero
        factor = (t ** 2 + (1 - t) ** 2) / (t * (1 - t))                       # (B,)
        return v.detach() - along(factor, x) * gradient
    return turned


# ====================================================================================================== DDPM
# Latte takes the older recipe, "denoising diffusion probabilistic models": Ho et al. 2020 ("Ho"), with the
# variances of Nichol and Dhariwal 2021 ("Nichol"). It adds noise in 1000 small steps, after which a share
# abar of the variance is still data, and learns to undo each one. Beside rectified flow:
#
#                     rectified flow (VideoDiT)          DDPM (Latte)
#     mixture         (1-t) noise + t data               sqrt(abar) data + sqrt(1-abar) noise
#     its shape       straight: shares add up to 1       quarter circle: squares add up to 1, variance stays 1
#     time            0 noise ... 1 data                 999 noise ... 0 almost data
#     network says    velocity: data - noise             eps: the noise; and how unsure the step is
#     sampler         28 steps, no new noise             250 steps, each adds new noise
#
# The answers are two views of one thing: who knows the mixture and the noise knows the data. So a network can
# be trained either way (test_latte_also_trains_as_a_rectified_flow), and guidance and Known serve both.
#
# TWO TRAPS OF NAMES. Here x_0 is DATA, as these papers print it (Eq. 5's X_0 is noise), and larger t is
# noisier. And papers count steps from 1 to 1000, code from 0 to 999: our t=0 is their t=1, the last step to
# be undone.

def linear_betas():
    """Ho 4: beta_t, the variance of the noise that step t adds, from 1e-4 to 0.02, as Latte takes it."""
    return torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)               # (steps,)


class DDPM:
    """The tables of a noise schedule (its betas), and the formulas that read them: a method, a paper's line.
    variance: "learned_range" (Latte: the network's second C channels), "fixed_large" (a network without)."""

    def __init__(self, betas=None, *, variance="learned_range", timesteps=None):
        # in float64: at t=0, 1 - abar is 1e-4, of which float32 would keep three digits
        beta = linear_betas() if betas is None else betas                      # (steps,)
        self.beta = beta
        self.variance = variance
        self.timesteps = torch.arange(len(beta)) if timesteps is None else timesteps               # (steps,)
        self.alpha_bar = (1 - beta).cumprod(0)                                 # (steps,)
        self.alpha_bar_prev = F.pad(self.alpha_bar[:-1], (1, 0), value=1.0)    # (steps,)  below 0: clean
        # Ho Eq. 7: the mean's coefficients and the variance of the posterior, x_{t-1} seen from both ends
        self.posterior_x0 = beta * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)
        self.posterior_xt = (1 - self.alpha_bar_prev) * (1 - beta).sqrt() / (1 - self.alpha_bar)
        self.posterior_variance = beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        # at t=0 the posterior is a point, variance 0: t=1 lends its variance, so that there is a logarithm
        # (where there is one step alone: its own)
        self.first_variance = self.posterior_variance[:2][-1:].clamp(min=1e-20)                    # (1,)
        lent = torch.cat([self.first_variance, self.posterior_variance[1:]])   # (steps,)
        self.posterior_log_variance = lent.log()

    def to(self, device):
        """Move the tables: each time that one is read on another device is a copy, and a step reads many.
        Apple's GPU has no float64: for it they stay, and are copied."""
        if torch.device(device).type == "mps":
            return self
        for name, table in vars(self).items():
            if torch.is_tensor(table):
                setattr(self, name, table.to(device))
        return self

    def at(self, table, t, x):
        """table[t] in float32, shaped to multiply x."""
        return along(table.float().to(x.device)[t], x)                         # (B,1,...)

    def sample_times(self, u):
        """Ho Algorithm 1: all times alike. u (B,) uniform in [0,1), by keyed_noise(..., draw=torch.rand)."""
        return (u * len(self.beta)).long()                                     # (B,)

    # MAKING NOISE. One step keeps sqrt(1-beta) of the signal and adds noise of variance beta; a thousand such
    # steps are again a Gaussian, so any level can be reached in one jump, and training never takes them:
    #     q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                                  (Ho Eq. 2)
    #     q(x_t | x_0)     = N(sqrt(abar_t) x_0, (1 - abar_t) I),  abar_t = prod_s<=t (1 - beta_s)  (Ho Eq. 4)

    def q_sample(self, x0, t, noise):
        """Ho Eq. 4."""
        of_data = self.at(self.alpha_bar.sqrt(), t, x0)                        # (B,1,...)
        of_noise = self.at((1 - self.alpha_bar).sqrt(), t, x0)                 # (B,1,...)
        return of_data * x0 + of_noise * noise                                 # (B,C,...)

    # TAKING IT AWAY. If both ends were known, Bayes' rule would say where x_{t-1} lies between them:
    #     q(x_{t-1} | x_t, x_0) = N(a x_0 + b x_t, btilde_t I)                                   (Ho Eq. 6, 7)
    #     a = sqrt(abar_{t-1}) beta_t / (1-abar_t),  b = sqrt(1-beta_t) (1-abar_{t-1}) / (1-abar_t),
    #     btilde_t = (1-abar_{t-1}) / (1-abar_t) beta_t
    # The network supplies the x_0 that is missing. Asking it for the noise eps instead trains best (Ho 3.2):
    # that answer has the same size at every t, and Ho Eq. 4 solved for x_0 turns it round. Later,
    # "v-prediction" (Salimans and Ho 2022) mixed both; on a straight path the same thought is Eq. 5's
    # velocity.

    def posterior(self, x0, xt, t):
        """Ho Eq. 6, 7: mean, log variance of x_{t-1}, both ends known (test_golden_forward_process)."""
        mean = self.at(self.posterior_x0, t, xt) * x0 + self.at(self.posterior_xt, t, xt) * xt     # (B,C,...)
        log_variance = self.at(self.posterior_log_variance, t, xt)             # (B,1,...)
        return mean, log_variance.expand_as(xt)                                # (B,C,...) both

    def x0_from_eps(self, eps, xt, t):
        """The data that this guess of the noise amounts to."""
        of_mixture = self.at(self.alpha_bar.rsqrt(), t, xt)                    # (B,1,...)
        of_noise = self.at((1 / self.alpha_bar - 1).sqrt(), t, xt)             # (B,1,...)
        return of_mixture * xt - of_noise * eps                                # (B,C,...)

    # HOW UNSURE A STEP IS. beta_t would be right if the data were pure noise, btilde_t if it were one point;
    # the network says where between them the truth lies, v in [0,1], for each number. It matters for few,
    # large steps:
    #     Sigma(x_t, t) = exp(v log beta_t + (1 - v) log btilde_t)                            (Nichol Eq. 15)

    def log_variance(self, output, xt, t):
        """Nichol Eq. 15 (test_learned_variance_lies_between_the_two_fixed_ones)."""
        if self.variance == "learned_range":
            small = self.at(self.posterior_log_variance, t, xt)                # (B,1,...)
            large = self.at(self.beta.log(), t, xt)                            # (B,1,...)
            v = (output[:, xt.shape[1]:] + 1) / 2     # (B,C,...)  [-1,1] -> [0,1]; only the loss keeps it so
            return v * large + (1 - v) * small                                 # (B,C,...)
        fixed = torch.cat([self.first_variance, self.beta[1:]]).log()          # (steps,)  "fixed_large": beta
        return self.at(fixed, t, xt).expand_as(xt)                             # (B,C,...)

    def p_mean_variance(self, output, xt, t):
        """The model's Gaussian for x_{t-1}: (mean, log variance, its guess of x_0)."""
        # no clipping of x_0 to [-1,1], as DDPM does for pixels: Latte's latents know no such bounds
        x0 = self.x0_from_eps(output[:, : xt.shape[1]], xt, t)                 # (B,C,...)
        mean, _ = self.posterior(x0, xt, t)                                    # (B,C,...)
        return mean, self.log_variance(output, xt, t), x0

    def vlb_bits(self, output, x0, xt, t):
        """Ho Eq. 5, one of the 1000 terms of L_vlb: how far the model's Gaussian is from the posterior; at
        t=0 how unlikely it makes the data. (B,), in bits per dimension."""
        mean, log_variance, _ = self.p_mean_variance(output, xt, t)
        kl = gaussian_kl(*self.posterior(x0, xt, t), mean, log_variance)       # (B,C,...)
        likelihood = decoder_nll(x0, mean, 0.5 * log_variance)                 # (B,C,...)
        bits = torch.where(along(t == 0, x0), likelihood, kl) / math.log(2)    # (B,C,...)
        return bits.flatten(1).mean(1)                                         # (B,)

    # TWO WAYS TO STEP. Ancestral (Ho Algorithm 2): draw x_{t-1} from the model's Gaussian, with new noise
    # each time, in which earlier errors drown. DDIM (Song et al. 2021): no noise; the start decides
    # everything:
    #     x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1} - sigma^2) eps + sigma z          (DDIM Eq. 12)
    #     sigma = eta sqrt((1-abar_{t-1}) / (1-abar_t)) sqrt(1 - abar_t / abar_{t-1})            (DDIM Eq. 16)
    #     eta = 0: no noise; eta = 1: as noisy as ancestral sampling
    # Latte's released configurations sample ancestrally in 250 steps, its text-to-video model by DDIM in 50.

    def ancestral_step(self, output, xt, t, noise):
        """Ho Algorithm 2, one line of it. No noise into the last step (t=0): its mean is the answer."""
        mean, log_variance, _ = self.p_mean_variance(output, xt, t)
        return mean + along(t > 0, xt) * (0.5 * log_variance).exp() * noise    # (B,C,...)

    def ddim_step(self, output, xt, t, noise, eta=0.0):
        """DDIM Eq. 12 and 16."""
        eps = output[:, : xt.shape[1]]                                         # (B,C,...)
        x0 = self.x0_from_eps(eps, xt, t)                                      # (B,C,...)
        now, prev = self.at(self.alpha_bar, t, xt), self.at(self.alpha_bar_prev, t, xt)            # (B,1,...)
        sigma = eta * ((1 - prev) / (1 - now)).sqrt() * (1 - now / prev).sqrt()                    # (B,1,...)
        mean = prev.sqrt() * x0 + (1 - prev - sigma ** 2).sqrt() * eps         # (B,C,...)
        return mean + sigma * noise                           # sigma is 0 at t=0, where prev is 1

    # RESPACING. Sampling may visit 250 of the 1000 noise levels and take larger steps between. The levels
    # stay what they are, only the betas from one visited level to the next are computed anew (Nichol 4):
    #
    #     trained   0 1 2 3 4 5 6 7 8 ... 999          abar known for each
    #     "250"     0       4       8 ... 999          beta' = 1 - abar(8) / abar(4): one step that does four
    #
    # TRAP: the network must still be told the ORIGINAL number, 8 and not 2: it knows noise levels by it
    # (test_golden_sampling_loops).

    def respace(self, spacing):
        """The same diffusion with fewer, larger steps: "250", "ddim50", ... (spaced_steps)."""
        visited = torch.tensor(spaced_steps(len(self.beta), spacing))          # (fewer,)
        alpha_bar = self.alpha_bar[visited]                                    # (fewer,)
        betas = 1 - alpha_bar / F.pad(alpha_bar[:-1], (1, 0), value=1.0)       # (fewer,)
        return DDPM(betas, variance=self.variance, timesteps=self.timesteps[visited])

    def times(self):
        """The steps of a sampler: places in these tables, noisiest first."""
        return list(range(len(self.beta)))[::-1]

    def original(self, t):
        """The timesteps the network was trained on, whatever the spacing."""
        return self.timesteps.to(t.device)[t]                                  # (B,)

    def index(self, original):
        """The places of original timesteps in these tables."""
        return torch.searchsorted(self.timesteps.to(original.device), original)                    # (B,)


@torch.no_grad()
def ddpm_sample(step, ddpm, predict, x, times, new_noise):
    """Ho Algorithm 2: noise x (B,C,...) -> data, by predict(x, original t), a guided network.
    step: ddpm.ancestral_step, or ddpm.ddim_step for DDIM. times: ddpm.times(), or its tail, to start part
    way. new_noise(n): the noise of the n-th step. Latte's numbers: DDPM().respace("250"), learned variance."""
    x = x.float()
    for n, place in enumerate(times):
        t = torch.full((len(x),), place, device=x.device)                      # (B,)
        output = predict(x, ddpm.original(t)).float()                          # (B,2C,...), or (B,C,...)
        x = step(output, x, t, new_noise(n))                                   # (B,C,...)
    return x


def spaced_steps(steps, spacing):
    """Which of the `steps` original timesteps a shorter sampler visits: "250", "10,15,20" (one count for each
    equal section, both ends of a section included) or "ddim50" (a whole-number stride from 0)."""
    if spacing.startswith("ddim"):
        count = int(spacing[4:])
        for stride in range(1, steps):
            if len(range(0, steps, stride)) == count:
                return list(range(0, steps, stride))
        raise UserError(f'no stride makes {count} of {steps} steps; ask for "{count}"')
    counts = [int(count) for count in spacing.split(",")]
    visited = []
    for section, count in zip(np.array_split(range(steps), len(counts)), counts):
        size = len(section)                            # the first sections share what is left over
        if not 0 < count <= size:
            raise UserError(f"{count} sampling steps asked of {size} training steps; ask for 1 to {size}")
        stride = (size - 1) / max(count - 1, 1)
        position = 0.0
        for _ in range(count):
            visited.append(int(section[round(position)]))
            position += stride                         # added up, not multiplied: rounds as the released code
    return visited


# THE LOSS. The honest objective is L_vlb ("variational lower bound"), a bound on how unlikely the model makes
# the data, a sum over the steps (Ho Eq. 5). Ho keeps eps's bare error, without weights: better images:
#
#     L_simple = E || eps - eps_theta(z_t, t) ||^2                                    (Latte Eq. 1, Ho Eq. 14)
#     L_hybrid = L_simple + lambda L_vlb,  lambda = 0.001                                      (Nichol Eq. 16)
#
# eps_theta is the network's answer. L_vlb serves the variance alone: its gradient on eps_theta is noisy, so
# that is detached in it. TRAP: where is lambda? L_vlb has 1000 terms, a step looks at one: 1000 x 0.001 is 1.
# (test_the_loss_trains_eps_with_mse_only_and_the_variance_with_vlb_only)


def ddpm_terms(ddpm, model, x0, cond, *, t, noise):
    """Per-clip losses (B,): "loss", what is trained on, "mse", and "vb" where the variance is learned.
    t (B,) integer. Calls the model as flow_errors does, so one flag swaps them."""
    xt = ddpm.q_sample(x0, t, noise)                                           # (B,C,...)
    output = model(xt, ddpm.original(t), **cond).float()                       # (B,2C,...), or (B,C,...)
    eps, variance = output[:, : x0.shape[1]], output[:, x0.shape[1]:]          # (B,C,...) both
    terms = {"mse": (noise - eps).square().flatten(1).mean(1)}                 # (B,)
    if ddpm.variance == "learned_range":
        terms["vb"] = ddpm.vlb_bits(torch.cat([eps.detach(), variance], 1), x0, xt, t)             # (B,)
    return {"loss": sum(terms.values()), **terms}


def gaussian_kl(mean1, log_variance1, mean2, log_variance2):
    """KL(first || second), how far one Gaussian is from the other, number by number, in nats (1.44 bits)."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2) ** 2 * (-log_variance2).exp())


def decoder_nll(x, mean, log_std):
    """Ho Eq. 13: -log probability of the right one of 256 grey values; the outermost two own the tails."""
    # DEVIATES from Ho Eq. 13, which is about pixels: Latte reads latents as pixels here, so we do too. The
    # tanh stands in for erf, as in the code Latte was trained with.
    def cdf(z):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))
    below, above = cdf((x - mean - 1 / 255) / log_std.exp()), cdf((x - mean + 1 / 255) / log_std.exp())
    inside = torch.where(x > 0.999, 1 - below, above - below)
    inside = torch.where(x < -0.999, above, inside)
    return -inside.clamp(min=1e-12).log()                                      # as x


if __name__ == "__main__":
    from demos.show_flow import main

    polite(main)
