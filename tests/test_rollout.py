"Evaluations mean what they say: against a loop, twice the same, fair to rows, honest about bad input."
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from policydiffusion.policy import act_jax, init_params
from policydiffusion.rollout import _evaluate, evaluate, reset_key, trace, visited_observations
from policydiffusion.tasks import get_task, make_env

SPEC = get_task('walker2d').spec()
ZERO, ONE = np.zeros(17, np.float32), np.ones(17, np.float32)


@pytest.fixture(scope='module')
def params():
    rows = np.stack([np.asarray(init_params(jax.random.key(i), SPEC, .1)) for i in range(70)])
    return rows + np.random.default_rng(0).normal(0, .1, rows.shape).astype(np.float32)


@pytest.fixture(scope='module')
def result(params):
    return evaluate('walker2d', SPEC, params, ZERO, ONE, n_episodes=2, horizon=40, seed=5, envs=32)


@pytest.fixture(scope='module')
def single():
    "Reset and step of one environment, compiled once."
    env = make_env('walker2d')
    return jax.jit(env.reset), jax.jit(lambda row, s: env.step(s, act_jax(SPEC, row, ZERO, ONE, s.obs)))


def loop(single, row, i, episode, horizon, seed):
    "One environment stepped in Python until its first done."
    reset, step = single
    state = reset(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), episode))
    total, contacts, t = 0., np.zeros(2), 0
    while t < horizon:
        state, m = step(row, state)
        total, contacts, t = total + float(state.reward), contacts + np.asarray(m), t + 1
        if state.done: break
    return total, contacts/t, t


def test_lanes_equal_a_loop(params, result, single):
    for i in (0, 69):
        runs = [loop(single, params[i], i, e, 40, 5) for e in range(2)]
        assert result.length[i] == np.mean([r[2] for r in runs])
        assert np.isclose(result.objective[i], np.mean([r[0] for r in runs]), atol=.5)  # physics amplifies the last bit
        assert np.allclose(result.measures[i], np.mean([r[1] for r in runs], 0), atol=.04)


def test_twice_the_same_and_other_seeds_differ(params, result):
    again = evaluate('walker2d', SPEC, params, ZERO, ONE, n_episodes=2, horizon=40, seed=5, envs=32)
    other = evaluate('walker2d', SPEC, params, ZERO, ONE, n_episodes=2, horizon=40, seed=6, envs=32)
    assert (again.objective == result.objective).all() and (again.measures == result.measures).all()
    assert (other.objective != result.objective).any()


def test_a_row_gets_its_own_result_whatever_the_queue(params, result):
    "Fewer rows than environments, so jobs are handed out differently; short episodes, so noise stays small."
    few = evaluate('walker2d', SPEC, params[:10], ZERO, ONE, n_episodes=2, horizon=40, seed=5, envs=32, n_max=128)
    assert np.abs(few.length - result.length[:10]).max() <= 1
    assert np.median(np.abs(few.objective - result.objective[:10])) < .1


def test_measures_are_shares_and_lengths_end_at_the_horizon(result):
    assert ((result.measures >= 0) & (result.measures <= 1)).all()
    assert result.length.max() <= 40 and result.length.min() >= 1


def test_actions_are_clipped_before_the_control_cost(params):
    "A policy that shouts 100 pays for 1: without the clip its control cost alone would be -60 a step."
    loud = np.zeros((1, SPEC.n_params), np.float32)
    loud[0, -6:] = 100.
    e = evaluate('walker2d', SPEC, loud, ZERO, ONE, n_episodes=2, horizon=40, seed=0, envs=32, n_max=128)
    assert e.objective[0] > -40


def test_observations_come_from_the_living_part(params):
    seen = trace('walker2d', SPEC, params[:4], ZERO, ONE, horizon=200, stride=5)
    obs = visited_observations(seen, 12)
    for i in range(4):
        alive = seen.obs[i][seen.alive[i]]
        assert (np.abs(obs[i][:, None] - alive[None]).max(-1).min(1) == 0).all()


@pytest.mark.parametrize('change,message', [
    (dict(params=np.zeros((2, 10))), r'params has shape \(2, 10\): expected \(n, 5702\)'),
    (dict(params=np.full((2, SPEC.n_params), np.nan)), 'params holds values that are not finite'),
    (dict(task='hopper'), 'hopper has 11 and 3'),
    (dict(task='cow'), "task 'cow' is unknown")])
def test_bad_input_is_one_sentence(change, message):
    args = {'task': 'walker2d', 'spec': SPEC, 'params': np.zeros((2, SPEC.n_params)), 'obs_mean': ZERO, 'obs_std': ONE, **change}
    with pytest.raises(ValueError, match=message): evaluate(**args)


TWO_DEVICES = """
import sys, jax, numpy as np
from policydiffusion.rollout import evaluate
from policydiffusion.tasks import get_task
assert jax.device_count() == 2
params, means, stds = (np.load(sys.argv[1])[k] for k in ('params', 'means', 'stds'))
for own in (False, True):
    norm = (x if own else x[0] for x in (means, stds))
    e = evaluate('walker2d', get_task('walker2d').spec(), params, *norm, 2, 25, seed=5, envs=32)
    np.savez(f'{sys.argv[2]}{own:d}.npz', **vars(e))
"""


def test_two_devices_say_what_one_says(params, tmp_path):
    "An odd number of rows, shared and own normalisers; each episode keeps its start wherever it runs."
    few, rng = params[:9], np.random.default_rng(1)
    means, stds = rng.normal(0, .1, (9, 17)).astype(np.float32), rng.uniform(.8, 1.2, (9, 17)).astype(np.float32)
    np.savez(tmp_path/'in.npz', params=few, means=means, stds=stds)
    env = {**os.environ, 'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')
           + ' --xla_force_host_platform_device_count=2'}
    subprocess.run([sys.executable, '-c', TWO_DEVICES, tmp_path/'in.npz', tmp_path/'out'], env=env, check=True)
    for own in (False, True):
        there = np.load(tmp_path/f'out{own:d}.npz')
        norm = (x if own else x[0] for x in (means, stds))
        here = evaluate('walker2d', SPEC, few, *norm, 2, 25, seed=5, envs=32)
        assert here.length.std() > 0 or here.objective.std() > 0
        for name, x in vars(here).items(): np.testing.assert_allclose(there[name], x, rtol=2e-3, atol=2e-3, err_msg=name)


def test_other_numbers_of_rows_episodes_and_steps_compile_nothing(params, result):
    compiled = _evaluate._cache_size()
    for n, n_episodes, horizon in ((1, 1, 10), (33, 3, 7), (70, 16, 2)):
        e = evaluate('walker2d', SPEC, params[:n], ZERO, ONE, n_episodes, horizon, 5, envs=32)
        assert len(e.length) == n and (e.length <= horizon).all()
    assert _evaluate._cache_size() == compiled
    few = evaluate('walker2d', SPEC, params[:3], ZERO, ONE, 2, 40, seed=5, envs=32)
    for name, x in vars(few).items(): np.testing.assert_array_equal(x, getattr(result, name)[:3])


def test_rows_start_alike_in_one_call_or_in_parts(params, result):
    "Rows 60 to 69, told that they are rows 60 to 69; and not told."
    options = dict(n_episodes=2, horizon=40, seed=5, envs=32, n_max=128)
    told, untold = (evaluate('walker2d', SPEC, params[60:], ZERO, ONE, **options, first=i) for i in (60, 0))
    assert np.abs(told.length - result.length[60:]).max() <= 1
    assert np.median(np.abs(told.objective - result.objective[60:])) < .1 < np.median(np.abs(untold.objective - result.objective[60:]))


def test_a_trace_starts_the_same_in_any_batch_and_otherwise_than_an_evaluation(params):
    starts = lambda batch: trace('walker2d', SPEC, params[:5], ZERO, ONE, 200, 5, seed=5,
                                 batch=batch).obs[:, 0]
    whole, parts = starts(128), starts(2)
    np.testing.assert_array_equal(whole, parts)
    assert len(np.unique(whole[:, 0])) == 5
    key = jax.random.key(5)
    evaluated = [np.asarray(make_env('walker2d').reset(jax.random.fold_in(jax.random.fold_in(key, i), 0)).obs) for i in range(2)]
    assert all(np.abs(whole - start).max(1).min() > 1e-3 for start in evaluated)


def test_all_bits_of_a_seed_count():
    assert reset_key(7) == jax.random.key(7)
    assert len({tuple(jax.random.key_data(reset_key(s)).tolist()) for s in (0, 1, 2**32, 2**32 + 1, 2**63 - 1)}) == 5
    with pytest.raises(ValueError, match='seed is .*: expected between 0 and'): reset_key(2**64)
