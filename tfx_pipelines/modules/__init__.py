"""What the components call, named by dotted path so that nothing needs to be packaged."""
