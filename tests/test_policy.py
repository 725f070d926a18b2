"Layout of the rows, and whether JAX, torch and a plain network agree."
import jax
import numpy as np
import pytest
import torch

from policydiffusion.policy import PolicySpec, act_jax, act_torch, pack, unpack

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
