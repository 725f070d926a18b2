"Words against behaviour: by hand, against plain rollouts, and with bad input."
import warnings
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch

from policydiffusion.archive import Archive
from policydiffusion.behaviour import compact_settings
from policydiffusion.core import DATA
from policydiffusion.generator import Generator
from policydiffusion.language import CANDIDATES, SuccessClassifier
from policydiffusion.language import PREDICATES, Predicate, get_predicates, say, text_design, train_success_classifier, truth, watch, draw_conditions
from policydiffusion.policy import act_jax
from policydiffusion.rollout import evaluate
from policydiffusion.tasks import TASKS, make_env
from policydiffusion.text import TextClassifier, load_words

ARCHIVE = Archive.load(DATA/'archives'/'walker2d.safetensors', 'walker2d')
NORM = ARCHIVE.obs_mean, ARCHIVE.obs_std
SOME = ARCHIVE.params[::100]


# ---- what a spectator sees

@pytest.fixture(scope='module')
def seen(): return watch('walker2d', ARCHIVE.spec, SOME, *NORM, n_episodes=1, horizon=60, seed=3, batch=8)


def test_watching_changes_nothing_that_was_measured_before(seen):
    plain = evaluate('walker2d', ARCHIVE.spec, SOME, *NORM, n_episodes=1, horizon=60, seed=3, n_max=8)
    np.testing.assert_allclose(seen.iloc[:, :2], plain.measures, atol=1e-5)
    np.testing.assert_array_equal(seen.length, plain.length)


def test_the_description_is_what_the_steps_show(seen):
    env = make_env('walker2d')
    key = jax.random.key(3)

    def episode(i, row):
        "The same episode as in `evaluate`, step by step."
        def step(carry, _):
            state, alive = carry
            state, contact = env.step(state, act_jax(ARCHIVE.spec, row, *NORM, state.obs))
            return (state, alive & (state.done < .5)), (contact, state.pipeline_state.x.pos[0], state.pipeline_state.x.rot[0], alive)
        return jax.lax.scan(step, (env.reset(jax.random.fold_in(jax.random.fold_in(key, i), 0)), jnp.array(True)), length=60)[1]

    contact, pos, rot, alive = map(np.asarray, jax.jit(jax.vmap(episode))(jnp.arange(len(SOME)), jnp.asarray(SOME)))
    mean = lambda x: (x*alive).sum(1)/alive.sum(1)
    np.testing.assert_allclose(seen.iloc[:, :2], np.stack([mean(contact[..., k]) for k in (0, 1)], 1), atol=.02)  # one step in sixty: a batch of another size rounds differently
    np.testing.assert_allclose(seen['aerial phase'], mean(1 - contact.max(2)), atol=.02)
    np.testing.assert_allclose(seen['double support'], mean(contact.min(2)), atol=.02)
    np.testing.assert_allclose(seen.height, mean(pos[..., 2]), atol=2e-3)
    np.testing.assert_allclose(seen.lean, mean(2*np.arctan2(rot[..., 2], rot[..., 0])), atol=5e-3)  # a planar body turns about y only
    travelled = [(p[a][-1, 0] - p[a][0, 0])/((a.sum() - 1)*.008) for p, a in zip(pos, alive)]
    np.testing.assert_allclose(seen.speed, travelled, atol=.15)


def test_watching_in_parts_is_watching():
    whole = watch('walker2d', ARCHIVE.spec, SOME, *NORM, n_episodes=1, horizon=60, seed=3, batch=8)
    assert list(whole) == ['right foot contact', 'left foot contact', 'aerial phase', 'double support', 'speed', 'height', 'lean', 'joint speed', 'length'] and len(whole) == len(SOME)
    assert (whole['aerial phase'] + whole['double support'] <= 1 + 1e-6).all() and (whole['joint speed'] > 0).all()


# ---- predicates

TOY = pd.DataFrame({'speed': [.59, .6, .69, .71], 'lean': [-.5, 0., .2, .3]})


def test_thresholds_and_margins():
    fast, upright = Predicate('fast', 'speed', low=.6, margin=.1), Predicate('upright', 'lean', -.2, .2, .1)
    np.testing.assert_array_equal(truth((fast, upright), TOY).T, [[0, 1, 1, 1], [0, 1, 1, 0]])
    np.testing.assert_array_equal(truth((fast, upright), TOY, strict=1).T, [[0, 0, 0, 1], [0, 1, 0, 0]])


@pytest.mark.parametrize('task', PREDICATES)
def test_every_predicate_has_words(task):
    names = {p.name for p in get_predicates(task)}
    for taught in (True, False): assert set(' '.join(load_words(taught, tuple(names)).predicate).split()) - {'nothing'} == names


def test_every_word_is_understood_by_some_machine():
    assert set(' '.join(load_words().predicate).split()) - {'nothing'} == {p.name for known in PREDICATES.values() for p in known}


@pytest.mark.parametrize('task', PREDICATES)
def test_captions_name_elites_and_claim_what_can_be_said(task):
    captions, n = pd.read_csv(DATA/'captions'/f'{task}.tsv', sep='\t').fillna({'claims': ''}), len(Archive.load(DATA/'archives'/f'{task}.safetensors', task))
    assert len(captions) == 100 and captions.elite.between(0, n - 1).all() and captions.caption.str.strip().ne('').all()
    assert set(' '.join(captions.claims).split()) <= {p.name for p in get_predicates(task)}


OPPOSITES = ('right_up right_down', 'left_up left_down', 'front_up front_down', 'back_up back_down', *(f'foot_{i}_up foot_{i}_down' for i in (1, 2, 3, 4)), 'airborne grounded', 'fast slow',
             'upright leaning_back', 'leaning_forward leaning_back', 'tall crouched', 'calm restless', 'lasts falls')


@pytest.mark.parametrize('task', PREDICATES)
def test_opposites_exclude_each_other(task):
    known = get_predicates(task)
    seen = pd.DataFrame({f: np.random.default_rng(i).uniform(-1.5, 6, 2000) for i, f in enumerate(sorted({p.feature for p in known}))})
    if 'length' in seen: seen['length'] = seen.length.abs()*200
    names, true = [p.name for p in known], truth(known, seen)
    said = [pair.split() for pair in OPPOSITES if set(pair.split()) <= set(names)]
    assert len(said) >= 5
    for a, b in said:
        i, j = names.index(a), names.index(b)
        assert true[:, i].any() and true[:, j].any() and not (true[:, i] & true[:, j]).any()


def test_a_task_without_words_is_refused():
    with pytest.raises(ValueError, match="'swimmer' is unknown: expected one of hopper, walker2d"): get_predicates('swimmer')


# ---- conditions

def test_wishes_are_true_small_and_never_banned():
    true = np.random.default_rng(1).random((300, 6)) < .5
    banned = ((0, 1), (2, 5))
    rows, condition = draw_conditions(true, 10, banned, seed=2)
    assert (condition.astype(bool) <= true[rows]).all() and set(condition.sum(1)) <= {1, 2, 3} and not any((condition[:, i]*condition[:, j]).any() for i, j in banned)
    assert {tuple(np.flatnonzero(w)) for w in condition if w.sum() == 2} == {p for p in combinations(range(6), 2) if p not in banned}  # all others occur
    free = draw_conditions(np.ones((3000, 6), bool), 1, seed=3)[1].sum(1)
    np.testing.assert_allclose([(free == k).mean() for k in (1, 2, 3)], (.35, .4, .25), atol=4*(.25/3000)**.5)


def test_who_does_nothing_inspires_no_wish():
    rows, condition = draw_conditions(np.array([[0, 0], [1, 0]], bool), 5)
    assert set(rows) == {1} and (condition == [1, 0]).all()


def test_a_sentence_names_every_predicate_of_its_wish():
    words = pd.DataFrame([('a', 'alpha'), ('b', 'beta'), ('c', 'gamma')], columns=['predicate', 'phrase'])
    text = say(np.array([1, 1, 1]), ('a', 'b', 'c'), words, np.random.default_rng(0))
    assert sorted(w for w in text.replace(',', '').split() if w not in ('and', 'while', 'but')) == ['alpha', 'beta', 'gamma']
    assert say(np.array([0, 1, 0]), ('a', 'b', 'c'), words, np.random.default_rng(0)) == 'beta'


# ---- a generator that is asked in words

@pytest.fixture(scope='module')
def wordy():
    torch.manual_seed(0)
    classifier = TextClassifier(('fast', 'airborne left_up', 'nothing'))
    generator = Generator('walker2d', ARCHIVE.spec, text_design(compact_settings('smoke'), classifier, 2, {'width': 16, 'n_blocks': 1, 'cond_freqs': 0}))
    generator.conditioner.known[:] = torch.tensor([[1., 0., 1.], [0., 1., 0.]])  # airborne and left_up; fast
    return generator


def test_words_and_their_wish_are_the_same_request(wordy, monkeypatch):
    monkeypatch.setattr(wordy.conditioner.classifier, 'read', lambda texts: (np.float32([[1, 0, 1]]*len(texts)), [[]]*len(texts)))
    a, b = wordy.generate(['hop on the right foot', 'hop'], n=2, seed=1), wordy.generate(np.float32([[1, 0, 1]]*2), n=2, seed=1)
    np.testing.assert_array_equal(a.params, b.params)
    assert a.texts == ['hop on the right foot']*2 + ['hop']*2 and b.texts is None and np.isnan(a.measures).all() and a.measures.shape == (4, 2)


def test_the_judge_learns_what_makes_a_predicate_true_and_picks_it():
    torch.manual_seed(0)
    x = torch.randn(600, 2, 3)
    rule = lambda x: np.stack([x[..., 0, 0].numpy() > 0, x[..., 1, 2].numpy() < -.3], -1)
    success = SuccessClassifier((2, 3), 2)
    losses = train_success_classifier(success, x, rule(x), steps=400, seed=1)
    fresh = torch.randn(50, 16, 2, 3)
    assert np.mean(losses[-20:]) < .1 < np.mean(losses[:5]) and ((success(fresh.flatten(0, 1)).detach().numpy() > 0) == rule(fresh.flatten(0, 1))).mean() > .93
    best = success.best(fresh, torch.ones(50, 2), 1)[:, 0]
    possible = rule(fresh).all(2).any(1)
    assert rule(fresh[torch.arange(50), best])[possible].all(1).mean() > .95  # by chance less than one in five


def test_each_answer_to_words_is_the_judges_favourite_of_its_own_draws(wordy):
    condition = np.float32([[1, 0, 1], [0, 1, 0]])
    z = wordy.draw_latents(condition, 2*CANDIDATES, seed=4)
    with torch.no_grad(): logits = wordy.conditioner.success((z - wordy.latent_scale.mean)/wordy.latent_scale.std).numpy().reshape(2, 2, CANDIDATES, 3)
    score = -(np.log1p(np.exp(-logits))*condition[:, None, None]).sum(3)  # log of the product of probabilities
    best = score.argmax(2).ravel()
    with torch.no_grad(): expected = wordy.decoder.decode(z[best + CANDIDATES*np.arange(4)]).numpy()
    np.testing.assert_allclose(wordy.generate(condition, n=2, seed=4).params, expected, atol=1e-5)


def test_further_wishes_are_judged_too(wordy):
    both = wordy.ranked_latents(np.float32([[1, 0, 0]]), 3, seed=2, also=((np.float32([[0, 1, 0]]), None),))
    z = wordy.draw_latents(np.float32([[1, 0, 0]]), 3*CANDIDATES, seed=2, also=((np.float32([[0, 1, 0]]), None),))
    best = wordy.conditioner.success.best(wordy.latent_scale(z).unflatten(0, (3, CANDIDATES)), torch.tensor([[1., 1., 0.]]*3), 1)[:, 0]
    torch.testing.assert_close(both, z[best + CANDIDATES*torch.arange(3)])


def test_a_wordy_generator_survives_its_file(wordy, tmp_path):
    again = Generator.load(wordy.save(tmp_path/'g.safetensors'), 'walker2d')
    assert again.conditioner.classifier.labels == wordy.conditioner.classifier.labels
    np.testing.assert_array_equal(again.conditioner.known, wordy.conditioner.known)
    for name, x in wordy.conditioner.success.state_dict().items(): torch.testing.assert_close(again.conditioner.success.state_dict()[name], x, atol=1e-3, rtol=1e-3)  # kept in half precision
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); assert again.generate('run', seed=2).params.shape == (1, ARCHIVE.spec.n_params)


def test_the_listener_fits_encoders_of_other_sizes(tmp_path):
    design = text_design(compact_settings('smoke'), TextClassifier(('fast', 'nothing'), 'flan-t5-small', size=16), 1, {'width': 16, 'n_blocks': 1, 'cond_freqs': 0})
    again = Generator.load(Generator('walker2d', ARCHIVE.spec, design).save(tmp_path/'g.safetensors'))
    assert again.conditioner.classifier.encoder == 'flan-t5-small' and again.conditioner.classifier.queries.in_features == 16


@pytest.mark.parametrize('asked, more, told', [
    ('', {}, 'text 0 is empty'), (['run', ''], {}, 'text 1 is empty'), ('a'*10_000, {}, '10000 characters'), (['run', 3], {}, 'text 1 is of type int'),
    ('run', dict(given=np.ones((1, 3), bool)), 'given was passed with sentences'), ('run', dict(n=0), 'n is 0'), (np.float32([[.2, .6]]), {}, r'expected \(m, 3\)'), (np.float32([[1, np.nan, 0]]), {}, 'NaN')])
def test_bad_requests(wordy, asked, more, told):
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); pytest.raises(ValueError, wordy.generate, asked, **more).match(told)


def test_a_generator_of_measures_refuses_words():
    with pytest.raises(ValueError, match='asked holds words: this generator of walker2d is asked by measures'): Generator.load(DATA/'generators'/'walker2d.safetensors').generate('run')


def test_warnings_name_what_was_not_understood_and_the_nearest_that_can_be_done(wordy, monkeypatch):
    monkeypatch.setattr(wordy.conditioner.classifier, 'read', lambda texts: (np.float32([[1, 1, 0]]), [['bake a cake']]))
    with pytest.warns(UserWarning) as caught: wordy.conditioner.interpret('hop fast, bake a cake')
    assert "'bake a cake' was not understood; what can be said: airborne, fast, left up" in str(caught[0].message)
    assert 'asks for airborne, fast: nothing that this generator was taught does all of it, the nearest is' in str(caught[1].message)


@pytest.mark.parametrize('task', sorted(set(TASKS) - {'halfcheetah'}))  # which has no such words
def test_nobody_falls_who_did_not_ask_for_it(task):
    conditioner = Generator.load(DATA/'generators'/f'{task}_text.safetensors', task).conditioner
    names, known = np.array(conditioner.classifier.predicates), conditioner.known.numpy() > 0
    lasts, falls = names == 'lasts', names == 'falls'
    said = np.eye(len(names), dtype=np.float32)  # one predicate in each sentence
    meant = conditioner.stay_up(said)
    for name, row, more in zip(names, said > 0, meant > 0):
        possible = name != 'falls' and any((k >= row | lasts).all() for k in known)
        assert (more == (row | lasts if possible else row)).all(), name
    assert not (meant[:, lasts] * meant[:, falls]).any() and meant.sum() > said.sum()


@pytest.mark.parametrize('task', TASKS)
def test_shipped_generators_know_their_words(task):
    generator = Generator.load(path := DATA/'generators'/f'{task}_text.safetensors', task)
    names = tuple(p.name for p in get_predicates(generator.task))
    assert generator.conditioner.classifier.predicates == names and path.stat().st_size < 1.5e6
    kept = load_words(taught=False, about=names)
    said = generator.conditioner.classifier.read(kept.phrase.tolist())[0]
    right = [{n for n, s in zip(names, row) if s} == set(p.split()) - {'nothing'} for row, p in zip(said, kept.predicate)]
    assert np.mean(right) > .8  # of phrases that it was not taught


def test_the_shipped_generator_understands_the_readme():
    generator = Generator.load(DATA/'generators'/'walker2d_text.safetensors', 'walker2d')
    with warnings.catch_warnings(): warnings.simplefilter('error'); said = generator.conditioner.interpret('hop on the left foot with the right foot up')
    assert generator.conditioner.names(said[0]) == 'airborne, lasts, right up'  # and no fall
