"""The training stacks. Each folder holds how its process is prepared, how it loads models, and its trainers' names."""
