"Several conditions at once, against Gaussians whose product is known."
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from policydiffusion.core import DATA
from policydiffusion.diffusion import cosine_schedule
from policydiffusion.generator import DECODERS, DENOISERS, Design, Generator, Sampling
from policydiffusion.policy import PolicySpec

SPEC = PolicySpec(3, 2, (4,))
PRIOR, WISH = 1., .5  # s.d. of a coordinate nobody asked for, and of one that somebody asked for
ASKED = np.float32([[.2, .9], [.7, .4]])
ONE, OTHER = np.array([[True, False]]*2), np.array([[False, True]]*2)


class Listens(nn.Module):
    "The perfect denoiser of data N(0, PRIOR^2), of which condition k, where given, makes coordinate place[k] N(condition, WISH^2)."
    def __init__(self, latent_shape, cond_size, n_steps, place):
        super().__init__()
        self.abar, self.place = cosine_schedule(n_steps).abar, torch.eye(*latent_shape)[list(place)]

    def forward(self, x, t, cond, given):
        a, asked = self.abar[t].float()[:, None], given.float()@self.place > 0
        mean, var = cond.where(given, 0)@self.place, torch.where(asked, WISH**2, PRIOR**2)
        return torch.cat([(1 - a).sqrt()*(x - a.sqrt()*mean)/(a*var + 1 - a), torch.zeros_like(x)], 1)


class Repeats(nn.Module):
    def __init__(self, spec, latent_shape):
        super().__init__()

    def decode(self, z): return z.repeat(1, SPEC.n_params//z.shape[1])


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.setitem(DENOISERS, 'listens', Listens)
    monkeypatch.setitem(DECODERS, 'repeats', Repeats)
    return lambda place=(0, 1), **sampling: Generator('walker2d', SPEC, Design(2, (2,), {'name': 'repeats'}, {'name': 'listens', 'place': place}),
                                                      sampling=Sampling(**{'n_steps': 200, **sampling}))


@pytest.fixture
def network(monkeypatch):
    "A real network, untrained, that reads its condition."
    monkeypatch.setitem(DECODERS, 'repeats', Repeats)
    torch.manual_seed(0)
    g = Generator('walker2d', SPEC, Design(2, (2,), {'name': 'repeats'}, {'name': 'residual', 'width': 16, 'n_blocks': 1}), sampling=Sampling(n_steps=6, clip=3.))
    nn.init.normal_(g.denoiser.output_projection[-1].weight, std=.3)
    return g


# ---- conditions that have nothing to do with each other: the formula is exact

@pytest.mark.parametrize('w', [0., 2.])
def test_the_product_of_two_halves_is_the_whole(oracle, w):
    g = oracle(guidance=w)
    product = g.draw_latents(ASKED, n=50, seed=3, given=ONE, also=((ASKED, OTHER),))
    np.testing.assert_allclose(product, g.draw_latents(ASKED, n=50, seed=3), atol=1e-4)


def test_each_coordinate_has_the_mean_and_the_spread_asked_for(oracle):
    z = oracle().draw_latents(ASKED, n=4000, seed=1, given=ONE, also=((ASKED, OTHER),)).unflatten(0, (2, -1))
    np.testing.assert_allclose(z.mean(1), ASKED, atol=.03)
    np.testing.assert_allclose(z.std(1), WISH, atol=.02)


def test_a_free_coordinate_keeps_the_spread_of_the_prior(oracle):
    z = oracle().draw_latents(ASKED, n=4000, seed=1, given=ONE).unflatten(0, (2, -1))
    np.testing.assert_allclose(z.std(1), [[WISH, PRIOR]]*2, atol=.04)


# ---- two conditions about one coordinate: what the sampler's flow makes of them, and how far that is from Bayes' rule

def flow(wishes):
    "Mean and s.d. at the end of dy/ds = s sum_i (y - m_i)/(WISH^2 + s^2) - s (n-1) y/(PRIOR^2 + s^2), s the noise, y(s) ~ N(0, s^2) far out."
    n = len(wishes)
    width = lambda s: ((WISH**2 + s**2)**n/(PRIOR**2 + s**2)**(n - 1))**.5  # solves it without the conditions
    pull = lambda s: s*sum(wishes)/(WISH**2 + s**2)/width(s)
    return width(0)*quad(pull, 0, np.inf)[0], width(0)


def bayes(wishes):
    "Mean and s.d. of the product of the conditions' Gaussians over the prior's."
    precision = len(wishes)/WISH**2 - (len(wishes) - 1)/PRIOR**2
    return sum(wishes)/WISH**2/precision, precision**-.5


@pytest.mark.parametrize('wishes', [(.6,), (.2, .9), (.7, .7), (.1, .4, .9)])
def test_two_wishes_about_one_thing_follow_the_closed_form(oracle, wishes):
    ask = lambda m: (np.float32([[m, 0]]), ONE[:1])
    g = oracle(place=(0, 0))
    (asked, given), *more = map(ask, wishes)
    z = g.draw_latents(asked, n=8000, seed=2, given=given, also=tuple(more))[:, 0]
    mean, sd = flow(wishes)
    np.testing.assert_allclose([z.mean(), z.std()], [mean, sd], atol=.02)


def test_the_product_is_narrower_than_bayes_rule_says():
    "Scores of noisy data do not add up as those of clean data do; with one condition there is nothing to add."
    np.testing.assert_allclose(flow((.6,)), bayes((.6,)), rtol=1e-6)
    assert flow((.2, .9))[1] == pytest.approx(WISH**2/PRIOR) and flow((.2, .9))[1] < .7*bayes((.2, .9))[1]


# ---- any network

def test_nothing_else_is_the_plain_request(network):
    for given in (None, ONE):
        np.testing.assert_array_equal(network.generate(ASKED, n=3, seed=5, given=given, also=()).params, network.generate(ASKED, n=3, seed=5, given=given).params)


def test_saying_it_twice_is_guidance_of_one(network):
    twice = network.draw_latents(ASKED, n=3, seed=5, also=((ASKED, None),))
    network.sampling = replace(network.sampling, guidance=1.)
    np.testing.assert_allclose(twice, network.draw_latents(ASKED, n=3, seed=5), atol=1e-5)


def test_a_wish_for_nothing_changes_nothing(network):
    free = np.full_like(ASKED, np.nan), np.zeros_like(ONE)
    np.testing.assert_allclose(network.draw_latents(ASKED, seed=5, also=(free,)), network.draw_latents(ASKED, seed=5), atol=1e-5)


def test_the_order_does_not_matter(network):
    one, other = (ASKED, ONE), (ASKED[::-1].copy(), OTHER)
    a, b = (network.draw_latents(x, n=3, seed=5, given=g, also=(y,)) for (x, g), y in ((one, other), (other, one)))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_wishes_are_heard_and_rows_and_batches_stay_apart(network):
    also = ((ASKED[::-1].copy(), OTHER),)
    z = network.draw_latents(ASKED, n=3, seed=5, given=ONE, also=also)
    assert (z - network.draw_latents(ASKED, n=3, seed=5, given=ONE)).abs().max() > 1e-2
    np.testing.assert_allclose(network.draw_latents(ASKED, n=3, seed=5, given=ONE, also=also, batch=2), z, atol=1e-5)
    np.testing.assert_allclose(network.draw_latents(ASKED[:1], n=3, seed=5, given=ONE[:1], also=((ASKED[1:], OTHER[:1]),)), z[:3], atol=1e-5)


@pytest.mark.parametrize('bad, message', [
    (((np.float32([[.5, 1.5], [.5, .5]]), None),), r'measures holds 1.5 in row 0: expected shares in \[0, 1\]'),
    (((np.float32([[.5, np.nan], [.5, .5]]), None),), 'a free entry must be False in given'),
    (((ASKED[:, :1], None),), r'measures has shape \(2, 1\): expected \(m, 2\)'),
    (((ASKED, ONE[:1]),), r'given has shape \(1, 2\)'),
    (((['walk on the left foot'], None),), 'asked holds words')])
def test_bad_further_wishes_are_refused(network, bad, message):
    with pytest.raises(ValueError, match=message): network.generate(ASKED, also=bad)


@pytest.mark.parametrize('also, told', [
    (((np.float32([[.2, .6]]*3), None),), r'\[2, 3\] requests'), ((np.float32([[.2, .6]]*2),), 'no pair'), ((np.float32([[.2, .6]]*2), None), 'no pair')])
def test_further_wishes_come_in_pairs_and_row_by_row(also, told):
    generator = Generator.load(DATA/'generators'/'walker2d.safetensors', 'walker2d')
    with pytest.raises(ValueError, match=told): generator.generate(np.float32([[.2, .6]]*2), also=also)
