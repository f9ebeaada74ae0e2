"""What a model knows about proteins, measured: the folder of tasks and heads."""
