import pytest
from svg_ear.kernels import Settings
from svg_ear.nodes.patch.options import PRESETS, Options


def test_presets_supply_everything_but_the_density():
    assert Options(method="svg2", weighted_centroids=False).settings() == PRESETS["balanced"]
    assert Options(preset="fast", density=0.3).settings() == Settings(density=0.3)


def test_custom_takes_the_widgets():
    settings = Options(preset="custom", density=0.15, method="svg2", kmeans_next=3).settings()
    assert settings == Settings(density=0.15, method="svg2", kmeans_next=3)
    assert Options(preset="custom", budget="top-p", top_p=0.7).settings().top_p == 0.7


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"preset": "custom"}, "set density .* or set budget to top-p"),
        ({"preset": "best"}, "choose one of quality, balanced, fast, few-step, custom"),
        ({"density": 1.5}, "must lie between 0 and 1"),
        ({"preset": "custom", "density": 0.1, "method": "svg3"}, "choose one of svg-ear, svg2"),
        ({"start_percent": 0.5, "end_percent": 0.4}, "start_percent must not be the larger one"),
        ({"dense_blocks": "a"}, "dense_blocks has 'a'"),
    ],
)
def test_invalid_widgets_say_what_to_change(widgets, message):
    with pytest.raises(ValueError, match=message):
        Options(**widgets)


def test_memory_limit_is_bytes():
    assert Options().memory_limit() is None
    assert Options(memory_limit_mb=3).memory_limit() == 3 * 2**20
