"""The lab book: one file per figure or claim, and the entry points."""
