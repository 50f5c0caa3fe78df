import pytest
import torch
from svg_ear.kernels import tuning
from svg_ear.kernels.behind import ROWS_BEHIND
from svg_ear.kernels.tuning import ATTEND, FLOAT32, PROBE, SAFE, Tiles, attend_choices, attend_tiles, probe_choices, probe_tiles, use

GPU = torch.device("cuda", 0)
HALF, FULL = 2, 4
NUMBERS = (*ATTEND, 0)


@pytest.fixture
def gpu(monkeypatch):
    """Calls before which ``GPU`` is of an architecture."""
    monkeypatch.setattr(tuning, "_IN_USE", {})
    return lambda number: monkeypatch.setattr(tuning, "architecture", lambda device: number)


@pytest.mark.parametrize("number", NUMBERS)
def test_choices_begin_with_the_table_and_differ(gpu, number):
    gpu(number)
    for choices, table in ((attend_choices(GPU), ATTEND.get(number, (SAFE,))), (probe_choices(GPU), PROBE.get(number, SAFE))):
        assert choices[0] == table
        assert 3 <= len(choices) == len(set(choices)) <= 4


@pytest.mark.parametrize("number", NUMBERS)
def test_every_choice_is_one_that_kernels_can_take(gpu, number):
    gpu(number)
    for tiles in (*(tiles for shapes in attend_choices(GPU) for tiles in shapes), *probe_choices(GPU)):
        assert all(size.bit_count() == 1 for size in (tiles.rows, tiles.keys, tiles.warps))
        assert 16 <= tiles.rows <= 128 and 16 <= tiles.keys <= ROWS_BEHIND and 4 <= tiles.warps <= 8
        assert 1 <= tiles.stages <= (3 if number else 1)
    for shapes in attend_choices(GPU):
        assert len(shapes) == 1 or (len(shapes) == 2 and shapes[0].rows > shapes[1].rows)


def test_kernels_take_what_is_in_use_until_the_table_is_back(gpu):
    gpu(90)
    attend, probe = attend_choices(GPU)[1], probe_choices(GPU)[2]
    use(GPU, attend, probe)
    assert (attend_tiles(GPU, HALF), probe_tiles(GPU, HALF)) == (attend, probe)
    assert (attend_tiles(GPU, FULL), probe_tiles(GPU, FULL)) == ((FLOAT32,), FLOAT32)
    assert attend_tiles(torch.device("cuda", 1), HALF) == ATTEND[90]
    use(GPU, attend)
    assert (attend_tiles(GPU, HALF), probe_tiles(GPU, HALF)) == (attend, PROBE[90])
    use(GPU)
    assert (attend_tiles(GPU, HALF), probe_tiles(GPU, HALF)) == (ATTEND[90], PROBE[90])


@pytest.mark.parametrize(
    "tiles", [{"attend": (Tiles(64, 48, 4, 3),)}, {"attend": (Tiles(512, 512, 4, 3),)}, {"probe": Tiles(64, 64, 4, 30)}, {"attend": ()}]
)
def test_nothing_else_reaches_the_compiler(gpu, tiles):
    gpu(90)
    with pytest.raises(ValueError, match="choose one of"):
        use(GPU, **tiles)
    assert (attend_tiles(GPU, HALF), probe_tiles(GPU, HALF)) == (ATTEND[90], PROBE[90])
