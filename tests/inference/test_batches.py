"""Mixed sizes: requests in order, batches of one size, numbers that must fit."""

import numpy as np
import pytest
import torch

from pixdec.inference.batches import batches, in_form, joined, levels_for, requests_of, sizes_for, stacked
from pixdec.latents import Latent, get_space

SPACE = get_space("flux1")


def latent(batch: int, height: int, width: int, sigma: float = 0.0) -> Latent:
    return Latent(torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(height)), SPACE, sigma)


def test_every_image_is_one_request_in_order():
    given = [latent(2, 2, 3, 0.25), latent(1, 4, 4), latent(1, 2, 3)]
    requests = requests_of(given, ["a", "b", "c", "d"], 7, [None, (8, 8), None])
    assert [each.place for each in requests] == [0, 1, 2, 3]
    assert [(each.caption, each.seed) for each in requests] == [("a", 7), ("b", 8), ("c", 9), ("d", 10)]
    assert [each.size for each in requests] == [None, None, (8, 8), None]
    assert [each.latent.sigma.tolist() for each in requests] == [[0.25], [0.25], [0], [0]]
    assert torch.equal(requests[1].latent.tensor, given[0].tensor[1:])


def test_batches_have_one_size_and_at_most_so_many():
    given = [latent(1, 2, 3), latent(1, 4, 4), latent(3, 2, 3, 0.5), latent(1, 4, 4)]
    requests = requests_of(given, "", 0, [None, None, None, (8, 8)])
    made = list(batches(requests, lambda request: 3))
    assert [[each.place for each in batch] for batch in made] == [[0, 2, 3], [4], [1], [5]]
    together = joined(made[0])
    assert together.tensor.shape == (3, 16, 2, 3)
    assert together.sigma.tolist() == [0, 0.5, 0.5]
    assert torch.equal(together.tensor[1:], given[2].tensor[:2])


def test_sizes_are_one_for_all_or_one_for_each_latent():
    assert sizes_for(None, 2) == [None, None]
    assert sizes_for((3, 4), 2) == sizes_for([3, 4], 2) == [(3, 4), (3, 4)]
    assert sizes_for([(3, 4), None], 2) == [(3, 4), None]
    for wrong, words in (
        ((3, 4, 5), r"size=\(3, 4, 5\)"),
        ((3, 0), "size"),
        ([(3, 4)], "1 sizes for 2"),
        ("x", "size"),
    ):
        with pytest.raises(ValueError, match=words):
            sizes_for(wrong, 2)  # type: ignore[arg-type]


def test_noise_levels_are_dealt_out():
    given = [torch.zeros(2, 16, 2, 2), latent(1, 2, 2, 0.5)]
    assert levels_for(None, given) == [None, None]
    assert [each.tolist() for each in levels_for(0.5, given) if each is not None] == [[0.5, 0.5], [0.5]]
    assert [each.tolist() for each in levels_for([0, 0.25, 1], given) if each is not None] == [[0, 0.25], [1]]
    with pytest.raises(ValueError, match="3 latents"):
        levels_for([0, 0.5], given)


def test_images_leave_as_asked_and_are_put_together_again():
    x0 = torch.linspace(-1, 1, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    tensors, arrays, pictures = (in_form(x0, form) for form in ("pt", "np", "pil"))
    assert torch.equal(torch.stack(list(tensors)), (x0 + 1) / 2)
    assert np.array_equal(np.stack(list(arrays)), ((x0 + 1) / 2).permute(0, 2, 3, 1).numpy())
    assert [picture.size for picture in pictures] == [(5, 4)] * 2
    one, two = stacked([tensors[0], tensors[0], tensors[1]], [1, 2])
    assert torch.equal(one, tensors[0][None])
    assert torch.equal(two, torch.stack(list(tensors)))
    assert one.data_ptr() == tensors[0].data_ptr(), "an image alone is not copied"
