"The campaign's first 2,000 cases: no foreign exception, no nonsense, no hang, no gigabyte for a small file."
import campaign
import pytest

CASES = 2000
@pytest.mark.parametrize('room', sorted(campaign.ROOMS))
def test_no_findings(room):
    tally = campaign.run(room, round(campaign.ROOMS[room][2]*CASES), campaign.Tally())
    assert not tally.findings, campaign.report(tally)


def test_functions_that_trust_their_callers_exist():
    from importlib import import_module
    for name in (name for names in campaign.TRUSTING.values() for name in names):
        room, _, function = name.partition('.')
        module = import_module(f'policydiffusion.{room}')
        assert not function or function in module.__all__, name


def test_the_campaign_can_fail():
    assert campaign.judge(lambda: [][0])[0] == 'finding' and campaign.judge(lambda: int('x'))[1].startswith('foreign ValueError')
    assert campaign.judge(lambda: campaign.gen.Sampling(eta=2))[0] == 'clean' and campaign.judge(lambda: 1, lambda x: 'nonsense')[0] == 'finding'


def test_a_hang_is_noticed(monkeypatch):
    monkeypatch.setattr(campaign, 'SECONDS', 1)
    def forever():
        while True: pass
    with pytest.raises(campaign.Hang):
        with campaign.watched(1): forever()
