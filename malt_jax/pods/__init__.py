"""One device or many, one process or many: meshes, shardings, processes and plans."""
