"""Tests of flow.py: sentences of VideoDiT A.2, SD3 3.1, Latte 3.1 and the papers it stands on."""

import json
import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

import flow
from demos import show_flow
from support import order
from support.cli import UserError
from flow import DDPM, along

GOLDEN = Path(os.environ.get("GOLDEN_DIR", "tests/golden"))
SD3_LEVELS = """1.0 .9874 .9741 .9601 .9454 .9298 .9133 .8959 .8774 .8577 .8367 .8143 .7904 .7647 .7371 .7073
    .6751 .6402 .6022 .5606 .5151 .4649 .4093 .3474 .2780 .1998 .1109 .0089 0."""          # 28 steps, shift 3


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------ randomness that replays

def test_noise_of_a_clip_does_not_depend_on_how_the_batch_is_split():
    """Two ranks with half the batch each draw what one rank draws."""
    whole = order.keyed_noise((4, 3, 2), seed=5, step=7)
    halves = [order.keyed_noise((2, 3, 2), seed=5, step=7, first_index=i) for i in (0, 2)]
    assert torch.equal(whole, torch.cat(halves))


def test_noise_does_not_depend_on_the_global_generator():
    """A resumed run has drawn less before; its noise must be the same."""
    torch.manual_seed(1)
    first = order.keyed_noise((2, 50), seed=5, step=7)
    torch.randn(13)
    state = torch.get_rng_state()
    assert torch.equal(first, order.keyed_noise((2, 50), seed=5, step=7))
    assert torch.equal(state, torch.get_rng_state())


def test_every_part_of_the_key_changes_the_noise():
    """Seed, step, clip and stream: five unrelated draws, each standard normal."""
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    draws = torch.stack([order.keyed_noise((1, 4000), a, b, c, stream=d)[0] for a, b, c, d in keys])
    assert_close(torch.cov(draws), torch.eye(5), atol=0.08, rtol=0)


def test_keyed_draws_may_be_one_uniform_number_a_clip():
    """Prompt dropout and DDPM's times need them."""
    u = order.keyed_noise((4000,), seed=0, step=0, stream=order.DROP, draw=torch.rand)
    assert u.shape == (4000,) and u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.02
    t = DDPM().sample_times(u)
    assert t.dtype == torch.long and t.min() >= 0 and t.max() <= 999 and len(t.unique()) > 900


# -------------------------------------------------------------------------------------------- rectified flow


def test_a_mixture_is_a_point_on_the_line_from_noise_to_data():
    """VideoDiT Eq. 5 longhand, clip by clip: noise at t=0, data at t=1; each has its own time."""
    x0, x1, t = randn(3, 2, 4), randn(3, 2, 4, seed=1), torch.tensor([0.0, 0.3, 1.0])
    x = flow.interpolate(x0, x1, t)
    for i in range(3):
        assert_close(x[i], (1 - t[i]) * x0[i] + t[i] * x1[i])


def test_euler_lands_exactly_on_a_one_point_dataset():
    """v = (p - x)/(1 - t) is exact, so any number of steps and any shift give p."""
    point = randn(1, 3, 2, 4, 4, seed=3)
    velocity = lambda x, t: (point - x) / along(1 - t, x)
    for steps, shift in ((1, 1.0), (2, 3.0), (28, 3.0), (50, 1.0)):
        x = flow.euler(velocity, randn(2, 3, 2, 4, 4), flow.sigmas(steps, shift))
        assert_close(x, point.expand_as(x), atol=1e-5, rtol=0)


def gaussian_oracle(covariance):
    """The exact velocity for data N(0, covariance), E[X_1 - X_0 | X_t] of jointly Gaussian variables."""
    def velocity(x, t):
        t, one = t[0], torch.eye(len(covariance))                              # all clips at one time
        mixture = (1 - t) ** 2 * one + t ** 2 * covariance                     # (D,D) covariance of X_t
        return x @ torch.linalg.solve(mixture, t * covariance - (1 - t) * one)                     # (B,D)
    return velocity


def test_the_average_velocity_carries_noise_onto_data():
    """For data N(0, s^2) the flow is known in closed form: the point x of the noise ends at s x."""
    for s in (0.2, 3.0):
        velocity, noise = gaussian_oracle(torch.tensor([[s ** 2]])), randn(200, 1)
        assert_close(flow.euler(velocity, noise, flow.sigmas(500, 1.0)), s * noise, atol=0.02, rtol=0.02)


def test_paths_do_not_cross():
    """The lines of training do; but from one place there is one way on: on a line their order stays."""
    velocity, noise = show_flow.oracle(torch.tensor([[-1.0], [0.5], [1.0]])), randn(300, 1).sort(0).values
    path, levels = [noise], flow.sigmas(100, 1.0)
    for i in range(99):                                                        # all steps but the last
        path.append(flow.euler(velocity, path[-1], levels[i:i + 2]))
    path = torch.cat(path, 1)                                                  # (300,100)
    assert (path.diff(dim=0) >= 0).all()


def test_euler_tells_the_model_the_time():
    """t = 1 - sigma for every clip, from 0 up; x is float32 whatever the model answers in."""
    times, dtypes = [], []
    def velocity(x, t):
        times.append(t)
        dtypes.append(x.dtype)
        return torch.zeros_like(x, dtype=torch.bfloat16)
    x = flow.euler(velocity, randn(2, 3).bfloat16(), flow.sigmas(4))
    assert_close(torch.stack(times), (1 - flow.sigmas(4)[:-1])[:, None].expand(4, 2))
    assert {*dtypes, x.dtype} == {torch.float32}


def test_the_schedule_is_sd3s_table():
    """SD3's released sampler: 28 steps with shift 3, shifted twice; the last level is 0.0089."""
    expected = torch.tensor([float(level) for level in SD3_LEVELS.split()])
    assert_close(flow.sigmas(28, 3.0), expected, atol=6e-5, rtol=0)
    assert flow.sigmas(28).dtype == torch.float32


def test_a_shift_keeps_the_question_as_hard_for_more_pixels():
    """SD3 Eq. 23: the colour of a flat image is known to sigma / (1-sigma) / sqrt(pixels); 4 times the
    pixels and shift sqrt(4) leave that where it was, and nothing else does."""
    sigma = torch.linspace(0.05, 0.95, 10)
    known_to = lambda sigma, pixels: sigma / (1 - sigma) / math.sqrt(pixels)
    assert_close(known_to(flow.shift_sigma(sigma, 2.0), 4 * 64 * 64), known_to(sigma, 64 * 64))


def test_flow_loss_is_the_mean_squared_velocity_error_in_float32():
    """Eq. 5's target X_1 - X_0; a model that answers 0 loses the mean square of it, in bfloat16 too."""
    x1, noise, t = randn(3, 2, 5), randn(3, 2, 5, seed=1), torch.tensor([0.2, 0.5, 0.7])
    zero = lambda x, t: torch.zeros_like(x, dtype=torch.bfloat16)
    loss = flow.flow_loss(zero, x1, {}, t=t, noise=noise)
    assert loss.dtype == torch.float32
    assert_close(loss, (x1 - noise).square().mean())
    perfect = lambda x, t: x1 - noise
    assert flow.flow_loss(perfect, x1, {}, t=t, noise=noise) == 0


def test_flow_loss_shows_the_model_the_point_on_the_line_and_its_conditions():
    """The model is called as model(x_t, t, **cond)."""
    x1, noise, t, context = randn(2, 4), randn(2, 4, seed=1), torch.tensor([0.2, 0.9]), randn(2, 3, seed=2)
    def model(x, time, context):
        assert_close(x, flow.interpolate(noise, x1, t))
        assert torch.equal(time, t)
        return x * context.mean()
    assert flow.flow_loss(model, x1, {"context": context}, t=t, noise=noise) > 0


def test_dropped_prompts_are_zero_and_the_others_untouched():
    """Guidance's null prompt: zeros at full length, where the mask says so; not even a NaN gets through."""
    context, pooled, drop = randn(3, 5, 4), randn(3, 6), torch.tensor([True, False, True])
    context[0] = math.nan
    got_context, got_pooled = flow.drop_prompt(context, pooled, drop)
    assert torch.equal(got_context[1], context[1]) and torch.equal(got_pooled[1], pooled[1])
    assert not got_context[drop].any() and not got_pooled[drop].any()
    assert flow.drop_prompt(context, None, drop)[1] is None


def test_dropped_labels_are_the_number_after_the_last_class():
    """Clips of (B,), and (B,G) where images ride along: each label by its own toss."""
    labels, drop = torch.tensor([[3, 1], [0, 2]]), torch.tensor([[True, False], [False, True]])
    assert flow.drop_labels(labels, drop, 101).tolist() == [[101, 1], [0, 101]]
    assert flow.drop_labels(labels[:, 0], drop[:, 0], 101).tolist() == [101, 0]


def test_sampling_guides_away_from_the_null_prompt_of_training():
    """drop_prompt and guided must agree on what no prompt is."""
    seen = []
    model = lambda x, t, context, pooled: seen.append((context, pooled)) or x
    cond = {"context": randn(2, 5, 4), "pooled": randn(2, 6)}
    flow.guided(model, cond, 3.0)(randn(2, 3), torch.ones(2))
    null = flow.drop_prompt(cond["context"], cond["pooled"], torch.ones(2, dtype=torch.bool))
    assert torch.equal(seen[0][0], torch.cat([null[0], cond["context"]]))
    assert torch.equal(seen[0][1], torch.cat([null[1], cond["pooled"]]))


def test_guidance_is_the_null_answer_plus_scale_times_the_difference():
    """v = v_null + s (v_cond - v_null), for zeros and for a given null condition."""
    model = lambda x, t, c: x * along(c, x) + along(t, x)
    x, t, c, null = randn(2, 3), torch.tensor([0.1, 0.6]), torch.tensor([2.0, 3.0]), torch.tensor([7.0, 7.0])
    for given, used in ((None, torch.zeros(2)), ({"c": null}, null)):
        v_null, v_cond = model(x, t, used), model(x, t, c)
        assert_close(flow.guided(model, {"c": c}, 4.5, given)(x, t), v_null + 4.5 * (v_cond - v_null))


def test_scale_one_is_one_forward_of_the_conditional_model():
    """No guidance, no second batch."""
    batches = []
    model = lambda x, t, c: batches.append(len(x)) or x * along(c, x)
    x, t, c = randn(2, 3), torch.zeros(2), torch.tensor([2.0, 3.0])
    assert_close(flow.guided(model, {"c": c}, 1.0)(x, t), x * c[:, None])
    flow.guided(model, {"c": c}, 2.0)(x, t)
    assert batches == [2, 4]


# ------------------------------------------------------------------------------------- a part that is known

FIRST = torch.tensor([True, False]).view(1, 1, 2, 1, 1)       # of two frames the first is given


def two_frames(values):
    """(B,2) -> (B,1,2,1,1): clips of two frames of one pixel."""
    return values.view(-1, 1, 2, 1, 1)


def gaussian_velocity(covariance):
    """gaussian_oracle for clips of two frames."""
    return lambda x, t: two_frames(gaussian_oracle(covariance)(x.flatten(1), t))


def points_velocity(points):
    """show_flow.oracle for clips of two frames."""
    return lambda x, t: two_frames(show_flow.oracle(points)(x.flatten(1), t))


def points_eps(ddpm, points):
    """The exact eps for a data set of points: E[x_0 | x_t] by Bayes' rule, Ho Eq. 4 solved for eps."""
    def predict(x, t):
        alpha_bar = ddpm.alpha_bar[ddpm.timesteps == t[0]].float()
        away = (x.flatten(1)[:, None] - alpha_bar.sqrt() * points).square().sum(-1)           # (B,points)
        x0 = (-0.5 * away / (1 - alpha_bar)).softmax(1) @ points
        eps = two_frames((x.flatten(1) - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt())
        return torch.cat([eps, torch.zeros_like(eps)], 1)
    return predict


def given_first(velocity, known, noise, steps):
    """flow.euler with something known, as sample.py does it."""
    model = flow.held(velocity, known, lambda t: flow.interpolate(noise, known.latent, t))
    return known.hold(flow.euler(model, noise, flow.sigmas(steps, 1.0)), known.latent)


def test_what_is_known_stands_at_its_noise_level_at_every_step():
    """Eq. 5: the model sees (1-t) noise + t z there, and the result holds z to the last bit."""
    noise, z, seen = randn(3, 2, 4, 2, 2), randn(3, 2, 4, 2, 2, seed=1), []
    mask = torch.zeros(3, 1, 4, 1, 1, dtype=torch.bool)
    mask[:, :, 0], mask[1, :, 3] = True, True                        # each clip of a batch has its own mask
    velocity = lambda x, t: seen.append((x, t)) or 0.3 * x
    x = given_first(velocity, flow.Known(z, mask), noise, 5)
    everywhere = mask.expand_as(x)
    for shown, t in seen:
        assert_close(shown[everywhere], flow.interpolate(noise, z, t)[everywhere])
    assert torch.equal(x[everywhere], z[everywhere]) and (x - z)[~everywhere].abs().min() > 0


def test_nothing_known_changes_nothing():
    """A mask of False changes no bit, nor does anything unknown, a NaN even, get through."""
    noise, velocity = randn(2, 1, 2, 1, 1), gaussian_velocity(torch.eye(2))
    nothing = flow.Known(torch.full((2, 1, 2, 1, 1), math.nan), torch.zeros_like(FIRST))
    plain = flow.euler(velocity, noise, flow.sigmas(6, 1.0))
    assert torch.equal(given_first(velocity, nothing, noise, 6), plain)


@pytest.mark.parametrize("sampler", ["euler", "ddpm", "ddim"])
def test_the_unknown_frame_follows_the_known_one(sampler):
    """Data (-1,1) and (1,-1), first frame 1: the second is -1, in 8 of 10 clips by holding the first; hardly
    ever anything that is no data."""
    points, noise = torch.tensor([[-1.0, 1], [1, -1]]), randn(1000, 1, 2, 1, 1)
    known = flow.Known(torch.ones(1, 1, 2, 1, 1), FIRST)
    if sampler == "euler":
        x = given_first(points_velocity(points), known, noise, 28)
    else:
        ddpm = DDPM().respace("50")
        step = {"ddpm": ddpm.ancestral_step, "ddim": ddpm.ddim_step}[sampler]
        model = flow.held(points_eps(ddpm, points), known,
                          lambda t: ddpm.q_sample(known.latent, ddpm.index(t), noise))
        x = flow.ddpm_sample(step, ddpm, model, noise, ddpm.times(), lambda n: randn(1000, 1, 2, 1, 1, seed=n + 1))
    second = x[:, 0, 1, 0, 0]
    assert ((second.abs() - 1).abs() < 0.1).float().mean() > 0.995
    assert 0.75 < (second < 0).float().mean() < 0.95


def test_holding_alone_goes_half_the_way_and_pulling_nearly_the_rest():
    """Two frames N(0,1) that correlate by 0.9, the first is 1.5: the second is N(1.35, 0.44^2), exactly."""
    velocity = gaussian_velocity(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    noise = randn(2000, 1, 2, 1, 1)
    known = flow.Known(torch.full((1, 1, 2, 1, 1), 1.5), FIRST)
    held = given_first(velocity, known, noise, 28)[:, 0, 1]
    pulled = given_first(flow.pulled(velocity, known), known, noise, 28)[:, 0, 1]
    assert 0.6 < held.mean() < 0.72 and held.std() > 0.65
    assert 1.2 < pulled.mean() < 1.35 and abs(pulled.std() - 0.436) < 0.05


# ------------------------------------------------------------------------------------- rectified flow, golden

@pytest.fixture(scope="module")
def sd3():
    return json.loads((GOLDEN / "flow_sd3.json").read_text())


def shaped(values, sd3):
    return torch.tensor(values).view(sd3["toy"]["shape"])


def toy_network(x, clock, c):
    """The fixture's toy velocity, in SD3's convention."""
    sigma, c = along(clock / 1000, x), along(c, x)
    return 0.7 * x * (1 - 0.3 * c) + sigma * torch.sin(2 * x + c)


def test_golden_schedules_of_both_references(sd3):
    """sd3-ref and diffusers, 5 to 50 steps, with and without shift."""
    for run in sd3["schedules"]:
        levels = flow.sigmas(run["steps"], run["shift"])
        assert_close(levels, torch.tensor(run["sigmas_sd3ref"]), atol=1e-6, rtol=0)
        assert_close(levels, torch.tensor(run["sigmas_diffusers"]), atol=1e-6, rtol=0)
        assert_close(1000 * levels[:-1], torch.tensor(run["timesteps_diffusers"]), atol=1e-3, rtol=0)
        assert levels[0] == run["sigma_max"]
        assert flow.shift_sigma(0.001, run["shift"]) == pytest.approx(run["sigma_min"], abs=1e-6)


def test_golden_euler_trajectories_with_guidance(sd3):
    """The whole loop: start (also in the middle, from a latent), first step, end."""
    for run in sd3["toy"]["runs"]:
        levels = flow.sigmas(run["steps"], run["shift"])[int(run["steps"] * (1 - run["denoise"])):]
        assert_close(levels, torch.tensor(run["sigmas"]), atol=1e-6, rtol=0)
        x, latent = shaped(sd3["toy"]["x_init"], sd3), shaped(sd3["toy"]["latent"], sd3)
        velocity = flow.guided(flow.velocity_of(toy_network), {"c": torch.ones(len(x))}, run["cfg"])
        start = flow.interpolate(x, latent, 1 - levels[:1]) if run["denoise"] < 1 else x
        final = flow.euler(velocity, start, levels)
        got = {"start": start, "first_step": flow.euler(velocity, start, levels[:2]), "final": final,
               "final_diffusers": final}
        for name in got.keys() & run.keys():
            assert_close(got[name], shaped(run[name], sd3), atol=1.5e-5, rtol=0)


def test_golden_interpolation_and_target(sd3):
    """x_sigma = (1-sigma) x0 + sigma noise; SD3's target is minus ours."""
    case = sd3["training"]["interpolation"]
    data, noise = torch.tensor(case["x0"])[None], torch.tensor(case["noise"])[None]
    x = flow.interpolate(noise, data, torch.tensor([1 - case["sigma"]]))
    assert_close(x[0], torch.tensor(case["x_sigma"]), atol=1e-6, rtol=0)
    target = torch.tensor(case["target"])[None]
    model = flow.velocity_of(lambda x, t: target)
    assert flow.flow_loss(model, data, {}, t=torch.tensor([1 - case["sigma"]]), noise=noise) < 1e-12


def test_golden_density_and_shift_of_training_times(sd3):
    """Logit-normal and shifted times."""
    case, bell = sd3["training"], sd3["training"]["logit_normal"]
    u = torch.tensor(case["normal_draws"])
    t = flow.sample_times(u, mean=bell["mean"], std=bell["std"])
    assert_close(1 - t, torch.tensor(bell["u"]), atol=1e-6, rtol=0)
    shifted = flow.shift_sigma(torch.tensor(case["timestep_shift"]["u"]), case["timestep_shift"]["shift"])
    assert_close(shifted, torch.tensor(case["timestep_shift"]["sigma"]), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------------ DDPM


def test_learned_variance_lies_between_the_two_fixed_ones():
    """Nichol Eq. 15: v=-1 is the posterior's variance, v=1 is beta, 0 the geometric mean."""
    t, xt = torch.tensor([0, 3, 999]), randn(3, 2, 4)
    ddpm, large = DDPM(), DDPM(variance="fixed_large").log_variance(xt, xt, t)
    small = ddpm.at(ddpm.posterior_log_variance, t, xt).expand_as(xt)
    for v, expected in ((-1.0, small), (1.0, ddpm.at(ddpm.beta.log(), t, xt).expand_as(xt))):
        assert_close(ddpm.log_variance(torch.cat([xt, torch.full_like(xt, v)], 1), xt, t), expected)
    assert_close(large[1:], ddpm.at(ddpm.beta.log(), t, xt).expand_as(xt)[1:])
    assert_close(large[0], small[0])


def point_oracle(ddpm, point, v=-1.0):
    """The exact eps for a data set of one point, with the variance channels v."""
    def predict(x, t):
        index = torch.stack([(ddpm.timesteps == one).nonzero()[0, 0] for one in t])
        signal, noisy = (ddpm.at(table, index, x) for table in (ddpm.alpha_bar.sqrt(),
                                                                (1 - ddpm.alpha_bar).sqrt()))
        return torch.cat([(x - signal * point) / noisy, torch.full_like(x, v)], 1)
    return predict


@pytest.mark.parametrize("spacing", ["1", "8", "50", "ddim25"])
def test_samplers_land_on_a_one_point_dataset(spacing):
    """With the true eps every step knows the data: ancestral sampling and DDIM, any eta, any spacing."""
    ddpm, point = DDPM().respace(spacing), randn(1, 3, 2, 4, 4, seed=3).clamp(-1, 1)
    noise, predict = randn(2, 3, 2, 4, 4), point_oracle(ddpm, point)
    new_noise = lambda n: randn(2, 3, 2, 4, 4, seed=n + 1)
    for step in (ddpm.ancestral_step, ddpm.ddim_step, partial(ddpm.ddim_step, eta=0.5)):
        x = flow.ddpm_sample(step, ddpm, predict, noise, ddpm.times(), new_noise)
        assert_close(x, point.expand_as(x), atol=1e-3, rtol=0)


def test_the_loss_trains_eps_with_mse_only_and_the_variance_with_vlb_only():
    """Nichol 3.1: a stop-gradient keeps L_vlb away from the mean."""
    ddpm, t, x0, noise = DDPM(), torch.tensor([3, 500]), randn(2, 3, 4), randn(2, 3, 4, seed=1)
    def gradient(term):
        output = randn(2, 6, 4, seed=2).requires_grad_()
        terms = flow.ddpm_terms(ddpm, lambda x, t: output, x0, {}, t=t, noise=noise)
        return torch.autograd.grad(terms[term].sum(), output)[0]
    assert gradient("mse")[:, :3].any() and not gradient("mse")[:, 3:].any()
    assert gradient("vb")[:, 3:].any() and not gradient("vb")[:, :3].any()
    assert_close(gradient("loss"), gradient("mse") + gradient("vb"))


def test_the_decoder_is_a_distribution_over_256_grey_values():
    """Ho Eq. 13: the probabilities of all grey values sum to 1; a sharp Gaussian is sure of the right one."""
    grey = torch.arange(256) / 127.5 - 1
    for mean, std in ((0.0, 0.05), (0.9, 0.3), (-1.0, 0.01)):
        nll = flow.decoder_nll(grey, torch.tensor(mean), torch.tensor(std).log())
        assert_close(nll.neg().exp().sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert flow.decoder_nll(grey, grey, torch.tensor(1e-4).log()).max() < 1e-4


def test_respacing_keeps_the_noise_levels():
    """Nichol 4: betas are recomputed so that alpha_bar at the kept steps stays what it was."""
    ddpm, short = DDPM(), DDPM().respace("50")
    assert_close(short.alpha_bar, ddpm.alpha_bar[short.timesteps], rtol=1e-12, atol=0)
    for wrong in ("ddim300", "1001", "0"):
        with pytest.raises(UserError):
            ddpm.respace(wrong)


# ----------------------------------------------------------------------------------------------- DDPM, golden

@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN / "ddpm.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return {**tensors, "config": json.loads(file.metadata()["config"])}


def inputs(golden, prefix=""):
    """x_start, model_output, t, noise and step_noise; a video becomes (B,C,F,H,W), channels second."""
    names = ("x_start", "model_output", "t", "noise", "step_noise")
    values = [golden[f"in.{prefix}{name}"] for name in names]
    return [v.transpose(1, 2) if v.ndim == 5 else v for v in values]


def check(golden, **outputs):
    """1e-5 of the README; rtol is float32's rounding, for the values near 1000."""
    for name, value in outputs.items():
        expected = golden["out." + name.replace("__", ".")]
        assert_close(value, expected, atol=1.5e-5, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def toy_model(x, t):
    """The fixture's toy, 2C outputs."""
    eps = 0.8 * x * torch.cos(along(t.float(), x) / 1000) + 0.05 * torch.sin(3 * x)
    return torch.cat([eps, 0.5 * torch.tanh(x) - 0.1], 1)


def test_golden_schedule(golden):
    """Linear betas and everything derived from them, in float64."""
    ddpm = DDPM()
    tables = {"betas": ddpm.beta, "alphas_cumprod": ddpm.alpha_bar, "posterior_mean_coef1": ddpm.posterior_x0,
              "posterior_mean_coef2": ddpm.posterior_xt, "posterior_variance": ddpm.posterior_variance,
              "posterior_log_variance_clipped": ddpm.posterior_log_variance}
    for name, table in tables.items():
        assert_close(table, golden[f"out.schedule.{name}"], rtol=1e-12, atol=1e-18)


def test_golden_respacing(golden):
    """Which steps are kept, and their betas."""
    for spacing, kept in golden["config"]["respacing"].items():
        short = DDPM().respace(spacing)
        assert short.timesteps.tolist() == kept
        assert_close(short.beta, golden[f"out.respaced_{spacing}.betas"], rtol=1e-12, atol=0)


def test_golden_forward_process(golden):
    """x_t and the posterior."""
    x0, _, t, noise, _ = inputs(golden)
    ddpm = DDPM()
    xt = ddpm.q_sample(x0, t, noise)
    mean, log_variance = ddpm.posterior(x0, xt, t)
    check(golden, x_t=xt, q_posterior_mean=mean, q_posterior_log_variance=log_variance)


def test_golden_learned_range_steps(golden):
    """The model's Gaussian, its bits, and one step of each sampler, unclipped as Latte samples."""
    x0, output, t, noise, step_noise = inputs(golden)
    ddpm = DDPM()
    xt = ddpm.q_sample(x0, t, noise)
    mean, log_variance, guess = ddpm.p_mean_variance(output, xt, t)
    check(golden, pmv_noclip__mean=mean, pmv_noclip__log_variance=log_variance, pmv_noclip__pred_xstart=guess,
          vb_bpd_noclip=ddpm.vlb_bits(output, x0, xt, t),
          p_sample_noclip=ddpm.ancestral_step(output, xt, t, step_noise),
          ddim_noclip_eta0__0=ddpm.ddim_step(output, xt, t, step_noise, 0.0),
          ddim_noclip_eta0__5=ddpm.ddim_step(output, xt, t, step_noise, 0.5))


def test_golden_fixed_variance(golden):
    """A network without variance channels: its Gaussian's variance, and L_simple alone."""
    x0, output, t, noise, _ = inputs(golden)
    ddpm = DDPM(variance="fixed_large")
    _, log_variance, _ = ddpm.p_mean_variance(output, ddpm.q_sample(x0, t, noise), t)
    loss = flow.ddpm_terms(ddpm, lambda x, t: output, x0, {}, t=t, noise=noise)["loss"]
    check(golden, pmv_fixedlarge__log_variance=log_variance, train_fixedlarge__loss=loss)


def test_golden_training_losses(golden):
    """loss = mse + vb. The published rescaled_mse multiplies vb by T/1000, which is 1: the same numbers."""
    x0, output, t, noise, _ = inputs(golden)
    terms = flow.ddpm_terms(DDPM(), lambda x, t: output, x0, {}, t=t, noise=noise)
    for name in ("train", "train_rescaled_mse"):
        check(golden, **{f"{name}__{key}": value for key, value in terms.items()})


def test_golden_sampling_loops(golden):
    """Respaced loops, unclipped, every step's sample; the same noises replayed."""
    ddpm, noises = DDPM().respace(golden["config"]["loop_respacing"]), golden["in.loop_noise"]
    times, asked = [], golden["config"]["loop_model_timesteps"]
    predict = lambda x, t: times.append(t[0].item()) or toy_model(x, t)
    for name, way in (("loop_ddpm", ddpm.ancestral_step), ("loop_ddim", ddpm.ddim_step)):
        path = [golden["in.loop_x_T"]]
        for n, step in enumerate(ddpm.times()):
            path.append(flow.ddpm_sample(way, ddpm, predict, path[-1], [step], lambda _: noises[n]))
        check(golden, **{name: torch.stack(path[1:])})
    assert times == asked


def test_golden_video(golden):
    """Latte's layout (B,F,C,H,W): the same formulas once channels come second."""
    x0, output, t, noise, step_noise = inputs(golden, "video_")
    ddpm = DDPM()
    xt = ddpm.q_sample(x0, t, noise)
    terms = flow.ddpm_terms(ddpm, lambda x, t: output, x0, {}, t=t, noise=noise)
    check(golden, video_p_sample=ddpm.ancestral_step(output, xt, t, step_noise).transpose(1, 2),
          video_ddim=ddpm.ddim_step(output, xt, t, step_noise).transpose(1, 2),
          **{f"video_train__{name}": value for name, value in terms.items()})
