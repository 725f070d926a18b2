"What no function can use is refused at its door, in one sentence and in the same words everywhere."
from dataclasses import replace

import numpy as np
import pytest
import torch

from policydiffusion import compose, rollout
from policydiffusion.archive import Archive, check_name, project, synthetic_archive, to_bytes
from policydiffusion.autoencoder import (AutoencoderSettings, build_autoencoder, reconstruct,
                                         standardisation, toy_archive, unexplained_variance)
from policydiffusion.baselines import CodeBook, StoredElites, fit, quantise
from policydiffusion.behaviour import compact_settings, with_neighbours
from policydiffusion.core import (DATA, check_array, check_count, check_number, check_path,
                                  load_tensors, project_root, save_tensors)
from policydiffusion.results import read_results
from policydiffusion.damage import broken_joint, damaged_env
from policydiffusion.dataset import held_out, reevaluate, requests_between
from policydiffusion.diffusion import (Schedule, ToyDenoiser, cosine_schedule, drop_condition, sample, swiss_roll, timesteps,
                                       train_diffusion)
from policydiffusion.generator import Generator, Sampling, check_request
from policydiffusion.relabel import propose
from policydiffusion.language import watch, draw_conditions
from policydiffusion.archive import best_of_cvt
from policydiffusion.distil import encode_policies, paper_design, practice_requests, take_decoder
from policydiffusion.metrics import (actions, archive_path, compression, compression_bytes,
                                     js_divergence, load_run, look_up, nearest_distance,
                                     step_minutes, typical_observations, write_between)
from policydiffusion.policy import PolicySpec, act_torch, check_shapes
from policydiffusion.rollout import evaluate, room, trace, visited_observations
from policydiffusion.search import discount, spread_out
from policydiffusion.tasks import get_task, make_env
from policydiffusion.training import start_training

SPEC = get_task('walker2d').spec()
ROWS, ZERO, ONE = np.zeros((2, SPEC.n_params), np.float32), np.zeros(17, np.float32), np.ones(17, np.float32)
TOY = synthetic_archive(n=60)


def refusal(call, *args, **more) -> str:
    with pytest.raises(ValueError) as info: call(*args, **more)
    message = str(info.value)
    assert 'expected' in message and '\n' not in message and len(message) < 400
    return message


# ---- normalisers and weights

USERS = {  # what takes policies: rows, mean and standard deviation to a call
    'evaluate': lambda p, m, s: evaluate('walker2d', SPEC, p, m, s),
    'trace': lambda p, m, s: trace('walker2d', SPEC, p, m, s),
    'watch': lambda p, m, s: watch('walker2d', SPEC, p, m, s),
    'play': lambda p, m, s: compose.play('walker2d', SPEC, np.asarray(p)[:, None], m, s, (6,)),
    'choose': lambda p, m, s: compose.choose('walker2d', SPEC, np.asarray(p)[:, None, None], m, s, (6,)),
    'Archive': lambda p, m, s: Archive('walker2d', SPEC, p, np.zeros(len(p)), np.zeros((len(p), 2)), np.zeros(len(p)), m, s, (4, 4))}


@pytest.mark.parametrize('who', USERS)
@pytest.mark.parametrize('change, words', [
    (dict(m=ZERO*np.nan), 'obs_mean holds values that are not finite: expected finite numbers only'),
    (dict(s=ONE*np.inf), 'obs_std holds values that are not finite: expected finite numbers only'),
    (dict(s=ZERO), 'obs_std holds values that are not positive: expected positive standard deviations'),
    (dict(s=-ONE), 'obs_std holds values that are not positive: expected positive standard deviations'),
    (dict(m=ZERO[1:]), 'obs_mean has shape (16,): expected (17,) or (2,'),
    (dict(s=np.ones((3, 17))), 'obs_std has shape (3, 17): expected (17,) or (2,'),
    (dict(m=0.), 'obs_mean has shape (): expected (17,) or (2,'),
    (dict(p=ROWS*np.nan), 'params holds values that are not finite: expected finite numbers only'),
    (dict(p=ROWS[:, 1:]), f'params has shape (2, ')])
def test_all_doors_say_the_same(who, change, words):
    assert words in refusal(USERS[who], **{'p': ROWS, 'm': ZERO, 's': ONE, **change})


@pytest.mark.parametrize('who', [u for u in USERS if u != 'Archive'])
def test_complex_numbers_and_words_are_no_weights(who):
    assert 'holds values of type complex64: expected real numbers' in refusal(USERS[who], ROWS + np.complex64(1j), ZERO, ONE)
    assert 'obs_mean holds values of type' in refusal(USERS[who], ROWS, ['a']*17, ONE)
    assert 'obs_std cannot be read as an array' in refusal(USERS[who], ROWS, ZERO, [[1.], [1., 2.]])


def test_nobody_to_roll_out():
    for call in (lambda: trace('walker2d', SPEC, ROWS[:0], ZERO, ONE), lambda: compose.play('walker2d', SPEC, ROWS[:0, None], ZERO, ONE, (6,)),
                 lambda: reevaluate(TOY.select([]), 1, 0)): refusal(call)


# ---- counts

G = Generator.load(DATA/'generators'/'walker2d.safetensors')
X = torch.zeros(4, 2)
COUNTS = {
    'evaluate n_episodes': lambda n: evaluate('walker2d', SPEC, ROWS, ZERO, ONE, n_episodes=n),
    'evaluate horizon': lambda n: evaluate('walker2d', SPEC, ROWS, ZERO, ONE, horizon=n),
    'evaluate envs': lambda n: evaluate('walker2d', SPEC, ROWS, ZERO, ONE, envs=n),
    'evaluate n_max': lambda n: evaluate('walker2d', SPEC, ROWS, ZERO, ONE, n_max=n),
    'trace horizon': lambda n: trace('walker2d', SPEC, ROWS, ZERO, ONE, horizon=n),
    'trace stride': lambda n: trace('walker2d', SPEC, ROWS, ZERO, ONE, stride=n),
    'trace batch': lambda n: trace('walker2d', SPEC, ROWS, ZERO, ONE, batch=n),
    'visited_observations n_obs': lambda n: visited_observations(None, n),
    'reevaluate n_episodes': lambda n: reevaluate(replace_spec(), n, 0),
    'reevaluate horizon': lambda n: reevaluate(replace_spec(), 1, 0, n),
    'watch batch': lambda n: watch('walker2d', SPEC, ROWS, ZERO, ONE, batch=n),
    'generate n': lambda n: G.generate([[.5, .5]], n=n),
    'generate batch': lambda n: G.generate([[.5, .5]], batch=n),
    'draw_latents n': lambda n: G.draw_latents([[.5, .5]], n=n),
    'check_request n': lambda n: check_request([[.5, .5]], None, 2, n),
    'compose m': lambda n: compose.compose(G, [((.5, .5), 6)], m=n),
    'compose n_episodes': lambda n: compose.compose(G, [((.5, .5), 6)], n_episodes=n),
    'compose steps': lambda n: compose.compose(G, [((.5, .5), n)]),
    'play envs': lambda n: compose.play('walker2d', SPEC, ROWS[:, None], ZERO, ONE, (6,), envs=n),
    'choose rounds': lambda n: compose.choose('walker2d', SPEC, ROWS[:, None, None], ZERO, ONE, (6,), rounds=n),
    'alternatives m': lambda n: compose.alternatives(np.zeros((1, 1, 2)), n),
    'cosine_schedule n_steps': lambda n: cosine_schedule(n),
    'timesteps n_steps': lambda n: timesteps(600, n),
    'timesteps last': lambda n: timesteps(600, 3, n),
    'sample n_steps': lambda n: sample(None, cosine_schedule(), (4, 2), n_steps=n),
    'sample shape': lambda n: sample(None, cosine_schedule(), (n, 2), torch.zeros(4, 0)),
    'swiss_roll n': lambda n: swiss_roll(n),
    'train_diffusion epochs': lambda n: next(train_diffusion(ToyDenoiser(), cosine_schedule(), X, epochs=n)),
    'train_diffusion batch_size': lambda n: next(train_diffusion(ToyDenoiser(), cosine_schedule(), X, batch_size=n)),
    'propose copies': lambda n: propose(X, torch.ones(2), X, n),
    'conditions each': lambda n: draw_conditions(np.ones((2, 2), bool), n),
    'StoredElites n': lambda n: StoredElites(TOY, n),
    'best_of_cvt n_cells': lambda n: best_of_cvt(TOY.measures, TOY.objective, n),
    'typical_observations n': lambda n: typical_observations(TOY, n),
    'js_divergence n_draws': lambda n: js_divergence(TOY.measures, TOY.measures, n)}


def replace_spec() -> Archive: return USERS['Archive'](ROWS, ZERO, ONE)


@pytest.mark.parametrize('what', COUNTS)
def test_counts_are_whole_numbers_from_one(what):
    for n in (0, -3, True, 2.5, '4', np.nan, np.inf): assert what.split()[1] in refusal(COUNTS[what], n)


@pytest.mark.parametrize('seed', [-1, .5, True, '1', None])
def test_seeds_are_whole_numbers_from_zero(seed):
    for call in (lambda: evaluate('walker2d', SPEC, ROWS, ZERO, ONE, n_episodes=1, horizon=1, seed=seed), lambda: trace('walker2d', SPEC, ROWS, ZERO, ONE, seed=seed),
                 lambda: G.generate([[.5, .5]], seed=seed), lambda: compose.play('walker2d', SPEC, ROWS[:, None], ZERO, ONE, (6,), seed=seed)):
        assert refusal(call).startswith(f'seed is {seed!r}: expected ')


@pytest.mark.parametrize('name, bad', [('p_drop', 2), ('p_drop', -.1), ('p_drop', np.nan), ('p_drop', True), ('ema_decay', 1.1), ('lr', -1.), ('lr', np.inf), ('weight_decay', 'no')])
def test_settings_of_training(name, bad):
    assert f'{name} is ' in refusal(lambda: next(train_diffusion(ToyDenoiser(), cosine_schedule(), X, **{name: bad})))


@pytest.mark.parametrize('name, bad', [('eta', 2), ('eta', np.nan), ('guidance', np.nan), ('guidance', '1'), ('clip', -1.), ('clip', np.inf),
                                       ('clip', 1e300), ('clip', 10**19), ('guidance', 10**30)])
def test_settings_of_sampling(name, bad):
    assert f'{name} is ' in refusal(lambda: sample(None, cosine_schedule(), (4, 2), **{name: bad}))
    assert f'{name} is ' in refusal(lambda: Sampling(**{name: bad}))


@pytest.mark.parametrize('bad', [2, -.5, np.nan, '0', None])
def test_dropout_is_a_chance(bad): assert 'p_drop is ' in refusal(drop_condition, 3, 2, bad)


@pytest.mark.parametrize('change', [lambda b, a: (b*np.nan, a), lambda b, a: (b, a*np.nan), lambda b, a: (b[:-1], a), lambda b, a: (b, a.flip(0)), lambda b, a: (b + 1, a), lambda b, a: (b[:1], a[:1])])
def test_a_schedule_fades(change):
    s = cosine_schedule(10)
    refusal(Schedule, *change(s.betas, s.abar))
    assert 'betas holds values of type' in refusal(Schedule, s.betas + 1j, s.abar)
    assert Schedule(s.betas, s.abar).n_steps == 10


# ---- arrays whose sides must fit together

SMALL = PolicySpec(4, 2, (3,))
ROW = toy_archive(SMALL, 6)
TINY = AutoencoderSettings((2, 4, 4), (4,), 4, 2)
AE = build_autoencoder(SMALL, TINY, *standardisation(ROW))
OBS, NORM = torch.zeros(6, 2, 4), (torch.zeros(4), torch.ones(4))
POINTS = np.random.default_rng(0).uniform(size=(6, 2)).astype(np.float32)
SIDES = {  # from one array to a call; each takes the one that stands beside it
    'act_torch params': (ROW, lambda x: act_torch(SMALL, x, *NORM, OBS)),
    'act_torch obs': (OBS, lambda x: act_torch(SMALL, ROW, *NORM, x)),
    'standardisation params': (ROW, standardisation),
    'build_autoencoder centre': (ROW[0], lambda x: build_autoencoder(SMALL, TINY, x, ROW[0])),
    'reconstruct params': (ROW, lambda x: reconstruct(AE, x)),
    'encode_policies params': (ROW, lambda x: encode_policies(AE, x)),
    'unexplained_variance decoded': (ROW, lambda x: unexplained_variance(SMALL, ROW, x)),
    'with_neighbours obs': (OBS, lambda x: with_neighbours(x, torch.from_numpy(POINTS))),
    'propose codes': (X, lambda x: propose(x, torch.ones(2), torch.rand(4, 2), 2)),
    'best_of_cvt measures': (POINTS, lambda x: best_of_cvt(x, POINTS[:, 0], 2)),
    'nearest_distance x': (POINTS, lambda x: nearest_distance(x, POINTS)),
    'js_divergence x': (POINTS, lambda x: js_divergence(x, POINTS, 64)),
    'actions obs': (POINTS[:, [0]*4], lambda x: actions(TOY, x)),
    'alternatives measures': (POINTS[None], lambda x: compose.alternatives(x, 2)),
    'spread_out measures': (POINTS, lambda x: spread_out(x, 0, 2)),
    'quantise params': (POINTS, quantise)}


@pytest.mark.parametrize('what', SIDES)
def test_arrays_that_do_not_fit_are_refused(what):
    (sound, call), name = SIDES[what], what.split()[1]
    call(sound)
    for bad in (sound[:0], sound[None], None, 'words'):
        assert refusal(call, bad).startswith(f'{name} h') or f'{name} is' in refusal(call, bad)
    if isinstance(sound, torch.Tensor):
        assert 'holds values of type' in refusal(call, sound.long())
        if call is not standardisation: assert 'of one precision' in refusal(call, sound.double())


def test_sides_are_held_against_each_other():
    x, d = POINTS, POINTS.astype(float)
    assert check_shapes(a=(x, 'n', 'k'), b=(x[:, 0], 'n'), c=(x[None], ..., 2)) == {'n': 6, 'k': 2}
    assert 'a has shape (6, 2): expected (n, 3)' in refusal(check_shapes, a=(x, 'n', 3))
    assert 'a has shape (2,): expected (..., n, 2)' in refusal(check_shapes, a=(x[0], ..., 'n', 2))
    assert 'a is [[1.0]]: expected an array of' in refusal(check_shapes, a=([[1.]], 'n', 'k'))
    said = refusal(check_shapes, a=(x, 'n', 'k'), b=(x[1:], 'n', 'k'))
    assert 'b has shape (5, 2): expected (6, 2)' in said
    assert 'of one precision, as in a' in refusal(check_shapes, a=(x, 'n', 2), b=(d, 'n', 2))


OTHER = build_autoencoder(SMALL, AutoencoderSettings((2, 4, 4), (4,), 4, 3), ROW[0], ROW[0])
REFUSED = {
    'keep is 2: expected between 0 and 1': lambda: project(TOY, (0, 2)),
    'keep is 1': lambda: project(TOY, 1),
    'params has shape (2,)': lambda: to_bytes([1., 2.]),
    'low is nan': lambda: held_out(POINTS, low=np.nan),
    'seed is -1': lambda: requests_between(TOY, 3, -1),
    'seconds is 0': lambda: discount('ant', 0),
    'decoder is nan': lambda: compression(1, 2, 3, np.nan),
    'expected shares in [0, 1]': lambda: look_up(TOY, POINTS + 1),
    'network is None': lambda: paper_design(AE, TINY, 2, None),
    'model has another decoder': lambda: take_decoder(G, OTHER, *NORM),
    "task ['ant'] is unknown": lambda: broken_joint(['ant']),
    "task {} is unknown": lambda: make_env({}),
    "task ['hopper'] is unknown": lambda: damaged_env(['hopper']),
    'count is nan': lambda: room(np.nan, 5),
    'n is 1000000000000000000000000000000': lambda: practice_requests(TOY, TOY, 10**30, 1., 0),
    'hidden is 3': lambda: PolicySpec(4, 2, 3),
    'steps is 3': lambda: compose.check_steps(3),
    'data is {}': lambda: start_training(AE, {}, TINY, 0),
    'seed is -2': lambda: start_training(AE, {'params': ROW}, TINY, -2)}


@pytest.mark.parametrize('says', REFUSED)
def test_other_values_that_no_function_can_use(says): assert says in refusal(REFUSED[says])


@pytest.mark.parametrize('bad', [5, None, '', 'a/b', '..', ['ant'], 'x'*3000])
def test_names_are_names(bad):
    for call in (lambda x: check_name('task', x), lambda x: compact_settings('laptop', task=x),
                 lambda x: archive_path('laptop', x), lambda x: load_run('smoke', 'ant', x, 0)):
        assert 'expected a name of letters, digits and _' in refusal(call, bad)


@pytest.mark.parametrize('bad', [5, ['x'], b'bytes', 'a\0b', 'x'*300])
def test_paths_are_paths(bad):
    for call in (check_path, load_tensors, project_root, read_results, step_minutes,
                 lambda x: write_between(x, ''), lambda x: compression_bytes(x, x),
                 lambda x: save_tensors(x, {}, {'kind': 'x'})):
        with pytest.raises(TypeError, match='^path is .*: expected the name of a file$'): call(bad)


# ---- measures

def test_what_an_evaluation_says_an_archive_takes(monkeypatch):
    "A hair above 1 or below 0, from sums in single precision, is cut off; more is an error."
    for over in (1 + 6e-8, 1 + 9e-5, -9e-5):
        n = rollout.ROWS*rollout.EPISODES  # places that a call has at least
        results = {'ret': np.zeros(n, np.float32), 'length': np.full(n, 9),
                   'measures': np.full((n, 2), over, np.float32)}
        monkeypatch.setattr(rollout, '_evaluate', lambda *_: results)
        e = evaluate('walker2d', SPEC, ROWS, ZERO, ONE, n_episodes=1)
        assert (e.measures == round(over)).all()
        Archive('walker2d', SPEC, ROWS, e.objective, e.measures, e.length, ZERO, ONE, (4, 4))
    results['measures'] += 1.0005
    assert 'reach from' in refusal(evaluate, 'walker2d', SPEC, ROWS, ZERO, ONE, n_episodes=1)


ASKED = {'generate': lambda m: G.generate([m]), 'compose': lambda m: compose.compose(G, [(m, 6)]), 'nearest_elites': lambda m: compose.nearest_elites(TOY, [m]),
         'StoredElites': lambda m: StoredElites(TOY, 4).answer([m]), 'CodeBook': lambda m: CodeBook(None, 0, X, torch.rand(4, 2)).answer([m])}


@pytest.mark.parametrize('who', ASKED)
def test_requests_are_refused_in_the_same_words(who):
    for bad, words in (((.5, 1.01), 'measures holds 1.01 in row 0: expected shares in [0, 1]'), ((.5, np.nan), 'measures holds NaN in row 0'),
                       ((.5, .5j), 'measures holds values of type complex128: expected real numbers'), ((-.1, .5), 'measures holds -0.1 in row 0')):
        assert words in refusal(ASKED[who], bad)
    assert 'expected (' in refusal(ASKED[who], (.5, .5, .5))


# ---- the three checks themselves

def test_what_passes_comes_back_plain():
    assert type(check_count('n', np.int8(3))) is int and check_count('n', 0, 0) == 0 and check_count('n', 4, 1, 4) == 4
    assert type(check_number('x', np.float32(.5), 0, 1)) is float and check_number('x', 1, 0, 1) == 1
    assert check_array('x', torch.ones(2, 2)).dtype == np.float32 and np.isnan(check_array('x', [np.nan], finite=False)).all()
    assert 'expected finite numbers only' in refusal(check_array, 'x', [1e300])


def test_long_values_are_not_echoed():
    assert len(refusal(check_count, 'n', 'a'*200_000)) < 120 and len(refusal(check_number, 'x', list(range(10_000)))) < 160
