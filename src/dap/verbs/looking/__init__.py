"""The functions behind `dap look`: what images and sets hold, before anything is made of them."""
