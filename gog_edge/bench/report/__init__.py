"""Results for people: tables, HTML, plots, summaries, differences."""
