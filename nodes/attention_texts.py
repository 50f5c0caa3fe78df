"""What the inputs of SVG-EAR Sparse Attention say of themselves."""

TOOLTIPS = {
    "model": "A video model: Wan 2.1 or 2.2, HunyuanVideo 1.0 or 1.5, or LTX-Video.",
    "preset": (
        "Trades speed against closeness to dense attention: quality computes 20 % of the pairs exactly (37 to 39 dB PSNR "
        "against the dense clip on our own small model without CFG), balanced 10 % (33 to 35 dB), fast 5 % (29 to 30 dB); "
        "few-step is for 4 to 8 step models (lightning, turbo): 30 % and no dense warm-up (38 to 39 dB). A preset sets "
        "everything from method to probe_score; those inputs count only with custom."
    ),
    "density": (
        "Share of the query-key pairs computed exactly. Lower is faster and further from dense; 0 takes the preset's. Try 0.1 "
        "first, raise it when details or motion suffer. Counts with every preset."
    ),
    "method": (
        "svg-ear estimates the skipped pairs from cluster averages; svg2 drops them, which saves little time and is less exact. "
        "calibrated computes the blocks of a calibration without any search; it needs a profile. Keep svg-ear unless you "
        "compare. Only with preset custom."
    ),
    "budget": (
        "density spends the same share in every group of queries; top-p spends until top_p of the estimated attention is "
        "covered, so that the time varies with the content. Only with preset custom."
    ),
    "top_p": "With budget top-p: share of the attention to cover. Higher is slower and closer to dense. Only with preset custom.",
    "min_share": (
        "Floor of the exact share of each group of queries. Raise it when some regions come out wrong while others are fine. "
        "Only with preset custom."
    ),
    "query_clusters": (
        "Groups of queries that share their exact keys; 0 chooses from the length. More groups follow the content more closely "
        "and use the GPU less well. Only with preset custom."
    ),
    "key_clusters": (
        "Groups of keys that are computed or estimated together; 0 chooses from the length. More is finer and costs more to "
        "cluster. Only with preset custom."
    ),
    "kmeans_first": (
        "Clustering iterations in a layer's first sparse step. More is slower at the start and gives tighter groups. Only with "
        "preset custom."
    ),
    "kmeans_next": (
        "Clustering iterations in the steps after, which start from the groups before. 1 or 2 is enough. Only with preset custom."
    ),
    "kmeans_candidates": (
        "How many groups each token is compared with when it is clustered again, those nearest to its last one: a power of two "
        "from 16 on. 0 compares with all, as published, and is slower. Only with preset custom."
    ),
    "recluster_every": (
        "Cluster a layer anew every so many evaluations; samplers such as heun evaluate twice a step. Higher saves time and "
        "lets the groups age. Only with preset custom."
    ),
    "weighted_centroids": (
        "Estimate with averages that each group of queries weights by its own attention, which makes its mean query exact: "
        "closer to dense for little time. Off takes plain averages, as published. Only with preset custom."
    ),
    "key_metric": (
        "Group queries by how differently they see the keys, so that one choice of exact keys fits a whole group: closer to "
        "dense for little time. Off groups by plain distance, as published. Only with preset custom."
    ),
    "probe_score": (
        "How the blocks to compute exactly are ranked: by the error that estimating them would make, or by their share of the "
        "attention (mass), however well averages fit it. Only with preset custom."
    ),
    "start_percent": (
        "Stay dense before this part of the denoising. Raise it when the composition differs too much from dense. Usually "
        "dense_first_steps is enough."
    ),
    "end_percent": "Stay dense after this part of the denoising. Lower it when fine detail suffers.",
    "dense_first_steps": (
        "Steps at the start of the denoising that stay dense; they settle the composition, and each costs full time. -1 is "
        "automatic: a fifth of the sampler's steps, at least 1, none with preset few-step. A sampler that continues another "
        "(the second expert of Wan 2.2) counts the steps before it as done."
    ),
    "dense_last_steps": "Steps at the end of the denoising that stay dense. Rarely worth their time; try 1 when textures suffer.",
    "dense_blocks": (
        "Layers that stay dense, such as 0, 1, 38-39; negative numbers count from the last layer (-1); empty for none. The "
        "first layer is sensitive and one layer costs little, so keep 0."
    ),
    "min_tokens": "Sequences with fewer tokens stay dense, because there dense attention is the faster one.",
    "memory_limit_mb": (
        "Working memory of one attention call in MB; 0 is automatic (half the size of q, k and v). Lower it when memory runs "
        "out, at some cost in speed."
    ),
    "strict": (
        "Stop with an error when attention cannot run sparse for a reason that is not one of your settings, instead of running it dense."
    ),
    "verbose": "Log every reason why attention stays dense, also those that follow from the settings.",
    "record_layers": (
        "Layers whose routing SVG-EAR Routed Blocks can show, such as 1, 20, -1; auto takes the first, a middle and the last "
        "sparse one, empty none. Density and error are recorded for every layer anyway."
    ),
    "record_steps": (
        "Steps whose routing is recorded, counted from 0 in each sampler; auto takes the first, a middle and the last sparse one."
    ),
    "record_heads": "Heads whose routing is recorded; auto takes the first and the last.",
    "record_limit_mb": (
        "Host memory that the recorded routing of the last runs of this node may take, in MB (while sampling it lies on the "
        "GPU). At 720p one layer, step and head takes about 1.5 MB. 0 records none."
    ),
    "compensate": (
        "With method calibrated: estimate the skipped pairs from block averages. Off drops them, as published: faster and "
        "further from dense. Only with preset custom."
    ),
    "profile": "A calibration of SVG-EAR Load Calibration, for method calibrated with preset custom.",
}
