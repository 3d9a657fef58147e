"""Training steps whose numbers were not finite: recorded by a run, repeated by tools/replay_nan.py."""
