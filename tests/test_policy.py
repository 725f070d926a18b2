"Layout of the rows, and whether JAX, torch and a plain network agree."
import jax
import numpy as np
import pytest
import torch

from policydiffusion.policy import PolicySpec, act_jax, act_torch, from_flax, from_torch, pack, unpack

SPEC = PolicySpec(5, 2, (4, 3))


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(6, SPEC.n_params)).astype(np.float32)


def test_parameter_counts_of_the_paper():
    # paper.md counts log-std (act) and observation normaliser apart from these
    assert PolicySpec(227, 17, (128, 128)).n_params == 227*128 + 128 + 128*128 + 128 + 128*17 + 17
    assert PolicySpec(17, 6).n_params == 5702


@pytest.mark.parametrize('convert', [np.asarray, jax.numpy.asarray, torch.as_tensor])
def test_pack_inverts_unpack_exactly(rows, convert):
    assert (np.asarray(pack(unpack(SPEC, convert(rows)))) == rows).all()


def test_layout_is_weights_row_major_then_bias():
    layers = unpack(SPEC, np.arange(SPEC.n_params))
    assert layers[0][0][1, 0] == 4  # second input, first hidden unit: after one row of 4
    assert layers[0][1].tolist() == [20, 21, 22, 23]
    assert layers[1][0][0, 0] == 24


def torch_network(row):
    "The same policy as a stock torch network."
    layers = []
    for W, b in unpack(SPEC, torch.as_tensor(row)):
        linear = torch.nn.Linear(*W.shape)
        linear.weight.data, linear.bias.data = W.T, b
        layers += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.mark.parametrize('per_policy', [False, True])
def test_both_frameworks_equal_a_stock_network(rows, per_policy):
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(6, 9, 5)).astype(np.float32)*8
    shape = (6, 5) if per_policy else (5,)
    mean, std = rng.normal(size=shape).astype(np.float32), rng.uniform(.1, 2, shape).astype(np.float32)
    batched = act_torch(SPEC, *map(torch.as_tensor, (rows, mean, std, obs))).numpy()
    for i in range(6):
        m, s = (mean[i], std[i]) if per_policy else (mean, std)
        x = torch.as_tensor(np.clip((obs[i] - m)/s, -10, 10))
        stock = torch_network(rows[i])(x).detach().numpy()
        in_jax = jax.vmap(lambda o: act_jax(SPEC, rows[i], m, s, o))(obs[i])
        assert np.abs(stock - batched[i]).max() < 1e-5
        assert np.abs(stock - np.asarray(in_jax)).max() < 1e-5


def test_wrong_length_is_one_sentence(rows):
    with pytest.raises(ValueError, match=f'rows of {SPEC.n_params - 1} numbers: expected {SPEC.n_params}'):
        unpack(SPEC, rows[:, 1:])


# ---- from other libraries

OBS = np.random.default_rng(2).normal(size=(20, 5)).astype(np.float32)
LINEAR, TANH, RELU = torch.nn.Linear, torch.nn.Tanh, torch.nn.ReLU


def acts(spec, row):
    return act_torch(spec, torch.from_numpy(row)[None], torch.zeros(5), torch.ones(5), torch.from_numpy(OBS)[None])[0].numpy()


class Own(torch.nn.Module):
    "A module of somebody's own, with its tanh in `forward`."
    def __init__(self, between=torch.tanh):
        super().__init__()
        self.first, self.second, self.between = LINEAR(5, 4), LINEAR(4, 2, bias=False), between

    def forward(self, x): return self.second(self.between(self.first(x)))


@pytest.mark.parametrize('make', [
    lambda: torch.nn.Sequential(LINEAR(5, 4), TANH(), LINEAR(4, 3), TANH(), LINEAR(3, 2)), lambda: LINEAR(5, 2), Own,
    lambda: torch.nn.Sequential(torch.nn.Sequential(LINEAR(5, 7), TANH()), torch.nn.Identity(), LINEAR(7, 2)).double()])
def test_a_torch_module_acts_as_its_row(make):
    torch.manual_seed(0)
    module = make()
    spec, row = from_torch(module)
    want = module(torch.from_numpy(OBS).to(next(module.parameters()))).detach().numpy()
    assert row.dtype == np.float32 and row.shape == (spec.n_params,) and (spec.obs_size, spec.act_size) == (5, 2)
    np.testing.assert_allclose(acts(spec, row), want, atol=1e-5)


def test_torchs_own_order_is_another_policy():
    module = torch.nn.Sequential(LINEAR(5, 4), TANH(), LINEAR(4, 2))
    spec, row = from_torch(module)
    flat = torch.cat([x.flatten() for x in module.parameters()]).detach().numpy()
    assert flat.shape == row.shape and np.abs(acts(spec, flat) - acts(spec, row)).max() > .1


@pytest.mark.parametrize('module, words', [
    (torch.nn.Sequential(LINEAR(5, 4), RELU(), LINEAR(4, 2)), 'module holds ReLU: expected Linear layers with Tanh between them'),
    (torch.nn.Sequential(LINEAR(5, 4), TANH(), LINEAR(4, 2), TANH()), 'module acts otherwise than its 2 Linear layers'),
    (torch.nn.Sequential(LINEAR(5, 4), LINEAR(4, 2)), 'module acts otherwise'), (Own(torch.relu), 'module acts otherwise'),
    (torch.nn.Sequential(LINEAR(5, 4), TANH(), LINEAR(3, 2)), r'layers have shapes .*: expected W \(in, out\)'),
    (TANH(), 'module holds no Linear layer'), (torch.nn.LSTM(5, 2), 'module holds LSTM')])
def test_a_module_that_no_row_can_say_is_refused(module, words):
    with pytest.raises(ValueError, match=words): from_torch(module)


def flax_like(rng, sizes=(5, 4, 2), lead=(), name='Dense_'):
    return {f'{name}{i}': {'kernel': rng.normal(size=(*lead, a, b)), 'bias': rng.normal(size=(*lead, b))} for i, (a, b) in enumerate(zip(sizes, sizes[1:]))}


@pytest.mark.parametrize('name', ['Dense_', 'hidden_'])
def test_flax_parameters_by_hand(name):
    p = flax_like(np.random.default_rng(3), (5, *[3]*10, 2), name=name)  # eleven layers: Dense_10 comes after Dense_9
    spec, row = from_flax({'params': dict(reversed(p.items()))})
    h = OBS.astype(np.float64)
    for i in range(11): h = h @ p[f'{name}{i}']['kernel'] + p[f'{name}{i}']['bias']; h = np.tanh(h) if i < 10 else h
    np.testing.assert_allclose(acts(spec, row), h, atol=1e-5)


def test_a_stack_of_flax_parameters():
    p = flax_like(np.random.default_rng(3), lead=(6,))
    spec, rows = from_flax(p)
    assert rows.shape == (6, spec.n_params) and spec == PolicySpec(5, 2, (4,))
    np.testing.assert_array_equal(rows[3], from_flax({k: {n: x[3] for n, x in layer.items()} for k, layer in p.items()})[1])


@pytest.mark.parametrize('change, words', [
    (lambda p: {}, 'params is no dict of layers'), (lambda p: 3, 'params is no dict'), (lambda p: {'Dense_1': p['Dense_1']}, 'params holds Dense_1: expected numbered layers'),
    (lambda p: {**p, 'log_std': np.zeros(2)}, 'expected numbered layers'), (lambda p: {**p, 'Dense_1': {'kernel': np.ones((4, 2))}}, 'Dense_1 that is no kernel and bias'),
    (lambda p: {**p, 'Dense_1': {'kernel': np.ones((3, 2)), 'bias': np.ones(2)}}, 'layers have shapes'), (lambda p: {**p, 'Dense_1': {'kernel': np.ones((4, 2)), 'bias': np.ones(3)}}, 'layers have shapes'),
    (lambda p: {**p, 'Dense_1': {'kernel': np.full((4, 2), np.nan), 'bias': np.ones(2)}}, 'Dense_1.kernel holds values that are not finite')])
def test_flax_parameters_that_do_not_fit(change, words):
    with pytest.raises(ValueError, match=words): from_flax(change(flax_like(np.random.default_rng(3))))
