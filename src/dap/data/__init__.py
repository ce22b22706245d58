"""Real images (`sources`), their cached features (`bank`) and the distilled set on disk (`distilled`)."""
