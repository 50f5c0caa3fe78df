"""Any call of ``sparse_attention`` with the Triton stages in Triton's interpreter, against float64.

A call takes the interpreter a second: the cases are few and small. Not on a GPU yet: calls are drawn on the host, and the bound knows
nothing of tf32.
"""

import pytest
from hypothesis import Phase, given
from strategies import calls
from test_kernels import check_calls, examples
from triton_cases import DTYPES, GPU

pytest.importorskip("triton")


# Not shrunk: that takes hundreds of calls, each of which is seconds in the interpreter.
PHASES = (Phase.explicit, Phase.generate)


@pytest.mark.skipif(GPU, reason="drawn for the interpreter; test_cuda.py compares the stages on a GPU")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@examples(10, phases=PHASES)
@given(calls(DTYPES, dims=(64, 128), most_tokens=70, most_calls=1, most_heads=1, most_items=1, counts=(0, 1, 7, 18)))
def test_calls_keep_to_float64(call):
    check_calls(call, "triton")
