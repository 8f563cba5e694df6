"""What pytest must not import on its own: a plugin registers its model when it is imported."""

collect_ignore = ["plugins"]
