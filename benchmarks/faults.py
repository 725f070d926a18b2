"""Faults provoked on purpose: hostile input, kills at random, a full disk, a read-only folder.

    python benchmarks/faults.py                                   everything: some hours
    python benchmarks/faults.py kills --kills 10 --jobs training  a minute
    python benchmarks/faults.py kills --minutes 20                goes on with the 100 kills
    python benchmarks/faults.py fuzz --cases 2000                 the cases of `make test`

Kills are counted in artifacts/faults/JOB.json, as long as the code stays the same.
"""
import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOST = 120  # s of work that one kill may cost
HASTE = 60  # the clock of small jobs runs so much faster: they take seconds, and save each minute


# ---- jobs that go on where they were killed; each writes its result into a folder

def writing(folder):
    "Small files, written again and again."
    import pandas as pd
    from policydiffusion import core
    from policydiffusion.results import update_rows
    rows = {task: pd.DataFrame({'task': task, 'x': core.np.arange(1000.)}) for task in ('ant', 'hopper')}
    for i in range(40):
        for task in rows: update_rows(folder/'table.csv', rows[task])
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
    from policydiffusion import ppo, search
    from policydiffusion.core import save_tensors
    from policydiffusion.tasks import get_task
    stages = ppo.Stage(512, .99, 1e-3, 1e-3), ppo.Stage(512, .997, 5e-4, 5e-5, 1.)
    settings, spec = ppo.WarmStart(stages, 64, snapshots=2), get_task('walker2d').spec()
    path = folder/'warm.safetensors'
    for _ in ppo.warm_start('walker2d', spec, settings, search.SMOKE.ppo, 1, path): pass
    ancestor = ppo.load_ancestor(path)  # a run that was killed at its end has no update left
    path.unlink()  # it holds times
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
    "A search. It goes on from candidates in half precision, so only its length is compared."
    from policydiffusion import core, search
    from policydiffusion.tasks import get_task
    task, path = get_task('walker2d'), folder/'search.safetensors'
    settings = search.SMOKE.search._replace(operators=(('iso_line', 1.),))
    now = search.Search('walker2d', task.spec(), walkers(task.spec()), settings, task.dims, seed=3)
    if path.exists(): now.load(path)
    for _ in search.run_search(now, float('inf'), path, iterations=20): pass
    path.unlink()  # it holds times
    lasting = core.np.array([now.iteration, len(now.history)])
    core.save_tensors(folder/'result.safetensors', {'iterations': lasting}, {'kind': 'result'})


JOBS = {'writing': writing, 'training': training, 'warm_start': warm_start, 'search': batches,
        'pipeline': None}


# ---- killing them

class Forked(multiprocessing.get_context('fork').Process):
    "A job in a copy of this process, which has imported what is slow; used like a Popen."
    def __init__(self, job, folder):
        super().__init__(target=self.work, args=(job, folder))
        self.said = Path(tempfile.gettempdir())/f'faults-{os.getpid()}.err'

    def work(self, job, folder):
        "In a process group of its own, with a clock that counts work, which is done faster."
        os.setpgid(0, 0)
        os.dup2(os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        began = time.time()
        time.time = lambda: began + HASTE*time.process_time()
        JOBS[job](folder)

    def poll(self): return self.exitcode

    def wait(self, seconds):
        self.join(seconds)
        if self.exitcode is None: raise subprocess.TimeoutExpired('job', seconds)

    def communicate(self):
        self.join()
        return None, self.said.read_bytes()

    @property
    def returncode(self): return self.exitcode


def prepare(job, folder):
    "An empty folder; for the pipeline a copy of the project without results."
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if job != 'pipeline': return
    for name in ('nbs', 'policydiffusion', 'profiles', 'figures'):
        shutil.copytree(ROOT/name, folder/name)
    for name in ('Snakefile', 'settings.ini', 'README.md'): shutil.copy(ROOT/name, folder)
    (folder/'data').symlink_to(ROOT/'data')


def import_slow():
    "What the jobs import, before they are forked; nothing is computed yet."
    import policydiffusion.autoencoder, policydiffusion.search, policydiffusion.training


def start(job, folder):
    "Start the job in a process group of its own."
    if job != 'pipeline':
        forked = Forked(job, folder)
        forked.start()
        with suppress(OSError): os.setpgid(forked.pid, forked.pid)  # whoever is first
        return forked
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    env = {**os.environ, 'PYTHONPATH': str(folder), 'PATH': path}
    command = [sys.executable, '-m', 'snakemake', '--cores', '2', '--config', 'scale=smoke']
    return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True,
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
    hashes = {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in tensors.items()}
    return json.dumps(undated(meta), sort_keys=True), hashes


def undated(meta):
    "A header without dates: its own, and those of what it was made from."
    if not isinstance(meta, dict): return meta
    return {k: undated(v) for k, v in meta.items() if k != 'date'}


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
    now = json.loads(json.dumps(results(folder)))
    different = [name for name in sorted({*straight, *now}) if straight.get(name) != now.get(name)]
    return killed, different, (time.monotonic() - begin - seconds)/max(1, killed)


def undisturbed(job, folder):
    "Results and seconds of a run that nobody kills; an earlier one fills the cache of programs."
    for _ in range(2):
        prepare(job, folder)
        begin = time.monotonic()
        finish(start(job, folder))
    return results(folder), time.monotonic() - begin


def code() -> str:
    "A sum over what the jobs run."
    files = [__file__, *sorted(ROOT.glob('policydiffusion/*.py')), *sorted(ROOT.glob('nbs/*.ipynb'))]
    return hashlib.sha256(b''.join(Path(f).read_bytes() for f in files)).hexdigest()


def begun(job, folder, path) -> dict:
    "What earlier calls have counted; an undisturbed run if there is none of this code."
    if path.exists() and (known := json.loads(path.read_text()))['code'] == code(): return known
    straight, seconds = undisturbed(job, folder)
    known = {'code': code(), 'straight': straight, 'seconds': seconds, 'chains': []}
    return json.loads(json.dumps(known))


def kills(args) -> int:
    "Kill every job at random times, on from where an earlier call stopped; the number of findings."
    findings, ends, home = 0, time.monotonic() + 60*args.minutes, ROOT/'artifacts'/'faults'
    home.mkdir(parents=True, exist_ok=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(home/'jax_cache')
    import_slow()
    for job in args.jobs:
        folder, path = home/job, home/f'{job}.json'
        known = begun(job, folder, path)
        while sum(n for n, _, _ in known['chains']) < args.kills/len(args.jobs):
            if time.monotonic() > ends: break
            rng = random.Random(f"{args.seed} {job} {len(known['chains'])}")
            known['chains'].append(
                chain(job, folder, known['straight'], known['seconds'], rng.randint(1, 4), rng))
            path.write_text(json.dumps(known))
        path.write_text(json.dumps(known))
        findings += tell(job, known)
    return findings


def tell(job, known) -> int:
    "A line on what was counted; the number of findings."
    killed = sum(n for n, _, _ in known['chains'])
    wrong = [name for _, names, _ in known['chains'] for name in names]
    worst = max((lost for _, _, lost in known['chains']), default=0.)
    print(f"{job}: {len(known['straight'])} files in {known['seconds']:.0f} s undisturbed; "
          f"{len(known['chains'])} runs, {killed} kills, "
          f"{len(wrong)} files that differ or are left behind {sorted(set(wrong))}, "
          f"at most {worst:.0f} s lost to one kill", flush=True)
    return len(wrong) + (worst > LOST)


# ---- disks

def writers(folder):
    "The project's ways of writing a file: path to what writes it."
    import matplotlib
    import numpy as np
    import pandas as pd
    from policydiffusion import core
    from policydiffusion.results import update_rows
    matplotlib.use('agg')
    from matplotlib import pyplot
    core.FIGURES, tensors, table = folder, folder/'tensors.safetensors', folder/'table.csv'
    rows = pd.DataFrame({'task': 'ant', 'x': np.arange(200_000.)})
    fig, ax = pyplot.subplots()
    ax.imshow(np.random.default_rng(0).random((200, 200)))
    return {tensors: lambda: core.save_tensors(tensors, {'x': np.zeros(10**6)}, {'kind': 'demo'}),
            table: lambda: update_rows(table, rows),
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


def try_jobs(what, folder) -> int:
    "Jobs that save while they run must end in one sentence, too, and leave nothing half-written."
    findings = 0
    import_slow()
    for job in ('training', 'warm_start', 'search'):
        run = start(job, folder/job)
        said = (run.communicate()[1].decode().strip().split('\n') or [''])[-1]
        left = [p.name for p in folder.rglob('*.tmp')]
        fine = run.returncode and str(folder) in said and 'expected' in said and not left
        findings += not fine
        print(f"{what}, {job}: {'ok' if fine else 'FINDING'}: {said} {left}", flush=True)
    return findings


def disk(args) -> int:
    "A full disk and one that is read-only; needs root, for a small disk in memory."
    if os.geteuid(): return print('disk: left out, needs root') or 0
    findings = 0
    for what, options in (('full disk', 'size=16k'), ('read-only', 'ro')):
        folder = Path(tempfile.mkdtemp())
        subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], check=True)
        try: findings += try_all(what, folder) + try_jobs(what, folder)
        finally:
            subprocess.run(['umount', folder], check=True)
            folder.rmdir()
    return findings


# ---- hostile input

def fuzz(args) -> int:
    "Files, arguments, texts and settings of every hostile kind, by the campaign of tests/fuzz."
    sys.path.insert(0, str(ROOT/'tests'/'fuzz'))
    import campaign
    tally, begin = campaign.Tally(), time.monotonic()
    for room, (_, _, share) in campaign.ROOMS.items():
        campaign.run(room, round(share*args.cases), tally)
    print(campaign.report(tally))
    print(f'{sum(tally.counts.values())} cases in {time.monotonic() - begin:.0f} s, '
          f'{len(campaign.PUBLIC)} public functions and records')
    return len(tally.findings)


# name to what tries it and returns the number of findings; first those that fork
SECTIONS = {'disk': disk, 'kills': kills, 'fuzz': fuzz}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sections', nargs='*', help=f"any of {', '.join(SECTIONS)}; all if none")
    parser.add_argument('--kills', type=int, default=100, help='kills in all')
    parser.add_argument('--jobs', type=lambda s: s.split(','), default=list(JOBS),
                        help=f"what is killed, of {', '.join(JOBS)}")
    parser.add_argument('--minutes', type=float, default=float('inf'),
                        help='after which no further run is begun; the next call goes on')
    parser.add_argument('--cases', type=int, default=20_000, help='of hostile input')
    parser.add_argument('--seed', type=int, default=0, help='of the times at which jobs are killed')
    args = parser.parse_args()
    for kind, given, known in (('section', args.sections, SECTIONS), ('job', args.jobs, JOBS)):
        for name in set(given) - set(known):
            parser.error(f"{kind} {name!r} is unknown: expected one of {', '.join(known)}")
    chosen = [name for name in SECTIONS if name in (args.sections or SECTIONS)]
    findings = sum(SECTIONS[name](args) for name in chosen)
    print(f'{findings} findings')
    return int(findings > 0)


if __name__ == '__main__': sys.exit(main())
