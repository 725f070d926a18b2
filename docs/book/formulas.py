"Formulas as MathML, which browsers draw themselves: no script, nothing to fetch."
import re
from html import unescape
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

XMLNS = ' xmlns="http://www.w3.org/1998/Math/MathML"'  # HTML needs none
SIZES = re.compile(r'\\[bB]ig+[lr]?(?![a-zA-Z])')  # of brackets: left to the browser
ENTITIES = re.compile(r'&(?!amp;|lt;|gt;)\w+;')  # XML knows but these three


def indices_beside(root):
    "Docutils puts the index of an accented letter below it: put it beside."
    for node in root.iter('munderover'):
        letter, index, accent = node
        if accent.get('stretchy') != 'false': continue
        node.tag, node[:] = 'msub', [ElementTree.Element('mover'), index]
        node[0][:] = [letter, accent]
    return root


def mathml(tex, block=False):
    "MathML of a formula."
    text = tex2mathml(SIZES.sub('', tex), as_block=block).replace(XMLNS, '')
    root = ElementTree.fromstring(ENTITIES.sub(lambda found: unescape(found[0]), text))
    return ElementTree.tostring(indices_beside(root), encoding='unicode')


def inline(writer, node):
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def display(writer, node):
    writer.body.append(f'<div class="math">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def add_formulas(app):
    "Register the renderer `mathml`."
    app.add_html_math_renderer('mathml', (inline, None), (display, None))
