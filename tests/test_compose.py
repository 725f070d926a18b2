"Sequences of policies: against a policy alone, by hand, and with bad input."
import numpy as np
import pytest

from policydiffusion.archive import Archive
from policydiffusion.compose import Play, alternatives, compose, nearest_elites, pick_lasting, play, sequence_success
from policydiffusion.core import DATA
from policydiffusion.generator import Generator

ARCHIVE = Archive.load(DATA/'archives'/'walker2d.safetensors', 'walker2d')
NORM = ARCHIVE.obs_mean, ARCHIVE.obs_std
A, B = ARCHIVE.params[0], ARCHIVE.params[-1]


def both(first, second, **more):
    return play('walker2d', ARCHIVE.spec, np.stack([first, second])[None], *NORM, (6, 6), n_episodes=3, seed=4, lanes=4, **more)


def test_a_sequence_is_its_first_policy_until_the_switch():
    aa, ab, ba = both(A, A), both(A, B), both(B, A)
    assert aa.reward.shape == (1, 3, 12) and aa.measures.shape == (1, 3, 12, 2)
    np.testing.assert_array_equal(ab.reward[..., :6], aa.reward[..., :6])
    assert (ab.reward[..., 6:] != aa.reward[..., 6:]).any(-1).all() and (ba.reward[..., :6] != aa.reward[..., :6]).any(-1).all()


def test_blending_mixes_after_the_switch_only():
    sharp, soft = both(A, B), both(A, B, blend=3)
    np.testing.assert_array_equal(soft.reward[..., :6], sharp.reward[..., :6])
    assert (soft.reward[..., 6:] != sharp.reward[..., 6:]).any(-1).all()
    np.testing.assert_allclose(both(A, A, blend=3).reward, both(A, A).reward, atol=1e-4)  # a mixture of equals changes nothing


def test_segments_of_unequal_length_and_what_fills_the_last_call():
    once = play('walker2d', ARCHIVE.spec, np.stack([A, B])[None], *NORM, (4, 8), n_episodes=3, seed=4, lanes=4)
    assert once.alive.shape == (1, 3, 12)
    np.testing.assert_allclose(once.reward[..., :4], both(A, A).reward[..., :4], atol=1e-4)


def test_a_dead_episode_earns_nothing():
    played = both(A, B)
    assert (played.reward[~played.alive] == 0).all() and (np.diff(played.alive.astype(int), axis=-1) <= 0).all()


def test_success_needs_four_fifths_on_average():
    alive = np.arange(10) < np.array([[10, 7], [8, 8], [10, 5]])[..., None]
    played = Play(np.zeros((3, 2, 10, 1)), np.zeros((3, 2, 10)), alive)
    assert sequence_success(played).tolist() == [True, False, False] and sequence_success(played, .7).tolist() == [True, True, True]
    assert pick_lasting(Play(played.measures[:2], played.reward[:2], alive[:2]), 2).tolist() == [0]
    assert pick_lasting(Play(played.measures[:2], played.reward[:2], alive[1::-1]), 2).tolist() == [1]


def test_alternatives_begin_with_what_was_asked():
    asked = np.random.default_rng(0).uniform(size=(5, 4, 2)).astype(np.float32)
    moved = alternatives(asked, 200, spread=.05, seed=1)
    assert moved.shape == (5, 200, 4, 2) and moved.min() >= 0 and moved.max() <= 1
    np.testing.assert_array_equal(moved[:, 0], asked)
    inside = np.abs(asked - .5) < .3
    np.testing.assert_allclose(np.broadcast_to(inside, moved.swapaxes(0, 1)[0].shape)*moved[:, 1:].std(1), inside*.05, atol=.012)


def test_nearest_elites():
    ask = np.random.default_rng(0).uniform(size=(2, 3, 2))
    for i in range(2):
        for j in range(3):
            want = ARCHIVE.params[((ARCHIVE.measures - ask[i, j])**2).sum(1).argmin()]
            np.testing.assert_array_equal(nearest_elites(ARCHIVE, ask)[i, j], want)


def test_compose_plays_what_was_generated():
    g = Generator.load(DATA/'generators'/'walker2d.safetensors', 'walker2d')
    parts = [((.9, .9), 6), ((.3, .9), 6)]
    made = g.generate(np.float32([m for m, _ in parts]), seed=2)
    want = play('walker2d', g.spec, made.params[None], made.obs_mean, made.obs_std, (6, 6), n_episodes=3, seed=2)
    np.testing.assert_array_equal(compose(g, parts, n_episodes=3, seed=2).reward, want.reward)
    with pytest.raises(ValueError, match='parts is empty'): compose(g, [])


def test_bad_sequences_are_refused():
    with pytest.raises(ValueError, match=r'params has shape \(1, 2, 5702\): expected \(n, 3, 5702\)'): play('walker2d', ARCHIVE.spec, np.stack([A, B])[None], *NORM, (1, 2, 3))
    with pytest.raises(ValueError, match='expected at least 1 everywhere'): play('walker2d', ARCHIVE.spec, np.stack([A, B])[None], *NORM, (5, 0))
    with pytest.raises(ValueError, match='blend is 5: expected at most 4'): play('walker2d', ARCHIVE.spec, np.stack([A, B])[None], *NORM, (4, 8), blend=5)
