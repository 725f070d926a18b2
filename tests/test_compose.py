"Sequences of policies: against a policy alone, by hand, by brute force, and with bad input."
from itertools import product
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from policydiffusion.archive import Archive
from policydiffusion.compose import Play, alternatives, choose, compose, nearest_elites, play, segment_error, sequence_success, take_chosen
from policydiffusion.core import DATA, seed_for
from policydiffusion.generator import Generator
from policydiffusion.policy import pack, unpack

ARCHIVE = Archive.load(DATA/'archives'/'walker2d.safetensors', 'walker2d')
SPEC, NORM = ARCHIVE.spec, (ARCHIVE.obs_mean, ARCHIVE.obs_std)
A, B = ARCHIVE.params[0], ARCHIVE.params[-1]
FALLS = np.r_[np.zeros(SPEC.n_params - 6), 1, 1, 1, -1, -1, -1].astype(np.float32)  # holds all joints at full force, whatever it sees
# numbers of steps below share the divisor 2 with 10, so that all tests share one compiled block


def both(first, second, steps=(6, 6), **more):
    return play('walker2d', SPEC, np.stack([first, second])[None], *NORM, steps, n_episodes=3, seed=4, **more)


def test_a_sequence_is_its_first_policy_until_the_switch():
    aa, ab, ba = both(A, A), both(A, B), both(B, A)
    assert aa.reward.shape == (1, 3, 12) and aa.measures.shape == (1, 3, 12, 2)
    np.testing.assert_array_equal(ab.reward[..., :6], aa.reward[..., :6])
    assert (ab.reward[..., 6:] != aa.reward[..., 6:]).any(-1).all() and (ba.reward[..., :6] != aa.reward[..., :6]).any(-1).all()


def test_segments_of_unequal_length_and_poses():
    once = both(A, B, steps=(4, 8), poses=True)
    assert once.alive.shape == (1, 3, 12) and once.pos.shape[:3] == once.rot.shape[:3] == (1, 3, 12) and once.rot.shape[-1] == 4
    np.testing.assert_allclose(once.reward[..., :4], both(A, A).reward[..., :4], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(once.rot, axis=-1), 1, atol=1e-4)


def test_many_sequences_are_dealt_to_lanes_and_come_back_in_order():
    rows = ARCHIVE.params[[0, 50, 100, 150, 200]]
    pairs = np.stack([rows, rows[::-1]], 1)
    few, many = (play('walker2d', SPEC, pairs, *NORM, (6, 6), n_episodes=n, seed=4) for n in (3, 30))  # 150 episodes on 128 environments
    np.testing.assert_allclose(many.reward[:, :3], few.reward, atol=1e-4)
    assert len(np.unique(many.reward[:, :, 5])) == 150


def test_an_episode_goes_on_from_where_it_ended():
    whole, first = both(A, B), play('walker2d', SPEC, np.stack([B, A])[:, None], *NORM, (6,), n_episodes=3, seed=4)
    second = play('walker2d', SPEC, np.stack([A, B, B])[:, None], *NORM, (6,), start=jax.tree.map(lambda x: x[[0, 1, 1]], first.ends))
    for i in (1, 2):
        np.testing.assert_array_equal(second.reward[i], whole.reward[0, :, 6:])
        np.testing.assert_array_equal(second.measures[i], whole.measures[0, :, 6:])
    assert (second.reward[0] != second.reward[1]).any()
    ended = play('walker2d', SPEC, B[None, None], *NORM, (6,), start=(jax.tree.map(lambda x: x[[1]], first.ends[0]), np.array([[True, False, True]])))
    assert ended.length.tolist() == [[6, 0, 6]] and ended.ends[1].tolist() == [[True, False, True]] and not ended.reward[0, 1].any()


def test_a_dead_episode_earns_nothing():
    played = both(FALLS, FALLS, steps=(102, 102))
    assert (played.length < 204).all() and (played.length > 6).all() and not played.ends[1].any()
    assert not played.reward[~played.alive].any() and not played.measures[~played.alive].any() and (np.diff(played.alive.astype(int), axis=-1) <= 0).all()


def folded(row, mean, std):
    "The same policy without a normaliser: (obs - mean)/std moved into the first layer."
    (W, b), *rest = unpack(SPEC, row)
    return pack([(W/std[:, None], b - mean/std @ W), *rest])


def test_a_switch_brings_the_new_policys_normaliser():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(2, 1, 2, 17)).astype(np.float32)*.3
    std = np.exp(std)
    rows = np.stack([A, B])[None]
    own = play('walker2d', SPEC, rows, mean[:1].reshape(1, 2, 17), std.reshape(1, 2, 17), (6, 6), n_episodes=3, seed=4)
    bare = np.stack([folded(r, m, s) for r, m, s in zip(rows[0], mean[0], std[0])])[None]
    by_hand = play('walker2d', SPEC, bare, np.zeros(17), np.ones(17), (6, 6), n_episodes=3, seed=4)
    np.testing.assert_allclose(own.reward, by_hand.reward, atol=2e-3)
    swapped = play('walker2d', SPEC, rows, mean[:, ::-1].reshape(1, 2, 17), std[:, ::-1].reshape(1, 2, 17), (6, 6), n_episodes=3, seed=4)
    assert np.abs(own.reward - swapped.reward).max() > .05 and np.abs(own.reward - play('walker2d', SPEC, rows, mean[0, 0], std[0, 0], (6, 6), n_episodes=3, seed=4).reward)[..., 6:].max() > .05


def test_success_needs_more_than_four_fifths_on_average():
    alive = np.arange(10) < np.array([[10, 7], [8, 8], [10, 5]])[..., None]
    played = Play(np.zeros((3, 2, 10, 1)), np.zeros((3, 2, 10)), alive)
    assert sequence_success(played).tolist() == [True, False, False] and sequence_success(played, .7).tolist() == [True, True, True]


def test_segment_error_by_hand():
    contact = np.array([[9, 1, 0, 1, 9, 9, 1, 1, 0, 0], [9, 0, 0, 0, 9, 9, 1, 9, 9, 9]], float)  # 9: must not be counted
    alive = np.arange(10) < np.array([[10], [7]])
    played = Play(np.stack([contact, 0*contact], -1)[None]*alive[None, ..., None], np.zeros((1, 2, 10)), alive[None])
    target = [[[2/3, 0], [.5, 1.]]]
    error = segment_error(Play(np.where(played.measures == 9, 5, played.measures), played.reward, played.alive), target, (4, 6), skip=1)
    np.testing.assert_allclose(error[0, 0, 0], 0, atol=1e-12)  # steps 1, 2, 3: 2/3
    np.testing.assert_allclose(error[0, 1, 0], 2/3)
    np.testing.assert_allclose(segment_error(played, target, (4, 6), skip=2)[0, :, 1], [1, np.hypot(.5, 1)])  # steps 6 to 9, and step 6 alone
    assert np.isnan(segment_error(played, target, (4, 6), skip=3)[0, 1, 1])


def test_alternatives_begin_with_what_was_asked():
    asked = np.random.default_rng(0).uniform(size=(5, 4, 2)).astype(np.float32)
    moved = alternatives(asked, 401, spread=.05, seed=1)
    assert moved.shape == (5, 4, 401, 2) and moved.min() >= 0 and moved.max() <= 1
    np.testing.assert_array_equal(moved[:, :, 0], asked)
    moves = (moved - asked[:, :, None])[:, :, 1:]/np.linspace(0, .05, 401)[1:, None]  # standard normal where nothing was cut off
    inside = np.abs(asked - .5) < .25
    np.testing.assert_allclose(moves.std(2)[inside], 1, atol=.15); np.testing.assert_allclose(moves.mean(2)[inside], 0, atol=.2)


def test_nearest_elites():
    ask = np.random.default_rng(0).uniform(size=(2, 3, 2))
    for i in range(2):
        for j in range(3):
            want = ARCHIVE.params[((ARCHIVE.measures - ask[i, j])**2).sum(1).argmin()]
            np.testing.assert_array_equal(nearest_elites(ARCHIVE, ask)[i, j], want)


def shaky(seed):
    "(2, 2, 3, P) offers of two trials of two segments: elites, shaken so that some fall soon."
    rng = np.random.default_rng(seed)
    rows = ARCHIVE.params[rng.integers(len(ARCHIVE), size=(2, 2, 3))]
    return rows + rng.uniform(0, .6, size=(2, 2, 3, 1)).astype(np.float32)*rng.normal(size=rows.shape).astype(np.float32)


def test_a_long_search_finds_what_brute_force_finds_and_a_short_one_is_greedy():
    offers, steps, targets = shaky(3), (62, 62), np.full((2, 2, 2), .5)
    ways = np.array(list(product(range(3), range(3))))
    every = offers[:, np.arange(2), ways].reshape(-1, 2, SPEC.n_params)  # (trial, way) flattened
    whole = play('walker2d', SPEC, every, *NORM, steps, n_episodes=3, seed=8)
    error = np.nan_to_num(segment_error(whole, np.repeat(targets, 9, 0), steps, 20), nan=1.).mean(1)
    cut = np.minimum(whole.length, 62).mean(1), whole.length.mean(1)
    worth = (cut[1] - 30*error.sum(1)).reshape(2, 9)
    assert np.ptp(worth, 1).min() > 5  # there is something to choose
    options = dict(targets=targets, n_episodes=3, seed=8, price=30., skip=20)
    full = choose('walker2d', SPEC, offers, *NORM, steps, rounds=4, **options)
    np.testing.assert_array_equal(full, ways[worth.argmax(1)])
    greedy_first = (cut[0] - 30*error[:, 0]).reshape(2, 3, 3)[:, :, 0].argmax(1)
    greedy = choose('walker2d', SPEC, offers, *NORM, steps, rounds=2, **options)
    np.testing.assert_array_equal(greedy[:, 0], greedy_first)
    np.testing.assert_array_equal(greedy[:, 1], worth.reshape(2, 3, 3)[np.arange(2), greedy_first].argmax(1))
    np.testing.assert_array_equal(take_chosen(offers, full)[1, 0], offers[1, 0, full[1, 0]])


def test_survival_comes_first_then_closeness():
    offers = np.stack([FALLS, A, B])[None, None]  # the first one falls
    alone = play('walker2d', SPEC, offers[0, 0][:, None], *NORM, (182,), n_episodes=3, seed=8)
    assert alone.ends[1][1:].all() and not alone.ends[1][0].any()
    done = alone.measures[:, :, 50:].mean((1, 2))
    for i in (1, 2): assert choose('walker2d', SPEC, offers, *NORM, (182,), done[None, i:i + 1], seed=8).tolist() == [[i]]
    assert choose('walker2d', SPEC, offers, *NORM, (182,), np.zeros((1, 1, 2)), seed=8)[0, 0] != 0
    assert choose('walker2d', SPEC, offers, *NORM, (182,), seed=8).tolist() == [[1]]  # without targets, the first that lasts


def generator(): return Generator.load(DATA/'generators'/'walker2d.safetensors', 'walker2d')


def test_compose_plays_what_was_generated():
    g, parts = generator(), [((.9, .9), 6), ((.3, .9), 6)]
    made = g.generate(np.float32([m for m, _ in parts]), seed=2)
    want = play('walker2d', g.spec, made.params[None], made.obs_mean, made.obs_std, (6, 6), n_episodes=3, seed=2)
    np.testing.assert_array_equal(compose(g, parts, n_episodes=3, seed=2).reward, want.reward)


def test_compose_chooses_with_other_seeds_than_it_plays():
    g, parts, asked = generator(), [((.9, .9), 62), ((.3, .9), 62)], np.float32([[[.9, .9], [.3, .9]]])
    offers = g.generate(alternatives(asked, 3, seed=2).reshape(-1, 2), seed=2).params.reshape(1, 2, 3, -1)
    chosen = choose('walker2d', g.spec, offers, *NORM, (62, 62), asked, seed=seed_for(2, 'planning'))
    want = play('walker2d', g.spec, take_chosen(offers, chosen), *NORM, (62, 62), n_episodes=3, seed=2)
    np.testing.assert_allclose(compose(g, parts, n_episodes=3, seed=2, m=3).reward, want.reward, atol=1e-4)


def test_compose_hands_sentences_on_with_normalisers_of_their_own():
    seen, rng = {}, np.random.default_rng(1)
    def generate(asked, n, seed):
        seen.update(asked=asked, n=n, seed=seed)
        return SimpleNamespace(params=np.stack([A, A, B, B]), obs_mean=mean, obs_std=std)
    mean, std = rng.normal(size=(4, 17)).astype(np.float32)*.1, np.ones((4, 17), np.float32)
    got = compose(SimpleNamespace(task='walker2d', spec=SPEC, generate=generate), [('walk', 6), ('hop', 6)], n_episodes=3, seed=4, m=2)
    assert seen == {'asked': ['walk', 'hop'], 'n': 2, 'seed': 4}
    want = [play('walker2d', SPEC, np.stack([A, B])[None], mean[None, [i, 2 + j]], std[None, [i, 2 + j]], (6, 6), n_episodes=3, seed=4).reward for i in (0, 1) for j in (0, 1)]
    assert np.abs(got.reward - want[0]).max() < 1e-4  # nobody falls in 12 steps, so the first of each


def test_bad_parts_are_refused():
    g = generator()
    with pytest.raises(ValueError, match='parts is empty'): compose(g, [])
    with pytest.raises(ValueError, match='parts holds measures and texts'): compose(g, [((.9, .9), 6), ('hop', 6)])
    with pytest.raises(ValueError, match=r'shape \(3,\): expected \(2,\)'): compose(g, [((.9, .9), 6), ((.1, .2, .3), 6)])
    with pytest.raises(ValueError, match='NaN in row 1'): compose(g, [((.9, .9), 6), ((.1, np.nan), 6)], m=2)
    with pytest.raises(ValueError, match='holds 1.5 in row 1'): compose(g, [((.9, .9), 6), ((.1, 1.5), 6)], m=2)
    for steps in (0, -3, 2.5, np.nan):
        with pytest.raises(ValueError, match='expected whole numbers of at least 1'): compose(g, [((.9, .9), 6), ((.1, .9), steps)], m=2)
    with pytest.raises(ValueError, match='steps add up to 1001: expected at most 1000'): compose(g, [((.9, .9), 500), ((.1, .9), 501)], m=2)
    with pytest.raises(ValueError, match='m is 0: expected at least 1'): compose(g, [((.9, .9), 6)], m=0)


def test_bad_sequences_are_refused():
    rows = np.stack([A, B])[None]
    with pytest.raises(ValueError, match=r'params has shape \(1, 2, 5702\): expected \(n, 3, 5702\)'): play('walker2d', SPEC, rows, *NORM, (1, 2, 3))
    with pytest.raises(ValueError, match='steps is empty'): play('walker2d', SPEC, rows, *NORM, ())
    with pytest.raises(ValueError, match='not finite'): play('walker2d', SPEC, rows*np.nan, *NORM, (5, 5))
    with pytest.raises(ValueError, match=r'obs_std has shape \(1, 3, 17\): expected \(17,\) or \(1, 2, 17\)'): play('walker2d', SPEC, rows, np.zeros(17), np.ones((1, 3, 17)), (6, 6))
    with pytest.raises(ValueError, match='start holds 1 sequences: expected 2'): play('walker2d', SPEC, np.stack([A, B])[:, None], *NORM, (6,), start=both(A, B).ends)
