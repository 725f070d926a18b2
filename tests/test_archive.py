"The archive, checked against pyribs, against slow code that is plainly right, and against bad files."
import json
from dataclasses import replace

import numpy as np
import pytest
from ribs.archives import GridArchive
from safetensors.numpy import load_file, save_file

from policydiffusion.archive import (ROWS, TENSORS, Archive, alive, alive_coverage, cdf, coverage, empty_grid,
                                     synthetic_archive, plot_heatmap, project, qd_score, to_bytes, to_half)
from policydiffusion.policy import PolicySpec


@pytest.fixture
def hand() -> Archive:
    "Three cells in a row; the last policy lies on the upper edge and the first two share a cell."
    return Archive('walker2d', PolicySpec(1, 1, ()), params=[[1, 2], [3, 4], [5, 6]], objective=[10, 30, 5], measures=[[.1], [.2], [1.]],
                   length=[1000, 500, 900], obs_mean=[0], obs_std=[1], dims=(3,), reward_offset=-2., meta={'seed': 7})


@pytest.fixture
def toy() -> Archive: return synthetic_archive(n=500, dims=(9, 7), seed=3)


# ---- counting

def test_hand_worked(hand):
    assert hand.cells().tolist() == [0, 0, 2]
    assert coverage(hand) == pytest.approx(2/3)
    assert alive(hand).tolist() == [True, False, True]
    assert alive_coverage(hand) == pytest.approx(2/3)
    assert alive_coverage(hand.select([1])) == 0
    assert qd_score(hand) == (30 + 2*500) + (5 + 2*900)
    assert cdf(hand, [0, 5, 6, 30, 31]) == pytest.approx([2/3, 2/3, 1/3, 1/3, 0])
    assert hand.elites().objective.tolist() == [30, 5]


def test_insertion_agrees_with_a_pyribs_archive_filled_one_by_one(toy):
    theirs = GridArchive(solution_dim=toy.spec.n_params, dims=toy.dims, ranges=[(0, 1)]*2, solution_dtype=np.float32)
    for params, objective, measures in zip(toy.params, toy.objective, toy.measures):
        theirs.add_single(params, float(objective), measures)
    order = np.argsort(theirs.data('index'))
    ours = toy.elites()
    ours = ours.select(np.argsort(ours.cells()))
    np.testing.assert_array_equal(ours.params, theirs.data('solution')[order])
    np.testing.assert_array_equal(ours.cells(), theirs.data('index')[order])
    assert coverage(toy) == pytest.approx(float(theirs.stats.coverage))


def test_qd_score_agrees_with_pyribs_when_every_episode_is_full(toy):
    full = replace(toy, length=np.full(len(toy), 1000.), reward_offset=-1.4)
    theirs = GridArchive(solution_dim=(), dims=toy.dims, ranges=[(0, 1)]*2, qd_score_offset=-1400.)
    theirs.add(np.arange(len(toy)), toy.objective, toy.measures)
    assert qd_score(full) == pytest.approx(float(theirs.stats.qd_score), rel=1e-6)


def test_grid_rebuilt_from_elites_is_the_same(toy):
    again = toy.elites().elites()
    np.testing.assert_array_equal(np.sort(again.cells()), np.unique(toy.cells()))
    assert qd_score(again) == pytest.approx(qd_score(toy))


@pytest.mark.parametrize('cells', [10, 32, 50, 100])
def test_borders_in_single_precision_belong_to_the_upper_cell(cells):
    borders = (np.arange(cells + 1)/cells).astype(np.float32)[:, None]
    expected = np.minimum(np.arange(cells + 1), cells - 1)  # exactly 1 belongs to the last cell
    assert empty_grid((cells,)).index_of(borders).tolist() == expected.tolist()


def test_projection_is_the_best_over_the_other_measures():
    ant = synthetic_archive('ant', n=900, dims=(3, 4, 5, 6))
    best = np.full(ant.dims, -np.inf)
    for cell, objective in zip(zip(*np.unravel_index(ant.cells(), ant.dims)), ant.objective):
        best[cell] = max(best[cell], objective)
    flat = project(ant, (1, 3)).elites()
    drawn = np.full((4, 6), -np.inf)
    drawn.flat[flat.cells()] = flat.objective
    np.testing.assert_array_equal(drawn, best.max((0, 2)))


@pytest.mark.parametrize('task, dims', [('walker2d', (5, 4)), ('ant', (3, 4, 5, 6))])
def test_heatmap_shows_each_cell_once(task, dims):
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    a = synthetic_archive(task, dims=dims)
    fig, ax = plt.subplots()
    plot_heatmap(a, ax, cbar=None)
    drawn = ax.collections[0].get_array()  # (y, x), masked where empty
    flat = project(a).elites()
    x, y = np.unravel_index(flat.cells(), dims[:2])
    assert drawn.count() == len(flat)
    np.testing.assert_allclose(np.asarray(drawn).reshape(dims[1], dims[0])[y, x], flat.objective, rtol=1e-6)
    plt.close(fig)


# ---- files

def test_file_brings_everything_back(hand, tmp_path):
    hand.save(tmp_path/'a.safetensors')
    back = Archive.load(tmp_path/'a.safetensors', task='walker2d')
    for name in TENSORS: np.testing.assert_array_equal(getattr(back, name), getattr(hand, name), err_msg=name)
    for name in ('task', 'spec', 'dims', 'horizon', 'reward_offset', 'meta'): assert getattr(back, name) == getattr(hand, name)
    assert load_file(tmp_path/'a.safetensors')['params'].dtype == np.float16
    assert load_file(tmp_path/'a.safetensors')['obs_std'].dtype == np.float32


def test_weights_are_rounded_as_to_half_says(toy, tmp_path):
    fine = replace(toy, params=toy.params + 1e-3*np.random.default_rng(0).normal(size=toy.params.shape))
    back = Archive.load(fine.save(tmp_path/'a.safetensors'))
    np.testing.assert_array_equal(back.params, to_half(fine.params))
    assert np.abs(back.params/fine.params - 1).max() <= 2**-11 + 1e-6


def test_bytes_bring_back_what_they_were_given_exactly(toy, tmp_path):
    rounded, limits = to_bytes(toy.params)
    step = np.ptp(toy.params, 0)/255
    assert (np.abs(rounded - toy.params) <= step*.5001 + 1e-7).all() and (rounded.min(0) == toy.params.min(0)).all()
    part = replace(toy, params=rounded, limits=limits).select(slice(3, 90))  # which may not reach the limits
    back = Archive.load(part.save(tmp_path/'a.safetensors'))
    np.testing.assert_array_equal(back.params, part.params)
    np.testing.assert_array_equal(Archive.load(back.save(tmp_path/'b.safetensors')).params, part.params)
    assert load_file(tmp_path/'a.safetensors')['params'].dtype == np.uint8 and back.limits.shape == (2, toy.spec.n_params)
    assert back.coarsen((3, 2)).limits is back.limits


def test_an_older_file_still_loads(toy, tmp_path):
    path = toy.save(tmp_path/'a.safetensors')
    with open(path, 'rb') as f: head = json.loads(f.read(int.from_bytes(f.read(8), 'little')))
    assert json.loads(head['__metadata__']['policydiffusion'])['format_version'] == 1
    assert Archive.load(path).limits is None


@pytest.mark.parametrize('change, says', [
    (lambda t, m: t.pop('limits'), 'lacks limits'),
    (lambda t, m: t.update(limits=t['limits'][:, 1:].copy()), 'expected bytes, and a lowest and a highest value'),
    (lambda t, m: t.update(limits=t['limits'][::-1].copy()), 'expected bytes, and a lowest and a highest value'),
    (lambda t, m: t.update(params=t['params'].astype(np.float16)), 'has params float16'),
])
def test_unsound_bytes_are_refused(toy, tmp_path, change, says):
    rounded, limits = to_bytes(toy.params)
    path = replace(toy, params=rounded, limits=limits).save(tmp_path/'a.safetensors')
    rewrite(path, change)
    with pytest.raises(ValueError, match=says): Archive.load(path)


def test_coarse_cells_hold_the_best_of_their_fine_ones(toy):
    coarse = toy.coarsen((3, 7))
    best = {}
    for m, f in zip(toy.measures, toy.objective):
        cell = (min(int(m[0]*3 + 1e-5), 2), min(int(m[1]*7 + 1e-5), 6))
        best[cell] = max(best.get(cell, -np.inf), f)
    assert coarse.dims == (3, 7) and sorted(coarse.objective.tolist()) == sorted(np.float32(list(best.values())).tolist())
    assert toy.elites().coarsen((3, 7)).objective.sum() == coarse.objective.sum()  # every third border of 9 is one of 3


def test_tiny_obs_std_survives(hand, tmp_path):
    a = replace(hand, obs_std=[1e-8])
    assert Archive.load(a.save(tmp_path/'a.safetensors')).obs_std == np.float32(1e-8)


def test_a_normaliser_per_policy_follows_its_policy(hand, tmp_path):
    a = replace(hand, obs_mean=[[1], [2], [3]], obs_std=[[4], [5], [6]])
    back = Archive.load(a.save(tmp_path/'a.safetensors')).select([2, 0])
    assert back.obs_mean.tolist() == [[3], [1]] and back.obs_std.tolist() == [[6], [4]]
    assert hand.select([2, 0]).obs_mean.tolist() == [0]


def test_select_keeps_rows_together(hand):
    picked = hand.select([2, 0])
    for name in ROWS: np.testing.assert_array_equal(getattr(picked, name), getattr(hand, name)[[2, 0]])
    assert len(hand.select(np.zeros(3, bool))) == 0 and coverage(hand.select([])) == 0


# ---- bad input: one sentence that names the file or value and what was expected

def refusal(call, kind=ValueError) -> str:
    with pytest.raises(kind) as info: call()
    message = str(info.value)
    assert '\n' not in message and 'expected' in message
    return message


def test_missing_file(tmp_path):
    assert 'none.safetensors does not exist' in refusal(lambda: Archive.load(tmp_path/'none.safetensors'), FileNotFoundError)


@pytest.mark.parametrize('keep', [0, 5, 200, -1])
def test_truncated_file(toy, tmp_path, keep):
    path = toy.save(tmp_path/'cut.safetensors')
    path.write_bytes(path.read_bytes()[:keep])
    assert 'cut.safetensors is truncated' in refusal(lambda: Archive.load(path))


def test_foreign_file(tmp_path):
    save_file({'params': np.zeros((2, 2), np.float32)}, tmp_path/'foreign.safetensors')
    with pytest.raises(ValueError, match='foreign.safetensors was not written by policydiffusion'): Archive.load(tmp_path/'foreign.safetensors')


def test_file_of_another_task(hand, tmp_path):
    path = hand.save(tmp_path/'a.safetensors')
    assert "a.safetensors is an archive of 'walker2d': expected 'ant'" in refusal(lambda: Archive.load(path, 'ant'))


def rewrite(path, change):
    "Change the tensors or the header of a file in place, as a careless tool might."
    from safetensors import safe_open
    with safe_open(path, framework='numpy') as f: meta = json.loads(f.metadata()['policydiffusion'])
    tensors = load_file(path)
    del meta['checksum']  # as in files of older versions
    change(tensors, meta)
    save_file(tensors, path, metadata={'policydiffusion': json.dumps(meta)})


def spoil(name, value):
    def change(tensors, meta): tensors[name][0] = value
    return change


@pytest.mark.parametrize('change, says', [
    (spoil('objective', np.nan), "tensor 'objective' holds values that are not finite"),
    (spoil('params', np.inf), "tensor 'params' holds values that are not finite"),
    (spoil('measures', 1.5), 'measures lie outside [0, 1] in 1 of 3 policies'),
    (spoil('measures', -.1), 'measures lie outside [0, 1]'),
    (spoil('obs_std', 0), 'obs_std holds values that are not positive'),
    (lambda t, m: t.update(measures=np.zeros((3, 2), np.float32)), 'measures has shape (3, 2): expected (3, 1)'),
    (lambda t, m: t.update(params=np.zeros((3, 9), np.float16)), 'params has shape (3, 9): expected (3, 2)'),
    (lambda t, m: t.update(length=np.zeros(2, np.float32)), 'length has shape (2,): expected (3,)'),
    (lambda t, m: t.pop('length'), 'lacks length'),
    (lambda t, m: m.pop('spec'), 'lacks spec'),
    (lambda t, m: m.update(kind='latents'), "is of kind 'latents': expected kind 'archive'"),
    (lambda t, m: m.update(format_version=99), 'has format version 99: expected 1 or 2'),
    (lambda t, m: m.update(dims=[]), 'expected at least one cell along every measure'),
    (lambda t, m: m.update(dims=[3.5]), 'dims is [3.5]: expected at least one cell along every measure, in whole numbers'),
    (lambda t, m: m.update(dims=[10**9]), 'expected at most 5000000 cells'),
    (lambda t, m: m.update(horizon=0), 'horizon is 0: expected a whole number of steps'),
    (lambda t, m: m.update(horizon=True), 'horizon is True: expected a whole number of steps'),
    (lambda t, m: m.update(reward_offset=np.nan), 'reward_offset is nan: expected a finite number'),
    (lambda t, m: m.update(task=5), 'task is 5: expected a name'),
    (lambda t, m: m.update(meta=[1]), 'meta is no dictionary'),
    (lambda t, m: m.update(wings=2), 'wings'),
    (lambda t, m: m['spec'].update(obs_size=1.5), 'PolicySpec.obs_size is 1.5: expected a whole number'),
    (spoil('length', -1), 'expected steps between 0 and the horizon, 1000'),
    (spoil('length', 1001), 'expected steps between 0 and the horizon, 1000'),
    (lambda t, m: t.update({k: t[k][:0] for k in ROWS}), 'it has no rows'),
])
def test_unsound_file_is_refused_by_name(hand, tmp_path, change, says):
    path = hand.save(tmp_path/'a.safetensors')
    rewrite(path, change)
    message = refusal(lambda: Archive.load(path))
    assert says in message and 'a.safetensors' in message


def test_another_robots_name_is_refused(tmp_path):
    path = synthetic_archive('ant', 5, spec=PolicySpec(27, 8)).save(tmp_path/'a.safetensors')
    rewrite(path, lambda t, m: m.update(task='humanoid'))
    message = refusal(lambda: Archive.load(path))
    assert "task is 'humanoid', but policies of 27 observations and 8 actions fit ant: expected 244 observations and 17 actions" in message


@pytest.mark.parametrize('where', ['weights', 'description'])
def test_a_changed_byte_is_noticed(toy, tmp_path, where):
    path = toy.save(tmp_path/'a.safetensors')
    data = bytearray(path.read_bytes())
    at = len(data) - 9 if where == 'weights' else data.index(b'walker2d') + 1
    data[at] ^= 1
    path.write_bytes(data)
    assert 'a.safetensors was changed after it was written' in refusal(lambda: Archive.load(path))


def test_saved_twice_is_the_same_to_the_byte(toy, tmp_path):
    once, again = (toy.save(tmp_path/name).read_bytes() for name in ('a.safetensors', 'b.safetensors'))
    assert once == again == Archive.load(tmp_path/'a.safetensors').save(tmp_path/'c.safetensors').read_bytes()


def test_messages_quote_little_of_a_file(hand, tmp_path):
    for meta in ({'kind': 'x'*10**5}, {'kind': 'archive', 'format_version': 1, 'task': 'y'*10**5}, {'kind': 'archive', 'format_version': 'z'*10**5}):
        save_file({'params': np.zeros((2, 2), np.float32)}, tmp_path/'long.safetensors', metadata={'policydiffusion': json.dumps(meta)})
        assert len(refusal(lambda: Archive.load(tmp_path/'long.safetensors', 'ant'))) < 500


@pytest.mark.parametrize('text', ['[' * 10**5 + ']' * 10**5, '9' * 10**4, '{'])
def test_json_that_nobody_can_read(tmp_path, text):
    save_file({'params': np.zeros((2, 2), np.float32)}, tmp_path/'deep.safetensors', metadata={'policydiffusion': text})
    assert 'deep.safetensors is truncated or not a safetensors file' in refusal(lambda: Archive.load(tmp_path/'deep.safetensors'))


@pytest.mark.parametrize('dtype, size', [('BF16', 2), ('F8_E4M3', 1), ('C64', 8)])
def test_types_that_numpy_lacks(tmp_path, dtype, size):
    import struct
    head = json.dumps({'x': {'dtype': dtype, 'shape': [2], 'data_offsets': [0, 2*size]}}).encode()
    (tmp_path/'odd.safetensors').write_bytes(struct.pack('<Q', len(head)) + head + bytes(2*size))
    message = refusal(lambda: Archive.load(tmp_path/'odd.safetensors'))
    assert f"odd.safetensors is truncated or not a safetensors file of ours (tensor 'x' is of type {dtype}" in message


def test_a_full_disk_names_the_file(toy, tmp_path):
    import resource, signal
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try: message = refusal(lambda: toy.save(tmp_path/'a.safetensors'), OSError)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits); signal.signal(signal.SIGXFSZ, ignored)
    assert 'a.safetensors could not be written' in message and "of kind 'archive'" in message and not list(tmp_path.iterdir())


def test_unsound_rows_are_refused_before_any_file(hand):
    assert 'params has shape (3, 3)' in refusal(lambda: replace(hand, params=np.zeros((3, 3))))
    assert 'measures has shape (3, 1)' in refusal(lambda: replace(hand, dims=(3, 3)))
    assert 'objective holds values that are not finite' in refusal(lambda: replace(hand, objective=[1, np.nan, 2]))


def test_weight_too_large_for_the_file_leaves_no_file(hand, tmp_path):
    huge = replace(hand, params=hand.params*1e6)
    assert '65504' in refusal(lambda: huge.save(tmp_path/'a.safetensors'))
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_file_and_no_other(hand, tmp_path, monkeypatch):
    path = hand.save(tmp_path/'a.safetensors')
    before = path.read_bytes()
    monkeypatch.setattr('policydiffusion.core.save_file', lambda tensors, tmp, metadata: (tmp.write_bytes(b'half'), 1/0))
    with pytest.raises(ZeroDivisionError): hand.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
