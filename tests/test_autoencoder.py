"The autoencoder against torch.distributions, hand-worked numbers, its own batches, and a killed run."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence as torch_kl

from policydiffusion import autoencoder as ae, core, training
from policydiffusion.core import NonFiniteLoss, save_tensors
from policydiffusion.policy import PolicySpec, act_jax, pack

SPEC = PolicySpec(5, 2, (8, 8))
SETTINGS = ae.AutoencoderSettings(channels=(8, 8, 16), vector_width=8, hidden=8, lr=3e-3, cosine=True, batch_size=8, epochs=4)


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def params(): return ae.toy_archive(SPEC, n=25, rank=3)


def build(params, settings=SETTINGS, with_normaliser=False, seed=0):
    torch.manual_seed(seed)
    return ae.build_autoencoder(SPEC, settings, *ae.standardisation(params, settings.centring), with_normaliser)


def run(params, settings=SETTINGS, seed=1): return training.start_training(build(params, settings), {'params': params}, settings, seed)


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# ---- toy archive and centring

def test_toy_archive_has_the_promised_rank():
    rows = ae.toy_archive(SPEC, n=40, rank=5).double()
    s = torch.linalg.svdvals(rows - rows.mean(0))
    assert s[4] > 1e3*s[5]
    assert torch.linalg.matrix_rank(ae.toy_archive(SPEC, n=40, rank=5, noise=.1)) == 40


def test_centring_standardises_and_leaves_constants_alone(params):
    params[:, 7] = 3.
    centre, scale = ae.standardisation(params)
    x = ((params - centre)/scale).numpy()
    assert np.allclose(x.mean(0), 0, atol=1e-5) and np.allclose(np.delete(x.std(0, ddof=1), 7), 1, atol=1e-4) and (x[:, 7] == 0).all()
    centre, scale = ae.standardisation(params, centring=False)
    assert (centre == 0).all() and (scale == 1).all()


# ---- encoder

def test_matrix_is_pooled_until_used_up():
    for rows, columns, channels, size in ((64, 64, (1, 2, 3, 4, 5, 6, 7), 6), (17, 64, (1, 2, 3, 4, 5), 4*1*4), (64, 6, (1, 2, 3), 2*16*1), (5, 1, (1, 2), 5)):
        stack = ae.ConvStack(rows, columns, channels)
        assert stack.out_size == size and stack(torch.randn(2, rows, columns)).shape == (2, size)


def test_conv_stack_is_the_plain_stack_of_layers():
    torch.manual_seed(0)
    stack, W = ae.ConvStack(6, 4, (8,)), torch.randn(3, 6, 4)
    conv, norm = stack.blocks[0], stack.blocks[1]
    h = nn.functional.conv2d(W[:, None], conv.weight, padding=1)
    h = (h - h.mean((0, 2, 3), keepdim=True))/(h.var((0, 2, 3), unbiased=False, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(stack(W), nn.functional.max_pool2d(h.relu(), 2).flatten(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('with_normaliser', [False, True])
def test_batch_equals_one_at_a_time(params, with_normaliser):
    model = build(params, with_normaliser=with_normaliser)
    normaliser = torch.randn(25, 2, 5) if with_normaliser else None
    for _ in range(3): model.encode(params, normaliser)  # batch-norm's averages leave their start
    model.eval()
    together = model.encode(params, normaliser)[0]
    alone = torch.cat([model.encode(params[k:k + 1], None if normaliser is None else normaliser[k:k + 1])[0] for k in range(25)])
    assert together.shape == (25, 4, 4, 4)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.decode(together), torch.cat([model.decode(z[None]) for z in together]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ae.reconstruct(model, params, normaliser, chunk=4), model.decode(together), atol=1e-5, rtol=1e-4)


def test_encoder_refuses_bad_input(params):
    with pytest.raises(ValueError, match=f'expected {SPEC.n_params}'): build(params).encoder(params[:, 1:])
    with pytest.raises(ValueError, match='normaliser is missing'): build(params, with_normaliser=True).encode(params)
    with pytest.raises(ValueError, match='normaliser is given'): build(params).encode(params, torch.zeros(25, 2, 5))


# ---- latent and losses

def test_kl_is_torchs():
    mean, logvar = torch.randn(6, 4, 4, 4), torch.randn(6, 4, 4, 4)
    oracle = torch_kl(Normal(mean, (logvar/2).exp()), Normal(0., 1.)).flatten(1).sum(1)
    torch.testing.assert_close(ae.kl_divergence(mean, logvar), oracle)


def test_sample_has_mean_variance_and_gradient():
    mean, logvar = torch.full((50_000,), -2., requires_grad=True), torch.full((50_000,), np.log(.25), requires_grad=True)
    z = ae.sample_latent(mean, logvar, torch.Generator().manual_seed(0))
    assert z.mean().item() == pytest.approx(-2, abs=.01) and z.std().item() == pytest.approx(.5, abs=.01)
    z.sum().backward()
    eps = (z - mean).detach()/.5
    torch.testing.assert_close(mean.grad, torch.ones(50_000)); torch.testing.assert_close(logvar.grad, eps*.25, atol=1e-5, rtol=1e-4)


def test_each_tensor_has_one_vote():
    error = pack([(torch.full((2, 5, 8), 1.), torch.full((2, 8), 2.)), (torch.full((2, 8, 8), 3.), torch.zeros(2, 8)), (torch.zeros(2, 8, 2), torch.tensor([[0., 4.], [0., 0.]]))])
    assert ae.tensor_mse(SPEC, error).tolist() == [1, 4, 9, 0, 0, 4]


def test_loss_is_its_parts_by_hand(params):
    model, normaliser = build(params, with_normaliser=True), torch.randn(25, 2, 5)
    loss, parts = ae.weight_loss(model, {'params': params, 'normaliser': normaliser}, kl_weight=.5, generator=torch.Generator().manual_seed(3))
    mean, logvar = model.encode(params, normaliser)
    z = mean + (logvar/2).exp()*torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    error = model.decoder(z) - (params - params.mean(0))/params.std(0)
    sizes = [40, 8, 64, 8, 16, 2]
    mse = sum((e**2).mean() for e in error.split(sizes, 1))
    decoded = model.normaliser_decoder(z)
    norm = ((decoded - normaliser)[:, 0]**2).mean() + ((decoded - normaliser)[:, 1]**2).mean()
    kl = torch_kl(Normal(mean, (logvar/2).exp()), Normal(0., 1.)).sum()/25
    for name, value in {'mse': mse, 'normaliser': norm, 'kl': kl, 'loss': mse + norm + .5*kl}.items():
        torch.testing.assert_close(parts[name], value.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, parts['loss'])


def test_gradient_reaches_every_parameter(params):
    model = build(params, with_normaliser=True)
    ae.weight_loss(model, {'params': params, 'normaliser': torch.randn(25, 2, 5)})[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() < 1e-6] == []


def test_action_error_matches_jax(params):
    rng = np.random.default_rng(0)
    obs, mean, std = rng.normal(0, 2, (3, 4, 5)).astype('f'), rng.normal(size=5).astype('f'), rng.uniform(.5, 2, 5).astype('f')
    a, b = 2*params[:3].numpy(), 2*params[3:6].numpy()
    by_hand = [np.sqrt(np.mean([(np.clip(act_jax(SPEC, a[k], mean, std, o), -1, 1) - np.clip(act_jax(SPEC, b[k], mean, std, o), -1, 1))**2 for o in obs[k]])) for k in range(3)]
    ours = ae.action_error(SPEC, *map(torch.as_tensor, (a, b, mean, std, obs)))
    np.testing.assert_allclose(ours, by_hand, rtol=1e-4)


def test_unexplained_variance(params):
    mean = params.mean(0).expand_as(params)
    torch.testing.assert_close(ae.unexplained_variance(SPEC, params, mean), torch.ones(6), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ae.unexplained_variance(SPEC, params, (params + mean)/2), torch.full((6,), .25), atol=1e-5, rtol=1e-4)


# ---- training

def test_overfits_one_batch(params):
    few, settings = params[:8], replace(SETTINGS, hidden=16, lr=1e-2, epochs=100)
    state = run(few, settings)
    first = next(train := training.train_autoencoder(state))[2]['mse']
    for step, epoch, parts in train: pass
    assert (step, epoch) == (100, 99) and parts['mse'] < .05*first
    assert ae.unexplained_variance(SPEC, few, ae.reconstruct(state.model, few)).max() < .1


def test_normaliser_is_learnt_too(params):
    settings = replace(SETTINGS, lr=1e-2, epochs=40)
    data = {'params': params, 'normaliser': torch.randn(25, 2, 5)}
    state = training.start_training(build(params, settings, with_normaliser=True), data, settings, seed=0)
    parts = [p['normaliser'] for _, _, p in training.train_autoencoder(state)]
    assert np.mean(parts[-5:]) < .7*np.mean(parts[:5])


def test_same_seed_same_run_other_seed_other_run(params):
    runs = [run(params, seed=s) for s in (1, 1, 2)]
    for state in runs: list(training.train_autoencoder(state))
    assert same(runs[0].model, runs[1].model) and not same(runs[0].model, runs[2].model)


@pytest.mark.parametrize('kill_after', [0, 3, 5, 12])  # before the first step, at an epoch's end, inside an epoch, at the end
def test_killed_and_resumed_run_equals_straight_run(params, tmp_path, kill_after):
    straight, killed = run(params), run(params)
    steps = list(training.train_autoencoder(straight))
    for _, _ in zip(range(kill_after), training.train_autoencoder(killed)): pass
    training.save_checkpoint(tmp_path/'a.ckpt', killed)
    resumed = training.load_checkpoint(tmp_path/'a.ckpt', run(params))
    assert resumed.step == kill_after
    assert list(training.train_autoencoder(resumed)) == steps[kill_after:]
    assert same(straight.model, resumed.model) and straight.history == resumed.history
    assert [h['step'] for h in straight.history] == [3, 6, 9, 12]


def test_an_epoch_visits_each_policy_at_most_once(params, monkeypatch):
    seen = []
    def spy(model, batch, kl_weight, generator): seen.append(batch['params'][:, 0].tolist()); return ae.weight_loss(model, batch, kl_weight, generator)
    list(training.train_autoencoder(run(params), spy))
    epochs = [sum(seen[k:k + 3], []) for k in range(0, 12, 3)]
    assert all(len(set(e)) == 24 for e in epochs) and epochs[0] != epochs[1]


def test_learning_rate_follows_the_cosine(params):
    state = run(params)
    rates = [state.optimiser.param_groups[0]['lr'] for _ in training.train_autoencoder(state)]
    np.testing.assert_allclose(rates, 3e-3*np.cos(np.pi*np.arange(12)/24)**2, rtol=1e-6)
    assert training.learning_rate(run(params, replace(SETTINGS, cosine=False))) == 3e-3


def test_gradient_norm_is_clipped(params):
    state = run(params, replace(SETTINGS, clip=1e-3))
    next(training.train_autoencoder(state))
    assert torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in state.model.parameters()])).item() <= 1.001e-3


def test_loss_that_is_not_finite_stops_the_run(params):
    state = run(params)
    def explode(model, batch, kl_weight, generator):
        loss, parts = ae.weight_loss(model, batch, kl_weight, generator)
        return loss*(float('nan') if state.step == 4 else 1), parts
    with pytest.raises(NonFiniteLoss, match='nan at step 4 of epoch 1'): list(training.train_autoencoder(state, explode))
    assert all(p.isfinite().all() for p in state.model.parameters())


def test_one_policy_is_not_an_archive(params):
    with pytest.raises(ValueError, match='holds 1 policies: expected at least 2'):
        training.start_training(build(params), {'params': params[:1]}, SETTINGS, seed=0)


def test_presets():
    assert ae.autoencoder_settings('paper', 'humanoid') == ae.AutoencoderSettings(latent_shape=(4, 4, 4), hidden=16, centring=True, kl_weight=1e-6, lr=1e-4, cosine=False, batch_size=32, epochs=1000, clip=1., steps=1000*(7470//32 + 1), shared_code=True)
    assert [ae.autoencoder_settings('paper', t).centring for t in ('humanoid', 'ant', 'walker2d', 'halfcheetah')] == [True, True, False, False]
    assert ae.autoencoder_settings('laptop', 'ant', 'paper_full') == ae.autoencoder_settings('paper', 'ant') != ae.autoencoder_settings('laptop', 'ant')
    with pytest.raises(ValueError, match='expected one of smoke, laptop, night, paper'): ae.autoencoder_settings('huge', 'ant')


def test_length_in_steps_does_not_depend_on_the_archive(params):
    "24 policies make 3 batches of 8 an epoch; 7 steps are two epochs and one step more."
    state = run(params, replace(SETTINGS, steps=7))
    places = [(step, epoch) for step, epoch, _ in training.train_autoencoder(state)]
    assert places == [(k + 1, k//3) for k in range(7)] and state.n_steps == 7 and len(state.history) == 2


# ---- files

def test_checkpoint_of_another_run_is_refused(params, tmp_path):
    path = training.save_checkpoint(tmp_path/'a.ckpt', run(params))
    with pytest.raises(ValueError, match='a.ckpt belongs to a run with other seed'): training.load_checkpoint(path, run(params, seed=9))
    with pytest.raises(ValueError, match='other data'): training.load_checkpoint(path, run(params + 1))
    with pytest.raises(ValueError, match='other settings'): training.load_checkpoint(path, run(params, replace(SETTINGS, lr=1.)))
    with pytest.raises(FileNotFoundError, match='b.ckpt does not exist'): training.load_checkpoint(tmp_path/'b.ckpt', run(params))


@pytest.mark.parametrize('with_normaliser', [False, True])
def test_saved_autoencoder_is_the_same_autoencoder(params, tmp_path, with_normaliser):
    model, normaliser = build(params, with_normaliser=with_normaliser), torch.randn(25, 2, 5) if with_normaliser else None
    model.encode(params, normaliser)
    path = ae.save_autoencoder(tmp_path/'a.safetensors', model.eval(), SETTINGS, task='walker2d', seed=7)
    again, settings, meta = ae.load_autoencoder(path)
    assert settings == SETTINGS and (meta['task'], meta['seed']) == ('walker2d', 7) and same(model, again) and not again.training
    assert torch.equal(ae.reconstruct(again, params, normaliser), ae.reconstruct(model, params, normaliser))


def test_damaged_autoencoder_file_is_refused(params, tmp_path):
    path = ae.save_autoencoder(tmp_path/'a.safetensors', build(params), SETTINGS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match='truncated'): ae.load_autoencoder(path)
    path.write_bytes(whole)
    tensors, meta = core.load_tensors(path)
    meta = json.loads(json.dumps(meta))
    save_tensors(path, {k: v for k, v in tensors.items() if k != 'scale'}, meta)
    with pytest.raises(ValueError, match="tensor 'scale' is missing, foreign or of another size"): ae.load_autoencoder(path)
    save_tensors(path, {**tensors, 'centre': tensors['centre'][1:]}, meta)
    with pytest.raises(ValueError, match="tensor 'centre'"): ae.load_autoencoder(path)
    save_tensors(path, tensors, {**meta, 'kind': 'archive'})
    with pytest.raises(ValueError, match="is of kind 'archive': expected kind 'autoencoder'"): ae.load_autoencoder(path)


@pytest.mark.parametrize('change, says', [
    (lambda t, m: m.pop('spec'), "lacks 'spec'"), (lambda t, m: m.update(settings=[]), 'AutoencoderSettings is .*: expected a description'),
    (lambda t, m: m['settings'].update(channels='x'), "AutoencoderSettings.channels is 'x': expected sizes"), (lambda t, m: m['spec'].update(hidden=[20_000, 20_000]), 'more than the file'),
    (lambda t, m: m['settings'].update(hidden=10**6), 'is not a sound autoencoder'), (lambda t, m: m.update(with_normaliser=1), 'with_normaliser is 1: expected true or false')])
def test_an_autoencoders_header_is_checked(params, tmp_path, change, says):
    path = ae.save_autoencoder(tmp_path/'a.safetensors', build(params), SETTINGS)
    tensors, meta = core.load_tensors(path)
    change(tensors, meta)
    save_tensors(path, tensors, meta)
    with pytest.raises(ValueError, match=says) as e: ae.load_autoencoder(path)
    assert str(e.value).startswith(str(path)) and '\n' not in str(e.value)


@pytest.mark.parametrize('change, says', [
    (lambda t, m: t.pop('adam.0.exp_avg'), "lacks 'adam.0.exp_avg'"), (lambda t, m: t.update({'adam.0.step': np.zeros(2, np.float32)}), "tensor 'adam.0.step' has shape"),
    (lambda t, m: m.update(step=10**6), 'step is 1000000: expected a whole number up to'), (lambda t, m: m.update(epoch_parts=5), 'epoch_parts is 5: expected')])
def test_a_damaged_checkpoint_is_refused(params, tmp_path, change, says):
    state = run(params)
    next(training.train_autoencoder(state))
    path = training.save_checkpoint(tmp_path/'a.ckpt', state)
    tensors, meta = core.load_tensors(path)
    change(tensors, meta)
    save_tensors(path, tensors, meta)
    with pytest.raises(ValueError, match=says) as e: training.load_checkpoint(path, run(params))
    assert str(e.value).startswith(str(path))
