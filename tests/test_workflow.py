"What a run leaves alone: half-written files, other tasks' results, steps whose code did not change."
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from policydiffusion.core import atomic_path, project_root
from policydiffusion.results import (ORIGIN_COLUMNS, RESULT_COLUMNS, collect_results,
                                     read_results, update_rows)

ROOT = Path(__file__).parents[1]
HEAD = ','.join(RESULT_COLUMNS + ORIGIN_COLUMNS) + '\n'
FROM = ',abc1234,cpu,2026-11-30'


def python(*words, cwd=ROOT, path=ROOT) -> subprocess.CompletedProcess:
    "Run Python with the library that lies in `path`."
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, text=True, capture_output=True,
                          env={**os.environ, 'PYTHONPATH': str(path)})


# ---- files

WRITER = '''
import sys, time
from policydiffusion.core import atomic_path
with atomic_path(sys.argv[1]) as tmp:
    tmp.write_text('half')
    print(tmp.name, flush=True)
    time.sleep(60)
'''


@pytest.fixture
def writer(tmp_path):
    "Another process that has begun to write a file, and the name of its temporary."
    path = tmp_path/'compact-111-metrics.csv'
    process = subprocess.Popen([sys.executable, '-c', WRITER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield process, tmp_path/process.stdout.readline().strip()
    process.kill(); process.wait()


def test_a_temporary_is_found_by_no_search_and_goes_when_its_process_is_gone(tmp_path, writer):
    process, temporary = writer
    assert temporary.is_file() and temporary.name.startswith('.')
    for ending in ('csv', 'safetensors', 'png', 'pdf', 'md', 'tsv'):
        assert not list(tmp_path.rglob(f'*.{ending}'))
    with atomic_path(tmp_path/'other.csv') as tmp: tmp.write_text('x')
    assert temporary.is_file()  # its process is alive
    process.send_signal(signal.SIGKILL); process.wait()
    assert temporary.is_file()  # a killed process cannot tidy up
    with atomic_path(tmp_path/'other.csv') as tmp: tmp.write_text('x')
    assert [p.name for p in tmp_path.iterdir()] == ['other.csv']


def test_data_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done, path = [], tmp_path/'new.txt'
    fsync, replace = os.fsync, os.replace

    def flushed(handle):
        done.append('folder' if os.path.samestat(os.fstat(handle), tmp_path.stat()) else os.read(handle, 99))
        fsync(handle)
    monkeypatch.setattr(os, 'fsync', flushed)
    monkeypatch.setattr(os, 'replace', lambda a, b: (done.append('renamed'), replace(a, b)))
    with atomic_path(path) as tmp: tmp.write_text('all of it')
    assert done == [b'all of it', 'renamed', 'folder']


FULL = '''
import resource, sys
from policydiffusion.core import atomic_path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with atomic_path(sys.argv[1]) as tmp: tmp.write_bytes(bytes(2000))
'''


def test_a_file_that_does_not_fit_is_named(tmp_path):
    path = tmp_path/'big.bin'
    said = python('-c', FULL, path).stderr.strip().split('\n')[-1]
    assert said == (f'OSError: [Errno 27] {path} cannot be written (File too large): '
                    'expected free space and a folder that may be written to')
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none_is_named_and_errors_of_other_files_are_left_alone(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match=r'file/x.csv cannot be written \(.*\): expected free space'):
        with atomic_path(tmp_path/'file'/'x.csv'): pass
    with pytest.raises(FileNotFoundError, match="No such file or directory: '.*missing'"):
        with atomic_path(tmp_path/'x.csv'): (tmp_path/'missing').read_text()
    assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('path', ['', '.', '/', 'folder'])
def test_what_names_no_file_is_refused_before_anything_is_written(tmp_path, monkeypatch, path):
    (tmp_path/'folder').mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='^path is .*, a folder: expected the name of a file$'):
        with atomic_path(path): raise AssertionError('reached')
    assert [p.name for p in tmp_path.rglob('*')] == ['folder']


# ---- results

@pytest.fixture
def part(tmp_path):
    path = tmp_path/'laptop'/'walker2d'/'results'/'compact-111-metrics.csv'
    path.parent.mkdir(parents=True)
    path.write_text(HEAD + f'laptop,walker2d,ours,111,mem,0.0412{FROM}\n')
    return path


def test_files_of_a_killed_run_are_not_read(tmp_path, part):
    part.with_name('.compact-111-metrics-ab12cd.csv').write_text('')  # as temporaries were once called
    part.with_name('.compact-222-metrics-ab12ce.csv').write_text(part.read_text()[:-4])
    assert collect_results(tmp_path/'results.csv', tmp_path).value.tolist() == [.0412]


@pytest.mark.parametrize('text', [
    '', 'scale,task', 'x,y\n1,2\n', HEAD + f'laptop,walker2d,ours,111,mem,0.04{FROM}',
    HEAD + f'laptop,walker2d,ours,111,mem,O.04{FROM}\n', HEAD + '<<<<<<< HEAD\n'])
def test_a_broken_table_is_named(tmp_path, part, text):
    part.write_text(text)
    with pytest.raises(ValueError, match=r'compact-111-metrics\.csv is empty, cut short or no table of this kind'):
        collect_results(tmp_path/'results.csv', tmp_path)
    with pytest.raises(ValueError, match='is empty, cut short'): read_results(part)
    assert not (tmp_path/'results.csv').exists()


def test_a_second_time_changes_nothing_and_other_tasks_stay(tmp_path, part):
    table = tmp_path/'results.csv'
    ant = f'laptop,ant,ours,111,mem,0.333333{FROM}\n'
    walker = f'laptop,walker2d,ours,111,mem,0.0412{FROM}\n'
    table.write_text(HEAD + ant + walker.replace('0.0412', '9'))
    old = part.parents[2]/'ant'/'results'/part.name
    old.parent.mkdir(parents=True)
    old.write_text(part.read_text().replace('walker2d', 'ant'))
    collect_results(table, tmp_path, tasks=['walker2d'])
    first = table.read_bytes()
    assert first.decode() == HEAD + ant + walker
    collect_results(table, tmp_path, tasks=['walker2d'])
    assert table.read_bytes() == first


def test_rows_of_other_tasks_stay_to_the_byte(tmp_path):
    path, rows = tmp_path/'t.csv', lambda task, *xs: pd.DataFrame({'task': task, 'x': xs})
    for new in (rows('hopper', 1/3, 2e6/3), rows('ant', 1/7)): update_rows(path, new)
    assert path.read_text() == 'task,x\nhopper,0.333333\nhopper,666667\nant,0.142857\n'
    shown = update_rows(path, rows('ant', 5.))
    assert path.read_text() == 'task,x\nhopper,0.333333\nhopper,666667\nant,5\n'
    assert shown.x.tolist() == [.333333, 666667, 5]
    update_rows(path, rows('hopper', 1.))
    assert path.read_text() == 'task,x\nhopper,1\nant,5\n'


# ---- where the project is

def test_settings_of_another_project_are_not_ours(tmp_path):
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nlib_name = policydiffusion_too\n')
    assert project_root(tmp_path) == ROOT  # the checkout in which the library lies
    (tmp_path/'settings.ini').write_bytes(b'no settings \xff')
    assert project_root(tmp_path) == ROOT
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nlib_name = policydiffusion\n')
    inner = tmp_path/'a'/'b'; inner.mkdir(parents=True)
    assert project_root(inner) == tmp_path.resolve()


def test_installed_without_a_checkout_nothing_is_invented(tmp_path):
    shutil.copytree(ROOT/'policydiffusion', tmp_path/'site'/'policydiffusion')
    (tmp_path/'work').mkdir()
    (tmp_path/'work'/'settings.ini').write_text('[DEFAULT]\nlib_name = another\n')
    code = "from policydiffusion.dataset import load_archive; load_archive('walker2d', 'smoke')"
    said = python('-c', code, cwd=tmp_path/'work', path=tmp_path/'site').stderr.strip().split('\n')[-1]
    assert said.endswith('work/data/archives does not exist: expected the archives of a checkout '
                         'of the project, in or above the working folder')
    assert [p.name for p in (tmp_path/'work').iterdir()] == ['settings.ini']


# ---- settings

GUARD = 'from policydiffusion.core import check_parameters\ncheck_parameters(globals())'


def test_every_notebook_with_parameters_refuses_others():
    for path in sorted((ROOT/'nbs').glob('*.ipynb')):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        tagged = [i for i, c in enumerate(cells) if 'parameters' in c['metadata'].get('tags', [])]
        assert all(''.join(cells[i + 1]['source']) == GUARD for i in tagged), path


@pytest.mark.parametrize('given, sentence', [
    ('-p tsak ant', "ValueError: parameter 'tsak' is unknown: expected one of task, seed"),
    ('-p task ant -p seed 1.5', 'ValueError: seed is 1.5: expected a whole number'),
    ('-p task ant -p seed 3', '')])
def test_papermill_refuses_what_a_notebook_does_not_know(tmp_path, given, sentence):
    sources = "task: str = 'walker2d'  # Brax task\nseed: int = 1  # seed", GUARD
    cells = [dict(cell_type='code', id=f'c{i}', metadata=dict(tags=['parameters']*(i == 0)),
                  source=source, outputs=[], execution_count=None) for i, source in enumerate(sources)]
    kernel = dict(name='python3', display_name='python3', language='python')
    notebook = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (tmp_path/'n.ipynb').write_text(json.dumps(notebook))
    run = python('-m', 'papermill', 'n.ipynb', 'out.ipynb', '--no-progress-bar', *given.split(), cwd=tmp_path)
    assert bool(run.returncode) == bool(sentence) and run.stderr.strip().endswith(sentence)


@pytest.mark.parametrize('words, sentence', [
    ('figures TASK=ant', 'setting TASK is unknown: expected one of TASKS SCALE CORES PYTHON'),
    ('figures tasks=ant', 'setting tasks is unknown: expected one of TASKS SCALE CORES PYTHON'),
    ('figures ant', 'goal ant is unknown: expected one of help install demo explorer site slides'),
    ('figures CORES=0', 'CORES is 0: expected a whole number from 1'),
    ('figures CORES=two', 'CORES is two: expected a whole number from 1')])
@pytest.mark.skipif(not shutil.which('make'), reason='no make')
def test_make_refuses_what_it_does_not_know(words, sentence):
    command = ['make', '-o', '.venv/.installed', *words.split()]
    run = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert run.returncode and sentence in run.stderr


def test_variables_for_jax_are_options_that_jax_has():
    import jax
    text = (ROOT/'Makefile').read_text() + (ROOT/'Snakefile').read_text()
    named = set(re.findall(r'JAX_[A-Z_]+', text))
    assert named and all(name.lower() in jax.config.values for name in named)


# ---- what is run again

METRICS = 'artifacts/laptop/walker2d/results/paper-111-metrics.csv'
MADE = [f'{name}.safetensors' for name in ('dataset', 'reference', 'paper-111/autoencoder', 'paper-111/generator',
                                           'paper-111/latents', 'paper-111/generated')]


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A copy of the project in which one run is made, by the code as it is."
    root = tmp_path_factory.mktemp('project')
    for name in ('nbs', 'policydiffusion', 'profiles'): shutil.copytree(ROOT/name, root/name)
    for name in ('Snakefile', 'settings.ini'): shutil.copy(ROOT/name, root)
    (root/'data').symlink_to(ROOT/'data')
    assert snakemake(root, '-n').wait() == 0
    for name in (*MADE, 'results/paper-111-metrics.csv'):
        path = root/'artifacts/laptop/walker2d'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('made')
    return root


def snakemake(root, *words) -> subprocess.Popen:
    "Ask Snakemake for that run."
    command = [sys.executable, '-m', 'snakemake', METRICS, '--cores', '1', *words]
    env = {**os.environ, 'PYTHONPATH': str(root), 'PATH': '/usr/bin:/bin'}  # no papermill: nothing trains
    return subprocess.Popen(command, cwd=root, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def edit(path, old, new):
    text = path.read_text(encoding='utf-8')
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding='utf-8')


def test_a_run_waits_for_another_but_not_for_a_dead_one_and_remarks_are_not_code(project):
    metrics, core = (project/'policydiffusion'/f'{name}.py' for name in ('metrics', 'core'))
    edit(metrics, '"MEM: mean Euclidean', '"Another docstring. MEM: mean Euclidean')
    edit(metrics, 'original: Archive,  # its measures are the targets\n', 'original: Archive,  # a remark\n')
    edit(core, "('png', {'Software': None})", "('png', {})")  # saving figures is no part of this run
    edit(project/'nbs'/'22_train_autoencoder.ipynb', '# which autoencoder to train', '# a remark')
    locks = project/'.snakemake'/'locks'
    locks.mkdir(parents=True, exist_ok=True)
    for name in ('0.input.lock', '0.output.lock'): (locks/name).write_text(METRICS)  # of a dead run
    with open(project/'.snakemake'/'run.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = snakemake(project)
        assert 'another run is at work in this folder: waiting for it to end\n' in run.stdout
        assert run.poll() is None
    assert 'Nothing to be done' in run.stdout.read() and run.wait() == 0


def test_a_changed_notebook_and_a_changed_module_are_run_again(project):
    apart = 'float((kl_from_mixture(p, q)'  # of a function that no earlier step uses
    edit(project/'policydiffusion'/'metrics.py', f'return {apart}', f'return 2*{apart}')
    edit(project/'nbs'/'35_latent_diffusion.ipynb', 'seconds = time.time() - started', 'seconds = 0')
    plan = snakemake(project, '-n').communicate()[0]
    assert set(re.findall(r'==> (\w+)', plan)) == {'diffusion', 'metrics'}, plan
    newer = {p.stem for p in (project/'artifacts'/'code').iterdir() if p.stat().st_mtime > 1}
    assert {'35_latent_diffusion', '40_metrics'} <= newer and '22_train_autoencoder' not in newer
