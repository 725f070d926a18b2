"Chapter 63 against jax.vmap."
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from policydiffusion import batch_last
from policydiffusion.batch_last import RULES, map_batch_last
from policydiffusion.tasks import make_env

def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)

INDEX = jnp.array([2, 0, 0, 1])

CASES = {  # name: function of one environment, shapes of its arguments
    'numbers and arrays': (lambda x, s: x*s + jnp.clip(x, s, 2.) + jnp.where(s > 0, x, -x), ((3, 2), ())),
    'shared arrays': (lambda x: x + jnp.arange(3.) + jnp.arange(3.)[::-1]*x[0], ((3,),)),
    'reductions': (lambda x: (x.sum(0), x.max(1), x.argmin(1), jnp.cumsum(x, 0), (x > 0).any(), jnp.linalg.norm(x, axis=-1)), ((3, 4),)),
    'shapes': (lambda x: (x.reshape(2, 6), x.T, jnp.concatenate([x, jnp.ones((1, 4))]), x[1:, ::2], x[None, :, 1], jnp.tile(x, (2, 1)), jnp.stack([x, x], -1)), ((3, 4),)),
    'flips and other orders': (lambda x: (x[::-1], jnp.flip(x, 1), x.ravel(order='F'), x.reshape((2, 6), order='F')), ((3, 4),)),
    'a picked row': (lambda x: (x[INDEX], x[:, INDEX[:2]], x[INDEX[0], INDEX[1]]), ((3, 4),)),
    'a row of its own choice': (lambda x, i: x[jnp.argmax(i)], ((3, 4), (3,))),
    'added up': (lambda x: (jax.ops.segment_sum(x, INDEX, 3), jnp.zeros((3, 2)).at[INDEX].set(x), jnp.ones((3, 2)).at[INDEX].add(1.)*x[0]), ((4, 2),)),
    'products': (lambda a, b: (a @ b, a @ b[:, 0], a[0] @ b, jnp.tensordot(a, a), jnp.outer(a[0], b[0])), ((3, 4), (4, 2))),
    'batched products': (lambda a, b: (jnp.einsum('kij,kjl->kil', a, b), jnp.einsum('kij,kj->ki', a, b[..., 0]), jnp.einsum('kij,kil->jkl', a, a)), ((5, 3, 4), (5, 4, 2))),
    'products with shared ones': (lambda x: (x @ jnp.ones((4, 3)), jnp.arange(12.).reshape(3, 4) @ x, x @ jnp.arange(4.)), ((4,),)),
    'long products': (lambda a, b: a @ b, ((3, 20), (20,))),
    'a loop': (lambda x, k: lax.scan(lambda c, row: (c*k + row[0], (c.sum(), row)), x, (jnp.arange(6.).reshape(3, 2) + x[0])), ((2,), ())),
    'a loop backwards': (lambda x: lax.scan(lambda c, row: (jnp.tanh(c + row), c), 0., x, reverse=True), ((5,),)),
    'a loop with a shared start': (lambda x: lax.fori_loop(0, 4, lambda i, c: c*.5 + x[0]*i, jnp.ones(3)), ((2,),)),
    'calls': (lambda x: jax.jit(lambda y: jax.nn.relu(y) + jax.nn.softplus(y))(x) + jax.nn.silu(x), ((3,),)),
    'no rule': (lambda a: (jnp.linalg.cholesky(a @ a.T + jnp.eye(3)), jnp.sort(a, 0), lax.top_k(a[0], 2)), ((3, 3),)),
    'a loop until': (lambda x: lax.while_loop(lambda c: c.sum() < 5, lambda c: c + jnp.abs(x) + .1, x), ((2,),)),
    'a choice': (lambda x: lax.cond(x[0] > 0, lambda y: y*2, lambda y: y - 1, x), ((2,),)),
    'nothing but constants': (lambda x: (jnp.arange(3), x, 1.), ((),)),
}


def same(f, *args, **tolerance):
    ours, theirs = map_batch_last(f, *args), jax.vmap(f)(*args)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize('name', CASES)
def test_like_vmap(name):
    f, shapes = CASES[name]
    same(f, *(draw(7, *s, seed=i) for i, s in enumerate(shapes)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', [n for n in CASES if n not in ('no rule', 'a loop until', 'a choice', 'a row of its own choice')])
def test_rules_are_used(name, monkeypatch):
    "What has a rule must not fall back on vmap, which would be right, too, and slow."
    monkeypatch.setattr(batch_last, '_apply', lambda eqn, inputs, batched, apply=batch_last._apply: pytest.fail(f'{eqn.primitive} fell back') if batched else apply(eqn, inputs, batched))
    f, shapes = CASES[name]
    map_batch_last(f, *(draw(7, *s) for s in shapes))


@pytest.mark.parametrize('dtype, out', [(jnp.int8, jnp.int32), (jnp.int8, jnp.int8), (bool, bool), (jnp.bfloat16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)])
@pytest.mark.parametrize('length', [3, 20])
def test_products_of_other_types(dtype, out, length):
    a, b = ((9*draw(7, *s)).astype(dtype) for s in ((2, length), (length,)))
    same(lambda a, b: lax.dot(a, b, preferred_element_type=out), a, b, rtol=.05)


def test_a_sum_of_nothing():
    same(lambda a, b: a @ b, jnp.ones((7, 2, 0)), jnp.ones((7, 0)))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r'args have \[1, 5\] environments: expected the same number'): map_batch_last(lambda x, y: x + y, draw(5, 3), draw(1, 3))


def test_inside_another_vmap_and_jit():
    f, shapes = CASES['batched products']
    args = [draw(2, 7, *s, seed=i) for i, s in enumerate(shapes)]
    ours, theirs = jax.jit(jax.vmap(lambda *x: map_batch_last(f, *x)))(*args), jax.vmap(jax.vmap(f))(*args)
    for a, b in zip(ours, theirs): np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_card_is_left_to_vmap(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr('policydiffusion.batch_last.read_jaxpr', None)  # would fail if it were called
    same(lambda x: x*2, draw(3, 2))


@pytest.mark.parametrize('task', ['humanoid'])  # in space; chapter 63 itself takes the hopper
def test_a_step_of_a_machine(task):
    env = make_env(task)
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 5))
    action = jax.random.uniform(jax.random.key(1), (5, env.env.action_size), minval=-1., maxval=1.)
    ours = jax.jit(lambda s, a: map_batch_last(env.step, s, a))(state, action)
    theirs = jax.jit(jax.vmap(env.step))(state, action)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=2e-3*max(1., float(jnp.abs(b).max())))


def test_the_simulator_needs_few_operations_without_a_rule():
    "Those would be as slow as before."
    env = make_env('halfcheetah')
    state = jax.eval_shape(jax.jit(env.reset), jax.random.key(0))
    inner = lambda s, a: env.step(s, a)
    closed = jax.make_jaxpr(inner)(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state), jnp.zeros(6))
    def names(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name
            for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'jaxpr') or hasattr(x, 'eqns')):
                if hasattr(x, 'jaxpr'): yield from names(x.jaxpr)
                elif hasattr(x, 'eqns'): yield from names(x)
    without = [n for n in names(closed.jaxpr) if n not in RULES and n not in ('jit', 'pjit', 'scan', 'iota', 'custom_jvp_call')]
    assert len(without) < 5, without
