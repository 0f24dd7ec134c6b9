"""Single files in the layouts of the models' own authors: which model a file is, and how it becomes a pipeline."""
