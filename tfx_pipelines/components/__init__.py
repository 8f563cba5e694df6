"""Components that TFX does not provide."""
