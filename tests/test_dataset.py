"The data set's file: what comes back, and what is refused in one sentence that names it."
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from policydiffusion import core, dataset
from policydiffusion.archive import synthetic_archive
from policydiffusion.core import artifact_dir, load_tensors, save_tensors
from policydiffusion.dataset import (TENSOR_FIELDS, Dataset, filled_cells, load_dataset,
                                     load_reference, save_dataset, warn_if_far)
from policydiffusion.policy import PolicySpec


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(core, 'ARTIFACTS', tmp_path)
    a = synthetic_archive(n=6, spec=PolicySpec(4, 2, (3,)))
    data = Dataset('walker2d', a.spec, a.params, a.params.mean(0), a.params.std(0) + 1e-6, a.measures, a.objective, a.obs_mean, a.obs_std, np.ones((6, 5, 4), np.float32))
    return save_dataset(data, artifact_dir('laptop', 'walker2d')/'dataset.safetensors'), data


def test_everything_comes_back(file):
    path, data = file
    again = load_dataset('laptop', 'walker2d')
    for name in TENSOR_FIELDS: np.testing.assert_array_equal(getattr(again, name), getattr(data, name), err_msg=name)
    assert (again.task, again.spec) == (data.task, data.spec)


@pytest.mark.parametrize('change, says', [
    (lambda t, m: m.pop('task'), "lacks 'task'"), (lambda t, m: m.pop('spec'), "lacks 'spec'"), (lambda t, m: t.pop('obs'), "lacks 'obs'"), (lambda t, m: m.update(spec=5), 'PolicySpec is 5'),
    (lambda t, m: m.update(task='ant'), "is a data set of 'ant': expected 'walker2d'"), (lambda t, m: t.update(obs=t['obs'][:, :, :3]), r'obs has shape \(6, 5, 3\): expected \(6, 5, 4\)'),
    (lambda t, m: t.update({k: t[k][:0] for k in ('params', 'measures', 'objective', 'obs')}), r'params has shape \(0, 23\)'), (lambda t, m: t.update(obs_std=-t['obs_std']), 'not positive'),
    (lambda t, m: t.update(measures=t['measures'] + 1), r'measures lie outside \[0, 1\]'), (lambda t, m: t.update(mean=np.full(23, 1e300)), 'mean holds values that are not finite')])
def test_an_unsound_file_is_refused_by_name(file, change, says):
    path, _ = file
    tensors, meta = load_tensors(path)
    change(tensors, meta)
    save_tensors(path, tensors, meta)
    with pytest.raises(ValueError, match=says) as e: load_dataset('laptop', 'walker2d')
    assert str(e.value).startswith(str(path)) and '\n' not in str(e.value)


def test_a_file_that_is_not_there(file):
    with pytest.raises(FileNotFoundError, match='dataset.safetensors does not exist: expected a file of kind dataset'): load_dataset('night', 'ant')


@pytest.mark.parametrize('load', [load_dataset, load_reference])
def test_a_task_that_is_no_name(file, load):
    with pytest.raises(TypeError, match='^path is None: expected the name of a file$'):
        load('laptop', None)


@pytest.mark.parametrize('k', [2, 4])
def test_far_is_what_scipy_measures(k):
    rng = np.random.default_rng(0)
    done, asked = rng.random((40, k))*.6, rng.random((200, k)).astype(np.float32)
    filled = filled_cells(done, 32)
    assert len(filled) <= 40 and cdist(done, filled).min(1).max() <= k**.5/64 + 1e-6
    gap = cdist(asked, filled).min(1)
    says = f'{(gap > .2).sum()} of 200 requests.* by {gap.max():.2f}:'
    with pytest.warns(UserWarning, match=says):
        warn_if_far(asked, np.ones((200, k), bool), filled, .2)
