"""Faults provoked on purpose: runs killed at random, a full disk, a folder that is read-only.

    python benchmarks/faults.py                                   everything, 100 kills: some hours
    python benchmarks/faults.py kills --kills 10 --jobs training  a minute
"""
import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOST = 120  # s of work that one kill may cost
HASTE = 60  # the clock of small jobs runs so much faster: they take seconds, and save each minute


# ---- jobs that go on where they were killed; each writes its result into a folder

def writing(folder):
    "Small files, written again and again."
    from policydiffusion import core
    rows = {task: core.pd.DataFrame({'task': task, 'x': core.np.arange(1000.)}) for task in ('ant', 'hopper')}
    for i in range(40):
        for task in rows: core.update_rows(folder/'table.csv', rows[task])
        core.save_tensors(folder/'result.safetensors', {'x': core.np.arange(1e5)}, {'kind': 'result'})


def training(folder):
    "An autoencoder of toy policies, as chapter 22 trains it."
    from policydiffusion import autoencoder as ae, training
    from policydiffusion.core import save_tensors
    from policydiffusion.policy import PolicySpec
    spec, checkpoint = PolicySpec(5, 2, (8, 8)), folder/'checkpoint.safetensors'
    settings = ae.AutoencoderSettings(channels=(8, 8, 16), vector_width=8, hidden=8, lr=3e-3,
                                      cosine=True, batch_size=8, epochs=100)
    seed_torch(0)
    params = ae.toy_archive(spec, n=25, rank=3)
    mean_and_sd = ae.standardisation(params, settings.centring)
    model = ae.build_autoencoder(spec, settings, *mean_and_sd, False)
    state = training.start_training(model, {'params': params}, settings, 1)
    if checkpoint.exists(): state = training.load_checkpoint(checkpoint, state)
    saved = time.time()
    for _ in training.train_autoencoder(state):
        if time.time() - saved > 20:
            training.save_checkpoint(checkpoint, state)
            saved = time.time()
    weights = {k: v.numpy() for k, v in state.model.state_dict().items()}
    save_tensors(folder/'result.safetensors', weights, {'kind': 'result'})
    checkpoint.unlink(missing_ok=True)


def seed_torch(seed):
    "Seed torch, and let it use one thread."
    import torch
    torch.manual_seed(seed); torch.set_num_threads(1)


def warm_start(folder):
    "A common ancestor of a few updates."
    from policydiffusion import policy, ppo, search
    from policydiffusion.core import save_tensors
    from policydiffusion.tasks import get_task
    stages = ppo.Stage(512, .99, 1e-3, 1e-3), ppo.Stage(512, .997, 5e-4, 5e-5, 1.)
    settings, spec = ppo.WarmStart(stages, 64, snapshots=2), get_task('walker2d').spec()
    updates = ppo.warm_start('walker2d', spec, settings, search.SMOKE.ppo, 1, folder/'warm.safetensors')
    for _, _, ancestor in updates: pass
    save_tensors(folder/'result.safetensors', ancestor._asdict(), {'kind': 'result'})


def walkers(spec):
    "An ancestor and snapshots made of four shipped policies, in place of a warm start."
    import numpy as np
    from policydiffusion import policy, ppo, search
    from policydiffusion.core import DATA, load_tensors
    rows = load_tensors(DATA/'archives'/'walker2d.safetensors')[0]['params'][:4].astype(np.float32)
    critic = np.asarray(policy.init_params(search.jax.random.key(9), ppo.critic_spec(spec), 1.))
    log_std, mean = np.full(6, -1., np.float32), np.zeros(spec.obs_size, np.float32)
    return ppo.Ancestor(rows[0], critic, log_std, mean, mean + 1, rows[1:])


def batches(folder):
    "A search of one operator: several would share the time, so the result would depend on it."
    from policydiffusion import policy, ppo, search
    from policydiffusion.core import save_tensors
    from policydiffusion.tasks import get_task
    task, path = get_task('walker2d'), folder/'search.safetensors'
    settings = search.SMOKE.search._replace(operators=(('iso_line', 1.),))
    now = search.Search('walker2d', task.spec(), walkers(task.spec()), settings, task.dims, seed=3)
    if path.exists(): now.load(path)
    for _ in search.run_search(now, float('inf'), path, iterations=20): pass
    path.unlink()  # it holds times
    found = {**now.pool._asdict(), 'visits': now.visits}
    save_tensors(folder/'result.safetensors', found, {'kind': 'result'})


JOBS = {'writing': writing, 'training': training, 'warm_start': warm_start, 'search': batches,
        'pipeline': None}


# ---- killing them

def command(job, folder):
    "What is started, and started again after every kill."
    if job != 'pipeline': return [sys.executable, __file__, '--job', job, '--folder', str(folder)]
    return [sys.executable, '-m', 'snakemake', '--cores', '2', '--config', 'scale=smoke']


def prepare(job, folder):
    "An empty folder; for the pipeline a copy of the project without results."
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if job != 'pipeline': return
    for name in ('nbs', 'policydiffusion', 'profiles', 'figures'):
        shutil.copytree(ROOT/name, folder/name)
    for name in ('Snakefile', 'settings.ini', 'README.md'): shutil.copy(ROOT/name, folder)
    (folder/'data').symlink_to(ROOT/'data')


def start(job, folder):
    "Start the job in a process group of its own."
    where = folder if job == 'pipeline' else ROOT
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    env = {**os.environ, 'PYTHONPATH': str(where), 'PATH': path,
           'JAX_COMPILATION_CACHE_DIR': str(folder.parent/'jax_cache')}
    return subprocess.Popen(command(job, folder), cwd=where, env=env, start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process):
    "Wait for the end of a job; what it said goes into the error if it failed."
    said = process.communicate()[1]
    if process.returncode: raise RuntimeError(said.decode()[-2000:])


def meaning(path):
    "What a file says, without the date and the speed of the computer."
    if path.suffix == '.csv':
        return [line for line in path.read_text().split('\n') if 'policies_per_second' not in line]
    if path.suffix != '.safetensors': return hashlib.sha256(path.read_bytes()).hexdigest()
    from policydiffusion.core import load_tensors
    tensors, meta = load_tensors(path)
    meta.get('provenance', meta).pop('date', None)
    hashes = {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in tensors.items()}
    return json.dumps(meta, sort_keys=True), hashes


def results(folder):
    "Everything that a job leaves behind, but for logs and times: file to meaning."
    skip = {'.snakemake', 'runs', 'times', 'nbs', 'data', '__pycache__', 'policydiffusion'}
    files = [p for p in sorted(folder.rglob('*'))
             if p.is_file() and not skip & set(p.relative_to(folder).parts)]
    return {str(p.relative_to(folder)): meaning(p) for p in files}


def kill_at_random(process, most, rng):
    "Kill a job, alone or with all that it started, within `most` s; True if it was still at work."
    try: process.wait(rng.uniform(0, most))
    except subprocess.TimeoutExpired: pass
    alive = process.poll() is None
    if alive: (os.killpg if rng.random() < .5 else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def chain(job, folder, straight, seconds, n, rng):
    "Kill a run up to n times, then let it end: kills, files that differ, seconds lost to a kill."
    prepare(job, folder)
    begin, killed = time.monotonic(), 0
    for _ in range(n):
        killed += kill_at_random(start(job, folder), 1.1*seconds, rng)
    finish(start(job, folder))
    now = results(folder)
    different = [name for name in sorted(straight | now) if straight.get(name) != now.get(name)]
    return killed, different, (time.monotonic() - begin - seconds)/max(1, killed)


def undisturbed(job, folder):
    "Results and seconds of a run that nobody kills; an earlier one fills the cache of programs."
    for _ in range(2):
        prepare(job, folder)
        begin = time.monotonic()
        finish(start(job, folder))
    return results(folder), time.monotonic() - begin


def kills(args) -> int:
    "Kill every job at random times; returns the number of findings."
    rng, findings = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        for job in args.jobs:
            folder, killed, worst, wrong = Path(scratch)/job, 0, 0., []
            straight, seconds = undisturbed(job, folder)
            while killed < args.kills/len(args.jobs):
                n, different, lost = chain(job, folder, straight, seconds, rng.randint(1, 4), rng)
                killed, worst, wrong = killed + n, max(worst, lost), wrong + different
            findings += len(wrong) + (worst > LOST)
            print(f'{job}: {len(straight)} files in {seconds:.0f} s undisturbed; {killed} kills, '
                  f'{len(wrong)} files that differ or are left behind {sorted(set(wrong))}, '
                  f'at most {worst:.0f} s lost to one kill', flush=True)
    return findings


# ---- disks

def writers(folder):
    "The project's ways of writing a file: path to what writes it."
    import matplotlib
    import numpy as np
    from policydiffusion import core
    matplotlib.use('agg')
    from matplotlib import pyplot
    core.FIGURES, tensors, table = folder, folder/'tensors.safetensors', folder/'table.csv'
    rows = core.pd.DataFrame({'task': 'ant', 'x': np.arange(200_000.)})
    fig, ax = pyplot.subplots()
    ax.imshow(np.random.default_rng(0).random((200, 200)))
    return {tensors: lambda: core.save_tensors(tensors, {'x': np.zeros(10**6)}, {'kind': 'demo'}),
            table: lambda: core.update_rows(table, rows),
            folder/'figure.pdf': lambda: core.save_fig(fig, 'figure', 'laptop')}


def try_all(what, folder) -> int:
    "Every writer must name its file in one sentence and leave nothing behind."
    findings = 0
    for path, write in writers(folder).items():
        before = sorted(folder.rglob('*'))
        try: write(); said = 'no error'
        except Exception as e: said = f'{type(e).__name__}: {e}'
        fine = str(path) in said and '\n' not in said and sorted(folder.rglob('*')) == before
        findings += not fine
        print(f"{what}: {'ok' if fine else 'FINDING'}: {said}", flush=True)
    return findings


def disk(args) -> int:
    "A full disk and one that is read-only; needs root, for a small disk in memory."
    if os.geteuid(): return print('disk: left out, needs root') or 0
    findings = 0
    for what, options in (('full disk', 'size=16k'), ('read-only', 'ro')):
        folder = Path(tempfile.mkdtemp())
        subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], check=True)
        try: findings += try_all(what, folder)
        finally:
            subprocess.run(['umount', folder], check=True)
            folder.rmdir()
    return findings


# name to what tries it and returns the number of findings; property tests belong here, too
SECTIONS = {'kills': kills, 'disk': disk}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sections', nargs='*', help=f"any of {', '.join(SECTIONS)}; all if none")
    parser.add_argument('--kills', type=int, default=100, help='kills in all')
    parser.add_argument('--jobs', type=lambda s: s.split(','), default=list(JOBS),
                        help=f"what is killed, of {', '.join(JOBS)}")
    parser.add_argument('--seed', type=int, default=0, help='of the times at which jobs are killed')
    parser.add_argument('--job', choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for kind, given, known in (('section', args.sections, SECTIONS), ('job', args.jobs, JOBS)):
        for name in set(given) - set(known):
            parser.error(f"{kind} {name!r} is unknown: expected one of {', '.join(known)}")
    if args.job:
        clock = time.time
        time.time = lambda: HASTE*clock()
        return JOBS[args.job](args.folder)
    findings = sum(SECTIONS[name](args) for name in args.sections or SECTIONS)
    print(f'{findings} findings')
    return int(findings > 0)


if __name__ == '__main__': sys.exit(main())
