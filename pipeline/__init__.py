"""`piston make`: one recipe from a checkpoint to a bundle that met its gates.

It knows the order of the stages, the cache and the reports. The stages themselves are run as `piston` commands in child
processes, exactly as a user would type them.
"""
