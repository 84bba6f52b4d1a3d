"""The number of CPU threads is not part of the fingerprint: it must not change a bit."""

import pytest
import torch


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("feature", ["clip_image", "blip2_image"])
def test_image_features_do_not_depend_on_the_number_of_threads(feature, backbone, threads):
    loaded = backbone(feature)
    pixels = torch.randint(0, 256, (32, 224, 224, 3), dtype=torch.uint8)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(loaded.embed(pixels))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("feature", ["clip_text", "blip2_text"])
def test_text_features_do_not_depend_on_the_number_of_threads(feature, backbone, threads):
    loaded = backbone(feature)
    ids = torch.randint(5, 50, (32, 100))
    mask = (torch.arange(100) < torch.randint(1, 101, (32, 1))).long()
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(loaded.embed(ids, mask))
    assert all(torch.equal(results[0], other) for other in results[1:])
