"Diffusion against known answers: diffusers, torch.distributions, closed forms, and itself after being killed."
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from policydiffusion.core import NonFiniteLoss, load_tensors, save_tensors
from policydiffusion.diffusion import (GaussianOracle, NoiseSkip, Schedule, ToyDenoiser, cosine_schedule, ddim_step, ddpm_step,
                                       diffusion_loss, dpm_step, drop_condition, guided, optimiser_of, predict_x0, q_sample,
                                       sample, swiss_roll, timesteps, train_diffusion)

SCHEDULE = cosine_schedule()
COSINE = dict(num_train_timesteps=600, beta_schedule='squaredcos_cap_v2')


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def near(a, b, tol):
    assert (torch.as_tensor(a, dtype=torch.float64) - torch.as_tensor(b, dtype=torch.float64)).abs().max() < tol, (a, b)


# ---- the schedule

def test_cosine_schedule_is_the_library_s():
    theirs = DDPMScheduler(**COSINE, clip_sample=False)
    near(SCHEDULE.betas, theirs.betas, 1e-6)
    near(SCHEDULE.abar, theirs.alphas_cumprod, 1e-6)


def test_cosine_schedule_by_hand():
    s = cosine_schedule(2, s=0.)  # abar falls as cos^2: 1, 1/2, 0, and the last beta is capped
    near(s.betas, [.5, .999], 1e-12)
    near(s.abar, [.5, .5*.001], 1e-12)


def test_beta_tilde_is_the_library_s_posterior_variance():
    theirs = DDPMScheduler(**COSINE, clip_sample=False)
    for t in (1, 10, 300, 598):
        near(SCHEDULE.beta_tilde[t], theirs._get_variance(t, variance_type='fixed_small'), 1e-5)
    assert SCHEDULE.beta_tilde[0] == SCHEDULE.beta_tilde[1]


def test_schedule_too_short():
    with pytest.raises(ValueError, match='n_steps is 1: expected at least 2'):
        cosine_schedule(1)


def test_q_sample_is_the_library_s():
    x0, eps, t = torch.randn(5, 2, 3, generator=gen()), torch.randn(5, 2, 3, generator=gen(1)), torch.tensor([0, 1, 300, 598, 599])
    near(q_sample(x0, eps, SCHEDULE.abar[t]), DDPMScheduler(**COSINE).add_noise(x0, eps, t), 1e-5)


# ---- the objective

@pytest.mark.parametrize('t', [1, 7, 100, 550])
def test_a_weight_of_the_bound_is_the_divergence_of_two_gaussians(t):
    "Of the variance beta-tilde both; the means follow from the true and from a wrong noise."
    x, eps, wrong = torch.randn(3, 6, generator=gen(t)).double()
    beta, abar, low = SCHEDULE.betas[t], SCHEDULE.abar[t], SCHEDULE.beta_tilde[t]
    truth, ours = (Normal((x - beta/(1 - abar).sqrt()*e)/(1 - beta).sqrt(), low.sqrt()) for e in (eps, wrong))
    near(SCHEDULE.bound_weights[t]*(wrong - eps)**2, kl_divergence(truth, ours), 1e-6)


def test_weights_of_the_bound_by_hand():
    "Two steps: beta is .5 and .999, abar .5 and .0005, beta-tilde of the second .999*.5/.9995."
    want = .999**2/(2*(.999*.5/.9995)*.001*.9995)
    near(cosine_schedule(2, s=0.).bound_weights, [want, want], 1e-8)


class Fixed(nn.Module):
    "Says the same noise to everybody."
    def __init__(self, noise=0.):
        super().__init__()
        self.out, self.logvar = nn.Parameter(torch.tensor(noise)), nn.Parameter(torch.zeros(600))
    def forward(self, x, t, cond, given): return self.out.expand_as(x)


def draw_of(b, seed):
    "Steps and noise as the loss draws them."
    g = gen(seed)
    return torch.randint(600, (b,), generator=g), torch.randn(b, 2, generator=g)


def test_the_paper_s_loss_by_hand():
    "m/exp(l) + l + 1e-5 w m, averaged over the examples; m is the mean square of the noise for who says 0."
    t, eps = draw_of(32, 3)
    m, l = eps.square().mean(1), torch.linspace(-2, 1, 600)
    loss = diffusion_loss(Fixed(), SCHEDULE, torch.zeros(32, 2), torch.zeros(32, 0), generator=gen(3), logvar=l)
    near(loss, (m/l[t].exp() + l[t] + 1e-5*SCHEDULE.bound_weights[t]*m).mean(), 1e-5)
    plain = diffusion_loss(Fixed(), SCHEDULE, torch.zeros(32, 2), torch.zeros(32, 0), generator=gen(3), vlb_weight=0.)
    near(plain, m.mean(), 1e-6)


def test_gradients_of_the_paper_s_loss_by_hand():
    "Of l_t: (1 - m/exp(l_t))/b at the steps drawn, 0 elsewhere; into the noise: 2 (out - eps)/exp(l_t), as each step's weight says."
    t, eps = draw_of(16, 5)
    model = Fixed(.3)
    with torch.no_grad(): model.logvar.copy_(torch.linspace(-1, 1, 600))
    diffusion_loss(model, SCHEDULE, torch.zeros(16, 2), torch.zeros(16, 0), vlb_weight=0., generator=gen(5), logvar=model.logvar).backward()
    l, m = model.logvar.detach()[t], (.3 - eps).square().mean(1)
    want = torch.zeros(600).index_add(0, t, (1 - m/l.exp())/16)
    assert_close(model.logvar.grad, want)
    assert_close(model.out.grad, (2*(.3 - eps)/l.exp()[:, None]).mean())


def test_the_loss_learns_the_size_of_each_step_s_error():
    "With a rate of its own, exp(l) becomes the mean squared error; with the network's 1e-5 it stays at 1."
    x0 = torch.zeros(600, 16)
    sizes = {}
    for rate in (.1, 1e-5):
        model = Fixed(2.)  # errs by 1 + 4 at every step
        for _ in train_diffusion(model, SCHEDULE, x0, steps=150, batch_size=600, lr=1e-9, logvar_lr=rate): pass
        sizes[rate] = model.logvar.detach().exp()
    assert (sizes[.1].median() - 5).abs() < .4 and (sizes[1e-5] - 1).abs().max() < .01


def test_other_outputs_do_not_count():
    "A second half of a network's output, a variance in older files, gets no gradient."
    model = nn.Linear(1, 4)
    diffusion_loss(lambda x, t, cond, given: model(torch.ones(len(x), 1)), SCHEDULE, torch.zeros(8, 2), torch.zeros(8, 0), generator=gen()).backward()
    assert model.bias.grad[:2].abs().min() > 0 and not model.bias.grad[2:].any()


def test_sizes_have_a_learning_rate_of_their_own():
    model = Fixed()
    weights, sizes = optimiser_of(model, 1e-3, .01, 1e-2).param_groups
    assert weights['params'] == [model.out] and (weights['lr'], weights['weight_decay']) == (1e-3, .01)
    assert sizes['params'][0] is model.logvar and (sizes['lr'], sizes['weight_decay']) == (1e-2, 0.)
    assert len(optimiser_of(model, 1e-3, .01, 0.).param_groups) == 1


def test_gradients_are_clipped():
    "AdamW does not show it; the gradient that it is given does."
    model = Fixed(100.)
    for _ in train_diffusion(model, SCHEDULE, torch.zeros(4, 2), steps=1, batch_size=4, clip=.5): pass
    assert_close(model.out.grad.abs(), torch.tensor(.5))


def test_data_are_drawn_afresh_from_their_spread():
    "A model that repeats its clean input's mean sees, over an epoch, the spread that was asked for, each number its own."
    seen = []
    class Spy(Fixed):
        def forward(self, x, t, cond, given):
            seen.append(x[t < 3])  # nearly clean
            return super().forward(x, t, cond, given)
    x0, spread = torch.tensor([[5., -5.]]).expand(1000, 2), torch.tensor([[.5, 2.]]).expand(1000, 2)
    for _ in train_diffusion(Spy(), SCHEDULE, x0, steps=100, batch_size=1000, spread=spread): pass
    x = torch.cat(seen)
    near(x.mean(0), [5., -5.], .25)
    near(x.std(0)/torch.tensor([.5, 2.]), [1., 1.], .1)


def test_length_in_steps_does_not_depend_on_the_data():
    x0, place = swiss_roll(100, generator=gen())
    run = [(s.step, s.epoch) for s in train_diffusion(ToyDenoiser(cond_size=2, width=8), SCHEDULE, x0, place, steps=6, batch_size=32)]
    assert run == [(i + 1, i//4) for i in range(6)]


def test_loss_of_the_perfect_denoiser_is_the_irreducible_one():
    x0 = 3 + .5*torch.randn(100_000, 1, generator=gen())
    loss = diffusion_loss(GaussianOracle(SCHEDULE, 3., .5), SCHEDULE, x0, torch.zeros(len(x0), 0), vlb_weight=0., generator=gen(1))
    near(loss, (.25*SCHEDULE.abar/(.25*SCHEDULE.abar + 1 - SCHEDULE.abar)).mean(), .005)


def test_dropped_conditions():
    given = drop_condition(200_000, 2, .2, gen())
    near(given.all(1).float().mean(), .8**3, .01)
    near((~given).all(1).float().mean(), .2 + .8*.2**2, .01)
    assert drop_condition(100, 3, 0., gen()).all() and not drop_condition(100, 3, 1., gen()).any()


def test_training_hides_conditions_from_the_model():
    seen = []
    class Spy(ToyDenoiser):
        def forward(self, x, t, cond, given):
            seen.append(given)
            return super().forward(x, t, cond, given)
    x0, place = swiss_roll(400, generator=gen())
    list(train_diffusion(Spy(cond_size=2, width=8), SCHEDULE, x0, place, epochs=5, batch_size=100, p_drop=.5))
    near(torch.cat(seen).float().mean(), .25, .04)


# ---- samplers against the library

STEPS = (600, 100, 20)


@pytest.mark.parametrize('n', (1, 2, 8, 10, 100, 600))
def test_timesteps_are_the_library_s(n):
    theirs = DDIMScheduler(**COSINE, timestep_spacing='trailing')
    theirs.set_timesteps(n)
    assert timesteps(600, n) == theirs.timesteps.tolist()


@pytest.mark.parametrize('n', range(1, 61))
def test_timesteps_begin_at_the_last_step_and_spread(n):
    steps = timesteps(60, n)
    gaps = [a - b for a, b in zip(steps, steps[1:] + [-1])]
    assert steps[0] == 59 and len(steps) == n and min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize('n, last', [(2, 24), (3, 24), (5, 24), (10, 6), (20, 1)])
def test_timesteps_crowd_towards_clean_data(n, last):
    "The first call sees pure noise, the last one happens where it was asked for, and the gaps shrink."
    steps = timesteps(600, n, last)
    gaps = -np.diff(steps)
    assert steps[0] == 599 and abs(steps[-1] + 1 - last) <= 1 and (gaps > 0).all() and (np.diff(gaps) <= 1).all()
    assert timesteps(600, n, 600) == timesteps(600, n) and timesteps(600, 1, last) == [599]


@pytest.mark.parametrize('last', [0, 601])
def test_last_step_out_of_range(last):
    with pytest.raises(ValueError, match=f'last is {last}: expected between 1 and 600'): timesteps(600, 3, last)


def test_velocity_loss_is_the_squared_error_of_the_velocity():
    "A network that says nothing, behind the noise skip, errs by v itself: 1 on average for data of unit variance."
    x0 = torch.randn(200_000, 1, generator=gen(0))
    silent = NoiseSkip(SCHEDULE)
    model = lambda x, t, cond, given: silent(torch.zeros(len(x), 2), x, t)
    loss = diffusion_loss(model, SCHEDULE, x0, torch.zeros(len(x0), 0), vlb_weight=0., generator=gen(1), velocity=True)
    assert abs(loss - 1) < .01


@pytest.mark.parametrize('n', (0, 601))
def test_timesteps_out_of_range(n):
    with pytest.raises(ValueError, match=f'n_steps is {n}: expected between 1 and 600'):
        timesteps(600, n)


def walk(theirs, n, step, shape=(4, 3)):
    "Run a library scheduler and `step` side by side from the same noise with a nonlinear 'network'."
    theirs.set_timesteps(n)
    x = their_x = torch.randn(shape, generator=gen())
    abar = torch.cat([SCHEDULE.abar[timesteps(600, n)], torch.ones(1)])
    for i, t in enumerate(theirs.timesteps):
        noise = torch.randn(shape, generator=gen(i))
        their_x, x = step(theirs, t, their_x, x, abar[i], abar[i + 1], noise)
        scale = their_x.abs().max()  # far from data x is huge: compare relative to its size
        near(x/scale, their_x/scale, 2e-3)


@pytest.mark.parametrize('n', STEPS)
@pytest.mark.parametrize('eta', (0., .7))
def test_ddim_is_the_library_s(n, eta):
    def step(theirs, t, their_x, x, a, a_next, noise):
        return (theirs.step(their_x.tanh(), t, their_x, eta=eta, variance_noise=noise).prev_sample,
                ddim_step(x, x.tanh(), a, a_next, eta, noise))
    walk(DDIMScheduler(**COSINE, timestep_spacing='trailing', clip_sample=False), n, step)


def test_ddpm_with_learned_variance_is_the_library_s():
    def step(theirs, t, their_x, x, a, a_next, noise):
        theirs_next = theirs.step(torch.cat([their_x.tanh(), their_x.cos()], 1), t, their_x, generator=gen(1000 + int(t))).prev_sample
        noise = torch.randn(x.shape, generator=gen(1000 + int(t))) if t > 0 else torch.zeros_like(x)
        return theirs_next, ddpm_step(x, x.tanh(), x.cos(), a, a_next, noise)
    walk(DDPMScheduler(**COSINE, variance_type='learned_range', clip_sample=False), 600, step)


@pytest.mark.parametrize('n', (5, 10, 20, 100))
def test_dpm_solver_is_the_library_s(n):
    old = [None, None]
    def step(theirs, t, their_x, x, a, a_next, noise):
        x0 = predict_x0(x, x.tanh(), a)
        ours = dpm_step(x, x0, a, a_next, *old)
        old[:] = x0, a
        return theirs.step(their_x.tanh(), t, their_x).prev_sample, ours
    walk(DPMSolverMultistepScheduler(**COSINE, timestep_spacing='trailing'), n, step)


# ---- samplers against the closed form

SAMPLERS = {'ddpm': dict(sampler='ddpm', n_steps=600), 'ddim': dict(n_steps=200), 'ddim eta': dict(n_steps=600, eta=1.),
            'dpm': dict(sampler='dpm', n_steps=20), 'dpm short': dict(sampler='dpm', n_steps=14)}


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize('mean, sd', ((3., .5), (-1., 1.)))
def test_gaussian_oracle(name, mean, sd):
    x = sample(GaussianOracle(SCHEDULE, mean, sd), SCHEDULE, (4000, 2), generator=gen(), **SAMPLERS[name])
    near(x.mean(), mean, .03)
    near(x.std(), sd, .03*sd + .01)


def test_gaussian_oracle_in_pictures():
    x = sample(GaussianOracle(SCHEDULE, 3., .5), SCHEDULE, (500, 4, 2, 2), sampler='dpm', n_steps=20, generator=gen())
    assert x.shape == (500, 4, 2, 2)
    near(x.mean(), 3., .03)


def test_learned_variance_beats_the_fixed_one_in_few_steps():
    oracle = GaussianOracle(SCHEDULE, 3., .5)
    learned = sample(oracle, SCHEDULE, (20_000, 1), sampler='ddpm', n_steps=10, generator=gen()).std()
    fixed = sample(oracle, SCHEDULE, (20_000, 1), eta=1., n_steps=10, generator=gen()).std()
    assert fixed < .42 < learned < .51


def test_the_library_s_default_clip_fails_the_oracle():
    "Why clip_sample=False everywhere: with the default the answer is -1 or 1, not 3."
    oracle, theirs = GaussianOracle(SCHEDULE, 3., .5), DDIMScheduler(**COSINE, timestep_spacing='trailing')
    theirs.set_timesteps(50)
    x = torch.randn(100, 1, generator=gen())
    for t in theirs.timesteps: x = theirs.step(oracle(x, t.expand(100))[:, :1], t, x).prev_sample
    assert x.abs().max() < 1.1


# ---- sample: conditions, guidance, clip, seeds

def echo(x, t, cond, given):
    "A 'network' whose noise guess is its condition where given and 10 where not, with a variance output."
    return torch.cat([cond.where(given, 10.), torch.full_like(x, .5)], 1)


def test_guidance_by_hand():
    x, t, yes = torch.zeros(2, 1), torch.zeros(2), torch.ones(1, 2, 1, dtype=torch.bool)
    cond = torch.tensor([[[3.], [4.]]])
    for w in (0., 1., 7.5):
        eps, v = guided(echo, x, t, cond, yes, w)
        assert_close(eps, (1 + w)*cond[0] - w*10.)
        assert_close(v, torch.full((2, 1), .5))


def test_two_conditions_by_hand():
    x, t = torch.zeros(1, 1), torch.zeros(1)
    cond, yes = torch.tensor([[[3.]], [[4.]]]), torch.ones(2, 1, 1, dtype=torch.bool)
    assert_close(guided(echo, x, t, cond, yes, 1.)[0], torch.tensor([[10. + 2*((3. - 10.) + (4. - 10.))]]))
    assert_close(guided(echo, x, t, cond, yes, 0.)[0], torch.tensor([[10. + (3. - 10.) + (4. - 10.)]]))


def test_a_network_without_variance_walks_with_the_lower_bound():
    mute = lambda x, t, cond, given: echo(x, t, cond, given)[:, :1]
    x, t, yes = torch.zeros(2, 1), torch.zeros(2), torch.ones(1, 2, 1, dtype=torch.bool)
    cond = torch.tensor([[[3.], [4.]]])
    for w in (0., 2.):
        eps, v = guided(mute, x, t, cond, yes, w)
        assert_close(eps, guided(echo, x, t, cond, yes, w)[0])
        assert_close(v, torch.full((2, 1), -1.))


def test_ddpm_without_learned_variance_is_the_library_s():
    def step(theirs, t, their_x, x, a, a_next, noise):
        theirs_next = theirs.step(their_x.tanh(), t, their_x, generator=gen(1000 + int(t))).prev_sample
        noise = torch.randn(x.shape, generator=gen(1000 + int(t))) if t > 0 else torch.zeros_like(x)
        return theirs_next, ddpm_step(x, x.tanh(), -torch.ones_like(x), a, a_next, noise)
    walk(DDPMScheduler(**COSINE, variance_type='fixed_small', clip_sample=False), 600, step)


def test_guided_oracle_shifts_as_the_formula_says():
    "Two Gaussians of one width: the guided score is that of a Gaussian whose mean is (1+w) m_c - w m_u."
    class Conditional:
        def __call__(self, x, t, cond, given):
            at = lambda m: GaussianOracle(SCHEDULE, m, .5)(x, t)
            return torch.where(given, at(1.), at(0.))
    cond = torch.zeros(4000, 1)
    x = sample(Conditional(), SCHEDULE, (4000, 1), cond, 'dpm', 30, guidance=2., generator=gen())
    near(x.mean(), 3*1. - 2*0., .03)
    near(x.std(), .5, .02)


def test_given_masks_reach_the_model():
    seen = []
    def spy(x, t, cond, given):
        seen.append(given.clone())
        return torch.zeros(len(x), 2*x.shape[1])
    given = torch.tensor([[True, False]]).expand(3, 2)
    sample(spy, SCHEDULE, (3, 2), torch.rand(3, 2), n_steps=1, guidance=1., given=given)
    assert_close(seen[0], torch.cat([given, torch.zeros(3, 2, dtype=torch.bool)]))
    sample(spy, SCHEDULE, (3, 2), torch.rand(3, 2), n_steps=1)
    assert seen[1].all() and len(seen[1]) == 3  # all given, and no call is wasted without guidance


def test_clip_keeps_the_prediction_in_range():
    wild = lambda x, t, cond, given: torch.cat([-x, torch.zeros_like(x)], 1)
    for sampler in ('ddim', 'dpm', 'ddpm'):
        assert sample(wild, SCHEDULE, (50, 2), sampler=sampler, n_steps=20, clip=1.5, generator=gen()).abs().max() <= 1.5 + 1e-5
        oracle = GaussianOracle(SCHEDULE, 0., 1.)
        free, wide = (sample(oracle, SCHEDULE, (50, 2), sampler=sampler, n_steps=20, clip=c, generator=gen()) for c in (None, 1e6))
        near(free, wide, 1e-3)


@pytest.mark.parametrize('sampler', ('ddpm', 'ddim', 'dpm'))
def test_a_seed_names_a_sample(sampler):
    model = ToyDenoiser(cond_size=1, width=16)
    draw = lambda seed: sample(model, SCHEDULE, (5, 2), torch.rand(5, 1, generator=gen()), sampler, 7, eta=.5, clip=2., generator=gen(seed))
    a = draw(3)
    torch.rand(10)  # the global stream must not matter
    assert (draw(3) == a).all() and (draw(4) != a).any() and not a.requires_grad


def test_path_holds_every_step():
    model = ToyDenoiser(width=16)
    way = sample(model, SCHEDULE, (5, 2), n_steps=7, clip=2., generator=gen(), path=True)
    assert way.shape == (8, 5, 2)
    assert (way[0] == torch.randn(5, 2, generator=gen())).all()
    assert (way[-1] == sample(model, SCHEDULE, (5, 2), n_steps=7, clip=2., generator=gen())).all()


@pytest.mark.parametrize('bad, message', (
    (dict(sampler='euler'), 'expected one of ddpm, ddim, dpm'),
    (dict(n_steps=601), 'expected between 1 and 600'),
    (dict(cond=torch.zeros(4, 2)), r'cond has shape \(4, 2\).*with b = 3'),
    (dict(cond=torch.zeros(3, 2), given=torch.ones(3, 1, dtype=torch.bool)), r'given \(3, 1\)')))
def test_sample_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        sample(echo, SCHEDULE, (3, 2), **bad)


def test_noise_skip():
    "F = 0 must leave eps = sqrt(1-abar) x, and an error of F must reach x0 with weight sqrt(1-abar) only."
    skip, x = NoiseSkip(SCHEDULE), torch.randn(3, 2, generator=gen())
    t, F, v = torch.tensor([0, 300, 599]), torch.randn(3, 2, generator=gen(1)), torch.ones(3, 2)
    abar = SCHEDULE.abar[t][:, None]
    silent = skip(torch.cat([0*F, v], 1), x, t)
    near(silent[:, :2], (1 - abar).sqrt()*x, 1e-6)
    assert (silent[:, 2:] == v).all()
    x0 = predict_x0(x.double(), skip(torch.cat([F, v], 1), x, t)[:, :2].double(), abar)
    near(x0, abar.sqrt()*x - (1 - abar).sqrt()*F, 2e-3)
    assert not list(skip.parameters()) and not skip.state_dict()


# ---- training

PAPERS = dict(logvar_lr=1e-2, clip=1., ema_decay=0., spread=torch.full((100, 2), .1), steps=12, epochs=None)


class WithSizes(ToyDenoiser):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.logvar = nn.Parameter(torch.zeros(600))


def short_run(resume=None, stop=None, model=None, **how):
    x0, place = swiss_roll(100, generator=gen())
    torch.manual_seed(1 if resume is None else 2)
    settings = dict(epochs=3, batch_size=32, seed=5) | how
    for s in train_diffusion(model or WithSizes(cond_size=2, width=8), SCHEDULE, x0, place, resume=resume, **settings):
        if s.step == stop: break
    return s


@pytest.mark.parametrize('stop', (1, 4, 7, 12))  # first step, end of an epoch, mid-epoch, the very end
@pytest.mark.parametrize('how', ({}, PAPERS))
def test_killed_and_resumed_equals_straight(stop, how, tmp_path):
    straight = short_run(**how).state()
    state = short_run(stop=stop, **how).state()
    save_tensors(tmp_path/'state.safetensors', {k: x.numpy() for k, x in state.items()}, {'kind': 'training'})
    from_file, _ = load_tensors(tmp_path/'state.safetensors', kind='training')
    for resume in (state, from_file):
        resumed = short_run(resume=resume, **how).state()
        assert resumed.keys() == straight.keys()
        assert all((resumed[k] == straight[k]).all() for k in straight)


def test_training_yields_every_step():
    x0, place = swiss_roll(100, generator=gen())
    run = [(s.step, s.epoch) for s in train_diffusion(ToyDenoiser(cond_size=2, width=8), SCHEDULE, x0, place, epochs=2, batch_size=32)]
    assert run == [(i + 1, i//4) for i in range(8)]  # 100 rows make batches of 32, 32, 32 and 4


def test_same_seed_same_weights_other_seed_other_weights():
    weights = lambda seed: short_run(seed=seed).ema.module.net[0].weight
    assert (weights(5) == weights(5)).all() and (weights(5) != weights(6)).any()


def test_the_average_is_torch_s_formula():
    "w <- d w + (1-d) new, after a first step that copies."
    x0, place = swiss_roll(100, generator=gen())
    want = None
    for s in train_diffusion(ToyDenoiser(cond_size=2, width=8), SCHEDULE, x0, place, epochs=2, batch_size=32, ema_decay=.9):
        new = s.model.net[0].weight.detach().clone()
        want = new if want is None else .9*want + .1*new
    assert_close(s.ema.module.net[0].weight, want)


def test_it_learns_two_clusters_by_their_condition():
    which = torch.randint(2, (1000, 1), generator=gen()).float()
    x0 = 2*which - 1 + .1*torch.randn(1000, 2, generator=gen(1))
    torch.manual_seed(0)
    for s in train_diffusion(ToyDenoiser(cond_size=1, width=48), SCHEDULE, x0, which, epochs=40, batch_size=100, lr=5e-3, ema_decay=.98): pass
    asked = torch.tensor([[0.], [1.]]).repeat(100, 1)
    got = sample(s.ema, SCHEDULE, (200, 2), asked, 'ddim', 50, clip=2., generator=gen())
    assert (got.mean(1).sign() == (2*asked - 1)[:, 0]).float().mean() > .9  # chance is 0.5
    near(got[1::2].mean(), 1., .25)


def test_non_finite_loss_names_the_step():
    with pytest.raises(NonFiniteLoss, match=r'at step \d+ \(epoch \d+\)'):
        short_run(lr=1e30)


@pytest.mark.parametrize('x0, cond, message', (
    (torch.full((10, 2), math.nan), None, 'not finite'),
    (torch.zeros(10, 2), torch.full((10, 2), math.inf), 'not finite'),
    (torch.zeros(10, 2), torch.zeros(9, 2), 'cond has 9 rows: expected 10')))
def test_training_refuses_bad_data(x0, cond, message):
    with pytest.raises(ValueError, match=message):
        next(train_diffusion(ToyDenoiser(cond_size=2), SCHEDULE, x0, cond))


def test_resume_refuses_another_run_or_network():
    state = short_run(stop=4).state()
    with pytest.raises(ValueError, match=r'\(5, 32, 100\): expected \(6, 32, 100\)'):
        short_run(resume=state, seed=6)
    with pytest.raises(ValueError, match='another network'):
        short_run(resume=state, model=ToyDenoiser(cond_size=2, width=9))
    with pytest.raises(ValueError, match='no state of a random generator'):
        short_run(resume={**state, 'rng': state['rng']*0})


def test_swiss_roll_lies_where_it_says():
    x, place = swiss_roll(500, width=2., generator=gen())
    angle = 1.5*math.pi*(1 + 8*place[:, 0]).sqrt()
    near(x.norm(dim=1)*7.5, angle + 2*(place[:, 1] - .5), 1e-4)
    assert isinstance(SCHEDULE, Schedule) and .8 < x.std() < 1.1
