"""From raw files to records, and from records to what models take."""
