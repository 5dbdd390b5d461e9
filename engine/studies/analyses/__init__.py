"""One analysis of an ensemble a file: what it takes from an EnsembleRun, computes, and keeps as a part."""
