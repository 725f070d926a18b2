"""Slides of the chapters whose cells carry tags (`make slides`), with reveal.js beside them.

Tags survive nbdev_clean: `slide` begins a slide (a text, or a code cell), `slide-code` puts a code
cell with its output on the slide, `slide-output` its output alone. Of a text the slide shows the
first heading, two sentences, formulas and lists; all of it stands in the speaker's notes (key S).
"""
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat.v4 import new_markdown_cell
from traitlets.config import Config

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent/'book'))
from formulas import mathml  # noqa: E402

TAGS = {'slide', 'slide-code', 'slide-output'}
INDEX = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Slides</title>{}</html>'


def tags(cell) -> set: return set(cell['metadata'].get('tags', [])) & TAGS


def formulas(text: str) -> str:
    "Formulas as MathML, so that no script needs to be fetched; code is left alone."
    def drawn(found):
        if found['code']: return found['code']
        tex, block = found['block'] or found['inline'], bool(found['block'])
        return re.sub(r'\s*\n\s*', ' ', mathml(tex, block))
    code, block = r'(?P<code>`+[^`]*`+)', r'\$\$(?P<block>.+?)\$\$'
    return re.sub(rf'{code}|{block}|\$(?P<inline>[^$]+)\$', drawn, text, flags=re.S)


def shown(text: str) -> str:
    "What the slide shows of a markdown cell: its first section, and a summary."
    begin = re.search(r'^#+ ', text, re.M)
    text = text[begin.start() if begin else 0:].split('\n## Exercises')[0]
    text = re.sub(r'^(#.*)$', r'\1\n', text, flags=re.M)
    kept, said = [], text.startswith('# ')  # a title and its contract line need no more
    for part in re.split(r'\n(?=[>*-] )|\n\n|(?<=\n)(?=\$\$)|(?<=\$\$)\n', text):
        part = part.strip()
        if not part: continue
        if kept and part[0] == '#' and 'Summary' not in part: break
        if not re.match(r'#|> |[*-] |\d\. |\$\$', part):
            if said: continue
            part, said = ' '.join(re.split(r'(?<=[.?!])(?<!al\.)\s', part)[:2]), True
        kept.append(part)
    return '\n\n'.join(kept)


def slide_cells(cell) -> list:
    "The cells that a tagged cell becomes: what is shown, and notes."
    kind = 'slide' if 'slide' in tags(cell) else '-'
    cell = nbformat.from_dict(cell | dict(metadata=dict(slideshow=dict(slide_type=kind))))
    if cell.cell_type == 'markdown':
        note = new_markdown_cell(formulas(cell.source))
        note.metadata.slideshow = dict(slide_type='notes')
        cell.source = formulas(shown(cell.source))
        return [cell, note]
    lines = [line for line in cell.source.split('\n') if not line.startswith('#|')]
    cell.source = '\n'.join(lines).strip('\n')
    return [cell]


def deck(notebook: Path):
    "The notebook that holds only slides; None if no cell is tagged."
    nb = nbformat.read(notebook, 4)
    chosen = [cell for cell in nb.cells if tags(cell)]
    nb.cells = [c for cell in chosen for c in slide_cells(cell)]
    for cell, old in zip([c for c in nb.cells if c.cell_type == 'code'],
                         [c for c in chosen if c.cell_type == 'code'], strict=True):
        if 'slide-code' not in tags(old): cell.metadata.tags = ['hide-code']
    return nb if chosen else None


def exporter() -> SlidesExporter:
    config = Config()
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_input_tags = {'hide-code'}
    template = dict(template_name='template', extra_template_basedirs=[str(HERE)])
    return SlidesExporter(config=config, exclude_input_prompt=True, exclude_output_prompt=True,
                          **template)


def write_slides(folder: Path, out: Path) -> list:
    "Write one page of slides for each notebook with tags, and an index; returns their names."
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(HERE/'reveal', out/'reveal', dirs_exist_ok=True)
    shutil.copy(HERE/'lecture.css', out/'reveal')
    decks = {p.stem: deck(p) for p in sorted(folder.glob('*.ipynb'))}
    decks, links = {name: nb for name, nb in decks.items() if nb}, []
    for name, nb in decks.items():
        title = nb.cells[0].source.split('\n')[0].lstrip('# ')
        html, _ = exporter().from_notebook_node(nb, dict(metadata=dict(name=title)))
        (out/f'{name}.html').write_text(html, encoding='utf-8')
        links.append(f'<li><a href="{name}.html">{title}</a></li>')
    (out/'index.html').write_text(INDEX.format(f"<h1>Slides</h1><ol>{''.join(links)}</ol>"))
    return list(decks)


if __name__ == '__main__':
    print(*write_slides(Path(sys.argv[1]), Path(sys.argv[2])), sep='\n')
