"""Which search operator earns its time? Equal core-seconds, same ancestor, several seeds, values of fresh episodes.

    python benchmarks/search_operators.py --task walker2d --minutes 1.5 --seeds 3
    python benchmarks/search_operators.py --task walker2d --minutes 2 --seeds 2 --fine --mixes "iso+line,policy gradients .3,latent .5,adapted"

With --fine the search runs on the paper's grid and starts from the shipped elites. The ancestor and its snapshots are those of the shipped archive (data/ancestors), or any warm start of `nbs/17_search.ipynb`. Writes
figures/search_operators.csv after every run, and leaves out the runs that it already holds: kill it and start it again at will.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from policydiffusion.archive import Archive
from policydiffusion.core import DATA, FIGURES, atomic_path
from policydiffusion.rollout import evaluate
from policydiffusion.emitters import Arborescence
from policydiffusion.pool import cell_of, insert
from policydiffusion.ppo import load_ancestor, revision
from policydiffusion.search import Search, SearchSettings, run_search
from policydiffusion.tasks import get_task

MIXES = {
    'iso+line': dict(operators=(('iso_line', 1.),)),
    'policy gradient + iso+line': dict(operators=(('policy_gradient', .4), ('iso_line', .6))),
    'PPGA': dict(operators=(('ppga', 1.),)),
    'PPGA + iso+line': dict(operators=(('ppga', .4), ('iso_line', .6))),
    'random rows + iso+line': dict(operators=(('ppga', .4), ('iso_line', .6)), ppga=Arborescence(random_rows=True)),
    'policy gradients .3': dict(operators=(('policy_gradient', .3), ('iso_line', .7))),
    'latent': dict(operators=(('latent', 1.),)),
    'latent .5': dict(operators=(('latent', .5), ('iso_line', .5))),
    'adapted': dict(operators=(('policy_gradient', .2), ('iso_line', .4), ('latent', .4)), adapt=.1)}
USUAL = list(MIXES)[:5]


def corrected(search: Search, episodes: int) -> dict:
    "Coverage, living coverage, best and median objective, QD-score of the elites on fresh episodes."
    elite = search.pool.rank == 0
    a = search.ancestor
    e = evaluate(search.task, search.spec, search.pool.params[elite], a.obs_mean, a.obs_std, episodes, search.settings.horizon,
                 seed=777, envs=search.settings.envs, n_max=1024)
    cells, living = cell_of(e.measures, search.dims), e.length >= search.lasting
    n, value = len(search.visits), e.objective - get_task(search.task).reward_offset*e.length
    best, worth = (np.full(n, -np.inf) for _ in range(2))
    np.maximum.at(best, cells, e.objective)
    np.maximum.at(worth, cells, value)
    filled = np.isfinite(best)
    return {'coverage': filled.mean(), 'alive_coverage': len(set(cells[living]))/n, 'best': e.objective.max(), 'median': np.median(best[filled]),
            'qd_score': worth[filled].sum()}


def with_elites(search: Search, path: Path) -> Search:
    "A search that begins with the elites of an archive besides the ancestor."
    a = Archive.load(path, search.task)
    insert(search.pool, a.params, a.objective, a.measures, a.length)
    return search


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', default='walker2d', help='Brax task')
    parser.add_argument('--minutes', type=float, default=1.5, help='time of each run, compilation not counted')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each mix')
    parser.add_argument('--fine', action='store_true', help="the paper's grid, and the shipped elites to begin with")
    parser.add_argument('--episodes', type=int, default=4, help='fresh episodes of each elite at the end')
    parser.add_argument('--mixes', default=','.join(USUAL), help='names of MIXES')
    parser.add_argument('--ancestor', type=Path, default=None, help='warm-start checkpoint; by default that of the shipped archive')
    args = parser.parse_args()
    task, out = get_task(args.task), FIGURES/'search_operators.csv'
    path = args.ancestor or DATA/'ancestors'/f'{args.task}.safetensors'
    ancestor, dims = load_ancestor(path), task.paper_dims if args.fine else task.dims
    begin = lambda search: with_elites(search, DATA/'archives'/f'{args.task}.safetensors') if args.fine else search
    rows = pd.read_csv(out).to_dict('records') if out.exists() else []
    for seed in range(1, args.seeds + 1):
        for name in args.mixes.split(','):
            key = {'task': args.task, 'mix': name, 'seed': seed, 'minutes': args.minutes, 'cells': int(np.prod(dims))}
            if any(all(r.get(k) == v for k, v in key.items()) for r in rows): continue
            new = lambda s: begin(Search(args.task, task.spec(), ancestor, SearchSettings(**MIXES[name], depth=2), dims, s))
            warm_up = new(0)
            for operator in warm_up.names: getattr(warm_up, operator)()  # compiles; thrown away
            search = new(seed)
            search.known = set(search.names)
            for line in run_search(search, args.minutes): pass
            rows.append({**key, 'evaluated': line['evaluated'], 'raw_coverage': line['coverage'], 'raw_alive_coverage': line['alive_coverage'],
                         'core_seconds': line['seconds'], 'revision': revision(), **corrected(search, args.episodes)})
            with atomic_path(out) as tmp: pd.DataFrame(rows).to_csv(tmp, index=False, float_format='%.4g')
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    table = pd.DataFrame(rows).query('task == @args.task and minutes == @args.minutes')
    print(table.groupby(['cells', 'mix'])[['evaluated', 'coverage', 'alive_coverage', 'best']].agg(['mean', 'std']).round(3).to_string())


if __name__ == '__main__':
    main()
