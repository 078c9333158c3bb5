"""One file a run."""
