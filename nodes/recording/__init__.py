"""What a sampler run did, and why a call stayed dense: kept while it runs, read by the nodes behind the sampler."""
