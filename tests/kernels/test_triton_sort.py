import pytest
import torch
from triton_cases import DEVICE, GPU

pytest.importorskip("triton")
from svg_ear.kernels.triton_stages.sort import sort_by_label  # noqa: E402


@pytest.mark.parametrize(
    ("tokens", "count", "kind"),
    [
        (1, 1, torch.int16),
        (63, 3, torch.int64),
        (64, 64, torch.int32),
        (129, 129, torch.int16),
        (700, 1024, torch.int32),
        (2049, 1100, torch.int16),
        pytest.param(30_011, 512, torch.int16, marks=pytest.mark.skipif(not GPU, reason="no CUDA GPU")),
    ],
)
def test_it_sorts_stably(tokens, count, kind):
    items = 2 if tokens < 1000 else 1
    labels = torch.randint(count, (items, 2, tokens), generator=torch.Generator().manual_seed(tokens)).to(DEVICE, kind)
    found = sort_by_label(labels, count)
    assert torch.equal(found.order.long(), labels.argsort(dim=-1, stable=True))
    sizes = torch.zeros(items, 2, count, dtype=torch.int64, device=DEVICE).scatter_add_(-1, labels.long(), torch.ones_like(labels.long()))
    assert torch.equal(found.sizes.long(), sizes)
    assert torch.equal(found.offsets[..., 1:].long(), sizes.cumsum(-1)) and (found.offsets[..., 0] == 0).all()


def test_strides_do_not_matter():
    labels = torch.randint(7, (1, 3, 300), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert torch.equal(sort_by_label(labels.mT.contiguous().mT, 7).order, sort_by_label(labels, 7).order)
