"""From arguments to records: plan, cache, run."""
