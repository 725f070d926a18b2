"Denoisers against torch, diffusers, the paper's parameter count, and one batch that must be learned by heart."
import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn
from torch.testing import assert_close

from policydiffusion.denoiser import (Conv3x3, Attention, ConditionEncoder, FourierFeatures, MiddleTransformer, ResBlock, ResidualDenoiser,
                                      UNet, time_embedding)
from policydiffusion.diffusion import cosine_schedule, diffusion_loss, sample

SCHEDULE = cosine_schedule()
PAPER = 9_868_444


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def count(module):
    return sum(p.numel() for p in module.parameters())


def awake(model):
    "Give the last layer, zero at the start, some weights, so that inputs show in the output."
    torch.manual_seed(0)
    nn.init.normal_(model.output_projection[-1].weight, std=.1)
    return model


def inputs(shape, k=2, b=3):
    t = torch.tensor([0, 300, 599])[:b]
    return torch.randn(b, *shape, generator=gen()), t, torch.rand(b, k, generator=gen(1)), torch.ones(b, k, dtype=torch.bool)


MODELS = {'unet': (lambda **how: UNet(base=32, **how), (4, 4, 4)), 'residual': (lambda **how: ResidualDenoiser(16, **({'cond_size': 2} | how)), (16,))}


# ---- parameter counts

def test_unet_has_the_paper_s_count():
    n = count(UNet())
    mask_inputs = 2*256
    assert n - mask_inputs == PAPER


@pytest.mark.parametrize('latent', (16, 24, 32))
def test_residual_denoiser_is_small(latent):
    assert 200_000 < count(ResidualDenoiser(latent, 2)) <= 300_000


# ---- parts against libraries

def test_time_embedding_is_the_library_s():
    t = torch.arange(0, 600, 37)
    assert_close(time_embedding(t, 64), get_timestep_embedding(t, 64, downscale_freq_shift=0), atol=1e-4, rtol=0)


def test_attention_is_torch_s():
    torch.manual_seed(0)
    ours = Attention(32, 24, 4)
    theirs = nn.MultiheadAttention(32, 4, kdim=24, vdim=24, batch_first=True)
    with torch.no_grad():
        for name in 'qkv': getattr(theirs, f'{name}_proj_weight').copy_(getattr(ours, dict(q='query', k='key', v='value')[name]).weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, tokens = torch.randn(2, 9, 32), torch.randn(2, 5, 24)
    assert_close(ours(x, tokens), theirs(x, tokens, tokens)[0], atol=1e-5, rtol=1e-4)


def test_attention_to_one_token_ignores_the_question():
    torch.manual_seed(0)
    attention, x, token = Attention(32, 24, 4), torch.randn(2, 9, 32), torch.randn(2, 1, 24)
    assert_close(attention(x, token), attention.out(attention.value(token)).expand(2, 9, 32))


def test_fourier_features_by_hand():
    cond, given = torch.tensor([[.25, .5]]), torch.tensor([[True, False]])
    r = 2**-.5
    assert_close(FourierFeatures(2)(cond, given), torch.tensor([[.25, 0, 1, 0, r, 1, r, 0, 0, 0, 0, 0]]), atol=1e-6, rtol=0)
    assert FourierFeatures(0)(cond, given).tolist() == [[.25, 0, 1, 0]]


def test_residual_block_adds():
    block = ResBlock(32, 32, 8)
    for p in block.second[-1].parameters(): nn.init.zeros_(p)
    x = torch.randn(2, 32, 4, 4)
    assert_close(block(x, torch.randn(2, 8)), x)


def test_middle_is_the_only_place_with_attention():
    attention = [name for name, m in UNet().named_modules() if isinstance(m, Attention)]
    assert attention == ['attend.self_attention', 'attend.cross_attention']
    assert sum(isinstance(m, MiddleTransformer) for m in UNet().modules()) == 1


# ---- behaviour of both networks

@pytest.mark.parametrize('name', MODELS)
def test_shapes_and_the_skip(name):
    make, shape = MODELS[name]
    x, t, cond, given = inputs(shape)
    out = make()(x, t, cond, given)
    assert out.shape == (3, {'unet': 1, 'residual': 2}[name]*shape[0], *shape[1:])
    eps = out[:, :shape[0]]
    noise = (1 - SCHEDULE.abar[t]).sqrt().float()
    assert_close(eps, x*noise.view(-1, *[1]*len(shape)))  # an untrained network copies, in the share of the noise
    assert (make(n_steps=0)(x, t, cond, given) == 0).all()  # plain noise prediction starts silent


@pytest.mark.parametrize('name', MODELS)
def test_what_is_not_given_does_not_matter(name):
    make, shape = MODELS[name]
    model = awake(make())
    x, t, cond, given = inputs(shape)
    given = given.clone()
    given[:, 1] = False
    out = model(x, t, cond, given)
    other = cond.clone()
    other[:, 1] = math.nan
    assert_close(model(x, t, other, given), out)
    other[:, 0] = cond[:, 0] + .3
    assert (model(x, t, other, given) - out).abs().max() > 1e-5  # what is given does matter
    zero = cond.clone()
    zero[:, 1] = 0.
    assert (model(x, t, zero, torch.ones_like(given)) - out).abs().max() > 1e-5  # "zero" is not "unknown"


@pytest.mark.parametrize('name', MODELS)
def test_time_matters_and_examples_do_not_mix(name):
    make, shape = MODELS[name]
    model = awake(make(n_steps=0))
    x, t, cond, given = inputs(shape)
    out = model(x, t, cond, given)
    assert (model(x, t.flip(0), cond, given) - out).abs().max() > 1e-5
    assert_close(model(x[1:2], t[1:2], cond[1:2], given[1:2]), out[1:2], atol=1e-5, rtol=1e-4)


def test_every_weight_learns_unless_attention_has_no_choice():
    model = awake(UNet(latent_shape=(4, 4, 4), base=32))
    model(*inputs((4, 4, 4))).square().mean().backward()
    idle = {name for name, p in model.named_parameters() if name != 'logvar' and p.grad.abs().max() < 1e-7}  # rounding leaves 1e-9
    assert model.logvar.grad is None  # the loss reads it, the network does not
    no_choice = {f'attend.{a}.{w}.weight' for a in ('self_attention', 'cross_attention') for w in ('query', 'key')}  # one place, one token
    assert idle == no_choice | {'attend.norms.1.weight', 'attend.norms.1.bias'}  # that norm feeds a query only
    model = awake(ResidualDenoiser(16, 2))
    model(*inputs((16,))).square().mean().backward()
    assert all(p.grad.abs().max() > 1e-7 for p in model.parameters())


@pytest.mark.parametrize('name, steps', (('unet', 40), ('residual', 60)))
def test_one_batch_is_learned_by_heart(name, steps):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    x0, cond = torch.randn(8, *shape, generator=gen()), torch.rand(8, 2, generator=gen(1))
    optimiser, losses = torch.optim.AdamW(model.parameters(), 1e-3), []
    for _ in range(steps):
        loss = diffusion_loss(model, SCHEDULE, x0, cond, vlb_weight=0., generator=gen(2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]/10


@pytest.mark.parametrize('name', MODELS)
def test_samples_are_named_by_their_seed(name):
    make, shape = MODELS[name]
    model = awake(make())
    draw = lambda seed: sample(model, SCHEDULE, (2, *shape), torch.rand(2, 2, generator=gen()), 'dpm', 3, guidance=1., generator=gen(seed))
    assert (draw(1) == draw(1)).all() and (draw(1) != draw(2)).any()


def test_other_sizes():
    x, t, cond, given = inputs((8, 8, 4), k=5)
    assert UNet((8, 8, 4), cond_size=5, base=32, mults=(1, 2))(x, t, cond, given).shape == (3, 8, 8, 4)
    x, t, cond, given = inputs((10,), k=384)
    assert ResidualDenoiser(10, 384, width=32, n_blocks=1, cond_freqs=0)(x, t, cond, given).shape == (3, 20)
    assert ResidualDenoiser(10, 384, width=32, n_blocks=1, cond_freqs=0, n_out=1)(x, t, cond, given).shape == (3, 10)


@pytest.mark.parametrize('side', [(1, 1), (2, 2), (1, 2), (3, 4)])
@pytest.mark.parametrize('stride', [1, 2])
def test_a_small_convolution_is_torch_s(side, stride):
    "Result and gradients."
    conv, x = Conv3x3(3, 5, stride), torch.randn(2, 3, *side, generator=gen()).requires_grad_()
    theirs = torch.nn.functional.conv2d(x, conv.weight, conv.bias, stride, padding=1)
    assert_close(conv(x), theirs, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(theirs.square().sum(), [x, conv.weight, conv.bias])
    for mine, their in zip(torch.autograd.grad(conv(x).square().sum(), [x, conv.weight, conv.bias]), wanted): assert_close(mine, their, atol=1e-4, rtol=1e-4)


def test_the_condition_can_enter_everywhere():
    "Switched off in the middle, it is still heard if every block hears it, and not otherwise."
    x, t, cond, given = inputs((4, 4, 4))
    for how, heard in (({}, False), ({'everywhere': True}, True), ({'everywhere': True, 'n_waves': 8}, True)):
        model = awake(UNet(base=32, **how))
        with torch.no_grad(): model.attend.cross_attention.out.weight.zero_()
        assert ((model(x, t, cond, given) - model(x, t, cond + .1, given)).abs().max() > 1e-6) == heard


def test_condition_encoder_is_two_layers():
    encode = ConditionEncoder(2, 16)
    cond, given = torch.rand(3, 2), torch.ones(3, 2, dtype=torch.bool)
    first, _, last = encode.net
    want = last(nn.functional.silu(first(torch.cat([cond, torch.ones(3, 2)], 1))))
    assert_close(encode(cond, given), want[:, None])


# ---- errors

@pytest.mark.parametrize('name, wanted', (('unet', r'expected \(b, 4, 4, 4\)'), ('residual', r'expected \(b, 16\)')))
def test_wrong_latent_shape(name, wanted):
    make, shape = MODELS[name]
    x, t, cond, given = inputs((5, *shape[1:]))
    with pytest.raises(ValueError, match=wanted):
        make()(x, t, cond, given)


@pytest.mark.parametrize('name', MODELS)
def test_wrong_condition(name):
    make, shape = MODELS[name]
    x, t, cond, given = inputs(shape)
    with pytest.raises(ValueError, match=r'cond has shape \(3, 1\).*expected both \(3, 2\)'):
        make()(x, t, cond[:, :1], given)
    with pytest.raises(ValueError, match=r'given \(3, 1\)'):
        make()(x, t, cond, given[:, :1])


@pytest.mark.parametrize('bad', (dict(latent_shape=(4, 6, 6)), dict(base=48)))
def test_unet_refuses_sizes_it_cannot_halve(bad):
    with pytest.raises(ValueError, match='divisible by 4 and base by 32'):
        UNet(**bad)
