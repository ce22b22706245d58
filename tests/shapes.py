"""The run-time checker of shape annotations in tests: beartype, with int accepted where float is meant (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
