# From archives to tables and figures: every rule runs one notebook. Start it with `make figures`, or by hand:
#   snakemake --cores 2 --config scale=laptop tasks="walker2d"
import ast, fcntl, hashlib, json, os, re, shutil, symtable, sys
from pathlib import Path
from policydiffusion.core import SCALES, SEEDS, atomic_path, check_choice

RUNS = {  # the seeds of every method that the main job trains at each scale
    'smoke': {'compact': SEEDS[:1], 'paper': SEEDS[:1]},
    'laptop': {'compact': SEEDS[:2], 'paper': SEEDS[:1]},  # half an hour; `make seeds` trains the others
    'night': {'compact': SEEDS[:2], 'paper': SEEDS[:1]},
    'paper': {'compact': SEEDS, 'paper': SEEDS}}
EVERY_SEED = {'compact': SEEDS, 'paper': SEEDS[:2]}  # of the tables
STUDIES = 'kl', 'hidden', 'centring', 'code', 'actions', 'loss', 'length', 'average', 'condition', 'latent', 'behaviour', 'guidance', 'steps'  # of chapter 47
MINUTES = {'dataset': 1, 'autoencoder': 3.5, 'diffusion': 3, 'behaviour': .6, 'relabel': 1, 'compact_diffusion': 4, 'metrics': 1.2, '53_fig4_epochs': 1, 'baselines': 20, 'held_out': 15, 'many_policies': 30, 'ablation': 5, 'reproduction': 5, 'language': 8, 'sequences': 1.5, 'combine': 1, '52_fig3_prompts': .5}  # at laptop scale on 2 cores; .5 for the others
# log lines of papermill and of the kernel that say nothing about the run
CHATTER = 'IPKernelApp|(Input|Output) Notebook: |Executing notebook with|(Executing|Ending) Cell|<Figure size|Black is not installed|^$'

SCALE = config.get('scale', 'laptop')
TASKS = str(config.get('tasks', 'walker2d') or '').replace(',', ' ').split()
TASKS = list(dict.fromkeys(TASKS))  # each once
CORES = workflow.resource_settings.cores  # None where nothing is to be run


def archive(task):
    "The archive to distil: shipped for laptop, searched for paper; a smoke run helps itself."
    return {'smoke': [], 'laptop': f'data/archives/{task}.safetensors'}.get(SCALE, f'artifacts/{SCALE}/{task}/archive.safetensors')

try:  # bad input is refused here, in one sentence and before anything is touched
    for setting in config: check_choice('setting', setting, ('scale', 'tasks'))
    check_choice('scale', SCALE, SCALES)
    if CORES is not None and CORES < 1:
        raise ValueError(f'cores is {CORES}: expected a whole number from 1')
    if not TASKS: raise ValueError('tasks is empty: expected Brax tasks, such as TASKS="walker2d ant"')
    from policydiffusion.archive import Archive  # slow to import: not needed for the checks above
    from policydiffusion.behaviour import COMPACT_SIZES, compact_sizes
    from policydiffusion.tasks import get_task
    for task in TASKS: get_task(task)
    if SCALE == 'laptop':
        for task in TASKS: Archive.load(archive(task), task)
except ValueError as e: sys.exit(f'error: {e}')
except FileNotFoundError as e: sys.exit(f'error: {e}; chapter 17 searches one, to be put there')

# One run at a time in a folder. The lock belongs to the process that holds it, so a killed run
# leaves none behind. A dry run writes nothing that another one reads; a cluster's jobs belong to
# the run that sent them.
dry = any(re.fullmatch('-[a-z]*n[a-z]*|--dry-?run', word) for word in sys.argv)
if (CORES or workflow.resource_settings.nodes) and workflow.is_main_process and not dry:
    Path('.snakemake').mkdir(exist_ok=True)
    LOCK = open('.snakemake/run.lock', 'w')
    try: fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print('another run is at work in this folder: waiting for it to end', file=sys.stderr)
        fcntl.flock(LOCK, fcntl.LOCK_EX)

# Compiled roll-outs are kept, so that a step need not compile what another one has compiled.
# (JAX itself leaves out what takes less than a second.)
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.abspath('artifacts/jax_cache'))

# A step is run again when the code that it runs has changed: the cells of its notebook and, of the
# library, what those name, what that names, and so on. Code is compared as Python reads it:
# comments, docstrings and blank lines do not count.

class Bare(ast.NodeTransformer):
    "Drops docstrings."
    def bare(self, node):
        self.generic_visit(node)
        if ast.get_docstring(node) is not None: node.body = node.body[1:] or [ast.Pass()]
        return node
    visit_ClassDef = visit_FunctionDef = bare


def digest(tree):
    "A short hash of some code."
    return hashlib.sha256(ast.unparse(Bare().visit(tree)).encode()).hexdigest()[:12]


def names(tree):
    "The names from elsewhere that some code uses, alone or as a part of a module."
    def used(table):
        top = table.get_type() == 'module'
        yield from (s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global()))
        for inner in table.get_children(): yield from used(inner)
    aliases = {a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    parts = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    return set(used(symtable.symtable(ast.unparse(tree), 'code', 'exec'))) | aliases | parts


def bound(statement):
    "The names that a statement at the top of a module defines."
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)): return {statement.name}
    nodes = (n for n in ast.walk(statement) if isinstance(n, ast.Name))
    return {n.id for n in nodes if isinstance(n.ctx, ast.Store)}


def cells(path):
    "The code of a notebook."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    code = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
    try: return ast.parse(re.sub('(?m)^[%!].*', '', code))  # without IPython's commands
    except SyntaxError as e: sys.exit(f'error: {path} does not parse: {e.msg} in {e.text!r}')


def library():
    "(module, names bound, names used, hash) of every statement of the library."
    parts = []
    for path in sorted(Path('policydiffusion').glob('[a-z]*.py')):
        for statement in ast.parse(path.read_text(encoding='utf-8')).body:
            # what a module imports from another one is found by its name
            if getattr(statement, 'level', 0) or bound(statement) == {'__all__'}: continue
            imports = isinstance(statement, (ast.Import, ast.ImportFrom))
            uses = set() if imports else names(statement)
            parts.append((path.stem, bound(statement), uses, digest(statement)))
    return parts

LIBRARY = library()
NOTEBOOKS = {path.stem: cells(path) for path in sorted(Path('nbs').glob('[0-9]*.ipynb'))}
NAMED = set().union(*(uses - own for _, own, uses, _ in LIBRARY), *map(names, NOTEBOOKS.values()))


def code_of(notebook):
    "A line for each piece of code that a notebook runs: where it stands, what it defines, its hash."
    known, new, used = set(), names(NOTEBOOKS[notebook]), []
    while new:
        known |= new
        modules = {module for module, own, _, _ in LIBRARY if own & known}
        # what does something instead of defining it, or is named nowhere, belongs to its module
        used = [(module, own, uses, what) for module, own, uses, what in LIBRARY
                if own & known or module in modules and not own & NAMED]
        new = set().union(*(uses for _, _, uses, _ in used)) - known
    lines = [f'{module} {",".join(sorted(own))} {what}' for module, own, _, what in used]
    return '\n'.join([f'{notebook} {digest(NOTEBOOKS[notebook])}', *lines, ''])


def code(notebook):
    "An input of a step: a file that is written anew when the step's code has changed."
    path, now = Path(f'artifacts/code/{notebook}.txt'), code_of(notebook)
    before = path.read_text() if path.exists() else None
    if now != before:
        with atomic_path(path) as tmp: tmp.write_text(now)
    if before is None: os.utime(path, (1, 1))  # what is there already is taken for made by this code
    return str(path)


def runs(path):
    "One file of every run; `path` is below the task's folder, with {run} for the run's name."
    return [f'artifacts/{SCALE}/{task}/{path.format(run=f"{method}-{seed}")}'
            for task in TASKS for method, seeds in RUNS[SCALE].items() for seed in seeds]


def notebook(name, *wildcards, given='', torch_threads=1):
    "The shell command that runs one notebook; `wildcards` of the rule become parameters, `given` holds more of them."
    given = ' '.join(f'-p {w} {{wildcards.{w}}}' for w in wildcards) + given
    # a notebook must not outlive a killed run: the next run would meet it at work
    guard = 'setpriv --pdeathsig KILL ' if shutil.which('setpriv') else ''
    # two processes of one thread, and two devices of one core, do nearly twice the work of one with two threads
    return (f'export OMP_NUM_THREADS={torch_threads} OMP_WAIT_POLICY=PASSIVE XLA_FLAGS="${{{{XLA_FLAGS:-}}}} --xla_force_host_platform_device_count={{threads}}"; exec {guard}papermill nbs/{name}.ipynb {{log}} -k python3 --cwd nbs --log-output '
            f'--no-progress-bar {given} 2> >(grep --line-buffered -vE "{CHATTER}" >&2)')


class Left:
    "What all steps still to be done take, counted when a message is printed."
    def __str__(self):
        return f'{sum(MINUTES.get(job.rule.name, .5) for job in workflow.dag.needrun_jobs() if job.rule.name != "all"):.0f} min'

LEFT = Left()


def says(rule, what):
    "A step's message; how long things take is known for the laptop only."
    return f'==> {rule} {what}' + f': about {MINUTES.get(rule, .5):g} min of {{LEFT}} left'*(SCALE == 'laptop')


PAPER_COST = {  # rule: gigabytes, hours, GPUs at paper scale; chapter 62 says where the hours come from
    'search': (64, 24, 1), 'dataset': (64, 2, 1), 'autoencoder': (64, 8, 1), 'diffusion': (32, 8, 1), 'behaviour': (64, 4, 0), 'relabel': (64, 8, 1),
    'compact_diffusion': (32, 4, 0), 'metrics': (64, 2, 1), 'ablation': (64, 24, 1), 'baselines': (64, 24, 1), 'held_out': (64, 12, 1), 'many_policies': (64, 12, 1)}


def cost(rule):
    "What a cluster should reserve for a step: memory, minutes, GPUs."
    gigabytes, hours, gpus = PAPER_COST.get(rule, (8, 2, 0)) if SCALE == 'paper' else (4, 2, 0)
    return dict(mem_mb=1000*gigabytes, runtime=60*hours, gpu=gpus)

wildcard_constraints:
    scale='|'.join(SCALES), task='[a-z0-9_]+', method='[a-z_]+', seed=r'\d+'

onsuccess:
    print(f'done: see {"artifacts/smoke/figures" if SCALE == "smoke" else "figures"}/')

# A figure's or table's rule ends in a stamp. The files themselves are committed: they stand in every fresh clone,
# where Snakemake would take them for done, and it would delete them before they are drawn anew.
COMMON_SEEDS = [s for s in SEEDS if all(s in seeds for seeds in RUNS[SCALE].values())]
LISTS = dict(tasks=','.join(TASKS), methods=','.join(RUNS[SCALE]), seeds=','.join(map(str, COMMON_SEEDS)))
ONE_SEED = dict(tasks=LISTS['tasks'], seed=COMMON_SEEDS[0])
COMPARED = [f'artifacts/{SCALE}/{task}/reference.safetensors' for task in TASKS] + runs('{run}/generated.safetensors')
STEERED = '51_fig2_sequences', '52_fig3_prompts'  # one of each robot; words come from the shipped generators until `make steering` has taught others
shipped = lambda name: Path(f'data/generators/{name}.safetensors').is_file()
# of which they can be drawn at once: no generator of the paper's scale is shipped, and at smoke scale the shipped ones play
NOW = {'smoke': list(filter(shipped, TASKS)), 'laptop': TASKS, 'night': [], 'paper': []}[SCALE]
SPOKEN = [task for task in NOW if shipped(f'{task}_text')]  # robots that can be asked in words


def played(tasks, seeds):
    "Sequences with these seeds, and several conditions at once with the first, where two measures make two halves."
    return [f'artifacts/{SCALE}/{task}/drawn/45_sequences-{seed}' for task in tasks for seed in seeds] + \
           [f'artifacts/{SCALE}/{task}/drawn/46_combine-{SEEDS[0]}' for task in tasks if get_task(task).n_measures == 2]

PLAYED = played(NOW, SEEDS[:1])
FIGURES = {  # notebook: what it reads, its parameters
    '50_fig1_architecture': ([], dict(task=TASKS[0])),
    '53_fig4_epochs': ([path for path in runs('{run}/autoencoder.safetensors') if '/paper-' in path], dict(LISTS, methods='paper')),
    '55_fig8_tsne': (runs('{run}/latents.safetensors'), dict(ONE_SEED, method=list(RUNS[SCALE])[0])),
    '56_fig6_cdf': (COMPARED, LISTS),
    '57_fig7_heatmaps': (COMPARED, dict(ONE_SEED, methods=LISTS['methods'])),
    '58_tables': (runs('results/{run}-metrics.csv') + PLAYED, LISTS),
    '59_what_we_found': ([f'artifacts/{SCALE}/drawn/58_tables'], {})}

RUN = '{wildcards.task} {wildcards.method}-{wildcards.seed}'


def ablations(studies, seeds):
    "What chapter 47 leaves behind, for every task."
    return [f'artifacts/{SCALE}/{task}/drawn/47_ablations-{study}-{seed}' for task in TASKS for study in studies for seed in seeds]

rule all:
    input:
        [f'artifacts/{SCALE}/drawn/{name}' for name in FIGURES], PLAYED,
        [f'artifacts/{SCALE}/{task}/drawn/{name}' for task in SPOKEN for name in STEERED],
        ablations(('kl', 'hidden'), SEEDS) if SCALE == 'paper' else []

rule search:
    input: code('17_search')
    output: 'artifacts/{scale}/{task}/search-{seed}/archive.safetensors'
    log: 'runs/{scale}/{task}/search-{seed}/17_search.ipynb'
    benchmark: 'artifacts/{scale}/{task}/search-{seed}/times/17_search.tsv'
    message: says('search', '{wildcards.task}')
    threads: 2
    resources: **cost('search')
    shell: notebook('17_search', 'task', 'scale', 'seed')

rule archive:
    input: 'artifacts/{scale}/{task}/search-1/archive.safetensors'
    output: 'artifacts/{scale}/{task}/archive.safetensors'
    wildcard_constraints: scale='night|paper'
    message: says('archive', '{wildcards.task}')
    shell: 'cp {input} {output}'

rule dataset:
    input: lambda wildcards: archive(wildcards.task), code('19_dataset')
    output: multiext('artifacts/{scale}/{task}/', 'dataset.safetensors', 'reference.safetensors')
    log: 'runs/{scale}/{task}/19_dataset.ipynb'
    benchmark: 'artifacts/{scale}/{task}/times/19_dataset.tsv'
    message: says('dataset', '{wildcards.task}')
    threads: 2
    resources: **cost('dataset')
    shell: notebook('19_dataset', 'task', 'scale')

rule autoencoder:
    input: rules.dataset.output[0], code('22_train_autoencoder')
    output: 'artifacts/{scale}/{task}/{method}-{seed}/autoencoder.safetensors'
    wildcard_constraints: method='paper[a-z_]*'
    log: 'runs/{scale}/{task}/{method}-{seed}/22_train_autoencoder.ipynb'
    benchmark: 'artifacts/{scale}/{task}/{method}-{seed}/times/22_train_autoencoder.tsv'
    message: says('autoencoder', RUN)
    threads: 1
    resources: **cost('autoencoder')
    shell: notebook('22_train_autoencoder', 'task', 'scale', 'method', 'seed')

rule diffusion:
    input: rules.dataset.output[0], rules.autoencoder.output, code('35_latent_diffusion')
    output: multiext('artifacts/{scale}/{task}/{method}-{seed}/', 'generator.safetensors', 'latents.safetensors')
    wildcard_constraints: method='paper[a-z_]*'
    log: 'runs/{scale}/{task}/{method}-{seed}/35_latent_diffusion.ipynb'
    benchmark: 'artifacts/{scale}/{task}/{method}-{seed}/times/35_latent_diffusion.tsv'
    message: says('diffusion', RUN)
    threads: 1
    resources: **cost('diffusion')
    shell: notebook('35_latent_diffusion', 'task', 'scale', 'method', 'seed')

rule behaviour:
    input: rules.dataset.output[0], code('23_behaviour_loss')
    output: 'artifacts/{scale}/{task}/{method}-{seed}/autoencoder.safetensors'
    wildcard_constraints: method='compact[a-z_]*'
    log: 'runs/{scale}/{task}/{method}-{seed}/23_behaviour_loss.ipynb'
    benchmark: 'artifacts/{scale}/{task}/{method}-{seed}/times/23_behaviour_loss.tsv'
    message: says('behaviour', RUN)
    threads: 1
    resources: **cost('behaviour')
    shell: notebook('23_behaviour_loss', 'task', 'scale', 'method', 'seed')

rule relabel:
    input: rules.dataset.output[0], rules.behaviour.output, code('36_relabelling')
    output: multiext('artifacts/{scale}/{task}/{method}-{seed}/', 'targets.safetensors', 'latents.safetensors')
    wildcard_constraints: method='compact[a-z_]*'
    log: 'runs/{scale}/{task}/{method}-{seed}/36_relabelling.ipynb'
    benchmark: 'artifacts/{scale}/{task}/{method}-{seed}/times/36_relabelling.tsv'
    message: says('relabel', RUN)
    threads: 1
    resources: **cost('relabel')
    shell: notebook('36_relabelling', 'task', 'scale', 'method', 'seed')

rule compact_diffusion:
    input:
        rules.dataset.output[0], rules.behaviour.output, rules.relabel.output[0],
        code('37_compact_diffusion')
    output: multiext('artifacts/{scale}/{task}/{method}-{seed}/', 'generator.safetensors', 'evaluated.safetensors')
    wildcard_constraints: method='compact[a-z_]*'
    log: 'runs/{scale}/{task}/{method}-{seed}/37_compact_diffusion.ipynb'
    benchmark: 'artifacts/{scale}/{task}/{method}-{seed}/times/37_compact_diffusion.tsv'
    message: says('compact_diffusion', RUN)
    threads: 1
    resources: **cost('compact_diffusion')
    shell: notebook('37_compact_diffusion', 'task', 'scale', 'method', 'seed')

rule metrics:
    input:
        rules.dataset.output[1], 'artifacts/{scale}/{task}/{method}-{seed}/generator.safetensors',
        code('40_metrics')
    output: 'artifacts/{scale}/{task}/{method}-{seed}/generated.safetensors', 'artifacts/{scale}/{task}/results/{method}-{seed}-metrics.csv'
    log: 'runs/{scale}/{task}/{method}-{seed}/40_metrics.ipynb'
    benchmark: 'artifacts/{scale}/{task}/{method}-{seed}/times/40_metrics.tsv'
    message: says('metrics', RUN)
    threads: 2
    resources: **cost('metrics')
    shell: notebook('40_metrics', 'task', 'scale', 'method', 'seed', torch_threads='{threads}')  # its policies per second are those of the whole machine

for name, (reads, parameters) in FIGURES.items():
    rule:
        name: name
        input: reads, code(name)
        output: touch(f'artifacts/{SCALE}/drawn/{name}')
        log: f'runs/{SCALE}/{name}.ipynb'
        benchmark: f'artifacts/{SCALE}/drawn/times/{name}.tsv'
        params: given=' '.join(f'-{"p" if isinstance(v, int) else "r"} {k} {v}' for k, v in dict(parameters, scale=SCALE).items())
        message: says(name, LISTS['tasks'])
        threads: 2 if name in MINUTES else 1
        resources: **cost(name)
        shell: notebook('{rule}', given='{params.given}')

OURS = 'artifacts/{scale}/{task}/compact-{seed}'
OF_OURS = [f'{OURS}/targets.safetensors', f'{OURS}/generator.safetensors']

rule baselines:
    input: rules.dataset.output, OF_OURS, f'{OURS}/evaluated.safetensors', code('41_baselines')
    output: touch('artifacts/{scale}/{task}/drawn/41_baselines-{seed}')
    log: 'runs/{scale}/{task}/41_baselines-{seed}.ipynb'
    benchmark: 'artifacts/{scale}/{task}/times/41_baselines-{seed}.tsv'
    message: says('baselines', '{wildcards.task} {wildcards.seed}')
    threads: 2
    resources: **cost('baselines')
    shell: notebook('41_baselines', 'task', 'scale', 'seed', torch_threads='{threads}')

TABLES = ' '.join(f'-r {k} {v}' for k, v in dict(LISTS, scale=SCALE).items())

rule held_out:
    input:
        rules.dataset.output, 'artifacts/{scale}/{task}/compact-{seed}/generated.safetensors',
        code('42_requests')
    output: touch('artifacts/{scale}/{task}/drawn/42_requests-{seed}')
    log: 'runs/{scale}/{task}/42_requests-{seed}.ipynb'
    benchmark: 'artifacts/{scale}/{task}/times/42_requests-{seed}.tsv'
    message: says('held_out', '{wildcards.task} {wildcards.seed}')
    threads: 2
    resources: **cost('held_out')
    shell: notebook('42_requests', 'task', 'scale', 'seed', torch_threads='{threads}')

rule baselines_tables:
    input:
        [f'artifacts/{SCALE}/{task}/drawn/41_baselines-{seed}' for task in TASKS for seed in RUNS[SCALE]['compact'][:2]],
        # other sizes of compact: chapter 54 draws them for the first task
        [f'artifacts/{SCALE}/{TASKS[0]}/results/compact_{size}-{SEEDS[0]}-metrics.csv' for size in COMPACT_SIZES if compact_sizes(SCALE, 'compact', TASKS[0]) != (size, size)],
        [f'artifacts/{SCALE}/{task}/drawn/42_requests-{SEEDS[0]}' for task in TASKS],
        code('58_tables')
    output: touch(f'artifacts/{SCALE}/drawn/58_tables_with_baselines')
    log: f'runs/{SCALE}/58_tables_with_baselines.ipynb'
    params: given=TABLES
    message: 'the tables once more, with baselines'
    shell: notebook('58_tables', given='{params.given}')

rule with_baselines:  # what simpler methods do with as many numbers, and compact with fewer; not part of the main job
    input: rules.baselines_tables.output
    log: f'runs/{SCALE}/54_frontier.ipynb'
    params: given=f'-r scale {SCALE} -r task {TASKS[0]}'
    message: says('54_frontier', TASKS[0])
    shell: notebook('54_frontier', given='{params.given}')

rule many_policies:
    input: rules.dataset.output, OF_OURS, code('43_many_policies')
    output: touch('artifacts/{scale}/{task}/drawn/43_many_policies-{seed}')
    log: 'runs/{scale}/{task}/43_many_policies-{seed}.ipynb'
    benchmark: 'artifacts/{scale}/{task}/times/43_many_policies-{seed}.tsv'
    message: says('many_policies', '{wildcards.task} {wildcards.seed}')
    threads: 1
    resources: **cost('many_policies')
    shell: notebook('43_many_policies', 'task', 'scale', 'seed')

rule with_many_policies:  # damaged robots, half requests, the best of n; not part of the main job
    input: [f'artifacts/{SCALE}/{task}/drawn/43_many_policies-{seed}' for task in TASKS for seed in RUNS[SCALE]['compact']]
    log: f'runs/{SCALE}/58_tables_with_many_policies.ipynb'
    params: given=TABLES
    message: 'the tables once more, with what several answers are good for'
    shell: notebook('58_tables', given='{params.given}')

rule language:
    input: rules.dataset.output, OF_OURS, code('39_language')
    output: 'artifacts/{scale}/{task}/compact-{seed}/text_generator.safetensors'
    log: 'runs/{scale}/{task}/compact-{seed}/39_language.ipynb'
    benchmark: 'artifacts/{scale}/{task}/compact-{seed}/times/39_language.tsv'
    message: says('language', '{wildcards.task} {wildcards.seed}')
    threads: 1
    resources: **cost('language')
    shell: notebook('39_language', 'task', 'scale', 'seed')

rule sequences:
    input: 'artifacts/{scale}/{task}/compact-{seed}/generator.safetensors', code('45_sequences')
    output: touch('artifacts/{scale}/{task}/drawn/45_sequences-{seed}')
    log: 'runs/{scale}/{task}/compact-{seed}/45_sequences.ipynb'
    benchmark: 'artifacts/{scale}/{task}/compact-{seed}/times/45_sequences.tsv'
    message: says('sequences', '{wildcards.task} {wildcards.seed}')
    threads: 1
    resources: **cost('sequences')
    shell: notebook('45_sequences', 'task', 'scale', 'seed')

rule combine:
    input: rules.dataset.output, OF_OURS, code('46_combine')
    output: touch('artifacts/{scale}/{task}/drawn/46_combine-{seed}')
    log: 'runs/{scale}/{task}/compact-{seed}/46_combine.ipynb'
    benchmark: 'artifacts/{scale}/{task}/compact-{seed}/times/46_combine.tsv'
    message: says('combine', '{wildcards.task} {wildcards.seed}')
    threads: 1
    resources: **cost('combine')
    shell: notebook('46_combine', 'task', 'scale', 'seed')

for task in TASKS:
    for name in STEERED:
        for words in ('', '_steered'):
            MINUTES[f'{name}_{task}{words}'] = MINUTES.get(name, .5)
            rule:
                name: f'{name}_{task}{words}'
                input:
                    f'artifacts/{SCALE}/{task}/compact-{SEEDS[0]}/{"text_" if words else ""}generator.safetensors',
                    code(name)
                output: touch(f'artifacts/{SCALE}/{task}/drawn/{name}{words}')
                log: f'runs/{SCALE}/{task}/{name}.ipynb'
                benchmark: f'artifacts/{SCALE}/{task}/times/{name}{words}.tsv'
                params: notebook=name, given=f'-r scale {SCALE} -r task {task} -p seed {SEEDS[0]}'  # read when the loop is at it; the shell line is read when it is over
                message: says(name, task)
                shell: notebook('{params.notebook}', given='{params.given}')

rule with_steering:  # sequences, several conditions at once, words; not part of the main job
    input:
        [f'artifacts/{SCALE}/{task}/drawn/{name}_steered' for task in TASKS for name in STEERED],
        [f'artifacts/{SCALE}/{task}/compact-{seed}/text_generator.safetensors' for task in TASKS for seed in RUNS[SCALE]['compact'][:2]],
        played(TASKS, RUNS[SCALE]['compact'][:2])
    log: f'runs/{SCALE}/58_tables_with_steering.ipynb'
    params: given=TABLES
    message: 'the tables once more, with steering'
    shell: notebook('58_tables', given='{params.given}')

rule ablation:
    input:
        rules.dataset.output, code('47_ablations'),
        lambda wildcards: [f'artifacts/{wildcards.scale}/{wildcards.task}/{method}-{wildcards.seed}/generator.safetensors'
                           for method in ('compact', 'paper') if wildcards.study in ('guidance', 'steps')],
        lambda wildcards: [f'artifacts/{wildcards.scale}/{wildcards.task}/paper-{wildcards.seed}/autoencoder.safetensors']*(wildcards.study in ('loss', 'length', 'average', 'condition'))
    output: touch('artifacts/{scale}/{task}/drawn/47_ablations-{study}-{seed}')
    wildcard_constraints: study='|'.join(STUDIES)
    log: 'runs/{scale}/{task}/47_ablations-{study}-{seed}.ipynb'
    benchmark: 'artifacts/{scale}/{task}/times/47_ablations-{study}-{seed}.tsv'
    message: says('ablation', '{wildcards.task} {wildcards.study}-{wildcards.seed}')
    threads: 1
    resources: **cost('ablation')
    shell: notebook('47_ablations', 'task', 'scale', 'study', 'seed')

rule reproduction:
    input: rules.dataset.output, expand('artifacts/{{scale}}/{{task}}/paper-{{seed}}/{name}.safetensors', name=('autoencoder', 'generator'))
    output: touch('artifacts/{scale}/{task}/drawn/48_reproduction-{seed}')
    log: 'runs/{scale}/{task}/paper-{seed}/48_reproduction.ipynb'
    benchmark: 'artifacts/{scale}/{task}/paper-{seed}/times/48_reproduction.tsv'
    message: says('reproduction', '{wildcards.task} {wildcards.seed}')
    threads: 1
    resources: **cost('reproduction')
    shell: notebook('48_reproduction', 'task', 'scale', 'seed')

rule more_seeds:  # the tables' means and standard deviations; not part of the main job
    input:
        [f'artifacts/{SCALE}/{task}/results/{method}-{seed}-metrics.csv' for task in TASKS
         for method, seeds in EVERY_SEED.items() for seed in seeds],
        code('58_tables')
    log: f'runs/{SCALE}/58_tables_with_seeds.ipynb'
    params: given=TABLES
    message: 'the tables once more, with all seeds'
    shell: notebook('58_tables', given='{params.given}')

rule with_ablations:  # one thing changed at a time, and the stages of the paper's method taken apart; not part of the main job
    input: ablations(STUDIES, SEEDS[:2]), [f'artifacts/{SCALE}/{task}/drawn/48_reproduction-{SEEDS[0]}' for task in TASKS]
    log: f'runs/{SCALE}/47_ablations_drawn.ipynb'
    params: given=f'-r scale {SCALE} -r task {TASKS[0]} -r study draw'
    message: says('47_ablations', TASKS[0])
    shell: notebook('47_ablations', given='{params.given}')

rule paper_full:  # the paper's models at their full size and with its training, once; not part of the main job
    input: [f'artifacts/{SCALE}/{task}/results/paper_full-{SEEDS[0]}-metrics.csv' for task in TASKS]
    log: f'runs/{SCALE}/paper_full_tables.ipynb'
    params: given=TABLES
    message: 'the tables once more, with paper_full'
    shell: notebook('58_tables', given='{params.given}')

rule minutes:  # only on request: a computer that is busy with other things takes longer
    log: f'runs/{SCALE}/minutes.ipynb'
    params: given=TABLES + ' -p times True'
    message: 'the tables once more, with the minutes and speeds of this computer'
    shell: notebook('58_tables', given='{params.given}')
