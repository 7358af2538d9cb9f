"""Fit SAEs on an encoder's hooked activations, then record every sample's features."""
