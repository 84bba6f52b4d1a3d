import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.records import Sample
from featurestore.samples import SampleList

# Whatever JSON may hold: undecodable bytes of a name are lone surrogates.
names = st.text(st.characters(codec=None), max_size=12)
rows = st.lists(st.tuples(names, names, names), max_size=6)


@given(rows)
def test_samples_come_back_as_they_were(rows: list[tuple[str, str, str]]) -> None:
    samples = [Sample(i, *row) for i, row in enumerate(rows)]
    packed = SampleList.of(samples)
    assert list(packed) == samples
    assert len(packed) == len(samples)
    assert packed == samples
    assert [packed[i] for i in range(-len(rows), len(rows))] == samples * 2
    assert packed[1:] == samples[1:]
    assert packed[::-2] == samples[::-2]
    assert SampleList(packed.lines) == packed
    assert pickle.loads(pickle.dumps(packed)) == packed
    assert [json.loads(line) for line in packed.lines.splitlines()] == [list(r) for r in rows]


def test_positions_become_indices() -> None:
    packed = SampleList.of([Sample(7, "b", "b.jpg", "b.json"), Sample(3, "a", "a.jpg", "a.json")])
    assert [s.index for s in packed] == [0, 1]
    assert SampleList.of(packed) is packed


def test_beyond_the_last() -> None:
    packed = SampleList.of([Sample(0, "a", "a.jpg", "a.json")])
    for index in (1, -2):
        with pytest.raises(IndexError):
            packed[index]


def test_others_are_not_equal() -> None:
    one = SampleList.of([Sample(0, "a", "a.jpg", "a.json")])
    assert one != SampleList.of([Sample(0, "a", "a.jpeg", "a.json")])
    assert one != SampleList.of([])
    assert one != [Sample(0, "b", "b.jpg", "b.json")]
    assert one != 1


def test_the_same_names_written_in_another_way_are_the_same_samples() -> None:
    assert SampleList(b'["a","a.jpg","a.json"]\n') == list(
        SampleList(b'["a", "a.jpg", "a.json"]\n')
    )
