"""The demo's world: scenes drawn from known factors, and small encoders trained on them."""
