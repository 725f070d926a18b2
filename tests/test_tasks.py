"A hand-made pose gives the contact it should, on every task."
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import contact, envs, kinematics
from brax.envs.base import PipelineEnv, State
from brax.io import mjcf

from policydiffusion import dataset, rollout
from policydiffusion.behaviour import compact_settings
from policydiffusion.policy import PolicySpec
from policydiffusion.rollout import evaluate
from policydiffusion.search import search_scale
from policydiffusion.tasks import TASKS, DescribedEnv, Task, foot_heights, foot_points, get_task, make_env


def pose(name, **joints):
    "Foot heights of a task in its initial pose, with some entries of q changed."
    env = make_env(name)
    sys = env.env.sys
    q = np.array(sys.init_q)
    for index, value in joints.items(): q[int(index[1:])] = value
    forward = jax.jit(lambda q: kinematics.forward(sys, q, jnp.zeros(sys.qd_size()))[0])
    return np.asarray(jax.jit(lambda x: foot_heights(env.feet, x))(forward(jnp.asarray(q))))


@pytest.mark.parametrize('name', TASKS)
def test_registry_has_the_sizes_of_brax(name):
    task, measured = get_task(name), make_env(name)
    env = measured.env
    assert (task.obs_size, task.act_size) == (env.observation_size, env.action_size)
    state, measures = jax.eval_shape(
        lambda key: measured.step(measured.reset(key), jnp.zeros(task.act_size)), jax.random.key(0))
    assert state.obs.shape == (task.obs_size,) and measures.shape == (task.n_measures,)
    assert len(task.dims) == len(task.paper_dims) == task.n_measures


@pytest.mark.parametrize('name', TASKS)
def test_heights_agree_with_brax_contacts(name):
    env = make_env(name)
    sys = env.env.sys
    def random_pose(key):
        q = jnp.asarray(sys.init_q)
        joints = jax.random.uniform(key, (sys.qd_size() - 6 if sys.q_size() != sys.qd_size() else sys.qd_size() - 3,), minval=-.5, maxval=.5)
        q = q.at[-len(joints):].add(joints)
        return kinematics.forward(sys, q, jnp.zeros(sys.qd_size()))[0]
    x = jax.jit(jax.vmap(random_pose))(jax.random.split(jax.random.key(0), 20))
    c = jax.jit(jax.vmap(lambda x: contact.get(sys, x)))(x)
    links, dist = np.asarray(c.link_idx[1][0]), np.asarray(c.dist)
    ours = np.asarray(jax.jit(jax.vmap(lambda x: foot_heights(env.feet, x)))(x))
    for i, (link, *_) in enumerate(env.feet):
        assert np.abs(dist[:, links == link].min(1) - ours[:, i]).max() < 1e-5


# index of q (see the task's xml) that lifts exactly one foot, and which foot that is
LIFTS = [('walker2d', {'q3': -1., 'q4': -1.2}, 0), ('walker2d', {'q6': -1., 'q7': -1.2}, 1),
         ('halfcheetah', {'q4': 1.}, 1), ('halfcheetah', {'q7': 1.}, 0),
         ('ant', {'q8': .55}, 0), ('ant', {'q10': -.55}, 1), ('ant', {'q12': -.55}, 2), ('ant', {'q14': .55}, 3)]


@pytest.mark.parametrize('name,joints,foot', LIFTS)
def test_bending_one_leg_moves_one_foot(name, joints, foot):
    rest, bent = pose(name), pose(name, **joints)
    moved = np.abs(bent - rest) > .02
    assert moved.tolist() == [i == foot for i in range(len(rest))]


def test_humanoid_left_foot_is_the_first_measure():
    env = make_env('humanoid')
    names = env.env.sys.link_names
    assert [names[link] for link, *_ in env.feet] == ['left_shin', 'right_shin']


@pytest.mark.parametrize('name', ['hopper', 'walker2d', 'humanoid'])
def test_lowering_the_body_touches_and_raising_it_does_not(name):
    height = 'q1' if name != 'humanoid' else 'q2'
    env = make_env(name)
    z = float(np.asarray(env.env.sys.init_q)[int(height[1:])])
    rest = pose(name)
    lifted, sunk = pose(name, **{height: z + .5}), pose(name, **{height: z - rest.max() - .01})
    assert (lifted > 0).all() and (sunk <= 0).all()
    assert np.allclose(lifted - rest, .5, atol=1e-5)


def test_a_step_reports_contact_when_any_substep_touched():
    "Drop walker2d: it lands when free fall says so, and the step in which it lands has contact."
    env = make_env('walker2d')
    q = jnp.asarray(env.env.sys.init_q).at[1].add(.04)
    state = jax.jit(env.reset)(jax.random.key(0))
    state = state.replace(pipeline_state=env.env.pipeline_init(q, jnp.zeros(9)))
    def step(state, _):
        state, m = env.step(state, jnp.zeros(6))
        return state, (m, foot_heights(env.feet, state.pipeline_state.x))
    _, (m, after) = jax.lax.scan(step, state, length=20)
    m, after = np.asarray(m), np.asarray(after)
    first = int(m.any(1).argmax())
    fall = (pose('walker2d').min() + .04)  # m
    assert abs(first - (2*fall/9.81)**.5/.008) <= 1  # a step lasts 8 ms
    assert (after[:first] > 0).all()
    assert (m >= (after <= 0)).all()


def test_hopper_leans_forward():
    env = make_env('hopper')
    state = jax.jit(env.reset)(jax.random.key(0))
    leans = []
    for angle in (-.3, -.1, 0., .1):
        ps = state.pipeline_state.replace(q=state.pipeline_state.q.at[2].set(angle))
        leans.append(float(env.step_measures(state.replace(pipeline_state=ps), jnp.array([1.]))[1]))
    assert np.allclose(leans, [0, .25, .5, .75], atol=1e-6)


def test_unknown_task_is_one_sentence():
    with pytest.raises(ValueError, match="task 'cow' is unknown: expected one of hopper, walker2d"):
        get_task('cow')


def test_a_task_of_ones_own(monkeypatch):
    "Other measures of the same machine: rewards and lengths as before, and heights that a torso can have."
    height = lambda state: state.pipeline_state.x.pos[:1, 2]/2
    monkeypatch.setitem(TASKS, 'walker2d_height', Task('walker2d_height', 17, 6, (), ('height',), (8,), (100,), 0., also=height, env='walker2d'))
    spec = get_task('walker2d_height').spec()
    params = np.random.default_rng(0).normal(size=(3, spec.n_params))/4
    mine, walker = (evaluate(task, spec, params, np.zeros(17), np.ones(17), 1, 30)
                    for task in ('walker2d_height', 'walker2d'))
    np.testing.assert_allclose(mine.objective, walker.objective, rtol=1e-5)
    np.testing.assert_array_equal(mine.length, walker.length)
    assert mine.measures.shape == (3, 1) and ((mine.measures > .35) & (mine.measures < .65)).all()  # a torso starts at 1.25 m and is healthy from 0.8 m


BALL = '''<mujoco><option timestep="0.002"/><worldbody>
  <geom name="floor" type="plane" size="9 9 1" contype="0" conaffinity="1"/>
  <body name="ball" pos="0 0 1"><joint name="up" type="slide" axis="0 0 1"/>
    <geom name="sole" size="0.1" mass="1" contype="1" conaffinity="0"/></body>
  </worldbody><actuator><motor joint="up" gear="0.001"/></actuator></mujoco>'''


class Ball(PipelineEnv):
    "A ball that falls; it earns its height, and its episode ends when the centre is below `floor`."

    def __init__(self, backend): super().__init__(mjcf.loads(BALL), backend, n_frames=5)

    def reset(self, rng):
        body = self.pipeline_init(self.sys.init_q, jnp.zeros(1))
        return State(body, jnp.concatenate([body.q, body.qd]), jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        body = self.pipeline_step(state.pipeline_state, action)
        height = body.x.pos[0, 2]
        return state.replace(pipeline_state=body, obs=jnp.concatenate([body.q, body.qd]),
                             reward=height, done=(height < self.floor).astype(jnp.float32))


@pytest.mark.parametrize('floor', [.3, -1.])
def test_a_body_that_brax_does_not_know_falls_as_newton_says(monkeypatch, floor):
    "Height 1 - g t^2/2: when it ends, when the sole (radius 10 cm) touches, and what it earns."
    name = 'ball' if floor > 0 else 'bouncer'  # environments are kept by name
    envs.register_environment(name, type(name, (Ball,), {'floor': floor}))
    monkeypatch.setitem(TASKS, name, Task(name, 2, 1, ('sole',), ('touch',), (8,), (100,), 0.))
    spec = PolicySpec(2, 1, (4,))
    found = evaluate(name, spec, np.zeros((1, spec.n_params)), np.zeros(2), np.ones(2), 1, 60,
                     envs=2)
    ends, touches = np.sqrt(2*np.array([.7, .9])/9.81)/.01  # in steps of 0.01 s
    if floor > 0:
        t = np.arange(1, round(ends) + 1)*.01
        assert abs(found.length[0] - ends) < 1.5 and found.measures[0, 0] == 0
        np.testing.assert_allclose(found.objective[0], (1 - 9.81*t**2/2).sum(), rtol=.03)
    else:  # from the first touch on it may bounce, but cannot touch before
        assert found.length[0] == 60 and 0 < found.measures[0, 0] <= (60 - touches + 1.5)/60


def test_a_foot_that_is_a_box_is_refused():
    model = SimpleNamespace(geom=lambda name: SimpleNamespace(type=[6]))
    with pytest.raises(ValueError, match="geometry 'sole' is neither a sphere nor a capsule"): foot_points(SimpleNamespace(sys=SimpleNamespace(mj_model=model)), 'sole')


def test_a_task_that_no_list_knows_has_settings_and_policies_to_practise_on(monkeypatch, tmp_path):
    monkeypatch.setitem(TASKS, 'stroller', Task('stroller', 5, 2, (), ('a', 'b', 'c'), (3, 4, 5), (9,)*3, 0.))
    for scale in ('laptop', 'paper'): assert search_scale(scale, 'stroller') == search_scale(scale, 'walker2d')
    assert compact_settings('laptop', 'compact', 'stroller') == compact_settings('laptop', 'compact', 'walker2d')
    monkeypatch.setattr(dataset, 'DATA', tmp_path)
    with pytest.raises(FileNotFoundError, match='expected the archives of a checkout'): dataset.load_archive('stroller', 'smoke')
    (tmp_path/'archives').mkdir()
    with pytest.warns(UserWarning, match='random policies stand in for the archive of stroller'): archive = dataset.load_archive('stroller', 'smoke')
    assert archive.spec == get_task('stroller').spec() and archive.dims == (3, 4, 5) and archive.task == 'stroller'
    with pytest.raises(FileNotFoundError, match='stroller.safetensors does not exist'): dataset.load_archive('stroller', 'laptop')


def test_measures_out_of_range_are_refused(monkeypatch):
    n = rollout.ROWS*rollout.EPISODES  # places that a call has at least
    results = {'ret': np.zeros(n), 'length': np.full(n, 9), 'measures': np.full((n, 1), 1.25)}
    monkeypatch.setitem(TASKS, 'stroller', Task('stroller', 5, 2, (), ('pace',), (3,), (9,), 0.))
    monkeypatch.setattr(rollout, '_evaluate', lambda *_: results)
    spec = get_task('stroller').spec()
    with pytest.raises(ValueError, match='measures of stroller reach from 1.25 to 1.25: expected 0 to 1'):
        evaluate('stroller', spec, np.zeros((2, spec.n_params)), np.zeros(5), np.ones(5), 1)


def test_a_task_without_feet_is_not_described():
    with pytest.raises(ValueError, match='task stroller has no feet: expected some'): DescribedEnv(Task('stroller', 5, 2, (), ('pace',), (3,), (9,), 0.), None)
