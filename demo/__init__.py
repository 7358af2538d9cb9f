"""The embedded demo: scenes with planted factors, and the encoders trained on them from scratch."""
