"Practice on a toy whose truth is known: a latent's two numbers are what its policy does."
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from policydiffusion import distil as distil_module
from policydiffusion.archive import synthetic_archive
from policydiffusion.distil import (DiffusionSettings, Evaluated, PracticeSettings, distil,
                                    doubtful, expected_miss, practice_draws, practice_requests,
                                    practise)
from policydiffusion.generator import DECODERS, Design, Generator, Sampling
from policydiffusion.policy import PolicySpec
from policydiffusion.relabel import RelabelSettings
from policydiffusion.rollout import Evaluation

SPEC = PolicySpec(3, 2, (4,))
SIGMA = torch.full((3,), .02)
TRAINING = DiffusionSettings({'width': 48, 'n_blocks': 1, 'n_out': 1}, lr=3e-3, batch_size=128,
                             steps=150, velocity=True, vlb_weight=0., ema_decay=0.,
                             sampling=Sampling(n_steps=2, last=24, temperature=.5))
SETTINGS = lambda how: (TRAINING, how, RelabelSettings())
HOW = PracticeSettings(rounds=2, share=1., steps=150, draws=64, latents=32, lr=3e-3)


class Repeats(nn.Module):
    def __init__(self, spec, latent_shape):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def decode(self, z): return self.factor*z.repeat(1, -(-SPEC.n_params//3))[:, :SPEC.n_params]


def do(z):
    "The truth: two numbers of a latent are its measures; the third only earns, best at 0."
    z = np.asarray(z)
    return Evaluation(100 - 50*z[:, 2]**2, z[:, :2].clip(0, 1), np.full(len(z), 1000.), *[None]*2)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(DECODERS, 'toy', Repeats)
    seen = lambda autoencoder, archive, z, how, seed: do(z)
    monkeypatch.setattr(distil_module, 'evaluate_latents', seen)
    rng = np.random.default_rng(0)
    z = np.float32(rng.random((600, 3))*[1, 1, 2] - [0, 0, 1])
    found = do(z)
    labels = found.measures, found.objective, np.full(600, 2)
    known = Evaluated(torch.from_numpy(z), *map(np.float32, labels))
    archive = synthetic_archive('walker2d', 60, spec=SPEC)
    torch.manual_seed(0)
    design = Design(2, (3,), {'name': 'toy'}, {'name': 'residual', **TRAINING.network})
    generator = Generator('walker2d', SPEC, design, 'compact', TRAINING.sampling)
    return generator, known, archive


def run(toy, how=HOW, **more):
    generator, known, archive = toy
    *_, (_, known) = distil(generator, None, archive, known, SIGMA, *SETTINGS(how), 7, **more)
    return generator, known


def test_practice_hits_requests_that_it_never_saw(toy):
    asked = np.random.default_rng(5).random((300, 2)).astype(np.float32)*.9 + .05
    done = lambda g: do(g.draw_latents(asked, seed=3)).measures
    miss = lambda g: np.linalg.norm(done(g) - asked, axis=1).mean()
    generator, known = run(toy, replace(HOW, rounds=1, steps=1))
    before = miss(generator)
    generator, known = run(toy)
    assert miss(generator) < .05 and miss(generator) < before/2
    assert len(known.z) == 600 + 60  # one round of draws was evaluated between the two


def test_two_draws_differ_if_they_are_to(toy):
    how = replace(HOW, rounds=1, steps=400, spread=20.)
    apart = {}
    for weight in (0., .1):
        generator, _ = run(toy, replace(how, spread_weight=weight))
        z = generator.draw_latents(np.full((1, 2), .5, np.float32), n=64, seed=1)/SIGMA
        apart[weight] = torch.pdist(z).mean().item()
    assert apart[.1] > 20*.5*.6 and apart[.1] > 1.5*apart[0.]  # half the noise, half of 20


def test_a_round_begun_again_ends_the_same(toy):
    generator, known, archive = toy
    states = []
    for r, known in distil(generator, None, archive, toy[1], SIGMA, *SETTINGS(HOW), 7):
        states.append(({k: x.clone() for k, x in generator.state_dict().items()}, known))
    generator.load_state_dict(states[0][0])
    rest = distil(generator, None, archive, states[0][1], SIGMA, *SETTINGS(HOW), 7, begun=1)
    (r, again), = rest
    assert r == 2 and torch.equal(again.z, states[1][1].z)
    for name, x in generator.state_dict().items(): assert torch.equal(x, states[1][0][name]), name


def test_what_the_surrogate_only_believes_costs_more(toy):
    _, known, _ = toy
    surrogate = known.surrogate(SIGMA)
    there, nowhere = known.z[:1], known.z[:1] + 40*SIGMA
    asked = [surrogate(z)[:, :2] for z in (there, nowhere)]  # both foreseen exactly as asked
    cost = [expected_miss(surrogate, z, a, torch.tensor([-1e9]), HOW).item()
            for z, a in zip((there, nowhere), asked)]
    assert cost[1] > 1.5*cost[0]


def test_every_elite_is_practised_as_often():
    archive = synthetic_archive('walker2d', 40, spec=SPEC)
    asked = practice_requests(archive, archive, 300, .4, 1)
    counts = [(asked == m).all(1).sum() for m in archive.measures]
    assert asked.shape == (300, 2) and sum(counts) == 120 and set(counts) <= {3}
    assert not (practice_requests(archive, archive, 300, .4, 2) == asked).all()


def test_draws_without_noise_are_one_answer(toy):
    generator, g = toy[0], torch.Generator().manual_seed(0)
    asked = torch.full((6, 2), .5)
    cold = practice_draws(generator, asked, torch.zeros(6, 1), g)
    warm = practice_draws(generator, asked, torch.ones(6, 1), g)
    assert (cold == cold[0]).all() and warm.std(0).min() > 0


def test_doubts_are_about_requests_that_draws_miss(toy):
    generator, known, _ = toy
    surrogate = known.surrogate(SIGMA)
    labels, at = known.labels(surrogate), torch.tensor([[.5, .5, 0.]]).expand(30, 3)
    asked = torch.rand(30, 2, generator=torch.Generator().manual_seed(1))
    rows = doubtful(surrogate, labels, at, asked, 10, HOW)
    far = (asked - .5).norm(dim=1).argsort(descending=True)
    truth = torch.from_numpy(do(known.z[rows]).measures)
    assert torch.cdist(truth, asked[far[:15]]).min(1).values.max() < .1  # they answer far requests


def test_caution_grows_from_round_to_round(toy, monkeypatch):
    seen = []
    monkeypatch.setattr(distil_module, 'practise', lambda *given: seen.append(given[-1]) or ())
    run(toy, replace(HOW, rounds=3, caution=(.2, .8)))
    np.testing.assert_allclose(seen, [.2, .5, .8])
