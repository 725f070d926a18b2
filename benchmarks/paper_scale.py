"""What would the paper's scale cost on this robot? Times a little of every job at its published size and counts how often it is needed.

    python benchmarks/paper_scale.py walker2d halfcheetah ant --save figures/paper_hours.csv    # one to two minutes a task on an H100
    python benchmarks/paper_scale.py walker2d --try                                             # tiny sizes, to see that it runs

Chapter 61 reads the file. On a GPU set JAX_DEFAULT_MATMUL_PRECISION=highest, as for the jobs themselves. The networks of `compact`, drawing,
and keeping the archive are timed on one thread of the CPU, where the jobs do them, too.
"""
import argparse
from pathlib import Path
from time import perf_counter

import jax
import numpy as np
import pandas as pd
import torch

from policydiffusion.archive import Archive
from policydiffusion.autoencoder import autoencoder_settings, build_autoencoder, standardisation
from policydiffusion.behaviour import CompactAutoencoder, behaviour_loss, compact_settings
from policydiffusion.training import start_training, train_autoencoder
from policydiffusion.core import DATA
from policydiffusion.dataset import BATCH, EVALUATION
from policydiffusion.distil import (compact_design, compact_diffusion, diffusion_settings,
                                    paper_design, take_decoder, train_generator)
from policydiffusion.generator import Generator
from policydiffusion.relabel import relabel_settings
from policydiffusion.policy import PolicySpec, pack, unpack
from policydiffusion.rollout import evaluate
from policydiffusion.emitters import XNES, Walker, follow
from policydiffusion.pool import empty_pool, insert
from policydiffusion.ppo import Ancestor, critic_spec
from policydiffusion.search import search_scale
from policydiffusion.tasks import get_task

ELITES = 7000  # about 70 % of 10,000 cells, as in the paper's archives
ON_CPU = 'pool update', 'drawing', 'codes and decoder', 'small denoiser', 'behaviour', 'small_denoiser'
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def widened(archive: Archive, spec: PolicySpec, n: int) -> np.ndarray:
    "n policies (repeated if there are fewer) in larger networks that act exactly alike: the new units are not connected to the output."
    layers = []
    for (W, b), (i, o) in zip(unpack(archive.spec, archive.params[np.resize(np.arange(len(archive)), n)].astype(np.float32)), spec.layer_sizes):
        layers.append((np.pad(W, ((0, 0), (0, i - W.shape[1]), (0, o - W.shape[2]))), np.pad(b, ((0, 0), (0, o - b.shape[1])))))
    return pack(layers)


def seconds(job, times: int = 3) -> float:
    "Median wall time of a job, not counting a first run that compiles."
    job()
    taken = []
    for _ in range(times):
        start = perf_counter(); job(); taken.append(perf_counter() - start)
    return float(np.median(taken))


class Simulation:
    "The parts of search and roll-outs at the paper's size."

    def __init__(self, task: str, tiny: bool):
        self.archive = archive = Archive.load(DATA/'archives'/f'{task}.safetensors', task)
        self.task, self.spec, self.k = task, get_task(task).spec((128, 128)), get_task(task).n_measures
        self.scale = search_scale('paper', task)
        ppga = self.scale.search.ppga
        self.ppga = ppga._replace(ppo=ppga.ppo._replace(envs=16, unroll=8)) if tiny else ppga
        self.envs, self.episodes, self.horizon = (32, 1, 20) if tiny else (self.scale.search.envs, 8, 1000)
        self.params = widened(archive, self.spec, self.envs//self.episodes)
        critic = np.zeros(critic_spec(self.spec).n_params, np.float32)
        self.ancestor = Ancestor(self.params[0], critic, np.zeros(self.spec.act_size), archive.obs_mean, archive.obs_std, self.params[:1])
        self.walker = Walker(self.params[0], critic, XNES(np.zeros(1 + self.k), np.eye(1 + self.k)))

    def learn(self, heads: int) -> None:
        "One PPO update of each of some copies of a policy."
        weights = np.eye(heads, 2 + self.k, dtype=np.float32)
        follow(self.task, self.spec, self.ppga, np.repeat(self.params[:1], heads, 0), weights, 1, self.walker, self.ancestor, np.random.default_rng(0))

    def roll_out(self) -> None:
        "One episode on every environment."
        evaluate(self.task, self.spec, self.params, self.archive.obs_mean, self.archive.obs_std, self.episodes, self.horizon, envs=self.envs)

    def keep(self) -> None:
        "Sort an iteration's branches into a full pool."
        search, dims = self.scale.search, get_task(self.task).paper_dims
        rng, width = np.random.default_rng(0), self.spec.n_params
        if not hasattr(self, 'pool'):
            self.pool = empty_pool(width, dims, search.depth)
            while len(self.pool) < ELITES*search.depth:
                insert(self.pool, np.ones((4096, width), np.float32), np.zeros(4096), rng.random((4096, len(dims))), np.zeros(4096))
        new = search.ppga.branches
        insert(self.pool, np.zeros((new, width), np.float32), np.ones(new), rng.random((new, len(dims))), np.zeros(new))

    def jobs(self) -> dict:
        "Name of a part: what to run."
        return {'jacobian update': lambda: self.learn(1 + self.k), 'walk update': lambda: self.learn(1), 'roll-outs': self.roll_out, 'pool update': self.keep}


def step_seconds(steps, n: int) -> float:
    "Mean wall time of a step of a training, after the first ten."
    for _ in range(10): next(steps)
    start = perf_counter()
    for _ in range(n): next(steps)
    return (perf_counter() - start)/n


def paper_generator(sim: Simulation) -> tuple:
    "The paper's autoencoder and generator, untrained, and the settings of their training."
    used, settings = autoencoder_settings('paper', sim.task), diffusion_settings('paper')
    model = build_autoencoder(sim.spec, used, *standardisation(torch.from_numpy(sim.params[:512]), used.centring))
    generator = Generator(sim.task, sim.spec, paper_design(model, used, sim.k, settings.network), sampling=settings.sampling)
    take_decoder(generator, model, sim.archive.obs_mean, sim.archive.obs_std)
    return model, used, generator, settings


def paper_networks(sim: Simulation, n: int) -> dict:
    "Seconds of a training step of the paper's networks."
    model, used, generator, settings = paper_generator(sim)
    z, measures, data = torch.randn(ELITES, *used.latent_shape), torch.rand(ELITES, sim.k), {'params': torch.from_numpy(sim.params[:512]).to(DEVICE)}
    return {'autoencoder': step_seconds(train_autoencoder(start_training(model.to(DEVICE), data, used, 0)), n),
            'U-Net': step_seconds(train_generator(generator.to(DEVICE), z, measures, settings, 0), n)}


def drawing(sim: Simulation) -> dict:
    "Seconds to draw a policy with the paper's generator, on the CPU."
    generator = paper_generator(sim)[2].eval()
    asked = np.random.default_rng(0).random((64, sim.k), np.float32)
    return {'drawing': seconds(lambda: generator.generate(asked), 1)/len(asked)}


def our_networks(sim: Simulation, n: int) -> dict:
    "Seconds of a training step of decoder and denoiser of `compact`, on the CPU."
    small, settings = compact_settings('paper', task=sim.task), compact_diffusion('paper', task=sim.task)
    params, norm = torch.from_numpy(sim.params[:512]), [torch.from_numpy(np.asarray(x, np.float32)) for x in (sim.archive.obs_mean, sim.archive.obs_std)]
    model = CompactAutoencoder(sim.spec, len(params), small.latent_shape, small.ranks).start(params)
    data = {'rows': torch.arange(len(params)), 'params': params, 'obs': torch.randn(len(params), EVALUATION['paper'].n_obs, sim.spec.obs_size)}
    loss = behaviour_loss(small, *norm, params.var(0).mean().item())
    generator = Generator(sim.task, sim.spec, compact_design(small, sim.k, settings.network), 'compact', settings.sampling)
    return {'codes and decoder': step_seconds(train_autoencoder(start_training(model, data, small, 0), loss), n),
            'small denoiser': step_seconds(train_generator(generator, torch.randn(ELITES, *small.latent_shape), torch.rand(ELITES, sim.k), settings, 0), n)}


def hours(sim: Simulation, t: dict) -> dict:
    "Hours of each job of the Snakefile, from the seconds of its parts."
    search, relabelling, episodes = sim.scale.search, relabel_settings('paper'), EVALUATION['paper'].episodes
    ppga = search.ppga
    def rolled_out(policies, episodes, batch):  # batch by batch; every call lasts as long as its longest episode, so waves are whole
        return np.ceil(policies/batch)*np.ceil(batch*episodes/search.envs)*t['roll-outs']
    steps = lambda settings: settings.epochs*ELITES/settings.batch_size
    warm = sim.scale.warm.steps/(ppga.ppo.envs*ppga.ppo.unroll)*t['walk update']
    learning = ppga.gradient_updates*t['jacobian update'] + ppga.walk_updates*t['walk update']
    trying = rolled_out(ppga.branches, 1, ppga.branches) + rolled_out(ppga.branches, search.episodes, ppga.branches) + t['pool update']
    corrected = rolled_out(ELITES, episodes, BATCH)
    parts = {'search': warm + sim.scale.iterations*(learning + trying) + rolled_out(ELITES*search.depth, sim.scale.episodes, search.batch), 'dataset': corrected,
             'autoencoder': steps(autoencoder_settings('paper', sim.task))*t['autoencoder'], 'diffusion': steps(diffusion_settings('paper'))*t['U-Net'],
             'behaviour': steps(compact_settings('paper', task=sim.task))*t['codes and decoder'],
             'rehearsal': rolled_out(ELITES*(relabelling.copies + relabelling.rounds), relabelling.episodes, relabelling.batch),
             'small_denoiser': steps(compact_diffusion('paper', task=sim.task))*t['small denoiser'], 'metrics': corrected + ELITES*t['drawing']}
    return {job: s/3600 for job, s in parts.items()}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tasks', nargs='+', help='Brax tasks with a shipped archive')
    parser.add_argument('--save', type=Path, help='CSV file to write')
    parser.add_argument('--try', dest='tiny', action='store_true', help='tiny sizes: the numbers mean nothing')
    args = parser.parse_args()
    torch.set_num_threads(1)
    device, n, rows = torch.cuda.get_device_name() if DEVICE == 'cuda' else 'CPU', 5 if args.tiny else 60, []
    for task in args.tasks:
        sim = Simulation(task, args.tiny)
        times = {part: seconds(job) for part, job in sim.jobs().items()} | paper_networks(sim, n) | drawing(sim) | our_networks(sim, n)
        found = {('seconds', part): s for part, s in times.items()} | {('hours', job): h for job, h in hours(sim, times).items()}
        rows += [('CPU' if name in ON_CPU else device, task, unit, name, float(f'{x:.4g}')) for (unit, name), x in found.items()]
        table = pd.DataFrame(rows, columns=['device', 'task', 'unit', 'what', 'value'])
        if args.save: table.to_csv(args.save, index=False)
        print(table[table.task == task].drop(columns=['device', 'task']).to_string(index=False), flush=True)
