"The explorer: what a film keeps, who is asked, and the static page in a real browser."
import json
import shutil

import numpy as np
import pytest

from policydiffusion import explore
from policydiffusion.explore import (
    ROWS, Answer, Film, Robot, body_parts, describe, nearest_elite, pack_answer, pack_film,
    save_page, spread_requests, unpack_poses)
from policydiffusion.rollout import Trace
from policydiffusion.tasks import TASKS, body_segments, make_env


def turned(q, v):
    "v (..., 3) rotated by the unit quaternion q (w x y z), as a matrix product."
    w, x, y, z = q
    matrix = np.array([[1 - 2*(y*y + z*z), 2*(x*y - w*z), 2*(x*z + w*y)],
                       [2*(x*y + w*z), 1 - 2*(x*x + z*z), 2*(y*z - w*x)],
                       [2*(x*z - w*y), 2*(y*z + w*x), 1 - 2*(x*x + y*y)]])
    return v @ matrix.T


def some_film(task, seed=0, frames=30, fell=False):
    "A body at rest that slides forward and nods a little: nothing is simulated."
    import mujoco
    model = make_env(task).env.sys.mj_model
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    t = np.arange(frames)[:, None, None]/10
    pos = data.xpos[None, 1:] + t*[1., 0, 0] + np.sin(5*t + seed)*[0, 0, .05]
    rot = np.tile(data.xquat[1:], (frames, 1, 1))
    k = TASKS[task].n_measures
    bars = (np.random.default_rng(seed).random((k, frames)) < .5).astype(float)
    return Film(10., pos, rot, bars, bars.mean(1), 1.5, (frames - 1)/10, fell)


# ---- bodies and films

@pytest.mark.parametrize('task', TASKS)
def test_the_parts_are_the_capsules_that_the_other_camera_draws(task, monkeypatch):
    monkeypatch.setattr(explore, 'ASIDE', 0.)
    rng, env = np.random.default_rng(0), make_env(task)
    pos = rng.normal(size=(env.env.sys.num_links(), 3))
    rot = rng.normal(size=(len(pos), 4))
    rot /= np.linalg.norm(rot, axis=1, keepdims=True)
    for part, (ends, radius, _) in zip(body_parts(task), body_segments(env, pos, rot), strict=True):
        half, link = part['size'][1] if part['shape'] == 'capsule' else 0., part['link']
        own = turned(part['quat'], np.array([[0, 0, -half], [0, 0, half]])) + part['pos']
        np.testing.assert_allclose(turned(rot[link], own) + pos[link], ends, atol=2e-3)
        assert part['size'][0] == pytest.approx(radius, abs=1e-4)


def test_feet_carry_the_colours_of_their_measures():
    colours = [p['colour'] for p in body_parts('ant')]
    assert [colours.count(c) for c in explore.FOOT_COLOURS] == [1, 1, 1, 1]
    assert explore.colours('hopper') == [explore.FOOT_COLOURS[0], explore.OTHER_COLOUR]


def test_a_packed_film_comes_back_within_half_a_unit():
    rng = np.random.default_rng(0)
    pos = rng.normal(size=(50, 3, 3)).cumsum(0)*.5
    rot = rng.normal(size=(1, 3, 4)) + .05*rng.normal(size=(50, 3, 4)).cumsum(0)
    rot /= np.linalg.norm(rot, axis=2, keepdims=True)
    rot[20:] *= -1  # the same rotations, written the other way
    packed = pack_film(Film(25., pos, rot, np.zeros((2, 50)), np.zeros(2), 0., 2., False))
    p, q = unpack_poses(packed['pose'], packed['frames'])
    assert np.abs(p - pos).max() <= .5/1000 + 1e-9
    sign = np.where(np.arange(50) < 20, 1, -1)[:, None, None]
    assert np.abs(q - rot*sign).max() <= .5/4096 + 1e-9


def test_what_never_changes_costs_nearly_nothing():
    still = np.zeros((500, 10, 3)), np.ones((500, 10, 4))/2
    packed = pack_film(Film(25., *still, np.zeros((1, 1)), np.zeros(1), 0., 2., False))
    assert len(packed['pose']) < 400  # of 70,000 bytes


# ---- asking

@pytest.fixture(scope='module')
def walker(): return Robot('walker2d', seconds=.4)


@pytest.fixture
def traced(monkeypatch):
    "In place of the simulator: policy i of a call has its right foot down in its first i steps."
    calls = []
    def trace(task, spec, params, obs_mean, obs_std, horizon, seed, poses, batch):
        calls.append(dict(params=params, mean=obs_mean, horizon=horizon, batch=batch))
        n, links = len(params), make_env(task).env.sys.num_links()
        m = np.zeros((n, horizon, 2))
        m[..., 0] = np.arange(horizon) < np.arange(n)[:, None]
        pose = np.zeros((n, horizon, links, 3)), np.ones((n, horizon, links, 4))/2
        return Trace(None, None, m, np.ones((n, horizon)), np.ones((n, horizon), bool), *pose)
    monkeypatch.setattr(explore, 'trace', trace)
    return calls


def test_elite_and_draws_walk_in_one_call_of_fixed_shape(walker, traced):
    asked = [.3, .6]
    answer = walker.ask(asked, n=3, seed=5)
    (call,) = traced
    assert call['params'].shape == (ROWS, walker.archive.spec.n_params)
    assert call['horizon'] == 50 and call['batch'] == ROWS
    elite = walker.archive.params[((walker.archive.measures - asked)**2).sum(1).argmin()]
    drawn = walker.generator.generate(np.array([asked], np.float32), 3, 5)
    np.testing.assert_array_equal(call['params'][:4], np.concatenate([elite[None], drawn.params]))
    np.testing.assert_array_equal(call['mean'][0], walker.archive.obs_mean)
    did = [f.measures[0] for f in (answer.elite, *answer.generated)]
    assert did == pytest.approx([0, .02, .04, .06])
    miss = [np.hypot(.3 - x, .6) for x in (0, .02, .04, .06)]
    assert f'misses it by {miss[0]:.2f}' in answer.note
    assert f'3 generated policies by {np.mean(miss[1:]):.2f}.' in answer.note


def test_many_requests_share_calls(walker, traced):
    answers = explore.ask_measures(walker, np.array([[.2, .6], [.7, .3], [.5, .5]]), n=2, rows=4)
    (call,) = traced
    assert len(call['params']) == 12 and call['batch'] == 4  # nine walks, padded
    assert [len(a.generated) for a in answers] == [2, 2, 2]
    assert answers[1].elite.measures[0] == pytest.approx(3/50)  # the fourth row


@pytest.mark.parametrize('n', [0, ROWS])
def test_more_draws_than_rows_are_refused(walker, n):
    with pytest.raises(ValueError, match=f'n is {n}: expected 1 to 7 policies'):
        walker.ask([.5, .5], n=n)


def test_a_robot_without_words_says_so(walker, tmp_path):
    robot = Robot('walker2d')
    robot.words = tmp_path/'walker2d_text.safetensors'
    with pytest.raises(FileNotFoundError, match='expected a generator taught words'):
        robot.say('hop')


def test_the_nearest_elite_is_nearest(walker):
    row, far = nearest_elite(walker.archive, [.9, .1]), walker.archive.measures - [.9, .1]
    assert np.hypot(*far[row]) == np.hypot(*far.T).min()


def test_requests_lie_in_different_filled_cells(walker):
    points = spread_requests(walker.archive, 50)
    filled = {tuple(c[:-1]) for c in describe(walker)['cells']}
    cells = {tuple(c) for c in (points*walker.archive.dims).astype(int).tolist()}
    assert len(cells) == 50 and cells <= filled


def test_a_widget_answers_by_number_and_in_sentences(walker, traced):
    widget, sent = explore.Explorer('walker2d'), []
    widget.opened['walker2d'], widget.send = walker, sent.append
    assert [r['task'] for r in widget.robots] == list(TASKS)
    ask = dict(kind='ask', task='walker2d', measures=[.3, .6], n=2, seed=0)
    requests = [dict(kind='robot', task='walker2d'), ask, ask | dict(measures=[3, .6])]
    for i, request in enumerate(requests): explore.hear(widget, request | dict(id=i))
    assert [r['id'] for r in sent] == [0, 1, 2]
    assert sent[0]['content']['dims'] == [32, 32] and len(sent[1]['content']['generated']) == 2
    assert sent[2]['error'] == 'measures holds 3 in row 0: expected shares in [0, 1]'


# ---- the static page in a browser

NAMES = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = next((p for p in map(shutil.which, NAMES) if p), None)
browser_test = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here')
SOFTWARE = ['--no-sandbox', '--use-angle=swiftshader', '--enable-unsafe-swiftshader']


def some_answer(task, i, asked=None, text=None):
    films = [some_film(task, seed=10*i + j, fell=j == 1) for j in range(3)]
    return Answer(asked, text, films[0], films[1:], f'answer {i} of {task}')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A page of five robots with invented walks: a dozen requests each, and two sentences."
    shown = []
    for task in TASKS:
        robot = Robot(task)
        asked = [[round(float(x), 3) for x in p] for p in spread_requests(robot.archive, 12)]
        words = ['hop on one leg', 'go fast']
        own = dict(requests=asked, start=asked[0], draws=[1, 2], sentences=words)
        answers = [some_answer(task, i, a) for i, a in enumerate(asked)]
        answers += [some_answer(task, 12 + i, text=s) for i, s in enumerate(words)]
        shown.append((describe(robot) | own, [pack_answer(a) for a in answers]))
    return save_page(tmp_path_factory.mktemp('explorer'), shown)


@pytest.fixture(scope='module')
def launch():
    "Starts browsers, which end with the tests."
    sync = pytest.importorskip('playwright.sync_api')
    with sync.sync_playwright() as p:
        yield lambda args: p.chromium.launch(executable_path=CHROMIUM, args=args)


@pytest.fixture(scope='module')
def chromium(launch): return launch(SOFTWARE)


class Page:
    "The explorer in a tab, with all that it complained of."
    def __init__(self, browser, site, width=1280, height=900):
        self.tab = browser.new_page(viewport=dict(width=width, height=height))
        self.complaints, self.loaded = [], []
        self.tab.on('console', self.heard)
        self.tab.on('pageerror', lambda e: self.complaints.append(str(e)))
        self.tab.on('request', lambda r: self.loaded.append(r.url))
        self.tab.goto(site.as_uri())
        self.answered(1)

    def heard(self, message):  # a software renderer warns of its own slowness
        if message.type in ('error', 'warning') and 'GPU stall' not in message.text:
            self.complaints.append(message.text)

    def answered(self, n):
        there = f"document.querySelector('.pdx').dataset.answers == {n}"
        self.tab.wait_for_function(there, timeout=60_000)

    def status(self): return self.tab.inner_text('.pdx-status')

    def stages(self): return [s.screenshot() for s in self.tab.query_selector_all('.pdx-stage')]


@pytest.fixture
def page(chromium, site):
    page = Page(chromium, site)
    yield page
    page.tab.close()


@browser_test
def test_a_click_plays_the_nearest_request_and_fetches_nothing_from_elsewhere(page, site):
    robots = json.loads((site.parent/'robots.js').read_text().split(', ', 1)[1].rsplit(')', 1)[0])
    requests = np.array(next(r for r in robots if r['task'] == 'hopper')['requests'])
    assert page.status().startswith('Asked for {:.2f}, {:.2f}: '.format(*requests[0]))
    box = page.tab.query_selector('.pdx-map').bounding_box()
    left, top, side = 46, 8, box['width'] - 54  # the frame within the canvas
    page.tab.mouse.click(box['x'] + left + .8*side, box['y'] + top + .1*side)  # (.8, .9)
    page.answered(2)
    nearest = int(np.linalg.norm(requests - [.8, .9], axis=1).argmin())
    rows = page.tab.query_selector_all('.pdx-numbers tbody tr')
    did = [[c.inner_text() for c in row.query_selector_all('td')] for row in rows]
    answer = some_answer('hopper', nearest)
    shown = [requests[nearest], answer.elite.measures, answer.generated[0].measures]
    shown = np.array(shown).round(3)
    miss = [f'{np.linalg.norm(m - shown[0]):.2f}' for m in shown[1:]]
    assert did[:3] == [[f'{x:.2f}' for x in shown[:, k]] for k in (0, 1)] + [['', *miss]]
    assert page.status() == (
        f'Asked for {did[0][0]}, {did[1][0]}: the nearest policy of the archive '
        f'misses it by {miss[0]}, the generated policy by {miss[1]}.')
    assert all(url.startswith(('file:', 'data:')) for url in page.loaded) and not page.complaints


@browser_test
def test_what_the_browser_unpacks_is_what_was_recorded(page):
    film = some_film('ant', seed=3)
    script = """async film => {
        const f = await PolicyExplorer.readFilm(film);
        return [...f.pose, ...f.bars];
    }"""
    seen = page.tab.evaluate(script, pack_film(film))
    n = film.pos.size + film.rot.size
    pose = np.array(seen[:n]).reshape(len(film.pos), -1, 7)
    np.testing.assert_allclose(pose[..., :3], film.pos, atol=.0006)
    np.testing.assert_allclose(pose[..., 3:], film.rot, atol=.0002)
    np.testing.assert_array_equal(np.array(seen[n:]).reshape(film.bars.shape), film.bars*255)


@browser_test
def test_walks_move_until_they_are_paused(page):
    before = page.stages()
    page.tab.wait_for_timeout(700)
    assert all(a != b for a, b in zip(before, page.stages(), strict=True))
    page.tab.click('text=pause')
    page.tab.wait_for_timeout(200)
    before = page.stages()
    page.tab.wait_for_timeout(500)
    assert before == page.stages()


@browser_test
def test_all_robots_can_be_chosen(page):
    for i, task in enumerate(TASKS):
        page.tab.click(f'button[data-task={task}]')
        page.answered(i + 2)
        assert page.status().count(', ') == TASKS[task].n_measures
        assert task in page.tab.get_attribute('.pdx-map', 'aria-label')
        sliders = page.tab.query_selector_all('.pdx-slider input')
        assert len(sliders) == max(0, TASKS[task].n_measures - 2)
        assert page.tab.get_attribute('[data-task][aria-pressed=true]', 'data-task') == task
    assert not page.complaints


@browser_test
def test_sliders_and_axes_reach_all_four_measures_of_the_ant(page):
    page.tab.click('button[data-task=ant]')
    page.answered(2)
    page.tab.select_option('[aria-label="Measure to the right"]', label='foot 4 contact')
    sliders = page.tab.query_selector_all('.pdx-slider input')
    names = [s.get_attribute('aria-label') for s in sliders]
    assert names == ['foot 1 contact', 'foot 3 contact']
    page.tab.focus('.pdx-slider input')
    page.tab.keyboard.press('End')
    page.answered(3)
    assert page.status().startswith('Asked for ') and not page.complaints


@browser_test
def test_a_sentence_is_played_or_refused_in_a_sentence(page):
    page.tab.fill('[aria-label="Ask in words"]', 'please go very fast')
    page.tab.keyboard.press('Enter')
    page.answered(2)
    said = 'This page plays recorded sentences; nearest to yours is "go fast". answer 13 of hopper'
    assert page.status() == said
    page.tab.click('.pdx-known button:first-child')
    page.answered(3)
    assert page.status() == 'answer 12 of hopper'
    page.tab.fill('[aria-label="Ask in words"]', 'zzz')
    page.tab.keyboard.press('Enter')
    page.tab.wait_for_selector('.pdx-status:has-text("none has a word of yours")')


@browser_test
def test_several_draws_are_shown_together(page):
    page.tab.select_option('[aria-label="Policies to generate"]', '2')
    page.answered(2)
    assert page.tab.query_selector_all('.pdx-verdict')[1].inner_text().startswith('1 of 2 stay up')
    assert not page.complaints


@browser_test
def test_the_keyboard_is_enough(page):
    page.tab.focus('.pdx-map')
    before = page.tab.inner_text('.pdx-here')
    for key in ('ArrowUp', 'Shift+ArrowLeft', 'ArrowRight'): page.tab.keyboard.press(key)
    assert page.tab.inner_text('.pdx-here') != before
    page.tab.keyboard.press('Enter')
    page.answered(2)
    order = []
    for _ in range(30):
        page.tab.keyboard.press('Tab')
        order.append(page.tab.evaluate('''(({className, dataset, textContent}) =>
            className || dataset.task || textContent)(document.activeElement)'''))
    assert {'hopper', 'humanoid', 'pdx-map', 'pause', 'say it'} <= set(order)


WIDGET = """async ([module, about, answer]) => {
    const url = URL.createObjectURL(new Blob([module], {type: 'text/javascript'}));
    const {default: widget} = await import(url), sent = [], heard = [];
    const model = {
        get: name => ({robots: [{task: 'hopper', title: 'hopper'}], first: 'hopper'})[name],
        on: (name, back) => heard.push(back),
        send: request => {
            sent.push(request.kind);
            const reply = request.kind === 'say' ? {error: 'no words here'}
                : {content: JSON.parse(JSON.stringify(request.kind === 'robot' ? about : answer))};
            heard.forEach(back => back({id: request.id, ...reply}));
        },
    };
    const el = document.body.appendChild(document.createElement('div'));
    const close = widget.render({model, el});
    const until = async done => { while (!done()) await new Promise(r => setTimeout(r, 20)); };
    await until(() => el.querySelector('.pdx').dataset.answers === '1');
    el.querySelector('[aria-label="Ask in words"]').value = 'hop';
    el.querySelector('form').requestSubmit();
    await until(() => el.querySelector('.pdx-status').textContent === 'no words here');
    close();
    return sent;
}"""


@browser_test
def test_the_widget_speaks_with_its_kernel_by_messages(page, site):
    robots = json.loads((site.parent/'robots.js').read_text().split(', ', 1)[1].rsplit(')', 1)[0])
    about, answer = robots[0], pack_answer(some_answer('hopper', 0, robots[0]['start']))
    module = explore.static_text(*explore.PARTS, 'widget.js')
    page.tab.goto('about:blank')
    assert page.tab.evaluate(WIDGET, [module, about, answer]) == ['robot', 'ask', 'say']
    assert not page.complaints


@browser_test
def test_everything_has_a_name_for_a_screen_reader(page):
    bare = page.tab.evaluate("""
        [...document.querySelectorAll('.pdx :is(button, input, select, canvas)')]
        .filter(n => !(n.getAttribute('aria-label') || n.textContent.trim()))
        .map(n => n.outerHTML)""")
    assert bare == []
    assert page.tab.get_attribute('.pdx-status', 'aria-live') == 'polite'
    assert 'Arrow keys' in page.tab.get_attribute('.pdx-map', 'aria-label')
    assert 'walking: ' in page.tab.get_attribute('.pdx-stage', 'aria-label')


@browser_test
def test_a_phone_shows_it_without_scrolling_sideways(chromium, site):
    page = Page(chromium, site, width=390, height=844)
    for i, task in enumerate(TASKS):
        page.tab.click(f'button[data-task={task}]')
        page.answered(i + 2)
        assert page.tab.evaluate('document.documentElement.scrollWidth') <= 390
    stages = page.tab.query_selector_all('.pdx-stage')
    assert min(s.bounding_box()['width'] for s in stages) > 150
    page.tab.close()


@browser_test
def test_without_webgl_bodies_are_drawn_flat(launch, site):
    page = Page(launch(['--no-sandbox', '--disable-3d-apis']), site)
    before = page.stages()
    page.tab.wait_for_timeout(700)
    assert all(a != b for a, b in zip(before, page.stages(), strict=True))
    assert page.tab.evaluate("document.querySelector('.pdx-stage').getContext('2d') !== null")
