import pytest
from svg_ear.kernels import SequenceLayout, Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(method="svg3"), "method is 'svg3'; choose one of svg-ear, svg2"),
        (dict(budget="all"), "budget is 'all'; choose one of density, top-p"),
        (dict(probe_score="best"), "choose one of error, mass"),
        (dict(density=1.5), "density is 1.5; it is a share"),
        (dict(top_p=-0.1), "top_p is -0.1"),
        (dict(key_clusters=-1), "key_clusters is -1; it must be at least 0"),
        (dict(kmeans_next=0), "kmeans_next is 0; it must be at least 1"),
        (dict(recluster_every=0), "recluster_every is 0"),
        (dict(kmeans_candidates=24), "kmeans_candidates is 24; it must be 0 or a power of two"),
        (dict(kmeans_candidates=8), "at least 16"),
        (dict(density=float("nan")), "density is nan"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


@pytest.mark.parametrize(
    ("video", "conditioning", "message"),
    [
        (range(0), (), "video and queries not empty"),
        (range(0, 10, 2), (), "step 1"),
        (range(5, 10), (range(0, 6),), "overlap"),
        (range(5, 10), (range(0, 3), range(2, 4)), "overlap"),
    ],
)
def test_layouts_that_make_no_sense_are_refused(video, conditioning, message):
    with pytest.raises(ValueError, match=message):
        SequenceLayout(video, conditioning)
