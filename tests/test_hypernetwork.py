"The hypernetwork against published counts, closed forms and itself."
import pytest
import torch

from policydiffusion.hypernetwork import GatedGraph, GraphHypernetwork, NormaliserDecoder, TileDecoder, count_parameters, node_shapes, smallest_tile
from policydiffusion.policy import PolicySpec, unpack

SMALL = PolicySpec(5, 2, (6, 6))
HUMANOID, WALKER = PolicySpec(227, 17, (128, 128)), PolicySpec(17, 6, (128, 128))


@pytest.mark.parametrize('spec, hidden, millions', [(HUMANOID, 8, 8.49), (HUMANOID, 16, 16.93), (HUMANOID, 32, 33.86), (HUMANOID, 64, 68.02),
                                                    (WALKER, 8, 2.13), (WALKER, 16, 4.27), (WALKER, 32, 8.62), (WALKER, 64, 17.59)])
def test_parameter_counts_are_the_published_ones(spec, hidden, millions):
    with torch.device('meta'): decoder = GraphHypernetwork(spec, hidden=hidden)
    assert count_parameters(decoder) == pytest.approx(millions*1e6, rel=.02)


def test_tile_layers_have_the_published_widths():
    h, tile = 3, 16
    by_hand = (2*h*8*h + 8*h) + (8*h*16*h + 16*h) + (16*h*tile**2 + tile**2)
    assert count_parameters(TileDecoder(h, tile)) == by_hand


@pytest.mark.parametrize('spec, tile', [(HUMANOID, 256), (WALKER, 128), (PolicySpec(87, 8, (128, 128)), 128), (PolicySpec(17, 6), 64), (SMALL, 8), (PolicySpec(64, 6), 64), (PolicySpec(65, 6), 128)])
def test_tile_is_the_smallest_power_of_two_that_covers(spec, tile):
    assert smallest_tile(spec) == tile


def test_nodes_follow_the_computation():
    assert node_shapes(SMALL) == ((5, 6), (1, 6), (6, 6), (1, 6), (6, 2), (1, 2))


def test_batch_equals_one_at_a_time():
    torch.manual_seed(0)
    decoder, z = GraphHypernetwork(SMALL, hidden=4), torch.randn(7, 4, 4, 4)
    torch.testing.assert_close(decoder(z), torch.cat([decoder(one[None]) for one in z]))


def test_row_is_cut_from_tiles_and_bias_rows():
    torch.manual_seed(0)
    decoder, z = GraphHypernetwork(SMALL, hidden=4), torch.randn(3, 4, 4, 4)
    x = decoder.nodes(z)
    for k, (W, b) in enumerate(unpack(SMALL, decoder(z))):
        torch.testing.assert_close(W, decoder.matrices(x[:, 2*k])[:, :W.shape[1], :W.shape[2]])
        torch.testing.assert_close(b, decoder.biases(x[:, 2*k + 1])[:, :b.shape[1]])


def test_only_h_directions_of_a_latent_reach_the_weights():
    "One code of h numbers for all nodes, as in the authors' code; with a code for each of six nodes 18 do."
    torch.manual_seed(0)
    z = torch.randn(4, 4, 4, dtype=torch.double)
    for shared, most in ((True, 3), (False, 18)):
        decoder = GraphHypernetwork(SMALL, hidden=3, shared_code=shared).double()
        J = torch.autograd.functional.jacobian(lambda z: decoder(z[None])[0], z).flatten(1)
        assert most - 2 < torch.linalg.matrix_rank(J) <= most  # a dead neuron may cost one


def test_nodes_share_the_latent_s_code():
    "By hand: before the walks a node is its shape's code beside W z + b, the same for all."
    torch.manual_seed(0)
    decoder, z = GraphHypernetwork(SMALL, hidden=3), torch.randn(2, 4, 4, 4)
    seen = []
    decoder.graph.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    decoder.nodes(z)
    code = decoder.after(z).flatten(1)@decoder.latent_code.weight.T + decoder.latent_code.bias
    torch.testing.assert_close(seen[0][..., 3:], code[:, None].expand(2, 6, 3))
    assert decoder.latent_code.weight.shape == (3, 64)


def test_each_walk_moves_information_one_way():
    torch.manual_seed(0)
    graph, x = GatedGraph(8), torch.randn(2, 5, 8)
    other = x.clone(); other[:, 2] += 1
    forward = [torch.stack(graph.walk(v.unbind(1), [0, 1, 2, 3, 4]), 1) for v in (x, other)]
    changed = (forward[0] - forward[1]).abs().amax((0, 2))
    assert (changed[:2] == 0).all() and (changed[2:] > 0).all()
    assert ((graph(x) - graph(other)).abs().amax((0, 2)) > 0).all()


def test_one_update_is_a_gru_step_by_hand():
    torch.manual_seed(0)
    graph, x = GatedGraph(4), torch.randn(1, 2, 4)
    second = graph.walk(x.unbind(1), [0, 1])[1]
    (Wr, Wz, Wn), (Ur, Uz, Un) = graph.update.weight_ih.chunk(3), graph.update.weight_hh.chunk(3)
    (br, bz, bn), (cr, cz, cn) = graph.update.bias_ih.chunk(3), graph.update.bias_hh.chunk(3)
    m, h = graph.message(x[:, 0]), x[:, 1]
    r, u = torch.sigmoid(m@Wr.T + br + h@Ur.T + cr), torch.sigmoid(m@Wz.T + bz + h@Uz.T + cz)
    torch.testing.assert_close(second, (1 - u)*torch.tanh(m@Wn.T + bn + r*(h@Un.T + cn)) + u*h)


def test_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    decoder = GraphHypernetwork(SMALL, hidden=8)
    decoder(torch.randn(16, 4, 4, 4)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_other_latent_shapes_and_depths():
    spec = PolicySpec(5, 2, (6, 6, 6))
    assert GraphHypernetwork(spec, latent_shape=(2, 3, 5), hidden=4)(torch.zeros(3, 2, 3, 5)).shape == (3, spec.n_params)


def test_small_tile_is_refused():
    with pytest.raises(ValueError, match='tile is 4: expected at least 6'): GraphHypernetwork(SMALL, tile=4)


def test_normaliser_decoder():
    decoder = NormaliserDecoder((4, 4, 4), 17)
    assert decoder(torch.zeros(3, 4, 4, 4)).shape == (3, 2, 17)
    assert count_parameters(decoder) == (64*64 + 64) + (64*64 + 64) + (64*34 + 34)
