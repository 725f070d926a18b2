"A hand-made pose gives the contact it should, on every task."
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import contact, kinematics

from policydiffusion.tasks import TASKS, foot_heights, get_task, make_env


def pose(name, **joints):
    "Foot heights of a task in its initial pose, with some entries of q changed."
    env = make_env(name)
    q = np.array(env.env.sys.init_q)
    for index, value in joints.items(): q[int(index[1:])] = value
    x = kinematics.forward(env.env.sys, jnp.asarray(q), jnp.zeros(env.env.sys.qd_size()))[0]
    return np.asarray(foot_heights(env.feet, x))


@pytest.mark.parametrize('name', TASKS)
def test_registry_has_the_sizes_of_brax(name):
    task, env = get_task(name), make_env(name).env
    assert (task.obs_size, task.act_size) == (env.observation_size, env.action_size)
    assert len(task.dims) == len(task.paper_dims) == task.n_measures == len(task.feet) + task.lean


@pytest.mark.parametrize('name', TASKS)
def test_heights_agree_with_brax_contacts(name):
    env = make_env(name)
    sys = env.env.sys
    def random_pose(key):
        q = jnp.asarray(sys.init_q)
        joints = jax.random.uniform(key, (sys.qd_size() - 6 if sys.q_size() != sys.qd_size() else sys.qd_size() - 3,), minval=-.5, maxval=.5)
        q = q.at[-len(joints):].add(joints)
        return kinematics.forward(sys, q, jnp.zeros(sys.qd_size()))[0]
    x = jax.vmap(random_pose)(jax.random.split(jax.random.key(0), 20))
    c = jax.vmap(lambda x: contact.get(sys, x))(x)
    links, dist = np.asarray(c.link_idx[1][0]), np.asarray(c.dist)
    ours = np.asarray(jax.vmap(lambda x: foot_heights(env.feet, x))(x))
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
    state = env.reset(jax.random.key(0))
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
    state = env.reset(jax.random.key(0))
    leans = []
    for angle in (-.3, -.1, 0., .1):
        ps = state.pipeline_state.replace(q=state.pipeline_state.q.at[2].set(angle))
        leans.append(float(env.step_measures(state.replace(pipeline_state=ps), jnp.array([1.]))[1]))
    assert np.allclose(leans, [0, .25, .5, .75], atol=1e-6)


def test_unknown_task_is_one_sentence():
    with pytest.raises(ValueError, match="task 'cow' is unknown: expected one of hopper, walker2d"):
        get_task('cow')
