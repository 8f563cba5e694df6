"""Files, archives and known data sets, read into Arrow batches."""
