import pytest
import torch
from triton_cases import DEVICE

pytest.importorskip("triton")
from svg_ear.kernels.triton_stages.sort import sort_by_label  # noqa: E402


@pytest.mark.parametrize("kind", [torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (127, 3), (129, 129), (2049, 40), (5000, 1024), (4096, 1100)])
def test_it_sorts_stably(tokens, count, kind):
    labels = torch.randint(count, (2, 2, tokens), generator=torch.Generator().manual_seed(tokens)).to(DEVICE, kind)
    found = sort_by_label(labels, count)
    assert torch.equal(found.order.long(), labels.argsort(dim=-1, stable=True))
    sizes = torch.zeros(2, 2, count, dtype=torch.int64, device=DEVICE).scatter_add_(-1, labels.long(), torch.ones_like(labels.long()))
    assert torch.equal(found.sizes.long(), sizes)
    assert torch.equal(found.offsets[..., 1:].long(), sizes.cumsum(-1)) and (found.offsets[..., 0] == 0).all()


def test_strides_do_not_matter():
    labels = torch.randint(7, (1, 3, 300), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert torch.equal(sort_by_label(labels.mT.contiguous().mT, 7).order, sort_by_label(labels, 7).order)
