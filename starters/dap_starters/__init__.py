"""Weights of the starters of `dap`, and Fashion-MNIST. This package holds files alone; `dap.starter` says which they are."""
