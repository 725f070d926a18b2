"""How much of the simulator's speed reaches a rollout of many different policies? Prints ratios, each measured within one run.

    .venv/bin/python benchmarks/rollout.py                # some minutes on an idle machine
    .venv/bin/python benchmarks/rollout.py --environments 128 --policies 64 --episodes 2 --repeats 1    # a brief check
"""
import argparse
from functools import partial
from time import perf_counter

import jax
import numpy as np

from policydiffusion.archive import Archive
from policydiffusion.core import DATA
from policydiffusion.batch_last import map_batch_last
from policydiffusion.rollout import evaluate
from policydiffusion.tasks import _build_env, get_task

SPEED_BAR = .85  # steps/s of evaluate over steps/s of the raw step, at least
FALLING_BAR = .40  # time when the median episode ends at 20 % of the horizon over the time of full episodes, at most


@partial(jax.jit, static_argnames=('env', 'envs', 'steps', 'lanes_last'))
def raw_steps(env, envs: int, steps: int, key, lanes_last: bool = True):
    "Brax's own step with random actions: no policy, no measures, no ends of episodes."
    k_reset, k_act = jax.random.split(key)
    state = jax.vmap(env.reset)(jax.random.split(k_reset, envs))

    def step(i, state):
        action = jax.random.uniform(jax.random.fold_in(k_act, i), (envs, env.action_size), minval=-1., maxval=1.)
        return map_batch_last(env.step, state, action) if lanes_last else jax.vmap(env.step)(state, action)
    return jax.lax.fori_loop(0, steps, step, state).reward.sum()


def timed(f) -> tuple:
    "(seconds, what f returned)."
    start = perf_counter()
    result = f()
    return perf_counter() - start, result


class Policies:
    "n policies of one task, and how to roll them out."

    def __init__(self, task: str, params, obs_mean, obs_std, n: int):
        self.task, self.spec = task, get_task(task).spec()
        self.params = params[np.resize(np.arange(len(params)), n)]  # repeated if there are fewer than n
        self.obs_mean, self.obs_std = obs_mean, obs_std

    def evaluate(self, episodes: int, horizon: int, envs: int):
        return evaluate(self.task, self.spec, self.params, self.obs_mean, self.obs_std, episodes, horizon, envs=envs)


def random_policies(task: str, n: int, scale: float, push: float = 0.) -> Policies:
    "The smaller `scale`, the stiller they stand; with a constant random `push` on the joints they fall soon."
    t, rng = get_task(task), np.random.default_rng(0)
    params = scale*rng.normal(size=(n, t.spec().n_params)).astype(np.float32)
    params[:, -t.act_size:] += push*rng.normal(size=(n, t.act_size))  # the output's biases come last
    return Policies(task, params, np.zeros(t.obs_size, np.float32), np.ones(t.obs_size, np.float32), n)


def archive_policies(task: str, n: int) -> tuple:
    "(elites that last to the end, elites that end near 20 % of the horizon, horizon), from the shipped archive."
    a = Archive.load(DATA/'archives'/f'{task}.safetensors', task)
    if a.spec != get_task(task).spec() or a.obs_mean.ndim > 1: raise ValueError(f'{task}: expected an archive of 64-64 policies with one normaliser')
    pick = lambda rows: Policies(task, a.params[rows], a.obs_mean, a.obs_std, n)
    lasting = np.argsort(-a.length)[:min(n, (a.length >= .99*a.horizon).sum())]
    return pick(lasting), pick(np.argsort(abs(a.length - .2*a.horizon))[:n]), a.horizon


def speed(name: str, policies: Policies, episodes: int, horizon: int, o) -> None:
    "Print steps/s of evaluate over steps/s of the raw step: best of `o.repeats` runs of each, taken in turn."
    env = _build_env.__wrapped__(get_task(o.task), False).env  # a fresh one: the shared one is patched to watch the feet
    raw = lambda: raw_steps(env, o.envs, o.raw_steps, jax.random.key(0)).block_until_ready()
    rollout = lambda: policies.evaluate(episodes, horizon, o.envs)
    raw(), rollout()  # compile
    ours, theirs = [], []
    for _ in range(o.repeats):
        seconds, e = timed(rollout)
        ours.append(e.length.sum()*episodes/seconds)
        theirs.append(o.envs*o.raw_steps/timed(raw)[0])
    ratio = max(ours)/max(theirs)
    print(f'{name}: {max(ours):,.0f} of {max(theirs):,.0f} steps/s, episodes of {e.length.mean():.0f} of {horizon} steps: '
          f'ratio {ratio:.3f} ({"meets" if ratio >= SPEED_BAR else "MISSES"} the bar of at least {SPEED_BAR})', flush=True)


def mapping(o) -> None:
    "Print raw steps/s with batch last (chapter 63) over those of jax.vmap: best of `o.repeats` runs of each, taken in turn."
    env = _build_env.__wrapped__(get_task(o.task), False).env
    run = lambda last: raw_steps(env, o.envs, o.raw_steps, jax.random.key(0), last).block_until_ready()
    run(True), run(False)  # compile
    times = [(timed(partial(run, True))[0], timed(partial(run, False))[0]) for _ in range(o.repeats)]
    last, vmap = (o.envs*o.raw_steps/min(t) for t in zip(*times))
    print(f'lanes last: {last:,.0f} raw steps/s, jax.vmap {vmap:,.0f}: ratio {last/vmap:.2f}', flush=True)


def falling(name: str, lasting: Policies, ending: Policies, horizon: int, o) -> None:
    "Print the time of episodes that end early over the time of as many full ones: best of `o.repeats`, taken in turn."
    short, full = (partial(p.evaluate, o.episodes, horizon, o.envs) for p in (ending, lasting))
    (_, a), (_, b) = timed(short), timed(full)  # compile
    times = [(timed(short)[0], timed(full)[0]) for _ in range(o.repeats)]
    ratio = min(s for s, _ in times)/min(f for _, f in times)
    print(f'{name}: median episode {np.median(a.length)/horizon:.0%} of the horizon (mean {a.length.mean()/horizon:.0%}) against {np.median(b.length)/horizon:.0%}: '
          f'time ratio {ratio:.3f} ({"meets" if ratio <= FALLING_BAR else "MISSES"} the bar of at most {FALLING_BAR})', flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', default='walker2d')
    parser.add_argument('--lanes', type=int, default=256, help='environments at work at once')
    parser.add_argument('--policies', type=int, default=256, help='different policies')
    parser.add_argument('--episodes', type=int, default=10, help='episodes of each where episodes end early')
    parser.add_argument('--raw-steps', type=int, default=1000, help='steps of the raw simulator')
    parser.add_argument('--repeats', type=int, default=3, help='runs of each, of which the best counts')
    o = parser.parse_args()
    n = o.policies
    print(f'{o.task}: {n} different 64-64 policies in {o.envs} lanes on {jax.devices()[0].platform}', flush=True)
    mapping(o)
    speed('speed, random policies', random_policies(o.task, n, .1), 16, 60, o)
    falling('ends, random policies', random_policies(o.task, n, 1e-3), random_policies(o.task, n, 1e-3, push=3.), 340, o)
    if (DATA/'archives'/f'{o.task}.safetensors').exists():
        lasting, ending, horizon = archive_policies(o.task, n)
        speed('speed, lasting elites', lasting, 1, horizon, o)
        falling('ends, elites', lasting, ending, horizon, o)
