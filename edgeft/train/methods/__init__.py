"""Which weights train and how the rest is held: one file per method."""
