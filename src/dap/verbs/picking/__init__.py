"""What a recipe leaves to the tool is picked here: a method that suits the folder, and how much work fits a budget of time."""
