"""Judging a distilled set: networks trained on it by a protocol, measures over features, and the report."""
