import pytest

from consumers.workers.share import Share
from featurestore.errors import ConfigError


@pytest.mark.parametrize("text", ["4", "", "a/b", "2/2", "3/2", "0/0", "-1/2", "1/2/3", "1.0/2"])
def test_what_is_not_a_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="K/N") as caught:
        Share.parse(text)
    assert "--producers sets the number of producer processes" in str(caught.value)


def test_a_share_is_printed_as_it_is_given() -> None:
    assert str(Share.parse(" 3/16 ")) == "3/16"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("chunks", [1, 5, 16, 100])
def test_the_parts_of_all_workers_are_all_chunks(chunks: int, count: int) -> None:
    parts = [Share(index, count).part(chunks) for index in range(count)]
    assert [chunk for part in parts for chunk in part] == list(range(chunks))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_devices_of_all_machines_are_different_workers() -> None:
    workers = [share for index in range(3) for share in Share(index, 3).split(4)]
    assert workers == [Share(index, 12) for index in range(12)]
