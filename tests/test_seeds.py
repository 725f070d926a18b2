"Seeds and noise: published vectors, scipy's tests, and answers that depend on (seed, request, draw) alone."
import hashlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from policydiffusion.core import DATA, ROOT, normal_rows, philox, seed_for
from policydiffusion.diffusion import row_noise
from policydiffusion.generator import Generator, Sampling

GENERATORS = sorted((DATA/'generators').glob('*.safetensors'))
SAMPLERS = {'shipped': {}, 'ddpm': dict(sampler='ddpm', n_steps=5), 'eta': dict(n_steps=5, eta=1.), 'dpm': dict(sampler='dpm', n_steps=5)}


# ---- seeds

def test_a_seed_is_a_hash_of_the_run_and_its_purpose():
    for run, purpose in ((0, ('judge',)), (111, ('rehearsal', 2))):
        told = json.dumps([run, *purpose]).encode()
        assert seed_for(run, *purpose) == int(hashlib.blake2b(told, digest_size=8).hexdigest(), 16) >> 1
    assert seed_for(np.int64(111), 'rehearsal', np.int32(2)) == seed_for(111, 'rehearsal', 2) < 2**63


def test_no_two_purposes_share_a_seed():
    runs = itertools.product((*range(50), 111, 222, 333, 444), ('judge', 'rehearsal', 'train'), ((), *((i,) for i in range(20)), ('1',)))
    seeds = [seed_for(s, name, *more) for s, name, more in runs]
    assert len(set(seeds)) == len(seeds) == 54*3*22


@pytest.mark.parametrize('bad', [-1, True, 1.5, '3', None])
def test_what_is_no_seed_is_refused(bad):
    with pytest.raises(ValueError, match='seed is .*: expected at least 0, a whole number'): seed_for(bad, 'train')


SUMS = re.compile(r'\bseed\b *[-+*]|[-+*] *\bseed\b(?! *=)')  # seeds made by arithmetic
FINE = {'35_latent_diffusion.ipynb': 'generate(few, seed=seed + 1)'}  # "another seed", whose answer must differ


def test_no_seed_is_made_by_arithmetic():
    found = []
    for path in sorted((ROOT/'nbs').glob('*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] != 'code': continue
            lines = (line.split('#')[0] for line in cell['source'])
            found += [f'{path.name}: {line.strip()}' for line in lines if SUMS.search(line) and FINE.get(path.name, '\n') not in line]
    assert not found, found


# ---- noise

@pytest.mark.parametrize('place, key, want', [  # known answers of Random123, Salmon et al. 2011
    ((0, 0, 0, 0), 0, '6627e8d5 e169c58d bc57ac4c 9b00dbd8'),
    ((2**32 - 1,)*4, 2**64 - 1, '408f276d 41c83b0e a20bc7c6 6d5451fd'),
    ((0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), 0x299f31d0a4093822, 'd16cfe09 94fdcceb 5001e420 24126ea1')])
def test_philox_gives_the_published_bits(place, key, want):
    assert ' '.join(f'{int(x):08x}' for x in philox(key, *place)) == want


def test_all_places_at_once_are_each_place_alone():
    rows = np.arange(5)
    together = philox(9, np.arange(3)[:, None], rows, 7, 0)
    assert together.shape == (4, 3, 5)
    for b, r in itertools.product(range(3), range(5)): np.testing.assert_array_equal(together[:, b, r], philox(9, b, r, 7, 0))


@pytest.mark.parametrize('seed', [0, 1, 2**62 + 5])
def test_bits_are_uniform_and_numbers_normal(seed):
    "By chance one of these six tests fails once in a thousand runs; the seeds are fixed."
    bits = philox(seed, np.arange(16), np.arange(4000)[:, None], 0, 0)
    for shift in (0, 24): assert stats.chisquare(np.bincount(((bits >> np.uint64(shift)) & np.uint64(255)).astype(int).ravel(), minlength=256)).pvalue > 1e-4
    x = normal_rows(seed, 16, np.arange(20_000)).ravel().astype(np.float64)
    assert stats.kstest(x, 'norm').pvalue > 1e-4
    n = len(x)
    assert abs(x.mean()) < 4/n**.5 and abs(x.var() - 1) < 4*(2/n)**.5
    assert abs((x**3).mean()) < 4*(15/n)**.5 and abs((x**4).mean() - 3) < 4*(96/n)**.5


def neighbours() -> dict:
    "Rows of noise whose places, or seeds, differ by one."
    n = np.arange(100_000)
    here = normal_rows(3, 2, n, 0, 0)
    return {'request': (here[:-1], here[1:]), 'draw': (here, normal_rows(3, 2, n, 1, 0)), 'call': (here, normal_rows(3, 2, n, 0, 1)),
            'seed': (here, normal_rows(4, 2, n, 0, 0)), 'number': (here[:, :1], here[:, 1:]), 'swapped': (here[1:], normal_rows(3, 2, 0, n[1:], 0))}


@pytest.mark.parametrize('what', ['request', 'draw', 'call', 'seed', 'number', 'swapped'])
def test_neighbours_are_independent(what):
    "No correlation, of the numbers and of their sizes, and a table of sixteen by sixteen quantiles without pattern."
    a, b = (x.ravel().astype(np.float64) for x in neighbours()[what])
    for f in (lambda x: x, np.square): assert abs(np.corrcoef(f(a), f(b))[0, 1]) < 4.5/len(a)**.5
    edges = stats.norm.ppf(np.linspace(0, 1, 17)[1:-1])
    table = np.histogram2d(np.digitize(a, edges), np.digitize(b, edges), bins=np.arange(17) - .5)[0]
    assert stats.chisquare(table.ravel()).pvalue > 1e-4


@pytest.mark.parametrize('shape', [(12,), (16,), (2, 4, 4), (1,)])
def test_a_row_of_noise_is_the_same_in_any_company(shape):
    request, draw = np.divmod(np.arange(60), 4)
    many = row_noise(5, shape, request, draw)
    assert many(0).shape == (60, *shape) and many(0).dtype == torch.float32 and not torch.equal(many(0), many(1))
    few = row_noise(5, shape, request[[0, 9, 33]], draw[[0, 9, 33]])
    for call in (0, 1, 7): assert torch.equal(few(call), many(call)[[0, 9, 33]])


# ---- the generators that ship

def ask(g: Generator, m: int) -> np.ndarray:
    "m requests: measures, or what is asked for."
    rng = np.random.default_rng(0)
    x = rng.random((8, g.design.n_measures)).astype(np.float32)
    return ((x > .8).astype(np.float32) if g.conditioner.takes_text else x)[:m]


@pytest.mark.parametrize('path, how', [(p, how) for p in GENERATORS for how in SAMPLERS if how in ('shipped', 'eta') or not p.stem.endswith('_text')],
                         ids=lambda x: getattr(x, 'stem', x))  # with words each answer takes sixteen draws
def test_answer_i_to_request_j_depends_on_seed_j_and_i_alone(path, how):
    "Exact in the noise; in the weights up to the rounding of matrix products of another size."
    g = Generator.load(path)
    g.sampling = Sampling(**{**vars(g.sampling), **({'last': None} if how != 'shipped' else {}), **SAMPLERS[how]})
    whole = g.generate(ask(g, 3), n=4, seed=0).params.reshape(3, 4, -1)
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 1e-4  # draws differ
    alone = g.generate(ask(g, 1), n=1, seed=0).params
    fewer = g.generate(ask(g, 2), n=3, seed=0, batch=17 if g.conditioner.takes_text else 1).params.reshape(2, 3, -1)
    changed = ask(g, 3); changed[1:] = changed[1:, ::-1]
    other = g.generate(changed, n=2, seed=0, batch=5).params.reshape(3, 2, -1)
    scale = np.abs(whole).max()
    for got, want in ((alone[0], whole[0, 0]), (fewer, whole[:2, :3]), (other[0], whole[0, :2])):
        np.testing.assert_allclose(got/scale, want/scale, atol=3e-5)
