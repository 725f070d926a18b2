"The figure and metrics notebooks as steps of the pipeline: they repeat to the byte, and they read what a run left on the disk."
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from policydiffusion import core, metrics, results
from policydiffusion.core import save_tensors
from policydiffusion.metrics import compare, describe, synthetic_run

matplotlib.use('agg')
NBS = Path(__file__).parents[1]/'nbs'


@pytest.fixture
def disk(tmp_path, monkeypatch):
    "A project folder of its own for everything that a notebook reads and writes."
    for module in (core, metrics):
        for name in ('ARTIFACTS', 'DATA', 'FIGURES'):
            if hasattr(module, name): monkeypatch.setattr(module, name, tmp_path/name.lower())
    return tmp_path


def run_notebook(name, **parameters) -> dict:
    "Run a notebook's code cells here and now, as papermill would; returns its variables."
    import matplotlib.pyplot as plt
    scope = {}
    for cell in json.loads((NBS/f'{name}.ipynb').read_text())['cells']:
        if cell['cell_type'] != 'code': continue
        exec(compile(''.join(cell['source']), name, 'exec'), scope)
        if 'parameters' in cell['metadata'].get('tags', []): scope.update(parameters)
    plt.close('all')
    return scope


def written(folder) -> dict: return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('name', ['50_fig1_architecture', '55_fig8_tsne', '56_fig6_cdf', '57_fig7_heatmaps'])
def test_second_run_is_byte_identical(name, disk):
    run_notebook(name)
    first = written(disk)
    run_notebook(name)
    assert {p.suffix for p in first} >= {'.pdf', '.png'} and all('smoke' in p.parts for p in first)
    assert written(disk) == first


@pytest.fixture
def laptop_run(disk):
    "What two methods with two seeds leave behind, all invented but not marked so."
    runs = {}
    for method in ('compact', 'paper'):
        for seed in (111, 222):
            original, reference, generated = (replace(a, meta={}) for a in synthetic_run('walker2d', method, seed))
            folder = disk/'artifacts'/'laptop'/'walker2d'
            original.save(disk/'data'/'archives'/'walker2d.safetensors')
            reference.save(folder/'reference.safetensors')
            generated.save(folder/f'{method}-{seed}'/'generated.safetensors')
            save_tensors(folder/f'{method}-{seed}'/'latents.safetensors', {'z': original.params[:, :6], 'measures': original.measures}, {'kind': 'latents'})
            runs[method, seed] = original, reference, generated
    return disk, runs


def test_figure_6_draws_the_runs_on_the_disk(laptop_run):
    disk, runs = laptop_run
    run_notebook('56_fig6_cdf', scale='laptop', tasks='walker2d', methods='compact,paper', seeds='111,222')
    table = pd.read_csv(disk/'figures'/'fig6_cdf.csv')
    for (method, seed), (_, _, generated) in runs.items():
        curve = table[(table.method == method) & (table.seed == seed)]
        best = generated.elites().objective
        assert curve.share.to_numpy() == pytest.approx([(best >= t).sum()/256 for t in curve.threshold], abs=1/256)
    assert (disk/'figures'/'fig6_cdf.png').is_file()


def test_one_seed_may_come_as_a_number(laptop_run):
    disk, _ = laptop_run
    scope = run_notebook('56_fig6_cdf', scale='laptop', tasks='walker2d', methods='compact', seeds=111)
    assert scope['seed_numbers'] == [111]


@pytest.mark.parametrize('name', ['55_fig8_tsne', '57_fig7_heatmaps'])
def test_figures_7_and_8_draw_the_runs_on_the_disk(laptop_run, name):
    disk, _ = laptop_run
    scope = run_notebook(name, scale='laptop', tasks='walker2d')
    assert not scope['fake'] and (disk/'figures'/f'{name[3:]}.pdf').is_file()
    assert not (disk/'artifacts'/'smoke').exists()


@pytest.mark.parametrize('name', ['40_metrics', '55_fig8_tsne', '56_fig6_cdf', '57_fig7_heatmaps'])
def test_a_missing_run_is_named_and_nothing_is_invented(disk, name):
    with pytest.raises(FileNotFoundError, match='safetensors does not exist: expected a'): run_notebook(name, scale='laptop')
    assert not written(disk)


def test_metrics_are_recorded(laptop_run):
    disk, runs = laptop_run
    original, reference, generated = runs['compact', 111]
    run_notebook('40_metrics', scale='laptop')
    rows = results.collect_results().set_index(['method', 'metric']).value
    # the archives went through half precision, but synthetic weights are already rounded
    assert rows['compact'].to_dict() == pytest.approx(compare(original, reference, generated), rel=1e-5)
    assert rows['original'].to_dict() == pytest.approx(describe(original, reference), rel=1e-5)


def test_invented_metrics_are_not_recorded(disk):
    run_notebook('40_metrics')
    assert not written(disk)


# ---- a run of one task, beside what others have drawn

def test_figure_6_keeps_the_panels_of_other_tasks_and_a_second_run_changes_nothing(laptop_run):
    disk, _ = laptop_run
    kept = ('ant,ours,111,0,0.5\nant,ours,111,10,0.25\n'
            'ant,original,0,0,0.75\nant,original,0,10,0.5\n')
    (disk/'figures').mkdir()
    (disk/'figures'/'fig6_cdf.csv').write_text('task,method,seed,threshold,share\n' + kept)
    scope = run_notebook('56_fig6_cdf', scale='laptop', tasks='walker2d')
    first = written(disk/'figures')
    assert first[Path('fig6_cdf.csv')].decode().split('\n', 1)[1].startswith(kept)
    ant, walker = scope['axes'][0]
    assert ant.get_title() == 'ant' and walker.get_title() == 'walker2d'
    assert [line.get_ydata().tolist() for line in ant.lines] == [[75, 50], [50, 25]]
    run_notebook('56_fig6_cdf', scale='laptop', tasks='walker2d')
    assert written(disk/'figures') == first


@pytest.mark.parametrize('name', ['50_fig1_architecture', '55_fig8_tsne', '57_fig7_heatmaps'])
def test_every_task_has_a_picture_of_its_own(disk, name):
    run_notebook(name, **{'task': 'ant'} if name.startswith('50') else {'tasks': 'ant'})
    assert {p.stem for p in written(disk)} == {f'{name[3:]}_ant'}


def test_tables_change_minutes_and_speeds_only_on_request(disk, monkeypatch):
    monkeypatch.setattr(core, 'ROOT', disk)
    monkeypatch.setattr('builtins.display', print, raising=False)
    made = 'abc1234,cpu,2026-11-30\n'
    row = lambda task, metric, value: f'laptop,{task},compact,111,{metric},{value},{made}'
    head = ','.join(results.RESULT_COLUMNS + results.ORIGIN_COLUMNS) + '\n'
    times = disk/'artifacts'/'laptop'/'walker2d'/'times'
    (disk/'figures').mkdir(); times.mkdir(parents=True)
    rows = (('ant', 'mem', .5), ('walker2d', 'mem', .04), ('walker2d', 'policies_per_second', 900))
    (disk/'figures'/'results.csv').write_text(head + ''.join(row(*r) for r in rows))
    (disk/'figures'/'minutes.csv').write_text('notebook,minutes\n40_metrics,0.50\n')
    (disk/'docs').mkdir()
    for page in (disk/'README.md', disk/'docs'/'results.md'):
        page.write_text('a\n<!-- results:begin -->\n<!-- results:end -->\nb\n')
    monkeypatch.setattr(results, 'origin', lambda: ('abc1234', 'cpu', '2026-11-30'))
    busy = {'mem': .04, 'policies_per_second': 3}
    results.record('laptop', 'walker2d', 'compact', 111, busy)
    results.record('laptop', 'ant', 'compact', 111, {'mem': 9})  # of another run
    (times/'40_metrics.tsv').write_text('s\th:m:s\n600\t0:10:00\n')
    (times/'19_dataset.tsv').write_text('')  # of a killed step
    given = dict(scale='laptop', tasks='walker2d', methods='compact')
    run = lambda **more: run_notebook('58_tables', **given, **more)
    before = written(disk/'figures')
    run()
    first = written(disk)
    assert all(first[Path('figures')/name] == text for name, text in before.items())
    all_tables, front = first[Path('docs/results.md')], first[Path('README.md')]
    assert all(text in all_tables for text in (b'| compact', b'| 900 ', b'| 0.5 '))
    assert b'| walker2d ' in front and b'| 900 ' not in front
    run()
    assert written(disk) == first
    run(times=True)
    assert (disk/'figures'/'minutes.csv').read_text() == 'notebook,minutes\n40_metrics,10.00\n'
    assert 'policies_per_second,3,abc1234,' in (disk/'figures'/'results.csv').read_text()
