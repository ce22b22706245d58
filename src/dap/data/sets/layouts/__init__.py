"""The writers of layouts that other tools read, one for each kind of file."""
