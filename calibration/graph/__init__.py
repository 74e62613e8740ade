"""The float graph read, and Q/DQ written into it."""
