"""The callbacks of TFX's components; a dotted path names each, so nothing needs packaging."""
