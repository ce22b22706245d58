"""What is said of objects that a Python user gives, so that a set can tell whether they are the same."""
