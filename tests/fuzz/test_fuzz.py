"The campaign's first 2,000 cases: no foreign exception, no nonsense, no hang, no gigabyte for a small file."
import campaign
import pytest

CASES = 2000
TRUSTING = {  # rooms and functions that trust their callers: tensors that do not fit end in the words of torch or NumPy
    'autoencoder', 'training', 'behaviour', 'baselines', 'compose', 'denoiser', 'diffusion', 'hypernetwork', 'batch_last',
    'language', 'metrics', 'tables', 'policy', 'rollout', 'search', 'pool', 'ppo', 'emitters', 'tasks', 'relabel', 'distil',
    'core.project_root', 'core.read_results', 'core.check_number', 'core.flush', 'core.is_running', 'core.remove_stale', 'generator.save_generator', 'importers.check_body',
    'explore', 'archive.byte_codes', 'archive.from_bytes', 'archive.to_bytes', 'archive.packed', 'archive.unpacked', 'archive.synthetic_archive', 'archive.project', 'archive.empty_grid', 'archive.cdf', 'archive.to_half',
    'archive.best_of_cvt', 'dataset.held_out', 'dataset.requests_between', 'generator.graph_hypernetwork', 'generator.normalisers', 'generator.check_request'}


@pytest.mark.parametrize('room', sorted(campaign.ROOMS))
def test_no_findings(room):
    tally = campaign.run(room, round(campaign.ROOMS[room][2]*CASES), campaign.Tally())
    found = {where: detail for where, detail in tally.findings.items() if room != 'calls' or not {where[1], where[1].split('.')[0]} & TRUSTING}
    assert not found, campaign.report(tally)


def test_the_campaign_can_fail():
    assert campaign.judge(lambda: [][0])[0] == 'finding' and campaign.judge(lambda: int('x'))[1].startswith('foreign ValueError')
    assert campaign.judge(lambda: campaign.gen.Sampling(eta=2))[0] == 'clean' and campaign.judge(lambda: 1, lambda x: 'nonsense')[0] == 'finding'


def test_a_hang_is_noticed(monkeypatch):
    monkeypatch.setattr(campaign, 'SECONDS', 1)
    def forever():
        while True: pass
    with pytest.raises(campaign.Hang):
        with campaign.watched(1): forever()
