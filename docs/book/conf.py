"The book (`make site`): the chapters with the outputs they hold, and the library from its source."
import sys
from configparser import ConfigParser
from pathlib import Path

BOOK = Path(__file__).parent
sys.path.insert(0, str(BOOK))
from chapters import prepare_page  # noqa: E402
from formulas import add_formulas  # noqa: E402
from library import write_api  # noqa: E402

ini = ConfigParser(delimiters=['='])
ini.read(BOOK.parents[1]/'settings.ini', encoding='utf-8')
about = ini['DEFAULT']
project, author, version = about['title'], about['author'], about['version']
copyright = f"{about['copyright']}, {about['license']}"

extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_merge_streams = True
nb_code_prompt_show = 'Show code'
nb_code_prompt_hide = 'Hide code'
root_doc = 'README'  # sources are the whole project, so that links between pages hold
include_patterns = ['*.md', 'docs/*.md', 'docs/api/*.md', 'nbs/**.ipynb']
exclude_patterns = ['.*', 'artifacts', 'build', 'data', 'figures', 'runs', 'site', '*.egg-info']
myst_enable_extensions = ['dollarmath', 'colon_fence', 'fieldlist']
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = 'mathml'
python_maximum_signature_line_length = 60
add_module_names = False
suppress_warnings = ['myst.header']  # a chapter may begin with a figure's heading

html_theme = 'sphinx_book_theme'
html_context = dict(default_mode='auto')  # light or dark, as the reader's system is
html_title = project
html_css_files = ['book.css']
html_favicon = 'static/icon.svg'
html_static_path = ['static']
html_theme_options = dict(
    repository_url=about['git_url'], repository_branch=about['branch'], use_repository_button=True,
    use_download_button=False, show_navbar_depth=1, collapse_navbar=True, show_toc_level=2,
    navbar_persistent=[],
    pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark')

FRONT = '<!doctype html><meta http-equiv="refresh" content="0; url=README.html"><title>{0}</title>'
MISSING = ('<!doctype html><meta charset="utf-8"><title>The explorer</title><p>This copy of the '
           'book was built without the explorer. <code>make explorer</code> records the walks '
           '(some minutes) and writes it here. <a href="../README.html">Back to the book</a>')


def finish(app, error):
    "The address of the folder opens the book, and the explorer's says how to make it."
    pages = {'index.html': FRONT.format(project), 'explorer/index.html': MISSING}
    for name, text in pages.items():
        path = Path(app.outdir)/name
        path.parent.mkdir(exist_ok=True)
        if name == 'index.html' or not path.exists(): path.write_text(text, encoding='utf-8')


def setup(app):
    write_api(Path(app.srcdir))
    add_formulas(app)
    app.connect('source-read', prepare_page)
    app.connect('build-finished', finish)
