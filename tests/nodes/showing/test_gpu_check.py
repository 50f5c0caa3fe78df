import numpy
import pytest
from findings_made import findings
from svg_ear.nodes.showing.gpu_check import gpu_check_figure


def colors(picture):
    return {tuple(color) for color in numpy.asarray(picture).reshape(-1, 3)}


@pytest.mark.parametrize("width", [700, 1400])
def test_it_draws_a_panel_for_each_number_of_heads(width):
    picture = gpu_check_figure(findings(), "What was found", width)
    assert picture.width == width
    alone = gpu_check_figure(None, "What was found", width)
    assert picture.height > 2 * alone.height
    assert len(colors(picture)) > len(colors(alone))


def test_a_single_length_is_drawn_too():
    assert gpu_check_figure(findings(((12, 8192),)), "One length", 700).width == 700


def test_a_sentence_alone_is_text_on_paper():
    picture = numpy.asarray(gpu_check_figure(None, "Nothing to check: there is no GPU here.", 1400))
    assert (picture == 255).mean() > 0.9 and picture.min() < 100
