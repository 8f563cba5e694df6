"""Components that TFX does not have."""
