"Metrics, checked by hand on three cells, by numeric integration, and against scikit-learn and slow code."
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from policydiffusion import core, metrics
from policydiffusion.archive import Archive, synthetic_archive
from policydiffusion.metrics import (actions, compare, compression, compression_bytes, describe, fit_gaussian, js_divergence,
                                     load_run, synthetic_run, nearest_distance, novelty, typical_observations)
from policydiffusion.policy import PolicySpec, pack, unpack

SPEC = PolicySpec(1, 1, ())


def three(objective, measures, length=(1000, 1000, 1000), weights=(0, 1, 3)) -> Archive:
    return Archive('walker2d', SPEC, params=[[w, 0] for w in weights], objective=objective, measures=[[m] for m in measures],
                   length=length, obs_mean=[0], obs_std=[1], dims=(3,), reward_offset=-1.)


@pytest.fixture
def run() -> tuple:
    original = three([10, 20, 30], [.1, .5, .9])
    reference = three([10, 20, 20], [.1, .5, .6])  # the third policy slips into the middle cell
    generated = three([8, 12, 20], [.2, .3, .9], length=(1000, 1000, 500), weights=(0, 1.5, 3.5))  # the second lands in the first cell, the third falls
    return original, reference, generated


# ---- by hand

def test_three_cells_by_hand(run):
    m = compare(*run)
    assert m['coverage'] == pytest.approx(2/3)
    assert m['alive_coverage'] == pytest.approx(1/3)
    assert m['coverage_ratio'] == 1
    assert m['reward_ratio'] == pytest.approx(40/50)
    assert m['qd_score'] == (12 + 1000) + (20 + 500)
    assert m['qd_score_ratio'] == pytest.approx(1532/((10 + 1000) + (20 + 1000)))
    assert m['best'] == 20
    assert m['mem'] == pytest.approx((.1 + .2 + 0)/3)
    assert m['mem_floor'] == pytest.approx((0 + 0 + .3)/3)
    assert m['novelty_weights'] == pytest.approx((0 + .5 + .5)/(1 + 1 + 2))


def test_names_are_those_of_the_table(run):
    assert set(compare(*run)) == {'coverage', 'alive_coverage', 'coverage_ratio', 'reward_ratio', 'qd_score', 'qd_score_ratio', 'best',
                                  'mem', 'mem_floor', 'js', 'novelty_weights', 'novelty_actions'}
    assert all(isinstance(v, float) for v in (compare(*run) | describe(*run[:2])).values())


def test_a_perfect_generator(run):
    original, reference, _ = run
    m = compare(original, reference, reference)
    assert m['coverage_ratio'] == m['reward_ratio'] == m['qd_score_ratio'] == 1
    assert m['mem'] == m['mem_floor'] and m['js'] == pytest.approx(0, abs=1e-9)
    assert m['novelty_weights'] == 0 and m['novelty_actions'] == pytest.approx(0, abs=1e-6)  # it returns the training policies; actions are computed twice, which may round differently


def test_original_is_described_by_its_re_evaluation(run):
    original, reference, _ = run
    d = describe(original, reference)
    assert d['coverage'] == pytest.approx(2/3)  # stored values would say 1
    assert d['mem'] == d['mem_floor'] == pytest.approx(.1)


def test_mem_in_two_dimensions_is_euclidean():
    a = synthetic_archive(n=3)
    b = replace(a, measures=np.float32([[.3, .4], [.1, .1], [1, 1]]))
    a = replace(a, measures=np.float32([[0, 0], [.1, .1], [.4, .2]]))
    assert compare(a, a, b)['mem'] == pytest.approx((.5 + 0 + 1)/3)


def test_a_ratio_to_nothing_is_nan(run):
    original, reference, generated = run
    lossy = replace(reference, objective=[-1, -1, -1])
    assert np.isnan(compare(original, lossy, generated)['reward_ratio'])


# ---- Jensen-Shannon

def integral(x, y) -> float:
    "JS of the two fitted Gaussians in bits, on a grid of 400 x 400 points."
    t = np.linspace(-1, 2, 400)
    grid = np.stack(np.meshgrid(t, t, indexing='ij'), -1)
    p, q = (multivariate_normal(*fit_gaussian(z)).pdf(grid) + 1e-300 for z in (x, y))
    m = (p + q)/2
    return float((p*np.log2(p/m) + q*np.log2(q/m)).sum()/2*(t[1] - t[0])**2)


@pytest.mark.parametrize('shift, width', [((0, 0), .1), ((.1, 0), .1), ((.2, -.1), .15), ((.4, .4), .2)])
def test_js_against_a_numeric_integral(shift, width):
    rng = np.random.default_rng(1)
    x = rng.multivariate_normal([.4, .5], [[.01, .004], [.004, .02]], 500)
    y = rng.normal(np.array([.4, .5]) + shift, width, (500, 2))
    assert js_divergence(x, y) == pytest.approx(integral(x, y), abs=5e-4)


def test_js_is_symmetric_bounded_and_repeatable():
    x, y = np.random.default_rng(2).uniform(size=(2, 300, 4))
    y = .5 + .5*y
    assert js_divergence(x, y) == pytest.approx(js_divergence(y, x), abs=1e-9)
    assert js_divergence(x, y) == js_divergence(x, y)
    assert js_divergence(x, x) == pytest.approx(0, abs=1e-9)
    assert js_divergence(x, x + 5) == pytest.approx(1, abs=1e-6)


def test_js_survives_a_measure_that_never_moves():
    x = np.c_[np.linspace(0, 1, 50), np.zeros(50)]
    assert js_divergence(x, x) == pytest.approx(0, abs=1e-9)
    assert 0 < js_divergence(x, x + [0, .001]) < js_divergence(x, x + [0, .01]) <= 1


# ---- novelty

def test_nearest_distance_against_all_pairs():
    x, y = np.random.default_rng(0).normal(size=(2, 40, 7)).astype(np.float32)
    pairs = np.linalg.norm(x[:, None] - y[None], axis=-1)
    own = np.linalg.norm(x[:, None] - x[None], axis=-1) + np.diag(np.full(40, np.inf))
    np.testing.assert_allclose(nearest_distance(x, y), pairs.min(1), rtol=1e-5)
    np.testing.assert_allclose(nearest_distance(x), own.min(1), rtol=1e-5)


def test_permuted_hidden_units_are_new_in_weights_only():
    a = synthetic_archive(n=60)
    (W, b), (V, c) = unpack(a.spec, a.params)
    same = replace(a, params=pack([(W[..., ::-1], b[..., ::-1]), (V[:, ::-1], c)]))
    n = novelty(a, same)
    assert n['novelty_weights'] > 1 and n['novelty_actions'] < 1e-4


def test_actions_are_those_of_one_policy_at_a_time():
    a = synthetic_archive(n=5)
    a = replace(a, params=4*a.params, obs_mean=np.arange(20).reshape(5, 4)/10, obs_std=1 + np.arange(20).reshape(5, 4)/10)
    obs = typical_observations(a, 6)
    for i in range(5):
        h = np.clip((obs - a.obs_mean[i])/a.obs_std[i], -10, 10)
        (W, b), (V, c) = unpack(a.spec, a.params[i])
        np.testing.assert_allclose(actions(a, obs)[i], np.clip(np.tanh(h @ W + b) @ V + c, -1, 1).ravel(), atol=1e-5)
    assert np.abs(actions(a, obs)).max() == 1


# ---- compression

def test_paper_rule_gives_the_papers_thirteen():
    c = compression(7470, 47_906, denoiser=9_868_444, decoder=16_930_000)
    assert c['compression_paper_rule'] == pytest.approx(13.36, abs=.01)
    for millions, published in ((8.49, 19.5), (33.86, 8.2), (68.02, 4.6)):
        assert compression(7470, 47_906, 9_868_444, millions*1e6)['compression_paper_rule'] == pytest.approx(published, abs=.06)


def test_our_rule_counts_every_parameter():
    c = compression(100, 50, denoiser=200, decoder=300, condition=20, normaliser=80, archive_normaliser=1000)
    assert c == dict(compression=6000/600, compression_paper_rule=5000/500)


def test_bytes_need_the_same_precision(tmp_path):
    from policydiffusion.core import save_tensors
    a = synthetic_archive(n=1000).save(tmp_path/'archive.safetensors')
    half = save_tensors(tmp_path/'half.safetensors', {'w': np.zeros(5000, np.float16)}, {'kind': 'generator'})
    full = save_tensors(tmp_path/'full.safetensors', {'w': np.zeros(5000, np.float32)}, {'kind': 'generator'})
    assert compression_bytes(a, half) == a.stat().st_size/half.stat().st_size
    with pytest.raises(ValueError, match='full.safetensors holds mostly F32 numbers: expected F16'): compression_bytes(a, full)


# ---- bad input and runs on the disk

@pytest.mark.parametrize('change, says', [
    (dict(task='ant'), 'generated has task ant: expected walker2d'),
    (dict(dims=(4,)), r'generated has dims \(4,\): expected \(3,\)'),
    (dict(horizon=2000), 'generated has horizon 2000: expected 1000'),
])
def test_archives_that_cannot_be_compared(run, change, says):
    original, reference, generated = run
    with pytest.raises(ValueError, match=says): compare(original, reference, replace(generated, **change))


def test_every_target_needs_an_answer(run):
    original, reference, generated = run
    with pytest.raises(ValueError, match='generated has 2 policies: expected 3'): compare(original, reference, generated.select([0, 1]))
    with pytest.raises(ValueError, match='reference has 1 policies: expected 3'): describe(original, reference.select([0]))


@pytest.fixture
def disk(tmp_path, monkeypatch):
    for module in (core, metrics): monkeypatch.setattr(module, 'ARTIFACTS', tmp_path/'artifacts')
    monkeypatch.setattr(metrics, 'DATA', tmp_path/'data')
    return tmp_path


def test_smoke_invents_a_run_and_leaves_no_file(disk):
    for a in load_run('smoke', 'walker2d', 'compact', 111): assert a.meta['synthetic']
    assert not list(disk.iterdir())


def test_other_scales_insist_on_files(disk):
    with pytest.raises(FileNotFoundError, match=r'walker2d.safetensors does not exist'): load_run('laptop', 'walker2d', 'compact', 111)
    with pytest.raises(ValueError, match="scale 'big' is unknown"): load_run('big', 'walker2d', 'compact', 111)


def test_a_run_is_read_back(disk):
    original, reference, generated = synthetic_run()
    original.save(disk/'data'/'archives'/'walker2d.safetensors')
    reference.save(disk/'artifacts'/'laptop'/'walker2d'/'reference.safetensors')
    generated.save(disk/'artifacts'/'laptop'/'walker2d'/'compact-111'/'generated.safetensors')
    back = load_run('laptop', 'walker2d', 'compact', 111)
    assert compare(*back) == compare(original, reference, generated)
