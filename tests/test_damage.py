"Damage does what it says; trial and error against scikit-learn, by hand, and where it is easy."
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern

from policydiffusion import damage
from policydiffusion.damage import (DAMAGES, DELAYS, Episode, Offers, TrialSettings, adapt,
                                    adaptation, advance, begin, believe, best_tried, broken_joint,
                                    choose_next, damage_of, damaged_env, damaged_system,
                                    episode_keys, evaluate_damaged, learn, offers_of, open_stage,
                                    run_trials, unharmed)
from policydiffusion.policy import act_jax, init_params
from policydiffusion.rollout import REWARD_CAP
from policydiffusion.tasks import TASKS, get_task, make_env

TASK, SPEC = 'walker2d', get_task('walker2d').spec()
ZERO, ONE = np.zeros(17, np.float32), np.ones(17, np.float32)


# ---- what is changed

@pytest.mark.parametrize('task', TASKS)
def test_a_weak_joint_has_half_the_gear_and_nothing_else(task):
    sys = make_env(task).env.sys
    broken = damaged_system(sys, damage_of(task, 'weak joint'))
    motor, limb = broken_joint(task)
    factor = np.asarray(broken.actuator.gear/sys.actuator.gear)
    assert factor[motor] == .5 and (np.delete(factor, motor) == 1).all()
    assert 0 not in limb and sorted(limb) == limb
    for name in ('gravity', 'geom_friction'):
        assert (np.asarray(getattr(broken, name)) == np.asarray(getattr(sys, name))).all()
    for old, new in zip(sys.dof.limit, broken.dof.limit): assert (np.asarray(old) == new).all()


def test_the_limb_is_what_hangs_on_the_joint():
    names = make_env('walker2d').env.sys.link_names
    assert [names[i] for i in broken_joint('walker2d')[1]] == ['leg', 'foot']
    assert broken_joint('humanoid')[0] == 6 and len(broken_joint('ant')[1]) == 1


def test_ground_gravity_and_a_stuck_joint_in_the_system():
    sys = make_env(TASK).env.sys
    broken = [damaged_system(sys, damage_of(TASK, d))
              for d in ('slippery ground', 'strong gravity', 'stuck joint')]
    assert np.allclose(broken[0].geom_friction, .3*np.asarray(sys.geom_friction))
    assert np.allclose(broken[1].gravity, [0, 0, -9.81*1.25])
    low, high = map(np.asarray, broken[2].dof.limit)
    assert (low == high).nonzero()[0].tolist() == [4] and low[4] == 0
    assert np.asarray(broken[2].actuator.gear).tolist() == [100, 0, 100, 100, 100, 100]


def test_actions_come_late_by_the_same_time_on_every_robot():
    late = {task: damage_of(task, 'late actions').delay.argmax() for task in TASKS}
    assert late == dict(hopper=3, walker2d=3, halfcheetah=1, ant=1, humanoid=2)


def test_an_unknown_damage_is_refused():
    with pytest.raises(ValueError, match="damage 'rust' is unknown: expected one of weak joint"):
        damage_of(TASK, 'rust')


# ---- what it does: one compilation for all of these, the one of the notebook

@pytest.fixture(scope='module')
def stage(): return open_stage(TASK, SPEC, ZERO, ONE, horizon=40)


@pytest.fixture(scope='module')
def rows():
    start = [np.asarray(init_params(jax.random.key(i), SPEC, .1)) for i in range(70)]
    noise = np.random.default_rng(0).normal(0, .1, (70, SPEC.n_params))
    return np.stack(start) + noise.astype(np.float32)


@pytest.fixture(scope='module')
def single():
    "Reset and step of one whole robot, compiled once."
    env = make_env(TASK)
    return jax.jit(env.reset), jax.jit(env.step)


def by_hand(single, row, robot, key, horizon=40):
    "One episode in Python; only what is done to actions and sensors is done to the robot."
    state, total, past, measures = single[0](key), 0., [np.zeros(6)]*DELAYS, []
    for t in range(horizon):
        noise = jax.random.normal(jax.random.fold_in(key, t), (17,))
        past = [act_jax(SPEC, row, ZERO, ONE, state.obs + robot.noise*noise), *past[:-1]]
        state, m = single[1](state, jnp.asarray(past[int(robot.delay.argmax())]))
        total += float(np.clip(state.reward, -REWARD_CAP, REWARD_CAP))
        measures.append(m)
        if state.done: break
    return total, np.mean(measures, 0), t + 1


@pytest.mark.parametrize('name', [None, 'late actions', 'noisy sensors'])
def test_an_episode_is_what_a_loop_in_python_makes_of_it(stage, rows, single, name):
    robot = damage_of(TASK, name) if name else unharmed(TASK)
    e = evaluate_damaged(stage, rows[:2], [robot]*2, 1, seed=5)
    for i, key in enumerate(episode_keys(5, np.arange(2), 1)[:, 0]):
        total, measures, length = by_hand(single, rows[i], robot, key)
        assert abs(e.length[i] - length) <= 1  # physics amplifies the last bit
        assert np.isclose(e.objective[i], total, atol=1.)
        assert np.allclose(e.measures[i], measures, atol=.06)


def test_keys_are_those_of_chapter_12():
    keys = episode_keys(7, np.array([3]), 2)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 3), 1)
    assert (keys[0, 1] == jax.random.key_data(key)).all()


def test_every_damage_changes_what_a_policy_does_and_compiles_nothing(stage, rows):
    whole = evaluate_damaged(stage, rows[:2], [unharmed(TASK)]*2, 1, 5)
    compiled = damage._block._cache_size()
    robots = [damage_of(TASK, d) for d in DAMAGES for _ in range(2)]
    e = evaluate_damaged(stage, np.tile(rows[:2], (8, 1)), robots, 1, 5, [0, 1]*8)
    objective = e.objective.reshape(8, 2)
    assert (abs(objective - whole.objective).max(1) > 1e-3).all()
    assert damage._block._cache_size() == compiled


def test_a_heavy_limb_weighs_twice_and_a_stuck_joint_stays(stage):
    loud = np.zeros(SPEC.n_params, np.float32)
    loud[-6:] = -5.  # every motor, all the time
    robots = [unharmed(TASK), damage_of(TASK, 'heavy limb'), damage_of(TASK, 'stuck joint')]
    key = episode_keys(0, np.arange(1), 1)[0, 0]
    for place, robot in enumerate(robots): begin(stage, place, Episode(loud, robot, key))
    advance(stage, 15)
    body = stage.running['state'].pipeline_state
    mass, knee = np.asarray(body.mass)[:3], np.asarray(body.q)[:3, 4]
    assert np.allclose(mass[1]/mass[0], [1, 1, 2, 2, 1, 1, 1])
    assert abs(knee[2]) < .1 < .15 < abs(knee[0])  # rad, after 15 steps


def test_a_row_gets_its_own_result_wherever_it_runs(stage, rows):
    "Seventy rows at 64 places; then the last four alone, at other places."
    robots = [damage_of(TASK, d) for d in [*DAMAGES]*9][:70]
    all_ = evaluate_damaged(stage, rows, robots, 2, 3)
    few = evaluate_damaged(stage, rows[66:], robots[66:], 2, 3, np.arange(66, 70))
    assert np.allclose(all_.objective[66:], few.objective, atol=.1)
    assert (all_.length[66:] == few.length).all()


def test_trials_return_their_own_results_in_their_order(stage, rows):
    key, whole = episode_keys(0, np.arange(1), 1)[0, 0], unharmed(TASK)
    def trial(number, n):
        seen = []
        for _ in range(n): seen.append((yield Episode(rows[number], whole, key)).objective)
        return number, len(seen), np.ptp(seen)
    found = run_trials(stage, [trial(i, 1 + i % 3) for i in range(70)])
    assert [f[:2] for f in found] == [(i, 1 + i % 3) for i in range(70)]
    assert max(f[2] for f in found) == 0  # the same episode again is the same to the bit


def test_offers_are_seen_on_a_whole_robot(stage, rows):
    ask = lambda requests, seed: rows[:len(requests)]
    o = offers_of(stage, ask, np.zeros((3, 2)), seed=1, n_episodes=1)
    assert o.params.shape == (3, SPEC.n_params) and o.measures.shape == (3, 2)
    assert (o.promised > 0).all()


def test_a_heavy_limb_is_heavy_where_masses_of_the_system_do_not_count():
    "All links of a hopper weigh 1 for the simulator, whatever the system says."
    reset = jax.jit(damaged_env('hopper').reset)
    mass = reset(jax.random.key(0), damage_of('hopper', 'heavy limb')).pipeline_state.mass
    assert np.asarray(mass).tolist() == [1, 1, 2, 2]


def test_a_normaliser_for_each_policy_is_refused():
    with pytest.raises(ValueError, match='obs_mean has a row for each policy'):
        open_stage(TASK, SPEC, np.tile(ZERO, (4, 1)), np.tile(ONE, (4, 1)), envs=4)


# ---- trial and error

def offers(n=30, seed=0):
    rng = np.random.default_rng(seed)
    return Offers(np.arange(n)[:, None], rng.random((n, 2)), rng.random(n)*1000)


def test_beliefs_are_the_gaussian_process_of_scikit_learn():
    o, s, unit = offers(), TrialSettings(), 500.
    beliefs, tries, rng = believe(o, unit), [4, 9, 4, 17], np.random.default_rng(1)
    values = rng.normal(400, 200, 4)
    for i, y in zip(tries, values): learn(beliefs, i, y)
    shared = ConstantKernel((1 - s.own)*s.spread**2)*Matern(s.length_scale, nu=1.5)
    kernel = shared + ConstantKernel(s.own*s.spread**2)*RBF(1e-4)  # a part of each point's own
    process = GaussianProcessRegressor(kernel, alpha=s.noise**2, optimizer=None)
    process.fit(o.measures[tries], (values - o.promised[tries])/unit)
    mean, sd = process.predict(o.measures, return_std=True)
    assert np.allclose(beliefs.mean, o.promised/unit + mean, atol=1e-6)
    assert np.allclose(beliefs.var, sd**2, atol=1e-6)


def test_the_upper_confidence_bound_by_hand():
    "Tried: .8 and sure. Untried: .7 and an s.d. of .5. With half an s.d. of hope, .95 is more."
    o = Offers(np.zeros((2, 1)), np.array([[0., 0], [9, 9]]), np.array([.8, .7]))
    for kappa, want in ((.5, 1), (.1, 0)):
        beliefs = believe(o, 1., TrialSettings(noise=1e-3, kappa=kappa))
        learn(beliefs, 0, .8)
        assert np.allclose(np.sqrt(beliefs.var), [1e-3, .5], atol=1e-4)
        assert choose_next(beliefs) == want


def test_neighbours_are_suspected_and_others_are_not():
    o = Offers(np.zeros((3, 1)), np.array([[0., 0], [.02, 0], [5, 5]]), np.ones(3))
    beliefs = believe(o, 1., TrialSettings(own=.25, noise=0.))
    learn(beliefs, 0, 0.)
    assert beliefs.mean[0] == pytest.approx(0) and beliefs.mean[2] == pytest.approx(1)
    assert beliefs.mean[1] == pytest.approx(.25, abs=.02)  # all but the part of its own


def told(trial, say):
    "Run one trial by itself; `say` turns an episode's row into what it earned."
    episode = next(trial)
    while True:
        try: episode = trial.send(damage.Outcome(say(episode.row), None, 1))
        except StopIteration as e: return e.value


def test_a_source_whose_promises_hold_needs_one_try():
    o = offers()
    trial = adapt(believe(o, 500.), unharmed(TASK), np.zeros((8, 2)), (1, 2, 8))
    assert told(trial, lambda row: o.promised[row[0]]) == [o.promised.argmax()]*3


def test_a_broken_half_of_the_map_is_left_after_few_tries():
    "Whatever lies on the left earns nothing any more; the right keeps its promises."
    o = offers(200)
    right = o.measures[:, 0] > .5
    trial = adapt(believe(o, 500.), unharmed(TASK), np.zeros((40, 2)), (40,))
    best, = told(trial, lambda row: o.promised[row[0]]*right[row[0]])
    assert right[best] and o.promised[best] > np.quantile(o.promised[right], .95)


def test_the_best_that_was_tried_is_what_should_earn_most():
    beliefs = believe(offers(), 500.)
    for i, y in ((3, 100.), (5, 900.), (8, 400.)): learn(beliefs, i, y)
    assert best_tried(beliefs) == 5


# ---- the verdict

def test_adaptation_is_a_ratio_of_means_with_an_interval():
    rng = np.random.default_rng(0)
    reference = rng.uniform(500, 1500, 400)
    found = 1.1*reference + rng.normal(0, 100, 400)
    value, low, high = adaptation(found, reference)
    assert value == pytest.approx(found.mean()/reference.mean(), rel=1e-5)
    ends = value + np.array([-1.96, 1.96])*100/np.sqrt(400)/reference.mean()  # delta method
    assert np.allclose([low, high], ends, atol=.003)


def test_adaptation_refuses_what_is_not_paired():
    with pytest.raises(ValueError, match=r'found has shape \(3,\): expected \(2,\)'):
        adaptation([1, 2, 3], [1, 2])


def test_there_is_no_ratio_to_a_loss():
    assert np.isnan(adaptation([5., 5.], [-1., -2.])).all()
