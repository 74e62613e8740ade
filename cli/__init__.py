"""The `piston` command, a file for each verb that no stage owns."""
