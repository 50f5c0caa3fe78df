"""What a call has to give, in float64, and how far rounding may take it from that.

Where a call draws its clusters and which blocks it keeps may hang on the last bit of a score: those are taken as they were observed, and
checked for what they have to keep to. Everything behind them is computed anew.
"""

from copy import copy
from dataclasses import dataclass, replace

import torch
from rounded import Rounded, Turned, by_row, logits_off, middle_of
from svg_ear.kernels import reference
from svg_ear.kernels.blocks import ANCHOR_EVERY
from svg_ear.kernels.counts import largest_key_cluster
from svg_ear.kernels.numerics import compute_dtype
from svg_ear.kernels.settings import CALIBRATED
from svg_ear.kernels.statistics import LARGEST_ERROR
from svg_ear.kernels.types import Clusters, Conditioning, Routing

# Biases from here down hide a key.
HIDDEN = -1e4
# Half the distance of 1 to the next number, and of 0 to the next.
UNIT = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-24, torch.float64: 2**-53}
SMALLEST = {torch.float16: 2**-25, torch.bfloat16: 2**-134, torch.float32: 2**-150, torch.float64: 0.0}


@dataclass(frozen=True)
class Arithmetic:
    """How the stages compute on inputs of one dtype.

    Attributes:
        dtype: of the inputs and of the output.
        narrow: whether products take that dtype: weights, centroids and their values are then rounded to it.
    """

    dtype: torch.dtype
    narrow: bool

    @property
    def work(self) -> float:
        """Rounding of a sum."""
        return UNIT[compute_dtype(self.dtype)]

    def logits(self, magnitudes, dim, off=0):
        """How far off a weight may be, as a factor less 1, from the sums of absolute products behind its logits.

        A weight takes up to three logits (of the row, and two of the mean query), which besides are ``off`` together; a share of attention
        two weights.
        """
        return torch.expm1((2 * 3 * (dim + 8) * self.work * 2 * magnitudes + 2 * off).clamp(max=50))


def check(q, k, v, settings, layouts, scale, arithmetic, result, seen, repeating=(), biases=None):
    """Compare the ``result`` of a call with float64; ``seen`` are the observed :class:`RoutedHeads` of all its chunks.

    ``repeating`` are the heads of which only anchors are computed.
    """
    biases = torch.zeros(k.shape[:3]) if biases is None else biases.cpu().expand(k.shape[:3])
    assert result.output.shape == q.shape and result.output.dtype == q.dtype
    for name in ("density", "group_shares", "estimated_error"):
        assert getattr(result.statistics, name).isfinite().all(), name
    q, k, v, output = (tensor.cpu() for tensor in (q, k, v, result.output))
    for routed in seen:
        routed = _on_cpu(routed)
        heads, item = slice(routed.heads.start, routed.heads.stop), slice(routed.item, routed.item + 1)
        layout = layouts[routed.item]
        tensors = (tensor[item, heads].double() for tensor in (q, k, v, biases))
        part = _Part(*tensors, settings, layout, scale, arithmetic, routed, repeating)
        part.check_clusters()
        part.check_routing()
        part.check_surroundings(output[item, heads].double())
        part = part.in_int8() if settings.precision == "int8" else part
        part.check_output(output[item, heads].double())
        if settings.compensates:
            part.check_error(result.statistics.estimated_error[item, heads].cpu())
    assert sorted((routed.item, head) for routed in seen for head in routed.heads) == [
        (item, head) for item in range(q.shape[0]) for head in range(q.shape[1])
    ]


def _on_cpu(routed):
    def moved(value):
        if isinstance(value, torch.Tensor):
            return value.cpu()
        if isinstance(value, Clusters):
            return Clusters(value.labels.cpu().long(), value.centroids.cpu().double(), value.sizes.cpu().long(), value.order.cpu().long())
        return value

    routing, probe = routed.routing, routed.probe
    return replace(
        routed,
        query_groups=moved(routed.query_groups),
        key_clusters=moved(routed.key_clusters),
        routing=replace(routing, exact=routing.exact.cpu(), shares=routing.shares.cpu(), rows=None),
        probe=replace(probe, errors=probe.errors.cpu().double(), masses=probe.masses.cpu().double(), output_norms=probe.output_norms.cpu()),
    )


class _Part:
    """Some heads of one batch item, in float64."""

    def __init__(self, q, k, v, biases, settings, layout, scale, arithmetic, routed, repeating):
        self.repeating = repeating
        self.q, self.k, self.v, self.settings, self.layout, self.scale = q, k, v, settings, layout, scale
        self.arithmetic, self.routed = arithmetic, routed
        video = slice(layout.video.start, layout.video.stop)
        self.routed_rows = slice(layout.routed_queries.start, layout.routed_queries.stop)
        self.queries, self.keys, self.values = q[:, :, self.routed_rows], k[:, :, video], v[:, :, video]
        outside = [position for span in layout.conditioning for position in span]
        self.conditioning = Conditioning(k[:, :, outside], v[:, :, outside], biases[:, :, outside])
        self.visible_biases = torch.nn.functional.pad(self.conditioning.biases, (self.keys.shape[2], 0))[:, :, None]
        self.groups, self.clusters = self._rounded(routed.query_groups), self._rounded(routed.key_clusters)
        self.visible_keys = torch.cat((self.keys, self.conditioning.keys), dim=2)
        self.visible_values = torch.cat((self.values, self.conditioning.values), dim=2)
        self.dim, self.count = q.shape[-1], self.visible_keys.shape[2]
        # How far products of rows, and of mean queries, may be off beside the rounding of their sums.
        self.rows_off = self.groups_off = 0

    def in_int8(self):
        """The same heads with what int8 leaves of queries and keys: those are tensors like any others."""
        kind, part = self.arithmetic, copy(self)
        key_means, mean_queries = (
            Turned.of(clusters.centroids.to(kind.dtype).double(), kind.work) for clusters in (self.clusters, self.groups)
        )
        keys = Turned.of(self.keys, kind.work)
        middle, *scales = middle_of(keys, kind.work)
        video, means = (Rounded.of(rows.minus(middle, kind.work), *scales) for rows in (keys, key_means))
        extra = by_row(Turned.of(self.conditioning.keys, kind.work).minus(middle, kind.work), kind.work)
        queries, mean_queries = by_row(Turned.of(self.queries, kind.work), kind.work), by_row(mean_queries, kind.work)
        seen = Rounded(
            torch.cat((video.rows, means.rows, extra.rows), 2),
            torch.cat((video.off, means.off, extra.off), 2),
            torch.cat((*(table.steps.expand(*table.rows.shape[:3], 1) for table in (video, means)), extra.steps), 2),
        )
        # The centroid of an empty cluster may lie anywhere.
        visible = torch.cat((torch.ones_like(self.keys[..., 0], dtype=torch.bool), self.clusters.sizes > 0), 2)
        visible = torch.cat((visible, self.conditioning.biases > HIDDEN), 2)[:, :, None]
        part.rows_off, part.groups_off = (abs(self.scale) * logits_off(rows, seen, visible) for rows in (queries, mean_queries))
        part.queries, part.keys = queries.rows, video.rows
        part.groups, part.clusters = (
            replace(clusters, centroids=rows.rows) for clusters, rows in ((self.groups, mean_queries), (self.clusters, means))
        )
        part.conditioning = replace(self.conditioning, keys=extra.rows)
        part.visible_keys = torch.cat((part.keys, part.conditioning.keys), dim=2)
        return part

    def _rounded(self, clusters):
        kind = self.arithmetic.dtype
        return replace(clusters, centroids=clusters.centroids.to(kind).double()) if self.arithmetic.narrow else clusters

    def _magnitudes(self, queries):
        """The largest sum of absolute products behind a logit of each query ``[1, H, n, 1]``."""
        sums = abs(self.scale) * queries.abs() @ self.visible_keys.abs().mT
        # A key that a bias hides takes no part.
        return torch.where(self.visible_biases > HIDDEN, sums + self.visible_biases.abs(), 0).amax(-1, keepdim=True)

    def check_clusters(self):
        """Labels, order and sizes are one partition, and centroids are its means."""
        for clusters, tokens in ((self.routed.query_groups, self.queries), (self.routed.key_clusters, self.keys)):
            count = clusters.sizes.shape[2]
            members = torch.nn.functional.one_hot(clusters.labels, count)
            assert torch.equal(clusters.order.sort(-1).values, torch.arange(tokens.shape[2]).expand_as(clusters.order))
            if clusters is self.routed.key_clusters or self.settings.method != CALIBRATED:
                assert torch.equal(members.sum(2), clusters.sizes)
                assert torch.equal(clusters.order, clusters.labels.argsort(dim=-1, stable=True))
            sizes = members.sum(2)[..., None]
            means, mean_sizes = (members.double().mT @ table / sizes.clamp(min=1) for table in (tokens, tokens.abs()))
            bound = (tokens.shape[2] + 4) * self.arithmetic.work * mean_sizes + SMALLEST[compute_dtype(self.arithmetic.dtype)]
            assert ((clusters.centroids - means).abs() <= bound)[(sizes > 0).expand_as(means)].all()
        if self.settings.method != CALIBRATED:
            assert self.routed.key_clusters.sizes.max() <= largest_key_cluster(self.keys.shape[2], self.settings)

    def check_routing(self):
        """Each group keeps the blocks of highest priority, and spends what was asked."""
        settings, exact, tokens = self.settings, self.routed.routing.exact, self.keys.shape[2]
        sizes = self.routed.key_clusters.sizes[:, :, None]
        spent = (exact * sizes).sum(-1)
        torch.testing.assert_close(self.routed.routing.shares.double(), spent.double() / tokens, rtol=1e-6, atol=0)
        assert not (exact & (sizes == 0)).any()
        if settings.method == CALIBRATED:
            return
        probe = self.routed.probe
        by_mass = settings.method == "svg2" or settings.probe_score == "mass"
        priority = probe.masses if by_mass else probe.errors / sizes
        kept = torch.where(exact, priority, torch.inf).amin(-1)
        skipped = torch.where(exact | (sizes == 0), -torch.inf, priority).amax(-1)
        # Divided in float32 there, where next to nothing becomes nothing.
        assert (kept >= skipped * (1 - 1e-6) - SMALLEST[compute_dtype(self.arithmetic.dtype)]).all()
        largest = largest_key_cluster(tokens, settings)
        floor = max(settings.min_share * tokens, 0 if settings.compensates else 1)
        assert (spent >= min(floor, tokens) - 1e-6 * tokens).all()
        if settings.budget == "density":
            wanted = settings.density * tokens
            assert (spent >= wanted - largest / 2 - 1).all()
            assert (spent <= torch.tensor(max(wanted + largest / 2, floor + largest)) + 1).all()
        if settings.density == 1 and settings.budget == "density":
            assert (spent == tokens).all()

    def expected(self, values_of=lambda values: values):
        """The output of the video's queries, of values changed by ``values_of``."""
        values, extra = values_of(self.values), values_of(self.conditioning.values)
        sorted_keys = reference.permute(self.keys, values, self.clusters)
        conditioning = replace(self.conditioning, values=extra)
        summaries = reference.summarize(sorted_keys)
        routing = Routing(self.routed.routing.exact, self.routed.routing.shares)
        return reference.attend(self.queries, self.groups, sorted_keys, conditioning, summaries, routing, self.settings, self.scale)

    def bound(self, expected, absolute, queries, off=0):
        """Of the difference from ``expected``; ``absolute`` is the same attention to absolute values, ``off`` as in :class:`Arithmetic`."""
        kind = self.arithmetic
        factor = kind.logits(self._magnitudes(queries), self.dim, off) + (self.count + 8) * kind.work
        # Narrow weights, of tokens within a centroid and of all rows, and narrow values of centroids.
        factor = factor + (4 * UNIT[kind.dtype] if kind.narrow else 0)
        # What is too small for the dtype: a weight (relative to the largest, whose sum is at least one) or an output.
        lost = SMALLEST[kind.dtype] * (2 * self.visible_values.abs().sum(2, keepdim=True) + 4) if kind.narrow else SMALLEST[kind.dtype]
        lost = lost + SMALLEST[compute_dtype(kind.dtype)] * (2 * self.visible_values.abs().sum(2, keepdim=True) + 4)
        return factor * absolute + UNIT[kind.dtype] * expected.abs() + lost

    def check_output(self, output):
        """The video's rows; of repeating heads those of the anchors."""
        expected = self.expected()
        magnitudes = self._of_rows(self.groups.centroids.abs())
        off = self.rows_off + 2 * self._of_rows(self.groups_off)
        bound = self.bound(expected, self.expected(torch.abs), torch.maximum(self.queries.abs(), magnitudes), off)
        computed = torch.take_along_dim(self.routed.query_groups.sizes, self.groups.labels, dim=2) > 0
        repeating = torch.tensor([head in self.repeating for head in self.routed.heads])[:, None]
        assert torch.equal(computed, (self.groups.labels % ANCHOR_EVERY == 0) | ~repeating)
        within(output[:, :, self.routed_rows], expected, bound, computed[..., None])

    def _of_rows(self, table):
        """A ``table`` of groups ``[1, H, G, n]`` by rows."""
        return torch.take_along_dim(table, self.groups.labels[..., None], dim=2) if isinstance(table, torch.Tensor) else table

    def check_surroundings(self, output):
        """Rows outside the video are dense."""
        outside = [position for position in range(self.q.shape[2]) if position not in self.layout.routed_queries]
        if outside:
            queries = self.q[:, :, outside]
            weights = (self.scale * queries @ self.visible_keys.mT + self.visible_biases).softmax(-1)
            expected, absolute = weights @ self.visible_values, weights @ self.visible_values.abs()
            bound = self.bound(expected, absolute, queries)
            # PyTorch may round logits and weights of a dense call to the dtype.
            bound = bound + torch.expm1(4 * UNIT[self.arithmetic.dtype] * (1 + self._magnitudes(queries)).clamp(max=1e4)) * absolute
            within(output[:, :, outside], expected, bound)

    def check_error(self, found):
        """The estimated error lies where rounding of the probe's sums may have taken it."""
        kind, sizes = self.arithmetic, self.routed.query_groups.sizes.double()
        clusters, groups = self.clusters, self.groups.centroids
        sorted_keys = reference.permute(self.keys, self.values, clusters)
        summaries = reference.summarize(sorted_keys)
        weighted = self.settings.weights_centroids
        probe = reference.probe_tokens(groups, sorted_keys, self.conditioning, summaries, weighted, self.scale)
        terms, reach = self._magnitudes_of_errors(summaries, sorted_keys, probe)
        factor = kind.logits(self._magnitudes(groups), self.dim, 3 * self.groups_off) + (self.count + self.dim + 16) * kind.work
        skipped = ~self.routed.routing.exact
        tiny = SMALLEST[compute_dtype(kind.dtype)] * (2 + summaries.value_norms.sum(-1))[:, :, None]

        def total(table):
            return (table * sizes).sum(-1)

        errors, off = total((probe.errors * skipped).sum(-1)), total((terms * skipped * 4 * factor).sum(-1) + self.count * tiny)
        norms, norms_off = total(probe.output_norms), total(2 * (2 * factor.squeeze(-1) + factor.squeeze(-1) ** 2) * reach**2 + tiny)
        low = ((errors - off).clamp(min=0) / (norms + norms_off).clamp(min=1e-300)).sqrt()
        high = ((errors + off) / (norms - norms_off).clamp(min=1e-300)).sqrt()
        assert (found.double() >= low.clamp(max=LARGEST_ERROR) * (1 - 1e-6)).all(), (found, low, high)
        assert (found.double() <= high * (1 + 1e-6) + 1e-30).all(), (found, low, high)

    def _magnitudes_of_errors(self, summaries, sorted_keys, probe):
        """Sums of the absolute terms of each block's error, and of each output."""
        clusters = sorted_keys.clusters
        members = torch.nn.functional.one_hot(clusters.sorted_labels, clusters.sizes.shape[-1]).double()
        keys = torch.cat((sorted_keys.keys, self.conditioning.keys), dim=2)
        logits = self.scale * self.groups.centroids @ keys.mT + self.visible_biases
        denominators = logits.logsumexp(-1, keepdim=True)
        video, extra = (logits - denominators).exp().split((self.keys.shape[2], self.conditioning.keys.shape[2]), dim=-1)
        at_means = (self.scale * self.groups.centroids @ summaries.key_means.mT - denominators).exp()
        # The centroid of an empty cluster may lie anywhere.
        at_means = at_means.masked_fill(clusters.sizes[:, :, None] == 0, 0)
        lengths, mean_lengths = summaries.value_norms.sqrt()[:, :, None], summaries.value_means.norm(dim=-1)[:, :, None]
        own = (video * lengths) @ members
        terms = (video * lengths).square() @ members + 2 * at_means * mean_lengths * own
        terms = terms + clusters.sizes[:, :, None] * (at_means * mean_lengths).square()
        reach = (probe.masses * mean_lengths).sum(-1) + (extra * self.conditioning.values.norm(dim=-1)[:, :, None]).sum(-1)
        return terms, reach


def within(found, expected, bound, where=True):
    """Fail where ``found`` is farther from ``expected`` than ``bound``."""
    difference = (found - expected).abs()
    bad = ~(difference <= bound) & torch.as_tensor(where)
    if bad.any():
        worst = torch.where(bad, difference / bound, 0).nan_to_num(torch.inf).max().item()
        raise AssertionError(f"{bad.sum().item()} of {bad.numel()} elements are off, the worst {worst:.3g} times as far as rounding goes")
