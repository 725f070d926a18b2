"What ships in data/ is what it says: archives, their ancestors, and generators."
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from policydiffusion import core
from policydiffusion.archive import Archive, alive, coverage
from policydiffusion.core import DATA, load_tensors
from policydiffusion.generator import Generator
from policydiffusion.rollout import evaluate
from policydiffusion.tasks import get_task

ARCHIVES = sorted((DATA/'archives').glob('*.safetensors'))
name = lambda path: path.stem


def test_the_archives_are_small_together(): assert sum(p.stat().st_size for p in ARCHIVES) <= 45e6


@pytest.mark.parametrize('path', ARCHIVES, ids=name)
def test_an_archive_tells_where_it_comes_from(path):
    a, task = Archive.load(path, path.stem), get_task(path.stem)
    assert path.stat().st_size <= 12e6 and a.spec == task.spec() and a.dims == task.dims and a.horizon == 1000
    assert {'command', 'seed', 'hours', 'warm_start_steps', 'evaluated', 'operators', 'device', 'versions', 'date'} <= set(a.meta)
    assert np.isclose(coverage(a), len(a)/np.prod(a.dims)), 'an elite for every filled cell, and no other row'


@pytest.mark.parametrize('path', ARCHIVES, ids=name)
def test_an_archive_shares_its_ancestors_normaliser(path):
    a, (ancestor, meta) = Archive.load(path), load_tensors(DATA/'ancestors'/path.name, 'warm start')
    assert meta['task'] == a.task and ancestor['params'].shape == (a.spec.n_params,)
    np.testing.assert_array_equal(ancestor['obs_mean'], a.obs_mean)
    np.testing.assert_array_equal(ancestor['obs_std'], a.obs_std)


@pytest.mark.parametrize('task', ['hopper', 'ant'])
def test_elites_earn_again_what_the_file_says(task):
    "16 living elites, 4 new episodes each, against the 10 in the file: the mean return agrees within 4 standard errors of the difference."
    a = Archive.load(DATA/'archives'/f'{task}.safetensors')
    living = np.flatnonzero(alive(a))
    some = a.select(living[np.linspace(0, len(living) - 1, 16).astype(int)])
    e = evaluate(task, a.spec, some.params, a.obs_mean, a.obs_std, n_episodes=4, horizon=1000, seed=4321, envs=64, n_max=16)
    error = np.sqrt((some.objective_sd**2*(1/4 + 1/10)).sum())/16
    assert abs(e.objective.mean() - some.objective.mean()) < 4*error


@pytest.mark.parametrize('path', sorted(p for p in (DATA/'generators').glob('*.safetensors') if not p.stem.endswith('_text')), ids=name)
def test_a_generator_answers_for_its_task(path):
    generator, task = Generator.load(path, path.stem), get_task(path.stem)
    asked = np.full((3, task.n_measures), .5, np.float32)
    assert generator.generate(asked, seed=0).params.shape == (3, task.spec().n_params)
    assert path.stat().st_size <= 1.5e6


# ---- files of one run, for readers who begin in the middle

REPLAY = sorted((DATA/'replay').rglob('*.safetensors'))


def test_the_replayed_run_is_the_one_that_is_shipped_and_small():
    assert sum(p.stat().st_size for p in REPLAY) < 8e6
    run = DATA/'replay'/'laptop'/'walker2d'/'compact-111'
    same = run/'generator.safetensors', DATA/'generators'/'walker2d.safetensors'
    assert same[0].read_bytes() == same[1].read_bytes()


def test_what_was_made_here_goes_before_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(core, 'ARTIFACTS', tmp_path/'artifacts')
    for shipped in REPLAY:
        made = tmp_path/'artifacts'/shipped.relative_to(DATA/'replay')
        assert core.find_artifact(made) == shipped
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text('mine')
        assert core.find_artifact(made) == made
    other = made.with_name('another.safetensors')
    assert core.find_artifact(other) == other  # for its reader to say that it is missing
    assert core.find_artifact(tmp_path/'x.csv') == tmp_path/'x.csv'


@pytest.mark.parametrize('config, scale', [({'IPKernelApp': {}}, 'laptop'), ({}, 'smoke')])
def test_a_reader_sees_the_scale_of_the_page_and_a_test_a_small_one(config, scale, monkeypatch):
    assert core.page_scale() == 'smoke'
    shell = SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, 'IPython', SimpleNamespace(get_ipython=lambda: shell))
    assert core.page_scale() == scale
