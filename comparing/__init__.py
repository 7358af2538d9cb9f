"""How much of one run's features another has, and which features some runs share."""
