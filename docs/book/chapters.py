"What a notebook's page leaves out, and the table of contents from the map of the course."
import json
import re
from pathlib import Path

LONG = 14  # lines; a longer exported cell is folded
CHAPTER = re.compile(r'(?<![\[/\w])`(\d\d_\w+)`(?!\])')


def tag(cell, name):
    cell['metadata'].setdefault('tags', []).append(name)


def fold(cell):
    "Drop nbdev's directives; hide what is scaffolding, fold what is long."
    lines = ''.join(cell['source']).split('\n')
    directives = [line for line in lines if line.startswith('#|')]
    lines = [line for line in lines if not line.startswith('#|')]
    cell['source'] = '\n'.join(lines).strip('\n')
    if '#| hide' in directives or not cell['source']: return tag(cell, 'remove-cell')
    if 'check_parameters(globals())' in lines: return tag(cell, 'remove-cell')
    settings = 'parameters' in cell['metadata'].get('tags', [])
    if settings or (directives and len(lines) > LONG): tag(cell, 'hide-input')


def link_chapters(text, folder):
    "`17_search` becomes a link where such a notebook exists."
    def link(found):
        there = (folder/f'{found[1]}.ipynb').exists()
        return f'[`{found[1]}`]({found[1]}.ipynb)' if there else found[0]
    return CHAPTER.sub(link, text)


def with_space(text):
    "Displayed formulas on lines of their own get the empty lines that Markdown wants around them."
    return re.sub(r'(?:^|\n)(\$\$.+?\$\$)(?=\n|$)', r'\n\n\1\n\n', text, flags=re.S)


def prepare_notebook(text, folder):
    nb = json.loads(text)
    for cell in nb['cells']:
        if cell['cell_type'] == 'code': fold(cell)
        else: cell['source'] = with_space(link_chapters(''.join(cell['source']), folder))
    return json.dumps(nb)


def toctree(caption, pages):
    lines = ['```{toctree}', ':hidden:', f':caption: {caption}', '', *pages, '```']
    return '\n'.join(lines)


def contents(root):
    "The front page's tables of contents: one a heading of docs/course.md, then the other pages."
    course = (root/'docs'/'course.md').read_text(encoding='utf-8')
    trees = []
    for part in course.split('\n## ')[1:]:
        pages = re.findall(r'\]\(\.\./(nbs/[\w/]+)\.ipynb\)', part)
        trees.append(toctree(part.split('\n')[0], pages))
    solutions = [f'nbs/solutions/{p.stem}' for p in sorted((root/'nbs/solutions').glob('*.ipynb'))]
    if solutions: trees.append(toctree('Solutions', solutions))
    others = sorted(p.stem for p in (root/'docs').glob('*.md'))
    about = [f'docs/{name}' for name in others] + ['CONTRIBUTING', 'CHANGELOG']
    trees.append(toctree('About', about))
    modules = [f'docs/api/{p.stem}' for p in sorted((root/'docs'/'api').glob('*.md'))]
    trees.append(toctree('Library', modules))
    return '\n\n'.join(trees)


def prepare_page(app, name, source):
    "Sphinx calls this with the text of every page."
    root = Path(app.srcdir)
    if name.startswith('nbs/'): source[0] = prepare_notebook(source[0], (root/name).parent)
    if name == app.config.root_doc: source[0] += '\n\n' + contents(root) + '\n'
