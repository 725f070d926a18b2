"The generator against networks with known answers, hand-made files, and itself before and after a kill."
import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from policydiffusion import generator as generator_module
from policydiffusion.archive import synthetic_archive
from policydiffusion.autoencoder import AutoencoderSettings, build_autoencoder, standardisation, toy_archive
from policydiffusion.core import NonFiniteLoss, load_tensors, save_tensors
from policydiffusion.diffusion import cosine_schedule
from policydiffusion.distil import (DiffusionSettings, diffusion_settings, encode_policies,
                                    paper_design, take_decoder, train_generator)
from policydiffusion.generator import (DECODERS, DENOISERS, EXACT, Design, Generator, LatentScale,
                                       Sampling, check_request, count_parts)
from policydiffusion.hypernetwork import count_parameters
from policydiffusion.policy import PolicySpec, unpack

SPEC = PolicySpec(3, 2, (4,))
SMALL_UNET = {'base': 32, 'mults': (1, 1), 'cond_dim': 8}
SMALL = AutoencoderSettings(latent_shape=(2, 4, 4), channels=(4,), vector_width=4, hidden=2)
ASKED = np.float32([[.1, .9], [.5, .5], [1, 0], [.3, .2], [.7, .8]])


@pytest.fixture(scope='module')
def autoencoder():
    torch.manual_seed(0)
    rows = toy_archive(SPEC, 24)
    return build_autoencoder(SPEC, SMALL, *standardisation(rows)), rows


def paper(autoencoder, **sampling) -> Generator:
    "The paper's kind, tiny; the last layer is made random, because a fresh one says nothing."
    torch.manual_seed(1)
    model = autoencoder[0]
    g = Generator('walker2d', SPEC, paper_design(model, SMALL, 2, SMALL_UNET), sampling=Sampling(n_steps=4, clip=3., **sampling), provenance={'seed': 5})
    take_decoder(g, model, [1., 2, 3], [4., 5, 6])
    nn.init.normal_(g.denoiser.output_projection[-1].weight, std=.1)
    g.latent_scale.fit(torch.randn(9, 2, 4, 4)*2 + 1)
    return g


# ---- networks with known answers: a denoiser that wants its condition, a decoder that repeats its latent

class Wants(nn.Module):
    "The perfect denoiser of data that equal their condition; 0.25 stands where an entry is not given."
    def __init__(self, latent_shape, cond_size, n_steps):
        super().__init__()
        self.abar = cosine_schedule(n_steps).abar

    def forward(self, x, t, cond, given):
        a = self.abar[t].float()[:, None]
        eps = (x - a.sqrt()*cond.where(given, .25))/(1 - a).sqrt()
        return torch.cat([eps, torch.zeros_like(x)], 1)


class Repeats(nn.Module):
    def __init__(self, spec, latent_shape, times):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([float(times)]))

    def decode(self, z): return z.repeat(1, SPEC.n_params//2)*self.factor


@pytest.fixture
def known(monkeypatch) -> Generator:
    monkeypatch.setitem(DENOISERS, 'wants', Wants)
    monkeypatch.setitem(DECODERS, 'repeats', Repeats)
    return Generator('walker2d', SPEC, Design(2, (2,), {'name': 'repeats', 'times': 3}, {'name': 'wants'}), 'compact', Sampling(n_steps=10))


def test_every_request_gets_its_own_rows(known):
    p = known.generate(ASKED, n=3, seed=1, batch=4)
    assert p.params.shape == (15, SPEC.n_params) and p.params.dtype == np.float32
    np.testing.assert_array_equal(p.measures, np.repeat(ASKED, 3, 0))
    np.testing.assert_allclose(p.params, 3*np.tile(np.repeat(ASKED, 3, 0), SPEC.n_params//2), atol=1e-4)


def test_unit_variance_is_undone(known):
    known.latent_scale.fit(torch.tensor([[0., 5], [2, 5]]))  # mean 1 and 5, s.d. sqrt(2) and none
    np.testing.assert_allclose(known.draw_latents(ASKED), ASKED*[2**.5, 1] + [1, 5], atol=1e-4)


@pytest.mark.parametrize('w', [0., 1., 4.])
def test_guidance_goes_past_the_condition(known, w):
    known.sampling = replace(known.sampling, guidance=w)
    np.testing.assert_allclose(known.draw_latents(ASKED), .25 + (1 + w)*(ASKED - .25), atol=1e-3)


def test_free_entries_reach_the_denoiser_as_free(known):
    given = np.array([[True, False]]*5)
    asked = np.where(given, ASKED, np.nan)
    p = known.generate(asked, given=given)
    np.testing.assert_allclose(p.params[:, :2], 3*np.where(given, ASKED, .25), atol=1e-4)
    np.testing.assert_array_equal(p.measures, asked)


def test_a_method_of_ones_own_goes_through_a_file(known, tmp_path):
    again = Generator.load(known.save(tmp_path/'g.safetensors'), 'walker2d')
    assert again.method == 'compact' and again.design == known.design
    np.testing.assert_array_equal(again.generate(ASKED).params, known.generate(ASKED).params)


# ---- seeds and batches

@pytest.mark.parametrize('sampler', [{}, {'eta': 1.}, {'sampler': 'ddpm'}, {'sampler': 'dpm'}, {'guidance': 2.}])
def test_seed_names_the_answer_and_batches_do_not_matter(autoencoder, sampler):
    g = paper(autoencoder, **sampler)
    p = g.generate(ASKED, n=3, seed=7)
    np.testing.assert_array_equal(g.generate(ASKED, n=3, seed=7).params, p.params)
    assert np.abs(g.generate(ASKED, n=3, seed=8).params - p.params).max() > 1e-3
    assert np.abs(p.params[0] - p.params[1]).max() > 1e-3  # two answers to one request
    for batch in (1, 4): np.testing.assert_allclose(g.generate(ASKED, n=3, seed=7, batch=batch).params, p.params, atol=1e-4)


def test_a_row_does_not_see_the_others(autoencoder):
    g = paper(autoencoder)
    other = ASKED.copy(); other[1:] = .5
    np.testing.assert_allclose(g.generate(other, seed=7).params[0], g.generate(ASKED, seed=7).params[0], atol=1e-5)


# ---- the file

def test_a_file_gives_the_same_policies_up_to_half_precision(autoencoder, tmp_path):
    g = paper(autoencoder)
    again = Generator.load(g.save(tmp_path/'g.safetensors'))
    before = g.generate(ASKED, n=4)
    with torch.no_grad():
        for name, x in g.state_dict().items():
            if name not in EXACT: x.copy_(x.half())
    rounded = g.generate(ASKED, n=4)
    np.testing.assert_array_equal(again.generate(ASKED, n=4).params, rounded.params)
    np.testing.assert_allclose(rounded.params, before.params, atol=.02)
    np.testing.assert_array_equal(rounded.obs_mean, [1, 2, 3])
    assert again.sampling == g.sampling and again.provenance == {'seed': 5}


def test_every_number_in_the_file_is_counted(autoencoder, tmp_path):
    g = paper(autoencoder)
    path = g.save(tmp_path/'g.safetensors')
    with safe_open(path, framework='numpy') as f:
        sizes = {k: int(np.prod(f.get_slice(k).get_shape())) for k in f.keys()}
        types = {k: f.get_slice(k).get_dtype() for k in f.keys()}
    counts = load_tensors(path, 'generator')[1]['n_params']
    assert sum(counts.values()) == sum(sizes.values())
    assert counts['denoiser'] == count_parameters(g.denoiser)
    assert counts['decoder'] == count_parameters(autoencoder[0].decoder) + 2*SPEC.n_params + 2*32  # weights, centre and scale, latent scale
    assert counts['normaliser'] == 6 and counts['condition'] == 0
    assert {k for k, t in types.items() if t == 'F32'} == set(EXACT) and set(types.values()) == {'F16', 'F32'}


def test_no_centre_is_stored_without_centring(autoencoder):
    design = paper_design(autoencoder[0], replace(SMALL, centring=False), 2, SMALL_UNET)
    g = Generator('walker2d', SPEC, design)
    take_decoder(g, autoencoder[0], [0., 0, 0], [1., 1, 1])
    assert count_parts(g)['decoder'] == count_parameters(autoencoder[0].decoder) + 2*32


def test_policies_with_their_own_normaliser(tmp_path):
    torch.manual_seed(0)
    rows = toy_archive(SPEC, 24)
    model = build_autoencoder(SPEC, SMALL, *standardisation(rows), with_normaliser=True)
    g = Generator('walker2d', SPEC, paper_design(model, SMALL, 2, SMALL_UNET), sampling=Sampling(n_steps=3))
    take_decoder(g, model, None, None)
    again = Generator.load(g.save(tmp_path/'g.safetensors'))
    p, z = again.generate(ASKED, seed=3), again.draw_latents(ASKED, seed=3)
    with torch.no_grad(): mean, log_std = again.normaliser(z).unbind(1)
    np.testing.assert_allclose(p.obs_mean, mean, atol=1e-6); np.testing.assert_allclose(p.obs_std, log_std.exp(), rtol=1e-5)
    np.testing.assert_allclose(model.normaliser_decoder(z)[:, 0].detach(), p.obs_mean, atol=5e-3)
    assert count_parts(g)['normaliser'] == count_parameters(model.normaliser_decoder)


# ---- the policies

def test_jax_torch_and_numpy_act_alike(autoencoder):
    p = paper(autoencoder).generate(ASKED, seed=2)
    obs = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)*10
    acts = p.act_torch(torch.from_numpy(obs)).numpy()
    np.testing.assert_allclose(jax.vmap(lambda o: p.act_jax(2, o))(obs[2]), acts[2], atol=1e-5)
    (W, b), (V, c) = unpack(SPEC, p.params[4])
    np.testing.assert_allclose(np.tanh((obs[4] - [1, 2, 3])/[4, 5, 6] @ W + b) @ V + c, acts[4], atol=1e-5)


def test_an_untried_archive(known):
    original = synthetic_archive(n=30, spec=SPEC)
    known.normaliser.mean.fill_(7.)
    a = known.generate(ASKED, n=2).to_archive(original)
    assert a.spec == SPEC and a.dims == original.dims and a.horizon == original.horizon and len(a) == 10
    assert not a.objective.any() and not a.length.any() and (a.obs_mean == 7).all() and 'synthetic' not in a.meta
    np.testing.assert_array_equal(a.measures, np.repeat(ASKED, 2, 0))
    half = known.generate(ASKED[:1], given=np.array([[True, False]]))
    with pytest.raises(ValueError, match='measures of these policies were left free'): half.to_archive(original)


# ---- requests that cannot be met

@pytest.mark.parametrize('measures, given, n, message', [
    ([.5, .5], None, 1, r"measures has shape \(2,\): expected \(m, 2\)"),
    ([[.5, .5, .5]], None, 1, r"measures has shape \(1, 3\): expected \(m, 2\)"),
    (np.zeros((0, 2)), None, 1, r"measures has shape \(0, 2\)"),
    ([[.5, .5], [.5, 1.01]], None, 1, r"measures holds 1.01 in row 1: expected shares in \[0, 1\]"),
    ([[-.1, .5]], None, 1, r"measures holds -0.1 in row 0"),
    ([[.5, .5], [np.nan, .5]], None, 1, r"measures holds NaN in row 1: expected numbers in \[0, 1\]"),
    ([[np.inf, .5]], None, 1, r"measures holds inf in row 0"),
    ([[np.nan, .5]], [[True, False]], 1, r"measures holds NaN in row 0"),
    ([[.5, .5]], [True, True], 1, r"given has shape \(2,\) and type bool: expected \(1, 2\) of bool"),
    ([[.5, .5]], [[1, 0]], 1, r"given has shape \(1, 2\) and type int64: expected \(1, 2\) of bool"),
    ([[.5, .5]], None, 0, r"n is 0: expected at least 1 policy")])
def test_bad_requests(known, measures, given, n, message):
    with pytest.raises(ValueError, match=message): known.generate(measures, n=n, given=given)


def test_the_ends_of_the_range_can_be_asked_for():
    measures, given = check_request([[0, 1]], None, 2, 1)
    assert measures.tolist() == [[0, 1]] and given.all()


# ---- files that cannot be read

@pytest.fixture
def file(autoencoder, tmp_path): return paper(autoencoder).save(tmp_path/'g.safetensors')


def rewrite(path, change):
    tensors, header = load_tensors(path)
    change(tensors, header)
    return save_tensors(path, tensors, header)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.safetensors does not exist: expected a file of kind generator'): Generator.load(tmp_path/'none.safetensors')


@pytest.mark.parametrize('keep', [.999, .5, .001])
def test_truncated(file, keep):
    data = file.read_bytes()
    file.write_bytes(data[:int(len(data)*keep)])
    with pytest.raises(ValueError, match='g.safetensors is truncated or not a safetensors file .*: expected one of kind generator'): Generator.load(file)


def test_foreign(file):
    file.write_bytes(b'not at all ' * 100)
    with pytest.raises(ValueError, match='truncated or not a safetensors file'): Generator.load(file)
    synthetic_archive().save(file)
    with pytest.raises(ValueError, match="g.safetensors is of kind 'archive': expected kind 'generator'"): Generator.load(file)


def test_of_another_task(file):
    with pytest.raises(ValueError, match="g.safetensors is a generator of 'walker2d': expected 'ant'"): Generator.load(file, 'ant')


@pytest.mark.parametrize('change, message', [
    (lambda t, h: t['denoiser.output_projection.2.weight'].__setitem__((0, 0, 0, 0), np.nan), "tensor 'denoiser.output_projection.2.weight' holds values that are not finite"),
    (lambda t, h: h.update(format_version=9), 'has format version 9: expected 2'),
    (lambda t, h: h['design']['denoiser'].update(name='oracle'), "is not a sound generator.*denoiser 'oracle' is unknown: expected one of unet, residual"),
    (lambda t, h: h.pop('design'), "is not a sound generator.*'design'"),
    (lambda t, h: h['design'].update(wings=2), 'is not a sound generator.*wings'),
    (lambda t, h: h['design'].update(n_measures=3), r"tensor 'denoiser.condition.net.0.weight' has shape \(8, 4\): expected \(8, 6\)"),
    (lambda t, h: t.pop('normaliser.std'), r"tensor 'normaliser.std' has shape none: expected \(3,\)"),
    (lambda t, h: t.update(extra=np.zeros(2)), r"tensor 'extra' has shape \(2,\): expected no such tensor"),
    (lambda t, h: h['sampling'].update(eta=2), 'eta is 2: expected a number between 0 and 1'),
    (lambda t, h: h['sampling'].update(eta=np.nan), 'Sampling.eta is nan: expected a finite number'),
    (lambda t, h: h['sampling'].update(guidance=np.nan), 'Sampling.guidance is nan: expected a finite number'),
    (lambda t, h: h['sampling'].update(clip=-1), 'clip is -1: expected a positive number'),
    (lambda t, h: h['sampling'].update(last=1.5), 'Sampling.last is 1.5: expected a whole number'),
    (lambda t, h: h['sampling'].update(n_steps=601), 'n_steps is 601: expected between 1 and 600'),
    (lambda t, h: h['sampling'].update(n_steps=True), 'Sampling.n_steps is True: expected a whole number'),
    (lambda t, h: h['sampling'].update(sampler='dice'), "sampler 'dice' is unknown"),
    (lambda t, h: h.update(task=5), 'task 5 is unknown: expected one of hopper'),
    (lambda t, h: h.update(task='x'*10**5), 'task .* is unknown: expected one of hopper'),
    (lambda t, h: h.update(provenance=[]), r'provenance is \[\]: expected a dictionary'),
    (lambda t, h: h.update(n_params={'denoiser': 1}), 'n_params is .*: expected'),
    (lambda t, h: h['design'].update(latent_shape=[2, 4, 10**6]), 'latent_shape is .*: expected whole numbers whose product is at most'),
    (lambda t, h: h['design'].update(schedule_steps=10**9), 'schedule_steps is 1000000000: expected between 2 and 100000'),
    (lambda t, h: h['design']['denoiser'].update(heads=3), 'is not a sound generator'),
    (lambda t, h: h['design'].update(denoiser={'name': 'residual', 'n_blocks': 10**6}), 'more than the file'),
    (lambda t, h: h['spec'].update(hidden=[20_000, 20_000]), 'more than the file'),
    (lambda t, h: h['spec'].update(hidden=[10**12, 10**12]), 'is not a sound generator'),
    (lambda t, h: h['spec'].update(hidden=[1]*10**5), 'spec.hidden names 100000 layers: expected at most 64'),
    (lambda t, h: t['latent_scale.std'].__setitem__((0, 0, 0), -1), 'standard deviation of it is not positive'),
    (lambda t, h: t.update({'denoiser.time.0.bias': t['denoiser.time.0.bias'].astype(np.int32)}), "tensor 'denoiser.time.0.bias' has shape .* and type int32"),
    (lambda t, h: t.update({'denoiser.time.0.bias': np.full(128, 1e300)}), "tensor 'denoiser.time.0.bias' holds values too large")])
def test_unsound(file, change, message):
    rewrite(file, change)
    with pytest.raises(ValueError, match=message) as e: Generator.load(file)
    assert 'g.safetensors' in str(e.value) and '\n' not in str(e.value)


def test_a_header_takes_no_memory(file):
    import resource, time
    for change in (lambda t, h: h['spec'].update(hidden=[20_000, 20_000]), lambda t, h: h['design'].update(denoiser={'name': 'residual', 'n_blocks': 10**6})):
        rewrite(file, change)
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        with pytest.raises(ValueError): Generator.load(file)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000 and time.process_time() - started < 5  # kB and s


def test_a_files_messages_are_short(file):
    for change in (lambda t, h: h.update(task='x'*10**5), lambda t, h: h['design']['denoiser'].update(name='y'*10**5), lambda t, h: t.update({'z'*10**5: np.zeros(2)})):
        rewrite(file, change)
        with pytest.raises(ValueError) as e: Generator.load(file)
        assert len(str(e.value)) < 700


def test_another_robots_name_is_refused(tmp_path):
    g = Generator('walker2d', PolicySpec(17, 6), Design(2, (3,), {'name': 'low_rank', 'ranks': [1, 1, 1]}, {'name': 'residual', 'width': 8}))
    path = g.save(tmp_path/'g.safetensors')
    rewrite(path, lambda t, h: h.update(task='ant'))
    with pytest.raises(ValueError, match="task is 'ant', but policies of 17 observations and 6 actions fit walker2d, halfcheetah: expected 27 observations and 8 actions"): Generator.load(path)


def test_no_weight_is_ever_not_finite(known):
    known.sampling = Sampling(n_steps=4, guidance=1000.)
    known.latent_scale.std.fill_(3e38)  # the guess stays just below the largest number otherwise
    with pytest.raises(ValueError, match='values that are not finite: expected finite numbers; lower the guidance'):
        known.generate([[.5, .5]])


@pytest.mark.parametrize('value', [1e5, np.nan])
def test_what_half_precision_cannot_hold_is_refused_and_the_old_file_stays(autoencoder, file, value):
    before = file.read_bytes()
    g = paper(autoencoder)
    with torch.no_grad(): g.decoder.scale[0] = value
    with pytest.raises(ValueError, match="tensor 'decoder.scale' holds values that are not finite in half precision"): g.save(file)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ['g.safetensors']


# ---- training

TRAINING = DiffusionSettings(network={'width': 64}, cosine=True, lr=1e-2, batch_size=16, epochs=8, ema_decay=.9, sampling=Sampling(n_steps=10))
M = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
Z = torch.stack([3*M[:, 0], M.sum(1), 5 + .01*M[:, 1]], 1)  # three latents that follow from two measures


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setitem(DECODERS, 'repeats', Repeats)

    def make():
        torch.manual_seed(0)
        return Generator('walker2d', SPEC, Design(2, (3,), {'name': 'repeats', 'times': 1}, {'name': 'residual', **TRAINING.network}), sampling=TRAINING.sampling)
    return make


def finish(generator, *args) -> np.ndarray:
    for _, losses in train_generator(generator, Z, M, *args): pass
    return losses


def same(a, b) -> bool: return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize('stop', [1, 5, 24])  # in the first step, in the middle of an epoch, after the last step
def test_killed_and_resumed_ends_where_the_straight_run_ends(fresh, tmp_path, stop):
    straight, killed, resumed = fresh(), fresh(), fresh()
    losses = finish(straight, TRAINING, 3)
    for step, _ in train_generator(killed, Z, M, TRAINING, 3, tmp_path/'c', every=0.):
        if step == stop: break
    first = next(train_generator(fresh(), Z, M, TRAINING, 3, tmp_path/'c'))[0]
    again = finish(resumed, TRAINING, 3, tmp_path/'c')
    assert len(losses) == 24 and first == stop
    np.testing.assert_array_equal(again, losses)
    assert same(resumed, straight) and resumed.sampling == straight.sampling


def test_a_checkpoint_of_another_run_is_not_used(fresh, tmp_path):
    for step, _ in train_generator(fresh(), Z, M, TRAINING, 3, tmp_path/'c', every=0.):
        if step == 9: break
    for other in ((Z, M, TRAINING, 4), (Z + 1, M, TRAINING, 3), (Z, M, replace(TRAINING, lr=.02), 3)):
        assert next(train_generator(fresh(), *other, tmp_path/'c'))[0] == 1


@pytest.mark.parametrize('change, says', [
    (lambda t: t.update({'optimiser.0.exp_avg': np.zeros(3, np.float32)}), r"tensor 'optimiser.0.exp_avg' has shape \(3,\)"),
    (lambda t: t.update({'optimiser.0.step': t['optimiser.0.step'].astype(np.float64)}), "tensor 'optimiser.0.step' is of type float64: expected single precision"),
    (lambda t: t.pop('loss'), "lacks 'loss'"), (lambda t: t.update(rng=t['rng'][:9]), 'expected the state of a generator'),
    (lambda t: t.update(losses=t['losses'][:2]), 'expected one loss a step')])
def test_a_damaged_checkpoint_is_refused(fresh, tmp_path, change, says):
    for step, _ in train_generator(fresh(), Z, M, TRAINING, 3, tmp_path/'c', every=0.):
        if step == 4: break
    rewrite(tmp_path/'c', lambda t, h: change(t))
    with pytest.raises(ValueError, match=says) as e: next(train_generator(fresh(), Z, M, TRAINING, 3, tmp_path/'c'))
    assert str(e.value).startswith(str(tmp_path/'c'))


def test_it_learns_what_follows_from_the_measures(fresh):
    g = fresh()
    finish(g, replace(TRAINING, lr=5e-3, batch_size=40, epochs=200, ema_decay=.98), 3)
    z = g.draw_latents(M.numpy(), seed=1)
    error = ((g.latent_scale(z) - g.latent_scale(Z))**2).mean(0)
    assert (error < .7).all()  # 1 would be the mean every time, 2 would be deaf to the request; also the third, whose s.d. is .003


def test_a_loss_that_is_not_finite_stops_with_the_step(fresh):
    with pytest.raises(NonFiniteLoss, match='at step'): finish(fresh(), replace(TRAINING, lr=1e30, cosine=False), 3)


def test_encoding_in_chunks(autoencoder):
    model, rows = autoencoder
    z, spread = encode_policies(model, rows, chunk=7)
    with torch.no_grad(): mean, logvar = model.eval().encode(rows)
    np.testing.assert_allclose(z, mean, atol=1e-5); np.testing.assert_allclose(spread**2, logvar.exp(), rtol=1e-4)


def test_unit_variance():
    z = torch.randn(50, 2, 2)*torch.tensor([[1e-3, 1], [30, 0]]) + 4
    s = LatentScale((2, 2)); s.fit(z)
    np.testing.assert_allclose(s(z).std(0), [[1, 1], [1, 0]], atol=1e-4)  # what never varies stays as it is
    np.testing.assert_allclose(s.undo(s(z)), z, rtol=1e-5)


def test_one_scale_for_all_numbers():
    "By hand: the s.d. of 0, 2, 4, 10 about their mean of 4 is sqrt(56/3), and nothing is subtracted."
    s = LatentScale((2,)); s.fit(torch.tensor([[0., 2], [4, 10]]), scalar=True)
    np.testing.assert_allclose(s(torch.tensor([[0., 8]])), [[0, 8/(56/3)**.5]], rtol=1e-6)


# ---- the paper's settings

def test_the_papers_numbers():
    s = diffusion_settings('paper')
    assert (s.steps, s.batch_size, s.lr, s.vlb_weight) == (500*(7470//32 + 1), 32, 1e-3, 1e-5)
    assert (s.logvar_lr, s.clip, s.ema_decay, s.scalar, s.velocity, s.cosine) == (1e-3, 1., 0., True, False, False)
    assert (s.sampling.sampler, s.sampling.n_steps, s.sampling.eta) == ('ddim', 100, 0.)
    design = Design(2, (4, 4, 4), {}, {'name': 'unet', **s.network})
    unet = generator_module._build('denoiser', DENOISERS, latent_shape=design.latent_shape, cond_size=2, n_steps=design.schedule_steps, **design.denoiser)
    assert design.schedule_steps == 600 and count_parameters(unet) == pytest.approx(9_868_444, rel=.02)
    assert diffusion_settings('laptop', 'paper_full') == s and diffusion_settings('laptop').network != s.network


@pytest.mark.parametrize('args, message', [(('desk',), "scale 'desk' is unknown"), (('smoke', 'magic'), "method 'magic' is unknown")])
def test_unknown_settings(args, message):
    with pytest.raises(ValueError, match=message): diffusion_settings(*args)


# ---- requests too far from everything that the archive does

def test_a_far_request_gets_one_warning_that_names_the_nearest(known):
    known.remember(np.float32([[.1, .1], [.11, .1], [.9, .8]]))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        known.generate(np.float32([[.12, .13], [.88, .8]]))
        known.generate(np.float32([[np.nan, .8]]), given=np.array([[False, True]]))
    says = r'1 of 2 requests lie far.*\[0\.50, 0\.60\].*known behaviour is \[0\.89, 0\.80\]'
    with pytest.warns(UserWarning, match=says) as told:
        known.generate(np.float32([[.5, .6], [.1, .1]]), n=4)
    assert len(told) == 1


def test_a_generator_that_was_only_built_like_another_one_warns_of_nothing(known):
    known.remember(np.float32([[.1, .1], [.9, .8]]))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Generator(known.task, known.spec, known.design).conditioner.read(np.float32([[.5, .6]]))


def test_what_it_remembers_is_counted_and_kept(known, tmp_path):
    before = count_parts(known)['condition']
    known.remember(np.random.default_rng(0).random((500, 2)))
    kept = Generator.load(known.save(tmp_path/'g.safetensors'))
    n = kept.conditioner.filled.numel()
    assert count_parts(kept)['condition'] - before == known.conditioner.filled.numel() == n
    np.testing.assert_allclose(kept.conditioner.filled, known.conditioner.filled, atol=1e-3)
    with pytest.warns(UserWarning, match='far from everything'):
        kept.remember(np.float32([[0, 0]])); kept.generate(np.float32([[1, 1]]))
