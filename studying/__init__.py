"""A study: a TOML file of data sets, encoders and comparisons, read as commands and carried out."""
