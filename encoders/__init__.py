"""Encoders of several libraries behind one wrapper."""
