"Baselines against hand-worked cases, linear algebra and the rollout's own policies."
import numpy as np
import pytest
import torch

from policydiffusion.archive import synthetic_archive
from policydiffusion.baselines import CodeBook, CodeRegression, CodeVAE, ConditionedPolicy, ConditionNetwork, StoredElites, fit, quantise
from policydiffusion.hypernetwork import count_parameters
from policydiffusion.policy import PolicySpec, act_torch

ARCHIVE = synthetic_archive(n=60)
SPEC = PolicySpec(5, 2, (6, 4))


@pytest.mark.parametrize('how', ['nearest', 'between', 'noisy'])
def test_stored_elites_count_what_they_keep(how):
    kept = StoredElites(ARCHIVE, 7, how)
    assert kept.params.shape == (7, ARCHIVE.spec.n_params)
    assert kept.n_params == 7*(ARCHIVE.spec.n_params + 2) + (ARCHIVE.spec.n_params if how == 'noisy' else 0)
    assert all(any(np.array_equal(row, p) for p in ARCHIVE.params) for row in kept.params)


def test_the_nearest_stored_elite_answers():
    kept = StoredElites(ARCHIVE, 9)
    ask = np.random.default_rng(0).uniform(size=(50, 2)).astype(np.float32)
    nearest = np.linalg.norm(ask[:, None] - kept.measures, axis=-1).argmin(1)
    np.testing.assert_array_equal(kept.answer(ask), kept.params[nearest])


def test_interpolation_weighs_by_distance():
    kept = StoredElites(ARCHIVE, 2, 'between')
    (a, b), (p, q) = kept.measures, kept.params
    for t in (0., .25, .5, 1.):
        np.testing.assert_allclose(kept.answer((a + t*(b - a))[None])[0], p + t*(q - p), atol=1e-5)


def test_noise_has_the_size_that_was_asked_for():
    kept, quiet = StoredElites(ARCHIVE, 4, 'noisy', noise=.2), StoredElites(ARCHIVE, 4)
    ask = np.repeat(ARCHIVE.measures[:1], 2000, 0)
    moved = kept.answer(ask, seed=3) - quiet.answer(ask)
    np.testing.assert_allclose(moved.std(0), .2*ARCHIVE.params.std(0), rtol=.15, atol=1e-6)
    assert np.array_equal(kept.answer(ask[:3], seed=1), kept.answer(ask[:3], seed=1)) and not np.array_equal(kept.answer(ask[:3], seed=1), kept.answer(ask[:3], seed=2))


def test_unknown_way_to_answer():
    with pytest.raises(ValueError, match="how 'far' is unknown"): StoredElites(ARCHIVE, 3, 'far')


def test_code_book_looks_up():
    z, places = torch.randn(20, 3), torch.rand(20, 2)
    book = CodeBook(lambda z: 2*z + 1, 100, z, places)
    assert book.n_params == 100 + 20*3 + 20*2
    np.testing.assert_allclose(book.answer(places.numpy()), 2*z + 1, atol=5e-3)  # half precision


def test_regression_learns_a_smooth_map_and_averages_two_answers():
    ask = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    z = torch.stack([ask.sum(1), ask[:, 0] - 3*ask[:, 1]], 1)
    learned = CodeRegression(lambda z: z, 10, z, ask, torch.tensor([1., 2.]), n_steps=600)
    np.testing.assert_allclose(learned.answer(ask.numpy()), z, atol=.15)
    assert learned.n_params == 10 + count_parameters(learned.network) + 4
    one, two = torch.full((100, 2), .5), torch.cat([torch.full((50, 1), -1.), torch.full((50, 1), 1.)])
    assert abs(CodeRegression(lambda z: z, 0, two, one, torch.ones(1), n_steps=200).answer(one[:1].numpy())).max() < .1


def test_vae_repeats_itself_by_seed():
    z, ask = torch.randn(50, 3), torch.rand(50, 2)
    vae = CodeVAE(lambda z: z, 0, z, ask, torch.ones(3), n_steps=20)
    assert np.array_equal(vae.answer(ask.numpy(), 1), vae.answer(ask.numpy(), 1)) and not np.array_equal(vae.answer(ask.numpy(), 1), vae.answer(ask.numpy(), 2))
    assert vae.losses[-1] < vae.losses[0]


def test_conditioned_policy_is_the_policies_that_it_answers_with():
    g = torch.Generator().manual_seed(0)
    params, measures, obs = .3*torch.randn(6, SPEC.n_params, generator=g), torch.rand(6, 2, generator=g), torch.randn(6, 12, 5, generator=g)
    mean, std = torch.randn(5, generator=g), torch.rand(5, generator=g) + .5
    one = ConditionedPolicy(SPEC, params, measures, obs, mean, std, n_steps=400, width=32, batch=(6, 12), state_noise=0.)
    rows = torch.from_numpy(one.answer(measures.numpy()))
    assert one.spec == PolicySpec(5, 2, (32, 32)) and rows.shape == (6, one.spec.n_params)
    torch.testing.assert_close(act_torch(one.spec, rows, mean, std, obs), one.act(measures, (obs - mean)/std).detach(), atol=1e-5, rtol=1e-4)
    error = (act_torch(one.spec, rows, mean, std, obs) - act_torch(SPEC, params, mean, std, obs)).square().mean()
    assert error < .05*act_torch(SPEC, params, mean, std, obs).var()  # it has learned all six


@pytest.mark.parametrize('levels', [2, 16, 256])
def test_quantise_rounds_to_the_nearest_level(levels):
    rows = np.random.default_rng(0).uniform(-3, 5, (100, 40)).astype(np.float32)
    back, size = quantise(rows, levels)
    step = np.ptp(rows, axis=0)/(levels - 1)
    assert (np.abs(back - rows) <= .51*step + 5e-3).all() and all(len(np.unique(c)) <= levels for c in back.T)
    assert size <= rows.size + 4*40 + 200 and (levels > 2 or size < rows.size/4)  # one bit a weight, and the packer sees it


def test_quantise_refuses_more_than_a_byte():
    with pytest.raises(ValueError, match='levels is 257: expected between 2 and 256'): quantise(np.zeros((2, 3), np.float32), 257)


def test_fit_stops_at_the_minimum():
    line = torch.nn.Linear(1, 1)
    x = torch.linspace(-1, 1, 20)[:, None]
    losses = fit(line, lambda g: (line(x) - (2*x - 1)).square().mean(), 400, lr=.05)
    assert len(losses) == 400 and losses[-1] < 1e-3
    np.testing.assert_allclose([line.weight.item(), line.bias.item()], [2, -1], atol=.05)


def test_condition_network_takes_more_than_measures():
    network = ConditionNetwork(2, 5, width=8, extra=3)
    assert network(torch.rand(4, 2), torch.rand(4, 3)).shape == (4, 5)
