"""What the benchmarks are made of: corpora of a known kind, one process a trial, rows with machine and date."""
