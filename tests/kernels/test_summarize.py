from dataclasses import astuple

import pytest
import torch
from kernel_inputs import stages
from svg_ear.kernels import reference


@pytest.mark.parametrize("tokens", [1, 3, 65, 1023])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_matches_the_reference(tokens, dtype):
    case = stages(tokens=tokens, group_count=1, key_count=min(tokens, 17), dtype=dtype, batch=2)
    wide = type(case.sorted_keys)(case.sorted_keys.keys.double(), case.sorted_keys.values.double(), case.clusters)
    for found, expected in zip(astuple(case.summaries), astuple(reference.summarize(wide))):
        assert torch.equal(found.isinf(), expected.isinf())
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)
