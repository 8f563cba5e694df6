"""One recipe per record type: loss, metrics, signatures and evaluation of its models."""
