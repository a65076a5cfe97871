"""Logical axes, meshes and arrays on devices."""
