"""Files to records: rows of any supported file or data set, parsed and matched. Free of torch."""
