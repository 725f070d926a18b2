"The method `compact`: low-rank decoder, behaviour loss, relabelling; against linear algebra, hand-worked cases, and itself after a kill."
from dataclasses import replace

import numpy as np
import pytest
import torch

from policydiffusion.archive import Archive
from policydiffusion.core import load_tensors, save_tensors
from policydiffusion.autoencoder import toy_archive
from policydiffusion.behaviour import (CompactAutoencoder, CompactSettings, LatentCodes,
                                       action_loss, behaviour_loss, compact_settings, load_compact,
                                       save_compact, with_neighbours)
from policydiffusion.training import (load_checkpoint, save_checkpoint, start_training,
                                      train_autoencoder)
from policydiffusion.core import DATA
from policydiffusion.denoiser import RandomWaves, ResidualDenoiser
from policydiffusion.distil import compact_design, compact_diffusion, take_decoder
from policydiffusion.generator import Generator, LatentScale, Sampling, count_parts
from policydiffusion.relabel import (assign_targets, evaluate_again, evaluate_latents, pooled,
                                     propose, relabel_settings, smoothed)
from policydiffusion.hypernetwork import LowRankDecoder, count_parameters, start_at_components
from policydiffusion.policy import PolicySpec, act_torch, pack, unpack
from policydiffusion.rollout import Evaluation

SPEC = PolicySpec(5, 2, (6, 4))
SETTINGS = CompactSettings(latent_shape=(3,), ranks=(3, 2, 3), n_obs=4, batch_size=8, epochs=3)


@pytest.fixture(scope='module')
def rows():
    return toy_archive(SPEC, 24, rank=3)


def batches(rows, n_obs=6):
    return {'rows': torch.arange(len(rows)), 'params': rows, 'obs': torch.randn(len(rows), n_obs, 5, generator=torch.Generator().manual_seed(3))}


def run(rows, **changes):
    settings = replace(SETTINGS, **changes)
    model = CompactAutoencoder(SPEC, len(rows), settings.latent_shape, settings.ranks).start(rows)
    return start_training(model, batches(rows), settings, seed=1), behaviour_loss(settings, torch.zeros(5), torch.ones(5), rows.var(0).mean().item())


def test_decoder_is_affine_in_the_latent_and_local_in_the_layer():
    torch.manual_seed(0)
    d = LowRankDecoder(SPEC, (3,), (3, 1, 2))
    a, b = torch.randn(2, 4, 3)
    torch.testing.assert_close(d(a) + d(b) - d(torch.zeros(4, 3)), d(a + b))
    with torch.no_grad(): d.directions[1].zero_()
    (W0, _), (W1, _), (W2, _) = unpack(SPEC, d(a))
    assert not W1.any() and W0.any() and W2.any()
    many = LowRankDecoder(SPEC, (3,), (3, 1, 2))(torch.randn(50, 3))
    assert [torch.linalg.matrix_rank(torch.cat([W.flatten(1), c], 1)).item() for W, c in unpack(SPEC, many)] == [3, 1, 2]


def test_start_is_the_best_linear_code(rows):
    "Against the singular value decomposition: no code of three numbers has a smaller error."
    noisy = rows + .1*torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    d = LowRankDecoder(SPEC, (3,), (3, 3, 3))
    z = start_at_components(d, noisy)
    best = torch.linalg.svdvals(noisy - noisy.mean(0))[3:].square().sum()
    torch.testing.assert_close((d(z) - noisy).square().sum().detach(), best, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z.square().mean(0), torch.ones(3))


def test_presets_have_the_promised_sizes():
    walker = PolicySpec(17, 6, (64, 64))
    s = compact_settings('laptop')
    denoiser = ResidualDenoiser(s.latent_shape[0], 2, **compact_diffusion('laptop').network)
    total = count_parameters(LowRankDecoder(walker, s.latent_shape, s.ranks)) + count_parameters(denoiser)
    assert count_parameters(denoiser) <= 300_000 and 702*walker.n_params/total > 20


def test_actions_beyond_the_limits_hardly_count():
    x = torch.tensor
    assert action_loss(x([5.]), x([5.])) == 0
    assert action_loss(x([.5]), x([.1])).item() == pytest.approx(.16)
    assert action_loss(x([3.]), x([1.])).item() == pytest.approx((.05*2)**2)
    assert action_loss(x([3.]), x([-1.])).item() == pytest.approx((2 + .05*2)**2)


def test_neighbours_lend_their_observations():
    measures = torch.tensor([[0., 0], [0, .1], [1, 1], [1, .9]])
    own = torch.arange(4.)[:, None, None].expand(4, 20, 2)
    told = with_neighbours(own, measures, share=.5, n_neighbours=1)
    assert told.shape == own.shape and [sorted(set(t[:, 0].tolist())) for t in told] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert torch.equal(with_neighbours(own, measures, share=0.), own)


def test_loss_is_zero_for_exact_copies_and_grows_with_the_damage(rows):
    state, loss_fn = run(rows, weights_weight=0., kl_weight=0., state_noise=0., ranks=(3, 3, 3))
    state.model.codes.logvar.data.fill_(-40)
    batch, g = batches(rows), lambda: torch.Generator().manual_seed(0)
    losses = []
    for damage in (0., .1, .5):
        with torch.no_grad(): state.model.decoder.ancestor[:10] += damage
        losses.append(loss_fn(state.model, batch, 0., g())[0].item())
    assert losses[0] < 1e-8 < losses[1] < losses[2]


def test_loss_reads_each_policy_on_its_own_observations(rows):
    "By hand: one observation each, so nothing is drawn but which."
    state, loss_fn = run(rows, weights_weight=0., kl_weight=0., state_noise=0.)
    model, batch = state.model, {k: x[:, :1] if k == 'obs' else x for k, x in batches(rows).items()}
    model.codes.logvar.data.fill_(-40)
    with torch.no_grad(): decoded = model.decode(model.codes(batch['rows'])[0])
    act = lambda p: act_torch(SPEC, p, torch.zeros(5), torch.ones(5), batch['obs'])
    assert loss_fn(model, batch, 0., torch.Generator().manual_seed(0))[0].item() == pytest.approx(action_loss(act(decoded), act(rows)).item(), rel=1e-4)


def test_codes_move_twenty_times_as_far_as_weights():
    codes = LatentCodes(2, (1,))
    optimiser = torch.optim.Adam(codes.parameters(), lr=1e-3)
    (codes(torch.tensor([0]))[0] - 5).square().sum().backward(); optimiser.step()
    mean = codes(torch.arange(2))[0]
    assert mean[0].item() == pytest.approx(20*1e-3, rel=1e-3) and mean[1] == 0


def test_training_helps_and_survives_a_kill(rows, tmp_path):
    noisy = rows + .3*torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    straight, loss_fn = run(noisy, epochs=40, lr=1e-2)
    for _ in train_autoencoder(straight, loss_fn): pass
    assert straight.history[-1]['behaviour'] < .8*straight.history[0]['behaviour']
    killed, loss_fn = run(noisy, epochs=40, lr=1e-2)
    for step, *_ in train_autoencoder(killed, loss_fn):
        if step == 20: save_checkpoint(tmp_path/'run.ckpt', killed); break
    resumed = load_checkpoint(tmp_path/'run.ckpt', run(noisy, epochs=40, lr=1e-2)[0])
    for _ in train_autoencoder(resumed, loss_fn): pass
    for a, b in zip(resumed.model.state_dict().values(), straight.model.state_dict().values()): torch.testing.assert_close(a, b)


def test_file_round_trip(rows, tmp_path):
    state, _ = run(rows)
    again, settings, meta = load_compact(save_compact(tmp_path/'a.safetensors', state.model, state.settings, task='walker2d'))
    assert settings == state.settings and meta['task'] == 'walker2d'
    for a, b in zip(again.state_dict().values(), state.model.state_dict().values()): assert torch.equal(a, b)
    (tmp_path/'a.safetensors').write_bytes((tmp_path/'a.safetensors').read_bytes()[:-40])
    with pytest.raises(ValueError, match='a.safetensors is truncated'): load_compact(tmp_path/'a.safetensors')


@pytest.mark.parametrize('change, says', [
    (lambda t, m: m.pop('settings'), "lacks 'settings'"), (lambda t, m: t.pop('codes.table'), "lacks 'codes.table'"), (lambda t, m: m['spec'].update(hidden=[20_000, 20_000]), 'more than the file'),
    (lambda t, m: m['settings'].update(ranks=[1.5, 1, 1]), 'CompactSettings.ranks is .*: expected sizes'), (lambda t, m: m['settings'].update(latent_shape=[10**9]), 'is not a sound compact_autoencoder')])
def test_a_header_that_cannot_be_is_refused(rows, tmp_path, change, says):
    state, _ = run(rows)
    path = save_compact(tmp_path/'a.safetensors', state.model, state.settings)
    tensors, meta = load_tensors(path)
    change(tensors, meta)
    save_tensors(path, tensors, meta)
    with pytest.raises(ValueError, match=says) as e: load_compact(path)
    assert str(e.value).startswith(str(path)) and '\n' not in str(e.value)


def test_bad_sizes_are_refused(rows):
    with pytest.raises(ValueError, match='expected 3 numbers, one a layer'): LowRankDecoder(SPEC, (3,), (3, 3))
    with pytest.raises(ValueError, match='of at most 3'): LowRankDecoder(SPEC, (3,), (3, 4, 3))
    with pytest.raises(ValueError, match='params holds 2 policies: expected at least 3'): start_at_components(LowRankDecoder(SPEC, (3,), (3, 3, 3)), rows[:2])
    with pytest.raises(ValueError, match="scale 'desk' is unknown"): compact_settings('desk')
    with pytest.raises(ValueError, match="scale 'desk' is unknown"): relabel_settings('desk')


# ---- conditions as places

def test_waves_are_a_gaussian_of_distance_and_silent_when_something_is_missing():
    waves = RandomWaves(3, 20_000, band=2.)
    x = torch.tensor([[.2, .5, .7], [.25, .5, .7], [.2, .45, .75], [.9, .1, .1]])
    likeness = waves(x, torch.ones(4, 3, dtype=torch.bool))@waves(x[:1], torch.ones(1, 3, dtype=torch.bool)).T/20_000
    exact = torch.exp(-(2*torch.pi*2)**2*(x - x[0]).square().sum(1)/2)
    torch.testing.assert_close(likeness[:, 0], exact, atol=.03, rtol=0)
    given = torch.tensor([[True, True, False]])
    assert not waves(torch.tensor([[.2, .5, float('nan')]]), given).any()
    assert torch.equal(RandomWaves(3, 8, 2.).directions, RandomWaves(3, 8, 2.).directions)


def test_scale_by_tolerance():
    z = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))*torch.tensor([1., 2, 4]) + 1
    scale, tolerance = LatentScale((3,)), torch.tensor([.1, 1., 1.])
    scale.fit(z, tolerance)
    x = scale(z)
    torch.testing.assert_close(x.var(0).mean(), torch.tensor(1.), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std(0)/x.std(0)[1], z.std(0)/tolerance/2*z.new_tensor([1, 1, 1])/(z.std(0)[1]/2))
    torch.testing.assert_close(scale.undo(x), z)


# ---- relabelling

def test_proposals():
    g = torch.Generator().manual_seed(0)
    codes, measures, sigma = torch.randn(40, 3, generator=g), torch.rand(40, 2, generator=g), torch.tensor([0., .1, .2])
    z = propose(codes, sigma, measures, copies=4, seed=7).reshape(4, 40, 3)
    assert torch.equal(z[0], codes) and torch.equal(z, propose(codes, sigma, measures, 4, seed=7).reshape(4, 40, 3))
    for noisy in (z[1], z[3]):  # odd copies are noise alone
        assert torch.equal(noisy[:, 0], codes[:, 0])
        torch.testing.assert_close((noisy - codes).std(0)[1:], sigma[1:], rtol=.4, atol=0)
    near = torch.cdist(measures, measures).fill_diagonal_(9).topk(6, largest=False).indices
    span = codes[:, 0][near]  # without noise in its first number, an even copy lies between its code and a neighbour's
    low, high = torch.minimum(span.min(1).values, codes[:, 0]), torch.maximum(span.max(1).values, codes[:, 0])
    assert ((z[2, :, 0] >= low - 1e-6) & (z[2, :, 0] <= high + 1e-6)).all() and (z[2, :, 0] != codes[:, 0]).all()


def test_smoothing_is_the_posterior_of_a_gaussian_process():
    "Against the closed form, in units of sigma; and blocks far apart do not matter to each other."
    rng = np.random.default_rng(0)
    z, sigma = torch.from_numpy(rng.normal(size=(60, 3))), torch.tensor([.1, .2, .4], dtype=torch.float64)
    tried = Evaluation(rng.normal(size=60)*400 + 900, rng.uniform(size=(60, 2)), *[None]*3)
    y = np.c_[tried.objective, tried.measures]
    K, episodes = np.exp(-torch.cdist(z/sigma, z/sigma).numpy()/25), rng.integers(1, 6, 60)
    want = y.mean(0) + K@np.linalg.solve(K + np.diag(.3/episodes), y - y.mean(0))
    got = smoothed(tried, z, sigma, episodes, length_scale=25., noise=.3)
    np.testing.assert_allclose(np.c_[got.objective, got.measures], want, rtol=1e-6)
    far = torch.cat([z, z + torch.tensor([1e5, 0, 0])])
    twice = replace(tried, objective=np.tile(tried.objective, 2), measures=np.tile(tried.measures, (2, 1)))
    blocks = smoothed(twice, far, sigma, np.tile(episodes, 2), length_scale=25., noise=.3, block=60)
    np.testing.assert_allclose(np.c_[blocks.objective, blocks.measures], np.tile(want, (2, 1)), rtol=1e-6)


def test_smoothing_takes_noise_away():
    "Labels of a smooth function with noise: nearer to the truth after than before."
    rng = np.random.default_rng(1)
    z = rng.uniform(-40, 40, (600, 2)); truth = np.sin(z/30)
    tried = Evaluation(truth.sum(1) + .2*rng.normal(size=600), truth + .2*rng.normal(size=(600, 2)), *[None]*3)
    after = smoothed(tried, torch.from_numpy(z), torch.ones(2), np.full(600, 2))
    assert np.abs(after.measures - truth).mean() < .6*np.abs(tried.measures - truth).mean()


def test_best_answers_by_hand():
    tried = Evaluation(np.float32([1, 7, 3, 9]), np.float32([[.1, .1], [.15, .1], [.8, .8], [.5, .5]]), *[None]*3)
    asked = np.float32([[.1, .1], [.9, .9], [.28, .3]])
    assert assign_targets(tried, asked, reward_weight=0).tolist() == [0, 2, 1]
    assert assign_targets(tried, np.float32([[.1, .1], [.11, .1]]), reward_weight=0).tolist() == [0, 1]  # alone, the second would take 0
    assert assign_targets(tried, asked[:1], reward_weight=.1).tolist() == [1]  # .05 farther, but 1.9 standard deviations better rewarded
    assert len(set(assign_targets(tried, np.zeros((4, 2)), reward_weight=0))) == 4


def test_best_answers_cost_least():
    "Against all permutations."
    from itertools import permutations
    rng = np.random.default_rng(2)
    tried, asked = Evaluation(rng.normal(size=6), rng.uniform(size=(6, 2)), *[None]*3), rng.uniform(size=(4, 2))
    cost = np.linalg.norm(asked[:, None] - tried.measures, axis=-1) - .1*tried.objective/tried.objective.std()
    total = lambda rows: sum(cost[i, r] for i, r in enumerate(rows))
    assert np.isclose(total(assign_targets(tried, asked, reward_weight=.1)), min(map(total, permutations(range(6), 4))))


def test_pooling_gives_the_mean_of_all_episodes():
    rng = np.random.default_rng(3)
    seen = [rng.normal(size=(n, 3)) for n in (2, 5, 2, 7)]  # episodes of four latents: objective, measure, length
    mean = lambda some: Evaluation(*(np.array([e[:, i].mean() for e in some]) if i != 1 else np.array([[e[:, 1].mean()] for e in some]) for i in range(3)), None, None)
    first, rows = [e[:2] for e in seen], np.array([3, 1])
    for more in (1, 3):
        tried, episodes = pooled(mean(first), np.full(4, 2), rows, mean([seen[i][2:2 + more] for i in rows]), more)
        want = mean([e[:2 + more] if i in rows else e[:2] for i, e in enumerate(seen)])
        for name in ('objective', 'measures', 'length'): np.testing.assert_allclose(getattr(tried, name), getattr(want, name))
        assert episodes.tolist() == [2, 2 + more, 2, 2 + more]


def test_trying_again_unmasks_the_lucky(monkeypatch):
    "Of two latents that looked alike, the one that had been lucky gives way after further episodes."
    from policydiffusion import relabel
    from policydiffusion.archive import synthetic_archive
    archive = synthetic_archive(n=2)
    archive = replace(archive, measures=np.float32([[.2, .2], [.8, .8]]))
    truth = np.float32([[.6, .6], [.25, .2], [.8, .8]])
    z, sigma = 1e6*torch.eye(3), torch.ones(3)  # too far apart to tell about each other
    tried, episodes = Evaluation(np.ones(3), np.float32([[.2, .2], [.25, .2], [.8, .8]]), np.ones(3), None, None), np.full(3, 2)
    monkeypatch.setattr(relabel, 'evaluate_latents', lambda model, archive, z, settings, seed: Evaluation(np.ones(len(z)), truth[z.argmax(1)], np.ones(len(z)), None, None))
    settings = replace(relabel_settings('smoke'), episodes=2)
    assert assign_targets(smoothed(tried, z, sigma, episodes), archive.measures).tolist() == [0, 2]
    tried, episodes = evaluate_again(None, archive, z, sigma, tried, episodes, settings, seed=0)
    assert episodes.tolist() == [4, 2, 4] and assign_targets(smoothed(tried, z, sigma, episodes), archive.measures).tolist() == [1, 2]


def test_generator_of_ours_from_file(rows, tmp_path):
    "The file gives back the decoder: the same latents, the same policies, all parts counted."
    state, _ = run(rows)
    design = compact_design(SETTINGS, 2, {'width': 16, 'n_blocks': 1, 'cond_freqs': 0, 'n_waves': 4})
    g = Generator('walker2d', SPEC, design, 'compact', Sampling('dpm', n_steps=3, clip=3.))
    take_decoder(g, state.model, np.zeros(5), np.ones(5))
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(g.decoder.decode(z), state.model.decode(z))
    again = Generator.load(g.save(tmp_path/'g.safetensors'), 'walker2d')
    ask = np.float32([[.1, .9], [.5, .5]])
    np.testing.assert_allclose(again.generate(ask, n=2, seed=3).params, g.generate(ask, n=2, seed=3).params, atol=5e-3)
    parts = count_parts(g)
    assert parts['decoder'] == count_parameters(state.model.decoder) + 2*3 and parts['denoiser'] == count_parameters(g.denoiser) and parts['normaliser'] == 10


def test_rehearsal_rolls_out_what_was_decoded(monkeypatch):
    "Each row is the decoded policy, batch by batch; the batches are told where they begin, so that each row has starts of its own."
    from policydiffusion import relabel
    from policydiffusion.archive import synthetic_archive
    archive, calls = synthetic_archive(n=12), []

    def evaluate(task, spec, params, mean, std, episodes, horizon, seed, n_max, first):
        calls.append((len(params), seed, first, n_max, episodes, horizon))
        return Evaluation(params.sum(1), params[:, :2], params[:, 0], params[:, 0], params[:, :2])
    monkeypatch.setattr(relabel, 'evaluate', evaluate)
    model = CompactAutoencoder(archive.spec, 12, (3,), (3,)*len(archive.spec.layer_sizes)).start(torch.from_numpy(archive.params))
    z = torch.randn(7, 3)
    tried = evaluate_latents(model, archive, z, replace(relabel_settings('smoke'), batch=4), seed=50)
    assert calls == [(4, 50, 0, 4, 1, 50), (3, 50, 4, 4, 1, 50)]
    np.testing.assert_allclose(tried.objective, model.decode(z).detach().sum(1), rtol=1e-5)


def test_shipped_generator():
    "Works right after the clone, and is small."
    path = DATA/'generators'/'walker2d.safetensors'
    assert path.stat().st_size <= 1.5e6
    g, archive = Generator.load(path, 'walker2d'), Archive.load(DATA/'archives'/'walker2d.safetensors', 'walker2d')
    policies = g.generate(archive.measures[:3], seed=0)
    assert g.method == 'compact' and policies.spec == archive.spec
    apart = torch.cdist(torch.from_numpy(policies.params), torch.from_numpy(archive.params))
    everybody = torch.pdist(torch.from_numpy(archive.params)).mean()
    assert np.isfinite(policies.params).all() and apart.min(1).values.max() < everybody  # policies of this family, not noise
