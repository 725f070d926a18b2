"The book and the slides: what a page shows of a notebook, links, and both in a real browser."
import json
import re
import shutil
import sys
import threading
from configparser import ConfigParser
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT/'docs/book'), str(ROOT/'docs/slides')]
SITE = ROOT/'site'
built = pytest.mark.skipif(not (SITE/'README.html').exists(), reason='no book here: make site')
shown = pytest.mark.skipif(not (SITE/'slides/index.html').exists(), reason='no slides: make slides')
NAMES = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = next((p for p in map(shutil.which, NAMES) if p), None)
browser_test = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here')


# ---- from a notebook to a page

def folded(source, tags=()):
    from chapters import fold
    cell = dict(source=source, metadata=dict(tags=list(tags)) if tags else {})
    fold(cell)
    return cell['source'], cell['metadata'].get('tags', [])


def test_scaffolding_is_hidden_and_long_exports_are_folded():
    assert folded('#| export\nx = 1') == ('x = 1', [])
    assert folded('#| default_exp core') == ('', ['remove-cell'])
    assert folded('#| hide\nimport os') == ('import os', ['remove-cell'])
    guard = 'from policydiffusion.core import check_parameters\ncheck_parameters(globals())'
    assert folded(guard)[1] == ['remove-cell']
    assert folded('seed: int = 1', ['parameters'])[1] == ['parameters', 'hide-input']
    long = '\n'.join(f'x{i} = {i}' for i in range(20))
    assert folded('#| export\n' + long) == (long, ['hide-input'])
    assert folded(long) == (long, [])


def test_chapters_become_links_where_they_exist(tmp_path):
    from chapters import link_chapters
    (tmp_path/'17_search.ipynb').touch()
    assert link_chapters('see `17_search`', tmp_path) == 'see [`17_search`](17_search.ipynb)'
    for text in ('see `18_nothing`', '[`17_search`](x.ipynb)'):
        assert link_chapters(text, tmp_path) == text


def test_the_contents_name_every_chapter_once():
    from chapters import contents
    named = re.findall(r'^nbs/(\w+)$', contents(ROOT), re.M)
    assert sorted(named) == sorted(p.stem for p in (ROOT/'nbs').glob('*.ipynb'))


def test_an_index_stands_beside_its_accented_letter():
    from formulas import mathml
    flat = re.sub(r'\s', '', mathml(r'\bar\alpha_t + \sum_i \big[x\big]', block=True))
    assert flat.startswith('<mathdisplay="block"><msub><mover><mi>α</mi>')
    assert '<mi>t</mi></msub>' in flat and '<munder>' in flat  # a sum's index stays below


MODULE = '''"""A room."""

__all__ = ['f', 'LIMIT', 'K']

# %% ../nbs/10_policies.ipynb #aaaaaaaa
LIMIT = 3  # cells at *most*
def f(
    x: int,  # (n, k) measures
    *,
    deep: bool = False,  # whether to dig
) -> list:  # what was found
    "Find x."
    return [x]

# %% ../nbs/11_tasks.ipynb #bbbbbbbb
class K:
    "A class."
    def __init__(self,
        size: int,  # of it
    ): self.size = size

    def go(self,
        far: float = 1.,  # m
    ) -> float:  # where it is
        "Go."
        return far
'''


def test_a_page_of_the_library_says_what_the_source_says(tmp_path):
    from library import Module
    path = tmp_path/'room.py'
    path.write_text(MODULE)
    page = Module(path).page()
    for line in ('# room', 'A room.', ':::{py:data} LIMIT', ':value: 3', r'cells at \*most\*',
                 ':::{py:function} f(x: int, *, deep: bool=False) -> list', 'Find x.',
                 ':param x: (n, k) measures', ':param deep: whether to dig',
                 ':returns: what was found', '::::{py:class} K(size: int)', ':param size: of it',
                 ':::{py:method} go(far: float=1.0) -> float', ':param far: m',
                 ':returns: where it is'):
        assert line in page.split('\n'), line
    assert re.findall(r'^## From \[`(\w+)`', page, re.M) == ['10_policies', '11_tasks']


def test_the_pinned_packages_are_those_of_the_extra():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini')
    pins = (ROOT/'docs/book/requirements.txt').read_text().lower().split('\n')
    assert set(ini['DEFAULT']['site_requirements'].lower().split()) <= set(pins)


def test_the_workflow_runs_goals_that_exist():
    yaml = pytest.importorskip('yaml')
    flow = yaml.safe_load((ROOT/'.github/workflows/site.yml').read_text())
    runs = [s['run'] for j in flow['jobs'].values() for s in j['steps'] if 'run' in s]
    goals = re.search(r'^GOALS = (.*)', (ROOT/'Makefile').read_text(), re.M)[1].split()
    assert runs and {r.split()[1] for r in runs} <= set(goals)


# ---- solutions

SOLUTIONS = sorted((ROOT/'nbs/solutions').glob('*.ipynb'))


def exercises(number):
    "The exercises of a chapter: number to text."
    path = next((ROOT/'nbs').glob(f'{number}_*.ipynb'))
    text = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'])
    text = text.split('## Exercises')[1].split('\n## ')[0]
    return dict(re.findall(r'^(\d)\. (.*)', text, re.M))


@pytest.mark.parametrize('path', SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_answer_exercises_that_exist_and_are_not_open(path):
    cells = json.loads(path.read_text())['cells']
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    answered = re.findall(r'^## (\d\d)\.(\d): ', text, re.M)
    assert answered
    for chapter, k in answered:
        assert not re.match(r'\*(Open\.|\(open\))', exercises(chapter)[k]), f'{chapter}.{k}'
    assert not any('default_exp' in ''.join(c['source']) for c in cells)
    assert path.stat().st_size < 300_000


# ---- the pages as built

class Links(HTMLParser):
    "The addresses that a page names, and the places in it that can be named."
    def __init__(self, path):
        super().__init__()
        self.to, self.ids = [], set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs.get('id')}
        loads = tag in ('script', 'img', 'link', 'iframe') and attrs.get('rel') != 'canonical'
        self.to += [(a, loads) for a in (attrs.get('href'), attrs.get('src')) if a]


@pytest.fixture(scope='module')
def pages():
    others = {'explorer', '_static'}  # a page of its own, and the theme's templates
    paths = [p for p in SITE.rglob('*.html') if p.relative_to(SITE).parts[0] not in others]
    return {p: Links(p) for p in paths}


def broken(pages, path, address):
    "Whether an address within the site leads nowhere."
    name, _, place = address.partition('#')
    there = (path.parent/unquote(name).split('?')[0]).resolve() if name else path
    if there.is_dir(): there /= 'index.html'
    if not there.exists(): return True
    return bool(place) and there in pages and unquote(place) not in pages[there].ids


@built
def test_no_link_within_the_book_is_broken(pages):
    inside = [(p, a) for p, page in pages.items() for a, _ in page.to
              if not re.match(r'[a-z]+:', a) and a != '#']
    assert len(inside) > 1000
    assert not {(str(p.relative_to(SITE)), a) for p, a in inside if broken(pages, p, a)}


@built
def test_nothing_is_loaded_from_elsewhere(pages):
    assert not {a for page in pages.values() for a, loads in page.to
                if loads and re.match(r'(https?:)?//', a)}


@built
def test_every_chapter_and_module_has_its_page():
    chapters = {p.stem for p in (ROOT/'nbs').glob('*.ipynb')}
    assert chapters <= {p.stem for p in (SITE/'nbs').glob('*.html')}
    modules = {p.stem for p in (ROOT/'policydiffusion').glob('*.py') if p.stem[0] != '_'}
    assert modules <= {p.stem for p in (SITE/'docs/api').glob('*.html')}


# ---- in a browser

@pytest.fixture(scope='module')
def chromium():
    sync = pytest.importorskip('playwright.sync_api')
    with sync.sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def served():
    "The site as a web server shows it; the search reads its pages from there."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture
def visit(chromium, served):
    "Open a page; at the end nothing may have been complained of or fetched from elsewhere."
    complaints, loaded, tabs = [], [], []
    def open_page(name, width=1280, height=900, scheme='light'):
        tab = chromium.new_page(viewport=dict(width=width, height=height), color_scheme=scheme)
        tab.on('console', lambda m: m.type in ('error', 'warning') and complaints.append(m.text))
        tab.on('pageerror', lambda e: complaints.append(str(e)))
        tab.on('request', lambda r: loaded.append(r.url))
        tab.goto(served + name)
        tabs.append(tab)
        return tab
    yield open_page
    for tab in tabs: tab.close()
    assert not complaints
    assert all(url.startswith((served, 'data:')) for url in loaded)


def background(tab): return tab.evaluate('getComputedStyle(document.body).backgroundColor')


@built
@browser_test
def test_a_chapter_shows_code_outputs_and_formulas(visit):
    tab = visit('nbs/30_diffusion_from_zero.html')
    assert tab.inner_text('h1').startswith('Diffusion from zero')
    assert tab.locator('.cell_output img').count() >= 5 and tab.locator('math').count() > 20
    prose = ' '.join(tab.locator('article :is(p, li)').all_inner_texts())
    assert 'Gaussian' in prose and not re.search(r'\$|\\bar', prose)
    code = ' '.join(tab.locator('article pre').all_inner_texts())
    assert 'def q_sample' in code and '#| ' not in code and 'check_parameters' not in code


@built
@browser_test
def test_dark_is_dark_and_light_is_light(visit):
    seen = [background(visit('nbs/13_archive.html', scheme=s)) for s in ('light', 'dark')]
    light, dark = (sum(map(int, re.findall(r'\d+', c)[:3])) for c in seen)
    assert dark < 200 < 600 < light


@built
@browser_test
def test_the_search_finds_chapters_and_functions(visit):
    tab = visit('search.html?q=coverage')
    tab.wait_for_selector('#search-results li:nth-child(5)', timeout=60_000)
    found = tab.inner_text('#search-results')
    assert 'policydiffusion.archive.coverage' in found and 'Archives' in found


@built
@browser_test
@pytest.mark.parametrize('name', ['README', 'nbs/33_conditioning', 'docs/api/rollout'])
def test_a_phone_shows_a_page_without_scrolling_sideways(visit, name):
    tab = visit(f'{name}.html', width=390, height=844)
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390


# ---- slides

def test_a_slide_shows_a_heading_two_sentences_formulas_and_lists():
    from slides import shown
    text = ('Before.\n\n## Title\nOne. Two (Park et al. 2019). Three.\n$$x$$\n\nMore.\n* a\n* b\n\n'
            '## Summary\n* c\n\n## Exercises\n1. d')
    assert shown(text) == '\n\n'.join(['## Title', 'One. Two (Park et al. 2019).', '$$x$$', '* a',
                                       '* b', '## Summary', '* c'])
    assert shown('# T\n\n> Line\n\n**You will build** x.') == '# T\n\n> Line'


def test_tags_choose_what_is_shown(tmp_path):
    from slides import write_slides
    def code(source, text, *tags):
        output = dict(output_type='stream', name='stdout', text=text)
        return dict(cell_type='code', id=text, metadata=dict(tags=list(tags)), source=source,
                    execution_count=1, outputs=[output])
    md = dict(cell_type='markdown', id='m', metadata=dict(tags=['slide']), source='# Deck')
    cells = [md, code('show_me', 'first', 'slide-code'), code('hide_me', 'second', 'slide-output'),
             code('leave_out', 'third')]
    (tmp_path/'nbs').mkdir()
    nb = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path/'nbs/10_deck.ipynb').write_text(json.dumps(nb))
    assert write_slides(tmp_path/'nbs', tmp_path/'out') == ['10_deck']
    page = (tmp_path/'out/10_deck.html').read_text()
    there = [w in page for w in ('show_me', 'first', 'hide_me', 'second', 'leave_out', 'third')]
    assert there == [True, True, False, True, False, False]


def test_six_chapters_have_slides():
    from slides import deck
    decks = {p.stem for p in (ROOT/'nbs').glob('*.ipynb') if deck(p)}
    teaching = (ROOT/'docs/teaching.md').read_text(encoding='utf-8')
    assert len(decks) == 6 and all(f'{name}.ipynb' in teaching for name in decks)


@shown
@browser_test
@pytest.mark.parametrize('name', ['13_archive', '30_diffusion_from_zero', '33_conditioning'])
def test_every_slide_fits(visit, name):
    tab = visit(f'slides/{name}.html')
    tab.wait_for_function('window.Reveal && Reveal.isReady()')
    heights = tab.evaluate('''[...document.querySelectorAll('section > section')].map((s, i) =>
        { Reveal.slide(i); return s.scrollHeight; })''')
    assert len(heights) >= 8 and max(heights) <= 725
