"""Speed, always as ratios within one run."""
