"""The decorator with which every function of the rooms is checked in the test run (conftest.py installs it)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do where a float is asked for
