"Hostile files, arguments, texts and settings; every case ends in a clean error, in a harmless result, or is a finding."
import copy, inspect, json, linecache, os, pkgutil, resource, signal, tempfile, traceback, warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # no case may ask a network

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

import policydiffusion
from policydiffusion import archive, autoencoder as ae, behaviour, core, dataset, diffusion, distil, generator as gen, ppo, relabel, search, text, training
from policydiffusion.policy import PolicySpec

HOME = Path(policydiffusion.__file__).parent
SECONDS, GIGABYTE = 20, 2**20  # a hang, and what ru_maxrss counts in
CLEAN = (ValueError, TypeError, FileNotFoundError, OSError, ImportError, core.NonFiniteLoss)
FOLDER = Path(tempfile.mkdtemp(prefix='fuzz-'))


# ---- the verdict

@dataclass
class Tally:
    "Counts of a campaign, and what each finding was."
    counts: Counter = field(default_factory=Counter)
    findings: dict = field(default_factory=dict)  # (room, name, kind of finding) to the first example

    def add(self, room: str, name: str, verdict: str, detail: str) -> None:
        self.counts[room, verdict] += 1
        if verdict == 'finding': self.findings.setdefault((room, name, detail.split(':')[0]), detail)


class Hang(BaseException): "A case took too long."


@contextmanager
def watched(seconds: int = SECONDS):
    "Raise Hang after so much work, or 30 times as long of waiting: a busy computer is no fault."
    def late(*_): raise Hang
    timers = (signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 30*seconds)
    old = [signal.signal(number, late) for number, _, _ in timers]
    for _, which, after in timers: signal.setitimer(which, after)
    try: yield
    finally:
        for (number, which, _), handler in zip(timers, old):
            signal.setitimer(which, 0); signal.signal(number, handler)


def ours(error: BaseException) -> bool:
    "Was it raised by a raise statement of this library, in one sentence of moderate length?"
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno)
    return Path(last.filename).parent == HOME and 'raise' in line and '\n' not in str(error) and len(str(error)) < 700


def judge(call, sound=lambda result: None) -> tuple:
    "Clean, harmless or a finding, and a line on what was found."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with watched(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            verdict, detail = 'harmless', sound(call()) or ''
            if detail: verdict = 'finding'
    except Hang: verdict, detail = 'finding', f'hang: more than {SECONDS} s'
    except CLEAN as e: verdict, detail = ('clean', '') if ours(e) else ('finding', f'foreign {type(e).__name__}: {core.brief(e)}')
    except Exception as e: verdict, detail = 'finding', f'foreign {type(e).__name__}: {core.brief(e)}'
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/GIGABYTE
    return ('finding', f'memory: {grown:.1f} GB more') if grown > 1 else (verdict, detail)


def finite(x, depth: int = 3) -> bool:
    "Are all numbers in it finite, as far as one can see?"
    if isinstance(x, torch.Tensor): return not x.is_floating_point() or bool(x.detach().isfinite().all())
    if isinstance(x, (np.ndarray, np.generic)): return not np.issubdtype(x.dtype, np.floating) or bool(np.isfinite(x).all())
    if isinstance(x, (list, tuple)): return depth == 0 or all(finite(y, depth - 1) for y in x)
    return not isinstance(x, float) or x == x


# ---- small real files of every kind

TASK, SPEC = 'walker2d', PolicySpec(4, 2, (3,))
SMALL = ae.AutoencoderSettings(latent_shape=(2, 4, 4), channels=(4,), vector_width=4, hidden=2, batch_size=4, epochs=4)
COMPACT = behaviour.CompactSettings(latent_shape=(3,), ranks=(2, 2), batch_size=4, n_obs=4, epochs=4)


def small_archive(): return archive.synthetic_archive(TASK, 12, (4, 4), SPEC)


def small_autoencoder():
    rows = ae.toy_archive(SPEC, 12)
    return ae.build_autoencoder(SPEC, SMALL, *ae.standardisation(rows)), rows


def small_generator(words: bool = False, unet: bool = False):
    "A generator with a random last layer, so that it says something."
    torch.manual_seed(0)
    if unet: design = distil.paper_design(small_autoencoder()[0], SMALL, 2, {'base': 32, 'mults': [1, 1], 'cond_dim': 8})
    else: design = distil.compact_design(COMPACT, 2, {'width': 8, 'n_blocks': 1, 'emb': 8, 'n_waves': 2})
    if words: design = gen.replace(design, conditioner={'name': 'text', 'labels': ['fast', 'still', 'nothing'], 'known': 2, 'encoder': 'minilm', 'size': 768})
    g = gen.Generator(TASK, SPEC, design, 'compact', gen.Sampling(n_steps=3, clip=3.), {'seed': 1})
    torch.nn.init.normal_(g.denoiser.output_projection[-1].weight, std=.1)
    return g


def small_dataset():
    a, rng = small_archive(), np.random.default_rng(0)
    return dataset.Dataset(TASK, SPEC, a.params, a.params.mean(0), a.params.std(0) + 1e-6, a.measures, a.objective, a.obs_mean, a.obs_std, rng.normal(size=(12, 5, 4)).astype(np.float32))


def autoencoder_run():
    model, rows = small_autoencoder()
    return training.start_training(model, {'params': rows}, SMALL, 0)


def diffusion_run(path: Path, stop: int = None):
    z, m, g = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.rand(12, 2, generator=torch.Generator().manual_seed(1)), small_generator()
    for step, losses in distil.train_generator(g, z, m, distil.DiffusionSettings({'width': 8, 'n_blocks': 1}, batch_size=4, epochs=2), 0, path, every=0.):
        if step == stop: break
    return g


def small_search():
    rng = np.random.default_rng(0)
    ancestor = ppo.Ancestor(*(rng.normal(size=s).astype(np.float32) for s in ((SPEC.n_params,), (5,), (2,), (4,))), np.ones(4, np.float32), np.zeros((1, SPEC.n_params), np.float32))
    return search.Search(TASK, SPEC, ancestor, search.SMOKE.search, (4, 4), 0)


def write_all() -> dict:
    "Kind to the path of a sound file."
    path = lambda kind: FOLDER/f'{kind}.safetensors'
    small_archive().save(path('archive'))
    dataset.save_dataset(small_dataset(), path('dataset'))
    ae.save_autoencoder(path('autoencoder'), small_autoencoder()[0], SMALL, task=TASK)
    behaviour.save_compact(path('compact'), behaviour.CompactAutoencoder(SPEC, 12, (3,), (2, 2)), COMPACT, task=TASK)
    for name, kinds in (('generator', {}), ('unet', {'unet': True}), ('words', {'words': True})): small_generator(**kinds).save(path(name))
    run = autoencoder_run(); next(training.train_autoencoder(run)); training.save_checkpoint(path('autoencoder_checkpoint'), run)
    diffusion_run(path('diffusion_checkpoint'), 2)
    small_search().save(path('search'))
    return {p.stem: p for p in sorted(FOLDER.glob('*.safetensors'))}


# ---- reading them, and a little use of what was read

def use_archive(path):
    a = archive.Archive.load(path)
    return [f(a) for f in (archive.coverage, archive.alive_coverage, archive.qd_score)]


def use_dataset(path):
    core.ARTIFACTS, old = FOLDER, core.ARTIFACTS
    try:
        path.replace(core.artifact_dir('laptop', TASK)/'dataset.safetensors')
        return [getattr(dataset.load_dataset('laptop', TASK), name) for name in dataset.TENSOR_FIELDS]
    finally: core.ARTIFACTS = old


def use_autoencoder(path): return ae.reconstruct(ae.load_autoencoder(path)[0], ae.toy_archive(SPEC, 3))
def use_compact(path): return behaviour.load_compact(path)[0].decode(torch.zeros(2, 3))
def use_generator(path): return gen.Generator.load(path).generate([[.5, .5]], n=2).params
def use_checkpoint(path): return next(training.train_autoencoder(training.load_checkpoint(path, autoencoder_run())))[2]['loss']
def use_training(path): return diffusion_run(path).generate([[.5, .5]]).params


def use_search(path):
    s = small_search()
    s.load(path)
    return s.walker.params


USE = {'archive': use_archive, 'dataset': use_dataset, 'autoencoder': use_autoencoder, 'compact': use_compact, 'generator': use_generator, 'unet': use_generator,
       'words': use_generator, 'autoencoder_checkpoint': use_checkpoint, 'diffusion_checkpoint': use_training, 'search': use_search}


# ---- mutations

def deep(n: int):
    x = 0
    for _ in range(n): x = [x]
    return x


VALUES = [None, True, False, 0, 1, 2, -1, 1.5, 7, 1e-30, -2.5, 1e300, float('nan'), float('inf'), 10**6, 10**9, 10**15, 10**30, '', 'ant', 'unet', 'low_rank', '3', 'x'*20_000, [], [0], [1, 2],
          [2.5], [10**9, 10**9], [1]*3000, ['a', 'b'], {}, {'name': 'residual'}, {'a': {'b': 1}}, deep(400)]


def places(x, at=()) -> list:
    "Where something stands in a header."
    inner = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    return [at, *(p for k, v in inner for p in places(v, (*at, k)))]


def set_at(x, at, value):
    for k in at[:-1]: x = x[k]
    if value is Ellipsis: del x[at[-1]]
    else: x[at[-1]] = value


TENSOR_CHANGES = {
    'drop': lambda t, k: t.pop(k), 'rename': lambda t, k: t.update({k + '_': t.pop(k)}), 'nan': lambda t, k: t.update({k: np.full_like(t[k], -1) if t[k].dtype.kind == 'u' else t[k]*np.nan}),
    'flat': lambda t, k: t.update({k: t[k].reshape(-1)}), 'extra side': lambda t, k: t.update({k: t[k][None]}), 'shorter': lambda t, k: t.update({k: t[k][:-1]}),
    'empty': lambda t, k: t.update({k: t[k][:0]}), 'whole': lambda t, k: t.update({k: t[k].astype(np.int64)}), 'double': lambda t, k: t.update({k: t[k].astype(np.float64)*1e200}),
    'bool': lambda t, k: t.update({k: t[k] > 0}), 'negative': lambda t, k: t.update({k: -np.abs(t[k].astype(np.float32))}), 'zero': lambda t, k: t.update({k: t[k]*0}),
    'huge': lambda t, k: t.update({k: np.full(t[k].shape, 6e4, t[k].dtype) if t[k].dtype.kind == 'f' else t[k] + 10}), 'swapped': lambda t, k: t.update({k: np.swapaxes(t[k], 0, -1)}),
    'alien': lambda t, k: t.update({'alien': np.ones(3, np.float32)}), 'long': lambda t, k: t.update({k: np.zeros((10**5, 0), np.float32)})}

mutations = st.lists(st.one_of(st.tuples(st.just('header'), st.integers(0, 10**6), st.sampled_from([..., *VALUES])), st.tuples(st.just('tensor'), st.integers(0, 10**6), st.sampled_from(sorted(TENSOR_CHANGES))),
                               st.tuples(st.just('new'), st.sampled_from(['wings', 'name', 'kind', 'n_steps', '']), st.sampled_from(VALUES))), min_size=1, max_size=2)


class Files:
    "Sound files, and changed copies of them."
    paths = None

    def ready(self) -> dict:
        if self.paths is None:
            self.paths = write_all()
            self.parts = {kind: core.load_tensors(path) for kind, path in self.paths.items()}
        return self.paths

    def changed(self, kind: str, changes: list) -> Path:
        "A copy with changes to header and tensors, and a checksum that fits them."
        self.ready()
        tensors, meta = dict(self.parts[kind][0]), json.loads(json.dumps(self.parts[kind][1]))
        for what, where, value in changes:
            if what == 'tensor' and tensors: TENSOR_CHANGES[value](tensors, sorted(tensors)[where % len(tensors)])
            elif what == 'new': meta[where] = value
            elif what == 'header' and len(spots := places(meta)) > 1: set_at(meta, spots[1 + where % (len(spots) - 1)], copy.deepcopy(value))
        return core.save_tensors(FOLDER/'changed'/f'{kind}.safetensors', tensors, meta)

    def damaged(self, kind: str, at: int, how: str, byte: int) -> Path:
        "A copy with other bytes."
        data = bytearray(self.ready()[kind].read_bytes())
        at %= len(data)
        if how == 'flip': data[at] ^= byte
        elif how == 'cut': del data[at:]
        elif how == 'insert': data[at:at] = bytes([byte])*(1 + byte)
        elif how == 'head': data[at % 2000] = byte
        path = FOLDER/'changed'/f'{kind}.safetensors'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path


FILES = Files()
kinds = st.sampled_from(sorted(USE))


def probe_file(case) -> tuple:
    kind, changes = case
    path = FILES.changed(kind, changes)
    return kind, *judge(lambda: USE[kind](path), lambda result: '' if finite(result) else f'nonsense: {kind} answers with numbers that are not finite')


def probe_bytes(case) -> tuple:
    kind, at, how, byte = case
    path = FILES.damaged(*case)
    whole = path.read_bytes() == FILES.paths[kind].read_bytes()
    return kind, *judge(lambda: USE[kind](path), lambda result: '' if whole or core.load_tensors(path)[1] == FILES.parts[kind][1] else 'nonsense: a changed byte was not noticed')


# ---- arguments of public functions, from their signatures

HEAVY = {  # what takes long, draws, writes or trains: not cheap to call
    'warm_start', 'run_search', 'correct', 'evaluate', 'trace', 'reevaluate', 'make_dataset', 'load_dataset', 'load_archive', 'train_diffusion', 'train_generator', 'train_autoencoder', 'train_text_classifier', 'train_success_classifier',
    'record', 'collect_results', 'artifact_dir', 'save_fig', 'figure_style', 'atomic_path', 'progress', 'seed_everything', 'provenance', 'plot_heatmap', 'draw_body', 'make_env', 'damaged_env', 'save_tensors', 'reading',
    'token_states', 'embed', 'watch', 'evaluate_latents', 'evaluate_again', 'smoothed', 'search_scale',
    'write_page'}
TRUSTING = {  # why a function trusts its callers: its name, or that of a room all of whose do
    'formula': ('autoencoder.sample_latent', 'autoencoder.kl_divergence', 'autoencoder.tensor_mse',
                'autoencoder.weight_loss', 'behaviour.action_loss', 'diffusion.per_example',
                'diffusion.q_sample', 'diffusion.log_variance', 'diffusion.drop_condition',
                'diffusion.ddpm_step', 'diffusion.ddim_step', 'diffusion.dpm_step',
                'diffusion.predict_x0', 'diffusion.noise_and_v', 'metrics.ratio',
                'metrics.fit_gaussian'),
    'layer': ('denoiser', 'hypernetwork', 'autoencoder.vector_mlp', 'generator.graph_hypernetwork'),
    'compiled': ('batch_last', 'ppo.optimiser', 'damage.episode_keys'),
    'loop': ('pool', 'ppo.update_moments', 'emitters.soft_improvement', 'emitters.local_trend',
             'search.adapted_shares', 'search.survivors', 'compose.take_chosen',
             'distil.local_rank', 'distil.good_reward', 'distil.practice_warmth',
             'distil.too_alike', 'dataset.warn_if_far', 'dataset.check_shares'),
    'file': ('archive.from_bytes', 'archive.byte_codes', 'archive.packed', 'archive.unpacked',
             'core.flush', 'core.is_running', 'core.remove_stale', 'explore.unpack_poses',
             'metrics.between_cells', 'ppo.check_ancestor'),
    'grid': ('archive.empty_grid',),
    'door': ('archive.check_name', 'core.check_count', 'core.check_number',
             'core.check_parameters')}
TRUSTED = {name for names in TRUSTING.values() for name in names}
numbers = st.sampled_from([0, 1, 2, 3, 5, 64, -1, True, 2.5, 2., '3', None, float('nan'), float('inf'), 10**30, [1], 1j])
shares = st.sampled_from([0., .5, 1., .1, -1., 2., 1e300, float('nan'), float('inf'), '0.5', None, True, [.5], 1j])
words = st.sampled_from(['smoke', 'laptop', 'paper', 'walker2d', 'ant', 'compact', '', 'x'*3000, 'run fast', 5, None, ['smoke'], b'smoke', {}])
tuples = st.sampled_from([(2,), (4, 4), (2, 4, 4), (3, 3), (), (0,), (1.5,), [2, 2], ('a',), None, 3, (-1, 2), (float('nan'),), (True, 2)])
shapes = st.sampled_from([(), (0,), (2,), (3,), (4,), (5, 2), (5, 1), (5, 3), (3, 23), (5, 4), (0, 2), (2, 3, 4)])


@st.composite
def arrays(draw, torchy=False):
    "Arrays of many shapes, types and values."
    kind, shape = draw(st.sampled_from(['f', 'f', 'f', 'd', 'nan', 'inf', 'i', 'b', 'c', 'list', 'none', 'text'])), draw(shapes)
    x = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    x = {'d': lambda: x.astype(np.float64), 'nan': lambda: x*np.nan, 'inf': lambda: x*np.inf, 'i': lambda: x.astype(int), 'b': lambda: x > .5, 'c': lambda: x + 1j,
         'list': x.tolist, 'none': lambda: None, 'text': lambda: 'numbers'}.get(kind, lambda: x)()
    return torch.from_numpy(np.asarray(x)) if torchy and isinstance(x, (np.ndarray, np.generic)) else x


paths = st.sampled_from([FOLDER/'none.safetensors', str(FOLDER/'none'), FOLDER, FOLDER/'archive.safetensors', 'x'*5000, '', None, 5, b'bytes', FOLDER/'a\0b'])
BY_TYPE = {int: numbers, float: shares, str: words, bool: st.sampled_from([True, False, None, 2, 'no']), tuple: tuples, Path: paths, np.ndarray: arrays(), torch.Tensor: arrays(torchy=True),
           dict: st.sampled_from([{}, {'a': 1}, None, [], {'name': 'unet'}])}
MAKERS = {PolicySpec: lambda: SPEC, archive.Archive: small_archive, gen.Generator: small_generator, ae.Autoencoder: lambda: small_autoencoder()[0], dataset.Dataset: small_dataset,
          diffusion.Schedule: lambda: diffusion.cosine_schedule(10), gen.Sampling: gen.Sampling, ae.AutoencoderSettings: lambda: SMALL, behaviour.CompactSettings: lambda: COMPACT}


def public() -> dict:
    "'module.name' to every function and record that a user calls, cheaply and with arguments that can be made."
    found = {}
    for module in (import_module(f'policydiffusion.{m.name}') for m in pkgutil.iter_modules([str(HOME)]) if not m.name.startswith('_')):
        for name in module.__all__:
            f, room = getattr(module, name), module.__name__.split('.')[1]
            if name in HEAVY or {room, f'{room}.{name}'} & TRUSTED or not (inspect.isfunction(f) or is_dataclass(f) or hasattr(f, 'cache_clear')): continue
            parameters = inspect.signature(f).parameters.values()
            known = lambda p: p.annotation in BY_TYPE or p.annotation in MAKERS or p.default is not p.empty
            if parameters and all(known(p) and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters): found[f'{room}.{name}'] = f
    return found


PUBLIC = public()


@st.composite
def calls(draw):
    "A public function and arguments of the annotated types, sound and hostile ones."
    name, arguments = draw(st.sampled_from(sorted(PUBLIC))), {}
    for p in inspect.signature(PUBLIC[name]).parameters.values():
        if p.default is not p.empty and draw(st.booleans()): continue
        if p.annotation in MAKERS: arguments[p.name] = p.annotation
        elif p.annotation in BY_TYPE: arguments[p.name] = draw(BY_TYPE[p.annotation])
    return name, arguments


def probe_call(case) -> tuple:
    name, arguments = case
    made = {k: MAKERS[x]() if isinstance(x, type) and x in MAKERS else x for k, x in arguments.items()}
    verdict, detail = judge(lambda: PUBLIC[name](**made))
    return name, verdict, f'{detail} <- {core.brief(repr(arguments))}' if detail else ''


# ---- texts and settings

sentences = st.one_of(st.text(max_size=60), st.lists(st.one_of(st.text(max_size=20), st.none(), st.integers()), max_size=3), st.sampled_from(['run fast', 'hop, and, and', '...', 'a'*501, '\0', None, 5, {}, b'run']))


def probe_text(case) -> tuple:
    name, said = case
    return name, *judge(lambda: {'check_texts': text.check_texts, 'clauses': text.clauses, 'in_words': gen.in_words}[name](said))


fields_of = {gen.Sampling: ('sampler', 'n_steps', 'eta', 'guidance', 'clip', 'last'), gen.Design: ('n_measures', 'latent_shape', 'schedule_steps')}
presets = {'autoencoder_settings': ae.autoencoder_settings, 'compact_settings': behaviour.compact_settings, 'diffusion_settings': distil.diffusion_settings, 'compact_diffusion': distil.compact_diffusion,
           'relabel_settings': relabel.relabel_settings}


def probe_setting(case) -> tuple:
    "A preset by hostile names, or a record with a hostile field."
    which, a, b = case
    if which in presets: return which, *judge(lambda: presets[which](a, b) if which in ('autoencoder_settings', 'diffusion_settings') else presets[which](a))
    cls = {c.__name__: c for c in fields_of}[which]
    sound = {} if cls is gen.Sampling else {'n_measures': 2, 'latent_shape': (3,), 'decoder': {}, 'denoiser': {}}
    name = fields_of[cls][len(repr(a)) % len(fields_of[cls])]
    return which, *judge(lambda: cls(**sound | {name: b}))


ROOMS = {  # room to its strategy, its probe and its share of the cases
    'files': (st.tuples(kinds, mutations), probe_file, .4), 'bytes': (st.tuples(kinds, st.integers(0, 10**6), st.sampled_from(['flip', 'cut', 'insert', 'head']), st.integers(1, 255)), probe_bytes, .15),
    'calls': (calls(), probe_call, .3), 'texts': (st.tuples(st.sampled_from(['check_texts', 'clauses', 'in_words']), sentences), probe_text, .1),
    'settings': (st.tuples(st.sampled_from([*presets, 'Sampling', 'Design']), words, st.one_of(words, st.sampled_from(VALUES))), probe_setting, .05)}


def run(room: str, cases: int, tally: Tally) -> Tally:
    "So many cases of a room; Hypothesis chooses them, the same ones every time."
    strategy, probe, _ = ROOMS[room]

    @settings(max_examples=cases, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def cases_of(case): tally.add(room, *probe(case))
    cases_of()
    return tally


def report(tally: Tally) -> str:
    "Counts of every room, and a line for each finding."
    rows = [f"{room:>9}: {sum(n for (r, _), n in tally.counts.items() if r == room):6} cases, "
            + ', '.join(f"{tally.counts[room, v]} {v}" for v in ('clean', 'harmless', 'finding')) for room in ROOMS]
    return '\n'.join([*rows, *(f"{room} {name}: {detail}" for (room, name, _), detail in sorted(tally.findings.items()))])
