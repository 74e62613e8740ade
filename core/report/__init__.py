"""Pages, charts, Markdown and JUnit, one of each for every command."""
