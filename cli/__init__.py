"""The `piston` command: one file for each verb that no stage provides."""
