"Foreign archives act here as they did where they come from; what cannot be represented is refused in one sentence."
import pickle
import sys
from collections import OrderedDict
from dataclasses import dataclass
from types import ModuleType

import flax.linen as nn
import jax
import numpy as np
import pandas as pd
import pytest
import torch
from jax.flatten_util import ravel_pytree

from policydiffusion.archive import Archive
from policydiffusion.importers import (_ppga_arrays, import_arrays, import_npz, import_ppga, import_pyribs, import_qdax,
                                       share_normaliser)
from policydiffusion.policy import PolicySpec, act_jax, act_torch, pack, unpack
from policydiffusion.rollout import _act
from policydiffusion.ppo import mlp

SIZES = (5, 8, 7, 2)  # observations, two hidden layers, actions
OBS = np.random.default_rng(0).normal(0, 8, (1000, 5)).astype(np.float32)  # well beyond our own clipping at 10
FLAGS = dict(activation='relu', squash=True)
TORCH = {'tanh': torch.nn.Tanh, 'relu': torch.nn.ReLU, 'elu': torch.nn.ELU}


def stock(activations, squash, sizes=SIZES, seed=0):
    "A stock torch network."
    torch.manual_seed(seed)
    layers = [m for i, o, name in zip(sizes, sizes[1:-1], activations) for m in (torch.nn.Linear(i, o), TORCH[name]())]
    return torch.nn.Sequential(*layers, torch.nn.Linear(*sizes[-2:]), *[torch.nn.Tanh()]*squash)


def flat(net):
    "A network's parameters in the order of its state dict."
    return torch.cat([x.flatten() for x in net.state_dict().values()]).numpy()


def actions(archive, i=0, obs=OBS):
    "What policy i of an archive does, in torch and in JAX."
    mean, std = (x if x.ndim == 1 else x[i] for x in (archive.obs_mean, archive.obs_std))
    one = act_torch(archive.spec, *map(torch.as_tensor, (archive.params[i:i + 1], mean, std, obs[None])))[0].numpy()
    two = jax.vmap(act_jax, (None, None, None, None, 0))(archive.spec, archive.params[i], mean, std, obs)
    return one, np.asarray(two)


def close(archive, i, answer, obs=OBS):
    "Whether both frameworks act as the foreign network."
    return all(np.abs(a - answer).max() < 1e-5 for a in actions(archive, i, obs))


# ---- the spec

NETWORKS = [(('tanh', 'tanh'), False), (('relu', 'relu'), True), (('elu', 'relu'), True), (('elu', 'elu'), False)]


@pytest.mark.parametrize('activations, squash', NETWORKS)
def test_both_frameworks_and_the_rollout_act_as_a_stock_network(activations, squash):
    net = stock(activations, squash)
    archive = import_arrays(flat(net)[None], [1.], [[.5]], 'other', (4,), SIZES, activations, squash, 'torch')
    with torch.no_grad(): answer = net(torch.as_tensor(OBS)).numpy()
    assert close(archive, 0, answer)
    rows = np.tile(archive.params, (1000, 1))
    played = _act(archive.spec, unpack(archive.spec, jax.numpy.asarray(rows)), archive.obs_mean, archive.obs_std, OBS)
    assert np.abs(np.asarray(played) - answer).max() < 1e-5


def test_clipping_is_the_specs():
    spec = PolicySpec(1, 1, (), obs_clip=2.)
    x = np.array([[1.], [5.], [-9.]], np.float32)
    one, two = actions(Archive('other', spec, [[1, 0]], [0.], [[0.]], [0.], [0.], [1.], (1,)), 0, x)
    assert one.ravel().tolist() == two.ravel().tolist() == [1, 2, -2]


def test_a_spec_survives_its_file_and_old_headers_load(tmp_path):
    spec = PolicySpec(5, 2, (8, 7), ('elu', 'relu'), True, None)
    a = Archive('other', spec, np.zeros((2, spec.n_params)), [0, 1], [[0.], [1.]], [0, 0], np.zeros(5), np.ones(5), (2,))
    assert Archive.load(a.save(tmp_path/'a.safetensors')).spec == spec
    assert PolicySpec.from_dict({'obs_size': 17, 'act_size': 6, 'hidden': [64, 64]}) == PolicySpec(17, 6)
    assert PolicySpec(17, 6).to_dict() == {'obs_size': 17, 'act_size': 6, 'hidden': (64, 64)}


@pytest.mark.parametrize('bad, sentence', [
    (dict(activation='gelu'), 'expected one of tanh, relu, elu'), (dict(activation=('elu',)), 'each of the 2 hidden layers'),
    (dict(squash=1), 'expected True or False'), (dict(obs_clip=0.), 'expected a positive number'), (dict(hidden=(4, 0)), 'whole numbers')])
def test_a_spec_refuses_what_is_no_network(bad, sentence):
    with pytest.raises(ValueError, match=sentence): PolicySpec(5, 2, **{'hidden': (8, 7)} | bad)


def test_the_search_refuses_networks_that_it_does_not_train():
    spec = PolicySpec(5, 2, (4,), 'relu')
    with pytest.raises(ValueError, match='expected tanh layers'): mlp(spec, np.zeros(spec.n_params), np.zeros(5))


# ---- plain arrays

def two_policies():
    "Two torch networks as arrays."
    nets = [stock(('relu', 'relu'), True, seed=s) for s in (1, 2)]
    return nets, dict(params=np.stack([flat(n) for n in nets]), objective=np.array([1., 2.]), measures=np.array([[-30., 0], [15, 1]]))


ABOUT = dict(task='other', dims=(4, 4), sizes=SIZES, ranges=((-30, 30), (0, 1)), layout='torch', **FLAGS)


def test_npz_and_what_its_header_says(tmp_path):
    nets, arrays = two_policies()
    np.savez(tmp_path/'mine.npz', **arrays, length=[10., 20.])
    a = import_npz(tmp_path/'mine.npz', **ABOUT)
    for i, net in enumerate(nets):
        with torch.no_grad(): assert close(a, i, net(torch.as_tensor(OBS)).numpy())
    assert a.measures.tolist() == [[0, 0], [.75, 1]] and a.length.tolist() == [10, 20]
    about = Archive.load(a.save(tmp_path/'a.safetensors')).meta['imported']
    assert about['ranges'] == [[-30, 30], [0, 1]] and about['unknown'] == [] and 'no roll-outs' in about['use']


def test_order_and_unknown_measures():
    _, arrays = two_policies()
    assert import_arrays(**arrays, **ABOUT | {'order': (1, 0)}).measures.tolist() == [[0, 0], [1, .75]]
    empty = import_arrays(**arrays, **ABOUT | {'order': (), 'ranges': None})
    assert not empty.measures.any() and empty.meta['imported']['unknown'] == ['length', 'measures']


@pytest.mark.parametrize('change, sentence', [
    (dict(activation=None), 'weights do not tell'), (dict(squash=None), 'weights do not tell'), (dict(sizes=(5, 8, 7, 3)), 'expected .n, 135'),
    (dict(ranges=None), 'within ranges'), (dict(ranges=((0, 1),)), '2 pairs'), (dict(ranges=((1, 0), (0, 1))), '2 pairs'),
    (dict(order=(2, 0)), 'below 2'), (dict(layout='keras'), 'expected one of in_out, torch, flax'), (dict(objective=[1., -np.inf]), 'not finite'),
    (dict(objective=np.array(['a', 'b'])), 'real numbers'), (dict(params=np.zeros((2, 127), complex)), 'real numbers'),
    (dict(task='walker2d'), '17 and 6 for walker2d'), (dict(sizes=5), 'expected the numbers in an observation')])
def test_arrays_that_do_not_fit_are_refused(change, sentence):
    _, arrays = two_policies()
    with pytest.raises(ValueError, match=sentence): import_arrays(**arrays | ABOUT | change)


def test_measures_of_another_number_need_a_word():
    spec = PolicySpec(11, 3, (4,))
    how = dict(task='hopper', sizes=(11, 4, 3), activation='tanh', squash=True)
    rows = np.zeros((2, spec.n_params))
    with pytest.raises(ValueError, match="hopper's foot contact, lean"): import_arrays(rows, [0, 1], [[0.], [1.]], dims=(8,), **how)
    a = import_arrays(rows, [0, 1], [[0.], [1.]], dims=(8, 8), order=(), **how)
    assert a.measures.shape == (2, 2) and 're-evaluate' in a.meta['imported']['use']


# ---- pyribs

@pytest.fixture
def frame():
    "A data frame of pyribs as it is today, with twelve measures so that the order of names and numbers differs."
    from ribs.archives import GridArchive
    _, arrays = two_policies()
    archive = GridArchive(solution_dim=arrays['params'].shape[1], dims=[2]*12, ranges=[(0, 1)]*12)
    archive.add(arrays['params'], arrays['objective'], np.linspace(0, 1, 24).reshape(2, 12))
    return archive.data(return_type='pandas')


@pytest.mark.parametrize('name', ['measures', 'measure', 'behavior'])
@pytest.mark.parametrize('form', ['frame', 'csv', 'npz'])
def test_pyribs_in_all_forms_and_old_names(frame, form, name, tmp_path):
    frame = frame.rename(columns=lambda c: c.replace('measures_', f'{name}_'))
    path, source = tmp_path/f'archive.{form}', frame
    if form == 'csv': frame.to_csv(path, index=False); source = path
    if form == 'npz': np.savez(path, **{c: frame[c].to_numpy() for c in frame}); source = path
    a = import_pyribs(source, 'torch', task='other', dims=[2]*12, sizes=SIZES, **FLAGS)
    nets, _ = two_policies()
    for net in nets:
        i = int(np.abs(a.params - pack([(W.T, b) for W, b in zip(*[iter(net.parameters())]*2)]).detach().numpy()).sum(1).argmin())
        with torch.no_grad(): assert close(a, i, net(torch.as_tensor(OBS)).numpy())
    assert np.allclose(a.measures, np.linspace(0, 1, 24).reshape(2, 12), atol=1e-6)


def test_pyribs_dict_and_refusals(frame, tmp_path):
    how = dict(layout='torch', task='other', dims=[2]*12, sizes=SIZES, **FLAGS)
    columns = {'solution': frame.filter(regex='^solution').to_numpy(), 'measures': frame.filter(regex='^measures').to_numpy(), 'objective': frame['objective']}
    assert (import_pyribs(columns, **how).params == import_pyribs(frame, **how).params).all()
    with pytest.raises(ValueError, match='lacks objective'): import_pyribs(frame.drop(columns='objective'), **how)
    with pytest.raises(ValueError, match='columns of solution'): import_pyribs(frame.drop(columns='solution_3'), **how)
    with pytest.raises(ValueError, match='columns of measures'): import_pyribs(frame.assign(measure_0=0.), **how)
    with pytest.raises(ValueError, match='expected one of .csv, .npz'): import_pyribs(tmp_path/'archive.pkl', **how)
    np.savez(tmp_path/'objects.npz', solution=np.array([{}], object))
    with pytest.raises(ValueError, match='expected plain arrays'): import_pyribs(tmp_path/'objects.npz', **how)
    with pytest.raises(FileNotFoundError, match='expected csv'): import_pyribs(tmp_path/'none.csv', **how)


# ---- QDax

class MLP(nn.Module):
    "A flax network with the names and options of QDax's `MLP`."
    layer_sizes: tuple
    activation: object = nn.relu
    final_activation: object = None

    @nn.compact
    def __call__(self, x):
        for width in self.layer_sizes[:-1]: x = self.activation(nn.Dense(width)(x))
        x = nn.Dense(self.layer_sizes[-1])(x)
        return x if self.final_activation is None else self.final_activation(x)


@dataclass
class Repertoire:
    "The fields of QDax's `MapElitesRepertoire` that tell the policies."
    genotypes: dict
    fitnesses: np.ndarray
    descriptors: np.ndarray
    centroids: np.ndarray


def repertoire(net, obs=5):
    "Six cells, a 2 x 3 grid, of which two are empty."
    keys = jax.random.split(jax.random.key(3), 6)
    genotypes = jax.vmap(net.init, (0, None))(keys, np.zeros(obs))
    genotypes = jax.tree.map(lambda x: x + .1*jax.random.normal(jax.random.key(x.ndim), x.shape), genotypes)  # biases, too
    grid = np.stack(np.meshgrid([.25, .75], [1/6, .5, 5/6], indexing='ij'), -1).reshape(-1, 2)
    fitness = np.array([[1.], [-np.inf], [3.], [4.], [-np.inf], [6.]])
    return Repertoire(genotypes, fitness, np.where(np.isinf(fitness), 0, grid), grid)


NETS = [(MLP((8, 7, 2)), dict(activation='relu', squash=False)), (MLP((8, 7, 2), nn.relu, nn.tanh), FLAGS),
        (MLP((8, 7, 2), nn.tanh, nn.tanh), dict(activation='tanh', squash=True)), (MLP((3,)*11 + (2,)), dict(activation='relu', squash=False))]


@pytest.mark.parametrize('form', ['memory', 'folder', 'prefix'])
@pytest.mark.parametrize('net, flags', NETS, ids=['relu', 'relu, tanh', 'tanh, tanh', 'twelve layers'])
def test_qdax_in_memory_and_in_files(net, flags, form, tmp_path):
    r = repertoire(net)
    source = r
    if form != 'memory':
        path = f'{tmp_path}/' if form == 'folder' else f'{tmp_path}/run_'
        rows = jax.vmap(lambda g: ravel_pytree(g)[0])(r.genotypes)
        for name, x in dict(genotypes=rows, fitnesses=r.fitnesses[:, 0], descriptors=r.descriptors, centroids=r.centroids).items(): np.save(f'{path}{name}.npy', x)
        source = tmp_path if form == 'folder' else path
    a = import_qdax(source, 'other', sizes=(5, *net.layer_sizes), **flags)
    assert a.objective.tolist() == [1, 3, 4, 6] and a.dims == (2, 3) and a.cells().tolist() == [0, 2, 3, 5]
    for i, cell in enumerate((0, 2, 3, 5)):
        assert close(a, i, np.asarray(net.apply(jax.tree.map(lambda x: x[cell], r.genotypes), OBS)))


def test_qdax_refusals(tmp_path):
    net, flags = NETS[1]
    r = repertoire(net)
    with pytest.raises(ValueError, match='weights do not tell'): import_qdax(r, 'other')
    with pytest.raises(ValueError, match='expected a filled cell'): import_qdax(Repertoire(r.genotypes, r.fitnesses - np.inf, r.descriptors, r.centroids), 'other', **flags)
    with pytest.raises(ValueError, match='form no grid'): import_qdax(Repertoire(r.genotypes, r.fitnesses, r.descriptors, r.centroids + np.arange(6)[:, None]), 'other', **flags)
    with pytest.raises(ValueError, match='expected Dense_0'): import_qdax(Repertoire({'params': {'LSTM_0': {}}}, r.fitnesses, r.descriptors, r.centroids), 'other', **flags)
    with pytest.raises(ValueError, match='one for each of 6 cells'): import_qdax(Repertoire(r.genotypes, np.zeros((6, 2)), r.descriptors, r.centroids), 'other', **flags)
    with pytest.raises(ValueError, match='lacks centroids'): import_qdax(type('Half', (), dict(genotypes=0, fitnesses=0, descriptors=0))(), 'other', **flags)
    with pytest.raises(FileNotFoundError, match='genotypes.npy'): import_qdax(tmp_path, 'other', **flags)


def test_the_real_library_holds_what_the_stand_in_does():
    containers = pytest.importorskip('qdax.core.containers.mapelites_repertoire')
    networks = pytest.importorskip('qdax.core.neuroevolution.networks.networks')
    net, stand_in = networks.MLP((8, 7, 2), final_activation=jax.numpy.tanh), repertoire(NETS[1][0])
    good = np.isfinite(stand_in.fitnesses[:, 0])
    centroids = containers.compute_euclidean_centroids((2, 3), 0., 1.)
    real = containers.MapElitesRepertoire.init(jax.tree.map(lambda x: x[good], stand_in.genotypes), jax.numpy.asarray(stand_in.fitnesses[good]),
                                               jax.numpy.asarray(stand_in.descriptors[good]), centroids)
    a = import_qdax(real, 'other', **FLAGS)
    assert len(a) == 4 and a.dims == (2, 3)
    best = int(a.objective.argmax())
    assert close(a, best, np.asarray(net.apply(jax.tree.map(lambda x: x[5], stand_in.genotypes), OBS)))


# ---- PPGA

class Actor(torch.nn.Module):
    "A policy that keeps its log-standard deviation beside its layers, as PPGA's does."
    def __init__(self, seed):
        super().__init__()
        self.net = stock(('tanh', 'tanh'), False, SIZES, seed)
        self.log_std = torch.nn.Parameter(torch.full((2,), -.7))

    def forward(self, x): return self.net(x)


@pytest.fixture(scope='module')
def ppga():
    "Three policies, their normalisers, and their data frame."
    actors, rng = [Actor(s) for s in range(3)], np.random.default_rng(5)
    normalisers = [OrderedDict({'obs_rms.mean': torch.from_numpy(rng.normal(size=5)), 'obs_rms.var': torch.from_numpy(rng.uniform(.1, 4, 5)),
                                'obs_rms.count': torch.tensor(1e4)}) for _ in actors]
    rows = torch.stack([torch.nn.utils.parameters_to_vector(a.parameters()) for a in actors]).detach().double().numpy()
    columns = {'index': np.arange(3, dtype=np.int32), 'measure_0': [.1, .5, .9], 'measure_1': [1., .5, 0], 'objective': [1., 2., 3.],
               **{f'solution_{i}': x for i, x in enumerate(rows.T)}}
    columns['metadata'] = [dict(traj_length=900. + i, obs_normalizer=n, return_normalizer=OrderedDict()) for i, n in enumerate(normalisers)]
    return actors, normalisers, pd.DataFrame(columns)


@pytest.fixture(scope='module')
def ppga_archive(ppga, tmp_path_factory):
    "The frame through a pickle in which its class has the fork's name."
    path, names = tmp_path_factory.mktemp('ppga')/'archive_df_00002000.pkl', ('ribs', 'ribs.archives', 'ribs.archives._archive_data_frame')
    ArchiveDataFrame = type('ArchiveDataFrame', (pd.DataFrame,), {'__module__': names[2]})
    fake = {n: ModuleType(n) for n in names}
    fake[names[2]].ArchiveDataFrame = ArchiveDataFrame
    kept = {n: sys.modules.get(n) for n in names}
    sys.modules.update(fake)
    try: path.write_bytes(pickle.dumps(ArchiveDataFrame(ppga[2])))
    finally: [sys.modules.pop(n) if m is None else sys.modules.update({n: m}) for n, m in kept.items()]
    return import_ppga(path, 'ppga_toy', (10, 10), hidden=SIZES[1:-1], trust_pickle=True)


def test_ppga_acts_as_its_modules(ppga, ppga_archive):
    actors, normalisers, _ = ppga
    for i, (actor, n) in enumerate(zip(actors, normalisers)):
        with torch.no_grad(): answer = actor(((torch.as_tensor(OBS) - n['obs_rms.mean'])/(n['obs_rms.var'] + 1e-8).sqrt()).float()).numpy()
        assert close(ppga_archive, i, answer)
    assert ppga_archive.length.tolist() == [900, 901, 902] and ppga_archive.obs_mean.shape == (3, 5)
    assert np.allclose(ppga_archive.measures, [[.1, 1], [.5, .5], [.9, 0]])


def test_one_normaliser_for_all_changes_no_action(ppga_archive):
    shared = share_normaliser(ppga_archive)
    assert shared.obs_mean.shape == shared.obs_std.shape == (5,)
    for i in range(3): assert close(shared, i, actions(ppga_archive, i)[0])
    clipped = Archive('other', PolicySpec(1, 1, ()), np.ones((2, 2)), [0, 0], [[0], [0]], [0, 0], np.zeros((2, 1)), np.ones((2, 1)), (1,))
    with pytest.raises(ValueError, match='without clipping'): share_normaliser(clipped)


class Forbidden:
    "A program in disguise: it would create a file."
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')


def test_a_pickle_with_anything_else_in_it_is_refused_and_not_run(ppga, tmp_path):
    path, trace = tmp_path/'archive.pkl', tmp_path/'it_ran'
    path.write_bytes(pickle.dumps(ppga[2].assign(metadata=[Forbidden(trace)]*3)))
    with pytest.raises(ValueError, match='trust_pickle=True'): import_ppga(path, 'ppga_toy', (10, 10))
    with pytest.raises(ValueError, match='asks for _?io.open'): import_ppga(path, 'ppga_toy', (10, 10), trust_pickle=True)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # it would have run


def test_ppga_refusals(ppga, tmp_path, monkeypatch):
    frame = ppga[2]
    bare = frame.assign(metadata=[{'traj_length': 900.}]*3)
    with pytest.raises(ValueError, match="metadata lacks 'obs_normalizer'"): _ppga_arrays(bare)
    with pytest.raises(ValueError, match='lacks metadata'): _ppga_arrays(frame.drop(columns='metadata'))
    with pytest.raises(FileNotFoundError, match="PPGA's pickle"): import_ppga(tmp_path/'none.pkl', 'ppga', (10, 10), trust_pickle=True)
    (tmp_path/'some.pkl').touch()
    monkeypatch.setattr('policydiffusion.importers._in_another_process', lambda path: _ppga_arrays(frame.drop(columns=f'solution_{frame.shape[1] - 6}')))
    with pytest.raises(ValueError, match='to fit them'): import_ppga(tmp_path/'some.pkl', 'ppga', (10, 10), SIZES[1:-1], True)
