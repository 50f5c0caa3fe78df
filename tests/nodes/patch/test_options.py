import pytest
from fake_comfyui import MODELS, options
from svg_ear.kernels import Settings
from svg_ear.nodes.patch.identity import layer_count
from svg_ear.nodes.patch.options import PRESETS, CustomSettings, Options, RecordingOptions, ScheduleOptions


def test_presets_supply_everything_but_the_density():
    assert Options().settings() == PRESETS["balanced"]
    assert Options(preset="fast", density=0.3).settings() == Settings(density=0.3)


def test_the_density_of_the_first_step():
    found = {preset: Options(preset=preset).first_density() for preset in PRESETS}
    assert found == {"quality": 0.6, "balanced": 0.35, "fast": 0.25, "few-step": 0.3}
    assert Options(warm_up_density=0.4).first_density() == 0.4
    assert Options(density=0.5).first_density() == Options(density=0.5, warm_up_density=0.2).first_density() == 0.5
    assert Options(warm_up_density=0.0).first_density() is None


def test_custom_settings_have_dense_first_steps_unless_asked():
    own = {"preset": "custom", "method": "svg2"}
    assert options(**own).first_density() is None and options(**own).warm_up_steps(20) == 4
    assert options(**own, warm_up_density=0.4).first_density() == 0.4 and options(**own, warm_up_density=0.4).warm_up_steps(20) == 0


def test_first_steps_are_dense_by_themselves_only_where_the_density_does_not_fall():
    assert [Options(preset=preset).warm_up_steps(20) for preset in PRESETS] == [0, 0, 0, 0]
    assert [Options(preset=preset, warm_up_density=0.0).warm_up_steps(20) for preset in PRESETS] == [4, 4, 4, 0]
    assert Options(dense_first_steps=2).warm_up_steps(20) == 2


def test_custom_takes_what_is_connected():
    settings = options(preset="custom", density=0.15, method="svg2", kmeans_next=3).settings()
    assert settings == Settings(density=0.15, method="svg2", kmeans_next=3)
    assert options(preset="custom", budget="top-p", top_p=0.7).settings().top_p == 0.7
    assert options(preset="custom", method="svg2").settings().density == 0.1


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"preset": "best"}, "choose one of quality, balanced, fast, few-step, custom"),
        ({"density": 1.5}, "must lie between 0 and 1"),
        ({"preset": "custom", "density": 0.1, "method": "svg3"}, "choose one of svg-ear, svg2"),
        ({"start_percent": 0.5, "end_percent": 0.4}, "start_percent must not be the larger one"),
        ({"dense_blocks": "a"}, "dense_blocks has 'a'"),
        ({"record_layers": "first"}, "layers has 'first'"),
        ({"preset": "custom"}, "nothing is connected to settings: connect SVG-EAR Custom Settings or SVG-EAR Load Calibration, or choose"),
        ({"preset": "fast", "method": "svg2"}, "preset is fast, and something is connected.*set preset to custom, or disconnect it"),
        ({"warm_up_density": -0.5}, "warm_up_density is -0.5; it must lie between 0 and 1, or be -1"),
        ({"warm_up_density": 1.5}, "warm_up_density is 1.5; it must lie"),
        ({"preset": "custom", "budget": "top-p", "warm_up_density": 0.2}, "but budget top-p has no density: set warm_up_density to -1"),
        ({"preset": "custom", "budget": "top-p", "density": 0.2}, "density is 0.2, but budget top-p has no density: set density to 0"),
    ],
)
def test_invalid_widgets_say_what_to_change(widgets, message):
    with pytest.raises(ValueError, match=message):
        options(**widgets)


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"density": "lots"}, "density is 'lots'; it must be a number, such as 0.0"),
        ({"warm_up_density": "most"}, "warm_up_density is 'most'; it must be a number"),
        ({"dense_blocks": 3}, "dense_blocks is 3; it must be text, such as '0'"),
        ({"min_tokens": 1.5}, "min_tokens is 1.5; it must be a whole number, such as -1"),
        ({"strict": "yes"}, "strict is 'yes'; it must be on or off"),
        ({"preset": "custom", "top_p": "most"}, "top_p is 'most'; it must be a number, such as 0.85"),
        ({"start_percent": "early"}, "start_percent is 'early'; it must be a number"),
        ({"record_layers": 3}, "layers is 3; it must be text, such as 'auto'"),
        ({"dense_first_steps": -2}, "dense_first_steps is -2; it must be at least -1"),
        ({"min_tokens": -2}, "min_tokens is -2; it must be at least -1"),
        ({"dense_last_steps": -1}, "dense_last_steps is -1; it must be at least 0"),
        ({"memory_limit_mb": -1}, "memory_limit_mb is -1; it must be at least 0"),
    ],
)
def test_what_a_link_may_carry_is_refused_by_name(widgets, message):
    with pytest.raises(ValueError, match=message):
        options(**widgets)


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"dense_blocks": "99"}, "dense_blocks has 99, which does not exist: write 0 to 7, or -1 to -8"),
        ({"dense_blocks": "0, 5-8"}, "dense_blocks has 8, which does not exist"),
        ({"dense_blocks": "-9"}, "dense_blocks has -9"),
        ({"dense_blocks": "3--8"}, "dense_blocks has 3--8, which of 8 is a falling range"),
        ({"record_layers": "8"}, "layers of SVG-EAR Record has 8"),
    ],
)
def test_layers_that_do_not_exist_are_refused(widgets, message):
    with pytest.raises(ValueError, match=message):
        options(**widgets).require_layers(8)


@pytest.mark.parametrize("text", ["", "0", "-1", "-8", "7", "0-7", "-8--1", "2--1"])
def test_layers_that_exist_pass(text):
    options(dense_blocks=text, record_layers=text).require_layers(8)


def test_layers_are_counted_where_the_model_is_known():
    counted = {name: layer_count(model()) for name, model in MODELS.items()}
    assert counted == {"wan": 4, "animate2": 4, "kandinsky": 2, "hunyuan": 5, "ltx": 2, "minimax": 3, "unknown": None}


def test_without_nodes_beside_it_nothing_changes():
    assert Options() == Options(schedule=ScheduleOptions(0.0, 1.0, 0), recording=RecordingOptions("auto", "auto", "auto", 64))
    assert CustomSettings.of() == CustomSettings(Settings())


def test_memory_limit_is_bytes():
    assert Options().memory_limit() is None
    assert Options(memory_limit_mb=3).memory_limit() == 3 * 2**20


def test_a_precision_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="precision is 'fp8'; choose one of auto, full, int8"):
        Options(precision="fp8")
