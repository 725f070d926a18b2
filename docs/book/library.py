"API pages from the source alone (nothing is imported): signatures, docstrings, argument comments."
import ast
import io
import re
import tokenize
from pathlib import Path

SPECIAL = re.compile(r'([*_$<>\[\]{}|\\])')


def plain(text):
    "Text with what Markdown would take for markup escaped, except in `code`."
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(p if i % 2 else SPECIAL.sub(r'\\\1', p) for i, p in enumerate(parts))


def line_comments(text):
    "Line number to the comment that ends the line."
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}


def cell_sources(text):
    "(line, chapter) of each cell that nbdev exported here, in order."
    marks = re.finditer(r'^# %% \.\./nbs/(\w+)\.ipynb', text, re.M)
    return [(text[:m.start()].count('\n') + 1, m[1]) for m in marks]


class Module:
    "One module's source, its comments and where its cells stand."
    def __init__(self, path):
        self.name, self.text = path.stem, path.read_text(encoding='utf-8')
        self.tree, self.comments = ast.parse(self.text), line_comments(self.text)
        self.cells = cell_sources(self.text)
        names = (n for n in self.tree.body if isinstance(n, ast.Assign))
        self.public = next(ast.literal_eval(n.value) for n in names if n.targets[0].id == '__all__')

    def chapter(self, node):
        return next(chapter for line, chapter in reversed(self.cells) if line <= node.lineno)

    def fields(self, args):
        "`:param x: comment` for each argument that has one."
        every = *args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg
        said = [(a.arg, self.comments.get(a.lineno)) for a in every if a]
        return [f':param {name}: {plain(text)}' for name, text in said if text]

    def function(self, node, kind='function', skip=0):
        "A function's or a method's directive."
        args = ast.unparse(node.args)
        if skip: args = args.partition(',')[2].strip() if ',' in args else ''
        returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
        body = [plain(ast.get_docstring(node) or ''), '', *self.fields(node.args)]
        lines = self.text.split('\n')
        said = [self.comments[i] for i in range(node.lineno, node.body[0].lineno)
                if i in self.comments and lines[i - 1].lstrip().startswith(')')]
        if said: body.append(f':returns: {plain(said[-1])}')
        return [f':::{{py:{kind}}} {node.name}({args}){returns}', *body, ':::', '']

    def klass(self, node):
        "A class's directive, with its fields and public methods inside."
        init = next((n for n in node.body if getattr(n, 'name', '') == '__init__'), None)
        head = f'::::{{py:class}} {node.name}'
        body = [plain(ast.get_docstring(node) or ''), '']
        kept = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        if init:
            head += f"({ast.unparse(init.args).partition(',')[2].strip()})"
            body += self.fields(init.args)
        for n in kept:
            default = f' = {ast.unparse(n.value)}' if n.value else ''
            said = plain(self.comments.get(n.lineno, ''))
            body.append(f':param {n.target.id}: `{ast.unparse(n.annotation)}{default}` {said}')
        for n in node.body:
            if isinstance(n, ast.FunctionDef) and not n.name.startswith('_'):
                marks = [ast.unparse(d) for d in n.decorator_list]
                kind = 'property' if 'property' in marks else 'method'
                lines = self.function(n, kind, skip='staticmethod' not in marks)
                if kind == 'property': lines[0] = f':::{{py:property}} {n.name}'
                body += ['', *lines]
        return [head, *body, '::::', '']

    def constant(self, node):
        value = ast.unparse(node.value)
        said = plain(self.comments.get(node.lineno, ''))
        shown = [f':value: {value}'] if len(value) < 60 else []
        return [f':::{{py:data}} {node.targets[0].id}', *shown, '', said, ':::', '']

    def entries(self):
        "(name, node, directive) of all that is public, in the order of the source."
        for node in self.tree.body:
            name = getattr(node, 'name', None)
            if isinstance(node, ast.Assign): name = getattr(node.targets[0], 'id', None)
            if name not in self.public: continue
            kinds = {ast.FunctionDef: self.function, ast.ClassDef: self.klass}
            yield node, kinds.get(type(node), self.constant)(node)

    def page(self):
        "The module's page."
        lines = [f'# {self.name}', '', plain(ast.get_docstring(self.tree) or ''), '']
        lines += [f'```{{py:module}} policydiffusion.{self.name}', '```', '']
        last = None
        for node, directive in self.entries():
            chapter = self.chapter(node)
            if chapter != last: lines += [f'## From [`{chapter}`](../../nbs/{chapter}.ipynb)', '']
            last = chapter
            lines += directive
        return '\n'.join(lines)


def write_api(
    root,  # the project's folder
):
    "Write docs/api/*.md, one page a module; pages that did not change keep their date."
    folder = root/'docs'/'api'
    folder.mkdir(exist_ok=True)
    sources = [p for p in sorted((root/'policydiffusion').glob('*.py')) if p.stem[0] != '_']
    pages = {folder/f'{p.stem}.md': Module(p).page() for p in sources}
    for old in set(folder.glob('*.md')) - set(pages): old.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding='utf-8') != text:
            path.write_text(text, encoding='utf-8')
