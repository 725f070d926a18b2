"Search operators against pyribs, closed forms and brute force; a killed search goes on."
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ribs.archives import GridArchive

from policydiffusion.archive import to_half
from policydiffusion.core import load_tensors
from policydiffusion.policy import init_params
from policydiffusion.emitters import (XNES, Latent, Walker, branch, iso_line, latent_step,
                                      principal_components, reward_weights, soft_improvement,
                                      xnes_update)
from policydiffusion.pool import cell_of, empty_pool, insert, parent_weights
from policydiffusion.ppo import (Ancestor, Stage, WarmStart, advantages, critic_spec, load_ancestor,
                                 ppo_step, start_learner, warm_start)
from policydiffusion.search import (SMOKE, TINY, Search, adapted_shares, reevaluate_pool,
                                    run_search, search_scale, spread_out, survivors)
from policydiffusion.tasks import TASKS, get_task

DIMS = (6, 5)


def ribs_grid(**kwargs):
    return GridArchive(solution_dim=1, dims=DIMS, ranges=[(0, 1)]*2, epsilon=1e-5, **kwargs)


@pytest.fixture
def candidates():
    rng = np.random.default_rng(0)
    measures = rng.random((400, 2))
    measures[:20] = rng.integers(0, 2, (20, 2))  # borders, 1.0 included
    return np.arange(400, dtype=np.float32)[:, None], rng.normal(size=400), measures


def filled(candidates, depth):
    pool = empty_pool(1, DIMS, depth)
    for part in np.array_split(np.arange(400), 7):
        params, objective, measures = (x[part] for x in candidates)
        insert(pool, params, objective, measures, objective)
    return pool


@pytest.mark.parametrize('depth', [1, 3])
def test_elites_are_those_of_pyribs(candidates, depth):
    params, objective, measures = candidates
    grid, pool = ribs_grid(), filled(candidates, depth)
    grid.add(params, objective, measures)
    elite = pool.rank == 0
    assert dict(zip(pool.cell[elite], pool.params[elite, 0])) == dict(zip(grid.data('index'), grid.data('solution')[:, 0]))


def test_runners_up_are_the_next_best(candidates):
    _, objective, measures = candidates
    pool, cell = filled(candidates, 3), cell_of(measures, DIMS)
    for c in np.unique(cell):
        best = np.sort(objective[cell == c])[::-1][:3]
        assert pool.objective[pool.slots[c][pool.slots[c] >= 0]].tolist() == best.tolist()


def test_a_pool_changes_in_place_and_keeps_its_books(candidates):
    "Each row stands in one slot, which knows its cell and rank; a third of the candidates twice changes nothing."
    pool = filled(candidates, 2)
    before, rows = pool.rows['params'], pool.slots[pool.slots >= 0]
    assert sorted(rows) == list(range(len(pool))) and len(before) < 2*max(len(pool), 64)
    for cell, slots in enumerate(pool.slots):
        taken = slots[slots >= 0]
        assert (pool.cell[taken] == cell).all() and pool.rank[taken].tolist() == list(range(len(taken)))
    third = [x[::3] for x in candidates]
    ranks = insert(pool, *third, third[1])
    assert pool.rows['params'] is before
    assert (ranks[third[1] < pool.best[cell_of(third[2], DIMS)]] > 0).all() and (pool.objective[pool.slots[:, 0]] == pool.best).all()


def test_an_elite_gets_the_rank_that_it_reports():
    pool = empty_pool(1, (1,), depth=2)
    insert_one = lambda f: insert(pool, np.full((1, 1), f), np.array([f]), np.zeros((1, 1)), np.zeros(1))[0]
    assert [insert_one(f) for f in (3., 1., 2., 3., 2.5, 4.)] == [0, 1, 1, 1, 2, 0]
    assert pool.objective[pool.slots[0]].tolist() == [4, 3] and len(pool) == 2


def test_parents_stand_above_worse_neighbours():
    "Four living elites in a row: only the drop from the second to the third is steep, and it weighs fully."
    pool = empty_pool(1, (4,))
    insert(pool, np.zeros((4, 1), np.float32), np.array([1000., 1000., 0., 0.]), (np.arange(4)[:, None] + .5)/4, np.full(4, 1000.))
    w = parent_weights(pool, np.zeros(4), lasting=800)[pool.slots[:, 0]]
    assert np.allclose(w/w[0], [1, 3, 1, 1])


def test_latent_steps_go_where_they_should():
    "Weights that are a linear function of measures and objective: a child's own weights tell where it has got to."
    rng = np.random.default_rng(0)
    measures, objective = rng.random((900, 2)), rng.normal(size=900)
    y = np.c_[measures*30, objective]
    B = rng.normal(size=(3, 40))
    pool = empty_pool(40, (30, 30))
    insert(pool, (y @ B).astype(np.float32), objective, measures, objective)
    basis = principal_components(pool.params, 3, rng)
    size = Latent(d=3, neighbours=40, step=(2., 2.01), climb=3., noise=(1e-9, 2e-9))
    children, parents = latent_step(pool, np.arange(len(pool)), basis, np.full(len(pool), 1/len(pool)), 500, rng, size)
    moved = np.linalg.lstsq(B.T, (children - pool.params[parents]).T, rcond=None)[0].T
    assert np.allclose(moved[:, :2].std(0), 2, rtol=.1) and abs(moved[:, :2].mean()) < .2
    assert np.allclose(np.sort(moved[:, 2])[[0, 250, 499]], np.array([0, 1.5, 3])*objective[:].std(), atol=.4)


def test_principal_components_are_those_of_a_full_decomposition():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(200, 60))*.5**np.arange(60)) @ np.linalg.qr(rng.normal(size=(60, 60)))[0]
    mean, V = principal_components(rows.astype(np.float32), 5, rng)
    full = np.linalg.svd(rows - rows.mean(0))[2][:5]
    assert np.allclose(mean, rows.mean(0), atol=1e-5) and np.allclose(np.abs(V.T @ full.T), np.eye(5), atol=.02)


def test_runners_up_are_re_evaluated_only_where_they_may_win(monkeypatch):
    """Two cells, two candidates each. The first elite keeps what it promised: its runner-up need not run. The second falls
    below its runner-up's promise, which then runs, and turns out to live in the first cell, where it wins."""
    import policydiffusion.search as search
    from policydiffusion.rollout import Evaluation
    pool = empty_pool(1, (2,), depth=2)
    insert(pool, np.array([[0.], [1.], [2.], [3.]]), np.array([10., 9., 20., 19.]), np.array([[.2], [.2], [.7], [.7]]), np.ones(4))
    truth = {0.: (9.5, .2), 2.: (5., .7), 3.: (15., .3)}
    ran = []

    def evaluate(task, spec, params, *args):
        ran.extend(params[:, 0])
        f, m = np.array([truth[p] for p in params[:, 0]]).T
        return Evaluation(f, m[:, None], np.ones(len(f)), np.zeros(len(f)), np.zeros((len(f), 1)))
    monkeypatch.setattr(search, 'evaluate', evaluate)
    none = Ancestor(*[None]*6)
    *_, (done, most, found) = reevaluate_pool('walker2d', None, pool, pool.params, none, 0, batch=1)
    keep, fields = survivors(found, (2,))
    assert sorted(ran) == [0, 2, 3] and (done, most) == (3, 4)
    assert pool.params[keep, 0].tolist() == [3, 2] and fields['objective'].tolist() == [15, 5]


def test_a_killed_re_evaluation_goes_on(monkeypatch, tmp_path):
    import policydiffusion.search as search
    from policydiffusion.rollout import Evaluation
    pool, ran = empty_pool(1, (8,)), []
    insert(pool, np.arange(8.)[:, None], np.arange(8.), (np.arange(8)[:, None] + .5)/8, np.ones(8))

    def evaluate(task, spec, params, *args):
        ran.extend(params[:, 0])
        return Evaluation(params[:, 0], (params + .5)/8, np.ones(len(params)), np.zeros(len(params)), np.zeros((len(params), 1)))
    monkeypatch.setattr(search, 'evaluate', evaluate)
    monkeypatch.setattr(search.time, 'time', iter(range(0, 10**6, 61)).__next__)  # a minute goes by at every look
    run = lambda: reevaluate_pool('walker2d', None, pool, pool.params, Ancestor(*[None]*6), 0, batch=2, path=tmp_path/'r.safetensors')
    killed = run()
    for _ in range(2): next(killed)
    *_, (done, _, found) = run()
    assert done == 8 and sorted(ran) == sorted(range(8)) and found['objective'].tolist() == pool.objective.tolist()
    assert not list(run())  # nothing is left to do
    pool.rows['params'] += 1e-3
    assert len(list(run())) == 4 and len(ran) == 16  # other rows are evaluated anew


def test_the_more_fruitful_operator_gets_more_time():
    shares = adapted_shares(np.array([300., 100., 0.]), np.array([10., 10., 10.]), np.full(3, 1/3), .1)
    assert np.allclose(shares, [.1 + .7*.75, .1 + .7*.25, .1]) and shares.sum() == pytest.approx(1)
    untried = np.array([10., 0., 10.])
    assert (adapted_shares(np.ones(3), untried, np.full(3, 1/3), .1) == 1/3).all()


def test_cells_are_those_of_pyribs_on_float32_borders():
    m = np.stack(np.meshgrid(np.arange(101)/100, np.arange(101)/100), -1).reshape(-1, 2).astype(np.float32)
    grid = GridArchive(solution_dim=1, dims=(100, 100), ranges=[(0, 1)]*2, epsilon=1e-5)
    assert (cell_of(m, (100, 100)) == grid.index_of(m.astype(np.float64))).all()


def test_soft_thresholds_are_those_of_cma_mae():
    rng = np.random.default_rng(1)
    grid, thresholds = ribs_grid(learning_rate=.3, threshold_min=-2.), np.full(30, -2.)
    for _ in range(5):
        objective, measures = rng.normal(size=60), rng.random((60, 2))
        info = grid.add(np.zeros((60, 1)), objective, measures)
        gain = soft_improvement(thresholds, cell_of(measures, DIMS), objective, .3)
        assert np.allclose(gain, info['value'], atol=1e-6)


def test_xnes_finds_the_optimum_of_an_ill_scaled_bowl():
    rng = np.random.default_rng(0)
    dist, scale, target = XNES(np.zeros(3), np.eye(3)), np.array([1., 5., .2]), np.array([2., -1., 4.])
    for _ in range(200):
        s = rng.standard_normal((48, 3))
        dist = xnes_update(dist, s, -((scale*(dist.mean + s @ dist.A.T - target))**2).sum(1))
    assert np.abs(scale*(dist.mean - target)).max() < .01


def test_xnes_stands_still_without_preference():
    rng = np.random.default_rng(0)
    s = rng.standard_normal((20_000, 3))
    moved = xnes_update(XNES(np.zeros(3), np.eye(3)), s, rng.normal(size=20_000))
    assert np.abs(moved.mean).max() < .05 and np.abs(moved.A - np.eye(3)).max() < .05


def test_advantages_equal_the_sum_they_stand_for():
    rng = np.random.default_rng(0)
    T, gamma, lam = 12, .9, .8
    r, v, done = rng.normal(size=(T, 3)), rng.normal(size=(T + 1, 3)), rng.random((T, 3)) < .2
    expected = np.zeros((T, 3))
    for t in range(T):
        weight = np.ones(3)
        for s in range(t, T):
            expected[t] += weight*(r[s] + gamma*v[s + 1]*~done[s] - v[s])
            weight = weight*gamma*lam*~done[s]
    got = advantages(r.astype(np.float32), done.astype(np.float32), v[:-1].astype(np.float32), v[-1].astype(np.float32), gamma, lam)
    assert np.allclose(got, expected, atol=1e-4)


def test_children_lie_on_the_line_when_noise_is_off():
    pool = empty_pool(3, DIMS)
    insert(pool, np.eye(3, dtype=np.float32)[:2], np.ones(2), np.array([[.1, .1], [.9, .9]]), np.ones(2))
    children, parents = iso_line(pool, np.array([.5, .5]), 500, np.random.default_rng(0), iso=(1e-9, 1.1e-9), line=(.3, .31))
    assert np.abs(children[:, 2]).max() < 1e-6 and np.allclose(children.sum(1), 1, atol=1e-5)
    assert set(parents) == {0, 1} and children[:, 0].std() > .1


def test_parents_live_at_the_frontier():
    "A full 6 x 5 grid of living elites but for one hole: only its neighbours are at the frontier. A dead one counts a tenth."
    cells = np.array([c for c in range(30) if c != 12])
    measures = (np.stack(np.unravel_index(cells, DIMS), 1) + .5)/DIMS
    length = np.where(cells == 0, 10., 1000.)
    pool = empty_pool(1, DIMS)
    insert(pool, np.zeros((29, 1), np.float32), np.ones(29), measures, length)
    w = parent_weights(pool, np.zeros(30), lasting=800)
    w = w/w[pool.cell == 29]
    assert np.isclose(w.sum(), 29 - 1 - 4 - 2 + .1 + 4*3 + 2*3)  # 4 beside the hole and 2 beside the dead one weigh 1 + 2


def test_fans_spread_evenly_and_never_pay_for_dying():
    weights = reward_weights(16, 2, 2., np.random.default_rng(0))
    assert np.abs(weights[:, 2:].sum(0)).max() < 1e-5 and np.allclose(np.linalg.norm(weights[:, 2:], axis=1), 2)
    worst_step = weights[:, 1] + np.minimum(weights[:, 2:], 0).sum(1)
    assert (worst_step >= 1 - 1e-5).all()


def test_branches_are_the_walker_plus_rows():
    rows, walker = np.eye(3, 10, dtype=np.float32), Walker(np.full(10, 5.), None, XNES(np.array([1., 0., 0.]), np.diag([1., 2., 0.])))
    children, s = branch(walker, rows, 7, np.random.default_rng(0))
    assert np.allclose(children[:, 0], 6 + s[:, 0]) and np.allclose(children[:, 1], 5 + 2*s[:, 1]) and (children[:, 2:] == 5).all()


@pytest.fixture(scope='module')
def ancestor():
    import jax
    spec = get_task('walker2d').spec()
    rows = np.stack([np.asarray(init_params(jax.random.key(i), spec, .1)) for i in range(4)])
    critic = np.asarray(init_params(jax.random.key(9), critic_spec(spec), 1.))
    return Ancestor(rows[0], critic, np.full(6, -1., np.float32), np.zeros(17, np.float32), np.ones(17, np.float32), rows[1:])


def test_a_killed_search_goes_on_and_finishes(ancestor, tmp_path):
    task = get_task('walker2d')
    new = lambda: Search('walker2d', task.spec(), ancestor, SMOKE.search, task.dims, seed=3)
    killed = new()
    lines = [killed.step() for _ in range(3)]
    killed.save(tmp_path/'search.safetensors')
    resumed = new()
    resumed.load(tmp_path/'search.safetensors')
    by_rank = lambda pool, name: getattr(pool, name)[np.lexsort((pool.rank, pool.cell))]
    for name in ('objective', 'measures', 'length', 'cell', 'rank'): assert (by_rank(killed.pool, name) == by_rank(resumed.pool, name)).all()
    assert (by_rank(resumed.pool, 'params') == to_half(by_rank(killed.pool, 'params'))).all() and resumed.iteration == 3
    assert resumed.history == killed.history and len(killed.history) == 3
    more = list(run_search(resumed, resumed.seconds/60 + .01, tmp_path/'search.safetensors'))
    assert more[0]['iteration'] == 4 and more[-1]['coverage'] >= lines[-1]['coverage']
    assert load_tensors(tmp_path/'search.safetensors', 'search')[1]['iteration'] == more[-1]['iteration']
    other = Search('walker2d', task.spec(), ancestor, SMOKE.search, (9, 9), seed=3)
    with pytest.raises(ValueError, match=r'has a grid of \[32, 32\]: expected \(9, 9\)'): other.load(tmp_path/'search.safetensors')


def test_a_killed_warm_start_goes_on(tmp_path):
    spec, path = get_task('walker2d').spec(), tmp_path/'warm.safetensors'
    everything = list(warm_start('walker2d', spec, SMOKE.warm, SMOKE.ppo, 1, path))
    assert everything[-1][0] == SMOKE.warm.steps == 128
    longer = SMOKE.warm._replace(stages=SMOKE.warm.stages + (Stage(64, .99, 1e-3, 1e-3),))
    rest = list(warm_start('walker2d', spec, longer, SMOKE.ppo, 1, path))
    assert rest[0][0] == everything[-1][0] + 32 and rest[-1][0] == 192


def test_the_ancestor_is_the_best_judged_snapshot_and_a_plateau_ends_the_training(tmp_path):
    spec, path = get_task('walker2d').spec(), tmp_path/'warm.safetensors'
    stages = SMOKE.warm.stages[:1] + (Stage(320, .99, 1e-3, 1e-3),)
    judged = SMOKE.warm._replace(stages=stages, snapshots=12, judged=2, freeze_steps=32, patience=32, gain=10.)
    steps = [steps for steps, _, _ in warm_start('walker2d', spec, judged, SMOKE.ppo, 1, path)]
    assert steps == [32, 64, 96, 128, 160]  # 48 steps, the two windows, after its first snapshot the last stage has gained less than tenfold
    t, meta = load_tensors(path, 'warm start')
    assert t['curve'][:, 0].tolist() == steps and meta['revisions']
    best = load_ancestor(path)
    assert (best.params == best.snapshots[t['curve'][:, 1].argmax()]).all()
    assert not list(warm_start('walker2d', spec, judged, SMOKE.ppo, 1, path))  # settled


def test_stages_follow_one_another():
    warm = WarmStart((Stage(10, .9, 1., 1.), Stage(20, .99, 1., .5, 2.)))
    assert [warm.at(i)[0].gamma for i in (0, 9, 10, 29, 30)] == [.9, .9, .99, .99, .99]
    assert warm.at(20) == (warm.stages[1], .5) and warm.at(99)[1] == 1.


@pytest.mark.parametrize('scale', ['laptop', 'night', 'paper'])
@pytest.mark.parametrize('task', TASKS)
def test_every_task_has_settings(task, scale):
    size = search_scale(scale, task)
    assert sum(share for _, share in size.search.operators) == pytest.approx(1)
    assert size.ppo.envs*size.ppo.unroll % size.ppo.minibatches == 0
    assert size.horizon == 1000 and size.episodes == {'laptop': 10, 'night': 10, 'paper': 50}[scale]


def test_a_learner_keeps_its_types_so_that_ppo_compiles_once():
    import jax
    import jax.numpy as jnp
    spec = get_task('walker2d').spec()
    start = start_learner('walker2d', spec, jnp.zeros((2, spec.n_params)), jax.random.key(0), TINY)
    step = lambda learner: ppo_step('walker2d', spec, TINY, learner, jnp.zeros((2, 4)), .99, 1e-3, jnp.zeros(17), jnp.ones(17))
    after = jax.eval_shape(step, start)[0]
    kind = lambda x: (x.shape, x.dtype, getattr(x, 'weak_type', False))
    kinds = lambda learner: [kind(x) for x in jax.tree.leaves(learner)]
    assert kinds(start) == kinds(after)


def learnt(heads):
    "Weights of two heads after two updates, each with its own mix of rewards, and the log of the second."
    import jax.numpy as jnp
    import jax
    spec = get_task('hopper').spec()
    rows = jnp.stack([init_params(jax.random.key(i), spec) for i in range(heads)])
    learner, weights = start_learner('hopper', spec, rows, jax.random.key(7), TINY), jnp.eye(4)[:heads]
    for _ in range(2): learner, log = ppo_step('hopper', spec, TINY, learner, weights, .99, 1e-2, jnp.zeros(11), jnp.ones(11))
    return {'params': np.asarray(learner.params), 'start': np.asarray(rows), **{k: np.asarray(v) for k, v in log.items()}}


TWO_DEVICES = """
import sys, jax, numpy as np
sys.path.insert(0, sys.argv[1])
from test_search import learnt
assert jax.device_count() == 2
np.savez(sys.argv[2], **learnt(2))
"""


def test_heads_learn_on_two_devices_as_on_one(tmp_path):
    env = {**os.environ, 'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')
           + ' --xla_force_host_platform_device_count=2'}
    subprocess.run([sys.executable, '-c', TWO_DEVICES, Path(__file__).parent, tmp_path/'there.npz'], env=env, check=True)
    here, there = learnt(2), np.load(tmp_path/'there.npz')
    assert np.abs(here['params'] - here['start']).max() > .005
    for name, x in here.items(): np.testing.assert_allclose(there[name], x, rtol=2e-3, atol=2e-3, err_msg=name)


def test_far_points_are_chosen_among_truth_values_too():
    bits = np.array([[0, 0], [0, 1], [1, 1]], bool)
    assert spread_out(bits, 0, 3) == spread_out(bits.astype(float), 0, 3) == [0, 2, 1]
