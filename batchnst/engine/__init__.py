"""Run a manifest on workers: plan what is left, group it into batches, paint and commit it."""
