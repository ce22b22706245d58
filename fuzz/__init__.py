"""Feeds every reader of files with damaged inputs. `python -m fuzz --help` says how."""
