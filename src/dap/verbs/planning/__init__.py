"""How far work is, and what work that has not begun will take."""
