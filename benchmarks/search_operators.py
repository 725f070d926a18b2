"""Which search operator earns its time? Equal wall-clock, same ancestor, several seeds, values corrected with fresh episodes.

    python benchmarks/search_operators.py --task walker2d --minutes 1.5 --seeds 3

The ancestor and its snapshots are those of the shipped archive (data/ancestors), or any warm start of `nbs/14_search.ipynb`. Writes
figures/search_operators.csv after every run, and leaves out the runs that it already holds: kill it and start it again at will.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from policydiffusion.core import DATA, FIGURES, atomic_path, load_tensors
from policydiffusion.rollout import evaluate
from policydiffusion.search import Ancestor, Arborescence, Search, SearchSettings, cell_of, run_search
from policydiffusion.tasks import get_task

MIXES = {
    'iso+line': dict(operators=(('iso_line', 1.),)),
    'fans + iso+line': dict(operators=(('fan', .4), ('iso_line', .6))),
    'PPGA': dict(operators=(('ppga', 1.),)),
    'PPGA + iso+line': dict(operators=(('ppga', .4), ('iso_line', .6))),
    'random rows + iso+line': dict(operators=(('ppga', .4), ('iso_line', .6)), ppga=Arborescence(random_rows=True))}


def corrected(search: Search, episodes: int) -> dict:
    "Coverage, living coverage and best objective of the elites on fresh episodes."
    elite = search.pool.rank == 0
    a = search.ancestor
    e = evaluate(search.task, search.spec, search.pool.params[elite], a.obs_mean, a.obs_std, episodes, search.settings.horizon,
                 seed=777, lanes=search.settings.lanes, n_max=1024)
    cells, living = cell_of(e.measures, search.dims), e.length >= search.lasting
    n = len(search.visits)
    return {'coverage': len(set(cells))/n, 'alive_coverage': len(set(cells[living]))/n, 'best': e.objective.max()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', default='walker2d', help='Brax task')
    parser.add_argument('--minutes', type=float, default=1.5, help='time of each run, compilation not counted')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each mix')
    parser.add_argument('--ancestor', type=Path, default=None, help='warm-start checkpoint; by default that of the shipped archive')
    args = parser.parse_args()
    task, out = get_task(args.task), FIGURES/'search_operators.csv'
    path = args.ancestor or DATA/'ancestors'/f'{args.task}.safetensors'
    ancestor = Ancestor(**load_tensors(path, 'warm start')[0])
    rows = pd.read_csv(out).to_dict('records') if out.exists() else []
    for seed in range(1, args.seeds + 1):
        for name, mix in MIXES.items():
            if any((r['task'], r['mix'], r['seed'], r['minutes']) == (args.task, name, seed, args.minutes) for r in rows): continue
            new = lambda s: Search(args.task, task.spec(), ancestor, SearchSettings(**mix), task.dims, s)
            warm_up = new(0)
            for _ in range(1 + len(mix['operators'])): warm_up.step()  # compiles; thrown away
            search = new(seed)
            for line in run_search(search, args.minutes): pass
            rows.append({'task': args.task, 'mix': name, 'seed': seed, 'minutes': args.minutes, 'evaluated': line['evaluated'],
                         'raw_coverage': line['coverage'], 'raw_alive_coverage': line['alive_coverage'], **corrected(search, 4)})
            with atomic_path(out) as tmp: pd.DataFrame(rows).to_csv(tmp, index=False, float_format='%.4g')
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    table = pd.DataFrame(rows).query('task == @args.task')
    print(table.groupby('mix')[['evaluated', 'coverage', 'alive_coverage', 'best']].agg(['mean', 'std']).round(3).to_string())


if __name__ == '__main__':
    main()
