"Whole files go to two workers: those that take longest first, so that none is left for the end."

LONGEST = ('test_search.py', 'test_rollout.py', 'test_batch_last.py', 'test_fuzz.py',
           'test_shipped.py', 'test_damage.py', 'test_practice.py', 'test_language.py')


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))  # keeps each file's order
